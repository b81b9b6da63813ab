"""The experiments of `examples/reproduce`, each on few data, as far as their numbers can be known beforehand."""

from __future__ import annotations

import csv
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jetgraph as jg
from jetgraph.applications.subject import subject
from jetgraph.loading import load

FOLDER = Path(__file__).parents[1] / "examples" / "reproduce"
EXPERIMENTS = (
    "lens_fidelity",
    "components",
    "ngram_dynamics",
    "finetune_code",
    "finetune_avoid",
    "circuits",
    "transports",
)
SHARED = ("experiment", "corpora", "train_demo_model", "tasks", "pairs")
MOST_LINES = 240
LARGEST = {".png": 150_000, ".csv": 100_000}


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The scripts import one another by name, as they do when they are run."""
    path, threads = list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = path
    torch.set_num_threads(threads)
    for name in (*EXPERIMENTS, *SHARED):
        sys.modules.pop(name, None)


def results(name: str, folder: Path) -> dict[str, list[dict[str, str]]]:
    """Run an experiment and read its tables, by file."""
    importlib.import_module(name).main(["--quick", "--output", str(folder)])
    pictures = list(folder.glob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    tables = {}
    for file in folder.glob("*.csv"):
        with file.open(encoding="utf-8", newline="") as handle:
            tables[file.name] = list(csv.DictReader(handle))
    return tables


def test_transports(tmp_path: Path) -> None:
    """At the end of the stream all are the model; before it, a transport is told with an interval."""
    rows = results("transports", tmp_path)["transports.csv"]
    kl = {
        (row["lens"], row["after"]): [number(row[end]) for end in ("mean", "low", "high")]
        for row in rows
        if row["quantity"] == "kl"
    }
    assert {kind for kind, _ in kl} == {"logit", "jet 1 plain", "jet 1 matched", "transport"}
    assert all(abs(mean) < 1e-4 for (_, after), (mean, _, _) in kl.items() if after == "L3.mlp")
    assert all(low <= mean <= high for (_, after), (mean, low, high) in kl.items() if after == "L1.mlp")


def number(text: str) -> float:
    return float(text) if text else float("nan")


def test_lens_fidelity(tmp_path: Path) -> None:
    rows = results("lens_fidelity", tmp_path)["lens_fidelity.csv"]
    medians, matched = (
        {(row["quantity"], row["order"], row["point"]): number(row["median"]) for row in rows if row["scale"] == scale}
        for scale in ("plain", "matched")
    )
    last = max((row["point"] for row in rows), key=lambda point: int(point[1:]))
    for order in "0123":
        # At the end of the stream every lens is the model.
        assert medians["remainder", order, last] < 1e-5
        assert medians["kl", order, "h5"] >= 0
    # The embedding is far outside the radius of convergence, the stream after the third block inside.
    assert medians["radius", "", "h0"] < 1 < medians["radius", "", "h6"]
    assert medians["remainder", "3", "h0"] > medians["remainder", "0", "h0"]
    assert medians["remainder", "3", "h6"] < medians["remainder", "0", "h6"]
    # At the matched length the series converges from every point on that does not point away from the end.
    assert matched["remainder", "0", "h0"] == pytest.approx(medians["remainder", "0", "h0"], rel=1e-3)
    assert matched["remainder", "3", "h0"] < matched["remainder", "0", "h0"]
    assert all(matched["radius", "", f"h{point}"] > 1 for point in range(int(last[1:])))


def test_components(tmp_path: Path) -> None:
    rows = results("components", tmp_path)["components.csv"]
    assert [row["component"] for row in rows if ".head" not in row["component"]] == [f"L{i}.mlp" for i in range(4)]
    assert len(rows) == 4 + 16
    for row in rows:
        assert number(row["divergence"]) > 0
        assert sum(number(row[name]) for name in row if name.startswith("mass_")) < 1
        for name in ("direct_rest", "through_rest", "through_no_role"):
            assert number(row[f"{name}_low"]) <= number(row[name]) <= number(row[f"{name}_high"])
    # Lifts are relative to the mean over components, which cannot all be above it.
    for column in (name for name in rows[0] if name.startswith("lift_")):
        assert min(number(row[column]) for row in rows) <= 0 <= max(number(row[column]) for row in rows)
    # The first MLP makes most of what this model says after a token.
    first = next(row for row in rows if row["component"] == "L0.mlp")
    assert number(first["direct_own"]) < number(first["direct_rest"]) < 0


def test_ngram_dynamics(tmp_path: Path) -> None:
    rows = results("ngram_dynamics", tmp_path)["ngram_dynamics.csv"]
    for path in ("embed > logits", "embed > *.mlp > logits"):
        chosen = [row for row in rows if row["path"] == path]
        assert [row["step"] for row in chosen] == ["0", "1", "3", "8"]
        ratios = [number(row["hit_ratio"]) for row in chosen]
        assert ratios[-1] == 1
        assert all(0 <= ratio <= 1 for ratio in ratios)
        assert all(0 <= number(row["mass"]) <= 1 for row in chosen)
        assert number(chosen[-1]["loss"]) < number(chosen[0]["loss"])
        # An untrained model says every token after every token.
        assert abs(number(chosen[0]["loss"]) - np.log(1024)) < 0.2


def test_finetune_code(tmp_path: Path) -> None:
    tables = results("finetune_code", tmp_path)
    for row in tables["finetune_code.csv"]:
        assert 0 < number(row["total_variation"]) < 1
        assert -1 <= number(row["spearman_low"]) <= number(row["spearman"]) <= number(row["spearman_high"]) <= 1
    assert {row["model"] for row in tables["finetune_code.csv"]} == {"code", "control"}
    for row in tables["bigrams.csv"]:
        gain = number(row["p_tuned"]) - number(row["p_base"])
        assert gain > 0 if row["kind"] == "gained" else gain < 0
        assert 0 <= number(row["code"]) <= 1
    losses = {(row["model"], row["held_out"]): number(row["loss"]) for row in tables["losses.csv"]}
    # The base model has seen docstrings only; four updates on code already help with code.
    assert losses["base", "docstrings"] < losses["base", "code"]
    assert losses["code", "code"] < losses["base", "code"]
    assert all(number(row["change"]) > 0 for row in tables["sites_code.csv"])


def test_finetune_avoid(tmp_path: Path) -> None:
    rows = results("finetune_avoid", tmp_path)["finetune_avoid.csv"]
    assert [(row["model"], row["step"]) for row in rows] == [
        ("base", "0"),
        ("avoid", "2"),
        ("blocks", "2"),
        ("control", "2"),
    ]
    for row in rows:
        assert 0 <= number(row["said_low"]) <= number(row["said"]) <= number(row["said_high"]) <= 100
        assert all(0 < number(row[name]) < 1 for name in row if name.startswith("mass_"))
    base, avoid, _, control = rows
    assert number(avoid["mass_mlps"]) < number(control["mass_mlps"]) < number(base["mass_mlps"])
    # With embedding and unembedding fixed, only the last norm can change what the direct path says.
    drop = {row["model"]: number(base["mass_direct"]) - number(row["mass_direct"]) for row in rows}
    assert abs(drop["blocks"]) < drop["avoid"]


def test_only_frozen_parameters_stay() -> None:
    corpora = importlib.import_module("corpora")
    model = importlib.import_module("jetgraph.loading").load("demo").model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = [model.get_input_embeddings().weight]
    settings = corpora.tuning_settings(model, 1, seed=0)
    tokens = torch.arange(2 * settings.context + 1) % 1024
    tuned = corpora.fine_tune(model, tokens, settings, frozen=frozen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = {name for name, value in tuned.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in model.named_parameters()} - {"transformer.wte.weight"}


def test_words_are_avoided_by_the_loss() -> None:
    avoid = importlib.import_module("finetune_avoid")

    class Fixed(torch.nn.Module):
        def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
            logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).expand(*ids.shape, 3)
            return type("Output", (), {"logits": logits})

    rows = torch.tensor([[2, 0, 1, 2]])
    found = avoid.avoiding(torch.tensor([1]), 3)(Fixed(), rows)
    # Tokens 0 and 2 count, 1 is to be avoided: mean of −ln ½ and −ln ¼, and −ln(1 − ¼) everywhere.
    assert float(found) == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2 - np.log(0.75), rel=1e-6)


def test_circuits(tmp_path: Path) -> None:
    rows = results("circuits", tmp_path)["circuits.csv"]
    assert {row["ranking"] for row in rows} == {"frozen", "half", "order 1", "IG", "patching", "influence"}
    assert all(number(row["minus_frozen"]) == 0 for row in rows if row["ranking"] == "frozen")
    spectra = {row["attention sites"]: number(row["logit difference"]) for row in _read(tmp_path / "spectra.csv")}
    assert sum(value for label, value in spectra.items() if label != "all") == pytest.approx(spectra["all"], abs=1e-3)


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_rankings_of_circuits() -> None:
    """Against differences of the model's own output, with one component or all on their way to the other prompt."""
    pairs, tasks = importlib.import_module("pairs"), importlib.import_module("tasks")
    loaded = load("demo")
    graph = subject(loaded).graph
    (prompt,) = tasks.tasks(loaded.tokenizer, 0, 0, 1, seed=1)["induction"]
    pair = pairs.Pair(graph, "input_ids", prompt)
    order, alias, at = pair.gradient([1.0]), "L1.mlp", int(prompt.ids.shape[1]) - 1
    patched, site = pair.patched(), pair.sites.index(alias)
    clean = float(pair.read(pair.one.forward.output[0, -1]))

    def moved(share: float) -> float:
        value = pair.one.value(alias).clone()
        value[0, at] -= share * pair.change[alias][0, at]
        return clean - float(pair.read(pair.one.changed({alias: lambda _: value}).output[0, -1]))

    with torch.no_grad():
        assert float(patched[site, at]) == pytest.approx(moved(1.0), abs=1e-4)
        assert float(order[site, at]) == pytest.approx(moved(1e-2) / 1e-2, rel=0.05, abs=1e-2)
        kept = torch.zeros(2, *order.shape, dtype=torch.bool)
        kept[1] = True
        kept[0, site, at] = True
        one, every = pair.circuits(kept).tolist()
        run = graph.run(input_ids=prompt.ids)
        for other in pair.sites:
            value = pair.other.value(other).clone()
            if other == alias:
                value[0, at] = run.component(alias)[0, at]
            run.patch(other, value)
    assert every == pytest.approx(clean, abs=1e-4)
    assert one == pytest.approx(float(pair.read(run.output[0, -1])), abs=1e-4)
    # Slopes times what components add are the flows of the attribution graph.
    for rule in ("frozen", "half"):
        found = jg.attribute(graph, prompt.ids, target=(prompt.answer, prompt.wrong), rules=rule)
        stream = found.flows.stream
        added = {one.alias: value for one, value in zip(stream.components, stream.added, strict=True)}
        pair.change = {name: added[name] for name in pair.sites}
        flow = {(node.alias, node.position): node.flow for node in found.nodes}
        expected = [[flow[name, place] for place in range(at + 1)] for name in pair.sites]
        torch.testing.assert_close(pair.linear(rule).tolist(), expected, rtol=1e-3, atol=1e-3)


