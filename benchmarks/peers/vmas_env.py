"""VMAS's simple_spread alone: random actions, no learning.

A step is one step of one copy, all its agents together; all copies end together after 25 steps and are reset.

Run it through `benchmarks.peers.run`, or from the repository root in BenchMARL's environment (see benchmarl_mappo.py):

    OMP_NUM_THREADS=1 python -m benchmarks.peers.vmas_env --seconds 30
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch
import vmas

from benchmarks.peers import timing

AGENTS, CYCLES, COPIES, MOVES = 3, 25, 1024, 5


def rates(seconds: float) -> list[float]:
    """Environment steps per second."""
    torch.set_num_threads(1)
    env = vmas.make_env(
        scenario="simple_spread",
        num_envs=COPIES,
        continuous_actions=False,
        max_steps=CYCLES,
        seed=0,
        n_agents=AGENTS,
    )

    def play_episodes() -> int:
        env.reset()
        for _ in range(CYCLES):
            env.step(list(torch.randint(MOVES, (AGENTS, COPIES, 1))))
        return COPIES * CYCLES

    return timing.repeat(play_episodes, seconds)


if __name__ == "__main__":
    timing.main(
        __doc__,
        peer="VMAS, environment alone",
        rates=rates,
        packages=("vmas", "numpy", "torch"),
        setting={
            "environment": f"VMAS simple_spread, {AGENTS} agents, {CYCLES} cycles, discrete actions",
            "copies": COPIES,
            "policy": "random",
            "threads": 1,
        },
    )
