import numpy as np
import pytest
import torch
from gymnasium import spaces

from magail.distributions import Categorical, action_head
from magail.types import AgentGroup


def test_categorical_agrees_with_torch():
    logits = torch.randn(4, 3, 5)
    ours, theirs = Categorical(logits, [5]), torch.distributions.Categorical(logits=logits)
    action = torch.randint(5, (4, 3, 1))
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action.squeeze(-1)))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode().squeeze(-1), logits.argmax(-1))


def test_categorical_samples_follow_the_probabilities():
    probs = torch.tensor([0.5, 0.2, 0.3, 0.0])
    sample = Categorical(probs.log().expand(20_000, 1, 4), [4]).sample(torch.Generator().manual_seed(0))
    frequency = torch.bincount(sample.flatten(), minlength=4) / 20_000
    torch.testing.assert_close(frequency, probs, atol=0.015, rtol=0)
    assert frequency[3] == 0


def test_multidiscrete_factorises():
    head = action_head(spaces.MultiDiscrete([2, 3]), 1)
    logits = torch.randn(7, 1, 5)
    first, second = (torch.distributions.Categorical(logits=x) for x in logits.split([2, 3], -1))
    action = torch.stack([torch.randint(2, (7, 1)), torch.randint(3, (7, 1))], -1)
    distribution = head(logits)
    torch.testing.assert_close(
        distribution.log_prob(action), first.log_prob(action[..., 0]) + second.log_prob(action[..., 1])
    )
    torch.testing.assert_close(distribution.entropy(), first.entropy() + second.entropy())
    encoded = head.encode(torch.tensor([[[1, 2]]]))
    assert encoded.tolist() == [[[0, 1, 0, 0, 1]]]
    assert distribution.sample().shape == (7, 1, 2)


def test_gaussian_is_in_the_units_of_the_box():
    box = spaces.Box(np.float32([0, -10]), np.float32([1, 30]))
    head = action_head(box, 3)
    mean = torch.randn(4, 3, 2) * 0.3
    distribution = head(mean)
    center, scale = torch.tensor([0.5, 10.0]), torch.tensor([0.5, 20.0])
    theirs = torch.distributions.Normal(center + scale * mean, scale * head.log_std.exp())
    action = distribution.sample()
    torch.testing.assert_close(distribution.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(distribution.entropy(), theirs.entropy().sum(-1))
    torch.testing.assert_close(distribution.mode(), theirs.mean)


def test_discriminators_see_actions_as_the_environment_takes_them():
    """An action beyond the bounds is encoded as the bound: the environment clips it to that."""
    head = action_head(spaces.Box(0.0, 1.0, (2,)), 1)
    encoded = head.encode(torch.tensor([[[-3.0, 0.75]]]))
    assert encoded.tolist() == [[[-1.0, 0.5]]]
    unbounded = action_head(spaces.Box(-np.inf, np.inf, (1,)), 1)
    assert unbounded.encode(torch.tensor([[[-3.0]]])).item() == -3.0


def test_uniform_actions_fill_the_space():
    generator = torch.Generator().manual_seed(0)
    discrete = action_head(spaces.Discrete(5), 3).uniform((1000, 3), generator)
    assert discrete.shape == (1000, 3, 1)
    assert discrete.dtype == torch.int64
    assert torch.bincount(discrete.flatten()).tolist() == pytest.approx([600] * 5, rel=0.15)
    box = action_head(spaces.Box(0.0, 4.0, (2,)), 3).uniform((1000, 3), generator)
    assert box.min() >= 0
    assert box.max() <= 4
    assert box.mean().item() == pytest.approx(2, abs=0.1)


def test_an_action_space_no_actor_can_produce_is_refused():
    with pytest.raises(ValueError, match=r"walkers.*wrap the environment"):
        AgentGroup("walkers", ("walker_0",), spaces.Discrete(2), spaces.Dict({"a": spaces.Discrete(2)}))
