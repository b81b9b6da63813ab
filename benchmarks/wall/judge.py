"""One class of transformers, or one net of another library: built tiny, traced, and held against plain interpretation
and its own hidden states."""

from __future__ import annotations

import importlib
import inspect
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import jetgraph as jg
from benchmarks.wall import configs, inputs
from benchmarks.wall.by_hand import MADE
from benchmarks.wall.expected import Expected, expected
from benchmarks.wall.hidden import found_states
from benchmarks.wall.libraries import Net, module_of
from benchmarks.wall.sums import exported_sums
from jetgraph.jets.series import Series
from jetgraph.structure.heads import HeadsError, find_heads
from jetgraph.structure.regions import Branch, Region
from jetgraph.tracing.calls import call_options
from tests import laws

Verdict = Literal["right", "wrong", "joins", "refused", "time", "random", "not built"]

LARGEST = 40_000_000
"""Weights that a tiny model may have."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Relative. Models round to float32 inside also where their weights are of float64."""


@dataclass
class Finding:
    """What was seen of a class."""

    type: str
    model: str
    verdict: Verdict = "not built"
    reason: str = ""
    joins: int = 0
    expected: int | None = None
    """Joins by its code, where somebody read it."""
    streams: int = 0
    points: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    """How many branches there are of each kind."""
    hidden: tuple[int, int] | None = None
    """How many of the model's hidden states are points of a stream, of how many."""
    values: int = 0
    """Regions that were compared at other values of what they read."""
    slopes: int = 0
    """Those of them whose derivative was compared too."""
    error: float = 0.0
    """The largest relative difference."""
    heads: tuple[int, int] | None = None
    """How many attention branches can be cut into heads, of how many."""
    seconds: float = 0.0
    """Of `jg.trace`."""
    sizes: str = ""
    weights: int = 0
    inputs: list[str] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Built:
    """A tiny model, what it is given, by name, and what its code says of its joins."""

    model: nn.Module
    given: dict[str, Any]
    expected: Expected | None


def judge(kind: str, name: str, report: Callable[[Finding], None], library: bool = False) -> None:
    """Look at one class (a net of another library: `kind` says which); what is known so far is reported on the way, for
    a look that is cut off.
    """
    found = Finding(kind, name, reason="building it")
    report(found)
    built = _net(found) if library else _built(found)
    if built is None:
        report(found)
        return
    model, given = built.model, built.given
    found.verdict, found.reason, found.inputs = "time", "tracing it", list(given)
    report(found)
    started = time.process_time()
    try:
        graph = jg.trace(model, inputs=given)
    except jg.JetGraphError as error:
        found.verdict, found.reason = "random" if "draws random numbers" in str(error) else "refused", _said(error)
    except Exception as error:  # a fault of ours, which the wall is there to show
        found.verdict, found.reason = "wrong", f"{type(error).__name__} in jetgraph.trace: {error}"
    else:
        found.seconds = time.process_time() - started
        found.reason = "checking it"
        report(found)
        _look(found, graph, built)
    found.seconds = found.seconds or time.process_time() - started
    report(found)


def _said(error: Exception) -> str:
    """What an error says, with paths from where packages are installed."""
    return re.sub(r"\S*/site-packages/", "", str(error))


def _net(found: Finding) -> Built | None:
    """A net of another library; None where it cannot be imported or built, the reason being noted."""
    try:
        net: Net = importlib.import_module(module_of(found.type)).NETS[found.model]
        torch.manual_seed(0)
        model = net.build().eval()
        torch.manual_seed(0)
        given = net.inputs()
        if not isinstance(given, dict):
            given = dict(inspect.signature(model.forward).bind(*given).arguments)
        with torch.no_grad():
            model(**given)
    except Exception as error:  # whatever a library or a model checks
        found.reason = f"{type(error).__name__}: {_short(error)}"
        return None
    found.weights = sum(weight.numel() for weight in model.parameters())
    return Built(model, given, Expected(net.joins, net.read, net.kinds))


def _built(found: Finding) -> Built | None:
    """A tiny model of the class with inputs that it takes; None where there is none, the reason being noted."""
    kind, made = getattr(transformers, found.model), MADE.get(found.type)
    failures: list[str] = []
    try:
        for config in configs.attempts(kind.config_class) if made is None else [kind.config_class(**made.config)]:
            try:
                with torch.device("meta"):
                    size = sum(weight.numel() for weight in kind(config).parameters())
            except Exception:  # not every model can be made there
                size = 0
            if size > LARGEST:
                failures.append(f"{size:,} weights")
                continue
            try:
                torch.manual_seed(0)
                model = kind(config).eval()
            except Exception as error:  # whatever a model checks
                failures.append(f"{type(error).__name__}: {_short(error)}")
                continue
            chosen = made and made.inputs
            for given in inputs.candidates(model) if chosen is None else [chosen()]:
                try:
                    with torch.no_grad():
                        model(**call_options(model, given))
                except Exception as error:
                    failures.append(f"{', '.join(given)}: {type(error).__name__}: {_short(error)}")
                    continue
                found.weights = sum(weight.numel() for weight in model.parameters())
                return Built(model, given, expected().get(found.model))
    except Exception as error:
        failures.append(f"{type(error).__name__}: {_short(error)}")
    found.reason = failures[0] if failures else "no inputs are known for what it takes"
    return None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _look(found: Finding, graph: jg.ResidualGraph, built: Built) -> None:
    """Joins, hidden states, heads, and values and slopes of every region elsewhere."""
    model, given, read = built.model, built.given, built.expected
    found.expected = read and read.joins
    found.joins, found.streams = len(graph.joins), len(graph.streams)
    found.points = len(graph.stream.points)
    found.sizes = graph.traced.dynamic
    faults: list[str] = []
    steps: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _expand(graph),
        lambda: _heads(found, graph),
        lambda: _hidden(found, graph, model, given),
        lambda: _regions(found, graph, given),
    )
    for step in steps:
        try:
            faults += step()
        except Exception as error:  # a fault of ours, or of the check
            faults.append(f"{type(error).__name__}: {_short(error)}")
    found.kinds = dict(Counter(branch.kind for join in graph.joins for branch in join.branches))
    if faults:
        found.verdict, found.reason = "wrong", "; ".join(faults[:3])
    elif read is not None and read.joins != found.joins:
        found.verdict, found.reason = "joins", f"its code has {read.joins}: {read.read}"
    elif read is not None and read.kinds and read.counted() != found.kinds:
        found.verdict, found.reason = "joins", f"its code has branches of {read.kinds}"
    elif read is None and not found.joins and (sums := exported_sums(model, given)):
        found.verdict, found.reason = "joins", f"no join was found; {sums[0]} is one"
    elif found.hidden is not None and found.hidden[0] < found.hidden[1]:
        found.verdict, found.reason = "joins", "not all hidden states are points"
    else:
        found.verdict, found.reason = "right", ""


