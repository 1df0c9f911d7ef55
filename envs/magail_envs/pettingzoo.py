"""Any PettingZoo parallel environment as a `magail.types.BatchedEnv`."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magail.types import AgentGroup, ByGroup, Step
from magail_envs.copies import Copies, Spec, find_groups, record_dtype
from magail_envs.worker import Workers


class PettingZooEnv:
    """E copies of a PettingZoo or Gymnasium environment, in this process or spread over worker processes.

    Groups hold agents with the same role (the name without a trailing ``_<number>``) and spaces. Observations are
    flattened as `gymnasium.spaces.flatten` does. Discrete actions count from 0 whatever the space's ``start``; Box
    actions are clipped to the space's bounds, and rounded where it holds whole numbers.

    Agents may die, leave or come later: rows of agents that do not act are zero and masked out. An agent that leaves
    with neither flag set counts as truncated. The successor of an agent's last step is its final observation if the
    environment returns one, else its last observation again. An episode is over when no agent is left without a flag.

    Seeds are drawn one episode ahead, since a worker resets a copy without asking: `reset` draws the E seeds of the
    first episodes and then the E seeds of the second ones, in order of the copies; a copy whose episode ends begins the
    one drawn for it, and its next seed is drawn at once (in order of the copies where several end together). So results
    do not depend on ``workers``.

    `state_dict` holds the seed of each unfinished episode and the actions taken since, which loading replays: exact for
    every environment that is deterministic given its reset seed, and slow only where episodes are very long.

    Args:
        name: of the task; it begins every error message.
        constructor: dotted path of a callable that gives a parallel environment, an AEC environment (converted with
            PettingZoo's ``aec_to_parallel``) or a Gymnasium environment (one agent, ``agent_0``).
        arguments: keyword arguments of the constructor.
        wrappers: ``{constructor: dotted path, arguments: {...}}`` each, applied in order to what the constructor gives;
            SuperSuit's wrappers, for example.
        num_envs: E.
        workers: number of worker processes, at most E; 0 steps the copies in this process.
        step_timeout: seconds that a worker may take for one step of all its copies before it counts as hung; without
            workers nothing watches the time.
        render: build the environment with ``render_mode="rgb_array"``, which `render` needs.
        rebuild: build the environment anew for every episode; for one whose reset leaves something of the last
            episode behind and so does not begin the same episode from the same seed.

    Raises:
        ValueError: the environment cannot be built from what is given, or has spaces that cannot be used.
        RuntimeError: the environment failed; says in which copy, at which step, and from which reset seed. Workers also
            report one that died or hung. The object is of no use afterwards.
    """

    def __init__(
        self,
        name: str,
        constructor: str,
        arguments: dict[str, Any] | None = None,
        wrappers: Sequence[dict[str, Any]] = (),
        num_envs: int = 1,
        workers: int = 0,
        step_timeout: float = 60.0,
        render: bool = False,
        rebuild: bool = False,
    ) -> None:
        if num_envs < 1 or workers < 0 or step_timeout <= 0:
            raise ValueError(
                f"{name}: num_envs={num_envs} must be at least 1, workers={workers} at least 0 and "
                f"step_timeout={step_timeout} above 0"
            )
        arguments = {**(arguments or {}), **({"render_mode": "rgb_array"} if render else {})}
        spec = Spec(name, constructor, arguments, list(wrappers), rebuild)
        if workers and not _survives_json([spec.arguments, spec.wrappers]):
            raise ValueError(
                f"{name}: with workers the arguments must be what JSON can hold (lists, mappings with strings as keys, "
                f"strings, numbers, booleans, null), not {arguments} and {spec.wrappers}: change them or set workers=0"
            )
        self.name = name
        self.num_envs, self.device = num_envs, torch.device("cpu")
        # With workers, one environment is built here all the same, to read its spaces and to report mistakes plainly.
        envs = [spec.build() for _ in range(1 if workers else num_envs)]
        groups = find_groups(envs[0])
        self.groups = tuple(AgentGroup(g.name, tuple(map(str, g.agents)), *g[2:]) for g in groups)
        dtype = record_dtype(groups)
        self._copies: Copies | Workers
        if workers:
            self._copies = Workers(spec, dtype, num_envs, min(workers, num_envs), step_timeout)
            records = self._copies.records
            self._probe = envs
        else:
            records = np.zeros(num_envs, dtype)
            self._copies = Copies(spec, envs, groups, records)
            self._probe = []
        # The fields of the records as tensors that share their memory: per copy [E], and per group [E, A, ...].
        self._shared = {f: torch.from_numpy(records[f]) for f in ("seed", "next_seed", "length", "done", "active")}
        self._fields: dict[str, ByGroup] = {
            field: {g.name: torch.from_numpy(records["groups"][g.name][field]) for g in self.groups}
            for field in ("action", "obs", "mask", "next_obs", "reward", "terminated", "truncated")
        }
        self._can_render = render and not workers
        self.obs: ByGroup = {}
        self.mask: ByGroup = {}

    def reset(self, seeds: Iterator[int]) -> None:
        """Begin a new episode in each copy; ``seeds`` must not run out."""
        self._begin(torch.tensor([next(seeds) for _ in range(self.num_envs)]))
        self._seeds = seeds
        self._shared["next_seed"].copy_(torch.tensor([next(seeds) for _ in range(self.num_envs)]))

    def _begin(self, seeds: Tensor) -> None:
        self._shared["next_seed"].copy_(seeds)
        self._copies.reset()
        self._history: deque[ByGroup] = deque()  # the actions of as many last steps as the longest episode has
        self._return = {g.name: torch.zeros(self.num_envs, g.num_agents) for g in self.groups}  # [E, A]
        self._look()

    def _look(self) -> None:
        self.obs, self.mask = self._read("obs"), self._read("mask")

    def _read(self, field: str) -> ByGroup:
        return _clone(self._fields[field])  # the next step overwrites the fields themselves

    def step(self, action: ByGroup) -> Step:
        """Act in every copy, with ``[E, A, U]`` per group; rows that the mask excludes are ignored."""
        seed, length = self._shared["seed"].clone(), self._shared["length"] + 1
        self._advance(action, torch.ones(self.num_envs, dtype=torch.bool))
        step = Step(
            next_obs=self._read("next_obs"),
            reward=self._read("reward"),
            terminated=self._read("terminated"),
            truncated=self._read("truncated"),
            done=self._shared["done"].clone(),
            episode_return=_clone(self._return),
            episode_length=length,
            episode_seed=seed,
        )
        for copy in step.done.nonzero()[:, 0].tolist():
            for value in self._return.values():
                value[copy] = 0
            self._shared["next_seed"][copy] = next(self._seeds)
        self._look()
        return step

    def _advance(self, action: ByGroup, active: Tensor) -> None:
        """Step the ``active`` copies, bool ``[E]``."""
        self._shared["active"].copy_(active)
        for name, field in self._fields["action"].items():
            field.copy_(action[name])
        self._history.append(self._read("action"))
        self._copies.step()
        while len(self._history) > self._shared["length"].max():
            self._history.popleft()
        for name, reward in self._fields["reward"].items():  # 0 in the other copies
            self._return[name] += reward

    def compile(self) -> None:
        """Nothing: the environments are not torch's."""

    def state_dict(self) -> dict[str, Any]:
        """``action[group]`` is ``[T, E, A, U]``: the last ``length[e]`` of its T steps belong to copy e's episode."""
        action = {
            name: torch.stack([step[name] for step in self._history]) if self._history else field[None][:0].clone()
            for name, field in self._fields["action"].items()
        }
        shared = {name: self._shared[name].clone() for name in ("seed", "next_seed", "length")}
        return {**shared, "action": action, "obs": _clone(self.obs)}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        """Replay the unfinished episodes; warns if the environment does not come back to where it was.

        Raises:
            ValueError: the state is one of another number of copies.
        """
        if len(state["length"]) != self.num_envs:
            raise ValueError(
                f"{self.name}: the state has {len(state['length'])} copies and num_envs is {self.num_envs}: "
                "go on with the num_envs that the state was saved with"
            )
        self._begin(state["seed"])
        self._seeds = seeds
        steps = int(state["length"].max())
        for t in range(steps):
            self._advance({name: action[t] for name, action in state["action"].items()}, state["length"] >= steps - t)
        self._shared["next_seed"].copy_(state["next_seed"])
        self._look()
        if not all(torch.equal(obs, state["obs"][name].cpu()) for name, obs in self.obs.items()):
            warnings.warn(
                f"{self.name}: the same seeds and actions led to other observations than before, so the run does not "
                "continue bit for bit; if the environment is deterministic when freshly built, set rebuild=true",
                stacklevel=2,
            )

    def render(self) -> np.ndarray:
        """Copy 0 as an image ``[H, W, 3]`` uint8.

        Raises:
            ValueError: built without ``render=True`` or with workers, or what it draws is no such image.
        """
        if not self._can_render:
            raise ValueError(f"{self.name}: only an environment built with render=true and workers=0 can be drawn")
        assert isinstance(self._copies, Copies)
        return self._copies.render()

    def close(self) -> None:
        """End the workers and close the environments; further calls do nothing."""
        self._copies.close()
        while self._probe:
            self._probe.pop().close()


def _clone(tensors: ByGroup) -> ByGroup:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _survives_json(content: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(content)) == content)
    except TypeError:
        return False
