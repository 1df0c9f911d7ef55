import itertools

import torch
from gymnasium import spaces

from magail.policy import RandomPolicy
from magail.rollout import collect, play_episodes
from magail.types import Seeds
from tests.toy import Expert, Matching, ToyEnv, Walk, groups_of


def generator():
    return torch.Generator().manual_seed(0)


def test_a_rollout_pairs_each_observation_with_its_action_reward_and_successor():
    env = Walk(num_envs=4, length=5)
    env.reset(Seeds(0))
    rollout, info = collect(env, RandomPolicy(env.groups), 12)
    walk = rollout.groups["walker"]
    assert rollout.batch_shape == (12, 4)
    moved = walk.obs + walk.action.clamp(-1, 1)
    torch.testing.assert_close(walk.next_obs, moved)
    torch.testing.assert_close(walk.env_reward, -moved.squeeze(-1).abs())
    ends = torch.tensor([4, 9])
    assert walk.truncated.flatten(1).all(1).nonzero().flatten().tolist() == ends.tolist()
    goes_on = torch.tensor([t not in ends for t in range(11)])
    torch.testing.assert_close(walk.next_obs[:-1][goes_on], walk.obs[1:][goes_on])
    assert (walk.next_obs[ends] != walk.obs[ends + 1]).all(), "the true successor, not the next episode's first"
    returns = walk.env_reward[:10].reshape(2, 5, 4).sum(1)
    assert abs(info["train/return"] - returns.mean().item()) < 1e-5
    assert info["train/episode_length"] == 5


def test_a_rollout_goes_on_where_the_last_one_stopped():
    def rollouts(*steps):
        env = Walk(num_envs=3, length=5)
        env.reset(Seeds(1))
        torch.manual_seed(0)
        return torch.cat([collect(env, Expert(env), n)[0].groups["walker"].obs for n in steps])

    assert torch.equal(rollouts(12), rollouts(4, 3, 5))


def test_episodes_begin_at_the_seeds_asked_for_and_returns_come_in_their_order():
    env = Walk(num_envs=4, length=6)
    seeds = [7, 3, 99, 1000, 5, 42]
    returns, episodes = play_episodes(env, Expert(env), seeds, generator(), record=True)
    assert returns.shape == (6, 1)
    for seed, total, episode in zip(seeds, returns, episodes, strict=True):
        env.reset(itertools.repeat(seed))
        walk = episode.groups["walker"]
        assert episode.batch_shape == (6,)
        assert walk.obs[0].item() == env.x[0].item()
        torch.testing.assert_close(walk.env_reward.sum(), total[0])


class Lottery(ToyEnv):
    """Copies live for as many steps as their seed says: 1 to 9."""

    def __init__(self, num_envs):
        super().__init__(groups_of(player=(1, 1, spaces.Discrete(2))), num_envs, -1)

    def reset(self, seeds):
        self.left = torch.zeros(self.num_envs, dtype=torch.int64)
        self.length_so_far = self.left.clone()
        super().reset(seeds)

    def begin(self, seeds):
        self.left = torch.tensor(seeds)

    def observe(self):
        return self.left.float().reshape(-1, 1, 1)

    def step(self, action):
        self.left -= 1
        self.length_so_far += 1
        self.clock = -1  # the parent never ends these
        step = super().step({"player": action["player"]})
        over = self.left == 0
        step.done, step.episode_length = over, self.length_so_far.clone()
        step.episode_return = {"player": self.length_so_far.float().unsqueeze(-1)}
        step.episode_seed = self.episode_seed.clone()
        for copy in over.nonzero().flatten().tolist():
            self.episode_seed[copy] = self.left[copy] = next(self.seeds)
            self.length_so_far[copy] = 0
        self._show()
        return step

    def play(self, action):
        return torch.ones(self.num_envs, 1)


def test_short_episodes_are_not_favoured():
    """Taking the first N episodes to end would count the short ones twice and the long ones never."""
    env = Lottery(num_envs=3)
    seeds = [9, 1, 8, 2, 7, 3]
    returns, episodes = play_episodes(env, RandomPolicy(env.groups), seeds, generator(), record=True)
    assert returns.flatten().tolist() == seeds
    assert [episode.batch_shape[0] for episode in episodes] == seeds


class Coins(Lottery):
    """Copies live until they play 0."""

    def step(self, action):
        self.left = 1 + action["player"].flatten()
        return super().step(action)


def test_copies_that_are_left_over_do_not_make_the_last_episode_a_short_one():
    """Were its seed played by all of them, the first to end would be taken: 1 step, where the mean is 2."""
    env, draws = Coins(num_envs=32), generator()
    lengths = [play_episodes(env, RandomPolicy(env.groups), [4, 7], draws)[0] for _ in range(200)]
    first, last = torch.cat(lengths, 1).mean(1).tolist()
    assert abs(first - 2) < 0.4
    assert abs(last - 2) < 0.4


def test_evaluation_leaves_trainings_random_numbers_alone():
    env = Matching(num_envs=2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, _ = play_episodes(env, RandomPolicy(env.groups), range(8), generator())
    assert torch.equal(torch.get_rng_state(), before)
    second, _ = play_episodes(env, RandomPolicy(env.groups), range(8), generator())
    assert torch.equal(first, second)
