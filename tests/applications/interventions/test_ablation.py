"""Ablation and path patching against forward hooks on the models' own modules, and against formulas written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.interventions import Ablation, Patching, ablate, ablation, network, patch
from jetgraph.applications.interventions.ablation import TOGETHER, Effect
from jetgraph.models import bundled
from tests.conftest import Example, run
from tests.operators import Operators, peak
from tests.zoo import case

# How each model is taken apart by hand


@dataclass(frozen=True)
class Hand:
    """A reader's knowledge of one model.

    `chain` is the stream from front to back: names of components, and the modules that lie on the stream itself.
    """

    components: Mapping[str, str]
    """The module whose output is the component, by alias."""
    chain: tuple[str, ...]
    projection: str = ""
    """The module whose input holds the heads of layer {} side by side."""


def _two_layers(attn: str, mlp: str, embed: str, *front: str, after: tuple[str, str] = ("", ""), tail: str) -> Any:
    components = {"embed": embed}
    chain = ["embed", *front]
    for layer in range(2):
        for kind, module, norm in (("attn", attn, after[0]), ("mlp", mlp, after[1])):
            components[f"L{layer}.{kind}"] = module.format(layer)
            chain += [f"L{layer}.{kind}", *([norm.format(layer)] if norm else [])]
    return components, (*chain, *tail.split())


_BERT_HEAD = "cls.predictions.transform"
_OPT = "model.decoder.layers.{}"
_STAGES = "resnet.encoder.stages"
_RESNET = [f"{_STAGES}.{stage}.layers.{layer}" for stage in (0, 1) for layer in (0, 1)]

HANDS: dict[str, Hand] = {
    "gpt2": Hand(
        *_two_layers(
            "transformer.h.{}.attn", "transformer.h.{}.mlp", "transformer.wte", tail="transformer.ln_f lm_head"
        ),
        "transformer.h.{}.attn.c_proj",
    ),
    "llama": Hand(
        *_two_layers(
            "model.layers.{}.self_attn", "model.layers.{}.mlp", "model.embed_tokens", tail="model.norm lm_head"
        ),
        "model.layers.{}.self_attn.o_proj",
    ),
    "gptj": Hand(
        *_two_layers(
            "transformer.h.{}.attn", "transformer.h.{}.mlp", "transformer.wte", tail="transformer.ln_f lm_head"
        ),
        "transformer.h.{}.attn.out_proj",
    ),
    "gpt_neox": Hand(
        *_two_layers(
            "gpt_neox.layers.{}.attention",
            "gpt_neox.layers.{}.mlp",
            "gpt_neox.embed_in",
            tail="gpt_neox.final_layer_norm lm_head",
        ),
        "gpt_neox.layers.{}.attention.dense",
    ),
    "opt_post_norm": Hand(
        *_two_layers(
            f"{_OPT}.self_attn",
            f"{_OPT}.fc2",
            "model.decoder.embed_tokens",
            "model.decoder.project_in",
            after=(f"{_OPT}.self_attn_layer_norm", f"{_OPT}.final_layer_norm"),
            tail="model.decoder.project_out lm_head",
        ),
        f"{_OPT}.self_attn.out_proj",
    ),
    "bert": Hand(
        *_two_layers(
            "bert.encoder.layer.{}.attention.output.dense",
            "bert.encoder.layer.{}.output.dense",
            "bert.embeddings.word_embeddings",
            "bert.embeddings.LayerNorm",
            after=("bert.encoder.layer.{}.attention.output.LayerNorm", "bert.encoder.layer.{}.output.LayerNorm"),
            tail=f"{_BERT_HEAD}.dense {_BERT_HEAD}.transform_act_fn {_BERT_HEAD}.LayerNorm cls.predictions.decoder",
        ),
        "bert.encoder.layer.{}.attention.output.dense",
    ),
    "resnet_basic": Hand(
        {"embed": "resnet.embedder", **{f"L{index}.conv": f"{path}.layer" for index, path in enumerate(_RESNET)}},
        (
            *("embed", "L0.conv", f"{_RESNET[0]}.activation", "L1.conv", f"{_RESNET[1]}.activation"),
            *(f"{_RESNET[2]}.shortcut", "L2.conv", f"{_RESNET[2]}.activation", "L3.conv", f"{_RESNET[3]}.activation"),
            *("resnet.pooler", "classifier"),
        ),
    ),
}
PARALLEL = ("gptj", "gpt_neox")
"""Models whose attention and MLP of a layer read the same point."""


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _edited(model: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Module outputs go through functions."""

    def edit(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            changed = change(_first(output))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [model.get_submodule(name).register_forward_hook(edit(change)) for name, change in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Tools:
    """One model with its components under their aliases, driven by hooks."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.hand, self.model = HANDS[name], model
        self.parallel = name in PARALLEL

    def output(self, inputs: dict[str, Any], edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        named = {self.hand.components[alias]: change for alias, change in (edits or {}).items()}
        with _edited(self.model, named):
            return _last(run(self.model, inputs))

    def values(
        self, inputs: dict[str, Any], edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Every component's own value, after edits to others."""
        found: dict[str, Tensor] = {}

        def keep(alias: str) -> Callable[[Tensor], Tensor]:
            def hook(value: Tensor) -> Tensor:
                found[alias] = value.clone()
                return value

            return hook

        rest = {alias: keep(alias) for alias in self.hand.components if alias not in (edits or {})}
        self.output(inputs, {**rest, **(edits or {})})
        return found

    def step(self, alias: str) -> int:
        """Components with the same number stand beside each other."""
        order = list(self.hand.components)
        index = order.index(alias) if alias in order else len(order)
        return (index + 1) // 2 if self.parallel else index

    def direct(self, alias: str, inputs: dict[str, Any]) -> Tensor:
        """A component's own summand of the output: pushed on by linear maps, with norms and gates held."""
        tail = self.hand.chain[self.hand.chain.index(alias) + 1 :]
        modules = [name for name in tail if name not in self.hand.components]
        entries: dict[str, Tensor] = {}
        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, name=name: entries.__setitem__(name, args[0].clone())
            )
            for name in modules
        ]
        value = self.values(inputs)[alias]
        for handle in handles:
            handle.remove()
        for name in modules:
            value = _held(self.model.get_submodule(name), entries[name], value.reshape(entries[name].shape))
        length = inputs["input_ids"].shape if "input_ids" in inputs else value.shape[:1]
        return _last(value.reshape(*length, -1))


