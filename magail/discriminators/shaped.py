"""Adversarial inverse reinforcement learning: a reward apart from the dynamics, by potential shaping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from magail.discriminators.priors import Decentralized, Labelled, Prior, ZeroSum
from magail.discriminators.regularizers import FLAG
from magail.policy import Policy
from magail.types import AgentGroup, ByGroup, JointTransition

LEFT, REACHED = FLAG + "left", FLAG + "reached"  # the weights of h(s) and of h(s')


class Shaped(nn.Module):
    """``f(s, a, s') = g + discount * h(s') - h(s)`` per agent; no h(s') where the agent terminated.

    The state that follows on a termination for ever has no potential either: f is g there. Else potentials would pay
    for the length of an episode.

    AIRL's reward (Fu et al. 2018, arXiv 1710.11248, eq. 4) and, per agent, MA-AIRL's (Yu et al. 2019, 1907.13220).
    Whoever trains it subtracts ``log pi(a|s)`` from the logits: D = exp(f) / (exp(f) + pi). ``g`` is the
    ``prior`` on its own inputs, ``h`` the same prior on the observations alone.

    It is used like a `Prior`: features ``{part/network: [B, N, F]}``, and raw logits ``[B, A, 1]`` a group where every
    agent has a network of its own, ``[B, 1, A]`` where one network judges all.

    Raises:
        ValueError: the zero-sum prior, which is not trained on what the policies do.
    """

    def __init__(self, groups: Sequence[AgentGroup], prior: Callable[..., Prior], discount: float) -> None:
        super().__init__()
        self.groups, self.discount = tuple(groups), discount
        self.g = prior(groups=groups)
        if isinstance(self.g, ZeroSum):
            raise ValueError("AIRL needs a prior that judges what the policies do: not zero_sum, but another one")
        self.h = prior(groups=groups, inputs=["obs"])
        self._axis = -1 if isinstance(self.g, Decentralized) else -2

    def fit_normalizers(self, demonstrations: JointTransition) -> None:
        self.g.fit_normalizers(demonstrations)
        self.h.fit_normalizers(demonstrations)

    def labelled(self, generated: JointTransition, expert: JointTransition, policy: Policy) -> list[Labelled]:
        return self.g.labelled(generated, expert, policy)

    def sign(self, group: str) -> float:
        return self.g.sign(group)

    def features(self, batch: JointTransition) -> ByGroup:
        parts = {"g": self.g.features(batch), "h": self.h.features(batch), "next": self.h.features(_moved_on(batch))}
        features = {f"{part}/{name}": x for part, of_part in parts.items() for name, x in of_part.items()}
        for name, ended in batch.field("terminated").items():  # [B, A]
            left = torch.full_like(ended, not batch.absorbing)
            features[f"{LEFT}/{name}"] = left.float().unsqueeze(-1)
            features[f"{REACHED}/{name}"] = self.discount * (left & ~ended).unsqueeze(-1)
        return features

    def raw_logits(self, features: ByGroup) -> ByGroup:
        g = self.g.by_agent(self.g.raw_logits(_part(features, "g")))
        h = self.h.by_agent(self.h.raw_logits(_part(features, "h")))
        after = self.h.by_agent(self.h.raw_logits(_part(features, "next")))
        left, reached = (_flags(features, kind) for kind in (LEFT, REACHED))
        return {n: (g[n] + reached[n] * after[n] - left[n] * h[n]).unsqueeze(self._axis) for n in g}

    def by_agent(self, raw_logits: ByGroup) -> ByGroup:
        return {name: raw.squeeze(self._axis) for name, raw in raw_logits.items()}

    def forward(self, batch: JointTransition) -> ByGroup:
        """f, ``[B, A]`` a group."""
        return self.by_agent(self.raw_logits(self.features(batch)))


def _part(features: ByGroup, part: str) -> ByGroup:
    return {name.removeprefix(f"{part}/"): x for name, x in features.items() if name.startswith(f"{part}/")}


def _flags(features: ByGroup, kind: str) -> ByGroup:
    """``[B, A]`` a group, without gradients, which a penalty should not see."""
    return {name: x.squeeze(-1).detach() for name, x in _part(features, kind).items()}


def _moved_on(batch: JointTransition) -> JointTransition:
    """``batch`` with the next observations in place of the observations, and without those who terminated."""
    groups = {
        name: dataclasses.replace(group, obs=group.next_obs, mask=group.lives_on)
        for name, group in batch.groups.items()
    }
    return dataclasses.replace(batch, groups=groups)
