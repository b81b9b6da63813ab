"""A structure with branches split into parts: which branches, along what, and how the coordinates are dealt out."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from torch import fx

from jetgraph.algebra.matching import named
from jetgraph.algebra.outline import Site, Split
from jetgraph.errors import InputError, amount, quoted
from jetgraph.jets.interpreter import op_in_module
from jetgraph.jets.registry import adds_constant
from jetgraph.structure.cuts import find_neurons, obstacle
from jetgraph.structure.heads import HeadsError, find_heads
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import is_mixing
from jetgraph.structure.regions import Branch, Cut, Join, JoinStage, Part, Stream, Structure

Share = Literal["heads", "neurons"] | int | Sequence[Sequence[int]]
"""How the coordinates are dealt out: one each, into so many groups of neighbours, or into these sets."""


def split(structure: Structure, how: Split) -> Structure:
    """The structure with some branches of its streams cut into parts. See `jetgraph.expand`.

    Parameters
    ----------
    structure
        What the analysis found.
    how
        `"heads"` or `"neurons"` for all branches that have them, or a mapping from patterns over branches to how each
        is dealt out.

    Returns
    -------
    Structure
        Its joins have a branch for each part, `L3.attn.head0`, …; its steps a site for each, and the branch's constant.

    Raises
    ------
    InputError
        Where `how` cannot be read, or a branch cannot be cut so.
    SelectionError
        Where a pattern matches no branch.
    """
    chosen = _chosen(structure, how)
    streams = []
    joins: dict[fx.Node, Join] = {}
    for stream in structure.streams:
        stages = []
        for stage in stream.stages:
            if isinstance(stage, JoinStage) and any(branch.alias in chosen for branch in stage.join.branches):
                stage = _split_stage(stage, chosen)
                joins[stage.join.node] = stage.join
            stages.append(stage)
        streams.append(Stream(stream.encoder, tuple(stages)))
    return replace(
        structure, streams=tuple(streams), joins=tuple(joins.get(join.node, join) for join in structure.joins)
    )


# Which branches, and how


def _chosen(structure: Structure, how: Split) -> dict[str, tuple[Cut, Share] | str]:
    """The cut of every branch that is to be split, and how it is dealt out, by alias; for a branch that is left whole,
    why.
    """
    branches = [branch for stream in structure.streams for join in stream.joins for branch in join.branches]
    if isinstance(how, str) and how in ("heads", "neurons"):
        some = (branch for branch in branches if branch.kind != "skip")
        fitting = [branch for branch in some if (branch.kind == "attn") == (how == "heads")]
        if not fitting:
            raise InputError(f"split={quoted(how)}: no branch of this model has {how} to split by")
        return _all_of(fitting, how)
    if not isinstance(how, Mapping):
        raise InputError(
            f"split={quoted(how)} is unknown: choose 'heads', 'neurons', or a mapping from branches to 'heads', "
            "'neurons', a number of groups, or sets of indices"
        )
    by_alias = {branch.alias: branch for branch in branches}
    paths = {alias: branch.name for alias, branch in by_alias.items()}
    chosen: dict[str, tuple[Cut, Share] | str] = {}
    for pattern, share in how.items():
        if not isinstance(pattern, str):
            raise InputError(f"split maps branches to parts, and {quoted(pattern)} is no text that names a branch")
        for alias in named(pattern, paths, paths, f"split[{quoted(pattern)}] matches no branch of a stream"):
            branch = by_alias[alias]
            kind = share if isinstance(share, str) else "heads" if branch.kind == "attn" else "neurons"
            if kind not in ("heads", "neurons"):
                raise InputError(f"split[{pattern!r}]={quoted(share)} is unknown: choose 'heads', 'neurons', or sets")
            chosen[branch.alias] = _cut(branch, kind), share
    return chosen


def _all_of(branches: Sequence[Branch], kind: Literal["heads", "neurons"]) -> dict[str, tuple[Cut, Share] | str]:
    """All branches of a kind: those that cannot be split are left whole, unless none can."""
    by_alias: dict[str, tuple[Cut, Share] | str] = {}
    for branch in branches:
        try:
            by_alias[branch.alias] = _cut(branch, kind), kind
        except InputError as error:
            by_alias[branch.alias] = str(error)
    if all(isinstance(share, str) for share in by_alias.values()):
        raise InputError(f"split={kind!r}: {next(iter(by_alias.values()))}")
    return by_alias


def _cut(branch: Branch, kind: str) -> Cut:
    what = f"{branch.alias!r} (module {branch.name!r}) cannot be split into {kind}"
    try:
        cut = (find_heads if kind == "heads" else find_neurons)(branch.region)
    except HeadsError as error:
        raise InputError(f"{what}: {error}. Split it into 'neurons', or into sets of them") from None
    if cut is None:
        raise InputError(f"{what}: {_obstacle(branch, kind)}")
    return cut


def _obstacle(branch: Branch, kind: str) -> str:
    """Why there is no cut: what is between the last place for one and the branch's end."""
    region = branch.region
    places = list(attention_products(region)) if kind == "heads" else [node for node in region.nodes if is_mixing(node)]
    part = "attention product" if kind == "heads" else "learned layer"
    text = f"no {part} in it reaches its end through what is affine or can be held"
    node = obstacle(region, places[-1]) if places else None
    return text if node is None else f"{text}; after the last one comes {op_in_module(node)}"


