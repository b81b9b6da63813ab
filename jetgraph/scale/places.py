"""Where states of jobs are: what they may be called, and whether there is one. Asked before anything is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jetgraph.errors import FileError
from jetgraph.files.targets import check_target
from jetgraph.files.writing import clear_leftovers, is_file, is_folder, shown

FILES = (".safetensors", ".parquet")
"""Suffixes of states: a file that is written anew each time; a folder of parts, to which what has come in is added."""

HEAD = "_state.safetensors"
"""In such a folder, all but the records, and the names of the parts that belong to it; readers of tables pass it by."""


def check_state(file: str | os.PathLike[str]) -> Path:
    """Check a state that is to be written.

    Raises
    ------
    InputError, FileError, MissingExtraError
        As `check_target`; and a folder that is there and holds something else.
    """
    target = Path(file)
    if target.suffix.lower() != ".parquet" or not is_folder(target):
        return check_target(target, FILES)
    check_target(target / "part.parquet", FILES)
    # Hidden ones may be what a job that was killed has left of its first write.
    if not is_file(target / HEAD) and any(not one.name.startswith(".") for one in target.iterdir()):
        raise FileError(f"cannot write {shown(target)}: it is a folder, and no state of a job")
    return target


def head_of(file: Path) -> Path:
    """The file of a state that is written last."""
    return file / HEAD if file.suffix.lower() == ".parquet" else file


def clear(file: Path) -> None:
    """Remove what processes that were killed while they wrote a state have left of it."""
    if is_folder(file):
        clear_leftovers(file, ".*", r"\.(safetensors|parquet)")
    elif is_folder((target := Path(os.path.realpath(file))).parent):
        clear_leftovers(target.parent, re.escape(target.stem[:40]), re.escape(file.suffix))


def is_state(file: Path) -> bool:
    """A state was written there."""
    return is_file(head_of(file))
