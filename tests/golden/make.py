"""Golden cells: what each framework's own norm layers compute, kept as small JSON files.

Run it from the repository's root where all frameworks are installed; it writes beside itself:

    KERAS_BACKEND=torch python tests/golden/make.py

A cell holds a layer's class, options and weights in its framework's own names, an input, the output
in inference and in training, and the running statistics after. Inputs and outputs are laid out as
(samples, channels, positions…), or (samples, …, shape) for layer and RMS norms. Nothing here uses
normkit: the cells say what the frameworks do.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import warnings
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CHANNELS, SAMPLES, POSITIONS = 4, 3, (5,)

#: framework/cell: class, its arguments, whether it normalizes by the last axes.
CELLS = {
    "torch/batch": ("BatchNorm1d", {"num_features": 4}),
    "torch/batch-plain": ("BatchNorm1d", {"num_features": 4, "affine": False}),
    "torch/layer": ("LayerNorm", {"normalized_shape": [4]}),
    "torch/layer-axes": ("LayerNorm", {"normalized_shape": [3, 4], "bias": False}),
    "torch/rms": ("RMSNorm", {"normalized_shape": [4], "eps": 1e-6}),
    "torch/group": ("GroupNorm", {"num_groups": 2, "num_channels": 4}),
    "torch/instance": ("InstanceNorm1d", {"num_features": 4, "affine": True}),
    "keras/batch": ("BatchNormalization", {}),
    "keras/batch-first": ("BatchNormalization", {"axis": 1}),
    "keras/batch-plain": ("BatchNormalization", {"scale": False, "momentum": 0.9}),
    "keras/layer": ("LayerNormalization", {}),
    "keras/layer-axes": ("LayerNormalization", {"axis": [-2, -1], "center": False}),
    "keras/rms": ("RMSNormalization", {}),
    "keras/group": ("GroupNormalization", {"groups": 2}),
    "keras/instance": ("GroupNormalization", {"groups": -1, "axis": 1}),
    "flax/batch": ("BatchNorm", {"num_features": 4}),
    "flax/batch-first": ("BatchNorm", {"num_features": 4, "axis": 1, "use_bias": False}),
    "flax/layer": ("LayerNorm", {"num_features": 4}),
    "flax/rms": ("RMSNorm", {"num_features": 4}),
    "flax/group": ("GroupNorm", {"num_features": 4, "num_groups": 2}),
    "flax/instance": ("InstanceNorm", {"num_features": 4}),
    "linen/batch": ("BatchNorm", {"use_running_average": True}),
    "linen/layer": ("LayerNorm", {}),
    "linen/layer-axes": (
        "LayerNorm", {"reduction_axes": [-2, -1], "feature_axes": [-2, -1], "use_bias": False},
    ),
    "linen/rms": ("RMSNorm", {}),
    "linen/group": ("GroupNorm", {"num_groups": 2}),
    "linen/instance": ("InstanceNorm", {}),
    "equinox/batch": (
        "BatchNorm", {"input_size": 4, "axis_name": "batch", "mode": "batch", "momentum": 0.9},
    ),
    "equinox/batch-ema": ("BatchNorm", {"input_size": 4, "axis_name": "batch", "mode": "ema"}),
    "equinox/layer": ("LayerNorm", {"shape": [4]}),
    "equinox/layer-axes": ("LayerNorm", {"shape": [3, 4], "use_bias": False}),
    "equinox/rms": ("RMSNorm", {"shape": [4], "use_bias": False}),
    "equinox/group": ("GroupNorm", {"groups": 2, "channels": 4}),
    "onnx/batch": ("BatchNormalization", {}),
    "onnx/layer": ("LayerNormalization", {}),
    "onnx/rms": ("RMSNormalization", {}),
    "onnx/group": ("GroupNormalization", {"num_groups": 2}),
    "onnx/instance": ("InstanceNormalization", {}),
}  # fmt: skip
_BY_LAST_AXES = ("layer", "layer-axes", "rms")
_STEPS = 3  # batches that Equinox' zero-debiased statistics have seen


def kind_of(cell):
    """The kind of norm that a cell's name begins with."""
    return cell.partition("/")[2].partition("-")[0]


