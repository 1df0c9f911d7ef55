import copy
import functools
import io

import pytest
import torch
from gymnasium import spaces

from magail.advantage import masked_mean
from magail.discriminators import priors, rewards
from magail.discriminators.discriminator import Discriminator
from magail.distributions import Categorical, Gaussian
from magail.generators import trpo as module
from magail.generators.trpo import TRPO, Blocks, conjugate_gradient, fisher_product, line_search, trust_region_step
from magail.policy import Policy
from magail.rollout import collect
from magail.types import AgentGroup, Seeds
from tests.learning.test_imitation import DISCRIMINATOR, demonstrations_of, fresh_return
from tests.toy import TWO_SIDES, Matching, Walk, groups_of, random_batch

OPTIONS = {
    "policy": {"hidden_sizes": [32], "activation": "tanh", "share_parameters": False},
    "critic": {"hidden_sizes": [32], "activation": "tanh", "value_horizon": 1e5},
    "max_kl": 0.02,
    "damping": 0.1,
    "cg_iterations": 10,
    "fisher_fraction": 0.5,
    "max_backtracks": 10,
    "backtrack_factor": 0.8,
    "critic_learning_rate": 3e-3,
    "critic_epochs": 4,
    "minibatch_size": 160,
    "gamma": 0.9,
    "gae_lambda": 0.9,
    "entropy_coefficient": 0.0,
    "absorbing": False,
    "averaging": 0.9,
}
MANY = groups_of(
    wolf=(3, 4, spaces.Discrete(3)), sheep=(2, 5, spaces.Box(-1.0, 2.0, (2,))), owl=(2, 2, spaces.MultiDiscrete([2, 3]))
)


def trpo(groups, policy=None, **changes):
    """With observations as they come: statistics that ran on would change the policy after the step."""
    generator = TRPO(groups, **(OPTIONS | changes | {"policy": OPTIONS["policy"] | (policy or {})}))
    generator.policy.fixed.fill_(True)
    return generator


def played(generator, *shape, alive=1.0):
    """Random transitions with actions of the policy."""
    rollout = random_batch(generator.policy.groups, *shape, alive=alive)
    action, log_prob = generator.policy.act(rollout.field("obs"))
    for name, group in rollout.groups.items():
        group.action, group.log_prob = action[name] * group.mask.unsqueeze(-1), log_prob[name] * group.mask
    return rollout


def env_reward(rollout):
    return rollout.field("env_reward")


def samples_of(generator, rollout):
    return generator._samples(rollout, env_reward(rollout))[0]


def bits(tensors):
    """For comparisons that tell 0 from -0."""
    return [x.detach().clone().view(torch.int32) for x in tensors]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_kl", -1), ("cg_iterations", 0), ("fisher_fraction", 0), ("backtrack_factor", 1.5), ("critic_epochs", 0)],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"generator\.{option}={value} must be"):
        trpo(TWO_SIDES, **{option: value})


def test_kl_of_categoricals_agrees_with_torch():
    ours, theirs = [], []
    for _ in range(2):
        logits = torch.randn(7, 2, 5)
        ours.append(Categorical(logits, [2, 3]))
        theirs.append([torch.distributions.Categorical(logits=x) for x in logits.split([2, 3], -1)])
    expected = sum(torch.distributions.kl_divergence(p, q) for p, q in zip(*theirs, strict=True))
    torch.testing.assert_close(ours[0].kl(ours[1]), expected)


def test_kl_of_gaussians_agrees_with_torch():
    center, scale = torch.tensor([0.5, 10.0]), torch.tensor([0.5, 20.0])
    parameters = [(torch.randn(7, 3, 2), torch.randn(3, 2)) for _ in range(2)]
    ours = [Gaussian(mean, log_std, center, scale) for mean, log_std in parameters]
    theirs = [torch.distributions.Normal(center + scale * m, scale * s.exp()) for m, s in parameters]
    torch.testing.assert_close(ours[0].kl(ours[1]), torch.distributions.kl_divergence(*theirs).sum(-1))


