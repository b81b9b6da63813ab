"""Files: whatever is saved comes back the same, and damage is told in words."""

from __future__ import annotations

import copy
import errno
import json
import os
import pathlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.saving import folders as storage
from tests import zoo
from tests.conftest import Example


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_a_graph_survives_its_files(case: zoo.Case, traced: Callable[..., Example], tmp_path: pathlib.Path) -> None:
    example = traced(case)
    loaded = jg.load(jg.save(example.graph, tmp_path / "graph"))
    assert isinstance(loaded, jg.ResidualGraph)
    assert loaded.outline == example.graph.outline
    assert [repr(join) for join in loaded.joins] == [repr(join) for join in example.graph.joins]
    assert str(loaded.traced.graph) == str(example.graph.traced.graph)
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


@pytest.mark.parametrize(
    ("options", "asked", "bounds"),
    [
        ({"recipe": "beam", "width": 2, "target": 4321}, None, {}),
        ({"recipe": "beam", "width": 1, "weights": "uniform"}, ["rest > ** > logits^0", "embed > ** > logits"], {}),
        ({"recipe": "beam", "width": 2, "split": "heads"}, "** > *.mlp > **", {"max_length": 2}),
        ({"rules": {"*": jg.Jet(1, width=1500)}}, None, {"limit": 3}),
    ],
    ids=["target", "patterns", "parts", "paths"],
)
def test_a_beam_survives_its_files(
    options: dict, asked: Any, bounds: dict, traced: Callable[..., Example], tmp_path: pathlib.Path
) -> None:
    """Which terms it finds, and which of them are kept, are those of before."""
    example = traced(zoo.case("gpt2"))
    expansion = jg.expand(example.graph, 1, **options)
    module = jg.compile(expansion, jg.select(expansion, asked or "**", **bounds))
    loaded = jg.load(jg.save(module, tmp_path / "paths"))
    assert isinstance(loaded, jg.PathModule)
    assert loaded.expansion.rules == expansion.rules
    if "target" in options:
        # No token of so small a model; that it is asked for is what came back.
        with pytest.raises(jg.InputError, match="target=4321 is no token"):
            loaded(**example.inputs)
        return
    with torch.no_grad():
        before, after = module(**example.inputs), loaded(**example.inputs)
        assert list(before.terms) == list(after.terms)
        assert all(torch.equal(value, after.terms[path]) for path, value in before.terms.items())
    everything = jg.compile(expansion)(**example.inputs)
    assert (len(everything.terms) > len(after.terms)) == (asked is not None or bool(bounds))


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

    monkeypatch.setattr("jetgraph.saving.folders.save_file", full)
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
    graph = jg.trace(Named(*names).eval(), x := torch.randn(2, 4), dynamic=False)
    expansion = jg.expand(graph, order=1, rules={"L0.mlp": jg.Atom(), "logits": jg.Jet(0)})
    module = jg.compile(expansion)
    loaded = jg.load(jg.save(module, tmp_path))
    assert isinstance(loaded, jg.PathModule)
    assert loaded.expansion.rules == expansion.rules
    for path, value in module(x).terms.items():
        assert torch.equal(loaded(x).terms[path], value)


class Block(nn.Module):
    """A residual block with arguments of many kinds."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Linear(4, 4)
        nn.init.constant_(self.mlp.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.mlp(self.norm(x)))
        return x + torch.cat([y[..., :2], x.new_zeros(x.shape[0], 2)], -1)


INPUT = torch.tensor([[1.0, -2, 0.5, 3], [0, 1, 1, -1]])


@pytest.fixture(scope="module")
def small() -> jg.ResidualGraph:
    return jg.trace(nn.Sequential(Block(), Block()).eval(), INPUT, dynamic=False)


@pytest.fixture(scope="module")
def other() -> jg.ResidualGraph:
    return jg.trace(nn.Sequential(Block(0.7)).eval(), INPUT, dynamic=False)


def compiled(graph: jg.ResidualGraph, order: int = 1) -> jg.PathModule:
    return jg.compile(jg.expand(graph, order=order, rules={"L0.mlp": jg.Freeze()}))


def facts(value: jg.ResidualGraph | jg.PathModule) -> tuple[Any, ...]:
    """What a saved thing is, as far as two of them may differ."""
    with torch.no_grad():
        if isinstance(value, jg.PathModule):
            return "paths", value.paths, value(INPUT).output.tolist()
        return "graph", value(INPUT).tolist()


# One save at a time: whatever happens on the way, the folder holds one of the two


def _save_until(step: int, folder: pathlib.Path, value: Any, kill: bool) -> int:
    """Save in a process of its own that ends, or meets a full disk, at a given operation on a file of the folder.

    Returns 0 if the save was through before, 1 if it said in words that it failed.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code, steps = 7, 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir") and str(args[0]).startswith(str(folder)):
            steps += 1
            if steps == step and kill:
                os._exit(9)
            if steps == step:
                raise OSError(errno.ENOSPC, "No space left on device")

    try:
        sys.addaudithook(hook)
        jg.save(value, folder)
        code = 0
    except jg.JetGraphError as error:
        code = 1 if "No space left" in str(error) and "\n" not in str(error) else 8
    finally:
        os._exit(code)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "full disk"])
