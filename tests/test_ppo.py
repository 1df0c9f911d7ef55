import pytest
import torch

from magail.generators.ppo import PPO
from magail.rollout import collect
from magail.types import Seeds
from tests.toy import TWO_SIDES, Matching, Walk, random_batch

OPTIONS = {
    "policy": {"hidden_sizes": [32], "activation": "tanh", "share_parameters": False},
    "critic": {"hidden_sizes": [32], "activation": "tanh", "value_horizon": 1e5},
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "final_learning_rate_fraction": 1.0,
    "epochs": 4,
    "minibatch_size": 160,
    "clip_range": 0.2,
    "target_kl": None,
    "gamma": 0.9,
    "gae_lambda": 0.9,
    "entropy_coefficient": 0.0,
    "max_grad_norm": 10.0,
    "absorbing": False,
    "averaging": 0.9,
}


def ppo(groups, **changes):
    return PPO(groups, **(OPTIONS | changes))


def played(generator, *shape, alive=1.0):
    """Random transitions whose log-probabilities are the policy's own."""
    rollout = random_batch(TWO_SIDES, *shape, alive=alive)
    with torch.no_grad():
        distributions = generator.policy.distributions(rollout.field("obs"))
        for name, group in rollout.groups.items():
            group.log_prob = distributions[name].log_prob(group.action) * group.mask
    return rollout


