"""Action distributions: what an actor's outputs mean for each kind of action space.

A *head* belongs to an action space. It says how many numbers an actor must put out (``num_outputs``), turns them into a
distribution, and encodes actions as the vectors that discriminators see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from magail.types import are_bounded, bounds

D = TypeVar("D")
G = TypeVar("G", bound="Gaussian")


class Distribution(Protocol):
    """Distribution over the actions ``[..., A, U]`` of a group; log-probabilities and entropies are ``[..., A]``."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor: ...

    def kl(self: D, other: D) -> Tensor:
        """KL(self || other) ``[..., A]`` in nats."""
        ...

    def mean_over_views(self: D, see: OfActions, undo: OfActions, by_view: OfActions) -> D:
        """The normalised geometric mean of what G views say; `magail.policy.Policy.distributions` gives the three.

        This one is of the rows ``[G B]`` of all views. ``see`` and ``undo`` change actions ``[G B, A, ...]`` to how
        each row's view calls them, and back; ``by_view`` is ``[G, B, A, ...]`` of such rows.
        """
        ...


OfActions = Callable[[Tensor], Tensor]


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

    def kl(self, other: Categorical) -> Tensor:
        parts = zip(self.log_probs, other.log_probs, strict=True)
        return torch.stack([(p.exp() * (p - q)).sum(-1) for p, q in parts]).sum(0)

    def mean_over_views(self, see: OfActions, undo: OfActions, by_view: OfActions) -> Categorical:
        called = [see(torch.arange(p.shape[-1], device=p.device).expand_as(p)) for p in self.log_probs]
        means = [by_view(p.gather(-1, c)).mean(0) for p, c in zip(self.log_probs, called, strict=True)]
        return Categorical(torch.cat(means, -1), [p.shape[-1] for p in means])


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis of ``[..., A, n]``; torch's own takes ten times as long on a stack's outputs, batch last."""
    return logits.movedim((-2, -1), (0, 1)).log_softmax(1).movedim((0, 1), (-2, -1))


def _inverse_cdf(cumulated: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws ``[...]`` from distributions with the cumulated probabilities ``[..., n]``: one uniform number each."""
    uniform = torch.rand(cumulated.shape[:-1], generator=generator, device=cumulated.device)
    return (cumulated[..., :-1] <= uniform.unsqueeze(-1)).sum(-1)


class BoxDistribution:
    """Common ground of the distributions over a box: all can be drawn from so that gradients pass through the draw.

    Their parameters are in the units in which the box is [-1, 1], which are ``(action - center) / scale``; actions and
    log-densities are in the environment's own units.
    """

    def __init__(self, center: Tensor, scale: Tensor) -> None:
        self.center, self.scale = center, scale

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw, with gradients to the parameters (reparameterised)."""
        raise NotImplementedError

    def rsample_and_log_prob(self) -> tuple[Tensor, Tensor]:
        """Draw, with gradients to the parameters, and the log-probability of what was drawn."""
        action = self.rsample()
        return action, self.log_prob(action)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.rsample(generator).detach()

    def log_prob(self, action: Tensor) -> Tensor:
        raise NotImplementedError


class Gaussian(BoxDistribution):
    """Diagonal Gaussian, ``mean`` and ``log_std [..., A, U]``.

    Actions are not clipped here: the environment clips them, so that the log-probability stays that of the number
    drawn.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, center: Tensor, scale: Tensor) -> None:
        super().__init__(center, scale)
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._action(self._at(self._noise(generator)))

    def mode(self) -> Tensor:
        """The action of the Gaussian's mode."""
        return self._action(self.mean)

    def _noise(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.empty_like(self.mean).normal_(generator=generator)

    def _at(self, z: Tensor) -> Tensor:
        """The Gaussian's numbers ``z`` standard deviations from its mean."""
        return self.mean + self.log_std.exp() * z

    def _action(self, unit: Tensor) -> Tensor:
        """The action that numbers of the Gaussian stand for."""
        return self.center + self.scale * unit

    def log_prob(self, action: Tensor) -> Tensor:
        z = ((action - self.center) / self.scale - self.mean) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + self.scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: Gaussian) -> Tensor:
        ratio = self.log_std - other.log_std
        distance = (self.mean - other.mean) / other.log_std.exp()
        return (0.5 * ((2 * ratio).exp() + distance.square() - 1) - ratio).sum(-1)

    def mean_over_views(self: G, see: OfActions, undo: OfActions, by_view: OfActions) -> G:
        """Before they are clipped, where they are."""
        mean, std = by_view(undo(self.mean)), by_view(undo(self.log_std.exp())).abs()
        precision = std.pow(-2)
        center = (precision * mean).mean(0) / precision.mean(0)
        return type(self)(center, -0.5 * precision.mean(0).log(), self.center, self.scale)


