"""Other libraries' files: real ones where the libraries can write them, else written by hand as those do."""

import json
import pickle
import shutil
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from magail.formats import di_engine, imitation, npz, original, pickles
from magail.types import AgentGroup
from tests.test_config import composed
from tests.test_demonstrations import one_agent
from tests.toy import groups_of

GOLDEN = Path(__file__).parent.parent / "golden"


def groups_of_gym(name):
    env = gymnasium.make(name)
    return (AgentGroup("agent", ("agent_0",), env.observation_space, env.action_space),)


CARTPOLE = groups_of_gym("CartPole-v1")
TAG = groups_of(wolf=(2, 3, spaces.Discrete(4)), sheep=(1, 2, spaces.MultiDiscrete([3, 2])))


def flags(demonstrations):
    group = demonstrations.transitions.groups["agent"]
    return group.terminated.nonzero()[:, 0].tolist(), group.truncated.nonzero()[:, 0].tolist()


# --- DI-engine -------------------------------------------------------------------------------------------------------


def test_di_engines_steps_become_episodes():
    """Two copies collected 40 steps between them; where one's steps end and the other's begin is not marked."""
    path = GOLDEN / "di_engine_cartpole.pkl"
    demonstrations, steps = di_engine.read(str(path), CARTPOLE, None), pickles.load(path)
    group = demonstrations.transitions.groups["agent"]
    for name in ("obs", "next_obs", "action"):
        assert torch.equal(getattr(group, name)[:, 0], torch.stack([step[name] for step in steps]))
    assert torch.equal(group.env_reward, torch.stack([step["reward"] for step in steps]))
    ends = demonstrations.lengths.cumsum(0) - 1
    done = [t for t, step in enumerate(steps) if step["done"]]
    assert set(done) <= set(ends.tolist())
    assert flags(demonstrations) == (done, [t for t in ends.tolist() if t not in done])
    assert demonstrations.seeds.tolist() == [-1] * len(demonstrations)


def test_di_engines_boxes():
    demonstrations = di_engine.read(str(GOLDEN / "di_engine_pendulum.pkl"), groups_of_gym("Pendulum-v1"), None)
    assert demonstrations.num_steps == 40
    assert demonstrations.returns().sum() < -100


def steps_of(*episodes):
    """DI-engine's list of episodes of the given lengths, the last step of each being done."""
    steps = []
    for first, length in enumerate(episodes):
        for t in range(length):
            at = 100.0 * first + t
            steps.append(
                {
                    "obs": torch.full((4,), at),
                    "next_obs": torch.full((4,), at + 1),
                    "action": torch.tensor(t % 2),
                    "reward": torch.tensor([1.0]),
                    "done": t == length - 1,
                }
            )
    return steps


def written(path, content):
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_a_time_limit_is_no_termination(tmp_path):
    path = written(tmp_path / "a.pkl", steps_of(3, 2, 3))
    assert flags(di_engine.read(path, CARTPOLE, None)) == ([2, 4, 7], [])
    assert flags(di_engine.read(path, CARTPOLE, 3)) == ([4], [2, 7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps[1].pop("next_obs"), r"step 1 lacks \['next_obs'\]"),
        (lambda steps: steps[1].update(reward=torch.ones(3)), "collect it with nstep=1"),
        (lambda steps: steps.clear(), "not a list of steps"),
        (lambda steps: steps[0].update(next_obs="here"), "hold no numbers"),
        (lambda steps: steps[0].update(reward=None), "hold no numbers"),
        (lambda steps: steps[0].update(reward=[1]), "hold no numbers"),
        (lambda steps: steps[0].update(action=torch.zeros(2)), "hold no numbers"),
        (lambda steps: [x.update(action=2**70) for x in steps], "is not of the spaces"),
        (lambda steps: steps[0].update(action=torch.tensor(0.5)), "whole numbers"),
        (lambda steps: [x.update(action=torch.tensor(5)) for x in steps], r"action.* is 5, outside Discrete\(2\)"),
        (
            lambda steps: [x.update(obs=x["obs"][:3], next_obs=x["next_obs"][:3]) for x in steps],
            r"rows of shape \(3,\), not \(4,\)",
        ),
    ],
)
def test_wrong_steps(change, message, tmp_path):
    steps = steps_of(3)
    change(steps)
    with pytest.raises(ValueError, match=message):
        di_engine.read(written(tmp_path / "a.pkl", steps), CARTPOLE, None)


@pytest.mark.parametrize("read", [di_engine.read, imitation.read])
def test_no_time_limit_is_below_one_step(read):
    with pytest.raises(ValueError, match=r"from.time_limit=0 must be at least 1"):
        read("a", CARTPOLE, 0)


