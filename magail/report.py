"""What runs came to: a table of returns, the curves of one run, and a comparison of several.

    python -m magail.report RUN_DIR [RUN_DIR ...] [--output DIR]

writes ``comparison.md`` and ``comparison.png`` of run folders, each with ``config.yaml``, ``metrics.jsonl`` and
``results.json``; a sweep's folder stands for all of its runs. Runs whose configurations differ in seeds only are one
method, reported with an interval over runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.table import Table

from magail.config import CONFIG, FOUND, flat, one_clear_message, plain, read_config
from magail.files import parsed, write_whole
from magail.logger import read_metrics
from magail.statistics import mean_interval, normalized_score

RESULTS = "results.json"
RUNNING = ("logger", "threads", "device", "compile", "matmul_precision", "checkpoint", "evaluation")  # no method's part
Line = dict[str, Any]  # of metrics.jsonl

# --- returns of one run -------------------------------------------------------------------------------------------


def report_results(run_dir: Path | str, results: Mapping[str, Any]) -> None:
    """Write what `summarize` returned to ``results.json`` and print it as a table."""
    write_whole(Path(run_dir) / RESULTS, json.dumps(results, allow_nan=False) + "\n")
    Console().print(results_table(results))


def summarize(
    returns: Mapping[str, np.ndarray], seeds: Sequence[int], expert: str = "expert", random: str = "random"
) -> dict[str, Any]:
    """Mean per-agent episode return and normalised score of each policy, with 95 % intervals.

    Args:
        returns: by policy, ``[N]`` episode returns averaged over the agents, episode i from reset seed ``seeds[i]``.
        seeds: ``[N]`` reset seeds, the same for all policies.
        expert, random: the policies that score 1 and 0; without both of them there are no scores.

    Returns:
        ``{"episodes", "seeds", "policies": {name: {"return", "return_low", "return_high", "score", "score_low",
        "score_high", "returns"}}}`` of plain numbers; None where `magail.statistics` has nan.

    Raises:
        ValueError: a policy has another number of episodes than there are seeds.
    """
    for name, x in returns.items():
        if len(x) != len(seeds):
            raise ValueError(f"{name} has {len(x)} episodes for {len(seeds)} seeds: play all policies on all seeds")
    policies = {}
    for name, x in returns.items():
        score = (math.nan, math.nan, math.nan)
        if expert in returns and random in returns:
            score = normalized_score(x, returns[expert], returns[random])
        keys = ("return", "return_low", "return_high", "score", "score_low", "score_high")
        numbers = dict(zip(keys, map(_known, mean_interval(x) + score), strict=True))
        policies[name] = {**numbers, "returns": [float(y) for y in x]}
    return {"episodes": len(seeds), "seeds": [int(seed) for seed in seeds], "policies": policies}


def results_table(results: Mapping[str, Any]) -> Table:
    """What `summarize` returned, for a terminal."""
    table = Table(title=f"{results['episodes']} episodes, the same for all; 95 % intervals")
    table.add_column("policy")
    table.add_column("return per agent", justify="right")
    table.add_column("normalised score", justify="right")
    for seat, names in itertools.groupby(results["policies"], _seat):
        if seat:
            table.add_section()
        for name in names:
            policy = results["policies"][name]
            table.add_row(name, _cell(policy, "return", digits=2), _cell(policy, "score", digits=3))
    if any(map(_seat, results["policies"])):
        table.caption = "as GROUP: that group's own return, with the expert in the other seats"
    return table


def _seat(policy: str) -> str:
    """The group in whose seats a policy was judged; "" where it played all."""
    return policy.partition(" as ")[2]


def _is_fixed(policy: str) -> bool:
    """Whether it is the expert or random play, in whatever seats: no method's doing."""
    return policy.partition(" as ")[0] in ("expert", "random")


