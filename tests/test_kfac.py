import copy
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from magail.networks import StackedLinear, StackedMLP
from magail.optim.kfac import KFAC

OPTIONS = {
    "learning_rate": 1.0,
    "clip_kl": float("inf"),
    "momentum": 0.0,
    "damping": 1e-24,
    "statistics_decay": 0.9,
    "inverse_every": 1,
    "cold_steps": 0,
    "diagonal": {},
}
A, F, H = 3, 4, 2


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def kfac(module, **changes):
    return KFAC(module, **(OPTIONS | changes))


def stacked(share_weight=False, share_bias=False, nets=A):
    layer = StackedLinear(nets, F, H, 1.0, share_weight, share_bias)
    nn.init.normal_(layer.bias)
    return layer


def white(*shape):
    """Noise ``[N, ...]`` whose second moments over N are exactly the identity, so that no test needs many samples."""
    noise = torch.randn(shape[0], int(torch.tensor(shape[1:]).prod()))
    return (torch.linalg.qr(noise)[0] * shape[0] ** 0.5).reshape(shape)


def outputs(module, x):
    """``x [N, A, F]`` or ``[N, F]`` to outputs with the batch first."""
    if isinstance(module, StackedLinear):
        return module(x.permute(1, 2, 0)).permute(2, 0, 1)
    return module(x)


def watch(optimizer, module, x, noise=None, mask=None):
    """One pass as a Gaussian of unit variance whose sample is the mean plus ``noise``; the outputs."""
    with optimizer.watching():
        y = outputs(module, x)
    noise = white(*y.shape) if noise is None else noise
    mask = torch.ones(y.shape[:-1], dtype=torch.bool) if mask is None else mask
    optimizer.update_statistics(-0.5 * (y.detach() + noise - y).square().sum(-1), mask)
    return y


def means(optimizer, layer=0):
    """The factors, not damped: ``[B, I, I]`` and ``[B, H, H]``."""
    return [factor.sum / optimizer.samples.reshape(-1, 1, 1) for factor in optimizer.layers[layer].factors]


def change(module, function):
    """What ``function`` did to the parameters, a matrix ``[B, I, H]`` of the only layer."""
    (layer,) = kfac(module).layers
    before = layer.values().clone()
    function()
    return layer.values() - before


def regression(module, x, target, **changes):
    """An optimizer that has seen ``x``, and gradients of each network's mean squared error."""
    optimizer = kfac(module, **changes)
    y = watch(optimizer, module, x)
    module.zero_grad()
    (0.5 * (y - target).square().sum(-1)).mean(0).sum().backward()
    return optimizer


