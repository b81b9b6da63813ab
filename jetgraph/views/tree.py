"""A residual graph as a tree that a person reads at a glance."""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from jetgraph.layout.blocks import block_of
from jetgraph.structure.regions import Branch, Join, JoinStage, MapStage, Stage, Stream, Structure

_LEVELS = {"all": "dynamic sizes", "batch": "dynamic batch, other sizes fixed", "none": "fixed input shapes"}


def tree(structure: Structure, title: str, check: str | None) -> str:
    """The structure as text; repeated blocks are shown once. `check` says how well the replay matched the model."""
    return "\n".join([_headline(structure, title, check), *_note(structure), *_body(structure)])


def html(structure: Structure, title: str, check: str | None) -> str:
    """The same for notebooks."""
    body = markup.escape("\n".join(_body(structure)))
    head = markup.escape(" ".join([_headline(structure, title, check), *_note(structure)]))
    return f"<details open><summary><b>{head}</b></summary><pre style='line-height:1.3'>{body}</pre></details>"


def of_parameters(number: int, read: int, kept: str) -> str:
    """How many parameters a model has, how they are kept, and how many of them its output reads where it is not all.

    >>> of_parameters(1200, 1200, "of float32"), of_parameters(1200, 1000, "of float32")
    ('1,200 of float32', '1,200 of float32; the output reads 1,000 of them')
    """
    return f"{number:,} {kept}" + ("" if read == number else f"; the output reads {read:,} of them")


def _headline(structure: Structure, title: str, check: str | None) -> str:
    deep = sum(join.depth > 0 for join in structure.joins)
    streams = len(structure.streams)
    parts = [
        f"{title}: {len(structure.joins) - deep} residual joins" + (f" and {deep} inner ones" if deep else ""),
        f"{streams} streams" if streams > 1 else "1 stream",
        _LEVELS[structure.traced.dynamic],
    ]
    if check is not None:
        parts.append(f"replay {check}")
    elif structure.traced.meta:
        parts.append("structure only (meta device)")
    return " · ".join(parts)


def _note(structure: Structure) -> list[str]:
    return [f"note: {structure.traced.note}"] if structure.traced.note else []


def _body(structure: Structure) -> list[str]:
    inner = [join for join in structure.joins if join.depth]
    lines: list[str] = []
    for stream in structure.streams:
        main = stream is structure.main
        rows = [(f"{s.source.alias}", s.source.path, "") for s in stream.encoder.summands]
        rows += _stage_rows(stream.stages, inner)
        if main:
            site = structure.decoder.site
            nonlinear = sorted({n.meta["module_path"] for n in structure.decoder.nonlinear.nodes} - {"", site.path})
            kind = "affine" if site.affine else f"after {', '.join(nonlinear[:3])}" if nonlinear else "nonlinear"
            rows.append((f"{site.alias}", site.path, kind))
        lines.append(_stream_title(structure, stream, main))
        lines += _table(rows)
    return lines


def _stream_title(structure: Structure, stream: Stream, main: bool) -> str:
    shape = ", ".join(map(str, stream.end.meta["shape"]))
    role = f"to {structure.traced.output_name!r}" if main else "read by the streams after it"
    return f"stream [{shape}] {role}"


Row = tuple[str, str, str]


def _stage_rows(stages: Sequence[Stage], inner: Sequence[Join]) -> list[Row]:
    """Rows of the stages, with runs of blocks of one shape folded into the first."""
    blocks: list[list[Stage]] = []
    for stage in stages:
        key = block_of(stage.alias)
        if blocks and key and key == block_of(blocks[-1][0].alias):
            blocks[-1].append(stage)
        else:
            blocks.append([stage])
    rows: list[Row] = []
    at = 0
    while at < len(blocks):
        shape = _shape(blocks[at], inner)
        same = 1
        while at + same < len(blocks) and _shape(blocks[at + same], inner) == shape:
            same += 1
        for stage in blocks[at]:
            rows += _rows(stage, inner)
        if same > 2:
            first, last = (block_of(blocks[at + i][0].alias) for i in (1, same - 1))
            rows.append((f"⋮ {first} … {last}", f"{same - 1} blocks like this one", ""))
        else:
            for block in blocks[at + 1 : at + same]:
                for stage in block:
                    rows += _rows(stage, inner)
        at += same
    return rows


def _shape(block: Sequence[Stage], inner: Sequence[Join]) -> tuple[str, ...]:
    """What blocks that are alike have in common: names but for their numbers, notes, and kinds of branches."""
    name = block_of(block[0].alias) or block[0].alias
    rows = (
        re.sub(r"\d+", "#", f"{alias.replace(name, '')} {path}") + f" {note}"
        for stage in block
        for alias, path, note in _rows(stage, inner)
    )
    kinds = (branch.kind for stage in block if isinstance(stage, JoinStage) for branch in stage.join.branches)
    return (*rows, *kinds)


def _rows(stage: Stage, inner: Sequence[Join]) -> list[Row]:
    if isinstance(stage, MapStage):
        site = stage.step.site
        return [(f"= {site.alias}", site.path, "affine map" if site.affine else "map")]
    rows: list[Row] = []
    reads = {site.alias: site.reads for site in stage.step.branches}
    for branch in _shown(stage.join.branches):
        if isinstance(branch, str):
            rows.append((f"⋮ {branch}", "", ""))
            continue
        kind = "no skip" if stage.join.kind == "none" else stage.join.kind
        note = kind if reads[branch.alias] is None else f"of h{reads[branch.alias]}"
        note += ", affine" if branch.region.affine else ""
        note += ", left whole" if branch.undivided else ""
        rows.append((f"+ {branch.alias}", branch.name, note))
        nodes = set(branch.region.nodes)
        rows += [
            (f"{'    ' * join.depth}+ {b.alias}", b.name, f"{join.kind}, inner")
            for join in inner
            if join.node in nodes
            for b in join.branches
        ]
    rows += [(f"+ {source.alias}", source.path, "added") for source in stage.step.injections]
    return rows


PARTS = 6
"""Parts of one branch that are listed; of more, the first and the last are named."""


def _shown(branches: Sequence[Branch]) -> Iterator[Branch | str]:
    """The branches, with many parts of one of them folded into a line."""
    for _, group in groupby(branches, key=lambda branch: branch.part.whole if branch.part else branch.alias):
        parts = list(group)
        if len(parts) <= PARTS:
            yield from parts
        else:
            yield parts[0]
            yield f"{parts[1].alias} … {parts[-2].alias.rpartition('.')[2]}: {len(parts) - 2} parts like this one"
            yield parts[-1]


def _table(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = []
    for index, (name, path, kind) in enumerate(rows):
        corner = "└─" if index == len(rows) - 1 else "├─"
        lines.append(f"{corner} {name:<{widths[0]}}  {path:<{widths[1]}}  {kind}".rstrip())
    return lines
