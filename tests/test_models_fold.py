"""fold(): the folded model computes what the model did, and what cannot be folded says why."""

import copy
import dataclasses
import json
import re

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.nn.utils import parametrizations  # noqa: E402

import normkit.torch as nt  # noqa: E402
from model_structures import structure  # noqa: E402
from normkit.errors import DataError, DTypeError, ModelError  # noqa: E402
from normkit.models.folding import algebra, fold, fold_with_report, plan_folds  # noqa: E402
from normkit.models.folding.replacing import Edits  # noqa: E402
from normkit.torch.beyond import FilterResponseNorm  # noqa: E402

BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BACK = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def trained(model, seed=0):
    """Statistics, gamma and beta as training leaves them, in eval mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, low, high in (
            ("running_mean", -1, 1), ("running_var", 0.3, 3), ("weight", -1.5, 1.5), ("bias", -1, 1)
        ):  # fmt: skip
            held = getattr(module, name, None)
            if isinstance(held, torch.Tensor) and held.dim() == 1:
                held.data.uniform_(low, high, generator=generator)
    return model.double().eval()


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def agrees(model, x, **options):
    """The folded model and the report, once the outputs were compared here too."""
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        want = copy.deepcopy(model)(x.clone())
        folded, report = fold_with_report(model, x, measure=False, **options)
        got = folded(x.clone())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    if not options.get("inplace"):
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
    return folded, report


def reasons(model):
    return dict(plan_folds(model).refused)


# --- into the layer before ------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kinds", [CONV, BACK], ids=["conv", "transposed"])
def test_batch_norm_behind_a_convolution(kinds, dims, groups, bias, affine):
    layer = kinds[dims](4, 8, 3, padding=1, stride=2, groups=groups, bias=bias)
    model = trained(nn.Sequential(layer, BATCH[dims](8, affine=affine), nn.ReLU()))
    folded, report = agrees(model, draw(2, 4, *[5] * dims))
    assert type(folded[1]) is nn.Identity
    assert [(f.norm, f.into, f.direction, f.left) for f in report.folded] == [
        ("1", ("0",), "before", "")
    ]
    assert not report.refused
    added, gone = 0 if bias else 8, 16 if affine else 0
    assert report.parameters_before - report.parameters_after == gone - added
    assert report.verification.difference < 1e-13


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_behind_a_linear_layer(bias, affine):
    model = trained(nn.Sequential(nn.Linear(4, 6, bias), nn.BatchNorm1d(6, affine=affine)))
    folded, _ = agrees(model, draw(5, 4))
    assert type(folded[1]) is nn.Identity


def test_through_operations_that_keep_channels_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 6, 3), nn.Dropout(0.5)
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x):
            x = F.adaptive_avg_pool2d(self.drop(self.conv(x)), 1)
            return self.head(F.relu(self.norm(x.view(x.size(0), -1))))

    _, report = agrees(trained(Net()), draw(2, 3, 7, 7))
    (folded,) = report.folded
    assert (folded.direction, folded.into) == ("before", ("conv",))
    assert folded.through == ("drop", "adaptive_avg_pool2d", "view")


def test_norms_in_a_row():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity(), nn.BatchNorm2d(4))
    _, report = agrees(trained(model), draw(2, 3, 5, 5))
    assert len(report.folded) == 2
    assert not report.refused
    lead = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU())
    _, report = agrees(trained(lead), draw(2, 3, 5, 5))
    assert [f.norm for f in report.folded] == ["1", "0"]


def test_norms_on_both_sides_of_a_layer():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    _, report = agrees(trained(model), draw(5, 4))
    assert [(f.norm, f.into) for f in report.folded] == [("0", ("1",)), ("2", ("1",))]


def test_maxima_pass_only_where_gamma_is_not_negative():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4)))
    assert "negative scale" in reasons(model)["2"]
    model[2].weight.data.abs_()
    agrees(model, draw(2, 3, 9, 9))
    assert not reasons(model)


# --- into the layers after ------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_batch_norm_before_a_convolution(dims, groups, bias, affine):
    layer = CONV[dims](4, 8, 3, groups=groups, bias=bias)
    model = trained(nn.Sequential(BATCH[dims](4, affine=affine), layer, nn.ReLU()))
    folded, report = agrees(model, draw(2, 4, *[5] * dims))
    assert type(folded[0]) is nn.Identity
    assert [(f.norm, f.into, f.direction) for f in report.folded] == [("0", ("1",), "after")]


def test_a_shift_does_not_reach_padding():
    model = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    assert "pads with zeros" in reasons(model)["1"]
    model[2].padding_mode = "reflect"
    model[2]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    agrees(model, draw(2, 3, 6, 6))
    assert not reasons(model)
    model[2].padding_mode = "zeros"
    model[1].bias.data.zero_()
    model[1].running_mean.zero_()
    agrees(model, draw(2, 3, 6, 6))
    assert not reasons(model)


@pytest.mark.parametrize(
    ("layer", "passes"),
    [
        (nn.Conv2d(3, 4, 3, padding="same"), False),
        (nn.Conv2d(3, 4, 1, padding="same"), True),
        (nn.Conv2d(3, 4, 3, padding="valid"), True),
        (nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), False),
    ],
)
def test_padding_by_words_and_by_axis(layer, passes):
    model = trained(nn.Sequential(nn.BatchNorm2d(3), layer))
    _, report = agrees(model, draw(2, 3, 6, 6))
    assert len(report.folded) == passes


@pytest.mark.parametrize(
    ("between", "passes"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(3, padding=1), False),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), True),
        (nn.AvgPool2d(3, 2, ceil_mode=True), True),
        (nn.AvgPool2d(2, divisor_override=3), False),
        (nn.AdaptiveAvgPool2d(3), True),
        (nn.ZeroPad2d(1), False),
        (nn.ZeroPad2d(0), True),
        (nn.ReflectionPad2d(1), True),
        (nn.ReplicationPad2d((0, 1, 2, 0)), True),
        (nn.ConstantPad2d(1, 0.5), False),
        (nn.Dropout2d(0.3), True),
        (nn.ReLU(), False),
        (nn.Softmax(1), False),
        (nn.PixelShuffle(1), False),
        (nn.ChannelShuffle(2), False),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
@pytest.mark.filterwarnings("ignore:.*channel_shuffle")
def test_what_a_shift_passes_through(between, passes):
    after = nn.Sequential(nn.BatchNorm2d(4), between, nn.Conv2d(4, 6, 2))
    before = nn.Sequential(nn.Conv2d(4, 4, 2), between, nn.BatchNorm2d(4))
    for model in (after, before):
        _, report = agrees(trained(model), draw(2, 4, 7, 7))
        assert len(report.folded) == passes, report.refused


@pytest.mark.parametrize("flatten", [nn.Flatten(), nn.Flatten(1, 2), nn.Flatten(2)], ids=str)
def test_flattened_channels(flatten):
    shape = flatten(torch.zeros(2, 3, 4, 5)).shape
    model = trained(nn.Sequential(nn.BatchNorm2d(3), flatten, nn.Linear(shape[-1], 7)))
    _, report = agrees(model, draw(2, 3, 4, 5))
    assert len(report.folded) == (flatten.start_dim == 1 and flatten.end_dim == -1)


def test_flattened_tokens_repeat_their_channels():
    model = trained(nn.Sequential(nn.LayerNorm(4), nn.Flatten(), nn.Linear(20, 7)))
    _, report = agrees(model, draw(2, 5, 4))
    assert len(report.folded) == 1


NORMS = {
    "layer": (lambda: nn.LayerNorm(6), "linear"),
    "layer without bias": (lambda: nn.LayerNorm(6, bias=False), "linear"),
    "rms": (lambda: nn.RMSNorm(6), "linear"),
    "group": (lambda: nn.GroupNorm(2, 6), "conv"),
    "instance": (lambda: nn.InstanceNorm2d(6, affine=True), "conv"),
    "normkit layer": (lambda: nt.LayerNorm(6), "linear"),
    "normkit rms": (lambda: nt.RMSNorm(6), "linear"),
    "normkit group": (lambda: nt.GroupNorm(3, 6), "conv"),
}


@pytest.mark.parametrize("name", NORMS)
def test_gamma_and_beta_of_norms_that_stay(name):
    make, kind = NORMS[name]
    layer = nn.Linear(6, 5, bias=False) if kind == "linear" else nn.Conv2d(6, 5, 2, bias=False)
    model = trained(nn.Sequential(make(), layer))
    folded, report = agrees(model, draw(2, 3, 6) if kind == "linear" else draw(2, 6, 3, 3))
    assert report.folded[0].left == "the normalization without gamma and beta"
    assert folded[0].weight is None
    assert type(folded[0]) is type(model[0])
    assert "affine=False" in repr(folded[0])


def test_instance_norm_with_running_statistics_is_folded_whole():
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()))
    folded, _ = agrees(model, draw(2, 3, 6, 6))
    assert type(folded[1]) is nn.Identity


class Attention(nn.Module):
    def __init__(self, width=8, split=True):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=b) for b in (True, False, True))
        self.out = nn.Linear(width, width)
        self.split = split

    def forward(self, x):
        batch, length, width = x.shape
        y = self.norm(x)
        q, k, v = (
            f(y).view(batch, length, 2, width // 2).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        return x + self.out(y)


class Transformer(nn.Module):
    def __init__(self, norm=nn.LayerNorm, width=8):
        super().__init__()
        self.attention, self.norm = Attention(width), norm(width)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.attention(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x)[:, 0])


def test_a_transformer_block():
    _, report = agrees(trained(Transformer()), draw(2, 5, 8))
    assert [(f.norm, f.into) for f in report.folded] == [
        ("attention.norm", ("attention.q", "attention.k", "attention.v")),
        ("norm", ("up",)),
        ("last", ("head",)),
    ]


def test_an_attention_layer_is_closed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            y = self.norm(x)
            return x + self.mix(y, y, y)[0]

    _, report = agrees(trained(Block()), draw(2, 5, 8))
    assert not report.folded
    assert "goes into mix" in report.refused[0][1]
    layer = trained(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)))
    assert all("is not known" in why for why in reasons(layer).values())


# --- whole networks -------------------------------------------------------------------------------

#: Norms folded of those there are.
FOLDED = {
    "u-net": (4, 4), "convnext": (2, 2), "generator": (2, 2), "discriminator": (1, 1),
    "projecting generator": (0, 1), "recurrent": (1, 1), "efficient": (7, 7), "repvgg": (4, 6),
    "face embedding": (2, 2), "projector": (2, 2), "bnneck": (2, 2), "points": (2, 2),
    "pyramid": (4, 4), "wild": (1, 1), "frozen backbone": (2, 2), "evaluated backbone": (2, 2),
    "instance transfer": (0, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_whole_networks(name):
    model, x = structure(name)
    _, report = agrees(trained(model), x.double())
    assert (len(report.folded), len(report.folded) + len(report.refused)) == FOLDED[name]


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.more = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.more(F.relu(self.norm(torch.cat([x, self.conv(x)], 1))))


class Called(nn.Module):
    """One convolution and one norm, and a forward that each test writes."""

    def __init__(self, how, **layers):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.how = how

    def forward(self, x):
        return self.how(self, x)


def hooked(model, name):
    model.get_submodule(name).register_forward_hook(lambda *call: call[-1] * 1.5)
    return model


def with_values(model, **values):
    for name, value in values.items():
        getattr(model.norm, name).data[1] = value
    return model


def replaced_forward(model):
    model.norm.forward = lambda x: x * 2
    return model


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnForward(nn.Conv2d):
    """Standardizes its weight: a norm's scale would be lost."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        weight = (flat / flat.norm(dim=1, keepdim=True)).view_as(self.weight)
        return F.conv2d(x, weight, self.bias)


