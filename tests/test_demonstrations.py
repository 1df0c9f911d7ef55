"""Demonstrations: in memory, on disk, and every way in which a file can be wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from magail import demonstrations as module
from magail.demonstrations import Demonstrations
from magail.types import AgentGroup, JointTransition, Transition

torch.set_num_threads(1)

OBSERVATION = spaces.Box(-np.inf, np.inf, (3,))
HUNTERS = AgentGroup("hunter", ("hunter_0", "hunter_1"), OBSERVATION, spaces.Discrete(5, start=-2))
DRONES = AgentGroup("drone", ("drone_0",), OBSERVATION, spaces.Box(0.5, 2.0, (2, 2)))  # without 0, the row of the dead
TALKERS = AgentGroup("talker", ("talker_0", "talker_1"), OBSERVATION, spaces.MultiDiscrete([3, 2]))
ALL = (HUNTERS, DRONES, TALKERS)

Arrays = dict[str, Any]


def life(group: AgentGroup, steps: int, lives: list[tuple[int, int]], rng: np.random.Generator) -> Transition:
    """Random steps of agents that are alive from ``first`` to ``end`` (excluded), zero elsewhere; next_obs fits obs."""
    time = torch.arange(steps)[:, None]
    first, end = torch.tensor(lives).T
    mask = (time >= first) & (time < end)  # [T, A]
    ends = mask & (time == end - 1)
    rows = torch.from_numpy(rng.normal(size=(steps + 1, group.num_agents, group.obs_dim)).astype(np.float32))
    action = torch.from_numpy(
        np.stack([[group.action_space.sample().ravel() for _ in group.agents] for _ in range(steps)])
    ).to(group.action_dtype)
    if isinstance(group.action_space, spaces.Discrete):
        action = action - int(group.action_space.start)
    by_time = torch.arange(steps)[:, None] % 2 == 0
    return Transition(
        obs=rows[:-1] * mask[..., None],
        action=action * mask[..., None],
        next_obs=rows[1:] * mask[..., None],
        terminated=ends & by_time,
        truncated=ends & ~by_time,
        mask=mask,
        log_prob=torch.zeros(steps, group.num_agents),
        env_reward=torch.from_numpy(rng.normal(size=mask.shape).astype(np.float32)) * mask,
    )


def make_episodes(seed: int = 0) -> list[JointTransition]:
    """Four episodes of 4, 1, 3 and 6 steps; agents die early, join late and stay away in some of them."""
    rng = np.random.default_rng(seed)
    for group in ALL:
        group.action_space.seed(seed)
    lives: list[tuple[int, dict[str, list[tuple[int, int]]]]] = [
        (4, {"hunter": [(0, 4), (0, 2)], "drone": [(0, 4)], "talker": [(0, 4), (1, 3)]}),
        (1, {"hunter": [(0, 1), (0, 1)], "drone": [(0, 1)], "talker": [(0, 1), (0, 1)]}),
        (3, {"hunter": [(0, 3), (0, 3)], "drone": [(0, 3)], "talker": [(0, 3), (0, 3)]}),
        (6, {"hunter": [(0, 6), (0, 1)], "drone": [(0, 5)], "talker": [(0, 6), (9, 9)]}),
    ]
    return [JointTransition({g.name: life(g, steps, by_group[g.name], rng) for g in ALL}) for steps, by_group in lives]


def make() -> Demonstrations:
    metadata = {"environment": "hunt", "arguments": {"sides": [1, 2.5, None]}, "mean_return": -1.25}
    return Demonstrations.from_episodes(ALL, make_episodes(), [7, -1, 0, 2**40], metadata)


def assert_same(left: JointTransition, right: JointTransition) -> None:
    assert left.groups.keys() == right.groups.keys()
    for name in left.groups:
        for field in fields(Transition):
            a, b = getattr(left.groups[name], field.name), getattr(right.groups[name], field.name)
            assert a.dtype == b.dtype
            assert torch.equal(a, b), (name, field.name)


def one_agent(rewards: list[list[float]], value: Callable[[int], float] = float) -> Demonstrations:
    """One agent whose episodes have these rewards; obs is a step's index among all steps, action is `value` of it."""
    group = AgentGroup("solo", ("solo_0",), spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-np.inf, np.inf, (1,)))
    episodes, start = [], 0
    for episode in rewards:
        steps = len(episode)
        index = torch.arange(start, start + steps, dtype=torch.float32)
        last = torch.arange(steps)[:, None] == steps - 1
        solo = Transition(
            obs=index[:, None, None],
            action=torch.tensor([value(int(i)) for i in index])[:, None, None],
            next_obs=index[:, None, None] + 1,
            terminated=last,
            truncated=torch.zeros_like(last),
            mask=torch.ones_like(last),
            log_prob=torch.zeros(steps, 1),
            env_reward=torch.tensor(episode)[:, None],
        )
        episodes.append(JointTransition({"solo": solo}))
        start += steps
    return Demonstrations.from_episodes([group], episodes, list(range(len(rewards))), {})


