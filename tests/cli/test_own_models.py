"""Commands on models that read no texts: they look at the example inputs that came with them."""

import json

import pytest
import torch
from torch import nn

import jetgraph as jg
from jetgraph.applications.formats import finite_cells
from tests.commands import invoke, succeed


class Two(nn.Module):
    """Two inputs, one of them of whole numbers, and two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out, self.value = nn.Linear(3, 4), nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)) for _ in range(2))

    def forward(self, features, sort):
        x = self.a(features) + self.b(sort)
        for layer in self.layers:
            x = x + layer(x)
        return {"logits": self.out(x), "value": self.value(x)}


class Nodes(nn.Module):
    """Rows that read one another, along a matrix of edges."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.layer, self.out = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, nodes, edges):
        x = self.into(nodes)
        return self.out(x + torch.tanh(edges @ self.layer(x)))


class Looking(nn.Module):
    """Attention over the patches of an image, whose first one tells its class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.pos = nn.Conv2d(1, 4, 2, 2), nn.Parameter(torch.randn(1, 4, 4))
        self.attn, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2) + self.pos
        return self.out((x + self.attn(x, x, x, need_weights=False)[0])[:, 0])


def _inputs():
    generator = torch.Generator().manual_seed(1)
    return {"features": torch.randn(2, 3, generator=generator), "sort": torch.tensor([4, 1])}


def two():
    return Two().eval(), _inputs()


def saved():
    """A graph that was saved, with inputs."""
    return jg.load("saved"), list(_inputs().values())


def bare():
    return Two().eval()


def nodes():
    return Nodes().eval(), (torch.randn(3, 2), torch.rand(3, 3))


class Together(nn.Module):
    """As many rows as its code says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.tanh(self.layer(x.reshape(2, 4)))


def together():
    return Together().eval(), torch.ones(2, 4)


def looking():
    return Looking().eval(), torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))


TWO, CLASS = f"{__name__}:two", ("--target", 2)
COMMANDS = {
    ("lens", *CLASS): lambda graph, row: jg.lens(graph, row, target=2),
    ("joint-lens", *CLASS): lambda graph, row: jg.joint_lens(graph, row, target=2),
    ("spectrum", *CLASS): lambda graph, row: jg.spectrum(graph, row, target=2),
    ("rank",): lambda graph, row: jg.rank(graph, row),
    ("attribute", *CLASS, "--target", 0, "--nodes", 1, "--edges", 1): (
        lambda graph, row: jg.attribute(graph, row, target=[2, 0])
    ),
    ("faithfulness", *CLASS, "--versus", 1, "--nodes", 1, "--edges", 1): (
        lambda graph, row: jg.faithfulness(jg.attribute(graph, row, target=(2, 1)))
    ),
    ("ablate", *CLASS): lambda graph, row: jg.ablate(graph, None, row, target=2),
    ("jet-expand", "--at", "logits"): lambda graph, row: jg.jet_expand(graph, row, at="logits", centres="components"),
}


@pytest.fixture(scope="module")
def graph():
    model, inputs = two()
    return jg.trace(model, inputs=inputs)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_each_row_of_the_example_inputs_is_looked_at(command, graph):
    name, *options = command
    told = json.loads(succeed(name, TWO, *options, "--json"))["columns"]
    for row in range(2):
        alone = COMMANDS[command](graph, {name: value[row : row + 1] for name, value in _inputs().items()})
        for column, cells in finite_cells(alone.columns()).items():
            found = [cell for cell, example in zip(told[column], told["example"], strict=True) if example == row]
            assert column == "example" or found == json.loads(json.dumps(cells))


def test_what_is_looked_at_is_said_and_each_row_has_its_picture(tmp_path):
    text = succeed("attribute", TWO, "-o", tmp_path / "a.svg", "-o", tmp_path / "a.csv")
    # No axis tells positions where there are none.
    drawn = (tmp_path / "a.0.svg").read_text()
    assert "<!-- adds to the target -->" in drawn
    assert "<!-- position -->" not in drawn
    assert "its own example inputs, row 1 of 2: features [1, 3], sort [1]" in text
    assert "\nmost influential edges first" in text  # at no position, for the output has none
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.0.svg", "a.1.svg", "a.csv"]
    # Rows that read one another are no inputs by themselves.
    text = succeed("lens", f"{__name__}:nodes")
    assert "3 inputs" in text
    assert "its own example inputs: nodes [3, 2], edges [3, 3]" in text


def test_programs_and_saved_graphs_are_looked_at_on_their_inputs(graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, image = looking()
    torch.export.save(torch.export.export(model, (image,)), "looking.pt2")
    given = ("patterns", "--json")
    told = [json.loads(succeed(given[0], name, given[1])) for name in ("looking.pt2", f"{__name__}:looking")]
    assert told[0]["columns"]["weight"] == pytest.approx(told[1]["columns"]["weight"])
    assert len(told[0]["columns"]["weight"]) == 2 * 4 * 4
    jg.save(graph, "saved")
    texts = [succeed("lens", name).splitlines()[1:] for name in (TWO, f"{__name__}:saved")]
    assert [line for line in texts[0] if "lens" not in line] == [line for line in texts[1] if "lens" not in line]
    assert "saved came without inputs and without a tokenizer" in invoke("lens", "saved").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lens", "demo"], "demo reads texts, and there is none: give a PROMPT"),
        (["attribute", f"{__name__}:bare"], "package.module:factory that makes (model, inputs)"),
        (["rank", TWO, "a text"], "so it takes no prompt: leave it out where example inputs came with the model"),
        (["rank", TWO, "--chat"], "--chat is for prompts, and none was given"),
        (["ablate", TWO, "--corrupt", "a text"], "has no tokenizer, so it takes no other prompts"),
        (["spectrum", TWO, "--target", "4"], "target 4 is out of range: the output has logits 0 to 3"),
        (["spectrum", TWO, "--position", "1"], "the output [1, 4] has no positions"),
        (["attribute", f"{__name__}:together"], "this trace holds for 2 rows together and for no other number"),
    ],
)
def test_what_cannot_be_looked_at_is_said(arguments, says):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
