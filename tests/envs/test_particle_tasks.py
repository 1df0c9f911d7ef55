"""Every batched particle task against mpe2's own, from random states and over whole episodes."""

from __future__ import annotations

import importlib
import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from magail.types import Seeds
from magail_envs.particle.collect_treasure import CollectTreasure
from magail_envs.particle.env import ParticleEnv
from magail_envs.particle.simple import Simple
from magail_envs.particle.simple_adversary import SimpleAdversary
from magail_envs.particle.simple_crypto import SimpleCrypto
from magail_envs.particle.simple_formation import SimpleFormation
from magail_envs.particle.simple_line import SimpleLine
from magail_envs.particle.simple_push import SimplePush
from magail_envs.particle.simple_reference import SimpleReference
from magail_envs.particle.simple_speaker_listener import SimpleSpeakerListener
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.particle.simple_tag import SimpleTag
from magail_envs.particle.simple_world_comm import SimpleWorldComm
from tests.envs.conformance import (
    FOREVER,
    assert_same_by_agent,
    assert_same_state,
    flags,
    for_mpe2,
    random_actions,
    random_state,
    write,
    write_mpe2,
)

torch.set_num_threads(1)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
TASKS: dict[str, tuple[type[ParticleEnv[Any]], list[dict[str, Any]]]] = {  # module of mpe2: class here, arguments
    "simple_v3": (Simple, [{}]),
    "simple_adversary_v3": (
        SimpleAdversary,
        [
            {},
            {"N": 1},
            {"N": 4, "num_agent_neighbors": 2, "num_landmark_neighbors": 3},
            {"N": 2, "num_agent_neighbors": 4, "num_landmark_neighbors": 3},
        ],
    ),
    "simple_push_v3": (SimplePush, [{}]),
    "simple_reference_v3": (SimpleReference, [{}, {"local_ratio": 0.0}, {"local_ratio": 1.0}]),
    "simple_speaker_listener_v4": (SimpleSpeakerListener, [{}]),
    "simple_crypto_v3": (SimpleCrypto, [{}]),
    "simple_spread_v3": (
        SimpleSpread,
        [
            {},
            {"N": 1, "local_ratio": 0.5},
            {"N": 2, "local_ratio": 0.0},
            {"N": 3, "local_ratio": 1.0},
            {"N": 5, "local_ratio": 0.3},
            {"N": 4, "num_agent_neighbors": 2, "num_landmark_neighbors": 3},
            {"N": 3, "num_agent_neighbors": 5, "num_landmark_neighbors": 4},
            {"N": 2, "terminate_on_success": True},
        ],
    ),
    "simple_tag_v3": (
        SimpleTag,
        [
            {},
            {"num_good": 3, "num_adversaries": 2, "num_obstacles": 1, "terminate_on_success": True},
            {"num_good": 1, "num_adversaries": 4, "num_obstacles": 0, "terminate_on_success": True},
            {"num_good": 2, "num_agent_neighbors": 3, "num_landmark_neighbors": 1},
            {"num_good": 1, "num_adversaries": 2, "num_agent_neighbors": 4, "num_landmark_neighbors": 3},
            {"num_good": 0, "num_adversaries": 1, "num_agent_neighbors": 1},
            {"num_good": 2, "num_adversaries": 0, "terminate_on_success": True},
            {"num_good": 2, "curriculum": True},
        ],
    ),
    "simple_line_v1": (
        SimpleLine,
        [{}, {"N": 1, "terminate_on_success": True}, {"N": 2, "terminate_on_success": True}, {"N": 6}, {"N": 9}],
    ),
    "simple_formation_v1": (
        SimpleFormation,
        [{}, {"N": 1, "terminate_on_success": True}, {"N": 2, "terminate_on_success": True}, {"N": 6}, {"N": 9}],
    ),
    "simple_world_comm_v3": (
        SimpleWorldComm,
        [
            {},
            {"num_good": 1, "num_adversaries": 1, "num_food": 1, "num_forests": 0, "num_obstacles": 0},
            {"num_good": 4, "num_adversaries": 2, "num_food": 3, "num_forests": 4, "num_obstacles": 2},
            {"num_good": 1, "num_adversaries": 3, "num_forests": 1},
        ],
    ),
    "collect_treasure_v1": (
        CollectTreasure,
        [
            {},
            {"num_collectors": 1, "num_deposits": 1, "num_treasures": 1},
            {"num_collectors": 3, "num_deposits": 6, "num_treasures": 2},
            {"num_collectors": 2, "num_deposits": 3, "num_treasures": 7},
        ],
    ),
}
CASES = [(task, arguments) for task, (_, variants) in TASKS.items() for arguments in variants]
IDS = [f"{task}-{','.join(f'{key}={value}' for key, value in arguments.items())}" for task, arguments in CASES]
each_task = pytest.mark.parametrize("task", TASKS)
each_case = pytest.mark.parametrize(("task", "arguments"), CASES, ids=IDS)
discrete_and_continuous = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])


