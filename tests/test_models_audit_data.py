"""The rules that look at data: faults planted in trained models, and models that have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.optim.swa_utils import AveragedModel

import model_zoo as zoo
import normkit.torch as nt
from normkit.models.auditing import audit
from normkit.models.recalibration import recalibrate
from normkit.models.sites import find_sites

LOOKED_AT = 900  # of 1797 samples
#: A sound way to train.
SETTINGS = {
    "batch_size": 64, "dataset_size": 1797, "drop_last": True, "world_size": 1,
    "broadcast_buffers": True, "accumulate": 1,
}  # fmt: skip


def look(model, data=None, **more):
    """An audit with every rule, and all that rules may ask for."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    settings = {**SETTINGS, "averaged": False, "optimizer": optimizer, **more}
    return audit(model, zoo.batches(samples=LOOKED_AT) if data is None else data, **settings)


def found(report):
    return {(finding.rule, finding.site) for finding in report.findings}


# --- nothing wrong --------------------------------------------------------------------------------


def shifted(images):
    """Augmentation: moved by a pixel, and noise."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, (down, right), (2, 3)) + 0.1 * torch.randn_like(images)


def frozen():
    model = zoo.trained("residual")
    nt.freeze(model)
    return model


def frozen_while_tuned():
    """The backbone's statistics stay, its weights move on."""
    model = zoo.trained("convolutional")
    nt.freeze(model)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(1.5)
    return model


def accelerated():
    return nt.accelerate(zoo.trained("residual"), report=None)


def averaged():
    """A slow average of weights that have come to rest, with the statistics taken anew."""
    model = zoo.trained("convolutional")
    average = AveragedModel(model)
    average.update_parameters(zoo.fit(model, 1, 1e-3))
    torch.optim.swa_utils.update_bn(zoo.batches(), average)
    return average


