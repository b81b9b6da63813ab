"""Loading: what a checkpoint lacks is told, and what it may well lack is not."""

import json
import pathlib
import sys
import zipfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.loading import CheckpointWarning, Loaded, LoadError, load
from jetgraph.saving.traces import key_of
from tests.commands import invoke

Weights = dict[str, Tensor]

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = transformers.BertConfig(**SIZES, intermediate_size=24)
GPT2 = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)
T5 = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
RESNET = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])


def change(folder: pathlib.Path, weights: Callable[[Weights], Weights] | None = None, **config: object) -> pathlib.Path:
    """Change the weights and the config of a saved model."""
    if weights is not None:
        changed = weights(load_file(folder / "model.safetensors"))
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    facts = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def gpt2(tmp_path: pathlib.Path) -> pathlib.Path:
    """A GPT-2 of two layers, to be damaged."""
    transformers.GPT2LMHeadModel(GPT2).save_pretrained(tmp_path)
    return tmp_path


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


def renamed(weights: Weights) -> Weights:
    return {f"old.{name}": value for name, value in weights.items()}


def shortened(weights: Weights) -> Weights:
    return {name: value[:5].clone() if name.endswith("wpe.weight") else value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("weights", "config", "says"),
    [
        (without("h.1.mlp.c_proj.weight"), {}, r"in another size: transformer\.h\.1\.mlp\.c_proj\.weight\. Check"),
        (renamed, {}, r"lm_head\.weight, transformer\.\S+, \S+, … \(29 in all\)"),
        (None, {"n_layer": 3}, r"transformer\.h\.2\.\S+, … \(12 in all\)"),
        (shortened, {}, r"transformer\.wpe\.weight \(\[5, 16\] in the checkpoint, \[32, 16\] in the model\)"),
    ],
    ids=["deleted", "renamed", "more layers", "another size"],
)
def test_weights_that_are_not_there_are_told(
    gpt2: pathlib.Path, weights: Callable[[Weights], Weights] | None, config: dict[str, object], says: str
) -> None:
    with pytest.raises(LoadError, match=says) as caught:
        load(change(gpt2, weights, **config))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_missing_weights_are_one_line_on_the_command_line(gpt2: pathlib.Path) -> None:
    result = invoke("expand", change(gpt2, without("wpe")))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "transformer.wpe.weight" in result.stderr


def test_weights_that_are_left_out_are_one_line(gpt2: pathlib.Path) -> None:
    result = invoke("expand", change(gpt2, n_layer=1), "--order", 0)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("\n") == 1
    assert "weights that GPT2LMHeadModel has not: transformer.h.1." in result.stderr
    assert "(11 in all)" in result.stderr


@pytest.mark.parametrize(
    ("made", "weights", "config"),
    [
        (transformers.BertForMaskedLM(BERT), None, {}),
        (transformers.T5ForConditionalGeneration(T5), None, {}),
        (transformers.BertModel(BERT), None, {}),
        (transformers.BertModel(BERT), without("pooler"), {}),
        (transformers.ResNetForImageClassification(RESNET), without("num_batches_tracked"), {}),
        (transformers.BertModel(BERT), without("pooler"), {"architectures": None}),
    ],
    ids=["tied", "tied t5", "base", "no pooler", "counters", "no class"],
)
def test_what_nothing_reads_may_be_missing(
    made: nn.Module,
    weights: Callable[[Weights], Weights] | None,
    config: dict[str, object],
    tmp_path: pathlib.Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    made.save_pretrained(tmp_path)
    found = load(change(tmp_path, weights, **config)).model
    assert type(found) is type(made)
    assert not found.training
    own = made.state_dict()
    assert all(value.equal(own[name]) for name, value in found.state_dict().items() if "pooler" not in name)
    assert not [one for one in recwarn if one.category is CheckpointWarning]


def test_running_averages_are_read(tmp_path: pathlib.Path) -> None:
    transformers.ResNetForImageClassification(RESNET).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"running_mean"):
        load(change(tmp_path, without("embedder.embedder.normalization.running_mean")))


@pytest.mark.parametrize("odd", [5, "GPT2LMHeadModel", [1], [None], {"GPT2LMHeadModel": 1}], ids=repr)
def test_odd_architectures_are_told(gpt2: pathlib.Path, odd: object) -> None:
    with pytest.raises(LoadError, match="no list of class names"):
        load(change(gpt2, architectures=odd))