# --- in memory -------------------------------------------------------------------------------------------------------


def test_episodes_come_out_as_they_went_in() -> None:
    demonstrations, episodes = make(), make_episodes()
    assert len(demonstrations) == 4
    assert demonstrations.num_steps == 14
    assert demonstrations.lengths.tolist() == [4, 1, 3, 6]
    for index, episode in enumerate(episodes):
        assert_same(demonstrations.episode(index), episode)
    assert_same(demonstrations.episode(-1), episodes[-1])
    with pytest.raises(IndexError):
        demonstrations.episode(4)


def test_every_so_many_steps() -> None:
    """From a random one of the first on; an episode that is shorter than that keeps one step."""
    whole = one_agent([[1.0] * 23, [2.0], [3.0] * 7])
    firsts = set()
    for seed in range(40):
        few = whole.subsample(5, seed)
        solo = few.transitions.groups["solo"]
        steps = solo.obs[:, 0, 0].split(few.lengths.tolist())
        assert torch.equal(solo.next_obs, solo.obs + 1)
        assert torch.equal(few.seeds, whole.seeds)
        for kept, (begin, end) in zip(steps, ((0, 23), (23, 24), (24, 31)), strict=True):
            first = int(kept[0]) - begin
            assert kept.tolist() == list(range(begin + first, end, 5))
            assert first < 5
        firsts.add(int(steps[0][0]))
    assert firsts == set(range(5))
    assert whole.subsample(1, 3).num_steps == whole.num_steps


def test_what_was_left_out_is_missed_in_a_file(tmp_path):
    """An observation there is also what came of the step before it."""
    with pytest.raises(ValueError, match="some steps of these demonstrations were left out"):
        make().subsample(5, 0).save(tmp_path / "few.npz")
    assert not (tmp_path / "few.npz").exists()


def test_how_often_episodes_end_is_not_lost_with_the_steps_left_out() -> None:
    """Three ends in 31 steps, of which the subsampled episodes keep few or none; parts are counted by themselves."""
    whole = one_agent([[1.0] * 23, [2.0], [3.0] * 7])
    assert whole.ends["solo"].tolist() == [[pytest.approx(3 / 31)]]
    for few in (whole.subsample(5, 0), whole.subsample(5, 0).to(torch.device("cpu")), whole.subsample(5, 0).take(2, 0)):
        assert few.ends["solo"].tolist() == [[pytest.approx(3 / 31)]]
    longest = next(part for part in (whole.take(1, seed) for seed in range(9)) if part.num_steps == 23)
    assert longest.ends["solo"].tolist() == [[pytest.approx(1 / 23)]]


def test_rows_of_the_dead_become_zero_and_log_prob_too() -> None:
    episode = make_episodes()[0]
    hunter = episode.groups["hunter"]
    dead = ~hunter.mask
    hunter.obs[dead] = torch.nan
    hunter.env_reward[dead] = torch.inf
    hunter.action[dead] = 99
    hunter.terminated[dead] = True
    hunter.log_prob += 3.0
    made = Demonstrations.from_episodes(ALL, [episode], [0], {})
    assert_same(made.transitions, make_episodes()[0])


