"""mpe2's ``simple_adversary_v3``: N agents cover a goal without showing it to the adversary that looks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity, nearest, pick


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """``N`` good agents and as many landmarks; the others are explained in conf/env/simple_adversary.yaml."""

    N: int = 2
    num_agent_neighbors: int | None = None
    num_landmark_neighbors: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("N", "num_agent_neighbors", "num_landmark_neighbors"):
            self.at_least(name, 1)


class SimpleAdversary(env.ParticleEnv[Arguments]):
    """One landmark is the goal, which only the good agents know; nobody collides."""

    takes = Arguments
    symbols = 2  # zeros: the agents are silent

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        number = self.arguments.N
        names = ["adversary_0", *(f"agent_{i}" for i in range(number))]
        agents = [Agent(name, size=0.15, collide=False) for name in names]
        return agents, [Entity(f"landmark {i}", size=0.08, collide=False) for i in range(number)]

    def more_state(self) -> dict[str, Tensor]:
        return {"goal": self._filled(0)}  # which landmark, [E]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        number = self.arguments.N
        return {"goal": draws.integers(number), "pos": draws.uniform(-1, 1, 2 * number + 1, 2)}

    def observe(self) -> ByGroup:
        """The goal (not for the adversary), the landmarks and the other agents, all relative to oneself."""
        world, options = self.world, self.arguments
        landmarks = world.relative[:, options.N + 1 :]
        goal = pick(landmarks, self.state["goal"])
        landmarks = nearest(landmarks, options.num_landmark_neighbors)
        others = nearest(world.others(), options.num_agent_neighbors)
        seen = torch.cat([goal, landmarks.flatten(1, 2), others.flatten(1, 2)], 1)
        return {"adversary": seen[:1, 2:], "agent": seen[1:]}

    def reward(self) -> Tensor:
        """The adversary: minus its distance to the goal; the good: that distance minus the nearest one's of them."""
        distance = pick(self.world.distance[:, self.arguments.N + 1 :], self.state["goal"])  # [A, E]
        adversary, nearest_good = distance[:1], distance[1:].amin(0)
        return torch.cat([-adversary, (adversary - nearest_good).expand(self.arguments.N, -1)])
