"""Files: whatever is saved comes back the same, and damage is told in words."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

import jetgraph as jg
from tests import zoo
from tests.conftest import Example


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_a_graph_survives_its_files(case: zoo.Case, traced: Callable[..., Example], tmp_path: pathlib.Path) -> None:
    example = traced(case)
    loaded = jg.load(jg.save(example.graph, tmp_path / "graph"))
    assert isinstance(loaded, jg.ResidualGraph)
    assert loaded.outline == example.graph.outline
    assert [repr(join) for join in loaded.joins] == [repr(join) for join in example.graph.joins]
    with torch.no_grad():
        assert torch.equal(loaded(**example.inputs), example.graph(**example.inputs))


RULES = {
    "exhaustive": {"recipe": "exhaustive", "order": 1},
    "mixed": {
        "recipe": "exhaustive",
        "order": 2,
        "rules": {
            "*.attn": jg.Freeze(("norm", "attention")),
            "L1.mlp": jg.Atom(),
            "L0.mlp": jg.Jet(1, weights={"pos": 3}),
        },
    },
    "lens": {"recipe": "lens", "order": 1, "layers": [0, 2]},
    "path": {"recipe": "path"},
}


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_compiled_paths_survive_their_files(
    options: dict, traced: Callable[..., Example], tmp_path: pathlib.Path
) -> None:
    example = traced(zoo.case("gpt2"))
    module = jg.compile(jg.expand(example.graph, **options))
    loaded = jg.load(jg.save(module, tmp_path / "paths"))
    assert isinstance(loaded, jg.PathModule)
    assert loaded.paths == module.paths
    assert loaded.expansion.rules == module.expansion.rules
    with torch.no_grad():
        before, after = module(**example.inputs), loaded(**example.inputs)
        assert all(torch.equal(before.terms[path], after.terms[path]) for path in module.paths)
        assert torch.equal(before.remainder, after.remainder)


def test_state_dict_goes_from_one_module_to_another(traced: Callable[..., Example]) -> None:
    example = traced(zoo.case("gpt2"))
    expansion = jg.expand(example.graph, order=0)
    module, other = (jg.compile(expansion, "embed > L0.mlp > logits") for _ in range(2))
    other.to(torch.float64).to(torch.float32)  # its own copy of the weights
    doubled = {name: 2 * tensor for name, tensor in module.state_dict().items()}
    other.load_state_dict(doubled)
    (term,) = other(**example.inputs).terms.values()
    (model_term,) = module(**example.inputs).terms.values()
    assert not torch.allclose(term, model_term)
    other.load_state_dict(module.state_dict())
    (term,) = other(**example.inputs).terms.values()
    assert torch.equal(term, model_term)


def test_the_files_are_json_and_safetensors(traced: Callable[..., Example], tmp_path: pathlib.Path) -> None:
    example = traced(zoo.case("gpt2"))
    folder = jg.save(jg.compile(jg.expand(example.graph, order=0), "embed > logits"), tmp_path / "new" / "folder")
    assert sorted(file.name for file in folder.iterdir()) == ["graph.json", "paths.json", "weights.safetensors"]
    assert json.loads((folder / "paths.json").read_text())["paths"] == ["embed > logits^0"]
    weights = load_file(folder / "weights.safetensors")
    assert torch.equal(weights["transformer.wpe.weight"], example.model.get_parameter("transformer.wpe.weight"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("graph.json", None, "holds no saved graph"),
        ("graph.json", "{", "is damaged"),
        ("graph.json", "[]", "is damaged"),
        ("graph.json", '{"version": 999}', "format 999"),
        ("weights.safetensors", "nothing", "cannot read"),
    ],
)
def test_damage_is_told(
    file: str, content: str | None, message: str, traced: Callable[..., Example], tmp_path: pathlib.Path
) -> None:
    folder = jg.save(traced(zoo.case("gpt2")).graph, tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(jg.JetGraphError, match=message):
        jg.load(folder)


def test_a_failed_write_leaves_the_old_file(
    traced: Callable[..., Example], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = traced(zoo.case("gpt2")).graph
    folder = jg.save(graph, tmp_path)
    before = (folder / "weights.safetensors").read_bytes()

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("jetgraph.storage.save_file", full)
    with pytest.raises(OSError, match="no space"):
        jg.save(graph, tmp_path)
    assert (folder / "weights.safetensors").read_bytes() == before
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_what_has_no_weights_is_not_saved(tmp_path: pathlib.Path) -> None:
    case = zoo.case("gpt2")
    with torch.device("meta"):
        model = case.make("eager").eval()
    inputs = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in case.inputs().items()}
    graph = jg.trace(model, dynamic=False, **inputs)
    with pytest.raises(jg.JetGraphError, match="meta device"):
        jg.save(graph, tmp_path)
    with pytest.raises(jg.JetGraphError, match="not dict"):
        jg.save({}, tmp_path)  # type: ignore[arg-type]


class Named(torch.nn.Module):
    """Blocks under names that are aliases of other blocks, or of the sink."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in names})
        for name, block in self.blocks.items():
            setattr(self, name, block)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.blocks:
            x = x + torch.tanh(getattr(self, name)(x))
        return self.head(torch.tanh(x))


@pytest.mark.parametrize("names", [("logits",), ("output", "logits"), ("L1", "L2")], ids=" ".join)
def test_rules_are_loaded_where_they_were_set(names: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    graph = jg.trace(Named(*names).eval(), x := torch.randn(2, 4))
    expansion = jg.expand(graph, order=1, rules={"L0.mlp": jg.Atom(), "logits": jg.Jet(0)})
    module = jg.compile(expansion)
    loaded = jg.load(jg.save(module, tmp_path))
    assert isinstance(loaded, jg.PathModule)
    assert loaded.expansion.rules == expansion.rules
    for path, value in module(x).terms.items():
        assert torch.equal(loaded(x).terms[path], value)
