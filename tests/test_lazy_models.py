"""Models whose weights stay in their files: the numbers of the model in memory, and within the bound."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import jetgraph as jg
from benchmarks import larger_than_memory
from jetgraph.loading import Loaded, load_model
from tests.commands import invoke
from tests.lazy_checkpoints import LLAMA, saved, shelf_of, value

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, int]:
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("llama")
    return made, saved(transformers.LlamaForCausalLM(LLAMA), made)


@pytest.fixture(scope="module")
def both(folder: tuple[pathlib.Path, int]) -> tuple[jg.ResidualGraph, jg.ResidualGraph, Loaded]:
    """The graph over weights in files, the one over weights in memory, and the model of the former."""
    lazy = load_model(folder[0], weights="lazy", memory=folder[1] // 3)
    inputs, held = lazy.inputs(), load_model(folder[0])
    for parameter in held.model.parameters():
        # Where transformers has mapped the file, it begins anywhere, and products may round in another way.
        parameter.data = parameter.data.clone()
    return lazy.trace(inputs), held.trace(inputs), lazy


def test_numbers_are_those_of_the_model_in_memory_within_a_third_of_it(
    both: tuple[jg.ResidualGraph, jg.ResidualGraph, Loaded], folder: tuple[pathlib.Path, int]
) -> None:
    lazy, held, loaded = both
    shelf, ids = shelf_of(loaded.model), torch.arange(6)[None] * 7
    assert shelf.read == 0
    assert lazy.check is None
    with torch.no_grad():
        assert torch.equal(lazy(input_ids=ids), held(input_ids=ids))
        assert shelf.read == folder[1]
        assert torch.equal(loaded.model(input_ids=ids).logits, held(input_ids=ids))
    results = [
        (
            jg.lens(graph, ids, order=1).columns(),
            jg.spectrum(graph, ids, target=3).columns(),
            jg.attribute(graph, ids, target=3).columns(),
            jg.ngrams(graph, "embed > L0.mlp > logits", top=5).columns(),
        )
        for graph in (lazy, held)
    ]
    assert str(results[0]) == str(results[1])
    assert 0 < shelf.peak <= folder[1] // 3


def test_weights_that_accelerate_keeps_on_the_disk(
    both: tuple[jg.ResidualGraph, jg.ResidualGraph, Loaded], folder: tuple[pathlib.Path, int], tmp_path: pathlib.Path
) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, ids = load_model(folder[0]).model, torch.arange(6)[None] * 7
    places = {
        "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk",
        "model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk",
    }  # fmt: skip
    spread = accelerate.dispatch_model(model, places, "cpu", offload_dir=tmp_path, force_hooks=True)
    assert {parameter.device.type for parameter in spread.parameters()} == {"cpu", "meta"}
    graph = jg.trace(spread, input_ids=ids)
    for attribute in (False, True):
        one, other = (
            str(jg.attribute(each, ids, target=3).columns()) if attribute else each(input_ids=ids).tolist()
            for each in (graph, both[1])
        )
        assert one == other


def test_only_what_paths_read_is_read(folder: tuple[pathlib.Path, int]) -> None:
    graph = jg.trace(str(folder[0]), weights="lazy")
    assert jg.ngrams(graph, "embed > L1.mlp > logits", top=1).columns()
    tensors = graph.traced.tensors
    wanted = [name for name in tensors if "layers" not in name or ("layers.1." in name and "mlp" in name)]
    shelf = next(iter(tensors.values())).shelf  # type: ignore[attr-defined]
    norms = 3 * LLAMA.hidden_size * 4
    assert sum(tensors[name].nbytes for name in wanted) <= shelf.read + norms
    assert shelf.read <= sum(tensors[name].nbytes for name in wanted) + norms


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (transformers.MixtralForCausalLM(transformers.MixtralConfig(
            **SIZES, num_key_value_heads=2, intermediate_size=24, num_local_experts=3)), "bfloat16"),
        (transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=400)), None),
        (transformers.ResNetForImageClassification(transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])), None),
    ],
    ids=["experts stacked and cast", "tied", "buffers"],
)  # fmt: skip
def test_weights_are_what_transformers_makes_of_them(
    model: nn.Module, dtype: str | None, tmp_path: pathlib.Path
) -> None:
    saved(model, tmp_path)
    lazy, held = load_model(tmp_path, weights="lazy", dtype=dtype), load_model(tmp_path, dtype=dtype)
    assert shelf_of(lazy.model).read <= sum(buffer.nbytes for buffer in held.model.buffers())
    found, expected = lazy.model.state_dict(), held.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value(found[name]), expected[name]) for name in expected)
    assert len(list(lazy.model.parameters())) == len(list(held.model.parameters()))
    example = torch.arange(8)[None] if lazy.model.main_input_name == "input_ids" else torch.randn(1, 3, 32, 32)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(lazy.model(example).logits, held.model(example).logits)
    assert lazy.stand_in is not None
    assert lazy.stand_in(example).logits.isfinite().all()


def test_what_cannot_be_read_one_by_one_is_refused(folder: tuple[pathlib.Path, int], tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(LLAMA)
    saved(model, tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    config = {**facts, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(jg.LoadError, match="are quantised \\(fp8\\)"):
        load_model(tmp_path, weights="lazy")
    (tmp_path / "config.json").write_text(json.dumps(facts))
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(jg.LoadError, match=r"no model\.safetensors"):
        load_model(tmp_path, weights="lazy")
    with pytest.raises(jg.InputError, match="goes with that alone"):
        load_model(folder[0], memory=100)
    with pytest.raises(jg.InputError, match="do not go together"):
        load_model(folder[0], weights="lazy", meta=True)
    with pytest.raises(jg.BudgetError, match="--weights-memory") as refused:
        jg.ngrams(jg.trace(str(folder[0]), weights="lazy", memory=100), top=1)
    # Of the first weight that is read, which is not the largest; and enough for all of them.
    fits = int(str(refused.value).partition("memory=100: ")[2].partition("memory=")[2].split()[0])
    graph = jg.trace(str(folder[0]), weights="lazy", memory=fits)
    assert jg.ngrams(graph, top=1).columns()
    assert jg.attribute(graph, torch.arange(4)[None], target=3).columns()


def test_commands_read_weights_when_they_use_them(folder: tuple[pathlib.Path, int]) -> None:
    plain = invoke("lens", str(folder[0]), "--help")
    assert "--weights-memory" in plain.output
    found = invoke("ngrams", str(folder[0]), "--top", "3", "--lazy", "--weights-memory", "16K", "--json")
    expected = invoke("ngrams", str(folder[0]), "--top", "3", "--json")
    assert found.exit_code == 0, found.output
    assert found.output == expected.output
    refused = invoke("ngrams", str(folder[0]), "--weights-memory", "16K")
    assert "goes with that alone" in refused.output


@pytest.mark.slow
def test_a_checkpoint_three_times_the_memory_that_the_process_may_map(tmp_path: pathlib.Path) -> None:
    """Of some 320 MiB, of which the process may map a third and 192 MiB to work with: the passes of `benchmarks`."""
    model = larger_than_memory.save(tmp_path, 320, width=1536)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    with torch.no_grad():
        expected = larger_than_memory.digest(model(torch.arange(larger_than_memory.TOKENS)[None]).logits)
    ran = subprocess.run(
        [sys.executable, "-c", larger_than_memory.CODE, str(tmp_path), "lazy", "1"],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    assert size // 3 + larger_than_memory.WORKING < size
    assert found["live"] <= size // 3 < found["read"]
    assert found["resident"] < size
    assert found["output"] == [expected]