class Unlike(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.eps = 1e-5

    def forward(self, x):
        return torch.tanh(x - self.running_mean.view(-1, *[1] * (x.dim() - 2)))


def plainly(m, x):
    return F.relu(m.norm(m.conv(x)))


def tied(model):
    model.last.weight = model.conv.weight
    return model


def in_training(model, name):
    model.get_submodule(name).train()
    return model


#: By name: how the model is made, and words of the reason for its norm.
REFUSED = {
    "activation before": (lambda: Called(lambda m, x: m.norm(F.relu(m.conv(x)))), "relu.* stands"),
    "activation after": (lambda: Called(lambda m, x: m.last(F.relu(m.norm(x)))), "relu.* stands"),
    "norm called twice": (lambda: Called(lambda m, x: m.norm(m.norm(m.conv(x)))), "2 times"),
    "layer called twice": (
        lambda: Called(lambda m, x: F.relu(m.norm(m.conv(m.conv(x))))), "conv is called 2 times",
    ),
    "two names": (
        lambda: Called(lambda m, x: m.norm(m.conv(m.other(x))), other=None), "conv is called 2",
    ),
    "residual": (lambda: Called(lambda m, x: m.norm(y := m.conv(x)) + y), "used elsewhere"),
    "other users": (
        lambda: Called(lambda m, x: m.last(y := m.norm(F.relu(x))) + y), "another operation",
    ),
    "output": (lambda: Called(lambda m, x: m.norm(F.relu(x))), "output of the model"),
    "unused": (lambda: Called(lambda m, x: (m.norm(F.relu(x)), m.conv(x))[1]), "nothing takes"),
    "not called": (lambda: Called(lambda m, x: m.conv(x)), "does not call it"),
    "looked into": (
        lambda: Called(lambda m, x: plainly(m, x) * m.norm.weight.sum()), "used directly",
    ),
    "weight used": (
        lambda: Called(lambda m, x: plainly(m, x) + F.conv2d(x, m.conv.weight)), "used directly",
    ),
    "tied": (lambda: tied(Called(lambda m, x: m.last(plainly(m, x)))), "shares its weight"),
    "norm's hooks": (lambda: hooked(Called(plainly), "norm"), "it has hooks"),
    "layer's hooks": (lambda: hooked(Called(plainly), "conv"), "conv cannot change: it has hooks"),
    "parametrized": (
        lambda: Called(plainly, conv=parametrizations.weight_norm(nn.Conv2d(3, 3, 1))),
        "parametrized",
    ),
    "replaced forward": (lambda: replaced_forward(Called(plainly)), "forward was replaced"),
    "own forward": (lambda: Called(plainly, norm=Doubled(3)), "does not do what a batch norm"),
    "another layer": (lambda: Called(plainly, norm=Unlike(3)), "does not do what a batch norm"),
    "own convolution": (lambda: Called(plainly, conv=OwnForward(3, 3, 1)), "forward of its own"),
    "batch statistics": (
        lambda: Called(plainly, norm=nn.BatchNorm2d(3, track_running_stats=False)),
        "no running statistics",
    ),
    "training": (lambda: in_training(Called(plainly).eval(), "norm"), "training mode"),
    "dropout in training": (
        lambda: in_training(
            Called(lambda m, x: m.norm(m.drop(m.conv(x))), drop=nn.Dropout(0.5)).eval(), "drop"
        ),
        "drops elements",
    ),
    "functional dropout": (
        lambda: Called(lambda m, x: m.norm(F.dropout(m.conv(x)))), "drops elements",
    ),
    "nan mean": (lambda: with_values(Called(plainly), running_mean=float("nan")), "NaN"),
    "infinite gamma": (lambda: with_values(Called(plainly), weight=float("inf")), "infinity"),
    "negative variance": (lambda: with_values(Called(plainly), running_var=-1.0), "negative"),
    "concatenation": (Dense, "several results come together"),
    "sum": (lambda: Called(lambda m, x: m.norm(m.conv(x) + x)), "several results come together"),
    "transposed after": (
        lambda: Called(lambda m, x: m.last(m.norm(F.relu(x))), last=nn.ConvTranspose2d(3, 3, 1)),
        "transposed convolution",
    ),
    "another axis": (
        lambda: Called(lambda m, x: m.norm(m.last(F.relu(x))), last=nn.Linear(6, 3)),
        "another axis",
    ),
    "no affine": (
        lambda: Called(plainly, norm=nn.GroupNorm(1, 3, affine=False)), "neither gamma nor beta",
    ),
    "several axes": (
        lambda: Called(lambda m, x: m.last(m.norm(x)), norm=nn.LayerNorm([6, 6])), "over 2 axes",
    ),
    "no set": (lambda: Called(plainly, norm=FilterResponseNorm(3)), "scale and a shift"),
    "options": (
        lambda: Called(lambda m, x: m.norm(m.conv(x), residual=x), norm=nt.BatchNorm2d(3)),
        "more than its input",
    ),
    "activation option": (
        lambda: Called(lambda m, x: m.norm(m.conv(x), activation="relu"), norm=nt.BatchNorm2d(3)),
        "called with activation=",
    ),
    "adaptive": (
        lambda: Called(plainly, norm=nt.AdaptiveBatchNorm2d(3)), "does not do what a batch norm",
    ),
    "mean only": (
        lambda: Called(plainly, norm=nt.BatchNorm2d(3, mean_only=True)),
        "does not do what a batch norm",
    ),
    "domains": (
        lambda: Called(
            lambda m, x: m.norm(m.conv(x), domain=1), norm=nt.BatchNorm2d(3, domains=2)
        ),
        "more than one domain",
    ),
    "written on": (
        lambda: Called(lambda m, x: m.last(((y := m.norm(x)), x.mul_(0.0), y)[2])), "in place",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why_and_leave_the_norm(name):
    build, words = REFUSED[name]
    model = build()
    modes = {m: m.training for m in model.modules()} if "training" in name else None
    if "nan" not in name and "infinite" not in name and "negative" not in name:
        trained(model)
    model.double().eval()
    for module, mode in (modes or {}).items():
        module.training = mode
    if name == "two names":
        model.other = model.conv
    refused = reasons(model)
    assert re.search(words, refused["norm"]), refused
    assert not plan_folds(model).folded
    x = draw(2, 3, 6, 6)
    folded, report = fold_with_report(model, x, measure=False)
    assert dict(report.refused) == refused
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = copy.deepcopy(model)(x.clone())
        torch.manual_seed(0)
        torch.testing.assert_close(folded(x.clone()), want, equal_nan=True, rtol=0, atol=0)


def test_pre_activation_folds_what_has_a_layer_before_it():
    _, report = agrees(trained(PreActivation()), draw(2, 4, 6, 6))
    assert [f.norm for f in report.folded] == ["norm2"]
    assert "an activation (relu) stands between" in dict(report.refused)["norm1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_would_overflow(dtype):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_var.fill_(1e-9)
    model[1].eps = 1e-12
    model[1].weight.data.fill_(1e4)
    model.to(dtype)
    model[1].double()  # statistics in more digits, as libraries for mixed precision keep them
    refused = reasons(model)
    assert ("overflow in float16" in refused["1"]) if dtype == torch.float16 else not refused


# --- norms of other libraries ---------------------------------------------------------------------


class NormActivation(nn.BatchNorm2d):
    """As timm has it: dropout and activation are children of the norm."""

    def __init__(self, width, act=nn.SiLU):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Frozen(nn.Module):
    """As detectron2 and torchvision have it: buffers only."""

    def __init__(self, width):
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("weight", torch.rand(width))
        self.register_buffer("bias", torch.rand(width))
        self.register_buffer("running_mean", torch.rand(width))
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


Frozen.__name__ = "FrozenBatchNorm2d"


class Named(nn.BatchNorm2d):
    """As In-Place ABN has it: the activation by name; gamma may count by its magnitude."""

    activation, activation_param, magnitude = "leaky_relu", 0.2, False

    def forward(self, x):
        weight = self.weight.abs() if self.magnitude else self.weight
        mean, var = self.running_mean, self.running_var
        y = F.batch_norm(x, mean, var, weight, self.bias, False, 0.0, self.eps)
        return F.leaky_relu(y, self.activation_param)


class ChannelsSecond(nn.LayerNorm):
    """Layer norm of images, as ConvNeXt has it."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class InFloat32(nn.LayerNorm):
    def forward(self, x):
        bias = self.bias.float()
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps)
        return y.to(x.dtype)


class Llama(nn.Module):
    def __init__(self, width, plus=0.0):
        super().__init__()
        self.weight, self.eps, self.plus = nn.Parameter(torch.rand(width)), 1e-6, plus

    def forward(self, x):
        y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (self.weight + self.plus) * y.to(x.dtype)


Llama.__name__ = "LlamaRMSNorm"


class Padded(nn.Conv2d):
    """As TensorFlow pads."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


@pytest.mark.parametrize("act", [nn.SiLU, nn.Identity])
def test_an_activation_within_the_norm_stays(act):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), NormActivation(4, act), nn.Conv2d(4, 2, 1)))
    folded, report = agrees(model, draw(2, 3, 6, 6))
    assert type(folded[1]) is act
    assert report.folded[0].left == ("SiLU" if act is nn.SiLU else "")
    model = trained(nn.Sequential(nn.ReLU(), NormActivation(4), nn.Conv2d(4, 2, 1)))
    assert "its own SiLU comes first" in reasons(model)["1"]


def test_a_zero_gamma_does_not_hide_the_activation():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), NormActivation(4, nn.ReLU)))
    for held in (model[1].weight, model[1].bias):
        held.data.zero_()
    folded, _ = agrees(model, draw(2, 3, 6, 6))
    assert type(folded[1]) is nn.ReLU


