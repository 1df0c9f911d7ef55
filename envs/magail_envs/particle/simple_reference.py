"""mpe2's ``simple_reference_v3``: each of two agents tells the other which landmark to go to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity, pick

COLORS = [[0.75, 0.25, 0.25], [0.25, 0.75, 0.25], [0.25, 0.25, 0.75]]  # of the landmarks


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """``local_ratio`` is explained in conf/env/simple_reference.yaml."""

    local_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.proportion("local_ratio")


class SimpleReference(env.ParticleEnv[Arguments]):
    """An agent's goal is where it wants the *other* to go, and only it sees its goal's colour."""

    takes = Arguments
    symbols = 10

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        agents = [Agent(f"agent_{i}", collide=False, silent=False) for i in range(2)]
        return agents, [Entity(f"landmark {i}", collide=False) for i in range(3)]

    def more_state(self) -> dict[str, Tensor]:
        return {"goal": torch.stack([self._filled(0), self._filled(0)])}  # which landmark each knows, [A, E]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"goal": np.stack([draws.integers(3), draws.integers(3)]), "pos": draws.uniform(-1, 1, 5, 2)}

    def observe(self) -> ByGroup:
        """Own velocity, the landmarks relative to oneself, the goal's colour, and what the other says."""
        world, color = self.world, pick(self._colors, self.state["goal"])
        seen = [world.vel, world.relative[:, 2:].flatten(1, 2), color, world.speech.flip(0)]
        return {"agent": torch.cat(seen, 1)}

    def reward(self) -> Tensor:
        """Own: minus the other's distance to one's goal; shared: the mean of both."""
        own = -pick(self.world.distance[:, 2:].flip(0), self.state["goal"])
        return own * self.arguments.local_ratio + own.mean(0) * (1 - self.arguments.local_ratio)

    @cached_property
    def _colors(self) -> Tensor:  # [A, landmarks, 3, E]
        return self.world.pos.new_tensor(COLORS)[:, :, None].expand(2, -1, -1, self.num_envs)
