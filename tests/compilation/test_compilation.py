"""Compiled paths: the contract on every model of the zoo, terms against evaluations by hand, the module's behaviour.

Three oracles, each independent of the jets and of compilation: a path's value from plain runs of the graph's pieces,
with Taylor coefficients as central differences in float64 (every model); formulas over the models' own modules
(a model of each kind); and sympy, where the net is a polynomial and every term is known in closed form.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.autograd import forward_ad

import jetgraph as jg
from jetgraph.jets.interpreter import evaluate
from tests import zoo
from tests.conftest import Example, run
from tests.operators import Operators, peak
from tests.outlines import gpt2 as gpt2_outline
from tests.plain_terms import PlainTerms, RoughError
from tests.zoo import Case

TOLERANCE = 2e-5
"""Relative error of float32 where two ways of computing one thing are compared."""

RECIPES = (("exhaustive", 0), ("exhaustive", 1), ("exhaustive", 2), ("components", 1), ("lens", 0))


def agree(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE, scale: float | None = None) -> None:
    """Of one shape, finite, and equal up to the tolerance relative to the largest value (or to `scale`)."""
    assert found.shape == expected.shape
    assert bool(found.isfinite().all())
    largest = float(expected.detach().abs().max()) if scale is None else scale
    assert float((found - expected).detach().abs().max()) <= tolerance * largest


def compiled(example: Example, paths: Any, order: int | None = None, **options: Any) -> jg.PathValues:
    """The values of paths on the example's inputs."""
    with torch.no_grad():
        return jg.compile(jg.expand(example.graph, order, **options), paths)(**example.inputs)


