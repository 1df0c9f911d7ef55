"""Experience replay without rewards: they are asked for when steps are sampled, so they are never out of date."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from magail.advantage import goes_on
from magail.types import JointTransition, Transition, concatenate

FIELDS = tuple(field.name for field in fields(Transition))


@dataclass
class Sequences:
    """B runs of n successive steps, each run from one copy of the environment."""

    steps: JointTransition  # [B, n]
    played: Tensor  # [B, n] bool: the step has been played and is still kept; what others hold means nothing

    @property
    def first(self) -> JointTransition:
        """The first step of each, ``[B]``."""
        return self.steps.map(lambda x: x[:, 0])

    def __add__(self, others: Sequences) -> Sequences:
        """These and then ``others``."""
        return Sequences(concatenate([self.steps, others.steps]), torch.cat([self.played, others.played]))


class Replay:
    """The newest ``capacity`` environment steps of rollouts, a row ``[E]`` for each time step, in a ring.

    It lies on the device of the first rollout pushed. A row holds all agents and fields of a step. No imitation reward
    is kept; ``env_reward`` is there for ``algorithm=rl`` alone.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ring: JointTransition | None = None  # [R, E]
        self._newest = 0  # row that is written next
        self._size = 0  # rows that hold something

    def __len__(self) -> int:
        """Environment steps kept."""
        return 0 if self._ring is None else self._size * self._ring.batch_shape[1]

    @property
    def full(self) -> bool:
        """Whether the oldest steps make way for the next."""
        return self._ring is not None and self._size == self._ring.batch_shape[0]

    def push(self, rollout: JointTransition) -> None:
        """Take in ``[T, E]`` steps that follow on those pushed before, in place of the oldest where there is no room.

        Raises:
            ValueError: the rollout is larger than the capacity.
        """
        steps, copies = rollout.batch_shape
        if steps * copies > self.capacity:
            raise ValueError(
                f"generator.replay_capacity={self.capacity} is less than one rollout of {steps} x {copies} environment "
                "steps: make it several times as large, or lower rollout_steps or num_envs"
            )
        if self._ring is None:
            rows = self.capacity // copies
            self._ring = rollout.map(lambda x: x.new_zeros(rows, *x.shape[1:]))
        rows = self._ring.batch_shape[0]
        index = (self._newest + torch.arange(steps, device=self._device)) % rows
        for name, group in self._ring.groups.items():
            for key in FIELDS:
                getattr(group, key).index_copy_(0, index, getattr(rollout.groups[name], key))
        self._newest = (self._newest + steps) % rows
        self._size = min(self._size + steps, rows)

    def sample(self, batch_size: int, n: int) -> Sequences:
        """``batch_size`` runs of ``n`` steps, their first steps uniformly and with replacement from all that are kept.

        A run that comes to the newest step ends there: it never goes on with the oldest.
        """
        assert self._ring is not None, "sampled before anything was pushed"
        rows, copies = self._ring.batch_shape
        first, copy = (torch.randint(high, (batch_size, 1), device=self._device) for high in (self._size, copies))
        age = first + torch.arange(n, device=self._device)  # [B, n], 0 is the oldest row
        row = (self._newest - self._size + age) % rows
        steps = self._ring.flatten().rows((row * copies + copy).flatten())
        return Sequences(steps.map(lambda x: x.unflatten(0, (batch_size, n))), age < self._size)

    @property
    def _device(self) -> torch.device:
        assert self._ring is not None
        return next(iter(self._ring.groups.values())).mask.device

    def state_dict(self) -> dict[str, Any]:
        """What is kept, from the oldest row to the newest."""
        if self._ring is None:
            return {}
        order = (self._newest - self._size + torch.arange(self._size, device=self._device)) % self._ring.batch_shape[0]
        kept = self._ring.rows(order)
        return {name: {key: getattr(group, key) for key in FIELDS} for name, group in kept.groups.items()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.__init__(self.capacity)  # type: ignore[misc]
        if state:
            kept = JointTransition({name: Transition(**columns) for name, columns in state.items()})
            rows = max(1, self.capacity // kept.batch_shape[1])  # the newest that there is still room for
            self.push(kept.map(lambda x: x[-rows:].to(device)))


def n_step_return(reward: Tensor, group: Transition, played: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Discounted sums of rewards ``[B, n, A]`` over runs of n steps, and from where a value follows on them.

    An agent's sum stops with the step in which it terminated or was truncated, and with the last step ``played``.

    Returns:
        The sums ``[B, A]``; the step that each stopped with, ``[B, A]`` from 0; and what the value of that step's
        successor counts, ``[B, A]``: ``gamma`` to the number of steps summed, or 0 where the agent terminated.
    """
    going_on = goes_on(group.terminated, group.truncated, group.mask)
    reached = torch.cat([torch.ones_like(going_on[:, :1]), going_on[:, :-1]], 1).cumprod(1).bool()
    summed = reached & played.unsqueeze(-1)  # [B, n, A], true from step 0 up to the last one
    last = summed.sum(1) - 1
    discounts = gamma ** torch.arange(reward.shape[1], device=reward.device).unsqueeze(-1)
    sums = (reward * discounts * summed).sum(1)
    return sums, last, gamma ** (last + 1) * ~at_step(group.terminated, last)


def at_step(x: Tensor, step: Tensor) -> Tensor:
    """Of ``x [B, n, A, ...]`` what each agent has at its ``step [B, A]``: ``[B, A, ...]``."""
    index = step.unsqueeze(1).reshape(len(x), 1, -1, *(1 for _ in x.shape[3:])).expand(-1, -1, -1, *x.shape[3:])
    return x.gather(1, index).squeeze(1)