@pytest.mark.parametrize(("option", "value"), [("epochs", 0), ("gamma", 1.1), ("averaging", 1.0), ("clip_range", -1)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"generator\.{option}={value} must be"):
        ppo(TWO_SIDES, **{option: value})
    with pytest.raises(ValueError, match=r"generator\.gamma=1.0 must be"):
        ppo(TWO_SIDES, gamma=1.0, absorbing=True)


def test_an_absorbing_state_is_worth_its_reward_for_ever():
    """Where every step pays c, absorbing ones too, all is worth c / (1 - gamma), also where an agent terminates."""
    generator = ppo(TWO_SIDES, absorbing=True, gamma=0.8, gae_lambda=1.0)
    rollout = played(generator, 5, 8)
    for group in rollout.groups.values():
        group.truncated.fill_(False)
        group.terminated.fill_(False)
        group.terminated[4] = True
    asked = []

    def constant(steps):
        asked.append(steps)
        return {name: torch.full(group.mask.shape, 2.0) for name, group in steps.groups.items()}

    rewards = generator._with_afterlife(constant(rollout), rollout, constant)
    assert not asked[1].groups["wolf"].obs.any()
    discounts = 0.8 ** torch.arange(5.0)
    for reward in rewards.values():
        returns = torch.einsum("t,tea->ea", discounts, reward)
        torch.testing.assert_close(returns, torch.full_like(returns, 2.0 / 0.2))
    before = generator.update(rollout, constant)["generator/reward_mean"]
    assert before == 2  # what is logged is a step's


def test_the_better_action_becomes_likelier():
    torch.manual_seed(0)
    generator = ppo(TWO_SIDES, epochs=20)
    rollout = played(generator, 20, 10)
    obs = rollout.field("obs")
    before = generator.policy.distributions(obs)["wolf"].log_probs[0].exp()[..., 1].mean()

    def likes_action_one(batch):
        return {"wolf": (batch.groups["wolf"].action.squeeze(-1) == 1).float(), "sheep": torch.zeros(20, 10, 1)}

    info = generator.update(rollout, likes_action_one)
    after = generator.policy.distributions(obs)["wolf"].log_probs[0].exp()[..., 1].mean()
    assert after > before + 0.05
    assert info["generator/reward_mean"] == pytest.approx((rollout.groups["wolf"].action == 1).float().mean() * 2 / 3)


def test_the_first_step_has_ratio_one():
    generator = ppo(TWO_SIDES, epochs=1, minibatch_size=10_000)
    info = generator.update(played(generator, 20, 10), lambda r: r.field("env_reward"))
    assert info["generator/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert info["generator/clip_fraction"] == 0
    assert info["generator/policy_loss"] == pytest.approx(0, abs=1e-5), "normalised advantages have mean zero"


@pytest.mark.parametrize("share_parameters", [False, True])
def test_what_the_dead_hold_changes_nothing(share_parameters):
    results = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = ppo(TWO_SIDES, policy=OPTIONS["policy"] | {"share_parameters": share_parameters})
        rollout = played(generator, 10, 6, alive=0.6)
        for group in rollout.groups.values():
            group.env_reward[~group.mask] = garbage
            group.action[~group.mask] = 0
        info = generator.update(rollout, lambda r: r.field("env_reward"))
        results.append((info, generator.policy.state_dict()))
    (info, state), (info_garbage, state_garbage) = results
    assert info == info_garbage
    assert all(torch.equal(state[key], state_garbage[key]) for key in state)


def test_target_kl_stops_the_epochs():
    def kl(target):
        torch.manual_seed(0)
        generator = ppo(TWO_SIDES, epochs=50, learning_rate=3e-2, target_kl=target)
        return generator.update(played(generator, 20, 10), lambda r: r.field("env_reward"))["generator/approx_kl"]

    assert kl(0.01) < kl(None)


def test_learning_rates_fall_linearly():
    generator = ppo(TWO_SIDES, final_learning_rate_fraction=0.1)
    for progress, fraction in ((0.0, 1.0), (0.5, 0.55), (1.0, 0.1)):
        generator.update(played(generator, 4, 4), lambda r: r.field("env_reward"), progress)
        assert [g["lr"] for g in generator.optimizer.param_groups] == pytest.approx([3e-3 * fraction] * 2)


def test_an_extra_loss_is_minimised_too():
    torch.manual_seed(0)
    generator = ppo(TWO_SIDES)
    expert = random_batch(TWO_SIDES, 64)
    expert.groups["wolf"].action[:] = 2
    before = generator.policy.negative_log_likelihood(expert).item()
    zero = {g.name: torch.zeros(20, 10, g.num_agents) for g in TWO_SIDES}
    rollout = played(generator, 20, 10)
    for _ in range(5):
        generator.update(rollout, lambda r: zero, 0.0, lambda: generator.policy.negative_log_likelihood(expert))
    assert generator.policy.negative_log_likelihood(expert).item() < before - 0.1


def test_the_policy_kept_averages_the_iterates():
    torch.manual_seed(0)
    generator = ppo(TWO_SIDES, averaging=0.6)
    name = "actors.wolf.mlp.layers.0.weight"
    assert torch.equal(generator.averaged.state_dict()[name], generator.policy.state_dict()[name]), "a clone is kept"
    iterates, expected = [], None
    for k in range(4):
        generator.update(played(generator, 10, 4), lambda r: r.field("env_reward"))
        iterates.append(generator.policy.state_dict()[name].clone())
        keep = min(0.6, k / (k + 1))
        expected = iterates[0] if k == 0 else keep * expected + (1 - keep) * iterates[-1]
    torch.testing.assert_close(generator.averaged.state_dict()[name], expected)
    again = ppo(TWO_SIDES, averaging=0.6)
    again.load_state_dict(generator.state_dict())
    assert torch.equal(again.averaged.state_dict()[name], generator.averaged.state_dict()[name])
    assert torch.equal(again.policy.state_dict()[name], generator.policy.state_dict()[name])


def returns_after(env, generator, iterations, steps=10):
    env.reset(Seeds(0))
    for _ in range(iterations):
        rollout, info = collect(env, generator.policy, steps)
        generator.update(rollout, lambda r: r.field("env_reward"))
    return info["train/return"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share_parameters", [False, True])
def test_it_solves_the_matrix_game(seed, share_parameters):
    torch.manual_seed(seed)
    env = Matching()
    generator = ppo(env.groups, policy=OPTIONS["policy"] | {"share_parameters": share_parameters})
    assert returns_after(env, generator, 40) > 9.5  # of 10; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
def test_it_solves_the_walk(seed):
    torch.manual_seed(seed)
    env = Walk()
    assert returns_after(env, ppo(env.groups), 60) > -3.0  # the best is about -0.6, chance about -14


def test_who_died_is_not_there_in_what_follows():
    """The value of a successor is that of the next step's observations, in which the dead are zeros."""
    generator = ppo(TWO_SIDES)
    rollout = random_batch(TWO_SIDES, 2, 4)
    for group in rollout.groups.values():
        group.terminated.fill_(False)
        group.next_obs[0] = group.obs[1]
    wolves = rollout.groups["wolf"]
    wolves.terminated[0, :, 0], wolves.mask[1, :, 0] = True, False
    wolves.obs[1, :, 0] = 0  # where next_obs has the last observation
    values, next_values = generator._values(rollout, generator.policy.normalize(rollout.field("obs")), {})
    torch.testing.assert_close(next_values["sheep"][0], values["sheep"][1])
    torch.testing.assert_close(next_values["wolf"][0, :, 1:], values["wolf"][1, :, 1:])
