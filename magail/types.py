"""The types every part of the project shares.

Letters used for tensor shapes here and everywhere else: **T** time, **E** environments (copies stepped together),
**A** agents of a group, **O** observation, **U** action, **B** batch.

Tensors live per *group* of agents that have the same role and spaces, so unequal agents are never padded and one
batched call serves all agents of a group. Observations are flat float32 vectors (Dict, image and discrete observations
are flattened by the environment adapter). Actions have one trailing axis U: the K indices of a Discrete (K = 1) or
MultiDiscrete space as int64, or the numbers of a Box, flattened, in the environment's own units as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

ByGroup = dict[str, Tensor]
"""One tensor per group name."""


@dataclass(frozen=True)
class AgentGroup:
    """Agents with the same role, observation space and action space.

    Raises:
        ValueError: an action space that is not Discrete, MultiDiscrete or Box, or a name that no module of torch can
            have.
    """

    name: str
    agents: tuple[str, ...]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.action_space, (spaces.Discrete, spaces.MultiDiscrete, spaces.Box)):
            raise ValueError(
                f"group {self.name!r} has the action space {self.action_space}, which no actor here can produce: "
                "wrap the environment so that its actions are Discrete, MultiDiscrete or Box"
            )
        if "." in self.name or hasattr(nn.ModuleDict(), self.name):
            raise ValueError(
                f"agents cannot be called {self.name!r} (with or without a number), which torch uses itself for the "
                "modules that hold their networks: wrap the environment so that they have another name"
            )

    @property
    def num_agents(self) -> int:
        """A."""
        return len(self.agents)

    @property
    def obs_dim(self) -> int:
        """O, the size of a flattened observation."""
        return spaces.flatdim(self.observation_space)

    @property
    def action_dim(self) -> int:
        """U, the number of values in one agent's action."""
        if isinstance(self.action_space, spaces.Discrete):
            return 1
        assert self.action_space.shape is not None
        return int(np.prod(self.action_space.shape))

    @property
    def action_dtype(self) -> torch.dtype:
        """float32 for a Box, int64 for the others."""
        return torch.float32 if isinstance(self.action_space, spaces.Box) else torch.int64


