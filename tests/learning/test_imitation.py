"""Small tasks that imitation must solve, from demonstrations alone."""

import functools

import pytest
import torch

from magail.demonstrations import Demonstrations
from magail.discriminators import losses, priors, rewards
from magail.discriminators.discriminator import Discriminator
from magail.discriminators.learned import LearnedReward
from magail.generators.bc import BehavioralCloning
from magail.generators.ppo import PPO
from magail.policy import Policy
from magail.rollout import collect, play_episodes
from magail.types import Seeds
from tests.test_discriminators import OPTIONS as discriminator_options
from tests.test_ppo import OPTIONS
from tests.toy import BrightPixel, Expert, Landing, Matching, Walk

DISCRIMINATOR = discriminator_options | {
    "loss": losses.bce,
    "learning_rate": 2e-3,
    "steps": 5,
    "batch_size": 256,
    "gradient_penalty": 0.1,
}


IMAGES = {"encoder": "auto", "channels": [8, 16]}


def demonstrations_of(env, count):
    seeds = list(range(100, 100 + count))
    _, episodes = play_episodes(env, Expert(env), seeds, torch.Generator().manual_seed(0), record=True)
    return Demonstrations.from_episodes(env.groups, episodes, seeds, {})


def imitate(env, demonstrations, iterations, seed, **options):
    generator, _ = adversaries(env, demonstrations, iterations, seed, **options)
    return fresh_return(env, generator.policy)


