"""Recurrent actors and critics: sequences, memories, and tasks that need them."""

import functools
import shutil

import pytest
import torch
from gymnasium import spaces

from magail.checkpoint import Checkpoints
from magail.config import check
from magail.demonstrations import Demonstrations
from magail.discriminators import priors, rewards
from magail.discriminators.discriminator import Discriminator
from magail.generators.bc import BehavioralCloning, held_out_info
from magail.generators.dagger import DAgger
from magail.generators.on_policy import OnPolicy
from magail.networks import StackedGRU
from magail.policy import MostLikely, Policy, load_policy
from magail.rollout import Player, collect
from magail.train import train
from magail.types import Seeds, Step
from tests.learning.test_imitation import DISCRIMINATOR, demonstrations_of, fresh_return
from tests.test_config import composed
from tests.test_ppo import OPTIONS, ppo
from tests.test_resume import equal
from tests.toy import TWO_SIDES, ToyEnv, groups_of, random_batch

POLICY, CRITIC = ({**OPTIONS[name], "recurrent": 8} for name in ("policy", "critic"))
BOTH = {"policy": POLICY, "critic": CRITIC}


class Roulette:
    """Four copies in which each agent of two groups lives for a random number of steps, then waits for the others."""

    name, groups, num_envs, device = "roulette", TWO_SIDES, 4, torch.device("cpu")

    def reset(self, seeds):
        self.mask = {g.name: torch.ones(4, g.num_agents, dtype=torch.bool) for g in self.groups}
        self._look()

    def _look(self):
        self.obs = {
            g.name: torch.randn(4, g.num_agents, g.obs_dim) * self.mask[g.name].unsqueeze(-1) for g in self.groups
        }

    def step(self, action):
        ends = {name: alive & (torch.rand(alive.shape) < 0.3) for name, alive in self.mask.items()}
        cut = {name: end & (torch.rand(end.shape) < 0.5) for name, end in ends.items()}
        next_obs = {name: torch.randn(x.shape) * self.mask[name].unsqueeze(-1) for name, x in self.obs.items()}
        self.mask = {name: alive & ~ends[name] for name, alive in self.mask.items()}
        done = ~torch.cat(list(self.mask.values()), -1).any(-1)
        self.mask = {name: alive | done.unsqueeze(-1) for name, alive in self.mask.items()}
        self._look()
        goes_on = {name: ~ends[name] & self.mask[name] & ~done.unsqueeze(-1) for name in self.mask}
        self.obs = {name: torch.where(goes_on[name].unsqueeze(-1), next_obs[name], x) for name, x in self.obs.items()}
        nothing = {name: torch.zeros(alive.shape) for name, alive in self.mask.items()}
        terminated = {name: ends[name] & ~cut[name] for name in ends}
        clock = torch.ones(4, dtype=torch.int64)
        return Step(next_obs, nothing, terminated, cut, done, nothing, clock, clock)


def rollouts(player, *steps):
    """Rollouts of `Roulette`, one after the other."""
    env = Roulette()
    env.reset(Seeds(0))
    return [collect(env, player, n)[0] for n in steps]


def by_copies(tensors):
    return {name: x.transpose(0, 1) for name, x in tensors.items()}


def going_on(rollout):
    return {name: (g.mask & ~g.terminated & ~g.truncated).transpose(0, 1) for name, g in rollout.groups.items()}


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_is_torchs_cells_side_by_side(shared):
    torch.manual_seed(0)
    gru = StackedGRU(3, 5, 4, shared)
    for bias in (gru.input.bias, gru.hidden.bias):
        torch.nn.init.normal_(bias)
    x, memory, kept = torch.randn(6, 7, 3, 5), torch.randn(6, 3, 4), torch.rand(6, 7, 3) < 0.7
    outputs = gru(x, memory, kept)
    assert outputs.shape == (6, 7, 3, 4)
    for agent in range(3):
        cell = torch.nn.GRUCell(5, 4)
        own = 0 if shared else agent
        cell.weight_ih.data = gru.input.weight[own].mT
        cell.weight_hh.data = gru.hidden.weight[own].mT
        cell.bias_ih.data = gru.input.bias[agent, 0]  # also if shared: it is what tells the agents apart
        cell.bias_hh.data = gru.hidden.bias[own, 0]
        hidden = memory[:, agent]
        for t in range(7):
            hidden = cell(x[:, t, agent], hidden)
            torch.testing.assert_close(outputs[:, t, agent], hidden, atol=1e-5, rtol=1e-4)
            hidden = hidden * kept[:, t, agent].unsqueeze(-1)
    torch.testing.assert_close(gru.step(x[:, 0], memory), outputs[:, 0])


