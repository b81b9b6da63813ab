"""Model diffs and trajectories against whole vocabulary × vocabulary tables, computed with numpy from the weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import jetgraph as jg
from jetgraph.applications.comparing import diff, models, trajectory
from jetgraph.export import waiting
from jetgraph.models import bundled
from tests.conftest import Example
from tests.zoo import VOCAB, case

OPT = "model.decoder.layers.{}"
DIRECT: dict[str, tuple[str, ...]] = {
    "gpt2": ("transformer.wte", "transformer.ln_f", "lm_head"),
    "llama": ("model.embed_tokens", "model.norm", "lm_head"),
    "gptj": ("transformer.wte", "transformer.ln_f", "lm_head"),
    "gpt_neox": ("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"),
    "gemma": ("model.embed_tokens", "model.norm", "lm_head"),
    "opt_post_norm": (
        "model.decoder.embed_tokens",
        "model.decoder.project_in",
        *(f"{OPT.format(layer)}.{norm}" for layer in (0, 1) for norm in ("self_attn_layer_norm", "final_layer_norm")),
        "model.decoder.project_out",
        "lm_head",
    ),
}
"""The modules that a token passes on its way past all branches."""

MLPS: dict[str, tuple[str, str, str, str]] = {
    "gpt2": ("transformer.wte", "transformer.h.1.ln_2", "transformer.h.1.mlp", "transformer.ln_f"),
    "llama": ("model.embed_tokens", "model.layers.1.post_attention_layernorm", "model.layers.1.mlp", "model.norm"),
    "gptj": ("transformer.wte", "transformer.h.1.ln_1", "transformer.h.1.mlp", "transformer.ln_f"),
    "gpt_neox": (
        "gpt_neox.embed_in",
        "gpt_neox.layers.1.post_attention_layernorm",
        "gpt_neox.layers.1.mlp",
        "gpt_neox.final_layer_norm",
    ),
}
"""The modules that it passes by way of the second MLP alone, up to the unembedding."""

Pair = tuple[jg.ResidualGraph, nn.Module, jg.ResidualGraph, nn.Module]


def _changed(model: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """The model with other weights, near its own."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return other


def _graph_of(model: nn.Module, like: jg.ResidualGraph) -> jg.ResidualGraph:
    """The graph of a model of the same code: the trace with other weights."""
    weights = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    tensors = {name: weights.get(name, tensor) for name, tensor in like.traced.tensors.items()}
    return jg.ResidualGraph(replace(like.traced, tensors=tensors), like.structure, like.title)


@pytest.fixture
def pair(traced: Callable[..., Example]) -> Callable[[str], Pair]:
    def make(name: str) -> Pair:
        example = traced(case(name))
        other = _changed(example.model)
        return example.graph, example.model, _graph_of(other, example.graph), other

    return make


# The same by hand


@torch.no_grad()
def _passed(model: nn.Module, *names: str) -> Tensor:
    """All tokens, through modules one after the other."""
    value: Any = torch.arange(VOCAB)
    for name in names:
        value = model.get_submodule(name)(value)
    return value


def _direct(name: str, model: nn.Module) -> np.ndarray:
    """logits [context, token]."""
    embed, *rest = DIRECT[name]
    value = _passed(model, embed)
    with torch.no_grad():
        if name == "gemma" and not type(model.get_submodule(embed)).__name__.startswith("GemmaTextScaled"):
            value = value * 16**0.5
        for module in rest:
            value = model.get_submodule(module)(value)
    return value.double().numpy()


