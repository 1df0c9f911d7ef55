"""Imitation rewards: small functions of logits that are high for the expert. D is sigmoid(logits)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logit(logits: Tensor) -> Tensor:
    """``log D - log(1 - D)``: AIRL's reward (Fu et al. 2018, arXiv 1710.11248). Of either sign, so no survival bias."""
    return logits


def log_d(logits: Tensor) -> Tensor:
    """``log D``: negative everywhere, so it pays for an early end."""
    return F.logsigmoid(logits)


def softplus(logits: Tensor) -> Tensor:
    """``-log(1 - D)``: GAIL's reward (Ho & Ermon 2016); positive everywhere, so it pays for staying alive."""
    return F.softplus(logits)


def symmetric(logits: Tensor) -> Tensor:
    """``2 D - 1``, within (-1, 1): the reward of the original MAGAIL code."""
    return 2 * torch.sigmoid(logits) - 1


def dail(logits: Tensor) -> Tensor:
    """``D (tanh(logits) + 1) / 2``, within (0, 1): the discovered reward of DAIL (arXiv 2510.00922)."""
    return torch.sigmoid(logits) * (torch.tanh(logits) + 1) / 2