def weight_shape(cell):
    return (3, 4) if cell.endswith("layer-axes") else (CHANNELS,)


def input_shape(cell):
    if cell.partition("/")[2] in _BY_LAST_AXES:
        return (SAMPLES, *weight_shape(cell))
    return (SAMPLES, CHANNELS, *POSITIONS)


def behind(cell):
    """Whether the layer takes channels behind."""
    framework, _, name = cell.partition("/")
    moved = framework in ("keras", "flax", "linen") and name not in _BY_LAST_AXES
    return moved and CELLS[cell][1].get("axis", -1) == -1


# -- layers by their frameworks' own names ---------------------------------------------------------


def build(cell, weights):
    """The framework's layer of a cell with the cell's weights, by the framework alone."""
    framework = cell.partition("/")[0]
    name, options = CELLS[cell]
    arrays = {key: np.asarray(value, np.float32) for key, value in weights.items()}
    return globals()[f"_build_{framework}"](cell, name, dict(options), arrays)


def _build_torch(cell, name, options, weights):
    import torch

    layer = getattr(torch.nn, name)(**options)
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    return layer.eval()


def _build_keras(cell, name, options, weights):
    import keras

    layer = getattr(keras.layers, name)(**options)
    shape = input_shape(cell)
    layer.build((None, *shape[2:], shape[1]) if behind(cell) else (None, *shape[1:]))
    for variable, value in weights.items():
        getattr(layer, variable).assign(value)
    return layer


def _build_flax(cell, name, options, weights):
    import jax.numpy as jnp
    from flax import nnx

    layer = getattr(nnx, name)(**options, rngs=nnx.Rngs(0))
    for variable, value in weights.items():
        getattr(layer, variable)[...] = jnp.asarray(value)
    return layer


def _build_linen(cell, name, options, weights):
    import jax.numpy as jnp
    from flax import linen

    for axes in ("reduction_axes", "feature_axes"):
        if axes in options:
            options[axes] = tuple(options[axes])
    variables = {}
    for path, value in weights.items():
        collection, own = path.split("/")
        variables.setdefault(collection, {})[own] = jnp.asarray(value)
    return getattr(linen, name)(**options), variables


def _build_equinox(cell, name, options, weights):
    import equinox as eqx
    import jax.numpy as jnp

    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    layer, state = eqx.nn.make_with_state(getattr(eqx.nn, name))(**options)
    affine = [own for own in ("weight", "bias") if own in weights]
    layer = eqx.tree_at(
        lambda tree: [getattr(tree, own) for own in affine], layer,
        [jnp.asarray(weights[own]) for own in affine],
    )  # fmt: skip
    if name != "BatchNorm":
        return layer
    held = tuple(jnp.asarray(weights[own]) for own in ("hidden_mean", "hidden_var"))
    if options["mode"] == "ema":
        state = state.set(layer.ema_state_index, held)
        return layer, state.set(layer.ema_first_time_index, jnp.array(False))
    state = state.set(layer.batch_state_index, held)
    return layer, state.set(layer.batch_counter, state.get(layer.batch_counter) + _STEPS)


