"""The views of a particle world: mirror images and quarter turns of its plane, and other names for what is there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from magail.types import AgentGroup, ByGroup, Change, JointTransition, Renamed, Reordered, Symmetries, Transition
from magail_envs.particle.env import MOVES, ParticleEnv

MOST = 4  # agents with a landmark each: five would have 120 views, in 120 ways
MOST_NAMES = 48  # each in the eight views of the plane, too
MANY = 256  # copies of a world in which no two numbers that it shows are equal by chance

Order = tuple[int, ...]  # a permutation: thing i is now called order[i]


class View(Protocol):
    """What a world's state and the controls of its agents become where it is seen in another way."""

    def state(self, state: dict[str, Tensor], world: ParticleEnv[Any]) -> dict[str, Tensor]: ...

    def controls(self, controls: Tensor, agent: int) -> Tensor:
        """``[K, 2 + C]`` of one of the world's agents, moves and what is said with them; ``[K, 2]`` of the silent."""
        ...

    def agents(self, rows: range) -> Order:
        """Of a group, the ``rows`` of the world's agents; counted from its first."""
        ...


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

    def controls(self, controls: Tensor, agent: int) -> Tensor:
        return torch.cat([self.see(controls[:, :2]), controls[:, 2:]], 1)

    def agents(self, rows: range) -> Order:
        return tuple(range(len(rows)))


VIEWS = [Turned(*which) for which in itertools.product((False, True), repeat=3)]  # the first shows things as they are


class Otherwise:
    """Landmarks, agents (each of its group's), each agent's words and keys by other names; None: by their own.

    Whoever has a landmark as its goal has it still, whatever it is called.
    """

    def __init__(
        self,
        landmarks: Order,
        agents: Order | None = None,
        words: Sequence[Order] | None = None,
        keys: Order | None = None,
    ) -> None:
        self.landmarks, self.order, self.words, self.keys = landmarks, agents, words, keys

    def state(self, state: dict[str, Tensor], world: ParticleEnv[Any]) -> dict[str, Tensor]:
        number = len(world.world.agents)
        agents = torch.tensor(self.order or range(number)).argsort()
        names = torch.tensor(self.landmarks)
        speech = state["speech"]
        if self.words:
            speech = torch.stack(
                [said[torch.tensor(order).argsort()] for said, order in zip(speech, self.words, strict=True)]
            )
        renamed = {
            "pos": state["pos"][torch.cat([agents, number + names.argsort()])],
            "vel": state["vel"][agents],
            "speech": speech[agents],
        }
        if "goal" in state:
            renamed["goal"] = names.to(state["goal"].device)[state["goal"]]
        if self.keys:
            renamed["key"] = torch.tensor(self.keys, device=state["key"].device)[state["key"]]
        return state | renamed

    def controls(self, controls: Tensor, agent: int) -> Tensor:
        if self.words is None:
            return controls
        words = torch.tensor(self.words[agent][: controls.shape[1] - 2], dtype=torch.int64).argsort()
        return torch.cat([controls[:, :2], controls[:, 2:][:, words]], 1)

    def agents(self, rows: range) -> Order:
        return tuple(self.order[row] - rows.start for row in rows) if self.order else tuple(range(len(rows)))


def mirror_images_and_turns(world: ParticleEnv[Any]) -> Symmetries:
    """The eight `Symmetries` of a ``world`` of this package, which serves nothing else; fewer where some are the same.

    What a task's observations hold is not spelled out a second time: the world is turned and looked at again. Nothing
    in it depends on the directions of the axes, not even where episodes begin (but for simple_line, which turns a
    landmark always the same way until it is inside); what was said, who is who and which landmark is the goal are the
    same in all views.
    """
    return _symmetries(world, VIEWS)


def landmarks_of_agents(world: ParticleEnv[Any], demonstrations: JointTransition) -> list[Symmetries]:
    """What a team may have settled: which of n landmarks each of n agents of a group takes, in one of n! ways.

    Where agents and landmarks are renamed alike, everybody keeps to its own: n! views in each case. The ``world``, of
    this package, which serves nothing else, is renamed and looked at again; ``demonstrations`` are not asked.

    Returns:
        none where there is one agent, or more than `MOST`.
    """
    number = len(world.world.landmarks)
    if not 2 <= number <= MOST:
        return []
    orders = list(itertools.permutations(range(number)))
    (first,) = (rows.start for rows in world.rows.values() if rows.stop - rows.start == number)
    agents = tuple(range(first, first + number))
    called = {order: _along(order, agents, number=len(world.world.agents)) for order in orders}
    return [
        _symmetries(world, [Otherwise(_along(order, owner, number=number), called[order]) for order in orders])
        for owner in orders
    ]


