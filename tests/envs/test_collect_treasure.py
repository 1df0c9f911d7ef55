"""Treasures picked up, come again and delivered, over and over, as in mpe2."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from mpe2 import collect_treasure_v1

from magail_envs.particle.collect_treasure import GONE, CollectTreasure
from tests.envs.conformance import assert_same_by_agent, assert_same_state, for_mpe2, random_actions, write, write_mpe2


def assert_same_treasures(env: CollectTreasure, copy: int, world: Any) -> None:
    """What is there, what is held, and the generator that later treasures come from."""
    state = {name: value[..., copy].tolist() for name, value in env.state.items()}
    assert state["treasure"] == [(1 + treasure.type) * treasure.alive for treasure in world.landmarks]
    holding = [agent.holding for agent in world.agents if agent.collector]
    assert state["holding"] == [0 if kind is None else 1 + kind for kind in holding]
    truth = world.np_random.bit_generator.state
    words = [word % 2**64 for word in state["generator"]]
    assert words[0] * 2**64 + words[1] == truth["state"]["state"]
    assert words[2] * 2**64 + words[3] == truth["state"]["inc"]
    assert words[4] == truth["has_uint32"]
    assert not words[4] or words[5] == truth["uinteger"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_collectors": 3, "num_deposits": 2, "num_treasures": 4},
        {"num_collectors": 1, "num_deposits": 1, "num_treasures": 2},
        {"num_collectors": 5, "num_deposits": 3, "num_treasures": 2},
    ],
    ids=str,
)
def test_a_busy_world_is_mpe2s(arguments: dict[str, int]) -> None:
    """Before each step all are put close together, some collectors where another is, some where gone treasures are."""
    copies, max_cycles, rng = 20, 14, np.random.default_rng(0)
    options = {**arguments, "max_cycles": max_cycles}
    env = CollectTreasure("treasure", options, copies, "cpu", "float64")
    truths = [collect_treasure_v1.parallel_env(**options) for _ in range(copies)]
    env.reset(iter(range(100)))
    for copy, truth in enumerate(truths):
        truth.reset(seed=copy)
        assert_same_treasures(env, copy, truth.unwrapped.world)
    collectors = arguments["num_collectors"]
    happened: Counter[str] = Counter()
    for t in range(2 * max_cycles):
        pos, vel = env.state["pos"].numpy().copy(), env.state["vel"].numpy().copy()
        there = pos[:, :1] > GONE
        pos = np.where(there, rng.uniform(-0.12, 0.12, pos.shape), pos)
        vel[:] = rng.uniform(-1, 1, vel.shape)
        pos[collectors - 1, :, ::3] = pos[0, :, ::3]
        vel[collectors - 1, :, ::3] = vel[0, :, ::3]
        pos[0, :, 1::9] = GONE
        write(env, pos, vel)
        actions = random_actions(rng, env)
        before = {name: value.clone() for name, value in env.state.items()}
        step = env.step(actions)
        for copy, truth in enumerate(truths):
            world = truth.unwrapped.world
            write_mpe2(world, pos[..., copy], vel[..., copy])
            obs, reward, *_ = truth.step(for_mpe2(env, actions, copy))
            assert_same_by_agent(env, step.next_obs, copy, obs, 1e-6)
            assert_same_by_agent(env, step.reward, copy, reward, 2e-5)
            held = [agent.holding is not None for agent in world.agents[:collectors]]
            gone = np.array([not treasure.alive for treasure in world.landmarks])
            was_gone, had = before["treasure"][:, copy].numpy() == 0, before["holding"][:, copy].numpy() > 0
            happened["picked up"] += int(gone.sum())
            happened["several at once"] += gone.sum() > 1
            happened["came again"] += int(was_gone.sum())
            happened["several came again"] += was_gone.sum() > 1
            happened["delivered"] += int(gone.sum()) + int(had.sum()) - sum(held)
            happened["delivered what was just picked up"] += int(gone.sum()) > sum(held) - int((had & held).sum())
            happened["all gone"] += gone.all()
            if not truth.agents:
                truth.reset(seed=(t // max_cycles + 1) * copies + copy)
            assert_same_state(env, copy, world)
            assert_same_treasures(env, copy, world)
    for event in ("picked up", "came again", "delivered", "delivered what was just picked up"):
        assert happened[event] > 20, happened
    if collectors > 1:
        assert min(happened["several at once"], happened["several came again"]) > 20, happened
    if arguments["num_treasures"] == 2 and collectors > 1:
        assert happened["all gone"] > 20, happened


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_deposits": 7}, "num_deposits is at most 6, not 7"),
        ({"num_collectors": 0}, "num_collectors is at least 1"),
        ({"num_deposits": 0}, "num_deposits is at least 1"),
        ({"num_treasures": 0}, "num_treasures is at least 1"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"treasure: {message}"):
        CollectTreasure("treasure", arguments, 2)
