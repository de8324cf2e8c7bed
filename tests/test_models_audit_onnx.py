"""ONNX models are run on data like the torch modules that they come from."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript, which exports, is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

import model_zoo as zoo  # noqa: E402
from normkit.errors import DataError, ModelError  # noqa: E402
from normkit.models.auditing import audit, onnx_models  # noqa: E402
from normkit.models.auditing.observe import observe  # noqa: E402
from normkit.models.auditing.onnx_models import runnable  # noqa: E402
from normkit.models.graphs.onnx_model import read_onnx_graph  # noqa: E402
from normkit.models.sites import find_sites  # noqa: E402

DIGITS = torch.zeros(8, 1, 8, 8)


def exported(model, *inputs, dynamic=True):
    """The model as a file has it, with its batch norms; the first dimension is free."""
    inputs = inputs or (DIGITS,)
    shapes = tuple({0: torch.export.Dim("samples")} for _ in inputs) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, while it exports
        program = torch.onnx.export(
            model.eval(), inputs, dynamo=True, optimize=False, verbose=False, dynamic_shapes=shapes
        )
    return program.model_proto


def studies(model, proto, data):
    """What is observed in an ONNX model, and what in the module that it came from."""
    got, _ = observe(*runnable(proto, read_onnx_graph(proto)), data, progress=False)
    want, _ = observe(model, find_sites(model), data, progress=False)
    return got, want


def assert_same(got, want):
    """Two spreads, but for rounding in float32."""
    assert (got is None) == (want is None)
    if want is None:
        return
    assert got.samples == want.samples
    assert got.elements.count == want.elements.count
    var = want.elements.population_var
    np.testing.assert_allclose(got.elements.population_var, var, rtol=1e-4, atol=1e-9)
    off = (got.elements.mean - want.elements.mean).abs() / (var.sqrt() + 1e-6)
    assert float(off.max()) < 1e-4
    for name in ("mean_scatter", "var_scatter"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-3, atol=1e-8)


def found(report):
    return [(finding.rule, finding.site) for finding in report.findings]


# --- like the module ------------------------------------------------------------------------------


@functools.cache
def proto_of(name):
    return exported(zoo.trained(name))


@pytest.mark.parametrize("name", ["dense", "residual", "mobile", "transformer", "rms transformer"])
def test_what_norms_see_is_what_they_see_in_the_module(name):
    data = zoo.batches(samples=200)
    got, want = studies(zoo.trained(name), proto_of(name), data)
    assert got.layers.keys() == want.layers.keys()
    assert (got.samples, got.batches) == (want.samples, want.batches)
    assert got.alone is True
    assert got.accuracy == want.accuracy
    for site, seen in want.layers.items():
        assert_same(got.layers[site].input, seen.input)
        assert_same(got.layers[site].in_training, seen.in_training)
        for end in ("output_min", "output_max"):
            values = (getattr(each, end) for each in (got.layers[site], seen))
            np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)
        assert list(got.layers[site].edges) == list(seen.edges)
        assert sum(got.layers[site].counts) == sum(seen.counts)


@pytest.mark.parametrize("name", ["dense", "residual", "mobile", "transformer", "mixed"])
def test_no_alarm_on_a_sound_model(name):
    report = audit(proto_of(name), zoo.batches(samples=400))
    assert not report.findings, str(report)
    assert not report.notes
    lacking = {each.rule for each in report.skipped}
    assert not lacking & {"stale-statistics", "eval-train-gap", "correlated-batches"}


@pytest.mark.parametrize("site", ["1", "3.bn2", "4.bn1", "4.downsample.1"])
def test_stale_statistics_are_found_where_they_are(site):
    """The layers behind, which see what they do not know, are not blamed."""
    model = zoo.trained("residual")
    model.get_submodule(site).running_var.mul_(9)
    data = zoo.batches(samples=400)
    report = audit(exported(model), data)
    assert found(report) == [("stale-statistics", site)]
    assert found(report) == found(audit(model, data))


def test_accuracy_tells_of_what_statistics_cost():
    model = zoo.trained("convolutional")
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.add_(layer.running_var.sqrt())
    data = zoo.batches(samples=400)
    got, want = studies(model, exported(model), data)
    assert got.accuracy == want.accuracy
    assert got.accuracy.trained > got.accuracy.evaluated + 40
    rules = ["eval-train-gap"]
    reports = [audit(m, data, rules=rules) for m in (exported(model), model)]
    assert [found(report) for report in reports] == [[("eval-train-gap", "")]] * 2


def test_dead_channels_are_found():
    model = zoo.trained("convolutional")
    with torch.no_grad():
        model[4].bias[[2, 5]] = -1e3
        model[3].weight[7] = 0
        model[4].running_mean[7], model[4].running_var[7] = 0, 1
    data = zoo.batches(samples=400)
    reports = [audit(m, data, rules=["constant-channel"]) for m in (exported(model), model)]
    channels = [[f.channels for f in report.findings] for report in reports]
    assert channels[0] == channels[1] == [(7,), (2, 5)]


def test_domains_are_told_apart():
    data = [
        {"input": 0.4 * x + 2 * d, "domain": torch.full((len(x),), d), "labels": y}
        for d in (0, 1)
        for x, y in zoo.batches(samples=300)
    ]
    report = audit(proto_of("convolutional"), data, rules=["shared-across-domains"])
    assert ("shared-across-domains", "1") in found(report)


# --- what else is in files ------------------------------------------------------------------------


def by_hand(*nodes, opset=17, dtype=TensorProto.FLOAT, shape=("n", 3, 4, 4), **weights):
    """A model of ``x`` that gives ``y``."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    graph = helper.make_graph(
        [helper.make_node(op, *names, **said) for op, names, said in nodes],
        "net",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(v, kind), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


