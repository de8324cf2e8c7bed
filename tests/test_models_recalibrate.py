"""recalibrate(): exact, consistent with itself, and all or nothing. Oracle: one giant batch."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit.torch as nt  # noqa: E402
import recalibrate_at_work  # noqa: E402
from normkit.errors import DataError, ModelError, NonFiniteError, OptionError  # noqa: E402
from normkit.models.recalibration import recalibrate  # noqa: E402

nn = torch.nn
WIDE = torch.float64


def numbers(seed, *shape, mean=1.0, std=2.0, dtype=WIDE):
    generator = torch.Generator().manual_seed(seed)
    return (mean + std * torch.randn(*shape, dtype=WIDE, generator=generator)).to(dtype)


def cuts(x, *sizes):
    assert sum(sizes) == len(x)
    return list(x.split(sizes))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def network(dtype=WIDE, seed=0):
    """Dropout, and three levels of norms: the shortcut's lies beside the residual's first."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), Residual(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean)
            module.num_batches_tracked.fill_(7)
    return net.to(dtype)


def snapshot(model):
    """All that a failure must leave as it was."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    places = {k: v.data_ptr() for k, v in model.state_dict(keep_vars=True).items()}
    modes = {name: m.training for name, m in model.named_modules()}
    hooks = {
        name: [dict(getattr(m, h)) for h in ("_forward_hooks", "_forward_pre_hooks")]
        for name, m in model.named_modules()
    }
    grads = {name: p.grad for name, p in model.named_parameters()}
    keys = {name: set(m.__dict__) for name, m in model.named_modules()}
    return tensors, (places, modes, hooks, grads, keys)


def assert_unchanged(model, before):
    tensors, rest = snapshot(model)
    torch.testing.assert_close(tensors, before[0], rtol=0, atol=0, equal_nan=True)
    assert rest == before[1]


def inputs_of(model, layers, x):
    """What comes into each layer in one giant batch with the model in eval mode."""
    found, handles = {}, []
    for name in layers:

        def hear(module, args, name=name):
            found.setdefault(name, []).append(args[0].detach())

        handles.append(model.get_submodule(name).register_forward_pre_hook(hear))
    with torch.no_grad():
        copy_mode = [(m, m.training) for m in model.modules()]
        model.eval()(x)
        for module, mode in copy_mode:
            module.training = mode
    for handle in handles:
        handle.remove()
    return {name: torch.cat(xs) for name, xs in found.items()}


def mean_and_var(x):
    """Of (N, C, ...), by definition; unbiased."""
    rows = x.to(WIDE).movedim(1, 0).flatten(1)
    mean = rows.mean(1)
    return mean, ((rows - mean[:, None]) ** 2).sum(1) / (rows.shape[1] - 1)


def assert_statistics(layer, mean, var, rtol=1e-12):
    torch.testing.assert_close(layer.running_mean.to(WIDE), mean, rtol=rtol, atol=rtol)
    torch.testing.assert_close(layer.running_var.to(WIDE), var, rtol=rtol, atol=rtol)


NORMS = ["1", "4.bn1", "4.bn2", "4.shortcut.1"]


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(60,), (1,) * 60, (32, 28), (59, 1), (7, 0, 50, 3)])
def test_the_first_norm_has_the_statistics_of_one_giant_batch(sizes):
    net, x = network(), numbers(0, 60, 3, 7, 5)
    shifts = recalibrate(net, cuts(x, *sizes))
    assert_statistics(net[1], *mean_and_var(net[0](x).detach()))
    assert [s.name for s in shifts] == NORMS
    assert shifts[0].elements == 60 * 5 * 3
    assert shifts.batches == sum(size > 0 for size in sizes)
    assert int(net[1].num_batches_tracked) == shifts.batches


def test_averages_of_variances_are_told_from_the_variance():
    """The other methods must not pass the test of the exact one."""
    x = torch.cat([numbers(0, 30, 4), numbers(1, 10, 4, mean=5)])
    layer = nn.BatchNorm1d(4).double()
    recalibrate(layer, cuts(x, 30, 10), "cumulative")
    with pytest.raises(AssertionError):
        assert_statistics(layer, *mean_and_var(x), rtol=0.1)
    recalibrate(layer, cuts(x, 30, 10))
    assert_statistics(layer, *mean_and_var(x))


def test_a_mean_far_from_zero():
    x = numbers(0, 512, 3, 4, mean=1e4, std=1.0)
    layer = nn.BatchNorm1d(3).double()
    recalibrate(layer, cuts(x, 100, 300, 112))
    assert_statistics(layer, *mean_and_var(x), rtol=1e-11)
    # In float32 too: nothing but the input itself is rounded.
    narrow = nn.BatchNorm1d(3)
    recalibrate(narrow, cuts(x.float(), 100, 300, 112))
    assert_statistics(narrow, *mean_and_var(x.float()), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_models_accumulate_in_float64(dtype):
    x = numbers(0, 4000, 3, mean=100.0, std=1.0, dtype=dtype)
    layer = nn.BatchNorm1d(3).to(dtype)
    recalibrate(layer, cuts(x, *[40] * 100))
    mean, var = mean_and_var(x)
    assert torch.equal(layer.running_mean, mean.to(dtype))
    assert torch.equal(layer.running_var, var.to(dtype))


def test_large_batches_are_cut_where_they_are_read():
    x = numbers(0, 9, 8, 128, 128, mean=50.0)  # more than is widened at once
    layer = nn.BatchNorm2d(8).double()
    recalibrate(layer, [x])
    assert_statistics(layer, *mean_and_var(x), rtol=1e-11)


def test_what_follows_sees_the_batchs_own_statistics():
    """As in training, but for dropout."""
    net, x = network(), numbers(0, 40, 3, 7, 5)
    reference = copy.deepcopy(net)
    for module in reference.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    reference(x)
    recalibrate(net, [x])
    for name in NORMS:
        layer, other = net.get_submodule(name), reference.get_submodule(name)
        assert_statistics(layer, other.running_mean, other.running_var, rtol=1e-10)


# --- torch.nn's rules -----------------------------------------------------------------------------


def test_cumulative_is_update_bn():
    net, x = network(), numbers(0, 50, 3, 7, 5)
    net[3].p = 0.0  # update_bn leaves dropout on
    reference = copy.deepcopy(net)
    batches = cuts(x, 20, 20, 10)
    torch.optim.swa_utils.update_bn(batches, reference)
    shifts = recalibrate(net, batches, "cumulative")
    torch.testing.assert_close(net.state_dict(), reference.state_dict(), rtol=1e-10, atol=1e-10)
    assert int(net[1].num_batches_tracked) == shifts.batches == 3


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_ema_is_a_training_epoch_that_learns_nothing(momentum):
    net, x = network(), numbers(0, 50, 3, 7, 5)
    net[3].p = 0.0
    net[4].bn1.momentum = None if momentum is None else 0.9  # cumulative, from 7 batches on
    reference = copy.deepcopy(net)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d) and momentum is not None:
            module.momentum = momentum
    for part in cuts(x, 20, 20, 10):
        reference.train()(part)
    recalibrate(net, cuts(x, 20, 20, 10), "ema", momentum=momentum)
    torch.testing.assert_close(net.state_dict(), reference.state_dict(), rtol=1e-10, atol=1e-10)
    assert int(net[1].num_batches_tracked) == 10


def test_instance_norms_average_over_samples():
    x = numbers(0, 12, 3, 6, 5) * torch.arange(1, 13)[:, None, None, None]
    for layer in (nn.InstanceNorm2d(3, track_running_stats=True).double(),
                  nt.InstanceNorm2d(3, track_running_stats=True).double()):  # fmt: skip
        recalibrate(layer, cuts(x, 5, 7))
        assert_statistics(layer, x.mean((2, 3)).mean(0), x.var((2, 3)).mean(0))
        assert int(layer.num_batches_tracked) == 0
        reference = nn.InstanceNorm2d(3, track_running_stats=True).double()
        reference.load_state_dict(layer.state_dict())
        recalibrate(layer, cuts(x, 5, 7), "ema")
        for part in cuts(x, 5, 7):
            reference(part)
        torch.testing.assert_close(layer.state_dict(), reference.state_dict(), rtol=1e-11, atol=0)


# --- layer after layer ----------------------------------------------------------------------------


def consistency(net, x):
    """How far the buffers are from what the layers meet in eval mode."""
    worst = 0.0
    for name, seen in inputs_of(net, NORMS, x).items():
        layer = net.get_submodule(name)
        for got, want in zip((layer.running_mean, layer.running_var), mean_and_var(seen),
                             strict=True):  # fmt: skip
            worst = max(worst, float((got - want).abs().max()))
    return worst


def test_layerwise_agrees_with_eval_mode():
    net, x = network(), numbers(0, 48, 3, 7, 5)
    shifts = recalibrate(net, cuts(x, 10, 30, 8), layerwise=True)
    assert consistency(net, x) < 1e-12
    assert shifts.passes == 3  # of four norms, two lie beside each other
    one_pass = network()
    recalibrate(one_pass, cuts(x, 10, 30, 8))
    assert consistency(one_pass, x) > 1e-3


class Branching(Residual):
    """What torch.fx cannot follow."""

    def forward(self, x):
        return super().forward(x) if x.sum() < math.inf else x


def test_layerwise_where_the_graph_is_not_known():
    net, x = network(), numbers(0, 48, 3, 7, 5)
    net[4].__class__ = Branching
    shifts = recalibrate(net, cuts(x, 10, 30, 8), layerwise=True)
    assert consistency(net, x) < 1e-12
    assert shifts.passes == 4


def test_layers_that_are_called_twice():
    shared = nn.BatchNorm1d(4).double()
    both = nn.ModuleDict({"a": shared, "b": nn.BatchNorm1d(4).double()})
    x = numbers(0, 40, 4)

    def forward(model, batch):
        return model["b"](model["a"](batch) + model["a"](3 * batch))

    shifts = recalibrate(both, cuts(x, 15, 25), layerwise=True, forward=forward)
    assert_statistics(shared, *mean_and_var(torch.cat([x, 3 * x])))
    assert shifts[0].elements == 80
    assert int(shared.num_batches_tracked) == 4
    both.eval()
    y = both["a"](x) + both["a"](3 * x)
    assert_statistics(both["b"], *mean_and_var(y.detach()))
    chain = nn.Sequential(shared, nn.ReLU(), shared)
    shifts = recalibrate(chain, cuts(x, 15, 25), layerwise=True)
    assert len(shifts) == 1
    assert "one call follows from another" in shifts[0].note


def test_layerwise_refuses_what_can_be_read_once():
    net = network()
    before = snapshot(net)
    with pytest.raises(DataError, match=r"layerwise=True .* a function that makes a new iterator"):
        recalibrate(net, iter([numbers(0, 8, 3, 7, 5)]), layerwise=True)
    assert_unchanged(net, before)
    recalibrate(net, lambda: iter([numbers(0, 8, 3, 7, 5)]), layerwise=True)
    assert consistency(net, numbers(0, 8, 3, 7, 5)) < 1e-12


def test_layerwise_refuses_data_that_change_their_length():
    net, passes = network(), iter([1, 3, 2, 2])

    def shrinking():
        return iter([numbers(i, 8, 3, 7, 5) for i in range(next(passes))])

    before = snapshot(net)
    with pytest.raises(DataError, match="3 batches, then 2"):
        recalibrate(net, shrinking, layerwise=True)
    assert_unchanged(net, before)


# --- all or nothing -------------------------------------------------------------------------------


def failing(error, after=2):
    def data():
        for i in range(after):
            yield numbers(i, 8, 3, 7, 5)
        raise error

    return data


class Short:
    """Says that it has more than it gives."""

    def __len__(self):
        return 5

    def __iter__(self):
        return (numbers(i, 8, 3, 7, 5) for i in range(3))


NAN = [numbers(0, 8, 3, 7, 5), torch.full((8, 3, 7, 5), math.nan, dtype=WIDE)]


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        (failing(KeyboardInterrupt()), {}, KeyboardInterrupt, None),
        (failing(OSError("disk gone")), {}, OSError, "disk gone"),
        (Short(), {}, DataError, "received 3 batches, expected 5, by their length"),
        (NAN[:1], {"limit": 2}, DataError, "received 1 batches, expected 2, as limit= asks"),
        (NAN, {}, NonFiniteError, "at '1' in batch 2"),
        ([], {}, DataError, "gave no batch"),
        ([torch.empty(0, 3, 7, 5)], {}, DataError, "No norm was measured"),
        ([numbers(0, 8, 4, 7, 5)], {}, DataError, "does not take this batch"),
        ([{"nothing": 1}], {}, DataError, "holds no tensor"),
    ],
    ids=["ctrl-c", "loader", "short", "limit", "nan", "empty", "no samples", "shape", "no tensor"],
)
def test_whatever_fails_leaves_the_model_as_it_was(data, options, error, words, layerwise):
    net = network().train()
    net[4].bn2.eval()
    net[7].weight.grad = torch.ones(2, 4, dtype=WIDE)
    net[4].register_forward_pre_hook(lambda *_: None)
    before = snapshot(net)
    with pytest.raises(error, match=words):
        recalibrate(net, data, layerwise=layerwise, **options)
    assert_unchanged(net, before)


def test_an_interrupt_while_writing_leaves_all_as_it_was(monkeypatch):
    from normkit.models.recalibration import target

    net = network()
    before, writes = snapshot(net), []

    def interrupt(self):
        writes.append(self)
        if len(writes) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(target.Change, "settle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(net, [numbers(0, 8, 3, 7, 5)])
    assert_unchanged(net, before)


def test_success_changes_statistics_and_nothing_else():
    net = network().train()
    before = snapshot(net)
    recalibrate(net, [numbers(0, 8, 3, 7, 5)])
    tensors, rest = snapshot(net)
    assert rest == before[1]
    changed = {k for k, v in tensors.items() if not torch.equal(v, before[0][k])}
    endings = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{name}.{ending}" for name in NORMS for ending in endings}


class Counting(Residual):
    """A forward with effects of its own."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        self.seen.add_(len(x))
        return super().forward(x)


