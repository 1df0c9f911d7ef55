"""Soft actor-critic with decentralized actors and centralized twin critics, from replayed experience."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from magail.advantage import masked_mean, mean_info
from magail.demonstrations import Demonstrations
from magail.distributions import BoxHead, Head
from magail.generators.generator import PolicyAverage, RewardFn, refuse_clipped, refuse_memory, with_afterlife
from magail.generators.q_networks import Choices, TwinCritics
from magail.generators.replay import Replay, Sequences, at_step, n_step_return
from magail.networks import follow
from magail.optim.options import load_state
from magail.policy import Policy, PolicyOptions
from magail.ranges import check_positive, check_range
from magail.types import AgentGroup, ByGroup, JointTransition, absorbing_transition


class SAC:
    """Multi-agent soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), with a reward and entropy for each agent.

    Off-policy, so it uses each step many times. Imitation rewards are asked for when steps are sampled, and are those
    of the discriminator as it now is: discriminator-actor-critic (Kostrikov et al. 2019, arXiv 1809.02925). A share of
    each batch may be demonstrations; with a constant reward for them and no discriminator this is SQIL (Reddy et al.
    2020, arXiv 1905.11108).

    The means over an agent's own discrete actions are taken in closed form (Christodoulou 2019, arXiv 1910.07207); the
    others' actions are drawn from their current policies. conf/generator/sac.yaml explains the options.

    Raises:
        ValueError: an option out of range, a recurrent policy, or too many combinations of actions.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        critic: Annotated[dict[str, Any], TwinCritics],
        learning_rate: float,
        critic_learning_rate: float,
        temperature_learning_rate: float,
        initial_temperature: float,
        discrete_entropy: float,
        box_entropy: float,
        replay_capacity: int,
        learning_starts: int,
        updates_per_step: float,
        batch_size: int,
        n_step: int,
        polyak: float,
        gamma: float,
        expert_fraction: float,
        expert_reward: float | None,
        absorbing: bool,
        max_grad_norm: float,
        averaging: float,
    ) -> None:
        check_range({"generator.batch_size": batch_size, "generator.n_step": n_step}, 1)
        check_range({"generator.learning_starts": learning_starts}, 0)
        check_positive(
            {"generator.updates_per_step": updates_per_step, "generator.initial_temperature": initial_temperature}
        )
        check_positive({"generator.polyak": polyak}, 1)
        if learning_starts > replay_capacity:
            raise ValueError(
                f"generator.learning_starts={learning_starts} is more than generator.replay_capacity="
                f"{replay_capacity} can keep, so learning would never start: lower it"
            )
        rates = {"learning_rate": learning_rate, "critic_learning_rate": critic_learning_rate}
        rates |= {"temperature_learning_rate": temperature_learning_rate, "max_grad_norm": max_grad_norm}
        check_range({f"generator.{name}": rate for name, rate in rates.items()}, 0)
        check_range({"generator.discrete_entropy": discrete_entropy}, 0, 1)
        check_range({"generator.box_entropy": box_entropy}, -math.inf, 0.69)
        check_range({"generator.expert_fraction": expert_fraction}, 0, 1)
        check_range({"generator.gamma": gamma}, 0, 0.9999 if absorbing else 1)
        self.policy = Policy(groups, **policy)
        refuse_memory(self.policy)
        refuse_clipped(self.policy)
        self.critic = TwinCritics(groups, **critic)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = {g.name: nn.Parameter(torch.tensor(math.log(initial_temperature))) for g in groups}
        self.target_entropy = {
            name: _target_entropy(actor.head, discrete_entropy, box_entropy)
            for name, actor in self.policy.actors.items()
        }
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.policy.parameters()), "lr": learning_rate},
                {"params": list(self.critic.parameters()), "lr": critic_learning_rate},
                {"params": list(self.log_temperature.values()), "lr": temperature_learning_rate},
            ],
            fused=True,
        )
        self.replay, self.learning_starts = Replay(replay_capacity), learning_starts
        self.updates_per_step, self.batch_size, self.n_step = updates_per_step, batch_size, n_step
        self.polyak, self.gamma, self.absorbing, self.max_grad_norm = polyak, gamma, absorbing, max_grad_norm
        self.num_experts, self.expert_reward = round(expert_fraction * batch_size), expert_reward
        self._demonstrated: Replay | None = None
        self.average = PolicyAverage(self.policy, averaging)

    @property
    def averaged(self) -> Policy:
        return self.average.policy

    def compile(self) -> None:
        """Does nothing: matrix products take the time, and fusing what is between them gained none."""

    def update(
        self,
        rollout: JointTransition,
        reward_fn: RewardFn,
        progress: float = 0.0,
        extra_loss: Callable[[], Tensor] | None = None,
        demonstrations: Demonstrations | None = None,
    ) -> dict[str, float]:
        """Keep the rollout ``[T, E]``, and take gradient steps once there are enough.

        Raises:
            ValueError: the rollout is larger than the replay, or there are no demonstrations to take a share from.
        """
        self.policy.observe(rollout)
        self.replay.push(rollout)
        if len(self.replay) < self.learning_starts and not self.replay.full:
            return {}
        if self.num_experts and self._demonstrated is None:
            self._demonstrated = _replay_of(demonstrations)
        updates = max(1, round(self.updates_per_step * rollout.batch_shape.numel()))
        infos = [self._step(self._sample(), reward_fn, extra_loss) for _ in range(updates)]
        self.average.update()
        return {f"generator/{key}": value for key, value in mean_info(infos).items()}

    def _sample(self) -> Sequences:
        """``[B, n]``, own steps first and then demonstrations."""
        own = self.replay.sample(self.batch_size - self.num_experts, self.n_step)
        if self._demonstrated is None:
            return own
        return own + self._demonstrated.sample(self.num_experts, self.n_step)

    def _step(
        self, batch: Sequences, reward_fn: RewardFn, extra_loss: Callable[[], Tensor] | None
    ) -> dict[str, Tensor]:
        """Descend on a batch, once for policy, critics and temperatures alike."""
        rewards, targets = self._targets(batch, reward_fn)
        first = batch.first
        obs = self.policy.normalize(first.field("obs"))
        value_loss = self._value_loss(obs, first, targets)
        policy_loss, excess = self._policy_loss(obs, first.field("mask"))
        self.optimizer.zero_grad()
        value_loss.backward()
        for name, temperature in self.log_temperature.items():
            temperature.grad = excess[name]  # of log_temperature * (entropy - target)
        actors, *_ = self.optimizer.param_groups
        (policy_loss if extra_loss is None else policy_loss + extra_loss()).backward(inputs=actors["params"])
        for group in self.optimizer.param_groups[:2]:
            nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
        self.optimizer.step()
        follow(self.target_critic, self.critic, self.polyak)
        reward, mask = (torch.cat([x[name].flatten() for name in rewards]) for x in (rewards, first.field("mask")))
        reward_mean = masked_mean(reward, mask)
        return {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": torch.stack([excess[name] + self.target_entropy[name] for name in excess]).mean(),
            "temperature": torch.stack([x.detach().exp() for x in self.log_temperature.values()]).mean(),
            "reward_mean": reward_mean,
            "reward_std": masked_mean((reward - reward_mean).square(), mask).sqrt(),
        }

    @torch.no_grad()
    def _targets(self, batch: Sequences, reward_fn: RewardFn) -> tuple[ByGroup, ByGroup]:
        """Rewards, and what the critics should say, of the first steps: ``[B, A]`` each.

        The n-step return of ``r + gamma * alpha * H(pi(.|s'))`` and of the target critics' smaller mean value of the
        last state reached. With ``absorbing``, termination is followed by ``r_absorbing`` for ever, which is worth
        ``r_absorbing / (1 - gamma)``; else by nothing.
        """
        steps = self._up_to_date(batch.steps)
        rewards = self._with_expert_reward(reward_fn(steps))
        paid = rewards
        if self.absorbing:
            absorbed = reward_fn(absorbing_transition(steps[:1, :1]))  # the same for all steps
            after = self._with_expert_reward({name: x.expand_as(rewards[name]) for name, x in absorbed.items()})
            paid = with_afterlife(rewards, after, steps, self.gamma)
        next_obs = self.policy.normalize(steps.field("next_obs"))
        choices = self._choices(next_obs)
        alive = {name: group.lives_on for name, group in steps.groups.items()}
        features = self.target_critic.features(next_obs, {name: c.action for name, c in choices.items()}, alive)
        sums, lasts, discounts = {}, {}, {}
        for name, group in steps.groups.items():
            bonus = self.log_temperature[name].exp() * choices[name].entropy() * ~group.terminated
            sums[name], lasts[name], discounts[name] = n_step_return(
                paid[name] + self.gamma * bonus, group, batch.played, self.gamma
            )
        values = self.target_critic({name: at_step(features[name], last) for name, last in lasts.items()})
        targets = {}
        for name, last in lasts.items():
            value = (at_step(choices[name].probs, last) * values[name].amin(1)).sum(-1)
            targets[name] = sums[name] + discounts[name] * value
        return {name: x[:, 0] for name, x in rewards.items()}, targets

    def _up_to_date(self, steps: JointTransition) -> JointTransition:
        """With the current policy's log-probabilities, which some rewards look at."""
        log_prob = self.policy.log_prob(steps)
        return JointTransition({name: replace(g, log_prob=log_prob[name]) for name, g in steps.groups.items()})

    def _with_expert_reward(self, rewards: ByGroup) -> ByGroup:
        """``[B, n, A]`` a group, with what the demonstrations' share is worth in their rows."""
        if self.expert_reward is None:
            return rewards
        own = self.batch_size - self.num_experts
        return {name: torch.cat([x[:own], torch.full_like(x[own:], self.expert_reward)]) for name, x in rewards.items()}

    def _choices(self, obs: ByGroup) -> dict[str, Choices]:
        """Of the policy, in normalised observations."""
        return {name: Choices(x) for name, x in self.policy.distributions_of_normalized(obs).items()}

    def _value_loss(self, obs: ByGroup, first: JointTransition, targets: ByGroup) -> Tensor:
        """Half the mean squared error of either critic."""
        values = self.critic(self.critic.features(obs, first.field("action"), first.field("mask")))
        losses = []
        for name, group in first.groups.items():
            error = self.critic.taken(name, values[name], group.action) - targets[name].unsqueeze(1)  # [B, 2, A]
            losses.append(0.5 * masked_mean(error.square().sum(1), group.mask))
        return torch.stack(losses).mean()

    def _policy_loss(self, obs: ByGroup, mask: ByGroup) -> tuple[Tensor, ByGroup]:
        """``E[alpha log pi - min Q]``, and by how much each group's entropy is above its target."""
        choices = self._choices(obs)
        values = self.critic(self.critic.features(obs, {name: c.action for name, c in choices.items()}, mask))
        losses, excess = [], {}
        for name, c in choices.items():
            temperature, entropy = self.log_temperature[name].detach().exp(), c.entropy()
            soft_value = c.mean(values[name].amin(1)) + temperature * entropy
            losses.append(-masked_mean(soft_value, mask[name]))
            excess[name] = masked_mean(entropy.detach() - self.target_entropy[name], mask[name])
        return torch.stack(losses).mean(), excess

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict() | {
            "critic": self.critic.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "log_temperature": {name: x.detach() for name, x in self.log_temperature.items()},
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.target_critic.load_state_dict(state["target_critic"])
        for name, x in state["log_temperature"].items():
            self.log_temperature[name].data.copy_(x)
        load_state(self.optimizer, state["optimizer"])
        self.replay.load_state_dict(state["replay"], self.policy.fixed.device)


def _target_entropy(head: Head, discrete_entropy: float, box_entropy: float) -> float:
    """Of one agent, in nats and in the action's own units."""
    if isinstance(head, BoxHead):
        return (box_entropy + head.scale.log()).sum().item()
    return discrete_entropy * sum(math.log(n) for n in head.nvec)


def _replay_of(demonstrations: Demonstrations | None) -> Replay:
    """The demonstrations as one stream of steps, episode after episode."""
    if demonstrations is None:
        raise ValueError(
            "generator.expert_fraction takes a share of each batch from the demonstrations, but there are none: set "
            "demonstrations.count, or generator.expert_fraction=0"
        )
    replay = Replay(demonstrations.num_steps)
    replay.push(demonstrations.transitions.map(lambda x: x.unsqueeze(1)))
    return replay
