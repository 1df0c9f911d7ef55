"""Action distributions: what an actor's outputs mean for each kind of action space.

A *head* belongs to an action space. It says how many numbers an actor must put out (``num_outputs``), turns them into a
distribution, and encodes actions as the vectors that discriminators see.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn


class Distribution(Protocol):
    """Distribution over the actions ``[..., A, U]`` of a group; log-probabilities and entropies are ``[..., A]``."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor: ...


class Categorical:
    """K independent categoricals, ``nvec`` choices each; ``logits [..., A, sum(nvec)]``, actions ``[..., A, K]``."""

    def __init__(self, logits: Tensor, nvec: list[int]) -> None:
        self.log_probs = [_log_softmax(part) for part in logits.split(nvec, dim=-1)]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([_inverse_cdf(p.exp().cumsum(-1), generator) for p in self.log_probs], -1)

    def mode(self) -> Tensor:
        return torch.stack([p.argmax(-1) for p in self.log_probs], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        parts = zip(self.log_probs, action.unbind(-1), strict=True)
        return torch.stack([p.gather(-1, a.unsqueeze(-1)).squeeze(-1) for p, a in parts]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([-(p.exp() * p).sum(-1) for p in self.log_probs]).sum(0)


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis of ``[..., A, n]``; torch's own takes ten times as long on a stack's outputs, batch last."""
    return logits.movedim((-2, -1), (0, 1)).log_softmax(1).movedim((0, 1), (-2, -1))


def _inverse_cdf(cumulated: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws ``[...]`` from distributions with the cumulated probabilities ``[..., n]``: one uniform number each."""
    uniform = torch.rand(cumulated.shape[:-1], generator=generator, device=cumulated.device)
    return (cumulated[..., :-1] <= uniform.unsqueeze(-1)).sum(-1)


class Gaussian:
    """Diagonal Gaussian in the units in which the action box is [-1, 1]; actions are in the environment's units.

    ``mean`` and ``log_std`` are ``[..., A, U]``. Actions are not clipped here: the environment clips them, so that
    the log-probability stays that of the number drawn.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, center: Tensor, scale: Tensor) -> None:
        self.mean, self.log_std, self.center, self.scale = mean, log_std.expand_as(mean), center, scale

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.center + self.scale * (self.mean + self.log_std.exp() * noise)

    def mode(self) -> Tensor:
        return self.center + self.scale * self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        z = ((action - self.center) / self.scale - self.mean) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + self.scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class DiscreteHead(nn.Module):
    """Discrete and MultiDiscrete action spaces."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__()
        nvec = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec.ravel()]
        self.nvec = nvec
        self.num_outputs = self.encoded_dim = sum(nvec)

    def forward(self, outputs: Tensor) -> Categorical:
        """``outputs [..., A, sum(nvec)]`` are the logits."""
        return Categorical(outputs, self.nvec)

    def encode(self, action: Tensor) -> Tensor:
        """Concatenated one-hot vectors, ``[..., A, K] -> [..., A, sum(nvec)]``."""
        parts = zip(action.unbind(-1), self.nvec, strict=True)
        return torch.cat([F.one_hot(a, n).float() for a, n in parts], -1)

    def executed(self, action: Tensor) -> Tensor:
        """The action as the environment takes it: the same."""
        return action

    def uniform(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Uniformly random actions ``[*shape, K]``."""
        return Categorical(torch.zeros(*shape, self.num_outputs), self.nvec).sample(generator)


class BoxHead(nn.Module):
    """Box action spaces: a Gaussian whose mean the network gives and whose spread is a parameter per action number.

    Sides without a finite bound keep the environment's own units.
    """

    low: Tensor
    high: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, space: spaces.Box, num_agents: int, initial_log_std: float = -0.5) -> None:
        super().__init__()
        low, high = (np.asarray(bound, np.float32).ravel() for bound in (space.low, space.high))
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.register_buffer("low", torch.as_tensor(space.low, dtype=torch.float32).flatten(), persistent=False)
        self.register_buffer("high", torch.as_tensor(space.high, dtype=torch.float32).flatten(), persistent=False)
        self.register_buffer("center", torch.as_tensor((high + low) / 2, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.as_tensor((high - low) / 2, dtype=torch.float32), persistent=False)
        self.log_std = nn.Parameter(torch.full((num_agents, len(low)), initial_log_std))
        self.num_outputs = self.encoded_dim = len(low)

    def forward(self, outputs: Tensor) -> Gaussian:
        """``outputs [..., A, U]`` are the means."""
        return Gaussian(outputs, self.log_std, self.center, self.scale)

    def encode(self, action: Tensor) -> Tensor:
        """`executed` actions ``[..., A, U]`` in units where the box is [-1, 1].

        Unclipped, a discriminator could tell an expert recorded within the bounds by that alone.
        """
        return (self.executed(action) - self.center) / self.scale

    def executed(self, action: Tensor) -> Tensor:
        """The action as the environment takes it: clipped to the box."""
        return action.clamp(self.low, self.high)

    def uniform(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Uniformly random actions ``[*shape, U]``; in [-1, 1] where a side has no bound."""
        return self.center + self.scale * (2 * torch.rand(*shape, self.num_outputs, generator=generator) - 1)


Head = DiscreteHead | BoxHead


def action_head(space: spaces.Space[Any], num_agents: int) -> Head:
    """The head for an action space (`AgentGroup` admits no others)."""
    if isinstance(space, spaces.Box):
        return BoxHead(space, num_agents)
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    return DiscreteHead(space)
