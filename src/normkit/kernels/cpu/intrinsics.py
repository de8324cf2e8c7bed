"""The few machine instructions that Numba has no word for.

Kernels work on raw addresses, so that a NumPy array, a PyTorch tensor and a bfloat16 buffer look
the same to them. A :class:`Variant` is the compile-time part of a kernel's arguments: it has no
value at run time, only a type, and every distinct one gets machine code of its own.

Loads and stores carry LLVM's alias scopes: arrays of different roles never overlap (a result
written over its own input goes through a scratch buffer, see :mod:`.runs`), so loops vectorize
without run-time overlap checks, of which LLVM tolerates only a handful.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()

#: Storage of each dtype in memory; the 16-bit floats travel as integers.
_STORAGE = {"float16": _I16, "bfloat16": _I16, "float32": _F32, "float64": _F64}

CACHE_LINE = 64


#: Files whose code ends up in the machine code.
_COMPILED = ("kernels/cpu/across.py", "kernels/cpu/across_backward.py", "kernels/cpu/along.py",
             "kernels/cpu/along_backward.py", "kernels/cpu/geometry.py",
             "kernels/cpu/intrinsics.py", "kernels/cpu/jit.py", "kernels/cpu/mathops.py",
             "kernels/cpu/runs.py", "kernels/cpu/sets.py", "coefficients.py", "epilogues.py",
             "moments.py")  # fmt: skip


@cache
def _source_digest() -> str:
    """Numba's cache watches one file a kernel; this makes it see a change in any of them."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for name in _COMPILED:
        digest.update((package / name).read_bytes())
    return digest.hexdigest()[:12]


class Variant(types.Type):
    """What a kernel is specialized for.

    Args:
        dtype: ``float16``, ``bfloat16``, ``float32`` or ``float64``: x, y, dy, dx and the residual.
        activation: name of the activation fused behind the norm, ``""`` without one.
        residual: whether a residual is added before the activation.
        crossed: whether gamma and beta vary inside a set's lines instead of being constant on each.
        digest: version of the activations' code, as part of the cache key.
        input_activation: name of the activation that x goes through first, ``""`` without one.
    """

    def __init__(
        self, dtype: str, activation: str, residual: bool, crossed: bool, digest: str = "",
        input_activation: str = "",
    ) -> None:  # fmt: skip
        self.dtype, self.activation, self.input_activation = dtype, activation, input_activation
        self.residual, self.crossed, self.digest = residual, crossed, digest
        fields = (dtype, activation, residual, crossed, digest, input_activation, _source_digest())
        super().__init__(name=f"Variant({','.join(map(str, fields))})")

    @property
    def compute(self) -> types.Float:
        return types.float64 if self.dtype == "float64" else types.float32

    @property
    def bare(self) -> Variant:
        """Without what is fused behind the norm."""
        digest = self.digest if self.input_activation else ""
        return Variant(self.dtype, "", False, self.crossed, digest, self.input_activation)


@register_model(Variant)
class _VariantModel(models.OpaqueModel):
    pass


@unbox(Variant)
def _unbox_variant(typ: Any, obj: Any, c: Any) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


# --- memory -------------------------------------------------------------------------------------

#: Roles that never overlap within a kernel. "target" is what a loop writes.
_ROLES = ("x", "dy", "residual", "gamma", "beta", "mean", "scale", "shift", "linear", "constant",
          "first", "second", "pilot", "target", "target2")  # fmt: skip


def _scoped(builder: Any, instruction: Any, role: str) -> Any:
    """Mark a load or store as touching only the array of this role."""
    module = builder.module
    domain = module.add_metadata(["normkit"])
    scopes = {name: module.add_metadata([f"normkit.{name}", domain]) for name in _ROLES}
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[role]]))
    others = [scope for name, scope in scopes.items() if name != role]
    instruction.set_metadata("noalias", module.add_metadata(others))
    return instruction


def _element(builder: Any, base: Any, index: Any, storage: Any) -> Any:
    pointer = builder.inttoptr(base, storage.as_pointer())
    return builder.gep(pointer, [index], inbounds=True, source_etype=storage)


