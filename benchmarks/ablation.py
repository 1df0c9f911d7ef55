"""What each choice is worth: every part of the family in the place of the default one, imitating from scratch.

    python -m benchmarks.ablation --tasks simple_spread simple_tag --seeds 0 1 2 --runs outputs/ablation \
        --output benchmarks/results/ablation.md

trains every choice from random weights on the same 50 demonstrations, without cloning them first and without a cloning
term, so that it is the adversary (or what stands in for it) that must teach; cloning alone is a row for comparison.
A run that has finished is not repeated, so the command goes on where it was stopped. Scores are normalised returns on
the true environment: 0 random, 1 the expert, means over 500 initial states that no demonstration has; in a competitive
task each side's by itself, in its seats against the expert (`benchmarks.seats`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.seats import seat_scores
from benchmarks.tables import machine, table
from benchmarks.trainings import AS_THEY_ARE, ON_REWARDS, demonstrations_of, of_each, over_seeds, train

LOSS, REWARD = (
    "discriminator.loss._target_=magail.discriminators.losses",
    "discriminator.reward._target_=magail.discriminators.rewards",
)
NO_PENALTY = "discriminator.gradient_penalty=0"
SLOWER = ["discriminator.steps=10", "discriminator.learning_rate=1e-3"]
CHOICES: dict[str, dict[str, list[str]]] = {
    "prior": {
        "decentralized (default)": [],
        "decentralized, one for all agents (PS-GAIL)": ["discriminator.prior.share_parameters=true"],
        "decentralized, joint observation": ["discriminator.prior.joint_observation=true"],
        "centralized": ["discriminator=centralized"],
        "single": ["discriminator=single"],
        "zero-sum": ["discriminator=zero_sum"],
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
        "AIRL, reward of the state alone": ["algorithm=airl", "discriminator.prior.inputs=[obs]"],
        "AIRL, centralized": ["algorithm=airl", "discriminator=centralized"],
    },
    "start": {
        "fresh initial states": ["start_from_demonstrations=0"],
    },
    "discriminator's pace": {
        "10 steps of rate 1e-3 (the cloned policy's default)": SLOWER,
        "100 steps of rate 3e-3": ["discriminator.steps=100"],
    },
    "generator": {
        "TRPO": ["generator=trpo"],
        "MACK": ["generator=mack"],
        "MACK, steps of up to 0.01 nats": ["generator=mack", "generator.clip_kl=0.01"],
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
PACE = ["discriminator.steps=30", "discriminator.learning_rate=3e-3"]  # a policy that changes fast
COMPETITIVE = {"simple_tag"}
TWO_SIDED = {"zero-sum"}  # choices that need two sides


def overrides_of(choice: Sequence[str]) -> list[str]:
    """The command line of one choice, besides task, seed and demonstrations."""
    if "algorithm=bc" in choice:
        return [*AS_THEY_ARE, *choice]
    words = [*AS_THEY_ARE, *FROM_SCRATCH]
    if not any(f"algorithm={name}" in choice for name in ("dac", "sqil", "iq", "dagger")):
        words += PACE if any(word.startswith("generator=") for word in choice) else [*PACE, *ON_REWARDS]
    return [*words, *choice]


def trained_scores(task: str, words: Sequence[str], folder: Path) -> dict[str, float] | None:
    """Scores of what ``words`` train, or None where that failed; of a competitive task each side's by itself."""
    if not train(words, folder):
        return None
    if task not in COMPETITIVE:
        *_, policy = json.loads((folder / "results.json").read_text())["policies"].values()
        return {"score": policy["score"]}
    kept = folder / "seats.json"
    if not kept.exists():
        kept.write_text(json.dumps(seat_scores(folder)))
    scores: dict[str, float] = json.loads(kept.read_text())
    return {f"in the seats of {group}": score for group, score in scores.items()}


def row(part: str, name: str, scores: Sequence[dict[str, float] | None]) -> dict[str, str]:
    """By column: means over the seeds with their intervals, and each seed's."""
    cells = {"part": part, "choice": name}
    finished = [of_seed for of_seed in scores if of_seed is not None]
    if not finished:
        return cells | {"score": "failed"}
    for measure in finished[0]:
        of_seeds = [of_seed[measure] for of_seed in finished]
        cells[measure] = over_seeds(of_seeds)
        cells[f"{measure}, each seed"] = of_each(of_seeds)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["simple_spread", "simple_tag"])
    parser.add_argument("--parts", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, each on one core")
    parser.add_argument("--runs", type=Path, default=Path("outputs/ablation"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.ablation", *sys.argv[1:]])
    done: dict[str, list[dict[str, str]]] = {task: [] for task in arguments.tasks}

    def write() -> None:
        sections = [f"# Ablation\n\n```\n{command}\n```\n\n{machine()}."]
        for task, rows in done.items():
            head = max(rows, key=len, default={})
            sections += [f"## {task}\n\n{table(list(head), [[r.get(x, '-') for x in head] for r in rows])}"]
        arguments.output.write_text("\n\n".join(sections) + "\n")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = []
        for task in arguments.tasks:
            imitate = demonstrations_of(task, runs)
            for part in arguments.parts:
                for name, choice in CHOICES[part].items():
                    if name in TWO_SIDED and task not in COMPETITIVE:
                        continue
                    words = [f"env={task}", *imitate, *overrides_of(choice)]
                    folder = runs / task / "".join(x if x.isalnum() else "_" for x in f"{part}-{name}")
                    results = [
                        pool.submit(trained_scores, task, [*words, f"seed={seed}"], folder / str(seed))
                        for seed in arguments.seeds
                    ]
                    rows.append((task, part, name, results))
        for task, part, name, results in rows:
            done[task].append(row(part, name, [result.result() for result in results]))
            print(task, *done[task][-1].values(), flush=True)
            write()


if __name__ == "__main__":
    main()
