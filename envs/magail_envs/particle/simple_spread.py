"""mpe2's ``simple_spread_v3``: N agents cover N landmarks without running into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.curriculum import CurriculumEnv
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity, nearest

AGENT_SIZE = 0.15
CAPTURE_RADIUS = 0.1


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """``N`` agents and as many landmarks; the others are explained in conf/env/simple_spread.yaml."""

    N: int = 3
    local_ratio: float = 0.5
    terminate_on_success: bool = False
    num_agent_neighbors: int | None = None
    num_landmark_neighbors: int | None = None
    curriculum: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("N", "num_agent_neighbors", "num_landmark_neighbors"):
            self.at_least(name, 1)
        self.proportion("local_ratio")


class SimpleSpread(CurriculumEnv[Arguments]):
    """Rewards are shared (distances to landmarks) and own (agents touched) in the proportion ``local_ratio``.

    In stage 0 of its curriculum touching costs nothing; a new stage acts from the next step on.
    """

    takes = Arguments
    stages = 2
    symbols = 2  # the agents are silent, yet observe the zeros that the others say

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        number = self.arguments.N
        agents = [Agent(f"agent_{i}", size=AGENT_SIZE) for i in range(number)]
        return agents, [Entity(f"landmark {i}", collide=False) for i in range(number)]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"pos": draws.uniform(-1, 1, 2 * self.arguments.N, 2)}

    def observe(self) -> ByGroup:
        """Own velocity and position, then relative to it the landmarks and the other agents, then what these say."""
        world, options = self.world, self.arguments
        landmarks = nearest(world.relative[:, options.N :], options.num_landmark_neighbors)
        others = nearest(world.others(), options.num_agent_neighbors)
        silence = world.vel.new_zeros(options.N, others.shape[1] * self.symbols, self.num_envs)
        seen = [world.vel, world.pos[: options.N], landmarks.flatten(1, 2), others.flatten(1, 2), silence]
        return {"agent": torch.cat(seen, 1)}

    def reward(self) -> Tensor:
        """Shared: minus the sum of each landmark's distance to its nearest agent; own: minus the agents touched."""
        number, ratio = self.arguments.N, self.arguments.local_ratio
        uncovered = self._nearest_agent().sum(0)
        if self.arguments.curriculum and self.curriculum_stage == 0:
            return (uncovered * (ratio - 1)).expand(number, -1)
        touched = (self.world.distance[:, :number] < 2 * AGENT_SIZE).sum(1, dtype=uncovered.dtype)
        return touched * -ratio - uncovered * (1 - ratio)

    def success(self) -> Tensor | None:
        if not self.arguments.terminate_on_success:
            return None
        return (self._nearest_agent() < CAPTURE_RADIUS).all(0)

    def _nearest_agent(self) -> Tensor:
        """How far each landmark is from its nearest agent, ``[L, E]`` (L landmarks)."""
        return self.world.distance[:, self.arguments.N :].amin(0)
