"""Small environments whose every number is known beforehand. Workers import them, so nothing here imports torch."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

AGENTS = ("ant_0", "ant_1", "bee_0")


class Scripted(ParallelEnv):
    """Agents leave as told. ``seed % 3`` more steps than ``steps`` are left to those who stay.

    Agent i observes ``[seed, t, i]`` and earns ``10 i + t`` in step t.

    Args:
        leave: by agent, ``[step, how]``; how is terminated, truncated, both, vanished, or silent (no flag and no
            observation).
        arrive: by agent, the step at whose end it appears; the others are there at the reset.
        stay: agents that were flagged stay in ``agents`` until all are.
        end: what flag those get who stay to the end, or none.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        leave: dict[str, list[Any]] | None = None,
        arrive: dict[str, int] | None = None,
        stay: bool = False,
        steps: int = 4,
        end: str = "truncated",
    ) -> None:
        self.possible_agents = list(AGENTS)
        self.leave, self.arrive, self.stay, self.steps, self.end = leave or {}, arrive or {}, stay, steps, end
        self.spaces = {agent: spaces.Box(-np.inf, np.inf, (3,)) for agent in AGENTS}

    def observation_space(self, agent: str) -> spaces.Space:
        return self.spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def observe(self, agent: str) -> np.ndarray:
        return np.array([self.seed, self.t, AGENTS.index(agent)], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seed, self.t, self.flagged = seed, 0, set()
        self.agents = [agent for agent in AGENTS if agent not in self.arrive]
        return {agent: self.observe(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents) - self.flagged, actions
        self.t += 1
        acted = list(actions)
        leaving = {agent: how for agent, (step, how) in self.leave.items() if step == self.t and agent in acted}
        if self.t == self.steps + self.seed % 3:
            leaving = {agent: self.end for agent in acted} | leaving
        reward = {agent: 10.0 * AGENTS.index(agent) + self.t for agent in acted}
        terminated = {agent: leaving.get(agent) in ("terminated", "both") for agent in acted}
        truncated = {agent: leaving.get(agent) in ("truncated", "both") for agent in acted}
        self.flagged |= {agent for agent in acted if terminated[agent] or truncated[agent]}
        gone = set(leaving) - (self.flagged if self.stay else set())
        self.agents = [agent for agent in self.agents if agent not in gone]
        arriving = [agent for agent, step in self.arrive.items() if step == self.t]
        self.agents += arriving
        observed = [agent for agent in acted if leaving.get(agent) != "silent"] + arriving
        infos: dict[str, Any] = {agent: {} for agent in observed}
        return {agent: self.observe(agent) for agent in observed}, reward, terminated, truncated, infos


class Spaces(ParallelEnv):
    """Agents as told, ``(name, observation kind, action kind)`` each; keeps what it received and sent."""

    metadata: dict[str, Any] = {}  # noqa: RUF012
    render_mode = None
    kinds: dict[str, spaces.Space[Any]] = {  # noqa: RUF012
        "box": spaces.Box(-1, 1, (2,)),
        "scalar": spaces.Box(-1, 1, ()),
        "image": spaces.Box(0, 255, (2, 3, 3), np.uint8),
        "double": spaces.Box(np.array([[-0.1, 0.0]]), np.array([[0.1, 2.0]]), dtype=np.float64),
        "integer": spaces.Box(0, 9, (2,), np.int32),
        "discrete": spaces.Discrete(4, start=2),
        "multi": spaces.MultiDiscrete([3, 4], start=[0, 5]),
        "matrix": spaces.MultiDiscrete([[3, 4], [2, 2]]),
        "tuple": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))),
        "dict": spaces.Dict({"card": spaces.Discrete(3), "hand": spaces.Dict({"x": spaces.Box(-1, 1, (2,))})}),
        "text": spaces.Sequence(spaces.Discrete(2)),
    }

    def __init__(self, agents: list[tuple[str, str, str]]) -> None:
        self.possible_agents = [agent for agent, _, _ in agents]
        self.obs_spaces = {agent: self.kinds[kind] for agent, kind, _ in agents}
        self.action_spaces_ = {agent: self.kinds[kind] for agent, _, kind in agents}
        self.received: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return self.obs_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces_[agent]

    def observe(self) -> dict[str, Any]:
        self.sent.append({agent: space.sample() for agent, space in self.obs_spaces.items()})
        return self.sent[-1]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = self.possible_agents[:]
        for space in self.obs_spaces.values():
            space.seed(seed)
        return self.observe(), {}

    def step(self, actions: dict[str, Any]) -> Any:
        self.received.append(actions)
        none = dict.fromkeys(self.agents, False)
        return self.observe(), dict.fromkeys(self.agents, 0.0), none, none, {}


class Menagerie(Spaces):
    """One agent of each kind of action, with unlike observations; five steps long."""

    def __init__(self) -> None:
        super().__init__(
            [
                ("dog_0", "dict", "multi"),
                ("cat_0", "image", "double"),
                ("cow_0", "tuple", "discrete"),
                ("hen_0", "discrete", "matrix"),
                ("hen_1", "discrete", "matrix"),
            ]
        )

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return super().reset(seed, options)

    def step(self, actions: dict[str, Any]) -> Any:
        obs, reward, terminated, truncated, infos = super().step(actions)
        self.t += 1
        return obs, reward, terminated, dict.fromkeys(truncated, self.t == 5), infos


class Faulty(Scripted):
    """Fails as told in step ``step`` of the episode that begins with ``seed``; chatters on stdout all the while."""

    def __init__(self, how: str, seed: int, step: int) -> None:
        super().__init__(steps=2)
        self.how, self.when = how, (seed, step)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        print("null")  # what an answer of a worker looks like
        os.write(1, b"null\n")
        result = super().reset(seed)
        self.fail()
        return result

    def step(self, actions: dict[str, Any]) -> Any:
        result = super().step(actions)
        self.fail()
        return result

    def fail(self) -> None:
        if (self.seed, self.t) == self.when:
            if self.how == "raise":
                raise ArithmeticError("the ants have lost count")
            if self.how == "exit":
                os._exit(3)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                time.sleep(600)

    def observe(self, agent: str) -> np.ndarray:
        seen = super().observe(agent)
        if (self.seed, self.t, agent) == (*self.when, "ant_1"):
            return {"nan": seen * np.nan, "shape": seen[:1]}.get(self.how, seen)
        return seen

    def render(self) -> Any:
        return None if self.how == "invisible" else np.zeros((4, 5), np.uint8)


class Forgetful(Scripted):
    """Breaks the contract of a reset: remembers how many episodes it has played, and tells."""

    episodes = 0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.episodes += 1
        return super().reset(seed)

    def observe(self, agent: str) -> np.ndarray:
        return super().observe(agent) + self.episodes


class Countdown(gymnasium.Env):
    """Action 1 terminates; ``limit`` steps truncate; both can happen at once. Observes the step, as a Discrete."""

    def __init__(self, limit: int, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Discrete(10)
        self.action_space = spaces.Discrete(2)
        self.limit, self.render_mode = limit, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.t, 1.0, bool(action == 1), self.t == self.limit, {}

    def render(self) -> Any:
        return np.full((4, 5, 3), self.t, np.uint8)


def not_an_environment() -> str:
    return "a string"