def test_conjugate_gradients_solve_every_row():
    torch.manual_seed(0)
    root = torch.randn(3, 6, 6, dtype=torch.float64)
    matrix = root @ root.mT + 0.5 * torch.eye(6)
    b = torch.randn(3, 6, dtype=torch.float64)
    b[1] = 0
    x = conjugate_gradient(lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1), b, 6)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b))
    assert (x[1] == 0).all()


def dense(product, like):
    """The matrices ``[N, P, P]`` of a product with vectors ``[N, P]``."""
    columns = [product(unit.expand_as(like)) for unit in torch.eye(like.shape[1])]
    return torch.stack(columns, -1)


@pytest.mark.parametrize("shared", [False, True])
def test_fisher_products_of_a_softmax_linear_policy(shared):
    """Its Fisher matrix is the mean of the Kronecker product of ``x x^T`` with ``diag(p) - p p^T``."""
    torch.manual_seed(0)
    actor = Policy(groups_of(wolf=(2, 3, spaces.Discrete(4))), [], share_parameters=shared).actors["wolf"]
    torch.nn.init.normal_(actor.mlp.layers[0].weight)
    blocks = Blocks(actor, 1 if shared else 2)
    obs, mask = torch.randn(50, 2, 3), torch.rand(50, 2) < 0.7
    obs[~mask] = 1e3  # must not count
    p = actor(obs).log_probs[0].exp().detach()
    own_bias = torch.eye(2).expand(50, 2, 2) if shared else torch.ones(50, 2, 1)
    x = torch.cat([obs, own_bias], -1)
    curvature = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    matrix = torch.einsum("bai,baj,bakl->baikjl", x, x, curvature).reshape(50, 2, x.shape[-1] * 4, x.shape[-1] * 4)
    if shared:
        expected = matrix[mask].mean(0, keepdim=True)
    else:
        expected = torch.stack([matrix[mask[:, a], a].mean(0) for a in range(2)])
    expected = expected + 0.3 * torch.eye(expected.shape[-1])
    torch.testing.assert_close(
        dense(fisher_product(actor, blocks, obs, mask, 0.3), blocks.get()), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_fisher_products_are_the_mean_square_of_the_score(shared, encoder):
    """By its definition: over all actions, each as often as the policy takes it."""
    torch.manual_seed(0)
    group = AgentGroup("wolf", ("a", "b"), spaces.Box(0.0, 1.0, (3, 2, 1)), spaces.Discrete(3))
    actor = Policy([group], [3], share_parameters=shared, encoder=encoder, channels=[2]).actors["wolf"]
    torch.nn.init.normal_(actor.mlp.layers[-1].weight)
    blocks = Blocks(actor, 1 if shared else 2)
    obs = torch.randn(6, 2, 6)
    log_probs = actor(obs).log_probs[0]
    expected = torch.zeros_like(dense(lambda v: v, blocks.get()))
    for log_prob in log_probs.flatten():
        score = blocks.gradient(log_prob)
        expected += log_prob.detach().exp() * score.unsqueeze(-1) * score.unsqueeze(-2)
    expected /= 12 if shared else 6  # a block's steps
    assert expected.shape[-1] * blocks.count == sum(x.numel() for x in actor.parameters())
    product = fisher_product(actor, blocks, obs, torch.ones(6, 2, dtype=torch.bool), 0.0)
    torch.testing.assert_close(dense(product, blocks.get()), expected, atol=1e-6, rtol=1e-4)


def test_a_step_has_the_length_of_its_trust_region():
    torch.manual_seed(0)
    root = torch.randn(2, 4, 4)
    matrix = root @ root.mT + torch.eye(4)
    gradient = torch.randn(2, 4) * torch.tensor([[1e-3], [1.0]])
    step = trust_region_step(lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1), gradient, 0.02, 4)
    torch.testing.assert_close(0.5 * torch.einsum("ni,nij,nj->n", step, matrix, step), torch.full((2,), 0.02))
    natural = torch.linalg.solve(matrix, gradient)
    torch.testing.assert_close(torch.cosine_similarity(step, natural), torch.ones(2))


