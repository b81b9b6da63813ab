"""Values of deferred tensors within a bound of memory: read when they are asked for, the last used kept.

What is held is counted by the memory itself, not by who names it: a value counts until its storage is freed, so an
operator that still computes with a weight that has left the shelf counts too. While an operator runs, a thread reads
what `ahead` has said comes next.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from jetgraph.errors import BudgetError, big


class Source(Protocol):
    """What a value is made from."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def nbytes(self) -> int:
        """How much its value takes."""
        ...

    def make(self) -> Tensor:
        """The value, in memory of its own."""
        ...


LONG, PATIENCE = 2**28, 5.0
"""Bytes of a pass that may take long, and seconds before it is told how far it has come."""

_shelves: weakref.WeakSet[Shelf] = weakref.WeakSet()


def bytes_read() -> int:
    """What the shelves of this process have read from files so far."""
    return sum(shelf.read for shelf in _shelves)


class Shelf:
    """The values of sources that were used last, in `memory` bytes together with those that are still in use."""

    def __init__(self, memory: int, bars: Callable[..., Any] | None = None) -> None:
        self.memory = memory
        self._bars = bars
        """Makes what shows how far a pass has come, as tqdm does; None shows nothing."""
        self._bar: Any = None
        self._asked = 0
        """Bytes of the pass that have been asked for."""
        self.largest = 0
        """Bytes that the largest of all values takes while it is made."""
        self.peak = 0
        """The most bytes that were live at once."""
        self.read = 0
        """Bytes that were read from files so far."""
        self._made = 0
        self._freed: deque[int] = deque()
        # Finalizers run wherever a value is dropped, also under the lock: they only append.
        self._lock = threading.RLock()
        self._held: OrderedDict[Source, Tensor] = OrderedDict()
        self._early: set[Source] = set()
        """Held, and not asked for yet."""
        self._upcoming: deque[Source] = deque()
        self._pending: tuple[Source, Future[None]] | None = None
        _shelves.add(self)

    @property
    def live(self) -> int:
        """Bytes of values that are held, or still in use."""
        while self._freed:
            self._made -= self._freed.popleft()
        return self._made

    def value(self, source: Source) -> Tensor:
        """The value of a source, which is held from now on as long as there is room.

        Raises
        ------
        BudgetError
            It does not fit beside what is in use.
        """
        self._wait_for(source)
        with self._lock:
            held = self._held.get(source)
            if held is not None:
                self._held.move_to_end(source)
                self._early.discard(source)
        if held is None:
            held = self.once(source)
            with self._lock:
                self._held[source] = held
        self._look_ahead(source)
        return held

    def once(self, source: Source) -> Tensor:
        """The value of a source, which counts while it is in use and is not held."""
        while not self._reserved(source, early=False):
            # Another thread may be done with it in the meantime.
            pending = self._pending
            if pending is None:
                fits = max(source.nbytes + self.live, self.largest)
                raise BudgetError(
                    f"the weight {source.name!r} takes {big(source.nbytes)} bytes, and with what is in use beside it "
                    f"({big(self.live)} bytes) that is more than memory={big(self.memory)}: load the model with "
                    f"weights='lazy', memory={fits} or more (--weights-memory {fits})"
                )
            self._wait_for(pending[0])
        return self._filled(source)

    def ahead(self, sources: Iterable[Source]) -> None:
        """Say what will be asked for, in this order."""
        with self._lock:
            self._upcoming = deque(dict.fromkeys(sources))
            self._show(None, sum(source.nbytes for source in self._upcoming))
        self._look_ahead(None)

    def _filled(self, source: Source) -> Tensor:
        """A value, for which there is room."""
        try:
            value = source.make()
        except BaseException:
            self._freed.append(source.nbytes)
            raise
        weakref.finalize(value.untyped_storage(), self._freed.append, source.nbytes).atexit = False
        return value

    def _reserved(self, source: Source, *, early: bool) -> bool:
        """Make room for a value, the last used ones first to stay; those that were read early go for none of their
        kind.
        """
        with self._lock:
            for old in list(self._held):
                if self.live + source.nbytes <= self.memory:
                    break
                if not (early and old in self._early):
                    del self._held[old]
                    self._early.discard(old)
            if self.live + source.nbytes > self.memory:
                return False
            self._made += source.nbytes
            self.peak = max(self.peak, self.live)
            return True

    # Reading ahead

    @cached_property
    def _reader(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "weights")

    def _wait_for(self, source: Source) -> None:
        pending = self._pending
        if pending is not None and pending[0] is source:
            try:
                pending[1].result()
            finally:
                with self._lock:
                    if self._pending is pending:
                        self._pending = None

    def _look_ahead(self, now: Source | None) -> None:
        """Start to read what comes after `now`, in no more than half of the memory."""
        with self._lock:
            if now is not None and now in self._upcoming:
                passed = 0
                while (source := self._upcoming.popleft()) is not now:
                    passed += source.nbytes
                self._show(now, passed + now.nbytes)
            if self._pending is not None and not self._pending[1].done():
                return
            following = next((source for source in self._upcoming if source not in self._held), None)
            early = sum(source.nbytes for source in self._early)
            self._pending = None
            if following is not None and 2 * (early + following.nbytes) <= self.memory:
                self._pending = following, self._reader.submit(self._read_early, following)

    def _read_early(self, source: Source) -> None:
        if self._reserved(source, early=True):
            value = self._filled(source)
            with self._lock:
                self._held[source] = value
                self._early.add(source)

    # Telling

    def _show(self, now: Source | None, nbytes: int) -> None:
        """Tell of a pass through so many bytes, or that `now` is asked for, up to which so many more are."""
        if now is None:
            if self._bar is not None:
                self._bar.close()
            self._bar = None
            if self._bars is not None and nbytes >= LONG:
                self._bar = self._bars(total=nbytes >> 20, unit=" MiB", delay=PATIENCE)
            self._asked = 0
        elif self._bar is not None:
            self._asked += nbytes
            # The layer that the weight is of.
            self._bar.set_description_str(now.name.rpartition(".")[0] or now.name, refresh=False)
            self._bar.update((self._asked >> 20) - self._bar.n)
            if not self._upcoming:
                self._bar.close()
                self._bar = None