def test_frozen_norms():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4), nn.ReLU()))
    folded, _ = agrees(model, draw(2, 3, 6, 6))
    assert type(folded[1]) is nn.Identity
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nt.freeze(ours)
    folded, _ = agrees(trained(ours), draw(2, 3, 6, 6))
    assert type(folded[1]) is nn.Identity


def test_an_activation_by_name():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Named(4)))
    folded, _ = agrees(model, draw(2, 3, 6, 6))
    assert isinstance(folded[1], nn.LeakyReLU)
    assert folded[1].negative_slope == 0.2
    model[1].magnitude = True  # gamma is negative somewhere: not guessed
    assert "does not do what a batch norm does" in reasons(model)["1"]


@pytest.mark.parametrize("order", ["norm_first", "activation_first"])
def test_normkits_norm_with_activation(order):
    layer = nt.NormAct(nt.BatchNorm2d(4), "relu", order)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 2, 1)))
    folded, report = agrees(model, draw(2, 3, 6, 6))
    assert isinstance(folded[1], nn.ReLU) == (order == "norm_first")
    assert [f.norm for f in report.folded] + [n for n, _ in report.refused] == ["1"]


@pytest.mark.parametrize("make", [nt.BatchNorm2d, nt.SyncBatchNorm, nt.SplitBatchNorm2d])
def test_normkits_batch_norms(make):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), make(4), nn.ReLU()))
    folded, _ = agrees(model, draw(2, 3, 6, 6))
    assert type(folded[1]) is nn.Identity


