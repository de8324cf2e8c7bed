"""normkit.torch.beyond against formulas in float64, torch.nn, and what the papers promise."""

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit as nk  # noqa: E402
from normkit import epilogues  # noqa: E402
from normkit.errors import DTypeError, NormError, OptionError, ShapeError  # noqa: E402
from normkit.torch import beyond as nb  # noqa: E402

nn = torch.nn
F64 = torch.float64

#: id, how the layer is made, a shape that it takes
ACTIVATIONS = [
    ("frn", lambda: nb.FilterResponseNorm(4), (3, 4, 5)),
    ("frn-eps", lambda: nb.FilterResponseNorm(4, learnable_eps=True), (3, 4)),
    ("frn-last", lambda: nb.FilterResponseNorm(4, axis=-1), (3, 2, 3, 4)),
    ("tlu", lambda: nb.ThresholdedLinearUnit(4), (3, 4, 2, 2)),
    ("grn", lambda: nb.GlobalResponseNorm(4), (2, 3, 2, 4)),
    ("grn-first", lambda: nb.GlobalResponseNorm(4, axis=1), (2, 4, 5)),
    ("dyt", lambda: nb.DynamicTanh(4), (2, 3, 4)),
    ("dyt-first", lambda: nb.DynamicTanh(4, axis=1), (2, 4, 3)),
    ("b0", lambda: nb.EvoNormB0(4), (3, 4, 2, 3)),
    ("b0-alone", lambda: nb.EvoNormB0(4, track_running_stats=False), (3, 4, 3)),
    ("b0-affine", lambda: nb.EvoNormB0(4, apply_act=False), (3, 4)),
    ("s0", lambda: nb.EvoNormS0(4, groups=2), (2, 4, 3)),
    ("s0-vectors", lambda: nb.EvoNormS0(4, groups=2), (3, 4)),
    ("s0-affine", lambda: nb.EvoNormS0(4, groups=2, apply_act=False), (2, 4, 1, 2)),
    ("sn", lambda: nb.SwitchableNorm(4), (3, 4, 3)),
    ("sn-alone", lambda: nb.SwitchableNorm(4, track_running_stats=False), (3, 4, 2, 2)),
    ("sn-no-batch", lambda: nb.SwitchableNorm(4, choices=("layer", "instance")), (2, 4, 3)),
    ("sn-vectors", lambda: nb.SwitchableNorm(4, choices=("layer", "batch")), (5, 4)),
]
WEIGHTS = [
    ("ws1d", lambda: nb.WSConv1d(4, 3, 3, padding=1, padding_mode="circular"), (2, 4, 6)),
    ("ws2d", lambda: nb.WSConv2d(4, 6, (2, 3), groups=2, stride=2), (2, 4, 5, 5)),
    ("ws3d", lambda: nb.WSConv3d(2, 3, 2, bias=False), (2, 2, 3, 3, 3)),
    ("ws-linear", lambda: nb.WSLinear(4, 3), (2, 4)),
    ("scaled1d", lambda: nb.ScaledWSConv1d(4, 3, 3, gamma="relu", dilation=2), (2, 4, 6)),
    ("scaled2d", lambda: nb.ScaledWSConv2d(4, 3, 3, padding="same", gamma=1.5), (2, 4, 4, 4)),
    ("scaled3d", lambda: nb.ScaledWSConv3d(2, 3, 2, padding_mode="replicate"), (2, 2, 3, 3, 3)),
    ("scaled-linear", lambda: nb.ScaledWSLinear(4, 3, gamma="gelu"), (2, 4)),
    ("weight-norm", lambda: nb.weight_norm(nn.Conv2d(4, 3, 2)), (2, 4, 3, 3)),
    ("weight-norm-up", lambda: nb.weight_norm(nn.ConvTranspose1d(4, 6, 2, groups=2)), (2, 4, 3)),
]


def rows(*tables):
    return pytest.mark.parametrize(
        ("make", "shape"),
        [pytest.param(make, shape, id=name) for table in tables for name, make, shape in table],
    )


def shaken(layer, dtype=F64):
    """The layer with parameters at random, so that no term of a formula is 0 or 1."""
    layer.to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.rand_like(parameter) - 0.4)
    return layer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randn(*shape, dtype=F64):
    return torch.randn(*shape, dtype=dtype) * 1.5 + 0.5


def array(tensor):
    return tensor.detach().numpy()


def close(tensor, want, tol=1e-10):
    np.testing.assert_allclose(array(tensor), want, rtol=tol, atol=tol)


# --- responses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 4, 3, 2), (2, 4, 2, 3, 2)], ids=str)
def test_frn_is_x_over_the_root_of_the_mean_square(shape, learnable):
    layer = shaken(nb.FilterResponseNorm(4, eps=0.3, learnable_eps=learnable))
    if learnable:
        layer.learned_eps.data.fill_(-0.7)
    x = randn(*shape)
    want = np.empty(shape)
    for n in range(shape[0]):
        for c in range(4):
            part = array(x[n, c])
            power = sum(v * v for v in part.ravel()) / part.size + (1.0 if learnable else 0.3)
            want[n, c] = layer.weight[c].item() * part / math.sqrt(power) + layer.bias[c].item()
    close(layer(x), want)
    layer.axis = -1
    close(layer(x.movedim(1, -1)).movedim(-1, 1), want)


