"""Names of models → loaded models, tokenizers and example inputs, for the command line and the demo.

Loading is `transformers`' own. Which class a model is of is read from its config, which input it takes from the model's
`main_input_name` and the input's sizes from the config; nothing here knows an architecture.
"""

from __future__ import annotations

import inspect
import logging
import os
import pathlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import InputError, JetGraphError, LoadError, TraceError, check, quoted
from jetgraph.export.process import alone
from jetgraph.files.writing import is_file
from jetgraph.prompts import Batch, Reader, longest_of, unmasked
from jetgraph.residual import ResidualGraph, trace
from jetgraph.saving.traces import kept_trace
from jetgraph.tracing.agreement import compare
from jetgraph.tracing.trace import canonical, example_output

BUNDLED = {"demo": "gpt2", "demo:gpt2": "gpt2", "demo:llama": "llama"}
"""Names of the bundled models on the command line."""

EXAMPLE_SHAPE = (2, 8)
"""Batch and length of example token ids."""


class CheckpointWarning(UserWarning):
    """A checkpoint holds weights that its model leaves out."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in evaluation mode, with its tokenizer where it has one."""

    name: str
    model: nn.Module
    tokenizer: Any | None
    meta: bool = False
    """Structure only: the weights are on the meta device."""
    by_name: bool = False
    """It was loaded by its name, so that its code is a library's and not being worked on."""

    @property
    def config(self) -> Any:
        """The model's config; None where it has none."""
        return getattr(self.model, "config", None)

    @property
    def reader(self) -> Reader:
        """What reads texts for it."""
        main = self._main_input
        return Reader(self.name, self.tokenizer, longest_of(self.config), None if main == "input_ids" else main)

    @property
    def _main_input(self) -> str:
        return getattr(self.model, "main_input_name", "input_ids")

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def trace(self, inputs: Mapping[str, Any]) -> ResidualGraph:
        """The residual graph on these inputs; of a model loaded by its name, out of the cache where it is in there.

        Raises
        ------
        TraceError, InputError
            As `jetgraph.trace`.
        """
        return kept_trace(self.model, inputs) if self.by_name else trace(self.model, inputs=inputs)

    def inputs(
        self, prompt: str | Sequence[str] | None = None, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Inputs made from a prompt, or several; without one, example inputs of the kind that the model takes.

        Prompts of unequal length are padded on the side that the tokenizer says, and the model is given an attention
        mask, and with padding before a text the number of each token in its own. So results are those of the prompts
        one by one, to rounding: the model is asked, and where padding on the left changes what it makes of a text
        (recurrences, positions that it counts in its own way) it is on the right.

        Parameters
        ----------
        prompt
            A text, or several.
        names
            What there is to be given besides token ids, such as what a graph was traced with; what is needed unless
            given.

        Raises
        ------
        InputError
            A prompt that the model cannot take (see `jetgraph.prompts`), or an input that cannot be derived.
        """
        check(Loaded.inputs, locals())
        main = self._main_input
        if prompt is not None:
            return self._started(self._read(prompt, main, names))
        values = {main: self._example(main)}
        if self._decodes:
            values["decoder_input_ids"] = self._ids((values[main].shape[0], EXAMPLE_SHAPE[1] // 2))
        return values

    @property
    def _decodes(self) -> bool:
        return getattr(self.config, "is_encoder_decoder", False)

    def _started(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of an encoder, with the token that a decoder starts from, where there is one."""
        if not self._decodes:
            return values
        start = getattr(self.config, "decoder_start_token_id", None) or 0
        return {**values, "decoder_input_ids": torch.full((len(next(iter(values.values()))), 1), start)}

    def _read(self, prompt: str | Sequence[str], main: str, names: Collection[str] | None) -> dict[str, Tensor]:
        """Token ids, and what goes with them."""
        takes = inspect.signature(self.model.forward).parameters
        given = takes if names is None else names
        # Positions that cannot be given are counted from the left; by models that do not write texts, from any number.
        writes = getattr(self.model, "can_generate", lambda: False)()
        counts = "position_ids" in takes and not (writes and "position_ids" in given)
        batch = self.reader.read(prompt, "right" if counts else None)
        if batch.padded and "attention_mask" not in given:
            raise unmasked(batch, f"{self.name} takes no" if names is None else "this graph was traced without an")

        def inputs(batch: Batch) -> dict[str, Tensor]:
            needed = {"attention_mask": batch.padded, "position_ids": batch.on_the_left}
            more = {"attention_mask": batch.mask, "position_ids": batch.positions}
            wanted = [name for name in more if name in given and (names is not None or needed[name])]
            return {main: batch.ids, **{name: more[name] for name in wanted}}

        if batch.on_the_left and not self._is_as_alone(inputs(batch), batch.mask):
            batch = self.reader.read(prompt, "right")
        found = inputs(batch)
        if "position_ids" in found and not batch.on_the_left and not self._is_as_alone(found, batch.mask):
            raise InputError(
                f"{self.name} does not count the positions of tokens from 0, so position_ids cannot be made from a "
                "prompt: give the inputs by name, or trace it without position_ids"
            )
        return found

    @torch.no_grad()
    def _is_as_alone(self, inputs: Mapping[str, Tensor], mask: Tensor) -> bool:
        """The model makes the same of the shortest text with these inputs as of its token ids alone."""
        if any(parameter.is_meta for parameter in self.model.parameters()):
            return True
        row = int(mask.sum(1).argmin())
        tokens = mask[row] != 0
        with_all = {name: value[row : row + 1] for name, value in inputs.items()}
        name, ids = next(iter(with_all.items()))
        try:
            padded, alone = self._output(with_all), self._output({name: ids[:, tokens]})
        except TraceError:
            return True  # the trace meets it again, and tells it
        padded = padded if padded.shape == alone.shape else padded[:, tokens.to(padded.device)]
        return compare(padded, alone).good

    def _output(self, inputs: dict[str, Tensor]) -> Tensor:
        device = next(self.model.parameters()).device
        return example_output(self.model, (), {k: v.to(device) for k, v in self._started(inputs).items()}, None)

    def _example(self, main: str) -> Tensor:
        size = self._size
        if main == "input_ids":
            return self._ids(EXAMPLE_SHAPE)
        if main == "pixel_values":
            side = size("image_size", 224)
            height, width = (side, side) if isinstance(side, int) else tuple(side)
            return self._noise(2, size("num_channels", 3), height, width)
        if main == "input_features":
            return self._noise(2, size("num_mel_bins", 80), 2 * size("max_source_positions", 1500))
        if main == "input_values":
            return self._noise(2, 16_000)
        raise InputError(
            f"{self.name} takes {main!r}, for which no example can be made here: trace it from Python with "
            f"jetgraph.trace(model, {main}=...)"
        )

    def _size(self, name: str, default: int) -> Any:
        """A size of the config, or of the part of it that describes this input; models without one take any."""
        configs = [self.config, *(value for value in vars(self.config).values() if hasattr(value, "to_dict"))]
        found = (getattr(config, name, None) for config in configs)
        return next((value for value in found if value), default)

    def _ids(self, shape: tuple[int, int]) -> Tensor:
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        vocabulary = getattr(text, "vocab_size", None) or 2
        batch, length = shape
        ids = torch.arange(batch * length).view(shape) % vocabulary
        return ids.to("meta") if self.meta else ids

    def _noise(self, *shape: int) -> Tensor:
        if self.meta:
            return torch.empty(shape, device="meta")
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        dtype = getattr(self.model, "dtype", torch.float32)
        return noise.to(dtype)


def load(name: str | os.PathLike[str], *, meta: bool = False) -> Loaded:
    """Load a model by Hugging Face id, folder, or name of a bundled one, in evaluation mode and on the CPU.

    Weights that are in the checkpoint and not in the model are left out, with a `CheckpointWarning`.

    Parameters
    ----------
    name
        `demo`, `demo:gpt2`, `demo:llama`, a folder that `from_pretrained` reads, or an id of the Hugging Face hub. A
        path is a folder.
    meta
        Only read the config, and make the model on the meta device, without weights.

    Raises
    ------
    LoadError
        There is no such model, transformers cannot load it, or the checkpoint lacks weights that the model's output is
        computed from; in one line.
    """
    location = _location(name)
    name = os.fspath(name)
    import transformers

    with _one_line(name):
        config = transformers.AutoConfig.from_pretrained(location, trust_remote_code=False)
    classes = _model_classes(config, name)
    if not meta:
        return Loaded(name, _with_weights(name, location, classes), _tokenizer(location), by_name=True)
    with _one_line(name), torch.device("meta"):
        model = _from_config(classes[0], config)
    return Loaded(name, model.eval(), _tokenizer(location), meta, by_name=True)


def _location(name: str | os.PathLike[str]) -> str:
    """What `from_pretrained` is to read; raises `LoadError` for what can only be a folder and is none."""
    if not isinstance(name, str | os.PathLike):
        raise LoadError(f"a model is loaded by its name or folder, not by {quoted(name)} ({type(name).__name__})")
    is_path = isinstance(name, os.PathLike)
    name = os.fspath(name)
    if name in BUNDLED and not is_path:
        from jetgraph.models import bundled

        return str(bundled(BUNDLED[name]))
    if not is_path and (name == "demo" or name.startswith("demo:")):
        raise LoadError(f"there is no bundled model {quoted(name)}: choose one of {', '.join(BUNDLED)}")
    try:
        path = pathlib.Path(name).expanduser()
        found, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError):
        # No file system takes such a name: it is too long, or holds what no name can hold.
        path, found, is_folder = pathlib.Path(), False, False
    if is_folder:
        if not is_file(path / "config.json"):
            raise LoadError(
                f"the folder {quoted(name)} holds no config.json, so it is no model that transformers has saved"
            )
        return str(path)
    if found:
        raise LoadError(f"{quoted(name)} is a file: name the folder that holds the model's config.json")
    is_id = re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name, re.ASCII) is not None and name[0] not in "./~"
    if is_path or not is_id:
        raise LoadError(f"there is no folder {quoted(name)}: give a folder, an id of the Hugging Face hub, or 'demo'")
    return name


