"""Names of TransformerLens, by where they stand in the stream; and parts that are split because they are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import jetgraph as jg
from jetgraph.algebra.dialects import parts_asked, points_called, translated
from jetgraph.algebra.matching import Aliases, matching, nearest
from jetgraph.algebra.outline import JoinStep, MapStep, Outline, Site, Source


def outline(*steps: tuple[str, ...]) -> Outline:
    """Joins of branches by alias; a step of one name that ends in `norm` is a map."""
    made: list[Any] = []
    for names in steps:
        if names[0].endswith("norm"):
            made.append(MapStep(Site(names[0], "", "norm", "map", False, False)))
            continue
        sites = tuple(Site(name, "", name.split(".")[1], "branch", False, False) for name in names)
        made.append(JoinStep(names[0], "identity", False, sites))
    decoder = Site("logits", "", "logits", "decoder", False, False)
    return Outline((Source("embed", "", "embed"),), tuple(made), decoder)


PLAIN = outline(("L0.attn",), ("L0.mlp",), ("L1.attn",), ("L1.mlp",))
POST_NORM = outline(("L0.attn",), ("L0.norm",), ("L0.mlp",), ("L0.2.norm",), ("L1.attn",), ("L1.norm",))
PARALLEL = outline(("L0.attn", "L0.mlp"), ("L1.attn", "L1.mlp"))


@pytest.mark.parametrize(
    ("stream", "name", "points"),
    [
        (PLAIN, "resid_post.0", {2}),
        (PLAIN, "blocks.1.hook_resid_pre", {2}),
        (PLAIN, "blocks.1.hook_resid_mid", {3}),
        (PLAIN, "resid_post.*", {2, 4}),
        (PLAIN, "resid_post.2", set()),
        (PLAIN, "resid_last.0", set()),
        (POST_NORM, "resid_mid.0", {2}),
        (POST_NORM, "resid_post.0", {4}),
        (POST_NORM, "resid_mid.1", set()),
        (PARALLEL, "resid_post.1", {2}),
        (PARALLEL, "resid_mid.1", set()),
    ],
)
def test_points_are_those_of_blocks(stream: Outline, name: str, points: set[int]) -> None:
    assert points_called(name, stream) == points


def test_a_name_of_the_model_comes_first() -> None:
    names = {"embed": "tok", "L0.mlp": "blocks.1.mlp", "L1.mlp": "blocks.2.mlp", "L1.attn.head5": "", "logits": "head"}
    assert matching("blocks.1.mlp", names) == ["L0.mlp"]
    assert matching("blocks.0.mlp", names) == ["L0.mlp"]
    assert matching("mlp_out.*", names) == ["L0.mlp", "L1.mlp"]
    assert matching("L1H5", names) == ["L1.attn.head5"]
    assert matching("unembed", names) == ["logits"]
    assert matching("blocks.7.mlp", names) == []
    assert translated("blocks.1.hook_resid_post") is None


def test_a_kind_of_sources_is_a_name_where_nothing_has_it() -> None:
    kinds = {"place": "pos", "type": "pos", "embed": "embed", "L0.mlp": "mlp", "L0.mlp.bias": "bias", "L0.attn": "atom"}
    names = Aliases(dict.fromkeys(kinds, ""), kinds)
    for theirs in ("pos", "pos_embed", "hook_pos_embed"):
        assert matching(theirs, names) == ["place", "type"]
    assert matching("bias", names) == ["L0.mlp.bias"]
    # Kinds of sites and of what an expansion makes are no names, nor are globs over kinds.
    assert not any(matching(text, names) for text in ("mlp", "atom", "context", "po?"))
    # What has the name comes first: an alias, a module, the end of a module's name by a glob.
    assert matching("pos", Aliases({**names, "pos": ""}, {**kinds, "pos": "pos"})) == ["pos"]
    assert matching("pos", Aliases({**names, "place": "pos"}, kinds)) == ["place"]


class Placed(nn.Module):
    """Two tables that depend on no input, and the input, before one branch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rows, self.columns = nn.Embedding(7, 4), nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.mlp, self.head = nn.Linear(4, 4), nn.Linear(4, 7)

    def forward(self, ids):
        places = torch.arange(ids.shape[1])
        x = self.tokens(ids) + self.rows(places) + self.columns(places // 2)
        return self.head(x + torch.tanh(self.mlp(x)))


def test_positions_of_several_tables_are_meant_by_their_kind() -> None:
    bert = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    ids = torch.arange(8).view(2, 4) % 7
    for model, own in (
        (Placed(), ("rows", "columns")),
        (BertForMaskedLM(bert), ("position_embeddings", "token_type_embeddings")),
    ):
        graph = jg.trace(model.eval(), ids)
        frozen = jg.expand(graph, recipe="frozen")
        both = jg.select(frozen, "pos_embed > **")
        assert both.count() == sum(jg.select(frozen, f"{name} > **").count() for name in own) > 2
        assert {path.source.alias for path in both} == {*own}
        removed = jg.ablate(graph, "pos > ** > logits", ids[:1])
        assert {effect.path.split(" > ")[0] for effect in removed.effects} == {*own, "together"}
        patched = jg.patch(graph, ids[:1], ids[1:], senders="pos", receivers="logits")
        assert {*patched.columns()["sender"]} == {*own}
        groups = jg.expand(graph, order=0, centres={"where": "pos"}), jg.expand(graph, order=0, centres={"where": own})
        assert groups[0].counts() == groups[1].counts()
        weights = jg.expand(graph, weights={"pos": 3.0}), jg.expand(graph, weights=dict.fromkeys(own, 3.0))
        first = next(alias for alias in weights[0].passages if not alias.endswith("bias"))
        for name in ("embed", *own):
            assert weights[0].centre_weight(first, name) == weights[1].centre_weight(first, name)
        at = jg.jet_expand(graph, ids[:1], at=first, centres=["pos", "embed"], order=0)
        assert {name.split(" > ")[0] for name in at.terms} >= {*own, "embed"}


def test_a_branch_that_is_called_a_head_is_no_part() -> None:
    site = Site("L0.mlp", "trunk.head0", "mlp", "branch", False, False)
    known = Outline(PLAIN.sources, (JoinStep("L0.mlp", "identity", False, (site,)),), PLAIN.decoder)
    for names in (["trunk.head0 > logits"], ["*.head0"], ["embed > L0.mlp^0"], ["**"]):
        assert parts_asked(names, known) is None
    assert parts_asked(["trunk.head1 > logits"], known) == {"trunk": "heads"}
    assert parts_asked(["L1H0^1 > logits~2"], PLAIN) == {"L1.attn": "heads"}
    assert parts_asked(["L1.attn.neuron2^1"], PLAIN) == {"L1.attn": "neurons"}
    assert parts_asked(["*.head1"], PLAIN) == "heads"
    assert parts_asked(["*.head1", "L1.mlp.neuron2"], PLAIN) == {"*": "heads", "L1.mlp": "neurons"}


@pytest.fixture(scope="module")
def demo() -> Any:
    loaded = jg.load_model("demo")
    return loaded.trace(loaded.inputs()), loaded.inputs("Raise Value"), loaded.tokenizer


def test_their_names_are_understood_wherever_ours_are(demo: Any) -> None:
    graph, inputs, _ = demo
    expansion = jg.expand(graph, recipe="frozen")
    asked = jg.select(expansion, "hook_embed > blocks.1.mlp > attn_out.3 > unembed")
    assert [str(path) for path in asked] == ["embed > L1.mlp > L3.attn > logits"]
    assert (
        jg.expand(graph, rules={"blocks.1.mlp": jg.Atom()}).count()
        == jg.expand(graph, rules={"L1.mlp": jg.Atom()}).count()
    )
    layers = ["resid_post.1", "blocks.2.hook_resid_mid", "blocks.0.hook_resid_pre"]
    assert jg.lens(graph, inputs, layers=layers).points == (0, 4, 5)
    given: dict[str, Any] = {"centres": ["resid_pre.0", "blocks.0.mlp"], "order": 0}
    theirs, ours = (jg.jet_expand(graph, inputs, at=at, **given) for at in ("resid_post.1", "h4"))
    assert list(theirs.terms) == list(ours.terms)
    assert theirs.value.equal(ours.value)
    found = jg.attribute(graph, inputs, target=3)
    edges: Any = [[(name, "L1.mlp@3")] for name in ("blocks.0.mlp@3", "L0.mlp@3")]
    theirs, ours = (jg.faithfulness(found, of="edges", edges=each) for each in edges)
    assert theirs.columns() == ours.columns()
    assert jg.jet_expand(graph, inputs, at=-1, **given).where == "the point h8"


def test_parts_are_split_because_they_are_named(demo: Any) -> None:
    graph, inputs, tokenizer = demo
    options = {"tokenizer": tokenizer, "target": "Error"}
    ranked = jg.rank(graph, inputs, path="** > L1H2 > logits", top=4, **options)
    split = jg.rank(graph, inputs, path="** > L1.attn.head2 > logits", top=4, split={"L1.attn": "heads"}, **options)
    assert ranked.columns() == split.columns()
    by = {"** > L1.attn.head0 > **": "head 0"}
    shares = [
        jg.spectrum(graph, inputs, by=by, split=how, **options).columns()["value"]
        for how in (None, {"L1.attn": "heads"})
    ]
    assert shares[0] == pytest.approx(shares[1])
    for theirs in ("L1H2", "blocks.1.attn.head2"):
        removed = jg.ablate(graph, f"{theirs} > logits", inputs, **options)
        assert [effect.path for effect in removed.effects] == ["L1.attn.head2 > logits"]
    other = {name: value.roll(1) for name, value in inputs.items()}
    patched = jg.patch(graph, inputs, other, senders="L1H2", receivers=["blocks.3.mlp"], **options)
    assert (patched.senders, patched.receivers) == (("L1.attn.head2",), ("L3.mlp",))
    held = jg.expand(graph, rules={"L2.attn.head*": jg.Freeze()})
    assert "L2.attn.head3" in held.names
    with pytest.raises(jg.SelectionError, match=r"split=\{'L1\.attn': 'heads'\}"):
        jg.select(jg.expand(graph), "** > L1H2 > **")


def test_notebooks_show_selections_paths_and_modules(demo: Any) -> None:
    graph, inputs, _ = demo
    expansion = jg.expand(graph, order=1)
    chosen = jg.select(expansion, "embed > *.mlp~1 > logits^0")
    page = chosen._repr_html_()
    assert "4 paths" in page
    assert "<code>embed → L0.mlp<sup>≤1</sup> → logits<sup>0</sup></code>" in page
    assert jg.select(expansion, "**")._repr_html_().endswith("<p>… and 1,012 more</p>")
    module = jg.compile(expansion, chosen)
    assert chosen[0]._repr_html_() in module._repr_html_()
    assert "FLOP" in module._repr_html_()
    assert "<pre>PathValues: 4 terms" in module(**inputs)._repr_html_()


def test_a_message_names_twelve_of_many() -> None:
    names = [f"L{number}.mlp" for number in range(14)]
    assert nearest("decoder", names) == f"; there are: {', '.join(names[:12])}, … (14 in all)"
