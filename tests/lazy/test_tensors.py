"""Deferred tensors: the numbers of the tensors that they stand for, and no more memory than they may take."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import jetgraph as jg
from jetgraph.lazy import shelf
from jetgraph.lazy.shelf import Shelf
from jetgraph.lazy.tensors import Deferred, read_ahead, read_ahead_backwards

WEIGHT = torch.arange(12.0).view(3, 4)


@pytest.fixture
def stored(tmp_path: pathlib.Path) -> Callable[[int], Deferred]:
    save_file({"weight": WEIGHT}, tmp_path / "x.safetensors")
    return lambda memory: Deferred.stored(
        Shelf(memory), tmp_path / "x.safetensors", "weight", WEIGHT.shape, WEIGHT.dtype
    )


@pytest.mark.parametrize(
    "operator",
    [
        lambda w: w.t()[1:].to(torch.bfloat16),
        lambda w: torch.stack([w, w.clone()]).transpose(0, 1),
        lambda w: torch.cat(w.chunk(2, dim=1)),
        lambda w: torch.nn.Parameter(w.detach(), requires_grad=False).view_as(w),
    ],
)
def test_what_loaders_do_is_noted_and_gives_the_same(
    stored: Callable[[int], Deferred], operator: Callable[[Tensor], Tensor]
) -> None:
    lazy, expected = operator(weight := stored(2**20)), operator(WEIGHT)
    assert isinstance(lazy, Deferred)
    assert weight.shelf.read == 0
    assert (lazy.shape, lazy.stride(), lazy.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert torch.equal(lazy.value(), expected)


def test_a_backward_pass_reads_weights_again(stored: Callable[[int], Deferred]) -> None:
    weight = stored(WEIGHT.nbytes)
    x = torch.randn(2, 4, requires_grad=True)
    out = torch.nn.functional.linear(x, weight)
    # Another weight takes the whole shelf.
    weight.shelf.value(stored(0).source)
    assert weight.shelf.live == WEIGHT.nbytes
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(slope, WEIGHT.sum(0).expand(2, 4))
    assert weight.shelf.peak == WEIGHT.nbytes


def test_a_pass_tells_at_which_layer_it_is(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "LONG", 3 * 2**21)
    weights = {f"layers.{i}.mlp.weight": torch.full((512, 1024), float(i)) for i in range(3)}
    save_file(weights, tmp_path / "x.safetensors")
    told: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.n = 0
            told.append((options["total"], options["unit"]))

        def set_description_str(self, text: str, refresh: bool) -> None:
            told.append(text)

        def update(self, n: int) -> None:
            self.n += n
            told.append(self.n)

        def close(self) -> None:
            told.append("closed")

    own = shelf.Shelf(2**22, Bar)
    stored = [Deferred.stored(own, tmp_path / "x.safetensors", name, w.shape, w.dtype) for name, w in weights.items()]
    read_ahead(stored)
    total = sum(float((weight * 1).sum()) for weight in (stored[0], stored[0], stored[2]))
    assert total == 2 * 512 * 1024
    assert told == [(6, " MiB"), "layers.0.mlp", 2, "layers.2.mlp", 6, "closed"]
    # A pass that is cut short, and a short one.
    read_ahead(stored)
    read_ahead(stored[:1])
    stored[0] + 1
    assert told[6:] == [(6, " MiB"), "closed"]


def test_a_file_that_was_written_again_is_refused(stored: Callable[[int], Deferred]) -> None:
    """Of the same shapes and size, as the next checkpoint of a training run is."""
    weight = stored(2**20)
    file = weight.source.file
    save_file({"weight": WEIGHT + 1}, file)
    os.utime(file, ns=(0, 0))
    with pytest.raises(jg.FileError, match=r"x\.safetensors has changed since it was opened"):
        weight.value()
    file.unlink()
    with pytest.raises(jg.FileError, match="cannot read the weight 'weight'"):
        weight.value()


def test_what_is_in_use_counts_and_what_does_not_fit_is_refused(stored: Callable[[int], Deferred]) -> None:
    weight = stored(WEIGHT.nbytes)
    in_use = weight.value()[:1]
    with pytest.raises(jg.BudgetError, match="takes 48 bytes, and with what is in use beside it \\(48 bytes\\)"):
        weight.shelf.value(stored(0).source)
    del in_use
    weight.shelf.value(stored(0).source)
    assert weight.shelf.live == WEIGHT.nbytes


def test_weights_are_read_ahead_and_once(stored: Callable[[int], Deferred]) -> None:
    one, other = stored(4 * WEIGHT.nbytes), stored(0)
    both = Deferred(other.source, one.shelf, WEIGHT.to("meta"), True)
    read_ahead([one, WEIGHT, both])
    one.value()
    one.shelf._reader.shutdown()
    assert set(one.shelf._held) == {one.source, both.source}
    assert torch.equal(both.value(), WEIGHT)
    assert one.shelf.peak == 2 * WEIGHT.nbytes


def test_weights_cannot_be_written_to_and_files_may_not_change(
    stored: Callable[[int], Deferred], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(jg.StateError, match="'weight' is read from a file"):
        stored(2**20).mul_(2)
    weight = stored(2**20)
    save_file({"other": WEIGHT}, tmp_path / "x.safetensors")
    with pytest.raises(jg.FileError, match=r"cannot read the weight 'weight'|has changed since it was opened"):
        weight.sum()


def test_a_backward_pass_has_its_weights_read_ahead(tmp_path: pathlib.Path) -> None:
    """In the order in which it wants them, which is not that of the forward pass."""
    save_file({name: WEIGHT[:, :3] + at for at, name in enumerate("abc")}, tmp_path / "x.safetensors")
    shelf = Shelf(2 * WEIGHT.nbytes)
    weights = [Deferred.stored(shelf, tmp_path / "x.safetensors", name, (3, 3), WEIGHT.dtype) for name in "abc"]
    x = torch.ones(2, 3, requires_grad=True)
    images = [x]
    for weight in weights:
        images.append(torch.nn.functional.linear(images[-1].detach().requires_grad_(), weight))
    for left in list(shelf._held):
        del shelf._held[left]
    read_ahead_backwards(reversed(images[1:]))
    told = []
    for image, weight in zip(reversed(images[1:]), reversed(weights), strict=True):
        shelf._reader.submit(lambda: None).result()
        told.append(weight.source in shelf._held)
        image.sum().backward()
    assert told == [True, True, True]
