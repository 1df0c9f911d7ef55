"""Proximal policy optimisation with decentralized actors and a centralized critic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from magail.advantage import gae, masked_mean, normalize_per_agent
from magail.networks import Critic
from magail.policy import Policy
from magail.ranges import check_range
from magail.types import AgentGroup, ByGroup, JointTransition

RewardFn = Callable[[JointTransition], ByGroup]
NUMBERS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


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


class PPO:
    """Multi-agent PPO (Schulman et al. 2017, arXiv 1707.06347), with a centralized critic (Yu et al. 2022, 2103.01955).

    Each agent has an advantage of its own, normalised over its own living steps; the clipped surrogate, entropies and
    value errors are means over all living agents. ``policy`` and ``critic`` are the arguments of `Policy` and `Critic`;
    conf/generator/ppo.yaml explains the others.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: dict[str, Any],
        critic: dict[str, Any],
        learning_rate: float,
        critic_learning_rate: float,
        final_learning_rate_fraction: float,
        epochs: int,
        minibatch_size: int,
        clip_range: float,
        target_kl: float | None,
        gamma: float,
        gae_lambda: float,
        entropy_coefficient: float,
        max_grad_norm: float,
        averaging: float,
    ) -> None:
        check_range({"generator.epochs": epochs, "generator.minibatch_size": minibatch_size}, 1)
        check_range({"generator.gamma": gamma, "generator.gae_lambda": gae_lambda}, 0, 1)
        check_range({"generator.final_learning_rate_fraction": final_learning_rate_fraction}, 0, 1)
        check_range({"generator.averaging": averaging}, 0, 0.9999)
        check_range({"generator.learning_rate": learning_rate, "generator.clip_range": clip_range}, 0)
        check_range(
            {"generator.critic_learning_rate": critic_learning_rate, "generator.max_grad_norm": max_grad_norm}, 0
        )
        check_range({"generator.entropy_coefficient": entropy_coefficient}, 0)
        self.policy = Policy(groups, **policy)
        self._average, self._updates, self.averaging = copy.deepcopy(self.policy), 0, averaging
        self.critic = Critic(groups, **critic)
        self.learning_rates = (learning_rate, critic_learning_rate)
        self.final_learning_rate_fraction = final_learning_rate_fraction
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.policy.parameters()), "lr": learning_rate},
                {"params": list(self.critic.parameters()), "lr": critic_learning_rate},
            ],
            eps=1e-5,
            fused=True,
        )
        self.epochs, self.minibatch_size = epochs, minibatch_size
        self.clip_range, self.target_kl = clip_range, target_kl
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.entropy_coefficient, self.max_grad_norm = entropy_coefficient, max_grad_norm

    def compile(self) -> None:
        """Let ``torch.compile`` fuse the loss and its gradient."""
        self._loss = torch.compile(self._loss, dynamic=False)  # type: ignore[method-assign]

    def update(
        self,
        rollout: JointTransition,
        reward_fn: RewardFn,
        progress: float = 0.0,
        extra_loss: Callable[[], Tensor] | None = None,
    ) -> dict[str, float]:
        """Improve the policy on a rollout ``[T, E]`` under the rewards ``reward_fn(rollout) [T, E, A]``.

        ``progress`` in [0, 1] is how much of training is over; ``extra_loss`` (the behavioural cloning term) is added
        to every minibatch's loss.
        """
        self._set_learning_rates(progress)
        rewards = reward_fn(rollout)
        samples, explained = self._samples(rollout, rewards)
        size, device = rollout.batch_shape.numel(), self.policy.fixed.device
        numbers: list[Tensor] = []
        for _ in range(self.epochs):
            shuffled = samples.rows(torch.randperm(size, device=device))
            epoch = [
                self._step(shuffled.part(start, start + self.minibatch_size), extra_loss)
                for start in range(0, size, self.minibatch_size)
            ]
            numbers += epoch
            if self.target_kl is not None and torch.stack(epoch).mean(0)[NUMBERS.index("approx_kl")] > self.target_kl:
                break
        self.policy.observe(rollout)  # after the steps: the log-probabilities above belong to the old statistics
        self._update_average()
        info = dict(zip(NUMBERS, torch.stack(numbers).mean(0).tolist(), strict=True))
        masks = rollout.field("mask")
        flat_rewards = torch.cat([rewards[name][masks[name]] for name in masks])
        info |= {
            "explained_variance": explained,
            "reward_mean": flat_rewards.mean().item(),
            "reward_std": flat_rewards.std().item(),
        }
        return {f"generator/{key}": value for key, value in info.items()}

    @property
    def averaged(self) -> Policy:
        """The policy to judge and keep: the exponential average of the policies after each update.

        An adversary's reward is noisy and moves, so a single iterate wanders about; averages of the iterates are the
        better policies (Yazici et al. 2019, arXiv 1806.04498, for GANs). Before any update it is the policy itself.
        """
        return self._average if self._updates else self.policy

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.averaging, self._updates / (self._updates + 1))  # a plain mean until there are enough
        state = self.policy.state_dict()
        for name, average in self._average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(state[name], 1.0 - keep)
            else:
                average.copy_(state[name])
        self._updates += 1

    def _set_learning_rates(self, progress: float) -> None:
        fraction = 1.0 + (self.final_learning_rate_fraction - 1.0) * progress
        for group, learning_rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = learning_rate * fraction

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

    def _step(self, samples: Samples, extra_loss: Callable[[], Tensor] | None) -> Tensor:
        """Descend on one minibatch; its `NUMBERS`."""
        loss, numbers = self._loss(samples)
        if extra_loss is not None:
            loss = loss + extra_loss()
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
        self.optimizer.step()
        return numbers

    def _loss(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The loss of policy and critic, and its `NUMBERS`."""
        distributions = self.policy.distributions_of_normalized(samples.obs)
        values = self.critic(samples.obs)
        losses, numbers = [], []
        for name, mask in samples.mask.items():
            advantage = samples.advantage[name]
            log_ratio = (distributions[name].log_prob(samples.action[name]) - samples.log_prob[name]) * mask
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
            policy_loss = -masked_mean(torch.minimum(ratio * advantage, clipped * advantage), mask)
            value_loss = 0.5 * masked_mean((values[name] - samples.target[name]).square(), mask)
            with torch.set_grad_enabled(self.entropy_coefficient > 0):
                entropy = masked_mean(distributions[name].entropy(), mask)
            # the low-variance estimator of KL(old, new): http://joschu.net/blog/kl-approx.html
            approx_kl = masked_mean((ratio - 1 - log_ratio).detach(), mask)
            clip_fraction = masked_mean((ratio.detach() != clipped.detach()).float(), mask)
            losses.append(policy_loss + value_loss - self.entropy_coefficient * entropy)
            numbers.append(torch.stack([policy_loss, value_loss, entropy, approx_kl, clip_fraction]).detach())
        return torch.stack(losses).mean(), torch.stack(numbers).mean(0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.averaged.state_dict(),
            "acting_policy": self.policy.state_dict(),
            "updates": self._updates,
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "description": self.policy.description(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["acting_policy"])
        self._average.load_state_dict(state["policy"])
        self._updates = state["updates"]
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
