"""Files that are to be written: what cannot be is refused before work starts, in the same words on every way."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from jetgraph.errors import FileError, InputError, MissingExtraError, quoted
from jetgraph.files.writing import is_folder, reason, shown

TENSORS = (".safetensors",)
"""Suffixes of files of tensors."""

_NEEDED = {
    ".parquet": ("pyarrow", "tables"),
    **dict.fromkeys((".png", ".svg", ".pdf"), ("matplotlib", "plot")),
}
"""Module that writes a suffix, and the extra that brings it."""


def check_target(file: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Check a file that is to be written.

    Parameters
    ----------
    file
        Its name; a link stands for what it leads to.
    suffixes
        Those of the formats that can be written.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        Another suffix.
    FileError
        A folder that is not there or not writable, one in the file's place, or a file that is read-only.
    MissingExtraError
        A library that is not installed.
    """
    target = Path(file)
    suffix = target.suffix.lower()
    if suffix not in suffixes:
        raise InputError(
            f"{quoted(target.name)} names no format: end it in one of {', '.join(dict.fromkeys(suffixes))}"
        )
    _check_place(target)
    module, extra = _NEEDED.get(suffix, ("json", ""))
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"writing {suffix} needs {module}: pip install 'jetgraph[{extra}]'")
    return target


def check_folder(folder: str | os.PathLike[str], option: str) -> Path:
    """Check a folder that an option names, in which files are to be written, and which is made where there is none.

    Raises
    ------
    FileError
        A file in its place, and a folder that cannot be written to, or made.
    """
    target = Path(folder)
    try:
        above = next(one for one in (target, *target.absolute().parents) if os.path.lexists(one))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot make the folder {shown(target)}: {reason(error)}") from error
    if not is_folder(above):
        raise FileError(f"{shown(above)} is a file: name a folder with {option}")
    if not os.access(above, os.W_OK):
        raise FileError(f"cannot write into the folder {shown(above)}: name another with {option}")
    return target


def _check_place(target: Path) -> None:
    try:
        is_link = stat.S_ISLNK(os.lstat(target).st_mode)
        folder = Path(os.path.realpath(target)).parent
    except (FileNotFoundError, NotADirectoryError):
        is_link, folder = False, Path(os.path.realpath(target)).parent
    except (OSError, ValueError) as error:
        raise FileError(f"cannot write {shown(target)}: {reason(error)}") from error
    if not is_folder(folder):
        raise FileError(
            f"cannot write {shown(target)}: the folder {shown(folder if is_link else target.parent)} does not exist"
        )
    if is_folder(target):
        raise FileError(f"cannot write {shown(target)}: it is a folder")
    if target.is_file() and not os.access(target, os.W_OK):
        # The system lets it be replaced, but who has made it so wants to keep it.
        raise FileError(f"cannot write {shown(target)}: it is read-only")
    # What is no regular file, such as a pipe, is filled where it is.
    is_special = target.exists() and not target.is_file()
    if not is_special and not os.access(folder, os.W_OK):
        raise FileError(f"cannot write {shown(target)}: its folder is not writable")
