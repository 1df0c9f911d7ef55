"""Demonstrations: complete episodes of an expert, in memory and on disk.

Two more letters for shapes: **N** episodes, **S** steps of all episodes together. Both are counted from 0.

**The file** is one ``.npz`` without pickled objects, so ``numpy.load(path, allow_pickle=False)`` opens it:

==================  =========================  ==================================================================
member              dtype and shape            meaning
==================  =========================  ==================================================================
header              text, 0-dimensional        JSON, below
lengths             int64 ``[N]``              steps of each episode, at least 1
seeds               int64 ``[N]``              the reset seed each episode began with; -1 where it is unknown
GROUP/obs           float32 ``[S + N, A, O]``  flat observations, one row more per episode than it has steps
GROUP/action        ``[S, A, U]``              indices from 0, int64, for Discrete (U = 1) and MultiDiscrete;
                                               the environment's own units, float32, for a flattened Box
GROUP/reward        float32 ``[S, A]``         the environment's
GROUP/terminated    bool ``[S, A]``            the agent's episode ended here by the environment's choice
GROUP/truncated     bool ``[S, A]``            it was cut off here, as by a time limit
GROUP/mask          bool ``[S, A]``            the agent was alive when it acted in this step
==================  =========================  ==================================================================

Episodes lie end to end, so episode ``i`` begins at step ``lengths[:i].sum()`` and at observation row
``lengths[:i].sum() + i``. Row ``t + 1`` of an episode is what came of its step ``t``: for an agent that ends at ``t``
it is the agent's last observation, though the agent is not alive in step ``t + 1``. Whatever else stands in the rows
of an agent that is not alive is never read. Members beside these are not read either.

The header holds ``format_version`` (1), ``metadata`` (any JSON object) and ``groups``: for every group its ``agents``
in the order of the axis A, its ``obs_dim`` O and its ``action_space``. All of it is written with numpy alone like
this, here for two episodes, of 3 and 2 steps, of one agent that balances a pole::

    header = {
        "format_version": 1,
        "metadata": {"environment": "CartPole-v1"},
        "groups": {
            "cart": {
                "agents": ["cart_0"],
                "obs_dim": 4,
                "action_space": {"type": "Discrete", "n": 2},
                # or {"type": "MultiDiscrete", "nvec": [3, 2]}
                # or {"type": "Box", "low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}
            }
        },
    }
    members = {
        "cart/obs": np.zeros((5 + 2, 1, 4), np.float32),
        "cart/action": np.zeros((5, 1, 1), np.int64),
        "cart/reward": np.ones((5, 1), np.float32),
        "cart/terminated": np.array([0, 0, 1, 0, 0], bool)[:, None],
        "cart/truncated": np.array([0, 0, 0, 0, 1], bool)[:, None],
        "cart/mask": np.ones((5, 1), bool),
    }
    lengths, seeds = np.array([3, 2], np.int64), np.array([-1, -1], np.int64)
    np.savez_compressed("cart.npz", header=json.dumps(header), lengths=lengths, seeds=seeds, **members)
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from magail.files import replacing
from magail.types import AgentGroup, ByGroup, JointTransition, Transition, are_bounded, bounds, share_of_ends

FORMAT_VERSION = 1
_STEP_MEMBERS = {  # of the file, and the field of a Transition each holds
    "action": "action",
    "reward": "env_reward",
    "terminated": "terminated",
    "truncated": "truncated",
    "mask": "mask",
}
_ACTION_TOLERANCE = 1e-6  # of a Box, in the action's own units
_MAX_DEFLATE_RATIO = 1032  # no deflated data is smaller, so a member that declares more than this is lying


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Complete episodes end to end; made by `from_episodes` or `load`, which check them.

    An agent's life in an episode is one unbroken run of steps that ends with its own terminated or truncated flag. It
    may begin late or not at all, as long as some agent is alive in the episode's first step. The agents may end at
    different steps; after its end an agent's rows are zero with ``mask`` False.
    """

    groups: tuple[AgentGroup, ...]
    transitions: JointTransition  # [S]; log_prob is 0
    lengths: Tensor  # [N] int64, steps
    seeds: Tensor  # [N] int64, the reset seed, -1 where it is unknown
    metadata: dict[str, Any]  # JSON-able: environment, versions, expert, ...
    whole_ends: ByGroup | None = None  # `ends` before `subsample`, which keeps few of them

    @classmethod
    def from_episodes(
        cls,
        groups: Sequence[AgentGroup],
        episodes: Sequence[JointTransition],
        seeds: Sequence[int],
        metadata: Mapping[str, Any],
        source: str = "these demonstrations",
    ) -> Demonstrations:
        """Put episodes ``[T]`` end to end, on the CPU.

        Args:
            seeds: the reset seed of each episode, -1 where it is unknown.
            source: where the episodes are from, for error messages (the file's name, in a converter).

        Raises:
            ValueError: the episodes do not fit the groups or are not valid (NaN, actions outside their space, broken
                lives, ...). The message names the source and, where one is at fault, the episode, step and agent.
        """
        groups = tuple(groups)
        if not episodes or len(seeds) != len(episodes):
            raise ValueError(
                f"{source}: {len(episodes)} episodes and {len(seeds)} seeds; "
                "give at least one episode, and a seed (-1 if unknown) for each"
            )
        for index, episode in enumerate(episodes):
            _check_episode_layout(f"{source}: episode {index}", groups, episode)
        _check_seeds(source, torch.tensor(seeds, dtype=torch.int64))
        lengths = torch.tensor([episode.batch_shape[0] for episode in episodes])
        transitions = _concatenate(groups, episodes)
        _check_transitions(source, groups, transitions, lengths)
        for group in groups:
            _check_successors(_Place(source, group, lengths), transitions.groups[group.name])
        return cls(groups, transitions, lengths, torch.tensor(seeds, dtype=torch.int64), dict(metadata))

    def __len__(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return next(iter(self.transitions.groups.values())).mask.device

    @property
    def num_steps(self) -> int:
        """S."""
        return self.transitions.batch_shape[0]

    def episode(self, index: int) -> JointTransition:
        """One episode ``[T]``."""
        end = int(self.lengths.cumsum(0)[index])
        return self.transitions[end - int(self.lengths[index]) : end]

    def known_seeds(self) -> list[int]:
        """The reset seeds that are known, in order of the episodes."""
        return [seed for seed in self.seeds.tolist() if seed >= 0]

    def on_bounds(self) -> bool:
        """Whether some action lies on a bound, and every box of actions has bounds on all sides."""
        parts = self.transitions.groups
        boxes = [(g.action_space, parts[g.name]) for g in self.groups if isinstance(g.action_space, spaces.Box)]
        bounded = all(are_bounded(box).all() for box, _ in boxes)
        return bounded and any(_touched(box, x.action[x.mask]) for box, x in boxes)

    def returns(self) -> Tensor:
        """Each episode's undiscounted return, averaged over all agents of all groups ``[N]`` float32.

        An agent's return is the sum of its rewards while it lived; one that never lived counts with 0.
        """
        rewards = self.transitions.field("env_reward").values()
        total = sum((reward.double().sum(-1) for reward in rewards), torch.zeros(()))  # [S]
        returns = torch.zeros(len(self), dtype=torch.float64, device=total.device)
        returns.index_add_(0, _episode_of_step(self.lengths).to(total.device), total)
        return (returns / sum(group.num_agents for group in self.groups)).float()

    @property
    def ends(self) -> ByGroup:
        """In what share of the steps each agent terminates (`share_of_ends`), counted before any `subsample`."""
        return self.whole_ends or share_of_ends(self.transitions)

    def take(self, count: int, seed: int) -> Demonstrations:
        """``count`` episodes at random, the first of a permutation of ``seed``: fewer are a subset of more.

        Raises:
            ValueError: there are not that many, or ``count < 1``.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"cannot take {count} demonstrations: there are {len(self)}, so ask for 1 to {len(self)}")
        return self._select(self._permutation(seed)[:count])

    def split(self, fraction: float, seed: int) -> tuple[Demonstrations, Demonstrations]:
        """``(train, held_out)``: whole episodes, ``fraction`` of them held out (rounded; at least one on each side).

        To compare runs on few and on many demonstrations, `split` first and then `take` from ``train``: all runs are
        then judged on the same held-out episodes, and those are not taken out of the few.

        Raises:
            ValueError: ``fraction`` is not in (0, 1), or there is only one episode. Nothing can be held out of one:
                holding out its steps would only measure memory, since they resemble their neighbours.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(
                f"the fraction of demonstrations to hold out lies between 0 and 1, both excluded: {fraction}"
            )
        if len(self) == 1:
            raise ValueError(
                "the only demonstration cannot be split into a training and a held-out part: "
                "give at least 2, or hold none out"
            )
        held_out = min(max(round(fraction * len(self)), 1), len(self) - 1)
        order = self._permutation(seed)
        return self._select(order[held_out:]), self._select(order[:held_out])

    def folds(self, number: int, seed: int) -> Iterator[tuple[Demonstrations, Demonstrations]]:
        """``(train, held_out)`` for cross-validation: each episode is held out in one of ``number`` <= N folds."""
        order = self._permutation(seed)
        for held_out in order.tensor_split(number):
            yield self._select(order[~torch.isin(order, held_out)]), self._select(held_out)

    def subsample(self, every: int, seed: int) -> Demonstrations:
        """Every ``every``-th step of each episode, from a random one of its first ``every`` on.

        As GAIL's demonstrations were (Ho & Ermon 2016, section 6: every 20th), so that few episodes are little data.
        Steps keep their true successors, but an episode's no longer follow each other.
        """
        rng = torch.Generator().manual_seed(seed)
        kept = [
            steps[int(torch.randint(min(every, len(steps)), (), generator=rng)) :: every]
            for steps in torch.arange(self.num_steps).split(self.lengths.tolist())
        ]
        lengths = torch.tensor([len(rows) for rows in kept])
        steps = self.transitions[torch.cat(kept)]
        return replace(self, transitions=steps, lengths=lengths, whole_ends=self.ends)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> JointTransition:
        """``[B]`` steps, uniformly and with replacement from those in which at least one agent is alive.

        The random numbers come from ``generator`` (on the CPU), or from torch's default one.
        """
        living = self._living_steps
        device = living.device if generator is None else generator.device
        picks = torch.randint(len(living), (batch_size,), generator=generator, device=device)
        return self.transitions.rows(living[picks.to(living.device)])

    def episodes(self, indices: Sequence[int]) -> JointTransition:
        """Whole episodes side by side, ``[B, T]``: with zeros and ``mask`` False after the end of the shorter ones."""
        lengths = self.lengths[indices]
        first = (self.lengths.cumsum(0) - self.lengths)[indices]
        clock = torch.arange(int(lengths.max()))
        inside = clock < lengths.unsqueeze(1)  # [B, T]
        rows = (first.unsqueeze(1) + clock * inside).flatten().to(self.device)
        inside = inside.to(self.device)

        def pad(x: Tensor) -> Tensor:
            x = x.unflatten(0, inside.shape)
            return x * inside.view(*inside.shape, *[1] * (x.ndim - 2))

        return self.transitions.rows(rows).map(pad)

    def sample_episodes(self, steps: int) -> JointTransition:
        """`episodes` drawn uniformly and with replacement, as many as have about ``steps`` steps: ``[B, T]``."""
        count = max(round(steps * len(self) / self.num_steps), 1)
        return self.episodes(torch.randint(len(self), (count,)).tolist())

    def to(self, device: torch.device) -> Demonstrations:
        """These, with the transitions on ``device``."""
        ends = self.whole_ends and {name: share.to(device) for name, share in self.whole_ends.items()}
        return replace(self, transitions=self.transitions.map(lambda x: x.to(device)), whole_ends=ends)

    def save(self, path: str | Path) -> None:
        """Write the file at once or not at all: a failure leaves what was at ``path`` as it was.

        Raises:
            ValueError: the suffix is not ``.npz``, the metadata are not JSON, or steps were left out (`subsample`),
                for whose successors the file has no place.
        """
        path = Path(path)
        check_suffix(path)
        if self.whole_ends is not None:
            raise ValueError(f"{path}: some steps of these demonstrations were left out; save them before `subsample`")
        members = self._members()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            np.savez_compressed(stream, **members)

    @classmethod
    def load(cls, path: str | Path, groups: Sequence[AgentGroup]) -> Demonstrations:
        """Read and check a file that must fit ``groups``, the environment's. Nothing in the file is ever executed.

        Groups of the file that are not among ``groups`` are left out.

        Raises:
            ValueError: there is no such file, it is damaged, it does not fit, or what it holds is not valid (NaN,
                actions outside their space, broken lives, ...). The message names the file and, where one is at
                fault, the episode, step and agent.
        """
        path, groups = Path(path), tuple(groups)
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; check the path, or record demonstrations there")
        with _readable(path, "the archive"):
            archive = zipfile.ZipFile(path)
        with archive:
            header = _read_header(path, archive)
            _check_groups(path, header["groups"], groups)
            lengths = torch.from_numpy(_read_member(path, archive, "lengths", "int64", (-1,)))
            _check_lengths(path, lengths)
            seeds = torch.from_numpy(_read_member(path, archive, "seeds", "int64", (len(lengths),)))
            _check_seeds(str(path), seeds)
            transitions = JointTransition({g.name: _read_group(path, archive, g, lengths) for g in groups})
        _check_transitions(str(path), groups, transitions, lengths)
        return cls(groups, transitions, lengths, seeds, header["metadata"])

    @cached_property
    def _living_steps(self) -> Tensor:
        """The steps in which at least one agent is alive."""
        return self.transitions.anybody_alive.nonzero().squeeze(1)

    def _permutation(self, seed: int) -> Tensor:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    def _select(self, indices: Tensor) -> Demonstrations:
        steps = torch.arange(self.num_steps).split(self.lengths.tolist())
        chosen = torch.cat([steps[index] for index in indices])
        return replace(
            self, transitions=self.transitions[chosen], lengths=self.lengths[indices], seeds=self.seeds[indices]
        )

    def _members(self) -> dict[str, Any]:
        """What the file holds, by name."""
        header = {
            "format_version": FORMAT_VERSION,
            "metadata": self.metadata,
            "groups": {group.name: _describe(group) for group in self.groups},
        }
        try:
            text = json.dumps(header)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the demonstrations' metadata are not JSON ({error}); use text, numbers, lists and dicts only"
            ) from error
        members: dict[str, Any] = {"header": text, "lengths": self.lengths.numpy(), "seeds": self.seeds.numpy()}
        for name, group in self.transitions.map(lambda x: x.cpu()).groups.items():
            members[f"{name}/obs"] = observation_rows(group, self.lengths).numpy()
            members |= {f"{name}/{member}": getattr(group, field).numpy() for member, field in _STEP_MEMBERS.items()}
        return members


