import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces

from magail.discriminators import losses, rewards
from magail.discriminators.discriminator import Discriminator, EnvironmentReward, NoDiscriminator
from magail.discriminators.learned import LearnedReward
from magail.discriminators.priors import ABSORBING, Centralized, Decentralized, Single, ZeroSum
from magail.discriminators.regularizers import (
    POINTS,
    Examples,
    gradient_penalty,
    mixed,
    smoothed,
    spectrally_normalized,
    with_noise,
)
from magail.networks import StackedMLP
from magail.policy import Policy
from magail.types import AgentGroup, JointTransition, absorbing_transition, share_of_ends
from tests.toy import TWO_SIDES, groups_of, random_batch

SIZES = {"hidden_sizes": [16], "activation": "relu"}
PRIORS = [Decentralized, Centralized, Single, ZeroSum]
LOSSES = [losses.bce, losses.wasserstein, losses.least_squares, losses.hinge]


def influence(prior, output, group, agent):
    """Whether a logit depends on what one agent saw and did."""
    batch = random_batch(TWO_SIDES, 8)
    before = prior(batch)
    batch.groups[group].obs[:, agent] += 1.0
    after = prior(batch)
    name, index = output
    return not torch.equal(before[name][:, index], after[name][:, index])


AGENTS = [("wolf", 0), ("wolf", 1), ("sheep", 0)]


@pytest.mark.parametrize("prior", PRIORS)
def test_each_prior_sees_what_its_table_says(prior):
    prior = prior(TWO_SIDES, **SIZES)
    for judged in AGENTS:
        for group, agent in AGENTS:
            joint = not isinstance(prior, Decentralized)
            assert influence(prior, judged, group, agent) == (joint or judged == (group, agent))


def test_features_are_observation_and_action_of_the_same_step():
    prior = Decentralized(TWO_SIDES, **SIZES)
    batch = random_batch(TWO_SIDES, 6)
    wolf, sheep = prior.features(batch)["wolf"], prior.features(batch)["sheep"]
    one_hot = torch.nn.functional.one_hot(batch.groups["wolf"].action.squeeze(-1), 3)
    torch.testing.assert_close(wolf, torch.cat([batch.groups["wolf"].obs, one_hot], -1))
    torch.testing.assert_close(sheep, torch.cat([batch.groups["sheep"].obs, batch.groups["sheep"].action], -1))
    joint = Centralized(TWO_SIDES, **SIZES).features(batch)["joint"]
    torch.testing.assert_close(joint.squeeze(1), torch.cat([wolf.flatten(1), sheep.flatten(1)], -1))


IMAGES = {"encoder": "auto", "channels": [4, 5]}
SIGHTED = (
    AgentGroup("eye", ("eye_0", "eye_1"), spaces.Box(0, 255, (12, 9, 3), np.uint8), spaces.Discrete(3)),
    AgentGroup("hand", ("hand_0",), spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2)),
)


def test_images_alone_go_through_convolutions():
    prior = Decentralized(SIGHTED, **SIZES, **IMAGES)
    x = prior.features(random_batch(SIGHTED, 6))
    image, action = x["eye"].split([324, 3], -1)
    eye = prior.networks["eye"]
    seen = torch.cat([eye.encoders["eye"](image), action], -1)
    torch.testing.assert_close(prior.raw_logits(x)["eye"], eye.mlp(seen))
    assert isinstance(prior.networks["hand"], StackedMLP)

    prior = Centralized(SIGHTED, **SIZES, **IMAGES)
    x = prior.features(random_batch(SIGHTED, 6))
    *eyes, rest = x["joint"].split([324, 3, 324, 3, 6], -1)
    see = prior.judge.encoders["eye"]
    seen = torch.cat([see(eyes[0]), eyes[1], see(eyes[2]), eyes[3], rest], -1)
    torch.testing.assert_close(prior.raw_logits(x)["joint"], prior.judge.mlp(seen))


def test_what_convolutions_cannot_have_is_refused():
    with pytest.raises(ValueError, match="spectral_norm is not there for convolutions"):
        Decentralized(SIGHTED, **SIZES, **IMAGES, spectral_norm=True)
    Decentralized(SIGHTED, **SIZES, encoder="mlp", spectral_norm=True)
    with pytest.raises(ValueError, match="unknown encoder=eye"):
        Decentralized(SIGHTED, **SIZES, encoder="eye")


@pytest.mark.parametrize("prior", PRIORS)
def test_pairing_survives_a_permutation(prior):
    """The original code shuffled actions without their observations; here rows move as a whole."""
    prior = prior(TWO_SIDES, **SIZES)
    batch = random_batch(TWO_SIDES, 32)
    order = torch.randperm(32)
    for name, logits in prior(batch[order]).items():
        torch.testing.assert_close(logits, prior(batch)[name][order])


@pytest.mark.parametrize("prior", PRIORS)
def test_the_reward_of_a_step_is_that_of_its_own_action(prior):
    """The original code rewarded (s_t, a_{t-1}): changing one step's action must change that step's reward only."""
    discriminator = make(prior)
    rollout = random_batch(TWO_SIDES, 5, 3)
    before = discriminator.reward(rollout)
    rollout.groups["wolf"].action[2, 1] = (rollout.groups["wolf"].action[2, 1] + 1) % 3
    after = discriminator.reward(rollout)
    changed = (before["wolf"] != after["wolf"]).any(-1)
    expected = torch.zeros(5, 3, dtype=torch.bool)
    expected[2, 1] = True
    assert torch.equal(changed, expected)


