"""A graph's weights are the model's, by name: who replaces, casts or packs them finds it as the model is."""

from __future__ import annotations

import copy
import gc
import pickle  # noqa: TID251 (it is refused)
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import jetgraph as jg
from jetgraph.export.process import alone

IDS = torch.arange(10).view(2, 5) % 7
OTHER = IDS.flip(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """Embedding, blocks, a buffer, norm and unembedding."""

    def __init__(self, seed: int = 0, block: type[nn.Module] = Block, depth: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.blocks = nn.Embedding(7, 4), nn.ModuleList(block() for _ in range(depth))
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
            self.register_buffer("shift", torch.randn(7))
        self.requires_grad_(False).eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) + self.shift


@pytest.fixture(scope="module")
def pristine() -> tuple[Model, jg.ResidualGraph]:
    model = Model()
    return model, jg.trace(model, IDS)


@pytest.fixture
def pair(pristine: tuple[Model, jg.ResidualGraph]) -> tuple[Model, jg.ResidualGraph]:
    """A model that a test may change, and the graph that is bound to it."""
    return copy.deepcopy(pristine)


def _reset(model: Model) -> None:
    model.load_state_dict(Model(1).state_dict(), assign=True)


def _replace_parameter(model: Model) -> None:
    model.head.weight = Model(1).head.weight


def _replace_module(model: Model) -> None:
    model.blocks[1] = Model(1).blocks[1]


def _replace_buffer(model: Model) -> None:
    model.shift = Model(1).shift


def _swap_data(model: Model) -> None:
    model.embed.weight.data = Model(1).embed.weight.data


def _change_in_place(model: Model) -> None:
    model.load_state_dict(Model(1).state_dict())


def _double(model: Model) -> None:
    model.double()


def _halve(model: Model) -> None:
    model.bfloat16()


CHANGES = [
    *(_reset, _replace_parameter, _replace_module, _replace_buffer, _swap_data, _change_in_place, _double, _halve)
]

APPLICATIONS: Mapping[str, Callable[[jg.ResidualGraph], Any]] = {
    "run": lambda graph: graph.run(IDS).component("L1.mlp").tolist(),
    "compiled": lambda graph: jg.compile(jg.expand(graph, order=1, recipe="components"))(IDS).remainder.tolist(),
    "ablate": lambda graph: jg.ablate(graph, "*.mlp > logits", IDS).to_dataframe().to_csv(),
    "ablate an expansion": lambda graph: (
        jg.ablate(jg.expand(graph, recipe="components"), "L0.mlp > logits", IDS).to_dataframe().to_csv()
    ),
    "patch": lambda graph: jg.patch(graph, IDS, OTHER, receivers="logits").to_dataframe().to_csv(),
    "lens": lambda graph: jg.lens(graph, IDS, order=1).to_dataframe().to_csv(),
    "joint lens": lambda graph: jg.joint_lens(graph, IDS).to_dataframe().to_csv(),
    "ngrams": lambda graph: jg.ngrams(graph, "embed > L0.mlp > logits", top=3).to_dataframe().to_csv(),
}
"""What they find, in plain numbers."""


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_graph_follows_its_model(change: Callable[[Model], None], pair: tuple[Model, jg.ResidualGraph]) -> None:
    model, graph = pair
    expansion, before = jg.expand(graph, recipe="components"), graph(IDS)
    change(model)
    assert not torch.equal(graph(IDS).double(), before.double()) or change is _double
    assert torch.equal(graph(IDS), model(IDS))
    assert torch.equal(jg.compile(expansion)(IDS).output, model(IDS))
    branch = graph.run(IDS).component("L0.mlp")
    assert torch.equal(branch, model.blocks[0].mlp(model.blocks[0].norm(model.embed(IDS))))


def _remove(model: Model) -> None:
    del model.embed, model.blocks


@pytest.mark.parametrize("change", [lambda model: model.to("meta"), _remove], ids=["meta", "gone"])
def test_compiled_paths_keep_weights_that_the_model_no_longer_has(
    change: Callable[[Model], Any], pair: tuple[Model, jg.ResidualGraph]
) -> None:
    model, graph = pair
    module = jg.compile(jg.expand(graph, recipe="components"))
    before = module(IDS).output
    change(model)
    assert torch.equal(module(IDS).output, before)
    with pytest.raises(jg.StateError):
        graph(IDS)


@pytest.mark.parametrize("change", [_reset, _halve], ids=lambda change: change.__name__)
def test_every_application_follows_the_model(
    change: Callable[[Model], None], pair: tuple[Model, jg.ResidualGraph]
) -> None:
    model, graph = pair
    change(model)
    again = jg.trace(model, IDS)
    for name, application in APPLICATIONS.items():
        assert application(graph) == application(again), name


def test_a_cast_and_back_is_the_graph_itself(pair: tuple[Model, jg.ResidualGraph]) -> None:
    model, graph = pair
    model.double()
    there = graph.current()
    assert there is not graph
    assert there is graph.current()
    with pytest.raises(jg.JetGraphError, match=r"another graph than this pass.*forward\.graph"):
        graph.run(IDS)[graph.stream.points[0]]
    model.float()
    assert graph.current() is graph


def _tie(model: Model) -> None:
    model.head.weight = nn.Parameter(model.embed.weight.clone(), requires_grad=False)


def _drop(model: Model) -> None:
    model.blocks[0].mlp[2].bias = None


def _grow(model: Model) -> None:
    model.embed.weight = nn.Parameter(torch.zeros(8, 4))


def _offload(model: Model) -> None:
    model.to("meta")


def _pack(model: Model) -> None:
    packed(model)


def _cast_in_part(model: Model) -> None:
    model.head.half()


def _to_integers(model: Model) -> None:
    model.head.weight = nn.Parameter(torch.ones(7, 4, dtype=torch.int8), requires_grad=False)


REFUSED = {
    _tie: r"'(embed|head)\.weight' is no longer one tensor with '(embed|head)\.weight'",
    _drop: r"'blocks\.0\.mlp\.2\.bias' is gone from the model",
    _grow: r"'embed\.weight' has become one of shape \[8, 4\] instead of \[7, 4\]",
    _offload: r"has been moved to the meta device",
    _pack: r"has become a Packed",
    _cast_in_part: r"'head\.weight' has become one of torch\.float16.*and others have not",
    _to_integers: r"'head\.weight' has become one of torch\.int8 instead of torch\.float32",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_change_that_the_program_does_not_fit_is_told(
    change: Callable[[Model], None], pair: tuple[Model, jg.ResidualGraph]
) -> None:
    model, graph = pair
    if change is _tie:
        model.head.weight = model.embed.weight
        graph = jg.trace(model, IDS)
    change(model)
    for look in (lambda: graph(IDS), lambda: jg.lens(graph, IDS)):
        with pytest.raises(jg.JetGraphError, match=REFUSED[change] + "(.|\n)*trace"):
            look()


def test_a_graph_outlives_its_model_and_does_not_keep_it() -> None:
    model = Model()
    graph = jg.trace(model, IDS)
    _reset(model)
    expected, alive = model(IDS), weakref.ref(model)
    assert torch.equal(graph(IDS), expected)
    del model
    gc.collect()
    assert alive() is None
    assert torch.equal(graph(IDS), expected)


def test_a_graph_of_a_function_follows_the_modules_that_it_reads() -> None:
    model, scale = Model(), nn.Linear(7, 7).eval()
    graph = jg.trace(lambda ids: scale(model(ids)), IDS)
    _reset(model)
    scale.weight = nn.Parameter(torch.eye(7))
    with torch.no_grad():
        assert torch.equal(graph(IDS), scale(model(IDS)))


def test_compiled_paths_keep_the_weights_that_they_were_compiled_with(pair: tuple[Model, jg.ResidualGraph]) -> None:
    model, graph = pair
    module = jg.compile(jg.expand(graph, recipe="components"))
    before = model(IDS)
    _reset(model)
    assert torch.equal(module(IDS).output, before)
    table = jg.PathTable(graph, "embed > L0.mlp > logits")
    rows = table.logits(torch.tensor([[3]]))
    _halve(model)
    assert torch.equal(table.decoding.decode(table.hidden(torch.tensor([[3]]))), rows)


# Copies


def test_a_copied_graph_has_its_own_weights(pair: tuple[Model, jg.ResidualGraph]) -> None:
    model, graph = pair
    split = graph.split({"*.mlp": [[0, 1], [2, 3, 4, 5]]})
    expected = graph(IDS)
    # Nodes are keys of what these have computed.
    assert graph.positions
    assert split.positions
    alone, parts = copy.deepcopy(graph), copy.deepcopy(split)
    _change_in_place(model)
    assert torch.equal(alone(IDS), expected)
    assert list(parts.branches) == list(split.branches)
    assert torch.allclose(parts(IDS), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(graph(IDS), expected)
    assert torch.equal(copy.copy(graph)(IDS), graph(IDS))


@pytest.mark.parametrize("called", [False, True])
def test_a_copied_module_has_its_own_weights(called: bool, pair: tuple[Model, jg.ResidualGraph]) -> None:
    _, graph = pair
    module = jg.compile(jg.expand(graph, order=1, recipe="components"))
    expected = [term.clone() for term in module(IDS).terms.values()]
    copied = copy.deepcopy(module if called else jg.compile(module.expansion))
    sizes = [sum(tensor.numel() for tensor in one.parameters()) for one in (module, copied)]
    assert sizes[0] == sizes[1]
    for parameter in module.parameters():
        parameter.zero_()
    assert all(map(torch.equal, copied(IDS).terms.values(), expected))
    assert not torch.equal(module(IDS).output, copied(IDS).output)
    assert copied.double()(IDS).output.dtype == torch.float64


def test_what_cannot_be_copied_says_so(pristine: tuple[Model, jg.ResidualGraph]) -> None:
    _, graph = pristine
    module = jg.compile(jg.expand(graph, recipe="components"))
    for value in (graph, module, module.expansion, module(IDS), graph.run(IDS)):
        with pytest.raises(jg.JetGraphError, match=r"not pickled.*jetgraph\.save"):
            pickle.dumps(value)
    for value in (module(IDS), graph.run(IDS)):
        with pytest.raises(jg.JetGraphError, match=r"not copied: copy the tensors"):
            copy.deepcopy(value)


# Weights that are no plain floating-point parameters


class Packed(Tensor):
    """A weight held in other tensors, as torchao holds one: `read` makes it of them."""

    @staticmethod
    def __new__(cls, *inner: Tensor, like: torch.dtype) -> Packed:
        return Tensor._make_wrapper_subclass(cls, inner[0].shape, dtype=like, device=inner[0].device)

    def __init__(self, tensor_data: Tensor, scale: Tensor, *, like: torch.dtype) -> None:
        self.tensor_data, self.scale, self.like = tensor_data, scale, like

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        return ["tensor_data", "scale"], self.like

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], like: torch.dtype, size: Any, stride: Any) -> Packed:
        return cls(inner["tensor_data"], inner["scale"], like=like)

    def read(self) -> Tensor:
        return self.tensor_data.to(self.like) * self.scale

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op in (torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten.alias.default):
            return cls(op(args[0].tensor_data), op(args[0].scale), like=args[0].like)
        return op(*pytree.tree_map_only(cls, cls.read, args), **pytree.tree_map_only(cls, cls.read, kwargs or {}))


class Twice(Packed):
    """One whose scales are packed themselves, so that a weight is three tensors deep in two."""


def packed(model: nn.Module, kind: type[Packed] = Packed) -> nn.Module:
    """The model with int8 weights in its linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            scale = weight.abs().amax(1, keepdim=True) / 127
            data = (weight / scale).round().to(torch.int8)
            if kind is Twice:
                scale = Packed((scale * 2**10).round().to(torch.int16), torch.full((), 2.0**-10), like=scale.dtype)
            module.weight = nn.Parameter(kind(data, scale, like=weight.dtype), requires_grad=False)
    return model


def unpacked(model: nn.Module, depth: int = 2) -> nn.Module:
    """The model with the same weights as plain parameters."""
    plain = Model(depth=depth)
    for (_, module), (_, other) in zip(model.named_modules(), plain.named_modules(), strict=True):
        if isinstance(module, nn.Linear):
            value = module.weight.detach()
            while isinstance(value, Packed):
                value = value.read()
            other.weight = nn.Parameter(value.clone(), requires_grad=False)
    return plain


@pytest.mark.parametrize("kind", [Packed, Twice])
def test_packed_weights_are_bound_by_what_they_hold(kind: type[Packed], tmp_path: Path) -> None:
    model = packed(Model(), kind)
    plain = unpacked(model)
    graph = jg.trace(model, IDS)
    names = [name for name in graph.traced.tensors if name.startswith("blocks.0.mlp.0.weight")]
    inner = ["scale.tensor_data", "scale.scale"] if kind is Twice else ["scale"]
    assert names == [f"blocks.0.mlp.0.weight.{name}" for name in ("tensor_data", *inner)]
    assert torch.equal(graph(IDS), plain(IDS))
    path = "embed > L0.mlp^0 > L1.mlp^1 > logits^0"
    module, expected = (jg.compile(jg.expand(one, order=1, orders="apart")) for one in (graph, jg.trace(plain, IDS)))
    wanted = expected(IDS).terms[path]
    assert torch.allclose(module(IDS).terms[path], wanted, rtol=1e-5, atol=1e-7)
    loaded = jg.load(jg.save(module, tmp_path / "paths"))
    assert torch.equal(loaded(IDS).terms[path], module(IDS).terms[path])
    model.head.weight = packed(Model(1), kind).head.weight
    assert torch.equal(graph(IDS), model(IDS))


@torch.library.custom_op("jetgraph_tests::product", mutates_args=())
def product(x: Tensor, data: Tensor, scale: Tensor, levels: float) -> Tensor:
    """x @ (data * scale).T in one operator, of which nothing is known; x is rounded if there are levels for it."""
    if levels:
        step = x.abs().amax(-1, keepdim=True) / levels
        x = (x / step).round() * step
    return x @ (data * scale).T


@product.register_fake
def _(x: Tensor, data: Tensor, scale: Tensor, levels: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], data.shape[0])


class Fused(Packed):
    """One that is multiplied by in an operator of its own."""

    levels = 0.0

    def dequantize(self) -> Tensor:
        return self.read()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.linear and isinstance(args[1], cls):
            x, weight, bias = args
            y = product(cls.rounded(x), weight.tensor_data, weight.scale, cls.levels)
            return y if bias is None else y + bias
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def rounded(cls, x: Tensor) -> Tensor:
        return x


class Inside(Fused):
    """Its operator rounds the activations too."""

    levels = 7.0


class Before(Fused):
    """Activations are rounded to int8 first."""

    @classmethod
    def rounded(cls, x: Tensor) -> Tensor:
        return (x * 16).round().to(torch.int8).to(x.dtype) / 16


def test_products_of_packed_weights_are_unpacked(tmp_path: Path) -> None:
    model = packed(Model(depth=1), Fused)
    model.head.weight.requires_grad_()
    plain = unpacked(model, depth=1)
    graph = jg.trace(model, IDS)
    assert model.head.weight.requires_grad
    assert graph.check.good
    assert list(graph.branches) == ["L0.mlp"]
    assert "blocks.0.mlp.0.weight.tensor_data" in graph.traced.tensors
    assert not any("product" in str(node.target) for node in graph.traced.graph.nodes)
    assert (
        jg.lens(graph, IDS, order=1).to_dataframe().equals(jg.lens(jg.trace(plain, IDS), IDS, order=1).to_dataframe())
    )
    loaded = jg.load(jg.save(graph, tmp_path / "graph"))
    assert torch.equal(loaded(IDS), graph(IDS))
    model.head.weight = packed(Model(1, depth=1), Fused).head.weight
    assert torch.allclose(graph(IDS), model(IDS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Inside, r"product\.default in module .*rounds more than the weights"),
        (Before, "rounds its inputs to torch.int8"),
    ],
)
def test_activations_that_are_rounded_are_refused(kind: type[Packed], what: str) -> None:
    """Their derivatives are zero almost everywhere, and would say nothing of what the model does."""
    with pytest.raises(jg.TraceError, match=r"in module 'blocks\.0\.mlp\.0'.*dequantize\(\)") as refusal:
        jg.trace(packed(Model(depth=1), kind), IDS)
    assert re.search(what, str(refusal.value))


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Parameter(torch.randint(-9, 9, (4, 4), dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(x) @ (self.mlp.to(x.dtype) * 0.1))


def test_integer_parameters_survive_their_files(tmp_path: Path) -> None:
    model = Model(block=Integers)
    loaded = jg.load(jg.save(jg.trace(model, IDS), tmp_path / "graph"))
    assert torch.equal(loaded(IDS), model(IDS))
    assert {tensor.dtype for tensor in loaded.traced.tensors.values()} == {torch.float32, torch.int8}


class Opaque(Integers):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(x) @ torch.from_numpy(self.mlp.numpy() * 0.1).float())


def test_quantised_weights_that_cannot_be_exported_are_named() -> None:
    with pytest.raises(jg.TraceError, match=r"The mlp of 'blocks\.0' \(Opaque\).*torch\.int8.*dequantize"):
        jg.trace(Model(block=Opaque), IDS)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Model().requires_grad_()
        expected = model(IDS).clone()
    graph = jg.trace(model, IDS)
    module = jg.compile(jg.expand(graph, order=1, recipe="components"))
    plain = jg.compile(jg.expand(jg.trace(Model(), IDS), order=1, recipe="components"))
    assert torch.equal(graph(IDS), expected)
    assert torch.equal(module(IDS).remainder, plain(IDS).remainder)
    assert torch.equal(copy.deepcopy(module)(IDS).output, expected)
    # What takes gradients on the way takes them, and weights are the model's own of now.
    own = jg.trace(Model(), IDS)
    for apply in (jg.attribute, jg.spectrum, jg.fit_transport, partial(jg.patch, corrupt=IDS[1:], screen=2)):
        assert repr(apply(graph, IDS[:1])) == repr(apply(own, IDS[:1]))
    with torch.inference_mode():
        next(model.head.parameters()).mul_(2)
        expected = model(IDS).clone()
    assert torch.equal(graph(IDS), expected)
    assert torch.equal(module(IDS).output, expected)


def test_inputs_made_in_inference_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), Skipped(), Skipped(), nn.Linear(4, 5)).eval()
    with torch.inference_mode():
        x, other = torch.randn(2, 3), torch.randn(2, 3)
    graph, plain = jg.trace(net, x), [value.clone() for value in (x, other)]
    assert repr(jg.attribute(graph, x[:1])) == repr(jg.attribute(graph, plain[0][:1]))
    assert repr(jg.patch(graph, x, other, screen=2)) == repr(jg.patch(graph, *plain, screen=2))
    jg.compile(jg.expand(graph, recipe="frozen"))(x).total.sum().backward()


class Skipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


@pytest.mark.parametrize("part", ["blocks.1", "shift"])
def test_a_model_without_some_of_its_weights_is_refused(part: str) -> None:
    model = Model()
    if part == "shift":
        model.shift = model.shift.to("meta")
    else:
        model.get_submodule(part).to("meta")
    with pytest.raises(jg.TraceError, match=rf"'{part}.*on the meta device.*offload"):
        jg.trace(model, IDS)


def test_stand_ins_of_another_thread_are_not_read(pair: tuple[Model, jg.ResidualGraph]) -> None:
    """While it exports a model, they are in the place of weights."""
    model, graph = pair
    expected, weight = graph(IDS), model.head.weight

    def export(begun: threading.Event) -> None:
        with alone():
            model.head._parameters["weight"] = nn.Parameter(weight.to("meta"), requires_grad=False)
            begun.set()
            time.sleep(0.2)
            model.head.weight = weight

    for read in (lambda: graph(IDS), lambda: graph.traced.tensors["head.weight"]):
        begun = threading.Event()
        thread = threading.Thread(target=export, args=(begun,))
        thread.start()
        begun.wait(60)
        found = read()
        thread.join()
        assert torch.equal(found, expected if found.dim() == 3 else weight)


def test_ids_that_nobody_can_look_at(pristine: tuple[Model, jg.ResidualGraph]) -> None:
    """Under a vmap they pass without a look at whether there are such rows."""
    _, graph = pristine
    found = torch.func.vmap(lambda ids: graph(ids[None])[0])(IDS)
    torch.testing.assert_close(found, graph(IDS))
