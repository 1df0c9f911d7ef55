"""mpe2's curricula: tasks that grow harder by stages, at the word of whoever trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from magail_envs.particle.env import Options, ParticleEnv


class CurriculumEnv(ParticleEnv[Options]):
    """A task in stages, 0 being the easiest; what a stage means, and from when on, the task says.

    The names are mpe2's. As there, a stage matters only with the argument ``curriculum``; but stages do change here,
    while those of mpe2 1.1.1 stay at 0, as its scenarios' base class drops what is assigned to them.
    """

    stages: int
    curriculum_stage = 0

    def advance_curriculum(self) -> None:
        """Go on to the next stage; the last one is the end."""
        self.set_curriculum_stage(self.curriculum_stage + 1)

    def set_curriculum_stage(self, stage: int) -> None:
        """Go to ``stage``, or to the nearest there is."""
        self.curriculum_stage = min(max(stage, 0), self.stages - 1)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"curriculum_stage": self.curriculum_stage}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        super().load_state_dict(state, seeds)
        self.curriculum_stage = state["curriculum_stage"]
