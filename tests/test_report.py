"""Results as files and tables, curves of what was logged, and a comparison that copes with unfinished runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from magail.logger import Logger
from magail.report import compare, learning_curves, main, read_results, report_results, results_table, summarize
from magail.statistics import mean_interval, normalized_score

SEEDS = range(100, 140)


def returns(level: float = -11.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    layout = rng.normal(0.0, 2.0, len(SEEDS))
    levels = {"expert": -10.0, "random": -20.0, "bc": -12.0, "magail": level}
    return {name: mean + layout + rng.normal(0.0, 0.3, len(SEEDS)) for name, mean in levels.items()}


def log_run(run_dir: Path, lines: Sequence[tuple[int, dict[str, float]]]) -> None:
    with Logger(run_dir, 10, {}, mode="disabled") as logger:
        for iteration, metrics in lines:
            logger.log(iteration, metrics)


def training(iterations: int = 10) -> list[tuple[int, dict[str, float]]]:
    """Lines as a training writes them: cloning first, evaluations now and then, a divergence in the middle."""
    lines: list[tuple[int, dict[str, float]]] = [(-1, {"bc/step": s, "bc/loss": 1.0 / s}) for s in (50, 100)]
    for i in range(iterations):
        metrics = {
            "env_steps": 100 * (i + 1), "seconds": 2.0 * i, "train/return": -15.0 + i,
            "discriminator/expert_accuracy": 0.6, "discriminator/loss": math.nan if i == 4 else 0.7,
            "generator/reward_mean": 0.1, "generator/reward_std": 0.5, "something/new": 1.0 * i,
        }  # fmt: skip
        if i % 3 == 2:
            metrics |= {"eval/return": -14.0 + i, "eval/return_low": -14.5 + i, "eval/return_high": -13.5 + i}
            metrics |= {"bc/held_out_loss": 0.5}
        lines.append((i, metrics))
    return lines


def make_run(path: Path, level: float | None = -11.0, iterations: int = 10, **options: Any) -> Path:
    """A run folder; unfinished where there is no level."""
    log_run(path, training(iterations))
    base = {"seed": 0, "env": {"name": "simple_spread", "evaluate": {"N": 3}}, "logger": {"name": path.name}}
    OmegaConf.save(OmegaConf.merge(base, options), path / "config.yaml")
    if level is not None:
        report_results(path, summarize(returns(level), SEEDS))
    return path


# --- results of one run ---


def test_results_are_the_statistics_of_the_returns() -> None:
    played = returns()
    results = summarize(played, SEEDS)
    assert results["episodes"] == len(SEEDS)
    assert results["seeds"] == list(SEEDS)
    magail = results["policies"]["magail"]
    assert (magail["return"], magail["return_low"], magail["return_high"]) == mean_interval(played["magail"])
    score = normalized_score(played["magail"], played["expert"], played["random"])
    assert (magail["score"], magail["score_low"], magail["score_high"]) == score
    assert magail["returns"] == played["magail"].tolist()


def test_results_are_written_read_back_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_results(tmp_path) is None
    results = summarize(returns(), SEEDS)
    report_results(tmp_path, results)
    assert read_results(tmp_path) == results
    assert f"{results['policies']['magail']['score']:.3f}" in capsys.readouterr().out


def test_without_an_expert_there_are_returns_but_no_scores(tmp_path: Path) -> None:
    played = {name: x for name, x in returns().items() if name != "expert"}
    results = summarize(played, SEEDS)
    report_results(tmp_path, results)
    assert results["policies"]["magail"]["score"] is None
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN, which is not JSON
    console = Console(width=100, record=True)
    console.print(results_table(results))
    (row,) = [line for line in console.export_text().splitlines() if "magail" in line]
    assert f"{results['policies']['magail']['return']:.2f}" in row
    assert row.rstrip(" │").endswith("-")


def test_policies_judged_on_other_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="random has 3 episodes for 40 seeds"):
        summarize(returns() | {"random": np.zeros(3)}, SEEDS)


# --- curves of one run ---


def drawn_by(monkeypatch: pytest.MonkeyPatch, draw: Any) -> list[Any]:
    """The axes of the figure that `draw` saves."""
    figures: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))
    draw()
    (figure,) = figures
    return figure.axes


def test_curves_are_drawn_against_environment_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    axes = {ax.get_title(loc="left"): ax for ax in drawn_by(monkeypatch, lambda: learning_curves(run))}
    ax = axes["Return per agent and episode"]
    curves = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(curves["training"].get_xdata(), np.arange(100, 1001, 100))
    np.testing.assert_array_equal(curves["evaluation"].get_xdata(), [300, 600, 900])
    np.testing.assert_array_equal(curves["evaluation"].get_ydata(), [-12, -9, -6])
    expert = returns()["expert"].mean()
    assert list(curves[f"expert {expert:.2f}"].get_ydata()) == pytest.approx([expert, expert])
    assert ax.get_xlabel() == "environment steps"


def test_what_diverged_leaves_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_run(tmp_path, training())
    axes = {ax.get_title(loc="left"): ax for ax in drawn_by(monkeypatch, lambda: learning_curves(tmp_path))}
    y = axes["Discriminator loss"].lines[0].get_ydata()
    assert np.flatnonzero(np.isnan(y)).tolist() == [4]


def test_each_metric_gets_a_panel_and_cloning_its_own_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_run(tmp_path, training())
    axes = {ax.get_title(loc="left"): ax for ax in drawn_by(monkeypatch, lambda: learning_curves(tmp_path))}
    assert set(axes) == {
        "Return per agent and episode", "Discriminator accuracy", "Discriminator loss",
        "Reward of the generator, mean ± std", "Behavioural cloning: negative log-likelihood",
        "Held-out negative log-likelihood, imitating", "something/new",
    }  # fmt: skip
    cloning = axes["Behavioural cloning: negative log-likelihood"]
    assert cloning.get_xlabel() == "cloning steps"
    np.testing.assert_array_equal(cloning.lines[0].get_xdata(), [50, 100])
    np.testing.assert_array_equal(
        axes["Held-out negative log-likelihood, imitating"].lines[0].get_xdata(), [300, 600, 900]
    )


def test_an_evaluation_logged_apart_finds_its_environment_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_run(tmp_path, [(0, {"env_steps": 100}), (1, {"env_steps": 200}), (1, {"eval/return": 3.0})])
    (ax,) = drawn_by(monkeypatch, lambda: learning_curves(tmp_path))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [200])


def test_without_environment_steps_the_iteration_is_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_run(tmp_path, [(0, {"discriminator/loss": 1.0}), (1, {"discriminator/loss": 0.5})])
    (ax,) = drawn_by(monkeypatch, lambda: learning_curves(tmp_path))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1])
    assert ax.get_xlabel() == "iteration"


def test_curves_are_a_picture_in_the_run_folder(tmp_path: Path) -> None:
    log_run(tmp_path, training())
    path = learning_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    with Image.open(path) as picture:
        picture.verify()


def test_an_empty_folder_has_no_curves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics"):
        learning_curves(tmp_path)


# --- several runs ---


def rows(markdown: str, first: str) -> list[list[str]]:
    """Cells of the table whose header begins with ``first``."""
    (table,) = [part for part in markdown.split("\n\n") if part.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]


def test_runs_that_differ_in_the_seed_are_one_method(tmp_path: Path) -> None:
    levels = [-11.0, -11.5, -12.0]
    runs = [make_run(tmp_path / f"a{seed}", level, seed=seed, lr=0.1) for seed, level in enumerate(levels)]
    runs.append(make_run(tmp_path / "b", -10.5, seed=7, lr=0.2))
    markdown = compare(runs, tmp_path / "out").read_text()

    scores = [summarize(returns(level), SEEDS)["policies"]["magail"]["score"] for level in levels]
    mean, low, high = mean_interval(np.array(scores))
    table = {(row[0], row[2]): row for row in rows(markdown, "method | environment")}
    assert table["A: lr=0.1", "magail"][3] == f"{mean:.3f} ({low:.3f} to {high:.3f})"
    assert table["A: lr=0.1", "magail"][5] == "3 runs"
    assert table["B: lr=0.2", "magail"][5] == "40 episodes"
    assert [key for key in table if key[1] == "expert"] == [("-", "expert")]  # the same for both methods
    assert [row[1:4] for row in rows(markdown, "run")] == [
        ["A", "0", "finished"], ["A", "1", "finished"], ["A", "2", "finished"], ["B", "7", "finished"],
    ]  # fmt: skip
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        picture.verify()


def test_unfinished_damaged_and_missing_runs_are_listed_as_such(tmp_path: Path) -> None:
    finished, running = make_run(tmp_path / "a"), make_run(tmp_path / "b", None, iterations=4, seed=1)
    with open(running / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 4, "env_st')  # is being written
    begun = tmp_path / "c"
    begun.mkdir()
    OmegaConf.save({"seed": 2, "lr": 1.0}, begun / "config.yaml")
    damaged = make_run(tmp_path / "d", None)
    (damaged / "metrics.jsonl").write_text("{\n")
    runs = [finished, running, begun, damaged, tmp_path / "missing"]
    markdown = compare(runs, tmp_path).read_text()
    assert {Path(row[0]).name: row[3] for row in rows(markdown, "run")} == {
        "a": "finished",
        "b": "unfinished: 4 iterations, 400 environment steps",
        "c": "unfinished: 0 iterations, 0 environment steps",
        "d": f"{damaged}/metrics.jsonl: damaged, or not written by magail (Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1))",
        "missing": "no run in this folder",
    }


def test_what_auto_came_to_makes_no_other_method(tmp_path: Path) -> None:
    """But who asked for it does."""
    runs = [make_run(tmp_path / str(seed), seed=seed, symmetries=seed == 2) for seed in range(4)]
    for run, found in zip(runs[:3], (False, False, True), strict=True):
        (run / "found.json").write_text(json.dumps({"symmetries": found}))
    markdown = compare(runs, tmp_path).read_text()
    assert [(row[1], row[5]) for row in rows(markdown, "run")] == [
        ("A", "`symmetries=False`"), ("A", "`symmetries=False`"), ("A", "`symmetries=True`"), ("B", "-"),
    ]  # fmt: skip


def test_where_there_is_no_run_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no run in .*missing, .*empty: name folders of runs, or of a sweep"):
        compare([tmp_path / "missing", tmp_path / "empty"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_sweeps_folder_stands_for_its_runs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for seed in (10, 2, 0):
        (make_run(sweep / str(seed), seed=seed) / ".hydra").mkdir()
        (sweep / str(seed) / ".hydra/config.yaml").write_text("seed: 0")
    alone = make_run(tmp_path / "alone", seed=7)
    make_run(alone / "within", seed=8)  # a run's folder is a run, whatever is in it
    markdown = compare([sweep, alone], tmp_path).read_text()
    assert [row[1:3] for row in rows(markdown, "run")] == [["A", "0"], ["A", "2"], ["A", "10"], ["A", "7"]]


def test_how_runs_are_made_and_watched_makes_no_other_method(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", threads=1, evaluation={"every": 5}),
        make_run(tmp_path / "b", threads=2, evaluation={"every": 9}, checkpoint={"keep": 3}, device="cuda"),
        make_run(tmp_path / "c", algorithm="bc", threads=1, alpha=3),
    ]
    table = rows(compare(runs, tmp_path).read_text(), "method | environment")
    assert {row[0] for row in table} == {"-", "A", "B: algorithm=bc, alpha=3"}


def test_who_only_cloned_is_a_line_beside_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / "magail", algorithm="magail"), make_run(tmp_path / "bc", algorithm="bc")]
    log_run(tmp_path / "few", [(-1, {"bc/step": 5, "bc/loss": 1.0})])
    (runs[1] / "metrics.jsonl").write_text((tmp_path / "few/metrics.jsonl").read_text())
    (ax,) = drawn_by(monkeypatch, lambda: compare(runs, tmp_path / "out"))
    level = returns()["bc"].mean()
    assert [line.get_linestyle() for line in ax.lines if np.allclose(line.get_ydata(), level)] == [":"]
    entries = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert entries == ["A: algorithm=magail (1 run)", "B: algorithm=bc (1 run)"]


def test_of_a_single_evaluation_the_point_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", iterations=3)
    (ax,) = drawn_by(monkeypatch, lambda: compare([run], tmp_path / "out"))
    assert any(line.get_marker() == "o" and line.get_xdata().tolist() == [300] for line in ax.lines)


def test_what_was_judged_in_seats_has_rows_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a method where the policy is one, of nobody's where it is the expert's or random play's."""
    results = summarize(returns(), SEEDS)
    results["policies"] |= {f"{name} as wolf": x for name, x in summarize(returns(-14.0), SEEDS)["policies"].items()}
    for seed in (0, 1):
        report_results(make_run(tmp_path / str(seed), None, seed=seed), results)
    assert "with the expert in the other seats" in capsys.readouterr().out
    table = {row[2]: row for row in rows(compare([tmp_path], tmp_path).read_text(), "method | environment")}
    assert list(table) == [
        "expert", "random", "expert as wolf", "random as wolf", "bc", "magail", "bc as wolf", "magail as wolf"
    ]  # fmt: skip
    assert [table[name][0] for name in ("random as wolf", "magail as wolf")] == ["-", "A"]
    assert table["magail as wolf"][3].startswith(f"{results['policies']['magail as wolf']['score']:.3f}")
    assert table["magail as wolf"][5] == "2 runs"


