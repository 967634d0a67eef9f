"""The code behind a stage: what it reaches counts, definition by definition, and nothing else."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core import definitions
from harness.core.definitions import Code, compare, reach
from harness.core.outlines import find_outline

Written = Callable[[dict[str, str]], Code]

FILES = {
    "plugin/__init__.py": "",
    "plugin/stage.py": """
from __future__ import annotations
import json
import numpy as np
from . import helper
from .shapes import LIMIT
from plugin.parts import Part
class S:
    def run(self, part: Part):
        return helper.g(part) + LIMIT
""",
    "plugin/helper.py": """
def g(x):
    return _h(x)
def _h(x):
    return 1
def unused():
    return 2
""",
    "plugin/shapes.py": "LIMIT = 3\nOTHER = 4\n",
    "plugin/parts.py": """
import safetensors
class Part:
    def size(self):
        return safetensors.size(_TABLE)
_TABLE = {}
_TABLE["a"] = 1
""",
    "plugin/unrelated.py": "x = 1\n",
}


def _forget() -> None:
    """As another process would begin."""
    for cached in (
        definitions._reach,
        definitions._source,
        definitions._file,
        definitions._is_submodule,
        definitions._distributions,
    ):
        cached.cache_clear()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """A function: the code behind `plugin.stage.S` after these files were written."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BITGRID_CACHE", str(tmp_path / "cache"))

    def write(files: dict[str, str]) -> Code:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        importlib.invalidate_caches()
        for name in [n for n in sys.modules if n.partition(".")[0] == "plugin"]:
            del sys.modules[name]
        _forget()
        root = type("S", (), {"__module__": "plugin.stage", "__qualname__": "S"})
        return reach([root])

    return write


def test_what_is_reached_is_named(written: Written) -> None:
    code = written(FILES)
    assert set(code.definitions) == {
        "harness.core.execution.clean_state",
        "plugin.stage.S",
        "plugin.helper.g",
        "plugin.helper._h",
        "plugin.shapes.LIMIT",
        "plugin.parts.Part",
        "plugin.parts._TABLE",
    }
    assert {"safetensors", "torch", "numpy"} <= set(code.distributions)  # the last two: clean state
    assert {path.name for path in code.files} >= {"stage.py", "helper.py", "shapes.py", "parts.py"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("plugin/helper.py", "def unused():\n    return 2", "def unused():\n    return 3"),
        ("plugin/helper.py", "def g(x):", '# a comment\ndef g(x):\n    """What it does."""'),
        ("plugin/helper.py", "return _h(x)", "return (\n        _h(x)\n    )"),
        ("plugin/shapes.py", "OTHER = 4", "OTHER = 5\ndef more():\n    return OTHER"),
        ("plugin/unrelated.py", "x = 1", "x = 2"),
    ],
)
def test_what_moves_no_number_makes_nothing_stale(
    written: Written, file: str, old: str, new: str
) -> None:
    before = written(FILES)
    assert old in FILES[file]
    assert written({file: FILES[file].replace(old, new)}).digest == before.digest


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("plugin/helper.py", "return 1", "return 2", "plugin.helper._h"),
        ("plugin/shapes.py", "LIMIT = 3", "LIMIT = 4", "plugin.shapes.LIMIT"),
        ("plugin/parts.py", '_TABLE["a"] = 1', '_TABLE["a"] = 2', "plugin.parts._TABLE"),
        ("plugin/parts.py", "size(_TABLE)", "size(_TABLE, 2)", "plugin.parts.Part"),
    ],
)
def test_what_changed_is_named(written: Written, file: str, old: str, new: str, name: str) -> None:
    before = written(FILES)
    after = written({file: FILES[file].replace(old, new)})
    assert after.digest != before.digest
    assert compare(before.definitions, after.definitions) == [name]


def test_the_words_of_an_error_do_not_count(written: Written) -> None:
    failing = "def g(x):\n    raise ValueError(f'{x} is wrong')\n"
    before = written({**FILES, "plugin/helper.py": failing})
    reworded = failing.replace("is wrong", "cannot be")
    assert written({"plugin/helper.py": reworded}).digest == before.digest
    assert written({"plugin/helper.py": failing.replace("ValueError", "KeyError")}) != before


