"""Views from which an environment looks the same, such as the mirror images of a plane.

What an expert does in one view it may do in all: a demonstration is then worth as many as there are views, and a policy
that trains in random views cannot learn the few initial states of its demonstrations by heart. ``env.symmetries`` makes
an environment's `Symmetries`; `in_all_views` shows demonstrations from each, and `RandomViews` every episode of
training from one. Experts need not treat all views alike, so `shared_by` asks their demonstrations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magail.demonstrations import Demonstrations
from magail.generators.bc import BehavioralCloning
from magail.policy import Policy
from magail.types import BatchedEnv, BatchedEnvWrapper, ByGroup, Step, Symmetries

FOLDS = 5  # of the cross-validation that asks demonstrations
TRIAL_STEPS = 400  # of cloning at most, enough to tell two clones apart


def in_all_views(demonstrations: Demonstrations, symmetries: Symmetries) -> Demonstrations:
    """The N demonstrations, then their images from the other views: G N in all. No reset seed begins like an image."""
    number, steps = symmetries.number, demonstrations.num_steps
    index = torch.arange(number * steps, device=demonstrations.device) % steps
    views = torch.arange(number, device=demonstrations.device).repeat_interleave(steps)
    seeds = demonstrations.seeds.repeat(number)
    seeds[len(demonstrations) :] = -1
    return replace(
        demonstrations,
        transitions=symmetries.see(demonstrations.transitions.rows(index), views),
        lengths=demonstrations.lengths.repeat(number),
        seeds=seeds,
    )


def shared_by(
    demonstrations: Demonstrations, symmetries: Symmetries, policy: Policy, seed: int, **cloning: Any
) -> bool:
    """Whether the demonstrator treats the views as if they were one, as far as that helps.

    It does if clones of demonstrations in all views predict other ones better than clones of those alone: by their mean
    likelihood in a cross-validation, each clone's where it is best. A lone demonstration cannot be asked, and nothing
    then speaks against it.

    Args:
        policy: what is to be cloned into; copies of it are.
        seed: of the cross-validation.
        cloning: options of `BehavioralCloning`.
    """
    if len(demonstrations) == 1:
        return True
    steps = min(cloning["steps"] or TRIAL_STEPS, TRIAL_STEPS)
    options = cloning | {"steps": steps, "evaluate_every": max(steps // 8, 1)}

    def loss(shown: Demonstrations, others: Demonstrations) -> float:
        losses: list[float] = []
        clone = BehavioralCloning(copy.deepcopy(policy), shown, others, **options)
        clone.fit(lambda step, info: losses.append(info["bc/held_out_loss"]))
        return min(losses)

    folds = demonstrations.folds(min(FOLDS, len(demonstrations)), seed)
    with torch.random.fork_rng():  # training does not depend on whether anybody asked
        gains = [loss(shown, others) - loss(in_all_views(shown, symmetries), others) for shown, others in folds]
    return sum(gains) > 0.0


class RandomViews(BatchedEnvWrapper):
    """A batched environment of which every episode is seen, and acted in, from a random one of its views.

    ``symmetries`` are on the environment's device.
    """

    def __init__(self, env: BatchedEnv, symmetries: Symmetries) -> None:
        super().__init__(env, env.device)
        self.symmetries = symmetries
        self._undo = {name: change.inverse() for name, change in symmetries.action.items()}
        self._view = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)  # [E]

    def reset(self, seeds: Iterator[int]) -> None:
        self._view = self._random_views()
        super().reset(seeds)

    def step(self, action: ByGroup) -> Step:
        step = self.env.step({name: self._undo[name].see(x, self._view) for name, x in action.items()})
        step = replace(step, next_obs=self._seen(step.next_obs))
        self._view = torch.where(step.done, self._random_views(), self._view)
        self._look()
        return step

    def _random_views(self) -> Tensor:
        return torch.randint(self.symmetries.number, (self.num_envs,), device=self.device)

    def _seen(self, obs: ByGroup) -> ByGroup:
        return {name: self.symmetries.obs[name].see(x, self._view) for name, x in obs.items()}

    def _look(self) -> None:
        self.obs, self.mask = self._seen(self.env.obs), self.env.mask

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "view": self._view.clone()}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        self._view = state["view"].to(self.device)
        super().load_state_dict(state["env"], seeds)