def _widen(builder: Any, value: Any, dtype: str) -> Any:
    if dtype == "bfloat16":
        bits = builder.shl(builder.zext(value, _I32), ir.Constant(_I32, 16))
        return builder.bitcast(bits, _F32)
    if dtype == "float16":
        return builder.fpext(builder.bitcast(value, _F16), _F32)
    return value


def _narrow(builder: Any, value: Any, dtype: str) -> Any:
    if dtype == "float16":
        return builder.bitcast(builder.fptrunc(value, _F16), _I16)
    if dtype == "bfloat16":
        return _round_to_bfloat16(builder, value)
    return value


def _round_to_bfloat16(builder: Any, value: Any) -> Any:
    """Round to nearest, ties to even, in integer arithmetic; NaN stays NaN."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
    quiet = builder.or_(bits, ir.Constant(_I32, 0x00400000))
    is_nan = builder.fcmp_unordered("uno", value, value)
    chosen = builder.select(is_nan, quiet, rounded)
    return builder.trunc(builder.lshr(chosen, ir.Constant(_I32, 16)), _I16)


def reader(role: str) -> Any:
    """``read(variant, address, index)``: an element of x's dtype, in the compute dtype."""

    @intrinsic
    def read(typingctx, variant, base, index):
        def codegen(context, builder, signature, args):
            storage = _STORAGE[variant.dtype]
            load = builder.load(_element(builder, args[1], args[2], storage), typ=storage)
            return _widen(builder, _scoped(builder, load, role), variant.dtype)

        return variant.compute(variant, types.intp, types.intp), codegen

    return read


def writer(role: str) -> Any:
    """``write(variant, address, index, value)``: rounds to x's dtype."""

    @intrinsic
    def write(typingctx, variant, base, index, value):
        def codegen(context, builder, signature, args):
            storage = _STORAGE[variant.dtype]
            narrow = _narrow(builder, args[3], variant.dtype)
            _scoped(
                builder, builder.store(narrow, _element(builder, args[1], args[2], storage)), role
            )
            return context.get_dummy_value()

        return types.none(variant, types.intp, types.intp, variant.compute), codegen

    return write


def compute_reader(role: str) -> Any:
    """``read(variant, address, index)`` of an array in the compute dtype (float32 or float64).

    A number in place of the address stands for an array of equal elements.
    """

    @intrinsic
    def read(typingctx, variant, base, index):
        if isinstance(base, types.Float):
            return base(variant, base, types.intp), lambda *call: call[3][1]

        def codegen(context, builder, signature, args):
            storage = context.get_value_type(variant.compute)
            load = builder.load(_element(builder, args[1], args[2], storage), typ=storage)
            return _scoped(builder, load, role)

        return variant.compute(variant, types.intp, types.intp), codegen

    return read


@intrinsic
def write_compute(typingctx, variant, base, index, value):
    """Store a coefficient in the compute dtype."""

    def codegen(context, builder, signature, args):
        storage = context.get_value_type(variant.compute)
        builder.store(args[3], _element(builder, args[1], args[2], storage))
        return context.get_dummy_value()

    return types.none(variant, types.intp, types.intp, variant.compute), codegen


def double_reader(role: str | None = None) -> Any:
    """``read(address, index)`` of a float64 array, or of a number that stands for one."""

    @intrinsic
    def read(typingctx, base, index):
        if isinstance(base, types.Float):
            return base(base, types.intp), lambda *call: call[3][0]

        def codegen(context, builder, signature, args):
            load = builder.load(_element(builder, args[0], args[1], _F64), typ=_F64)
            return _scoped(builder, load, role) if role else load

        return types.float64(types.intp, types.intp), codegen

    return read


def double_writer(role: str | None = None) -> Any:
    """``write(address, index, value)`` into a float64 array."""

    @intrinsic
    def write(typingctx, base, index, value):
        def codegen(context, builder, signature, args):
            store = builder.store(args[2], _element(builder, args[0], args[1], _F64))
            if role:
                _scoped(builder, store, role)
            return context.get_dummy_value()

        return types.none(types.intp, types.intp, types.float64), codegen

    return write