def test_one_agents_files_do_not_fit_several(tmp_path):
    with pytest.raises(
        ValueError, match=r"one agent's episodes, but the environment has \['wolf_0', 'wolf_1', 'sheep_0'\]"
    ):
        di_engine.read(written(tmp_path / "a.pkl", steps_of(3)), TAG, None)


# --- imitation -------------------------------------------------------------------------------------------------------


def check_imitation(demonstrations):
    with np.load(GOLDEN / "imitation_cartpole_expected.npz") as expected:
        assert len(demonstrations) == sum(name.startswith("obs") for name in expected) > 2
        for index in range(len(demonstrations)):
            group = demonstrations.episode(index).groups["agent"]
            obs = expected[f"obs_{index}"]
            assert np.array_equal(group.obs[:, 0], obs[:-1])
            assert np.array_equal(group.next_obs[:, 0], obs[1:])
            assert np.array_equal(group.action[:, 0, 0], expected[f"acts_{index}"])
            assert np.array_equal(group.env_reward[:, 0], expected[f"rews_{index}"])
            assert group.terminated[-1].item() == expected[f"terminal_{index}"].item()


def test_imitations_folder():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_imitation(imitation.read(str(GOLDEN / "imitation_cartpole"), CARTPOLE, None))


def test_imitations_npz(tmp_path):
    """As its releases before 1.0 wrote it; the infos there are pickled objects, which are not touched."""
    with np.load(GOLDEN / "imitation_cartpole_expected.npz") as expected:
        count = sum(name.startswith("obs") for name in expected)
        columns = {name: [expected[f"{name}_{i}"] for i in range(count)] for name in ("obs", "acts", "rews")}
        terminal = np.array([expected[f"terminal_{i}"] for i in range(count)])
    path = tmp_path / "rollouts.npz"
    np.savez(
        path,
        indices=np.cumsum([len(acts) for acts in columns["acts"]])[:-1],
        infos=np.array([{}] * sum(map(len, columns["acts"])), dtype=object),
        terminal=terminal,
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )
    check_imitation(imitation.read(str(path), CARTPOLE, None))


@pytest.mark.parametrize(("terminal", "time_limit"), [(False, None), (True, 3)])
def test_imitation_cut_off_by_time(terminal, time_limit, tmp_path):
    np.savez(tmp_path / "a.npz", indices=[], obs=np.zeros((4, 4)), acts=[0, 1, 0], terminal=[terminal])
    assert flags(imitation.read(str(tmp_path / "a.npz"), CARTPOLE, time_limit)) == ([], [2])


def test_damaged_imitation(tmp_path):
    folder = shutil.copytree(GOLDEN / "imitation_cartpole", tmp_path / "copy")
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:1000])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for path in (folder, tmp_path / "other.npz", tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="not trajectories that imitation saved"):
            imitation.read(str(path), CARTPOLE, None)


def test_an_imitation_folder_names_files_of_its_own_only(tmp_path):
    folder = shutil.copytree(GOLDEN / "imitation_cartpole", tmp_path / "copy")
    (arrow,) = folder.glob("*.arrow")
    arrow.rename(tmp_path / "elsewhere.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../elsewhere.arrow"}]}))
    with pytest.raises(ValueError, match="not trajectories"):
        imitation.read(str(folder), CARTPOLE, None)


# --- the original code -----------------------------------------------------------------------------------------------


COMPLETE = (("ob", 4), ("ac", 3), ("rew", 3))  # of three steps


