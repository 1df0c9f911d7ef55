"""The batched particle worlds against mpe2 itself: its states, observations and rewards are the truth here."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from mpe2 import simple_reference_v3, simple_speaker_listener_v4, simple_spread_v3
from mpe2._mpe_utils import core
from numpy.typing import NDArray
from omegaconf.errors import InterpolationKeyError
from torch import Tensor

from magail.types import ByGroup, Seeds
from magail_envs.particle.env import Arguments, ParticleEnv
from magail_envs.particle.seeding import Draws
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.particle.world import Agent, Entity, World
from tests.envs.conformance import (
    FOREVER,
    for_mpe2,
    positions,
    random_actions,
    random_state,
    velocities,
    write,
    write_mpe2,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def spread(num_envs: int, dtype: str = "float64", device: str = "cpu", **arguments: Any) -> SimpleSpread:
    return SimpleSpread("spread", arguments, num_envs, device, dtype)


def stacked(values: dict[str, Any]) -> NDArray:
    return np.stack(list(values.values()))


# ---------------------------------------------------------------------------------------------------------- seeding


def test_draws_are_numpys() -> None:
    """In any order, by any part of the generators, with halves of draws left over between integers."""
    rng = np.random.default_rng(0)
    seeds = [0, 1, 2**31 - 2, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1, *rng.integers(2**31, size=99).tolist()]
    draws, truths = Draws.seeded(seeds), [np.random.default_rng(seed) for seed in seeds]
    for turn in range(100):
        where = rng.random(len(seeds)) < 0.5 if turn % 3 else None
        drawing = np.arange(len(seeds)) if where is None else where.nonzero()[0]
        if turn % 2:
            high = int(rng.choice([1, 2, 3, 10, 2**31 + 1]))  # the last rejects every other draw
            ours, expected = draws.integers(high, where), [truths[i].integers(high) for i in drawing]
        else:
            ours = draws.uniform(-0.9, 0.9, 3, 2, where=where)
            expected = [truths[i].uniform(-0.9, 0.9, (3, 2)) for i in drawing]
        assert np.array_equal(ours[..., drawing], np.stack(expected, -1)), turn


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_seed_means_what_it_means_to_mpe2(number: int) -> None:
    seeds = [0, 7, 123, 2**31 - 2, 2**33 + 1]
    env, single = spread(len(seeds), N=number), spread(len(seeds), "float32", N=number)
    env.reset(iter(seeds))
    single.reset(iter(seeds))
    truth = simple_spread_v3.parallel_env(N=number)
    for copy, seed in enumerate(seeds):
        obs, _ = truth.reset(seed=seed)
        assert np.array_equal(env.state["pos"][..., copy].numpy(), positions(truth.unwrapped.world))
        assert np.array_equal(env.obs["agent"][copy].numpy(), stacked(obs))
        np.testing.assert_allclose(single.obs["agent"][copy].numpy(), stacked(obs), atol=3e-7)


# ---------------------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize("device", DEVICES)
def test_world_moves_as_mpe2s_core(device: str) -> None:
    """Every flag at once: what collides, moves, is heavy, strong or slow."""
    agents = [
        Agent("a_0", size=0.3, mass=2.25, accel=3.0, max_speed=1.0),
        Agent("a_1", size=0.1, collide=False, max_speed=0.4),
        Agent("a_2", size=0.2),
        Agent("a_3", size=0.25, movable=False),
    ]
    landmarks = [Entity("rock", size=0.2), Entity("food", collide=False), Entity("tree", size=0.3)]
    truth = core.World()
    truth.agents = [core.Agent() for _ in agents]
    truth.landmarks = [core.Landmark() for _ in landmarks]
    for ours, theirs in zip([*agents, *landmarks], truth.entities, strict=True):
        theirs.size, theirs.collide = ours.size, ours.collide
    for ours, theirs in zip(agents, truth.agents, strict=True):
        theirs.movable, theirs.silent, theirs.initial_mass = ours.movable, True, ours.mass
        theirs.max_speed = None if ours.max_speed == torch.inf else ours.max_speed

    copies, rng = 400, np.random.default_rng(1)
    pos, vel = random_state(rng, len(truth.entities), len(agents), copies)
    vel[3] = 0.0  # what cannot move
    move = rng.uniform(-1, 1, (len(agents), 2, copies))
    world = World(agents, landmarks, 0, copies, torch.device(device), torch.float64)
    world.pos.copy_(torch.from_numpy(pos))
    world.vel.copy_(torch.from_numpy(vel))
    world.look()
    world.step(torch.from_numpy(move).to(device))
    limited = 0
    for copy in range(copies):
        write_mpe2(truth, pos[..., copy], vel[..., copy])
        for i, agent in enumerate(truth.agents):
            agent.action.u = move[i, :, copy] * agents[i].accel
        truth.step()
        np.testing.assert_allclose(world.pos[..., copy].cpu(), positions(truth), atol=1e-10, rtol=0)
        np.testing.assert_allclose(world.vel[..., copy].cpu(), velocities(truth), atol=1e-10, rtol=0)
        limited += np.isclose(np.linalg.norm(truth.agents[0].state.p_vel), 1.0)
    assert 50 < limited < copies - 50  # the speed limit was met, and was not


class Talk(ParticleEnv[Arguments]):
    """Bodies and voices of one of mpe2's talking tasks, without its rewards."""

    takes = Arguments

    def __init__(self, agents: list[Agent], symbols: int, continuous: bool, num_envs: int) -> None:
        self.agents, self.symbols = agents, symbols
        arguments = {"max_cycles": FOREVER, "continuous_actions": continuous}
        super().__init__("talk", arguments, num_envs, dtype="float64")

    def bodies(self) -> tuple[list[Agent], list[Entity]]:
        return self.agents, [Entity(f"landmark {i}", collide=False) for i in range(3)]

    def initial(self, draws: Draws) -> dict[str, NDArray]:
        return {"pos": draws.uniform(-1, 1, 5, 2)}

    def observe(self) -> ByGroup:
        return {role: self.world.vel[rows] for role, rows in self.rows.items()}

    def reward(self) -> Tensor:
        return self.world.vel[:, 0]


