"""Common ground of the on-policy generators: decentralized actors, a centralized critic, advantages per agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from magail.advantage import gae, goes_on, normalize_per_agent
from magail.demonstrations import Demonstrations
from magail.generators.generator import PolicyAverage, RewardFn, refuse_memory, with_afterlife
from magail.networks import Critic, CriticOptions
from magail.policy import Policy, PolicyOptions
from magail.ranges import check_range
from magail.types import AgentGroup, ByGroup, JointTransition, absorbing_transition


@dataclass
class Samples:
    """What a gradient step looks at, a tensor ``[B, A, ...]`` per group.

    For recurrent networks a row of it is a sequence, ``[B, T, A, ...]``, and there are columns for what they remember.
    """

    obs: ByGroup  # normalised
    action: ByGroup
    log_prob: ByGroup
    mask: ByGroup
    advantage: ByGroup
    target: ByGroup  # of the critic, in its running units
    # the rest is empty unless there are recurrent networks
    going_on: ByGroup = field(default_factory=dict)  # [B, T, A] bool (`goes_on`)
    memory: ByGroup = field(default_factory=dict)  # [B, A, H] of the actors before the sequences
    critic_memory: ByGroup = field(default_factory=dict)  # [B, 1, H], named "critic"

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """Apply ``function`` to every tensor."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return Samples(**{key: {name: function(x) for name, x in column.items()} for key, column in columns.items()})

    def rows(self, index: Tensor) -> Samples:
        return self.map(lambda x: x.index_select(0, index))

    def part(self, start: int, stop: int) -> Samples:
        return self.map(lambda x: x[start:stop])

    def minibatches(self, size: int) -> Iterator[Samples]:
        """All rows once, in random order, ``size`` at a time; the last may be smaller."""
        shuffled = self.rows(torch.randperm(len(self), device=next(iter(self.mask.values())).device))
        return (shuffled.part(start, start + size) for start in range(0, len(self), size))

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.mask.values())))

    @property
    def steps_per_row(self) -> int:
        """T of sequences, else 1."""
        return next(iter(self.mask.values())).shape[1] if self.going_on else 1


