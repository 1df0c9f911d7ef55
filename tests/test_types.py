import pytest
import torch

from magail.types import Seeds, stack
from tests.toy import TWO_SIDES, random_batch


def test_seeds_come_from_the_demonstrations_as_often_as_asked():
    seeds = Seeds(0, starts=[7, 8, 9], fraction=0.25)
    drawn = [next(seeds) for _ in range(4000)]
    from_starts = [seed for seed in drawn if seed in (7, 8, 9)]
    assert len(from_starts) / 4000 == pytest.approx(0.25, abs=0.03)
    assert {from_starts.count(start) / len(from_starts) == pytest.approx(1 / 3, abs=0.06) for start in (7, 8, 9)} == {
        True
    }
    assert all(next(Seeds(s, starts=[7], fraction=1.0)) == 7 for s in range(5))


def test_seeds_go_on_where_their_state_was_taken():
    seeds = Seeds(0, starts=[7], fraction=0.5)
    for _ in range(10):
        next(seeds)
    state = seeds.state_dict()
    ahead = [next(seeds) for _ in range(20)]
    other = Seeds(99, starts=[7], fraction=0.5)
    other.load_state_dict(state)
    assert [next(other) for _ in range(20)] == ahead


def test_starts_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"no reset seeds.*start_from_demonstrations=0"):
        Seeds(0, starts=[], fraction=1.0)
    with pytest.raises(ValueError, match="probability"):
        Seeds(0, starts=[1], fraction=1.5)


def test_fields_move_together():
    batch = random_batch(TWO_SIDES, 4, 6, alive=0.7)
    flat = batch.flatten()
    assert flat.batch_shape == (24,)
    order = torch.randperm(24)
    for name, group in flat[order].groups.items():
        for field in ("obs", "action", "next_obs", "mask", "env_reward"):
            assert torch.equal(getattr(group, field), getattr(batch.groups[name], field).flatten(0, 1)[order])
    again = stack([batch[t] for t in range(4)])
    assert torch.equal(again.groups["wolf"].obs, batch.groups["wolf"].obs)
    assert again.field("mask")["sheep"].shape == (4, 6, 1)
