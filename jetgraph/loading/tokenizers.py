"""Tokenizers of checkpoints, and why one that is there cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jetgraph.errors import LoadError, quoted
from jetgraph.files.writing import is_folder
from jetgraph.loading.quiet import first_sentence, own_code, quiet
from jetgraph.loading.request import Options
from jetgraph.prompts import check_tokenizer

_FILES = ("tokenizer.json", "tokenizer_config.json")
"""transformers writes both of every tokenizer."""


def tokenizer_of(location: str | None, options: Options, own: Any = None) -> Any | None:
    """The tokenizer that options name, or give; else the one of a checkpoint, or a model's own.

    Raises
    ------
    LoadError
        There is none by the name that is given.
    """
    if options.tokenizer is None:
        return own if location is None else _tokenizer(location, options.source())
    if not isinstance(options.tokenizer, str | os.PathLike):
        check_tokenizer(options.tokenizer)
        return options.tokenizer
    named = os.fspath(options.tokenizer)
    trusted = bool(options.trust_remote_code)
    tokenizer = _tokenizer(named, {"trust_remote_code": trusted})
    if tokenizer is None:
        if said := unread(named, trusted):
            raise LoadError(f"the tokenizer {quoted(named)} cannot be read: {said}")
        raise LoadError(f"there is no tokenizer {quoted(named)}: give a folder or an id of the Hugging Face hub")
    return tokenizer


def _tokenizer(location: str, source: dict[str, Any]) -> Any | None:
    """The tokenizer of a checkpoint, None where it has none that can be loaded."""
    try:
        return _loaded(location, source)
    except Exception:
        # transformers may raise anything where there are no files, or odd ones; a prompt then says what `unread` does.
        return None


def _loaded(location: str, source: dict[str, Any]) -> Any | None:
    import transformers

    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **source)
    # For some types it makes an empty one, with special tokens only, where there are no files.
    return tokenizer if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) else None


def unread(location: str, trusted: bool) -> str:
    """Why the tokenizer of a folder cannot be read, where its files are there; nothing where they are not."""
    if not is_folder(location) or not any(Path(location, file).is_file() for file in _FILES):
        return ""
    try:
        _loaded(location, {"trust_remote_code": trusted})
    except Exception as error:
        return own_code(error) or first_sentence(error)
    return ""