def test_layer_norm_of_images():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), ChannelsSecond(4), nn.Conv2d(4, 6, 2, 2)))
    folded, _ = agrees(model, draw(2, 3, 6, 6))
    assert folded[1].weight is None


def test_a_layer_that_needs_its_gamma_keeps_ones():
    model = trained(nn.Sequential(Llama(6), nn.Linear(6, 3)))
    folded, report = agrees(model, draw(2, 5, 6))
    assert torch.equal(folded[0].weight, torch.ones(6, dtype=torch.float64))
    assert "ones for gamma" in report.folded[0].left
    assert "does not do" in reasons(trained(nn.Sequential(Llama(6, 1.0), nn.Linear(6, 3))))["0"]


def test_parts_in_float32_are_judged_by_their_own_rounding():
    model = trained(nn.Sequential(InFloat32(6), nn.Linear(6, 3)))
    x = draw(2, 5, 6)
    folded, report = fold_with_report(model, x, measure=False)
    assert len(report.folded) == 1
    assert 1e-9 < report.verification.difference < 1e-6
    torch.testing.assert_close(folded(x), model(x), rtol=1e-6, atol=1e-6)


def test_a_convolution_that_pads_in_its_own_way():
    model = trained(nn.Sequential(Padded(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU()))
    _, report = agrees(model, draw(2, 3, 6, 6))
    assert len(report.folded) == 1
    model = trained(nn.Sequential(nn.BatchNorm2d(3), Padded(3, 4, 2)))
    assert "forward of its own" in reasons(model)["0"]  # a shift would not reach the padding


# --- the model that comes out ---------------------------------------------------------------------


def small():
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 16, 4), nn.BatchNorm1d(4),
        )
    )  # fmt: skip


