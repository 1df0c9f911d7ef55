"""What a run's configuration must look like, and how its parts are built."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from magail.ranges import check_cloning, check_range, check_types

CONFIG, FOUND = "config.yaml", "found.json"  # of a run, in its folder; the second: what options that were auto came to


@dataclass
class DemonstrationsConfig:
    path: str | None
    count: int
    every: int
    held_out: float
    most_likely: bool


@dataclass
class CloningConfig:
    steps: Any  # an integer, or auto
    batch_size: int
    learning_rate: Any  # a number, or auto
    weight_decay: Any  # a number, or auto
    evaluate_every: int
    coefficient: float


@dataclass
class RewardConfig:
    checkpoint: str | None
    shaping: bool | None


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
    threads: int | None
    device: str
    compile: bool
    matmul_precision: str
    iterations: int
    rollout_steps: int
    start_from_demonstrations: float
    symmetries: Any  # auto, true, false or a number
    initial_policy: dict[str, str] | None
    opponents: dict[str, Any] | None  # of sources, or lists of them
    demonstrations: DemonstrationsConfig
    reward: RewardConfig
    bc: CloningConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    env: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class JudgingConfig:
    final_episodes: int
    seed: int
    most_likely: bool


@dataclass
class EvaluateConfig:
    """The keys of conf/evaluate.yaml."""

    checkpoint: Any  # a source, or a list of them
    opponents: dict[str, Any] | None
    evaluation: JudgingConfig
    env: dict[str, Any]


@dataclass
class RecordConfig:
    """The keys of conf/record.yaml, but for ``from``, which cannot be a name in Python."""

    checkpoint: Any  # a source, or a list of them
    episodes: int
    seed: int
    most_likely: bool
    output: str
    env: dict[str, Any]
    to: dict[str, Any]


MOST = 10**9  # of a seed: the reset seeds that are counted from it fit an integer
AT_LEAST_0 = (
    "iterations",
    "demonstrations.count",
    "bc.coefficient",
    "evaluation.video_episodes",
)
AT_LEAST_1 = (
    "rollout_steps",
    "demonstrations.every",
    "bc.batch_size",
    "bc.evaluate_every",
    "evaluation.every",
    "checkpoint.every",
    "checkpoint.keep",
)


MATMUL_PRECISIONS = ("highest", "high", "medium")  # torch's names


def conform(cfg: DictConfig, schema: type) -> None:
    """Give the values of ``cfg`` the types of ``schema``, a dataclass: ``no`` becomes False where a bool is asked for.

    Raises:
        ValueError: an unknown key, a missing one, or a value of the wrong type.
    """
    try:
        given = plain(cfg)
        typed = OmegaConf.merge(OmegaConf.structured(schema), given)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(
            f"the configuration does not fit: {where}{str(error).splitlines()[0]}; conf/ explains every key"
        ) from error
    if missing := [key.name for key in fields(schema) if key.name not in given]:
        raise ValueError(f"the configuration has no {missing[0]}: it is of another version of magail; begin anew")
    _take(cfg, cast(DictConfig, typed))
    if absent := {"name", "expert", "train", "evaluate", "symmetries", "conventions"} - cfg.env.keys():
        raise ValueError(
            f"env has no {min(absent)}: begin its file with `defaults: [pettingzoo]` (conf/env/pettingzoo.yaml), "
            "which has all keys, and set those that differ"
        )


def _take(cfg: DictConfig, typed: DictConfig) -> None:
    for key in map(str, typed):
        kind = OmegaConf.get_type(typed, key)
        if is_dataclass(kind):
            _take(cfg[key], typed[key])
        elif kind is not dict:  # of parts their own annotations are asked
            cfg[key] = typed[key]


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be trained, before anything is built; what is left has the types of `TrainConfig`.

    Raises:
        ValueError: an unknown key, a value of the wrong type or out of range, or a combination that makes no sense.
    """
    conform(cfg, TrainConfig)
    check_range({"seed": cfg.seed, "evaluation.seed": cfg.evaluation.seed}, 0, MOST)
    select = functools.partial(OmegaConf.select, cfg)
    numbers = {key: select(key) for key in AT_LEAST_0 + AT_LEAST_1}
    check_range({key: numbers[key] for key in AT_LEAST_0}, 0)
    check_range({key: numbers[key] for key in AT_LEAST_1}, 1)
    check_cloning(cfg.bc.steps, cfg.bc.learning_rate, cfg.bc.weight_decay)
    if cfg.threads is not None:
        check_range({"threads": cfg.threads}, 1)
    check_range({"evaluation.episodes": cfg.evaluation.episodes}, 2)
    check_range({"evaluation.final_episodes": cfg.evaluation.final_episodes}, 2)
    check_range({"start_from_demonstrations": cfg.start_from_demonstrations}, 0, 1)
    check_range({"demonstrations.held_out": cfg.demonstrations.held_out}, 0, 0.9)
    for group, source in (cfg.initial_policy or {}).items():
        if not isinstance(source, str):  # OmegaConf merges a list where its schema has a string
            raise ValueError(
                f"initial_policy: {group} begins with one policy; name a run folder, .pt or .safetensors, not {source}"
            )
    for part in (cfg.env.train, cfg.env.evaluate, cfg.generator, cfg.discriminator):
        _part(part)
    imitation = not cfg.discriminator._target_.endswith(("EnvironmentReward", "LearnedReward"))
    if imitation and cfg.iterations and not cfg.demonstrations.count:
        raise ValueError(
            "imitation needs demonstrations: set demonstrations.count, or train on the environment's reward with "
            "algorithm=rl"
        )
    if cfg.algorithm == "bc" and cfg.iterations:
        raise ValueError(
            f"algorithm=bc is cloning alone and has no iterations: leave iterations={cfg.iterations} out, or choose "
            "algorithm=magail, which clones first"
        )
    if cfg.algorithm == "rl" and imitation:
        raise ValueError(
            "algorithm=rl trains on the environment's reward and has no other discriminator; leave discriminator out, "
            "or choose algorithm=magail"
        )
    if cfg.start_from_demonstrations > 0 and not cfg.demonstrations.count:
        raise ValueError("start_from_demonstrations needs demonstrations: set demonstrations.count, or set it to 0")
    if cfg.demonstrations.path is not None and not cfg.demonstrations.count:
        raise ValueError(
            f"demonstrations.path={cfg.demonstrations.path} is not read with demonstrations.count=0: leave one out"
        )
    if cfg.reward.checkpoint is not None and not cfg.discriminator._target_.endswith("LearnedReward"):
        raise ValueError("reward.checkpoint is not read without reward=learned: add that, or leave it out")
    asks_policy = select("discriminator.airl_discount") is not None or "ZeroSum" in str(select("discriminator.prior"))
    if select("generator.policy.recurrent") and asks_policy:
        raise ValueError(
            "AIRL and the zero-sum prior ask the policy about lone steps, but a recurrent one acts on all that it saw: "
            "set generator.policy.recurrent=0, or choose another discriminator"
        )
    if cfg.demonstrations.every > 1 and (
        select("generator.policy.recurrent") or select("generator.n_step", default=1) > 1
    ):
        raise ValueError(
            f"demonstrations.every={cfg.demonstrations.every} leaves steps that do not follow each other, but "
            "recurrent policies and n-step returns need whole episodes: set generator.policy.recurrent=0 or "
            "generator.n_step=1, or demonstrations.every=1"
        )
    no_discriminator = cfg.discriminator._target_.endswith("NoDiscriminator")
    if not no_discriminator and cfg.generator._target_.endswith((".IQLearn", ".DAgger")):
        raise ValueError(
            f"algorithm={cfg.algorithm} rewards its generator, but this one learns without rewards: choose "
            "algorithm=iq or dagger, or another generator"
        )
    demonstrated = select("generator.expert_fraction", default=0) * select("generator.batch_size", default=0)
    unrewarded = no_discriminator and (select("generator.expert_reward") is None or round(demonstrated) == 0)
    if unrewarded and cfg.generator._target_.endswith((".PPO", ".TRPO", ".MACK", ".SAC")):
        raise ValueError(
            "discriminator=none rewards nothing, so this generator has nothing to learn from: choose a discriminator, "
            "or algorithm=sqil, iq or dagger, which do without one"
        )
    if select("discriminator.absorbing") is False and select("generator.absorbing"):
        raise ValueError(
            "generator.absorbing=true rewards what follows on terminations, which discriminator.absorbing=false never "
            "learned: leave generator.absorbing out"
        )
    if cfg.matmul_precision not in MATMUL_PRECISIONS:
        raise ValueError(f"matmul_precision={cfg.matmul_precision} must be one of {', '.join(MATMUL_PRECISIONS)}")
    if not isinstance(cfg.symmetries, int) and cfg.symmetries != "auto":
        raise ValueError(f"symmetries={cfg.symmetries} must be auto, true, false or the number of a convention")
    if cfg.symmetries is not False and cfg.symmetries != "auto" and select("env.symmetries") is None:
        raise ValueError(
            f"symmetries={cfg.symmetries}, but env.symmetries of {cfg.env.name} names none: leave symmetries=auto"
        )
    if cfg.checkpoint.best_is not in ("min", "max"):
        raise ValueError(f"checkpoint.best_is={cfg.checkpoint.best_is} must be min or max")


