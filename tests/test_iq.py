import math

import pytest
import torch
from gymnasium import spaces

from magail import checkpoint
from magail.generators.iq import IQLearn, Values, iq_loss
from magail.rollout import collect
from magail.types import JointTransition, Seeds, Transition
from tests.learning.test_imitation import demonstrations_of, fresh_return
from tests.toy import TWO_SIDES, Matching, Walk, groups_of, random_batch

OPTIONS = {
    "policy": {"hidden_sizes": [32], "activation": "tanh", "share_parameters": False, "box": "squashed"},
    "q_network": {"hidden_sizes": [32], "activation": "relu"},
    "mixing": "none",
    "mixer": {"hidden_sizes": [32], "activation": "relu"},
    "temperature": 0.05,
    "beta": 0.5,
    "gamma": 0.9,
    "polyak": None,
    "expert_fraction": 0.5,
    "replay_capacity": 20_000,
    "steps": 10,
    "batch_size": 128,
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "weight_decay": 0.0,
    "max_grad_norm": 10.0,
    "averaging": 0.5,
}
ONE_AGENT = groups_of(walker=(1, 2, spaces.Discrete(2)))
FACTORS = groups_of(wolf=(2, 4, spaces.MultiDiscrete([2, 3])))


def iq(groups, **changes):
    return IQLearn(groups, **(OPTIONS | changes))


def no_reward(batch):
    raise AssertionError("IQ-Learn asked for rewards")


class Steps:
    """Stands in for demonstrations: any transitions ``[S]``."""

    def __init__(self, transitions):
        self.transitions = transitions

    def sample(self, size):
        return self.transitions.sample(size)


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", 0.0), ("beta", 0.0), ("gamma", 1.1), ("polyak", 2.0), ("expert_fraction", 0.0), ("steps", 0)],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"generator\.{option}={value} must be"):
        iq(TWO_SIDES, **{option: value})


def test_an_unknown_mixing_is_refused():
    with pytest.raises(ValueError, match=r"generator\.mixing=max must be one of none, linear"):
        iq(TWO_SIDES, mixing="max")


def test_clipped_policies_are_refused():
    with pytest.raises(ValueError, match=r"jump at the bounds.*set it to squashed or beta"):
        iq(TWO_SIDES, policy=OPTIONS["policy"] | {"box": "clipped"})


def test_without_demonstrations_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"set demonstrations\.count"):
        iq(TWO_SIDES).update(random_batch(TWO_SIDES, 5, 4), no_reward)


def test_the_loss_by_hand():
    """Two expert rows and one own, one agent; the third agent-row is dead and counts nowhere."""
    values = Values(
        q=torch.tensor([[1.0], [3.0], [2.0], [9.0]]),
        value=torch.tensor([[2.0], [4.0], [1.0], [9.0]]),
        next_value=torch.tensor([[2.0], [0.0], [4.0], [9.0]]),
        mask=torch.tensor([[True], [True], [True], [False]]),
    )
    # rewards 0, 3, 0; falls of the value 1, 4, -1
    expected = -(0 + 3) / 2 + (1 + 4 - 1) / 3 + (0 + 9 + 0) / 3 / (4 * 0.75)
    assert iq_loss(values, 2, gamma=0.5, beta=0.75).item() == pytest.approx(expected)


def test_of_demonstrations_alone_it_is_cloning_and_the_penalty():
    """``-r + V - gamma V' = V - Q = -alpha log pi(a|s)``, whatever happens next."""
    torch.manual_seed(0)
    generator = iq(ONE_AGENT, beta=0.3)
    batch = random_batch(ONE_AGENT, 50)
    values = generator.values(batch)
    cloning = OPTIONS["temperature"] * generator.policy.negative_log_likelihood(batch)
    penalty = values.reward(0.9).square().mean() / (4 * 0.3)
    torch.testing.assert_close(iq_loss(values, 50, 0.9, 0.3), cloning + penalty)


