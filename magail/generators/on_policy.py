"""Common ground of the on-policy generators: decentralized actors, a centralized critic, advantages per agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from magail.advantage import gae, normalize_per_agent
from magail.demonstrations import Demonstrations
from magail.generators.generator import PolicyAverage, RewardFn
from magail.networks import Critic
from magail.policy import Policy
from magail.ranges import check_range
from magail.types import AgentGroup, ByGroup, JointTransition


@dataclass
class Samples:
    """What a gradient step looks at, a tensor ``[B, A, ...]`` per group."""

    obs: ByGroup  # normalised
    action: ByGroup
    log_prob: ByGroup
    mask: ByGroup
    advantage: ByGroup
    target: ByGroup  # of the critic, in its running units

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """Apply ``function`` to every tensor."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return Samples(**{key: {name: function(x) for name, x in column.items()} for key, column in columns.items()})

    def rows(self, index: Tensor) -> Samples:
        return self.map(lambda x: x.index_select(0, index))

    def part(self, start: int, stop: int) -> Samples:
        return self.map(lambda x: x[start:stop])

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.mask.values())))


class OnPolicy:
    """A generator that learns from each rollout once, by advantages of the policy that played it.

    The critic is centralized (Yu et al. 2022, arXiv 2103.01955); each agent has an advantage of its own, normalised
    over its own living steps. ``policy`` and ``critic`` are the arguments of `Policy` and `Critic`. Subclasses say in
    `_improve` how policy and critic change.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: dict[str, Any],
        critic: dict[str, Any],
        gamma: float,
        gae_lambda: float,
        averaging: float,
    ) -> None:
        check_range({"generator.gamma": gamma, "generator.gae_lambda": gae_lambda}, 0, 1)
        check_range({"generator.averaging": averaging}, 0, 0.9999)
        self.policy = Policy(groups, **policy)
        self.critic = Critic(groups, **critic)
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.average = PolicyAverage(self.policy, averaging)

    @property
    def averaged(self) -> Policy:
        return self.average.policy

    def update(
        self,
        rollout: JointTransition,
        reward_fn: RewardFn,
        progress: float = 0.0,
        extra_loss: Callable[[], Tensor] | None = None,
        demonstrations: Demonstrations | None = None,
    ) -> dict[str, float]:
        rewards = reward_fn(rollout)
        samples, explained = self._samples(rollout, rewards)
        info = self._improve(samples, progress, extra_loss)
        self.policy.observe(rollout)  # after the steps: the rollout's log-probabilities belong to the old statistics
        self.average.update()
        masks = rollout.field("mask")
        flat_rewards = torch.cat([rewards[name][masks[name]] for name in masks])
        info |= {
            "explained_variance": explained,
            "reward_mean": flat_rewards.mean().item(),
            "reward_std": flat_rewards.std().item(),
        }
        return {f"generator/{key}": value for key, value in info.items()}

    def _improve(self, samples: Samples, progress: float, extra_loss: Callable[[], Tensor] | None) -> dict[str, float]:
        """Improve policy and critic on the samples of a whole rollout; the numbers to log."""
        raise NotImplementedError

    @torch.no_grad()
    def _samples(self, rollout: JointTransition, rewards: ByGroup) -> tuple[Samples, float]:
        """What to learn from, ``[T * E]``, and the share of the returns' variance that the critic explained."""
        obs = self.policy.normalize(rollout.field("obs"))
        value = self.critic.values(obs)
        next_value = self.critic.values(self.policy.normalize(rollout.field("next_obs")))
        advantages, targets, unexplained, total = {}, {}, 0.0, 0.0
        for name, group in rollout.groups.items():
            flags = (group.terminated, group.truncated, group.mask)
            advantage = gae(rewards[name], value[name], next_value[name], *flags, self.gamma, self.gae_lambda)
            target, mask = (advantage + value[name]).flatten(0, 1), group.mask.flatten(0, 1)
            unexplained += advantage[group.mask].var().item()
            total += target[mask].var().item()
            self.critic.scales[name].update(target, mask)
            advantages[name] = normalize_per_agent(advantage.flatten(0, 1), mask)
            targets[name] = self.critic.scales[name](target)
        batch = rollout.flatten()
        samples = Samples(
            obs={name: x.flatten(0, 1) for name, x in obs.items()},
            action=batch.field("action"),
            log_prob=batch.field("log_prob"),
            mask=batch.field("mask"),
            advantage=advantages,
            target=targets,
        )
        return samples, 1.0 - unexplained / max(total, 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """Subclasses add their optimizers'."""
        return self.average.state_dict() | {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
