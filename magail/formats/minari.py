"""Minari datasets: one agent's as Gymnasium's users know them, several agents' by Dict spaces keyed by agent.

Reading goes through Minari's storage, and never makes the environment that a dataset names: that would run its code.
Several agents' observations and actions are Dict spaces, their rewards and flags columns ``[T, all agents]`` in the
order of the metadata's ``agents`` (else of the action space's keys); one reward and one flag a step are everyone's. Who
was alive is in the infos' ``mask [T + 1, all agents]``; without it everyone is until the own flag.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from magail.demonstrations import Demonstrations, observation_rows
from magail.formats.episodes import (
    AgentEpisode,
    Unfit,
    all_agents,
    converted,
    lived_through,
    unflat_action,
    unflat_obs,
)
from magail.types import AgentGroup, JointTransition

_ID = re.compile(r"([-_\w][-_\w/]*/)?[-_\w]+-v\d+")
_FIELDS = {"rewards": "env_reward", "terminations": "terminated", "truncations": "truncated"}


def read(path: str, groups: Sequence[AgentGroup]) -> Demonstrations:
    """Read a dataset, by its id (in MINARI_DATASETS_PATH, else where Minari keeps datasets) or by its folder.

    Reset seeds that the dataset holds come along.

    Raises:
        ValueError: Minari is not installed, there is no such dataset, it cannot be read, or it does not fit the groups.
    """
    storage = _storage(path)
    _check_actions(path, storage.action_space, groups)
    order = storage.metadata.get("agents", list(getattr(storage.action_space, "spaces", ())))
    try:
        indices = range(storage.total_episodes)
        seeds = [_known_seed(note.get("seed")) for note in storage.get_episode_metadata(indices)]
        episodes = enumerate(storage.get_episodes(indices))
        agents = [_episode(groups, x, order, f"{path}: episode {index}") for index, x in episodes]
    except Unfit:
        raise
    except Exception as error:  # over damaged files h5py, pillow and Minari raise a dozen types
        raise ValueError(
            f"{path}: its episodes cannot be read ({type(error).__name__}: {error}); download or record it again"
        ) from error
    return converted(path, groups, agents, seeds)


def _check_actions(path: str, stored: spaces.Space[Any], groups: Sequence[AgentGroup]) -> None:
    """Numbers of another box, or of choices counted from elsewhere, would be other actions."""
    actual = {agent: group.action_space for group in groups for agent in group.agents}
    alone = {agent: stored for agent in actual if len(actual) == 1}
    for agent, space in (stored.spaces if isinstance(stored, spaces.Dict) else alone).items():
        if agent in actual and not _same(space, actual[agent]):
            raise ValueError(
                f"{path}: {agent!r} acts in {space} there, and in {actual[agent]} in the environment; choose the "
                "environment, with the arguments, that it was recorded in"
            )


def _same(a: spaces.Space[Any], b: spaces.Space[Any]) -> bool:
    """Whatever the precision of a box's numbers."""
    if isinstance(a, spaces.Box) and isinstance(b, spaces.Box):
        return a.shape == b.shape and np.allclose(a.low, b.low) and np.allclose(a.high, b.high)
    return a == b


def _known_seed(seed: Any) -> int:
    """-1 where it is none, or larger than demonstrations can hold, as half of those are that Minari draws itself."""
    return -1 if seed is None or int(seed) >= 2**63 else int(seed)


def writer(output: str) -> Callable[[Demonstrations], None]:
    """What writes a dataset with the id ``output``, such as ``cartpole/expert-v0``, which is looked at first.

    Raises:
        ValueError: Minari is not installed, ``output`` is no id, or there is such a dataset already.
    """
    _minari(output)
    from minari.storage import get_dataset_path

    if not _ID.fullmatch(output):
        raise ValueError(f"output={output}: Minari's ids look like cartpole/expert-v0")
    if (folder := get_dataset_path(output)).exists():
        raise ValueError(f"output={output}: there is such a dataset already ({folder}); delete it, or count -v up")
    return partial(_write, output)


def _write(output: str, demonstrations: Demonstrations) -> None:
    minari = _minari(output)
    groups, agents = demonstrations.groups, all_agents(demonstrations.groups)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=index, seed=None if seed < 0 else seed, **_contents(groups, demonstrations.episode(index))
        )
        for index, seed in enumerate(demonstrations.seeds.tolist())
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on what else could be said, as an author
        dataset = minari.create_dataset_from_buffers(
            output,
            buffers,
            observation_space=_space(groups, "observation_space"),
            action_space=_space(groups, "action_space"),
            description=json.dumps(demonstrations.metadata),
            data_format="hdf5",
            jpeg_encoding=False,  # exact
        )
    dataset.storage.update_metadata({"agents": agents})


def _minari(what: str) -> Any:
    try:
        import minari  # an extra
        import minari.data_collector
    except ImportError as error:
        raise ValueError(f"{what}: datasets take Minari ({error}): pip install 'magail[formats]'") from error
    return minari


