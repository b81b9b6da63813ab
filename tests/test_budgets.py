"""What is over a budget names a setting that fits: each of these is refused, and done as the refusal says."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.algebra.formulas import latex
from jetgraph.algebra.outline import Source
from jetgraph.applications.comparing.on_prompts import _check_numbers
from tests.outlines import branch, join, llama, outline

PROMPT = torch.arange(6)[None] * 7
GAPS = "** > *.mlp > * > * > * > **"


Ask = Callable[..., Any]
"""Of a setting, which is None before it is known: what is asked for with it."""


def outlined(blocks: int, order: int = 0, **options: Any) -> jg.Expansion:
    return jg.expand(llama(blocks), order, **options)


CROWDED = jg.expand(
    outline(join(branch("L0.mlp"), injections=tuple(Source(f"x{i}", f"x{i}", "input") for i in range(20)))), 0
)
"""So many sources enter at one place that it is not drawn as one stream."""

SYMBOLS: Mapping[str, tuple[str, Mapping[str, Any], Ask]] = {
    "paths to list": (
        r"limit=(\d+)",
        {"algebra.selection.LIST_BUDGET": 3},
        lambda n: len(jg.select(outlined(2), "**", limit=n)),
    ),
    "a list of paths as an automaton": (
        r"first \[:(\d+)\]",
        {"algebra.automaton.STATE_BUDGET": 20},
        lambda n: jg.path_graph(outlined(4), jg.select(outlined(4), "**", limit=n or 250)),
    ),
    "states of a pattern": (
        r"as in '(.+)'",
        {"algebra.automaton.STATE_BUDGET": 400},
        lambda pattern: jg.select(outlined(30), pattern or GAPS),
    ),
    "states of patterns": (
        r"first (\d+) of 8 patterns",
        {"algebra.automaton.STATE_BUDGET": 200},
        lambda n: jg.select(
            outlined(9), [f"** > L{i}.mlp > *.attn > **" for i in range(8)][:n], min_length=3, max_length=3
        ),
    ),
    "centres to name": (r"budget=(\d+)", {}, lambda n: outlined(3, 1).centres("L2.mlp", budget=n or 9)),
    "more centres than anyone names": (
        r"centres='(\w+)'",
        {},
        lambda how: outlined(30, 1, **({"centres": how} if how else {})).centres("L29.mlp"),
    ),
    "terms to go over": (
        r"limit=(\d+)",
        {},
        lambda n: outlined(30).terms(50) if n is None else list(jg.select(outlined(30), "**", limit=n)),
    ),
    "terms to write out": (r"budget=(\d+)", {}, lambda n: latex(outlined(2), budget=n or 3)),
    "more terms than anyone reads": (
        r"such as '(.+?)'",
        {},
        lambda path: latex(outlined(30), path),
    ),
    "places of a picture": (
        r"select (\d+) paths",
        {"views.picture.LARGEST": 15},
        lambda n: jg.draw(jg.path_graph(CROWDED, jg.select(CROWDED, "**", limit=n))),
    ),
    "paths to compare": (
        r"top=(\d+)",
        {"applications.comparing.on_prompts.MOST": 8},
        lambda n: _check_numbers(2, 2, n or 3),
    ),
    "prompts to compare": (
        r"and (\d+) prompts",
        {"applications.comparing.on_prompts.MOST": 2},
        lambda n: _check_numbers(n or 2, n or 2, 1),
    ),
    "hops": (r"order (\d+) or", {"algebra.rewriting.HOP_BUDGET": 30}, lambda n: outlined(3, 9 if n is None else n)),
    "an order": (
        r"take (\d+) or less",
        {"jets.series.ORDER_BUDGET": 3},
        lambda n: jg.jet(torch.exp, torch.zeros(1), torch.ones(1), n or 4),
    ),
}


def check_advice(
    setting: str, budgets: Mapping[str, Any], ask: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> Any:
    for name, value in budgets.items():
        module, _, attribute = f"jetgraph.{name}".rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), attribute, value)
    with pytest.raises(jg.BudgetError) as refused:
        ask(None)
    found = re.search(setting, str(refused.value))
    assert found is not None, str(refused.value)
    advice = found[1].replace(",", "")
    return ask(int(advice) if advice.isdigit() else float(advice) if re.match(r"[\d.]", advice) else advice)


@pytest.mark.parametrize("name", SYMBOLS)
def test_what_is_too_much_in_symbols(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, budgets, ask = SYMBOLS[name]
    check_advice(setting, budgets, ask, monkeypatch)


NUMBERS: Mapping[str, tuple[str, Mapping[str, Any], Callable[[jg.ResidualGraph, Any], Any]]] = {
    "paths to compile": (
        r"limit=(\d+)",
        {},
        lambda graph, n: jg.compile(
            (expansion := jg.expand(graph, 0)), None if n is None else jg.select(expansion, "**", limit=n), budget=7
        ),
    ),
    "paths to compile, by the budget": (
        r"budget=(\d+)\)",
        {},
        lambda graph, n: jg.compile(jg.expand(graph, 0), budget=n or 7),
    ),
    "logits of lenses, by points": (
        r"choose (\d+) points?",
        {"applications.lenses.iterative.LENS_BUDGET": 2**16},
        lambda graph, n: jg.lens(graph, PROMPT, layers=None if n is None else list(range(n))),
    ),
    "logits of lenses, by positions": (
        r"inputs of (\d+) positions?",
        {"applications.lenses.iterative.LENS_BUDGET": 2**16},
        lambda graph, n: jg.lens(graph, torch.arange(40)[None, : n or 40]),
    ),
    "logits of lenses, by inputs": (
        r"give (\d+) inputs?",
        {"applications.lenses.iterative.LENS_BUDGET": 2**18},
        lambda graph, n: jg.lens(graph, torch.arange(2 * (n or 40)).reshape(-1, 2)),
    ),
    "terms to tell": (
        r"more than the (\d+)",
        {"applications.terms.PATH_BUDGET": 9},
        lambda graph, n: jg.terms(
            (expansion := jg.expand(graph, 0)), PROMPT, path=n and list(jg.select(expansion, "**", limit=n))
        ),
    ),
    "paths to ablate": (
        r"select (\d+) or fewer",
        {"applications.interventions.ablation.PATH_BUDGET": 3},
        lambda graph, n: jg.ablate(
            (expansion := jg.expand(graph, recipe="components")),
            list(jg.select(expansion, "**", limit=n or 5)),
            PROMPT,
        ),
    ),
    "classes of a spectrum": (
        r"by='(\w+)'",
        {"algebra.automaton.STATE_BUDGET": 60},
        lambda graph, by: jg.spectrum(graph, PROMPT, by=by or {GAPS: "some", "** > L1.attn > * > **": "more"}),
    ),
    "centres of an algorithm": (
        r"such as '(.+?)',",
        {"applications.expansions.centres.CENTRE_BUDGET": 9},
        lambda graph, pattern: jg.jet_expand(graph, PROMPT, at="L3.mlp", centres=[pattern or "embed > **"]),
    ),
    "cells of a table": (
        r"to ([\d,]+) rows",
        {"applications.ngrams.contexts.CELL_BUDGET": 10**5},
        lambda graph, n: jg.ngrams(graph, first=list(range(n)) if n else None, top=3),
    ),
    "n-grams of a table": (
        r"top=(\d+) or less",
        {"applications.ngrams.budget.TOP_BUDGET": 2000},
        lambda graph, n: jg.ngrams(graph, top=n or 10**6),
    ),
    "paths of a table": (
        r"more than the (\d+)",
        {"applications.ngrams.choosing.PATH_BUDGET": 3},
        lambda graph, n: jg.ngrams(graph, [f"embed > L{i}.mlp > logits" for i in range(n or 4)], top=3),
    ),
    "a row of a table": (
        r"memory=([\d,]+) or more",
        {},
        lambda graph, n: jg.ngrams(graph, memory=n or 100, first=[1, 2], top=3),
    ),
    "a screen": (
        r"memory=(\d+) or more",
        {},
        lambda graph, n: jg.ngrams(graph, screen="bf16", memory=n or 2**15, first=[1, 2], top=3),
    ),
    "values of components": (r"memory=(\d+) or more", {}, lambda graph, n: jg.attribute(graph, PROMPT, memory=n or 9)),
}


@pytest.fixture(scope="module")
def graph() -> jg.ResidualGraph:
    loaded = jg.load_model("demo")
    return loaded.trace({"input_ids": PROMPT})


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_too_much_to_compute(name: str, graph: jg.ResidualGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, budgets, ask = NUMBERS[name]
    check_advice(setting, budgets, lambda value: ask(graph, value), monkeypatch)
