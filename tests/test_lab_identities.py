"""The lab's exact identities: they hold, and a layer that is slightly wrong breaks each of them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from normkit import torch as nkt
from normkit.lab.claims import TOPICS, find
from normkit.lab.data.images import Data
from normkit.lab.kit import invariances, residuals
from normkit.lab.kit.invariances import CHANGES, NORMS, invariance_table
from normkit.lab.kit.residuals import (
    CLEAR,
    EXACT,
    Pass,
    draw,
    kernels,
    largest,
    least,
    most,
    residual,
    through,
)
from normkit.lab.setup import Setup
from normkit.models import recalibrate
from normkit.models.folding import module as folding_module
from normkit.torch import beyond, native
from normkit.torch.beyond.standardized import ScaledWSConv2d

NAMES = TOPICS["Exact identities"]
SLIGHTLY = 1e-9


@pytest.fixture(scope="module")
def setup():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(180, 1, 4, 5, generator=generator)
    labels = torch.arange(180) % 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Setup(Data("noise", images, labels, images[:30], labels[:30], classes=3), seed=5)
    torch.set_num_threads(threads)


def part(claim):
    return import_module(f"normkit.lab.claims.{claim}")


# --- layers that are slightly wrong ---------------------------------------------------------------


def wrap(owner, name, change):
    """A break: the function's result goes through ``change(result, *arguments)``."""

    def apply(monkeypatch):
        right = getattr(owner, name)

        def wrong(*args, **kwargs):
            return change(right(*args, **kwargs), *args)

        monkeypatch.setattr(owner, name, wrong)

    return apply


def past(y, self, x, *_):
    return y + SLIGHTLY * x


def past_the_length(w, self, g, v):
    return w + SLIGHTLY * v


def leak(layer):
    """Some of the input goes past the norm."""
    return wrap(layer, "forward", past)


def leak_if(condition):
    """The same for some batch norms only."""
    return wrap(
        nkt.BatchNorm1d, "forward",
        lambda y, self, x, *_: y + SLIGHTLY * x if condition(self) else y,
    )  # fmt: skip


def uneven(y, self, x, *_):
    """The place in the batch matters."""
    return y + SLIGHTLY * torch.arange(len(x)).reshape(-1, *[1] * (x.dim() - 1))


def drifting(y, self, *_):
    """Running statistics that are multiplied with each batch."""
    if self.training:
        self.running_mean.mul_(1 + SLIGHTLY)
        self.running_var.mul_(1 + SLIGHTLY)
    return y


def constant_statistics(claim):
    """Backward takes mean and variance for constants, the classical mistake."""

    def wrong(norm, x, *affine):
        moments = norm.moments(x.detach())
        mean, var = torch.as_tensor(moments.mean), torch.as_tensor(moments.var)
        if mean.shape != x.shape[1:2]:  # one set a channel is all that this can do
            return normalize(norm, x, *affine)
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = (x - mean.view(shape)) / (var + norm.eps).sqrt().view(shape)
        gamma, beta = (*affine, None, None)[:2]
        y = y if gamma is None else y * gamma.view(shape)
        return y if beta is None else y + beta.view(shape)

    normalize = residuals.normalize
    return lambda monkeypatch: monkeypatch.setattr(claim, "normalize", wrong)


def not_merged(merged, self, other):
    """What lies between the means is lost."""
    return nk.Moments(merged.count, merged.mean * (1 + SLIGHTLY), self.m2 + other.m2)


def larger(values):
    return values * (1 + SLIGHTLY)


def renormed(layer):
    return layer.options.renorm is not None and layer.training


def moving_averages(monkeypatch):
    """Each recalibration goes half of the way only."""
    half = partial(recalibrate, method="ema", momentum=0.5)
    monkeypatch.setattr(part("precise_limits"), "recalibrate", half)


def never_the_same(monkeypatch):
    """Moments that depend on how often they were taken."""
    calls = count(1)

    def moved(moments, *_):
        return nk.Moments(moments.count, moments.mean + SLIGHTLY * next(calls), moments.m2)

    wrap(nk.Norm, "moments", moved)(monkeypatch)


def by_one_part(w, module, *_):
    return w + SLIGHTLY * module.weight


def nudged(layer, *_):
    """Folded weights that are off by less than fold itself would notice."""
    bias = None if layer.bias is None else layer.bias * (1 + 1e-10)
    return type(layer)(layer.kind, layer.weight * (1 + 1e-10), bias, layer.groups, layer.opaque)


def refusing_nothing(plan, *_):
    return replace(plan, refused=())


