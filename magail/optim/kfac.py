"""K-FAC: natural gradients by Kronecker factors (Martens & Grosse 2015, arXiv 1503.05671).

Letters for tensor shapes here: **A** networks side by side in a `StackedLinear` (1 in an ``nn.Linear``), **B** those of
them with weights of their own (A, or 1 where they share one), **N** samples, **F** inputs and **H** outputs of a layer,
**I** its inputs and what stands in for the biases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from magail.networks import StackedLinear

TINY = 1e-20  # least denominator where a network may have no samples, or no gradient


class KFAC:
    """Natural-gradient descent for a module of ``nn.Linear`` or `StackedLinear` layers.

    The Fisher matrix of a layer is approximated by a Kronecker product: the second moment of the layer's inputs, and
    that of the log-likelihood's gradients at its outputs. Each of the B networks has factors, a trust region and a step
    of its own. One update::

        with kfac.watching():
            outputs = module(x)
        kfac.update_statistics(log_likelihood_of_a_sample_drawn_from(outputs), mask)
        loss.backward()
        kfac.step()

    The Fisher matrix is the mean over a network's samples, so ``loss`` should be such a mean too, and a sum over
    networks.

    Args:
        module: what is descended; ``update_statistics`` needs all its layers in one forward pass.
        learning_rate: the step per natural gradient; 1 is Newton's step where the Fisher matrix is the Hessian.
        clip_kl: a step is shortened until it changes a network's outputs by no more than this KL divergence (nats, mean
            over samples) in the quadratic model ``step^T F step / 2``, F damped (Wu et al. 2017, arXiv 1708.05144,
            section 3.3).
        momentum: in [0, 1); weight of the past in the running mean of such steps that the parameters follow.
        damping: what is added to F, in its unit. Each factor gets the root, shared out by their mean eigenvalues
            (Martens & Grosse, section 6.3).
        statistics_decay: in [0, 1]; samples of k updates before weigh this to the power of k, and the weights are
            normalised: there is no bias to the start.
        inverse_every: steps between two inversions of the factors.
        cold_steps: so many first steps follow the plain gradient, in the same trust region, while statistics gather.
        diagonal: the Fisher information of each parameter that is in no such layer, taken as constant and diagonal,
            as it is for the log of a Gaussian's spread: 2 per sample. For B > 1 such a parameter has a first axis of B.

    ``learning_rate`` and ``clip_kl`` may be changed between steps, and are not part of the state.

    Raises:
        ValueError: a parameter neither in such a layer nor in ``diagonal``, or layers of different B.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: float,
        clip_kl: float,
        momentum: float,
        damping: float,
        statistics_decay: float,
        inverse_every: int,
        cold_steps: int,
        diagonal: Mapping[nn.Parameter, float],
    ) -> None:
        self.learning_rate, self.clip_kl, self.momentum, self.damping = learning_rate, clip_kl, momentum, damping
        self.statistics_decay, self.inverse_every, self.cold_steps = statistics_decay, inverse_every, cold_steps
        layers = {name: _Layer(m) for name, m in module.named_modules() if isinstance(m, (nn.Linear, StackedLinear))}
        treated = {parameter for layer in layers.values() for parameter in layer.module.parameters()} | diagonal.keys()
        for name, parameter in module.named_parameters():
            if parameter not in treated:
                raise ValueError(
                    f"K-FAC knows no Fisher matrix of the parameter {name}, which is in no nn.Linear or StackedLinear: "
                    "give its Fisher information in `diagonal`"
                )
        counts = {name: layer.nets for name, layer in layers.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"one K-FAC is for layers of equally many networks, not {counts}: give the others one of their own"
            )
        self.layers = list(layers.values())
        self.nets = self.layers[0].nets  # B
        others = [_Diagonal(parameter, self.nets, fisher + damping) for parameter, fisher in diagonal.items()]
        self.parts: list[_Part] = [*self.layers, *others]
        self.velocity = [torch.zeros_like(part.values()) for part in self.parts]
        self.samples = self.velocity[0].new_zeros(self.nets)  # how many the factors hold, faded as those are
        self.steps = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """One forward pass of the module within it is what the next `update_statistics` is about."""
        hooks = [layer.module.register_forward_hook(layer.watch) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def update_statistics(self, log_likelihood: Tensor, mask: Tensor) -> None:
        """Take the watched pass into the factors; its graph is kept, so that a loss can go back through it too.

        ``log_likelihood [..., A]`` is of outputs *drawn* from what the module gave for each sample and network: that of
        labels, or of actions already taken, would make another matrix, the empirical one. ``mask [..., A]`` is false
        where the sample counts in no factor, whatever the network was fed.
        """
        outputs = [layer.output for layer in self.layers]
        gradients = torch.autograd.grad(log_likelihood.sum(), outputs, retain_graph=True)
        weight = mask.reshape(-1, self.layers[0].copies).T.to(self.samples)  # [A, N]
        self.samples.mul_(self.statistics_decay).add_(weight.reshape(self.nets, -1).sum(1))
        for layer, gradient in zip(self.layers, gradients, strict=True):
            layer.add_statistics(gradient, weight, self.statistics_decay)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by the gradients that they hold."""
        if self.steps % self.inverse_every == 0:
            for layer in self.layers:
                layer.invert(self.samples.clamp(min=TINY), self.damping)
        directions = [part.gradient() for part in self.parts]
        if self.steps >= self.cold_steps:
            directions = [part.natural(x) for part, x in zip(self.parts, directions, strict=True)]
        scale = (self.clip_kl / self._kl(directions).clamp(min=TINY)).sqrt().clamp(max=1.0)  # [B]
        for part, velocity, direction in zip(self.parts, self.velocity, directions, strict=True):
            velocity.lerp_(scale.reshape(-1, 1, 1) * direction, 1.0 - self.momentum)
            part.move(-self.learning_rate * velocity)
        self.steps += 1

    def _kl(self, directions: list[Tensor]) -> Tensor:
        """The quadratic model's KL divergence of a step along ``directions``, ``[B]`` in nats."""
        squares = [(part.fisher(x) * x).sum((1, 2)) for part, x in zip(self.parts, directions, strict=True)]
        return 0.5 * self.learning_rate**2 * torch.stack(squares).sum(0)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on bit for bit."""
        factors = [factor.state_dict() for layer in self.layers for factor in layer.factors]
        return {"steps": self.steps, "samples": self.samples, "velocity": self.velocity, "factors": factors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.samples.copy_(state["samples"])
        for velocity, saved in zip(self.velocity, state["velocity"], strict=True):
            velocity.copy_(saved)
        factors = [factor for layer in self.layers for factor in layer.factors]
        for factor, saved in zip(factors, state["factors"], strict=True):
            factor.load_state_dict(saved)


class _Part:
    """Parameters of B networks as matrices ``[B, I, H]``, and their Fisher matrices, damped."""

    def __init__(self, *parameters: nn.Parameter) -> None:
        self.parameters = parameters

    def views(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors like the parameters as ``[B, ..., H]``; one above the other they are the matrices."""
        raise NotImplementedError

    def natural(self, x: Tensor) -> Tensor:
        """``F^-1 x``, ``[B, I, H]``"""
        raise NotImplementedError

    def fisher(self, x: Tensor) -> Tensor:
        """``F x``, ``[B, I, H]``"""
        raise NotImplementedError

    def values(self) -> Tensor:
        return torch.cat(self.views(*(parameter.detach() for parameter in self.parameters)), 1)

    def gradient(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.cat(self.views(*gradients), 1)

    def move(self, step: Tensor) -> None:
        views = self.views(*self.parameters)
        for view, part in zip(views, step.split([v.shape[1] for v in views], 1), strict=True):
            view.add_(part)


class _Diagonal(_Part):
    """A parameter outside of layers, whose Fisher matrix is ``fisher`` times the identity."""

    def __init__(self, parameter: nn.Parameter, nets: int, fisher: float) -> None:
        super().__init__(parameter)
        self.nets, self.information = nets, fisher

    def views(self, *tensors: Tensor) -> list[Tensor]:
        return [x.reshape(self.nets, -1, 1) for x in tensors]

    def natural(self, x: Tensor) -> Tensor:
        return x / self.information

    def fisher(self, x: Tensor) -> Tensor:
        return x * self.information


class _Layer(_Part):
    """A layer's weights, above its biases, and the two factors of its Fisher matrix.

    Networks that share their weights are one network with the samples of all; if they have biases of their own, those
    are the weights of a one-hot number in its input.
    """

    output: GradientEdge

    def __init__(self, module: nn.Linear | StackedLinear) -> None:
        super().__init__(*module.parameters())  # weight, and bias where there is one
        self.module, self.stacked = module, isinstance(module, StackedLinear)
        self.copies = module.num_nets if isinstance(module, StackedLinear) else 1  # A
        self.nets = len(module.weight) if self.stacked else 1  # B
        matrices = self.values()
        self.bias_rows = matrices.shape[1] - self.views(module.weight)[0].shape[1]  # I - F
        self.inputs, self.gradients = (_Factor(matrices.new_zeros(self.nets, d, d)) for d in matrices.shape[1:])
        self.factors = (self.inputs, self.gradients)

    def views(self, *tensors: Tensor) -> list[Tensor]:
        weight, *bias = tensors
        weight = weight if self.stacked else weight.T.unsqueeze(0)  # [B, F, H]
        return [weight, *(x.reshape(self.nets, -1, weight.shape[-1]) for x in bias)]

    def _by_net(self, x: Tensor) -> Tensor:
        """What goes into the layer, or comes back to it, as ``[A, F, N]`` or ``[A, H, N]``."""
        return x if self.stacked else x.reshape(-1, x.shape[-1]).T.unsqueeze(0)

    def watch(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        """A forward hook. It keeps an edge of the graph, since an activation may overwrite the output itself."""
        self.input, self.output = args[0].detach(), get_gradient_edge(output)

    def add_statistics(self, gradient: Tensor, weight: Tensor, decay: float) -> None:
        """Of the watched pass: the log-likelihood's gradient at the output, and weights of the samples ``[A, N]``."""
        x = self._by_net(self.input)
        if self.bias_rows:  # ones, or the one-hot number
            number = torch.eye(self.bias_rows).to(x).unsqueeze(-1)  # [1, 1, 1] or [A, A, 1]
            x = torch.cat([x, number.expand(self.copies, -1, x.shape[-1])], 1)  # [A, I, N]
        self.inputs.add(x, weight, decay)
        self.gradients.add(self._by_net(gradient), weight, decay)

    def invert(self, samples: Tensor, damping: float) -> None:
        """``samples [B]`` are in the factors' sums."""
        mean_eigenvalues = [factor.sum.diagonal(dim1=1, dim2=2).mean(1).clamp(min=TINY) for factor in self.factors]
        ratio = (mean_eigenvalues[0] / mean_eigenvalues[1]).sqrt()  # pi in the paper, [B]
        self.inputs.invert(samples, ratio * damping**0.5)
        self.gradients.invert(samples, damping**0.5 / ratio)

    def natural(self, x: Tensor) -> Tensor:
        return self.inputs.inverse @ x @ self.gradients.inverse

    def fisher(self, x: Tensor) -> Tensor:
        return self.inputs.damped @ x @ self.gradients.damped


class _Factor:
    """Second moments ``[B, D, D]`` of what goes into a layer, or comes back to it."""

    def __init__(self, zeros: Tensor) -> None:
        self.sum, self.damped, self.inverse = zeros, torch.zeros_like(zeros), torch.zeros_like(zeros)

    def add(self, x: Tensor, weight: Tensor, decay: float) -> None:
        """Samples ``x [A, D, N]`` with weights ``[A, N]``; networks with common weights have a common sum."""
        products = (x * weight.unsqueeze(1)) @ x.mT  # [A, D, D]
        self.sum.mul_(decay).add_(products.reshape(len(self.sum), -1, *self.sum.shape[1:]).sum(1))

    def invert(self, samples: Tensor, damping: Tensor) -> None:
        """The mean over ``samples [B]``, with ``damping [B]`` added to its eigenvalues."""
        identity = torch.eye(self.sum.shape[-1]).to(self.sum)
        self.damped = self.sum / samples.reshape(-1, 1, 1) + damping.reshape(-1, 1, 1) * identity
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.damped))
        self.inverse = inverse.contiguous()  # as it is after loading: products round by how numbers lie

    def state_dict(self) -> dict[str, Tensor]:
        return {"sum": self.sum, "damped": self.damped, "inverse": self.inverse}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
