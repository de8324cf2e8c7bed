"""convert(): every kind into every other, with all that hangs on a layer, or nothing at all."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import normkit.torch as nt  # noqa: E402
from normkit.errors import DataError, DTypeError, ModelError, OptionError  # noqa: E402
from normkit.models.conversion import TARGETS, changing, convert, converting  # noqa: E402
from normkit.models.conversion.samples import auto_groups  # noqa: E402
from normkit.torch.beyond import FilterResponseNorm  # noqa: E402

FAMILY = ("batch", "sync", "frozen", "ghost", "renorm")
SAMPLES = ("group", "layer", "instance", "frn")
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH = {
    "torch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "normkit": {1: nt.BatchNorm1d, 2: nt.BatchNorm2d, 3: nt.BatchNorm3d},
}


def to(model, target, **options):
    if target == "ghost":
        options.setdefault("ghost", 2)
    return convert(model, target, report=None, **options)


def lively(layer, seed=0):
    """Parameters and statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(t):
        return torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) + 0.5

    with torch.no_grad():
        for name, t in (*layer.named_parameters(), *layer.named_buffers()):
            t.copy_(draw(t) if t.is_floating_point() else torch.full_like(t, 7))
            if name.endswith(("bias", "running_mean")):
                t.sub_(1.0)
    return layer


def net(dims=2, library="torch", dtype=torch.float64, **options):
    conv, norm = CONVS[dims], BATCH[library][dims]
    layers = nn.Sequential(
        conv(3, 8, 3, padding=1), norm(8, eps=1e-3, momentum=0.3, **options), nn.ReLU(),
        conv(8, 8, 1), norm(8, **options),
    )  # fmt: skip
    return lively(layers).to(dtype)