def _last(output: Tensor) -> Tensor:
    return output[:, -1] if output.dim() == 3 else output


def _held(module: nn.Module, entry: Tensor, value: Tensor) -> Tensor:
    """What a module on the stream makes of a summand, with everything nonlinear as it is at `entry`."""
    if isinstance(module, nn.LayerNorm):
        scale = (entry.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()
        return (value - value.mean(-1, keepdim=True)) / scale * module.weight
    if "RMSNorm" in type(module).__name__:
        scale = (entry.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
        return value / scale * module.weight
    if "ReLU" in type(module).__name__ or "GELU" in type(module).__name__:
        return value * module(entry) / entry.where(entry != 0, 1)
    return module(value) - module(torch.zeros_like(value))


def _by_source(found: Ablation) -> dict[str, str]:
    """The path of each component."""
    return {jg.Path.parse(path).source.alias: path for path in found.outputs if path != TOGETHER}


def _close(actual: Tensor, expected: Tensor, rounding: float = 1e-5) -> None:
    """Equal up to a share of the expected values' size."""
    scale = float(expected.detach().double().abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), atol=rounding * scale, rtol=0)


def _bfloat16(example: Example) -> tuple[jg.ResidualGraph, nn.Module, dict[str, Any]]:
    graph = example.graph.relocated(
        lambda name: (
            example.graph.traced.tensors[name].bfloat16()
            if example.graph.traced.tensors[name].is_floating_point()
            else example.graph.traced.tensors[name]
        )
    )
    return graph, example.case.build().bfloat16(), example.inputs


def _other(inputs: dict[str, Any]) -> dict[str, Any]:
    """Another input of the same shape."""
    return {
        name: value.roll(1, -1) + (0.5 if value.is_floating_point() else 0) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


# Ablation


@pytest.mark.parametrize("name", list(HANDS))
@torch.no_grad()
def test_direct_effects_are_the_terms_with_norms_and_gates_held(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    tools = Tools(name, example.model)
    found = ablate(example.graph, None, example.inputs, scale=0.25)
    clean = tools.output(example.inputs)
    _close(found.output[:, 0], clean)
    paths = _by_source(found)
    for alias in tools.hand.components:
        term = tools.direct(alias, example.inputs)
        _close(found.outputs[paths[alias]].direct[:, 0], clean - 0.75 * term)


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("name", list(HANDS))
def test_effects_through_the_network_are_those_of_scaled_modules(
    name: str, scale: float, traced: Callable[..., Example]
) -> None:
    example = traced(case(name))
    tools = Tools(name, example.model)
    found = ablate(example.graph, None, example.inputs, scale=scale)
    paths = _by_source(found)
    clean = tools.output(example.inputs)
    top = clean.argmax(-1)
    for alias in tools.hand.components:
        ablated = tools.output(example.inputs, {alias: lambda value: value * scale})
        through = found.outputs[paths[alias]].through
        assert through is not None
        _close(through[:, 0], ablated)
        for effect in (effect for effect in found.effects if effect.path == paths[alias]):
            row, token = effect.example, top[effect.example]
            assert effect.actual is not None
            p, q = (logits[row].double().log_softmax(-1) for logits in (clean, ablated))
            assert effect.actual.logit == pytest.approx(float(ablated[row, token] - clean[row, token]), abs=1e-4)
            centred = float((ablated[row] - ablated[row].mean() - clean[row] + clean[row].mean())[token])
            assert effect.actual.centred == pytest.approx(centred, abs=1e-4)
            assert effect.actual.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)
            assert effect.actual.top == f"#{int(ablated[row].argmax())}"


@pytest.mark.parametrize("name", [name for name, hand in HANDS.items() if hand.projection])
@torch.no_grad()
def test_removed_heads_are_zeroed_slices_of_the_output_projection(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    tools = Tools(name, example.model)
    found = ablate(example.graph, "*.head* > ** > logits", example.inputs, split="heads")
    clean = tools.output(example.inputs)
    paths = _by_source(found)
    with Operators() as operators:
        ablate(example.graph, "*.head* > ** > logits", example.inputs, split="heads")
    # Measured all at once, what is predicted and what is actual: the model's distribution, and that of the others.
    assert len(found.outputs) > 4
    assert operators.counts["_log_softmax"] == 4
    assert operators.counts["argmax"] <= 4
    for layer in range(2):
        projection = example.model.get_submodule(tools.hand.projection.format(layer))
        parts = []
        for head in range(2):
            keep = torch.ones(16)
            keep[8 * head : 8 * head + 8] = 0
            handle = projection.register_forward_pre_hook(lambda module, args, keep=keep: (args[0] * keep, *args[1:]))
            ablated = tools.output(example.inputs)
            handle.remove()
            through = found.outputs[paths[f"L{layer}.attn.head{head}"]].through
            assert through is not None
            assert (ablated - clean).abs().max() > 1e-3
            _close(through[:, 0], ablated)
            parts.append(found.outputs[paths[f"L{layer}.attn.head{head}"]].direct[:, 0] - clean)
        alias = f"L{layer}.attn"
        bias = getattr(projection, "bias", None)
        whole = tools.direct(alias, example.inputs)
        if bias is None:
            _close(-sum(parts, torch.zeros(())), whole, 1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gpt_neox", "bert"])
def test_ablation_in_bfloat16(name: str, traced: Callable[..., Example]) -> None:
    graph, model, inputs = _bfloat16(traced(case(name)))
    tools = Tools(name, model)
    found = ablate(graph, None, inputs)
    assert found.output.dtype == torch.bfloat16
    paths = _by_source(found)
    for alias in tools.hand.components:
        outputs = found.outputs[paths[alias]]
        assert outputs.through is not None
        _close(outputs.through[:, 0], tools.output(inputs, {alias: torch.zeros_like}), 0.04)
        with torch.no_grad():
            term = tools.direct(alias, inputs)
        _close(outputs.direct[:, 0], tools.output(inputs).double() - term.double(), 0.04)


def test_all_together_are_removed_one_after_the_other(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    tools = Tools("gpt2", example.model)
    found = ablate(example.graph, ["L0.attn > logits", "L1.* > logits"], example.inputs, scale=2.0)
    chosen = ["L0.attn", "L1.attn", "L1.mlp"]
    assert [jg.Path.parse(path).source.alias for path in list(found.outputs)[:-1]] == chosen
    joint = found.outputs[TOGETHER]
    assert joint.through is not None
    _close(joint.through[:, 0], tools.output(example.inputs, {alias: lambda value: 2 * value for alias in chosen}))
    with torch.no_grad():
        terms = [tools.direct(alias, example.inputs) for alias in chosen]
    _close(joint.direct[:, 0], tools.output(example.inputs) + terms[0] + terms[1] + terms[2])
    assert [effect.path for effect in found.effects[-2:]] == [TOGETHER, TOGETHER]


def test_a_path_of_an_expansion_scales_the_branches_that_it_passes(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    tools = Tools("gpt2", example.model)
    expansion = jg.expand(example.graph, order=1)
    texts = ["embed > L0.attn~1 > L1.mlp~1 > logits^0", "embed > logits^1"]
    found = ablate(expansion, texts, example.inputs)
    values = jg.compile(expansion, texts)(**example.inputs)
    clean = tools.output(example.inputs)
    removed = [{"L0.attn": torch.zeros_like, "L1.mlp": torch.zeros_like}, {"embed": torch.zeros_like}]
    for text, edits in zip(texts, removed, strict=True):
        through = found.outputs[text].through
        assert through is not None
        _close(through[:, 0], tools.output(example.inputs, edits))
        _close(found.outputs[text].direct[:, 0], clean - values.terms[text][:, -1])


def test_a_bias_has_a_direct_effect_only(traced: Callable[..., Example]) -> None:
    example = traced(case("gptj"))
    found = ablate(example.graph, None, example.inputs, target=7)
    constant = [effect for effect in found.effects if effect.path.startswith("bias")]
    assert constant
    assert all(effect.actual is None for effect in constant)
    with torch.no_grad():
        norm, head = example.model.get_submodule("transformer.ln_f"), example.model.get_submodule("lm_head")
        expected = norm.bias @ head.weight[7] + head.bias[7]  # type: ignore[operator,index]
    total = dict.fromkeys(range(2), 0.0)
    for effect in constant:
        total[effect.example] -= effect.predicted.logit
    assert list(total.values()) == pytest.approx([float(expected)] * 2, abs=1e-5)
    without = ablate(example.graph, "bias > logits", example.inputs)
    assert TOGETHER not in without.outputs


def _same(found: Sequence[Effect], expected: Sequence[Effect]) -> None:
    """Equal but for rounding: one position alone takes a product of another size."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.actual is not None
        assert other.actual is not None
        for change, wanted in ((one.predicted, other.predicted), (one.actual, other.actual)):
            numbers = (wanted.logit, wanted.centred, wanted.kl)
            assert (change.logit, change.centred, change.kl) == pytest.approx(numbers, rel=1e-5, abs=1e-6)
            assert change.top == wanted.top
        assert (one.path, one.example, one.position, one.target) == (
            other.path,
            other.example,
            other.position,
            other.target,
        )


def test_every_position_can_be_looked_at(traced: Callable[..., Example]) -> None:
    example = traced(case("llama"))
    tools = Tools("llama", example.model)
    module = tools.hand.components["L0.mlp"]
    found = ablate(example.graph, "L0.mlp > logits", example.inputs, position=None)
    with _edited(example.model, {module: torch.zeros_like}):
        ablated = run(example.model, example.inputs)
    through = found.outputs["L0.mlp > logits"].through
    assert through is not None
    _close(through, ablated)
    assert [(effect.example, effect.position) for effect in found.effects] == [
        (row, place) for row in range(2) for place in range(7)
    ]
    second = ablate(example.graph, "L0.mlp > logits", example.inputs, position=1)
    _same(second.effects, [effect for effect in found.effects if effect.position == 1])


@pytest.fixture(scope="module")
def padded() -> tuple[jg.ResidualGraph, Callable[[str], Mapping[str, Tensor]]]:
    """A language model traced with a mask, and two prompts of unlike length, padded on the right or on the left."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled("llama"))

    def inputs(side: str) -> Mapping[str, Tensor]:
        tokenizer.padding_side = side
        return dict(tokenizer(["Raise Value", "for key in error values"], padding=True, return_tensors="pt"))

    return jg.loading.load("demo:llama").trace(inputs("right")), inputs


def _alone(inputs: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """Each row by itself, without its padding."""
    return [
        {name: value[row : row + 1, inputs["attention_mask"][row] != 0] for name, value in inputs.items()}
        for row in range(len(inputs["input_ids"]))
    ]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_are_read_at_their_last_token(side: str, padded: Any) -> None:
    graph, inputs = padded
    batch = inputs(side)
    mask = batch["attention_mask"]
    assert 0 in mask
    last = [int(row.nonzero().max()) for row in mask]
    found = ablate(graph, "L1.attn > logits", batch)
    assert [effect.position for effect in found.effects] == last
    for effect, row in zip(found.effects, _alone(batch), strict=True):
        (alone,) = ablate(graph, "L1.attn > logits", row).effects
        assert alone.actual is not None
        assert effect.actual is not None
        assert (effect.target, effect.actual.top) == (alone.target, alone.actual.top)
        assert effect.predicted.logit == pytest.approx(alone.predicted.logit, abs=1e-4)
        assert effect.actual.logit == pytest.approx(alone.actual.logit, abs=1e-4)
    for position in (last, torch.tensor(last), [place - mask.shape[1] for place in last]):
        _same(ablate(graph, "L1.attn > logits", batch, position=position).effects, found.effects)
    (column,) = {effect.position for effect in ablate(graph, "L1.attn > logits", batch, position=-1).effects}
    assert column == mask.shape[1] - 1


def test_padded_rows_are_patched_at_their_last_token(padded: Any) -> None:
    graph, inputs = padded
    batch = inputs("right")
    # Each prompt begins as the other does.
    other = batch | {"input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, :2] = batch["input_ids"][:, :2].flip(0)
    last = [int(row.nonzero().max()) for row in batch["attention_mask"]]
    found = patch(graph, batch, other, senders="L0.mlp", receivers="logits", target=5)
    with torch.no_grad():
        logits = graph(**batch)
    assert found.clean[:, 0].tolist() == pytest.approx([float(logits[i, last[i], 5]) for i in (0, 1)], abs=1e-4)
    with torch.no_grad():
        logits = graph(**other)
    assert found.corrupt[:, 0].tolist() == pytest.approx([float(logits[i, last[i], 5]) for i in (0, 1)], abs=1e-4)
    swapped = {name: value.flip(0) for name, value in batch.items()}
    with pytest.raises(jg.InputError, match="padding would be put in the place of tokens"):
        patch(graph, batch, swapped, senders="L0.mlp", receivers="logits", target=5)
    by_row = patch(graph, batch, other, senders="L0.mlp", receivers="logits", target=5, position=last)
    torch.testing.assert_close(by_row.effects, found.effects)


def test_the_mask_is_that_of_the_stream() -> None:
    """In an encoder-decoder the decoder's mask counts, though the encoder's has the same shape."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.randint(1, 40, (2, 5))
    masks = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}
    masks["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    graph = jg.trace(model, input_ids=ids, decoder_input_ids=ids.flip(1), **masks, dynamic=False)
    sources = [source.alias for source in graph.outline.sources]
    batch = {"input_ids": ids, "decoder_input_ids": ids.flip(1), **masks}
    found = ablate(graph, f"{sources[0]} > logits", batch)
    assert [effect.position for effect in found.effects] == [2, 3]
    batch["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    with pytest.raises(jg.InputError, match=r"row 1 of 'decoder_attention_mask' counts no token"):
        ablate(graph, f"{sources[0]} > logits", batch)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_terms_are_combined_at_a_position_of_each_row(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    values = jg.compile(jg.expand(example.graph, recipe="components"), "L0.* > logits*")(**example.inputs)
    weights = torch.eye(len(values.terms))
    found = values.combine(weights, position=[2, -1])
    for row, term in zip(found, values.terms.values(), strict=True):
        _close(row[:, 0], torch.stack([term[0, 2], term[1, -1]]))
    with torch.no_grad():
        whole = example.model(**example.inputs).logits
    output = example.graph.run(**example.inputs).output_at(torch.tensor([2, -1]))
    _close(output[:, 0], torch.stack([whole[0, 2], whole[1, -1]]))


def test_targets_are_a_token_one_each_or_a_difference(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    tools = Tools("gpt2", example.model)
    change = tools.output(example.inputs, {"L0.mlp": torch.zeros_like}) - tools.output(example.inputs)
    for target, expected in (
        (5, change[:, 5]),
        ([5, 9], torch.stack([change[0, 5], change[1, 9]])),
        (torch.tensor([5, 9]), torch.stack([change[0, 5], change[1, 9]])),
        ((5, 9), change[:, 5] - change[:, 9]),
    ):
        found = ablate(example.graph, "L0.mlp > logits", example.inputs, target=target)
        actual = [effect.actual.logit for effect in found.effects if effect.actual is not None]
        assert actual == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.effects[0].target == "#5 − #9"


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_it_says_where_all_logits_move_together(shift: float) -> None:
    class Net(nn.Module):
        """A branch that adds the same to all logits, and a tenth of that to one of them besides."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Identity()
            nn.init.eye_(self.embed.weight)
            self.layer.weight.data.zero_()
            self.layer.bias.data = torch.tensor([1.0, 0, 0, 0]) + shift

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            return self.head(h + self.layer(h).relu())

    graph = jg.trace(Net().eval(), torch.tensor([[1, 2]]))
    found = ablate(graph, "*.mlp > logits", torch.tensor([[1, 2]]), target=0)
    assert ("in 1 of 1 row the logits of all tokens move together" in found.note) is (shift > 0)
    assert (found.note == "") is (shift == 0)


def test_a_text_as_target_is_one_token(traced: Callable[..., Example]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled("gpt2"))
    (token,) = tokenizer("+")["input_ids"]
    example = traced(case("gpt2"))
    one = ablate(example.graph, "L0.mlp > logits", example.inputs, target="+", tokenizer=tokenizer)
    other = ablate(example.graph, "L0.mlp > logits", example.inputs, target=token, tokenizer=tokenizer)
    assert one.effects == other.effects
    assert one.effects[0].target == "'+'"
    with pytest.raises(jg.InputError, match=r"'\+ self' is 2 tokens \('\+', ' self'\)"):
        ablate(example.graph, "L0.mlp > logits", example.inputs, target="+ self", tokenizer=tokenizer)
    with pytest.raises(jg.InputError, match="needs a tokenizer"):
        ablate(example.graph, "L0.mlp > logits", example.inputs, target="+")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 53}, "out of range"),
        ({"target": [1, 2, 3]}, "3 targets for 2 examples"),
        ({"target": (1, 2, 3)}, "is a pair"),
        ({"position": 7}, "positions 0 to 6"),
        ({"position": [0, 7]}, "positions 0 to 6"),
        ({"position": [1, 2, 3]}, "does not fit an output of 2 rows"),
        ({"position": torch.tensor([0.5, 1.0])}, "give whole numbers"),
        ({"position": "first"}, "or 'last'"),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, Any], message: str, traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    with pytest.raises(jg.InputError, match=message):
        ablate(example.graph, "L0.mlp > logits", example.inputs, **options)


def test_a_split_comes_before_the_expansion(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    with pytest.raises(jg.InputError, match="comes too late"):
        ablate(jg.expand(example.graph), None, example.inputs, split="heads")


def test_a_component_by_its_name_alone() -> None:
    """`L1.mlp` is all paths with it: of the usual expansion, its one path to the logits."""
    prompt = "Raise Value"
    named, written = (ablate("demo", path, prompt) for path in ("L1.mlp", "L1.mlp > logits"))
    assert named.effects == written.effects
    with pytest.raises(jg.InputError, match=r"path first, then the prompt: ablate\(model, 'L1.mlp', 'Raise Value'\)"):
        ablate("demo", prompt, "L1.mlp")
    with pytest.raises(jg.SelectionError, match="'Raise'"):
        ablate("demo", "Raise", "Value")


def test_the_ablation_as_table_and_picture(tmp_path: Any, traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    found = ablate(example.graph, None, example.inputs)
    assert "L0.attn > logits" in repr(found)
    frame = found.to_dataframe()
    assert list(frame["path"][:2]) == ["embed > logits"] * 2
    assert frame["actual"].isna().sum() == sum(effect.actual is None for effect in found.effects) > 0
    found.plot(tmp_path / "ablation.png")
    found.save(tmp_path / "ablation.csv")
    axes = found.figure().axes[0]
    # The bias has no actual effect, and the joint one is of another size.
    assert len(axes.collections[0].get_offsets()) == 2 * (len(found.outputs) - 2)  # type: ignore[arg-type]
    assert "change of the logit" in axes.get_xlabel()


# Path patching


class TwoLayers(nn.Module):
    """U (h + g(h)) with h = x + f(x), f(x) = tanh(A x), g(h) = tanh(B h)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 4)

    def f(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def g(self, h: Tensor) -> Tensor:
        return torch.tanh(self.second(h))

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.f(x)
        return self.head(h + self.g(h))


@torch.no_grad()
def test_path_patching_of_two_layers_written_out() -> None:
    torch.manual_seed(0)
    model = TwoLayers().double().eval()
    clean, corrupt = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    found = patch(model, {"x": clean}, {"x": corrupt}, target=(0, 2))
    assert found.senders == ("embed", *found.receivers[:2])
    assert len(found.receivers) == 3
    x, y, f, g, U = clean, corrupt, model.f, model.g, model.head
    h = x + f(x)
    expected = [
        # From the input to f: f alone sees y, and what it makes of that goes on to g.
        [U(x + f(y) + g(x + f(y))), U(h + g(y + f(x))), U(y + f(x) + g(h))],
        [None, U(h + g(x + f(y))), U(x + f(y) + g(h))],
        [None, None, U(h + g(y + f(y)))],
    ]
    totals = [U(y + f(y) + g(y + f(y))), U(x + f(y) + g(x + f(y))), U(h + g(y + f(y)))]

    def measure(logits: Tensor) -> Tensor:
        return (logits[:, 0] - logits[:, 2]) - (model(x)[:, 0] - model(x)[:, 2])

    for i, row in enumerate(expected):
        torch.testing.assert_close(found.totals[i, :, 0], measure(totals[i]))
        for j, logits in enumerate(row):
            if logits is None:
                assert found.effects[i, j].isnan().all()
            else:
                torch.testing.assert_close(found.effects[i, j, :, 0], measure(logits))
    torch.testing.assert_close(found.corrupt[:, 0] - found.clean[:, 0], measure(model(y)))


@torch.no_grad()
def test_senders_at_their_mean_over_other_inputs() -> None:
    """Mean ablation of two layers, written out: more inputs than are run, and one that is twice there."""
    torch.manual_seed(0)
    model = TwoLayers().double().eval()
    clean, other = torch.randn(2, 3).double(), torch.randn(4, 3).double()
    x, f, g, U = clean, model.f, model.g, model.head
    found = patch(model, {"x": clean}, {"x": other}, values="mean", target=1, receivers="logits")
    means = [other.mean(0), f(other).mean(0), g(other + f(other)).mean(0)]
    totals = [U(means[0] + f(means[0]) + g(means[0] + f(means[0]))), U(x + means[1] + g(x + means[1]))]
    direct = [U(means[0] + f(x) + g(x + f(x))), U(x + means[1] + g(x + f(x))), U(x + f(x) + means[2])]
    for place, logits in enumerate(totals):
        torch.testing.assert_close(found.totals[place, :, 0], (logits.expand(2, 4) - model(x))[:, 1])
    for place, logits in enumerate(direct):
        torch.testing.assert_close(found.effects[place, 0, :, 0], (logits - model(x))[:, 1])
    assert found.corrupt is None
    assert "senders at their mean" in found.title
    with pytest.raises(jg.InputError, match="'prompt' or 'mean'"):
        patch(model, {"x": clean}, {"x": other}, values="median", target=1)  # type: ignore[arg-type]


def test_means_leave_padding_out() -> None:
    loaded = jg.loading.load("demo")
    inputs, clean = loaded.inputs(["Raise Value", "for key in error values"]), loaded.inputs("Raise Value")
    graph = loaded.trace(inputs)
    kept = inputs["attention_mask"] != 0
    clean = {name: value[:1, : clean["input_ids"].shape[1]] for name, value in inputs.items()}
    clean["attention_mask"] = torch.ones_like(clean["attention_mask"])
    found = patch(graph, clean, inputs, values="mean", senders="L0.mlp", receivers="logits", target=5)
    with torch.no_grad():
        mean = graph.run(**inputs).component("L0.mlp")[kept].mean(0)
        forward = graph.run(**clean)
        own = forward.output[0, -1, 5].clone()
        forward.patch("L0.mlp", mean.expand_as(forward.component("L0.mlp")))
        assert float(found.totals[0]) == pytest.approx(float(forward.output[0, -1, 5] - own), abs=1e-4)


def _by_hooks(
    tools: Tools, clean: dict[str, Any], corrupt: dict[str, Any], sender: str, receiver: str
) -> tuple[Tensor, Tensor]:
    """Output with the sender's corrupt value by way of the receiver, and by all ways."""
    own, other = tools.values(clean), tools.values(corrupt)
    sent = {sender: lambda value: other[sender].clone()}
    held = {
        alias: (lambda value, alias=alias: own[alias].clone())
        for alias in own
        if tools.step(sender) < tools.step(alias) < tools.step(receiver) and alias != receiver
    }
    total = tools.output(clean, sent)
    if receiver == "logits":
        return tools.output(clean, {**held, **sent}), total
    received = tools.values(clean, {**held, **sent})[receiver]
    return tools.output(clean, {receiver: lambda value: received.clone()}), total


@pytest.mark.parametrize("name", list(HANDS))
def test_path_patching_is_that_of_hooks(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    tools = Tools(name, example.model)
    clean, corrupt = example.inputs, _other(example.inputs)
    found = patch(example.graph, clean, corrupt, target=3)
    own = tools.output(clean)
    assert set(tools.hand.components) == set(found.senders)
    pairs = 0
    for i, sender in enumerate(found.senders):
        for j, receiver in enumerate(found.receivers):
            if tools.step(sender) >= tools.step(receiver):
                assert found.effects[i, j].isnan().all()
                continue
            direct, total = _by_hooks(tools, clean, corrupt, sender, receiver)
            _close(found.effects[i, j, :, 0] + own[:, 3].double(), direct[:, 3], 1e-4)
            _close(found.totals[i, :, 0] + own[:, 3].double(), total[:, 3], 1e-4)
            pairs += 1
    assert pairs == (13 if name in PARALLEL else 15)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gpt_neox", "bert"])
def test_path_patching_in_bfloat16(name: str, traced: Callable[..., Example]) -> None:
    graph, model, clean = _bfloat16(traced(case(name)))
    tools = Tools(name, model)
    corrupt = _other(clean)
    found = patch(graph, clean, corrupt, senders=["L0.*"], receivers=["L1.mlp", "logits"], target=3)
    own, scale = tools.output(clean)[:, 3].double(), float(tools.output(clean).double().abs().max())
    for i, sender in enumerate(found.senders):
        for j, receiver in enumerate(found.receivers):
            direct, _ = _by_hooks(tools, clean, corrupt, sender, receiver)
            torch.testing.assert_close(
                found.effects[i, j, :, 0], direct[:, 3].double() - own, atol=0.04 * scale, rtol=0
            )


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_heads_send_and_receive(name: str, traced: Callable[..., Example]) -> None:
    """A head's value is the slice of what the output projection reads; another one receives by its own slice."""
    example = traced(case(name))
    tools = Tools(name, example.model)
    clean, corrupt = example.inputs, _other(example.inputs)
    found = patch(
        example.graph, clean, corrupt, senders="L0.attn.head1", receivers=["L1.attn.head0", "logits"], split="heads",
        target=3,
    )  # fmt: skip
    first, second = (example.model.get_submodule(tools.hand.projection.format(layer)) for layer in range(2))

    def entries(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        kept: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda module, args: kept.append(args[0].clone()))
        tools.output(inputs)
        handle.remove()
        return kept[0]

    def exchanged(columns: slice, value: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any) -> Any:
            changed = args[0].clone()
            changed[..., columns] = value[..., columns]
            return (changed, *args[1:])

        return hook

    own = tools.values(clean)
    send = first.register_forward_pre_hook(exchanged(slice(8, 16), entries(first, corrupt)))
    total = tools.output(clean)
    held = {"L0.mlp": lambda value: own["L0.mlp"].clone()}
    with _edited(example.model, {tools.hand.components[alias]: change for alias, change in held.items()}):
        received = entries(second, clean)
    alone = tools.output(clean, {alias: (lambda value, alias=alias: own[alias].clone()) for alias in own if alias in (
        "L0.mlp", "L1.attn", "L1.mlp")})  # fmt: skip
    send.remove()
    receive = second.register_forward_pre_hook(exchanged(slice(0, 8), received))
    direct = tools.output(clean)
    receive.remove()
    clean_logit = tools.output(clean)[:, 3].double()
    assert (found.senders, found.receivers) == (("L0.attn.head1",), ("L1.attn.head0", "logits"))
    for actual, expected in (
        (found.effects[0, 0], direct), (found.effects[0, 1], alone), (found.totals[0], total),
    ):  # fmt: skip
        _close(actual[:, 0] + clean_logit, expected[:, 3], 1e-4)


def test_sources_that_do_not_change_send_nothing(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    clean, corrupt = example.inputs, _other(example.inputs)
    assert "pos" not in patch(example.graph, clean, corrupt).senders
    named = patch(example.graph, clean, corrupt, senders=["pos", "transformer.h.1.mlp"], receivers="logits")
    assert named.senders == ("pos", "L1.mlp")
    assert named.effects[0].abs().max() == 0
    assert named.effects[1].abs().max() > 0


def test_patching_refuses_what_cannot_be_patched(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    short = {**example.inputs, "input_ids": example.inputs["input_ids"][:, :5]}
    with pytest.raises(jg.InputError, match=r"shape \[2, 7\] in the clean input and \[2, 5\]"):
        patch(example.graph, example.inputs, short)
    with pytest.raises(jg.SelectionError, match=r"'L7\.mlp' matches no component"):
        patch(example.graph, example.inputs, _other(example.inputs), senders="L7.mlp")
    with pytest.raises(jg.InputError, match="none of the receivers"):
        patch(example.graph, example.inputs, _other(example.inputs), senders="L1.mlp", receivers="L0.attn")


def test_the_patching_as_table_and_picture(tmp_path: Any, traced: Callable[..., Example]) -> None:
    example = traced(case("gptj"))
    found: Patching = patch(example.graph, example.inputs, _other(example.inputs))
    frame = found.to_dataframe()
    assert len(frame) == len(found) == 13
    row = frame[(frame["sender"] == "L0.mlp") & (frame["receiver"] == "L1.attn")].iloc[0]
    i, j = found.senders.index("L0.mlp"), found.receivers.index("L1.attn")
    assert row["effect"] == pytest.approx(float(found.effects[i, j].mean()))
    assert row["share"] == pytest.approx(row["effect"] / float((found.corrupt - found.clean).mean()))
    assert row["total"] == pytest.approx(float(found.totals[i].mean()))
    found.plot(tmp_path / "patching.png")
    heat = found.figure().axes[0]
    assert [label.get_text() for label in heat.get_yticklabels()] == list(found.senders)
    assert [label.get_text() for label in heat.get_xticklabels()] == list(found.receivers)


def test_positions_are_counted_from_the_start(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    last, every = (
        ablate(example.graph, "L0.mlp > logits", example.inputs, position=position) for position in (-1, None)
    )
    assert {effect.position for effect in last.effects} == {6}
    _same(last.effects, [effect for effect in every.effects if effect.position == 6])


def test_outputs_without_positions(traced: Callable[..., Example]) -> None:
    example = traced(case("resnet_basic"))
    found = ablate(example.graph, None, example.inputs)
    assert {effect.position for effect in found.effects} == {None}
    with pytest.raises(jg.InputError, match="no positions"):
        ablate(example.graph, None, example.inputs, position=3)


class Encoder(nn.Module):
    """h + tanh(W h) of embedded tokens, more than there are features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(40, 6), nn.Linear(6, 6)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        return h + torch.tanh(self.layer(h))


def test_features_are_told_by_distance_and_angle() -> None:
    """They have no probabilities and no top token, whatever is asked about."""
    torch.manual_seed(0)
    model, ids = Encoder().eval(), torch.arange(5)[None]
    graph = jg.trace(model, input_ids=ids, dynamic=False)
    for target in (None, 3):
        found = ablate(graph, "L0.* > logits", ids, target=target)
        with torch.no_grad():
            output, left = model(ids)[0, -1].double(), model.embed(ids)[0, -1].double()
        ways = output / output.norm() if target is None else torch.eye(6, dtype=torch.float64)[3]
        (effect,) = found.effects
        for change in (effect.predicted, effect.actual):
            assert change is not None
            assert change.logit == pytest.approx(float(ways @ (left - output)), abs=1e-6)
            assert change.distance == pytest.approx(float((left - output).norm() / output.norm()), abs=1e-6)
            assert change.cosine == pytest.approx(float(torch.cosine_similarity(left, output, dim=0)), abs=1e-6)
        assert list(found.columns())[4:] == [
            f"{what}{suffix}" for suffix in ("", "_distance", "_cosine") for what in ("predicted", "actual")
        ]
        assert "kl" not in repr(found)
        assert found.figure().axes[0].get_xlabel().endswith("(change of the length)")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_a_number(scale: float, traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    with pytest.raises(jg.InputError, match="no number to multiply by"):
        ablate(example.graph, None, example.inputs, scale=scale)


def test_a_branch_that_is_a_source_is_no_site(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    with pytest.raises(jg.SelectionError, match=r"Write 'L0\.mlp > logits'"):
        ablate(example.graph, "embed > L0.mlp > logits", example.inputs)


def test_an_ablation_holds_little_but_what_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are taken off the output and measured a few at a time, and copies of a pass that go together are few."""
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=8000,
        max_position_embeddings=32,
    )
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.arange(16)[None]
    graph = jg.trace(model, ids)
    monkeypatch.setattr(ablation, "WORKED_ON", 2**18)
    monkeypatch.setattr(network, "HELD_SIDE_BY_SIDE", 2**18)
    for corrupt in (None, ids.flip(1)):
        kept: list[Ablation] = []

        def heads(corrupt: torch.Tensor | None = corrupt, kept: list[Ablation] = kept) -> None:
            kept[:] = [ablate(graph, None, ids, split="heads", corrupt=corrupt)]

        heads()
        held = peak(heads)
        logits = [one for outputs in kept[0].outputs.values() for one in (outputs.direct, outputs.through)]
        assert held <= 1.5 * sum(one.nbytes for one in logits if one is not None)
