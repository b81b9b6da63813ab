"""Files: replaced as a whole, where and as they were; and read whatever their encoding."""

from __future__ import annotations

import os
import pathlib
import resource
import stat
import threading
from collections.abc import Iterator

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import nn

import jetgraph as jg
from jetgraph.files.targets import check_target
from jetgraph.files.writing import parse_json, read_text, write_atomically
from jetgraph.views.style import save_figure


def mode(file: pathlib.Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_new_files_follow_the_umask_and_nobody_sets_it(
    umask: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is the process's own: a thread that sets it for a moment sets it for all others.
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    files = [tmp_path / f"{number}.txt" for number in range(8)]
    threads = [
        threading.Thread(target=write_atomically, args=(file, lambda part: part.write_text("x"))) for file in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert [mode(file) for file in files] == [0o640] * 8


def test_writers_that_put_a_file_of_their_own_in_its_place(umask: int, tmp_path: pathlib.Path) -> None:
    """As safetensors does, with a file that nobody else may read."""
    for name in ("new", "there"):
        file = tmp_path / f"{name}.safetensors"
        if name == "there":
            file.touch()
            file.chmod(0o604)
        write_atomically(file, lambda part: save_file({"w": torch.zeros(2)}, part))
        assert mode(file) == (0o640 if name == "new" else 0o604)
    jg.save(
        jg.compile(jg.expand(jg.trace(nn.Sequential(nn.Linear(2, 2)).eval(), torch.ones(2, 2), dynamic=False))),
        tmp_path / "saved",
    )
    assert {mode(file) for file in (tmp_path / "saved").iterdir()} == {0o640}


@pytest.mark.parametrize("kept", [0o600, 0o664, 0o444, 0o755])
def test_a_file_that_is_there_keeps_its_mode(kept: int, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("old")
    file.chmod(kept)
    seen: list[int] = []

    def write(part: pathlib.Path) -> None:
        seen.append(mode(part))
        part.write_text("new")

    write_atomically(file, write)
    assert (file.read_text(), mode(file)) == ("new", kept)
    # Nor is it open to others on the way.
    assert seen[0] & 0o077 & ~kept == 0


def test_a_link_stays_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "far").mkdir()
    for target in (tmp_path / "far" / "there.csv", tmp_path / "far" / "new.csv"):
        link = tmp_path / f"to-{target.name}"
        link.symlink_to(os.path.relpath(target, tmp_path))
        write_atomically(link, lambda part: part.write_text("new"))
        assert link.is_symlink()
        assert target.read_text() == "new"
    assert sorted(file.name for file in (tmp_path / "far").iterdir()) == ["new.csv", "there.csv"]
    again = tmp_path / "to-link.csv"
    again.symlink_to("to-new.csv")
    write_atomically(again, lambda part: part.write_text("newer"))
    assert (tmp_path / "far" / "new.csv").read_text() == "newer"


def test_a_pipe_is_written_to(tmp_path: pathlib.Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, lambda part: part.write_text("through"))
    reader.join()
    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_writers_never_touch_a_device(tmp_path: pathlib.Path) -> None:
    """They choose a format by the suffix, and some remove a file that they could not fill: as root, `/dev/full`."""
    link = tmp_path / "null.png"
    link.symlink_to("/dev/null")
    names: list[pathlib.Path] = []

    def write(part: pathlib.Path) -> None:
        names.append(part)
        part.write_text("picture")

    assert write_atomically(link, write) == link
    assert names[0].suffix == ".png"
    assert not names[0].exists()
    assert stat.S_ISCHR(link.stat().st_mode)


def test_a_link_says_the_format(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "blob"
    (tmp_path / "a.png").symlink_to(target)
    names: list[pathlib.Path] = []
    write_atomically(tmp_path / "a.png", lambda part: (names.append(part), part.write_text("picture")))
    assert names[0].suffix == ".png"
    assert target.read_text() == "picture"


def _figure() -> Figure:
    figure = Figure()
    figure.subplots().set_title("a title")
    return figure


@pytest.mark.parametrize("kind", ["text", "tensors", "png", "svg", "pdf"])
def test_what_the_system_refuses_is_told_with_the_file(kind: str, tmp_path: pathlib.Path) -> None:
    """A disk that is full, as far as one can have that: the system lets no file grow beyond a limit."""
    file = tmp_path / f"a.{kind if len(kind) == 3 else 'safetensors'}"
    file.write_text("old")
    kinds = {
        "text": lambda file: write_atomically(file, lambda part: part.write_text("x" * 5000)),
        "tensors": lambda file: write_atomically(file, lambda part: save_file({"w": torch.zeros(50_000)}, part)),
    }
    write = kinds.get(kind, lambda file: save_figure(_figure(), file))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(jg.FileError, match=r"^cannot write .*a\.\w+: .*File too large[^\n]*$"):
            write(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_read_only_is_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would let a file be replaced in whose folder one may write; root may write to all."""
    file = tmp_path / "a.csv"
    file.write_text("old")
    assert check_target(file, (".csv",)) == file
    monkeypatch.setattr(os, "access", lambda place, mode: pathlib.Path(place) != file)
    with pytest.raises(jg.FileError, match=r"^cannot write .*a\.csv: it is read-only$"):
        check_target(file, (".csv",))


@pytest.mark.parametrize(
    ("name", "reason"), [("gone/a.txt", "No such file"), ("folder", "Is a directory"), ("loop", "Too many levels")]
)
def test_places_that_cannot_be_written(name: str, reason: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(jg.FileError, match=f"cannot write .*{name}: {reason}"):
        write_atomically(tmp_path / name, lambda part: part.write_text("x"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "loop"]


def test_long_names(tmp_path: pathlib.Path) -> None:
    file = tmp_path / ("n" * 250 + ".txt")
    assert write_atomically(file, lambda part: part.write_text("x")).read_text() == "x"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfw\xc3\xb6rd\r\nnext\rlast")
    assert read_text(tmp_path / "a.txt") == "w\u00f6rd\nnext\nlast"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("word".encode("utf-16"), "begins as UTF-16 does"),
        ("word".encode("utf-16-be"), "zero bytes"),
        ("word".encode("utf-32"), "begins as UTF-16 does"),
        ("w\u00f6rd".encode("latin-1"), "invalid"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "UTF-32", "Latin-1"],
)
def test_other_encodings_are_told(content: bytes, reason: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(jg.FileError, match=f"a.txt is no UTF-8 text: .*{reason}.*Save it as UTF-8"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(jg.FileError, match=r"cannot read .*b\.txt: No such file"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5000, "\ufeff{}"])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        parse_json(text)
