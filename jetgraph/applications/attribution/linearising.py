"""The linear expansion that an attribution reads: every site frozen, or to first order, as the rules say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Split
from jetgraph.algebra.rules import Freeze, Rule, Tangent
from jetgraph.applications.subject import Inputs, Model, Subject, expanded, split_subject, subject
from jetgraph.errors import InputError, quoted

Linearisation = Literal["frozen", "half", "gradient"]
"""A name for one rule at all sites."""

Rules = Linearisation | Mapping[str, Any]
"""Which linear map stands for a site.

`frozen`: gates, norms and attention patterns are held (`Freeze`). `half`: the same, and of a product of two values that
vary each is held for one half. `gradient`: first order at the stream (`Tangent`). Or rules by pattern over alias or
module path, such as `{"*.mlp": Tangent()}`; sites that no pattern names are frozen.
"""

RULES: Mapping[str, Rule] = {"frozen": Freeze(), "half": Freeze(halves=True), "gradient": Tangent()}
"""What the names stand for."""


def linearised(
    model: Model | Expansion,
    inputs: Inputs,
    rules: Rules | None,
    split: Split | None,
    tokenizer: Any | None,
    patterns: Any = None,
) -> tuple[Subject, Expansion]:
    """The expansion to work on, and what it is of.

    Parameters
    ----------
    model
        An expansion, which has its rules and its parts already; or what one is to be made of.
    inputs
        For a model that is still to be traced.
    rules
        None is `frozen`.
    split, tokenizer
        As in `jetgraph.terms`.
    patterns
        Texts whose parts of branches are split where `split` says nothing.

    Raises
    ------
    InputError
        The rules are unknown, or come too late.
    """
    if isinstance(model, Expansion):
        if rules is not None:
            raise InputError(f"rules={quoted(rules)} come too late for an expansion: give rules to jetgraph.expand")
        return expanded(model, inputs, split, tokenizer, patterns)
    if isinstance(rules, str) and rules not in RULES:
        known = ", ".join(map(repr, get_args(Linearisation)))
        raise InputError(f"rules={quoted(rules)} is unknown: choose {known}, or give rules by pattern")
    given = {"*": RULES[rules]} if isinstance(rules, str) else {"*": Freeze(), **(rules or {})}
    studied = split_subject(subject(model, inputs, tokenizer), split, patterns)
    return studied, expand(studied.graph, rules=given)
