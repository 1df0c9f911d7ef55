import functools
import io

import pytest
import torch
from gymnasium import spaces

from magail.config import build
from magail.distributions import Gaussian
from magail.generators.bc import BehavioralCloning
from magail.generators.mack import MACK
from magail.rollout import collect
from magail.types import Seeds
from tests.learning.test_imitation import demonstrations_of, fresh_return
from tests.test_config import composed
from tests.test_ppo import played, returns_after
from tests.toy import TWO_SIDES, Matching, Walk, groups_of, random_batch

OPTIONS = {
    "policy": {"hidden_sizes": [32], "activation": "tanh", "share_parameters": False},
    "critic": {"hidden_sizes": [32], "activation": "tanh", "value_horizon": 1e5},
    "learning_rate": 1.0,
    "critic_learning_rate": 1.0,
    "clip_kl": 1e-2,
    "critic_clip_kl": 0.1,
    "final_learning_rate_fraction": 1.0,
    "steps": 1,
    "critic_steps": 2,
    "momentum": 0.9,
    "damping": 1e-2,
    "statistics_decay": 0.95,
    "inverse_every": 1,
    "cold_steps": 5,
    "gamma": 0.9,
    "gae_lambda": 0.9,
    "entropy_coefficient": 0.0,
    "absorbing": False,
    "averaging": 0.9,
}


def mack(groups, share_parameters=False, box="gaussian", **changes):
    policy = OPTIONS["policy"] | {"share_parameters": share_parameters, "box": box}
    return MACK(groups, **(OPTIONS | {"policy": policy} | changes))


def env_reward(rollout):
    return rollout.field("env_reward")


@pytest.mark.parametrize(
    ("option", "value"), [("steps", 0), ("inverse_every", 0), ("momentum", 1.0), ("damping", 0.0), ("clip_kl", -1)]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"generator\.{option}={value} must be"):
        mack(TWO_SIDES, **{option: value})


@pytest.mark.parametrize("share_parameters", [False, True])
def test_the_better_action_becomes_likelier(share_parameters):
    torch.manual_seed(0)
    generator = mack(TWO_SIDES, share_parameters)
    rollout = played(generator, 20, 10)
    obs = rollout.field("obs")

    def likes_action_one(batch):
        return {"wolf": (batch.groups["wolf"].action.squeeze(-1) == 1).float(), "sheep": torch.zeros(20, 10, 1)}

    def probability():
        return generator.policy.distributions(obs)["wolf"].log_probs[0].exp()[..., 1].mean()

    before = probability()
    for _ in range(20):
        info = generator.update(rollout, likes_action_one)
    assert probability() > before + 0.05
    assert info["generator/policy_loss"] < 0
    assert info["generator/approx_kl"] > 0


@pytest.mark.parametrize("share_parameters", [False, True])
def test_what_the_dead_hold_changes_nothing(share_parameters):
    results = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = mack(TWO_SIDES, share_parameters, steps=2, cold_steps=0)
        rollout = played(generator, 10, 6, alive=0.6)
        for group in rollout.groups.values():
            group.env_reward[~group.mask] = garbage
            group.action[~group.mask] = 0
        info = generator.update(rollout, env_reward)
        results.append((info, generator.policy.state_dict()))
    (info, state), (info_garbage, state_garbage) = results
    assert info == info_garbage
    assert all(torch.equal(state[key], state_garbage[key]) for key in state)


def test_only_the_living_are_in_the_fisher_matrices():
    """The critic's rows are steps at which anybody was alive, and its outputs for the dead are not uncertain."""
    torch.manual_seed(0)
    generator = mack(TWO_SIDES, critic_steps=1)
    rollout = played(generator, 10, 6, alive=0.4)
    rollout.groups["wolf"].mask[..., 1] = False
    masks = rollout.flatten().field("mask")
    generator.update(rollout, env_reward)
    for name, mask in masks.items():
        assert generator.actor_optimizers[name].samples.tolist() == mask.sum(0).tolist()
    critic = generator.critic_optimizer
    assert critic.samples.tolist() == [torch.cat(list(masks.values()), -1).any(-1).sum().item()]
    first_wolf, second_wolf, _ = critic.layers[-1].gradients.sum[0].diagonal().tolist()
    assert first_wolf > 0 == second_wolf


def test_what_the_critic_is_told_of_the_dead_changes_nothing():
    values = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = mack(TWO_SIDES)
        rollout = played(generator, 10, 6, alive=0.6)
        samples, _ = generator._samples(rollout, env_reward(rollout))
        for name, mask in samples.mask.items():
            samples.target[name][~mask] = garbage
        values.append([generator._improve_critic(samples) for _ in range(3)])
    assert values[0] == values[1]


