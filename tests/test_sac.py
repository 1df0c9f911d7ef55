import math

import pytest
import torch
from gymnasium import spaces

from magail.discriminators.discriminator import NoDiscriminator
from magail.distributions import Categorical
from magail.generators.q_networks import Choices, TwinCritics
from magail.generators.replay import Sequences
from magail.generators.sac import SAC
from magail.rollout import collect
from magail.types import AgentGroup, Seeds
from tests.learning.test_imitation import demonstrations_of, fresh_return
from tests.toy import TWO_SIDES, Matching, Walk, groups_of, random_batch

OPTIONS = {
    "policy": {"hidden_sizes": [32], "activation": "tanh", "share_parameters": False, "box": "squashed"},
    "critic": {"hidden_sizes": [32], "activation": "relu"},
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "temperature_learning_rate": 3e-3,
    "initial_temperature": 0.1,
    "discrete_entropy": 0.1,
    "box_entropy": -1.0,
    "replay_capacity": 20_000,
    "learning_starts": 0,
    "updates_per_step": 0.1,
    "batch_size": 128,
    "n_step": 1,
    "polyak": 0.02,
    "gamma": 0.9,
    "expert_fraction": 0.0,
    "expert_reward": None,
    "absorbing": False,
    "max_grad_norm": 10.0,
    "averaging": 0.9,
}
ONE = groups_of(solo=(1, 3, spaces.Discrete(4)))
FACTORS = groups_of(both=(2, 3, spaces.MultiDiscrete([2, 3])), walker=(1, 2, spaces.Box(-3.0, 1.0, (2,))))


def sac(groups, **changes):
    return SAC(groups, **(OPTIONS | changes))


def env_reward(batch):
    return batch.field("env_reward")


def sequences(steps):
    """Runs ``[B, n]`` that have all been played."""
    return Sequences(steps, torch.ones(steps.batch_shape, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"n_step": 0}, "n_step=0 must be"),
        ({"critic_learning_rate": -1}, "critic_learning_rate=-1 must be"),
        ({"polyak": 1.5}, "polyak=1.5 must be above 0, to 1"),
        ({"polyak": 0.0}, "polyak=0.0 must be above 0"),
        ({"updates_per_step": 0.0}, "updates_per_step=0.0 must be above 0"),
        ({"box_entropy": 5.0}, "box_entropy=5.0 must be"),
        ({"gamma": 1.0, "absorbing": True}, "gamma=1.0 must be"),
        ({"expert_fraction": -0.1}, "expert_fraction=-0.1 must be"),
        ({"discrete_entropy": 2}, "discrete_entropy=2 must be"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=rf"generator\.{message}"):
        sac(TWO_SIDES, **options)


def test_clipped_policies_are_refused():
    with pytest.raises(ValueError, match=r"jump at the bounds.*set it to squashed or beta"):
        sac(TWO_SIDES, policy=OPTIONS["policy"] | {"box": "clipped"})


def test_too_many_combinations_of_actions_are_refused():
    with pytest.raises(ValueError, match="'many' has 4096 combinations"):
        sac(groups_of(many=(1, 2, spaces.MultiDiscrete([64, 64]))))


def test_choices_are_all_combinations_of_a_multidiscrete_action():
    torch.manual_seed(0)
    distribution = Categorical(torch.randn(5, 2, 5), [2, 3])
    choices = Choices(distribution)
    actions = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    expected = torch.stack([distribution.log_prob(a.expand(5, 2, 2)) for a in actions], -1)
    torch.testing.assert_close(choices.log_probs, expected)
    torch.testing.assert_close(choices.entropy(), distribution.entropy())
    critics = TwinCritics(FACTORS, [8], "tanh")
    values = torch.randn(5, 2, 2, 6)
    for m, action in enumerate(actions):
        assert torch.equal(critics.taken("both", values, action.expand(5, 2, 2)), values[..., m])


def test_the_discrete_target_in_closed_form():
    """``r + gamma * sum_a pi(a|s') * (min(Q1, Q2)(s', a) - alpha * log pi(a|s'))``, and nothing but r at the end."""
    torch.manual_seed(0)
    generator = sac(ONE, initial_temperature=0.5)
    batch = random_batch(ONE, 64, 1)
    group = batch.groups["solo"]
    _, targets = generator._targets(sequences(batch), env_reward)
    for row in range(64):
        next_obs = group.next_obs[row, 0, 0]
        log_pi = generator.policy.distributions({"solo": next_obs.reshape(1, 1, 3)})["solo"].log_probs[0].flatten()
        seen = torch.cat([generator.policy.normalize({"solo": next_obs})["solo"], torch.zeros(4)])
        q1, q2 = generator.target_critic.networks["solo"](seen.expand(1, 2, -1))[0]
        value = (log_pi.exp() * (torch.minimum(q1, q2) - 0.5 * log_pi)).sum() * ~group.terminated[row, 0, 0]
        torch.testing.assert_close(targets["solo"][row, 0], group.env_reward[row, 0, 0] + 0.9 * value)


