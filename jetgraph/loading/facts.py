"""What is asked of a model besides to run it, as plain values: so that an earlier process can have asked."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from jetgraph.export.callables import title
from jetgraph.files.stored import Stored
from jetgraph.prompts import longest_of


@dataclass(frozen=True)
class Facts:
    """What a model says of itself, and its config of it."""

    kind: str
    """What to call it: its class."""
    described: bool
    """It has a config."""
    main_input: str | None
    """Its first input, where it says which that is."""
    takes: tuple[str, ...]
    """Names of the arguments that it is called with."""
    writes: bool
    """It writes texts."""
    longest: int | None
    """The most tokens that it takes."""
    vocabulary: int
    """How many tokens it knows; 2 where it does not say."""
    decodes: bool
    """It is an encoder and a decoder."""
    start: int
    """The token that a decoder starts from."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Those of a model at hand."""
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        size = getattr(text, "vocab_size", None)
        takes: tuple[str, ...] = ()
        with contextlib.suppress(TypeError, ValueError):
            takes = tuple(inspect.signature(model.forward).parameters)
        return cls(
            kind=title(model),
            described=config is not None,
            main_input=getattr(model, "main_input_name", None),
            takes=takes,
            writes=bool(getattr(model, "can_generate", lambda: False)()),
            longest=longest_of(config),
            vocabulary=size if isinstance(size, int) and size > 0 else 2,
            decodes=bool(getattr(config, "is_encoder_decoder", False)),
            start=getattr(config, "decoder_start_token_id", None) or 0,
        )

    def to_json(self) -> dict[str, Any]:
        """As a file holds them."""
        return {**dataclasses.asdict(self), "takes": list(self.takes)}

    @classmethod
    def from_json(cls, stored: Stored) -> Self:
        """Those of a file.

        Raises
        ------
        FileError
            One of them is not what it should be.
        """
        fields = stored.fields(*(each.name for each in dataclasses.fields(cls)))
        main, longest = fields["main_input"], fields["longest"]
        return cls(
            kind=fields["kind"].text(),
            described=fields["described"].flag(),
            main_input=None if main.value is None else main.text(),
            takes=tuple(name.text() for name in fields["takes"].items()),
            writes=fields["writes"].flag(),
            longest=None if longest.value is None else longest.integer(1),
            vocabulary=fields["vocabulary"].integer(1),
            decodes=fields["decodes"].flag(),
            start=fields["start"].integer(0),
        )