def inputs(dims=2, dtype=torch.float64, samples=4):
    shape = (samples, 3, *[5, 4, 3][:dims])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def evaluated(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same_state(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def snapshot(model):
    """All that a failed conversion must leave as it was."""
    return {
        name: (
            type(m), dict(m.__dict__), dict(m._parameters), dict(m._buffers), dict(m._modules),
            [p.requires_grad for p in m._parameters.values() if p is not None],
        )
        for name, m in model.named_modules()
    }  # fmt: skip


def unchanged(model, before, values):
    assert snapshot(model) == before
    same_state(state(model), values)


# --- batch norm in its forms ----------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("library", ["torch", "normkit"])
@pytest.mark.parametrize("end", FAMILY)
@pytest.mark.parametrize("start", FAMILY)
def test_the_family_agrees_in_eval_and_comes_back(start, end, library, dims):
    model, x = net(dims, library), inputs(dims)
    before, values, kind = evaluated(model, x), state(model), type(model[1])
    first = to(model, start)
    second = to(first, end, example=x)
    assert torch.allclose(evaluated(second, x), before, rtol=1e-12, atol=1e-12)
    same_state(state(second), values)
    back = to(second, "batch")
    assert type(back[1]) is kind
    same_state(state(back), values)
    assert all(p.requires_grad for p in back.parameters())
    # What it was left behind by no means forgotten, and not one thing added.
    kept = {k: v for k, v in vars(model[1]).items() if not isinstance(v, dict)}
    for name, value in kept.items():
        if name not in ("tracker", "options"):
            assert vars(back[1])[name] == value
    assert set(vars(back[1])) - {"options"} == set(vars(model[1])) - {"options"}


def step(model, x):
    """Training output, statistics afterwards, gradient of the first gamma."""
    model = copy.deepcopy(model).train()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), state(model), model[1].weight.grad


def test_ghost_is_ghost_batch_norm_in_training():
    model, x = nn.Sequential(nn.Identity(), lively(nn.BatchNorm2d(3).double())), inputs(samples=6)
    ghost = to(model, "ghost", ghost=2)
    y = step(ghost, x)[0]
    halves = [F.batch_norm(p, None, None, model[1].weight, model[1].bias, True) for p in x.split(2)]
    assert torch.allclose(y, torch.cat(halves), atol=1e-12)
    assert not torch.allclose(y, step(model, x)[0], atol=1e-3)


def test_frozen_stands_still_in_training_and_thaws():
    model, x = net(), inputs()
    model[1].bias.requires_grad_(False)  # was frozen before, and stays so after
    frozen = to(model, "frozen").train()
    y = frozen(x)
    assert torch.allclose(y, evaluated(model, x), atol=1e-12)
    same_state(state(frozen), state(model))
    assert not any(p.requires_grad for m in (frozen[1], frozen[4]) for p in m.parameters())
    thawed = to(frozen, "batch")
    assert thawed[1].weight.requires_grad
    assert not thawed[1].bias.requires_grad
    for a, b in zip(step(thawed, x), step(model, x), strict=True):
        if isinstance(a, dict):
            same_state(a, b)
        else:
            assert torch.equal(a, b)
    assert nt.unfreeze(frozen) == ["1", "4"]
    assert frozen[1].weight.requires_grad
    assert not frozen[1].bias.requires_grad


def test_layers_that_share_a_gamma_thaw():
    model = net()
    model[4].weight = model[1].weight
    frozen = to(model, "frozen")
    assert frozen[4].weight is frozen[1].weight
    assert not frozen[1].weight.requires_grad
    thawed = to(frozen, "batch")
    assert thawed[1].weight is thawed[4].weight
    assert thawed[1].weight.requires_grad


@pytest.mark.parametrize("end", ["sync", "ghost", "renorm", "normkit"])
def test_frozen_layers_stay_frozen(end):
    frozen = to(net(), "frozen")
    other = to(frozen, end)
    assert other[1].statistics_frozen
    assert not other[1].weight.requires_grad
    x = inputs()
    assert torch.allclose(other.train()(x), evaluated(frozen, x), atol=1e-12)


def test_renorm_takes_a_schedule():
    schedule = nt.RenormSchedule(2.0, 1.0, 0, 10, 10)
    model = to(net(), "renorm", renorm=schedule)
    assert model[1].options.renorm == schedule
    assert to(net(), "renorm")[1].options.renorm == nt.RenormSchedule()


def test_options_of_one_kind_are_kept_by_the_others():
    model = net(library="normkit", running="population", on_nonfinite="skip", ghost=4)
    assert "num_elements_tracked" in model[1]._buffers
    synced = to(model, "sync")
    assert synced[1].options == model[1].options
    same_state(state(synced), state(model))
    plain = to(synced, "batch")
    assert plain[1].options == nt.BatchNorm2d(8, running="population", on_nonfinite="skip").options
    same_state(state(plain), state(model))


def test_domains_pass_through_the_family_and_no_further():
    model = nn.Sequential(nt.BatchNorm2d(3, domains=2))
    assert to(model, "sync")[0].running_mean.shape == (2, 3)
    for target in SAMPLES:
        with pytest.raises(ModelError, match="domain="):
            to(model, target)


def test_sync_takes_the_process_group():
    group = object()
    model = convert(net(), "sync", process_group=group, layers="normkit", inplace=True, report=None)
    assert model[1].process_group is group
    with pytest.raises(OptionError, match="process_group"):
        convert(net(), "batch", process_group=group)


def test_untracked_layers():
    model = net(track_running_stats=False)
    assert isinstance(to(model, "sync")[1], nn.SyncBatchNorm)
    for target in ("frozen", "ghost", "renorm"):
        with pytest.raises(ModelError, match="statistics"):
            to(model, target)


def test_cumulative_momentum_is_kept():
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None))
    assert to(model, "ghost")[0].momentum is None
    there = to(to(model, "group"), "batch")
    assert there[0].momentum is None


# --- whose layers ---------------------------------------------------------------------------------

NORMS = [
    lambda lib: lib.BatchNorm1d(4), lambda lib: lib.BatchNorm2d(4, affine=False),
    lambda lib: lib.BatchNorm3d(4, track_running_stats=False), lambda lib: lib.SyncBatchNorm(4),
    lambda lib: lib.GroupNorm(2, 4), lambda lib: lib.LayerNorm((4, 3)),
    lambda lib: lib.LayerNorm(4, elementwise_affine=False), lambda lib: lib.RMSNorm(4),
    lambda lib: lib.InstanceNorm1d(4), lambda lib: lib.InstanceNorm2d(4, affine=True),
    lambda lib: lib.InstanceNorm3d(4, affine=True, track_running_stats=True),
]  # fmt: skip


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("start", ["torch", "normkit"])
def test_every_norm_changes_its_library_and_back(make, start):
    libraries = {"torch": nn, "normkit": nt}
    end = "normkit" if start == "torch" else "torch"
    model = nn.Sequential(lively(make(libraries[start])))
    other = to(model, end)
    assert type(other[0]) is type(make(libraries[end]))
    assert set(vars(make(libraries[end]))) - set(vars(other[0])) <= {"options"}
    assert not set(vars(other[0])) - set(vars(make(libraries[end])))
    back = to(other, start)
    assert type(back[0]) is type(model[0])
    same_state(state(back), state(model))
    assert repr(back) == repr(model)


