"""imitation's GAIL on PettingZoo's simple_spread through SuperSuit's vector environment: the whole training loop.

One policy and one discriminator serve all agents (SuperSuit turns C copies of A agents into C * A environments of one
agent). A step is one step of one copy, all its agents together. The demonstrations are random: this is about speed.

Run it through `benchmarks.peers.run`, or from the repository root in an environment with imitation_gail.txt installed:

    OMP_NUM_THREADS=1 python -m benchmarks.peers.imitation_gail --seconds 30
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
import tempfile
from typing import Any

# PettingZoo 1.24 announces pygame whenever it is imported
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"

import numpy as np
import supersuit
import torch
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data import rollout
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger
from imitation.util.networks import RunningNorm
from pettingzoo.mpe import simple_spread_v3
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper

from benchmarks.peers import timing

AGENTS, CYCLES, COPIES, EPOCHS = 3, 25, 256, 5
MINIBATCH = 1600  # environment steps of a gradient step of PPO
DISCRIMINATOR_UPDATES, DISCRIMINATOR_BATCH = 4, 512  # a rollout; environment steps of either side
HIDDEN = [64, 64]


class BoolDones(VecEnvWrapper):
    """SuperSuit's flags are uint8, which imitation takes for indices."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, reward, done, infos = self.venv.step_wait()
        return obs, reward, done.astype(bool), infos


def make_trainer() -> GAIL:
    """imitation's GAIL with PPO, in the setting above."""
    task = simple_spread_v3.parallel_env(N=AGENTS, max_cycles=CYCLES, continuous_actions=False)
    vector = BoolDones(
        supersuit.concat_vec_envs_v1(
            supersuit.pettingzoo_env_to_vec_env_v1(task), COPIES, num_cpus=1, base_class="stable_baselines3"
        )
    )
    demonstrations = rollout.rollout(
        None, vector, rollout.make_min_episodes(AGENTS * 50), rng=np.random.default_rng(0), unwrap=False, verbose=False
    )
    ppo = PPO(
        "MlpPolicy",
        vector,
        n_steps=CYCLES,
        batch_size=AGENTS * MINIBATCH,
        n_epochs=EPOCHS,
        policy_kwargs={"net_arch": {"pi": HIDDEN, "vf": HIDDEN}, "activation_fn": torch.nn.Tanh},
        device="cpu",
    )
    discriminator = BasicRewardNet(
        vector.observation_space,
        vector.action_space,
        hid_sizes=HIDDEN,
        activation=torch.nn.Tanh,
        normalize_input_layer=RunningNorm,
    )
    return GAIL(
        demonstrations=rollout.flatten_trajectories(demonstrations),
        demo_batch_size=AGENTS * DISCRIMINATOR_BATCH,
        n_disc_updates_per_round=DISCRIMINATOR_UPDATES,
        venv=vector,
        gen_algo=ppo,
        reward_net=discriminator,
        custom_logger=logger.configure(tempfile.mkdtemp(), format_strs=[]),
    )


def rates(seconds: float) -> list[float]:
    """Environment steps per second of the loop: rollout, PPO, discriminator."""
    torch.set_num_threads(1)
    trainer = make_trainer()
    assert trainer.gen_train_timesteps == AGENTS * COPIES * CYCLES

    def train_round() -> int:
        trainer.train(total_timesteps=trainer.gen_train_timesteps)
        return COPIES * CYCLES

    return timing.repeat(train_round, seconds)


if __name__ == "__main__":
    timing.main(
        __doc__,
        peer="imitation GAIL + SuperSuit",
        rates=rates,
        packages=("imitation", "stable-baselines3", "supersuit", "pettingzoo", "gymnasium", "numpy", "torch"),
        setting={
            "environment": f"pettingzoo.mpe.simple_spread_v3, {AGENTS} agents, {CYCLES} cycles, discrete actions",
            "copies": COPIES,
            "rollout_steps": CYCLES,
            "hidden": HIDDEN,
            "epochs": EPOCHS,
            "minibatch_environment_steps": MINIBATCH,
            "discriminator_updates": DISCRIMINATOR_UPDATES,
            "discriminator_batch_environment_steps": DISCRIMINATOR_BATCH,
            "shared_parameters": True,
            "threads": 1,
        },
    )