def read_results(run_dir: Path | str) -> dict[str, Any] | None:
    """The ``results.json`` of a run; None if it is not finished.

    Raises:
        ValueError: it is damaged.
    """
    return _read(Path(run_dir) / RESULTS)


def _read(path: Path) -> dict[str, Any] | None:
    return parsed(path.read_text(), path) if path.exists() else None


def _known(x: float) -> float | None:
    return None if math.isnan(x) else x


def _cell(numbers: Mapping[str, float | None], key: str, digits: int) -> str:
    """``-10.31 (-10.52 to -10.10)``; the interval or all of it is left out where it is unknown."""
    mean, low, high = numbers[key], numbers[f"{key}_low"], numbers[f"{key}_high"]
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


# --- curves of one run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """Metrics that share a scale, as ``{key: label}``, against the metric ``x``."""

    title: str
    curves: dict[str, str]
    limits: tuple[float, float] | None = None
    x: str = "env_steps"


PANELS = (
    Panel("Return per agent and episode", {"train/return": "training", "eval/return": "evaluation"}),
    Panel(
        "Discriminator accuracy",
        {
            "discriminator/expert_accuracy": "expert",
            "discriminator/generator_accuracy": "generator",
            "discriminator/held_out_accuracy": "held-out expert",
        },
        limits=(-0.03, 1.03),
    ),
    Panel("Discriminator loss", {"discriminator/loss": "loss", "discriminator/gradient_penalty": "gradient penalty"}),
    Panel("Reward of the generator, mean ± std", {"generator/reward_mean": "reward"}),
    Panel("Correlation of learned and true reward", {"discriminator/reward_correlation": "correlation"}),
    Panel("Entropy of the policy", {"generator/entropy": "entropy"}),
    Panel("Approximate KL divergence of an update", {"generator/approx_kl": "KL"}),
    Panel("Clipped fraction of samples", {"generator/clip_fraction": "clip fraction"}),
    Panel("Policy loss", {"generator/policy_loss": "policy loss"}),
    Panel("Value loss", {"generator/value_loss": "value loss"}),
    Panel("Explained variance of the critic", {"generator/explained_variance": "explained variance"}),
    Panel("Episode length", {"train/episode_length": "episode length"}),
    Panel(
        "Behavioural cloning: negative log-likelihood",
        {"bc/loss": "training", "bc/held_out_loss": "held out"},
        x="bc/step",
    ),
    Panel("Held-out negative log-likelihood, imitating", {"bc/held_out_loss": "held out"}),
)
AXIS_LABELS = {"env_steps": "environment steps", "iteration": "iteration", "bc/step": "cloning steps"}
REFERENCES = {"expert": "#2a8c4a", "bc": "#8c564b", "random": "#7f7f7f"}  # policies to compare returns with
FEW = 30  # points that are marked one by one


def learning_curves(run_dir: Path | str) -> Path:
    """Draw all that a run logged against environment steps (iterations where unknown), as ``curves.png`` in its folder.

    A metric that `PANELS` does not know gets a panel of its own. A line that lacks a metric is passed over; a value
    that was not finite leaves a gap. Where the run has results, the means of its expert, cloned and random policies
    are drawn beside its returns.

    Returns:
        The path of the picture.

    Raises:
        ValueError: nothing was logged.
    """
    lines, results = _lines(run_dir), read_results(run_dir)
    axis = "env_steps" if any("env_steps" in line for line in lines) else "iteration"
    panels = [replace(panel, x=axis) if panel.x == "env_steps" else panel for panel in PANELS + _other_panels(lines)]
    panels = [panel for panel in panels if any(len(_series(lines, panel.x, key)[0]) for key in panel.curves)]
    if not panels:
        raise ValueError(f"{run_dir} has no metrics to draw: name the folder of a run that has begun to train")
    figure, axes = _figure(len(panels))
    figure.suptitle("/".join(Path(run_dir).resolve().parts[-2:]), x=0.01, ha="left", color="gray")
    for ax, panel in zip(axes, panels, strict=True):
        for i, (key, name) in enumerate(panel.curves.items()):
            label = name if len(panel.curves) > 1 else ""  # the title says it
            _draw_curve(ax, lines, panel.x, key, label, f"C{i}", alpha=0.5 if key == "train/return" else 1.0)
        if "eval/return" in panel.curves and results:
            _draw_references(ax, results["policies"], _curve_episodes(lines))
        if panel.limits:
            ax.set_ylim(panel.limits)
        _dress(ax, panel.title, panel.x)
    path = Path(run_dir) / "curves.png"
    figure.savefig(path)
    return path


