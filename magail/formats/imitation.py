"""Trajectories that the library ``imitation`` saved: a folder of Hugging Face datasets, or its older ``.npz``.

One row a trajectory: ``obs [T + 1, ...]``, ``acts [T, ...]``, ``terminal`` (else it was cut off) and, where they were
kept, ``rews [T]``. Its infos are pickled or jsonpickled objects, which could run code, and are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magail.demonstrations import Demonstrations
from magail.formats.episodes import AgentEpisode, check_time_limit, converted, lived_through, only_agent
from magail.types import AgentGroup

Trajectory = dict[str, Any]


def read(path: str, groups: Sequence[AgentGroup], time_limit: int | None) -> Demonstrations:
    """Read a folder or an ``.npz`` of one agent; a folder needs the extra [formats].

    Args:
        time_limit: imitation notes as ``terminal`` every episode that is complete; after this many steps it was time
            that ended it.

    Raises:
        ValueError: there is no such file, it cannot be read or is not of this format, or it does not fit the groups.
    """
    check_time_limit(time_limit)
    agent = only_agent(groups, path)
    try:
        trajectories = _of_folder(Path(path)) if Path(path).is_dir() else _of_npz(Path(path))
        episodes = [{agent: _episode(trajectory, time_limit)} for trajectory in trajectories]
    except ImportError as error:
        raise ValueError(f"{path}: reading it takes pyarrow ({error}): pip install 'magail[formats]'") from error
    except Exception as error:  # over damaged bytes zipfile, json, numpy and pyarrow raise a dozen types
        raise ValueError(
            f"{path}: not trajectories that imitation saved, or damaged ({type(error).__name__}: {error}): check the "
            "path, or choose another format (from=...)"
        ) from error
    return converted(path, groups, episodes)


def _episode(trajectory: Trajectory, time_limit: int | None) -> AgentEpisode:
    acts = trajectory["acts"]
    rewards = trajectory.get("rews", np.zeros(len(acts)))
    return lived_through(acts, trajectory["obs"], rewards, bool(trajectory["terminal"]), time_limit)


def _of_folder(path: Path) -> Iterator[Trajectory]:
    import pyarrow  # an extra

    files = json.loads((path / "state.json").read_text())["_data_files"]
    for file in files:
        with pyarrow.memory_map(str(path / Path(file["filename"]).name)) as stream:
            table = pyarrow.ipc.open_stream(stream).read_all()
            names = [name for name in ("obs", "acts", "terminal", "rews") if name in table.column_names]
            yield from table.select(names).to_pylist()


def _of_npz(path: Path) -> Iterator[Trajectory]:
    """All trajectories end to end; ``indices`` says where in ``acts`` all but the first begin."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("obs", "acts", "terminal", "indices", "rews") if name in file}
    begins = arrays.pop("indices")
    split = {
        "obs": np.split(arrays["obs"], begins + np.arange(len(begins)) + 1),
        "terminal": arrays["terminal"],
    }
    split |= {name: np.split(arrays[name], begins) for name in ("acts", "rews") if name in arrays}
    for row in zip(*split.values(), strict=True):
        yield dict(zip(split, row, strict=True))
