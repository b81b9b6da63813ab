"""How a number of a report is made again: as a command where one says it all, else as a line of Python."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from jetgraph.loading import Loaded
from jetgraph.prompts import Chat
from jetgraph.residual import ResidualGraph

FLAGS = {"weights": "--lazy", "memory": "--weights-memory"}
"""Options of commands that are not called as the arguments of `load_model` are."""


class Name(str):
    """A variable in a line of Python."""

    __repr__ = str.__str__


@dataclass(frozen=True)
class Origin:
    """What a report is about, as its reader gives it."""

    model: str | None
    """The name by which the model is loaded; None where it was given as it is."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What it is loaded with: arguments of `load_model`, all of them texts, numbers or yes."""
    prompts: tuple[str | None, ...] = ()
    """What is read: texts, None for inputs of another kind."""
    own: bool = False
    """They are among the example inputs that came with the model, which commands without a prompt look at."""
    graph: str = "jg.trace(model, inputs=inputs)"
    """The traced model in Python."""
    tokenizer: bool = False
    """One was given beside the model."""
    called: str = "model"
    """The variable that it is in Python, where it has no name."""

    @staticmethod
    def of(model: Any, given: Any = None, tokenizer: Any = None, called: str = "model") -> Origin:
        """What is said of a model: no name where it was not loaded by one, or with what no text stands for.

        Parameters
        ----------
        model
            As the report was given it; by a name, it is loaded.
        given
            The first of its inputs.
        tokenizer
            What the report was given.
        called
            The variable that it is in Python, where it has no name.
        """
        origin = Origin(None, tokenizer=tokenizer is not None, called=called)
        if isinstance(model, Loaded):
            options = {name: _plain(value) for name, value in (model.options or {}).items()}
            if model.options is None or None in options.values():
                return replace(origin, graph="model.trace(model.inputs())")
            origin = replace(origin, model=model.name, options=options)
            return replace(origin, graph=f"jg.trace({', '.join(origin._named)})")
        if isinstance(model, ResidualGraph):
            return replace(origin, graph="model")
        return replace(origin, graph="jg.trace(model, inputs)") if isinstance(given, torch.Tensor) else origin

    def at(self, *given: Any, own: bool = False) -> Origin:
        """The same, on inputs; `own` ones came with the model."""
        return replace(self, prompts=tuple(one if isinstance(one, str) else None for one in given), own=own)

    @property
    def flags(self) -> list[str]:
        """What the model is loaded with, as options of a command."""
        told: list[str] = []
        for name, value in self.options.items():
            flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
            told += [flag] if value is True or name == "weights" else [flag, str(value)]
        return told

    def again(self, command: str, *options: str | float, **arguments: Any) -> str:
        """A command with its options, or a call with its arguments.

        >>> Origin("demo", {"dtype": "bfloat16"}).at("it's").again("lens", "--order", 0, order=0)
        'jetgraph lens demo \\'it\\'"\\'"\\'s\\' --order 0 --dtype bfloat16'
        >>> Origin(None).at("it's").again("lens", "--order", 0, order=0)
        'jg.lens(model, "it\\'s", order=0)'
        """
        return self.shell(command, *options) or self.python(command.replace("-", "_"), **arguments)

    def shell(self, command: str, *options: str | float, prompts: str = "", other: str | None = None) -> str | None:
        """A command; None where no command says this.

        `prompts` is the option that takes the prompt, where it is no argument; `other` a model beside this one.
        """
        # An option that takes a prompt has nothing to take where there is none.
        given = () if self.own and not prompts else self.prompts
        if self.model is None or self.tokenizer or not all(map(_is_sayable, given)):
            return None
        texts, talks = [str(text) for text in given], [isinstance(text, Chat) for text in given]
        if any(talks) and not all(talks):
            return None
        more = [*map(str, options), *self.flags, *(["--chat"] if any(talks) else [])]
        if prompts:
            more, texts = [*more, *(part for text in texts for part in (prompts, text))], []
        models = [self.model] if other is None else [self.model, other]
        if any(text.startswith("-") for text in texts):
            return shlex.join(["jetgraph", command, *more, "--", *models, *texts])
        return shlex.join(["jetgraph", command, *models, *texts, *more])

    def python(self, function: str, /, *, of: str = "", **arguments: Any) -> str:
        """A call of a function of the library, of the model or of something else."""
        named = [f"{name}={value!r}" for name, value in arguments.items()]
        named += ["tokenizer=tokenizer"] if self.tokenizer else []
        return f"jg.{function}({', '.join([of or self.loaded, *self.inputs, *named])})"

    @property
    def loaded(self) -> str:
        """The model in Python."""
        if self.model is None or not self.options:
            return self.called if self.model is None else repr(self.model)
        return f"jg.load_model({', '.join(self._named)})"

    @property
    def example(self) -> str:
        """The inputs in Python that the model came with."""
        return "model.inputs()" if self.model is None else f"jg.load_model({', '.join(self._named)}).inputs()"

    @property
    def _named(self) -> list[str]:
        return [repr(self.model), *(f"{name}={value!r}" for name, value in self.options.items())]

    @property
    def inputs(self) -> list[str]:
        """The inputs in Python."""
        return [*map(_in_python, self.prompts)]


def _in_python(prompt: str | None) -> str:
    if isinstance(prompt, Chat):
        return f"jg.chat({[dict(turn) for turn in prompt.messages]!r})"
    return "inputs" if prompt is None else repr(prompt)


def _is_sayable(prompt: str | None) -> bool:
    """A command can be given this prompt: a text that stands for itself, or what a user says."""
    if prompt is None:
        return False
    if isinstance(prompt, Chat):
        (first, *more) = prompt.messages
        if more or first["role"] != "user":
            return False
    return prompt != "-" and not prompt.startswith("@")


def _plain(value: Any) -> Any:
    """An option as a text, a number or yes; None for what is none of them."""
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return os.fspath(value) if isinstance(value, os.PathLike) else value if isinstance(value, str | int) else None
