"""The root command on which the others register: its help, its version, and how errors end."""

from __future__ import annotations

import difflib
import enum
import inspect
import io
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import cache, partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jetgraph.cli.options import as_chat, as_wide, by_lines, draws
from jetgraph.cli.stopping import interrupted
from jetgraph.errors import InputError, JetGraphError, UnfinishedError, quoted
from jetgraph.files.writing import reason, shown

# typer has its own copy of click in some versions; the base of its errors is reached through a name that it exports.
_CommandError: type[Exception] = typer.BadParameter.__mro__[2]


LONGEST = 1000
"""Characters of a message."""

ALIKE = 0.7
"""How alike names of options are of which one may be meant for the other, by `difflib`."""


class _StoppedError(Exception):
    """Ctrl-C, with what is to be said of it."""


class _Patient:
    """Stdout, of which a command does not notice that nobody reads on, or that it is full: files are written after what
    is printed, and are not to be lost with it. `main` tells of it at the end.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.refused: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        """Write as far as that goes."""
        return self._tried(lambda: self._inner.write(text)) or len(text)

    def flush(self) -> None:
        """The same of what was written before."""
        self._tried(self._inner.flush)

    def _tried(self, act: Callable[[], Any]) -> Any:
        if self.refused is not None:
            return None
        try:
            return act()
        except OSError as error:
            self.refused = error
            return None


class _Commands(TyperGroup):
    """A group of commands whose errors are one line each; those that read a model have the options of loading, and
    those that write pictures one for their width.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name."""
        command: Any = super().get_command(ctx, cmd_name)
        for inner in (command, *getattr(command, "commands", {}).values()):
            names = [parameter.name for parameter in getattr(inner, "params", ())]
            if getattr(inner, "name", None) in LONG and "state" not in names:
                inner.params.extend(_of_shards())
            if any(map(draws, getattr(inner, "params", ()))) and "figure_width" not in names:
                inner.params.extend(_of_pictures("width" in names))
            if any(name in _MODELS for name in names) and "no_cache" not in names:
                several = bool({"prompts", "clean"} & {*names})
                of_prompts = {"chat": several or "prompt" in names, "lines": several}
                inner.params.extend(
                    option for option in _of_loading() if option.name not in names and of_prompts.get(option.name, True)
                )
            helping = getattr(inner, "get_help_option", lambda _: None)(ctx)
            for parameter in (*getattr(inner, "params", ()), *filter(None, [helping])):
                _say_shortly(parameter)
        return command

    def get_params(self, ctx: Any) -> Any:
        """Its own parameters."""
        own = super().get_params(ctx)
        for parameter in own:
            _say_shortly(parameter)
        return own

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C is told by `main`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise _StoppedError(str(stopped)) from None

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and end the process with 0, or with 2 and one line."""
        _arguments.set(tuple(sys.argv[1:] if args is None else args))
        if not standalone_mode:
            return super().main(args, *rest, standalone_mode=False, **extra)
        for stream in (sys.stdout, sys.stderr):
            # Not every terminal has all letters, and not every name of a file is a text.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        # Where a shell has closed one of them (>&-), Python has none.
        patient = _Patient(sys.stdout or io.StringIO())
        sys.stderr = sys.stderr or io.StringIO()
        try:
            with warnings.catch_warnings(), redirect_stdout(patient):
                warnings.showwarning = _warn
                code = super().main(args, *rest, standalone_mode=False, **extra)
            if patient.refused is not None:
                raise patient.refused
        except (typer.Abort, _StoppedError) as stopped:
            # Files are written as a whole at the end, so that there is none of half a result.
            interrupted(str(stopped))
        except UnfinishedError:
            code = 0
        except _CommandError as error:
            _fail(f"{_said(error)} (see {self._blamed(error)} --help)")
        except JetGraphError as error:
            _fail(str(error))
        except BrokenPipeError:
            # Who reads what is printed has seen enough; nothing more is to be printed, on leaving either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            what = "go on" if error.filename is None else f"use {quoted(error.filename)}"
            _fail(f"cannot {'print' if error is patient.refused else what}: {reason(error)}")
        sys.exit(code if isinstance(code, int) else 0)

    def _blamed(self, error: Exception) -> str:
        """The command that an error is of, as it is typed: that of its context, or the one that the arguments name."""
        context, words = getattr(error, "ctx", None), list[str]()
        if context is not None:
            while context.parent is not None:
                words, context = [context.info_name, *words], context.parent
        else:
            command: Any = self
            for argument in _arguments.get():
                command = getattr(command, "commands", {}).get(argument)
                if command is None:
                    break
                words.append(argument)
        return " ".join(["jetgraph", *words])


