"""Batched particle worlds as PettingZoo environments: by PettingZoo's own tests, and step by step against mpe2."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.utils import parallel_to_aec

from magail_envs.particle.parallel import ParallelParticleEnv
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.pettingzoo import PettingZooEnv
from tests.envs.playing import assert_same, play
from tests.envs.test_particle_tasks import (
    TASKS,
    discrete_and_continuous,
    each_case,
    each_task,
    make_mpe2,
)

MAKE = "magail_envs.particle.parallel.make"
SPREAD = "magail_envs.particle.simple_spread.SimpleSpread"


def make(task: str, dtype: str = "float64", **arguments: Any) -> ParallelParticleEnv:
    return ParallelParticleEnv(TASKS[task][0], dtype, **arguments)


def sample(env: Any) -> dict[str, Any]:
    return {agent: env.action_space(agent).sample() for agent in env.agents}


# ------------------------------------------------------------------------------------------------- PettingZoo's tests


@pytest.mark.filterwarnings("error")
@discrete_and_continuous
@each_task
def test_pettingzoos_parallel_tests(task: str, continuous: bool) -> None:
    parallel_api_test(make(task, continuous_actions=continuous, max_cycles=20), num_cycles=50)
    parallel_seed_test(lambda: make(task, continuous_actions=continuous), num_cycles=50)


@pytest.mark.filterwarnings("ignore::UserWarning:pettingzoo.test.api_test")  # of bounds and sizes, which are mpe2's
@discrete_and_continuous
@each_task
def test_pettingzoos_tests_of_agents_in_turns(task: str, continuous: bool) -> None:
    """Converted; here the seed test goes through a whole episode, while the parallel one looks at one step."""

    def env() -> Any:
        return parallel_to_aec(make(task, continuous_actions=continuous, max_cycles=20))

    api_test(env(), num_cycles=50)
    seed_test(env, num_cycles=50)


# --------------------------------------------------------------------------------------------------------------- mpe2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@discrete_and_continuous
@each_case
def test_an_episode_is_mpe2s(task: str, arguments: dict[str, Any], continuous: bool, dtype: str) -> None:
    """In float32 for as long as rounding has not grown, which shows that nothing handed out changes afterwards."""
    atol = 1e-6 if dtype == "float64" else 1e-3
    arguments = {**arguments, "continuous_actions": continuous, "max_cycles": 25 if dtype == "float64" else 3}
    env, truth = make(task, dtype, **arguments), make_mpe2(task, **arguments)
    assert env.possible_agents == truth.possible_agents
    assert env.state_space == truth.state_space
    for i, agent in enumerate(env.possible_agents):
        assert env.observation_space(agent) == truth.observation_space(agent)
        assert env.action_space(agent) == truth.action_space(agent)
        for either in (env, truth):
            either.action_space(agent).seed(i)
    for seed in (11, 12):
        (obs, infos), (their_obs, their_infos) = env.reset(seed=seed), truth.reset(seed=seed)
        assert infos == their_infos
        kept = []
        while truth.agents:
            assert env.agents == truth.agents
            assert_close(obs, their_obs, atol)
            np.testing.assert_allclose(env.state(), truth.state(), atol=atol, rtol=0)
            assert env.state() in env.state_space
            assert all(env.observation_space(agent).contains(seen) for agent, seen in obs.items())
            kept.append((obs, {agent: seen.copy() for agent, seen in obs.items()}))
            actions = sample(env)
            assert_close(actions, sample(truth), 0)  # each agent's space has random numbers of its own
            (obs, reward, *flags, infos), theirs = env.step(actions), truth.step(actions)
            their_obs, their_reward = theirs[:2]
            assert_close(reward, their_reward, atol)
            assert [*flags, infos] == list(theirs[2:])
        assert env.agents == []
        assert_close(obs, their_obs, atol)
        np.testing.assert_allclose(env.state(), truth.state(), atol=atol, rtol=0)
        for given, then in kept:
            for agent in given:
                assert np.array_equal(given[agent], then[agent])
        assert env.step({}) == truth.step({}) == ({}, {}, {}, {}, {})


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], atol: float) -> None:
    assert list(ours) == list(theirs)
    for agent in ours:
        assert np.asarray(ours[agent]).shape == np.asarray(theirs[agent]).shape
        np.testing.assert_allclose(ours[agent], theirs[agent], atol=atol, rtol=0, err_msg=agent)


def test_success_ends_an_episode() -> None:
    """An agent that walks to its landmark: terminated, with the last observation, and nobody is left."""
    arguments: dict[str, Any] = {"N": 1, "terminate_on_success": True, "max_cycles": 400}
    env, truth = make("simple_spread_v3", **arguments), make_mpe2("simple_spread_v3", **arguments)
    obs, _ = env.reset(seed=4)
    truth.reset(seed=4)
    steps = 0
    while env.agents:
        x, y = obs["agent_0"][4:6]
        action = {"agent_0": 1 + int(x > 0) if abs(x) > abs(y) else 3 + int(y > 0)}
        obs, _, terminated, truncated, _ = env.step(action)
        their_obs, _, *theirs, _ = truth.step(action)
        assert [terminated, truncated] == theirs
        assert_close(obs, their_obs, 1e-6)
        steps += 1
    assert terminated == {"agent_0": True}
    assert not truth.agents
    assert 1 < steps < 400


# ----------------------------------------------------------------------------------------------------------- its own


def test_resets_without_a_seed_follow_from_the_last_seed() -> None:
    def begin(seed: int) -> list[list[float]]:
        return [obs["agent_0"].tolist() for obs, _ in (env.reset(seed), env.reset(), env.reset(), env.reset())]

    env = ParallelParticleEnv(SimpleSpread)
    first = begin(5)
    assert len(set(map(tuple, first))) == 4
    assert begin(6)[1:] != first[1:]
    assert begin(5) == first
    others = ParallelParticleEnv(SimpleSpread), ParallelParticleEnv(SimpleSpread)
    a, b = (other.reset()[0]["agent_0"] for other in others)
    assert not np.array_equal(a, b)


def test_a_reset_ends_what_was_going_on() -> None:
    env = ParallelParticleEnv(SimpleSpread, max_cycles=3)
    begun, _ = env.reset(seed=1)
    env.step(sample(env))
    env.step(sample(env))
    again, _ = env.reset(seed=1)
    assert_close(again, begun, 0)
    for left in (2, 1, 0):
        _, _, _, truncated, _ = env.step(sample(env))
        assert set(truncated.values()) == {left == 0}


def test_observations_are_the_users() -> None:
    env = ParallelParticleEnv(SimpleSpread)
    obs, _ = env.reset(seed=1)
    state = env.state()
    obs["agent_0"] += 1
    assert np.array_equal(env.state(), state)


@pytest.mark.parametrize(
    ("arguments", "action", "message"),
    [
        ({}, 5, "agent: an action is an integer from 0 to 4"),
        ({}, -1, "agent: an action is an integer from 0 to 4"),
        ({"continuous_actions": True}, np.zeros(3, np.float32), "reshape"),
    ],
)
def test_actions_that_are_not_there(arguments: dict[str, Any], action: Any, message: str) -> None:
    env = ParallelParticleEnv(SimpleSpread, **arguments)
    env.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        env.step(dict.fromkeys(env.agents, action))


def test_boxes_clip() -> None:
    env = ParallelParticleEnv(SimpleSpread, continuous_actions=True)
    far, near = (np.array([0, low, 7 * high, 0, 0.5], np.float32) for low, high in ((-3, 1), (0, 1 / 7)))
    env.reset(seed=1)
    expected = env.step(dict.fromkeys(env.agents, near))[0]
    env.reset(seed=1)
    assert_close(env.step(dict.fromkeys(env.agents, far))[0], expected, 0)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="SimpleSpread: not here: render_mode"):
        ParallelParticleEnv(SimpleSpread, render_mode="rgb_array")
    with pytest.raises(ValueError, match="draw nothing"):
        ParallelParticleEnv(SimpleSpread).render()


# --------------------------------------------------------------------------------------------------------- our adapter


@pytest.mark.parametrize("workers", [0, 1])
def test_the_adapter_builds_it_from_its_name(workers: int) -> None:
    arguments = {"task": SPREAD, "N": 2, "max_cycles": 7}
    env = PettingZooEnv("spread", MAKE, arguments, num_envs=3, workers=workers)
    truth = PettingZooEnv("spread", "mpe2.simple_spread_v3.parallel_env", {"N": 2, "max_cycles": 7}, num_envs=3)
    try:
        assert env.groups == truth.groups
        env.reset(itertools.count())
        truth.reset(itertools.count())
        for (step, obs, _), (their_step, their_obs, _) in zip(play(env, 20), play(truth, 20), strict=True):
            for ours, theirs in ((step.next_obs, their_step.next_obs), (obs, their_obs)):
                np.testing.assert_allclose(ours["agent"], theirs["agent"], atol=1e-6, rtol=0)
            np.testing.assert_allclose(step.reward["agent"], their_step.reward["agent"], atol=1e-6, rtol=0)
            for name in ("terminated", "truncated", "done", "episode_length", "episode_seed"):
                assert_same(getattr(step, name), getattr(their_step, name))
    finally:
        env.close()
        truth.close()


def test_a_task_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="SimpleSpred"):
        PettingZooEnv("spread", MAKE, {"task": "magail_envs.particle.simple_spread.SimpleSpred"})