def original_episode(steps, first=0.0):
    """Two wolves with one of four actions, and a sheep with two choices, of three and of two."""
    rows = first + np.arange(steps, dtype=np.float64)[:, None]
    ob = [rows + np.array([0, 10, 20]), rows + np.array([1, 11, 21]), rows + np.array([2, 12])]
    wolves = [np.eye(4)[np.arange(steps) % 4], np.eye(4)[(np.arange(steps) + 1) % 4]]
    sheep = np.concatenate([np.eye(3)[np.arange(steps) % 3], np.eye(2)[np.arange(steps) % 2]], 1)
    ac = [list(wolves[0]), list(wolves[1]), list(sheep)]
    rew = [[1.0 + t for t in range(steps)] for _ in range(3)]
    return {"ob": ob, "ac": ac, "rew": rew, "ep_ret": [sum(x) for x in rew], "all_ob": np.concatenate(ob, 1)}


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_original_pickle(protocol, tmp_path):
    path = tmp_path / "checkpoint-100tra.pkl"
    path.write_bytes(pickle.dumps([original_episode(5), original_episode(3, 50.0)], protocol))
    demonstrations = original.read(str(path), TAG, None)
    assert demonstrations.lengths.tolist() == [4, 2]  # what came of the last step was not saved
    wolf, sheep = (demonstrations.episode(1).groups[name] for name in ("wolf", "sheep"))
    assert wolf.obs.tolist() == [[[50, 60, 70], [51, 61, 71]], [[51, 61, 71], [52, 62, 72]]]
    assert wolf.next_obs[-1].tolist() == [[52, 62, 72], [53, 63, 73]]
    assert wolf.action[..., 0].tolist() == [[0, 1], [1, 2]]
    assert sheep.action[:, 0].tolist() == [[0, 0], [1, 1]]
    assert sheep.env_reward.tolist() == [[1], [2]]
    assert wolf.truncated.tolist() == [[False, False], [True, True]]
    assert not wolf.terminated.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x["ob"].pop(), r"'ob' has 2 agents, the environment has"),
        (lambda x: x["ac"][0].__setitem__(1, np.ones(4)), "agent 'wolf_0': actions are not one-hot"),
        (lambda x: x["ac"].__setitem__(2, [np.ones(4)] * 5), r"actions of shape \(5, 4\) where MultiDiscrete"),
        (lambda x: x["ac"].__setitem__(0, x["ac"][0][:3]), "fields of different length"),
        (
            lambda x: x["ob"].__setitem__(1, np.zeros((5, 2))),
            r"agent 'wolf_1': .* \(rows of shape \(2,\), not \(3,\)\)",
        ),
        (lambda x: [x[key].__setitem__(1, x[key][1][:n]) for key, n in COMPLETE], "'wolf' differ in the length"),
        (lambda x: x["ac"].__setitem__(0, ["left"] * 5), "'ob' and 'ac' hold no arrays"),
        (lambda x: x.update(ob=[1, 2, 3]), "hold no arrays"),
        (lambda x: x.pop("ac"), "not a list of episodes with 'ob' and 'ac'"),
    ],
)
def test_wrong_original_episodes(change, message, tmp_path):
    episode = original_episode(5)
    change(episode)
    with pytest.raises(ValueError, match=message):
        original.read(written(tmp_path / "a.pkl", [episode]), TAG, None)


def test_the_originals_moves_are_those_of_mpe2(tmp_path):
    """Its second number of five moved to the right, where mpe2's action 1 moves to the left; a word is no move."""
    moving, talking = spaces.Discrete(5), spaces.MultiDiscrete([5, 3])
    groups, steps = groups_of(dog=(1, 2, moving), cat=(1, 2, talking)), np.arange(6)
    cat = np.concatenate([np.eye(5)[4 - steps % 5], np.eye(3)[steps % 3]], 1)
    episode = {"ob": [np.zeros((6, 2))] * 2, "ac": [np.eye(5)[steps % 5], cat], "rew": [np.zeros(6)] * 2}
    path = written(tmp_path / "a.pkl", [episode])
    moves = list(composed("from=original", "from.path=x", name="record")["from"].moves)
    played = original.read(path, groups, moves).transitions.groups
    assert played["dog"].action.flatten().tolist() == [0, 2, 1, 4, 3]
    assert played["cat"].action[:, 0].tolist() == [[3, 0], [4, 1], [1, 2], [2, 0], [0, 1]]
    as_it_is = original.read(path, groups, None).transitions.groups
    assert as_it_is["dog"].action.flatten().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"from.moves=\[0, 2, 2\] must be each of the actions from 0 to 2 once"):
        original.read(path, groups, [0, 2, 2])


def test_original_boxes_stay_numbers(tmp_path):
    groups = groups_of(arm=(1, 1, spaces.Box(-1.0, 1.0, (2,))))
    episode = {"ob": [np.zeros((3, 1))], "ac": [[[0.5, -0.5]] * 3], "rew": [[0.0] * 3]}
    demonstrations = original.read(written(tmp_path / "a.pkl", [episode]), groups, None)
    assert demonstrations.transitions.groups["arm"].action.tolist() == [[[0.5, -0.5]]] * 2


# --- our own ---------------------------------------------------------------------------------------------------------


def test_our_own_format(tmp_path):
    demonstrations = one_agent([[1.0, 2.0], [3.0]])
    npz.writer(str(tmp_path / "a.npz"))(demonstrations)
    assert npz.read(str(tmp_path / "a.npz"), demonstrations.groups).returns().tolist() == [3, 3]
