"""What the adapter makes of PettingZoo environments, in one process; workers are in test_workers.py."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import mpe2.simple_spread_v3
import mpe2.simple_tag_v3
import numpy as np
import pytest
import supersuit
import torch
from gymnasium import spaces

from magail_envs.pettingzoo import PettingZooEnv
from tests.envs import toy
from tests.envs.playing import assert_same, play, random_action

torch.set_num_threads(1)
SPREAD = "mpe2.simple_spread_v3.parallel_env"


def scripted(num_envs: int = 1, **arguments: Any) -> PettingZooEnv:
    return PettingZooEnv("toy", "tests.envs.toy.Scripted", arguments, num_envs=num_envs)


def agents_of(kind: str, action: str = "discrete", copies: int = 2) -> tuple[PettingZooEnv, list[toy.Spaces]]:
    """Two agents that observe ``kind`` and act with ``action``, and the environments inside."""
    agents = [(f"ant_{i}", kind, action) for i in range(2)]
    env = PettingZooEnv("toy", "tests.envs.toy.Spaces", {"agents": agents}, num_envs=copies)
    return env, [copy.env for copy in env._copies._copies]  # type: ignore[union-attr,misc]


def act(env: PettingZooEnv, value: int = 0) -> Any:
    return env.step({g.name: torch.full((env.num_envs, g.num_agents, g.action_dim), value) for g in env.groups})


# ---------------------------------------------------------------- who is there


def test_groups_are_roles_with_equal_spaces_in_order() -> None:
    agents = [
        ("ant_0", "box", "discrete"),
        ("bee_0", "box", "discrete"),
        ("ant_1", "image", "discrete"),
        ("ant_2", "box", "discrete"),
        ("ant_3", "box", "multi"),
        ("queen", "box", "discrete"),
        ("ant_2_0", "box", "discrete"),  # a role that is called like the second group of ants
    ]
    env = PettingZooEnv("toy", "tests.envs.toy.Spaces", {"agents": agents})
    assert [(group.name, group.agents) for group in env.groups] == [
        ("ant", ("ant_0", "ant_2")),
        ("bee", ("bee_0",)),
        ("ant_2", ("ant_1",)),
        ("ant_3", ("ant_3",)),
        ("queen", ("queen",)),
        ("ant_2_2", ("ant_2_0",)),
    ]
    assert env.groups[2].observation_space == toy.Spaces.kinds["image"]
    assert env.groups[3].action_space == toy.Spaces.kinds["multi"]


def test_every_field_when_agents_end_at_different_times() -> None:
    env = scripted(leave={"ant_1": [2, "terminated"], "bee_0": [3, "truncated"]}, steps=4)
    env.reset(itertools.count(300))  # 300 % 3 == 0: four steps
    assert env.obs["ant"].tolist() == [[[300, 0, 0], [300, 0, 1]]]
    assert env.mask["ant"].tolist() == [[True, True]]

    step = act(env)
    assert step.next_obs["ant"].tolist() == [[[300, 1, 0], [300, 1, 1]]]
    assert step.reward["ant"].tolist() == [[1, 11]]
    assert step.reward["bee"].tolist() == [[21]]
    assert step.episode_return["ant"].tolist() == [[1, 11]]
    assert not any(flags.any() for flags in (*step.terminated.values(), *step.truncated.values()))

    step = act(env)  # ant_1 dies: its last observation is real, and only then is it gone
    assert step.next_obs["ant"].tolist() == [[[300, 2, 0], [300, 2, 1]]]
    assert step.terminated["ant"].tolist() == [[False, True]]
    assert step.truncated["ant"].tolist() == [[False, False]]
    assert step.episode_return["ant"].tolist() == [[3, 23]]
    assert not step.done
    assert env.obs["ant"].tolist() == [[[300, 2, 0], [0, 0, 0]]]
    assert env.mask["ant"].tolist() == [[True, False]]

    step = act(env)  # bee_0 is cut off; ant_1's rows are zero
    assert step.next_obs["ant"].tolist() == [[[300, 3, 0], [0, 0, 0]]]
    assert step.reward["ant"].tolist() == [[3, 0]]
    assert step.terminated["ant"].tolist() == [[False, False]]
    assert step.truncated["bee"].tolist() == [[True]]
    assert step.terminated["bee"].tolist() == [[False]]
    assert env.mask["bee"].tolist() == [[False]]

    step = act(env)  # the last agent reaches the time limit
    assert step.done.tolist() == [True]
    assert step.next_obs["ant"].tolist() == [[[300, 4, 0], [0, 0, 0]]]
    assert step.truncated["ant"].tolist() == [[True, False]]
    assert step.episode_return["ant"].tolist() == [[10, 23]]
    assert step.episode_return["bee"].tolist() == [[66]]
    assert (step.episode_length.tolist(), step.episode_seed.tolist()) == ([4], [300])
    # the next episode has begun
    assert env.obs["ant"].tolist() == [[[301, 0, 0], [301, 0, 1]]]
    assert env.mask["ant"].tolist() == [[True, True]]
    assert env.mask["bee"].tolist() == [[True]]

    step = act(env)
    assert step.episode_return["ant"].tolist() == [[1, 11]]
    assert (step.episode_length.tolist(), step.episode_seed.tolist()) == ([1], [301])
    assert not step.done


def test_both_flags_are_kept() -> None:
    env = scripted(leave={"ant_0": [1, "both"]})
    env.reset(itertools.count())
    step = act(env)
    assert step.terminated["ant"].tolist() == step.truncated["ant"].tolist() == [[True, False]]


@pytest.mark.parametrize(("how", "successor"), [("vanished", [0, 2, 0]), ("silent", [0, 1, 0])])
def test_an_agent_that_leaves_without_a_flag_was_truncated(how: str, successor: list[int]) -> None:
    env = scripted(leave={"ant_0": [2, how]})
    env.reset(itertools.repeat(0))
    act(env)
    step = act(env)
    assert step.truncated["ant"].tolist() == [[True, False]]
    assert step.terminated["ant"].tolist() == [[False, False]]
    assert step.next_obs["ant"][0, 0].tolist() == successor  # without a final observation, the last one again
    assert env.mask["ant"].tolist() == [[False, True]]
    assert step.reward["ant"].tolist() == [[2, 12]]


@pytest.mark.parametrize("end", ["terminated", "truncated", "vanished"])
@pytest.mark.parametrize("stay", [False, True])
def test_an_episode_ends_with_its_last_agent(end: str, stay: bool) -> None:
    """Whether ``agents`` becomes empty or the environment only raises flags."""
    env = scripted(leave={"ant_0": [1, "terminated"]}, stay=stay, steps=2, end=end)
    env.reset(itertools.count(3))
    assert not act(env).done
    assert env.mask["ant"].tolist() == [[False, True]]
    step = act(env)
    assert step.done
    assert step.terminated["bee"].tolist() == [[end == "terminated"]]
    assert step.truncated["bee"].tolist() == [[end != "terminated"]]
    assert step.truncated["ant"].tolist() == [[False, end != "terminated"]]
    assert env.obs["bee"].tolist() == [[[4, 0, 2]]]


def test_an_agent_may_come_later() -> None:
    env = scripted(arrive={"ant_1": 2})
    env.reset(itertools.repeat(0))
    assert env.mask["ant"].tolist() == [[True, False]]
    assert env.obs["ant"].tolist() == [[[0, 0, 0], [0, 0, 0]]]
    act(env)
    step = act(env)
    assert step.next_obs["ant"].tolist() == [[[0, 2, 0], [0, 0, 0]]]  # it took no step yet
    assert step.reward["ant"].tolist() == [[2, 0]]
    assert env.mask["ant"].tolist() == [[True, True]]
    assert env.obs["ant"].tolist() == [[[0, 2, 0], [0, 2, 1]]]
    assert act(env).reward["ant"].tolist() == [[3, 13]]


def test_seeds_are_used_in_order_of_the_copies() -> None:
    env = scripted(num_envs=3, steps=2)  # seeds 0, 1, 2 make episodes of 2, 3 and 4 steps
    env.reset(itertools.count())
    ended = []
    for _ in range(7):
        step = act(env)
        ended.append(step.episode_seed[step.done].tolist())
    #   copy 0: seed 0 (2 steps), 3 (2), 6 (2); copy 1: 1 (3), 4 (3); copy 2: 2 (4), 5 (4).
    # Seeds 3, 4, 5 are drawn at the reset; 6 when copy 0 ends, 7 when copy 1 does, 8 and 9 when copies 0 and 2 do.
    assert ended == [[], [0], [1], [3, 2], [], [6, 4], []]
    assert env.obs["ant"][:, 0, 0].tolist() == [8, 7, 5]


# ---------------------------------------------------------------- spaces


@pytest.mark.parametrize("kind", ["box", "scalar", "image", "discrete", "multi", "tuple", "dict"])
def test_observations_are_flattened(kind: str) -> None:
    env, inner = agents_of(kind)
    env.reset(itertools.count())
    step = act(env)
    space = toy.Spaces.kinds[kind]
    for copy, agent in itertools.product(range(2), range(2)):
        expected = spaces.flatten(space, inner[copy].sent[-1][f"ant_{agent}"]).astype(np.float32)
        assert step.next_obs["ant"][copy, agent].tolist() == env.obs["ant"][copy, agent].tolist() == expected.tolist()
    assert env.obs["ant"].shape == (2, 2, spaces.flatdim(space)) == (2, 2, env.groups[0].obs_dim)
    assert env.obs["ant"].dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "action", "received"),
    [
        ("discrete", [[0], [3]], [2, 5]),
        ("multi", [[1, 3], [2, 0]], [[1, 8], [2, 5]]),
        ("matrix", [[1, 3, 0, 1], [2, 0, 1, 1]], [[[1, 3], [0, 1]], [[2, 0], [1, 1]]]),
        ("box", [[0.5, 2.0], [-3.0, -1.0]], [[0.5, 1.0], [-1.0, -1.0]]),
        ("double", [[0.7, 0.5], [-0.05, -1.0]], [[[0.1, 0.5]], [[np.float32(-0.05), 0.0]]]),
        ("integer", [[3.0, 77.0], [-5.0, 8.7]], [[3, 9], [0, 9]]),
    ],
)
def test_actions_are_what_the_space_holds(kind: str, action: list[Any], received: list[Any]) -> None:
    env, inner = agents_of("box", kind, copies=2)
    env.reset(itertools.count())
    group = env.groups[0]
    one = torch.tensor(action, dtype=group.action_dtype)
    env.step({"ant": torch.stack([one, one.flip(0)])})
    for agent in range(2):
        for copy, index in ((0, agent), (1, 1 - agent)):
            got = inner[copy].received[-1][f"ant_{agent}"]
            assert np.asarray(got).tolist() == np.asarray(received[index]).tolist()
            assert group.action_space.contains(got)


# ---------------------------------------------------------------- against the environments themselves


def raw_mpe(module: Any, seeds: list[int], actions: list[dict[str, np.ndarray]], groups: Any) -> list[dict[str, Any]]:
    """One copy stepped by hand: after every step what the adapter should have said."""
    env = module.parallel_env()
    queue = iter(seeds)
    seed = next(queue)
    obs, _ = env.reset(seed=seed)
    total, length, log = dict.fromkeys(env.possible_agents, 0.0), 0, []
    for action in actions:
        given = {agent: int(action[g.name][a, 0]) for g in groups for a, agent in enumerate(g.agents)}
        obs, reward, terminated, truncated, _ = env.step(given)
        total = {agent: total[agent] + reward[agent] for agent in total}
        length += 1
        entry = {"next_obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated, "return": total}
        entry |= {"length": length, "seed": seed, "done": not env.agents}
        if not env.agents:
            seed, length = next(queue), 0
            total = dict.fromkeys(total, 0.0)
            obs, _ = env.reset(seed=seed)
        log.append({**entry, "obs": obs})
    return log


@pytest.mark.parametrize("module", [mpe2.simple_tag_v3, mpe2.simple_spread_v3])
def test_equals_the_environment_stepped_by_hand(module: Any) -> None:
    copies, steps = 3, 60  # two automatic resets
    env = PettingZooEnv("mpe", f"{module.__name__}.parallel_env", num_envs=copies)
    env.reset(itertools.count(7))
    generator = torch.Generator().manual_seed(0)
    actions = [random_action(env, generator) for _ in range(steps)]
    log = []
    for action in actions:
        step = env.step(action)
        log.append((step, env.obs))
    for copy in range(copies):
        mine = [{name: a[copy].numpy() for name, a in action.items()} for action in actions]
        raw = raw_mpe(module, [7 + copy + copies * n for n in range(3)], mine, env.groups)
        for (step, obs), truth in zip(log, raw, strict=True):
            for group in env.groups:
                for a, agent in enumerate(group.agents):
                    at = (copy, a)
                    assert step.next_obs[group.name][at].numpy().tolist() == truth["next_obs"][agent].tolist()
                    assert obs[group.name][at].numpy().tolist() == truth["obs"][agent].tolist()
                    assert step.reward[group.name][at] == np.float32(truth["reward"][agent])
                    assert step.episode_return[group.name][at].item() == pytest.approx(truth["return"][agent], rel=1e-5)
                    assert step.terminated[group.name][at] == truth["terminated"][agent]
                    assert step.truncated[group.name][at] == truth["truncated"][agent]
            assert step.done[copy] == truth["done"]
            assert step.episode_length[copy] == truth["length"]
            assert step.episode_seed[copy] == truth["seed"]
    assert sum(int(step.done.sum()) for step, _ in log) == 2 * copies


def test_an_aec_environment_is_converted() -> None:
    parallel = PettingZooEnv("spread", SPREAD, num_envs=2)
    aec = PettingZooEnv("spread", "mpe2.simple_spread_v3.env", num_envs=2)
    for env in (parallel, aec):
        env.reset(itertools.count())
    assert_same(list(play(parallel, 30)), list(play(aec, 30)))


def test_agents_that_die_in_a_converted_aec_environment() -> None:
    """A walker that falls leaves, the others walk on."""
    arguments = {"env_type": "aec", "id": "sisl/multiwalker-v9", "terminate_on_fall": False, "max_cycles": 200}
    env = PettingZooEnv("walkers", "pettingzoo.make", arguments, num_envs=2)
    env.reset(itertools.count())
    alive = env.mask["walker"]
    lonely = 0
    for step, obs, mask in play(env, 200):
        ended = (step.terminated["walker"] | step.truncated["walker"]) & alive
        over = step.done[:, None].expand(-1, 3)
        assert torch.equal(mask["walker"], (alive & ~ended) | over)
        assert step.next_obs["walker"][~alive].eq(0).all()
        assert step.next_obs["walker"][alive].ne(0).any(-1).all()
        assert obs["walker"][~mask["walker"]].eq(0).all()
        alive = mask["walker"]
        lonely += int((alive.sum(-1) < 3).sum())
    assert lonely > 10


def test_wrappers_are_applied_in_order() -> None:
    wrappers = [
        {"constructor": "supersuit.frame_stack_v1", "arguments": {"stack_size": 2}},
        {"constructor": "supersuit.pad_action_space_v0"},
        {"constructor": "supersuit.dtype_v0", "arguments": {"dtype": "float16"}},
    ]
    env = PettingZooEnv("speaker", "mpe2.simple_speaker_listener_v4.parallel_env", wrappers=wrappers)
    env.reset(itertools.repeat(5))
    raw = supersuit.frame_stack_v1(mpe2.simple_speaker_listener_v4.parallel_env(), 2)
    raw.reset(seed=5)
    step = env.step({"speaker": torch.tensor([[[2]]]), "listener": torch.tensor([[[4]]])})
    expected = raw.step({"speaker_0": 2, "listener_0": 4})[0]
    assert env.groups[0].action_space == env.groups[1].action_space == spaces.Discrete(5)
    for group in env.groups:
        assert group.obs_dim == expected[group.agents[0]].size
        assert step.next_obs[group.name][0, 0].tolist() == expected[group.agents[0]].astype(np.float16).tolist()


def test_steps_may_be_kept() -> None:
    env = scripted(num_envs=2)
    env.reset(itertools.count())
    kept = [*play(env, 1)]
    copy = [{name: x.clone() for name, x in kept[0][i].items()} for i in (1, 2)]
    step = {name: x.clone() for name, x in kept[0][0].next_obs.items()}
    total = {name: x.clone() for name, x in kept[0][0].episode_return.items()}
    list(play(env, 7))
    assert_same(copy, list(kept[0][1:]))
    assert_same([step, total], [kept[0][0].next_obs, kept[0][0].episode_return])


# ---------------------------------------------------------------- going on after a stop

WALKERS = {"env_type": "parallel", "id": "sisl/multiwalker-v9", "terminate_on_fall": False, "max_cycles": 60}
ZOMBIES = {"env_type": "parallel", "id": "butterfly/knights_archers_zombies-v11", "max_cycles": 60, "spawn_delay": 3}


@pytest.mark.parametrize(
    ("constructor", "arguments", "rebuild", "before", "after"),
    [
        ("mpe2.simple_spread_v3.parallel_env", {}, False, 40, 40),
        ("mpe2.simple_tag_v3.parallel_env", {"continuous_actions": True}, False, 40, 40),
        ("pettingzoo.make", WALKERS, False, 85, 70),
        ("pettingzoo.make", ZOMBIES, True, 85, 70),
        ("tests.envs.toy.Scripted", {"leave": {"ant_1": [2, "terminated"]}}, False, 9, 20),
        ("gymnasium.make", {"id": "CartPole-v1"}, False, 40, 60),
    ],
)
def test_a_stored_state_continues_bit_for_bit(
    constructor: str, arguments: dict[str, Any], rebuild: bool, before: int, after: int
) -> None:
    """In a fresh object, from the middle of episodes and across automatic resets."""

    def build() -> PettingZooEnv:
        return PettingZooEnv("task", constructor, arguments, num_envs=3, rebuild=rebuild)

    env = build()
    seeds = itertools.count()
    env.reset(seeds)
    list(play(env, before))
    state, drawn = env.state_dict(), next(seeds)
    env._seeds = itertools.count(drawn)
    now = (env.obs, env.mask)
    original = list(play(env, after, seed=1))
    assert sum(int(step.done.sum()) for step, _, _ in original) > 0

    fresh = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fresh.load_state_dict(state, itertools.count(drawn))
    assert_same(now, (fresh.obs, fresh.mask))
    assert_same(state, fresh.state_dict())
    assert_same(original, list(play(fresh, after, seed=1)))


def test_a_state_is_plain_and_can_be_taken_at_once(tmp_path: Any) -> None:
    env = scripted(num_envs=2)
    env.reset(itertools.count())
    torch.save(env.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["action"]["ant"].shape == (0, 2, 2, 1)
    other = scripted(num_envs=2)
    other.load_state_dict(state, itertools.count(4))
    assert_same(list(play(env, 9)), list(play(other, 9)))


def test_only_unfinished_episodes_are_kept() -> None:
    env = scripted(num_envs=2, steps=4)
    env.reset(itertools.count())  # episodes of 4 and 5 steps, then of 6 and 4
    list(play(env, 7))
    state = env.state_dict()
    assert state["length"].tolist() == [3, 2]
    assert len(state["action"]["ant"]) == 3


def test_a_state_of_another_number_of_copies_is_refused() -> None:
    env = scripted(num_envs=2)
    env.reset(itertools.count())
    with pytest.raises(ValueError, match=r"2 copies.*num_envs is 3"):
        scripted(num_envs=3).load_state_dict(env.state_dict(), itertools.count())


def test_an_environment_that_does_not_come_back_warns() -> None:
    def build(rebuild: bool) -> PettingZooEnv:
        env = PettingZooEnv("toy", "tests.envs.toy.Forgetful", {}, rebuild=rebuild)
        env.reset(itertools.repeat(0))
        list(play(env, 6))
        return env

    env = build(rebuild=False)
    with pytest.warns(UserWarning, match="rebuild"):
        PettingZooEnv("toy", "tests.envs.toy.Forgetful").load_state_dict(env.state_dict(), itertools.repeat(0))
    state = build(rebuild=True).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PettingZooEnv("toy", "tests.envs.toy.Forgetful", rebuild=True).load_state_dict(state, itertools.repeat(0))


# ---------------------------------------------------------------- what a user gets wrong, and what fails


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"constructor": "mpe2.simple_spred_v3.parallel_env"}, "no constructor 'mpe2.simple_spred_v3.parallel_env'"),
        ({"constructor": "mpe2.simple_spread_v3.parallel"}, "no constructor .* has no attribute 'parallel'"),
        ({"constructor": "spread"}, "no constructor 'spread'"),
        ({"constructor": SPREAD, "arguments": {"agents": 3}}, "failed with the arguments {'agents': 3} .*agents"),
        ({"constructor": "pettingzoo.make", "arguments": {"env_type": "parallel", "id": "sisl/x-v1"}}, "sisl/x-v1"),
        ({"constructor": "tests.envs.toy.not_an_environment"}, "neither a PettingZoo"),
        ({"constructor": "pettingzoo.make", "arguments": {"env_type": "aec", "id": "classic/tictactoe-v3"}}, "turns"),
        ({"constructor": SPREAD, "wrappers": [{"constructor": "supersuit.nothing_v0"}]}, "supersuit.nothing_v0"),
        ({"constructor": SPREAD, "wrappers": ["supersuit.dtype_v0"]}, "a wrapper is given as"),
        ({"constructor": SPREAD, "wrappers": [{"constructor": "x.y", "args": {}}]}, "a wrapper is given as"),
        ({"constructor": SPREAD, "num_envs": 0}, "num_envs=0"),
        (
            {"constructor": "tests.envs.toy.Spaces", "arguments": {"agents": [("ant_0", "text", "discrete")]}},
            "no fixed size",
        ),
        (
            {"constructor": "tests.envs.toy.Spaces", "arguments": {"agents": [("ant_0", "box", "tuple")]}},
            "no actor here can produce",
        ),
    ],
)
def test_mistakes_are_value_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PettingZooEnv("task", **arguments)


@pytest.mark.parametrize(("step", "place"), [(2, "step 2"), (0, "the reset")])
def test_a_failure_says_where(step: int, place: str) -> None:
    env = PettingZooEnv("ants", "tests.envs.toy.Faulty", {"how": "raise", "seed": 4, "step": step}, num_envs=3)
    with pytest.raises(RuntimeError) as failure:  # noqa: PT012
        env.reset(itertools.count())  # copy 1 comes to seed 4
        list(play(env, 10))
    assert f"ants, copy 1, {place} of the episode with reset seed 4: ArithmeticError: the ants" in str(failure.value)
    assert isinstance(failure.value.__cause__, ArithmeticError)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", r"ants, copy 1, step 2 of the episode with reset seed 4.*obs of agent 'ant_1' is not finite"),
        ("shape", r"ants, copy 1, step 2 of the episode with reset seed 4.*shape \(1,\) where the space has \(3,\)"),
    ],
)
def test_what_is_no_observation(how: str, message: str) -> None:
    env = PettingZooEnv("ants", "tests.envs.toy.Faulty", {"how": how, "seed": 4, "step": 2}, num_envs=3)
    env.reset(itertools.count())
    with pytest.raises(RuntimeError, match=message):
        list(play(env, 10))


def test_who_was_not_announced() -> None:
    env, inner = agents_of("box")
    env.reset(itertools.count())
    inner[1].agents = ["ant_0", "ghost"]
    with pytest.raises(RuntimeError, match=r"copy 1, step 1.*'ghost' is in `agents` and has no observation"):
        act(env)


@pytest.mark.parametrize(("how", "message"), [("invisible", "cannot be drawn"), ("flat", r"the shape \(4, 5\)")])
def test_what_cannot_be_drawn(how: str, message: str) -> None:
    env = PettingZooEnv("ants", "tests.envs.toy.Faulty", {"how": how, "seed": -1, "step": 0})
    env.reset(itertools.count())
    env._can_render = True  # the ants do not take a render_mode
    with pytest.raises(ValueError, match=message):
        env.render()


def test_rendering() -> None:
    env = PettingZooEnv("spread", SPREAD, num_envs=2, render=True)
    env.reset(itertools.count())
    image = env.render()
    assert image.dtype == np.uint8
    assert image.shape == (700, 700, 3)
    assert len(np.unique(image)) > 2
    env.close()
    env.close()
    blind = PettingZooEnv("spread", SPREAD)
    blind.reset(itertools.count())
    with pytest.raises(ValueError, match="render=true"):
        blind.render()
