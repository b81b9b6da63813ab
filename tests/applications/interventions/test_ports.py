"""Patches of queries, keys and values, and at positions, against hooks; and their estimates against small patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import jetgraph as jg
from jetgraph.applications.interventions import patch
from tests.conftest import Example
from tests.zoo import case

ATTN, MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"
Hooks = Mapping[str, Callable[[Tensor], Tensor]]


def _run(model: nn.Module, ids: Tensor, hooks: Hooks, keep: str = "") -> tuple[Tensor, Tensor]:
    """Last logits with outputs of modules exchanged, and the output of one of them."""
    kept: list[Tensor] = []

    def edit(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return hook

    def keeping(value: Tensor) -> Tensor:
        kept.append(value.clone())
        return value

    handles = [model.get_submodule(name).register_forward_hook(edit(change)) for name, change in hooks.items()]
    handles += [model.get_submodule(keep).register_forward_hook(edit(keeping))] if keep else []
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
    for handle in handles:
        handle.remove()
    return logits, kept[0] if keep else logits


def _at(place: int | None, value: Tensor, own: Tensor) -> Tensor:
    """A value at one place of an own one, or as a whole."""
    changed = own.clone()
    changed[:, slice(None) if place is None else place] = value[:, slice(None) if place is None else place]
    return changed


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda own: value


@pytest.mark.parametrize("name", ["llama"])
def test_queries_keys_and_values_receive_as_the_projections_do(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    model, clean = example.model, example.inputs["input_ids"]
    corrupt = clean.roll(1, -1)
    own = {module: _run(model, clean, {}, module)[1] for module in (ATTN.format(0), MLP.format(0))}
    other = {module: _run(model, corrupt, {}, module)[1] for module in own}
    base = _run(model, clean, {})[0][:, 3]
    ways: list[tuple[str, int | None]] = [("q", None), ("k", None), ("v", None), ("q", 6), ("k", 2), ("v", 2)]
    names = [f"L1.attn.{way}" + ("" if at is None else f"@{at - 7}") for way, at in ways]
    found = patch(
        example.graph, {"input_ids": clean}, {"input_ids": corrupt}, senders=["L0.attn", "L0.mlp@2", "L0.mlp@-1"],
        receivers=names, target=3,
    )  # fmt: skip
    senders = [(ATTN, None), (MLP, 2), (MLP, 6)]
    for i, (module, place) in enumerate(senders):
        sender = module.format(0)
        sent = {sender: _constant(_at(place, other[sender], own[sender]))}
        held = {MLP.format(0): _constant(own[MLP.format(0)])}
        for way, at in ways:
            projection = f"{ATTN.format(1)}.{way}_proj"
            received = _at(
                at, _run(model, clean, {**held, **sent}, projection)[1], _run(model, clean, {}, projection)[1]
            )
            expected = _run(model, clean, {projection: _constant(received)})[0][:, 3] - base
            j = found.receivers.index(f"L1.attn.{way}" + ("" if at is None else f"@{at}"))
            torch.testing.assert_close(found.effects[i, j, :, 0], expected.double(), atol=2e-6, rtol=1e-3)
    assert found.effects.abs().amin((0, 2, 3)).max() > 0
    # All that attends to a place that has not changed is as it was.
    assert float(found.effects[2, found.receivers.index("L1.attn.v@2")].abs().max()) < 1e-6


def test_a_head_receives_by_its_own_queries(traced: Callable[..., Example]) -> None:
    """By queries, keys and values in turn, to first order, a head has what it has as a whole; others have nothing."""
    example = traced(case("llama"))
    ids = example.inputs["input_ids"]
    ways = [f"L1H0.{way}" for way in "qkv"]
    found = patch(
        example.graph, {"input_ids": ids}, {"input_ids": ids.roll(1, -1)}, senders="L0.*", target=3,
        receivers=[*ways, "L1.attn.head0", "L1.attn.*.q"], screen=10**6,
    )  # fmt: skip
    assert found.estimates is not None
    parts = [found.receivers.index(f"L1.attn.head0.{way}") for way in "qkv"]
    whole = found.receivers.index("L1.attn.head0")
    torch.testing.assert_close(found.estimates[:, parts].sum(1), found.estimates[:, whole], atol=1e-7, rtol=1e-4)
    assert "L1.attn.head1.q" in found.receivers


class PostNorm(nn.Module):
    """Attention of two heads and a gated MLP behind a norm on the stream itself, and a projection of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.skip = nn.LayerNorm(6), nn.Linear(6, 6)
        self.mlp, self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def front(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The projected stream, and what the MLP adds to it."""
        h = self.norm(x + self.attn(x, x, x, need_weights=False)[0])
        return self.skip(h), torch.tanh(self.mlp(h)) * self.gate(h)

    def back(self, h: Tensor, *read: Tensor) -> Tensor:
        return self.head(self.norm(h + self.attn(*(read or (h, h, h)), need_weights=False)[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.back(sum(self.front(x), torch.zeros(())))


def test_estimates_are_the_effects_of_small_changes() -> None:
    """Senders and receivers of all kinds: an estimate's error shrinks as the square of the change; queries, keys and
    values of fused attention are those that it is called with.
    """
    torch.manual_seed(0)
    model = PostNorm().double().eval()
    clean, step = torch.randn(2, 2, 5, 6).double()
    graph = jg.trace(model, clean)
    attn = [alias for alias, branch in graph.branches.items() if branch.kind == "attn"]
    (mlp,) = [alias for alias, branch in graph.branches.items() if branch.kind == "mlp"]
    receivers = [f"{attn[-1]}.{way}" for way in "qkv"] + [f"{attn[-1]}.k@1", f"{attn[-1]}@4", mlp, attn[-1], "logits"]
    options: dict[str, Any] = {"receivers": receivers, "target": 2, "screen": 10**6, "position": None}
    errors = []
    for size in (1e-2, 1e-3, 1.0):
        found = patch(graph, clean, clean + size * step, senders=["*", f"{mlp}@1"], **options)
        assert found.estimates is not None
        assert (found.effects.isnan().all((-2, -1)) == found.estimates.isnan().all(-1)).all()
        exact = found.effects.mean(-1)
        errors.append(float((exact - found.estimates).nan_to_num().abs().max()))
        assert float(exact.nan_to_num().abs().max()) > 0.02 * size
    assert errors[0] < 5e-4
    assert errors[1] < 0.02 * errors[0]
    with torch.no_grad():
        (skip, own), (_, other) = model.front(clean), model.front(clean + step)
        h, changed = skip + own, skip + other
        for place in range(3):
            expected = model.back(h, *[changed if place == one else h for one in range(3)]) - model(clean)
            actual = found.effects[found.senders.index(mlp), found.receivers.index(receivers[place])]
            torch.testing.assert_close(actual, expected[..., 2], atol=1e-12, rtol=1e-9)


def test_a_screen_patches_the_largest_alone_and_says_so(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    other = {**example.inputs, "input_ids": example.inputs["input_ids"].roll(1, -1)}
    every = patch(example.graph, example.inputs, other, target=3, screen=10**6)
    some = patch(example.graph, example.inputs, other, target=3, screen=4)
    assert every.estimates is not None
    sizes = every.estimates.mean(-1).abs().nan_to_num(-1)
    bound = sizes.flatten().sort(descending=True).values[3]
    patched = ~some.effects.isnan().all((-2, -1))
    assert torch.equal(patched, sizes >= bound)
    torch.testing.assert_close(some.effects[patched], every.effects[patched], atol=1e-6, rtol=1e-4)
    assert some.note.startswith("4 of 15 edges were patched")
    columns = some.columns()
    assert len(columns["effect"]) == 15
    assert sum(effect is None for effect in columns["effect"]) == 11
    assert len(some.top(15)) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"screen": 0}, "screen=0 leaves nothing to patch"),
        ({"senders": "L0.mlp@9"}, r"after @ write one of 0 to 6"),
        ({"senders": "L0.mlp@last"}, r"after @ write one of 0 to 6"),
        ({"receivers": "logits@2"}, "said by position="),
        ({"senders": "L0.attn.q"}, "can receive and not send"),
        ({"receivers": "L1.mlp.q"}, "no branch with attention"),
        ({"receivers": "L7.attn.q"}, r"'L7\.attn\.q' matches no component"),
        ({"receivers": "*.mlp.k"}, "none of the receivers"),
    ],
)
def test_ports_that_there_are_not(options: dict[str, Any], said: str, traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    with pytest.raises(jg.InputError, match=said):
        patch(example.graph, example.inputs, example.inputs, target=3, **options)


def test_components_ablated_by_their_values_on_other_inputs() -> None:
    """Resampled and at their mean, written out: in the network, on the stream alone, and all together."""
    torch.manual_seed(0)
    model = PostNorm().double().eval()
    clean, other = torch.randn(2, 2, 5, 6).double()
    graph = jg.trace(model, clean)
    first, last = [alias for alias, branch in graph.branches.items() if branch.kind == "attn"]
    (mlp,) = [alias for alias, branch in graph.branches.items() if branch.kind == "mlp"]
    options: dict[str, Any] = {"target": 2, "position": None}
    with torch.no_grad():
        (skip, own), (_, sent) = model.front(clean), model.front(other)
        for values, value in (("prompt", sent), ("mean", sent.mean((0, 1)).expand_as(sent))):
            found = jg.ablate(
                graph, [f"{mlp} > logits", f"{last} > logits"], clean, corrupt=other, values=values, **options
            )
            outputs, both = found.outputs[f"{mlp} > logits"], found.outputs["together"]
            changed, h = skip + value, skip + own
            torch.testing.assert_close(outputs.through, model.back(changed))
            torch.testing.assert_close(outputs.direct, model.back(changed, h, h, h))
            attended = model.attn(*[sum(model.front(other))] * 3, need_weights=False)[0]
            attended = attended if values == "prompt" else attended.mean((0, 1)).expand_as(attended)
            torch.testing.assert_close(both.through, model.head(model.norm(changed + attended)))
            torch.testing.assert_close(both.direct, both.through)
            patched = patch(graph, clean, other, values=values, senders=mlp, receivers="logits", **options)
            effects = [effect for effect in found.effects if effect.path == f"{mlp} > logits"]
            assert [effect.predicted.logit for effect in effects] == pytest.approx(patched.effects.flatten().tolist())
            assert [effect.actual.logit for effect in effects if effect.actual] == pytest.approx(
                patched.totals.flatten().tolist()
            )
    assert "at its mean over other inputs" in found.title
    for wrong, said in (
        ({"values": "mean"}, "give these as corrupt"),
        ({"corrupt": other, "scale": 2.0}, "two ways of ablation"),
        ({"corrupt": other[:, :4]}, "shape"),
    ):
        with pytest.raises(jg.InputError, match=said):
            jg.ablate(graph, None, clean, **{**options, **wrong})
    long = jg.expand(graph, order=1)
    with pytest.raises(jg.InputError, match="goes through 2 components"):
        jg.ablate(long, jg.select(long, f"** > {first} > {mlp} > logits"), clean, corrupt=other, **options)


def test_one_prompt_against_each_of_several_of_the_same_length() -> None:
    loaded = jg.loading.load("demo")
    clean, others = "Raise Value", ["Raise Value", "Raise Key", "for key in error values"]
    graph = loaded.trace(loaded.inputs([clean, *others]))
    options: dict[str, Any] = {"target": 5, "tokenizer": loaded.tokenizer}
    found = jg.ablate(graph, ["L0.mlp > logits", "L1.* > logits"], clean, corrupt=others[:2], **options)
    alone = jg.ablate(graph, ["L0.mlp > logits", "L1.* > logits"], clean, corrupt=others[1], **options)
    for path, outputs in alone.outputs.items():
        assert outputs.through is not None
        torch.testing.assert_close(found.outputs[path].through[1:], outputs.through, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(found.outputs[path].direct[1:], outputs.direct, atol=2e-4, rtol=1e-4)
    with pytest.raises(jg.InputError, match="equally many tokens"):
        jg.patch(graph, clean, others, **options)
    assert found.tokens == (alone.tokens[0], alone.tokens[0])
    placed = jg.patch(graph, clean, others[1], senders=["*.mlp@*"], receivers=["L3.attn.q", "logits"], **options)
    figure = placed.figure()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == [f"{at}  {text}" for at, text in enumerate(placed.tokens[0])]
    assert len(labels) == 7
    means = jg.ablate(graph, "L0.mlp > logits", clean, corrupt=others, values="mean", **options)
    patched = jg.patch(graph, clean, others, values="mean", senders="L0.mlp", receivers="logits", **options)
    assert means.effects[0].predicted.logit == pytest.approx(float(patched.effects), abs=1e-4)


class Mixed(nn.Module):
    """A branch along the positions, which are the dimension `at` of [0, 1, 2]."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.layer = at, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        features = 1 if self.at == 2 else 2
        return torch.tanh(self.layer(x.cumsum(self.at).movedim(features, -1))).movedim(-1, features)


class Laid(nn.Module):
    """A stream whose dimensions are the batch, the positions and the features in some order."""

    def __init__(self, order: tuple[int, int, int]) -> None:
        super().__init__()
        self.order = order
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)
        self.blocks = nn.ModuleList(Mixed(order.index(1)) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).permute(self.order)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.permute([self.order.index(dim) for dim in range(3)]))


