"""Tensors that are a place in a file, and what a loader makes of them without computing.

A `Deferred` has a shape, a type and a device, and no memory. An operator that computes with one is given its value,
which the shelf holds or reads. The value may be on another device: then the operator runs there, what else it reads is
moved there for it, and what it gives is moved back. Operators that only look at memory otherwise (views), and those by
which loaders turn what is stored into what a model has (casts, stacks), are noted and done when the value is asked for.
Autograd saves the deferred tensors themselves, so that a backward pass reads them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils import _pytree as pytree

from jetgraph.errors import FileError, StateError
from jetgraph.files.writing import parse_json
from jetgraph.lazy.shelf import Shelf

aten = torch.ops.aten

_CPU = torch.device("cpu")

_COPIES = frozenset({aten._to_copy.default, aten.clone.default, aten.cat.default, aten.stack.default})
"""What loaders do with stored tensors besides views of them."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    shelf: Shelf
    version: tuple[int, int]
    """Of the file, when it was opened: when it was written last, and its size."""

    @property
    def nbytes(self) -> int:
        """How much it takes."""
        return prod(self.shape) * self.dtype.itemsize

    def make(self) -> Tensor:
        """What the file holds under the name, in memory of its own.

        It is read and not mapped: a page that is mapped costs more to come by than its copy takes.

        Raises
        ------
        FileError
            The file is gone, or has changed.
        """
        value = torch.empty(self.shape, dtype=self.dtype)
        try:
            with open(self.file, "rb", buffering=0) as opened:
                if (version := version_of(self.file)) != self.version:
                    raise FileError(f"{self.file} has changed since it was opened: load the model again")
                opened.seek(_places(self.file, *version)[self.name])
                rest = value.reshape(-1).view(torch.uint8).numpy().data
                while len(rest) and (read := opened.readinto(rest)):
                    rest = rest[read:]
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"cannot read the weight {self.name!r} from {self.file} any more: {error}") from error
        if len(rest):
            raise FileError(f"cannot read the weight {self.name!r} from {self.file} any more: it ends before")
        self.shelf.read += self.nbytes
        return value


def version_of(file: Path) -> tuple[int, int]:
    """What tells whether a file was written again."""
    facts = file.stat()
    return facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=4096)
def _places(file: Path, changed: int, size: int) -> dict[str, int]:
    """Where tensors begin in a .safetensors file, as it was changed last."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= size:
            raise ValueError("it is no .safetensors file")
        header = parse_json(opened.read(length).decode())
    offsets = ((name, told["data_offsets"]) for name, told in header.items() if name != "__metadata__")
    return {name: 8 + length + begin for name, (begin, _) in offsets}


@dataclass(frozen=True, eq=False)
class Resident:
    """A tensor in the memory of some device, which stays there."""

    name: str
    tensor: Tensor

    @property
    def nbytes(self) -> int:
        """What it takes of a shelf: nothing."""
        return 0

    def make(self) -> Tensor:
        """It."""
        return self.tensor


@dataclass(frozen=True, eq=False)
class Offloaded:
    """A tensor that a mapping gives when it is asked for."""

    mapping: Mapping[str, Tensor]
    name: str
    nbytes: int
    shelf: Shelf
    device: torch.device

    def make(self) -> Tensor:
        """What the mapping has under the name, in memory of its own, on the device where it is used."""
        self.shelf.read += self.nbytes
        value = self.mapping[self.name]
        return value.clone() if value.device == self.device else value.to(self.device)


@dataclass(frozen=True, eq=False)
class Made:
    """One of the results of an operator on deferred tensors."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int | None
    """Which of several results; None where there is one."""
    nbytes: int
    is_view: bool

    @property
    def name(self) -> str:
        """That of the first tensor that it is made of."""
        return next(self.reads()).source.name

    def reads(self) -> Iterator[Deferred]:
        """The deferred tensors that it is made of."""
        return (leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Deferred))

    def make(self) -> Tensor:
        """The result."""
        args, kwargs = pytree.tree_map_only(Deferred, Deferred.value, (self.args, self.kwargs))
        made = self.operator(*args, **kwargs)
        return made if self.number is None else made[self.number]