def test_neither_the_cloning_term_nor_the_actions_taken_are_in_the_fisher_matrices():
    torch.manual_seed(0)
    expert = random_batch(TWO_SIDES, 64)
    expert.groups["wolf"].action[:] = 2
    factors, losses = [], []
    for term in (False, True):
        torch.manual_seed(1)
        generator = mack(TWO_SIDES)
        rollout = played(generator, 20, 10)
        zero = {g.name: torch.zeros(20, 10, g.num_agents) for g in TWO_SIDES}
        cloning = None
        if term:
            cloning = functools.partial(generator.policy.negative_log_likelihood, expert)
            rollout.groups["wolf"].action.zero_()
        update = functools.partial(generator.update, rollout, lambda r, zero=zero: zero, 0.0, cloning)
        update()
        layers = generator.actor_optimizers["wolf"].layers
        factors.append([factor.sum.clone() for layer in layers for factor in layer.factors])
        for _ in range(20):
            update()
        losses.append(generator.policy.negative_log_likelihood(expert).item())
    assert all(torch.equal(a, b) for a, b in zip(*factors, strict=True))
    assert losses[1] < losses[0] - 0.1


def step_of_wolves(groups, share_parameters):
    """What an update changes of the wolves, whatever other groups there are."""
    torch.manual_seed(0)  # the wolves are made first
    generator = mack(groups, share_parameters, cold_steps=0, clip_kl=1e9, gamma=0.0)
    for parameter in generator.critic.parameters():
        torch.nn.init.zeros_(parameter)  # and are judged by their rewards alone
    torch.manual_seed(1)
    rollout = random_batch(groups, 20, 10)
    torch.manual_seed(2)
    before = torch.cat([p.detach().flatten() for p in generator.policy.actors["wolf"].parameters()])
    generator.update(rollout, env_reward)
    return torch.cat([p.detach().flatten() for p in generator.policy.actors["wolf"].parameters()]) - before


@pytest.mark.parametrize("share_parameters", [False, True])
def test_a_step_does_not_depend_on_how_many_groups_there_are(share_parameters):
    alone, together = (step_of_wolves(groups, share_parameters) for groups in (TWO_SIDES[:1], TWO_SIDES))
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(alone, together)


def test_a_step_does_not_depend_on_how_many_agents_there_are():
    """Two agents that are the same and saw the same do what one does, as long as nothing is drawn."""
    torch.manual_seed(0)
    one, two = (mack(groups_of(cat=(n, 4, spaces.Discrete(3))), cold_steps=1, clip_kl=1e9, gamma=0.0) for n in (1, 2))
    rollout = random_batch(groups_of(cat=(1, 4, spaces.Discrete(3))), 20, 10)
    for generator in (one, two):
        for parameter in generator.critic.parameters():
            torch.nn.init.zeros_(parameter)
    before = [parameter.detach().clone() for parameter in one.policy.parameters()]
    with torch.no_grad():
        for single, both in zip(before, two.policy.parameters(), strict=True):
            both.copy_(single.expand_as(both))
    one.update(rollout, env_reward)
    two.update(rollout.map(lambda x: x.repeat_interleave(2, 2)), env_reward)
    for start, single, both in zip(before, one.policy.parameters(), two.policy.parameters(), strict=True):
        assert (single - start).abs().max() > 1e-5
        torch.testing.assert_close((both - start)[1:], single - start)


@pytest.mark.parametrize("share_parameters", [False, True])
def test_the_fisher_information_of_the_spreads(share_parameters):
    """The Hessian of the KL divergence: the mean over each network's samples, summed over networks."""
    generator = mack(groups_of(cat=(3, 4, spaces.Box(-1.0, 1.0, (2,)))), share_parameters)
    actor, obs = generator.policy.actors["cat"], torch.randn(50, 3, 4)
    now = actor(obs)
    old = Gaussian(now.mean.detach(), now.log_std.detach(), now.center, now.scale)

    def kl(log_std):
        return old.kl(Gaussian(old.mean, log_std, old.center, old.scale)).mean(0).sum() / (3 if share_parameters else 1)

    hessian = torch.autograd.functional.hessian(kl, actor.head.log_std.detach()).reshape(6, 6)
    part = generator.actor_optimizers["cat"].parts[-1]
    assert part.parameters == (actor.head.log_std,)
    torch.testing.assert_close(hessian, (part.information - OPTIONS["damping"]) * torch.eye(6))


