"""Competitive tasks: imitators of both sides against expert and imitating opponents, and against best responses.

    python -m benchmarks.competition --tasks simple_push --seeds 0 1 2 --runs outputs/imitation \
        --output benchmarks/results/competition.md

trains every method of `benchmarks.imitation` that is asked for on ``--count`` demonstrations of the shipped expert; a
method's clone plays too. In the cross-play everybody plays one side against everybody on the other, from initial states
that neither training nor the choice of the recipe saw; a cell is the mean return of an agent of the side, over the
seeds. The score is 0 for random play and 1 for the expert, both against the expert. Then a best response is trained
against the expert and the imitators on each side, for as long and in the same way as the expert was: what it gets
against the expert is the measure of what it gets against the others. A finished run is not repeated and an unfinished
one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.imitation import METHODS, as_folder, run
from benchmarks.loop import composed
from benchmarks.seats import SIDES, Side, seat_returns
from benchmarks.tables import machine, table
from benchmarks.trainings import BRIEF, FRESH, over_seeds, trained
from magail.config import build
from magail.statistics import normalized_score
from magail_envs.particle.env import ParticleEnv

EPISODES = 2000
COPIES = 500

Players = dict[str, list[str]]
"""By name where the policies are, one for each seed."""


def players_of(task: str, methods: Sequence[str], count: int, seeds: Sequence[int], runs: Path) -> Players:
    """The expert, and each method's imitators and the clones they began from."""
    players = {"expert": [str(composed(f"env={task}").env.expert)] * len(seeds)}
    for method in methods:
        folders = [run(task, method, count, seed, runs) for seed in seeds]
        if None in folders:
            sys.exit("a cross-play takes all of the trainings: mend what failed, and run the command again")
        players[f"clone, of {method}"] = [f"{folder}/bc.safetensors" for folder in folders]
        players[method] = [str(folder) for folder in folders]
    return players


@functools.cache  # the same pairs meet in several tables
def returns(env: ParticleEnv[Any], side: Side, player: str | None, opponent: str) -> np.ndarray:
    """`seat_returns` from the table's initial states."""
    return seat_returns(env, side, player, opponent, range(FRESH, FRESH + EPISODES))


def cross_play(env: ParticleEnv[Any], side: Side, players: Players) -> str:
    expert = players["expert"][0]
    zero, one = returns(env, side, None, expert), returns(env, side, expert, expert)
    rows = []
    for name, sources in players.items():
        cells, scores = [], []
        for opponent, others in players.items():
            played = [returns(env, side, source, other) for source, other in zip(sources, others, strict=True)]
            means = [float(x.mean()) for x in played]
            cells.append(over_seeds(means if len(set(means)) > 1 else means[:1], digits=2))  # the expert has no seeds
            if opponent == "expert":
                scores = [normalized_score(x, one, zero)[0] for x in played]
        rows.append([name, *cells, "1" if name == "expert" else over_seeds(scores)])
    rows.append(["random", f"{zero.mean():.2f}", *["-"] * (len(players) - 1), "0"])
    return table([f"{' and '.join(side)}, against", *players, "score against the expert"], rows)


def best_response(task: str, side: Side, name: str, index: int, opponent: str, folder: Path) -> Path | None:
    """Where the best response of a ``side`` to an opponent's policy is; None where its training failed."""
    groups = [group for other in SIDES[task] if other != side for group in other]
    opponents = ", ".join(f'{group}: "{opponent}"' for group in groups)
    words = ["experiment=expert_particle", f"env={task}", f"opponents={{{opponents}}}", f"seed={7 + index}"]
    response = folder / "best_response" / "_".join(side) / as_folder(name) / str(index)
    return trained(words, response, BRIEF)


def exploitation(
    env: ParticleEnv[Any], side: Side, expert: str, responses: Mapping[str, list[tuple[str, Path]]]
) -> str:
    """What the opponents ``side`` of everybody get: the expert, and each policy's best response."""
    rows = []
    for name, found in responses.items():
        against_expert = [returns(env, side, expert, source).mean() for source, _ in found]
        best = [returns(env, side, str(response), source).mean() for source, response in found]
        rows.append([name, over_seeds(against_expert, digits=2), over_seeds(best, digits=2)])
    return table([f"{' and '.join(side)} against", "the expert gets", "a best response gets"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--methods", nargs="+", default=["MAGAIL"], choices=list(METHODS))
    parser.add_argument("--count", type=int, default=50, help="demonstrations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--responses", type=int, default=1, help="of the seeds, how many are responded to; 0: none")
    parser.add_argument("--jobs", type=int, default=1, help="best responses trained at the same time")
    parser.add_argument("--runs", type=Path, default=Path("outputs/imitation"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = arguments.runs.resolve()
    command = shlex.join(["python", "-m", "benchmarks.competition", *sys.argv[1:]])
    page = ["# Competitive tasks", f"```\n{command}\n```", machine() + "."]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task in arguments.tasks:
            players = players_of(task, arguments.methods, arguments.count, arguments.seeds, runs)
            with closing(build(composed(f"env={task}").env.batched, num_envs=COPIES)) as env:
                page += [f"## {task}", *(cross_play(env, side, players) for side in SIDES[task])]
                for side in SIDES[task] if arguments.responses else ():
                    futures = {
                        name: [
                            (source, pool.submit(best_response, task, side, name, index, source, runs / task))
                            for index, source in enumerate(sources[: arguments.responses])
                        ]
                        for name, sources in players.items()
                        if name in ("expert", *arguments.methods)
                    }
                    responses = {
                        name: [(source, path) for source, future in found if (path := future.result())]
                        for name, found in futures.items()
                    }
                    page.append(exploitation(env, side, players["expert"][0], responses))
            arguments.output.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
