"""Copies of a PettingZoo environment, stepped one after another in this process.

Everything a copy takes in and gives out is one record of a NumPy structured array, so that the same code writes into
plain memory (in process) and into memory shared with another process (`magail_envs.worker`). Nothing here imports
torch, so a worker starts fast.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel

from magail_envs.gymnasium import SingleAgentEnv

# Environments drawn with SDL must neither look for a screen and a sound card nor greet every process.
QUIET = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}


@dataclass(frozen=True)
class Spec:
    """What to build, and how. `magail_envs.pettingzoo.PettingZooEnv` documents the fields."""

    name: str
    constructor: str
    arguments: dict[str, Any]
    wrappers: list[dict[str, Any]]
    rebuild: bool

    def build(self) -> ParallelEnv[Any, Any, Any]:
        """One parallel environment.

        Raises:
            ValueError: a path that leads nowhere, arguments that do not fit, or something that is no environment.
        """
        for variable, value in QUIET.items():
            os.environ.setdefault(variable, value)
        env = _construct(self.constructor, self.arguments)
        for wrapper in self.wrappers:
            if "constructor" not in wrapper or not wrapper.keys() <= {"constructor", "arguments"}:
                raise ValueError(f"a wrapper is given as {{constructor: ..., arguments: {{...}}}}, not as {wrapper}")
            env = _construct(wrapper["constructor"], wrapper.get("arguments", {}), env)
        return _as_parallel(env, self.constructor)


def _construct(path: str, arguments: dict[str, Any], *wrapped: Any) -> Any:
    module, _, attribute = path.rpartition(".")
    try:
        constructor = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"there is no constructor {path!r} ({error}): give the full dotted path of a callable in an installed "
            "package or in a module of the current folder (which `python -m` puts on the import path), such as "
            "mpe2.simple_tag_v3.parallel_env"
        ) from error
    try:
        return constructor(*wrapped, **arguments)
    except Exception as error:
        raise ValueError(
            f"{path} failed with the arguments {arguments} ({type(error).__name__}: {error}): "
            "compare them with what its documentation lists"
        ) from error


def _as_parallel(env: Any, constructor: str) -> ParallelEnv[Any, Any, Any]:
    if isinstance(env, gymnasium.Env):
        return SingleAgentEnv(env)
    if isinstance(env, AECEnv):
        if not env.metadata.get("is_parallelizable", False):
            raise ValueError(
                f"{constructor} gives an environment whose agents act in turns, which cannot be stepped all at once: "
                "add the wrapper pettingzoo.utils.turn_based_aec_to_parallel if its agents may see every turn"
            )
        env = aec_to_parallel(env)
    if not isinstance(env, ParallelEnv) or not hasattr(env, "possible_agents"):
        raise ValueError(
            f"{constructor} gives {env!r}, which is neither a PettingZoo parallel or AEC environment with "
            "`possible_agents` nor a Gymnasium environment: derive it from one of their classes"
        )
    return env


class Group(NamedTuple):
    """The fields of `magail.types.AgentGroup`, which a worker cannot have because it brings torch with it."""

    name: str
    agents: tuple[Any, ...]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]


def find_groups(env: ParallelEnv[Any, Any, Any]) -> tuple[Group, ...]:
    """The agents by role (name without a trailing ``_<number>``) and spaces, in order of ``possible_agents``.

    Agents with one role but unequal spaces become the groups ``role``, ``role_2`` and so on.

    Raises:
        ValueError: an observation space without a fixed size.
    """
    groups: list[Group] = []
    roles: list[str] = []
    for agent in env.possible_agents:
        role = re.sub(r"_\d+$", "", str(agent)) or "agent"
        obs_space, action_space = env.observation_space(agent), env.action_space(agent)
        if not obs_space.is_np_flattenable:
            raise ValueError(
                f"agent {agent!r} observes {obs_space}, which has no fixed size: wrap the environment so that it has"
            )
        for i, group in enumerate(groups):
            if roles[i] == role and group.observation_space == obs_space and group.action_space == action_space:
                groups[i] = group._replace(agents=(*group.agents, agent))
                break
        else:
            name, number = role, 2
            while name in [group.name for group in groups]:
                name, number = f"{role}_{number}", number + 1
            groups.append(Group(name, (agent,), obs_space, action_space))
            roles.append(role)
    return tuple(groups)


def record_dtype(groups: tuple[Group, ...]) -> np.dtype[np.void]:
    """All that one copy shares with whoever steps it, so an array of E of them is the whole batch."""
    return np.dtype(
        [
            (
                "groups",
                np.dtype([(group.name, _agent_dtype(group), (len(group.agents),)) for group in groups], align=True),
            ),
            ("active", "?"),  # in: step this copy
            ("next_seed", "i8"),  # in: the next episode's reset seed
            ("seed", "i8"),  # the episode's reset seed
            ("length", "i8"),  # steps of the episode begun so far; 0 in a reset
            ("done", "?"),  # out: the step ended an episode, and the next one has begun
            ("busy", "?"),  # the environment's own code is running: who was at work when a worker was lost
        ],
        align=True,
    )


def _agent_dtype(group: Group) -> np.dtype[np.void]:
    obs_dim = spaces.flatdim(group.observation_space)
    shape = group.action_space.shape or (1,)  # Discrete has the shape ()
    return np.dtype(
        [
            ("action", "f4" if isinstance(group.action_space, spaces.Box) else "i8", (int(np.prod(shape)),)),  # in
            ("obs", "f4", (obs_dim,)),
            ("mask", "?"),
            ("next_obs", "f4", (obs_dim,)),
            ("reward", "f4"),
            ("terminated", "?"),
            ("truncated", "?"),
        ],
        align=True,
    )


def where(name: str, index: int, record: np.void) -> str:
    """A copy's place in its episode, for messages."""
    at = f"step {record['length']}" if record["length"] else "the reset"
    return f"{name}, copy {index}, {at} of the episode with reset seed {record['seed']}"


