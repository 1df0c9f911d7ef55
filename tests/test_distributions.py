import numpy as np
import pytest
import torch
from gymnasium import spaces

from magail.distributions import BAND, Beta, Categorical, ClippedGaussian, Gaussian, SquashedGaussian, action_head
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


BOX = spaces.Box(np.float32([0, -10]), np.float32([1, 30]))
CENTER, SCALE = torch.tensor([0.5, 10.0]), torch.tensor([0.5, 20.0])


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squashed(seed=0, *shape):
    """And torch's own."""
    mean, log_std = normal(seed, *shape, 2) * 0.7, normal(seed + 1, *shape, 2) * 0.5 - 0.5
    transforms = torch.distributions.transforms
    theirs = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()),
        [transforms.TanhTransform(cache_size=1), transforms.AffineTransform(CENTER, SCALE, cache_size=1)],
    )
    return SquashedGaussian(mean, log_std, CENTER, SCALE), theirs


def beta(seed=0, *shape):
    """And torch's own."""
    alpha, beta = (1 + 2 * normal(seed + i, *shape, 2).exp() for i in (0, 1))
    transform = torch.distributions.transforms.AffineTransform(CENTER - SCALE, 2 * SCALE)
    return Beta(alpha, beta, CENTER, SCALE), torch.distributions.TransformedDistribution(
        torch.distributions.Beta(alpha, beta), [transform]
    )


def clipped(seed=0, *shape):
    """And the Gaussian that is clipped."""
    mean, log_std = normal(seed, *shape, 2) * 1.2, normal(seed + 1, *shape, 2) * 0.5 - 0.5
    return ClippedGaussian(mean, log_std, CENTER, SCALE), torch.distributions.Normal(mean, log_std.exp())


def test_clipped_actions_inside_have_a_density_and_those_on_a_bound_a_mass():
    ours, theirs = clipped(0, 500, 3)
    unit = 2 * torch.rand(500, 3, 2, generator=torch.Generator().manual_seed(5)) - 1
    density = theirs.log_prob(unit) - SCALE.log()
    torch.testing.assert_close(ours.log_prob(CENTER + SCALE * unit), density.sum(-1))
    on = torch.tensor([-1.0, 1.0])  # the first number on its lower, the second on its upper bound
    mass = torch.stack([theirs.cdf(-torch.ones(500, 3, 2))[..., 0], 1 - theirs.cdf(torch.ones(500, 3, 2))[..., 1]], -1)
    for reach in (1.0, 3.0):
        log_prob = ours.log_prob(CENTER + reach * on * SCALE)
        torch.testing.assert_close(log_prob.exp(), mass.prod(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(273.15, 300.0), (15.1, 15.3), (-20.9, -20.2), (-1.0, 1.0), (0.0, 1e-3)])
def test_bounds_far_from_zero_are_bounds_too(low, high):
    head = action_head(spaces.Box(np.float32([low]), np.float32([high])), 1, "clipped")
    policy = head(torch.full((1, 1), 3.0))  # nearly all of it is beyond the upper bound
    assert policy.log_prob(torch.tensor([[high]])).item() == pytest.approx(0, abs=1e-3)
    assert policy.log_prob(policy.sample()).item() == pytest.approx(0, abs=1e-3)
    assert policy.log_prob(torch.tensor([[low]])).item() < -10
    inside = head.center + 0.999 * head.scale
    assert (policy.log_prob(inside) + head.scale.log()).item() < -5  # a density again


def test_clipped_draws_are_a_gaussians_that_were_clipped():
    ours, theirs = clipped(0, 500, 3)
    sample = (ours.sample(torch.Generator().manual_seed(1)) - CENTER) / SCALE
    unclipped = theirs.mean + theirs.stddev * normal(1, 500, 3, 2)
    torch.testing.assert_close(sample, unclipped.clamp(-1, 1))
    assert (sample.abs() == 1).any()
    torch.testing.assert_close((ours.mode() - CENTER) / SCALE, theirs.mean.clamp(-1, 1))