def test_centralized_heads_differ_and_single_logits_do_not():
    batch = random_batch(TWO_SIDES, 8)
    heads = Centralized(TWO_SIDES, **SIZES)(batch)["wolf"]
    assert not torch.allclose(heads[:, 0], heads[:, 1])
    single = Single(TWO_SIDES, **SIZES)(batch)
    assert torch.equal(single["wolf"][:, :1], single["sheep"])
    assert torch.equal(single["wolf"][:, 0], single["wolf"][:, 1])


def test_shared_parameters_judge_equal_agents_alike_but_for_their_id():
    prior = Decentralized(TWO_SIDES, **SIZES, share_parameters=True)
    batch = random_batch(TWO_SIDES, 8)
    wolf = batch.groups["wolf"]
    wolf.obs[:, 1], wolf.action[:, 1] = wolf.obs[:, 0], wolf.action[:, 0]
    logits = prior(batch)["wolf"]
    assert not torch.equal(logits[:, 0], logits[:, 1])
    agent_id = prior.networks["wolf"].layers[0].bias
    torch.nn.init.zeros_(agent_id)
    logits = prior(batch)["wolf"]
    assert torch.equal(logits[:, 0], logits[:, 1])


def test_the_dead_are_zero_in_every_feature():
    batch = random_batch(TWO_SIDES, 50, alive=0.5)
    prior = Decentralized(TWO_SIDES, **SIZES)
    prior.fit_normalizers(random_batch(TWO_SIDES, 100))
    for name, features in prior.features(batch).items():
        assert (features[~batch.groups[name].mask] == 0).all()


OPTIONS = {
    "airl_discount": None,
    "reward_clip": None,
    "reward_scaling": False,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "steps": 3,
    "batch_size": 32,
    "gradient_penalty": 0.0,
    "gradient_penalty_center": 0.0,
    "gradient_penalty_points": "between",
    "input_noise": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "replay": 0,
    "pause_above": 1.0,
    "absorbing": False,
    "absorbing_discount": 0.5,
}


def make(
    prior=Decentralized,
    loss=losses.bce,
    reward=rewards.logit,
    demonstrations=None,
    prior_options=None,
    groups=TWO_SIDES,
    **options,
):
    class Demonstrations:
        transitions = random_batch(groups, 64)

        def sample(self, batch_size):
            return self.transitions[torch.randint(64, (batch_size,))]

    demonstrations = demonstrations or Demonstrations()
    build = functools.partial(prior, **(SIZES | (prior_options or {})))
    return Discriminator(groups, demonstrations, None, prior=build, loss=loss, reward=reward, **(OPTIONS | options))


def source(draw, ends=None):
    """Demonstrations that ``draw(n)`` anew at every sample."""
    return SimpleNamespace(sample=draw, ends=ends or share_of_ends(draw(256)))


def test_zero_sum_rewards_sum_to_zero_over_the_sides():
    for reward in (rewards.logit, rewards.softplus, rewards.symmetric):
        got = make(ZeroSum, reward=reward).reward(random_batch(TWO_SIDES, 4, 3))
        assert (got["wolf"] != 0).any()
        for wolf in range(2):
            torch.testing.assert_close(got["wolf"][..., wolf] + got["sheep"][..., 0], torch.zeros(4, 3))


def test_zero_sum_trains_on_expert_states_with_one_sides_actions_swapped():
    generated, expert = random_batch(TWO_SIDES, 64), random_batch(TWO_SIDES, 64)
    policy = Policy(TWO_SIDES)
    labelled = ZeroSum(TWO_SIDES, **SIZES).labelled(generated, expert, policy)
    (first, one, _), (even, half, _), (second, zero, _) = labelled
    assert {source for _, _, source in labelled} == {"expert"}
    assert (one, half, zero) == (1.0, 0.5, 0.0)
    assert even is expert
    for batch in (first, second):
        for name in expert.groups:
            assert torch.equal(batch.groups[name].obs, expert.groups[name].obs)
    assert torch.equal(first.groups["wolf"].action, expert.groups["wolf"].action)
    assert not torch.equal(first.groups["sheep"].action, expert.groups["sheep"].action)
    assert not torch.equal(second.groups["wolf"].action, expert.groups["wolf"].action)
    assert torch.equal(second.groups["sheep"].action, expert.groups["sheep"].action)


def test_zero_sum_needs_two_sides():
    alone = groups_of(agent=(3, 4, spaces.Discrete(5)))
    with pytest.raises(ValueError, match=r"single group 'agent'.*discriminator=decentralized"):
        ZeroSum(alone, **SIZES)
    for sides in (["wolf", "sheep"], ["cow"], []):
        with pytest.raises(ValueError, match="first_side"):
            ZeroSum(TWO_SIDES, **SIZES, first_side=sides)
    assert ZeroSum(TWO_SIDES, **SIZES, first_side=["sheep"]).sign("wolf") == -1.0


def at(logit, target, loss):
    return loss(torch.tensor(logit), torch.tensor(target)).item()


def test_losses_in_closed_form():
    for logit, target in ((0.7, 1.0), (0.7, 0.0), (-2.0, 0.5), (1.3, 0.9)):
        d = 1 / (1 + math.exp(-logit))
        bce = -(target * math.log(d) + (1 - target) * math.log(1 - d))
        assert at(logit, target, losses.bce) == pytest.approx(bce, rel=1e-5)
        wasserstein = -target * logit + (1 - target) * logit
        assert at(logit, target, losses.wasserstein) == pytest.approx(wasserstein, rel=1e-5)
        assert at(logit, target, losses.least_squares) == pytest.approx((logit - (2 * target - 1)) ** 2, rel=1e-5)
        hinge = target * max(0.0, 1 - logit) + (1 - target) * max(0.0, 1 + logit)
        assert at(logit, target, losses.hinge) == pytest.approx(hinge, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_wants_high_logits_for_the_expert(loss):
    assert at(0.5, 1.0, loss) < at(-0.5, 1.0, loss)
    assert at(0.5, 0.0, loss) > at(-0.5, 0.0, loss)
    x = torch.linspace(-3, 3, 601)
    half = torch.full_like(x, 0.5)
    torch.testing.assert_close(loss(x, half), loss(-x, half), msg="even is even")


def test_rewards_in_closed_form_and_higher_for_the_expert():
    for logit in (-2.0, 0.0, 1.5):
        d = 1 / (1 + math.exp(-logit))
        x = torch.tensor(logit)
        assert rewards.logit(x).item() == pytest.approx(math.log(d) - math.log(1 - d), abs=1e-6)
        assert rewards.log_d(x).item() == pytest.approx(math.log(d), rel=1e-5)
        assert rewards.softplus(x).item() == pytest.approx(-math.log(1 - d), rel=1e-5)
        assert rewards.symmetric(x).item() == pytest.approx(2 * d - 1, abs=1e-6)
        assert rewards.dail(x).item() == pytest.approx(0.5 * d * (math.tanh(logit) + 1), rel=1e-5)
    for reward in (rewards.logit, rewards.log_d, rewards.softplus, rewards.symmetric, rewards.dail):
        assert reward(torch.tensor(1.0)) > reward(torch.tensor(-1.0))


def quadratic(features):
    """Logits x' diag(k) x / 2 for head k: the gradient of head k is k x."""
    squares = features["joint"].square().sum(-1, keepdim=True) / 2
    return {"joint": torch.cat([squares, 3 * squares], -1)}


def test_gradient_penalty_of_a_quadratic():
    """||gradient|| is k ||x||, for every head, network and row."""
    x = torch.randn(16, 2, 5)
    norms = x.norm(dim=-1)
    expected = (norms.square().mean() + (3 * norms).square().mean()) / 2
    torch.testing.assert_close(gradient_penalty(quadratic, {"joint": x}, center=0.0), expected)
    expected = ((norms - 1).square().mean() + (3 * norms - 1).square().mean()) / 2
    torch.testing.assert_close(gradient_penalty(quadratic, {"joint": x}, center=1.0), expected)


def test_gradient_penalty_points_lie_between_both_sides_or_at_the_expert():
    expert, generated = {"joint": torch.zeros(500, 2, 3)}, {"joint": torch.ones(500, 2, 3)}
    points = POINTS["between"](expert, generated)["joint"]
    assert (points == points[:, :1, :1]).all(), "one mixing weight a row"
    assert points.min() >= 0
    assert points.max() <= 1
    assert points.mean().item() == pytest.approx(0.5, abs=0.05)
    assert POINTS["expert"](expert, generated) is expert


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("shaped", [False, True])
def test_gradient_penalty_is_that_of_each_judge(prior, shaped):
    """Against gradients of each agent's logit taken one row at a time."""
    if shaped and prior is ZeroSum:
        return
    torch.manual_seed(0)
    discriminator = make(prior, airl_discount=0.9 if shaped else None)
    judge = discriminator.prior
    features = {name: x.detach() for name, x in judge.features(random_batch(TWO_SIDES, 4)).items()}
    squares = []
    for row in range(4):
        one = {name: x[row : row + 1].clone().requires_grad_() for name, x in features.items()}
        for raw in judge.raw_logits(one).values():
            for logit in raw.flatten():
                seen = [x for name, x in one.items() if not name.startswith("goes_on")]
                gradients = torch.autograd.grad(logit, seen, retain_graph=True, allow_unused=True)
                norm = sum(x.square().sum().item() for x in gradients if x is not None)
                squares.append(norm / raw.shape[-2])
        heads = sum(raw.shape[-1] for raw in judge.raw_logits(one).values())
    expected = sum(squares) / 4 / heads
    assert gradient_penalty(judge.raw_logits, features).item() == pytest.approx(expected, rel=1e-4)


def examples_of(prior, batch, target):
    weight = {name: mask.float() for name, mask in batch.field("mask").items()}
    return Examples(prior.features(batch), weight, torch.tensor(target), {})


def test_label_smoothing_and_noise_in_closed_form():
    x = examples_of(Decentralized(TWO_SIDES, **SIZES), random_batch(TWO_SIDES, 4000), 1.0)
    assert smoothed(x, 0.1).target.item() == pytest.approx(0.9)
    assert smoothed(replace(x, target=torch.tensor(0.0)), 0.1).target.item() == pytest.approx(0.1)
    assert smoothed(replace(x, target=torch.tensor(0.5)), 0.1).target.item() == pytest.approx(0.5)
    noise = with_noise(x, 0.3).features["wolf"] - x.features["wolf"]
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)


def test_mixtures_lie_between_their_pairs_with_the_expert_share_as_target():
    prior = Decentralized(TWO_SIDES, **SIZES)
    expert, generated = (examples_of(prior, random_batch(TWO_SIDES, 500, alive=0.8), t) for t in (1.0, 0.0))
    mixture = mixed(expert, generated, 0.5)
    assert mixture.target.shape == (500, 1)
    share = mixture.target.unsqueeze(-1)
    for name, x in mixture.features.items():
        torch.testing.assert_close(x, share * expert.features[name] + (1 - share) * generated.features[name])
        both = (expert.weight[name] > 0) & (generated.weight[name] > 0)
        assert torch.equal(mixture.weight[name], 2.0 * both)
    # Beta(1/2, 1/2) has the variance 1/8
    assert mixture.target.var().item() == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_spectral_norm_holds_every_layer_at_one(shared):
    torch.manual_seed(0)
    mlp = spectrally_normalized(StackedMLP(2, 6, [16, 16], 3, "relu", 5.0, shared))
    mlp.train()
    optimizer = torch.optim.SGD(mlp.parameters(), 0.1)
    for _ in range(20):  # the power iteration follows moving weights
        loss = mlp(torch.randn(32, 2, 6)).square().mean()
        optimizer.zero_grad()
        (-loss).backward()
        optimizer.step()
    for _ in range(30):
        mlp(torch.randn(32, 2, 6))
    mlp.eval()
    for layer in mlp.layers[::2]:
        torch.testing.assert_close(
            torch.linalg.matrix_norm(layer.weight, 2), torch.ones(len(layer.weight)), atol=0.02, rtol=0
        )
    x, y = torch.randn(2, 500, 2, 6)
    steeper = (mlp(x) - mlp(y)).norm(dim=-1) / (x - y).norm(dim=-1)
    assert steeper.max() <= 1.02


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    discriminator = make(prior_options={"dropout": 0.5})
    batch = random_batch(TWO_SIDES, 8)
    assert torch.equal(discriminator.prior(batch)["wolf"], discriminator.prior(batch)["wolf"])
    discriminator.prior.train()
    assert not torch.equal(discriminator.prior(batch)["wolf"], discriminator.prior(batch)["wolf"])
    discriminator.update(random_batch(TWO_SIDES, 4, 4), discriminator_source(), Policy(TWO_SIDES))
    assert not discriminator.prior.training


def discriminator_source():
    return source(lambda n: random_batch(TWO_SIDES, n))


def test_inputs_choose_what_is_seen():
    batch = random_batch(TWO_SIDES, 6, alive=0.7)
    wolf = batch.groups["wolf"]
    alive = wolf.mask.unsqueeze(-1)
    action = torch.nn.functional.one_hot(wolf.action.squeeze(-1), 3)
    parts = {"obs": wolf.obs, "action": action, "next_obs": wolf.next_obs, "terminated": wolf.terminated.unsqueeze(-1)}
    for inputs in (["obs"], ["obs", "next_obs"], ["terminated", "action", "obs"]):
        prior = Decentralized(TWO_SIDES, **SIZES, inputs=inputs)
        expected = torch.cat([parts[kind].float() for kind in inputs], -1) * alive
        torch.testing.assert_close(prior.features(batch)["wolf"], expected)
        assert prior(batch)["wolf"].shape == (6, 2)
        assert Single(TWO_SIDES, **SIZES, inputs=inputs)(batch)["wolf"].shape == (6, 2)
    for wrong in ([], ["observation"], ["obs", "obs"]):
        with pytest.raises(ValueError, match=r"discriminator\.prior\.inputs=.*give one or more of obs, action"):
            Decentralized(TWO_SIDES, **SIZES, inputs=wrong)
    for wrong in (["obs"], ["obs", "action", "next_obs"]):
        with pytest.raises(ValueError, match="zero-sum prior pairs"):
            ZeroSum(TWO_SIDES, **SIZES, inputs=wrong)


def test_joint_observation_shows_everyones_observations_but_own_actions_only():
    prior = Decentralized(TWO_SIDES, **SIZES, joint_observation=True)
    for judged in AGENTS:
        for group, agent in AGENTS:
            assert influence(prior, judged, group, agent), "observations"
            batch = random_batch(TWO_SIDES, 8)
            before = prior(batch)[judged[0]][:, judged[1]]
            other = batch.groups[group].action[:, agent] + 1
            batch.groups[group].action[:, agent] = other % 3 if group == "wolf" else other / 3
            assert torch.equal(before, prior(batch)[judged[0]][:, judged[1]]) == (judged != (group, agent))


@pytest.mark.parametrize("prior", [Decentralized, Centralized, Single])
def test_airl_logits_in_closed_form(prior):
    """f - log pi with f = g(s, a) + 0.9 h(s') - h(s), and no h(s') where the agent terminated."""
    torch.manual_seed(0)
    discriminator = make(prior, airl_discount=0.9)
    rollout = random_batch(TWO_SIDES, 5, 4, alive=0.8)
    batch = rollout.flatten()
    g, h = discriminator.prior.g(batch), discriminator.prior.h(batch)
    still = {n: x.mask & ~x.terminated for n, x in batch.groups.items()}
    moved = JointTransition({n: replace(x, obs=x.next_obs, mask=still[n]) for n, x in batch.groups.items()})
    after = discriminator.prior.h(moved)
    for name, group in batch.groups.items():
        f = g[name] + 0.9 * after[name] * ~group.terminated - h[name]
        torch.testing.assert_close(discriminator.prior(batch)[name], f)
        torch.testing.assert_close(discriminator.learned_reward(rollout)[name].flatten(0, 1), g[name])
        torch.testing.assert_close(discriminator.reward(rollout)[name].flatten(0, 1), f - group.log_prob)
        torch.testing.assert_close(discriminator.reward(batch)[name], f - group.log_prob)