def adversaries(env, demonstrations, iterations, seed, prior=priors.Decentralized, reward=rewards.logit, **options):
    """Generator and discriminator after so many rounds."""
    torch.manual_seed(seed)
    networks = {part: OPTIONS[part] | IMAGES for part in ("policy", "critic")}
    absorbing = {"absorbing": options.get("absorbing", False)}
    generator = PPO(env.groups, **(OPTIONS | networks | absorbing | {"entropy_coefficient": 0.001}))
    generator.policy.fit_normalizer(demonstrations.transitions)
    discriminator = Discriminator(
        env.groups,
        demonstrations,
        None,
        prior=functools.partial(prior, hidden_sizes=[32], activation="relu", **options.pop("prior_options", {})),
        reward=reward,
        **(DISCRIMINATOR | options),
    )
    env.reset(Seeds(seed, demonstrations.known_seeds(), 1.0))
    for _ in range(iterations):
        rollout, _ = collect(env, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(float("nan"))  # imitation must not look
        discriminator.update(rollout, demonstrations, generator.policy)
        generator.update(rollout, discriminator.reward)
    return generator, discriminator


def fresh_return(env, policy):
    """Mean return on initial states that neither demonstrations nor training have seen."""
    returns, _ = play_episodes(env, policy, range(10**6, 10**6 + 256), torch.Generator().manual_seed(0))
    return returns.mean().item()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("prior", [priors.Decentralized, priors.Centralized, priors.Single])
def test_magail_solves_the_matrix_game(prior, seed):
    env = Matching()
    assert imitate(env, demonstrations_of(env, 20), 60, seed, prior=prior) > 9.0  # of 10; chance is 2.5


WGAN = {"loss": losses.wasserstein, "gradient_penalty": 1.0, "gradient_penalty_center": 1.0}
FORMS = {
    "wasserstein": WGAN,
    "wasserstein, spectral norm": WGAN | {"gradient_penalty": 0.0, "prior_options": {"spectral_norm": True}},
    "least squares": {"loss": losses.least_squares},
    "hinge": {"loss": losses.hinge},
    "R1": {"gradient_penalty_points": "expert"},
    "dropout, noise": {"gradient_penalty": 0.0, "prior_options": {"dropout": 0.3}, "input_noise": 0.1},
    "mixup": {"gradient_penalty": 0.0, "mixup": 0.5},
    "smoothing, replay, pause": {"label_smoothing": 0.1, "replay": 3, "pause_above": 0.9},
    "scaled and clipped reward": {"reward_scaling": True, "reward_clip": 5.0},
    "dail": {"reward": rewards.dail},
    "joint observation": {"prior_options": {"joint_observation": True}},
    # a penalty on f's slope would forbid the certainty of log pi that AIRL's logits take off
    "airl": {"airl_discount": 0.9, "gradient_penalty": 0.0},
    "airl, centralized": {"airl_discount": 0.9, "gradient_penalty": 0.0, "prior": priors.Centralized},
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_adversary_imitates(form, seed):
    env = Matching()
    assert imitate(env, demonstrations_of(env, 20), 60, seed, **FORMS[form]) > 8.0  # of 10; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
def test_images_are_imitated(seed):
    env = BrightPixel()
    options = {"steps": 20, "learning_rate": 1e-3, "gradient_penalty": 0.01, "prior_options": IMAGES}
    assert imitate(env, demonstrations_of(env, 100), 30, seed, **options) > 4.2  # of 5; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("inputs", [["obs", "next_obs"], ["obs"]])
def test_the_walk_is_imitated_from_observation_alone(inputs, seed):
    env = Walk()
    demonstrations = demonstrations_of(env, 20)
    expert = demonstrations.returns().mean().item()
    assert imitate(env, demonstrations, 120, seed, prior_options={"inputs": inputs}) > expert - 3.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reward", [rewards.logit, rewards.softplus])
def test_gail_solves_the_walk(reward, seed):
    """One agent, continuous actions: single-agent GAIL is the same code."""
    env = Walk()
    demonstrations = demonstrations_of(env, 20)
    expert = demonstrations.returns().mean().item()
    imitated = imitate(env, demonstrations, 120, seed, reward=reward)
    assert imitated > expert - 2.5  # chance is about 14 below


def mean_length(env, absorbing, reward, seed):
    """Of an imitator's episodes; the return counts the steps."""
    options = {"absorbing": absorbing, "reward": reward, "steps": 10}
    return imitate(env, demonstrations_of(env, 100), 150, seed, **options)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reward", [rewards.logit, rewards.softplus, rewards.log_d])
def test_the_imitator_lives_as_long_as_the_expert(reward, seed):
    """With absorbing states neither hovering, which `softplus` pays for, nor an early end, as for `log_d`, pays."""
    assert 2.0 < mean_length(Landing(), True, reward, seed) < 6.0  # the expert has 3.3


def test_what_the_absorbing_states_are_for():
    assert mean_length(Landing(), False, rewards.softplus, 0) > 30  # of 40
    assert mean_length(Landing(), False, rewards.log_d, 0) < 1.2


@pytest.mark.parametrize(("seed", "shaping"), [(0, None), (1, False)])
def test_airls_reward_of_the_state_teaches_where_actions_do_the_opposite(seed, shaping, tmp_path):
    """Fu et al. 2018, section 7.1: what was imitated fails in the changed environment, its reward does not."""
    env, changed = Walk(), Walk(slope=-1.0)
    demonstrations = demonstrations_of(env, 20)
    airl = {"airl_discount": 0.9, "gradient_penalty": 0.0, "steps": 20, "prior_options": {"inputs": ["obs"]}}
    imitator, discriminator = adversaries(env, demonstrations, 120, seed, **airl)
    discriminator.save(tmp_path)
    reward = LearnedReward(changed.groups, None, None, checkpoint=str(tmp_path), shaping=shaping, absorbing=False)
    generator = PPO(changed.groups, **OPTIONS)
    changed.reset(Seeds(seed))
    for _ in range(120):
        rollout, _ = collect(changed, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(float("nan"))
        generator.update(rollout, reward.reward)
    expert = demonstrations.returns().mean().item()
    assert fresh_return(changed, generator.policy) > expert - 1.5  # chance is about 14 below
    assert fresh_return(changed, imitator.policy) < expert - 20


@pytest.mark.parametrize(("task", "floor"), [(Matching, 9.5), (Walk, -3.0)])
def test_cloning_solves_both(task, floor):
    torch.manual_seed(0)
    env = task()
    train, held_out = demonstrations_of(env, 30).split(0.2, 0)
    policy = Policy(env.groups, (32,))
    options = {"batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.0, "evaluate_every": 50, "coefficient": 0.0}
    logged = []
    BehavioralCloning(policy, train, held_out, steps=600, **options).fit(lambda step, info: logged.append((step, info)))
    assert fresh_return(env, policy) > floor
    assert [step for step, _ in logged] == list(range(50, 601, 50))
    assert logged[-1][1]["bc/held_out_loss"] < logged[0][1]["bc/held_out_loss"]
