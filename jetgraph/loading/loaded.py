"""A model in evaluation mode with what reads texts for it, and the inputs that it is traced on.

Which input a model takes is its `main_input_name`, and the sizes of examples are in its config; nothing here knows an
architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import InputError, TraceError, check
from jetgraph.export.precision import own_types
from jetgraph.files.writing import is_folder
from jetgraph.loading.facts import Facts
from jetgraph.loading.known import Known, Record
from jetgraph.loading.later import WhenAsked
from jetgraph.loading.tokenizers import unread
from jetgraph.prompts import Batch, Prompts, Reader, unmasked
from jetgraph.residual import ResidualGraph, trace
from jetgraph.saving.traces import kept_trace
from jetgraph.tracing.agreement import compare
from jetgraph.tracing.trace import example_output
from jetgraph.tracing.weights import device_and_dtype

EXAMPLE_SHAPE = (2, 8)
"""Batch and length of example token ids."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in evaluation mode, with its tokenizer where it has one."""

    name: str
    model: WhenAsked[nn.Module] = WhenAsked()  # noqa: RUF009 (a descriptor)
    tokenizer: WhenAsked[Any | None] = WhenAsked()  # noqa: RUF009 (a descriptor)
    meta: bool = False
    """Structure only: the weights are on the meta device."""
    by_name: bool = False
    """It was loaded by its name, so that its code is a library's and not being worked on."""
    graph: ResidualGraph | None = None
    """It is traced already, as saved graphs are."""
    example: Mapping[str, Any] | None = None
    """Inputs that came with it."""
    stand_in: nn.Module | None = None
    """The same model with other weights, which is traced in its place: its own are read when they are used."""
    options: Mapping[str, Any] | None = None
    """What `load_model` was given with its name; None where it was not loaded by one."""
    known: Known | None = None
    """What is known of its checkpoint, where nobody is to change its weights."""

    def read_by(self, tokenizer: Any | None) -> Loaded:
        """The same model with another tokenizer."""
        return self if tokenizer is self.tokenizer else replace(self, tokenizer=tokenizer)

    @property
    def facts(self) -> Facts:
        """What there is to know of the model without running it."""
        return Facts.of(self.model) if self._recorded is None else self._recorded.facts

    @property
    def _recorded(self) -> Record | None:
        return None if self.known is None else self.known.record

    @property
    def short_name(self) -> str:
        """A folder by its own name, anything else as it is."""
        return Path(self.name).absolute().name if is_folder(self.name) else self.name

    @property
    def is_named(self) -> bool:
        """Its name says more than its class."""
        return self.by_name or self.example is not None or self.options is not None

    @property
    def config(self) -> Any:
        """The model's config; None where it has none."""
        return getattr(self.model, "config", None)

    @property
    def reader(self) -> Reader:
        """What reads texts for it."""
        main = self._main_input
        other = None if main == "input_ids" or self._takes_ids(main) else main
        trusted = bool((self.options or {}).get("trust_remote_code"))
        return Reader(self.name, self.tokenizer, self.facts.longest, other, partial(unread, self.name, trusted))

    @property
    def _main_input(self) -> str:
        return self.facts.main_input or (next(iter(self.example), "input_ids") if self.example else "input_ids")

    def _takes_ids(self, main: str) -> bool:
        """Its first input is of whole numbers, as token ids are."""
        if self.graph is None:
            value = (self.example or {}).get(main)
            return isinstance(value, Tensor) and not value.dtype.is_floating_point
        inputs = self.graph.traced.inputs.items()
        return any(name == main and not node.meta["dtype"].is_floating_point for node, name in inputs)

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once; of a saved graph those that its output reads."""
        if self.graph is not None:
            return self.graph.traced.parameters
        if self._recorded is not None:
            return self._recorded.parameters
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def is_described(self) -> bool:
        """There is something to make example inputs from."""
        return self.facts.described or self.example is not None or self.graph is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        if self._recorded is not None:
            return torch.device("cpu")
        return next((tensor.device for tensor in self._held), torch.device("cpu"))

    @property
    def dtype(self) -> str:
        """The type of most of its weights, without `torch.`."""
        if self._recorded is not None:
            return self._recorded.dtype
        return str(device_and_dtype(self._held)[1]).removeprefix("torch.")

    @property
    def _held(self) -> Iterable[Tensor]:
        return self.model.parameters() if self.graph is None else self.graph.traced.tensors.values()

    def trace(self, inputs: Mapping[str, Any]) -> ResidualGraph:
        """The residual graph on these inputs; of a model loaded by its name, out of the cache where it is in there.

        Raises
        ------
        TraceError, InputError
            As `jetgraph.trace`.
        """
        if self.graph is not None:
            return self.graph.current()
        graph = None if self.known is None else self.known.graph(inputs)
        if graph is not None:
            return replace(graph, title=f"{self.short_name} ({graph.title})")
        if self.stand_in is not None:
            graph = kept_trace(self.stand_in, inputs).over(self.model)
        else:
            graph = kept_trace(self.model, inputs) if self.by_name else trace(self.model, inputs=inputs)
        if self.known is not None:
            self.known.keep(self.model, inputs, graph)
        return replace(graph, title=f"{self.short_name} ({graph.title})") if self.is_named else graph

    @own_types()
    def inputs(self, prompt: Prompts | None = None, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs made from a prompt, or several; without one, example inputs of the kind that the model takes.

        Prompts of unequal length are padded on the side that the tokenizer says, and the model is given an attention
        mask, and with padding before a text the number of each token in its own. So results are those of the prompts
        one by one, to rounding: the model is asked, and where padding on the left changes what it makes of a text
        (recurrences, positions that it counts in its own way) it is on the right.

        Parameters
        ----------
        prompt
            A text, a path of a file that holds one, or several; a conversation by `jetgraph.chat`.
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
        if prompt is not None and self.graph is not None:
            values: dict[str, Any] = graph_inputs(self.reader, prompt, self.graph)
        elif prompt is not None:
            values = self._started(self._read(prompt, main, names))
        elif self.example is not None or self.graph is not None:
            return dict(self.example or {})
        elif not self.facts.described:
            raise InputError(
                f"{self.name} has no config to derive example inputs from: give them with it, (module, inputs) as what "
                "package.module:factory makes, or trace it from Python with jetgraph.trace(model, ...)"
            )
        else:
            values = {main: self._example(main)}
            if self.facts.decodes:
                values["decoder_input_ids"] = self._ids((values[main].shape[0], EXAMPLE_SHAPE[1] // 2))
        device = self.device
        return values if device.type == "meta" else {name: value.to(device) for name, value in values.items()}

    def _started(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of an encoder, with the token that a decoder starts from, where there is one."""
        if not self.facts.decodes:
            return values
        first = torch.full((len(next(iter(values.values()))), 1), self.facts.start)
        return {**values, "decoder_input_ids": first}

    def _read(self, prompt: Prompts, main: str, names: Collection[str] | None) -> dict[str, Tensor]:
        """Token ids, and what goes with them."""
        takes = self.facts.takes
        if names is None and self.example is not None and self.config is None:
            names = self.example
        given = takes if names is None else names
        # Positions that cannot be given are counted from the left; by models that do not write texts, from any number.
        counts = "position_ids" in takes and not (self.facts.writes and "position_ids" in given)
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
        by_name = inputs(batch)
        if "position_ids" in by_name and not batch.on_the_left and not self._is_as_alone(by_name, batch.mask):
            raise InputError(
                f"{self.name} does not count the positions of tokens from 0, so position_ids cannot be made from a "
                "prompt: give the inputs by name, or trace it without position_ids"
            )
        return by_name

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
        on = {name: value.to(self.device) for name, value in self._started(inputs).items()}
        return example_output(self.stand_in or self.model, (), on, None)

    def _example(self, main: str) -> Tensor:
        if main == "input_ids":
            return self._ids(EXAMPLE_SHAPE)
        size, noise = partial(_size, self.config), partial(_noise, self)
        if main == "pixel_values":
            side = size("image_size", 224)
            height, width = (side, side) if isinstance(side, int) else tuple(side)
            return noise(2, size("num_channels", 3), height, width)
        if main == "input_features":
            return noise(2, size("num_mel_bins", 80), 2 * size("max_source_positions", 1500))
        if main == "input_values":
            return noise(2, 16_000)
        raise InputError(
            f"{self.name} takes {main!r}, for which no example can be made here: trace it from Python with "
            f"jetgraph.trace(model, {main}=...)"
        )

    def _ids(self, shape: tuple[int, int]) -> Tensor:
        batch, length = shape
        ids = torch.arange(batch * length).view(shape) % self.facts.vocabulary
        return ids.to("meta") if self.meta else ids


def _size(config: Any, name: str, default: int) -> Any:
    """A size of a config, or of the part of it that describes this input; models without one take any."""
    configs = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    sizes = (getattr(config, name, None) for config in configs)
    return next((value for value in sizes if value), default)


def _noise(loaded: Loaded, *shape: int) -> Tensor:
    """Random numbers of a model's type, the same each time."""
    if loaded.meta:
        return torch.empty(shape, device="meta")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(getattr(loaded.model, "dtype", torch.float32))


def graph_inputs(reader: Reader, texts: Prompts, graph: ResidualGraph) -> dict[str, Tensor]:
    """Inputs made from texts, of a graph whose model is gone: nothing tells what padding on the left does to it.

    Raises
    ------
    InputError
        As `Reader.read`, and texts of unequal length where the graph has no mask.
    """
    names = graph.traced.input_shapes
    batch = reader.read(texts, "right")
    by_name = {next(iter(names)): batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
    if batch.padded and "attention_mask" not in names:
        raise unmasked(batch, "this graph was traced without an")
    return {name: value for name, value in by_name.items() if name in names}
