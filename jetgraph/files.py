"""Writing files so that a reader finds the old version or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jetgraph.errors import JetGraphError, quoted


def is_file(path: str | os.PathLike[str]) -> bool:
    """There is such a file; also False for what no file can be called, such as a name that is too long."""
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """The same of a folder."""
    try:
        return os.path.isdir(path)
    except (OSError, ValueError):
        return False


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and those above it, if need be. Raises `JetGraphError` where that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise JetGraphError(f"cannot make the folder {quoted(str(folder))}: {quoted(error)}") from error
    return folder


def write_atomically(file: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Have `write` fill a temporary file beside `file`, then put it in its place; returns `file`.

    The temporary file has the same suffix. Whatever `write` raises, `file` stays as it was and nothing is left over.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> write_atomically(folder / "a.txt", lambda path: path.write_text("done")).read_text()
    'done'
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    target = Path(file)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files for their owner alone; what we write is meant for whom the folder is.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