def check_suffix(path: Path) -> None:
    """Raise `ValueError` for what `Demonstrations.save` would not write to."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: demonstrations are saved as .npz; call it {path.with_suffix('.npz').name}")


def describe_action_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """An action space as JSON; equal descriptions mean the same actions (indices count from 0 whatever the start)."""
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.ravel().tolist()}
    assert isinstance(space, spaces.Box)
    return {"type": "Box", "low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}


def _describe(group: AgentGroup) -> dict[str, Any]:
    return {
        "agents": list(group.agents),
        "obs_dim": group.obs_dim,
        "action_space": describe_action_space(group.action_space),
    }


# --- episodes end to end ---------------------------------------------------------------------------------------------


def _episode_of_step(lengths: Tensor) -> Tensor:
    """[S]: which episode a step belongs to."""
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _last_steps(lengths: Tensor) -> Tensor:
    """[S] bool: the last step of its episode."""
    ends = lengths.cumsum(0)
    last = torch.zeros(int(ends[-1]), dtype=torch.bool)
    last[ends - 1] = True
    return last


def _concatenate(groups: tuple[AgentGroup, ...], episodes: Sequence[JointTransition]) -> JointTransition:
    """Episodes ``[T]`` as one ``[S]`` on the CPU, with zeros where an agent is not alive and for log_prob."""

    def join(group: AgentGroup) -> Transition:
        parts = [episode.groups[group.name] for episode in episodes]
        joined = {f.name: torch.cat([getattr(p, f.name).detach().cpu() for p in parts]) for f in fields(Transition)}
        joined["log_prob"] = torch.zeros_like(joined["env_reward"])
        return _zero_unless_alive(Transition(**joined))

    return JointTransition({group.name: join(group) for group in groups})


def _zero_unless_alive(transition: Transition) -> Transition:
    def zero(x: Tensor) -> Tensor:
        alive = transition.mask.view(*transition.mask.shape, *[1] * (x.ndim - transition.mask.ndim))
        return torch.where(alive, x, torch.zeros((), dtype=x.dtype))  # also over NaN

    return transition.map(zero)


def _observation_rows(lengths: Tensor) -> Tensor:
    """[S]: a step's row among the file's S + N observations; its successor's is the next."""
    return torch.arange(int(lengths.sum())) + _episode_of_step(lengths)


