"""BenchMARL's MAPPO on VMAS's simple_spread: the whole training loop, evaluation and logs off.

A step is one step of one copy, all its agents together; MAPPO trains on the environment's reward, so there is no
discriminator in it. Time is taken from one collected batch to the next.

Run it through `benchmarks.peers.run`, or from the repository root in an environment with benchmarl_mappo.txt and
benchmarl_mappo.no-deps.txt installed:

    OMP_NUM_THREADS=1 python -m benchmarks.peers.benchmarl_mappo --seconds 30
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import tempfile
import time
from itertools import pairwise

import torch
from benchmarl.algorithms import MappoConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from tensordict import TensorDictBase

from benchmarks.peers import timing

AGENTS, CYCLES, COPIES, EPOCHS = 3, 25, 256, 5
MINIBATCH = 1600  # environment steps of a gradient step
HIDDEN = [64, 64]
WARM_UP = 2  # iterations


class Clock(Callback):
    """Notes when each batch was collected."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_batch_collected(self, batch: TensorDictBase) -> None:
        self.times.append(time.perf_counter())


def train(iterations: int) -> list[float]:
    """The times at which each of so many iterations had its batch."""
    config = ExperimentConfig.get_from_yaml()
    config.prefer_continuous_actions = False
    config.max_n_frames, config.max_n_iters = None, iterations
    config.on_policy_n_envs_per_worker = COPIES
    config.on_policy_collected_frames_per_batch = COPIES * CYCLES
    config.on_policy_n_minibatch_iters = EPOCHS
    config.on_policy_minibatch_size = MINIBATCH
    config.evaluation, config.loggers, config.create_json = False, [], False
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    task.config |= {"max_steps": CYCLES, "n_agents": AGENTS}
    network = MlpConfig(num_cells=HIDDEN, layer_class=torch.nn.Linear, activation_class=torch.nn.Tanh)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config.save_folder = folder
        Experiment(task, MappoConfig.get_from_yaml(), network, seed=0, config=config, callbacks=[clock]).run()
    return clock.times


def rates(seconds: float) -> list[float]:
    """Environment steps per second of each repetition, all with the same number of iterations."""
    torch.set_num_threads(1)
    warm_up = train(WARM_UP + 1)
    pace = warm_up[-1] - warm_up[-2]
    iterations = max(1, round(seconds / timing.REPETITIONS / pace))
    times = train(WARM_UP + timing.REPETITIONS * iterations + 1)[WARM_UP:]
    return [iterations * COPIES * CYCLES / (end - start) for start, end in pairwise(times[::iterations])]


if __name__ == "__main__":
    timing.main(
        __doc__,
        peer="BenchMARL MAPPO on VMAS",
        rates=rates,
        packages=("benchmarl", "vmas", "torchrl", "tensordict", "numpy", "torch"),
        setting={
            "environment": f"VMAS simple_spread, {AGENTS} agents, {CYCLES} cycles, discrete actions",
            "copies": COPIES,
            "rollout_steps": CYCLES,
            "hidden": HIDDEN,
            "epochs": EPOCHS,
            "minibatch_environment_steps": MINIBATCH,
            "discriminator_updates": 0,
            "shared_parameters": True,
            "threads": 1,
        },
    )
