"""Small tasks that imitation must solve, from demonstrations alone."""

import functools

import pytest
import torch

from magail.demonstrations import Demonstrations
from magail.discriminators import priors, rewards
from magail.discriminators.discriminator import Discriminator
from magail.discriminators.losses import bce
from magail.generators.bc import BehavioralCloning
from magail.generators.ppo import PPO
from magail.policy import Policy
from magail.rollout import collect, play_episodes
from magail.types import Seeds
from tests.test_ppo import OPTIONS
from tests.toy import Expert, Matching, Walk


def demonstrations_of(env, count):
    seeds = list(range(100, 100 + count))
    _, episodes = play_episodes(env, Expert(env), seeds, torch.Generator().manual_seed(0), record=True)
    return Demonstrations.from_episodes(env.groups, episodes, seeds, {})


def imitate(env, prior, reward, demonstrations, iterations, seed):
    torch.manual_seed(seed)
    generator = PPO(env.groups, **(OPTIONS | {"entropy_coefficient": 0.001}))
    generator.policy.fit_normalizer(demonstrations.transitions)
    discriminator = Discriminator(
        env.groups,
        demonstrations,
        None,
        prior=functools.partial(prior, hidden_sizes=[32], activation="relu"),
        loss=bce,
        reward=reward,
        learning_rate=2e-3,
        weight_decay=0.0,
        steps=5,
        batch_size=256,
        gradient_penalty=0.1,
        gradient_penalty_center=0.0,
    )
    env.reset(Seeds(seed, demonstrations.known_seeds(), 1.0))
    for _ in range(iterations):
        rollout, _ = collect(env, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(float("nan"))  # imitation must not look
        discriminator.update(rollout, demonstrations, generator.policy)
        generator.update(rollout, discriminator.reward)
    return fresh_return(env, generator.policy)


def fresh_return(env, policy):
    """Mean return on initial states that neither demonstrations nor training have seen."""
    returns, _ = play_episodes(env, policy, range(10**6, 10**6 + 256), torch.Generator().manual_seed(0))
    return returns.mean().item()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("prior", [priors.Decentralized, priors.Centralized, priors.Single])
def test_magail_solves_the_matrix_game(prior, seed):
    env = Matching()
    assert imitate(env, prior, rewards.logit, demonstrations_of(env, 20), 60, seed) > 9.0  # of 10; chance is 2.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reward", [rewards.logit, rewards.softplus])
def test_gail_solves_the_walk(reward, seed):
    """One agent, continuous actions: single-agent GAIL is the same code."""
    env = Walk()
    demonstrations = demonstrations_of(env, 20)
    expert = demonstrations.returns().mean().item()
    imitated = imitate(env, priors.Decentralized, reward, demonstrations, 120, seed)
    assert imitated > expert - 2.5  # chance is about 14 below


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
