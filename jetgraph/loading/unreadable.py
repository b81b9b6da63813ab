"""What is wrong with a checkpoint that transformers could not load, in words that say what to do."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jetgraph.files.writing import is_folder
from jetgraph.loading.request import Options


def of_weights(location: str | None, options: Options) -> str:
    """Which file of weights is damaged or is not there; nothing where all can be opened."""
    if location is None or options.gguf_file is not None:
        return ""
    from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

    files = list(_files(location, options))
    for file, named_by in files:
        if not file.is_file():
            return f"{named_by} names {file.name}, which is not in {file.parent}: get it"
        if said := damage(file):
            return not_whole(file, said)
    if not files and is_folder(location):
        return f"there is no file of weights, such as {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, in {location}: get one"
    return ""


def _files(location: str, options: Options) -> Iterator[tuple[Path, str]]:
    """The files of weights of a checkpoint that are here or should be, and which index names each."""
    from transformers.utils import (
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
        cached_file,
    )

    revision = {} if options.revision is None else {"revision": options.revision}
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        # An index that is odd, transformers has told of.
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            found = cached_file(
                location, name, local_files_only=True, _raise_exceptions_for_missing_entries=False, **revision
            )
            if found is None:
                continue
            file = Path(found)
            shards = [file.name]
            if file.suffix == ".json":
                shards = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
            for shard in shards:
                yield file.with_name(shard), name


def not_whole(file: Path, said: str) -> str:
    """What is told of a damaged file of weights."""
    return f"{file} ({file.stat().st_size:,} bytes) is no whole file of weights ({said}): get it again"


def damage(file: Path) -> str:
    """What is wrong with a file of weights, as far as can be told without reading them; nothing of a whole one."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt"):
                return ""
        except (OSError, SafetensorError) as error:
            return str(error)
    # torch.save writes a zip, whose list of contents is at the end, and once wrote pickles.
    with file.open("rb") as opened:
        pickled = opened.read(2) == b"\x80\x02"
    return "" if pickled or zipfile.is_zipfile(file) else "neither a zip nor a pickle, as torch.save writes them"