def make(task: str, num_envs: int, dtype: str = "float64", device: str = "cpu", **arguments: Any) -> ParticleEnv[Any]:
    return TASKS[task][0](task, arguments, num_envs, device, dtype)


def make_mpe2(task: str, **arguments: Any) -> Any:
    return importlib.import_module(f"mpe2.{task}").parallel_env(**arguments)


@pytest.mark.parametrize("device", DEVICES)
@discrete_and_continuous
@each_case
def test_one_step_from_any_state_is_mpe2s(task: str, arguments: dict[str, Any], continuous: bool, device: str) -> None:
    """Positions and velocities are random; what else an episode has (a goal, say) is what its seed draws."""
    copies, rng = 200, np.random.default_rng(3)
    arguments = {**arguments, "continuous_actions": continuous, "max_cycles": FOREVER}
    env, truth = make(task, copies, device=device, **arguments), make_mpe2(task, **arguments)
    env.reset(iter(range(100_000)))
    movable = np.array([agent.movable for agent in env.world.agents])[:, None, None]
    pos, vel = random_state(rng, env.state["pos"].shape[0], env.state["vel"].shape[0], copies)
    vel *= movable
    write(env, pos, vel)
    actions = random_actions(rng, env)
    step = env.step(actions)
    for copy in range(copies):
        truth.reset(seed=copy)
        world = truth.unwrapped.world
        write_mpe2(world, pos[..., copy], vel[..., copy])
        obs, reward, terminated, truncated, _ = truth.step(for_mpe2(env, actions, copy))
        assert_same_by_agent(env, step.next_obs, copy, obs, 1e-6)
        assert_same_by_agent(env, step.reward, copy, reward, 1e-6)
        assert flags(env, step.terminated, copy) == terminated
        assert flags(env, step.truncated, copy) == truncated
        if not step.done[copy]:
            assert_same_state(env, copy, world)


@each_case
def test_names_and_spaces_are_mpe2s(task: str, arguments: dict[str, Any]) -> None:
    for continuous in (False, True):
        env = make(task, 2, continuous_actions=continuous, **arguments)
        truth = make_mpe2(task, continuous_actions=continuous, **arguments)
        assert [agent for group in env.groups for agent in group.agents] == truth.possible_agents
        for group in env.groups:
            for agent in group.agents:
                assert group.action_space == truth.action_space(agent)
                assert group.observation_space == truth.observation_space(agent)


