"""The optimal assignment against scipy's, and the tasks that pay by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mpe2 import simple_formation_v1, simple_line_v1
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from magail_envs.particle.assignment import assign, by_subsets, one_by_one
from magail_envs.particle.simple_formation import SimpleFormation
from magail_envs.particle.simple_line import SimpleLine
from magail_envs.particle.targets import TargetsEnv
from tests.envs.conformance import positions, write, write_mpe2

TASKS = {simple_line_v1: SimpleLine, simple_formation_v1: SimpleFormation}
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)


def total(cost: NDArray, columns: NDArray) -> float:
    return cost[np.arange(len(cost)), columns].sum()


both_ways = pytest.mark.parametrize("way", [by_subsets, one_by_one])


@both_ways
@pytest.mark.parametrize("number", range(1, 11))
def test_assignment_is_scipys(number: int, way: Callable[[Tensor], Tensor]) -> None:
    copies = 20
    cost = np.random.default_rng(number).uniform(-1, 1, (number, number, copies))
    columns = way(torch.from_numpy(cost)).numpy()
    assert np.array_equal(columns, assign(torch.from_numpy(cost)))
    for copy in range(copies):
        assert np.array_equal(columns[:, copy], linear_sum_assignment(cost[..., copy])[1])


@both_ways
def test_of_assignments_that_cost_the_same_one_is_found(way: Callable[[Tensor], Tensor]) -> None:
    number, copies = 5, 50
    cost = np.random.default_rng(0).integers(3, size=(number, number, copies)).astype(np.float32)
    columns = way(torch.from_numpy(cost)).numpy()
    for copy in range(copies):
        assert sorted(columns[:, copy]) == list(range(number))
        best = linear_sum_assignment(cost[..., copy])[1]
        assert total(cost[..., copy], columns[:, copy]) == total(cost[..., copy], best)


def begun(task: Any, copies: int, **arguments: Any) -> tuple[TargetsEnv, Any]:
    arguments = {**arguments, "max_cycles": 10**9}
    env, truth = TASKS[task]("targets", arguments, copies, "cpu", "float64"), task.parallel_env(**arguments)
    env.reset(iter(range(10**6)))
    return env, truth


def test_lines_begin_as_mpe2s() -> None:
    """Most have to be turned, a few not."""
    env, truth = begun(simple_line_v1, 200, N=5)
    turned = 0
    for copy in range(200):
        truth.reset(seed=copy)
        np.testing.assert_allclose(env.state["pos"][..., copy], positions(truth.unwrapped.world), atol=1e-14, rtol=0)
        expected = np.stack(truth.unwrapped.scenario._expected_positions)
        np.testing.assert_allclose(env.state["targets"][..., copy], expected, atol=1e-14, rtol=0)
        generator = np.random.default_rng(copy)
        generator.uniform(-1, 1, (5, 2))
        start, angle = generator.uniform(-0.25, 0.25, 2), generator.uniform(0, 2 * np.pi)
        turned += abs(start + 1.25 * np.array([np.cos(angle), np.sin(angle)])).max() >= 1
    assert 100 < turned < 190


@each_task
@pytest.mark.parametrize("number", [1, 4, 9])
def test_pay_and_success_are_mpe2s(task: Any, number: int) -> None:
    """A third of the copies are near their targets, a third anywhere, a third so far that distances are clipped."""
    copies, rng = 90, np.random.default_rng(number)
    env, truth = begun(task, copies, N=number, terminate_on_success=True)
    pos = env.state["pos"].numpy().copy()
    shuffled = rng.permuted(np.arange(number))
    pos[:number] = rng.uniform(-1, 1, (number, 2, copies)) * np.where(np.arange(copies) % 3 == 1, 1, 8)
    near = np.arange(copies) % 3 == 0
    landmark = pos[number, :, near].T  # [2, copies near]
    if task is simple_line_v1:
        places = env.state["targets"][..., near].numpy()
    else:
        angle = np.arange(number)[:, None] * 2 * np.pi / number + rng.uniform(0, 2 * np.pi / number)
        places = landmark + 0.5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    pos[:number, :, near] = places[shuffled] + rng.normal(scale=0.025 / number, size=places.shape)
    vel = np.zeros((number, 2, copies))
    write(env, pos, vel)
    env.post_step()
    reward, success = env.reward(), env.success()
    assert success is not None
    clipped = 0
    for copy in range(copies):
        truth.reset(seed=copy)
        world, scenario = truth.unwrapped.world, truth.unwrapped.scenario
        write_mpe2(world, pos[..., copy], vel[..., copy])
        np.testing.assert_allclose(reward[:, copy], scenario.global_reward(world), atol=1e-12, rtol=0)
        assert bool(success[copy]) == scenario.is_terminal(world)
        clipped += (scenario._delta_dists > 2).any()
    assert clipped > 20
    assert 10 < success.sum() < copies - 10
