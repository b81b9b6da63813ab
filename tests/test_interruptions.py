"""Ctrl-C leaves everything usable: what was stopped in the middle is done again, with the same result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jetgraph as jg
from jetgraph import cli
from tests.commands import invoke
from tests.test_bad_input import Model

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
WORK: dict[str, Callable[[Any], Any]] = {
    "lens": lambda graph: jg.lens(graph, IDS, order=1).columns(),
    "compile": lambda graph: jg.compile(jg.expand(graph, 1))(input_ids=IDS).remainder,
    "attribute": lambda graph: jg.attribute(graph, IDS[:1], target=1).columns(),
    "rank": lambda graph: jg.rank(graph, IDS[:1], target=1, top=2).columns(),
    "ablate": lambda graph: jg.ablate(graph, None, IDS, target=1).columns(),
    "patch": lambda graph: jg.patch(graph, IDS, IDS + 1, target=1, screen=2).columns(),
    "ngrams": lambda graph: jg.ngrams(graph, top=3).columns(),
    "diff": lambda graph: jg.diff(graph, graph, top=3).paths.columns(),
    "jet": lambda graph: jg.jet(torch.nn.LayerNorm(3), IDS.float(), torch.ones(2, 3), 2),
}


class Interrupted(TorchDispatchMode):
    """Ctrl-C at an operator; before, they are counted."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at, self.number = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        if self.number == self.at:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def graph() -> jg.ResidualGraph:
    torch.manual_seed(0)
    return jg.trace(Model().eval(), input_ids=IDS)


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else repr(one) == repr(other)


@pytest.mark.parametrize("name", list(WORK))
def test_a_call_that_is_stopped_anywhere_is_made_again(name: str, graph: jg.ResidualGraph) -> None:
    expected = WORK[name](graph)
    with Interrupted() as counted:
        WORK[name](graph)
    assert counted.number > 8
    for share in (0.1, 0.4, 0.7, 0.95):
        with pytest.raises(KeyboardInterrupt), Interrupted(1 + int(share * counted.number)):
            WORK[name](graph)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert same(WORK[name](graph), expected)


def test_a_trace_that_is_stopped_leaves_the_model_and_the_process_as_they_were() -> None:
    model = Model().eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with Interrupted() as counted:
        expected = jg.trace(model, input_ids=IDS)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(KeyboardInterrupt), Interrupted(1 + int(share * counted.number)):
            jg.trace(model, input_ids=IDS)
        assert torch.is_grad_enabled()
        assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert repr(jg.trace(model, input_ids=IDS)) == repr(expected)


def test_a_command_that_is_stopped_says_one_line_and_writes_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("old\n")

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    for where in ("jetgraph.attention_patterns", "os.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(where, interrupted)
            result = invoke("patterns", "demo", "Raise", "-o", "a.csv")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "interrupted: no output was written"
        assert "Traceback" not in result.stderr
        assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]
        assert (tmp_path / "a.csv").read_text() == "old\n"


def test_a_command_that_is_stopped_before_it_has_begun_says_one_line() -> None:
    code = """
import sys
class Stopping:
    def find_spec(self, name, *rest):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stopping())
import jetgraph.cli
"""
    stopped = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted: no output was written\n")
    # While typer makes its commands, which takes the next half of a second.
    stop = mock.patch("typer.main.get_command", side_effect=KeyboardInterrupt)
    with mock.patch("gc.set_threshold"), stop, pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
