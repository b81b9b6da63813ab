"""Sums over languages of paths against the compiled terms, listed and sorted one by one; and the maps that they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.classes import classifier
from jetgraph.algebra.expansion import Expansion
from jetgraph.compilation.linear import LinearMaps
from jetgraph.compilation.sums import class_sums
from tests.compilation.test_freezing import WIDTH
from tests.compilation.test_freezing import traced as traced_net
from tests.conftest import Example
from tests.structure import test_gated_joins as gated
from tests.structure import test_long_skips as skips
from tests.zoo import ROUTED, case

CLASSES: dict[str, Callable[[jg.Path], Any]] = {
    "length": lambda path: path.length,
    "all": lambda path: "all",
    "source": lambda path: path.source.alias,
}
"""Properties of paths that a path's text shows."""


def check_sums(expansion: Expansion, inputs: dict[str, Any], exact: float) -> None:
    """All classes, and some patterns, against the terms."""
    with torch.no_grad():
        values = jg.compile(expansion)(**inputs)
        terms = dict(values.terms.items())
        size = float(values.output.abs().max())
        forward = expansion.graph.run(**inputs)  # type: ignore[union-attr]
        for by, name in CLASSES.items():
            found = class_sums(forward, jg.select(expansion, "**"), classifier(expansion, by))
            for label, total in zip(found.counts, found.totals, strict=True):
                expected = [term for path, term in terms.items() if name(path) == label]
                assert len(expected) == found.counts[label]
                assert float((total - sum(expected)).abs().max()) < exact * size
        assert float((values.sum("**") - values.output).abs().max()) < exact * size
        sites = [alias for alias, passage in expansion.passages.items() if passage.site.role == "branch"]
        for pattern in (f"** > {sites[-1]} > **", f"** > {sites[0]} > ** > logits"):
            expected = [terms[path] for path in jg.select(expansion, pattern)]
            assert float((values.sum(pattern) - sum(expected)).abs().max()) < exact * size


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "phi", "gemma2", "opt_post_norm"])
def test_language_models(name: str, heads: bool, traced: Callable[..., Example]) -> None:
    """Learned positions; a parallel block; soft caps and norms after branches; norms on the stream."""
    example = traced(case(name))
    expansion = jg.expand(example.graph, rules={"*": jg.Freeze()}, split="heads" if heads else None)
    check_sums(expansion, example.inputs, 1e-5)


@pytest.mark.parametrize("name", ["bart", "unet_additive", "swin", "scaled_skip"])
def test_other_streams(name: str, traced: Callable[..., Example]) -> None:
    """Encoder and decoder; long skips; positions that merge; skips that scale."""
    example = traced(case(name))
    check_sums(jg.expand(example.graph, rules={"*": jg.Freeze()}), example.inputs, 1e-5)


def test_mixture_of_experts(traced: Callable[..., Example]) -> None:
    example = traced(ROUTED[0], dynamic=False)
    check_sums(jg.expand(example.graph, rules={"*": jg.Freeze()}), example.inputs, 1e-5)


@pytest.mark.parametrize("run", [skips.added_again, skips.concatenated, skips.weighted_history, skips.summed])
def test_long_skips(run: Any) -> None:
    _, inputs, graph = skips.traced(run)
    check_sums(jg.expand(graph, rules={"*": jg.Freeze()}), inputs, 1e-12)


@pytest.mark.parametrize("block", [gated.Recurrent, gated.Mixed, gated.Three])
def test_gated_skips(block: Any) -> None:
    _, inputs, graph = gated.traced(block, block)
    check_sums(jg.expand(graph, rules={"*": jg.Freeze()}), inputs, 1e-12)


@pytest.mark.parametrize("rule", [jg.Freeze(halves=True), jg.Tangent()])
def test_other_linear_rules(rule: Any, traced: Callable[..., Example]) -> None:
    example = traced(case("llama"))
    check_sums(jg.expand(example.graph, rules={"*": jg.Freeze(), "*.mlp": rule}), example.inputs, 1e-5)