def test_each_task_has_its_panel_and_each_method_its_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        make_run(tmp_path / "a0", seed=0),
        make_run(tmp_path / "a1", seed=1, iterations=7),
        make_run(tmp_path / "other", env={"name": "simple_tag"}),
        make_run(tmp_path / "larger", env={"evaluate": {"N": 5}}),
    ]
    axes = drawn_by(monkeypatch, lambda: compare(runs, tmp_path))
    assert [ax.get_title(loc="left").split(":")[0] for ax in axes] == ["simple_spread", "simple_tag", "simple_spread"]
    *each, mean, _expert = axes[0].lines
    assert [line.get_xdata().tolist() for line in each] == [[300, 600, 900], [300, 600]]
    np.testing.assert_array_equal(mean.get_xdata(), [300, 600])  # as far as both go
    np.testing.assert_array_equal(mean.get_ydata(), [-12, -9])


def test_the_choice_of_a_part_names_the_method(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / prior, alpha=alpha, discriminator={"prior": {"_target_": f"magail.priors.{prior}"}})
        for prior, alpha in (("single", 1), ("zero_sum", 2))
    ]
    table = rows(compare(runs, tmp_path).read_text(), "method | environment")
    assert {row[0] for row in table} == {"-", "A: prior=single, alpha=1", "B: prior=zero_sum, alpha=2"}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    main([str(run), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "comparison.md")
