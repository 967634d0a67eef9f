"""Numbers that options take, refused in a user's words."""

from __future__ import annotations

import pytest

from harness.cli.main import make_parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("launch g.yaml --waves 0", "--waves: '0' should be a whole number of at least 1"),
        ("launch g.yaml --waves two", "--waves: 'two' should be a whole number of at least 1"),
        ("gc --older nan", "--older: 'nan' should be a number of at least 0"),
        ("gc --older=-1", "--older: '-1' should be a number of at least 0"),
        ("plan g.yaml --gpu-gib 24,x", "--gpu-gib: 'x' should be a number of at least 0"),
        ("plan g.yaml --gpu-gib 0", "--gpu-gib: '0' should be sizes above 0, as 24,80"),
    ],
)
def test_numbers_of_options_are_refused_in_words(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(words.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
