"""Opponents: groups that given policies play, so that only the other groups are left to learn, or to be judged.

python -m magail.train algorithm=rl env=simple_tag 'opponents={agent: RUN_FOLDER}'       a best response to a run
python -m magail.train algorithm=rl env=simple_tag 'opponents={agent: [A, B, C]}'        to a population of three
python -m magail.evaluate env=simple_tag checkpoint=A 'opponents={agent: B}'             A's adversaries against B
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from magail.experts import load_expert
from magail.policy import Acting, Policy
from magail.rollout import Player
from magail.types import BatchedEnv, BatchedEnvWrapper, ByGroup, Step


def against(env: BatchedEnv, opponents: Mapping[str, str | Sequence[str]] | None, seed: int) -> BatchedEnv:
    """``env`` with who plays its groups by the groups' names (`load_expert`'s sources, or several, a `Population`).

    None: nobody does.

    Raises:
        ValueError: a group that ``env`` does not have, none is left, or nobody is named for one; no such policy, or one
            for other spaces.
    """
    if not opponents:
        return env
    groups = {group.name: group for group in env.groups}
    if not opponents.keys() < groups.keys():
        raise ValueError(
            f"opponents={dict(opponents)}: {env.name} has the groups {', '.join(groups)}; name some of them and leave "
            "at least one to play"
        )
    if nobody := [name for name, sources in opponents.items() if not sources]:
        raise ValueError(f"opponents: nobody is named for {nobody[0]}; name a policy, or leave the group to learn")
    policies = {
        name: [load_expert(source, [groups[name]]) for source in ([sources] if isinstance(sources, str) else sources)]
        for name, sources in opponents.items()
    }
    return AgainstOpponents(env, policies, seed)


class Population:
    """Policies that share the ``copies`` of an environment: of K the i-th plays copies i, i + K, i + 2 K ..."""

    def __init__(self, policies: Sequence[Acting], copies: int) -> None:
        self.copies, playing = copies, policies[:copies]
        self._players = [(slice(i, copies, len(playing)), Player(policy)) for i, policy in enumerate(playing)]

    def act(self, obs: ByGroup, generator: torch.Generator) -> ByGroup:
        """Actions ``[copies, A, U]`` of every group that the policies play; `forget` is due after the step."""
        parts = [(rows, player.act(_of(obs, rows), generator)[0]) for rows, player in self._players]
        _, first = parts[0]
        action = {name: x.new_empty(self.copies, *x.shape[1:]) for name, x in first.items()}
        for rows, part in parts:
            for name, x in part.items():
                action[name][rows] = x
        return action

    def forget(self, step: Step, mask: ByGroup) -> None:
        """Forget the episodes that ended in ``step``, before which ``mask`` were alive."""
        for rows, player in self._players:
            player.forget(step.map_groups(functools.partial(_of, rows=rows)), _of(mask, rows))

    def forget_all(self) -> None:
        for _, player in self._players:
            player.memory = {}

    def state_dict(self) -> dict[str, Any]:
        return {"players": [player.state_dict() for _, player in self._players]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for (_, player), memory in zip(self._players, state["players"], strict=True):
            player.load_state_dict(memory, device)


def _of(values: ByGroup, rows: slice) -> ByGroup:
    return {name: x[rows] for name, x in values.items()}


class AgainstOpponents(BatchedEnvWrapper):
    """A batched environment some of whose groups are played by others; its ``groups`` are those that are left.

    The opponents draw their actions from random numbers of their own, which begin anew with every `reset`.
    """

    def __init__(self, env: BatchedEnv, opponents: Mapping[str, Sequence[Acting]], seed: int) -> None:
        super().__init__(env, env.device)
        self.groups = tuple(group for group in env.groups if group.name not in opponents)
        self._opponents = {
            name: Population([_moved(policy, env.device) for policy in policies], env.num_envs)
            for name, policies in opponents.items()
        }
        self.seed, self._random = seed, torch.Generator(env.device)

    def reset(self, seeds: Iterator[int]) -> None:
        self._random.manual_seed(self.seed)
        for opponents in self._opponents.values():
            opponents.forget_all()
        super().reset(seeds)

    def step(self, action: ByGroup) -> Step:
        mask = self.env.mask
        theirs = {name: who.act(self.env.obs, self._random)[name] for name, who in self._opponents.items()}
        step = self.env.step(action | theirs)
        for opponents in self._opponents.values():
            opponents.forget(step, mask)
        self._look()
        return step.map_groups(self._left)

    def _left(self, values: ByGroup) -> ByGroup:
        return {group.name: values[group.name] for group in self.groups}

    def _look(self) -> None:
        self.obs, self.mask = self._left(self.env.obs), self._left(self.env.mask)

    def state_dict(self) -> dict[str, Any]:
        opponents = {name: opponents.state_dict() for name, opponents in self._opponents.items()}
        return {"env": self.env.state_dict(), "opponents": opponents, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        for name, opponents in self._opponents.items():
            opponents.load_state_dict(state["opponents"][name], self.device)
        self._random.set_state(state["random"])
        super().load_state_dict(state["env"], seeds)


def _moved(policy: Acting, device: torch.device) -> Acting:
    return policy.to(device) if isinstance(policy, Policy) else policy