def test_airl_takes_the_current_policys_log_probabilities_in_training(monkeypatch):
    policy, batch = Policy(TWO_SIDES), random_batch(TWO_SIDES, 16, alive=0.7)
    discriminator = make(airl_discount=0.9)
    examples = discriminator._examples(batch, 1.0, policy)
    distributions = policy.distributions(batch.field("obs"))
    for name, group in batch.groups.items():
        torch.testing.assert_close(examples.log_prob[name], distributions[name].log_prob(group.action) * group.mask)


def test_airl_finds_the_reward_of_a_bandit():
    """At the optimum f = log of the expert's density: without dynamics AIRL's reward is log pi_E up to a constant."""
    torch.manual_seed(0)
    probabilities = torch.tensor([0.1, 0.3, 0.6])

    def blind(batch):
        for group in batch.groups.values():
            group.obs.zero_(), group.next_obs.zero_(), group.terminated.zero_()
        return batch

    def expert(n):
        batch = blind(random_batch(TWO_SIDES, n))
        batch.groups["wolf"].action = torch.multinomial(probabilities, n * 2, replacement=True).reshape(n, 2, 1)
        return batch

    discriminator = make(airl_discount=1.0, steps=400, batch_size=512, demonstrations=None)
    policy = Policy(TWO_SIDES)
    discriminator.update(blind(random_batch(TWO_SIDES, 64, 32)), source(expert), policy)
    batch = blind(random_batch(TWO_SIDES, 3))
    batch.groups["wolf"].action = torch.arange(3).reshape(3, 1, 1).expand(3, 2, 1)
    f = discriminator.prior(batch)["wolf"].detach()
    expected = probabilities.log().unsqueeze(-1)
    torch.testing.assert_close(f - f.mean(0), (expected - expected.mean()).expand(3, 2), atol=0.25, rtol=0)


@pytest.mark.parametrize("options", [{"mixup": 0.5, "airl_discount": 0.9}, {"mixup": 0.5, "prior": ZeroSum}])
def test_mixtures_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match="mixup"):
        make(**options)
    with pytest.raises(ValueError, match="not zero_sum"):
        make(ZeroSum, airl_discount=0.9)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing", 0.6),
        ("pause_above", 0.2),
        ("replay", -1),
        ("airl_discount", 1.5),
        ("reward_clip", -1.0),
        ("reward_clip", 0.0),
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"discriminator\.{option}={value} must be"):
        make(**{option: value})


def test_replay_draws_the_last_rounds_alike():
    """The original code kept 90 % old samples; here every kept round weighs the same."""
    seen = []

    class Spy(Decentralized):
        def features(self, batch):
            seen.append(batch.groups["wolf"].obs[:, 0, 0])
            return super().features(batch)

    discriminator = make(Spy, replay=2, steps=200)
    for number in range(5):
        rollout = random_batch(TWO_SIDES, 4, 4)
        rollout.groups["wolf"].obs[:] = number + 10
        seen.clear()
        discriminator.update(rollout, source(lambda n: random_batch(TWO_SIDES, n)), Policy(TWO_SIDES))
    drawn = torch.cat(seen)
    drawn = drawn[drawn >= 10].round()
    for number in (12, 13, 14):
        assert (drawn == number).float().mean().item() == pytest.approx(1 / 3, abs=0.03)
    again = make(Spy, replay=2)
    again.load_state_dict(discriminator.state_dict())
    for mine, theirs in zip(discriminator.past, again.past, strict=True):
        assert torch.equal(mine.groups["wolf"].obs, theirs.groups["wolf"].obs)


def test_it_pauses_where_it_is_too_good():
    torch.manual_seed(0)
    rollout = random_batch(TWO_SIDES, 8, 8)
    for group in rollout.groups.values():
        group.obs += 5.0
    discriminator = make(steps=300)
    discriminator.update(rollout, discriminator_source(), Policy(TWO_SIDES))
    before = {name: x.clone() for name, x in discriminator.prior.state_dict().items()}
    discriminator.pause_above = 0.9
    info = discriminator.update(rollout, discriminator_source(), Policy(TWO_SIDES))
    assert info["discriminator/paused"] == 1
    assert all(torch.equal(x, before[name]) for name, x in discriminator.prior.state_dict().items())
    half = make(steps=300, pause_above=0.8).update(rollout, discriminator_source(), Policy(TWO_SIDES))
    assert 0 < half["discriminator/paused"] < 1
    assert "discriminator/paused" not in make().update(rollout, discriminator_source(), Policy(TWO_SIDES))