def observation_rows(transition: Transition, lengths: Tensor) -> Tensor:
    """``obs`` and ``next_obs`` ``[S, A, O]`` of N episodes as ``[S + N, A, O]``, a row more than each has steps."""
    rows = _observation_rows(lengths)
    joined = transition.obs.new_zeros(len(rows) + len(lengths), *transition.obs.shape[1:])
    joined[rows] = transition.obs
    joined[rows + 1] = torch.where(transition.mask[..., None], transition.next_obs, joined[rows + 1])
    return joined


# --- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path, part: str) -> Iterator[None]:
    """Turn whatever zipfile, zlib, json and numpy raise over damaged bytes, a dozen types, into one ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path}: {part} cannot be read ({type(error).__name__}: {error}); "
            "the file is no .npz, is damaged or was cut short: copy or record it again"
        ) from error


def _read_header(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """The file's JSON, of the right version and with the right keys."""
    text = _read_member(path, archive, "header", "str", ()).item()
    with _readable(path, "the JSON of member 'header'"):
        header = json.loads(text)
    if not isinstance(header, dict) or header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version") if isinstance(header, dict) else None
        raise ValueError(
            f"{path}: the file has format version {found}, this release reads {FORMAT_VERSION}; "
            "use the release that wrote the file, or record it again"
        )
    groups = header.get("groups")
    if not (
        isinstance(header.get("metadata"), dict)
        and isinstance(groups, dict)
        and all(isinstance(group, dict) for group in groups.values())
    ):
        raise ValueError(
            f"{path}: the JSON of member 'header' lacks 'metadata' or 'groups', or they are not objects; "
            "write it as the docstring of magail.demonstrations shows"
        )
    return header


