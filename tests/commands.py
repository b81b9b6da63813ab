"""Running jetgraph's commands in the tests' own process."""

from __future__ import annotations

from typer.testing import CliRunner

from jetgraph.cli import app


def invoke(*arguments: object):
    return CliRunner(env={"HF_HUB_OFFLINE": "1"}).invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout
