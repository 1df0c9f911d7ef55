"""The pickles of the original MAGAIL, MA-AIRL and CoDAIL code (Song et al. 2018, Yu et al. 2019, Liu et al. 2020).

A list with a dict for every episode: ``ob`` holds an array ``[T, O]`` for every agent, ``ac`` the actions of every
agent, one-hot where they are discrete, ``rew`` their rewards. They end by a time limit, and carry no reset seeds.

Its particle worlds moved to the right by the second of five numbers and up by the fourth, where mpe2, as PettingZoo
before it, moves to the left and down by its actions 1 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from magail.demonstrations import Demonstrations
from magail.formats import pickles
from magail.formats.episodes import AgentEpisode, Unfit, all_agents, converted, first_action, lived_through
from magail.types import AgentGroup


def read(path: str, groups: Sequence[AgentGroup], moves: Sequence[int] | None) -> Demonstrations:
    """Read a file whose agents are in the order of ``groups``, those of a group one after the other.

    The last step of every episode is left out: what came of it was not saved.

    Args:
        moves: the environment's action for each number of a one-hot row, where there are as many of them to choose
            from as ``moves`` has; None: they are in the same order.

    Raises:
        ValueError: the file cannot be read safely, is not of this format, or does not fit the groups, or ``moves`` are
            not each of the actions once.
    """
    if moves is not None and sorted(moves) != list(range(len(moves))):
        raise ValueError(f"from.moves={list(moves)} must be each of the actions from 0 to {len(moves) - 1} once")
    content = pickles.load(Path(path))
    if not isinstance(content, list) or not all(isinstance(x, dict) and {"ob", "ac"} <= x.keys() for x in content):
        raise ValueError(
            f"{path}: not a list of episodes with 'ob' and 'ac', as the original MAGAIL code writes it: "
            "choose another format (from=...)"
        )
    try:
        episodes = [
            _episode(groups, episode, moves, f"{path}: episode {index}") for index, episode in enumerate(content)
        ]
    except Unfit:
        raise
    except (TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: 'ob' and 'ac' hold no arrays ({error}): choose another format (from=...)") from error
    return converted(path, groups, episodes)


def _episode(
    groups: Sequence[AgentGroup], episode: dict[str, Any], moves: Sequence[int] | None, source: str
) -> dict[str, AgentEpisode]:
    names = all_agents(groups)
    for key in ("ob", "ac"):
        if len(episode[key]) != len(names):
            raise Unfit(
                f"{source}: {key!r} has {len(episode[key])} agents, the environment has {names}: choose the "
                "environment, with the arguments, that it was recorded in"
            )
    spaces_of = [group.action_space for group in groups for _ in group.agents]
    steps = len(episode["ob"][0]) - 1
    rewards = episode.get("rew", np.zeros((len(names), steps)))
    columns = zip(names, spaces_of, episode["ob"], episode["ac"], rewards, strict=True)
    return {
        name: lived_through(
            action=_indices(space, action, moves, f"{source}, agent {name!r}")[:steps],
            obs=list(obs),
            reward=np.asarray(reward, np.float32).reshape(-1)[:steps],
            terminated=False,
        )
        for name, space, obs, action, reward in columns
    }


def _indices(space: spaces.Space[Any], action: Any, moves: Sequence[int] | None, source: str) -> np.ndarray:
    """Discrete actions from their one-hot form; a Box's as they are."""
    numbers = np.asarray([np.asarray(row, np.float64).reshape(-1) for row in action])
    if isinstance(space, spaces.Box):
        return numbers
    sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.ravel().tolist()  # type: ignore[attr-defined]
    if numbers.shape != (len(numbers), sum(sizes)):
        raise Unfit(
            f"{source}: actions of shape {numbers.shape} where {space} has one-hot rows of {sum(sizes)}: choose the "
            "environment, with the arguments, that it was recorded in"
        )
    parts = np.split(numbers, np.cumsum(sizes)[:-1], 1)
    if not all(((part == 0) | (part == 1)).all() and (part.sum(1) == 1).all() for part in parts):
        raise Unfit(f"{source}: actions are not one-hot; one of the {sum(sizes)} numbers of a row is 1")
    indices = np.stack([part.argmax(1) for part in parts], 1)
    if moves is not None:
        indices = np.where([size == len(moves) for size in sizes], np.take(moves, indices, mode="clip"), indices)
    return indices + first_action(space)
