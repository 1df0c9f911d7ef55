"""The adversary: learns to tell demonstrations from rollouts, and rewards what it takes for demonstrations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magail.advantage import correlation, masked_mean, mean_info
from magail.demonstrations import Demonstrations
from magail.discriminators.learned import REWARD_FILE, FixedReward, save_reward
from magail.discriminators.priors import Prior, ZeroSum
from magail.discriminators.regularizers import POINTS, Examples, gradient_penalty, joined, mixed, smoothed, with_noise
from magail.discriminators.shaped import Shaped
from magail.networks import RunningNormalizer, module_dict
from magail.optim.options import load_state
from magail.policy import Policy
from magail.ranges import check_positive, check_range
from magail.types import (
    AgentGroup,
    ByGroup,
    JointTransition,
    Transition,
    absorbing_transition,
    concatenate,
    share_of_ends,
)

SCALE_HORIZON = 100_000  # transitions after which old rewards have faded from their running scale


class Discriminator:
    """Per-agent discriminators under one prior.

    ``prior(groups=...)`` builds the networks, ``loss(logits, target)`` and ``reward(logits)`` are elementwise. Each
    update takes ``steps`` Adam steps on ``batch_size`` transitions of either side. ``held_out`` demonstrations are
    never trained on: their accuracy shows whether the discriminator knows the expert or has the demonstrations by
    heart. conf/discriminator/base.yaml explains the options.

    With ``airl_discount`` the logits are AIRL's, ``f - log pi(a|s)`` with f as in `Shaped`.

    Raises:
        ValueError: an option out of range, or options that exclude each other.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        demonstrations: Demonstrations,
        held_out: Demonstrations | None,
        *,
        prior: Callable[..., Prior],
        airl_discount: float | None,
        loss: Callable[[Tensor, Tensor], Tensor],
        reward: Callable[[Tensor], Tensor],
        reward_clip: float | None,
        reward_scaling: bool,
        learning_rate: float,
        weight_decay: float,
        steps: int,
        batch_size: int,
        gradient_penalty: float,
        gradient_penalty_center: float,
        gradient_penalty_points: str,
        input_noise: float,
        label_smoothing: float,
        mixup: float,
        replay: int,
        pause_above: float,
        absorbing: bool,
        absorbing_discount: float,
    ) -> None:
        check_range({"discriminator.steps": steps, "discriminator.batch_size": batch_size}, 1)
        check_range({"discriminator.learning_rate": learning_rate, "discriminator.weight_decay": weight_decay}, 0)
        check_range({"discriminator.gradient_penalty": gradient_penalty, "discriminator.mixup": mixup}, 0)
        check_range({"discriminator.input_noise": input_noise, "discriminator.replay": replay}, 0)
        check_range({"discriminator.label_smoothing": label_smoothing}, 0, 0.5)
        check_range({"discriminator.pause_above": pause_above}, 0.5, 1)
        if absorbing:
            check_range({"discriminator.absorbing_discount": absorbing_discount}, 0, 0.9999)
        if gradient_penalty_points not in POINTS:
            known = " or ".join(POINTS)
            raise ValueError(f"discriminator.gradient_penalty_points={gradient_penalty_points} must be {known}")
        if reward_clip is not None:
            check_positive({"discriminator.reward_clip": reward_clip})
        self.airl = airl_discount is not None
        self.prior: Prior | Shaped
        if airl_discount is None:
            self.prior = prior(groups=groups)
        else:
            check_range({"discriminator.airl_discount": airl_discount}, 0, 1)
            self.prior = Shaped(groups, prior, airl_discount)
        self.mixup = mixup
        if mixup and (self.airl or isinstance(self.prior, ZeroSum)):
            raise ValueError(
                "discriminator.mixup mixes an expert's example with a generated one: the zero-sum prior has no such "
                "pairs, and a mixture has no probability under the policy, which AIRL needs; set it to 0"
            )
        self.prior.fit_normalizers(demonstrations.transitions)
        self.prior.eval()
        self.held_out = held_out
        self.loss_fn, self.reward_fn, self.reward_clip = loss, reward, reward_clip
        self.scales = (
            module_dict({g.name: RunningNormalizer((g.num_agents,), SCALE_HORIZON) for g in groups})
            if reward_scaling
            else {}
        )
        self.steps, self.batch_size = steps, batch_size
        self.penalty, self.penalty_center = gradient_penalty, gradient_penalty_center
        self.penalty_points = POINTS[gradient_penalty_points]
        self.input_noise, self.label_smoothing, self.pause_above = input_noise, label_smoothing, pause_above
        self.absorbing, self.absorbing_discount = absorbing, absorbing_discount
        self.past: deque[JointTransition] = deque(maxlen=replay)  # rollouts of the last rounds, [T * E]
        self.optimizer = torch.optim.AdamW(
            self.prior.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )

    def update(self, rollout: JointTransition, demonstrations: Demonstrations, policy: Policy) -> dict[str, float]:
        """Train on a rollout ``[T, E]`` and demonstrations; the numbers are means over the steps."""
        generated = _living(rollout.flatten())
        seen = concatenate([generated, *self.past])
        ends = {"expert": demonstrations.ends, "generated": share_of_ends(seen)} if self.absorbing else {}
        self.prior.train()
        infos = [
            self._step(seen.sample(self.batch_size), demonstrations.sample(self.batch_size), ends, policy)
            for _ in range(self.steps)
        ]
        self.prior.eval()
        self.past.append(generated)
        info = mean_info(infos)
        if self.held_out is not None and not isinstance(self.prior, ZeroSum):  # which nowhere says that all is expert
            info["held_out_accuracy"] = self._held_out_accuracy(self.held_out.transitions, policy)
        self._update_scales(generated)
        return {f"discriminator/{key}": value for key, value in info.items()}

    @torch.no_grad()
    def reward(self, batch: JointTransition) -> ByGroup:
        """Rewards ``[T, E, A]`` a group of a rollout ``[T, E]``, or ``[B, A]`` of a batch ``[B]``.

        Each is for the very action taken in its observation.
        """
        rewards = self._unscaled(batch.flatten())
        for name, scale in self.scales.items():
            rewards[name] = rewards[name] / scale.std
        return {name: x.unflatten(0, batch.batch_shape) for name, x in rewards.items()}

    @torch.no_grad()
    def learned_reward(self, batch: JointTransition) -> ByGroup:
        """What stands for the true reward of a rollout ``[T, E]``: AIRL's g, else `reward`."""
        if not isinstance(self.prior, Shaped):
            return self.reward(batch)
        return {name: x.unflatten(0, batch.batch_shape) for name, x in self.prior.g(batch.flatten()).items()}

    def _unscaled(self, batch: JointTransition) -> ByGroup:
        """Rewards of a batch ``[B]``, clipped."""
        logits = self._logits(self.prior.features(batch), batch.field("log_prob"))
        rewards = {name: self.prior.sign(name) * self.reward_fn(x) for name, x in logits.items()}
        if self.reward_clip is None:
            return rewards
        return {name: x.clamp(-self.reward_clip, self.reward_clip) for name, x in rewards.items()}

    @torch.no_grad()
    def _update_scales(self, generated: JointTransition) -> None:
        if self.scales:
            for name, reward in self._unscaled(generated).items():
                self.scales[name].update(reward, generated.groups[name].mask)

    def _logits(self, features: ByGroup, log_prob: ByGroup) -> ByGroup:
        """``[B, A]`` a group, high for the expert."""
        logits = self.prior.by_agent(self.prior.raw_logits(features))
        return {name: x - log_prob[name] for name, x in logits.items()} if self.airl else logits

    def _step(
        self, generated: JointTransition, expert: JointTransition, ends: dict[str, ByGroup], policy: Policy
    ) -> dict[str, Tensor]:
        labelled = self.prior.labelled(generated, expert, policy)
        examples = [self._examples(batch, target, policy) for batch, target, _ in labelled]
        expert_side, generated_side = examples[0].features, examples[-1].features
        after = [self._afterlife(batch, target, ends[source]) for batch, target, source in labelled] if ends else []
        if self.mixup:
            examples = [joined([mixed(examples[0], examples[-1], self.mixup), *after])]
        elif after:
            examples = [joined(parts) for parts in zip(examples, after, strict=True)]
        examples = [self._disturbed(x) for x in examples]
        logits = [self._logits(x.features, x.log_prob) for x in examples]
        losses = [
            masked_mean(self.loss_fn(of_group, x.target.expand_as(of_group)), x.weight[name])
            for of_examples, x in zip(logits, examples, strict=True)
            for name, of_group in of_examples.items()
        ]
        loss = torch.stack(losses).mean()
        info = {
            "loss": loss.detach(),
            "expert_accuracy": _accuracy(logits, examples, 1),
            "generator_accuracy": _accuracy(logits, examples, -1),
        }
        if self.penalty > 0.0:
            penalty = gradient_penalty(
                self.prior.raw_logits, self.penalty_points(expert_side, generated_side), self.penalty_center
            )
            loss = loss + self.penalty * penalty
            info["gradient_penalty"] = penalty.detach()
        if self.pause_above < 1.0:
            pause = (info["expert_accuracy"] + info["generator_accuracy"]) / 2 > self.pause_above
            info["paused"] = pause.float()
            if pause:
                return info
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return info

    def _examples(self, batch: JointTransition, target: float, policy: Policy) -> Examples:
        """A batch ``[B]``, and what to call it."""
        log_prob = {}
        if self.airl:
            with torch.no_grad():
                log_prob = policy.log_prob(batch)
        weight = {name: mask.float() for name, mask in batch.field("mask").items()}
        return Examples(self.prior.features(batch), weight, _as_target(target, weight), log_prob)

    def _afterlife(self, batch: JointTransition, target: float, ends: ByGroup) -> Examples:
        """The absorbing steps that follow on the ends in a batch ``[B]``, as one row ``[1]``, for they are all alike.

        It weighs as many as are to be expected in the batch: their own number in it is mostly noise. What follows on
        an end lasts ``absorbing_discount + absorbing_discount^2 + ...`` steps; of weight 1, it is hardly learned.
        """
        after = absorbing_transition(batch[:1])
        steps = batch.batch_shape[0] * self.absorbing_discount / (1 - self.absorbing_discount)
        weight = {name: steps * share for name, share in ends.items()}
        return Examples(self.prior.features(after), weight, _as_target(target, weight), after.field("log_prob"))

    def _disturbed(self, examples: Examples) -> Examples:
        if self.input_noise:
            examples = with_noise(examples, self.input_noise)
        return smoothed(examples, self.label_smoothing) if self.label_smoothing else examples

    @torch.no_grad()
    def _held_out_accuracy(self, expert: JointTransition, policy: Policy) -> float:
        examples = self._examples(expert, 1.0, policy)
        return _accuracy([self._logits(examples.features, examples.log_prob)], [examples], 1).item()

    def report(self, rollout: JointTransition) -> dict[str, float]:
        """How well the learned reward of a rollout ``[T, E]`` goes with the true one, which training never sees.

        Pearson's correlation over each agent's steps, mean over the agents; and what an absorbing step pays beside what
        the others do (``generator/reward_mean``).
        """
        learned = self.learned_reward(rollout)
        per_agent = torch.cat([correlation(learned[n], g.env_reward, g.mask) for n, g in rollout.groups.items()])
        info = {"discriminator/reward_correlation": per_agent.mean().item()}
        if self.absorbing:
            after = self.reward(absorbing_transition(rollout[:1, :1]))  # the same for all steps and copies
            info["discriminator/absorbing_reward"] = torch.cat(list(after.values()), -1).mean().item()
        return info

    def save(self, run_dir: Path) -> None:
        """Write the learned reward, for `LearnedReward`."""
        save_reward(run_dir / REWARD_FILE, self.prior, self.absorbing)

    def state_dict(self) -> dict[str, Any]:
        past = [{name: vars(group) for name, group in rollout.groups.items()} for rollout in self.past]
        scales = {name: scale.state_dict() for name, scale in self.scales.items()}
        return {
            "prior": self.prior.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scales": scales,
            "past": past,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prior.load_state_dict(state["prior"])
        load_state(self.optimizer, state["optimizer"])
        for name, scale in self.scales.items():
            scale.load_state_dict(state["scales"][name])
        device = next(self.prior.parameters()).device  # a checkpoint is read to the CPU
        for rollout in state["past"]:
            past = JointTransition({name: Transition(**group) for name, group in rollout.items()})
            self.past.append(past.map(lambda x: x.to(device)))


def _living(batch: JointTransition) -> JointTransition:
    """The steps of a batch ``[B]`` in which somebody lives, as demonstrations are sampled from; opponents play on."""
    alive = batch.anybody_alive
    return batch if alive.all() else batch[alive]


def _as_target(target: float, weight: ByGroup) -> Tensor:
    return next(iter(weight.values())).new_tensor(target)


def _accuracy(logits: Sequence[ByGroup], examples: Sequence[Examples], side: int) -> Tensor:
    """Share of the weight of logits on the right side, among what is mostly the expert's (1) or generated (-1)."""
    right = count = torch.zeros((), device=examples[0].target.device)
    for of_examples, x in zip(logits, examples, strict=True):
        for name, of_group in of_examples.items():
            chosen = x.weight[name] * (side * (x.target - 0.5) > 0)
            right, count = right + (side * of_group > 0).mul(chosen).sum(), count + chosen.sum()
    return right / count.clamp(min=1)


class EnvironmentReward(FixedReward):
    """Stands in for the discriminator where training is on the environment's own reward (``algorithm=rl``)."""

    def __init__(self, groups: Sequence[AgentGroup], demonstrations: None, held_out: None) -> None:
        pass

    def reward(self, rollout: JointTransition) -> ByGroup:
        return rollout.field("env_reward")


class NoDiscriminator(EnvironmentReward):
    """For generators that learn from demonstrations by themselves: no reward at all."""

    def reward(self, rollout: JointTransition) -> ByGroup:
        return {name: torch.zeros_like(reward) for name, reward in rollout.field("env_reward").items()}
