"""Behavioural cloning: maximum likelihood on demonstrations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from magail.demonstrations import Demonstrations
from magail.policy import Policy
from magail.ranges import check_cloning
from magail.types import JointTransition

PRIOR = 300.0  # what "auto" weight decay divides by the steps there are to clone
SLOWEST, FASTEST, FEW = 1e-3, 3e-3, 6000  # between which "auto" learning rates lie, and where the slowest ends
FEWEST = 10_000  # "auto" gradient steps; more are taken only where the rate is the fastest


class BehavioralCloning:
    """Clones demonstrations into a policy, and gives the cloning term that a generator may add to its loss.

    Weight decay, not early stopping, holds it back from overfitting: a single held-out episode of five stopped it far
    too early, and cost a fifth of the data. ``auto`` is 300 over the steps there are to clone, as the prior of a
    Bayesian counts less the more data there are. The more there is to clone the farther cloning may go, too
    (`auto_pace`). ``held_out`` demonstrations (None: there are none) are watched only.

    Raises:
        ValueError: ``steps`` that are neither ``auto`` nor an integer >= 0, or a ``learning_rate`` or ``weight_decay``
            that is neither ``auto`` nor a number >= 0.
    """

    def __init__(
        self,
        policy: Policy,
        demonstrations: Demonstrations,
        held_out: Demonstrations | None,
        *,
        steps: int | str,
        batch_size: int,
        learning_rate: float | str,
        weight_decay: float | str,
        evaluate_every: int,
        coefficient: float,
    ) -> None:
        self.policy, self.demonstrations, self.held_out = policy, demonstrations, held_out
        self.batch_size, self.evaluate_every, self.coefficient = batch_size, evaluate_every, coefficient
        check_cloning(steps, learning_rate, weight_decay)
        number = demonstrations.num_steps
        auto_steps, auto_rate = auto_pace(number)
        self.steps = auto_steps if steps == "auto" else int(steps)
        rate = auto_rate if learning_rate == "auto" else float(learning_rate)
        decay = PRIOR / number if weight_decay == "auto" else float(weight_decay)
        self.options = {"steps": self.steps, "learning_rate": rate, "weight_decay": decay}
        """What each that may be ``auto`` came to."""
        self.optimizer = torch.optim.AdamW(policy.decayed(decay), lr=rate, fused=True)

    def loss(self) -> Tensor:
        """Negative log-likelihood in nats of a random batch of demonstrations: steps, or episodes if recurrent."""
        sample = self.demonstrations.sample_episodes if self.policy.recurrent else self.demonstrations.sample
        return self.policy.negative_log_likelihood(sample(self.batch_size))

    def term(self, progress: float) -> Callable[[], Tensor] | None:
        """The cloning term of a generator's loss; its weight falls linearly to 0 as ``progress`` goes from 0 to 1."""
        weight = self.coefficient * (1.0 - progress)
        return (lambda: weight * self.loss()) if weight > 0.0 else None

    def fit(self, log: Callable[[int, dict[str, float]], None]) -> None:
        """Clone for ``steps`` gradient steps.

        The policy's observation statistics become those of the demonstrations, and stay so.
        """
        self.policy.fit_normalizer(self.demonstrations.transitions)
        for step in range(1, self.steps + 1):
            loss = self.loss()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if step % self.evaluate_every == 0 or step == self.steps:
                log(step, {"bc/loss": loss.item(), **held_out_info(self.policy, self.held_out)})


def auto_pace(num_steps: int) -> tuple[int, float]:
    """Gradient steps, and AdamW's learning rate in them, for as many steps to clone.

    Their product grows with the square root of these: first the rate, up to the fastest, then the gradient steps.
    """
    farther = max((num_steps / FEW) ** 0.5, 1.0)
    rate = min(SLOWEST * farther, FASTEST)
    return round(FEWEST * SLOWEST * farther / rate), rate


@torch.no_grad()
def held_out_info(policy: Policy, held_out: Demonstrations | None) -> dict[str, float]:
    """Mean negative log-likelihood of held-out demonstrations; nothing where there are none."""
    if held_out is None:
        return {}
    return {"bc/held_out_loss": policy.negative_log_likelihood(all_of(held_out, policy)).item()}


def all_of(demonstrations: Demonstrations, policy: Policy) -> JointTransition:
    """All there is, as the policy's likelihoods are asked for: steps, or episodes if it is recurrent."""
    return demonstrations.episodes(range(len(demonstrations))) if policy.recurrent else demonstrations.transitions
