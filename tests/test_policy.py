import pytest
import torch
from gymnasium import spaces

from magail import checkpoint
from magail.policy import MostLikely, Policy, RandomPolicy, load_policy
from tests.toy import TWO_SIDES, groups_of, random_batch


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


def test_a_policy_rebuilds_itself_from_a_checkpoint(policy, tmp_path):
    state = {"generator": {"policy": policy.state_dict(), "description": policy.description()}}
    checkpoint.save(tmp_path / "3.pt", state)
    assert same(policy, load_policy(tmp_path / "3.pt", TWO_SIDES))


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
