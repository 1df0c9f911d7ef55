"""The views of a particle world: mirror images and quarter turns of its plane, and other names for what is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from magail.types import AgentGroup, ByGroup, Change, Renamed, Reordered, Symmetries
from magail_envs.particle.env import MOVES, ParticleEnv

MOST = 4  # things of a convention: five would have 120 views, and 120 partners to choose from

Order = tuple[int, ...]  # a permutation: thing i is now called order[i]


class View(Protocol):
    """What a world's state and the controls of its agents become where it is seen in another way."""

    def state(self, state: dict[str, Tensor], world: ParticleEnv[Any]) -> dict[str, Tensor]: ...

    def controls(self, controls: Tensor) -> Tensor:
        """``[K, 2 + C]``, moves and what is said with them; ``[K, 2]`` of the silent."""
        ...

    def agents(self, group: AgentGroup) -> Order: ...


class Turned:
    """One of the eight ways to look at a plane."""

    def __init__(self, swap: bool, left_right: bool, up_down: bool) -> None:
        self.swap, self.sign = swap, torch.tensor([-1.0 if left_right else 1.0, -1.0 if up_down else 1.0])

    def see(self, vectors: Tensor) -> Tensor:
        """``[..., 2]``: the axes change places, then signs."""
        return (vectors.flip(-1) if self.swap else vectors) * self.sign.to(vectors)

    def state(self, state: dict[str, Tensor], world: ParticleEnv[Any]) -> dict[str, Tensor]:
        turned = {name: self.see(state[name].transpose(-1, -2)).transpose(-1, -2) for name in ("pos", "vel")}
        return state | turned

    def controls(self, controls: Tensor) -> Tensor:
        return torch.cat([self.see(controls[:, :2]), controls[:, 2:]], 1)

    def agents(self, group: AgentGroup) -> Order:
        return tuple(range(group.num_agents))


VIEWS = [Turned(*which) for which in itertools.product((False, True), repeat=3)]  # the first shows things as they are


class Otherwise:
    """Agents (of the only group), landmarks and words by other names; None: by their own.

    Whoever has a landmark as its goal has it still, whatever it is called.
    """

    def __init__(self, **names: Order) -> None:
        self.names = {what: torch.tensor(order) for what, order in names.items()}

    def _called(self, what: str, number: int) -> Tensor:
        return self.names.get(what, torch.arange(number))

    def state(self, state: dict[str, Tensor], world: ParticleEnv[Any]) -> dict[str, Tensor]:
        number, landmarks = len(world.world.agents), len(world.world.landmarks)
        agents, words = self._called("agents", number).argsort(), self._called("words", world.symbols).argsort()
        names = self._called("landmarks", landmarks)
        entities = torch.cat([agents, number + names.argsort()])
        renamed = {
            "pos": state["pos"][entities],
            "vel": state["vel"][agents],
            "speech": state["speech"][agents][:, words],
        }
        if "goal" in state:
            renamed["goal"] = names.to(state["goal"].device)[state["goal"]]
        return state | renamed

    def controls(self, controls: Tensor) -> Tensor:
        if controls.shape[1] == 2:
            return controls
        words = self._called("words", controls.shape[1] - 2).argsort()
        return controls[:, [0, 1, *(2 + words).tolist()]]

    def agents(self, group: AgentGroup) -> Order:
        return tuple(self._called("agents", group.num_agents).tolist())


def mirror_images_and_turns(world: ParticleEnv[Any]) -> Symmetries:
    """The eight `Symmetries` of a ``world`` of this package, which has many copies and serves nothing else.

    What a task's observations hold is not spelled out a second time: the world is turned and looked at again. Nothing
    in it depends on the directions of the axes, not even where episodes begin (but for simple_line, which turns a
    landmark always the same way until it is inside); what was said, who is who and which landmark is the goal are the
    same in all views.
    """
    return _symmetries(world, VIEWS)


def conventions(world: ParticleEnv[Any], between: Sequence[str]) -> list[Symmetries]:
    """The n! ways to pair the n agents, landmarks or words of a ``world`` of this package, each with its n! views.

    Nothing distinguishes the landmarks of a world, or the words of its speakers, yet a team that plays well has settled
    who takes which, and what means which. Where both are renamed alike, everybody keeps to what was settled. The world,
    which has many copies and serves nothing else, is renamed and looked at again.

    Args:
        between: the two that are paired, of ``agents`` (of the only group), ``landmarks`` and ``words``.

    Returns:
        none where there is nothing to pair, or more than `MOST`.
    """
    number = len(world.world.landmarks)
    if not 2 <= number <= MOST:
        return []
    orders = list(itertools.permutations(range(number)))
    return [_symmetries(world, [_renamed(between, order, partner) for order in orders]) for partner in orders]


