import itertools
import json
import re

import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_module

from magail import checkpoint
from magail.config import build
from magail.demonstrations import Demonstrations
from magail.generators.bc import BehavioralCloning, auto_pace
from magail.networks import BoundsNormalizer, RunningNormalizer
from magail.policy import MostLikely, Policy, RandomPolicy, load_policy
from tests.learning.test_imitation import demonstrations_of, fresh_return
from tests.test_ppo import OPTIONS, ppo, returns_after
from tests.toy import TWO_SIDES, BrightPixel, Walk, groups_of, random_batch


@pytest.fixture
def policy():
    torch.manual_seed(0)
    policy = Policy(TWO_SIDES, (8,), "relu", share_parameters=True)
    policy.fit_normalizer(random_batch(TWO_SIDES, 50))
    return policy


def same(a, b):
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


def test_a_policy_rebuilds_itself_from_its_file(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    for path in (tmp_path / "policy.safetensors", tmp_path):
        loaded = load_policy(path, TWO_SIDES)
        assert same(policy, loaded)
        assert loaded.architecture == policy.architecture


def test_policies_of_before_there_were_other_boxes_and_encoders_load(tmp_path):
    policy = Policy(TWO_SIDES, (8,))
    architecture = {key: policy.architecture[key] for key in ("hidden_sizes", "activation", "share_parameters")}
    metadata = {"architecture": json.dumps(architecture), "agents": json.dumps(policy.description()["agents"])}
    safetensors.torch.save_file(policy.state_dict(), tmp_path / "old.safetensors", metadata)
    assert same(policy, load_policy(tmp_path / "old.safetensors", TWO_SIDES))


@pytest.mark.parametrize("box", ["clipped", "squashed", "beta"])
def test_policies_with_other_boxes_rebuild_themselves(box, tmp_path):
    policy = Policy(TWO_SIDES, (8,), box=box)
    policy.save(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path, TWO_SIDES)
    assert loaded.architecture["box"] == box
    obs = random_batch(TWO_SIDES, 4).field("obs")
    assert torch.equal(policy.distributions(obs)["sheep"].mode(), loaded.distributions(obs)["sheep"].mode())


def test_a_policy_rebuilds_itself_from_a_checkpoint(policy, tmp_path):
    state = {"generator": {"policy": policy.state_dict(), "description": policy.description()}}
    checkpoint.save(tmp_path / "3.pt", state)
    assert same(policy, load_policy(tmp_path / "3.pt", TWO_SIDES))


def test_a_policy_goes_on_from_another_ones_file(policy, tmp_path):
    file = str(tmp_path / "first.safetensors")
    policy.save(tmp_path / "first.safetensors")
    other = Policy(policy.groups, **policy.architecture)
    first, second = (group.name for group in policy.groups)
    other.start_from({first: file})
    assert same(other.actors[first], policy.actors[first])
    assert not same(other.actors[second], policy.actors[second])
    obs = random_batch(TWO_SIDES, 100).field("obs")
    assert torch.equal(other.normalize(obs)[first], policy.normalize(obs)[first])
    assert not torch.equal(other.normalize(obs)[second], policy.normalize(obs)[second])
    with pytest.raises(ValueError, match=f"initial_policy: nobody learns as nobody; name some of {first}, {second}"):
        other.start_from({"nobody": file})
    wider = Policy(policy.groups, **policy.architecture | {"hidden_sizes": [16, 16], "activation": "tanh"})
    asked = re.escape('generator.policy.hidden_sizes=[8] generator.policy.activation="relu"')
    with pytest.raises(ValueError, match=f"another architecture than is to be trained: set {asked}"):
        wider.start_from({first: file})


@pytest.mark.parametrize("fixed", [True, False])
def test_a_group_goes_on_with_the_statistics_that_demonstrations_fixed_and_with_no_others(fixed, tmp_path):
    torch.manual_seed(0)
    first, second = (group.name for group in TWO_SIDES)
    policy, other, resumed = (Policy(TWO_SIDES, (8,)) for _ in range(3))
    (policy.fit_normalizer if fixed else policy.observe)(random_batch(TWO_SIDES, 50))
    policy.save(tmp_path / "first.safetensors")
    other.start_from({first: str(tmp_path / "first.safetensors")})
    other.observe(random_batch(TWO_SIDES, 50))
    resumed.load_state_dict(other.state_dict())
    resumed.fit_normalizer(random_batch(TWO_SIDES, 50))
    normalizers = [x.normalizers[first] for x in (policy, other, resumed)]
    for before, after in itertools.pairwise(normalizers):
        assert torch.equal(before.mean, after.mean) == torch.equal(before.var, after.var) == fixed
    assert not torch.equal(other.normalizers[second].mean, resumed.normalizers[second].mean)


def test_what_is_no_policy_is_refused(policy, tmp_path):
    with pytest.raises(ValueError, match="no policy there; give a run folder"):
        load_policy(tmp_path / "nothing", TWO_SIDES)
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"bad\.safetensors: not a policy written by magail"):
        load_policy(tmp_path / "bad.safetensors", TWO_SIDES)
    policy.save(tmp_path / "policy.safetensors")
    others = groups_of(wolf=(3, 4, spaces.Discrete(3)), sheep=(1, 5, spaces.Box(-1.0, 1.0, (2,))))
    with pytest.raises(ValueError, match=r"wolf_1'\].*environment has.*wolf_2"):
        load_policy(tmp_path, others)
    wider = groups_of(wolf=(2, 6, spaces.Discrete(3)), sheep=(1, 5, spaces.Box(-1.0, 1.0, (2,))))
    with pytest.raises(ValueError, match="do not fit the environment's spaces"):
        load_policy(tmp_path, wider)


