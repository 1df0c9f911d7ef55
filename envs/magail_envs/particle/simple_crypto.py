"""mpe2's ``simple_crypto_v3``: Alice sends Bob a bit, encrypted with a key both know, and Eve listens."""

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


class SimpleCrypto(ParticleEnv[Arguments]):
    """The bit (``goal``) and the ``key`` are symbols 0 or 1 of four; what Bob and Eve say is their guess of the bit."""

    takes = Arguments
    symbols = 4

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        agents = [Agent(name, collide=False, movable=False, silent=False) for name in ("eve_0", "bob_0", "alice_0")]
        return agents, [Entity(f"landmark {i}", collide=False) for i in range(2)]

    def more_state(self) -> dict[str, Tensor]:
        return {"goal": self._filled(0), "key": self._filled(0)}  # [E]

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        return {"goal": draws.integers(2), "key": draws.integers(2), "pos": draws.uniform(-1, 1, 5, 2)}

    def observe(self) -> ByGroup:
        """Alice: the bit and the key; Bob: the key and what Alice says; Eve: what Alice says."""
        bit, key = (pick(self._one_hot, self.state[name]) for name in ("goal", "key"))
        seen = torch.cat([bit, key, self.world.speech[2:]], 1)  # [1, 3 C, E]
        return {
            "eve": seen[:, 2 * self.symbols :],
            "bob": seen[:, self.symbols :],
            "alice": seen[:, : 2 * self.symbols],
        }

    def reward(self) -> Tensor:
        """Eve: minus the squared error of her guess; the others: her error minus Bob's. All zeros are no guess."""
        guess = self.world.speech[:2]
        error = (guess - pick(self._one_hot, self.state["goal"])).square().sum(1)
        eve, bob = error * (guess.sum(1) > 0)  # a guess is numbers in [0, 1]
        return torch.stack([-eve, eve - bob, eve - bob])

    @cached_property
    def _one_hot(self) -> Tensor:  # [1, 2, C, E]
        words = torch.eye(2, self.symbols, dtype=self.world.pos.dtype, device=self.world.pos.device)
        return words[:, :, None].expand(1, -1, -1, self.num_envs)