@pytest.mark.parametrize("kind", ["ids", "names", "containers"])
def test_one_row_against_each_of_several_rows(kind: str) -> None:
    class Beside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9)

        def forward(self, ids: Tensor, beside: dict[str, Tensor] | None = None) -> Tensor:
            h = self.embed(ids)
            h = h if beside is None else h + beside["moved"]
            return self.head(h + torch.tanh(self.mlp(h)))

    def given(rows: int) -> Any:
        ids = torch.randint(0, 9, (rows, 3))
        beside = {"beside": {"moved": torch.randn(rows, 3, 4)}} if kind == "containers" else {}
        return ids if kind == "ids" else {"ids": ids, **beside}

    def row(inputs: Any, at: int) -> Any:
        return pytree.tree_map(lambda value: value[at : at + 1], inputs)

    torch.manual_seed(0)
    clean, others = given(1), given(4)
    graph = jg.trace(Beside().eval(), inputs=clean if isinstance(clean, dict) else {"ids": clean})
    found = jg.patch(graph, clean, others, target=2)
    removed = jg.ablate(graph, "L0.mlp > logits", clean, corrupt=others, target=2)
    for at in range(4):
        alone = jg.patch(graph, clean, row(others, at), target=2)
        torch.testing.assert_close(found.totals[:, at], alone.totals[:, 0], equal_nan=True, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            found.effects[:, :, at], alone.effects[:, :, 0], equal_nan=True, atol=1e-5, rtol=1e-5
        )
        one = jg.ablate(graph, "L0.mlp > logits", clean, corrupt=row(others, at), target=2)
        assert removed.effects[at].actual.logit == pytest.approx(one.effects[0].actual.logit, abs=1e-5)
    with pytest.raises(jg.InputError, match="equally many tokens"):
        jg.patch(graph, clean, pytree.tree_map(lambda value: value[:, :2], others), target=2)