@dataclass
class Transition:
    """What the agents of one group saw and did; every field has the same leading axes ``[..., A]``.

    Indexing, flattening and moving act on all fields at once, so they cannot get out of step.
    """

    obs: Tensor  # [..., A, O]
    action: Tensor  # [..., A, U]
    next_obs: Tensor  # [..., A, O] the true successor, never the one after an automatic reset
    terminated: Tensor  # [..., A] bool: the agent's episode ended by the environment's choice; its value is 0 from here
    truncated: Tensor  # [..., A] bool: it was cut off (time limit); its value goes on
    mask: Tensor  # [..., A] bool: the agent was alive when it acted; other rows are zero and count in no mean
    log_prob: Tensor  # [..., A] of the action under the policy that took it; 0 where unknown (demonstrations)
    env_reward: Tensor  # [..., A] for logs and for `algorithm=rl`; imitation never reads it

    @property
    def lives_on(self) -> Tensor:
        """``[..., A]`` bool: the agent acted and did not terminate, so it is there in what follows."""
        return self.mask & ~self.terminated

    def map(self, function: Callable[[Tensor], Tensor]) -> Transition:
        """Apply ``function`` to every field."""
        return Transition(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def __getitem__(self, index: Any) -> Transition:
        return self.map(lambda x: x[index])


@dataclass
class JointTransition:
    """One `Transition` per group, all with the same leading axes: ``[T, E]`` in a rollout, ``[B]`` in a batch."""

    groups: dict[str, Transition]
    memory: ByGroup | None = None  # [E, A, H] of recurrent actors before step 0; only a whole rollout has one
    absorbing: bool = False  # every row is what follows on a termination (`absorbing_transition`)

    def map(self, function: Callable[[Tensor], Tensor]) -> JointTransition:
        """Apply ``function`` to every field of every group."""
        mapped = {name: group.map(function) for name, group in self.groups.items()}
        return JointTransition(mapped, absorbing=self.absorbing)

    def __getitem__(self, index: Any) -> JointTransition:
        return self.map(lambda x: x[index])

    def field(self, name: str) -> ByGroup:
        """One field of every group, e.g. ``field("obs")``."""
        return {group: getattr(transition, name) for group, transition in self.groups.items()}

    def sample(self, size: int) -> JointTransition:
        """``size`` rows of a batch ``[B]``, with replacement."""
        device = next(iter(self.groups.values())).mask.device
        return self.rows(torch.randint(self.batch_shape[0], (size,), device=device))

    def rows(self, index: Tensor) -> JointTransition:
        """The rows ``index`` (int64) of a batch; faster than ``self[index]``."""
        return self.map(lambda x: x.index_select(0, index))

    def flatten(self) -> JointTransition:
        """``[T, E, ...] -> [T * E, ...]``; a batch ``[B]`` stays as it is."""
        axes = len(self.batch_shape)
        return self.map(lambda x: x.flatten(0, axes - 1))

    @property
    def anybody_alive(self) -> Tensor:
        """In which steps ``[...]`` somebody of any group lives."""
        return torch.cat(list(self.field("mask").values()), -1).any(-1)

    @property
    def batch_shape(self) -> torch.Size:
        """The leading axes that all groups share."""
        return next(iter(self.groups.values())).mask.shape[:-1]


def stack(steps: Sequence[JointTransition]) -> JointTransition:
    """T joint transitions ``[...]`` as one ``[T, ...]``."""
    return _joined(steps, torch.stack)


def concatenate(batches: Sequence[JointTransition]) -> JointTransition:
    """Batches ``[B]`` as one; a single one is itself."""
    return batches[0] if len(batches) == 1 else _joined(batches, torch.cat)


def _joined(parts: Sequence[JointTransition], join: Callable[[list[Tensor]], Tensor]) -> JointTransition:
    names = [field.name for field in fields(Transition)]
    return JointTransition(
        {
            group: Transition(**{name: join([getattr(part.groups[group], name) for part in parts]) for name in names})
            for group in parts[0].groups
        }
    )


def absorbing_transition(batch: JointTransition) -> JointTransition:
    """For each step of a batch ``[...]`` the one that agents which terminated in it repeat for ever after.

    Observations and actions are zero (a discriminator sees a state of its own in their place), nothing ends, and
    ``mask`` is true for the agents that terminated: a loss over both batches sees as many absorbing steps as there were
    terminations. Its log-probability is 0: there is no choice.
    """
    still = batch.map(torch.zeros_like)
    groups = {
        name: replace(still.groups[name], mask=group.terminated & group.mask) for name, group in batch.groups.items()
    }
    return JointTransition(groups, absorbing=True)


def bounds(box: spaces.Box) -> tuple[Tensor, Tensor]:
    """The lowest and the highest of the flattened box, ``[n]`` each."""
    low, high = (torch.as_tensor(bound, dtype=torch.float32).flatten() for bound in (box.low, box.high))
    return low, high


def are_bounded(box: spaces.Box) -> Tensor:
    """Which numbers of the flattened box have bounds whose distance float32 can hold, ``[n]`` bool."""
    low, high = bounds(box)
    return (high - low).isfinite()


def share_of_ends(batch: JointTransition) -> ByGroup:
    """In what share of the steps of a batch ``[B]`` in which anybody lives each agent terminates, ``[1, A]``."""
    steps = batch.anybody_alive.sum().clamp(min=1)
    return {name: (g.terminated & g.mask).sum(0, keepdim=True) / steps for name, g in batch.groups.items()}


class Change(Protocol):
    """What an observation or action becomes in each of G views of an environment."""

    def see(self, x: Tensor, view: Tensor) -> Tensor:
        """``x [B, A, ...]``, each row as it looks from its ``view [B]``."""
        ...

    def inverse(self) -> Change:
        """What leads back."""
        ...

    def to(self, device: torch.device) -> Change: ...

    def described(self) -> dict[str, Any]:
        """As plain lists, by the names of its fields."""
        ...


@dataclass(frozen=True)
class Reordered:
    """Of a vector: the numbers change places and signs."""

    source: Tensor  # [G, A, K] int64, which number comes here; a permutation in each row; A is 1 where agents are alike
    sign: Tensor  # [G, A, K] float32, 1 or -1, of the number that comes here

    def see(self, x: Tensor, view: Tensor) -> Tensor:
        return x.gather(-1, self.source[view].expand_as(x)) * self.sign[view]

    def inverse(self) -> Reordered:
        source = self.source.argsort(-1)
        return Reordered(source, self.sign.gather(-1, source))

    def to(self, device: torch.device) -> Reordered:
        return Reordered(self.source.to(device), self.sign.to(device))

    def described(self) -> dict[str, Any]:
        return {"source": self.source.tolist(), "sign": self.sign.tolist()}


@dataclass(frozen=True)
class Renamed:
    """Of a Discrete action: each is called something else."""

    name: Tensor  # [G, A, number of actions] int64, a permutation in each row; A is 1 where agents are alike

    def see(self, x: Tensor, view: Tensor) -> Tensor:
        return self.name[view].expand(*x.shape[:2], -1).gather(-1, x)

    def inverse(self) -> Renamed:
        return Renamed(self.name.argsort(-1))

    def to(self, device: torch.device) -> Renamed:
        return Renamed(self.name.to(device))

    def described(self) -> dict[str, Any]:
        return {"name": self.name.tolist()}


@dataclass(frozen=True)
class Symmetries:
    """Views from which an environment looks the same, for every group.

    Whoever sees all observations and names all actions as in one view meets the same dynamics and the same
    distribution of initial states as in any other. View 0 shows things as they are. Agents may change places as well:
    who comes to a place is then seen there with all that it observes and does.
    """

    number: int  # G
    obs: dict[str, Reordered]
    action: dict[str, Change]
    agents: ByGroup = field(default_factory=dict)  # [G, A] int64, which agent comes here; in other groups nobody moves

    def to(self, device: torch.device) -> Symmetries:
        obs = {name: change.to(device) for name, change in self.obs.items()}
        action = {name: change.to(device) for name, change in self.action.items()}
        return Symmetries(self.number, obs, action, {name: agents.to(device) for name, agents in self.agents.items()})

    def places(self, values: ByGroup, view: Tensor) -> ByGroup:
        """``values [B, A, ...]`` of each agent, at the place to which it comes in each row's ``view [B]``."""
        return {name: self._placed(name, x, view) for name, x in values.items()}

    def _placed(self, name: str, x: Tensor, view: Tensor) -> Tensor:
        return _rows(x, self.agents[name][view]) if name in self.agents else x

    def see_obs(self, obs: ByGroup, view: Tensor) -> ByGroup:
        """Observations ``[B, A, O]``, each row from its ``view [B]``."""
        return {name: self.obs[name].see(x, view) for name, x in self.places(obs, view).items()}

    def see_action(self, action: ByGroup, view: Tensor) -> ByGroup:
        """Actions ``[B, A, U]``, each row as it is called from its ``view [B]``."""
        return {name: self.action[name].see(x, view) for name, x in self.places(action, view).items()}

    def undo_action(self, action: ByGroup, view: Tensor) -> ByGroup:
        """As they are: actions ``[B, A, U]`` that each row means from its ``view [B]``."""
        return self.undo_places({name: self.undo[name].see(x, view) for name, x in action.items()}, view)

    def undo_places(self, values: ByGroup, view: Tensor) -> ByGroup:
        """``values [B, A, ...]`` of each place, for the agent that came there in each row's ``view [B]``."""
        return {name: _rows(x, self._back[name][view]) if name in self._back else x for name, x in values.items()}

    def of(self, names: Iterable[str]) -> Symmetries:
        """For some groups alone."""
        some = set(names)
        parts: list[dict[str, Any]] = [self.obs, self.action, self.agents]
        obs, action, agents = ({name: x for name, x in part.items() if name in some} for part in parts)
        return Symmetries(self.number, obs, action, agents)

    def described(self) -> dict[str, Any]:
        """As plain lists, for files."""
        return {
            "obs": {name: change.described() for name, change in self.obs.items()},
            "action": {name: change.described() for name, change in self.action.items()},
            "agents": {name: agents.tolist() for name, agents in self.agents.items()},
        }

    def check(self, groups: Sequence[AgentGroup]) -> None:
        """Refuse what are, on the CPU, no views of what the agents of ``groups`` see and do.

        Raises:
            ValueError: a group is missing, or a view of one has another size, loses something or, being the first, does
                not show things as they are.
        """
        view = torch.arange(self.number)
        for group in groups:
            space = group.action_space  # of a Discrete each name is asked for, else each number
            width = int(space.n) if isinstance(space, spaces.Discrete) else group.action_dim
            obs = torch.arange(1.0, group.num_agents * group.obs_dim + 1).reshape(group.num_agents, -1)
            obs = obs.expand(self.number, -1, -1)
            action = torch.arange(width).to(group.action_dtype).expand(self.number, group.num_agents, -1)
            try:
                seen, called = self.see_obs({group.name: obs}, view), self.see_action({group.name: action}, view)
                undone = self.undo_action(called, view)[group.name]
            except (KeyError, IndexError, RuntimeError) as error:
                raise ValueError(
                    f"these are not {self.number} views of what agents of {group.name!r} see ({group.obs_dim} numbers) "
                    f"and do ({group.action_space}): {type(error).__name__}: {error}"
                ) from error
            if not torch.equal(seen[group.name].abs().flatten(1).sort().values, obs.flatten(1)):
                raise ValueError(f"a view of {group.name!r} does not show every number once, with sign 1 or -1")
            if not torch.equal(undone, action):
                raise ValueError(f"a view of {group.name!r} gives two actions one name, or a sign other than 1 and -1")
            if not (torch.equal(seen[group.name][0], obs[0]) and torch.equal(called[group.name][0], action[0])):
                raise ValueError(f"view 0 of {group.name!r} does not show things as they are")

    @cached_property
    def undo(self) -> dict[str, Change]:
        """By group what leads from a view's actions back to them as they are, each at its agent's place there."""
        return {name: change.inverse() for name, change in self.action.items()}

    @cached_property
    def _back(self) -> ByGroup:
        return {name: agents.argsort(-1) for name, agents in self.agents.items()}

    def see(self, batch: JointTransition, view: Tensor) -> JointTransition:
        """``batch [B]``, each row from its ``view [B]``."""

        def seen(name: str, transition: Transition) -> Transition:
            here = transition.map(lambda x: self._placed(name, x, view))
            obs, action = self.obs[name], self.action[name].see(here.action, view)
            return replace(
                here,
                obs=obs.see(here.obs, view),
                next_obs=obs.see(here.next_obs, view),
                action=action * here.mask.unsqueeze(-1),  # the dead do nothing, whatever it is called
            )

        return replace(batch, groups={name: seen(name, group) for name, group in batch.groups.items()})


def described_symmetries(description: Mapping[str, Any]) -> Symmetries:
    """What `Symmetries.described` is of, which `Symmetries.check` has still to see.

    Raises:
        ValueError: it is of none.
    """
    try:
        obs = {name: _reordered(change) for name, change in description["obs"].items()}
        action: dict[str, Change] = {
            name: _reordered(x) if "sign" in x else Renamed(torch.tensor(x["name"]))
            for name, x in description["action"].items()
        }
        agents = {name: torch.tensor(rows) for name, rows in description["agents"].items()}
        return Symmetries(len(next(iter(obs.values())).source), obs, action, agents)
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"not views: {error}") from error