class Deferred(Tensor):
    """A tensor whose value is read when an operator computes with it."""

    source: Stored | Made | Resident | Offloaded
    shelf: Shelf
    place: torch.device
    """Where its value is."""
    held: bool
    """The shelf holds its value; else it is made anew each time, of what the shelf holds."""

    @staticmethod
    def __new__(
        cls,
        source: Stored | Made | Resident | Offloaded,
        shelf: Shelf,
        like: Tensor,
        held: bool,
        device: torch.device = _CPU,
        place: torch.device = _CPU,
    ) -> Deferred:
        """`like` is on meta, of its shape, strides and type; `device` is where operators give their results."""
        made = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), storage_offset=0, dtype=like.dtype, device=device
        )
        made.source, made.shelf, made.held, made.place = source, shelf, held, place
        return made

    @classmethod
    def stored(cls, shelf: Shelf, file: Path, name: str, shape: Iterable[int], dtype: torch.dtype) -> Deferred:
        """A tensor in a file."""
        sizes = tuple(shape)
        source = Stored(file, name, sizes, dtype, shelf, version_of(file))
        return cls(source, shelf, torch.empty(sizes, dtype=dtype, device="meta"), True)

    @classmethod
    def placed(cls, shelf: Shelf, name: str, tensor: Tensor, device: torch.device) -> Deferred:
        """A tensor that stays where it is, for operators that give their results on a device."""
        return cls(Resident(name, tensor), shelf, _on_meta(tensor), True, device, tensor.device)

    @classmethod
    def offloaded(
        cls,
        shelf: Shelf,
        mapping: Mapping[str, Tensor],
        name: str,
        like: Tensor,
        device: torch.device,
        place: torch.device,
    ) -> Deferred:
        """A tensor of a mapping, which is on `place` while it is used."""
        source = Offloaded(mapping, name, like.numel() * like.itemsize, shelf, place)
        return cls(source, shelf, like, True, device, place)

    def value(self) -> Tensor:
        """The tensor.

        Raises
        ------
        BudgetError
            It does not fit into the shelf's memory.
        FileError
            The file is not what it was.
        """
        source = self.source
        if isinstance(source, Resident) or (isinstance(source, Made) and source.is_view):
            return source.make()
        return self.shelf.value(source) if self.held else self.shelf.once(source)

    def base(self) -> Deferred:
        """What it is a view of."""
        source = self.source
        return next(source.reads()).base() if isinstance(source, Made) and source.is_view else self

    def mark(self) -> bytes:
        """What tells it apart without reading it: the sizes of its files, and the first row in each."""
        source = self.source
        if isinstance(source, Made):
            return b"".join(read.mark() for read in source.reads())
        if isinstance(source, Resident | Offloaded):
            first = source.make()[:1] if self.dim() else source.make()
            return source.name.encode() + first.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        with safe_open(source.file, "pt") as stored:
            rows = stored.get_slice(source.name)
            first = rows[:1] if rows.get_shape() else stored.get_tensor(source.name)
        size = f"{source.name} {source.file.stat().st_size}".encode()
        return size + first.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def settle(self) -> None:
        """Let the shelf hold what it is made of as a whole, and nothing of what that is made of."""
        base = self.base()
        base.held = True
        if isinstance(base.source, Made):
            for read in base.source.reads():
                read.base().held = False
        self.shelf.largest = max(self.shelf.largest, base.making())

    def making(self) -> int:
        """Bytes of its value and of all that this is made of."""
        source = self.source
        parts = {read.base() for read in source.reads()} if isinstance(source, Made) else set[Deferred]()
        return source.nbytes + sum(part.making() for part in parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Deferred:
        """Itself: it is written to by nobody."""
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Deferred({self.source.name!r}, shape={list(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operator, or compute it with the values."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        _refuse_writing(func, args)
        deferred = [tensor for tensor in tensors if isinstance(tensor, Deferred)]
        first = deferred[0]
        at_one_place = all(one.place == first.place and one.device == first.device for one in deferred)
        stays = kwargs.get("device") in (None, first.device)
        if (func.is_view or func in _COPIES) and len(deferred) == len(tensors) and at_one_place and stays:
            return _noted(func, args, kwargs, first)
        args, kwargs = pytree.tree_map_only(Deferred, Deferred.value, (args, kwargs))
        if at_one_place and first.place == first.device:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(first.place), (args, kwargs))
        if kwargs.get("device") is not None:
            return func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(first.device), func(*args, **kwargs))


def _refuse_writing(func: Any, args: Any) -> None:
    for given, argument in zip(args, func._schema.arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, Deferred):
            raise StateError(
                f"the weight {given.source.name!r} is read from a file when it is used (weights='lazy') and cannot be "
                "written to: load the model without weights='lazy'"
            )


def _noted(func: Any, args: Any, kwargs: Any, first: Deferred) -> Any:
    """The results of an operator, to be computed when their values are asked for."""
    like = pytree.tree_map_only(Deferred, _on_meta, (args, {**kwargs, **_to_meta(kwargs)}))
    on_meta = func(*like[0], **like[1])

    def deferred(number: int | None, one: Tensor) -> Deferred:
        source = Made(func, args, kwargs, number, one.numel() * one.itemsize, func.is_view)
        return Deferred(source, first.shelf, one, False, first.device, first.place)

    if isinstance(on_meta, Tensor):
        return deferred(None, on_meta)
    return [deferred(number, one) for number, one in enumerate(on_meta)]


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _to_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"device": torch.device("meta")} if kwargs.get("device") is not None else {}


def read_ahead_backwards(images: Iterable[Tensor]) -> None:
    """The same of what backward passes from these values on will want, one after the other."""
    read_ahead(saved for image in images for saved in _saved(image))


def _saved(image: Tensor) -> Iterator[Any]:
    """What the graph of autograd behind a value holds, in the order in which a backward pass asks for it."""
    found: dict[Any, None] = {image.grad_fn: None} if image.grad_fn is not None else {}
    waiting = list(found)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in found:
                found[node] = None
                waiting.append(node)
    for node in sorted(found, key=lambda one: -one._sequence_nr()):
        yield from (getattr(node, name) for name in dir(node) if name.startswith("_saved_"))


def read_ahead(tensors: Iterable[Any]) -> None:
    """Tell the shelves of those tensors that are deferred which values come next."""
    shelves: dict[Shelf, list[Stored | Made | Resident | Offloaded]] = {}
    for tensor in tensors:
        if isinstance(tensor, Deferred) and (base := tensor.base()).held and not isinstance(base.source, Resident):
            shelves.setdefault(base.shelf, []).append(base.source)
    for shelf, sources in shelves.items():
        shelf.ahead(sources)
