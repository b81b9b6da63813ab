"""The law of a region (`tests.laws`) over every model of the zoo, mixtures of experts, and gates written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import jetgraph as jg
from tests import zoo
from tests.conftest import Example, run
from tests.gates import GATES, POSITIONS, WIDTH, Gate, gated
from tests.laws import EXACT, Subject, check_affine, check_parts, check_slopes, check_values, distance, parted, subject
from tests.zoo import Case

# The zoo


def others(case: Case) -> dict[str, Any]:
    """Inputs of the case drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.example(2, case.length)


@pytest.fixture(scope="module", params=zoo.CASES + zoo.ROUTED, ids=lambda case: case.name)
def example(request: pytest.FixtureRequest, traced: Callable[..., Example]) -> Example:
    """Those of the zoo with the trace that other tests make too, the others with fixed sizes, which takes less time."""
    return traced(request.param, dynamic=request.param in zoo.CASES)


@pytest.fixture(scope="module")
def double(example: Example) -> Subject:
    return subject(example.graph, example.inputs, others(example.case), torch.float64)


def test_values_of_the_zoo(double: Subject) -> None:
    with torch.no_grad():
        assert check_values(double) >= 3 * bool(double.graph.joins)


@pytest.mark.parametrize("case", zoo.ROUTED, ids=lambda case: case.name)
def test_joins_of_mixtures(case: Case, traced: Callable[..., Example]) -> None:
    graph = traced(case, dynamic=False).graph
    found = [[(branch.name, branch.alias) for branch in join.branches] for join in graph.joins]
    assert found == [list(join.branches) for join in case.structure.joins]
    decoder = graph.outline.decoder
    assert (not decoder.affine, decoder.bias) == (case.structure.nonlinear, case.structure.bias)


def test_affine_regions_of_the_zoo(double: Subject) -> None:
    with torch.no_grad():
        check_affine(double)


def test_slopes_of_the_zoo(double: Subject) -> None:
    check_slopes(double)


def test_values_of_the_zoo_in_bfloat16(example: Example) -> None:
    given = subject(example.graph, example.inputs, others(example.case), torch.bfloat16)
    with torch.no_grad():
        check_values(given, 4 * torch.finfo(torch.bfloat16).eps)


def test_parts_of_the_zoo(example: Example) -> None:
    cut = parted(example.graph)
    if cut is None:
        pytest.skip("no branch of a stream can be cut")
    given = subject(cut, example.inputs, others(example.case), torch.float64)
    with torch.no_grad():
        whole, alone = check_parts(given)
    assert whole >= 3
    # With a norm at the end of every branch no part is a slice by itself: tests/structure/test_cuts.py has those.
    assert (alone == 0) is (example.case.name in ("gemma2", "gemma3", "olmo2"))


def test_fourier_mixing_is_an_affine_branch() -> None:
    """FNet: h + Re FFT(h) over positions and features, through complex numbers, then an MLP, with a norm after each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.FNetConfig(
            vocab_size=zoo.VOCAB, hidden_size=8, num_hidden_layers=2, intermediate_size=12, max_position_embeddings=16
        )
        model = transformers.FNetForMaskedLM(config).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # no bias is zero
        ids, others = torch.randint(4, zoo.VOCAB, (2, 2, 5))
    graph = jg.trace(model, input_ids=ids, dynamic=False)
    fourier = subject(graph, {"input_ids": ids}, {"input_ids": others}, torch.float64)
    found = [[(branch.name, branch.region.affine) for branch in join.branches] for join in graph.joins]
    assert [[affine for _, affine in branches] for branches in found] == [[True], [False], [True], [False]]
    assert [branches[0][0][:28] for branches in found[::2]] == [f"fnet.encoder.layer.{i}.fourier" for i in range(2)]
    with torch.no_grad():
        check_values(fourier)
        check_affine(fourier)
    check_slopes(fourier)


# The module


def hooked(example: Example, fork: Tensor, value: Tensor) -> tuple[list[Tensor | None], int]:
    """What each module returns where `value` is put into all modules that read `fork`, and how many those are.

    The first tensor of every result, in the order in which the calls end.
    """
    returned: list[Tensor | None] = []
    readers = 0

    def put(leaf: Any) -> Any:
        nonlocal readers
        if isinstance(leaf, Tensor) and leaf.shape == fork.shape and torch.equal(leaf, fork):
            readers += 1
            return value
        return leaf

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map(put, (args, kwargs))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        returned.append(next((leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)), None))

    modules = list(example.model.modules())
    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(leave) for module in modules]
    run(example.model, example.inputs)
    for hook in hooks:
        hook.remove()
    return returned, readers


def test_branches_of_the_zoo_are_the_modules_own(example: Example) -> None:
    """The model itself, hooks putting another value wherever a module reads the fork, for branches that are modules."""
    forward = example.graph.run(**example.inputs)
    compared = 0
    for join in example.graph.joins:
        fork = forward[join.fork]
        value = fork + 0.3 * torch.randn(fork.shape, generator=torch.Generator().manual_seed(0))
        (usual, readers), (moved, _) = hooked(example, fork, fork), hooked(example, fork, value)
        for branch in join.branches if readers else ():
            exit = forward[branch.node]
            for true, other in zip(usual, moved, strict=True):
                if true is not None and true.shape == exit.shape and torch.equal(true, exit):
                    assert other is not None
                    with torch.no_grad():
                        assert distance(forward.branch(branch, value), other) < 2e-5, branch.alias
                    compared += 1
                    break


# Gates


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_a_gate(gate: Gate) -> None:
    """It is found, with what it is algebraically; its values are those of the module's own function too."""
    one, other = torch.randn(2, 2, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = gated(gate)
    graph = jg.trace(module, h=one, dynamic=False)
    with torch.no_grad():
        given = subject(graph, {"h": one}, {"h": other}, torch.float64)
        # Code of the gate may be a join of its own, as u + rows[argmax u].
        (join,) = (join for join in graph.joins if not join.depth)
        (branch,) = join.branches
        assert branch.region.affine is gate.affine
        assert check_values(given) >= 3
        (join,) = (join for join in given.graph.joins if not join.depth)
        for value in given.elsewhere(join.fork):
            assert distance(given.forward.branch(join.branches[0], value), module(value) - value) < EXACT
        check_affine(given)
    check_slopes(given)
