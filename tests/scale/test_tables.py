"""Records as tables of parquet: every type to the last bit, added as they come, never half of them."""

import math
import pathlib
import types
from typing import Any

import pandas
import pytest
import torch

import jetgraph as jg
from jetgraph.scale import shards
from jetgraph.scale.shards import each
from jetgraph.scale.states import State
from jetgraph.scale.tables import read_records, write_records
from tests.scale.test_shards import JOBS, facts


def test_records_are_read_as_they_were_written(tmp_path: pathlib.Path) -> None:
    numbers = torch.tensor([0.1, -0.0, float("inf"), float("nan"), -3e38])
    floats = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    records = {
        ("a > b", 0): {str(kind): numbers.to(kind) for kind in floats},
        ("a > b", 12): {str(kind): torch.tensor([[0, 1], [100, 7]]).to(kind) for kind in whole},
        ("a > b", 3): {},
        ("c", 0): {"empty": torch.empty(0, 4), "one": torch.tensor(2**60 + 1), "cut": numbers.expand(2, 5)[:, 1:3]},
    }  # fmt: skip
    write_records(records, tmp_path / "a.parquet")
    found = read_records(tmp_path / "a.parquet")
    assert found.keys() == records.keys()
    for key, record in records.items():
        assert found[key].keys() == record.keys()
        for name, tensor in record.items():
            assert (found[key][name].dtype, found[key][name].shape) == (tensor.dtype, tensor.shape)
            assert found[key][name].tolist().__repr__() == tensor.tolist().__repr__()
    table = pandas.read_parquet(tmp_path / "a.parquet")
    assert table.set_index("name").loc["cut", "floats"].tolist() == [0.0, math.inf, 0.0, math.inf]


def test_parts_are_added_as_units_are_done(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(shards, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    state, seen = tmp_path / "run.parquet", list[list[int]]()

    def work(unit: int) -> dict[str, torch.Tensor]:
        clock[0] += 2 * shards.EVERY
        seen.append([] if unit == 0 else pandas.read_parquet(state)["unit"].tolist())
        if unit == 5 and len(seen) == 6:
            # A part that no head names yet is no part.
            (state / "part-00009-0.parquet").write_bytes((next(state.glob("part-*"))).read_bytes()[:-9])
            raise KeyboardInterrupt
        return {"x": torch.tensor(float(unit)), "added/n": torch.tensor(1)}

    with pytest.raises(KeyboardInterrupt), jg.sharded(state):
        each("units", 8, work, dict)
    assert seen == [list(range(unit)) for unit in range(6)]
    assert sorted(unit for _, unit in State.load(state).records) == [0, 1, 2, 3, 4]
    with jg.sharded(state):
        records = each("units", 8, work, dict)()
    assert [record["x"].item() for record in records] == list(range(8))
    assert records[0]["added/n"].item() == 8
    assert len(seen) == 9
    assert sorted(pandas.read_parquet(state)["unit"]) == list(range(8))


def test_states_in_parquet_join_and_give_the_result(demo: tuple[jg.ResidualGraph, Any], tmp_path: pathlib.Path) -> None:
    states = [tmp_path / "0.parquet", tmp_path / "1.safetensors", tmp_path / "all.parquet"]
    for index, state in enumerate(states[:2]):
        with jg.sharded(state, (index, 2)):
            JOBS["lenses"](*demo)
    assert jg.merge(states[:2]).save(states[2]) == jg.merge(states[:2]).save(states[2])
    assert len(list(states[2].iterdir())) == 2
    with jg.sharded(states[2]) as job:
        found = JOBS["lenses"](*demo)
    assert job.finished
    assert facts(found) == facts(JOBS["lenses"](*demo))
    (tmp_path / "mine.parquet").mkdir()
    (tmp_path / "mine.parquet" / "part-0.parquet").touch()
    next(states[2].glob("part-*")).write_bytes(b"PAR1")
    for message, path in (("it is a folder, and no state", "mine.parquet"), ("is no state of a job", "all.parquet")):
        with pytest.raises(jg.FileError, match=message), jg.sharded(tmp_path / path):
            pass
