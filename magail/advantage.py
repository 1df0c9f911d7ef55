"""Advantages and means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def goes_on(terminated: Tensor, truncated: Tensor, mask: Tensor) -> Tensor:
    """Whether what the agent did belongs to the same life as its next step; all are bool of one shape."""
    return mask & ~(terminated | truncated)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimates (Schulman et al. 2016, arXiv 1506.02438, eq. 16), ``[T, E, A]`` like every input.

    ``next_value`` is the value of the true successor. It is taken unless the agent *terminated*; the trace is cut where
    the agent terminated or was truncated. Rows of dead agents (``mask`` false) are zero.
    """
    delta = (reward + gamma * next_value * ~terminated - value) * mask
    carry = gamma * gae_lambda * goes_on(terminated, truncated, mask)
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = advantage[t] = delta[t] + carry[t] * following
    return advantage


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``x`` over the elements where ``mask`` is true (over axis ``dim``, or all); 0 where there is none."""
    dims = tuple(range(x.dim())) if dim is None else (dim,)
    return (x * mask).sum(dims) / mask.sum(dims).clamp(min=1)


def correlation(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation ``[A]`` of ``x`` and ``y [T, E, A]`` over each agent's living steps; 0 for a constant."""
    x, y, mask = (z.flatten(0, 1) for z in (x, y, mask))
    x, y = ((z - masked_mean(z, mask, 0)) * mask for z in (x, y))
    return (x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt().clamp(min=1e-12)


def mean_info(infos: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each named number over an update's steps."""
    return {key: torch.stack([info[key] for info in infos]).mean().item() for key in infos[0]}


def normalize_per_agent(advantage: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance per agent over the batch, ``[B, A]``; rows of dead agents stay zero."""
    mean = masked_mean(advantage, mask, dim=0)
    var = masked_mean((advantage - mean).square(), mask, dim=0)
    return (advantage - mean) / (var.sqrt() + 1e-8) * mask
