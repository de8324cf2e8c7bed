"""insert() and remove(): networks with and without batch norm that compute the same."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import normkit.torch as nt  # noqa: E402
from normkit.errors import DataError, DTypeError, ModelError, OptionError  # noqa: E402
from normkit.models.conversion import convert  # noqa: E402
from normkit.models.inserting import adding, insert, remove  # noqa: E402

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
EPS = 1e-5


def seeded(model, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return model.to(dtype)


def draw(*shape, dtype=torch.float64, seed=5):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1).to(dtype)


def net(dims=2, transposed=False, bias=True, groups=2, dtype=torch.float64):
    second = (TRANSPOSED if transposed else CONVS)[dims]
    model = nn.Sequential(
        CONVS[dims](3, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.Dropout(0.5),
        second(4, 6, 3, padding=1, groups=groups, bias=bias), nn.Flatten(2),
    )  # fmt: skip
    return seeded(model, dtype)


def mlp(dtype=torch.float64, **options):
    return seeded(
        nn.Sequential(nn.Linear(3, 8, **options), nn.ReLU(), nn.Linear(8, 2, **options)), dtype
    )


def quiet(model, after, data, **options):
    return insert(model, after, data, report=None, **options)


def taken(model, **options):
    return remove(model, report=None, **options)


def evaluated(model, *args):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(*args)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same_state(a, b, tolerance=0.0):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


def close(a, b, tolerance=1e-12):
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- the function stays ---------------------------------------------------------------------------


@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("library", ["torch", "normkit"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims, transposed, library, drop_bias):
    model, x = net(dims, transposed), draw(5, 3, *[4, 5, 6][:dims])
    other = draw(3, 3, *[4, 5, 6][:dims], seed=8)
    before, values = evaluated(model, other), state(model)
    changed = quiet(model, ["0", "3"], [x, other], layers=library, drop_bias=drop_bias)
    close(evaluated(changed, other), before)
    same_state(state(model), values)
    kinds = {"torch": nn, "normkit": nt}[library]
    assert type(changed[0].norm) is getattr(kinds, f"BatchNorm{dims}d")
    assert (changed[0].layer.bias is None) is drop_bias
    # There and back.
    bare = taken(changed, example=other)
    same_state(state(bare), values, 1e-14)
    if not drop_bias:
        same_state(state(bare), values)  # bitwise
    close(evaluated(bare, other), before)
    assert repr(bare) == repr(model)


@pytest.mark.parametrize("drop_bias", [False, True])
def test_linear_layers(drop_bias):
    model, x = mlp(), draw(40, 3)
    changed = quiet(model, "linear", x, drop_bias=drop_bias)
    close(evaluated(changed, x), evaluated(model, x))
    assert type(changed[2].norm) is nt.BatchNorm1d
    same_state(state(taken(changed)), state(model), 1e-14)


def test_statistics_by_an_oracle():
    """Of all outputs together, whatever the batches: mean, unbiased variance, and γ from them."""
    model, batches = net(), [draw(n, 3, 4, 5, seed=n) for n in (1, 7, 4)]
    with torch.no_grad():
        y = model[0](torch.cat(batches)).transpose(0, 1).flatten(1)
    for drop_bias in (False, True):
        norm = quiet(model, "0", batches, drop_bias=drop_bias)[0].norm
        bias = model[0].bias if drop_bias else torch.zeros(4).double()
        close(norm.running_mean, (y.mean(1) - bias).detach())
        close(norm.running_var, y.var(1))
        close(norm.weight.detach(), (y.var(1) + EPS).sqrt())
        close(norm.bias.detach(), y.mean(1))
        assert int(norm.num_batches_tracked) == 3


def test_statistics_behind_several_norms_are_those_of_the_network_as_it_was():
    model, x = net(), draw(9, 3, 4, 4)
    changed = quiet(model, "conv", x)
    with torch.no_grad():
        y = model[3](model[1](model[0](x))).transpose(0, 1).flatten(1)  # no dropout
    close(changed[3].norm.running_mean, y.mean(1))


def test_large_offsets_lose_no_digits():
    model = seeded(nn.Sequential(nn.Conv2d(1, 2, 1)), torch.float32)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1e4, -1e4]))
    x = draw(4, 1, 8, 8, dtype=torch.float32)
    norm = quiet(model, "0", x)[0].norm
    with torch.no_grad():
        y = model[0](x).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_var.double(), y.var(1), rtol=1e-6, atol=0)


def test_constant_channels():
    model, x = net(), draw(4, 3, 4, 4)
    with torch.no_grad():
        model[0].weight[1].zero_()
    for drop_bias in (False, True):
        changed = quiet(model, "conv", x, drop_bias=drop_bias)
        close(evaluated(changed, x), evaluated(model, x))
        close(changed[0].norm.weight[1].detach(), torch.tensor(EPS).double().sqrt(), 1e-8)
        same_state(state(taken(changed)), state(model), 1e-13)


def test_in_training_it_starts_near_the_identity():
    model, x = nn.Sequential(net()[0]), draw(64, 3, 8, 8)
    changed = quiet(model, "0", x, drop_bias=True)
    y, before = changed.train()(x), model(x).detach()
    assert float((y.detach() - before).abs().max() / before.abs().max()) < 1e-3
    assert int(changed[0].norm.num_batches_tracked) == 2
    y.sum().backward()
    assert changed[0].norm.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype):
    model, x = net(dtype=dtype), draw(6, 3, 4, 4, dtype=dtype)
    lines = []
    changed = insert(model, "conv", x, drop_bias=dtype is torch.float32, report=lines.append)
    norm = changed[0].norm
    assert {t.dtype for t in state(norm).values() if t.is_floating_point()} == {torch.float32}
    assert changed[0].layer.weight.dtype is dtype
    epsilon = torch.finfo(dtype).eps
    close(evaluated(changed, x), evaluated(model, x), 40 * epsilon)
    assert "float64" in lines[-1]
    assert str(dtype).removeprefix("torch.") in lines[-1]
    same_state(state(taken(changed)), state(model), 0.0 if dtype is not torch.float32 else 1e-5)


def test_sync():
    changed = quiet(net(), "0", draw(4, 3, 4, 4), kind="sync")
    assert type(changed[0].norm) is nt.SyncBatchNorm
    assert type(quiet(net(), "0", draw(4, 3, 4, 4), kind="sync", layers="torch")[0].norm) is (
        nn.SyncBatchNorm
    )


# --- out again ------------------------------------------------------------------------------------


def trained(model, x):
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_norms_that_were_trained_go_into_their_layers(transposed, drop_bias, bias):
    model, x = net(transposed=transposed, bias=bias), draw(8, 3, 5, 5)
    changed = trained(quiet(model, "conv", x, drop_bias=drop_bias), x)
    bare = taken(changed, example=x)
    close(evaluated(bare, x), evaluated(changed, x))
    assert [type(m) for m in bare] == [type(m) for m in model]
    assert not torch.allclose(evaluated(bare, x), evaluated(model, x), atol=1e-3)
    assert bare[0].bias is not None  # where there was none there has to be one now


def test_layers_without_bias_get_none():
    model, x = net(bias=False), draw(4, 3, 4, 4)
    for drop_bias in (True, False):
        changed = quiet(model, "conv", x, drop_bias=drop_bias)
        same_state(state(taken(changed)), state(model))


def test_a_bias_of_zeros_that_was_dropped_comes_back():
    model, x = net(), draw(4, 3, 4, 4)
    with torch.no_grad():
        model[0].bias.zero_()
    changed = quiet(model, "0", x, drop_bias=True)
    assert changed[0].norm.bias.equal(changed[0].norm.running_mean)
    same_state(state(taken(changed)), state(model))


@pytest.mark.parametrize("target", ["torch", "sync", "frozen", "ghost"])
def test_norms_that_were_converted_meanwhile(target):
    x = draw(8, 3, 4, 4)
    changed = quiet(net(), "conv", x)
    options = {"ghost": 2} if target == "ghost" else {}
    other = convert(changed, target, report=None, **options)
    same_state(state(taken(other)), state(net()))
    grouped = convert(changed, "group", groups=1, report=None)
    with pytest.raises(ModelError, match=r"2 norms cannot be taken out.*0\.norm: .*its input"):
        taken(grouped)


def test_what_cannot_be_taken_out():
    x = draw(8, 3, 4, 4)
    changed = trained(quiet(net(), "conv", x), x)
    hooked = copy.deepcopy(changed)
    hooked[0].norm.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match=r"1 norm cannot.*hooks"):
        taken(hooked)
    tied = copy.deepcopy(changed)
    tied.other = nn.Conv2d(3, 4, 3).double()
    tied.other.weight = tied[0].layer.weight
    values = state(tied)
    with pytest.raises(ModelError, match="shares its weight"):
        taken(tied, inplace=True)
    same_state(state(tied), values)
    spectral = copy.deepcopy(changed)
    nn.utils.parametrizations.weight_norm(spectral[0].layer)
    with pytest.raises(ModelError, match="weight is parametrized"):
        taken(spectral)
    assert list(state(taken(spectral, only="3")))[-2:] == ["3.weight", "3.bias"]


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight / self.weight.std()
        return self._conv_forward(x, weight, self.bias)


class Renamed(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_of_the_users_own(dtype):
    x = draw(8, 3, 4, 4, dtype=dtype)
    for kind in (Standardized, Renamed):
        model = seeded(nn.Sequential(kind(3, 4, 3)), dtype)
        fresh = quiet(model, "0", x)
        same_state(state(taken(fresh, example=x)), state(model))  # no weight had to change
        changed = trained(fresh, x)
        with pytest.raises(ModelError, match=f"a {kind.__name__}, .*example= would tell"):
            taken(changed)
        if kind is Renamed:
            tolerance = 1e-12 if dtype is torch.float64 else 1e-5
            close(evaluated(taken(changed, example=x), x), evaluated(changed, x), tolerance)
        else:
            with pytest.raises(ModelError, match="does not do the same after remove"):
                taken(changed, example=x)


def test_only_some_are_taken_out():
    model, x = net(), draw(8, 3, 4, 4)
    changed = quiet(model, "conv", x)
    for only in ("3", ["3"], lambda site: site.name == "3.norm"):
        part = taken(changed, only=only, example=x)
        assert type(part[0]) is nn.Sequential
        assert type(part[3]) is nn.Conv2d
    with pytest.raises(ModelError, match="fits no layer"):
        taken(changed, only="1")


def test_a_model_without_inserted_norms():
    lines = []
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    remove(model, report=lines.append)
    assert lines == ["remove: nothing to do: there is no norm of insert()'s"]
    with pytest.raises(DTypeError, match=r"remove\(\) has no model"):
        remove(3)


def test_remove_says_whether_it_was_verified():
    x = draw(8, 3, 4, 4)
    changed, lines = quiet(net(dtype=torch.float32), "conv", x.float()), []
    remove(changed, report=lines.append)
    assert lines == [
        "remove: 2 norms taken into their layers: 0, 3",
        "remove: not verified; pass example=, an input of the model",
    ]
    lines.clear()
    remove(changed, example=x.float(), report=lines.append)
    assert lines[1].startswith("remove: verified in eval mode: outputs differ by at most ")


# --- in the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
def test_in_place_or_not(inplace):
    model, x = net(), draw(8, 3, 4, 4)
    model[3].eval()
    model[0].weight.requires_grad_(False)
    weight, values = model[0].weight, state(model)
    hooks = []
    model[0].register_forward_hook(lambda *call: hooks.append(call[2]))
    changed = quiet(model, "conv", x, inplace=inplace)
    assert (changed is model) is inplace
    assert (changed[0].layer.weight is weight) is inplace
    assert not changed[0].layer.weight.requires_grad
    modes = [m.training for m in changed]
    assert modes == [True, True, True, False, True]
    assert (changed[0].norm.training, changed[3].norm.training) == (True, False)
    hooks.clear()
    y = changed.eval()(x)
    assert len(hooks) == 1  # on the layer, in front of the norm
    if not inplace:
        same_state(state(model), values)
    bare = taken(changed, inplace=inplace)
    assert (bare is model) is inplace
    assert (bare[0].weight is weight) is inplace
    close(bare.eval()(x), y)


def test_names_in_state_dict():
    changed = quiet(mlp(), "0", draw(8, 3))
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["0.layer.weight", "0.layer.bias", *[f"0.norm.{n}" for n in norm]]
    assert list(state(changed)) == [*expected, "2.weight", "2.bias"]
    fresh = quiet(mlp(), "0", draw(8, 3, seed=1))
    fresh.load_state_dict(changed.state_dict())
    close(evaluated(fresh, draw(4, 3)), evaluated(changed, draw(4, 3)))


def test_results_copy_and_pickle():
    x = draw(8, 3, 4, 4)
    changed = quiet(net(), "conv", x, drop_bias=True)
    for other in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        close(evaluated(other, x), evaluated(changed, x), 0.0)
        same_state(state(taken(other)), state(net()), 1e-14)


def test_a_layer_alone():
    layer = seeded(nn.Linear(3, 4))
    pair = quiet(layer, "", draw(8, 3), inplace=True)
    assert pair.layer is layer
    assert list(state(pair))[:2] == ["layer.weight", "layer.bias"]
    assert taken(pair, inplace=True) is layer


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.normed = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.conv = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(self.normed(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("stem.0", ["stem.0"]),
        ("stem", ["stem.0"]),
        ("stem.*", ["stem.0"]),
        ("linear", ["head"]),
        ("conv", ["conv"]),  # the layer of that name, not the type
        (["linear", "stem.*"], ["stem.0", "head"]),
        ("*", ["stem.0", "conv", "head"]),  # a norm follows the other already
        (lambda _, m: isinstance(m, nn.Conv2d) and m.in_channels == 3, ["stem.0"]),
    ],
)
def test_after(after, expected):
    model, lines = seeded(Nested()).eval(), []
    changed = insert(model, after, draw(8, 3, 6, 6), report=lines.append)
    names = [name for name, _ in changed.named_modules() if name.endswith(".norm")]
    assert names == [f"{name}.norm" for name in expected]
    assert any("left alone" in line and "normed.0" in line for line in lines) is (after == "*")


def test_types_by_their_word():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    for word, expected in (("conv", [0, 2]), ("conv_transpose", [1])):
        changed = quiet(seeded(model), word, draw(4, 3, 2, 2))
        assert [i for i, m in enumerate(changed) if type(m) is nn.Sequential] == expected


def test_layers_with_norms_are_refused_by_name_and_left_otherwise():
    model, x = seeded(Nested()), draw(8, 3, 6, 6)
    with pytest.raises(ModelError, match=r"'normed\.0', which a norm follows"):
        quiet(model, "normed.0", x)
    changed = quiet(model, ["stem", "conv"], x)
    with pytest.raises(ModelError, match=r"no layer to put.*follows already: stem\.0\.layer"):
        quiet(changed, "stem.*", x)
    assert len(list(quiet(changed, "*", x).modules())) == len(list(changed.modules())) + 2


# --- what cannot be done, and leaves the model as it was ------------------------------------------


def refused(model, after, data, match, error=ModelError, **options):
    before, values = repr(model), state(model)
    modes = [m.training for m in model.modules()]
    kept = [dict(m.__dict__) for m in model.modules()]
    with pytest.raises(error, match=match):
        quiet(model, after, data, inplace=True, **options)
    assert repr(model) == before
    assert [m.training for m in model.modules()] == modes
    assert [m.__dict__ for m in model.modules()] == kept
    same_state(state(model), values)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.b(self.a(x))


class Once(Twice):
    def forward(self, x):
        return self.b(x)


def test_a_layer_that_is_called_twice_is_refused():
    refused(Twice(), "a", draw(4, 3, 2, 2, dtype=torch.float32), "called more than once")


def test_a_layer_with_two_names_is_followed_by_one_norm():
    model = seeded(Once())
    for after in ("a", "b", "conv", "*"):
        changed = quiet(model, after, draw(4, 3, 2, 2))
        assert changed.a is changed.b
        assert type(changed.a.norm) is nt.BatchNorm2d
        bare = taken(changed)
        assert bare.a is bare.b
        same_state(state(bare), state(model))


def test_a_forward_of_the_users_may_call_the_model_twice():
    model, seen = net(), []

    def forward(model, batch):
        seen.append(batch["left"].dtype)
        return model(batch["left"]) - model(batch["right"])

    data = [{"left": draw(4, 3, 4, 4), "right": draw(4, 3, 4, 4, seed=6)}]
    changed = quiet(model, "conv", data, forward=forward)
    with torch.no_grad():
        y = torch.cat([model[0](x) for x in data[0].values()]).transpose(0, 1).flatten(1)
    close(changed[0].norm.running_mean, y.mean(1))
    assert seen


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


def test_layers_that_no_data_reaches():
    x = draw(4, 3, dtype=torch.float32)
    refused(Skips(), "linear", x, "'unused', which is not reached by the data")
    changed = quiet(Skips(), "used", x)
    assert type(changed.used.norm) is nt.BatchNorm1d
    refused(Skips(), "used", draw(0, 3, dtype=torch.float32), "not reached")


def test_features_have_to_be_second():
    refused(mlp(), "0", draw(4, 7, 3), r"\(4, 7, 8\), with its channels last")
    refused(net(), "0", [draw(3, 4, 4)], "first, without a batch")


class Reads(nn.Module):
    """Asks for what a pair does not have."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3).double()

    def forward(self, x):
        return self.lin(x.to(self.lin.weight.dtype))


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3).double()
        self.all = [self.lin]

    def forward(self, x):
        return self.all[0](x)