def read_config(run_dir: Path) -> DictConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = run_dir / CONFIG
    try:
        cfg = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ValueError(f"{run_dir}: no run there (no {CONFIG}); give the folder that the run printed") from error
    except Exception as error:  # over damaged files yaml raises a dozen types
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not cfg or not isinstance(cfg, DictConfig):
        raise ValueError(f"{path}: not a run's configuration")
    return cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """As Python's own containers, resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{dotted key: value}`` of nested dictionaries."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def build(cfg: DictConfig, **objects: Any) -> Any:
    """Make what ``cfg._target_`` names, from the rest of ``cfg`` and from ``objects``.

    Raises:
        ValueError: a key that must be set is not, one is set that nobody asked for or is of the wrong type, or what is
            made finds its arguments wrong.
    """
    make = _part(cfg)
    try:
        inspect.signature(make.func).bind(*make.args, **make.keywords | objects)
    except TypeError as error:
        raise ValueError(
            f"{make.func.__name__}: {error}: something chosen here, an experiment perhaps, was written for another; "
            "leave such an option out by name (~generator.epochs, for one), or choose what has it"
        ) from error
    return make(**objects)


def _part(cfg: DictConfig) -> functools.partial[Any]:
    """What ``cfg._target_`` names with the rest of ``cfg``, of which each has the right type."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(
            f"there is no value for {', '.join(missing)}: give one on the command line (the file in conf/ that has the "
            "key says what it means)"
        )
    make: functools.partial[Any] = instantiate(cfg, _partial_=True, _convert_="all")
    check_types(make.func, make.keywords)
    return make


@contextmanager
def one_clear_message() -> Iterator[None]:
    """End the program with a user's mistake (`ValueError`, or a file that cannot be read or written) as its message.

    HYDRA_FULL_ERROR=1 shows all of it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")