def _expand(graph: jg.ResidualGraph) -> Iterator[str]:
    if jg.expand(graph, order=1).count() < 1:
        yield "no terms"


def _heads(found: Finding, graph: jg.ResidualGraph) -> Iterator[str]:
    """How many attention branches of the streams are cut: `split="heads"` leaves the others whole, and says so."""
    branches = [branch for join in graph.stream.joins for branch in join.branches if branch.kind == "attn"]
    found.heads = (sum(map(_is_cut, branches)), len(branches)) if branches else None
    yield from ()


def _is_cut(branch: Branch) -> bool:
    try:
        return find_heads(branch.region) is not None
    except HeadsError:
        return False


def _hidden(found: Finding, graph: jg.ResidualGraph, model: nn.Module, given: dict[str, Tensor]) -> Iterator[str]:
    found.hidden = found_states(graph, model, given)
    yield from ()


def _regions(found: Finding, graph: jg.ResidualGraph, given: dict[str, Tensor]) -> Iterator[str]:
    """Every function that is cut out of the graph, at values near and far, and its derivative along a direction."""
    others = {name: value.flip(0) for name, value in given.items()}
    try:
        graph.traced.input_values((), others)
    except jg.InputError:  # the trace is held to what the example decides
        others = given
    for dtype in TOLERANCES:
        try:
            subject = laws.subject(graph, given, others, dtype)
        except RuntimeError:
            if dtype is torch.float32:
                raise
            continue  # operators without a kernel for float64
        break
    for name, region, function in subject.regions():
        with torch.no_grad():
            yield from _values(found, subject, name, region, function, TOLERANCES[dtype])
        yield from _slope(found, subject, name, region, function, TOLERANCES[dtype])


def _values(
    found: Finding, subject: laws.Subject, name: str, region: Region, function: Callable[..., Any], tolerance: float
) -> Iterator[str]:
    compared = False
    for value in _centres(subject, region):
        expected = _expected(subject, region, value)
        if expected is None or not expected.isfinite().all():
            continue
        error = laws.distance(function(value), expected)
        found.error = max(found.error, error)
        if not error < tolerance:
            yield f"{name} is off by {error:.1e} at another centre"
            return
        compared = True
    found.values += compared


def _centres(subject: laws.Subject, region: Region) -> Iterator[Tensor]:
    """Where a region is looked at: near the stream and far from it; where the model's code decides by values, first so
    near that it decides as on the example.
    """
    if subject.graph.traced.decisions is not None:
        h = subject.own.values[region.entry]
        yield h + 1e-6 * h.abs().mean() * torch.randn(h.shape, generator=torch.Generator().manual_seed(1)).to(h.dtype)
    yield from subject.elsewhere(region.entry)


def _expected(subject: laws.Subject, region: Region, value: Tensor) -> Tensor | None:
    """What the graph makes of a value; None where the model's code would decide otherwise, so that sizes do not fit."""
    try:
        return subject.at(region, value)
    except RuntimeError:
        if subject.graph.traced.decisions is None:
            raise
        return None


def _slope(
    found: Finding, subject: laws.Subject, name: str, region: Region, function: Callable[..., Any], tolerance: float
) -> Iterator[str]:
    near, *_, far = _centres(subject, region)
    direction = far - near
    try:
        with sdpa_kernel(SDPBackend.MATH):
            expected: Any = torch.func.jvp(partial(subject.at, region), (near,), (direction,))[1]
    except (RuntimeError, NotImplementedError):
        return  # torch has no forward mode for an operator there
    if not expected.isfinite().all():
        return
    try:
        series = function(Series.variate(near, direction, 1), 1)
    except (jg.MissingRuleError, jg.DomainError) as error:
        yield f"{name}: {_short(error)}"
        return
    actual = series.coefficient(1) if isinstance(series, Series) else torch.zeros_like(series)
    error = laws.distance(actual, expected)
    found.error = max(found.error, error)
    if not error < 10 * tolerance:
        yield f"the derivative of {name} is off by {error:.1e}"
        return
    found.slopes += 1