def test_entropies_on_the_way_count_in_n_step_targets():
    """With a constant policy and critics of zero, the target is the discounted rewards and entropies of the run."""
    generator = sac(ONE, n_step=3, initial_temperature=0.5)
    for parameter in [*generator.policy.parameters(), *generator.target_critic.parameters()]:
        parameter.data.zero_()
    batch = random_batch(ONE, 8, 3)
    group = batch.groups["solo"]
    group.terminated.fill_(False)
    group.truncated.fill_(False)
    group.truncated[0, 0] = True  # after one step, with the value of that step's successor
    group.terminated[1, 1] = True  # after two steps, with nothing
    _, targets = generator._targets(sequences(batch), env_reward)
    r, bonus = group.env_reward[..., 0], 0.9 * 0.5 * math.log(4)
    torch.testing.assert_close(targets["solo"][0, 0], r[0, 0] + bonus)
    torch.testing.assert_close(targets["solo"][1, 0], r[1, 0] + bonus + 0.9 * r[1, 1])
    whole = (r[2] + bonus) @ torch.tensor([1, 0.9, 0.81])
    torch.testing.assert_close(targets["solo"][2, 0], whole)


def test_an_absorbing_state_is_worth_its_reward_for_ever():
    """If every step, absorbing ones included, pays c, all is worth c / (1 - gamma), also where an agent terminates."""
    generator = sac(TWO_SIDES, absorbing=True, gamma=0.8)
    batch = random_batch(TWO_SIDES, 40, 1)
    for group in batch.groups.values():
        group.terminated.fill_(True)
    asked = []

    def constant(steps):
        asked.append(steps)
        return {name: torch.full(group.mask.shape, 2.0) for name, group in steps.groups.items()}

    _, targets = generator._targets(sequences(batch), constant)
    for target in targets.values():
        torch.testing.assert_close(target, torch.full_like(target, 2.0 / 0.2))
    absorbing = asked[1].groups["wolf"]
    assert absorbing.mask.all()
    assert not absorbing.obs.any()
    assert not absorbing.log_prob.any()


def test_critics_see_others_actions_and_boxes_their_own():
    torch.manual_seed(0)
    critics = TwinCritics(TWO_SIDES, [8], "tanh")
    batch = random_batch(TWO_SIDES, 6)
    action, alive = batch.field("action"), batch.field("mask")

    def values(action):
        return critics(critics.features(batch.field("obs"), action, alive))

    before = values(action)
    assert before["wolf"].shape == (6, 2, 2, 3)
    assert before["sheep"].shape == (6, 2, 1, 1)
    assert not torch.equal(before["sheep"][:, 0], before["sheep"][:, 1]), "the two critics differ"
    wolf = action["wolf"].clone()
    wolf[:, 0] = (wolf[:, 0] + 1) % 3
    after = values(action | {"wolf": wolf})
    assert torch.equal(after["wolf"][:, :, 0], before["wolf"][:, :, 0]), "a value for each action of its own"
    assert not torch.isclose(after["wolf"][:, :, 1], before["wolf"][:, :, 1]).all(-1).any()
    assert not torch.isclose(after["sheep"], before["sheep"]).any()
    after = values(action | {"sheep": action["sheep"] / 2})
    assert not torch.isclose(after["sheep"], before["sheep"]).any()
    assert not torch.isclose(after["wolf"], before["wolf"]).all(-1).any()


def test_gradients_flow_to_an_agents_own_box_action_alone():
    groups = groups_of(walker=(2, 2, spaces.Box(-1.0, 1.0, (3,))), other=(1, 2, spaces.Box(-1.0, 1.0, (1,))))
    critics = TwinCritics(groups, [8], "tanh")
    batch = random_batch(groups, 6)
    action = {name: x.requires_grad_() for name, x in batch.field("action").items()}
    features = critics.features(batch.field("obs"), action, batch.field("mask"))
    critics(features)["walker"][:, :, 0].sum().backward()
    assert (action["walker"].grad[:, 0] != 0).all()
    assert not action["walker"].grad[:, 1].any()
    assert not action["other"].grad.any()


