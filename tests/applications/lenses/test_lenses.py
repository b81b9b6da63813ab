"""Lenses against forward passes taken apart by hooks, decoders written by hand, and exact optima and radii."""

from __future__ import annotations

import copy
import csv
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.rules import Scale
from jetgraph.applications import distances
from jetgraph.applications.distances import METRICS, compare
from jetgraph.applications.lenses import iterative, joint, lens, measuring
from jetgraph.applications.lenses.compiled import lenses
from jetgraph.applications.lenses.evaluation import LensEvaluation, evaluate_lens
from jetgraph.applications.lenses.joint import joint_lens
from jetgraph.applications.lenses.measuring import closed_radii
from jetgraph.applications.lenses.pictures import heads_of
from jetgraph.applications.lenses.radius import RADIUS_ORDER, radius_of_convergence
from jetgraph.applications.subject import Subject, subject
from jetgraph.compilation.hull import nearest_in_hull, optimality
from jetgraph.loading import Loaded
from tests.applications.ngrams.tables import relocated
from tests.conftest import Example
from tests.operators import peak
from tests.zoo import case

Array = NDArray[np.float64]
Norm = Callable[[Tensor, nn.Module], Tensor]


# Decoders by hand


def layer_norm(h: Tensor, module: nn.Module) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
    return scaled * module.weight + module.bias


def rms_norm(h: Tensor, module: nn.Module) -> Tensor:
    return h / (h.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt() * module.weight


@dataclass(frozen=True)
class Anatomy:
    """Where a model keeps its parts, from a reading of its source."""

    name: str
    blocks: str
    steps: tuple[tuple[str, ...], ...]
    """Per block: children whose outputs a join adds, one tuple a join."""
    norm: str
    head: str
    kind: Norm = layer_norm

    def __str__(self) -> str:
        return self.name

    def part(self, model: nn.Module, path: str) -> Any:
        return model.get_submodule(path)

    def bias(self, model: nn.Module) -> Tensor | float:
        found = self.part(model, self.head).bias
        return 0.0 if found is None else found.double()

    def nonlinear(self, model: nn.Module, h: Tensor) -> Tensor:
        """U ν(h) in float64, without the bias."""
        norm = self.part(model, self.norm)
        copy = type("Weights", (), {"eps": 0.0, "variance_epsilon": 0.0, "bias": None})()
        for name in ("eps", "variance_epsilon"):
            setattr(copy, name, getattr(norm, name, 0.0))
        copy.weight = norm.weight.double()
        copy.bias = norm.bias.double() if getattr(norm, "bias", None) is not None else None
        return self.kind(h.double(), copy) @ self.part(model, self.head).weight.double().T

    def components(self, model: nn.Module, inputs: dict[str, Any]) -> list[list[Tensor]]:
        """The stream's start, then the summands of each join, as the model computes them."""
        found: dict[str, Tensor] = {}
        start: list[Tensor] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[name] = output[0] if isinstance(output, tuple) else output

            return hook

        paths = [[f"{self.blocks}.{i}.{c}".rstrip(".") for c in step] for i in range(2) for step in self.steps]
        handles = [self.part(model, path).register_forward_hook(keep(path)) for step in paths for path in step]
        first = self.part(model, f"{self.blocks}.0")
        # Only the first call of a plain block reads the stream itself.
        handles.append(
            first.register_forward_pre_hook(
                lambda module, args, kwargs: start.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
        )
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
        return [[start[0]], *([found[path] for path in step] for step in paths)]


ANATOMIES = (
    Anatomy("gpt2", "transformer.h", (("attn",), ("mlp",)), "transformer.ln_f", "lm_head"),
    Anatomy("llama", "model.layers", (("self_attn",), ("mlp",)), "model.norm", "lm_head", rms_norm),
    Anatomy("gptj", "transformer.h", (("attn", "mlp"),), "transformer.ln_f", "lm_head"),
    # No transformer: the root adds what its blocks return.
    Anatomy("root_loop", "blocks", (("",),), "norm", "head"),
)
"""Learned positions and tied, rotary, parallel branches and a biased unembedding, no transformer; BERT is apart."""


@pytest.fixture
def halved(traced: Callable[..., Example]) -> Callable[[str], tuple[nn.Module, jg.ResidualGraph]]:
    """The model of a case in bfloat16, and its graph."""
    return lambda name: (
        case(name).build().to(torch.bfloat16),
        relocated(traced(case(name)).graph, torch.bfloat16),
    )


@pytest.fixture(scope="module")
def masked() -> Callable[[torch.dtype], tuple[nn.Module, jg.ResidualGraph]]:
    """BERT, a post-norm model, in a type, and its graph, of a trace on ids alone."""
    graph = jg.trace(case("bert").build(), input_ids=case("bert").inputs()["input_ids"])
    return lambda dtype: (case("bert").build().to(dtype), relocated(graph, dtype))


@pytest.fixture(scope="module")
def demo() -> Subject:
    """The bundled GPT-2."""
    return subject("demo")


anatomies = pytest.mark.parametrize("anatomy", ANATOMIES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def taylor(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> list[Tensor]:
    """Coefficients 0..2 of t ↦ f(x + t v), by differences in float64 extrapolated to step 0."""

    def differences(step: float) -> tuple[Tensor, Tensor]:
        right, left = function(x + step * v), function(x - step * v)
        return (right - left) / (2 * step), (right - 2 * function(x) + left) / (2 * step**2)

    step = 1e-3 / max(1.0, float((v.norm(dim=-1) / x.norm(dim=-1)).max()))
    coarse, fine = differences(2 * step), differences(step)
    return [function(x), *((4 * f - c) / 3 for f, c in zip(fine, coarse, strict=True))]


def matched(anatomy: Anatomy, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """s x with the s at which h − s x is perpendicular to h, in the norm's coordinates, and what is missing to h; x and
    0 where s would be negative."""
    seen, end = ((y - y.mean(-1, keepdim=True) if anatomy.kind is layer_norm else y) for y in (x, h))
    along = (seen * end).sum(-1, keepdim=True)
    s = torch.where(along > 0, end.square().sum(-1, keepdim=True) / along, 1)
    return s * x, torch.where(along > 0, h - s * x, 0)


def by_hand(anatomy: Anatomy, model: nn.Module, inputs: dict[str, Any], plain: bool = True) -> Tensor:
    """Lenses of orders 0..2 at every point, [point, order, batch, length, vocab], in float64."""
    h = torch.zeros(())
    points = []
    for step in anatomy.components(model, inputs):
        for summand in step:
            h = h + summand
        points.append(h.double())
    found = []
    for point in points:
        centre, way = (point, points[-1] - point) if plain else matched(anatomy, point, points[-1])
        terms = taylor(lambda x: anatomy.nonlinear(model, x), centre, way)
        found.append(torch.stack(terms).cumsum(0) + anatomy.bias(model))
    return torch.stack(found)


def measured(model: list[float], other: list[float]) -> dict[str, float]:
    """Every distance between two vectors of logits, with sums written out."""
    size = len(model)
    p_sum, q_sum = (math.fsum(math.exp(x - max(one)) for x in one) for one in (model, other))
    log_p = [x - max(model) - math.log(p_sum) for x in model]
    log_q = [x - max(other) - math.log(q_sum) for x in other]
    a = [x - math.fsum(model) / size for x in model]
    b = [x - math.fsum(other) / size for x in other]
    aa, bb, ab = (math.fsum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, a), (b, b), (a, b)))
    best = max(range(size), key=model.__getitem__)
    return {
        "kl": math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)),
        "cosine": ab / math.sqrt(aa * bb),
        "top1": float(best == other.index(max(other))),
        "top5": float(best in sorted(range(size), key=lambda i: (-other[i], i))[:5]),
        "remainder": math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / aa),
    }


