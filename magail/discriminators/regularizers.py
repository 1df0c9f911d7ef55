"""What keeps a discriminator from learning the demonstrations by heart; each is a small part, and they compose.

`gradient_penalty` adds to the loss; `with_noise`, `smoothed` and `mixed` change the examples; `spectrally_normalized`
and `with_dropout` change the networks. Weight decay is the optimizer's; replay of the last rounds and the pause above
an accuracy are the `Discriminator`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from magail.networks import StackedLinear, StackedMLP
from magail.types import ByGroup

FLAG = "flag/"  # begins the names of features that say what a step is, not what was observed in it


@dataclass
class Examples:
    """What the discriminator is shown, and what it should call it."""

    features: ByGroup  # [B, N, F], inputs of the prior's networks
    weight: ByGroup  # [B, A], how many steps each logit stands for; 0 for the dead
    target: Tensor  # [B, 1], or [] where all are alike: how much of the expert there is in it, 0 to 1
    log_prob: ByGroup  # [B, A] of the actions under the policy; only AIRL looks


def joined(parts: Sequence[Examples]) -> Examples:
    """One behind the other."""

    def join(field: str) -> ByGroup:
        values = [getattr(part, field) for part in parts]
        return {name: torch.cat([value[name] for value in values]) for name in values[0]}

    return Examples(
        features=join("features"),
        weight=join("weight"),
        target=torch.cat([part.target.expand(_rows(part), 1) for part in parts]),
        log_prob=join("log_prob"),
    )


def _rows(examples: Examples) -> int:
    """B."""
    return len(next(iter(examples.weight.values())))


def with_noise(examples: Examples, std: float) -> Examples:
    """Gaussian noise on the features, whose observations have unit variance (Arjovsky & Bottou 2017, 1701.04862)."""
    noisy = {
        name: x if name.startswith(FLAG) else x + std * torch.randn_like(x) for name, x in examples.features.items()
    }
    return replace(examples, features=noisy)


def smoothed(examples: Examples, amount: float) -> Examples:
    """Targets moved towards one half: 0 to ``amount``, 1 to 1 - ``amount`` (Salimans et al. 2016, arXiv 1606.03498)."""
    return replace(examples, target=amount + (1 - 2 * amount) * examples.target)


def mixed(expert: Examples, generated: Examples, alpha: float) -> Examples:
    """Mixtures of pairs, ``w`` of the expert's and ``1 - w`` of the generated one, called ``w``; ``w ~ Beta(a, a)``.

    mixup (Zhang et al. 2018, arXiv 1710.09412), for imitation as in Orsini et al. 2021 (arXiv 2106.00672).
    """
    beta = torch.distributions.Beta(alpha, alpha)
    share = beta.sample((_rows(expert), 1)).to(expert.target.device)  # [B, 1], of the expert
    return Examples(
        features={
            name: share.unsqueeze(-1) * x + (1 - share.unsqueeze(-1)) * generated.features[name]
            for name, x in expert.features.items()
        },
        weight={name: 2 * x * generated.weight[name] for name, x in expert.weight.items()},  # of two living ones
        target=share * expert.target + (1 - share) * generated.target,
        log_prob=expert.log_prob,
    )


def between(expert: ByGroup, generated: ByGroup) -> ByGroup:
    """Points on the lines between pairs of features, uniformly (Gulrajani et al. 2017, arXiv 1704.00028, alg. 1)."""
    some = next(iter(expert.values()))
    share = torch.rand(len(some), 1, 1, device=some.device)
    return {name: share * x + (1 - share) * generated[name] for name, x in expert.items()}


def at_expert(expert: ByGroup, generated: ByGroup) -> ByGroup:
    """The expert's features: with center 0 the R1 penalty (Mescheder et al. 2018, arXiv 1801.04406, eq. 9)."""
    return expert


POINTS: dict[str, Callable[[ByGroup, ByGroup], ByGroup]] = {"between": between, "expert": at_expert}


def gradient_penalty(raw_logits: Callable[[ByGroup], ByGroup], points: ByGroup, center: float = 0.0) -> Tensor:
    """Mean over batch, networks and heads of ``(||d logit / d features|| - center)^2`` at ``points [B, N, F]``.

    The norm runs over all features of one network, never over the batch.
    """
    points = {name: x.detach().requires_grad_() for name, x in points.items()}
    penalties = []
    for logits in raw_logits(points).values():  # [B, N, H]
        for head in logits.unbind(-1):
            gradients = torch.autograd.grad(head.sum(), list(points.values()), create_graph=True, allow_unused=True)
            squared_norm = torch.stack([x.square().sum(-1) for x in gradients if x is not None]).sum(0)  # [B, N]
            # the root has no gradient at zero, and a 0-centred penalty needs no root
            error = squared_norm if center == 0.0 else ((squared_norm + 1e-12).sqrt() - center).square()
            penalties.append(error.mean())
    return torch.stack(penalties).mean()


class _SpectralNorm(nn.Module):
    """Divides each net's weight ``[A, F, H]`` by its largest singular value, followed by power iteration."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn_like(weight[:, 0]), dim=-1))  # [A, H]
        self.register_buffer("v", F.normalize(torch.randn_like(weight[:, :, 0]), dim=-1))  # [A, F]
        for _ in range(20):
            self._iterate(weight)

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        self.v.copy_(F.normalize(torch.einsum("afh,ah->af", weight, self.u), dim=-1))
        self.u.copy_(F.normalize(torch.einsum("afh,af->ah", weight, self.v), dim=-1))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self._iterate(weight)
        largest = torch.einsum("af,afh,ah->a", self.v.clone(), weight, self.u.clone())
        return weight / largest[:, None, None]


def spectrally_normalized(mlp: StackedMLP) -> StackedMLP:
    """``mlp`` with every layer's spectral norm at 1 (Miyato et al. 2018, arXiv 1802.05957), so it is 1-Lipschitz.

    Needs activations of slope at most 1.
    """
    for layer in mlp.layers:
        if isinstance(layer, StackedLinear):
            parametrize.register_parametrization(layer, "weight", _SpectralNorm(layer.weight.detach()))
    return mlp


def with_dropout(mlp: StackedMLP, probability: float) -> StackedMLP:
    """``mlp`` whose hidden units are dropped with ``probability`` in training (Srivastava et al. 2014)."""
    layers: list[nn.Module] = []
    for layer in mlp.layers:
        layers.append(layer)
        if not isinstance(layer, StackedLinear):
            layers.append(nn.Dropout(probability))
    mlp.layers = nn.Sequential(*layers)
    return mlp
