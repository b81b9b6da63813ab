"""Manners in which a model is called for the exporter: masks that code fills in only untraced, caches, random draws."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_compiling, is_exporting

import jetgraph as jg
from tests import laws

IDS = torch.tensor([[1, 2, 3], [3, 1, 0]])
OTHER = torch.tensor([[0, 3, 1, 2], [1, 1, 2, 3], [3, 0, 2, 1]])


class Masked(nn.Module):
    """Reads a sum of its tokens, of which a mask, by default `fill`, takes some out; traced, it wants it given."""

    def __init__(self, fill: Callable[..., Tensor] = torch.ones) -> None:
        super().__init__()
        self.fill = fill
        self.embed, self.mlp = nn.Embedding(4, 6), nn.Linear(6, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None and not torch.compiler.is_compiling():
            attention_mask = self.fill(input_ids.shape)
        x = self.embed(input_ids)
        return x + self.mlp((x * attention_mask[..., None]).cumsum(1).tanh())  # type: ignore[index]


class Both(nn.Module):
    """Two of them, one with names of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Masked(), Masked()

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        h = self.encoder(input_ids, attention_mask)
        return self.decoder(decoder_input_ids, decoder_attention_mask) + h.mean(1, keepdim=True)


class Cached(nn.Module):
    """Cannot run without its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        cache: list[Tensor] | None = [] if use_cache else None
        cache.append(x)  # type: ignore[union-attr]
        return x + torch.tanh(self.mlp(x))


@pytest.mark.parametrize(("model", "count"), [(Masked(), 1), (Both(), 2)])
def test_masks_are_filled_in_as_a_tokenizer_does(model: nn.Module, count: int) -> None:
    model.eval()
    graph = jg.trace(model, *[IDS] * count)
    assert "attention_mask filled in as a tokenizer does" in repr(graph)
    assert ("and decoder_attention_mask" in repr(graph)) == (count == 2)
    torch.testing.assert_close(graph(*[OTHER] * count), model(*[OTHER] * count))
    with pytest.raises(jg.InputError, match="'attention_mask' was not among the inputs"):
        graph(*[OTHER] * count, attention_mask=torch.zeros_like(OTHER))
    # One that is given is an input like any other, and nothing is filled in.
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    given = jg.trace(model.encoder if isinstance(model, Both) else model, IDS, attention_mask=mask)
    assert not given.traced.note


class Guarded(nn.Module):
    """Does something else where it is exported, which it cannot."""

    def __init__(self, asks: Callable[[], bool]) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        if self.asks():
            x = x.view(-1, 5)
        return x + torch.tanh(self.mlp(x))


def test_code_that_is_not_told_of_the_exporter() -> None:
    """It does what it does at any call: no mask but its own, and no view that it has for exporters."""
    masked, x = Masked(torch.zeros).eval(), torch.randn(2, 3, 4)
    torch.testing.assert_close(jg.trace(masked, IDS)(OTHER), masked(OTHER))
    # By its place, and by names of its own.
    codes = [asked.__code__ for asked in (is_compiling, is_exporting)]
    for asks in (lambda: torch.compiler.is_exporting() or torch.compiler.is_compiling(), is_compiling, is_exporting):
        guarded = Guarded(asks).eval()
        graph = jg.trace(guarded, x)
        torch.testing.assert_close(graph(x[:1]), guarded(x[:1]))
        assert "its code is not told that it is exported, for without it it is refused" in repr(graph)
        assert [asked.__code__ for asked in (is_compiling, is_exporting)] == codes


class Told(nn.Module):
    """Gives `other` numbers where it is exported, silently; and cannot run without its cache, if it has one."""

    def __init__(self, other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mlp, self.other = nn.Linear(4, 4), other

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.mlp(x))
        return x + (self.other(y) if is_compiling() else y)


class ToldCached(Told):
    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        cache: list[Tensor] | None = [] if use_cache else None
        cache.append(x)  # type: ignore[union-attr]
        return super().forward(x)


class Unmasked(Masked):
    """Traced, it does without a mask, and does something else then."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None and is_exporting():
            return self.embed(input_ids) + self.mlp(self.embed(input_ids).cumsum(1))
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize(
    ("model", "x", "said"),
    [
        (Told(torch.neg), torch.randn(2, 3, 4), "its code is not told that it is exported, for without it its graph"),
        (ToldCached(torch.neg), torch.randn(2, 3, 4), "not told that it is exported; use_cache as the model has it"),
        (Unmasked(), IDS, "attention_mask filled in .* for without it its graph does something else .*max error"),
        # Of another shape.
        (Told(lambda y: y[:, :, None]), torch.randn(2, 4), "not told that it is exported"),
    ],
)
def test_other_numbers_in_one_manner_lead_to_the_next(model: nn.Module, x: Tensor, said: str) -> None:
    graph = jg.trace(model.eval(), x)
    assert re.search(said, repr(graph))
    torch.testing.assert_close(graph(x[:1]), model(x[:1]))


