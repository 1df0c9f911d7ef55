"""Priors on the reward's structure: what each discriminator sees (Song et al. 2018, arXiv 1807.09936, section 4.2).

A prior turns transitions into *features*, the inputs of its networks, and features into logits per agent. Logits are
high for the expert. Features are ``[B, N, F]`` for N networks; a network has H heads.

| prior | features | networks | heads | logits |
|---|---|---|---|---|
| `Decentralized` | own observation and action | one an agent | 1 | own |
| `Centralized` | all observations and actions | 1 | one an agent | head k to agent k |
| `Single` | all observations and actions | 1 | 1 | the same to all |
| `ZeroSum` | all observations and actions | 1 | 1 | the same to all, but the second side's reward is negated |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from magail.distributions import action_head
from magail.networks import RunningNormalizer, StackedMLP, module_dict, update_normalizers
from magail.policy import Policy
from magail.types import AgentGroup, ByGroup, JointTransition

Labelled = tuple[JointTransition, float]
"""A batch ``[B]`` and the probability with which it should be called the expert's."""


class Prior(nn.Module):
    """Common ground of the priors: encoding of observation-action pairs with fixed observation statistics."""

    def __init__(self, groups: Sequence[AgentGroup]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.heads = module_dict({g.name: action_head(g.action_space, g.num_agents) for g in groups})
        self.normalizers = module_dict({g.name: RunningNormalizer((g.obs_dim,)) for g in groups})
        self.feature_dims = {g.name: g.obs_dim + self.heads[g.name].encoded_dim for g in groups}

    def fit_normalizers(self, demonstrations: JointTransition) -> None:
        """Take the observation statistics of the demonstrations; they stay fixed from here."""
        update_normalizers(self.normalizers, demonstrations)

    def encode(self, batch: JointTransition) -> ByGroup:
        """Own observation and action of each agent, ``[B, A, F]``; zero for the dead."""
        return {
            name: torch.cat([self.normalizers[name](g.obs), self.heads[name].encode(g.action)], -1)
            * g.mask.unsqueeze(-1)
            for name, g in batch.groups.items()
        }

    def encode_joint(self, batch: JointTransition) -> Tensor:
        """Observations and actions of all agents, ``[B, 1, sum A * F]``."""
        return torch.cat([x.flatten(-2) for x in self.encode(batch).values()], -1).unsqueeze(-2)

    @property
    def joint_dim(self) -> int:
        return sum(group.num_agents * self.feature_dims[group.name] for group in self.groups)

    def labelled(self, generated: JointTransition, expert: JointTransition, policy: Policy) -> list[Labelled]:
        """The batches to tell apart."""
        return [(expert, 1.0), (generated, 0.0)]

    def features(self, batch: JointTransition) -> ByGroup:
        """Inputs ``[B, N, F]`` of each of the prior's networks."""
        raise NotImplementedError

    def raw_logits(self, features: ByGroup) -> ByGroup:
        """Outputs ``[B, N, H]`` of each of the prior's networks."""
        raise NotImplementedError

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        """The networks' outputs as logits ``[B, A]`` a group."""
        raise NotImplementedError

    def sign(self, group: str) -> float:
        """What the group's rewards are multiplied by."""
        return 1.0

    def forward(self, batch: JointTransition) -> ByGroup:
        """Logits ``[B, A]`` a group of a batch ``[B]``."""
        return self.by_agent(self.raw_logits(self.features(batch)))


class Decentralized(Prior):
    """Each agent is judged by its own observation and action alone.

    With ``share_parameters`` the agents of a group share one discriminator (PS-GAIL, Bhattacharyya et al. 2018).
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        hidden_sizes: Sequence[int],
        activation: str,
        share_parameters: bool = False,
    ) -> None:
        super().__init__(groups)
        self.networks = module_dict(
            {
                g.name: StackedMLP(
                    g.num_agents, self.feature_dims[g.name], hidden_sizes, 1, activation, 1.0, share_parameters
                )
                for g in groups
            }
        )

    def features(self, batch: JointTransition) -> ByGroup:
        return self.encode(batch)

    def raw_logits(self, features: ByGroup) -> ByGroup:
        return {name: network(features[name]) for name, network in self.networks.items()}

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        return {name: raw.squeeze(-1) for name, raw in raw_logits.items()}


class _Joint(Prior):
    """One network on everything that all agents see and do."""

    def __init__(
        self, groups: Sequence[AgentGroup], hidden_sizes: Sequence[int], activation: str, num_heads: int
    ) -> None:
        super().__init__(groups)
        self.network = StackedMLP(1, self.joint_dim, hidden_sizes, num_heads, activation)

    def features(self, batch: JointTransition) -> ByGroup:
        return {"joint": self.encode_joint(batch)}

    def raw_logits(self, features: ByGroup) -> ByGroup:
        return {"joint": self.network(features["joint"])}


class Centralized(_Joint):
    """Each agent is judged by a head of its own on everything that all agents see and do."""

    def __init__(self, groups: Sequence[AgentGroup], hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__(groups, hidden_sizes, activation, sum(group.num_agents for group in groups))

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        heads = raw_logits["joint"].squeeze(-2)  # [B, sum A]
        parts = heads.split([group.num_agents for group in self.groups], dim=-1)
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}


class Single(_Joint):
    """All agents are judged alike, by one logit on everything that they see and do."""

    def __init__(self, groups: Sequence[AgentGroup], hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__(groups, hidden_sizes, activation, 1)

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        logit = raw_logits["joint"].squeeze(-2)  # [B, 1]
        return {group.name: logit.expand(-1, group.num_agents) for group in self.groups}


class ZeroSum(Single):
    """Two sides, one logit: what one side gains the other loses, so rewards sum to zero over the sides.

    Trained on the expert's states only: the first side's expert actions with the second side's generated ones should be
    called the expert's (1), the reverse should not (0), and expert against expert is even (0.5). ``first_side`` names
    the groups whose agents each receive +r, all others receive -r; None takes the first group.

    Raises:
        ValueError: an environment with a single group, or sides that leave one empty or name unknown groups.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        hidden_sizes: Sequence[int],
        activation: str,
        first_side: Sequence[str] | None = None,
    ) -> None:
        super().__init__(groups, hidden_sizes, activation)
        names = [group.name for group in groups]
        if len(names) < 2:
            raise ValueError(
                f"the zero-sum prior needs two sides, but the environment has the single group {names[0]!r}; "
                "choose discriminator=decentralized, centralized or single"
            )
        self.first_side = set(names[:1] if first_side is None else first_side)
        if not self.first_side or not self.first_side < set(names):
            raise ValueError(
                f"discriminator.prior.first_side={sorted(self.first_side)} must name some, but not all, of the "
                f"environment's groups {names}"
            )

    def sign(self, group: str) -> float:
        return 1.0 if group in self.first_side else -1.0

    def labelled(self, generated: JointTransition, expert: JointTransition, policy: Policy) -> list[Labelled]:
        action, _ = policy.act(expert.field("obs"))
        second_side = set(expert.groups) - self.first_side
        return [
            (_with_actions(expert, action, second_side), 1.0),
            (expert, 0.5),
            (_with_actions(expert, action, self.first_side), 0.0),
        ]


def _with_actions(batch: JointTransition, action: ByGroup, names: set[str]) -> JointTransition:
    """``batch`` with the actions of the groups ``names`` replaced."""
    return JointTransition(
        {
            name: dataclasses.replace(group, action=action[name]) if name in names else group
            for name, group in batch.groups.items()
        }
    )