def _lines(run_dir: Path | str) -> list[Line]:
    """Metrics ready to draw: each line knows its environment steps, and the reward the edges of its band."""
    lines = read_metrics(run_dir)
    steps = {line["iteration"]: line["env_steps"] for line in lines if "env_steps" in line}
    for line in lines:
        if line["iteration"] in steps:
            line["env_steps"] = steps[line["iteration"]]
        mean, std = line.get("generator/reward_mean"), line.get("generator/reward_std")
        if mean is not None and std is not None:
            line |= {"generator/reward_mean_low": mean - std, "generator/reward_mean_high": mean + std}
    return lines


def _other_panels(lines: Sequence[Line]) -> tuple[Panel, ...]:
    """One for each metric that is in none of `PANELS`, by name."""
    drawn = {key for panel in PANELS for key in panel.curves}
    bands = {f"{key}_{edge}" for key in drawn for edge in ("low", "high")}
    logged = {key for line in lines for key in line}
    others = logged - drawn - bands - AXIS_LABELS.keys() - {"seconds", "eval/episodes", "generator/reward_std"}
    return tuple(
        Panel(key, {key: key}, x="bc/step" if key.startswith("bc/") else "env_steps") for key in sorted(others)
    )


def _series(lines: Sequence[Line], x: str, *keys: str) -> tuple[np.ndarray, ...]:
    """``[N]`` each of x and the keys, from the lines that have all of them; nan for what was not finite."""
    rows = [[line[x], *(line[key] for key in keys)] for line in lines if x in line and all(k in line for k in keys)]
    return tuple(np.array(rows, dtype=np.float64).reshape(-1, 1 + len(keys)).T)  # None becomes nan


def _draw_curve(ax: Axes, lines: Sequence[Line], x_key: str, key: str, label: str, colour: str, alpha: float) -> None:
    x, y = _series(lines, x_key, key)
    if len(x) == 0:
        return
    marker = "o" if len(x) <= FEW else None
    ax.plot(x, y, color=colour, alpha=alpha, label=label, linewidth=1.4, marker=marker, markersize=3.5)
    x, low, high = _series(lines, x_key, f"{key}_low", f"{key}_high")
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _curve_episodes(lines: Sequence[Line]) -> int | None:
    """How many episodes the points of a learning curve stand for; None where it was not logged."""
    return max((int(line["eval/episodes"]) for line in lines if "eval/episodes" in line), default=None)


def _draw_references(ax: Axes, policies: Mapping[str, Any], episodes: int | None) -> None:
    """Means over the first ``episodes`` final ones, the same initial states that the curve's points come from."""
    for name, colour in REFERENCES.items():
        if name in policies:
            mean = float(np.mean(policies[name]["returns"][:episodes]))
            ax.axhline(mean, color=colour, linestyle="--", linewidth=1.2, label=f"{name} {mean:.2f}", zorder=1)


