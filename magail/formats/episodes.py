"""What the readers of other libraries' files have in common: an agent's episode as its spaces have it, made ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers.utils import create_zero_array

from magail.demonstrations import Demonstrations
from magail.ranges import check_range
from magail.types import AgentGroup, JointTransition, Transition


class Unfit(ValueError):
    """What a file holds can be read, but is not of the environment."""


@dataclass
class AgentEpisode:
    """One agent's episode of T steps; rows of steps in which it is not alive may hold anything."""

    obs: Any  # T + 1 observations of the agent's space; of a Dict or Tuple space a container of arrays
    action: Any  # T actions of its space
    reward: Any  # [T]
    terminated: Any  # [T] bool
    truncated: Any  # [T] bool
    mask: Any  # [T] bool, alive when it acted


def lived_through(action: Any, obs: Any, reward: Any, terminated: bool, time_limit: int | None = None) -> AgentEpisode:
    """An agent alive from first to last, whose episode the environment ended (``terminated``) or something cut off.

    After ``time_limit`` steps it was time that did: libraries that note one kind of end do not tell the two apart.
    """
    terminated = terminated and len(action) != time_limit
    last = np.arange(len(action)) == len(action) - 1
    return AgentEpisode(obs, action, reward, last & terminated, last & (not terminated), np.ones(len(action), bool))


def check_time_limit(time_limit: int | None) -> None:
    """Raise `ValueError` for a number of steps below 1."""
    if time_limit is not None:
        check_range({"from.time_limit": time_limit}, 1)


def all_agents(groups: Sequence[AgentGroup]) -> list[str]:
    """The agents of all groups, in order."""
    return [agent for group in groups for agent in group.agents]


def only_agent(groups: Sequence[AgentGroup], source: object) -> str:
    """The single agent of a file that knows no more than one.

    Raises:
        ValueError: the environment has several.
    """
    agents = all_agents(groups)
    if len(agents) > 1:
        raise ValueError(
            f"{source}: a file of this format holds one agent's episodes, but the environment has {agents}: choose the "
            "environment that it was recorded in"
        )
    return agents[0]


def converted(
    path: str,
    groups: Sequence[AgentGroup],
    episodes: Sequence[Mapping[str, AgentEpisode]],
    seeds: Sequence[int] | None = None,
) -> Demonstrations:
    """The agents' episodes that the file at ``path`` holds, as demonstrations; ``seeds`` is None where it has none.

    Raises:
        ValueError: what an agent saw or did is not what its spaces hold, or `Demonstrations.from_episodes` refuses it.
    """
    transitions = [
        JointTransition({group.name: _transition(group, agents, f"{path}: episode {index}") for group in groups})
        for index, agents in enumerate(episodes)
    ]
    known = [-1] * len(episodes) if seeds is None else seeds
    return Demonstrations.from_episodes(groups, transitions, known, {"converted_from": path}, path)


def _transition(group: AgentGroup, agents: Mapping[str, AgentEpisode], source: str) -> Transition:
    columns: dict[str, list[np.ndarray]] = {}
    for agent in group.agents:
        for name, column in _columns(group, agents[agent], f"{source}, agent {agent!r}").items():
            columns.setdefault(name, []).append(column)
    try:
        fields = {name: torch.from_numpy(np.stack(of_agents, 1)) for name, of_agents in columns.items()}
    except ValueError as error:
        raise ValueError(
            f"{source}: the agents of group {group.name!r} differ in the length of what they saw and did "
            f"({error}); give every agent a row for every step"
        ) from error
    return Transition(**fields, log_prob=torch.zeros_like(fields["env_reward"]))