IMAGES = draw(2, 3, 6, 6)


def test_in_place_or_not():
    model = small()
    folded, _ = agrees(model, IMAGES)
    assert folded is not model
    assert isinstance(model[1], nn.BatchNorm2d)
    want = model(IMAGES)
    same = fold(model, IMAGES, inplace=True, report=None)
    assert same is model
    assert type(model[1]) is nn.Identity
    torch.testing.assert_close(model(IMAGES), want)


def test_what_a_model_carries_stays():
    model = small().float()
    model = model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    seen = []
    model[2].register_forward_hook(lambda *_: seen.append(1))
    folded = fold(model, IMAGES.float(), report=None)
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded[0].weight.requires_grad
    assert not folded[0].bias.requires_grad
    assert folded[4].weight.requires_grad
    assert folded[0].weight.dtype == torch.float32
    assert not any(m.training for m in folded.modules())
    seen.clear()
    folded(IMAGES.float())
    assert seen == [1]
    again = copy.deepcopy(folded)
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(IMAGES.float()), folded(IMAGES.float()))
    folded.train()  # and is as frozen norms are
    torch.testing.assert_close(folded(IMAGES.float()), model(IMAGES.float()))


def test_norms_that_a_container_indexes():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)])
            self.by_name = nn.ModuleDict({"norm": self.layers[1]})

        def forward(self, x):
            return F.relu(self.by_name["norm"](self.layers[0](x)))

    folded, _ = agrees(trained(Indexed()), draw(2, 3, 4, 4))
    assert type(folded.layers[1]) is nn.Identity
    assert folded.by_name["norm"] is folded.layers[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = small().to(dtype)
    folded, report = fold_with_report(model, IMAGES.to(dtype), measure=False)
    assert folded[0].weight.dtype == dtype
    found = report.verification
    assert found.difference < 1e-12
    assert 0 < found.own_difference < 50 * torch.finfo(dtype).eps
    assert found.own_dtype == str(dtype).removeprefix("torch.")


# --- proof ----------------------------------------------------------------------------------------


def forgotten_eps(site):
    return REAL_AFFINE(dataclasses.replace(site, eps=0.0))


def transposed_groups(layer):
    first, *rest = layer.weight.shape
    return layer.weight.reshape(first // layer.groups, layer.groups, *rest).transpose(0, 1)


REAL_AFFINE = algebra.affine_of


def test_the_comparison_finds_a_forgotten_eps(monkeypatch):
    model = small()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr("normkit.models.folding.ends.affine_of", forgotten_eps)
    with pytest.raises(ModelError, match=r"relative difference of .* in \d, call 1"):
        fold(model, IMAGES, inplace=True, report=None)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_the_comparison_finds_mixed_up_groups(monkeypatch):
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2)
    model = trained(nn.Sequential(layer, nn.BatchNorm2d(6)))
    monkeypatch.setattr(algebra, "_by_groups", transposed_groups)
    with pytest.raises(ModelError, match="does not do the same"):
        fold(model, draw(2, 4, 5, 5), report=None)


def test_a_branch_that_adds_nothing_is_compared_all_the_same(monkeypatch):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.last, self.zero = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return x + self.zero(self.last(F.relu(self.norm(self.conv(x)))))

    model = trained(Branch())
    for held in (model.zero.weight, model.zero.bias):
        held.data.zero_()
    agrees(model, draw(2, 3, 4, 4))
    monkeypatch.setattr("normkit.models.folding.ends.affine_of", forgotten_eps)
    with pytest.raises(ModelError, match="in norm, call 1"):
        fold(model, draw(2, 3, 4, 4), report=None)


def test_a_tolerance_of_the_users():
    model = small().bfloat16()
    x = IMAGES.bfloat16()
    fold(model, x, tolerance=0.1, report=None)
    with pytest.raises(ModelError, match="at most 1e-05 in bfloat16"):
        fold(model, x, tolerance=1e-5, report=None)


class Peeks(nn.Module):
    """Looks into its norm in a way that no graph shows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) * self.norm.eps


def test_a_norm_that_is_missed():
    model = trained(Peeks())
    with pytest.raises(ModelError, match="does not run"):
        fold(model, draw(2, 3, 4, 4), inplace=True, report=None)
    assert isinstance(model.norm, nn.BatchNorm2d)


class Taps(nn.Module):
    """Cannot be traced, and does with its part what the part's own forward does not."""

    def __init__(self, taps=True):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.taps = taps

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        tapped = self.part[0](x)
        return self.part[1:](tapped) + tapped if self.taps else self.part(x)


def test_parts_of_a_model_that_cannot_be_traced():
    folded, report = agrees(trained(Taps()), draw(2, 3, 4, 4))
    assert not report.folded
    assert "changed the result" in report.refused[0][1]
    folded, report = agrees(trained(Taps(taps=False)), draw(2, 3, 4, 4))
    assert type(folded.part[1]) is nn.Identity

    class Odd(Taps):
        def forward(self, x, needed):
            return super().forward(x) * needed

    _, report = fold_with_report(trained(Odd()), measure=False)
    assert "pass example=" in report.refused[0][1]
    assert not report.folded


# --- examples -------------------------------------------------------------------------------------


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return y.flatten(1)[:, : 4 * 64].reshape(-1, 4, 64)  # of 64 by 64 pixels at least


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "(2, 3, 32, 32)"),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), "(2, 2, 32)"),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), "(2, 5)"),
        (nn.Sequential(nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4)), "(2, 5)"),
        (nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "numbers of shape"),
        (Sized(), "(2, 3, 64, 64)"),
    ],
    ids=["images", "series", "rows", "rows behind an activation", "words", "larger images"],
)
def test_inputs_are_guessed(model, words):
    _, report = fold_with_report(trained(model), measure=False)
    assert words in report.verification.input
    assert report.verification.difference < 1e-12