def _figure(panels: int, row_height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """One ax per panel, in rows of three; the height in inches."""
    columns = min(panels, 3)
    rows = math.ceil(panels / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(5.4 * columns, row_height * rows), dpi=120, layout=layout)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def _dress(ax: Axes, title: str, x: str) -> None:
    """Title, then legend, then curves from top to bottom, so that nothing covers a curve."""
    _, labels = ax.get_legend_handles_labels()
    legend_rows = 0
    if labels:
        legend_rows = math.ceil(len(labels) / 3)
        ax.legend(
            ncols=3,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            frameon=False,
            fontsize=9,
            borderpad=0.2,
            columnspacing=1.2,
        )
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8 + 15 * legend_rows)
    ax.set_xlabel(AXIS_LABELS[x])
    ax.locator_params(axis="x", integer=True)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


# --- several runs -------------------------------------------------------------------------------------------------


@dataclass
class RunFolder:
    """What a run has left so far; the config is empty where there is no run, or a damaged one (``problem``)."""

    path: Path
    config: dict[str, Any]
    lines: list[Line]
    results: dict[str, Any] | None
    found: dict[str, Any] = field(default_factory=dict)  # what options that were auto came to
    problem: str = ""

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        try:
            config = plain(read_config(path)) if (path / CONFIG).exists() else {}
            return cls(path, config, _lines(path), read_results(path), _read(path / FOUND) or {})
        except ValueError as error:
            return cls(path, {}, [], None, problem=str(error))

    @property
    def state(self) -> str:
        if not self.config:
            return self.problem or "no run in this folder"
        if self.results is not None:
            return "finished"
        last = self.lines[-1] if self.lines else {"iteration": -1}
        return f"unfinished: {last['iteration'] + 1} iterations, {last.get('env_steps', 0):,} environment steps"

    @property
    def options(self) -> dict[str, Any]:
        """What makes it the method that it is, ``{dotted key: value}``: no seeds, nor how it is run and watched."""
        options = flat({key: value for key, value in self.config.items() if key not in RUNNING})
        asked = options | dict.fromkeys(self.found, "auto")
        return {key: value for key, value in asked.items() if key.split(".")[-1] != "seed"}

    @property
    def env_name(self) -> str:
        return self.config.get("env", {}).get("name", "environment")

    @property
    def task(self) -> str:
        """What its returns are measured in: returns compare where this is the same."""
        env = self.config.get("env", {})
        return json.dumps([self.env_name, env.get("evaluate", env)], sort_keys=True)


