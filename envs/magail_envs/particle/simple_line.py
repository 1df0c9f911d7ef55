"""mpe2's ``simple_line_v1``: N agents line up between two landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from magail_envs.particle.seeding import Draws
from magail_envs.particle.targets import TargetsEnv
from magail_envs.particle.world import Agent, Entity

LENGTH = 1.25


class SimpleLine(TargetsEnv):
    """The targets go from the first landmark to the second in equal steps, and stay what an episode began with."""

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        agents = [Agent(f"agent_{i}", size=0.03) for i in range(self.arguments.N)]
        return agents, [Entity(f"landmark_{i}", size=0.02, collide=False) for i in range(2)]

    def more_state(self) -> dict[str, Tensor]:
        return {"targets": self.world.pos.new_zeros(self.arguments.N, 2, self.num_envs)}

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        """The second landmark stands in a random direction, turned by 5 degrees until it is inside the field."""
        number = self.arguments.N
        agents, start = draws.uniform(-1, 1, number, 2), draws.uniform(-0.25, 0.25, 2)
        angle = draws.uniform(0, 2 * np.pi)  # [B]
        end = _end(start, angle)
        while (outside := (abs(end) >= 1).any(0)).any():
            angle[outside] += np.radians(5)
            end[:, outside] = _end(start[:, outside], angle[outside])
        place = np.arange(number) * (LENGTH / max(number - 1, 1))
        targets = start + place[:, None, None] * _direction(angle)
        return {"pos": np.concatenate([agents, [start, end]]), "targets": targets}

    def targets(self) -> Tensor:
        return self.state["targets"]


def _end(start: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return start + LENGTH * _direction(angle)


def _direction(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angle), np.sin(angle)])
