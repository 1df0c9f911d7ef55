"""Experts that are not ours: stable-baselines3's files and any function."""

import base64
import io
import json
import pickle
import zipfile
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from magail.experts import FunctionPolicy, load_expert, most_likely
from magail.policy import MostLikely, Policy
from magail.record import record
from magail.types import AgentGroup
from magail_envs.pettingzoo import PettingZooEnv
from tests.formats.test_pickles import writer
from tests.formats.test_readers import groups_of_gym
from tests.toy import TWO_SIDES, Walk, groups_of, random_batch

torch.set_num_threads(1)

ALGORITHMS = {
    "ppo": (sb3.PPO, "CartPole-v1", {"n_steps": 32}),
    "ppo, relu, sizes": (
        sb3.PPO,
        "CartPole-v1",
        {
            "n_steps": 32,
            "policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": [16], "optimizer_class": torch.optim.SGD},
        },
    ),
    "ppo, box": (sb3.PPO, "Pendulum-v1", {"n_steps": 32}),
    "ppo, gSDE": (sb3.PPO, "Pendulum-v1", {"n_steps": 32, "use_sde": True}),
    "a2c": (sb3.A2C, "CartPole-v1", {}),
    "dqn": (sb3.DQN, "CartPole-v1", {}),
    "sac": (sb3.SAC, "Pendulum-v1", {"policy_kwargs": {"net_arch": [16, 16]}}),
    "td3": (sb3.TD3, "Pendulum-v1", {"policy_kwargs": {"net_arch": [16, 16]}}),
}


def saved(folder, name) -> tuple[BaseAlgorithm, str, str]:
    algorithm, env, options = ALGORITHMS[name]
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **options)
    model.save(folder / "model.zip")
    return model, str(folder / "model.zip"), env


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_model_of_stable_baselines3_plays_as_there(name, tmp_path):
    model, path, env = saved(tmp_path, name)
    groups = groups_of_gym(env)
    obs = random_batch(groups, 50).groups["agent"].obs
    expert = load_expert(path, groups)
    action, log_prob = most_likely(expert).act({"agent": obs})
    played, _ = model.predict(obs[:, 0].numpy(), deterministic=True)
    assert np.allclose(action["agent"][:, 0].numpy(), played.reshape(50, -1), atol=1e-6)
    assert log_prob["agent"].tolist() == [[0.0]] * 50
    before = torch.get_rng_state()
    sampled = [expert.act({"agent": obs}, torch.Generator().manual_seed(s))[0]["agent"] for s in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1])
    assert torch.equal(torch.get_rng_state(), before)  # training's random numbers are its own
    if name not in ("dqn", "td3"):  # which have no noise of their own
        assert not torch.equal(sampled[0], sampled[2])


def test_noise_is_that_of_the_file(tmp_path):
    """gSDE draws its noise from the spread that was learned, not from that of a new policy."""
    model, path, env = saved(tmp_path, "ppo, gSDE")
    model.policy.log_std.data.fill_(-8.0)
    model.save(path)
    groups = groups_of_gym(env)
    obs = {"agent": random_batch(groups, 50).groups["agent"].obs}
    expert = load_expert(path, groups)
    sampled, calm = (policy.act(obs)[0]["agent"] for policy in (expert, most_likely(expert)))
    assert not torch.equal(sampled, calm)
    torch.testing.assert_close(sampled, calm, atol=0.02, rtol=0)


def test_images_are_turned_round_as_there(tmp_path):
    class Screen(gymnasium.Env):
        observation_space = spaces.Box(0, 255, (48, 40, 3), np.uint8)
        action_space = spaces.Discrete(4)

        def reset(self, **_):
            return self.observation_space.sample(), {}

    model = sb3.DQN("CnnPolicy", Screen(), seed=0, buffer_size=10, device="cpu")
    model.save(tmp_path / "model.zip")
    group = AgentGroup("agent", ("agent_0",), Screen.observation_space, Screen.action_space)
    images = np.random.default_rng(0).integers(0, 256, (20, 48, 40, 3), dtype=np.uint8)
    obs = torch.from_numpy(images.reshape(20, 1, -1).astype(np.float32))
    action, _ = load_expert(str(tmp_path / "model.zip"), (group,)).act({"agent": obs})
    assert action["agent"][:, 0, 0].tolist() == model.predict(images, deterministic=True)[0].tolist()


