"""Networks: per-agent stacks, the actors of a policy, the centralized critic, and the running normaliser."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from magail.distributions import Distribution, action_head
from magail.types import AgentGroup, ByGroup, JointTransition


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


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


M = TypeVar("M", bound=nn.Module)


def module_dict(modules: dict[str, M]) -> dict[str, M]:
    """``nn.ModuleDict`` whose members keep their type for the type checker."""
    return cast(dict[str, M], nn.ModuleDict(modules))


CACHED_ROWS = 2048  # more rows of a batch than that fall out of a processor's cache between two layers


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
        ValueError: an unknown activation.
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
        sizes = [in_features, *hidden_sizes, out_features]
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            last = index == len(sizes) - 2
            gain = output_gain if last else math.sqrt(2)
            share_bias = share_parameters and index > 0
            layers.append(StackedLinear(num_nets, fan_in, fan_out, gain, share_parameters, share_bias))
            if not last:
                layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        by_net = x.reshape(-1, *x.shape[-2:]).permute(1, 2, 0)  # [A, F, N]
        if torch.is_grad_enabled() or x.is_cuda:
            outputs = self.layers(by_net)  # [A, H, N]
        else:
            outputs = torch.cat([self.layers(rows) for rows in by_net.split(CACHED_ROWS, -1)], -1)
        outputs = outputs.permute(2, 0, 1)  # [N, A, H]
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


class RunningNormalizer(nn.Module):
    """Mean and variance of what it has seen, elementwise over ``shape``, by Chan's parallel update.

    ``horizon`` bounds the count, so that older samples fade once more than that many have been seen (for targets that
    move); infinite weighs all alike.
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
        var = (self.var * self.count + squares + delta.square() * self.count * share) / total.clamp(min=1.0)
        self.var.copy_(torch.where(total > 0, var, self.var))
        self.mean.add_(delta * share)
        self.count.copy_(total.clamp(max=self.horizon))

    @property
    def std(self) -> Tensor:
        return self.var.clamp(min=self.MIN_VAR).sqrt()

    def forward(self, x: Tensor, clip: float = 10.0) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-clip, clip)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


def update_normalizers(normalizers: Mapping[str, RunningNormalizer], batch: JointTransition) -> None:
    """Take in the observations of each group's living agents."""
    for name, group in batch.groups.items():
        normalizers[name].update(group.obs.flatten(0, -2), group.mask.flatten().unsqueeze(-1))


class Actor(nn.Module):
    """The decentralized actors of one group: normalised observations ``[..., A, O]`` to a distribution over actions."""

    def __init__(self, group: AgentGroup, hidden_sizes: Sequence[int], activation: str, share_parameters: bool) -> None:
        super().__init__()
        self.head = action_head(group.action_space, group.num_agents)
        # a small last layer starts the policy near uniform, where PPO's ratio is best behaved
        self.mlp = StackedMLP(
            group.num_agents, group.obs_dim, hidden_sizes, self.head.num_outputs, activation, 0.01, share_parameters
        )

    def forward(self, obs: Tensor) -> Distribution:
        return self.head(self.mlp(obs))


class Critic(nn.Module):
    """The centralized critic: the normalised observations of all agents to a value per agent, ``[..., A]`` a group.

    The network predicts returns in running units of their own scale (one per agent). ``value_horizon`` is the number of
    steps after which old returns fade from that scale: the average return drifts as the discriminator learns.
    """

    def __init__(
        self, groups: Sequence[AgentGroup], hidden_sizes: Sequence[int], activation: str, value_horizon: float
    ) -> None:
        super().__init__()
        self.sizes = {group.name: group.num_agents for group in groups}
        joint_dim = sum(group.num_agents * group.obs_dim for group in groups)
        self.mlp = StackedMLP(1, joint_dim, hidden_sizes, sum(self.sizes.values()), activation)
        self.scales = module_dict({name: RunningNormalizer((n,), value_horizon) for name, n in self.sizes.items()})

    def forward(self, obs: ByGroup) -> ByGroup:
        """Values in running units."""
        joint = torch.cat([obs[name].flatten(-2) for name in self.sizes], -1)  # [..., sum A * O]
        values = self.mlp(joint.unsqueeze(-2)).squeeze(-2)  # [..., sum A]
        return dict(zip(self.sizes, values.split(list(self.sizes.values()), dim=-1), strict=True))

    @torch.no_grad()
    def values(self, obs: ByGroup) -> ByGroup:
        """Values in the rewards' own units."""
        return {name: self.scales[name].inverse(value) for name, value in self(obs).items()}