def test_frn_makes_the_mean_square_one_and_ignores_scale():
    layer = nb.FilterResponseNorm(4, eps=0.0).double()
    x = randn(3, 4, 5, 2)
    close(layer(x).square().mean((2, 3)), np.ones((3, 4)))
    close(layer(1e3 * x), array(layer(x)))


def test_a_learned_eps_starts_small_and_learns():
    layer = nb.FilterResponseNorm(4, learnable_eps=True)
    assert layer.learned_eps.item() == pytest.approx(1e-4)
    layer(0.01 * randn(3, 4, dtype=torch.float32)).square().sum().backward()
    assert layer.learned_eps.grad.item() < 0  # a larger eps makes this output smaller
    assert "learned_eps" not in nb.FilterResponseNorm(4).state_dict()


def test_tlu_is_a_relu_whose_knee_moves():
    layer = nb.ThresholdedLinearUnit(4).double()
    x = randn(3, 4, 5)
    close(layer(x), np.maximum(array(x), 0.0))
    tau = torch.randn(4, dtype=F64)
    layer.threshold.data.copy_(tau)
    tau = tau[:, None]
    close(layer(x), array(torch.relu(x - tau) + tau))


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 3, 2)], ids=str)
def test_grn_scales_by_relative_norms(shape):
    layer = shaken(nb.GlobalResponseNorm(4, eps=0.1, axis=1))
    x = randn(*shape)
    gamma, beta, want = array(layer.weight), array(layer.bias), np.empty(shape)
    for n in range(shape[0]):
        norms = [math.sqrt((array(x[n, c]) ** 2).sum()) for c in range(4)]
        for c in range(4):
            relative = norms[c] / (sum(norms) / 4 + 0.1)
            want[n, c] = array(x[n, c]) * (1 + gamma[c] * relative) + beta[c]
    close(layer(x), want)
    layer.axis = -1
    close(layer(x.movedim(1, -1)).movedim(-1, 1), want)