def test_what_a_forward_does_to_its_model_is_undone():
    net = network()
    net[4].__class__ = Counting
    net[4].register_buffer("seen", torch.tensor(3))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    loader = torch.utils.data.DataLoader(numbers(0, 8, 3, 7, 5), batch_size=4, shuffle=True)
    recalibrate(net, loader)
    assert int(net[4].seen) == 3
    assert not hasattr(net[4], "calls")
    assert torch.equal(torch.rand(1), expected)


def test_a_batch_with_nan_can_be_left_out():
    net, reference = network(), network()
    recalibrate(reference, NAN[:1])
    shifts = recalibrate(net, NAN, on_nonfinite="skip")
    assert (shifts.batches, shifts.skipped) == (2, 1)
    assert "1 skipped" in str(shifts)
    state = net.state_dict()
    torch.testing.assert_close(state, reference.state_dict(), rtol=0, atol=0)
    before = snapshot(net)
    with pytest.raises(DataError, match="1 of them skipped"):
        recalibrate(net, NAN[1:], on_nonfinite="skip")
    assert_unchanged(net, before)


def test_buffers_that_are_nan_are_repaired():
    net, x = network(), numbers(0, 30, 3, 7, 5)
    net[1].running_var.fill_(math.nan)
    shifts = recalibrate(net, [x])
    assert_statistics(net[1], *mean_and_var(net[0](x).detach()))
    assert shifts[0].divergence == math.inf


