"""The auditor's core: one pass that measures exactly and leaves no trace, and what it says."""

from __future__ import annotations

import json
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import model_zoo as zoo
import normkit.torch as nt
from normkit.errors import DataError, FileError, ModelError, OptionError
from normkit.models.auditing import RULES, Configuration, Finding, Report, Rule, audit
from normkit.models.auditing.audit import _gather
from normkit.models.auditing.observe import observe
from normkit.models.auditing.rules.behaviour import mixed_entropy
from normkit.models.auditing.running import run_rules
from normkit.models.measuring.channels import Gauge, Histogram, by_channel, sample_moments
from normkit.models.measuring.drift import between, from_running
from normkit.models.sites import find_sites, site_of


def study_of(model, data, **options):
    return observe(model, find_sites(model), data, **options)[0]


# --- what is measured -----------------------------------------------------------------------------


def inputs_of(model, layer, data):
    """What a layer gets, the plain way."""
    kept = []
    handle = layer.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    with torch.no_grad():
        for x, _ in data:
            model(x)
    handle.remove()
    return torch.cat(kept).double().numpy()


def test_moments_are_those_of_all_elements():
    model, data = zoo.trained("convolutional"), zoo.batches(samples=200)
    seen = study_of(model, data).layers["4"]
    wanted = inputs_of(model, model[4], data)
    by_hand = wanted.mean((0, 2, 3)), wanted.var((0, 2, 3))
    np.testing.assert_allclose(seen.input.elements.mean, by_hand[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(seen.input.elements.var, by_hand[1], rtol=1e-12)
    assert seen.input.samples == seen.samples == 200
    assert seen.calls == 1
    # Scatter: of the samples' means, and of their mean squares around the first batch's mean.
    means = wanted.mean((2, 3))
    np.testing.assert_allclose(seen.input.mean_scatter, means.var(0, ddof=1), rtol=1e-10)
    pilot = means[:64].mean(0)[:, None, None]
    squares = ((wanted - pilot) ** 2).mean((2, 3))
    np.testing.assert_allclose(seen.input.var_scatter, squares.var(0, ddof=1), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_moments_do_not_depend_on_the_batches(size):
    model = zoo.trained("dense")
    wanted = study_of(model, zoo.batches(samples=200)).layers["5"].input.elements
    got = study_of(model, zoo.batches(size, 200)).layers["5"].input.elements
    # A linear layer rounds by the batch's size.
    np.testing.assert_allclose(got.mean, wanted.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.var, wanted.var, rtol=1e-5)


@pytest.mark.parametrize("name", ["convolutional", "residual", "normkit", "synced", "ghost"])
def test_batch_statistics_are_those_of_training(name):
    """Against the model itself in training mode, which moves its statistics."""
    model, data = zoo.trained(name), zoo.batches(samples=320)
    study = study_of(model, data)
    site = find_sites(model)[-1].name
    last = model.get_submodule(site)
    other = zoo.trained(name).train()
    if name == "ghost":
        for layer in other.modules():
            if isinstance(layer, nt.BatchNorm2d):
                layer.options = nt.BatchNorm2d(1).options  # the auditor takes the batch as a whole
    wanted = inputs_of(other, other.get_submodule(site), data)
    got = study.layers[site].in_training.elements
    assert last.running_mean is not None
    np.testing.assert_allclose(got.mean, wanted.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.var, wanted.var((0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("name", ["residual", "transformer", "instance norm"])
def test_what_is_measured_is_not_changed(name):
    """In float64, where widening makes no copy by itself."""
    model, results = zoo.trained(name).double(), []
    data = [x.double() for x, _ in zoo.batches(samples=128)]
    with torch.no_grad():
        wanted = model(data[0])

    def forward(model, batch):
        results.append(model(batch))
        return results[-1]

    audit(model, data, forward=forward)
    assert torch.equal(results[0], wanted)


def test_accuracy_in_both_ways():
    model, data = zoo.trained("dense"), zoo.batches(60, 600)
    model[2].running_mean.add_(3)
    seen = study_of(model, data).accuracy
    with torch.no_grad():
        one = torch.cat([model(x).argmax(1) == y for x, y in data])
        model.train()
        two = torch.cat([model(x).argmax(1) == y for x, y in data])
    assert seen.samples == 600
    assert (seen.evaluated, seen.trained) == (int(one.sum()), int(two.sum()))
    assert seen.only_trained == int((two & ~one).sum()) > 0
    assert seen.only_evaluated == int((one & ~two).sum())


def test_output_range_and_histogram():
    model, data = zoo.trained("transformer"), zoo.batches(samples=100)
    seen = study_of(model, data).layers["norm"]
    kept = []
    model.norm.register_forward_hook(lambda *args: kept.append(args[2]))
    with torch.no_grad():
        model(data[0][0]), model(data[1][0])
    y = torch.cat(kept)
    torch.testing.assert_close(seen.output_min, y.amin((0, 1)))
    torch.testing.assert_close(seen.output_max, y.amax((0, 1)))
    assert len(seen.edges) == len(seen.counts) + 1
    assert sum(seen.counts) == y.numel()
    counts, _ = np.histogram(y.numpy(), bins=np.array(seen.edges))
    assert np.abs(counts - seen.counts).sum() <= 4  # values on an edge


@pytest.mark.parametrize("scale", [1e-3, 1.0, 37.0, 1e6])
def test_histogram_grows_with_its_values(scale):
    draw = np.random.default_rng(0)
    values = [torch.as_tensor(draw.normal(size=500) * s * scale) for s in (0.01, 1, 30)]
    histogram = Histogram()
    for part in values:
        histogram.add(part)
    whole = torch.cat(values).float().numpy()
    counts, _ = np.histogram(whole, bins=np.array(histogram.edges))
    assert histogram.counts == counts.tolist()
    assert sum(histogram.counts) == 1500


def test_histogram_of_what_is_no_number():
    histogram = Histogram()
    histogram.add(torch.tensor([float("nan"), float("inf")]))
    assert histogram.edges == histogram.counts == []
    histogram.add(torch.tensor([0.0, float("nan")]))
    assert sum(histogram.counts) == 1


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.BatchNorm1d(6), (4, 6), 1),
        (nn.BatchNorm1d(6), (4, 6, 3), 1),
        (nn.BatchNorm2d(6), (4, 6, 3, 5), 1),
        (nn.InstanceNorm2d(6), (6, 3, 5), 0),
        (nn.InstanceNorm1d(6, affine=True), (4, 6, 5), 1),
        (nn.GroupNorm(2, 6), (4, 6), 1),
        (nn.LayerNorm(6), (4, 3, 6), 2),
        (nn.LayerNorm(6), (6,), 0),
        (nn.RMSNorm(6), (4, 3, 2, 6), 3),
        (nn.LayerNorm(6), (4, 6, 6), 2),
    ],
)
def test_channels_are_found(layer, shape, axis):
    x = torch.randn(shape)
    values = by_channel(x, site_of("norm", layer))
    assert values.shape[1] == 6
    kept = tuple(i for i in range(x.dim()) if i != axis)
    wanted = x.sum(kept) if kept else x
    torch.testing.assert_close(values.sum((0, 2)), wanted, rtol=1e-4, atol=1e-5)


def test_layer_norm_over_whole_images_has_a_channel_for_every_element():
    values = by_channel(torch.zeros(5, 2, 3, 4), site_of("norm", nn.LayerNorm((2, 3, 4))))
    assert values.shape == (5, 24, 1)


class LayerNorm2d(nn.LayerNorm):
    """timm's and ConvNeXt's: over the channels of images."""

    def forward(self, x):
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias)
        return y.permute(0, 3, 1, 2)


def test_layer_norm_over_the_channels_of_images():
    values = by_channel(torch.zeros(5, 6, 3, 6), site_of("norm", LayerNorm2d(6)))
    assert values.shape == (5, 6, 18)


def test_frames_of_one_sample_are_one_draw():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    x = torch.randn(40, 1, 3).expand(40, 25, 3) + 0.01 * torch.randn(40, 25, 3)
    seen = study_of(Frames().eval(), x).layers["norm"].input
    assert seen.samples == 40
    assert seen.elements.count == 1000
    torch.testing.assert_close(seen.mean_scatter, x.mean(1).double().var(0))


def test_masked_calls_are_not_measured():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nt.BatchNorm1d(3)

        def forward(self, x, mask):
            return self.norm(x, mask=mask)

    x = torch.randn(64, 3, 5)
    study = study_of(Masked().eval(), [{"x": x, "mask": torch.rand(64, 1, 5) > 0.5}])
    assert study.layers["norm"].input is None
    report = audit(Masked().eval(), [{"x": x, "mask": torch.rand(64, 1, 5) > 0.5}])
    assert not report.findings


def test_an_activation_in_front_counts():
    model = nt.NormAct(nt.BatchNorm1d(3), "relu", order="activation_first").eval()
    x = torch.randn(50, 3)
    seen = study_of(model, x).layers["norm"].input
    torch.testing.assert_close(seen.elements.mean, x.relu().double().mean(0))


# --- how far apart, and by chance -----------------------------------------------------------------


def gauged(values):
    gauge = Gauge()
    gauge.add(*sample_moments(torch.as_tensor(values)))
    return gauge.spread()


def test_divergence_is_that_of_normal_distributions():
    """Against the integral of p log(p / q)."""
    seen = gauged(np.random.default_rng(0).normal(1.5, 0.7, (4000, 1, 1)))
    drift = from_running(torch.tensor([1.0]), torch.tensor([0.81]), seen, 0.0, 100.0)
    mean, var = float(seen.elements.mean[0]), float(seen.elements.population_var[0])
    x = np.linspace(-6, 8, 200_001)
    log = lambda m, v: -0.5 * ((x - m) ** 2 / v + np.log(2 * np.pi * v))  # noqa: E731
    p, q = log(mean, var), log(1.0, 0.81)
    wanted = np.trapezoid(np.exp(p) * (p - q), x)
    assert float(drift.divergence[0]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("positions", [1, 16])
@pytest.mark.parametrize("skew", [False, True])
def test_chance_is_what_samples_of_one_distribution_show(positions, skew):
    """Images whose pixels hang together, and values with a long tail: the mean over many draws."""
    draw = np.random.default_rng(0)

    def images(samples):
        values = draw.normal(size=(samples, 400, 1)) + 0.3 * draw.normal(
            size=(samples, 400, positions)
        )
        return np.exp(0.5 * values) if skew else values

    one, two = gauged(images(300)), gauged(images(500))
    drift = between(one, two, 0.0)
    ratio = float(drift.divergence.mean() / drift.chance.mean())
    assert 0.8 < ratio < 1.25  # 400 channels: a standard error of about 7 %
    assert float((drift.divergence > 10 * drift.chance).double().mean()) < 0.01


@pytest.mark.parametrize(("classes", "size"), [(2, 3), (10, 8), (10, 64), (100, 32)])
def test_entropy_of_mixed_batches(classes, size):
    """Against labels that are really drawn."""
    from normkit.models.auditing.evidence import Labels

    draw = np.random.default_rng(1)
    found = []
    for _ in range(4000):
        share = np.bincount(draw.integers(classes, size=size)) / size
        found.append(-(share[share > 0] * np.log(share[share > 0])).sum())
    expected, doubt = mixed_entropy(Labels([1000] * classes, [size] * 200, 0.0))
    assert expected == pytest.approx(np.mean(found), abs=5 * max(doubt, 1e-9))


# --- no trace -------------------------------------------------------------------------------------


def state(model):
    """Everything of a model that a user could see changing."""
    return {
        "modes": [m.training for m in model.modules()],
        "values": {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()},
        "tensors": [id(t) for t in (*model.parameters(), *model.buffers())],
        "versions": [t._version for t in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_with_kwargs),
             len(m._forward_pre_hooks_with_kwargs))
            for m in model.modules()
        ],
        "attributes": [{k: id(v) for k, v in m.__dict__.items()} for m in model.modules()],
        "before": [len(m.tracker.before) for m in model.modules() if hasattr(m, "tracker")],
        "generators": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),  # noqa: NPY002
    }  # fmt: skip


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, was in one.items():
        flat = [was, two[name]]
        if name == "values":
            assert was.keys() == two[name].keys()
            assert all(torch.equal(was[k], two[name][k]) for k in was)
        elif name in ("grads", "generators"):
            for a, b in zip(*flat, strict=True):
                if isinstance(a, (torch.Tensor, np.ndarray)):
                    assert np.array_equal(a, b), name
                else:
                    assert a == b, name
        else:
            assert was == two[name], name


