import numpy as np
import pytest
import torch
from gymnasium import spaces

from magail import checkpoint
from magail.generators.bc import BehavioralCloning
from magail.generators.dagger import DAgger
from magail.policy import Policy
from magail.rollout import collect
from magail.types import Seeds
from tests.learning.test_imitation import demonstrations_of, fresh_return
from tests.toy import TWO_SIDES, Matching, ToyEnv, Walk, groups_of, random_batch

OPTIONS = {
    "policy": {"hidden_sizes": [32], "activation": "tanh", "share_parameters": False},
    "most_likely": True,
    "capacity": 10_000,
    "steps": 20,
    "batch_size": 128,
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "averaging": 0.0,
}
CLONING = {"batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.0, "evaluate_every": 1000, "coefficient": 0.0}


def clone(policy, demonstrations, steps):
    BehavioralCloning(policy, demonstrations, None, steps=steps, **CLONING).fit(lambda step, info: None)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A file each with a policy that plays the toys and one that plays anything in `TWO_SIDES`."""
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    Policy(TWO_SIDES, (8,)).save(folder / "sides.safetensors")
    for env in (Matching(), Walk(), Ring()):
        policy = Policy(env.groups, (32,))
        clone(policy, demonstrations_of(env, 40), 500)
        policy.save(folder / f"{type(env).__name__}.safetensors")
    return folder


class Ring(ToyEnv):
    """A ring of 60 places, each with a right action of its own: it leads to the next place, the others far away.

    So whoever errs gets where an expert's few episodes have not been, and nothing generalises.
    """

    def __init__(self) -> None:
        super().__init__(groups_of(walker=(1, 60, spaces.Discrete(3))), 32, 10)
        self.right = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))

    def begin(self, seeds):
        self.place = torch.tensor([np.random.default_rng(seed).integers(60) for seed in seeds])

    def observe(self):
        return torch.nn.functional.one_hot(self.place, 60).float().unsqueeze(1)

    def play(self, action):
        right = action.flatten() == self.right[self.place]
        self.place = (self.place + torch.where(right, 1, 23)) % 60
        return right.float().unsqueeze(-1)

    def expert_action(self):
        return {"walker": self.right[self.place].reshape(-1, 1, 1)}


def dagger(groups, expert, **changes):
    return DAgger(groups, expert=None if expert is None else str(expert), **(OPTIONS | changes))


def no_reward(batch):
    raise AssertionError("DAgger asked for rewards")


def test_without_an_expert_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"ships none: train one with algorithm=rl and set env\.expert"):
        dagger(TWO_SIDES, None)


@pytest.mark.parametrize(("option", "value"), [("steps", 0), ("capacity", 0), ("weight_decay", -1), ("averaging", 1.0)])
def test_options_out_of_range_are_refused(experts, option, value):
    with pytest.raises(ValueError, match=rf"generator\.{option}={value} must be"):
        dagger(TWO_SIDES, experts / "sides.safetensors", **{option: value})


def rows(batch):
    """Observations of the first group as a set."""
    return set(batch.groups["wolf"].obs[:, 0, 0].tolist())


def test_visited_states_get_the_experts_actions_and_join_the_demonstrations(experts):
    generator = dagger(TWO_SIDES, experts / "sides.safetensors")
    demonstrations = type("Demonstrations", (), {"transitions": random_batch(TWO_SIDES, 7)})()
    visited = [random_batch(TWO_SIDES, 5, 4) for _ in range(2)]
    for rollout in visited:
        info = generator.update(rollout, no_reward, demonstrations=demonstrations)
    dataset = generator.dataset
    assert info["generator/dataset_size"] == len(dataset.groups["wolf"].mask) == 7 + 2 * 20
    flat = [rollout.flatten() for rollout in visited]
    assert rows(dataset) == rows(demonstrations.transitions) | rows(flat[0]) | rows(flat[1])
    expert = generator.expert.policy.distributions(flat[0].field("obs"))
    at_first = dataset[slice(7, 27)]
    assert torch.equal(at_first.groups["wolf"].action, expert["wolf"].mode())
    assert torch.equal(at_first.groups["sheep"].action, expert["sheep"].mode().clamp(-1, 1))
    sampling = dagger(TWO_SIDES, experts / "sides.safetensors", most_likely=False)
    sampling.update(visited[0], no_reward)
    assert not torch.equal(sampling.dataset.groups["wolf"].action, at_first.groups["wolf"].action)
    assert torch.equal(dataset[slice(7)].groups["sheep"].action, demonstrations.transitions.groups["sheep"].action)


def test_beyond_its_capacity_the_dataset_is_a_random_part_of_all_there_has_been(experts):
    torch.manual_seed(0)
    generator = dagger(TWO_SIDES, experts / "sides.safetensors", capacity=100, steps=1)
    kept = torch.zeros(10)
    for _ in range(10):
        generator.dataset, generator.tickets = None, torch.empty(0)
        for round_ in range(10):
            rollout = random_batch(TWO_SIDES, 10, 10)
            rollout.groups["wolf"].env_reward.fill_(round_)
            generator.update(rollout, no_reward)
        assert len(generator.tickets) == 100
        kept += torch.bincount(generator.dataset.groups["wolf"].env_reward[:, 0].long(), minlength=10)
    torch.testing.assert_close(kept / 10, torch.full((10,), 10.0), atol=4.0, rtol=0)


def test_what_the_dead_hold_changes_nothing(experts):
    states = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = dagger(TWO_SIDES, experts / "sides.safetensors")
        rollout = random_batch(TWO_SIDES, 10, 6, alive=0.6)
        for group in rollout.groups.values():
            group.obs[~group.mask] = garbage
        info = generator.update(rollout, no_reward)
        states.append((info, generator.policy.state_dict()))
    (info, state), (info_garbage, state_garbage) = states
    assert info == pytest.approx(info_garbage)
    for key in state:
        torch.testing.assert_close(state[key], state_garbage[key])


def test_an_extra_loss_is_minimised_too(experts):
    torch.manual_seed(0)
    generator = dagger(TWO_SIDES, experts / "sides.safetensors")
    other = random_batch(TWO_SIDES, 64)
    other.groups["wolf"].action[:] = 2
    losses = []
    for extra in (None, lambda: 10 * generator.policy.negative_log_likelihood(other)):
        for _ in range(5):
            generator.update(random_batch(TWO_SIDES, 10, 10), no_reward, 0.0, extra)
        losses.append(generator.policy.negative_log_likelihood(other).item())
    assert losses[1] < losses[0] - 0.1


def trained(env, generator, iterations, demonstrations=None):
    env.reset(Seeds(0))
    for _ in range(iterations):
        rollout, _ = collect(env, generator.policy, 10)
        for group in rollout.groups.values():
            group.env_reward.fill_(float("nan"))  # imitation must not look
        info = generator.update(rollout, no_reward, demonstrations=demonstrations)
    return info


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", [Matching, Walk])
def test_it_comes_to_play_like_the_expert(experts, task, seed):
    torch.manual_seed(seed)
    env = task()
    generator = dagger(env.groups, experts / f"{task.__name__}.safetensors", averaging=0.5)
    trained(env, generator, 30)
    expert = fresh_return(env, generator.expert)
    assert fresh_return(env, generator.averaged) > expert - 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_it_reaches_the_expert_where_cloning_a_single_episode_does_not(experts, seed):
    torch.manual_seed(seed)
    env = Ring()
    demonstrations = demonstrations_of(env, 1)
    generator = dagger(env.groups, experts / "Ring.safetensors")
    clone(generator.policy, demonstrations, 300)
    expert = fresh_return(env, generator.expert)
    assert fresh_return(env, generator.policy) < expert - 2.0
    trained(env, generator, 15, demonstrations)
    assert fresh_return(env, generator.policy) > expert - 0.5


def test_it_goes_on_bit_for_bit(experts, tmp_path):
    def start():
        torch.manual_seed(0)
        env = Walk()
        return env, dagger(env.groups, experts / "Walk.safetensors", capacity=700, averaging=0.9)

    env, generator = start()
    trained(env, generator, 3)
    checkpoint.save(tmp_path / "3.pt", generator.state_dict())
    random = torch.get_rng_state()
    expected = trained(env, generator, 2)
    env, again = start()
    again.load_state_dict(checkpoint.load(tmp_path / "3.pt"))
    torch.set_rng_state(random)
    assert trained(env, again, 2) == expected
    for ours, theirs in ((again.policy, generator.policy), (again.averaged, generator.averaged)):
        assert all(torch.equal(x, theirs.state_dict()[key]) for key, x in ours.state_dict().items())


def test_its_state_before_the_first_round_loads(experts):
    generator = dagger(TWO_SIDES, experts / "sides.safetensors")
    generator.load_state_dict(generator.state_dict())
    assert generator.dataset is None