@pytest.mark.parametrize(("before", "after"), [("graph", "paths"), ("paths", "graph"), ("paths", "paths")])
def test_a_save_that_ends_anywhere_leaves_the_old_or_the_new(
    kill: bool, before: str, after: str, small: jg.ResidualGraph, other: jg.ResidualGraph, tmp_path: pathlib.Path
) -> None:
    old = small if before == "graph" else compiled(small)
    new = other if after == "graph" else compiled(other, 0)
    was, will_be = facts(old), facts(new)
    folder, saved = tmp_path / "folder", jg.save(old, tmp_path / "saved")
    outcomes = set()
    for step in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        (folder / "mine.txt").write_text("left alone")
        (folder / ".tmpAb12Cd").touch()  # as safetensors leaves where it is killed, which no hook sees
        code = _save_until(step, folder, new, kill)
        assert code in ((0, 9) if kill else (0, 1))
        found = facts(jg.load(folder))
        assert found in (was, will_be)
        outcomes.add(found == will_be)
        jg.save(new, folder)
        assert facts(jg.load(folder)) == will_be
        names = {"graph.json", "weights.safetensors", "mine.txt"} | ({"paths.json"} if after == "paths" else set())
        assert {file.name for file in folder.iterdir()} == names
        if code == 0 and step > 10:
            break
    assert outcomes == {False, True}


@pytest.mark.parametrize("file", ["graph.json", "paths.json", "weights.safetensors"])
def test_files_of_two_saves_do_not_load(
    file: str, small: jg.ResidualGraph, other: jg.ResidualGraph, tmp_path: pathlib.Path
) -> None:
    one = jg.save(compiled(small), tmp_path / "one")
    # Weights of the same names, shapes and types: nothing but the digest tells.
    twice = jg.trace(nn.Sequential(Block(0.3), Block()).eval(), INPUT, dynamic=False)
    two = jg.save(compiled(twice, 0), tmp_path / "two")
    (one / file).write_bytes((two / file).read_bytes())
    with pytest.raises(jg.JetGraphError, match=r"is not the file that graph\.json was saved with"):
        jg.load(one)


def test_paths_of_an_earlier_save_are_gone(small: jg.ResidualGraph, tmp_path: pathlib.Path) -> None:
    jg.save(compiled(small), tmp_path)
    stale = (tmp_path / "paths.json").read_bytes()
    jg.save(small, tmp_path)
    assert not (tmp_path / "paths.json").exists()
    (tmp_path / "paths.json").write_bytes(stale)
    assert isinstance(jg.load(tmp_path), jg.ResidualGraph)


def _as_version_1(folder: pathlib.Path) -> None:
    """A folder as it was written before there were digests."""
    described = json.loads((folder / "graph.json").read_text())
    del described["digest"], described["files"], described["guards"]
    described |= {"version": 1, "trainable": list(described.pop("parameters"))}
    (folder / "graph.json").write_text(json.dumps(described))


