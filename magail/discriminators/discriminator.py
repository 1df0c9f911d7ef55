"""The adversary: learns to tell demonstrations from rollouts, and rewards what it takes for demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from magail.advantage import masked_mean, mean_info
from magail.demonstrations import Demonstrations
from magail.discriminators.losses import gradient_penalty
from magail.discriminators.priors import Prior
from magail.policy import Policy
from magail.ranges import check_range
from magail.types import AgentGroup, ByGroup, JointTransition


class Discriminator:
    """Per-agent discriminators under one prior.

    ``prior(groups=...)`` builds the networks, ``loss(logits, target)`` and ``reward(logits)`` are elementwise. Each
    update takes ``steps`` Adam steps on ``batch_size`` transitions of either side. ``held_out`` demonstrations are
    never trained on: their accuracy shows whether the discriminator knows the expert or has the demonstrations by
    heart.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        demonstrations: Demonstrations,
        held_out: Demonstrations | None,
        *,
        prior: Callable[..., Prior],
        loss: Callable[[Tensor, float], Tensor],
        reward: Callable[[Tensor], Tensor],
        learning_rate: float,
        weight_decay: float,
        steps: int,
        batch_size: int,
        gradient_penalty: float,
        gradient_penalty_center: float,
    ) -> None:
        check_range({"discriminator.steps": steps, "discriminator.batch_size": batch_size}, 1)
        check_range({"discriminator.learning_rate": learning_rate, "discriminator.weight_decay": weight_decay}, 0)
        check_range({"discriminator.gradient_penalty": gradient_penalty}, 0)
        self.prior = prior(groups=groups)
        self.prior.fit_normalizers(demonstrations.transitions)
        self.held_out = held_out
        self.loss_fn, self.reward_fn = loss, reward
        self.steps, self.batch_size = steps, batch_size
        self.penalty, self.penalty_center = gradient_penalty, gradient_penalty_center
        self.optimizer = torch.optim.AdamW(
            self.prior.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )

    def update(self, rollout: JointTransition, demonstrations: Demonstrations, policy: Policy) -> dict[str, float]:
        """Train on a rollout ``[T, E]`` and demonstrations; loss and accuracies are means over the steps."""
        generated = rollout.flatten()
        infos = []
        for _ in range(self.steps):
            sample = generated.sample(self.batch_size)
            infos.append(self._step(sample, demonstrations.sample(self.batch_size), policy))
        info = mean_info(infos)
        if self.held_out is not None:
            info["held_out_accuracy"] = self._accuracy(self.held_out.transitions)
        return {f"discriminator/{key}": value for key, value in info.items()}

    @torch.no_grad()
    def reward(self, rollout: JointTransition) -> ByGroup:
        """Rewards ``[T, E, A]`` a group of a rollout ``[T, E]``, for the very actions taken in its observations."""
        logits = self.prior(rollout.flatten())
        return {
            name: self.prior.sign(name) * self.reward_fn(x).unflatten(0, rollout.batch_shape)
            for name, x in logits.items()
        }

    def _step(self, generated: JointTransition, expert: JointTransition, policy: Policy) -> dict[str, Tensor]:
        labelled = self.prior.labelled(generated, expert, policy)
        features = [self.prior.features(batch) for batch, _ in labelled]
        logits = [self.prior.by_agent(self.prior.raw_logits(x)) for x in features]
        losses = [
            masked_mean(self.loss_fn(x[name], target), group.mask)
            for x, (batch, target) in zip(logits, labelled, strict=True)
            for name, group in batch.groups.items()
        ]
        loss = torch.stack(losses).mean()
        info = {
            "loss": loss.detach(),
            "expert_accuracy": _share(logits[0], labelled[0][0], lambda x: x > 0),
            "generator_accuracy": _share(logits[-1], labelled[-1][0], lambda x: x < 0),
        }
        if self.penalty > 0.0:
            penalty = gradient_penalty(self.prior, features[0], features[-1], self.penalty_center)
            loss = loss + self.penalty * penalty
            info["gradient_penalty"] = penalty.detach()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return info

    @torch.no_grad()
    def _accuracy(self, expert: JointTransition) -> float:
        return _share(self.prior(expert), expert, lambda x: x > 0).item()

    def state_dict(self) -> dict[str, Any]:
        return {"prior": self.prior.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prior.load_state_dict(state["prior"])
        self.optimizer.load_state_dict(state["optimizer"])


def _share(logits: ByGroup, batch: JointTransition, right: Callable[[Tensor], Tensor]) -> Tensor:
    """Share of the living agents' logits that are ``right``, mean over groups."""
    shares = [masked_mean(right(logits[name]).float(), group.mask) for name, group in batch.groups.items()]
    return torch.stack(shares).mean()


class EnvironmentReward:
    """Stands in for the discriminator where training is on the environment's own reward (``algorithm=rl``)."""

    def __init__(self, groups: Sequence[AgentGroup], demonstrations: None, held_out: None) -> None:
        pass

    def update(self, rollout: JointTransition, demonstrations: None, policy: Policy) -> dict[str, float]:
        return {}

    def reward(self, rollout: JointTransition) -> ByGroup:
        return rollout.field("env_reward")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class NoDiscriminator(EnvironmentReward):
    """For generators that learn from demonstrations by themselves: no reward at all."""

    def reward(self, rollout: JointTransition) -> ByGroup:
        return {name: torch.zeros_like(reward) for name, reward in rollout.field("env_reward").items()}
