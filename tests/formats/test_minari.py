"""Minari datasets, written and read, and as Minari itself reads and writes them."""

import json

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from magail.demonstrations import Demonstrations
from magail.formats import minari as ours
from magail.types import AgentGroup
from tests.formats.test_readers import groups_of_gym
from tests.test_demonstrations import ALL, assert_same, make
from tests.toy import groups_of, random_batch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

CARTPOLE = groups_of_gym("CartPole-v1")


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def buffers(env, episodes):
    """What random play gives, as a user of Minari would collect it."""
    made = []
    for seed in range(episodes):
        obs, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        buffer = {"observations": [obs], "actions": [], "rewards": [], "terminations": [], "truncations": []}
        over = False
        while not over:
            action = env.action_space.sample()
            obs, reward, terminated, truncated, _ = env.step(action)
            for name, value in zip(buffer, (obs, action, float(reward), terminated, truncated), strict=True):
                buffer[name].append(value)
            over = terminated or truncated
        made.append(EpisodeBuffer(id=seed, seed=seed, **buffer))
    return made


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_a_dataset_that_minari_made(name, data_format):
    env = gymnasium.make(name, max_episode_steps=20)
    collected = buffers(env, 3)
    minari.create_dataset_from_buffers(
        "test/random-v0",
        collected,
        observation_space=env.observation_space,
        action_space=env.action_space,
        data_format=data_format,
    )
    demonstrations = ours.read("test/random-v0", groups_of_gym(name))
    assert demonstrations.seeds.tolist() == [0, 1, 2]
    for index, buffer in enumerate(collected):
        group = demonstrations.episode(index).groups["agent"]
        obs = np.stack(buffer.observations)
        assert np.array_equal(group.obs[:, 0], obs[:-1])
        assert np.array_equal(group.next_obs[:, 0], obs[1:])
        assert np.array_equal(group.action[:, 0], np.reshape(buffer.actions, (len(obs) - 1, -1)))
        assert np.allclose(group.env_reward[:, 0], buffer.rewards)
        assert group.terminated[:, 0].tolist() == buffer.terminations
        assert group.truncated[-1].item() == (not buffer.terminations[-1])


def test_one_agents_demonstrations_as_minari_reads_them():
    batch = random_batch(CARTPOLE, 6)
    group = batch.groups["agent"]
    group.next_obs[:-1] = group.obs[1:]
    group.terminated[:], group.truncated[:] = False, False
    group.terminated[-1] = True
    demonstrations = Demonstrations.from_episodes(CARTPOLE, [batch, batch], [5, -1], {"note": "mine"})
    ours.writer("cartpole/expert-v0")(demonstrations)
    dataset = minari.load_dataset("cartpole/expert-v0")
    assert dataset.action_space == spaces.Discrete(2)
    assert json.loads(dataset.storage.metadata["description"]) == {"note": "mine"}
    episode = dataset[0]
    assert np.array_equal(episode.observations, np.concatenate([group.obs[:, 0], group.next_obs[-1:, 0]]))
    assert np.array_equal(episode.actions, group.action[:, 0, 0])
    assert np.array_equal(episode.rewards, group.env_reward[:, 0])
    assert episode.terminations.tolist() == [False] * 5 + [True]
    assert not episode.truncations.any()
    again = ours.read("cartpole/expert-v0", CARTPOLE)
    assert_same(again.transitions, demonstrations.transitions)
    assert again.seeds.tolist() == [5, -1]
    with pytest.raises(ValueError, match="such a dataset already"):
        ours.writer("cartpole/expert-v0")


