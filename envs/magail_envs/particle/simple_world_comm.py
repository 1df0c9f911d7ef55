"""mpe2's ``simple_world_comm_v3``: adversaries, told by a leader, chase agents that eat and hide in forests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.seeding import Draws
from magail_envs.particle.simple_tag import leaving
from magail_envs.particle.world import Agent, Entity, without_self

ADVERSARY_SIZE, GOOD_SIZE, FOOD_SIZE, FOREST_SIZE = 0.075, 0.045, 0.03, 0.3


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """How many of each there are; the leader is one of the adversaries."""

    num_good: int = 2
    num_adversaries: int = 4
    num_obstacles: int = 1
    num_food: int = 2
    num_forests: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        # without good agents or food mpe2 breaks, without adversaries its leader is a good agent
        for name in ("num_good", "num_adversaries", "num_food"):
            self.at_least(name, 1)
        for name in ("num_obstacles", "num_forests"):
            self.at_least(name, 0)


class SimpleWorldComm(env.ParticleEnv[Arguments]):
    """Who is in a forest is seen only from within it, and sees only what is there; the leader sees everybody."""

    takes = Arguments
    symbols = 4

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        options = self.arguments
        names = ["leadadversary_0", *(f"adversary_{i}" for i in range(options.num_adversaries - 1))]
        agents = [
            Agent(name, size=ADVERSARY_SIZE, silent=i > 0, accel=3.0, max_speed=1.0) for i, name in enumerate(names)
        ]
        agents += [Agent(f"agent_{i}", size=GOOD_SIZE, accel=4.0, max_speed=1.3) for i in range(options.num_good)]
        landmarks = [Entity(f"landmark {i}", size=0.2) for i in range(options.num_obstacles)]
        landmarks += [Entity(f"food {i}", size=FOOD_SIZE, collide=False) for i in range(options.num_food)]
        landmarks += [Entity(f"forest {i}", size=FOREST_SIZE, collide=False) for i in range(options.num_forests)]
        return agents, landmarks

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        """mpe2 puts food and forests somewhere among the landmarks first, and then somewhere else."""
        options = self.arguments
        agents = draws.uniform(-1, 1, len(self.world.agents), 2)
        landmarks = draws.uniform(-0.9, 0.9, len(self.world.landmarks), 2)
        again = draws.uniform(-0.9, 0.9, options.num_food + options.num_forests, 2)
        return {"pos": np.concatenate([agents, landmarks[: options.num_obstacles], again])}

    def observe(self) -> ByGroup:
        """Own velocity and position, all landmarks, who is visible, in which forests one is, and what the leader said.

        The others' positions, and the velocities of the good among them, are zero for those who hide.
        """
        world, adversaries = self.world, self.arguments.num_adversaries
        number = len(world.agents)
        inside = self._inside()
        visible = self._visible(inside)[:, :, None]
        others = without_self(world.relative[:, :number] * visible)
        good = world.vel[adversaries:] * visible[:, adversaries:]  # [A, G, 2, E]
        landmarks, forests = world.relative[:, number:].flatten(1, 2), inside.to(world.pos.dtype) * 2 - 1
        seen = torch.cat([world.vel, world.pos[:number], landmarks, others.flatten(1, 2)], 1)
        said = world.speech[:1].expand(adversaries, -1, -1)
        chasing = torch.cat([seen[:adversaries], good[:adversaries].flatten(1, 2), forests[:adversaries], said], 1)
        chased = without_self(good[adversaries:]).flatten(1, 2)
        obs = {"leadadversary": chasing[:1], "adversary": chasing[1:]}
        obs["agent"] = torch.cat([seen[adversaries:], forests[adversaries:], chased], 1)
        return {role: obs[role] for role in self.rows}

    def reward(self) -> Tensor:
        """Adversaries: 5 for every touch of a good agent, less 0.1 of the distance to their nearest.

        The good: minus 5 for every touch, 2 for each food they are at, less 0.05 of the distance to the nearest and
        twice what simple_tag takes for leaving the field.
        """
        world, options = self.world, self.arguments
        adversaries, number = options.num_adversaries, len(world.agents)
        apart = world.distance[adversaries:, :adversaries]  # [G, adversaries, E]
        touched = (apart < ADVERSARY_SIZE + GOOD_SIZE).sum(1, dtype=apart.dtype)  # [G, E]
        first_food = number + options.num_obstacles
        food = world.distance[adversaries:, first_food : first_food + options.num_food]
        eaten = (food < GOOD_SIZE + FOOD_SIZE).sum(1, dtype=food.dtype)
        good = eaten * 2 - touched * 5 - food.amin(1) * 0.05 - leaving(world.pos[adversaries:number]) * 2
        return torch.cat([touched.sum(0) * 5 - apart.amin(0) * 0.1, good])

    def _inside(self) -> Tensor:
        """Whether each agent is in each forest, ``[A, forests, E]``."""
        options, adversaries = self.arguments, self.arguments.num_adversaries
        forests = self.world.distance[:, len(self.world.agents) + options.num_obstacles + options.num_food :]
        return torch.cat(
            [forests[:adversaries] < ADVERSARY_SIZE + FOREST_SIZE, forests[adversaries:] < GOOD_SIZE + FOREST_SIZE]
        )

    def _visible(self, inside: Tensor) -> Tensor:
        """Whether each agent sees each agent, ``[A, A, E]``: in a forest they share, or if neither is in any."""
        places = torch.cat([inside, ~inside.any(1, keepdim=True)], 1)
        visible = (places[:, None] & places).any(2)
        visible[0] = True
        return visible
