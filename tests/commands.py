"""Running jetgraph's commands in the tests' own process."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any
from unittest import mock

from typer.main import get_command
from typer.testing import CliRunner

from jetgraph.cli import app


def run(arguments: Sequence[str], **options: Any):
    """What a command ends in. Typer makes all commands anew for each run, which takes longer than most of them."""
    with mock.patch("typer.testing._get_command", _made):
        return CliRunner(**options).invoke(app, arguments)


_made = cache(get_command)


def invoke(*arguments: object):
    return run([str(argument) for argument in arguments], env={"HF_HUB_OFFLINE": "1"})


def succeed(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def commands() -> dict[str, Any]:
    """All commands by the words that call them, such as `transport fit`."""
    group = _made(app)
    return dict(_commands(group, group.context_class(group)))


def _commands(group: Any, context: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "commands"):
            yield from _commands(command, context, f"{name} ")
        else:
            yield f"{before}{name}", command


def examples(command: Any) -> list[list[str]]:
    """What the help of a command, or of all of them, gives as examples: the words after `jetgraph`."""
    lines = (line.strip() for line in (command.epilog or "").splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith("jetgraph ")]
