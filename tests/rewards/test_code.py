"""The code reward: shares, fields, and tricks that would earn what was not solved."""

from __future__ import annotations

import sys
import time

import pytest

from sandboxes import host, sandboxed
from truing import rewards
from truing.errors import DataError, UsageError
from truing.rewards.base import score

__all__ = ["host"]  # a fixture
pytestmark = [sandboxed, pytest.mark.usefixtures("host")]

SQUARE = ["assert square(3) == 9", "assert square(-2) == 4", "assert square(0) == 0"]
RIGHT = "def square(x):\n    return x * x\n"


def scored(program: str, tests, **fields):
    reward = rewards.make({"name": "code", "extract": "text", "seconds": 5, **fields})
    scores = score(reward, ["", ""], [RIGHT, program], {"tests": [SQUARE, tests]})
    assert scores.values[0] == 1.0
    assert sum(scores.faults.values()) == scores.values.count(None)
    return next(iter(scores.faults), scores.values[1])


def test_right_programs_score_one_and_half_right_ones_their_share():
    assert scored(RIGHT, SQUARE) == 1.0
    assert scored("def square(x): return 3 * x", SQUARE) == pytest.approx(2 / 3)
    assert scored("def square(x): return abs(3 * x)", SQUARE[:2]) == 0.5
    assert scored("def square(x): return None", SQUARE) == 0.0
    assert scored("def cube(x): return x", SQUARE) == 0.0
    assert scored("def square(x): return 3 * x", SQUARE, score="all") == 0.0
    assert scored(RIGHT, SQUARE, score="all") == 1.0


def test_a_script_of_asserts_is_one_test():
    humaneval = (
        "import math\ndef check(candidate):\n    assert candidate(3) == 9\n"
        "    for x in [1.5, -1e9]:\n        assert math.isclose(candidate(x), x ** 2)\n"
        "check(square)"
    )
    assert scored(RIGHT, humaneval) == 1.0
    assert scored("def square(x): return 3 * x", humaneval) == 0.0


CASES = [{"input": "1 2\n", "output": "3"}, {"input": "2 2\n", "output": "4\n"}]


def test_programs_that_read_and_print():
    assert scored("print(sum(map(int, input().split())))", CASES) == 1.0
    assert scored("a, b = map(int, input().split())\nprint(a + b, ' ')\nprint()", CASES) == 1.0
    assert scored("a, b = map(int, input().split())\nprint(a * b)", CASES) == 0.5
    assert scored("print(3)", CASES) == 0.5
    assert scored("print(' 3')", CASES) == 0.0
    assert scored("print(3); raise ValueError", CASES) == 0.0
    mixed = [*CASES, "assert add(1, 2) == 3"]
    both = "def add(a, b): return a + b\nif __name__ == '__main__':\n    print(3)"
    assert scored(both, mixed) == pytest.approx(2 / 3)


