import numpy as np
import pytest
import torch
from gymnasium import spaces

from magail.networks import (
    CACHED_ROWS,
    Critic,
    Encoder,
    Gated,
    ImageLayout,
    RunningNormalizer,
    StackedLinear,
    StackedMLP,
    Tanh,
    image_layout,
    obs_normalizer,
)
from magail.types import AgentGroup


def by_hand(mlp, x, agent, shared):
    """One agent's net of a stack, layer by layer."""
    for layer in mlp.layers:
        if isinstance(layer, Tanh):
            x = x.tanh()
        elif isinstance(layer, Gated):
            values, gates = x.chunk(2, -1)
            x = values.tanh() / (1 + (-gates).exp())
        else:
            weight = layer.weight[0 if shared else agent]
            bias = layer.bias[agent if len(layer.bias) > 1 else 0]
            x = x @ weight + bias
    return x


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [(), (6,), (4, 6)])
@pytest.mark.parametrize("activation", ["tanh", "gated"])
def test_a_stack_is_its_nets_side_by_side(shared, batch, activation):
    mlp = StackedMLP(3, 5, [8, 8], 2, activation, share_parameters=shared)
    assert [layer.weight.shape[1] for layer in mlp.layers if isinstance(layer, StackedLinear)] == [5, 8, 8]
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


def image(*shape, dtype=np.uint8):
    return spaces.Box(0, 255, shape, dtype)


LAST, FIRST = ImageLayout((12, 9, 3), True), ImageLayout((3, 12, 9), False)


@pytest.mark.parametrize(
    ("space", "encoder", "layout"),
    [
        (image(12, 9, 3), "auto", LAST),
        (image(3, 12, 9, dtype=np.float32), "auto", FIRST),
        (image(8, 8, 8), "auto", ImageLayout((8, 8, 8), True)),
        (image(12, 9, 3), "mlp", None),
        (image(7, 7, 3), "auto", None),
        (image(7, 7, 3), "cnn", ImageLayout((7, 7, 3), True)),
        (image(12, 9), "cnn", None),
        (spaces.Discrete(300), "cnn", None),
    ],
)
def test_what_counts_as_an_image(space, encoder, layout):
    assert image_layout(space, encoder) == layout


def test_layouts_know_their_axes():
    for layout in (LAST, FIRST):
        assert layout.channels == 3
        assert layout.sides == (12, 9)


def test_unknown_encoder_lists_the_known():
    with pytest.raises(ValueError, match="encoder=resnet: choose one of auto, mlp, cnn"):
        Encoder(image(12, 9, 3), 1, "resnet")


def test_vectors_stay_as_they_are():
    encoder, obs = Encoder(spaces.Box(-1, 1, (5,)), 2, "cnn"), torch.randn(4, 2, 5)
    assert encoder(obs) is obs
    assert encoder.out_features == 5
    assert not list(encoder.parameters())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [(), (6,), (4, 6)])
def test_encoders_side_by_side_are_those_of_each_agent(shared, batch):
    """Layer by layer, as one agent's own convolutions would compute it."""
    encoder = Encoder(image(12, 9, 2), 3, "auto", [4, 5, 6], shared)
    convolutions = [layer for layer in encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    for convolution in convolutions:
        torch.nn.init.normal_(convolution.bias)
    obs = torch.rand(*batch, 3, 12 * 9 * 2)
    features = encoder(obs)
    assert features.shape == (*batch, 3, encoder.out_features)
    assert encoder.out_features == 6 * 3 * 3, "12 x 9, 6 x 5, 3 x 3; stride 1 where the shorter side is 4 or less"
    for agent in range(3):
        x = obs[..., agent, :].reshape(-1, 12, 9, 2).movedim(-1, 1)
        for convolution, stride in zip(convolutions, (2, 2, 1), strict=True):
            part = slice(None) if shared else slice(*(np.array([agent, agent + 1]) * len(convolution.weight) // 3))
            if stride == 1:
                assert min(x.shape[-2:]) <= 4
            x = torch.conv2d(x, convolution.weight[part], convolution.bias[part], stride, 1).relu()
        torch.testing.assert_close(features[..., agent, :], x.reshape(*batch, -1), rtol=1e-4, atol=1e-5)


def test_encoders_of_agents_start_orthogonal_and_different():
    first, second = Encoder(image(9, 9, 3), 2, "auto", [4]).layers[0].weight.flatten(1).chunk(2)
    for kernels in (first, second):
        torch.testing.assert_close(kernels @ kernels.mT, 2 * torch.eye(4))
    assert not torch.equal(first, second)


def test_many_images_are_encoded_in_parts():
    encoder, obs = Encoder(image(3, 8, 8), 2, "auto", [4]), torch.rand(Encoder.CACHED_IMAGES + 3, 2, 192)
    with torch.no_grad():
        parts = encoder(obs)
    torch.testing.assert_close(parts, encoder(obs))


def test_images_with_channels_first_are_read_so():
    last, first = (Encoder(image(*shape), 2, "auto", [4, 5]) for shape in ((12, 9, 3), (3, 12, 9)))
    first.load_state_dict(last.state_dict())
    images = torch.rand(7, 2, 12, 9, 3)
    torch.testing.assert_close(last(images.flatten(2)), first(images.movedim(-1, -3).flatten(2)))


def test_images_are_normalised_by_their_bounds():
    shifted = spaces.Box(np.full((8, 8, 3), -1.0, np.float32), np.full((8, 8, 3), 3.0, np.float32))
    normalizer = obs_normalizer(shifted, "auto")
    normalizer.update(torch.full((5, 192), 2.0), torch.ones(5, 1, dtype=torch.bool))
    assert normalizer(torch.tensor([-1.0, 0.0, 3.0]).repeat(64)).reshape(64, 3).unique(dim=0).tolist() == [[0, 0.25, 1]]
    assert obs_normalizer(image(8, 8, 3), "auto")(torch.full((192,), 255.0)).unique().tolist() == [1.0]
    constant = spaces.Box(np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 3), np.float32))
    assert obs_normalizer(constant, "auto")(torch.zeros(192)).unique().tolist() == [0.0]


@pytest.mark.parametrize(
    ("space", "encoder"),
    [(image(8, 8, 3), "mlp"), (image(7, 7, 3), "auto"), (spaces.Box(-np.inf, np.inf, (8, 8, 3)), "auto")],
)
def test_all_else_is_normalised_by_statistics(space, encoder):
    assert isinstance(obs_normalizer(space, encoder), RunningNormalizer)


def test_the_critic_sees_everyones_image():
    groups = [
        AgentGroup("a", ("a_0", "a_1"), image(8, 8, 3), spaces.Discrete(2)),
        AgentGroup("b", ("b_0",), spaces.Box(-1, 1, (4,)), spaces.Discrete(2)),
    ]
    critic = Critic(groups, [8], "tanh", 100.0, "auto", [4])
    assert sum(p.numel() for p in critic.encoders["a"].parameters()) == 4 * 3 * 9 + 4, "one for both agents"
    obs = {"a": torch.rand(5, 2, 192, requires_grad=True), "b": torch.rand(5, 1, 4, requires_grad=True)}
    values = critic(obs)
    assert {name: tuple(value.shape) for name, value in values.items()} == {"a": (5, 2), "b": (5, 1)}
    values["a"][:, 0].sum().backward()
    assert (obs["a"].grad != 0).flatten(2).any(-1).all()
    assert (obs["b"].grad != 0).all()
