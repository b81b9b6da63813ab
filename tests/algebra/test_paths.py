"""Selections against naive matching, path DAGs against the list of terms, graph files against what was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import islice
from math import comb

import networkx as nx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jetgraph.algebra.automaton import Everything, TermGraph
from jetgraph.algebra.dag import count_paths, path_graph, path_texts
from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.formulas import moved
from jetgraph.algebra.outline import MapStep, Outline, Site
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rewriting import Recipe
from jetgraph.algebra.selection import select
from jetgraph.errors import BudgetError, InputError, SelectionError
from tests.outlines import a_map, branch, by_hand, gpt2, join, llama, nets, outline


def post_norm(blocks: int) -> Outline:
    steps = []
    for block in range(blocks):
        steps += [join(branch(f"L{block}.mlp")), MapStep(a_map(f"L{block}.norm"))]
    return outline(*steps)


def found(expansion: Expansion, pattern: str | list[str], **bounds: int) -> list[str]:
    return [str(path) for path in select(expansion, pattern, **bounds)]


# Patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embed > logits", ["embed > logits^0", "embed > logits^1"]),
        ("embed > *.mlp > output^1", ["embed > L1.mlp^0 > logits^1", "embed > L1.mlp^1 > logits^1",
                                      "embed > L0.mlp^0 > logits^1", "embed > L0.mlp^1 > logits^1"]),
        ("embed > L0.attn^1 > L1.mlp^0 > logits^0", ["embed > L0.attn^1 > L1.mlp^0 > logits^0"]),
        ("embed > model.layers.0.attn^1 > *.attn^0 > logits^0", ["embed > L0.attn^1 > L1.attn^0 > logits^0"]),
        ("embed > L0.attn^1 > ** > L1.attn^1 > logits^1", [
            "embed > L0.attn^1 > L1.attn^1 > logits^1",
            "embed > L0.attn^1 > L0.mlp^0 > L1.attn^1 > logits^1",
            "embed > L0.attn^1 > L0.mlp^1 > L1.attn^1 > logits^1",
        ]),
        ("e*>L1.mlp^1>*^0", ["embed > L1.mlp^1 > logits^0"]),
        ("embed > L?.mlp^* > logits^0", ["embed > L1.mlp^0 > logits^0", "embed > L1.mlp^1 > logits^0",
                                         "embed > L0.mlp^0 > logits^0", "embed > L0.mlp^1 > logits^0"]),
    ],
)  # fmt: skip
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert found(expand(gpt2(2), 1, orders="apart"), pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embed > *.mlp~2 > logits^2", ["embed > L1.mlp~2 > logits^2", "embed > L0.mlp~2 > logits^2"]),
        ("embed > L0.attn > *~2 > output^1", ["embed > L0.attn~2 > L1.mlp~2 > logits^1",
                                              "embed > L0.attn~2 > L1.attn~2 > logits^1",
                                              "embed > L0.attn~2 > L0.mlp~2 > logits^1"]),
        ("embed > L1.mlp~* > logits^0", ["embed > L1.mlp~2 > logits^0"]),
        ("embed > L1.mlp^* > logits~0", ["embed > L1.mlp~2 > logits^0"]),
    ],
)  # fmt: skip
def test_patterns_of_jets_as_a_whole(pattern: str, expected: list[str]) -> None:
    expansion = expand(gpt2(2), 2)
    assert found(expansion, pattern) == expected
    assert list(path_texts(path_graph(expansion, pattern))) == expected


def test_an_exact_alias_is_no_module_path() -> None:
    sites = [Site(f"L{block}.mlp", f"L{block + 1}.mlp", "mlp", "branch", False, False) for block in range(3)]
    expansion = expand(outline(*map(join, sites)), order=0)
    assert found(expansion, "embed > L1.mlp > logits") == ["embed > L1.mlp^0 > logits^0"]
    assert found(expansion, "embed > L3.mlp > logits") == ["embed > L2.mlp^0 > logits^0"]
    assert found(expansion, "embed > *.mlp > L2.mlp > output") == [
        "embed > L1.mlp^0 > L2.mlp^0 > logits^0",
        "embed > L0.mlp^0 > L2.mlp^0 > logits^0",
    ]
    with pytest.raises(SelectionError, match="two meanings"):
        select(expansion, "embed > L1.* > logits")


def test_every_path_matches_a_gap() -> None:
    expansion = expand(gpt2(1), 1)
    assert found(expansion, "**") == found(expansion, "** > **") == [str(path) for path in expansion]
    assert found(expansion, "** > *") == found(expansion, "**")
    assert set(found(expansion, "pos > **")) | set(found(expansion, "embed > **")) == set(found(expansion, "**"))


def test_maps_are_passed_silently_and_can_be_named() -> None:
    expansion = expand(post_norm(2), 0)
    assert found(expansion, "embed > logits") == ["embed > L0.norm^0 > L1.norm^0 > logits^0"]
    assert found(expansion, "embed > L0.mlp > logits") == ["embed > L0.mlp^0 > L0.norm^0 > L1.norm^0 > logits^0"]
    assert found(expansion, "embed > L0.norm > logits") == found(expansion, "embed > logits")
    # a bare * is a site that the path has a choice about
    assert found(expansion, "embed > * > logits") == [
        "embed > L0.norm^0 > L1.mlp^0 > L1.norm^0 > logits^0",
        "embed > L0.mlp^0 > L0.norm^0 > L1.norm^0 > logits^0",
    ]
    with pytest.raises(SelectionError, match="no path has them in this order"):
        select(expansion, "embed > L1.norm > L0.mlp > logits")


@pytest.mark.parametrize("recipe", ["exhaustive", "frozen"])
@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("L1.mlp", "L1.mlp"),
        ("model.layers.1.mlp", "L1.mlp"),
        ("blocks.1.mlp", "L1.mlp"),
        ("*.mlp", "*.mlp"),
        ("embed", "embed"),
        ("logits", "logits"),
        ("*", "*"),
    ],
)
def test_a_name_alone_is_all_paths_with_it(name: str, alias: str, recipe: Recipe) -> None:
    expansion = expand(gpt2(2), recipe=recipe)
    with_it = [str(path) for path in expansion if any(fnmatchcase(hop.alias, alias) for hop in path.hops)]
    assert found(expansion, name) == found(expansion, f"** > {name} > **") == with_it


def test_a_pattern_without_ends_is_told_with_those_that_match() -> None:
    frozen = expand(gpt2(2), recipe="frozen")
    for pattern, fuller in (
        ("embed > L1.mlp", "embed > L1.mlp > **"),
        ("L1.mlp > logits", "** > L1.mlp > logits"),
        ("L0.attn > L1.mlp", "** > L0.attn > L1.mlp > **"),
        ("** > L0.attn > L0.mlp", "** > L0.attn > L0.mlp > **"),
    ):
        with pytest.raises(SelectionError) as caught:
            select(frozen, pattern)
        assert f"'{fuller}' selects {len(found(frozen, fuller))} path" in str(caught.value)


def test_a_site_that_a_recipe_has_no_paths_through_is_in_the_model() -> None:
    lens = expand(gpt2(2), recipe="lens")
    for name in ("L1.mlp", "*.mlp", "model.layers.1.mlp", "embed"):
        with pytest.raises(
            SelectionError, match=r"is in the model, but in no path of this expansion \(recipe 'lens'\)"
        ):
            select(lens, name)
    with pytest.raises(SelectionError, match="matches no source and no site"):
        select(lens, "L7.mlp")


def test_union_has_no_duplicates() -> None:
    expansion = expand(llama(2), 0)
    both = select(expansion, ["embed > ** > L0.mlp > logits", "embed > L0.* > logits", "** > L0.mlp > logits"])
    assert [str(path) for path in both] == [
        "embed > L0.mlp^0 > logits^0",
        "embed > L0.attn^0 > logits^0",
        "embed > L0.attn^0 > L0.mlp^0 > logits^0",
    ]
    assert both.count() == len(both) == 3


def test_length_bounds() -> None:
    expansion = expand(gpt2(3), 1, orders="apart")
    assert select(expansion, "**", min_length=2, max_length=3).count() == 4 * (comb(6, 2) * 4 + comb(6, 3) * 8)
    assert select(expansion, "embed > ** > L2.mlp > **", max_length=1).count() == 4
    assert {path.length for path in select(expansion, "**", min_length=5)} == {5, 6}
    assert {path.length for path in select(expansion, "**", max_length=0)} == {0}
    with pytest.raises(SelectionError, match=r"matches 4 paths, but none of a length within 2\.\.any"):
        select(expansion, "embed > L1.mlp > logits", min_length=2)
    with pytest.raises(SelectionError, match=r"matches 4 paths, but none of a length within 0\.\.0"):
        select(expansion, "embed > L1.mlp > logits", max_length=0)
    assert select(expansion, "**", min_length=0).count() == expansion.count()


def test_paths_are_checked_and_keep_their_order() -> None:
    expansion = expand(llama(2), 0)
    paths = [Path.parse("embed > L1.mlp^0 > logits^0"), Path.parse("embed > logits^0")]
    assert list(select(expansion, [*paths, paths[0]])) == paths
    assert list(select(expansion, paths[1])) == paths[1:]
    assert list(select(expansion, [paths[0], "embed > logits"])) == paths[::-1]
    assert list(select(expansion, paths, max_length=0)) == paths[1:]
    with pytest.raises(SelectionError, match=r"L1\.mlp\^0, not L1\.mlp\^1"):
        select(expansion, Path.parse("embed > L1.mlp^1 > logits^0"))
    with pytest.raises(SelectionError, match="none of 2 paths"):
        select(expansion, paths, min_length=2)


def test_a_selection_can_be_selected_from() -> None:
    expansion = expand(llama(2), 0)
    selection = select(expansion, "embed > * > logits")
    assert select(expansion, selection) is selection
    assert list(select(expansion, selection, limit=1)) == list(selection)[:1]
    assert list(select(expand(gpt2(2), 1, orders="apart"), selection)) == list(selection)
    assert "embed > L1.mlp^0 > logits^0" in repr(selection)


# Against naive matching


def matches(elements: Sequence[str], hops: Sequence[Hop], net: Outline, first: bool = True) -> bool:
    """A pattern against a path, by trying everything."""
    if not hops:
        return all(element == "**" for element in elements)
    hop, rest = hops[0], hops[1:]
    sites = {site.alias: site for site in net.sites()}
    is_map = not first and sites[hop.alias].role == "map"
    if is_map and matches(elements, rest, net, False):
        return True
    if not elements:
        return False
    if elements[0] == "**":
        return matches(elements[1:], hops, net, first) or matches(elements, rest, net, False)
    glob, order = re.fullmatch(r"([^~^]*)(.*)", elements[0]).groups()
    glob = "logits" if glob == "output" else glob
    module = sites[hop.alias].path if hop.alias in sites else {"embed": "model.embed", "pos": "wpe"}.get(hop.alias, "")
    aliased = fnmatchcase(hop.alias, glob) and ("bias" in glob or not hop.alias.endswith(".bias"))
    named = not is_map if glob == "*" else aliased or (module and fnmatchcase(module, glob))
    right = named and str(hop).endswith(order)
    return bool(right) and matches(elements[1:], rest, net, False)


ELEMENTS = st.sampled_from(
    [
        "*",
        "**",
        "**",
        "**",
        "embed",
        "L*",
        "*.mlp",
        "L0.*",
        "*^1",
        "*~1",
        "*^0",
        "*.norm",
        "model.*",
        "bias*",
        "wpe",
        "L1.attn^0",
    ]
)
PATTERNS = st.lists(ELEMENTS, max_size=4).flatmap(
    lambda middle: st.sampled_from(["logits", "output^0", "**", "*"]).map(lambda last: [*middle, last])
)


@given(nets(), st.lists(PATTERNS, min_size=1, max_size=3), st.none() | st.integers(0, 2), st.none() | st.integers(1, 3))
@settings(max_examples=400, deadline=None)
def test_selection_agrees_with_naive_matching(case, patterns, shortest, longest) -> None:
    net, rules = case
    expansion = expand(net, rules=rules)
    assume(0 < expansion.count() < 2000)
    inside = [
        path for path in expansion if (shortest or 0) <= path.length and (longest is None or path.length <= longest)
    ]
    whole = [["**", *pattern, "**"] if len(pattern) == 1 else pattern for pattern in patterns]
    hits = [[path for path in inside if matches(pattern, path.hops, net)] for pattern in whole]
    wanted = [" > ".join(pattern) for pattern in patterns]
    if not all(hits):
        with pytest.raises(SelectionError):
            select(expansion, wanted, min_length=shortest, max_length=longest)
        return
    expected = [path for path in inside if any(path in hit for hit in hits)]
    selection = select(expansion, wanted, min_length=shortest, max_length=longest)
    assert list(selection) == expected
    assert selection.count() == len(selection) == len(expected)
    assert [selection[index] for index in range(-len(expected), len(expected))] == expected * 2
    assert list(selection[1:5]) == expected[1:5]
    assert list(selection[::-2]) == expected[::-2]
    dag = path_graph(expansion, selection)
    assert count_paths(dag) == len(expected)
    assert list(path_texts(dag)) == [str(path) for path in expected]


# Lazily


def test_ten_of_two_to_the_252_are_instant() -> None:
    expansion = expand(llama(126), 0)
    selection = select(expansion, "embed > ** > L63.mlp > ** > logits")
    first = list(islice(selection, 10))
    assert selection.count() == 2**251
    assert len(set(first)) == 10
    assert str(first[0]) == "embed > L63.mlp^0 > logits^0"
    assert list(selection[:10]) == first == list(select(expansion, "embed > ** > L63.mlp > ** > logits", limit=10))
    assert selection[2**250].sites[0] == Hop("L0.attn", 0)
    assert selection[-1].length == 252
    assert select(expansion, "**", min_length=126, max_length=126).count() == comb(252, 126)


def test_numbers_go_straight_to_their_path() -> None:
    selection = select(expand(llama(126), 0), "**")
    # at order 0 path number n, read in binary from the first join on, says which sites are passed
    number = (1 << 251) | (1 << 3) | 1
    assert [hop.alias for hop in selection[number].sites] == ["L0.attn", "L124.attn", "L125.mlp"]
    assert list(selection[number : number + 2]) == [selection[number], selection[number + 1]]
    assert selection[number : number + 7 : 3].count() == 3
    assert selection[5:6]
    assert not selection[5:5]
    with pytest.raises(InputError, match=r"not by 'a' \(str\): range indices .*, not str$"):
        selection["a"]  # type: ignore[call-overload]
    with pytest.raises(IndexError, match=r"2\^252"):
        selection[2**252]


def test_listing_too_many_is_refused() -> None:
    selection = select(expand(llama(126), 0), "**")
    for attempt in (list, len, tuple):
        with pytest.raises(BudgetError, match=r"2\^252 .*limit=1000000"):
            attempt(selection)
    assert selection
    assert "and 2^252" not in repr(selection[:6])


def test_iterating_past_the_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetgraph.algebra.selection.LIST_BUDGET", 3)
    selection = select(expand(llama(1), 0), "**")
    seen = []
    with pytest.raises(BudgetError, match="selects 4 paths"):
        seen.extend(path for path in selection)  # a generator has no length to ask for
    assert len(list(selection[:4])) == 4
    assert len(list(select(expand(llama(1), 0), "**", limit=4))) == 4


def test_an_automaton_that_grows_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetgraph.algebra.automaton.STATE_BUDGET", 50)
    pattern = "** > *.mlp > * > * > * > **"
    with pytest.raises(BudgetError, match=r"name sites between the gaps$"):
        select(expand(llama(30), 0), pattern)
    monkeypatch.setattr("jetgraph.algebra.automaton.STATE_BUDGET", 200)
    with pytest.raises(BudgetError, match="name sites between the gaps, as in '") as refused:
        select(expand(llama(30), 0), pattern)
    fitting = str(refused.value).rpartition("as in ")[2].strip("'")
    assert fitting.count("*") == pattern.count("*") - 1
    assert select(expand(llama(30), 0), fitting).count()
    # The points of two joins.
    for budget, count in ((3, 4), (2, None)):
        monkeypatch.setattr("jetgraph.algebra.automaton.STATE_BUDGET", budget)
        assert TermGraph.count_within(expand(llama(1), 0).automaton, Everything()) == count


def test_a_selection_says_what_it_is_of() -> None:
    expansion = expand(llama(2), 0)
    both = select(expansion, ["embed > ** > L0.mlp > logits", "embed > L1.* > logits"])
    assert repr(both).splitlines()[0] == (
        "Selection \"embed > ** > L0.mlp > logits' and 1 more, such as 'embed > L1.* > logits\": 4 paths"
    )
    every = select(expansion, "**")
    lines = repr(every).splitlines()
    assert lines[1:6] == [f"  {path}" for path in every[:5]]
    assert lines[6:] == ["  … and 11 more"]
    assert repr(every[:5]).count("\n") == 5
    assert repr(every[:6]).endswith("  … and 1 more")
    assert [every._repr_html_().count(text) for text in ("<tr>", "and 4 more")] == [12, 1]
    assert "more" not in every[:12]._repr_html_()
    assert "and 1 more" in every[:13]._repr_html_()
    # What is saved of a selection: its patterns and bounds where it is whole, else its paths.
    assert select(expansion, "embed > **", min_length=1, max_length=2).asked() == (["embed > **"], 1, 2)
    assert every[:2].asked() == (list(every[:2]), None, None)
    paths = select(expansion, list(every[:2]))
    assert paths.asked() == (list(every[:2]), None, None)
    assert list(paths.term_graph().paths()) == sorted(every[:2], key=list(every).index)


def test_slices_count_what_they_list() -> None:
    every = select(expand(llama(2), 0), "**")
    whole = list(every)
    for window in (slice(None, None, -1), slice(1, 12, 3), slice(12, 1, -3), slice(5, 5), slice(9, 2), slice(-3, None)):
        assert list(every[window]) == whole[window]
        assert every[window].count() == len(every[window]) == len(whole[window])
    with pytest.raises(InputError, match=r"not by 'x' \(str\): range indices must be integers"):
        every["x"]  # type: ignore[call-overload]
    with pytest.raises(SelectionError, match="7 is neither a pattern nor a path"):
        select(every.expansion, iter(["**", 7]))  # type: ignore[arg-type]


def test_values_put_paths_in_order() -> None:
    expansion = expand(llama(1), 0)
    one, two, three, four = select(expansion, "**")
    values = {one: 1.0, two: -3.0, three: 2.0}
    for by in (values, {str(path): value for path, value in values.items()}, values.get):
        assert list(select(expansion, "**", by=by)) == [two, three, one]
        assert list(select(expansion, "**", by=by, limit=1)) == [two]
    assert list(select(expansion, "** > L0.mlp > **", by=values)) == [
        path for path in (two, three, one) if "L0.mlp" in str(path)
    ]
    with pytest.raises(SelectionError, match="has a value for none"):
        select(expansion, str(four), by=values)
    for wrong in (float("nan"), "1"):
        with pytest.raises(SelectionError, match="give finite numbers"):
            select(expansion, "**", by=lambda _, wrong=wrong: wrong)


def test_what_fits_is_told_and_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of patterns and of paths: what a message names is within the budget."""
    expansion = expand(llama(5), 0)
    patterns = [f"** > L{i}.mlp > *.attn > **" for i in range(4)]
    told: set[int] = set()
    for budget in range(30, 400, 10):
        monkeypatch.setattr("jetgraph.algebra.automaton.STATE_BUDGET", budget)
        try:
            select(expansion, patterns)
        except BudgetError as error:
            number = int(re.search(r"first (\d+) of 4 patterns", str(error))[1])  # type: ignore[index]
            assert select(expansion, patterns[:number]).count()
            with pytest.raises(BudgetError):
                select(expansion, patterns[: number + 1])
            told.add(number)
    assert told == {1, 2, 3}
    monkeypatch.setattr("jetgraph.algebra.automaton.STATE_BUDGET", 20)
    listed = select(expand(llama(4), 0), "**")[:250]
    with pytest.raises(BudgetError, match="250 paths") as refused:
        listed.term_graph()
    number = int(re.search(r"first \[:(\d+)\]", str(refused.value))[1])  # type: ignore[index]
    assert number > 1
    assert listed[:number].term_graph().count() == number
    with pytest.raises(BudgetError):
        listed[: 2 * number + 1].term_graph()
    # As many states as one path has points.
    monkeypatch.setattr("jetgraph.algebra.automaton.STATE_BUDGET", 9)
    with pytest.raises(BudgetError, match=r"first \[:1\]"):
        listed[:4].term_graph()