def with_ones(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def exact_fisher(module, x, log_probs):
    """Of the parameters ``[I, H]`` of one network: the Hessian of the mean KL divergence to where they are now."""
    now = [p.detach() for p in module.parameters()]
    old = log_probs(module(x)).detach()

    def kl(flat):
        shift = flat.reshape(-1, module.out_features)
        parts = [now[0] + shift[: module.in_features].T, now[1] + shift[-1]]
        new = log_probs(functional_call(module, dict(zip(("weight", "bias"), parts, strict=True)), x))
        return (old.exp() * (old - new)).sum(-1).mean()

    return hessian(kl)(torch.zeros((module.in_features + 1) * module.out_features))


def linear_of(layer, net):
    """One network of a `StackedLinear`."""
    linear = nn.Linear(F, layer.weight.shape[-1])
    with torch.no_grad():
        linear.weight.copy_(layer.weight[min(net, len(layer.weight) - 1)].T)
        linear.bias.copy_(layer.bias[min(net, len(layer.bias) - 1), 0])
    return linear


def test_factors_are_the_fisher_matrix_where_inputs_and_gradients_are_independent():
    """Three softmax models whose probabilities, 1/2, 1/4 and 1/4 in some order, depend on no input."""
    layer = StackedLinear(A, F, 3, 1.0, False, False)
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(probabilities.log().unsqueeze(1))
    inputs = torch.randn(10, A, F)
    drawn = torch.tensor([[0, 0, 1, 2], [1, 1, 0, 2], [2, 2, 0, 1]]).T  # [4, A], as often as they are probable
    x = inputs.repeat_interleave(4, 0)
    optimizer = kfac(layer)
    with optimizer.watching():
        log_probs = outputs(layer, x).log_softmax(-1)
    log_likelihood = log_probs.gather(-1, drawn.repeat(10, 1).unsqueeze(-1)).squeeze(-1)
    optimizer.update_statistics(log_likelihood, torch.ones(40, A, dtype=torch.bool))
    for net, (inputs_factor, gradients_factor) in enumerate(zip(*means(optimizer), strict=True)):
        fisher = exact_fisher(linear_of(layer, net), inputs[:, net], lambda y: y.log_softmax(-1))
        torch.testing.assert_close(torch.kron(inputs_factor, gradients_factor), fisher)


@pytest.mark.parametrize("make", [lambda: nn.Linear(F, H), stacked], ids=["linear", "stacked"])
def test_one_step_solves_a_linear_regression(make):
    """Its Fisher matrix is E[a a^T] x I whatever the inputs, and the Hessian; so the step is Newton's."""
    module = make()
    x = torch.randn(50, F) if isinstance(module, nn.Linear) else torch.randn(50, A, F)
    target = torch.randn(*x.shape[:-1], H)
    optimizer = regression(module, x, target)
    optimizer.step()
    x, target, y = (z if z.dim() == 3 else z.unsqueeze(1) for z in (x, target, outputs(module, x)))
    for net in range(x.shape[1]):
        best = torch.linalg.lstsq(with_ones(x[:, net]), target[:, net]).solution
        torch.testing.assert_close(y[:, net], with_ones(x[:, net]) @ best)


def test_damping_is_added_to_the_roots_and_shared_out_by_the_mean_eigenvalues():
    module, damping = stacked(), 0.3
    x, target = 5 * torch.randn(50, A, F), torch.randn(50, A, H)
    optimizer = regression(module, x, target, damping=damping)
    gradient = optimizer.layers[0].gradient().clone()
    step = change(module, optimizer.step)
    for net, (inputs, gradients) in enumerate(zip(*means(optimizer), strict=True)):
        pi = (inputs.trace() / (F + 1) / (gradients.trace() / H)) ** 0.5
        damped_inputs = inputs + pi * damping**0.5 * torch.eye(F + 1)
        damped_gradients = gradients + damping**0.5 / pi * torch.eye(H)
        dense = torch.linalg.solve(torch.kron(damped_inputs, damped_gradients), gradient[net].flatten())
        torch.testing.assert_close(step[net].flatten(), -dense)


def test_large_damping_leaves_the_plain_gradient():
    module = stacked()
    optimizer = regression(module, torch.randn(50, A, F), torch.randn(50, A, H), damping=1e8)
    step = change(module, optimizer.step)
    torch.testing.assert_close(step * 1e8, -optimizer.layers[0].gradient(), rtol=1e-3, atol=1e-4)


def layer_fishers(first, last, x):
    """Exact Fisher matrices of the layers of a tanh network with Gaussian noise on its outputs."""
    inputs = with_ones(x)
    hidden = (inputs @ first).tanh()
    back = (1 - hidden.square()).unsqueeze(1) * last[:-1].T  # d output / d hidden before tanh, [N, H, hidden]
    jacobians = [
        torch.einsum("ni,nkj->nkij", inputs, back),
        torch.einsum("ni,kj->nkij", with_ones(hidden), torch.eye(last.shape[1])),
    ]
    rows = [jacobian.flatten(2).flatten(0, 1) for jacobian in jacobians]
    return [row.T @ row / len(x) for row in rows]


@pytest.mark.parametrize(("scale", "floor"), [(0.03, 0.998), (0.15, 0.9)])
def test_the_direction_in_a_network_is_close_to_the_dense_one(scale, floor):
    """The more so the more linear its units are; the last layer's is exact, as a Gaussian's outputs are all alike."""
    net = StackedMLP(2, F, [3], 4)
    x = torch.randn(20000, 2, F) * torch.tensor([0.1, 0.5, 1.0, 2.0]) * scale
    optimizer = kfac(net)
    with optimizer.watching():
        y = net(x)
    optimizer.update_statistics((white(*y.shape) * y).sum(-1), torch.ones(y.shape[:-1], dtype=torch.bool))
    (y - (x / scale).exp()).square().sum(-1).mean(0).sum().backward()
    before = [layer.values().clone() for layer in optimizer.layers]  # [2, I, H] each
    optimizer.step()
    for agent in range(2):
        fishers = layer_fishers(before[0][agent], before[1][agent], x[:, agent])
        for index, (layer, fisher) in enumerate(zip(optimizer.layers, fishers, strict=True)):
            gradient = layer.gradient()[agent].flatten()
            dense = torch.linalg.solve(fisher, gradient)
            step = (before[index] - layer.values())[agent].flatten()
            cosine, plain = (nn.functional.cosine_similarity(dense, d, dim=0).item() for d in (step, gradient))
            assert cosine > (floor, 1 - 1e-6)[index]
            assert plain < 0.9, "else the test would show nothing"


def test_samples_of_the_dead_are_in_no_factor_and_each_network_has_its_own():
    """A stack of networks, each fed garbage where it is dead, is like networks that were fed their living alone."""
    module, x, mask = stacked(), torch.randn(40, A, F), torch.rand(40, A) < 0.6
    noise, target = torch.randn(40, A, H), torch.randn(40, A, H)
    x[~mask] = 1e3
    optimizer = kfac(module, damping=0.1)
    y = watch(optimizer, module, x, noise, mask)
    ((y - target).square().sum(-1) * mask / mask.sum(0)).sum().backward()
    step = change(module, optimizer.step)
    assert optimizer.samples.tolist() == mask.sum(0).tolist()
    for net in range(A):
        alone, alive = linear_of(stacked_before(module, step), net), mask[:, net]
        single = kfac(alone, damping=0.1)
        y = watch(single, alone, x[alive, net], noise[alive, net])
        (y - target[alive, net]).square().sum(-1).mean().backward()
        torch.testing.assert_close(change(alone, single.step)[0], step[net])
        for mine, its in zip(means(single), means(optimizer), strict=True):
            torch.testing.assert_close(mine[0], its[net])


def stacked_before(module, step):
    """``module`` as it was before ``step``."""
    before = copy.deepcopy(module)
    with torch.no_grad():
        before.weight.sub_(step[:, :F])
        before.bias.sub_(step[:, F:])
    return before


def test_a_network_without_any_sample_stays_as_it_is():
    module, mask = stacked(), torch.ones(40, A, dtype=torch.bool)
    mask[:, 1] = False
    optimizer = kfac(module, damping=0.1, clip_kl=1e-3)
    y = watch(optimizer, module, torch.randn(40, A, F), mask=mask)
    (y.square().sum(-1) * mask).mean().backward()
    step = change(module, optimizer.step)
    assert torch.equal(step[1], torch.zeros(F + 1, H))
    assert step[[0, 2]].abs().min() > 0


@pytest.mark.parametrize("share_bias", [True, False])
def test_shared_weights_are_one_network_with_the_samples_of_all(share_bias):
    """Biases of their own are the weights of a one-hot number in the input."""
    module, x = stacked(True, share_bias), torch.randn(40, A, F)
    mask, noise = torch.rand(40, A) < 0.7, torch.randn(40, A, H)
    number = torch.ones(40, A, 1) if share_bias else torch.eye(A).expand(40, A, A)
    single = nn.Linear(F + number.shape[-1], H, bias=False)
    with torch.no_grad():
        single.weight.copy_(torch.cat([module.weight[0], module.bias.squeeze(1)]).T)
    steps, factors = [], []
    for net, inputs, alive, draw in (
        (module, x, mask, noise),
        (single, torch.cat([x, number], -1)[mask], None, noise[mask]),
    ):
        optimizer = kfac(net, damping=0.1)
        y = watch(optimizer, net, inputs, draw, alive)
        (y.square().sum(-1) * (1 if alive is None else alive)).sum().div(mask.sum()).backward()
        steps.append(change(net, optimizer.step))
        factors.append(means(optimizer))
    torch.testing.assert_close(factors[0], factors[1])
    torch.testing.assert_close(steps[0], steps[1])


def test_old_samples_fade_and_the_start_has_no_weight():
    module, decay = nn.Linear(F, H), 0.7
    optimizer = kfac(module, statistics_decay=decay)
    batches = [torch.randn(n, F) for n in (20, 30, 10)]
    sums, count = torch.zeros(F + 1, F + 1), 0.0
    for x in batches:
        watch(optimizer, module, x)
        sums, count = decay * sums + with_ones(x).T @ with_ones(x), decay * count + len(x)
        inputs, gradients = means(optimizer)
        torch.testing.assert_close(inputs[0], sums / count)
        torch.testing.assert_close(gradients[0], torch.eye(H))


def test_factors_are_inverted_every_so_many_steps():
    module = nn.Linear(F, H)
    optimizer = kfac(module, inverse_every=2)
    inverses = []
    for _ in range(4):
        watch(optimizer, module, torch.randn(30, F))
        module(torch.randn(30, F)).square().mean().backward()
        optimizer.step()
        inverses.append(optimizer.layers[0].inputs.inverse)
    assert torch.equal(inverses[0], inverses[1])
    assert not torch.equal(inverses[1], inverses[2])
    assert torch.equal(inverses[2], inverses[3])


@pytest.mark.parametrize("cold_steps", [0, 1])
def test_a_step_is_shortened_to_the_kl_divergence_allowed_of_each_network(cold_steps):
    """Measured, not modelled: of linear-Gaussian models the KL divergence is half the squared change of the mean."""
    module, x = stacked(), torch.randn(50, A, F)
    scales = torch.tensor([10.0, 1.0, 1e-3]).reshape(A, 1)  # of the gradients
    optimizer = regression(module, x, outputs(module, x).detach() + scales * torch.randn(50, A, H), clip_kl=0.01)
    optimizer.cold_steps = cold_steps
    before = outputs(module, x)
    optimizer.step()
    kl = 0.5 * (outputs(module, x) - before).square().sum(-1).mean(0)
    torch.testing.assert_close(kl[:2], torch.tensor([0.01, 0.01]))
    assert 0 < kl[2] < 1e-6, "nor is a short step made longer"


def test_momentum_is_a_running_mean_of_steps_and_stays_in_the_trust_region():
    module, x = nn.Linear(F, H), torch.randn(50, F)
    optimizer = regression(module, x, 10 * torch.randn(50, H), momentum=0.8, learning_rate=0.5)
    natural = optimizer.layers[0].gradient().clone()
    first, second = change(module, optimizer.step), change(module, optimizer.step)
    natural = optimizer.layers[0].natural(natural)
    torch.testing.assert_close(first, -0.5 * 0.2 * natural)
    torch.testing.assert_close(second, -0.5 * (1 - 0.8**2) * natural)

    optimizer.clip_kl, kls = 1e-3, []
    optimizer.velocity[0].zero_()
    for _ in range(30):
        before = module(x)
        optimizer.step()
        kls.append(0.5 * (module(x) - before).square().sum(-1).mean().item())
    assert max(kls) <= 1e-3 + 1e-9
    assert kls[-1] == pytest.approx(1e-3, rel=0.01)


def test_the_first_steps_follow_the_plain_gradient():
    module = nn.Linear(F, H)
    optimizer = regression(module, torch.randn(50, F), torch.randn(50, H), cold_steps=2, learning_rate=0.1)
    gradient = optimizer.layers[0].gradient().clone()
    for _ in range(2):
        torch.testing.assert_close(change(module, optimizer.step), -0.1 * gradient)
    torch.testing.assert_close(change(module, optimizer.step), -0.1 * optimizer.layers[0].natural(gradient))


class Noisy(nn.Module):
    """A stack with a parameter of its own."""

    def __init__(self, share_weight):
        super().__init__()
        self.layer, self.log_std = stacked(share_weight, share_weight), nn.Parameter(torch.zeros(A, H))


@pytest.mark.parametrize("share_weight", [False, True])
def test_a_parameter_outside_layers_has_the_fisher_information_given(share_weight):
    module, x = Noisy(share_weight), torch.randn(50, A, F)
    optimizer = kfac(module, diagonal={module.log_std: 2.0}, damping=0.5)
    watch(optimizer, module.layer, x)
    (module.layer.weight.sum() * 0 + module.layer.bias.sum() * 0 + module.log_std.exp().sum()).backward()
    optimizer.step()
    torch.testing.assert_close(module.log_std.detach(), torch.full((A, H), -1 / 2.5))

    with torch.no_grad():
        module.log_std.zero_()
    optimizer.clip_kl = 0.01
    optimizer.step()
    step = module.log_std.detach()
    kl = 0.5 * 2.5 * step.square().reshape(optimizer.nets, -1).sum(1)
    torch.testing.assert_close(kl, torch.full((optimizer.nets,), 0.01))


def test_what_it_has_no_fisher_matrix_for_is_refused():
    with pytest.raises(ValueError, match="parameter log_std, which is in no"):
        kfac(Noisy(False))
    with pytest.raises(ValueError, match=r"equally many networks, not \{'0': 3, '1': 1\}"):
        kfac(nn.Sequential(stacked(), nn.Linear(F, H)))


def test_it_goes_on_bit_for_bit_from_its_saved_state():
    options = {
        "momentum": 0.9,
        "damping": 0.01,
        "clip_kl": 0.01,
        "inverse_every": 3,
        "cold_steps": 2,
        "learning_rate": 0.5,
    }
    x, target = torch.randn(8, 50, A, F), torch.randn(50, A, H)

    def steps(optimizer, module, batches):
        for batch in batches:
            y = watch(optimizer, module, batch, noise=target)
            module.zero_grad()
            (y - target).square().mean().backward()
            optimizer.step()

    module = stacked()
    optimizer = kfac(module, **options)
    steps(optimizer, module, x[:4])
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = stacked()
    again.load_state_dict(saved["module"])
    resumed = kfac(again, **options)
    resumed.load_state_dict(saved["optimizer"])
    steps(optimizer, module, x[4:])
    steps(resumed, again, x[4:])
    assert torch.equal(module.weight, again.weight)
    assert torch.equal(module.bias, again.bias)


def test_nothing_watches_outside_and_gradients_of_the_loss_are_left_alone():
    net, x = StackedMLP(A, F, [5], H), torch.randn(20, A, F)
    optimizer = kfac(net)
    with optimizer.watching():
        y = net(x)
    net(torch.randn(7, A, F))
    optimizer.update_statistics((torch.randn_like(y) * y).sum(-1), torch.ones(20, A, dtype=torch.bool))
    assert all(p.grad is None for p in net.parameters())
    assert optimizer.samples.tolist() == [20.0] * A
    y.sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    for gradient, parameter in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
