"""Networks in training: torch.nn's layers, normkit's in their place, fused, and with less kept.

All variants start from the same weights and see the same batch. A step is forward with the loss,
backward, and SGD's update. Like all sessions these import their frameworks when they are made.
"""

from __future__ import annotations

import contextlib
from typing import Any

from bench_cases import Case
from benchmarks.peers import Results, Session

LEARNING_RATE = 1e-4  # the same batch comes every time: nothing should be learned by heart


class Network(Session):
    """torch.nn's layers, eager."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        import torch

        from benchmarks.networks import network

        self.f = torch.nn.functional
        layout = {"first": torch.contiguous_format, "last": torch.channels_last}[case.layout]
        model: Any = network(case.norm, case.shape[1])
        model.to(memory_format=layout)
        torch.manual_seed(1)
        self.x = torch.randn(case.shape).contiguous(memory_format=layout)
        self.labels = torch.randint(10, case.shape[:1])
        self.model = self.changed(model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, momentum=0.9)

    def changed(self, model: Any) -> Any:
        """The model as this variant trains it."""
        return model

    def context(self) -> Any:
        """What the forward pass runs in."""
        return contextlib.nullcontext()

    def forward(self) -> None:
        with self.context():
            y = self.model(self.x)
            self.y = self.f.cross_entropy(y, self.labels) if y.ndim == 2 else y.mean()

    def backward(self) -> None:
        self.y.backward()
        self.optimizer.step()

    def release(self) -> None:
        self.y = None
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> Results:
        return {name: p.grad for name, p in self.model.named_parameters()}


class Swapped(Network):
    """normkit's layers in the place of torch.nn's, and nothing else changed."""

    def changed(self, model: Any) -> Any:
        import normkit.torch as nt

        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child).__name__ == "BatchNorm2d":
                    setattr(module, name, self._swapped(nt.BatchNorm2d, child))
        return model

    def _swapped(self, kind: Any, old: Any) -> Any:
        new = kind(old.num_features, old.eps, old.momentum)
        new.load_state_dict(old.state_dict())
        return new


class Accelerated(Network):
    """After ``normkit.torch.accelerate``: norm, addition and activation in one pass."""

    def changed(self, model: Any) -> Any:
        import normkit.torch as nt

        return nt.accelerate(model, self.x[:2], report=None)


class Lean(Accelerated):
    """Accelerated, with each forward pass within ``normkit.torch.lean_memory``."""

    def context(self) -> Any:
        import normkit.torch as nt

        return nt.lean_memory()


NETWORK_PEERS: dict[str, type[Session]] = {
    "network": Network,
    "swapped": Swapped,
    "accelerated": Accelerated,
    "lean": Lean,
}
