"""`python -m benchmarks.wall run [NAME …]` and `python -m benchmarks.wall page`; `--libraries` for other libraries than
transformers.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import multiprocessing.connection
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.wall import classes, libraries, page


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wall", description=__doc__)
    parser.add_argument("what", choices=["run", "page", "list"])
    parser.add_argument("names", nargs="*", help="model types, or libraries; all that are known if left out")
    parser.add_argument(
        "--libraries", action="store_true", help="nets of other libraries, those that are installed, not transformers'"
    )
    parser.add_argument("--lines", type=Path, help="where a line for each class is kept, and found again")
    parser.add_argument(
        "--seconds", type=float, default=40, help="of the processor, for one class with its building and checks"
    )
    parser.add_argument("--until", help="a time of the day, as 01:15, after which no other class is begun")
    options = parser.parse_intermixed_args(arguments)
    options.lines = options.lines or page.lines_of(options.libraries)
    found = libraries.found if options.libraries else classes.found
    if options.what == "list":
        print("\n".join(f"{kind} {name}" for kind, name in found(options.names)))
    elif options.what == "page":
        page.write(_read(options.lines), options.libraries)
    else:
        _run(options, found(options.names))


def _run(options: argparse.Namespace, found: Iterator[tuple[str, str]]) -> None:
    """One class after the other, each in a process of its own that is ended when its time is over."""
    done = {(line["type"], line["model"]) for line in _read(options.lines)}
    # What all of them need is imported once.
    from benchmarks.wall import judge

    judged = partial(judge.judge, library=options.libraries)
    for kind, name in found:
        if (kind, name) in done and not options.names:
            continue
        if options.until and time.strftime("%H:%M") >= options.until:
            break
        line = _looked_at(judged, kind, name, options.seconds)
        with options.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {line['verdict']} {line['reason'][:150]}", flush=True)


def _looked_at(judge: Callable[..., None], kind: str, name: str, seconds: float) -> dict[str, Any]:
    # On a machine that others use, time on the clock says little.
    patience = 8 * seconds
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_look, args=(judge, kind, name, seconds, sender))
    started = time.perf_counter()
    process.start()
    sender.close()
    line: dict[str, Any] = {"type": kind, "model": name, "verdict": "not built", "reason": "it ended the process"}
    while (left := started + patience - time.perf_counter()) > 0:
        try:
            if receiver.poll(left):
                line = receiver.recv()
        except EOFError:
            break
    if time.perf_counter() - started >= patience:
        process.kill()
    process.join()
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        line["reason"] = f"not done after {seconds:g} s: {line['reason']}"
    return line


def _look(
    judge: Callable[..., None], kind: str, name: str, seconds: float, sender: multiprocessing.connection.Connection
) -> None:
    import torch

    torch.set_num_threads(1)
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + int(seconds), used + int(seconds) + 5))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    judge(kind, name, lambda found: sender.send(found.line()))
    sender.close()


def _read(path: Path) -> list[dict[str, Any]]:
    """The last line of each class."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({(line["type"], line["model"]): line for line in lines}.values())


if __name__ == "__main__":
    main()
