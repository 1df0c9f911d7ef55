"""Demonstrations and episodes in all views of an environment."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from gymnasium import spaces

from magail.demonstrations import Demonstrations
from magail.files import write_weights
from magail.policy import Policy, RandomPolicy, load_policy
from magail.rollout import play_episodes
from magail.symmetries import (
    RandomViews,
    in_all_views,
    last_as_good,
    made_for,
    what_is_shared,
)
from magail.types import AgentGroup, Renamed, Reordered, Symmetries
from magail_envs.particle.simple import Simple
from magail_envs.particle.simple_spread import SimpleSpread
from magail_envs.particle.symmetries import landmarks_of_agents, mirror_images_and_turns
from tests.envs.playing import assert_same, random_action
from tests.toy import ToyEnv

CLONING = {"steps": 300, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.0, "coefficient": 0.0}
NONE, LEFT, RIGHT, DOWN, UP = range(5)


def simple(num_envs):
    """One agent that sees its velocity and where the landmark is."""
    return Simple("simple", {}, num_envs)


SYMMETRIES = mirror_images_and_turns(simple(64))


class Seeker:
    """Moves towards the landmark along the axis on which it is farther away."""

    def act(self, obs, generator=None):
        x, y = obs["agent"][..., 2], obs["agent"][..., 3]
        across = torch.where(x < 0, LEFT, RIGHT)
        action = torch.where(x.abs() > y.abs(), across, torch.where(y < 0, DOWN, UP)).unsqueeze(-1)
        return {"agent": action}, {"agent": torch.zeros(action.shape[:-1])}


class Eastward:
    """Goes right, wherever the landmark is."""

    def act(self, obs, generator=None):
        action = torch.full((*obs["agent"].shape[:-1], 1), RIGHT)
        return {"agent": action}, {"agent": torch.zeros(action.shape[:-1])}


def recorded(policy, number):
    env, seeds = simple(number), range(number)
    _, episodes = play_episodes(env, policy, seeds, torch.Generator().manual_seed(0), record=True)
    return Demonstrations.from_episodes(env.groups, episodes, seeds, {})


def test_inverses_lead_back():
    view, x = torch.arange(8).repeat(4), torch.randn(32, 1, 4)
    for change, seen in ((SYMMETRIES.obs["agent"], x), (SYMMETRIES.action["agent"], torch.randint(5, (32, 1, 1)))):
        assert torch.equal(change.inverse().see(change.see(seen, view), view), seen)


def test_a_change_that_is_not_its_own_inverse_leads_back():
    turn = Reordered(
        torch.tensor([[[0, 1]], [[1, 0]]]), torch.tensor([[[1.0, 1.0]], [[-1.0, 1.0]]])
    )  # (x, y) to (-y, x)
    seen = turn.see(torch.tensor([[[1.0, 2.0]]]), torch.tensor([1]))
    assert seen.flatten().tolist() == [-2.0, 1.0]
    assert turn.inverse().see(seen, torch.tensor([1])).flatten().tolist() == [1.0, 2.0]
    cycle = Renamed(torch.tensor([[[0, 1, 2]], [[1, 2, 0]]]))
    assert cycle.inverse().see(torch.tensor([[[0]]]), torch.tensor([1])).item() == 2


def test_demonstrations_in_all_views():
    demonstrations = recorded(Seeker(), 3)
    views = in_all_views(demonstrations, SYMMETRIES)
    assert len(views) == 24
    assert views.known_seeds() == [0, 1, 2]
    assert torch.equal(views.lengths, demonstrations.lengths.repeat(8))
    for index in range(3):
        assert_same(views.episode(index).groups, demonstrations.episode(index).groups)
    assert torch.equal(views.returns(), demonstrations.returns().repeat(8))
    # who does the same in all views is still seen to do it
    (transition,) = views.transitions.groups.values()
    action, _ = Seeker().act({"agent": transition.obs})
    assert torch.equal(action["agent"], transition.action)
    # and the images are episodes like any other
    episodes = [views.episode(index) for index in range(24)]
    Demonstrations.from_episodes(views.groups, episodes, views.seeds.tolist(), {})


def test_the_dead_stay_zero():
    batch = recorded(Seeker(), 1).transitions
    assert batch.groups["agent"].action.any()
    batch.groups["agent"].mask[:] = False
    batch.groups["agent"].action[:] = 0
    cycle = Symmetries(1, {"agent": SYMMETRIES.obs["agent"]}, {"agent": Renamed(torch.tensor([[[1, 2, 3, 4, 0]]]))})
    seen = cycle.see(batch, torch.zeros(batch.batch_shape[0], dtype=torch.int64))
    assert not seen.groups["agent"].action.any()


def test_episodes_in_random_views_are_those_of_the_environment():
    """Whoever acts alike in all views gets what it gets without them, to the last digit."""
    plain, _ = play_episodes(simple(8), Seeker(), range(40), torch.Generator().manual_seed(0))
    views, _ = play_episodes(RandomViews(simple(8), SYMMETRIES), Seeker(), range(40), torch.Generator().manual_seed(0))
    torch.testing.assert_close(views, plain)


def test_every_view_comes_and_stays_for_an_episode():
    torch.manual_seed(0)
    env = RandomViews(simple(64), SYMMETRIES)
    env.reset(itertools.repeat(7))  # every episode begins alike, so what is seen first tells the view
    random = torch.Generator().manual_seed(0)
    first = env.obs["agent"]
    assert len(first.unique(dim=0)) == 8
    landmark = first[..., 2:]
    for _ in range(25):
        before = env.obs["agent"]
        step = env.step(random_action(env, random))
        moved = step.next_obs["agent"][..., 2:] - before[..., 2:]
        torch.testing.assert_close(moved, -0.1 * before[..., :2])  # the landmark moves against one's own velocity
    assert step.done.all()
    assert not torch.equal(env.obs["agent"][..., 2:], landmark)
    assert len(env.obs["agent"].unique(dim=0)) == 8


def test_it_goes_on_bit_for_bit_where_its_state_was_taken():
    torch.manual_seed(0)
    env, random = RandomViews(simple(8), SYMMETRIES), torch.Generator().manual_seed(0)
    env.reset(itertools.count())
    for _ in range(7):
        env.step(random_action(env, random))
    state = env.state_dict()
    other = RandomViews(simple(8), SYMMETRIES)
    other.load_state_dict(state, itertools.count(8))
    for _ in range(30):
        action, drawn = random_action(env, random), torch.get_rng_state()
        step = env.step(action)
        torch.set_rng_state(drawn)
        assert_same(other.step(action), step)
        assert_same(other.obs, env.obs)


@pytest.mark.parametrize(("demonstrator", "shared"), [(Seeker(), True), (Eastward(), False)])
def test_demonstrations_tell_whether_their_expert_shares_the_views(demonstrator, shared):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    new_policy = partial(Policy, simple(1).groups)
    assert what_is_shared(recorded(demonstrator, 5), SYMMETRIES, [], new_policy, seed=0, **CLONING) is shared
    assert torch.equal(torch.get_rng_state(), before)


class Wavering:
    """Goes right in half of all cases, else anywhere."""

    def act(self, obs, generator=None):
        right, log_prob = Eastward().act(obs)
        anywhere = torch.randint(5, right["agent"].shape, generator=generator)
        wavers = torch.rand(right["agent"].shape, generator=generator) < 0.6
        return {"agent": torch.where(wavers, anywhere, right["agent"])}, log_prob


@pytest.mark.parametrize(("number", "shared"), [(20, True), (50, False)], ids=["few", "many"])
def test_what_cloning_comes_to_is_asked_not_what_it_passes_on_the_way(number, shared):
    """At its best a clone of few, too, does better without views that are not shared; at the end it has overfitted."""
    options = CLONING | {"steps": "auto"}
    new_policy = partial(Policy, simple(1).groups)
    assert what_is_shared(recorded(Wavering(), number), SYMMETRIES, [], new_policy, seed=0, **options) is shared


def test_a_lone_demonstration_is_taken_in_all_views():
    new_policy = partial(Policy, simple(1).groups)
    assert what_is_shared(recorded(Eastward(), 1), SYMMETRIES, [], new_policy, seed=0, **CLONING) is True


@pytest.mark.parametrize(
    ("losses", "answer"),
    [
        ([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]], 0),  # folds differ, but in each the second is worse by as much
        ([[1.0, 2.0, 3.0], [1.5, 1.5, 3.2]], 1),  # 0.5, -0.5 and 0.2 behind: 0.067 +- 0.296
        ([[1.0, 2.0, 3.0], [0.9, 1.9, 2.9], [1.2, 2.4, 3.6]], 1),  # the third 0.5 behind the best, +- 0.115
        ([[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]], 2),
        ([[0.001, 0.001], [0.04, 0.04], [0.06, 0.06]], 1),  # errors of 0, and both of the first predict what was done
    ],
)
def test_of_answers_that_are_as_good_the_last_is_taken(losses, answer):
    assert last_as_good(torch.tensor(losses).unsqueeze(-1)) == answer


@pytest.mark.parametrize(
    ("speaker", "listener", "answer"),
    [
        ([[0.0, 0.1], [0.9, 1.0]], [[6.0, 6.1], [1.0, 1.3]], 1),  # neither suits both: the mean decides
        ([[0.0, 0.1], [0.1, 0.0]], [[6.0, 6.1], [1.0, 1.3]], 1),
        (
            [[0.0, 0.1], [0.1, 0.0], [0.9, 1.0]],
            [[6.0, 6.1], [1.5, 1.3], [1.0, 1.4]],
            1,
        ),  # the last: not by this speaker
        ([[0.0, 0.1], [0.01, 0.02], [0.02, 0.03]], [[6.0, 6.1], [1.5, 1.3], [1.0, 1.4]], 2),  # certain what to say
    ],
)
def test_an_answer_is_to_suit_every_group(speaker, listener, answer):
    assert last_as_good(torch.stack([torch.tensor(speaker), torch.tensor(listener)], -1)) == answer


def spread(num_envs):
    return SimpleSpread("simple_spread", {}, num_envs)


class Settled:
    """Agent i of simple_spread moves towards landmark ``of_agent[i]``."""

    def __init__(self, of_agent):
        self.of_agent = of_agent

    def act(self, obs, generator=None):
        landmarks = obs["agent"][..., 4:10].unflatten(-1, (3, 2))
        own = torch.stack([landmarks[:, agent, landmark] for agent, landmark in enumerate(self.of_agent)], 1)
        velocity = torch.zeros_like(own)
        return Seeker().act({"agent": torch.cat([velocity, own], -1)})


@pytest.mark.parametrize("number", [1, 4], ids="{} demonstrations".format)
@pytest.mark.parametrize("of_agent", [(0, 1, 2), (2, 0, 1)])
def test_demonstrations_tell_what_their_expert_has_settled(of_agent, number):
    torch.manual_seed(0)
    env = spread(number)
    _, episodes = play_episodes(env, Settled(of_agent), range(number), torch.Generator().manual_seed(0), record=True)
    demonstrations = Demonstrations.from_episodes(env.groups, episodes, range(number), {})
    possible = landmarks_of_agents(spread(64), demonstrations.transitions)
    views = mirror_images_and_turns(spread(64))
    new_policy = partial(Policy, env.groups)
    found = what_is_shared(demonstrations, views, possible, new_policy, 0, **CLONING)
    assert list(itertools.permutations(range(3)))[found] == of_agent


def played(env, policy):
    returns, episodes = play_episodes(env, policy, range(40), torch.Generator().manual_seed(0), record=True)
    return returns, Demonstrations.from_episodes(env.groups, episodes, range(40), {})


def test_agents_that_change_places_take_everything_along():
    """Whoever keeps to the convention in all of its views gets what it gets without them, each agent its own."""
    number = 3
    settled = Settled(list(itertools.permutations(range(3)))[number])
    plain, as_they_are = played(spread(8), settled)
    convention = landmarks_of_agents(spread(64), as_they_are.transitions)[number]
    torch.manual_seed(0)
    views, seen = played(RandomViews(spread(8), convention), settled)
    torch.testing.assert_close(views.sort(-1).values, plain.sort(-1).values)
    assert (views - plain).abs().max() > 1  # some touched others, and sat elsewhere
    images = in_all_views(as_they_are, convention)
    for index in range(40):
        episode = seen.episode(index).groups["agent"]
        candidates = [images.episode(index + 40 * view).groups["agent"] for view in range(convention.number)]
        assert any(torch.allclose(episode.obs, image.obs, atol=1e-5) for image in candidates)


def test_ends_counted_before_subsampling_change_places_too():
    ends = {"agent": torch.tensor([[0.3, 0.0, 0.0]])}
    _, demonstrations = played(spread(8), Settled((0, 1, 2)))
    convention = landmarks_of_agents(spread(64), demonstrations.transitions)[0]
    images = in_all_views(replace(demonstrations, whole_ends=ends), convention)
    torch.testing.assert_close(images.ends["agent"], torch.full((1, 3), 0.1))


def disturbed(groups, box="gaussian"):
    """A policy whose actions are not all about as likely, as those of a new one are."""
    torch.manual_seed(0)
    policy = Policy(groups, box=box)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return policy


def spreading(symmetries, box):
    """A policy, observations and actions of steps, and ``symmetries`` of the world."""
    world = SimpleSpread("simple_spread", {"continuous_actions": box != "discrete"}, 64)
    made = mirror_images_and_turns(world) if symmetries == "views" else landmarks_of_agents(world, None)[3]
    world.reset(itertools.count())
    policy = disturbed(world.groups, "gaussian" if box == "discrete" else box)
    return policy, world.obs, [inside(RandomPolicy(world.groups).act(world.obs)[0]) for _ in range(2)], made


def inside(action):
    """Off the bounds of [0, 1], where squashed and beta count all that is near as one."""
    return {name: 0.05 + 0.9 * x if x.is_floating_point() else x for name, x in action.items()}


def sliding(box):
    """As `spreading`, of two agents with two numbers each to see and to act by, of which one changes its sign."""
    group = AgentGroup("agent", ("a", "b"), spaces.Box(-3, 3, (2,)), spaces.Box(-1, 1, (2,)))
    change = Reordered(torch.tensor([[[0, 1]], [[1, 0]]]), torch.tensor([[[1.0, 1.0]], [[-1.0, 1.0]]]))
    obs, *actions = ({"agent": torch.rand(64, 2, 2) * 1.8 - 0.9} for _ in range(3))
    return disturbed([group], box), obs, actions, Symmetries(2, {"agent": change}, {"agent": change})


CASES = [(spreading, "views", box) for box in ("discrete", "gaussian", "squashed", "beta")]
CASES += [(spreading, "names", "discrete"), (spreading, "names", "gaussian")]
CASES += [(sliding, box) for box in ("gaussian", "squashed", "beta")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([case[0].__name__, *case[1:]]))
def test_a_policy_of_views_is_its_normalised_mean_in_log_probability(case):
    """So two actions differ in it as they do in the mean over views, whatever the normalisation."""
    policy, obs, (one, other), views = case[0](*case[1:])
    differences = []
    for number in range(views.number):
        view = torch.full((64,), number)
        there = policy.distributions(views.see_obs(obs, view))["agent"]
        seen = [there.log_prob(views.see_action(action, view)["agent"]) for action in (one, other)]
        differences.append(views.undo_places({"agent": seen[0] - seen[1]}, view)["agent"])
    own = policy.distributions(obs)["agent"]
    policy.views = views
    mean = policy.distributions(obs)["agent"]
    found = mean.log_prob(one["agent"]) - mean.log_prob(other["agent"])
    torch.testing.assert_close(found, torch.stack(differences).mean(0), atol=1e-3, rtol=1e-3)
    assert (mean.log_prob(one["agent"]) - own.log_prob(one["agent"])).abs().max() > 0.1
    along = policy.distributions({"agent": obs["agent"].unflatten(0, (4, 16))})["agent"]  # as of a rollout
    torch.testing.assert_close(along.entropy().flatten(0, 1), mean.entropy())


def test_a_policy_of_views_is_kept_with_them(tmp_path):
    policy, obs, (one, _), views = spreading("views", "discrete")
    policy.views = views
    policy.save(tmp_path / "policy.safetensors")
    again = load_policy(tmp_path / "policy.safetensors", policy.groups)
    torch.testing.assert_close(
        again.distributions(obs)["agent"].log_prob(one["agent"]),
        policy.distributions(obs)["agent"].log_prob(one["agent"]),
    )


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("obs", {"source": [[[0, 0]]], "sign": [[[1.0, 1.0]]]}),
        ("obs", {"source": [[[1, 0]]], "sign": [[[1.0, 1.0]]]}),
        ("action", {"name": [[[0, 1, 2]]]}),
        ("action", {"name": 3}),
    ],
    ids=["no permutation", "other observations", "other actions", "no table"],
)
def test_views_that_do_not_fit_are_refused(tmp_path, part, change):
    policy, _, _, views = spreading("views", "discrete")
    policy.views = views
    description = policy.description()
    description["views"][part]["agent"] = change
    write_weights(tmp_path / "policy.safetensors", policy.state_dict(), description)
    with pytest.raises(ValueError, match="do not fit"):
        load_policy(tmp_path / "policy.safetensors", policy.groups)


ONE, TWO = torch.tensor([[[0, 1, 2, 3]]] * 2), torch.tensor([[[1.0, 1, 1, 1]], [[-1, -1, -1, -1]]])
MIRROR = Symmetries(2, {"agent": Reordered(ONE, TWO)}, {"agent": Renamed(torch.tensor([[[0, 1]], [[1, 0]]]))})
CART = (AgentGroup("agent", ("agent_0",), spaces.Box(-1, 1, (4,)), spaces.Discrete(2)),)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (replace(MIRROR, action={"agent": Renamed(torch.tensor([[[0, 1]], [[1, 1]]]))}), "gives two actions one name"),
        (replace(MIRROR, obs={"agent": Reordered(ONE, -TWO)}), "view 0 of 'agent' does not show things as they are"),
        (replace(MIRROR, obs={"agent": Reordered(ONE, 2 * TWO)}), "every number once, with sign 1 or -1"),
        (replace(MIRROR, obs={"agent": Reordered(ONE * 0, TWO)}), "every number once"),
        (replace(MIRROR, obs={"agent": Reordered(ONE[..., :3], TWO[..., :3])}), "not 2 views of what"),
        (replace(MIRROR, number=3), "not 3 views"),
        (replace(MIRROR, obs={"agents": MIRROR.obs["agent"]}), "not 2 views.*KeyError"),
        (None, "Symmetries is wanted, not None"),
    ],
)
def test_what_are_no_views(views, message):
    made_for(ToyEnv(CART, 1, 1), MIRROR, "env.symmetries")
    with pytest.raises(ValueError, match=f"env.symmetries: .*{message}"):
        made_for(ToyEnv(CART, 1, 1), views, "env.symmetries")