def test_code_that_moves_to_another_file_is_the_same(written: Written) -> None:
    before = written(FILES)
    moved = {
        "plugin/shapes.py": "from plugin.limits import LIMIT\n",
        "plugin/limits.py": "LIMIT = 3\n",
    }
    after = written(moved)
    assert after.digest == before.digest
    assert compare(before.definitions, after.definitions) == []


def test_a_name_of_a_function_s_own_hides_the_module_s(written: Written) -> None:
    shadowed = "def g(x):\n    unused = x\n    return unused\ndef unused():\n    return 2\n"
    assert (
        "plugin.helper.unused" not in written({**FILES, "plugin/helper.py": shadowed}).definitions
    )


def test_a_loose_module_beside_a_plug_in_is_followed(written: Written) -> None:
    beside = {
        "plugin/shapes.py": "from loose_module_of_a_user import LIMIT\n",
        "loose_module_of_a_user.py": "LIMIT = 3\n",
    }
    assert "loose_module_of_a_user.LIMIT" in written({**FILES, **beside}).definitions


def test_training_reaches_formats_and_objectives_but_no_report_and_no_engine() -> None:
    from methods.training.objectives import CAKLD
    from methods.training.train import Train

    names = set(reach([Train, CAKLD]).definitions)
    assert {"methods.training.objectives.CAKLD", "methods.training.train.Train"} <= names
    assert any(name.startswith("methods.quantization.formats.") for name in names)
    assert not any(
        name.startswith(("reports.", "harness.cli.", "harness.run.", "methods.memory"))
        for name in names
    )


def test_what_was_read_before_is_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.training.train import Train

    codes = []
    (tmp_path / "file").write_text("where nothing can be kept")
    for cache in ("file", "folder", "folder"):
        monkeypatch.setenv("BITGRID_CACHE", str(tmp_path / cache))
        _forget()
        codes.append(reach([Train]))
    assert codes[0] == codes[1] == codes[2]
    assert len(codes[0].definitions) > 100
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"code", "packages"}


def test_what_was_kept_is_of_the_text_that_is_there(written: Written, tmp_path: Path) -> None:
    first = written(FILES)
    kept = sorted((tmp_path / "cache/code").iterdir())
    assert len(kept) >= 5  # a file each
    helper = FILES["plugin/helper.py"].replace("return 1", "return 9")
    changed = written({"plugin/helper.py": helper})
    assert compare(first.definitions, changed.definitions) == ["plugin.helper._h"]
    assert written(FILES) == first
    for path, broken in zip(kept, ('{"imports": 1}', "[]", "{", "", "null"), strict=False):
        path.write_text(broken)
    assert written(FILES) == first


def test_a_digest_is_of_the_code_as_text(tmp_path: Path) -> None:
    text = '''
def f(x: "Y") -> str:
    """About it."""
    if x:
        raise ValueError(f"no {x!r}", 'at "all"')
    return f"{x:>{len('a')}} 'b' \\"c\\" {{d}}" u"e"
A, (B, *C) = D[1, 2:3], lambda *a, k=1, **o: (yield)
for A in B:
    raise ValueError("words")
'''
    plain = text.replace('    """About it."""\n', "").replace(
        'f"no {x!r}", \'at "all"\'', 'f"{x!r}", ""'
    )
    plain = plain.replace('"words"', '""')
    (tmp_path / "file.py").write_text(text)
    outline = find_outline("file", tmp_path / "file.py")
    assert outline is not None
    statements = ast.parse(plain).body
    for name, made in {"f": [0], "A": [1, 2], "B": [1], "C": [1]}.items():
        code = "\n".join(ast.unparse(ast.parse(ast.unparse(statements[each]))) for each in made)
        assert outline.read(name).digest == hashlib.sha256(code.encode()).hexdigest()[:12], name
    assert ("Y", None) in outline.read("f").statements[0].names
