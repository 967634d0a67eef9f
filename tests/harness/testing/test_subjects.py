"""What the checker tries: parts in a method that they matter in, and settings that are small."""

from __future__ import annotations

import pytest

from harness.config.settings import list_settings
from harness.core.errors import GridError
from harness.method import METHODS
from harness.testing import Bench, examine, list_names
from harness.testing.subjects import find_subject, make_small


def test_what_is_small_stays_what_the_method_takes() -> None:
    small = dict(list_settings(make_small(METHODS.find("bitdistiller").method)))
    assert small["format.group_size"] == 32 and small["train.steps"] == 4
    assert small["init.text"] == small["data.text"] == "testbed"
    assert small["format.bits"] == 2


def test_a_part_is_tried_where_it_matters(bench: Bench) -> None:
    assert find_subject("nf", bench).title == "format nf (in method rtn)"
    kl = find_subject("objective/kl", bench, {})
    assert kl.title == "objective kl (in method llm-qat)"
    assert dict(list_settings(kl.method))["objective"].name == "kl"
    grid = find_subject("init/clip", bench, {"grid": 7}).method
    assert dict(list_settings(grid))["init.grid"] == 7
    assert {"rtn", "format/nf", "attachment/kv-cache", "rounding/gptq"} < set(list_names())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rnt", "'rnt' is unknown; did you mean 'rtn'"),
        ("none", "several parts are called .none.: say "),
        ("objective/sum", "objective sum cannot be tried in any method: .*parts"),
        ("format/nff", "did you mean 'format/nf'"),
    ],
)
def test_a_name_that_is_no_one_things(name: str, words: str, bench: Bench) -> None:
    with pytest.raises(GridError, match=words):
        examine(name, bench=bench)