def test_grn_starts_as_the_identity_and_bears_dead_channels():
    layer = nb.GlobalResponseNorm(4)
    x = randn(2, 3, 3, 4, dtype=torch.float32)
    x[..., 1] = 0
    x[0] = 0
    x.requires_grad_()
    assert torch.equal(layer(x), x)
    shaken(layer, torch.float32)(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


def test_dyt_is_a_scaled_tanh():
    layer = nb.DynamicTanh(4, alpha=0.8)
    assert layer.alpha.item() == pytest.approx(0.8)
    assert nb.DynamicTanh(4).alpha.item() == 0.5
    layer = shaken(layer)
    x = randn(2, 3, 4)
    tanh = np.tanh(layer.alpha.item() * array(x))
    close(layer(x), array(layer.weight) * tanh + array(layer.bias))
    close(layer(x[0, 0]), array(layer(x)[0, 0]))  # a token alone


# --- EvoNorm ------------------------------------------------------------------------------------

RANKS = [(5, 4), (5, 4, 3), (3, 4, 2, 3), (2, 4, 2, 3, 2)]


@pytest.mark.parametrize("shape", RANKS, ids=str)
def test_evonorm_b0_by_its_formula(shape):
    layer = shaken(nb.EvoNormB0(4, eps=1e-3, momentum=0.25))
    v, gamma, beta = (array(p) for p in (layer.v, layer.weight, layer.bias))
    running = np.ones(4)

    def formula(x, batch):
        want = np.empty(shape)
        for n in range(shape[0]):
            for c in range(4):
                instance = math.sqrt(x[n, c].var() + 1e-3)
                below = np.maximum(math.sqrt(batch[c] + 1e-3), v[c] * x[n, c] + instance)
                want[n, c] = gamma[c] * x[n, c] / below + beta[c]
        return want

    for took in (1, 2):
        x = randn(*shape)
        channels = [array(x[:, c]).ravel() for c in range(4)]
        want = formula(array(x), [c.var() for c in channels])
        close(layer(x), want)
        running = 0.75 * running + 0.25 * np.array([c.var(ddof=1) for c in channels])
        close(layer.running_var, running)
        assert layer.num_batches_tracked.item() == took
    x = randn(*shape)
    close(layer.eval()(x), formula(array(x), running))
    assert layer.num_batches_tracked.item() == 2


def test_evonorm_b0_takes_either_branch_of_the_maximum():
    layer = nb.EvoNormB0(1, eps=0.0).double().eval()
    layer.running_var.fill_(4.0)
    x = torch.tensor([[[0.5, 1.5]], [[5.0, 7.0]]], dtype=F64)
    close(layer(x), [[[0.25, 1.5 / 2.0]], [[5 / 6, 7 / 8]]])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_value_a_channel_gives_finite_averages(momentum):
    layer = nb.EvoNormB0(4, momentum=momentum)
    y = layer(randn(1, 4, dtype=torch.float32).requires_grad_())
    y.sum().backward()
    assert y.isfinite().all()
    assert layer.v.grad.isfinite().all()
    torch.testing.assert_close(layer.running_var, torch.full((4,), 0.9 if momentum else 0.0))


def test_no_momentum_averages_all_batches_alike():
    layers = nb.EvoNormB0(4, momentum=None).double(), nb.SwitchableNorm(4, momentum=None).double()
    batches = [randn(5, 4, 3) for _ in range(3)]
    for x in batches:
        for layer in layers:
            layer(x)
    variances = np.mean([array(x).var((0, 2), ddof=1) for x in batches], 0)
    for layer in layers:
        close(layer.running_var, variances)
    close(layers[1].running_mean, np.mean([array(x).mean((0, 2)) for x in batches], 0))
    layers[1].reset_parameters()
    fresh = nb.SwitchableNorm(4).double()
    assert all(torch.equal(a, fresh.state_dict()[k]) for k, a in layers[1].state_dict().items())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", RANKS[1:], ids=str)
def test_evonorm_s0_by_its_formula(shape, groups):
    layer = shaken(nb.EvoNormS0(4, groups=groups, eps=1e-3))
    x = randn(*shape)
    v, gamma, beta, want = array(layer.v), array(layer.weight), array(layer.bias), np.empty(shape)
    size = 4 // groups
    for n in range(shape[0]):
        for c in range(4):
            first = c // size * size
            deviation = math.sqrt(array(x[n, first : first + size]).var() + 1e-3)
            part = array(x[n, c])
            want[n, c] = gamma[c] * part / (1 + np.exp(-v[c] * part)) / deviation + beta[c]
    close(layer(x), want)
    close(layer.eval()(x), want)


def test_evonorm_s0_of_vectors_and_of_single_numbers():
    x = randn(3, 4)
    y = nb.EvoNormS0(4, groups=2).double()(x)
    pairs = array(x).reshape(3, 2, 2).std(-1, keepdims=True).repeat(2, -1).reshape(3, 4)
    close(y, array(torch.nn.functional.silu(x)) / pairs, 1e-3)
    for shape in ((3, 4), (3, 4, 1, 1)):
        with pytest.raises(ShapeError, match=r"(?s)one element.*4 groups.*fewer groups"):
            nb.EvoNormS0(4, groups=4)(torch.zeros(shape))


@pytest.mark.parametrize("make", [nb.EvoNormB0, lambda c, **kw: nb.EvoNormS0(c, 2, **kw)])
def test_without_activation_evonorm_is_affine(make):
    layer = shaken(make(4, apply_act=False))
    x = randn(2, 4, 3)
    close(layer(x), array(layer.weight)[:, None] * array(x) + array(layer.bias)[:, None])
    assert sorted(layer.state_dict()) == ["bias", "weight"]


# --- switchable norm ----------------------------------------------------------------------------


def one_hot(layer, choice):
    for logits in (layer.mean_weight, layer.var_weight):
        logits.data.fill_(-1e4)
        logits.data[layer.choices.index(choice)] = 0
    return layer


@pytest.mark.parametrize("choices", [("instance", "layer", "batch"), ("batch",)], ids=str)
def test_switched_to_the_batch_it_is_batch_norm(choices):
    ours = one_hot(shaken(nb.SwitchableNorm(4, momentum=0.3, choices=choices)), "batch")
    theirs = nn.BatchNorm2d(4, momentum=0.3).double()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "mean_w" not in k},
                           strict=False)  # fmt: skip
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = randn(3, 4, 2, 5) + 100
        dy, results = torch.randn_like(x), []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(dy)
            results.append((y, leaf.grad, layer.running_mean, layer.running_var))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


@pytest.mark.parametrize("training", [True, False])
def test_switched_to_instance_or_layer_it_is_that_norm(training):
    x = randn(3, 4, 5)
    layer = shaken(nb.SwitchableNorm(4)).train(training)
    for choice, groups in (("instance", 4), ("layer", 1)):
        want = nn.functional.group_norm(x, groups, layer.weight, layer.bias)
        close(one_hot(layer, choice)(x), array(want))


@pytest.mark.parametrize("training", [True, False])
def test_a_mixture_by_its_formula(training):
    layer = shaken(nb.SwitchableNorm(4, eps=1e-3)).train(training)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    kept = array(layer.running_mean).copy(), array(layer.running_var).copy()
    x = randn(3, 4, 2, 3)
    a = array(x)

    def softmax(logits):
        e = np.exp(array(logits))
        return e / e.sum()

    p, q = softmax(layer.mean_weight), softmax(layer.var_weight)
    want = np.empty_like(a)
    for n in range(3):
        for c in range(4):
            sets = [a[n, c], a[n]]
            stats = [(s.mean(), s.var()) for s in sets]
            stats.append((a[:, c].mean(), a[:, c].var()) if training else (kept[0][c], kept[1][c]))
            mean = sum(w * m for w, (m, _) in zip(p, stats, strict=True))
            var = sum(w * v for w, (_, v) in zip(q, stats, strict=True))
            x_hat = (a[n, c] - mean) / math.sqrt(var + 1e-3)
            want[n, c] = layer.weight[c].item() * x_hat + layer.bias[c].item()
    close(layer(x), want)


def test_choices_have_one_order_and_leave_no_unused_state():
    layer = nb.SwitchableNorm(4, choices=["layer", "instance"])
    assert layer.choices == ("instance", "layer")
    assert layer.mean_weight.shape == (2,)
    assert not list(layer.buffers())
    assert "choices=('instance', 'layer')" in repr(layer)