def test_buffers_that_cannot_hold_the_result():
    layer = nn.BatchNorm1d(2).half()
    before = snapshot(layer)
    with pytest.raises(NonFiniteError, match=r"at most 6\.55e"):
        recalibrate(layer, [torch.tensor([[-6e4, 1], [6e4, 2]], dtype=torch.float16)])
    assert_unchanged(layer, before)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mean"}, {"on_nonfinite": "ignore"}, {"momentum": 0.1}, {"limit": 0},
        {"method": "ema", "momentum": 1.5}, {"limit": True},
    ],
)  # fmt: skip
def test_options_are_checked(options):
    net = network()
    before = snapshot(net)
    with pytest.raises(OptionError):
        recalibrate(net, [numbers(0, 8, 3, 7, 5)], **options)
    assert_unchanged(net, before)


# --- small batches --------------------------------------------------------------------------------


def test_single_elements():
    x = numbers(0, 20, 4)
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    recalibrate(net, cuts(x, *[1] * 20))
    assert_statistics(net[0], *mean_and_var(x))
    # Behind it are not β and nothing else: one element is normalized with what was stored.
    assert_statistics(net[2], *mean_and_var(net[1](x / math.sqrt(1 + 1e-5)).detach()))
    for method in ("ema", "cumulative"):
        before = snapshot(net)
        with pytest.raises(DataError, match="one element a channel"):
            recalibrate(net, cuts(x, 19, 1), method)
        assert_unchanged(net, before)


