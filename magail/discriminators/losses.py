"""Discriminator losses: small functions of logits that are high for the expert.

``loss(logits [...], target [...])`` is elementwise; the target is how much of the expert there is in an example, from 0
(generated) to 1 (the expert's).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy ``-[t log D + (1 - t) log(1 - D)]`` with D = sigmoid(logits).

    GAIL's loss (Ho & Ermon 2016, arXiv 1606.03476, eq. 16) with the roles turned so that D is the expert's probability.
    """
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def wasserstein(logits: Tensor, target: Tensor) -> Tensor:
    """``(1 - 2 t) logits``: the mean difference of the critic's values (Arjovsky et al. 2017, arXiv 1701.07875, eq. 2).

    It has no bound of its own: it needs a gradient penalty, 1-centred as in WGAN-GP, or spectral norms.
    """
    return (1 - 2 * target) * logits


def least_squares(logits: Tensor, target: Tensor) -> Tensor:
    """``(logits - (2 t - 1))^2``: 1 for the expert, -1 for generated (Mao et al. 2017, arXiv 1611.04076, eq. 8)."""
    return (logits - (2 * target - 1)).square()


def hinge(logits: Tensor, target: Tensor) -> Tensor:
    """``t max(0, 1 - logits) + (1 - t) max(0, 1 + logits)`` (Lim & Ye 2017, arXiv 1705.02894)."""
    return target * F.relu(1 - logits) + (1 - target) * F.relu(1 + logits)
