"""Environments of another device, and what this machine can do."""

import itertools
import os

import pytest
import torch

from magail.devices import Moved, check_device, on_device, sensible_threads
from tests.toy import Matching


def test_an_environment_of_the_same_device_stays_itself():
    env = Matching()
    assert on_device(env, torch.device("cpu")) is env


def test_what_an_environment_of_another_device_shows_is_moved():
    """On the meta device, whose tensors have a place and a shape but no numbers."""
    env = Matching(num_envs=4)
    moved = on_device(env, torch.device("meta"))
    assert isinstance(moved, Moved)
    moved.reset(itertools.count())
    assert moved.obs["player"].is_meta
    assert moved.mask["player"].is_meta
    env_step, seen = env.step, {}

    def step(action):
        seen.update(action)
        return env_step(action)

    env.step = step
    here = torch.device("cpu")
    back = Moved(env, here)
    back._look()
    action = {"player": torch.ones(4, 2, 1, dtype=torch.int64)}
    result = back.step(action)
    assert torch.equal(seen["player"], action["player"])
    assert result.done.device == here
    for name, value in vars(result).items():
        tensors = value.values() if isinstance(value, dict) else [value]
        assert all(x.device == here for x in tensors), name
    moved.env.step = lambda action: result
    shown = moved.step({"player": action["player"]})
    assert shown.done.is_meta
    assert shown.reward["player"].is_meta
    assert (moved.num_envs, moved.groups) == (4, env.groups)


def test_devices_that_are_not_there_are_refused():
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device=abacus cannot be used here"):
        check_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="choose cpu, or cuda where there is one"):
            check_device("cuda")


def test_threads_are_at_most_two_and_leave_cores_to_others():
    assert 1 <= sensible_threads() <= 2
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(cores)})
            assert sensible_threads() == 1
        finally:
            os.sched_setaffinity(0, cores)