def test_layers_says_whose_they_are():
    assert type(to(net(), "sync")[1]) is nn.SyncBatchNorm
    assert type(to(net(), "sync", layers="normkit")[1]) is nt.SyncBatchNorm
    assert type(to(net(library="normkit"), "sync")[1]) is nt.SyncBatchNorm
    assert type(to(net(library="normkit"), "group", layers="torch")[1]) is nn.GroupNorm
    # Asked for once, it stays; needed for a while, it does not.
    ours = to(to(net(), "sync", layers="normkit"), "batch")
    assert type(ours[1]) is nt.BatchNorm2d
    assert type(to(to(to(net(), "ghost"), "sync"), "batch")[1]) is nn.BatchNorm2d
    assert type(to(to(to(net(), "normkit"), "ghost"), "batch")[1]) is nt.BatchNorm2d
    assert type(to(net(), "batch", layers="normkit")[1]) is nt.BatchNorm2d
    assert type(to(net(library="normkit"), "batch", layers="torch")[1]) is nn.BatchNorm2d


def test_torch_has_not_all_that_normkit_has():
    for target in ("ghost", "frozen", "renorm"):
        with pytest.raises(ModelError, match=r"torch\.nn has no"):
            to(to(net(), target), "torch")
        with pytest.raises(OptionError, match="no such layer"):
            to(net(), target, layers="torch")
    frozen = to(net(), "frozen")
    with pytest.raises(ModelError, match="frozen statistics"):
        to(frozen, "sync", layers="torch")
    assert type(to(frozen, "sync")[1]) is nt.SyncBatchNorm  # torch.nn's cannot stand still
    assert type(to(to(net(), "ghost"), "batch", layers="torch")[1]) is nn.BatchNorm2d


# --- norms of one sample --------------------------------------------------------------------------


def oracle(target, x, norm):
    shape = (1, -1, *[1] * (x.dim() - 2))
    if target == "frn":
        power = x.square().mean(tuple(range(2, x.dim())), keepdim=True)
        y = x / (power + norm.eps).sqrt()
    else:
        groups = {"group": 2, "layer": 1, "instance": x.shape[1]}[target]
        sets = x.reshape(x.shape[0], groups, -1)
        centred = sets - sets.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        y = y.reshape(x.shape)
    return y * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("library", ["torch", "normkit"])
@pytest.mark.parametrize("target", SAMPLES)
def test_one_sample_norms_by_an_oracle(target, library, dims):
    norm = lively(BATCH[library][dims](4, eps=1e-2)).double()
    x = torch.randn((2, 4, *[5, 4, 3][:dims]), dtype=torch.float64)
    model = nn.Sequential(norm)
    options = {"groups": 2} if target == "group" else {}
    found = to(model, target, example=x, **options)
    assert torch.allclose(found(x), oracle(target, x, norm), atol=1e-12)
    assert found[0].weight.dtype == torch.float64
    assert list(state(found)) == ["0.weight", "0.bias"]
    back = to(found, "batch")
    assert type(back[0]) is type(norm)
    assert (back[0].eps, back[0].momentum) == (norm.eps, norm.momentum)
    assert torch.equal(back[0].weight, norm.weight)
    # Statistics that are lost are not made up.
    assert torch.equal(back[0].running_mean, torch.zeros(4).double())
    assert torch.equal(back[0].running_var, torch.ones(4).double())
    assert int(back[0].num_batches_tracked) == 0


@pytest.mark.parametrize("start", SAMPLES)
@pytest.mark.parametrize("end", TARGETS)
def test_from_one_sample_norms_to_everything(start, end):
    model, x = net(), inputs()
    other = to(model, start, example=x)
    if start == "frn" and end == "torch":
        with pytest.raises(ModelError, match=r"torch\.nn has no FilterResponseNorm"):
            to(other, end)
        return
    last = to(other, end, example=x)
    assert last(x).shape == model(x).shape
    assert torch.equal(last[1].weight, model[1].weight)
    direct = to(model, end, example=x)
    if end in (*FAMILY, *SAMPLES):
        assert type(last[1]) is type(direct[1])
        assert last.training
        assert set(vars(last[1])) - {"_affine_before_freeze"} <= set(vars(direct[1])) | {
            "converted_from"
        }


