"""normkit.keras against the oracle: every layer, whatever backend KERAS_BACKEND names."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("keras", reason="Keras is not installed")

import keras
from keras import ops

import bounds
import normkit.keras as nkk
from keras_kit import called, draw, numbers
from normkit.errors import NotNormalizableError, OptionError, ShapeError
from oracle import Oracle, Sets

BACKEND = keras.config.backend()
#: Of statistics: the compiled kernels have float64, what others compute with is float32.
UNIT = 2.0**-53 if BACKEND == "torch" else 2.0**-24
TOKENS = {"samples": 1, "channels": "all", "positions": 1}

#: Makes a layer for an axis; the oracle's sets; eps.
LAYERS = {
    "batch": (lambda axis: nkk.BatchNormalization(axis=axis), Sets(eps=1e-3)),
    "ghost": (lambda axis: nkk.BatchNormalization(axis=axis, ghost=2), Sets(samples=2, eps=1e-3)),
    "group": (
        lambda axis: nkk.GroupNormalization(groups=2, axis=axis),
        Sets(samples=1, channels=("split", 2), eps=1e-3),
    ),
    "instance": (lambda axis: nkk.InstanceNormalization(axis=axis), Sets(samples=1, eps=1e-3)),
    "layer": (lambda axis: nkk.LayerNormalization(axis=axis), Sets(**TOKENS, eps=1e-3)),
    "rms": (
        lambda axis: nkk.RMSNormalization(axis=axis), Sets(**TOKENS, center=False, eps=1e-6)
    ),
}  # fmt: skip
SHAPES = [((7, 6), -1), ((5, 9, 6), -1), ((5, 6, 9), 1), ((5, 4, 3, 6), -1), ((5, 6, 4, 3), 1),
          ((5, 4, 6, 3), 2), ((3, 6, 2, 3, 2), 1)]  # fmt: skip
if BACKEND == "jax":  # which compiles a program for each
    SHAPES = [SHAPES[0], SHAPES[2], SHAPES[5]]
TRAINS = {"batch", "ghost"}


@pytest.fixture(autouse=True)
def everything_on_the_kernels():
    """PyTorch's own operators, which small inputs take, are as exact as they are."""
    if BACKEND != "torch":
        yield
        return
    from normkit.torch import use_native_up_to

    use_native_up_to(0)
    yield
    use_native_up_to(None)


def prepared(layer, x, seed=5):
    """The layer with gamma and beta at random; its oracle's gamma and beta."""
    layer.build(x.shape)
    found = {}
    for variable in layer.trainable_variables:
        value = draw(*variable.shape, seed=seed + len(found), mean=1.0, std=0.5)
        variable.assign(value)
        found["gamma" if variable.name == "scale" else variable.name] = value
    return found.get("gamma"), found.get("beta")


def compared(layer, truth, x, dy, unit=UNIT, **call):
    """y, dx and the gradients of gamma and beta lie within the bounds of the suite."""
    y, dx, gradients = called(layer, x, dy, **call)
    bounds.check_forward(truth, y, None, "float32", unit=unit, flush=BACKEND != "torch")
    wanted = truth.backward(dy)
    like = {"x": x, "gamma": truth.gamma_like, "beta": truth.beta_like}
    limit = bounds.Bounds(truth, "float32", unit, BACKEND != "torch").gradients(wanted, like)
    gamma = gradients.get("gamma", gradients.get("scale"))
    bounds.check("dx", dx, wanted.x, limit["x"])
    if truth.gamma_like is not None:
        bounds.check("dgamma", gamma, wanted.gamma, limit["gamma"])
    if truth.beta_like is not None:
        bounds.check("dbeta", gradients["beta"], wanted.beta, limit["beta"])


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_against_the_oracle(kind, shape, axis):
    make, sets = LAYERS[kind]
    x, dy = draw(*shape, mean=3.0, std=2.0), draw(*shape, seed=1)
    layer = make(axis)
    gamma, beta = prepared(layer, x)
    call = {"training": True} if kind in TRAINS else {}
    compared(layer, Oracle(sets, x, gamma, beta, axis=axis), x, dy, **call)