def test_blocks_step_and_go_back_each_by_itself():
    """One accepts the whole step, one after two backtracks, one never."""
    torch.manual_seed(0)
    actor = Policy(groups_of(wolf=(3, 2, spaces.Box(-1.0, 1.0, (2,)))), [4]).actors["wolf"]
    with torch.no_grad():
        actor.mlp.layers[-1].bias.fill_(-0.0)
    blocks = Blocks(actor, 3)
    before, start = bits(actor.parameters()), blocks.get()
    step = torch.randn_like(start)
    limit = torch.tensor([1.0, 0.3, -1.0])

    def acceptable():
        return ((blocks.get() - start) / step).mean(-1) <= limit + 1e-3

    accepted, backtracks = line_search(blocks, step, acceptable, 4, 0.5)
    assert accepted.tolist() == [True, True, False]
    assert backtracks.tolist() == [0, 2, 5]
    torch.testing.assert_close(blocks.get() - start, step * torch.tensor([[1.0], [0.25], [0.0]]))
    after = bits(actor.parameters())
    assert same([x[2] for x in before], [x[2] for x in after])


@pytest.mark.parametrize("box", ["gaussian", "clipped", "squashed", "beta"])
@pytest.mark.parametrize("share_parameters", [False, True])
@pytest.mark.parametrize(("max_kl", "fisher_fraction"), [(0.02, 1.0), (0.5, 0.03)])
def test_every_agent_stays_in_its_trust_region(max_kl, fisher_fraction, share_parameters, box):
    """Also where the quadratic model is far off: a large region, and a Fisher matrix from few steps."""
    torch.manual_seed(0)
    policy = {"share_parameters": share_parameters, "box": box}
    generator = trpo(MANY, policy, max_kl=max_kl, damping=1e-2, fisher_fraction=fisher_fraction)
    rollout = played(generator, 20, 10, alive=0.7)
    old = copy.deepcopy(generator.policy)
    info = generator.update(rollout, env_reward)
    obs, masks = rollout.field("obs"), rollout.field("mask")
    with torch.no_grad():
        before, after = old.distributions(obs), generator.policy.distributions(obs)
        kl = {name: before[name].kl(after[name]) for name in masks}
    if share_parameters:
        reached = torch.stack([masked_mean(kl[name], mask) for name, mask in masks.items()])
    else:
        reached = torch.cat([masked_mean(kl[n].flatten(0, 1), m.flatten(0, 1), 0) for n, m in masks.items()])
    assert (reached <= max_kl * 1.0001).all()
    assert info["generator/accepted"] == (reached > 0).float().mean().item()
    assert info["generator/max_kl"] == pytest.approx(reached.max().item(), rel=1e-4)
    assert info["generator/approx_kl"] == pytest.approx(reached.mean().item(), rel=1e-4)
    if fisher_fraction == 1.0:
        assert (reached > max_kl / 3).all(), "it makes use of it"
    else:
        assert info["generator/backtracks"] > 0, "the steps were too long for it"
    assert info["generator/policy_loss"] < -0.01


def improve(generator, samples, extra_loss=None):
    return generator._improve(samples, 0.0, extra_loss)


def test_without_advantages_nothing_moves():
    torch.manual_seed(0)
    generator = trpo(MANY)
    samples = samples_of(generator, played(generator, 10, 6))
    for name in ("wolf", "sheep", "owl"):
        samples.advantage[name].zero_()
    samples.advantage["wolf"][:, 1] = torch.randn(60)
    before = copy.deepcopy(generator.policy)
    info = improve(generator, samples)
    for name, actor in generator.policy.actors.items():
        for agent in range(generator.blocks[name].count):
            rows = [bits(x[agent] for x in actors.parameters()) for actors in (before.actors[name], actor)]
            assert same(*rows) == ((name, agent) != ("wolf", 1))
    assert info["accepted"] == pytest.approx(1 / 7)
    assert info["max_kl"] > 0.001
    assert info["approx_kl"] == pytest.approx(info["max_kl"] / 7)


