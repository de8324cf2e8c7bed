"""What normkit's layers do beyond torch.nn's, each against the definition written out."""

import copy
import math
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit as nk  # noqa: E402
import normkit.torch as nt  # noqa: E402
from normkit.errors import NonFiniteError, OptionError, ShapeError  # noqa: E402

DOUBLE = torch.float64


@pytest.fixture(autouse=True, params=["kernels", "as it comes"])
def _way(request):
    torch.manual_seed(0)
    nt.use_native_up_to(0 if request.param == "kernels" else None)
    yield
    nt.use_native_up_to(None)


def batch(*shape, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype) * 2 + 1


def standardized(x, eps=1e-5, weight=None):
    """Over all axes but the channels', with weights that say what counts."""
    axes = [a for a in range(x.dim()) if a != 1]
    weight = torch.ones_like(x) if weight is None else weight.expand_as(x).to(x.dtype)
    count = weight.sum(axes, keepdim=True)
    mean = (x * weight).sum(axes, keepdim=True) / count
    var = ((x - mean) ** 2 * weight).sum(axes, keepdim=True) / count
    return (x - mean) / torch.sqrt(var + eps), count.flatten(), mean.flatten(), var.flatten()


# --- ghost, renorm, mean-only ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 7, 50])
def test_ghost_batches_with_a_remainder(size):
    layer, x = nt.BatchNorm1d(4, ghost=size).double(), batch(11, 4, 3)
    want = torch.cat([standardized(part)[0] for part in x.split(size)])
    torch.testing.assert_close(layer(x), want)
    whole = torch.nn.BatchNorm1d(4).double()
    whole(x)
    # The parts' moments merge: the running statistics are the whole batch's.
    torch.testing.assert_close(layer.running_mean, whole.running_mean)
    torch.testing.assert_close(layer.running_var, whole.running_var)
    torch.testing.assert_close(layer.eval()(x), whole.eval()(x))


def test_a_ghost_batch_of_a_single_element_is_an_error_that_says_what_to_do():
    layer = nt.BatchNorm1d(4, ghost=5)
    with pytest.raises(ValueError, match=r"(?s)more than 1 value.*ghost batches of 5.*running"):
        layer(torch.randn(11, 4))
    assert layer(torch.randn(10, 4)).shape == (10, 4)


def test_renorm_follows_its_schedule():
    schedule = nt.RenormSchedule(r_max=2.0, d_max=1.0, start=1, r_end=3, d_end=5)
    layer, x = nt.BatchNorm1d(4, renorm=schedule, momentum=0.5).double(), batch(8, 4)
    mean, var = torch.zeros(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE)
    for step, (r_max, d_max) in enumerate([(1, 0), (1, 0), (1.5, 0.25), (2, 0.5), (2, 0.75)]):
        y = layer(x)
        x_hat, _, m, v = standardized(x)
        sigma = torch.sqrt(var + 1e-5)
        r = torch.clamp(torch.sqrt(v + 1e-5) / sigma, 1 / r_max, r_max)
        d = torch.clamp((m - mean) / sigma, -d_max, d_max)
        torch.testing.assert_close(y, x_hat * r + d, msg=f"step {step}")
        mean, var = mean.lerp(m, 0.5), var.lerp(v * 8 / 7, 0.5)
        x = x + 1
    assert not torch.allclose(y, x_hat)


def test_mean_only():
    layer, x = nt.BatchNorm2d(3, mean_only=True).double(), batch(5, 3, 4, 4)
    torch.testing.assert_close(layer(x), x - x.mean((0, 2, 3), keepdim=True))
    layer.eval()
    torch.testing.assert_close(layer(x), x - layer.running_mean.view(1, 3, 1, 1))


# --- running statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("ghost", [None, 3])
def test_population_statistics_are_those_of_everything_seen(ghost):
    layer = nt.BatchNorm1d(4, running="population", ghost=ghost).double()
    parts = [batch(n, 4, 2) + i for i, n in enumerate([5, 1, 20, 3])]
    for part in parts:
        layer(part)
    rows = torch.cat(parts).permute(0, 2, 1).reshape(-1, 4)
    torch.testing.assert_close(layer.running_mean, rows.mean(0))
    torch.testing.assert_close(layer.running_var, rows.var(0))
    assert layer.num_elements_tracked.tolist() == [58] * 4
    layer.reset_running_stats()
    assert not layer.num_elements_tracked.any()