def test_means_far_from_zero_cancel_no_digits():
    x = torch.randn(4, 4, 50) + 1e4
    truth = nb.SwitchableNorm(4).double()(x.double())
    assert (nb.SwitchableNorm(4)(x).double() - truth).abs().max() < 0.01


# --- weight standardization ---------------------------------------------------------------------

STANDARDIZED = [row for row in WEIGHTS if not row[0].startswith("weight")]


@rows(STANDARDIZED)
def test_standardized_layers_are_torch_nns_on_another_weight(make, shape):
    layer = shaken(make())
    plain = next(k for k in type(layer).__mro__ if k.__module__.startswith("torch.nn"))
    assert plain is not nn.Module
    x, raw = randn(*shape), array(layer.weight)
    fan_in = raw[0].size
    want = np.empty_like(raw)
    for i, filt in enumerate(raw):
        if hasattr(layer, "gain"):
            scale = layer.gain[i].item() * layer.gamma / math.sqrt(fan_in * filt.var())
        else:
            scale = 1 / math.sqrt(filt.var() + layer.eps)
        want[i] = (filt - filt.mean()) * scale
    close(layer.standardized_weight(), want)
    twin = copy.deepcopy(layer)
    twin.weight.data.copy_(torch.from_numpy(want))
    close(layer(x), array(plain.forward(twin, x)))
    names = {"weight", "gain"} if hasattr(layer, "gain") else {"weight"}
    assert set(layer.state_dict()) == names | ({"bias"} if layer.bias is not None else set())


@rows(STANDARDIZED)
def test_scale_and_shift_of_raw_weights_do_not_matter(make, shape):
    layer = shaken(make())
    x = randn(*shape)
    before = layer(x)
    factors = torch.rand_like(layer.weight[:, :1]) + 0.5
    factors = factors.reshape(len(factors), -1)[:, 0].view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.data.mul_(factors).add_(torch.randn_like(factors))
    close(layer(x), array(before), 1e-7)
    layer.weight.data[0] += torch.randn_like(layer.weight[0])
    assert (layer(x) - before).abs().max() > 1e-3


def test_constant_filters_give_zeros_and_finite_gradients():
    for layer in (nb.WSLinear(4, 3), nb.ScaledWSLinear(4, 3)):
        layer.weight.data.fill_(0.5)
        layer(torch.randn(2, 4)).sum().backward()
        assert layer.standardized_weight().abs().max() == 0
        assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        (None, 1.0),
        ("relu", (1 - 1 / math.pi) / 2),
        ("leaky_relu", (1 + 1e-4) / 2 - 0.99**2 / (2 * math.pi)),
    ],
)
def test_gains_in_closed_form(name, variance):
    assert nb.activation_gain(name) == pytest.approx(variance**-0.5, rel=1e-9)


SMOOTH = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda z: nn.functional.gelu(z, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gains_by_another_quadrature(name):
    z, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(150))
    f, w = SMOOTH[name](z), w / w.sum()
    variance = (w * f * f).sum() - (w * f).sum() ** 2
    assert nb.activation_gain(name) == pytest.approx(variance.item() ** -0.5, rel=1e-7)


def test_a_gain_brings_samples_back_to_unit_variance():
    y = nb.activation_gain("hardswish") * nn.functional.hardswish(torch.randn(200_000))
    assert y.var().item() == pytest.approx(1, abs=0.02)


def test_an_activation_of_ones_own_has_a_gain(monkeypatch):
    monkeypatch.setattr(epilogues, "_known", dict(epilogues._known))  # forgotten afterwards
    half = nk.Activation("half", lambda z, _: 0.5 * z, lambda z, _: 0.5 + 0 * z)
    flat = nk.Activation("flat", lambda z, _: 1.0 + 0 * z, lambda z, _: 0 * z)
    nk.register_activation(half)
    nk.register_activation(flat)
    assert nb.activation_gain("half") == pytest.approx(2.0)
    assert nb.ScaledWSLinear(4, 3, gamma="half").gamma == pytest.approx(2.0)
    with pytest.raises(OptionError, match=r"(?s)'flat' has no gain.*above 0.*gamma="):
        nb.activation_gain("flat")


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_a_deep_network_of_scaled_layers_keeps_its_variance(name):
    act, width = getattr(nn.functional, name), 256
    x = torch.randn(400, width)
    kept = shrunk = x
    for _ in range(12):
        scaled = nb.ScaledWSLinear(width, width, bias=False, gamma=name)
        kept = scaled(act(kept))
        scaled.gamma = 1.0
        shrunk = scaled(act(shrunk))
    assert 0.5 < kept.var().item() < 2
    assert shrunk.var().item() < 1e-4
    assert kept.mean(0).abs().max() < 1  # standardized filters take no share of the mean


def test_scaled_layers_reset_their_gain():
    layer = nb.ScaledWSConv2d(3, 4, 3)
    assert layer.gain.shape == (4, 1, 1, 1)
    layer.gain.data.fill_(3.0)
    layer.reset_parameters()
    assert torch.equal(layer.gain, torch.ones(4, 1, 1, 1))


