"""MACK: multi-agent actor-critic with Kronecker-factored natural gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from magail.advantage import masked_mean
from magail.distributions import GaussianHead
from magail.generators.on_policy import OnPolicy, Samples, falling
from magail.networks import Actor, CriticOptions, StackedLinear
from magail.optim.kfac import KFAC
from magail.policy import PolicyOptions
from magail.ranges import check_positive, check_range
from magail.types import AgentGroup


class MACK(OnPolicy):
    """The generator of the MAGAIL paper (Song et al. 2018, arXiv 1807.09936, section 4.3).

    It is ACKTR (Wu et al. 2017, arXiv 1708.05144) for several agents: an actor-critic that follows natural gradients by
    `KFAC`, each agent in a trust region of its own (all in one with ``share_parameters``). So does the centralized
    critic, as the mean of a Gaussian of unit variance around the returns in their running units.

    The objective is that of PPO, unclipped; its gradient at the policy that played is that of the advantage
    actor-critic. conf/generator/mack.yaml explains the options.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        critic: CriticOptions,
        learning_rate: float,
        critic_learning_rate: float,
        clip_kl: float,
        critic_clip_kl: float,
        final_learning_rate_fraction: float,
        steps: int,
        critic_steps: int,
        momentum: float,
        damping: float,
        statistics_decay: float,
        inverse_every: int,
        cold_steps: int,
        gamma: float,
        gae_lambda: float,
        entropy_coefficient: float,
        absorbing: bool,
        averaging: float,
    ) -> None:
        check_range({"generator.learning_rate": learning_rate, "generator.clip_kl": clip_kl}, 0)
        check_range({"generator.critic_learning_rate": critic_learning_rate}, 0)
        check_range({"generator.critic_clip_kl": critic_clip_kl, "generator.cold_steps": cold_steps}, 0)
        check_range({"generator.final_learning_rate_fraction": final_learning_rate_fraction}, 0, 1)
        check_range({"generator.steps": steps, "generator.critic_steps": critic_steps}, 1)
        check_range({"generator.inverse_every": inverse_every}, 1)
        check_range({"generator.momentum": momentum}, 0, 0.9999)
        check_positive({"generator.damping": damping})
        check_range({"generator.statistics_decay": statistics_decay}, 0, 1)
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
        self.steps, self.critic_steps, self.entropy_coefficient = steps, critic_steps, entropy_coefficient
        self.final_learning_rate_fraction = final_learning_rate_fraction
        options: dict[str, Any] = {
            "momentum": momentum,
            "damping": damping,
            "statistics_decay": statistics_decay,
            "inverse_every": inverse_every,
            "cold_steps": cold_steps,
        }
        self.actor_optimizers = {
            name: KFAC(actor, learning_rate=learning_rate, clip_kl=clip_kl, diagonal=_log_std_fisher(actor), **options)
            for name, actor in self.policy.actors.items()
        }
        self.critic_optimizer = KFAC(
            self.critic, learning_rate=critic_learning_rate, clip_kl=critic_clip_kl, diagonal={}, **options
        )
        self.learning_rate, self.clip_kl = learning_rate, clip_kl
        self.critic_learning_rate, self.critic_clip_kl = critic_learning_rate, critic_clip_kl

    def compile(self) -> None:
        """Does nothing: an update is a few passes over the rollout, watched by hooks."""

    def _improve(self, samples: Samples, progress: float, extra_loss: Callable[[], Tensor] | None) -> dict[str, float]:
        self._set_step_sizes(progress)
        losses = [self._improve_actors(samples, extra_loss) for _ in range(self.steps)]
        policy_loss, entropy = torch.stack(losses).mean(0).tolist()
        value_loss = torch.stack([self._improve_critic(samples) for _ in range(self.critic_steps)]).mean().item()
        numbers = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return numbers | {"approx_kl": self._approx_kl(samples)}

    def _set_step_sizes(self, progress: float) -> None:
        """A step's length falls linearly, whether the learning rate limits it or the trust region, a squared length."""
        fraction = falling(self.final_learning_rate_fraction, progress)
        for optimizer in self.actor_optimizers.values():
            # the loss is a mean over groups and their agents, and the optimizer's a sum over networks
            networks = len(self.actor_optimizers) * optimizer.nets
            optimizer.learning_rate = self.learning_rate * networks * fraction
            optimizer.clip_kl = self.clip_kl * fraction**2
        self.critic_optimizer.learning_rate = self.critic_learning_rate * fraction
        self.critic_optimizer.clip_kl = self.critic_clip_kl * fraction**2

    def _improve_actors(self, samples: Samples, extra_loss: Callable[[], Tensor] | None) -> Tensor:
        """One natural-gradient step of the actors; policy loss and entropy before it."""
        policy_loss, entropy = self._policy_loss(samples)
        loss = policy_loss - self.entropy_coefficient * entropy
        if extra_loss is not None:
            loss = loss + extra_loss()
        self.policy.zero_grad()
        loss.backward()
        for optimizer in self.actor_optimizers.values():
            optimizer.step()
        return torch.stack([policy_loss, entropy]).detach()

    def _policy_loss(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Policy loss and entropy, means over groups; on the same passes, the actors' statistics."""
        losses, entropies = [], []
        for name, optimizer in self.actor_optimizers.items():
            mask = samples.mask[name]
            with optimizer.watching():
                distribution = self.policy.actors[name](samples.obs[name])
            with torch.no_grad():
                drawn = distribution.sample()
            optimizer.update_statistics(distribution.log_prob(drawn), mask)
            log_ratio = (distribution.log_prob(samples.action[name]) - samples.log_prob[name]) * mask
            losses.append(-masked_mean(log_ratio.exp() * samples.advantage[name], mask))
            with torch.set_grad_enabled(self.entropy_coefficient > 0):
                entropies.append(masked_mean(distribution.entropy(), mask))
        return torch.stack(losses).mean(), torch.stack(entropies).mean()

    def _improve_critic(self, samples: Samples) -> Tensor:
        """One step of the critic; the loss before it, mean over living agents."""
        with self.critic_optimizer.watching():
            values = self.critic(samples.obs)
        value = torch.cat(list(values.values()), -1)  # [B, all agents]
        target, mask = (torch.cat([x[name] for name in values], -1) for x in (samples.target, samples.mask))
        alive = mask.any(-1, keepdim=True)
        # what is drawn is the value plus noise, so noise is the log-likelihood's gradient
        log_likelihood = (value * torch.randn_like(value) * mask).sum(-1, keepdim=True)
        self.critic_optimizer.update_statistics(log_likelihood, alive)
        squares = 0.5 * (value - target).square() * mask
        self.critic.zero_grad()
        masked_mean(squares.sum(-1, keepdim=True), alive).backward()
        self.critic_optimizer.step()
        return masked_mean(squares, mask).detach()

    @torch.no_grad()
    def _approx_kl(self, samples: Samples) -> float:
        """KL(policy that played || policy now), mean over groups and living agents, estimated as PPO does."""
        kls = []
        for name, distribution in self.policy.distributions_of_normalized(samples.obs).items():
            mask = samples.mask[name]
            log_ratio = (distribution.log_prob(samples.action[name]) - samples.log_prob[name]) * mask
            kls.append(masked_mean(log_ratio.exp() - 1 - log_ratio, mask))
        return torch.stack(kls).mean().item()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "actor_optimizers": {name: optimizer.state_dict() for name, optimizer in self.actor_optimizers.items()},
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, optimizer in self.actor_optimizers.items():
            optimizer.load_state_dict(state["actor_optimizers"][name])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])


def _log_std_fisher(actor: Actor) -> dict[nn.Parameter, float]:
    """The Fisher information of a Gaussian's spreads: 2 for each log, per sample of that agent.

    Where agents share a network, which has samples of all, each agent's spread is that of only its own share of them.
    """
    if not isinstance(actor.head, GaussianHead):
        return {}
    layer = next(m for m in actor.mlp.layers if isinstance(m, StackedLinear))
    return {actor.head.log_std: 2.0 * len(layer.weight) / layer.num_nets}
