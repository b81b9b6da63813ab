"""How a number of a report is made again: as a command where the model has a name, else as a line of Python."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
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
            given = [self.model, *([] if self.prompt is None else [self.prompt])]
            return command_line(command, given, list(map(str, options)))
        inputs = [] if not self.read else ["inputs" if self.prompt is None else repr(self.prompt)]
        named = [f"{name}={value!r}" for name, value in arguments.items()]
        return f"jg.{command.replace('-', '_')}({', '.join(['model', *inputs, *named])})"


def command_line(command: str, given: Sequence[str], options: Sequence[str] = ()) -> str:
    """A command as a shell takes it; what is given is no option, however it begins.

    >>> command_line("lens", ["demo", "a b"], ["-n", "3"]), command_line("lens", ["demo", "-1"], ["-n", "3"])
    ("jetgraph lens demo 'a b' -n 3", 'jetgraph lens -n 3 -- demo -1')
    """
    hidden = any(text.startswith("-") for text in given)
    return shlex.join(["jetgraph", command, *((*options, "--", *given) if hidden else (*given, *options))])
