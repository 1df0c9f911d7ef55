"""Dataset aggregation: the expert says what it would have done where the policy went."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from magail.demonstrations import Demonstrations
from magail.experts import Source, load_expert
from magail.experts import most_likely as most_likely_actions
from magail.generators.generator import PolicyAverage, RewardFn, refuse_memory
from magail.optim.options import load_state
from magail.policy import Policy, PolicyOptions
from magail.population import Population
from magail.ranges import check_range
from magail.types import AgentGroup, JointTransition, Transition, concatenate


class DAgger:
    """DAgger (Ross et al. 2011, arXiv 1011.0686, algorithm 3.1).

    Each update labels the states of the rollout with the expert's actions, adds them to the dataset, which begins with
    the demonstrations, and goes on cloning the dataset. The demonstrations are the first round, played by the expert;
    after it the policy plays alone: the paper's ``beta_i = I(i = 1)``. No reward is used. ``expert`` names it
    (`load_expert`), and conf/generator/dagger.yaml explains the options.

    Raises:
        ValueError: there is no expert, it or the policy is recurrent, or an option is out of range.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        *,
        policy: PolicyOptions,
        expert: Source | None,
        most_likely: bool,
        capacity: int,
        steps: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        averaging: float,
    ) -> None:
        check_range({"generator.capacity": capacity, "generator.batch_size": batch_size, "generator.steps": steps}, 1)
        check_range({"generator.learning_rate": learning_rate, "generator.weight_decay": weight_decay}, 0)
        if expert is None:
            raise ValueError(
                "DAgger asks an expert about every state, and this environment ships none: train one with "
                "algorithm=rl and set env.expert to its run folder"
            )
        known = load_expert(expert, groups)
        self.expert = most_likely_actions(known) if most_likely else known
        self.policy = Policy(groups, **policy)
        asked = known.policies if isinstance(known, Population) else [known]
        refuse_memory(self.policy, *(one for one in asked if isinstance(one, Policy)))
        self.average = PolicyAverage(self.policy, averaging)
        self.steps, self.batch_size, self.capacity = steps, batch_size, capacity
        self.optimizer = torch.optim.AdamW(self.policy.decayed(weight_decay), lr=learning_rate, fused=True)
        self.dataset: JointTransition | None = None  # [B], B up to the capacity
        self.tickets = torch.empty(0, device=self.policy.fixed.device)  # [B] in [0, 1): the highest stay

    @property
    def averaged(self) -> Policy:
        return self.average.policy

    def compile(self) -> None:
        """Nothing: cloning's steps are too small for it to pay."""

    def update(
        self,
        rollout: JointTransition,
        reward_fn: RewardFn,
        progress: float = 0.0,
        extra_loss: Callable[[], Tensor] | None = None,
        demonstrations: Demonstrations | None = None,
    ) -> dict[str, float]:
        if self.dataset is None and demonstrations is not None:
            self._aggregate(demonstrations.transitions)
        visited = self._label(rollout.flatten())
        with torch.no_grad():
            visited_loss = self.policy.negative_log_likelihood(visited).item()
        dataset = self._aggregate(visited)
        self.policy.observe(rollout)
        losses = [self._step(dataset, extra_loss) for _ in range(self.steps)]
        self.average.update()
        return {
            "generator/loss": torch.stack(losses).mean().item(),
            "generator/visited_loss": visited_loss,
            "generator/dataset_size": len(self.tickets),
        }

    def _label(self, batch: JointTransition) -> JointTransition:
        """``batch`` with the expert's actions, as the environment would have taken them."""
        action, _ = self.expert.act(batch.field("obs"))
        heads = {name: actor.head for name, actor in self.policy.actors.items()}
        return JointTransition(
            {
                name: dataclasses.replace(group, action=heads[name].executed(action[name]))
                for name, group in batch.groups.items()
            }
        )

    def _aggregate(self, batch: JointTransition) -> JointTransition:
        """The dataset with ``batch [B]`` added; beyond the capacity, a uniformly random part of all there has been.

        Every step draws a ticket when it comes, and those with the highest stay.
        """
        groups = {  # successors are not learned from: they are left without columns
            name: dataclasses.replace(group, next_obs=group.next_obs[..., :0]) for name, group in batch.groups.items()
        }
        parts = [JointTransition(groups)] if self.dataset is None else [self.dataset, JointTransition(groups)]
        self.dataset = concatenate(parts)
        self.tickets = torch.cat([self.tickets, torch.rand(batch.batch_shape, device=self.tickets.device)])
        if len(self.tickets) > self.capacity:
            stay = self.tickets.topk(self.capacity).indices
            self.dataset, self.tickets = self.dataset.rows(stay), self.tickets[stay]
        return self.dataset

    def _step(self, dataset: JointTransition, extra_loss: Callable[[], Tensor] | None) -> Tensor:
        """Descend on a random batch; its loss."""
        cloning = self.policy.negative_log_likelihood(dataset.sample(self.batch_size))
        loss = cloning if extra_loss is None else cloning + extra_loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return cloning.detach()

    def state_dict(self) -> dict[str, Any]:
        groups = {} if self.dataset is None else self.dataset.groups
        return self.average.state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "dataset": {name: dict(vars(group)) for name, group in groups.items()},
            "tickets": self.tickets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
        load_state(self.optimizer, state["optimizer"])
        device = self.tickets.device
        groups = {name: Transition(**columns) for name, columns in state["dataset"].items()}
        self.dataset = JointTransition(groups).map(lambda x: x.to(device)) if groups else None
        self.tickets = state["tickets"].to(device)
