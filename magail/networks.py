"""Networks: per-agent stacks, image encoders, the actors of a policy, the centralized critic, and normalisers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from magail.distributions import Distribution, action_head
from magail.ranges import check_positive, check_range
from magail.types import AgentGroup, ByGroup, JointTransition, are_bounded, bounds


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)  # in place: a fresh tensor costs more than the arithmetic
        ctx.save_for_backward(x.mul_(2).sigmoid_().mul_(2).sub_(1))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, y)


class Tanh(nn.Module):
    """``tanh(x) = 2 sigmoid(2 x) - 1``, to within 2e-7.

    torch's own tanh takes longer on a processor than the products of a 64 x 64 layer, five times as long as this.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Tanh.apply(x)


class Gated(nn.Module):
    """``tanh(x) sigmoid(y)`` of a layer's first and second half ``[..., 2 H, N]``: the second lets the first through.

    Twice the layer, of which a product is taken: what one observed number means may hang on another, as directions do
    on a word (the units of van den Oord et al. 2016, arXiv 1606.05328, equation 2).
    """

    def forward(self, x: Tensor) -> Tensor:
        values, gates = x.chunk(2, -2)
        return values.tanh() * gates.sigmoid()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gated": Gated,
}


M = TypeVar("M", bound=nn.Module)


def module_dict(modules: dict[str, M]) -> dict[str, M]:
    """``nn.ModuleDict`` whose members keep their type for the type checker."""
    return cast(dict[str, M], nn.ModuleDict(modules))


CACHED_ROWS = 2048  # more rows of a batch than that fall out of a processor's cache between two layers


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, share: float) -> None:
    """Move ``target``'s parameters by ``share`` of the way to those of ``network``, its twin (Polyak averaging)."""
    for behind, ahead in zip(target.parameters(), network.parameters(), strict=True):
        behind.lerp_(ahead, share)


class StackedLinear(nn.Module):
    """``num_nets`` linear layers side by side, one batched product: ``[A, F, N] -> [A, H, N]``.

    The batch comes last, because layers of a few outputs (action logits, values) are many times slower the other way
    round. A shared weight or bias has a first axis of 1 and serves all nets.
    """

    def __init__(
        self, num_nets: int, in_features: int, out_features: int, gain: float, share_weight: bool, share_bias: bool
    ) -> None:
        super().__init__()
        self.num_nets = num_nets
        weight = torch.empty(1 if share_weight else num_nets, in_features, out_features)
        for matrix in weight:
            nn.init.orthogonal_(matrix, gain)
        self.weight = nn.Parameter(weight)
        bias = torch.zeros(1 if share_bias else num_nets, 1, out_features)
        if share_weight and not share_bias:  # these biases are the weights of a one-hot agent id
            nn.init.normal_(bias, std=gain / math.sqrt(out_features))
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.mT, self.weight.mT.expand(self.num_nets, -1, -1), x)


