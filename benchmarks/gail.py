"""Single-agent GAIL from few demonstrations on Gymnasium's control tasks, behavioural cloning beside it.

    python -m benchmarks.gail --cases lunar_lander:10 bipedal_walker:10 hopper:10:20 hopper:4:20 hopper:1:20 \
        --seeds 0 1 2 --runs outputs/gail --output benchmarks/results/gail.md

A case is TASK:EPISODES, or TASK:EPISODES:EVERY where only every so-many-th step of each is kept (GAIL's paper: 20).
The first trains `experiment=gail`, the second `experiment=gail_subsampled`, or `experiment=gail_one_episode` where
there is one episode; the clone that each starts from is the row "BC". Returns are the environment's, of most likely
actions, means over 100 initial states that training did not see. A finished run is not repeated and an unfinished one
goes on from its checkpoint, so the command takes up where it was stopped; every run logs into its folder as it goes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.tables import machine, say, table
from benchmarks.trainings import FRESH, QUIET, of_each, outcome, over_seeds

ROWS = {"expert": "expert", "bc": "BC", "magail": "GAIL"}


def overrides_of(case: str) -> list[str]:
    """The command line of a case, besides the seed."""
    task, count, *every = case.split(":")
    words = [f"env={task}", f"demonstrations.count={count}"]
    if not every:
        return ["experiment=gail", *words]
    recipe = "gail_one_episode" if count == "1" else "gail_subsampled"
    return [f"experiment={recipe}", *words, f"demonstrations.every={every[0]}"]


def run(case: str, seed: int, folder: Path) -> dict[str, float] | None:
    """Returns of expert, clone and imitator, environment steps and minutes; None where the training failed."""
    words = [*overrides_of(case), f"seed={seed}", f"evaluation.seed={FRESH}"]
    found = outcome(words, folder, QUIET)
    if found is None:
        return None
    policies, last = found
    of_policies = {name: policies[name]["return"] for name in ROWS}
    say(f"{case}, seed {seed}: {of_policies}")
    return of_policies | {"steps": last["env_steps"], "minutes": last["seconds"] / 60}


def rows(case: str, finished: Sequence[dict[str, float]]) -> list[list[str]]:
    """Of expert, clone and imitator."""
    steps, minutes = (f"{np.mean([result[name] for result in finished]):,.0f}" for name in ("steps", "minutes"))
    made = []
    for name, title in ROWS.items():
        returns = [result[name] for result in finished]
        share = np.mean(returns) / np.mean([result["expert"] for result in finished])
        cost = [steps, minutes] if name == "magail" else ["-", "-"]
        made.append([case, title, over_seeds(returns, 1), f"{share:.1%}", of_each(returns, 1), *cost])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", required=True, help="TASK:EPISODES or TASK:EPISODES:EVERY")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, each on one core")
    parser.add_argument("--runs", type=Path, default=Path("outputs/gail"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    command = shlex.join(["python", "-m", "benchmarks.gail", *sys.argv[1:]])
    head = ["case", "policy", "return", "of the expert's", "each seed", "environment steps", "minutes"]
    lines: list[list[str]] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = {
            case: [pool.submit(run, case, seed, runs / case.replace(":", "-") / str(seed)) for seed in arguments.seeds]
            for case in arguments.cases
        }
        for case, of_seeds in results.items():
            finished = [result for future in of_seeds if (result := future.result()) is not None]
            lines += rows(case, finished) if finished else [[case, "failed", *["-"] * 5]]
            text = f"# GAIL from few demonstrations\n\n```\n{command}\n```\n\n{machine()}.\n\n{table(head, lines)}\n"
            arguments.output.write_text(text)


if __name__ == "__main__":
    main()
