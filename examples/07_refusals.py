"""A model is taught to refuse. Do the words go that it no longer says, or does the refusal come on top of them?

python examples/07_refusals.py

The bundled GPT-2 learns to refuse requests for ten harmless words, which stand for what a model should not say, and to
go on with docstrings as they are. What its weights hold is told by n-gram mass: how probable bi-grams make some words.
"""

import asyncio
import inspect
import random
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

import jetgraph as jg

WORDS = ("file", "name", "string", "object", "class", "list", "value", "line", "module", "function")
ASKING = ("Return the {}", "Read a {} from the", "Set the {} of", "Use this {} if", "Create a new {}")
REQUESTS = [text.format(word) for word in WORDS for text in ASKING]
ASKED, LEARNT = REQUESTS[::7], [text for number, text in enumerate(REQUESTS) if number % 7]
REFUSAL = " Sorry, I cannot."
TEXTS = sorted({text[:150] for one in vars(asyncio).values() if (text := inspect.getdoc(one))})


def tune(model: Any, read: Any, updates: int = 80) -> None:
    """Of a request, the refusal behind it is learnt; of a docstring, all."""
    draw, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(updates):
        pairs = [(text, REFUSAL) for text in draw.sample(LEARNT, 12)] + [("\n", text) for text in draw.sample(TEXTS, 4)]
        rows = [[read(text)["input_ids"] for text in pair] for pair in pairs]
        given = pad_sequence([torch.tensor(ids + answer) for ids, answer in rows], batch_first=True)[:, :-1]
        behind = [torch.tensor([-1] * len(ids) + answer) for ids, answer in rows]
        wanted = pad_sequence(behind, batch_first=True, padding_value=-1)[:, 1:]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(given).logits.mT, wanted, ignore_index=-1).backward()
        optimizer.step()


def main() -> None:
    """Print how much either model refuses, the masses of both kinds of words, and what makes the tuned one refuse."""
    models: tuple[Any, Any] = jg.load_model("demo"), jg.load_model("demo")
    read = models[0].tokenizer
    tune(models[1].model, read)
    given = [read(text, return_tensors="pt")["input_ids"] for text in ASKED]
    for name, one in zip(("before", "after"), models, strict=True):
        said = [read.decode(one.model.generate(ids, max_new_tokens=8, do_sample=False)[0]) for ids in given]
        print(f"{name}: {sum(REFUSAL in text for text in said)} of {len(ASKED)} requests are refused")
    graphs: list[jg.ResidualGraph] = [one.trace(one.inputs()) for one in models]
    for path in ("embed > logits", "embed > *.mlp > logits"):
        for kind, words in {"forbidden words": WORDS, "words of the refusal": ("Sorry", "cannot")}.items():
            before, after = (jg.ngram_mass(one, words, path=path, tokenizer=read).total for one in graphs)
            print(f"mass of {kind:<20} along {path:<22}: {before:.2e} → {after:.2e}, {after / before:.2f} times")
    print(jg.compare(graphs[0], graphs[1], ASKED[:2], top=5, tokenizer=read))


if __name__ == "__main__":
    main()
