"""Derivatives where inputs hang together, under vmap, and of what a call was given."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit as nk  # noqa: E402
import normkit.torch as nt  # noqa: E402
from normkit.errors import OptionError  # noqa: E402
from normkit.torch.functional import batch_norm_with_state, normalize  # noqa: E402

F64 = torch.float64


@pytest.fixture(autouse=True)
def _through_the_kernels():
    torch.manual_seed(0)
    nt.use_native_up_to(0)
    yield
    nt.use_native_up_to(None)


def dependent():
    layer = nt.BatchNorm1d(4).double()
    linear, conv = torch.nn.Linear(4, 4).double(), torch.nn.Conv1d(4, 4, 1).double()
    return {
        "residual is x": lambda x: layer(x, residual=x, activation="silu"),
        "residual in front of x": lambda x: layer(conv(x), residual=x, activation="silu"),
        "weight from x": lambda x: layer(x, weight=linear(x.mean(2)), bias=x.mean(2)),
    }


@pytest.mark.parametrize("case", ["residual is x", "residual in front of x", "weight from x"])
def test_inputs_that_depend_on_each_other(case):
    function = dependent()[case]
    x = torch.randn(5, 4, 3, dtype=F64, requires_grad=True)
    dy = torch.randn(5, 4, 3, dtype=F64)
    first = torch.autograd.grad(function(x), x, dy)[0]
    again = torch.autograd.grad(function(x), x, dy, create_graph=True)[0]
    torch.testing.assert_close(again, first)
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


LAYERS = [
    (nt.BatchNorm1d, (4,)), (nt.InstanceNorm1d, (4,)), (nt.GroupNorm, (2, 4)),
    (nt.LayerNorm, (3,)), (nt.RMSNorm, (3,)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "args"), LAYERS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("frozen", [False, True])
def test_many_gradients_at_once(kind, args, frozen):
    layer = kind(*args).double()
    if frozen:
        nt.freeze(layer)
    x = torch.randn(5, 4, 3, dtype=F64, requires_grad=True)
    y, many = layer(x), torch.randn(2, 5, 4, 3, dtype=F64)
    got = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)[0]
    want = torch.stack([torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in many])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("native", [0, None])
def test_a_frozen_layer_under_torch_func(native):
    nt.use_native_up_to(native)
    layer = nt.BatchNorm1d(4).double()
    layer(torch.randn(9, 4, dtype=F64))
    nt.freeze(layer)
    x = torch.randn(5, 4, dtype=F64)
    got = torch.func.grad(lambda x: layer(x).pow(3).sum())(x)
    leaf = x.clone().requires_grad_()
    layer(leaf).pow(3).sum().backward()
    torch.testing.assert_close(got, leaf.grad)


def test_a_mask_that_changes_before_backward_is_noticed():
    x, mask = torch.randn(5, 4, 3, requires_grad=True), torch.ones(5, 3, dtype=torch.bool)
    y = nt.BatchNorm1d(4)(x, mask=mask)
    mask.fill_(False)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_given_statistics_are_those_of_the_call():
    x = torch.randn(5, 4, dtype=F64, requires_grad=True)
    mean, var = torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)
    y = normalize(nk.BatchNorm(eps=0.0), x, statistics=(mean, var))
    var.fill_(100)
    dx = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(dx, torch.ones_like(dx))


OPTIONS = [
    {}, {"renorm": True}, {"running": "population"}, {"on_nonfinite": "skip"},
    {"mean_only": True}, {"on_small_batch": "running"}, {"ghost": 3}, {"momentum": None},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_once_for_many_batch_sizes(options):
    torch._dynamo.reset()
    ours, eager = (nt.BatchNorm1d(4, **options).double() for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for samples in (6, 8, 9, 12, 5):
        x, weight = torch.randn(samples, 4, 3, dtype=F64), torch.rand(4, dtype=F64)
        torch.testing.assert_close(compiled(x), eager(x))
        torch.testing.assert_close(compiled(x, weight=weight), eager(x, weight=weight))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())


def test_state_as_a_value_takes_what_the_layers_take():
    x, state = torch.randn(7, 3, 2, dtype=F64) + 1, nt.RunningStatistics.start(3, dtype=F64)
    for options, norm in [
        ({"ghost": 3, "renorm": True}, nk.GhostBatchNorm(3)),
        ({"ghost": 3, "mean_only": True}, nk.Norm(samples=3, scale=False)),
    ]:
        layer = nt.BatchNorm1d(3, **options).double()
        call = {"norm": norm, "renorm": options.get("renorm")}
        y, after = batch_norm_with_state(x, state, **call)
        torch.testing.assert_close(y, layer(x))
        torch.testing.assert_close(after.var, layer.running_var)
        y, _ = batch_norm_with_state(x, after, training=False, **call)
        torch.testing.assert_close(y, layer.eval()(x))
    with pytest.raises(OptionError, match="Did you mean 'ema'"):
        batch_norm_with_state(x, state, rule="emma")
    with pytest.raises(OptionError, match="lengths from -3 to 9"):
        batch_norm_with_state(x, state, lengths=torch.tensor([9, -3, 1, 1, 1, 1, 1]))


def test_conversion_leaves_layers_with_a_meaning_of_their_own():
    model = torch.nn.Sequential(
        nt.AdaptiveBatchNorm1d(3, prior=4), nt.SplitBatchNorm1d(3), nt.BatchNorm1d(3, ghost=2)
    )
    kinds = [type(m) for m in nt.SyncBatchNorm.convert_sync_batchnorm(model)]
    assert kinds == [nt.AdaptiveBatchNorm1d, nt.SplitBatchNorm1d, nt.SyncBatchNorm]
    assert model[2].options.ghost == 2
    assert isinstance(model[1].aux_bn[0], nt.SyncBatchNorm)


def test_a_split_layer_takes_the_options_of_a_call():
    layer, x = nt.SplitBatchNorm1d(3), torch.randn(8, 3, 4)
    parts = [nt.BatchNorm1d(3), nt.BatchNorm1d(3)]
    want = [
        part(h, residual=h, activation="relu") for part, h in zip(parts, x.split(4), strict=True)
    ]
    torch.testing.assert_close(layer(x, residual=x, activation="relu"), torch.cat(want))
