"""A particle world that is turned or mirrored goes on as its views say."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from magail.policy import RandomPolicy
from magail.rollout import collect
from magail.types import JointTransition
from magail_envs.particle.symmetries import (
    VIEWS,
    interchangeable,
    landmarks_of_agents,
    languages,
    mirror_images_and_turns,
    one_time_pad,
)
from tests.envs.playing import random_action
from tests.envs.test_particle_tasks import discrete_and_continuous, each_case, make

COPIES = 3 * len(VIEWS)
NOBODY = JointTransition({})  # demonstrations that are not asked
SAME_REWARD = {"rtol": 1e-3, "atol": 1e-3}  # contacts are stiff, and sums are taken in another order


def turned(world, views):
    """The state of a world, each copy turned as its view says."""
    state = world.state_dict()
    for name in {"pos", "vel", "targets"} & state["state"].keys():
        vectors = state["state"][name]  # [..., 2, E]
        for copy, view in enumerate(views.tolist()):
            vectors[..., copy] = VIEWS[view].see(vectors[..., copy])
    return state


def undrawn(world, state):
    """Which copies have drawn nothing since ``state``: what comes by chance comes to the same place from all views."""
    if "generator" not in state["state"]:
        return torch.ones(COPIES, dtype=torch.bool)
    return (world.state["generator"] == state["state"]["generator"]).all(0)


@discrete_and_continuous
@each_case
def test_a_turned_world_goes_on_as_its_views_say(task, arguments, continuous):
    if task == "simple_formation_v1":
        pytest.skip("its targets stand in fixed directions: conf/env/simple_formation.yaml names no symmetries")
    arguments = arguments | {"continuous_actions": continuous}
    symmetries = mirror_images_and_turns(make(task, 64, **arguments))
    goes_on_as_its_views_say(task, arguments, symmetries, turned)


def goes_on_as_its_views_say(task, arguments, symmetries, changed):
    """Of two worlds, one ``changed`` as its copies' views say, what is seen and paid is the same from these views."""
    world, other = (make(task, COPIES, **arguments) for _ in range(2))
    views = torch.arange(COPIES) % symmetries.number
    random = torch.Generator().manual_seed(0)
    for env in (world, other):
        env.reset(itertools.count(5))
    began = world.state_dict()
    other.load_state_dict(changed(world, views), itertools.count(1000))
    compared = 0
    for _ in range(6):
        same = undrawn(world, began)
        compared += int(same.sum())
        for name, seen in symmetries.see_obs(world.obs, views).items():
            torch.testing.assert_close(seen[same], other.obs[name][same], rtol=1e-4, atol=1e-4)
        action = random_action(world, random)
        step = world.step(symmetries.undo_action(action, views))
        mirrored = other.step(action)
        same = undrawn(world, began)
        for name, reward in symmetries.places(step.reward, views).items():
            torch.testing.assert_close(reward[same], mirrored.reward[name][same], **SAME_REWARD)
        assert torch.equal(step.done[same], mirrored.done[same])
        if step.done.any():
            break
    assert compared > COPIES


def by_other_names(number, names):
    """What renames landmarks, and ``number`` agents, in each copy as its view of ``names`` says."""

    def changed(world, views):
        state = world.state_dict()
        old = {name: value.clone() for name, value in state["state"].items()}
        for copy, view in enumerate(views.tolist()):
            of_landmarks, of_agents = names[view]
            for agent, called in of_agents.items():
                for name in ("pos", "vel", "speech"):
                    state["state"][name][called, ..., copy] = old[name][agent, ..., copy]
            for landmark, called in of_landmarks.items():
                state["state"]["pos"][number + called, :, copy] = old["pos"][number + landmark, :, copy]
            if "goal" in old:
                goal = int(old["goal"][copy])
                state["state"]["goal"][copy] = of_landmarks.get(goal, goal)
        return state

    return changed