def test_the_policy_loss_of_discrete_actions_in_closed_form():
    torch.manual_seed(0)
    generator = sac(ONE, initial_temperature=0.5)
    obs = torch.randn(20, 1, 3)
    mask = torch.rand(20, 1) < 0.7
    loss, excess = generator._policy_loss({"solo": obs}, {"solo": mask})
    log_pi = generator.policy.distributions_of_normalized({"solo": obs})["solo"].log_probs[0]
    seen = torch.cat([obs, torch.zeros(20, 1, 4)], -1) * mask.unsqueeze(-1)
    q = generator.critic.networks["solo"](seen.expand(-1, 2, -1)).amin(1, keepdim=True)
    by_row = (log_pi.exp() * (0.5 * log_pi - q)).sum(-1)
    torch.testing.assert_close(loss, by_row[mask].mean())
    entropy = -(log_pi.exp() * log_pi).sum(-1)[mask].mean()
    torch.testing.assert_close(excess["solo"], entropy - 0.1 * math.log(4))


def test_target_entropies_are_in_the_units_of_the_actions():
    generator = sac(FACTORS, discrete_entropy=0.5, box_entropy=-1.0)
    expected = {"both": 0.5 * math.log(6), "walker": 2 * (-1.0 + math.log(2.0))}  # the box is 4 wide instead of 2
    assert generator.target_entropy == pytest.approx(expected, rel=1e-6)


def test_target_critics_follow():
    torch.manual_seed(0)
    generator = sac(TWO_SIDES, polyak=0.25, updates_per_step=1e-9)  # a single gradient step
    before = [x.clone() for x in generator.target_critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, generator.critic.parameters(), strict=True))
    generator.update(random_batch(TWO_SIDES, 10, 4), env_reward)
    moved = 0
    targets, critics = generator.target_critic.parameters(), generator.critic.parameters()
    for start, target, critic in zip(before, targets, critics, strict=True):
        torch.testing.assert_close(target, 0.75 * start + 0.25 * critic)
        moved += not torch.equal(start, target)
    assert moved == 8  # two layers of two groups


@pytest.mark.parametrize("start", [0.2, 2.0])
def test_the_temperature_brings_the_entropy_to_its_target(start):
    """Rewards of 0, -1, -2, -3 and their softmax has half the greatest entropy at a temperature of 0.69."""
    torch.manual_seed(0)
    rates = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2, "temperature_learning_rate": 0.02}
    generator = sac(ONE, discrete_entropy=0.5, initial_temperature=start, gamma=0.0, batch_size=64, **rates)
    batch = random_batch(ONE, 20, 20)

    def likes_low_numbers(steps):
        return {"solo": -steps.groups["solo"].action.squeeze(-1).float()}

    for _ in range(8):
        info = generator.update(batch, likes_low_numbers)
    assert info["generator/entropy"] == pytest.approx(0.5 * math.log(4), abs=0.1)
    assert info["generator/temperature"] == pytest.approx(0.69, abs=0.15)


def test_temperatures_belong_to_groups():
    generator = sac(TWO_SIDES, discrete_entropy=0.0, box_entropy=0.69)
    for _ in range(3):
        generator.update(random_batch(TWO_SIDES, 10, 4), env_reward)
    wolf, sheep = (x.exp().item() for x in generator.log_temperature.values())
    assert wolf < 0.1 < sheep, "the one is more random than it should be, the other less"


def test_it_waits_for_enough_experience():
    generator = sac(TWO_SIDES, learning_starts=100)
    before = {key: x.clone() for key, x in generator.policy.actors.state_dict().items()}
    assert generator.update(random_batch(TWO_SIDES, 10, 6), env_reward) == {}
    assert all(torch.equal(x, before[key]) for key, x in generator.policy.actors.state_dict().items())
    kept = generator.averaged.state_dict()
    assert all(torch.equal(x, kept[key]) for key, x in generator.policy.state_dict().items()), "a clone is kept"
    assert "generator/policy_loss" in generator.update(random_batch(TWO_SIDES, 10, 6), env_reward)


def test_gradient_steps_are_counted_by_environment_steps():
    generator = sac(ONE, updates_per_step=0.05)
    asked = []
    generator.update(random_batch(ONE, 10, 6), lambda steps: asked.append(1) or env_reward(steps))
    assert len(asked) == 3


def test_observations_are_normalised_by_those_of_all_rollouts():
    generator = sac(ONE)
    rollouts = [random_batch(ONE, 10, 6) for _ in range(2)]
    for rollout in rollouts:
        generator.update(rollout, env_reward)
    seen = torch.cat([rollout.groups["solo"].obs.flatten(0, 2) for rollout in rollouts])
    torch.testing.assert_close(generator.policy.normalizers["solo"].mean, seen.mean(0))


