"""A graph with everything on another device than the CPU, against the same graph on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import jetgraph as jg
from jetgraph.applications.results import Result
from tests.zoo import VOCAB

TERMS = 12
"""As many paths of an expansion are compared."""


class Placed:
    """A graph on the CPU, one of the same model on a device, and inputs for both.

    The devices' results may differ by `digits` of what is computed: sums run in another order there.
    """

    def __init__(
        self,
        graph: jg.ResidualGraph,
        inputs: dict[str, Any],
        device: torch.device,
        there: jg.ResidualGraph | None = None,
        digits: float = 1e-4,
    ) -> None:
        self.graph, self.inputs, self.device, self.digits = graph, inputs, device, digits
        tensors = graph.traced.tensors
        self.there = graph.relocated(lambda key: tensors[key].to(device)) if there is None else there
        self.given = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), inputs)

    def same(self, found: Tensor, expected: Tensor, size: float = 0.0) -> None:
        """On the device, and close to the CPU's; `size` is that of what a difference was taken of."""
        assert found.device == self.device
        assert found.dtype == expected.dtype
        error = float((found.cpu().double() - expected.double()).norm())
        assert error <= self.digits * max(float(expected.double().norm()), size)

    def replay(self) -> None:
        expected = self.graph(**self.inputs)
        self.same(self.there(**self.given), expected)
        self.same(self.there.run(**self.given).output, expected)

    def terms(self, split: Any = None, **options: Any) -> None:
        """Some terms of an expansion, and its remainder."""
        here, there = (
            jg.expand(graph if split is None else graph.split(split), **options) for graph in (self.graph, self.there)
        )
        paths = list(jg.select(there, "**")[:TERMS]) if there.count() > TERMS else None
        found, expected = jg.compile(there, paths)(**self.given), jg.compile(here, paths)(**self.inputs)
        size = float(expected.output.double().norm())
        assert found.terms
        for path, term in found.terms.items():
            self.same(term, expected.terms[path], size)
        total = sum(float(term.double().norm()) for term in expected.terms.values())
        self.same(found.remainder, expected.remainder, size + total)
        self.same(found.total, expected.total, size + total)

    def modules_move(self) -> None:
        """A compiled module goes to the device, and back."""
        module = jg.compile(jg.expand(self.graph, recipe="lens", order=1))
        expected = module(**self.inputs)
        size = float(expected.output.double().norm())
        self.same(module.to(self.device)(**self.given).remainder, expected.remainder, size)
        assert torch.equal(module.to("cpu")(**self.inputs).remainder, expected.remainder)

    def storage(self) -> None:
        """A graph and paths on the device are saved, and read back onto the CPU."""
        with tempfile.TemporaryDirectory() as folder:
            graph: Any = jg.load(jg.save(self.there, Path(folder) / "graph"))
            module: Any = jg.load(jg.save(jg.compile(jg.expand(self.there, recipe="lens")), Path(folder) / "paths"))
        expected = self.graph(**self.inputs)
        assert torch.equal(graph(**self.inputs), expected)
        assert torch.equal(module(**self.inputs).output, expected)

    def application(self, run: Callable[[jg.ResidualGraph, Tensor], Result]) -> None:
        """The same table, and it can be shown."""
        found, expected = run(self.there, self.given["input_ids"]), run(self.graph, self.inputs["input_ids"])
        columns = found.columns()
        for name, column in expected.columns().items():
            assert list(columns[name]) == [
                pytest.approx(cell, rel=10 * self.digits, abs=self.digits, nan_ok=True)
                if isinstance(cell, float)
                else cell
                for cell in column
            ], name
        assert found.title in repr(found)
        assert found.figure().axes

    def checks(self) -> dict[str, Callable[[], None]]:
        """All of these by name, the applications included."""
        frozen: dict[str, Any] = {"rules": {"logits": jg.Freeze()}, "recipe": "components"}
        plain: dict[str, Callable[[], None]] = {
            "replay": self.replay,
            "order 0": lambda: self.terms(order=0),
            "order 1": lambda: self.terms(order=1),
            "order 2": lambda: self.terms(order=2),
            "terms as directions": lambda: self.terms(order=1, recipe="components", directions="terms"),
            "heads": lambda: self.terms("heads", order=0),
            "neurons": lambda: self.terms("neurons", order=0),
            "frozen": lambda: self.terms(**frozen),
            "modules move": self.modules_move,
            "storage": self.storage,
        }
        return plain | {name: lambda run=run: self.application(run) for name, run in APPLICATIONS.items()}


class Words:
    """A tokenizer whose every token is a letter."""

    def __len__(self) -> int:
        return VOCAB

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) % VOCAB for letter in text.strip()]

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(VOCAB + int(index)) for index in ([ids] if isinstance(ids, int) else ids))


def _corpus() -> Tensor:
    return (torch.arange(300) * 7 % 11 + 3)[None]


APPLICATIONS: dict[str, Callable[[Any, Tensor], Result]] = {
    "lens": lambda graph, ids: jg.lens(graph, ids, order=1),
    "lens, ids on the CPU": lambda graph, ids: jg.lens(graph, ids.cpu(), order=0),
    "terms": lambda graph, ids: jg.terms(graph, ids),
    "attribution": lambda graph, ids: jg.attribute(graph, ids[:1, :3], target=3, split="heads"),
    "ranking": lambda graph, ids: jg.rank(graph, ids[:1, :3], target=3, top=3),
    "spectrum": lambda graph, ids: jg.spectrum(graph, ids, target=3),
    "joint lens": lambda graph, ids: jg.joint_lens(graph, ids),
    "evaluation": lambda graph, ids: jg.evaluate_lens(graph, ids.cpu(), orders=(0, 1), resamples=9),
    "ngrams": lambda graph, ids: jg.ngrams(graph, "embed > L0.mlp > logits", top=9),
    "ngrams, screened": lambda graph, ids: jg.ngrams(graph, "embed > L0.mlp > logits", top=9, screen="bf16"),
    "ngrams by row": lambda graph, ids: jg.ngrams(graph, top=3, per="row"),
    "skip-tri-grams": lambda graph, ids: jg.ngrams(
        graph, "embed > L0.attn > logits", n=3, top=5, rows=[[3, 4], [5, 6]]
    ),
    "mass": lambda graph, ids: jg.ngram_mass(graph, ["ab", "c"], tokenizer=Words()),
    "agreement": lambda graph, ids: jg.ngram_agreement(graph, _corpus(), minimum=1, resamples=9),
    "diff": lambda graph, ids: jg.diff(graph, graph, top=5),
    "comparison": lambda graph, ids: jg.compare(graph, graph, ids[:1, :3], target=3, top=1),
    "trajectory": lambda graph, ids: jg.trajectory([graph, graph], top=5),
    "ablation": lambda graph, ids: jg.ablate(graph, "L1.* > logits", ids, target=3, split="heads"),
    "patching": lambda graph, ids: jg.patch(graph, ids, ids.flip(0), receivers="logits"),
}