def test_several_agents_with_lives_of_their_own():
    """Deaths, late arrivals, absences, every kind of action space, a space that does not start at 0."""
    demonstrations = make()
    ours.writer("hunt/expert-v1")(demonstrations)
    again = ours.read("hunt/expert-v1", ALL)
    assert_same(again.transitions, demonstrations.transitions)
    assert again.lengths.tolist() == demonstrations.lengths.tolist()
    assert again.seeds.tolist() == demonstrations.seeds.tolist()
    dataset = minari.load_dataset("hunt/expert-v1")
    assert set(dataset.action_space.spaces) == {"hunter_0", "hunter_1", "drone_0", "talker_0", "talker_1"}
    first = dataset[0].actions["hunter_0"]
    assert all(dataset.action_space["hunter_0"].contains(int(action)) for action in first)  # from -2


def test_by_folder(datasets):
    ours.writer("hunt/expert-v1")(make())
    for folder in (datasets / "hunt/expert-v1", datasets / "hunt/expert-v1/data"):
        assert_same(ours.read(str(folder), ALL).transitions, make().transitions)


TEAM = (AgentGroup("bot", ("a", "b"), spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)),)


THREE_STEPS = {
    "rewards": np.arange(3.0),
    "terminations": np.array([False, False, False]),
    "truncations": np.array([False, False, True]),
}


def team_dataset(**changes):
    """As somebody else would write two agents: one reward and one flag a step for both."""
    rng = np.random.default_rng(0)
    observations = {name: rng.uniform(-1, 1, (4, 2)).astype(np.float32) for name in "ab"}
    actions = {name: rng.integers(0, 3, 3) for name in "ab"}
    episode = {"observations": observations, "actions": actions} | THREE_STEPS | changes
    minari.create_dataset_from_buffers(
        "team/random-v0",
        [EpisodeBuffer(id=0, **episode)],
        observation_space=spaces.Dict({name: TEAM[0].observation_space for name in episode["observations"]}),
        action_space=spaces.Dict({name: TEAM[0].action_space for name in episode["actions"]}),
    )
    return episode


def test_a_team_with_one_reward():
    episode = team_dataset()
    group = ours.read("team/random-v0", TEAM).transitions.groups["bot"]
    for index, name in enumerate("ab"):
        assert np.array_equal(group.obs[:, index], episode["observations"][name][:-1])
        assert np.array_equal(group.action[:, index, 0], episode["actions"][name])
    assert group.env_reward.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert group.truncated.tolist() == [[False, False], [False, False], [True, True]]
    assert group.mask.all()


def test_agents_that_end_at_different_times_and_an_unmarked_end():
    team_dataset(
        rewards=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        terminations=np.array([[False, False], [True, False], [False, False]]),
        truncations=np.zeros((3, 2), bool),
    )
    group = ours.read("team/random-v0", TEAM).transitions.groups["bot"]
    assert group.mask.tolist() == [[True, True], [True, True], [False, True]]
    assert group.env_reward.tolist() == [[1, 2], [3, 4], [0, 6]]
    assert group.terminated.tolist() == [[False, False], [True, False], [False, False]]
    assert group.truncated.tolist() == [[False, False], [False, False], [False, True]]  # recorded no further


def test_a_goal_environments_observations_are_flattened():
    space = spaces.Dict({"goal": spaces.Box(-1, 1, (2,)), "observation": spaces.Box(-1, 1, (3,))})
    rng = np.random.default_rng(0)
    parts = {"goal": rng.uniform(-1, 1, (4, 2)), "observation": rng.uniform(-1, 1, (4, 3))}
    buffer = EpisodeBuffer(
        observations={name: part.astype(np.float32) for name, part in parts.items()},
        actions=[0, 1, 1],
        rewards=[0.0, 0.0, 1.0],
        terminations=[False, False, True],
        truncations=[False] * 3,
    )
    minari.create_dataset_from_buffers(
        "goal/random-v0", [buffer], observation_space=space, action_space=spaces.Discrete(2)
    )
    groups = (AgentGroup("agent", ("agent_0",), space, spaces.Discrete(2)),)
    demonstrations = ours.read("goal/random-v0", groups)
    flat = np.concatenate([parts["goal"], parts["observation"]], 1).astype(np.float32)
    assert np.array_equal(demonstrations.transitions.groups["agent"].obs[:, 0], flat[:-1])
    ours.writer("goal/again-v0")(demonstrations)
    assert_same(ours.read("goal/again-v0", groups).transitions, demonstrations.transitions)


