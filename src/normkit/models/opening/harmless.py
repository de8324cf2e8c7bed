"""The strings of an exported program that PyTorch evaluates, resolves or writes into source code.

``torch.export.load`` hands expressions to ``sympy.sympify``, which is an ``eval``, and imports
modules that tree specs name. The program's module compiles source code that is made of guards,
inputs' names and stored strings. Each function here returns what is wrong with such a string, in a
few words, or "" where it can do nothing but what it should.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from typing import Any

import torch

__all__ = ["expression", "guard", "identifier", "operator", "plain_text", "tree"]

_SYMBOL = re.compile(r"[A-Za-z]{1,12}\d{1,6}")  # s0, s77, u3, zuf0
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d{1,3})?", re.IGNORECASE)
_LARGEST_POWER = 64  # sizes are multiplied a few times at most; 9**9**9 would never end

_SYMPY = frozenset({
    "Abs", "Add", "And", "Eq", "Equality", "ExprCondPair", "Float", "Ge", "GreaterThan", "Gt",
    "ITE", "Integer", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "Mul", "Ne", "Not", "Or",
    "Piecewise", "Pow", "Rational", "StrictGreaterThan", "StrictLessThan", "Symbol", "Unequality",
    "ceiling", "floor", "sign",
})  # fmt: skip
_TORCH_SYMPY = frozenset({
    "CeilDiv", "CeilToInt", "CleanDiv", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt",
    "Identity", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "LShift", "ModularIndexing",
    "PowByNatural", "PythonMod", "RShift", "RoundDecimal", "RoundToInt", "ToFloat", "TruncToFloat",
    "TruncToInt", "Where",
})  # fmt: skip
_CONSTANTS = frozenset({"true", "false", "oo", "int_oo", "nan"})
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift")


def expression(text: Any) -> str:
    """An expression over symbols, for sympy.

    >>> expression("Add(Symbol('s0', integer=True), Integer(1))"), expression("2*s0 // 3")
    ('', '')
    >>> expression("__import__('os').system('true')")
    'it calls something other than a known function'
    """
    return _parsed(text, _Expression())


def guard(text: Any) -> str:
    """A condition on the inputs' sizes, as a program keeps them.

    >>> guard("L['x'].size()[0] % 2 == 0")
    ''
    >>> guard("open('/etc/passwd')")
    'it calls something other than a known function'
    """
    return _parsed(text, _Guard())


def _parsed(text: Any, check: _Check) -> str:
    if not isinstance(text, str):
        return "it is no text"
    if len(text) > 20_000 or not text.isascii() or "\n" in text:
        return "it is too long or no plain text"
    try:
        check.visit(ast.parse(text.strip(), mode="eval").body)
    except _HarmError as error:
        return str(error)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is no expression"
    return ""


class _HarmError(Exception):
    """What an expression does beyond arithmetic."""


class _Check(ast.NodeVisitor):
    """Allows what it has a method for, and nothing else."""

    def __init__(self) -> None:
        self.powers = 0

    def generic_visit(self, node: ast.AST) -> None:
        allowed = (ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context)
        if not isinstance(node, allowed):
            raise _HarmError(f"it holds a {type(node).__name__.lower()}")

    def parts(self, node: ast.AST) -> None:
        super().generic_visit(node)

    visit_BoolOp = visit_UnaryOp = visit_Compare = visit_IfExp = parts  # noqa: N815 - ast's names

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, (ast.Pow, ast.LShift)):
            self.power(node.right)
        self.parts(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, (int, float)) or abs(node.value) >= 2**64:
            raise _HarmError("it holds text or a number beyond 64 bits")

    def power(self, exponent: ast.expr) -> None:
        """Only small exponents, and few of them."""
        self.powers += 1
        while isinstance(exponent, ast.UnaryOp):
            exponent = exponent.operand
        if isinstance(exponent, ast.Call) and len(exponent.args) == 1:  # Integer(2)
            exponent = exponent.args[0]
        values = exponent.args if isinstance(exponent, ast.Call) else [exponent]  # Rational(1, 2)
        small = all(
            isinstance(v, ast.Constant)
            and isinstance(v.value, (int, float))
            and v.value <= _LARGEST_POWER
            for v in values
        )
        if not small or self.powers > 3:
            raise _HarmError("it raises to a power that may be endless")


class _Expression(_Check):
    def visit_Name(self, node: ast.Name) -> None:
        if node.id not in _CONSTANTS and not _SYMBOL.fullmatch(node.id):
            raise _HarmError(f"it names {node.id}")

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _SYMPY | _TORCH_SYMPY:
            raise _HarmError("it calls something other than a known function")
        arguments = node.args
        text = _text(arguments[0]) if arguments else None
        if name in ("Symbol", "Float") and text is not None:
            pattern = _SYMBOL if name == "Symbol" else _NUMBER
            if not pattern.fullmatch(text):
                raise _HarmError(f"it has {text!r:.40} for a {name.lower()}")
            arguments = arguments[1:]
        if name in _POWERS and len(node.args) == 2:
            self.power(node.args[1])
        for argument in arguments:
            self.visit(argument)
        for word in node.keywords:  # of Symbol and Float only: sympy evaluates text elsewhere
            plain = isinstance(word.value, ast.Constant) and _text(word.value) is None
            if word.arg is None or not plain or name not in ("Symbol", "Float"):
                raise _HarmError("it has options that are not known")


class _Guard(_Check):
    functions = frozenset({
        *("abs", "bool", "float", "int", "max", "min", "round"),
        *("FloorDiv", "Max", "Min", "Mod", "PythonMod"),
    })  # fmt: skip
    methods = frozenset({"dim", "item", "numel", "size", "storage_offset", "stride"})

    def visit_Name(self, node: ast.Name) -> None:
        if node.id not in ("L", "inf"):
            raise _HarmError(f"it names {node.id}")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        key = _text(node.slice)
        if key is None or plain_text(key):
            self.visit(node.slice)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        known = isinstance(function, ast.Name) and function.id in self.functions
        if isinstance(function, ast.Attribute):
            owner = function.value
            if isinstance(owner, ast.Name) and owner.id in ("math", "torch"):
                full = f"{owner.id}.{function.attr}"
                known = full in _MATH or _SYMBOLIC.fullmatch(full) is not None
            else:
                known = function.attr in self.methods
                self.visit(owner)
        if not known or node.keywords:
            raise _HarmError("it calls something other than a known function")
        for argument in node.args:
            self.visit(argument)


def _text(node: Any) -> str | None:
    """The text that a node is, if it is one."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def identifier(text: Any) -> str:
    """A name that PyTorch writes into source code.

    >>> identifier("conv2d_1"), identifier("x\\nimport os")
    ('', 'it is no name')
    """
    good = isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)
    return "" if good else "it is no name"


