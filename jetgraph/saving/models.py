"""Files of residual graphs and compiled paths: JSON for what they are, safetensors for their weights, never pickle.

A folder holds

    graph.json           the traced graph: nodes, arguments, metadata, bindings
    paths.json           for compiled paths: the recipe, the rule at each site, and the paths' texts; of a beam what is
                         kept of those that it finds
    weights.safetensors  the tensors by name; complex ones as pairs of real numbers; only what is not in the model's own
                         weights where these were left out
    tokenizer            a folder of transformers', where a tokenizer was given

Structure is not stored: it is found again in the graph.

The three are one: graph.json holds the digests of the others and of itself, and files that do not belong together are
not loaded. A save writes the weights and paths beside those that are there, under names that begin with their digest,
and then replaces graph.json, which is the moment at which the folder becomes the new one; after it, they get their own
names. Where a save is killed in between, `load` finds them under the others.

A folder may come from anywhere. It is read as data (see `jetgraph.files.stored`), and what a graph may call is listed
(see `jetgraph.saving.targets`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any, get_args

from torch import Tensor, nn

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rewriting import Recipe
from jetgraph.algebra.selection import Selection, select
from jetgraph.compilation import PathModule
from jetgraph.errors import FileError, InputError, JetGraphError, StateError, quoted
from jetgraph.export.callables import find
from jetgraph.files.stored import LARGEST, Stored
from jetgraph.files.writing import make_folder, naming, reason, shown
from jetgraph.residual import ResidualGraph, analysed
from jetgraph.saving.folders import GRAPH, VERSION, alone, clear, read_save, replace_save, separate, settle
from jetgraph.saving.rules import HIGHEST, rule_from_json, rule_to_json
from jetgraph.saving.serialization import traced_from_json, traced_to_json
from jetgraph.tracing.copies import owners
from jetgraph.tracing.weights import Weights

TOKENIZER = "tokenizer"
"""The folder inside that holds a tokenizer."""


def save(
    value: ResidualGraph | PathModule,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any | None = None,
    weights: bool = True,
) -> File:
    """Write a residual graph or compiled paths into a folder, and return it.

    The folder is made if need be, and other files in it are left alone. What was saved there before is replaced as a
    whole: at any moment, a reader finds the old or the new.

    Parameters
    ----------
    value
        A graph, or compiled paths.
    folder
        Where to.
    tokenizer
        One of transformers', which `jetgraph.load_model` then finds in the folder `tokenizer` inside.
    weights
        False: all but the model's own weights, for which `load` asks the model.

    Raises
    ------
    InputError
        The value is of another type, holds an argument that has no JSON form, a weight is no plain tensor, or the
        tokenizer cannot be saved.
    StateError
        The graph is on `meta`.
    FileError
        The system refuses, or the graph holds a call that `load` would not take.
    """
    if isinstance(value, PathModule):
        graph, tensors = value.graph, value.tensors()
    elif isinstance(value, ResidualGraph):
        graph, tensors = value, dict(value.traced.tensors)
    else:
        raise InputError(f"only residual graphs and compiled paths can be saved, not {type(value).__name__}")

    if graph.traced.meta:
        raise StateError("the graph was traced on the meta device: there are no weights to save")
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise InputError(f"tokenizer={quoted(tokenizer)} cannot be saved: give one of transformers'")
    target = _folder(folder)
    # Compiled paths may have moved to another type, and the graph with them.
    traced = graph.traced.relocated({name: tensor.detach() for name, tensor in tensors.items()}.__getitem__)
    absent = [] if weights else _of_model(graph, tensors)
    described = {
        "version": VERSION,
        "title": graph.title,
        "parts": _parts_to_json(graph.parts),
        **({"absent": absent} if absent else {}),
        **traced_to_json(traced, tensors),
    }
    held = separate({name: tensor for name, tensor in tensors.items() if name not in absent})
    paths = _paths_to_json(value) if isinstance(value, PathModule) else None
    make_folder(target)
    with naming("save to", target), alone(target) as is_alone:
        settle(target)
        replace_save(target, described, held, paths)
        if is_alone:
            clear(target)
        if tokenizer is not None:
            tokenizer.save_pretrained(target / TOKENIZER)
    return target


def load(folder: str | os.PathLike[str], *, weights: nn.Module | None = None) -> ResidualGraph | PathModule:
    """Read back what `save` wrote: a `PathModule` where the folder holds paths, else a `ResidualGraph`.

    Nothing in the folder is run, whoever wrote it; of what it says to call when the graph is run, only operators with
    a rule, PyTorch's functional ones and arithmetic are taken.

    Parameters
    ----------
    folder
        What `save` has written.
    weights
        The model that a graph which was saved without weights is of. Without it such a graph shows its structure and
        expands, and does not run.

    Raises
    ------
    FileError
        A file is missing, damaged, not of the same save as the others, or of a newer version of the format.
    InputError
        A model that lacks a weight of the graph, or weights for a graph that has its own.
    """
    source = _folder(folder)
    described, stored, tensors = read_save(source)
    fields = described.members()
    absent = [name.text() for name in fields["absent"].items()] if "absent" in fields else []
    own = {} if weights is None else _from_model(weights, absent, source)
    traced = traced_from_json(described, tensors | own)
    if weights is not None:
        held = {name: own.get(name, tensor) for name, tensor in traced.tensors.items()}
        traced = replace(traced, tensors=Weights(held, owners(weights)))
    title, parts = fields["title"].text(), _parts_from_json(fields["parts"])
    with _whole(source / GRAPH):
        graph = analysed(traced, title, parts)
    return graph if stored is None else _paths_from_json(stored, graph)


def _of_model(graph: ResidualGraph, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are a model's own, and no constants of its code."""
    held = graph.traced.tensors
    looked_up = held.is_owned if isinstance(held, Weights) else lambda name: False
    return [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) or looked_up(name)]


