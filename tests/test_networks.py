import pytest
import torch
from gymnasium import spaces

from magail.networks import CACHED_ROWS, Critic, RunningNormalizer, StackedMLP, Tanh
from magail.types import AgentGroup


def by_hand(mlp, x, agent, shared):
    """One agent's net of a stack, layer by layer."""
    for layer in mlp.layers:
        if isinstance(layer, Tanh):
            x = x.tanh()
        else:
            weight = layer.weight[0 if shared else agent]
            bias = layer.bias[agent if len(layer.bias) > 1 else 0]
            x = x @ weight + bias
    return x


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [(), (6,), (4, 6)])
def test_a_stack_is_its_nets_side_by_side(shared, batch):
    mlp = StackedMLP(3, 5, [8, 8], 2, share_parameters=shared)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(*batch, 3, 5)
    y = mlp(x)
    assert y.shape == (*batch, 3, 2)
    for agent in range(3):
        torch.testing.assert_close(y[..., agent, :], by_hand(mlp, x[..., agent, :], agent, shared).reshape(*batch, 2))


def test_many_rows_are_evaluated_in_parts():
    mlp, x = StackedMLP(2, 3, [4], 5), torch.randn(CACHED_ROWS + 7, 2, 3)
    with torch.no_grad():
        parts = mlp(x)
    torch.testing.assert_close(parts, mlp(x))
    with torch.no_grad():
        assert mlp(x[:0]).shape == (0, 2, 5)


def test_tanh_and_its_derivatives():
    """The second derivative is what a gradient penalty descends on."""
    x = torch.linspace(-30, 30, 1001)
    torch.testing.assert_close(Tanh()(x.clone()), x.tanh(), atol=3e-7, rtol=0)
    points = torch.linspace(-3, 3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Tanh()(x * 1), points)
    assert torch.autograd.gradgradcheck(lambda x: Tanh()(x * 1), points)


def test_shared_parameters_are_fewer_and_still_tell_agents_apart():
    def size(shared):
        return sum(p.numel() for p in StackedMLP(4, 5, [8], 2, share_parameters=shared).parameters())

    assert size(False) == 4 * (5 * 8 + 8 + 8 * 2 + 2)
    assert size(True) == 5 * 8 + 4 * 8 + 8 * 2 + 2


def test_unknown_activation_lists_the_known():
    with pytest.raises(ValueError, match=r"'gelo'.*tanh, relu"):
        StackedMLP(1, 2, [3], 4, activation="gelo")


def test_normalizer_agrees_with_the_moments_of_all_it_saw():
    torch.manual_seed(0)
    normalizer = RunningNormalizer((3,))
    x = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 100.0, -3.0])
    mask = torch.rand(1000, 1) < 0.5
    for part, part_mask in zip(x.split(170), mask.split(170), strict=True):
        normalizer.update(part, part_mask)
    seen = x[mask.squeeze(-1)]
    torch.testing.assert_close(normalizer.mean, seen.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalizer.var, seen.var(0, unbiased=False), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normalizer.inverse(normalizer(seen)), seen, rtol=1e-4, atol=1e-4)


def test_normalizer_keeps_still_on_what_it_never_saw():
    normalizer = RunningNormalizer((2,))
    normalizer.update(torch.full((5, 2), 7.0), torch.tensor([True, False]).expand(5, 2))
    assert normalizer.mean.tolist() == [7.0, 0.0]
    assert normalizer.var.tolist() == [0.0, 1.0]


def test_a_horizon_lets_old_samples_fade():
    fading, lasting = RunningNormalizer((1,), horizon=100), RunningNormalizer((1,))
    for value in (0.0, 1.0):
        for _ in range(50):
            for normalizer in (fading, lasting):
                normalizer.update(torch.full((20, 1), value), torch.ones(20, 1, dtype=torch.bool))
    assert fading.mean.item() > 0.99
    assert lasting.mean.item() == pytest.approx(0.5)


def test_the_critic_sees_everyone_and_values_each():
    groups = [
        AgentGroup("a", ("a_0", "a_1"), spaces.Box(-1, 1, (3,)), spaces.Discrete(2)),
        AgentGroup("b", ("b_0",), spaces.Box(-1, 1, (4,)), spaces.Discrete(2)),
    ]
    critic = Critic(groups, [8], "tanh", 100.0)
    obs = {"a": torch.randn(5, 2, 3, requires_grad=True), "b": torch.randn(5, 1, 4, requires_grad=True)}
    values = critic(obs)
    assert {name: tuple(value.shape) for name, value in values.items()} == {"a": (5, 2), "b": (5, 1)}
    values["a"][:, 0].sum().backward()
    assert (obs["a"].grad != 0).all()
    assert (obs["b"].grad != 0).all()
