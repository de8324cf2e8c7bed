"""ONNX models: their graph and norms, and folding that keeps what they compute.

What a model computes is taken from ONNX's reference implementation, in float64.
"""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.parser import parse_model  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from normkit.errors import DataError, DTypeError, ModelError  # noqa: E402
from normkit.models.folding import algebra, onnx_edit  # noqa: E402
from normkit.models.folding.onnx_file import fold_onnx  # noqa: E402
from normkit.models.graphs.onnx_model import onnx_graph, onnx_sites  # noqa: E402

RNG = np.random.default_rng(0)


def weights(**shapes):
    """Random tensors by name; a name that ends with var is positive."""
    return [
        numpy_helper.from_array(
            RNG.uniform(0.3, 2, shape).astype(np.float32) if name.endswith("var")
            else RNG.uniform(-1.5, 1.5, shape).astype(np.float32), name.replace("__", "."))
        for name, shape in shapes.items()
    ]  # fmt: skip


def batch_norm(name, channels):
    return weights(**{f"{name}__{part}": (channels,) for part in
                      ("weight", "bias", "running_mean", "running_var")})  # fmt: skip


def built(body, shape, result, initializers=(), opset=20, ir=10):
    """A model from ONNX's text form; ``x`` is the input and ``y`` the output."""
    given, gives = (f"[{', '.join(map(str, sizes))}]" for sizes in (shape, result))
    inside = f"net (float{given} x) => (float{gives} y)"
    proto = parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}, "own" : 1]>\n'
                        f"{inside} {{ {body} }}")  # fmt: skip
    proto.graph.initializer.extend(initializers)
    if ir < 4:
        proto.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers
        )
    return proto


NORM = 'y = BatchNormalization(c, "n.weight", "n.bias", "n.running_mean", "n.running_var")'


def in_double(proto):
    """The same model in float64."""
    new = onnx.ModelProto()
    new.CopyFrom(proto)
    for tensor in new.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in new.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
    for value in (*new.graph.input, *new.graph.output):
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return new


def computed(proto, x):
    return ReferenceEvaluator(in_double(proto)).run(None, {proto.graph.input[0].name: x})[0]


def shape_of(proto):
    return [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]


def by_torch(proto, x):
    """A convolution and the batch norm behind it, for which ONNX's reference has mistakes."""
    held = {
        t.name: torch.tensor(numpy_helper.to_array(t)).double() for t in proto.graph.initializer
    }
    conv, *norm = proto.graph.node
    said = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    run = F.conv_transpose1d if len(x.shape) == 3 else F.conv_transpose2d
    options = {"groups": said.get("group", 1), "stride": said.get("strides", 1)}
    run, options = (run, options) if conv.op_type == "ConvTranspose" else (F.conv2d, {})
    y = run(torch.from_numpy(x), *(held[name] for name in conv.input[1:]), **options)
    for node in norm:
        gamma, beta, mean, var = (held[name] for name in node.input[1:])
        y = F.batch_norm(y, mean, var, gamma, beta, eps=1e-5)
    return y.numpy()


