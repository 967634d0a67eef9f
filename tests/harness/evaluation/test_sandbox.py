"""The sandbox holds: each attack is contained, and only programs that pass their tests pass."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.core.errors import GridError
from harness.core.records import Score
from harness.evaluation import sandbox
from harness.evaluation.code_tasks import LmEvalCode
from harness.evaluation.lm_eval import LmEval
from harness.evaluation.sandbox import Outcome, execute, execute_all
from harness.evaluation.sandbox_child import wait_for
from harness.evaluation.scores import Scores
from harness.models import Pretrained

ROW = Score(**{**{f.name: None for f in fields(Score)}, "protocol": "lm-eval"})  # type: ignore[arg-type]
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


@pytest.mark.parametrize("code", ["while True: pass", "10**10**9"])
def test_an_endless_program_is_stopped(code: str) -> None:
    began = time.monotonic()
    outcome = execute(code, timeout_s=1.0)
    assert outcome == Outcome(False, "timeout", outcome.layers)
    assert time.monotonic() - began < 8


def test_a_program_that_waits_is_stopped_also_where_the_harness_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = sandbox._run
    monkeypatch.setattr(sandbox, "_run", lambda payload, folder, _: run(payload, folder, 1000))
    began = time.monotonic()
    outcome = execute("import time; time.sleep(1000)", timeout_s=0.02)
    assert outcome == Outcome(False, "timeout", outcome.layers)
    assert 1 < time.monotonic() - began < 20
    # And by the harness where what should stop it says nothing.
    monkeypatch.setattr(sandbox, "_CHILD", "import time; time.sleep(1000)")
    monkeypatch.setattr(sandbox, "_run", lambda payload, folder, _: run(payload, folder, 0.1))
    assert execute("pass") == Outcome(False, "timeout")


def test_a_child_is_waited_for_no_longer_than_it_may_take() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    try:
        for command, wall_s, status in (
            ("sleep 1000", 0.05, -signal.SIGALRM),
            ("exit 3", 60, 3),
            ("kill -KILL $$", 60, -signal.SIGKILL),
        ):
            child = subprocess.Popen(["sh", "-c", f"exec 2>&-; {command}"])
            assert wait_for(child.pid, wall_s) == status
            child.returncode = status
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


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


WRONG, TESTS = "def double(x):\n    return 0\n", "assert double(2) == 4"
REPLACED = {  # what stands before a wrong program's tests, which pass where nobody looks
    "len": "import builtins\nbuiltins.len = lambda _: 4\ndouble = lambda _: len([])",
    "abs": "import builtins\nbuiltins.abs = lambda _: 4\ndouble = lambda _: abs(1)",
    "all": "import builtins\nbuiltins.all = lambda _: 4\ndouble = lambda _: all([])",
    "isclose": "import math\nmath.isclose = lambda *_: True\ndouble = lambda _: 4",
    "operator": "import operator\noperator.eq = lambda *_: True\ndouble = lambda _: 4",
    "unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *_: 1\n"
    "double = lambda _: 4",
}
DODGED = {  # these reached the end of the checker without the end of the tests
    "leaving": "import os, sys\nos._exit = lambda _: None\nsys.exit()",
    "verdict": "import os\nos._exit, tell = lambda _: None, os.write\n"
    "os.write = lambda file, said: said.startswith(b'raised') or tell(file, said)",
    "at exit": "import atexit, os\natexit.register(os._exit, 0)",
    "exit status": "import os\nos._exit(0)",
}
OWN_END = "os.write(sys._getframe(1).f_locals['report'], b'end')\nos._exit(0)\n"
TOLD = {  # these tell the end of their tests themselves
    "at once": f"import os, sys\n{OWN_END}",
    "when called": f"import os, sys\ndef double(x):\n    frame = sys._getframe(2)\n"
    f"    {OWN_END.replace('sys._getframe(1)', 'frame').replace(chr(10), chr(10) + '    ')}",
    "to every descriptor": "import os\nfor file in range(3, 32):\n    try: os.write(file, b'end')\n"
    "    except OSError: pass\nos._exit(0)",
}
OPEN = {  # what passes, and is told in docs/faults.md; whoever closes one moves it up
    "equal to all": "class Any:\n    __eq__ = lambda *_: True\ndouble = lambda _: Any()",
    "tells the runs apart": "import os, sys\nif not os.path.exists('told'):\n"
    f"    open('told', 'w').close()\n    {OWN_END.replace(chr(10), '; ')}",
    "put back": "import builtins\nkept, builtins.abs = builtins.abs, lambda _: 4\n"
    "def double(x):\n    four, builtins.abs = abs(1), kept\n    return four",
}


@pytest.mark.parametrize("cheat", REPLACED)
def test_a_program_that_replaced_what_tests_rest_on_fails(cheat: str) -> None:
    outcome = execute(f"{WRONG}{REPLACED[cheat]}", tests=TESTS)
    assert outcome.reason == "PermissionError: the program changed what its tests rest on"


@pytest.mark.parametrize("cheat", DODGED)
def test_a_program_that_dodges_its_tests_fails(cheat: str) -> None:
    assert not execute(f"{WRONG}{DODGED[cheat]}", tests=TESTS).passed


@pytest.mark.parametrize("cheat", TOLD)
def test_a_program_that_reports_its_own_end_fails(cheat: str) -> None:
    outcome = execute(f"{WRONG}{TOLD[cheat]}", tests=TESTS)
    assert outcome.reason == "PermissionError: the program reported its own end"


def test_what_the_harness_reads_is_out_of_reach() -> None:
    code = "import os, sys\nos.write(int(sys.argv[1]), b'all\\nend')\n"
    assert execute(code + "os._exit(0)").reason == "ended before its tests did"
    assert execute("import os\nassert os.read(0, 99) == b''").passed


@pytest.mark.parametrize("cheat", OPEN)
def test_what_cannot_be_seen_is_known(cheat: str) -> None:
    assert execute(f"{WRONG}{OPEN[cheat]}", tests=TESTS).passed


def test_what_right_programs_replace_does_not_count_as_cheating() -> None:
    code = "import builtins\nbuiltins.input = lambda: '3'\nassert input() == '3'\n"
    assert execute(GOOD + code, tests=TESTS).passed


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(100_000): open(str(i), 'w').close()",
        "import os\nfor i in range(100_000): os.mkdir(str(i))",
    ],
)
def test_files_and_folders_are_bounded(code: str) -> None:
    if "files" not in layers():
        pytest.skip("the kernel grants no file systems of our own here")
    assert execute(code).reason.startswith("OSError: [Errno 28]")


def test_a_program_dies_with_the_harness_and_its_folder_goes(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = "import time\nwhile True: time.sleep(0.1)"
    harness = "from harness.evaluation.sandbox import execute\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{harness}execute({code!r}, timeout_s=20)"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    def find_programs() -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"\0{process.pid}\0" in entry.read_text(errors="replace"):
                    found.append(int(entry.parent.name))
        return found

    def wait_for(count: int) -> None:
        until = time.monotonic() + 30
        while len(find_programs()) != count:
            assert time.monotonic() < until, find_programs()
            time.sleep(0.05)

    try:
        wait_for(3)
    finally:
        process.kill()
        process.wait()
    wait_for(0)
    (folder,) = tmp_path.iterdir()
    os.utime(folder, (0, 0))
    subprocess.run(
        [sys.executable, "-c", f"{harness}execute('pass')"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_weak_sandbox_is_refused_unless_the_grid_accepts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "find_missing_layers", lambda: ("network", "files"))
    stage = LmEvalCode(None, "humaneval", None, False, "digest")  # type: ignore[arg-type]
    with pytest.raises(GridError, match=r"namespaces for network, files.*accept_weak_sandbox"):
        stage.preflight()
    accepting = replace(stage, accept_weak_sandbox=True)
    scores = Scores([ROW], None)  # type: ignore[arg-type]
    monkeypatch.setattr(LmEval, "run", lambda *_: scores)
    (row,) = accepting.run(Path()).rows
    assert row.protocol == "lm-eval; sandbox without network, files"
    monkeypatch.setattr(sandbox, "find_missing_layers", lambda: ())
    assert stage.run(Path()).rows == [ROW]


def test_a_weak_sandbox_is_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandbox, "find_missing_layers", lambda: ("files",))
    monkeypatch.setattr(Pretrained, "run", lambda *_: pytest.fail("a model was loaded"))
    path = tmp_path / "grid.yaml"
    path.write_text(
        "model: testbed-small\nmethod: rtn\nallow_code_execution: true\n"
        "evaluate: [testbed-ppl, testbed_code]\n"
    )
    assert main(["run", str(path), "--store", str(tmp_path / "store")]) == 2
    assert "no namespaces for files" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "store").rglob("manifest.json"))
