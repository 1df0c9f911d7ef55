"""Centralized action-value networks: what every agent's action is worth, given all observations and others' actions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from magail.distributions import BoxDistribution, BoxHead, Categorical, Distribution, action_head
from magail.networks import CHANNELS, Encoder, StackedMLP, module_dict
from magail.types import AgentGroup, ByGroup

MAX_CHOICES = 1024


class Choices:
    """Actions of a group such that means under its policy are sums: every one it can take, or a draw from a box.

    A Discrete or MultiDiscrete agent has all M of its actions as choices (the last factor varies fastest), a Box agent
    the M = 1 drawn. ``action [..., A, U]`` is a draw in either case; ``probs`` and ``log_probs`` are ``[..., A, M]``.
    Gradients pass to the policy through ``probs`` and ``log_probs``, and through a box's ``action``.
    """

    def __init__(self, distribution: Distribution) -> None:
        if isinstance(distribution, Categorical):
            self.action = distribution.sample()
            self.log_probs = distribution.log_probs[0]
            for factor in distribution.log_probs[1:]:
                self.log_probs = (self.log_probs.unsqueeze(-1) + factor.unsqueeze(-2)).flatten(-2)
            self.probs = self.log_probs.exp()
        else:
            assert isinstance(distribution, BoxDistribution)
            self.action, log_prob = distribution.rsample_and_log_prob()
            self.log_probs = log_prob.unsqueeze(-1)
            self.probs = torch.ones_like(self.log_probs)

    def mean(self, values: Tensor) -> Tensor:
        """``[..., A, M]`` to ``[..., A]``."""
        return (self.probs * values).sum(-1)

    def entropy(self) -> Tensor:
        """In nats, ``[..., A]``; of a box an unbiased estimate."""
        return -self.mean(self.log_probs)


class TwinCritics(nn.Module):
    """Two critics for every agent, each looking at everyone's observations and actions.

    The critics of a Discrete or MultiDiscrete agent do not see its own action: they put out a value for each that it
    could take. Those of a Box agent see it and put out one value. The dead are seen as zeros. ``encoder`` and
    ``channels`` are `Encoder`'s; all critics share one for each group's observations.

    Raises:
        ValueError: a MultiDiscrete space with more than `MAX_CHOICES` combinations.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        hidden_sizes: Sequence[int],
        activation: str,
        encoder: str = "mlp",
        channels: Sequence[int] = CHANNELS,
    ) -> None:
        super().__init__()
        self.encoders = module_dict(
            {g.name: Encoder(g.observation_space, g.num_agents, encoder, channels, True) for g in groups}
        )
        self.heads = module_dict({g.name: action_head(g.action_space, g.num_agents) for g in groups})
        widths = {g.name: g.num_agents * self.heads[g.name].encoded_dim for g in groups}
        joint_dim = sum(g.num_agents * self.encoders[g.name].out_features + widths[g.name] for g in groups)
        self.networks = module_dict(
            {
                g.name: StackedMLP(2 * g.num_agents, joint_dim, hidden_sizes, self._num_choices(g.name), activation)
                for g in groups
            }
        )
        for group in groups:  # which of all agents' action numbers are each agent's own, [A, sum A * U]
            own = torch.eye(group.num_agents).repeat_interleave(self.heads[group.name].encoded_dim, 1)
            others = {name: torch.zeros(group.num_agents, width) for name, width in widths.items()}
            blocks = list((others | {group.name: own}).values())
            self.register_buffer(f"own_{group.name}", torch.cat(blocks, 1).bool(), persistent=False)

    def _num_choices(self, name: str) -> int:
        """M."""
        head = self.heads[name]
        if isinstance(head, BoxHead):
            return 1
        number = math.prod(head.nvec)
        if number > MAX_CHOICES:
            raise ValueError(
                f"group {name!r} has {number} combinations of actions, but generator=sac values each of them and takes "
                f"at most {MAX_CHOICES}: choose another generator, or an environment with fewer"
            )
        return number

    def features(self, obs: ByGroup, action: ByGroup, alive: ByGroup) -> ByGroup:
        """What the critics see, ``[..., A, F]``, from normalised observations, actions and who is alive ``[..., A]``.

        Gradients flow to an agent's own action alone, never to the others'.
        """
        seen_obs = {name: encoder(obs[name]) for name, encoder in self.encoders.items()}
        encoded = {name: head.encode(action[name]) for name, head in self.heads.items()}
        joint_obs, joint_action = (
            torch.cat([(x[name] * alive[name].unsqueeze(-1)).flatten(-2) for name in self.heads], -1).unsqueeze(-2)
            for x in (seen_obs, encoded)
        )
        features = {}
        for name, head in self.heads.items():
            own = self.get_buffer(f"own_{name}")
            if isinstance(head, BoxHead):
                seen = torch.where(own, joint_action, joint_action.detach())
            else:
                seen = joint_action.detach() * ~own
            features[name] = torch.cat([joint_obs.expand(*seen.shape[:-1], -1), seen], -1)
        return features

    def forward(self, features: ByGroup) -> ByGroup:
        """Both critics' values of every choice, ``[B, 2, A, M]`` from ``[B, A, F]``."""
        return {
            name: network(torch.cat([features[name], features[name]], -2)).unflatten(-2, (2, -1))
            for name, network in self.networks.items()
        }

    def taken(self, name: str, values: Tensor, action: Tensor) -> Tensor:
        """Of the values ``[B, 2, A, M]`` of a group those of its actions ``[B, A, U]``: ``[B, 2, A]``."""
        head = self.heads[name]
        if isinstance(head, BoxHead):
            return values.squeeze(-1)
        choice = torch.zeros_like(action[..., 0])
        for factor, number in zip(action.unbind(-1), head.nvec, strict=True):
            choice = choice * number + factor
        return values.gather(-1, choice[:, None, :, None].expand(-1, 2, -1, -1)).squeeze(-1)
