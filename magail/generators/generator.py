"""What every generator is to the loop: something that acts, and gets better at what it is rewarded for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from magail.demonstrations import Demonstrations
from magail.networks import Critic
from magail.policy import Policy
from magail.ranges import check_range
from magail.types import ByGroup, JointTransition

RewardFn = Callable[[JointTransition], ByGroup]
"""Rewards ``[..., A]`` a group of a rollout ``[T, E]`` or a batch ``[B]``."""


class Generator(Protocol):
    """Improves ``policy``. An update's numbers are called ``generator/...``."""

    policy: Policy

    @property
    def averaged(self) -> Policy:
        """The policy to judge and keep, one and the same at any time; not the one that learns."""
        ...

    def compile(self) -> None:
        """Let ``torch.compile`` make the updates faster."""

    def update(
        self,
        rollout: JointTransition,
        reward_fn: RewardFn,
        progress: float = 0.0,
        extra_loss: Callable[[], Tensor] | None = None,
        demonstrations: Demonstrations | None = None,
    ) -> dict[str, float]:
        """Learn from a rollout ``[T, E]`` of ``policy`` under the rewards that ``reward_fn`` gives.

        ``progress`` in [0, 1] is how much of training is over; ``extra_loss`` (the behavioural cloning term) is added
        to the policy's; ``demonstrations`` are for those that learn from them without a discriminator.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def refuse_memory(*networks: Policy | Critic) -> None:
    """For generators that learn from lone steps.

    Raises:
        ValueError: a network is recurrent.
    """
    if any(network.recurrent for network in networks):
        raise ValueError(
            "this generator learns from lone steps, whatever their order, and cannot use recurrent networks: "
            "set generator.policy.recurrent and generator.critic.recurrent to 0, or choose generator=ppo"
        )


def refuse_clipped(policy: Policy) -> None:
    """For generators whose gradients pass through the log-probabilities of draws.

    Raises:
        ValueError: the policy clips its actions.
    """
    if policy.architecture["box"] == "clipped":
        raise ValueError(
            "this generator learns through the log-probabilities of drawn actions, which jump at the bounds of "
            "generator.policy.box=clipped: set it to squashed or beta, or choose generator=ppo, trpo or mack"
        )


def with_afterlife(rewards: ByGroup, after: ByGroup, steps: JointTransition, gamma: float) -> ByGroup:
    """``rewards``, and after each termination ``after`` for ever, discounted by ``gamma``.

    So neither living nor ending pays by itself (Kostrikov et al. 2019, arXiv 1809.02925, section 4.2).
    """
    worth = gamma / (1 - gamma)
    return {name: x + worth * after[name] * steps.groups[name].terminated for name, x in rewards.items()}


class PolicyAverage:
    """The exponential average of a policy's iterates, one after each update.

    An adversary's reward is noisy and moves, so a single iterate wanders about; averages of the iterates are the
    better policies (Yazici et al. 2019, arXiv 1806.04498, for GANs). ``averaging`` is the weight of what was before;
    until there are enough iterates it is a plain mean of them, and before any it is as the policy itself.

    Raises:
        ValueError: ``averaging`` out of range.
    """

    def __init__(self, policy: Policy, averaging: float) -> None:
        check_range({"generator.averaging": averaging}, 0, 0.9999)
        self._policy, self._average, self._updates, self.averaging = policy, copy.deepcopy(policy), 0, averaging

    @property
    def begun(self) -> bool:
        """Whether there has been an update; what was cloned before is where training starts from."""
        return self._updates > 0

    @property
    def policy(self) -> Policy:
        """One and the same at any time."""
        if not self.begun:
            self._average.load_state_dict(self._policy.state_dict())
        return self._average

    @torch.no_grad()
    def update(self) -> None:
        keep = min(self.averaging, self._updates / (self._updates + 1))
        state = self._policy.state_dict()
        for name, average in self._average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(state[name], 1.0 - keep)
            else:
                average.copy_(state[name])
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """``policy`` is what `magail.policy.load_policy` reads from a checkpoint."""
        return {
            "policy": self.policy.state_dict(),
            "acting_policy": self._policy.state_dict(),
            "updates": self._updates,
            "description": self._average.description(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of the acting policy too."""
        self._policy.load_state_dict(state["acting_policy"])
        self._average.load_state_dict(state["policy"])
        self._updates = state["updates"]