def test_cumulative_is_torch_nns_momentum_of_none():
    ours = nt.BatchNorm1d(4, running="cumulative").double()
    theirs = torch.nn.BatchNorm1d(4, momentum=None).double()
    for _ in range(3):
        x = batch(6, 4)
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_population_layer_takes_torch_nns_state():
    theirs, ours = torch.nn.BatchNorm1d(4), nt.BatchNorm1d(4, running="population")
    theirs(torch.randn(9, 4))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", ["ema", "cumulative", "population"])
def test_a_batch_that_is_not_finite(bad, rule):
    layers = {
        way: nt.BatchNorm1d(3, running=rule, on_nonfinite=way).double()
        for way in ("propagate", "skip", "raise")
    }
    x, ruined = batch(6, 3), batch(6, 3)
    ruined[2, 1] = bad
    before = {}
    for way, layer in layers.items():
        layer(x)
        before[way] = copy.deepcopy(layer.state_dict())
    layers["propagate"](ruined)
    assert not layers["propagate"].running_mean.isfinite().all()
    assert not layers["skip"](ruined).isfinite().all()
    torch.testing.assert_close(layers["skip"].state_dict(), before["skip"], rtol=0, atol=0)
    with pytest.raises(NonFiniteError, match=r"(?s)1 of 3 channels.*channel 1.*unchanged.*skip"):
        layers["raise"](ruined)
    torch.testing.assert_close(layers["raise"].state_dict(), before["raise"], rtol=0, atol=0)


def test_small_batches_may_take_the_running_statistics():
    layer = nt.BatchNorm1d(3, on_small_batch="running").double()
    for _ in range(3):
        layer(batch(8, 3))
    before = copy.deepcopy(layer.state_dict())
    one = batch(1, 3).requires_grad_()
    y = layer(one)
    torch.testing.assert_close(y, copy.deepcopy(layer).eval()(one))
    y.sum().backward()
    assert one.grad.abs().min() > 0
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    ghost = nt.BatchNorm1d(3, ghost=4, on_small_batch="running").double()
    ghost.load_state_dict(before)
    x = batch(9, 3)
    want = torch.cat([standardized(p)[0] for p in x[:8].split(4)] + [layer.eval()(x[8:])])
    torch.testing.assert_close(ghost(x), want)
    assert int(ghost.num_batches_tracked) == int(before["num_batches_tracked"]) + 1


# --- masks, conditions, domains -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mask", "lengths"])
def test_masked_batch_norm(how):
    layer, x = nt.BatchNorm1d(3).double(), batch(4, 3, 5)
    lengths = torch.tensor([5, 2, 0, 3])
    mask = torch.arange(5) < lengths[:, None]
    y = layer(x, **({"mask": mask} if how == "mask" else {"lengths": lengths}))
    want, count, mean, var = standardized(x, weight=mask[:, None])
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var * count / (count - 1))


def test_a_mask_that_leaves_nothing_moves_nothing():
    layer, x = nt.BatchNorm1d(3).double(), batch(4, 3, 5)
    y = layer(x, mask=torch.zeros(4, 5, dtype=torch.bool))
    assert not y.any()
    assert not layer.running_mean.any()
    assert int(layer.num_batches_tracked) == 0


def test_masks_on_the_other_norms():
    x, mask = batch(4, 6, 5), torch.rand(4, 5) > 0.3
    weight = mask[:, None].expand_as(x)
    for layer, groups in ((nt.InstanceNorm1d(6), 6), (nt.GroupNorm(2, 6), 2)):
        parts = [
            standardized(one.reshape(1, -1, one.shape[-2] * one.shape[-1]).transpose(0, 1),
                         weight=w.reshape(1, -1, one.shape[-2] * one.shape[-1]).transpose(0, 1))[0]
            for one, w in zip(x.reshape(4 * groups, 1, -1, 5), weight.reshape(4 * groups, 1, -1, 5),
                              strict=True)
        ]  # fmt: skip
        want = torch.cat(parts).reshape(x.shape)
        torch.testing.assert_close(layer.double()(x, mask=mask), want)
    tokens, valid = batch(4, 5, 6), torch.rand(4, 5, 6) > 0.3
    for layer, centred in ((nt.LayerNorm(6), True), (nt.RMSNorm(6, eps=1e-5), False)):
        count = valid.sum(-1, keepdim=True).clamp(min=1)
        mean = (tokens * valid).sum(-1, keepdim=True) / count if centred else 0.0
        var = ((tokens - mean) ** 2 * valid).sum(-1, keepdim=True) / count
        want = (tokens - mean) / torch.sqrt(var + 1e-5)
        few = valid.sum(-1) < (2 if centred else 1)
        want[few] = 0
        torch.testing.assert_close(layer.double()(tokens, mask=valid), want)
    by_length = nt.LayerNorm(6).double()(tokens, lengths=torch.tensor([5, 0, 3, 1]))
    inside = torch.arange(5) < torch.tensor([5, 0, 3, 1])[:, None]
    plain = torch.nn.functional.layer_norm(tokens, (6,))
    torch.testing.assert_close(by_length, torch.where(inside[..., None], plain, 0.0))