def test_rewards_are_clipped_and_scaled():
    torch.manual_seed(0)
    rollout = random_batch(TWO_SIDES, 30, 30)
    plain, scaled = make(steps=60), make(steps=60, reward_scaling=True, reward_clip=0.2)
    for discriminator in (plain, scaled):
        discriminator.update(rollout, discriminator_source(), Policy(TWO_SIDES))
    scaled.prior.load_state_dict(plain.prior.state_dict())
    scaled._update_scales(rollout.flatten())
    clipped = plain.reward(rollout)["wolf"].clamp(-0.2, 0.2)
    torch.testing.assert_close(scaled.reward(rollout)["wolf"], clipped / scaled.scales["wolf"].std)
    again = make(reward_scaling=True, reward_clip=0.2)
    again.load_state_dict(scaled.state_dict())
    assert torch.equal(again.reward(rollout)["wolf"], scaled.reward(rollout)["wolf"])
    fresh = make(steps=1, reward_scaling=True, learning_rate=0.0)
    fresh.update(rollout, discriminator_source(), Policy(TWO_SIDES))
    torch.testing.assert_close(fresh.reward(rollout)["wolf"].flatten(0, 1).std(0), torch.ones(2), atol=0.01, rtol=0)


@pytest.mark.parametrize("airl_discount", [None, 0.9])
def test_absorbing_steps_are_told_apart_too(airl_discount):
    """Where the generator's agents always end and the expert's never, what follows on an end is the generator's."""
    torch.manual_seed(0)
    policy = Policy(TWO_SIDES)

    def ending(batch, ends):
        for group in batch.groups.values():
            group.terminated = group.mask & ends
            group.obs += 1.0
        return batch

    rollout = ending(random_batch(TWO_SIDES, 8, 8, alive=0.8), True)
    expert = source(lambda n: ending(random_batch(TWO_SIDES, n), False))
    discriminator = make(steps=150, absorbing=True, airl_discount=airl_discount)
    rollout.groups["sheep"].terminated[0] = rollout.groups["wolf"].terminated[0] = False
    examples = discriminator._afterlife(rollout.flatten(), 0.0, share_of_ends(rollout.flatten()))
    torch.testing.assert_close(examples.weight["wolf"][0], rollout.groups["wolf"].mask[1:].flatten(0, 1).sum(0).float())
    assert (examples.features.get("wolf", examples.features.get("g/wolf")) == ABSORBING).all()
    if airl_discount:
        assert (examples.log_prob["wolf"] == 0).all()
    discriminator.update(rollout, expert, policy)
    after = absorbing_transition(rollout)
    mask = after.groups["wolf"].mask
    assert (discriminator.reward(after)["wolf"][mask] < -0.5).all()


def test_potentials_do_not_pay_for_the_length_of_an_episode():
    """Of episodes from the same observation f pays the same more than g, however long they are."""
    torch.manual_seed(0)
    discount = 0.9
    f = make(absorbing=True, airl_discount=discount).prior
    start = random_batch(TWO_SIDES, 1)
    more = []
    for length in (1, 3, 20):
        steps = random_batch(TWO_SIDES, length)
        for name, group in steps.groups.items():
            group.obs[0] = start.groups[name].obs[0]
            group.next_obs[:-1] = group.obs[1:]
            group.terminated = group.mask & (torch.arange(length) == length - 1).unsqueeze(-1)
        after = absorbing_transition(steps[-1:])
        of_steps = (f(steps)["wolf"] - f.g(steps)["wolf"]).detach()
        of_after = (f(after)["wolf"] - f.g(after)["wolf"]).detach()
        weights = discount ** torch.arange(length + 1)
        weights[-1] /= 1 - discount  # for ever
        more.append((torch.cat([of_steps, of_after]) * weights.unsqueeze(-1)).sum(0))
    torch.testing.assert_close(more[1], more[0])
    torch.testing.assert_close(more[2], more[0])


def test_steps_in_which_nobody_lives_do_not_count():
    """Where opponents play on, a rollout has rows without anybody; demonstrations are sampled without such."""
    weights = []
    for length in (4, 40):
        discriminator = make(absorbing=True, steps=1)
        rollout = random_batch(TWO_SIDES, length, 8)
        for group in rollout.groups.values():
            group.mask[4:] = False
            group.terminated = torch.zeros_like(group.mask)
            group.terminated[3] = True
        seen = []
        discriminator._step = lambda generated, *_, seen=seen: seen.append(generated) or {}
        discriminator.update(rollout, source(lambda n: random_batch(TWO_SIDES, n)), Policy(TWO_SIDES))
        weights.append(seen[0].groups["wolf"].mask.float().mean().item())
    assert weights == [1.0, 1.0]


def test_noise_leaves_alone_what_is_no_observation():
    features = make(airl_discount=0.9).prior.features(random_batch(TWO_SIDES, 8))
    noisy = with_noise(Examples(features, {}, torch.ones(()), {}), 0.5).features
    same = {name for name, x in features.items() if torch.equal(noisy[name], x)}
    assert same == {f"flag/{kind}/{group}" for kind in ("left", "reached") for group in ("wolf", "sheep")}


@pytest.mark.parametrize("prior", PRIORS)
def test_how_well_it_knows_held_out_demonstrations(prior):
    """Not asked of the zero-sum prior, to which an expert against an expert is neither side's."""
    discriminator = make(prior)
    discriminator.held_out = SimpleNamespace(transitions=random_batch(TWO_SIDES, 8))
    info = discriminator.update(random_batch(TWO_SIDES, 4, 4), discriminator_source(), Policy(TWO_SIDES))
    assert ("discriminator/held_out_accuracy" in info) == (prior is not ZeroSum)