class ClippedGaussian(Gaussian):
    """A diagonal Gaussian clipped to the box: what it puts beyond a bound lies on the bound.

    So an action on a bound has the probability of that whole side, whichever number beyond it was drawn, and a policy
    gradient does not depend on numbers that the environment never sees (Fujita & Maeda 2018, arXiv 1802.07564). A clone
    of an expert that presses against the bounds learns to press as well: the likelihood is a censored Gaussian's (Tobin
    1958). Log-probabilities are densities inside and logarithms of masses on the bounds, and so are entropies' and
    divergences' integrals.
    """

    def _action(self, unit: Tensor) -> Tensor:
        """Gradients are right for functions of the action, but not for its log-probability, which jumps at a bound."""
        return super()._action(unit.clamp(-1, 1))

    def log_prob(self, action: Tensor) -> Tensor:
        """Also of actions beyond the bounds, which count as on them."""
        unit, std = (action - self.center) / self.scale, self.log_std.exp()
        inside = _standard_normal((unit - self.mean) / std) - self.log_std - self.scale.log()
        on_bound = torch.special.log_ndtr((unit.sign() * self.mean - 1) / std)
        rounding = ON_BOUND * (1 + (self.center / self.scale).abs())
        return torch.where(unit.abs() < 1 - rounding, inside, on_bound).sum(-1)

    def entropy(self) -> Tensor:
        low, high = self._sides()
        zeroth, _, second = self._moments(low, high)
        inside = (self.log_std + self.scale.log() + 0.5 * math.log(2 * math.pi)) * zeroth + 0.5 * second
        return (inside - low.exp() * low - high.exp() * high).sum(-1)

    def kl(self, other: ClippedGaussian) -> Tensor:  # type: ignore[override]
        (low, high), (other_low, other_high) = self._sides(), other._sides()
        zeroth, first, second = self._moments(low, high)
        log_ratio = self.log_std - other.log_std
        ratio, distance = log_ratio.exp(), (self.mean - other.mean) / other.log_std.exp()
        squares = (ratio.square() - 1) * second + 2 * ratio * distance * first + distance.square() * zeroth
        inside = 0.5 * squares - log_ratio * zeroth
        return (inside + low.exp() * (low - other_low) + high.exp() * (high - other_high)).sum(-1)

    def _sides(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the lower and the upper bound."""
        std = self.log_std.exp()
        return torch.special.log_ndtr((-1 - self.mean) / std), torch.special.log_ndtr((self.mean - 1) / std)

    def _moments(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integrals of the standardised density, and of it times z and z squared, between the bounds."""
        std = self.log_std.exp()
        a, b = (-1 - self.mean) / std, (1 - self.mean) / std
        density_a, density_b = _standard_normal(a).exp(), _standard_normal(b).exp()
        mass = 1 - low.exp() - high.exp()
        return mass, density_a - density_b, mass + a * density_a - b * density_b


NODES, WEIGHTS = (torch.as_tensor(x) for x in np.polynomial.hermite_e.hermegauss(16))  # of the Gauss-Hermite rule
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # for means under N(0, 1)

ON_BOUND = 1e-6  # how close to a bound (of [-1, 1], of a box around 0) rounding can leave what was clipped to it
BAND = 1e-3  # width of the band within a bound (of [-1, 1]) in which squashed and beta tell actions apart no more


class SquashedGaussian(Gaussian):
    """The tanh of a diagonal Gaussian: its support is the box (Haarnoja et al. 2018, arXiv 1812.05905, appendix C).

    ``mean`` and ``log_std [..., A, U]`` are the Gaussian's, and so is the KL divergence: tanh, as any invertible
    function, leaves it as it is.
    """

    def _action(self, unit: Tensor) -> Tensor:
        """Of the Gaussian's mode it is not quite the density's own, whose peak tanh moves towards the bounds."""
        return super()._action(unit.tanh())

    def rsample_and_log_prob(self) -> tuple[Tensor, Tensor]:
        """Exact at the bounds too: nothing is inverted."""
        noise = self._noise()
        before = self._at(noise)
        log_density = _standard_normal(noise) - self.log_std - _log_tanh_slope(before) - self.scale.log()
        return self._action(before), log_density.sum(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Also of actions at the bounds or beyond, which recorded and clipped ones often are.

        Next to a bound tanh cannot be inverted, so the density within `BAND` of it, and beyond, is taken as the mean
        density there: the probability of that end over its width. It still integrates to 1.
        """
        unit = (action - self.center) / self.scale
        before = unit.clamp(BAND - 1, 1 - BAND).atanh()
        inside = _standard_normal((before - self.mean) / self.log_std.exp()) - self.log_std - _log_tanh_slope(before)
        end = (unit.sign() * self.mean - math.atanh(1 - BAND)) / self.log_std.exp()
        within_band = torch.special.log_ndtr(end) - math.log(BAND)
        return (torch.where(unit.abs() < 1 - BAND, inside, within_band) - self.scale.log()).sum(-1)

    def entropy(self) -> Tensor:
        """No closed form: the Gaussian's, plus the mean log-slope of tanh by quadrature.

        Per action number it is good to 0.02 nats for spreads up to e, and to 0.25 at the widest of `SquashedHead`, e^2.
        """
        nodes, weights = NODES.to(self.mean), WEIGHTS.to(self.mean)
        before = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * nodes
        return super().entropy() + (_log_tanh_slope(before) * weights).sum((-1, -2))


def _standard_normal(z: Tensor) -> Tensor:
    """Log-density of N(0, 1)."""
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def _log_tanh_slope(x: Tensor) -> Tensor:
    """``log(1 - tanh(x)^2)``, without the difference that is 0 for large x."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


class Beta(BoxDistribution):
    """Independent beta distributions: their support is the box (Chou et al. 2017, PMLR 70).

    ``alpha`` and ``beta [..., A, U]`` are at least 1, so there is one peak.
    """

    def __init__(self, alpha: Tensor, beta: Tensor, center: Tensor, scale: Tensor) -> None:
        super().__init__(center, scale)
        self.alpha, self.beta = alpha, beta

    def _in_box(self, share: Tensor) -> Tensor:
        """[0, 1] to the box."""
        return self.center + self.scale * (2 * share - 1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        up, down = (torch._standard_gamma(x, generator) for x in (self.alpha, self.beta))  # as torch.distributions does
        return self._in_box(up / (up + down))

    def mode(self) -> Tensor:
        """The middle where the distribution is uniform."""
        up, down = self.alpha - 1 + 1e-6, self.beta - 1 + 1e-6
        return self._in_box(up / (up + down))

    def log_prob(self, action: Tensor) -> Tensor:
        """Actions closer to a bound than `BAND`, or beyond it, count as that close: at the bound it would be -inf."""
        unit = ((action - self.center) / self.scale).clamp(BAND - 1, 1 - BAND)
        powers = (self.alpha - 1) * ((1 + unit) / 2).log() + (self.beta - 1) * ((1 - unit) / 2).log()
        norm = self.alpha.lgamma() + self.beta.lgamma() - (self.alpha + self.beta).lgamma()
        return (powers - norm - (2 * self.scale).log()).sum(-1)

    def entropy(self) -> Tensor:
        return (self._torchs().entropy() + (2 * self.scale).log()).sum(-1)

    def kl(self, other: Beta) -> Tensor:
        return torch.distributions.kl_divergence(self._torchs(), other._torchs()).sum(-1)

    def mean_over_views(self, see: OfActions, undo: OfActions, by_view: OfActions) -> Beta:
        turned = by_view(undo(torch.ones_like(self.alpha))) < 0
        alpha, beta = (by_view(undo(x)).abs() for x in (self.alpha, self.beta))
        up, down = torch.where(turned, beta, alpha), torch.where(turned, alpha, beta)
        return Beta(up.mean(0), down.mean(0), self.center, self.scale)

    def _torchs(self) -> torch.distributions.Beta:
        """Over [0, 1]."""
        return torch.distributions.Beta(self.alpha, self.beta, validate_args=False)


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
    """Box action spaces; subclasses say which distribution.

    Numbers without bounds on both sides, or with nothing between them, keep the environment's own units.
    """

    low: Tensor
    high: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, space: spaces.Box, outputs_per_number: int) -> None:
        super().__init__()
        low, high = bounds(space)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        bounded = are_bounded(space)
        low, high = low.where(bounded, -1.0), high.where(bounded, 1.0)
        half = (high - low) / 2
        self.register_buffer("center", (high + low) / 2, persistent=False)
        self.register_buffer("scale", half.where(half > 0, 1.0), persistent=False)
        self.whole = np.issubdtype(space.dtype, np.integer)
        self.encoded_dim = len(low)
        self.num_outputs = outputs_per_number * len(low)

    def forward(self, outputs: Tensor) -> Distribution:
        raise NotImplementedError

    def encode(self, action: Tensor) -> Tensor:
        """`executed` actions ``[..., A, U]`` in units where the box is [-1, 1].

        Unclipped, a discriminator could tell an expert recorded within the bounds by that alone.
        """
        return (self.executed(action) - self.center) / self.scale

    def executed(self, action: Tensor) -> Tensor:
        """The action as the environment takes it: clipped to the box, and rounded where it holds whole numbers."""
        clipped = action.clamp(self.low, self.high)
        return clipped.round() if self.whole else clipped

    def uniform(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Uniformly random actions ``[*shape, U]``; in [-1, 1] where a side has no bound."""
        return self.center + self.scale * (2 * torch.rand(*shape, self.encoded_dim, generator=generator) - 1)


INITIAL_LOG_STD = -0.5  # of both Gaussians, of an action in [-1, 1]


class GaussianHead(BoxHead):
    """A Gaussian whose mean the network gives and whose spread is a parameter per action number."""

    def __init__(self, space: spaces.Box, num_agents: int) -> None:
        super().__init__(space, 1)
        self.log_std = nn.Parameter(torch.full((num_agents, self.encoded_dim), INITIAL_LOG_STD))

    def forward(self, outputs: Tensor) -> Gaussian:
        """``outputs [..., A, U]`` are the means."""
        return Gaussian(outputs, self.log_std, self.center, self.scale)


class ClippedHead(GaussianHead):
    """A clipped Gaussian, whose mean and spread are as `GaussianHead`'s.

    Raises:
        ValueError: a side without bounds.
    """

    def __init__(self, space: spaces.Box, num_agents: int) -> None:
        _check_bounded(space, "clipped")
        super().__init__(space, num_agents)

    def forward(self, outputs: Tensor) -> ClippedGaussian:
        """``outputs [..., A, U]`` are the means before clipping."""
        return ClippedGaussian(outputs, self.log_std, self.center, self.scale)


class SquashedHead(BoxHead):
    """The tanh of a Gaussian whose mean and spread the network gives.

    Raises:
        ValueError: a side without bounds.
    """

    LOG_STD = (-5.0, 2.0)  # its bounds, reached smoothly

    def __init__(self, space: spaces.Box, num_agents: int) -> None:
        _check_bounded(space, "squashed")
        super().__init__(space, 2)

    def forward(self, outputs: Tensor) -> SquashedGaussian:
        """``outputs [..., A, 2 U]`` are the means, and log-spreads before they are bounded."""
        mean, raw = outputs.chunk(2, -1)
        low, high = self.LOG_STD
        at_zero = math.log((INITIAL_LOG_STD - low) / (high - INITIAL_LOG_STD))  # outputs start near 0
        log_std = low + (high - low) * (raw + at_zero).sigmoid()
        return SquashedGaussian(mean, log_std, self.center, self.scale)


class BetaHead(BoxHead):
    """A beta distribution whose two parameters, ``1 + softplus``, the network gives.

    Raises:
        ValueError: a side without bounds.
    """

    def __init__(self, space: spaces.Box, num_agents: int) -> None:
        _check_bounded(space, "beta")
        super().__init__(space, 2)

    def forward(self, outputs: Tensor) -> Beta:
        """``outputs [..., A, 2 U]`` are alpha and beta, before their softplus."""
        alpha, beta = (1 + F.softplus(outputs)).chunk(2, -1)
        return Beta(alpha, beta, self.center, self.scale)


def _check_bounded(space: spaces.Box, box: str) -> None:
    if not are_bounded(space).all():
        raise ValueError(
            f"policy.box={box} needs bounds on every side, but the action space is {space}: choose policy.box=gaussian,"
            " or give the environment bounded actions"
        )


BOX_HEADS: dict[str, type[GaussianHead] | type[SquashedHead] | type[BetaHead]] = {
    "gaussian": GaussianHead,
    "clipped": ClippedHead,
    "squashed": SquashedHead,
    "beta": BetaHead,
}

Head = DiscreteHead | BoxHead


def action_head(space: spaces.Space[Any], num_agents: int, box: str = "gaussian") -> Head:
    """The head for an action space (`AgentGroup` admits no others); ``box`` names the one of `BOX_HEADS` for a Box.

    Raises:
        ValueError: an unknown ``box``, or one that needs bounds where there are none.
    """
    if box not in BOX_HEADS:
        raise ValueError(f"unknown policy.box={box}: choose one of {', '.join(BOX_HEADS)}")
    if isinstance(space, spaces.Box):
        return BOX_HEADS[box](space, num_agents)
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    return DiscreteHead(space)