def test_limit_counts_batches():
    net, x = nn.BatchNorm1d(4).double(), numbers(0, 20, 4)
    taken = []

    def data():
        for part in cuts(x, 5, 5, 10):
            taken.append(len(part))
            yield part

    recalibrate(net, data, limit=2)
    assert_statistics(net, *mean_and_var(x[:10]))
    assert taken == [5, 5]


# --- kinds of layers and models -------------------------------------------------------------------


def test_frozen_statistics_stand_still_unless_asked():
    net, x = network(), numbers(0, 30, 3, 7, 5)
    nt.freeze(net[4], affine=False)
    kept = net[4].bn1.running_mean.clone()
    shifts = recalibrate(net, [x])
    assert [s.name for s in shifts] == ["1"]
    assert torch.equal(net[4].bn1.running_mean, kept)
    assert set(shifts.left) == set(NORMS) - {"1"}
    assert "left as it was: its statistics are frozen" in str(shifts)
    recalibrate(net, [x], include_frozen=True, layerwise=True)
    assert consistency(net, x) < 1e-12
    assert net[4].bn1.statistics_frozen


class FrozenBatchNorm2d(nn.Module):
    """As detectron2's: four buffers."""

    def __init__(self, features, eps=1e-5):
        super().__init__()
        self.num_features, self.eps = features, eps
        self.register_buffer("weight", torch.full((features,), 2.0))
        self.register_buffer("bias", torch.ones(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[None, :, None, None] + shift[None, :, None, None]


def test_frozen_layers_of_others():
    net = nn.Sequential(FrozenBatchNorm2d(3), nn.BatchNorm2d(3)).double()
    x = numbers(0, 30, 3, 4, 4)
    assert [s.name for s in recalibrate(net, [x])] == ["1"]
    recalibrate(net, [x], include_frozen=True)
    assert_statistics(net[0], *mean_and_var(x))
    # The layer behind it has seen it with the batch's statistics.
    torch.testing.assert_close(net[1].running_mean, torch.ones(3, dtype=WIDE))


@pytest.mark.parametrize("options", [{"ghost": 4}, {"renorm": True}, {"mean_only": True},
                                     {"running": "population"}])  # fmt: skip
def test_normkit_options(options):
    net = nn.Sequential(nt.BatchNorm1d(4, **options), nn.BatchNorm1d(4)).double()
    x = numbers(0, 30, 4)
    recalibrate(net, cuts(x, 11, 19), layerwise=True)
    assert_statistics(net[0], *mean_and_var(x))
    assert_statistics(net[1], *mean_and_var(net.eval()[0](x).detach()))
    if "running" in options:
        assert net[0].num_elements_tracked.tolist() == [30] * 4
        more = numbers(1, 12, 4)
        net.train()(more)  # goes on as if it had seen all
        assert_statistics(net[0], *mean_and_var(torch.cat([x, more])))


def test_masks_lengths_and_activations_count():
    layer, x = nt.BatchNorm1d(4).double(), numbers(0, 10, 4, 6)
    mask = torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    batches = [{"input": x[:7], "mask": mask[:7]}, {"input": x[7:], "mask": mask[7:]}]
    recalibrate(layer, batches)
    kept = x.movedim(1, 2)[mask].T[None]
    assert_statistics(layer, *mean_and_var(kept))
    lengths = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 1, 2])
    recalibrate(layer, [{"input": x, "lengths": lengths, "input_activation": "relu"}])
    inside = torch.arange(6) < lengths[:, None]
    assert_statistics(layer, *mean_and_var(x.relu().movedim(1, 2)[inside].T[None]))


