"""DI-engine's GailRewardModel beside `magail.compat.GailRewardModel`: the same numbers, and how fast either is.

Both read one expert file that DI-engine writes, begin from the same seeds and train on the same steps. Prints one line
of JSON: by how much losses and rewards differ at most, and what either does in a second. Run it through
`benchmarks.peers.run`, or from the repository root in an environment with di_engine_gail.txt installed:

    OMP_NUM_THREADS=1 python -m benchmarks.peers.di_engine_gail --seconds 30
"""
# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ding.reward_model import GailRewardModel as Theirs
from ding.utils.data.dataset import offline_data_save_type
from easydict import EasyDict

from benchmarks.peers.timing import command_line, repeat, versions
from magail.compat import GailRewardModel as Ours

OBS, ACTIONS, STEPS = 8, 4, 10_000  # LunarLander's sizes


class Losses(list[float]):
    """A logger that keeps what it is told."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.append(value)


def steps(count: int, seed: int, shift: float) -> list[dict[str, Any]]:
    """Random steps in DI-engine's form."""
    torch.manual_seed(seed)
    obs, action = torch.randn(count + 1, OBS) + shift, torch.randint(ACTIONS, (count, 1))
    rows = zip(obs[:-1], obs[1:], action, strict=True)
    return [{"obs": o, "next_obs": n, "action": a, "reward": torch.ones(1), "done": False} for o, n, a in rows]


def trained(kind: type, folder: Path) -> tuple[list[float], torch.Tensor, dict[str, torch.Tensor], Any]:
    """Losses, rewards and weights after one call of ``train``, and the model."""
    random.seed(0)
    torch.manual_seed(0)
    config = EasyDict(kind.config | {"input_size": OBS + 1, "data_path": str(folder)})  # type: ignore[attr-defined]
    losses = Losses()
    model = kind(config, "cpu", losses)
    model.collect_data(steps(STEPS, 2, 0.5))
    model.train()
    rewards = torch.cat([step["reward"] for step in model.estimate(steps(1000, 3, 0.0))])
    return list(losses), rewards, {name: x.clone() for name, x in model.state_dict()["model"].items()}, model


def main() -> None:
    seconds, stdout = command_line(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        offline_data_save_type(steps(STEPS, 1, 0.0), f"{folder}/expert_data.pkl")
        theirs, ours = trained(Theirs, Path(folder)), trained(Ours, Path(folder))
        ours[3].load_state_dict(theirs[3].state_dict())
        theirs[3].load_state_dict(ours[3].state_dict())
    batch = steps(1000, 4, 0.0)

    def train(model: Any) -> Callable[[], int]:
        return lambda: model.train() or model.cfg["update_per_collect"]

    def estimate(model: Any) -> Callable[[], int]:
        return lambda: len(model.estimate(batch))

    rates = {
        f"{what} {whose}": statistics.median(repeat(work(model), seconds / 4))
        for what, work in (("updates_per_second", train), ("estimated_steps_per_second", estimate))
        for whose, model in (("theirs", theirs[3]), ("ours", ours[3]))
    }
    result = {
        "peer": "DI-engine GailRewardModel",
        "largest_difference": {
            "loss": max(abs(a - b) for a, b in zip(theirs[0], ours[0], strict=True)),
            "reward": (theirs[1] - ours[1]).abs().max().item(),
            "weights": max((theirs[2][name] - ours[2][name]).abs().max().item() for name in theirs[2]),
        },
        "updates": len(theirs[0]),
        **rates,
        "versions": versions(("DI-engine", "torch", "numpy")),
    }
    print(json.dumps(result), file=stdout, flush=True)


if __name__ == "__main__":
    main()
