"""Competitive tasks: imitators of both sides against expert and imitating opponents, and against best responses.

    python -m benchmarks.competition --tasks simple_push --seeds 0 1 2 --runs outputs/imitation \
        --output benchmarks/results/competition.md

trains every method of `benchmarks.imitation` that is asked for on ``--count`` demonstrations of the shipped expert; a
method's clone plays too. In the cross-play everybody plays one side against everybody on the other, from initial states
that neither training nor the choice of the recipe saw; a cell is the mean return of an agent of the side, over the
seeds. The score is 0 for random play and 1 for the expert, both against the expert. Then a best response is trained
against the expert and the imitators on each side, by the command that the expert was trained by (of simple_world_comm's
several the first): what it gets against the expert is the measure of what it gets against the others.

A mean return is a row of the .csv file beside the page, and the policies of a row that is there are not trained again:
the command takes up where it was stopped, on another machine too. Delete rows to make them anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.imitation import METHODS, as_folder, run
from benchmarks.loop import composed
from benchmarks.seats import SIDES, Side, seat_returns
from benchmarks.store import Row, Store
from benchmarks.tables import machine, table
from benchmarks.trainings import BRIEF, FRESH, over_seeds, trained
from magail.config import build
from magail.experts import Source
from magail.types import BatchedEnv

EPISODES = 2000
COPIES = 500
KEYS = ("task", "demonstrations", "side", "player", "opponent", "seed")
EXPERT, RANDOM, CLONE, RESPONSE = "expert", "random", "clone, of ", "best response"
RECIPES = {"simple_tag": "expert_simple_tag", "simple_world_comm": "expert_simple_world_comm"}  # others share one


@dataclass(frozen=True)
class Arena:
    """Where the players of a task meet. Each has a name and a seed, and is trained when its first row is asked for."""

    task: str
    env: BatchedEnv
    expert: Source
    count: int  # of demonstrations
    runs: Path  # where run folders lie
    store: Store
    training: threading.Lock = field(default_factory=threading.Lock)  # an imitator, which two may ask for at once

    def mean_return(self, side: Side, player: str, opponent: str, seed: int) -> float:
        """Of an agent of the ``side``, which ``player`` plays, over the table's initial states."""
        trained_here = {player, opponent} - {EXPERT, RANDOM}
        key = (self.task, self.count, " and ".join(side), player, opponent, seed if trained_here else "-")
        row = self.store.row(
            dict(zip(KEYS, key, strict=True)),
            lambda: self._sources(side, player, opponent, seed),
            lambda sources: self._played(side, *sources),
        )
        if row is None:
            sys.exit("the page takes all of the trainings: mend what failed, and run the command again")
        return float(row["return"])

    def score(self, side: Side, returned: float) -> float:
        """0 for what random play gets in the seats of the ``side`` against the expert, 1 for what the expert does."""
        zero, one = (self.mean_return(side, player, EXPERT, 0) for player in (RANDOM, EXPERT))
        return (returned - zero) / (one - zero)

    def _sources(self, side: Side, player: str, opponent: str, seed: int) -> tuple[Source | None, Source] | None:
        """Where ``player`` and ``opponent`` are, None for random play; or None where a training failed."""
        theirs = self._source(opponent, seed)
        if theirs is None:
            return None
        if player == RANDOM:
            return None, theirs
        ours = self._best_response(side, opponent, theirs, seed) if player == RESPONSE else self._source(player, seed)
        return None if ours is None else (ours, theirs)

    def _source(self, name: str, seed: int) -> Source | None:
        if name == EXPERT:
            return self.expert
        with self.training:
            folder = run(self.task, name.removeprefix(CLONE), self.count, seed, self.runs)
        if folder is None:
            return None
        return str(folder / "bc.safetensors" if name.startswith(CLONE) else folder)

    def _best_response(self, side: Side, name: str, opponent: Source, seed: int) -> Source | None:
        groups = [group for other in SIDES[self.task] if other != side for group in other]
        opponents = ", ".join(f"{group}: {json.dumps(opponent)}" for group in groups)
        recipe = RECIPES.get(self.task, "expert_particle")
        words = [f"experiment={recipe}", f"env={self.task}", f"opponents={{{opponents}}}", f"seed={7 + seed}"]
        folder = self.runs / self.task / as_folder(RESPONSE) / "_".join(side) / as_folder(name) / str(seed)
        found = trained(words, folder, BRIEF)
        return None if found is None else str(found)

    def _played(self, side: Side, player: Source | None, opponent: Source) -> Row:
        returns = seat_returns(self.env, side, player, opponent, range(FRESH, FRESH + EPISODES))
        return {"return": float(returns.mean())}