@pytest.mark.parametrize("kind", LAYERS)
def test_data_far_from_zero(kind):
    make, sets = LAYERS[kind]
    x, dy = draw(6, 20, 6, mean=1e4), draw(6, 20, 6, seed=1)
    layer = make(-1)
    gamma, beta = prepared(layer, x)
    call = {"training": True} if kind in TRAINS else {}
    compared(layer, Oracle(sets, x, gamma, beta, axis=-1), x, dy, **call)


@pytest.mark.parametrize(("shape", "axis"), SHAPES[1:])
@pytest.mark.parametrize("kind", ["batch", "ghost", "group", "instance"])
def test_masks(kind, shape, axis):
    make, sets = LAYERS[kind]
    x, dy = draw(*shape, mean=3.0), draw(*shape, seed=1)
    positions = [size for a, size in enumerate(shape) if a != axis % len(shape)]
    mask = np.random.default_rng(2).random(positions) < 0.6
    mask[0] = False  # a sample without a valid position
    layer = make(axis)
    gamma, beta = prepared(layer, x)
    call = {"training": True} if kind in TRAINS else {}
    truth = Oracle(sets, x, gamma, beta, axis=axis, mask=mask)
    # Moments of masked calls are portable, and so float32, everywhere.
    compared(layer, truth, x, dy, unit=2.0**-24, mask=ops.convert_to_tensor(mask), **call)