def agrees(proto, folds=1, reference=computed, computed=computed):
    """The folded model and its report; the reference computes the same from both."""
    before = proto.SerializeToString()
    folded, report = fold_onnx(proto, measure=False)
    assert len(report.folded) == folds, report.refused
    x = np.random.default_rng(1).standard_normal(shape_of(proto))
    want, got = reference(proto, x), computed(folded, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    onnx.checker.check_model(folded, full_check=True)
    assert proto.SerializeToString() == before
    assert folded.opset_import == proto.opset_import
    assert [o.name for o in folded.graph.output] == [o.name for o in proto.graph.output]
    taken = {name for node in folded.graph.node for name in node.input}
    assert {t.name for t in folded.graph.initializer} <= taken
    return folded, report


def ops(proto):
    return [node.op_type for node in proto.graph.node]


def reason(proto):
    """Why the only norm stays; nothing is folded."""
    folded, report = fold_onnx(proto)
    assert folded is proto
    ((_, why),) = report.refused
    return why


# --- the graph ------------------------------------------------------------------------------------


def test_the_graph_tells_layers_norms_and_what_is_between():
    proto = built(
        """c = Conv<pads = [1, 1, 1, 1], group = 2>(x, "conv.weight")
        a = Relu(c)
        p = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)
        g = GlobalAveragePool(p)
        f = Flatten(g)
        i = Identity("fc.weight")
        l = Gemm<transB = 1>(f, i, "fc.bias")
        d = Dropout(l)
        t = Transpose(d)
        s = Softmax<axis = 0>(t)
        y = Transpose<perm = [1, 0]>(s)""",
        (2, 4, 8, 8), (2, 3),
        weights(conv__weight=(6, 2, 3, 3), fc__weight=(3, 6), fc__bias=(3,)),
    )  # fmt: skip
    nodes = {n.op: n for n in onnx_graph(proto)}
    assert [n.op for n in onnx_graph(proto)] == [
        "input", "conv", "activation", "pool_average", "pool_average", "reshape", "linear",
        "dropout", "reshape", "softmax", "reshape", "output",
    ]  # fmt: skip
    conv, linear = nodes["conv"], nodes["linear"]
    assert (conv.target, conv.attributes["groups"], conv.attributes["padding"]) == (
        "conv",
        2,
        (1, 1),
    )
    assert (conv.attributes["in_channels"], conv.attributes["out_channels"]) == (4, 6)
    assert conv.attributes["kernel_size"] == (3, 3)
    assert linear.target == "fc"
    assert (linear.attributes["in_features"], linear.attributes["out_features"]) == (6, 3)
    assert nodes["dropout"].attributes["training"] is False
    assert nodes["softmax"].attributes["dim"] == 0
    assert nodes["reshape"].attributes["dims"] == (1, 0)
    assert [n.name for n in onnx_graph(proto)][1] == "Conv_0"


def test_names_are_unique_and_shared_weights_show():
    proto = built('[same] a = Conv(x, w) [same] b = Conv(a, w) y = Add(b, "k")',
                  (1, 2, 4, 4), (1, 2, 4, 4), weights(w=(2, 2, 1, 1), k=(1, 2, 1, 1)))  # fmt: skip
    graph = onnx_graph(proto)
    assert [n.name for n in graph if n.op == "conv"] == ["same", "same_1"]
    assert len(graph.calls("w")) == 2
    assert graph["k"].op == "constant"
    assert len(graph) == 6


def test_what_has_a_graph_of_its_own_is_noted():
    body = """c = Conv(x, w)
        z = Cast<to = 9>(k)
        y = If<then_branch = then () => (float[1, 2, 4, 4] t) { t = Relu(c) },
               else_branch = other () => (float[1, 2, 4, 4] e) { e = Identity(x) }>(z)"""
    graph = onnx_graph(built(body, (1, 2, 4, 4), (1, 2, 4, 4), weights(w=(2, 2, 1, 1), k=(1,))))
    (branch,) = (n for n in graph if n.function == "If")
    assert branch.op == "other"
    assert {"Conv_0", "x"} <= set(branch.inputs)
    assert graph.unknown == {branch.name: "If holds a graph of its own"}
    foreign = onnx_graph(built("y = own.Twist(x)", (1,), (1,)))
    assert [n.op for n in foreign] == ["input", "other", "output"]
    assert "operator of own" in next(iter(foreign.unknown.values()))


def test_norms_in_inner_graphs_are_known_and_stay():
    body = f"""c = Conv(x, w)
        z = Cast<to = 9>(k)
        y = If<then_branch = then () => (float[1, 2, 4, 4] t) {{ {NORM.replace("y =", "t =")} }},
               else_branch = other () => (float[1, 2, 4, 4] e) {{ e = Identity(x) }}>(z)"""
    given = [*weights(w=(2, 2, 1, 1), k=(1,)), *batch_norm("n", 2)]
    proto = built(body, (1, 2, 4, 4), (1, 2, 4, 4), given)
    (site,) = onnx_sites(proto)
    assert (site.name, site.channels, site.tracks) == ("n", 2, True)
    assert "within If_2, which holds a graph of its own" in reason(proto)


@pytest.mark.parametrize(
    ("opset", "text", "training"),
    [
        (6, "<is_test = 1>", False), (6, "", True), (7, "", False), (9, "", False), (14, "", False),
        (14, "<training_mode = 1>", True), (15, "<momentum = 0.7>", False),
    ],
)  # fmt: skip
def test_batch_norm_of_all_opsets(opset, text, training):
    results = "y, m1, v1" if training and opset >= 14 else "y"
    body = f"c = Relu(x) {NORM}".replace(
        "y = BatchNormalization", f"{results} = BatchNormalization{text}"
    )
    proto = built(body, (2, 3, 4, 4), (2, 3, 4, 4), batch_norm("n", 3), opset=opset, ir=7)
    (site,) = onnx_sites(proto)
    assert (site.name, site.kind, site.channels, site.training) == ("n", "batch", 3, training)
    assert site.momentum == (0.3 if "0.7" in text else 0.1)
    assert site.eps == 1e-5
    for role, part in (("gamma", "weight"), ("beta", "bias"), ("mean", "running_mean")):
        want = next(t for t in proto.graph.initializer if t.name == f"n.{part}")
        assert np.array_equal(getattr(site, role).numpy(), numpy_helper.to_array(want))


def test_training_by_outputs_in_old_opsets():
    body = f"c = Relu(x) {NORM}".replace("y =", "y, a, b, d, e =")
    proto = built(body, (2, 3, 4, 4), (2, 3, 4, 4), batch_norm("n", 3), opset=9, ir=7)
    assert onnx_sites(proto)[0].training


def test_other_norms_and_their_parameters():
    gains = weights(g=(4,), b=(4,), h=(2,))
    proto = built(
        """a = LayerNormalization<epsilon = 0.001>(x, g, b)
        s = InstanceNormalization(a, h, h)
        u = GroupNormalization<num_groups = 1>(s, h, h)
        r = RMSNormalization(u, g)
        y = LpNormalization(r)""",
        (3, 2, 4), (3, 2, 4), gains, opset=23,
    )  # fmt: skip
    got = [(s.kind, s.channels, s.groups, s.tracks) for s in onnx_sites(proto)]
    assert got == [("layer", 4, None, False), ("instance", 2, None, False),
                   ("group", 2, 1, False), ("rms", 4, None, False)]  # fmt: skip
    assert onnx_sites(proto)[0].eps == 1e-3
    assert onnx_sites(proto)[3].beta is None
    assert [n.op for n in onnx_graph(proto)][-2] == "other"


def small_operators(kind):
    """A norm as exporters without the operator write it."""
    centre = (
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m)" if kind == "layer" else "d = Identity(x)"
    )
    add = "g = Mul(n, w) z = Add(g, b)" if kind == "layer" else "z = Mul(w, n)"
    return f"""{centre} q = Pow(d, two) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps)
        s = Sqrt(e) {"n = Div(d, s)" if kind == "layer" else "r = Reciprocal(s) n = Mul(d, r)"}
        {add} y = MatMul(z, k)"""


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_in_small_operators(kind):
    given = [*weights(w=(4,), b=(4,), k=(4, 5)),
             numpy_helper.from_array(np.float32(2), "two"),
             numpy_helper.from_array(np.float32(1e-3), "eps")]  # fmt: skip
    given = [t for t in given if kind == "layer" or t.name != "b"]
    proto = built(small_operators(kind), (2, 3, 4), (2, 3, 5), given, opset=13, ir=7)
    (site,) = onnx_sites(proto)
    assert (site.kind, site.channels, site.eps) == (kind, 4, 1e-3)
    assert (site.beta is not None) == (kind == "layer")
    folded, _ = agrees(proto)
    assert "w" not in {t.name for t in folded.graph.initializer}
    assert ops(folded).count("Mul") == (0 if kind == "layer" else 1)


