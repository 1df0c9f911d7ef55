"""Where the time of a training loop goes: `magail.train.train` itself, run short, with a clock around its parts."""

from __future__ import annotations

import functools
import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

import magail.train
from magail.config import build
from magail.discriminators.discriminator import Discriminator
from magail.evaluate import Evaluator
from magail.generators.ppo import PPO
from magail.policy import RandomPolicy
from magail.record import record
from magail.run import Run

PLACES: dict[str, tuple[Any, str]] = {  # which call of the loop each part is
    "rollout": (magail.train, "collect"),
    "discriminator": (Discriminator, "update"),
    "generator": (PPO, "update"),
}
PARTS = (*PLACES, "rest")
BRIEF = [
    "bc.steps=1",
    "logger.mode=disabled",
    "env.expert=null",
    "env.mpe2.num_envs=1",
    "env.mpe2.workers=0",
    "evaluation.every=1000000",
    "evaluation.episodes=2",
    "evaluation.final_episodes=2",
    "evaluation.video_episodes=0",
]
WARM_UP = 2  # iterations that are not counted


@dataclass
class Loop:
    """Seconds of each iteration of a loop."""

    steps: int  # environment steps an iteration, all agents of each
    agents: int
    seconds: list[dict[str, float]]  # by part; also what was measured inside of parts

    @property
    def iteration(self) -> float:
        """Median seconds of an iteration."""
        return statistics.median(sum(part[name] for name in PARTS) for part in self.seconds)

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.iteration

    def part(self, name: str) -> float:
        """Median seconds of a part."""
        return statistics.median(part[name] for part in self.seconds)


def composed(*overrides: str) -> DictConfig:
    """The configuration of ``python -m magail.train *overrides``."""
    with initialize_config_module("magail_conf", version_base="1.3"):
        return compose("config", list(overrides))


def measure_loop(
    overrides: Sequence[str], iterations: int, inside: Callable[[Clock], AbstractContextManager[object]] | None = None
) -> Loop:
    """Train for ``iterations`` (those that are counted), imitating random demonstrations.

    ``inside`` gives a context in which more is timed with the clock.
    """
    clock, marks = Clock(), []

    def mark() -> None:
        marks.append((time.perf_counter(), dict(clock.seconds)))

    with ExitStack() as stack:
        for part, (owner, name) in PLACES.items():
            stack.enter_context(wrapped(owner, name, functools.partial(clock.timed, part)))
        # that of the last iteration does not count
        stack.enter_context(wrapped(Evaluator, "learning_curve", lambda f: lambda *arguments: {}))
        stack.enter_context(wrapped(Run, "end_iteration", lambda f: _then(f, mark)))
        stack.enter_context(inside(clock) if inside else nullcontext())
        cfg = train_briefly(overrides, WARM_UP + iterations)
    seconds = []
    for (start, before), (end, after) in zip(marks[WARM_UP - 1 :], marks[WARM_UP:], strict=False):
        parts = {name: after[name] - before.get(name, 0.0) for name in after}
        parts["rest"] = end - start - sum(parts.get(name, 0.0) for name in PARTS)
        seconds.append(dict.fromkeys(PARTS, 0.0) | parts)
    return Loop(cfg.rollout_steps * cfg.env.train.num_envs, cfg.env.arguments.N, seconds)


def train_briefly(overrides: Sequence[str], iterations: int) -> DictConfig:
    """Run `magail.train.train` in a folder that is thrown away; the configuration that it had."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.npz"
        imitate = [] if "algorithm=rl" in overrides else [f"demonstrations.path={path}"]
        cfg = composed(*BRIEF, f"iterations={iterations}", *imitate, *overrides)
        env = build(cfg.env.batched, num_envs=50, device="cpu")
        record(env, RandomPolicy(env.groups), range(50), torch.Generator().manual_seed(0), {}).save(path)
        with redirect_stdout(io.StringIO()):
            magail.train.train(cfg, Path(folder))
    return cfg


class Clock:
    """Adds up the seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with its time added to ``name``."""

        @functools.wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return run


def _then(function: Callable[..., Any], afterwards: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        afterwards()
        return result

    return run


def wrapped(owner: Any, name: str, wrap: Callable[[Any], Any]) -> AbstractContextManager[object]:
    """A context in which ``owner.name`` is what ``wrap`` makes of it."""
    return mock.patch.object(owner, name, wrap(getattr(owner, name)))
