"""Texts of a corpus, one after another, from files and data sets that need not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetgraph.errors import FileError, InputError, MissingExtraError, check, quoted
from jetgraph.files.writing import PIECE, absent, is_file, is_folder, naming, parse_json, read_lines, read_pieces, shown

DATASETS = "datasets:"
"""What begins the name of a data set of Hugging Face's."""

ROWS = 256
"""Rows of a .parquet that are read at once."""


@dataclass(frozen=True)
class Corpus:
    """Texts that are read when they are gone over, from the beginning each time. Made by `open_corpus`."""

    source: str
    """A file, or the name of a data set behind `datasets:`."""
    column: str = "text"
    split: str = "train"
    config: str | None = None

    def __iter__(self) -> Iterator[str]:
        return (text for text, _ in self.walk())

    def walk(self) -> Iterator[tuple[str, float | None]]:
        """Each text, and the share of the source that ends with it; None where that is unknown."""
        return _reader(self.source)(self)

    @property
    def has_rows(self) -> bool:
        """Each text is a row, and not a piece of a file."""
        return self.source.startswith(DATASETS) or Path(self.source).suffix.lower() in COLUMNS

    @property
    def is_short(self) -> bool:
        """It is a text file that is read at once."""
        return not self.has_rows and os.path.getsize(self.source) < PIECE


def open_corpus(
    source: str | os.PathLike[str], *, column: str = "text", split: str = "train", config: str | None = None
) -> Corpus:
    """Texts in a file or a data set, which are read as they are needed, and never all at once.

    Parameters
    ----------
    source
        A text file (UTF-8), of which each MiB, up to the end of a line, is a text; a .jsonl or a .parquet, of which
        each row is one; or `datasets:NAME`, a data set of Hugging Face's, which is streamed.
    column
        Of a .jsonl, a .parquet or a data set, the one that holds the texts. Rows in which it is empty are left out.
    split, config
        Of a data set.

    Returns
    -------
    Corpus
        For `texts=` of `evaluate_lens`, `compare_lenses`, `fit_transport` and `ngram_agreement`.

    Raises
    ------
    FileError
        There is no such file.
    InputError
        A column, a split or a config for what has none.
    MissingExtraError
        `datasets` is not installed, or `pyarrow`.
    """
    check(open_corpus, locals())
    name = os.fspath(source)
    is_set = name.startswith(DATASETS)
    suffix = Path(name).suffix.lower()
    if not is_set and not is_file(name):
        if os.path.exists(name) and not is_folder(name):
            raise FileError(
                f"{shown(name)} is no regular file, and texts are gone over more than once: write them to one"
            )
        raise FileError(f"{absent(name)}. Data sets of Hugging Face's are {DATASETS}NAME")
    if column != "text" and not is_set and suffix not in COLUMNS:
        raise InputError(f"column={quoted(column)} is for {', '.join(COLUMNS)} and data sets: {shown(name)} is a text")
    if (split != "train" or config is not None) and not is_set:
        raise InputError(
            f"split={quoted(split)}, config={quoted(config)} are for {DATASETS}NAME, and {shown(name)} is a file"
        )
    made = Corpus(name, column, split, config)
    _reader(name)
    return made


Walk = Iterator[tuple[str, float | None]]
"""Texts, each with the share of the source that ends with it."""


def _reader(name: str) -> Callable[[Corpus], Walk]:
    """What reads a source.

    Raises
    ------
    MissingExtraError
        A library that it needs is not installed.
    """
    if name.startswith(DATASETS):
        try:
            import datasets  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtraError(f"{quoted(name)} needs datasets: pip install 'jetgraph[scale]'") from None
        return _of_data_set
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise MissingExtraError("reading .parquet needs pyarrow: pip install 'jetgraph[tables]'") from None
    return COLUMNS.get(suffix, _of_pieces)


def _of_pieces(corpus: Corpus) -> Walk:
    read, size = 0, max(1, os.path.getsize(corpus.source))
    for piece in read_pieces(corpus.source):
        read += len(piece.encode())
        yield piece, read / size


def _of_lines(corpus: Corpus) -> Walk:
    read, size = 0, max(1, os.path.getsize(corpus.source))
    for number, line in enumerate(read_lines(corpus.source), start=1):
        read += len(line.encode()) + 1
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, Mapping):
                raise ValueError("a line holds a mapping")
        except ValueError as error:
            raise FileError(f"{shown(corpus.source)} is no .jsonl: line {number}: {error}") from error
        yield from _text(row, corpus, f"line {number}", read / size)


def _of_parquet(corpus: Corpus) -> Walk:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with naming("read", corpus.source), pyarrow.parquet.ParquetFile(corpus.source) as file:
            names = file.schema_arrow.names
            if corpus.column not in names:
                raise FileError(_without(corpus, names, "it"))
            batches = file.iter_batches(ROWS, columns=[corpus.column])
            for number, value in enumerate((value for batch in batches for value in batch.column(0)), start=1):
                share = number / file.metadata.num_rows
                yield from _text({corpus.column: value.as_py()}, corpus, f"row {number}", share)
    except pyarrow.ArrowException as error:
        raise FileError(f"{shown(corpus.source)} is no .parquet: {error}") from error
    except UnicodeDecodeError as error:
        raise FileError(
            f"{shown(corpus.source)}: {corpus.column!r} of row {number} is no UTF-8 text: {error}"
        ) from error


def _of_data_set(corpus: Corpus) -> Walk:
    import datasets  # pyright: ignore[reportMissingImports]

    name, number = corpus.source.removeprefix(DATASETS), 0
    try:
        rows = datasets.load_dataset(name, corpus.config, split=corpus.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _text(row, corpus, f"row {number}", None)
    except FileError:
        raise
    except Exception as error:
        # What it raises, of a stream at any row, is of many kinds: of the hub's, of fsspec's, of its own.
        said = str(error).strip().splitlines() or [type(error).__name__]
        what = f"read {quoted(name)} after row {number}" if number else f"open {quoted(name)}"
        raise FileError(f"datasets cannot {what}: {said[0][:300]}") from error


COLUMNS: Mapping[str, Callable[[Corpus], Walk]] = {".jsonl": _of_lines, ".parquet": _of_parquet}
"""What reads files that have columns, by suffix."""


def _text(row: Mapping[str, Any], corpus: Corpus, where: str, share: float | None) -> Walk:
    """The text of a row, if it has one."""
    if corpus.column not in row:
        raise FileError(_without(corpus, list(row), where))
    text = row[corpus.column]
    if text is not None and not isinstance(text, str):
        raise FileError(
            f"{shown(corpus.source)}: {corpus.column!r} of {where} is {quoted(text)}, which is no text: name the "
            "column of the texts with column="
        )
    if text:
        yield text, share


def _without(corpus: Corpus, names: list[str], where: str) -> str:
    return (
        f"{shown(corpus.source)}: {where} has no column {quoted(corpus.column)}, but {', '.join(map(quoted, names))}: "
        "name the column of the texts with column= (--column)"
    )