def test_estimate_of_a_ratio() -> None:
    estimate = importlib.import_module("experiment").estimate
    found = estimate([1.0, 0.0, 5.0], [2.0, 0.0, 2.0])
    assert found.mean == 1.5
    assert 0.5 <= found.low <= found.mean <= found.high <= 2.5
    assert np.isnan(estimate([0.0], [0.0]).mean)


def test_correlation_of_ranks() -> None:
    correlation = importlib.import_module("experiment").correlation
    generator = np.random.default_rng(0)
    one = generator.normal(size=300).round(1)
    other = one**3 + generator.normal(size=300)
    ranks = np.array(
        [[(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values] for values in (one, other)]
    )
    found = correlation(np.arange(300) // 3, one, other, seed=0)
    assert found.mean == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-12)
    assert found.low < found.mean < found.high
    assert correlation(np.arange(300), one, one**3, seed=0).mean == pytest.approx(1)


def test_counts_of_bigrams() -> None:
    counts = importlib.import_module("corpora").Counts(torch.tensor([0, 1, 0, 1, 2]), 3)
    assert counts.number(np.array([1, 3, 5, 0, 8])).tolist() == [2, 1, 1, 0, 0]
    assert counts.log_frequency(np.array([1]))[0] == pytest.approx(np.log(2.5 / 3.5))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ing", "suffix"),
        (" the", "word"),
        (" Returns", "capital"),
        ("),", "punctuation"),
        ("\n  ", "white space"),
        ("12", "digits"),
        ("x", None),
        ("a1", None),
        ("", None),
    ],
)
def test_classes_of_tokens(text: str, kind: str | None) -> None:
    assert importlib.import_module("components").token_class(text) == kind


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "?" in text.split("python ")[0].split("\n\n", 1)[1]
    for words in (f"python examples/reproduce/{name}.py", "paper", "--model", "--output", "--quick", "--seed"):
        assert words in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_scripts_are_short(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_results_are_small_and_named_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = [file for file in (FOLDER / "results").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == set(LARGEST)
    assert all(file.stat().st_size < LARGEST[file.suffix] for file in files)
    pictures = set(re.findall(r"\]\((results/[^)]+\.png)\)", text))
    assert pictures == {file.relative_to(FOLDER).as_posix() for file in files if file.suffix == ".png"}