def _storage(path: str) -> Any:
    _minari(path)
    from minari.dataset.minari_storage import MinariStorage
    from minari.storage import get_dataset_path

    folder = Path(path) if Path(path).is_dir() else get_dataset_path(path)
    data = folder / "data" if (folder / "data").is_dir() else folder
    try:
        described = MinariStorage.read_raw_metadata(data)
        if not {"observation_space", "action_space"} <= described.keys():
            raise ValueError("it does not say its spaces, and would make the environment it names to learn them")
        for file in data.glob("*.hdf5"):
            _check_links(file)
        return MinariStorage.read(data)
    except Exception as error:  # over damaged files a dozen types
        raise ValueError(
            f"{path}: no Minari dataset can be read there ({type(error).__name__}: {error}); give an id that "
            "`minari list local` shows, or the dataset's folder"
        ) from error


def _check_links(path: Path) -> None:
    """Raise `ValueError` for a file that makes HDF5 open others, any on this machine, and show what they hold."""
    import h5py  # an extra

    def check(group: h5py.Group) -> None:
        for name in group:
            item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
            if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                raise ValueError(f"{path.name} refers in {group.name}/{name} to something else than itself")
            if isinstance(item, h5py.Group):
                check(item)

    with h5py.File(path) as file:
        check(file)


# --- episodes --------------------------------------------------------------------------------------------------------


def _episode(
    groups: Sequence[AgentGroup], episode: Mapping[str, Any], order: Sequence[str], source: str
) -> dict[str, AgentEpisode]:
    agents = all_agents(groups)
    if not len(episode["rewards"]):
        raise Unfit(f"{source} has no steps; leave it out")
    keyed = isinstance(episode["actions"], dict)
    if not keyed and len(agents) == 1:
        flags = np.asarray(episode["terminations"], bool) | np.asarray(episode["truncations"], bool)
        if flags[:-1].any():
            raise Unfit(
                f"{source} goes on after step {flags.argmax()}, which it calls its end; make an episode of each part"
            )
        ended = bool(episode["terminations"][-1])
        return {agents[0]: lived_through(episode["actions"], episode["observations"], episode["rewards"], ended)}
    found = list(episode["actions"]) if keyed else ["one, without a name"]
    if set(found) != set(agents) or set(order) != set(agents):
        raise Unfit(
            f"{source}: its agents are {sorted(found)}, the environment has {sorted(agents)}; choose the environment, "
            "with the arguments, that it was recorded in"
        )
    column = {name: order.index(name) for name in agents}
    reward, terminated, truncated = (_by_agent(episode[key], len(agents)) for key in _FIELDS)
    ended = terminated.astype(bool) | truncated.astype(bool)
    ended_before = np.cumsum(ended, 0) - ended > 0
    mask = np.asarray((episode["infos"] or {}).get("mask", ~ended_before), bool)[: len(reward)]
    truncated[-1] = truncated[-1].astype(bool) | (mask[-1] & ~ended[-1])  # recorded no further
    return {
        name: AgentEpisode(
            episode["observations"][name],
            episode["actions"][name],
            *(x[:, i] for x in (reward, terminated, truncated, mask)),
        )
        for name, i in column.items()
    }


def _by_agent(values: Any, agents: int) -> np.ndarray:
    """``[T, agents]``, of one value a step or one for each agent."""
    array = np.asarray(values)
    return np.repeat(array[:, None], agents, 1) if array.ndim == 1 else array.copy()


def _space(groups: Sequence[AgentGroup], name: str) -> spaces.Space[Any]:
    by_agent = {agent: getattr(group, name) for group in groups for agent in group.agents}
    return spaces.Dict(by_agent) if len(by_agent) > 1 else next(iter(by_agent.values()))


def _contents(groups: Sequence[AgentGroup], episode: JointTransition) -> dict[str, Any]:
    """What a buffer of Minari's takes."""
    observations, actions = {}, {}
    for group in groups:
        steps = episode.groups[group.name]
        obs = observation_rows(steps, torch.tensor(steps.mask.shape[:1])).numpy()  # [T + 1, A, O]
        for i, agent in enumerate(group.agents):
            observations[agent] = unflat_obs(group.observation_space, obs[:, i])
            actions[agent] = unflat_action(group.action_space, steps.action[:, i].numpy())
    columns = {
        name: np.concatenate([getattr(episode.groups[g.name], field).numpy() for g in groups], 1)
        for name, field in _FIELDS.items()
    }
    if len(observations) == 1:
        flat = {name: column[:, 0] for name, column in columns.items()}
        return {"observations": next(iter(observations.values())), "actions": next(iter(actions.values())), **flat}
    masks = np.concatenate([episode.groups[g.name].mask.numpy() for g in groups], 1)
    mask = np.concatenate([masks, np.zeros_like(masks[:1])])
    return {"observations": observations, "actions": actions, **columns, "infos": {"mask": mask}}