def with_statistics(x, axis, mean):
    """Batch norm with all that it learns at random, and its oracle of inference."""
    layer = nkk.BatchNormalization(axis=axis)
    gamma, beta = prepared(layer, x)
    statistics = draw(6, seed=2, mean=mean), draw(6, seed=3) ** 2
    layer.moving_mean.assign(statistics[0])
    layer.moving_variance.assign(statistics[1])
    return layer, Oracle(Sets(eps=1e-3), x, gamma, beta, axis=axis, statistics=statistics)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_inference(shape, axis):
    x, dy = draw(*shape, mean=1e3), draw(*shape, seed=1)
    layer, truth = with_statistics(x, axis, 1e3)
    compared(layer, truth, x, dy, training=False)
    one = layer(x[:1])
    np.testing.assert_allclose(numbers(one), numbers(layer(x))[:1], rtol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_predictions_far_from_zero(shape, axis):
    """Small ones take a way of their own under PyTorch, where nothing asks for gradients."""
    if BACKEND == "torch":
        from normkit.torch import use_native_up_to

        use_native_up_to(None)
    x = draw(*shape, mean=1e4)
    layer, truth = with_statistics(x, axis, 1e4)
    y = keras.Sequential([layer]).predict_on_batch(x)
    bounds.check_forward(truth, y, None, "float32", unit=2.0**-24, flush=BACKEND != "torch")


@pytest.mark.parametrize(("shape", "axis"), [((4, 6), -1), ((4, 3, 6), -1), ((4, 6, 3), 1)])
@pytest.mark.parametrize("kind", ["batch", "ghost", "group", "instance"])
def test_gamma_and_beta_of_each_sample(kind, shape, axis):
    make, sets = LAYERS[kind]
    x, dy = draw(*shape, mean=3.0), draw(*shape, seed=1)
    gamma, beta = draw(4, 6, seed=7), draw(4, 6, seed=8)
    call = {"training": True} if kind in TRAINS else {}
    truth = Oracle(sets, x, gamma, beta, axis=axis)
    compared(make(axis), truth, x, dy, gamma=gamma, beta=beta, **call)


@pytest.mark.parametrize("axis", [-1, 0])
def test_gamma_and_beta_of_each_sample_at_inference(axis):
    x, gamma, beta = draw(4, 3, 6), draw(4, 6, seed=7), draw(4, 6, seed=8)
    layer = nkk.BatchNormalization(axis=axis, epsilon=0.0)
    y = numbers(layer(np.moveaxis(x, -1, axis), gamma=gamma, beta=beta))
    expected = x * gamma[:, None] + beta[:, None]
    np.testing.assert_allclose(np.moveaxis(y, axis, -1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [[1, 2], [2, 3], [1, 2, 3], [1, 3], [-1, 1]])
def test_layer_norm_over_several_axes(axes):
    x = draw(3, 4, 5, 6, mean=2.0)
    for layer, center in (
        (nkk.LayerNormalization(axis=axes), True), (nkk.RMSNormalization(axis=axes), False)
    ):  # fmt: skip
        prepared(layer, x)
        wide = x.astype("float64")
        along = tuple(sorted(a % 4 for a in axes))
        apart = wide - wide.mean(along, keepdims=True) if center else wide
        expected = apart / np.sqrt((apart**2).mean(along, keepdims=True) + layer.epsilon)
        shape = [size if a in along else 1 for a, size in enumerate(x.shape)]
        for variable in layer.trainable_variables:
            value = numbers(variable).reshape(shape)
            expected = expected + value if variable.name == "beta" else expected * value
        np.testing.assert_allclose(numbers(layer(x)), expected, rtol=1e-5, atol=1e-5)


# --- moving statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("ghost", [None, 2, 3, 5, 9])
def test_moving_statistics_are_those_of_the_whole_batch(ghost):
    x = draw(7, 4, 3, mean=5.0)
    layer = nkk.BatchNormalization(momentum=0.9, ghost=ghost)
    layer(x, training=True)
    mean, var = x.astype("float64").mean((0, 1)), x.astype("float64").var((0, 1))
    np.testing.assert_allclose(numbers(layer.moving_mean), 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(numbers(layer.moving_variance), 0.9 + 0.1 * var, rtol=1e-6)


def test_what_counts_for_nothing_moves_nothing():
    layer = nkk.BatchNormalization(momentum=0.5)
    x = draw(4, 3, mean=5.0)
    layer(x, training=True)
    before = [numbers(v) for v in layer.non_trainable_variables]
    layer(x + 9, training=True, mask=ops.zeros(4, "bool"))
    layer(x + 9, training=True, sample_weight=np.zeros(4, "float32"))
    layer(x[:0], training=True)
    for variable, value in zip(layer.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(numbers(variable), value)


def test_a_frozen_layer_uses_its_moving_statistics():
    layer = nkk.BatchNormalization()
    x = draw(8, 3, mean=5.0)
    layer(x, training=True)
    layer.trainable = False
    before = [numbers(v) for v in layer.weights]
    np.testing.assert_array_equal(numbers(layer(x, training=True)), numbers(layer(x)))
    for variable, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numbers(variable), value)


@pytest.mark.parametrize("clipping", [None, {"rmax": 1.5, "dmax": 0.5}, {"rmin": 0.9}])
@pytest.mark.parametrize("ghost", [None, 8])
def test_renormalization_is_that_of_keras(clipping, ghost):
    options = {"renorm": True, "renorm_clipping": clipping, "renorm_momentum": 0.8}
    ours = nkk.BatchNormalization(**options, ghost=ghost)
    theirs = keras.layers.BatchNormalization(**options)
    for seed in range(4):
        x, dy = draw(8, 5, seed=seed, mean=seed, std=2.0), draw(8, 5, seed=9)
        for one, other in zip(called(ours, x, dy, training=True)[:2],
                              called(theirs, x, dy, training=True)[:2], strict=True):  # fmt: skip
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-5, atol=1e-6)


def test_renormalization_of_ghost_batches_is_each_ones_own():
    layer = nkk.BatchNormalization(renorm=True, ghost=4)
    x = np.concatenate([draw(4, 3), draw(2, 3, seed=1, mean=5.0)])
    y = numbers(layer(x, training=True))
    # With r and d unlimited, what comes out is normalized by the usual statistics: 0 and 1.
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-3), rtol=1e-3, atol=1e-3)