def test_constants_are_found_however_they_are_made():
    body = """k = Constant<value_floats = [1.5, -2.0]>() one = CastLike(k, x)
        r = Reshape("raw", "shape") t = Transpose<perm = [1, 0, 2, 3]>(r) c = Conv(x, t)
        s = Shape<start = 1, end = 2>(c) z = ConstantOfShape(s)
        y = BatchNormalization(c, one, z, z, v)"""
    given = [*weights(raw=(2, 2)), numpy_helper.from_array(np.array([0.5, 2], np.float32), "v"),
             numpy_helper.from_array(np.array([2, 2, 1, 1]), "shape")]  # fmt: skip
    proto = built(body, (1, 2, 4, 4), (1, 2, 4, 4), given)
    (site,) = onnx_sites(proto)
    assert site.gamma.tolist() == [1.5, -2.0]
    assert site.beta.tolist() == [0, 0]
    folded, _ = agrees(proto)
    assert ops(folded) == ["Conv"]
    assert next(t.dims for t in folded.graph.initializer) == [2, 2, 1, 1]


def test_a_graph_out_of_order_is_an_error():
    proto = built("a = Relu(b) b = Relu(a) y = Relu(b)", (1,), (1,))
    with pytest.raises(ModelError, match="not in order"):
        onnx_graph(proto)