def test_domains():
    layer, x = nt.BatchNorm1d(4, domains=3).double(), numbers(0, 30, 4)
    domain = torch.arange(30) % 2
    shifts = recalibrate(layer, [{"input": x, "domain": domain}, {"input": x + 9, "domain": 0}])
    assert [s.domain for s in shifts] == [0, 1]
    for row, seen in ((0, torch.cat([x[domain == 0], x + 9])), (1, x[domain == 1])):
        mean, var = mean_and_var(seen)
        torch.testing.assert_close(layer.running_mean[row], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.running_var[row], var, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.running_mean[2], torch.zeros(4, dtype=WIDE))
    assert layer.num_batches_tracked.tolist() == [2, 1, 0]


@pytest.mark.parametrize("make", [nn.SyncBatchNorm, nt.SyncBatchNorm, nt.AdaptiveBatchNorm1d])
def test_other_batch_norms(make):
    layer, x = make(4).double(), numbers(0, 30, 4)
    recalibrate(layer, cuts(x, 11, 19))
    assert_statistics(layer, *mean_and_var(x))


def test_split_norms_take_clean_data():
    layer, x = nt.SplitBatchNorm1d(4).double(), numbers(0, 30, 4)
    shifts = recalibrate(layer, [x])
    assert_statistics(layer, *mean_and_var(x))
    assert shifts.left == {"aux_bn.0": "the model did not call it"}