def test_folders_without_digests_are_read_with_the_other_checks(
    small: jg.ResidualGraph, other: jg.ResidualGraph, tmp_path: pathlib.Path
) -> None:
    module = compiled(small)
    _as_version_1(jg.save(module, tmp_path / "old"))
    assert facts(jg.load(tmp_path / "old")) == facts(module)
    _as_version_1(jg.save(other, tmp_path / "other"))
    (tmp_path / "old" / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(jg.JetGraphError, match=r"the weights lack '1\.norm\.weight'|the weights lack '1\.mlp"):
        jg.load(tmp_path / "old")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights | {"0.mlp.weight": torch.zeros(3, 4)}, r"torch.float32 \[3, 4\] where it has"),
        (
            lambda weights: weights | {"0.mlp.bias": torch.zeros(4, dtype=torch.float64)},
            "torch.float64 .* '0.mlp.bias'",
        ),
        (lambda weights: {name: weights[name] for name in weights if name != "0.mlp.bias"}, "lack '0.mlp.bias'"),
        (lambda weights: weights | {"2.mlp.bias": torch.zeros(4)}, "does not name the weight '2.mlp.bias'"),
    ],
    ids=["shape", "dtype", "missing", "left over"],
)
def test_weights_of_another_model_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    small: jg.ResidualGraph,
    tmp_path: pathlib.Path,
) -> None:
    jg.save(small, tmp_path)
    _as_version_1(tmp_path)
    weights = {name: tensor.clone() for name, tensor in load_file(tmp_path / "weights.safetensors").items()}
    save_file(change(weights), tmp_path / "weights.safetensors")
    with pytest.raises(jg.JetGraphError, match=message):
        jg.load(tmp_path)


# Folders from anywhere


def _seal(folder: pathlib.Path, described: Any) -> None:
    """Write a graph.json as one who knows the format would forge it."""
    if isinstance(described, dict):
        described = described | {"digest": storage.seal(described)}
    (folder / "graph.json").write_text(json.dumps(described))


def _node(name: str, target: str, args: list[Any], **options: Any) -> dict[str, Any]:
    node = {"name": name, "op": "call_function", "target": target, "args": args, "kwargs": {"dict": {}}}
    return node | {"module_path": "", "dtype": "torch.float32", "shape": ["batch", 4]} | options


HOSTILE = [
    [_node("evil", "py:torch:load", ["{mark}"], kwargs={"dict": {"weights_only": False}})],
    [_node("evil", "py:torch:os", [])],
    [_node("get", "py:operator:attrgetter", ["__class__"]), _node("evil", "py:operator:call", [{"node": "get"}, 1])],
    [_node("evil", "py:builtins:eval", ["open('{mark}', 'w')"])],
    [_node("evil", "py:builtins:open", ["{mark}", "w"])],
    [_node("evil", "op:aten:from_file:default", ["{mark}", True, 4])],
    [_node("evil", "op:aten:save:default", [{"node": "input_1"}, "{mark}"])],
    [_node("evil", "op:aten:add_:Tensor", [{"node": "input_1"}, 1])],
    [_node("evil", "op:load_library:__call__:x", ["{mark}"])],
    [_node("evil", "op:aten:__class__:mro", [])],
    [_node("evil", "op:aten:add:__init__", [])],
    [_node("evil", "op:prim:Print:default", ["{mark}"])],
    [_node("evil", "op:aten:relu:default", [{"node": "input_1"}], shape=["__import__('os').mkdir('{mark}')", 4])],
    [_node("evil", "op:aten:relu:default", [{"node": "input_1"}], shape=["().__class__", 4])],
    [_node("evil", "op:aten:relu:default", [{"node": "input_1"}], dtype="torch.os")],
    [_node("evil", "op:aten:relu:default", [{"node": "input_1"}], dtype="torch.load")],
    [
        _node(
            "evil",
            "op:aten:_to_copy:default",
            [{"node": "input_1"}],
            kwargs={"dict": {"dtype": {"dtype": "torch.hub"}}},
        )
    ],
    [_node("evil):\n open('{mark}', 'w')\n#", "op:aten:relu:default", [{"node": "input_1"}])],
    [_node("evil", "op:aten:relu:default", [{"node": "input_1"}], op="call_module")],
    [_node("evil", "{mark}", [], op="get_attr")],
]