def test_statistics_that_are_lost_are_reported():
    lines = []
    grouped = convert(net(), "group", report=lines.append)
    assert any("another" in line and "train" in line for line in lines)
    assert any("running statistics are gone" in line for line in lines)
    lines.clear()
    convert(grouped, "batch", report=lines.append)
    assert any("recalibrate(" in line for line in lines)
    assert any("2 GroupNorm → BatchNorm2d" in line for line in lines)


def test_the_difference_is_measured_where_it_may_be_any():
    lines, x, model = [], inputs(), net()
    grouped = convert(model, "group", example=x, report=lines.append)
    apart = (evaluated(grouped, x) - evaluated(model, x)).abs().max() / evaluated(
        model, x
    ).abs().max()
    assert any(f"by up to {float(apart):.1e} in float64" in line for line in lines)


def test_affine_false():
    model = net(affine=False)
    assert to(model, "group")[1].weight is None
    assert to(model, "instance")[1].affine is False
    with pytest.raises(ModelError, match="no gamma and beta"):
        to(model, "frn")
    back = to(to(model, "group"), "batch")
    assert back[1].running_var.dtype == torch.float64


def test_gamma_without_beta():
    model = nn.Sequential(nn.BatchNorm2d(4, bias=False).double())
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    for target in (*FAMILY, "group", "layer", "instance"):
        changed = to(model, target, example=x)
        assert list(changed[0]._parameters) == ["weight", "bias"]
        assert changed[0].bias is None
        assert changed.eval()(x).shape == x.shape


# --- degenerate sets ------------------------------------------------------------------------------


def dense(features=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(3, features), norm(features), nn.ReLU())


def test_groups_of_one_element_are_refused_with_what_fits():
    with pytest.raises(ModelError, match=r"leave one element a set.*fit: 1, 2, 4\."):
        to(dense(), "group", groups=8)
    with pytest.raises(ModelError, match=r"48 channels do not divide into 32.*16, 24, 48"):
        to(nn.Sequential(nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48)), "group", groups=32)
    # With positions, one channel a group is a set like any other.
    assert to(net(), "group", groups=8)[1].num_groups == 8
    # But not where the example shows a single position.
    squeezed = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    with pytest.raises(ModelError, match="one element a set"):
        to(squeezed, "group", groups=8, example=torch.randn(2, 8, 4, 4))


@pytest.mark.parametrize("target", ["instance", "frn"])
def test_norms_of_one_channel_need_positions(target):
    with pytest.raises(ModelError, match=r'each set would be one element.*to="group"'):
        to(dense(), target)
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.BatchNorm1d(8))
    with pytest.raises(ModelError, match="each set would be one element"):
        to(flat, target)
    alone = nn.Sequential(nn.BatchNorm1d(8))
    with pytest.raises(ModelError, match="nothing tells"):
        to(alone, target)
    with pytest.raises(ModelError, match="each set would be one element"):
        to(alone, target, example=torch.randn(4, 8))
    assert to(alone, target, example=torch.randn(4, 8, 5))[0](torch.randn(2, 8, 5)).shape
    conv = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.BatchNorm1d(8))
    assert type(to(conv, target)[2]) in (nn.InstanceNorm1d, FilterResponseNorm)


def test_one_channel():
    with pytest.raises(ModelError, match="one channel leaves one element"):
        to(dense(1), "layer")
    with pytest.raises(ModelError, match="one element a set"):
        to(dense(1), "group")
    image = nn.Sequential(nn.BatchNorm2d(1))
    assert to(image, "group")[0].num_groups == 1


