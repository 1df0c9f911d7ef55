"""mpe2's ``simple_push_v3``: an agent goes to its goal, and an adversary pushes it away."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle.env import Arguments, ParticleEnv
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity, pick

LANDMARK_COLORS = [[0.1, 0.9, 0.1], [0.1, 0.1, 0.9]]
AGENT_COLORS = [[0.25, 0.75, 0.25], [0.25, 0.25, 0.75]]  # of the good agent, for each goal


class SimplePush(ParticleEnv[Arguments]):
    """One landmark is the goal, which only the good agent knows: it also wears the goal's colour."""

    takes = Arguments
    symbols = 2  # zeros: the agents are silent

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        agents = [Agent("adversary_0"), Agent("agent_0")]
        return agents, [Entity(f"landmark {i}", collide=False) for i in range(2)]

    def more_state(self) -> dict[str, Tensor]:
        return {"goal": self._filled(0)}  # which landmark, [E]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"goal": draws.integers(2), "pos": draws.uniform(-1, 1, 4, 2)}

    def observe(self) -> ByGroup:
        """Own velocity, landmarks, the other agent; the good one also its goal, its colour and the landmarks'."""
        vel, goal = self.world.vel, self.state["goal"]
        landmarks, other = self.world.relative[:, 2:], self.world.others().squeeze(1)
        places = landmarks.flatten(1, 2)
        adversary = [vel[:1], places[:1], other[:1]]
        aim = [pick(landmarks[1:], goal), pick(self._agent_colors, goal)]
        agent = [vel[1:], *aim, places[1:], self._landmark_colors, other[1:]]
        return {"adversary": torch.cat(adversary, 1), "agent": torch.cat(agent, 1)}

    def reward(self) -> Tensor:
        """The agent: minus its distance to the goal; the adversary: that distance minus its own."""
        adversary, agent = pick(self.world.distance[:, 2:], self.state["goal"])
        return torch.stack([agent - adversary, -agent])

    @cached_property
    def _landmark_colors(self) -> Tensor:  # [1, 2 x 3, E]
        return self.world.pos.new_tensor(LANDMARK_COLORS).view(1, -1, 1).expand(-1, -1, self.num_envs)

    @cached_property
    def _agent_colors(self) -> Tensor:  # [1, goals, 3, E]
        return self.world.pos.new_tensor(AGENT_COLORS)[:, :, None].expand(1, -1, -1, self.num_envs)