@pytest.mark.parametrize(
    ("order", "batch", "length"), [((1, 0, 2), 4, 4), ((1, 0, 2), 3, 4), ((0, 2, 1), 3, 6), ((0, 1, 2), 6, 6)]
)
def test_positions_and_means_are_those_of_the_output(order: tuple[int, int, int], batch: int, length: int) -> None:
    """Wherever a stream has its batch and its positions, and however large these are."""
    torch.manual_seed(0)
    net = Laid(order).double().eval().requires_grad_(False)
    clean, corrupt = torch.randint(7, (batch, length)), torch.randint(7, (batch, length))
    graph, given = jg.trace(net, clean), {}
    at, rows = order.index(1), (order.index(0), order.index(1))
    for name, ids in (("own", clean), ("other", corrupt)):
        x = net.embed(ids).permute(order)
        given[name] = net.blocks[0](x)
    alias = next(iter(graph.branches))
    names = [f"{alias}@{place}" for place in range(length)]

    def total(change: Callable[[Tensor], Tensor]) -> Tensor:
        handle = net.blocks[0].register_forward_hook(lambda module, args, output: change(output))
        changed = net(clean)
        handle.remove()
        return (changed - net(clean))[:, -1, 2:3]

    sent = patch(graph, clean, corrupt, senders=names, receivers="logits", target=2)
    for place, found in enumerate(sent.totals):

        def put(own: Tensor, place: int = place) -> Tensor:
            own = own.clone()
            own.select(at, place).copy_(given["other"].select(at, place))
            return own

        torch.testing.assert_close(found, total(put))
    mean = given["other"].mean(rows, keepdim=True)
    found = patch(graph, clean, corrupt, senders=alias, receivers="logits", target=2, values="mean").totals[0]
    torch.testing.assert_close(found, total(mean.expand_as))
    # To first order by example, along the stream alone, on which the second branch is held.
    guesses = patch(graph, clean, corrupt, senders=alias, receivers="logits", target=2, screen=1).estimates
    assert guesses is not None
    moved = net.head((given["other"] - given["own"]).permute([order.index(dim) for dim in range(3)])) - net.head.bias
    torch.testing.assert_close(guesses[0, 0], moved[:, -1, 2])