@pytest.mark.parametrize("kind", [nt.BatchNorm2d, nt.InstanceNorm2d])
def test_conditional_scale_and_shift(kind):
    layer, x = kind(3, affine=False).double(), batch(4, 3, 5, 5)
    gamma, beta = batch(4, 3).requires_grad_(), batch(4, 3).requires_grad_()
    want = gamma[:, :, None, None] * layer(x) + beta[:, :, None, None]
    y = layer(x, weight=gamma, bias=beta)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, (gamma, beta), dy)
    torch.testing.assert_close(got, torch.autograd.grad(want, (gamma, beta), dy))


def test_conditional_layer_norm_of_tokens():
    layer, x = nt.LayerNorm(6, elementwise_affine=False).double(), batch(4, 5, 6)
    gamma, beta = batch(4, 6), batch(4, 6)
    want = gamma[:, None] * layer(x) + beta[:, None]
    torch.testing.assert_close(layer(x, weight=gamma, bias=beta), want)


def test_statistics_of_each_domain():
    layer = nt.BatchNorm1d(3, domains=2).double()
    alone = [nt.BatchNorm1d(3).double() for _ in range(2)]
    x, domain = batch(12, 3), torch.tensor([0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0])
    y = layer(x, domain=domain)
    for d in range(2):
        rows = domain == d
        torch.testing.assert_close(y[rows], alone[d](x[rows]))
        torch.testing.assert_close(layer.running_mean[d], alone[d].running_mean)
        torch.testing.assert_close(layer.running_var[d], alone[d].running_var)
    layer(x, domain=1)
    alone[1](x)
    torch.testing.assert_close(layer.running_var[1], alone[1].running_var)
    assert layer.num_batches_tracked.tolist() == [1, 2]
    torch.testing.assert_close(layer.eval()(x, domain=1), alone[1].eval()(x))
    with pytest.raises(OptionError, match=r"(?s)domain=2.*0 to 1"):
        layer(x, domain=2)
    with pytest.raises(OptionError, match="every call"):
        layer(x)
    with pytest.raises(OptionError, match="without domains"):
        nt.BatchNorm1d(3)(x.float(), domain=0)


def test_options_together():
    layer = nt.BatchNorm1d(
        3, ghost=4, running="population", on_nonfinite="skip", domains=2, renorm=True
    ).double()
    x, mask = batch(9, 3, 4), torch.rand(9, 4) > 0.2
    y = layer(x, mask=mask, domain=1, residual=x, activation="relu")
    parts = [
        standardized(p, weight=m[:, None])[0]
        for p, m in zip(x.split(4), mask.split(4), strict=True)
    ]
    torch.testing.assert_close(y, torch.relu(torch.cat(parts) + x))
    assert layer.num_elements_tracked.tolist() == [[0] * 3, [int(mask.sum())] * 3]


# --- transactions ---------------------------------------------------------------------------------


def net():
    return torch.nn.Sequential(
        torch.nn.Conv1d(2, 3, 3), nt.BatchNorm1d(3), torch.nn.ReLU(), nt.BatchNorm1d(3, ghost=2),
        nt.InstanceNorm1d(3, track_running_stats=True), nt.BatchNorm1d(3, momentum=None),
    ).double()  # fmt: skip


