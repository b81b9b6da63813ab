"""The models that are measured: GPT-2 and Llama of a setting's size, with seeded random weights; inputs and passes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import jetgraph as jg
from benchmarks.harness import Contestant, Setting

SEED = 0


def gpt2(setting: Setting, dtype: torch.dtype = torch.float32) -> transformers.GPT2LMHeadModel:
    """A GPT-2 of that size in evaluation mode; the same one each time."""
    return _gpt2(_size(setting), dtype)


def traced(setting: Setting, dtype: torch.dtype = torch.float32) -> jg.ResidualGraph:
    """Its residual graph, for any batch size and length; the same one each time."""
    return _traced(_size(setting), dtype)


def of_checkpoint(setting: Setting) -> Setting:
    """The setting with the sizes of its checkpoint, which is a Llama's."""
    assert setting.checkpoint is not None
    config: Any = transformers.AutoConfig.from_pretrained(setting.checkpoint)
    if config.model_type != "llama":
        raise SystemExit(f"--checkpoint {setting.checkpoint}: its model_type is {config.model_type!r}, not 'llama'")
    return replace(
        setting,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
    )


def _size(setting: Setting) -> Setting:
    """What of a setting the model depends on."""
    names = ("layers", "width", "heads", "vocabulary", "positions", "device", "dtype")
    return Setting(**{name: getattr(setting, name) for name in names})


@cache
def _gpt2(setting: Setting, dtype: torch.dtype) -> transformers.GPT2LMHeadModel:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(
        n_layer=setting.layers,
        n_embd=setting.width,
        n_head=setting.heads,
        vocab_size=setting.vocabulary,
        n_positions=setting.positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = transformers.GPT2LMHeadModel(config)
    return model.eval().to(setting.device, dtype)


@cache
def _traced(setting: Setting, dtype: torch.dtype) -> jg.ResidualGraph:
    return jg.trace(_gpt2(setting, dtype), input_ids=token_ids(setting, 2, 4))


@cache
def llama(setting: Setting) -> Any:
    """The Llama of a setting's checkpoint, or one of its size made where it runs, in evaluation mode; the same one each
    time."""
    transformers.logging.set_verbosity_error()
    if setting.checkpoint:
        trained: Any = transformers.LlamaForCausalLM.from_pretrained(
            setting.checkpoint, dtype=getattr(torch, setting.dtype)
        )
        return trained.eval().requires_grad_(False).to(setting.device)
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        num_hidden_layers=setting.layers,
        hidden_size=setting.width,
        # As Llama has it: 8/3 of the width, rounded up to multiples of 256.
        intermediate_size=-(-8 * setting.width // (3 * 256)) * 256,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.heads,
        vocab_size=setting.vocabulary,
        max_position_embeddings=setting.positions,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, setting.dtype))
    try:
        with torch.device(setting.device):
            model: Any = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    return model.eval().requires_grad_(False)


@cache
def traced_llama(setting: Setting) -> jg.ResidualGraph:
    """Its residual graph, for any batch size and length; the same one each time."""
    return jg.trace(llama(setting), input_ids=token_ids(setting, 2, 4))


def token_ids(setting: Setting, rows: int, length: int) -> Tensor:
    """Random tokens [rows, length]."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, setting.vocabulary, (rows, length), generator=generator).to(setting.device)


def forward_and_decodes(setting: Setting, ids: Tensor, decodes: int) -> Contestant:
    """The floor of what decodes many values of a text's stream: a forward pass, and all decodes in one product."""
    model = gpt2(setting)
    unembedding = model.lm_head.weight
    rows = torch.randn(decodes * ids.numel(), setting.width).to(unembedding)

    def work() -> Tensor:
        with torch.no_grad():
            model(ids, use_cache=False)
            return rows @ unembedding.T

    return Contestant("floor", "floor", work, note=f"forward, {decodes} decodes in one")


def double(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, for oracles."""
    return copy.deepcopy(module).cpu().double()


@torch.no_grad()
def states(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What the blocks of a GPT-2 make of the ids, read by hooks.

    `h0` is the sum of `embed` and `pos`, `h1` the stream after the first attention, `h2` after the first MLP and so on;
    `L0.attn` and `L0.mlp` are what those add.
    """
    found: dict[str, Tensor] = {}
    transformer = model.transformer
    handles = []

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    for number, block in enumerate(transformer.h):
        handles.append(block.attn.register_forward_hook(keep(f"L{number}.attn")))
        handles.append(block.mlp.register_forward_hook(keep(f"L{number}.mlp")))
    try:
        model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found["embed"] = transformer.wte(ids)
    found["pos"] = transformer.wpe(torch.arange(ids.shape[1], device=ids.device)).expand_as(found["embed"])
    found["h0"] = found["embed"] + found["pos"]
    for number in range(len(transformer.h)):
        found[f"h{2 * number + 1}"] = found[f"h{2 * number}"] + found[f"L{number}.attn"]
        found[f"h{2 * number + 2}"] = found[f"h{2 * number + 1}"] + found[f"L{number}.mlp"]
    return found