# --- weights of samples -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((6, 3), -1), ((6, 4, 3), -1), ((6, 3, 4), 1)])
@pytest.mark.parametrize("ghost", [None, 4])
def test_a_weight_of_two_counts_a_sample_twice(shape, axis, ghost):
    x = draw(*shape, mean=3.0)
    weights = np.array([1, 2, 0, 1, 3, 1])
    often = np.repeat(np.arange(6), weights)
    weighted, repeated = (
        nkk.BatchNormalization(axis=axis, ghost=ghost),
        nkk.BatchNormalization(axis=axis, ghost=ghost and 4),
    )
    y = numbers(weighted(x, training=True, sample_weight=weights.astype("float32")))
    whole = numbers(repeated(x[often], training=True))
    np.testing.assert_allclose(y[often], whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(weighted.weights, repeated.weights, strict=True):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-5)


def test_ghosts_have_weights_too():
    x, weights = draw(6, 3, mean=3.0), np.float32([1, 0, 3, 2, 2, 1])
    y = numbers(nkk.BatchNormalization(ghost=4)(x, training=True, sample_weight=weights))
    for rows in (slice(0, 4), slice(4, 6)):
        mean = np.average(x[rows], 0, weights[rows])
        var = np.average((x[rows] - mean) ** 2, 0, weights[rows])
        np.testing.assert_allclose(
            y[rows], (x[rows] - mean) / np.sqrt(var + 1e-3), rtol=1e-4, atol=1e-5
        )


def test_the_gradient_with_weights():
    x, dy = draw(5, 3, mean=3.0), draw(5, 3, seed=1)
    weights = np.float32([0.1, 0.2, 0.0, 0.05, 0.3])  # their sum lies below 1
    layer = nkk.BatchNormalization()
    gamma, beta = prepared(layer, x)

    def loss(x):
        mean = np.average(x, 0, weights)
        var = np.average((x - mean) ** 2, 0, weights)
        return (((x - mean) / np.sqrt(var + 1e-3) * gamma + beta) * dy).sum()

    _, dx, _ = called(layer, x, dy, training=True, sample_weight=weights)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-5
        slope = (loss(x + step) - loss(x - step)) / 2e-5
        np.testing.assert_allclose(dx[at], slope, rtol=2e-4, atol=2e-4)


def test_masks_and_weights_together():
    x, weights = draw(5, 4, 3), np.random.default_rng(3).random((5, 4)).astype("float32")
    mask = weights > 0.4
    one, other = nkk.BatchNormalization(), nkk.BatchNormalization()
    first = one(x, training=True, mask=mask, sample_weight=weights)
    second = other(x, training=True, sample_weight=weights * mask)
    np.testing.assert_array_equal(numbers(first), numbers(second))


