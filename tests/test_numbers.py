"""How numbers are said."""

from __future__ import annotations

import ast
import random

import pytest

import jetgraph as jg
from jetgraph.applications.subject import subject
from jetgraph.errors import big
from jetgraph.numbers import NUMBER, fixed, percent, rounded
from jetgraph.reporting import models
from jetgraph.reporting.again import Origin
from tests.test_house import MODULES, parsed


@pytest.mark.parametrize("places", [0, 1, 2, 3])
def test_what_is_not_all_or_nothing_is_never_said_to_be(places: int) -> None:
    """And a number that is told is the share, a bound one that it keeps."""
    drawn = random.Random(places)
    near = [10 ** -drawn.uniform(0, 11) for _ in range(2000)]
    for share in (*near, *(1 - one for one in near), *(drawn.random() for _ in range(2000)), *(-one for one in near)):
        for text, scale in ((fixed(share, places), 1.0), (percent(share, places), 100.0)):
            number, unit = float(text.strip("<>%")), 10.0**-places
            if text[0] in "<>":
                assert (scale * share < number) if text[0] == "<" else (scale * share > number)
            else:
                assert abs(number - scale * share) <= unit / 2 * (1 + 1e-9)
                assert share < 0 or 0 < number < scale


def test_what_is_rounding_is_all() -> None:
    assert [fixed(one) for one in (1.0, 1 - 1e-15, 0.0, -0.0)] == ["1.000", "1.000", "0.000", "0.000"]
    assert [percent(one, 0) for one in (1.0, 1.5, -2.0, float("nan"))] == ["100%", "150%", "-200%", "nan%"]


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
def test_a_number_below_1_is_not_1(digits: int) -> None:
    drawn = random.Random(digits)
    for short in (10 ** -drawn.uniform(0, 11) for _ in range(2000)):
        text = rounded(1 - short, digits)
        assert text != "1"
        said = float(text[2:]) if text.startswith("1-") else 1 - float(text)
        assert abs(said - short) <= max(0.06 * short, 10.0**-digits)


def test_what_is_said_is_read_as_a_number() -> None:
    """So that columns of it stand flush right, in the terminal and in reports."""
    said = [fixed(3e-7), fixed(1 - 3e-7), percent(1 - 3e-7), rounded(1 - 3e-7), big(48), big(2**60), big(3**80), "−7 %"]
    assert all(NUMBER.fullmatch(one) for one in said)
    assert not any(NUMBER.fullmatch(one) for one in ("a", "L0", "<a>", "> 0.1 b", ""))


def test_bars_of_a_report_are_of_the_numbers_and_not_of_what_is_said_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """`>0.9999` is no number."""
    loaded = jg.load_model("demo")
    monkeypatch.setattr(models, "fixed", lambda share: ">0.9999")
    one = subject(loaded.trace(loaded.inputs()), None, loaded.tokenizer)
    section = models.bigrams(one, Origin.of("demo"))
    assert section is not None
    assert {row[2] for table in section.tables for row in table.rows} == {">0.9999"}
    assert all(0 < bar <= 1 for table in section.tables for bar in table.bars)


def test_shares_are_said_in_one_place() -> None:
    """No other module rounds to percents by itself."""
    for module, path in MODULES.items():
        nodes = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FormattedValue))
        specs = [ast.unparse(node.format_spec).rstrip("'\"") for node in nodes if node.format_spec is not None]
        wild = [spec for spec in specs if spec.endswith("%")]
        assert module == "numbers" or not wild, (module, wild)