def test_one_model_plays_every_agent_of_a_group(tmp_path):
    _, path, _ = saved(tmp_path, "dqn")
    (alone,) = groups_of_gym("CartPole-v1")
    pair = (AgentGroup("cart", ("cart_0", "cart_1"), alone.observation_space, alone.action_space),)
    obs = random_batch(pair, 7).groups["cart"].obs
    both, _ = load_expert(path, pair).act({"cart": obs})
    each = [load_expert(path, (alone,)).act({"agent": obs[:, i : i + 1]})[0]["agent"] for i in range(2)]
    assert torch.equal(both["cart"], torch.cat(each, 1))
    with pytest.raises(ValueError, match=r"one policy for the groups \['wolf', 'sheep'\]"):
        load_expert(path, TWO_SIDES)


def test_a_model_for_another_environment(tmp_path):
    _, path, _ = saved(tmp_path, "dqn")
    with pytest.raises(ValueError, match="its weights do not fit"):
        load_expert(path, groups_of_gym("Acrobot-v1"))


def test_a_model_for_other_bounds(tmp_path):
    """Its weights fit, but it would press only half as hard."""
    _, path, env = saved(tmp_path, "sac")
    (group,) = groups_of_gym(env)
    wider = AgentGroup("agent", group.agents, group.observation_space, spaces.Box(-4, 4, (1,)))
    with pytest.raises(ValueError, match=r"it acts from \[-2.\] to \[2.\], and the environment's agents in Box\(-4"):
        load_expert(path, (wider,))


def changed(path, **items):
    """The file with other entries in its JSON."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"]) | items
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"data": json.dumps(data).encode()}).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("item", ["policy_class", "policy_kwargs"])
def test_a_model_that_would_write_to_the_disk_is_refused_by_name(item, tmp_path):
    _, path, _ = saved(tmp_path, "ppo")
    marker = tmp_path / "written"
    evil = base64.b64encode(pickle.dumps(writer(marker))).decode()
    changed(path, **{item: {":type:": "<class 'dict'>", ":serialized:": evil}})
    with pytest.raises(ValueError, match=r"model.zip: refused, since it asks for posix.system"):
        load_expert(path, groups_of_gym("CartPole-v1"))
    assert not marker.exists()
    with pytest.raises((TypeError, AttributeError)):  # the command's exit status is no policy
        sb3.PPO.load(path, device="cpu")
    assert marker.exists()  # so it would have


@pytest.mark.parametrize(
    ("module", "name"), [("stable_baselines3.common.policies", "th"), ("torch.optim.adam", "nn"), ("os", "x")]
)
def test_only_classes_of_the_named_modules_are_admitted(module, name, tmp_path):
    _, path, _ = saved(tmp_path, "ppo")
    content = base64.b64encode(f"c{module}\n{name}\n.".encode()).decode()
    changed(path, policy_class={":type:": "", ":serialized:": content})
    with pytest.raises(ValueError, match=f"asks for {module}.{name}"):
        load_expert(path, groups_of_gym("CartPole-v1"))


@pytest.mark.parametrize("call", ["R", "b"])
def test_an_admitted_class_is_only_named_never_called_or_changed(call, tmp_path):
    """``R`` calls what is below on the pickle's stack, ``b`` sets its attributes."""
    _, path, _ = saved(tmp_path, "ppo")
    argument = {"R": "(t", "b": "(N(dVpredict\nI1\nst"}[call]
    content = f"cstable_baselines3.common.policies\nActorCriticPolicy\n{argument}{call}."
    changed(path, policy_class={":type:": "", ":serialized:": base64.b64encode(content.encode()).decode()})
    before = ActorCriticPolicy.predict
    with pytest.raises(ValueError, match="not a model that stable-baselines3 saved"):
        load_expert(path, groups_of_gym("CartPole-v1"))
    assert ActorCriticPolicy.predict is before


def test_weights_that_are_no_weights(tmp_path):
    _, path, _ = saved(tmp_path, "ppo")
    marker = tmp_path / "written"
    evil = io.BytesIO()
    torch.save(writer(marker), evil)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("policy.pth", evil.getvalue())
    with pytest.raises(ValueError, match="not a model that stable-baselines3 saved"):
        load_expert(path, groups_of_gym("CartPole-v1"))
    assert not marker.exists()


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_expert(str(tmp_path / "a.zip"), groups_of_gym("CartPole-v1"))
    (tmp_path / "a.zip").write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a model that stable-baselines3 saved"):
        load_expert(str(tmp_path / "a.zip"), groups_of_gym("CartPole-v1"))


# --- functions -------------------------------------------------------------------------------------------------------


def lean(observation: np.ndarray, agent: str) -> int:
    """Push the cart to where the pole falls."""
    assert agent == "agent_0"
    assert observation.shape == (4,)
    return int(observation[2] + observation[3] > 0)