def _from_model(model: nn.Module, absent: Sequence[str], source: File) -> dict[str, Tensor]:
    """The weights that a graph was saved without, from the model."""
    if not isinstance(model, nn.Module):
        raise InputError(f"weights={quoted(model)} is no module: give the model that the graph was traced from")
    if not absent:
        raise InputError(f"the graph in {shown(source)} has weights of its own: leave weights out")
    weights = {name: find(model, name.split(".")) for name in absent}
    if gone := next((name for name, value in weights.items() if not isinstance(value, Tensor)), None):
        raise InputError(
            f"the graph in {shown(source)} is of another model: {type(model).__name__} has no weight {gone!r}; give "
            "the one that it was traced from"
        )
    return weights


def _folder(folder: str | os.PathLike[str]) -> File:
    if not isinstance(folder, str | os.PathLike) or not (name := os.fspath(folder)) or not isinstance(name, str):
        raise InputError(f"{quoted(folder)} is no name of a folder: give one, as a text or a path")
    if "\0" in name:
        raise InputError(f"{quoted(folder)} is no name of a folder: it holds a zero byte")
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in Unicode"
        raise InputError(f"{quoted(folder)} is no name of a folder: {reason}") from error
    if os.path.exists(name) and not os.path.isdir(name):
        raise FileError(f"{name} is a file: name a folder, in which several files belong together")
    return File(name)


def _parts_to_json(parts: Split | None) -> Any:
    if parts is None or isinstance(parts, str):
        return parts
    return {
        pattern: share if isinstance(share, str | int) else [[int(index) for index in indices] for indices in share]
        for pattern, share in parts.items()
    }


def _parts_from_json(stored: Stored) -> Any:
    if stored.value is None or isinstance(stored.value, str):
        return stored.value
    return {pattern: _share_from_json(share) for pattern, share in stored.members().items()}


def _share_from_json(stored: Stored) -> Any:
    if isinstance(stored.value, str):
        return stored.value
    if isinstance(stored.value, list):
        return [[index.integer(0, LARGEST) for index in indices.items()] for indices in stored.items()]
    return stored.integer(1, LARGEST)


@contextlib.contextmanager
def _whole(file: File) -> Iterator[None]:
    """Values that are right one by one need not make a graph: what they fail by, the file is told to be damaged by."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, JetGraphError) else f"{type(error).__name__}: "
        raise FileError(
            f"{file} is damaged: what it describes does not hold together ({kind}{reason(error)})"
        ) from error


# Paths


def _paths_to_json(module: PathModule) -> dict[str, Any]:
    expansion: Expansion = module.expansion
    layers = [entry.point for entry in expansion.entries if entry.is_stream]
    return {
        "recipe": expansion.recipe,
        "order": expansion.order,
        "layers": layers if expansion.recipe == "lens" else None,
        "rules": {alias: rule_to_json(rule) for alias, rule in expansion.rules.items()},
        "paths": [str(path) for path in module.paths],
        **({} if module.wanted is None else {"wanted": _wanted_to_json(module.wanted)}),
    }


def _wanted_to_json(wanted: Selection) -> dict[str, Any]:
    """Which of the paths that a beam finds are kept."""
    asked, shortest, longest = wanted.asked()
    kinds = [{"path" if isinstance(one, Path) else "pattern": str(one)} for one in asked]
    return {"any": kinds, "min_length": shortest, "max_length": longest}


def _paths_from_json(stored: Stored, graph: ResidualGraph) -> PathModule:
    fields = stored.fields("recipe", "order", "layers", "rules", "paths", optional=("wanted",))
    layers = None if fields["layers"].value is None else [layer.integer(0) for layer in fields["layers"].items()]
    rules = {alias: rule_from_json(rule) for alias, rule in fields["rules"].members().items()}
    recipe, order = fields["recipe"].choice(get_args(Recipe)), fields["order"].integer(0, HIGHEST)
    texts = [path.text() for path in fields["paths"].items()]
    asked = None if "wanted" not in fields else _wanted_from_json(fields["wanted"])
    with _whole(File(stored.file)):
        # There is a rule for every site, so that the recipe's width is that of none.
        width = 1 if recipe == "beam" else None
        expansion = expand(graph, order, recipe=recipe, rules=rules, layers=layers, width=width)  # type: ignore[arg-type]
        if expansion.chooses != (asked is not None):
            raise InputError("paths that are found when it runs, and those that are known before, are not told apart")
        if asked is not None:
            wanted = [Path.parse(text) if kind == "path" else text for kind, text in asked[0]]
            chosen = select(expansion, wanted, min_length=asked[1], max_length=asked[2])
            return PathModule(expansion, (), wanted=chosen)
        return PathModule(expansion, [expansion.check(Path.parse(text)) for text in texts])


def _wanted_from_json(stored: Stored) -> tuple[list[tuple[str, str]], int | None, int | None]:
    """Kinds and texts of what is kept, and bounds on the length."""
    fields = stored.fields("any", "min_length", "max_length")
    shortest, longest = (
        None if fields[name].value is None else fields[name].integer(0) for name in ("min_length", "max_length")
    )
    wanted: list[tuple[str, str]] = []
    for one in fields["any"].items():
        given = one.fields(optional=("path", "pattern"))
        if len(given) != 1:
            raise one.damage("which is neither a path nor a pattern")
        wanted += [(kind, text.text()) for kind, text in given.items()]
    return wanted, shortest, longest