@discrete_and_continuous
@pytest.mark.parametrize("number", [2, 3])
def test_agents_and_their_landmarks_by_other_names(number, continuous):
    arguments = {"N": number, "continuous_actions": continuous}
    found = landmarks_of_agents(make("simple_spread_v3", 64, **arguments), NOBODY)
    possible = list(itertools.permutations(range(number)))
    assert len(found) == len(possible)
    for symmetries, of_agent in zip(found, possible, strict=True):
        assert symmetries.number == len(possible)
        names = [
            ({of_agent[agent]: of_agent[called] for agent, called in enumerate(order)}, dict(enumerate(order)))
            for order in possible
        ]
        goes_on_as_its_views_say("simple_spread_v3", arguments, symmetries, by_other_names(number, names))


@discrete_and_continuous
def test_agents_and_their_landmarks_by_other_names_beside_an_adversary(continuous):
    arguments = {"continuous_actions": continuous}
    found = landmarks_of_agents(make("simple_adversary_v3", 64, **arguments), NOBODY)
    assert len(found) == 2  # where there are two of each, whose is whose makes no difference
    for symmetries in found:
        called = [({}, {}), ({0: 1, 1: 0}, {1: 2, 2: 1})]
        goes_on_as_its_views_say("simple_adversary_v3", arguments, symmetries, by_other_names(3, called))


ALIKE = {  # by task and whether agents are: how many agents, and kinds of landmarks, then agents, of more than one
    ("simple_tag_v3", True): (4, [[0, 1]], [[0, 1, 2]]),
    ("simple_push_v3", True): (2, [[0, 1]], []),
    ("simple_adversary_v3", False): (3, [[0, 1]], []),
    ("simple_adversary_v3", True): (3, [[0, 1]], [[1, 2]]),
    ("simple_world_comm_v3", True): (6, [[1, 2], [3, 4]], [[1, 2, 3], [4, 5]]),
}


def ways_to_call(kinds):
    """Of each way the new names of all that can have another."""
    for orders in itertools.product(*map(itertools.permutations, kinds)):
        yield dict(zip(itertools.chain(*kinds), itertools.chain(*orders), strict=True))


@discrete_and_continuous
@pytest.mark.parametrize(("task", "agents"), ALIKE)
def test_what_is_alike_by_other_names(task, agents, continuous):
    number, *kinds = ALIKE[task, agents]
    called = list(itertools.product(*map(ways_to_call, kinds)))
    arguments = {"continuous_actions": continuous}
    (symmetries,) = interchangeable(make(task, 64, **arguments), NOBODY, agents)
    assert symmetries.number == len(called)
    goes_on_as_its_views_say(task, arguments, symmetries, by_other_names(number, called))


@pytest.mark.parametrize(
    ("arguments", "agents"),
    [({"num_obstacles": 1}, False), ({"num_obstacles": 0, "num_adversaries": 1}, True), ({"num_adversaries": 5}, True)],
)
def test_nothing_and_too_much_that_is_alike(arguments, agents):
    assert interchangeable(make("simple_tag_v3", 4, **arguments), NOBODY, agents) == []


LANGUAGES = {  # by task the agents that speak, and the words that each of them says for each landmark, rarer ones last
    "simple_speaker_listener_v4": {0: [(1, 2, 0)]},
    "simple_reference_v3": {0: [(7, 0, 3), (4, 5, 9), (2, 6, 1)], 1: [(3, 9, 2), (0, 1, 4), (5, 6, 7)]},
}


class Speakers:
    """Move at random and say what their goal is called, more often by the first words than by others."""

    def __init__(self, world, words):
        self.world, self.words, self.random = world, words, RandomPolicy(world.groups)

    def act(self, obs, generator=None):
        action, log_prob = self.random.act(obs, generator)
        goals = self.world.state["goal"].expand(len(self.words), -1)
        for agent, words in self.words.items():
            role, place = ("speaker", 0) if "speaker" in action else ("agent", agent)
            how_often = torch.tensor([4.0, 2.0, 1.0][: len(words)]).expand(len(goals[agent]), -1)
            which = how_often.multinomial(1, generator=generator).squeeze(1)
            said = torch.tensor(words)[which, goals[agent]]
            uttered = action[role][:, place]
            if uttered.is_floating_point():
                uttered[:, -self.world.symbols :] = F.one_hot(said, self.world.symbols).float()
            else:
                moves = self.world.controls[role].shape[0] // self.world.symbols
                uttered[:, 0] = said * moves + uttered[:, 0] % moves
        return action, log_prob