@given(nets())
@settings(max_examples=60, deadline=None)
def test_paths_are_skipped_as_if_listed(case) -> None:
    net, rules = case
    graph = expand(net, rules=rules).term_graph
    every = list(islice(graph.paths(), 40))
    for number in range(min(len(every), graph.count()) + 1):
        assert list(islice(graph.paths(number), len(every) - number)) == every[number:]
    assert list(graph.paths(graph.count())) == []


# Errors that name the fix


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embed > L0.mpl > logits", r"'L0\.mpl' in .* matches no source and no site; did you mean 'L0\.mlp'"),
        ("embd > logits", r"'embd' .* did you mean 'embed'.*There are: embed, L0\.attn, L0\.mlp, L1\.attn"),
        ("embed > L0.mlp^1 > logits", r"'L0\.mlp\^1' .* order that is not taken there.*There are: L0\.mlp~1"),
        ("embed > L0.mlp > logits~1", r"'logits~1' .* order that is not taken there.*logits\^0, logits\^1"),
        ("embed > **~1 > logits", "cannot be read"),
        ("embed^0 > logits", r"order that is not taken.*embed"),
        ("embed > L1.mlp > L0.mlp > logits", r"no path has them in this order.*embed > L0\.mlp > L1\.mlp > logits"),
        ("embed > L0.mlp", "no path has them"),
        ("L0.mlp > logits", "no path has them"),
        ("embed >", "cannot be read"),
        ("embed > **^1 > logits", "cannot be read"),
        ("embed > L0 mlp > logits", "cannot be read"),
        ([], "empty list"),
        (["embed > logits", "embed > L9.mlp > logits"], r"'L9\.mlp'"),
        (["embed > logits", "logits > embed"], "'logits > embed' matches by itself"),
        ("mlp", r"^'mlp' matches no source and no site; did you mean '\*\.mlp'\? There are"),
        ("embed > L1 > logits", r"'L1' in .* did you mean 'L1\.\*'\?"),
        ("L0.mlp^1", r"^'L0\.mlp\^1' has an order that is not taken there"),
    ],
)
def test_patterns_that_match_nothing(pattern: str | list[str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        select(expand(llama(2), 1), pattern)


def test_what_a_pattern_names_is_told_in_short() -> None:
    with pytest.raises(SelectionError, match=r"There are: (L0\.mlp\^\d, ){5}L0\.mlp\^\d$"):
        select(expand(llama(2), 7, orders="apart"), "embed > L0.mlp^9 > logits")
    with pytest.raises(SelectionError, match=r"'L0\.mlp' is a source of its own.*Write 'L0\.mlp > logits'"):
        select(expand(llama(2), recipe="components"), "embed > L0.mlp > logits")


@pytest.mark.parametrize("number", [12, 13])
def test_an_order_that_no_path_has_is_told_in_short(number: int) -> None:
    expansion = expand(llama(7), 0)
    names = [alias for alias in expansion.passages if alias != "logits"][:number]
    shown = " > ".join(names[:12]) + (" > …" if number > 12 else "")
    with pytest.raises(SelectionError, match=rf"they come as {re.escape(shown)}; a path"):
        select(expansion, " > ".join(reversed(names)))


def test_bounds_that_are_none() -> None:
    for bounds in ({"limit": 0}, {"min_length": -1}, {"max_length": -1}):
        with pytest.raises(SelectionError, match="is at least"):
            select(expand(llama(1)), "**", **bounds)


# The path DAG


@given(nets())
@settings(max_examples=150, deadline=None)
def test_walks_of_the_dag_are_the_terms(case) -> None:
    net, rules = case
    expansion = expand(net, rules=rules)
    dag = path_graph(expansion)
    assert nx.is_directed_acyclic_graph(dag)
    assert count_paths(dag) == expansion.count() == int(dag.graph["count"])
    terms = by_hand(net, rules)[-1]
    assert sorted(path_texts(dag)) == sorted(" > ".join(term.hops) for term in terms)
    assert list(path_texts(dag)) == [str(path) for path in expansion.terms(budget=None)]
    on_a_walk = {node for node, facts in dag.nodes(data=True) if facts["role"] in ("source", "sink")}
    assert all(dag.in_degree(node) and dag.out_degree(node) for node in dag if node not in on_a_walk)
    for _, facts in dag.nodes(data=True):
        if facts["role"] == "source":
            assert (facts["formula"], facts["order"]) == (facts["alias"], -1)
            assert facts["point"] == 0 or facts["alias"] not in {source.alias for source in net.sources}
        if facts["role"] == "point":
            assert facts["alias"] == facts["label"] == f"h{facts['point']}"
    for start, end, facts in dag.edges(data=True):
        first, last = dag.nodes[start], dag.nodes[end]
        assert facts["from_point"] == first["point"] or first["role"] == "source"
        assert facts["to_point"] == (last["point"] if last["role"] in ("point", "sink") else facts["from_point"])
        if first["role"] == last["role"] == "point":
            step = net.steps[facts["to_point"] - 1]
            assert facts["alias"] == (step.site.alias if isinstance(step, MapStep) else step.name)
            assert facts["formula"] == moved(expansion, facts["from_point"], facts["to_point"])


def test_attributes() -> None:
    expansion = expand(llama(1), 1)
    dag = path_graph(expansion)
    assert isinstance(dag, nx.MultiDiGraph)
    assert dag.graph == {"recipe": "exhaustive", "order": 1, "count": "8"}
    facts = dict(dag.nodes["site:L0.mlp~1"])
    assert facts.pop("x") > dag.nodes["point:1"]["x"], "sites stand after what they read, and above the stream"
    assert facts.pop("y") > dag.nodes["point:1"]["y"]
    assert facts == {
        "label": "L0.mlp~1",
        "hop": "L0.mlp~1",
        "point": 2,
        "alias": "L0.mlp",
        "path": "model.layers.0.mlp",
        "layer": "L0",
        "order": 1,
        "kind": "mlp",
        "role": "branch",
        "formula": "w[L0.mlp]*J[L0.mlp, ~1](x)",
        "weight_symbol": "w[L0.mlp]",
        "weight_value": "1/2",
    }
    roles = {facts["role"] for _, facts in dag.nodes(data=True)}
    assert roles == {"source", "point", "branch", "decoder", "sink"}
    kinds = [(facts["role"], facts["kind"], facts["order"]) for *_, facts in dag.edges("site:logits^1", data=True)]
    assert kinds == [("decoder", "logits", 1)]
    assert dag.edges["point:0", "point:1", 0]["role"] == "skip"
    assert dag.edges["point:0", "point:1", 0]["kind"] == "identity"
    assert dag.edges["point:1", "site:L0.mlp~1", 0]["weight_symbol"] == "w[L0.mlp]"
    for facts in [facts for *_, facts in (*dag.nodes(data=True), *dag.edges(data=True))]:
        assert all(type(value) in (str, int, float) for value in facts.values())


def test_weights_given_by_centre_have_no_one_value() -> None:
    dag = path_graph(expand(llama(1), 0, weights={"embed": 2.0}))
    facts = dag.nodes["site:logits^0"]
    assert (facts["weight_symbol"], facts["weight_value"]) == ("w[logits]", "")


def test_the_dag_of_405b_is_small() -> None:
    expansion = expand(gpt2(126), 2, orders="apart")
    dag = path_graph(expansion)
    assert count_paths(dag) == 2 * 4**252 * 3
    assert len(dag) == 2 + 253 + 252 * 3 + 3 + 1
    assert dag.number_of_edges() == 2 + 252 + 252 * 3 * 2 + 3 * 2


def test_the_dag_of_a_selection_is_short() -> None:
    expansion = expand(llama(126), 0)
    dag = path_graph(expansion, "embed > L3.mlp > logits")
    assert list(path_texts(dag)) == ["embed > L3.mlp^0 > logits^0"]
    assert [facts["label"] for _, facts in dag.nodes(data=True)] == [
        "embed", "h7", "L3.mlp^0", "h252", "logits^0", "output"
    ]  # fmt: skip
    paths = list(select(expansion, "**")[2**200 : 2**200 + 500])
    assert list(path_texts(path_graph(expansion, paths))) == [str(path) for path in paths]
    assert count_paths(path_graph(expansion, select(expansion, "**")[:7])) == 7


def test_dag_of_a_lens_and_of_components() -> None:
    lens = path_graph(expand(llama(1), recipe="lens"))
    assert list(path_texts(lens)) == ["h0 > logits^0", "h1 > logits^0", "h2 > logits^0"]
    assert {lens.nodes[f"source:h{point}"]["kind"] for point in range(3)} == {"stream"}
    components = path_graph(expand(llama(1), 0, recipe="components"))
    assert sorted(path_texts(components)) == ["L0.attn > logits^0", "L0.mlp > logits^0", "embed > logits^0"]