def _second_mlp(name: str, model: nn.Module) -> np.ndarray:
    return _passed(model, *MLPS[name], "lm_head").double().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _distances(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Means over rows of total variation, Jensen–Shannon divergence, and 1 − cosine of centred logits."""
    p, q = _softmax(one), _softmax(other)
    m = (p + q) / 2
    js = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    a, b = one - one.mean(-1, keepdims=True), other - other.mean(-1, keepdims=True)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return float(np.abs(p - q).sum(-1).mean() / 2), float(js.mean()), float(1 - cosine.mean())


def _ranked(values: np.ndarray, top: int) -> list[tuple[int, int]]:
    order = np.argsort(-values, axis=None, kind="stable")[:top]
    return [(int(index) // values.shape[1], int(index) % values.shape[1]) for index in order]


# Two models


@pytest.mark.parametrize("name", list(DIRECT))
def test_ngrams_that_gain_and_lose_most(name: str, pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair(name)
    found = diff(graph, other_graph, top=20, memory=2**17)
    p, q = _softmax(_direct(name, model)), _softmax(_direct(name, other))
    for rows, sign in ((found.ngrams.gained, 1), (found.ngrams.lost, -1)):
        assert [(*one.context, one.token) for one in rows] == _ranked(sign * (q - p), 20)
        for one in rows:
            assert one.before == pytest.approx(p[one.context[0], one.token], abs=1e-6)
            assert one.after == pytest.approx(q[one.context[0], one.token], abs=1e-6)
    direct = found.paths.rows[0]
    assert (direct.total_variation, direct.jensen_shannon, direct.cosine_distance) == pytest.approx(
        _distances(_direct(name, model), _direct(name, other)), rel=1e-4
    )


@pytest.mark.parametrize("name", list(MLPS))
def test_distances_of_single_mlps(name: str, pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair(name)
    found = diff(graph, other_graph, top=5)
    assert [row.path for row in found.paths.rows] == [
        f"embed > {via}logits^0" for via in ("", "L0.mlp^0 > ", "L1.mlp^0 > ")
    ]
    row = found.paths.rows[2]
    assert (row.total_variation, row.jensen_shannon, row.cosine_distance) == pytest.approx(
        _distances(_second_mlp(name, model), _second_mlp(name, other)), rel=1e-4
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gpt_neox", "gemma"])
def test_diff_in_bfloat16(name: str, pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair(name)

    def half(graph: jg.ResidualGraph) -> jg.ResidualGraph:
        tensors = graph.traced.tensors
        return graph.relocated(
            lambda key: tensors[key].bfloat16() if tensors[key].is_floating_point() else tensors[key]
        )

    found = diff(half(graph), half(other_graph), top=3)
    one, another = (_direct(name, copy.deepcopy(side).bfloat16()) for side in (model, other))
    p, q = _softmax(one), _softmax(another)
    best = found.ngrams.gained[0]
    assert best.change == pytest.approx((q - p).max(), abs=0.02)
    assert best.change == pytest.approx((q - p)[best.context[0], best.token], abs=0.02)
    row = found.paths.rows[0]
    expected = _distances(one, another)
    assert row.total_variation == pytest.approx(expected[0], rel=0.05)
    assert row.jensen_shannon == pytest.approx(expected[1], rel=0.1)
    assert row.cosine_distance == pytest.approx(expected[2], rel=0.1)


def test_several_paths_are_one_table_and_measured_one_by_one(pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair("gptj")
    found = diff(graph, other_graph, path=["embed > logits", "embed > L1.mlp > logits"], top=10)
    bias = model.get_submodule("lm_head").bias.detach().double().numpy()  # type: ignore[operator,union-attr]
    other_bias = other.get_submodule("lm_head").bias.detach().double().numpy()  # type: ignore[operator,union-attr]

    def mean(model: nn.Module, bias: np.ndarray) -> np.ndarray:
        return (_direct("gptj", model) - bias + _second_mlp("gptj", model) - bias) / 2 + bias

    change = _softmax(mean(other, other_bias)) - _softmax(mean(model, bias))
    assert [(*one.context, one.token) for one in found.ngrams.gained] == _ranked(change, 10)
    assert len(found.paths.rows) == 3
    assert "and 1 more" in found.title


def test_chosen_contexts(pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair("llama")
    ids = [3, 7, 50]
    found = diff(graph, other_graph, top=4, contexts=ids)
    p, q = _softmax(_direct("llama", model))[ids], _softmax(_direct("llama", other))[ids]
    assert [(ids.index(one.context[0]), one.token) for one in found.ngrams.gained] == _ranked(q - p, 4)
    assert found.paths.rows[0].total_variation == pytest.approx(np.abs(p - q).sum(-1).mean() / 2, rel=1e-4)
    spread = diff(graph, other_graph, top=4, contexts=3)
    assert {one.context[0] for one in (*spread.ngrams.gained, *spread.ngrams.lost)} <= {0, 26, 52}
    assert found.paths.rows[0].intervals is None
    assert not found.ngrams.note
    assert spread.ngrams.note.startswith("a sample of contexts")


def test_a_sample_where_all_contexts_would_take_long(
    pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as a budget allows, which is said, and means with the intervals of a sample without replacement."""
    graph, model, other_graph, other = pair("llama")
    monkeypatch.setattr(models, "ENTRIES", 3 * VOCAB * 30)
    with waiting.said():
        found = diff(graph, other_graph, top=4)
    assert f"comparing 30 of {VOCAB} contexts along 3 paths" in capsys.readouterr().err
    ids = np.linspace(0, VOCAB - 1, 30).round().astype(int)
    p, q = _softmax(_direct("llama", model))[ids], _softmax(_direct("llama", other))[ids]
    each = np.abs(p - q).sum(-1) / 2
    row = found.paths.rows[0]
    assert row.total_variation == pytest.approx(each.mean(), rel=1e-4)
    assert row.intervals is not None
    half = 1.959964 * each.std(ddof=1) / 30**0.5 * (1 - 30 / VOCAB) ** 0.5
    assert row.intervals[0] == pytest.approx(half, rel=1e-3)
    assert found.paths.columns()["total_variation ±"][0] == row.intervals[0]
    assert f"30 of {VOCAB} contexts" in found.title
    found.figure()


def test_chosen_contexts_are_checked(pair: Callable[[str], Pair]) -> None:
    graph, _, other_graph, _ = pair("llama")
    for wrong, message in (([60], "from 0 to 52"), (0, "contexts=0"), ([], "at least one")):
        with pytest.raises(jg.InputError, match=message):
            diff(graph, other_graph, contexts=wrong)


def test_weights_that_cannot_be_compared_are_said_to_be_so(pair: Callable[[str], Pair]) -> None:
    """Where one site can be, its change is told, and the others are left open."""
    found = diff(pair("gpt2")[0], pair("llama")[0], contexts=5)
    assert [row.change for row in found.sites.rows if row.change is not None] == []
    assert found.sites.note.startswith("no site reads weights of the same names and shapes")
    one = replace(found.sites, rows=(replace(found.sites.rows[0], change=0.5), *found.sites.rows[1:]))
    assert one.note == ""


def test_a_model_is_as_it_is(pair: Callable[[str], Pair]) -> None:
    graph, *_ = pair("gpt2")
    found = diff(graph, graph, contexts=30)
    assert (found.ngrams.gained, found.ngrams.lost) == ((), ())
    assert [row.change for row in found.sites.rows] == [0.0] * 7
    for row in found.paths.rows:
        assert (row.total_variation, row.jensen_shannon, row.cosine_distance, row.intervals) == (0, 0, 0, (0, 0, 0))
    assert found.sites.note == "the weights of both are equal"
    assert len(found.to_dataframe()) == 0
    assert len(found.figure().axes) == 3


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def test_pieces_of_a_table_are_small_and_change_nothing(pair: Callable[[str], Pair]) -> None:
    graph, _, other_graph, _ = pair("gpt2")
    whole = diff(graph, other_graph, top=30)
    # Weights and the first run of each trace are larger than a piece, so that only tables are counted.
    with _Largest() as largest:
        pieces = diff(graph, other_graph, top=30, memory=2**16)
    assert pieces.ngrams.gained == whole.ngrams.gained
    assert pieces.ngrams.lost == whole.ngrams.lost
    assert largest.numel < VOCAB * VOCAB
    for one, other in zip(pieces.paths.rows, whole.paths.rows, strict=True):
        assert one.total_variation == pytest.approx(other.total_variation)
        assert one.jensen_shannon == pytest.approx(other.jensen_shannon)


SITES = {
    "gpt2": {
        "embed": ["transformer.wte"], "pos": ["transformer.wpe"],
        "L0.attn": ["transformer.h.0.ln_1", "transformer.h.0.attn"],
        "L1.mlp": ["transformer.h.1.ln_2", "transformer.h.1.mlp"], "logits": ["transformer.ln_f", "lm_head"],
    },
    "llama": {
        "embed": ["model.embed_tokens"], "L0.attn": ["model.layers.0.input_layernorm", "model.layers.0.self_attn"],
        "L1.mlp": ["model.layers.1.post_attention_layernorm", "model.layers.1.mlp"],
        "logits": ["model.norm", "lm_head"],
    },
    "gptj": {
        "L0.attn": ["transformer.h.0.ln_1", "transformer.h.0.attn"],
        "L0.mlp": ["transformer.h.0.ln_1", "transformer.h.0.mlp"], "logits": ["transformer.ln_f", "lm_head"],
    },
    "gemma": {"embed": ["model.embed_tokens"], "logits": ["model.norm", "lm_head"]},
    "opt_post_norm": {
        "embed": ["model.decoder.embed_tokens", "model.decoder.project_in"],
        "pos": ["model.decoder.embed_positions"],
        "L0.attn": [f"{OPT.format(0)}.self_attn"], "L0.norm": [f"{OPT.format(0)}.self_attn_layer_norm"],
        "L0.mlp": [f"{OPT.format(0)}.fc1", f"{OPT.format(0)}.fc2"],
        "logits": [f"{OPT.format(1)}.final_layer_norm", "model.decoder.project_out", "lm_head"],
    },
    "bert": {
        "embed": ["bert.embeddings.word_embeddings"], "norm": ["bert.embeddings.LayerNorm"],
        "L1.attn": ["bert.encoder.layer.1.attention.self", "bert.encoder.layer.1.attention.output.dense"],
        "L1.mlp": ["bert.encoder.layer.1.intermediate", "bert.encoder.layer.1.output.dense"],
    },
}  # fmt: skip
"""The modules whose weights a site reads, by model and alias."""


@pytest.mark.parametrize("name", list(SITES))
def test_weights_by_site(name: str, pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair(name)
    rows = {row.site: row for row in diff(graph, other_graph, top=1).sites.rows}
    reads = [step.site.alias if hasattr(step, "site") else "" for step in graph.outline.steps]
    assert list(rows)[-1] == "logits"
    assert set(reads) - {""} <= set(rows)
    for alias, modules in SITES[name].items():

        def weights(model: nn.Module, modules: list[str] = modules) -> np.ndarray:
            parts = [parameter for path in modules for parameter in model.get_submodule(path).parameters()]
            return torch.cat([part.detach().flatten() for part in parts]).double().numpy()

        before, after = weights(model), weights(other)
        assert rows[alias].parameters == len(before)
        expected = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert rows[alias].change == pytest.approx(expected, rel=1e-6)


def test_sites_without_a_counterpart(traced: Callable[..., Example]) -> None:
    one, other = traced(case("llama")), traced(case("gptj"))
    found = diff(one.graph, other.graph, top=2)
    assert all(row.change is None for row in found.sites.rows)
    assert all(row.total_variation is not None for row in found.paths.rows)
    assert len(found.plot().axes) == 3


def _tokenizer(change: Callable[[dict[str, int]], None] = lambda vocabulary: None) -> Any:
    """The tokenizer of the bundled GPT-2, with its vocabulary changed."""
    data = json.loads((Path(bundled("gpt2")) / "tokenizer.json").read_text(encoding="utf-8"))
    change(data["model"]["vocab"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))


def test_models_share_a_tokenizer(traced: Callable[..., Example]) -> None:
    def exchange(vocabulary: dict[str, int]) -> None:
        vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]

    def loaded(name: str, tokenizer: Any) -> jg.loading.Loaded:
        return jg.loading.Loaded(name, _Small().eval(), tokenizer)

    same, exchanged = _tokenizer(), _tokenizer(exchange)
    first, second = sorted((same.get_vocab()["!"], same.get_vocab()["#"]))
    with pytest.raises(jg.InputError, match=f"2 tokens differ.*'!' is token {first} in a and token {second} in b"):
        diff(loaded("a", same), loaded("b", exchanged))
    with pytest.raises(jg.InputError, match="different tokenizers"):
        trajectory([loaded("a", same), loaded("b", exchanged)])
    found = diff(loaded("a", same), loaded("b", exchanged), tokenizer=same, top=1)
    assert found.ngrams.names == ("a", "b")


class _Small(nn.Module):
    """The smallest language model that can be loaded: embedding, one residual block, unembedding."""

    def __init__(self, vocabulary: int = VOCAB) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocabulary)
        self.embed, self.mlp, self.unembed = nn.Embedding(vocabulary, 4), nn.Linear(4, 4), nn.Linear(4, vocabulary)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        return self.unembed(h + torch.tanh(self.mlp(h)))


