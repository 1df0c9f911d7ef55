"""Every choice of the family with every other, for a few iterations, on a game of two unequal sides."""

import functools
import math

import pytest
import torch

from magail.config import build
from magail.policy import Policy, RandomPolicy
from magail.record import record
from magail.rollout import collect
from magail.train import settle_activation, settle_box
from magail.types import Seeds
from tests.test_config import choices, composed

torch.set_num_threads(1)
GENERATORS = [name for name in choices("generator") if name not in ("dagger", "iq")]  # those that a reward teaches
PRIORS = [name for name in choices("discriminator") if name not in ("environment_reward", "learned", "none")]
LOSSES = ["bce", "wasserstein", "least_squares", "hinge"]
SMALL = [
    "env=simple_tag",
    "env.batched.num_envs=4",
    "env.arguments.max_cycles=6",
    "symmetries=false",
    "discriminator.steps=2",
    "discriminator.batch_size=16",
    "discriminator.prior.hidden_sizes=[8]",
    "generator.policy.hidden_sizes=[8]",
    "generator.critic.hidden_sizes=[8]",
]
TINY = {  # what makes an update of each generator short
    "ppo": ["generator.epochs=2", "generator.minibatch_size=16"],
    "trpo": ["generator.minibatch_size=16"],
    "mack": [],
    "sac": ["generator.learning_starts=0", "generator.batch_size=16"],
}
discrete_and_continuous = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])


@functools.cache
def played_at_random(continuous):
    """Demonstrations of simple_tag."""
    env = build(composed(*SMALL, f"env.arguments.continuous_actions={continuous}").env.batched)
    return record(env, RandomPolicy(env.groups), range(4), torch.Generator().manual_seed(0), {})


def iterate(cfg, demonstrations, iterations=3):
    """The loop without what surrounds it; the logged numbers of the last iteration."""
    torch.manual_seed(0)
    env = build(cfg.env.batched)
    settle_box(cfg, demonstrations)
    settle_activation(cfg)
    generator = build(cfg.generator, groups=env.groups)
    discriminator = build(cfg.discriminator, groups=env.groups, demonstrations=demonstrations, held_out=demonstrations)
    before = [x.detach().clone() for x in generator.policy.parameters()]
    env.reset(Seeds(0))
    for iteration in range(iterations):
        rollout, info = collect(env, generator.policy, 5)
        for group in rollout.groups.values():
            group.env_reward.fill_(math.nan)  # imitation must not look
        info |= discriminator.update(rollout, demonstrations, generator.policy)
        progress = iteration / iterations
        info |= generator.update(rollout, discriminator.reward, progress, None, demonstrations)
    assert all(math.isfinite(value) for name, value in info.items() if not name.startswith("train/")), info
    assert any(not torch.equal(x, y) for x, y in zip(before, generator.policy.parameters(), strict=True))
    return info


@discrete_and_continuous
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_generator_prior_loss_and_actions(generator, prior, loss, continuous):
    cfg = composed(
        *SMALL,
        *TINY[generator],
        f"generator={generator}",
        f"discriminator={prior}",
        f"discriminator.loss._target_=magail.discriminators.losses.{loss}",
        f"env.arguments.continuous_actions={continuous}",
    )
    assert "discriminator/loss" in iterate(cfg, played_at_random(continuous))


FORMS = [
    *(f"reward._target_=magail.discriminators.rewards.{name}" for name in ("log_d", "softplus", "symmetric", "dail")),
    "reward_clip=1",
    "reward_scaling=true",
    "gradient_penalty_points=expert",
    "gradient_penalty_center=1",
    "prior.spectral_norm=true",
    "prior.dropout=0.2",
    "prior.inputs=[obs]",
    "prior.inputs=[obs,next_obs]",
    "prior.inputs=[obs,action,terminated]",
    "prior.share_parameters=true",
    "prior.joint_observation=true",
    "input_noise=0.1",
    "label_smoothing=0.1",
    "mixup=0.5",
    "replay=2",
    "pause_above=0.6",
    "absorbing=true",
    "airl_discount=0.9",
]


@discrete_and_continuous
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_generator_and_form_of_the_discriminator(generator, form, continuous):
    options = [f"generator={generator}", f"discriminator.{form}", f"env.arguments.continuous_actions={continuous}"]
    iterate(composed(*SMALL, *TINY[generator], *options), played_at_random(continuous))


ALGORITHMS = {
    "dagger": ["generator.steps=2", "generator.batch_size=16"],
    "iq": ["generator.steps=2", "generator.batch_size=16"],
    "sqil": [*TINY["sac"]],
    "dac": [*TINY["sac"]],
    "airl": TINY["ppo"],
}


@discrete_and_continuous
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithm(algorithm, continuous, tmp_path):
    env = build(composed(*SMALL, f"env.arguments.continuous_actions={continuous}").env.batched)
    Policy(env.groups, (8,)).save(tmp_path / "expert.safetensors")
    options = [f"env.arguments.continuous_actions={continuous}", f"env.expert={tmp_path}/expert.safetensors"]
    small = SMALL if algorithm in ("airl", "dac") else [x for x in SMALL if not x.startswith("discriminator")]
    if algorithm in ("dagger", "iq"):
        small = [x for x in small if "critic" not in x]
    cfg = composed(f"algorithm={algorithm}", *small, *ALGORITHMS[algorithm], *options)
    iterate(cfg, played_at_random(continuous))


def test_every_shipped_algorithm_is_here_or_needs_no_loop():
    assert set(choices("algorithm")) == set(ALGORITHMS) | {"magail", "bc", "rl"}