@pytest.mark.parametrize("odd", [None, [], ["Nobody"], ["GPT2Config"], ["Trainer"]], ids=repr)
def test_a_class_is_found_where_none_is_named(gpt2: pathlib.Path, odd: object) -> None:
    assert type(load(change(gpt2, architectures=odd)).model) is transformers.GPT2LMHeadModel


@pytest.mark.parametrize(
    "config", [{"n_head": 7}, {"n_layer": "many"}, {"n_embd": 0}, {"activation_function": "none"}, {"model_type": []}]
)
def test_odd_configs_are_one_line(gpt2: pathlib.Path, config: dict[str, object]) -> None:
    with pytest.raises(LoadError, match="cannot load") as caught:
        load(change(gpt2, **config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", '{"tokenizer_class": 3}'),
    ],
    ids=["deep", "list", "deep config", "odd class"],
)
def test_odd_tokenizers_are_none_and_a_prompt_tells_why(file: str, text: str, gpt2: pathlib.Path) -> None:
    (gpt2 / "tokenizer.json").write_text("{}")
    (gpt2 / file).write_text(text)
    loaded = load(gpt2)
    assert loaded.tokenizer is None
    with pytest.raises(
        jg.InputError, match=r"^the tokenizer of .* cannot be read \(.+\), so it takes no prompt such as 'the': "
    ):
        loaded.inputs("the")
    with pytest.raises(LoadError, match=r"^the tokenizer .* cannot be read: "):
        load("demo", tokenizer=gpt2)


def test_no_tokenizer_is_told_once(gpt2: pathlib.Path) -> None:
    with pytest.raises(jg.InputError) as caught:
        load(gpt2).inputs("the")
    assert str(caught.value) == (
        f"{gpt2} has no tokenizer, so it takes no prompt such as 'the': name one with --tokenizer, or from Python pass "
        "tokenizer=..., or token ids"
    )


def test_code_of_a_checkpoint_is_never_run_nor_asked_about(gpt2: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *texts: pytest.fail("a question was asked"))
    (gpt2 / "modeling_own.py").write_text("raise SystemExit('run')")
    own = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    with pytest.raises(LoadError, match=r"custom code.*--trust-remote-code.*trust_remote_code=True"):
        load(change(gpt2, model_type="own", architectures=["Own"], auto_map=own))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda whole: whole[:-1], r"model\.safetensors \([\d,]+ bytes\) is no whole file of weights .*: get it again"),
        (lambda whole: whole[: len(whole) // 2], "is no whole file of weights"),
        (lambda whole: b"", r"\(0 bytes\) is no whole file"),
        (lambda whole: b"{}" * 1000, "is no whole file"),
    ],
    ids=["a byte", "half", "all", "other"],
)
def test_damaged_weights_are_told_with_their_file(
    kept: Callable[[bytes], bytes], message: str, gpt2: pathlib.Path
) -> None:
    file = gpt2 / "model.safetensors"
    file.write_bytes(kept(file.read_bytes()))
    for options in ({}, {"weights": "lazy"}):
        with pytest.raises(LoadError, match=message):
            load(gpt2, **options)


def test_weights_of_torch_that_are_damaged_or_not_there_are_told(gpt2: pathlib.Path) -> None:
    load(gpt2).model.save_pretrained(gpt2 / "shards", max_shard_size="20KB")
    shard = sorted((gpt2 / "shards").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(LoadError, match=rf"index\.json names {shard.name}, which is not in .*shards: get it$"):
        load(gpt2 / "shards")
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"no file of weights, such as model\.safetensors or .*: get one$"):
        load(gpt2)
    file = gpt2 / "pytorch_model.bin"
    with zipfile.ZipFile(file, "w") as archive:  # as torch.save writes
        archive.writestr("archive/data.pkl", bytes(1000))
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing of the kind", b""):
        file.write_bytes(content)
        with pytest.raises(LoadError, match=rf"pytorch_model\.bin \({len(content):,} bytes\) is no whole file"):
            load(gpt2)


def test_what_is_wrong_with_a_config_is_told(gpt2: pathlib.Path) -> None:
    with pytest.raises(LoadError, match=r"field 'n_layer': .*int.*'many'"):
        load(change(gpt2, n_layer="many"))


