"""Proximal policy optimisation with decentralized actors and a centralized critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from magail.advantage import masked_mean
from magail.generators.on_policy import OnPolicy, Samples, falling
from magail.networks import CriticOptions
from magail.optim.options import load_state
from magail.policy import PolicyOptions
from magail.ranges import check_range
from magail.types import AgentGroup

NUMBERS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


class PPO(OnPolicy):
    """Multi-agent PPO (Schulman et al. 2017, arXiv 1707.06347).

    The clipped surrogate, entropies and value errors are means over all living agents. Minibatches are random steps, or
    with recurrent networks whole sequences, those of random copies of the environment. conf/generator/ppo.yaml explains
    the options.

    Raises:
        ValueError: an option out of range.
    """

    takes_sequences = True

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        critic: CriticOptions,
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
        absorbing: bool,
        averaging: float,
    ) -> None:
        check_range({"generator.epochs": epochs, "generator.minibatch_size": minibatch_size}, 1)
        check_range({"generator.final_learning_rate_fraction": final_learning_rate_fraction}, 0, 1)
        check_range({"generator.learning_rate": learning_rate, "generator.clip_range": clip_range}, 0)
        check_range(
            {"generator.critic_learning_rate": critic_learning_rate, "generator.max_grad_norm": max_grad_norm}, 0
        )
        check_range({"generator.entropy_coefficient": entropy_coefficient}, 0)
        super().__init__(
            groups,
            policy=policy,
            critic=critic,
            gamma=gamma,
            gae_lambda=gae_lambda,
            absorbing=absorbing,
            averaging=averaging,
        )
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
        self.entropy_coefficient, self.max_grad_norm = entropy_coefficient, max_grad_norm

    def compile(self) -> None:
        """Let ``torch.compile`` fuse the loss and its gradient, but not the loops of recurrent networks."""
        if self.policy.recurrent or self.critic.recurrent:
            return
        self._loss = torch.compile(self._loss, dynamic=False)  # type: ignore[method-assign]

    def _improve(self, samples: Samples, progress: float, extra_loss: Callable[[], Tensor] | None) -> dict[str, float]:
        self._set_learning_rates(progress)
        rows = max(self.minibatch_size // samples.steps_per_row, 1)
        numbers: list[Tensor] = []
        for _ in range(self.epochs):
            epoch = [self._step(minibatch, extra_loss) for minibatch in samples.minibatches(rows)]
            numbers += epoch
            if self.target_kl is not None and torch.stack(epoch).mean(0)[NUMBERS.index("approx_kl")] > self.target_kl:
                break
        return dict(zip(NUMBERS, torch.stack(numbers).mean(0).tolist(), strict=True))

    def _set_learning_rates(self, progress: float) -> None:
        fraction = falling(self.final_learning_rate_fraction, progress)
        for group, learning_rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = learning_rate * fraction

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
        distributions = self.policy.distributions_of_normalized(samples.obs, samples.memory, samples.going_on)
        values = self.critic(samples.obs, samples.critic_memory.get("critic"), samples.going_on)
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
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        load_state(self.optimizer, state["optimizer"])
