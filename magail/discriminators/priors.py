"""Priors on the reward's structure: what each discriminator sees (Song et al. 2018, arXiv 1807.09936, section 4.2).

A prior turns transitions into *features*, the inputs of its networks, and features into logits per agent. Logits are
high for the expert. Features are ``[B, N, F]`` for N networks; a network has H heads.

| prior | features | networks | heads | logits |
|---|---|---|---|---|
| `Decentralized` | own observation and action | one an agent | 1 | own |
| `Centralized` | all observations and actions | 1 | one an agent | head k to agent k |
| `Single` | all observations and actions | 1 | 1 | the same to all |
| `ZeroSum` | all observations and actions | 1 | 1 | the same to all, but the second side's reward is negated |

*Inputs* say what of a transition is seen: ``obs`` and ``action`` by default; ``obs, next_obs`` imitates from
observation alone (Torabi et al. 2018, arXiv 1807.06158), ``obs`` alone gives a reward of the state (AIRL's for
transfer), and ``terminated`` shows whether the episode ended there by the environment's choice, without which a task
that ends early rewards or punishes survival by its reward's sign alone (Kostrikov et al. 2019, arXiv 1809.02925).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from magail.discriminators.regularizers import spectrally_normalized, with_dropout
from magail.distributions import action_head
from magail.networks import (
    CHANNELS,
    Encoder,
    StackedMLP,
    image_layout,
    module_dict,
    obs_normalizer,
    update_normalizers,
)
from magail.policy import Policy
from magail.ranges import check_range
from magail.types import AgentGroup, ByGroup, JointTransition, Transition


class Labelled(NamedTuple):
    """What is to be told apart from others."""

    batch: JointTransition  # [B]
    target: float  # the probability with which it should be called the expert's
    source: str  # whose steps, and ends of episodes, these are: "expert" or "generated"


INPUTS = ("obs", "action", "next_obs", "terminated")
ABSORBING = 2.0  # what no observation and one-hot action are in all of their numbers
SEEN = {"obs", "next_obs"}  # those that other agents' features may be joined to, in `Decentralized`


@dataclass(frozen=True)
class Block:
    """A stretch of a network's inputs: what one agent saw, or did."""

    width: int
    image: AgentGroup | None = None  # whose agents see images, where it is one