read_double, write_double = double_reader(), double_writer()


@intrinsic
def read_integer(typingctx, base, index):
    """Element of an int64 array."""

    def codegen(context, builder, signature, args):
        return builder.load(_element(builder, args[0], args[1], _I64), typ=_I64)

    return types.int64(types.intp, types.intp), codegen


@intrinsic
def copy_bytes(typingctx, target, source, size):
    """memcpy."""

    def codegen(context, builder, signature, args):
        pointers = [builder.inttoptr(address, _I8.as_pointer()) for address in args[:2]]
        cgutils.raw_memcpy(builder, *pointers, args[2], 1)
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, types.intp), codegen


@intrinsic
def stream_lines(typingctx, target, source, size):
    """Copy whole cache lines past the cache: no line of ``target`` is read before it is written.

    ``target`` and ``size`` are multiples of the cache line. A large result that is written this
    way costs two thirds of the memory traffic of ordinary stores.
    """
    vector = ir.VectorType(_F32, CACHE_LINE // 4)

    def codegen(context, builder, signature, args):
        start, step = ir.Constant(_I64, 0), ir.Constant(_I64, CACHE_LINE)
        with cgutils.for_range_slice(builder, start, args[2], step, intp=_I64) as (offset, _):
            read_from = builder.inttoptr(builder.add(args[1], offset), vector.as_pointer())
            line = builder.load(read_from, align=1, typ=vector)
            write_to = builder.inttoptr(builder.add(args[0], offset), vector.as_pointer())
            store = builder.store(line, write_to, align=CACHE_LINE)
            one = builder.module.add_metadata([ir.Constant(_I32, 1)])
            store.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, types.intp), codegen


@intrinsic
def fetch_add(typingctx, base, index, amount):
    """Atomic add to an int64; returns the old value. Also orders streamed stores before it."""

    def codegen(context, builder, signature, args):
        pointer = _element(builder, args[0], args[1], _I64)
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(types.intp, types.intp, types.int64), codegen


# --- compile-time answers -----------------------------------------------------------------------


@intrinsic
def bare(typingctx, variant):
    """The variant for functions that no activation concerns: compiled once for all of them."""
    return variant.bare(variant), lambda context, *_: context.get_dummy_value()


def _question(result: Any, answer: Any) -> Any:
    """``ask(variant)``, a constant that LLVM folds: the branch not taken leaves no code."""

    @intrinsic
    def ask(typingctx, variant):
        def codegen(context, builder, signature, args):
            return context.get_constant(result, answer(variant))

        return result(variant), codegen

    return ask


has_residual = _question(types.boolean, lambda variant: variant.residual)
is_crossed = _question(types.boolean, lambda variant: variant.crossed)
has_activation = _question(types.boolean, lambda variant: variant.activation != "")
has_input_activation = _question(types.boolean, lambda variant: variant.input_activation != "")
itemsize = _question(types.intp, lambda variant: {"float64": 8, "float32": 4}.get(variant.dtype, 2))
compute_size = _question(types.intp, lambda variant: variant.compute.bitwidth // 8)


@intrinsic
def to_compute(typingctx, variant, value):
    """Round a float64 to the compute dtype."""

    def codegen(context, builder, signature, args):
        if variant.compute is types.float64:
            return args[1]
        return builder.fptrunc(args[1], _F32)

    return variant.compute(variant, types.float64), codegen


@intrinsic
def power_of_two(typingctx, exponent):
    """2.0 ** exponent for a float64 holding a whole number in [-1022, 1023]; vectorizes."""

    def codegen(context, builder, signature, args):
        # 1.5 * 2**52 pushes the whole number into the low mantissa bits.
        magic = ir.Constant(_F64, 6755399441055744.0)
        low = builder.bitcast(builder.fadd(args[0], magic), _I64)
        biased = builder.add(low, ir.Constant(_I64, 1023))
        return builder.bitcast(builder.shl(biased, ir.Constant(_I64, 52)), _F64)

    return types.float64(types.float64), codegen