def _read_member(
    path: Path, archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], why: str = ""
) -> np.ndarray:
    """One array, after its declared dtype and shape were found right; -1 in ``shape`` stands for any length."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(
            f"{path}: the member {name!r} is missing; "
            "write all the members that the docstring of magail.demonstrations lists"
        )
    with _readable(path, f"member {name!r}"):
        found_shape, found_dtype = _declaration(archive.getinfo(f"{name}.npy"), archive, path.stat().st_size)
    if found_dtype.hasobject:
        raise ValueError(
            f"{path}: member {name!r} holds pickled Python objects, which could run code and are never opened; "
            f"write it as a plain {dtype} array"
        )
    if found_dtype.kind != "U" if dtype == "str" else found_dtype != np.dtype(dtype):
        raise ValueError(f"{path}: member {name!r} has dtype {found_dtype}, not {dtype}; convert it before saving")
    fits = len(found_shape) == len(shape) and all(b in (-1, a) for a, b in zip(found_shape, shape, strict=True))
    if not fits:
        raise ValueError(f"{path}: member {name!r} has shape {found_shape}, not {shape}{why}")
    with _readable(path, f"member {name!r}"), archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _declaration(info: zipfile.ZipInfo, archive: zipfile.ZipFile, file_size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype that a member declares, once they agree with its size: reading it then allocates no more."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read: Callable[..., Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(stream)
        if not dtype.hasobject and info.file_size != stream.tell() + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"its size does not fit its shape {shape}")
    if info.file_size > _MAX_DEFLATE_RATIO * file_size:
        raise ValueError(f"it declares {info.file_size} bytes, more than a file of {file_size} can hold")
    return shape, dtype


def _read_group(path: Path, archive: zipfile.ZipFile, group: AgentGroup, lengths: Tensor) -> Transition:
    """One group's transitions ``[S]``."""
    layout = _layout(group)
    steps, episodes = sum(lengths.tolist()), len(lengths)

    def read(member: str, field: str, length: int) -> Tensor:
        dtype, shape = layout[field]
        why = f": {episodes} episodes whose lengths add up to {steps} steps, {group.num_agents} agents"
        return torch.from_numpy(_read_member(path, archive, f"{group.name}/{member}", dtype, (length, *shape), why))

    observations = read("obs", "obs", steps + episodes)
    by_field = {field: read(member, field, steps) for member, field in _STEP_MEMBERS.items()}
    rows = _observation_rows(lengths)  # only now: the members have shown that there are this many steps
    log_prob = torch.zeros_like(by_field["env_reward"])
    return _zero_unless_alive(
        Transition(obs=observations[rows], next_obs=observations[rows + 1], log_prob=log_prob, **by_field)
    )