# Lens


@pytest.mark.parametrize("scale", ["none", "matched"])
@anatomies
def test_lens_is_the_decoders_expansion(anatomy: Anatomy, scale: Scale, traced: Callable[..., Example]) -> None:
    example = traced(case(anatomy.name))
    expected = by_hand(anatomy, example.model, example.inputs, plain=scale == "none")
    found = lens(example.graph, example.inputs, order=2, scale=scale)
    assert found.logits.dtype == torch.float32
    largest = expected.abs().amax((-1, -2, -3), keepdim=True)
    assert ((found.logits - expected).abs() / largest).max() < 2e-5
    # Order 1 is not order 0, and order 2 is neither, so that none of the three can stand for another.
    assert ((expected.diff(dim=1).abs() / largest[:, 1:])[:-1].amax((-1, -2, -3)) > 1e-2).all()
    assert torch.equal(found.output, example.output)
    assert torch.equal(found.ids, example.inputs["input_ids"])


@anatomies
@dtypes
def test_lens_table_has_every_distance(
    anatomy: Anatomy, dtype: torch.dtype, traced: Callable[..., Example], halved: Callable[[str], Any]
) -> None:
    example = traced(case(anatomy.name))
    model, graph, inputs = example.model, example.graph, example.inputs
    if dtype is torch.bfloat16:
        model, graph = halved(anatomy.name)
    expected = by_hand(anatomy, model, inputs)
    found = lens(graph, inputs, order=1, scale="none")
    assert found.output.dtype == found.logits.dtype == dtype
    scale = expected.abs().amax((-1, -2, -3), keepdim=True)
    error = (found.logits - expected[:, :2]).abs() / scale[:, :2]
    assert error.max() < (2e-5 if dtype is torch.float32 else 4e-2)
    rows = list(zip(*found.columns().values(), strict=True))
    names = list(found.columns())
    # Of half precision distances are summed in float32.
    digits: Any = {"rel": 1e-9, "abs": 1e-12} if dtype is torch.float32 else {"rel": 1e-5, "abs": 2e-6}
    points, orders, batch, length, _ = found.logits.shape
    assert len(found) == len(rows) == points * orders * batch * length
    for place, row in zip(np.ndindex(points, orders, batch, length), rows, strict=True):
        cells = dict(zip(names, row, strict=True))
        p, order, b, i = place
        logits, own = found.logits[place].double(), found.output[b, i].double()
        direct = measured(own.tolist(), logits.tolist())
        assert (cells["point"], cells["order"], cells["example"], cells["position"]) == (f"h{p}", order, b, i)
        assert cells["token"] == f"#{inputs[next(iter(inputs))][b, i]}"
        assert cells["top"] == f"#{logits.argmax()}"
        assert cells["says"] == f"#{own.argmax()}"
        assert cells["probability"] == pytest.approx(logits.softmax(-1).max().item(), rel=1e-9)
        assert cells["agrees"] is bool(direct["top1"])
        assert cells["kl"] == pytest.approx(direct["kl"], **digits)
        assert cells["cosine"] == pytest.approx(direct["cosine"], **digits)
        assert cells["remainder"] == pytest.approx(direct["remainder"], **digits)


@dtypes
def test_lens_in_a_post_norm_model(dtype: torch.dtype, masked: Callable[[torch.dtype], Any]) -> None:
    """BERT: the norms between the joins are points of their own, and a lens looks past those that follow."""
    one = case("bert")
    inputs = {"input_ids": one.inputs()["input_ids"]}
    model, graph = masked(dtype)
    inner = model.bert
    outputs: dict[str, Tensor] = {}
    taken = {
        "embeddings": inner.embeddings.LayerNorm,
        **{f"attn{i}": inner.encoder.layer[i].attention.output for i in range(2)},
        **{f"attn{i}.sum": inner.encoder.layer[i].attention.output.LayerNorm for i in range(2)},
        **{f"mlp{i}.sum": inner.encoder.layer[i].output.LayerNorm for i in range(2)},
        **{f"mlp{i}": inner.encoder.layer[i].output for i in range(2)},
    }
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: outputs.update({name: output, f"{name} in": args[0]})
        )
        for name, module in taken.items()
    ]
    with torch.no_grad():
        output = model(**inputs).logits
    for handle in handles:
        handle.remove()
    names = ("embeddings in", "embeddings", "attn0.sum in", "attn0", "mlp0.sum in", "mlp0", "attn1.sum in", "attn1")
    points = [outputs[name].double() for name in (*names, "mlp1.sum in")]
    copy = one.build().to(dtype).double()
    head = copy.cls.predictions

    def decoder(h: Tensor) -> Tensor:
        with torch.no_grad():
            return head(copy.bert.encoder.layer[1].output.LayerNorm(h))

    found = lens(graph, inputs, order=2, scale="none")
    assert found.after == (
        "embed + position_embeddings + token_type_embeddings",
        "norm", "L0.attn", "L0.norm", "L0.mlp", "L0.norm.2", "L1.attn", "L1.norm", "L1.mlp",
    )  # fmt: skip
    for point, logits in zip(points, found.logits, strict=True):
        expected = torch.stack(taylor(decoder, point, points[-1] - point)).cumsum(0)
        error = (logits - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))
        assert (error < (1e-4 if dtype is torch.float32 else 6e-2)).all()
    assert torch.equal(found.output, output)


def test_lens_on_images(traced: Callable[..., Example]) -> None:
    example = traced(case("vit"))
    states = []
    handles = [block.register_forward_hook(lambda m, a, o: states.append(o)) for block in example.model.vit.layers]
    with torch.no_grad():
        example.model(**example.inputs)
    for handle in handles:
        handle.remove()
    found = lens(example.graph, example.inputs, order=1, layers="*.mlp", scale="none")
    assert found.after == ("L0.mlp", "L1.mlp")
    assert found.logits.shape == (2, 2, 2, 5)
    model = example.model
    norm, head = model.vit.layernorm, model.classifier
    start, end = (state[0] if isinstance(state, tuple) else state for state in states)

    def decoder(h: Tensor) -> Tensor:
        return layer_norm(h, norm)[:, 0] @ head.weight.T.double() + head.bias.double()

    with torch.no_grad():
        terms = taylor(decoder, start.double(), (end - start).double())
        # The differences keep the bias in the first term alone.
        torch.testing.assert_close(found.logits[0].double(), torch.stack(terms[:2]).cumsum(0), rtol=1e-4, atol=1e-5)
    columns = found.columns()
    assert set(columns["position"]) == {None}
    assert set(columns["token"]) == {None}
    assert len(found) == 2 * 2 * 2
    assert [label.get_text() for label in found.plot().axes[0].get_xticklabels()] == ["input 0", "input 1"]


@pytest.mark.parametrize("name", ["dense_block", "deep_norm"])
def test_lens_ends_in_the_model(name: str, traced: Callable[..., Example]) -> None:
    """At the last point every order is the output, whatever the decoder; elsewhere order 0 is not."""
    example = traced(case(name))
    found = lens(example.graph, example.inputs, order=2)
    scale = example.output.abs().max()
    assert (found.logits[-1] - example.output).abs().max() / scale < 1e-5
    assert (found.logits[:-1, 0] - example.output).abs().max() / scale > 1e-2


def test_jets_of_an_affine_decoder_are_the_output(traced: Callable[..., Example]) -> None:
    example = traced(case("affine_branch"))
    head = example.model.head
    found = lens(example.graph, example.inputs, order=1)
    with torch.no_grad():
        start = head(example.model.stem(example.inputs["x"]))
    torch.testing.assert_close(found.logits[0, 0], start, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.logits[0, 1], example.output)