def test_gates_start_orthogonal():
    gru = StackedGRU(2, 5, 4)
    for gate in gru.hidden.weight[1].chunk(3, -1):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4))


def test_a_negative_number_of_units_is_refused():
    with pytest.raises(ValueError, match="recurrent=-1 must be at least 0"):
        Policy(TWO_SIDES, recurrent=-1)


# --- playing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_parameters", [False, True])
def test_sequences_are_what_was_played_step_by_step(share_parameters):
    """Also in the second rollout, which begins amid episodes."""
    torch.manual_seed(0)
    policy = Policy(TWO_SIDES, (8,), share_parameters=share_parameters, recurrent=6)
    for actor in policy.actors.values():
        torch.nn.init.normal_(actor.mlp.layers[-1].weight)  # so that what is remembered matters
    first, second = rollouts(Player(policy), 20, 15)
    assert first.memory == {}
    assert all(hidden.any() for hidden in second.memory.values())
    for rollout, memory in ((first, policy.no_memory(4)), (second, second.memory)):
        ends = torch.cat([g.mask & (g.terminated | g.truncated) for g in rollout.groups.values()], -1)
        assert ends[:-1].any(), "there are resets inside"
        obs = by_copies(policy.normalize(rollout.field("obs")))
        kept = going_on(rollout)
        distributions = policy.distributions_of_normalized(obs, memory, kept)
        forgetful = policy.distributions_of_normalized(obs, memory, {name: x & False for name, x in kept.items()})
        for name, group in rollout.groups.items():
            assert not group.mask.all()
            alive = group.mask.transpose(0, 1)
            log_prob = distributions[name].log_prob(group.action.transpose(0, 1))
            torch.testing.assert_close(log_prob[alive], group.log_prob.transpose(0, 1)[alive], atol=1e-5, rtol=1e-5)
            without = forgetful[name].log_prob(group.action.transpose(0, 1))
            assert (without - log_prob)[alive].abs().max() > 0.01


def test_the_dead_and_the_newly_born_remember_nothing():
    player = Player(Policy(TWO_SIDES, (8,), recurrent=6))
    env = Roulette()
    env.reset(Seeds(0))
    dead = 0
    for _ in range(30):
        mask = env.mask
        _, _, step = player.step(env)
        for name, hidden in player.memory.items():
            ended = step.terminated[name] | step.truncated[name] | ~mask[name]
            assert not hidden[ended].any()
            assert hidden[~ended].any(-1).all()
            dead += int((~mask[name]).sum())
    assert dead > 10


def test_what_the_dead_observe_changes_nothing():
    torch.manual_seed(0)
    policy = Policy(TWO_SIDES, (8,), recurrent=6)
    rollout = rollouts(Player(policy), 20)[0]
    log_probs = []
    for garbage in (0.0, 5.0):
        for group in rollout.groups.values():
            group.obs[~group.mask] = garbage
        obs = by_copies(rollout.field("obs"))
        distributions = policy.distributions_of_normalized(obs, policy.no_memory(4), going_on(rollout))
        action, alive = by_copies(rollout.field("action")), by_copies(rollout.field("mask"))
        log_probs.append(torch.cat([distributions[name].log_prob(action[name])[alive[name]] for name in alive]))
    assert torch.equal(*log_probs)


def test_a_recurrent_policy_rebuilds_itself(tmp_path):
    policy = Policy(TWO_SIDES, (8,), recurrent=6)
    policy.save(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path, TWO_SIDES)
    assert loaded.recurrent == 6
    assert all(torch.equal(x, loaded.state_dict()[key]) for key, x in policy.state_dict().items())


# --- learning --------------------------------------------------------------------------------------------------------


def test_the_first_step_has_ratio_one():
    """In every rollout, though what is remembered at its start was seen with older weights."""
    torch.manual_seed(0)
    generator = ppo(TWO_SIDES, **BOTH, epochs=1, minibatch_size=10_000, learning_rate=0.03)
    player, env = Player(generator.policy), Roulette()
    env.reset(Seeds(0))
    for _ in range(4):
        rollout, _ = collect(env, player, 15)
        for group in rollout.groups.values():
            group.env_reward.normal_()
        info = generator.update(rollout, lambda r: r.field("env_reward"))
        assert info["generator/approx_kl"] == pytest.approx(0, abs=1e-6)
        assert info["generator/clip_fraction"] == 0
    rollout, _ = collect(env, player, 15)
    rollout.memory = None
    info = generator.update(rollout, lambda r: r.field("env_reward"))
    assert info["generator/approx_kl"] > 2e-5, "a memory that is left out shows"


