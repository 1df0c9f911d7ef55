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
from magail_envs.particle.env import ParticleEnv
from magail_envs.particle.seeding import random_raw, uniform
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.particle.world import Agent, Entity, World

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
FOREVER = 10**9


def spread(num_envs: int, dtype: str = "float64", device: str = "cpu", **arguments: Any) -> SimpleSpread:
    return SimpleSpread("spread", arguments, num_envs, device, dtype)


def random_state(rng: np.random.Generator, entities: int, agents: int, copies: int) -> tuple[NDArray, NDArray]:
    """Positions ``[M, 2, E]`` and velocities ``[A, 2, E]``; in every other copy all entities overlap."""
    spread_out = np.where(np.arange(copies) % 2, 0.15, 1.0)
    return rng.uniform(-1.2, 1.2, (entities, 2, copies)) * spread_out, rng.normal(size=(agents, 2, copies))


def random_actions(rng: np.random.Generator, env: ParticleEnv, low: float = 0, high: float = 1) -> ByGroup:
    """A random action of every agent; Boxes get numbers in ``[low, high]``."""
    actions = {}
    for group in env.groups:
        shape = (env.num_envs, group.num_agents, group.action_dim)
        if group.action_dtype == torch.int64:
            actions[group.name] = torch.from_numpy(rng.integers(group.action_space.n, size=shape))
        else:
            actions[group.name] = torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))
    return actions


def for_mpe2(env: ParticleEnv, actions: ByGroup, copy: int) -> dict[str, Any]:
    """The actions of one copy as a PettingZoo environment takes them."""
    return {
        agent: actions[group.name][copy, i].cpu().numpy() if group.action_dtype == torch.float32
        else int(actions[group.name][copy, i, 0])
        for group in env.groups
        for i, agent in enumerate(group.agents)
    }  # fmt: skip


def write(env: ParticleEnv, pos: NDArray, vel: NDArray) -> None:
    env.state["pos"].copy_(torch.from_numpy(pos))
    env.state["vel"].copy_(torch.from_numpy(vel))
    env.world.look()


def write_mpe2(world: Any, pos: NDArray, vel: NDArray) -> None:
    """One copy's positions ``[M, 2]`` and velocities ``[A, 2]``."""
    for i, entity in enumerate(world.entities):
        entity.state.p_pos = pos[i].copy()
    for i, agent in enumerate(world.agents):
        agent.state.p_vel = vel[i].copy()


def positions(world: Any) -> NDArray:
    return np.stack([entity.state.p_pos for entity in world.entities])


def velocities(world: Any) -> NDArray:
    return np.stack([agent.state.p_vel for agent in world.agents])


def stacked(values: dict[str, Any]) -> NDArray:
    return np.stack(list(values.values()))


# ---------------------------------------------------------------------------------------------------------- seeding


def test_draws_are_numpys() -> None:
    seeds = [
        0,
        1,
        2**31 - 2,
        2**32 - 1,
        2**32,
        2**40 + 7,
        2**63 - 1,
        *np.random.default_rng(0).integers(2**31, size=99),
    ]
    raw = random_raw(seeds, 20)
    assert np.array_equal(raw, np.stack([np.random.PCG64(int(seed)).random_raw(20) for seed in seeds]))
    expected = np.stack([np.random.Generator(np.random.PCG64(int(seed))).uniform(-0.9, 0.9, 20) for seed in seeds])
    assert np.array_equal(uniform(raw, -0.9, 0.9), expected)


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


class Talk(ParticleEnv):
    """Bodies and voices of one of mpe2's talking tasks, without its rewards."""

    def __init__(self, agents: Sequence[Agent], symbols: int, continuous: bool, num_envs: int) -> None:
        landmarks = [Entity(f"landmark {i}", collide=False) for i in range(3)]
        super().__init__("talk", agents, landmarks, symbols, FOREVER, continuous, num_envs, "cpu", "float64")

    def initial(self, seeds: Sequence[int]) -> dict[str, NDArray]:
        return {"pos": np.array(seeds, dtype=float) + np.arange(5.0)[:, None, None] * np.ones((5, 2, 1))}

    def observe(self) -> ByGroup:
        return {role: self.world.vel[rows] for role, rows in self._rows.items()}

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


