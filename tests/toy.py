"""Groups, batches and tiny batched environments that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from magail.types import AgentGroup, ByGroup, JointTransition, Step, Transition


def groups_of(**sizes: tuple[int, int, spaces.Space[Any]]) -> tuple[AgentGroup, ...]:
    """``groups_of(wolf=(2, 4, Discrete(3)))``: two wolves with 4 observed numbers and 3 actions."""
    return tuple(
        AgentGroup(name, tuple(f"{name}_{i}" for i in range(agents)), spaces.Box(-np.inf, np.inf, (obs,)), action)
        for name, (agents, obs, action) in sizes.items()
    )


TWO_SIDES = groups_of(wolf=(2, 4, spaces.Discrete(3)), sheep=(1, 5, spaces.Box(-1.0, 1.0, (2,))))


def random_batch(groups: tuple[AgentGroup, ...], *shape: int, alive: float = 1.0) -> JointTransition:
    """Random transitions ``[*shape]``; agents are alive with the given probability, and zero where they are dead."""

    def group(g: AgentGroup) -> Transition:
        lead = (*shape, g.num_agents)
        mask = torch.rand(lead) < alive
        if isinstance(g.action_space, spaces.Discrete):
            action = torch.randint(int(g.action_space.n), (*lead, 1))
        else:
            action = torch.rand(*lead, g.action_dim) * 2 - 1
        return Transition(
            obs=torch.randn(*lead, g.obs_dim) * mask.unsqueeze(-1),
            action=action * mask.unsqueeze(-1),
            next_obs=torch.randn(*lead, g.obs_dim) * mask.unsqueeze(-1),
            terminated=(torch.rand(lead) < 0.1) & mask,
            truncated=(torch.rand(lead) < 0.1) & mask,
            mask=mask,
            log_prob=-torch.rand(lead) * mask,
            env_reward=torch.randn(lead) * mask,
        )

    return JointTransition({g.name: group(g) for g in groups})


class ToyEnv:
    """Common ground of the toys: E copies of ``length``-step games of one group that always end together."""

    name = "toy"
    device = torch.device("cpu")

    def __init__(self, groups: tuple[AgentGroup, ...], num_envs: int, length: int) -> None:
        self.groups, self.num_envs, self.length = groups, num_envs, length
        (self.group,) = groups

    def observe(self) -> torch.Tensor:
        """[E, A, O]"""
        raise NotImplementedError

    def play(self, action: torch.Tensor) -> torch.Tensor:
        """Take actions [E, A, U], change the state, return rewards [E, A]."""
        raise NotImplementedError

    def begin(self, seeds: list[int]) -> None:
        """Set every copy's initial state from its seed."""

    def _show(self) -> None:
        self.obs = {self.group.name: self.observe()}
        self.mask = {self.group.name: torch.ones(self.num_envs, self.group.num_agents, dtype=torch.bool)}

    def reset(self, seeds: Iterator[int]) -> None:
        self.seeds, self.clock = seeds, 0
        self.episode_seed = torch.tensor([next(seeds) for _ in range(self.num_envs)])
        self.episode_return = torch.zeros(self.num_envs, self.group.num_agents)
        self.begin(self.episode_seed.tolist())
        self._show()

    def step(self, action: ByGroup) -> Step:
        name = self.group.name
        reward = self.play(action[name])
        self.clock += 1
        self.episode_return = self.episode_return + reward
        over = torch.full((self.num_envs,), self.clock == self.length)
        ended = over.unsqueeze(-1).expand_as(reward)
        step = Step(
            next_obs={name: self.observe()},
            reward={name: reward},
            terminated={name: ended & False},
            truncated={name: ended.clone()},
            done=over,
            episode_return={name: self.episode_return},
            episode_length=torch.full((self.num_envs,), self.clock),
            episode_seed=self.episode_seed,
        )
        if over[0]:
            self.reset(self.seeds)
        else:
            self._show()
        return step

    def compile(self) -> None:
        pass

    def close(self) -> None:
        pass


class Matching(ToyEnv):
    """A matrix game repeated: each of two agents must play its own random bit, and sees the other's too.

    An agent's reward is 1 where *both* are right, so the game is one of coordination.
    """

    def __init__(self, num_envs: int = 32, length: int = 10) -> None:
        super().__init__(groups_of(player=(2, 2, spaces.Discrete(2))), num_envs, length)

    def begin(self, seeds: list[int]) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.draw()

    def draw(self) -> None:
        self.bits = torch.tensor(np.array([rng.integers(2, size=2) for rng in self.rngs]))

    def observe(self) -> torch.Tensor:
        signs = self.bits.float() * 2 - 1
        return torch.stack([signs, signs.flip(-1)], 1)  # own bit first

    def play(self, action: torch.Tensor) -> torch.Tensor:
        right = (action.squeeze(-1) == self.bits).all(-1)
        self.draw()
        return right.float().unsqueeze(-1).expand(-1, 2)

    def expert_action(self) -> ByGroup:
        return {"player": self.bits.unsqueeze(-1)}


