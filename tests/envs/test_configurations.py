"""Every environment that ships as a YAML, built the way a user gets it."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from magail_envs.pettingzoo import PettingZooEnv
from tests.envs.playing import play

torch.set_num_threads(1)
CONF = Path(__file__).parents[2] / "conf"
BASES = ("pettingzoo", "particle")
NAMES = sorted(path.stem for path in (CONF / "env").glob("*.yaml") if path.stem not in BASES)
SPARE = {"_target_"}


def load(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+env={name}", *overrides]).env


def build(node: DictConfig, **arguments: object) -> PettingZooEnv:
    return instantiate(node, _convert_="all", **arguments)


def test_the_base_has_the_keys_of_the_class() -> None:
    parameters = set(inspect.signature(PettingZooEnv).parameters)
    base = OmegaConf.load(CONF / "env/pettingzoo.yaml")
    assert set(base.evaluate) - SPARE == parameters
    assert set(base.train) == set(base.evaluate)
    defaults = {name: p.default for name, p in inspect.signature(PettingZooEnv).parameters.items()}
    assert base.evaluate.step_timeout == defaults["step_timeout"]


def test_every_key_has_a_comment() -> None:
    for name in (*NAMES, *BASES):
        for line in (CONF / f"env/{name}.yaml").read_text().splitlines():
            key, _, value = line.strip().partition(": ")
            if value and "#" not in line and not value.startswith("${"):
                assert key in ("name", "constructor", "id", "expert", "_target_"), f"{name}.yaml: {line}"


@pytest.mark.parametrize("what", ["train", "evaluate"])
@pytest.mark.parametrize("name", NAMES)
def test_builds_and_steps(name: str, what: str) -> None:
    cfg = load(name)
    assert cfg.name == name
    node = cfg[what]
    assert set(node) <= set(inspect.signature(get_class(node._target_)).parameters) | SPARE
    env = build(node, num_envs=2, **({"workers": 0} if "workers" in node else {}))
    assert env.name == name
    env.reset(itertools.count())
    dones = 0
    for step, obs, mask in play(env, 30):
        for group in env.groups:
            assert obs[group.name].shape == (2, group.num_agents, group.obs_dim)
            assert obs[group.name].isfinite().all()
            assert step.next_obs[group.name].isfinite().all()
            assert mask[group.name].shape == step.reward[group.name].shape == (2, group.num_agents)
        dones += int(step.done.sum())
    if name.startswith("simple"):
        assert dones == 2  # 25 steps each
    env.close()


def test_a_fallen_walker_ends_the_episode_for_all() -> None:
    env = build(load("multiwalker").evaluate, num_envs=2, workers=0)
    env.reset(itertools.count())
    steps = [step for step, _, _ in play(env, 150)]
    ends = [step for step in steps if step.done.any()]
    assert ends
    for step in steps:
        assert torch.equal(step.terminated["walker"].all(-1), step.done)
        assert torch.equal(step.terminated["walker"].any(-1), step.done)
    env.close()


def test_knights_and_archers_die_alone() -> None:
    cfg = load("knights_archers_zombies", "env.evaluate.arguments.spawn_delay=2")
    env = build(cfg.evaluate, num_envs=4, workers=0)
    env.reset(itertools.count())
    fights_on = 0
    alive = env.mask
    for step, obs, mask in play(env, 200):
        for name in mask:
            died = step.terminated[name] & ~step.done[:, None]
            fights_on += int(died.sum())
            assert step.next_obs[name][died].ne(0).any(-1).all()
            assert not mask[name][died].any()
            assert not step.terminated[name][~alive[name]].any()
            assert obs[name][~mask[name]].eq(0).all()
        alive = mask
    assert fights_on > 2
    env.close()


def test_knights_begin_the_same_episode_from_the_same_seed() -> None:
    """Without ``rebuild`` the second of two equal episodes differs."""

    def episodes(rebuild: bool) -> list[torch.Tensor]:
        cfg = load("knights_archers_zombies", "env.evaluate.arguments.max_cycles=50")
        env = build(cfg.evaluate, num_envs=1, workers=0, rebuild=rebuild)
        env.reset(itertools.repeat(3))
        return [torch.stack([obs["archer"] for _, obs, _ in play(env, 50)]) for _ in range(2)]

    one, two = episodes(rebuild=True)
    assert torch.equal(one, two)
    one, two = episodes(rebuild=False)
    assert not torch.equal(one, two)


def test_keys_can_be_overridden_apart() -> None:
    cfg = load("pursuit", "env.evaluate.num_envs=3", "env.train.workers=1", "env.evaluate.arguments.max_cycles=7")
    assert (cfg.evaluate.num_envs, cfg.evaluate.workers) == (3, 2)
    assert (cfg.train.num_envs, cfg.train.workers) == (3, 1)
    assert cfg.train.arguments.max_cycles == 7
    env = build(load("pursuit", "env.train.num_envs=4").train)
    assert env.num_envs == 4
    env.reset(itertools.count())
    list(play(env, 3))
    env.close()


def test_an_environment_of_ones_own_from_the_command_line() -> None:
    cfg = load(
        "pettingzoo",
        "env.name=mine",
        "env.evaluate.constructor=tests.envs.toy.Scripted",
        "+env.evaluate.arguments.steps=5",
        "env.evaluate.wrappers=[{constructor: supersuit.clip_reward_v0, arguments: {lower_bound: 0, upper_bound: 2}}]",
    )
    env = build(cfg.train, num_envs=2)
    env.reset(itertools.count())
    rewards = [step.reward["bee"].max().item() for step, _, _ in play(env, 5)]
    assert rewards == [2.0] * 5
    env.close()