# ----------------------------------------------------------------------------------------------------- simple_spread


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"N": 1, "local_ratio": 0.5},
        {"N": 2, "local_ratio": 0.0},
        {"N": 3},
        {"N": 3, "local_ratio": 1.0},
        {"N": 5, "local_ratio": 0.3},
        {"N": 4, "num_agent_neighbors": 2, "num_landmark_neighbors": 3},
        {"N": 3, "num_agent_neighbors": 5, "num_landmark_neighbors": 4},
    ],
    ids=str,
)
def test_one_step_from_any_state_is_mpe2s(arguments: dict[str, Any], continuous: bool, device: str) -> None:
    copies, rng, number = 300, np.random.default_rng(3), arguments["N"]
    arguments = {**arguments, "continuous_actions": continuous, "max_cycles": FOREVER}
    env, truth = spread(copies, device=device, **arguments), simple_spread_v3.parallel_env(**arguments)
    env.reset(Seeds(0))
    truth.reset(seed=0)
    (group,) = env.groups
    assert list(group.agents) == truth.possible_agents
    assert group.action_space == truth.action_space("agent_0")
    assert group.observation_space == truth.observation_space("agent_0")

    pos, vel = random_state(rng, 2 * number, number, copies)
    write(env, pos, vel)
    actions = random_actions(rng, env)
    step = env.step({"agent": actions["agent"].to(device)})
    world, touching = truth.unwrapped.world, 0
    for copy in range(copies):
        write_mpe2(world, pos[..., copy], vel[..., copy])
        obs, reward, _, _, _ = truth.step(for_mpe2(env, actions, copy))
        np.testing.assert_allclose(env.state["pos"][..., copy].cpu(), positions(world), atol=1e-10, rtol=0)
        np.testing.assert_allclose(env.state["vel"][..., copy].cpu(), velocities(world), atol=1e-10, rtol=0)
        np.testing.assert_allclose(step.next_obs["agent"][copy].cpu(), stacked(obs), atol=1e-6, rtol=0)
        np.testing.assert_allclose(step.reward["agent"][copy].cpu(), stacked(reward), atol=1e-6, rtol=0)
        touching += truth.unwrapped.scenario.is_collision(world.agents[0], world.agents[-1])
    assert number == 1 or 50 < touching < copies - 50
    assert step.next_obs["agent"].dtype == step.reward["agent"].dtype == torch.float32


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


@pytest.mark.parametrize("continuous", [False, True])
def test_whole_episodes_are_mpe2s(continuous: bool) -> None:
    copies, seeds = 40, range(1000, 1080)
    arguments = {"continuous_actions": continuous}
    double, single = spread(copies, **arguments), spread(copies, "float32", **arguments)
    truths = [simple_spread_v3.parallel_env(**arguments) for _ in range(copies)]
    double.reset(iter(seeds))
    single.reset(iter(seeds))
    returns = np.zeros((copies, 3))
    for copy, truth in enumerate(truths):
        truth.reset(seed=seeds[copy])
    rng = np.random.default_rng(5)
    close = []
    for t in range(25):
        actions = random_actions(rng, double)
        step, rounded = double.step(actions), single.step(actions)
        for copy, truth in enumerate(truths):
            obs, reward, terminated, truncated, _ = truth.step(for_mpe2(double, actions, copy))
            returns[copy] += stacked(reward)
            np.testing.assert_allclose(step.next_obs["agent"][copy], stacked(obs), atol=1e-6, rtol=0)
            np.testing.assert_allclose(step.reward["agent"][copy], stacked(reward), atol=1e-6, rtol=0)
            assert np.array_equal(step.terminated["agent"][copy], stacked(terminated))
            assert np.array_equal(step.truncated["agent"][copy], stacked(truncated))
            close.append(np.abs(rounded.next_obs["agent"][copy].numpy() - stacked(obs)).max())
        assert bool(step.done.all()) == (t == 24)
    np.testing.assert_allclose(step.episode_return["agent"], returns, rtol=1e-5)
    np.testing.assert_allclose(rounded.episode_return["agent"], returns, rtol=1e-4)
    assert max(close) < 1e-3, max(close)


# ---------------------------------------------------------------------------------------------------------- episodes


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
        ({"curriculum": True}, "not here yet.*env.backend=mpe2"),
        ({"benchmark_data": True}, "not here yet.*env.backend=mpe2"),
        ({"sticky": 1}, "not here yet: sticky.*env.backend=mpe2"),
        ({"N": 0}, "N is the number"),
        ({"local_ratio": 1.5}, "local_ratio is a proportion"),
        ({"num_agent_neighbors": 0}, "num_agent_neighbors is at least 1"),
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