# --- checks ----------------------------------------------------------------------------------------------------------


def _layout(group: AgentGroup) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape without the time axis of every field that demonstrations bring."""
    agents = group.num_agents
    action_dtype = str(group.action_dtype).removeprefix("torch.")
    return {
        "obs": ("float32", (agents, group.obs_dim)),
        "next_obs": ("float32", (agents, group.obs_dim)),
        "action": (action_dtype, (agents, group.action_dim)),
        "env_reward": ("float32", (agents,)),
        "terminated": ("bool", (agents,)),
        "truncated": ("bool", (agents,)),
        "mask": ("bool", (agents,)),
    }


@dataclass(frozen=True)
class _Place:
    """Finds the words for where something is wrong."""

    source: str
    group: AgentGroup
    lengths: Tensor

    def refuse(self, bad: Tensor, problem: str) -> None:
        """Raise a ValueError that names the first step and agent of ``bad`` ``[S, A, ...]``."""
        if not bad.any():
            return
        step, agent = bad.nonzero()[0, :2].tolist()
        episode = int(_episode_of_step(self.lengths)[step])
        step -= int(self.lengths[:episode].sum())
        raise ValueError(
            f"{self.source}: episode {episode}, agent {self.group.agents[agent]!r}, step {step}: {problem}"
        )

    def refuse_values(self, name: str, values: Tensor, bad: Tensor, problem: str) -> None:
        """The same, with the first bad one of ``values``."""
        if bad.any():
            first = bad.nonzero()[0].tolist()
            self.refuse(bad, f"{name}{first[2:] or ''} is {values[tuple(first)].item()}, {problem}")


def _check_groups(path: Path, found: dict[str, dict[str, Any]], groups: tuple[AgentGroup, ...]) -> None:
    expected = {group.name: _describe(group) for group in groups}
    if not found.keys() >= expected.keys():
        raise ValueError(
            f"{path}: the file has the groups {sorted(found)}, the environment has {sorted(expected)}; "
            "use the environment that the file was recorded in"
        )
    for name, description in expected.items():
        for key, value in description.items():
            if found[name].get(key) != value:
                raise ValueError(
                    f"{path}: group {name!r} has {key} {found[name].get(key)} in the file and {value} in the "
                    "environment; use the environment, with the arguments, that the file was recorded in"
                )


def _check_lengths(path: Path, lengths: Tensor) -> None:
    if not len(lengths):
        raise ValueError(f"{path}: there are no episodes in the file; record at least one")
    if (lengths < 1).any():
        episode = int((lengths < 1).nonzero()[0])
        raise ValueError(f"{path}: episode {episode} has no steps (length {int(lengths[episode])}); leave it out")


def _check_seeds(source: str, seeds: Tensor) -> None:
    if (seeds < -1).any():
        episode = int((seeds < -1).nonzero()[0])
        raise ValueError(
            f"{source}: episode {episode} has the reset seed {int(seeds[episode])}; give those from 0 on, and -1 where "
            "it is unknown"
        )


def _check_episode_layout(place: str, groups: tuple[AgentGroup, ...], episode: JointTransition) -> None:
    names = [group.name for group in groups]
    if sorted(episode.groups) != sorted(names):
        raise ValueError(f"{place}: has the groups {sorted(episode.groups)}, the environment has {sorted(names)}")
    steps = episode.batch_shape[0]
    if not steps:
        raise ValueError(f"{place}: has no steps; leave it out")
    for group in groups:
        for field, (dtype, shape) in _layout(group).items():
            found = getattr(episode.groups[group.name], field)
            if str(found.dtype) != f"torch.{dtype}" or tuple(found.shape) != (steps, *shape):
                raise ValueError(
                    f"{place}: group {group.name!r} has {field} of {found.dtype} {tuple(found.shape)}, "
                    f"not {dtype} {(steps, *shape)} as its spaces and agents {list(group.agents)} ask for"
                )


def _check_transitions(
    source: str, groups: tuple[AgentGroup, ...], transitions: JointTransition, lengths: Tensor
) -> None:
    """Everything that steps ``[S]`` can have wrong, whether they come from a file or from memory."""
    for group in groups:
        place, transition = _Place(source, group, lengths), transitions.groups[group.name]
        _check_finite(place, transition)
        _check_actions(place, transition)
        _check_lives(place, transition)
    _check_first_steps(source, transitions, lengths)


def _check_finite(place: _Place, transition: Transition) -> None:
    for name in ("obs", "next_obs", "action", "env_reward"):
        values = getattr(transition, name)
        place.refuse_values(name, values, ~values.isfinite(), "not a finite number; mend the value or drop the episode")


def _check_actions(place: _Place, transition: Transition) -> None:
    space, action = place.group.action_space, transition.action
    if isinstance(space, spaces.Box):
        low, high = bounds(space)
        bad = (action < low - _ACTION_TOLERANCE) | (action > high + _ACTION_TOLERANCE)
        hint = "clip actions as the environment does before they are recorded"
    else:
        bad = no_choice(space, action)
        hint = "actions are indices that count from 0, whatever the space's own start"
    place.refuse_values("action", action, bad & transition.mask[..., None], f"outside {space}; {hint}")


def no_choice(space: spaces.Space[Any], action: Tensor) -> Tensor:
    """Which of the indices ``[..., U]`` are none of a Discrete or MultiDiscrete space."""
    sizes = [space.n] if isinstance(space, spaces.Discrete) else space.nvec.ravel()  # type: ignore[attr-defined]
    return (action < 0) | (action >= torch.as_tensor(np.asarray(sizes, np.int64)))


def _touched(box: spaces.Box, actions: Tensor) -> bool:
    """Whether some number of ``actions [B, U]`` is a bound, or beyond."""
    low, high = (bound.to(actions) for bound in bounds(box))
    return bool(((actions <= low) | (actions >= high)).any())


def _check_lives(place: _Place, transition: Transition) -> None:
    """Alive, not ended and not the last step: alive in the next step. Ended: never alive again."""
    alive = transition.mask
    ended = transition.terminated | transition.truncated  # False where not alive
    last = _last_steps(place.lengths)[:, None]

    ends_before = ended.cumsum(0) - ended.long()  # [S, A] in this episode and those before it
    first_step = place.lengths.cumsum(0) - place.lengths
    over = ends_before > ends_before[first_step][_episode_of_step(place.lengths)]
    place.refuse(alive & over, "it acts after its own terminated or truncated; set its mask to False from there on")

    alive_next = torch.cat([alive[1:], torch.zeros_like(alive[:1])])
    gone = alive & ~ended & ~last & ~alive_next
    place.refuse(
        gone,
        "it is not alive in the next step, yet neither terminated nor truncated; "
        "set the flag in the last step in which it acts, where its mask is still True",
    )
    place.refuse(
        alive & ~ended & last,
        "the episode stops here while it is neither terminated nor truncated; "
        "give complete episodes, and set truncated where a time limit cut one off",
    )


def _check_first_steps(source: str, transitions: JointTransition, lengths: Tensor) -> None:
    empty = ~transitions.anybody_alive[lengths.cumsum(0) - lengths]  # [N]
    if empty.any():
        raise ValueError(
            f"{source}: episode {int(empty.nonzero()[0])}, step 0: no agent of any group is alive; "
            "mask is True where an agent acts, so check that it is not inverted, or drop the empty steps"
        )


def _check_successors(place: _Place, transition: Transition) -> None:
    """While an agent goes on, its next_obs is its obs of the next step: a file keeps the two as one row."""
    goes_on = transition.mask & ~(transition.terminated | transition.truncated)  # never in an episode's last step
    following = torch.cat([transition.obs[1:], torch.zeros_like(transition.obs[:1])])
    place.refuse(
        (transition.next_obs != following) & goes_on[..., None],
        "its next_obs is not its obs of the next step; keep the steps of an episode in order and leave none out",
    )