@pytest.mark.parametrize(
    "name",
    [
        pathlib.Path("nowhere"),
        pathlib.Path("demo"),
        "",
        ".",
        "a\0b",
        "x" * 5000,
        "a\ud800b",
        None,
        5,
        b"demo",
        ["demo"],
    ],
    ids=lambda name: repr(name)[:20],
)
def test_names_of_no_model_are_told(name: object) -> None:
    with pytest.raises(LoadError) as caught:
        load(name)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400


TOO_LONG = "the " * 200


@pytest.mark.parametrize(
    "look",
    [
        lambda model: model.inputs(TOO_LONG),
        lambda model: jg.lens(model, TOO_LONG),
        lambda model: jg.joint_lens(model, ["a prompt", TOO_LONG]),
        lambda model: jg.ablate(model, None, TOO_LONG),
        lambda model: jg.patch(model, TOO_LONG, TOO_LONG),
        lambda model: jg.evaluate_lens(model, [TOO_LONG], window=300),
        lambda model: jg.ngrams(model, "embed > L0.attn > logits", n=3, distance=200),
    ],
    ids=["inputs", "lens", "joint", "ablate", "patch", "evaluate", "ngrams"],
)
def test_prompts_that_are_too_long_are_refused_in_the_same_words(look: Callable[[Loaded], object]) -> None:
    """A model whose config says what it takes, though its positions have no table."""
    said = r"the .* has 201 tokens, more than the 128 that demo:llama takes"
    with pytest.raises(
        jg.InputError, match=rf"^(window=300: {said}; take 128 or less|distance=200: {said}; .*|{said})$"
    ):
        look(load("demo:llama"))


def test_a_graph_knows_what_its_model_takes() -> None:
    loaded = load("demo")
    graph = jg.trace(loaded.model, input_ids=torch.tensor([[5, 9, 17]]))
    with pytest.raises(jg.InputError, match="has 201 tokens, more than the 128 that GPT2LMHeadModel takes"):
        jg.lens(graph, TOO_LONG, tokenizer=loaded.tokenizer)


def test_what_was_loaded_is_traced_as_its_name_is() -> None:
    ids = torch.tensor([[5, 9, 17]])
    with torch.device("meta"):  # which a caller may have as a default: a model is where device= says
        loaded = load("demo")
        assert {loaded.model.lm_head.weight.device.type, loaded.inputs()["input_ids"].device.type} == {"cpu"}
    for one in (jg.trace(loaded), jg.trace(loaded, input_ids=ids), jg.trace(loaded, inputs={"input_ids": ids})):
        assert repr(one) == repr(jg.trace("demo"))
    for arguments, options, told in (
        ((ids,), {}, "the inputs of demo go by name"),
        ((), {"output": "logits"}, "output='logits' is of models, and 'demo' is the name of one"),
        ((), {"dtype": "float64"}, "dtype: demo is loaded already; give options to jetgraph.load_model"),
    ):
        with pytest.raises(jg.InputError, match=told):
            jg.trace(loaded, *arguments, **options)


def test_a_model_of_two_stacks_starts_its_decoder() -> None:
    config = transformers.T5Config(vocab_size=1024, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 3
    model = transformers.T5ForConditionalGeneration(config).eval()
    tokenizer = load("demo").tokenizer
    prompts = ["raise an exception", "return an exception"]
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokenizer(prompts)["input_ids"]), decoder_input_ids=torch.full((2, 1), 3)
        ).logits
    found = jg.lens(Loaded("t5", model, tokenizer), prompts, layers=[-1])
    torch.testing.assert_close(found.output, expected)


# Options, and what is no checkpoint


MADE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.head = nn.Embedding(50, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 50)

    def forward(self, tokens):
        return self.head(self.blocks(self.embed(tokens)))

def bare():
    torch.manual_seed(0)
    return Net()

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])

def placed(): return bare(), IDS
def named(): return bare(), {"tokens": IDS}
def listed(): return [bare(), IDS]
def wide(): return bare(), [IDS, IDS]
def long(): return bare(), IDS, None, None
def broken(): raise RuntimeError("no data here")
def function():
    net = bare().eval()
    return (lambda tokens: net(tokens)), IDS
def program():
    return torch.export.export(bare().eval(), (IDS,))
net = bare()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of work with a module of Python, and a program in a file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "made_here.py").write_text(MADE)
    return folder


