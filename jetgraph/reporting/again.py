"""How a number of a report is made again: as a command where the model has a name, else as a line of Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What a report is about, as its reader gives it."""

    model: str | None
    """The name by which the model is loaded; None where it was given as it is."""
    prompt: str | None = None
    """The text; None where inputs were given."""
    read: bool = False
    """The application reads inputs."""

    def at(self, prompt: Any) -> Origin:
        """The same, on inputs."""
        return replace(self, prompt=prompt if isinstance(prompt, str) else None, read=True)

    def again(self, command: str, *options: str | float, **arguments: Any) -> str:
        """A command with its options, or a call with its arguments.

        >>> Origin("demo", "it's", True).again("lens", "--order", 0, order=0)
        'jetgraph lens demo \\'it\\'"\\'"\\'s\\' --order 0'
        >>> Origin(None, "it's", True).again("lens", "--order", 0, order=0)
        'jg.lens(model, "it\\'s", order=0)'
        """
        if self.model is not None and (self.prompt is not None or not self.read):
            given = [self.model, *([] if self.prompt is None else [self.prompt]), *map(str, options)]
            return shlex.join(["jetgraph", command, *given])
        inputs = [] if not self.read else ["inputs" if self.prompt is None else repr(self.prompt)]
        named = [f"{name}={value!r}" for name, value in arguments.items()]
        return f"jg.{command.replace('-', '_')}({', '.join(['model', *inputs, *named])})"
