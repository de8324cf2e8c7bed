"""What is compared: each peer runs one case as a training step would.

A session holds the inputs of one case. `forward` computes y and keeps it, `backward` computes every
gradient and keeps them, `release` lets go of all that the call allocated. Inputs are made once and
reused; outputs and gradients are allocated by each call, as in training. Frameworks are imported
inside the sessions, because each peer runs in a process of its own and should load nothing else.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bench_cases import Case, arrays

THREADS = 2
EPS = 1e-5
LARGE = 25_000_000  # bytes of x from which a case is compared with memory itself
Results = dict[str, Any]


class Session:
    """One peer on one case."""

    joint: ClassVar[bool] = False  # one compiled call does forward and backward together
    y: Any = None

    def __init__(self, case: Case) -> None:
        self.case = case

    def forward(self) -> None:
        raise NotImplementedError

    def backward(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        self.y = None

    def gradients(self) -> Results:
        """Gradients of x, gamma, beta and residual after `backward`; None where there is none."""
        raise NotImplementedError

    def empty_cache(self) -> None:
        """Give back memory that the peer keeps for later calls."""


def norm_of(case: Case) -> Any:
    """The normkit norm of a case."""
    import normkit as nk

    makers = {
        "batch": lambda: nk.BatchNorm(eps=EPS),
        "layer": lambda: nk.LayerNorm(eps=EPS),
        "token_layer": lambda: nk.TokenLayerNorm(eps=EPS),
        "rms": lambda: nk.RMSNorm(eps=EPS),
        "instance": lambda: nk.InstanceNorm(eps=EPS),
        "group": lambda: nk.GroupNorm(case.groups, eps=EPS),
    }
    return makers[case.norm]()


class TorchSession(Session):
    """Inputs as PyTorch tensors; channels last is PyTorch's memory format of that name."""

    def __init__(self, case: Case, dtype: Any = None) -> None:
        super().__init__(case)
        import torch

        kind = dtype or getattr(torch, case.dtype)

        def tensor(array: np.ndarray | None) -> Any:
            if array is None:
                return None
            # bfloat16 inputs are rounded first, so that a float64 truth sees the same numbers
            made = torch.from_numpy(array).to(getattr(torch, case.dtype)).to(kind)
            if case.layout == "last" and made.ndim == len(case.shape):
                made = made.contiguous(memory_format=torch.channels_last)
            return made

        inputs = {name: tensor(array) for name, array in arrays(case).items()}
        self.dy = inputs.pop("dy")
        self.inputs = inputs
        for value in inputs.values():
            if value is not None:
                value.requires_grad_()

    def call(self, x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        raise NotImplementedError

    def forward(self) -> None:
        self.y = self.call(**self.inputs)

    def backward(self) -> None:
        self.y.backward(self.dy)

    def release(self) -> None:
        self.y = None
        for value in self.inputs.values():
            if value is not None:
                value.grad = None

    def gradients(self) -> Results:
        return {k: None if v is None else v.grad for k, v in self.inputs.items()}


class NormkitTorch(TorchSession):
    """normkit as a layer uses it: through its autograd function."""

    def __init__(self, case: Case, dtype: Any = None) -> None:
        super().__init__(case, dtype)
        from normkit.torch import functional

        self.norm = norm_of(case)
        self.normalize = functional.normalize

    def call(self, x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return self.normalize(
            self.norm,
            x,
            gamma,
            beta,
            axis=1,
            residual=residual,
            activation=self.case.activation,
        )

    def empty_cache(self) -> None:
        import normkit as nk

        nk.empty_cache()


class Eager(TorchSession):
    """PyTorch's own operators, one call for each part of a fused case."""

    def __init__(self, case: Case, dtype: Any = None) -> None:
        super().__init__(case, dtype)
        from torch.nn import functional

        self.f = functional

    def call(self, x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        y = self.normalized(x, gamma, beta)
        if residual is not None:
            y = y + residual
        return getattr(self.f, self.case.activation)(y) if self.case.activation else y

    def normalized(self, x: Any, gamma: Any, beta: Any) -> Any:
        f, case = self.f, self.case
        match case.norm:
            case "batch":
                return f.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
            case "instance":
                return f.instance_norm(x, weight=gamma, bias=beta, use_input_stats=True, eps=EPS)
            case "rms":
                return f.rms_norm(x, x.shape[1:], gamma, eps=EPS)
            case "group":
                return f.group_norm(x, case.groups, gamma, beta, eps=EPS)
            case "layer" if case.affine == "channel":
                # layer norm of a feature map with (C,) parameters: one group in PyTorch's words
                return f.group_norm(x, 1, gamma, beta, eps=EPS)
            case _:
                return f.layer_norm(x, x.shape[1:], gamma, beta, eps=EPS)


class Compiled(Eager):
    """The eager chain through torch.compile (inductor, which needs a C++ compiler)."""

    def __init__(self, case: Case, dtype: Any = None) -> None:
        super().__init__(case, dtype)
        import torch

        self.compiled = torch.compile(super().call, dynamic=False)

    def call(self, x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return self.compiled(x, gamma, beta, residual)


class NormkitNumpy(Session):
    """normkit's array API on NumPy arrays; channels last is a contiguous (N, H, W, C) array."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.norm = norm_of(case)
        self.axis = -1 if case.layout == "last" else 1
        dtype = np.dtype(np.float32)
        if case.dtype == "bfloat16":
            from ml_dtypes import bfloat16

            dtype = np.dtype(bfloat16)

        def array(value: np.ndarray | None) -> np.ndarray | None:
            if value is None:
                return None
            if case.layout == "last" and value.ndim == len(case.shape):
                value = np.moveaxis(value, 1, -1)
            return np.ascontiguousarray(value, dtype=dtype)

        made = {name: array(value) for name, value in arrays(case).items()}
        self.x, self.gamma, self.beta = made["x"], made["gamma"], made["beta"]
        self.dy, self.residual = made["dy"], made["residual"]
        self.saved: Any = None
        self.grads: Any = None

    def forward(self) -> None:
        self.y, self.saved = self.norm.forward(
            self.x,
            self.gamma,
            self.beta,
            axis=self.axis,
            residual=self.residual,
            activation=self.case.activation,
        )

    def backward(self) -> None:
        self.grads = self.norm.backward(self.dy, self.saved)

    def release(self) -> None:
        self.y = self.saved = self.grads = None

    def gradients(self) -> Results:
        return {name: getattr(self.grads, name) for name in ("x", "gamma", "beta", "residual")}

    def empty_cache(self) -> None:
        import normkit as nk

        nk.empty_cache()


class Jax(Session):
    """Batch norm as written in JAX, under jit; the step is one compiled value-and-vjp."""

    joint = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        import jax
        import jax.numpy as jnp

        over = (0, *range(2, len(case.shape)))
        wide = (1, -1) + (1,) * (len(case.shape) - 2)

        def norm(x: Any, gamma: Any, beta: Any) -> Any:
            mean = x.mean(axis=over, keepdims=True)
            var = x.var(axis=over, keepdims=True)
            x_hat = (x - mean) * jax.lax.rsqrt(var + EPS)
            return x_hat * gamma.reshape(wide) + beta.reshape(wide)

        def step(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
            y, vjp = jax.vjp(norm, x, gamma, beta)
            return y, vjp(dy)

        made = arrays(case)
        self.inputs = [jnp.asarray(made[name]) for name in ("x", "gamma", "beta")]
        self.dy = jnp.asarray(made["dy"])
        self.value, self.step = jax.jit(norm), jax.jit(step)
        self.wait = jax.block_until_ready
        self.grads: Any = None

    def forward(self) -> None:
        self.y = self.wait(self.value(*self.inputs))

    def backward(self) -> None:
        self.y, self.grads = self.wait(self.step(*self.inputs, self.dy))

    def release(self) -> None:
        self.y = self.grads = None

    def gradients(self) -> Results:
        return dict(zip(("x", "gamma", "beta"), self.grads, strict=True)) | {"residual": None}


class Memory(Session):
    """What the machine's memory allows, into arrays that exist already.

    Forward is a copy of x; backward is a stream that reads two arrays and writes a third.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        import torch

        # two-byte floats are added as integers: memory is measured here, not conversion
        kind = torch.float32 if case.dtype == "float32" else torch.int16
        made = arrays(case)
        self.a, self.b = (torch.from_numpy(made[name]).to(kind).flatten() for name in ("x", "dy"))
        self.c = torch.zeros_like(self.a)
        self.add = torch.add

    def forward(self) -> None:
        self.c.copy_(self.a)

    def backward(self) -> None:
        self.add(self.a, self.b, out=self.c)


PEERS: dict[str, type[Session]] = {
    "normkit": NormkitTorch,
    "numpy": NormkitNumpy,
    "eager": Eager,
    "compile": Compiled,
    "jax": Jax,
    "memory": Memory,
}


def applies(peer: str, case: Case) -> bool:
    """Whether the case is one that this peer is compared on."""
    plain_batch = case.norm == "batch" and not case.fused and case.dtype == "float32"
    match peer:
        case "compile":
            return plain_batch
        case "jax":
            return plain_batch and case.layout == "first"
        case "memory":  # a case that reads x and writes y and nothing else, and outgrows the caches
            return not case.fused and case.bytes >= LARGE
    return True