def test_minibatches_are_whole_sequences():
    generator = ppo(TWO_SIDES, **BOTH, epochs=1, minibatch_size=45)
    seen = []
    loss = generator._loss
    generator._loss = lambda samples: seen.append(samples) or loss(samples)
    (rollout,) = rollouts(Player(generator.policy), 20)
    generator.update(rollout, lambda r: r.field("env_reward"))
    assert [len(samples) for samples in seen] == [2, 2]  # 2 x 20 environment steps fit into 45
    obs = torch.cat([samples.obs["wolf"] for samples in seen])
    ours = generator.policy.normalize(rollout.field("obs"))["wolf"].transpose(0, 1)
    assert obs.shape == ours.shape == (4, 20, 2, 4)


def test_values_follow_the_memory_of_each_episode():
    torch.manual_seed(0)
    generator = ppo(TWO_SIDES, **BOTH)
    critic = generator.critic
    torch.nn.init.normal_(critic.gru.hidden.weight)
    (rollout,) = rollouts(Player(generator.policy), 30)
    obs, next_obs, kept = by_copies(rollout.field("obs")), by_copies(rollout.field("next_obs")), going_on(rollout)
    memory = critic.gru.nothing(4)
    value, next_value, after = critic.values_along(obs, next_obs, memory, kept)
    anybody = torch.cat(list(kept.values()), -1).any(-1)  # [E, T]
    assert 0 < (~anybody).sum() < anybody.numel() / 2
    for t in range(30):
        memory = critic.gru.step(critic._joint({n: x[:, t] for n, x in obs.items()}), memory)
        then = critic.gru.step(critic._joint({n: x[:, t] for n, x in next_obs.items()}), memory)
        for values, hidden in ((value, memory), (next_value, then)):
            for name, expected in critic._by_group(hidden).items():
                torch.testing.assert_close(values[name][:, t], expected, atol=1e-5, rtol=1e-4)
        memory = memory * anybody[:, t, None, None]
    torch.testing.assert_close(after, memory, atol=1e-5, rtol=1e-4)
    assert generator.critic_memory == {}
    generator.update(rollout, lambda r: r.field("env_reward"))
    torch.testing.assert_close(generator.critic_memory["critic"], after)


def test_what_the_dead_hold_changes_nothing():
    results = []
    for garbage in (0.0, 5.0):
        torch.manual_seed(0)
        generator = ppo(TWO_SIDES, **BOTH)
        for rollout in rollouts(Player(generator.policy), 10, 10):
            for group in rollout.groups.values():
                group.env_reward[~group.mask] = garbage
                group.log_prob[~group.mask] = garbage
            info = generator.update(rollout, lambda r: r.field("env_reward"))
        results.append((info | {"generator/reward_mean": 0}, generator.policy.state_dict()))
    (info, state), (info_garbage, state_garbage) = results
    assert info == info_garbage
    assert all(torch.equal(state[key], state_garbage[key]) for key in state)


@pytest.mark.parametrize(("policy", "critic"), [(POLICY, OPTIONS["critic"]), (OPTIONS["policy"], CRITIC)])
def test_one_of_policy_and_critic_may_do_without(policy, critic):
    generator = ppo(TWO_SIDES, policy=policy, critic=critic, epochs=1, minibatch_size=10_000)
    for rollout in rollouts(Player(generator.policy), 10, 10):
        info = generator.update(rollout, lambda r: r.field("env_reward"))
    assert info["generator/clip_fraction"] == 0


