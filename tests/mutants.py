"""Mutation tests: small faults put into a module, one at a time, each of which some test should see.

    python -m tests.mutants jetgraph/jets/arithmetic.py tests/jets/test_arithmetic.py --number 40

prints every fault that the tests let pass. Such a survivor is a missing test, or a change of nothing that can be seen
(a shorter way to the same value): then it is told in `EXPLAINED`. Nothing in the checkout is touched: tests run in a
copy, each in a fork of one process that has torch.
"""

from __future__ import annotations

import argparse
import ast
import os
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]

SECONDS = 300
"""After which a run counts as one that has failed: a fault may make a loop that has no end."""

OTHERS: dict[type[ast.AST], type[ast.AST]] = dict(
    [
        *((ast.Lt, ast.LtE), (ast.LtE, ast.Lt), (ast.Gt, ast.GtE), (ast.GtE, ast.Gt), (ast.Eq, ast.NotEq)),
        *((ast.NotEq, ast.Eq), (ast.Is, ast.IsNot), (ast.IsNot, ast.Is), (ast.In, ast.NotIn), (ast.NotIn, ast.In)),
        *((ast.And, ast.Or), (ast.Or, ast.And), (ast.Add, ast.Sub), (ast.Sub, ast.Add), (ast.Mult, ast.Add)),
        *((ast.FloorDiv, ast.Mult), (ast.Div, ast.Mult)),
    ]
)
"""What stands in the place of an operator."""

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


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """Each mutant of a module: what was changed, and its source."""
    for place, node in enumerate(ast.walk(ast.parse(text))):
        for number in range(len(node.ops) if isinstance(node, ast.Compare) else 1):
            module = ast.parse(text)
            changed = next(one for at, one in enumerate(ast.walk(module)) if at == place)
            before = ast.unparse(module)
            if _mutated(changed, number):
                after = ast.unparse(module)
                one, other = next(
                    pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]
                )
                yield f"{getattr(changed, 'lineno', 0)}: {one.strip()} → {other.strip()}", after


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


def survives(source: str, module: str, tests: list[str], folder: pathlib.Path) -> bool:
    """Whether tests pass in a folder that has a copy of the code, with another source of a module."""
    original = (folder / module).read_text(encoding="utf-8")
    (folder / module).write_text(source, encoding="utf-8")
    child = os.fork()
    if not child:
        import signal

        import pytest

        signal.alarm(SECONDS)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    _, status = os.waitpid(child, 0)
    (folder / module).write_text(original, encoding="utf-8")
    return status == 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Put small faults into a module, and tell which the tests let pass.")
    parser.add_argument("module")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--number", type=int, default=40, help="faults that are drawn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import pytest  # noqa: F401  # Once, for all forks; so are those below.
    import torch
    import transformers  # noqa: F401

    # Threads that were started before a fork are not there after it.
    torch.set_num_threads(1)
    text = (ROOT / options.module).read_text(encoding="utf-8")
    every = list(mutants(text))
    drawn = random.Random(options.seed).sample(every, min(options.number, len(every)))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part in ("jetgraph", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if not survives(text, options.module, options.tests, folder):
            sys.exit("the tests fail without a fault")
        alive = 0
        for what, source in drawn:
            if survives(source, options.module, options.tests, folder):
                why = EXPLAINED.get(f"{options.module}:{what.partition(':')[2]}", "not explained")
                print(f"{options.module}:{what}  ({why})", flush=True)  # noqa: T201
                alive += 1
    print(f"{len(drawn) - alive} of {len(drawn)} faults were seen, drawn from {len(every)}")  # noqa: T201


if __name__ == "__main__":
    main()
