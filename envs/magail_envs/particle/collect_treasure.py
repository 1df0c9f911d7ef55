"""mpe2's ``collect_treasure_v1``: collectors bring treasures to the deposits of their kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from magail.types import ByGroup
from magail_envs.particle import env
from magail_envs.particle.seeding import Draws
from magail_envs.particle.world import Agent, Entity

COLLECTOR_SIZE, DEPOSIT_SIZE, TREASURE_SIZE = 0.05, 0.075, 0.025
MOST_DEPOSITS = 6  # mpe2 has no colour for a seventh
EDGE = 0.95  # of where treasures appear
GONE = -999.0  # where a treasure is between the step that it is picked up in and the next
LAST = 1e6  # how far a gone treasure seems to who sorts by distance


@dataclass(frozen=True)
class Arguments(env.Arguments):
    """How many of each there are; there are as many kinds of treasures as deposits."""

    num_collectors: int = 6
    num_deposits: int = 2
    num_treasures: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_collectors", "num_deposits", "num_treasures"):
            self.at_least(name, 1)
        if self.num_deposits > MOST_DEPOSITS:
            raise ValueError(
                f"num_deposits is at most {MOST_DEPOSITS}, not {self.num_deposits}: mpe2 has no more kinds"
            )


class CollectTreasure(env.ParticleEnv[Arguments]):
    """Letters: **C** collectors, **D** deposits and kinds of treasures, **K** treasures; agents are C + D = A.

    Everybody is paid 5 whenever a collector picks a treasure up or delivers one. Nobody pushes anybody.
    """

    takes = Arguments
    symbols = 2  # nobody says or hears them

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        options = self.arguments
        collectors = [(f"collector_{i}", COLLECTOR_SIZE, 1.0) for i in range(options.num_collectors)]
        deposits = [(f"deposit_{i}", DEPOSIT_SIZE, 2.25) for i in range(options.num_deposits)]
        agents = [
            Agent(name, size=size, collide=False, mass=mass, accel=1.5, max_speed=1.0)
            for name, size, mass in collectors + deposits
        ]
        treasures = range(options.num_treasures)
        return agents, [Entity(f"treasure_{i}", size=TREASURE_SIZE, collide=False) for i in treasures]

    def more_state(self) -> dict[str, Tensor]:
        """Kinds are counted from 1, 0 being no treasure; ``generator`` is the state of `Draws` for later treasures."""
        rows = {"treasure": self.arguments.num_treasures, "holding": self.arguments.num_collectors, "generator": 6}
        return {
            name: self.world.pos.new_zeros(number, self.num_envs, dtype=torch.int64) for name, number in rows.items()
        }

    def initial(self, draws: Draws) -> dict[str, NDArray[Any]]:
        """Later treasures come from a copy of the generator that mpe2 makes before it draws anything from it."""
        generator = draws.state.view(np.int64)
        agents = draws.uniform(-1, 1, len(self.world.agents), 2)
        kinds, places = [], []
        for _ in range(self.arguments.num_treasures):
            kinds.append(draws.integers(self.arguments.num_deposits) + 1)
            places.append(draws.uniform(-EDGE, EDGE, 2))
        return {"pos": np.concatenate([agents, places]), "treasure": np.stack(kinds), "generator": generator}

    def post_step(self) -> None:
        """Treasures are picked up, those that were gone appear again, and what is held is delivered."""
        world, collectors, number = self.world, self.arguments.num_collectors, len(self.world.agents)
        treasure = self.state["treasure"]
        picked = self._picked()
        holding = self.state["holding"] + (picked * treasure[:, None]).sum(0)
        gone = picked.any(1)
        self.state["treasure"] = treasure.masked_fill(gone, 0)
        world.pos[number:].masked_fill_(gone[:, None], GONE)
        self._respawn(treasure == 0)
        world.look()
        at = world.distance[:collectors, collectors:number] < COLLECTOR_SIZE + DEPOSIT_SIZE
        delivered = (at & self._one_hot(holding)).any(1)  # [C, E]
        self.state["holding"] = holding.masked_fill(delivered, 0)
        self._paid = (gone.sum(0) + delivered.sum(0)) * 5  # [E]

    def observe(self) -> ByGroup:
        """Own position and velocity, what a collector holds, then the other agents and the treasures, nearest first.

        Others show their velocity, the kind they accept and the kind they hold; treasures show their kind.
        """
        world, options, state = self.world, self.arguments, self.state
        agents, kinds = len(world.agents), options.num_deposits
        held = self._one_hot(state["holding"]).to(world.pos.dtype)  # [C, D, E]
        accepted = torch.eye(kinds, 2 * kinds, dtype=held.dtype, device=held.device)[:, :, None]
        accepts_and_holds = torch.cat([F.pad(held, (0, 0, kinds, 0)), accepted.expand(-1, -1, self.num_envs)])
        about = torch.cat([world.vel, accepts_and_holds], 1).expand(agents, -1, -1, -1)
        others = _sorted(torch.cat([world.relative[:, :agents], about], 2), world.distance[:, :agents])
        there = state["treasure"] > 0  # [K, E]
        kind = self._one_hot(state["treasure"]).to(held.dtype).expand(agents, -1, -1, -1)
        treasures = torch.cat([world.relative[:, agents:] * there[:, None], kind], 2)
        treasures = _sorted(treasures, world.distance[:, agents:].where(there, LAST))
        # an agent is the farthest from itself
        own, rest = [world.pos[:agents], world.vel], [others[:, :-1].flatten(1, 2), treasures.flatten(1, 2)]
        collectors, deposits = slice(options.num_collectors), slice(options.num_collectors, None)
        return {
            "collector": torch.cat([*(x[collectors] for x in own), held, *(x[collectors] for x in rest)], 1),
            "deposit": torch.cat([x[deposits] for x in (*own, *rest)], 1),
        }

    def reward(self) -> Tensor:
        """What all are paid, less 0.1 of the way that each still has to go; collectors lose 5 for each they touch.

        A collector goes to the nearest treasure or to where it can deliver; a deposit to the nearest collector that
        holds its kind, or else to the middle of all.
        """
        world, number = self.world, self.arguments.num_collectors
        agents, distance = len(world.agents), world.distance
        holding = self.state["holding"]
        fits = self._one_hot(holding)  # [C, D, E]
        to_treasure = distance[:number, agents:].where(self.state["treasure"] > 0, torch.inf).amin(1)
        to_treasure = to_treasure.where(to_treasure < torch.inf, 0)
        to_deposit = (distance[:number, number:agents] * fits).sum(1)
        touched = (distance[:number, :number] < 2 * COLLECTOR_SIZE).sum(1)
        collectors = to_treasure.where(holding == 0, to_deposit) * -0.1 - touched * 5
        to_carrier = distance[number:, :number].where(fits.transpose(0, 1), torch.inf).amin(1)
        middle = world.pos[:number].mean(0)
        to_middle = (world.pos[number:agents] - middle).square().sum(1).sqrt()
        deposits = to_carrier.where(to_carrier < torch.inf, to_middle) * -0.1
        return torch.cat([collectors, deposits]) + self._paid

    def _picked(self) -> Tensor:
        """Which treasure is picked up by which collector, ``[K, C, E]``: by the first there that holds nothing."""
        collectors = self.arguments.num_collectors
        at = self.world.distance[:collectors, len(self.world.agents) :] < COLLECTOR_SIZE + TREASURE_SIZE
        at &= self.state["treasure"] > 0
        free, picked = self.state["holding"] == 0, []
        for there in at.unbind(1):
            can = there & free
            first = can & (can.cumsum(0) == 1)
            free = free ^ first
            picked.append(first)
        return torch.stack(picked)

    @torch.compiler.disable  # its random numbers are numpy's
    def _respawn(self, gone: Tensor) -> None:
        """Let those ``gone [K, E]`` appear elsewhere, as another kind; each copy draws for them in their order."""
        copies, treasures = gone.t().cpu().numpy().nonzero()
        if len(copies) == 0:
            return
        turns = np.arange(len(copies)) - np.searchsorted(copies, copies)  # how many of its copy come before each
        generator = self.state["generator"].cpu().numpy().view(np.uint64)
        places, kinds = np.empty((len(copies), 2)), np.empty(len(copies), np.int64)
        for turn in range(turns.max() + 1):
            now = turns == turn
            draws = Draws(generator[:, copies[now]])
            places[now] = draws.uniform(-EDGE, EDGE, 3)[1:].T  # the first is for a chance that is always 1
            kinds[now] = draws.integers(self.arguments.num_deposits) + 1
            generator[:, copies[now]] = draws.state
        pos, treasure, saved = self.world.pos, self.state["treasure"], self.state["generator"]
        saved.copy_(torch.from_numpy(generator.view(np.int64)))
        at, where = torch.from_numpy(treasures).to(pos.device), torch.from_numpy(copies).to(pos.device)
        treasure[at, where] = torch.from_numpy(kinds).to(treasure)
        pos[len(self.world.agents) + at, :, where] = torch.from_numpy(places).to(pos)

    def _one_hot(self, kind: Tensor) -> Tensor:
        """``[..., E] -> [..., D, E]`` bool."""
        kinds = torch.arange(1, self.arguments.num_deposits + 1, device=kind.device)
        return kind.unsqueeze(-2) == kinds[:, None]


def _sorted(values: Tensor, key: Tensor) -> Tensor:
    """K values ``[A, K, O, E]`` by increasing ``key [A, K, E]``; those alike stay in order, as in mpe2.

    Each is put where the number of those before it says, which torch's sort takes several times as long to find.
    """
    before = torch.zeros(key.shape, dtype=torch.int16, device=key.device)
    for later in range(1, key.shape[1]):
        first = key[:, :later] <= key[:, later : later + 1]
        before[:, later] = first.sum(1, dtype=before.dtype)
        before[:, :later] += ~first
    return torch.empty_like(values).scatter_(1, before.long()[:, :, None].expand_as(values), values)
