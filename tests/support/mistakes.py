"""Typical mistakes of authors: one edit each of a file that `bitgrid new-…` writes, and the answer.

python -m tests.support.mistakes            # writes the table into docs/methods.md anew
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.cli.main import main
from harness.core import component
from harness.core.checked import forget_adapters
from harness.core.errors import BitgridError
from harness.method import METHODS
from harness.testing import Bench, load_file
from harness.testing.checks import iterate_checks
from harness.testing.subjects import find_subject

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/methods.md"
HEAD = "| mistake | what is printed |\n| :-- | :-- |\n"
BITS = "    group_size: Annotated[int, Field(ge=1)] = 128"


class Mistake(NamedTuple):
    """`old` of the file that `bitgrid new-KIND` writes is replaced by `new`."""

    title: str
    kind: str
    old: str
    new: str


MISTAKES = (
    Mistake("not frozen", "method", "@dataclass(frozen=True)", "@dataclass"),
    Mistake("no dataclass", "method", "@dataclass(frozen=True)\n", ""),
    Mistake("`apply` without `work`", "method", ", work: Path", ""),
    Mistake("`apply` misspelt", "method", "def apply", "def aply"),
    Mistake(
        "a field without a type", "method", "group_size: Annotated[int, Field(ge=1)]", "group_size"
    ),
    Mistake(
        "a field that no key can hold", "method", BITS, f'{BITS}\n    file: Path = Path("data")'
    ),
    Mistake("a field named as a function", "method", BITS, f'{BITS}\n    calibration: str = "max"'),
    Mistake("`seeded` with a type", "method", BITS, f"{BITS}\n    seeded: bool = True"),
    Mistake("`needs` is text", "method", BITS, f'{BITS}\n    needs = "hqq"'),
    Mistake("a default beyond its limits", "method", "le=8)] = 4", "le=8)] = 1"),
    Mistake("a name that is taken", "method", 'register(\n    "NAME"', 'register(\n    "rtn"'),
    Mistake("a class registered", "method", "CLASS(),", "CLASS,"),
    Mistake("no title", "method", 'title="TITLE"', 'title=""'),
    Mistake("a name that is not imported", "method", "Quantized(\n", "Quantised(\n"),
    Mistake(
        "`__post_init__` alone", "method", BITS, f"{BITS}\n\n    def __post_init__(self): pass\n"
    ),
    Mistake("written in place", "method", "matrix.replace(", "matrix.weight.copy_("),
    Mistake("a layer not recorded", "method", "result.quantized[name] =", "record ="),
    Mistake("nothing returned", "method", "return result", "return"),
    Mistake("the network returned", "method", "return result", "return result.network"),
    Mistake("another shape", "method", ".flatten(-2)", ""),
    Mistake("weights left unrounded", "method", ".round()", ""),
    Mistake("a division by 0", "method", "/ top", "/ 0"),
    Mistake("scales not counted", "method", "self.bits + 16 / self.group_size", "float(self.bits)"),
    Mistake(
        "other bits than asked for", "method", "                self.bits,", "                4,"
    ),
    Mistake(
        "a random number, undeclared",
        "method",
        "/ scale).round()",
        "/ scale + scale.new_empty(1).uniform_(-1, 1)).round().clamp(-top, top)",
    ),
    Mistake(
        "a hook",
        "method",
        "return result",
        "matrix.module.register_forward_hook(print)\n        return result",
    ),
    Mistake("one loss for all tokens", "objective", ".sum(-1) *", ".mean() *"),
    Mistake("no gradient", "objective", "seen.log_q /", "seen.log_q.detach() /"),
    Mistake("`token_losses` misspelt", "objective", "def token_losses", "def losses"),
    Mistake(
        "it sees what there is not",
        "objective",
        '    name = "NAME"',
        '    name = "NAME"\n    sees = "block"',
    ),
    Mistake("a name that no grid can say", "objective", 'name = "NAME"', 'name = "My loss"'),
    Mistake("no name", "objective", '    name = "NAME"\n', ""),
    Mistake("the name as a field", "objective", 'name = "NAME"', 'name: str = "NAME"'),
    Mistake("an abstract method lacks", "format", "def overhead", "def overheads"),
    Mistake("scales that cost nothing", "format", "return 16 ", "return 0 "),
    Mistake("too many levels", "format", "top = 2 ** (self.bits - 1) - 1", "top = 2**self.bits"),
)


def find_answer(number: int, folder: Path, bench: Bench) -> str:
    """What is printed, first, of a mistake, without the folder."""
    mistake, name = MISTAKES[number], f"test-mistake-{number}"
    path = folder / f"{name.replace('-', '_')}.py"
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert main([f"new-{mistake.kind}", name]) == 0
    words = {"NAME": name, "CLASS": f"TestMistake{number}", "TITLE": f"Test mistake {number}"}
    old, new = mistake.old, mistake.new
    for word, told in words.items():
        old, new = old.replace(word, told), new.replace(word, told)
    text = path.read_text()
    assert text.count(old) >= 1, mistake.title
    path.write_text(text.replace(old, new, 1))
    try:
        (loaded,) = load_file(path)
        findings = iterate_checks(find_subject(loaded, bench), bench)
        first = next((each for each in findings if each.fault), None)
        answer = f"{first.check}: {first.fault}" if first else "nothing"
    except BitgridError as error:
        answer = str(error)
    for told, word in (
        (f"{folder.resolve()}/", ""),
        (f"{ROOT}/", ""),
        (path.name, "mine.py"),
        (name, "mine"),
    ):
        answer = answer.replace(told, word)
    return answer.replace(f"TestMistake{number}", "Mine")


@contextlib.contextmanager
def registries_restored() -> Iterator[None]:
    """What is registered inside is unknown afterwards."""
    METHODS.load()
    items = dict(METHODS._items)
    members = {family: dict(held) for family, held in component._members.items()}
    try:
        yield
    finally:
        METHODS._items = items
        component._members.clear()
        component._members.update(members)
        forget_adapters()


def make_table() -> str:
    """A line for each mistake, in Markdown."""
    lines = []
    with tempfile.TemporaryDirectory() as place, registries_restored():
        bench = Bench.make(Path(place))
        for number, mistake in enumerate(MISTAKES):
            with tempfile.TemporaryDirectory() as folder:
                answer = find_answer(number, Path(folder), bench).replace("|", "\\|")
            lines.append(f"| {mistake.title} | `` {answer} `` |\n")
    return HEAD + "".join(lines)


def write_table() -> None:
    """Put the table into the page in place of the one there."""
    before, _, after = PAGE.read_text().partition(HEAD)
    rest = after.split("\n\n", 1)[1:]
    PAGE.write_text(before + "\n".join([make_table(), *rest]))


if __name__ == "__main__":
    write_table()