BREAKS = [
    ("gradient_sums", "sum along", constant_statistics(residuals)),
    ("gradient_norm", "length theorem", constant_statistics(residuals)),
    ("gradient_norm", "room", wrap(residuals, "gradients", lambda d, *_: (2 * d[0], *d[1:]))),
    ("weight_scale", "radial", constant_statistics(part("weight_scale"))),
    ("weight_scale", "output gradients flipped",
     wrap(part("weight_scale"), "normalize", past)),
    ("undo", "undone twice", leak(nkt.BatchNorm2d)),
    ("bounded_outputs", "largest reached pairs",
     wrap(part("bounded_outputs"), "normalize", lambda y, *_: larger(y))),
    ("bounded_outputs", "pairs_dx", constant_statistics(part("bounded_outputs"))),
    ("growing_weights", "step all growth",
     wrap(torch.optim.SGD, "step", lambda _, self: [
         p.data.mul_(1 - 1e-2) for group in self.param_groups for p in group["params"]])),
    ("growing_weights", "step all", leak(nkt.BatchNorm1d)),
    ("redundant_bias", "output gradient", leak(nkt.BatchNorm1d)),
    ("limits_of_group_norm", "layer instance batch", leak(nkt.GroupNorm)),
    ("merged_moments", "mean spread synchronized", wrap(nk.Moments, "_merge_one", not_merged)),
    ("renorm_limits", "forward clipped constants", leak_if(renormed)),
    ("ghost_limits", "large", leak_if(lambda layer: layer.options.ghost is not None)),
    ("ghost_limits", "permuted", wrap(nkt.BatchNorm1d, "forward", uneven)),
    ("ghost_limits", "moments", leak(nkt.BatchNorm1d)),
    ("running_averages", "start averaged pooled", wrap(nkt.BatchNorm1d, "forward", drifting)),
    ("folding", "after weights before", wrap(folding_module, "changed", nudged)),
    ("folding", "refused", wrap(part("folding"), "plan_folds", refusing_nothing)),
    ("weight_norm_gradient", "along",
     wrap(beyond.WeightNorm, "forward", past_the_length)),
    ("weight_norm_gradient", "dg", wrap(beyond.WeightNorm, "forward", lambda w, *_: larger(w))),
    ("weight_norm_gradient", "standardized across",
     wrap(ScaledWSConv2d, "standardized_weight", by_one_part)),
    ("precise_limits", "whole training again", moving_averages),
    ("precise_limits", "first_settles last_settles", never_the_same),
    ("precise_limits", "first_in_parts", wrap(nk.Moments, "_merge_one", not_merged)),
    *[("invariances", norm, leak(layer)) for norm, layer in (
        ("batch norm", nkt.BatchNorm1d), ("layer norm", nkt.LayerNorm), ("RMS norm", nkt.RMSNorm))],
    ("invariances", "weight norm",
     wrap(beyond.WeightNorm, "forward", past_the_length)),
]  # fmt: skip


def broken_numbers(claim, names):
    """The criteria that a break is to break; of a row of the table, its ticks."""
    if claim.name == "invariances":
        return [n for n in claim.numbers if n.name.startswith(names) and n.at_most is not None]
    return [number for number in claim.numbers if number.name in names.split()]


@pytest.mark.parametrize("name", NAMES)
def test_identities_hold(name, setup):
    (claim,) = find([name])
    measured = claim.measure(setup)
    claim.check(measured)
    off = {n.name: measured.numbers[n.name] for n in claim.criteria
           if not n.holds(measured.numbers[n.name])}  # fmt: skip
    assert not off
    again = claim.measure(setup)
    assert again.numbers == measured.numbers
    assert all(type(value) is float for value in measured.numbers.values())


@pytest.mark.parametrize(
    ("name", "numbers", "wrong"), BREAKS, ids=[f"{name}-{numbers}" for name, numbers, _ in BREAKS]
)
def test_a_wrong_layer_breaks_them(name, numbers, wrong, setup, monkeypatch):
    (claim,) = find([name])
    expected = broken_numbers(claim, numbers)
    assert expected
    wrong(monkeypatch)
    measured = claim.measure(setup)
    assert all(map(math.isfinite, measured.numbers.values()))
    held = [n.name for n in expected if n.holds(measured.numbers[n.name])]
    assert not held


@pytest.mark.parametrize("name", NAMES)
def test_every_identity_has_been_broken(name):
    (claim,) = find([name])
    broken = {n.name for which, names, _ in BREAKS if which == name
              for n in broken_numbers(claim, names)}  # fmt: skip
    exact = {n.name for n in claim.criteria if n.at_most is not None or n.at_least != CLEAR}
    assert exact <= broken


# --- the table of invariances ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_table_of_invariances_holds(seed):
    table = invariance_table(seed)
    assert [row for row in table if not row.holds] == []
    assert len({(row.norm, row.transformation) for row in table}) == len(NORMS) * len(CHANGES)
    assert sum(row.expected for row in table) == 13
    assert table == invariance_table(seed)


