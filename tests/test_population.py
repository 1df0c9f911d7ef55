"""Policies of which one is drawn for each episode."""

import itertools

import pytest
import torch

from magail.experts import most_likely
from magail.opponents import AgainstOpponents, against
from magail.policy import MostLikely, Policy
from magail.population import Population
from magail.rollout import Player, collect, play_episodes
from magail_envs.particle.simple_crypto import SimpleCrypto
from magail_envs.particle.simple_push import SimplePush
from tests.envs.playing import Stubborn, Watched, assert_same

EPISODE = 25  # steps
COPIES = 60


def push(copies=COPIES):
    env = SimplePush("simple_push", {}, copies)
    env.reset(itertools.count())
    return env


GROUPS = push(1).groups


def policy(seed, recurrent=0, groups=GROUPS):
    torch.manual_seed(seed)
    return MostLikely(Policy(groups, recurrent=recurrent))


def stubborn(*actions):
    return Population([Stubborn(action) for action in actions])


def test_one_plays_each_episode_in_all_seats():
    torch.manual_seed(0)
    rollout, _ = collect(push(), stubborn(1, 2, 3), 4 * EPISODE)
    actions = {name: group.action[..., 0, 0].unflatten(0, (4, EPISODE)) for name, group in rollout.groups.items()}
    assert torch.equal(*actions.values())
    episodes = actions["agent"]  # [4, 25, E]
    assert (episodes == episodes[:, :1]).all()
    counts = episodes[:, 0].flatten().bincount()[1:]  # of 240, 80 each if all are alike; the deviation is 7.3
    assert counts.shape == (3,)
    assert ((counts - 80).abs() < 30).all()
    assert (episodes[1, 0] != episodes[0, 0]).any()


def test_all_play_in_a_single_copy():
    random = torch.Generator().manual_seed(0)
    _, episodes = play_episodes(push(1), stubborn(1, 2), range(20), random, record=True)
    assert {int(episode.groups["agent"].action[0]) for episode in episodes} == {1, 2}


def test_is_drawn_with_the_generator_alone():
    played = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(len(played))
        _, episodes = play_episodes(push(), stubborn(1, 2), range(9), generator, record=True)
        played.append([episode.groups["agent"].action for episode in episodes])
    assert all(map(torch.equal, played[0], played[1]))
    assert not all(map(torch.equal, played[0], played[2]))


@pytest.mark.parametrize("recurrent", [[0], [16], [16, 16]])
def test_of_copies_of_one_plays_as_that_one(recurrent):
    """Also one that remembers: its memory begins with the episode, whoever played the last."""
    policies = [policy(0, units) for units in recurrent]
    alone, _ = play_episodes(push(7), policies[0], range(30), torch.Generator())
    together, _ = play_episodes(push(7), Population(policies), range(30), torch.Generator())
    assert torch.equal(alone, together)


def test_some_remember_more_than_others():
    """What each plays is what it plays alone from the same initial state."""
    policies = [policy(0), policy(1, 8), policy(2, 16)]
    alone = torch.stack([play_episodes(push(7), one, range(40), torch.Generator())[0] for one in policies])
    together, _ = play_episodes(push(7), Population(policies), range(40), torch.Generator().manual_seed(0))
    who = (alone - together).abs().sum(-1)  # [3, N]
    torch.testing.assert_close(who.amin(0), torch.zeros(40), rtol=0, atol=1e-4)
    assert len(who.argmin(0).unique()) == 3


def test_who_plays_goes_on_when_some_have_died():
    obs = {group.name: torch.zeros(COPIES, 1, group.obs_dim) for group in GROUPS}
    population = stubborn(1, 2, 3)
    first, _, memory = population.act_after({}, obs)
    memory["adversary"] = torch.zeros_like(memory["adversary"])  # dead, as `Player.forget` leaves it
    second, _, _ = population.act_after(memory, obs)
    assert_same(first, second)


def test_lone_steps_are_played_by_anyone():
    obs = {group.name: torch.zeros(COPIES, 1, group.obs_dim) for group in GROUPS}
    action, log_prob = stubborn(1, 2).act(obs)
    assert set(action["agent"].flatten().tolist()) == {1, 2}
    assert log_prob["agent"].shape == (COPIES, 1)


def test_most_likely_actions_of_each():
    population = most_likely(Population([Policy(GROUPS), Population([Policy(GROUPS)])]))
    assert isinstance(population.policies[0], MostLikely)
    assert isinstance(population.policies[1].policies[0], MostLikely)


def test_a_team_is_played_by_the_same_one(tmp_path):
    env = SimpleCrypto("simple_crypto", {}, COPIES)
    groups = {group.name: group for group in env.groups}
    for seed in range(2):
        team = Policy([groups["alice"], groups["bob"]])
        for parameter in team.parameters():  # what the first says is always 0, the other's words are always 3
            torch.nn.init.zeros_(parameter)
        for actor in team.actors.values():
            with torch.no_grad():
                list(actor.parameters())[-1][..., 3 * seed] = 100
        team.save(tmp_path / f"{seed}.safetensors")
    both = [str(tmp_path / f"{seed}.safetensors") for seed in range(2)]
    watched = Watched(env)
    seat = against(watched, {"alice": both, "bob": list(both)}, seed=0)
    assert [group.name for group in seat.groups] == ["eve"]
    seat.reset(itertools.count())
    collect(seat, Policy(seat.groups), 2)
    for action in watched.actions:
        assert set(action["alice"].flatten().tolist()) == {0, 3}
        assert torch.equal(action["alice"], action["bob"])


def test_opponents_go_on_bit_for_bit():
    def seat():
        population = Population([policy(0, 8, GROUPS[:1]), Policy(GROUPS[:1])])
        return AgainstOpponents(push(), {("adversary",): population}, seed=3)

    env, own = seat(), Stubborn(1)
    env.reset(itertools.count())
    collect(env, own, 30)
    state = env.state_dict()
    expected, _ = collect(env, own, 60)
    other = seat()
    other.load_state_dict(state, itertools.count(2 * COPIES))
    assert_same(collect(other, own, 60)[0].groups, expected.groups)


def test_a_player_goes_on_with_the_same_one():
    env, player = push(), Player(stubborn(1, 2, 3))
    first, _, _ = player.step(env)
    other = Player(player.policy)
    other.load_state_dict(player.state_dict(), torch.device("cpu"))
    assert_same(other.step(env)[0], first)
