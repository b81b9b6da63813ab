"""Mutation tests: small faults put into a module, one at a time, each of which some test should see.

    python -m tests.mutants jetgraph/jets/arithmetic.py tests/jets/test_arithmetic.py --number 40

prints every fault that the tests let pass. Such a survivor is a missing test, or a change of nothing that can be seen
(a shorter way to the same value): then it is told in `EXPLAINED`. Nothing in the checkout is touched: tests run in a
copy, each in a fork of one process that has what they import. A first run notes which lines each test runs: a fault is
shown to those that run its lines, the fastest first, and to all where none does, as where a module is made.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
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
"""Keywords in which none are put: the first is asked of everything by `tests/test_house.py`, the second saves memory,
and the third asserts what is so.
"""

FAULTY = (ast.Compare, ast.BinOp, ast.BoolOp, ast.Constant, ast.If, ast.IfExp)
"""In which faults are put."""

_META = "result = torch.empty(({},) * dims, dtype=dtype, device='meta')"
_COUNT = "count = min(order + 1, a.stop + b.stop {} 1) - start"
_SINGLE = "if isinstance(b, Series) and a.stop {} a.start == 1:"
_WRAPPED = "if not torch.compiler.is_compiling() {} (is_functorch_wrapped_tensor(a) or is_functorch_wrapped_tensor(b)):"

_BITS = "bits = 0 if order is None else self.incoming[-{}].bit_length() + 1"
_JETS, _PATTERNS = "jetgraph/jets/arithmetic.py", "jetgraph/algebra/patterns.py"
_AUTOMATON, _SELECTION = "jetgraph/algebra/automaton.py", "jetgraph/algebra/selection.py"
_REWRITING, _FOLLOWS = "jetgraph/algebra/rewriting.py", "follows = [False] * (len(sites) + {})"
_WANTED = "for item, pattern, end in zip(wanted, patterns, plain.ends, strict={}):"
_HALF = "while number {} 1 and (not TermGraph.count_within(automaton, ListAcceptor(self[:number]))):"

EXPLAINED = {
    f"{module}: {before} → {after}": why
    for module, before, after, why in (
        (_JETS, _META.format(1), _META.format(2), "it is asked for its type alone"),
        (_JETS, _COUNT.format("-"), _COUNT.format("+"), "longer by zeros: the general way is taken, to the same rows"),
        (_JETS, _SINGLE.format("-"), _SINGLE.format("+"), "not exchanged, they are convolved: the same product"),
        (_JETS, _WRAPPED.format("and"), _WRAPPED.format("or"), "a new total in the place of one that is written over"),
        (
            _AUTOMATON,
            _BITS.format(1),
            _BITS.format(2),
            "of one order the decoder makes no more terms than arrive at it",
        ),
        (_SELECTION, _WANTED.format(True), _WANTED.format(False), "they have one length: an assertion to the reader"),
        (_SELECTION, "if allowed < count:", "if allowed <= count:", "where all are allowed, the check finds nothing"),
        (_SELECTION, _HALF.format(">"), _HALF.format(">="), "one path is within any budget but that of a test"),
        (_REWRITING, _FOLLOWS.format(1), _FOLLOWS.format(2), "a longer list, whose end is never read"),
        (_PATTERNS, "if last > 1:", "if not last > 1:", "states are left apart from which the same paths go on"),
    )
}
"""Survivors that nothing can see, as they print from the colon on, and why."""


@dataclass(frozen=True)
class Mutant:
    """A module with one fault."""

    line: int
    change: str
    """Its line, before and after."""
    source: str
    lines: range
    """Those of the statement that has it."""


def mutants(text: str) -> Iterator[Mutant]:
    """Each mutant of a module."""
    whole = ast.parse(text)
    unseen = {node.value for node in ast.walk(whole) if isinstance(node, ast.keyword) and node.arg in UNSEEN}
    for place, node in enumerate(ast.walk(whole)):
        if node in unseen or not isinstance(node, FAULTY):
            continue
        for number in range(len(node.ops) if isinstance(node, ast.Compare) else 1):
            module = ast.parse(text)
            changed = next(one for at, one in enumerate(ast.walk(module)) if at == place)
            before = ast.unparse(module)
            if _mutated(changed, number):
                after = ast.unparse(module)
                one, other = next(
                    pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]
                )
                line = getattr(changed, "lineno", 0)
                yield Mutant(line, f"{one.strip()} → {other.strip()}", after, _statement(module, line))


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


class Watch:
    """A plugin of pytest that notes how long each test takes, and which lines of a file it runs."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file, self._lines = str(file), set[int]()
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, list[int]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._lines = set()
        start = time.process_time()
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.process_time() - start
            self.lines[item.nodeid] = sorted(self._lines)

    def _enter(self, frame: FrameType, event: str, _: object) -> Any:
        return self._step if frame.f_code.co_filename == self._file else None

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        self._lines.add(frame.f_lineno)
        return self._step

    def write(self, file: pathlib.Path) -> None:
        """Keep it for the process that has started this one."""
        imported = [name for name in sys.modules if name.partition(".")[0] not in ("jetgraph", "tests", "__main__")]
        file.write_text(json.dumps([self.seconds, self.lines, imported]), encoding="utf-8")