class Counting(nn.Module):
    """A forward that leaves traces, draws numbers and has layers in different modes."""

    def __init__(self):
        super().__init__()
        self.norm = nt.BatchNorm2d(4, renorm=True)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.open = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(1, 4, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.sizes, self.cache = 0, [], {}

    def forward(self, x):
        self.calls += 1
        self.sizes.append(len(x))
        self.cache[len(x)] = x
        self.seen.add_(len(x))
        self.latest = x
        random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
        if len(self.sizes) > 3 and getattr(self, "failing", None):
            raise self.failing
        return self.open(self.instance(self.norm(self.conv(x)))).mean((2, 3))


def counting(training):
    model = Counting().train()
    model(torch.randn(8, 1, 8, 8)).sum().backward()
    model.train(training)
    model.open.train()
    model.instance.track_running_stats = False  # moves its statistics in eval mode
    model.conv.bias.requires_grad_(False)
    model.conv.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_an_audit_leaves_no_trace(training):
    model = counting(training)
    data = zoo.batches(samples=200)  # first: importing its library draws random numbers
    before = state(model)
    audit(model, data, progress=False)
    assert_same(before, state(model))
    assert model.sizes == [8]
    assert list(model.cache) == [8]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("training", [True, False])
def test_nor_does_one_that_fails_halfway(training, error):
    model = counting(training)
    model.failing = error
    data = zoo.batches(samples=400)
    before = state(model)
    with pytest.raises((DataError, type(error))):
        audit(model, data)
    assert_same(before, state(model))


def test_nor_does_data_that_fails_halfway():
    def data():
        yield from zoo.batches(samples=128)
        raise OSError("the disk is gone")

    zoo.batches(samples=1)  # its library is imported
    model = counting(False)
    before = state(model)
    with pytest.raises(OSError, match="disk"):
        audit(model, data())
    assert_same(before, state(model))


def test_gradients_are_not_recorded_and_activations_not_kept():
    model, alive = zoo.trained("dense"), []

    def data():
        for x, y in zoo.batches(samples=512):
            x = x.clone().requires_grad_()
            alive.append(weakref.ref(x))
            yield x, y
            del x
            assert sum(ref() is not None for ref in alive) <= 2  # this batch and the one before

    audit(model, data(), rules=["stale-statistics"])
    assert not any(ref() is not None for ref in alive)


# --- data as it comes -----------------------------------------------------------------------------


def test_data_in_dictionaries():
    data = [{"input": x, "labels": y} for x, y in zoo.batches(samples=300)]
    study = study_of(zoo.trained("convolutional"), data)
    assert study.samples == 300
    assert study.accuracy is not None
    assert study.labels is not None


def test_forward_of_the_users_own():
    model = zoo.trained("convolutional")
    data = [(str(i), x, y) for i, (x, y) in enumerate(zoo.batches(samples=300))]
    report = audit(model, data, forward=lambda model, batch: model(batch[1]))
    assert not report.findings, str(report)
    assert report.layers[0].samples == 300


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes_take_the_same_data(dtype):
    model = zoo.trained("mixed").to(dtype)
    report = audit(model, zoo.batches(samples=200))
    assert not [f for f in report.findings if f.rule != "low-precision-buffers"], str(report)
    assert report.layers[0].samples == 200
    assert report.layers[0].fresh_var


def test_batches_with_nan_are_left_out_and_said():
    data = zoo.batches(samples=400)
    spoilt = data[2][0].clone()
    spoilt[5, 0, 3, 3] = float("nan")
    data[2] = (spoilt, data[2][1])
    report = audit(zoo.trained("convolutional"), data)
    assert not report.findings, str(report)
    assert any("1 batch" in note and "NaN" in note for note in report.notes)
    wanted = study_of(zoo.trained("convolutional"), data[:2] + data[3:]).layers["1"].input
    np.testing.assert_array_equal(report.layers[0].fresh_mean, wanted.elements.mean)


def test_nothing_but_nan():
    with pytest.raises(DataError, match="NaN"):
        audit(zoo.trained("dense"), torch.full((70, 1, 8, 8), float("nan")))


@pytest.mark.parametrize("data", [[], iter(()), torch.zeros(0, 1, 8, 8)])
def test_no_data(data):
    with pytest.raises(DataError, match=r"No batch|no batch"):
        audit(zoo.trained("convolutional"), data)


def test_an_empty_batch_among_others():
    data = zoo.batches(samples=192)
    data.insert(1, (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)))
    report = audit(zoo.trained("convolutional"), data)
    assert not report.findings, str(report)
    assert report.layers[0].samples == 192