@pytest.mark.parametrize("share_parameters", [False, True])
def test_a_surrogate_that_only_gets_worse_restores_bit_for_bit(share_parameters, monkeypatch):
    """Steps downhill: a search that took them would be noticed."""
    torch.manual_seed(0)
    uphill = module.trust_region_step
    monkeypatch.setattr(module, "trust_region_step", lambda *arguments: -uphill(*arguments))
    generator = trpo(MANY, {"share_parameters": share_parameters})
    rollout = played(generator, 10, 6)
    before = bits(generator.policy.parameters())
    info = generator.update(rollout, env_reward)
    assert same(before, bits(generator.policy.parameters()))
    assert (info["generator/accepted"], info["generator/max_kl"]) == (0, 0)
    assert info["generator/backtracks"] == 11


@pytest.mark.parametrize("share_parameters", [False, True])
def test_what_the_dead_hold_changes_nothing(share_parameters):
    results = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = trpo(TWO_SIDES, {"share_parameters": share_parameters}, entropy_coefficient=0.1)
        rollout = played(generator, 10, 6, alive=0.6)
        for group in rollout.groups.values():
            group.env_reward[~group.mask] = garbage
            group.action[~group.mask] = int(garbage) // 3
        info = generator.update(rollout, env_reward)
        results.append((info, bits(generator.policy.parameters())))
    (info, policy), (info_garbage, policy_garbage) = results
    assert info == info_garbage
    assert same(policy, policy_garbage)


def test_who_never_lived_stays_as_it_was():
    torch.manual_seed(0)
    generator = trpo(MANY, entropy_coefficient=0.1)
    rollout = played(generator, 10, 6)
    wolf = rollout.groups["wolf"]
    for x in (wolf.obs, wolf.action, wolf.next_obs, wolf.mask, wolf.log_prob, wolf.env_reward):
        x[:, :, 1] = 0
    actor = generator.policy.actors["wolf"]
    before = bits(actor.parameters())
    info = generator.update(rollout, env_reward)
    after = bits(actor.parameters())
    assert same([x[1] for x in before], [x[1] for x in after])
    assert not any(torch.equal(x[a], y[a]) for x, y in zip(before, after, strict=True) for a in (0, 2))
    assert info["generator/accepted"] == pytest.approx(6 / 7)


