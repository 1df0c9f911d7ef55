"""mpe2's ``simple_tag_v3``: adversaries chase faster good agents around obstacles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.curriculum import CurriculumEnv
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity, nearest, without_self

ADVERSARY_SIZE, GOOD_SIZE = 0.075, 0.05
STAGES = (0.5, 0.75, 1.0)  # of the curriculum: how strong and fast the good are, of what they can be


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """How many of each there are; the others are explained in conf/env/simple_tag.yaml."""

    num_good: int = 1
    num_adversaries: int = 3
    num_obstacles: int = 2
    terminate_on_success: bool = False
    num_agent_neighbors: int | None = None
    num_landmark_neighbors: int | None = None
    curriculum: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_good", "num_adversaries", "num_obstacles"):
            self.at_least(name, 0)
        for name in ("num_agent_neighbors", "num_landmark_neighbors"):
            self.at_least(name, 1)
        if self.num_good + self.num_adversaries == 0:
            raise ValueError("num_good and num_adversaries are both 0: a world needs an agent")


class SimpleTag(CurriculumEnv[Arguments]):
    """Adversaries are paid for every touch of a good agent; the good pay for theirs, and for leaving the field.

    A new stage of the curriculum acts on a copy from its next episode on.
    """

    takes = Arguments
    stages = len(STAGES)
    symbols = 2  # nobody says or hears them

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        options = self.arguments
        adversaries = [
            Agent(f"adversary_{i}", size=ADVERSARY_SIZE, accel=3.0, max_speed=1.0)
            for i in range(options.num_adversaries)
        ]
        good = [Agent(f"agent_{i}", size=GOOD_SIZE, accel=4.0, max_speed=1.3) for i in range(options.num_good)]
        return adversaries + good, [Entity(f"landmark {i}", size=0.2) for i in range(options.num_obstacles)]

    def more_state(self) -> dict[str, Tensor]:
        if not self.arguments.curriculum:
            return {}
        world = self.world
        world.accel, world.max_speed = (each.repeat(1, 1, self.num_envs) for each in (world.accel, world.max_speed))
        return {"accel": world.accel, "max_speed": world.max_speed}

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        options, agents = self.arguments, self.world.agents
        edge = np.array([1.0] * len(agents) + [0.9] * options.num_obstacles)[:, None, None]
        # uniform(-edge, edge) to the last bit, drawn together as there may be no obstacles
        begun = {"pos": 2 * edge * draws.uniform(0, 1, len(edge), 2) - edge}
        if options.curriculum:
            part = [1.0] * options.num_adversaries + [STAGES[self.curriculum_stage]] * options.num_good
            for name in ("accel", "max_speed"):
                full = [getattr(agent, name) for agent in agents]
                begun[name] = np.multiply(part, full)[:, None, None].repeat(begun["pos"].shape[-1], 2)
        return begun

    def observe(self) -> ByGroup:
        """Own velocity and position, relative to it the obstacles and other agents, and the good others' velocities."""
        world, options = self.world, self.arguments
        number = len(world.agents)
        landmarks, others = nearest(world.relative[:, number:], options.num_landmark_neighbors), world.others()
        good = world.vel[options.num_adversaries :]
        if options.num_agent_neighbors is None:
            velocities = {"adversary": good.expand(options.num_adversaries, *good.shape)}
            if len(good):
                velocities["agent"] = without_self(good.expand(len(good), *good.shape))
        else:  # a velocity for each of the nearest, an adversary's being zero
            everyone = F.pad(good, (0, 0, 0, 0, options.num_adversaries, 0)).expand(number, -1, -1, -1)
            both = nearest(torch.cat([others, without_self(everyone)], 2), options.num_agent_neighbors)
            others = both[:, :, :2]
            velocities = {role: both[rows, :, 2:] for role, rows in self.rows.items()}
        seen = [world.vel, world.pos[:number], landmarks.flatten(1, 2), others.flatten(1, 2)]
        return {
            role: torch.cat([*(part[rows] for part in seen), velocities[role].flatten(1, 2)], 1)
            for role, rows in self.rows.items()
        }

    def reward(self) -> Tensor:
        """10 for the adversaries, all alike, and minus 10 for the touched, for each touch; the good stay inside."""
        touched = self._touched().sum(1, dtype=self.world.pos.dtype)  # [good, E]
        outside = leaving(self.world.pos[self.arguments.num_adversaries : len(self.world.agents)])
        adversaries = (touched.sum(0) * 10).expand(self.arguments.num_adversaries, -1)
        return torch.cat([adversaries, touched * -10 - outside])

    def success(self) -> Tensor | None:
        if not self.arguments.terminate_on_success:
            return None
        return self._touched().any(1).all(0)

    def _touched(self) -> Tensor:
        """Whether each good agent is touched by each adversary, ``[good, adversaries, E]``."""
        number = self.arguments.num_adversaries
        return self.world.distance[number:, :number] < ADVERSARY_SIZE + GOOD_SIZE


def leaving(pos: Tensor) -> Tensor:
    """What agents pay near and beyond the edges of the field ``[-1, 1]``, axis by axis, ``[A, 2, E] -> [A, E]``."""
    far = pos.abs()
    return torch.where(far < 1, (far - 0.9).clamp(min=0) * 10, (2 * far - 2).exp().clamp(max=10)).sum(1)
