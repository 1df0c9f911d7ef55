"""Playing environments at random, and comparing what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gymnasium import spaces

from magail.types import BatchedEnv, ByGroup, Step


def random_action(env: BatchedEnv, generator: torch.Generator) -> ByGroup:
    """Uniform over discrete actions, standard normal for a Box."""
    action = {}
    for group in env.groups:
        shape = (env.num_envs, group.num_agents, group.action_dim)
        space = group.action_space
        if isinstance(space, spaces.Box):
            action[group.name] = torch.randn(shape, generator=generator)
        else:
            choices = torch.tensor(space.n if isinstance(space, spaces.Discrete) else space.nvec.ravel())
            action[group.name] = (torch.rand(shape, generator=generator) * choices).long()
    return action


def play(env: BatchedEnv, steps: int, seed: int = 0) -> Iterator[tuple[Step, ByGroup, ByGroup]]:
    """Random steps; each step with the observations and masks after it."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        step = env.step(random_action(env, generator))
        yield step, env.obs, env.mask


class Watched:
    """An environment that remembers the actions that it was told."""

    def __init__(self, env: BatchedEnv) -> None:
        self.env, self.actions = env, list[ByGroup]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, action: ByGroup) -> Step:
        self.actions.append(action)
        return self.env.step(action)


class Stubborn:
    """Takes the same action everywhere."""

    def __init__(self, action: int) -> None:
        self.action = torch.tensor([action])

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        action = {name: self.action.expand(*x.shape[:-1], 1) for name, x in obs.items()}
        return action, {name: torch.zeros(x.shape[:-1]) for name, x in obs.items()}


def assert_same(one: Any, two: Any) -> None:
    """Equal bit for bit: steps, dictionaries, lists and tensors."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert type(one) is type(two)
        assert_same(vars(one), vars(two))
