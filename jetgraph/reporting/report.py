"""`jetgraph.report`: one page on a model, with what matters on prompts, or on what has changed between two models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jetgraph.applications.comparing.walking import short_name
from jetgraph.applications.several import each_row
from jetgraph.applications.subject import Inputs, Model, Subject, one_by_one, subject
from jetgraph.errors import MissingRuleError, amount, check
from jetgraph.export.precision import own_types
from jetgraph.files.pages import View
from jetgraph.files.targets import check_target
from jetgraph.files.writing import write_text
from jetgraph.loading import Loaded, load_model
from jetgraph.reporting.again import Name, Origin
from jetgraph.reporting.models import bigrams, counts, structure
from jetgraph.reporting.pairs import changes, said
from jetgraph.reporting.prompts import Told, prompt_section
from jetgraph.views.document import document, visible
from jetgraph.views.report import REPORTS, Section, markdown


@dataclass(frozen=True)
class Report:
    """A report. Made by `report`; in a notebook it shows itself."""

    title: str
    about: str
    sections: tuple[Section, ...]

    @property
    def view(self) -> View:
        """The page as a value of its own."""
        return View(self.title, self.html)

    @property
    def html(self) -> str:
        """The page: one file, offline, in which nothing runs; light and dark as the reader's screen is."""
        return document(self.title, self.about, self.sections)

    @property
    def markdown(self) -> str:
        """The same as Markdown."""
        return visible(markdown(self.title, self.about, self.sections))

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the report, as .html or .md; an existing file is replaced as a whole or not at all.

        Raises
        ------
        InputError
            Another suffix.
        FileError
            A folder that does not exist.
        """
        check(Report.save, locals())
        target = check_target(file, REPORTS)
        return self.view.save(target) if target.suffix.lower() == ".html" else write_text(target, self.markdown)

    def __repr__(self) -> str:
        listed = "\n".join(f"  {number}  {one.title}" for number, one in enumerate(self.sections, 1))
        return f"{self.title}\n{listed}\n  .save('report.html') writes it"

    def _repr_html_(self) -> str:
        return self.view.frame()


@torch.no_grad()
@own_types()
def report(
    model: Model,
    prompts: Inputs | Sequence[Inputs] = (),
    *,
    other: Model | None = None,
    file: str | os.PathLike[str] | None = None,
    tokenizer: Any | None = None,
) -> Report:
    """One page to read from top to bottom: what a model is made of, what its weights know, and what matters on prompts.

    Of each prompt: the next tokens; the logit lens; the top token's logit by classes of paths and by components at
    tokens; whether the model still says it with these alone; and how exact all of that is, site by site. With every
    number stands what makes it again.

    Parameters
    ----------
    model
        A model, a traced one, or its name.
    prompts
        A text, or several; token ids, or inputs by name, where the model reads no texts, and a list of such. One input
        each. Of a model that reads no texts and came with example inputs, the first of these unless given.
    other
        A second model with the same tokenizer: the report is then on what has changed from the first to it.
    file
        Where to write it: .html or .md.
    tokenizer
        For texts; a model given by name brings its own.

    Returns
    -------
    Report
        Saves itself, and shows itself in a notebook.

    Raises
    ------
    InputError
        As `jetgraph.lens`, `jetgraph.attribute` and `jetgraph.diff`: inputs that do not fit, several inputs at once.
    FileError
        The file cannot be written.

    >>> report("demo").sections[2].tables[0].rows[0]
    ('exhaustive', '512', '1,024', '1,536')
    """
    check(report, locals())
    if file is not None:
        check_target(file, REPORTS)
    model, other = _loaded(model), None if other is None else _loaded(other)
    listed = one_by_one(prompts)
    first = listed[0] if listed else None
    one = subject(model, first, tokenizer)
    example = [] if listed or other is not None else _example(model, one)
    origin = Origin.of(model, first, tokenizer)
    made = (
        _on_one(one, listed or example, origin, made=bool(example))
        if other is None
        else _on_two(
            one, subject(other, first, tokenizer), listed, (origin, Origin.of(other, first, tokenizer, "other"))
        )
    )
    if file is not None:
        made.save(file)
    return made


def _loaded(model: Model) -> Model:
    return load_model(model) if isinstance(model, str | os.PathLike) else model


def _example(model: Model, subject: Subject) -> list[Inputs]:
    """The first of the inputs that a model came with, where it reads no texts and gives what a lens reads."""
    traced = subject.graph.traced
    if not isinstance(model, Loaded) or not model.example or model.tokenizer is not None:
        return []
    if len(traced.output.meta["shape"]) not in (2, 3):
        return []
    rows, main = each_row(subject, dict(model.example)), model.example.get(subject.first_input)
    # What is one for all, or a trace for one number of inputs, cannot be cut into inputs by themselves.
    return [rows[0]] if isinstance(main, Tensor) and main.dim() and len(rows) == len(main) else []


def _title(subject: Subject) -> str:
    return subject.graph.title if subject.loaded is None else short_name(subject.loaded.name)


def _on_one(one: Subject, listed: Sequence[Inputs], origin: Origin, made: bool) -> Report:
    told = [_told(one, given, origin.at(given, own=made), number, made) for number, given in enumerate(listed, 1)]
    joins = len(one.graph.joins)
    total = counts(one, origin)
    points = [
        f"{one.graph.title} has {amount(joins, 'residual join')}, and {total.tables[0].rows[0][2]} terms at order 1.",
        *(line for part in told for line in part.findings),
    ]
    known = bigrams(one, origin)
    sections = (
        Section("In short", "", points=tuple(points), commands=_whole(listed, origin, made=made)),
        structure(one, origin),
        total,
        *(part.section for part in told),
        *([] if known is None else [known]),
    )
    return Report(f"{_title(one)}: a report", _about(), sections)


def _told(one: Subject, given: Inputs, origin: Origin, number: int, made: bool) -> Told:
    """What is told of an input; that there is no rule, where nobody has asked for just this input."""
    try:
        return prompt_section(one, given, origin, number)
    except MissingRuleError as error:
        if not made:
            raise
        note = "What matters on the example inputs is not told: an operator on the way has no rule."
        return Told(Section(f"Input {number}", note, text=str(error)), ())


def _on_two(one: Subject, other: Subject, listed: Sequence[Inputs], origins: tuple[Origin, Origin]) -> Report:
    changed = changes(one, other, origins)
    told = [said((one, other), origins, given, number) for number, given in enumerate(listed, 1)]
    points = [changed.finding, *(line for _, line in told)]
    short = Section("In short", "", points=tuple(points), commands=_whole(listed, *origins))
    return Report(
        f"{_title(other)} against {_title(one)}",
        _about(),
        (short, *changed.sections, *(section for section, _ in told)),
    )


def _whole(
    listed: Sequence[Inputs], origin: Origin, other: Origin | None = None, *, made: bool = False
) -> tuple[str, ...]:
    """What makes the report; `made`: on inputs that came with the model, which are told too."""
    read = origin.at(*([] if made else listed))
    more = [] if other is None else ["--other", other.model or ""]
    inputs = [f"inputs = {{name: value[:1] for name, value in {origin.example}.items()}}"] if made else []
    if other is None or (other.model is not None and other.options == origin.options):
        command = read.shell("report", *more, "--output", "report.html")
        if command is not None:
            return command, *inputs
    beside: dict[str, Any] = {} if other is None else {"other": Name(other.loaded)}
    if listed and not made:
        beside["prompts"] = Name("prompts" if None in read.prompts else f"[{', '.join(read.inputs)}]")
    return origin.python("report", **beside, file="report.html"), *inputs


def _about() -> str:
    try:
        version = metadata.version("jetgraph")
    except metadata.PackageNotFoundError:
        version = "from a folder"
    return f"Made by jetgraph {version} with torch {torch.__version__}."
