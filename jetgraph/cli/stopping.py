"""Ctrl-C: one line, and the exit code that shells give it."""

from __future__ import annotations

import sys
from typing import NoReturn


def interrupted(how: str = "") -> NoReturn:
    """Say that a command was stopped, and how it goes on, and stop."""
    from jetgraph.export.waiting import overwrites

    clear = "\r\x1b[2K" if overwrites() else ""
    sys.stderr.write(f"{clear}interrupted: {how or 'no output was written'}\n")
    sys.exit(130)