def statistics(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_" in k}


def test_held_statistics_move_on_commit_only():
    model, x = net(), batch(6, 2, 8)
    reference = copy.deepcopy(model)
    before = statistics(model)
    with nt.hold_statistics(model) as held:
        model(x)
        torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
        held.rollback()
        model(x)
        held.commit()
    reference(x)
    torch.testing.assert_close(statistics(model), statistics(reference))
    after = statistics(model)
    with nt.hold_statistics(model):
        model(x)
    torch.testing.assert_close(statistics(model), after, rtol=0, atol=0)
    model(x)
    assert int(model[1].num_batches_tracked) == 2


def test_accumulated_micro_batches_count_as_the_batch_that_they_make():
    layer, whole, x = nt.BatchNorm1d(3).double(), nt.BatchNorm1d(3).double(), batch(12, 3)
    with nt.hold_statistics(layer):
        for part in x.split(4):
            layer(part)
        nt.commit(layer)
    whole(x)
    torch.testing.assert_close(layer.state_dict(), whole.state_dict())


def test_an_error_on_commit_leaves_all_as_it_was(monkeypatch):
    def fails():
        raise NonFiniteError("late", received="", expected="", remedy="")

    model = torch.nn.Sequential(nt.BatchNorm1d(3), nt.BatchNorm1d(3))
    before = statistics(model)
    with nt.hold_statistics(model) as held:
        model(torch.randn(5, 3))
        monkeypatch.setattr(model[1], "pending_steps", fails)
        with pytest.raises(NonFiniteError):
            held.commit()
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["skip", "raise"])
def test_a_bad_micro_batch_leaves_the_good_ones_held(way):
    layer, whole = (nt.BatchNorm1d(3, on_nonfinite=way) for _ in range(2))
    good, bad = torch.randn(2, 6, 3), torch.full((6, 3), math.inf)
    with nt.hold_statistics(layer) as held:
        layer(good[0])
        if way == "raise":
            with pytest.raises(NonFiniteError):
                layer(bad)
        else:
            layer(bad)
        layer(good[1])
        held.commit()
    whole(good.reshape(12, 3))
    torch.testing.assert_close(layer.state_dict(), whole.state_dict())


@pytest.mark.parametrize("way", ["skip", "raise"])
def test_statistics_that_overflow_where_they_are_kept(way):
    layer = nt.BatchNorm1d(3, on_nonfinite=way)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(64, 3) * 1e20
    if way == "raise":
        with pytest.raises(NonFiniteError):
            layer(x)
    else:
        layer(x)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_held_instance_norms_average_the_samples():
    layers = [nt.InstanceNorm1d(3, track_running_stats=True).double() for _ in range(2)]
    x = batch(6, 3, 5)
    with nt.hold_statistics(layers[0]) as held:
        for part in x.split([4, 2]):
            layers[0](part)
        held.commit()
    layers[1](x)
    torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict())


def test_holding_torch_nns_layers_is_refused():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), nt.BatchNorm1d(3))
    with pytest.raises(OptionError, match=r"(?s)torch.nn.*'0'.*accelerate"):
        nt.hold_statistics(model).__enter__()


def test_norms_outside_the_family_are_held_too():
    layer = nt.beyond.SwitchableNorm(3)
    x = torch.randn(6, 3, 4)
    with nt.hold_statistics(layer) as held:
        layer(x)
        assert int(layer.num_batches_tracked) == 0
        held.commit()
    other = nt.beyond.SwitchableNorm(3)
    other(x)
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


@pytest.mark.parametrize("options", [{"renorm": True}, {"on_small_batch": "running"}], ids=str)
def test_checkpointed_calls_know_their_own_statistics(options):
    from torch.utils.checkpoint import checkpoint

    if "renorm" in options:
        options = {"renorm": nt.RenormSchedule(start=0, r_end=1, d_end=1)}
    layers = [nt.BatchNorm1d(3, momentum=0.5, **options).double() for _ in range(2)]
    for layer in layers:
        layer(batch(6, 3))
    layers[1].load_state_dict(layers[0].state_dict())
    x, z = batch(6, 3).requires_grad_(), (batch(1, 3) if "on_small" in str(options) else
                                          batch(6, 3) + 2).requires_grad_()  # fmt: skip
    results = []
    for i, layer in enumerate(layers):
        run = (lambda x, layer=layer: checkpoint(layer, x, use_reentrant=False)) if i else layer
        y = run(x).square().sum() + run(z).pow(3).sum()
        results.append(torch.autograd.grad(y, (x, z)))
    torch.testing.assert_close(*results)