class Kinds(nn.Module):
    """A model whose first input has the shape of the ids, but is none: it only gates the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mlp = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, kinds: Tensor, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        h = h + torch.tanh(self.mlp(h)) * kinds.unsqueeze(-1)
        return self.norm(h) @ self.embed.weight.T


def test_lens_shows_the_ids_that_the_stream_starts_from() -> None:
    inputs = {"kinds": torch.ones(2, 3, dtype=torch.long), "ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}
    found = lens(Kinds().eval(), inputs)
    assert torch.equal(found.ids, inputs["ids"])
    assert found.tokens == (("#5", "#6", "#7"), ("#8", "#9", "#10"))
    assert found.top(1).tokens == found.at(1).tokens == found.tokens
    assert found.columns()["token"][3:6] == ["#8", "#9", "#10"]


def test_orders_may_be_chosen(traced: Callable[..., Example]) -> None:
    """A lens of single orders is that part of the lens of all; no order, or a negative one, is refused at once."""
    example = traced(case("gpt2"))
    every = jg.lens(example.graph, example.inputs, order=2)
    some = jg.lens(example.graph, example.inputs, order=[2, 0, 2])
    assert every.orders == (0, 1, 2)
    assert some.orders == (0, 2)
    assert some.order == 2
    torch.testing.assert_close(some.logits, every.logits[:, [0, 2]], rtol=1e-4, atol=1e-4)
    assert set(some.columns()["order"]) == {0, 2}
    assert "orders 0, 2 of" in repr(some)
    assert "order 2 of" in repr(jg.lens(example.graph, example.inputs, order=[2], layers=0))
    assert [axes.get_title() for axes in some.figure().axes[:2]] == ["order 0: logit lens", "order 2"]
    for order in (-1, [], [0, -1]):
        with pytest.raises(jg.InputError, match="gives no order"):
            jg.lens("no such model", example.inputs, order=order)
    with pytest.raises(jg.InputError, match="order=-1 is no order"):
        jg.joint_lens("no such model", example.inputs, order=-1)


def test_lens_of_words(demo: Subject, tmp_path: Path) -> None:
    tokenizer = demo.tokenizer
    found = lens(demo.graph, ["Raise an", "Raise the"], order=1, layers=["L1.mlp", -1], tokenizer=tokenizer)
    assert found.points == (4, 8)
    columns = found.columns()
    assert columns["token"][0] == repr("R")
    assert columns["says"][0] == repr(tokenizer.decode(found.output[0, 0].argmax()))
    assert repr(found).startswith(
        "Jet lens of orders 0, 1 of demo (GPT2LMHeadModel) at 2 points, 2 inputs of 4 positions"
    )
    with open(found.save(tmp_path / "lens.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found)
    assert rows[0]["token"] == repr("R")
    assert float(rows[-1]["kl"]) == columns["kl"][-1]
    cells = found.to_networkx(row=1)
    assert len(cells) == 2 * 4, "points and positions of one input, at the highest order"
    last = cells.nodes["h8 L3.mlp@3"]
    assert last["label"] == last["says"] == columns["top"][-1]
    assert (last["token"], last["example"], last["order"]) == (repr(" the"), 1, 1)
    assert found._repr_html_().startswith("<iframe ")
    assert "Content-Security-Policy" in found.save(tmp_path / "lens.html").read_text(encoding="utf-8")
    assert len(jg.read_graph(found.save(tmp_path / "lens.json"))) == len(cells)
    with pytest.raises(jg.InputError, match=r"inputs 0\.\.1, so row=2"):
        found.to_networkx(row=2)
    figure = found.plot(tmp_path / "lens.png")
    panels = figure.axes[:2]
    assert [axes.get_title() for axes in panels] == ["order 0: logit lens", "order 1"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["h4  L1.mlp", "h8  L3.mlp", "model"]
    assert figure.axes[-1].get_ylabel() == "KL(model ‖ lens), nats"
    assert found.figure(row=1, colour="probability").axes[-1].get_ylabel() == "probability of the token shown"
    with pytest.raises(jg.InputError, match=r"inputs 0\.\.1, so row=2"):
        found.figure(row=2)
    with pytest.raises(jg.InputError, match="columns=0 leaves nothing"):
        found.figure(columns=0)


def test_pictures_of_long_prompts_stay_readable(demo: Subject) -> None:
    """The last columns, and orders below each other; the picture is no wider for a longer prompt."""
    ids = torch.arange(40)[None]
    found = lens(demo.graph, ids, order=1, layers="*.mlp", tokenizer=demo.tokenizer)
    figure = found.figure()
    first, second = figure.axes[:2]
    assert figure.get_supxlabel() == "input token, the last 24 of 40"
    assert figure.get_suptitle().endswith(": most probable tokens")
    # Classes are no tokens.
    assert replace(found, vocabulary=False).figure(columns=2).get_suptitle().endswith(": largest outputs")
    assert [label.get_text() for label in second.get_xticklabels()] == heads_of(found, 0)[16:]
    assert first.images[0].get_array().shape == (5, 24)
    shown = found.comparison.kl[:, 1, 0, 16:].numpy()
    np.testing.assert_array_equal(second.images[0].get_array()[:4].data, shown)
    assert first.get_subplotspec().rowspan != second.get_subplotspec().rowspan
    assert figure.get_figwidth() == lens(demo.graph, ids.repeat(1, 2), order=1).figure().get_figwidth() < 20
    few = found.figure(columns=5)
    assert few.get_supxlabel() == "input token, the last 5 of 40"
    assert few.axes[0].get_subplotspec().rowspan == few.axes[1].get_subplotspec().rowspan


def test_lens_has_a_budget(traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch) -> None:
    example = traced(case("gpt2"))
    monkeypatch.setattr(iterative, "LENS_BUDGET", 1000)
    with pytest.raises(jg.BudgetError, match="5 points of 1 order on"):
        lens(example.graph, example.inputs)


def test_lens_refuses_pictures_as_output(traced: Callable[..., Example]) -> None:
    example = traced(case("unet"))
    with pytest.raises(jg.InputError, match=r"but '.*' of UNet has shape \[2, 2, 8, 8\]"):
        lens(example.graph, example.inputs)


def test_compare_hides_no_scale_and_no_offset() -> None:
    """Independent logits with a common offset are not alike, though their plain cosine is almost 1."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 400) * 3 - 100
    assert torch.cosine_similarity(one, other, 0) > 0.99
    assert compare(one, other).cosine.abs() < 0.2
    scaled = compare(one, 10 * one)
    assert scaled.cosine == pytest.approx(1.0)
    assert scaled.remainder == pytest.approx(9.0, rel=1e-5)
    assert scaled.kl > 0.1
    constant = compare(one, torch.zeros(400))
    assert constant.cosine == 0
    assert constant.remainder == pytest.approx(1.0)


# Joint lens