def test_lengths_of_steps_fall_linearly():
    """Of those that the learning rate limits, and of those that the trust region does."""

    def length(progress, clip_kl):
        torch.manual_seed(0)
        generator = mack(
            TWO_SIDES, final_learning_rate_fraction=0.1, clip_kl=clip_kl, critic_clip_kl=clip_kl, critic_steps=1
        )
        modules = (generator.policy.actors, generator.critic.mlp)
        before = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in modules]
        generator.update(played(generator, 4, 4), env_reward, progress)
        after = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in modules]
        return torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)])

    for clip_kl in (1e9, 1e-7):  # where steps are still longer than parameters are rounded
        for progress, fraction in ((0.5, 0.55), (1.0, 0.1)):
            torch.testing.assert_close(length(progress, clip_kl), fraction * length(0.0, clip_kl), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("box", ["gaussian", "clipped", "squashed", "beta"])
def test_policies_stay_in_their_trust_region(box):
    """Measured after each step, for every kind of action."""
    torch.manual_seed(0)
    actions = (spaces.MultiDiscrete([3, 2]), spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(4))
    groups = groups_of(wolf=(2, 4, actions[0]), sheep=(1, 5, actions[1]), dog=(3, 2, actions[2]))
    generator = mack(groups, box=box, clip_kl=1e-3, learning_rate=100.0, momentum=0.0)
    kls = []
    for _ in range(20):
        rollout = random_batch(groups, 20, 20)
        action, log_prob = generator.policy.act(rollout.field("obs"))
        for name, group in rollout.groups.items():
            group.action, group.log_prob = action[name], log_prob[name]
        kls.append(generator.update(rollout, env_reward)["generator/approx_kl"])
    assert 2e-4 < max(kls) < 2e-3


def test_it_goes_on_bit_for_bit_from_its_saved_state():
    torch.manual_seed(0)
    generator = mack(TWO_SIDES, cold_steps=1, inverse_every=2)
    rollouts = [played(generator, 8, 4, alive=0.8) for _ in range(5)]
    for rollout in rollouts[:3]:
        generator.update(rollout, env_reward)
    file = io.BytesIO()
    torch.save(generator.state_dict(), file)
    file.seek(0)
    again = mack(TWO_SIDES, cold_steps=1, inverse_every=2)
    again.load_state_dict(torch.load(file, weights_only=True))
    for resumed in (generator, again):
        torch.manual_seed(1)
        for rollout in rollouts[3:]:
            resumed.update(rollout, env_reward)
    for part in ("policy", "critic", "averaged"):
        state, other = getattr(generator, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share_parameters", [False, True])
def test_it_solves_the_matrix_game(seed, share_parameters):
    torch.manual_seed(seed)
    env = Matching()
    assert returns_after(env, mack(env.groups, share_parameters), 40) > 9.5  # of 10; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
def test_it_solves_the_walk(seed):
    torch.manual_seed(seed)
    env = Walk()
    assert returns_after(env, mack(env.groups), 100) > -3.0  # the best is about -0.6, chance about -14


def imitate(env, demonstrations, iterations, seed):
    """From a short cloning, with a cloning term that fades."""
    torch.manual_seed(seed)
    generator = mack(env.groups)
    options = {"batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.0, "evaluate_every": 100, "coefficient": 0.1}
    cloning = BehavioralCloning(generator.policy, demonstrations, None, steps=20, **options)
    cloning.fit(lambda step, info: None)
    options = [f"discriminator.{x}" for x in ("prior.hidden_sizes=[32]", "learning_rate=2e-3", "batch_size=256")]
    parts = {"groups": env.groups, "demonstrations": demonstrations, "held_out": None}
    discriminator = build(composed(*options).discriminator, **parts)
    start = fresh_return(env, generator.policy)
    env.reset(Seeds(seed, demonstrations.known_seeds(), 1.0))
    for iteration in range(iterations):
        rollout, _ = collect(env, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(float("nan"))  # imitation must not look
        progress = iteration / iterations
        discriminator.update(rollout, demonstrations, generator.policy)
        generator.update(rollout, discriminator.reward, progress, cloning.term(progress))
    return start, fresh_return(env, generator.policy)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("task", "floor"), [(Matching, 9.0), (Walk, -3.0)])
def test_it_imitates(task, floor, seed):
    env = task()
    start, end = imitate(env, demonstrations_of(env, 20), 40, seed)
    assert start < floor - 1.0
    assert end > floor