def test_holding_twice_is_refused_and_an_error_inside_lets_go():
    layer = nt.BatchNorm1d(3)
    with nt.hold_statistics(layer), pytest.raises(OptionError, match="held already"):
        nt.hold_statistics(layer).__enter__()
    with pytest.raises(RuntimeError, match="mine"), nt.hold_statistics(layer):
        raise RuntimeError("mine")
    layer(torch.randn(4, 3))
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_a_batch_once(reentrant):
    from torch.utils.checkpoint import checkpoint

    plain, saving, x = net(), net(), batch(6, 2, 8).requires_grad_()
    saving.load_state_dict(plain.state_dict())
    for _ in range(2):
        plain(x).square().sum().backward()
        checkpoint(saving, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(statistics(saving), statistics(plain), rtol=0, atol=0)
    for a, b in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# --- freezing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3, 4), (64, 3, 3000)])
@pytest.mark.parametrize("affine", [True, False])
def test_frozen_is_eval_bit_for_bit(affine, shape):
    layer = nt.BatchNorm1d(3)
    layer(batch(*shape, dtype=torch.float32))
    nt.freeze(layer, affine=affine)
    before = statistics(layer)
    results = []
    for training in (False, True):
        layer.train(training)
        x = torch.arange(float(np.prod(shape))).sin().reshape(shape).requires_grad_()
        y = layer(x)
        results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(statistics(layer), before, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(6, 3, 4), (64, 3, 3000)])
def test_a_frozen_layer_keeps_no_input_for_backward(shape):
    layer, x = nt.BatchNorm1d(3), torch.randn(shape, requires_grad=True)
    kept = []
    nt.freeze(layer)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer.train()(x)
    assert not any(t.numel() >= x.numel() for t in kept)
    y.square().sum().backward()
    want = torch.autograd.grad(
        torch.nn.functional.batch_norm(x, layer.running_mean, layer.running_var).square().sum(), x
    )[0]
    torch.testing.assert_close(x.grad, want)


def test_freezing_is_reversible_and_takes_torch_nns_layers():
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3), nt.BatchNorm1d(3), torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)
    )
    model[1].bias.requires_grad_(False)
    x = torch.randn(5, 3)
    assert nt.freeze(model) == ["0", "1", "3"]
    clone = pickle.loads(pickle.dumps(model)).train()
    before = statistics(clone)
    clone(x)
    torch.testing.assert_close(statistics(clone), before, rtol=0, atol=0)
    assert [p.requires_grad for p in clone.parameters()] == [False] * 4 + [True] * 2 + [False] * 2
    assert nt.unfreeze(clone) == ["0", "1", "3"]
    assert [p.requires_grad for p in clone.parameters()] == [True] * 3 + [False] + [True] * 4
    clone(x)
    assert int(clone[0].num_batches_tracked) == 1
    with pytest.raises(OptionError, match="Nothing to freeze"):
        nt.freeze(model, stats=False, affine=False)


def test_freezing_refuses_what_it_cannot_freeze_and_leaves_it():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.LazyBatchNorm1d())
    with pytest.raises(OptionError, match=r"(?s)LazyBatchNorm1d '1'.*Run an input"):
        nt.freeze(model)
    assert type(model[0]) is torch.nn.BatchNorm1d
    odd = torch.nn.BatchNorm1d(3, momentum=math.nan)
    with pytest.raises(OptionError, match="momentum"):
        nt.freeze(odd)
    assert type(odd) is torch.nn.BatchNorm1d


# --- norm and activation --------------------------------------------------------------------------

LAYERS = [
    (nt.BatchNorm2d, (6,), (4, 6, 5, 5)), (nt.GroupNorm, (2, 6), (4, 6, 5, 5)),
    (nt.InstanceNorm2d, (6,), (4, 6, 5, 5)), (nt.LayerNorm, (6,), (4, 5, 6)),
    (nt.RMSNorm, (6,), (4, 5, 6)),
]  # fmt: skip


