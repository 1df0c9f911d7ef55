"""Metrics survive a kill, the display shows them, and W&B never ends a training."""

import inspect
import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from magail.logger import Display, Logger, read_metrics

CONF = Path(__file__).parents[1] / "conf"


def logger(run_dir: Path, **options: Any) -> Logger:
    return Logger(run_dir, 10, {"seed": 0}, **({"mode": "disabled"} | options))


# --- metrics.jsonl ---


def test_pandas_reads_what_was_logged(tmp_path: Path) -> None:
    with logger(tmp_path / "new" / "folder") as log:
        log.log(0, {"b": 0.5, "a": math.nan, "env_steps": 100})
        log.log(1, {"b": math.inf, "a": np.float32(2.5), "c": torch.tensor(3.0)})
    frame = pd.read_json(tmp_path / "new" / "folder" / "metrics.jsonl", lines=True)
    assert frame.columns.tolist() == ["iteration", "a", "b", "env_steps", "c"]
    assert frame.iteration.tolist() == [0, 1]
    np.testing.assert_array_equal(frame.a, [np.nan, 2.5])
    np.testing.assert_array_equal(frame.b, [0.5, np.nan])
    np.testing.assert_array_equal(frame.c, [np.nan, 3.0])


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    logger(tmp_path).log(0, {"env_steps": 10**10})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 0, "env_steps": 10000000000}\n'