def test_the_objective_is_that_of_ppo_without_the_clip(monkeypatch):
    """A mean over the living of a group, and over groups, so that an extra loss weighs as it does there."""
    torch.manual_seed(0)
    taken = {}
    step = module.trust_region_step

    def spy(fisher, gradient, *rest):
        taken[len(taken)] = gradient
        return step(fisher, gradient, *rest)

    monkeypatch.setattr(module, "trust_region_step", spy)
    generator = trpo(TWO_SIDES, entropy_coefficient=0.3)
    samples = samples_of(generator, played(generator, 10, 6, alive=0.6))
    expert = random_batch(TWO_SIDES, 64)
    loss = 2.0 * generator.policy.negative_log_likelihood(expert)
    for name, new in generator.policy.distributions_of_normalized(samples.obs).items():
        ratio = (new.log_prob(samples.action[name]) - samples.log_prob[name]).exp()
        gain = ratio * samples.advantage[name] + 0.3 * new.entropy()
        loss = loss - masked_mean(gain, samples.mask[name]) / 2
    expected = [-blocks.gradient(loss) for blocks in generator.blocks.values()]
    improve(generator, samples, lambda: 2.0 * generator.policy.negative_log_likelihood(expert))
    for gradient, wanted in zip(taken.values(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


def test_an_extra_loss_is_minimised_too():
    """It is asked once an update: a random one would differ at every call."""
    torch.manual_seed(0)
    generator = trpo(TWO_SIDES)
    expert = random_batch(TWO_SIDES, 64)
    expert.groups["wolf"].action[:] = 2
    before = generator.policy.negative_log_likelihood(expert).item()
    samples = samples_of(generator, played(generator, 20, 10))
    for name in samples.advantage:
        samples.advantage[name].zero_()
    calls = []

    def extra_loss():
        calls.append(0)
        return generator.policy.negative_log_likelihood(expert)

    for _ in range(5):
        assert improve(generator, samples, extra_loss)["accepted"] == 1
    assert len(calls) == 5
    assert generator.policy.negative_log_likelihood(expert).item() < before - 0.1


def test_a_bonus_keeps_the_entropy_up():
    def entropy(coefficient):
        torch.manual_seed(0)
        generator = trpo(TWO_SIDES, entropy_coefficient=coefficient)
        rollout = played(generator, 20, 10)
        return [generator.update(rollout, env_reward)["generator/entropy"] for _ in range(5)][-1]

    assert entropy(1.0) > entropy(0.0) + 0.05


def test_the_critic_learns_the_returns():
    def value_loss(epochs):
        torch.manual_seed(0)
        generator = trpo(TWO_SIDES, critic_epochs=epochs)
        return generator.update(played(generator, 20, 10), env_reward)["generator/value_loss"]

    assert 0 < value_loss(100) < 0.7 * value_loss(1)


def test_what_was_stopped_goes_on_bit_for_bit():
    def update(generator):
        torch.manual_seed(1)
        info = generator.update(played(generator, 10, 6), env_reward)
        return info, bits([*generator.policy.parameters(), *generator.critic.parameters()])

    torch.manual_seed(0)
    generator, again = trpo(MANY), trpo(MANY)
    for _ in range(2):
        update(generator)
    file = io.BytesIO()
    torch.save(generator.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    (info, parameters), (info_again, parameters_again) = update(generator), update(again)
    assert info == info_again
    assert same(parameters, parameters_again)
    assert same(generator.averaged.state_dict().values(), again.averaged.state_dict().values())


def returns_after(env, generator, iterations, seed):
    env.reset(Seeds(seed))
    for _ in range(iterations):
        rollout, info = collect(env, generator.policy, 10)
        generator.update(rollout, env_reward)
    return info["train/return"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share_parameters", [False, True])
def test_it_solves_the_matrix_game(seed, share_parameters):
    torch.manual_seed(seed)
    env = Matching()
    generator = TRPO(env.groups, **(OPTIONS | {"policy": OPTIONS["policy"] | {"share_parameters": share_parameters}}))
    assert returns_after(env, generator, 30, seed) > 9.5  # of 10; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("box", ["gaussian", "clipped", "squashed", "beta"])
def test_it_solves_the_walk(seed, box):
    torch.manual_seed(seed)
    env = Walk()
    generator = TRPO(env.groups, **(OPTIONS | {"policy": OPTIONS["policy"] | {"box": box}}))
    assert returns_after(env, generator, 40, seed) > -2.0  # the best is about -0.6, chance about -14


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("task", "slack"), [(Matching, 1.0), (Walk, 2.5)])
def test_it_imitates(task, slack, seed):
    torch.manual_seed(seed)
    env = task()
    demonstrations = demonstrations_of(env, 20)
    generator = TRPO(env.groups, **OPTIONS)
    generator.policy.fit_normalizer(demonstrations.transitions)
    prior = functools.partial(priors.Decentralized, hidden_sizes=[32], activation="relu")
    options = DISCRIMINATOR | {"prior": prior, "reward": rewards.logit}
    discriminator = Discriminator(env.groups, demonstrations, None, **options)
    env.reset(Seeds(seed, demonstrations.known_seeds(), 1.0))
    for _ in range(40):
        rollout, _ = collect(env, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(float("nan"))  # imitation must not look
        discriminator.update(rollout, demonstrations, generator.policy)
        generator.update(rollout, discriminator.reward)
    assert fresh_return(env, generator.policy) > demonstrations.returns().mean().item() - slack