@pytest.mark.parametrize("absorbing", [False, True])
def test_a_reward_is_used_as_it_was_learned(absorbing, tmp_path):
    make(absorbing=absorbing).save(tmp_path)
    LearnedReward(TWO_SIDES, None, None, checkpoint=str(tmp_path), shaping=False, absorbing=absorbing)
    with pytest.raises(ValueError, match=f"learned with discriminator.absorbing={absorbing}"):
        LearnedReward(TWO_SIDES, None, None, checkpoint=str(tmp_path), shaping=False, absorbing=not absorbing)


@pytest.mark.parametrize(("discount", "weight"), [(0.5, 1.0), (0.9, 9.0)])
def test_absorbing_steps_weigh_what_is_to_be_expected(discount, weight):
    """Two in 80 of the expert's steps end and one in ten of the generator's, all alike: the logits of the optimum.

    The batch is too small to tell by itself. Zeros can be observed, so what follows on an end is not zeros.
    """
    torch.manual_seed(0)
    policy = Policy(TWO_SIDES)

    def alike(batch, ends):
        for group in batch.groups.values():
            group.obs, group.action = torch.zeros_like(group.obs), torch.zeros_like(group.action)
            group.terminated = torch.zeros_like(group.mask)
            group.terminated[:ends] = True
        return batch

    rollout = alike(random_batch(TWO_SIDES, 10, 8), 1)  # all copies end at once
    ends = share_of_ends(alike(random_batch(TWO_SIDES, 80), 2))
    expert = source(lambda n: alike(random_batch(TWO_SIDES, n), 0), ends)
    discriminator = make(steps=600, batch_size=8, absorbing=True, absorbing_discount=discount, learning_rate=0.003)
    discriminator.update(rollout, expert, policy)
    after = discriminator.reward(absorbing_transition(rollout[:1, :1]))
    rest = (1 + 0.1 * weight) / (1 + 0.025 * weight)
    for name, reward in discriminator.reward(rollout).items():
        torch.testing.assert_close(reward, torch.full_like(reward, math.log(rest)), atol=0.02, rtol=0)
        of_after = torch.full_like(after[name], math.log(rest * 0.025 / 0.1))
        torch.testing.assert_close(after[name], of_after, atol=0.1, rtol=0)
    reported = discriminator.report(rollout)["discriminator/absorbing_reward"]
    assert reported == pytest.approx(torch.cat(list(after.values()), -1).mean().item())


def test_the_report_is_the_correlation_with_the_true_reward():
    discriminator = make()
    rollout = random_batch(TWO_SIDES, 40, 40, alive=0.7)
    for name, reward in discriminator.reward(rollout).items():
        group = rollout.groups[name]
        group.env_reward = torch.where(group.mask, 3 * reward + 1, 99.0)
    assert discriminator.report(rollout)["discriminator/reward_correlation"] == pytest.approx(1, abs=1e-4)
    for group in rollout.groups.values():
        group.env_reward = torch.randn_like(group.env_reward)
    assert abs(discriminator.report(rollout)["discriminator/reward_correlation"]) < 0.1


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("airl_discount", [None, 0.9])
def test_a_learned_reward_is_kept_and_used_again(prior, airl_discount, tmp_path):
    if airl_discount and prior is ZeroSum:
        return
    options = {"spectral_norm": True, "inputs": ["obs", "action"]}
    discriminator = make(prior, airl_discount=airl_discount, prior_options=options)
    discriminator.update(random_batch(TWO_SIDES, 8, 8), discriminator_source(), Policy(TWO_SIDES))
    discriminator.save(tmp_path)
    rollout = random_batch(TWO_SIDES, 3, 4)
    learned = LearnedReward(TWO_SIDES, None, None, checkpoint=str(tmp_path), shaping=False, absorbing=False)
    for name, reward in learned.reward(rollout).items():
        torch.testing.assert_close(reward, discriminator.learned_reward(rollout)[name])
    whole = LearnedReward(TWO_SIDES, None, None, checkpoint=str(tmp_path), shaping=None, absorbing=False)
    f = discriminator.prior(rollout.flatten())["wolf"].unflatten(0, (3, 4))
    torch.testing.assert_close(whole.reward(rollout)["wolf"], f * discriminator.prior.sign("wolf"))
    if airl_discount:
        shaped = LearnedReward(TWO_SIDES, None, None, checkpoint=str(tmp_path), shaping=True, absorbing=False)
        torch.testing.assert_close(shaped.reward(rollout)["wolf"], f)
    else:
        with pytest.raises(ValueError, match="only AIRL's reward has a shaping term"):
            LearnedReward(TWO_SIDES, None, None, checkpoint=str(tmp_path), shaping=True, absorbing=False)


@pytest.mark.parametrize("airl_discount", [None, 0.9])
def test_a_learned_reward_of_images_is_kept(airl_discount, tmp_path):
    rollout = random_batch(SIGHTED, 3, 4)
    discriminator = make(Centralized, groups=SIGHTED, airl_discount=airl_discount, prior_options=IMAGES)
    discriminator.save(tmp_path)
    learned = LearnedReward(SIGHTED, None, None, checkpoint=str(tmp_path), shaping=False, absorbing=False)
    for name, reward in learned.reward(rollout).items():
        torch.testing.assert_close(reward, discriminator.learned_reward(rollout)[name])


