"""What ``simple_line`` and ``simple_formation`` share: N agents take N places, whoever is best for each."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.assignment import assign

FARTHEST = 2.0  # a distance beyond it costs no more
ARRIVED = 0.05


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """``N`` agents; ``terminate_on_success`` ends an episode once each is near its place."""

    N: int = 4
    terminate_on_success: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("N", 1)


class TargetsEnv(env.ParticleEnv[Arguments]):
    """Agents are assigned to targets so that they are as near as possible in sum; all pay their mean distance."""

    takes = Arguments

    @abstractmethod
    def targets(self) -> Tensor:
        """Where somebody should be now, ``[N, 2, E]``."""

    def observe(self) -> ByGroup:
        """Own velocity and position, and the landmarks relative to it."""
        world, number = self.world, self.arguments.N
        return {"agent": torch.cat([world.vel, world.pos[:number], world.relative[:, number:].flatten(1, 2)], 1)}

    def post_step(self) -> None:
        apart = (self.world.pos[: self.arguments.N, None] - self.targets()).square().sum(2).sqrt()  # [N, N, E]
        self._apart = apart.gather(1, assign(apart)[:, None]).squeeze(1)  # [N, E] from each agent to its target

    def reward(self) -> Tensor:
        return -self._apart.clamp(max=FARTHEST).mean(0).expand(self.arguments.N, -1)

    def success(self) -> Tensor | None:
        return (self._apart < ARRIVED).all(0) if self.arguments.terminate_on_success else None
