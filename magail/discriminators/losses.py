"""Discriminator losses: small functions of logits that are high for the expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from magail.discriminators.priors import Prior
from magail.types import ByGroup


def bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy ``-[t log D + (1 - t) log(1 - D)]`` with D = sigmoid(logits), elementwise.

    GAIL's loss (Ho & Ermon 2016, arXiv 1606.03476, eq. 16) with the roles turned so that D is the expert's probability.
    """
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")


def gradient_penalty(prior: Prior, expert: ByGroup, generated: ByGroup, center: float = 0.0) -> Tensor:
    """Mean over batch, networks and heads of ``(||d logit / d features|| - center)^2`` between expert and generated.

    The points are uniform on the lines between pairs of expert and generated features ``[B, N, F]`` (Gulrajani et al.
    2017, arXiv 1704.00028: center 1; Mescheder et al. 2018, arXiv 1801.04406: center 0). The norm runs over a network's
    own features, never over the batch.
    """
    points: ByGroup = {}
    for name, x in expert.items():
        mix = torch.rand(x.shape[0], 1, 1, device=x.device)
        points[name] = (mix * x + (1 - mix) * generated[name]).detach().requires_grad_()
    penalties = []
    for name, logits in prior.raw_logits(points).items():  # [B, N, H]
        for head in logits.unbind(-1):
            (gradient,) = torch.autograd.grad(head.sum(), points[name], create_graph=True)  # [B, N, F]
            squared_norm = gradient.square().sum(-1)
            # the root has no gradient at zero, and a 0-centred penalty needs no root
            error = squared_norm if center == 0.0 else ((squared_norm + 1e-12).sqrt() - center).square()
            penalties.append(error.mean())
    return torch.stack(penalties).mean()
