"""mpe2's ``simple_v3``: one agent goes to one landmark."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle.env import Arguments, ParticleEnv
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity


class Simple(ParticleEnv[Arguments]):
    """The reward is minus the squared distance to the landmark."""

    takes = Arguments

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        return [Agent("agent_0", collide=False)], [Entity("landmark 0", collide=False)]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"pos": draws.uniform(-1, 1, 2, 2)}

    def observe(self) -> ByGroup:
        """Own velocity, then where the landmark is relative to oneself."""
        return {"agent": torch.cat([self.world.vel, self.world.relative[:, 1]], 1)}

    def reward(self) -> Tensor:
        return -self.world.relative[:, 1].square().sum(1)