def cross_play(arena: Arena, side: Side, players: Sequence[str], seeds: Sequence[int]) -> str:
    def means(player: str, opponent: str) -> list[float]:
        alike = player == opponent == EXPERT
        return [arena.mean_return(side, player, opponent, seed) for seed in (seeds[:1] if alike else seeds)]

    rows = []
    for player in players:
        cells = [over_seeds(means(player, opponent), digits=2) for opponent in players]
        scores = [arena.score(side, x) for x in means(player, EXPERT)]
        rows.append([player, *cells, "1" if player == EXPERT else over_seeds(scores)])
    zero = arena.mean_return(side, RANDOM, EXPERT, 0)
    rows.append([RANDOM, f"{zero:.2f}", *["-"] * (len(players) - 1), "0"])
    return table([f"{' and '.join(side)}, against", *players, "score against the expert"], rows)


def exploitation(
    arena: Arena, side: Side, seeds: Sequence[int], responses: Mapping[str, Sequence[Future[float]]]
) -> str:
    """What the opponents ``side`` of everybody get: the expert, and each policy's best response, also as a score."""
    rows = []
    for name, futures in responses.items():
        best = [future.result() for future in futures]
        expert = [arena.mean_return(side, EXPERT, name, seed) for seed in seeds]
        scores = [over_seeds([arena.score(side, x) for x in returned]) for returned in (expert, best)]
        rows.append([name, over_seeds(expert, digits=2), over_seeds(best, digits=2), *scores])
    head = ["the expert gets", "a best response gets", "the expert's score", "the best response's score"]
    return table([f"{' and '.join(side)} against", *head], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--methods", nargs="+", default=["MAGAIL"], choices=list(METHODS))
    parser.add_argument("--count", type=int, default=50, help="demonstrations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--responses", type=int, default=1, help="of the seeds, how many are responded to; 0: none")
    parser.add_argument("--jobs", type=int, default=1, help="best responses trained at the same time")
    parser.add_argument("--runs", type=Path, default=Path("outputs/imitation"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write, .csv beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, methods, seeds = arguments.runs.resolve(), arguments.methods, arguments.seeds
    responded = seeds[: arguments.responses]
    command = shlex.join(["python", "-m", "benchmarks.competition", *sys.argv[1:]])
    page = ["# Competitive tasks", f"```\n{command}\n```", machine() + "."]
    store = Store(arguments.output.with_suffix(".csv"), KEYS, ("return",))
    players = [EXPERT, *(name for method in methods for name in (CLONE + method, method))]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task in arguments.tasks:
            cfg = composed(f"env={task}").env
            expert = cfg.expert if isinstance(cfg.expert, str) else tuple(cfg.expert)
            with closing(build(cfg.batched, num_envs=COPIES)) as env:
                arena = Arena(task, env, expert, arguments.count, runs, store)
                page += [f"## {task}", *(cross_play(arena, side, players, seeds) for side in SIDES[task])]
                responses = {
                    side: {
                        name: [pool.submit(arena.mean_return, side, RESPONSE, name, seed) for seed in responded]
                        for name in (EXPERT, *methods)
                    }
                    for side in SIDES[task]
                    if responded
                }
                page += [exploitation(arena, side, responded, asked) for side, asked in responses.items()]
            arguments.output.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
