"""Equinox' batch norm, computed by normkit: the same arguments, state and conventions."""

from __future__ import annotations

from typing import Any

from jax import numpy as jnp

from normkit import norms
from normkit.extras import needed
from normkit.jax.normalizing import normalize

__all__ = ["BatchNorm"]

Array = Any
eqx = needed("equinox")


class BatchNorm(eqx.nn.BatchNorm):  # type: ignore[name-defined]
    """equinox.nn.BatchNorm with less kept for backward.

    Arguments are Equinox'. Of its modes "batch" is computed by normkit; "ema", which normalizes by
    running statistics in training too, is left to Equinox.
    """

    def __call__(
        self, x: Array, state: Any, *, key: Any = None, inference: bool | None = None
    ) -> tuple[Array, Any]:
        """Under a ``vmap`` that has the layer's ``axis_name``.

        Args:
            x: one sample, (input_size, dim_1, ..., dim_N).
            state: an ``equinox.nn.State``.
            key: is not looked at.
            inference: instead of what the layer was told.
        """
        inference = self.inference if inference is None else inference
        if inference or self.mode != "batch":
            return super().__call__(x, state, key=key, inference=inference)
        y, found = normalize(
            norms.BatchNorm(eps=self.eps), x[None], self.weight, self.bias, axis=1,
            axis_name=self.axis_name,
        )  # fmt: skip
        averages = zip(state.get(self.batch_state_index), (found.mean, found.var), strict=True)
        state = state.set(self.batch_counter, state.get(self.batch_counter) + 1)
        state = state.set(
            self.batch_state_index,
            tuple(
                (self.momentum * old + (1 - self.momentum) * new.reshape(old.shape)).astype(
                    old.dtype
                )
                for old, new in averages
            ),
        )
        dtype = x.dtype if self.weight is None else jnp.result_type(x, self.weight)
        return y[0].astype(dtype), state
