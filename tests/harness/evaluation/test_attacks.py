"""The table of attacks on the sandbox: each is held, or known to be open, row by row."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.attacks import find_interpreter, list_users, measure
from tests.support.attacks import ATTACKS, Attack

# Beside "kernel", as which a weak sandbox is refused: the rest is in benchmarks/attacks.csv.
COLUMNS = (("root", "kernel"), ("nobody", "kernel"), ("nobody", "guard"))


@cache
def measure_once(user: str) -> dict[str, dict[str, tuple[bool, str]]]:
    return measure(user, [setup for each, setup in COLUMNS if each == user])


@pytest.mark.parametrize(("user", "setup"), COLUMNS)
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attacks_are_held_or_known_to_be_open(attack: Attack, user: str, setup: str) -> None:
    if setup not in attack.setups:
        pytest.skip(f"not tried with {setup}")
    if user not in list_users():
        pytest.skip("only root can be root's harness")
    if find_interpreter() is None:
        pytest.skip("no interpreter here that every user may run")
    outcomes = measure_once(user)
    if setup not in outcomes:
        pytest.skip("the kernel grants no namespaces here")
    passed, reason = outcomes[setup][str(attack)]
    assert passed is attack.is_open(setup, user), reason
