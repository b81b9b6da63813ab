"""Names for branches and maps: module paths and short aliases such as `L3.mlp`.

Names never decide structure; they only have to be short, unique and recognisable. A branch is named after the child
module that does most of its learned mixing; the number in its alias is that of the repeated block it lies in.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


def common_path(paths: Iterable[str]) -> str:
    """The innermost module that holds all of these.

    >>> common_path(["h.0.attn.c_attn", "h.0.attn.c_proj"])
    'h.0.attn'
    """
    shared: list[str] | None = None
    for path in paths:
        parts = path.split(".") if path else []
        if shared is None:
            shared = parts
            continue
        keep = 0
        for one, other in zip(shared, parts, strict=False):
            if one != other:
                break
            keep += 1
        shared = shared[:keep]
    return ".".join(shared or [])


def branch_path(join_path: str, mixing_paths: Sequence[str], modules: Container[str]) -> str:
    """The child, below the module that holds join and branch, with most of the branch's mixing operators; the
    first of equals.

    `modules` are the paths of all modules that run: a list of modules is none, and the child is looked for inside it.

    >>> modules = {"", "h.0", "h.0.attn", "h.0.attn.c_attn", "h.0.attn.c_proj"}
    >>> branch_path("h.0", ["h.0.attn.c_attn", "h.0.attn", "h.0.attn.c_proj"], modules)
    'h.0.attn'
    >>> branch_path("", ["h.0.attn.c_attn"], modules)
    'h.0'
    """
    path = common_path([join_path, *mixing_paths])
    while True:
        above = f"{path}." if path else ""
        children = Counter(
            name[len(above) :].split(".")[0] for name in mixing_paths if name.startswith(above) and name != path
        )
        # Products that the module itself takes (attention written out) count for the module as a whole.
        if not children or (path in modules and mixing_paths.count(path) > max(children.values())):
            return path
        path = above + children.most_common(1)[0][0]
        if path in modules:
            return path


@dataclass
class BlockNumbers:
    """Numbers of the repeated blocks of one stream, handed out in the stream's order.

    A block is the innermost numbered module whose siblings include another one of its class. Where all blocks of the
    stream are numbered in one list, its own numbers count; where they are in several (stages of layers) or one block is
    run repeatedly, blocks are counted along the stream. Without a numbered module a branch gets the index of its join.
    """

    module_types: Mapping[str, str]
    keys: list[str | None] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _new: list[bool] = field(default_factory=list)

    def add(self, names: Sequence[str]) -> None:
        """Meet the next join of the stream, with the module paths of its branches."""
        key = next((key for name in names if (key := self.block(name)) is not None), None)
        again = any(name in self._seen for name in names)
        fresh = not self.keys or key != self.keys[-1] or again or key is None
        if fresh:
            self._seen.clear()
        self._seen.update(names)
        self.keys.append(key)
        self._new.append(fresh)

    def numbers(self) -> list[int]:
        """The block number of every join met, in order."""
        if self.container is not None:
            return [int(key.rpartition(".")[2]) for key in self.keys if key is not None]
        numbers, count = [], -1
        for new in self._new:
            count += new
            numbers.append(count)
        return numbers

    @property
    def container(self) -> str | None:
        """The one list in which all blocks of the stream are numbered, if there is one."""
        starts = [key for key, new in zip(self.keys, self._new, strict=True) if new]
        containers = {key.rpartition(".")[0] for key in starts if key is not None}
        if len(containers) == 1 and None not in starts and len(set(starts)) == len(starts):
            return containers.pop()
        return None

    def number(self, path: str) -> int | None:
        """The number of the block that a module between the joins lies in, where blocks have numbers of their own."""
        key = self.block(path)
        own = key is not None and key.rpartition(".")[0] == self.container
        return int(key.rpartition(".")[2]) if own and key is not None else None

    def block(self, path: str) -> str | None:
        """Path of the repeated block that a module lies in."""
        parts = path.split(".")
        numbered = [".".join(parts[: at + 1]) for at, part in enumerate(parts) if part.isdigit()]
        repeated = [block for block in numbered if self._repeats(block)]
        return repeated[-1] if repeated else (numbered[0] if numbered else None)

    def _repeats(self, block: str) -> bool:
        kind = self.module_types.get(block)
        container = block.rpartition(".")[0]
        depth = len(block.split("."))
        return kind is not None and any(
            other != block
            and cls == kind
            and other.rpartition(".")[0] == container
            and other.rpartition(".")[2].isdigit()
            and len(other.split(".")) == depth
            for other, cls in self.module_types.items()
        )


class Uniquely:
    """Second and later uses of an alias get `.2`, `.3`, …

    >>> unique = Uniquely()
    >>> unique("L0.attn"), unique("L0.attn"), unique("L0.mlp")
    ('L0.attn', 'L0.attn.2', 'L0.mlp')
    """

    def __init__(self) -> None:
        self._uses = Counter[str]()

    def __call__(self, alias: str) -> str:
        self._uses[alias] += 1
        uses = self._uses[alias]
        return alias if uses == 1 else f"{alias}.{uses}"


_TAKEN = re.compile(r"L\d+|attn|ssm|conv|mlp|mix|skip|map|norm|act|add|embed|context|pos|bias|logits")
"""Names that sites and kinds of sources have."""


def source_names(kinds: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Aliases of the sources of an encoder: the kind of the first of its kind; of others, what they are called in the
    model, at the end of their path, and the kind where they have no name there. Second uses are numbered.

    Of several `pos` none is the first: which of them are positions, and which types of tokens, the graph does not say.

    >>> source_names(["embed", "pos", "pos", "pos"], ["wte", "embeddings.position", "embeddings.x", "embeddings.x"])
    ['embed', 'position', 'x', 'x2']
    >>> source_names(["embed", "embed", "embed", "bias"], ["x", "y", "", ""])
    ['embed', 'y', 'embed2', 'bias']
    >>> source_names(["embed", "embed", "embed", "embed"], ["x", "cpe", "cpe", "cpe2"])
    ['embed', 'cpe', 'cpe2', 'cpe22']
    """
    numbers, uses = Counter(kinds), Counter[str]()
    names: list[str] = []
    for kind, path in zip(kinds, paths, strict=True):
        own = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
        usable = own.isidentifier() and own.isascii() and not _TAKEN.fullmatch(own)
        first = not uses[kind] if kind != "pos" else numbers[kind] == 1
        name = own if usable and not first else kind
        uses[name] += 1
        names.append(_unlike(names, name, uses[name]))
    return names


def _unlike(taken: Collection[str], name: str, use: int) -> str:
    """A name with its number from the second use on, or the next one that nothing is called by."""
    numbered = (f"{name}{number}" for number in itertools.count(max(use, 2)))
    return name if use == 1 and name not in taken else next(one for one in numbered if one not in taken)


def stream_prefixes(paths: Sequence[str]) -> list[str]:
    """Prefixes for streams, given their common module paths in order: none for the first, a telling module
    name for others.

    >>> stream_prefixes(["encoder.block", "decoder.block"])
    ['', 'decoder.']
    """
    prefixes = [""][: len(paths)]
    for index, path in enumerate(paths[1:], 1):
        shared = common_path([paths[0], path])
        rest = path.split(".")[len(shared.split(".")) if shared else 0 :]
        name = next((part for part in rest if part and not part.isdigit()), f"stream{index + 1}")
        taken = [prefix.removesuffix(".") for prefix in prefixes]
        prefixes.append(f"{_unlike(taken, name, index + 1 if name in taken else 1)}.")
    return prefixes
