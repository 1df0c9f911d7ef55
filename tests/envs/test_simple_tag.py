"""What random states rarely show of the chases: edges, catches and growing prey; and mpe2's two curricula."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from mpe2 import simple_spread_v3, simple_tag_v3, simple_world_comm_v3
from mpe2.simple_spread import simple_spread
from mpe2.simple_tag import simple_tag

from magail.types import Seeds
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.particle.simple_tag import SimpleTag
from magail_envs.particle.simple_world_comm import SimpleWorldComm
from tests.envs.conformance import (
    FOREVER,
    assert_same_by_agent,
    assert_same_state,
    for_mpe2,
    random_actions,
    random_state,
    write,
    write_mpe2,
)


def tag(num_envs: int, dtype: str = "float64", **arguments: Any) -> SimpleTag:
    return SimpleTag("tag", arguments, num_envs, "cpu", dtype)


@pytest.mark.parametrize("task", [simple_tag_v3, simple_world_comm_v3], ids=lambda task: task.__name__)
def test_pay_near_and_beyond_the_edges_is_mpe2s(task: Any) -> None:
    copies, rng = 200, np.random.default_rng(0)
    arguments = {"num_good": 2, "num_adversaries": 3}
    kind = SimpleTag if task is simple_tag_v3 else SimpleWorldComm
    env, truth = kind("chase", arguments, copies, "cpu", "float64"), task.parallel_env(**arguments)
    env.reset(Seeds(0))
    truth.reset(seed=0)
    world, scenario = truth.unwrapped.world, truth.unwrapped.scenario
    pos, vel = random_state(rng, len(world.entities), 5, copies)
    pos[:, :, ::2] *= 2
    pos[3, :, ::4] = np.sign(pos[3, :, ::4]) * rng.uniform(0.88, 1.02, (2, copies // 4))
    pos[4, :, 1::4] = np.sign(pos[4, :, 1::4]) * rng.uniform(2.0, 2.4, (2, copies // 4))
    write(env, pos, vel)
    reward, touches = env.reward(), 0
    for copy in range(copies):
        write_mpe2(world, pos[..., copy], vel[..., copy])
        expected = [scenario.reward(agent, world) for agent in world.agents]
        np.testing.assert_allclose(reward[:, copy], expected, atol=1e-12, rtol=0)
        touches += any(scenario.is_collision(world.agents[3], adversary) for adversary in world.agents[:3])
    far = abs(pos[3:5])
    for low, high in ((0.0, 0.9), (0.9, 1.0), (1.0, 2.1), (2.2, 2.4)):  # free, linear, exponential, at most 10
        assert ((low < far) & (far < high)).sum() > 30
    assert 20 < touches < copies - 20


@pytest.mark.parametrize("counts", [(1, 3), (2, 4), (2, 0), (0, 2)], ids=str)
def test_success_is_what_mpe2_calls_success(counts: tuple[int, int]) -> None:
    copies, rng = 200, np.random.default_rng(1)
    arguments = {"num_good": counts[0], "num_adversaries": counts[1], "terminate_on_success": True}
    env, truth = tag(copies, **arguments), simple_tag_v3.parallel_env(**arguments)
    env.reset(Seeds(0))
    truth.reset(seed=0)
    pos, vel = random_state(rng, sum(counts) + 2, sum(counts), copies)
    write(env, pos, vel)
    caught = []
    for copy in range(copies):
        write_mpe2(truth.unwrapped.world, pos[..., copy], vel[..., copy])
        caught.append(truth.unwrapped.scenario.is_terminal(truth.unwrapped.world))
    success = env.success()
    assert success is not None
    assert success.tolist() == caught
    if all(counts):
        assert 20 < sum(caught) < copies - 20


# ------------------------------------------------------------------------------------------------------- curriculum


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """mpe2 as it means itself: in 1.1.1 a property of its scenarios' base swallows every stage but 0."""
    for task in (simple_spread, simple_tag):
        monkeypatch.setattr(task.Scenario, "curriculum_stage", 0, raising=False)


