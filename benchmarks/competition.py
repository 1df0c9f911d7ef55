"""Competitive tasks: imitators of both sides against expert and imitating opponents, and against best responses.

    python -m benchmarks.competition --tasks simple_push --seeds 0 1 2 --runs outputs/imitation \
        --output benchmarks/results/competition.md

trains every method of `benchmarks.imitation` that is asked for on ``--count`` demonstrations of the shipped expert; a
method's clone plays too. In the cross-play everybody plays one side against everybody on the other, from initial states
that neither training nor the choice of the recipe saw; a cell is the mean return of an agent of the side, over the
seeds. The score is 0 for random play and 1 for the expert, both against the expert. Then a best response is trained
against each on each side, for as long and in the same way as the expert was: what it gets against the expert is the
measure of what it gets against the others. A finished run is not repeated and an unfinished one goes on from its
checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from benchmarks.imitation import METHODS, folder_of, run
from benchmarks.tables import machine, say, table
from benchmarks.trainings import FRESH, over_seeds, train
from magail.config import build
from magail.experts import load_expert
from magail.opponents import against
from magail.policy import Acting, RandomPolicy
from magail.rollout import play_episodes
from magail.statistics import normalized_score
from magail.types import BatchedEnv

SIDES = {
    "simple_push": [["adversary"], ["agent"]],
    "simple_adversary": [["adversary"], ["agent"]],
    "simple_tag": [["adversary"], ["agent"]],
    "simple_crypto": [["eve"], ["alice", "bob"]],
    "simple_world_comm": [["leadadversary", "adversary"], ["agent"]],
}
EPISODES = 2000
COPIES = 500

Players = dict[str, list[str]]
"""By name where the policies are, one for each seed."""


def players_of(task: str, methods: Sequence[str], count: int, seeds: Sequence[int], runs: Path) -> Players:
    """The expert, and each method's imitators and the clones they began from."""
    players = {"expert": [str(config(task).env.expert)] * len(seeds)}
    for method in methods:
        done = [seed for seed in seeds if run(task, method, count, seed, runs) is not None]
        folders = [folder_of(task, method, count, seed, runs) for seed in done]
        players[f"clone, of {method}"] = [str(folder / "bc.safetensors") for folder in folders]
        players[method] = [str(folder) for folder in folders]
    return players


def config(task: str) -> DictConfig:
    with initialize_config_module("magail_conf", version_base="1.3"):
        return compose("config", overrides=[f"env={task}"])


def returns(env: BatchedEnv, side: Sequence[str], player: str | None, opponent: str) -> np.ndarray:
    """Of each episode the mean over the side's agents ``[N]``; ``player`` None is random play."""
    others = {group.name: opponent for group in env.groups if group.name not in side}
    seat = against(env, others, FRESH)
    policy: Acting = load_expert(player, seat.groups) if player else RandomPolicy(seat.groups)
    generator = torch.Generator().manual_seed(FRESH)
    of_all, _ = play_episodes(seat, policy, range(FRESH, FRESH + EPISODES), generator)
    return of_all.mean(-1).numpy()


def cross_play(env: BatchedEnv, side: Sequence[str], players: Players) -> str:
    expert = players["expert"][0]
    zero, one = returns(env, side, None, expert), returns(env, side, expert, expert)
    rows = []
    for name, sources in players.items():
        cells, scores = [], []
        for opponent, others in players.items():
            played = [returns(env, side, source, other) for source, other in zip(sources, others, strict=True)]
            cells.append(over_seeds([x.mean() for x in played], digits=2))
            if opponent == "expert":
                scores = [normalized_score(x, one, zero)[0] for x in played]
        rows.append([name, *cells, over_seeds(scores)])
    rows.append(["random", f"{zero.mean():.2f}", *["-"] * (len(players) - 1), "0"])
    return table([f"{' and '.join(side)} | against", *players, "score against the expert"], rows)


def best_response(task: str, side: Sequence[str], name: str, index: int, opponent: str, folder: Path) -> Path | None:
    """Where the best response of a ``side`` to an opponent's policy is; None where its training failed."""
    groups = [group for other in SIDES[task] if other != side for group in other]
    opponents = ", ".join(f'{group}: "{opponent}"' for group in groups)
    words = ["experiment=expert_particle", f"env={task}", f"opponents={{{opponents}}}", f"seed={7 + index}"]
    response = folder / "best_response" / "_".join(side) / name.replace(", ", "_").replace(" ", "_") / str(index)
    if train(words, response):
        return response
    say(f"{task}, {side} against {name} {index}: failed, see {response}/output.txt")
    return None


def exploitation(env: BatchedEnv, side: Sequence[str], players: Players, responses: Mapping[str, list[Path]]) -> str:
    """What the opponents ``side`` of everybody get: the expert, and a best response."""
    expert = players["expert"][0]
    rows = []
    for name, found in responses.items():
        against_expert = [returns(env, side, expert, source).mean() for source in players[name][: len(found)]]
        best = [
            returns(env, side, str(response), source).mean()
            for response, source in zip(found, players[name], strict=False)
        ]
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
            with closing(build(config(task).env.batched, num_envs=COPIES)) as env:
                page += [f"## {task}", *(cross_play(env, side, players) for side in SIDES[task])]
                for side in SIDES[task] if arguments.responses else ():
                    futures = {
                        name: [
                            pool.submit(best_response, task, side, name, index, source, runs / task)
                            for index, source in enumerate(sources[: arguments.responses])
                        ]
                        for name, sources in players.items()
                    }
                    responses = {
                        name: [path for future in found if (path := future.result())] for name, found in futures.items()
                    }
                    page.append(exploitation(env, side, players, responses))
            arguments.output.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