def _model_classes(config: Any, name: str) -> Sequence[Any]:
    """The class that the checkpoint names; where it names none of transformers', a fitting auto class, and the one
    without a head for checkpoints that have none.

    Raises `LoadError` for a config that says something else in place of names.
    """
    import transformers

    named = config.architectures or ()
    if not isinstance(named, list | tuple) or not all(isinstance(one, str) for one in named):
        raise LoadError(f"the config of {name} says architectures={quoted(named)}, which is no list of class names")
    for architecture in named:
        found = getattr(transformers, architecture, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return [found]
    candidates = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForImageClassification,
    )
    fitting = [auto for auto in candidates if type(config) in auto._model_mapping]
    return [*fitting[:1], transformers.AutoModel]


def _from_config(model_class: Any, config: Any) -> nn.Module:
    return model_class.from_config(config) if hasattr(model_class, "from_config") else model_class(config)


def _with_weights(name: str, location: str, classes: Sequence[Any]) -> nn.Module:
    """The first of some classes whose output the checkpoint has all weights for.

    Raises `LoadError` where it is none: what a checkpoint lacks, transformers makes up at random.
    """
    lacking: list[str] = []
    for model_class in classes:
        with _one_line(name):
            model, report = model_class.from_pretrained(
                location, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
        sizes = {
            key: f"{key} ({list(stored)} in the checkpoint, {list(made)} in the model)"
            for key, stored, made in report["mismatched_keys"]
        }
        absent = sorted({*report["missing_keys"], *sizes})
        if not (random := _read(Loaded(name, model.eval(), None), absent)):
            if extra := sorted(report["unexpected_keys"]):
                left = f"{name} holds weights that {type(model).__name__} has not: {_few(extra)}"
                warnings.warn(left, CheckpointWarning, stacklevel=3)
            return model
        lacking = lacking or [sizes.get(key, key) for key in random]
    raise LoadError(
        f"the checkpoint {name} lacks weights that the model is computed with, or has them in another size: "
        f"{_few(lacking)}. Check that config.json is the one of these weights"
    )


def _few(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def _read(loaded: Loaded, names: Collection[str]) -> list[str]:
    """Those weights that the model's output is computed from: a pooler that nothing reads may well be missing.

    All of them where the model cannot be traced on example inputs.
    """
    if not names:
        return []
    try:
        with quiet():
            traced = canonical(loaded.model, kwargs=loaded.inputs(), dynamic=False)
    except JetGraphError:
        return list(names)
    used = {id(tensor) for tensor in traced.tensors.values()}
    state = dict(loaded.model.state_dict(keep_vars=True))
    return [name for name in names if name not in state or id(state[name]) in used]


def _tokenizer(location: str) -> Any | None:
    """The model's tokenizer, None where it has none that can be loaded."""
    import transformers

    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except Exception:
        # transformers may raise anything where there are no files, or odd ones; a prompt then says that there is none.
        return None
    # For some types it makes an empty one, with special tokens only, where there are no files.
    return tokenizer if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) else None


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what transformers raises, which may be anything where a config is odd, into a `LoadError` of one line."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise LoadError(f"cannot load {quoted(name)}: {first_sentence(error)}") from error


def first_sentence(error: BaseException) -> str:
    """The first line of an error's text that says something, with its type where that says more."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines())
    said = [line for line in lines if line]
    text = " ".join(said[: 2 if said and said[0].endswith(":") else 1])
    known = text and isinstance(error, (OSError, ValueError, RuntimeError, ImportError))
    return (text if known else f"{type(error).__name__} {text}".strip())[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, hints and other libraries' warnings out of what a person reads."""
    import transformers
    from huggingface_hub.utils import logging as hub_logging

    hints, torch_hints = transformers.utils.logging, logging.getLogger("torch")
    # In another order, two threads would put back what the other one has set.
    with alone():
        verbosity, hub_verbosity, torch_level = hints.get_verbosity(), hub_logging.get_verbosity(), torch_hints.level
        bars = hints.is_progress_bar_enabled()
        hints.set_verbosity_error()
        hub_logging.set_verbosity(hub_logging.CRITICAL)
        torch_hints.setLevel(logging.ERROR)
        hints.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", CheckpointWarning)
                yield
        finally:
            hints.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            torch_hints.setLevel(torch_level)
            if bars:
                hints.enable_progress_bar()
