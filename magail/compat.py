"""Other libraries' interfaces over this one, for who comes from there."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magail.formats.di_engine import read_steps

IMAGE_FEATURES = 784  # 16 channels of 7 x 7 pixels: what the convolutions leave of 84 x 84


class GailRewardModel:
    """DI-engine's reward model of that name: the same methods, configuration keys, formulas and weights.

    **D is the generator's probability here**, as in DI-engine and in Ho & Ermon 2016 (arXiv 1606.03476, eq. 16), and
    not the expert's as elsewhere in this project: `learn` descends on ``-mean log(D(generated) + 1e-8) - mean log(1 -
    D(expert) + 1e-8)``, and the reward is ``-log(D + 1e-8)``, above 0.

    Vectors: D is Linear, tanh, Linear, sigmoid of observation and action side by side (a discrete action is its index).
    Images ``[4, 84, 84]``: four convolutions, with the action one-hot behind them. Weights have DI-engine's names, so
    its ``state_dict`` loads here and this one loads there. ``random.seed`` and ``torch.manual_seed`` give the same
    batches and the same first weights as there.

    Configuration (a mapping, or an object with these attributes), with defaults:

    ========================  ========  ===============================================================================
    ``type``                  'gail'    for DI-engine's registry
    ``input_size``                      observation's and action's numbers added up; or ``[4, 84, 84]`` for images
    ``action_size``                     number of actions, for images
    ``expert_data_path``                the ``expert_data.pkl``; without it ``data_path``, the folder of that file
    ``hidden_size``           128       units of the hidden layer, for vectors
    ``learning_rate``         1e-3      Adam's
    ``batch_size``            64        steps of either side in a gradient step
    ``update_per_collect``    100       gradient steps of one call of `train`
    ``target_new_data_count`` 64        steps that the training loop collects between two calls of `train`
    ``collect_count``         100000    steps that DI-engine collects of the expert
    ``clear_buffer_per_iters`` 1        iterations after which the training loop clears its data
    ========================  ========  ===============================================================================

    The last three are for DI-engine's training loop, which reads them from here.

    Args:
        config: see above.
        device: "cpu" or a "cuda".
        tb_logger: has ``add_scalar(name, value, step)``; gets ``reward_model/gail_loss`` of every gradient step.

    Raises:
        ValueError: keys are missing, or the expert's data cannot be read safely.
    """

    config: ClassVar[dict[str, Any]] = {
        "type": "gail",
        "learning_rate": 1e-3,
        "update_per_collect": 100,
        "batch_size": 64,
        "input_size": 4,
        "target_new_data_count": 64,
        "hidden_size": 128,
        "collect_count": 100000,
        "clear_buffer_per_iters": 1,
    }

    def __init__(self, config: Any, device: str, tb_logger: Any = None) -> None:
        self.cfg = self.config | dict(config if isinstance(config, Mapping) else vars(config))
        self.device, self.tb_logger = device, tb_logger
        size = self.cfg["input_size"]
        self.images = not isinstance(size, int) and len(size) == 3
        if self.images and "action_size" not in self.cfg:
            raise ValueError(
                "images need the key action_size in the reward model's configuration: how many actions are"
            )
        self.reward_model: nn.Module
        if self.images:
            self.num_inputs = math.prod(size) + self.cfg["action_size"]
            self.reward_model = _ImageNetwork(size, self.cfg["action_size"])
        else:
            self.num_inputs = size if isinstance(size, int) else size[0]
            self.reward_model = _VectorNetwork(self.num_inputs, self.cfg["hidden_size"])
        self.reward_model.to(device)
        self.opt = torch.optim.Adam(self.reward_model.parameters(), self.cfg["learning_rate"])
        self.expert_data: list[Tensor] = []
        self.train_data: list[Tensor] = []
        self.train_iter = 0
        self.load_expert_data()

    @classmethod
    def default_config(cls) -> dict[str, Any]:
        """A copy of the defaults."""
        return copy.deepcopy(cls.config) | {"cfg_type": f"{cls.__name__}Dict"}

    def load_expert_data(self) -> None:
        """Read the expert's steps; nothing in the file is ever executed."""
        if "expert_data_path" in self.cfg:
            path = Path(self.cfg["expert_data_path"])
        elif "data_path" in self.cfg:
            path = Path(self.cfg["data_path"]) / "expert_data.pkl"
        else:
            raise ValueError(
                "the reward model's configuration names no expert data: set expert_data_path to the .pkl, or data_path "
                "to the folder of an expert_data.pkl"
            )
        self.expert_data = self._pairs(read_steps(path, ("obs", "action")))
        found = {len(pair) for pair in self.expert_data}
        if found != {self.num_inputs}:
            raise ValueError(
                f"{path}: its steps have {', '.join(map(str, sorted(found)))} numbers, observation and action added "
                f"up, where the reward model's input_size={self.cfg['input_size']} makes {self.num_inputs}: set "
                "input_size to theirs"
            )

    def collect_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Add the generator's steps, each with ``obs`` and ``action``."""
        self.train_data.extend(self._pairs(data))

    def clear_data(self) -> None:
        """Forget the generator's steps."""
        self.train_data.clear()

    def train(self) -> None:
        """Take ``update_per_collect`` gradient steps, each on ``batch_size`` different steps of either side.

        Raises:
            ValueError: there are fewer than that.
        """
        size = self.cfg["batch_size"]
        for name, data in (("expert", self.expert_data), ("collected", self.train_data)):
            if len(data) < size:
                raise ValueError(
                    f"there are {len(data)} {name} steps: give at least batch_size={size}, or set it lower"
                )
        for _ in range(self.cfg["update_per_collect"]):
            expert, generated = random.sample(self.expert_data, size), random.sample(self.train_data, size)
            loss = self.learn(torch.stack(generated).to(self.device), torch.stack(expert).to(self.device))
            if self.tb_logger is not None:
                self.tb_logger.add_scalar("reward_model/gail_loss", loss, self.train_iter)
            self.train_iter += 1

    def learn(self, train_data: Tensor, expert_data: Tensor) -> float:
        """One gradient step on the generator's and the expert's pairs ``[B, input]``; the loss before it."""
        loss = -(self.reward_model(train_data) + 1e-8).log().mean()
        loss = loss - (1 - self.reward_model(expert_data) + 1e-8).log().mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss.item()

    def estimate(self, data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The steps with ``reward`` ``[1]`` replaced; the given ones stay as they are."""
        with torch.no_grad():
            d = self.reward_model(torch.stack(self._pairs(data)).to(self.device)).cpu()
        return [dict(step) | {"reward": reward} for step, reward in zip(data, -(d + 1e-8).log(), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.reward_model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reward_model.load_state_dict(state_dict["model"])

    def _pairs(self, steps: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """What D sees of each step, ``[input]``."""
        return [torch.cat([torch.as_tensor(x["obs"]).float().flatten(), self._action(x["action"])]) for x in steps]

    def _action(self, action: Any) -> Tensor:
        action = torch.as_tensor(action)
        if self.images:
            return F.one_hot(action.long().reshape(()), self.cfg["action_size"]).float()
        return action.float().reshape(-1)


class _VectorNetwork(nn.Module):
    """D of vectors ``[B, input]``, ``[B, 1]``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.l1 = nn.Linear(input_size, hidden_size)
        self.l2 = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(self.l1(x).tanh()).sigmoid()


class _ImageNetwork(nn.Module):
    """D of flat images with one-hot actions behind them ``[B, 4 * 84 * 84 + actions]``, ``[B, 1]``."""

    def __init__(self, image_size: Sequence[int], action_size: int) -> None:
        super().__init__()
        self.image_size, self.action_size = list(image_size), action_size
        self.conv1 = nn.Conv2d(4, 16, 7, stride=3)
        self.conv2 = nn.Conv2d(16, 16, 5, stride=2)
        self.conv3 = nn.Conv2d(16, 16, 3)
        self.conv4 = nn.Conv2d(16, 16, 3)
        self.fc1 = nn.Linear(IMAGE_FEATURES, 64)
        self.fc2 = nn.Linear(64 + action_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        action, image = x[:, -self.action_size :], x[:, : -self.action_size].unflatten(1, self.image_size)
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            image = F.leaky_relu(convolution(image))
        features = F.leaky_relu(self.fc1(image.flatten(1)))
        return self.fc2(torch.cat([features, action], -1)).sigmoid()
