"""Texts and tensors as windows on which a model is looked at, one run of them after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from jetgraph.applications.lenses.points import output_shape
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.errors import InputError
from jetgraph.loading import Loaded, load_model
from jetgraph.prompts import encode, texts_of
from jetgraph.scale.shards import Glance, Parts, estimating
from jetgraph.scale.texts import Corpus, open_corpus

Texts = str | os.PathLike[str] | Sequence[str] | Tensor | Corpus
"""What a model is looked at on: texts, a file of them, or inputs."""

POOLS = 1024
"""The most units that are resampled for an interval: of more windows, so many neighbours are one as makes no more."""

TOGETHER = 8
"""Batches of a stream of windows that are looked at together, so that there are windows of one length among them."""

T = TypeVar("T")


class Cursor(Generic[T]):
    """Items that can only be gone over, a run of them at a time: going back starts anew."""

    def __init__(self, begin: Callable[[], Iterator[T]]) -> None:
        self._begin = begin
        self._rest = begin()
        self._at = 0

    def take(self, start: int, stop: int) -> list[T]:
        """The items from one number up to another, or to the end."""
        if start < self._at:
            self._rest, self._at = self._begin(), 0
        taken = list(islice(self._rest, start - self._at, stop - self._at))
        self._at = stop
        return taken


@dataclass(frozen=True, eq=False)
class Windows:
    """Inputs of a model one after another, of which none has to be in memory before it is looked at."""

    begin: Callable[[], Iterator[Tensor]]
    """Goes over them, each time from the first on."""
    number: int
    tokens: int
    """In all of them; of inputs that are no tokens, as many as there are inputs."""
    longest: int
    """The first dimension of the longest one."""
    digest: str
    sorted: bool
    """Those of one shape stand together."""
    share: float = 1.0
    """Which part of all that is looked at they are: less than all where a job is estimated, see `_glanced`."""

    @classmethod
    def of(cls, windows: Sequence[Tensor]) -> Windows:
        """Windows that are in memory, those of one shape together."""
        groups: dict[tuple[int, ...], list[Tensor]] = {}
        for window in windows:
            groups.setdefault(tuple(window.shape), []).append(window)
        together = [window for group in groups.values() for window in group]
        return cls.counted(partial(iter, together), is_sorted=True)

    @classmethod
    def counted(cls, begin: Callable[[], Iterator[Tensor]], *, is_sorted: bool = False, share: float = 1.0) -> Windows:
        """Windows that are gone over once to know how many there are, and what tells them apart."""
        digest, number, tokens, longest = sha256(), 0, 0, 0
        for window in _as_of_all(begin(), share):
            number += 1
            digest.update(repr((tuple(window.shape), window.dtype)).encode())
            # What has no numbers in rows is refused where it becomes an input.
            if window.layout is torch.strided and not (window.is_meta or window.is_quantized or window.is_nested):
                numbers = torch.view_as_real(window) if window.is_complex() else window
                digest.update(numbers.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            tokens += _tokens(window)
            longest = max(longest, len(window))
        return cls(begin, number, tokens, longest, digest.hexdigest(), is_sorted, share)

    def where(self, holds: Callable[[Tensor], bool]) -> Windows:
        """Those for which something holds."""
        return self._of(lambda: (one for one in self.begin() if holds(one)))

    def every(self, shard: tuple[int, int]) -> Windows:
        """Every nth from the ith on."""
        return self._of(lambda: islice(self.begin(), shard[0], None, shard[1]))

    def _of(self, begin: Callable[[], Iterator[Tensor]]) -> Windows:
        return Windows.counted(begin, is_sorted=self.sorted, share=self.share)

    def at(self, chosen: Iterable[int]) -> list[Tensor]:
        """Some by their numbers, in ascending order."""
        numbers = set(chosen)
        return [window for number, window in enumerate(_as_of_all(self.begin(), self.share)) if number in numbers]

    def pool(self) -> int:
        """How many neighbours are one unit that is resampled."""
        return -(-self.number // POOLS)

    def run(self, batch: int) -> int:
        """How many windows are looked at together, in batches of windows of one shape: a multiple of `pool`."""
        pool, wanted = self.pool(), batch if self.sorted else TOGETHER * batch
        return pool * max(1, -(-min(wanted, self.number) // pool))

    def parts(self, run: int, of_each: int, name: str) -> Parts:
        """What a run of so many of them is made of, where each has so many parts."""
        return Parts(name, lambda unit: of_each * max(0, min(run, self.number - unit * run)))

    def units(self, batch: int) -> tuple[int, Glance | None]:
        """How many runs there are; and which of them, where these windows are a part of what is to be looked at."""
        there = -(-self.number // self.run(batch))
        if self.share == 1:
            return there, None
        whole = replace(self, number=round(self.number / self.share))
        return -(-whole.number // whole.run(batch)), Glance(there, self.share)


def _as_of_all(windows: Iterator[Tensor], share: float) -> Iterator[Tensor]:
    """The windows; who estimates what the job takes is told how much longer it is to go over all of which they are a
    share.
    """
    start = time.perf_counter()
    yield from windows
    if share < 1 and (estimate := estimating()) is not None:
        estimate.longer((time.perf_counter() - start) * (1 / share - 1))


def _tokens(window: Tensor) -> int:
    return window.shape[0] if window.dim() == 1 else 1


def alike(windows: Sequence[Tensor], size: Callable[[Tensor], int]) -> Iterator[list[int]]:
    """Windows of one shape by their places, as many at a time as there may be of such a window."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, window in enumerate(windows):
        groups.setdefault(tuple(window.shape), []).append(place)
    for group in groups.values():
        most = size(windows[group[0]])
        yield from (group[start : start + most] for start in range(0, len(group), most))