@dataclass
class Method:
    """Runs that differ in seeds only."""

    letter: str
    runs: list[RunFolder]
    differs: dict[str, Any]  # its options that are not the same in all methods

    @property
    def label(self) -> str:
        """The letter and what differs, shortened: the algorithm, the parts chosen, then options; not of the task."""
        keys = [key for key in self.differs if not key.startswith("env.")]
        keys.sort(key=lambda key: (key != "algorithm", "_target_" not in key))
        text = ": ".join(filter(None, [self.letter, ", ".join(_short(key, self.differs[key]) for key in keys)]))
        return text if len(text) <= 52 else f"{text[:51]}…"

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of the finished runs."""
        return [run.results for run in self.runs if run.results is not None]

    @property
    def own_results(self) -> list[dict[str, Any]]:
        """Of the finished runs what became of the policy that was trained."""
        name = self.runs[0].config.get("algorithm", "")
        return [results["policies"][name] for results in self.results if name in results["policies"]]

    @property
    def curves(self) -> list[tuple[np.ndarray, ...]]:
        """Environment steps and returns ``[N]`` of the evaluations of each run that has any."""
        curves = [_series(run.lines, "env_steps", "eval/return") for run in self.runs]
        return [(x, y) for x, y in curves if len(x)]


def compare(run_dirs: Sequence[Path], output: Path) -> Path:
    """Write ``comparison.md``, and ``comparison.png`` where there is a curve to draw, into ``output``.

    Returns:
        The path of the first.

    Raises:
        ValueError: there is no run in any of the folders, nor in folders within them.
    """
    runs = [RunFolder.read(path) for run_dir in run_dirs for path in _run_folders(run_dir)]
    if not any(run.config for run in runs):
        raise ValueError(f"there is no run in {', '.join(map(str, run_dirs))}: name folders of runs, or of a sweep")
    methods = _methods([run for run in runs if run.config])
    output.mkdir(parents=True, exist_ok=True)
    drawn = _draw_comparison(methods, output / "comparison.png")
    sections = [
        f"# Comparison of {len(runs)} runs",
        "Returns are per agent and episode; the score is 0 for random and 1 for the expert. Intervals are 95 %: over "
        "runs that differ in seeds only, or over the episodes of a single run.",
        _methods_table(methods),
        *(["![learning curves](comparison.png)"] if drawn else []),
        "## What differs between methods",
        _differences_table(methods),
        "## Runs",
        _runs_table(runs, methods),
    ]
    path = output / "comparison.md"
    path.write_text("\n\n".join(sections) + "\n")
    return path


def _run_folders(path: Path) -> list[Path]:
    """The folder itself, or, where it is no run's, those of runs within it: a sweep's, in their order."""
    within = [config.parent for config in path.rglob(CONFIG) if not config.parent.name.startswith(".")]  # Hydra's own
    if (path / CONFIG).exists() or not within:
        return [path]
    return sorted(within, key=lambda folder: (folder.parent, len(folder.name), folder.name))


def _methods(runs: Iterable[RunFolder]) -> list[Method]:
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.options, sort_keys=True), []).append(run)
    firsts = [group[0] for group in groups.values()]
    return [Method(_letters(i), group, _differences(group[0], firsts)) for i, group in enumerate(groups.values())]


def _differences(run: RunFolder, others: Iterable[RunFolder]) -> dict[str, Any]:
    """Options of the run that some other run has not; of environments with different names only the name."""

    def compared(key: str, other: RunFolder) -> bool:
        return key == "env.name" or not key.startswith("env.") or run.env_name == other.env_name

    return {
        key: x
        for key, x in run.options.items()
        if any(other.options.get(key, ...) != x for other in others if compared(key, other))
    }


def _letters(i: int) -> str:
    """A to Z, then AA, AB, ..."""
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _short(key: str, value: Any) -> str:
    """``discriminator.prior._target_: magail.discriminators.priors.single`` is known as prior=single."""
    if key.endswith("._target_"):
        key, value = key.removesuffix("._target_"), value.split(".")[-1]
    return f"{key.split('.')[-1]}={value}"


def _methods_table(methods: Iterable[Method]) -> str:
    """Expert and random once per task, then what each method made."""
    rows, tasks = [], set()
    for method in methods:
        run = method.runs[0]
        if not method.results:
            rows.append([method.label, run.env_name, "no run is finished", "-", "-", "-"])
            continue
        policies = [name for name in method.results[0]["policies"] if not _is_fixed(name) or run.task not in tasks]
        tasks.add(run.task)
        for name in sorted(policies, key=lambda name: not _is_fixed(name)):
            of_runs = [results["policies"][name] for results in method.results if name in results["policies"]]
            if len(of_runs) == 1 or _is_fixed(name):
                numbers, over = of_runs[0], f"{method.results[0]['episodes']} episodes"
            else:
                numbers, over = _over_runs(of_runs), f"{len(of_runs)} runs"
            cells = _cell(numbers, "score", digits=3), _cell(numbers, "return", digits=2)
            rows.append(["-" if _is_fixed(name) else method.label, run.env_name, name, *cells, over])
    return _markdown(["method", "environment", "policy", "score", "return", "interval over"], rows)


def _over_runs(policies: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means and intervals over runs, as one run has them over episodes."""
    numbers: dict[str, float | None] = {}
    for key in ("return", "score"):
        values = [policy[key] for policy in policies if policy[key] is not None]
        interval = mean_interval(np.array(values)) if values else (math.nan, math.nan, math.nan)
        numbers |= zip((key, f"{key}_low", f"{key}_high"), map(_known, interval), strict=True)
    return numbers


