"""What imitation 1.0.1 saves of random play: ``python make_imitation.py``, in an environment of its own."""

import numpy as np
from imitation.data import rollout, serialize, wrappers
from imitation.policies.base import RandomPolicy
from imitation.util.util import make_vec_env

rng = np.random.default_rng(0)
venv = make_vec_env("CartPole-v1", rng=rng, n_envs=2, post_wrappers=[lambda env, _: wrappers.RolloutInfoWrapper(env)])
policy = RandomPolicy(venv.observation_space, venv.action_space)
trajectories = rollout.rollout(policy, venv, rollout.make_sample_until(min_episodes=3), rng=rng, exclude_infos=False)
serialize.save("imitation_cartpole", trajectories)
fields = ("obs", "acts", "rews", "terminal")
arrays = {f"{name}_{i}": getattr(trajectory, name) for i, trajectory in enumerate(trajectories) for name in fields}
np.savez("imitation_cartpole_expected.npz", **arrays)
