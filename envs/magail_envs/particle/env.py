"""What every batched particle task shares: actions, episodes and the `BatchedEnv` protocol around a `World`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from magail.types import AgentGroup, ByGroup, Step
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity, World

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])  # mpe2's actions: none, left, right, down, up


@dataclass(frozen=True)
class Arguments:
    """What every task of mpe2 takes, with mpe2's defaults; a task adds its own."""

    max_cycles: int = 25
    continuous_actions: bool = False
    dynamic_rescaling: bool = True  # of drawings only
    benchmark_data: bool = False

    def __post_init__(self) -> None:
        self.at_least("max_cycles", 1)
        if self.benchmark_data:
            raise ValueError("benchmark_data is not here: leave it off or use env.backend=mpe2")

    def at_least(self, name: str, low: int) -> None:
        """Refuse a smaller value of the argument ``name``; None, where mpe2 takes it, is no limit."""
        value = getattr(self, name)
        if value is not None and value < low:
            raise ValueError(f"{name} is at least {low}, not {value}")

    def proportion(self, name: str) -> None:
        """Refuse a value of the argument ``name`` outside [0, 1]."""
        value = getattr(self, name)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is a proportion in [0, 1], not {value}")


Options = TypeVar("Options", bound=Arguments)


class ParticleEnv(ABC, Generic[Options]):
    """E copies of ``mpe2.<task>.parallel_env(**arguments)`` as tensors on one device.

    A task says what it takes (``takes``), what is in it (`bodies`), how it begins (`initial`), looks (`observe`) and
    pays (`reward`). Agents called ``role_0``, ``role_1``, ... form the group ``role``. ``state`` names every tensor
    that a copy's future depends on, each ``[..., E]``; a task adds its own (`more_state`: a goal, say) and everything
    here saves and restarts it too.

    Args:
        name: what logs and errors call it.
        arguments: mpe2's own (the task's ``takes``).
        num_envs: E.
        device: where the copies live, e.g. ``cpu`` or ``cuda``.
        dtype: ``float32``, or ``float64`` to follow mpe2 to the last digits.

    Raises:
        ValueError: an argument that does not exist here, is of another type or is out of range, or another dtype.
    """

    takes: type[Options]
    symbols = 0  # C

    def __init__(
        self, name: str, arguments: Mapping[str, Any], num_envs: int, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"{name}: a particle world computes in {' or '.join(DTYPES)}, not in {dtype!r}")
        if num_envs < 1:
            raise ValueError(f"{name}: num_envs={num_envs} must be at least 1")
        self.name, self.num_envs = name, num_envs
        self.arguments = _read(self.takes, name, arguments)
        agents, landmarks = self.bodies()
        self.world = World(agents, landmarks, self.symbols, num_envs, torch.device(device), DTYPES[dtype])
        self.device = self.world.pos.device
        self.state = {"pos": self.world.pos, "vel": self.world.vel, "speech": self.world.speech}
        self.state |= self.more_state()
        roles = [
            (role, list(members)) for role, members in groupby(agents, lambda agent: agent.name.rpartition("_")[0])
        ]
        self.kind = {role: members[0] for role, members in roles}
        self.rows = {role: slice(agents.index(members[0]), agents.index(members[-1]) + 1) for role, members in roles}
        self.controls = {
            role: self.world.pos.new_tensor(_controls(kind, self.symbols)) for role, kind in self.kind.items()
        }
        self.obs = self._observe()
        self.groups = tuple(
            AgentGroup(
                role,
                tuple(agent.name for agent in members),
                spaces.Box(-np.inf, np.inf, self.obs[role].shape[-1:], np.float32),
                _action_space(members[0], self.symbols, self.arguments.continuous_actions),
            )
            for role, members in roles
        )
        self.mask = {group.name: self._filled(True, group.num_agents) for group in self.groups}
        self._return = {group.name: self._filled(0.0, group.num_agents) for group in self.groups}
        self._length, self._seed = self._filled(0), self._filled(0)

    @abstractmethod
    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        """The agents, in mpe2's order and with its names, and the landmarks."""

    def more_state(self) -> dict[str, Tensor]:
        """What a task's future depends on besides positions, velocities and utterances, each ``[..., E]``."""
        return {}

    @abstractmethod
    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        """How B copies begin, drawn as mpe2 draws it: members of ``state``, ``[..., B]``; those left out begin at 0."""

    @abstractmethod
    def observe(self) -> ByGroup:
        """What each group's agents see now, ``[A, O, E]``."""

    @abstractmethod
    def reward(self) -> Tensor:
        """What each agent of the world gets now, ``[A, E]``."""

    def post_step(self) -> None:
        """What happens between the physics and the rewards."""

    def success(self) -> Tensor | None:
        """Which copies end here because the task is done, ``[E]`` bool; None in tasks that only end by time."""
        return None

    def reset(self, seeds: Iterator[int]) -> None:
        self._seeds = seeds
        self._begin(torch.arange(self.num_envs, device=self.device))

    def step(self, action: ByGroup) -> Step:
        self.obs, paid, success = self._simulate(action)
        self._length = self._length + 1
        truncated = self._length >= self.arguments.max_cycles
        # as in mpe2, an episode that succeeds at its time limit counts as cut off
        terminated = torch.zeros_like(truncated) if success is None else success & ~truncated
        done = truncated | terminated
        reward = {role: paid[:, rows] for role, rows in self.rows.items()}
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

    def _simulate(self, action: ByGroup) -> tuple[ByGroup, Tensor, Tensor | None]:
        """What is seen, paid (``[E, agents of the world]``) and achieved after ``action``."""
        self.world.step(self._act(action))
        self.post_step()
        return self._observe(), self.reward().t().float(), self.success()

    def compile(self) -> None:
        self._simulate = torch.compile(self._simulate, dynamic=False)  # type: ignore[method-assign]

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
        self._return = {role: value.to(self.device) for role, value in state["episode_return"].items()}
        self._length, self._seed = (state[name].to(self.device) for name in ("episode_length", "episode_seed"))
        self._look()

    def render(self) -> np.ndarray:
        raise ValueError(f"{self.name}: batched particle worlds draw nothing; render mpe2's own world (env.evaluate)")

    def close(self) -> None:
        """Nothing to give back."""

    def _begin(self, copies: Tensor) -> None:
        """Start a new episode in each of ``copies [B]``, with seeds in their order."""
        if len(copies) == 0:
            return
        seeds = [next(self._seeds) for _ in range(len(copies))]
        drawn = self.initial(Draws.seeded(seeds))
        for name, value in self.state.items():
            if name in drawn:
                value.index_copy_(-1, copies, torch.from_numpy(drawn[name]).to(value))
            else:
                value.index_fill_(-1, copies, 0)
        # not in place: the last `Step` holds these tensors
        self._return = {role: value.index_fill(0, copies, 0) for role, value in self._return.items()}
        self._length = self._length.index_fill(0, copies, 0)
        self._seed = self._seed.index_copy(0, copies, torch.tensor(seeds, device=self.device))
        self._look()

    def _look(self) -> None:
        """Bring everything that follows from the state up to date with it."""
        self.world.look()
        self.obs = self._observe()
        self._steps_left = self.arguments.max_cycles - int(self._length.max())

    def _observe(self) -> ByGroup:
        """`observe` as the protocol wants it, ``[E, A, O]`` float32."""
        return {
            role: seen.flatten(0, 1).t().contiguous().float().unflatten(1, seen.shape[:2])
            for role, seen in self.observe().items()
        }

    def _act(self, action: ByGroup) -> Tensor:
        """Say what is said and return the agents' moves ``[A, 2, E]``."""
        moves = []
        for role, rows in self.rows.items():
            control = self._control(role, action[role])  # [E, A, 2 + C], [E, A, 2] of the silent
            control = control.flatten(1).t().unflatten(0, control.shape[1:])
            moves.append(control[:, :2])
            if not self.kind[role].silent:
                self.world.speech[rows] = control[:, 2:]
        return torch.cat(moves)

    def _control(self, role: str, action: Tensor) -> Tensor:
        if not self.arguments.continuous_actions:
            return F.embedding(action[..., 0], self.controls[role])
        action = action.clamp(0, 1)
        if not self.kind[role].movable:
            return F.pad(action, (2, 0)).to(self.world.pos.dtype)
        move = action[..., 2:5:2] - action[..., 1:5:2]  # in float32 as mpe2 does
        return torch.cat([move, action[..., 5:]], -1).to(self.world.pos.dtype)

    def _filled(self, value: bool | int | float, *shape: int) -> Tensor:
        return torch.full((self.num_envs, *shape), value, device=self.device)

    def _to_agents(self, flag: Tensor) -> ByGroup:
        """One flag per copy ``[E]`` as each agent's ``[E, A]``."""
        return {group.name: flag[:, None].expand(-1, group.num_agents) for group in self.groups}


def _read(kind: type[Options], name: str, arguments: Mapping[str, Any]) -> Options:
    known = [field.name for field in fields(kind)]
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise ValueError(
            f"{name}: not here: {', '.join(unknown)} (here are {', '.join(known)}); leave them off or use "
            "env.backend=mpe2"
        )
    hints = get_type_hints(kind)
    for key, value in arguments.items():
        allowed = get_args(hints[key]) or (hints[key],)
        if type(value) not in allowed and not (float in allowed and type(value) is int):
            raise ValueError(f"{name}: {key}={value!r} should be {' or '.join(x.__name__ for x in allowed)}")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


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
