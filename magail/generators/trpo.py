"""Trust region policy optimisation with decentralized actors and a centralized critic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from magail.advantage import masked_mean
from magail.distributions import Distribution
from magail.generators.on_policy import OnPolicy, Samples
from magail.networks import Actor, CriticOptions
from magail.optim.options import load_state
from magail.policy import PolicyOptions
from magail.ranges import check_positive, check_range
from magail.types import AgentGroup

TINY = torch.finfo(torch.float32).tiny  # as a least denominator makes 0 / 0 zero: no gradient, no step


class TRPO(OnPolicy):
    """Multi-agent TRPO (Schulman et al. 2015, arXiv 1502.05477), each agent in a trust region of its own.

    A group's actor consists of independent `Blocks`: one per agent, or one in all with ``share_parameters``. Conjugate
    gradients give each block's natural gradient; the step along it has the length at which the mean KL(old || new) over
    the block's living steps is ``max_kl`` to second order, and a line search shortens it until that KL is kept and the
    objective has grown, or else restores the old parameters (Appendix C). The blocks of a group do all this at once.

    The objective is that of PPO, unclipped (eq. 14), with a linear ``extra_loss``: its gradient at the old parameters
    is all that is asked of it. conf/generator/trpo.yaml explains the options.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        critic: CriticOptions,
        max_kl: float,
        damping: float,
        cg_iterations: int,
        fisher_fraction: float,
        max_backtracks: int,
        backtrack_factor: float,
        critic_learning_rate: float,
        critic_epochs: int,
        minibatch_size: int,
        gamma: float,
        gae_lambda: float,
        entropy_coefficient: float,
        absorbing: bool,
        averaging: float,
    ) -> None:
        check_range({"generator.max_kl": max_kl, "generator.damping": damping}, 0)
        check_range({"generator.cg_iterations": cg_iterations}, 1)
        check_range({"generator.max_backtracks": max_backtracks}, 0)
        check_positive({"generator.fisher_fraction": fisher_fraction}, 1)
        check_range({"generator.backtrack_factor": backtrack_factor}, 0, 1)
        check_range({"generator.critic_epochs": critic_epochs, "generator.minibatch_size": minibatch_size}, 1)
        check_range({"generator.critic_learning_rate": critic_learning_rate}, 0)
        check_range({"generator.entropy_coefficient": entropy_coefficient}, 0)
        super().__init__(
            groups,
            policy=policy,
            critic=critic,
            gamma=gamma,
            gae_lambda=gae_lambda,
            absorbing=absorbing,
            averaging=averaging,
        )
        shared = self.policy.architecture["share_parameters"]
        self.blocks = {g.name: Blocks(self.policy.actors[g.name], 1 if shared else g.num_agents) for g in groups}
        self.max_kl, self.damping, self.cg_iterations = max_kl, damping, cg_iterations
        self.fisher_fraction = fisher_fraction
        self.max_backtracks, self.backtrack_factor = max_backtracks, backtrack_factor
        self.critic_epochs, self.minibatch_size = critic_epochs, minibatch_size
        self.entropy_coefficient = entropy_coefficient
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=critic_learning_rate, eps=1e-5, fused=True)

    def compile(self) -> None:
        """Let ``torch.compile`` fuse the critic's loss and its gradient; second derivatives cannot be compiled."""
        self._value_loss = torch.compile(self._value_loss, dynamic=False)  # type: ignore[method-assign]

    def _improve(self, samples: Samples, progress: float, extra_loss: Callable[[], Tensor] | None) -> dict[str, float]:
        extra = extra_loss() if extra_loss else None
        gradients = {n: b.zeros() if extra is None else b.gradient(extra) for n, b in self.blocks.items()}
        drawn = torch.randperm(len(samples), device=self.policy.fixed.device)
        fisher_samples = samples.rows(drawn[: math.ceil(self.fisher_fraction * len(samples))])
        steps = [self._step(name, samples, fisher_samples, gradients[name]) for name in gradients]
        policy_loss, entropy = torch.stack([losses for losses, _ in steps]).mean(0).tolist()
        kl, accepted, backtracks = torch.cat([search for _, search in steps], -1)
        return {
            "policy_loss": policy_loss,
            "value_loss": self._fit_critic(samples),
            "entropy": entropy,
            "approx_kl": kl.mean().item(),
            "max_kl": kl.max().item(),
            "accepted": accepted.mean().item(),
            "backtracks": backtracks.mean().item(),
        }

    def _step(self, name: str, samples: Samples, fisher_samples: Samples, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Step the actor of one group; ``extra [N, P]`` is the gradient of the extra loss.

        Its policy loss and entropy ``[2]`` afterwards, and its blocks' KL, acceptance and backtracks ``[3, N]``.
        """
        blocks, actor = self.blocks[name], self.policy.actors[name]
        obs, action, mask = samples.obs[name], samples.action[name], samples.mask[name]
        with torch.no_grad():
            start, old = blocks.get(), copy.deepcopy(actor)(obs)  # a distribution may hold parameters themselves

        def surrogate(new: Distribution) -> Tensor:  # [B, A] eq. 14
            log_ratio = (new.log_prob(action) - samples.log_prob[name]) * mask
            return log_ratio.exp() * samples.advantage[name]

        def objective(new: Distribution) -> Tensor:  # [N] what each adds to the mean over living agents, and groups
            gain = surrogate(new) + self.entropy_coefficient * new.entropy()
            return blocks.sum(gain * mask) / (mask.sum().clamp(min=1) * len(self.blocks))

        def acceptable() -> Tensor:  # [N]
            new = actor(obs)
            growth = objective(new) - objective(old) - _dot(extra, blocks.get() - start).squeeze(-1)
            return (growth > 0) & (blocks.mean(old.kl(new), mask) <= self.max_kl)

        gradient = blocks.gradient(objective(actor(obs)).sum()) - extra
        fisher = fisher_product(actor, blocks, fisher_samples.obs[name], fisher_samples.mask[name], self.damping)
        step = trust_region_step(fisher, gradient, self.max_kl, self.cg_iterations)
        with torch.no_grad():
            accepted, backtracks = line_search(blocks, step, acceptable, self.max_backtracks, self.backtrack_factor)
            new = actor(obs)
            losses = torch.stack([-masked_mean(surrogate(new), mask), masked_mean(new.entropy(), mask)])
            return losses, torch.stack([blocks.mean(old.kl(new), mask), accepted.float(), backtracks])

    def _fit_critic(self, samples: Samples) -> float:
        """Descend on the squared errors of the values; their mean, halved."""
        losses = []
        for _ in range(self.critic_epochs):
            for minibatch in samples.minibatches(self.minibatch_size):
                loss = self._value_loss(minibatch)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                losses.append(loss.detach())
        return torch.stack(losses).mean().item()

    def _value_loss(self, samples: Samples) -> Tensor:
        values, targets = self.critic(samples.obs), samples.target
        errors = [masked_mean((values[n] - targets[n]).square(), mask) for n, mask in samples.mask.items()]
        return 0.5 * torch.stack(errors).mean()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        load_state(self.optimizer, state["optimizer"])


class Blocks:
    """The parameters of a group's actor as N independent blocks, the rows of ``[N, P]``.

    The first axis of every parameter goes from agent to agent, unless they share it.
    """

    def __init__(self, actor: Actor, count: int) -> None:
        self.parameters, self.count = list(actor.parameters()), count

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.reshape(self.count, -1) for x in tensors], 1)

    def get(self) -> Tensor:
        """A copy of the parameters ``[N, P]``."""
        return self._flat([x.detach() for x in self.parameters])

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.get())

    @torch.no_grad()
    def set(self, values: Tensor) -> None:
        """Change the parameters to ``values [N, P]``."""
        parts = values.split([x.numel() // self.count for x in self.parameters], 1)
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))

    def gradient(self, y: Tensor, weight: Tensor | None = None, create_graph: bool = False) -> Tensor:
        """Gradient ``[N, P]`` of a scalar, or of the sum of ``y * weight``; 0 where ``y`` does not depend on it."""
        gradients = torch.autograd.grad(
            y, self.parameters, weight, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return self._flat(gradients)

    def sum(self, x: Tensor) -> Tensor:
        """Sum ``x [B, A]`` over steps and over each block's agents: ``[N]``."""
        return x.sum(0).view(self.count, -1).sum(-1)

    def mean(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mean of ``x [B, A]`` over each block's living steps: ``[N]``, 0 where there is none."""
        return self.sum(x * mask) / self.sum(mask).clamp(min=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, ``[N, P] -> [N, 1]``."""
    return (a * b).sum(-1, keepdim=True)


def fisher_product(
    actor: Actor, blocks: Blocks, obs: Tensor, mask: Tensor, damping: float
) -> Callable[[Tensor], Tensor]:
    """The product of vectors ``[N, P]`` with each block's Fisher matrix plus ``damping`` on its diagonal.

    The Fisher matrix is the second derivative, at new = old, of the mean KL(old || new) over the living steps of
    ``obs [B, A, O]`` (Appendix C.1).
    """
    with torch.no_grad():
        old = actor(obs)
    kl = blocks.mean(old.kl(actor(obs)), mask)
    gradient = blocks.gradient(kl.sum(), create_graph=True)
    return lambda vector: blocks.gradient(gradient, vector) + damping * vector


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve ``product(x) = b`` row by row, ``[N, P]``, for a symmetric positive definite matrix per row."""
    x, residual, search = torch.zeros_like(b), b, b
    squared = _dot(residual, residual)
    for _ in range(iterations):
        image = product(search)
        length = squared / _dot(search, image).clamp(min=TINY)
        x, residual = x + length * search, residual - length * image
        before, squared = squared, _dot(residual, residual)
        search = residual + squared / before.clamp(min=TINY) * search
    return x


def trust_region_step(
    fisher: Callable[[Tensor], Tensor], gradient: Tensor, max_kl: float, cg_iterations: int
) -> Tensor:
    """The natural gradient ``x [N, P]``, made ``sqrt(2 max_kl / x F x)`` times as long."""
    x = conjugate_gradient(fisher, gradient, cg_iterations)
    return x * (2 * max_kl / _dot(x, fisher(x)).clamp(min=TINY)).sqrt()


@torch.no_grad()
def line_search(
    blocks: Blocks, step: Tensor, acceptable: Callable[[], Tensor], max_backtracks: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Shorten each block's ``step [N, P]`` by ``factor`` until its new parameters are ``acceptable`` ``[N]``.

    A block that never gets there has its old parameters back, bit for bit. Returns who was accepted ``[N]`` bool, and
    how often each step was found too long ``[N]``.
    """
    start, length = blocks.get(), torch.ones_like(step[:, :1])
    backtracks = torch.zeros_like(step[:, 0])
    for _ in range(max_backtracks + 1):
        blocks.set(start + length * step)
        accepted = acceptable()
        if accepted.all():
            break
        length = torch.where(accepted.unsqueeze(-1), length, length * factor)
        backtracks += ~accepted
    blocks.set(torch.where(accepted.unsqueeze(-1), start + length * step, start))
    return accepted, backtracks
