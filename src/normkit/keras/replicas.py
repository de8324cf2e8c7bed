"""Statistics of all replicas together, by the means of each backend's distribution.

Under JAX nothing is to be done: in a program over many devices an array is the whole batch, and so
are its statistics.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import keras

__all__ = ["Replicas"]

Tensor = Any


class Replicas:
    """The way of one layer to its replicas.

    Args:
        name: the layer's, for errors of ranks that are at different layers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._place: Any = None

    def total(self, values: Tensor) -> Tensor:
        """The sum over the replicas of a tf.distribute strategy; differentiable."""
        if keras.config.backend() != "tensorflow":
            return values
        tf = importlib.import_module("tensorflow")  # there already: Keras runs on it
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return values
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)

    def reducer(self, x: Tensor, axis: int, mask: Tensor | None) -> Any:
        """What merges statistics over the ranks of torch.distributed; None where there is one."""
        from normkit.torch.distributed import Line, RankReducer
        from normkit.torch.ranks import Place, group_of, ranks_of

        group = group_of(None)
        if group is None:
            return None
        self._place = self._place or Place(self.name)
        ranks = ranks_of(group)
        header = self._place.next_header(
            ranks, "BatchNormalization", channels=x.shape[axis], samples=x.shape[0],
            positions=math.prod(x.shape[1:]) // max(x.shape[axis], 1), masked=mask is not None,
        )  # fmt: skip
        headers = ranks.meet(header, x.device)
        self._place.count()
        masked = any(one.masked for one in headers)
        line = Line(group.group_name, ranks.size, ranks.rank, ranks, header)
        return RankReducer(line, masked=masked)