def test_batches_of_one():
    report = audit(zoo.trained("residual"), zoo.batches(1, 100))
    assert not report.findings, str(report)
    assert any("fewer than 8 samples" in note for note in report.notes)


def test_the_wrong_shape_is_said():
    model = zoo.trained("convolutional")
    before = state(model)
    with pytest.raises(DataError, match="does not take this batch"):
        audit(model, torch.zeros(10, 3, 8, 8))
    assert_same(before, state(model))


def test_labels_that_are_no_classes():
    report = audit(zoo.trained("dense"), [(x, y + 5) for x, y in zoo.batches(samples=200)])
    needs = {each.rule: each.needs for each in report.skipped}
    assert "scores by class" in needs["eval-train-gap"]


# --- what there is to look at ---------------------------------------------------------------------


def test_without_data_the_rest_is_looked_at():
    model = zoo.trained("convolutional")
    model[1].running_var[0] = float("nan")
    report = audit(model)
    assert [(f.rule, f.site) for f in report.findings] == [("bad-buffers", "1")]
    needs = {each.rule: each.needs for each in report.skipped}
    assert needs["stale-statistics"] == "data: pass data="
    assert "batch_size" in needs["small-batch"]
    assert not set(needs) & set(report.ran)
    assert set(needs) | set(report.ran) == {rule.name for rule in RULES}


