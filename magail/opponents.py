"""Opponents: groups that a given policy plays, so that only the other groups are left to learn, or to be judged.

python -m magail.train algorithm=rl env=simple_tag 'opponents={agent: RUN_FOLDER}'       a best response to a run
python -m magail.evaluate env=simple_tag checkpoint=A 'opponents={agent: B}'             A's adversaries against B
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
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


class PastSelves(BatchedEnvWrapper):
    """A batched environment in a ``share`` of whose copies one group is played by what ``policy`` once was.

    Groups that compete and only ever meet each other's newest version run in circles: each forgets to beat what the
    other has left behind. Against opponents from all of training they tend to what nobody exploits (fictitious
    self-play, Heinrich et al. 2015). Such copies are divided evenly among the groups, and among up to `VERSIONS` past
    selves that lie equally far apart. Who is played so is not alive there for the learner: nothing is learned from it.

    Past selves draw their actions from random numbers of their own.

    Raises:
        ValueError: there is only one group.
    """

    VERSIONS = 8
    FIRST_INTERVAL = 500  # steps between versions, which doubles whenever every other one is dropped

    def __init__(
        self, env: BatchedEnv, policy: Policy, sides: Sequence[Sequence[str]], share: float, seed: int
    ) -> None:
        super().__init__(env, env.device)
        each = math.ceil(share * env.num_envs / len(sides))
        side = torch.arange(env.num_envs, device=env.device).unsqueeze(-1) // each
        self._past = {name: side == i for i, names in enumerate(sides) for name in names}  # [E, 1]
        self._copies = each * len(sides)
        self.policy = policy
        self._versions: list[Policy] = []
        self._players: list[Player] = []
        self._steps, self._interval = 0, self.FIRST_INTERVAL
        self._random = torch.Generator(env.device).manual_seed(seed)

    def step(self, action: ByGroup) -> Step:
        if self._steps % self._interval == 0:
            self._remember()
        self._steps += 1
        obs, mask, rows_of = self.env.obs, self.env.mask, self._rows()
        action = {name: x.clone() for name, x in action.items()}
        for player, rows in zip(self._players, rows_of, strict=True):
            theirs, _ = player.act(_of(obs, rows), self._random)
            for name, past in self._past.items():
                action[name][rows] = torch.where(past[rows].unsqueeze(-1), theirs[name], action[name][rows])
        step = self.env.step(action)
        for player, rows in zip(self._players, rows_of, strict=True):
            player.forget(step.map_groups(functools.partial(_of, rows=rows)), _of(mask, rows))
        self._look()
        return step

    def _rows(self) -> list[slice]:
        """The copies in which each version plays."""
        return [slice(i, self._copies, len(self._players)) for i in range(len(self._players))]

    def _remember(self) -> None:
        if len(self._versions) == self.VERSIONS:
            self._versions, self._interval = self._versions[1::2], 2 * self._interval
        self._versions.append(copy.deepcopy(self.policy))
        self._players = [Player(version) for version in self._versions]  # each in other copies than before

    def _look(self) -> None:
        self.obs = self.env.obs
        self.mask = {name: alive & ~self._past[name] for name, alive in self.env.mask.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "env": self.env.state_dict(),
            "versions": [version.state_dict() for version in self._versions],
            "players": [player.state_dict() for player in self._players],
            "steps": self._steps,
            "interval": self._interval,
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        self._versions = [copy.deepcopy(self.policy) for _ in state["versions"]]
        for version, weights in zip(self._versions, state["versions"], strict=True):
            version.load_state_dict(weights)
        self._players = [Player(version) for version in self._versions]
        for player, memory in zip(self._players, state["players"], strict=True):
            player.load_state_dict(memory, self.device)
        self._steps, self._interval = state["steps"], state["interval"]
        self._random.set_state(state["random"])
        super().load_state_dict(state["env"], seeds)


def _of(values: ByGroup, rows: slice) -> ByGroup:
    return {name: x[rows] for name, x in values.items()}
