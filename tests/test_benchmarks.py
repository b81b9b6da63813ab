"""The benchmarks on a tiny model: that they run, that results are compared, and that what is missing is said."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import blocks, elsewhere, harness, llama, models, oracle, rivals, terms
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.elsewhere import Elsewhere
from benchmarks.harness import Benchmark, Case, Contestant, Row, Setting

SETTING = replace(Setting.small(), rounds=1, orders=(1, 2), memory=False)


@pytest.fixture(autouse=True)
def _nothing_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all other tests hold is not gone through for garbage before each run, as it is where times are measured."""
    idle = SimpleNamespace(collect=lambda: 0, freeze=lambda: None, unfreeze=lambda: None)
    monkeypatch.setattr(harness, "gc", idle)


def rows_of(name: str, setting: Setting = SETTING) -> list[Row]:
    return harness.run(BENCHMARKS[name], setting)


def by_name(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row.contestant.name == name]


def check(rows: list[Row], cases: list[str], floor: float | None = None) -> None:
    """Every case has a floor and jetgraph, both timed, and jetgraph agrees with the oracle."""
    assert list(dict.fromkeys(row.case for row in rows)) == cases
    for case in cases:
        group = [row for row in rows if row.case == case]
        assert group[0].contestant.role == "floor"
        assert sum(row.contestant.role == "jetgraph" for row in group) >= 1
        for row in group:
            if row.contestant.role == "jetgraph":
                assert row.right, f"{case}: error {row.error}"
            if row.contestant.role != "rival":
                assert row.median is not None
                assert row.median > 0
    text = harness.table(rows)
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert all(f"| {case} " in text for case in cases)


def missing_of(rows: list[Row], name: str) -> str:
    """Why a rival is missing, as the table says it too."""
    (why,) = {row.missing for row in by_name(rows, name)}
    assert f"- missing: {name}: {why}" in harness.table(rows)
    return why


# Benchmarks


def test_block_jets() -> None:
    rows = rows_of("jets")
    check(rows, ["order 1", "order 2"])
    assert all(row.right for row in by_name(rows, "torch.func.jvp, nested"))
    assert by_name(rows, "jetgraph, fuse=True")
    assert missing_of(rows, "jex") == "no checkout given (--jex PATH)"
    for name in ("jax.experimental.jet, jitted", "jax.jvp, nested and jitted"):
        if rivals.jax().module is None:
            assert "No module named 'jax'" in missing_of(rows, name)
        else:
            assert all(row.right for row in by_name(rows, name))


def test_precision() -> None:
    rows = rows_of("precision", replace(SETTING, orders=(2,)))
    dtypes = ("float32", "bfloat16", "float16")
    check(rows, [f"{dtype}, order {order}" for dtype in dtypes for order in (0, 2)])
    assert all(row.right for row in rows)
    worst = {dtype: max(row.error or 0.0 for row in rows if row.case.startswith(dtype)) for dtype in dtypes}
    assert worst["bfloat16"] > 4 * worst["float16"] > 100 * worst["float32"]


def test_algorithm() -> None:
    rows = rows_of("algorithm")
    check(rows, ["order 0", "order 1"])
    assert missing_of(rows, "jex")


def test_lens() -> None:
    rows = rows_of("lens")
    check(rows, ["order 0", "order 1", "order 2", "orders 0 to 2"])
    assert missing_of(rows, "jex")
    notes = [row.contestant.note for row in rows if row.contestant.role == "floor"]
    assert notes == ["forward, 2 decodes in one"] * 3 + ["forward, 6 decodes in one"]


def test_joint_lens() -> None:
    rows = rows_of("joint")
    check(rows, ["order 1"])
    assert missing_of(rows, "jex")


def test_bigrams() -> None:
    rows = rows_of("bigrams")
    check(rows, ["float32", 'screen="bf16"', "bfloat16"])
    errors = {row.case: row.error for row in by_name(rows, "jetgraph")}
    # Half precision shows, so the oracle does not go along with it.
    assert errors["bfloat16"] > 10 * errors["float32"]


def test_trace() -> None:
    rows = rows_of("trace")
    check(rows, ["gpt2"])
    assert all(row.peak is not None for row in rows)


def test_terms() -> None:
    rows = rows_of("terms")
    check(rows, ["order 0", "order 1"])
    assert "does not compile" in missing_of(rows, "jex")


def test_attribution() -> None:
    rows = rows_of("attribution")
    check(
        rows, ["graph", "components to all logits", "edges, first order", "graph, heads", "spectrum", "largest paths"]
    )
    assert "--transformer-lens" in missing_of(rows, "TransformerLens")
    assert by_name(rows, "EAP, plain autograd")[0].median
    assert by_name(rows, "circuit-tracer")[0].missing


def test_transport() -> None:
    rows = rows_of("transport")
    check(rows, ["one point", "last third"])
    assert by_name(rows, "torch.func.jacrev")[0].median


def test_interventions() -> None:
    rows = rows_of("interventions")
    check(rows, ["branches removed", "heads removed", "heads exchanged, straight to the logits"])
    assert len(by_name(rows, "hooks, one by one")) == 2


