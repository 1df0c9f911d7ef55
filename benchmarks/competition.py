"""Competitive tasks: imitators of both sides against expert and imitating opponents, and against best responses.

    python -m benchmarks.competition --tasks simple_push --seeds 0 1 2 --runs outputs/imitation \
        --output benchmarks/results/competition.md

trains every method of `benchmarks.imitation` that is asked for on ``--count`` demonstrations of the shipped expert;
what MAGAIL begins from plays too. In the cross-play everybody plays one side against everybody on the other, from
initial states that training did not see; a cell is the mean return of an agent of the side over episodes (`NOTE`) and
seeds. The score is 0 for random play and 1 for the expert, both against the expert. Then a newcomer is trained on each
side against the expert, by the command that the expert was trained by (of simple_world_comm's several the first) for
2,000 iterations. Whichever of newcomer and expert gets more against the expert goes on for 400 against everybody, which
is everybody's best response; the gain (`NOTE`) says how exploitable somebody is.

A mean return is a row of the .csv file beside the page, and the policies of a row that is there are not trained again:
the command takes up where it was stopped, on another machine too. To make rows anew delete them and their run
folders, and those of the responses to them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.imitation import CLONES, METHODS, as_folder, run
from benchmarks.loop import composed
from benchmarks.seats import SIDES, Side, seat_returns
from benchmarks.store import Store
from benchmarks.tables import machine, table
from benchmarks.trainings import BRIEF, FRESH, over_seeds, trained
from magail.config import build
from magail.experts import Source
from magail.types import BatchedEnv

EPISODES, MANY = 2000, 16_000  # MANY where a score is made of it
COPIES = 500
ITERATIONS, FURTHER = 2000, 400  # of a newcomer, and from it or the expert on of a best response
NOTE = (
    f"Cells where the expert, a newcomer or a best response plays are means of {MANY:,} episodes, others of the first "
    f"{EPISODES:,} of these: the two differ by that too. A gain is what the best of expert, newcomer and best response "
    "scores more against a policy than the best of the three does against the expert, for whom newcomers are trained: "
    "below 0 no better one was found. Intervals are of the imitators alone: two draws of the expert's actions, of "
    "which the score 1 is the mean, differ by up to 0.02 in simple_tag."
)
KEYS = ("task", "demonstrations", "side", "player", "opponent", "seed")
EXPERT, RANDOM, NEWCOMER, RESPONSE = "expert", "random", "newcomer", "best response"
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

    def mean_return(self, side: Side, player: str, opponent: str, seed: int) -> float:
        """Of an agent of the ``side``, which ``player`` plays, over the table's initial states."""
        trained_here = {player, opponent} - {EXPERT, RANDOM}
        key = (self.task, self.count, " and ".join(side), player, opponent, seed if trained_here else "-")
        seeds = range(FRESH, FRESH + (MANY if {player, opponent} & {EXPERT, NEWCOMER, RESPONSE} else EPISODES))
        row = self.store.row(
            dict(zip(KEYS, key, strict=True)),
            lambda: (self._player(side, player, opponent, seed), self._source(opponent, seed)),
            lambda sources: {"return": float(seat_returns(self.env, side, *sources, seeds).mean())},
        )
        assert row is not None
        return float(row["return"])

    def score(self, side: Side, returned: float) -> float:
        """0 for what random play gets in the seats of the ``side`` against the expert, 1 for what the expert does."""
        zero, one = (self.mean_return(side, player, EXPERT, 0) for player in (RANDOM, EXPERT))
        return (returned - zero) / (one - zero)

    def _player(self, side: Side, name: str, opponent: str, seed: int) -> Source | None:
        if name == RANDOM:
            return None
        if name == NEWCOMER:
            return self._newcomer(side, seed)
        return self._best_response(side, opponent, seed) if name == RESPONSE else self._source(name, seed)

    def _source(self, name: str, seed: int) -> Source:
        if name == EXPERT:
            return self.expert
        folder = needed(run(self.task, CLONES.get(name, name), self.count, seed, self.runs))
        return str(folder / "bc.safetensors" if name in CLONES else folder)

    def _newcomer(self, side: Side, seed: int) -> str:
        return self._taught(NEWCOMER, side, EXPERT, seed, [f"iterations={ITERATIONS}"])

    def _best_response(self, side: Side, opponent: str, seed: int) -> str:
        newcomer, expert = (self.mean_return(side, player, EXPERT, seed) for player in (NEWCOMER, EXPERT))
        first = self._newcomer(side, seed) if newcomer > expert else self.expert
        words = [f"iterations={FURTHER}", f"initial_policy={played_by(first, side)}"]
        return self._taught(RESPONSE, side, opponent, seed, words)

    def _taught(self, name: str, side: Side, opponent: str, seed: int, words: Sequence[str]) -> str:
        """The run in which the ``side`` learns from what it gets against the opponent."""
        others = [group for other in SIDES[self.task] if other != side for group in other]
        alike = [f"experiment={RECIPES.get(self.task, 'expert_particle')}", f"env={self.task}", f"seed={7 + seed}"]
        alike += [f"opponents={played_by(self._source(opponent, seed), others)}"]
        folder = self.runs / self.task / as_folder(name) / "_".join(side) / as_folder(opponent)
        if opponent != EXPERT:
            folder /= str(self.count)
        return str(needed(trained([*alike, *words], folder / str(seed), BRIEF)))


