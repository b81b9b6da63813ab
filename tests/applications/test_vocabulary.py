"""What is a vocabulary: an output that has the size of the token table or of the tokenizer, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.subject import is_vocabulary
from jetgraph.models import bundled
from tests.commands import invoke

IDS = torch.tensor([[5, 9, 17, 3], [2, 4, 6, 8]])
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(bundled("gpt2"))


def bert(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(transformers.BertConfig(vocab_size=1024, **SIZES, **options)).eval()


class Padded(nn.Module):
    """A residual language model whose unembedding is larger than its table, as some are for the hardware's sake."""

    def __init__(self, tokens: int, logits: int, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.mlp = nn.Linear(16, 16)
        self.unembed = nn.Linear(16, logits, bias=False)
        if tied:
            self.unembed.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        return self.unembed(x + torch.tanh(self.mlp(x)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: bert(transformers.BertForMaskedLM), True),
        (lambda: bert(transformers.BertModel), False),
        (lambda: bert(transformers.BertForSequenceClassification, num_labels=3), False),
        (lambda: Padded(1024, 1024, tied=True), True),
        (lambda: Padded(1000, 1024), True),
        (lambda: Padded(1024, 512), False),
    ],
    ids=["masked", "encoder", "classes", "tied", "padded", "features"],
)
def test_the_graph_tells(model: Callable[[], nn.Module], expected: bool) -> None:
    graph = jg.trace(model().eval(), input_ids=IDS, dynamic=False)
    size = graph.traced.output.meta["shape"][-1]
    assert is_vocabulary(graph, size, None) is expected


def test_a_tokenizer_tells_where_there_is_no_table(tokenizer: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1024)).eval()
    graph = jg.trace(model, torch.randn(2, 3, 8))
    assert len(tokenizer) <= 1024
    assert is_vocabulary(graph, 1024, tokenizer)
    assert not is_vocabulary(graph, 8, tokenizer)


def test_features_are_shown_as_features(tokenizer: Any) -> None:
    graph = jg.trace(bert(transformers.BertModel), input_ids=IDS)
    with torch.no_grad():
        best = graph(input_ids=IDS).argmax(-1)
    lens = jg.lens(graph, IDS, layers=[-1], tokenizer=tokenizer)
    assert "features, as of an encoder, which are no tokens" in lens.note
    # The picture has the cosine in each cell, for the largest feature is no token either.
    panel, bar = lens.figure().axes
    assert [text.get_text() for text in panel.texts] == [
        f"{cell:.2f}" for cell in lens.comparison.cosine[:, 0, 0].flatten()
    ]
    assert bar.get_ylabel() == "cosine with the output"
    assert [label.get_text().split()[0] for label in panel.get_yticklabels()] == [f"h{point}" for point in lens.points]
    assert "top" not in str(lens).splitlines()[-2]
    columns = lens.columns()
    assert columns["says"] == [f"#{index}" for index in best.flatten().tolist()]
    assert all(re.fullmatch(r"#\d+", str(top)) for top in columns["top"])
    assert not any(re.fullmatch(r"#\d+", str(token)) for token in columns["token"])
    found = jg.ablate(graph, "L0.mlp > logits", IDS, tokenizer=tokenizer, target=0)
    assert {effect.target for effect in found.effects} == {"#0"}
    with pytest.raises(jg.InputError, match="32 features and no vocabulary, so 'self' names none"):
        jg.ablate(graph, "L0.mlp > logits", IDS, tokenizer=tokenizer, target="self")
    with pytest.raises(jg.InputError, match="no vocabulary"):
        jg.patch(graph, IDS, IDS + 1, tokenizer=tokenizer, target=("self", " the"))


def test_features_are_told_by_the_direction_of_the_output(tokenizer: Any) -> None:
    """Of an output of features y the direction y/‖y‖ is told, as it is: the largest feature says nothing."""
    graph = jg.trace(bert(transformers.BertModel), input_ids=IDS)
    with torch.no_grad():
        output = graph(input_ids=IDS).double()
    lengths = output.norm(dim=-1)
    sums = jg.spectrum(graph, IDS, position=None)
    assert sums.what == "length along the direction of the output"
    for told in (sums.output, sums.total):
        torch.testing.assert_close(told, lengths, rtol=1e-4, atol=1e-4)
    found = jg.ablate(graph, "L0.attn > ** > logits", IDS, position=0)
    without = (found.outputs[found.effects[0].path].direct[:, 0] * output[:, 0] / lengths[:, :1]).sum(-1)
    assert [one.predicted.logit for one in found.effects] == pytest.approx((without - lengths[:, 0]).tolist(), abs=1e-5)
    assert all(one.predicted.centred is one.predicted.kl is None for one in found.effects)
    patched = jg.patch(graph, IDS, IDS + 1, senders="L0.mlp", receivers="logits", position=0)
    assert "direction of the output" in patched.title
    torch.testing.assert_close(patched.clean.flatten(), lengths[:, 0], rtol=1e-4, atol=1e-4)
    terms = jg.terms(graph, IDS, tokenizer=tokenizer)
    assert list(terms.columns()) == ["example", "norm", "path", "cosine", "remainder", "share"]
    shares = torch.zeros(len(IDS), dtype=torch.float64)
    for term in terms.terms:
        shares[term.example] += term.share
    torch.testing.assert_close(shares, lengths[:, -1], rtol=1e-4, atol=1e-4)
    assert (terms.says[0], terms.best[0]) == ("", "direction of the output")
    assert terms.scores().total == pytest.approx(float(lengths[0, -1]), rel=1e-4)
    (row,) = jg.compare(graph, graph, IDS[:1], tokenizer=tokenizer).prompts.rows
    assert (row.says, row.distance, row.cosine) == (None, 0, pytest.approx(1))
    assert row.value[1] == pytest.approx(float(lengths[0, -1]), rel=1e-4)
    screened = jg.patch(graph, IDS, IDS + 1, senders="L0.mlp", receivers="logits", position=0, screen=1)
    torch.testing.assert_close(screened.effects, patched.effects)
    for of in ("ablations", "attributions"):
        survey = jg.survey(graph, ["self", "return"], of=of, resamples=1, tokenizer=tokenizer)
        assert "the direction of the output of each prompt" in survey.title