TRICKS = {
    "exit": "exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "exit later": "import os\ndef square(x): os._exit(0)",
    "exit by signal": "import os\ndef square(x): os.kill(os.getppid(), 9); return 0",
    "always equal": "class E:\n  def __eq__(self, o): return True\n"
    "  def __ne__(self, o): return False\n  def __bool__(self): return True\n"
    "def square(x): return E()",
    "equal int": "class E(int):\n  def __eq__(self, o): return True\ndef square(x): return E(7)",
    "equal type": "class M(type):\n  def __eq__(self, o): return True\n"
    "class E(metaclass=M): pass\nsquare = lambda x: E",
    "no AssertionError": "import builtins\nbuiltins.AssertionError = type('A', (), {})\n"
    "def square(x): return 1",
    "patched exit": "import sys, os\nsys.exit = os._exit = lambda *a: None\n"
    "def square(x): return 1",
    "swallowed": "import sys\nsys.excepthook = lambda *a: None\ndef square(x): return 1",
    "markers": "import os\nfor fd in range(64):\n  try: os.write(fd, b'R111\\n1\\n1\\n1\\n')\n"
    "  except OSError: pass\ndef square(x): return 1",
    "forged answers": "import os, json\nfor fd in range(64):\n  for i in range(9):\n"
    "    try: os.write(fd, (json.dumps({'id': i, 'value': True, 'changed': {'tuple': [0]}}) + "
    "'\\n').encode())\n    except OSError: pass\ndef square(x): return 1",
    "files": "for name in ('result', 'verdict', 'score', 'report'):\n"
    "  open(name, 'w').write('1')\ndef square(x): return 1",
    "forged built-ins": """
import sys
program = sys.modules["_jail._program"]
own = program._definitions
def square(x): return 0
program._definitions = lambda module, keep: {**own(module, keep), "__builtins__": {"dict": [
    ["abs", keep(lambda v: 0)], ["all", keep(lambda v: True)],
    ["AssertionError", keep(Exception)], ["zip", keep(lambda *a: [])]]}}
""",
    "hidden names": "all = lambda x: True\nabs = lambda x: 0\ndef square(x): return 1",
    "frames": "import sys\ndef square(x):\n  f = sys._getframe()\n  while f:\n"
    "    f.f_globals['x'] = f.f_locals['_'] = 9; f = f.f_back\n  return 1",
    "raises": "def square(x): raise SystemExit(0)",
    "hostile text": "class E(ValueError):\n  def __str__(self): raise SystemExit(0)\n"
    "def square(x): raise E",
    "loop": "def square(x):\n  while True: pass",
    "huge": "def square(x): return 'x' * 10**10",
    "deep": "def square(x):\n  a = []\n  for _ in range(10**5): a = [a]\n  return a",
    "cyclic": "def square(x):\n  a = []; a.append(a)\n  return a",
    "huge number": "def square(x): return 10 ** 10 ** 7",
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_earns_nothing(name):
    tests = [
        "assert square(3) == 9",
        "assert all([square(2) == 4])",
        "assert abs(square(5) - 25) < 1e-6",
    ]
    assert scored(TRICKS[name], tests, seconds=3) == 0.0


def test_built_ins_cannot_be_forged_where_nothing_else_is_asked():
    """Each of these alone: with the program's `abs` or `all` it would pass."""
    for test in ("assert abs(square(5) - 25) < 1e-6", "assert all([square(2) == 4])"):
        assert scored(TRICKS["forged built-ins"], [test]) == 0.0


def test_the_program_never_holds_the_tests():
    program = """
import gc, os
def look():
    word = chr(110) + "eedle"
    try: os.lseek(0, 0, 0); seen = os.read(0, 1 << 20).decode()
    except OSError: seen = ""
    return word in seen or any(word in repr(thing) for thing in gc.get_objects()
                               if type(thing) in (dict, list, tuple))
"""
    assert scored(program, ["assert not look()  # needle", "'needle'\nassert not look()"]) == 1.0


def test_modules_of_the_program_are_not_its_own_in_the_tests():
    program = "import math\nmath.isclose = lambda *a: True\ndef square(x): return 1"
    assert scored(program, ["assert math.isclose(square(3), 9)"]) == 0.0
    assert scored("import math\n" + RIGHT, ["assert math.isclose(square(3), 9)"]) == 1.0


VALUES = """
None True 3 -1 10**30 1.5 float('inf') 'wörd\\ud800' b'\\xff' bytearray(b'x') [1,[2,()]] (1,(2,))
{1,2} frozenset({3}) {'a':{1:(2,)},(1,2):None} 1+2j range(1,9,3) D('1.10') F(1,3)
date(2020,2,29) datetime(2020,1,1,3) timedelta(1,2,3)
"""
IMPORTS = (
    "from datetime import date, datetime, timedelta\n"
    "from decimal import Decimal as D\nfrom fractions import Fraction as F\n"
)


def test_data_cross_as_they_are():
    tests = [
        f"{IMPORTS}v = {value}\nw = same(v)\nassert w == v and repr(w) == repr(v)"
        for value in VALUES.split()
    ]
    assert scored("def same(x): return x", tests) == 1.0
    nan = "import math\nassert math.isnan(same(float('nan')))"
    assert scored("def same(x): return x", [nan]) == 1.0


def test_subclasses_cross_as_what_they_are_made_of():
    program = (
        "import collections\ndef count(x): return collections.Counter(x)\nclass P(tuple): pass"
    )
    assert scored(program, ["assert count('aab') == {'a': 2, 'b': 1}"]) == 1.0


def test_work_in_place_arrives():
    program = "def sort(x, seen, more): x.sort(); seen.add(1); more['k'] = [2]"
    tests = (
        "x, s, d = [3, 1], set(), {}\nsort(x, s, d)\nassert (x, s, d) == ([1, 3], {1}, {'k': [2]})"
    )
    assert scored(program, tests) == 1.0


def test_objects_stay_with_the_program_and_answer():
    program = """
import dataclasses
@dataclasses.dataclass
class Point:
    x: int
    def moved(self, by=1): return Point(self.x + by)
class Stack(list):
    pass
class Bag:
    def __init__(self, items): self.items = items
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __contains__(self, x): return x in self.items
    def __iter__(self): return iter(self.items)
    def __str__(self): return "bag"
    def __bool__(self): return False
def evens():
    n = 0
    while True: yield n; n += 2
def fails(): raise ValueError("no such thing")
def own(): raise type("Own", (Exception,), {})("x")
"""
    tests = [
        "p = Point(1)\nassert p.moved(by=2).x == 3 and isinstance(p, Point)",
        "assert Point(1) == Point(1) and Point(1) != Point(2)",
        "assert not Point(1) == 1 and Point(1) != {'x': 1}",
        "b = Bag([5, 6])\nassert len(b) == 2 and b[1] == 6 and 5 in b and list(b) == [5, 6]",
        "assert str(Bag([])) == 'bag' and not Bag([1])",
        "import itertools\nassert list(itertools.islice(evens(), 3)) == [0, 2, 4]",
        "try: fails()\nexcept ValueError as e: assert 'no such' in str(e)\nelse: assert False",
        "try: own()\nexcept Exception as e: assert 'Own' in str(e)\nelse: assert False",
    ]
    for test in tests:
        assert scored(program, [test]) == 1.0, test


@pytest.mark.parametrize(
    "tests",
    [None, [], 3, [3], {"input": "x"}, [{"input": "x"}], [{"input": 1, "output": "1"}]],
    ids=str,
)
def test_a_row_without_tests_leaves_its_group(tests):
    assert scored(RIGHT, tests) == "no tests"


@pytest.mark.parametrize(
    "test",
    [
        "assert square(",
        "assert square(lambda x: x) == 9",
        "import numpy\nassert numpy.allclose(square(3), 9)",  # the interpreter has none
        "from solution import square\nassert square(3) == 9",
        "x = " + "(" * 5000 + ")" * 5000,
    ],
)
def test_a_test_that_cannot_be_judged_is_not_a_zero(test):
    assert scored(RIGHT, [*SQUARE, test]) == "tests from outside"


def test_no_such_column_is_the_data_s_fault():
    reward = rewards.make({"name": "code", "column": "asserts"})
    with pytest.raises(DataError, match="asserts"):
        score(reward, [""], [RIGHT], {"tests": [SQUARE]})
    assert score(reward, [""], [f"```\n{RIGHT}```"], {"asserts": [SQUARE]}).values == [1.0]


def test_the_program_is_the_last_fenced_block_or_everything():
    wrong = "def square(x): return 1\n"
    answers = [
        f"Sure!\n```python\n{RIGHT}```\nDone.",
        f"First\n```py\n{wrong}```\nbetter:\n```\n{RIGHT}```",
        f"First\n```\n{RIGHT}```\nworse:\n```python\n{wrong}```",
        RIGHT,
        f"```python\n{RIGHT}",
    ]
    columns = {"tests": [SQUARE] * len(answers)}
    prompts = [""] * len(answers)
    # what is said to be Python comes before what is said to be nothing, such as its output
    assert score(rewards.make("code"), prompts, answers, columns).values == [1, 0, 0, 0, 0]
    whole = rewards.make({"name": "code", "extract": "text"})
    assert score(whole, prompts, answers, columns).values == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "answer",
    [
        f"```bash\npip install x\n```\nThen:\n```python\n{RIGHT}```\n",
        f"```text\nsquare\n```\n```Python\n{RIGHT}```",
        f"```python\n{RIGHT}```\nIt prints\n```\n9\n```\nas wished.",
        f"```python3.11 title=x\n{RIGHT}```\n```json\n{{}}\n```",
        f"```python\n{RIGHT}```\n".replace("\n", "\r\n"),
        f"1. So:\n\n   ```py\n{RIGHT}   ```\n",
    ],
)
def test_blocks_of_other_languages_are_not_the_program(answer):
    columns = {"tests": [SQUARE]}
    assert score(rewards.make("code"), [""], [answer], columns).values == [1.0]