def _renamed(between: Sequence[str], order: Order, partner: Order) -> Otherwise:
    """The first things are renamed to ``order``; their partners along with them, to those of the first's new names."""
    of_partners = {partner[thing]: partner[called] for thing, called in enumerate(order)}
    first, second = between
    return Otherwise(**{first: order, second: tuple(of_partners[thing] for thing in range(len(order)))})


def _symmetries(world: ParticleEnv[Any], views: Sequence[View]) -> Symmetries:
    world.reset(itertools.count())
    random = torch.Generator(world.device).manual_seed(0)
    world.state["vel"].uniform_(-1, 1, generator=random)
    world.state["speech"].uniform_(-1, 1, generator=random)
    seen = list(_observations(world, views))
    agents = {group.name: torch.tensor([view.agents(group) for view in views]).argsort(-1) for group in world.groups}
    return Symmetries(
        len(views),
        {name: _reordered([obs[name] for obs in seen], agents[name]) for name in agents},
        {group.name: _action(world, group, views) for group in world.groups},
        {name: order for name, order in agents.items() if (order != order[0]).any()},
    )


def _observations(world: ParticleEnv[Any], views: Sequence[View]) -> Iterator[ByGroup]:
    """What is seen from each view."""
    state = world.state_dict()
    for view in views:
        world.load_state_dict(state | {"state": view.state(state["state"], world)}, itertools.count())
        yield world.obs


def _reordered(obs: Sequence[Tensor], agents: Tensor) -> Reordered:
    """Which number of the first observation ``[E, A, O]``, up to its sign, each number of the others is.

    It is looked for in the observation of who comes to each place, ``agents [G, A]``.
    """
    before = [_columns(obs[0][:, agent]) for agent in range(agents.shape[1])]
    found = [
        [_found(_columns(seen[:, place]), before[agent]) for place, agent in enumerate(order)]
        for seen, order in zip(obs, agents.tolist(), strict=True)
    ]
    source, sign = torch.tensor(found).unbind(-1)
    return Reordered(source, sign.float())


def _columns(obs: Tensor) -> np.ndarray:
    """``[E, O]`` as ``[O, E]``, without negative zeros."""
    return obs.t().numpy() + 0.0


def _found(after: np.ndarray, before: np.ndarray) -> list[tuple[int, int]]:
    """For each row of ``after [O, E]`` the row of ``before`` that it is up to a sign, best its own; and the sign."""
    places = [(sign, row) for sign in (1, -1) for row in range(len(before))]
    rows = {(sign * before[row] + 0.0).tobytes(): (row, sign) for sign, row in reversed(places)}
    own = (after == before).all(1)
    return [(number, 1) if own[number] else rows[seen.tobytes()] for number, seen in enumerate(after)]


def _action(world: ParticleEnv[Any], group: AgentGroup, views: Sequence[View]) -> Change:
    """Moves change their direction, words their names; doing nothing stays."""
    agent = world.kind[group.name]
    if isinstance(group.action_space, spaces.Discrete):
        return Renamed(_called(world.controls[group.name], views))
    numbers = torch.empty(len(views), 0, dtype=torch.int64)
    if agent.movable:
        numbers = _called(torch.from_numpy(MOVES).float(), views).argsort(-1)
    if not agent.silent:
        words = _called(F.pad(torch.eye(world.symbols), (2, 0)), views).argsort(-1)
        numbers = torch.cat([numbers, numbers.shape[1] + words], -1)
    numbers = numbers.unsqueeze(1)
    return Reordered(numbers, torch.ones_like(numbers, dtype=torch.float32))


def _called(controls: Tensor, views: Sequence[View]) -> Tensor:
    """Which of ``controls [K, 2 + C]`` each of them becomes in each view, ``[G, K]``."""
    seen = torch.stack([view.controls(controls) for view in views])
    return (seen.unsqueeze(2) == controls).all(-1).int().argmax(-1)
