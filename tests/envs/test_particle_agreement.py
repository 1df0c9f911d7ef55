"""What a policy is worth does not depend on which of the two worlds it is judged in: batched or mpe2's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magail.policy import Acting, MostLikely, Policy, load_policy
from magail.rollout import play_episodes
from magail.statistics import mean_interval
from magail.types import BatchedEnv
from magail_envs.particle import world
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.pettingzoo import PettingZooEnv

torch.set_num_threads(1)
EPISODES = 200


def batched(dtype: str = "float64") -> SimpleSpread:
    return SimpleSpread("spread", {}, EPISODES, "cpu", dtype)


def mpe2() -> PettingZooEnv:
    return PettingZooEnv("spread", "mpe2.simple_spread_v3.parallel_env", num_envs=20)


def returns(env: BatchedEnv, acting: Callable[[Policy], Acting], seed: int = 0) -> NDArray[np.float64]:
    """Mean over agents of the shipped expert's return, ``[EPISODES]``; ``seed`` draws its actions."""
    with resources.as_file(resources.files("magail_envs.experts") / "simple_spread.safetensors") as path:
        policy = load_policy(path, env.groups)
    played, _ = play_episodes(env, acting(policy), range(EPISODES), torch.Generator().manual_seed(seed))
    return played.mean(1).double().numpy()


@pytest.fixture(scope="module")
def most_likely() -> NDArray[np.float64]:
    """By mpe2, the policy taking its most likely actions."""
    return returns(mpe2(), MostLikely)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-5), ("float32", 1e-3)])
def test_the_same_actions_earn_the_same(dtype: str, tolerance: float, most_likely: NDArray[np.float64]) -> None:
    """Episode by episode, but for the few where rounding tips the balance between two actions."""
    difference = returns(batched(dtype), MostLikely) - most_likely
    assert np.quantile(np.abs(difference), 0.95) < tolerance
    _, low, high = mean_interval(difference)
    assert low - tolerance < 0 < high + tolerance


def test_drawn_actions_earn_the_same_on_average() -> None:
    """Other random numbers in each world, so 1 in 20 pairs of generators would put 0 outside of the interval."""
    _, low, high = mean_interval(
        returns(batched(), lambda policy: policy, 2) - returns(mpe2(), lambda policy: policy, 1)
    )
    assert low < 0 < high
    assert high - low < 1  # random actions earn 17 less


@pytest.mark.parametrize(("constant", "value"), [("DT", 0.11), ("DAMPING", 0.35), ("CONTACT_FORCE", 50.0)])
def test_a_world_slightly_off_is_noticed(
    constant: str, value: float, most_likely: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, constant, value)
    _, low, high = mean_interval(returns(batched(), MostLikely) - most_likely)
    assert not low <= 0 <= high
