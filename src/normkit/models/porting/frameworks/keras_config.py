"""Keras' norm layers as their configurations say: for layers in memory and for .keras files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normkit.errors import ModelError
from normkit.models.porting.frameworks.base import refuse
from normkit.models.porting.weights import NormWeights, whole_sizes

__all__ = ["KINDS", "is_norm", "variable_names", "weights_of_config"]

Array = Any
Config = Mapping[str, Any]

#: Classes with a counterpart elsewhere, Keras' and normkit's.
KINDS = {
    "BatchNormalization": "batch",
    "LayerNormalization": "layer",
    "RMSNormalization": "rms",
    "GroupNormalization": "group",
    "InstanceNormalization": "instance",
}
#: What normkit's classes can do beyond Keras', with the value that means nothing.
_FEATURES = ("renorm", "mean_only", "ghost", "domains", "rms_scaling", "virtual_batch_size")
_KNOWN = frozenset({
    "name", "trainable", "dtype", "axis", "momentum", "epsilon", "center", "scale", "groups",
    "beta_initializer", "gamma_initializer", "moving_mean_initializer",
    "moving_variance_initializer", "beta_regularizer", "gamma_regularizer", "beta_constraint",
    "gamma_constraint", "renorm_clipping", "renorm_momentum", "synchronized", "batch_input_shape",
    "input_shape", "autocast", "activity_regularizer",
})  # fmt: skip


def is_norm(class_name: str) -> bool:
    """Whether a class is a norm by its name, with a counterpart or without.

    >>> [is_norm(n) for n in ("RMSNormalization", "MyBatchNorm", "Normalization", "Dense")]
    [True, True, False, False]
    """
    return "norm" in class_name.lower() and class_name != "Normalization"  # which scales inputs


def variable_names(kind: str, config: Config) -> tuple[str, ...]:
    """The layer's variables in the order in which Keras keeps them."""
    if kind == "rms":
        return ("gamma",)
    affine = [n for n, has in (("gamma", "scale"), ("beta", "center")) if config.get(has, True)]
    return (*affine, *(("mean", "var") if kind == "batch" else ()))


def weights_of_config(
    class_name: str,
    config: Config,
    arrays: Sequence[Array],
    input_shape: Sequence[int | None] | None,
    name: str,
) -> NormWeights:
    """A layer by its configuration and its variables.

    Args:
        class_name: as in the file.
        config: as ``get_config`` gives it.
        arrays: its variables in Keras' order.
        input_shape: that it was built for; None where it is not known.
        name: for messages.

    Raises:
        ModelError: a layer without counterpart, an option without one, or other variables.
    """
    kind = KINDS.get(class_name)
    if kind is None:
        refuse(
            "keras",
            name,
            f"{class_name}, which is no norm that is known",
            "Leave it out, or port it by hand.",
        )
    _check_options(class_name, config, name)
    names = variable_names(kind, config)
    if len(arrays) != len(names):
        raise ModelError(
            "The layer does not have the weights of its kind",
            received=f"{len(arrays)} variables in {class_name} {name}",
            expected=f"{len(names)}: {', '.join(names)}" if names else "none",
            remedy="The weights may be another layer's, or of another version of Keras.",
        )
    held = dict(zip(names, arrays, strict=True))
    rank = None if input_shape is None else len(input_shape)
    axes = _axes(config.get("axis", -1))
    common: dict[str, Any] = {
        "eps": float(config.get("epsilon", 1e-6 if kind == "rms" else 1e-3)),
        "name": name,
        "framework": "keras",
        "notes": _notes(config),
        **held,
    }
    if kind in ("layer", "rms"):
        _check_last(axes, rank, name)
        return NormWeights(kind, _sizes(held, axes, input_shape, name), **common)
    shape = _sizes(held, axes, input_shape, name)
    groups = config.get("groups", 32) if kind == "group" else None
    if groups == -1:
        kind, groups = "instance", None
    return NormWeights(
        kind,
        shape,
        keep=float(config.get("momentum", 0.99)) if kind == "batch" else None,
        variance="biased" if kind == "batch" else None,
        groups=groups,
        channels=_place(axes, rank, name),
        dims=None if rank is None else rank - 2,
        synced=bool(config.get("synchronized", False)),
        **common,
    )


def _check_options(class_name: str, config: Config, name: str) -> None:
    asked = [
        f"{option}={value!r}"
        for option, value in config.items()
        if (option in _FEATURES or option not in _KNOWN) and _means_something(option, value)
    ]
    if asked:
        refuse(
            "keras",
            name,
            f"{class_name} with {', '.join(asked)}",
            "Make a layer without it that has the same weights, where that is wanted.",
        )


def _means_something(option: str, value: Any) -> bool:
    """Whether an option is in use: normkit's policies have words for Keras' own behaviour."""
    usual = {"running": "ema", "on_nonfinite": "propagate", "on_small_batch": "error"}
    return value not in (None, False, usual.get(option)) and value != ()


def _notes(config: Config) -> tuple[str, ...]:
    notes = []
    if config.get("trainable") is False:
        notes.append("frozen (trainable=False) in the source; the target's layer is not")
    bound = [n for n in config if n.endswith(("_regularizer", "_constraint")) and config[n]]
    if bound:
        notes.append(f"{', '.join(bound)} stays in Keras: it concerns training")
    return tuple(notes)


def _axes(axis: Any) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(axis)


def _check_last(axes: tuple[int, ...], rank: int | None, name: str) -> None:
    """A layer norm's axes are the last ones, in order."""
    if rank is None and any(axis >= 0 for axis in axes):
        raise ModelError(
            "The layer's axes cannot be placed",
            received=f"axis={axes} of {name or 'a layer'} that was not built",
            expected="the rank of its input",
            remedy="Build the layer first: layer.build(input_shape).",
        )
    behind = [axis if axis < 0 else axis - (rank or 0) for axis in axes]
    if behind != sorted(behind):
        refuse(
            "keras",
            name,
            f"axis={axes}, which Keras does not keep in the order of the weights",
            "Count all axes from the front, or all from behind, in their order.",
        )
    if behind != list(range(-len(axes), 0)):
        refuse(
            "keras",
            name,
            f"axis={axes} of an input with {rank} axes, which are not the last",
            "Move the axes behind the others, around a norm with axis=-1.",
        )


def _place(axes: tuple[int, ...], rank: int | None, name: str) -> str | None:
    axis = axes[0]
    if axis == -1 or (rank is not None and axis == rank - 1):
        return None if rank == 2 else "last"
    if not (axis == 1 or (rank is not None and axis == 1 - rank)):
        refuse(
            "keras",
            name,
            f"channels at axis {axis} of an input with {rank or 'unknown'} axes",
            "Other frameworks have them at axis 1 or last: transpose around the norm.",
        )
    return "first"


def _sizes(
    held: Mapping[str, Array], axes: tuple[int, ...], input_shape: Any, name: str
) -> tuple[int, ...]:
    if held:
        return tuple(next(iter(held.values())).shape)
    given = () if input_shape is None else tuple(input_shape[a] for a in sorted(axes))
    return whole_sizes(given or (None,), name)
