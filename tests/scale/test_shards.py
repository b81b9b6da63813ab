"""Jobs in shards: joined in any order and grouping, they give what the undivided job gives, to the last bit."""

import ast
import contextlib
import copy
import importlib.util
import json
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Self

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

import jetgraph as jg
from jetgraph.applications.ngrams.contexts import chunks_of
from jetgraph.export import waiting
from jetgraph.scale import shards, states
from jetgraph.scale.shards import each
from jetgraph.scale.states import ADDED, State, digest_of_files
from tests.commands import invoke, succeed

TEXT = "The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst. " * 12


def changed(graph: jg.ResidualGraph) -> jg.ResidualGraph:
    other = copy.deepcopy(graph)
    with torch.no_grad():
        for number, tensor in enumerate(other.traced.tensors.values()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.01 * (number % 3))
    return other


PROMPTS = ["Raise Value", "the quick brown", "return a list of", "if the value"]

JOBS: Mapping[str, Callable[[jg.ResidualGraph, Any], Any]] = {
    "ngrams": lambda graph, words: jg.ngrams(graph, "embed > L0.mlp > logits", top=20, memory=2**20, tokenizer=words),
    "pmi": lambda graph, words: jg.ngrams(graph, scores="pmi", top=9, memory=2**20, tokenizer=words),
    "by row": lambda graph, words: jg.ngrams(graph, per="row", top=2, memory=2**20, tokenizer=words),
    "mass": lambda graph, words: jg.ngram_mass(graph, ["the", "dog"], memory=2**20, tokenizer=words),
    "agreement": lambda graph, words: jg.ngram_agreement(
        graph, [TEXT], path=["embed > logits", "embed > L1.mlp > logits"], minimum=5, resamples=9, tokenizer=words
    ),
    "diff": lambda graph, words: jg.diff(graph, changed(graph), contexts=300, top=9, memory=2**20, tokenizer=words),
    "trajectory": lambda graph, words: jg.trajectory(
        [changed(graph), changed(changed(graph)), graph], top=50, contexts=300, keywords=["the"], tokenizer=words
    ),
    **{
        f"survey of {kind}": lambda graph, words, kind=kind: jg.survey(
            graph, PROMPTS, of=kind, split="heads", resamples=9, tokenizer=words
        )
        for kind in ("attributions", "ablations")
    },
    "lenses": lambda graph, words: jg.evaluate_lens(
        graph,
        [TEXT],
        orders=[0, 1],
        tokens=150,
        window=32,
        batch=1,
        skip_first=2,
        layers=[0, -1],
        resamples=9,
        tokenizer=words,
    ),
    "transport": lambda graph, words: jg.fit_transport(
        graph, [TEXT], layers=[-2, -1], tokens=64, window=16, batch=1, tokenizer=words
    ),
}


def facts(result: Any) -> str:
    if isinstance(result, jg.Transport):
        return str([result.count, *(total.tolist() for total in result.sums.values())])
    parts = [result, *(getattr(result, name) for name in ("paths", "sites") if hasattr(result, "sites"))]
    return str([part.columns() for part in parts])


@pytest.mark.parametrize("name", JOBS)
def test_joined_shards_give_the_whole(name: str, demo: tuple[jg.ResidualGraph, Any], tmp_path: pathlib.Path) -> None:
    files = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for index, file in enumerate(files):
        with jg.sharded(file, (index, 3)) as job:
            JOBS[name](*demo)
        assert not job.finished
        assert len(job.state.records) > 0
    few = jg.merge([files[2], files[0]]).save(tmp_path / "few.safetensors")
    whole = jg.merge([few, files[1]]).save(tmp_path / "whole.safetensors")
    if name == "transport":
        with pytest.raises(jg.InputError, match="of which sums over all units are kept"):
            jg.merge([few, jg.merge(files[:2]).save(tmp_path / "others.safetensors")])
        assert jg.merge([few, files[0]]).sums.keys() == jg.merge([files[0], few]).sums.keys()
    before = whole.read_bytes()
    with jg.sharded(whole) as job:
        found = JOBS[name](*demo)
    assert job.finished
    assert whole.read_bytes() == before
    assert facts(found) == facts(JOBS[name](*demo))