def _differences_table(methods: Iterable[Method]) -> str:
    rows = [[method.letter, ", ".join(f"`{k}={x}`" for k, x in method.differs.items()) or "-"] for method in methods]
    return _markdown(["method", "options that are not the same in all"], rows)


def _runs_table(runs: Iterable[RunFolder], methods: Sequence[Method]) -> str:
    letters = {id(run): method.letter for method in methods for run in method.runs}
    rows = []
    for run in runs:
        policies = run.results["policies"] if run.results is not None else {}
        scores = [f"{name} {_cell(policies[name], 'score', digits=3)}" for name in policies if not _is_fixed(name)]
        seed = str(run.config.get("seed", "-"))
        found = ", ".join(f"`{_short(key, x)}`" for key, x in run.found.items())
        rows.append(
            [str(run.path), letters.get(id(run), "-"), seed, run.state, "<br>".join(scores) or "-", found or "-"]
        )
    return _markdown(["run", "method", "seed", "state", "scores", "what auto came to"], rows)


def _draw_comparison(methods: Sequence[Method], path: Path) -> bool:
    """Evaluated returns against environment steps, one panel per task; False if there is nothing to draw."""
    panels: dict[str, list[Method]] = {}
    for method in methods:
        panels.setdefault(method.runs[0].task, []).append(method)
    panels = {task: here for task, here in panels.items() if any(method.curves for method in here)}
    if not panels:
        return False
    figure, axes = _figure(len(panels), row_height=4.5)
    lines, labels = [], []
    for ax, here in zip(axes, panels.values(), strict=True):
        episodes = _curve_episodes([line for method in here for run in method.runs for line in run.lines])
        for method in here:
            line = _draw_method(ax, method, f"C{methods.index(method)}", episodes)
            if line is not None:
                lines.append(line)
                count = len(method.curves or method.own_results)
                labels.append(f"{method.label} ({count} {'run' if count == 1 else 'runs'})")
        experts = [results["policies"].get("expert") for method in here for results in method.results]
        if any(experts):  # not random: far below, it would press the curves together
            _draw_references(ax, {"expert": next(filter(None, experts))}, episodes)
        drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in ax.lines])
        low, high = np.nanmin(drawn), np.nanmax(drawn)
        margin = 0.1 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)  # of lines alone: the interval of two runs would press them together
        _dress(ax, f"{here[0].runs[0].env_name}: return per agent and episode", "env_steps")
    figure.legend(lines, labels, loc="outside lower left", frameon=False, ncols=min(len(panels), 3))
    figure.savefig(path)
    return True


def _draw_method(ax: Axes, method: Method, colour: str, episodes: int | None) -> Line2D | None:
    """A thin line per run and, of several, their mean with its interval as far as all of them go; returns the last.

    Who only cloned has no curve: a dotted line says what it came to at the end, on the first ``episodes``, from which
    the curves' points come. None where there is nothing yet.
    """
    curves = method.curves
    if not curves:
        ends = [policy["returns"][:episodes] for policy in method.own_results]
        return ax.axhline(float(np.mean(ends)), color=colour, linestyle=":", linewidth=2) if ends else None
    for x, y in curves:
        ax.plot(x, y, color=colour, linewidth=0.8, alpha=0.6)
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]).clip(start, end))
    at_grid = np.array([np.interp(grid, x, y) for x, y in curves])  # [runs, points]
    low, high = np.array([mean_interval(values)[1:] for values in at_grid.T]).T
    ax.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
    (mean,) = ax.plot(grid, at_grid.mean(0), color=colour, linewidth=2, marker="o" if len(grid) == 1 else None)
    return mean


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m magail.report", description="Compare run folders.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run, or of a sweep")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    options = parser.parse_args(argv)
    with one_clear_message():
        print(compare(options.run_dirs, options.output))


if __name__ == "__main__":
    main()
