"""mpe2's ``simple_formation_v1``: N agents spread over a circle around a landmark."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magail_envs.particle.seeding import Draws
from magail_envs.particle.targets import TargetsEnv
from magail_envs.particle.world import Agent, Entity

RADIUS = 0.5


class SimpleFormation(TargetsEnv):
    """The targets are the corners of a regular polygon, which turns with the agent of the smallest angle."""

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        agents = [Agent(f"agent_{i}") for i in range(self.arguments.N)]
        return agents, [Entity("landmark_0", size=0.03, collide=False)]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"pos": np.concatenate([draws.uniform(-1, 1, self.arguments.N, 2), draws.uniform(-0.5, 0.5, 1, 2)])}

    def targets(self) -> Tensor:
        x, y = (-self.world.relative[:, self.arguments.N]).unbind(1)  # [N, E] of the agents, seen from the landmark
        angle = torch.atan2(y, x)
        first = torch.where(angle < 0, angle + 2 * math.pi, angle).amin(0)
        corners = torch.arange(self.arguments.N, dtype=first.dtype, device=first.device)
        angle = first + corners[:, None] * (2 * math.pi / self.arguments.N)
        return self.world.pos[self.arguments.N] + RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