def _said(error: Exception) -> str:
    """What typer found wrong with an argument. Where pydantic found it, in the words of this package: with what was
    given, which its own messages leave out.
    """
    if errors := getattr(error.__cause__, "errors", None):
        kind: Any = type(error)
        error = kind(_refused(errors()[0]), ctx=getattr(error, "ctx", None), param=getattr(error, "param", None))
    if (unknown := getattr(error, "option_name", None)) is not None and hasattr(error, "possibilities"):
        error.possibilities = _like(unknown, getattr(error, "ctx", None))  # pyright: ignore[reportAttributeAccessIssue]
    said = str(getattr(error, "format_message", error.__str__)()).removesuffix(".")
    return said if said.endswith("?") else said + _choices(error)


def _choices(error: Exception) -> str:
    """The commands of a group, such as `cache`, that was given none, or none of its own."""
    context = getattr(error, "ctx", None)
    if context is None or context.parent is None or hasattr(error, "option_name"):
        return ""
    commands = getattr(context.command, "commands", {})
    if not commands:
        return ""
    *names, last = commands
    return f": {context.command_path} {', '.join(names)} or {last}"


def _like(unknown: str, context: Any) -> list[str]:
    """Options that the help of a command names, and for which one that it has not may stand: its beginning, the same
    letters in another order, or others in a place or two.
    """
    parameters = () if context is None else context.command.get_params(context)
    shown = [name for one in parameters if not getattr(one, "hidden", False) for name in one.opts if name[:2] == "--"]
    word, words = unknown.lstrip("-").replace("_", "-"), {name[2:]: name for name in shown}
    same = [one for one in words if one.startswith(word) or sorted(one) == sorted(word)]
    return sorted({words[one] for one in (*same, *difflib.get_close_matches(word, words, cutoff=ALIKE))})


_BOUNDS = {
    "greater_than_equal": ("ge", "small", "{} or more"),
    "greater_than": ("gt", "small", "more than {}"),
    "less_than_equal": ("le", "large", "{} or less"),
    "less_than": ("lt", "large", "less than {}"),
}
_KINDS = {"int": "whole number", "float": "number", "bool": "yes or no"}


def _refused(found: Mapping[str, Any]) -> str:
    """One error of pydantic's, told.

    >>> _refused({"type": "greater_than_equal", "input": "0", "ctx": {"ge": 1}, "msg": ""})
    '0 is too small: give 1 or more'
    >>> _refused({"type": "int_parsing", "input": "many", "msg": ""})
    "'many' is no whole number"
    """
    given, kind = found["input"], str(found["type"])
    if kind in _BOUNDS:
        name, how, rest = _BOUNDS[kind]
        return f"{given} is too {how}: give {rest.format(found['ctx'][name])}"
    if (word := _KINDS.get(kind.partition("_")[0])) is not None and not kind.endswith("_size"):
        return f"{quoted(given)} is no {word}"
    if kind == "value_error":
        return str(found["msg"]).removeprefix("Value error, ")
    return f"{quoted(given)}: {found['msg']}"


_MODELS = ("model", "models", "model_a", "folders")
"""Names of arguments that are models."""


def _switch_off(context: typer.Context, chosen: bool) -> None:
    if chosen:
        from jetgraph.saving.traces import unused

        context.with_resource(unused())


LONG = ("ngrams", "mass", "agreement", "evaluate-lens", "diff", "trajectory", "survey", "fit")
"""Commands whose work is divided into shards."""


DIVIDING = ("state", "shard", "engine", "address", "workers", "gpus")
"""Options of how they are."""


def _divide(context: typer.Context, option: typer.CallbackParam, value: Any) -> Any:
    """Enter the job once all is known: each of these options calls this, in any order."""
    given = context.meta.setdefault("jetgraph.shards", {})
    given[option.name] = value
    if len(given) < len(DIVIDING) or _is_divided():
        return value
    of_ray = {name: given[name] for name in ("address", "workers", "gpus")}
    if given["engine"] == "local" and any(one is not None for one in of_ray.values()):
        raise InputError("--address, --workers and --gpus go with --engine ray")
    if given["engine"] == "ray":
        if given["shard"] is not None:
            raise InputError("--engine ray divides the job by itself: leave --shard out")
        context.with_resource(_on_ray(given["state"], **{**of_ray, "gpus": of_ray["gpus"] or 0.0}))
    elif given["state"] is not None:
        context.with_resource(part_of_a_job(given["state"], given["shard"]))
    elif given["shard"] is not None:
        raise InputError("--shard keeps what it gives in a state: name a file with --state")
    return value


def _is_divided() -> bool:
    """Who runs the command has said already what is to be done of it: a worker, or an estimate."""
    if "jetgraph.scale.shards" not in sys.modules:
        return False
    from jetgraph.scale.shards import is_sharded

    return is_sharded()


