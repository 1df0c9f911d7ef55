"""What is special in the particle tasks with a goal among the landmarks or with agents that only talk."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from mpe2 import simple_crypto_v3, simple_push_v3

from magail_envs.particle.env import ParticleEnv
from magail_envs.particle.simple import Simple
from magail_envs.particle.simple_adversary import SimpleAdversary
from magail_envs.particle.simple_crypto import SimpleCrypto
from magail_envs.particle.simple_push import SimplePush
from magail_envs.particle.simple_reference import SimpleReference
from magail_envs.particle.simple_speaker_listener import SimpleSpeakerListener
from magail_envs.particle.world import pick
from tests.envs.conformance import (
    FOREVER,
    assert_same_by_agent,
    assert_same_state,
    for_mpe2,
    random_actions,
    random_state,
    write,
    write_mpe2,
)

torch.set_num_threads(1)
TASKS = (Simple, SimpleAdversary, SimplePush, SimpleReference, SimpleSpeakerListener, SimpleCrypto)


def test_pick_takes_each_copys_entry() -> None:
    values, shared, own = torch.randn(2, 3, 4, 5), torch.randint(3, (5,)), torch.randint(3, (2, 5))
    for agent, copy in itertools.product(range(2), range(5)):
        assert torch.equal(pick(values, shared)[agent, :, copy], values[agent, shared[copy], :, copy])
        assert torch.equal(pick(values, own)[agent, :, copy], values[agent, own[agent, copy], :, copy])
        assert pick(values[:, :, 0], own)[agent, copy] == values[agent, own[agent, copy], 0, copy]


@pytest.mark.parametrize(
    ("kind", "arguments", "combinations"),
    [
        (SimpleAdversary, {"N": 4}, 4),
        (SimplePush, {}, 2),
        (SimpleReference, {}, 9),
        (SimpleSpeakerListener, {}, 3),
        (SimpleCrypto, {}, 4),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_seeds_draw_every_goal(kind: type[ParticleEnv[Any]], arguments: dict[str, Any], combinations: int) -> None:
    """The seeds of the comparisons with mpe2 (test_particle_tasks.py) do."""
    env = kind("task", arguments, 200)
    env.reset(iter(range(200)))
    drawn = torch.cat([value.view(-1, 200) for name, value in env.state.items() if name in ("goal", "key")])
    assert drawn.dtype == torch.int64
    assert len(drawn.unique(dim=1)[0]) == combinations


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("kind", TASKS)
def test_a_step_stays_as_it_was_with_one_copy(kind: type[ParticleEnv[Any]], continuous: bool) -> None:
    """With one copy a transposed tensor is no copy of what the world goes on to write to."""
    env = kind("task", {"continuous_actions": continuous, "max_cycles": 5}, 1)
    env.reset(itertools.count())
    rng, kept = np.random.default_rng(0), []
    for _ in range(12):
        step = env.step(random_actions(rng, env))
        kept += [(value, value.clone()) for of in (step.next_obs, step.reward, env.obs) for value in of.values()]
    assert all(torch.equal(value, then) for value, then in kept)


def test_agents_that_touch_push_each_other_as_in_mpe2() -> None:
    arguments = {"max_cycles": FOREVER}
    env, truth = SimplePush("push", arguments, 100, dtype="float64"), simple_push_v3.parallel_env(**arguments)
    rng = np.random.default_rng(0)
    env.reset(itertools.count())
    pos, vel = random_state(rng, 4, 2, 100)
    pos[1] = pos[0] + rng.uniform(-0.1, 0.1, (2, 100))  # 0.1 is where discs of radius 0.05 touch
    write(env, pos, vel)
    touching = int((env.world.distance[0, 1] < 0.1).sum())
    assert 50 < touching < 100
    actions = {name: torch.zeros(100, 1, 1, dtype=torch.int64) for name in ("adversary", "agent")}
    step = env.step(actions)
    for copy in range(100):
        truth.reset(seed=copy)
        write_mpe2(truth.unwrapped.world, pos[..., copy], vel[..., copy])
        obs, reward, *_ = truth.step(for_mpe2(env, actions, copy))
        assert_same_state(env, copy, truth.unwrapped.world)
        assert_same_by_agent(env, step.next_obs, copy, obs, 1e-6)
        assert_same_by_agent(env, step.reward, copy, reward, 1e-6)
    pushed = (env.state["vel"] - torch.from_numpy(vel) * 0.75).norm(dim=1).amin(0) > 0.1
    assert pushed.sum() > touching / 2


def test_an_utterance_of_zeros_is_no_guess() -> None:
    """Eve and Bob each say nothing (also by clipping), almost nothing, or something."""
    said = torch.tensor([[0.0] * 4, [-1.0, 0, -2, 0], [0, 0, 1e-30, 0], [1, 0, 0, 0], [0.1, 0.9, 0.4, 0.7]])
    pairs = list(itertools.product(range(5), repeat=2))
    copies = 4 * len(pairs)  # 4 seeds for each pair
    env = SimpleCrypto("crypto", {"continuous_actions": True}, copies, dtype="float64")
    truth = simple_crypto_v3.parallel_env(continuous_actions=True)
    env.reset(itertools.count())
    eve, bob = torch.tensor(pairs * 4).T
    alice = torch.rand(copies, 1, 4, generator=torch.Generator().manual_seed(0))
    actions = {"eve": said[eve][:, None], "bob": said[bob][:, None], "alice": alice}
    bits = torch.eye(4)[env.state["goal"]]
    step = env.step(actions)
    assert bits[:, 0].unique().tolist() == [0.0, 1.0]
    for copy in range(copies):
        truth.reset(seed=copy)
        obs, reward, *_ = truth.step(for_mpe2(env, actions, copy))
        assert_same_by_agent(env, step.next_obs, copy, obs, 1e-6)
        assert_same_by_agent(env, step.reward, copy, reward, 1e-6)
    errors = torch.stack([(said[which] - bits).square().sum(-1) * (which > 1) for which in (eve, bob)])
    torch.testing.assert_close(step.reward["eve"][:, 0], -errors[0])
    for role in ("bob", "alice"):
        torch.testing.assert_close(step.reward[role][:, 0], errors[0] - errors[1])
    nothing = (eve < 2) & (bob < 2)
    assert (step.reward["alice"][nothing] == 0).all()
    assert (step.reward["eve"][eve == 2] == -1).all()  # almost nothing is a guess, and a bad one


@pytest.mark.parametrize(("kind", "speakers"), [(SimpleCrypto, 3), (SimpleSpeakerListener, 1)])
def test_who_cannot_move_only_chooses_a_symbol(kind: type[ParticleEnv[Any]], speakers: int) -> None:
    """Action k says symbol k; no actions are left over for moves that would do nothing."""
    symbols, words = kind.symbols, torch.eye(kind.symbols)
    env = kind("task", {}, symbols)
    env.reset(itertools.count())
    assert [group.action_space.n for group in env.groups[:speakers]] == [symbols] * speakers
    before = env.state["pos"].clone()
    still = {group.name: torch.zeros(symbols, 1, 1, dtype=torch.int64) for group in env.groups}
    for i, group in enumerate(env.groups[:speakers]):
        step = env.step({**still, group.name: torch.arange(symbols)[:, None, None]})
        for other in range(speakers):
            said = env.state["speech"][other].T
            assert torch.equal(said, words if other == i else words[:1].expand(symbols, -1))
    heard = step.next_obs["eve" if kind is SimpleCrypto else "listener"][:, 0, -symbols:]
    assert torch.equal(heard, words)  # the last to speak above is who is listened to
    assert torch.equal(env.state["pos"], before)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Simple, {"N": 2}, "not here: N"),
        (SimpleAdversary, {"N": 0}, "N is at least 1"),
        (SimpleAdversary, {"num_landmark_neighbors": 0}, "num_landmark_neighbors is at least 1"),
        (SimpleAdversary, {"num_agent_neighbors": 0}, "num_agent_neighbors is at least 1"),
        (SimpleReference, {"local_ratio": -0.1}, "local_ratio is a proportion"),
        (SimpleCrypto, {"benchmark_data": True}, "not here.*env.backend=mpe2"),
    ],
)
def test_refused_arguments(kind: type[ParticleEnv[Any]], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind("task", arguments, 2)