def test_agents_act_on_their_own_observation_alone(policy):
    obs = random_batch(TWO_SIDES, 10).field("obs")
    before = policy.distributions(obs)["wolf"].log_probs[0]
    obs["wolf"][:, 1] += 1.0
    obs["sheep"] += 1.0
    after = policy.distributions(obs)["wolf"].log_probs[0]
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_sampled_actions_carry_their_log_probability(policy):
    obs = random_batch(TWO_SIDES, 10).field("obs")
    action, log_prob = policy.act(obs, torch.Generator().manual_seed(0))
    again, _ = policy.act(obs, torch.Generator().manual_seed(0))
    for name, distribution in policy.distributions(obs).items():
        torch.testing.assert_close(log_prob[name], distribution.log_prob(action[name]))
        assert torch.equal(action[name], again[name])
    mode, _ = MostLikely(policy).act(obs)
    assert torch.equal(mode["wolf"], policy.distributions(obs)["wolf"].mode())


def test_cloning_loss_is_the_mean_over_the_living():
    torch.manual_seed(0)
    policy, batch = Policy(TWO_SIDES), random_batch(TWO_SIDES, 40, alive=0.5)
    distributions = policy.distributions(batch.field("obs"))
    means = []
    for name, group in batch.groups.items():
        log_prob = distributions[name].log_prob(group.action)
        alive = [log_prob[i, a] for i in range(40) for a in range(log_prob.shape[1]) if group.mask[i, a]]
        means.append(-torch.stack(alive).mean())
    torch.testing.assert_close(policy.negative_log_likelihood(batch), (means[0] + means[1]) / 2)


def test_statistics_run_until_demonstrations_fix_them():
    policy, demonstrations, later = Policy(TWO_SIDES), random_batch(TWO_SIDES, 200), random_batch(TWO_SIDES, 200)
    policy.observe(demonstrations)
    running = policy.normalizers["wolf"].mean.clone()
    policy.fit_normalizer(later)
    fixed = policy.normalizers["wolf"].mean.clone()
    assert not torch.equal(running, fixed)
    policy.observe(demonstrations)
    assert torch.equal(policy.normalizers["wolf"].mean, fixed)


def test_random_policy_acts_in_every_space():
    action, log_prob = RandomPolicy(TWO_SIDES).act(random_batch(TWO_SIDES, 100).field("obs"))
    assert action["wolf"].shape == (100, 2, 1)
    assert set(action["wolf"].flatten().tolist()) == {0, 1, 2}
    assert action["sheep"].shape == (100, 1, 2)
    assert log_prob["sheep"].shape == (100, 1)


