"""DI-engine's ``expert_data.pkl``: a pickled list of steps ``{obs, next_obs, action, reward, done}`` of tensors.

Actions are those of DI-engine's policies, which some of its environments scale before they act.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magail.demonstrations import Demonstrations
from magail.formats import pickles
from magail.formats.episodes import AgentEpisode, check_time_limit, converted, lived_through, only_agent
from magail.types import AgentGroup


def read(path: str, groups: Sequence[AgentGroup], time_limit: int | None) -> Demonstrations:
    """Read a file of one agent. An episode goes on as long as a step begins where the one before it ended.

    Args:
        time_limit: ``done`` does not tell termination from a time limit; after this many steps it is taken for one.

    Raises:
        ValueError: the file cannot be read safely, is not of this format, or does not fit the groups.
    """
    check_time_limit(time_limit)
    agent, steps = only_agent(groups, path), read_steps(path, ("obs", "next_obs", "action", "reward", "done"))
    try:
        several = any(torch.as_tensor(step["reward"]).numel() > 1 for step in steps)
        episodes = [] if several else [{agent: _lived_through(episode, time_limit)} for episode in _episodes(steps)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its steps hold no numbers ({error}): collect the data again") from error
    if several:
        raise ValueError(
            f"{path}: its rewards are of several steps each, and so are its successors: collect it with nstep=1"
        )
    return converted(path, groups, episodes)


def _lived_through(episode: list[dict[str, Any]], time_limit: int | None) -> AgentEpisode:
    return lived_through(
        action=np.stack([np.asarray(step["action"]) for step in episode]),
        obs=np.stack([np.asarray(obs) for obs in [*(x["obs"] for x in episode), episode[-1]["next_obs"]]]),
        reward=[float(step["reward"]) for step in episode],
        terminated=bool(episode[-1]["done"]),
        time_limit=time_limit,
    )


def read_steps(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The steps of a file, each with at least ``keys``; nothing in the file is ever executed.

    Raises:
        ValueError: the file cannot be read safely or is not of this format.
    """
    steps = pickles.load(Path(path))
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"{path}: not a list of steps as DI-engine writes it: choose another format (from=...)")
    for index, step in enumerate(steps):
        if missing := [key for key in keys if key not in step]:
            raise ValueError(
                f"{path}: step {index} lacks {missing}: collect the data with DI-engine's collect_demo_data"
            )
    return steps


def _episodes(steps: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    begin = 0
    for t, step in enumerate(steps):
        goes_on = t + 1 < len(steps) and torch.equal(
            torch.as_tensor(step["next_obs"]), torch.as_tensor(steps[t + 1]["obs"])
        )
        if bool(step["done"]) or not goes_on:
            yield steps[begin : t + 1]
            begin = t + 1
