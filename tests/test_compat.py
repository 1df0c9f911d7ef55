"""DI-engine's reward model: formulas and shapes worked out by hand, on its own file."""

import math
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from magail.compat import GailRewardModel

EXPERT = Path(__file__).parent / "golden/di_engine_cartpole.pkl"
CONFIG = {"input_size": 5, "expert_data_path": str(EXPERT), "batch_size": 8, "update_per_collect": 3}


class Log:
    def __init__(self):
        self.lines = []

    def add_scalar(self, name, value, step):
        self.lines.append((name, value, step))


def steps(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        {
            "obs": torch.randn(4, generator=rng),
            "action": torch.tensor([i % 2]),
            "reward": torch.tensor([7.0]),
            "extra": i,
        }
        for i in range(count)
    ]


def by_hand(model, row):
    """D of one row, with numpy."""
    w = {name: x.numpy().astype(np.float64) for name, x in model.state_dict()["model"].items()}
    hidden = np.tanh(w["l1.weight"] @ row + w["l1.bias"])
    return 1 / (1 + np.exp(-(w["l2.weight"] @ hidden + w["l2.bias"]))).item()


def test_the_reward_is_minus_log_d_and_the_steps_given_stay_as_they_are():
    model, data = GailRewardModel(CONFIG, "cpu", Log()), steps(6)
    rewarded = model.estimate(data)
    for before, after in zip(data, rewarded, strict=True):
        row = np.append(before["obs"].numpy(), before["action"].item())
        assert after["reward"].shape == (1,)
        assert after["reward"].item() == pytest.approx(-math.log(by_hand(model, row) + 1e-8), rel=1e-5)
        assert after["reward"] > 0
        assert before["reward"].item() == 7
        assert after["obs"] is before["obs"]
        assert after["extra"] == before["extra"]


def test_the_loss_makes_d_the_generators_probability():
    torch.manual_seed(0)
    model = GailRewardModel(CONFIG, "cpu", Log())
    generated, expert = torch.randn(8, 5) + 1, torch.randn(8, 5) - 1
    d = [[by_hand(model, row) for row in side.numpy()] for side in (generated, expert)]
    loss = -np.mean(np.log(np.array(d[0]) + 1e-8)) - np.mean(np.log(1 - np.array(d[1]) + 1e-8))
    assert model.learn(generated, expert) == pytest.approx(loss, rel=1e-5)
    for _ in range(300):
        last = model.learn(generated, expert)
    assert last < loss
    assert min(by_hand(model, row) for row in generated.numpy()) > 0.5
    assert max(by_hand(model, row) for row in expert.numpy()) < 0.5


def test_one_step_of_adam():
    """From equal first moments Adam's first step is the learning rate, against the gradient's sign."""
    torch.manual_seed(0)
    model = GailRewardModel(CONFIG | {"learning_rate": 0.01}, "cpu", Log())
    before = model.reward_model.l2.bias.item()
    model.learn(torch.ones(4, 5), -torch.ones(4, 5))
    assert abs(model.reward_model.l2.bias.item() - before) == pytest.approx(0.01, rel=1e-3)


def test_train_samples_different_steps_of_either_side_and_logs_every_loss():
    log = Log()
    model = GailRewardModel(CONFIG, "cpu", log)
    model.collect_data(steps(10))
    model.collect_data(steps(10, 1))
    assert len(model.train_data) == 20
    assert len(model.expert_data) == 40
    assert model.train_data[0].shape == (5,)
    asked = []
    model.learn = lambda generated, expert: asked.append((generated, expert)) or 0.5
    model.train()
    assert log.lines == [("reward_model/gail_loss", 0.5, i) for i in range(3)]
    assert model.train_iter == 3
    for generated, expert in asked:
        assert generated.shape == expert.shape == (8, 5)
        assert len(generated.unique(dim=0)) == 8
        assert all(any(torch.equal(row, x) for x in model.train_data) for row in generated)
        assert all(any(torch.equal(row, x) for x in model.expert_data) for row in expert)
    model.clear_data()
    assert model.train_data == []
    with pytest.raises(ValueError, match="0 collected steps: give at least batch_size=8"):
        model.train()


