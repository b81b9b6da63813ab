"""Pictures of many components: a row a block, a column a head."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from jetgraph.applications.interventions.patching import LARGEST, PANELS, Patching
from jetgraph.applications.maps import LayerMap, layer_map

HEADS = [f"L{block}.attn.head{head}" for block in range(30) for head in range(12)]


def patching(senders: list[str], receivers: list[str]) -> Patching:
    effects = torch.arange(len(senders) * len(receivers), dtype=torch.float64).view(len(senders), len(receivers), 1, 1)
    one = torch.ones(1, 1)
    return Patching("model", "logit", tuple(senders), tuple(receivers), effects, effects[:, 0], one, 2 * one)


def test_heads_are_a_map_and_few_names_are_none() -> None:
    found = layer_map({name: float(at) for at, name in enumerate([*HEADS, *(f"L{b}.mlp" for b in range(30)), "embed"])})
    assert found is not None
    assert found.columns == (*(f"head{head}" for head in range(12)), "mlp")
    assert found.values[7, 11] == HEADS.index("L7.attn.head11")
    assert found.values[7, 12] == len(HEADS) + 7
    other = layer_map(dict.fromkeys([f"L{b}.mix.head{h}" for b in (0, 3) for h in range(9)] + ["L0.attn.head2"], 1.0))
    assert other is not None
    assert (other.rows, other.columns[0]) == (("L0", "L3"), "head2")
    assert np.isnan(other.values[1, 0])
    assert layer_map(dict.fromkeys(HEADS[:8], 1.0)) is None
    assert layer_map({f"layers.{at}": 1.0 for at in range(100)}) is None


def test_what_adds_is_blue_in_maps_as_in_graphs() -> None:
    effects = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1)
    one = torch.ones(1, 1)
    pair = Patching("model", "logit", ("L0.mlp", "L1.mlp"), ("logits",), effects, effects[:, 0], one, one).figure()
    values = np.array([[1.0], [-1.0]])
    axes = Figure().subplots()
    for image in (pair.axes[0].images[0], LayerMap(("L0", "L1"), ("mlp",), values).draw(axes, 1.0)):
        (adds,), (takes,) = image.cmap(image.norm(values))
        assert adds[2] > adds[0], "GIVES is blue"
        assert takes[0] > takes[2], "TAKES is red"


def test_pictures_of_many_senders_fit_a_page() -> None:
    many = patching(HEADS, ["logits", *HEADS[12:]])
    figure = many.figure()
    assert max(figure.get_size_inches()) < 25
    assert [axes.get_title() for axes in figure.axes][: PANELS + 1] == [
        *(f"by way of L29.attn.head{head}" for head in (11, 10, 9)),
        "all ways",
    ]
    assert figure.axes[0].images[0].get_array().shape == (30, 12)
    named = patching([f"layers.{at}" for at in range(300)], [f"after.{at}" for at in range(90)]).figure()
    assert max(named.get_size_inches()) < 25
    assert named.axes[0].images[0].get_array().shape == (LARGEST, LARGEST)
    assert named.axes[0].get_yticklabels()[-1].get_text() == "layers.299"
