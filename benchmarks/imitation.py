"""How well demonstrations are imitated, by how many there are: MAGAIL beside behavioural cloning and its rivals.

    python -m benchmarks.imitation --tasks simple_spread --counts 1 5 10 20 50 100 200 --seeds 0 1 2 3 4 \
        --runs outputs/imitation --output benchmarks/results/imitation.md

trains every method on every number of demonstrations, each seed on demonstrations of its own; a method of `METHODS`
begins from a clone of them in the same views, which is judged too. Scores are normalised returns (0 random, 1 the
expert) from 4,000 initial states that training did not see (multiwalker: 200; recipes were chosen on others), in the
batched worlds, which agree with mpe2 step by step (tests/envs); where sides compete, means over the sides, each against
the expert. A cell is the interquartile mean over the seeds with its 95 % bootstrap interval; a difference is the mean
over the seeds, of the same demonstrations and initial states, with its 95 % t-interval.

A finished run is a row of a .csv file (``--rows``) and is not repeated, and an unfinished one goes on from its
checkpoint, so the command takes up where it was stopped, on another machine too. To make rows anew delete them and
their run folders.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from cycler import cycler

from benchmarks.loop import composed
from benchmarks.seats import SIDES, seat_returns
from benchmarks.store import Row, Store
from benchmarks.tables import machine, table
from benchmarks.trainings import BRIEF, FRESH, SHORT, over_seeds, trained
from magail.config import build
from magail.experts import Source
from magail.logger import read_metrics
from magail.statistics import interquartile_mean, normalized_score

matplotlib.use("Agg")
from matplotlib import pyplot

ZERO_SUM = "MAGAIL, zero-sum"  # only where sides compete
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
    ZERO_SUM: ["discriminator=zero_sum"],
    "PS-GAIL": ["discriminator.prior.share_parameters=true", "generator.policy.share_parameters=true"],
    "MA-AIRL": ["algorithm=airl"],
    "IQ-Learn": ["algorithm=iq", "generator.policy.hidden_sizes=[128,128]", "generator.policy.activation=auto"],
}
CLONES = {"BC, same views": "MAGAIL"}  # what begins from them
EPISODES, FEW = 4000, 200  # of which FEW where a step takes a millisecond, not a microsecond
CURVE = ["evaluation.every=25", "evaluation.final_episodes=50"]  # the final ones are played here
SLOW = {"multiwalker": [*SHORT, *CURVE, "evaluation.episodes=20", "env.evaluate.workers=0"]}
KEYS = ("task", "method", "demonstrations", "seed")
COSTS = ("seconds", "seconds to 95 %", "steps to 95 %")
PICKS = ("picked", "best", "last")
FIELDS = ("imitator", "clone", *COSTS, *PICKS)
COST = "Seconds of a training, with all that precedes it{}; medians:"
TO_MOST = (  # not where sides compete
    "; in brackets seconds and environment steps after which it had 95 % of its final score (0 steps: when its clone "
    "was done; else at one of four evaluations)"
)
WORDS = (
    "Scores are normalised returns, 0 as random play and 1 as the expert, on initial states that training did not see; "
    "where sides compete, means over the sides, each against the expert. A cell is the interquartile mean over the "
    "seeds with its 95 % bootstrap interval; a difference the mean over the seeds, of the same demonstrations and "
    "states, with its 95 % t-interval. *BC* clones the demonstrations as they are; *BC, same views* are the clones "
    "from which MAGAIL began, in the views that it found (*its clone*). Rows may be of several machines and days "
    "(their commits are in the .csv): scores compare, seconds do not."
)
SELECTION = (
    "Scores (100 episodes, multiwalker 20) by which the checkpoint of the best held-out likelihood, and the last one, "
    "are behind the best of the four evaluations, means:"
)

Results = dict[tuple[str, int], list[Row]]
"""By method and number of demonstrations what each seed came to."""


def as_folder(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def run(task: str, method: str, count: int, seed: int, runs: Path) -> Path | None:
    """The run's folder, after its training; None where that failed."""
    folder = runs / task / as_folder(method) / str(count) / str(seed)
    words = [f"env={task}", f"demonstrations.count={count}", f"seed={seed}", f"evaluation.seed={FRESH}"]
    sides = [f"discriminator.prior.first_side=[{', '.join(SIDES[task][0])}]"] if method == ZERO_SUM else []
    return trained([*words, *METHODS[method], *sides], folder, SLOW.get(task, [*BRIEF, *CURVE]))


