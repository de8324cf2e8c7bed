"""watch() for trainers that call back, by Lightning's protocol and by Keras'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normkit.models.watching.watcher import Watch, watch

__all__ = ["KerasCallback", "LightningCallback"]


class _Callback:
    """Keeps watch()'s options until there is a model.

    Trainers also call hooks that mean nothing here, by their names: these do nothing.
    """

    _prefixes: tuple[str, ...] = ("on_",)

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.watch: Watch | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith(self._prefixes):
            return _nothing
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _begin(self, model: Any) -> None:
        """Watch a model; steps go on from where an earlier training ended."""
        self._end()
        start = {} if self.watch is None else {"start": self.watch.steps}
        self.watch = watch(model, **(self._options | start)).__enter__()

    def _end(self) -> None:
        if self.watch is not None:
            self.watch.close()

    def _step(self, scalars: Mapping[str, Any]) -> None:
        if self.watch is not None:
            self.watch.step(**scalars)


def _nothing(*args: Any, **kwargs: Any) -> None:  # noqa: ARG001
    return None


class LightningCallback(_Callback):
    """For ``Trainer(callbacks=[LightningCallback(every=50, to="runs/x")])``.

    Args:
        options: those of :func:`watch`; the trainer's first optimizer unless one is given. Each
            batch is a step.

    >>> import torch
    >>> net, callback = torch.nn.BatchNorm1d(3), LightningCallback(every=2)
    >>> callback.on_fit_start(None, net)
    >>> for i in range(4):
    ...     loss = net(torch.randn(8, 3)).sum()
    ...     callback.on_train_batch_end(None, net, {"loss": loss}, None, i)
    >>> callback.on_fit_end(None, net)
    >>> callback.watch.last.step
    4
    """

    _prefixes = ("on_", "setup", "teardown", "load_state_dict")
    state_key = "normkit.models.watch"

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept in checkpoints."""
        return {}

    def on_fit_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        """Begin to watch the module."""
        self._begin(module)

    def on_train_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        """The optimizers are there now."""
        optimizers = getattr(trainer, "optimizers", None)
        if self.watch is not None and self.watch.optimizer is None and optimizers:
            self.watch.optimizer = optimizers[0]

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """One step."""
        self._step(_loss(outputs))

    def on_fit_end(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        """Close what was written."""
        self._end()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """The same, where training ends otherwise."""
        self._end()


def _loss(outputs: Any) -> dict[str, Any]:
    value = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    numel = getattr(value, "numel", None)
    return {"loss": value} if numel is not None and numel() == 1 else {}


class KerasCallback(_Callback):
    """For ``model.fit(callbacks=[KerasCallback(every=50, to="runs/x")])`` on Keras' torch backend.

    Args:
        options: those of :func:`watch`.

    Norms of PyTorch and normkit are recognised in it; of Keras' own, whose statistics are variables
    of Keras', updates are recorded.

    >>> import torch
    >>> net, callback = torch.nn.BatchNorm1d(3), KerasCallback(every=2)
    >>> callback.set_model(net)
    >>> callback.on_train_begin()
    >>> for i in range(4):
    ...     y = net(torch.randn(8, 3))
    ...     callback.on_train_batch_end(i, {"loss": 0.5})
    >>> callback.on_train_end()
    >>> callback.watch.last.scalars
    {'loss': 0.5}
    """

    model: Any = None

    def set_model(self, model: Any) -> None:
        """The model that is trained."""
        self.model = model

    def set_params(self, params: Any) -> None:
        """What Keras tells of the training."""

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Begin to watch the model."""
        self._begin(self.model)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002
        """One step."""
        self._step(logs or {})

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Close what was written."""
        self._end()