NORM = ("scale", "bias", "mean", "var")


def two_norms(**more):
    """Two batch norms, the first of which doubles its input's deviation."""
    ones, zeros = np.ones(3), np.zeros(3)
    return by_hand(
        ("BatchNormalization", (["x", *NORM], ["a"]), more.pop("said", {})),
        ("BatchNormalization", (["a", *NORM], ["y"]), {}),
        **{"scale": ones, "bias": zeros, "mean": zeros, "var": 0.25 * ones, **more},
    )


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
@pytest.mark.parametrize("opset", [9, 13, 15, 17, 18, 22])
def test_batch_statistics_in_every_version(opset, dtype):
    x = 3 + 2 * torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    if dtype == TensorProto.FLOAT16:
        x = x.half()
    proto = two_norms(opset=opset, dtype=dtype)
    before = proto.SerializeToString()
    study, _ = observe(*runnable(proto, read_onnx_graph(proto)), [x], progress=False)
    first, second = study.layers.values()
    wide = x.double().transpose(0, 1).flatten(1)
    mean, var = wide.mean(1), wide.var(1, correction=0)
    loose = 3e-3 if dtype == TensorProto.FLOAT16 else 1e-4
    for seen in (first.input, first.in_training):  # nothing is in front of it
        np.testing.assert_allclose(seen.elements.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(seen.elements.var, var, rtol=1e-5)
    scale = 1 / np.sqrt(0.25 + 1e-5)
    np.testing.assert_allclose(second.input.elements.mean, mean * scale, rtol=loose)
    np.testing.assert_allclose(second.input.elements.var, var * scale**2, rtol=loose)
    np.testing.assert_allclose(second.in_training.elements.mean, 0, atol=loose)
    np.testing.assert_allclose(second.in_training.elements.var, 1, rtol=loose)
    assert proto.SerializeToString() == before


def test_a_norm_that_was_exported_in_training_mode_is_heard_in_eval_mode():
    proto = two_norms(said={"training_mode": 1})
    proto.graph.node[0].output.extend(["moved_mean", "moved_var"])
    sites = read_onnx_graph(proto).sites
    assert sites[0].training
    x = 3 + torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    study, _ = observe(*runnable(proto, read_onnx_graph(proto)), [x], progress=False)
    first, second = study.layers.values()
    np.testing.assert_allclose(second.input.elements.mean, 2 * first.input.elements.mean, rtol=1e-4)
    assert study.alone is False  # as the file has it


def test_layer_and_instance_norms_of_one_operator():
    generator = np.random.default_rng(0)
    gain, shift = generator.uniform(0.5, 2, (2, 4)).astype(np.float32)
    proto = by_hand(
        ("InstanceNormalization", (["x", "g3", "b3"], ["a"]), {}),
        ("LayerNormalization", (["a", "gain", "shift"], ["y"]), {"axis": -1}),
        g3=[1, 2, 3], b3=[0, 1, 0], gain=gain, shift=shift,
    )  # fmt: skip
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.LayerNorm(4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2, 3]))
        model[0].bias.copy_(torch.tensor([0.0, 1, 0]))
        model[1].weight.copy_(torch.from_numpy(gain))
        model[1].bias.copy_(torch.from_numpy(shift))
    x = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got, want = studies(model, proto, [x])
    for one, other in zip(got.layers.values(), want.layers.values(), strict=True):
        assert_same(one.input, other.input)
        assert one.in_training is None
        np.testing.assert_allclose(one.output_max, other.output_max, rtol=1e-4)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 6), nn.BatchNorm1d(6)
        self.lin, self.other = nn.Linear(3, 6), nn.BatchNorm1d(6)

    def forward(self, words, numbers):
        return self.norm(self.embed(words)) + self.other(self.lin(numbers))