def test_what_cannot_be_done_with_a_result_fails_and_is_no_way_out():
    """Returning an object instead of data must not make a wrong answer unscored."""
    sliced = ["assert square([3, 1])[:2] == [1, 3]"]
    assert scored("def square(x): return iter(x)", sliced) == 0.0
    own = (
        "class Own:\n  def __init__(self, x): self.x = x\n"
        "  def __getitem__(self, i): return self.x[i]\ndef square(x): return Own(sorted(x))"
    )
    assert scored(own, sliced) == 1.0
    assert scored("def square(x): return iter(x)", ["assert (lambda: 0) in square([1])"]) == 0.0


def test_a_program_that_hangs_is_not_waited_for_with_every_input():
    cases = [{"input": str(n), "output": "3"} for n in range(20)]
    begin = time.monotonic()
    hangs = "x = input()\nif x == '1':\n  while True: pass\nprint(3)"
    assert scored(hangs, cases, seconds=1) == pytest.approx(1 / 20)
    assert time.monotonic() - begin < 15  # 20 times a second and more otherwise


def test_the_order_is_kept_and_workers_share_the_time():
    programs = [f"import time\ntime.sleep({1.5 - 0.5 * n})\ndef f(): return {n}" for n in range(3)]
    tests = [["assert f() == 0"], ["assert f() == 5"], ["assert f() == 2"]]

    def timed(workers):
        reward = rewards.make({"name": "code", "extract": "text", "workers": workers})
        begin = time.monotonic()
        assert score(reward, [""] * 3, programs, {"tests": tests}).values == [1.0, 0.0, 1.0]
        return time.monotonic() - begin

    assert timed(1) > 3.0
    assert timed(3) < 3.0


