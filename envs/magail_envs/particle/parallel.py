"""One copy of a batched particle task behind PettingZoo's interface, for whatever library expects that."""

from __future__ import annotations

import itertools
import pkgutil
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from torch import Tensor

from magail.types import AgentGroup, ByGroup
from magail_envs.particle.env import ParticleEnv


class ParallelParticleEnv(ParallelEnv[str, NDArray[np.float32], Any]):
    """A `ParticleEnv` with E = 1 in place of ``mpe2.<task>.parallel_env(**arguments)``.

    Agents, spaces, rewards, `state` and what a seed means are mpe2's; only drawing is not here. ``batched`` is the
    world itself, for its curriculum, say.

    Args:
        kind: the task's class.
        dtype: ``float64``, as mpe2 computes, or ``float32``.
        arguments: mpe2's own (``kind.takes``).

    Raises:
        ValueError: what ``kind`` refuses.
    """

    render_mode = None

    def __init__(self, kind: type[ParticleEnv[Any]], dtype: str = "float64", **arguments: Any) -> None:
        self.metadata = {"name": kind.__name__, "render_modes": [], "is_parallelizable": True}
        self.batched = kind(kind.__name__, arguments, num_envs=1, dtype=dtype)
        self._groups = self.batched.groups
        self.possible_agents = [agent for group in self._groups for agent in group.agents]
        # each agent's own, as each space draws its samples with its own random numbers
        self.observation_spaces = {a: deepcopy(group.observation_space) for group in self._groups for a in group.agents}
        self.action_spaces = {a: deepcopy(group.action_space) for group in self._groups for a in group.agents}
        width = sum(group.num_agents * group.obs_dim for group in self._groups)
        self.state_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self._rng = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, Any]]]:
        """Begin the episode of ``seed``; without one, the next of a sequence that the last given seed begins.

        ``options`` mean nothing here, as in mpe2.
        """
        if seed is None:
            seed = int(self._rng.integers(2**31 - 1))
        else:
            self._rng = np.random.default_rng(seed)
        self.batched.reset(itertools.repeat(seed))  # it begins anew by itself after the episode; nobody looks at that
        self.agents = self.possible_agents[:]
        self._obs = self.batched.obs
        return self._by_agent(self._obs), self._infos()

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, NDArray[np.float32]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Act, and observe also the episode's last state; once it is over, all is empty, as in mpe2.

        Box actions are clipped to [0, 1].

        Raises:
            ValueError: an action of the wrong shape, or one that a Discrete space does not have.
        """
        if not self.agents:
            return {}, {}, {}, {}, {}
        step = self.batched.step({group.name: _joint(group, actions) for group in self._groups})
        self._obs = step.next_obs
        if step.done:
            self.agents = []
        observed, paid, ended, cut = map(self._by_agent, (self._obs, step.reward, step.terminated, step.truncated))
        return observed, paid, ended, cut, self._infos()

    def state(self) -> NDArray[np.float32]:
        """All agents' observations, one after another."""
        return torch.cat([self._obs[group.name].flatten() for group in self._groups]).numpy()

    def render(self) -> NDArray[np.uint8]:
        """Raises ValueError: there is nothing that draws."""
        return self.batched.render()

    def _by_agent(self, values: ByGroup) -> dict[str, Any]:
        """Each agent's row as an array of its own, or as a plain number."""
        rows: list[Tensor] = [row for group in self._groups for row in values[group.name][0]]
        return {
            agent: row.numpy().copy() if row.dim() else row.item()
            for agent, row in zip(self.possible_agents, rows, strict=True)
        }

    def _infos(self) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in self.possible_agents}


def make(task: str, **arguments: Any) -> ParallelParticleEnv:
    """`ParallelParticleEnv` of a class given as its dotted path, e.g. from YAML."""
    return ParallelParticleEnv(pkgutil.resolve_name(task), **arguments)


def _joint(group: AgentGroup, actions: dict[str, Any]) -> Tensor:
    """One group's actions as a `ParticleEnv` takes them, ``[1, A, U]``."""
    given = [actions[agent] for agent in group.agents]
    space = group.action_space
    if isinstance(space, spaces.Discrete) and not all(map(space.contains, given)):
        raise ValueError(f"{group.name}: an action is an integer from 0 to {space.n - 1}, not one of {given}")
    return torch.tensor(np.reshape(given, (1, group.num_agents, group.action_dim)), dtype=group.action_dtype)