def interchangeable(world: ParticleEnv[Any], demonstrations: JointTransition, agents: bool) -> list[Symmetries]:
    """That nothing hangs on names: landmarks of a kind, and with ``agents`` those of a group, may be called anything.

    Obstacles are all the same to everybody, and three hunters to their prey; to each other they are if they have not
    settled who does what. The ``world``, of this package, which serves nothing else, is renamed and looked at again;
    ``demonstrations`` are not asked.

    Returns:
        none where that makes one view, or more than `MOST_NAMES`.
    """
    of_landmarks = [entity.name.rstrip("0123456789") for entity in world.world.landmarks]
    names = [agent.name for agent in world.world.agents]
    roles = [role for role, rows in world.rows.items() for _ in names[rows]]
    kinds = [_places(of_landmarks), _places(roles if agents else names)]
    if not 2 <= math.prod(math.factorial(len(alike)) for both in kinds for alike in both) <= MOST_NAMES:
        return []
    return [_symmetries(world, list(itertools.starmap(Otherwise, itertools.product(*map(_orders, kinds)))))]


def _places(kinds: Sequence[str]) -> list[list[int]]:
    """Where each kind is among all."""
    return [[place for place, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]


def _orders(kinds: list[list[int]]) -> list[Order]:
    """All ways in which things can be called by the names of their own kind; the first by their own."""
    ways = itertools.product(*(itertools.permutations(places) for places in kinds))
    places = list(itertools.chain(*kinds))
    called = [dict(zip(places, itertools.chain(*way), strict=True)) for way in ways]
    return [tuple(names[place] for place in sorted(places)) for names in called]


def languages(world: ParticleEnv[Any], demonstrations: JointTransition) -> list[Symmetries]:
    """What a team has settled: which words of each speaker mean which of n landmarks.

    That is what was said most in ``demonstrations [B]`` with each landmark as the speaker's goal. Words that were not
    said are divided among the landmarks, so that each has as many. Where landmarks and the words for them are renamed
    alike, everybody is understood: n! views. The ``world``, of this package, which serves nothing else, is renamed and
    looked at again.

    Returns:
        none where somebody speaks whom no demonstrations are of, or says the same most of two landmarks.
    """
    speakers = {role for role in world.rows if not world.kind[role].silent}
    if not speakers <= demonstrations.groups.keys():
        return []
    counts = {role: _counts(world, role, demonstrations.groups[role]) for role in speakers}
    if any(_calls_two_the_same(of_agent) for of_role in counts.values() for of_agent in of_role):
        return []
    landmarks = len(world.world.landmarks)
    meant: list[list[Order]] = []  # of each of the world's agents, the words for each landmark
    for role, rows in world.rows.items():
        nothing: list[list[Order]] = [[()] * landmarks] * (rows.stop - rows.start)
        meant += [_divided(of_agent) for of_agent in counts[role]] if role in speakers else nothing
    views = []
    for order in itertools.permutations(range(landmarks)):
        called = [_along(order, *zip(*words, strict=True), number=world.symbols) for words in meant]
        views.append(Otherwise(order, words=called))
    return [_symmetries(world, views)]


def one_time_pad(world: ParticleEnv[Any], demonstrations: JointTransition) -> list[Symmetries]:
    """What Alice and Bob have settled in simple_crypto: which words say that bit and key are the same, and which not.

    That is what Alice said most in ``demonstrations [B]``; words that she did not say are divided among the two. Where
    the bit is the other one Bob guesses that, and where the bit or the key is, but not both, Alice says the other
    words: four views. Eve, who is no party to it and learns nothing from the words alone, sees and guesses the same in
    all of them. The ``world``, of this package, which serves nothing else, is renamed and looked at again.

    Returns:
        none without demonstrations of Alice.
    """
    if "alice" not in demonstrations.groups:
        return []
    steps = demonstrations.groups["alice"]
    obs, said = steps.obs.cpu(), _said(world, "alice", steps.action.cpu())
    differ = _shown(world, "alice", obs, "goal") != _shown(world, "alice", obs, "key")  # [B, 1]
    counts = torch.stack([F.one_hot(said[differ == other], world.symbols).sum(0) for other in (False, True)])
    words = list(zip(*_divided(counts), strict=True))
    same, other = range(world.symbols), (1, 0, *range(2, world.symbols))  # the names of bits, keys and guesses
    views = []
    for bit, key in itertools.product((same, other), repeat=2):
        called = _along((0, 1) if bit is key else (1, 0), *words, number=world.symbols)
        views.append(Otherwise(tuple(bit[:2]), words=[tuple(same), tuple(bit), called], keys=tuple(key)))
    symmetries = _symmetries(world, views)
    eve, as_it_is = symmetries.obs["eve"], torch.zeros(len(views), dtype=torch.int64)
    of_eve = Reordered(eve.source[as_it_is], eve.sign[as_it_is])
    return [replace(symmetries, obs=symmetries.obs | {"eve": of_eve})]


def _along(order: Order, *partners: Order, number: int) -> Order:
    """What ``number`` things become some of which are partners of others, which are renamed to ``order``.

    A partner of i becomes the one of order[i]; who is nobody's partner keeps its name.
    """
    renamed = {partner[i]: partner[called] for partner in partners for i, called in enumerate(order)}
    return tuple(renamed.get(thing, thing) for thing in range(number))


def _counts(world: ParticleEnv[Any], role: str, steps: Transition) -> Tensor:
    """How often each agent of a ``role`` said each word with each landmark as the goal, ``[A, landmarks, C]``."""
    goals, said = _shown(world, role, steps.obs.cpu(), "goal"), _said(world, role, steps.action.cpu())  # [B, A]
    landmarks = len(world.world.landmarks)
    return torch.einsum("bal,baw->alw", F.one_hot(goals, landmarks), F.one_hot(said, world.symbols))


def _calls_two_the_same(counts: Tensor) -> bool:
    """Whether of two landmarks that were goals the same word was said most, ``counts [landmarks, C]``."""
    words = counts[counts.any(1)].argmax(1).tolist()
    return len(set(words)) < len(words)


def _divided(counts: Tensor) -> list[Order]:
    """Words divided among landmarks, the most said first and as many each, by how often they were said with each.

    ``counts [landmarks, C]``.
    """
    landmarks, symbols = counts.shape
    of_landmark: list[list[int]] = [[] for _ in range(landmarks)]
    taken: set[int] = set()
    for place in counts.flatten().argsort(descending=True, stable=True).tolist():
        landmark, word = divmod(place, symbols)
        if word not in taken and len(of_landmark[landmark]) < symbols // landmarks:
            of_landmark[landmark].append(word)
            taken.add(word)
    return [tuple(words) for words in of_landmark]


def _shown(world: ParticleEnv[Any], role: str, obs: Tensor, what: str) -> Tensor:
    """Which landmark each agent of a ``role`` sees to be ``what`` (its goal, for one) in ``obs [B, A, O]``: ``[B, A]``.

    It is what those numbers tell that depend on that alone.
    """
    landmarks = range(len(world.world.landmarks))
    looks = _looks(world, lambda state: [state | {what: torch.full_like(state[what], which)} for which in landmarks])
    seen = torch.stack([obs[role].cpu() for obs in looks])  # [landmarks, E, A, O]
    telling = (seen == seen[:, :1]).flatten(0, 2).all(0) & (seen[0] != seen[1:]).flatten(0, 2).any(0)  # [O]
    return (obs[:, None, :, telling] - seen[:, 0][..., telling]).abs().sum(-1).argmin(1)


def _said(world: ParticleEnv[Any], role: str, action: Tensor) -> Tensor:
    """The word in each of ``action [B, A, U]``: ``[B, A]``."""
    words = world.controls[role].cpu()[action[..., 0]][..., 2:] if not action.is_floating_point() else action
    return words[..., -world.symbols :].argmax(-1)


def _symmetries(world: ParticleEnv[Any], views: Sequence[View]) -> Symmetries:
    seen = _looks(world, lambda state: [view.state(state, world) for view in views])
    groups = {name: range(rows.start, rows.stop) for name, rows in world.rows.items()}
    agents = {name: torch.tensor([view.agents(rows) for view in views]).argsort(-1) for name, rows in groups.items()}
    return _distinct(
        Symmetries(
            len(views),
            {name: _reordered([obs[name] for obs in seen], agents[name]) for name in agents},
            {group.name: _action(world, group, views) for group in world.groups},
            {name: order for name, order in agents.items() if (order != order[0]).any()},
        )
    )


def _distinct(symmetries: Symmetries) -> Symmetries:
    """Each view once: where nobody sees a place or a direction, a plane looks the same from all sides."""
    changes = [*symmetries.obs.values(), *symmetries.action.values()]
    tensors = [*(x for change in changes for x in vars(change).values()), *symmetries.agents.values()]
    looks = [b"".join(x[view].numpy().tobytes() for x in tensors) for view in range(symmetries.number)]
    kept = torch.tensor([looks.index(look) for look in dict.fromkeys(looks)])

    def of(change: Any) -> Any:
        return replace(change, **{name: x[kept] for name, x in vars(change).items()})

    return Symmetries(
        len(kept),
        {name: of(change) for name, change in symmetries.obs.items()},
        {name: of(change) for name, change in symmetries.action.items()},
        {name: order[kept] for name, order in symmetries.agents.items()},
    )


def _looks(
    world: ParticleEnv[Any], changed: Callable[[dict[str, Tensor]], Sequence[dict[str, Tensor]]]
) -> list[ByGroup]:
    """What is seen in each of the states that a random one is ``changed`` to, in `MANY` copies at least."""
    random, seeds = torch.Generator(world.device).manual_seed(0), itertools.count()
    rounds = [list(_observations(world, changed, seeds, random)) for _ in range(math.ceil(MANY / world.num_envs))]
    return [{name: torch.cat([obs[name] for obs in same]) for name in same[0]} for same in zip(*rounds, strict=True)]


def _observations(
    world: ParticleEnv[Any],
    changed: Callable[[dict[str, Tensor]], Sequence[dict[str, Tensor]]],
    seeds: Iterator[int],
    random: torch.Generator,
) -> Iterator[ByGroup]:
    world.reset(seeds)
    world.state["vel"].uniform_(-1, 1, generator=random)
    world.state["speech"].uniform_(-1, 1, generator=random)
    began = world.state_dict()  # a copy: looking changes the world's own
    for state in changed(began["state"]):
        world.load_state_dict(began | {"state": state}, seeds)
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
    return obs.cpu().t().numpy() + 0.0


def _found(after: np.ndarray, before: np.ndarray) -> list[tuple[int, int]]:
    """For each row of ``after [O, E]`` one of ``before`` that it is up to a sign, best its own, and the sign."""
    own = (after == before).all(1)
    rows: dict[bytes, list[tuple[int, int]]] = {}
    for sign, row in itertools.product((-1, 1), reversed(np.flatnonzero(~own).tolist())):
        rows.setdefault((sign * before[row] + 0.0).tobytes(), []).append((row, sign))
    found, taken = [], set()
    for number, seen in enumerate(after):
        if own[number]:
            found.append((number, 1))
            continue
        alike = rows[seen.tobytes()]
        while alike[-1][0] in taken:
            alike.pop()
        found.append(alike.pop())
        taken.add(found[-1][0])
    return found


def _action(world: ParticleEnv[Any], group: AgentGroup, views: Sequence[View]) -> Change:
    """Moves change their direction, words their names; doing nothing stays."""
    agent, rows = world.kind[group.name], world.rows[group.name]
    agents = range(rows.start, rows.stop)
    if isinstance(group.action_space, spaces.Discrete):
        return Renamed(_called(world.controls[group.name].cpu(), agents, views))
    numbers = torch.empty(len(views), len(agents), 0, dtype=torch.int64)
    if agent.movable:
        numbers = _called(torch.from_numpy(MOVES).float(), agents, views).argsort(-1)
    if not agent.silent:
        words = _called(F.pad(torch.eye(world.symbols), (2, 0)), agents, views).argsort(-1)
        numbers = torch.cat([numbers, numbers.shape[-1] + words], -1)
    return Reordered(numbers, torch.ones_like(numbers, dtype=torch.float32))


def _called(controls: Tensor, agents: Sequence[int], views: Sequence[View]) -> Tensor:
    """Which of ``controls [K, 2 + C]`` each of them becomes in each view for each agent, ``[G, A, K]``."""
    seen = torch.stack([torch.stack([view.controls(controls, agent) for agent in agents]) for view in views])
    return (seen.unsqueeze(-2) == controls).all(-1).int().argmax(-1)
