"""Functions of tensors on a CUDA device as one launch: their kernels, captured once in a CUDA graph.

To launch a kernel takes a host some 10 µs, and a forward pass of 32 layers has 1,300 of them: with few tokens the
device waits most of the time. A function that is called again with tensors of the same kind is captured, and from then
on its kernels are launched together (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). They are the
same kernels, and the numbers are the same to the bit.

A graph reads and writes the memory that it was captured with. So

- what stays where it was, as weights do, is read in place: whatever is written there counts, and a move is noticed;
- what comes in other memory each time is copied to memory of the graph's own;
- results are copied out, views and shared memory as they were.
"""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jetgraph.jets.recording import bound_to, may_follow, written

DEVICES = () if os.environ.get("JETGRAPH_CUDA_GRAPHS") == "0" else ("cuda",)
"""Types of devices on which functions are captured, unless it is declined."""

LARGE = 2**23
"""Bytes that an operator of a plain evaluation makes on average, from which on it takes longer than its launch."""

FEW = 24
"""Kernels of a plain evaluation from which on one launch takes less time than theirs, with what is copied and checked.
"""

MOVED = 2**26
"""Bytes of what comes in other memory each time that are copied at most."""

CALLS = 3
"""With which call of a kind a function is captured: the first runs it, the second looks whether it can be."""

_FEW = "few kernels are launched"
"""Why a function is not captured that launches less."""

_KINDS = 4
"""Kinds of arguments that are known of a function; the oldest goes first."""

_TRIES = 3
"""How often a function is captured for a kind of arguments, as more and more of them turn out to move."""

_HOST = frozenset(
    {
        torch.Tag.data_dependent_output,
        torch.Tag.dynamic_output_shape,
        torch.Tag.nondeterministic_seeded,
    }
)
"""What no graph has: the host waits for a number, or numbers are drawn."""

_ONE = threading.RLock()
"""What is copied in, launched and copied out belongs together: all graphs share their memory."""

Function = Callable[..., tuple[Any, ...]]