def test_an_example_gives_shapes():
    """A kernel as large as the picture leaves one position, which weights alone do not say."""
    model = nn.Sequential(nn.Conv2d(4, 4, 8), nn.GroupNorm(4, 4))
    before = state(model)
    assert not [f for f in audit(model).findings if f.site == "1"]
    report = audit(model, example=torch.zeros(2, 4, 8, 8), batch_size=64)
    assert_same(before, state(model))
    assert [(f.rule, f.site) for f in report.findings] == [("single-element-group", "1")]


def test_a_model_without_norms():
    report = audit(nn.Linear(4, 3), torch.randn(50, 4), batch_size=1)
    assert not report.findings
    assert not report.layers
    assert report.exit_status("info") == 0
    assert "the model has no normalization layers" in report.notes


def test_training_mode_is_said():
    model, data = zoo.trained("convolutional"), zoo.batches(samples=200)
    assert not audit(model, data).notes
    (note,) = audit(model.train(), data).notes
    assert note == (
        "the model is in training mode; what it does in eval mode was measured: "
        "call model.eval() before use"
    )
    assert audit(model).notes == ["the model is in training mode: call model.eval() before use"]
    assert not audit(zoo.trained("transformer").train()).notes
    model.eval()[4].train()  # which is a finding
    assert not audit(model).notes