def test_gradients_are_cut():
    generator = sac(TWO_SIDES, max_grad_norm=0.0)
    before = [x.clone() for x in [*generator.policy.parameters(), *generator.critic.parameters()]]
    generator.update(random_batch(TWO_SIDES, 10, 6), env_reward)
    after = [*generator.policy.parameters(), *generator.critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_rewards_are_of_the_present():
    """Nothing of an earlier reward function is left: the same steps are rewarded anew each time they are drawn."""
    torch.manual_seed(0)
    generator = sac(ONE, gamma=0.0)
    batch = random_batch(ONE, 20, 20)
    for reward in (5.0, -5.0):
        for _ in range(10):
            info = generator.update(batch, lambda steps, r=reward: {"solo": torch.full((*steps.batch_shape, 1), r)})
        assert info["generator/value_loss"] < 1.0
        assert info["generator/reward_mean"] == pytest.approx(reward)


def test_rewards_see_the_present_policys_log_probabilities():
    torch.manual_seed(0)
    generator = sac(TWO_SIDES, n_step=2)
    rollout = random_batch(TWO_SIDES, 10, 4)

    def check(steps):
        assert steps.batch_shape == (128, 2)
        distributions = generator.policy.distributions(steps.field("obs"))
        for name, group in steps.groups.items():
            torch.testing.assert_close(group.log_prob, distributions[name].log_prob(group.action) * group.mask)
        return env_reward(steps)

    for _ in range(2):
        generator.update(rollout, check)


@pytest.mark.parametrize("share_parameters", [False, True])
def test_what_the_dead_hold_changes_nothing(share_parameters):
    results = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = sac(TWO_SIDES, n_step=2, policy=OPTIONS["policy"] | {"share_parameters": share_parameters})
        generator.policy.fixed.fill_(True)
        rollout = random_batch(TWO_SIDES, 10, 6, alive=0.6)
        for group in rollout.groups.values():
            group.terminated[:-1] |= group.mask[:-1] & ~group.mask[1:]
            group.env_reward[~group.mask] = garbage
            group.obs[~group.mask] = garbage
            group.next_obs[~group.mask] = garbage
        info = generator.update(rollout, env_reward)
        results.append((info, generator.policy.state_dict() | generator.critic.state_dict()))
    (info, state), (info_garbage, state_garbage) = results
    assert info == info_garbage
    assert all(torch.equal(state[key], state_garbage[key]) for key in state)


def test_an_extra_loss_is_minimised_too():
    torch.manual_seed(0)
    generator = sac(TWO_SIDES)
    expert = random_batch(TWO_SIDES, 64)
    expert.groups["wolf"].action[:] = 2
    before = generator.policy.negative_log_likelihood(expert).item()
    rollout = random_batch(TWO_SIDES, 20, 10)
    for _ in range(5):
        generator.update(rollout, env_reward, 0.0, lambda: generator.policy.negative_log_likelihood(expert))
    assert generator.policy.negative_log_likelihood(expert).item() < before - 0.1


def test_every_kind_of_space_learns():
    generator = sac(FACTORS, n_step=2)
    batch = random_batch(groups_of(both=(2, 3, spaces.Discrete(2)), walker=(1, 2, spaces.Box(-3.0, 1.0, (2,)))), 10, 6)
    batch.groups["both"].action = torch.randint(2, (10, 6, 2, 2))
    info = generator.update(batch, env_reward)
    assert all(math.isfinite(x) for x in info.values())


def test_critics_look_at_images_through_convolutions():
    torch.manual_seed(0)
    image = AgentGroup("eye", ("eye_0", "eye_1"), spaces.Box(0.0, 1.0, (3, 8, 8)), spaces.Discrete(2))
    encoded = {"encoder": "auto", "channels": [4, 4]}
    generator = sac([image], policy=OPTIONS["policy"] | encoded, critic=OPTIONS["critic"] | encoded)
    before = {key: x.clone() for key, x in generator.critic.state_dict().items()}
    generator.update(random_batch((image,), 10, 6), env_reward)
    convolutions = {key: x for key, x in generator.critic.state_dict().items() if key.startswith("encoders")}
    assert convolutions
    assert not any(torch.equal(x, before[key]) for key, x in convolutions.items())


def test_demonstrations_are_needed_for_a_share_of_them():
    with pytest.raises(ValueError, match=r"expert_fraction takes a share .* set demonstrations\.count"):
        sac(ONE, expert_fraction=0.5).update(random_batch(ONE, 10, 4), env_reward)


def test_a_share_of_each_batch_is_demonstrations():
    env = Matching(num_envs=4)
    demonstrations = demonstrations_of(env, 3)
    demonstrated = demonstrations.transitions.groups["player"]
    demonstrated.obs.add_(100)  # to tell them apart
    generator = sac(env.groups, expert_fraction=0.25, n_step=2)
    seen = []

    def keep(steps):
        seen.append(steps.groups["player"])
        return env_reward(steps)

    generator.update(random_batch(env.groups, 10, 4), keep, demonstrations=demonstrations)
    expert = seen[0].obs > 50
    assert not expert[:96].any()
    assert expert[96:].all()

    generator.expert_reward = 7.0
    rewards = generator._with_expert_reward(env_reward(generator._sample().steps))["player"]
    assert (rewards[96:] == 7).all()
    assert not (rewards[:96] == 7).any()


def test_it_goes_on_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    env = Matching()
    demonstrations = demonstrations_of(env, 3)
    options = {"expert_fraction": 0.25, "n_step": 2}
    generator, again = sac(env.groups, **options), sac(env.groups, **options)
    rollouts = [random_batch(env.groups, 10, 6) for _ in range(3)]
    for rollout in rollouts[:2]:
        generator.update(rollout, env_reward, demonstrations=demonstrations)
    torch.save(generator.state_dict(), tmp_path / "generator.pt")
    again.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True))
    infos = []
    for each in (generator, again):
        torch.manual_seed(1)
        infos.append(each.update(rollouts[2], env_reward, demonstrations=demonstrations))
    assert infos[0] == infos[1]
    assert torch.equal(generator.log_temperature["player"], again.log_temperature["player"])
    for part in ("policy", "averaged", "critic", "target_critic"):
        state, state_again = getattr(generator, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(x, state_again[key]) for key, x in state.items())


