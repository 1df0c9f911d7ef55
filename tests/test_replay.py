import itertools

import pytest
import torch

from magail.generators.replay import Replay, at_step, n_step_return
from magail.types import JointTransition, absorbing_transition
from tests.toy import TWO_SIDES, random_batch


def rollouts(*lengths, copies=4):
    """Successive rollouts of one run; everything in a step says from which time and copy it is."""
    clock = itertools.count()
    for length in lengths:
        rollout = random_batch(TWO_SIDES, length, copies)
        for t in range(length):
            now = next(clock)
            for group in rollout.groups.values():
                for x in (group.obs, group.next_obs, group.env_reward, group.log_prob):
                    x[t] = now * 100 + torch.arange(copies).reshape(-1, *(1 for _ in x.shape[2:]))
        yield rollout


def tags(steps: JointTransition):
    """Time and copy of each step ``[B, n]``, once it is sure that all of the step's numbers agree on them."""
    tag = steps.groups["wolf"].env_reward[..., 0]
    for group in steps.groups.values():
        for x in (group.obs, group.next_obs, group.env_reward, group.log_prob):
            assert torch.equal(x.flatten(2), tag.unsqueeze(-1).expand_as(x.flatten(2)))
    return tag // 100, tag % 100


@pytest.mark.parametrize("capacity", [4 * 7, 4 * 7 + 3])
def test_the_newest_steps_are_kept_and_all_of_them_drawn_alike(capacity):
    replay = Replay(capacity)
    for rollout in rollouts(3, 3, 5, 4):  # the last two begin and end in the middle of the ring
        replay.push(rollout)
    assert len(replay) == 28
    time, copy = tags(replay.sample(28 * 400, 1).steps)
    counts = torch.stack([((time == t) & (copy == c)).sum() for t in range(8, 15) for c in range(4)])
    assert counts.sum() == 28 * 400, "nothing that is older"
    assert counts.min() > 320
    assert counts.max() < 480


@pytest.mark.parametrize("lengths", [(3,), (3, 3, 5, 4)])
def test_runs_are_successive_steps_of_one_copy_and_end_with_the_newest(lengths):
    replay = Replay(4 * 7)
    for rollout in rollouts(*lengths):
        replay.push(rollout)
    newest = sum(lengths) - 1
    runs = replay.sample(500, 4)
    time, copy = tags(runs.steps)
    assert runs.played[:, 0].all()
    successive = time[:, :1] + torch.arange(4)
    assert torch.equal(runs.played, successive <= newest)
    assert torch.equal(time[runs.played], successive[runs.played])
    assert torch.equal(copy[runs.played], copy[:, :1].expand_as(copy)[runs.played])


def test_runs_beside_others():
    replay = Replay(100)
    replay.push(next(rollouts(5)))
    one, other = replay.sample(3, 2), replay.sample(4, 2)
    both = one + other
    assert both.played.shape == (7, 2)
    assert torch.equal(both.steps.groups["wolf"].obs[:3], one.steps.groups["wolf"].obs)
    assert torch.equal(both.steps.groups["sheep"].obs[3:], other.steps.groups["sheep"].obs)


def test_a_rollout_larger_than_the_capacity_is_refused():
    with pytest.raises(ValueError, match=r"generator\.replay_capacity=19 is less than one rollout of 5 x 4"):
        Replay(19).push(next(rollouts(5)))


def test_what_is_pushed_is_copied():
    replay = Replay(20)
    rollout = next(rollouts(5))
    replay.push(rollout)
    rollout.groups["wolf"].obs.fill_(-1)
    tags(replay.sample(50, 1).steps)


@pytest.mark.parametrize("pushed", [0, 1, 3])
def test_it_goes_on_bit_for_bit(pushed, tmp_path):
    replay, again = Replay(4 * 7), Replay(4 * 7)
    played = list(rollouts(3, 3, 5, 4))
    for rollout in played[:pushed]:
        replay.push(rollout)
    torch.save(replay.state_dict(), tmp_path / "replay.pt")
    again.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True), torch.device("cpu"))
    for rollout in played[pushed:]:
        replay.push(rollout)
        again.push(rollout)
    samples = []
    for each in (replay, again):
        torch.manual_seed(0)
        samples.append(each.sample(50, 3))
    one, other = samples
    assert torch.equal(one.played, other.played)
    for name, group in one.steps.groups.items():
        assert torch.equal(group.obs[one.played], other.steps.groups[name].obs[one.played])


def by_hand(reward, group, played, gamma, row, agent):
    """The n-step return of one agent, step by step."""
    total, step = 0.0, 0
    while True:
        total += gamma**step * reward[row, step, agent].item()
        if group.terminated[row, step, agent]:
            return total, step, 0.0
        over = group.truncated[row, step, agent] or step + 1 == reward.shape[1] or not played[row, step + 1]
        if over:
            return total, step, gamma ** (step + 1)
        step += 1


def test_n_step_returns_stop_where_an_agent_does():
    torch.manual_seed(0)
    group = random_batch(TWO_SIDES, 200, 5).groups["wolf"]
    reward = torch.randn(200, 5, 2)
    played = torch.arange(5) < torch.randint(1, 6, (200, 1))
    sums, last, discount = n_step_return(reward, group, played, 0.9)
    assert set(last.unique().tolist()) == set(range(5))
    assert (discount == 0).any()
    for row in range(200):
        for agent in range(2):
            expected = by_hand(reward, group, played, 0.9, row, agent)
            found = sums[row, agent].item(), last[row, agent].item(), discount[row, agent].item()
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_at_step_gives_each_agent_its_own():
    x = torch.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    step = torch.tensor([[0, 2], [1, 1]])
    found = at_step(x, step)
    for row in range(2):
        for agent in range(2):
            assert torch.equal(found[row, agent], x[row, step[row, agent], agent])
            assert at_step(x[..., 0], step)[row, agent] == x[row, step[row, agent], agent, 0]


def test_an_absorbing_step_follows_each_termination():
    batch = random_batch(TWO_SIDES, 50, alive=0.8)
    for name, group in absorbing_transition(batch).groups.items():
        assert torch.equal(group.mask, batch.groups[name].terminated)
        assert group.mask.any()
        for x in (group.obs, group.action, group.next_obs, group.log_prob, group.terminated, group.truncated):
            assert not x.any()
            assert x.shape[:2] == group.mask.shape


def test_a_smaller_replay_keeps_the_newest():
    replay, smaller = Replay(40), Replay(20)
    rollout = random_batch(TWO_SIDES, 5, 8)
    replay.push(rollout)
    assert replay.full
    smaller.load_state_dict(replay.state_dict(), torch.device("cpu"))
    kept = smaller.state_dict()
    assert torch.equal(kept["wolf"]["obs"], rollout.groups["wolf"].obs[-2:])