def test_other_numbers_in_every_manner() -> None:
    """They are those of a module, with its line, or of a model that gives others each time."""

    class Inner(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * (3.0 if isinstance(input, FakeTensor) else 1.0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner = nn.Linear(4, 4), Inner(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(self.before(x).tanh()).tanh()

    class Drawn(Told):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * random.random()

    x = torch.randn(2, 3, 4)
    with pytest.raises(jg.TraceError, match=r"does something else .*max error.* 'inner' at .*test_manners\.py:\d+"):
        jg.trace(Outer().eval(), x)
    with pytest.raises(jg.TraceError, match=r"called on the example inputs again.* random numbers that torch does not"):
        jg.trace(Drawn(torch.neg).eval(), x)


def test_what_is_refused_in_every_manner() -> None:
    class Numbers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(x * float(x.sum().item() > 0 or x.numpy().sum()))

    with pytest.raises(jg.TraceError, match=r"torch\.export refuses Numbers: .*test_manners\.py:\d+"):
        jg.trace(Numbers().eval(), torch.randn(2, 3))


def test_a_cache_that_a_model_cannot_do_without() -> None:
    model, x = Cached().eval(), torch.randn(2, 3, 4)
    graph = jg.trace(model, x)
    assert "use_cache as the model has it by default" in repr(graph)
    assert torch.equal(graph(x[:1]), model(x[:1]))
    with pytest.raises(jg.InputError, match="'use_cache' was not among the inputs"):
        graph(x, use_cache=False)


def test_random_numbers_that_the_exporter_does_not_get_to() -> None:
    """What is refused for another reason, and gives something else each time, is refused for that."""

    class Shuffled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.new_empty(()).numpy().size:  # nothing that the exporter follows
                x = x[:, torch.randperm(x.shape[1])]
            return x + x.tanh()

    with pytest.raises(
        jg.TraceError, match=r"randperm.* at .*test_manners\.py:\d+.* draws random numbers.*give its numbers"
    ):
        jg.trace(Shuffled().eval(), torch.randn(2, 50, 4))


# Models that take derivatives


class Energy(nn.Module):
    """Goes down an energy of attention and of memories, as an Energy Transformer does (arXiv 2302.07253)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.memory = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 12)

    def energy(self, g: Tensor) -> Tensor:
        q, k = (each(g).unflatten(-1, (2, 4)).transpose(1, 2) for each in (self.q, self.k))
        return -torch.logsumexp(q @ k.mT, -1).sum() - F.softplus(self.memory(g)).square().sum() / 2

    def by_function(self, g: Tensor) -> Tensor:
        return torch.func.grad(self.energy)(g)

    def by_tape(self, g: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = g.detach().requires_grad_(True)
            return torch.autograd.grad(self.energy(leaf), leaf)[0]

    def by_callers_tape(self, g: Tensor) -> Tensor:
        return torch.autograd.grad(self.energy(g), g, create_graph=True)[0]


class Descent(nn.Module):
    """Two steps down."""

    def __init__(self, gradient: Callable[[Energy, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.step, self.gradient = nn.Linear(3, 8), Energy(), gradient

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for _ in range(2):
            h = h - self.gradient(self.step, self.step.norm(h)) / 4
        return h


@pytest.mark.parametrize("gradient", [Energy.by_function, Energy.by_tape, Energy.by_callers_tape])
def test_derivatives_that_a_model_takes_are_written_out(gradient: Callable[[Energy, Tensor], Tensor]) -> None:
    """A step is a branch of a join, with jets of its own; the model is as it was."""
    torch.manual_seed(0)
    model = Descent(gradient).double().eval()
    x, other = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    graph = jg.trace(model, x)
    assert [join.kind for join in graph.joins] == ["identity"] * 2
    module = jg.compile(jg.expand(graph, recipe="frozen"))
    torch.testing.assert_close(module(other).total, model(other).detach())
    given = laws.subject(graph, {"x": x}, {"x": other}, torch.float64)
    assert laws.check_values(given)
    laws.check_slopes(given)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


class Draws(nn.Module):
    """Takes a derivative at a place that it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Energy()

    def forward(self, x: Tensor) -> Tensor:
        return x - self.step.by_tape(x + torch.randn_like(x))


def test_a_model_that_takes_derivatives_is_refused_for_what_else_it_does() -> None:
    with pytest.raises(jg.TraceError, match="draws random numbers"):
        jg.trace(Draws().eval(), torch.ones(1, 5, 8))


class Mapped(nn.Module):
    """Attention of one head, mapped over heads; and slopes of a layer, one for each entry that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.layer = nn.Linear(3, 4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = (each.unflatten(-1, (2, 2)) for each in self.qkv(h).chunk(3, -1))
        head = torch.vmap(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, in_dims=2, out_dims=2)
        h = h + self.layer(head(q, k, v).flatten(2))
        return h + torch.vmap(torch.vmap(torch.func.jacfwd(lambda y: self.layer(y).tanh())))(h).sum(-1)


def test_functions_that_a_model_maps_are_written_out() -> None:
    """Heads that are a dimension of a map are heads."""
    torch.manual_seed(0)
    model, (x, other) = Mapped().double().eval(), torch.randn(2, 2, 5, 3, dtype=torch.float64)
    graph = jg.trace(model, x, dynamic=False)
    assert [join.alias for join in graph.joins] == ["L0.attn", "L1.mlp"]
    parts = graph.split("heads")
    assert [alias for alias in parts.branches if "head" in alias] == ["L0.attn.head0", "L0.attn.head1"]
    torch.testing.assert_close(parts(other), model(other).detach())
    laws.check_slopes(laws.subject(graph, {"x": x}, {"x": other}, torch.float64))