def test_a_row_holds_only_where_the_measurement_is_clear():
    row = invariances.Row("norm", "change", expected=True, residual=1e-15)
    assert row.holds
    assert not replace(row, residual=1e-6).holds
    assert not replace(row, expected=False, residual=1e-6).holds
    assert not replace(row, residual=math.nan).holds


def test_data_with_equal_sums_hide_a_constant_from_batch_norm():
    """What the claim's caveat says: a cross is about data in general."""
    generator = torch.Generator().manual_seed(0)
    x = draw(generator, invariances.SAMPLES, invariances.INPUTS)
    x = x - x.mean(1, keepdim=True) + 1
    w = draw(generator, invariances.UNITS, invariances.INPUTS)
    change = invariances._Change(2.0, torch.full((invariances.INPUTS,), 0.7), 0)
    changed = CHANGES["all units' weights plus the same vector"](change, w, x)
    moved = {}
    for norm, (normed, _) in NORMS.items():
        with kernels():
            before, after = (invariances._output(normed, *pair) for pair in ((w, x), changed))
        moved[norm] = residual(after, before)
    assert moved["batch norm"] <= EXACT
    assert moved["RMS norm"] >= CLEAR


# --- what the identities share --------------------------------------------------------------------


def test_residuals_are_relative_to_the_largest():
    assert residual([1.0, 4.5], [1.0, 4.0]) == 0.125
    assert residual([0.5, -1.0], 0, [2.0, 4.0]) == 0.25
    assert largest([torch.tensor(1.0), torch.tensor(3.0)], [torch.tensor(1.0)] * 2) == 2.0
    assert math.isnan(residual([1.0, math.nan], [1.0, 1.0]))
    with pytest.raises(ValueError, match="zip"):
        largest([torch.ones(1)], [])


def test_one_bad_value_of_several_is_not_lost():
    good, bad = torch.ones(2), torch.tensor([1.0, math.nan])
    assert math.isnan(largest([good, bad], [good, good]))
    assert math.isnan(most([0.0, math.nan]))
    assert math.isnan(least([1.0, math.nan]))
    assert (most([1.0, 2.0]), least([1.0, 2.0])) == (2.0, 1.0)


def test_identities_go_through_the_kernels(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("PyTorch's operator was called")

    x = draw(torch.Generator().manual_seed(0), 8, 3)
    with kernels():
        monkeypatch.setattr(nn.functional, "batch_norm", refuse)
        nkt.BatchNorm1d(3).double()(x)
    with pytest.raises(AssertionError, match="was called"):
        nkt.BatchNorm1d(3).double()(x)
    monkeypatch.undo()
    nkt.use_native_up_to(7)
    try:
        with pytest.raises(ZeroDivisionError), kernels():
            raise ZeroDivisionError
        assert native._forced == 7
    finally:
        nkt.use_native_up_to(None)


@pytest.mark.parametrize("norm", [nk.BatchNorm(eps=0.1), nk.LayerNorm(), nk.GroupNorm(2)])
def test_a_pass_says_what_it_did(norm):
    with kernels():
        one = Pass.of(norm, torch.Generator().manual_seed(1), 5, 4, 3)
    sets = {
        "batch": lambda v: v.transpose(1, 0, 2).reshape(4, -1),
        "layer": lambda v: v.reshape(5, -1),
        "group": lambda v: v.reshape(5, 2, -1),
    }["batch" if norm.samples == "all" else "layer" if norm.channels == "all" else "group"]
    x = sets(one.x.numpy())
    assert one.count == x.shape[-1]
    np.testing.assert_allclose(one.var, x.var(-1), rtol=1e-13)
    np.testing.assert_allclose(one.sums(one.g), sets(one.g.numpy()).sum(-1), rtol=1e-12)
    x_hat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    np.testing.assert_allclose(sets(one.x_hat.numpy()), x_hat, rtol=1e-12, atol=1e-13)
    gamma = one.gamma.numpy()[:, None]
    np.testing.assert_allclose(one.g_hat, one.g.numpy() * gamma, rtol=1e-15)
    want = (one.g * one.x_hat).sum((0, 2))
    np.testing.assert_allclose(one.dgamma, want, rtol=1e-12)


def test_gradients_through_a_layer_come_in_the_parameters_order():
    layer = nn.Linear(2, 1).double()
    x, g = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0]]).double()
    y, dx, dw, db = through(layer, x, g)
    assert torch.equal(y, layer(x))
    assert torch.equal(dx, 3 * layer.weight)
    assert torch.equal(dw, 3 * x)
    assert db.tolist() == [3.0]