class Recall(ToyEnv):
    """A bit is shown in the first of five steps, and must be played in the last."""

    def __init__(self, num_envs=32):
        super().__init__(groups_of(player=(2, 3, spaces.Discrete(2))), num_envs, 5)

    def begin(self, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.bits = torch.stack([torch.randint(2, (2,), generator=generator) for generator in generators])

    def observe(self):
        shown = (self.bits * 2.0 - 1.0) * (self.clock == 0)
        now = torch.tensor([float(self.clock == 0), float(self.clock == 4)]).expand(*shown.shape, 2)
        return torch.cat([shown.unsqueeze(-1), now], -1)

    def play(self, action):
        return (action.squeeze(-1) == self.bits).float() * (self.clock == 4)

    def expert_action(self):
        return {"player": self.bits.unsqueeze(-1)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("recurrent", [0, 8])
def test_rewards_teach_what_only_memory_can_do(recurrent, seed):
    """Rollouts of 8 steps cut the episodes of 5 at every place."""
    torch.manual_seed(seed)
    env = Recall()
    options = {name: OPTIONS[name] | {"recurrent": recurrent} for name in ("policy", "critic")}
    generator = ppo(env.groups, **options, minibatch_size=128)
    player = Player(generator.policy)
    env.reset(Seeds(seed))
    for _ in range(40):
        rollout, _ = collect(env, player, 8)
        generator.update(rollout, lambda r: r.field("env_reward"))
    judged = fresh_return(env, MostLikely(generator.policy))
    assert judged > 0.95 if recurrent else 0.35 < judged < 0.65


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("recurrent", [0, 8])
def test_cloning_teaches_what_only_memory_can_do(recurrent, seed):
    torch.manual_seed(seed)
    env = Recall()
    demonstrations, held_out = demonstrations_of(env, 60).split(0.2, 0)
    policy = Policy(env.groups, (16,), recurrent=recurrent)
    options = {"batch_size": 60, "learning_rate": 1e-2, "weight_decay": 0.0, "evaluate_every": 100, "coefficient": 1.0}
    BehavioralCloning(policy, demonstrations, held_out, steps=200, **options).fit(lambda step, info: None)
    judged, loss = fresh_return(env, MostLikely(policy)), held_out_info(policy, held_out)["bc/held_out_loss"]
    assert judged > 0.95 if recurrent else 0.35 < judged < 0.65
    assert loss < 0.1 if recurrent else loss > 0.4


def ragged_demonstrations():
    """Complete episodes of 1 to 7 steps, in which agents end at different steps."""
    torch.manual_seed(0)
    episodes = []
    for length in (3, 7, 1, 4):
        episode = random_batch(TWO_SIDES, length)
        for group in episode.groups.values():
            lives = torch.randint(1, length + 1, group.mask.shape[1:])
            lives[0] = length
            clock = torch.arange(length).unsqueeze(-1)
            group.mask, group.terminated = clock < lives, clock == lives - 1
            group.truncated = group.terminated & False
            group.next_obs[:-1] = group.obs[1:]
            group.obs *= group.mask.unsqueeze(-1)
            group.next_obs *= group.mask.unsqueeze(-1)
            group.next_obs[:-1] = torch.where(
                (group.mask & ~group.terminated)[:-1].unsqueeze(-1), group.obs[1:], group.next_obs[:-1]
            )
        episodes.append(episode)
    return Demonstrations.from_episodes(TWO_SIDES, episodes, [-1] * 4, {})


def test_episodes_come_side_by_side():
    demonstrations = ragged_demonstrations()
    batch = demonstrations.episodes([1, 3, 2])
    assert batch.batch_shape == (3, 7)
    for row, index in enumerate((1, 3, 2)):
        episode = demonstrations.episode(index)
        length = episode.batch_shape[0]
        for name, group in episode.groups.items():
            padded = batch.groups[name][row]
            for key, value in vars(group).items():
                assert torch.equal(getattr(padded, key)[:length], value)
                assert not getattr(padded, key)[length:].any()
    sampled = [demonstrations.sample_episodes(15) for _ in range(200)]
    assert {batch.batch_shape[0] for batch in sampled} == {4}  # of 3.75 steps on average
    assert {batch.batch_shape[1] for batch in sampled} >= {4, 7}


def test_cloning_loss_is_that_of_episodes_played_one_by_one():
    demonstrations = ragged_demonstrations()
    policy = Policy(TWO_SIDES, (8,), recurrent=6)
    for actor in policy.actors.values():
        torch.nn.init.normal_(actor.mlp.layers[-1].weight)
    losses = {name: [] for name in policy.actors}
    for index in range(len(demonstrations)):
        episode, memory = demonstrations.episode(index), {}
        for t in range(episode.batch_shape[0]):
            step = episode[t : t + 1]
            distributions, memory = policy.step(step.field("obs"), memory)
            for name, group in step.groups.items():
                losses[name].append(-distributions[name].log_prob(group.action)[group.mask])
    expected = torch.stack([torch.cat(x).mean() for x in losses.values()]).mean()
    torch.testing.assert_close(policy.negative_log_likelihood(demonstrations.episodes(range(4))), expected)


# --- runs ------------------------------------------------------------------------------------------------------------


RUN = [
    "env=simple_spread",
    "env.batched.num_envs=6",
    "env.mpe2.num_envs=2",
    "env.mpe2.workers=0",
    "generator.policy.recurrent=16",
    "rollout_steps=10",  # episodes have 25 steps: the checkpoints fall into the middle of some
    "iterations=6",
    "checkpoint.every=3",
    "checkpoint.keep=10",
    "demonstrations.count=4",
    "demonstrations.held_out=0.25",
    "bc.steps=3",
    "evaluation.every=2",
    "evaluation.episodes=2",
    "evaluation.final_episodes=2",
    "evaluation.video_episodes=1",
    "discriminator.steps=2",
    "discriminator.batch_size=32",
    "logger.mode=disabled",
]


def test_a_run_resumes_bit_for_bit(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    train(composed(*RUN), whole)
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints/00000006.pt").unlink()
    assert Checkpoints(resumed / "checkpoints", 10).latest()["player"]["memory"]["agent"].any()
    train(composed(*RUN), resumed)
    states = [Checkpoints(folder / "checkpoints", 10).latest() for folder in (whole, resumed)]
    assert states[0]["iteration"] == 6
    assert states[0]["generator"]["critic_memory"]["critic"].any()
    assert equal(*states)
    assert (whole / "results.json").read_text() == (resumed / "results.json").read_text()
    assert (whole / "video.gif").is_file()


# --- who cannot ------------------------------------------------------------------------------------------------------


CANNOT = "learns from lone steps.*choose generator=ppo"


@pytest.mark.parametrize("network", ["policy", "critic"])
def test_on_policy_generators_must_say_that_they_can(network):
    options = {name: OPTIONS[name] for name in ("policy", "critic", "gamma", "gae_lambda", "absorbing", "averaging")}
    OnPolicy(TWO_SIDES, **options)
    with pytest.raises(ValueError, match=CANNOT):
        OnPolicy(TWO_SIDES, **options | {network: BOTH[network]})


@pytest.mark.parametrize("whose", ["policy", "expert", "one of the experts"])
def test_dagger_refuses(whose, tmp_path):
    Policy(TWO_SIDES, (8,), recurrent=0 if whose == "policy" else 4).save(tmp_path / "policy.safetensors")
    Policy(TWO_SIDES, (8,)).save(tmp_path / "other.safetensors")
    options = {"capacity": 10, "steps": 1, "batch_size": 1, "learning_rate": 1.0, "weight_decay": 0.0, "averaging": 0.0}
    policy = POLICY if whose == "policy" else OPTIONS["policy"]
    expert = [str(tmp_path / "other.safetensors"), str(tmp_path)] if "one" in whose else str(tmp_path)
    with pytest.raises(ValueError, match=CANNOT):
        DAgger(TWO_SIDES, policy=policy, expert=expert, most_likely=False, **options)


@pytest.mark.parametrize("asker", ["airl", "zero-sum"])
def test_discriminators_that_ask_the_policy_about_lone_steps_are_refused(asker):
    options = {"airl_discount": 0.9} if asker == "airl" else {}
    prior = priors.Decentralized if asker == "airl" else priors.ZeroSum
    demonstrations = ragged_demonstrations()
    discriminator = Discriminator(
        TWO_SIDES,
        demonstrations,
        None,
        prior=functools.partial(prior, hidden_sizes=[8], activation="relu"),
        reward=rewards.logit,
        **DISCRIMINATOR | options,
    )
    with pytest.raises(ValueError, match=r"asked about lone steps.*generator\.policy\.recurrent=0"):
        discriminator.update(random_batch(TWO_SIDES, 4, 4), demonstrations, Policy(TWO_SIDES, recurrent=4))


@pytest.mark.parametrize("choice", [["algorithm=airl"], ["env=simple_push", "discriminator=zero_sum"]])
def test_they_are_refused_before_a_run_starts(choice):
    check(composed(*choice))
    with pytest.raises(ValueError, match=r"lone steps.*set\s+generator\.policy\.recurrent=0"):
        check(composed(*choice, "generator.policy.recurrent=8"))