def test_known_seeds_leave_out_the_unknown() -> None:
    assert make().known_seeds() == [7, 0, 2**40]


def test_returns_average_over_all_agents_of_all_groups() -> None:
    reward = {
        "hunter": [[1.0, 10.0], [2.0, 20.0], [3.0, 0.0], [4.0, 0.0]],  # hunter_1 dies after 2 steps
        "drone": [[0.5]] * 4,
        "talker": [[0.0, 0.0], [0.0, 7.0], [0.0, -1.0], [100.0, 0.0]],
    }
    short, long = make_episodes()[1], make_episodes()[0]
    for name, values in reward.items():
        long.groups[name].env_reward = torch.tensor(values)
        short.groups[name].env_reward = torch.full_like(short.groups[name].env_reward, 2.0)
    long.groups["hunter"].env_reward[2:, 1] = 1e6  # paid to the dead: counts for nothing
    demonstrations = Demonstrations.from_episodes(ALL, [short, long], [0, 1], {})
    expected = [2.0, (10.0 + 30.0 + 2.0 + 100.0 + 6.0) / 5]
    assert demonstrations.returns().tolist() == pytest.approx(expected, rel=1e-6)


def test_actions_on_bounds() -> None:
    inside = make()
    assert not inside.on_bounds()  # the dead, whose rows are 0, lie below the bounds of 0.5 to 2
    for bound in (0.5, 2.0):
        some = make()
        some.transitions.groups["drone"].action[2, 0, 1] = bound
        assert some.on_bounds()
    assert not one_agent([[0.0, 0.0]]).on_bounds()  # there are none


def test_fewer_taken_are_a_subset_of_more_with_their_own_seeds_and_steps() -> None:
    demonstrations = one_agent([[float(i)] * (i + 1) for i in range(12)])
    nested = [demonstrations.take(count, seed=3) for count in (1, 5, 10, 12)]
    for few, more in pairwise(nested):
        assert set(few.known_seeds()) < set(more.known_seeds())
    assert sorted(nested[-1].known_seeds()) == list(range(12))
    for index, seed in enumerate(nested[1].known_seeds()):
        assert_same(nested[1].episode(index), demonstrations.episode(seed))
    assert nested[1].returns().tolist() == [seed * (seed + 1) for seed in nested[1].known_seeds()]
    assert nested[1].known_seeds() != demonstrations.take(5, seed=4).known_seeds()


@pytest.mark.parametrize("count", [0, -1, 5])
def test_taking_what_is_not_there_says_how_many_there_are(count: int) -> None:
    with pytest.raises(ValueError, match=rf"take {count} .*there are 4"):
        make().take(count, seed=0)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 3), (0.001, 1), (0.999, 11), (0.5, 6)])
def test_split_is_disjoint_complete_and_leaves_neither_side_empty(fraction: float, held_out: int) -> None:
    demonstrations = one_agent([[0.0]] * 12)
    train, held = demonstrations.split(fraction, seed=1)
    assert len(held) == held_out
    assert sorted(train.known_seeds() + held.known_seeds()) == list(range(12))
    again, _ = demonstrations.split(fraction, seed=1)
    assert again.known_seeds() == train.known_seeds()


def test_every_episode_is_held_out_in_one_fold() -> None:
    demonstrations = one_agent([[0.0]] * 7)
    folds = list(demonstrations.folds(3, seed=1))
    assert [len(held) for _, held in folds] == [3, 2, 2]
    assert sorted(seed for _, held in folds for seed in held.known_seeds()) == list(range(7))
    for train, held in folds:
        assert sorted(train.known_seeds() + held.known_seeds()) == list(range(7))


def test_what_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="only demonstration cannot be split"):
        one_agent([[0.0, 1.0]]).split(0.5, seed=0)
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="both excluded"):
            make().split(fraction, seed=0)


