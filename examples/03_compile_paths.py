"""Compile paths into a torch module, and check one against the same computation written by hand.

python examples/03_compile_paths.py
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import jetgraph as jg
from jetgraph.models import bundled


@torch.no_grad()
def main() -> None:
    """Compile one path, then an exact sum."""
    folder = bundled("gpt2")
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Return the number of", return_tensors="pt")["input_ids"]
    graph = jg.trace(model, input_ids=ids)

    expansion = jg.expand(graph, recipe="path")
    module = jg.compile(expansion, "embed > L0.mlp > logits")
    print(module.extra_repr())
    (term,) = module(input_ids=ids).terms.values()
    body, block = model.transformer, model.transformer.h[0]
    by_hand = model.lm_head(body.ln_f(block.mlp(block.ln_2(body.wte(ids)))))
    print(f"\nlm_head(ln_f(mlp(ln_2(wte(ids))))) by hand: max difference {(term - by_hand).abs().max():.1e}\n")

    # Atoms and a frozen norm: an exact sum, so the remainder is rounding.
    exact = jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()})
    values = jg.compile(exact)(input_ids=ids)
    print(values)
    print(f"remainder {values.remainder.abs().max():.1e} of logits up to {values.output.abs().max():.1f}")

    # The same module takes other batch sizes and lengths.
    longer = torch.randint(0, 1000, (3, 12))
    error = (module(input_ids=longer).output - model(longer).logits).abs().max()
    print(f"output for 3 x 12 tokens against the model: max error {error:.1e}")


if __name__ == "__main__":
    main()
