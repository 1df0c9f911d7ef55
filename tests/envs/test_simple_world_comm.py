"""Who sees whom in and out of the forests, and what the good eat, as in mpe2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpe2 import simple_world_comm_v3

from magail.types import Seeds
from magail_envs.particle.simple_world_comm import SimpleWorldComm
from tests.envs.conformance import assert_same_by_agent, random_state, write, write_mpe2


def test_forests_hide_as_in_mpe2() -> None:
    copies, rng = 150, np.random.default_rng(0)
    env, truth = SimpleWorldComm("comm", {}, copies, "cpu", "float64"), simple_world_comm_v3.parallel_env()
    env.reset(Seeds(0))
    truth.reset(seed=0)
    world, scenario = truth.unwrapped.world, truth.unwrapped.scenario
    pos, vel = random_state(rng, len(world.entities), 6, copies)
    pos[:, :, ::2] *= 0.7  # crowds, yet not all in one place
    said = rng.uniform(size=(4, copies))
    env.state["speech"][0] = env.world.pos.new_tensor(said)
    write(env, pos, vel)
    visible = env._visible(env._inside())
    inside = env._inside().any(1)
    obs, reward, eaten = env._observe(), env.reward(), 0
    for copy in range(copies):
        write_mpe2(world, pos[..., copy], vel[..., copy])
        world.agents[0].state.c = said[:, copy]
        assert_same_by_agent(env, obs, copy, {a.name: scenario.observation(a, world) for a in world.agents}, 1e-6)
        expected = [scenario.reward(agent, world) for agent in world.agents]
        np.testing.assert_allclose(reward[:, copy], expected, atol=1e-12, rtol=0)
        eaten += any(scenario.is_collision(agent, food) for agent in world.agents[4:] for food in world.food)
    assert 20 < eaten < copies - 20
    followers, both = visible[1:], inside[1:, None] & inside
    assert (~followers & both).sum() > 50  # in different forests
    assert (~followers & ~both).sum() > 50  # one in a forest, one in the open
    assert (followers & both).sum() > 50  # together in a forest
    assert (followers & ~both).sum() > 50  # both in the open
    assert visible[0].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_good": 0}, "num_good is at least 1"),
        ({"num_adversaries": 0}, "num_adversaries is at least 1"),
        ({"num_food": 0}, "num_food is at least 1"),
        ({"num_forests": -1}, "num_forests is at least 0"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"comm: {message}"):
        SimpleWorldComm("comm", arguments, 2)