@pytest.mark.parametrize("positions", [None, 1, 9, 196])
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 16, 24, 32, 48, 64, 96, 97, 100, 256, 2048])
def test_auto_groups(channels, positions):
    groups = auto_groups(channels, positions)
    size = channels // groups
    assert channels % groups == 0
    assert groups <= 32
    fits = [
        g for g in range(1, 33)
        if channels % g == 0 and channels // g >= 2
        and (positions is None or channels // g * positions >= 16)
    ]  # fmt: skip
    assert groups == max(fits, default=1)
    if channels >= 64 and channels % 32 == 0 and positions != 1:
        assert groups == 32
    assert size * (positions or 2) > 1 or channels == 1


# --- dimensions -----------------------------------------------------------------------------------


class SyncNet(nn.Module):
    def __init__(self, conv, untraceable=False):
        super().__init__()
        self.conv, self.act = conv, nn.ReLU()
        self.norm = nn.SyncBatchNorm(4)
        self.untraceable = untraceable

    def forward(self, x):
        if self.untraceable and x.sum() > 1e9:
            return x
        return self.norm(self.act(self.conv(x)))


def test_a_foreign_sync_batch_norm_finds_its_dimensions():
    for dims, conv in CONVS.items():
        assert type(to(SyncNet(conv(3, 4, 1)), "batch").norm) is BATCH["torch"][dims]
    assert type(to(SyncNet(nn.Linear(3, 4)), "batch").norm) is nn.BatchNorm1d
    hidden = SyncNet(nn.Conv3d(3, 4, 1), untraceable=True)
    with pytest.raises(ModelError, match=r"nothing tells.*Pass dims=, or example="):
        to(hidden, "batch")
    assert type(to(hidden, "batch", dims=3).norm) is nn.BatchNorm3d
    assert type(to(hidden, "batch", example=torch.randn(2, 3, 2, 2, 2)).norm) is nn.BatchNorm3d
    assert type(to(SyncNet(nn.Linear(3, 4), True), "batch", example=torch.randn(2, 3)).norm) is (
        nn.BatchNorm1d
    )


def test_group_norm_becomes_batch_norm_when_it_is_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
    assert type(to(model, "batch")[1]) is nn.GroupNorm
    assert type(to(model, "batch", only="1")[1]) is nn.BatchNorm2d
    assert to(model, "group", only="1", groups=4)[1].num_groups == 4


# --- norms of other people's ----------------------------------------------------------------------


class FrozenBatchNorm2d(nn.Module):
    """As detectron2 and torchvision have it."""

    def __init__(self, features, eps=1e-5):
        super().__init__()
        self.eps, self.wide = eps, True
        self.register_buffer("weight", torch.ones(features))
        self.register_buffer("bias", torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it: a norm, a dropout and an activation in one."""

    def __init__(self, features, act=nn.ReLU, drop=nn.Identity, **options):
        super().__init__(features, **options)
        self.drop, self.act = drop(), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Halved(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) / 2


class Forgets(BatchNormAct2d):
    def forward(self, x):
        return self.drop(nn.BatchNorm2d.forward(self, x))


class Gated(nn.BatchNorm2d):
    def __init__(self, features):
        super().__init__(features)
        self.gate = nn.Parameter(torch.ones(1))


class Wraps(nn.BatchNorm2d):
    """What many projects have: batch norm in float32 whatever comes in."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


def test_a_frozen_norm_of_anothers_goes_to_and_fro():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), lively(FrozenBatchNorm2d(4))).double()
    values, x = state(model), inputs()
    before = evaluated(model, x)
    batch = to(model, "batch", example=x)
    assert type(batch[1]) is nn.BatchNorm2d
    assert isinstance(batch[1].weight, nn.Parameter)
    assert not batch[1].weight.requires_grad
    assert torch.allclose(evaluated(batch, x), before, atol=1e-12)
    assert not torch.allclose(copy.deepcopy(batch).train()(x), before)
    back = to(batch, "frozen", example=x)
    assert type(back[1]) is FrozenBatchNorm2d
    same_state(state(back), values)
    assert not list(back[1].parameters())
    assert back[1].wide
    assert torch.equal(evaluated(back, x), before)
    # Through other kinds, too; and what was learned meanwhile is what is frozen.
    ghost = to(model, "ghost")
    assert ghost[1].statistics_frozen
    with torch.no_grad():
        batch[1].weight.mul_(2.0)
    assert torch.equal(to(to(batch, "sync"), "frozen")[1].weight, 2 * values["1.weight"])
    assert type(to(model, "normkit")[1]) is nt.BatchNorm2d
    assert to(model, "normkit")[1].statistics_frozen
    with pytest.raises(ModelError, match="frozen statistics"):
        to(model, "torch")
    assert to(model, "group", groups=2)[1].weight.requires_grad is False