def test_rates_are_those_of_whoever_goes_on():
    state = sac(TWO_SIDES, learning_rate=1e-3, critic_learning_rate=2e-3).state_dict()
    again = sac(TWO_SIDES, learning_rate=1e-4, critic_learning_rate=0.0)
    again.load_state_dict(state)
    assert [group["lr"] for group in again.optimizer.param_groups][:2] == [1e-4, 0.0]


def test_learning_starts_when_no_more_can_be_kept():
    """Of 40 steps of 6 copies 36 are kept."""
    generator = sac(TWO_SIDES, replay_capacity=40, learning_starts=40)
    infos = [generator.update(random_batch(TWO_SIDES, 3, 6), env_reward) for _ in range(2)]
    assert [bool(info) for info in infos] == [False, True]
    with pytest.raises(ValueError, match=r"learning_starts=41 is more than generator\.replay_capacity=40"):
        sac(TWO_SIDES, replay_capacity=40, learning_starts=41)


def train(env, generator, reward, iterations, demonstrations=None):
    for _ in range(iterations):
        rollout, info = collect(env, generator.policy, 10)
        if demonstrations is not None:
            for group in rollout.groups.values():
                group.env_reward.fill_(float("nan"))  # imitation must not look
        generator.update(rollout, reward, demonstrations=demonstrations)
    return info["train/return"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("task", "options", "floor"),
    [
        (Matching, {}, 9.5),  # of 10; chance is 2.5
        (Matching, {"n_step": 3, "policy": OPTIONS["policy"] | {"share_parameters": True}}, 9.5),
        (Walk, {}, -3.0),  # the best is about -0.6, chance about -14
        (Walk, {"n_step": 3, "policy": OPTIONS["policy"] | {"box": "beta"}}, -3.0),
    ],
)
def test_it_solves_the_toys(task, options, floor, seed):
    torch.manual_seed(seed)
    env = task()
    env.reset(Seeds(0))
    assert train(env, sac(env.groups, **options), env_reward, 10) > floor


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("task", "floor"), [(Matching, 9.0), (Walk, -3.0)])
def test_sqil_imitates(task, floor, seed):
    torch.manual_seed(seed)
    env = task()
    demonstrations = demonstrations_of(env, 20)
    for group in demonstrations.transitions.groups.values():
        group.env_reward.fill_(float("nan"))
    generator = sac(env.groups, expert_fraction=0.5, expert_reward=1.0)
    generator.policy.fit_normalizer(demonstrations.transitions)
    env.reset(Seeds(seed))
    train(env, generator, NoDiscriminator(env.groups, None, None).reward, 12, demonstrations)
    assert fresh_return(env, generator.policy) > floor