def renamed_landmarks_and_words(words):
    def changed(world, views):
        state, orders = world.state_dict(), list(itertools.permutations(range(3)))
        old = {name: value.clone() for name, value in state["state"].items()}
        for copy, view in enumerate(views.tolist()):
            for landmark, called in enumerate(orders[view]):
                state["state"]["pos"][2 + called, :, copy] = old["pos"][2 + landmark, :, copy]
                for agent, word in ((agent, word) for agent, meant in words.items() for word in meant):
                    state["state"]["speech"][agent, word[called], copy] = old["speech"][agent, word[landmark], copy]
            state["state"]["goal"][..., copy] = torch.tensor(orders[view])[old["goal"][..., copy]]
        return state

    return changed


@discrete_and_continuous
@pytest.mark.parametrize("task", LANGUAGES)
def test_landmarks_and_the_words_for_them_by_other_names(task, continuous):
    arguments, words = {"continuous_actions": continuous}, LANGUAGES[task]
    world = make(task, 64, **arguments)
    world.reset(itertools.count())
    torch.manual_seed(0)
    demonstrations, _ = collect(world, Speakers(world, words), 50)
    (symmetries,) = languages(make(task, 64, **arguments), demonstrations.flatten())
    assert symmetries.number == 6
    goes_on_as_its_views_say(task, arguments, symmetries, renamed_landmarks_and_words(words))


def test_words_for_landmarks_that_were_no_goal_are_made_up():
    """Of a speaker that was seen with one goal alone: what it says for it, and some other words for the others."""
    task = "simple_speaker_listener_v4"
    world = make(task, 8)
    world.reset(itertools.count())
    world.state["goal"].fill_(2)
    world.load_state_dict(world.state_dict(), itertools.count())
    demonstrations, _ = collect(world, Speakers(world, {0: [(2, 1, 0)]}), 20)
    (symmetries,) = languages(make(task, 64), demonstrations.flatten())
    names = symmetries.action["speaker"].name[:, 0]  # [views, words]
    orders = torch.tensor(list(itertools.permutations(range(3))))
    assert torch.equal(names[:, 0] == 0, orders[:, 2] == 2)  # the word 0 stays where landmark 2 does
    assert len(names.unique(dim=0)) == 6


def test_who_calls_two_landmarks_the_same_has_settled_no_words():
    """Renaming one of the two would contradict what was said of the other."""
    task = "simple_speaker_listener_v4"
    world = make(task, 64)
    world.reset(itertools.count())
    demonstrations, _ = collect(world, Speakers(world, {0: [(2, 1, 2)]}), 50)
    assert languages(make(task, 64), demonstrations.flatten()) == []


class Encrypting:
    """Alice says word 3 where bit and key are the same and 1 where not, Bob guesses accordingly, Eve always 1."""

    def __init__(self, world):
        self.world = world

    def act(self, obs, generator=None):
        bit, key = obs["alice"][..., :2].argmax(-1), obs["alice"][..., 4:6].argmax(-1)
        said = obs["bob"][..., 4:]
        guess = torch.where(said[..., 3] > 0, key, 1 - key)  # [E, 1]
        words = {"alice": 3 - 2 * (bit ^ key), "bob": guess, "eve": torch.ones_like(guess)}
        action = {role: word.unsqueeze(-1) for role, word in words.items()}
        if self.world.arguments.continuous_actions:
            action = {role: F.one_hot(word, 4).float() for role, word in words.items()}
        return action, {role: torch.zeros_like(word, dtype=torch.float32) for role, word in words.items()}


