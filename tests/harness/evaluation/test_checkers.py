"""Programs pass here where they pass the published checkers, and fail where they fail there.

The reference is written from what openai/human-eval and the metric code_eval document and do: a
process in which exit, quit and the reading of standard input are disabled, and `exec` of program
and tests, as one text, in an empty dictionary.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.evaluation.sandbox import execute, execute_all, pass_at_k

CHECKER = """
import builtins, io, os, sys
program, verdict = sys.stdin.read(), os.dup(1)
class Shut(io.StringIO):
    def read(self, *_): raise OSError
    readline = readlines = read
sys.stdin, sys.stdout, sys.stderr = Shut(), io.StringIO(), io.StringIO()
builtins.exit = builtins.quit = builtins.help = None
for name in ("joblib", "resource", "psutil", "tkinter"):
    sys.modules[name] = None
try:
    exec(program, {})
except BaseException:
    os._exit(1)
os.write(verdict, b"passed")
os._exit(0)
"""

RIGHT = "def double(x):\n    return 2 * x\n"
TESTS = "assert double(2) == 4\nassert double(-1) == -2"
# What stands after the right function, and whether the published checkers pass it.
VARIANTS = {
    "nothing": ("", True),
    "a main block that reads": (
        'if __name__ == "__main__":\n    print(int(input()))\n',
        True,
    ),
    "in other quotes": ("if __name__ == '__main__':\n    raise SystemExit(main())\n", True),
    "the other way round": ('if "__main__" == __name__:\n    assert False\n', True),
    "in a variable": ("main = __name__\nassert main != '__main__'\n", True),
    "else": ('if __name__ != "__main__":\n    pass\nelse:\n    exit(1)\n', True),
    "unittest in a main block": (
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
        "        self.assertEqual(double(1), 3)\n"
        'if __name__ == "__main__":\n    unittest.main()\n',
        True,
    ),
    "unittest called": ("import unittest\nunittest.main()\n", False),
    "doctest in a main block": (
        'if __name__ == "__main__":\n    import doctest\n    doctest.testmod()\n',
        True,
    ),
    "input called": ("x = input()\n", False),
    "input caught": ("try:\n    x = input()\nexcept EOFError:\n    pass\n", False),
    "input caught as it is raised": ("try:\n    x = input()\nexcept OSError:\n    pass\n", True),
    "standard input read": ("import sys\nx = sys.stdin.read()\n", False),
    "lines of it": ("import sys\nx = [line for line in sys.stdin]\n", False),
    "input defined": ("def input(*_):\n    return '3'\nint(input())\n", True),
    "printing": ("print('x' * 10000)\nprint(double(3), flush=True)\n", True),
    "printing what no encoding has": ("print('\\ud800')\n", True),
    "bytes to standard output": ("import sys\nsys.stdout.buffer.write(b'x')\n", False),
    "exit": ("exit()\n", False),
    "exit caught": ("try:\n    exit()\nexcept SystemExit:\n    pass\n", False),
    "sys.exit": ("import sys\nsys.exit(0)\n", False),
    "sys.exit caught": ("import sys\ntry:\n    sys.exit()\nexcept SystemExit:\n    pass\n", True),
    "numpy": ("import numpy as np\nassert np.dot(np.ones(3), np.ones(3)) == 3\n", True),
    "numpy's own threads": ("import numpy as np\nnp.linalg.svd(np.ones((200, 200)))\n", True),
    "a package that is not there": ("import no_such_package\n", False),
    "what the checkers take away": ("import psutil\n", False),
    "a thread": (
        "import threading\nt = threading.Thread(target=double, args=(1,))\nt.start()\nt.join()\n",
        True,
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n    assert list(pool.map(double, [1])) == [2]\n",
        True,
    ),
    "asyncio": (
        "import asyncio\nasync def one():\n    return 1\nassert asyncio.run(one()) == 1\n",
        True,
    ),
    "a global": ("count = 0\ndef add():\n    global count\n    count += 1\nadd()\n", True),
    "a dataclass": (
        "from dataclasses import dataclass, field\n@dataclass\nclass P:\n    x: int = 0\n"
        "    y: list = field(default_factory=list)\nassert P(1).x == 1\n",
        True,
    ),
    "an enum, a named tuple": (
        "import enum, typing\nE = enum.Enum('E', 'A B')\n"
        "class N(typing.NamedTuple):\n    x: int\nassert N(1).x == 1 and E.A.value == 1\n",
        True,
    ),
    "hints": (
        "import typing\ndef f(x: int) -> str: ...\nassert typing.get_type_hints(f)['x'] is int\n",
        True,
    ),
    "hints of names of its own": (
        "import typing\nclass A: ...\nclass B:\n    x: 'A'\ntyping.get_type_hints(B)\n",
        False,
    ),
    "pickle of its own class": ("import pickle\nclass A: ...\npickle.dumps(A())\n", False),
    "a late future import": ("from __future__ import annotations\n", False),
    "its own name": ("assert __name__ == 'builtins'\n", True),
    "no file": ("__file__\n", False),
    "an open bracket": ("x = (1,\n", False),
    "an open text": ("'''\n", False),
    "an open block": ("if True:\n", False),
    "carriage returns": ("def triple(x):\r\n    return 3 * x\r\n", True),
    "a redefinition": ("def double(x):\n    return x\n", False),
    "depth": ("def f(n):\n    return n and f(n - 1)\nf(900)\n", True),
    "too much depth": ("def f(n):\n    return n and f(n - 1)\nf(1100)\n", False),
    "memory": ("x = bytearray(300 << 20)\n", True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_right_function_passes_where_the_published_checkers_pass_it(name: str) -> None:
    rest, passes = VARIANTS[name]
    code = f"{RIGHT}\n{rest}"
    reference = subprocess.run(
        [sys.executable, "-c", CHECKER],
        input=f"{code}\n{TESTS}".encode(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (reference.stdout == b"passed") is passes  # of the reference itself
    outcome = execute(code, tests=TESTS)
    assert outcome.passed is passes, outcome.reason


def test_a_future_import_counts_for_the_program_and_not_for_the_sandbox() -> None:
    first = "from __future__ import annotations\ndef f(x: no_such_name): ...\n"
    assert execute(first).passed
    assert execute("def f(x: no_such_name): ...\n").reason.startswith("NameError")


def test_a_wrong_function_passes_in_no_variant() -> None:
    wrong = "def double(x):\n    return x + 2\n"  # right of 2 alone
    programs = [(f"{wrong}\n{rest}", TESTS) for rest, _ in VARIANTS.values()]
    assert not any(outcome.passed for outcome in execute_all(programs))


def test_canonical_solutions_pass_with_a_main_block_and_without(shared: Path) -> None:
    with gzip.open(shared / "data" / "humaneval.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 164
    tests = [f"{row['test']}\ncheck({row['entry_point']})" for row in rows]
    main = '\nif __name__ == "__main__":\n    print(int(input()))\n'
    right = [[row["prompt"] + row["canonical_solution"] + main] for row in rows]
    assert pass_at_k(tests, right)[0] == {"pass@1": 1.0}
