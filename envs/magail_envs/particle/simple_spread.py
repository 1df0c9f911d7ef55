"""mpe2's ``simple_spread_v3``: N agents cover N landmarks without running into each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from magail.types import ByGroup
from magail_envs.particle.env import ParticleEnv, read
from magail_envs.particle.seeding import random_raw, uniform
from magail_envs.particle.world import Agent, Entity, nearest

AGENT_SIZE = 0.15
CAPTURE_RADIUS = 0.1
SYMBOLS = 2  # the agents are silent, yet observe the zeros that the others say


@dataclass(frozen=True)
class Arguments:
    """Those of mpe2's own constructor that exist here, with its defaults."""

    N: int = 3
    local_ratio: float = 0.5
    max_cycles: int = 25
    continuous_actions: bool = False
    terminate_on_success: bool = False
    num_agent_neighbors: int | None = None
    num_landmark_neighbors: int | None = None
    curriculum: bool = False
    benchmark_data: bool = False
    dynamic_rescaling: bool = True  # of drawings only

    def __post_init__(self) -> None:
        if self.curriculum or self.benchmark_data:
            raise ValueError(
                "simple_spread: curriculum and benchmark_data are not here yet: leave them off or use env.backend=mpe2"
            )
        if self.N < 1:
            raise ValueError(f"simple_spread: N is the number of agents and of landmarks, at least 1, not {self.N}")
        if not 0.0 <= self.local_ratio <= 1.0:
            raise ValueError(f"simple_spread: local_ratio is a proportion in [0, 1], not {self.local_ratio}")
        for name in ("num_agent_neighbors", "num_landmark_neighbors"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"simple_spread: {name} is at least 1, or null for all, not {count}")


class SimpleSpread(ParticleEnv):
    """E copies of ``mpe2.simple_spread_v3.parallel_env(**arguments)``.

    Args:
        name: what logs and errors call it.
        arguments: mpe2's own (see `Arguments`).
        num_envs: E.
        device: where the copies live, e.g. ``cpu`` or ``cuda``.
        dtype: ``float32``, or ``float64`` to follow mpe2 to the last digits.

    Raises:
        ValueError: an argument that does not exist here or is out of range.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], num_envs: int, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        self.arguments = options = read(Arguments, name, arguments)
        super().__init__(
            name,
            agents=[Agent(f"agent_{i}", size=AGENT_SIZE) for i in range(options.N)],
            landmarks=[Entity(f"landmark {i}", collide=False) for i in range(options.N)],
            symbols=SYMBOLS,
            max_cycles=options.max_cycles,
            continuous_actions=options.continuous_actions,
            num_envs=num_envs,
            device=device,
            dtype=dtype,
        )

    def initial(self, seeds: Sequence[int]) -> dict[str, NDArray[Any]]:
        entities = 2 * self.arguments.N
        pos = uniform(random_raw(seeds, entities * 2), -1, 1)
        return {"pos": pos.T.reshape(entities, 2, len(seeds))}

    def observe(self) -> ByGroup:
        """Own velocity and position, then relative to it the landmarks and the other agents, then what these say."""
        world, options = self.world, self.arguments
        landmarks, others = world.relative[:, options.N :], world.others()
        if options.num_landmark_neighbors is not None:
            landmarks = nearest(landmarks, options.num_landmark_neighbors)
        if options.num_agent_neighbors is not None:
            others = nearest(others, options.num_agent_neighbors)
        silence = world.vel.new_zeros(options.N, others.shape[1] * SYMBOLS, self.num_envs)
        seen = [world.vel, world.pos[: options.N], landmarks.flatten(1, 2), others.flatten(1, 2), silence]
        return {"agent": torch.cat(seen, 1)}

    def reward(self) -> Tensor:
        """Shared: minus the sum of each landmark's distance to its nearest agent; own: minus the agents touched."""
        number, ratio = self.arguments.N, self.arguments.local_ratio
        uncovered = self._nearest_agent().sum(0)
        touched = (self.world.distance[:, :number] < 2 * AGENT_SIZE).sum(1, dtype=uncovered.dtype)
        return touched * -ratio - uncovered * (1 - ratio)

    def success(self) -> Tensor | None:
        if not self.arguments.terminate_on_success:
            return None
        return (self._nearest_agent() < CAPTURE_RADIUS).all(0)

    def _nearest_agent(self) -> Tensor:
        """How far each landmark is from its nearest agent, ``[L, E]`` (L landmarks)."""
        return self.world.distance[:, self.arguments.N :].amin(0)
