"""The commands of the applications: what they print and write, and how they fail, against computations by hand."""

import csv
import io
import json
import pathlib
import re
import sys

import pytest
import torch
from tqdm import tqdm

import jetgraph as jg
from jetgraph.applications.results import RESOLUTION
from jetgraph.cli import options, terminal
from jetgraph.loading import load
from jetgraph.residual import trace
from tests.commands import invoke, succeed

# One worker runs them all, so that each model is traced once.
pytestmark = pytest.mark.xdist_group("commands of the applications")

PNG = b"\x89PNG\r\n"
PROMPT = "Raise Value"


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    """Trace each model once for all commands: graphs take any prompt, and checkpoints differ in their folders."""
    original, done = jg.trace, {}

    def trace(model, *args, **kwargs):
        inputs = kwargs.get("inputs", kwargs)
        shapes = {name: value.shape[1:] for name, value in inputs.items() if name != "input_ids"}
        key = (model.config._name_or_path, tuple(sorted(shapes.items())))
        if key not in done:
            done[key] = original(model, *args, **kwargs)
        return done[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jetgraph.trace", trace)
        patch.setattr("jetgraph.applications.subject.trace", trace)
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders with the demo model, the weights of one MLP and its norm scaled by 1.5 in the first."""
    folder = tmp_path_factory.mktemp("run")
    for step in (30, 200):
        loaded = load("demo")
        if step == 30:
            with torch.no_grad():
                block = loaded.model.transformer.h[1]
                for parameter in (*block.ln_2.parameters(), *block.mlp.parameters()):
                    parameter.mul_(1.5)
        loaded.model.save_pretrained(folder / f"step-{step}")
        assert loaded.tokenizer is not None
        loaded.tokenizer.save_pretrained(folder / f"step-{step}")
    return folder


def read(file) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def logits(loaded, prompt: str = PROMPT) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(**loaded.inputs(prompt)).logits[0, -1]


# Lenses


def test_lens(demo, tmp_path):
    text = succeed(
        "lens", "demo", PROMPT, "--order", 1, "-l", "h8,L0.*", "-o", tmp_path / "a.csv", "-o", tmp_path / "a.png"
    )
    rows = read(tmp_path / "a.csv")
    assert len(rows) == 3 * 2 * 7
    best = demo.tokenizer.decode([int(logits(demo).argmax())])
    assert f"the model says {best!r}" in text
    assert re.search(rf"h8\s+L3\.mlp\s+0\s+{best!r}", text)
    # The table is that of the last position only.
    assert "6 of 42 rows" in text
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    with torch.no_grad():
        body = demo.model.transformer
        stream = body(**demo.inputs(PROMPT), output_hidden_states=True).hidden_states
        by_hand = demo.model.lm_head(body.ln_f(stream[1]))[0].softmax(-1).max(-1)
    found = [row for row in rows if row["after"] == "L0.mlp" and row["order"] == "0"]
    assert [float(row["probability"]) for row in found] == pytest.approx(by_hand.values.tolist(), rel=1e-4)


def test_joint_lens(tmp_path):
    text = succeed("joint-lens", "demo", PROMPT, "-o", tmp_path / "a.csv")
    assert "10 of 70 rows" in text
    rows = [row for row in read(tmp_path / "a.csv") if row["position"] == "6"]
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(1)
    assert f"{float(rows[0]['remainder']):.4g} with these weights" in text


def test_jet_expand(tmp_path):
    """Terms at one place: named sums as centres, the best weights, and an order that is chosen."""
    common = ("jet-expand", "demo", PROMPT, "--at", "logits", "-c", "early=embed + pos + L0", "-c", "late=*.mlp")
    text = succeed(*common, "--order", "auto", "--tolerance", "0.1", "--weights", "optimal", "-o", tmp_path / "a.csv")
    rows = read(tmp_path / "a.csv")
    assert sum(float(row["weight"] or 0) for row in rows) == pytest.approx(1)
    order = re.search(r"order (\d) of", text)
    assert order is not None
    assert {row["term"] for row in rows} == {
        f"{one} > logits^0" if order[1] == "0" else f"{one} > logits~{order[1]}" for one in ("early", "late")
    } | {"δ"}
    assert "the lowest order within 0.1" in re.sub(r"\s+", " ", text)
    told = json.loads(succeed(*common, "--plain", "--json"))
    assert "with plain centres" in told["title"]
    assert len(told["columns"]["norm"]) == 3
    one_line(invoke(*common[:-2], "-c", "embed"), "--centre")
    assert invoke(*common, "--order", "most").exit_code == 2


def test_a_token_is_followed(tmp_path):
    told = json.loads(succeed("lens", "demo", PROMPT, "-t", "Error", "--json", "-o", tmp_path / "a.png"))["columns"]
    assert told["target"][0] == "'Error'"
    assert told["target_rank"][-1] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_transport(tmp_path):
    (tmp_path / "text.txt").write_text("Return the number of items in the list. " * 6, encoding="utf-8")
    options = ("--window", 16, "-l", "h6,h8", "-o")
    for at in (0, 1):
        fit = ("transport", "fit", "demo", tmp_path / "text.txt", "--shard", f"{at}/2")
        assert "count=" in succeed(*fit, *options, tmp_path / f"{at}.safetensors")
    files = [tmp_path / f"{at}.safetensors" for at in (0, 1)]
    whole = tmp_path / "whole.safetensors"
    assert "points=[6, 8]" in succeed("transport", "merge", *files, "-o", whole)
    twice = invoke("transport", "merge", files[0], tmp_path / "." / files[0].name, "-o", whole)
    assert "is named twice, and what it holds would count twice" in twice.stderr
    facts = json.loads(succeed("transport", "merge", *files, "-o", whole, "--json"))
    assert (facts["points"], facts["file"]) == ([6, 8], str(whole))
    told = json.loads(succeed("transport", "lens", "demo", PROMPT, "-f", whole, "-t", "Error", "--json"))["columns"]
    assert told["kl"][-1] == pytest.approx(0, abs=1e-6)
    assert "jet of order 2" in succeed("transport", "lens", "demo", PROMPT, "--tail", "jet", "-k", 2, "-l", "h7")
    compare = ("transport", "compare", "demo", tmp_path / "text.txt", "-f", whole, "--window", 16, "--resamples", 20)
    assert re.search(r"point\s+after\s+logit\s+jet 1 plain\s+jet 1 matched\s+transport", succeed(*compare))
    for wrong in (["lens", "demo", "the"], ["merge", tmp_path / "text.txt", "-o", whole]):
        assert invoke("transport", *wrong).exit_code == 2


def test_evaluate_lens(tmp_path):
    (tmp_path / "text.txt").write_text("Return the number of items in the list. " * 6, encoding="utf-8")
    text = succeed(
        *("evaluate-lens", "demo", tmp_path / "text.txt", "--orders", "0,1", "--window", 16, "--resamples", 50),
        *("-l", "L3.*", "-o", tmp_path / "a.parquet", "-o", tmp_path / "a.svg"),
    )
    assert re.search(r"point\s+after\s+ρ\s+order 0\s+order 1", text)
    options = ("--orders", "auto", "--tolerance", 0.5, "--window", 16, "--resamples", 50, "-l", "L3.*")
    auto = succeed("evaluate-lens", "demo", tmp_path / "text.txt", *options, "--rows", 1)
    assert re.search(r"point\s+after\s+chosen\s+ρ\s+order 0", auto)
    assert "chosen for each point to leave 0.5" in " ".join(auto.split())
    # Of more points than there is room for, the end of the stream, and that there are others.
    assert re.findall(r"^h\d", auto, re.MULTILINE) == ["h8"]
    assert "the last 1 of 2 rows; --rows prints more" in auto
    # Of the last position there are nine, and of all seven positions 63.
    lens = succeed("lens", "demo", "Raise Value", "--rows", "3")
    assert "the last 3 of 9 rows; --rows prints more, --output writes all 63" in lens
    end = re.search(r"h8\s+L3\.mlp\s+inf\s+(\S+)±\S+\s+(\S+)±", text)
    assert end is not None
    assert float(end[1]) == pytest.approx(0, abs=1e-5)
    assert (tmp_path / "a.parquet").read_bytes().startswith(b"PAR1")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


# N-grams


def test_ngrams_are_those_of_the_weights(demo, tmp_path):
    file = tmp_path / "a.csv"
    text = succeed("ngrams", "demo", "--top", 30, "--no-identity", "--rows", 5, "-o", file, "--memory", "8M")
    with torch.no_grad():
        embedding = demo.model.transformer.wte.weight
        table = demo.model.lm_head(demo.model.transformer.ln_f(embedding)).softmax(-1).fill_diagonal_(0)
    best = table.flatten().topk(30)
    rows = read(file)
    assert [float(row["probability"]) for row in rows] == pytest.approx(best.values.tolist(), rel=1e-4)
    pair = divmod(int(best.indices[0]), table.shape[1])
    assert (int(rows[0]["token id"]), int(rows[0]["next id"])) == pair
    assert "5 of 30 rows" in text


def test_ngrams_are_screened():
    succeed("lens", "demo", "Raise", "--json")
    command = ("ngrams", "demo", "--top", 10)
    assert (printed := succeed(*command, "--screen", "bf16")) == succeed(*command)
    assert "put before it" not in printed  # which is told of the prompt of the command that has one


def test_ngrams_of_chosen_tokens(demo, tmp_path):
    file = tmp_path / "a.csv"
    the = demo.tokenizer(" the")["input_ids"][0]
    succeed(
        *("ngrams", "demo", "-n", 3, "-p", "embed > L1.attn.head2 > logits", "--first", "#300", "--first", "#301"),
        *("--second", " the", "--per", "row", "--top", 4, "--scores", "logit", "-o", file),
    )
    rows = read(file)
    assert [row["first id"] for row in rows] == ["300"] * 4 + ["301"] * 4
    assert {row["second id"] for row in rows} == {str(the)}
    assert all(float(row["logit"]) > 0 for row in rows)


def test_ngrams_resume(tmp_path, monkeypatch):
    command = ("ngrams", "demo", "--top", 10, "--resume", tmp_path / "state")
    whole = succeed(*command)
    assert list((tmp_path / "state").iterdir())
    assert succeed(*command) == whole

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("jetgraph.ngrams", interrupted)
    result = invoke(*command)
    assert result.exit_code == 130
    assert f"interrupted: the same command continues from {tmp_path / 'state'}" in result.stderr


def test_mass(demo, tmp_path):
    (tmp_path / "words.txt").write_text("the # an article\nself\n", encoding="utf-8")
    text = succeed("mass", "demo", tmp_path / "words.txt", "-o", tmp_path / "a.csv", "-o", tmp_path / "a.png")
    with torch.no_grad():
        embedding = demo.model.transformer.wte.weight
        table = demo.model.lm_head(demo.model.transformer.ln_f(embedding)).softmax(-1)
    by_hand = []
    for word in ("the", "self"):
        spellings = [demo.tokenizer(text)["input_ids"] for text in (word, f" {word}")]
        assert [len(ids) for ids in spellings] == [1, 1]
        by_hand.append(sum(float(table[:, ids[0]].mean()) for ids in spellings))
    rows = read(tmp_path / "a.csv")
    assert [row["word"] for row in rows] == ["the", "self"]
    assert [float(row["mass"]) for row in rows] == pytest.approx(by_hand, rel=1e-4)
    assert "on 2 words" in text


def test_agreement(tmp_path):
    (tmp_path / "text.txt").write_text("the list of the items, the number of the items. " * 30, encoding="utf-8")
    text = succeed("agreement", "demo", tmp_path / "text.txt", "--top", "1,2", "--resamples", 50)
    assert re.search(r"path\s+hit@1\s+hit@2\s+spearman", text)
    for name in ("embed > logits", "embed > L3.mlp > logits", "unigram", "model"):
        assert re.search(rf"^{name}\s+[\d.]+±", text, re.MULTILINE), name


# Models


def test_diff_names_what_was_changed(checkpoints, tmp_path):
    file = tmp_path / "a.csv"
    succeed("diff", "demo", checkpoints / "step-30", "-p", "embed > L1.mlp > logits", "--top", 5, "-o", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.paths.csv", "a.sites.csv"]
    changes = {row["site"]: float(row["change"]) for row in read(tmp_path / "a.sites.csv")}
    assert changes.pop("L1.mlp") == pytest.approx(0.5, rel=1e-5)
    assert set(changes.values()) == {0.0}
    assert [row["kind"] for row in read(file)] == ["gained"] * 5 + ["lost"] * 5
    distances = {row["path"]: float(row["total_variation"]) for row in read(tmp_path / "a.paths.csv")}
    assert distances["embed > logits^0"] < 1e-9 < distances["embed > L1.mlp^0 > logits^0"]


def test_compare_tells_what_was_changed_on_prompts(checkpoints, tmp_path):
    file = tmp_path / "a.csv"
    other = checkpoints / "step-30"
    text = succeed("compare", "demo", other, "Raise Value", "for i in", "--top", 3, "-o", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.paths.csv", "a.prompts.csv"]
    assert "no other path changes by more than" in text
    rows = read(tmp_path / "a.prompts.csv")
    moved = [float(row["target_b"]) - float(row["target_a"]) for row in rows]
    changes = {row["component"]: float(row["direct"]) for row in read(file)}
    assert sum(changes.values()) == pytest.approx(sum(moved) / 2, abs=1e-4)
    assert {"L1.attn", "L1.mlp"} <= set(changes)
    words = ("Raise Value", "-t", "Error", "--versus", "ue", "--heads", "--top", 1)
    facts = json.loads(succeed("compare", "demo", other, *words, "--json"))
    assert list(facts) == ["title", "prompts", "components", "paths"]
    assert facts["prompts"]["columns"]["target"] == ["'Error' − 'ue'"]
    assert {"L1.attn.head2", "L1.mlp"} <= set(facts["components"]["columns"]["component"])


def test_ablations_of_features_have_no_tokens(tmp_path):
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = torch.nn.Embedding(1024, 4), torch.nn.Linear(4, 4)

        def forward(self, input_ids):
            h = self.embed(input_ids)
            return h + torch.tanh(self.layer(h))

    graph = trace(Encoder().eval(), input_ids=torch.arange(3)[None])
    folder = jg.save(graph, tmp_path / "graph", tokenizer=load("demo").tokenizer)
    printed = succeed("ablate", folder, PROMPT)
    assert "distance is ‖ablated − output‖ / ‖output‖" in printed
    assert "kl" not in printed
    columns = json.loads(succeed("ablate", folder, PROMPT, "--json"))["columns"]
    assert set(columns) >= {"predicted_distance", "actual_cosine"}
    assert not set(columns) & {"predicted_kl", "actual_top", "predicted_centred"}


def test_trajectory_sorts_by_step(checkpoints, tmp_path):
    folders = [checkpoints / f"step-{step}" for step in (200, 30)]
    words = tmp_path / "words.txt"
    words.write_text("self", encoding="utf-8")
    file = tmp_path / "a.csv"
    succeed("trajectory", *folders, "-p", "embed > L1.mlp > logits", "--top", 50, "--keywords", words, "-o", file)
    rows = read(file)
    assert [row["checkpoint"] for row in rows] == ["30", "200"]
    assert float(rows[0]["hit_ratio"]) < float(rows[1]["hit_ratio"]) == 1
    assert float(rows[0]["keyword_mass"]) != float(rows[1]["keyword_mass"]) > 0


# Interventions


def removed(loaded, name: str) -> torch.Tensor:
    """Logits at the end of the prompt when a module gives zeros."""
    hook = loaded.model.get_submodule(name).register_forward_hook(
        lambda _, __, output: (
            (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)
        )
    )
    found = logits(loaded)
    hook.remove()
    return found


def test_ablate(demo, tmp_path):
    text = succeed("ablate", "demo", PROMPT, "-o", tmp_path / "a.csv", "-o", tmp_path / "a.png")
    rows = {row["path"]: row for row in read(tmp_path / "a.csv")}
    best = int(logits(demo).argmax())
    for alias, name in (("L0.mlp", "transformer.h.0.mlp"), ("L3.attn", "transformer.h.3.attn")):
        change = float((removed(demo, name) - logits(demo))[best])
        assert float(rows[f"{alias} > logits"]["actual"]) == pytest.approx(change, abs=1e-4)
    printed = [line.split()[0] for line in text.splitlines() if " > logits " in line]
    sizes = {
        alias: max(abs(float(rows[f"{alias} > logits"][name] or 0)) for name in ("predicted", "actual"))
        for alias in printed
    }
    assert list(sizes) == sorted(sizes, key=lambda alias: -sizes[alias])
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_ablate_heads_at_a_scale(tmp_path):
    command = ("ablate", "demo", PROMPT, "-s", "L1.attn.* > logits", "-t", "Error", "--scale")
    changes = []
    for number, scale in enumerate((0, 2)):
        succeed(*command, scale, "--heads", "-o", tmp_path / f"{number}.csv")
        rows = read(tmp_path / f"{number}.csv")
        assert [row["path"] for row in rows[:2]] == ["L1.attn.head0 > logits", "L1.attn.head1 > logits"]
        assert {row["target"] for row in rows} == {"'Error'"}
        changes.append([float(row["predicted"]) for row in rows])
    assert changes[0] == pytest.approx([-change for change in changes[1]], rel=1e-4)


def test_patch(demo, tmp_path):
    command = ("patch", "demo", PROMPT, "Raise Key", "-t", "Error", "-s", "L3.*", "-s", "embed", "-r", "logits")
    succeed(*command, "--screen", 3, "-o", tmp_path / "a.csv", "-o", tmp_path / "a.png")
    rows = {row["sender"]: row for row in read(tmp_path / "a.csv")}
    assert set(rows) == {"embed", "L3.attn", "L3.mlp"}
    # After the last branch there is only the decoder; and prompts of equal length differ in their embeddings alone.
    assert float(rows["L3.mlp"]["effect"]) == pytest.approx(float(rows["L3.mlp"]["total"]), abs=1e-4)
    error = demo.tokenizer("Error")["input_ids"][0]
    change = float((logits(demo, "Raise Key") - logits(demo))[error])
    assert float(rows["embed"]["total"]) == pytest.approx(change, abs=1e-4)
    assert all(float(row["estimate"]) for row in rows.values())
    succeed("ablate", *command[1:3], "--corrupt", *command[3:6], "-s", "L3.mlp > logits", "-o", tmp_path / "b.csv")
    (row,) = read(tmp_path / "b.csv")
    assert float(row["predicted"]) == pytest.approx(float(rows["L3.mlp"]["effect"]), abs=1e-4)
    assert float(row["actual"]) == pytest.approx(float(rows["L3.mlp"]["total"]), abs=1e-4)


def test_patch_by_lines(tmp_path):
    """Of pairs in files, line by line, it is the mean of what each pair tells, for the token of its own line."""
    pairs = (("Raise Value", "Print Value", "Error"), ("Raise an exception if", "Print an exception of", " the"))
    files = [tmp_path / name for name in ("clean", "corrupt", "tokens")]
    for file, lines in zip(files, zip(*pairs, strict=True), strict=True):
        file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    clean, corrupt, tokens = (f"@{file}" for file in files)

    def changes(*arguments):
        columns = json.loads(succeed("patch", "demo", *arguments, "-s", "L3.attn", "-r", "logits", "--json"))["columns"]
        return [columns[name][0] for name in ("effect", "total")]

    for more in ([], ["--versus", " of"]):
        alone = [changes(one, other, "-t", token, *more) for one, other, token in pairs]
        means = [sum(change) / len(alone) for change in zip(*alone, strict=True)]
        assert changes(clean, corrupt, "--lines", "-t", tokens, *more) == pytest.approx(means, rel=1e-4)
    # A text stands for as many lines as there are of the other.
    files[1].write_text("Print Value\n" * 2, encoding="utf-8")
    assert changes("Raise Value", corrupt, "--lines") == pytest.approx(changes("Raise Value", "Print Value"), rel=1e-4)
    one_line(invoke("patch", "demo", clean, corrupt, "--lines"), "the prompts of line 2 have 6 and 7 tokens")
    files[2].write_text("Error\n" * 3, encoding="utf-8")
    one_line(invoke("patch", "demo", clean, tokens, "--lines"), "CLEAN has 2 lines and CORRUPT 3")
    one_line(invoke("patch", "demo", clean, clean, "--lines", "-t", tokens), "3 targets for 2 examples")


def test_expand_splits_heads():
    text = succeed("expand", "demo", "--recipe", "components", "--split", "heads", "--prompt", PROMPT)
    assert "L0.attn.head3" in text
    error = re.search(r"max error ([\d.e+-]+)", text)
    assert error is not None
    assert float(error[1]) < 1e-4


# Bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lens", "demo", "the", "-o", "a.docx"], "'a.docx' names no format"),
        (["attribute", "demo", "the", "--drawn", "9"], "--drawn is for a picture of the graph"),
        (["attribute", "demo", "the", "--drawn", "0", "-o", "a.png"], "0 is too small: give 1 or more"),
        (["lens", "demo", "the", "-o", "no/a.csv"], "does not exist"),
        (["lens", "demo"], "PROMPT"),
        (["evaluate-lens", "demo", "nothing.txt"], "there is no text file nothing.txt"),
        (["evaluate-lens", "demo", "no/where.txt"], "there is no text file no/where.txt: there is no folder no"),
        (["evaluate-lens", "demo", "emty.txt"], "there is no text file emty.txt, but empty.txt"),
        (["mass", "demo", "."], ". is a folder, and no text file"),
        (["evaluate-lens", "demo", "nothing.txt", "--orders", "0;1"], "--orders '0;1'"),
        (["evaluate-lens", "demo", "@empty.txt"], "holds no text"),
        (["evaluate-lens", "demo", "-"], "stdin comes once"),
        (["lens", "demo", "empty.txt"], "@empty.txt is what it holds"),
        (["evaluate-lens", "demo", "binary.txt"], "no UTF-8 text"),
        (["ngrams", "demo", "--memory", "much"], "--memory 'much'"),
        (["ngrams", "demo", "--second", "#1"], "needs -n 3"),
        (["ngrams", "demo", "--resume", "empty.txt"], "name a folder"),
        (["ngrams", "demo", "-n", "4"], "-n"),
        (["ngrams", "demo", "--screen", "int8"], "bf16"),
        (["mass", "demo", "nothing.txt"], "there is no text file"),
        (["agreement", "demo", "nothing.txt"], "there is no text file"),
        (["cache"], "Missing command: jetgraph cache list or clear"),
        (["cache", "zzz"], "'zzz': jetgraph cache list or clear"),
        (["transport"], "Missing command: jetgraph transport fit, merge, lens or compare"),
        (["diff", "demo"], "MODEL_B"),
        (["compare", "demo", "demo"], "PROMPT"),
        (["trajectory"], "FOLDER"),
        (["trajectory", "demo", "run/nope"], "no folder 'run/nope'"),
        (["ablate", "demo", "the", "--heads", "--split", "neurons"], "leave one of the two out"),
        (["ablate", "demo", "the", "-t", "a", "-t", "b"], "with --versus"),
        (["patch", "demo", "the", "a", "-t", "a", "-t", "b"], "with --versus"),
        (["spectrum", "demo", "the", "-t", "a", "-t", "b"], "with --versus"),
        (["rank", "demo", "the", "-t", "a", "-t", "b", "--versus", "c"], "one --target, and 2"),
        (["ablate", "demo", "the", "--split", "L0.mlp"], "--split 'L0.mlp'"),
        (["ablate", "demo", "the", "--scale", "nan"], "--scale nan"),
        (["expand", "demo", "--split", "L0.mlp=some"], "a number of groups"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_told_before_a_model_is_loaded(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jg.loading, "load", None)
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    one_line(invoke(*arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lens", "demo", "the", "--layers", "h99"], "h99"),
        (["lens", "demo", ""], "no tokens"),
        (["ngrams", "demo", "--path", "embed > L9.mlp > logits"], "L9.mlp"),
        (["ngrams", "demo", "--first", "two words"], "holds one token"),
        (["ngrams", "demo", "--screen", "bf16", "--per", "row"], "leave screen out"),
        (["ngrams", "demo", "-n", "3", "--path", "embed > logits", "--first", "#1"], "makes no difference"),
        (["ablate", "demo", "the", "--target", "two words"], "two words"),
        (["expand", "demo", "--recipe", "beam", "--width", "2", "--target", "#999999"], "is no token"),
        (["ablate", "demo", "the", "--split", "L9.mlp=heads"], "L9.mlp"),
        (["patch", "demo", "the", "Raise Value"], "tokens"),
        (["patch", "demo", "the", "Return", "--senders", "L7.mlp"], "L7.mlp"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(arguments, says):
    one_line(invoke(*arguments), says)


def one_line(result, says: str) -> None:
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("jetgraph: ")
    assert says in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("lens", "demo", "a", "--widht", "3"), "--widht (Possible options: --width) (see jetgraph lens --help)"),
        (("lens", "demo", "a", "--figure-widt", "3"), "--figure-widt (see jetgraph lens --help)"),
        (("expand", "demo", "--figure-widt", "3"), "(Possible options: --figure-width)"),
        (("inspect", "demo", "--width", "3"), "--width (see jetgraph inspect --help)"),
        (("attribute", "demo", "a", "--top", "3"), "--top (see jetgraph attribute --help)"),
        (("rank", "demo", "a", "--tpo", "3"), "(Possible options: --top)"),
        (("rank", "demo", "a", "--head"), "(Possible options: --heads)"),
        (("inspect", "demo", "--no_cache"), "(Possible options: --no-cache)"),
        (("lens", "demo", "a", "--width", "3"), "--width is for a picture"),
        (("expand", "demo", "--figure-width", "3"), "--figure-width is for a picture"),
    ],
)
def test_an_unknown_option_is_told_with_those_that_fit(words, says) -> None:
    """Of this command, and told in its help; what is no more than a few letters in common is none."""
    one_line(invoke(*words), says)


def test_a_prompt_that_a_file_does_not_hold_is_told_by_its_name(tmp_path) -> None:
    file = tmp_path / "no text.txt"
    file.write_text("\n")
    one_line(invoke("lens", "demo", f"@{file}"), "no text.txt' holds no text")
    one_line(invoke("lens", "demo", "-"), "stdin holds no text")


def test_what_a_comparison_counts_is_read_by_thousands(tmp_path) -> None:
    result = invoke("diff", "demo", "demo:llama", "--contexts", "20")
    assert "102,400 probabilities of each model" in result.stderr
    assert re.search(r"transformer.wte +81,920\n", result.stdout), result.stdout


def test_missing_library_is_told_first(monkeypatch):
    monkeypatch.setattr(jg.loading, "load", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one_line(invoke("lens", "demo", "the", "-o", "a.parquet"), "pip install 'jetgraph[tables]'")


# Help and progress


@pytest.mark.parametrize(
    "name",
    [
        *(
            "lens",
            "joint-lens",
            "evaluate-lens",
            "ngrams",
            "mass",
            "agreement",
            "diff",
            "compare",
            "trajectory",
            "ablate",
        ),
        *(
            "patch",
            "expand",
            "inspect",
            "demo",
            "spectrum",
            "attribute",
            "faithfulness",
            "rank",
            "jet-expand",
            "survey",
        ),
    ],
)
def test_help_shows_an_example(name):
    text = succeed(name, "--help").partition("Example")[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    assert lines
    # None is so long that it is wrapped.
    assert all(line.startswith(f"jetgraph {name} ") for line in lines), lines


def test_help_shows_defaults_that_are_made_later():
    assert "[default: the model's top token]" in re.sub(r"[\s│]+", " ", succeed("ablate", "--help"))
    assert "[default: 1; lens and path: 0]" in re.sub(r"[\s│]+", " ", succeed("expand", "--help"))


def test_help_names_every_command():
    text = succeed("--help")
    two = ("diff", "compare", "trajectory")
    for name in ("lens", "joint-lens", "evaluate-lens", "ngrams", "mass", "agreement", *two, "patch"):
        assert re.search(rf"│ {name} ", text), name


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_write_over_the_line_before_them(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.working("tracing and streaming"):
        for _ in tqdm(range(2), desc="rows", file=screen, disable=None, leave=False, ncols=60):
            pass
    text = screen.getvalue()
    assert text.startswith("tracing and streaming …\r")
    assert "\n" not in text
    assert "rows" in text
    assert text.endswith("\r\x1b[2K")


def test_no_progress_where_there_is_no_terminal(capsys):
    with terminal.working("tracing"), terminal.progress("loading"):
        pass
    assert capsys.readouterr().err == ""


def test_sizes_and_sets():
    assert options.bytes_of("64k") == 2**16
    assert options.split_of(["L0.mlp=[[1,2],[5]]", "L1.*=heads"]) == {"L0.mlp": [[1, 2], [5]], "L1.*": "heads"}
    for text in ("", "0", "-1G", "nanG", "infG"):
        with pytest.raises(jg.InputError, match="--memory"):
            options.bytes_of(text)


def test_spectrum(tmp_path):
    files = ("-o", tmp_path / "a.csv", "-o", tmp_path / "a.png")
    printed = succeed("spectrum", "demo", PROMPT, "--by", "attn", *files, "--width", "3.4")
    assert "centred logit of 'Error' by attn, 768 paths" in printed
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["class"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-4)
    picture = (tmp_path / "a.png").read_bytes()
    assert picture.startswith(PNG)
    assert int.from_bytes(picture[16:20]) / RESOLUTION == pytest.approx(3.4, abs=0.2)
    one_line(invoke("spectrum", "demo", PROMPT, "--figure-width", "3.4", "-o", tmp_path / "a.csv"), "for a picture")
    told = json.loads(succeed("spectrum", "demo", PROMPT, "--by", "** > L3.mlp > logits=last MLP", "--json"))
    assert told["columns"]["class"] == ["last MLP", "rest"]
    apart = json.loads(succeed("spectrum", "demo", PROMPT, "--by", "attn", "-t", "Error", "--versus", "ue", "--json"))
    assert "logit difference of 'Error' − 'ue' by attn" in apart["title"]
    for wrong in (["--by", "nothing"], ["--rules", "none"], ["--by", "a", "--by", "b"]):
        assert invoke("spectrum", "demo", PROMPT, *wrong).exit_code == 2


def test_attribute(tmp_path):
    files = [tmp_path / name for name in ("a.graphml", "a.csv", "a.png")]
    printed = succeed(
        "attribute", "demo", PROMPT, "-t", "Error", "--heads", *(x for file in files for x in ("-o", file))
    )
    assert "'Error'@6" in printed
    assert "which carry" in printed
    assert "rest" in jg.read_graph(files[0]).nodes
    assert files[2].read_bytes().startswith(PNG)
    told = json.loads(succeed("attribute", "demo", PROMPT, "-t", "Error", "--versus", "ue", "--paths", "3", "--json"))
    assert [text.count(" > ") >= 1 for text in told["columns"]["path"]] == [True] * 3
    for wrong in (
        ["--versus", "ue"],
        ["--nodes", "0"],
        ["--paths", "2", "-o", tmp_path / "a.graphml"],
        ["--memory", "x"],
    ):
        assert invoke("attribute", "demo", PROMPT, *wrong).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["attribute", "nowhere", "a", "--nodes", "2"], "2 is no share of the influence"),
        (["attribute", "nowhere", "a", "--edges", "nan"], "nan is no share of the influence"),
        (["faithfulness", "nowhere", "a", "--nodes", "0"], "0 is no share of the influence"),
        (["transport", "lens", "nowhere", "a", "-f", "none.safetensors"], "there is no file 'none.safetensors'"),
        (
            ["transport", "compare", "nowhere", __file__, "-f", "none.safetensors"],
            "there is no file 'none.safetensors'",
        ),
    ],
)
def test_what_is_wrong_without_any_model_is_told_before_one_is_loaded(arguments, told):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_faithfulness(tmp_path):
    command = ("faithfulness", "demo", PROMPT, "-t", "Error", "--sizes", "0.1,0.3")
    printed = succeed(*command, "-o", tmp_path / "a.csv", "-o", tmp_path / "a.png")
    assert "CPR" in printed
    assert [row["components"] for row in csv.DictReader((tmp_path / "a.csv").open())] == ["0", "6", "17", "56"]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    more = ("--ablation", "resample", "--other", "Raise Key", "--of-edges", "--json")
    told = json.loads(succeed("faithfulness", "demo", PROMPT, "-t", "Error", "--sizes", "0.1", *more))
    assert told["columns"]["faithfulness"][-1] == 1
    for wrong in (["--ablation", "mean"], ["--other", "the"], ["--sizes", "a"], ["--sizes", "2"]):
        assert invoke("faithfulness", "demo", PROMPT, *wrong).exit_code == 2


def test_expand_ranks():
    command = (
        "expand",
        "demo",
        "--recipe",
        "frozen",
        "--prompt",
        PROMPT,
        "--rank",
        "-t",
        "Error",
        "--rows",
        3,
        "--json",
    )
    told = json.loads(succeed(*command))["columns"]
    assert told == json.loads(succeed("rank", "demo", PROMPT, "-t", "Error", "--top", 3, "--json"))["columns"]
    printed = succeed("expand", "demo", "--prompt", PROMPT, "--rank", "-t", "Error", "-s", "** > L3.mlp > logits")
    assert "all 512 evaluated" in " ".join(printed.split())
    one_line(invoke("expand", "demo", "--rank"), "give --prompt")
    # Without a rank, the paths as JSON, and what their terms are on a prompt.
    some = ("expand", "demo", "--recipe", "frozen", "-s", "embed > *.mlp > logits", "--json")
    told = json.loads(succeed(*some, "--rows", 3))
    assert (told["paths"], told["columns"]["path"][-1]) == ("4", "embed > L1.mlp > logits")
    assert len(json.loads(succeed(*some, "--prompt", PROMPT))["columns"]["norm"]) == 4


def test_rank(tmp_path):
    printed = succeed("rank", "demo", PROMPT, "-t", "Error", "--top", "3", "-o", tmp_path / "a.csv")
    assert "embed > L0.attn > L0.mlp > logits" in printed
    assert len(list(csv.DictReader((tmp_path / "a.csv").open()))) == 3
    told = json.loads(succeed("rank", "demo", PROMPT, "-t", "Error", "--at-least", "0.9", "--positions", "--json"))
    assert told["columns"]["path"][0] == "embed@6 > L0.mlp@6 > logits"
    for more, title in (
        (["-t", "ue"], "'Error' + 'ue' at position 6"),
        (["--versus", "ue"], "'Error' − 'ue' at position 6"),
    ):
        told = json.loads(succeed("rank", "demo", PROMPT, "-t", "Error", *more, "--top", "1", "--json"))
        assert title in told["title"]
    assert invoke("rank", "demo", PROMPT, "--at-least", "-1").exit_code == 2


SEVERAL = {
    "attribute": ["-t", "Error", "--paths", "1", "--no-positions"],
    "faithfulness": ["-t", "Error", "--sizes", "0.3"],
    "jet-expand": ["--at", "L1.mlp", "-c", "blocks"],
    "joint-lens": [],
    "lens": ["--order", "1", "-l", "*.mlp"],
    "patterns": ["-b", "L1.attn"],
    "rank": ["-t", "Error", "--top", "1"],
    "spectrum": ["--by", "attn"],
    "transport lens": ["--tail", "frozen"],
    "ablate": ["-t", "Error", "-p", "*.mlp > logits"],
}


@pytest.mark.parametrize("command", SEVERAL)
def test_of_several_prompts_each_is_looked_at_by_itself(command, tmp_path, monkeypatch):
    """Under its tokens; a table has all of them, as each has its own, and a picture or graph one."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("p.txt").write_text("Raise\n\nthe\n", encoding="utf-8")
    pictures = ["-o", "a.png"] if command in ("lens", "rank") else []
    written = ("-o", "a.csv", *pictures, "--rows", 2)
    printed = succeed(*command.split(), "demo", "@p.txt", "--lines", *SEVERAL[command], *written)
    texts = [text for text in printed.splitlines() if "no token is put before it" in text]
    assert [text.split()[0] for text in texts] == ["3", "1"]
    succeed(*command.split(), "demo", "the", *SEVERAL[command], "-o", "b.csv")
    both, alone = read("a.csv"), read("b.csv")
    numbers = [row.pop("example") for row in both]
    assert numbers == ["0"] * (len(both) - len(alone)) + ["1"] * len(alone)
    assert both[-len(alone) :] == [{name: row[name] for name in both[0]} for row in alone]
    assert both[: len(alone)] != both[-len(alone) :]
    made = {file.name for file in tmp_path.iterdir()} - {"p.txt", "a.csv", "b.csv"}
    assert made == ({"a.0.png", "a.1.png"} if pictures else set())


def test_of_several_prompts_each_has_its_graph_and_its_other_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed("attribute", "demo", "Raise", "the", "-o", "a.graphml", "--nodes", 0.5)
    assert {node["token"] for _, node in jg.read_graph("a.1.graphml").nodes(data=True) if node.get("token")} == {
        "'the'"
    }
    others = ("--corrupt", "Raise Valid", "--corrupt", "a", "--json")
    told = json.loads(succeed("ablate", "demo", "Raise Value", "the", "-t", "Error", *others))["columns"]["actual"]
    one = json.loads(succeed("ablate", "demo", "the", "-t", "Error", "--corrupt", "a", "--json"))["columns"]["actual"]
    assert told[-len(one) :] == one
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    pathlib.Path("b.1.png").mkdir()
    for wrong, says in (
        (["ablate", "demo", "a", "b", "c", "--corrupt", "a", "--corrupt", "b"], "one for all, one for each"),
        (["lens", "demo", "the", "--lines"], "give @FILE, or -"),
        (["lens", "demo", "-", "--lines"], "no line of '-' holds a text"),
        (["lens", "demo", "a", "b", "-o", "b.png"], "b.1.png: it is a folder"),
        (["expand", "demo", "--prompt", "a", "--prompt", "b"], "--prompt was given 2 times"),
        (["demo", "--prompt", "a", "--prompt", "b"], "one text is shown"),
        (["patch", "demo", "a", "b", "c"], "unexpected extra argument"),
    ):
        one_line(invoke(*wrong), says)


AT_ONE = {
    "ablate": "predicted",
    "attribute": "flow",
    "patch": "effect",
    "rank": "value",
    "spectrum": "value",
}
"""Commands with --position, and what they tell there."""


@pytest.mark.parametrize("command", AT_ONE)
def test_a_position_is_what_a_prompt_that_ends_there_is(command):
    """What comes later in a causal model makes no difference."""
    whole, begun = (["Raise", "Value"], ["R", "V"]) if command == "patch" else (["Raise"], ["R"])
    more = ["-t", "E", *(["--top", "2"] if command == "rank" else [])]
    told = [
        json.loads(succeed(command, "demo", *texts, *more, "--json"))["columns"][AT_ONE[command]]
        for texts in ([*whole, "--position", "0"], begun)
    ]
    one, other = ([cell for cell in facts if cell] for facts in told)
    assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    if command == "spectrum":
        for text in ("9", "here"):
            one_line(invoke(command, "demo", "the", "--position", text), text)