@contextmanager
def part_of_a_job(state: str, shard: str | None) -> Iterator[None]:
    """Do a shard, and say so where it is not all."""
    from jetgraph.cli.options import shard_of
    from jetgraph.scale.places import check_state

    check_state(state)
    part = None if shard is None else shard_of(shard)
    from jetgraph.scale.shards import sharded

    with sharded(state, part) as job, _kept_in(job.file):
        yield
    if job.told:
        # It is no result, so that what reads results from stdout finds none.
        typer.echo(job.told, err=True)


@contextmanager
def _kept_in(state: pathlib.Path | None) -> Iterator[None]:
    """Tell who stops a job where it goes on from."""
    try:
        yield
    except KeyboardInterrupt:
        from jetgraph.scale.places import is_state

        if state is None or not is_state(state):
            raise
        raise KeyboardInterrupt(f"the same command goes on from {shown(state)}") from None


@contextmanager
def _on_ray(state: str | None, **options: Any) -> Iterator[None]:
    """Have a cluster do the units of the command."""
    from jetgraph.scale.clusters import cluster

    again = partial(_again, _arguments.get())
    kept = _kept_in(None if state is None else pathlib.Path(state))
    with cluster(again, state=state, **options), kept:
        yield


def _again(arguments: Sequence[str]) -> None:
    """Run a command, at a worker."""
    import jetgraph.cli  # noqa: F401  # All commands are registered then.

    typer.main.get_command(app).main(list(arguments), prog_name="jetgraph", standalone_mode=False)


_arguments: ContextVar[Sequence[str]] = ContextVar("what the command was given", default=())


class Engine(enum.StrEnum):
    """What does the units of a job."""

    local = "local"
    ray = "ray"


def _shard_option(name: str, metavar: str, told: str) -> Any:
    more: dict[str, Any] = {"expose_value": False, "callback": _divide, "rich_help_panel": "Shards"}
    return typer.Option(name, metavar=metavar, help=told, show_default=False, **more)


@cache
def _of_shards() -> list[Any]:
    """The options of commands that can do a part of their work, and keep it."""
    alone = typer.Typer(add_completion=False)

    @alone.command()
    def command(
        state: Annotated[
            str | None,
            _shard_option(
                "--state",
                "FILE",
                "Keep what is done in this .safetensors or .parquet, and go on from there; with the states "
                "of all shards, joined by jetgraph merge, the result.",
            ),
        ] = None,
        shard: Annotated[
            str | None,
            _shard_option(
                "--shard",
                "I/N",
                "Do every Nth unit from the Ith on, counted from 0. Unless given, RANK of WORLD_SIZE or the task of a "
                "Slurm array, if there are such, each with a FILE of its own; else all.",
            ),
        ] = None,
        engine: Annotated[Engine, _shard_option("--engine", "NAME", "local, or ray: the units on a Ray cluster.")] = (
            Engine.local
        ),
        address: Annotated[
            str | None,
            _shard_option("--address", "ADDRESS", "Of a Ray cluster, such as auto; else one is started here."),
        ] = None,
        workers: Annotated[
            int | None,
            _shard_option("--workers", "NUMBER", "At most so many of them; else as many as there is room for."),
        ] = None,
        gpus: Annotated[
            float | None,
            _shard_option("--gpus", "NUMBER", "Of each worker, such as 1 or 0.5: Ray hides all others from it."),
        ] = None,
    ) -> None: ...

    return [one for one in typer.main.get_command(alone).params if one.name in DIVIDING]


@cache
def _of_pictures(taken: bool) -> list[Any]:
    """The option of commands that write pictures, `--figure-width`, and `--width` where that is nothing else."""
    alone = typer.Typer(add_completion=False)
    told = "Width of a picture that is written: 3.3 for a column of a paper, 6.8 for its page. Letters stay as large."

    def option(name: str, hidden: bool) -> Any:
        how: dict[str, Any] = {"metavar": "INCHES", "help": told, "hidden": hidden, "callback": as_wide}
        return typer.Option(None, name, **how, show_default=False, expose_value=False)

    long, short = option("--figure-width", not taken), option("--width", False)

    @alone.command()
    def command(figure_width: float | None = long, short_width: float | None = short) -> None: ...

    made = {one.name: one for one in typer.main.get_command(alone).params}
    return [made["figure_width"], *([] if taken else [made["short_width"]])]


def _say_shortly(parameter: Any) -> None:
    """Say in the help what is given to an option, in a word, so that there is room to say what it is for: a switch is
    given nothing.
    """
    if parameter.param_type_name != "option" or parameter.metavar is not None:
        return
    kind: Any = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        parameter.metavar = "NAME"
        parameter.help = f"{parameter.help} One of {', '.join(str(one.value) for one in kind)}."
    else:
        parameter.metavar = "" if getattr(parameter, "is_flag", False) else {int: "N", float: "X"}.get(kind)