TALKERS = {
    simple_reference_v3: ([Agent(f"agent_{i}", collide=False, silent=False) for i in range(2)], 10),
    simple_speaker_listener_v4: (
        [
            Agent("speaker_0", size=0.075, collide=False, movable=False, silent=False),
            Agent("listener_0", size=0.075, collide=False),
        ],
        3,
    ),
}


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", TALKERS, ids=lambda task: task.__name__)
def test_moves_and_words_as_in_mpe2(task: Any, continuous: bool) -> None:
    agents, symbols = TALKERS[task]
    copies, rng = 100, np.random.default_rng(2)
    env = Talk(agents, symbols, continuous, copies)
    env.reset(Seeds(0))
    pos, vel = random_state(rng, 5, 2, copies)
    vel *= [[[agent.movable]] for agent in agents]
    write(env, pos, vel)
    actions = random_actions(rng, env)
    env.step(actions)
    truth = task.parallel_env(continuous_actions=continuous, max_cycles=FOREVER)
    truth.reset(seed=0)
    world = truth.unwrapped.world
    for group in env.groups:
        assert all(group.action_space == truth.action_space(agent) for agent in group.agents)
    for copy in range(copies):
        write_mpe2(world, pos[..., copy], vel[..., copy])
        truth.step(for_mpe2(env, actions, copy))
        np.testing.assert_allclose(env.state["pos"][..., copy], positions(world), atol=1e-10, rtol=0)
        np.testing.assert_allclose(env.state["vel"][..., copy], velocities(world), atol=1e-10, rtol=0)
        said = np.stack([agent.state.c for agent in world.agents])
        np.testing.assert_allclose(env.state["speech"][..., copy], said, atol=1e-10, rtol=0)


# ---------------------------------------------------------------------------------------------------------- episodes


def test_actions_outside_the_box_are_clipped_as_in_mpe2() -> None:
    arguments = {"continuous_actions": True, "max_cycles": FOREVER}
    env, truth, rng = spread(20, **arguments), simple_spread_v3.parallel_env(**arguments), np.random.default_rng(4)
    env.reset(iter(range(20)))
    actions = random_actions(rng, env, -2, 3)
    env.step(actions)
    for copy in range(20):
        truth.reset(seed=copy)
        truth.step(for_mpe2(env, actions, copy))
        np.testing.assert_allclose(env.state["vel"][..., copy], velocities(truth.unwrapped.world), atol=1e-10, rtol=0)