def test_sampled_steps_stay_together_and_are_uniform() -> None:
    demonstrations = one_agent([[float(i)] * 5 for i in range(4)], value=lambda step: 3.0 * step + 1)
    batch = demonstrations.sample(20_000, torch.Generator().manual_seed(0)).groups["solo"]
    step = batch.obs
    assert batch.obs.shape == (20_000, 1, 1)
    assert torch.equal(batch.action, 3 * step + 1)
    assert torch.equal(batch.next_obs, step + 1)
    assert torch.equal(batch.env_reward, (step // 5).squeeze(-1))
    assert torch.equal(batch.terminated, (step % 5 == 4).squeeze(-1))
    counts = torch.bincount(step.long().flatten(), minlength=20)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5  # five standard deviations


def test_sampled_groups_stay_together() -> None:
    demonstrations = make()
    batch = demonstrations.sample(500, torch.Generator().manual_seed(0))
    for row in range(500):
        drone = batch.groups["drone"]
        if not drone.mask[row, 0]:  # its zero row is no key to the step
            continue
        (step,) = (demonstrations.transitions.groups["drone"].obs == drone.obs[row]).all(-1).all(-1).nonzero()
        assert_same(batch[row : row + 1], demonstrations.transitions[step])


def test_steps_in_which_nobody_lives_are_never_sampled() -> None:
    (episode,) = (e.map(lambda x: torch.cat([x, torch.zeros_like(x)])) for e in make_episodes()[2:3])
    demonstrations = Demonstrations.from_episodes(ALL, [episode], [0], {})
    assert demonstrations.num_steps == 6
    assert demonstrations.sample(200).groups["drone"].mask.all()


def test_sampling_follows_its_generator_and_leaves_the_default_one_alone() -> None:
    demonstrations = make()
    state = torch.get_rng_state()
    first, second = (demonstrations.sample(50, torch.Generator().manual_seed(5)) for _ in range(2))
    assert_same(first, second)
    assert torch.equal(state, torch.get_rng_state())
    demonstrations.sample(1)
    assert not torch.equal(state, torch.get_rng_state())


def reorder_steps(episodes: list[JointTransition]) -> None:
    drone = episodes[2].groups["drone"]
    drone.obs[1] += 1.0


def shift_mask(episodes: list[JointTransition]) -> None:
    episodes[2].groups["hunter"].mask[-1, 1] = False


def wrong_dtype(episodes: list[JointTransition]) -> None:
    episodes[2].groups["talker"].action = episodes[2].groups["talker"].action.int()


def wrong_shape(episodes: list[JointTransition]) -> None:
    episodes[2].groups["talker"].obs = episodes[2].groups["talker"].obs[..., :2]


def wrong_group(episodes: list[JointTransition]) -> None:
    episodes[2].groups["prey"] = episodes[2].groups.pop("talker")


def no_steps(episodes: list[JointTransition]) -> None:
    episodes[2] = episodes[2][:0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (reorder_steps, ["drone_0", "step 0", "next_obs is not its obs"]),
        (shift_mask, ["hunter_1", "step 1", "not alive in the next step"]),
        (wrong_dtype, ["talker", "action", "int32", "int64"]),
        (wrong_shape, ["talker", "obs", "(3, 2, 2)", "(3, 2, 3)"]),
        (wrong_group, ["prey", "talker"]),
        (no_steps, ["no steps"]),
    ],
)
def test_episodes_in_memory_are_checked(spoil: Callable[[list[JointTransition]], None], words: list[str]) -> None:
    episodes = make_episodes()
    spoil(episodes)
    with pytest.raises(ValueError, match=r"converted\.pkl: episode 2") as error:
        Demonstrations.from_episodes(ALL, episodes, [0] * 4, {}, source="converted.pkl")
    for word in words:
        assert word in str(error.value)


def test_every_episode_needs_a_seed_and_there_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="4 episodes and 3 seeds"):
        Demonstrations.from_episodes(ALL, make_episodes(), [0] * 3, {})
    with pytest.raises(ValueError, match="0 episodes"):
        Demonstrations.from_episodes(ALL, [], [], {})


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hunt.npz"
    make().save(path)
    return path


