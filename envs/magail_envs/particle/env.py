"""What every batched particle task shares: actions, episodes and the `BatchedEnv` protocol around a `World`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from magail.types import AgentGroup, ByGroup, Step
from magail_envs.particle.world import Agent, Entity, World

Arguments = TypeVar("Arguments")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])  # mpe2's actions: none, left, right, down, up


class ParticleEnv(ABC):
    """E copies of one particle task as tensors on one device; a task says how it begins, looks and pays.

    Agents called ``role_0``, ``role_1``, ... form the group ``role``. ``state`` names every tensor that a copy's future
    depends on, each ``[..., E]``; a task adds its own (a goal, say) and everything here saves and restarts it too.

    Raises:
        ValueError: a ``dtype`` other than ``float32`` and ``float64``.
    """

    def __init__(
        self,
        name: str,
        agents: Sequence[Agent],
        landmarks: Sequence[Entity],
        symbols: int,
        max_cycles: int,
        continuous_actions: bool,
        num_envs: int,
        device: str,
        dtype: str,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"{name}: a particle world computes in {' or '.join(DTYPES)}, not in {dtype!r}")
        self.name, self.num_envs = name, num_envs
        self.max_cycles, self.continuous_actions = max_cycles, continuous_actions
        self.world = World(agents, landmarks, symbols, num_envs, torch.device(device), DTYPES[dtype])
        self.state = {"pos": self.world.pos, "vel": self.world.vel, "speech": self.world.speech}
        roles = [
            (role, list(members)) for role, members in groupby(agents, lambda agent: agent.name.rpartition("_")[0])
        ]
        self._kind = {role: members[0] for role, members in roles}
        self._rows = {role: slice(agents.index(members[0]), agents.index(members[-1]) + 1) for role, members in roles}
        self._table = {role: self.world.pos.new_tensor(_controls(kind, symbols)) for role, kind in self._kind.items()}
        self.obs = self._observe()
        self.groups = tuple(
            AgentGroup(
                role,
                tuple(agent.name for agent in members),
                spaces.Box(-np.inf, np.inf, self.obs[role].shape[-1:], np.float32),
                _action_space(members[0], symbols, continuous_actions),
            )
            for role, members in roles
        )
        self.mask = {group.name: self._filled(True, group.num_agents) for group in self.groups}
        self._return = {group.name: self._filled(0.0, group.num_agents) for group in self.groups}
        self._length, self._seed = self._filled(0), self._filled(0)

    @abstractmethod
    def initial(self, seeds: Sequence[int]) -> dict[str, NDArray[Any]]:
        """What mpe2 draws after ``reset(seed)``: tensors of ``state`` as ``[..., B]``; those left out begin at 0."""

    @abstractmethod
    def observe(self) -> ByGroup:
        """What each group's agents see now, ``[A, O, E]``."""

    @abstractmethod
    def reward(self) -> Tensor:
        """What each agent of the world gets now, ``[A, E]``."""

    def success(self) -> Tensor | None:
        """Which copies end here because the task is done, ``[E]`` bool; None in tasks that only end by time."""
        return None

    def reset(self, seeds: Iterator[int]) -> None:
        self._seeds = seeds
        self._begin(torch.arange(self.num_envs, device=self._length.device))

    def step(self, action: ByGroup) -> Step:
        self.world.step(self._act(action))
        self._length = self._length + 1
        truncated = self._length >= self.max_cycles
        success = self.success()
        # as in mpe2, an episode that succeeds at its time limit counts as cut off
        terminated = torch.zeros_like(truncated) if success is None else success & ~truncated
        done = truncated | terminated
        self.obs = self._observe()
        paid = self.reward().t().float()
        reward = {role: paid[:, rows] for role, rows in self._rows.items()}
        self._return = {role: total + reward[role] for role, total in self._return.items()}
        step = Step(
            next_obs=self.obs,
            reward=reward,
            terminated=self._to_agents(terminated),
            truncated=self._to_agents(truncated),
            done=done,
            episode_return=self._return,
            episode_length=self._length,
            episode_seed=self._seed,
        )
        self._steps_left -= 1
        if self._steps_left <= 0 or success is not None:  # else nothing can have ended, and a GPU need not be asked
            self._begin(done.nonzero().squeeze(1))
        return step

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": {name: value.clone() for name, value in self.state.items()},
            "episode_return": {role: value.clone() for role, value in self._return.items()},
            "episode_length": self._length.clone(),
            "episode_seed": self._seed.clone(),
        }

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another number of copies.
        """
        saved = len(state["episode_length"])
        if saved != self.num_envs:
            raise ValueError(
                f"{self.name}: the saved state is of {saved} copies: set num_envs to it, not {self.num_envs}"
            )
        self._seeds = seeds
        for name, value in self.state.items():
            value.copy_(state["state"][name])
        self._return = {role: value.to(self._length.device) for role, value in state["episode_return"].items()}
        self._length, self._seed = (state[name].to(self._length.device) for name in ("episode_length", "episode_seed"))
        self._look()

    def render(self) -> np.ndarray:
        raise ValueError(f"{self.name}: batched particle worlds draw nothing; render mpe2's own world (env.evaluate)")

    def close(self) -> None:  # noqa: B027
        """Nothing to give back."""

    def _begin(self, copies: Tensor) -> None:
        """Start a new episode in each of ``copies [B]``, with seeds in their order."""
        if len(copies) == 0:
            return
        seeds = [next(self._seeds) for _ in range(len(copies))]
        drawn = self.initial(seeds)
        for name, value in self.state.items():
            if name in drawn:
                value.index_copy_(-1, copies, torch.from_numpy(drawn[name]).to(value))
            else:
                value.index_fill_(-1, copies, 0)
        # not in place: the last `Step` holds these tensors
        self._return = {role: value.index_fill(0, copies, 0) for role, value in self._return.items()}
        self._length = self._length.index_fill(0, copies, 0)
        self._seed = self._seed.index_copy(0, copies, torch.tensor(seeds, device=copies.device))
        self._look()

    def _look(self) -> None:
        """Bring everything that follows from the state up to date with it."""
        self.world.look()
        self.obs = self._observe()
        self._steps_left = self.max_cycles - int(self._length.max())

    def _observe(self) -> ByGroup:
        """`observe` as the protocol wants it, ``[E, A, O]`` float32."""
        return {
            role: seen.flatten(0, 1).t().contiguous().float().unflatten(1, seen.shape[:2])
            for role, seen in self.observe().items()
        }

    def _act(self, action: ByGroup) -> Tensor:
        """Say what is said and return the agents' moves ``[A, 2, E]``."""
        moves = []
        for role, rows in self._rows.items():
            control = self._control(role, action[role])  # [E, A, 2 + C], [E, A, 2] of the silent
            control = control.flatten(1).t().unflatten(0, control.shape[1:])
            moves.append(control[:, :2])
            if not self._kind[role].silent:
                self.world.speech[rows] = control[:, 2:]
        return torch.cat(moves)

    def _control(self, role: str, action: Tensor) -> Tensor:
        if not self.continuous_actions:
            return F.embedding(action[..., 0], self._table[role])
        action = action.clamp(0, 1)
        if not self._kind[role].movable:
            return F.pad(action, (2, 0)).to(self.world.pos.dtype)
        move = action[..., 2:5:2] - action[..., 1:5:2]  # in float32 as mpe2 does
        return torch.cat([move, action[..., 5:]], -1).to(self.world.pos.dtype)

    def _filled(self, value: bool | int | float, *shape: int) -> Tensor:
        return torch.full((self.num_envs, *shape), value, device=self.world.pos.device)

    def _to_agents(self, flag: Tensor) -> ByGroup:
        """One flag per copy ``[E]`` as each agent's ``[E, A]``."""
        return {group.name: flag[:, None].expand(-1, group.num_agents) for group in self.groups}


def read(kind: type[Arguments], name: str, arguments: Mapping[str, Any]) -> Arguments:
    """mpe2's arguments as the dataclass of those that a batched task has.

    Raises:
        ValueError: an argument that it does not have.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise ValueError(
            f"{name}: not here yet: {', '.join(unknown)} (here are {', '.join(known)}); use env.backend=mpe2"
        )
    return kind(**arguments)


def _controls(agent: Agent, symbols: int) -> NDArray[np.float64]:
    """What each discrete action means, ``[actions, 2 + C]`` (without C for the silent): a move and the symbol said."""
    moves = MOVES if agent.movable else MOVES[:1]
    if agent.silent:
        return moves.astype(float)
    words = np.eye(symbols)
    return np.concatenate([np.tile(moves, (symbols, 1)), words.repeat(len(moves), axis=0)], axis=1)


def _action_space(agent: Agent, symbols: int, continuous: bool) -> spaces.Space[Any]:
    if continuous:
        return spaces.Box(0, 1, (len(MOVES) * agent.movable + symbols * (not agent.silent),))
    return spaces.Discrete(len(_controls(agent, symbols)))