# --- folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_behind_a_convolution(dims, group, bias):
    kernel = [3] * dims
    inputs = 'x, "c.w", k' if bias else 'x, "c.w"'
    body = f"c = Conv<group = {group}, kernel_shape = {kernel}>({inputs}) {NORM}"
    given = [*weights(c__w=(12, 6 // group, *kernel)), *batch_norm("n", 12)]
    given += weights(k=(12,)) if bias else []
    folded, report = agrees(built(body, (2, 6, *[5] * dims), (2, 12, *kernel), given))
    assert ops(folded) == ["Conv"]
    assert [t.name for t in folded.graph.initializer] == ["c.w", "k" if bias else "c.w.bias"]
    # Counted as torch.nn does, which keeps running statistics as buffers.
    assert report.parameters_before - report.parameters_after == (24 if bias else 12)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("group", [1, 3])
def test_batch_norm_behind_a_transposed_convolution(dims, group):
    kernel = [2] * dims
    body = f'c = ConvTranspose<group = {group}, strides = {kernel}>(x, "up.weight") {NORM}'
    given = [*weights(up__weight=(6, 9 // group, *kernel)), *batch_norm("n", 9)]
    proto = built(body, (2, 6, *[4] * dims), (2, 9, *[8] * dims), given)
    folded, _ = agrees(proto, reference=by_torch, computed=by_torch)
    assert [t.name for t in folded.graph.initializer] == ["up.weight", "up.bias"]


@pytest.mark.parametrize(
    ("body", "given", "left"),
    [
        ("c = Gemm<transB = 1>(x, w)", {"w": (7, 5)}, ["Gemm"]),
        ("c = Gemm(x, w, k)", {"w": (5, 7), "k": (1,)}, ["Gemm"]),
        ("c = MatMul(x, w)", {"w": (5, 7)}, ["MatMul", "Add"]),
        ("m = MatMul(x, w) c = Add(k, m)", {"w": (5, 7), "k": (7,)}, ["MatMul", "Add"]),
        ("i = Identity(w) t = Transpose(i) c = MatMul(x, t)", {"w": (7, 5)}, ["MatMul", "Add"]),
    ],
)
def test_batch_norm_behind_products(body, given, left):
    proto = built(f"{body} {NORM}", (3, 5), (3, 7), [*weights(**given), *batch_norm("n", 7)])
    folded, _ = agrees(proto)
    assert ops(folded) == left


def test_batch_norm_before_layers():
    norm = NORM.replace("y =", "a =").replace("(c,", "(x,")
    conv = built(f"{norm} y = Conv<group = 2>(a, w)", (2, 4, 5, 5), (2, 6, 4, 4),
                 [*weights(w=(6, 2, 2, 2)), *batch_norm("n", 4)])  # fmt: skip
    assert ops(agrees(conv)[0]) == ["Conv"]
    pool = "AveragePool<kernel_shape = [2, 2], strides = [2, 2]>"
    flat = built(f"{norm} p = {pool}(a) f = Flatten(p) "
                 "y = Gemm<transB = 1>(f, w)", (2, 4, 4, 4), (2, 3),
                 [*weights(w=(3, 16)), *batch_norm("n", 4)])  # fmt: skip
    folded, report = agrees(flat)
    assert ops(folded) == ["AveragePool", "Flatten", "Gemm"]
    assert report.folded[0].direction == "after"
    padded = built(f"{norm} y = Conv<pads = [1, 1, 1, 1]>(a, w)", (2, 4, 5, 5), (2, 6, 5, 5),
                   [*weights(w=(6, 4, 3, 3)), *batch_norm("n", 4)])  # fmt: skip
    assert "pads with zeros" in reason(padded)


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_gains_go_into_the_products_behind(operator):
    beta = ", b" if operator == "LayerNormalization" else ""
    proto = built(f"n = {operator}(x, g{beta}) p = MatMul(n, w) q = MatMul(n, v) k = Add(q, a) "
                  "y = Mul(p, k)", (2, 3, 4), (2, 3, 5),
                  weights(g=(4,), b=(4,), w=(4, 5), v=(4, 5), a=(5,)), opset=23)  # fmt: skip
    if not beta:
        del proto.graph.initializer[1]
    folded, report = agrees(proto)
    assert "without gamma and beta" in report.folded[0].left
    held = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    assert held["ones_4_float32"].tolist() == [1] * 4
    assert "g" not in held
    assert ("p.bias" in held or "w.bias" in held) == bool(beta)


def test_a_result_of_the_model_and_of_a_branch_keeps_its_name():
    body = f"""c = Conv(x, w) {NORM.replace("y =", "a =")}
        z = Cast<to = 9>(k)
        y = If<then_branch = then () => (float[1, 2, 4, 4] t) {{ t = Relu(a) }},
               else_branch = other () => (float[1, 2, 4, 4] e) {{ e = Neg(a) }}>(z)"""
    given = [*weights(w=(2, 2, 1, 1), k=(1,)), *batch_norm("n", 2)]
    folded, _ = agrees(built(body, (1, 2, 4, 4), (1, 2, 4, 4), given))
    assert ops(folded) == ["Conv", "Cast", "If"]


def test_old_files_list_their_weights_as_inputs():
    proto = built(f"c = Conv(x, w) {NORM}", (2, 3, 4, 4), (2, 3, 4, 4),
                  [*weights(w=(3, 3, 1, 1)), *batch_norm("n", 3)], opset=9, ir=3)  # fmt: skip
    folded, _ = agrees(proto, reference=by_torch)
    assert [i.name for i in folded.graph.input] == ["x", "w", "w.bias"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_stays(kind):
    proto = built(f"h = Cast<to = {kind}>(x) c = Conv(h, w) {NORM.replace('y =', 'a =')} "
                  "y = Cast<to = 1>(a)", (2, 3, 4, 4), (2, 4, 4, 4),
                  [*weights(w=(4, 3, 1, 1)), *batch_norm("n", 4)], opset=22)  # fmt: skip
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    folded, report = fold_onnx(proto, measure=False)
    assert ops(folded) == ["Cast", "Conv", "Cast"]
    assert {t.data_type for t in folded.graph.initializer} == {kind}
    site, weight = onnx_sites(proto)[0], numpy_helper.to_array(proto.graph.initializer[0])
    scale = (site.gamma.double() / torch.sqrt(site.var.double() + 1e-5)).numpy()
    want = weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    got = numpy_helper.to_array(folded.graph.initializer[0]).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=2**-8 if kind == TensorProto.BFLOAT16 else 2**-11)
    if kind == TensorProto.FLOAT16:
        assert report.verification.difference < 1e-2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"a = Conv(x, w) c = Conv(a, w) {NORM}", "called 2 times"),
        (f"c = Conv(x, w) s = ReduceSum(w) m = Mul(x, s) {NORM.replace('y', 'b')} y = Add(b, m)",
         "its weight is used by ReduceSum too"),
        (f"c = Conv(x, w) {NORM.replace('y', 'b')} y = Add(b, c)", "used elsewhere too"),
        (f"a = Conv(x, w) c = Sigmoid(a) {NORM}", "an activation"),
        (f"c = own.Conv(x, w) {NORM}", "stands between"),
        (f"w2 = Mul(w, x) c = Conv(x, w2) {NORM}", "stands between"),
        ("c = Conv(x, w) " + NORM.replace("y =", "y, m1, v1 =").replace(
            "Normalization(", "Normalization<training_mode = 1>("), "training mode"),
    ],
)  # fmt: skip
def test_what_would_change_the_function_stays(body, words):
    given = [*weights(w=(4, 4, 1, 1)), *batch_norm("n", 4)]
    assert words in reason(built(body, (2, 4, 4, 4), (2, 4, 4, 4), given))


# --- proof ----------------------------------------------------------------------------------------


def small():
    return built(f"c = Conv(x, w) {NORM}", ("N", 3, "H", "W"), ("N", 4, "H", "W"),
                 [*weights(w=(4, 3, 1, 1)), *batch_norm("n", 4)])  # fmt: skip


def test_a_wrong_fold_is_noticed_also_where_it_does_not_reach_the_output(monkeypatch):
    def wrong(layer, changes):
        new = algebra.changed(layer, changes)
        new.weight[0] *= 1.001
        return new

    monkeypatch.setattr(onnx_edit, "changed", wrong)
    with pytest.raises(ModelError, match="does not do the same"):
        fold_onnx(small())
    body = f"c = Conv(x, w) {NORM.replace('y', 'b')} m = Mul(b, zero) y = Add(x, m)"
    hidden = built(body, (2, 4, 4, 4), (2, 4, 4, 4), [*weights(w=(4, 4, 1, 1)),
        numpy_helper.from_array(np.float32(0), "zero"), *batch_norm("n", 4)])  # fmt: skip
    with pytest.raises(ModelError, match="does not do the same"):
        fold_onnx(hidden)


def test_examples_and_open_sizes():
    proto = small()
    x = RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)
    for example in (x, x.astype(np.float64), torch.from_numpy(x), (x,), {"x": x}):
        _, report = fold_onnx(proto, example, measure=False)
        assert report.verification.input == "the example"
    _, report = fold_onnx(proto)
    assert report.verification.input == "random input of shape (2, 3, 16, 16)"
    assert report.verification.difference < 1e-6
    assert report.verification.speedup > 0
    assert "1 of 1 norm folded into 1 layer" in report.lines()[0]
    with pytest.raises(DataError, match="1 inputs"):
        fold_onnx(proto, (x, x))
    with pytest.raises(DataError, match="its inputs are x"):
        fold_onnx(proto, {"z": x})
    with pytest.raises(DataError, match="does not take"):
        fold_onnx(proto, x[:, :2])
    with pytest.raises(ModelError, match="at most"):
        fold_onnx(proto, x, tolerance=1e-12)
    with pytest.raises(DTypeError, match="ModelProto"):
        fold_onnx(b"")


# --- from PyTorch ---------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block with a depthwise convolution, and tokens from its channels."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width))
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width),
            nn.ReLU6(), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width, affine=False),
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5, bias=False)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.body(x))
        return self.head(self.norm(x.flatten(2).transpose(1, 2)))


def test_an_export_of_pytorch_folds_whole():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(0)
    model = Block().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.3, 3)
    x = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x,), dynamo=True, optimize=False, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    proto = program.model_proto
    names = [site.name for site in onnx_sites(proto)]
    assert names == ["stem.1", "body.1", "body.4", "norm"]
    folded, report = fold_onnx(proto, measure=False)
    assert [f.norm for f in report.folded] == names
    assert [f.into for f in report.folded] == [("stem.0",), ("body.0",), ("body.3",), ("head",)]
    assert "BatchNormalization" not in ops(folded)
    with torch.no_grad():
        want = model.double()(torch.cat([x, x, x]).double()).numpy()
    got = computed(folded, np.concatenate([x.numpy()] * 3).astype(np.float64))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