@pytest.mark.parametrize(
    ("field", "small", "large", "program"),
    [
        ("seconds", 0.6, 10, "import time; time.sleep(0.8); print(3)"),
        ("memory_mb", 64, 512, "x = bytes(90 << 20); print(3)"),
        ("output_kb", 1, 100, "import sys; print('3'); print(' ' * 4000)"),
        ("files_mb", 1, 8, "open('x', 'wb').write(bytes(2 << 20)); print(3)"),
    ],
)
def test_limits_are_fields(field, small, large, program):
    tests = [{"input": "", "output": "3"}]
    reward = {"name": "code", "extract": "text"}
    for value, expected in ((small, 0.0), (large, 1.0)):
        made = rewards.make({**reward, field: value})
        assert score(made, [""], [program], {"tests": [tests]}).values == [expected]


def test_packages_come_with_an_interpreter():
    program = "import pydantic\ndef square(x): return x * x"
    assert scored(program, SQUARE) == 0.0
    reward = rewards.make({"name": "code", "extract": "text", "interpreter": sys.executable})
    assert score(reward, [""], [program], {"tests": [SQUARE]}).values == [1.0]


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"workers": 0}, {"score": "most"}, {"uid": 1}])
def test_wrong_fields_are_usage_errors(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        rewards.make({"name": "code", **wrong})