def test_an_input_that_cannot_be_guessed():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x, shift):
            return {"y": [F.relu(self.norm(self.conv(x))) + shift]}

    model, x = trained(Pair()), draw(2, 3, 4, 4)
    lines = []
    folded = fold(model, report=lines.append)
    assert lines[-1] == "fold: not verified: no input could be guessed: pass example="
    torch.testing.assert_close(folded(x, 1.0)["y"], model(x, 1.0)["y"])
    for example in ((x, torch.ones(1)), {"x": x, "shift": torch.ones(1)}):
        _, report = fold_with_report(model, example, measure=False)
        assert report.verification.difference < 1e-12
    with pytest.raises(DataError, match="does not take the example"):
        fold(model, x, report=None)


# --- reports, bad input, interrupts ---------------------------------------------------------------


def test_the_report():
    model = nn.Sequential(small(), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
    lines = []
    fold(trained(model), IMAGES, report=lines.append)
    assert lines[0].startswith("fold: 3 of 4 norms folded into 3 layers; ")
    assert lines[1] == "fold: left of 1: the normalization without gamma and beta"
    assert lines[2].startswith("fold: not 4: not into the layer before it: an activation (3)")
    assert re.match(r"fold: verified on the example: .* \d\.\de-\d\d .* in float64$", lines[3])
    assert len(lines) == 4 or re.match(r"fold: \d+\.\d\d times as fast on it: ", lines[4])
    _, report = fold_with_report(model, IMAGES)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [f["norm"] for f in plain["folded"]] == ["0.1", "0.5", "1"]
    assert plain["verification"]["speedup"] > 0
    assert plain["refused"][0]["norm"] == "4"
    bare = report.parameters_before - report.parameters_after
    assert bare == 16 - 8 + 8 + 8


def test_a_model_without_norms(capsys):
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    assert fold(model) is not model
    assert capsys.readouterr().out == "fold: the model has no norms\n"


def test_bad_input():
    with pytest.raises(DTypeError, match="received str"):
        fold("model")
    with pytest.raises(ModelError, match=r"model\.eval\(\) first"):
        fold(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def test_a_model_that_cannot_be_copied():
    model = small()
    model.kept = model(IMAGES)  # of a forward with gradients
    with pytest.raises(ModelError, match="cannot be copied"):
        fold(model, IMAGES)


@pytest.mark.parametrize("at", range(3))
def test_an_interrupt_leaves_the_model_as_it_was(at):
    model = small()
    before = {name: id(module) for name, module in model.named_modules()}
    values = copy.deepcopy(model.state_dict())
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) > at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fold(model, IMAGES, report=report, inplace=True)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(model.state_dict()[name], values[name]) for name in values)