def test_a_norm_with_an_activation_inside_keeps_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), lively(BatchNormAct2d(4, nn.SiLU))).double()
    x, lines, calls = inputs(), [], []
    model[1].register_forward_hook(lambda *call: calls.append(call[2].min()))
    before = evaluated(model, x)
    frozen = convert(model, "frozen", example=x, report=lines.append)
    assert torch.allclose(evaluated(frozen, x), before, atol=1e-12)
    assert [type(m) for m in frozen[1]] == [nt.BatchNorm2d, nn.SiLU]
    assert list(state(frozen))[2:4] == ["1.norm.weight", "1.norm.bias"]
    assert any('".norm"' in line for line in lines)
    calls.clear()
    y = frozen(x)
    assert calls == [y.min()]  # the hook sees the layer's output, once
    assert type(to(model, "group", groups=2)[1].norm) is nn.GroupNorm
    assert type(to(model, "batch")[1]) is BatchNormAct2d  # is one already
    # Where nothing stands behind the norm, the layer is the norm.
    plain = nn.Sequential(lively(BatchNormAct2d(4, nn.Identity)))
    assert type(to(plain, "sync")[0]) is nn.SyncBatchNorm
    same_state(state(to(plain, "sync")), state(plain))


@pytest.mark.parametrize(
    ("kind", "word"),
    [(Halved, "something else than batch norm"), (Forgets, "batch norm and act"), (Gated, "gate")],
)
def test_a_forward_that_is_no_batch_norm_is_refused(kind, word):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), lively(kind(4)))
    with pytest.raises(ModelError, match=word):
        to(model, "sync")


def test_a_forward_of_ones_own_that_is_batch_norm_is_given_up_for_another():
    lines, model = [], nn.Sequential(lively(Wraps(3)))
    changed = convert(model, "ghost", ghost=2, report=lines.append)
    assert type(changed[0]) is nt.BatchNorm2d
    assert any("Wraps's own forward is given up" in line for line in lines)
    model[0].forward = lambda x: x
    with pytest.raises(ModelError, match="replaced on the instance"):
        to(model, "ghost")


def test_norms_of_their_own_kind_are_refused():
    for norm in (nt.AdaptiveBatchNorm2d(4), nt.SplitBatchNorm2d(4)):
        with pytest.raises(ModelError, match="own kind"):
            to(nn.Sequential(norm), "ghost")
    parametrized = nn.Sequential(nn.BatchNorm2d(4))
    nn.utils.parametrize.register_parametrization(parametrized[0], "weight", nn.Softplus())
    with pytest.raises(ModelError, match="parametriz"):
        to(parametrized, "sync")
    with pytest.raises(ModelError, match="lazy"):
        to(nn.Sequential(nn.LazyBatchNorm2d()), "sync")
    with pytest.raises(ModelError, match="last axis"):
        to(nn.Sequential(nn.LayerNorm(4)), "batch", only="0")
    with pytest.raises(ModelError, match="NormAct"):
        to(nn.Sequential(nt.NormAct(nt.BatchNorm2d(4))), "torch")
    assert type(to(nt.NormAct(nt.BatchNorm2d(4)), "ghost").norm) is nt.BatchNorm2d