def test_llama() -> None:
    """Two of its cases: every one has a floor, and results that are held against the model are right."""
    problem = llama.Problem(SETTING)
    for case in (problem.replay(), problem.attribution_at_last()):
        floor, ours = harness.measure(case, SETTING)
        assert floor.contestant.role == "floor"
        assert ours.right
        assert "operators" in ours.contestant.note


def test_llama_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes and weights are the checkpoint's; another model, or another benchmark on it, is refused."""
    folder = tmp_path / "trained"
    other = replace(SETTING, layers=3, width=64, heads=2, vocabulary=97)
    models.llama(other).save_pretrained(folder)
    setting = models.of_checkpoint(replace(SETTING, checkpoint=str(folder)))
    assert (setting.layers, setting.width, setting.heads, setting.vocabulary) == (3, 64, 2, 97)
    problem = llama.Problem(setting)
    assert torch.equal(problem.forward(problem.ids), models.llama(other)(problem.ids).logits)
    floor, ours = harness.measure(problem.heads(), setting)
    assert floor.median
    assert ours.right
    heading = harness.section(BENCHMARKS["llama"], setting, []).splitlines()[0]
    assert heading.startswith("## llama: What people ask of a Llama, trained (quick")
    models.gpt2(SETTING).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(SystemExit, match=r"its model_type is 'gpt2', not 'llama'"):
        models.of_checkpoint(replace(SETTING, checkpoint=str(tmp_path / "gpt2")))
    with pytest.raises(SystemExit):
        main(["--quick", "--only", "jets", "--checkpoint", str(folder)])
    assert "only the benchmark llama runs on a trained model" in capsys.readouterr().err


def test_evaluations_are_counted_by_prefix_and_site() -> None:
    texts = ("embed > A^0 > B^0 > logits^0", "embed > A^0 > B^1 > logits^0", "embed > A^0 > B^1 > logits^1")
    paths = [jg.Path.parse(text) for text in texts]
    # A once; B once, for both orders; the decoder after B^0, and twice after B^1.
    assert terms.evaluations(paths) == [("A", 1), ("B", 2), ("logits", 1), ("logits", 2)]


# Oracle


def test_oracle_on_a_function_whose_coefficients_are_known() -> None:
    x = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    found = oracle.taylor(torch.log, x, torch.ones_like(x), 4)
    exact = torch.stack([x.log(), *((-1) ** (j + 1) / (j * x**j) for j in range(1, 5))])
    assert max(oracle.distance(*pair) for pair in zip(found, exact, strict=True)) < 1e-8


def test_oracle_refuses_what_it_cannot_tell() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="no better than"):
        oracle.taylor(torch.abs, x, torch.ones_like(x), 2)


def test_block_in_primitives_is_the_models_block() -> None:
    block: Any = models.gpt2(SETTING).transformer.h[0]
    x = torch.randn(2, 6, SETTING.width)
    mask = torch.from_numpy(blocks.causal(6))
    with torch.no_grad():
        found = blocks.apply(x, blocks.weights(block), mask, SETTING.heads, torch)
        expected = block(x)
    torch.testing.assert_close(found, expected if isinstance(expected, Tensor) else expected[0], rtol=1e-5, atol=1e-5)


# Harness


def case_of(calls: list[str], **results: float) -> Case:
    """Contestants that return a number, of which 1 is right, and write down that they were called."""

    def work(name: str, result: float) -> float:
        calls.append(name)
        if math.isnan(result):
            raise NotImplementedError("aten.mean.dim has no rule")
        return result

    contestants = [
        Contestant(
            name,
            "floor" if name == "floor" else "rival" if "rival" in name else "jetgraph",
            lambda name=name, result=result: work(name, result),
            lambda found: abs(found - 1),
        )
        for name, result in results.items()
    ]
    return Case("case", contestants)


def test_rounds_alternate_and_wrong_results_show() -> None:
    calls: list[str] = []
    case = case_of(calls, floor=1.0, jetgraph=1.0, rival=1.1)
    rows = harness.measure(case, replace(SETTING, rounds=3))
    # One round to warm up, then three, always in the same order.
    assert calls == ["floor", "jetgraph", "rival"] * 4
    assert [row.right for row in rows] == [True, True, False]
    assert [line.split("|")[-2].strip() for line in harness.table(rows).splitlines()[2:]] == ["yes", "yes", "NO"]


def test_long_works_need_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LONG", 0.0)
    monkeypatch.setattr(harness, "VERY_LONG", 0.0)
    calls: list[str] = []
    rows = harness.measure(case_of(calls, floor=1.0, rival=1.0), replace(SETTING, rounds=5))
    assert [len(row.seconds) for row in rows] == [5, 3]
    assert calls == [*["floor", "rival"] * 3, "floor", "floor"]
    assert all(row.peak is not None for row in rows)