def brute_force(gram: Array) -> float:
    """min wᵀM w on the simplex: the least of the minima in the interiors of all faces."""
    found = []
    for size in range(1, len(gram) + 1):
        for face in itertools.combinations(range(len(gram)), size):
            part = gram[np.ix_(face, face)]
            system = np.block([[2 * part, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            solution = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0][:size]
            if (solution >= -1e-12).all():
                weights = solution.clip(min=0.0) / solution.clip(min=0.0).sum()
                found.append(float(weights @ part @ weights))
    return min(found)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    number=st.integers(1, 6),
    rank=st.integers(1, 8),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    offset=st.sampled_from([0.0, 0.3, 3.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_hull_minimum_is_exact(number: int, rank: int, spread: float, offset: float, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = (random.normal(size=(number, rank)) + offset) * np.exp(spread * random.normal(size=(number, 1)))
    gram = scale * vectors @ vectors.T
    weights = nearest_in_hull(gram)
    assert weights.shape == (number,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    size = float(np.diagonal(gram).max())
    assert float(weights @ gram @ weights) <= brute_force(gram) + 1e-12 * size
    stationarity, slackness = optimality(gram, weights)
    assert max(stationarity, slackness) <= 1e-11 * size


def test_hull_minimum_with_vectors_of_very_different_length() -> None:
    """A centre whose jet explodes must not cost the others their precision."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(6, 30)) + 1.0
    expected = nearest_in_hull(vectors[:5] @ vectors[:5].T)
    vectors[5] *= 1e9
    weights = nearest_in_hull(vectors @ vectors.T)
    assert weights[5] < 1e-9
    np.testing.assert_allclose(weights[:5], expected, atol=1e-8)


def test_hull_minimum_at_a_zero_vector() -> None:
    assert nearest_in_hull(np.diag([2.0, 0.0, 1.0])).tolist() == [0.0, 1.0, 0.0]


def test_hull_minimum_of_vectors_whose_products_overflow() -> None:
    assert nearest_in_hull(np.diag([1e200, 3e200])) == pytest.approx([0.75, 0.25])


def test_a_jet_that_overflows_is_told(traced: Callable[..., Example]) -> None:
    one = traced(case("gpt2"))
    with pytest.raises(
        jg.DomainError, match=r"the jet of order 300 around '\S+' is larger than any number: take a lower"
    ):
        joint_lens(one.graph, one.inputs, order=300, scale="none")


@pytest.mark.parametrize(("number", "features"), [(200, 3), (200, 40), (50, 200), (1, 5)])
def test_the_nearest_point_of_many_vectors_of_few_features(number: int, features: int) -> None:
    """Whose Gram matrix has a low rank; some are alike, and some much longer than others."""
    generator = np.random.default_rng(number + features)
    vectors = generator.normal(size=(number, features)) * 10.0 ** generator.uniform(-3, 3, size=(number, 1))
    vectors[: number // 4] = vectors[number - number // 4 :]
    gram = vectors @ vectors.T
    weights = nearest_in_hull(gram)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    lengths = np.sqrt(np.diagonal(gram))
    # Of vectors of length 1, as they are scaled, in which the conditions are told.
    gradient, level = gram @ weights, weights @ gram @ weights
    assert ((level - gradient) / (lengths * lengths.min())).max() < 1e-11


def test_optimality_sees_what_is_not_optimal() -> None:
    gram = np.diag([1.0, 3.0])
    # λ = 1 at the uniform weights, where M w = (0.5, 1.5).
    assert optimality(gram, np.array([0.5, 0.5])) == (0.5, 0.25)
    # At the vertex 0 the weight of 1 satisfies its own condition only.
    assert optimality(gram, np.array([1.0, 0.0])) == (1.0, 0.0)


def softmax_descent(gram: Array, steps: int, rate: float) -> Array:
    """The published way: softmax weights from zero by Adam."""
    matrix = torch.from_numpy(gram)
    parameters = torch.zeros(matrix.shape[:-1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=rate)
    for _ in range(steps):
        weights = parameters.softmax(-1)
        loss = torch.einsum("ti,tij,tj->t", weights, matrix, weights)
        optimiser.zero_grad()
        (loss / loss.detach()).sum().backward()
        optimiser.step()
    weights = parameters.detach().softmax(-1)
    return torch.einsum("ti,tij,tj->t", weights, matrix, weights).numpy()


@pytest.mark.parametrize("scale", ["none", "matched"])
@anatomies
def test_joint_lens(anatomy: Anatomy, scale: Scale, traced: Callable[..., Example]) -> None:
    """Weights are the best for jets around components that hooks took from the model."""
    example = traced(case(anatomy.name))
    model = example.model
    found = joint_lens(example.graph, example.inputs, order=1, scale=scale)
    assert found.gap < 1e-12
    steps = anatomy.components(model, example.inputs)
    if anatomy.name == "gpt2":
        wte, wpe = model.transformer.wte, model.transformer.wpe
        steps[0] = [wte(example.inputs["input_ids"]), wpe.weight[: steps[0][0].shape[1]].expand_as(steps[0][0])]
    centres = [summand.detach().double() for step in steps for summand in step]
    end = torch.stack(centres).sum(0)
    assert len(found.components) == len(centres)
    terms = []
    for centre in centres:
        start, way = (centre, end - centre) if scale == "none" else matched(anatomy, centre, end)
        value, slope, _ = taylor(lambda x: anatomy.nonlinear(model, x), start, way)
        terms.append(value + slope + anatomy.bias(model))
    jets = torch.stack(terms, dim=-2).detach()
    output = example.output.double()
    length = output.norm(dim=-1)
    mixed = torch.einsum("bti,btiv->btv", found.weights, jets)
    torch.testing.assert_close((output - mixed).norm(dim=-1) / length, found.remainder, rtol=1e-4, atol=1e-6)
    uniform = (output - jets.mean(-2)).norm(dim=-1) / length
    torch.testing.assert_close(uniform, found.uniform, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        (output.unsqueeze(-2) - jets).norm(dim=-1) / length[..., None], found.vertex, rtol=1e-4, atol=1e-6
    )
    error = (jets - output.unsqueeze(-2)).flatten(0, 1)
    gram = (error @ error.transpose(-1, -2)).numpy()
    best = np.array([brute_force(matrix) for matrix in gram])
    squares = (found.remainder * length).square().flatten().numpy()
    np.testing.assert_allclose(squares, best, rtol=1e-3, atol=1e-7 * float(length.max()) ** 2)


@pytest.mark.parametrize(
    ("centres", "names", "groups"),
    [
        ("blocks", ("embed", "L0", "L1"), [[0], [1, 2], [3, 4]]),
        ({"attn": "*.attn", "first": ["embed", "L0.mlp"]}, ("first", "attn", "rest"), [[0, 2], [1, 3], [4]]),
    ],
    ids=["blocks", "groups"],
)
def test_joint_lens_of_groups(centres: Any, names: Any, groups: Any, traced: Callable[..., Example]) -> None:
    """A centre that is the sum of components, which hooks took from the model."""
    example = traced(case("llama"))
    anatomy = next(one for one in ANATOMIES if one.name == "llama")
    found = joint_lens(example.graph, example.inputs, order=1, scale="none", centres=centres)
    assert found.components == names
    parts = [part.detach().double() for step in anatomy.components(example.model, example.inputs) for part in step]
    end = torch.stack(parts).sum(0)
    terms = []
    for group in groups:
        centre = torch.stack([parts[i] for i in group]).sum(0)
        value, slope, _ = taylor(lambda x: anatomy.nonlinear(example.model, x), centre, end - centre)
        terms.append((value + slope + anatomy.bias(example.model)).detach())
    output = example.output.double()
    alone = torch.stack([(output - term).norm(dim=-1) / output.norm(dim=-1) for term in terms], dim=-1)
    torch.testing.assert_close(alone, found.vertex, rtol=1e-4, atol=1e-6)
    mixed = torch.einsum("bti,btiv->btv", found.weights, torch.stack(terms, dim=-2))
    torch.testing.assert_close(
        (output - mixed).norm(dim=-1) / output.norm(dim=-1), found.remainder, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("rate", [1e-3, 1e-1])
def test_joint_lens_is_no_worse_than_descent(rate: float, traced: Callable[..., Example]) -> None:
    example = traced(case("llama"))
    found = joint_lens(example.graph, example.inputs, order=0)
    expansion = jg.expand(example.graph, 0, recipe="components", weights="unit")
    terms = torch.stack(list(jg.compile(expansion)(**example.inputs).terms.values()), dim=2).detach().double()
    error = (terms - example.output.double().unsqueeze(2)).flatten(0, 1)
    rival = softmax_descent((error @ error.transpose(-1, -2)).numpy(), 1000, rate)
    ours = (found.remainder * example.output.double().norm(dim=-1)).square().flatten().numpy()
    assert (ours <= rival * (1 + 1e-9)).all()
    # Descent comes close at a large rate, so the two are about the same problem.
    if rate == 1e-1:
        assert np.median(rival / ours) < 1.01


@pytest.mark.parametrize("name", ["bert", "deep_norm"])
def test_joint_lens_after_the_last_map(
    name: str, traced: Callable[..., Example], masked: Callable[[torch.dtype], Any]
) -> None:
    """In post-norm models the last map's output and the branches after it are the components; they add up."""
    graph = masked(torch.float32)[1] if name == "bert" else traced(case(name)).graph
    found = joint_lens(graph, next(iter(case(name).inputs().values())), order=0)
    assert found.components == {"deep_norm": ("L0.norm", "L1.mlp"), "bert": ("L1.norm", "L1.mlp")}[name]
    assert found.gap < 1e-12
    assert (found.remainder <= found.vertex.min(-1).values + 1e-9).all()


def test_joint_lens_of_an_affine_decoder_and_of_images(traced: Callable[..., Example]) -> None:
    example = traced(case("affine_branch"))
    assert joint_lens(example.graph, example.inputs, order=1).remainder.max() < 1e-6
    order_0 = joint_lens(example.graph, example.inputs, order=0)
    assert not order_0.positions
    assert order_0.remainder.shape == (2, 1)
    assert order_0.remainder.min() > 1e-3
    assert [t.get_text() for t in order_0.plot().axes[1].get_xticklabels()] == ["input 0", "input 1"]


@dtypes
def test_joint_lens_table(
    dtype: torch.dtype, tmp_path: Path, traced: Callable[..., Example], halved: Callable[[str], Any]
) -> None:
    inputs = case("gptj").inputs()
    graph = traced(case("gptj")).graph if dtype is torch.float32 else halved("gptj")[1]
    found = joint_lens(graph, inputs)
    batch, length, number = found.weights.shape
    columns = found.columns()
    assert found.components == ("embed", "L0.attn", "L0.mlp", "L1.attn", "L1.mlp")
    assert len(found) == batch * length * number
    assert columns["weight"][number : 2 * number] == found.weights[0, 1].tolist()
    assert columns["component"][:number] == list(found.components)
    assert columns["token"][number] == f"#{inputs['input_ids'][0, 1]}"
    assert columns["uniform"][number] == float(found.uniform[0, 1])
    assert columns["remainder"][-1] == float(found.remainder[-1, -1])
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(batch, length, dtype=torch.float64))
    assert (found.weights >= 0).all()
    assert (found.remainder < found.uniform).all()
    assert found.gap < 1e-12
    cells = found.to_networkx()
    assert sum(facts["value"] for _, facts in cells.nodes(data=True)) == pytest.approx(
        len(cells) / len(found.components)
    )
    figure = found.plot(tmp_path / "joint.svg")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(found.components)
    assert figure.axes[1].get_xlabel() == "input token"
    with pytest.raises(jg.InputError, match="row=2"):
        found.figure(row=2)


def test_a_token_in_the_joint_lens(traced: Callable[..., Example]) -> None:
    """By each component alone it is that of the component's jet and the bias; shares add up to all together."""
    example = traced(case("gptj"))
    found = joint_lens(example.graph, example.inputs, order=2, target=7)
    assert found.target is not None
    expansion = jg.expand(example.graph, 2, recipe="components", weights="unit")
    values = jg.compile(expansion)(**example.inputs)
    sums: dict[str, Any] = dict.fromkeys(found.components, 0)
    for path, term in values.terms.items():
        for name in found.components if expansion.start(path).is_output_bias else [path.source.alias]:
            sums[name] = sums[name] + term.detach().double()
    for place, logits in enumerate(sums.values()):
        expected = (logits - logits.mean(-1, keepdim=True))[..., 7]
        torch.testing.assert_close(found.target.alone["logit"][..., place], expected, rtol=1e-3, atol=1e-3)
        probability = found.target.alone["probability"][..., place]
        torch.testing.assert_close(probability, logits.softmax(-1)[..., 7], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.target.shares.sum(-1), found.target.together["logit"])
    own = example.output.double()
    torch.testing.assert_close(found.target.model["probability"], own.softmax(-1)[..., 7])
    columns = found.columns()
    assert columns["target_share"][:5] == found.target.shares[0, 0].tolist()
    assert columns["target"][0] == "#7"
    labels = [axes.get_ylabel() for axes in found.figure().axes]
    assert labels == ["rank", "probability", "centred logit"]
    with pytest.raises(jg.InputError, match="out of range"):
        joint_lens(example.graph, example.inputs, target=53)


def test_gram_matrices_do_not_depend_on_the_chunks(
    traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = traced(case("gpt2"))
    whole = joint_lens(example.graph, example.inputs)
    monkeypatch.setattr(joint, "GRAM_CELLS", 6 * 14 * 10)
    torch.testing.assert_close(joint_lens(example.graph, example.inputs).weights, whole.weights)


# Radius of convergence


@anatomies
def test_radius_and_distance(anatomy: Anatomy, traced: Callable[..., Example]) -> None:
    """The poles are the roots t of var(x + t v) + ε, or of its mean square without centring."""
    example = traced(case(anatomy.name))
    ids = next(iter(example.inputs.values()))
    found = evaluate_lens(example.graph, ids, orders=(0,), scale="none", resamples=10)
    steps = anatomy.components(example.model, example.inputs)
    points = [h.detach().double() for h in itertools.accumulate(sum(step) for step in steps)]
    norm = anatomy.part(example.model, anatomy.norm)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    assert found.radius_tokens == ids.numel()
    for p, point in enumerate(points[:-1]):
        v = points[-1] - point
        distance = v.norm(dim=-1) / point.norm(dim=-1)
        assert found.geometry["distance"].median[p] == pytest.approx(np.median(distance.numpy()), rel=1e-5)
        assert found.geometry["distance"].mean[p] == pytest.approx(distance.mean().item(), rel=1e-5)
        x, v = (h - h.mean(-1, keepdim=True) if anatomy.kind is layer_norm else h for h in (point, v))
        exact = [
            np.abs(np.roots([float(b @ b) / len(b), 2 * float(a @ b) / len(b), float(a @ a) / len(b) + epsilon])).min()
            for a, b in zip(x.flatten(0, 1), v.flatten(0, 1), strict=True)
        ]
        assert found.geometry["radius"].median[p] == pytest.approx(np.median(exact), rel=0.02)
        assert found.geometry["converges"].mean[p] == pytest.approx(np.mean(np.array(exact) > 1), abs=0.08)
    assert np.isinf(found.geometry["radius"].median[-1])
    assert found.geometry["distance"].median[-1] == pytest.approx(0.0, abs=1e-6)


def test_the_table_of_a_lens_takes_no_second_copy_of_it(
    traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it tells in float64 is made point by point. The stream is let go before it is decoded."""
    monkeypatch.setattr(distances, "CACHE", 2**12)
    example = traced(case("llama"))
    found = jg.lens(example.graph, example.inputs["input_ids"], order=2, target=3)
    assert peak(found.columns) < found.logits.nbytes
    ids = torch.randint(0, 50, (8, 32))
    one = jg.lens(example.graph, ids, order=[1])
    stream = len(one.points) * example.graph.run(input_ids=ids)[example.graph.stream.end].nbytes
    most = one.logits.nbytes + 2 * one.output.nbytes + 2.5 * stream
    assert peak(lambda: jg.lens(example.graph, ids, order=[1])) < most


def test_radii_are_those_of_the_centres_that_were_matched(traced: Callable[..., Example]) -> None:
    """Told by the evaluation, whose centres come in several stacks; without it they are matched once more."""
    example = traced(case("llama"))
    ids = example.inputs["input_ids"]
    found = jg.lens(example.graph, ids, order=[2])
    forward = example.graph.run(input_ids=ids)
    exact = closed_radii(forward, found.points, "matched")
    assert exact is not None
    assert found.radius is not None
    torch.testing.assert_close(found.radius, exact[..., 0].double())
    known = lenses(example.graph, 2, None, "matched", True)
    apart = known.values(forward, memory=1).radii["logits"]
    assert len(apart) == len(found.points)
    torch.testing.assert_close(torch.cat([*apart]), exact)


@anatomies
def test_radius_of_matched_centres(anatomy: Anatomy, traced: Callable[..., Example]) -> None:
    """One over the sine of the angle to the end, and below 1 where that is no acute one."""
    example = traced(case(anatomy.name))
    ids = next(iter(example.inputs.values()))
    found = evaluate_lens(example.graph, ids, orders=(0,), resamples=10)
    steps = anatomy.components(example.model, example.inputs)
    points = [h.detach().double() for h in itertools.accumulate(sum(step) for step in steps)]
    for p, point in enumerate(points[:-1]):
        x, h = (y - y.mean(-1, keepdim=True) if anatomy.kind is layer_norm else y for y in (point, points[-1]))
        cosine = nn.functional.cosine_similarity(x, h, dim=-1)
        assert found.geometry["converges"].mean[p] == (cosine > 0).double().mean()
        radius = torch.where(cosine > 0, (1 - cosine.square()).rsqrt(), x.norm(dim=-1) / (h - x).norm(dim=-1))
        assert found.geometry["radius"].mean[p] == pytest.approx(float(radius.mean()), rel=1e-4)


def test_a_lens_is_of_the_weights_that_it_was_made_with() -> None:
    """What it tells later is so too, and it can be copied."""
    loaded = jg.load_model("demo")
    graph = loaded.trace(loaded.inputs())
    made, asked = (lens(graph, torch.tensor([[5, 6, 7]]), order=1) for _ in range(2))
    before = asked.columns()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.5)
    assert made.columns() == before
    # Copied as it is pickled: it holds no graph.
    assert copy.deepcopy(made).columns() == before
    assert not any(isinstance(value, jg.ResidualGraph) or callable(value) for value in vars(made).values())


def test_radius_of_another_decoder_is_read_off(traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap of Gemma 2's logits has poles of its own; a norm alone needs no orders at all."""
    seen: list[int] = []
    inner = measuring.Measurement._lenses
    monkeypatch.setattr(measuring.Measurement, "_lenses", lambda self, order: seen.append(order) or inner(self, order))
    for name, expected in (("gpt2", [0]), ("gemma2", [0, RADIUS_ORDER])):
        seen.clear()
        example = traced(case(name))
        evaluate_lens(example.graph, example.inputs["input_ids"], orders=(0,), resamples=10)
        assert seen == expected


@pytest.mark.parametrize("norm", ["layer", "rms"])
@dtypes
def test_radius_of_norms_token_by_token(norm: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, v = torch.randn(200, 32), torch.randn(200, 32)
    v = (v - 1.2 * torch.rand(200, 1) * x) * torch.logspace(-1.5, 1.5, 200)[:, None]
    module = nn.LayerNorm(32) if norm == "layer" else nn.RMSNorm(32, eps=1e-5)
    a, b = (h.to(dtype).double() for h in (x, v))
    if norm == "layer":
        a, b = (h - h.mean(-1, keepdim=True) for h in (a, b))
    exact = ((a.square().mean(-1) + 1e-5) / b.square().mean(-1)).sqrt().numpy()
    coefficients = jg.jet(module.eval().to(dtype), x.to(dtype), v.to(dtype), RADIUS_ORDER).detach()
    found = radius_of_convergence(coefficients.double().norm(dim=-1).numpy())
    error = np.abs(found / exact - 1)
    assert np.median(error) < 0.005
    assert error.max() < 0.1


def test_radius_of_other_functions() -> None:
    x, v = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def sizes(function: Callable[[Tensor], Tensor], at: float) -> Array:
        return jg.jet(function, x + at, v, RADIUS_ORDER).abs().numpy()

    # 1/(1 + x) has its pole at −1, and atan(x)-like 1/(1 + x²) two at ±i.
    assert radius_of_convergence(sizes(lambda t: 1 / (1 + t), 1.0))[0] == pytest.approx(2.0, rel=0.06)
    assert radius_of_convergence(sizes(lambda t: (1 + t) ** -0.5, 1.0))[0] == pytest.approx(2.0, rel=0.005)
    # Polynomials converge everywhere, and so does what has no coefficient but the first.
    assert np.isinf(radius_of_convergence(sizes(lambda t: t * t * t, 1.0)))
    assert np.isinf(radius_of_convergence(np.array([3.0, 0.0, 0.0])))
    # exp converges everywhere too; what is read off its first 24 coefficients is at least large.
    assert radius_of_convergence(sizes(torch.exp, 0.0))[0] > 5


@pytest.mark.parametrize("radius", [1e-4, 1e4])
def test_radius_beyond_the_range_of_floats(radius: float) -> None:
    """Coefficients that overflow or vanish in float32 leave fewer orders, not another answer."""
    orders = np.arange(25.0)
    with np.errstate(over="ignore"):
        sizes = (radius**-orders / np.sqrt(orders.clip(min=1))).astype(np.float32)
    assert np.isinf(sizes[-1]) or sizes[-1] == 0
    assert radius_of_convergence(sizes) == pytest.approx(radius, rel=0.02)


# Evaluation


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "bert", "root_loop"])
@dtypes
def test_evaluation_is_the_statistics_of_lenses(
    name: str,
    dtype: torch.dtype,
    traced: Callable[..., Example],
    halved: Callable[[str], Any],
    masked: Callable[[torch.dtype], Any],
) -> None:
    if name == "bert":
        graph = masked(dtype)[1]
    else:
        graph = traced(case(name)).graph if dtype is torch.float32 else halved(name)[1]
    ids = torch.randint(3, 53, (5, 6), generator=torch.Generator().manual_seed(0))
    found = evaluate_lens(graph, ids, orders=(0, 2, 1), batch=2, resamples=50)
    rows = [lens(graph, {**_rest(name), _first(name): row[None]}, order=2) for row in ids]
    assert found.orders == (0, 1, 2)
    assert found.points == rows[0].points
    assert (found.tokens, found.windows) == (30, 5)
    for p, j in np.ndindex(len(found.points), 3):
        direct = [
            measured(one.output[0, i].double().tolist(), one.logits[p, j, 0, i].double().tolist())
            for one in rows
            for i in range(6)
        ]
        for metric in METRICS:
            values = np.array([numbers[metric] for numbers in direct])
            tolerance = {"rel": 1e-3, "abs": 1e-5} if dtype is torch.float32 else {"rel": 0.05, "abs": 0.05}
            assert found.metrics[metric].mean[p, j] == pytest.approx(values.mean(), **tolerance)
            assert found.metrics[metric].median[p, j] == pytest.approx(np.median(values), **tolerance)


def _first(name: str) -> str:
    return next(iter(case(name).inputs()))


def _rest(name: str) -> dict[str, Any]:
    """Inputs that are no tensors."""
    return {key: value for key, value in case(name).inputs().items() if not isinstance(value, Tensor)}


def test_intervals_are_those_of_windows(traced: Callable[..., Example]) -> None:
    """Their width is that of a mean over windows, not over tokens, which here are copies of each other."""
    graph = traced(case("root_loop")).graph
    ids = torch.randint(3, 53, (60, 1), generator=torch.Generator().manual_seed(1)).expand(60, 8).contiguous()
    found = evaluate_lens(graph, ids, orders=(0,), resamples=2000)
    logits = lens(graph, ids)
    kl = logits.comparison.kl[0, 0].mean(-1).numpy()
    width = 2 * 1.96 * kl.std(ddof=1) / math.sqrt(60)
    statistic = found.metrics["kl"]
    assert statistic.mean[0, 0] == pytest.approx(kl.mean(), rel=1e-9)
    assert statistic.high[0, 0] - statistic.low[0, 0] == pytest.approx(width, rel=0.1)
    assert statistic.low[0, 0] < kl.mean() < statistic.high[0, 0]
    again = evaluate_lens(graph, ids, orders=(0,), resamples=2000).metrics["kl"]
    other = evaluate_lens(graph, ids, orders=(0,), resamples=2000, seed=1).metrics["kl"]
    assert again.low[0, 0] == statistic.low[0, 0]
    assert other.low[0, 0] != statistic.low[0, 0]


def test_remainders_by_radius(traced: Callable[..., Example]) -> None:
    """Inside the radius of convergence the fifth order beats the first; outside it is worse."""
    example = traced(case("llama"))
    ids = torch.randint(3, 53, (12, 10), generator=torch.Generator().manual_seed(2))
    found = evaluate_lens(example.graph, ids, orders=(0, 1, 5), scale="none", resamples=10)
    both = [p for p in range(len(found.points) - 1) if not np.isnan(found.inside[p, 0] + found.outside[p, 0])]
    assert both
    for p in both:
        assert found.inside[p, 2] < found.inside[p, 1]
        assert found.outside[p, 2] > found.outside[p, 1]
    anatomy = next(one for one in ANATOMIES if one.name == "llama")
    steps = anatomy.components(example.model, {"input_ids": ids, "use_cache": False})
    points = [h.detach().double() for h in itertools.accumulate(sum(step) for step in steps)]
    remainder = lens(example.graph, ids, order=1, scale="none").comparison.remainder
    for p in both:
        inside = points[p].norm(dim=-1) > (points[-1] - points[p]).norm(dim=-1)
        assert found.inside[p, 1] == pytest.approx(remainder[p, 1][inside].quantile(0.5).item(), rel=0.05)


def test_evaluation_does_not_depend_on_memory(traced: Callable[..., Example]) -> None:
    graph = traced(case("gpt2")).graph
    ids = torch.randint(3, 53, (6, 8), generator=torch.Generator().manual_seed(3))
    whole = evaluate_lens(graph, ids, orders=(0, 1), resamples=20)
    # One window at a time, of both orders together and one after the other.
    for memory in (2 * 4 * 8 * 53, 4 * 8 * 53):
        parts = evaluate_lens(graph, ids, orders=(0, 1), resamples=20, memory=memory)
        for name in METRICS:
            for field in ("mean", "low", "high", "median"):
                np.testing.assert_allclose(
                    getattr(parts.metrics[name], field), getattr(whole.metrics[name], field), rtol=1e-4, atol=1e-6
                )
        np.testing.assert_allclose(parts.geometry["radius"].median, whole.geometry["radius"].median, rtol=1e-3)


def test_centres_are_matched_once(
    traced: Callable[..., Example], halved: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What matched them in an evaluation is what they are measured with, to the bit."""
    matched, match = list[Tensor](), measuring.match
    monkeypatch.setattr(measuring, "match", lambda *given: matched.append(given[2]) or match(*given))
    ids = torch.randint(3, 53, (4, 8), generator=torch.Generator().manual_seed(3))
    for graph in (traced(case("gpt2")).graph, halved("llama")[1]):
        for memory in (None, 4 * 8 * 53):
            found = evaluate_lens(graph, ids, orders=(0, 1), resamples=10, memory=memory)
            assert not matched
            with monkeypatch.context() as patch:
                patch.setattr(measuring, "_scales", lambda *given: None)
                again = evaluate_lens(graph, ids, orders=(0, 1), resamples=10, memory=memory)
            assert matched
            matched.clear()
            for name, one in found.geometry.items():
                assert np.array_equal(one.mean, again.geometry[name].mean)
                assert np.array_equal(one.median, again.geometry[name].median)


def test_evaluation_of_texts(demo: Subject, tmp_path: Path) -> None:
    tokenizer = demo.tokenizer
    assert tokenizer is not None
    text = "Return a new list with the items of the given mapping, or raise KeyError. " * 20
    file = tmp_path / "corpus.txt"
    # With a byte-order mark, which is no token.
    file.write_text(f"\ufeff{text}", encoding="utf-8")
    ids = tokenizer(text)["input_ids"]

    def evaluated(texts: Any, **options: Any) -> LensEvaluation:
        return evaluate_lens(demo.graph, texts, orders=(0,), layers=[4], resamples=20, tokenizer=tokenizer, **options)

    every = evaluated(file, window=16)
    assert every.tokens == len(ids) - (len(ids) % 16 == 1)
    assert every.windows == math.ceil(every.tokens / 16)
    cut = [torch.tensor([ids[i : i + 16]]) for i in range(0, len(ids), 16)]
    kl = torch.cat([lens(demo.graph, part, layers=4).comparison.kl.flatten() for part in cut if part.numel() > 1])
    assert every.metrics["kl"].mean[0, 0] == pytest.approx(kl.mean().item(), rel=1e-4)
    late, skipped = [part for part in cut if part.numel() > 3], evaluated(file, window=16, skip_first=3)
    kl = torch.cat([lens(demo.graph, part, layers=4).comparison.kl[..., 3:].flatten() for part in late])
    assert (skipped.tokens, skipped.windows) == (len(kl), len(late))
    assert skipped.metrics["kl"].mean[0, 0] == pytest.approx(kl.mean().item(), rel=1e-4)
    with pytest.raises(jg.InputError, match="skip_first=16 leaves nothing"):
        evaluated(file, window=16, skip_first=16)
    assert 64 <= evaluated(file, window=16, tokens=64).tokens < 96
    prompts = ["Return the", "Raise an error if the value is not", "Return the"]
    several = evaluated(prompts)
    assert several.windows == 3
    assert several.tokens == sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)


class Letters:
    """A tokenizer of letters."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}

    def __len__(self) -> int:
        return 26


def test_a_loaded_model_brings_its_tokenizer(traced: Callable[..., Example]) -> None:
    """Without a config, the model is traced on the texts themselves."""
    model = case("root_loop").build()
    found = evaluate_lens(Loaded("letters", model, Letters()), ["abcdefg", "gfedcba", "hi"], orders=(0,), resamples=10)
    assert (found.tokens, found.windows) == (16, 3)
    ids = torch.arange(7)
    direct = evaluate_lens(model, torch.stack((ids, ids.flip(0))), orders=(0,), resamples=10)
    logits = lens(traced(case("root_loop")).graph, torch.tensor([[7, 8], [7, 8]])).comparison.kl[:, 0, 0]
    total = direct.metrics["kl"].mean[:, 0] * 14 + logits.sum(-1).numpy()
    np.testing.assert_allclose(found.metrics["kl"].mean[:, 0], total / 16, rtol=1e-5, atol=1e-12)


def test_evaluation_of_images(traced: Callable[..., Example]) -> None:
    example = traced(case("vit"))
    images = evaluate_lens(example.graph, example.inputs["pixel_values"], orders=(0, 1), resamples=10)
    direct = lens(example.graph, example.inputs, order=1)
    assert images.tokens == 2
    np.testing.assert_allclose(
        images.metrics["remainder"].mean, direct.comparison.remainder.mean(-1).numpy(), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_less(0, images.geometry["distance"].mean[:-1])


def test_evaluation_table_and_figure(tmp_path: Path, traced: Callable[..., Example]) -> None:
    ids = torch.randint(3, 53, (4, 6), generator=torch.Generator().manual_seed(5))
    found = evaluate_lens(traced(case("gpt2")).graph, ids, orders=(0, 1), resamples=10)
    columns = found.columns()
    assert len({len(values) for values in columns.values()}) == 1
    frame = found.to_dataframe()
    row = frame[(frame.quantity == "top5") & (frame.order == 1) & (frame.point == "h2")].iloc[0]
    assert row["after"] == "L0.mlp"
    assert row["mean"] == found.metrics["top5"].mean[2, 1]
    assert row["high"] == found.metrics["top5"].high[2, 1]
    distance = frame[(frame.quantity == "distance") & (frame.point == "h0")].iloc[0]
    assert distance["median"] == found.geometry["distance"].median[0]
    assert math.isnan(distance["order"])
    assert found.save(tmp_path / "evaluation.parquet").stat().st_size > 0
    figure = found.plot()
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert len(labels) == 8
    assert all(labels)
    assert figure.axes[0].get_ylabel() == "KL(model ‖ lens), nats"


def test_evaluation_says_what_is_wrong(tmp_path: Path, demo: Subject, traced: Callable[..., Example]) -> None:
    example: Example = traced(case("gpt2"))
    graph, ids = example.graph, example.inputs["input_ids"]
    with pytest.raises(jg.FileError, match=r"no text file 'missing\.txt': give prompts as a list"):
        evaluate_lens("demo", "missing.txt")
    with pytest.raises(jg.InputError, match="the text 'a prompt' needs a tokenizer"):
        evaluate_lens(graph, ["a prompt"])
    with pytest.raises(jg.InputError, match=r"orders=\(\)"):
        evaluate_lens(graph, ids, orders=())
    with pytest.raises(jg.InputError, match="window=1"):
        evaluate_lens(graph, ids, window=1)
    with pytest.raises(jg.InputError, match="no text to look at"):
        evaluate_lens(demo.graph, [""], tokenizer=demo.tokenizer)
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(jg.FileError, match="no UTF-8 text"):
        evaluate_lens("demo", broken)


def test_one_window_has_no_interval(traced: Callable[..., Example]) -> None:
    found = evaluate_lens(
        traced(case("gpt2")).graph, torch.randint(3, 50, (1, 9)), orders=(0,), tokens=9, resamples=20, layers=["h1"]
    )
    statistic = found.metrics["kl"]
    assert np.isfinite(statistic.mean).all()
    assert np.isnan(statistic.low).all()
    assert np.isnan(statistic.high).all()


def test_no_layers_are_no_lens(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    with pytest.raises(jg.JetGraphError, match="names no point"):
        lens(example.graph, example.inputs, layers=[])


def test_lens_of_one_position(demo: Subject) -> None:
    """It is that of all positions there, at the price of one."""
    tokenizer = demo.tokenizer
    whole = lens(demo.graph, "Raise Value", order=1, layers=[0, 2, -1], tokenizer=tokenizer)
    for position, place in ((-2, 5), (3, 3), ("last", 6)):
        found = lens(demo.graph, "Raise Value", order=1, layers=[0, 2, -1], position=position, tokenizer=tokenizer)
        assert found.logits.shape[3] == 1
        torch.testing.assert_close(found.logits[..., 0, :], whole.logits[..., place, :])
        there = whole.at(place).columns()
        for name, cells in found.columns().items():
            near = pytest.approx(there[name], rel=1e-3, abs=1e-5) if isinstance(cells[0], float) else there[name]
            assert list(cells) == near, name
        assert f"at position {place}, where" in found.note
        assert len(found.shown().rows(found.columns())) == 3 * 2
        assert found.figure() is not None
    with pytest.raises(jg.InputError, match="position=7 does not exist"):
        lens(demo.graph, "Raise Value", position=7, tokenizer=tokenizer)


def test_pictures_mark_what_lies_beyond_the_radius(demo: Subject) -> None:
    """The closed form is where the variance of x + t (h − x) is zero, and cells below 1 are hatched."""
    found = lens(demo.graph, "Raise Value", order=1, layers=[0, 4], scale="none", tokenizer=demo.tokenizer)
    assert found.radius is not None
    with torch.no_grad():
        forward = demo.graph.run(**demo.inputs("Raise Value"))
        x, end = torch.stack([forward.at_end(point) for point in (0, 4)]), forward.point(-1)
    size, way = ((y - y.mean(-1, keepdim=True)).double().square().sum(-1) for y in (x, end - x))
    torch.testing.assert_close(found.radius.double(), (size / way).sqrt(), rtol=1e-5, atol=0)
    far = int((found.radius < 1).sum())
    assert 0 < far < found.radius.numel()
    marked = [axes for axes in found.figure().axes if axes.patches and axes.get_title()]
    assert [(axes.get_title(), len(axes.patches)) for axes in marked] == [("order 1", far)]
    assert "beyond the radius" in found.note
    assert found.columns()["radius"][0] == pytest.approx(float(found.radius[0, 0, 0]))
    assert lens(demo.graph, "Raise Value", layers=[0], tokenizer=demo.tokenizer).radius is None


class Laid(torch.nn.Module):
    """Blocks and a norm on a stream whose dimensions are the batch, the positions and the features in some order."""

    def __init__(self, order: tuple[int, int, int], normed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order, self.back = order, [order.index(dim) for dim in range(3)]
        self.embed, self.head = torch.nn.Embedding(7, 6), torch.nn.Linear(6, 7)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))
        self.norm = torch.nn.LayerNorm(6) if normed else torch.nn.Identity()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).permute(self.order)
        features = self.order.index(2)
        for block in self.blocks:
            x = x + 2 * torch.tanh(block(x.movedim(features, -1)).movedim(-1, features))
        return self.head(self.norm(x.permute(self.back)) if features != 2 else self.norm(x).permute(self.back))


@pytest.mark.parametrize(("order", "normed"), [((1, 0, 2), True), ((0, 2, 1), True), ((0, 2, 1), False)])
def test_what_is_told_by_token_is_the_token_s(order: tuple[int, int, int], normed: bool) -> None:
    """Radii, distances and what is left beside them, wherever the stream has its positions."""
    ids = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
    found, expected = (
        jg.evaluate_lens(Laid(laid, normed).double().eval(), ids, orders=[0, 1], scale="none", resamples=10)
        for laid in (order, (0, 1, 2))
    )
    for name, statistic in expected.geometry.items():
        np.testing.assert_allclose(found.geometry[name].mean, statistic.mean)
        np.testing.assert_allclose(found.geometry[name].median, statistic.median)
    np.testing.assert_allclose(found.inside, expected.inside)
    np.testing.assert_allclose(found.outside, expected.outside)
    if normed:
        assert np.isfinite(expected.outside[0]).all()


def test_a_joint_lens_that_leaves_nothing_is_drawn_without_a_logarithm() -> None:
    """As behind an affine decoder, of which jets of order 1 are all."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = net, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.branch(x))

    given = {"x": torch.randn(2, 4, generator=torch.Generator().manual_seed(0))}
    lens = jg.joint_lens(jg.trace(Affine().eval(), **given, dynamic=False), given)
    assert bool((lens.remainder == 0).all())
    assert bool((lens.uniform == 0).all())
    assert lens.figure().axes[1].get_yscale() == "linear"
    assert jg.joint_lens("demo", "Raise Value").figure().axes[1].get_yscale() == "log"