def _split_stage(stage: JoinStage, chosen: Mapping[str, tuple[Cut, Share] | str]) -> JoinStage:
    branches: list[Branch] = []
    sites: list[Site] = []
    constants: list[Site] = []
    for branch, site in zip(stage.join.branches, stage.step.branches, strict=True):
        how = chosen.get(branch.alias, "")
        if isinstance(how, str):
            branches.append(replace(branch, undivided=how) if how else branch)
            sites.append(site)
            continue
        cut, share = how
        bias = site.affine and _biased(cut)
        for name, indices in _dealt(branch.alias, cut, share):
            alias = f"{branch.alias}.{name}"
            branches.append(replace(branch, alias=alias, part=Part(cut, indices, branch.alias)))
            sites.append(replace(site, alias=alias, bias=bias))
        if cut.constant == "varying":
            alias = f"{branch.alias}.offset"
            branches.append(replace(branch, alias=alias, part=Part(cut, None, branch.alias)))
            sites.append(replace(site, alias=alias, bias=bias))
        elif cut.constant == "fixed":
            constants.append(site)
    step = replace(stage.step, branches=tuple(sites), constants=tuple(constants))
    return replace(stage, step=step, join=replace(stage.join, branches=tuple(branches)))


def _dealt(alias: str, cut: Cut, share: Share) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and coordinates of the parts."""
    if isinstance(share, str):
        for index in range(cut.size):
            yield f"{share[:-1]}{index}", (index,)
        return
    if isinstance(share, int) and not isinstance(share, bool):
        if not 1 <= share <= cut.size:
            raise InputError(
                f"{quoted(share)} groups are not made of {amount(cut.size, 'coordinate')}, which {alias!r} has"
            )
        ends = [group * cut.size // share for group in range(share + 1)]
        share = [range(first, last) for first, last in pairwise(ends)]
    try:
        sets = [tuple(map(operator.index, indices)) for indices in share]  # type: ignore[union-attr]
    except TypeError:
        raise InputError(
            f"the split of {alias!r} is {quoted(share)}: give 'heads', 'neurons', a number of groups, or a list of "
            "sets of whole numbers such as [[0, 1], [7]]"
        ) from None
    left = set(range(cut.size))
    for number, indices in enumerate(sets):
        if not indices or not left.issuperset(indices) or len(set(indices)) < len(indices):
            raise InputError(
                f"set {number} of the split of {alias!r} is {indices[:8]}: sets are not empty, do not overlap, and "
                f"hold numbers from 0 to {cut.size - 1}"
            )
        left.difference_update(indices)
        yield f"set{number}", indices
    if left:
        yield "rest", tuple(sorted(left))


def _biased(cut: Cut) -> bool:
    """The inner value of an affine branch is not zero where the stream is."""
    inside = {cut.region.entry, *cut.before}
    return any(adds_constant(node, inside.__contains__) for node in cut.before)