@discrete_and_continuous
@each_case
def test_whole_episodes_are_mpe2s(task: str, arguments: dict[str, Any], continuous: bool) -> None:
    """Two episodes in each copy, from seeds alone; float32 stays near."""
    copies, seeds, max_cycles = 16, range(1000, 1200), 12
    arguments = {**arguments, "continuous_actions": continuous, "max_cycles": max_cycles}
    env, single = make(task, copies, **arguments), make(task, copies, "float32", **arguments)
    env.reset(iter(seeds))
    single.reset(iter(seeds))
    truths, returns = [make_mpe2(task, **arguments) for _ in range(copies)], [0.0] * copies
    next_seed = copies
    for copy, truth in enumerate(truths):
        obs, _ = truth.reset(seed=seeds[copy])
        assert_same_by_agent(env, env.obs, copy, obs, 1e-6)
        assert_same_state(env, copy, truth.unwrapped.world)
    rng, far = np.random.default_rng(5), []
    for _ in range(2 * max_cycles):
        actions = random_actions(rng, env)
        step, rounded = env.step(actions), single.step(actions)
        for copy, truth in enumerate(truths):
            obs, reward, terminated, truncated, _ = truth.step(for_mpe2(env, actions, copy))
            returns[copy] += sum(reward.values())
            assert_same_by_agent(env, step.next_obs, copy, obs, 1e-6)
            assert_same_by_agent(env, step.reward, copy, reward, 1e-6)
            assert flags(env, step.terminated, copy) == terminated
            assert flags(env, step.truncated, copy) == truncated
            for group in env.groups:
                theirs = np.stack([obs[agent] for agent in group.agents])
                far.append(np.abs(rounded.next_obs[group.name][copy].numpy() - theirs).max())
            if not truth.agents:
                total = sum(float(value[copy].sum()) for value in step.episode_return.values())
                assert total == pytest.approx(returns[copy], rel=1e-5, abs=1e-4)
                obs, _ = truth.reset(seed=seeds[next_seed])
                assert_same_by_agent(env, env.obs, copy, obs, 1e-6)
                next_seed, returns[copy] = next_seed + 1, 0.0
    assert next_seed >= 3 * copies
    assert np.quantile(far, 0.99) < 1e-3  # float32 may fall on the other side of a collision now and then


@discrete_and_continuous
@each_task
def test_saved_state_goes_on_bit_for_bit(task: str, continuous: bool) -> None:
    arguments: dict[str, Any] = {"continuous_actions": continuous, "max_cycles": 9}
    rng = np.random.default_rng(7)
    env, seeds = make(task, 16, "float32", **arguments), Seeds(8)
    env.reset(seeds)
    for _ in range(11):
        env.step(random_actions(rng, env))
    saved, seeds_then, file = env.state_dict(), seeds.state_dict(), io.BytesIO()
    actions = random_actions(rng, env)
    env.step(actions)  # which must leave what was saved alone
    torch.save(saved, file)
    file.seek(0)
    other, other_seeds = make(task, 16, "float32", **arguments), Seeds(0)
    other_seeds.load_state_dict(seeds_then)
    other.load_state_dict(torch.load(file, weights_only=True), other_seeds)
    other.step(actions)
    for _ in range(30):
        actions = random_actions(rng, env)
        a, b = env.step(actions), other.step(actions)
        assert torch.equal(a.episode_seed, b.episode_seed)
        for group in env.groups:
            for name in ("next_obs", "reward", "terminated", "truncated", "episode_return"):
                assert torch.equal(getattr(a, name)[group.name], getattr(b, name)[group.name]), name
            assert torch.equal(env.obs[group.name], other.obs[group.name])


@each_task
def test_compiled_steps_are_the_same(task: str) -> None:
    torch.compiler.reset()
    copies, arguments = 16, {"max_cycles": 9}
    env, compiled = make(task, copies, **arguments), make(task, copies, **arguments)
    compiled.compile()
    env.reset(itertools.count(3))
    compiled.reset(itertools.count(3))
    rng = np.random.default_rng(6)
    for _ in range(20):
        actions = random_actions(rng, env)
        a, b = env.step(actions), compiled.step(actions)
        for name, value in env.state.items():
            assert torch.allclose(value, compiled.state[name], atol=1e-9), name
        for group in env.groups:
            assert torch.allclose(a.reward[group.name], b.reward[group.name], atol=1e-5)
            assert torch.allclose(a.next_obs[group.name], b.next_obs[group.name], atol=1e-6)
            assert torch.allclose(env.obs[group.name], compiled.obs[group.name], atol=1e-6)
        assert torch.equal(a.done, b.done)