def _load_with(context: typer.Context, option: typer.CallbackParam, value: Any) -> Any:
    if value is not None and value is not False:
        from jetgraph.cli.options import bytes_of
        from jetgraph.loading import loading_with

        said: dict[str, Any] = {str(option.name): value}
        if option.name == "lazy":
            said = {"weights": "lazy"}
        elif option.name == "weights_memory":
            said = {"memory": bytes_of(value, "--weights-memory")}
        context.with_resource(loading_with(**said))
    return value


def _option(name: str, metavar: str | None, told: str) -> Any:
    """One of the options that say how models are loaded."""
    return typer.Option(
        name,
        metavar=metavar,
        help=told,
        show_default=False,
        expose_value=False,
        callback=_load_with,
        rich_help_panel="Loading",
    )


@cache
# Long, for it is the table of the options.
def _of_loading() -> list[Any]:
    """The options that each command that traces has. They are no arguments of theirs, so one that has no others is
    asked.
    """
    alone = typer.Typer(add_completion=False)

    @alone.command()
    def command(
        device: Annotated[str | None, _option("--device", "DEVICE", "Where to put it: cpu, cuda, cuda:1, mps.")] = None,
        dtype: Annotated[
            str | None, _option("--dtype", "TYPE", "Type of its weights: float32, bfloat16, float16, float64.")
        ] = None,
        revision: Annotated[
            str | None,
            _option("--revision", "NAME", "Branch, tag or commit on the hub; ORG/NAME@REVISION says it too."),
        ] = None,
        device_map: Annotated[
            str | None, _option("--device-map", "MAP", "As of transformers, such as auto; needs accelerate.")
        ] = None,
        quantization: Annotated[
            str | None, _option("--quantization", "METHOD", "A method of transformers, such as quanto:weights=int8.")
        ] = None,
        lazy: Annotated[
            bool, _option("--lazy", None, "Leave its weights in their files, and read each when it is used.")
        ] = False,
        weights_memory: Annotated[
            str | None, _option("--weights-memory", "SIZE", "With --lazy, what weights may take at once, such as 8G.")
        ] = None,
        gguf_file: Annotated[
            str | None, _option("--gguf-file", "FILE", "The file of a repository or folder that holds the weights.")
        ] = None,
        peft: Annotated[
            str | None, _option("--peft", "ADAPTERS", "A folder or id of adapters that are added to the weights.")
        ] = None,
        tokenizer: Annotated[
            str | None, _option("--tokenizer", "NAME", "A folder or id of a tokenizer, in the place of the model's.")
        ] = None,
        trust_remote_code: Annotated[
            bool, _option("--trust-remote-code", None, "Run the code that comes with the checkpoint.")
        ] = False,
        chat: Annotated[
            bool,
            typer.Option(
                "--chat",
                help="The prompt is what a user says: it is written by the tokenizer's chat template.",
                expose_value=False,
                callback=as_chat,
            ),
        ] = False,
        lines: Annotated[
            bool,
            typer.Option(
                "--lines",
                help="Each line of @FILE, or of stdin, is a prompt.",
                expose_value=False,
                callback=by_lines,
            ),
        ] = False,
        no_cache: Annotated[
            bool,
            typer.Option(
                "--no-cache",
                help="Trace the model anew, and do not keep the trace for the next command.",
                expose_value=False,
                callback=_switch_off,
                rich_help_panel="Loading",
            ),
        ] = False,
    ) -> None: ...

    ours = {"no_cache", *inspect.signature(command).parameters}
    return [option for option in typer.main.get_command(alone).params if option.name in ours]


def _fail(message: str) -> None:
    _say(message)
    sys.exit(2)


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """In place of `warnings.showwarning`, which tells the line of the code too."""
    _say(str(message))


def _say(message: str) -> None:
    """One line on stderr, the middle of a long one left out."""
    text = re.sub(r"\s+", " ", message).strip()
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    sys.stderr.write(f"jetgraph: {text}\n")


_EXAMPLES = """
[bold]Examples[/bold]

  jetgraph demo

  jetgraph inspect meta-llama/Llama-3.1-405B --meta

  jetgraph expand demo --order 1 --output dag.png

  jetgraph lens demo "Raise Value" --order 1 --output lens.png

  jetgraph ngrams demo --top 20 --output bigrams.csv
"""

app = typer.Typer(
    cls=_Commands,
    name="jetgraph",
    help="Residual networks as exact sums of path terms plus an explicit remainder.",
    epilog=_EXAMPLES,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Residual networks as exact sums of path terms plus an explicit remainder."""
    if version:
        import importlib.metadata

        try:
            typer.echo(importlib.metadata.version("jetgraph"))
        except importlib.metadata.PackageNotFoundError:
            raise InputError("jetgraph runs from a folder in which it is not installed, so it has no version") from None
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
