"""Single-agent GAIL is the same code with one agent, on a Gymnasium environment."""

import json

from magail.train import train
from tests.test_config import composed

OPTIONS = [
    "threads=1",
    "env=cartpole",
    "demonstrations.count=5",
    "bc.steps=0",  # from nothing: it is the adversary that must teach
    "bc.coefficient=0",
    "discriminator.reward._target_=magail.discriminators.rewards.softplus",  # GAIL's own
    "discriminator.gradient_penalty=1.0",
    "discriminator.steps=5",
    "discriminator.batch_size=256",
    "generator.policy.hidden_sizes=[64,64]",  # learn quickly
    "generator.learning_rate=1e-3",
    "generator.minibatch_size=256",
    "rollout_steps=128",
    "iterations=40",
    "evaluation.every=40",
    "evaluation.episodes=2",
    "evaluation.final_episodes=20",
    "evaluation.video_episodes=0",
    "env.evaluate.workers=0",
    "logger.mode=disabled",
]


def test_gail_balances_the_pole(tmp_path):
    train(composed(*OPTIONS), tmp_path)
    policies = json.loads((tmp_path / "results.json").read_text())["policies"]
    assert policies["random"]["return"] < 40
    assert policies["magail"]["return"] > 400  # the expert has 500