def test_without_tokenizers_sizes_have_to_agree(traced: Callable[..., Example]) -> None:
    with pytest.raises(jg.InputError, match=r"53 output tokens and .* 60"):
        diff(traced(case("gpt2")).graph, _Small(60).eval())
    with pytest.raises(jg.InputError, match=r"53 output tokens and .* 60"):
        trajectory([_Small(60).eval(), traced(case("gpt2")).graph])


def test_the_diff_as_tables_and_picture(tmp_path: Path, pair: Callable[[str], Pair]) -> None:
    graph, _, other_graph, _ = pair("gpt2")
    tokenizer = _tokenizer()
    found = diff(graph, other_graph, top=7, tokenizer=tokenizer)
    frame = found.to_dataframe()
    assert list(frame["kind"]) == ["gained"] * 7 + ["lost"] * 7
    assert (frame["change"] == frame["p_b"] - frame["p_a"]).all()
    assert frame["context"][0] == repr(tokenizer.decode([int(frame["context_ids"][0])]))
    text = repr(found)
    for part in (found.ngrams, found.paths, found.sites):
        assert part.title in text
        part.plot(tmp_path / "part.png")
        part.save(tmp_path / "part.csv")
    figure = found.plot(tmp_path / "diff.png")
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == [
        "change of P(next token | context)",
        "distance between the tables, mean over contexts",
        "‖W_b − W_a‖ / ‖W_a‖ (Frobenius)",
    ]


