"""How well demonstrations are imitated, by how many there are: MAGAIL beside behavioural cloning.

    python -m benchmarks.imitation --tasks simple_spread --counts 1 5 10 20 50 100 200 --seeds 0 1 2 3 4 \
        --runs outputs/imitation --output benchmarks/results/imitation.md

trains every method on every number of demonstrations, each seed on demonstrations of its own; a method of `METHODS`
begins from a clone of them in the same views, which is judged too. Scores are normalised returns on the true
environment (0 random, 1 the expert) from 500 initial states that neither training nor the choice of the recipe saw. A
cell is the interquartile mean over the seeds with its 95 % bootstrap interval; a difference is the mean over the seeds,
of the same demonstrations and initial states, with its 95 % t-interval. A finished run is not repeated and an
unfinished one goes on from its checkpoint, so the command takes up where it was stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.tables import machine, say, table
from benchmarks.trainings import BRIEF, FRESH, outcome, over_seeds
from magail.statistics import interquartile_mean

matplotlib.use("Agg")
from matplotlib import pyplot

METHODS: dict[str, list[str]] = {
    "BC": ["algorithm=bc", "symmetries=false"],
    "MAGAIL": [],
    "MAGAIL, views alone": ["symmetries=true"],
    "MAGAIL, as they are": ["symmetries=false"],
    "naive MAGAIL": [
        "symmetries=false",
        "start_from_demonstrations=0",
        "bc.coefficient=0",
        "generator.learning_rate=3e-4",
        "generator.final_learning_rate_fraction=1",
    ],
    "MAGAIL, centralized": ["discriminator=centralized"],
    "MAGAIL, single": ["discriminator=single"],
    "PS-GAIL": ["discriminator.prior.share_parameters=true", "generator.policy.share_parameters=true"],
    "MA-AIRL": ["algorithm=airl"],
    "IQ-Learn": ["algorithm=iq"],
}
CLONES = {"BC, same views": "MAGAIL", "clone, as they are": "MAGAIL, as they are"}  # what begins from them
DIFFERENCES = [
    ("MAGAIL", "BC"),
    ("MAGAIL", "clone, as they are"),
    ("MAGAIL", "BC, same views"),
    ("MAGAIL, as they are", "clone, as they are"),
]

Results = dict[tuple[str, int], list[dict[str, float]]]
"""By method and number of demonstrations what each seed came to."""


def as_folder(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def folder_of(task: str, method: str, count: int, seed: int, runs: Path) -> Path:
    return runs / task / as_folder(method) / str(count) / str(seed)


def run(task: str, method: str, count: int, seed: int, runs: Path) -> dict[str, float] | None:
    """Scores of the imitator and of the clone it began from, and the seconds it took; None where training failed."""
    folder = folder_of(task, method, count, seed, runs)
    words = [f"env={task}", f"demonstrations.count={count}", f"seed={seed}", f"evaluation.seed={FRESH}"]
    found = outcome([*words, *METHODS[method]], folder, BRIEF)
    if found is None:
        return None
    policies, last = found
    *_, imitator = policies.values()
    scores = {"imitator": imitator["score"], "clone": policies["bc"]["score"], "seconds": last["seconds"]}
    say(f"{task}, {method}, {count}, seed {seed}: {scores}")
    return scores


def scores_of(results: Results, row: str, count: int) -> np.ndarray:
    """The score of each seed ``[R]``, of a method or of the clone that one begins from."""
    method, who = (CLONES[row], "clone") if row in CLONES else (row, "imitator")
    return np.array([seed[who] for seed in results.get((method, count), [])])


def by_count(rows: Mapping[str, Sequence[str]], counts: Sequence[int]) -> str:
    return table(["demonstrations", *map(str, counts)], [[name, *cells] for name, cells in rows.items()])


def score_table(results: Results, rows: Sequence[str], counts: Sequence[int]) -> str:
    def cell(row: str, count: int) -> str:
        scores = scores_of(results, row, count)
        if not len(scores):
            return "-"
        mean, low, high = interquartile_mean(scores[:, None])
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"

    return by_count({row: [cell(row, count) for count in counts] for row in rows}, counts)


def difference_table(results: Results, counts: Sequence[int]) -> str:
    def cell(one: str, other: str, count: int) -> str:
        a, b = scores_of(results, one, count), scores_of(results, other, count)
        return over_seeds(a - b) if len(a) == len(b) > 0 else "-"

    lines = {f"{one} - {other}": [cell(one, other, count) for count in counts] for one, other in DIFFERENCES}
    return by_count({name: cells for name, cells in lines.items() if set(cells) != {"-"}}, counts)


def seconds_table(results: Results, methods: Sequence[str], counts: Sequence[int]) -> str:
    def cell(method: str, count: int) -> str:
        seconds = [seed["seconds"] for seed in results[method, count]]
        return f"{np.median(seconds):.0f}" if seconds else "-"

    return by_count({method: [cell(method, count) for count in counts] for method in methods}, counts)


def plot(results: Results, rows: Sequence[str], counts: Sequence[int], title: str, path: Path) -> None:
    """Scores over the number of demonstrations, with their intervals."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        known = [count for count in counts if len(scores_of(results, row, count))]
        means, lows, highs = np.array([interquartile_mean(scores_of(results, row, n)[:, None]) for n in known]).T
        (line,) = axes.plot(known, means, marker="o", label=row)
        axes.fill_between(known, lows, highs, alpha=0.2, color=line.get_color())
    axes.axhline(1.0, color="grey", linewidth=1, linestyle="--")
    axes.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="demonstrations", title=title)
    axes.set_ylabel("score (0 random, 1 expert)")
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["simple_spread"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 5, 10, 20, 50, 100, 200])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, each on one core")
    parser.add_argument("--runs", type=Path, default=Path("outputs/imitation"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write; a plot goes beside it")
    arguments = parser.parse_args()
    runs, counts = arguments.runs.resolve(), arguments.counts
    command = shlex.join(["python", "-m", "benchmarks.imitation", *sys.argv[1:]])
    page = ["# Imitation by number of demonstrations", f"```\n{command}\n```", machine() + "."]
    rows = arguments.methods + [clone for clone, method in CLONES.items() if method in arguments.methods]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task in arguments.tasks:
            futures = {
                (method, count): [pool.submit(run, task, method, count, seed, runs) for seed in arguments.seeds]
                for count in counts
                for method in arguments.methods
            }
            results: Results = {
                cell: [found for future in of_seeds if (found := future.result())] for cell, of_seeds in futures.items()
            }
            picture = arguments.output.with_name(f"{arguments.output.stem}_{task}.png")
            plot(results, rows, counts, task, picture)
            page += [
                f"## {task}",
                f"![scores by number of demonstrations]({picture.name})",
                score_table(results, rows, counts),
                difference_table(results, counts),
                "Seconds of a training, cloning included, medians:",
                seconds_table(results, arguments.methods, counts),
            ]
            arguments.output.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