def corpus(model: Model, texts: Texts, tokens: int, window: int, tokenizer: Any | None) -> tuple[Subject, Windows]:
    """The traced model and the windows on which it is looked at.

    Of what is in memory, and of a text file that is read at once, they are taken at even distances where there are more
    than hold `tokens`; of a longer file or a data set, whose end is not known, they are the first ones.
    """
    # What cannot be read is said before a model is loaded.
    read = _opened(texts)
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if isinstance(read, Tensor):
        if read.dim() < 2:
            raise InputError(f"inputs as a tensor are [windows, length] and more, not of shape {list(read.shape)}")
        windows = Windows.of(list(read))
    else:
        own = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
        windows = _read(read, tokens, window, own)
    if not windows.number:
        raise InputError("there is no text to look at: give one of two tokens or more")
    example = None
    # A model of which all is known is not loaded to be asked.
    described = isinstance(model, Loaded) and model.is_described
    module = model.model if isinstance(model, Loaded) and not described else model
    if isinstance(module, nn.Module) and not hasattr(module, "config"):
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        first = next(windows.begin())
        example = torch.stack(list(islice((one for one in windows.begin() if one.shape == first.shape), 2))).to(device)
    one = subject(model, example, tokenizer)
    if not isinstance(read, Tensor):
        one.reader.check_length(windows.longest, "longest piece of text", f"window={window}")
        return one, windows
    rows = output_shape(one, one.inputs(next(windows.begin())[None]))
    number = -(-tokens // (rows[1] if len(rows) == 3 else 1))
    return one, windows if number >= windows.number else Windows.of([read[i] for i in _even(len(read), number)])


def _opened(texts: Texts) -> Tensor | Corpus | list[str]:
    """What is gone over: a file that is read at once is a text in memory."""
    if isinstance(texts, os.PathLike):
        is_file = os.path.isfile(texts)
        # What is no file is refused in the words that are there for it.
        texts = open_corpus(texts) if is_file else texts
    if isinstance(texts, Corpus):
        return list(texts) if texts.is_short else texts
    return texts if isinstance(texts, Tensor) else texts_of(texts)


def _read(texts: Corpus | list[str], tokens: int, window: int, tokenizer: Any | None) -> Windows:
    """Windows of texts that hold about as many tokens."""
    if isinstance(texts, Corpus):
        if estimating() is not None:
            return _glanced(texts, tokens, window, tokenizer)
        return Windows.counted(lambda: _first(_cut(texts, tokenizer, window), tokens))
    cut = list(_cut(texts, tokenizer, window))
    return Windows.of([cut[i] for i in spread(len(cut), sum(map(len, cut)), tokens)])


def _glanced(texts: Corpus, tokens: int, window: int, tokenizer: Any | None) -> Windows:
    """The first windows of a text, which say what all of them cost."""
    sizes: list[int] = []
    read: float | None = 1.0

    def some() -> Iterator[str]:
        nonlocal read
        for text, share in texts.walk():
            yield text
            # The windows of a text are all there when the next one is asked for.
            if len(sizes) >= POOLS:
                read = share
                return

    sizes += (len(one) for one in _cut(some(), tokenizer, window))
    whole = min(tokens, sum(sizes) / read) if read else tokens
    begin = lambda: islice(_first(_cut(texts, tokenizer, window), tokens), POOLS)  # noqa: E731
    return Windows.counted(begin, share=min(1.0, sum(sizes[:POOLS]) / max(1, whole)))


def _first(windows: Iterator[Tensor], tokens: int) -> Iterator[Tensor]:
    """As many as hold some tokens."""
    for window in windows:
        yield window
        tokens -= len(window)
        if tokens <= 0:
            return


def _cut(texts: Iterable[str], tokenizer: Any | None, window: int) -> Iterator[Tensor]:
    """Windows of ids, at least two tokens long."""
    for text in texts:
        ids = encode(tokenizer, text)
        pieces = (ids[start : start + window] for start in range(0, len(ids), window))
        yield from (torch.tensor(piece, dtype=torch.long) for piece in pieces if len(piece) > 1)


def spread(number: int, total: int, tokens: int) -> list[int]:
    """Of so many windows with `total` tokens those at even distances, about as many as hold `tokens` of them."""
    return _even(number, -(-tokens * number // total)) if number else []


def _even(total: int, number: int) -> list[int]:
    return [i * total // number for i in range(number)] if number < total else list(range(total))
