"""The models in `jetgraph/models`, and the script that trained them."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from jetgraph.errors import JetGraphError
from jetgraph.models import bundled

NAMES = ("gpt2", "llama")
STDLIB = Path(sysconfig.get_paths()["stdlib"])
HELD_OUT_FILES = ("http/client.py", "imaplib.py", "ipaddress.py", "threading.py", "zipfile.py", "lzma.py", "uu.py")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path = Path(__file__).parents[1] / "examples" / "train_demo_model.py"
    spec = importlib.util.spec_from_file_location("train_demo_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a bundled model reached for the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(bundled(name))


def card_losses(name: str) -> dict[str, float]:
    rows = re.findall(
        r"^\| (.+?) \| \**([\d.]+)\** \| [\d.]+ \|$", (bundled(name) / "README.md").read_text("utf-8"), re.M
    )
    return {label: float(loss) for label, loss in rows}


def test_unknown_name_is_an_error_that_names_the_available_ones() -> None:
    with pytest.raises(JetGraphError, match=r"'bert'.*gpt2, llama"):
        bundled("bert")
    assert bundled() == bundled("gpt2")


def test_folder_holds_what_the_loaders_need_and_no_pickle(name: str) -> None:
    folder = bundled(name)
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= files
    assert not any(file.endswith((".bin", ".pt", ".pth", ".pkl")) for file in files)
    assert (folder / "model.safetensors").stat().st_size <= 2_000_000
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float32}  # noqa: SIM118


def test_embeddings_are_untied(model: PreTrainedModel) -> None:
    embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert model.config.tie_word_embeddings is False
    assert embedding.dtype == torch.float32
    assert embedding.data_ptr() != unembedding.data_ptr()
    assert not torch.allclose(embedding, unembedding, atol=0.1)
    assert 2 <= model.config.num_hidden_layers <= 4


@pytest.mark.parametrize("text", ["Return the list.\n\n    >>> f(x)\t# done  \n", "naïve — λ ∂ 🐍", " leading", "<x>"])
def test_tokenizer_gives_text_back(name: str, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled(name))
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 1024
    assert max(ids) < 1024
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|endoftext|>"


def test_held_out_loss_is_what_the_card_says(name: str, model: PreTrainedModel, script: ModuleType) -> None:
    texts = [
        tuple(script.extract_texts((STDLIB / file).read_text("utf-8")))
        for file in HELD_OUT_FILES
        if (STDLIB / file).exists()
    ]
    tokens = script.encode(AutoTokenizer.from_pretrained(bundled(name)), [script.Document("sample", t) for t in texts])
    loss = script.mean_loss(model, tokens[:6_000], 128)
    stated = card_losses(name)
    assert loss < math.log(1024) - 2
    assert loss == pytest.approx(stated["this model, held-out files"], abs=0.35)
    # The same tokens, the other way round in time: a model of order would do far worse.
    assert script.mean_loss(model, tokens[:6_000].flip(0), 128) > loss + 1


def test_sample_files_are_held_out(script: ModuleType) -> None:
    documents = [script.Document(file.removesuffix(".py").replace("/", "."), ()) for file in HELD_OUT_FILES]
    assert script.split(documents) == ((), tuple(documents))


def test_card_states_the_margin_over_the_bigram_model(name: str) -> None:
    losses = card_losses(name)
    bigram = min(loss for label, loss in losses.items() if "bigram" in label)
    assert losses["uniform"] == pytest.approx(math.log(1024), abs=1e-3)
    assert losses["this model, training files"] < losses["this model, held-out files"] <= bigram - 0.3


def test_greedy_text_is_made_of_words(name: str, model: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled(name))
    inputs = tokenizer("Return a list of", return_tensors="pt")
    first, second = (model.generate(**inputs, max_new_tokens=20, do_sample=False) for _ in range(2))
    assert torch.equal(first, second)
    text = tokenizer.decode(first[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert re.search(r"[a-z]{3,}", text)


# The script


def test_texts_are_docstrings_and_joined_comments_in_their_order(script: ModuleType) -> None:
    source = '''#!/usr/bin/env python
# -*- coding: utf-8 -*-
# First block,
#
#   dedented
#     as docstrings are.
"""Module.

    Body.