@pytest.mark.parametrize(
    "application",
    [
        lambda graph: jg.ngrams(graph, top=3),
        lambda graph: jg.diff(graph, graph, contexts=3),
        lambda graph: jg.trajectory([graph, graph]),
        lambda graph: jg.ngram_agreement(graph, IDS),
    ],
    ids=["ngrams", "diff", "trajectory", "agreement"],
)
def test_tables_need_a_vocabulary(application: Callable[[jg.ResidualGraph], object]) -> None:
    graph = jg.trace(Padded(1024, 24).eval(), input_ids=IDS)
    with pytest.raises(jg.InputError, match=r"n-grams need a logit for each token, but the output .* has 24 features"):
        application(graph)


def test_padded_vocabularies_are_shown(tokenizer: Any) -> None:
    graph = jg.trace(Padded(1000, 1024).eval(), input_ids=IDS)
    assert len(jg.ngrams(graph, top=3, tokenizer=tokenizer)) == 3
    says = jg.lens(graph, IDS, layers=[-1], tokenizer=tokenizer).columns()["says"]
    assert any(not str(text).startswith("#") for text in says)


def test_the_demo_is_for_language_models(tmp_path: object, tokenizer: Any) -> None:
    bert(transformers.BertModel).save_pretrained(f"{tmp_path}/encoder")
    tokenizer.save_pretrained(f"{tmp_path}/encoder")
    result = invoke("demo", "--model", f"{tmp_path}/encoder", "--output", f"{tmp_path}/out")
    assert result.exit_code == 2, result.exception
    assert "gives no logits of tokens" in result.stderr
    text = invoke("expand", f"{tmp_path}/encoder", "--recipe", "components", "--prompt", "Raise Value").stdout
    assert "features, as of an encoder, which are no tokens" in text
    assert "#" not in text
    files = "--output", f"{tmp_path}/report.md"
    facts = json.loads(invoke("report", f"{tmp_path}/encoder", "Raise Value", *files, "--json").stdout)
    assert facts["files"] == [f"{tmp_path}/report.md"]
    assert [section["title"] for section in facts["sections"]][:2] == ["In short", "Structure"]
    with open(f"{tmp_path}/report.md", encoding="utf-8") as file:
        report = file.read()
    assert "the model gives 32 features, of length" in report
    assert "the largest output" not in report
    assert "'#" not in report, "commands name no feature as a target"


class Sensor(nn.Module):
    """A code of one's own: several inputs, of which one is a number for each example, and several outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.readings, self.station = nn.Linear(5, 8), nn.Embedding(7, 8)
        self.time = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, readings: Tensor, station: Tensor) -> dict[str, Tensor]:
        x = self.readings(readings) + self.station(station)[:, None] + self.time[: readings.shape[1]]
        for block in self.blocks:
            x = x + block(x)
        return {"classes": self.head(self.norm(x).mean(1)), "level": x}


def test_a_number_for_each_input_is_no_token() -> None:
    """It has the shape of the output's rows, but these are no positions: it was read as tokens, out of range."""
    torch.manual_seed(0)
    inputs = {"readings": torch.randn(3, 4, 5), "station": torch.tensor([1, 2, 6])}
    graph = jg.trace(Sensor().eval(), inputs=inputs)
    assert [source.alias for source in graph.outline.sources] == ["embed", "station", "pos", "bias"]
    assert graph.outline.sources[2].path == "time"
    found = (jg.lens(graph, inputs), jg.joint_lens(graph, inputs), jg.transport_lens(graph, inputs, tail="frozen"))
    for one in (*found, jg.terms(graph, inputs)):
        assert not any(one.columns().get("token", ()))
        assert {*one.columns()["example"]} == {0, 1, 2}
        assert repr(one)
        # Nor are there columns of tokens and positions with nothing in them.
        assert not re.search(r"\b(token|position)\b", repr(one).split("\n", 1)[1])
    assert "3 inputs" in found[1].title
    page = jg.report(graph, [{name: value[:1] for name, value in inputs.items()}])
    assert "Input 1" in repr(page)
