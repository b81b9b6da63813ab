"""Running jetgraph's commands in the tests' own process."""

from __future__ import annotations

from collections.abc import Sequence
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
