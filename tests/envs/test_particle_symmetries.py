"""A particle world that is turned or mirrored goes on as its views say."""

import itertools

import pytest
import torch

from magail_envs.particle.symmetries import VIEWS, mirror_images_and_turns
from tests.envs.playing import random_action
from tests.envs.test_particle_tasks import discrete_and_continuous, each_case, make

COPIES = 3 * len(VIEWS)
SAME_REWARD = {"rtol": 1e-3, "atol": 1e-3}  # contacts are stiff, and sums are taken in another order


def turned(world, views):
    """The state of a world, each copy turned as its view says."""
    state = world.state_dict()
    for name in {"pos", "vel", "targets"} & state["state"].keys():
        vectors = state["state"][name]  # [..., 2, E]
        for copy, view in enumerate(views.tolist()):
            vectors[..., copy] = VIEWS[view].see(vectors[..., copy])
    return state


def undrawn(world, state):
    """Which copies have drawn nothing since ``state``: what comes by chance comes to the same place from all views."""
    if "generator" not in state["state"]:
        return torch.ones(COPIES, dtype=torch.bool)
    return (world.state["generator"] == state["state"]["generator"]).all(0)


@discrete_and_continuous
@each_case
def test_a_turned_world_goes_on_as_its_views_say(task, arguments, continuous):
    if task == "simple_formation_v1":
        pytest.skip("its targets stand in fixed directions: conf/env/simple_formation.yaml names no symmetries")
    arguments = arguments | {"continuous_actions": continuous}
    symmetries = mirror_images_and_turns(make(task, 64, **arguments))
    world, other = (make(task, COPIES, **arguments) for _ in range(2))
    views = torch.arange(COPIES) % len(VIEWS)
    random = torch.Generator().manual_seed(0)
    for env in (world, other):
        env.reset(itertools.count(5))
    began = world.state_dict()
    other.load_state_dict(turned(world, views), itertools.count(1000))
    compared = 0
    for _ in range(6):
        same = undrawn(world, began)
        compared += int(same.sum())
        for name, obs in world.obs.items():
            seen = symmetries.obs[name].see(obs, views)
            torch.testing.assert_close(seen[same], other.obs[name][same], rtol=1e-4, atol=1e-4)
        action = random_action(world, random)
        step = world.step(action)
        mirrored = other.step({name: symmetries.action[name].see(x, views) for name, x in action.items()})
        same = undrawn(world, began)
        for name, reward in step.reward.items():
            torch.testing.assert_close(reward[same], mirrored.reward[name][same], **SAME_REWARD)
        assert torch.equal(step.done[same], mirrored.done[same])
        if step.done.any():
            break
    assert compared > COPIES


def test_the_views_are_eight_and_the_first_shows_things_as_they_are():
    world = make("simple_spread_v3", 64)
    symmetries = mirror_images_and_turns(world)
    actions = symmetries.action["agent"].name
    assert symmetries.number == len(actions.unique(dim=0)) == 8
    assert actions[0].tolist() == [0, 1, 2, 3, 4]
    first = symmetries.obs["agent"]
    assert first.source[0].tolist() == list(range(18))
    assert first.sign[0].tolist() == [1.0] * 18


def test_left_and_right_change_places_in_the_mirror():
    symmetries = mirror_images_and_turns(make("simple_v3", 64))  # sees velocity and landmark, x and y each
    mirror = next(i for i, view in enumerate(VIEWS) if view.see(torch.tensor([2.0, 3.0])).tolist() == [-2.0, 3.0])
    view = torch.tensor([mirror])
    seen = symmetries.obs["agent"].see(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), view)
    assert seen.flatten().tolist() == [-1.0, 2.0, -3.0, 4.0]
    renamed = symmetries.action["agent"].see(torch.arange(5).view(1, 5, 1), view)
    assert renamed.flatten().tolist() == [0, 2, 1, 3, 4]  # none, left, right, down, up


def test_what_is_said_stays_what_it_was():
    symmetries = mirror_images_and_turns(make("simple_reference_v3", 64))
    names = symmetries.action["agent"].name  # [8, 50], the symbol being the action's tens of fives
    assert torch.equal(names // 5, torch.arange(50).expand(8, -1) // 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_looking_for_the_views_disturbs_nobody(dtype):
    before = torch.get_rng_state()
    mirror_images_and_turns(make("simple_tag_v3", 8, dtype))
    assert torch.equal(torch.get_rng_state(), before)
