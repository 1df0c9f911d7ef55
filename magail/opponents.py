"""Opponents: groups that a given policy plays, so that only the other groups are left to learn, or to be judged.

python -m magail.train algorithm=rl env=simple_tag 'opponents={agent: RUN_FOLDER}'       a best response to a run
python -m magail.evaluate env=simple_tag checkpoint=A 'opponents={agent: B}'             A's adversaries against B
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from magail.experts import load_expert
from magail.policy import Acting, Policy
from magail.rollout import Player
from magail.types import BatchedEnv, BatchedEnvWrapper, ByGroup, Step


def against(env: BatchedEnv, opponents: Mapping[str, str] | None, seed: int) -> BatchedEnv:
    """``env`` with who plays its groups by the groups' names (`load_expert`'s sources); None: nobody does.

    Raises:
        ValueError: a group that ``env`` does not have, or none is left; no such policy, or one for other spaces.
    """
    if not opponents:
        return env
    groups = {group.name: group for group in env.groups}
    if not opponents.keys() < groups.keys():
        raise ValueError(
            f"opponents={dict(opponents)}: {env.name} has the groups {', '.join(groups)}; name some of them and leave "
            "at least one to play"
        )
    policies = {name: load_expert(source, [groups[name]]) for name, source in opponents.items()}
    return AgainstOpponents(env, policies, seed)


class AgainstOpponents(BatchedEnvWrapper):
    """A batched environment some of whose groups are played by others; its ``groups`` are those that are left.

    The opponents draw their actions from random numbers of their own, which begin anew with every `reset`.
    """

    def __init__(self, env: BatchedEnv, opponents: Mapping[str, Acting], seed: int) -> None:
        super().__init__(env, env.device)
        self.groups = tuple(group for group in env.groups if group.name not in opponents)
        self._players = {
            name: Player(policy.to(env.device) if isinstance(policy, Policy) else policy)
            for name, policy in opponents.items()
        }
        self.seed, self._random = seed, torch.Generator(env.device)

    def reset(self, seeds: Iterator[int]) -> None:
        self._random.manual_seed(self.seed)
        for player in self._players.values():
            player.memory = {}
        super().reset(seeds)

    def step(self, action: ByGroup) -> Step:
        mask = self.env.mask
        theirs = {name: player.act(self.env.obs, self._random)[0][name] for name, player in self._players.items()}
        step = self.env.step(action | theirs)
        for player in self._players.values():
            player.forget(step, mask)
        self._look()
        return step.map_groups(self._left)

    def _left(self, values: ByGroup) -> ByGroup:
        return {group.name: values[group.name] for group in self.groups}

    def _look(self) -> None:
        self.obs, self.mask = self._left(self.env.obs), self._left(self.env.mask)

    def state_dict(self) -> dict[str, Any]:
        players = {name: player.state_dict() for name, player in self._players.items()}
        return {"env": self.env.state_dict(), "players": players, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        for name, player in self._players.items():
            player.load_state_dict(state["players"][name], self.device)
        self._random.set_state(state["random"])
        super().load_state_dict(state["env"], seeds)