def seats(task: str, player: Source | None) -> list[np.ndarray]:
    """`seat_returns` of each side against the expert; who does not compete is one side."""
    cfg, seeds = composed(f"env={task}").env, range(FRESH, FRESH + (FEW if task in SLOW else EPISODES))
    with closing(build(cfg.train)) as env:
        sides = SIDES.get(task) or [tuple(group.name for group in env.groups)]
        return [seat_returns(env, side, player, cfg.expert, seeds) for side in sides]


@cache  # the same for all runs of a task
def scale(task: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns in the `seats` that are worth 1 and 0: the expert's and random play's."""
    return seats(task, composed(f"env={task}").env.expert), seats(task, None)


def score(task: str, policy: Path) -> float:
    sides = zip(seats(task, str(policy)), *scale(task), strict=True)
    return float(np.mean([normalized_score(*returns)[0] for returns in sides]))


def measures(task: str, folder: Path) -> Row:
    """`FIELDS` of a finished run."""
    imitator, clone = (score(task, folder / name) for name in ("policy.safetensors", "bc.safetensors"))
    lines = read_metrics(folder)
    row = {"imitator": imitator, "clone": clone, "seconds": lines[-1]["seconds"]}
    if task in SIDES:  # the learning curve is of all who compete together
        return row
    (one, *_), (zero, *_) = scale(task)
    points = [line for line in lines if "eval/return" in line]
    for point in points:  # from the first of the same states
        n = int(point["eval/episodes"])
        low, high = float(zero[:n].mean()), float(one[:n].mean())
        point["score"] = (point["eval/return"] - low) / (high - low)
    cloned = [line for line in lines if "bc/step" in line][-1] | {"score": clone, "env_steps": 0}
    there = next((x for x in [cloned, *points] if x["score"] >= 0.95 * imitator), lines[-1])
    row |= {"seconds to 95 %": there["seconds"], "steps to 95 %": there["env_steps"]}
    judged = [point for point in points if point.get("bc/held_out_loss") is not None]
    if judged:
        row["picked"] = min(judged, key=lambda x: x["bc/held_out_loss"])["score"]
        row["best"] = max(x["score"] for x in judged)
        row["last"] = judged[-1]["score"]
    return row


def made(store: Store, task: str, method: str, count: int, seed: int, runs: Path) -> Row | None:
    """The row of a run, which is made first where there is none; None where its training failed."""
    key = dict(zip(KEYS, (task, method, count, seed), strict=True))
    return store.row(key, lambda: run(task, method, count, seed, runs), lambda folder: measures(task, folder))


def values(results: Results, row: str, count: int, field: str = "imitator") -> np.ndarray:
    """A field of each seed that has it ``[R]``; the score for a clone that a method begins from."""
    return np.array(list(by_seed(results, row, count, field).values()))


def by_seed(results: Results, row: str, count: int, field: str) -> dict[str, float]:
    if row in CLONES:
        row, field = CLONES[row], "clone"
    return {seed["seed"]: float(seed[field]) for seed in results.get((row, count), []) if seed[field]}


def interval(scores: np.ndarray) -> str:
    mean, low, high = interquartile_mean(scores[:, None])
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def by_count(counts: Sequence[int], rows: Mapping[str, Callable[[int], str]]) -> str:
    """A row of cells by number of demonstrations; rows without any are left out, and a table without rows is ""."""
    made = {name: [cell(count) for count in counts] for name, cell in rows.items()}
    shown = [[name, *cells] for name, cells in made.items() if set(cells) != {"-"}]
    return table(["demonstrations", *map(str, counts)], shown) if shown else ""


def score_table(results: Results, rows: Sequence[str], counts: Sequence[int]) -> str:
    def cell(row: str, count: int) -> str:
        scores = values(results, row, count)
        return interval(scores) if len(scores) else "-"

    return by_count(counts, {row: partial(cell, row) for row in rows})


def difference_table(results: Results, methods: Sequence[str], counts: Sequence[int]) -> str:
    """How far each method is above behavioural cloning, and above the clone that it began from."""

    def cell(method: str, baseline: tuple[str, str], count: int) -> str:
        a, b = by_seed(results, method, count, "imitator"), by_seed(results, baseline[0], count, baseline[1])
        return over_seeds([a[seed] - b[seed] for seed in a if seed in b], digits=4) if a.keys() & b.keys() else "-"

    rows = {}
    for method in methods:
        if method != "BC":
            rows[f"{method} - BC"] = partial(cell, method, ("BC", "imitator"))
            rows[f"{method} - its clone"] = partial(cell, method, (method, "clone"))
    return by_count(counts, rows)


def cost_table(results: Results, methods: Sequence[str], counts: Sequence[int]) -> str:
    def cell(method: str, count: int) -> str:
        spent = [values(results, method, count, cost) for cost in COSTS]  # where sides compete, the first alone
        total, *to_most = [f"{np.median(cost):,.0f}" for cost in spent if len(cost)] or ["-"]
        return f"{total} ({', '.join(to_most)})" if to_most else total

    return by_count(counts, {method: partial(cell, method) for method in methods})


def selection_table(results: Results, methods: Sequence[str], counts: Sequence[int]) -> str:
    """How far the checkpoint of the best held-out likelihood, and the last one, are behind the best."""

    def cell(method: str, pick: str, count: int) -> str:
        behind = values(results, method, count, "best") - values(results, method, count, pick)
        return f"{behind.mean():.3f} (at most {behind.max():.3f})" if len(behind) else "-"

    rows = [(method, pick) for method in methods for pick in ("picked", "last")]
    return by_count(counts, {f"{method}: {pick}": partial(cell, method, pick) for method, pick in rows})


def plot(results: Results, rows: Sequence[str], counts: Sequence[int], title: str, path: Path) -> None:
    """Scores over the number of demonstrations, with their intervals."""
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    axes.set_prop_cycle(cycler(marker="os") * pyplot.rcParams["axes.prop_cycle"])  # two rounds of the ten colours
    for row in rows:
        known = [count for count in counts if len(values(results, row, count))]
        if not known:
            continue
        means, lows, highs = np.array([interquartile_mean(values(results, row, n)[:, None]) for n in known]).T
        line_style, marker, order = (":", "", 3) if row in CLONES else ("-", None, 2)  # it may lie on its method's line
        (line,) = axes.plot(known, means, line_style, marker=marker, zorder=order, label=row)
        axes.fill_between(known, lows, highs, alpha=0.2, color=line.get_color())
    axes.axhline(1.0, color="grey", linewidth=1, linestyle="--")
    axes.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="demonstrations", title=title)
    axes.set_ylabel("score (0 random, 1 expert)")
    axes.minorticks_off()
    figure.legend(loc="outside right center")
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
    parser.add_argument("--output", type=Path, required=True, help="Markdown file; plots go beside it")
    parser.add_argument(
        "--rows", type=Path, help=".csv of finished runs, which pages may share; default: beside the page"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, counts = arguments.runs.resolve(), arguments.counts
    command = shlex.join(["python", "-m", "benchmarks.imitation", *sys.argv[1:]])
    page = ["# Imitation by number of demonstrations", f"```\n{command}\n```", machine() + ".", WORDS]
    store = Store(arguments.rows or arguments.output.with_suffix(".csv"), KEYS, FIELDS)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task in arguments.tasks:
            methods = [method for method in arguments.methods if method != ZERO_SUM or task in SIDES]
            rows = methods + [clone for clone, method in CLONES.items() if method in methods]
            futures = {
                (method, count): [pool.submit(made, store, task, method, count, seed, runs) for seed in arguments.seeds]
                for method in methods
                for count in counts
            }
            results: Results = {
                cell: [found for future in of_seeds if (found := future.result())] for cell, of_seeds in futures.items()
            }
            picture = arguments.output.with_name(f"{arguments.output.stem}_{task}.png")
            plot(results, rows, counts, task, picture)
            page += [f"## {task}", f"![scores by number of demonstrations]({picture.name})"]
            page += [score_table(results, rows, counts), difference_table(results, methods, counts)]
            page += [COST.format("" if task in SIDES else TO_MOST), cost_table(results, methods, counts)]
            if selection := selection_table(results, methods, counts):
                page += [SELECTION, selection]
            arguments.output.write_text("\n\n".join(filter(None, page)) + "\n")


if __name__ == "__main__":
    main()