def test_changes_are_made_all_or_none():
    class Fails(dict):
        def __setitem__(self, key, value):
            raise KeyboardInterrupt

    net, edits = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()), Edits()
    weight, act = net[0].weight, net[1]
    edits.replace(net, act, nn.Identity())
    edits.tensor(net[0], "weight", torch.zeros(2, 2))
    edits.tensor(net[0], "bias", torch.zeros(2))
    edits.attribute(net, "mark", 1)
    edits._steps.append((Fails(), "x", 1))
    with pytest.raises(KeyboardInterrupt):
        edits.make()
    assert net[0].weight is weight
    assert net[0].bias is None
    assert net[1] is act
    assert not hasattr(net, "mark")


def test_the_users_model_and_generators_are_left_alone():
    model = small()
    model.calls = 0

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = model, 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    counting = Counts().eval()
    state = torch.get_rng_state()
    fold(counting, IMAGES, report=[].append)
    assert counting.calls == 0
    assert torch.equal(torch.get_rng_state(), state)


# --- random networks ------------------------------------------------------------------------------


@st.composite
def networks(draw_from):
    """A chain of layers, with a residual around some of them."""
    width = draw_from(st.sampled_from([2, 4]))
    pick = draw_from(st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=6))
    seed = draw_from(st.integers(0, 99))
    residual = draw_from(st.booleans())
    flat = draw_from(st.booleans())
    torch.manual_seed(seed)
    parts = [PARTS[name](width) for name in pick]
    if flat:
        parts += [nn.Flatten(), nn.LazyLinear(3), nn.BatchNorm1d(3)]
    return parts, residual, seed, width