def test_a_tangent_is_the_derivative_and_halves_share_the_product() -> None:
    """silu(g) u: half of σ(g) g held and half of u held, against Df; by hand, term by term."""
    net, graph, x = traced_net(lambda z: z)
    block: Any = net.blocks[0]
    scale = block.norm.weight / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    y = x * scale
    gate, up = block.gate(y), block.up(y)
    halved = block.down(F.silu(gate) * up)  # of one term, the two halves are the whole

    def branch(rule: Any, direction: Tensor) -> Tensor:
        expansion = jg.expand(graph, rules={"*": jg.Freeze(), "L0.mlp": rule})
        maps = LinearMaps(expansion, graph.run(x))
        return maps.site(expansion.passage("L0.mlp")).forwards(direction[None])[0]

    with torch.no_grad():
        torch.testing.assert_close(branch(jg.Freeze(halves=True), x), halved)
        torch.testing.assert_close(branch(jg.Freeze(), x), halved)
        other = torch.randn_like(x)
        shared = torch.sigmoid(gate) * block.gate(other * scale) * up + F.silu(gate) * block.up(other * scale)
        torch.testing.assert_close(branch(jg.Freeze(halves=True), other), block.down(shared) / 2)
        torch.testing.assert_close(branch(jg.Freeze(), other), block.down(F.silu(gate) * block.up(other * scale)))
    function = lambda value: block.down(F.silu(block.gate(block.norm(value))) * block.up(block.norm(value)))  # noqa: E731
    slope = torch.func.jvp(function, (x,), (other,))[1]
    torch.testing.assert_close(branch(jg.Tangent(), other), slope)


def test_compiled_terms_under_a_tangent() -> None:
    net, graph, x = traced_net(lambda z: z, bias=True)
    expansion = jg.expand(graph, rules={"*": jg.Tangent()})
    values = jg.compile(expansion, "embed > L0.mlp > L1.mlp > logits")(x)
    value, h = x, x
    for block in net.blocks:
        step = lambda z, block=block: block(z) - z  # noqa: E731
        h, value = block(h), torch.func.jvp(step, (h,), (value,))[1]
    end = torch.func.jvp(lambda z: net.head(net.norm(z)), (h,), (value,))[1]
    torch.testing.assert_close(values.terms["embed > L0.mlp > L1.mlp > logits"], end)
    with torch.no_grad():
        torch.testing.assert_close(values.sum("**"), net(x))


def test_maps_are_adjoint(traced: Callable[..., Example]) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, and A of the entry is the image; one by one and stacked."""
    example = traced(case("gpt2"))
    graph = example.graph.split("heads")
    expansion = jg.expand(graph, rules={"*": jg.Freeze()})
    whole, few = (LinearMaps(expansion, graph.run(**example.inputs), memory) for memory in (2**28, 1))
    for alias in ("L0.attn.head1", "L1.mlp", "logits"):
        map = whole.site(expansion.passage(alias))
        h = whole.forward[whole.model.point(expansion.passage(alias).reads)]
        x, y = torch.randn(3, *h.shape), torch.randn(3, *map.image.shape)
        forwards, backwards = map.forwards(x), map.backwards(y)
        torch.testing.assert_close((forwards * y).sum((1, 2, 3)), (x * backwards).sum((1, 2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(map.forwards(h[None])[0], map.image)
        torch.testing.assert_close(few.site(expansion.passage(alias)).forwards(x), forwards)


def test_what_is_not_linear_is_refused(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    expansion = jg.expand(example.graph, order=0, rules={"*.attn": jg.Freeze()})
    values = jg.compile(expansion, "embed > logits^0")(**example.inputs)
    with pytest.raises(jg.InputError, match=r"'L0.mlp' .* no linear image.*jetgraph.Freeze"):
        values.sum("** > L0.mlp > **")
    with pytest.raises(jg.SelectionError, match=r"L9\.mlp"):
        values.sum("embed > L9.mlp > logits")
    # Where none is passed, other rules do not matter.
    frozen = jg.expand(example.graph, order=0, rules={"*.attn": jg.Freeze(), "logits": jg.Freeze()})
    found = jg.compile(frozen, "embed > logits")(**example.inputs)
    torch.testing.assert_close(found.sum("embed > logits"), found.terms["embed > logits"])


class Plain(nn.Module):
    """One branch, of which nothing depends on what comes in but through a step."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(WIDTH, WIDTH).matmul((x > 0).float().unsqueeze(-1)).squeeze(-1)


def test_a_site_without_a_linear_part_says_so() -> None:
    x = torch.randn(2, WIDTH)
    graph = jg.trace(Plain().eval(), x, dynamic=False)
    with pytest.raises(jg.JetGraphError, match="constant on pieces"):
        jg.spectrum(graph, x, by="length")