def _build_onnx(cell, name, options, weights):
    from onnx import TensorProto, helper, numpy_helper

    shape = ["N", *input_shape(cell)[1:]]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    node = helper.make_node(name, ["x", *weights], ["y"], name="norm", **options)
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph([node], "norm", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    model.ir_version = 11
    return model


# -- how each framework runs its layer -------------------------------------------------------------


def run(framework, layer, x, training, *, moved=False):
    """y, and mean and variance after a batch in training (None without), by the framework alone.

    Args:
        x: as the module says.
        moved: the layer takes channels behind.
    """
    given = np.moveaxis(x, 1, -1) if moved else x
    y, mean, var = globals()[f"_run_{framework}"](layer, np.float32(given), training)
    y = np.asarray(y)
    return np.moveaxis(y, -1, 1) if moved else y, mean, var


def _run_torch(layer, x, training):
    import copy

    import torch

    layer = copy.deepcopy(layer).train(training)
    with torch.no_grad():
        y = layer(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    held = (getattr(layer, own, None) for own in ("running_mean", "running_var"))
    return y, *(None if not training or t is None else t.numpy() for t in held)


def _run_keras(layer, x, training):
    import keras

    before = layer.get_weights()
    batch = isinstance(layer, keras.layers.BatchNormalization)
    y = keras.ops.convert_to_numpy(layer(x, training=True) if training and batch else layer(x))
    held = (None, None)
    if batch and training:
        held = tuple(
            np.array(keras.ops.convert_to_numpy(v))
            for v in (layer.moving_mean, layer.moving_variance)
        )
    layer.set_weights(before)
    return y, *held


def _run_flax(layer, x, training):
    import jax.numpy as jnp
    from flax import nnx

    layer = nnx.clone(layer)
    if not isinstance(layer, nnx.BatchNorm):
        return layer(jnp.asarray(x)), None, None
    y = layer(jnp.asarray(x), use_running_average=not training)
    return y, *((np.array(layer.mean[...]), np.array(layer.var[...])) if training else (None, None))


def _run_linen(layer, x, training):
    import jax.numpy as jnp

    module, variables = layer
    if not (training and "batch_stats" in variables):
        return module.apply(variables, jnp.asarray(x)), None, None
    module = module.clone(use_running_average=False)
    y, moved = module.apply(variables, jnp.asarray(x), mutable=["batch_stats"])
    return y, *(np.array(moved["batch_stats"][own]) for own in ("mean", "var"))


def _run_equinox(layer, x, training):
    import jax
    import jax.numpy as jnp

    if not isinstance(layer, tuple):
        return jax.vmap(layer)(jnp.asarray(x)), None, None
    module, state = layer
    y, after = jax.vmap(
        lambda one: module(one, state, inference=not training),
        axis_name="batch", out_axes=(0, None),
    )(jnp.asarray(x))  # fmt: skip
    if not training:
        return y, None, None
    if module.mode == "ema":
        return y, *map(np.array, after.get(module.ema_state_index))
    # What inference would use next: the hidden values over 1 - momentumⁿ.
    scale = 1 - module.momentum ** int(after.get(module.batch_counter))
    return y, *(np.array(v) / scale for v in after.get(module.batch_state_index))


def _run_onnx(model, x, training):
    if training and model.graph.node[0].op_type == "BatchNormalization":
        return _run_onnx_training(model, x)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": np.ascontiguousarray(x)})[0], None, None


def _run_onnx_training(model, x):
    """ONNX Runtime's inference build does not train: ONNX' reference implementation does."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    trained = type(model)()
    trained.CopyFrom(model)
    node = trained.graph.node[0]
    node.output.extend(["mean", "var"])
    node.attribute.append(helper.make_attribute("training_mode", 1))
    names = [helper.make_tensor_value_info(n, 1, None) for n in ("mean", "var")]
    trained.graph.output.extend(names)
    return ReferenceEvaluator(trained).run(None, {"x": np.ascontiguousarray(x)})


# -- cells made ------------------------------------------------------------------------------------

_NAMES = {
    "torch": ("weight", "bias", "running_mean", "running_var"),
    "keras": ("gamma", "beta", "moving_mean", "moving_variance"),
    "flax": ("scale", "bias", "mean", "var"),
    "linen": ("params/scale", "params/bias", "batch_stats/mean", "batch_stats/var"),
    "equinox": ("weight", "bias", "hidden_mean", "hidden_var"),
    "onnx": ("scale", "B", "input_mean", "input_var"),
}
_WITHOUT = {"affine": (0, 1), "bias": (1,), "use_bias": (1,), "center": (1,), "scale": (0,)}


def draw(cell, rng):
    """Weights by the framework's own names, and an input in which conventions show."""
    framework, kind = cell.partition("/")[0], kind_of(cell)
    shape, count = weight_shape(cell), 4 if kind == "batch" else 2
    absent = {
        place
        for option, places in _WITHOUT.items()
        if CELLS[cell][1].get(option) is False
        for place in places
    }
    if kind == "rms":
        absent.add(1)
    lows_and_highs = ((0.5, 2.0), (-1.0, 1.0), (0.8, 1.2), (0.05, 0.2))
    drawn = [np.float32(rng.uniform(low, high, shape)) for low, high in lows_and_highs]
    names = list(_NAMES[framework])
    if framework == "keras" and kind == "rms":
        names[0] = "scale"
    weights = {names[i]: drawn[i] for i in range(count) if i not in absent}
    if cell == "equinox/batch":  # hidden averages start at nothing, and are divided later
        share = 1 - CELLS[cell][1]["momentum"] ** _STEPS
        weights |= {own: weights[own] * np.float32(share) for own in ("hidden_mean", "hidden_var")}
    return weights, np.float32(0.2 + 0.3 * rng.normal(size=input_shape(cell)))


def make(cell):
    """A cell as it is kept."""
    rng = np.random.default_rng(zlib.crc32(cell.encode()))
    weights, x = draw(cell, rng)
    layer = build(cell, weights)
    framework = cell.partition("/")[0]
    inference, _, _ = run(framework, layer, x, False, moved=behind(cell))
    found = {"x": x, "inference": inference}
    if kind_of(cell) == "batch":
        y, mean, var = run(framework, layer, x, True, moved=behind(cell))
        found |= {"training": y, "mean": mean, "var": var}
    name, options = CELLS[cell]
    return {
        "layer": name,
        "options": options,
        "weights": {k: _plain(v) for k, v in weights.items()},
        **{key: _plain(value) for key, value in found.items()},
    }


def _plain(array):
    """Numbers in as few digits as float32 needs."""
    array = np.asarray(array, np.float32)
    if array.ndim:
        return [_plain(part) for part in array]
    assert math.isfinite(array)
    return float(str(array[()]))


def versions():
    names = ("torch", "keras", "flax", "jax", "equinox", "onnx", "onnxruntime", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def make_keras_file():
    """A .keras file with norms in it, one in an inner model, and what Keras says they hold."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((2, 2, 3)), layers.BatchNormalization(name="bn")], name="inner"
    )
    model = keras.Sequential(
        [
            keras.Input((2, 2, 3)),
            layers.BatchNormalization(name="first", scale=False, epsilon=2e-5, momentum=0.9),
            inner,
            layers.Lambda(lambda x: 2 * x, name="code"),
            layers.GroupNormalization(1, name="last"),
        ],
        name="golden",
    )
    held = {}
    for name, layer in (
        ("first", model.layers[0]), ("inner/bn", inner.layers[0]), ("last", model.layers[-1]),
    ):  # fmt: skip
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
        held[name] = {
            v.name: _plain(keras.ops.convert_to_numpy(v)) for v in layer.variables
        } | {"epsilon": layer.epsilon}  # fmt: skip
    model.save(HERE / "model.keras")
    (HERE / "model.json").write_text(json.dumps(held) + "\n")


def main():
    warnings.simplefilter("ignore")
    make_keras_file()
    for cell in CELLS:
        path = HERE / f"{cell.replace('/', '-')}.json"
        path.write_text(json.dumps(make(cell)) + "\n")
    import keras

    record = {**versions(), "keras backend": keras.backend.backend()}
    (HERE / "versions.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