def read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def spoilt(path: Path, spoil: Callable[[Arrays], Any]) -> str:
    """The message that loading gives after `spoil` changed the good file's arrays; it always names the file."""
    arrays = read(path)
    spoil(arrays)
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        Demonstrations.load(path, ALL)
    return str(error.value)


def test_round_trip_is_bit_for_bit(path: Path) -> None:
    saved, loaded = make(), Demonstrations.load(str(path), ALL)
    assert_same(loaded.transitions, saved.transitions)
    assert loaded.groups == ALL
    assert torch.equal(loaded.lengths, saved.lengths)
    assert torch.equal(loaded.seeds, saved.seeds)
    assert loaded.metadata == saved.metadata
    died = loaded.episode(0).groups["hunter"]
    assert not died.obs[2, 1].any()
    assert died.next_obs[1, 1].all()  # its last observation was kept


@pytest.mark.parametrize("kept", ALL, ids=lambda group: group.name)
def test_groups_that_are_not_asked_for_are_left_out(path: Path, kept: AgentGroup) -> None:
    of_one = Demonstrations.load(path, [kept])
    assert of_one.groups == (kept,)
    everything = make().transitions.groups
    assert_same(of_one.transitions, JointTransition({kept.name: everything[kept.name]}))


def test_round_trip_of_a_part(path: Path) -> None:
    part = make().take(2, seed=1)
    part.save(path)
    assert_same(Demonstrations.load(path, ALL).transitions, part.transitions)


def test_the_file_is_what_the_docstring_says(path: Path) -> None:
    arrays, transitions = read(path), make().transitions.groups
    members = {f"{g.name}/{m}" for g in ALL for m in ("obs", "action", "reward", "terminated", "truncated", "mask")}
    assert arrays.keys() == members | {"header", "lengths", "seeds"}
    obs = torch.from_numpy(arrays["drone/obs"])
    assert obs.shape == (14 + 4, 1, 3)
    drone = transitions["drone"]
    assert torch.equal(obs[:4], drone.obs[:4])
    assert torch.equal(obs[4], drone.next_obs[3])  # the final one of episode 0, which has 4 steps
    assert torch.equal(obs[5], drone.obs[4])
    assert torch.equal(obs[17], torch.zeros(1, 3))  # the drone of episode 3 ended at step 4 of 6
    assert torch.equal(obs[16], drone.next_obs[12])
    assert torch.equal(torch.from_numpy(arrays["talker/action"]), transitions["talker"].action)
    header = json.loads(arrays["header"].item())
    assert header["groups"]["hunter"] == {
        "agents": ["hunter_0", "hunter_1"],
        "obs_dim": 3,
        "action_space": {"type": "Discrete", "n": 5},
    }


def test_the_docstring_example_makes_a_file_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.__doc__ is not None
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(module.__doc__.split("::\n")[-1]), {"np": np, "json": json})
    group = AgentGroup("cart", ("cart_0",), spaces.Box(-np.inf, np.inf, (4,)), spaces.Discrete(2))
    loaded = Demonstrations.load("cart.npz", [group])
    assert loaded.returns().tolist() == [3.0, 2.0]
    assert loaded.known_seeds() == []


def test_members_and_values_that_nobody_reads_do_no_harm(path: Path) -> None:
    arrays = read(path)
    arrays["notes"] = np.array([1, 2])
    arrays["hunter/reward"][~arrays["hunter/mask"]] = np.nan
    arrays["hunter/action"][~arrays["hunter/mask"]] = -1
    np.savez(path, **arrays)
    assert_same(Demonstrations.load(path, ALL).transitions, make().transitions)


def test_duplicate_episodes_are_no_error(path: Path) -> None:
    episode = make_episodes()[0]
    Demonstrations.from_episodes(ALL, [episode, episode], [3, 3], {}).save(path)
    assert len(Demonstrations.load(path, ALL)) == 2


