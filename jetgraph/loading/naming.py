"""What a name stands for: a bundled model, a checkpoint, a saved graph, an exported program, or a Python function."""

from __future__ import annotations

import os
import pathlib
import re
import warnings
from dataclasses import replace
from typing import Any, Literal

from jetgraph.errors import LoadError, check, quoted
from jetgraph.files.writing import is_file
from jetgraph.loading.checkpoints import load_checkpoint
from jetgraph.loading.known import known
from jetgraph.loading.later import Later
from jetgraph.loading.loaded import Loaded
from jetgraph.loading.others import from_factory, from_program, from_saved
from jetgraph.loading.request import Options, merged
from jetgraph.loading.tokenizers import tokenizer_of
from jetgraph.saving.folders import GRAPH

BUNDLED = {"demo": "gpt2", "demo:gpt2": "gpt2", "demo:llama": "llama"}
"""Names of the bundled models on the command line."""

PROGRAM, WEIGHTS = ".pt2", ".gguf"
ADAPTER = "adapter_config.json"
"""What peft writes beside adapters."""
FILES = PROGRAM, WEIGHTS
"""How files that are models end."""

_ID = r"[\w.-]{1,96}(/[\w.-]{1,96})?"
_REVISION = r"[\w./-]{1,200}"


def load_model(
    name: str | os.PathLike[str],
    *,
    meta: bool | None = None,
    weights: Literal["lazy"] | None = None,
    memory: int | None = None,
    device: Any = None,
    dtype: Any = None,
    revision: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool | None = None,
    quantization: Any = None,
    gguf_file: str | None = None,
    peft: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
) -> Loaded:
    """Load a model by name, in evaluation mode, with its tokenizer where it has one.

    Options that are not given are those of `loading_with`, where it holds.

    Parameters
    ----------
    name
        One of

        - an id of the Hugging Face hub, `org/name`, or `org/name@revision`,
        - a folder that transformers has saved, or a `.gguf` file,
        - a folder that `jetgraph.save` has written: the graph, with the tokenizer that was saved with it,
        - `package.module:factory`, a module or a function without arguments that makes one, found from the working
          folder on. With example inputs, it gives `(module, inputs)`, and with a tokenizer `(module, inputs,
          tokenizer)`; inputs are a tensor, several in order, or a mapping by name,
        - a `.pt2` file, a `torch.export.ExportedProgram` (PyTorch unpickles parts of it: open those that you trust),
        - `demo`, `demo:gpt2` or `demo:llama`.

        A path is a folder or a file.
    meta
        Only read the config, and make the model on the meta device, without weights.
    weights
        `lazy`: leave the weights in their .safetensors files. Each is read when something computes with it, and let go
        of again, so that a model may be larger than the memory. Numbers are the same to the last bit. It is traced on
        a stand-in with other weights, which take no memory, and cannot be trained.
    memory
        Bytes of weights that `weights="lazy"` may hold at once; half of the machine's memory unless given. Two of the
        largest weights are the least with which one is read while the other is used.
    device
        Where to put it; the CPU unless given.
    dtype
        Type of the weights, such as `bfloat16`; that of the checkpoint unless given.
    revision
        Branch, tag or commit on the hub.
    device_map
        As of transformers; needs accelerate. A model that is offloaded in part cannot be traced.
    trust_remote_code
        Run the code that comes with the checkpoint.
    quantization
        A config of transformers' (`QuantoConfig(weights="int8")`), a mapping or JSON of one, or its short form,
        `quanto:weights=int8`.
    gguf_file
        The file of a repository or folder to read the weights from; needs gguf.
    peft
        A folder or id of adapters; their weights are added to the model's. Needs peft.
    tokenizer
        A tokenizer, or the name of one, in the place of the model's own.

    Returns
    -------
    Loaded
        What every function takes for a model.

    Raises
    ------
    LoadError
        There is no such model, it cannot be loaded, or the checkpoint lacks weights that the model's output is computed
        from; in one line. Weights that are in the checkpoint and not in the model are left out, with a
        `CheckpointWarning`.
    InputError
        Options that do not go together, or that are no device or type.

    >>> load_model("demo", dtype="bfloat16").model.dtype
    torch.bfloat16
    """
    given = dict(locals())
    # What is no name is said to be none by `_load`.
    check(load_model, given | {"name": ""})
    del given["name"]
    options = merged(Options(**given))
    options.check()
    return replace(_load(name, options), options=options.given)


load = load_model
"""The same."""


def load_to_look(name: str) -> Loaded:
    """`load_model(name)` for a process that changes no weights, as commands are.

    Of a checkpoint of which all is known that its graph needs (see `jetgraph.loading.known`), the model itself is
    loaded when somebody asks for it, and the tokenizer too. Its graph has weights of its own, which are equal.

    Raises
    ------
    LoadError, InputError
        As `load_model`.
    """
    options = merged(Options())
    options.check()
    folder = _checkpoint_of(name)
    found = None if folder is None else known(folder, options)
    if folder is None or found is None:
        return load_model(name)
    if found.record is None:
        with warnings.catch_warnings(record=True) as told:
            loaded = load_model(name)
        for one in told:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        # What is to be said of a checkpoint is said each time.
        return loaded if told else replace(loaded, known=found)
    place, given = str(folder), options.given
    tokenizer = Later(lambda: tokenizer_of(place, options))
    model = Later(lambda: load_model(name, **given).model)
    loaded = Loaded(name, model, tokenizer, by_name=True, options=given, known=found)
    if options.tokenizer is not None:
        # So that what is no tokenizer is told.
        _ = loaded.tokenizer
    return loaded