def test_the_policy_is_the_softmax_of_q_and_the_value_its_soft_maximum():
    torch.manual_seed(0)
    generator = iq(FACTORS)
    batch = random_batch(groups_of(wolf=(2, 4, spaces.Discrete(2))), 20)
    group = batch.groups["wolf"]
    all_q = []
    for first in range(2):
        for second in range(3):
            group.action = torch.tensor([first, second]).expand(20, 2, 2)
            values = generator.values(batch)
            log_prob = generator.policy.distributions(batch.field("obs"))["wolf"].log_prob(group.action)
            torch.testing.assert_close((values.q - values.value) / OPTIONS["temperature"], log_prob)
            all_q.append(values.q)
    soft_maximum = OPTIONS["temperature"] * (torch.stack(all_q) / OPTIONS["temperature"]).logsumexp(0)
    torch.testing.assert_close(values.value, soft_maximum)
    obs = generator.policy.normalize(batch.field("obs"))
    torch.testing.assert_close(generator.soft_q.value(obs, batch.field("mask")), soft_maximum)
    assert values.value.std() > 0


def test_termination_has_no_value_after_it_and_truncation_has():
    torch.manual_seed(0)
    generator = iq(TWO_SIDES)
    batch = random_batch(TWO_SIDES, 200)
    next_value = generator.values(batch).next_value
    terminated, truncated = (
        torch.cat([getattr(g, key) for g in batch.groups.values()], -1) for key in ("terminated", "truncated")
    )
    assert (next_value[terminated] == 0).all()
    assert (next_value[truncated & ~terminated] != 0).all()
    assert (truncated & ~terminated).any()


def test_a_box_agents_value_is_the_mean_of_q_and_entropy_over_its_actions():
    torch.manual_seed(0)
    generator = iq(TWO_SIDES, temperature=0.5)
    obs = {name: x[:1] for name, x in random_batch(TWO_SIDES, 1).field("obs").items()}
    many = {name: x.expand(20_000, -1, -1) for name, x in obs.items()}
    alive = {name: torch.ones(x.shape[:-1], dtype=torch.bool) for name, x in many.items()}
    with torch.no_grad():
        estimates = generator.soft_q.value(many, alive)[:, 2]
        distribution = generator.policy.actors["sheep"](many["sheep"])
        q = generator.soft_q.critics["sheep"](many["sheep"], distribution.sample())
    expected = q.mean() + 0.5 * distribution.entropy().mean()
    assert estimates.mean().item() == pytest.approx(expected.item(), abs=0.02)


def test_the_actor_of_a_box_comes_to_the_softmax_of_q():
    """``Q = -a^2 / 2``: its softmax at temperature 0.02 is nearly a Gaussian of variance 0.02 at 0."""
    torch.manual_seed(0)
    groups = groups_of(walker=(1, 1, spaces.Box(-1.0, 1.0, (1,))))
    generator = iq(groups, temperature=0.02)

    class Bowl(torch.nn.Module):
        def forward(self, obs, action):
            return -action.squeeze(-1).square() / 2

    generator.soft_q.critics["walker"] = Bowl()
    obs, alive = {"walker": torch.zeros(256, 1, 1)}, {"walker": torch.ones(256, 1, dtype=torch.bool)}
    for _ in range(500):
        generator.optimizer.zero_grad()
        generator.soft_q.policy_loss(obs, alive).backward()
        generator.optimizer.step()
    actions = generator.policy.actors["walker"](obs["walker"]).sample()
    assert actions.mean().item() == pytest.approx(0.0, abs=0.05)
    assert actions.std().item() == pytest.approx(math.sqrt(0.02), rel=0.25)


def tabular(states, actions, next_states):
    """Steps of one agent that sees which of two states it is in."""
    one_hot = torch.eye(2)
    flags = torch.zeros(len(states), 1, dtype=torch.bool)
    group = Transition(
        obs=one_hot[states].unsqueeze(1),
        action=torch.tensor(actions).reshape(-1, 1, 1),
        next_obs=one_hot[next_states].unsqueeze(1),
        terminated=flags,
        truncated=flags,
        mask=~flags,
        log_prob=torch.zeros(len(states), 1),
        env_reward=torch.full((len(states), 1), math.nan),
    )
    return JointTransition({"walker": group})