class OnPolicy:
    """A generator that learns from each rollout once, by advantages of the policy that played it.

    The critic is centralized (Yu et al. 2022, arXiv 2103.01955); each agent has an advantage of its own, normalised
    over its own living steps. ``policy`` and ``critic`` are the arguments of `Policy` and `Critic`. Subclasses say in
    `_improve` how policy and critic change, and with ``takes_sequences`` that they can do so for recurrent ones. The
    memory of a recurrent critic goes on from one rollout to the next, as the episodes do.

    Raises:
        ValueError: an option out of range, or recurrent networks where they cannot be trained.
    """

    takes_sequences = False

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        critic: CriticOptions,
        gamma: float,
        gae_lambda: float,
        absorbing: bool,
        averaging: float,
    ) -> None:
        check_range({"generator.gae_lambda": gae_lambda}, 0, 1)
        check_range({"generator.gamma": gamma}, 0, 0.9999 if absorbing else 1)
        self.policy = Policy(groups, **policy)
        self.critic = Critic(groups, **critic)
        if not self.takes_sequences:
            refuse_memory(self.policy, self.critic)
        self.critic_memory: ByGroup = {}  # [E, 1, H] after the last rollout
        self.gamma, self.gae_lambda, self.absorbing = gamma, gae_lambda, absorbing
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
        samples, explained = self._samples(rollout, self._with_afterlife(rewards, rollout, reward_fn))
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

    def _with_afterlife(self, rewards: ByGroup, rollout: JointTransition, reward_fn: RewardFn) -> ByGroup:
        """``rewards``, and with ``absorbing`` what comes after a termination."""
        if not self.absorbing:
            return rewards
        after = reward_fn(absorbing_transition(rollout[:1, :1]))  # the same for all steps and copies
        return with_afterlife(rewards, after, rollout, self.gamma)

    def _improve(self, samples: Samples, progress: float, extra_loss: Callable[[], Tensor] | None) -> dict[str, float]:
        """Improve policy and critic on the samples of a whole rollout; the numbers to log."""
        raise NotImplementedError

    @torch.no_grad()
    def _samples(self, rollout: JointTransition, rewards: ByGroup) -> tuple[Samples, float]:
        """What to learn from, and the share of the returns' variance that the critic explained.

        Rows are the ``T * E`` steps, or for recurrent networks the ``E`` sequences.
        """
        obs, critic_memory = self.policy.normalize(rollout.field("obs")), self._critic_memory_before(rollout)
        value, next_value = self._values(rollout, obs, critic_memory)
        advantages, targets, unexplained, total = {}, {}, 0.0, 0.0
        for name, group in rollout.groups.items():
            flags = (group.terminated, group.truncated, group.mask)
            advantage = gae(rewards[name], value[name], next_value[name], *flags, self.gamma, self.gae_lambda)
            target, mask = (advantage + value[name]).flatten(0, 1), group.mask.flatten(0, 1)
            unexplained += advantage[group.mask].var().item()
            total += target[mask].var().item()
            self.critic.scales[name].update(target, mask)
            advantages[name] = normalize_per_agent(advantage.flatten(0, 1), mask).view_as(advantage)
            targets[name] = self.critic.scales[name](target).view_as(advantage)
        samples = Samples(
            obs=obs,
            action=rollout.field("action"),
            log_prob=rollout.field("log_prob"),
            mask=rollout.field("mask"),
            advantage=advantages,
            target=targets,
        )
        if self.policy.recurrent or self.critic.recurrent:
            samples.going_on = _going_on(rollout)
            samples = samples.map(lambda x: x.transpose(0, 1))
            samples.memory = rollout.memory or self.policy.no_memory(len(samples))
            samples.critic_memory = critic_memory
        else:
            samples = samples.map(lambda x: x.flatten(0, 1))
        return samples, 1.0 - unexplained / max(total, 1e-8)

    def _values(self, rollout: JointTransition, obs: ByGroup, critic_memory: ByGroup) -> tuple[ByGroup, ByGroup]:
        """Of the observations and of their successors; a recurrent critic then remembers the rollout."""
        # whoever ended here is not there in what follows, as in the next step's observations
        there = {name: group.next_obs * group.lives_on.unsqueeze(-1) for name, group in rollout.groups.items()}
        next_obs = self.policy.normalize(there)
        if not critic_memory:
            return self.critic.values(obs), self.critic.values(next_obs)
        obs, next_obs, going_on = (_transposed(x) for x in (obs, next_obs, _going_on(rollout)))
        value, next_value, after = self.critic.values_along(obs, next_obs, critic_memory["critic"], going_on)
        self.critic_memory = {"critic": after}
        return _transposed(value), _transposed(next_value)

    def _critic_memory_before(self, rollout: JointTransition) -> ByGroup:
        """What a recurrent critic remembers before the rollout; empty for others."""
        if self.critic.gru is None:
            return {}
        return self.critic_memory or {"critic": self.critic.gru.nothing(rollout.batch_shape[1])}

    def state_dict(self) -> dict[str, Any]:
        """Subclasses add their optimizers'."""
        return self.average.state_dict() | {"critic": self.critic.state_dict(), "critic_memory": self.critic_memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        device = self.policy.fixed.device
        self.critic_memory = {name: memory.to(device) for name, memory in state["critic_memory"].items()}


def falling(final_fraction: float, progress: float) -> float:
    """From 1 at the start of training linearly to ``final_fraction`` at its end."""
    return 1.0 + (final_fraction - 1.0) * progress


def _transposed(tensors: ByGroup) -> ByGroup:
    """``[T, E, ...]`` to ``[E, T, ...]`` and back."""
    return {name: x.transpose(0, 1) for name, x in tensors.items()}


def _going_on(rollout: JointTransition) -> ByGroup:
    """``[T, E, A]`` bool."""
    return {name: goes_on(group.terminated, group.truncated, group.mask) for name, group in rollout.groups.items()}