def test_a_model_with_several_inputs():
    torch.manual_seed(0)
    model = Two()
    batches = [{"numbers": torch.randn(32, 3), "words": torch.randint(20, (32,))} for _ in range(4)]
    for batch in batches:
        model(**batch)
    proto = exported(model, torch.zeros(8, dtype=torch.int64), torch.zeros(8, 3))
    got, want = studies(model.eval(), proto, batches)
    assert set(got.layers) == {"norm", "other"}
    for name, seen in want.layers.items():
        assert_same(got.layers[name].input, seen.input)
    with pytest.raises(DataError, match=r"1 without a name.*words: int64 \(\w+,\).*numbers: float"):
        audit(proto, [batches[0]["numbers"]])
    with pytest.raises(DataError, match=r"received 'numbers', expected words"):
        audit(proto, [{"numbers": batches[0]["numbers"]}])
    with pytest.raises(DataError, match=r"'number'.*expected words"):
        audit(proto, [{**batches[0], "number": torch.zeros(32)}])
    with pytest.raises(DataError, match=r"words: float32 \(32,\), expected words: int64"):
        audit(proto, [{**batches[0], "words": torch.zeros(32)}])
    narrow = [{**batch, "words": batch["words"].int()} for batch in batches]
    assert audit(proto, narrow).layers[0].samples == 128
    assert audit(proto, example=(batches[0]["words"], batches[0]["numbers"])).layers


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(64, 1, 8), r"x: float32 \(64, 1, 8\), expected x: float32 \(\w+, 1, 8, 8\)"),
        (torch.zeros(64, 3, 8, 8), r"\(64, 3, 8, 8\), expected x: float32 \(\w+, 1, 8, 8\)"),
        (torch.zeros(64, 1, 8, 8, dtype=torch.int64), r"x: int64 .* expected x: float32"),
        (torch.zeros(64, 1, 8, 8, dtype=torch.complex64), r"x: complex64 .* expected x: float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(x, said):
    proto = proto_of("convolutional")
    name = proto.graph.input[0].name
    with pytest.raises(DataError, match=said.replace("x:", f"{name}:")):
        audit(proto, [x])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_real_numbers_come_in_the_models_precision(dtype):
    x = torch.cat([x for x, _ in zoo.batches(samples=100)])
    got = audit(proto_of("convolutional"), [x.to(dtype)]).layers
    want = audit(proto_of("convolutional"), [x.to(dtype).float()]).layers
    assert [layer.fresh_mean for layer in got] == [layer.fresh_mean for layer in want]


def test_a_forward_of_the_users_own():
    data = [{"pixels": x.numpy(), "digit": y} for x, y in zoo.batches(samples=100)]
    report = audit(
        proto_of("convolutional"),
        data,
        forward=lambda model, batch: model(torch.from_numpy(batch["pixels"])),
    )
    assert len(report.layers) == 3
    assert report.layers[2].fresh_mean is not None


@pytest.mark.parametrize("size", [1, 16])
def test_a_model_for_batches_of_one_size(size):
    """With more samples at once it does the same, which is tried: so batch statistics are known."""
    model = zoo.trained("residual")
    model[4].bn1.running_var.mul_(9)
    data = zoo.batches(samples=400)
    proto = exported(model, torch.zeros(size, 1, 8, 8), dynamic=False)
    before = proto.SerializeToString()
    report = audit(proto, data)
    assert found(report) == [("stale-statistics", "4.bn1")]
    assert not report.notes
    got, want = studies(model, proto, data)
    assert got.batches == want.batches
    assert_same(got.layers["4.bn2"].in_training, want.layers["4.bn2"].in_training)
    assert proto.SerializeToString() == before


def mixes_samples():
    """Sums over dimension 0, of one sample: of no effect, until there are more."""
    return by_hand(
        ("ReduceSum", (["x", "zero"], ["s"]), {"keepdims": 1}),
        ("BatchNormalization", (["s", *NORM], ["y"]), {}),
        shape=(1, 3, 4, 4),
        **dict.fromkeys(NORM, np.ones(3)),
    )


def test_a_model_that_takes_only_its_size_gets_it():
    proto = mixes_samples()
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    x = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    study, _ = observe(*runnable(proto, read_onnx_graph(proto)), [x], progress=False)
    (seen,) = study.layers.values()
    assert study.batches == study.samples == seen.samples == 40
    assert seen.in_training is None
    wide = x.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(seen.input.elements.mean, wide.mean(1), rtol=1e-5)
    assert any("fewer than 8 samples" in note for note in study.notes)


def test_samples_that_make_no_whole_batch_are_refused_in_words():
    proto = mixes_samples()
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    with pytest.raises(DataError, match="exported for batches of 16"):
        audit(proto, [torch.randn(40, 3, 4, 4)])


def test_what_is_held_at_once_is_bounded(monkeypatch):
    data = [(torch.cat([x for x, _ in zoo.batches(samples=320)]), zoo.digits()[1][:320])]
    whole, _ = studies(zoo.trained("residual"), proto_of("residual"), data)
    monkeypatch.setattr(onnx_models, "_HELD", 1 << 20)
    got, _ = studies(zoo.trained("residual"), proto_of("residual"), data)
    assert whole.batches == 1
    assert got.batches > 5
    assert got.accuracy.evaluated == whole.accuracy.evaluated
    for site, seen in whole.layers.items():
        one, other = (each.input.elements for each in (got.layers[site], seen))
        assert one.count == other.count
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.var, other.var, rtol=1e-4)


# --- onnxruntime ----------------------------------------------------------------------------------


def test_operators_that_onnxruntime_lacks_are_said():
    proto = two_norms()
    proto.graph.node[0].domain = "own"
    proto.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(ModelError, match="onnxruntime does not run this model"):
        audit(proto, [torch.zeros(8, 3, 4, 4)])
    assert len(audit(proto).layers) == 1


def test_without_onnxruntime_rules_say_what_they_need(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        sys.modules[audit.__module__],
        "find_spec",
        lambda name: None if name == "onnxruntime" else find(name),
    )
    report = audit(proto_of("residual"), zoo.batches(samples=100))
    needs = {each.rule: each.needs for each in report.skipped}
    assert "pip install 'normkit[onnx]'" in needs["stale-statistics"]
    assert any("the data was not used" in note for note in report.notes)
    assert len(report.layers) == 6
