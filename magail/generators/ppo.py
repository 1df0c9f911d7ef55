"""Proximal policy optimisation with decentralized actors and a centralized critic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from magail.advantage import gae, masked_mean, mean_info, normalize_per_agent
from magail.networks import Critic
from magail.policy import Policy
from magail.ranges import check_range
from magail.types import AgentGroup, ByGroup, JointTransition

RewardFn = Callable[[JointTransition], ByGroup]


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
        )
        self.epochs, self.minibatch_size = epochs, minibatch_size
        self.clip_range, self.target_kl = clip_range, target_kl
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.entropy_coefficient, self.max_grad_norm = entropy_coefficient, max_grad_norm

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
        advantages, returns, explained = self._advantages(rollout, rewards)
        batch = rollout.flatten()
        size = batch.batch_shape[0]
        infos: list[dict[str, float]] = []
        for _ in range(self.epochs):
            epoch_start = len(infos)
            for index in torch.randperm(size).split(self.minibatch_size):
                advantage = {name: x[index] for name, x in advantages.items()}
                target = {name: x[index] for name, x in returns.items()}
                infos.append(self._step(batch[index], advantage, target, extra_loss))
            kl = sum(info["approx_kl"] for info in infos[epoch_start:]) / (len(infos) - epoch_start)
            if self.target_kl is not None and kl > self.target_kl:
                break
        self.policy.observe(rollout)  # after the steps: the log-probabilities above belong to the old statistics
        self._update_average()
        info = mean_info(infos)
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
    def _advantages(self, rollout: JointTransition, rewards: ByGroup) -> tuple[ByGroup, ByGroup, float]:
        """Normalised advantages and returns, ``[T * E, A]``, and the share of the returns' variance explained."""
        value = self.critic.values(self.policy.normalize(rollout.field("obs")))
        next_value = self.critic.values(self.policy.normalize(rollout.field("next_obs")))
        advantages, returns, unexplained, total = {}, {}, 0.0, 0.0
        for name, group in rollout.groups.items():
            flags = (group.terminated, group.truncated, group.mask)
            advantage = gae(rewards[name], value[name], next_value[name], *flags, self.gamma, self.gae_lambda)
            target, mask = (advantage + value[name]).flatten(0, 1), group.mask.flatten(0, 1)
            unexplained += advantage[group.mask].var().item()
            total += target[mask].var().item()
            self.critic.scales[name].update(target, mask)
            advantages[name] = normalize_per_agent(advantage.flatten(0, 1), mask)
            returns[name] = self.critic.scales[name](target)
        return advantages, returns, 1.0 - unexplained / max(total, 1e-8)

    def _step(
        self,
        batch: JointTransition,
        advantages: ByGroup,
        returns: ByGroup,
        extra_loss: Callable[[], Tensor] | None,
    ) -> dict[str, float]:
        obs = self.policy.normalize(batch.field("obs"))
        distributions, values = self.policy.distributions_of_normalized(obs), self.critic(obs)
        terms: dict[str, list[Tensor]] = {key: [] for key in ("policy", "value", "entropy", "kl", "clip")}
        for name, group in batch.groups.items():
            log_ratio = (distributions[name].log_prob(group.action) - group.log_prob) * group.mask
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
            surrogate = torch.minimum(ratio * advantages[name], clipped * advantages[name])
            terms["policy"].append(-masked_mean(surrogate, group.mask))
            terms["value"].append(0.5 * masked_mean((values[name] - returns[name]).square(), group.mask))
            terms["entropy"].append(masked_mean(distributions[name].entropy(), group.mask))
            # the low-variance estimator of KL(old, new): http://joschu.net/blog/kl-approx.html
            terms["kl"].append(masked_mean(ratio - 1 - log_ratio, group.mask).detach())
            terms["clip"].append(masked_mean(((ratio - 1).abs() > self.clip_range).float(), group.mask))
        mean = {key: torch.stack(values).mean() for key, values in terms.items()}
        loss = mean["policy"] + mean["value"] - self.entropy_coefficient * mean["entropy"]
        if extra_loss is not None:
            loss = loss + extra_loss()
        self.optimizer.zero_grad()
        loss.backward()
        for module in (self.policy, self.critic):
            nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return {
            "policy_loss": mean["policy"].item(),
            "value_loss": mean["value"].item(),
            "entropy": mean["entropy"].item(),
            "approx_kl": mean["kl"].item(),
            "clip_fraction": mean["clip"].item(),
        }

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
