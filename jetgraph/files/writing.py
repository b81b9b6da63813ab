"""Writing files so that a reader finds the old version or the new one, never half of one; reading texts and JSON."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jetgraph.errors import FileError, quoted


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
    """Make a folder and those above it, if need be.

    Raises
    ------
    FileError
        That cannot be.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot make the folder {shown(folder)}: {reason(error)}") from error
    return folder


def write_text(file: str | os.PathLike[str], text: str) -> Path:
    """Put a text in a file's place, as `write_atomically` does, with its own ends of lines."""
    return write_atomically(file, lambda path: path.write_text(text, encoding="utf-8", newline=""))


def write_atomically(file: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Have `write` fill a temporary file beside `file`, then put it in its place; returns `file`.

    The temporary file has the same suffix. Whatever `write` raises, `file` stays as it was and nothing is left over. A
    link stays one, and what it points to is replaced; a file that is there keeps its mode. What is no regular file (a
    pipe, `/dev/stdout`) gets the finished content: writers of tables remove what they fail to fill, a device as well.

    Raises
    ------
    FileError
        The system refuses.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> write_atomically(folder / "a.txt", lambda path: path.write_text("done")).read_text()
    'done'
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    try:
        target, suffix = Path(os.path.realpath(file)), Path(file).suffix
    except ValueError as error:
        raise FileError(f"cannot write {shown(file)}: no file has such a name ({error})") from error
    with naming("write", file):
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.exists() and not target.is_file() and not target.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder, f"whole{suffix}")
                write(whole)
                target.write_bytes(whole.read_bytes())
            return Path(file)
        temporary = fill_beside(target, write, suffix)
        try:
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return Path(file)


def fill_beside(target: Path, write: Callable[[Path], Any], suffix: str | None = None) -> Path:
    """A new file beside `target`, which is to take its place, filled by `write`; none is left where that raises.

    It has the mode of `target`, or what the umask leaves of a new file's. Its name begins with a dot, see `LEFTOVER`,
    and ends in `suffix`, which is that of `target` unless a link has another.
    """
    ending = target.suffix if suffix is None else suffix
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(6)}{ending}")
    mode = stat.S_IMODE(target.stat().st_mode) if target.is_file() else None
    # The system applies the umask, which nobody can read without setting it for all threads. What is there may be kept
    # from others, and so is what comes in its place, from the start.
    allowed = 0o666 if mode is None else mode | stat.S_IRUSR | stat.S_IWUSR
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, allowed))
    try:
        final = stat.S_IMODE(temporary.stat().st_mode) if mode is None else mode
        write(temporary)
        # Some writers put a file of their own in its place, as safetensors does, which nobody else may read.
        temporary.chmod(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


LEFTOVER = r"\.{stem}\.[0-9a-f]{{12}}{suffix}"
"""Names of the files that a process which was killed has left beside one called stem + suffix."""

OLD = 60.0
"""Seconds after which nobody writes any more to a file that has not changed."""


def clear_leftovers(folder: Path, stem: str, suffix: str) -> None:
    """Remove what killed processes have left of files in a folder, with a stem and a suffix that are patterns."""
    left = re.compile(LEFTOVER.format(stem=stem, suffix=suffix) + r"(\.\w+)?")
    for path in folder.iterdir():
        if left.fullmatch(path.name):
            with contextlib.suppress(OSError):
                within = [path, *path.iterdir()] if path.is_dir() else [path]
                if time.time() - max(one.stat().st_mtime for one in within) > OLD:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def naming(what: str, file: str | os.PathLike[str]) -> Iterator[None]:
    """Refusals of the system, and texts that are none in Unicode, as a `FileError`: in one line, what could not be done
    with which file, and why.
    """
    try:
        yield
    except FileError:
        raise
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise FileError(f"cannot {what} {shown(file)}: {reason(error)}") from error


def shown(file: str | os.PathLike[str]) -> str:
    """A file's name as a message shows it: in one line, the middle of a long one left out.

    >>> shown("a.csv"), len(shown("a" * 1000))
    ('a.csv', 161)
    """
    return quoted(os.fspath(file))[1:-1]


def absent(file: str | os.PathLike[str]) -> str:
    """What is said of a text file that is not there: that it is a folder, which name may be meant, or where it is not.

    >>> absent("nowhere/at/all.txt"), absent(os.curdir)
    ('there is no text file nowhere/at/all.txt: there is no folder nowhere/at', '. is a folder, and no text file')
    """
    name = os.fspath(file)
    if is_folder(name):
        return f"{shown(name)} is a folder, and no text file"
    said = f"there is no text file {shown(name)}"
    if name.startswith("@") and is_file(name[1:]):
        return f"{said}: write {shown(name[1:])}, without @"
    folder, own = os.path.split(name)
    if not is_folder(folder or os.curdir):
        return f"{said}: there is no folder {shown(folder)}"
    with contextlib.suppress(OSError):
        if close := get_close_matches(own, os.listdir(folder or os.curdir), n=1, cutoff=0.75):
            return f"{said}, but {shown(os.path.join(folder, close[0]))}"
    return f"{said} in {shown(os.path.abspath(folder))}"


def reason(error: BaseException) -> str:
    """What went wrong, in one line and without the name of a temporary file.

    >>> reason(FileNotFoundError(2, "No such file or directory", "/tmp/.a.1234.txt"))
    'No such file or directory'
    """
    text = getattr(error, "strerror", None) or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300]