def test_box_actions_have_a_tolerance(path: Path) -> None:
    arrays = read(path)
    arrays["drone/action"][0, 0, 0] = 2.0 + 5e-7
    np.savez(path, **arrays)
    Demonstrations.load(path, ALL)


def put(member: str, index: Any, value: Any) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        arrays[member][index] = value

    return spoil


# Episode 3 begins at step 8 and at observation row 11; in it hunter_1 lives for 1 step and drone_0 for 5 of the 6.
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put("talker/obs", (13, 0, 1), np.nan), ["talker_0", "step 2", "obs[1] is nan"]),
        (put("talker/obs", (17, 0, 1), np.inf), ["talker_0", "step 5", "next_obs[1] is inf"]),
        (put("hunter/obs", (12, 1, 0), np.nan), ["hunter_1", "step 0", "next_obs[0] is nan"]),
        (put("drone/action", (9, 0, 3), np.nan), ["drone_0", "step 1", "action[3] is nan"]),
        (put("hunter/reward", (8, 1), -np.inf), ["hunter_1", "step 0", "env_reward is -inf"]),
        (put("hunter/action", (10, 0, 0), 5), ["hunter_0", "step 2", "action[0] is 5", "Discrete(5", "count from 0"]),
        (put("hunter/action", (10, 0, 0), -1), ["hunter_0", "step 2", "action[0] is -1"]),
        (put("talker/action", (13, 0, 1), 2), ["talker_0", "step 5", "action[1] is 2", "MultiDiscrete"]),
        (put("drone/action", (8, 0, 2), 2.001), ["drone_0", "step 0", "action[2] is 2.0", "Box", "clip"]),
        (put("drone/action", (8, 0, 2), 0.499), ["drone_0", "step 0", "action[2] is 0.49"]),
        (put("hunter/mask", (9, 1), True), ["hunter_1", "step 1", "after its own terminated or truncated"]),
        (put("hunter/mask", (12, 1), True), ["hunter_1", "step 4", "after its own terminated or truncated"]),
        (put("hunter/terminated", (9, 0), True), ["hunter_0", "step 2", "after its own terminated or truncated"]),
        (put("hunter/truncated", (9, 0), True), ["hunter_0", "step 2", "after its own terminated or truncated"]),
        (put("drone/mask", (10, 0), False), ["drone_0", "step 1", "not alive in the next step"]),
        (put("drone/terminated", (12, 0), False), ["drone_0", "step 4", "not alive in the next step"]),
        (put("talker/truncated", (13, 0), False), ["talker_0", "step 5", "episode stops here"]),
        (put("lengths", slice(3, 4), 0), ["no steps"]),
        (put("lengths", slice(3, 4), -6), ["no steps"]),
        (put("seeds", slice(3, 4), -2), ["the reset seed -2"]),
    ],
)
def test_a_bad_value_is_named_by_file_episode_and_agent(
    path: Path, spoil: Callable[[Arrays], None], words: list[str]
) -> None:
    message = spoilt(path, spoil)
    for word in ["hunt.npz", "episode 3", *words]:
        assert word in message, message
    assert "\n" not in message


def test_an_episode_begins_with_somebody(path: Path) -> None:
    episode = make_episodes()[2].map(lambda x: torch.cat([torch.zeros_like(x), x]))
    message = "episode 1, step 0: no agent of any group is alive"
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_episodes(ALL, [make_episodes()[0], episode], [0, 0], {})

    def nobody(arrays: Arrays) -> None:
        for group in ALL:
            arrays[f"{group.name}/mask"][:] = False

    assert "episode 0, step 0: no agent of any group is alive" in spoilt(path, nobody)


def change(member: str, function: Callable[[np.ndarray], Any]) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        arrays[member] = function(arrays[member])

    return spoil