class Chosen:
    """A plugin of pytest that runs some tests, in the order in which they are named."""

    def __init__(self, names: Iterable[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = (item for item in items if item.nodeid in self._places)
        items[:] = sorted(chosen, key=lambda item: self._places[item.nodeid])


class Bench:
    """A copy of the code in which mutants of one module meet tests."""

    def __init__(self, folder: pathlib.Path, module: str, tests: list[str]) -> None:
        for part in ("jetgraph", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        self._folder, self._module, self._tests = folder, folder / module, tests
        notes = folder / "notes.json"
        watch = Watch(self._module)
        if not self._passes(tests, watch, SECONDS * 10, lambda: watch.write(notes)):
            sys.exit("the tests fail without a fault")
        self._seconds, lines, imported = json.loads(notes.read_text(encoding="utf-8"))
        self._lines = {name: frozenset(ran) for name, ran in lines.items()}
        for name in imported:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        # Compiled code is told from that of another source by size and second, in which mutants may be alike.
        for file in self._module.parent.glob(f"__pycache__/{self._module.stem}.*"):
            file.unlink()
        sys.dont_write_bytecode = True

    def survives(self, mutant: Mutant) -> bool:
        """Whether the tests that meet a mutant pass."""
        every = sorted(self._seconds, key=lambda name: self._seconds[name])
        names = [name for name in every if not self._lines[name].isdisjoint(mutant.lines)] or every
        original = self._module.read_text(encoding="utf-8")
        self._module.write_text(mutant.source, encoding="utf-8")
        try:
            return self._pass(names)
        finally:
            self._module.write_text(original, encoding="utf-8")

    def _pass(self, names: list[str]) -> bool:
        files = dict.fromkeys(str(self._folder / name.partition("::")[0]) for name in names)
        options = [one for one in self._tests if one.startswith("-")]
        seconds = SECONDS + 5 * sum(self._seconds[name] for name in names)
        return self._passes([*options, *files], Chosen(names), int(seconds))

    def _passes(
        self, arguments: list[str], plugin: object, seconds: int, after: Callable[[], None] = lambda: None
    ) -> bool:
        """Whether tests pass, in a fork."""
        child = os.fork()
        if not child:
            signal.alarm(seconds)
            os.chdir(self._folder)
            sys.path.insert(0, str(self._folder))
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments], plugins=[plugin])
            after()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        return status == 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Put small faults into a module, and tell which the tests let pass.")
    parser.add_argument("module")
    parser.add_argument("tests", nargs="+", help="files, folders and options of pytest")
    parser.add_argument("--number", type=int, help="of faults that are drawn; all, unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, nargs="*", default=(), help="at which faults are tried; all, unless given")
    options, others = parser.parse_known_args()
    # Threads that were started before a fork are not there after it.
    os.environ["OMP_NUM_THREADS"] = "1"
    text = (ROOT / options.module).read_text(encoding="utf-8")
    every = [one for one in mutants(text) if not options.lines or one.line in options.lines]
    drawn = random.Random(options.seed).sample(every, min(options.number or len(every), len(every)))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(pathlib.Path(name).resolve(), options.module, [*options.tests, *others])
        alive = 0
        for mutant in drawn:
            if bench.survives(mutant):
                why = EXPLAINED.get(f"{options.module}: {mutant.change}", "not explained")
                print(f"{options.module}:{mutant.line}: {mutant.change}  ({why})", flush=True)  # noqa: T201
                alive += 1
    print(f"{len(drawn) - alive} of {len(drawn)} faults were seen, of {len(every)}")  # noqa: T201


if __name__ == "__main__":
    main()