def test_copies_restart_with_the_next_seeds_and_show_the_true_last_observation() -> None:
    env, longer, fresh = (spread(4, "float32", max_cycles=length) for length in (3, 4, 3))
    env.reset(iter(range(10, 18)))
    longer.reset(iter(range(10, 14)))
    fresh.reset(iter(range(14, 18)))
    rng, total = np.random.default_rng(6), torch.zeros(4, 3)
    for t in range(3):
        before = env.obs["agent"].clone()
        actions = random_actions(rng, env)
        step, unbroken = env.step(actions), longer.step(actions)
        total += step.reward["agent"]
        assert not torch.equal(step.next_obs["agent"], before)
        assert torch.equal(step.next_obs["agent"], unbroken.next_obs["agent"])
        assert torch.equal(step.episode_return["agent"], total)
        assert step.episode_length.tolist() == [t + 1] * 4
        assert step.episode_seed.tolist() == [10, 11, 12, 13]
        assert step.done.tolist() == [t == 2] * 4
        assert step.truncated["agent"].tolist() == [[t == 2] * 3] * 4
        assert not step.terminated["agent"].any()
    assert torch.equal(env.obs["agent"], fresh.obs["agent"])
    actions = random_actions(rng, env)
    again, first = env.step(actions), fresh.step(actions)
    assert torch.equal(again.next_obs["agent"], first.next_obs["agent"])
    assert again.episode_seed.tolist() == [14, 15, 16, 17]
    assert again.episode_length.tolist() == [1] * 4
    assert torch.equal(again.episode_return["agent"], again.reward["agent"])


def test_success_ends_an_episode_as_in_mpe2() -> None:
    """Copies 1 and 3 stand on their landmarks; in the last step of an episode the time limit comes first."""
    arguments = {"N": 2, "terminate_on_success": True, "max_cycles": 2}
    env = spread(4, **arguments)
    truths = [simple_spread_v3.parallel_env(**arguments) for _ in range(4)]
    env.reset(iter([0, 1, 2, 3, 21, 23, 30, 31, 32, 33]))
    still = {"agent": torch.zeros(4, 2, 1, dtype=torch.int64)}

    def cover(copies: Sequence[int]) -> None:
        env.state["pos"][2:, :, copies] = torch.tensor([[0.5], [-0.5]])[:, :, None].double()
        env.state["pos"][:2, :, copies] = env.state["pos"][2:, :, copies] + 0.05
        env.world.look()

    for copy, truth in enumerate(truths):
        truth.reset(seed=copy)
    cover([1, 3])
    flags = []
    for t in range(2):
        if t == 1:
            cover([0])
        expected = []
        for copy, truth in enumerate(truths):
            if truth.agents:
                write_mpe2(truth.unwrapped.world, env.state["pos"][..., copy].numpy(), np.zeros((2, 2)))
                _, _, terminated, truncated, _ = truth.step({"agent_0": 0, "agent_1": 0})
                expected.append((copy, terminated["agent_0"], truncated["agent_0"]))
        step = env.step(still)
        for copy, terminated, truncated in expected:
            assert step.terminated["agent"][copy].tolist() == [terminated] * 2
            assert step.truncated["agent"][copy].tolist() == [truncated] * 2
        flags.append((step.terminated["agent"][:, 0].tolist(), step.truncated["agent"][:, 0].tolist()))
    assert flags[0] == ([False, True, False, True], [False] * 4)
    assert flags[1] == ([False] * 4, [True, False, True, False])
    assert step.episode_seed.tolist() == [0, 21, 2, 23]
    assert step.episode_length.tolist() == [2, 1, 2, 1]
    assert env.step(still).episode_seed.tolist() == [30, 21, 31, 23]


def test_success_is_what_mpe2_calls_success() -> None:
    copies, rng = 300, np.random.default_rng(10)
    env, truth = spread(copies, terminate_on_success=True), simple_spread_v3.parallel_env(terminate_on_success=True)
    env.reset(Seeds(0))
    truth.reset(seed=0)
    pos, vel = random_state(rng, 6, 3, copies)
    pos[3:] = pos[[1, 2, 0]] + rng.normal(scale=0.05, size=(3, 2, copies))  # near the radius, within and without
    write(env, pos, vel)
    covered = []
    for copy in range(copies):
        write_mpe2(truth.unwrapped.world, pos[..., copy], vel[..., copy])
        covered.append(truth.unwrapped.scenario.is_terminal(truth.unwrapped.world))
    assert env.success().tolist() == covered
    assert 50 < sum(covered) < copies - 50


