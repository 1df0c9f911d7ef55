"""What the peers' scripts share: repetitions after a warm-up, and the one line of JSON that each prints."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

REPETITIONS = 5


def repeat(work: Callable[[], int], seconds: float) -> list[float]:
    """Steps per second of each repetition, which share ``seconds``; one call of ``work`` warms up.

    ``work()`` does one round, to its very end, and gives the number of environment steps in it.
    """
    work()
    rates = []
    for _ in range(REPETITIONS):
        start, steps = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds / REPETITIONS:
            steps += work()
        rates.append(steps / elapsed)
    return rates


def command_line(description: str | None) -> tuple[float, TextIO]:
    """A peer's command line: the seconds to measure for, and where its JSON goes.

    Whatever the peer and its loggers print from here on goes to stderr, not among the JSON.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="time to measure for, all repetitions together")
    seconds = parser.parse_args().seconds
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return seconds, stdout


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and the packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def main(
    description: str | None,
    peer: str,
    rates: Callable[[float], list[float]],
    packages: Sequence[str],
    setting: Mapping[str, object],
) -> None:
    """The command line of a peer: ``rates(seconds)`` gives steps per second of each repetition; print them as JSON."""
    seconds, stdout = command_line(description)
    measured = rates(seconds)
    result = {
        "peer": peer,
        "steps_per_second": statistics.median(measured),
        "repetitions": measured,
        "versions": versions(packages),
        "setting": setting,
    }
    print(json.dumps(result), file=stdout, flush=True)