def plain_text(text: Any) -> str:
    """Text that PyTorch writes between quotes into source code."""
    if not isinstance(text, str):
        return "it is no text"
    harmful = any(c in "'\"\\" or not c.isprintable() for c in text)
    return "it has quotes or control characters" if harmful else ""


_MATH = frozenset(
    f"math.{name}"
    for name in (
        "acos", "asin", "atan", "ceil", "cos", "cosh", "exp", "floor", "log", "log2", "pow",
        "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
    )
)  # fmt: skip
_PLAIN_OPERATORS = _MATH | frozenset(
    f"_operator.{name}"
    for name in (
        "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lshift", "lt", "mod",
        "mul", "ne", "neg", "or_", "pos", "pow", "rshift", "sub", "truediv",
    )
)  # fmt: skip
_SYMBOLIC = re.compile(r"torch\._?sym_[a-z_]+")
_LIBRARIES = ("aten", "prims", "quantized_decomposed", "torchvision")
_REGISTERED = re.compile(rf"torch\.ops\.({'|'.join(_LIBRARIES)})\.(\w+)\.(\w+)")
_HIGHER_ORDER = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in (
        "associative_scan", "cond", "flex_attention", "invoke_subgraph", "map_impl", "scan",
        "wrap_with_autocast", "wrap_with_set_grad_enabled", "while_loop",
    )
)  # fmt: skip


def operator(target: Any) -> str:
    """What a node calls: an operator of PyTorch's that computes, and touches no file.

    >>> operator("torch.ops.aten.relu.default"), operator("_operator.add")
    ('', '')
    >>> operator("torch.os.system"), operator("torch.ops.aten.from_file.default")
    ('it is no known operator', 'it reads or writes a file')
    """
    if not isinstance(target, str):
        return "it is no text"
    if target in _PLAIN_OPERATORS or target in _HIGHER_ORDER or _SYMBOLIC.fullmatch(target):
        return ""
    match = _REGISTERED.fullmatch(target)
    if match is None:
        return "it is no known operator"
    found: Any = torch.ops
    for name in match.groups():
        found = getattr(found, name, None)
    if not isinstance(found, torch._ops.OpOverload):
        return f"this PyTorch has no such operator (is {match[1]} imported?)"
    files = any(argument.name == "filename" for argument in found._schema.arguments)
    return "it reads or writes a file" if files else ""


_CONTAINERS = (
    None, "builtins.dict", "builtins.list", "builtins.tuple", "collections.OrderedDict",
    "collections.deque",
)  # fmt: skip


def tree(text: Any) -> str:
    """How inputs or outputs nest, as torch.utils._pytree writes it.

    >>> tree('[1, {"type": "builtins.list", "context": "null", "children_spec": []}]')
    ''
    """
    if not isinstance(text, str):
        return "it is no text"
    if not text:
        return ""
    try:
        _, spec = json.loads(text)
        return _branch(spec)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "it is no tree"


def _branch(spec: dict[str, Any]) -> str:
    if spec["type"] not in _CONTAINERS:  # others import what their context names
        return f"it has a container of type {spec['type']!r:.60}"
    context = spec["context"]
    if isinstance(context, str):
        context = json.loads(context)
    keys = context if isinstance(context, list) else [context]
    for key in keys:
        if isinstance(key, (dict, list)) or (isinstance(key, str) and plain_text(key)):
            return "it has a key that is no plain text or number"
    return next(filter(None, map(_branch, spec["children_spec"])), "")