@pytest.mark.parametrize("nodes", HOSTILE, ids=lambda nodes: nodes[-1]["target"] or "")
def test_a_hostile_folder_is_refused_and_runs_nothing(
    nodes: list[dict[str, Any]], small: jg.ResidualGraph, tmp_path: pathlib.Path
) -> None:
    folder, mark = jg.save(small, tmp_path / "folder"), tmp_path / "mark"
    described = json.loads((folder / "graph.json").read_text())
    first = next(node for node, (kind, _) in described["bindings"].items() if kind == "input")
    *rows, output = described["nodes"]
    evil = json.loads(json.dumps(nodes).replace("{mark}", str(mark)).replace("input_1", first))
    total = _node("total", "op:aten:add:Tensor", [output["args"][0], {"node": "evil"}])
    described["nodes"] = [*rows, *evil, total, output | {"args": [{"node": "total"}]}]
    _seal(folder, described)
    with pytest.raises(jg.JetGraphError, match=r"graph\.json is damaged: nodes\[\d+\]") as refused:
        jg.load(folder)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["text"], [None], [{"node": "none"}], [{"node": "output"}], [1, 2, 3], [{"dict": {}}], [{"device": "cpu"}]],
    ids=str,
)
def test_calls_have_the_arguments_that_they_take(
    arguments: list[Any], small: jg.ResidualGraph, tmp_path: pathlib.Path
) -> None:
    jg.save(small, tmp_path)
    described = json.loads((tmp_path / "graph.json").read_text())
    node = next(node for node in described["nodes"] if node["target"] == "op:aten:tanh:default")
    node["args"] = arguments
    _seal(tmp_path, described)
    with pytest.raises(jg.JetGraphError, match=r"graph\.json is damaged: nodes\[\d+\]\.args"):
        jg.load(tmp_path)


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if way:
        yield way
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*way, key))


DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
WRONG = [None, True, -1, 2**40, 10**400, 1.5, "", "os", "__import__('os')", [], {}, [[]], {"node": "none"}, DEEP]


def _damaged(value: Any, way: tuple[Any, ...], chance: random.Random) -> Any:
    """A copy in which the value at one place is gone, doubled, renamed, or another one."""
    made = copy.deepcopy(value)
    holder = made
    for key in way[:-1]:
        holder = holder[key]
    how = chance.choice(("gone", "doubled", "other", "other", "other"))
    if how == "gone":
        del holder[way[-1]]
    elif how == "doubled" and isinstance(holder, list):
        holder.insert(way[-1], copy.deepcopy(holder[way[-1]]))
    elif how == "doubled":
        holder[f"{way[-1]}x"] = holder.pop(way[-1])
    else:
        holder[way[-1]] = chance.choice([wrong for wrong in WRONG if repr(wrong) != repr(holder[way[-1]])])
    return made


def test_every_damage_ends_in_one_error(small: jg.ResidualGraph, tmp_path: pathlib.Path) -> None:
    folder = jg.save(compiled(small), tmp_path)
    described = json.loads((folder / "graph.json").read_text())
    paths = json.loads((folder / "paths.json").read_text())
    chance = random.Random(0)
    refused = 0
    places = [("graph", way) for way in _places(described)] + [("paths", way) for way in _places(paths)] * 3
    for which, way in chance.sample(places, 160):
        graph = _damaged(described, way, chance) if which == "graph" else copy.deepcopy(described)
        if which == "paths":
            (folder / "paths.json").write_text(json.dumps(_damaged(paths, way, chance)))
            graph["files"]["paths.json"] = storage.digest_of_file(folder / "paths.json")
        else:
            (folder / "paths.json").write_text(json.dumps(paths, indent=1))
        # As chance would have it, and as one would write it who wants it to be believed.
        (folder / "graph.json").write_text(json.dumps(graph))
        with pytest.raises(jg.JetGraphError):
            jg.load(folder)
        _seal(folder, graph)
        try:
            jg.load(folder)
        except jg.JetGraphError:
            refused += 1
    assert refused > 120