def change_header(function: Callable[[Arrays], Any]) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        header = json.loads(arrays["header"].item())
        function(header)
        arrays["header"] = np.array(json.dumps(header))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a.pop("hunter/mask"), ["hunter/mask", "missing"]),
        (lambda a: a.pop("header"), ["header", "missing"]),
        (lambda a: a.pop("seeds"), ["seeds", "missing"]),
        (change("header", lambda x: np.array("{")), ["header", "cannot be read"]),
        (change("header", lambda x: np.array("[" * 100_000)), ["header", "cannot be read"]),
        (change("header", lambda x: np.array("[1]")), ["format version None"]),
        (change("header", lambda x: np.frombuffer(b"{}", np.uint8)), ["header", "uint8", "str"]),
        (change_header(lambda h: h.update(format_version=2)), ["version 2", "reads 1"]),
        (change_header(lambda h: h.pop("groups")), ["groups"]),
        (change_header(lambda h: h.update(metadata=[])), ["metadata"]),
        (change_header(lambda h: h.update(groups={"hunter": 3})), ["groups"]),
        (change_header(lambda h: h["groups"].pop("drone")), ["['hunter', 'talker']", "['drone', 'hunter', 'talker']"]),
        (change_header(lambda h: h["groups"].update(prey=h["groups"].pop("talker"))), ["'prey'", "'talker'"]),
        (change_header(lambda h: h["groups"]["drone"].update(agents=["x"])), ["drone", "agents", "['x']", "drone_0"]),
        (change_header(lambda h: h["groups"]["drone"].update(obs_dim=4)), ["drone", "obs_dim 4", "and 3"]),
        (
            change_header(lambda h: h["groups"]["hunter"]["action_space"].update(n=6)),
            ["hunter", "action_space", "'n': 6", "'n': 5"],
        ),
        (
            change_header(lambda h: h["groups"]["talker"]["action_space"].update(nvec=[2, 3])),
            ["talker", "[2, 3]", "[3, 2]"],
        ),
        (
            change_header(lambda h: h["groups"]["drone"]["action_space"].update(high=[1.0] * 4)),
            ["drone", "[1.0", "[2.0"],
        ),
        (change("drone/action", lambda x: x.astype(np.float64)), ["drone/action", "float64", "not float32"]),
        (change("hunter/action", lambda x: x.astype(np.int32)), ["hunter/action", "int32", "not int64"]),
        (change("hunter/mask", lambda x: x.astype(np.int8)), ["hunter/mask", "int8", "not bool"]),
        (change("drone/obs", lambda x: x.astype(">f4")), ["drone/obs", ">f4"]),
        (change("lengths", lambda x: x.astype(np.float32)), ["lengths", "float32", "not int64"]),
        (change("lengths", lambda x: x[:, None]), ["lengths", "(4, 1)"]),
        (change("lengths", lambda x: x[:0]), ["no episodes"]),
        (change("lengths", lambda x: x[:-1]), ["seeds", "(4,)", "(3,)"]),
        (change("lengths", lambda x: x + 1), ["hunter/obs", "(18, 2, 3)", "(22, 2, 3)", "add up to 18 steps"]),
        (change("lengths", lambda x: x + 2**62), ["hunter/obs", "(18, 2, 3)", "add up to"]),
        (change("seeds", lambda x: x[:-1]), ["seeds", "(3,)", "(4,)"]),
        (change("hunter/obs", lambda x: x[:-4]), ["hunter/obs", "(14, 2, 3)", "(18, 2, 3)"]),
        (change("hunter/reward", lambda x: x[:, :1]), ["hunter/reward", "(14, 1)", "(14, 2)", "2 agents"]),
        (change("talker/action", lambda x: x[..., 0]), ["talker/action", "(14, 2)", "(14, 2, 2)"]),
    ],
)
def test_what_does_not_fit_is_named(path: Path, spoil: Callable[[Arrays], None], words: list[str]) -> None:
    message = spoilt(path, spoil)
    for word in words:
        assert word in message, message


def test_the_agents_and_spaces_of_another_environment_are_refused(path: Path) -> None:
    others = (replace(DRONES, observation_space=spaces.Box(-1, 1, (9,))), HUNTERS, TALKERS)
    with pytest.raises(ValueError, match=r"hunt\.npz: group 'drone' has obs_dim 3 in the file and 9"):
        Demonstrations.load(path, others)