SOUND = {
    **{f"trained {name}": (lambda name=name: zoo.trained(name)) for name in zoo.NAMES},
    **{f"fresh {name}": (lambda name=name: zoo.fresh(name)) for name in zoo.NAMES},
    "in training mode": lambda: zoo.trained("convolutional").train(),
    "frozen": frozen,
    "frozen while tuned": frozen_while_tuned,
    "accelerated": accelerated,
    "averaged": averaged,
    "wrapped": lambda: nn.DataParallel(zoo.trained("convolutional")),
    "bfloat16": lambda: zoo.trained("residual").bfloat16(),
    "double": lambda: zoo.trained("mobile").double(),
    "augmented": lambda: zoo.fit(zoo.fresh("residual"), augment=shifted),
    "small batches": lambda: zoo.fit(zoo.fresh("mobile"), 4, 3e-3, size=16),
    "steady rate": lambda: zoo.fit(zoo.fresh("concatenating"), schedule=False),
    "large batches": lambda: zoo.fit(zoo.fresh("preactivation"), size=256),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_no_alarm_on_a_sound_model(name):
    report = look(SOUND[name](), averaged=None if name == "averaged" else False)
    assert not report.findings, str(report)
    assert not report.skipped, str(report)


@pytest.mark.parametrize("samples", [32, 64, 200])
@pytest.mark.parametrize("name", ["dense", "residual", "mobile", "concatenating"])
def test_no_alarm_on_little_data(name, samples):
    report = look(zoo.trained(name), zoo.batches(samples=samples))
    assert not report.findings, str(report)


@pytest.mark.parametrize("samples", [1, 2, 9, 29])
def test_too_little_data_is_said(samples):
    report = look(zoo.trained("dense"), zoo.batches(samples=samples))
    assert not report.findings, str(report)
    needs = {each.rule: each.needs for each in report.skipped}
    assert f"there were {samples}" in needs["stale-statistics"]


# --- new models -----------------------------------------------------------------------------------


def has_running_statistics(name):
    return any(site.kind == "batch" for site in find_sites(zoo.fresh(name)))


KEEPERS = [name for name in zoo.NAMES if has_running_statistics(name)]
UNTOUCHED = "has seen a batch yet"


@pytest.mark.parametrize("name", KEEPERS)
def test_a_new_model_is_not_to_be_used(name):
    """In eval mode, whatever its weights are; in training mode, or unseen, it is as it should be.

    Whoever forgot to load the weights is told so in each case.
    """
    model = zoo.fresh(name)
    for report in (look(model), audit(model), audit(model.eval())):
        assert not report.findings, str(report)
        assert sum(UNTOUCHED in note for note in report.notes) == 1
    report = look(model)
    assert found(report) == {("never-tracked", "")}, str(report)
    assert report.findings[0].severity == "error"
    assert sum(UNTOUCHED in note for note in report.notes) == 1


def test_a_new_model_whose_input_is_as_its_statistics_say():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    assert not look(model, torch.randn(400, 6)).findings
    assert found(look(model, 3 * torch.randn(400, 6))) == {("never-tracked", "")}
    assert not look(model, 3 * torch.randn(20, 6)).findings  # too few samples to say


def test_a_new_layer_in_a_trained_model():
    model = zoo.trained("convolutional")
    model.insert(8, nn.BatchNorm2d(32))
    model.eval()
    with torch.no_grad():
        model[7].weight.mul_(2), model[7].bias.sub_(1)
    report = look(model)
    assert ("never-tracked", "8") in found(report), str(report)
    assert {rule for rule, _ in found(report)} <= {"never-tracked", "misplaced-norm"}
    assert not any(UNTOUCHED in note for note in report.notes)
    model.train()(zoo.digits()[0])
    for _ in range(99):
        model[:9](zoo.digits()[0][:256])
    assert "never-tracked" not in {rule for rule, _ in found(look(model.eval()))}


@pytest.mark.parametrize("name", ["dense", "normkit", "transformer"])
def test_trained_models_are_not_called_new(name):
    assert not any(UNTOUCHED in note for note in audit(zoo.trained(name)).notes)


def test_frozen_layers_may_hold_their_statistics_in_scale_and_shift():
    model = zoo.fresh("convolutional")
    nt.freeze(model)
    assert any(UNTOUCHED in note for note in look(model).notes)
    with torch.no_grad():
        model[1].bias.normal_()
    report = look(model)
    assert not report.findings, str(report)
    assert not any(UNTOUCHED in note for note in report.notes)


# --- faults ---------------------------------------------------------------------------------------


def scaled_statistics():
    model = zoo.trained("convolutional")
    model[4].running_var.mul_(6)
    return model, None, {("stale-statistics", "4")}


def moved_weights():
    model = zoo.trained("residual")
    with torch.no_grad():
        model[4].downsample[0].weight.mul_(3)
    return model, None, {("stale-statistics", "4.downsample.1")}


def another_layers_statistics():
    model = zoo.trained("mobile")
    norm = model[3].body[4]
    norm.running_mean.copy_(norm.running_mean.flip(0))
    norm.running_var.copy_(norm.running_var.flip(0))
    return model, None, {("stale-statistics", "3.body.4")}


def another_domain():
    brighter = [(0.4 * x + 1.0, y) for x, y in zoo.batches()]
    return zoo.trained("dense"), brighter, {("stale-statistics", "2")}


def equalized_channels():
    """Weights of other sizes, as before quantization, without the statistics that go with them."""
    model = zoo.trained("sequence")
    with torch.no_grad():
        model.body[0].weight.mul_(torch.rand(24, 1, 1) + 1)
    return model, None, {("stale-statistics", "body.1")}


def one_channel_far_off():
    model = zoo.trained("convolutional")
    model[4].running_mean[3] -= 60 * model[4].running_var[3].sqrt()
    return model, None, {("stale-statistics", "4")}


def one_channel_that_spoils_the_rest():
    """Too little to be called stale, but the next layers see what they do not know."""
    model = zoo.trained("dense")
    model[2].running_mean[3] -= 6 * model[2].running_var[3].sqrt()
    return model, None, {("stale-statistics", "2")}


def dead_convolution():
    model = zoo.trained("convolutional")
    with torch.no_grad():
        model[0].weight[3] = 0
        model[1].running_mean[3] = model[1].running_var[3] = 0
    return model, None, {("constant-channel", "1")}


def constant_on_the_data():
    model = zoo.trained("sequence")
    with torch.no_grad():
        model.body[3].weight[5] = 0
    return model, None, {("constant-channel", "body.4")}


def dead_behind_relu():
    model = zoo.trained("residual")
    with torch.no_grad():
        model[3].bn1.bias[2] = -40
    torch.optim.swa_utils.update_bn(zoo.batches(), model)
    return model, None, {("constant-channel", "3.bn1")}


def dead_behind_relu6():
    """What is dead in front of a convolution by channel is constant behind it."""
    model = zoo.trained("mobile")
    with torch.no_grad():
        model[3].body[1].bias[:4] = -60
    torch.optim.swa_utils.update_bn(zoo.batches(), model)
    return model, None, {("constant-channel", "3.body.1"), ("constant-channel", "3.body.4")}


def dropout_between_layers():
    model = zoo.dense()
    model.insert(4, nn.Dropout(0.5))
    return zoo.fit(model), None, {("dropout-upstream", "6")}


def dropout_of_channels():
    model = zoo.convolutional()
    model.insert(6, nn.Dropout2d(0.5))
    return zoo.fit(model), None, {("dropout-upstream", "8")}


class Dropping(nn.Module):
    """Dropout as a function, in a network with a shortcut."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        dropped = F.dropout(x, 0.5, self.training)
        return self.head((x + F.relu(self.norm2(self.conv2(dropped)))).mean((2, 3)))


def dropout_as_a_function():
    return zoo.fit(Dropping()), None, {("dropout-upstream", "norm2")}


def untracked(width):
    return nn.BatchNorm2d(width, track_running_stats=False)


def untracked_layers():
    model = zoo.fit(zoo.convolutional(untracked))
    return model, None, {("batch-statistics-at-inference", n) for n in ("1", "4", "7")}


def one_untracked_layer():
    model = zoo.dense()
    model[5] = nt.BatchNorm1d(32, track_running_stats=False)
    return zoo.fit(model), None, {("batch-statistics-at-inference", "5")}


def left_in_training():
    model = zoo.trained("residual")
    model[3].bn1.train()
    return model, None, {("batch-statistics-at-inference", "3.bn1")}


class TwoViews(zoo.Siamese):
    """The second view has another range."""

    def forward(self, x):
        left, right = self.trunk(x), self.trunk(0.3 * x + 1.5)
        return self.head(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1))


def two_views():
    model = zoo.fit(TwoViews())
    return model, None, {("shared-across-domains", n) for n in ("trunk.1", "trunk.4")}


class Levels(nn.Module):
    """A detector's head: one tower for the levels of a pyramid."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.tower = nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        fine = self.stem(x)
        levels = (fine, 4 * self.deep(fine))
        return self.head(
            torch.cat([F.relu(self.norm(self.tower(level))).mean((2, 3)) for level in levels], 1)
        )


def levels():
    return zoo.fit(Levels()), None, {("shared-across-domains", "norm")}


def by_loader():
    """Two cameras, and batches of one each."""
    model = zoo.dense()
    model[5] = nn.LayerNorm(32)
    cameras = [lambda x: x, lambda x: 0.4 * x + 1.2]
    state = iter(range(10**6))
    zoo.fit(model, augment=lambda x: cameras[next(state) % 2](x))
    data = {
        name: [(camera(x), y) for x, y in zoo.batches()]
        for name, camera in zip(("day", "night"), cameras, strict=True)
    }
    return model, data, {("shared-across-domains", "2")}


def by_sample():
    model = zoo.convolutional(widths=(16,))

    def night(x, every=2):
        mask = torch.arange(len(x)) % every == 0
        return torch.where(mask[:, None, None, None], 0.5 * x - 1, x), mask.long()

    zoo.fit(model, augment=lambda x: night(x)[0])
    data = []
    for x, y in zoo.batches():
        images, domain = night(x)
        data.append({"input": images, "labels": y, "domain": domain})
    return model, data, {("shared-across-domains", "1")}


def average_of(name, rate):
    """Weights of two ends of training, averaged; the statistics are the second's."""
    model = zoo.fit(zoo.fresh(name), 3, rate, schedule=False)
    average = AveragedModel(model)
    average.update_parameters(model)
    average.update_parameters(zoo.fit(model, 3, rate, schedule=False, seed=1))
    return average.eval(), None, {("averaged-weights", "")}


def averaged_by_hand():
    one, two = zoo.trained("dense"), zoo.fit(zoo.fresh("dense"), seed=5)
    with torch.no_grad():
        for mine, other in zip(one.parameters(), two.parameters(), strict=True):
            mine.lerp_(other, 0.5)
    return one, None, {("averaged-weights", "")}


def by_class(labels):
    return torch.argsort(labels, stable=True)


def sorted_batches():
    x, y = zoo.digits()
    order = by_class(y)
    return list(zip(x[order].split(64), y[order].split(64), strict=True))


def sorted_test_set():
    return zoo.trained("convolutional"), sorted_batches(), {("correlated-batches", "")}


def sorted_small_batches():
    x, y = zoo.digits()
    order = by_class(y)
    pairs = list(zip(x[order].split(16), y[order].split(16), strict=True))
    return zoo.trained("residual"), pairs, {("correlated-batches", "")}


def pairs_of_classes():
    """Every batch holds two classes."""
    x, y = zoo.digits()
    order = torch.cat([torch.where((y // 2) == pair)[0] for pair in range(5)])
    pairs = list(zip(x[order].split(64), y[order].split(64), strict=True))
    return zoo.trained("dense"), pairs, {("correlated-batches", "")}


def trained_on_sorted_batches():
    def order(labels):
        chosen = by_class(labels + 10 * torch.randint(0, 2, labels.shape))
        parts = list(chosen.split(64))
        return torch.cat([parts[i] for i in torch.randperm(len(parts) - 1)])

    model = zoo.fit(zoo.fresh("convolutional"), order=order)
    return model, sorted_batches(), {("correlated-batches", "")}


def one_channel(name, site):
    """Too few channels for the layer's statistics as a whole, but the answers suffer."""
    model = zoo.trained(name)
    norm = model.get_submodule(site)
    channel = int(norm.weight.abs().argmax())
    norm.running_mean[channel] -= 6 * norm.running_var[channel].sqrt()
    return model, None, {("eval-train-gap", "")}


FAULTS = {
    "stale-statistics": [
        scaled_statistics, moved_weights, another_layers_statistics, another_domain,
        equalized_channels, one_channel_far_off, one_channel_that_spoils_the_rest,
    ],
    "constant-channel": [
        dead_convolution, constant_on_the_data, dead_behind_relu, dead_behind_relu6,
    ],
    "dropout-upstream": [dropout_between_layers, dropout_of_channels, dropout_as_a_function],
    "batch-statistics-at-inference": [untracked_layers, one_untracked_layer, left_in_training],
    "shared-across-domains": [two_views, levels, by_loader, by_sample],
    "averaged-weights": [
        lambda: average_of("residual", 3e-2), lambda: average_of("preactivation", 3e-2),
        averaged_by_hand,
    ],
    "correlated-batches": [
        sorted_test_set, sorted_small_batches, pairs_of_classes, trained_on_sorted_batches,
    ],
    "eval-train-gap": [
        lambda: one_channel("dense", "5"), lambda: one_channel("convolutional", "7"),
        lambda: one_channel("preactivation", "4"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, i) for rule, faults in FAULTS.items() for i in range(len(faults))]
)
def test_a_planted_fault_is_found_and_nothing_else(rule, number):
    torch.manual_seed(0)
    model, data, expected = FAULTS[rule][number]()
    averaged = rule == "averaged-weights" if not isinstance(model, AveragedModel) else None
    report = look(model, data, averaged=averaged)
    assert found(report) == expected, str(report)
    assert {name for name, _ in expected} == {rule}
    for finding in report.findings:
        assert finding.why
        assert finding.repair


# --- the same measure as recalibration's ----------------------------------------------------------


def test_what_is_found_is_what_recalibration_mends():
    """A layer's own share of a divergence is its largest shift; the rest is that of others."""
    model, data = zoo.trained("convolutional"), zoo.batches()
    model[1].running_var.mul_(3)
    model[4].running_var.mul_(6)
    said = {finding.site: finding.measured for finding in audit(model, data).findings}
    assert set(said) == {"1", "4"}
    shifts = {shift.name: shift for shift in recalibrate(model, [x for x, _ in data])}
    assert f"at most {shifts['1'].divergence:.2g} at channel" in said["1"]
    own = f"; were the norms before it right, {shifts['4'].divergence:.2g} at most"
    assert said["4"].endswith(own)
    assert "right" not in said["1"]
    assert "largest KL of a channel" in str(recalibrate(model, data))