@pytest.mark.parametrize("file", ["graph.json", "paths.json", "weights.safetensors"])
def test_a_bit_that_flips_or_an_end_that_is_missing_is_seen(
    file: str, small: jg.ResidualGraph, tmp_path: pathlib.Path
) -> None:
    folder = jg.save(compiled(small), tmp_path)
    content = (folder / file).read_bytes()
    chance = random.Random(1)
    for place in [*chance.sample(range(len(content)), 12), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(7)
        for damaged in (bytes(flipped), content[:place]):
            (folder / file).write_bytes(damaged)
            if file == "graph.json" and _same_json(damaged, content):
                continue
            with pytest.raises(jg.JetGraphError):
                jg.load(folder)


def _same_json(one: bytes, other: bytes) -> bool:
    """Blanks may change as they like."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


# Weights of every kind


class Kinds(nn.Module):
    """A block that reads weights of many types and layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)
        self.frozen = nn.Parameter(torch.rand(4), requires_grad=False)
        self.whole = nn.Parameter(torch.randint(-9, 9, (4,), dtype=torch.int8), requires_grad=False)
        numbers = torch.arange(1.0, 9).view(2, 4)
        for name, tensor in {
            "c64": torch.polar(torch.ones(4), numbers[0]),
            "c128": torch.polar(torch.ones(4).double(), numbers[1].double()),
            "lone": torch.tensor(2 + 1j),
            "f64": numbers[0].double(),
            "bf16": numbers[1].bfloat16(),
            "eight": numbers[0].to(torch.float8_e5m2),
            "odd": numbers[0].to(torch.float8_e4m3fnuz),
            "u16": numbers[0].to(torch.uint16),
            "bits": numbers[0] > 2,
            "transposed": torch.arange(16.0).view(4, 4).T,
            "expanded": torch.ones(1).expand(4),
            "none": torch.zeros(0, 4),
        }.items():
            self.register_buffer(name, tensor)
        self.register_buffer("shared", self.get_buffer("f64")[1:])

    def forward(self, x: Tensor) -> Tensor:
        total = sum(
            (value.real + value.imag if value.is_complex() else value.float()).float().sum()
            for value in (*self.buffers(), self.whole, self.frozen)
        )
        return x + torch.tanh(self.mlp(x)) * total


def test_weights_of_every_kind_come_back(tmp_path: pathlib.Path) -> None:
    model = Kinds().eval()
    graph = jg.trace(model, INPUT, dynamic=False)
    loaded = jg.load(jg.save(graph, tmp_path))
    assert isinstance(loaded, jg.ResidualGraph)
    for name, tensor in loaded.traced.tensors.items():
        own = graph.traced.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.requires_grad) == (own.dtype, own.shape, own.requires_grad)
        assert isinstance(tensor, nn.Parameter) == isinstance(own, nn.Parameter)
        if own.dtype.itemsize > 1 or own.dtype == torch.bool:
            assert torch.equal(tensor, own)
        else:
            assert torch.equal(tensor.float(), own.float())
    with torch.no_grad():
        assert torch.equal(loaded(INPUT), graph(INPUT))


@pytest.mark.parametrize(
    "weight",
    [torch.eye(3).to_sparse(), torch.ones(3, dtype=torch.complex64).conj(), torch.ones(3).mul(1j).conj().imag],
    ids=["sparse", "conjugated", "negated"],
)
def test_weights_that_no_file_holds_are_named(weight: Tensor) -> None:
    with pytest.raises(jg.JetGraphError, match=r"the weight 'layer\.w' is a .* only plain tensors can be saved"):
        storage.separate({"layer.w": weight})


def test_paths_in_another_precision_are_saved_as_they_are(small: jg.ResidualGraph, tmp_path: pathlib.Path) -> None:
    module = compiled(small).double()
    loaded = jg.load(jg.save(module, tmp_path))
    assert isinstance(loaded, jg.PathModule)
    with torch.no_grad():
        assert torch.equal(loaded(INPUT.double()).output, module(INPUT.double()).output)


# Words for what cannot be


@pytest.mark.parametrize("folder", [None, 3, "", b"folder", "a\0b"])
def test_what_is_no_folder_is_refused(folder: Any, small: jg.ResidualGraph) -> None:
    for call in (lambda: jg.save(small, folder), lambda: jg.load(folder)):
        with pytest.raises(jg.JetGraphError, match="is no name of a folder"):
            call()


def test_a_file_is_no_folder(small: jg.ResidualGraph, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (lambda: jg.save(small, tmp_path / "file"), lambda: jg.load(tmp_path / "file")):
        with pytest.raises(jg.JetGraphError, match="file is a file: name a folder"):
            call()
    with pytest.raises(jg.JetGraphError, match=r"cannot make the folder .*Not a directory"):
        jg.save(small, tmp_path / "file" / "below")
    with pytest.raises(jg.JetGraphError, match="holds no saved graph"):
        jg.load(tmp_path / "missing")


def test_a_full_disk_is_told_in_one_line(
    small: jg.ResidualGraph, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*args: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)\nstack backtrace:\n" + "  0: x\n" * 50)

    monkeypatch.setattr("jetgraph.saving.folders.save_file", full)
    with pytest.raises(jg.JetGraphError) as told:
        jg.save(small, tmp_path)
    expected = f"cannot write {tmp_path / 'weights.safetensors'}: I/O error: No space left on device (os error 28)"
    assert str(told.value) == expected
    assert not [*tmp_path.iterdir()]