def test_a_curriculum_begins_in_stage_zero_as_mpe2s() -> None:
    env, truth = tag(2, curriculum=True), simple_tag_v3.parallel_env(curriculum=True)
    env.reset(Seeds(0))
    truth.reset(seed=0)
    prey = truth.unwrapped.world.agents[-1]
    assert env.curriculum_stage == truth.unwrapped.curriculum_stage == 0
    assert env.world.max_speed[-1, 0].tolist() == [prey.max_speed] * 2 == [0.65] * 2
    assert env.world.accel[-1, 0].tolist() == [prey.accel] * 2 == [2.0] * 2


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize("curriculum", [False, True])
def test_spread_pays_for_touches_from_stage_one_on(curriculum: bool) -> None:
    copies, arguments = 60, {"curriculum": curriculum, "max_cycles": FOREVER}
    env = SimpleSpread("spread", arguments, copies, "cpu", "float64")
    truth, rng = simple_spread_v3.parallel_env(**arguments), np.random.default_rng(2)
    env.reset(Seeds(0))
    truth.reset(seed=0)
    pos, vel = random_state(rng, 6, 3, copies)
    rewards = []
    for stage in (0, 1):
        env.set_curriculum_stage(stage)
        truth.unwrapped.set_curriculum_stage(stage)
        write(env, pos, vel)
        step = env.step({"agent": torch.zeros(copies, 3, 1, dtype=torch.int64)})
        for copy in range(copies):
            write_mpe2(truth.unwrapped.world, pos[..., copy], vel[..., copy])
            reward = truth.step({agent: 0 for agent in truth.agents})[1]
            assert_same_by_agent(env, step.reward, copy, reward, 1e-6)
        rewards.append(step.reward["agent"])
    assert (rewards[1] < rewards[0]).any() == curriculum


@pytest.mark.usefixtures("staged")
def test_stages_are_clamped_as_in_mpe2() -> None:
    env, truth = tag(1, curriculum=True), simple_tag_v3.parallel_env(curriculum=True).unwrapped
    seen = []
    for each in (env, truth):
        stages = [each.curriculum_stage]
        for _ in range(3):
            each.advance_curriculum()
            stages.append(each.curriculum_stage)
        for stage in (-4, 1, 9):
            each.set_curriculum_stage(stage)
            stages.append(each.curriculum_stage)
        seen.append(stages)
    assert seen == [[0, 1, 2, 2, 0, 1, 2]] * 2


@pytest.mark.usefixtures("staged")
def test_prey_grow_from_their_next_episode_on() -> None:
    """Copies end when the prey is caught, so that prey of several stages run at once; and all that is saved."""
    copies, rng = 12, np.random.default_rng(3)
    arguments = {"num_adversaries": 4, "max_cycles": 8, "curriculum": True, "terminate_on_success": True}
    env, truths = tag(copies, **arguments), [simple_tag_v3.parallel_env(**arguments) for _ in range(copies)]
    env.reset(iter(range(1000)))
    next_seed = copies
    for copy, truth in enumerate(truths):
        truth.reset(seed=copy)
    mixed, stages = 0, {3: 1, 11: 2, 17: 0}
    for t in range(28):
        if t in stages:
            for each in (env, *(truth.unwrapped for truth in truths)):
                each.set_curriculum_stage(stages[t])
        if t == 14:  # go on in another object
            file = io.BytesIO()
            torch.save(env.state_dict(), file)
            file.seek(0)
            env = tag(copies, **arguments)
            env.load_state_dict(torch.load(file, weights_only=True), iter(range(next_seed, 1000)))
            assert env.curriculum_stage == 2
        if t % 4 == 1:  # a catch here and there
            env.state["pos"][4, :, t % copies] = env.state["pos"][0, :, t % copies] + 0.05
            env.world.look()
            truths[t % copies].unwrapped.world.agents[4].state.p_pos = env.state["pos"][4, :, t % copies].numpy().copy()
        actions = random_actions(rng, env)
        step = env.step(actions)
        for copy, truth in enumerate(truths):
            obs, reward, *_ = truth.step(for_mpe2(env, actions, copy))
            assert_same_by_agent(env, step.next_obs, copy, obs, 1e-6)
            assert_same_by_agent(env, step.reward, copy, reward, 1e-6)
            assert bool(step.done[copy]) == (not truth.agents)
            if not truth.agents:
                truth.reset(seed=next_seed)
                next_seed += 1
            assert_same_state(env, copy, truth.unwrapped.world)
            prey = truth.unwrapped.world.agents[-1]
            assert env.world.max_speed[-1, 0, copy] == prey.max_speed
            assert env.world.accel[-1, 0, copy] == prey.accel
        mixed += len(set(env.state["max_speed"][-1, 0].tolist())) > 1
    assert mixed > 5


# ---------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_good": 0, "num_adversaries": 0}, "needs an agent"),
        ({"num_obstacles": -1}, "num_obstacles is at least 0"),
        ({"num_agent_neighbors": 0}, "num_agent_neighbors is at least 1"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"tag: .*{message}"):
        tag(2, **arguments)
