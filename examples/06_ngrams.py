"""N-grams that the weights of a model hold, read without data, and how true they are of what it was trained on.

python examples/06_ngrams.py

The bundled GPT-2 was trained on the docstrings and comments of Python's standard library; docstrings of asyncio are
read here again. A path from the embedding to the logits is a table of bi-grams; through one attention head, of
skip-tri-grams. Agreement is the share of each token's K most frequent followers that a table has in its top K (hit@K),
and the rank correlation with the counts; `unigram` (the same followers for every token) and `model` (its full output on
the token alone) are there to compare with.
"""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import jetgraph as jg
from jetgraph.applications.subject import subject


def docstrings(folder: Path) -> list[str]:
    """Those of the Python files of a folder."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    modules = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.py"))]
    nodes = [node for module in modules for node in ast.walk(module) if isinstance(node, documented)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def main() -> None:
    """Print tables of n-grams, a mass, and the agreement of every path with the corpus."""
    # Traced once, for all that follows.
    model = subject("demo")
    print(jg.ngrams(model, "embed > logits", top=8), "\n")
    print(jg.ngrams(model, "embed > L0.mlp > logits", top=8, identity=False), "\n")
    head = "embed > L1.attn.head2 > logits"
    print(jg.ngrams(model, head, n=3, rows=([" the", " a", "self"], None), top=8, identity=False), "\n")
    print(jg.ngram_mass(model, ["return", "raise", "import", "exception"], path="embed > L0.mlp > logits"), "\n")

    found = jg.ngram_agreement(model, docstrings(Path(asyncio.__file__).parent), minimum=10)
    print(found.title)
    print(f"{'path':<25}" + "".join(f"{measure:>24}" for measure in found.measures))
    for path in found.paths:
        cells = (found.value(path, measure) for measure in found.measures)
        print(f"{path:<25}" + "".join(f"{mean:>8.3f} [{low:5.3f}, {high:5.3f}]" for mean, low, high in cells))


if __name__ == "__main__":
    main()
