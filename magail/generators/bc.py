"""Behavioural cloning: maximum likelihood on demonstrations, stopped where held-out demonstrations say so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from magail.demonstrations import Demonstrations
from magail.policy import Policy


class BehavioralCloning:
    """Clones demonstrations into a policy, and gives the cloning term that a generator may add to its loss.

    ``held_out`` demonstrations (None: there are none) decide which step's parameters are kept. It is what makes this an
    honest baseline: with few demonstrations, cloning until the end of its budget overfits.
    """

    def __init__(
        self,
        policy: Policy,
        demonstrations: Demonstrations,
        held_out: Demonstrations | None,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        evaluate_every: int,
        coefficient: float,
    ) -> None:
        self.policy, self.demonstrations, self.held_out = policy, demonstrations, held_out
        self.steps, self.batch_size, self.evaluate_every = steps, batch_size, evaluate_every
        self.coefficient = coefficient
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=weight_decay)

    def loss(self) -> Tensor:
        """Negative log-likelihood in nats of a random batch of demonstrations."""
        return self.policy.negative_log_likelihood(self.demonstrations.sample(self.batch_size))

    def term(self, progress: float) -> Callable[[], Tensor] | None:
        """The cloning term of a generator's loss; its weight falls linearly to 0 as ``progress`` goes from 0 to 1."""
        weight = self.coefficient * (1.0 - progress)
        return (lambda: weight * self.loss()) if weight > 0.0 else None

    def fit(self, log: Callable[[int, dict[str, float]], None]) -> None:
        """Clone for ``steps`` gradient steps, then go back to the parameters with the least held-out loss.

        The policy's observation statistics become those of the demonstrations, and stay so.
        """
        self.policy.fit_normalizer(self.demonstrations.transitions)
        best_loss, best_state = float("inf"), copy.deepcopy(self.policy.state_dict())
        for step in range(1, self.steps + 1):
            loss = self.loss()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if step % self.evaluate_every == 0 or step == self.steps:
                info = self.held_out_info()
                log(step, {"bc/loss": loss.item(), **info})
                held_out_loss = info.get("bc/held_out_loss", -step)  # without held-out ones the last step is the best
                if held_out_loss < best_loss:
                    best_loss, best_state = held_out_loss, copy.deepcopy(self.policy.state_dict())
        self.policy.load_state_dict(best_state)

    @torch.no_grad()
    def held_out_info(self) -> dict[str, float]:
        """Mean negative log-likelihood of the held-out demonstrations; nothing where there are none."""
        if self.held_out is None:
            return {}
        return {"bc/held_out_loss": self.policy.negative_log_likelihood(self.held_out.transitions).item()}