def test_an_environment_that_a_dataset_names_is_never_made(datasets, tmp_path, monkeypatch):
    """Without spaces in its metadata Minari makes the environment, which runs what it names."""
    marker = tmp_path / "written"
    (tmp_path / "evil_env.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ndef make(**_): raise ValueError('it was made')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ours.writer("hunt/expert-v1")(make())
    file = datasets / "hunt/expert-v1/data/metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["observation_space"]
    metadata["env_spec"] = gymnasium.envs.registration.EnvSpec("Evil-v0", entry_point="evil_env:make").to_json()
    file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="would make the environment it names"):
        ours.read("hunt/expert-v1", ALL)
    assert not marker.exists()
    with pytest.raises(ValueError, match="it was made"):
        minari.load_dataset("hunt/expert-v1")
    assert marker.exists()  # so it would have


@pytest.mark.parametrize(
    ("name", "groups", "message"),
    [
        ("hunt/expert-v1", CARTPOLE, r"agents are \['drone_0', .*the environment has \['agent_0'\]"),
        ("hunt/expert-v2", ALL, "no Minari dataset can be read there"),
        ("hunt/expert-v1", ALL[:2], "the environment has"),
    ],
)
def test_what_does_not_fit(name, groups, message):
    ours.writer("hunt/expert-v1")(make())
    with pytest.raises(ValueError, match=message):
        ours.read(name, groups)


def test_one_agents_dataset_does_not_fit_several():
    env = gymnasium.make("CartPole-v1")
    minari.create_dataset_from_buffers(
        "test/random-v0", buffers(env, 1), observation_space=env.observation_space, action_space=env.action_space
    )
    with pytest.raises(ValueError, match="one, without a name"):
        ours.read("test/random-v0", TEAM)


def test_agents_of_one_group_whose_episodes_differ_in_length():
    """Each has an observation more than actions, but one stops earlier."""
    names, flags = "ab", np.zeros((3, 2), bool)
    team_dataset(
        observations={name: np.zeros((4 - i, 2), np.float32) for i, name in enumerate(names)},
        actions={name: np.zeros(3 - i, np.int64) for i, name in enumerate(names)},
        rewards=np.zeros((3, 2)),
        terminations=flags,
        truncations=flags,
    )
    with pytest.raises(ValueError, match="agent 'b': fields of different length"):
        ours.read("team/random-v0", TEAM)


def test_a_dataset_without_episodes():
    space = CARTPOLE[0].observation_space
    storage = minari.create_dataset_from_buffers(
        "test/empty-v0", [], observation_space=space, action_space=spaces.Discrete(2)
    ).storage
    assert storage.total_episodes == 0
    with pytest.raises(ValueError, match="give at least one episode"):
        ours.read("test/empty-v0", CARTPOLE)


def test_damaged_datasets(datasets):
    ours.writer("hunt/expert-v1")(make())
    file = datasets / "hunt/expert-v1/data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"no Minari dataset can be read there .*truncated file"):
        ours.read("hunt/expert-v1", ALL)


@pytest.mark.parametrize("reference", ["soft", "external file", "raw bytes", "virtual"])
def test_a_file_that_opens_others_is_refused(reference, datasets):
    """HDF5 would read any file of this machine for whoever wrote the dataset."""
    ours.writer("hunt/expert-v1")(make())
    path, other = datasets / "hunt/expert-v1/data/main_data.hdf5", datasets / "private.hdf5"
    with h5py.File(other, "w") as file:
        file["rewards"] = np.ones((4, 5))
    with h5py.File(path, "a") as file:
        episode, shape = file["episode_0"], file["episode_0/rewards"].shape
        del episode["rewards"]
        if reference == "soft":
            episode["rewards"] = h5py.SoftLink("/episode_1/rewards")
        elif reference == "external file":
            episode["rewards"] = h5py.ExternalLink(str(other), "/rewards")
        elif reference == "raw bytes":
            episode.create_dataset("rewards", shape, "f8", external=str(other))
        else:
            layout = h5py.VirtualLayout(shape, "f8")
            layout[:] = h5py.VirtualSource(str(other), "rewards", shape)
            episode.create_virtual_dataset("rewards", layout)
    with pytest.raises(ValueError, match="refers in /episode_0/rewards to something else than itself"):
        ours.read("hunt/expert-v1", ALL)


