"""Attribution graphs: head contributions against plain hooks, targets, pruning with its sums, paths, files."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.attribution import pictures
from jetgraph.applications.attribution.graphs import Attribution
from jetgraph.applications.attribution.targets import Aim, named, without_place
from jetgraph.compilation.components import Readout
from jetgraph.layout.blocks import within_block
from jetgraph.loading import Loaded, load
from jetgraph.structure.ways import find_ways
from tests.compilation.test_flows import one_example
from tests.conftest import Example
from tests.zoo import case

# Heads, by hooks

Linear = Callable[[Tensor], Tensor]


def held_norm(norm: nn.Module, x: Tensor) -> Linear:
    """A norm with its denominator held at x, without its bias."""
    weight: Any = norm.weight
    eps: Any = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None)
    if isinstance(norm, nn.LayerNorm):
        scale = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
        return lambda t: (t - t.mean(-1, keepdim=True)) * scale * weight
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    weight = 1 + weight if "Gemma" in type(norm).__name__ else weight
    return lambda t: t * scale * weight


HEADS: Mapping[str, tuple[str, str]] = {
    "gpt2": ("transformer.h.1.attn.c_proj", "transformer.ln_f"),
    "llama": ("model.layers.1.self_attn.o_proj", "model.norm"),
    "phi": ("model.layers.1.self_attn.dense", "model.final_layernorm"),
    "gemma2": ("model.layers.1.self_attn.o_proj", "model.norm"),
    "opt_post_norm": ("model.decoder.layers.1.self_attn.out_proj", "model.decoder.layers.1.final_layer_norm"),
}
"""Learned positions, rotary with grouped heads, a parallel block, soft caps with norms after branches, norms on the
stream: the last layer's output projection, and the last norm."""


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_head_contributions_are_those_of_plain_hooks(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    model, inputs = example.model, one_example(example.inputs)
    out, last = HEADS[name]
    seen: dict[str, Any] = {}
    watched = [out, last, *(f"model.layers.1.{norm}" for norm in ["post_attention_layernorm"] if name == "gemma2")]
    if name == "opt_post_norm":
        watched += ["model.decoder.layers.1.self_attn_layer_norm", "model.decoder.layers.1.fc1"]
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, given, value, path=path: seen.update({path: given[0], f"{path} out": value})
        )
        for path in watched
    ]
    output = model(**inputs).logits
    for handle in handles:
        handle.remove()
    projection: Any = model.get_submodule(out)
    weight = projection.weight.T if isinstance(projection, nn.Linear) else projection.weight
    steps: list[Linear] = []
    if name == "gemma2":
        path = "model.layers.1.post_attention_layernorm"
        steps.append(held_norm(model.get_submodule(path), seen[path]))
    if name == "opt_post_norm":
        layer: Any = model.get_submodule("model.decoder.layers.1")
        path = "model.decoder.layers.1.self_attn_layer_norm"
        steps.append(held_norm(layer.self_attn_layer_norm, seen[path]))
        mask = (seen["model.decoder.layers.1.fc1 out"] > 0).to(output.dtype)
        steps.append(lambda t: t + (mask * (t @ layer.fc1.weight.T).reshape(mask.shape)).reshape(-1, mask.shape[-1])
                     .reshape(*t.shape[:-1], -1) @ layer.fc2.weight.T)  # fmt: skip
    steps.append(held_norm(model.get_submodule(last), seen[last]))
    if name == "opt_post_norm":
        project: Any = model.get_submodule("model.decoder.project_out")
        steps.append(project)
    unembed: Any = model.get_output_embeddings()  # type: ignore[operator]
    for branch in example.graph.branches.values():
        ways = find_ways(branch.region)
        assert (ways.names if ways else ()) == (("q", "k", "v") if branch.kind == "attn" else ())
    found = jg.attribute(example.graph, inputs, target=3, split="heads")
    number = len({one.alias for one in found.nodes if one.alias.startswith("L1.attn.head") and one.role == "site"})
    size = weight.shape[0] // number
    for head in range(number):
        kept = torch.zeros_like(seen[out])
        kept[..., head * size : (head + 1) * size] = seen[out][..., head * size : (head + 1) * size]
        value = kept @ weight
        for step in steps:
            value = step(value.reshape(1, -1, value.shape[-1]) if value.dim() == 2 else value)
        logits = value.reshape(1, -1, value.shape[-1])[0, -1] @ unembed.weight.T
        cap = getattr(model.config, "final_logit_softcapping", None)
        if cap:
            raw = cap * torch.atanh(output[0, -1] / cap)
            logits = logits * output[0, -1] / raw
        expected = float(logits[3] - logits.mean())
        if name == "opt_post_norm":
            own = (f"L1.attn.head{head}@", f"L1.attn.head{head}.bias@")
            given = sum(node.flow for node in found.nodes if node.name.startswith(own))
            assert given == pytest.approx(expected, rel=1e-3, abs=1e-4)
        else:
            edges = edges_of(found)
            last_place = output.shape[1] - 1
            # What is later reads it as well, so that it is the edge to the target that counts; and the head's constant.
            target = found.nodes[-1].name
            given = edges[f"L1.attn.head{head}@{last_place}", target]
            given += edges.get((f"L1.attn.head{head}.bias@{last_place}", target), 0.0)
            assert given == pytest.approx(expected, rel=1e-3, abs=1e-4)
    # The position of a prompt of one token is one as well, also where batch and positions are one dimension (OPT).
    short = {name: value[:, :1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    first = jg.attribute(example.graph, short, target=3)
    assert {node.position for node in first.nodes if node.role != "source" or node.kind != "bias"} == {0}


def edges_of(found: Attribution) -> dict[tuple[str, str], float]:
    columns = found.columns()
    return dict(zip(zip(columns["sender"], columns["receiver"], strict=True), columns["flow"], strict=True))  # type: ignore[arg-type]


# Targets


@pytest.fixture(scope="module")
def demo() -> tuple[Loaded, jg.ResidualGraph]:
    loaded = load("demo")
    return loaded, loaded.trace(loaded.inputs())


PROMPT = "Raise Value"


def test_targets(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    with torch.no_grad():
        logits = loaded.model(**loaded.inputs(PROMPT)).logits[0].double()
    centred = logits - logits.mean(-1, keepdim=True)
    ids = {text: loaded.tokenizer(text)["input_ids"][0] for text in ("Error", "ue")}  # type: ignore[misc]
    last = len(logits) - 1
    direction = torch.linspace(0, 1, logits.shape[1])
    wanted: list[tuple[Any, Any, float, int]] = [
        ("Error", "last", float(centred[last, ids["Error"]]), 1),
        (("Error", "ue"), "last", float(logits[last, ids["Error"]] - logits[last, ids["ue"]]), 1),
        (["Error", "ue"], "last", float(centred[last, ids["Error"]] + centred[last, ids["ue"]]), 2),
        (
            {"Error": 2.0, ids["ue"]: -0.5},
            "last",
            float(2 * centred[last, ids["Error"]] - centred[last, ids["ue"]] / 2),
            2,
        ),
        (direction, 2, float(logits[2] @ direction.double()), 1),
        (ids["ue"], [0, -1], float(centred[0, ids["ue"]] + centred[last, ids["ue"]]), 2),
        (3, None, float(centred[:, 3].sum()), last + 1),
    ]
    for target, position, value, number in wanted:
        found = jg.attribute(graph, PROMPT, target=target, position=position, tokenizer=loaded.tokenizer)
        assert found.output == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert found.total == pytest.approx(value, rel=1e-3, abs=1e-3)
        assert sum(node.role == "target" for node in found.nodes) == number
    top = jg.attribute(graph, PROMPT, tokenizer=loaded.tokenizer)
    probability = logits[last].softmax(-1)
    best = probability.argsort(descending=True)
    number = min(10, int((probability[best].cumsum(0) < 0.95).sum()) + 1)
    assert sum(node.role == "target" for node in top.nodes) == number
    chosen = best[:number]
    assert top.output == pytest.approx(float((probability[chosen] * centred[last, chosen]).sum()), rel=1e-4)


def test_a_title_says_what_it_is_of_and_where(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo

    def told(target: Any, position: Any = "last") -> tuple[str, str]:
        found = jg.attribute(graph, PROMPT, target=target, position=position, tokenizer=loaded.tokenizer)
        return found.title.partition(": ")[2].partition(":")[0], found.note

    assert told(("Error", "ue")) == ("attribution of 'Error' − 'ue' at position 6", "")
    assert told(["Error", "ue"]) == ("attribution of 'Error' + 'ue' at position 6", "")
    assert told("Error", [0, -1]) == ("attribution of 'Error'@0 + 'Error'@6", "")
    what, note = told({"Error": 2.0, "ue": 1.0})
    assert what == "attribution of 2 'Error' + 'ue' at position 6"
    assert "number before a token is the weight" in note
    assert "its probability, where no target was named" in told(None)[1]


def test_a_position_is_left_out_of_all_names_or_of_none() -> None:
    none = torch.zeros(1)
    one, other, third = (
        Aim(f"'{name}'@{place}", Readout(place, none)) for name, place in (("a", 3), ("b", 3), ("c", 13))
    )
    assert without_place([one, other]) == "'a' + 'b'"
    assert without_place([one, third]) == named([one, third]) == "'a'@3 + 'c'@13"
    assert named([third]) == "'c' at position 13"
    assert named([Aim("#3", Readout(None, none))]) == without_place([Aim("#3", Readout(None, none))]) == "#3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "Raise Value"}, "tokens"),
        ({"target": 10**6}, "out of range"),
        ({"target": (1, 2, 3)}, "pair"),
        ({"target": []}, "no target"),
        ({"target": {3: 0.0}}, "finite number other than 0"),
        ({"target": torch.ones(3)}, "features"),
        ({"target": torch.zeros(1024)}, "the direction is zero"),
        ({"target": (3, 3)}, "one token against itself"),
        ({"position": 99}, "does not exist"),
        ({"position": []}, "names no position"),
        ({"rules": "none"}, "unknown"),
        ({"memory": 0}, "memory"),
        ({"inputs": []}, "no text to look at"),
        ({"target": ""}, "names no token"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, message: str, demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    inputs = options.pop("inputs", PROMPT)
    with pytest.raises(jg.InputError, match=message):
        jg.attribute(graph, inputs, tokenizer=loaded.tokenizer, **options)


def test_edges_into_a_position(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    """Of one prompt, and of several, each counted from its own end."""
    loaded, graph = demo
    several = jg.attribute(graph, (PROMPT, "for key"), target="Error", tokenizer=loaded.tokenizer)
    for one, place in zip(several.each, (6, 1), strict=True):
        whole = zip(*one.columns().values(), strict=True)
        into = [row for row in whole if str(row[1]).endswith(f"@{place}")]
        assert list(zip(*one.at(-1).columns().values(), strict=True)) == into
        assert one.at(-1).title == one.at(place).title
    assert len(several.at(-1)) == sum(len(one.at(-1)) for one in several.each)
    assert set(several.at(5).columns()["example"]) == {0}
    with pytest.raises(jg.InputError, match="there is no position 7: there are 0 to 6"):
        several.at(7)
    with pytest.raises(jg.InputError, match="with positions=True"):
        (alone := jg.attribute(graph, PROMPT, positions=False, tokenizer=loaded.tokenizer)).at(0)
    assert [one.get_text() for one in alone.figure().axes[0].get_xticklabels()] == ["all", "6 'ue'"]
    assert several.tokens[1] == ("'for'", "' key'")
    assert len(several.figure().axes[0].get_yticks()) == 24
    assert str(several).count("more rows") == 2
    assert several._repr_html_().count("<iframe") == 2


# Graphs


@pytest.fixture(scope="module")
def whole(demo: tuple[Loaded, jg.ResidualGraph]) -> Attribution:
    loaded, graph = demo
    return jg.attribute(graph, PROMPT, target="Error", split="heads", tokenizer=loaded.tokenizer)


def test_pruning_keeps_every_sum(whole: Attribution) -> None:
    for nodes, edges in ((0.8, 0.98), (0.3, 0.5), (0.999, 0.9999)):
        pruned = whole.prune(nodes, edges)
        assert pruned.nodes[-1].role == "rest"
        enters, leaves = defaultdict[str, float](float), defaultdict[str, float](float)
        for (sender, receiver), value in edges_of(pruned).items():
            enters[receiver] += value
            leaves[sender] += value
        for node in pruned.nodes[:-1]:
            if node.role != "source":
                assert enters[node.name] == pytest.approx(node.flow, abs=2e-5), node.name
            if node.role != "target":
                assert leaves[node.name] == pytest.approx(node.flow, abs=2e-5), node.name
        assert leaves["rest"] - enters["rest"] == pytest.approx(pruned.nodes[-1].flow, abs=1e-4)
        assert pruned.total == whole.total
        # The fewest nodes that hold the share; some may fall away that lead nowhere.
        ranked = sorted((node for node in whole.nodes if node.role != "target"), key=lambda node: -node.influence)
        sums = torch.tensor([node.influence for node in ranked]).double().cumsum(0)
        number = int((sums < nodes * sums[-1]).sum()) + 1
        assert {node.name for node in pruned.nodes if node.role in ("site", "source")} <= {
            n.name for n in ranked[:number]
        }
    assert len(whole.prune(0.5).prune(0.5).nodes) < len(whole.prune(0.5).nodes)
    assert len(whole.prune(1, 1).nodes) <= len(whole.nodes) + 1
    with pytest.raises(jg.InputError, match="share"):
        whole.prune(0)


def test_what_a_graph_carries_is_the_sum_of_its_paths(whole: Attribution) -> None:
    """All paths of a small graph, evaluated one by one."""
    pruned = whole.prune(0.45, 0.6)
    routes = pruned.paths(10_000)
    assert sum(route.value for route in routes.found) == pytest.approx(pruned.carried, rel=1e-4)
    assert whole.carried == pytest.approx(whole.total, rel=1e-4)
    assert whole.completeness == pytest.approx(1, rel=1e-4)
    values = [abs(route.value) for route in routes.found]
    assert values == sorted(values, reverse=True)
    best = sorted(routes.found, key=lambda route: -route.influence)[:5]
    assert {route.path for route in best} == {route.path for route in pruned.paths(5).found}


def test_positions_of_a_path_add_up_to_its_term(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    """Of a prompt so short that few paths have to be listed until these are among them."""
    loaded, graph = demo
    ids = loaded.inputs(PROMPT)["input_ids"][:, :3]
    plain = jg.attribute(graph, ids, target="Error", tokenizer=loaded.tokenizer)
    text = "embed > L0.attn > L0.mlp > logits"
    with torch.no_grad():
        term = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}), text)(input_ids=ids).terms[text][0, -1]
    token = loaded.tokenizer("Error")["input_ids"][0]  # type: ignore[misc]
    ways = [
        route
        for route in plain.paths(100).found
        if [step.split("@")[0] for step in route.path.split(" > ")[:-1]] == ["embed", "L0.attn", "L0.mlp"]
    ]
    assert sum(route.value for route in ways) == pytest.approx(float(term[token] - term.mean()), rel=2e-3)


def test_a_graph_as_table_file_and_figure(whole: Attribution, tmp_path: Path) -> None:
    pruned = whole.prune(0.6)
    dag = pruned.to_networkx()
    assert set(dag.nodes) == {node.name for node in pruned.nodes}
    assert dag.number_of_edges() == len(pruned) == len(pruned.values)
    for suffix in ("graphml", "json", "csv"):
        pruned.save(tmp_path / f"graph.{suffix}")
    again = jg.read_graph(tmp_path / "graph.graphml")
    assert {(u, v): d["value"] for u, v, d in again.edges(data=True)} == {
        (u, v): d["value"] for u, v, d in dag.edges(data=True)
    }
    assert jg.read_graph(pruned.save(tmp_path / "graph.neuronpedia.json")).number_of_nodes() == len(dag) - 1, "rest"
    assert len(json.loads(dag.graph["tokens"])) == 1 + max(node.position or 0 for node in whole.nodes)
    assert (dag.graph["layers"], dag.graph["parallel"]) == (4, 0)
    assert (tmp_path / "graph.csv").read_text().startswith("sender,receiver,flow,share,influence")
    assert "which carry" in repr(pruned)
    axes = whole.figure().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("position", "point of the stream")
    assert len(axes.figure.legends) == 1
    # Constants are called as in tables, and not by their number among the sources.
    names = {node.name.partition("@")[0] for node in whole.nodes}
    shown = {text.get_text() for text in axes.texts}
    # Their row says which block it is.
    assert {within_block(name) for name in names if name.endswith(".bias")} & shown
    assert "L0.mlp" in {label.get_text() for label in axes.get_yticklabels()}
    assert not any(text.startswith("bias") and text not in names | {"bias"} for text in shown)
    assert pruned.paths(3).figure().axes[0].get_xlabel() == "what the path gives the target"
    with pytest.raises(jg.InputError, match="spreadsheet"):
        pruned.save(tmp_path / "graph.json", spreadsheet=True)
    assert pruned.components()["name"][-1] == "rest"


def test_a_picture_is_no_higher_than_a_page_and_more_can_be_asked_for(
    whole: Attribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most influential nodes stay; what was cut is told by number and share, at its node."""

    def rows(figure: Any) -> int:
        return len(figure.axes[0].get_yticks())

    high = whole.figure()
    monkeypatch.setattr(pictures, "HIGHEST", 3.0)
    low = whole.figure()
    assert low.get_figheight() <= 3.0 < high.get_figheight()
    assert rows(low) < rows(high)
    title = " ".join(low.axes[0].title.get_text().split())
    drawn = re.search(r"drawn: the (\d+) most influential, with (\d+) edges?, which carry (\S+) \((\S+)%\)", title)
    assert drawn is not None
    (rest,) = [text.get_text() for text in low.axes[0].texts if text.get_text().startswith("rest")]
    left, share = re.fullmatch(r"rest: (\S+) \((\S+)%\)", rest).groups()
    assert float(left) + float(drawn[3]) == pytest.approx(whole.total, rel=1e-3)
    assert float(share) + float(drawn[4]) == pytest.approx(100, abs=0.11)
    every = whole.plot(tmp_path / "all.png", most=len(whole.nodes))
    assert rows(every) >= rows(high)
    assert every.get_figheight() > 3.0
    assert "most influential" not in every.axes[0].title.get_text()
    assert rows(whole.plot(width=3.3)) <= rows(low)
    for most in (0, 1001):
        with pytest.raises(jg.InputError, match="is no number of nodes to draw"):
            whole.plot(most=most)


def test_directions_of_a_dictionary(traced: Callable[..., Example]) -> None:
    """Their flows are shares of the branch's, by least squares; conserved, and the same edges in sum."""
    example = traced(case("gpt2"))
    inputs = one_example(example.inputs)
    plain = jg.attribute(example.graph, inputs, target=3)
    width = example.graph.branches["L0.mlp"].node.meta["shape"][-1]
    directions = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    found = jg.attribute(example.graph, inputs, target=3, split={"L0.mlp": directions, "L1.attn": "heads"})
    assert {node.alias for node in found.nodes if node.alias.startswith("L0.mlp") and node.role == "site"} == {
        *(f"L0.mlp.direction{number}" for number in range(3)),
        "L0.mlp.rest",
    }
    assert found.total == pytest.approx(plain.total, rel=1e-4)
    sums = defaultdict[str, float](float)
    for node in found.nodes:
        if node.role == "site" and node.alias.startswith(("L0.mlp", "L0.attn")):
            sums[f"{'.'.join(node.alias.split('.')[:2])}@{node.position}"] += node.flow
    for node in plain.nodes:
        if node.name in sums:
            assert sums[node.name] == pytest.approx(node.flow, rel=1e-3, abs=1e-4)
    enters = defaultdict[str, float](float)
    for (_, receiver), value in edges_of(found).items():
        enters[receiver] += value
    for node in found.nodes:
        if node.role == "site":
            assert enters[node.name] == pytest.approx(node.flow, abs=1e-4)
    # Straight to the logits, by hand: the share of what the branch adds, without its constant.
    with torch.no_grad():
        expansion = jg.expand(example.graph, rules={"*": jg.Freeze()})
        forward = example.graph.run(**inputs)
        bias = next(e.source.alias for e in expansion.entries if e.site is not None and e.site.alias == "L0.mlp")
        stream = plain.flows.stream
        added = next(v for c, v in zip(stream.components, stream.added, strict=True) if c.alias == bias)
        linear = (forward.component("L0.mlp") - added)[0, -1].double()
        share = (linear @ torch.linalg.pinv(directions.double()))[1] * directions[1].double()
        ln: Any = example.model.transformer.ln_f  # type: ignore[union-attr]
        h = forward.point(-1)[0, -1].double()
        logits = ((share - share.mean()) / (h.var(unbiased=False) + ln.eps).sqrt() * ln.weight.double()) @ (
            example.model.lm_head.weight.double().T  # type: ignore[union-attr, operator]
        )
    last = example.output.shape[1] - 1
    given = edges_of(found)[f"L0.mlp.direction1@{last}", found.nodes[-1].name]
    assert given == pytest.approx(float(logits[3] - logits.mean()), rel=1e-3, abs=1e-5)
    assert float(found.carried) == pytest.approx(found.total, rel=1e-4)
    with pytest.raises(jg.InputError, match="features"):
        jg.attribute(example.graph, inputs, split={"L0.mlp": torch.ones(2, 3)})
    with pytest.raises(jg.SelectionError, match="matches no branch"):
        jg.attribute(example.graph, inputs, split={"L7.mlp": directions})
    with pytest.raises(jg.InputError, match="direction of a dictionary"):
        jg.faithfulness(found)


def test_what_has_no_room_is_rest(demo: tuple[Loaded, jg.ResidualGraph], whole: Attribution) -> None:
    loaded, graph = demo
    few = jg.attribute(graph, PROMPT, target="Error", split="heads", memory=20_000, tokenizer=loaded.tokenizer)
    assert few.nodes[-1].role == "rest"
    assert sum(edge >= 0 for edge in few.edges.tolist()) == 20_000 // 64
    assert few.total == pytest.approx(whole.total, rel=1e-5)
    assert sum(value for (_, end), value in edges_of(few).items() if end == few.nodes[-2].name) == pytest.approx(
        few.total, rel=1e-4
    )


def test_models_without_positions(traced: Callable[..., Example]) -> None:
    example = traced(case("basic_resnet"))
    found = jg.attribute(example.graph, one_example(example.inputs), target=1, rules="gradient")
    assert found.total == pytest.approx(found.output, rel=1e-3, abs=1e-3)
    assert all(node.position is None for node in found.nodes)


def test_an_encoder_is_told_by_the_direction_of_its_output() -> None:
    """Its features are no tokens, of which the most probable ones would be told."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, vocab_size=40, max_position_embeddings=16)
    model, ids = transformers.BertModel(config, add_pooling_layer=False).eval(), torch.tensor([[3, 1, 4, 1, 5]])
    graph = jg.trace(model, input_ids=ids, dynamic=False)
    found = jg.attribute(graph, ids)
    with torch.no_grad():
        length = float(model(ids).last_hidden_state[0, -1].norm())
    assert found.nodes[-1].name == "direction of the output@4"
    assert (found.output, found.total) == pytest.approx((length, length), rel=1e-5)
    (row,) = jg.compare(graph, graph, ids, top=1).prompts.rows
    assert row.value == pytest.approx((length, length), rel=1e-5)
