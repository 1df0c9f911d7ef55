"""Where numbers go while training: ``metrics.jsonl`` in the run folder, a live display, and Weights & Biases.

``metrics.jsonl`` is the truth; the display and W&B are views of it, and neither of them can end a training.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from magail.files import parsed, write_whole

METRICS = "metrics.jsonl"
PLAIN_LINE_EVERY = 10.0  # seconds, where there is no terminal to draw a bar on


class Logger:
    """Log of one run. Across processes only the first one has a logger.

    Args:
        run_dir: the run's folder; created if missing.
        total: iterations of the whole run.
        config: the run's configuration, as plain containers, for W&B.
        mode: what goes to W&B: "offline" writes files under ``run_dir/wandb`` and needs neither account nor network.
        project, entity, group, name, tags: W&B's; the name is the run folder's where it is None.
        headline: metrics to show live.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        run_dir: Path | str,
        total: int,
        config: Mapping[str, Any],
        *,
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "magail",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        headline: Sequence[str] = (),
    ) -> None:
        if mode not in ("offline", "online", "disabled"):
            raise ValueError(f"logger.mode is {mode!r}: choose offline, online or disabled")
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.display = Display(total, headline)
        self._iteration = -1
        self._wandb: Any = None
        if mode != "disabled":
            options = {"project": project, "entity": entity, "group": group, "tags": list(tags), "config": dict(config)}
            self._start_wandb(mode=mode, name=name or self.run_dir.resolve().name, **options)
        self.display.start()

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append one line to ``metrics.jsonl`` and show it.

        Args:
            iteration: from 0; -1 for what comes before the loop (behavioural cloning), which `resume` then keeps.
            metrics: numbers by name. What is not finite is written as null, which JSON has and pandas reads as nan.
        """
        self._iteration = iteration
        line = {"iteration": iteration} | {name: _number(metrics[name]) for name in sorted(metrics)}
        with open(self.run_dir / METRICS, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._to_wandb(lambda run: run.log({"iteration": iteration, **metrics}))
        self.display.update(iteration, metrics)

    def resume(self, iteration: int) -> None:
        """Go on from ``iteration``: drop what a killed run logged after the checkpoint that is gone on from.

        W&B keeps those lines: it shows the repeated iterations twice.
        """
        lines = [line for line in read_metrics(self.run_dir) if line["iteration"] < iteration]
        write_whole(self.run_dir / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
        self._iteration = iteration - 1
        self.display.resume(iteration)

    def log_file(self, name: str, path: Path) -> None:
        """Show an image (.png, .jpg) or a video (.gif, .mp4) on W&B."""

        def send(run: Any) -> None:
            import wandb

            media = wandb.Video if path.suffix in (".gif", ".mp4") else wandb.Image
            run.log({"iteration": self._iteration, name: media(str(path))})

        self._to_wandb(send)

    def finish(self, summary: Mapping[str, float] | None = None, exit_code: int = 0) -> None:
        """Stop the display and close the W&B run; a second call does nothing.

        Args:
            summary: numbers of the finished run, e.g. its final score; they head its row on W&B.
            exit_code: other than 0 marks the run as failed on W&B.
        """
        self.display.stop()
        self._to_wandb(lambda run: run.summary.update(dict(summary or {})))
        self._to_wandb(lambda run: run.finish(exit_code=exit_code))
        self._wandb = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def _start_wandb(self, **options: Any) -> None:
        try:
            import wandb

            # before init: only here does silence keep a missing login from asking for a key and waiting for it
            settings = wandb.Settings(silent=True, console="off")
            wandb.setup(settings)
            self._wandb = wandb.init(
                dir=str(self.run_dir), id=self._wandb_id(), resume="allow", settings=settings, **options
            )
            for step, names in (("iteration", "*"), ("bc/step", "bc/loss")):
                self._wandb.define_metric(step)
                self._wandb.define_metric(names, step_metric=step)
        except Exception as error:
            self._without_wandb(error)
        if self._wandb is not None and self._wandb.url:
            self.display.print(f"W&B: {self._wandb.url}")

    def _wandb_id(self) -> str:
        """Kept in the run folder, so that a resumed run goes on with its own W&B run."""
        path = self.run_dir / "wandb_run_id.txt"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text().strip()

    def _to_wandb(self, action: Callable[[Any], Any]) -> None:
        if self._wandb is None:
            return
        try:
            action(self._wandb)
        except Exception as error:
            self._without_wandb(error)

    def _without_wandb(self, error: Exception) -> None:
        self._wandb = None
        self.display.print(
            f"W&B is off for the rest of this run: {error}\n"
            f"Training goes on and everything is in {self.run_dir / METRICS}. For W&B later: "
            "logger.mode=offline needs no network, logger.mode=online needs `wandb login` once."
        )


class Display:
    """How far the run is: a live bar on a terminal, else a plain line now and then.

    It draws when it is told something and has no thread, so that forking environment workers is safe.
    """

    def __init__(self, total: int, headline: Sequence[str], console: Console | None = None) -> None:
        self.total = total
        self.console = console or Console()
        self._headline = dict.fromkeys(headline, math.nan)
        self._env_steps = math.nan
        self._clock: deque[tuple[float, int, float]] = deque(maxlen=20)  # seconds, iterations done, environment steps
        self._printed = -math.inf
        self._bar = _Bar(console=self.console, auto_refresh=False, expand=True)
        self._task = self._bar.add_task("", total=total, pace="", headline="")

    def start(self) -> None:
        if self.console.is_terminal:
            self._bar.start()

    def stop(self) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def print(self, text: str) -> None:
        """A message above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def resume(self, iteration: int) -> None:
        self._clock.clear()
        self._bar.update(self._task, completed=max(iteration, 0), refresh=self.console.is_terminal)

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Show the newest numbers; a line without `env_steps`, as of an evaluation, keeps those of the last one."""
        now, done = time.monotonic(), max(iteration + 1, 0)
        self._env_steps = metrics.get("env_steps", self._env_steps)
        if iteration >= 0:
            self._clock.append((now, done, self._env_steps))
        self._headline |= {name: metrics[name] for name in self._headline if name in metrics}
        headline = "  ".join(f"{name} {x:.2f}" for name, x in self._headline.items() if not math.isnan(x))
        live, pace = self.console.is_terminal, self._pace()
        self._bar.update(self._task, completed=done, pace=pace, headline=headline, refresh=live)
        if not live and (now - self._printed >= PLAIN_LINE_EVERY or iteration + 1 == self.total > 0):
            self._printed = now
            self.print("  ".join(part for part in (f"{done}/{self.total}", pace, headline) if part))

    def _pace(self) -> str:
        """Over the last iterations, so that it follows a machine that slows down."""
        if len(self._clock) < 2:
            return ""
        (then, done_then, steps_then), (now, done, steps) = self._clock[0], self._clock[-1]
        pace = []
        if steps > steps_then:  # False where unknown
            pace.append(f"{(steps - steps_then) / (now - then):,.0f} steps/s")
        if done > done_then:
            left = (self.total - done) * (now - then) / (done - done_then)
            pace.append(f"ETA {timedelta(seconds=round(left))}")
        return "  ".join(pace)


class _Bar(Progress):
    """``━━━━━━  120/500  12,345 steps/s  ETA 0:03:20`` with the headline metrics below."""

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        return BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["headline"])


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, none if it has not begun; what is not finite is None.

    Whoever writes it may be killed in the middle of a line: only what ends in a line break counts.

    Raises:
        ValueError: a line is damaged.
    """
    path = Path(run_dir) / METRICS
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [parsed(line, path) for line in lines]


def _number(value: float) -> float | None:
    """As JSON has it: counts stay whole, arrays of one number become it, what is not finite becomes null."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None