class _OnImages(nn.Module):
    """An MLP behind convolutions for those blocks of its inputs that are images, the same for all of one group's."""

    def __init__(self, blocks: Sequence[Block], encoders: dict[str, Encoder], mlp: StackedMLP) -> None:
        super().__init__()
        self.blocks, self.encoders, self.mlp = list(blocks), module_dict(encoders), mlp

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, F]`` to ``[B, N, H]``."""
        parts = x.split([block.width for block in self.blocks], -1)
        seen = [
            self.encoders[block.image.name](part) if block.image else part
            for block, part in zip(self.blocks, parts, strict=True)
        ]
        return self.mlp(torch.cat(seen, -1))


class Prior(nn.Module):
    """Common ground of the priors: encoding of transitions with fixed observation statistics, and networks.

    Images among the observations go through convolutions (`Encoder`).

    Raises:
        ValueError: an unknown or missing input, an unknown encoder, or a regulariser out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        hidden_sizes: Sequence[int],
        activation: str,
        inputs: Sequence[str] = ("obs", "action"),
        encoder: str = "mlp",
        channels: Sequence[int] = CHANNELS,
        spectral_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not inputs or not set(inputs) <= set(INPUTS) or len(set(inputs)) < len(inputs):
            raise ValueError(
                f"discriminator.prior.inputs={list(inputs)}: give one or more of {', '.join(INPUTS)}, each once"
            )
        check_range({"discriminator.prior.dropout": dropout}, 0, 0.99)
        self.groups, self.inputs = tuple(groups), tuple(inputs)
        self.hidden_sizes, self.activation = list(hidden_sizes), activation
        self.encoder, self.channels = encoder, list(channels)
        self.spectral_norm, self.dropout = spectral_norm, dropout
        self.heads = module_dict({g.name: action_head(g.action_space, g.num_agents) for g in groups})
        self.normalizers = module_dict({g.name: obs_normalizer(g.observation_space, encoder) for g in groups})

    @property
    def options(self) -> dict[str, Any]:
        """The arguments, besides the groups, that build the same prior again."""
        names = ("hidden_sizes", "activation", "inputs", "encoder", "channels", "spectral_norm", "dropout")
        return {name: getattr(self, name) for name in names}

    def fit_normalizers(self, demonstrations: JointTransition) -> None:
        """Take the observation statistics of the demonstrations; they stay fixed from here."""
        update_normalizers(self.normalizers, demonstrations)

    def encode(self, batch: JointTransition, inputs: Sequence[str]) -> ByGroup:
        """What each agent saw and did itself, ``[B, A, F]``; zero for the dead."""
        return {
            name: torch.cat([self._encode(name, group, kind) for kind in inputs], -1) * group.mask.unsqueeze(-1)
            for name, group in batch.groups.items()
        }

    def _encode(self, name: str, group: Transition, kind: str) -> Tensor:
        if kind == "action":
            return self.heads[name].encode(group.action)
        if kind == "terminated":
            return group.terminated.float().unsqueeze(-1)
        return self.normalizers[name](getattr(group, kind))

    def encode_joint(self, batch: JointTransition, inputs: Sequence[str]) -> Tensor:
        """What all agents saw and did, ``[B, 1, sum A * F]``."""
        return torch.cat([x.flatten(-2) for x in self.encode(batch, inputs).values()], -1).unsqueeze(-2)

    def blocks(self, group: AgentGroup, inputs: Sequence[str]) -> list[Block]:
        """What lies in the F of `encode`."""
        observed = Block(group.obs_dim, group if image_layout(group.observation_space, self.encoder) else None)
        others = {"action": Block(self.heads[group.name].encoded_dim), "terminated": Block(1)}
        return [others.get(kind, observed) for kind in inputs]

    def joint_blocks(self, inputs: Sequence[str]) -> list[Block]:
        """What lies in the F of `encode_joint`."""
        return [block for group in self.groups for block in group.num_agents * self.blocks(group, inputs)]

    def network(self, num_nets: int, blocks: Sequence[Block], heads: int, share_parameters: bool = False) -> nn.Module:
        """Networks side by side, with the regularisers that the options ask for: ``[B, N, F]`` to ``[B, N, H]``.

        Raises:
            ValueError: spectral norms for convolutions.
        """
        encoders = {
            block.image.name: Encoder(
                block.image.observation_space, num_nets, self.encoder, self.channels, share_parameters
            )
            for block in blocks
            if block.image
        }
        if encoders and self.spectral_norm:
            raise ValueError(
                "discriminator.prior.spectral_norm is not there for convolutions: choose another regulariser, such as "
                "discriminator.gradient_penalty, or discriminator.prior.encoder=mlp"
            )
        features = sum(encoders[block.image.name].out_features if block.image else block.width for block in blocks)
        mlp = StackedMLP(num_nets, features, self.hidden_sizes, heads, self.activation, 1.0, share_parameters)
        if self.spectral_norm:
            mlp = spectrally_normalized(mlp)
        if self.dropout:
            mlp = with_dropout(mlp, self.dropout)
        return _OnImages(blocks, encoders, mlp) if encoders else mlp

    def labelled(self, generated: JointTransition, expert: JointTransition, policy: Policy) -> list[Labelled]:
        """The batches to tell apart."""
        return [Labelled(expert, 1.0, "expert"), Labelled(generated, 0.0, "generated")]

    def features(self, batch: JointTransition) -> ByGroup:
        """Inputs ``[B, N, F]`` of each of the prior's networks.

        Of absorbing steps they are `ABSORBING` throughout: zeros could be a state like any other.
        """
        features = self._features(batch)
        return {name: torch.full_like(x, ABSORBING) for name, x in features.items()} if batch.absorbing else features

    def _features(self, batch: JointTransition) -> ByGroup:
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
    """Each agent is judged by itself: by its own observation and action, or with ``joint_observation`` by its own
    action in view of everyone's observations.

    With ``share_parameters`` the agents of a group share one discriminator (PS-GAIL, Bhattacharyya et al. 2018).
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        share_parameters: bool = False,
        joint_observation: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(groups, **options)
        self.share_parameters, self.joint_observation = share_parameters, joint_observation
        shared = [kind for kind in self.inputs if joint_observation and kind in SEEN]
        self.own, self.shared = [kind for kind in self.inputs if kind not in shared], shared
        self.networks = module_dict(
            {
                g.name: self.network(
                    g.num_agents, self.joint_blocks(shared) + self.blocks(g, self.own), 1, share_parameters
                )
                for g in groups
            }
        )

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {
            "share_parameters": self.share_parameters,
            "joint_observation": self.joint_observation,
        }

    def _features(self, batch: JointTransition) -> ByGroup:
        if not self.shared:
            return self.encode(batch, self.own)
        seen = self.encode_joint(batch, self.shared)  # [B, 1, F]
        features = {}
        for name, group in batch.groups.items():
            parts = [seen * group.mask.unsqueeze(-1)]
            if self.own:
                parts.append(self.encode(batch, self.own)[name])
            features[name] = torch.cat(parts, -1)
        return features

    def raw_logits(self, features: ByGroup) -> ByGroup:
        return {name: network(features[name]) for name, network in self.networks.items()}

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        return {name: raw.squeeze(-1) for name, raw in raw_logits.items()}


class _Joint(Prior):
    """One network on everything that all agents see and do."""

    def __init__(self, groups: Sequence[AgentGroup], **options: Any) -> None:
        super().__init__(groups, **options)
        self.judge = self.network(1, self.joint_blocks(self.inputs), self.num_heads)

    @property
    def num_heads(self) -> int:
        return 1

    def _features(self, batch: JointTransition) -> ByGroup:
        return {"joint": self.encode_joint(batch, self.inputs)}

    def raw_logits(self, features: ByGroup) -> ByGroup:
        return {"joint": self.judge(features["joint"])}


class Centralized(_Joint):
    """Each agent is judged by a head of its own on everything that all agents see and do."""

    @property
    def num_heads(self) -> int:
        return sum(group.num_agents for group in self.groups)

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        heads = raw_logits["joint"].squeeze(-2)  # [B, sum A]
        parts = heads.split([group.num_agents for group in self.groups], dim=-1)
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}


class Single(_Joint):
    """All agents are judged alike, by one logit on everything that they see and do."""

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        logit = raw_logits["joint"].squeeze(-2)  # [B, 1]
        return {group.name: logit.expand(-1, group.num_agents) for group in self.groups}


class ZeroSum(Single):
    """Two sides, one logit: what one side gains the other loses, so rewards sum to zero over the sides.

    Trained on the expert's states only: the first side's expert actions with the second side's generated ones should be
    called the expert's (1), the reverse should not (0), and expert against expert is even (0.5). ``first_side`` names
    the groups whose agents each receive +r, all others receive -r; None takes the first group.

    Raises:
        ValueError: an environment with a single group, sides that leave one empty or name unknown groups, or inputs
            without the action or with the next observation.
    """

    def __init__(
        self, groups: Sequence[AgentGroup], *, first_side: Sequence[str] | None = None, **options: Any
    ) -> None:
        super().__init__(groups, **options)
        if "action" not in self.inputs or "next_obs" in self.inputs:
            raise ValueError(
                "the zero-sum prior pairs one side's actions with the other's in the same state, so "
                f"discriminator.prior.inputs={list(self.inputs)} must have action and cannot have next_obs"
            )
        names = [group.name for group in groups]
        if len(names) < 2:
            raise ValueError(
                f"the zero-sum prior needs two sides, but the environment has the single group {names[0]!r}; "
                "choose discriminator=decentralized, centralized or single"
            )
        if first_side is None and len(names) > 2:
            raise ValueError(
                f"discriminator.prior.first_side is needed where there are more than two groups: name those of {names} "
                "that play together"
            )
        self.first_side = set(names[:1] if first_side is None else first_side)
        if not self.first_side or not self.first_side < set(names):
            raise ValueError(
                f"discriminator.prior.first_side={sorted(self.first_side)} must name some, but not all, of the "
                f"environment's groups {names}"
            )

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"first_side": sorted(self.first_side)}

    def sign(self, group: str) -> float:
        return 1.0 if group in self.first_side else -1.0

    def labelled(self, generated: JointTransition, expert: JointTransition, policy: Policy) -> list[Labelled]:
        action, _ = policy.act(expert.field("obs"))
        second_side = set(expert.groups) - self.first_side
        return [
            Labelled(_with_actions(expert, action, second_side), 1.0, "expert"),
            Labelled(expert, 0.5, "expert"),
            Labelled(_with_actions(expert, action, self.first_side), 0.0, "expert"),
        ]


def _with_actions(batch: JointTransition, action: ByGroup, names: set[str]) -> JointTransition:
    """``batch`` with the actions of the groups ``names`` replaced."""
    return JointTransition(
        {
            name: dataclasses.replace(group, action=action[name]) if name in names else group
            for name, group in batch.groups.items()
        }
    )