# --- what hangs on a layer ------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_layers_keep_what_hangs_on_them(target):
    model, x = net(dtype=torch.float32), inputs(dtype=torch.float32)
    layer = model[1]
    layer.eval()
    layer.tag = "mine"
    layer.weight.requires_grad_(False)
    seen = []
    handles = [
        layer.register_forward_hook(lambda *_: seen.append("forward")),
        layer.register_forward_pre_hook(lambda *_: seen.append("before")),
        layer.register_full_backward_hook(lambda *_: seen.append("backward")),
        layer.register_state_dict_post_hook(lambda *_: seen.append("state")),
    ]
    parameters = dict(model.named_parameters())
    changed = to(model, target, inplace=True)
    assert changed is model
    assert model[1] is layer
    assert (layer.tag, layer.training, model[4].training) == ("mine", False, True)
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert not layer.weight.requires_grad
    assert layer.weight.dtype is torch.float32
    seen.clear()
    model.eval()(x).sum().backward()
    model.state_dict()
    assert seen == ["before", "forward", "backward", "state"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(x).sum().backward()
    model.state_dict()
    assert seen == []


@pytest.mark.parametrize("target", TARGETS)
def test_results_copy_pickle_and_load(target):
    model, x = net(), inputs()
    changed = to(model, target, example=x)
    for other in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert torch.equal(evaluated(other, x), evaluated(changed, x))
        assert repr(other) == repr(changed)
        back = to(other, "batch")
        assert type(back[1]) in (nn.BatchNorm2d, nt.BatchNorm2d)
    fresh = to(net(), target)
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(evaluated(fresh, x), evaluated(changed, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("target", TARGETS)
def test_narrow_dtypes(target, dtype):
    model = net(dtype=dtype)
    changed = to(model, target, example=inputs(dtype=dtype))
    assert {t.dtype for t in state(changed).values() if t.is_floating_point()} == {dtype}


@pytest.mark.parametrize("target", TARGETS)
def test_optimizers_go_on(target):
    model, x = net(), inputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    to(model, target, inplace=True)
    if target in ("sync",):
        to(model, "normkit", inplace=True)  # torch.nn's does not train on the CPU
    before = model[0].weight.detach().clone(), model[1].weight.detach().clone()
    model.train()(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before[0])
    assert torch.equal(model[1].weight, before[1]) == (target == "frozen")


class Shares(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = lively(nn.BatchNorm2d(3))
        self.listed = [self.a]
        self.inner = nn.ModuleList([self.a])

    def forward(self, x):
        return self.a(x) + self.b(x * 2) + self.listed[0](x * 3) + self.inner[0](x)


def test_shared_layers_stay_shared_and_are_found_by_any_name():
    x = inputs(dtype=torch.float32)
    for only in (None, "b", "inner.*", "inner", lambda site: site.channels == 3):
        model = Shares()
        changed = to(model, "ghost", only=only, example=x)
        assert changed.a is changed.b is changed.inner[0] is changed.listed[0]
        assert changed.a.options.ghost == 2
        assert model.a is model.listed[0]
        assert type(model.a) is nn.BatchNorm2d


def test_a_norm_alone():
    layer = lively(nn.BatchNorm1d(4))
    assert to(layer, "ghost", inplace=True) is layer
    assert type(layer) is nt.BatchNorm1d
    other = to(layer, "batch")
    assert type(other) is nn.BatchNorm1d
    assert other is not layer


def test_models_that_were_fused_work_on():
    x = inputs(dtype=torch.float32)
    model = nt.accelerate(net(dtype=torch.float32), report=None)
    before = evaluated(model, x)
    for target in ("sync", "ghost", "torch"):
        assert torch.allclose(evaluated(to(model, target), x), before, atol=1e-5)


# --- which layers ---------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.ln = nn.LayerNorm(3)


def kinds(model):
    return {
        name: type(m).__name__ for name, m in model.named_modules() if not list(m.children())
    }  # fmt: skip


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("layer1.bn1", {"layer1.bn1"}),
        ("layer1", {"layer1.bn1", "layer1.bn2"}),
        ("*.bn1", {"layer1.bn1", "layer2.bn1"}),
        (["layer1.bn1", "layer2.bn2"], {"layer1.bn1", "layer2.bn2"}),
        (lambda site: site.name.endswith("2.bn2"), {"layer2.bn2"}),
    ],
)
def test_only(only, expected):
    model = nn.ModuleDict({"layer1": Block(), "layer2": Block()})
    options = {"only": only}
    if only == "layer1":
        options["on_refused"] = "skip"  # the layer norm in it
    changed = to(model, "sync", **options)
    found = {name for name, kind in kinds(changed).items() if kind == "SyncBatchNorm"}
    assert found == expected


def test_names_that_fit_nothing():
    with pytest.raises(ModelError, match=r"fits no layer.*for instance '1'"):
        to(net(), "sync", only="11")
    with pytest.raises(ModelError, match="There are none"):
        to(nn.Sequential(nn.Linear(2, 2)), "sync", only="0")
    with pytest.raises(DTypeError, match="only="):
        to(net(), "sync", only=3)


def test_a_model_without_norms_says_so():
    lines = []
    model = nn.Sequential(nn.Linear(2, 2))
    convert(model, "sync", report=lines.append)
    assert lines == ["convert: nothing to do: there is no norm to convert"]
    lines.clear()
    convert(net(), "batch", example=inputs(), report=lines.append)
    assert lines == ["convert: nothing to do: every norm is that already"]


def test_layers_that_are_left_are_named():
    lines = []
    convert(nn.ModuleDict({"one": Block()}), "ghost", ghost=4, report=lines.append)
    assert lines == [
        "convert: 2 BatchNorm2d → BatchNorm2d (ghost=4)",
        "convert: left alone: one.ln, no batch norm; only= takes such too",
    ]


# --- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
def test_one_refusal_leaves_the_model_as_it_was(inplace):
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Flatten(), nn.BatchNorm1d(8))
    before, values = snapshot(model), state(model)
    with pytest.raises(ModelError, match=r"1 of 2 norms cannot become 'instance'.*2: each set"):
        to(model, "instance", inplace=inplace)
    unchanged(model, before, values)
    lines = []
    changed = convert(model, "instance", on_refused="skip", report=lines.append)
    assert type(changed[0]) is nn.InstanceNorm2d
    assert type(changed[2]) is nn.BatchNorm1d
    assert any(line.startswith("convert: 2 is left as it was: each set") for line in lines)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("target", ["frozen", "sync", "group"])
def test_an_interrupt_leaves_the_model_as_it_was(target, error, monkeypatch):
    model, calls = net(), []
    before, values = snapshot(model), state(model)
    become = changing._become

    def interrupted(*what):
        become(*what)
        calls.append(1)
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(changing, "_become", interrupted)
    with pytest.raises(error):
        to(model, target, inplace=True)
    assert len(calls) > 2  # undone, with the same function
    unchanged(model, before, values)


def test_outputs_that_differ_are_an_error(monkeypatch):
    """The verification can fail: a conversion that halves gamma does not pass."""
    model, x = net(), inputs()
    before, values = snapshot(model), state(model)
    real = converting.apply

    def spoiling(changes):
        real(changes)
        with torch.no_grad():
            changes[0].layer.weight.mul_(1 + 1e-6)

    monkeypatch.setattr(converting, "apply", spoiling)
    with pytest.raises(ModelError, match="does not do the same"):
        to(model, "sync", example=x, inplace=True)
    unchanged(model, before, values)


def test_a_wrong_example_changes_nothing():
    model = net()
    before, values = snapshot(model), state(model)
    with pytest.raises(DataError, match="does not take this batch"):
        to(model, "sync", example=torch.randn(2, 5, 4, 4), inplace=True)
    unchanged(model, before, values)


def test_examples_of_every_shape():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, scale=1.0):
            return {"y": self.norm(x) * scale}

    x = torch.randn(4, 3)
    for example in (x, (x,), (x, 2.0), {"x": x, "scale": 3.0}):
        lines = []
        convert(Two(), "ghost", ghost=2, example=example, report=lines.append)
        assert lines[-1].startswith("convert: verified in eval mode: outputs differ by at most ")