@pytest.mark.parametrize("arguments", [{}, {"terminate_on_success": True, "N": 1, "max_cycles": 9}], ids=str)
def test_saved_state_goes_on_bit_for_bit(arguments: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    env, seeds = spread(16, "float32", **arguments), Seeds(8)
    env.reset(seeds)
    for _ in range(11):
        env.step(random_actions(rng, env))
    saved, seeds_then, obs_then, file = env.state_dict(), seeds.state_dict(), env.obs["agent"], io.BytesIO()
    actions = random_actions(rng, env)
    env.step(actions)  # which must leave what was saved alone
    torch.save(saved, file)
    file.seek(0)
    other, other_seeds = spread(16, "float32", **arguments), Seeds(0)
    other_seeds.load_state_dict(seeds_then)
    other.load_state_dict(torch.load(file, weights_only=True), other_seeds)
    assert torch.equal(obs_then, other.obs["agent"])
    other.step(actions)
    assert torch.equal(env.obs["agent"], other.obs["agent"])
    ended = 0
    for _ in range(40):
        actions = random_actions(rng, env)
        a, b = env.step(actions), other.step(actions)
        for name in ("done", "episode_length", "episode_seed"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for name in ("next_obs", "reward", "terminated", "truncated", "episode_return"):
            assert torch.equal(getattr(a, name)["agent"], getattr(b, name)["agent"]), name
        assert torch.equal(env.obs["agent"], other.obs["agent"])
        ended += int(a.done.sum())
    assert ended >= 16


def test_worlds_share_nothing_and_steps_stay_as_they_were() -> None:
    def play(disturb: bool) -> Iterator[Tensor]:
        env, other = spread(8, "float32", max_cycles=6), spread(8, "float32", max_cycles=6)
        env.reset(Seeds(1))
        rng, steps = np.random.default_rng(9), []
        for _ in range(15):
            if disturb:
                other.reset(Seeds(2))
                other.step(random_actions(np.random.default_rng(0), other))
                torch.rand(3)
            steps.append(env.step(random_actions(rng, env)))
        for step in steps:
            yield from (step.next_obs["agent"], step.episode_return["agent"], step.episode_length, step.episode_seed)

    kept = [(value, value.clone()) for value in play(disturb=False)]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    env = spread(8)
    env.reset(Seeds(3))
    env.step(random_actions(np.random.default_rng(0), env))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    for (value, _), disturbed in zip(kept, play(disturb=True), strict=True):
        assert torch.equal(value, disturbed)
    lengths = [value.tolist()[0] for value, _ in kept[2::4]]
    assert lengths == [1, 2, 3, 4, 5, 6] * 2 + [1, 2, 3]  # no step's tensor was written to by a later one


# ---------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"benchmark_data": True}, "not here.*env.backend=mpe2"),
        ({"sticky": 1}, "not here: sticky.*env.backend=mpe2"),
        ({"N": 0}, "N is at least 1"),
        ({"max_cycles": 0}, "max_cycles is at least 1"),
        ({"local_ratio": 1.5}, "local_ratio is a proportion"),
        ({"num_agent_neighbors": 0}, "num_agent_neighbors is at least 1"),
        ({"continuous_actions": "no"}, "continuous_actions='no' should be bool"),
        ({"N": 2.5}, r"N=2\.5 should be int"),
        ({"N": True}, "N=True should be int"),
        ({"max_cycles": None}, "max_cycles=None should be int"),
        ({"local_ratio": "half"}, "local_ratio='half' should be float"),
        ({"num_agent_neighbors": 1.5}, r"num_agent_neighbors=1\.5 should be int or NoneType"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread(2, **arguments)


def test_refused_uses() -> None:
    env = spread(2)
    env.reset(Seeds(0))
    with pytest.raises(ValueError, match="render mpe2's own world"):
        env.render()
    with pytest.raises(ValueError, match="num_envs=0 must be at least 1"):
        spread(0)
    with pytest.raises(ValueError, match="float32 or float64"):
        spread(2, "float16")
    with pytest.raises(ValueError, match="saved state is of 3 copies"):
        env.load_state_dict(spread(3).state_dict(), Seeds(0))


def test_yaml_picks_the_backend() -> None:
    with initialize_config_module("magail_conf", version_base="1.3"):
        cfg = compose(overrides=["+env=simple_spread", "env.arguments.N=2", "env.batched.num_envs=5"]).env
        env = instantiate(cfg.train)
        assert isinstance(env, SimpleSpread)
        assert (env.name, env.num_envs, env.groups[0].num_agents) == ("simple_spread", 5, 2)
        assert cfg.evaluate.constructor == "mpe2.simple_spread_v3.parallel_env"
        assert cfg.evaluate.arguments.N == 2
        original = compose(overrides=["+env=simple_spread", "env.backend=mpe2"]).env
        assert original.train == original.mpe2
        wrong = compose(overrides=["+env=simple_spread", "env.backend=vmas"]).env
        with pytest.raises(InterpolationKeyError, match=r"env\.vmas"):
            _ = wrong.train