def played_by(policy: Source, groups: Sequence[str]) -> str:
    """Each of the ``groups`` with the same policy, as a word of the command line."""
    return "{" + ", ".join(f"{group}: {json.dumps(policy)}" for group in groups) + "}"


def needed(folder: Path | None) -> Path:
    if folder is None:
        sys.exit("the page takes all of the trainings: mend what failed, and run the command again")
    return folder


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


def exploitation(arena: Arena, side: Side, answered: Sequence[str], seeds: Sequence[int]) -> str:
    """What the opponents ``side`` of everybody get: the expert, the newcomer, and each policy's best response.

    A response may end with less than it went on from, so the best of the three is the best answer that is known. The
    first of the ``answered`` is the expert.
    """
    rows, best = [], {}
    for name in answered:
        returned = [
            [arena.mean_return(side, player, name, seed) for seed in seeds] for player in (EXPERT, NEWCOMER, RESPONSE)
        ]
        best[name] = [arena.score(side, max(of_seed)) for of_seed in zip(*returned, strict=True)]
        gain = over_seeds([a - b for a, b in zip(best[name], best[EXPERT], strict=True)])
        cells = [over_seeds(x, digits=2) for x in returned]
        rows.append([name, *cells, over_seeds(best[name]), "0" if name == EXPERT else gain])
    head = ["the expert gets", "the newcomer", "its best response", "the best one's score", "gain"]
    return table([f"{' and '.join(side)} against", *head], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--methods", nargs="+", default=["MAGAIL"], choices=list(METHODS))
    parser.add_argument("--count", type=int, default=50, help="demonstrations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--responses", type=int, default=1, help="of the seeds, how many are responded to; 0: none")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, each on one core")
    parser.add_argument("--runs", type=Path, default=Path("outputs/imitation"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write, .csv beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, methods, seeds = arguments.runs.resolve(), arguments.methods, arguments.seeds
    responded = seeds[: arguments.responses]
    command = shlex.join(["python", "-m", "benchmarks.competition", *sys.argv[1:]])
    page = ["# Competitive tasks", f"```\n{command}\n```", machine() + ".", NOTE]
    store = Store(arguments.output.with_suffix(".csv"), KEYS, ("return",))
    players = [EXPERT, *(clone for clone, method in CLONES.items() if method in methods), *methods]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task in arguments.tasks:
            cfg = composed(f"env={task}").env
            expert = cfg.expert if isinstance(cfg.expert, str) else tuple(cfg.expert)
            with closing(build(cfg.batched, num_envs=COPIES)) as env:
                arena = Arena(task, env, expert, arguments.count, runs, store)
                sides, answered = SIDES[task], (EXPERT, *methods)
                # all who are trained, several at a time, so that the tables find their rows
                met = [(sides[0], method, EXPERT, seed) for method in methods for seed in seeds]
                met += [(side, NEWCOMER, EXPERT, seed) for side in sides for seed in responded]
                met += [(side, RESPONSE, name, seed) for name in answered for side in sides for seed in responded]
                for future in [pool.submit(arena.mean_return, *who) for who in met]:
                    future.result()
                page += [f"## {task}", *(cross_play(arena, side, players, seeds) for side in sides)]
                if responded:
                    page += [exploitation(arena, side, answered, responded) for side in sides]
            arguments.output.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