def test_models_that_reach_into_the_layer():
    refused(Reads(), "lin", draw(4, 3), "does not run.*weight")
    refused(Lists(), "lin", draw(4, 3), "calls a layer past the norm")


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x):
        return self.lin(x) if float(x.sum()) < 1e9 else x


def test_models_that_cannot_be_traced():
    model, x = seeded(Untraceable()), draw(4, 3)
    changed = quiet(model, "linear", x, drop_bias=True)
    close(evaluated(changed, x), evaluated(model, x))


class OneDtype(nn.Module):
    """Computes in float32, whatever comes in: no float64 can be tried."""

    def __init__(self):
        super().__init__()
        self.lin, self.table = nn.Linear(3, 3), torch.ones(3)

    def forward(self, x):
        return self.lin(x.float()) @ self.table


def test_models_that_compute_in_one_dtype():
    lines = []
    insert(OneDtype(), "lin", draw(4, 3).float(), report=lines.append)
    assert "float32" in lines[-1]
    assert "float64" not in lines[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_data_that_breaks_off(error):
    def data():
        yield draw(4, 3, 4, 4)
        raise error("the disk is gone")

    refused(net(), "conv", data(), "the disk is gone", error)


def test_data_that_is_none():
    refused(net(), "conv", [], "gave no batch", DataError)
    refused(net(), "conv", ["a"], "holds no tensor", DataError)
    refused(net(), "conv", draw(4, 5, 4, 4), "does not take this batch", DataError)
    x = draw(4, 3, 4, 4)
    x[2, 1, 0, 0] = float("nan")
    refused(net(), "conv", x, "NaN or infinity from '0'", DataError)


def test_an_interrupt_while_the_norms_are_put_in(monkeypatch):
    """After all checks, when the model itself is changed."""
    real, calls = adding._norm, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:  # the second layer of the third model
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(adding, "_norm", interrupted)
    refused(net(), "conv", draw(4, 3, 4, 4), None, KeyboardInterrupt, drop_bias=True)
    assert len(calls) == 6


@pytest.mark.parametrize("what", ["running_mean", "weight", "bias"])
def test_the_verification_can_fail(what, monkeypatch):
    real = adding._norm

    def spoiled(*args):
        norm = real(*args)
        with torch.no_grad():
            getattr(norm, what).mul_(1 + 1e-6)
        return norm

    monkeypatch.setattr(adding, "_norm", spoiled)
    refused(net(), "conv", draw(4, 3, 4, 4), "does not do the same after insert")


def test_gamma_without_eps_is_found(monkeypatch):
    """The mistake that would pass at a float32 tolerance."""
    monkeypatch.setattr(adding, "deviation", lambda norm: norm.running_var.sqrt())
    refused(net(), "conv", draw(4, 3, 4, 4), "does not do the same after insert")


def test_a_norm_that_is_taken_out_wrongly_is_found(monkeypatch):
    from normkit.models.inserting import removing

    x = draw(8, 3, 4, 4)
    changed = trained(quiet(net(), "conv", x), x)
    values, real = state(changed), removing._affine

    def spoiled(site):
        affine = real(site)
        return removing.Affine(affine.scale * (1 + 1e-6), affine.shift)

    monkeypatch.setattr(removing, "_affine", spoiled)
    with pytest.raises(ModelError, match="does not do the same after remove"):
        taken(changed, example=x, inplace=True)
    same_state(state(changed), values)


def test_bad_arguments():
    x = draw(4, 3, 4, 4)
    with pytest.raises(DTypeError, match=r"insert\(\) has no model"):
        quiet("vgg", "conv", x)
    refused(net(), "convs", x, "fits no layer")
    refused(net(), "1", x, "fits no layer")
    refused(net(), [], x, "no layer to put")
    refused(net(), "conv", x, "kind=", OptionError, kind="group")
    refused(net(), "conv", x, "layers=", OptionError, layers="timm")
    refused(nn.Sequential(nn.ReLU()), "conv", x, "fits no layer")
    with pytest.raises(ModelError, match="does not know its shape yet"):
        quiet(nn.Sequential(nn.LazyConv2d(3, 1)), "conv", x)


def test_parametrized_layers():
    model, x = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))), draw(8, 3)
    model.double()
    changed = quiet(model, "linear", x, drop_bias=True)
    close(evaluated(changed, x), evaluated(model, x))
    same_state(state(taken(changed)), state(model), 1e-14)
    biased = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4), "bias", 0))
    refused(biased.double(), "linear", x, "whose bias is parametrized", drop_bias=True)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)

    def encode(self, x):
        return self.first(x)


def test_a_part_of_the_model_called_by_forward():
    """The model itself is never called, so its hooks do not say where a batch begins."""
    x = torch.randn(96, 4)
    model = Encoder().eval()
    changed = insert(model, "first", x.split(32), forward=lambda m, b: m.encode(b), report=None)
    torch.testing.assert_close(changed.encode(x), model.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "behind"),
    [(nn.Linear, ["3"]), ([nn.Linear], ["3"]), (["1", nn.Linear], ["1", "3"])],
)
def test_layers_by_class(after, behind):
    x = torch.randn(32, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    changed = insert(model.eval(), after, x, report=None)
    found = [
        n for n, m in changed.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    assert found == [f"{name}.norm" for name in behind]


def test_channels_that_hardly_vary_are_told():
    lines = []
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    nn.init.zeros_(model[0].weight)
    insert(model, "linear", torch.randn(16, 4), report=lines.append)
    assert any("hardly varies" in line for line in lines)


def test_wrapped_models_are_refused_by_name():
    model = nn.DataParallel(nn.Sequential(nn.Linear(4, 2)).eval())
    with pytest.raises(ModelError, match=r"model\.module"):
        insert(model, "linear", torch.randn(16, 4))