class Bar:
    """How far a bar has come, each time that it is moved."""

    def __init__(self, *, total: int, unit: str, desc: str) -> None:
        self.n, self.total, self.unit = 0, total, unit
        self.seen: list[int] = []

    def update(self, number: int) -> None:
        self.n += number
        self.seen.append(self.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None: ...


def test_units_are_told_as_what_they_are(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(shards, "progress", lambda **given: told.append(given["unit"]) or Bar(**given))
    contexts = chunks_of(300, 1000)
    with jg.sharded(tmp_path / "one.safetensors", (0, 2)) as job:
        each("n-grams", 4, lambda unit: {}, lambda: {"model": "a"}, of=contexts)()
    assert "holds 2 of 4 units (n-grams: chunks of 300 contexts)" in job.told
    with jg.estimated(1) as estimate:
        each("n-grams", 4, lambda unit: {}, dict, of=contexts)
    assert "4 chunks of 300 contexts" in repr(estimate)
    each("n-grams", 4, lambda unit: {}, dict, of=contexts)
    assert told == [contexts, contexts]


def test_every_application_says_what_its_units_are() -> None:
    """A glance is before it in order."""
    root = pathlib.Path(jg.__file__).parent / "applications"
    calls = [
        call
        for file in root.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "each"
    ]
    assert len(calls) >= 9
    assert all(len(call.args) > 5 or "of" in {one.arg for one in call.keywords} for call in calls)


LONG: Mapping[str, tuple[Callable[[jg.ResidualGraph, Any], Any], str, int]] = {
    # 9 points and 7 windows; 7 windows and 80 features.
    "lenses": (
        lambda graph, words: jg.evaluate_lens(
            graph, [TEXT], tokens=240, window=40, orders=(0, 1), batch=4, memory=2**22, resamples=9, tokenizer=words
        ),
        "points × windows",
        9 * 7,
    ),
    "jacobians": (
        lambda graph, words: jg.fit_transport(graph, [TEXT], tokens=240, window=40, batch=4, tokenizer=words),
        "rows",
        7 * 80,
    ),
}


@pytest.mark.parametrize("job", LONG)
@pytest.mark.parametrize("divided", [False, True])
def test_a_bar_moves_within_a_unit_that_takes_long(
    job: str, divided: bool, demo: tuple[jg.ResidualGraph, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """By what people know, all of which it has counted at the end: nothing is left to be made up for."""
    bars: list[Bar] = []
    monkeypatch.setattr(shards, "progress", lambda **options: bars.append(Bar(**options)) or bars[-1])
    call, unit, total = LONG[job]
    with jg.sharded(tmp_path / "state.safetensors") if divided else contextlib.nullcontext():
        call(*demo)
    bar = bars[0]
    assert (bar.unit, bar.total, bar.n) == (unit, total, total)
    steps = [late - soon for soon, late in pairwise([0, *bar.seen])]
    # Each unit ends by a step of none: what it has told is all that it is made of.
    assert len(steps) > 3
    assert steps[-1] == 0
    assert min(steps) >= 0


def test_a_killed_job_goes_on_and_states_of_other_jobs_are_refused(tmp_path: pathlib.Path) -> None:
    done: list[int] = []

    def work(unit: int) -> dict[str, torch.Tensor]:
        if unit == 3 and len(done) < 4:
            raise KeyboardInterrupt
        done.append(unit)
        return {} if unit == 1 else {"x": torch.full((2,), float(unit))}

    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt), jg.sharded(file):
        each("units", 6, work, lambda: {"model": "a"})
    done.append(-1)
    with jg.sharded(file):
        records = each("units", 6, work, lambda: {"model": "a"})()
    assert done == [0, 1, 2, -1, 3, 4, 5]
    assert [record.get("x", torch.zeros(1))[0].item() for record in records] == [0, 0, 2, 3, 4, 5]
    with pytest.raises(jg.InputError, match="is of another job: model \\(a there, b here\\)"), jg.sharded(file):
        each("units", 6, work, lambda: {"model": "b"})
    other = State({**State.load(file).identity}, {"units": 6}, {("units", 2): {"x": torch.zeros(2)}})
    with pytest.raises(jg.InputError, match="unit 2 of 'units', and not the same"):
        State.load(file).merge(other)
    save_file(load_file(file), tmp_path / "other.safetensors")
    with pytest.raises(jg.FileError, match="is no state of a job"):
        jg.merge([tmp_path / "other.safetensors"])
    with pytest.raises(jg.InputError, match="one of n, counted from 0"), jg.sharded(file, (2, 2)):
        pass
    for totals, records, reason in (
        ({"units": 2}, {("units", 2): {}}, "which has 2"),
        ({"units": "6"}, {}, "'6' units"),
    ):
        State({}, totals, records).save(tmp_path / "other.safetensors")
        with pytest.raises(jg.FileError, match=reason):
            jg.merge(tmp_path / "other.safetensors")
    with pytest.raises(jg.InputError, match="there is no state to join"):
        jg.merge([])


def test_two_jobs_do_not_write_over_each_other(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "state.safetensors"

    def work(unit: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(float(unit))}

    def other(unit: int) -> dict[str, torch.Tensor]:
        if unit == 1:
            with sharded_in(file, (0, 2)):
                each("units", 4, work, lambda: {"model": "a"})
        return work(unit)

    sharded_in = jg.sharded
    with pytest.raises(jg.StateError, match="another job has written to"), jg.sharded(file, (1, 2)):
        each("units", 4, other, lambda: {"model": "a"})
    assert {unit for _, unit in State.load(file).records} == {0, 2}
    with jg.sharded(file, (1, 2)) as job:
        each("units", 4, work, lambda: {"model": "a"})()
    assert job.finished
    assert len(State.load(file).records) == 4


def test_states_that_do_not_fit_are_told_apart(tmp_path: pathlib.Path) -> None:
    def state(total: int, value: int) -> State:
        made = State({"options": "a" * 100 + str(value)}, {"units": total})
        made.take("units", 0, {f"{ADDED}x": torch.tensor(value)})
        return made

    most = torch.tensor([1, 2**63 - 1])
    full = State({}, {"units": 3}, {}, {("units", f"{ADDED}x"): most})
    with pytest.raises(jg.StateError, match=r"added/x of 'units' is larger than torch.int64 holds"):
        full.take("units", 1, {f"{ADDED}x": torch.tensor([1, 1])})
    with pytest.raises(jg.InputError, match="has 3 units there, and 2 in the others"):
        state(2, 1).merge(state(3, 1))
    other = state(2, 2)
    with pytest.raises(jg.InputError, match=r"options \(…a+2 there, …a+1 here\)"):
        state(2, 1).merge(other)
    with pytest.raises(jg.InputError, match="hold the same units of 'units', and not the same sums"):
        state(2, 2).merge(State(other.identity, other.totals, other.records, {("units", f"{ADDED}x"): torch.tensor(5)}))
    file = State({}, {"units": 2}, {}, dict(other.sums)).save(tmp_path / "sums.safetensors")
    with pytest.raises(jg.FileError, match="holds the sum 'added/x' of 'units', and none of its units"):
        jg.merge(file)
    for facts, reason in ((None, "tensors of something else"), ({"jetgraph": "1"}, "something else")):
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata=facts)
        with pytest.raises(jg.FileError, match=reason):
            jg.merge(tmp_path / "other.safetensors")
    save_file({"a/b": torch.zeros(1)}, file, metadata={"jetgraph": "1", "empty": "", "job": "", "totals": ""})
    with pytest.raises(jg.FileError, match="it is of version 1, and this is version"):
        jg.merge(file)


class Backwards:
    """A tokenizer that writes ids from the last to the first."""

    def __init__(self, words: Any) -> None:
        self._words = words

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": self._words(text, **options)["input_ids"][::-1]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._words, name)

    def __len__(self) -> int:
        return len(self._words)


def test_a_job_is_of_all_that_is_read(demo: tuple[jg.ResidualGraph, Any], tmp_path: pathlib.Path) -> None:
    """Of each checkpoint, in memory, in a folder or by name, and of the ids that a tokenizer writes."""
    graph, words = demo
    folders = [jg.save(one, tmp_path / name) for one, name in ((changed(graph), "one"), (graph, "two"))]
    before = digest_of_files(folders[0])
    assert before == digest_of_files(folders[0]) != digest_of_files(folders[1])

    def follow(first: Any) -> Any:
        return jg.trajectory([first, graph], names=[1, 2], top=9, contexts=30, tokenizer=words)

    def survey(words: Any) -> Any:
        return jg.survey(graph, PROMPTS[:2], resamples=2, tokenizer=words)

    runs: list[tuple[Callable[[Any], Any], list[Any]]] = [
        (follow, [folders[0], folders[1], "demo", "demo:llama", graph, changed(graph), jg.load_model("demo").model]),
        (survey, [words, Backwards(words)]),
    ]
    for number, (run, given) in enumerate(runs):
        for one, other in pairwise(given):
            file = tmp_path / f"{number}.safetensors"
            file.unlink(missing_ok=True)
            with jg.sharded(file, (0, 3)):
                run(one)
            with pytest.raises(jg.InputError, match="is of another job"), jg.sharded(file, (1, 3)):
                run(other)


@pytest.mark.parametrize("name", ["agreement", "diff"])
def test_a_job_is_of_all_weights_that_it_reads(
    name: str, demo: tuple[jg.ResidualGraph, Any], tmp_path: pathlib.Path
) -> None:
    """Not of those alone along the first of its paths."""
    graph, words = demo
    file = tmp_path / "state.safetensors"
    with jg.sharded(file, (0, 2)):
        JOBS[name](graph, words)
    other = copy.deepcopy(graph)
    with torch.no_grad():
        next(weight for key, weight in other.traced.tensors.items() if "1.mlp" in key).mul_(1.5)
    with pytest.raises(jg.InputError, match="is of another job: model"), jg.sharded(file, (1, 2)):
        JOBS[name](other, words)


def test_tasks_of_an_array_with_steps(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a state of its own, but for one that is whole, which is the result wherever it is asked for."""
    for name, value in (("ID", 7), ("MIN", 3), ("STEP", 2), ("COUNT", 4)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    file = tmp_path / "state.safetensors"
    for records in ({}, {("units", 0): {}}, {("units", 0): {}, ("units", 1): {}}):
        with jg.sharded(file) as job:
            assert (job.shard, job.file.name) == ((2, 4), "state-2-of-4.safetensors")
        State({}, {"units": 2} if records else {}, records).save(file)
    with jg.sharded(file) as job:
        assert (job.shard, job.file) == ((0, 1), file)


@pytest.mark.parametrize(("kind", "at"), [("safetensors", "head"), ("parquet", "head"), ("parquet", "part")])
def test_what_a_killed_job_leaves_goes_with_the_next_one(kind: str, at: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / f"ä run.{kind}"

    def killed(what: Any, path: pathlib.Path, **options: object) -> None:
        # safetensors writes under a name of its own first.
        path.with_name(".tmpAbCdEf" if at == "head" else path.name).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        if at == "head":
            states.save_file = killed  # type: ignore[assignment]
        pyarrow.parquet.write_table = killed
        with jg.sharded(file):
            each("units", 2, lambda unit: {"x": torch.ones(1)}, dict)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = [path for path in tmp_path.rglob("*") if re.search(r"\.[0-9a-f]{12}\.", path.name)]
    assert left
    mine = tmp_path / ".other.0123456789ab.safetensors"
    mine.touch()
    for path in (*left, *(inner for one in left if one.is_dir() for inner in one.iterdir()), mine):
        os.utime(path, (0, 0))
    with jg.sharded(file):
        assert not any(path.exists() for path in left)
        assert each("units", 2, lambda unit: {"x": torch.ones(1)}, dict)()[1]["x"] == 1
    assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, file.name]


def test_commands_do_a_shard_and_join_states(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("ngrams", "demo", "--top", "3", "--memory", "1M")
    one, whole = tmp_path / "state.safetensors", tmp_path / "whole.safetensors"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    # Stdout is for results, of which there is none yet.
    for shard, more in ((1, ()), (0, ("--shard", "0/2", "--json"))):
        part = invoke(*command, "--state", one, *more)
        assert (part.exit_code, part.stdout) == (0, "")
        assert f"shard {shard}/2 is done" in part.stderr
    states = sorted(tmp_path.glob("*.safetensors"))
    assert [state.name for state in states] == ["state-1-of-2.safetensors", "state.safetensors"]
    assert "0 are" not in (told := succeed("merge", *states, "-o", whole))
    assert "give it to the same command" in told
    facts = json.loads(succeed("merge", *states, "-o", whole, "--json"))
    assert (facts["file"], facts["lacking"]) == (str(whole), 0)
    assert facts["done"] > 0
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert succeed(*command, "--state", whole) == succeed(*command)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:2]), encoding="utf-8")
    assert "means over 2 prompts" in succeed("survey", "demo", prompts, "--of", "ablations", "--target", "#7")
    assert "go with --engine ray" in invoke(*command, "--workers", "2").stderr
    if importlib.util.find_spec("ray") is None:
        assert "needs Ray: pip install" in invoke(*command, "--engine", "ray").stderr
    assert "--shard keeps what it gives in a state" in invoke(*command, "--shard", "0/2").stderr
    assert "differ" in invoke(*command[:-1], "2M", "--state", whole).stderr
    for option in ("--state", "--shard", "--engine", "--address", "--workers"):
        assert f"leave {option} out" in invoke("estimate", *command, f"{option}=1").stderr

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jetgraph.ngrams", interrupted)
    for state, told in ((whole, f"the same command goes on from {whole}"), (tmp_path / "no.safetensors", "no output")):
        stopped = invoke(*command, "--state", state)
        assert stopped.exit_code == 130
        assert f"interrupted: {told}" in stopped.stderr


def test_an_interrupt_amid_a_record_leaves_no_half_of_it() -> None:
    """What is left would be saved, and taken for a unit that is done."""

    class Interrupted(dict[str, torch.Tensor]):
        def items(self) -> Any:
            yield "added/n", torch.tensor(1)
            yield "x", torch.tensor(2)
            raise KeyboardInterrupt

    state = State(totals={"units": 1})
    with pytest.raises(KeyboardInterrupt):
        state.take("units", 0, Interrupted())
    assert (state.records, state.sums) == ({}, {})
    state.take("units", 0, {"added/n": torch.tensor(1), "x": torch.tensor(2)})
    assert state.all_of("units") == [{"added/n": 1, "x": 2}]


@pytest.mark.parametrize("divided", [False, True])
def test_a_job_tells_a_log_how_far_it_has_come(
    divided: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line from time to time where stderr is a file, as that of a task on a cluster."""
    monkeypatch.setattr(waiting, "EVERY", 0.01)

    def work(unit: int) -> Mapping[str, torch.Tensor]:
        time.sleep(0.03)
        return {"x": torch.tensor([unit])}

    if divided:
        with jg.sharded(tmp_path / "one.safetensors", (0, 2)):
            each("squares", 6, work, lambda: {"model": "a"})
    else:
        each("squares", 6, work, lambda: {"model": "a"})()
    assert re.search(rf"squares: [1-6] of {3 if divided else 6} units, 0 s", capsys.readouterr().err)