def test_a_function_is_recorded():
    with closing(PettingZooEnv("cartpole", "gymnasium.make", {"id": "CartPole-v1"}, num_envs=3)) as env:
        expert = load_expert("tests.test_experts.lean", env.groups)
        demonstrations = record(env, expert, range(4), torch.Generator(), {})
    group = demonstrations.transitions.groups["agent"]
    assert torch.equal(group.action[..., 0], (group.obs[..., 2] + group.obs[..., 3] > 0).long())
    assert demonstrations.returns().mean() > 100  # random play has 20


def test_a_function_plays_unequal_agents_in_their_own_spaces():
    groups = (
        AgentGroup("cat", ("cat_0", "cat_1"), spaces.Discrete(3), spaces.Discrete(4, start=2)),
        AgentGroup("dog", ("dog_0",), spaces.Box(0, 9, (2, 2)), spaces.Box(-1, 1, (1, 2))),
    )
    asked = []

    def play(observation, agent):
        asked.append((agent, observation))
        return observation + 2 if agent.startswith("cat") else np.array([[observation[0, 1], -observation[1, 0]]]) / 9

    cats = torch.eye(3)[torch.tensor([[0, 1], [2, 2]])]  # one-hot, as adapters flatten them
    dogs = torch.arange(8.0).reshape(2, 1, 4)
    action, _ = FunctionPolicy(play, groups).act({"cat": cats, "dog": dogs})
    assert action["cat"][..., 0].tolist() == [[0, 1], [2, 2]]
    assert action["cat"].dtype == torch.int64
    assert torch.allclose(action["dog"], torch.tensor([[[1.0, -2.0]], [[5.0, -6.0]]]) / 9)
    assert [agent for agent, _ in asked] == ["cat_0", "cat_0", "cat_1", "cat_1", "dog_0", "dog_0"]


def test_a_function_is_not_asked_about_what_nobody_sees():
    """An agent that is not alive observes zeros, which are none of the choices of a Discrete space."""
    groups = (AgentGroup("cat", ("cat_0", "cat_1"), spaces.Discrete(3), spaces.Discrete(4)),)
    cats = torch.stack([torch.eye(3)[[1, 2]], torch.zeros(2, 3)], 1)
    action, _ = FunctionPolicy(lambda observation, agent: observation + 1, groups).act({"cat": cats})
    assert action["cat"][..., 0].tolist() == [[2, 0], [3, 0]]


@pytest.mark.parametrize("action", [None, "left", [1, 2], 0.5])
def test_a_function_that_gives_no_action(action):
    expert = FunctionPolicy(lambda observation, agent: action, groups_of_gym("CartPole-v1"))
    with pytest.raises(ValueError, match="the expert's function gave 'agent_0' the action"):
        expert.act({"agent": torch.zeros(2, 1, 4)})


def test_an_action_that_there_is_not_is_named_among_those_that_there_are():
    groups = groups_of(agent=(1, 1, spaces.Discrete(3, start=5)))
    expert = FunctionPolicy(lambda observation, agent: int(observation[0]), groups)
    message = r"'agent_0' the action 8, which is not of Discrete\(3, start=5\) \(there is no such choice\)"
    with pytest.raises(ValueError, match=message):
        expert.act({"agent": torch.tensor([[[5.0]], [[8.0]]])})


def test_numbers_beyond_a_box_are_left_to_who_plays():
    groups = groups_of(agent=(1, 1, spaces.Box(-1, 1, (1,))))
    action, _ = FunctionPolicy(lambda observation, agent: observation, groups).act({"agent": torch.tensor([[[2.0]]])})
    assert action["agent"].tolist() == [[[2]]]


@pytest.mark.parametrize("source", ["tests.test_experts.nothing", "no_such_module.play"])
def test_a_function_that_cannot_be_imported(source):
    with pytest.raises(ValueError, match="neither a file nor a function"):
        load_expert(source, Walk().groups)


def test_our_own_policies_are_experts_too(tmp_path):
    groups = groups_of(wolf=(2, 4, spaces.Discrete(3)))
    policy = Policy(groups)
    policy.save(tmp_path / "policy.safetensors")
    expert = load_expert(str(tmp_path), groups)
    assert isinstance(expert, Policy)
    assert isinstance(most_likely(expert), MostLikely)
    for missing in ("no/such/run", "gone.pt", "gone.safetensors"):
        with pytest.raises(ValueError, match="no policy there"):
            load_expert(missing, groups)


def test_who_has_no_most_likely_action_plays_as_it_does():
    expert = FunctionPolicy(lean, groups_of_gym("CartPole-v1"))
    assert most_likely(expert) is expert
