"""A call of a Keras layer with its gradients, alike on every backend."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

if keras.config.backend() == "tensorflow":
    import tensorflow

    tensorflow.config.set_logical_device_configuration(
        tensorflow.config.list_physical_devices("CPU")[0],
        [tensorflow.config.LogicalDeviceConfiguration()] * 2,
    )


def numbers(values):
    return ops.convert_to_numpy(values)


def called(layer, x, dy, **call):
    """y, dx, and the gradients of the layer's trainable weights by name; statistics move once.

    ``call`` may hold arrays gamma and beta; their gradients come back by these names.
    """
    if not layer.built:
        layer.build(x.shape)
    affine = {name: call.pop(name) for name in ("beta", "gamma") if name in call}
    run = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[keras.config.backend()]
    y, dx, own, given = run(layer, x, dy, affine, call)
    names = [variable.name for variable in layer.trainable_variables]
    pairs = zip([*names, *affine], [*own, *given], strict=True)
    found = {name: numbers(gradient) for name, gradient in pairs if gradient is not None}
    return numbers(y), numbers(dx), found


def _torch(layer, x, dy, affine, call):
    import torch

    x = torch.tensor(x, requires_grad=True)
    affine = {name: torch.tensor(value, requires_grad=True) for name, value in affine.items()}
    y = layer(x, **affine, **call)
    parameters = [v.value for v in layer.trainable_variables]
    wanted = [x, *parameters, *affine.values()]
    dx, *rest = torch.autograd.grad(y, wanted, torch.tensor(dy), allow_unused=True)
    return y.detach(), dx, rest[: len(parameters)], rest[len(parameters) :]


def _jax(layer, x, dy, affine, call):
    import jax

    state = [v.value for v in layer.non_trainable_variables]

    def forward(own, x, affine):
        return layer.stateless_call(own, state, x, **affine, **call)

    affine = {name: jax.numpy.asarray(value) for name, value in affine.items()}
    own = [v.value for v in layer.trainable_variables]
    y, back, moved = jax.vjp(jax.jit(forward), own, jax.numpy.asarray(x), affine, has_aux=True)
    for variable, value in zip(layer.non_trainable_variables, moved, strict=True):
        variable.assign(value)
    own, dx, given = back(jax.numpy.asarray(dy))
    return y, dx, own, list(given.values())


def _tensorflow(layer, x, dy, affine, call):
    import tensorflow as tf

    values = {name: tf.constant(value) for name, value in affine.items()}
    own = [v.value for v in layer.trainable_variables]
    sizes = [
        tf.TensorSpec([None, *value.shape[1:]], value.dtype) for value in (x, *affine.values())
    ]

    @tf.function(input_signature=sizes)  # batches of any size
    def forward(x, *affine):
        return layer(x, **dict(zip(values, affine, strict=True)), **call)

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch([x, *values.values()])
        y = forward(x, *values.values())
    dx, own, given = tape.gradient(y, [x, own, list(values.values())], tf.constant(dy))
    return y, dx, own, given


def draw(*shape, seed=0, mean=0.0, std=1.0):
    return np.random.default_rng(seed).normal(mean, std, shape).astype("float32")