def test_training_tells_expert_and_generator_apart():
    random.seed(0)
    torch.manual_seed(0)
    model = GailRewardModel(CONFIG | {"update_per_collect": 200}, "cpu", Log())
    expert = [dict(step) for step in pickle.loads(EXPERT.read_bytes())]
    model.collect_data(steps(40))
    model.train()
    mean = [torch.cat([x["reward"] for x in model.estimate(side)]).mean() for side in (expert, steps(40))]
    assert mean[0] > mean[1] + 0.5


def test_the_experts_steps_are_those_of_the_file():
    model = GailRewardModel(CONFIG, "cpu", Log())
    for row, step in zip(model.expert_data, pickle.loads(EXPERT.read_bytes()), strict=True):
        assert torch.equal(row, torch.cat([step["obs"], step["action"].float()]))


def test_images(tmp_path):
    torch.manual_seed(0)
    image = [{"obs": torch.rand(4, 84, 84), "action": torch.tensor(i % 3)} for i in range(4)]
    path = tmp_path / "expert_data.pkl"
    path.write_bytes(pickle.dumps(image))
    config = {"input_size": [4, 84, 84], "action_size": 3, "data_path": str(tmp_path), "batch_size": 2}
    model = GailRewardModel(SimpleNamespace(**config), "cpu", Log())
    assert model.expert_data[0].shape == (4 * 84 * 84 + 3,)
    assert [row[-3:].tolist() for row in model.expert_data[:3]] == torch.eye(3).tolist()
    network = model.reward_model
    x = image[1]["obs"][None]
    for convolution in (network.conv1, network.conv2, network.conv3, network.conv4):
        x = torch.nn.functional.leaky_relu(convolution(x))
    assert x.shape == (1, 16, 7, 7)
    features = torch.nn.functional.leaky_relu(network.fc1(x.reshape(1, 784)))
    logit = network.fc2(torch.cat([features, torch.tensor([[0.0, 1.0, 0.0]])], 1))
    (rewarded,) = model.estimate(image[1:2])
    assert rewarded["reward"].item() == pytest.approx(-math.log(torch.sigmoid(logit).item()), rel=1e-4)
    model.collect_data([{"obs": torch.rand(4, 84, 84) / 2, "action": 0} for _ in range(4)])
    for _ in range(2):
        model.train()
    assert len({name.split(".")[0] for name in model.state_dict()["model"]}) == 6


def test_defaults_and_what_is_missing():
    model = GailRewardModel({"input_size": 5, "expert_data_path": EXPERT}, "cpu")
    kept = ("learning_rate", "update_per_collect", "batch_size", "hidden_size", "collect_count", "type")
    assert [model.cfg[key] for key in kept] == [1e-3, 100, 64, 128, 100000, "gail"]
    assert [model.cfg[key] for key in ("target_new_data_count", "clear_buffer_per_iters")] == [64, 1]
    assert model.reward_model.l1.weight.shape == (128, 5)
    defaults = GailRewardModel.default_config()
    defaults["batch_size"] = 1
    assert GailRewardModel.config["batch_size"] == 64
    with pytest.raises(ValueError, match="set expert_data_path"):
        GailRewardModel({"input_size": 5}, "cpu")
    with pytest.raises(ValueError, match=r"its steps have 5 numbers, .* input_size=4 makes 4"):
        GailRewardModel({"expert_data_path": EXPERT}, "cpu")
    with pytest.raises(ValueError, match="action_size"):
        GailRewardModel({"input_size": [4, 84, 84], "expert_data_path": EXPERT}, "cpu")


def test_state_comes_back():
    torch.manual_seed(0)
    one, other = GailRewardModel(CONFIG, "cpu"), GailRewardModel(CONFIG, "cpu")
    assert set(one.state_dict()) == {"model"}
    assert set(one.state_dict()["model"]) == {"l1.weight", "l1.bias", "l2.weight", "l2.bias"}
    assert one.estimate(steps(1))[0]["reward"] != other.estimate(steps(1))[0]["reward"]
    other.load_state_dict(one.state_dict())
    assert one.estimate(steps(1))[0]["reward"] == other.estimate(steps(1))[0]["reward"]
