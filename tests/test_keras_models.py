"""normkit.keras in models: trained, saved, loaded, masked, distributed; on every backend."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

pytest.importorskip("keras", reason="Keras is not installed")

import keras
from keras import ops

import normkit.keras as nkk
from keras_kit import draw, numbers
from normkit.errors import DataError, DTypeError, OptionError, ShapeError

BACKEND = keras.config.backend()
LAYERS = keras.layers


def network(kit, **options):
    """A convolutional network with every kind of norm of a kit."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = LAYERS.Conv2D(6, 3, use_bias=False)(x)
    x = LAYERS.ReLU()(kit.BatchNormalization(momentum=0.9, **options)(x))
    x = kit.GroupNormalization(groups=2)(LAYERS.Conv2D(4, 3)(x))
    x = kit.LayerNormalization()(LAYERS.Flatten()(x))
    x = kit.RMSNormalization()(LAYERS.Dense(8)(x))
    return keras.Model(inputs, LAYERS.Dense(3)(x))


def data(samples=48):
    x = draw(samples, 8, 8, 3, mean=1.0)
    return x, (x.mean((1, 2, 3)) > 1.0).astype("int32")


def trained(model, **fit):
    model.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model.fit(*data(), batch_size=16, epochs=2, shuffle=False, verbose=0, **fit)


def test_training_is_that_of_keras_layers():
    ours, theirs = network(nkk), network(LAYERS)
    losses = [trained(model).history["loss"] for model in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
    x = data()[0]
    np.testing.assert_allclose(
        ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=5e-3, atol=5e-3
    )


def test_one_sample_at_a_time():
    model = network(nkk)
    trained(model)
    x = data()[0][:5]
    whole = model.predict(x, verbose=0)
    alone = np.concatenate([model.predict(one[None], verbose=0) for one in x])
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"ghost": 6}, {"renorm": True}, {"synchronized": True}])
def test_options_train(options):
    history = trained(network(nkk, **options)).history["loss"]
    assert history[-1] < history[0] < 3


# --- files ----------------------------------------------------------------------------------------


def every_layer():
    x = inputs = keras.Input((6, 6, 3))
    x = nkk.Normalization(by="range", name="scaling")(x)
    x = nkk.WeightStandardization(LAYERS.Conv2D(4, 3), epsilon=1e-5)(x)
    x = nkk.BatchNormalization(ghost=4, axis=-1)(x)
    x = nkk.SpectralNormalization(LAYERS.Conv2D(4, 1))(x)
    x = nkk.BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0})(x)
    x = nkk.InstanceNormalization(scale=False)(x)
    x = nkk.GroupNormalization(groups=2, beta_regularizer="l2")(x)
    x = nkk.LayerNormalization(axis=[1, 2, 3])(x)
    x = nkk.RMSNormalization()(x)
    return keras.Model(inputs, nkk.UnitNormalization()(LAYERS.Flatten()(x)))


@pytest.fixture
def saved(tmp_path):
    model = every_layer()
    x = draw(8, 6, 6, 3, mean=5.0)
    model.get_layer("scaling").adapt(x)
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    return model, tmp_path / "model.keras", x


def test_keras_files(saved):
    model, path, x = saved
    again = keras.saving.load_model(path)
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(numbers(again(x)), numbers(model(x)))
    assert again.layers[3].ghost == 4


def test_weights_move_between_keras_layers_and_ours(tmp_path):
    ours, theirs = network(nkk), network(LAYERS)
    trained(theirs)
    theirs.save_weights(tmp_path / "a.weights.h5")
    ours.load_weights(tmp_path / "a.weights.h5")
    x = data()[0]
    np.testing.assert_allclose(
        ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=2e-3, atol=2e-3
    )


def test_a_file_of_a_newer_version_says_so(saved, tmp_path):
    path = saved[1]
    changed = tmp_path / "newer.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                layer = next(
                    one for one in config["config"]["layers"]
                    if one["class_name"] == "BatchNormalization"
                )  # fmt: skip
                layer["config"]["whitening"] = True
                content = json.dumps(config)
            new.writestr(name, content)
    with pytest.raises(OptionError, match=r"newer version: received .*whitening"):
        keras.saving.load_model(changed)