"""
class A:
    "A class."
    x = 1  # a trailing one
    # not part of it
    async def f(self):
        """   Coroutine."""
        return "# no comment", "no docstring"  # noqa: X
    #########
    # ok
'''
    assert list(script.extract_texts(source)) == [
        "First block,\n\ndedented\n  as docstrings are.",
        "Module.\n\nBody.",
        "A class.",
        "a trailing one",
        "not part of it",
        "Coroutine.",
    ]


def test_corpus_leaves_out_tests_and_copies_and_names_what_it_cannot_read(script: ModuleType, tmp_path: Path) -> None:
    for path, source in {
        "a.py": '"Licence of all."\n# Of a only.',
        "b/__init__.py": '"Licence  of\\nall."\n# Of b only.',
        "b/broken.py": "def (",
        "b/latin.py": "# \xff no utf-8",
        "tests/t.py": "# A test.",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(source.encode("latin-1"))
    corpus = script.load_corpus(tmp_path)
    assert corpus.documents == (
        script.Document("a", ("Licence of all.", "Of a only.")),
        script.Document("b", ("Of b only.",)),
    )
    assert corpus.skipped == ("b.broken", "b.latin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no docstring or comment"):
        script.load_corpus(tmp_path / "empty")


def test_split_is_a_partition_that_other_files_do_not_change(script: ModuleType) -> None:
    documents = [script.Document(f"module{i}", ()) for i in range(1000)]
    kept, apart = script.split(documents)
    assert sorted((*kept, *apart), key=documents.index) == documents
    assert 60 < len(apart) < 140
    assert script.split(documents[::7])[1] == tuple(d for d in documents[::7] if d in set(apart))


@pytest.mark.parametrize("bucketed", [False, True])
def test_bigram_is_a_distribution_and_its_loss_is_that_of_its_formula(script: ModuleType, bucketed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    vocabulary = 7
    # Token 6 is never seen, so that the uniform part and the bucket of unseen contexts are needed.
    tokens = (torch.rand(3000, generator=generator) ** 2 * 6).long()
    bigram = script.fit_bigram(tokens[:2000], tokens[1999:], vocabulary, bucketed)
    counts = np.zeros((vocabulary, vocabulary))
    for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
        counts[pair] += 1
    assert np.array_equal(bigram.counts, counts)
    assert np.allclose(bigram.weights.sum(axis=1), 1)
    for context in range(vocabulary):
        losses = [bigram.mean_loss(torch.tensor([context, word])) for word in range(vocabulary)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)
    if not bucketed:
        two, one, zero = bigram.weights[1]
        expected = two * counts[2, 3] / counts[2].sum() + one * counts[:, 3].sum() / counts.sum() + zero / vocabulary
        assert bigram.mean_loss(torch.tensor([2, 3])) == pytest.approx(-math.log(expected))


def test_mean_loss_is_the_mean_over_blocks_taken_one_by_one(
    name: str, model: PreTrainedModel, script: ModuleType
) -> None:
    tokens = torch.randint(1024, (3 * 32 + 10,), generator=torch.Generator().manual_seed(0))
    total = 0.0
    for start in range(0, len(tokens) - 1, 32):
        row = tokens[start : start + 33]
        with torch.no_grad():
            logarithms = model(row[None, :-1]).logits[0].double().log_softmax(-1)
        total -= logarithms.gather(1, row[1:, None]).sum().item()
    assert script.mean_loss(model, tokens, 32, batch=2) == pytest.approx(total / (len(tokens) - 1), rel=1e-5)


def test_training_is_reproducible_and_fails_below_the_margin(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", str(STDLIB / "json"), "--steps", "3", "--checkpoints", "3", "--threads", "1", "--output"]
    threads = torch.get_num_threads()
    for run, only in (("one", []), ("two", ["--architecture", "llama"])):
        assert script.main([*arguments, str(tmp_path / run), "--margin", "-10", *only]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    for architecture in NAMES:
        steps = {file.parent.name for file in files if file.parts[0] == f"{architecture}-checkpoints"}
        assert steps == {"step-000000", "step-000001", "step-000003"}
        assert Path(architecture, "README.md") in files
        assert json.loads((tmp_path / "one" / architecture / "config.json").read_text())["tie_word_embeddings"] is False
    assert any(file.parts[0] == "llama" for file in files)
    for file in files:
        # A card states how long training took.
        if file.parts[0].startswith("llama") and file.name != "README.md":
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()

    capsys.readouterr()
    assert script.main([*arguments, str(tmp_path / "short"), "--architecture", "gpt2", "--margin", "5"]) == 1
    assert "5.0 are required" in capsys.readouterr().err
    assert (tmp_path / "short" / "gpt2.rejected" / "model.safetensors").is_file()
    assert not (tmp_path / "short" / "gpt2").exists()


def test_a_folder_that_is_no_model_is_never_replaced(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "thesis.txt").write_text("years of work")
    arguments = ["--source", str(STDLIB / "json"), "--architecture", "gpt2", "--steps", "1", "--margin", "-10"]
    assert script.main([*arguments, "--output", str(tmp_path)]) == 1
    assert (tmp_path / "gpt2" / "thesis.txt").read_text() == "years of work"