def test_held_statistics_stay_out_of_it():
    layer, x = nt.BatchNorm1d(4).double(), numbers(0, 30, 4)
    with nt.hold_statistics(layer) as held:
        recalibrate(layer, [x])
        assert_statistics(layer, *mean_and_var(x))
        held.commit()
    assert_statistics(layer, *mean_and_var(x))


def test_wrapped_and_compiled_models():
    x = numbers(0, 30, 3, 7, 5)
    plain = network()
    recalibrate(plain, [x])
    for wrap in (
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: (m.compile(backend="eager"), m)[1],
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ):
        net = network()
        model = wrap(net)
        with torch.no_grad():
            model.eval()(x)  # compiled now
        shifts = recalibrate(model, [x])
        assert [s.name for s in shifts] == NORMS
        torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)
    inner = network()
    inner[4] = torch.compile(inner[4], backend="eager")
    with torch.no_grad():
        inner.eval()(x)
    recalibrate(inner, [x])
    torch.testing.assert_close(inner[4]._orig_mod.state_dict(), plain[4].state_dict())


def test_accelerated_models():
    x = numbers(0, 30, 3, 7, 5)
    plain, quick = network(), nt.accelerate(network(), example=x[:4], report=None)
    recalibrate(plain, [x])
    recalibrate(quick, [x])
    torch.testing.assert_close(plain.state_dict(), quick.state_dict(), rtol=1e-9, atol=1e-9)


def test_models_without_running_statistics_read_no_data():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4),
                        nn.BatchNorm1d(4, track_running_stats=False))  # fmt: skip
    shifts = recalibrate(net, failing(AssertionError("read"), after=0))
    assert shifts == []
    assert str(shifts) == "nothing was recalibrated"


def test_models_that_cannot_be_measured():
    with pytest.raises(ModelError, match=r"is lazy .* Run an input"):
        recalibrate(nn.Sequential(nn.LazyBatchNorm1d()), [numbers(0, 8, 4)])
    with pytest.raises(ModelError, match="meta device"):
        recalibrate(nn.BatchNorm1d(4, device="meta"), [numbers(0, 8, 4)])
    odd = nn.BatchNorm1d(4)
    odd.forward = lambda pair: pair[0]
    with pytest.raises(ModelError, match="received list at ''"):
        recalibrate(odd, [[numbers(0, 8, 4)]], forward=lambda model, batch: model(batch))


def test_custom_forward_takes_anything():
    layer, x = nn.BatchNorm1d(4).double(), numbers(0, 30, 4)

    class Sample:
        def __init__(self, values):
            self.values = values

    recalibrate(layer, [Sample(x[:9]), Sample(x[9:])],
                forward=lambda model, batch: model(batch.values))  # fmt: skip
    assert_statistics(layer, *mean_and_var(x))


