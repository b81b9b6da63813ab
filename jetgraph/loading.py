"""Names of models → loaded models, tokenizers and example inputs, for the command line and the demo.

Loading is `transformers`' own. Which class a model is of is read from its config, which input it takes from the model's
`main_input_name` and the input's sizes from the config; nothing here knows an architecture.
"""

from __future__ import annotations

import logging
import pathlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import InputError, JetGraphError
from jetgraph.process import alone

BUNDLED = {"demo": "gpt2", "demo:gpt2": "gpt2", "demo:llama": "llama"}
"""Names of the bundled models on the command line."""

EXAMPLE_SHAPE = (2, 8)
"""Batch and length of example token ids."""


class LoadError(JetGraphError):
    """A model could not be loaded."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in evaluation mode, with its tokenizer where it has one."""

    name: str
    model: nn.Module
    tokenizer: Any | None
    meta: bool = False
    """Structure only: the weights are on the meta device."""

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def inputs(self, prompt: str | None = None) -> dict[str, Tensor]:
        """Inputs made from a prompt; without one, example inputs of the kind that the model takes.

        Raises `InputError` for a prompt that the model cannot take, or an input that cannot be derived.
        """
        main = getattr(self.model, "main_input_name", "input_ids")
        values = {main: self._example(main) if prompt is None else self._encode(prompt, main)}
        if getattr(self.config, "is_encoder_decoder", False):
            start = getattr(self.config, "decoder_start_token_id", None) or 0
            ids = self._ids((values[main].shape[0], EXAMPLE_SHAPE[1] // 2))
            values["decoder_input_ids"] = ids if prompt is None else torch.tensor([[start]])
        return values

    def _encode(self, prompt: str, main: str) -> Tensor:
        if main != "input_ids":
            raise InputError(
                f"{self.name} takes {main!r}, so it takes no prompt: look at it from Python, with its inputs by name"
            )
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} has no tokenizer, so it takes no prompt: look at it from Python, with its inputs by name"
            )
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]], dtype=torch.long)
        if ids.shape[1] == 0:
            raise InputError(f"the prompt {prompt!r} has no tokens: give one with at least one word")
        longest = getattr(self.config, "max_position_embeddings", None)
        if isinstance(longest, int) and 0 < longest < ids.shape[1]:
            raise InputError(f"the prompt has {ids.shape[1]} tokens, more than the {longest} that {self.name} takes")
        return ids

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


def load(name: str, *, meta: bool = False) -> Loaded:
    """Load a model by Hugging Face id, folder, or name of a bundled one, in evaluation mode and on the CPU.

    Parameters
    ----------
    name
        `demo`, `demo:gpt2`, `demo:llama`, a folder that `from_pretrained` reads, or an id of the Hugging Face hub.
    meta
        Only read the config, and make the model on the meta device, without weights.

    Raises
    ------
    LoadError
        There is no such model, or transformers cannot load it; in one line.
    """
    place = _place(name)
    import transformers

    with quiet(), _one_line(name):
        config = transformers.AutoConfig.from_pretrained(place)
        model_class = _model_class(config)
        if meta:
            with torch.device("meta"):
                model = _from_config(model_class, config)
        else:
            model = model_class.from_pretrained(place)
    return Loaded(name, model.eval(), _tokenizer(place), meta)


def _place(name: str) -> str:
    """What `from_pretrained` is to read; raises `LoadError` for what can only be a folder and is none."""
    if name in BUNDLED:
        from jetgraph.models import bundled

        return str(bundled(BUNDLED[name]))
    if name == "demo" or name.startswith("demo:"):
        raise LoadError(f"there is no bundled model {name!r}: choose one of {', '.join(BUNDLED)}")
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadError(f"the folder {name} holds no config.json, so it is no model that transformers has saved")
        return str(path)
    if path.exists():
        raise LoadError(f"{name} is a file: name the folder that holds the model's config.json")
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and name[0] not in "./~"
    if not is_id:
        raise LoadError(f"there is no folder {name!r}: give a folder, an id of the Hugging Face hub, or 'demo'")
    return name


def _model_class(config: Any) -> Any:
    """The class that the checkpoint names; where it names none of transformers', a fitting auto class."""
    import transformers

    for architecture in config.architectures or ():
        if isinstance(getattr(transformers, architecture, None), type):
            return getattr(transformers, architecture)
    candidates = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForImageClassification,
    )
    return next((auto for auto in candidates if type(config) in auto._model_mapping), transformers.AutoModel)


def _from_config(model_class: Any, config: Any) -> nn.Module:
    return model_class.from_config(config) if hasattr(model_class, "from_config") else model_class(config)


def _tokenizer(place: str) -> Any | None:
    """The model's tokenizer, None where it has none that can be loaded."""
    import transformers

    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError, AttributeError):
        # What transformers raises for models without a tokenizer; a prompt then says that there is none.
        return None
    # For some types it makes an empty one, with special tokens only, where there are no files.
    return tokenizer if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) else None


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what loading raises into a `LoadError` of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except JetGraphError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise LoadError(f"cannot load {name!r}: {first_sentence(error)}") from error


def first_sentence(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]


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
                yield
        finally:
            hints.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            torch_hints.setLevel(torch_level)
            if bars:
                hints.enable_progress_bar()
