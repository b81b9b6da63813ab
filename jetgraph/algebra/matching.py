"""What a name or a glob stands for, and what to say of one that stands for nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from jetgraph.algebra.dialects import translated
from jetgraph.algebra.outline import SINK
from jetgraph.errors import QUOTED, SelectionError

KINDS = ("embed", "context", "pos", "bias")
"""Kinds of sources that are names too: what makes such a source, the model says."""


class Aliases(dict[str, str]):
    """Module paths by alias of what can be named, with the kinds of those that are sources of the model's.

    Parameters
    ----------
    paths
        Module paths by alias.
    kinds
        Kinds by alias, of others too.
    """

    def __init__(self, paths: Mapping[str, str], kinds: Mapping[str, str]) -> None:
        super().__init__(paths)
        self.kinds = {alias: kind for alias, kind in kinds.items() if alias in paths and kind in KINDS}


def matching(pattern: str, names: Mapping[str, str]) -> list[str]:
    """The aliases that a text stands for, out of all aliases with their module paths, in their order.

    An exact alias is that one alone, whatever the modules are called. Another text is a module path, or a glob over
    aliases and module paths; one that says `bias` alone means constants of sites (`L1.mlp.bias`). `output` is the sink.
    What is neither may be a name of TransformerLens, or the kind of sources, all of which it then stands for: of a
    BERT, whose positions and types of tokens have names of their own, `pos` means both.

    Raises
    ------
    SelectionError
        A text such as `L1.*` or `L1.attn` that names one thing as an alias and another one as a module path, as in a
        model whose blocks are attributes L1, L2, ….

    >>> matching("L1.mlp", {"L0.mlp": "L1.mlp", "L1.mlp": "L2.mlp"}), matching("L?.mlp", {"L0.mlp": "L1.mlp"})
    (['L1.mlp'], ['L0.mlp'])
    >>> matching("pos", Aliases({"place": "", "type": "", "embed": ""}, {"place": "pos", "type": "pos"}))
    ['place', 'type']
    """
    pattern = SINK if pattern == "output" and SINK in names else pattern
    if pattern in names:
        return [pattern]
    shown = [alias for alias in names if "bias" in pattern or not alias.endswith(".bias")]
    by_alias = [alias for alias in shown if fnmatchcase(alias, pattern)]
    by_path = [alias for alias, path in names.items() if path and (path == pattern or fnmatchcase(path, pattern))]
    # A glob that starts with a wildcard is meant for both; one that starts with a name means that name.
    fixed = _WILDCARD.split(pattern)[0]
    if fixed == pattern or "." in fixed:
        begun = [alias for alias in shown if alias.startswith(f"{pattern}.")] if fixed == pattern else by_alias
        aliased, placed = ([a for a in one if a not in other] for one, other in ((begun, by_path), (by_path, begun)))
        if aliased and placed:
            raise SelectionError(
                f"{pattern!r} has two meanings: as an alias it stands for {_some(aliased)}, as a module path for "
                f"{_some([f'{alias} (module {names[alias]})' for alias in placed])}. Write the aliases that you mean"
            )
    aliases = {*by_alias, *by_path}
    if not aliases and (other := translated(pattern)) is not None:
        return matching(other, names)
    if not aliases and isinstance(names, Aliases):
        aliases = {alias for alias, kind in names.kinds.items() if kind == pattern}
    return [alias for alias in names if alias in aliases]


def named(pattern: str, names: Mapping[str, str], among: Collection[str], what: str) -> list[str]:
    """What of `among` a text stands for, at least one.

    Parameters
    ----------
    pattern, names
        As in `matching`.
    among
        The aliases that it may stand for.
    what
        How a message begins that says what the text stands for nothing of: `rules['L9.*'] matches no site`.

    Raises
    ------
    SelectionError
        It stands for none of them, or has two meanings.

    Examples
    --------
    >>> named("*.mlp", {"L0.attn": "", "L0.mlp": "", "L1.mlp": ""}, {"L0.attn", "L1.mlp"}, "")
    ['L1.mlp']
    """
    aliases = [alias for alias in matching(pattern, names) if alias in among]
    if not aliases:
        raise SelectionError(f"{what}{nearest(pattern, among, globs=True)}")
    return aliases


_WILDCARD = re.compile(r"[*?\[]")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")


def nearest(name: str, names: Iterable[str], limit: int = 12, *, globs: bool = False) -> str:
    """The end of an error message about an unknown name: what is meant, perhaps, and what there is.

    Parameters
    ----------
    globs
        What is meant may be a kind of sites, or all sites of a block.

    Examples
    --------
    >>> nearest("mlp", ["L0.attn", "L0.mlp"], globs=True), nearest("L1", ["L1.mlp"], globs=True)
    ("; did you mean '*.mlp'? There are: L0.attn, L0.mlp", "; did you mean 'L1.*'? There are: L1.mlp")
    """
    names = list(names)
    # What is far longer than any name resembles none, and would take long to compare.
    close = get_close_matches(name[:QUOTED], names, n=3, cutoff=0.5)
    if globs:
        kinds = [f"*.{name}"] * any(one.endswith(f".{name}") for one in names)
        close = kinds + [f"{name}.*"] * any(one.startswith(f"{name}.") for one in names) or close
    shown = ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
    meant = f"; did you mean {' or '.join(map(repr, close))}? There" if close else "; there"
    return f"{meant} are: {shown or 'none'}"
