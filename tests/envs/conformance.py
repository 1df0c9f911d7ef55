"""mpe2 as the truth: the same states and actions written into it and into a batched particle world."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magail.types import ByGroup
from magail_envs.particle.env import ParticleEnv

FOREVER = 10**9


def random_state(rng: np.random.Generator, entities: int, agents: int, copies: int) -> tuple[NDArray, NDArray]:
    """Positions ``[M, 2, E]`` and velocities ``[A, 2, E]``; in every other copy all entities overlap."""
    spread_out = np.where(np.arange(copies) % 2, 0.15, 1.0)
    return rng.uniform(-1.2, 1.2, (entities, 2, copies)) * spread_out, rng.normal(size=(agents, 2, copies))


def random_actions(rng: np.random.Generator, env: ParticleEnv[Any], low: float = 0, high: float = 1) -> ByGroup:
    """A random action of every agent; Boxes get numbers in ``[low, high]``."""
    actions = {}
    for group in env.groups:
        shape = (env.num_envs, group.num_agents, group.action_dim)
        if group.action_dtype == torch.int64:
            numbers = torch.from_numpy(rng.integers(group.action_space.n, size=shape))
        else:
            numbers = torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))
        actions[group.name] = numbers.to(env.world.pos.device)
    return actions


def for_mpe2(env: ParticleEnv[Any], actions: ByGroup, copy: int) -> dict[str, Any]:
    """The actions of one copy as a PettingZoo environment takes them."""
    return {
        agent: actions[group.name][copy, i].cpu().numpy() if group.action_dtype == torch.float32
        else int(actions[group.name][copy, i, 0])
        for group in env.groups
        for i, agent in enumerate(group.agents)
    }  # fmt: skip


def write(env: ParticleEnv[Any], pos: NDArray, vel: NDArray) -> None:
    env.state["pos"].copy_(torch.from_numpy(pos))
    env.state["vel"].copy_(torch.from_numpy(vel))
    env.world.look()


def write_mpe2(world: Any, pos: NDArray, vel: NDArray) -> None:
    """One copy's positions ``[M, 2]`` and velocities ``[A, 2]``."""
    for i, entity in enumerate(world.entities):
        entity.state.p_pos = pos[i].copy()
    for i, agent in enumerate(world.agents):
        agent.state.p_vel = vel[i].copy()


def positions(world: Any) -> NDArray:
    return np.stack([entity.state.p_pos for entity in world.entities])


def velocities(world: Any) -> NDArray:
    return np.stack([agent.state.p_vel for agent in world.agents])


def utterances(world: Any) -> NDArray:
    return np.stack([agent.state.c for agent in world.agents])


def assert_same_state(env: ParticleEnv[Any], copy: int, world: Any) -> None:
    """Positions, velocities and utterances within 1e-10."""
    for name, truth in (("pos", positions(world)), ("vel", velocities(world)), ("speech", utterances(world))):
        np.testing.assert_allclose(env.state[name][..., copy].cpu(), truth, atol=1e-10, rtol=0, err_msg=name)


def assert_same_by_agent(env: ParticleEnv[Any], ours: ByGroup, copy: int, theirs: dict[str, Any], atol: float) -> None:
    """Observations or rewards of one copy, agent by agent."""
    for group in env.groups:
        for i, agent in enumerate(group.agents):
            actual = ours[group.name][copy, i].cpu()
            assert actual.dtype == torch.float32
            np.testing.assert_allclose(actual, theirs[agent], atol=atol, rtol=0, err_msg=agent)


def flags(env: ParticleEnv[Any], ours: ByGroup, copy: int) -> dict[str, bool]:
    """One copy's flags as mpe2 gives them."""
    return {agent: bool(ours[g.name][copy, i]) for g in env.groups for i, agent in enumerate(g.agents)}