# Checkpoints


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gemma", "opt_post_norm"])
def test_trajectories_against_whole_tables(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    models = [_changed(example.model, seed, size) for seed, size in ((1, 0.3), (2, 0.1))] + [example.model]
    graphs = [*(_graph_of(model, example.graph) for model in models[:-1]), example.graph]
    found = trajectory(graphs, top=40, names=[10, 20, 30], memory=2**17)
    tables = [_softmax(_direct(name, model)) for model in models]
    final = _ranked(tables[-1], 40)
    contexts = {a for a, _ in final}
    for index, table in enumerate(tables):
        assert found.hit_ratio[index] == pytest.approx(len(set(_ranked(table, 40)) & set(final)) / 40)
        assert found.mass[index] == pytest.approx(sum(table[a, b] for a, b in final) / len(contexts), rel=1e-5)
        assert found.entropy[index] == pytest.approx(-(table * np.log(table)).sum(-1).mean(), rel=1e-5)
    assert found.hit_ratio[-1] == 1
    assert found.hit_ratio[0] < found.hit_ratio[1] < 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gemma", "opt_post_norm"])
def test_trajectories_in_bfloat16(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    models = [_changed(example.model, 1, 0.3), example.model]
    halves = [copy.deepcopy(model).bfloat16() for model in models]
    whole = _graph_of(models[0], example.graph), example.graph

    def half(graph: jg.ResidualGraph) -> jg.ResidualGraph:
        tensors = graph.traced.tensors
        return graph.relocated(
            lambda key: tensors[key].bfloat16() if tensors[key].is_floating_point() else tensors[key]
        )

    found = trajectory([half(graph) for graph in whole], top=40)
    tables = [_softmax(_direct(name, model)) for model in halves]
    final = _ranked(tables[-1], 40)
    for index, table in enumerate(tables):
        # Rounding makes ties at the end of a list of 40.
        assert found.hit_ratio[index] == pytest.approx(len(set(_ranked(table, 40)) & set(final)) / 40, abs=0.1)
        mass = sum(table[a, b] for a, b in final) / len({a for a, _ in final})
        assert found.mass[index] == pytest.approx(mass, rel=0.1)
        assert found.entropy[index] == pytest.approx(-(table * np.log(table)).sum(-1).mean(), rel=0.02)


def test_checkpoints_are_opened_one_at_a_time(tmp_path: Path, pair: Callable[[str], Pair]) -> None:
    graph, _, other_graph, other = pair("gpt2")
    opened: list[int] = []

    def maker(index: int) -> Callable[[], jg.ResidualGraph]:
        def make() -> jg.ResidualGraph:
            opened.append(index)
            return (graph, other_graph)[index]

        return make

    other.save_pretrained(tmp_path / "step-2")  # type: ignore[operator]
    found = trajectory([maker(0), maker(1), tmp_path / "step-2"], top=25)
    assert opened == [0, 1]
    assert found.names == ("0", "1", "step-2")
    assert found.hit_ratio[0] < 1
    assert found.hit_ratio[1:] == (1.0, 1.0)
    assert found.mass[1] == pytest.approx(found.mass[2])
    assert found.mass[0] < found.mass[2]


def test_keywords_are_followed(pair: Callable[[str], Pair]) -> None:
    graph, model, other_graph, other = pair("gpt2")
    words = WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    found = trajectory([other_graph, graph], keywords=["w11", "w10"], top=5, tokenizer=tokenizer)
    assert found.keyword_mass is not None
    for mass, side in zip(found.keyword_mass, (other, model), strict=True):
        assert mass == pytest.approx(float(_softmax(_direct("gpt2", side))[:, 10:12].sum(-1).mean()), rel=1e-5)
    assert "keyword_mass" in found.columns()
    assert len(found.figure().axes[0].lines) == 3


def test_the_trajectory_as_table_and_picture(tmp_path: Path, pair: Callable[[str], Pair]) -> None:
    graph, _, other_graph, _ = pair("gpt2")
    found = trajectory([other_graph, graph], names=[100, 200.0], top=10)
    assert list(found.to_dataframe().columns) == ["checkpoint", "hit_ratio", "mass", "entropy"]
    figure = found.plot(tmp_path / "trajectory.png")
    assert [axes.get_xlabel() for axes in figure.axes] == ["training step"] * 2
    named = trajectory([other_graph, graph], names=["first", "last"], top=10)
    assert [text.get_text() for text in named.figure().axes[0].get_xticklabels()] == ["first", "last"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"names": ["a"]}, "1 name for 2 checkpoints"), ({"top": 0}, "top=0")],
    ids=["names", "top"],
)
def test_trajectories_that_make_no_sense(options: dict[str, Any], message: str, pair: Callable[[str], Pair]) -> None:
    graph, _, other_graph, _ = pair("gpt2")
    with pytest.raises(jg.InputError, match=message):
        trajectory([graph, other_graph], **options)
    with pytest.raises(jg.InputError, match="no checkpoint"):
        trajectory([])


