"""The physics of mpe2's particle worlds (mpe2 1.1, ``_mpe_utils/core.py``), E copies at once.

Tensors here have E **last**: an operation on x, on a distance or on one agent then runs over contiguous memory. Letters
beyond the usual ones: **M** entities (the A agents, then the landmarks), **C** symbols an agent can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 1e2
CONTACT_MARGIN = 1e-3


@dataclass(frozen=True)
class Entity:
    """A disc; defaults are mpe2's. A plain one is a landmark and stays where it is, as in every task of mpe2."""

    name: str
    size: float = 0.05  # radius
    collide: bool = True


@dataclass(frozen=True)
class Agent(Entity):
    """A disc that moves (unless ``movable`` is false) and speaks (unless ``silent``)."""

    movable: bool = True
    silent: bool = True
    mass: float = 1.0
    accel: float = 5.0  # the force of a full move; 5 is what mpe2 takes where a task sets none
    max_speed: float = torch.inf


class World:
    """Positions, velocities and utterances of E copies, and the step that mpe2 makes of them.

    Whoever writes to ``pos`` calls `look` afterwards. An agent is infinitely far from itself: so no sum over other
    agents has to leave it out.
    """

    pos: Tensor  # [M, 2, E]
    vel: Tensor  # [A, 2, E]
    speech: Tensor  # [A, C, E] what each agent said last; zero for the silent
    relative: Tensor  # [A, M, 2, E] where each agent sees each entity
    distance: Tensor  # [A, M, E] between centres
    accel: Tensor  # [A, 1, 1] the force of a full move; [A, 1, E] where a task varies it
    max_speed: Tensor  # [A, 1, 1] or [A, 1, E]

    def __init__(
        self,
        agents: Sequence[Agent],
        landmarks: Sequence[Entity],
        symbols: int,
        num_envs: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        def per_agent(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=dtype).view(len(agents), 1, 1)

        self.agents, self.landmarks = tuple(agents), tuple(landmarks)
        entities: list[Entity] = [*agents, *landmarks]
        num_agents, num_entities = len(agents), len(entities)
        self.pos = torch.zeros(num_entities, 2, num_envs, device=device, dtype=dtype)
        self.vel = torch.zeros(num_agents, 2, num_envs, device=device, dtype=dtype)
        self.speech = torch.zeros(num_agents, symbols, num_envs, device=device, dtype=dtype)
        self.accel = per_agent([agent.accel if agent.movable else 0.0 for agent in agents])
        self._gain = per_agent([DT / agent.mass for agent in agents])
        self.max_speed = per_agent([agent.max_speed for agent in agents])
        self._limited = any(agent.max_speed < torch.inf for agent in agents)
        # -inf where two entities never push each other
        reach = [[a.size + b.size if _push(a, b) else -torch.inf for b in entities] for a in agents]
        colliders = [m for m in range(num_entities) if any(row[m] > 0 for row in reach)]
        self._colliders = slice(0, max(colliders, default=-1) + 1)
        self._reach = torch.tensor(reach, device=device, dtype=dtype)[:, self._colliders, None]
        self._self = torch.zeros(num_agents, num_entities, 1, device=device, dtype=dtype)
        self._self[range(num_agents), range(num_agents)] = torch.inf
        off_diagonal = [a * num_entities + b for a in range(num_agents) for b in range(num_agents) if a != b]
        self._others = torch.tensor(off_diagonal, device=device, dtype=torch.int64)
        self.look()

    def look(self) -> None:
        """Bring ``relative`` and ``distance`` up to date with ``pos``."""
        self.relative = self.pos - self.pos[: len(self.agents), None]
        self.distance = (self.relative.square().sum(2) + self._self).sqrt()

    def others(self) -> Tensor:
        """Where each agent sees each other agent, ``[A, A - 1, 2, E]``."""
        rows = self.relative.flatten(0, 1).index_select(0, self._others)
        return rows.unflatten(0, (len(self.agents), len(self.agents) - 1))

    def step(self, move: Tensor) -> None:
        """Let ``DT`` pass while agents ``move [A, 2, E]``, 1 being their full force along an axis.

        Positions go on with the *old* velocities (older MPE, and VMAS, do the reverse).
        """
        force = move * self.accel
        if self._colliders.stop:
            force += self._contact()
        self.pos[: len(self.agents)].add_(self.vel, alpha=DT)
        self.vel.mul_(1 - DAMPING).addcmul_(force, self._gain)
        if self._limited:
            speed = self.vel.square().sum(1, keepdim=True).sqrt()
            self.vel.mul_((self.max_speed / speed).clamp(max=1.0))
        self.look()

    def _contact(self) -> Tensor:
        """What the entities that touch each agent push it with, ``[A, 2, E]``: soft, so a little also from a gap."""
        distance = self.distance[:, self._colliders]
        depth = torch.logaddexp(distance.new_zeros(()), (self._reach - distance) / CONTACT_MARGIN)
        strength = depth * (-CONTACT_FORCE * CONTACT_MARGIN) / distance
        return (self.relative[:, self._colliders] * strength[:, :, None]).sum(1)


def nearest(relative: Tensor, count: int | None) -> Tensor:
    """The ``count`` nearest of K relative positions ``[A, K, 2, E]``, nearest first; zeros where K is smaller.

    Without a ``count`` it is all of them, as they are.

    What stands behind a position, ``[A, K, 2 + ..., E]``, goes with it.
    """
    if count is None:
        return relative
    order = relative[:, :, :2].square().sum(2, keepdim=True).argsort(1)[:, :count]
    kept = relative.gather(1, order.expand(-1, -1, relative.shape[2], -1))
    return F.pad(kept, (0, 0, 0, 0, 0, count - kept.shape[1]))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """The one of K entries ``[A, K, ..., E]`` that ``index`` points to in each copy, ``[A, ..., E]``.

    ``index`` is int64 ``[E]``, or ``[A, E]`` where each agent has its own.
    """
    index = index.view(-1, *[1] * (values.dim() - 2), index.shape[-1])
    return values.gather(1, index.expand_as(values[:, :1])).squeeze(1)


def without_self(pairs: Tensor) -> Tensor:
    """``[K, K, ..., E] -> [K, K - 1, ..., E]``: what each of K has with the others, without what it has with itself."""
    number = len(pairs)
    rows = pairs.flatten(0, 1)[1:].unflatten(0, (number - 1, number + 1))  # each row now ends with a diagonal entry
    return rows[:, :-1].reshape(number, number - 1, *pairs.shape[2:])


def _push(agent: Agent, entity: Entity) -> bool:
    return agent.movable and agent.collide and entity.collide and entity is not agent