def test_bad_options():
    with pytest.raises(OptionError, match="Did you mean 'sync'"):
        convert(net(), "snyc")
    with pytest.raises(DTypeError, match="no model"):
        convert("resnet", "sync")
    with pytest.raises(OptionError, match="ghost=32"):
        convert(net(), "ghost")
    for options, word in (
        ({"ghost": 0}, "ghost"), ({"ghost": 4.5}, "ghost"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=word):
            convert(net(), "ghost", **options)
    for groups in (0, -1, 2.0, "many", True):
        with pytest.raises(OptionError, match="groups="):
            convert(net(), "group", groups=groups)
    with pytest.raises(OptionError, match="belongs to another"):
        convert(net(), "sync", ghost=4)
    with pytest.raises(OptionError, match="on_refused"):
        convert(net(), "sync", on_refused="ignore")


def test_a_model_that_cannot_be_copied_is_converted_in_place():
    model = net()
    model.lock = __import__("threading").Lock()
    with pytest.raises(ModelError, match="inplace=True"):
        to(model, "sync")
    with pytest.raises(ModelError, match="cannot be copied"):
        to(model, "sync", inplace=True, example=inputs())
    assert type(to(model, "sync", inplace=True)[1]) is nn.SyncBatchNorm


def test_meta_tensors():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    for target in TARGETS:
        changed = to(model, target)
        assert all(t.is_meta for t in state(changed).values())
