import functools
import math

import pytest
import torch
from gymnasium import spaces

from magail.discriminators import rewards
from magail.discriminators.discriminator import Discriminator, EnvironmentReward
from magail.discriminators.losses import bce, gradient_penalty
from magail.discriminators.priors import Centralized, Decentralized, Prior, Single, ZeroSum
from magail.policy import Policy
from magail.types import JointTransition
from tests.toy import TWO_SIDES, groups_of, random_batch

SIZES = {"hidden_sizes": [16], "activation": "relu"}
PRIORS = [Decentralized, Centralized, Single, ZeroSum]


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


def make(prior=Decentralized, loss=bce, reward=rewards.logit, demonstrations=None, **options):
    class Demonstrations:
        transitions = random_batch(TWO_SIDES, 64)

        def sample(self, batch_size):
            return self.transitions[torch.randint(64, (batch_size,))]

    defaults = {
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "steps": 3,
        "batch_size": 32,
        "gradient_penalty": 0.0,
        "gradient_penalty_center": 0.0,
    }
    demonstrations = demonstrations or Demonstrations()
    build = functools.partial(prior, **SIZES)
    return Discriminator(TWO_SIDES, demonstrations, None, prior=build, loss=loss, reward=reward, **(defaults | options))


def test_zero_sum_rewards_sum_to_zero_over_the_sides():
    for reward in (rewards.logit, rewards.softplus, rewards.symmetric):
        got = make(ZeroSum, reward=reward).reward(random_batch(TWO_SIDES, 4, 3))
        assert (got["wolf"] != 0).any()
        for wolf in range(2):
            torch.testing.assert_close(got["wolf"][..., wolf] + got["sheep"][..., 0], torch.zeros(4, 3))


def test_zero_sum_trains_on_expert_states_with_one_sides_actions_swapped():
    generated, expert = random_batch(TWO_SIDES, 64), random_batch(TWO_SIDES, 64)
    policy = Policy(TWO_SIDES)
    (first, one), (even, half), (second, zero) = ZeroSum(TWO_SIDES, **SIZES).labelled(generated, expert, policy)
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


def test_bce_in_closed_form():
    for logit, target in ((0.7, 1.0), (0.7, 0.0), (-2.0, 0.5)):
        d = 1 / (1 + math.exp(-logit))
        expected = -(target * math.log(d) + (1 - target) * math.log(1 - d))
        assert bce(torch.tensor(logit), target).item() == pytest.approx(expected, rel=1e-5)
    assert bce(torch.tensor(3.0), 1.0) < bce(torch.tensor(-3.0), 1.0), "high logits are the expert's"


def test_rewards_in_closed_form_and_higher_for_the_expert():
    for logit in (-2.0, 0.0, 1.5):
        d = 1 / (1 + math.exp(-logit))
        x = torch.tensor(logit)
        assert rewards.logit(x).item() == pytest.approx(math.log(d) - math.log(1 - d), abs=1e-6)
        assert rewards.log_d(x).item() == pytest.approx(math.log(d), rel=1e-5)
        assert rewards.softplus(x).item() == pytest.approx(-math.log(1 - d), rel=1e-5)
        assert rewards.symmetric(x).item() == pytest.approx(2 * d - 1, abs=1e-6)
    for reward in (rewards.logit, rewards.log_d, rewards.softplus, rewards.symmetric):
        assert reward(torch.tensor(1.0)) > reward(torch.tensor(-1.0))


class Quadratic(Prior):
    """Logits x' diag(k) x / 2 for head k: the gradient of head k is k x."""

    def raw_logits(self, features):
        squares = features["joint"].square().sum(-1, keepdim=True) / 2
        return {"joint": torch.cat([squares, 3 * squares], -1)}


def test_gradient_penalty_of_a_quadratic():
    """||gradient|| is k ||x||, for every head, network and row; with both ends equal the points are known."""
    x = torch.randn(16, 2, 5)
    norms = x.norm(dim=-1)
    penalty = functools.partial(gradient_penalty, Quadratic(TWO_SIDES), {"joint": x}, {"joint": x})
    expected = (norms.square().mean() + (3 * norms).square().mean()) / 2
    torch.testing.assert_close(penalty(center=0.0), expected)
    expected = ((norms - 1).square().mean() + (3 * norms - 1).square().mean()) / 2
    torch.testing.assert_close(penalty(center=1.0), expected)


def test_gradient_penalty_points_lie_between_both_sides():
    seen = {}

    class Spy(Quadratic):
        def raw_logits(self, features):
            seen.update(features)
            return super().raw_logits(features)

    gradient_penalty(Spy(TWO_SIDES), {"joint": torch.zeros(500, 2, 3)}, {"joint": torch.ones(500, 2, 3)})
    points = seen["joint"]
    assert (points == points[:, :1, :1]).all(), "one mixing weight a row"
    assert points.min() >= 0
    assert points.max() <= 1
    assert points.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("prior", [Decentralized, Centralized, Single])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_it_learns_to_tell_and_rewards_the_expert_more(prior, penalty):
    torch.manual_seed(0)
    discriminator = make(prior, steps=100, gradient_penalty=penalty)
    rollout = random_batch(TWO_SIDES, 8, 8)
    for group in rollout.groups.values():
        group.obs += 1.0
    demonstrations = type("D", (), {"sample": lambda self, n: random_batch(TWO_SIDES, n)})()
    info = discriminator.update(rollout, demonstrations, Policy(TWO_SIDES))
    assert info["discriminator/loss"] < math.log(2)
    expert = random_batch(TWO_SIDES, 8, 8)
    for name in rollout.groups:
        assert discriminator.reward(expert)[name].mean() > discriminator.reward(rollout)[name].mean()
        assert discriminator.reward(rollout)[name].mean() < 0


def test_zero_sum_learns_which_side_is_the_expert():
    """Where the expert always plays action 2 and box action 0.9, the side that does so gains and the other loses."""
    torch.manual_seed(0)

    def expert_batch(n):
        batch = random_batch(TWO_SIDES, n)
        batch.groups["wolf"].action[:] = 2
        batch.groups["sheep"].action[:] = 0.9
        return batch

    demonstrations = type("D", (), {"sample": lambda self, n: expert_batch(n)})()
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
        demonstrations = type("D", (), {"sample": lambda self, n: random_batch(TWO_SIDES, n)})()
        results.append(discriminator.update(rollout, demonstrations, Policy(TWO_SIDES)))
    assert results[0] == results[1]


def test_environment_reward_stands_in():
    rollout = random_batch(TWO_SIDES, 3, 2)
    stand_in = EnvironmentReward(TWO_SIDES, None, None)
    assert stand_in.reward(rollout)["wolf"] is rollout.groups["wolf"].env_reward
    assert stand_in.update(rollout, None, Policy(TWO_SIDES)) == {}
