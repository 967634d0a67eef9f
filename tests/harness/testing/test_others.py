"""What the checker takes for a refusal, and what its verb prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.core.errors import FormatError
from harness.method import register
from harness.testing import Bench, check_method
from methods.parts import check_groups
from tests.harness.testing.test_checks import Free, Ternary


@dataclass(frozen=True)
class Outward(Ternary):
    """Refuses odd outputs too, by the name of their layer, as auto-round does."""

    name = "test-outward"

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        check_groups(layers, self.group_size, multiple=32)


def test_a_layer_may_be_refused_for_its_outputs(bench: Bench) -> None:
    odd = bench.on("odd").shapes
    with pytest.raises(FormatError, match=r"layer model\.layers\.0\.mlp\.(gate|up)_proj"):
        Outward(32).check(odd)
    check_method(Outward(), bench=bench)


def test_the_verb_prints_each_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).parents[3] / "methods/rtn.py"
    good = tmp_path / "test_good.py"
    good.write_text(source.read_text().replace('"rtn"', '"test-good"'))
    assert main(["check", str(good), "--set", "format.bits=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test-good:" and len(lines) == 21
    assert all(line.startswith(("  passed  ", "  skipped  ")) for line in lines[1:])
    register("test-free", Free(), title="Free", about="counts no scales")
    assert main(["check", "test-free"]) == 1
    assert re.search(r"\n  FAILED +counts its bits +layer model\.", capsys.readouterr().out)
    assert main(["check", "test-free", "--set", "group_size"]) == 2
    assert "should be PATH=VALUE" in capsys.readouterr().err
    bad = tmp_path / "test_bad.py"
    bad.write_text("x = 1\nraise KeyError('gone')\n")
    assert main(["check", str(bad)]) == 2
    assert "test_bad.py:2: KeyError: 'gone'" in capsys.readouterr().err
    bad.write_text("x = 1\n")
    assert main(["check", str(bad)]) == 2
    assert "registers no method and defines no part of one" in capsys.readouterr().err