def _columns(group: AgentGroup, episode: AgentEpisode, source: str) -> dict[str, np.ndarray]:
    try:
        obs, action = flat_obs(group.observation_space, episode.obs), flat_action(group.action_space, episode.action)
        columns = {
            "obs": obs[:-1],
            "next_obs": obs[1:],
            "action": action,
            "env_reward": np.asarray(episode.reward, np.float32),
            "terminated": np.asarray(episode.terminated, bool),
            "truncated": np.asarray(episode.truncated, bool),
            "mask": np.asarray(episode.mask, bool),
        }
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(
            f"{source}: what the file holds is not of the spaces {group.observation_space} and {group.action_space} "
            f"({error}); use the environment, with the arguments, that it was recorded in"
        ) from error
    steps = {name: column.shape[:1] for name, column in columns.items()}
    if len(set(steps.values())) > 1:
        raise ValueError(
            f"{source}: fields of different length: {steps}; there is one observation more than there are actions"
        )
    return columns


def flat_obs(space: spaces.Space[Any], obs: Any) -> np.ndarray:
    """Observations of a space, ``[T + 1, O]`` float32 as the environments' adapters flatten them."""
    if isinstance(space, spaces.Box):
        return _flat_rows(space, obs)
    return np.stack([np.asarray(spaces.flatten(space, row), np.float32) for row in _rows(space, obs)])


def _rows(space: spaces.Space[Any], values: Any) -> Iterator[Any]:
    """Values of a space, one by one, of a container of arrays."""
    if isinstance(space, spaces.Dict):
        parts = [list(_rows(inner, values[key])) for key, inner in space.spaces.items()]
        return (dict(zip(space.spaces, row, strict=True)) for row in zip(*parts, strict=True))
    if isinstance(space, spaces.Tuple):
        return zip(*(list(_rows(inner, part)) for inner, part in zip(space.spaces, values, strict=True)), strict=True)
    return iter(values)


def flat_action(space: spaces.Space[Any], action: Any) -> np.ndarray:
    """Actions of a space, ``[T, U]``: indices from 0 as int64, or a Box's numbers as float32."""
    if isinstance(space, spaces.Box):
        return _flat_rows(space, action)
    found = np.asarray(action)
    indices = found.astype(np.int64)
    if (indices != found).any():
        raise ValueError(f"actions are whole numbers here, not {found[indices != found].ravel()[0]}")
    return indices.reshape(len(indices), -1) - first_action(space)


def _flat_rows(box: spaces.Box, rows: Any) -> np.ndarray:
    """``[T, n]``; axes of length 1 may be more or fewer, as they are between libraries, but no others."""
    numbers = np.asarray(rows, np.float32)
    found, wanted = ([n for n in shape if n != 1] for shape in (numbers.shape[1:], box.shape))
    if found != wanted:
        raise ValueError(f"rows of shape {numbers.shape[1:]}, not {box.shape}")
    return numbers.reshape(len(numbers), -1)


def unflat_obs(space: spaces.Space[Any], obs: np.ndarray) -> Any:
    """The reverse of `flat_obs`: arrays, or containers of arrays for a Dict or Tuple space.

    Rows of zeros, those of agents that are not alive, become the first of every choice, where 0 is none.
    """
    if isinstance(space, spaces.Box):
        return obs.reshape(len(obs), *space.shape).astype(space.dtype)
    nothing = spaces.flatten(space, create_zero_array(space))
    return _columns_of([spaces.unflatten(space, row if row.any() else nothing) for row in obs])


def _columns_of(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: _columns_of([row[key] for row in rows]) for key in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple(_columns_of(list(column)) for column in zip(*rows, strict=True))
    return np.stack(rows)


def unflat_action(space: spaces.Space[Any], action: np.ndarray) -> np.ndarray:
    """The reverse of `flat_action`."""
    if isinstance(space, spaces.Discrete):
        return action[:, 0] + first_action(space)
    assert space.shape is not None
    shaped = (
        action.reshape(len(action), *space.shape) if isinstance(space, spaces.Box) else action + first_action(space)
    )
    return shaped.reshape(len(action), *space.shape).astype(space.dtype)


def first_action(space: spaces.Space[Any]) -> np.ndarray:
    """The ``start`` of a Discrete or MultiDiscrete space, ``[U]``."""
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    return np.asarray(space.start, np.int64).reshape(-1)
