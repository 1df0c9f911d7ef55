"""The views of a particle world: the mirror images and quarter turns of its plane."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from magail.types import AgentGroup, ByGroup, Change, Renamed, Reordered, Symmetries
from magail_envs.particle.env import MOVES, ParticleEnv


class View:
    """One of the eight ways to look at a plane."""

    def __init__(self, swap: bool, left_right: bool, up_down: bool) -> None:
        self.swap, self.sign = swap, torch.tensor([-1.0 if left_right else 1.0, -1.0 if up_down else 1.0])

    def see(self, vectors: Tensor) -> Tensor:
        """``[..., 2]``: the axes change places, then signs."""
        return (vectors.flip(-1) if self.swap else vectors) * self.sign.to(vectors)


VIEWS = [View(*which) for which in itertools.product((False, True), repeat=3)]  # the first shows things as they are


def mirror_images_and_turns(world: ParticleEnv[Any]) -> Symmetries:
    """The eight `Symmetries` of a ``world`` of this package, which has many copies and serves nothing else.

    What a task's observations hold is not spelled out a second time: the world is turned and looked at again. Nothing
    in it depends on the directions of the axes, not even where episodes begin (but for simple_line, which turns a
    landmark always the same way until it is inside); what was said, who is who and which landmark is the goal are the
    same in all views.
    """
    world.reset(itertools.count())
    random = torch.Generator(world.device).manual_seed(0)
    world.state["vel"].uniform_(-1, 1, generator=random)
    world.state["speech"].uniform_(-1, 1, generator=random)
    obs = list(_observations(world))
    seen = {group.name: _reordered([of_view[group.name] for of_view in obs]) for group in world.groups}
    return Symmetries(len(VIEWS), seen, {group.name: _action(world, group) for group in world.groups})


def _observations(world: ParticleEnv[Any]) -> Iterator[ByGroup]:
    """What is seen from each view."""
    state = world.state_dict()
    for view in VIEWS:
        turned = {name: _turned(view, state["state"][name]) for name in ("pos", "vel")}
        world.load_state_dict(state | {"state": state["state"] | turned}, itertools.count())
        yield world.obs


def _turned(view: View, vectors: Tensor) -> Tensor:
    """``[..., 2, E]``."""
    return view.see(vectors.transpose(-1, -2)).transpose(-1, -2)


def _reordered(obs: Sequence[Tensor]) -> Reordered:
    """Which number of the first observation ``[E, A, O]``, up to its sign, each number of the others is."""
    columns = [seen.flatten(0, 1).t() for seen in obs]  # [O, B]
    found = [[_find(after, number, columns[0]) for number, after in enumerate(seen)] for seen in columns]
    source, sign = torch.tensor(found).unbind(-1)
    return Reordered(source, sign.float())


def _find(after: Tensor, number: int, before: Tensor) -> tuple[int, int]:
    """The row of ``before [O, B]`` that is ``after [B]`` up to its sign, its own ``number`` first; and the sign."""
    for sign, row in itertools.product((1, -1), (number, *range(len(before)))):
        if torch.equal(sign * before[row], after):
            return row, sign
    raise AssertionError(f"number {number} of the observation is not among those of another view")


def _action(world: ParticleEnv[Any], group: AgentGroup) -> Change:
    """Moves change their direction; doing nothing and what is said stay."""
    space = group.action_space
    if isinstance(space, spaces.Discrete):
        return Renamed(_same_rows(world.controls[group.name]))
    assert isinstance(space, spaces.Box)
    numbers = torch.arange(space.shape[0]).repeat(len(VIEWS), 1)
    if world.kind[group.name].movable:
        numbers[:, : len(MOVES)] = _same_rows(torch.from_numpy(MOVES).float()).argsort(-1)
    return Reordered(numbers, torch.ones_like(numbers, dtype=torch.float32))


def _same_rows(controls: Tensor) -> Tensor:
    """Where in ``controls [K, 2 + ...]``, of which the first two are a move, each of them is found in each view."""
    turned = torch.stack([torch.cat([view.see(controls[:, :2]), controls[:, 2:]], 1) for view in VIEWS])
    return (turned.unsqueeze(2) == controls).all(-1).int().argmax(-1)
