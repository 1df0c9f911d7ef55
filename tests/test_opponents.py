"""Groups that a given policy plays while the others learn or are judged."""

import itertools

import pytest
import torch

from magail.opponents import AgainstOpponents, against
from magail.policy import MostLikely, Policy, RandomPolicy, load_policy
from magail.rollout import Player, collect
from magail_envs.particle.simple_push import SimplePush
from tests.envs.playing import assert_same

STEPS = 60  # more than two episodes


def push():
    return SimplePush("simple_push", {}, 8)


ADVERSARY, AGENT = GROUPS = push().groups


@pytest.fixture(params=[0, 16], ids=["feedforward", "recurrent"])
def policy_file(request, tmp_path):
    torch.manual_seed(0)
    Policy(GROUPS, recurrent=request.param).save(tmp_path / "policy.safetensors")
    return tmp_path / "policy.safetensors"


def test_a_seat_sees_what_it_sees_in_the_whole_game(policy_file):
    whole, seat = push(), AgainstOpponents(push(), {("agent",): MostLikely(load_policy(policy_file, [AGENT]))}, seed=0)
    assert [group.name for group in seat.groups] == ["adversary"]
    joint = Player(MostLikely(load_policy(policy_file, GROUPS)))
    single = Player(MostLikely(load_policy(policy_file, seat.groups)))
    for env in (whole, seat):
        env.reset(itertools.count())
    for _ in range(STEPS):
        action, _, step = joint.step(whole)
        own_action, _, own_step = single.step(seat)
        assert_same(own_action, {"adversary": action["adversary"]})
        assert torch.equal(own_step.done, step.done)
        for name in ("next_obs", "reward", "terminated", "truncated", "episode_return"):
            assert_same(getattr(own_step, name), {"adversary": getattr(step, name)["adversary"]})
        assert_same(seat.obs, {"adversary": whole.obs["adversary"]})
        assert_same(seat.mask, {"adversary": whole.mask["adversary"]})


def test_goes_on_bit_for_bit(policy_file):
    env, policy = against(push(), {"adversary": str(policy_file)}, seed=3), RandomPolicy([AGENT])
    env.reset(itertools.count())
    collect(env, policy, 30)
    state = env.state_dict()
    torch.manual_seed(1)
    expected = collect(env, policy, STEPS)
    other = against(push(), {"adversary": str(policy_file)}, seed=3)
    other.load_state_dict(state, itertools.count(16))
    torch.manual_seed(1)
    assert_same(collect(other, policy, STEPS)[0].groups, expected[0].groups)


def test_opponents_draw_the_same_after_every_reset_and_leave_training_alone(policy_file):
    env, policy = against(push(), {"adversary": str(policy_file)}, seed=3), RandomPolicy([AGENT])
    played = []
    for _ in range(2):
        env.reset(itertools.count())
        torch.manual_seed(1)
        played.append(collect(env, policy, STEPS)[0].groups)
    assert_same(*played)
    torch.manual_seed(1)
    alone = [policy.act({"agent": torch.zeros(8, 1, AGENT.obs_dim)})[0]["agent"] for _ in range(STEPS)]
    assert torch.equal(played[0]["agent"].action, torch.stack(alone))


@pytest.mark.parametrize("names", [["wolf"], ["agent", "adversary"], ["agent", "adversary", "wolf"]])
def test_who_cannot_be_an_opponent(names):
    with pytest.raises(ValueError, match="has the groups adversary, agent; name some of them and leave at least one"):
        against(push(), dict.fromkeys(names, "nothing"), seed=0)


@pytest.mark.parametrize("nobody", [[], None, ""])
def test_nobody_is_no_opponent(nobody):
    with pytest.raises(ValueError, match="nobody is named who plays"):
        against(push(), {"agent": nobody}, seed=0)


@pytest.mark.parametrize("source", [7, [7, 8]])
def test_a_number_is_no_path(source):
    with pytest.raises(ValueError, match=r"write a folder of that name as \./7"):
        against(push(), {"agent": source}, seed=0)


def test_no_opponents():
    env = push()
    assert against(env, None, seed=0) is env
