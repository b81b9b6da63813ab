"""N-grams that the weights of a model hold, read without data, and how true they are of what it was trained on.

python examples/06_ngrams.py

The bundled GPT-2 was trained on the docstrings and comments of Python's standard library, which are read here again. A
path from the embedding to the logits is a table of bi-grams; through one attention head, of skip-tri-grams. Agreement
is the share of each token's K most frequent followers that a table has in its top K (hit@K), and the rank correlation
with the counts; `unigram` (the same followers for every token) and `model` (its full output on the token alone) are
there to compare with.
"""

from __future__ import annotations

from train_demo_model import encode, load_corpus, split
from transformers import AutoModelForCausalLM, AutoTokenizer

import jetgraph as jg
from jetgraph.applications.subject import subject
from jetgraph.models import bundled


def main() -> None:
    """Print tables of n-grams, a mass, and the agreement of every path with the corpus."""
    folder = bundled("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Traced once, for all that follows.
    model = subject(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer=tokenizer)
    print(jg.ngrams(model, "embed > logits", top=8), "\n")
    print(jg.ngrams(model, "embed > L0.mlp > logits", top=8, identity=False), "\n")
    head = "embed > L1.attn.head2 > logits"
    print(jg.ngrams(model, head, n=3, first=[" the", " a", "self"], top=8, identity=False), "\n")
    print(jg.ngram_mass(model, ["return", "raise", "import", "exception"], path="embed > L0.mlp > logits"), "\n")

    documents, _ = split(load_corpus().documents)
    found = jg.ngram_agreement(model, encode(tokenizer, documents))
    print(found.title)
    print(f"{'path':<25}" + "".join(f"{measure:>24}" for measure in found.measures))
    for path in found.paths:
        cells = (found.value(path, measure) for measure in found.measures)
        print(f"{path:<25}" + "".join(f"{mean:>8.3f} [{low:5.3f}, {high:5.3f}]" for mean, low, high in cells))


if __name__ == "__main__":
    main()