@pytest.mark.parametrize("factory", ["placed", "named", "function", "program", "file"])
def test_what_is_no_checkpoint_is_its_own_output(
    factory: str, made: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    name = f"made_here:{factory}"
    if factory == "file":
        name = "net.pt2"
        torch.export.save(load("made_here:program").model.exported, name)
    found = load(name)
    net, ids = load("made_here:bare").model, found.example
    assert ids is not None
    graph = found.trace(found.inputs())
    assert len(graph.joins) == 2
    assert graph.title.startswith(f"{name} (")
    assert load("made_here:bare").is_named, "without example inputs too"
    assert torch.allclose(graph(**ids), net(ids["tokens"]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("made_here:net", "no config to derive example inputs from: give them with it"),
        ("made_here:broken", "cannot make 'made_here:broken': no data here"),
        ("made_here:broke", "no 'broke' is defined there; did you mean 'broken'"),
        ("made_here.py:bare", "write 'made_here:bare'\n"),
        ("made_here.py", "write 'made_here:factory'\n"),
        ("./sub/made_there.py:bare", "write 'made_there:bare', in the folder sub or with it on PYTHONPATH"),
        ("made_nowhere:net", "No module named 'made_nowhere'"),
        ("made_here:listed", "list is neither a module nor a function"),
        ("made_here:long", "gives 4 values"),
        ("made_here:wide", "the model takes tokens: give a tensor"),
    ],
)
def test_what_makes_no_model_is_one_line(
    name: str, says: str, made: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    result = invoke("inspect", name)
    assert result.exit_code == 2, result.exception
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def demo() -> tuple[Loaded, jg.ResidualGraph]:
    loaded = load("demo")
    return loaded, loaded.trace(loaded.inputs())


def test_saved_graphs_come_with_their_tokenizer(demo: tuple[Loaded, jg.ResidualGraph], tmp_path: pathlib.Path) -> None:
    loaded, graph = demo
    folder = jg.save(graph, tmp_path / "graph", tokenizer=loaded.tokenizer)
    found, inputs = load(folder), loaded.inputs("Raise Value")
    assert found.inputs("Raise Value")["input_ids"].equal(inputs["input_ids"])
    assert found.parameters == loaded.parameters
    assert jg.lens(found, "Raise Value").columns() == jg.lens(graph, inputs, tokenizer=loaded.tokenizer).columns()
    cast = load(folder, dtype="float64").trace({})
    assert torch.allclose(cast(**inputs), graph(**inputs).double(), atol=1e-3)
    assert cast(**inputs).dtype == torch.float64
    with pytest.raises(LoadError, match="revision goes with models that transformers loads, and not with a saved"):
        load(folder, revision="main")


def test_graphs_are_saved_without_the_weights_of_the_model(
    demo: tuple[Loaded, jg.ResidualGraph], tmp_path: pathlib.Path
) -> None:
    loaded, graph = demo
    folder = jg.save(graph, tmp_path, weights=False)
    assert not {*load_file(folder / "weights.safetensors")} & {*dict(loaded.model.named_parameters())}
    bare, bound = jg.load(folder), jg.load(folder, weights=loaded.model)
    assert isinstance(bare, jg.ResidualGraph)
    assert isinstance(bound, jg.ResidualGraph)
    inputs = loaded.inputs("Raise Value")
    assert bound(**inputs).equal(graph(**inputs))
    assert jg.expand(bare, 1).count() == 1024
    with pytest.raises(jg.StateError, match="saved without weights"):
        bare(**inputs)
    with pytest.raises(jg.InputError, match="of another model: Linear has no weight"):
        jg.load(folder, weights=nn.Linear(2, 2))
    whole = jg.save(graph, tmp_path / "whole")
    with pytest.raises(jg.InputError, match="weights of its own"):
        jg.load(whole, weights=loaded.model)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "no floating-point type"),
        ({"dtype": "half a float"}, "no floating-point type"),
        ({"device": "nowhere"}, "cannot be used here"),
        ({"device": "meta"}, "meta=True"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map do not go together"),
        ({"meta": True, "device": "cpu"}, "meta and device do not go together"),
        ({"revision": "main"}, "'demo' is a folder"),
        ({"quantization": "quanto:int8"}, "write a method of transformers"),
        ({"quantization": "nothing"}, "the quantization 'nothing' cannot be made .*quanto:weights=int8.*Unknown"),
        ({"tokenizer": "/nowhere/at/all"}, "no tokenizer"),
        ({"tokenizer": 5}, "no tokenizer"),
        ({"peft": "adapters"}, "pip install peft|cannot load 'adapters'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(jg.JetGraphError, match=says) as caught:
        load("demo", **options)
    assert "\n" not in str(caught.value)


def test_options_reach_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a call, from around it, and on the command line; a trace is kept for what it is of."""
    assert load("demo", dtype="bfloat16").model.dtype == torch.bfloat16
    with jg.loading.loading_with(dtype="float64"):
        assert load("demo").model.dtype == torch.float64
        assert load("demo", dtype=torch.float16).model.dtype == torch.float16
    assert "float64 on cpu" in invoke("inspect", "demo", "--dtype", "float64").stdout
    keys = [key_of(loaded.model, loaded.inputs()) for loaded in (load("demo"), load("demo", dtype="float64"))]
    assert len({*keys}) == 2
    added = type("PeftModel", (), {"from_pretrained": classmethod(lambda cls, model, place: cls)})
    added.merge_and_unload = classmethod(lambda cls: nn.Identity())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace(PeftModel=added))
    assert isinstance(load("demo", peft="adapters").model, nn.Identity)


IDS = torch.arange(4, 9)[None]


@torch.no_grad()
def replayed(loaded: Loaded) -> Tensor:
    """The model's logits, which its graph gives too, and its paths add up to."""
    logits = loaded.model(input_ids=IDS).logits
    graph = loaded.trace({"input_ids": IDS})
    torch.testing.assert_close(graph.run(input_ids=IDS).output, logits)
    sums = jg.spectrum(graph, {"input_ids": IDS}, target=3)
    torch.testing.assert_close(sums.total, sums.output, rtol=1e-4, atol=1e-4)
    return logits


LLAMA = transformers.LlamaConfig(
    vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
)


@torch.no_grad()
def test_adapters_are_added(tmp_path: pathlib.Path) -> None:
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(LLAMA).save_pretrained(tmp_path / "model")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    logits = replayed(load(tmp_path / "model", peft=tmp_path / "adapter"))
    torch.testing.assert_close(logits, adapted(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    assert float((logits - replayed(load(tmp_path / "model"))).abs().max()) > 1e-3


def test_a_folder_of_an_adapter_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"holds an adapter and no model.*\(--peft\)"):
        load(tmp_path)


def test_quantized_weights_are_followed(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("optimum.quanto")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    logits = replayed(load(tmp_path, quantization="quanto:weights=int8"))
    apart = float((logits - replayed(load(tmp_path))).abs().max())
    assert 0 < apart < 0.1 * float(logits.abs().max())


@torch.no_grad()
def test_gguf_files_are_read(tmp_path: pathlib.Path) -> None:
    """By their own name, and as a file of a folder."""
    gguf: Any = pytest.importorskip("gguf")
    torch.manual_seed(0)
    # transformers reads no number of positions of such a file.
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_token_list([f"w{index}" for index in range(config.vocab_size)])
    inner = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm"}
    inner |= {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    ends = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    for name, weight in model.transformer.state_dict().items():
        path, _, kind = name.rpartition(".")
        block = path.split(".", 2)
        place = ends.get(path) or f"blk.{block[1]}.{inner[block[2]]}"
        # Products of a Conv1D are stored the other way round.
        turned = weight.T if ".c_" in path and weight.dim() == 2 else weight
        writer.add_tensor(f"{place}.{kind}", turned.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for found in (load(tmp_path / "model.gguf"), load(tmp_path, gguf_file="model.gguf")):
        torch.testing.assert_close(replayed(found), model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("name", "options", "asked"),
    [
        ("org/name@step1000", {}, {"revision": "step1000", "trust_remote_code": False}),
        ("org/name", {"revision": "a/b", "trust_remote_code": True}, {"revision": "a/b", "trust_remote_code": True}),
        ("org/name", {"gguf_file": "q4.gguf"}, {"gguf_file": "q4.gguf", "trust_remote_code": False}),
    ],
)
def test_the_hub_is_asked_for_what_is_named(
    name: str, options: dict[str, Any], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def from_pretrained(place: str, **given: Any) -> None:
        seen.append((place, given))
        raise OSError("not here")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(LoadError, match="not here"):
        load(name, **options)
    assert seen == [("org/name", asked)]
    with pytest.raises(LoadError, match="another one"):
        load("org/name@a", revision="b")
