"""Mutation tests: small faults put into a module, one at a time, each of which some test should see.

    python -m tests.mutants jetgraph/jets/arithmetic.py tests/jets/test_arithmetic.py --number 40
    python -m tests.mutants jetgraph/algebra/*.py tests/algebra

prints every fault that the tests let pass. Such a survivor is a missing test, or a change of nothing that can be seen
(a shorter way to the same value): then it is told in `tests/explained.py`. Nothing in the checkout is touched: tests
run in a copy. A first run notes which lines each test runs: a fault is shown to those that run its lines, the fastest
first, in a fork of the process that has collected them, where functions get the code that has the fault. A fault in
what runs when a module is imported takes a process of its own, and is shown to all tests that run something of the
module.
"""

from __future__ import annotations

import argparse
import ast
import gc
import inspect
import itertools
import json
import math
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

from tests.explained import EXPLAINED

ROOT = pathlib.Path(__file__).parents[1]

SECONDS = 10
"""Of the processor, after which, and five times what it takes without a fault, a test counts as failed: a fault may
make a loop that has no end.
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


@dataclass(frozen=True)
class Mutant:
    """A module with one fault."""

    module: str
    line: int
    change: str
    """Its line, before and after."""
    lines: range
    """Those of the statement that has it."""
    text: str
    place: int
    number: int

    @property
    def source(self) -> ast.Module:
        """The module; made when it is asked for, which takes less than to hold thousands."""
        return _with_fault(self.text, self.place, self.number)[0]


def mutants(name: str, folder: pathlib.Path = ROOT) -> Iterator[Mutant]:
    """Each mutant of a module in a folder."""
    text = (folder / name).read_text(encoding="utf-8")
    whole = ast.parse(text)
    parts = [(ast.unparse(part).splitlines(), {*ast.walk(part)}) for part in whole.body]
    unseen = {node.value for node in ast.walk(whole) if isinstance(node, ast.keyword) and node.arg in UNSEEN}
    for place, node in enumerate(ast.walk(whole)):
        if node in unseen or not isinstance(node, FAULTY):
            continue
        for number in range(len(node.ops) if isinstance(node, ast.Compare) else 1):
            module, found = _with_fault(text, place, number)
            if found:
                at = next(at for at, (_, nodes) in enumerate(parts) if node in nodes)
                pairs = zip(parts[at][0], ast.unparse(module.body[at]).splitlines(), strict=True)
                one, other = next(pair for pair in pairs if pair[0] != pair[1])
                line = getattr(node, "lineno", 0)
                change = f"{one.strip()} → {other.strip()}"
                yield Mutant(name, line, change, _statement(whole, line), text, place, number)


def _with_fault(text: str, place: int, number: int) -> tuple[ast.Module, bool]:
    """A module with a fault in the node at a place, and whether there is one for it."""
    module = ast.parse(text)
    found = _mutated(next(itertools.islice(ast.walk(module), place, None)), number)
    return ast.fix_missing_locations(module), found


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

    def __init__(
        self,
        folder: pathlib.Path,
        modules: Iterable[str],
        meet: Callable[[Bench], None],
        notes: pathlib.Path,
        most: float,
    ) -> None:
        self._folder, self._meet, self._notes, self._most = folder, meet, notes, most
        self._texts = {str(folder / name): (folder / name).read_text(encoding="utf-8") for name in modules}
        self._lines: dict[pytest.Item, frozenset[tuple[str, int]]] = {}
        self._seconds: dict[pytest.Item, float] = {}
        self._again: dict[str, bool] = {}
        """Whether the tests of a module pass after its file was run once more in its place."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Note what each test runs, the fastest first, and have the mutants meet them."""
        found = json.loads(self._notes.read_text(encoding="utf-8")) if self._notes.exists() else {}
        items = [item for item in session.items if _has_fixtures(item)]
        if new := [item for item in items if item.nodeid not in found]:
            if not self._pass(new, self._folder / "notes.json"):
                sys.exit("the tests fail without a fault")
            found |= json.loads((self._folder / "notes.json").read_text(encoding="utf-8"))
            self._notes.write_text(json.dumps(found), encoding="utf-8")
        order = sorted(items, key=lambda item: found[item.nodeid][0])
        self._seconds = {item: float(found[item.nodeid][0]) for item in order}
        self._lines = {
            item: frozenset((str(self._folder / name), line) for name, line in found[item.nodeid][1]) for item in order
        }
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
        items = [item for item in self._lines if not self._lines[item].isdisjoint(places)]
        before, after = (
            [*_codes(compile(source, file, "exec", dont_inherit=True))] for source in (self._texts[file], mutant.source)
        )
        pairs = [*zip(before, after, strict=True)]
        of_module = [item for item in self._lines if any(name == file for name, _ in self._lines[item])]
        # What no test runs may run where the module is imported, as a function does that makes functions.
        if not items or any(_imported(one) != _imported(other) for one, other in pairs):
            return self._survives_import(mutant, self._within(of_module))
        changed = {(file, one.co_qualname, one.co_firstlineno): other for one, other in pairs if one != other}
        codes = [(one, one.__code__) for one in self._functions]
        keys = [(one, (code.co_filename, code.co_qualname, code.co_firstlineno)) for one, code in codes]
        if not self._pass(self._within(items), swap=[(one, changed[key]) for one, key in keys if key in changed]):
            return False
        # What a function has made where the module is imported, such as a rule with its defaults, is there by then.
        makes = any(_own(one) != _own(other) and _defines(one) for one, other in pairs)
        return not makes or self._survives_import(mutant, self._within(of_module))

    def _within(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """The fastest tests, of all where none are given, that take no longer than they may; at least one."""
        items = items or [*self._lines]
        taken = itertools.accumulate(self._seconds[item] for item in items)
        return [
            item
            for place, (item, so_far) in enumerate(zip(items, taken, strict=True))
            if not place or so_far <= self._most
        ]

    def _survives_import(self, mutant: Mutant, items: list[pytest.Item]) -> bool:
        """So it is of a fault in what runs when the module is imported.

        Where the module can be run once more in its place, this tells most; who has taken a name out of it before keeps
        what that was, so that only an import tells the rest.
        """
        file = str(self._folder / mutant.module)
        if mutant.module not in self._again:
            self._again[mutant.module] = self._pass(items, again=(file, ast.parse(self._texts[file])))
        seen = self._again[mutant.module] and not self._pass(items, again=(file, mutant.source))
        return not seen and self._pass_anew(items, file, ast.unparse(mutant.source))

    def _pass(
        self,
        items: list[pytest.Item],
        notes: pathlib.Path | None = None,
        swap: Iterable[tuple[FunctionType, CodeType]] = (),
        again: tuple[str, ast.Module] | None = None,
    ) -> bool:
        """Whether tests pass in a fork, where functions may have other code, or a module's file is run once more; what
        they run may be noted.
        """
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            for function, code in swap:
                function.__code__ = code
            found: dict[str, tuple[float, list[tuple[str, int]]]] = {}
            try:
                if again is not None:
                    _run_once_more(*again)
                for item, following in itertools.zip_longest(items, items[1:]):
                    start, lines = time.process_time(), set[tuple[str, int]]()
                    signal.setitimer(signal.ITIMER_PROF, SECONDS + 5 * self._seconds.get(item, 10 * SECONDS))
                    if notes is not None:
                        sys.settrace(_tracing(self._texts, lines))
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    sys.settrace(None)
                    places = sorted((os.path.relpath(name, self._folder), line) for name, line in lines)
                    found[item.nodeid] = time.process_time() - start, places
                    if item.session.testsfailed:
                        os._exit(1)
                if notes is not None:
                    notes.write_text(json.dumps(found), encoding="utf-8")
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        return status == 0

    def _pass_anew(self, items: list[pytest.Item], file: str, source: str) -> bool:
        """Whether tests pass in a process that imports another source."""
        seconds = 6 * SECONDS + int(5 * sum(self._seconds[item] for item in items))
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


def _has_fixtures(item: Any) -> bool:
    """None of those that a test asks for is a shared one."""
    known = {"request", *item._fixtureinfo.name2fixturedefs, *getattr(getattr(item, "callspec", None), "params", ())}
    return known.issuperset(item.fixturenames)


def _run_once_more(file: str, source: ast.Module) -> None:
    """Run the file of a module in its place; its operators get their rules anew."""
    if registry := sys.modules.get("jetgraph.jets.registry"):
        vars(registry)["_check_op"] = lambda *_: None
    module = next(one for one in [*sys.modules.values()] if getattr(one, "__file__", None) == file)
    exec(compile(source, file, "exec", dont_inherit=True), vars(module))


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
    return None if code.co_flags & inspect.CO_OPTIMIZED else _own(code)


def _own(code: CodeType) -> object:
    """What runs of it, without what it defines."""
    return code.co_code, [one for one in code.co_consts if not isinstance(one, CodeType)]


def _defines(code: CodeType) -> bool:
    """It defines functions."""
    names = [one.co_name for one in code.co_consts if isinstance(one, CodeType)]
    return any(name == "<lambda>" or not name.startswith("<") for name in names)


OPTIONS = ("--noconftest",)
"""Of pytest: the fixtures of all tests import every model."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Put small faults into a module, and tell which the tests let pass.")
    parser.add_argument("paths", nargs="+", help="modules in jetgraph/, and tests; none that ask for shared fixtures")
    parser.add_argument("--number", type=int, help="of faults that are drawn; all in their order, unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, nargs="*", default=(), help="at which faults are tried; all, unless given")
    parser.add_argument(
        "--notes", type=pathlib.Path, help="a file that keeps what tests run, for as long as that holds"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="that the tests may take to which a fault is shown, the fastest"
    )
    options = parser.parse_args()
    # Threads that were started before a fork are not there after it.
    os.environ["OMP_NUM_THREADS"] = "1"
    modules = [name for name in options.paths if name.startswith("jetgraph/")]

    def meet(bench: Bench) -> None:
        for module in modules:
            faults = [one for one in mutants(module, folder) if not options.lines or one.line in options.lines]
            if options.number:
                faults = random.Random(options.seed).sample(faults, min(options.number, len(faults)))
            alive = explained = 0
            for mutant in faults:
                if bench.survives(mutant):
                    why = EXPLAINED.get(f"{mutant.module}: {mutant.change}")
                    print(f"{mutant.module}:{mutant.line}: {mutant.change}  ({why or 'not explained'})", flush=True)  # noqa: T201
                    alive, explained = alive + 1, explained + bool(why)
            print(f"{module}: {len(faults)} faults, {len(faults) - alive} seen, {explained} explained", flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        for part in ("jetgraph", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        notes = options.notes.resolve() if options.notes else folder / "notes.json"
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        del sys.modules["tests"]
        tests = [name for name in options.paths if name not in modules]
        bench = Bench(folder, modules, meet, notes, options.seconds)
        pytest.main(["-x", "-q", "-s", "-p", "no:cacheprovider", *OPTIONS, *tests], plugins=[bench])


if __name__ == "__main__":
    main()
