"""mpe2's ``simple_speaker_listener_v4``: a speaker, who cannot move, tells a listener which landmark to go to."""

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

COLORS = [[0.65, 0.15, 0.15], [0.15, 0.65, 0.15], [0.15, 0.15, 0.65]]  # of the landmarks


class SimpleSpeakerListener(ParticleEnv[Arguments]):
    """Both get minus the listener's squared distance to the goal, whose colour only the speaker sees."""

    takes = Arguments
    symbols = 3

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        speaker = Agent("speaker_0", size=0.075, collide=False, movable=False, silent=False)
        listener = Agent("listener_0", size=0.075, collide=False)
        return [speaker, listener], [Entity(f"landmark {i}", size=0.04, collide=False) for i in range(3)]

    def more_state(self) -> dict[str, Tensor]:
        return {"goal": self._filled(0)}  # which landmark, [E]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"goal": draws.integers(3), "pos": draws.uniform(-1, 1, 5, 2)}

    def observe(self) -> ByGroup:
        """The speaker: the goal's colour; the listener: own velocity, relative landmarks, and what is said."""
        world = self.world
        heard = [world.vel[1:], world.relative[1:, 2:].flatten(1, 2), world.speech[:1]]
        return {"speaker": pick(self._colors, self.state["goal"]), "listener": torch.cat(heard, 1)}

    def reward(self) -> Tensor:
        return -pick(self.world.relative[1:, 2:], self.state["goal"]).square().sum(1).expand(2, -1)

    @cached_property
    def _colors(self) -> Tensor:  # [1, landmarks, 3, E]
        return self.world.pos.new_tensor(COLORS)[:, :, None].expand(1, -1, -1, self.num_envs)