def test_no_file_no_archive_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "hunt.npz"
    with pytest.raises(ValueError, match=r"hunt\.npz: there is no such file"):
        Demonstrations.load(path, ALL)
    with pytest.raises(ValueError, match="there is no such file"):
        Demonstrations.load(tmp_path, ALL)
    with open(path, "wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(ValueError, match=r"hunt\.npz: .*no \.npz"):
        Demonstrations.load(path, ALL)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"hunt\.npz: the member 'header' is missing"):
        Demonstrations.load(path, ALL)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("member", ["header", "lengths", "seeds", "hunter/obs", "talker/mask"])
def test_pickled_members_are_refused_and_nothing_runs(path: Path, tmp_path: Path, member: str) -> None:
    target = tmp_path / "exploded"
    arrays = read(path)
    arrays[member] = np.array([Bomb(target)], dtype=object)
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match=rf"hunt\.npz: member '{member}' holds pickled"):
        Demonstrations.load(path, ALL)
    assert not target.exists()
    with np.load(path, allow_pickle=True) as archive:
        archive[member]
    assert target.exists()  # the bomb was live


def test_a_pickle_under_the_name_of_an_npz_is_refused_and_nothing_runs(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "exploded"
    path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match=r"hunt\.npz"):
        Demonstrations.load(path, ALL)
    assert not target.exists()


def test_a_file_cut_short_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"hunt\.npz: .*cut short"):
            Demonstrations.load(path, ALL)


def test_a_changed_byte_is_found_or_does_no_harm(path: Path) -> None:
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    saved = make().transitions
    for position in rng.integers(len(whole), size=300):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            loaded = Demonstrations.load(path, ALL)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right, but the message must name the file
            refused += 1
        else:  # a date, say
            assert_same(loaded.transitions, saved)
    assert refused > 100


def replace_member(path: Path, member: str, shape: tuple[int, ...]) -> None:
    """Put a member of int64 in the file that declares this shape and holds no numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": shape})
    arrays = read(path)
    del arrays[member]
    np.savez_compressed(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{member}.npy", stream.getvalue())


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a member that lies about its size was read")


def test_a_shape_beyond_the_members_size_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_member(path, "seeds", (4,))
    monkeypatch.setattr(module, "_check_lengths", lambda *_: monkeypatch.setattr(np.lib.format, "read_array", never))
    with pytest.raises(ValueError, match=r"hunt\.npz: member 'seeds' cannot be read .*does not fit its shape \(4,\)"):
        Demonstrations.load(path, ALL)


def test_a_size_beyond_what_the_file_can_hold_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = 2**28
    replace_member(path, "lengths", (numbers,))
    with zipfile.ZipFile(path) as archive:
        real_size = archive.getinfo("lengths.npy").file_size
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the last of the central directory, where bytes 24 to 28 hold the size
    struct.pack_into("<I", data, entry + 24, real_size + 8 * numbers)
    path.write_bytes(data)

    original = np.lib.format.read_array
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda s, **k: never() if s.name == "lengths.npy" else original(s, **k)
    )
    with pytest.raises(ValueError, match=r"hunt\.npz: member 'lengths' cannot be read .*more than a file of"):
        Demonstrations.load(path, ALL)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_a_failure_while_saving_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail_in_the_middle(stream: Any, **_: Any) -> None:
        stream.write(before[: len(before) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail_in_the_middle)
    with pytest.raises(OSError, match="no space left"):
        make().take(1, seed=0).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_saving_replaces_the_file_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hunt.npz"
    make().save(path)
    make().take(1, seed=0).save(path)
    assert len(Demonstrations.load(path, ALL)) == 1
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"call it hunt\.npz"):
        make().save(tmp_path / "hunt.pkl")
    with pytest.raises(ValueError, match="metadata are not JSON"):
        replace(make(), metadata={"expert": object()}).save(tmp_path / "hunt.npz")
    assert not list(tmp_path.iterdir())