def test_a_clipped_gaussian_fitted_to_actions_on_a_bound_moves_beyond_it():
    """A Gaussian fitted to them would come to rest on the bound, and half of its actions inside."""
    mean = torch.tensor([[1.0]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    ClippedGaussian(mean, zero, zero[0], one[0]).log_prob(one).backward()
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(np.sqrt(2 / np.pi)), "the slope of log Phi at 0"


@pytest.mark.parametrize("make", [squashed, beta])
def test_bounded_distributions_agree_with_torch(make):
    ours, theirs = make(0, 500, 3)
    share = 0.001 + 0.998 * torch.rand(500, 3, 2, generator=torch.Generator().manual_seed(5))
    action = CENTER + SCALE * (2 * share - 1)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1), rtol=1e-3, atol=1e-3)
    sample = ours.sample()
    assert sample.shape == (500, 3, 2)
    assert ((sample >= CENTER - SCALE) & (sample <= CENTER + SCALE)).all()


def units(count):
    """Points in the middle of ``count`` equal parts of [-1, 1]."""
    return (2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1


@pytest.mark.parametrize("mean", [0.0, 1.0, 4.0, -20.0])
@pytest.mark.parametrize("log_std", [-2.0, 0.0, 2.0])
def test_squashed_density_integrates_to_one(mean, log_std):
    """With what is beyond and next to the bounds, however much lies there."""
    center, scale = torch.tensor([3.0]).double(), torch.tensor([2.0]).double()
    parameters = (torch.tensor([[x]]).double() for x in (mean, log_std))
    action = (center + scale * units(1_000_000)).reshape(-1, 1, 1)
    density = SquashedGaussian(*parameters, center, scale).log_prob(action).exp()
    assert density.mean().item() * 4.0 == pytest.approx(1, abs=1e-3)


def test_squashed_draws_with_their_log_probability_need_no_inversion():
    ours, theirs = squashed(0, 500, 3)
    torch.manual_seed(0)
    action, log_prob = ours.rsample_and_log_prob()
    within = ((action - CENTER) / SCALE).abs().amax(-1) < 1 - BAND
    assert within.float().mean() > 0.95
    for inverted in (theirs.log_prob(action).sum(-1), ours.log_prob(action)):
        torch.testing.assert_close(log_prob[within], inverted[within], rtol=1e-3, atol=1e-3)
    far = SquashedGaussian(torch.full((1, 1), 30.0), torch.zeros(1, 1), torch.zeros(1), torch.ones(1))
    action, log_prob = far.rsample_and_log_prob()
    assert action.item() == 1.0
    assert log_prob.item() == pytest.approx(60, abs=10), "the slope of tanh at u is 4 exp(-2 u)"


@pytest.mark.parametrize("box", ["squashed", "beta"])
def test_actions_at_the_bounds_and_beyond_are_learned_from(box):
    """Expert actions often lie there; nothing may become infinite, and the gradient leads there."""
    head = action_head(BOX, 1, box)
    for size in (0.0, 1.0, 20.0):
        for sign in (-1.0, 1.0):
            outputs = torch.full((1, 1, 4), -sign * size, requires_grad=True)
            outputs.data[..., 2:] *= -1 if box == "beta" else 0
            at, beyond = (head(outputs).log_prob(CENTER + sign * reach * SCALE) for reach in (1.0, 1.5))
            assert at.isfinite().all()
            assert torch.equal(at, beyond)
            at.backward()
            assert outputs.grad is not None
            assert outputs.grad.isfinite().all()
            assert (sign * outputs.grad[..., :2] > 0).all()


@pytest.mark.parametrize("make", [clipped, squashed, beta])
def test_entropy_and_kl_of_bounded_distributions_are_means_of_log_probabilities(make):
    (ours, _), (other, _) = make(0, 1), make(10, 1)
    draws = torch.stack([ours.sample(torch.Generator().manual_seed(i)) for i in range(40_000)])
    log_prob = ours.log_prob(draws)
    assert ours.entropy().item() == pytest.approx(-log_prob.mean().item(), abs=0.03)
    assert ours.kl(other).item() == pytest.approx((log_prob - other.log_prob(draws)).mean().item(), rel=0.05)


def test_gradients_pass_through_draws():
    """The mean of many draws changes with a parameter as the distribution's mean does."""
    zero, one, many = torch.zeros(1), torch.ones(1), (200_000, 1)
    mean, alpha = torch.tensor([0.5], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    SquashedGaussian(mean.expand(many), zero, zero, one).rsample().mean().backward()
    slope = 1 - (0.5 + torch.randn(many)).tanh().square()
    assert mean.grad.item() == pytest.approx(slope.mean().item(), rel=0.02)
    clipped_mean = torch.tensor([0.5], requires_grad=True)
    ClippedGaussian(clipped_mean.expand(many), zero, zero, one).rsample().mean().backward()
    inside = torch.special.ndtr(torch.tensor(0.5)) - torch.special.ndtr(torch.tensor(-1.5))
    assert clipped_mean.grad.item() == pytest.approx(inside.item(), rel=0.02)
    Beta(alpha.expand(many), (2 * one).expand(many), zero, one).rsample().mean().backward()
    assert alpha.grad.item() == pytest.approx(2 * 2 / (3 + 2) ** 2, rel=0.02), "of the mean 2 a / (a + b) - 1"


@pytest.mark.parametrize(
    ("box", "kind"),
    [("gaussian", Gaussian), ("clipped", ClippedGaussian), ("squashed", SquashedGaussian), ("beta", Beta)],
)
def test_draws_come_from_the_given_generator_alone(box, kind):
    head = action_head(BOX, 3, box)
    distribution = head(normal(0, 7, 3, head.num_outputs))
    assert type(distribution) is kind
    before = torch.get_rng_state()
    first, second = (distribution.sample(torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.requires_grad


def test_modes_of_bounded_distributions():
    one = torch.ones(1)
    mean = torch.tensor([[0.3]])
    assert SquashedGaussian(mean, mean, one * 2, one * 4).mode().item() == pytest.approx(2 + 4 * np.tanh(0.3))
    assert Beta(torch.tensor([[3.0]]), torch.tensor([[2.0]]), one * 0, one).mode().item() == pytest.approx(1 / 3)
    assert Beta(one, one, one * 5, one).mode().item() == 5.0, "all are as likely: the middle"


def test_bounded_distributions_start_wide_and_stay_bounded():
    head = action_head(BOX, 1, "squashed")
    spread = [head(torch.full((1, 4), raw)).log_std[0, 0].item() for raw in (-100.0, 0.0, 100.0)]
    assert spread == pytest.approx([-5.0, -0.5, 2.0])
    start = action_head(BOX, 1, "beta")(torch.zeros(1, 4))
    assert start.alpha.min() == start.beta.max() == pytest.approx(1 + np.log(2))
    assert (action_head(BOX, 1, "beta")(torch.full((1, 4), -1e3)).alpha == 1).all()


def test_bounded_distributions_need_bounds():
    half = spaces.Box(np.float32([0, 0]), np.float32([1, np.inf]))
    for box in ("clipped", "squashed", "beta"):
        with pytest.raises(ValueError, match=rf"policy\.box={box} needs bounds.*choose policy\.box=gaussian"):
            action_head(half, 1, box)
    with pytest.raises(ValueError, match=r"policy\.box=gamma: choose one of gaussian, clipped, squashed, beta"):
        action_head(BOX, 1, "gamma")


@pytest.mark.parametrize("box", ["gaussian", "clipped", "squashed", "beta"])
def test_a_side_without_width(box):
    head = action_head(spaces.Box(np.float32([2, 0]), np.float32([2, 1])), 1, box)
    policy = head(torch.zeros(1, head.num_outputs))
    action = policy.sample()
    assert head.executed(action)[0, 0] == 2
    assert torch.cat([policy.log_prob(action), policy.entropy(), head.encode(action)[0]]).isfinite().all()


def test_sides_too_far_apart_for_a_float_are_none():
    far = np.finfo(np.float32).max
    space = spaces.Box(np.float32([-far]), np.float32([far]))
    assert action_head(space, 1).encode(torch.tensor([[3.0]])).item() == 3
    with pytest.raises(ValueError, match="needs bounds"):
        action_head(space, 1, "clipped")


def test_discriminators_see_actions_as_the_environment_takes_them():
    """An action beyond the bounds is encoded as the bound: the environment clips it to that."""
    head = action_head(spaces.Box(0.0, 1.0, (2,)), 1)
    encoded = head.encode(torch.tensor([[[-3.0, 0.75]]]))
    assert encoded.tolist() == [[[-1.0, 0.5]]]
    unbounded = action_head(spaces.Box(-np.inf, np.inf, (1,)), 1)
    assert unbounded.encode(torch.tensor([[[-3.0]]])).item() == -3.0
    whole = action_head(spaces.Box(0, 4, (3,), np.int32), 1)
    assert whole.encode(torch.tensor([[[0.4, 1.7, 9.0]]])).tolist() == [[[-1.0, 0.0, 1.0]]]


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


@pytest.mark.parametrize("name", ["train", "items", "team.a"])
def test_names_that_torch_needs_itself_are_refused(name):
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        AgentGroup(name, (f"{name}_0",), spaces.Discrete(2), spaces.Discrete(2))