def test_a_rival_that_fails_is_reported_and_jetgraph_must_not() -> None:
    calls: list[str] = []
    rows = harness.measure(case_of(calls, floor=1.0, rival=math.nan), SETTING)
    assert calls == ["floor", "rival", "floor"]
    assert missing_of(rows, "rival") == "NotImplementedError: aten.mean.dim has no rule"
    with pytest.raises(NotImplementedError):
        harness.measure(case_of([], floor=1.0, jetgraph=math.nan), SETTING)


def test_numbers_of_a_row() -> None:
    whole = Contestant("one", "floor", lambda: None)
    row = Row("case", whole, [4.0, 1.0, 2.0, 3.0, 5.0])
    assert (row.median, row.quartiles) == (3.0, (2.0, 4.0))
    part = Row("case", replace(whole, share=0.25), [1.0, 2.0, 3.0])
    assert (part.median, part.quartiles) == (8.0, (6.0, 10.0))
    ours = Row("case", replace(whole, name="jetgraph", role="jetgraph"), [6.0])
    cells = harness.table([row, ours]).splitlines()[3].split("|")
    assert [cell.strip() for cell in cells[3:9]] == ["6.00 s", "6.00 s … 6.00 s", "1", "2.00", "1.00", "–"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process reset its peak")
def test_peak_counts_what_was_held_and_dropped() -> None:
    for _ in range(2):
        with harness.Peak("cpu") as peak:
            block = torch.ones(2**25)
            del block
        assert 0.9 * 2**27 < peak.bytes < 1.3 * 2**27


def test_a_child_measures_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(*arguments: str) -> dict[str, float]:
        asked.append(arguments)
        return {"case": 2.0**21}

    monkeypatch.setattr(harness, "child", answer)
    benchmark = Benchmark("name", "title", "text", lambda _: [case_of([], floor=1.0, jetgraph=1.0, rival=math.nan)])
    rows = harness.run(benchmark, replace(SETTING, memory=True))
    assert {call[:4] for call in asked} == {("--peak", "name", who, "case") for who in ("floor", "jetgraph")}
    assert [row.peak for row in rows] == [2.0**21, 2.0**21, None]
    assert Setting.read(asked[0][-1]) == replace(SETTING, memory=True)
    assert harness.table(rows).count(" 2 MiB ") == 2
    assert set(harness.peaks(benchmark, SETTING, "jetgraph", ["case"])) == {"case"}
    assert harness.peaks(benchmark, SETTING, "jetgraph", ["other"]) == {}


def test_rivals_from_folders(tmp_path: Path) -> None:
    gone = rivals.jex(replace(SETTING, jex=str(tmp_path)))
    assert gone.module is None
    assert gone.why == "src is no folder"


# Command line and report


def test_a_rival_in_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what to do and answers with times and values; where it stops, its row says so."""
    script = tmp_path / "rival.py"
    script.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['work'] == 'fails':\n"
        "        sys.exit(3)\n"
        "    found = {'seconds': 2.5, 'peak': 7, 'values': sum(asked['ids'][0]) + len(sys.argv)}\n"
        "    print(json.dumps(found), flush=True)\n"
    )
    monkeypatch.setattr(elsewhere, "SCRIPT", script)
    setting, ids = replace(SETTING, transformer_lens=sys.executable), torch.tensor([[3, 4]])
    rival = Elsewhere(setting, models.gpt2(setting))
    floor = Contestant("floor", "floor", lambda: None)
    good, bad = (rival.contestant(work, ids, ids, lambda found: found - 10.0, "a note") for work in ("works", "fails"))
    row = harness.measure(Case("works", [floor, good]), setting)[1]
    assert (row.median, row.peak, row.error) == (2.5, 7, 0.0)
    row = harness.measure(Case("fails", [floor, bad]), setting)[1]
    assert row.missing == "RuntimeError: TransformerLens has stopped with exit status 3"
    on_device = Elsewhere(replace(setting, device="cuda"), None).contestant("works", ids, ids, float, "")
    assert on_device.missing == "compared on a CPU alone"


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "RESULTS.md"
    harness.write(file, ["## a\n\nold\n", "## b\n\nkept\n"])
    harness.write(file, ["## a\n\nother\n"])
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--only", "joint", "--no-memory", "--rounds", "1", "--threads", "1", "--write", str(file)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# What jetgraph costs")
    assert "## a\n\nother\n\n## b\n\nkept\n" in text
    assert printed.strip() in text
    assert f"torch {torch.__version__}" in printed
    # The same heading is replaced.
    harness.write(file, [f"{printed.splitlines()[0]}\n\nnew\n"])
    assert printed.strip() not in file.read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8").count("## ") == 3


def test_the_benchmarks_have_names_and_texts() -> None:
    names = [
        "overhead",
        "jets",
        "precision",
        "algorithm",
        "lens",
        "joint",
        "bigrams",
        "trace",
        "terms",
        "attribution",
        "transport",
        "interventions",
        "llama",
    ]
    assert list(BENCHMARKS) == names
    assert all("loor" in benchmark.text and benchmark.title for benchmark in BENCHMARKS.values())