@pytest.mark.parametrize("polyak", [None, 0.05])
def test_the_reward_recovered_prefers_the_experts_actions(polyak):
    """Action 1 changes the state, as the expert always does, and 0 stays."""
    torch.manual_seed(0)
    generator = iq(ONE_AGENT, steps=200, polyak=polyak, temperature=0.1)
    expert = tabular([0, 1], [1, 1], [1, 0])
    everything = tabular([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0])
    generator.update(everything.map(lambda x: x.unsqueeze(1)), no_reward, demonstrations=Steps(expert))
    with torch.no_grad():
        stay_0, go_1, stay_1, go_0 = generator.values(everything).reward(0.9).flatten().tolist()
    assert min(go_0, go_1) > max(stay_0, stay_1) + 0.1
    policy = generator.policy.distributions(everything.field("obs"))["walker"]
    probs = policy.log_prob(everything.groups["walker"].action).exp().flatten()
    assert min(probs[1], probs[3]) > 0.85


def test_weights_of_the_mixing_are_positive_sum_to_the_living_and_leave_nobody_out():
    torch.manual_seed(0)
    generator = iq(TWO_SIDES, mixing="linear")
    batch = random_batch(TWO_SIDES, 100, alive=0.7)
    alive = batch.field("mask")
    living = torch.cat(list(alive.values()), -1)
    start, _ = generator.soft_q.mixer(batch.field("obs"), alive)
    torch.testing.assert_close(start, living.float(), atol=0.1, rtol=0)
    for parameter in generator.soft_q.mixer.parameters():
        parameter.data += torch.randn_like(parameter)
    weights, bias = generator.soft_q.mixer(batch.field("obs"), alive)
    assert weights[living].std() > 0.1
    assert (weights[living] >= 0.5).all()
    assert (weights[~living] == 0).all()
    torch.testing.assert_close(weights.sum(-1), living.sum(-1).float())
    alone = iq(TWO_SIDES)
    alone.policy.load_state_dict(generator.policy.state_dict())
    alone.soft_q.load_state_dict({k: v for k, v in generator.soft_q.state_dict().items() if "mixer" not in k})
    with torch.no_grad():
        mixed, each = generator.values(batch), alone.values(batch)
    somebody = living.any(-1, keepdim=True)
    torch.testing.assert_close(mixed.mask, somebody)
    torch.testing.assert_close(mixed.q, ((weights * each.q).sum(-1, keepdim=True) + bias) * somebody)


def test_one_agent_has_nothing_to_mix():
    trained = []
    for mixing in ("none", "linear"):
        torch.manual_seed(0)
        generator = iq(ONE_AGENT, mixing=mixing)
        info = generator.update(
            random_batch(ONE_AGENT, 10, 8), no_reward, demonstrations=Steps(random_batch(ONE_AGENT, 50))
        )
        trained.append((info, generator.policy.state_dict()))
    (info, state), (info_mixed, state_mixed) = trained
    assert info == info_mixed
    assert all(torch.equal(x, state_mixed[key]) for key, x in state.items())


@pytest.mark.parametrize("mixing", ["none", "linear"])
def test_what_the_dead_hold_and_the_environments_reward_change_nothing(mixing):
    states = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = iq(TWO_SIDES, mixing=mixing, steps=3)
        rollout, expert = random_batch(TWO_SIDES, 10, 6, alive=0.6), random_batch(TWO_SIDES, 50, alive=0.6)
        for group in (*rollout.groups.values(), *expert.groups.values()):
            group.obs[~group.mask] = garbage
            group.next_obs[~group.mask] = garbage
            group.env_reward.fill_(garbage or math.nan)
        info = generator.update(rollout, no_reward, demonstrations=Steps(expert))
        states.append((info, generator.policy.state_dict()))
    (info, state), (info_garbage, state_garbage) = states
    assert info == pytest.approx(info_garbage, rel=1e-4)
    for key in state:
        torch.testing.assert_close(state[key], state_garbage[key])


def test_offline_own_steps_change_nothing():
    states = []
    for shift in (0.0, 3.0):
        torch.manual_seed(0)
        generator = iq(TWO_SIDES, expert_fraction=1.0)
        expert, rollout = random_batch(TWO_SIDES, 50), random_batch(TWO_SIDES, 10, 6)
        generator.policy.fit_normalizer(expert)
        rollout.groups["wolf"].obs += shift
        generator.update(rollout, no_reward, demonstrations=Steps(expert))
        states.append(generator.policy.state_dict())
        assert len(generator.replay) == 0
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())