def test_clones_are_of_the_same_kind():
    clone = keras.models.clone_model(network(nkk, ghost=4))
    norm = next(layer for layer in clone.layers if isinstance(layer, nkk.BatchNormalization))
    assert norm.ghost == 4


# --- what is exported, and compiled ---------------------------------------------------------------

EXPORTED = {
    "batch": nkk.BatchNormalization,
    "group": lambda: nkk.GroupNormalization(groups=2),
    "instance": nkk.InstanceNormalization,
    "layer": nkk.LayerNormalization,
    "layer of channels": lambda: nkk.LayerNormalization(axis=1),
    "layer of maps": lambda: nkk.LayerNormalization(axis=[1, 2, 3]),
    "rms of rows": lambda: nkk.RMSNormalization(axis=2),
}


@pytest.mark.skipif(BACKEND != "torch", reason="ONNX files of other backends need more libraries")
@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter has many
@pytest.mark.parametrize("kind", EXPORTED)
def test_onnx_files_take_any_batch(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = keras.Sequential([keras.Input((6, 6, 4)), EXPORTED[kind]()])
    model(draw(1, 6, 6, 4))
    model.export(str(tmp_path / "m.onnx"), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for samples in (1, 2, 5):
        x = draw(samples, 6, 6, 4, seed=samples, mean=3.0)
        (y,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(y, numbers(model(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.export is JAX's")
@pytest.mark.parametrize("kind", EXPORTED)
def test_jax_exports_take_any_batch(kind):
    import jax
    from jax import export

    layer = EXPORTED[kind]()
    layer.build((None, 6, 6, 4))
    state = (
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    )

    def forward(x):
        return layer.stateless_call(*state, x)[0]

    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 6, 6, 4), "float32")
    exported = export.export(jax.jit(forward))(shape)
    for samples in (1, 5):
        x = draw(samples, 6, 6, 4, mean=3.0)
        np.testing.assert_allclose(exported.call(x), numbers(layer(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EXPORTED)
def test_any_batch_where_sizes_are_not_known(kind):
    """As TensorFlow's graphs have it; elsewhere the same call."""
    model = keras.Sequential([keras.Input((6, 6, 4)), EXPORTED[kind]()])
    x = draw(5, 6, 6, 4, mean=3.0)
    np.testing.assert_allclose(
        model.predict(x, batch_size=2, verbose=0), numbers(model(x)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is PyTorch's")
@pytest.mark.parametrize("options", [{}, {"renorm": True}])
def test_gradients_of_compiled_layers(options):
    import torch

    x = torch.tensor(draw(16, 4, mean=2.0), requires_grad=True)
    dy = torch.tensor(draw(16, 4, seed=1))
    found = []
    for compiled in (False, True):
        layer = nkk.BatchNormalization(**options)
        layer(x.detach(), training=True)
        run = torch.compile(layer, backend="aot_eager") if compiled else layer
        found.append(torch.autograd.grad(run(x, training=True), x, dy)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BatchNormalization", "GroupNormalization"])
def test_masks_that_keras_hands_on(kind):
    """From Embedding(mask_zero=True), through the norm, to what comes behind it."""
    options = {"groups": 1} if kind == "GroupNormalization" else {}
    norm = getattr(nkk, kind)(**options)
    embed = LAYERS.Embedding(9, 4, mask_zero=True)
    tokens = np.array([[3, 1, 2, 0, 0], [5, 0, 0, 0, 0]])
    inputs = keras.Input((5,), dtype="int32")
    embedded = embed(inputs)
    model = keras.Model(inputs, [embedded, norm(embedded)])
    x, y = (numbers(out) for out in model(tokens, training=True))
    valid = tokens > 0
    if kind == "BatchNormalization":
        np.testing.assert_allclose(y[valid].mean(0), 0, atol=1e-4)
    else:
        for one, keep in zip(y, valid, strict=True):
            assert abs(one[keep].mean()) < 1e-4
    assert backend_mask(norm(embed(tokens))) is not None
    assert not np.allclose(numbers(norm(x, training=True) if not options else norm(x)), y)


def backend_mask(x):
    return getattr(x, "_keras_mask", None)


def test_a_mask_of_samples():
    x = draw(6, 5, 3, mean=4.0)
    keep = np.array([True, False, True, True, False, True])
    y = numbers(nkk.BatchNormalization(axis=1)(x, training=True, mask=keep))
    np.testing.assert_allclose(y[keep].mean((0, 2)), 0, atol=1e-5)


# --- conditional gamma and beta -------------------------------------------------------------------


def test_conditional_batch_norm_in_a_functional_model():
    keras.utils.set_random_seed(0)
    image, label = keras.Input((4, 4, 6)), keras.Input((3,))
    gamma, beta = LAYERS.Dense(6, bias_initializer="ones")(label), LAYERS.Dense(6)(label)
    norm = nkk.BatchNormalization(center=False, scale=False)
    model = keras.Model([image, label], norm(image, gamma=gamma, beta=beta))
    assert model.output_shape == (None, 4, 4, 6)
    assert len(model.trainable_weights) == 4
    x, labels = draw(9, 4, 4, 6, mean=3.0), np.eye(3, dtype="float32")[[0, 1, 2] * 3]
    model.compile("sgd", "mse")
    before = [numbers(weight) for weight in model.trainable_weights]
    model.fit([x, labels], draw(9, 4, 4, 6, seed=1), batch_size=3, verbose=0)
    after = [numbers(weight) for weight in model.trainable_weights]
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(before, after, strict=True))


# --- scaling of inputs ----------------------------------------------------------------------------


def batches(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


class Pairs(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.x[i * 4 : i * 4 + 4], np.zeros(4)


X = draw(12, 5, 3, mean=1e4, std=2.0)
SOURCES = {
    "array": lambda: X,
    "tensor": lambda: ops.convert_to_tensor(X),
    "list of batches": lambda: batches(X, 5),
    "generator": lambda: (part for part in batches(X, 7)),
    "pairs": lambda: [(part, None) for part in batches(X, 5)],
    "PyDataset": lambda: Pairs(X),
}


@pytest.mark.parametrize("by", ["deviation", "range"])
@pytest.mark.parametrize("source", SOURCES)
def test_adapting(source, by):
    layer = nkk.Normalization(by=by)
    layer.adapt(SOURCES[source]())
    wide = X.astype("float64")
    mean = wide.mean((0, 1))
    divisor = wide.std((0, 1)) if by == "deviation" else wide.max((0, 1)) - wide.min((0, 1))
    np.testing.assert_allclose(numbers(layer.adapt_mean), mean, rtol=1e-7)
    np.testing.assert_allclose(numbers(layer.adapt_variance), divisor**2, rtol=1e-6)
    # What the layer computes in: float32, to whose digits at 10,000 it is right.
    np.testing.assert_allclose(numbers(layer(X)), (wide - mean) / divisor, atol=1e-3)
    inverse = nkk.Normalization(mean=mean, variance=divisor**2, invert=True)
    np.testing.assert_allclose(numbers(inverse(layer(X))), X, rtol=1e-6)


@pytest.mark.parametrize(("axis", "along"), [(None, (0, 1, 2)), (1, (0, 2)), ((1, 2), (0,))])
def test_other_axes(axis, along):
    layer = nkk.Normalization(axis=axis)
    layer.adapt(X)
    wide = X.astype("float64")
    expected = (wide - wide.mean(along, keepdims=True)) / wide.std(along, keepdims=True)
    np.testing.assert_allclose(numbers(layer(X)), expected, atol=1e-3)


def test_a_feature_that_never_changes_becomes_zero():
    layer = nkk.Normalization()
    layer.adapt(np.array([[7.0, 1.0], [7.0, 2.0]]))
    assert numbers(layer(np.array([[7.0, 1.5], [8.0, 1.5]]))).tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_data_that_cannot_be_adapted_to():
    with pytest.raises(DataError):
        nkk.Normalization().adapt([])
    with pytest.raises(DataError):
        nkk.Normalization().adapt(np.zeros((0, 3)))
    layer = nkk.Normalization()
    layer.adapt(X)
    with pytest.raises(ShapeError, match="Other features"):
        layer.adapt(X[:, :, :2])
    with pytest.raises(DTypeError, match="received an array of <U1"):
        nkk.Normalization().adapt(np.array([["a"], ["b"]]))
    with pytest.raises(DataError, match="are masked"):
        nkk.Normalization().adapt(np.ma.masked_greater(X, 1e4))
    with pytest.raises(ShapeError, match="no axis of samples"):
        nkk.Normalization().adapt(np.array([1.0, 2.0, 6.0]))


@pytest.mark.parametrize("data", [None, 3.0, "abc", (X, X), {"x": X}])
def test_data_that_could_mean_anything(data):
    with pytest.raises(DataError, match="It is not clear what to learn from"):
        nkk.Normalization().adapt(data)


@pytest.mark.parametrize("data", [[[1.0, 2.0], [3.0, 9.0]], [{"x": X}], [np.float64(1.0)], [None]])
def test_batches_without_inputs(data):
    with pytest.raises(DataError, match="A batch holds no inputs"):
        nkk.Normalization().adapt(data)


def test_adapting_to_a_frame():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"metres": [1.0, 2.0, 6.0], "new": [True, False, False]})
    for data in (frame, [frame[:1], frame[1:]]):
        layer = nkk.Normalization(by="range")
        layer.adapt(data)
        np.testing.assert_allclose(numbers(layer.adapt_mean), [3.0, 1 / 3], rtol=1e-6)
        np.testing.assert_allclose(numbers(layer.adapt_variance), [25.0, 1.0], rtol=1e-6)


def test_adapting_to_half_precision():
    for dtype in ("float16", "bfloat16"):
        values = ops.cast(np.array([[1.0], [2.0], [6.0]]), dtype)
        layer = nkk.Normalization(by="range")
        layer.adapt(values)
        assert [float(numbers(v).ravel()[0]) for v in layer.weights[:2]] == [3.0, 25.0]


STEPS = np.arange(100.0)[:, None]
BEYOND_FLOAT32 = {
    "far from zero": ("deviation", STEPS + 1.7e9),
    "far from zero, by range": ("range", STEPS + 1.7e10),
    "below epsilon": ("range", STEPS * 1e-11),
    "square overflows": ("range", STEPS * 1e23),
    "square underflows": ("deviation", STEPS * 1e-26),
    "beyond float32": ("range", np.full((2, 1), 1e39)),
}


@pytest.mark.parametrize("what", BEYOND_FLOAT32)
def test_what_float32_cannot_scale_is_said(what):
    by, column = BEYOND_FLOAT32[what]
    layer = nkk.Normalization(by=by)
    layer.adapt(np.hstack([STEPS[: len(column)], STEPS[: len(column)]]))
    before = layer.get_weights()
    with pytest.raises(DataError, match=r"In float32 .* 1 features: .* in feature number 1, "):
        layer.adapt(np.hstack([STEPS[: len(column)], column]))
    for one, other in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "column",
    [STEPS * 100 + 1.7e9, STEPS * 1e4 + 1.7e9, STEPS * 1e-8, STEPS * 1e16, 0 * STEPS + 1.7e9 + 1],
)
@pytest.mark.parametrize("by", ["deviation", "range"])
def test_what_float32_can_scale_is_scaled_by_keras_too(column, by):
    ours, theirs = nkk.Normalization(by=by), LAYERS.Normalization()
    ours.adapt(column)
    theirs.build(column.shape)
    theirs.set_weights(ours.get_weights())
    theirs.finalize_state()
    divisor = (np.ptp(column) if by == "range" else column.std()) or 1.0
    want = (column - column.mean()) / divisor
    # A value and the mean are rounded to float32, each by half a digit at most.
    rounded = 2 * np.abs(column).max() * 2**-24 / divisor if np.ptp(column) else 0.0
    assert rounded < 0.2
    for layer in (ours, theirs):
        np.testing.assert_allclose(numbers(layer(column)), want, rtol=1e-6, atol=rounded + 1e-6)


def test_half_precision_holds_less():
    pixels = draw(50, 3, mean=120.0, std=30.0)
    for dtype in ("mixed_float16", "mixed_bfloat16"):
        layer = nkk.Normalization(dtype=dtype)
        layer.adapt(pixels)
        found = numbers(ops.cast(layer(pixels), "float32"))
        np.testing.assert_allclose(found, (pixels - pixels.mean(0)) / pixels.std(0), atol=0.1)
        with pytest.raises(DataError, match=f"In {dtype[6:]} the layer cannot scale 3 features"):
            nkk.Normalization(dtype=dtype).adapt(pixels + 1e5)
    with pytest.raises(DataError, match="In float16 "):  # a variance beyond 65504
        nkk.Normalization(dtype="mixed_float16").adapt(pixels * 10)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data needs TensorFlow")
def test_adapting_to_a_dataset():
    import tensorflow as tf

    rows = X.reshape(-1, 3)
    whole = nkk.Normalization()
    whole.adapt(rows)
    for dataset in (
        tf.data.Dataset.from_tensor_slices(rows),
        tf.data.Dataset.from_tensor_slices(rows).batch(7),
        tf.data.Dataset.from_tensor_slices((rows, rows[:, 0])).batch(7),
    ):
        layer = nkk.Normalization()
        layer.adapt(dataset)
        np.testing.assert_allclose(numbers(layer.adapt_mean), numbers(whole.adapt_mean), rtol=1e-7)


# --- replicas -------------------------------------------------------------------------------------


def whole_batch(x, dy):
    """Output, gradient and moving statistics of one process."""
    from keras_kit import called

    layer = nkk.BatchNormalization(momentum=0.9)
    y, dx, _ = called(layer, x, dy, training=True)
    return y, dx, [numbers(v) for v in layer.non_trainable_variables]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_replicas_of_tensorflow():
    import tensorflow as tf

    x, dy = draw(6, 5, 3, mean=100.0), draw(6, 5, 3, seed=1)
    y, dx, moving = whole_batch(x, dy)
    assert len(tf.config.list_logical_devices("CPU")) == 2  # see keras_kit
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = nkk.BatchNormalization(momentum=0.9, synchronized=True)
        layer.build(x.shape)
    parts = [slice(0, 4), slice(4, 6)]  # of different sizes

    @tf.function
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x, dy)

    def split(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[parts[context.replica_id_in_sync_group]])
        )

    found, slope = strategy.run(step, (split(x), split(dy)))
    for one, other in ((found, y), (slope, dx)):
        values = np.concatenate([v.numpy() for v in strategy.experimental_local_results(one)])
        np.testing.assert_allclose(values, other, rtol=1e-3, atol=1e-4)
    for variable, value in zip(layer.non_trainable_variables, moving, strict=True):
        np.testing.assert_allclose(numbers(variable), value, rtol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_devices_of_jax():
    import jax

    if jax.device_count() < 2:
        pytest.skip("JAX sees one device only")
    whole = network(nkk)
    trained(whole)
    devices = [f"cpu:{i}" for i in range(2)]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    try:
        parts = network(nkk, synchronized=True)
        trained(parts)
        for one, other in zip(parts.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.distributed is PyTorch's")
def test_ranks_of_pytorch(tmp_path):
    import torch.multiprocessing

    x, dy = draw(6, 5, 3, mean=100.0), draw(6, 5, 3, seed=1)
    y, dx, moving = whole_batch(x, dy)
    torch.multiprocessing.spawn(rank_at_work, (str(tmp_path), x, dy), nprocs=2)
    ranks = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    for name, whole in (("y", y), ("dx", dx)):
        both = np.concatenate([rank[name] for rank in ranks])
        np.testing.assert_allclose(both, whole, rtol=1e-5, atol=1e-6)
    for rank in ranks:
        for name, value in zip(("mean", "var"), moving, strict=True):
            np.testing.assert_allclose(rank[name], value, rtol=1e-6)


def rank_at_work(rank, folder, x, dy):
    import torch.distributed as dist

    from keras_kit import called

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(0, 4) if rank == 0 else slice(4, 6)  # of different sizes
    layer = nkk.BatchNormalization(momentum=0.9, synchronized=True)
    y, dx, _ = called(layer, x[part], dy[part], training=True)
    mean, var = (numbers(v) for v in layer.non_trainable_variables)
    np.savez(f"{folder}/{rank}.npz", y=y, dx=dx, mean=mean, var=var)
    dist.destroy_process_group()
