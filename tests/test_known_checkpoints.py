"""What commands know of a checkpoint from an earlier one: the same numbers without the model's code, or nothing."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import jetgraph as jg
from jetgraph.loading import CheckpointWarning, Loaded, known, load_to_look, loading_with, naming

LLAMA = transformers.LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A Llama of one layer, whose rotary frequencies are in no file, and a cache that is empty."""
    monkeypatch.setenv("JETGRAPH_CACHE", str(tmp_path / "cache"))
    # However new the code is that is tested.
    monkeypatch.setattr(known, "_BEGUN", time.time_ns() + 10**12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(LLAMA).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded by transformers."""
    done: list[str] = []
    load = naming.load_checkpoint

    def load_checkpoint(name: str, *rest: object) -> Loaded:
        done.append(name)
        return load(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(naming, "load_checkpoint", load_checkpoint)
    return done


def look(folder: pathlib.Path, rows: int = 2) -> tuple[Loaded, jg.ResidualGraph]:
    loaded = load_to_look(str(folder))
    ids = loaded.inputs()["input_ids"][:rows]
    return loaded, loaded.trace({"input_ids": ids})


def test_the_second_look_is_the_first_one_without_the_model(folder: pathlib.Path, loads: list[str]) -> None:
    first, whole = look(folder)
    assert len(loads) == 1
    second, known_graph = look(folder)
    assert len(loads) == 1
    assert str(known_graph) == str(whole)
    assert known_graph.check == whole.check
    assert second.facts == first.facts
    assert (second.parameters, second.dtype, second.device) == (first.parameters, first.dtype, first.device)
    assert second.reader.longest == 64
    ids = torch.randint(32, (3, 5))
    with torch.no_grad():
        assert torch.equal(known_graph(input_ids=ids), whole(input_ids=ids))
        terms = [jg.compile(jg.expand(graph, 1, recipe="components"))(input_ids=ids) for graph in (known_graph, whole)]
        assert torch.equal(terms[0].total, terms[1].total)
    # Whoever asks for the model gets it, loaded once.
    assert type(second.model) is transformers.LlamaForCausalLM
    assert second.model is second.model
    assert len(loads) == 2
    # One row is another kind of inputs, of which the next process knows too.
    look(folder, rows=1)
    assert len(loads) == 3
    for rows in (1, 2):
        look(folder, rows)
    assert len(loads) == 3


def test_what_a_config_says_of_tokens_is_known_too(folder: pathlib.Path, loads: list[str]) -> None:
    """Tables of n-grams and lenses on a text ask for it."""
    for _ in range(2):
        loaded = load_to_look(str(folder))
        assert jg.ngrams(loaded, "embed > L0.mlp > logits", top=1).rows == 32
        jg.evaluate_lens(loaded, torch.arange(8).view(2, 4), orders=(0,), layers=[1], resamples=2)
        assert len(loads) == 1


def _weights(folder: pathlib.Path) -> None:
    """One number, and the time of change put back."""
    file = folder / "model.safetensors"
    before, weights = file.stat(), load_file(file)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] += 1
    save_file(weights, file, {"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _config(folder: pathlib.Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.1}))


def _code(folder: pathlib.Path) -> None:
    (folder.parent / "some_code.py").write_text("VALUE = 2\n")


def _record(folder: pathlib.Path) -> None:
    """Another number of parameters than was found."""
    (file,) = (folder.parent / "cache" / "checkpoints").iterdir()
    content = file.read_bytes()
    place = content.index(b"vocabulary")
    file.write_bytes(content[:place] + content[place:].replace(b"32", b"31", 1))


def _half_a_record(folder: pathlib.Path) -> None:
    (file,) = (folder.parent / "cache" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:300])


def _table(folder: pathlib.Path) -> None:
    """The rotary frequencies of the record."""
    (file,) = (folder.parent / "cache" / "checkpoints").iterdir()
    with safe_open(file, "pt") as stored:
        header, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert tensors
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file, header)


def _trace(folder: pathlib.Path) -> None:
    """Another program."""
    (file,) = (folder.parent / "cache" / "traces").iterdir()
    content = file.read_bytes()
    place = content.index(b"aten:silu")
    file.write_bytes(content[:place] + b"aten:relu" + content[place + 9 :])


def _no_trace(folder: pathlib.Path) -> None:
    (file,) = (folder.parent / "cache" / "traces").iterdir()
    file.unlink()


def test_where_anything_differs_nothing_is_known(
    folder: pathlib.Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the model is loaded, asked again, and known anew."""
    code = folder.parent / "some_code.py"
    code.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(folder.parent)
    importlib.import_module("some_code")
    look(folder)
    changes: list[Callable[[pathlib.Path], None]] = [
        _code, _record, _half_a_record, _table, _trace, _no_trace, _weights, _config,
    ]  # fmt: skip
    for change in changes:
        look(folder)
        before = len(loads)
        change(folder)
        loaded, graph = look(folder)
        assert type(loaded.model) is transformers.LlamaForCausalLM
        assert len(loads) == before + 1, change
        with torch.no_grad():
            assert torch.equal(graph(**loaded.inputs()), loaded.model(**loaded.inputs(), use_cache=False).logits), (
                change
            )
        before = len(loads)
        look(folder)
        assert len(loads) == before, change
    sys.modules.pop("some_code")


def test_other_options_and_settings_are_asked_anew(
    folder: pathlib.Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(folder)
    with loading_with(dtype="bfloat16"):
        _, first = look(folder)
        assert len(loads) == 2
        second, graph = look(folder)
        assert len(loads) == 2
        assert second.dtype == "bfloat16"
        ids = second.inputs()
        with torch.no_grad():
            assert torch.equal(graph(**ids), first(**ids))
    monkeypatch.setenv("TRANSFORMERS_SETTING", "1")
    look(folder)
    assert len(loads) == 3
    monkeypatch.setattr(known, "_BEGUN", 0)
    monkeypatch.setenv("TRANSFORMERS_SETTING", "2")
    for _ in range(2):
        # Code that may have changed since it was imported.
        look(folder)
    assert len(loads) == 5
    monkeypatch.setenv("JETGRAPH_CACHE", "off")
    for _ in range(2):
        look(folder)
    assert len(loads) == 7


def test_what_is_to_be_said_of_a_checkpoint_is_said_each_time(folder: pathlib.Path, loads: list[str]) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), "more.weight": torch.ones(3)}, file, {"format": "pt"})
    for _ in range(2):
        with pytest.warns(CheckpointWarning, match=r"more\.weight"):
            look(folder)
    assert len(loads) == 2


def test_a_second_command_imports_no_model_and_no_compiler(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests have imported may have brought packages of its own, as Ray does, which no command would see.
    paths = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.path)"], capture_output=True, text=True, check=True
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", ast.literal_eval(paths.stdout))
        _, graph = look(folder)
    code = (
        "import sys; from jetgraph.loading import known; known._BEGUN += 10**12; from jetgraph.cli import app\n"
        "app(sys.argv[1:], prog_name='jetgraph', standalone_mode=False); "
        "print('transformers' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "inspect", str(folder), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text, _, imported = found.rstrip().rpartition("\n")
    told = json.loads(text)
    assert imported == "False False"
    assert told["class"] == "LlamaForCausalLM"
    assert told["parameters"] == sum(p.numel() for p in transformers.LlamaForCausalLM(LLAMA).parameters())
    assert graph.check is not None
    assert told["replay"] == {"error": graph.check.error, "scale": graph.check.scale}
