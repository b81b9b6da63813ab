"""The joint lens: the exact optimum against the paper's own code after a thousand of its steps.

    python benchmarks/joint_lens.py --jex ../JetExpansions

Both look at the bundled GPT-2 and at the centres of jex: the embedding and what each block adds. T_i, the decoder's
jet around centre i, is what jex itself computes, so that only the solvers differ: per token, weights of a given sum are
to minimise ‖output − Σ w_i T_i‖². jex takes steps of Adam on softmax parameters, from equal weights, but multiplies
every term by 1/n as well, so its weights are best for a sum of 1/n, and they are compared with the exact ones there.
For a sum of 1, which makes the terms an expansion (lemma 1 of the paper), `Adam` takes the same steps on the loss
without that factor. A last table gives `jetgraph.joint_lens` as it is used, with attention, MLP and positions as
components of their own.

A rival that is not there is reported as missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.applications.lenses.joint import joint_lens
from jetgraph.applications.subject import subject
from jetgraph.compilation.hull import nearest_in_hull, optimality
from jetgraph.models import bundled

PROMPT = (
    "Return a new list with the items of the given mapping. If the key is not found, raise KeyError unless a default "
    "value is given; the name of the file may be a string or a path."
)


@dataclass(frozen=True)
class Problem:
    """Jets T_i [component, position, vocabulary] and the output [position, vocabulary], in float64."""

    terms: Tensor
    output: Tensor

    def gram(self, total: float) -> np.ndarray:
        """Inner products of total · T_i − output: [position, component, component]."""
        error = (total * self.terms - self.output).transpose(0, 1)
        return (error @ error.transpose(-1, -2)).numpy()

    def remainders(self, weights: Tensor) -> np.ndarray:
        """‖output − Σ w_i T_i‖ / ‖output‖ per position, from weights [component, position]."""
        mixed = torch.einsum("ci,civ->iv", weights.double(), self.terms)
        return ((self.output - mixed).norm(dim=-1) / self.output.norm(dim=-1)).numpy()


def main() -> None:
    """Print a table per order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jex", type=Path, metavar="PATH", help="checkout of github.com/lucfra/JetExpansions")
    parser.add_argument("--steps", type=int, default=1000, help="of Adam (1000)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 1e-1], help="of Adam; jex has 1e-3")
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--prompt", default=PROMPT)
    options = parser.parse_args()
    torch.manual_seed(0)
    jex = None if options.jex is None else rival(options.jex)
    if jex is None:
        where = "no --jex given" if options.jex is None else f"nothing to import in {options.jex / 'src'}"
        print(f"jex: missing ({where})\n")
    for order in options.orders:
        if jex is not None:
            compare(jex, order, options)
        ours(order, options.prompt)


def rival(path: Path) -> Any | None:
    """What jex offers, None where it cannot be imported from there."""
    sys.path.insert(0, str(path / "src"))
    try:
        import jex.lenses.joint  # pyright: ignore[reportMissingImports]
        import jex.models  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return jex


def compare(jex: Any, order: int, options: argparse.Namespace) -> None:
    """Both solvers on jex's own terms, for both sums of the weights."""
    lm = jex.models.from_pretrained(str(bundled("gpt2")))
    ids = torch.tensor([lm.tokenizer(options.prompt)["input_ids"]])
    layers = list(range(lm.depth + 1))

    def fresh() -> Any:
        return jex.lenses.joint.JointJetLens(lm, layers, order)

    problem = pose(lm, fresh(), ids)
    number = len(problem.terms)
    print(f"order {order}: {number} centres, {ids.shape[1]} tokens of {type(lm.model).__name__}")
    for total, name in ((1 / number, f"1/{number}"), (1.0, "1")):
        heading(f"weights with sum {name}")
        exact, seconds = solve(problem, total)
        best = problem.remainders(total * exact)
        line("equal", problem.remainders(torch.full_like(exact, total / number)), best)
        for rate in options.rates:
            if total == 1.0:
                started = time.perf_counter()
                weights = descend(problem.gram(total), options.steps, rate)
                label, taken = "Adam", time.perf_counter() - started
            else:
                lens = fresh()
                taken = timed(lambda lens=lens, rate=rate: lens.optimize_weights(ids, lr=rate, iters=options.steps))
                label, weights = "jex", lens.weights.detach().double()
            found = problem.remainders(total * weights)
            line(f"{label}, {options.steps} steps, rate {rate:g}", found, best, taken)
            assert (best <= found * (1 + 1e-6)).all(), "the exact optimum is worse than what descent found"
        line("exact", best, best, seconds)
    print()


def solve(problem: Problem, total: float) -> tuple[Tensor, float]:
    """Exact weights [component, position] on the simplex, and seconds; checks their optimality conditions."""
    started = time.perf_counter()
    gram = problem.gram(total)
    weights = np.stack([nearest_in_hull(matrix) for matrix in gram])
    seconds = time.perf_counter() - started
    scale = problem.output.square().sum(-1).numpy()
    gap = max(max(optimality(*pair)) / s for *pair, s in zip(gram, weights, scale, strict=True))
    assert gap < 1e-12, f"optimality conditions are violated by {gap:.1e} of ‖output‖²"
    return torch.from_numpy(weights.T), seconds


@torch.no_grad()
def pose(lm: Any, lens: Any, ids: Tensor) -> Problem:
    """jex's terms without their factor 1/n, and the model's output."""
    terms = [lm.unembedding(term) * lens._n for term in lens._jet_out.expansions(ids)]
    return Problem(torch.cat(terms).double(), lm.model(ids).logits[0].double())


def descend(gram: np.ndarray, steps: int, rate: float) -> Tensor:
    """Softmax weights [component, position] by Adam from equal weights, on the mean of wᵀM w."""
    matrix = torch.from_numpy(gram)
    parameters = torch.zeros(matrix.shape[:-1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=rate)
    for _ in range(steps):
        weights = parameters.softmax(-1)
        loss = torch.einsum("ti,tij,tj->", weights, matrix, weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return parameters.detach().softmax(-1).T


def ours(order: int, prompt: str) -> None:
    """The joint lens as it is used, with its own components."""
    one = subject("demo")
    started = time.perf_counter()
    found = joint_lens(one.graph, prompt, order=order, tokenizer=one.tokenizer)
    seconds = time.perf_counter() - started
    print(f"jetgraph.joint_lens of order {order}: {len(found.components)} components")
    heading("weights with sum 1")
    best = found.remainder.flatten().numpy()
    line("equal", found.uniform.flatten().numpy(), best)
    line("best single component", found.vertex.min(-1).values.flatten().numpy(), best)
    line("exact, in all", best, best, seconds)
    print(f"optimality conditions: violated by at most {found.gap:.1e} of ‖output‖²\n")


def heading(name: str) -> None:
    """Above a table of relative remainders."""
    print(f"{name:<26} {'mean':>8} {'median':>8} {'worst':>8} {'objective':>11} {'seconds':>9}")


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def line(name: str, found: np.ndarray, best: np.ndarray, seconds: float | None = None) -> None:
    """A row of relative remainders; the objective is the mean over tokens of its ratio to the exact minimum."""
    over = float(np.mean((found / best) ** 2))
    taken = "" if seconds is None else f"{seconds:>9.3f}"
    print(
        f"{name:<26} {found.mean():>8.4f} {np.median(found):>8.4f} {found.max():>8.4f} {over:>11.4f} {taken}",
        flush=True,
    )


if __name__ == "__main__":
    main()
