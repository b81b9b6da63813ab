"""Joins with their names: module paths and aliases, and the numbers of the blocks that they lie in.

Names only have to be short, unique and recognisable; what decides them is in `jetgraph.structure.naming`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.joins import is_inside
from jetgraph.structure.kinds import working
from jetgraph.structure.naming import BlockNumbers, Uniquely, branch_path, common_path, stream_prefixes
from jetgraph.structure.regions import Branch, Join

Paths = Mapping[tuple[fx.Node, fx.Node], str]
"""Module paths of branches, by the nodes of the join and of the branch."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """How the blocks of a chain are numbered."""

    prefix: str
    blocks: BlockNumbers
    of_joins: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Labels:
    """What the joins of a graph are called."""

    joins: Mapping[fx.Node, Join]
    """The joins with their names, by node."""
    numbers: tuple[Numbers, ...]
    """By chain."""


def label(flow: Dataflow, joins: Sequence[Join], chains: Sequence[Sequence[Join]]) -> Labels:
    """Name the joins of chains after the blocks of their chain, and nested ones after the branch that they are in."""
    modules = flow.traced.module_types
    paths = {
        (join.node, branch.node): branch_path(
            join.node.meta["module_path"],
            [node.meta["module_path"] for node in _working(join, branch)],
            modules,
        )
        for join in joins
        for branch in join.branches
    }
    prefixes = stream_prefixes(
        [
            common_path(paths[join.node, b.node] for join in chain for b in join.branches if b.kind != "skip")
            for chain in chains
        ]
    )
    numbers = tuple(_numbered(chain, paths, at, modules) for chain, at in zip(chains, prefixes, strict=True))
    unique = Uniquely()
    named: dict[fx.Node, Join] = {}
    for chain, given in zip(chains, numbers, strict=True):
        for join, number in zip(chain, given.of_joins, strict=True):
            at = f"{given.prefix}L{number}"
            named[join.node] = _named(join, paths, lambda kind, at=at: unique(f"{at}.{kind}"))
    # A join that contains another one ends after it, so that backwards every outer join has its name first.
    for join in reversed(joins):
        if join.depth:
            parent = named[_innermost(join, joins).node]
            inside = (b.alias for b in parent.branches if flow.depends(b.node, join.node))
            at = next(inside, f"{parent.branches[0].alias}.gate")
            named[join.node] = _named(join, paths, lambda kind, at=at: unique(f"{at}.{kind}"))
    return Labels(named, numbers)


def _working(join: Join, branch: Branch) -> list[fx.Node]:
    """The nodes that a branch is named after: those that make no gate, where there are some."""
    nodes = working(branch.region)
    return [node for node in nodes if all(node not in gate.node_set for gate in join.gates)] or nodes


def _numbered(chain: Sequence[Join], paths: Paths, prefix: str, modules: Mapping[str, str]) -> Numbers:
    blocks = BlockNumbers(modules)
    counted: list[bool] = []
    for join in chain:
        names = [paths[join.node, branch.node] for branch in join.branches]
        # What only adds earlier points, outside of all blocks, belongs to the block before it.
        idle = all(branch.kind == "skip" for branch in join.branches)
        counted.append(not idle or any(map(blocks.block, names)))
        if counted[-1]:
            blocks.add(names)
    given = iter(blocks.numbers())
    numbers: list[int] = []
    for own in counted:
        numbers.append(next(given) if own else numbers[-1] if numbers else 0)
    return Numbers(prefix, blocks, tuple(numbers))


def _innermost(join: Join, joins: Sequence[Join]) -> Join:
    """The closest join that has this one inside a branch."""
    return max((other for other in joins if is_inside(join, other)), key=lambda other: other.depth)


def _named(join: Join, paths: Paths, alias: Callable[[str], str]) -> Join:
    if not join.branches:
        return replace(join, name=join.node.meta["module_path"], alias=alias("add"))
    aliases = [alias(branch.kind) for branch in join.branches]
    # Code of the root module has no path; the alias names it then.
    branches = tuple(
        replace(branch, name=paths[join.node, branch.node] or short, alias=short)
        for branch, short in zip(join.branches, aliases, strict=True)
    )
    if len(branches) == 1:
        return replace(join, name=branches[0].name, alias=branches[0].alias, branches=branches)
    return replace(
        join,
        name=common_path(branch.name for branch in branches),
        alias="+".join(branch.alias for branch in branches),
        branches=branches,
    )