@torch.no_grad()
def test_encoders_are_compared_by_their_weights() -> None:
    """They have no n-grams, which is said; on prompts their features are compared, and a report has both."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    one = transformers.BertModel(transformers.BertConfig(vocab_size=53, intermediate_size=24, **sizes)).eval()
    other = copy.deepcopy(one)
    other.encoder.layer[1].output.dense.weight.mul_(1.5)
    ids = torch.arange(4, 9)[None]
    graphs = [jg.trace(model, input_ids=ids, dynamic=False) for model in (one, other)]
    found = jg.diff(*graphs)
    changed = {row.site: row.change for row in found.sites.rows}
    assert [site for site, change in changed.items() if change] == ["L1.mlp"]
    assert found.columns() == found.sites.columns()
    assert found.title == found.sites.title
    assert "n-grams need a logit for each token" in repr(found)
    assert "jg.compare" in found._repr_html_()
    assert len(found.figure().axes) == 1
    refused: tuple[dict[str, Any], ...] = {"path": "embed > *.mlp > logits"}, {"contexts": 3}
    for asked in refused:
        with pytest.raises(jg.InputError, match="weights alone are compared"):
            jg.diff(*graphs, **asked)
    made = jg.report(graphs[0], {"input_ids": ids}, other=graphs[1])
    titles = [section.title for section in made.sections]
    assert titles == ["In short", "Which weights have changed", "Input 1"]
    features = [model(ids).last_hidden_state[0, -1].double() for model in (one, other)]
    distance = float((features[1] - features[0]).norm() / features[0].norm())
    assert f"are {distance:.3g} of their length apart" in made.markdown