# --- weight standardization -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "inside"),
    [
        (keras.layers.Dense(4, activation="relu"), (3, 5), (0,)),
        (keras.layers.Conv1D(4, 3), (2, 8, 5), (0, 1)),
        (keras.layers.Conv2D(4, 3, use_bias=False), (2, 8, 8, 5), (0, 1, 2)),
        (keras.layers.Conv2DTranspose(4, 3), (2, 8, 8, 5), (0, 1, 3)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 8, 8, 5), (0, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else "",
)
def test_weight_standardization(layer, shape, inside):
    layer = type(layer).from_config(layer.get_config())  # the parameter serves every test
    wrapped = nkk.WeightStandardization(layer)
    x, dy = draw(*shape), None
    y = numbers(wrapped(x))
    kernel = numbers(layer.kernel).astype("float64")
    apart = kernel - kernel.mean(inside, keepdims=True)
    plain = type(layer).from_config(layer.get_config())
    plain.build(shape)
    plain.set_weights(layer.get_weights())
    plain.kernel.assign(apart / np.sqrt((apart**2).mean(inside, keepdims=True) + 1e-10))
    np.testing.assert_allclose(y, numbers(plain(x)), rtol=1e-4, atol=1e-4)
    assert y.shape == tuple(wrapped.compute_output_shape(shape))
    # A filter's gradient is at right angles to the filter and to a constant.
    dy = draw(*y.shape, seed=2)
    _, _, gradients = called(wrapped, x, dy)
    slope = gradients["kernel"]
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(slope.sum(inside), 0, atol=1e-3)
    np.testing.assert_allclose((slope * apart).sum(inside), 0, atol=1e-3)


# --- errors ---------------------------------------------------------------------------------------

BUILD = {
    "no such axis": (lambda: nkk.BatchNormalization(axis=4), (None, 3), "axis=4 for inputs"),
    "unknown channels": (lambda: nkk.BatchNormalization(axis=1), (None, None, 3), "how many"),
    "layer norm": (lambda: nkk.LayerNormalization(axis=[1, 5]), (None, 3), "axis=5"),
    "rms norm": (lambda: nkk.RMSNormalization(axis=2), (None, 3), "axis=2"),
    "group norm": (lambda: nkk.GroupNormalization(axis=-4), (None, 3), "axis=-4"),
    "instance norm": (lambda: nkk.InstanceNormalization(), (None, 3, None), "how many"),
    "a filter of one weight": (
        lambda: nkk.WeightStandardization(keras.layers.Dense(2)), (None, 1), "one weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BUILD)
def test_shapes_that_cannot_be(what):
    make, shape, message = BUILD[what]
    with pytest.raises(ShapeError, match=message):
        make().build(shape)


OPTIONS = {
    "epsilon": lambda: nkk.LayerNormalization(epsilon=-1.0),
    "epsilon is NaN": lambda: nkk.GroupNormalization(epsilon=float("nan")),
    "momentum": lambda: nkk.BatchNormalization(momentum=1.5),
    "ghost": lambda: nkk.BatchNormalization(ghost=0),
    "ghost is a truth value": lambda: nkk.BatchNormalization(ghost=True),
    "ghost and synchronized": lambda: nkk.BatchNormalization(ghost=2, synchronized=True),
    "a newer version": lambda: nkk.BatchNormalization.from_config({"axis": -1, "fame": 1}),
    "scaling by": lambda: nkk.Normalization(by="median"),
    "range of a variance": lambda: nkk.Normalization(mean=0.0, variance=1.0, by="range"),
    "adapt after all": lambda: nkk.Normalization(mean=0.0, variance=1.0).adapt(np.ones((2, 1))),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_that_cannot_be(what):
    with pytest.raises(OptionError, match=r"received .*expected"):
        OPTIONS[what]()


def test_what_has_no_kernel_is_not_standardized():
    with pytest.raises(NotNormalizableError, match="received ReLU"):
        nkk.WeightStandardization(keras.layers.ReLU())


def train(x, **call):
    return nkk.BatchNormalization()(x, training=True, **call)


CALLS = {
    "mask": (lambda x: train(x, mask=np.ones((4, 2), bool)), "mask="),
    "mask of channels": (lambda x: train(x, mask=np.ones((4, 5, 3), bool)), "mask="),
    "weights": (
        lambda x: train(x, sample_weight=np.ones(3, "f4")),
        "sample_weight=",
    ),
    "gamma": (lambda x: nkk.BatchNormalization()(x, gamma=np.ones(4, "f4")), "gamma="),
    "beta": (lambda x: nkk.InstanceNormalization()(x, beta=np.ones((5, 3), "f4")), "beta="),
}


@pytest.mark.parametrize("what", CALLS)
def test_arguments_that_do_not_fit(what):
    call, message = CALLS[what]
    layer_input = draw(4, 5, 3)
    with pytest.raises(ShapeError, match=f"{message}.*received shape"):
        call(layer_input)


# --- the family's manners -------------------------------------------------------------------------

ALL = [nkk.BatchNormalization, nkk.LayerNormalization, nkk.GroupNormalization,
       nkk.RMSNormalization, nkk.InstanceNormalization, nkk.Normalization]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in ALL if hasattr(keras.layers, kind.__name__)])
def test_signatures_are_those_of_keras(kind):
    theirs = getattr(keras.layers, kind.__name__)
    ours = inspect.signature(kind).parameters
    for name, parameter in inspect.signature(theirs).parameters.items():
        assert ours[name].default == parameter.default
    assert issubclass(kind, theirs)


@pytest.mark.parametrize("kind", ALL)
def test_a_configuration_makes_the_same_layer(kind):
    options = {"groups": 3} if kind is nkk.GroupNormalization else {}
    layer = kind(**options, name="norm")
    if kind is nkk.Normalization:
        layer.adapt(draw(8, 6))
    x = draw(4, 6)
    y = numbers(layer(x))
    again = kind.from_config(layer.get_config())
    again.build((None, 6))
    again.set_weights(layer.get_weights())
    if kind is nkk.Normalization:
        again.finalize_state()
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(numbers(again(x)), y)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("kind", ALL[:5])
def test_dtypes(kind, dtype):
    options = {"groups": 2} if kind is nkk.GroupNormalization else {}
    layer = kind(**options, dtype=dtype)
    x = draw(6, 8, 4, mean=200.0, std=30.0)  # whose squares leave float16
    call = {"training": True} if kind is nkk.BatchNormalization else {}
    y = layer(x, **call)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    reference = kind(**options)(x, **call)
    error = np.abs(numbers(ops.cast(y, "float32")) - numbers(reference)).max()
    assert error < (0.05 if "bfloat" in dtype else 0.01)


@pytest.mark.parametrize("kind", ALL[:5])
def test_whole_numbers(kind):
    options = {"groups": 1} if kind is nkk.GroupNormalization else {}
    x = np.arange(24).reshape(2, 4, 3)
    y = kind(**options)(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_allclose(numbers(y), numbers(kind(**options)(x.astype("float32"))), rtol=1e-6)


# --- at the edges ------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [5, 8, 12])
def test_ghosts_and_renormalization_of_any_batch(samples):
    """Also where there is one ghost batch only, and as many samples as channels."""
    options = {"renorm": True, "renorm_momentum": 0.5}
    ghosts = nkk.BatchNormalization(ghost=8, **options)
    weighted = nkk.BatchNormalization(ghost=8, **options)
    x = draw(samples, 5, mean=2.0)
    y = numbers(ghosts(x, training=True))
    ones = np.ones(samples, "float32")
    same = numbers(weighted(x, training=True, sample_weight=ones))
    np.testing.assert_allclose(same, y, rtol=1e-4, atol=1e-4)
    if samples <= 8:
        theirs = keras.layers.BatchNormalization(**options)
        np.testing.assert_allclose(y, numbers(theirs(x, training=True)), rtol=1e-4, atol=1e-4)


def test_six_axes():
    x = draw(3, 2, 2, 2, 2, 6, mean=2.0)
    flat = x.reshape(3, -1, 6)
    for make in (
        lambda: nkk.BatchNormalization(), lambda: nkk.GroupNormalization(groups=2),
        lambda: nkk.LayerNormalization(), lambda: nkk.RMSNormalization(),
    ):  # fmt: skip
        call = {"training": True} if make().__class__ is nkk.BatchNormalization else {}
        y, expected = numbers(make()(x, **call)), numbers(make()(flat, **call))
        np.testing.assert_allclose(y.reshape(flat.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"ghost": 3}])
def test_float64_statistics(options):
    if BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is told so")
    x = np.random.default_rng(0).normal(1e4, 1.0, (8, 4))
    layer = nkk.BatchNormalization(dtype="float64", momentum=0.5, **options)
    layer(x, training=True)
    np.testing.assert_allclose(numbers(layer.moving_mean), 0.5 * x.mean(0), rtol=1e-12)
    if "renorm" not in options:
        expected = 0.5 + 0.5 * x.var(0)
        np.testing.assert_allclose(numbers(layer.moving_variance), expected, rtol=1e-9)


def test_lists_are_masks_and_parameters_too():
    x = draw(2, 3)
    one = nkk.BatchNormalization()(x, training=True, mask=[True, True], gamma=[1.0, 2.0, 3.0])
    plain = numbers(nkk.BatchNormalization()(x, training=True))
    np.testing.assert_allclose(numbers(one), plain * [1, 2, 3], rtol=1e-5)


def test_weights_that_are_no_weights_do_not_count():
    x = draw(5, 3)
    odd = np.float32([1, -1, np.nan, 1, 0])
    even = np.float32([1, 0, 0, 1, 0])
    one, other = (
        numbers(nkk.BatchNormalization()(x, training=True, sample_weight=w)) for w in (odd, even)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("axis", [None, "x", 1.5])
def test_axes_that_are_no_numbers(axis):
    with pytest.raises((OptionError, TypeError), match="axis"):
        nkk.GroupNormalization(axis=axis)


def test_an_axis_twice():
    with pytest.raises(ShapeError, match="twice"):
        nkk.LayerNormalization(axis=[1, -1]).build((None, 3))


@pytest.mark.parametrize("kind", ["Dense", "Conv2D"])
def test_standardized_kernels_with_lora(kind):
    layer = {"Dense": keras.layers.Dense(4), "Conv2D": keras.layers.Conv2D(4, 3)}[kind]
    x = draw(2, 6, 6, 5)
    wrapped = nkk.WeightStandardization(layer)
    wrapped(x)
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(draw(*layer.lora_kernel_b.shape))
    whole = numbers(layer.kernel)
    plain = nkk.WeightStandardization(
        type(layer).from_config(layer.get_config() | {"lora_rank": None})
    )
    plain.build(x.shape)
    plain.layer.kernel.assign(whole)
    np.testing.assert_allclose(numbers(wrapped(x)), numbers(plain(x)), rtol=1e-4, atol=1e-4)


def test_standardized_kernels_are_not_quantized():
    wrapped = nkk.WeightStandardization(keras.layers.Dense(4))
    wrapped(draw(2, 5))
    with pytest.raises(NotNormalizableError, match="quantized"):
        wrapped.quantize("int8")
    wrapped.layer.quantize("int8")
    with pytest.raises(NotNormalizableError, match="quantized"):
        wrapped(draw(2, 5))


class Noisy(keras.layers.Dense):
    def call(self, inputs, training=None):
        y = super().call(inputs)
        return y + 100.0 if training else y


def test_a_wrapped_layer_does_what_it_did():
    wrapped = nkk.WeightStandardization(Noisy(4, activity_regularizer="l2"))
    x = draw(2, 5)
    apart = numbers(wrapped(x, training=True)) - numbers(wrapped(x, training=False))
    np.testing.assert_allclose(apart, 100.0, rtol=1e-4)
    assert len(wrapped.losses) == 1
    assert wrapped.supports_masking == wrapped.layer.supports_masking is True


class Own(nkk.BatchNormalization):
    def __init__(self, **kwargs):
        self.color = kwargs.pop("color", "red")
        super().__init__(**kwargs)

    def get_config(self):
        return {**super().get_config(), "color": self.color}


def test_subclasses_with_options_of_their_own():
    assert Own.from_config(Own(color="blue").get_config()).color == "blue"
