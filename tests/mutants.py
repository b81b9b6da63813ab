"""Mutation tests: small faults put into a module, one at a time, each of which some test should see.

    python -m tests.mutants jetgraph/jets/arithmetic.py tests/jets/test_arithmetic.py --number 40
    python -m tests.mutants jetgraph/algebra/*.py tests/algebra

prints every fault that the tests let pass. Such a survivor is a missing test, or a change of nothing that can be seen
(a shorter way to the same value): then it is told in `EXPLAINED`. Nothing in the checkout is touched: tests run in a
copy. A first run notes which lines each test runs: a fault is shown to those that run its lines, the fastest first, in
a fork of the process that has collected them, where functions get the code that has the fault. A fault in what runs
when a module is imported takes a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import gc
import inspect
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]

SECONDS = 60
"""After which, and five times what they take without a fault, tests count as failed: a fault may make a loop that has
no end.
"""

OTHERS: dict[type[ast.AST], type[ast.AST]] = dict(
    [
        *((ast.Lt, ast.LtE), (ast.LtE, ast.Lt), (ast.Gt, ast.GtE), (ast.GtE, ast.Gt), (ast.Eq, ast.NotEq)),
        *((ast.NotEq, ast.Eq), (ast.Is, ast.IsNot), (ast.IsNot, ast.Is), (ast.In, ast.NotIn), (ast.NotIn, ast.In)),
        *((ast.And, ast.Or), (ast.Or, ast.And), (ast.Add, ast.Sub), (ast.Sub, ast.Add), (ast.Mult, ast.Add)),
        *((ast.FloorDiv, ast.Mult), (ast.Div, ast.Mult)),
    ]
)
"""What stands in the place of an operator."""

UNSEEN = ("frozen", "slots", "strict")
"""Keywords in which none are put: `tests/test_house.py` asks for the first, the second saves memory, and the third
asserts what is so.
"""

FAULTY = (ast.Compare, ast.BinOp, ast.BoolOp, ast.Constant, ast.If, ast.IfExp)
"""In which faults are put."""

EXPLAINED = {
    f"jetgraph/{module}: {line} → {line.replace(*change)}": why
    for module, line, change, why in (
        (
            "jets/arithmetic.py",
            "result = torch.empty((1,) * dims, dtype=dtype, device='meta')",
            ("(1,)", "(2,)"),
            "it is asked for its type alone",
        ),
        (
            "jets/arithmetic.py",
            "count = min(order + 1, a.stop + b.stop - 1) - start",
            ("stop - 1", "stop + 1"),
            "longer by zeros: the general way is taken, to the same rows",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(b, Series) and a.stop - a.start == 1:",
            ("-", "+"),
            "not exchanged, they are convolved: the same product",
        ),
        (
            "jets/arithmetic.py",
            "if not torch.compiler.is_compiling() and "
            "(is_functorch_wrapped_tensor(a) or is_functorch_wrapped_tensor(b)):",
            (" and ", " or "),
            "a new total in the place of one that is written over",
        ),
        (
            "algebra/automaton.py",
            "bits = 0 if order is None else self.incoming[-1].bit_length() + 1",
            ("[-1]", "[-2]"),
            "of one order the decoder makes no more terms than arrive at it",
        ),
        (
            "algebra/automaton.py",
            "bits = 0 if order is None else self.incoming[-1].bit_length() + 1",
            ("+ 1", "+ 2"),
            "room that no number needs",
        ),
        (
            "algebra/automaton.py",
            "mask = (1 << bits * ((order or 0) + 1)) - 1",
            ("+ 1", "+ 2"),
            "one coefficient more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "mask = (1 << bits * ((order or 0) + 1)) - 1",
            ("or 0", "or 1"),
            "one coefficient more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "tables = {at: table for at, table in tables.items() "
            "if last_read.get(at, self.sink) > point or at == point}",
            (" > ", " >= "),
            "tables are dropped one point later",
        ),
        ("algebra/automaton.py", "for at in range(point + 1):", ("+ 1", "+ 2"), "a point more, which is not read"),
        ("algebra/automaton.py", "best.append(max(orders, default=0))", ("=0", "=1"), "something is at every point"),
        (
            "algebra/automaton.py",
            "STATE_BUDGET = 300000",
            ("300000", "300001"),
            "as good a budget",
        ),
        (
            "algebra/automaton.py",
            "if bits == 0:",
            ("0", "1"),
            "the same by doubling",
        ),
        (
            "algebra/automaton.py",
            "return 0",
            ("0", "1"),
            "any state does",
        ),
        (
            "algebra/automaton.py",
            "if not 0 <= (length or 0) <= self.sink or not 0 <= (order or 0) <= self.highest:",
            ("<= self.sink", "< self.sink"),
            "no path is as long",
        ),
        (
            "algebra/automaton.py",
            "if not 0 <= (length or 0) <= self.sink or not 0 <= (order or 0) <= self.highest:",
            ("(length or 0)", "(length or 1)"),
            "one is within too",
        ),
        (
            "algebra/automaton.py",
            "mask = (1 << bits * ((order or 0) + 1)) - 1",
            ("(1", "(2"),
            "one bit more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "last_read = {move.start: point for point, moves in enumerate(self.moves, start=1) for move in moves}",
            ("=1", "=2"),
            "tables are dropped one point later",
        ),
        (
            "algebra/automaton.py",
            "if silent < len(hops) and (longest is None or n + longer <= longest):",
            (" and ", " or "),
            "lengths above the longest are not read",
        ),
        (
            "algebra/automaton.py",
            "if silent < len(hops) and (longest is None or n + longer <= longest):",
            ("n + ", "n - "),
            "lengths above the longest are not read",
        ),
        (
            "algebra/automaton.py",
            "if silent < len(hops) and (longest is None or n + longer <= longest):",
            ("silent < ", "silent <= "),
            "of no moves nothing is added",
        ),
        (
            "algebra/automaton.py",
            "by_point: list[list[Entry]] = [[] for _ in range(self.sink + 1)]",
            ("+ 1", "+ 2"),
            "a point more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "numbers = {(n, j): _coefficient(value, bits, j) for n, value in table.items() for j in range(top + 1)}",
            ("+ 1", "+ 2"),
            "no path has that order, and zeros are left out",
        ),
        (
            "algebra/selection.py",
            "number = _most(lambda n: count(patterns[:n]) is not None, 0, len(patterns) - 1)",
            (", 0,", ", 1,"),
            "of none as of one too large nothing is said",
        ),
        (
            "algebra/selection.py",
            "number = _most(lambda n: count(patterns[:n]) is not None, 0, len(patterns) - 1)",
            ("- 1", "+ 1"),
            "all of them are known to be too many",
        ),
        (
            "algebra/selection.py",
            "if found is None:",
            ("if ", "if not "),
            "another site is told, which fits too",
        ),
        (
            "algebra/selection.py",
            "if found is None:",
            (" is ", " is not "),
            "another site is told, which fits too",
        ),
        (
            "algebra/selection.py",
            "number = self.count() // 2",
            ("2", "3"),
            "another number is told, which fits too",
        ),
        (
            "algebra/selection.py",
            "middle = (low + high + 1) // 2",
            ("+ 1", "+ 2"),
            "another one between them",
        ),
        ("algebra/expansion.py", "return Jet(0)", ("0", "1"), "the recipe takes it at no site"),
        (
            "algebra/expansion.py",
            "fitting = f'raise it with expansion.centres({alias!r}, budget={number})' if number < COUNTABLE else ''",
            (" < ", " <= "),
            "as good a bound",
        ),
        ("algebra/selection.py", "if allowed < count:", ("<", "<="), "where all are allowed, the check finds nothing"),
        (
            "algebra/selection.py",
            "while number > 1 and (not TermGraph.count_within(automaton, ListAcceptor(self[:number]))):",
            (">", ">="),
            "one path is within any budget but that of a test",
        ),
        (
            "algebra/selection.py",
            "number = self.count() // 2",
            ("//", "*"),
            "two more steps down to the same number",
        ),
        ("algebra/selection.py", "matched = 0", ("0", "1"), "with that bit a pattern begins, and none ends"),
        (
            "algebra/rewriting.py",
            "follows = [False] * (len(sites) + 1)",
            ("+ 1", "+ 2"),
            "a longer list, whose end is never read",
        ),
        ("algebra/rewriting.py", "HOP_BUDGET = 1000000", ("000000", "000001"), "as good a budget"),
        (
            "algebra/patterns.py",
            "if last > 1:",
            ("if ", "if not "),
            "states are left apart from which the same goes on",
        ),
    )
}
"""Survivors that nothing can see, as they print from the colon on, and why."""


@dataclass(frozen=True)
class Mutant:
    """A module with one fault."""

    module: str
    line: int
    change: str
    """Its line, before and after."""
    source: ast.Module
    lines: range
    """Those of the statement that has it."""


def mutants(name: str) -> Iterator[Mutant]:
    """Each mutant of a module."""
    text = (ROOT / name).read_text(encoding="utf-8")
    whole = ast.parse(text)
    unseen = {node.value for node in ast.walk(whole) if isinstance(node, ast.keyword) and node.arg in UNSEEN}
    for place, node in enumerate(ast.walk(whole)):
        if node in unseen or not isinstance(node, FAULTY):
            continue
        for number in range(len(node.ops) if isinstance(node, ast.Compare) else 1):
            module = ast.parse(text)
            changed: Any = next(one for at, one in enumerate(ast.walk(module)) if at == place)
            before = ast.unparse(module)
            if _mutated(changed, number):
                after = ast.unparse(module)
                one, other = next(
                    pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]
                )
                line = getattr(changed, "lineno", 0)
                change = f"{one.strip()} → {other.strip()}"
                yield Mutant(name, line, change, ast.fix_missing_locations(module), _statement(module, line))


def _statement(module: ast.Module, line: int) -> range:
    """The lines of the smallest statement that has a line."""
    spans = (
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(module)
        if isinstance(node, ast.stmt)
    )
    return min((span for span in spans if line in span), key=len, default=range(0))


def _mutated(node: ast.AST, number: int) -> bool:
    """Put a fault into a node, where there is one for it."""
    if isinstance(node, ast.Compare) and type(node.ops[number]) in OTHERS:
        node.ops[number] = OTHERS[type(node.ops[number])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OTHERS:
        node.op = OTHERS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        return False
    return True


class Bench:
    """A plugin of pytest in whose place of a run of all tests mutants of modules meet those that run their lines."""

    def __init__(self, folder: pathlib.Path, modules: Iterable[str], meet: Callable[[Bench], None]) -> None:
        self._folder, self._meet = folder, meet
        self._texts = {str(folder / name): (folder / name).read_text(encoding="utf-8") for name in modules}
        self._lines: dict[pytest.Item, frozenset[tuple[str, int]]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Note what each test runs, the fastest first, and have the mutants meet them."""
        notes = self._folder / "notes.json"
        if not self._pass(session.items, 10 * SECONDS, notes):
            sys.exit("the tests fail without a fault")
        found = json.loads(notes.read_text(encoding="utf-8"))
        order = sorted(session.items, key=lambda item: found[item.nodeid][0])
        self._seconds = {item: float(found[item.nodeid][0]) for item in order}
        self._lines = {item: frozenset(map(tuple, found[item.nodeid][1])) for item in order}
        functions = (one for one in gc.get_objects() if type(one) is FunctionType)
        # Else each fork would copy what it looks through for garbage.
        gc.freeze()
        self._functions = [one for one in functions if one.__code__.co_filename in self._texts]
        self._meet(self)
        return True

    def survives(self, mutant: Mutant) -> bool:
        """Whether the tests pass that a mutant meets."""
        file = str(self._folder / mutant.module)
        places = {(file, line) for line in mutant.lines}
        items = [item for item in self._lines if not self._lines[item].isdisjoint(places)] or [*self._lines]
        seconds = SECONDS + int(5 * sum(self._seconds[item] for item in items))
        before, after = (
            [*_codes(compile(source, file, "exec", dont_inherit=True))] for source in (self._texts[file], mutant.source)
        )
        pairs = [*zip(before, after, strict=True)]
        if any(_imported(one) != _imported(other) for one, other in pairs):
            return self._pass_anew(items, seconds, file, ast.unparse(mutant.source))
        changed = {(file, one.co_qualname, one.co_firstlineno): other for one, other in pairs if one != other}
        codes = [(one, one.__code__) for one in self._functions]
        keys = [(one, (code.co_filename, code.co_qualname, code.co_firstlineno)) for one, code in codes]
        return self._pass(items, seconds, swap=[(one, changed[key]) for one, key in keys if key in changed])

    def _pass(
        self,
        items: list[pytest.Item],
        seconds: int,
        notes: pathlib.Path | None = None,
        swap: Iterable[tuple[FunctionType, CodeType]] = (),
    ) -> bool:
        """Whether tests pass in a fork, where functions may have other code; what they run may be noted."""
        child = os.fork()
        if not child:
            signal.alarm(seconds)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            for function, code in swap:
                function.__code__ = code
            found: dict[str, tuple[float, list[tuple[str, int]]]] = {}
            try:
                for item, following in itertools.zip_longest(items, items[1:]):
                    start, lines = time.process_time(), set[tuple[str, int]]()
                    if notes is not None:
                        sys.settrace(_tracing(self._texts, lines))
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    sys.settrace(None)
                    found[item.nodeid] = time.process_time() - start, sorted(lines)
                    if item.session.testsfailed:
                        os._exit(1)
                if notes is not None:
                    notes.write_text(json.dumps(found), encoding="utf-8")
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        return status == 0

    def _pass_anew(self, items: list[pytest.Item], seconds: int, file: str, source: str) -> bool:
        """Whether tests pass in a process that imports another source."""
        names = [item.nodeid for item in items] if len(items) < len(self._lines) else items[0].config.args
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *OPTIONS, *names]
        pathlib.Path(file).write_text(source, encoding="utf-8")
        try:
            # Compiled code is told from that of another source by size and second, in which mutants may be alike.
            ran = subprocess.run(
                command,
                cwd=self._folder,
                env=os.environ | {"PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                timeout=seconds,
            )
            return ran.returncode == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            pathlib.Path(file).write_text(self._texts[file], encoding="utf-8")


def _tracing(files: Container[str], lines: set[tuple[str, int]]) -> Callable[[FrameType, str, object], Any]:
    """What notes the lines of files that are run."""

    def step(frame: FrameType, event: str, _: object) -> Any:
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return step

    def entered(frame: FrameType, event: str, _: object) -> Any:
        return step(frame, event, _) if frame.f_code.co_filename in files else None

    return entered


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a module and of all that is defined in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _imported(code: CodeType) -> object:
    """What runs where a module is imported: that of the module itself and of classes, without what these define."""
    if code.co_flags & inspect.CO_OPTIMIZED:
        return None
    return code.co_code, [one for one in code.co_consts if not isinstance(one, CodeType)]


OPTIONS = ("--noconftest",)
"""Of pytest: the fixtures of all tests import every model."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Put small faults into a module, and tell which the tests let pass.")
    parser.add_argument("paths", nargs="+", help="modules in jetgraph/, and tests, which get no shared fixtures")
    parser.add_argument("--number", type=int, help="of faults that are drawn; all in their order, unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, nargs="*", default=(), help="at which faults are tried; all, unless given")
    options = parser.parse_args()
    # Threads that were started before a fork are not there after it.
    os.environ["OMP_NUM_THREADS"] = "1"
    modules = [name for name in options.paths if name.startswith("jetgraph/")]
    every = [one for name in modules for one in mutants(name) if not options.lines or one.line in options.lines]
    drawn = random.Random(options.seed).sample(every, min(options.number, len(every))) if options.number else every

    def meet(bench: Bench) -> None:
        alive = 0
        for mutant in drawn:
            if bench.survives(mutant):
                why = EXPLAINED.get(f"{mutant.module}: {mutant.change}", "not explained")
                print(f"{mutant.module}:{mutant.line}: {mutant.change}  ({why})", flush=True)  # noqa: T201
                alive += 1
        print(f"{len(drawn) - alive} of {len(drawn)} faults were seen, of {len(every)}")  # noqa: T201

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        for part in ("jetgraph", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        del sys.modules["tests"]
        tests = [name for name in options.paths if name not in modules]
        bench = Bench(folder, modules, meet)
        pytest.main(["-x", "-q", "-s", "-p", "no:cacheprovider", *OPTIONS, *tests], plugins=[bench])


if __name__ == "__main__":
    main()
