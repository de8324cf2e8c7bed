"""Whole models of each framework: norms found by name, loaded into, and left alone on failure."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from normkit.errors import ModelError, ParityError  # noqa: E402
from normkit.models import port  # noqa: E402
from normkit.models.porting import loading  # noqa: E402
from normkit.models.porting.frameworks import FRAMEWORKS  # noqa: E402


def source():
    """A model whose norms are told apart by shape alone."""
    generator = torch.Generator().manual_seed(0)
    net = nn.ModuleDict({
        "bn": nn.BatchNorm2d(4, eps=2e-4, momentum=0.2), "gn": nn.GroupNorm(2, 6),
        "ln": nn.LayerNorm(5), "rms": nn.RMSNorm(7, eps=1e-5),
    })  # fmt: skip
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return net.eval()


def keras_model():
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    layers = keras.layers
    image = keras.Input((6, 6, 4))
    x = layers.BatchNormalization(name="a")(image)
    x = layers.GroupNormalization(2, name="b")(layers.Conv2D(6, 1)(x))
    x = layers.LayerNormalization(name="c")(layers.Dense(5)(x))
    inner = keras.Sequential([layers.RMSNormalization(name="d")], name="inner")
    return keras.Model(image, inner(layers.Dense(7)(x)))


def flax_model():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.z = nnx.BatchNorm(4, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.GroupNorm(6, 2, rngs=rngs)])
            self.norm = nnx.LayerNorm(5, rngs=rngs)
            self.end = nnx.Sequential(nnx.RMSNorm(7, rngs=rngs))

    return Net(nnx.Rngs(0))


def equinox_model():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Net(eqx.Module):
        bn: eqx.nn.BatchNorm
        rest: list

        def __init__(self):
            self.bn = eqx.nn.BatchNorm(4, "batch", mode="batch")
            self.rest = [
                eqx.nn.GroupNorm(2, 6), eqx.nn.LayerNorm(5), eqx.nn.RMSNorm(7, use_bias=False)
            ]  # fmt: skip

    return eqx.nn.make_with_state(Net)()


def onnx_model():
    parser = pytest.importorskip("onnx.parser", reason="ONNX is not installed")
    ones = {n: ", ".join(["1"] * n) for n in (4, 5, 6, 7)}
    return parser.parse_model(f"""<ir_version: 11, opset_import: ["" : 23]>
        net (float[N, 4, H, W] x, float[N, 6, H] v, float[N, 5] w, float[N, 7] u)
            => (float[N, 4, H, W] y1, float[N, 6, H] y2, float[N, 5] y3, float[N, 7] y4)
        <float[4] one_scale = {{{ones[4]}}}, float[4] shared = {{{ones[4]}}},
         float[6] two_scale = {{{ones[6]}}}, float[6] two_bias = {{{ones[6]}}},
         float[5] three_scale = {{{ones[5]}}}, float[5] three_bias = {{{ones[5]}}},
         float[7] four_scale = {{{ones[7]}}}>
        {{ y1 = BatchNormalization(x, one_scale, shared, shared, shared)
           y2 = GroupNormalization<num_groups = 2>(v, two_scale, two_bias)
           y3 = LayerNormalization(w, three_scale, three_bias)
           y4 = RMSNormalization(u, four_scale) }}""")


MODELS = {
    "keras": (keras_model, ["a", "b", "c", "inner/d"]),
    "flax": (flax_model, ["z", "blocks.1", "norm", "end.layers.0"]),
    "equinox": (equinox_model, ["bn", "rest.0", "rest.1", "rest.2"]),
    "onnx": (
        onnx_model,
        [
            "BatchNormalization_0",
            "GroupNormalization_1",
            "LayerNormalization_2",
            "RMSNormalization_3",
        ],
    ),
}


def held(framework, model):
    there = FRAMEWORKS[framework]
    return [there.read(layer, name) for name, layer in there.layers(model)]


def assert_same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.eps, mine.keep, mine.sets) == (theirs.eps, theirs.keep, theirs.sets)
        for role, value in mine.arrays().items():
            np.testing.assert_array_equal(getattr(theirs, role), value, role)


@pytest.mark.parametrize("framework", MODELS)
def test_the_norms_of_a_model_in_the_order_of_its_code(framework):
    make, names = MODELS[framework]
    assert [name for name, _ in FRAMEWORKS[framework].layers(make())] == names
    assert list(port(make(), "torch").layers) == names


@pytest.mark.parametrize("framework", MODELS)
def test_into_a_model_and_back(framework):
    make, _ = MODELS[framework]
    net = source()
    model = port(net, framework).into(make())
    assert_same(held("torch", net), held(framework, model))
    back = source()
    for value in back.state_dict().values():
        value.zero_()
    port(model, "torch").into(back)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(back.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("framework", MODELS)
def test_what_fails_halfway_leaves_the_model_as_it_was(framework, monkeypatch):
    make, _ = MODELS[framework]
    model = make()
    before = held(framework, model)
    got = port(source(), framework)
    proven = []

    def prove(there, layer, wanted):
        proven.append(wanted)
        if len(proven) == 3:
            raise ParityError("It failed", received="1", expected="2", remedy="")

    monkeypatch.setattr(loading, "_prove", prove)
    with pytest.raises(ParityError, match="It failed"):
        got.into(model)
    assert_same(before, held(framework, model))


def test_onnx_models_are_copied_and_shared_weights_stay():
    model = onnx_model()
    text = model.SerializeToString()
    changed = port(source(), "onnx").into(model)
    assert model.SerializeToString() == text
    names = [tensor.name for tensor in changed.graph.initializer]
    assert names.count("shared") == 1  # its three users have tensors of their own
    assert len(set(names)) == len(names)
    pytest.importorskip("onnx").checker.check_model(changed, full_check=True)


def test_onnx_runtime_computes_what_pytorch_does():
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    net = source()
    changed = port(net, "onnx").into(onnx_model())
    session = ort.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 4, 3, 3), "v": (2, 6, 5), "w": (2, 5), "u": (2, 7)}
    given = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    results = session.run(None, given)
    for value, layer, y in zip(given.values(), net.values(), results, strict=True):
        wanted = layer(torch.from_numpy(value)).detach().numpy()
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_norms_that_an_exporter_wrote_in_small_operators():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    net = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6, eps=1e-5)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.rand(6) + 0.5)
    program = torch.onnx.export(net, (torch.randn(2, 3, 4),), dynamo=True, verbose=False)
    got = port(program.model_proto, "torch")
    (weights,) = got.layers.values()
    assert (weights.kind, weights.eps) == ("rms", 1e-5)
    np.testing.assert_array_equal(weights.gamma, net[1].weight.detach())
    with torch.no_grad():
        net[1].weight.mul_(2)
    other = port(net, "onnx").into(program.model_proto, match="order")
    (again,) = held("onnx", other)
    np.testing.assert_array_equal(again.gamma, 2 * weights.gamma)
    net[1].eps = 1e-4  # which the model keeps in a constant of its own
    with pytest.raises(ParityError, match="eps"):
        port(net, "onnx").into(program.model_proto, match="order")


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_an_exported_group_norm_is_not_taken_for_an_instance_norm():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6)).eval()
    x = (torch.randn(2, 3, 5, 5),)
    old = torch.onnx.export(net, x, dynamo=True, verbose=False, opset_version=18).model_proto
    with pytest.raises(ModelError, match=r"1 norm of 2.*behind a Reshape.*opset 21"):
        port(old, "torch")
    new = torch.onnx.export(net, x, dynamo=True, verbose=False, opset_version=21).model_proto
    assert [w.kind for w in port(new, "torch").layers.values()] == ["group", "instance"]


OPEN = "net (float[N, C, H] x) => (float[N, C, H] y) "
FOUR, TWO = "<float[4] g = {1, 1, 1, 1}> ", "<float[2] g = {1, 1}> "
BATCH = "{ y = BatchNormalization(x, g, g, g, g) }"
GROUP = "{ y = GroupNormalization<num_groups = 2>(x, g, g) }"
GIVEN = (
    "net (float[N, C, H] x, float[4] g) => (float[N, C, H] y) <float[4] b = {1, 1, 1, 1}> "
    "{ y = InstanceNormalization(x, g, b) }"
)


@pytest.mark.parametrize(
    ("graph", "opset", "said"),
    [
        (OPEN + FOUR + BATCH, 20, None),  # the weights know
        (OPEN.replace("C", "5") + FOUR + BATCH, 20, "do not fit the channels"),
        (GIVEN, 20, "nothing to port"),
        (OPEN + TWO + GROUP, 18, "number of channels is not known"),  # a gain for each group
        (OPEN + FOUR + GROUP, 21, None),  # a gain for each channel
        (OPEN.replace("C", "4") + TWO + GROUP, 18, None),
    ],
    ids=["open", "other", "computed", "groups", "gains", "old"],
)
def test_onnx_channels_that_are_not_known(graph, opset, said):
    parser = pytest.importorskip("onnx.parser", reason="ONNX is not installed")
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {graph}')
    if said is None:
        made = port(model, "torch", dims=1, report=None)
        assert made.weight.tolist() == [1, 1, 1, 1]
        return
    with pytest.raises(ModelError, match=said):
        port(model, "torch", report=None)


def test_a_keras_model_that_freezes_says_so():
    model = keras_model()
    model.get_layer("a").trainable = False
    got = port(model, "torch")
    assert got.notes()["frozen (trainable=False) in the source; the target's layer is not"] == ["a"]
    frozen = port(source(), "keras").into(model)
    assert frozen.get_layer("a").trainable is False
    assert frozen.get_layer("a").epsilon == 2e-4


@pytest.mark.parametrize(
    ("opset", "options", "outputs", "trains"),
    [
        (6, ", is_test = 1", "y", False),
        (7, "", "y", False),
        (9, "", "y", False),
        (9, "", "y, m, v, sm, sv", True),
        (13, "", "y", False),
        (14, "", "y", False),
        (15, ", training_mode = 1", "y, m, v", True),
        (20, ", training_mode = 0", "y", False),
    ],
)
def test_onnx_batch_norms_of_every_opset(opset, options, outputs, trains):
    """The reference evaluator takes any momentum before opset 14 for training."""
    parser = pytest.importorskip("onnx.parser", reason="ONNX is not installed")
    model = parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : {opset}]> '
        "net (float[N, 2, H, W] x) => (float[N, 2, H, W] y) "
        "<float[2] g = {1.5, 2}, float[2] b = {0.5, -1}, float[2] mean = {3, -4}, "
        "float[2] var = {0.5, 2}> "
        f"{{ {outputs} = BatchNormalization <epsilon = 0.01, momentum = 0.75{options}>"
        "(x, g, b, mean, var) }"
    )
    made, lines = ported(model, "torch")
    assert any("agree to" in line and "in training to" in line for line in lines)
    assert any("in training mode in the model" in line for line in lines) == trains
    x = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    wide, held = (1, 2, 1, 1), {name: np.array(v) for name, v in (
        ("g", [1.5, 2]), ("b", [0.5, -1]), ("mean", [3.0, -4]), ("var", [0.5, 2])
    )}  # fmt: skip
    g, b, mean, var = (value.reshape(wide) for value in held.values())
    wanted = (x - mean) / np.sqrt(var + 0.01) * g + b
    np.testing.assert_allclose(made(torch.from_numpy(x)).detach(), wanted, rtol=1e-5, atol=1e-5)
    assert made.momentum == 0.25


def ported(layer, target):
    lines = []
    return port(layer, target, report=lines.append), lines
