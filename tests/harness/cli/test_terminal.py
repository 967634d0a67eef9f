"""Tables of words: aligned, whole, and plain where they are piped."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from harness.cli.terminal import format_table, print_table


def test_words_wrap_to_the_terminal_and_nothing_is_cut() -> None:
    name, words = "a.name.that.is.longer.than.the.others", "[red]some[/red] :smile: 漢字 " * 6
    lines = format_table([("a", "short"), (name, words)], words=2, width=60).splitlines()
    assert lines[0].split() == ["a", "short"]
    assert lines[1].startswith(f"{name}  [red]some[/red]")
    assert " ".join(" ".join(lines[1:]).split()).removeprefix(name).split() == words.split()
    assert all(cell_len(line) <= 60 for line in lines) and len(lines) > 4


def test_numbers_stand_beneath_each_other_and_are_whole_on_a_narrow_terminal() -> None:
    rows = [("Train", "7", "1000000"), ("Perplexity", "·", "12")]
    assert format_table(rows, head=("", "done", "to do"), indent=2, width=10).splitlines() == [
        "              done    to do",
        "  Train          7  1000000",
        "  Perplexity     ·       12",
    ]


def test_what_is_piped_is_a_line_a_row_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("name", "words " * 100)], head=("Name", "About"), words=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].count("words") == 100
    assert "\x1b" not in "".join(lines)
    print_table([])
    assert capsys.readouterr().out == ""