def read_text(file: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file; a byte-order mark at its start is no part of it.

    Raises
    ------
    FileError
        A text in another encoding, and a file that cannot be read.
    """
    with naming("read", file):
        content = Path(file).read_bytes()
    return _decoded(_begun(content, file), file)


PIECE = 2**20
"""Bytes of a text that are read at once."""


def read_pieces(file: str | os.PathLike[str]) -> Iterator[str]:
    """The text of a UTF-8 file, `PIECE` bytes at a time, each piece up to the end of a line where there is one.

    Raises
    ------
    FileError
        As `read_text`.
    """
    with naming("read", file), open(file, "rb") as opened:
        rest, line = b"", 1
        for number, content in enumerate(iter(partial(opened.read, PIECE), b"")):
            whole = rest + (_begun(content, file) if number == 0 else content)
            end = len(whole) if len(content) < PIECE else _end_of_line(whole)
            piece, rest = whole[:end], whole[end:]
            yield _decoded(piece, file, line)
            line += piece.count(b"\n")
        if rest:
            yield _decoded(rest, file, line)


def read_lines(file: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a UTF-8 file one after the other, without their ends.

    Raises
    ------
    FileError
        As `read_text`.
    """
    with naming("read", file), open(file, "rb") as opened:
        for number, line in enumerate(opened, start=1):
            whole = _begun(line, file) if number == 1 else line
            yield from _decoded(whole, file, number).removesuffix("\n").split("\n")


def _end_of_line(content: bytes) -> int:
    """Where a piece ends: after a line, a word where it is one line, or a letter."""
    for mark in (b"\n", b" "):
        if (end := content.rfind(mark)) >= 0:
            return end + 1
    end = len(content) - 1
    while end > 0 and content[end] & 0xC0 == 0x80:
        end -= 1
    return end or len(content)


_PACKED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"\xfd7zXZ", "xz"))
"""How files begin that are compressed."""


def _begun(content: bytes, file: str | os.PathLike[str]) -> bytes:
    """The beginning of a UTF-8 file without what is no part of its text there."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileError(f"{os.fspath(file)} is no UTF-8 text: it begins as UTF-16 does. Save it as UTF-8")
    for sign, packer in _PACKED:
        if content.startswith(sign):
            raise FileError(f"{os.fspath(file)} is no UTF-8 text: it is compressed by {packer}. Unpack it first")
    return content.removeprefix(codecs.BOM_UTF8)


def _decoded(content: bytes, file: str | os.PathLike[str], line: int = 1) -> str:
    """A piece of a UTF-8 file as text, which begins in some line."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        place = line + content.count(b"\n", 0, error.start)
        raise FileError(
            f"{os.fspath(file)} is no UTF-8 text: line {place} holds the byte {content[error.start]:#04x} "
            f"({error.reason}). Save it as UTF-8"
        ) from error
    if "\0" in text:
        raise FileError(f"{os.fspath(file)} is no UTF-8 text: it holds zero bytes, as UTF-16 does. Save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises
    ------
    ValueError
        Whatever is wrong with it, nested too deeply included.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