class StackedMLP(nn.Module):
    """``num_nets`` multi-layer perceptrons side by side: ``[..., A, F] -> [..., A, H]``.

    With ``share_parameters`` all nets are one, told apart by a bias of their own in the first layer (the same as a
    one-hot agent id in the input). Weights start orthogonal, other biases at zero.

    Raises:
        ValueError: an unknown activation, or a layer without units.
    """

    def __init__(
        self,
        num_nets: int,
        in_features: int,
        hidden_sizes: Sequence[int],
        out_features: int,
        activation: str = "tanh",
        output_gain: float = 1.0,
        share_parameters: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if min(hidden_sizes, default=1) < 1:
            raise ValueError(f"hidden_sizes={list(hidden_sizes)}: a layer has at least 1 unit; [] is no layer")
        sizes = [in_features, *hidden_sizes, out_features]
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            last = index == len(sizes) - 2
            gain = output_gain if last else math.sqrt(2)
            share_bias = share_parameters and index > 0
            width = 2 * fan_out if activation == "gated" and not last else fan_out
            layers.append(StackedLinear(num_nets, fan_in, width, gain, share_parameters, share_bias))
            if not last:
                layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        by_net = x.reshape(x.shape[:-2].numel(), *x.shape[-2:]).permute(1, 2, 0)  # [A, F, N]
        if torch.is_grad_enabled() or x.is_cuda:
            outputs = self.layers(by_net)  # [A, H, N]
        else:
            outputs = torch.cat([self.layers(rows) for rows in by_net.split(CACHED_ROWS, -1)], -1)
        outputs = outputs.permute(2, 0, 1)  # [N, A, H]
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


class StackedGRU(nn.Module):
    """``num_nets`` gated recurrent units side by side, each as torch.nn.GRUCell (Cho et al. 2014, arXiv 1406.1078).

    What a net puts out, **H** numbers, is also all it remembers. Sequences ``[B, T]`` come batch first, and are looped
    over in time alone. ``share_parameters`` is as in `StackedMLP`. The matrices of each gate start orthogonal.

    Raises:
        ValueError: ``units`` below 0.
    """

    def __init__(self, num_nets: int, in_features: int, units: int, share_parameters: bool = False) -> None:
        super().__init__()
        check_range({"recurrent": units}, 0)
        self.num_nets, self.units = num_nets, units
        self.input = StackedLinear(num_nets, in_features, 3 * units, 1.0, share_parameters, False)
        self.hidden = StackedLinear(num_nets, units, 3 * units, 1.0, share_parameters, share_parameters)
        for layer in (self.input, self.hidden):
            for gates in layer.weight.data:
                for gate in gates.chunk(3, -1):
                    nn.init.orthogonal_(gate)

    def nothing(self, batch: int) -> Tensor:
        """The memory ``[B, A, H]`` with which an episode begins."""
        return self.hidden.weight.new_zeros(batch, self.num_nets, self.units)

    def step(self, x: Tensor, memory: Tensor) -> Tensor:
        """One step: ``x [B, A, F]`` after ``memory [B, A, H]`` to outputs ``[B, A, H]``."""
        return self._cell(self.input(x.permute(1, 2, 0)), memory.permute(1, 2, 0)).permute(2, 0, 1)

    def forward(self, x: Tensor, memory: Tensor, going_on: Tensor) -> Tensor:
        """Sequences: ``x [B, T, A, F]`` after ``memory [B, A, H]`` to outputs ``[B, T, A, H]``.

        Where ``going_on [B, T, A]`` (bool) is false the net begins its next step with no memory.
        """
        batch, steps = x.shape[:2]
        inputs = self.input(x.permute(2, 3, 1, 0).flatten(2)).unflatten(-1, (steps, batch))  # [A, 3 H, T, B]
        hidden, outputs = memory.permute(1, 2, 0), []  # [A, H, B]
        # not by index: the gradient of T slices would be T times the whole
        for now, kept in zip(inputs.unbind(2), going_on.permute(1, 2, 0).unbind(), strict=True):
            outputs.append(self._cell(now, hidden))
            hidden = outputs[-1] * kept.unsqueeze(1)
        return torch.stack(outputs).permute(3, 0, 1, 2)

    def _cell(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """``[A, 3 H, B]`` and ``[A, H, B]`` to ``[A, H, B]``; gates in torch's order: reset, update, new."""
        from_input, new_input = inputs.split([2 * self.units, self.units], 1)
        from_hidden, new_hidden = self.hidden(hidden).split([2 * self.units, self.units], 1)
        reset, update = (from_input + from_hidden).sigmoid().chunk(2, 1)
        new = _Tanh.apply(torch.addcmul(new_input, reset, new_hidden))
        return torch.lerp(new, hidden, update)


class RunningNormalizer(nn.Module):
    """Mean and variance of what it has seen, elementwise over ``shape``, by Chan's parallel update.

    ``horizon`` bounds the count, so that older samples fade once more than that many have been seen (for targets that
    move); infinite weighs all alike. Beside an infinite count (`fix`) nothing that follows weighs anything.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    MIN_VAR = 1e-4  # a feature that hardly varies in a few demonstrations must not explode elsewhere

    def __init__(self, shape: tuple[int, ...], horizon: float = math.inf) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor) -> None:
        """Take in ``x [N, *shape]``, counting only elements where ``mask`` (broadcast to ``x``) is true."""
        weight = mask.expand_as(x).to(torch.float64)
        new = weight.sum(0)
        mean = (x * weight).sum(0) / new.clamp(min=1.0)
        squares = ((x - mean).square() * weight).sum(0)
        total = self.count + new
        share = new / total.clamp(min=1.0)
        delta = mean - self.mean
        self.var.copy_(self.var * (1 - share) + squares / total.clamp(min=1.0) + delta.square() * (1 - share) * share)
        self.mean.add_(delta * share)
        self.count.copy_(total.clamp(max=self.horizon))

    def fix(self) -> None:
        """Keep what there is."""
        self.count.fill_(math.inf)

    @property
    def std(self) -> Tensor:
        return self.var.clamp(min=self.MIN_VAR).sqrt()

    def forward(self, x: Tensor, clip: float = 10.0) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-clip, clip)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


class BoundsNormalizer(nn.Module):
    """Numbers of a bounded box to [0, 1]."""

    low: Tensor
    width: Tensor

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        low, high = bounds(space)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", torch.where(high > low, high - low, 1.0), persistent=False)

    def update(self, x: Tensor, mask: Tensor) -> None:
        """There is nothing to learn from data."""

    def fix(self) -> None:
        """There is nothing that moves."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.width


Normalizer = RunningNormalizer | BoundsNormalizer


def obs_normalizer(space: spaces.Space[Any], encoder: str) -> Normalizer:
    """By the bounds for what ``encoder`` takes for an image that has them, by running statistics for all else."""
    if image_layout(space, encoder) is not None:
        assert isinstance(space, spaces.Box)
        if are_bounded(space).all():
            return BoundsNormalizer(space)
    return RunningNormalizer((spaces.flatdim(space),))


def update_normalizers(normalizers: Mapping[str, Normalizer], batch: JointTransition) -> None:
    """Take in the observations of each group's living agents."""
    for name, group in batch.groups.items():
        normalizers[name].update(group.obs.flatten(0, -2), group.mask.flatten().unsqueeze(-1))


ENCODERS = ("auto", "mlp", "cnn")
SMALLEST_IMAGE = 8  # pixels of the shorter side from which `auto` takes convolutions
CHANNELS = (16, 32, 32)  # of the convolutions


@dataclass(frozen=True)
class ImageLayout:
    """How an image lies in a flat observation."""

    shape: tuple[int, int, int]  # of the space
    channels_last: bool  # [height, width, channels], else [channels, height, width]

    @property
    def channels(self) -> int:
        return self.shape[-1 if self.channels_last else 0]

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width in pixels."""
        return self.shape[:2] if self.channels_last else self.shape[1:]


def image_layout(space: spaces.Space[Any], encoder: str) -> ImageLayout | None:
    """How ``encoder`` sees the space: as an image, or (None) as a vector.

    ``mlp`` sees vectors only, ``cnn`` takes every Box of three axes for an image, and ``auto`` those of at least
    `SMALLEST_IMAGE` pixels. The channels are the shorter of the first and the last axis, the last if both are alike.

    Raises:
        ValueError: an unknown encoder.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder={encoder}: choose one of {', '.join(ENCODERS)}")
    if encoder == "mlp" or not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return None
    first, second, last = space.shape
    layout = ImageLayout((first, second, last), channels_last=last <= first)
    return layout if encoder == "cnn" or min(layout.sides) >= SMALLEST_IMAGE else None


class Encoder(nn.Module):
    """Normalised observations ``[..., A, O]`` to features ``[..., A, out_features]``: convolutions for images.

    Each has a kernel of 3 x 3, as many outputs as ``channels`` says, a ReLU, and stride 2 as long as the shorter side
    has more than 4 pixels. ``num_nets`` encoders (A) run side by side as one grouped convolution, or with
    ``share_parameters`` as one. What ``encoder`` does not see as an image (`image_layout`) stays as it is.

    Raises:
        ValueError: an unknown encoder, or convolutions without outputs.
    """

    CACHED_IMAGES = 128  # as CACHED_ROWS

    def __init__(
        self,
        space: spaces.Space[Any],
        num_nets: int,
        encoder: str,
        channels: Sequence[int] = CHANNELS,
        share_parameters: bool = False,
    ) -> None:
        super().__init__()
        self.layout = image_layout(space, encoder)
        self.out_features = spaces.flatdim(space)
        if self.layout is None:
            return
        if not channels or min(channels) < 1:
            raise ValueError(f"channels={list(channels)}: there is at least 1 convolution, with at least 1 output each")
        self.nets = 1 if share_parameters else num_nets
        sides, layers = np.array(self.layout.sides), list[nn.Module]()
        for before, after in itertools.pairwise([self.layout.channels, *channels]):
            stride = 2 if sides.min() > 4 else 1
            convolution = nn.Conv2d(before * self.nets, after * self.nets, 3, stride, 1, groups=self.nets)
            for kernels in convolution.weight.data.chunk(self.nets):
                nn.init.orthogonal_(kernels, math.sqrt(2))
            nn.init.zeros_(cast(Tensor, convolution.bias))
            layers += [convolution, nn.ReLU()]
            sides = -(-sides // stride)
        self.layers = nn.Sequential(*layers)
        self.out_features = int(channels[-1] * sides.prod())

    def forward(self, obs: Tensor) -> Tensor:
        if self.layout is None:
            return obs
        rows = obs.reshape(-1, *obs.shape[-2:])  # [N, A, O]
        if torch.is_grad_enabled() or obs.is_cuda:
            features = self._features(rows, self.layout)
        else:
            features = torch.cat([self._features(part, self.layout) for part in rows.split(self.CACHED_IMAGES)])
        return features.reshape(*obs.shape[:-1], self.out_features)

    def _features(self, rows: Tensor, layout: ImageLayout) -> Tensor:
        """``[N, A, O] -> [N, ...]``"""
        images = rows.unflatten(-1, layout.shape)
        if layout.channels_last:
            images = images.movedim(-1, -3)  # [N, A, C, H, W]
        images = images.flatten(0, 1) if self.nets == 1 else images.flatten(1, 2)
        return self.layers(images).reshape(len(rows), -1)


class Actor(nn.Module):
    """The decentralized actors of one group: normalised observations ``[..., A, O]`` to a distribution over actions.

    ``box`` chooses the distribution over a Box (`action_head`); ``encoder`` and ``channels`` are `Encoder`'s.
    ``recurrent`` is the number of GRU units between encoder and MLP (H), 0 for none.

    Raises:
        ValueError: recurrent actors are asked about lone steps.
    """

    def __init__(
        self,
        group: AgentGroup,
        hidden_sizes: Sequence[int],
        activation: str,
        share_parameters: bool,
        box: str,
        encoder: str,
        channels: Sequence[int],
        recurrent: int,
    ) -> None:
        super().__init__()
        self.head = action_head(group.action_space, group.num_agents, box)
        self.encoder = Encoder(group.observation_space, group.num_agents, encoder, channels, share_parameters)
        features = self.encoder.out_features
        self.gru = StackedGRU(group.num_agents, features, recurrent, share_parameters) if recurrent else None
        sizes = (recurrent or features, hidden_sizes, self.head.num_outputs)
        # a small last layer starts the policy near uniform, where PPO's ratio is best behaved
        self.mlp = StackedMLP(group.num_agents, *sizes, activation, 0.01, share_parameters)

    def forward(self, obs: Tensor) -> Distribution:
        if self.gru is not None:
            raise ValueError(
                "a recurrent policy acts on all that it saw before, but was asked about lone steps, as AIRL and the "
                "zero-sum prior ask: set generator.policy.recurrent=0, or choose another discriminator"
            )
        return self.head(self.mlp(self.encoder(obs)))

    def step(self, obs: Tensor, memory: Tensor) -> tuple[Distribution, Tensor]:
        """Recurrent: one step ``[B, A, O]`` after ``memory [B, A, H]``, and the memory after it."""
        assert self.gru is not None
        memory = self.gru.step(self.encoder(obs), memory)
        return self.head(self.mlp(memory)), memory

    def along(self, obs: Tensor, memory: Tensor, going_on: Tensor) -> Distribution:
        """Recurrent: sequences ``[B, T, A, O]`` (`StackedGRU.forward`)."""
        assert self.gru is not None
        return self.head(self.mlp(self.gru(self.encoder(obs), memory, going_on)))


class Critic(nn.Module):
    """The centralized critic: the normalised observations of all agents to a value per agent, ``[..., A]`` a group.

    The network predicts returns in running units of their own scale (one per agent). ``value_horizon`` is the number of
    steps after which old returns fade from that scale: the average return drifts as the discriminator learns.
    ``encoder`` and ``channels`` are `Encoder`'s; agents of a group share one. ``recurrent`` is the number of GRU units
    between encoders and MLP (H), 0 for none; they remember an episode as long as any agent lives.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        hidden_sizes: Sequence[int],
        activation: str,
        value_horizon: float,
        encoder: str = "mlp",
        channels: Sequence[int] = CHANNELS,
        recurrent: int = 0,
    ) -> None:
        super().__init__()
        check_positive({"generator.critic.value_horizon": value_horizon})
        self.recurrent = recurrent
        self.sizes = {group.name: group.num_agents for group in groups}
        self.encoders = module_dict(
            {g.name: Encoder(g.observation_space, g.num_agents, encoder, channels, True) for g in groups}
        )
        joint_dim = sum(n * self.encoders[name].out_features for name, n in self.sizes.items())
        self.gru = StackedGRU(1, joint_dim, recurrent) if recurrent else None
        self.mlp = StackedMLP(1, recurrent or joint_dim, hidden_sizes, sum(self.sizes.values()), activation)
        self.scales = module_dict({name: RunningNormalizer((n,), value_horizon) for name, n in self.sizes.items()})

    def forward(self, obs: ByGroup, memory: Tensor | None = None, going_on: ByGroup | None = None) -> ByGroup:
        """Values in running units: of any steps, or if recurrent of sequences ``[B, T]`` after ``memory [B, 1, H]``."""
        joint = self._joint(obs)
        if self.gru is not None:
            assert memory is not None
            assert going_on is not None
            joint = self.gru(joint, memory, _any_going_on(going_on))
        return self._by_group(joint)

    @torch.no_grad()
    def values(self, obs: ByGroup) -> ByGroup:
        """Values in the rewards' own units."""
        return self._in_units(self(obs))

    @torch.no_grad()
    def values_along(
        self, obs: ByGroup, next_obs: ByGroup, memory: Tensor, going_on: ByGroup
    ) -> tuple[ByGroup, ByGroup, Tensor]:
        """Recurrent: values of sequences ``[B, T]`` and of their successors, and the memory ``[B, 1, H]`` after them.

        A successor is seen with the memory after its step, also where the episode ends and the sequence goes on with
        another.
        """
        assert self.gru is not None
        kept = _any_going_on(going_on)
        seen = self.gru(self._joint(obs), memory, kept)  # [B, T, 1, H]
        then = self.gru.step(self._joint(next_obs).flatten(0, 1), seen.flatten(0, 1)).view_as(seen)
        values, next_values = (self._in_units(self._by_group(x)) for x in (seen, then))
        return values, next_values, seen[:, -1] * kept[:, -1].unsqueeze(-1)

    def _joint(self, obs: ByGroup) -> Tensor:
        """``[..., 1, sum A * F]``"""
        return torch.cat([encoder(obs[name]).flatten(-2) for name, encoder in self.encoders.items()], -1).unsqueeze(-2)

    def _by_group(self, joint: Tensor) -> ByGroup:
        values = self.mlp(joint).squeeze(-2)  # [..., sum A]
        return dict(zip(self.sizes, values.split(list(self.sizes.values()), dim=-1), strict=True))

    def _in_units(self, values: ByGroup) -> ByGroup:
        return {name: self.scales[name].inverse(value) for name, value in values.items()}


CriticOptions = Annotated[dict[str, Any], Critic]


def _any_going_on(going_on: ByGroup) -> Tensor:
    """``[B, T, A]`` a group to ``[B, T, 1]``."""
    return torch.cat(list(going_on.values()), -1).any(-1, keepdim=True)