CLONING = {"batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.0, "evaluate_every": 1000, "coefficient": 0.0}


def cloned(env, policy, demonstrations, steps):
    """The policy after cloning for ``steps`` gradient steps."""
    BehavioralCloning(policy, demonstrations, None, steps=steps, **CLONING).fit(lambda step, info: None)
    return policy


def random_episode(groups, steps):
    """One of "agent", who acts at random."""
    episode = random_batch(groups, steps)
    transition = episode.groups["agent"]
    transition.next_obs[:-1] = transition.obs[1:]
    transition.terminated[:], transition.truncated[:] = False, False
    transition.truncated[-1] = True
    return episode


def test_the_prior_counts_less_the_more_there_is_to_clone():
    groups = groups_of(agent=(1, 2, spaces.Discrete(2)))
    shown = [Demonstrations.from_episodes(groups, [random_episode(groups, steps)], [-1], {}) for steps in (10, 40)]
    options = CLONING | {"steps": 1}

    def decay(demonstrations, weight_decay):
        options["weight_decay"] = weight_decay
        cloning = BehavioralCloning(Policy(groups), demonstrations, None, **options)
        return cloning.optimizer.param_groups[0]["weight_decay"]

    assert [decay(demonstrations, "auto") for demonstrations in shown] == [30.0, 7.5]
    assert [decay(demonstrations, 0.3) for demonstrations in shown] == [0.3, 0.3]
    for wrong in ("some", -0.1):
        with pytest.raises(ValueError, match=f"bc.weight_decay={wrong} must be auto or a number"):
            decay(shown[0], wrong)


@pytest.mark.parametrize("box", ["gaussian", "clipped"])
def test_a_clones_spread_is_that_of_what_was_shown_however_few(box):
    torch.manual_seed(0)
    groups = groups_of(agent=(1, 2, spaces.Box(-1, 1, (1,))))
    episode = random_episode(groups, 20)
    episode.groups["agent"].action.normal_(0.0, 0.05)
    demonstrations = Demonstrations.from_episodes(groups, [episode], [-1], {})
    policy = Policy(groups, (), box=box)
    options = CLONING | {"steps": 2000, "learning_rate": 1e-2, "weight_decay": "auto"}
    cloning = BehavioralCloning(policy, demonstrations, None, **options)
    cloning.fit(lambda step, info: None)
    assert cloning.optimizer.param_groups[0]["weight_decay"] == 15
    spread = policy.actors["agent"].head.log_std.exp().item()
    assert spread == pytest.approx(0.05, rel=0.3)  # with the decay of weights it was 0.94


@pytest.mark.parametrize(
    ("number", "steps", "rate"),
    [(125, 10_000, 1e-3), (24_000, 10_000, 2e-3), (54_000, 10_000, 3e-3), (216_000, 20_000, 3e-3)],
)
def test_cloning_goes_farther_the_more_there_is_to_clone(number, steps, rate):
    assert auto_pace(number) == pytest.approx((steps, rate))


@pytest.mark.parametrize("box", ["clipped", "squashed", "beta"])
def test_other_boxes_clone_an_expert_that_acts_at_the_bounds(box):
    torch.manual_seed(0)
    env = Walk()
    demonstrations = demonstrations_of(env, 30)
    assert (demonstrations.transitions.groups["walker"].action.abs() == 1).any()
    policy = cloned(env, Policy(env.groups, (32,), box=box), demonstrations, 600)
    assert fresh_return(env, policy) > -3.0  # the best is about -0.6, chance about -14


@pytest.mark.parametrize(("box", "floor"), [("clipped", -2.0), ("squashed", -2.0), ("beta", -4.0)])
def test_other_boxes_learn_from_rewards(box, floor):
    torch.manual_seed(0)
    env = Walk()
    assert returns_after(env, ppo(env.groups, policy=OPTIONS["policy"] | {"box": box}), 60) > floor


@pytest.mark.parametrize("share_parameters", [False, True])
def test_images_are_cloned(share_parameters):
    torch.manual_seed(0)
    env = BrightPixel()
    policy = Policy(env.groups, (32,), "tanh", share_parameters, encoder="auto", channels=(8, 16))
    assert isinstance(policy.normalizers["eye"], BoundsNormalizer)
    cloned(env, policy, demonstrations_of(env, 200), 300)
    assert fresh_return(env, policy) > 4.7  # of 5; chance is 2.5


def test_images_are_learned_from_rewards():
    torch.manual_seed(0)
    env = BrightPixel()
    images = {"encoder": "auto", "channels": [8, 16]}
    options = {"policy": OPTIONS["policy"] | images, "critic": OPTIONS["critic"] | images}
    assert returns_after(env, ppo(env.groups, **options), 40) > 4.5


def test_an_image_policy_rebuilds_itself(tmp_path):
    env = BrightPixel(4)
    env.reset(iter(range(100)))
    policy = Policy(env.groups, (8,), encoder="cnn", channels=(4,))
    policy.save(tmp_path / "policy.safetensors")
    distributions = (p.distributions(env.obs)["eye"].log_probs[0] for p in (policy, load_policy(tmp_path, env.groups)))
    torch.testing.assert_close(*distributions, rtol=0, atol=0)


def test_pursuits_small_images_are_vectors_unless_asked_otherwise():
    with initialize_config_module("magail_conf", version_base="1.3"):
        cfg = compose("config", ["env=pursuit", "env.evaluate.num_envs=1", "env.evaluate.workers=0"])
    env = build(cfg.env.evaluate)
    env.reset(iter(range(10)))
    assert {space.shape for group in env.groups if (space := group.observation_space)} == {(7, 7, 3)}
    for encoder, layout, normalizer in (("auto", None, RunningNormalizer), ("cnn", (7, 7, 3), BoundsNormalizer)):
        policy = Policy(env.groups, (8,), encoder=encoder)
        for name, actor in policy.actors.items():
            assert getattr(actor.encoder.layout, "shape", None) == layout
            assert isinstance(policy.normalizers[name], normalizer)
        env.step(policy.act(env.obs)[0])
    env.close()
