import pytest
import torch

from magail.advantage import gae, masked_mean, normalize_per_agent

GAMMA, LAMBDA = 0.9, 0.8


def column(*values):
    """T values of one agent in one environment, [T, 1, 1]."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool).reshape(-1, 1, 1)


def test_gae_is_the_discounted_sum_of_td_errors():
    reward, value, next_value = column(1, 2, 3), column(0.5, -1, 2), column(-1, 2, 4)
    never = flags(0, 0, 0)
    got = gae(reward, value, next_value, never, never, ~never, GAMMA, LAMBDA).flatten()
    delta = [1 + 0.9 * -1 - 0.5, 2 + 0.9 * 2 + 1, 3 + 0.9 * 4 - 2]
    c = GAMMA * LAMBDA
    assert got.tolist() == pytest.approx([delta[0] + c * delta[1] + c**2 * delta[2], delta[1] + c * delta[2], delta[2]])


def test_lambda_one_is_the_return_minus_the_value():
    reward, value = torch.rand(6, 2, 3, dtype=torch.float64), torch.rand(7, 2, 3, dtype=torch.float64)
    never = torch.zeros(6, 2, 3, dtype=torch.bool)
    got = gae(reward, value[:-1], value[1:], never, never, ~never, GAMMA, 1.0)
    returns = [sum(GAMMA**k * reward[t + k] for k in range(6 - t)) + GAMMA ** (6 - t) * value[6] for t in range(6)]
    torch.testing.assert_close(got, torch.stack(returns) - value[:-1])


def test_terminated_does_not_bootstrap_truncated_does_and_both_cut_the_trace():
    reward, value, next_value = column(1, 1, 1, 1), column(2, 2, 2, 2), column(5, 5, 5, 5)
    terminated, truncated = flags(0, 1, 0, 0), flags(0, 0, 1, 0)
    got = gae(reward, value, next_value, terminated, truncated, flags(1, 1, 1, 1), GAMMA, LAMBDA).flatten().tolist()
    full, ended = 1 + 0.9 * 5 - 2, 1 - 2
    assert got == pytest.approx([full + GAMMA * LAMBDA * ended, ended, full, full])


def test_dead_agents_have_no_advantage_and_pass_nothing_on():
    """Agent dies at step 1, is dead at 2 and 3 (where garbage must not count), and lives again from 4."""
    reward, value, next_value = column(1, 1, 99, 99, 1), column(2, 2, 99, 99, 2), column(5, 5, 99, 99, 5)
    terminated, mask = flags(0, 1, 0, 0, 0), flags(1, 1, 0, 0, 1)
    got = gae(reward, value, next_value, terminated, ~terminated & False, mask, GAMMA, LAMBDA).flatten().tolist()
    full, ended = 1 + 0.9 * 5 - 2, 1 - 2
    assert got == pytest.approx([full + GAMMA * LAMBDA * ended, ended, 0, 0, full])


def test_agents_and_environments_do_not_mix():
    torch.manual_seed(0)
    reward, value, next_value = (torch.rand(5, 3, 2) for _ in range(3))
    terminated, truncated, mask = (torch.rand(5, 3, 2) < p for p in (0.2, 0.2, 0.8))
    joint = gae(reward, value, next_value, terminated, truncated, mask, GAMMA, LAMBDA)
    for e in range(3):
        for a in range(2):
            one = (slice(None), slice(e, e + 1), slice(a, a + 1))
            inputs = (x[one] for x in (reward, value, next_value, terminated, truncated, mask))
            torch.testing.assert_close(gae(*inputs, GAMMA, LAMBDA), joint[one])


def test_masked_mean_counts_the_living_only():
    x, mask = torch.tensor([[1.0, 10.0], [3.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    assert masked_mean(x, mask).item() == pytest.approx(14 / 3)
    assert masked_mean(x, mask, dim=0).tolist() == [2.0, 10.0]
    assert masked_mean(x, mask & False).item() == 0.0


def test_advantages_are_normalised_per_agent():
    torch.manual_seed(0)
    advantage = torch.randn(500, 2) * torch.tensor([1.0, 100.0]) + torch.tensor([5.0, -300.0])
    mask = torch.rand(500, 2) < 0.7
    got = normalize_per_agent(advantage, mask)
    assert (got[~mask] == 0).all()
    for agent in range(2):
        alive = got[mask[:, agent], agent]
        assert alive.mean().item() == pytest.approx(0, abs=1e-5)
        assert alive.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