class Captured:
    """A function that returns a tuple, of tensors and plain values.

    The first call of a kind runs it as it is, as does every call of which derivatives may be asked; the second looks
    whether it can be captured, the third captures it (`CALLS`).

    Parameters
    ----------
    function
        Gives the same for the same arguments, and writes to none of them. What it reads besides stays as it is.
    made
        Places of arguments that are made for each call, as the layer before makes them: they come in other memory
        sooner or later, and a graph that was captured before that has to be captured again.
    """

    def __init__(self, function: Function, made: Collection[int] = ()) -> None:
        self._function = function
        self._made = made
        self._known: dict[Any, _Kind] = {}
        self._few = False
        """It launches few kernels, as it does for arguments of any kind."""

    def __call__(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """`function(*given)`"""
        device = next((each.device for each in given if isinstance(each, Tensor)), None)
        if self._few or device is None or device.type not in DEVICES or _FAILED or not _is_plain(device):
            return self._function(*given)
        kind, pointers = (_settings(device), *map(_described, given)), [*map(_pointer, given)]
        with _ONE:
            known = self._known.get(kind)
            if known is None:
                if len(self._known) >= _KINDS:
                    del self._known[next(iter(self._known))]
                self._known[kind] = _Kind(pointers, _movable(given, self._made))
            elif not known.refused:
                results = known.run(self._function, given, pointers, device)
                self._few = known.refused == _FEW
                return results
        return self._function(*given)


@dataclass(eq=False)
class _Kind:
    """What is known of a function for arguments of one kind."""

    pointers: list[int]
    """Where the arguments were, but for those that move."""
    moving: set[int] = field(default_factory=set)
    """Which of them come in other memory each time."""
    tries: int = 0
    graph: _Graph | None = None
    seen: bool = False
    refused: str = ""
    """Why it is not captured."""

    def run(self, function: Function, given: Sequence[Any], pointers: list[int], device: torch.device) -> Any:
        if not self.seen:
            self.seen = True
            self.moving |= self._elsewhere(pointers)
            with _Observer(given, device) as observer:
                results = function(*given)
            self.refused = observer.refusal(results) or self._unmovable(given)
            return results
        if self.graph is None or self._elsewhere(pointers):
            self.graph = self._captured(function, given, pointers, device)
        # Where it is the function that failed, it says so itself.
        return function(*given) if self.graph is None else self.graph(given)

    def _captured(self, function: Function, given: Sequence[Any], pointers: list[int], device: torch.device) -> Any:
        """The graph for arguments at these places; None where there is none, which `refused` then says."""
        self.moving |= self._elsewhere(pointers)
        self.pointers = pointers
        self.tries += 1
        self.refused = "its arguments move" if self.tries > _TRIES else self._unmovable(given)
        if self.refused:
            return None
        try:
            graph = _Graph(function, given, self.moving, device)
            pairs = zip(graph(given), function(*given), strict=True)
            self.refused = "" if all(_is_same(*pair) for pair in pairs) else "its kernels give other numbers each time"
            return None if self.refused else graph
        except RuntimeError as error:
            self.refused = str(error)
            warnings.warn(
                f"from here on kernels are launched one by one, for a CUDA graph could not be captured: {error}",
                stacklevel=2,
            )
            return None

    def _elsewhere(self, pointers: list[int]) -> set[int]:
        pairs = zip(self.pointers, pointers, strict=True)
        return {at for at, (one, other) in enumerate(pairs) if one != other and at not in self.moving}

    def _unmovable(self, given: Sequence[Any]) -> str:
        moved = [given[at] for at in self.moving]
        if any(map(_overlaps, moved)):
            return "an argument that moves has entries in the same memory"
        return "much of its arguments moves" if sum(each.nbytes for each in moved) > MOVED else ""


class _Observer(TorchDispatchMode):
    """Sees whether what a function does can be captured, and is worth it."""

    def __init__(self, given: Sequence[Any], device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._given = {each.untyped_storage().data_ptr() for each in given if isinstance(each, Tensor)}
        self._found = next((f"an argument is on {each.device}" for each in given if self._is_elsewhere(each)), "")
        self._bytes, self._launches = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        self._found = self._found or self._problem(func, args, kwargs)
        # A view launches nothing; what is written to is a result too.
        if all(each.alias_info is None or each.alias_info.is_write for each in func._schema.returns):
            self._bytes += sum(each.nbytes for each in tree_leaves(made) if isinstance(each, Tensor))
            self._launches += 1
        return made

    def refusal(self, results: tuple[Any, ...]) -> str:
        """Why the function is not captured: what cannot be, fewer kernels, or more bytes each. Nothing where it is."""
        plain = (Tensor, bool, int, float, type(None))
        if not self._found and any(not isinstance(each, plain) or self._is_elsewhere(each) for each in results):
            self._found = "a result is no tensor there"
        if not self._found and self._launches < FEW:
            self._found = _FEW
        if not self._found and self._bytes > LARGE * self._launches:
            self._found = "running takes longer than launching"
        return self._found

    def _is_elsewhere(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device != self._device

    def _problem(self, func: Any, args: Any, kwargs: dict[str, Any]) -> str:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Attention draws numbers only to drop some.
        drops = bound_to(func, args, kwargs).get("dropout_p", 1)
        waits = _HOST if drops else _HOST - {torch.Tag.nondeterministic_seeded}
        if func.namespace != "aten" or waits.intersection(func.tags) or "linalg" in func.__name__:
            return f"{func} may wait for the device"
        if any(map(self._is_elsewhere, tensors)) or any(type(leaf) not in (Tensor, nn.Parameter) for leaf in tensors):
            return f"{func} reads another device"
        # Where indices are a mask, the host counts them.
        if "index" in func.__name__ and any(leaf.dtype in (torch.bool, torch.uint8) for leaf in tensors):
            return f"{func} reads a mask"
        places = (leaf.untyped_storage().data_ptr() for leaf in written(func, args, kwargs) if isinstance(leaf, Tensor))
        if not self._given.isdisjoint(places):
            return f"{func} writes to an argument"
        return ""


class _Graph:
    """The kernels of a function, for arguments in the same memory, or copied to memory of the graph's own."""

    def __init__(self, function: Function, given: Sequence[Any], moving: set[int], device: torch.device) -> None:
        # What is written to again may be so in any mode.
        with torch.inference_mode(False), torch.no_grad():
            self._copies = {at: _like(given[at], device).copy_(given[at]) for at in sorted(moving)}
            args = [self._copies.get(at, each) for at, each in enumerate(given)]
            results, self._launch = capture(lambda: function(*args), device)
        owners = {_storage(each): at for at, each in enumerate(args) if isinstance(each, Tensor)}
        self._storages: dict[int, Tensor] = {}
        """What is copied out, as bytes, by where it is."""
        self._makers = [self._maker(each, args, owners) for each in results]

    def __call__(self, given: Sequence[Any]) -> tuple[Any, ...]:
        for at, copy in self._copies.items():
            copy.copy_(given[at])
        self._launch()
        copied = {at: each.clone() for at, each in self._storages.items()}
        return tuple(make(given, copied) for make in self._makers)

    def _maker(
        self, result: Any, args: Sequence[Any], owners: dict[int, int]
    ) -> Callable[[Sequence[Any], dict[int, Tensor]], Any]:
        """What makes a result of the arguments, in whose memory it may be, and of what was copied out."""
        if not isinstance(result, Tensor):
            return lambda given, copied: result
        like, start, where = _like(result, "meta"), _start(result), _storage(result)
        if not like.numel():
            return lambda given, copied: _like(like, result.device)
        if (owner := owners.get(where)) is not None:
            start -= _start(args[owner])
            return lambda given, copied: _view(given[owner], _start(given[owner]) + start, like)
        if where not in self._storages:
            flat = torch.empty(0, dtype=torch.uint8, device=result.device)
            self._storages[where] = flat.set_(result.untyped_storage())
        return lambda given, copied: _view(copied[where], start, like)


def capture(run: Callable[[], tuple[Any, ...]], device: torch.device) -> tuple[tuple[Any, ...], Callable[[], None]]:
    """What a function gives where its kernels are written down instead of run, and what launches them.

    After one that failed, PyTorch's state is put in order as far as it can be, and no other one is tried.

    Raises
    ------
    RuntimeError
        They cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    # No two graphs run at once and nothing is left in their memory, so that they share it; it goes with the last.
    pool = next((other.pool() for other in [*_ALIVE] if _ALIVE[other] == device), None)
    # Graphs and tensors that end while kernels are written down would be written down as well.
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.device(device), torch.cuda.stream(_stream(device)):
            graph.capture_begin(*(() if pool is None else (pool,)), capture_error_mode="thread_local")
            try:
                results = run()
            finally:
                graph.capture_end()
    except BaseException as error:
        _FAILED.append(str(error))
        # It would take numbers that are drawn from now on for those of a graph.
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        if collects:
            gc.enable()
    _ALIVE[graph] = device
    return results, graph.replay


_ALIVE: WeakKeyDictionary[Any, torch.device] = WeakKeyDictionary()
"""The graphs that there are, and where."""

_FAILED: list[str] = []
"""What went wrong at a capture."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where graphs are captured; the libraries keep memory for it once."""
    return torch.cuda.Stream(device)


def _is_plain(device: torch.device) -> bool:
    """Tensors are what they are: nothing follows what is done to them, no mode sees it, and it goes to one stream."""
    if may_follow() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    return device.type != "cuda" or (
        torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
        and not torch.cuda.is_current_stream_capturing()
    )


def _settings(device: torch.device) -> tuple[Any, ...]:
    """What decides which kernels are launched besides the arguments."""
    own = torch._C
    # Newer versions of PyTorch refuse to tell the one where the other was set.
    precision = getattr(own, "_get_fp32_precision_getter", None)
    return (
        device,
        own._get_cublas_allow_tf32() if precision is None else (precision("cuda", "matmul"), precision("cuda", "conv")),
        own._get_cublas_allow_fp16_reduced_precision_reduction(),
        own._get_cublas_allow_bf16_reduced_precision_reduction(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cudnn.enabled,
    )


# Tensors and the memory that they are in


def _movable(given: Sequence[Any], places: Collection[int]) -> set[int]:
    """Those of some arguments that can be copied, the smallest first, while they are not too much."""
    tensors = sorted((at for at in places if isinstance(given[at], Tensor)), key=lambda at: given[at].nbytes)
    sums = accumulate(given[at].nbytes for at in tensors)
    return {at for at, total in zip(tensors, sums, strict=True) if total <= MOVED and not _overlaps(given[at])}


def _overlaps(value: Tensor) -> bool:
    """It has entries in the same memory."""
    return 0 in value.stride() and value.numel() > 1


def _is_same(one: Any, other: Any) -> bool:
    """Equal to the bit, or neither a number."""
    if not isinstance(other, Tensor):
        return one == other
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _described(value: Any) -> Any:
    """All of an argument but where it is, and what stands there; a number whole."""
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else (type(value), value)


def _pointer(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else 0


def _storage(value: Tensor) -> int:
    """Where the memory of a tensor is; of one without entries no place, as it has none."""
    return value.untyped_storage().data_ptr() or -1


def _start(value: Tensor) -> int:
    """How many bytes into its memory a tensor begins."""
    return int(value.storage_offset()) * value.itemsize


def _like(value: Tensor, device: torch.device | str) -> Tensor:
    """Memory for such a tensor."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _view(owner: Tensor, start: int, like: Tensor) -> Tensor:
    """A tensor like another, in memory of an owner, that begins so many bytes into it."""
    made = torch.empty(0, dtype=like.dtype, device=owner.device)
    return made.set_(owner.untyped_storage(), start // like.itemsize, like.shape, like.stride())