@pytest.mark.parametrize("kind", [nb.WSConv2d, nb.ScaledWSConv2d])
def test_half_weights_are_standardized_in_float32(kind):
    layer = kind(64, 4, 3).half()
    layer.weight.data.mul_(1e-3)  # whose squares vanish in float16
    got = layer.standardized_weight()
    assert got.dtype == torch.float16
    truth = copy.deepcopy(layer).double().standardized_weight()
    assert (got.double() - truth).abs().max() <= 2**-10 * truth.abs().max()


# --- weight norm --------------------------------------------------------------------------------

NORMED = [
    pytest.param(lambda: nn.Linear(4, 6), (3, 4), (6, 1), id="linear"),
    pytest.param(lambda: nn.Conv1d(4, 6, 3, groups=2), (3, 4, 5), (6, 1, 1), id="conv1d"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3), (3, 4, 5, 5), (6, 1, 1, 1), id="conv2d"),
    pytest.param(lambda: nn.Conv3d(2, 6, 2), (3, 2, 3, 3, 3), (6, 1, 1, 1, 1), id="conv3d"),
    pytest.param(lambda: nn.ConvTranspose1d(4, 6, 3), (3, 4, 5), (1, 6, 1), id="up1d"),
    pytest.param(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (3, 4, 3, 3),
                 (2, 1, 3, 1, 1), id="up2d-groups"),
    pytest.param(lambda: nn.ConvTranspose3d(2, 6, 2), (3, 2, 2, 2, 2), (1, 6, 1, 1, 1), id="up3d"),
]  # fmt: skip


def g_and_v(layer):
    return layer.parametrizations.weight.original0, layer.parametrizations.weight.original1


def vectors(layer):
    """One row for each output feature: the weights that its pre-activation uses."""
    w = layer.weight.detach()
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return w.flatten(1)
    out = layer.out_channels // layer.groups
    into = layer.in_channels // layer.groups
    return torch.stack(
        [w[g * into : (g + 1) * into, o].flatten() for g in range(layer.groups) for o in range(out)]
    )


@pytest.mark.parametrize(("make", "shape", "g_shape"), NORMED)
def test_weight_norm_splits_length_and_direction(make, shape, g_shape):
    layer, x = make().double(), randn(*shape)
    weight, y = layer.weight.detach().clone(), layer(x)
    assert nb.weight_norm(layer) is layer
    close(layer(x), array(y))
    g, v = g_and_v(layer)
    assert g.shape == g_shape
    close(g.flatten(), array(vectors(layer).norm(dim=1)))
    with torch.no_grad():
        v.mul_(7.0)
    close(layer.weight, array(weight))  # the length of v says nothing
    with torch.no_grad():
        g.copy_(torch.arange(1.0, g.numel() + 1).view(g_shape))
    close(vectors(layer).norm(dim=1), np.arange(1.0, g.numel() + 1))
    w = layer.weight.detach().clone()
    nb.remove_weight_norm(layer)
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert torch.equal(layer.weight, w)
    assert type(layer) is type(make())


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_other_dims_and_torchs_own_state_dicts(dim):
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=dim)
    shaken(theirs, torch.float32)
    if dim == -1:  # which torch takes for None
        theirs = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)
    ours = nb.weight_norm(nn.Conv1d(4, 6, 3), dim=dim)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_a_new_weight_can_be_assigned():
    layer = nb.weight_norm(nn.Linear(4, 3))
    new = torch.randn(3, 4)
    layer.weight = new
    torch.testing.assert_close(layer.weight, new)
    torch.testing.assert_close(g_and_v(layer)[0], new.norm(dim=1, keepdim=True))


def test_gradients_of_v_are_orthogonal_to_v():
    """Salimans & Kingma, equation 4: the update projects away from the current weight vector."""
    layer = nb.weight_norm(nn.Linear(4, 3)).double()
    layer(randn(5, 4)).square().sum().backward()
    g, v = g_and_v(layer)
    assert g.grad.abs().min() > 1e-3
    close((v * v.grad).sum(1), np.zeros(3))


def test_other_parameters_may_be_normalized():
    cell = nn.GRUCell(3, 4)
    weight = cell.weight_hh.detach().clone()
    nb.weight_norm(cell, "weight_hh")
    torch.testing.assert_close(cell.weight_hh, weight)
    assert cell.parametrizations.weight_hh.original0.shape == (12, 1)
    layer = nn.Linear(3, 4)
    bias = layer.bias.detach().clone()
    nb.weight_norm(layer, "bias")
    torch.testing.assert_close(layer.parametrizations.bias.original0, bias.abs())
    frozen = nn.Linear(3, 4).requires_grad_(False)
    assert not any(p.requires_grad for p in nb.weight_norm(frozen).parameters())


def test_what_weight_norm_refuses_stays_as_it_was():
    layer = nn.Linear(4, 3)
    layer.weight.data[1] = 0
    with pytest.raises(NormError, match=r"(?s)direction.*1 of 3 vectors of zeros"):
        nb.weight_norm(layer)
    for bad in (2, -3, True, 1.0, "outputs"):
        with pytest.raises(OptionError, match=r"(?s)dim"):
            nb.weight_norm(nn.Linear(4, 3), dim=bad)
    for call in (nb.weight_norm, nb.remove_weight_norm):
        with pytest.raises(OptionError, match=r"(?s)'weigth'"):
            call(layer, "weigth")
    assert type(layer) is nn.Linear
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    with pytest.raises(DTypeError, match=r"Parameter.*torch\.nn\.Module"):
        nb.weight_norm(layer.weight)
    with pytest.raises(OptionError, match="lazy"):
        nb.weight_norm(nn.LazyLinear(3))
    with pytest.raises(OptionError, match="parametrizations"):
        nb.weight_norm(nb.weight_norm(nn.Linear(4, 3)))
    with pytest.raises(OptionError, match=r"groups.*0.*at least 1"):
        nb.WeightNorm(1, groups=0)