@pytest.mark.parametrize("order", ["norm_first", "activation_first"])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize(
    ("kind", "args", "shape"), LAYERS, ids=lambda v: getattr(v, "__name__", "")
)
def test_norm_act_is_the_three_steps(kind, args, shape, with_residual, order):
    norm = kind(*args).double()
    block = nt.NormAct(copy.deepcopy(norm), "silu", order)
    inputs = [batch(*shape).requires_grad_() for _ in range(2 if with_residual else 1)]
    x, residual = inputs[0], inputs[1] if with_residual else None
    added = residual if with_residual else 0.0
    silu = torch.nn.functional.silu
    want = silu(norm(x) + added) if order == "norm_first" else norm(silu(x)) + added
    y = block(x, residual)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(y)
    got, expected = (torch.autograd.grad(out, inputs, dy) for out in (y, want))
    torch.testing.assert_close(got, expected)


def test_norm_act_refuses_nonsense():
    with pytest.raises(nk.errors.DTypeError, match="no norm"):
        nt.NormAct(torch.nn.Linear(3, 3))
    with pytest.raises(OptionError, match="Did you mean 'relu'"):
        nt.NormAct(nt.BatchNorm1d(3), "rellu")
    with pytest.raises(OptionError, match="norm_first"):
        nt.NormAct(nt.BatchNorm1d(3), "relu", "sideways")


# --- other domains --------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [0, 16, math.inf])
def test_adaptive_batch_norm_mixes_the_statistics(prior):
    layer = nt.AdaptiveBatchNorm2d(3, prior=prior).double()
    plain = torch.nn.BatchNorm2d(3).double()
    for _ in range(3):
        x = batch(8, 3, 4, 4)
        torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    layer.eval()
    shifted = (batch(4, 3, 4, 4) + 3).requires_grad_()
    _, _, mean, var = standardized(shifted)
    share = 1.0 if prior == math.inf else prior / (prior + 4)
    mean = share * layer.running_mean + (1 - share) * mean
    var = share * layer.running_var + (1 - share) * var
    want = (shifted - mean.view(1, 3, 1, 1)) / torch.sqrt(var + 1e-5).view(1, 3, 1, 1)
    y = layer(shifted)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(y)
    got, expected = (torch.autograd.grad(out, shifted, dy)[0] for out in (y, want))
    torch.testing.assert_close(got, expected)


def test_split_batch_norm():
    layer = nt.SplitBatchNorm1d(3, num_splits=3).double()
    alone = [torch.nn.BatchNorm1d(3).double() for _ in range(3)]
    x = batch(9, 3) * torch.arange(1, 10)[:, None]
    want = torch.cat([one(part) for one, part in zip(alone, x.split(3), strict=True)])
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.aux_bn[1].running_var, alone[2].running_var)
    layer(x, sizes=[5, 2, 2])
    with pytest.raises(ShapeError, match=r"(?s)10 samples.*3 parts"):
        layer(batch(10, 3))
    torch.testing.assert_close(
        layer.eval()(x[:1]), torch.nn.functional.batch_norm(
            x[:1], layer.running_mean, layer.running_var)
    )  # fmt: skip


# --- nonsense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ghost": 0}, "ghost.*0.*at least 1"), ({"ghost": 2.5}, "ghost.*2.5"),
        ({"ghost": True}, "ghost.*True"), ({"renorm": 3}, "renorm.*3.*RenormSchedule"),
        ({"running": "emma"}, "running.*emma.*Did you mean 'ema'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite.*ignore"),
        ({"on_small_batch": None}, "on_small_batch.*None"), ({"domains": 0}, "domains.*0"),
        ({"mean_only": "yes"}, "mean_only.*yes"),
        ({"mean_only": True, "renorm": True}, "contradict"),
        ({"renorm": True, "track_running_stats": False}, "renorm.*track_running_stats"),
        ({"domains": 2, "track_running_stats": False}, "domains.*track_running_stats"),
        ({"eps": -1.0}, "eps.*-1"), ({"momentum": math.nan}, "momentum.*nan"),
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_refused_when_the_layer_is_made(options, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        nt.BatchNorm1d(3, **options)


@pytest.mark.parametrize(
    "fields",
    [{"r_max": 0.5}, {"d_max": -1}, {"r_max": math.nan}, {"start": -1}, {"r_end": 10, "start": 20}],
    ids=str,
)
def test_a_schedule_that_makes_no_sense(fields):
    with pytest.raises(OptionError, match="RenormSchedule"):
        nt.RenormSchedule(**fields)
