"""A norm behind an activation: the activation fused into the reading of x."""

import numpy as np
import pytest

import normkit as nk
import oracle

NORMS = [
    (nk.BatchNorm(), 1), (nk.BatchNorm(), -1), (nk.GhostBatchNorm(2), 1), (nk.GroupNorm(2), 1),
    (nk.GroupNorm(2), -1), (nk.InstanceNorm(), 1), (nk.LayerNorm(), 1), (nk.TokenLayerNorm(), -1),
    (nk.ChannelLayerNorm(), 1), (nk.RMSNorm(), -1), (nk.MeanOnlyBatchNorm(), 1),
]  # fmt: skip


def sets_of(norm):
    channels = norm.channels
    channels = ("split", channels.parts) if isinstance(channels, nk.Split) else channels
    return oracle.Sets(norm.samples, channels, norm.positions, norm.center, norm.scale, norm.eps)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("activation", ["silu"])
@pytest.mark.parametrize(("norm", "axis"), NORMS, ids=str)
def test_it_is_the_norm_of_the_activation(norm, axis, activation, given, masked):
    rng = np.random.default_rng(3)
    x, dy, residual = (rng.standard_normal((5, 4, 6, 4)).astype("float32") for _ in range(3))
    x += 0.2
    gamma, beta = rng.standard_normal(4), rng.standard_normal(4)
    mask = rng.random((5, 6, 4) if axis == 1 else (5, 4, 6)) > 0.2 if masked else None
    options = {"axis": axis, "mask": mask}
    statistics = None
    if given:
        shape = norm.moments(x, axis=axis).mean.shape
        statistics = (rng.standard_normal(shape), rng.random(shape) + 0.5)
    inner = oracle.ACTIVATIONS[activation]
    wide = x.astype(oracle.LONG)
    truth = oracle.Oracle(
        sets_of(norm), inner.value(wide), gamma, beta, axis, mask, None, residual, None, statistics
    )
    y, saved = norm.forward(
        x, gamma, beta, residual=residual, statistics=statistics, input_activation=activation,
        **options,
    )  # fmt: skip
    grads, true_grads = norm.backward(dy, saved), truth.backward(dy)
    pairs = [
        (y, truth.view.back(truth.y)), (grads.x, true_grads.x * inner.slope(wide)),
        (grads.gamma, true_grads.gamma), (grads.beta, true_grads.beta),
        (grads.residual, true_grads.residual),
    ]  # fmt: skip
    for got, want in pairs:
        scale = np.abs(want).max()
        assert np.abs(got - want).max() <= 8 * np.finfo(np.float32).eps * scale


def test_both_activations_at_once():
    x = np.random.default_rng(0).standard_normal((6, 3, 5))
    y, _ = nk.BatchNorm().forward(x, activation="tanh", input_activation="relu")
    inner, _ = nk.BatchNorm().forward(np.maximum(x, 0), activation="tanh")
    np.testing.assert_allclose(y, inner, rtol=1e-12, atol=1e-13)


def test_an_unknown_input_activation_is_refused():
    with pytest.raises(nk.errors.OptionError, match=r"reluu.*relu"):
        nk.BatchNorm().forward(np.ones((3, 2)), input_activation="reluu")