def test_an_extra_loss_is_minimised_too():
    losses = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        generator = iq(TWO_SIDES)
        other = random_batch(TWO_SIDES, 64)
        other.groups["wolf"].action[:] = 2
        other.groups["sheep"].action[:] = 0.5

        def extra(generator=generator, other=other, weight=weight):
            return weight * generator.policy.negative_log_likelihood(other)

        for _ in range(5):
            expert = Steps(random_batch(TWO_SIDES, 64))
            generator.update(random_batch(TWO_SIDES, 10, 10), no_reward, 0.0, extra, expert)
        losses.append(
            [
                -generator.policy.distributions(other.field("obs"))[n].log_prob(g.action).mean().item()
                for n, g in other.groups.items()
            ]
        )
    assert all(pulled < free - 0.1 for free, pulled in zip(*losses, strict=True))


def trained(env, generator, demonstrations, iterations):
    env.reset(Seeds(0))
    for _ in range(iterations):
        rollout, _ = collect(env, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(math.nan)  # imitation must not look
        info = generator.update(rollout, no_reward, demonstrations=demonstrations)
    return info


FORMS = {
    "independent": {},
    "mixed": {"mixing": "linear"},
    "target network": {"polyak": 0.05},
    "offline": {"expert_fraction": 1.0},
    "offline, mixed": {"expert_fraction": 1.0, "mixing": "linear"},
    "shared parameters": {"policy": OPTIONS["policy"] | {"share_parameters": True}},
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_it_imitates_in_the_matrix_game(form, seed):
    torch.manual_seed(seed)
    env = Matching()
    demonstrations = demonstrations_of(env, 20)
    generator = iq(env.groups, **FORMS[form])
    generator.policy.fit_normalizer(demonstrations.transitions)
    trained(env, generator, demonstrations, 20)
    assert fresh_return(env, generator.averaged) > 9.0  # of 10; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", ["independent", "target network", "offline", "shared parameters"])
def test_it_imitates_the_walk(form, seed):
    torch.manual_seed(seed)
    env = Walk()
    demonstrations = demonstrations_of(env, 20)
    generator = iq(env.groups, **FORMS[form])
    generator.policy.fit_normalizer(demonstrations.transitions)
    trained(env, generator, demonstrations, 30)
    expert = demonstrations.returns().mean().item()
    assert fresh_return(env, generator.averaged) > expert - 1.5  # chance is about 14 below


def test_the_target_begins_with_what_was_cloned():
    generator = iq(TWO_SIDES, polyak=0.5, steps=1)
    generator.polyak = 0.0  # which nobody may ask for
    with torch.no_grad():
        for parameter in generator.policy.parameters():
            parameter += 0.1
    cloned = {name: x.clone() for name, x in generator.soft_q.state_dict().items()}
    for _ in range(2):  # a target that follows at a rate of 0 stays what it was at first
        expert = Steps(random_batch(TWO_SIDES, 64))
        generator.update(random_batch(TWO_SIDES, 10, 10), no_reward, demonstrations=expert)
    target = generator.target.state_dict()
    assert all(torch.equal(x, cloned[name]) for name, x in target.items() if "normalizers" not in name)
    assert not all(torch.equal(x, target[name]) for name, x in generator.soft_q.state_dict().items())


@pytest.mark.parametrize("task", [Matching, Walk])
def test_it_goes_on_bit_for_bit(task, tmp_path):
    def start():
        torch.manual_seed(0)
        env = task()
        return env, iq(env.groups, mixing="linear", polyak=0.1, replay_capacity=700, averaging=0.9)

    env, generator = start()
    demonstrations = demonstrations_of(task(), 5)
    trained(env, generator, demonstrations, 3)
    checkpoint.save(tmp_path / "3.pt", generator.state_dict())
    random = torch.get_rng_state()
    expected = trained(env, generator, demonstrations, 2)
    env, again = start()
    again.load_state_dict(checkpoint.load(tmp_path / "3.pt"))
    torch.set_rng_state(random)
    assert trained(env, again, demonstrations, 2) == expected
    for ours, theirs in ((again.policy, generator.policy), (again.averaged, generator.averaged)):
        assert all(torch.equal(x, theirs.state_dict()[key]) for key, x in ours.state_dict().items())