PARTS = {
    "conv": lambda c: nn.Conv2d(c, c, 1, bias=False),
    "padded": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "grouped": lambda c: nn.Conv2d(c, c, 1, groups=2),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 1, groups=2),
    "batch": lambda c: nn.BatchNorm2d(c),
    "plain batch": lambda c: nn.BatchNorm2d(c, affine=False),
    "group": lambda c: nn.GroupNorm(2, c),
    "activated": lambda c: NormActivation(c),
    "relu": lambda _: nn.ReLU(),
    "average": lambda _: nn.AvgPool2d(3, 1, 1),
    "maximum": lambda _: nn.MaxPool2d(3, 1, 1),
    "dropout": lambda _: nn.Dropout(0.3),
}


class Chain(nn.Module):
    def __init__(self, parts, residual):
        super().__init__()
        self.parts, self.residual = nn.Sequential(*parts), residual

    def forward(self, x):
        y = x
        for part in self.parts:
            y = part(y)
            if self.residual and isinstance(part, nn.ReLU):
                y = y + x
        return y


@settings(max_examples=60, deadline=None)
@given(networks())
def test_random_networks_keep_their_function(network):
    parts, residual, seed, width = network
    model = Chain(parts, residual)
    x = draw(2, width, 4, 4)
    model.eval()(x.float())
    agrees(trained(model, seed), x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, y):
        return self.norm(self.conv(x)) + y


def test_nothing_unverified_is_written(tmp_path):
    from normkit.models.folding.files import fold_file

    out = tmp_path / "folded.pt"
    with pytest.raises(ModelError, match="example"):
        fold_file(TwoInputs().eval(), out, report=None)
    assert not list(tmp_path.iterdir())
    example = (torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4))
    assert fold_file(TwoInputs().eval(), out, example=example, report=None).folded
    assert out.exists()


def test_a_file_is_not_made_from_a_model_in_training(tmp_path):
    from normkit.models.folding.files import fold_file

    model = TwoInputs().train()
    with pytest.raises(ModelError, match="training"):
        fold_file(model, tmp_path / "folded.pt", report=None)
    assert model.training
    assert not list(tmp_path.iterdir())


def test_large_examples_are_compared_on_samples():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    _, report = fold_with_report(model, torch.randn(64, 3, 8, 8))
    assert report.verification.input == "samples of the example"
    _, report = fold_with_report(model, torch.randn(4, 3, 8, 8))
    assert report.verification.input == "the example"


def test_wrapped_models_are_refused_before_anything_is_compiled():
    model = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    with pytest.raises(ModelError, match=r"model\.module"):
        fold(model)
