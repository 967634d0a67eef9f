"""What `bitgrid methods` says is remembered, and read anew where anything has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.core.provenance import list_sources
from harness.run import listing
from harness.run.declarations import read_declarations
from harness.run.listing import Listing, read_methods, recall, remember

HEAVY = ("torch", "transformers", "pandas", "numpy", "lm_eval", "methods.rtn")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    monkeypatch.setenv("BITGRID_CACHE", str(tmp_path))
    found = replace(read_methods(), unavailable={})
    remember(found)
    return found


def test_what_is_remembered_is_what_was_listed(kept: Listing) -> None:
    assert recall() == kept
    settings = {each.path: each for each in kept.methods["bitdistiller"].settings}
    assert settings["format.bits"].value == "2"
    assert settings["format.bits"].text == "of each weight's code"
    assert settings["train.schedule"].remarks == ("of constant, cosine, linear",)
    assert "fixed where only compared against" in settings["objective"].remarks
    assert settings["train"].value == "" and settings["teacher"].value == "null"


def test_a_method_is_listed_without_importing_one(kept: Listing) -> None:
    code = (
        "import sys; from harness.cli.main import main\n"
        "assert main(['methods', 'bitdistiller']) == main(['methods']) == 0\n"
        f"assert not set({HEAVY}) & set(sys.modules)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    (line,) = [each for each in done.stdout.splitlines() if "  init.grid" in each]
    assert line.split(maxsplit=2)[1:] == ["20", kept.methods["awq-clip"].settings[6].meaning]


def test_parts_are_listed_by_family_and_name(
    kept: Listing, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {each.path: each for each in kept.parts["attachment/activations"].settings}
    assert fields["bits"].value == "8" and fields["bits"].meaning
    assert {each.path: each.value for each in kept.parts["format/mixed"].settings} == {
        "default": "int-asym",
        "layers": "{}",
    }
    assert main(["methods", "kv-cache"]) == 0
    assert capsys.readouterr().out.startswith("attachment/kv-cache: ")
    assert main(["methods", "rounding/gptq"]) == main(["methods", "none"]) == 0
    heads = {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert {"rounding/gptq", "format/none", "init/none"} <= heads
    assert main(["methods", "kv-cash"]) == 2
    assert "'kv-cash'; did you mean 'kv-cache'?" in capsys.readouterr().err


def test_a_change_is_seen(kept: Listing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(listing, "list_sources", lambda: [*list_sources(), tmp_path / "new.py"])
        assert recall() is None  # a file came
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_list_points", lambda: ["mine = my_package.mine"])
        assert recall() is None  # a plug-in came
    with monkeypatch.context() as patch:
        patch.setattr(listing, "is_unchanged", lambda mark: not mark[0].endswith("rtn.py"))
        assert recall() == kept  # touched
        patch.setattr(listing, "read_declarations", lambda text: f"{text} ")
        assert recall() is None  # a file is another
    assert recall() == kept
    listing._find_place().write_text("[]")
    assert recall() is None


def test_what_is_unavailable_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITGRID_CACHE", str(tmp_path))
    remember(Listing({}, {}, {"mine": "unavailable: ImportError: hqq (mine.py)"}))
    assert recall() is None and not any(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITGRID_CACHE", str(tmp_path / "file"))
    remember(Listing({}, {}, {}))
    assert recall() is None


FILE = """\"\"\"Calls `later`.\"\"\"
from typing import Literal

def count(
    most: int = 3,
) -> int:
    return twice(most)

def twice(number):
    return 2 * number

def later():
    return 7

@dataclass
class Mine(Method):
    bits: int = count()  # of a code

    def __post_init__(self):
        check(self.bits)

    def apply(self, model):
        # later
        return later()

register("mine", Mine())
"""


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("return 7", "return 8\n\n    # more", False),
        ("# later\n        return later()", "return model", False),
        ("of a code", "of each code", True),
        ("most: int = 3", "most: int = 4", True),
        ("2 * number", "3 * number", True),  # called as the file is imported
        ("check(self.bits)", "pass", True),
        ("def apply", "def applied", True),
        ('register("mine"', 'register("yours"', True),
    ],
)
def test_only_bodies_that_run_later_leave_the_list_as_it_is(
    before: str, after: str, counts: bool
) -> None:
    changed = FILE.replace(before, after)
    assert changed != FILE
    assert (read_declarations(changed) != read_declarations(FILE)) == counts


def test_whoever_imports_the_methods_remembers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Listing
) -> None:
    listing.keep()
    place = listing._find_place()
    before = place.stat().st_mtime_ns
    listing.keep()
    assert place.stat().st_mtime_ns == before  # known already
    place.unlink()
    monkeypatch.setattr(listing, "read_methods", lambda: kept)
    listing.keep()
    assert recall() == kept