def _reordered(change: Mapping[str, Any]) -> Reordered:
    return Reordered(torch.tensor(change["source"]), torch.tensor(change["sign"], dtype=torch.float32))


def _rows(x: Tensor, agents: Tensor) -> Tensor:
    """``x [B, A, ...]`` with the agents in the order ``agents [B, A]``."""
    index = agents.view(*agents.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand_as(x))


class Seeds(Iterator[int]):
    """The reset seed of each next episode: fresh, or with probability ``fraction`` one of ``starts``.

    ``starts`` are the reset seeds of demonstrations, so that episodes can begin where demonstrations began.
    """

    def __init__(self, seed: int, starts: Sequence[int] = (), fraction: float = 0.0) -> None:
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"the fraction of episodes from given starts is a probability in [0, 1], not {fraction}")
        if fraction > 0.0 and not starts:
            raise ValueError(
                "episodes cannot start where demonstrations started: these carry no reset seeds; set "
                "start_from_demonstrations=0, or record demonstrations with magail.record"
            )
        self.starts, self.fraction = [int(start) for start in starts], fraction
        self._rng = np.random.default_rng(seed)

    def __next__(self) -> int:
        if self._rng.random() < self.fraction:
            return self.starts[self._rng.integers(len(self.starts))]
        return int(self._rng.integers(2**31 - 1))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only, so that it loads without pickle."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]