def one_agents(actions, action_space, **changes):
    """Writes "one/random-v0": an episode of three steps of an agent that sees two numbers."""
    episode = {"observations": np.zeros((4, 2), np.float32), "actions": actions} | THREE_STEPS | changes
    minari.create_dataset_from_buffers(
        "one/random-v0",
        [EpisodeBuffer(id=0, **episode)],
        observation_space=spaces.Box(-1, 1, (2,), np.float32),
        action_space=action_space,
    )


@pytest.mark.parametrize(
    ("stored", "actual"),
    [
        (spaces.Box(-1, 1, (1,)), spaces.Box(-2, 2, (1,))),
        (spaces.Discrete(3), spaces.Discrete(3, start=1)),
        (spaces.Discrete(2), spaces.Discrete(3)),
    ],
)
def test_other_actions_than_the_environments(stored, actual):
    one_agents(np.ones((3, *stored.shape), stored.dtype), stored)
    assert len(ours.read("one/random-v0", groups_of(agent=(1, 2, stored)))) == 1
    with pytest.raises(ValueError, match=r"'agent_0' acts in .* there, and in .* in the environment"):
        ours.read("one/random-v0", groups_of(agent=(1, 2, actual)))


def test_the_same_box_in_another_precision():
    one_agents(np.ones((3, 1)), spaces.Box(-1, 1, (1,), np.float64))
    ours.read("one/random-v0", groups_of(agent=(1, 2, spaces.Box(-1, 1, (1,)))))


def test_an_end_before_the_last_step():
    one_agents(np.ones(3, np.int64), spaces.Discrete(3), terminations=np.array([False, True, False]))
    with pytest.raises(ValueError, match="episode 0 goes on after step 1, which it calls its end"):
        ours.read("one/random-v0", groups_of(agent=(1, 2, spaces.Discrete(3))))


def test_the_dead_have_valid_observations_too():
    """Where one of several choices is seen, zeros are none of them."""
    seen = spaces.Dict(box=spaces.Box(-1, 1, (1,)), choice=spaces.Discrete(3, start=1))
    groups = (AgentGroup("bot", ("a", "b"), seen, spaces.Discrete(2)),)
    episode = random_batch(groups, 3)
    bot = episode.groups["bot"]
    bot.obs[:], bot.mask[:], bot.terminated[:], bot.truncated[:] = 0, True, False, False
    bot.obs[..., 2], bot.terminated[0, 1], bot.truncated[-1, 0] = 1, True, True
    bot.mask[1:, 1] = False
    bot.next_obs[:] = bot.obs
    demonstrations = Demonstrations.from_episodes(groups, [episode], [-1], {})
    ours.writer("bots/random-v0")(demonstrations)
    again = ours.read("bots/random-v0", groups)
    assert_same(again.transitions, demonstrations.transitions)
    assert minari.load_dataset("bots/random-v0")[0].observations["b"]["choice"].tolist() == [2, 2, 1, 1]


def test_names_that_are_no_ids():
    with pytest.raises(ValueError, match="ids look like"):
        ours.writer("demonstrations.npz")


@pytest.mark.parametrize(("noted", "known"), [(None, -1), (7, 7), (2**63 + 5, -1)])
def test_seeds_that_are_too_large_are_not_known(noted, known):
    """Minari draws 64 bits for whoever names no seed."""
    assert ours._known_seed(noted) == known