def _checkpoint_of(name: str) -> pathlib.Path | None:
    """The folder that a name stands for, where it is one that transformers has saved."""
    if name in BUNDLED:
        from jetgraph.models import bundled

        return pathlib.Path(bundled(BUNDLED[name]))
    try:
        path = pathlib.Path(name).expanduser()
    except RuntimeError:
        return None
    return path if is_file(path / "config.json") and not is_file(path / GRAPH) else None


def _load(name: str | os.PathLike[str], options: Options) -> Loaded:
    if not isinstance(name, str | os.PathLike):
        raise LoadError(f"a model is loaded by its name or folder, not by {quoted(name)} ({type(name).__name__})")
    is_path = isinstance(name, os.PathLike)
    text = os.fspath(name)
    if not text.strip():
        raise LoadError("no model is named: give a folder, an id of the Hugging Face hub, or 'demo'")
    if not is_path and text in BUNDLED:
        from jetgraph.models import bundled

        return load_checkpoint(text, str(bundled(BUNDLED[text])), _of_folder(text, options))
    if not is_path and (text == "demo" or text.startswith("demo:")):
        raise LoadError(f"there is no bundled model {quoted(text)}: choose one of {', '.join(BUNDLED)}")
    try:
        path = pathlib.Path(text).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError):
        # No file system takes such a name: it is too long, or holds what no name can hold.
        path, exists, is_folder = pathlib.Path(), False, False
    if is_folder:
        return _load_folder(text, path, options)
    if exists:
        return _load_file(text, path, options)
    if (code := re.fullmatch(r"(.+\.py):([\w.]+)", text)) is not None:
        raise _file_of_code(text, pathlib.Path(code[1]), code[2])
    if not is_path and re.fullmatch(r"[\w.]+:[\w.]+", text) is not None:
        return from_factory(text, options)
    if path.suffix in FILES:
        raise LoadError(f"there is no file {quoted(text)}")
    id_, at, revision = text.partition("@")
    is_id = re.fullmatch(_ID, id_, re.ASCII) is not None and text[0] not in "./~"
    if is_path or not is_id or (at and re.fullmatch(_REVISION, revision, re.ASCII) is None):
        raise LoadError(f"there is no folder {quoted(text)}: give a folder, an id of the Hugging Face hub, or 'demo'")
    if at and options.revision is not None:
        raise LoadError(f"{quoted(text)} names a revision, and revision={quoted(options.revision)} another one")
    try:
        return load_checkpoint(text, id_, replace(options, revision=revision) if at else options)
    except LoadError as error:
        # What is not on the hub was meant to be here, as often as not.
        raise LoadError(f"{str(error).rstrip('.')}; nor is there a folder or a file {quoted(text)} here") from error


def _load_folder(name: str, path: pathlib.Path, options: Options) -> Loaded:
    if is_file(path / GRAPH):
        return from_saved(name, path, options)
    if not is_file(path / "config.json") and is_file(path / ADAPTER):
        raise LoadError(
            f"the folder {quoted(name)} holds an adapter and no model: name the model that it is for, and the adapter "
            f"as peft={quoted(name)} (--peft)"
        )
    if not is_file(path / "config.json") and options.gguf_file is None:
        raise LoadError(
            f"the folder {quoted(name)} holds no config.json and no graph.json, so it is no model that transformers or "
            "jetgraph.save has saved"
        )
    return load_checkpoint(name, str(path), _of_folder(name, options))


def _load_file(name: str, path: pathlib.Path, options: Options) -> Loaded:
    if path.suffix == PROGRAM:
        return from_program(name, path, options)
    if path.suffix == WEIGHTS:
        folder = replace(_of_folder(name, options), gguf_file=path.name)
        return load_checkpoint(name, str(path.parent), folder)
    if path.suffix == ".py":
        raise _file_of_code(name, path, "factory")
    raise LoadError(
        f"{quoted(name)} is a file: name the folder that holds the model's config.json, or a .pt2 or .gguf file"
    )


def _file_of_code(name: str, path: pathlib.Path, factory: str) -> LoadError:
    """What is said of a file of Python, which was meant to be the module that it holds."""
    where = "" if path.parent == pathlib.Path() else f", in the folder {path.parent} or with it on PYTHONPATH"
    return LoadError(
        f"{quoted(name)} names a file of Python, and models are made by what a module holds: write "
        f"{quoted(f'{path.stem}:{factory}')}{where}"
    )


def _of_folder(name: str, options: Options) -> Options:
    """Options of what is on this machine."""
    if options.revision is not None:
        raise LoadError(f"revision={quoted(options.revision)} is of a model of the hub, and {quoted(name)} is a folder")
    return options