@dataclass
class Step:
    """What one call of `BatchedEnv.step` brought back; tensors per group ``[E, A, ...]`` or per copy ``[E]``.

    It describes the transition that just ended; what to act on next is ``env.obs`` and ``env.mask``.
    """

    next_obs: ByGroup  # [E, A, O] the true successor, also where the copy has been reset since
    reward: ByGroup  # [E, A] float32, the environment's
    terminated: ByGroup  # [E, A] bool
    truncated: ByGroup  # [E, A] bool
    done: Tensor  # [E] bool: the episode is over for all agents and a new one has begun in this copy
    episode_return: ByGroup  # [E, A] float32, undiscounted sum of the episode's rewards, this step's included
    episode_length: Tensor  # [E] int64, steps of the episode, this one included
    episode_seed: Tensor  # [E] int64, the reset seed that the episode of this step began with

    def map_groups(self, function: Callable[[ByGroup], ByGroup]) -> Step:
        """Apply ``function`` to all that is kept per group."""
        return replace(
            self,
            next_obs=function(self.next_obs),
            reward=function(self.reward),
            terminated=function(self.terminated),
            truncated=function(self.truncated),
            episode_return=function(self.episode_return),
        )


class BatchedEnv(Protocol):
    """E copies of one environment that step together and reset themselves.

    ``reset(seeds)`` begins a new episode in each copy, in order of the copies, and every later automatic reset takes
    its seed from the same iterator, again in order of the copies. `state_dict` holds all that is needed to go on bit
    for bit, unfinished episodes included, as plain containers, numbers, strings and tensors; the seeds' own state is
    not part of it.
    """

    name: str
    groups: tuple[AgentGroup, ...]
    num_envs: int  # E
    device: torch.device  # where its tensors are, and actions are expected
    obs: ByGroup  # [E, A, O] what to act on now
    mask: ByGroup  # [E, A] bool, who is alive to act now

    def reset(self, seeds: Iterator[int]) -> None: ...

    def step(self, action: ByGroup) -> Step: ...

    def compile(self) -> None:
        """Let ``torch.compile`` make the steps faster, where they are torch's."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None: ...

    def render(self) -> np.ndarray:
        """Copy 0 as an image ``[H, W, 3]`` uint8."""
        ...

    def close(self) -> None: ...


class BatchedEnvWrapper:
    """A `BatchedEnv` around another one; a derived class says how things look (`_look`) and how to `step`."""

    obs: ByGroup
    mask: ByGroup

    def __init__(self, env: BatchedEnv, device: torch.device) -> None:
        self.env, self.device = env, device
        self.name, self.groups, self.num_envs = env.name, env.groups, env.num_envs

    def _look(self) -> None:
        """Bring ``obs`` and ``mask`` up to date with the environment's."""
        raise NotImplementedError

    def reset(self, seeds: Iterator[int]) -> None:
        self.env.reset(seeds)
        self._look()

    def compile(self) -> None:
        self.env.compile()

    def state_dict(self) -> dict[str, Any]:
        return self.env.state_dict()

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        self.env.load_state_dict(state, seeds)
        self._look()

    def render(self) -> np.ndarray:
        return self.env.render()

    def close(self) -> None:
        self.env.close()