def test_autocast():
    net, x = network(torch.float32), numbers(0, 30, 3, 7, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        recalibrate(net, [x])
        y = net[0](x).detach()
    assert y.dtype is torch.bfloat16
    assert_statistics(net[1], *mean_and_var(y), rtol=1e-6)


def test_no_activation_is_kept():
    net, x = network(), numbers(0, 30, 3, 7, 5).requires_grad_()
    seen = []

    def forward(model, batch):
        seen.append(model(batch))

    recalibrate(net, [x], forward=forward)
    assert not seen[0].requires_grad


def test_shifts_tell_what_was_there():
    layer = nn.BatchNorm1d(2).double()
    x = numbers(0, 100, 2, mean=7.0, std=3.0)
    (shift,) = recalibrate(layer, x)
    mean, var = mean_and_var(x)
    assert shift.mean_before == [0.0, 0.0]
    assert shift.var_before == [1.0, 1.0]
    assert shift.mean_after == pytest.approx(mean.tolist())
    assert shift.var_after == pytest.approx(var.tolist())
    assert shift.worst == pytest.approx(float((mean / (var + 1e-5).sqrt()).max()))
    new = torch.distributions.Normal(mean, (var + 1e-5).sqrt())
    old = torch.distributions.Normal(torch.zeros(2).double(), math.sqrt(1 + 1e-5))
    kl = torch.distributions.kl_divergence(new, old)
    assert shift.divergence == pytest.approx(float(kl.max()))
    assert recalibrate(layer, x)[0].divergence == pytest.approx(0, abs=1e-12)


# --- ranks ----------------------------------------------------------------------------------------

LIMIT = 240  # seconds for the job, also on a busy machine


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each rank says of each check."""
    dist = pytest.importorskip("torch.distributed", reason="PyTorch has no torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("PyTorch was built without gloo")
    folder = tmp_path_factory.mktemp("recalibrating")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    size = recalibrate_at_work.SIZE
    logs = [folder / f"{rank}.log" for rank in range(size)]
    with contextlib.ExitStack() as stack:
        started = []
        for rank, log in enumerate(logs):
            command = [sys.executable, recalibrate_at_work.__file__, *map(str, (rank, size))]
            output = stack.enter_context(log.open("w"))
            started.append(
                subprocess.Popen(
                    [*command, str(store.port), str(folder)], stdout=output, stderr=output, env=env
                )
            )
        with contextlib.suppress(subprocess.TimeoutExpired):  # what is missing says where
            for process in started:
                process.wait(timeout=LIMIT)
        for process in started:
            process.kill()
            process.wait()
    results = [folder / f"{rank}.json" for rank in range(size)]
    return [
        (json.loads(r.read_text()) if r.exists() else {}, log.read_text()[-3000:])
        for r, log in zip(results, logs, strict=True)
    ]


@pytest.mark.parametrize("check", [check.__name__ for check in recalibrate_at_work.CHECKS])
def test_on_ranks(check, ranks):
    for rank, (found, log) in enumerate(ranks):
        if rank == recalibrate_at_work.DEAD and check == "a_rank_that_dies":
            assert check not in found
            continue
        assert check in found, f"rank {rank} did not come so far:\n{log}"
        assert found[check] is None, f"rank {rank}:\n{found[check]}"


class ChannelsLast(nn.Module):
    """A batch norm of the user's own, over the last axis."""

    def __init__(self, channels):
        super().__init__()
        self.eps, self.momentum = 1e-5, 0.1
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return self.weight * (x - self.running_mean) / (self.running_var + self.eps).sqrt()


def test_channels_on_the_last_axis():
    model, x = nn.Sequential(ChannelsLast(5)).eval(), torch.randn(64, 16, 5) + torch.arange(5.0)
    recalibrate(model, x)
    torch.testing.assert_close(model[0].running_mean, x.mean((0, 1)))


def test_an_axis_that_could_be_either_is_refused():
    """Nothing tells 16 positions from 16 channels; a guess would be wrong without a word."""
    model, x = nn.Sequential(ChannelsLast(16)).eval(), torch.randn(64, 16, 16)
    with pytest.raises(ModelError, match="channels"):
        recalibrate(model, x)
    assert (model[0].running_mean == 0).all()
    square = nn.Sequential(nn.BatchNorm2d(16)).eval()  # torch.nn's have them on axis 1
    recalibrate(square, x.unsqueeze(2) + torch.arange(16.0)[:, None, None])
    assert square[0].running_mean[-1] > 10


class Short:
    """An iterable that knows its length wrongly."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([torch.randn(4, 3) for _ in range(5)])


def test_data_longer_than_it_says_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with pytest.raises(DataError, match="behind their end"):
        recalibrate(model, Short())
    assert recalibrate(model, Short(), limit=5).batches == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_data_comes_in_the_models_dtype(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval().to(dtype)
    x = torch.randn(256, 3)
    recalibrate(model, x)
    with torch.no_grad():
        want = model[0](x.to(dtype)).double().mean(0)
    torch.testing.assert_close(model[1].running_mean.double(), want, rtol=1e-2, atol=1e-3)
