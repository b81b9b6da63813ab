"""The names of terms: from its source, past the sites that it passes at some order each, to the sink."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from jetgraph.algebra.outline import SINK
from jetgraph.errors import SelectionError, quoted

_STEP = re.compile(r"(?P<alias>[^\s^~>]+)(?:(?P<mark>[\^~])(?P<order>\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hop:
    """One element of a path: an alias and, at a nonlinear site, the order taken there.

    `L3.mlp^2` is the part of order 2 of a jet, `L3.mlp~2` the jet up to order 2. Up to order 0 there is one part only,
    so that is written `^0`.
    """

    alias: str
    order: int | None = None
    together: bool = False
    """All orders up to this one."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.together and not self.order:
            object.__setattr__(self, "together", False)
        # Each is looked up many times: in plans, selections and texts.
        object.__setattr__(self, "_hash", hash((self.alias, self.order)))

    def __hash__(self) -> int:
        return self._hash

    def markup(self) -> str:
        """The hop in HTML, its order raised.

        >>> Hop("L0.mlp", 1).markup(), Hop("L0.mlp", 2, True).markup()
        ('L0.mlp<sup>1</sup>', 'L0.mlp<sup>≤2</sup>')
        """
        order = "" if self.order is None else f"<sup>{'≤' * self.together}{self.order}</sup>"
        return f"{html.escape(self.alias)}{order}"

    def __str__(self) -> str:
        return self.alias if self.order is None else f"{self.alias}{'~' if self.together else '^'}{self.order}"


@dataclass(frozen=True, slots=True)
class Path:
    """The name of a term: its source, the sites it passes, and the sink.

    >>> path = Path.parse("embed > L0.attn~2 > L3.mlp~2 > logits^1")
    >>> path.length, path.order, str(path.source)
    (2, 5, 'embed')
    >>> str(path)
    'embed > L0.attn~2 > L3.mlp~2 > logits^1'
    """

    hops: tuple[Hop, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.hops, tuple):
            raise SelectionError(f"a path is made of a tuple of hops, not of {quoted(self.hops)}")
        if len(self.hops) < 2:
            raise SelectionError(
                f"a path has a source and a sink, but {quoted(str(self))} has {len(self.hops)} element(s)"
            )
        object.__setattr__(self, "_hash", hash(self.hops))

    def __hash__(self) -> int:
        return self._hash

    @property
    def source(self) -> Hop:
        return self.hops[0]

    @property
    def sites(self) -> tuple[Hop, ...]:
        """What lies between source and sink."""
        return self.hops[1:-1]

    @property
    def sink(self) -> Hop:
        return self.hops[-1]

    @property
    def length(self) -> int:
        """Number of sites between source and sink."""
        return len(self.hops) - 2

    @property
    def order(self) -> int:
        """Sum of the orders taken along the path, the decoder's included; a jet up to order k counts k."""
        return sum(hop.order or 0 for hop in self.hops)

    @classmethod
    def parse(cls, text: str) -> Path:
        """Read a path back from its text.

        Raises
        ------
        SelectionError
            Text that no path prints.
        """
        if not isinstance(text, str):
            raise SelectionError(f"a path is read from its text, not from {quoted(text)}")
        hops = []
        for part in text.split(">"):
            match = _STEP.fullmatch(part.strip())
            if match is None:
                raise SelectionError(
                    f"{quoted(part.strip())} in {quoted(text)} is no element of a path: write alias, alias^order or "
                    "alias~order, joined by ' > ', such as 'embed > L0.mlp~1 > logits^0'"
                )
            alias = SINK if match["alias"] == "output" else match["alias"]
            order = None if match["order"] is None else int(match["order"])
            hops.append(Hop(alias, order, match["mark"] == "~"))
        return cls(tuple(hops))

    def _repr_html_(self) -> str:
        """The path with its orders raised, and arrows between its hops."""
        return f"<code>{' → '.join(hop.markup() for hop in self.hops)}</code>"

    def __str__(self) -> str:
        return " > ".join(map(str, self.hops))