def test_learned_rewards_that_do_not_fit_are_refused(tmp_path):
    def load(groups, path):
        return LearnedReward(groups, None, None, checkpoint=path, shaping=False, absorbing=False)

    make().save(tmp_path)
    with pytest.raises(ValueError, match=r"reward=learned needs reward\.checkpoint"):
        load(TWO_SIDES, None)
    with pytest.raises(ValueError, match="no learned reward there"):
        load(TWO_SIDES, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="but the environment has"):
        load(groups_of(cow=(1, 4, spaces.Discrete(3))), str(tmp_path))
    with pytest.raises(ValueError, match="do not fit the environment's spaces"):
        load(groups_of(wolf=(2, 7, spaces.Discrete(3)), sheep=(1, 5, spaces.Box(-1.0, 1.0, (2,)))), str(tmp_path))
    (tmp_path / "other.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(ValueError, match="not a reward written by magail"):
        load(TWO_SIDES, str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("prior", [Decentralized, Centralized, Single])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_penalty": 0.1},
        {"gradient_penalty": 0.1, "gradient_penalty_points": "expert"},
        {"loss": losses.wasserstein, "gradient_penalty": 1.0, "gradient_penalty_center": 1.0},
        {"loss": losses.least_squares},
        {"loss": losses.hinge, "prior_options": {"spectral_norm": True, "dropout": 0.1}},
        {"mixup": 0.5, "input_noise": 0.1},
        {"mixup": 0.5, "absorbing": True},
        {"label_smoothing": 0.1, "replay": 2},
        {"prior_options": {"inputs": ["obs", "next_obs"]}},
    ],
    ids=" ".join,
)
def test_it_learns_to_tell_and_rewards_the_expert_more(prior, options):
    torch.manual_seed(0)
    discriminator = make(prior, steps=100, **options)
    rollout = random_batch(TWO_SIDES, 8, 8)
    for group in rollout.groups.values():
        group.obs += 1.0
    demonstrations = source(lambda n: random_batch(TWO_SIDES, n))
    info = discriminator.update(rollout, demonstrations, Policy(TWO_SIDES))
    if options == {}:
        assert info["discriminator/loss"] < math.log(2)
    expert = random_batch(TWO_SIDES, 8, 8)
    for name in rollout.groups:
        assert discriminator.reward(expert)[name].mean() > discriminator.reward(rollout)[name].mean() + 0.3


def test_zero_sum_learns_which_side_is_the_expert():
    """Where the expert always plays action 2 and box action 0.9, the side that does so gains and the other loses."""
    torch.manual_seed(0)

    def expert_batch(n):
        batch = random_batch(TWO_SIDES, n)
        batch.groups["wolf"].action[:] = 2
        batch.groups["sheep"].action[:] = 0.9
        return batch

    demonstrations = source(expert_batch)
    discriminator = make(ZeroSum, steps=200)
    discriminator.update(random_batch(TWO_SIDES, 4, 4), demonstrations, Policy(TWO_SIDES))
    wolves_play_well = expert_batch(64)
    wolves_play_well.groups["sheep"].action[:] = -0.5
    rewarded = discriminator.reward(JointTransition({n: g[None] for n, g in wolves_play_well.groups.items()}))
    assert rewarded["wolf"].mean() > 0.5
    assert rewarded["sheep"].mean() < -0.5


def test_the_dead_do_not_train_the_discriminator():
    """Garbage in dead rows changes nothing: with decentralized inputs every number of an update stays the same."""
    results = []
    for garbage in (0.0, 7.0):
        torch.manual_seed(0)
        discriminator = make(Decentralized)
        rollout = random_batch(TWO_SIDES, 6, 6, alive=0.6)
        for group in rollout.groups.values():
            group.obs[~group.mask] = garbage
        demonstrations = source(lambda n: random_batch(TWO_SIDES, n))
        results.append(discriminator.update(rollout, demonstrations, Policy(TWO_SIDES)))
    assert results[0] == results[1]


def test_environment_reward_stands_in():
    rollout = random_batch(TWO_SIDES, 3, 2)
    stand_in = EnvironmentReward(TWO_SIDES, None, None)
    assert stand_in.reward(rollout)["wolf"] is rollout.groups["wolf"].env_reward
    assert stand_in.update(rollout, None, Policy(TWO_SIDES)) == {}


def test_no_discriminator_gives_no_reward():
    rollout = random_batch(TWO_SIDES, 3, 2)
    rewards_given = NoDiscriminator(TWO_SIDES, None, None).reward(rollout)
    assert (rewards_given["wolf"] == 0).all()
    assert rewards_given["wolf"].shape == (3, 2, 2)


@pytest.mark.parametrize("prior", [Decentralized, Centralized, Single])
def test_potentials_of_those_who_live_pay_nothing_when_another_dies(prior):
    """What f pays more than g along an episode is h of its end less h of its beginning."""
    torch.manual_seed(0)
    f = make(prior, airl_discount=1.0).prior
    steps = random_batch(TWO_SIDES, 5)
    wolves = steps.groups["wolf"]
    for group in steps.groups.values():
        group.terminated.fill_(False)
        group.next_obs[:-1] = group.obs[1:]
    wolves.terminated[1, 0] = True
    wolves.mask[2:, 0] = False
    wolves.obs[2:, 0] = wolves.next_obs[2:, 0] = 0  # next_obs of its last step is what it saw last
    end = replace(steps, groups={name: replace(g, obs=g.next_obs) for name, g in steps.groups.items()})
    paid = (f(steps)["sheep"] - f.g(steps)["sheep"]).sum(0)
    torch.testing.assert_close(paid, f.h(end)["sheep"][-1] - f.h(steps)["sheep"][0])
