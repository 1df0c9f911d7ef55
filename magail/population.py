"""A population: policies that take turns, one of which plays each episode.

Who answers it has to be ready for all of them, so that it is harder to exploit than any one of them (Lanctot et al.
2017, arXiv 1711.00832). `magail.experts.load_expert` makes one of a list of policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from magail.policy import Acting, Remembering
from magail.rollout import Player
from magail.types import ByGroup


class Population:
    """K policies, of which one is drawn for each episode and plays all of its seats.

    Who plays is part of what is remembered of the episode, beside what that policy remembers itself: a group's memory
    is ``[E, A, 1 + H]``, the first number the player's from 1 on, or 0 before one is drawn.
    """

    def __init__(self, policies: Sequence[Acting]) -> None:
        self.policies = tuple(policies)
        self.units = [policy.recurrent if isinstance(policy, Remembering) else 0 for policy in policies]
        self.recurrent = 1 + max(self.units)

    def each(self, change: Callable[[Acting], Acting]) -> Population:
        return Population([change(policy) for policy in self.policies])

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        """Of lone steps: who plays is drawn for each. Its log-probabilities are those of that policy."""
        action, log_prob, _ = self.act_after({}, obs, generator)
        return action, log_prob

    def act_after(
        self, memory: ByGroup, obs: ByGroup, generator: torch.Generator | None = None
    ) -> tuple[ByGroup, ByGroup, ByGroup]:
        """Actions ``[E, A, U]``, their log-probabilities ``[E, A]``, and the memory after them."""
        memory = memory or {name: x.new_zeros(*x.shape[:2], self.recurrent) for name, x in obs.items()}
        who = self._drawn(memory, generator)
        played = [(who == number).nonzero().flatten() for number in range(1, len(self.policies) + 1)]
        parts = [
            self._played(number, _of(memory, rows), _of(obs, rows), generator)
            for number, rows in enumerate(played, 1)
            if len(rows)
        ]
        order = torch.cat(played).argsort()
        action, log_prob, after = (_joined(part, order) for part in zip(*parts, strict=True))
        return action, log_prob, after

    def _drawn(self, memory: ByGroup, generator: torch.Generator | None) -> Tensor:
        """Who plays in each copy ``[E]``: as those remember who are alive there, else anyone."""
        known = torch.cat([x[..., 0] for x in memory.values()], 1).amax(1).long()
        anyone = torch.randint_like(known, 1, len(self.policies) + 1, generator=generator)
        return torch.where(known > 0, known, anyone)

    def _played(
        self, number: int, memory: ByGroup, obs: ByGroup, generator: torch.Generator | None
    ) -> tuple[ByGroup, ByGroup, ByGroup]:
        """What a policy does where it plays, and the memory of that, in the place of ``memory``."""
        player, units = Player(self.policies[number - 1]), self.units[number - 1]
        player.memory = {name: x[..., 1 : 1 + units] for name, x in memory.items() if units}
        action, log_prob = player.act(obs, generator)
        for x in memory.values():
            x[..., 0] = number
        for name, x in player.memory.items():
            memory[name][..., 1 : 1 + units] = x
        return action, log_prob, memory


def _of(values: ByGroup, rows: Tensor) -> ByGroup:
    return {name: x[rows] for name, x in values.items()}


def _joined(parts: Sequence[ByGroup], order: Tensor) -> ByGroup:
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
