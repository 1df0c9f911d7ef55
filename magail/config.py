"""What a run's configuration must look like, and how its parts are built."""

from __future__ import annotations

import importlib.resources
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class DemonstrationsConfig:
    path: str | None
    count: int
    held_out: float
    most_likely: bool


@dataclass
class CloningConfig:
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    evaluate_every: int
    coefficient: float


@dataclass
class EvaluationConfig:
    every: int
    episodes: int
    final_episodes: int
    seed: int
    most_likely: bool
    video_episodes: int


@dataclass
class CheckpointConfig:
    every: int
    keep: int
    best: str
    best_is: str


@dataclass
class TrainConfig:
    """The keys of conf/config.yaml, where each is explained; parts with a ``_target_`` answer for their own keys."""

    algorithm: str
    seed: int
    threads: int
    iterations: int
    rollout_steps: int
    start_from_demonstrations: float
    demonstrations: DemonstrationsConfig
    bc: CloningConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    env: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be trained, before anything is built.

    Raises:
        ValueError: an unknown key, a value of the wrong type or out of range, or a combination that makes no sense.
    """
    try:
        OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"the configuration does not fit: {error}; see conf/config.yaml for every key") from error
    at_least = {
        "iterations": 0, "rollout_steps": 1, "threads": 1, "seed": 0, "demonstrations.count": 0, "bc.steps": 0,
        "bc.batch_size": 1, "bc.evaluate_every": 1, "bc.coefficient": 0, "evaluation.every": 1,
        "evaluation.episodes": 2, "evaluation.final_episodes": 2, "evaluation.video_episodes": 0,
        "checkpoint.every": 1, "checkpoint.keep": 1,
    }  # fmt: skip
    for key, least in at_least.items():
        if OmegaConf.select(cfg, key) < least:
            raise ValueError(f"{key}={OmegaConf.select(cfg, key)} must be at least {least}")
    imitation = not cfg.discriminator._target_.endswith("EnvironmentReward")
    if imitation and cfg.iterations and not cfg.demonstrations.count:
        raise ValueError(
            "imitation needs demonstrations: set demonstrations.count, or train on the environment's reward with "
            "algorithm=rl"
        )
    if cfg.algorithm == "rl" and imitation:
        raise ValueError(
            "algorithm=rl trains on the environment's reward and has no other discriminator; leave discriminator out, "
            "or choose algorithm=magail"
        )
    if cfg.start_from_demonstrations > 0 and not cfg.demonstrations.count:
        raise ValueError("start_from_demonstrations needs demonstrations: set demonstrations.count, or set it to 0")
    if cfg.checkpoint.best_is not in ("min", "max"):
        raise ValueError(f"checkpoint.best_is={cfg.checkpoint.best_is} must be min or max")


def build(cfg: DictConfig, **objects: Any) -> Any:
    """Make what ``cfg._target_`` names, from the rest of ``cfg`` and from ``objects``."""
    return instantiate(cfg, _partial_=True, _convert_="all")(**objects)


@contextmanager
def one_clear_message() -> Iterator[None]:
    """End the program with a user's mistake (`ValueError`) as its message; HYDRA_FULL_ERROR=1 shows all of it."""
    try:
        yield
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")


def locate(path: str) -> Path:
    """A path, or ``pkg://package/file`` for a file shipped in an installed package."""
    if not path.startswith("pkg://"):
        return Path(path)
    package, _, name = path.removeprefix("pkg://").partition("/")
    return Path(str(importlib.resources.files(package) / name))