def test_lazy_layers_are_left_lazy():
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LayerNorm(8))
    report = audit(model, torch.randn(50, 4))
    assert isinstance(model[0], nn.LazyLinear)
    assert not report.findings
    assert any("lazy" in note for note in report.notes)


def test_a_checkpoint_is_looked_at_but_not_run(tmp_path):
    model = zoo.trained("convolutional")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    report = audit(tmp_path / "weights.pt", zoo.batches(samples=100))
    assert not report.findings, str(report)
    assert len(report.layers) == 3
    needs = {each.rule: each.needs for each in report.skipped}
    assert "checkpoint" in needs["stale-statistics"]
    assert any("the data was not used" in note for note in report.notes)


ANY = torch.export.Dim("samples", min=1, max=99)


def exported(name, model=None, decomposed=False, size=ANY):
    model = zoo.trained(name) if model is None else model
    dynamic = ({0: size},) if size else None
    program = torch.export.export(model, (torch.zeros(8, 1, 8, 8),), dynamic_shapes=dynamic)
    return program.run_decompositions() if decomposed else program


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch's own, while it exports
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", ["residual", "mixed", "siamese", "sequence", "transformer"])
def test_a_program_is_run_like_the_model_it_came_from(name, decomposed):
    data = zoo.batches(samples=200)
    program = exported(name, decomposed=decomposed)
    report, wanted = audit(program, data), audit(zoo.trained(name), data)
    assert not report.findings, str(report)
    by_name = {layer.name: layer for layer in report.layers}
    for layer in wanted.layers:
        np.testing.assert_allclose(
            by_name[layer.name].fresh_mean, layer.fresh_mean, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(by_name[layer.name].fresh_var, layer.fresh_var, rtol=1e-4)
        assert by_name[layer.name].samples == layer.samples
    assert {each.rule for each in report.skipped} >= {"batch-statistics-at-inference"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
def test_faults_of_a_program_are_found(decomposed):
    model = zoo.trained("residual")
    model[4].bn1.running_var.mul_(9)
    program = exported("residual", model, decomposed)
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    report = audit(program, zoo.batches(samples=400))
    assert [(f.rule, f.site) for f in report.findings] == [("stale-statistics", "4.bn1")]
    assert all(torch.equal(program.state_dict[name], was) for name, was in before.items())
    spoken = [{"input": x, "labels": y} for x, y in zoo.batches(samples=128)]
    assert audit(program, spoken).layers[0].samples == 128


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_of_one_batch_size_says_so():
    program = exported("residual", size=None)
    with pytest.raises(DataError, match="does not take this batch"):
        audit(program, zoo.batches(samples=64))
    assert audit(program, zoo.batches(8, 64)).layers[0].samples == 64


class ByDomain(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nt.BatchNorm1d(3, domains=2)

    def forward(self, x, domain):
        return self.norm(x, domain=domain)


def test_layers_with_statistics_by_domain_may_see_several():
    model, data = ByDomain(), []
    for _ in range(80):
        domain = torch.randint(0, 2, (64,))
        data.append({"x": torch.randn(64, 3) + 5 * domain[:, None], "domain": domain})
        model(**data[-1])
    report = audit(model.eval(), data, rules=["shared-across-domains", "stale-statistics"])
    assert not report.findings, str(report)
    study = study_of(model, data)
    assert set(study.layers["norm"].by_domain) == {"0", "1"}
    np.testing.assert_allclose(study.layers["norm"].by_domain["1"].elements.mean, 5, atol=0.2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_in_words():
    with pytest.raises(ModelError, match="TorchScript"):
        audit(torch.jit.trace(zoo.fresh("dense").eval(), torch.zeros(1, 1, 8, 8)))


def test_what_is_no_model():
    with pytest.raises(ModelError, match="no model"):
        audit(3)


def test_an_audit_of_a_compiled_model():
    model = zoo.trained("dense")
    wrapped = torch.compile(model, backend="eager")
    report = audit(wrapped, zoo.batches(samples=200))
    assert not report.findings, str(report)
    assert [layer.name for layer in report.layers] == ["2", "5"]
    assert report.layers[1].samples == 200


# --- rules ----------------------------------------------------------------------------------------


def test_the_number_of_rules_is_the_same_everywhere():
    for name in ("README.md", "CHANGELOG.md"):
        assert f"{len(RULES)} rules" in (Path(__file__).parents[1] / name).read_text(), name


def test_there_are_rules_for_all_faults():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(rule.why.endswith(".") for rule in RULES)
    assert {name for rule in RULES for name in rule.yields_to} <= set(names)


def test_rules_chosen_and_ignored():
    model = zoo.trained("convolutional")
    model[1].running_var[0] = -1.0
    assert audit(model, rules="bad-buffers").ran == ["bad-buffers"]
    report = audit(model, ignore=["bad-buffers"])
    assert "bad-buffers" not in report.ran
    with pytest.raises(OptionError, match=r"bad-buffer'.*bad-buffers"):
        audit(model, rules=["bad-buffer"])
    with pytest.raises(OptionError, match="no such rule"):
        audit(model, ignore=["nothing"])
    with pytest.raises(OptionError, match=r"batchsize.*batch_size"):
        audit(model, batchsize=3)


def made(name, check, **more):
    return Rule(name, ("weights",), "warning", "Because.", check, **more)


def test_a_rule_that_fails_does_not_hide_the_others():
    def broken(self, evidence):
        yield self.finding("1", "…", "…")
        raise ZeroDivisionError("oh")

    def works(self, evidence):
        yield self.finding("1", "…", "…")

    report = audit(zoo.fresh("dense"), rules=[made("broken", broken), made("works", works)])
    assert [f.rule for f in report.findings] == ["works"]
    assert [s.rule for s in report.skipped] == ["broken"]
    assert "ZeroDivisionError: oh" in report.skipped[0].needs


@pytest.mark.parametrize(
    ("cause", "effect", "left"),
    [
        (("1", ()), ("1", ()), False),
        (("1", ()), ("1", (3,)), False),
        (("1", (3, 4)), ("1", (3,)), False),
        (("1", (3,)), ("1", (3, 4)), True),
        (("1", (3,)), ("1", ()), True),
        (("1", ()), ("2", ()), True),
        (("", ()), ("2", ()), False),
        (("2", ()), ("", ()), False),
    ],
)
def test_causes_are_kept_and_effects_left_out(cause, effect, left):
    def rule_of(name, where, **more):
        def check(self, evidence):
            yield self.finding(where[0], "…", "…", channels=where[1])

        return made(name, check, **more)

    rules = [rule_of("effect", effect, yields_to=("cause",)), rule_of("cause", cause)]
    evidence = _gather(zoo.fresh("dense"), Configuration()).evidence
    findings, _, ran = run_rules(rules, evidence)
    assert ran == ["effect", "cause"]
    assert ("effect" in [f.rule for f in findings]) is left


def test_an_effect_on_the_whole_model_is_laid_to_the_worst_causes():
    def rule_of(name, severity, places, **more):
        def check(self, evidence):
            for place in places:
                yield self.finding(place, "…", "…")

        return Rule(name, ("weights",), severity, "Because.", check, **more)

    rules = [
        rule_of("trifle", "info", ["2"]),
        rule_of("cause", "warning", ["2", "5"]),
        rule_of("effect", "error", [""], yields_to=("trifle", "cause")),
    ]
    findings, _, _ = run_rules(rules, _gather(zoo.fresh("dense"), Configuration()).evidence)
    assert [(f.rule, f.site, f.severity, f.effects) for f in findings] == [
        ("cause", "2", "error", ("effect",)),
        ("cause", "5", "error", ("effect",)),
        ("trifle", "2", "info", ()),
    ]


# --- what is said ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    model = zoo.trained("residual")
    model[3].bn1.running_var.mul_(9)
    model[3].bn2.running_mean[1] = float("nan")
    return audit(model, zoo.batches(samples=300))


def test_findings_come_with_the_worst_first(report):
    assert [f.severity for f in report.findings] == sorted(
        (f.severity for f in report.findings), key=["error", "warning", "info"].index
    )
    assert report.exit_status("error") == 1
    assert ("bad-buffers", "3.bn2") in {(f.rule, f.site) for f in report.findings}


def test_a_report_is_json(report):
    text = json.dumps(report.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["model"] == "Sequential"
    assert back["layers"][2]["running_mean"][1] is None
    assert len(back["layers"]) == 6
    assert back["findings"][0]["repair"]
    assert {node[2] for node in back["nodes"]} - {""} == {layer.name for layer in report.layers}
    names = {node[0] for node in back["nodes"]}
    assert all(a in names and b in names for a, b in back["edges"])


def test_a_report_is_text(report):
    text = str(report)
    assert text == report.table()
    assert "bad-buffers at 3.bn2" in text
    for words in (text, report.table(verbose=True)):
        assert all(len(line) <= 100 for line in words.splitlines())


def test_what_could_not_be_looked_at_is_said_in_a_sentence():
    report = audit(zoo.trained("dense"))
    short, long = str(report), report.table(verbose=True)
    assert " ".join(short.split("\n\n")[1].split()) == (
        "12 rules could not look: they need data (data=); the training configuration (batch_size=, "
        "accumulate=, optimizer=, world_size=, broadcast_buffers=, averaged=)."
    )
    assert short.splitlines()[0] == long.splitlines()[0]
    assert short.splitlines()[0].endswith("13 of 25 rules looked")
    words = " ".join(long.split())
    assert all(each.rule in words for each in report.skipped)
    assert "ranks: needs the training configuration: pass world_size=, broadcast_buffers=" in words
    assert "correlated-batches, eval-train-gap: need data: pass data=" in words
    complete = audit(zoo.trained("dense"), rules=["bad-buffers"])
    assert str(complete) == "Sequential: 0 findings in 2 norms, 1 rule looked"


def test_a_rule_that_failed_is_named_in_the_sentence():
    def broken(self, evidence):
        raise ValueError("one; two: three")

    report = audit(zoo.fresh("dense"), rules=[made("broken", broken)])
    said = "1 rule could not look: it needs a correction of normkit (broken failed with ValueError:"
    assert f"{said} one, two: three)." in " ".join(str(report).split())


def test_saving(report, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    assert json.loads(path.read_text())["ran"] == list(report.ran)
    with pytest.raises(FileError, match="replace"):
        report.save(path)
    report.save(path, overwrite=True)
    with pytest.raises(OptionError, match="json"):
        report.save(tmp_path / "report.txt")
    with pytest.raises(FileError, match="no such folder"):
        report.save(tmp_path / "a" / "report.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json"]


def test_saving_a_page(report, tmp_path):
    pytest.importorskip("jinja2", reason="pages need jinja2")
    report.save(tmp_path / "report.html")
    assert "3.bn2" in (tmp_path / "report.html").read_text()


def test_an_empty_report_says_so():
    text = str(Report("net"))
    assert text.startswith("net: 0 findings in 0 norms")
    finding = Finding("r", "info", "", "m", "w", "r")
    assert Report("net", [finding]).exit_status() == 0
    assert Report("net", [finding]).exit_status("info") == 1


def test_a_cause_is_as_severe_as_what_it_explains():
    """Few batches are a warning; statistics that do not fit the data at all are an error."""
    torch.manual_seed(0)
    data = 3 * torch.randn(512, 4) + 5
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
    for batch in data.split(64):
        model(batch)
    model.eval()
    (quiet,) = audit(model).findings
    (loud,) = audit(model, -data).findings
    assert (quiet.rule, quiet.severity, quiet.effects) == ("momentum", "warning", ())
    assert (loud.rule, loud.severity, loud.effects) == ("momentum", "error", ("stale-statistics",))
    assert "stale-statistics" in str(audit(model, -data))


def test_layers_with_the_same_fault_share_a_paragraph():
    layers = [nn.BatchNorm1d(4, momentum=0.0) for _ in range(9)]
    for layer in layers:
        layer.num_batches_tracked += 1000
    text = str(audit(nn.Sequential(*layers).train(), ignore=("misplaced-norm",)))
    assert text.count("momentum at") == 1
    assert "and 3 more" in text
