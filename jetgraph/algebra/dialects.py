"""Names as others write them, and what is asked for by naming a part.

TransformerLens calls block 3 `blocks.3` and the stream behind it `blocks.3.hook_resid_post`. Blocks are counted along
the stream in both, so a name of theirs is one of ours by where it stands, whatever the model's modules are called; a
module of the model that has such a name itself comes first (see `jetgraph.algebra.matching`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

from jetgraph.algebra.outline import SINK, JoinStep, Outline
from jetgraph.layout.blocks import block_of

_BLOCK = r"(?P<block>\d+|\*)"
_BRANCH = r"(?P<branch>attn|mlp)"
_SITES = (
    re.compile(rf"blocks\.{_BLOCK}\.{_BRANCH}(?:\.hook_(?:z|result|post))?"),
    re.compile(rf"blocks\.{_BLOCK}\.hook_{_BRANCH}_out"),
    re.compile(rf"{_BRANCH}(?:_out)?\.{_BLOCK}"),
)
_HEAD = re.compile(r"L(?P<block>\d+|\*)H(?P<head>\d+|\*)")
_ENDS = {"hook_embed": "embed", "hook_pos_embed": "pos", "pos_embed": "pos", "unembed": SINK, "ln_final": SINK}
_POINTS = (
    re.compile(rf"blocks\.{_BLOCK}\.hook_resid_(?P<where>pre|mid|post)"),
    re.compile(rf"resid_(?P<where>pre|mid|post)\.{_BLOCK}"),
)

_PART = re.compile(r"(?P<site>[^\s>]+)\.(?P<part>head|neuron)(\d+|\*)")
_ORDER = re.compile(r"[\^~]\d+$")
_SPLITS: Mapping[str, Literal["heads", "neurons"]] = {"head": "heads", "neuron": "neurons"}


def translated(name: str) -> str | None:
    """What a name of a component is called here; None where it is none of theirs.

    >>> translated("blocks.3.mlp"), translated("blocks.*.hook_attn_out"), translated("L3H5"), translated("L3.mlp")
    ('L3.mlp', 'L*.attn', 'L3.attn.head5', None)
    >>> translated("blocks.3.attn.head5"), translated("L3.attn.head5")
    ('L3.attn.head5', None)
    """
    if (part := _PART.fullmatch(name)) is not None:
        whole = translated(part["site"])
        return None if whole is None else whole + name.removeprefix(part["site"])
    if (head := _HEAD.fullmatch(name)) is not None:
        return f"L{head['block']}.attn.head{head['head']}"
    matched = next((match for form in _SITES if (match := form.fullmatch(name)) is not None), None)
    return _ENDS.get(name) if matched is None else f"L{matched['block']}.{matched['branch']}"


def points_called(name: str, outline: Outline) -> set[int]:
    """The points of the stream that a name of theirs stands for; none where it is no such name.

    `pre` is what the first step of a block reads, `post` what its last one leaves, and `mid` what its last join reads,
    where it has several.
    """
    matched = next((match for form in _POINTS if (match := form.fullmatch(name)) is not None), None)
    if matched is None:
        return set()
    blocks: dict[str, list[int]] = {}
    for number, site in outline.numbered():
        if number <= len(outline.steps) and (block := block_of(site.alias)):
            blocks.setdefault(block, []).append(number)
    points: set[int] = set()
    for block, steps in blocks.items():
        if not fnmatchcase(block, f"L{matched['block']}"):
            continue
        joins = sorted({step for step in steps if isinstance(outline.steps[step - 1], JoinStep)})
        if matched["where"] == "mid":
            points |= {joins[-1] - 1} if len(joins) > 1 else set()
        else:
            points.add(min(steps) - 1 if matched["where"] == "pre" else max(steps))
    return points


def parts_asked(
    patterns: Iterable[object], outline: Outline | None = None
) -> dict[str, Literal["heads", "neurons"]] | Literal["heads", "neurons"] | None:
    """The split that patterns ask for by naming parts of branches; None where they name none.

    What names a branch of an outline as it is, such as a module `head0`, asks for no part.

    >>> parts_asked(["embed > L1.attn.head0 > logits", "L3H5^0"]), parts_asked(["*.head*"]), parts_asked(["*.attn"])
    ({'L1.attn': 'heads', 'L3.attn': 'heads'}, 'heads', None)
    """
    texts = [_ORDER.sub("", element.strip()) for pattern in patterns for element in str(pattern).split(">")]
    sites = () if outline is None else outline.sites()
    known = {name for site in sites if site.role == "branch" for name in (site.alias, site.path)}
    texts = [text for text in texts if not any(fnmatchcase(name, text) for name in known)]
    elements = (_PART.fullmatch(translated(text) or text) for text in texts)
    asked: dict[str, Literal["heads", "neurons"]] = {
        str(match["site"]): _SPLITS[match["part"]] for match in elements if match is not None
    }
    kinds = set(asked.values())
    # A glob such as `*` is meant for the sites that have such parts, which one word says and a mapping does not.
    if len(kinds) == 1 and any("*" in site for site in asked):
        return kinds.pop()
    return asked or None
