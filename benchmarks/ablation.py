"""What each choice is worth: every part of the family in the place of the default one, imitating from scratch.

    python -m benchmarks.ablation --tasks simple_spread simple_tag --seeds 0 1 2 --runs outputs/ablation \
        --output benchmarks/results/ablation.md

trains every choice from random weights on the same 50 demonstrations, without cloning them first and without a cloning
term, so that it is the adversary (or what stands in for it) that must teach; cloning alone is a row for comparison.
A run that has finished is not repeated, so the command goes on where it was stopped. Scores are normalised returns on
the true environment: 0 random, 1 the expert, means over 500 initial states that no demonstration has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import machine, table
from magail.statistics import mean_interval

LOSS, REWARD = (
    "discriminator.loss._target_=magail.discriminators.losses",
    "discriminator.reward._target_=magail.discriminators.rewards",
)
NO_PENALTY = "discriminator.gradient_penalty=0"
CHOICES: dict[str, dict[str, list[str]]] = {
    "prior": {
        "decentralized (default)": [],
        "decentralized, one for all agents (PS-GAIL)": ["discriminator.prior.share_parameters=true"],
        "decentralized, joint observation": ["discriminator.prior.joint_observation=true"],
        "centralized": ["discriminator=centralized"],
        "single": ["discriminator=single"],
    },
    "loss": {
        "WGAN, 1-centred penalty of 10": [
            f"{LOSS}.wasserstein",
            "discriminator.gradient_penalty=10",
            "discriminator.gradient_penalty_center=1",
        ],
        "least squares": [f"{LOSS}.least_squares"],
        "hinge": [f"{LOSS}.hinge"],
    },
    "regulariser": {
        "none": [NO_PENALTY, "discriminator.weight_decay=0"],
        "weight decay alone": [NO_PENALTY],
        "gradient penalty alone": ["discriminator.weight_decay=0"],
        "R1 in place of the penalty": ["discriminator.gradient_penalty_points=expert"],
        "spectral norm in its place": [NO_PENALTY, "discriminator.prior.spectral_norm=true"],
        "dropout in its place": [NO_PENALTY, "discriminator.prior.dropout=0.3"],
        "input noise in its place": [NO_PENALTY, "discriminator.input_noise=0.2"],
        "mixup in its place": [NO_PENALTY, "discriminator.mixup=0.5"],
        "label smoothing in its place": [NO_PENALTY, "discriminator.label_smoothing=0.1"],
        "with replay of 5 rounds": ["discriminator.replay=5"],
        "with a pause above 0.8": ["discriminator.pause_above=0.8"],
    },
    "reward": {
        "-log(1 - D)": [f"{REWARD}.softplus"],
        "log D": [f"{REWARD}.log_d"],
        "2 D - 1": [f"{REWARD}.symmetric"],
        "DAIL's": [f"{REWARD}.dail"],
    },
    "inputs": {
        "states alone": ["discriminator.prior.inputs=[obs]"],
        "states and next states": ["discriminator.prior.inputs=[obs,next_obs]"],
    },
    "inverse RL": {
        "AIRL (MA-AIRL)": ["algorithm=airl"],
        "AIRL, no gradient penalty": ["algorithm=airl", NO_PENALTY],
    },
    "start": {
        "fresh initial states": ["start_from_demonstrations=0"],
    },
    "generator": {
        "TRPO": ["generator=trpo"],
        "MACK": ["generator=mack"],
        "SAC (discriminator-actor-critic)": ["algorithm=dac"],
    },
    "not adversarial": {
        "behavioural cloning": ["algorithm=bc"],
        "SQIL": ["algorithm=sqil"],
        "IQ-Learn": ["algorithm=iq"],
        "DAgger (asks the expert)": ["algorithm=dagger"],
    },
}
FROM_SCRATCH = ["bc.steps=0", "bc.coefficient=0", "iterations=100"]
PPO = ["generator.learning_rate=7e-4", "generator.final_learning_rate_fraction=0.1"]
BRIEF = [
    "threads=1",
    "logger.mode=disabled",
    "evaluation.every=50",
    "evaluation.final_episodes=500",
    "evaluation.video_episodes=0",
    "env.mpe2.workers=0",
]
EXPERTS = {"simple_tag": ["algorithm=rl", "env=simple_tag", "iterations=600", "evaluation.every=100"]}  # not shipped


def overrides_of(choice: Sequence[str]) -> list[str]:
    """The command line of one choice, besides task, seed and demonstrations."""
    if "algorithm=bc" in choice:
        return list(choice)
    other_generator = any(word.startswith("generator=") for word in choice) or any(
        f"algorithm={name}" in choice for name in ("dac", "sqil", "iq", "dagger")
    )
    return [*choice, *FROM_SCRATCH, *([] if other_generator else PPO)]


def train(words: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """Run `magail.train` in ``folder`` unless that is done; its results, or None where it failed."""
    results = folder / "results.json"
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "magail.train", *BRIEF, *words, f"hydra.run.dir={folder}"]
        with (folder / "output.txt").open("w") as output:
            subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    return json.loads(results.read_text()) if results.exists() else None


def demonstrations_of(task: str, runs: Path) -> list[str]:
    """What makes a run imitate 50 demonstrations of the task's expert, which is trained first where none is shipped."""
    expert = []
    if task in EXPERTS:
        folder = runs / "experts" / task
        if train(EXPERTS[task], folder) is None:
            sys.exit(f"the expert of {task} failed: see {folder}/output.txt")
        expert = [f"env.expert={folder}"]
    path = runs / f"{task}.npz"
    if not path.exists():
        command = [sys.executable, "-m", "magail.record", f"env={task}", "episodes=50", f"output={path}", *expert]
        subprocess.run(command, check=True)
    return [f"demonstrations.path={path}", *expert]


def row(part: str, name: str, results: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Mean score over the seeds with its interval, and each seed's."""
    finished = [list(result["policies"].values())[-1] for result in results if result is not None]
    scores = np.array([policy["score"] for policy in finished])
    if not len(scores):
        return [part, name, "failed", "-"]
    mean, low, high = mean_interval(scores)
    interval = "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
    return [part, name, f"{mean:.3f}{interval}", ", ".join(f"{score:.3f}" for score in scores)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["simple_spread", "simple_tag"])
    parser.add_argument("--parts", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("outputs/ablation"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    command = "python -m " + " ".join(["benchmarks.ablation", *sys.argv[1:]])
    done: dict[str, list[list[str]]] = {task: [] for task in arguments.tasks}

    def write() -> None:
        sections = [f"# Ablation\n\n```\n{command}\n```\n\n{machine()}."]
        head = ["part", "choice", "score", "each seed"]
        sections += [f"## {task}\n\n{table(head, rows)}" for task, rows in done.items() if rows]
        arguments.output.write_text("\n\n".join(sections) + "\n")

    for task in arguments.tasks:
        imitate = demonstrations_of(task, runs)
        for part in arguments.parts:
            for name, choice in CHOICES[part].items():
                words = [f"env={task}", *imitate, *overrides_of(choice)]
                folder = runs / task / "".join(x if x.isalnum() else "_" for x in f"{part}-{name}")
                results = [train([*words, f"seed={seed}"], folder / str(seed)) for seed in arguments.seeds]
                done[task].append(row(part, name, results))
                print(task, *done[task][-1], flush=True)
                write()


if __name__ == "__main__":
    main()
