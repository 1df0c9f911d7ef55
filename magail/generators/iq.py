"""Inverse soft Q-learning: imitation without a discriminator, by the Q-function whose reward tells the expert apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from magail.advantage import masked_mean, mean_info
from magail.demonstrations import Demonstrations
from magail.distributions import BoxDistribution, BoxHead, DiscreteHead
from magail.generators.generator import PolicyAverage, RewardFn, refuse_clipped, refuse_memory
from magail.generators.replay import Replay
from magail.networks import Encoder, StackedMLP, follow, module_dict
from magail.optim.options import load_state
from magail.policy import Policy, PolicyOptions
from magail.ranges import check_positive, check_range
from magail.types import AgentGroup, ByGroup, JointTransition, concatenate

MIXINGS = ("none", "linear")


@dataclass
class Values:
    """Soft values of B steps ``[B, N]``: of each of N agents or, where they are mixed, N = 1."""

    q: Tensor  # of the actions taken
    value: Tensor  # of the states they were taken in
    next_value: Tensor  # of the states they led to, 0 where the agent terminated
    mask: Tensor  # bool: alive, or where they are mixed, anybody alive

    def reward(self, gamma: float) -> Tensor:
        """The reward under which Q is the soft Q-function of its own softmax: the inverse Bellman operator."""
        return self.q - gamma * self.next_value


def iq_loss(values: Values, num_experts: int, gamma: float, beta: float) -> Tensor:
    """What IQ-Learn minimises, of a batch whose first ``num_experts`` rows are the expert's.

    The chi-squared form of the objective (arXiv 2106.12142), with ``r = Q(s, a) - gamma V(s')``:
    ``-E_expert[r] + E[V(s) - gamma V(s')] + E[r^2] / (4 beta)``. The second term, where the batch's states are those of
    one policy's whole lives, is ``(1 - gamma) E[V(s_0)]``. The two means without a name are over the whole batch: of
    demonstrations alone this is the objective itself, with ``phi(x) = x - x^2 / (4 beta)``; with own steps besides it
    holds their rewards near 0 too (Al-Hafez et al. 2023, arXiv 2303.00599), or their values would have no bound.
    """
    reward = values.reward(gamma)
    expert = masked_mean(reward[:num_experts], values.mask[:num_experts])
    fall = masked_mean(values.value - gamma * values.next_value, values.mask)
    return fall - expert + masked_mean(reward.square(), values.mask) / (4 * beta)


class SoftQ(nn.Module):
    """The soft Q-functions of all agents, each of its own normalised observation and action, and their values.

    Of Discrete and MultiDiscrete agents ``Q = alpha * logit`` (the sum over the factors), so that
    ``V = alpha * logsumexp(Q / alpha)`` and the softmax is the actor. Of Box agents Q is a network, and
    ``V = E[Q - alpha log pi]`` over the actor's actions, estimated from one.
    """

    def __init__(
        self, policy: Policy, temperature: float, mixer: Mixer | None, hidden_sizes: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        self.temperature, self.mixer, self.actors = temperature, mixer, policy.actors
        self.critics = module_dict(
            {
                group.name: BoxQ(group, policy, hidden_sizes, activation)
                for group in policy.groups
                if isinstance(policy.actors[group.name].head, BoxHead)
            }
        )

    def forward(self, obs: ByGroup, action: ByGroup, alive: ByGroup) -> tuple[Tensor, Tensor]:
        """``Q(s, a)`` and ``V(s)``, both ``[B, N]``, from ``[B, A, ...]`` a group; those of the dead are 0."""
        both = [self._q_and_value(name, obs[name], action[name]) for name in self.actors]
        q, value = self._mixed(torch.cat(both, -1), obs, alive)
        return q, value

    def value(self, obs: ByGroup, alive: ByGroup) -> Tensor:
        """``V(s) [B, N]``."""
        value = torch.cat([self._value(name, obs[name]) for name in self.actors], -1)
        return self._mixed(value, obs, alive)

    def joined(self, alive: ByGroup) -> Tensor:
        """Whether a row counts ``[B, N]``."""
        mask = torch.cat([alive[name] for name in self.actors], -1)
        return mask if self.mixer is None else mask.any(-1, keepdim=True)

    def policy_loss(self, obs: ByGroup, alive: ByGroup) -> Tensor:
        """``E[alpha log pi - Q]`` of the Box agents' own actions; 0 where there are none."""
        losses = [torch.zeros((), device=next(iter(obs.values())).device)]
        for name, critic in self.critics.items():
            action, log_prob = self._distribution(name, obs[name]).rsample_and_log_prob()
            losses.append(masked_mean(self.temperature * log_prob - critic(obs[name], action), alive[name]))
        return torch.stack(losses).sum()

    def _mixed(self, values: Tensor, obs: ByGroup, alive: ByGroup) -> Tensor:
        """Of all agents' values ``[..., B, sum A]`` those that the loss is of, ``[..., B, N]``."""
        if self.mixer is not None:
            weights, bias = self.mixer(obs, alive)
            values = (values * weights).sum(-1, keepdim=True) + bias
        return values * self.joined(alive)

    def _q_and_value(self, name: str, obs: Tensor, action: Tensor) -> Tensor:
        """``[2, B, A]``"""
        if name in self.critics:
            return torch.stack([self.critics[name](obs, action), self._value(name, obs)])
        logits = self._logits(name, obs)
        taken = zip(logits, action.unbind(-1), strict=True)
        q = torch.stack([factor.gather(-1, a.unsqueeze(-1)).squeeze(-1) for factor, a in taken]).sum(0)
        return self.temperature * torch.stack([q, _logsumexp(logits)])

    def _value(self, name: str, obs: Tensor) -> Tensor:
        if name not in self.critics:
            return self.temperature * _logsumexp(self._logits(name, obs))
        with torch.no_grad():
            action, log_prob = self._distribution(name, obs).rsample_and_log_prob()
        return self.critics[name](obs, action) - self.temperature * log_prob

    def _distribution(self, name: str, obs: Tensor) -> BoxDistribution:
        distribution = self.actors[name](obs)
        assert isinstance(distribution, BoxDistribution)
        return distribution

    def _logits(self, name: str, obs: Tensor) -> tuple[Tensor, ...]:
        """A tensor ``[..., A, n]`` for each factor of the action."""
        actor = self.actors[name]
        assert isinstance(actor.head, DiscreteHead)
        return actor.mlp(actor.encoder(obs)).split(actor.head.nvec, -1)


def _logsumexp(logits: Sequence[Tensor]) -> Tensor:
    """Over all combinations of the factors' actions, which is the sum of the factors' own: ``[..., A]``."""
    return torch.stack([factor.logsumexp(-1) for factor in logits]).sum(0)


class BoxQ(nn.Module):
    """A network ``Q_i(o_i, a_i)`` for each agent of a group; it sees images and shares parameters as the actors do."""

    def __init__(self, group: AgentGroup, policy: Policy, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        options, agents = policy.architecture, group.num_agents
        share = options["share_parameters"]
        head = policy.actors[group.name].head
        assert isinstance(head, BoxHead)
        self.head = head
        self.encoder = Encoder(group.observation_space, agents, options["encoder"], options["channels"], share)
        width = self.encoder.out_features + head.encoded_dim
        self.mlp = StackedMLP(agents, width, hidden_sizes, 1, activation, share_parameters=share)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """``[..., A]``"""
        return self.mlp(torch.cat([self.encoder(obs), self.head.encode(action)], -1)).squeeze(-1)


class Mixer(nn.Module):
    """Joint values from agents': ``sum_i w_i(s) v_i + b(s)``, weights and bias from the observations of all the living.

    The same mixing for Q and V, linear and with ``w >= 0``, keeps the objective concave in the agents' Q-functions
    (arXiv 2310.06801). Of demonstrations, the objective's linear part is ``sum_i w_i alpha log pi_i <= 0``: free
    weights would shrink to 0, first those of agents that are imitated worst. So weights here are at least 1/2 and sum
    to the number of the living; at the start each is about 1.
    """

    def __init__(self, policy: Policy, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        options = policy.architecture
        self.encoders = module_dict(
            {
                g.name: Encoder(g.observation_space, g.num_agents, options["encoder"], options["channels"], True)
                for g in policy.groups
            }
        )
        width = sum(g.num_agents * self.encoders[g.name].out_features for g in policy.groups)
        agents = sum(g.num_agents for g in policy.groups)
        self.mlp = StackedMLP(1, width, hidden_sizes, agents + 1, activation, 0.01)

    def forward(self, obs: ByGroup, alive: ByGroup) -> tuple[Tensor, Tensor]:
        """Weights ``[B, N]``, 0 for the dead, and bias ``[B, 1]``."""
        living = torch.cat([alive[name] for name in self.encoders], -1)
        seen = [encoder(obs[name] * alive[name].unsqueeze(-1)).flatten(-2) for name, encoder in self.encoders.items()]
        outputs = self.mlp(torch.cat(seen, -1).unsqueeze(-2)).squeeze(-2)
        scores = outputs[..., :-1].exp() * living
        shares = scores / masked_mean(scores, living, -1).clamp(min=1e-8).unsqueeze(-1)  # of mean 1
        return (shares + living) / 2, outputs[..., -1:]


class IQLearn:
    """IQ-Learn (Garg et al. 2021, arXiv 2106.12142) for decentralized policies.

    A soft Q-function stands for both a policy, its softmax, and a reward, ``Q(s, a) - gamma V(s')``; it is chosen so
    that this reward is large where the expert goes, and small elsewhere (`iq_loss`). There is no adversary, and neither
    the environment's reward nor ``reward_fn`` is asked for.

    Each agent's Q-function sees its own observation (`SoftQ`). Discrete and MultiDiscrete agents have no other network
    than their actor: its logits are Q over the temperature. Cloning fixes logits up to a constant in each state, so a
    cloned start has the right differences between actions' Q, and values that are still arbitrary. Box agents have a
    network for Q, and an actor that follows its softmax as in soft actor-critic.

    With ``mixing=linear`` the loss is that of all agents' values mixed to one (`Mixer`), as in inverse factorized
    Q-learning (Bui et al. 2024, arXiv 2310.06801); with ``none`` each agent has a loss of its own.
    conf/generator/iq.yaml explains the options.

    Raises:
        ValueError: an option out of range, or a recurrent policy.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        q_network: Annotated[dict[str, Any], SoftQ],
        mixing: str,
        mixer: dict[str, Any],
        temperature: float,
        beta: float,
        gamma: float,
        polyak: float | None,
        expert_fraction: float,
        replay_capacity: int,
        steps: int,
        batch_size: int,
        learning_rate: float,
        critic_learning_rate: float,
        weight_decay: float,
        max_grad_norm: float,
        averaging: float,
    ) -> None:
        check_positive({"generator.temperature": temperature, "generator.beta": beta})
        check_positive({"generator.polyak": 1 if polyak is None else polyak}, 1)
        check_range({"generator.gamma": gamma}, 0, 1)
        check_range({"generator.steps": steps, "generator.batch_size": batch_size}, 1)
        check_range({"generator.expert_fraction": expert_fraction}, 1 / batch_size, 1)
        check_range({"generator.weight_decay": weight_decay}, 0)
        if mixing not in MIXINGS:
            raise ValueError(f"generator.mixing={mixing} must be one of {', '.join(MIXINGS)}")
        self.policy = Policy(groups, **policy)
        refuse_memory(self.policy)
        refuse_clipped(self.policy)
        one_agent = sum(group.num_agents for group in groups) == 1
        mix = None if mixing == "none" or one_agent else Mixer(self.policy, **mixer)
        self.soft_q = SoftQ(self.policy, temperature, mix, **q_network)
        self.target = None if polyak is None else copy.deepcopy(self.soft_q).requires_grad_(False)
        actors = set(self.policy.parameters())
        self.critics = [parameter for parameter in self.soft_q.parameters() if parameter not in actors]
        critics = {"params": self.critics, "lr": critic_learning_rate, "weight_decay": weight_decay}
        self.optimizer = torch.optim.AdamW([*self.policy.decayed(weight_decay), critics], lr=learning_rate, fused=True)
        self.replay = Replay(replay_capacity)
        self.batch_size, self.num_experts = batch_size, round(expert_fraction * batch_size)
        self.beta, self.gamma, self.polyak, self.steps = beta, gamma, polyak, steps
        self.max_grad_norm = max_grad_norm
        self.average = PolicyAverage(self.policy, averaging)

    @property
    def averaged(self) -> Policy:
        return self.average.policy

    def compile(self) -> None:
        """Does nothing."""

    def update(
        self,
        rollout: JointTransition,
        reward_fn: RewardFn,
        progress: float = 0.0,
        extra_loss: Callable[[], Tensor] | None = None,
        demonstrations: Demonstrations | None = None,
    ) -> dict[str, float]:
        """Keep the rollout ``[T, E]``, unless demonstrations alone are learned from, and take gradient steps.

        Raises:
            ValueError: there are no demonstrations, or the rollout is larger than the replay.
        """
        if demonstrations is None:
            raise ValueError("IQ-Learn imitates demonstrations, but there are none: set demonstrations.count")
        self.policy.observe(rollout)
        if self.target is not None and not self.average.begun:
            self.target.load_state_dict(self.soft_q.state_dict())  # which cloning has changed since
        if self.num_experts < self.batch_size:
            self.replay.push(rollout)
        infos = [self._step(self._sample(demonstrations), extra_loss) for _ in range(self.steps)]
        self.average.update()
        return {f"generator/{key}": value for key, value in mean_info(infos).items()}

    def _sample(self, demonstrations: Demonstrations) -> JointTransition:
        """``[B]``, demonstrations first and then own steps."""
        expert = demonstrations.sample(self.num_experts)
        own = self.batch_size - self.num_experts
        return concatenate([expert, self.replay.sample(own, 1).first]) if own else expert

    def _step(self, batch: JointTransition, extra_loss: Callable[[], Tensor] | None) -> dict[str, Tensor]:
        """Descend on a batch: Q towards `iq_loss`, the actors of boxes towards the softmax of Q."""
        values = self.values(batch)
        value_loss = iq_loss(values, self.num_experts, self.gamma, self.beta)
        policy_loss = self.soft_q.policy_loss(self.policy.normalize(batch.field("obs")), batch.field("mask"))
        self.optimizer.zero_grad()
        value_loss.backward()
        following = policy_loss if extra_loss is None else policy_loss + extra_loss()
        if following.requires_grad:
            following.backward(inputs=list(self.policy.parameters()))
        for parameters in (self.policy.parameters(), self.critics):
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.optimizer.step()
        if self.target is not None:
            assert self.polyak is not None
            follow(self.target, self.soft_q, self.polyak)
        reward, n = values.reward(self.gamma).detach(), self.num_experts
        return {
            "value_loss": value_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "value": masked_mean(values.value.detach(), values.mask),
            "expert_reward": masked_mean(reward[:n], values.mask[:n]),
            "own_reward": masked_mean(reward[n:], values.mask[n:]),
        }

    def values(self, batch: JointTransition) -> Values:
        """Of the steps of a batch ``[B]``."""
        alive = batch.field("mask")
        goes_on = {name: group.lives_on for name, group in batch.groups.items()}
        obs, next_obs = (self.policy.normalize(batch.field(key)) for key in ("obs", "next_obs"))
        q, value = self.soft_q(obs, batch.field("action"), alive)
        return Values(
            q=q,
            value=value,
            next_value=(self.target or self.soft_q).value(next_obs, goes_on),
            mask=self.soft_q.joined(alive),
        )

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict() | {
            "soft_q": self.soft_q.state_dict(),
            "target": {} if self.target is None else self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
        self.soft_q.load_state_dict(state["soft_q"])
        if self.target is not None:
            self.target.load_state_dict(state["target"])
        load_state(self.optimizer, state["optimizer"])
        self.replay.load_state_dict(state["replay"], self.policy.fixed.device)