@discrete_and_continuous
def test_one_time_pad(continuous):
    """Of a bit and a key that are the same it makes all four, in each of which what was done is right."""
    world = make("simple_crypto_v3", 1, continuous_actions=continuous)
    world.reset(itertools.count(4))
    steps = collect(world, Encrypting(world), 20)[0].flatten()
    (symmetries,) = one_time_pad(make("simple_crypto_v3", 64, continuous_actions=continuous), steps)
    met = set()
    for view in range(symmetries.number):
        seen = symmetries.see(steps, torch.full((20,), view))
        obs, action = seen.field("obs"), seen.field("action")
        bit, key = (obs["alice"][0, 0, at : at + 2].argmax().item() for at in (0, 4))
        met.add((bit, key))
        said = action["alice"] if continuous else F.one_hot(action["alice"][..., 0], 4).float()
        assert ((said.argmax(-1) == 3) == (bit == key)).all()
        assert torch.equal(said[:-1], obs["bob"][1:, :, 4:])  # it is heard as it was said
        played, _ = Encrypting(world).act(obs)
        for role in ("bob", "eve"):
            assert torch.equal(action[role][1:], played[role][1:])  # at first there is no word to guess by
    assert met == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_who_did_not_hear_alice_settles_nothing():
    assert one_time_pad(make("simple_crypto_v3", 4), NOBODY) == []


def test_a_world_without_places_looks_the_same_from_all_sides():
    assert mirror_images_and_turns(make("simple_crypto_v3", 64)).number == 1


@pytest.mark.parametrize("number", [1, 5])
def test_nothing_and_too_much_to_settle(number):
    assert landmarks_of_agents(make("simple_spread_v3", 4, N=number), NOBODY) == []


def test_the_views_are_eight_and_the_first_shows_things_as_they_are():
    world = make("simple_spread_v3", 64)
    symmetries = mirror_images_and_turns(world)
    actions = symmetries.action["agent"].name
    assert symmetries.number == len(actions.unique(dim=0)) == 8
    assert actions[0].tolist() == [[0, 1, 2, 3, 4]] * 3
    first = symmetries.obs["agent"]
    assert first.source[0].tolist() == [list(range(18))] * 3
    assert first.sign[0].tolist() == [[1.0] * 18] * 3


def test_left_and_right_change_places_in_the_mirror():
    symmetries = mirror_images_and_turns(make("simple_v3", 64))  # sees velocity and landmark, x and y each
    mirror = next(i for i, view in enumerate(VIEWS) if view.see(torch.tensor([2.0, 3.0])).tolist() == [-2.0, 3.0])
    view = torch.tensor([mirror])
    seen = symmetries.obs["agent"].see(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), view)
    assert seen.flatten().tolist() == [-1.0, 2.0, -3.0, 4.0]
    renamed = symmetries.action["agent"].see(torch.arange(5).view(1, 5, 1), view)
    assert renamed.flatten().tolist() == [0, 2, 1, 3, 4]  # none, left, right, down, up


@pytest.mark.parametrize("copies", [1, 8])
@pytest.mark.parametrize("task", ["simple_push_v3", "simple_world_comm_v3"])
def test_the_views_do_not_hang_on_the_number_of_copies(task, copies):
    few, many = (interchangeable(make(task, number), NOBODY, agents=True)[0] for number in (copies, 300))
    for name, change in many.obs.items():
        assert torch.equal(few.obs[name].source, change.source), name
        assert torch.equal(few.obs[name].sign, change.sign), name


def test_numbers_that_are_always_the_same_are_not_taken_twice():
    """simple_adversary's only landmark is its goal as well."""
    for change in mirror_images_and_turns(make("simple_adversary_v3", 64, N=1)).obs.values():
        numbers = torch.arange(change.source.shape[-1])
        assert torch.equal(change.source.sort(-1).values, numbers.expand_as(change.source))


def test_what_others_mean_by_words_cannot_be_asked():
    """Where somebody else speaks, demonstrations are of the listener alone."""
    world = make("simple_speaker_listener_v4", 64)
    assert languages(world, NOBODY) == []


def test_what_is_said_stays_what_it_was():
    symmetries = mirror_images_and_turns(make("simple_reference_v3", 64))
    names = symmetries.action["agent"].name[:, 0]  # [8, 50], the symbol being the action's tens of fives
    assert torch.equal(names // 5, torch.arange(50).expand(8, -1) // 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_looking_for_the_views_disturbs_nobody(dtype):
    before = torch.get_rng_state()
    mirror_images_and_turns(make("simple_tag_v3", 8, dtype))
    assert torch.equal(torch.get_rng_state(), before)
