"""Gymnasium environments as environments with one agent."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import torch

from magail_envs.pettingzoo import PettingZooEnv
from tests.envs.playing import random_action


def test_cartpole_equals_gymnasium() -> None:
    env = PettingZooEnv("cartpole", "gymnasium.make", {"id": "CartPole-v1"}, num_envs=2)
    assert [(group.name, group.agents) for group in env.groups] == [("agent", ("agent_0",))]
    env.reset(itertools.repeat(11))
    raw = gymnasium.make("CartPole-v1")
    obs, _ = raw.reset(seed=11)
    generator = torch.Generator().manual_seed(0)
    ends = 0
    for _ in range(100):
        assert env.obs["agent"][1, 0].tolist() == obs.tolist()
        action = random_action(env, generator)
        step = env.step(action)
        obs, reward, terminated, truncated, _ = raw.step(action["agent"][1, 0].item())
        assert step.next_obs["agent"][1, 0].tolist() == obs.tolist()
        assert step.reward["agent"][1, 0].item() == reward
        assert step.terminated["agent"][1, 0].item() == terminated
        assert step.truncated["agent"][1, 0].item() == truncated
        assert step.done[1].item() == (terminated or truncated)
        if terminated or truncated:
            ends += 1
            obs, _ = raw.reset(seed=11)
    assert ends > 1


def test_terminated_and_truncated_are_apart() -> None:
    env = PettingZooEnv("countdown", "tests.envs.toy.Countdown", {"limit": 3}, num_envs=3)
    env.reset(itertools.count())
    act = [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    flags = []
    for actions in act:
        step = env.step({"agent": torch.tensor(actions).view(3, 1, 1)})
        flags.append(
            [(t, c) for t, c in zip(step.terminated["agent"][:, 0], step.truncated["agent"][:, 0], strict=True)]
        )
        assert step.done.tolist() == [bool(t or c) for t, c in flags[-1]]
    assert flags == [
        [(False, False), (True, False), (False, False)],
        [(False, False), (False, False), (False, False)],
        [(True & False, True), (False, False), (True, True)],
    ]
    assert env.obs["agent"].argmax(-1).flatten().tolist() == [0, 2, 0]  # a Discrete observation is one-hot
    assert step.next_obs["agent"].argmax(-1).flatten().tolist() == [3, 2, 3]


def test_rendering() -> None:
    env = PettingZooEnv("countdown", "tests.envs.toy.Countdown", {"limit": 3}, num_envs=2, render=True)
    env.reset(itertools.count())
    env.step({"agent": torch.tensor([[[0]], [[1]]])})
    assert np.array_equal(env.render(), np.full((4, 5, 3), 1, np.uint8))
