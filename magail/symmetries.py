"""Views from which an environment looks the same, such as the mirror images of a plane.

What an expert does in one view it may do in all: a demonstration is then worth as many as there are views, and a policy
that trains in random views cannot learn the few initial states of its demonstrations by heart. ``env.symmetries`` makes
an environment's `Symmetries`; `in_all_views` shows demonstrations from each, and `RandomViews` every episode of
training from one. Experts need not treat all views alike, so `what_is_shared` asks their demonstrations. Who is called
what is such a view too, but what agents have settled among each other hangs on names: ``env.conventions`` makes one
`Symmetries` for everything that they may have settled, and `likeliest` finds what they did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magail.demonstrations import Demonstrations
from magail.generators.bc import BehavioralCloning, all_of
from magail.policy import Policy
from magail.types import BatchedEnv, BatchedEnvWrapper, ByGroup, Step, Symmetries

FOLDS = 5  # of the cross-validation that asks demonstrations
TRIAL_STEPS = 800  # of cloning at most, enough to tell two clones apart
CERTAIN = 0.05  # nats with which actions are as good as predicted: a probability of 95 %
TRIAL_RATE = 4e-3  # at the learning rate of cloning itself clones of many images would not get far enough in those

Trial = Callable[[Demonstrations], Policy]  # a short clone


def made_for(env: BatchedEnv, made: Any, key: str) -> Symmetries:
    """What the option ``key`` made, on the environment's device.

    Raises:
        ValueError: it is no `Symmetries` of the environment's agents (`Symmetries.check`).
    """
    if not isinstance(made, Symmetries):
        raise ValueError(f"{key}: a magail.types.Symmetries is wanted, not {made!r:.80}")
    try:
        made.to(torch.device("cpu")).check(env.groups)
    except ValueError as error:
        raise ValueError(f"{key}: {error}; or go on without: symmetries=false") from error
    return made.to(env.device)


def in_all_views(demonstrations: Demonstrations, *symmetries: Symmetries) -> Demonstrations:
    """The N demonstrations, then their images from the other views: G N in all. No reset seed begins like an image.

    Several ``symmetries`` follow on each other.
    """
    return functools.reduce(_in_all_views, symmetries, demonstrations)


def _in_all_views(demonstrations: Demonstrations, symmetries: Symmetries) -> Demonstrations:
    number, steps = symmetries.number, demonstrations.num_steps
    index = torch.arange(number * steps, device=demonstrations.device) % steps
    views = torch.arange(number, device=demonstrations.device).repeat_interleave(steps)
    seeds = demonstrations.seeds.repeat(number)
    seeds[len(demonstrations) :] = -1
    ends = demonstrations.whole_ends
    if ends is not None:  # those of who comes to each place, in the mean over the views
        each = {name: share.expand(number, -1) for name, share in ends.items()}
        placed = symmetries.places(each, torch.arange(number, device=demonstrations.device))
        ends = {name: share.mean(0, keepdim=True) for name, share in placed.items()}
    return replace(
        demonstrations,
        whole_ends=ends,
        transitions=symmetries.see(demonstrations.transitions.rows(index), views),
        lengths=demonstrations.lengths.repeat(number),
        seeds=seeds,
    )


def shown(shared: bool | int, views: Symmetries, conventions: Sequence[Symmetries]) -> list[Symmetries]:
    """The symmetries that an answer of `what_is_shared` stands for.

    Raises:
        ValueError: the number of a convention that there is not.
    """
    if isinstance(shared, bool):
        return [views] if shared else []
    if shared not in range(len(conventions)):
        raise ValueError(f"symmetries={shared}: there are {len(conventions)} conventions, counted from 0; take auto")
    return [views, conventions[shared]]


def what_is_shared(
    demonstrations: Demonstrations,
    views: Symmetries,
    conventions: Sequence[Symmetries],
    new_policy: Callable[[], Policy],
    seed: int,
    **cloning: Any,
) -> bool | int:
    """What the demonstrator treats as if it were one, as far as that helps.

    Clones of demonstrations as they are, in all ``views``, and in those times the likeliest of the ``conventions``
    predict other demonstrations: by each group's mean likelihood in a cross-validation, at the end of cloning. What a
    clone was at its best says less: nobody stops there, and the fewer the images, the sooner it is passed. Of answers
    that are as good (`last_as_good`) the one with most images is taken, which longer cloning overfits least. A lone
    demonstration cannot be asked, and nothing then speaks against the last.

    Args:
        new_policy: makes one like what is to be cloned into.
        seed: of the cross-validation.
        cloning: options of `BehavioralCloning`.

    Returns:
        False (nothing), True (the views) or the number of the convention (it and the views).
    """
    trial = functools.partial(_trial, new_policy, cloning)
    answers: list[bool | int] = [False, True]
    with torch.random.fork_rng():  # training does not depend on whether anybody asked
        torch.manual_seed(seed)  # nor does the answer on what was drawn before: a run that is taken up again must agree
        if len(conventions) == 1:  # there is nothing to choose, and its images may be hundreds of each demonstration
            answers.append(0)
        elif conventions:
            answers.append(likeliest(conventions, in_all_views(demonstrations, views), trial))
        if len(demonstrations) == 1:
            return answers[-1]
        folds = list(demonstrations.folds(min(FOLDS, len(demonstrations)), seed))
        losses = []
        for answer in answers:
            symmetries = shown(answer, views, conventions)
            losses.append([_losses(trial(in_all_views(some, *symmetries)), others) for some, others in folds])
    return answers[last_as_good(torch.tensor(losses))]


def last_as_good(losses: Tensor) -> int:
    """The last of the answers that are as good as any for every group, by ``losses [answers, folds, groups]``.

    That is at most a standard error above the least mean, or `CERTAIN`. The error is of the mean difference over the
    folds: the rule of Breiman et al. (1984), paired. It is next to nothing where demonstrators leave nothing to chance,
    and so is what more images then cost. Groups are asked one by one, as a listener that gains much by other names does
    not make up for a speaker that never used them. Where no answer suits all, their mean is asked.
    """
    as_good = _are_as_good(losses).all(-1)
    if not as_good.any():
        as_good = _are_as_good(losses.mean(-1, keepdim=True)).squeeze(-1)
    return int(as_good.nonzero().max())


def _are_as_good(losses: Tensor) -> Tensor:
    """``[answers, groups]``."""
    means = losses.mean(1)  # [answers, groups]
    behind = losses - losses.gather(0, means.argmin(0)[None, None].expand(1, *losses.shape[1:]))
    tied = behind.mean(1) <= behind.std(1) / losses.shape[1] ** 0.5
    return tied | (means <= CERTAIN)


def likeliest(conventions: Sequence[Symmetries], demonstrations: Demonstrations, trial: Trial) -> int:
    """The number of the convention that the demonstrator keeps to.

    It is the one by which a clone of the ``demonstrations`` finds their images likeliest. A team in which everybody has
    a landmark of its own is likely to do the same by other names if landmarks are renamed along with who owns them.
    """
    clone = trial(demonstrations)
    losses = [sum(_losses(clone, in_all_views(demonstrations, convention))) for convention in conventions]
    return losses.index(min(losses))


@torch.no_grad()
def _losses(clone: Policy, others: Demonstrations) -> list[float]:
    """By group."""
    return [loss.item() for loss in clone.negative_log_likelihoods(all_of(others, clone)).values()]


def _trial(new_policy: Callable[[], Policy], cloning: dict[str, Any], demonstrations: Demonstrations) -> Policy:
    steps = TRIAL_STEPS if cloning["steps"] in ("auto", 0) else min(cloning["steps"], TRIAL_STEPS)
    policy = new_policy().to(demonstrations.device)
    pace = {"steps": steps, "evaluate_every": steps, "learning_rate": TRIAL_RATE}
    BehavioralCloning(policy, demonstrations, None, **cloning | pace).fit(lambda step, info: None)
    return policy


class RandomViews(BatchedEnvWrapper):
    """A batched environment of which every episode is seen, and acted in, from a random one of its views.

    ``symmetries`` are on the environment's device.
    """

    def __init__(self, env: BatchedEnv, symmetries: Symmetries) -> None:
        super().__init__(env, env.device)
        self.symmetries = symmetries
        self._view = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)  # [E]

    def reset(self, seeds: Iterator[int]) -> None:
        self._view = self._random_views()
        super().reset(seeds)

    def step(self, action: ByGroup) -> Step:
        view, symmetries = self._view, self.symmetries
        step = self.env.step(symmetries.undo_action(action, view))
        self._view = torch.where(step.done, self._random_views(), view)
        self._look()
        placed = step.map_groups(lambda values: symmetries.places(values, view))
        return replace(placed, next_obs=symmetries.see_obs(step.next_obs, view))

    def _random_views(self) -> Tensor:
        return torch.randint(self.symmetries.number, (self.num_envs,), device=self.device)

    def _look(self) -> None:
        self.obs = self.symmetries.see_obs(self.env.obs, self._view)
        self.mask = self.symmetries.places(self.env.mask, self._view)

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "view": self._view.clone()}

    def load_state_dict(self, state: dict[str, Any], seeds: Iterator[int]) -> None:
        self._view = state["view"].to(self.device)
        super().load_state_dict(state["env"], seeds)
