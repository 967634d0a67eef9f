"""The sandbox holds: each attack is contained, and only programs that pass their tests pass."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.evaluation.sandbox import Outcome, execute, execute_all

GOOD = "def double(x):\n    return 2 * x\n"


def layers() -> tuple[str, ...]:
    return execute("pass").layers


def test_right_and_wrong_programs() -> None:
    assert execute(GOOD, tests="assert double(2) == 4").passed
    wrong = execute(GOOD, tests="assert double(2) == 5")
    assert not wrong.passed and wrong.reason.startswith("AssertionError")
    assert execute("def f(:\n").reason.startswith("SyntaxError")
    assert execute(GOOD + "\nassert double(1) == 2").passed
    assert execute("import re, json, random, collections").passed


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "exit = quit = None\nimport sys\ndef double(x): sys.exit(0)",
        "import os\ndef double(x): os._exit(0)",
    ],
)
def test_leaving_early_is_not_passing(code: str) -> None:
    outcome = execute(code, tests="assert double(2) == 4")
    assert not outcome.passed
    assert "before" in outcome.reason


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)", "10**10**9"])
def test_an_endless_program_is_stopped(code: str) -> None:
    began = time.monotonic()
    outcome = execute(code, timeout_s=1.0)
    assert outcome == Outcome(False, "timeout", outcome.layers)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("guard", [True, False])
def test_ten_gigabytes_are_refused(guard: bool) -> None:
    outcome = execute("x = bytearray(10 << 30)", guard=guard)
    assert not outcome.passed and outcome.reason.startswith("MemoryError")


@pytest.mark.parametrize("guard", [True, False])
def test_a_fork_bomb_is_refused(guard: bool) -> None:
    bomb = "import os\nwhile True: os.fork()"
    began = time.monotonic()
    outcome = execute(bomb, timeout_s=2.0, guard=guard)
    assert not outcome.passed
    assert outcome.reason.startswith(("PermissionError", "BlockingIOError"))
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("guard", [True, False])
def test_writing_outside_the_folder_is_refused(guard: bool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    os.chmod(tmp_path, 0o777)
    os.chmod(victim, 0o666)
    if not guard and not {"files", "user"} & set(layers()):
        pytest.skip("the kernel grants neither namespaces nor another user here")
    for code in (
        f"open({str(victim)!r}, 'w').write('lost')",
        f"import os; os.remove({str(victim)!r})",
    ):
        assert not execute(code, guard=guard).passed
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("guard", [True, False])
def test_reading_what_is_not_for_everybody_is_refused(guard: bool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept")
    secret.chmod(0o600)
    if not guard and not (os.geteuid() == 0 and {"files", "user"} <= set(layers())):
        pytest.skip("only root's programs run as somebody else, and not without namespaces")
    for code in (
        f"open({str(secret)!r}).read()",
        f"import os; os.read(os.open({str(secret)!r}, os.O_RDONLY), 4)",
        f"import os; os.listdir({str(tmp_path)!r})",
    ):
        assert execute(code, guard=guard).reason.startswith("PermissionError"), code
    # The library is read all the same, wherever it lies, and so is what the program itself wrote.
    code = "import decimal, unittest, json.tool, xml.dom.minidom, sqlite3, asyncio, os\n"
    code += "open('own', 'w').write('x')\nassert open('own').read() == 'x' and os.listdir()"
    assert execute(code, guard=guard).reason == "passed"


def test_a_big_file_is_refused_and_the_folder_is_gone() -> None:
    assert execute("open('small', 'w').write('x')\nassert open('small').read() == 'x'").passed
    assert not execute("open('big', 'wb').write(bytes(2 << 20))").passed
    code = "import os; assert os.listdir('.') == []"
    assert execute(code).passed


@pytest.mark.parametrize("guard", [True, False])
def test_the_network_is_refused(guard: bool) -> None:
    if not guard and "network" not in layers():
        pytest.skip("the kernel grants no network namespace here")
    connect = "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = execute(connect.format(port=server.getsockname()[1]), guard=guard)
    assert not outcome.passed
    assert outcome.reason.startswith(("PermissionError", "OSError", "ConnectionRefused"))


def test_output_without_end_does_no_harm() -> None:
    outcome = execute("while True: print('x' * 10000)", timeout_s=1.0)
    assert outcome.reason == "timeout"


@pytest.mark.parametrize("guard", [True, False])
def test_threads_are_bounded(guard: bool) -> None:
    code = """import threading, time
for _ in range(1000):
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()"""
    assert execute(code, guard=guard).reason.startswith("RuntimeError: can't start new thread")


def test_a_batch_keeps_its_order() -> None:
    programs = [(GOOD, f"assert double({i}) == {2 * i + i % 2}") for i in range(8)]
    assert [o.passed for o in execute_all(programs)] == [i % 2 == 0 for i in range(8)]


@pytest.mark.parametrize("right", [True, False])
def test_long_tests_are_run_and_longer_ones_are_said_to_be(right: bool) -> None:
    tests = f"assert double(2) == {4 if right else 5}\n" + "assert double(3) == 6\n" * 20_000
    assert execute(GOOD, tests=tests, timeout_s=20).passed is right
    assert not execute("while True: pass", tests=tests, timeout_s=1).passed
    assert execute(GOOD, tests=tests * 5).reason.startswith("program too long")