def test_resume_drops_what_came_after_and_a_half_written_line(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log(-1, {"bc/loss": 1.0})
    for iteration in range(4):
        log.log(iteration, {"a": iteration / 3})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 4, "a": 0.')
    log = logger(tmp_path)
    log.resume(2)
    log.log(2, {"a": 7.0})
    lines = read_metrics(tmp_path)
    assert [line["iteration"] for line in lines] == [-1, 0, 1, 2]
    assert [line["a"] for line in lines[1:]] == [0.0, 1 / 3, 7.0]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_before_anything_was_logged(tmp_path: Path) -> None:
    logger(tmp_path).resume(0)
    assert read_metrics(tmp_path) == []


def test_resume_at_the_start_drops_the_cloning_too(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log(-1, {"bc/loss": 1.0})
    log.resume(-1)
    assert read_metrics(tmp_path) == []


def test_a_killed_writer_leaves_a_log_that_resumes(tmp_path: Path) -> None:
    code = (
        "import itertools; from magail.logger import Logger\n"
        f"log = Logger({str(tmp_path)!r}, 10**9, {{}}, mode='disabled')\n"
        "for i in itertools.count(): log.log(i, {f'metric_{k}': k / 7 for k in range(200)})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(read_metrics(tmp_path)) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    lines = read_metrics(tmp_path)
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    logger(tmp_path).resume(15)
    assert len(pd.read_json(tmp_path / "metrics.jsonl", lines=True)) == 15


# --- display ---


def display(terminal: bool, headline: tuple[str, ...] = ("train/return", "eval/return")) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, _environ={})
    return Display(10, headline, console), out


def test_no_terminal_gets_plain_lines_ten_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    view, out = display(terminal=False)
    view.start()
    for iteration in range(10):
        monkeypatch.setattr(time, "monotonic", lambda iteration=iteration: 4.0 * iteration)
        view.update(iteration, {"env_steps": 1000 * (iteration + 1), "train/return": -10.0 - iteration})
    view.stop()
    assert out.getvalue().splitlines() == [
        "1/10  train/return -10.00",
        "4/10  250 steps/s  ETA 0:00:24  train/return -13.00",
        "7/10  250 steps/s  ETA 0:00:12  train/return -16.00",
        "10/10  250 steps/s  ETA 0:00:00  train/return -19.00",
    ]


def test_long_lines_are_not_wrapped_where_there_is_no_terminal() -> None:
    names = tuple(f"a/rather/long/name/{i}" for i in range(20))
    view, out = display(terminal=False, headline=names)
    view.update(0, dict.fromkeys(names, 1.0))
    assert out.getvalue().count("\n") == 1


def test_terminal_shows_progress_pace_and_the_last_known_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    view, out = display(terminal=True)
    view.start()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    view.update(0, {"env_steps": 0, "eval/return": -12.345, "unlisted": 1.0})
    monkeypatch.setattr(time, "monotonic", lambda: 2.0)
    view.update(4, {"env_steps": 8000, "train/return": math.nan})
    view.stop()
    last = out.getvalue()[-400:]
    for part in ("5/10", "4,000 steps/s", "ETA 0:00:02", "eval/return -12.35"):
        assert part in last
    assert "unlisted" not in last
    assert "train/return" not in last


def test_pace_starts_anew_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    view, out = display(terminal=False)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    view.update(0, {"env_steps": 0})
    view.resume(5)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    view.update(5, {"env_steps": 600})
    assert out.getvalue().splitlines()[-1] == "6/10"


# --- Weights & Biases ---


def test_offline_run_is_written_and_resumed_as_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "curves.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "film.gif")
    options = {"mode": "offline", "project": "some-project", "group": "some-group", "tags": ["some-tag"]}
    with logger(tmp_path, **options) as log:
        log.log(0, {"train/return": -11.5, "bad": math.nan})
        log.log_file("curves", tmp_path / "curves.png")
        log.log_file("film", tmp_path / "film.gif")
        log.finish({"final/score": 0.9})
    with logger(tmp_path, **options) as log:
        log.resume(1)
        log.log(1, {"train/return": -11.0})

    run_id = (tmp_path / "wandb_run_id.txt").read_text()
    first, second = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    deadline = time.monotonic() + 10  # wandb's own process may flush a moment after finish() has returned
    while not all(b"train/return" in file.read_bytes() for file in (first, second)) and time.monotonic() < deadline:
        time.sleep(0.05)
    written = first.read_bytes()
    for text in ("some-project", "some-group", "some-tag", "seed", "train/return", "final/score", tmp_path.name):
        assert text.encode() in written
    assert b"train/return" in second.read_bytes()
    assert {path.suffix for path in first.parent.glob("files/media/*/*")} == {".png", ".gif"}
    assert "wandb" not in "".join(capfd.readouterr()).lower()


class FakeWandb:
    """Stands in for the module; records what is sent and fails where told."""

    def __init__(self, fail: str) -> None:
        self.fail = fail
        self.sent: list[dict[str, Any]] = []
        self.url = "https://example.org/run"
        self.summary = SimpleNamespace(update=lambda summary: None)

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def setup(self, settings: dict[str, Any]) -> None: ...

    def init(self, **options: Any) -> "FakeWandb":
        if self.fail == "init":
            raise RuntimeError("no network")
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None: ...

    def log(self, metrics: dict[str, Any]) -> None:
        if self.fail == "log":
            raise BrokenPipeError("the service is gone")
        self.sent.append(metrics)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.mark.parametrize("fail", ["init", "log"])
def test_training_goes_on_when_wandb_fails(
    fail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fail))
    with logger(tmp_path, mode="online") as log:
        log.log(0, {"a": 1.0})
        log.log(1, {"a": 2.0})
        log.log_file("curves", tmp_path / "curves.png")
    assert [line["a"] for line in read_metrics(tmp_path)] == [1.0, 2.0]
    out = capsys.readouterr().out
    assert out.count("W&B is off") == 1
    assert {"init": "no network", "log": "the service is gone"}[fail] in out


def test_what_is_sent_carries_the_iteration_and_a_failed_run_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb("")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log = logger(tmp_path, mode="online")
    log.log(3, {"a": 1.0})
    with pytest.raises(ZeroDivisionError), log:
        1 / 0  # noqa: B018
    assert wandb.sent == [{"iteration": 3, "a": 1.0}]
    assert wandb.exit_code == 1


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from magail.logger import Logger\n"
        f"with Logger({str(tmp_path)!r}, 1, {{}}, mode='disabled') as log: log.log(0, {{}})\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "wandb_run_id.txt").exists()


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offline, online or disabled"):
        logger(tmp_path, mode="on")


# --- configuration ---


def test_yaml_builds_a_logger_and_has_every_option(tmp_path: Path) -> None:
    cfg = OmegaConf.load(CONF / "logger" / "wandb.yaml")
    options = set(inspect.signature(Logger.__init__).parameters) - {"self", "run_dir", "total", "config"}
    assert set(cfg) - {"_target_"} == options
    assert cfg.mode == "offline"
    cfg.mode = "disabled"
    config = {"env": {"_target_": "builtins.print"}}  # a config is data: nothing in it is built
    log = instantiate(cfg, _partial_=True, _convert_="all")(run_dir=tmp_path, total=3, config=config)
    log.log(0, {"a": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"iteration": 0, "a": 1.0}