class Copies:
    """The environments of consecutive copies, the first of which is number ``first``; one record for each."""

    def __init__(
        self,
        spec: Spec,
        envs: Iterable[ParallelEnv[Any, Any, Any]],
        groups: tuple[Group, ...],
        records: np.ndarray,
        first: int = 0,
    ) -> None:
        self._name = spec.name
        self._groups = groups
        self._records = records
        self._busy = records["busy"]
        self._first = first
        build = spec.build if spec.rebuild else None
        self._copies = [_Copy(env, build, groups, records[i : i + 1]) for i, env in enumerate(envs)]

    def reset(self) -> None:
        """Begin an episode with the seed ``next_seed`` in every copy."""
        for index, copy in enumerate(self._copies):
            self._guard(index, copy.reset)
        self._check_finite()

    def step(self) -> None:
        """Step the ``active`` copies; those whose episode ends begin another with the seed ``next_seed``."""
        self._records["done"] = False
        actions: dict[Any, np.ndarray] = {}  # by agent, for all copies
        for group in self._groups:
            fields = self._records["groups"][group.name]
            for output in ("next_obs", "reward", "terminated", "truncated"):
                fields[output] = 0
            decoded = _decode(group.action_space, fields["action"])
            actions.update((agent, decoded[:, a]) for a, agent in enumerate(group.agents))
        active = self._records["active"].tolist()
        for index, copy in enumerate(self._copies):
            if active[index]:
                self._guard(index, copy.step, {agent: actions[agent][index] for agent in copy.alive})
        self._check_finite()

    def _check_finite(self) -> None:
        for group in self._groups:
            for field in ("obs", "next_obs", "reward"):
                values = self._records["groups"][group.name][field]
                if not np.isfinite(values).all():
                    index, agent, *_ = np.argwhere(~np.isfinite(values))[0]
                    place = where(self._name, self._first + index, self._records[index])
                    raise RuntimeError(
                        f"{place}, or the step that ended the one before: {field} of agent {group.agents[agent]!r} is "
                        "not finite; mend the environment"
                    )

    def _guard(self, index: int, function: Callable[..., None], *args: Any) -> None:
        self._busy[index] = True
        try:
            function(*args)
        except Exception as error:
            place = where(self._name, self._first + index, self._records[index])
            raise RuntimeError(f"{place}: {type(error).__name__}: {error}") from error
        self._busy[index] = False

    def render(self) -> np.ndarray:
        """The first copy as an image ``[H, W, 3]`` uint8.

        Raises:
            ValueError: it cannot be drawn, or what its ``render`` gives is no such image.
        """
        try:
            picture = np.ascontiguousarray(self._copies[0].env.render(), dtype=np.uint8)
        except Exception as error:
            raise ValueError(f"{self._name} cannot be drawn ({type(error).__name__}: {error})") from error
        if picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"{self._name}: render() gives the shape {picture.shape}, not an image [height, width, 3]")
        return picture

    def close(self) -> None:
        while self._copies:
            self._copies.pop().env.close()


