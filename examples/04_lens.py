"""The logit lens (order 0) and the jet lens (order 1), layer by layer, with honest distances to the model.

python examples/04_lens.py
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import jetgraph as jg
from jetgraph.applications import distances, readout
from jetgraph.models import bundled


@torch.no_grad()
def main() -> None:
    """Print the two lenses at each MLP."""
    folder = bundled("llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "Raise an exception if the"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    graph = jg.trace(model, input_ids=ids)

    # One centre per MLP: the stream after it. Order 1 keeps what order 0 leaves out, to first order.
    expansion = jg.expand(graph, recipe="lens", order=1, layers="*.mlp")
    values = jg.compile(expansion)(input_ids=ids)
    output = values.output[0, -1]
    print(f"{prompt!r} is followed by {readout.top_tokens(output, tokenizer, 3)}\n")
    print(f"{'point':<7}{'order':<7}{'KL':>8}{'cosine':>9}{'remainder':>11}   says")
    lens = torch.zeros_like(output)
    for path, term in values.terms.items():
        order = path.sink.order
        lens = term[0, -1] if order == 0 else lens + term[0, -1]
        facts = (
            distances.divergence(output, lens),
            distances.cosine(output, lens),
            distances.relative_remainder(output, lens),
        )
        print(
            f"{path.source!s:<7}{order:<7}{facts[0]:>8.3f}{facts[1]:>9.3f}{facts[2]:>11.2f}   "
            f"{readout.top_tokens(lens, tokenizer, 3)}"
        )


if __name__ == "__main__":
    main()
