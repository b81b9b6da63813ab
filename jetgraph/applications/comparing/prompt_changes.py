"""What has changed between two models on prompts: what they say, and what components and paths give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jetgraph.applications.bars import BARS, drawn
from jetgraph.applications.intervals import Array, bootstrap
from jetgraph.applications.maps import LayerMap, layer_map, without
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.layout.colours import GIVES, OTHER, TAKES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 1000
"""Of the bootstrap over prompts."""

ByName = Sequence[Mapping[str, float]]
"""By prompt, numbers by name."""


@dataclass(frozen=True, eq=False)
class Changes:
    """A quantity in two models, by name: means over prompts."""

    names: tuple[str, ...]
    before: Array
    """[name]; NaN where the first model has none of that name."""
    after: Array
    """As `before`, of the second model."""
    low: Array
    """The lower end of the 95 % interval of the mean change; NaN of one prompt."""
    high: Array
    """The upper end."""

    @staticmethod
    def of(names: Sequence[str], before: ByName, after: ByName) -> Changes:
        """Means of what both models have on each prompt."""
        values = np.array([[[one.get(name, np.nan) for name in names] for one in side] for side in (before, after)])
        # What a model does not have gives nothing.
        filled = np.nan_to_num(values)
        change = filled[1] - filled[0]
        low, high = bootstrap(change, np.ones((len(change), 1)), RESAMPLES, seed=0)
        missing = np.isnan(values).all(1)
        means = np.where(missing, np.nan, filled.mean(1))
        return Changes(tuple(names), means[0], means[1], low, high)

    @property
    def change(self) -> Array:
        """What it has changed by, [name]; of what one of the models does not have, all that it gives."""
        return np.nan_to_num(self.after) - np.nan_to_num(self.before)

    def columns(self, name: str) -> dict[str, Sequence[Cell]]:
        """Both models, the change, and its interval where there are several prompts."""
        told = {f"{name}_a": self.before, f"{name}_b": self.after, name: self.change}
        if not np.isnan(self.low).all():
            told |= {f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: [None if np.isnan(one) else float(one) for one in values] for key, values in told.items()}


@dataclass(frozen=True)
class PromptChange:
    """What two models say on a prompt."""

    prompt: str
    says: tuple[str, str] | None
    """The token that either says at the last position; None of features, which say none."""
    probability: tuple[float, float]
    """Of what the second model says, in both."""
    kl: float
    """KL(a ‖ b) in nats there."""
    distance: float
    """‖b − a‖ / ‖a‖ of the outputs there."""
    cosine: float
    """Of the angle between the outputs there."""
    target: str
    """What the components and paths are told of."""
    value: tuple[float, float]
    """The target in both models."""


@dataclass(frozen=True, eq=False, repr=False)
class PromptChanges(Result):
    """What two models say, prompt by prompt."""

    names: tuple[str, str]
    rows: tuple[PromptChange, ...]

    @property
    def title(self) -> str:
        """What was compared."""
        do = "give" if self._features else "say"
        return f"what {self.names[0]} and, after it, {self.names[1]} {do} at the last position"

    @property
    def _features(self) -> bool:
        return any(row.says is None for row in self.rows)

    @property
    def note(self) -> str:
        """What the columns are."""
        what = (
            "distance: ‖b − a‖ / ‖a‖ of their outputs, which are features and no tokens"
            if self._features
            else ("p: the probability of what the second says; kl in nats")
        )
        return f"_a and _b: in the first and the second model; {what}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """prompt, what either says, the probability in both of what the second says, KL(a ‖ b) in nats, the target and
        its value in both; of features distance and cosine of the outputs in the place of what is said.
        """
        said: Mapping[str, Sequence[Cell]] = {
            "says_a": [row.says and row.says[0] for row in self.rows],
            "says_b": [row.says and row.says[1] for row in self.rows],
            "p_a": [row.probability[0] for row in self.rows],
            "p_b": [row.probability[1] for row in self.rows],
            "kl": [row.kl for row in self.rows],
        }
        apart = {"distance": [row.distance for row in self.rows], "cosine": [row.cosine for row in self.rows]}
        return {
            "prompt": [row.prompt for row in self.rows],
            **(apart if self._features else said),
            "target": [row.target for row in self.rows],
            "target_a": [row.value[0] for row in self.rows],
            "target_b": [row.value[1] for row in self.rows],
        }

    def figure(self) -> Figure:
        """Bars: the target in both models, by prompt."""
        from matplotlib.figure import Figure

        rows = self.rows[:BARS]
        figure = Figure(figsize=(8.5, 1.6 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for side, colour in enumerate((OTHER, GIVES)):
            places = [place + 0.4 * (side - 0.5) for place in range(len(rows))]
            axes.barh(places, [row.value[side] for row in rows], 0.38, color=colour, label=self.names[side])
        labels = [f"{row.prompt[-40:]} → {row.target}" for row in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("target" + drawn(len(rows), len(self.rows)))
        axes.legend(fontsize=7)
        return figure


@dataclass(frozen=True, eq=False, repr=False)
class ComponentChanges(Result):
    """What components give the target in two models."""

    names: tuple[str, str]
    prompts: int
    direct: Changes
    """What each adds to the end of the stream, read by the target."""
    through: Changes
    """What reaches the target along all paths that pass it, over all positions."""

    @property
    def title(self) -> str:
        """What was compared."""
        what, moved = _what(self.prompts), float(self.direct.change.sum())
        return (
            f"components, from {self.names[0]} to {self.names[1]}: what they give {what}, which changes by {moved:.4g}"
        )

    @property
    def note(self) -> str:
        """What the columns are."""
        told = "direct: what it gives by itself, whose changes add up; through: along all paths that pass it"
        return told if self.direct.change.any() or self.through.change.any() else f"nothing has changed; {told}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """component, and of `direct` and `through` both models, the change, and of several prompts the ends of its 95 %
        interval.
        """
        return {"component": self.direct.names, **self.direct.columns("direct"), **self.through.columns("through")}

    def shown(self) -> Shown:
        """The largest direct change first; files have `through` of either model, and its interval."""
        names = ("component", "direct_a", "direct_b", "direct", "direct_low", "direct_high", "through")
        return Shown(names, first=("direct",))

    def figure(self) -> Figure:
        """The changes, direct and through: as bars, or as maps of many branches and heads, a row a block."""
        from matplotlib.figure import Figure

        maps = [layer_map(dict(zip(one.names, one.change.tolist(), strict=True))) for one in self._parts()]
        height = min(BARS, len(self.direct.names)) if maps[0] is None else 12
        figure = Figure(figsize=(12, 1.8 + 0.27 * height), layout="constrained")
        for axes, one, cells, name in zip(
            figure.subplots(1, 2), self._parts(), maps, ("direct", "through"), strict=True
        ):
            _draw(axes, one, cells, f"change of {_what(self.prompts)}, {name}")
        figure.suptitle(self.title, fontsize=9, parse_math=False)
        return figure

    def _parts(self) -> tuple[Changes, Changes]:
        return self.direct, self.through


@dataclass(frozen=True, eq=False, repr=False)
class PathChanges(Result):
    """What paths give the target in two models."""

    names: tuple[str, str]
    prompts: int
    values: Changes
    beyond: float
    """No path that is not here changes by more, on the mean over the prompts."""
    exact: bool
    """That is proven; else as far as the estimated bounds of the searches hold."""

    @property
    def title(self) -> str:
        """What was compared."""
        return (
            f"paths, from {self.names[0]} to {self.names[1]}: what they give {_what(self.prompts)}; "
            f"{len(self.values.names)} that are large in one of them"
        )

    @property
    def note(self) -> str:
        """How much a path may have changed that is not here."""
        how = "" if self.exact else " (as far as estimated bounds hold)"
        return f"no other path changes by more than {self.beyond:.3g}{how}; top= (--top) looks for more"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, its value in both models, the change, and of several prompts the ends of its 95 % interval."""
        columns = self.values.columns("change")
        return {"path": self.values.names, "a": columns.pop("change_a"), "b": columns.pop("change_b"), **columns}

    def shown(self) -> Shown:
        """The largest change first."""
        return Shown(first=("change",))

    def figure(self) -> Figure:
        """Bars: the largest changes."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.5, 1.8 + 0.27 * min(BARS, len(self.values.names))), layout="constrained")
        _draw(figure.subplots(), self.values, None, f"change of what it gives {_what(self.prompts)}")
        return figure


@dataclass(frozen=True, eq=False, repr=False)
class PromptComparison(Result):
    """Two models on prompts. Made by `compare`; the table is that of components, beside `prompts` and `paths`."""

    prompts: PromptChanges
    components: ComponentChanges
    paths: PathChanges

    @property
    def title(self) -> str:
        """What was compared."""
        return self.components.title

    @property
    def note(self) -> str:
        """That of the components."""
        return self.components.note

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """The columns of `components`."""
        return self.components.columns()

    def shown(self) -> Shown:
        """As of `components`."""
        return self.components.shown()

    def figure(self) -> Figure:
        """That of the components."""
        return self.components.figure()

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, (self.prompts, self.components, self.paths)))

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in (self.prompts, self.components, self.paths))


def _what(prompts: int) -> str:
    return "the target" if prompts == 1 else f"the target (means over {prompts} prompts)"


def _draw(axes: Any, changes: Changes, cells: LayerMap | None, label: str) -> None:
    """Changes on matplotlib axes, the largest on top."""
    if cells is not None:
        limit = float(np.nanmax(np.abs(cells.values))) or 1.0
        axes.figure.colorbar(cells.draw(axes, limit, label + without(changes.names)), ax=axes)
        return
    order = np.argsort(-np.abs(changes.change), kind="stable")[:BARS]
    places, moved = range(len(order)), changes.change[order]
    axes.barh(places, moved, color=[GIVES if one >= 0 else TAKES for one in moved])
    if not np.isnan(changes.low).all():
        ends = np.stack([moved - changes.low[order], changes.high[order] - moved]).clip(0)
        axes.errorbar(moved, places, xerr=ends, fmt="none", ecolor=OTHER, linewidth=0.8)
    axes.set_yticks(places, [changes.names[place] for place in order], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color=OTHER, linewidth=0.6)
    axes.set_xlabel(label + drawn(len(order), len(changes.names)))