class _Row:
    """One agent's part of a copy's record, a view per field.

    Observations are views in the shape of the environment's own where that is a Box, which is then copied as it is
    (flattening takes ten times as long).
    """

    def __init__(self, fields: np.ndarray, space: spaces.Space[Any]) -> None:
        self._flatten = None if isinstance(space, spaces.Box) else space
        shape = space.shape if isinstance(space, spaces.Box) else (-1,)
        self.obs = fields["obs"].reshape(shape)
        self.next_obs = fields["next_obs"].reshape(shape)
        # [1] each: writing into an array is several times faster than into a field of a record
        self.mask, self.reward = fields["mask"], fields["reward"]
        self.terminated, self.truncated = fields["terminated"], fields["truncated"]

    def encode(self, obs: Any) -> Any:
        if self._flatten is not None:
            return spaces.flatten(self._flatten, obs)
        if np.shape(obs) != self.obs.shape:
            raise ValueError(f"an observation of the shape {np.shape(obs)} where the space has {self.obs.shape}")
        return obs


class _Copy:
    """One environment and its record, an array of length 1."""

    def __init__(
        self,
        env: ParallelEnv[Any, Any, Any],
        build: Callable[[], ParallelEnv[Any, Any, Any]] | None,
        groups: tuple[Group, ...],
        record: np.ndarray,
    ) -> None:
        self.env = env
        self.alive: list[Any] = []
        self._build = build
        self._used = False
        self._ended: set[Any] = set()  # flagged; some environments keep them in `agents` all the same
        self._seed, self._next_seed = record["seed"], record["next_seed"]
        self._length, self._done = record["length"], record["done"]
        self._rows = {
            agent: _Row(record["groups"][group.name][:, a], group.observation_space)
            for group in groups
            for a, agent in enumerate(group.agents)
        }

    def reset(self) -> None:
        self._seed[0] = self._next_seed[0]
        self._length[0] = 0
        if self._build is not None and self._used:
            self.env.close()
            self.env = self._build()
        self._used = True
        self._ended.clear()
        observations, _ = self.env.reset(seed=int(self._seed[0]))
        self._observe(self._encode(observations), list(self.env.agents))

    def step(self, actions: dict[Any, Any]) -> None:
        self._length[0] += 1
        observations, rewards, terminated, truncated, _ = self.env.step(actions)
        encoded = self._encode(observations)
        agents = self.env.agents
        for agent in actions:
            row = self._rows[agent]
            ended, cut = terminated.get(agent, False), truncated.get(agent, False)
            row.reward[0] = rewards.get(agent, 0.0)
            row.terminated[0] = ended
            # Whoever leaves without a word was cut off, not ended by the environment's choice.
            row.truncated[0] = cut or (not ended and agent not in agents)
            # The last observation stands in for a final one that the environment does not return.
            row.next_obs[...] = encoded.get(agent, row.obs)
            if ended or cut:
                self._ended.add(agent)
        alive = [agent for agent in agents if agent not in self._ended]
        if alive:
            self._observe(encoded, alive)
        else:
            self._done[0] = True
            self.reset()

    def _encode(self, observations: dict[Any, Any]) -> dict[Any, Any]:
        return {agent: self._rows[agent].encode(obs) for agent, obs in observations.items() if agent in self._rows}

    def _observe(self, encoded: dict[Any, Any], alive: list[Any]) -> None:
        for agent in self.alive:
            row = self._rows[agent]
            row.obs[...] = 0
            row.mask[0] = False
        for agent in alive:
            if agent not in encoded:
                raise ValueError(f"agent {agent!r} is in `agents` and has no observation, or is not in possible_agents")
            row = self._rows[agent]
            row.obs[...] = encoded[agent]
            row.mask[0] = True
        self.alive = alive


def _decode(space: spaces.Space[Any], action: np.ndarray) -> np.ndarray:
    """Flat actions ``[..., U]`` as the environment's own ``[..., *shape]``, in a fresh array."""
    if isinstance(space, spaces.Discrete):
        return action[..., 0] + space.start
    assert space.shape is not None
    action = action.reshape(*action.shape[:-1], *space.shape)
    if isinstance(space, spaces.MultiDiscrete):
        return action + space.start
    assert isinstance(space, spaces.Box)
    clipped = np.clip(action, space.low, space.high)
    return (np.rint(clipped) if space.dtype.kind in "iu" else clipped).astype(space.dtype)