# --- data-dependent initialization --------------------------------------------------------------


def pre_activations(model, *data):
    """What each weight-normalized layer puts out, by its name, in evaluation mode."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if hasattr(module, "parametrizations"):

            def see(_module, _inputs, y, name=name):  # a clone: what follows may work in place
                seen.setdefault(name, y.clone())

            handles.append(module.register_forward_hook(see))
    modes = [(m, m.training) for m in model.modules()]
    with torch.no_grad():
        model.eval()(*data)
    for module, mode in modes:
        module.training = mode
    for handle in handles:
        handle.remove()
    return seen


def normed(layer, scale=5.0):
    """A weight-normalized layer that is far from initialized."""
    with torch.no_grad():
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.normal_(3.0, 2.0)
    return nb.weight_norm(layer)


def deep_model():
    return nn.Sequential(
        normed(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        normed(nn.ConvTranspose2d(8, 6, 2, groups=2)),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Sequential(nn.Flatten(), normed(nn.Linear(150, 5))),
    ).double()


def test_initialized_layers_have_mean_0_and_variance_1():
    model, x = deep_model(), randn(16, 3, 4, 4)
    model[4].eval()  # a frozen part
    modes = [m.training for m in model.modules()]
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    random_state = torch.get_rng_state()
    assert nb.data_dependent_init(model, x) is model
    seen = pre_activations(model, x)
    assert sorted(seen) == ["0", "3", "6.1"]
    for y in seen.values():
        dims = (0, *range(2, y.dim()))
        close(y.mean(dims), np.zeros(y.shape[1]))
        close(y.var(dims, correction=0), np.ones(y.shape[1]))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_g_and_b_are_the_papers():
    layer, x = normed(nn.Linear(4, 3)).double(), randn(20, 4)
    direction = array(layer.weight / layer.weight.norm(dim=1, keepdim=True))
    t = array(x) @ direction.T
    layer.register_forward_hook(lambda *call: call[-1] ** 3)  # t is what comes before it
    nb.data_dependent_init(layer, x)
    close(g_and_v(layer)[0][:, 0], 1 / t.std(0))
    close(layer.bias, -t.mean(0) / t.std(0))


def test_inputs_without_a_batch_axis_and_several_inputs():
    layer = normed(nn.Conv1d(3, 4, 2)).double()
    x = randn(3, 30)
    y = nb.data_dependent_init(layer, x)(x)
    close(y.var(1, correction=0), np.ones(4))

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = normed(nn.Linear(3, 4, bias=False)).double()

        def forward(self, a, b):
            return self.layer(self.layer(a)[:, :3] * b)  # the second use sees the first's g

    model, data = Sum(), (randn(30, 3) + 2, randn(30, 3))
    y = pre_activations(nb.data_dependent_init(model, data), *data)["layer"]
    close(y.var(0, correction=0), np.ones(4))
    assert y.mean(0).abs().min() > 0.1  # there is no bias to centre it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_initialization_of_narrow_layers(dtype):
    layer, x = normed(nn.Linear(8, 4)).to(dtype), randn(64, 8).to(dtype)
    y = nb.data_dependent_init(layer, x)(x).double()
    assert y.mean(0).abs().max() < 8 * torch.finfo(dtype).eps
    assert (y.var(0) - 1).abs().max() < 0.05


class Picky(nn.Module):
    def forward(self, _):
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("tail", "data", "error", "text"),
    [
        (Picky, randn(8, 4), RuntimeError, "not today"),
        (lambda: normed(nn.Linear(7, 2)), randn(8, 4), RuntimeError, "shapes cannot"),
        (nn.Identity, torch.ones(8, 4), NormError, r"(?s)0 are constant.*5 of 5.*larger"),
        (nn.Identity, randn(1, 4), NormError, r"(?s)constant.*\(1, 5\)"),
        (nn.Identity, randn(8, 4) * math.inf, NormError, "not finite"),
        (nn.Identity, torch.eye(8, 4) * 1e30 - 1.25e29, NormError, "not finite"),
        (lambda: nn.ModuleDict({"unused": normed(nn.Linear(5, 2))}), randn(8, 4), None, ""),
    ],
    ids=["module", "shape", "constant", "single", "infinite", "overflow", "unused"],
)
def test_an_error_leaves_the_model_as_it_was(tail, data, error, text):
    model = nn.Sequential(normed(nn.Linear(4, 5)), nn.Dropout(), tail()).float()
    model[1].eval()
    if error is None:
        model.forward = lambda x: model[0](x)
        error, text = OptionError, r"(?s)does not reach.*no call of 2\.unused"
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    with pytest.raises(error, match=text):
        nb.data_dependent_init(model, data.float())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_that_have_no_g_for_each_feature_are_refused():
    with pytest.raises(OptionError, match=r"(?s)nothing to initialize.*weight_norm\(\)"):
        nb.data_dependent_init(nn.Linear(4, 3), torch.randn(8, 4))
    stacked = nb.weight_norm(nn.Linear(4, 3))
    nn.utils.parametrize.register_parametrization(stacked, "weight", nn.Tanh())
    biased = nb.weight_norm(nn.Linear(4, 3))
    nn.utils.parametrize.register_parametrization(biased, "bias", nn.Tanh())
    whole = nb.weight_norm(nn.Linear(4, 3), dim=None)
    tied = nb.weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2), dim=1)
    for layer in (stacked, biased, whole, tied):
        with pytest.raises(OptionError, match=r"(?s)cannot be initialized.*inner.*each output"):
            nb.data_dependent_init(nn.ModuleDict({"inner": layer}), torch.randn(8, 4))
    with pytest.raises(OptionError, match="only parametrization"):
        nb.remove_weight_norm(stacked)
    nb.data_dependent_init(nb.weight_norm(nn.Linear(4, 3), dim=-2), torch.randn(8, 4))


# --- what holds for all of them -----------------------------------------------------------------


def functional(layer, shape):
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    return call, (randn(*shape).requires_grad_(), *parameters)


@rows(ACTIVATIONS, WEIGHTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_gradcheck_and_gradgradcheck(make, shape, training):
    layer = shaken(make()).train(training)
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    call, inputs = functional(layer, shape)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@rows(ACTIVATIONS, WEIGHTS)
def test_function_transforms(make, shape):
    layer = shaken(make())
    if any(True for _ in layer.buffers()):
        layer.eval()  # running averages cannot be written under a transform
    call, (x, *parameters) = functional(layer, shape)
    weights = torch.randn_like(call(x, *parameters))

    def loss(x):
        return (call(x, *parameters) * weights).sum()

    (want,) = torch.autograd.grad(loss(x), x)
    close(torch.func.grad(loss)(x.detach()), array(want))
    batch = randn(2, *shape)
    got = torch.func.vmap(layer)(batch)
    for a, b in zip(got, batch, strict=True):
        close(a, array(layer(b)))


@rows(ACTIVATIONS, WEIGHTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compiles_as_one_graph(make, shape, training):
    torch._dynamo.reset()
    layer = shaken(make(), torch.float32).train(training)
    plain, x = copy.deepcopy(layer), randn(*shape, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own
        got = torch.compile(layer, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(got, plain(x))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(layer.named_buffers())[name], buffer)


@rows(ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_inputs_are_normalized_in_float32(make, shape, dtype):
    layer = shaken(make(), torch.float32)
    scale = 1.0 if isinstance(layer, nb.DynamicTanh) else 600.0  # whose square no float16 holds
    x = (randn(*shape) * scale).to(dtype)
    truth = copy.deepcopy(layer).double()(x.double())
    for kind in (layer, copy.deepcopy(layer).to(dtype)):
        y = kind(x)
        if kind is not layer:
            truth = copy.deepcopy(kind).double()(x.double())
        assert y.dtype == dtype
        assert (y.double() - truth).abs().max() <= torch.finfo(dtype).eps * truth.abs().max()


@rows(ACTIVATIONS)
def test_memory_formats_and_views(make, shape):
    layer = shaken(make()).eval()
    if len(shape) == 4:
        x = randn(*shape).contiguous(memory_format=torch.channels_last)
        y = layer(x)
        close(y, array(layer(x.contiguous())))
        assert y.is_contiguous(memory_format=torch.channels_last)
    wide = randn(shape[0], *(2 * s for s in shape[1:]))
    view = wide[(slice(None), *[slice(None, None, 2)] * (len(shape) - 1))]
    assert not view.is_contiguous()
    close(layer(view), array(layer(view.contiguous())))


@rows(ACTIVATIONS, WEIGHTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_meta_tensors(make, shape, training):
    layer = make().train(training)
    want = layer(torch.randn(shape)).shape
    layer.to("meta")
    y = layer(torch.empty(shape, device="meta"))
    assert y.is_meta
    assert y.shape == want
    with torch.device("meta"):
        assert all(p.is_meta for p in make().parameters())


@rows(ACTIVATIONS, WEIGHTS)
def test_copies_and_state_dicts(make, shape):
    layer = shaken(make())
    x = randn(*shape)
    layer(x)
    layer.eval()
    clones = [copy.deepcopy(layer)]
    if not hasattr(layer, "parametrizations"):  # which torch pickles by state dict only
        clones.append(pickle.loads(pickle.dumps(layer)))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    clones.append(make().double().eval())
    clones[-1].load_state_dict(torch.load(file, weights_only=True))
    for clone in clones:
        assert torch.equal(clone(x), layer(x))
        assert repr(clone) == repr(layer)
    for parameter in clones[0].parameters():
        parameter.data.add_(1.0)
    assert not torch.equal(clones[0](x), layer(x))


@rows(ACTIVATIONS)
def test_reset_parameters_makes_it_new(make, shape):
    layer, fresh = make(), make()
    shaken(layer, torch.float32)(torch.randn(shape))
    assert any(not torch.equal(v, fresh.state_dict()[k]) for k, v in layer.state_dict().items())
    layer.reset_parameters()
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in layer.state_dict().items())


@rows(ACTIVATIONS)
def test_empty_batches(make, shape):
    layer = make()
    state = copy.deepcopy(layer.state_dict())
    for training in (True, False):
        # no samples, and samples without positions
        for a in set(range(len(shape))) - {layer.axis % len(shape)}:
            empty = (*shape[:a], 0, *shape[a + 1 :])
            y = layer.train(training)(torch.zeros(empty, requires_grad=True))
            assert y.shape == empty
            y.sum().backward()
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


# --- errors -------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nb.FilterResponseNorm(0), r"num_features.*0.*at least 1"),
        (lambda: nb.FilterResponseNorm(4.0), r"num_features.*4\.0.*whole number"),
        (lambda: nb.FilterResponseNorm(4, eps=NAN), r"eps.*nan.*finite"),
        (lambda: nb.FilterResponseNorm(4, eps=-1e-6), r"eps.*-1e-06.*at least 0"),
        (lambda: nb.FilterResponseNorm(4, axis=0), r"axis.*0.*samples"),
        (lambda: nb.FilterResponseNorm(4, axis=1.0), r"axis.*1\.0.*whole number"),
        (lambda: nb.ThresholdedLinearUnit(-1), r"num_features.*-1"),
        (lambda: nb.GlobalResponseNorm(4, eps=math.inf), r"eps.*inf.*finite"),
        (lambda: nb.DynamicTanh(4, alpha=0), r"alpha.*0.*above 0"),
        (lambda: nb.DynamicTanh(4, alpha="0.5"), r"alpha.*'0\.5'.*number"),
        (lambda: nb.EvoNormB0(4, momentum=1.5), r"momentum.*1\.5.*from 0 to 1"),
        (lambda: nb.EvoNormB0(4, momentum=NAN), r"momentum.*nan"),
        (lambda: nb.EvoNormB0(True), r"num_features.*True"),
        (lambda: nb.EvoNormS0(48), r"groups=32 with num_features=48.*largest.*groups=24"),
        (lambda: nb.EvoNormS0(4, groups=0), r"groups.*0.*at least 1"),
        (lambda: nb.EvoNormS0(4, 2, eps=-1), r"eps.*-1"),
        (lambda: nb.SwitchableNorm(4, eps=None), r"eps.*None.*number"),
        (lambda: nb.SwitchableNorm(4, choices=()), r"\(\).*at least one of"),
        (lambda: nb.SwitchableNorm(4, choices=("layer", "layer")), r"each once"),
        (lambda: nb.SwitchableNorm(4, choices=("bach",)), r"bach.*Did you mean 'batch'"),
        (lambda: nb.SwitchableNorm(4, choices=3), r"3.*instance, layer, batch"),
        (lambda: nb.WSConv2d(4, 3, 3, eps=NAN), r"eps.*nan"),
        (lambda: nb.WSConv2d(1, 3, 1), r"one weight.*\(3, 1, 1, 1\).*at least 2"),
        (lambda: nb.ScaledWSLinear(1, 3), r"one weight.*\(3, 1\)"),
        (lambda: nb.ScaledWSConv2d(4, 3, 3, gamma="rellu"), r"'rellu'.*Did you mean 'relu'"),
        (lambda: nb.ScaledWSConv2d(4, 3, 3, gamma=0.0), r"gamma.*0\.0.*above 0"),
        (lambda: nb.ScaledWSConv2d(4, 3, 3, gamma=NAN), r"gamma.*nan"),
        (lambda: nb.ScaledWSLinear(4, 3, eps=-1.0), r"eps.*-1\.0"),
    ],
)  # fmt: skip
def test_options_are_checked_when_the_layer_is_made(make, text):
    with pytest.raises((OptionError, NormError), match=f"(?s){text}"):
        make()


@rows(ACTIVATIONS)
def test_inputs_are_checked_before_they_are_used(make, shape):
    layer = make()
    state = copy.deepcopy(layer.state_dict())
    axis = layer.axis % len(shape)
    wrong = [s + (a == axis) for a, s in enumerate(shape)]
    with pytest.raises(ShapeError, match=r"(?s)channels.*received 5 at axis.*expected 4"):
        layer(torch.randn(wrong))
    few = () if layer.axis == -1 else (4,)
    with pytest.raises(ShapeError, match=r"(?s)finds no channels.*dimensions"):
        layer(torch.randn(few))
    with pytest.raises(DTypeError, match=r"int64.*floating point"):
        layer(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(DTypeError, match=r"ndarray.*torch\.Tensor"):
        layer(np.zeros(shape))
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


def test_samples_are_not_channels():
    for layer in (nb.FilterResponseNorm(4, axis=-1), nb.GlobalResponseNorm(4)):
        with pytest.raises(ShapeError, match=r"(?s)\(4,\).*at least 2 dimensions"):
            layer(torch.randn(4))
    with pytest.raises(ShapeError, match=r"(?s)single number.*3 dimensions.*'layer', 'batch'"):
        nb.SwitchableNorm(4)(torch.randn(3, 4))


def test_every_public_name_exists():
    assert sorted(nb.__all__) == sorted(set(nb.__all__))
    assert all(getattr(nb, name).__doc__ for name in nb.__all__)