class Walk(ToyEnv):
    """One agent on a line, pushed left or right by a continuous action, rewarded for being near the origin.

    A negative ``slope`` makes actions push the other way.
    """

    def __init__(self, num_envs: int = 32, length: int = 10, slope: float = 1.0) -> None:
        super().__init__(groups_of(walker=(1, 1, spaces.Box(-1.0, 1.0, (1,)))), num_envs, length)
        self.slope = slope

    def begin(self, seeds: list[int]) -> None:
        self.x = torch.tensor([np.random.default_rng(seed).uniform(-2, 2) for seed in seeds], dtype=torch.float32)

    def observe(self) -> torch.Tensor:
        return self.x.reshape(-1, 1, 1).clone()

    def play(self, action: torch.Tensor) -> torch.Tensor:
        self.x = self.x + self.slope * action.reshape(-1).clamp(-1, 1)
        return -self.x.abs().unsqueeze(-1)

    def expert_action(self) -> ByGroup:
        return {"walker": (-self.slope * self.x).clamp(-1, 1).reshape(-1, 1, 1)}


class BrightPixel(ToyEnv):
    """Two agents each see a dim image of noise with one bright pixel, and must say in which half it lies."""

    def __init__(self, num_envs: int = 32, length: int = 5) -> None:
        image = spaces.Box(0, 255, (8, 10, 3), np.uint8)
        super().__init__((AgentGroup("eye", ("eye_0", "eye_1"), image, spaces.Discrete(2)),), num_envs, length)

    def begin(self, seeds):
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.draw()

    def draw(self):
        pixels = np.array([rng.integers(0, 128, (2, 8, 10, 3)) for rng in self.rngs], np.float32)
        row, column = np.array([rng.integers(0, (8, 10), (2, 2)) for rng in self.rngs]).transpose(2, 0, 1)  # [E, A]
        pixels[np.arange(self.num_envs)[:, None], np.arange(2), row, column] = 255
        self.images, self.right = torch.as_tensor(pixels).flatten(2), torch.as_tensor(column >= 5)

    def observe(self):
        return self.images

    def play(self, action):
        reward = (action.squeeze(-1) == self.right).float()
        self.draw()
        return reward

    def expert_action(self):
        return {"eye": self.right.long().unsqueeze(-1)}


class Landing(ToyEnv):
    """One agent drifts left or right over five places until it chooses to land, which ends its episode.

    The expert lands with probability 0.3 in each step, so its episodes have 3.3 steps in the mean. What it does in the
    air says nothing: who stays there forever looks almost as the expert does.
    """

    def __init__(self, num_envs: int = 32, length: int = 40) -> None:
        super().__init__(groups_of(lander=(1, 1, spaces.Discrete(3))), num_envs, length)

    def begin(self, seeds: list[int]) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.x = torch.tensor([float(rng.integers(-2, 3)) for rng in self.rngs])
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)

    def observe(self) -> torch.Tensor:
        return self.x.reshape(-1, 1, 1).clone()

    def step(self, action: ByGroup) -> Step:
        choice = action["lander"].reshape(-1)  # left, right, land
        self.x = (self.x + (choice == 1).float() - (choice == 0).float()).clamp(-2, 2)
        self.age, landed = self.age + 1, choice == 2
        over = landed | (self.age == self.length)
        step = Step(
            next_obs={"lander": self.observe()},
            reward={"lander": torch.ones(self.num_envs, 1)},
            terminated={"lander": landed.unsqueeze(-1)},
            truncated={"lander": (over & ~landed).unsqueeze(-1)},
            done=over,
            episode_return={"lander": self.age.float().unsqueeze(-1)},
            episode_length=self.age,
            episode_seed=self.episode_seed.clone(),
        )
        for copy in over.nonzero().flatten().tolist():
            self.episode_seed[copy] = next(self.seeds)
            self.rngs[copy] = np.random.default_rng(int(self.episode_seed[copy]))
            self.x[copy], self.age[copy] = float(self.rngs[copy].integers(-2, 3)), 0
        self._show()
        return step

    def expert_action(self) -> ByGroup:
        chosen = [rng.choice(3, p=(0.35, 0.35, 0.3)) for rng in self.rngs]
        return {"lander": torch.tensor(chosen).reshape(-1, 1, 1)}


class Expert:
    """Plays what the toy knows to be right."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        action = self.env.expert_action()
        return action, {name: torch.zeros(x.shape[:-1]) for name, x in action.items()}
