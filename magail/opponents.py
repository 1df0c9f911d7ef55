"""Opponents: groups that given policies play, so that only the other groups are left to learn, or to be judged.

python -m magail.train algorithm=rl env=simple_tag 'opponents={agent: RUN_FOLDER}'       a best response to a run
python -m magail.train algorithm=rl env=simple_tag 'opponents={agent: [A, B, C]}'        to three, in turn
python -m magail.evaluate env=simple_tag checkpoint=A 'opponents={agent: B}'             A's adversaries against B
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from magail.experts import Source, load_expert, moved
from magail.policy import Acting
from magail.rollout import Player
from magail.types import BatchedEnv, BatchedEnvWrapper, ByGroup, Step


def against(env: BatchedEnv, opponents: Mapping[str, Source] | None, seed: int) -> BatchedEnv:
    """``env`` with who plays its groups by the groups' names (`load_expert`'s sources).

    Groups for which the same population is named are played by the same of its policies in an episode. None: nobody
    plays.

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
    teams: dict[str, list[str]] = {}
    for name, source in opponents.items():
        teams.setdefault(name if isinstance(source, str) else str(source), []).append(name)
    policies = {
        tuple(names): load_expert(opponents[names[0]], [groups[name] for name in names]) for names in teams.values()
    }
    return AgainstOpponents(env, policies, seed)


class AgainstOpponents(BatchedEnvWrapper):
    """A batched environment some of whose groups are played by others; its ``groups`` are those that are left.

    ``opponents`` are policies by the names of the groups that they play. They draw their actions from random numbers of
    their own, which begin anew with every `reset`.
    """

    def __init__(self, env: BatchedEnv, opponents: Mapping[tuple[str, ...], Acting], seed: int) -> None:
        super().__init__(env, env.device)
        played = {name for names in opponents for name in names}
        self.groups = tuple(group for group in env.groups if group.name not in played)
        self._opponents = {names: Player(moved(policy, env.device)) for names, policy in opponents.items()}
        self.seed, self._random = seed, torch.Generator(env.device)

    def reset(self, seeds: Iterator[int]) -> None:
        self._random.manual_seed(self.seed)
        for player in self._opponents.values():
            player.memory = {}
        super().reset(seeds)

    def step(self, action: ByGroup) -> Step:
        mask = self.env.mask
        for names, player in self._opponents.items():
            theirs, _ = player.act({name: self.env.obs[name] for name in names}, self._random)
            action = action | theirs
        step = self.env.step(action)
        for player in self._opponents.values():
            player.forget(step, mask)
        self._look()
        return step.map_groups(self._left)

    def _left(self, values: ByGroup) -> ByGroup:
        return {group.name: values[group.name] for group in self.groups}

    def _look(self) -> None:
        self.obs, self.mask = self._left(self.env.obs), self._left(self.env.mask)

    def state_dict(self) -> dict[str, Any]:
        opponents = [player.state_dict() for player in self._opponents.values()]
        return {"env": self.env.state_dict(), "opponents": opponents, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        for player, memory in zip(self._opponents.values(), state["opponents"], strict=True):
            player.load_state_dict(memory, self.device)
        self._random.set_state(state["random"])
        super().load_state_dict(state["env"], seeds)