def check_terms(values: jg.PathValues, expected: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Exactly these terms, with these values."""
    assert {str(path) for path in values.terms} == set(expected)
    for text, value in expected.items():
        agree(values.terms[text], value, tolerance)


def linearised(function: Callable[[Tensor], Tensor], centre: Tensor, direction: Tensor) -> Tensor:
    """D f(centre)[direction]. Forward mode is right at order 1; it is only from order 2 on that PyTorch's is not."""
    return torch.func.jvp(function, (centre,), (direction,))[1]


# Every model, against plain runs of the graph's pieces


def spread_out(expansion: jg.Expansion) -> list[jg.Path]:
    """The first, the last and some paths between, among them the shortest and the longest."""
    every = jg.select(expansion, "**")
    count = every.count()
    places = {0, 1, count // 3, count // 2, 2 * count // 3, count - 2, count - 1}
    return [every[place] for place in sorted(place for place in places if 0 <= place < count)]


def of_one_order(expansion: jg.Expansion) -> list[jg.Path]:
    """For the first, a middle and the last nonlinear site: paths that take the highest order there and 0 elsewhere."""
    places = [place for place in expansion.passages.values() if any(hop.order for hop in place.hops)]
    found: dict[jg.Path, None] = {}
    for place in {id(place): place for place in (*places[:1], *places[len(places) // 2 :][:1], *places[-1:])}.values():
        hop = place.hops[-1]
        pattern = f"** > {hop}" if place.site.role == "decoder" else f"** > {hop} > **"
        every = jg.select(expansion, pattern)
        for end in (every[:200], every[-200:]):
            found |= dict.fromkeys(islice((path for path in end if path.order == hop.order), 2))
    return list(found)


def doubled(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_zoo(case: Case, traced: Callable[..., Example]) -> None:
    """Terms + remainder are the model's output in float32; in float64, terms are what plain runs give."""
    example = traced(case)
    graph64 = example.graph.relocated(lambda name: as_double(example.graph.traced.tensors[name]))
    inputs64 = doubled(example.inputs)
    compared: Counter[int] = Counter()
    for recipe, order in RECIPES:
        expansion = jg.expand(example.graph, order, recipe=recipe, orders="apart")
        paths = list(dict.fromkeys([*spread_out(expansion), *of_one_order(expansion)]))
        module = jg.compile(expansion, paths)
        with torch.no_grad():
            values = module(**example.inputs)
            assert tuple(values.terms) == tuple(paths)
            agree(values.output, example.output)
            total = sum(values.terms.values(), torch.zeros_like(example.output))
            agree(total + values.remainder, example.output, scale=largest(total, example.output))
            assert all(value.shape == example.output.shape for value in values.terms.values())
            if recipe == "lens":
                continue
            exact = module.double()(**inputs64)
            plain = PlainTerms(expansion, graph64, inputs64)
            for path in paths:
                if max(hop.order or 0 for hop in path.hops) != path.order:
                    continue  # differences of differences lose too many digits
                try:
                    expected = plain(path)
                except RoughError:
                    continue
                compared[path.order] += 1
                agree(exact.terms[path], expected, 1e-4 if path.order else 1e-9, largest(expected, exact.output))
    joined = bool(example.graph.stream.stages) or not example.graph.outline.decoder.affine
    assert compared[0] >= 3 * joined
    # Where the one term is the stream, there are none of higher orders.
    if any(hop.order for hop in jg.expand(example.graph, 1, orders="apart").automaton.hops()):
        assert compared[1]
        assert compared[2]


def as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def largest(*values: Tensor) -> float:
    return max(float(value.detach().abs().max()) for value in values)


# Terms by hand, from the models' own modules


def causal_mask(length: int) -> Tensor:
    """What eager attention adds to its scores: a large negative number where a key lies ahead."""
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]


class GPT2:
    """The pieces of the GPT-2 of the zoo, and its stream written out."""

    def __init__(self, example: Example) -> None:
        model: Any = example.model
        self.blocks, self.norm, self.head = model.transformer.h, model.transformer.ln_f, model.lm_head
        ids = example.inputs["input_ids"]
        self.embed = model.transformer.wte(ids)
        self.pos = model.transformer.wpe(torch.arange(ids.shape[1])).expand_as(self.embed).contiguous()
        self.mask = causal_mask(ids.shape[1])
        self.stream = [self.embed + self.pos]
        self.parts = {"embed": self.embed, "pos": self.pos}
        for alias, branch in self.branches.items():
            self.parts[alias] = branch(self.stream[-1])
            self.stream.append(self.stream[-1] + self.parts[alias])

    def attn(self, layer: int, x: Tensor) -> Tensor:
        block = self.blocks[layer]
        return block.attn(block.ln_1(x), attention_mask=self.mask)[0]

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        block = self.blocks[layer]
        return block.mlp(block.ln_2(x))

    @property
    def branches(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {
            "L0.attn": partial(self.attn, 0),
            "L0.mlp": partial(self.mlp, 0),
            "L1.attn": partial(self.attn, 1),
            "L1.mlp": partial(self.mlp, 1),
        }

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


@pytest.fixture
def gpt2(traced: Callable[..., Example]) -> Example:
    return traced(zoo.case("gpt2"), dynamic=False)


@pytest.fixture
def hand(gpt2: Example) -> Iterator[GPT2]:
    with torch.no_grad():
        yield GPT2(gpt2)


def test_the_stream_by_hand_is_the_model(gpt2: Example, hand: GPT2) -> None:
    """So that what is compared below is compared with the model and not with a slip of this file."""
    agree(hand.logits(hand.stream[-1]), gpt2.output)


def test_gpt2(gpt2: Example, hand: GPT2) -> None:
    expected = {
        "embed > logits^0": hand.logits(hand.embed),
        "embed > L0.mlp^0 > logits^0": hand.logits(hand.mlp(0, hand.embed)),
        "pos > L0.attn^0 > logits^0": hand.logits(hand.attn(0, hand.pos)),
        "embed > L0.attn^0 > L0.mlp^0 > L1.attn^0 > L1.mlp^0 > logits^0": hand.logits(
            hand.mlp(1, hand.attn(1, hand.mlp(0, hand.attn(0, hand.embed))))
        ),
        "pos > L1.attn^0 > L1.mlp^0 > logits^0": hand.logits(hand.mlp(1, hand.attn(1, hand.pos))),
    }
    check_terms(compiled(gpt2, list(expected), recipe="path"), expected)


def test_gpt2_by_the_pattern_of_the_documentation(gpt2: Example, hand: GPT2) -> None:
    values = compiled(gpt2, "embed > *.mlp > logits", recipe="path")
    expected = {f"embed > L{i}.mlp^0 > logits^0": hand.logits(hand.mlp(i, hand.embed)) for i in range(2)}
    check_terms(values, expected)


def test_gpt2_at_order_1(gpt2: Example, hand: GPT2) -> None:
    """w Df(x)[h − x] with w = 1/n for the n = 2·3^p terms at point p."""
    e, p, h, branch = hand.embed, hand.pos, hand.stream, hand.branches
    first = linearised(branch["L0.attn"], e, h[0] - e) / 2
    second = linearised(branch["L1.mlp"], first, h[3] - first) / 54
    attended = branch["L0.attn"](p) / 2
    expected = {
        "embed > logits^1": linearised(hand.logits, e, h[4] - e) / 162,
        "embed > L0.attn^1 > logits^0": hand.logits(first) / 162,
        "embed > L0.attn^1 > L1.mlp^1 > logits^0": hand.logits(second) / 162,
        "pos > L0.attn^0 > L0.mlp^1 > logits^0": hand.logits(
            linearised(branch["L0.mlp"], attended, h[1] - attended) / 6
        )
        / 162,
        "pos > L0.attn^0 > L1.attn^0 > logits^1": linearised(
            hand.logits, branch["L1.attn"](attended) / 18, h[4] - branch["L1.attn"](attended) / 18
        )
        / 162,
    }
    values = compiled(gpt2, list(expected), 1, orders="apart", scale="none")
    for text, value in expected.items():
        agree(values.terms[text], value, 1e-4)


def test_gpt2_with_orders_together(gpt2: Example, hand: GPT2) -> None:
    """w J^1 f(x)(h) is one term and then one centre: n = 2·2^p terms at point p."""
    e, h, branch = hand.embed, hand.stream, hand.branches

    def jet(function: Callable[[Tensor], Tensor], x: Tensor, point: int) -> Tensor:
        return (function(x) + linearised(function, x, h[point] - x)) / 2 ** (point + 1)

    attended = jet(branch["L0.attn"], e, 0)
    both = jet(branch["L1.mlp"], attended, 3)
    expected = {
        "embed > logits~1": jet(hand.logits, e, 4),
        "embed > L0.attn~1 > logits~1": jet(hand.logits, attended, 4),
        "embed > L0.attn~1 > L1.mlp~1 > logits~1": jet(hand.logits, both, 4),
    }
    check_terms(compiled(gpt2, list(expected), 1, orders="together", scale="none"), expected, 1e-4)
    apart = compiled(gpt2, "embed > L0.attn > L1.mlp > logits", 1, scale="none")
    assert [str(path) for path in apart.terms] == [f"embed > L0.attn~1 > L1.mlp~1 > logits^{j}" for j in range(2)]
    agree(apart.total, expected["embed > L0.attn~1 > L1.mlp~1 > logits~1"], 1e-4)


def test_uniform_weights_of_order_0_sum_to_the_model_without_its_nonlinearity(gpt2: Example, hand: GPT2) -> None:
    """Each centre of n at a site has weight 1/n: order 0 terms average what the function gives them. What a norm reads
    has no weight."""
    values = compiled(gpt2, "embed > L1.mlp > logits", 0)
    agree(values.terms["embed > L1.mlp^0 > logits^0"], hand.logits(hand.mlp(1, hand.embed)) / 32)


def test_llama(traced: Callable[..., Example]) -> None:
    """Rotary positions are a side input: attention gets the model's own."""
    example = traced(zoo.case("llama"))
    model: Any = example.model
    ids = example.inputs["input_ids"]
    layers = model.model.layers
    with torch.no_grad():
        e = model.model.embed_tokens(ids)
        rotary = model.model.rotary_emb(e, torch.arange(ids.shape[1])[None])
        mask = causal_mask(ids.shape[1])

        def attn(i: int, x: Tensor) -> Tensor:
            x = layers[i].input_layernorm(x)
            return layers[i].self_attn(hidden_states=x, position_embeddings=rotary, attention_mask=mask)[0]

        def mlp(i: int, x: Tensor) -> Tensor:
            return layers[i].mlp(layers[i].post_attention_layernorm(x))

        def logits(x: Tensor) -> Tensor:
            return model.lm_head(model.model.norm(x))

        h1 = e + attn(0, e)
        expected = {
            "embed > logits^0": logits(e),
            "embed > L0.mlp^0 > logits^0": logits(mlp(0, e)),
            "embed > L0.attn^0 > L1.attn^0 > logits^0": logits(attn(1, attn(0, e))),
            "embed > L1.attn^0 > L1.mlp^0 > logits^0": logits(mlp(1, attn(1, e))),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)
        moved = compiled(example, "embed > L0.mlp^1 > logits^0", 1, weights="unit", orders="apart", scale="none")
        agree(moved.terms["embed > L0.mlp^1 > logits^0"], logits(linearised(partial(mlp, 0), e, h1 - e)), 1e-4)


def test_gptj(traced: Callable[..., Example]) -> None:
    """Attention and MLP beside each other read one norm; the unembedding's bias is a term of its own."""
    example = traced(zoo.case("gptj"))
    model: Any = example.model
    ids = example.inputs["input_ids"]
    blocks, norm, head = model.transformer.h, model.transformer.ln_f, model.lm_head
    with torch.no_grad():
        e = model.transformer.wte(ids)
        positions = torch.arange(ids.shape[1])[None].expand_as(ids)
        mask = causal_mask(ids.shape[1])

        def attn(i: int, x: Tensor) -> Tensor:
            return blocks[i].attn(blocks[i].ln_1(x), attention_mask=mask, position_ids=positions)[0]

        def logits(x: Tensor) -> Tensor:
            return F.linear(norm(x), head.weight)

        expected = {
            "embed > L0.attn^0 > L1.mlp^0 > logits^0": logits(blocks[1].mlp(blocks[1].ln_1(attn(0, e)))),
            "embed > L0.mlp^0 > L1.attn^0 > logits^0": logits(attn(1, blocks[0].mlp(blocks[0].ln_1(e)))),
            "bias > logits": head.bias.expand_as(example.output),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)


def test_bert(traced: Callable[..., Example]) -> None:
    """Post-norm: every path passes the norms on the stream, and the last one is the decoder's."""
    example = traced(zoo.case("bert"))
    model: Any = example.model
    embeddings, layers, head = model.bert.embeddings, model.bert.encoder.layer, model.cls.predictions
    with torch.no_grad():

        def attn(i: int, x: Tensor) -> Tensor:
            attention = layers[i].attention
            return attention.output.dense(attention.self(x)[0])

        def mlp(i: int, x: Tensor) -> Tensor:
            return layers[i].output.dense(layers[i].intermediate(x))

        def after_attn(i: int, x: Tensor) -> Tensor:
            return layers[i].attention.output.LayerNorm(x)

        def logits(x: Tensor) -> Tensor:
            return F.linear(head.transform(layers[1].output.LayerNorm(x)), head.decoder.weight)

        word = embeddings.LayerNorm(embeddings.word_embeddings(example.inputs["input_ids"]))
        positions = embeddings.position_embeddings(torch.arange(7)).expand_as(word)
        skipped = layers[0].output.LayerNorm(after_attn(0, word))
        norms = "L0.norm^0 > L0.norm.2^0 > L1.norm^0"
        expected = {
            f"embed > norm^0 > {norms} > logits^0": logits(after_attn(1, skipped)),
            "embed > norm^0 > L0.norm^0 > L0.mlp^0 > L0.norm.2^0 > L1.attn^0 > L1.norm^0 > logits^0": logits(
                after_attn(1, attn(1, layers[0].output.LayerNorm(mlp(0, after_attn(0, word)))))
            ),
            f"position_embeddings > norm^0 > L0.attn^0 > {norms} > L1.mlp^0 > logits^0": logits(
                mlp(
                    1,
                    after_attn(1, layers[0].output.LayerNorm(after_attn(0, attn(0, embeddings.LayerNorm(positions))))),
                )
            ),
            "bias > logits": head.decoder.bias.expand_as(example.output),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)


def test_t5(traced: Callable[..., Example]) -> None:
    """The decoder's stream; cross-attention has the encoder's true output as a side input."""
    example = traced(zoo.case("t5"))
    model: Any = example.model
    blocks = model.decoder.block
    ids = example.inputs["decoder_input_ids"]
    with torch.no_grad():
        encoded = model.encoder(example.inputs["input_ids"])[0]
        e = model.shared(ids)
        first = blocks[0].layer[0].SelfAttention
        places = first.compute_bias(ids.shape[1], ids.shape[1], device=ids.device, past_seen_tokens=0)

        def attn(i: int, x: Tensor) -> Tensor:
            layer = blocks[i].layer[0]
            return layer.SelfAttention(layer.layer_norm(x), mask=causal_mask(ids.shape[1]), position_bias=places)[0]

        def cross(i: int, x: Tensor) -> Tensor:
            layer = blocks[i].layer[1]
            return layer.EncDecAttention(layer.layer_norm(x), key_value_states=encoded)[0]

        def mlp(i: int, x: Tensor) -> Tensor:
            layer = blocks[i].layer[2]
            return layer.DenseReluDense(layer.layer_norm(x))

        def logits(x: Tensor) -> Tensor:
            scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1
            return model.lm_head(model.decoder.final_layer_norm(x) * scale)

        expected = {
            "embed > decoder.L0.attn^0 > logits^0": logits(attn(0, e)),
            "embed > decoder.L0.attn.2^0 > decoder.L1.mlp^0 > logits^0": logits(mlp(1, cross(0, e))),
            "embed > decoder.L0.mlp^0 > decoder.L1.attn^0 > decoder.L1.attn.2^0 > logits^0": logits(
                cross(1, attn(1, mlp(0, e)))
            ),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)


def test_resnet(traced: Callable[..., Example]) -> None:
    """A projection skip passes a term by its linear part, and its constant is a source at that join."""
    example = traced(zoo.case("resnet_basic"))
    model: Any = example.model
    stages = model.resnet.encoder.stages
    shortcut = stages[1].layers[0].shortcut
    norm, linear = shortcut.normalization, model.classifier[1]
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = (norm.bias - norm.running_mean * scale)[:, None, None]

        def project(x: Tensor) -> Tensor:
            return shortcut.convolution(x) * scale[:, None, None]

        def logits(x: Tensor) -> Tensor:
            return F.linear(F.relu(x).mean((2, 3)), linear.weight)

        x = model.resnet.embedder(example.inputs["pixel_values"])
        shifted = F.relu(shift.expand(2, 12, 4, 4))
        expected = {
            "embed > L0.act^0 > L1.act^0 > L2.act^0 > logits^0": logits(F.relu(project(F.relu(F.relu(x))))),
            "embed > L0.conv^0 > L0.act^0 > L1.act^0 > L2.act^0 > L3.conv^0 > logits^0": logits(
                stages[1].layers[1].layer(F.relu(project(F.relu(F.relu(stages[0].layers[0].layer(x))))))
            ),
            "embed > L0.act^0 > L1.act^0 > L2.conv^0 > L2.act^0 > logits^0": logits(
                F.relu(stages[1].layers[0].layer(F.relu(F.relu(x))))
            ),
            "bias > L2.act^0 > logits^0": logits(shifted),
            "bias > L2.act^0 > L3.conv^0 > logits^0": logits(stages[1].layers[1].layer(shifted)),
            "logits.bias > logits": linear.bias.expand_as(example.output),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)


@pytest.mark.parametrize("name", ["dense_block", "dense_block_list"])
def test_dense_block(name: str, traced: Callable[..., Example]) -> None:
    """cat(a, b) = cat(a, 0) + cat(0, b): a term fills its own channels and leaves zeros in the others."""
    example = traced(zoo.case(name))
    model: Any = example.model
    with torch.no_grad():
        stem = F.conv2d(example.inputs["x"], model.stem.weight, padding=1)
        constant = model.stem.bias[:, None, None].expand_as(stem)

        def wide(x: Tensor, before: int, after: int) -> Tensor:
            return F.pad(x, (0, 0, 0, 0, before, after))

        def logits(x: Tensor) -> Tensor:
            return F.linear(F.relu(model.norm(x)).mean((2, 3)), model.fc.weight)

        layers = model.layers
        expected = {
            "embed > logits^0": logits(wide(stem, 0, 6)),
            "bias > L1.conv^0 > logits^0": logits(wide(layers[1](wide(constant, 0, 2)), 6, 2)),
            "embed > L0.conv^0 > L2.conv^0 > logits^0": logits(wide(layers[2](wide(layers[0](stem), 4, 2)), 8, 0)),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)


@pytest.mark.parametrize("name", ["unet", "unet_additive"])
def test_unet(name: str, traced: Callable[..., Example]) -> None:
    """The long skip carries the first level's features to the decoder; the other levels are one branch."""
    example = traced(zoo.case(name))
    model: Any = example.model
    with torch.no_grad():
        e1 = F.relu(model.enc1(example.inputs["x"]))
        e2 = F.relu(model.enc2(F.max_pool2d(e1, 2)))
        u2 = model.up2(F.relu(model.mid(F.max_pool2d(e2, 2))))
        u1 = model.up1(F.relu(model.dec2(torch.cat([e2, u2], 1) if model.concatenate else e2 + u2)))

        def logits(x: Tensor) -> Tensor:
            return F.conv2d(F.relu(model.dec1(x)), model.out.weight)

        zero = torch.zeros_like(e1)
        expected = {
            "embed > logits^0": logits(torch.cat([e1, zero], 1) if model.concatenate else e1),
            "embed > L0.conv^0 > logits^0": logits(torch.cat([zero, u1], 1) if model.concatenate else u1),
            "bias > logits": model.out.bias[:, None, None].expand_as(example.output),
        }
        check_terms(compiled(example, list(expected), recipe="path"), expected)


# Terms in closed form, by sympy


class Quadratic(nn.Module):
    """h + W₂ (W₁ h)² in two dimensions, with weights that fractions print."""

    def __init__(self, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.w1.weight.copy_(torch.tensor(first))
            self.w2.weight.copy_(torch.tensor(second))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.w2(self.w1(h) ** 2)


def exact(tensor: Tensor) -> sympy.Matrix:
    """A vector or matrix of binary fractions as sympy has it."""
    return sympy.Matrix([[sympy.Rational(x) for x in row] for row in torch.atleast_2d(tensor).tolist()])


class ClosedForm:
    """The exhaustive expansion of a net of quadratic blocks for one input, in exact fractions.

    value ← w · (coefficient j of t ↦ f(x + t (h − x))), where sympy expands f in t.
    """

    def __init__(self, net: Any, x: Tensor, order: int, weights: str, together: Sequence[bool]) -> None:
        t = sympy.Symbol("t")
        stem, constant = exact(net.stem.weight) * exact(x).T, exact(net.stem.bias).T
        terms: dict[tuple[str, ...], sympy.Matrix] = {("embed",): stem, ("bias",): constant}
        h = stem + constant
        for number, block in enumerate(net.blocks):
            first, second = exact(block.w1.weight), exact(block.w2.weight)

            def f(v: sympy.Matrix, first: sympy.Matrix = first, second: sympy.Matrix = second) -> sympy.Matrix:
                return second * (first * v).applyfunc(lambda y: y**2)

            weight = sympy.Rational(1, len(terms)) if weights == "uniform" else sympy.Integer(1)
            made: dict[tuple[str, ...], sympy.Matrix] = {}
            for key, value in terms.items():
                along = f(value + t * (h - value)).applyfunc(sympy.expand)
                found = [
                    along.applyfunc(lambda y, j=j: sympy.Poly(y, t).coeff_monomial(t**j)) for j in range(order + 1)
                ]
                if order and together[number]:
                    made[*key, f"L{number}.mlp~{order}"] = weight * sum(found, sympy.zeros(2, 1))
                else:
                    made |= {(*key, f"L{number}.mlp^{j}"): weight * value for j, value in enumerate(found)}
            terms |= made
            h = h + f(h)
        head = exact(net.head.weight)
        self.output = head * h
        self.terms = {" > ".join((*key, "logits")): head * value for key, value in terms.items()}
        total = sympy.zeros(2, 1)
        for value in self.terms.values():
            total += value
        self.remainder = self.output - total


@functools.cache
def quadratic_net() -> tuple[nn.Module, jg.ResidualGraph, Tensor]:
    blocks = [
        Quadratic([[1, -0.5], [0.25, 1]], [[0.5, 0.25], [-0.5, 1]]),
        Quadratic([[0.5, 1], [1, -1]], [[1, 0], [0.5, -0.25]]),
    ]
    net = zoo.Network(nn.Linear(2, 2), list(blocks), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net.stem.weight.copy_(torch.tensor([[1, 0.5], [-0.25, 1]]))
        net.stem.bias.copy_(torch.tensor([0.5, -0.25]))
        net.head.weight.copy_(torch.tensor([[1, 2], [-1, 0.5]]))
    x = torch.tensor([[0.5, -0.25], [1.0, 0.75]], dtype=torch.float64)
    return net.double().eval(), jg.trace(net, x, dynamic=False), x


@pytest.mark.parametrize("weights", ["uniform", "unit"])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("orders", ["auto", "together", "apart"])
def test_every_term_of_a_polynomial_net(order: int, orders: Any, weights: Any) -> None:
    """All terms and the remainder in closed form; with weights that sum to 1, order 2 leaves none of a quadratic."""
    net, graph, x = quadratic_net()
    # After the second block comes what is affine.
    together = {"auto": (True, False), "together": (True, True), "apart": (False, False)}[orders]
    expansion = jg.expand(graph, order, weights=weights, orders=orders)
    values = jg.compile(expansion)(x)
    assert len(values.terms) == expansion.count() == 2 * math.prod(2 if whole else order + 2 for whole in together)
    for row in range(2):
        expected = ClosedForm(net, x[row], order, weights, together)
        assert {str(path) for path in values.terms} == set(expected.terms)
        for path, value in values.terms.items():
            numbers = torch.tensor([float(number) for number in expected.terms[str(path)]], dtype=torch.float64)
            torch.testing.assert_close(value[row].detach(), numbers, rtol=1e-12, atol=1e-13)
        left = torch.tensor([float(number) for number in expected.remainder], dtype=torch.float64)
        torch.testing.assert_close(values.remainder[row].detach(), left, rtol=1e-12, atol=1e-12)
        assert (expected.remainder == sympy.zeros(2, 1)) == (order >= 2 and weights == "uniform")


class Tanh(nn.Module):
    """h + W₂ tanh(W₁ h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def branch(self, h: Tensor) -> Tensor:
        return self.w2(torch.tanh(self.w1(h)))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


@torch.no_grad()
def test_the_worked_example_of_the_paper() -> None:
    """Two blocks, centres x_0 and γ_1(x_0), order 1: four paths, and what Algorithm 1 leaves, not 15 times that."""
    torch.manual_seed(0)
    net = zoo.Network(nn.Linear(6, 8, bias=False), [Tanh(8), Tanh(8)], nn.Linear(8, 5, bias=False)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    first, second = (block.branch for block in net.blocks)
    x0 = net.stem(x)
    h1 = x0 + first(x0)
    jets = [second(centre) + torch.func.jvp(second, (centre,), (h1 - centre,))[1] for centre in (x0, first(x0))]
    expected = [net.head(value) for value in (x0, jets[0] / 2, first(x0), jets[1] / 2)]
    graph = jg.trace(net, x, dynamic=False)
    values = jg.compile(jg.expand(graph, 1, orders="together"))(x)
    assert [str(path) for path in values.terms] == [
        "embed > logits",
        "embed > L1.mlp~1 > logits",
        "embed > L0.mlp~1 > logits",
        "embed > L0.mlp~1 > L1.mlp~1 > logits",
    ]
    for found, value in zip(values.terms.values(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values.remainder, net(x) - sum(expected), rtol=1e-10, atol=1e-12)
    # Apart at the end alone: the same sum, in terms by order. The first block's one centre is the stream.
    apart = jg.compile(jg.expand(graph, 1))(x)
    assert len(apart.terms) == 2 + 2 * 2
    torch.testing.assert_close(apart.remainder, values.remainder, rtol=1e-10, atol=1e-12)


def test_the_remainder_vanishes_at_the_degree(traced: Callable[..., Example]) -> None:
    example = traced(zoo.case("polynomial"))
    left = [largest(compiled(example, None, order).remainder) / largest(example.output) for order in range(3)]
    assert left[0] > 0.01
    assert left[1] > 0.01
    assert left[2] < TOLERANCE


def test_affine_branches_are_exact_at_every_order(traced: Callable[..., Example]) -> None:
    """Distribute: products of matrices along each path, the constants of stem, branches and head as terms."""
    example = traced(zoo.case("affine_branch"))
    model: Any = example.model
    one, two = (block.linear for block in model.blocks)
    head, stem = model.head, model.stem
    values = compiled(example, None)
    with torch.no_grad():
        x = F.linear(example.inputs["x"], stem.weight)

        def end(*values: Tensor) -> Tensor:
            return F.linear(sum(values[1:], values[0]), head.weight).expand_as(example.output)

        expected = {
            "embed > logits": end(x),
            "embed > L0.mlp > logits": end(F.linear(x, one.weight)),
            "embed > L0.mlp > L1.mlp > logits": end(F.linear(F.linear(x, one.weight), two.weight)),
            "bias > logits": end(stem.bias),
            "L0.mlp.bias > L1.mlp > logits": end(F.linear(one.bias, two.weight)),
            "L1.mlp.bias > logits": end(two.bias),
            "logits.bias > logits": head.bias.expand_as(example.output),
        }
    for text, value in expected.items():
        agree(values.terms[text], value)
    agree(values.total, example.output)
    assert len(values.terms) == 4 + 4 + 2 + 1 + 1


# Rules, weights, directions, lenses


def test_frozen_decoder_is_direct_logit_attribution(gpt2: Example, hand: GPT2) -> None:
    """(x_c − mean x_c) · γ / σ(h) · W_Uᵀ for each component, and the norm's shift once; nothing remains."""
    values = compiled(gpt2, None, recipe="components", rules={"logits": jg.Freeze()})
    h = hand.stream[-1]
    spread = (h.var(-1, unbiased=False, keepdim=True) + hand.norm.eps).sqrt()
    expected = {
        f"{alias} > logits": hand.head((x - x.mean(-1, keepdim=True)) / spread * hand.norm.weight)
        for alias, x in hand.parts.items()
    }
    expected["bias > logits"] = hand.head(hand.norm.bias).expand_as(gpt2.output)
    check_terms(values, expected)
    agree(values.total, gpt2.output)
    assert largest(values.remainder) < TOLERANCE * largest(gpt2.output)


def test_frozen_rms_norm(traced: Callable[..., Example]) -> None:
    """x_c · γ / rms(h) · W_Uᵀ: no mean, no shift."""
    example = traced(zoo.case("llama"))
    model: Any = example.model
    values = compiled(example, None, recipe="components", rules={"logits": jg.Freeze(("norm",))})
    with torch.no_grad():
        h = run_stream(example)[-1]
        norm = model.model.norm
        e = model.model.embed_tokens(example.inputs["input_ids"])
        rms = (h.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        agree(values.terms["embed > logits"], model.lm_head(e / rms * norm.weight))
    agree(values.total, example.output)
    assert set(map(str, values.terms)) == {
        *(f"{source} > logits" for source in ("embed", "L0.attn", "L0.mlp", "L1.attn", "L1.mlp"))
    }


def run_stream(example: Example) -> list[Tensor]:
    """The points of the stream as transformers returns them, the last one before the norm read off by a hook."""
    model: Any = example.model
    seen: list[Tensor] = []
    with torch.no_grad():
        handle = model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        hidden = model(**example.inputs, output_hidden_states=True).hidden_states
        handle.remove()
    return [*hidden[:-1], seen[0]]


def test_frozen_attention(gpt2: Example, hand: GPT2) -> None:
    """Norm and pattern held at the true stream: a term goes through W_V and W_O alone; sources sum to the branch."""
    rules = {"L0.attn": jg.Freeze(), "L0.mlp": jg.Atom(), "L1.*": jg.Atom(), "logits": jg.Freeze()}
    values = compiled(gpt2, None, rules=rules)
    block = hand.blocks[0]
    h0, h4 = hand.stream[0], hand.stream[-1]
    pattern = attention_pattern(block, h0, hand.mask)

    def through(x: Tensor) -> Tensor:
        spread = (h0.var(-1, unbiased=False, keepdim=True) + block.ln_1.eps).sqrt()
        x = (x - x.mean(-1, keepdim=True)) / spread * block.ln_1.weight
        v = (x @ block.attn.c_attn.weight)[..., 32:].unflatten(-1, (2, 8)).transpose(1, 2)
        return (pattern @ v).transpose(1, 2).flatten(2) @ block.attn.c_proj.weight

    def logits(x: Tensor) -> Tensor:
        spread = (h4.var(-1, unbiased=False, keepdim=True) + hand.norm.eps).sqrt()
        return hand.head((x - x.mean(-1, keepdim=True)) / spread * hand.norm.weight)

    moved = {source: through(x) for source, x in (("embed", hand.embed), ("pos", hand.pos))}
    expected = {f"{source} > L0.attn > logits": logits(x) for source, x in moved.items()}
    expected["L0.attn.bias > logits"] = logits(hand.parts["L0.attn"] - moved["embed"] - moved["pos"])
    expected |= {f"{alias} > logits": logits(x) for alias, x in hand.parts.items() if alias != "L0.attn"}
    expected["bias > logits"] = hand.head(hand.norm.bias).expand_as(gpt2.output)
    check_terms(values, expected, 5e-5)
    agree(values.total, gpt2.output)


def attention_pattern(block: Any, h: Tensor, mask: Tensor) -> Tensor:
    q, k, _ = (block.ln_1(h) @ block.attn.c_attn.weight + block.attn.c_attn.bias).split(16, dim=-1)
    q, k = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-1, -2) / 8**0.5 + mask).softmax(-1)


def test_frozen_gate(traced: Callable[..., Example]) -> None:
    """silu(gate) and the norm held: the MLP of Llama is linear in what goes up."""
    example = traced(zoo.case("llama"))
    model: Any = example.model
    rules = {"*.attn": jg.Atom(), "L0.mlp": jg.Freeze(), "L1.mlp": jg.Atom(), "logits": jg.Freeze()}
    values = compiled(example, ["embed > L0.mlp > logits", "L0.attn > L0.mlp > logits"], rules=rules)
    with torch.no_grad():
        layer, norm = model.model.layers[0], model.model.norm
        e = model.model.embed_tokens(example.inputs["input_ids"])
        seen: list[Tensor] = []
        handle = layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**example.inputs)
        handle.remove()
        h1, h4 = seen[0], run_stream(example)[-1]

        def logits(x: Tensor) -> Tensor:
            return model.lm_head(x / (h4.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight)

        def mlp(x: Tensor) -> Tensor:
            before = layer.post_attention_layernorm
            x = x / (h1.pow(2).mean(-1, keepdim=True) + before.variance_epsilon).sqrt() * before.weight
            return layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(before(h1))) * layer.mlp.up_proj(x))

        expected = {"embed > L0.mlp > logits": logits(mlp(e)), "L0.attn > L0.mlp > logits": logits(mlp(h1 - e))}
        check_terms(values, expected, 5e-5)


def test_a_freeze_that_leaves_something_nonlinear_says_what(gpt2: Example) -> None:
    expansion = jg.expand(gpt2.graph, 0, rules={"L0.mlp": jg.Freeze(("norm",))})
    with pytest.raises(jg.JetGraphError, match=r"gelu|tanh|pow|mul"):
        jg.compile(expansion, "embed > L0.mlp > ** > logits")(**gpt2.inputs)


def test_atom(gpt2: Example, hand: GPT2) -> None:
    """A branch at the true stream starts a history of its own."""
    values = compiled(gpt2, "L0.mlp > ** > logits", 0, rules={"L0.mlp": jg.Atom()}, weights="unit")
    atom = hand.parts["L0.mlp"]
    expected = {
        "L0.mlp > logits^0": hand.logits(atom),
        "L0.mlp > L1.mlp^0 > logits^0": hand.logits(hand.mlp(1, atom)),
        "L0.mlp > L1.attn^0 > logits^0": hand.logits(hand.attn(1, atom)),
        "L0.mlp > L1.attn^0 > L1.mlp^0 > logits^0": hand.logits(hand.mlp(1, hand.attn(1, atom))),
    }
    check_terms(values, expected)


def test_weights_by_mapping(gpt2: Example, hand: GPT2) -> None:
    """Relative weights of the centres that arrive, scaled to sum to 1; what a norm reads has none."""
    paths = ["embed > L0.attn^0 > logits^0", "embed > L0.mlp^0 > logits^0", "pos > logits^0"]
    values = compiled(gpt2, paths, 0, weights={"embed": 3, "L*": 1})
    total = 3 + 31  # 32 centres arrive at the sink; one of them is the embedding itself
    expected = {
        paths[0]: hand.logits(hand.attn(0, hand.embed)) / total,
        paths[1]: hand.logits(hand.mlp(0, hand.embed)) / total,
        paths[2]: hand.logits(hand.pos) / total,
    }
    check_terms(values, expected)


def test_a_centre_of_weight_1_is_the_whole_expansion(gpt2: Example, hand: GPT2) -> None:
    """All weight on one centre leaves the others' terms zero."""
    values = compiled(gpt2, None, 0, recipe="components", weights={"*": 0, "embed": 1})
    agree(values.terms["embed > logits^0"], hand.logits(hand.embed))
    assert all(largest(value) == 0 for path, value in values.terms.items() if str(path.source) != "embed")


def test_directions_along_terms(gpt2: Example, hand: GPT2) -> None:
    """Order 1 split over the components: the term of component m is Σ_{i≠m} w_i Df(x_i)[x_m]."""
    values = compiled(gpt2, None, 1, recipe="components", directions="terms", scale="none")
    parts = hand.parts
    expected = {f"{alias} > logits^0": hand.logits(x) / 6 for alias, x in parts.items()}
    expected |= {
        f"{alias} > logits^1": sum(
            (linearised(hand.logits, centre, x) / 6 for other, centre in parts.items() if other != alias),
            torch.zeros_like(gpt2.output),
        )
        for alias, x in parts.items()
    }
    check_terms(values, expected, 1e-4)


def test_directions_along_terms_add_up_to_the_stream(gpt2: Example) -> None:
    """With atoms before it, what arrives at the decoder is the whole stream, so both splits have one total."""
    whole = compiled(gpt2, "** > logits^1", 1, recipe="components")
    split = compiled(gpt2, "** > logits^1", 1, recipe="components", directions="terms")
    agree(split.total, whole.total, 1e-4)


def deep_net(blocks: int = 60) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = zoo.Network(nn.Linear(6, 8, bias=False), [zoo.Polynomial() for _ in range(blocks)], nn.Linear(8, 5))
        with torch.no_grad():
            for parameter in net.blocks.parameters():
                parameter.mul_(0.2)
        return net.eval(), torch.randn(2, 6)


@pytest.fixture(scope="module")
def deep() -> tuple[jg.ResidualGraph, Tensor]:
    net, x = deep_net()
    return jg.trace(net, x, dynamic=False), x


def test_every_centre_of_a_deep_net_is_over_budget(deep: tuple[jg.ResidualGraph, Tensor]) -> None:
    """Splitting along terms reads all that arrive; 2^59 of them are refused when the path is planned."""
    expansion = jg.expand(deep[0], 1, directions="terms")
    with pytest.raises(jg.BudgetError, match=r"L59\.mlp.*directions=\"stream\""):
        jg.compile(expansion, "embed > L59.mlp^1 > logits")


def test_more_paths_than_the_budget(deep: tuple[jg.ResidualGraph, Tensor]) -> None:
    """Counted, not listed: 2^59 + 2^59 · 2 paths would never end."""
    expansion = jg.expand(deep[0], 1)
    with pytest.raises(jg.BudgetError, match=re.escape("≈ 1.73e+18")):
        jg.compile(expansion)
    with pytest.raises(jg.BudgetError, match="budget of 3"):
        jg.compile(jg.expand(deep[0], 0, recipe="components"), budget=3)
    assert len(jg.compile(expansion, jg.select(expansion, "**")[:10])(deep[1]).terms) == 10


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logit_lens(name: str, traced: Callable[..., Example]) -> None:
    """Order 0 is the model's norm and unembedding on its hidden states, order 1 adds the derivative towards the end."""
    example = traced(zoo.case(name))
    model: Any = example.model
    values = compiled(example, None, 1, recipe="lens", layers=[0, 2, 4], scale="none")
    with torch.no_grad():
        hidden = model(**example.inputs, output_hidden_states=True).hidden_states
        norm = model.transformer.ln_f if name == "gpt2" else model.model.norm

        def logits(x: Tensor) -> Tensor:
            return model.lm_head(norm(x))

        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**example.inputs)
        handle.remove()
        for point, h in ((0, hidden[0]), (2, hidden[1])):
            agree(values.terms[f"h{point} > logits^0"], logits(h))
            agree(values.terms[f"h{point} > logits^1"], linearised(logits, h, seen[0] - h), 1e-4)
    agree(values.terms["h4 > logits^0"], example.output)
    assert largest(values.terms["h4 > logits^1"]) < TOLERANCE * largest(example.output)


def test_a_lens_looks_past_a_projection_of_the_stream(traced: Callable[..., Example]) -> None:
    """Between two stages the stream goes through a norm, which is left out, and a strided convolution."""
    example = traced(zoo.case("convnext"))
    term = compiled(example, None, recipe="lens", layers=0).terms["h0 > logits^0"]
    model = example.model
    with torch.no_grad():
        down = model.convnext.encoder.stages[1].downsampling_layer[1]
        h = F.conv2d(model.convnext.embeddings(example.inputs["pixel_values"]), down.weight, stride=down.stride)
        linear = model.classifier
        expected = F.linear(model.convnext.layernorm(h.mean([-2, -1])), linear.weight)
    assert torch.allclose(term, expected, atol=1e-5)


class Pooled(nn.Module):
    """The largest of every two features is all that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.one(x))
        x = x.view(-1, 4, 2).amax(-1)
        return x + torch.tanh(self.two(x))


def test_a_lens_before_a_nonlinear_change_of_shape_is_refused() -> None:
    x = torch.randn(3, 8)
    graph = jg.trace(Pooled().eval(), x, dynamic=False)
    with pytest.raises(jg.JetGraphError, match=r"h0.*L0\.act"):
        jg.compile(jg.expand(graph, recipe="lens", layers=0))(x)


# The module


@contextmanager
def counted() -> Iterator[Counter[str]]:
    with torch.no_grad(), Operators() as operators:
        yield operators.counts


def test_paths_from_the_embedding_take_no_forward_pass(gpt2: Example) -> None:
    module = jg.compile(jg.expand(gpt2.graph, recipe="path"), "embed > L0.mlp > logits")
    with counted() as counts:
        values = module(**gpt2.inputs)
    assert counts["_softmax"] == 0, "no attention took place"
    assert counts["native_layer_norm"] == 2, "the MLP's norm and the final one"
    assert "no forward pass" in repr(module)
    with counted() as counts:
        agree(values.output, gpt2.output)
    assert counts["_softmax"] == 2, "the output is computed when it is asked for"


def test_the_forward_pass_runs_once(gpt2: Example) -> None:
    """Atoms, variates and the output share one forward pass of two attentions."""
    module = jg.compile(jg.expand(gpt2.graph, recipe="components"))
    with counted() as counts:
        values = module(**gpt2.inputs)
        total = values.total + values.remainder
        assert values.output is values.output
    agree(total, gpt2.output)
    assert counts["_softmax"] == 2
    assert "the forward pass up to h4" in repr(module)


def test_common_prefixes_run_once(gpt2: Example) -> None:
    paths = [
        f"embed > L0.attn^0 > {rest}logits^0" for rest in ("", "L0.mlp^0 > ", "L1.mlp^0 > ", "L0.mlp^0 > L1.mlp^0 > ")
    ]
    module = jg.compile(jg.expand(gpt2.graph, recipe="path"), paths)
    with counted() as counts:
        module(**gpt2.inputs)
    assert counts["_softmax"] == 1
    assert counts["native_layer_norm"] == 1 + 3 + 4, "one attention, three MLPs, four decoders"


def test_orders_at_one_site_come_from_one_evaluation(gpt2: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders 0 to 3 at the decoder, and at the branch before it, are coefficients of one series each."""
    runs: Counter[int] = Counter()

    def counting(nodes: Any, values: Any, order: int = 0, **options: Any) -> Any:
        if any(isinstance(value, jg.Series) and value.start == 0 for value in values.values()):
            runs[order] += 1
        return evaluate(nodes, values, order, **options)

    monkeypatch.setattr("jetgraph.running.pieces.evaluate", counting)
    expansion = jg.expand(gpt2.graph, 3, orders="apart")
    module = jg.compile(
        expansion, [f"embed > L0.mlp^3 > logits^{j}" for j in range(4)] + ["embed > L0.mlp^1 > logits^0"]
    )
    with torch.no_grad():
        module(**gpt2.inputs)
    assert runs == {3: 2}, "the MLP and the decoder; the other path needs no series at the decoder"


@pytest.mark.parametrize(("name", "sizes"), [("gpt2", [(3, 10), (1, 4)]), ("basic_resnet", [(5, None), (1, None)])])
def test_other_batch_sizes_and_lengths(
    name: str, sizes: list[tuple[int, int | None]], traced: Callable[..., Example]
) -> None:
    example = traced(zoo.case(name))
    expansion = jg.expand(example.graph, 1)
    module = jg.compile(expansion, spread_out(expansion))
    for batch, length in sizes:
        inputs = example.case.inputs(batch, length)
        values = module(**inputs)
        fresh = jg.trace(example.model, dynamic=False, **inputs)
        expected = jg.compile(jg.expand(fresh, 1), list(map(str, values.terms)))(**inputs)
        agree(values.output, run(example.model, inputs))
        assert list(values.terms) == list(expected.terms)
        for path, value in values.terms.items():
            agree(value, expected.terms[path], scale=largest(value, values.output))


def test_double_precision_leaves_the_model_alone(gpt2: Example) -> None:
    before = {name: (id(tensor), tensor.dtype) for name, tensor in gpt2.model.named_parameters()}
    module = jg.compile(jg.expand(gpt2.graph, 2, recipe="components"))
    single = module(**gpt2.inputs)
    double = module.to(torch.float64)(**gpt2.inputs)
    assert {name: (id(tensor), tensor.dtype) for name, tensor in gpt2.model.named_parameters()} == before
    assert double.output.dtype == torch.float64
    assert all(value.dtype == torch.float64 for value in double.terms.values())
    true = run(zoo.case("gpt2").build().double(), gpt2.inputs)
    agree(double.output, true, 1e-12)
    for path, value in double.terms.items():
        agree(single.terms[path].double(), value, 1e-3, scale=largest(value))
    assert largest(single.output - true) > 1e3 * largest(double.output - true)
    assert single.output.dtype == torch.float32
    assert jg.compile(module.expansion, "embed > logits^0")(**gpt2.inputs).output.dtype == torch.float32


def test_precision_moves_again(gpt2: Example) -> None:
    """Each move is followed, not only the first."""
    module = jg.compile(jg.expand(gpt2.graph, 1), "embed > L0.mlp > logits")
    first = module(**gpt2.inputs)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float64):
        values = module.to(dtype)(**gpt2.inputs)
        assert {value.dtype for value in values.terms.values()} == {values.output.dtype} == {dtype}
    for path, value in first.terms.items():
        agree(values.terms[path].float(), value, 0.1)


def test_precision_there_and_back() -> None:
    """A norm that the model computes in float32 stays in float32 when bfloat16 weights come back from float32."""
    case = zoo.case("llama")
    graph = jg.trace(case.build().to(torch.bfloat16), dynamic=False, **case.inputs())
    module = jg.compile(jg.expand(graph, 0, recipe="path"), "embed > L0.mlp > logits")
    first = module(**case.inputs())
    module.float()(**case.inputs())
    again = module.to(torch.bfloat16)(**case.inputs())
    for path, value in first.terms.items():
        assert torch.equal(again.terms[path], value)
    assert torch.equal(again.output, first.output)


def test_gradients_reach_the_weights_of_the_module(gpt2: Example) -> None:
    """The derivative of a term for its own parameters, which are not the model's."""
    module = jg.compile(jg.expand(gpt2.graph, recipe="path"), "embed > L0.mlp^0 > logits^0")
    model: Any = zoo.case("gpt2").build()
    block = model.transformer.h[0]
    e = model.transformer.wte(gpt2.inputs["input_ids"])
    expected = model.lm_head(model.transformer.ln_f(block.mlp(block.ln_2(e))))
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    (module(**gpt2.inputs).terms["embed > L0.mlp^0 > logits^0"] * direction).sum().backward()
    found = {name.removeprefix("weights."): parameter.grad for name, parameter in module.named_parameters()}
    assert {"transformer.h.0.mlp.c_fc.weight", "transformer.ln_f.bias", "lm_head.weight"} <= set(found)
    assert model.lm_head.weight is model.transformer.wte.weight, "tied, and one parameter of the module too"
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.grad is None:
            assert found.get(name) is None or not bool(found[name].any()), name
        elif name in found:
            gradient = found[name]
            assert gradient is not None, name
            agree(gradient, parameter.grad, 1e-4)
    assert all(parameter.grad is None for parameter in gpt2.model.parameters())


def test_gradients_of_order_1_and_of_the_remainder(gpt2: Example) -> None:
    """Through the true stream too: the sum of terms and remainder has the gradients of the model's output."""
    module = jg.compile(jg.expand(gpt2.graph, 1, recipe="components"))
    model: Any = zoo.case("gpt2").build()
    values = module(**gpt2.inputs)
    direction = torch.randn_like(gpt2.output)
    ((values.total + values.remainder) * direction).sum().backward()
    (model(**gpt2.inputs).logits * direction).sum().backward()
    for name, parameter in module.named_parameters():
        true = model.get_parameter(name.removeprefix("weights.")).grad
        assert parameter.grad is not None
        assert true is not None
        agree(parameter.grad, true, 1e-3)


def test_no_grad(gpt2: Example) -> None:
    module = jg.compile(jg.expand(gpt2.graph, 1), "embed > L0.mlp > logits")
    assert all(value.requires_grad for value in module(**gpt2.inputs).terms.values())
    with torch.no_grad():
        values = module(**gpt2.inputs)
    assert not any(value.requires_grad for value in values.terms.values())
    with torch.inference_mode():
        agree(module(**gpt2.inputs).terms["embed > L0.mlp~1 > logits^0"], values.terms["embed > L0.mlp~1 > logits^0"])


def test_the_module_shares_the_memory_of_the_model(gpt2: Example) -> None:
    """A change of the model's weights in place is seen by the module, and none is held twice."""
    module = jg.compile(jg.expand(gpt2.graph, recipe="path"), "embed > logits")
    own = {tensor.data_ptr() for tensor in [*gpt2.model.parameters(), *gpt2.model.buffers()]}
    assert all(parameter.data_ptr() in own for parameter in module.parameters())
    assert not {id(parameter) for parameter in module.parameters()} & {id(p) for p in gpt2.model.parameters()}


def test_state_dict(gpt2: Example) -> None:
    """Weights go through safetensors into another module of the same paths."""
    expansion = jg.expand(gpt2.graph, 1)
    module = jg.compile(expansion, "embed > L0.mlp > logits")
    first = dict(module(**gpt2.inputs).terms)
    state = load(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
    other = jg.compile(expansion, "embed > L0.mlp > logits").double()
    for parameter in other.parameters():
        parameter.data.zero_()
    other.float().load_state_dict(state)
    again = other(**gpt2.inputs)
    for path, value in first.items():
        assert torch.equal(again.terms[path], value)


# Values, and what is refused


def test_sums_are_made_before_the_unembedding(traced: Callable[..., Example]) -> None:
    """`combine` gives weighted sums of terms, with a bias in the decoder too; `hidden` is what U is applied to."""
    for name in ("gpt2", "gptj"):
        example = traced(zoo.case(name))
        values = jg.compile(jg.expand(example.graph, 1, weights="unit"), "**")(**example.inputs)
        paths = list(values.terms)
        biased = "bias > logits" in map(str, paths)
        assert biased is (name == "gptj")
        weights = torch.randn(3, len(paths), generator=torch.Generator().manual_seed(0))
        weights[1, ::2] = 0
        terms = torch.stack([value.double() for value in values.terms.values()])
        expected = torch.einsum("rp,p...->r...", weights.double(), terms)
        agree(values.combine(weights), expected, 1e-5)
        agree(values.combine(weights[0]), expected[0], 1e-5)
        agree(values.total, terms.sum(0), 1e-5)
        agree(values.combine(torch.tensor([1.0, 0.5]), paths[:2]), terms[0] + terms[1] / 2, 1e-5, largest(terms))
        head: Any = example.model.lm_head
        for path in paths:
            bias = head.bias if str(path) == "bias > logits" else torch.zeros(())
            assert values.hidden[path].shape == (*example.output.shape[:-1], head.in_features)
            agree(values.hidden[path] @ head.weight.T + bias, values.terms[path], scale=largest(values.terms[path]))


@torch.no_grad()
def test_sums_go_into_given_memory(traced: Callable[..., Example]) -> None:
    """Where the decoder ends in a product without a bias; elsewhere the result is the same."""
    for name in ("gpt2", "gptj"):
        example = traced(zoo.case(name))
        values = jg.compile(jg.expand(example.graph, 1, weights="unit"), "**")(**example.inputs)
        weights = torch.ones(2, len(values.hidden))
        memory = torch.full((2, *example.output.shape), math.nan)
        found = values.combine(weights, out=memory)
        assert torch.equal(found, values.combine(weights))
        assert (found.data_ptr() == memory.data_ptr()) is (name == "gpt2")
        assert torch.equal(values.combine(weights[0], out=memory[1]), found[0])


@torch.no_grad()
def test_sums_at_one_position(traced: Callable[..., Example]) -> None:
    """With a bias in the decoder or without, in given memory, and where the output has no positions."""
    for name in ("gpt2", "gptj", "gemma2"):
        example = traced(zoo.case(name))
        values = jg.compile(jg.expand(example.graph, 1, weights="unit"), "**")(**example.inputs)
        weights = torch.randn(3, len(values.hidden), generator=torch.Generator().manual_seed(0))
        whole = values.combine(weights)
        for position in (0, 3, -1):
            found = values.combine(weights, position=position)
            assert found.shape == (3, 2, 1, zoo.VOCAB)
            agree(found[:, :, 0], whole[:, :, position], 1e-5, largest(whole))
            assert torch.equal(values.combine(weights, position=position, out=torch.empty_like(found)), found)
            agree(values.combine(weights[0], position=position)[:, 0], whole[0, :, position], 1e-5, largest(whole))
        with pytest.raises(jg.InputError, match="the output has positions 0 to 6"):
            values.combine(weights, position=7)
    example = traced(zoo.case("resnet_basic"))
    values = jg.compile(jg.expand(example.graph, 0))(**example.inputs)
    with pytest.raises(jg.InputError, match="has no positions"):
        values.combine(torch.ones(len(values.hidden)), position=-1)


@torch.no_grad()
@pytest.mark.parametrize("together", [3, 1000])
def test_each_term_is_a_row_of_weights_of_its_own(
    traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """With a bias in the decoder or without, at all positions or one, for all paths or some, in one product or several;
    nothing is quadratic."""
    monkeypatch.setattr("jetgraph.compilation.values.TOGETHER", together)
    for name in ("gpt2", "gptj", "gemma2"):
        example = traced(zoo.case(name))
        values = jg.compile(jg.expand(example.graph, 1, weights="unit"), "**")(**example.inputs)
        paths = list(values.hidden)
        for some, position in ((None, None), (paths[::3], -1), (list(map(str, paths[-4:])), [1, 4])):
            rows = torch.eye(len(paths if some is None else some))
            found = values.combine(rows, some, position=position)
            expected = values.combine(rows, some, position=position, out=torch.empty_like(found))
            agree(found, expected, 1e-6)
            agree(values.each(some, position=position), expected, 1e-6)
    with pytest.raises(KeyError, match="was not computed"):
        values.each(["embed > nothing > logits"])


@torch.no_grad()
def test_sums_are_made_in_the_memory_of_their_result(gpt2: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack of all values before U lies beside it."""
    values = compiled(gpt2, "**", recipe="components")
    rows = torch.eye(len(values.hidden)).repeat(20, 1)
    hidden = 20 * sum(value.nbytes for value in values.hidden.values())
    result = values.combine(rows).nbytes
    beside = []
    for stack in (1, 2**27):
        monkeypatch.setattr("jetgraph.compilation.values.STACK", stack)
        beside.append(peak(lambda: values.combine(rows)) - result)
    assert beside[0] < hidden / 2 < hidden <= beside[1]


def test_many_terms_under_transforms_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that are made in several products, batched by `vmap` and differentiated by forward mode."""
    first, second, head = torch.randn(3, 3, 3)

    def net(x: Tensor) -> Tensor:
        h = x + torch.tanh(F.linear(x, first))
        return F.linear(h + torch.tanh(F.linear(h, second)), head)

    x = torch.randn(4, 1, 3)
    module = jg.compile(jg.expand(jg.trace(net, x[0], dynamic=False), recipe="components"))

    def terms(x: Tensor) -> Tensor:
        return torch.stack(list(module(x=x).terms.values()))

    with torch.no_grad():
        _, expected = torch.func.jvp(net, (x[0],), (torch.ones_like(x[0]),))
        for together in (1, 1000):
            monkeypatch.setattr("jetgraph.compilation.values.TOGETHER", together)
            made = torch.func.vmap(terms)(x)
            assert made.shape == (4, 3, 1, 3)
            agree(made.sum(1), torch.stack([net(row) for row in x]), 1e-5)
            _, slopes = torch.func.jvp(terms, (x[0],), (torch.ones_like(x[0]),))
            agree(slopes.sum(0), expected, 1e-5)
            with forward_ad.dual_level():
                made = terms(forward_ad.make_dual(x[0], torch.ones_like(x[0])))
                agree(forward_ad.unpack_dual(made.sum(0)).tangent, expected, 1e-5)


def test_best_weights_under_transforms_of_functions() -> None:
    """They are found on the host, and are constants: by `vmap` as one by one, and gradients as those of autograd."""
    first, second = torch.randn(2, 3, 3, dtype=torch.float64)

    def net(x: Tensor) -> Tensor:
        h = x + torch.tanh(F.linear(x, first))
        return torch.tanh(F.linear(h, second)) ** 2

    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    module = jg.compile(jg.expand(jg.trace(net, x[0], dynamic=False), order=1, weights="optimal"))

    def terms(x: Tensor) -> Tensor:
        return torch.stack(list(module(x=x).terms.values()))

    weighed = torch.tensor([1.0, -2.0])[:, None]

    def read(x: Tensor) -> Tensor:
        made = terms(x)
        return (made * torch.arange(1.0, len(made) + 1)[:, None, None] * weighed).sum()

    one_by_one = [terms(row) for row in x]
    agree(torch.vmap(terms)(x), torch.stack(one_by_one), 1e-12)
    (expected,) = torch.autograd.grad(sum(map(read, x)), x)
    agree(torch.vmap(torch.func.grad(read))(x), expected, 1e-12)
    _, slope = torch.func.jvp(read, (x[0],), (torch.ones_like(x[0]),))
    assert slope.item() == pytest.approx(expected[0].sum().item())


def test_sums_of_terms_under_transforms_of_functions() -> None:
    """With weights from outside and from inside of the function that is transformed; all terms, and what they leave."""
    first, second = torch.randn(2, 3, 3, dtype=torch.float64)

    def net(x: Tensor) -> Tensor:
        h = x + torch.tanh(F.linear(x, first))
        return torch.tanh(F.linear(h, second)) ** 2

    x = torch.randn(4, 2, 3, dtype=torch.float64)
    module = jg.compile(jg.expand(jg.trace(net, x[0], dynamic=False), order=1))
    outside = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)

    def plain(x: Tensor) -> Tensor:
        made, output = torch.stack(list(module(x=x).terms.values())), module(x=x).output
        return torch.stack([(outside[:, None, None] * made).sum(0), 2 * made.sum(0), made.sum(0), output - made.sum(0)])

    def summed(x: Tensor) -> Tensor:
        values = module(x=x)
        inside = 2 * torch.ones(4)
        return torch.stack([values.combine(outside), values.combine(inside), values.total, values.remainder])

    with torch.no_grad():
        agree(torch.vmap(summed)(x), torch.stack([plain(row) for row in x]), 1e-12)
        for made, expected in zip(*(torch.func.jvp(f, (x[0],), (x[1],)) for f in (summed, plain)), strict=True):
            agree(made, expected, 1e-12)
    agree(torch.func.jacrev(summed)(x[0]), torch.func.jacfwd(plain)(x[0]), 1e-12)
    agree(torch.vmap(torch.func.jacrev(summed))(x), torch.vmap(torch.func.jacfwd(plain))(x), 1e-12)


def test_weights_that_are_mapped_over_are_refused() -> None:
    module = jg.compile(jg.expand(jg.trace(lambda x: x + torch.tanh(x), torch.randn(2, 3), dynamic=False)))
    values = module(torch.randn(2, 3))
    weights = torch.ones(5, len(values.hidden))
    with pytest.raises(jg.InputError, match="cannot be mapped over"):
        torch.vmap(values.combine)(weights)
    assert values.combine(weights).shape == (5, 2, 3)


def test_sums_of_languages_under_transforms_of_functions() -> None:
    """They have no gradients: a derivative of 0 would be wrong."""
    graph = jg.trace(lambda x: x + torch.tanh(x), torch.randn(2, 3), dynamic=False)
    module, x = jg.compile(jg.expand(graph, recipe="frozen")), torch.randn(2, 3)
    with pytest.raises(jg.StateError, match="has no gradients"):
        torch.func.jvp(lambda x: module(x).sum("**"), (x,), (x,))


def test_a_path_without_weight_takes_no_part_in_a_sum(gpt2: Example) -> None:
    """Not even where its value is not finite."""
    values = compiled(gpt2, "embed > *.mlp > logits", recipe="path")
    first, second = values.hidden
    values.hidden[second].fill_(math.inf)
    assert torch.equal(values.combine(torch.tensor([[1.0, 0.0]]))[0], values.terms[first])


def test_weights_of_a_sum_that_do_not_fit_are_refused(gpt2: Example) -> None:
    values = compiled(gpt2, "embed > *.mlp > logits", recipe="path")
    for weights in (torch.ones(3), torch.ones(1, 3), torch.ones(0, 2), torch.tensor(1.0)):
        with pytest.raises(jg.JetGraphError, match=r"do not fit 2 paths: give \[2\]"):
            values.combine(weights)
    with pytest.raises(KeyError, match="was not computed"):
        values.combine(torch.ones(1), ["embed > logits"])


def test_terms_are_made_when_they_are_read(gpt2: Example) -> None:
    """In the grad mode of the evaluation, each once, and not with weights that have been changed meanwhile."""
    model = copy.deepcopy(gpt2.model)
    module = jg.compile(jg.expand(jg.trace(model, **gpt2.inputs, dynamic=False), 0), "embed > **")
    with torch.no_grad():
        values = module(**gpt2.inputs)
    first, *others = values.terms
    assert not values.terms[first].requires_grad
    assert not values.output.requires_grad
    assert first in values.terms
    assert str(first) in values.terms
    assert "embed > logits^7" not in values.terms
    assert len(values.terms) == 1 + len(others)
    again = module(**gpt2.inputs)
    with torch.no_grad():
        assert again.terms[first].requires_grad
        next(model.parameters()).mul_(2)
    assert torch.equal(again.terms[first], values.terms[first])
    with pytest.raises(jg.JetGraphError, match="weights were changed in place"):
        again.terms[others[0]]


def test_terms_by_text(gpt2: Example) -> None:
    values = compiled(gpt2, "embed > *.mlp > logits", recipe="path")
    path = jg.Path.parse("embed > L1.mlp^0 > logits^0")
    assert values.terms["embed > L1.mlp^0 > output^0"] is values.terms[path]
    with pytest.raises(KeyError, match=r"L1\.attn.*was not computed; there are embed > L"):
        values.terms["embed > L1.attn^0 > logits^0"]


def test_repr_of_values_has_the_largest_first(gpt2: Example) -> None:
    values = compiled(gpt2, None, 0)
    lines = repr(values).splitlines()
    assert lines[0] == "PathValues: 32 terms of shape (2, 7, 53)"
    shown = [float(line.split()[0]) for line in lines[1:11]]
    assert shown == sorted(shown, reverse=True)
    top = max(values.terms, key=lambda path: float(values.terms[path].norm()))
    assert lines[1].endswith(str(top))
    assert lines[11].strip() == "… 22 smaller ones"
    assert lines[12] == "what sites leave besides these, as a share of what they give:"
    rest = {line.split()[1].rstrip(","): float(line.split()[0]) for line in lines[13:18]}
    assert rest.keys() == {"L0.attn", "L0.mlp", "L1.attn", "L1.mlp", "logits"}
    assert list(rest.values()) == sorted(rest.values(), reverse=True)


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
@pytest.mark.parametrize("wide", [2**28, 1])
def test_norms_of_terms_that_are_not_made(
    name: str, wide: int, traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through UᵀU where U is one matrix for all positions, biases by themselves; else some terms at a time."""
    monkeypatch.setattr("jetgraph.compilation.decoding.WIDE", wide)
    values = compiled(traced(zoo.case(name)), None, recipe="components")
    made: list[int] = []
    decode = values._decoding.decode
    monkeypatch.setattr(values._decoding, "decode", lambda x, *more: made.append(len(x)) or decode(x, *more))
    norms = values.norms
    repr(values)
    constants = sum(path.source.alias == "bias" for path in values.terms)
    # Only what U of one matrix does not tell is made: constants with the decoder's bias, and all of classes of images,
    # with the remainder, which is held against the output.
    assert sum(made) <= (constants + 1 if name != "vit" else len(values.terms) + 1)
    assert wide > 1 or max(made, default=1) == 1
    for path, term in values.terms.items():
        assert norms[path] == pytest.approx(float(term.detach().double().norm()), rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_repr_of_values_of_equal_or_tiny_norms(gpt2: Example, size: float) -> None:
    module = copy.deepcopy(jg.compile(jg.expand(gpt2.graph, 0, recipe="path"), "embed > *.mlp > logits"))
    with torch.no_grad():
        module.weights.get_parameter("lm_head.weight").mul_(size)
    shown = [float(line.split()[0]) for line in repr(module(**gpt2.inputs)).splitlines()[1:]]
    assert len(shown) > 1
    assert all((norm > 0) is (size > 0) for norm in shown)


def test_paths_may_be_texts_and_keep_their_order(gpt2: Example) -> None:
    expansion = jg.expand(gpt2.graph, recipe="path")
    texts = ["pos > L1.mlp^0 > logits^0", "embed > logits^0", "pos > logits^0", "embed > L0.attn^0 > logits^0"]
    module = jg.compile(expansion, [jg.Path.parse(text) for text in texts])
    assert [str(path) for path in module(**gpt2.inputs).terms] == texts
    assert [str(path) for path in module.paths] == texts
    assert "4 paths: " in repr(module)


def test_atoms_take_a_forward_pass_and_the_repr_says_so(gpt2: Example) -> None:
    module = jg.compile(jg.expand(gpt2.graph, 0, recipe="components"), "L1.mlp > logits")
    assert "the forward pass up to h4" in repr(module)


def test_an_unknown_path_is_refused(gpt2: Example) -> None:
    expansion = jg.expand(gpt2.graph, recipe="path")
    with pytest.raises(jg.SelectionError, match=r"L7\.mlp"):
        jg.compile(expansion, "embed > L7.mlp > logits")
    with pytest.raises(jg.SelectionError, match="empty list"):
        jg.compile(expansion, [])


def test_wrong_inputs(gpt2: Example) -> None:
    module = jg.compile(jg.expand(gpt2.graph, recipe="path"), "embed > logits")
    ids = gpt2.inputs["input_ids"]
    with pytest.raises(jg.InputError, match="'input_ids' is missing"):
        module(use_cache=False)
    with pytest.raises(jg.InputError, match="'labels' was not among the inputs"):
        module(input_ids=ids, labels=ids)
    with pytest.raises(jg.InputError, match=r"'use_cache' was fixed to False.*cannot be True"):
        module(input_ids=ids, use_cache=True)
    with pytest.raises(jg.InputError, match="float32"):
        module(input_ids=ids.float())
    with pytest.raises(jg.InputError, match=r"shape \(7,\)"):
        module(input_ids=ids[0])
    with pytest.raises(jg.InputError, match="not a tensor"):
        module(input_ids=ids.numpy())
    agree(module(input_ids=ids).output, gpt2.output)


def test_an_outline_has_nothing_to_run() -> None:
    with pytest.raises(jg.JetGraphError, match=r"outline.*jetgraph\.trace"):
        jg.compile(jg.expand(gpt2_outline(2)), "embed > logits")


def test_meta() -> None:
    """Without weights a graph expands, counts and selects, but does not run."""
    case = zoo.case("gpt2")
    inputs = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in case.inputs().items()}
    graph = jg.trace(case.build().to("meta"), dynamic=False, **inputs)
    expansion = jg.expand(graph, 1)
    assert expansion.count() == 2 * 2**4 * 2
    assert jg.select(expansion, "embed > L0.mlp~1 > logits").count() == 2
    with pytest.raises(jg.JetGraphError, match="meta"):
        jg.compile(expansion, "embed > L0.mlp~1 > logits^0")(**inputs)


def test_a_model_without_joins_is_one_function(traced: Callable[..., Example]) -> None:
    """Its expansion at order 0 is the model, as its only centre is the true stream."""
    example = traced(zoo.case("plain_mlp"))
    values = compiled(example, None, 0)
    model: Any = example.model
    with torch.no_grad():
        expected = example.output - model[-1].bias
    agree(values.terms["embed > logits^0"], expected)
    agree(values.total, example.output)


@pytest.mark.parametrize("recipe", ["frozen", "components", "lens"])
def test_compiled_paths_run_as_they_are_inside_torch_compile(recipe: Any, gpt2: Example) -> None:
    expansion = jg.expand(gpt2.graph, recipe=recipe)
    module = jg.compile(expansion)
    expected, values = module(**gpt2.inputs), torch.compile(module, backend="eager")(**gpt2.inputs)
    assert torch.equal(values.output, expected.output)
    assert all(torch.equal(values.terms[path], term) for path, term in expected.terms.items())
