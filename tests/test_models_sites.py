"""Norms recognised by what they have; graphs of modules; batches; files written whole."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import normkit.torch as nt  # noqa: E402
from normkit.errors import DataError, FileError  # noqa: E402
from normkit.models.batches import batches_of, call  # noqa: E402
from normkit.models.graphs.module import trace  # noqa: E402
from normkit.models.sites import find_sites, site_of  # noqa: E402
from normkit.writing import check_output, replacing, write_whole  # noqa: E402

# --- look-alikes of other libraries' layers, written from their public shape --------------------


class FrozenBatchNorm2d(nn.Module):
    """As in detection libraries: four buffers, no parameter."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.num_features, self.eps = channels, eps
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class BatchNormAct2d(nn.BatchNorm2d):
    """As in image model libraries: the activation is inside."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class InPlaceABN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.num_features, self.eps, self.momentum = channels, 1e-5, 0.1
        self.activation, self.activation_param = "leaky_relu", 0.01
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


class LlamaRMSNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps


class LayerNorm(nn.Module):
    """Channels-first, as in ConvNeXt's code."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps, self.normalized_shape, self.data_format = 1e-6, (width,), "channels_first"


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PreNorm(nn.Module):
    """A container with a norm's name."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.eps = nn.LayerNorm(width), 0.1


class NormalizedLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("layer", "kind", "channels", "frozen", "dims"),
    [
        (nn.BatchNorm1d(4), "batch", 4, False, 1),
        (nn.BatchNorm3d(4, affine=False), "batch", 4, False, 3),
        (nn.BatchNorm2d(4, track_running_stats=False), "batch", 4, False, 2),
        (nn.SyncBatchNorm(4), "batch", 4, False, None),
        (nn.InstanceNorm2d(4), "instance", 4, False, 2),
        (nn.InstanceNorm2d(4, track_running_stats=True), "instance", 4, False, 2),
        (nn.GroupNorm(2, 4), "group", 4, False, None),
        (nn.LayerNorm((3, 4)), "layer", 12, False, None),
        (nn.LayerNorm(4, elementwise_affine=False), "layer", 4, False, None),
        (nn.RMSNorm(4), "rms", 4, False, None),
        (nt.BatchNorm2d(4, ghost=2), "batch", 4, False, 2),
        (nt.RMSNorm(4), "rms", 4, False, None),
        (nt.beyond.FilterResponseNorm(4), "other", 4, False, None),
        (FrozenBatchNorm2d(4), "batch", 4, True, 2),
        (BatchNormAct2d(4), "batch", 4, False, 2),
        (InPlaceABN(4), "batch", 4, False, None),
        (LlamaRMSNorm(4), "rms", 4, False, None),
        (LayerNorm(4), "layer", 4, False, None),
        (LayerNorm2d(4), "layer", 4, False, 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_a_norm(layer, kind, channels, frozen, dims):
    site = site_of("here", layer)
    assert (site.name, site.kind, site.channels) == ("here", kind, channels)
    assert (site.frozen, site.dims, site.module) == (frozen, dims, layer)


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 4), nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Embedding(4, 4), PreNorm(4),
     NormalizedLinear(4, 4), nn.Sequential(nn.BatchNorm1d(4)), nn.MultiheadAttention(4, 1),
     nn.Dropout(), nn.LazyBatchNorm1d(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_what_is_no_norm(module):
    assert site_of("", module) is None


def test_a_site_has_what_the_layer_has():
    layer = nn.BatchNorm2d(3, eps=1e-3, momentum=None)
    layer(torch.randn(4, 3, 2, 2))
    site = site_of("a.b", layer.eval().requires_grad_(False))
    assert site.gamma is layer.weight
    assert site.beta is layer.bias
    assert site.mean is layer.running_mean
    assert site.var is layer.running_var
    assert (site.eps, site.momentum, site.cumulative, site.batches) == (1e-3, None, True, 1)
    assert (site.training, site.tracks, site.learns, site.synced) == (False, True, False, False)
    assert not site.uses_batch


@pytest.mark.parametrize(
    ("layer", "uses"),
    [
        (nn.BatchNorm1d(2), True),
        (nn.BatchNorm1d(2).eval(), False),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), True),
        (FrozenBatchNorm2d(2), False),
        (nn.LayerNorm(2), False),
    ],
)
def test_who_uses_the_batch(layer, uses):
    assert site_of("", layer).uses_batch is uses


def test_our_freeze_is_known():
    layer = nt.BatchNorm1d(2)
    nt.freeze(layer)
    assert site_of("", layer).frozen
    nt.unfreeze(layer)
    assert not site_of("", layer).frozen


def test_a_shared_layer_is_one_site():
    norm = nn.BatchNorm1d(4)
    assert [s.name for s in find_sites(nn.Sequential(norm, nn.ReLU(), norm))] == ["0"]


# --- graphs -------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nt.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return F.relu(self.drop(self.norm(self.conv(x))) + x)


class Branching(nn.Module):
    """Its forward asks for a value, which no graph has."""

    def __init__(self):
        super().__init__()
        self.inner = Block(4)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.calls, self.seen = Block(4), 0, []

    def forward(self, x):
        self.calls += 1
        self.last = x
        return self.block(x)


def ops(graph):
    return [(node.op, node.target or node.function) for node in graph]


def test_a_block():
    graph = trace(Block(4))
    assert ops(graph) == [
        ("input", ""), ("conv", "conv"), ("norm", "norm"), ("dropout", "drop"),
        ("add", "add"), ("activation", "relu"), ("output", ""),
    ]  # fmt: skip
    conv = graph["conv"]
    assert conv.attributes["padding"] == (1, 1)
    assert conv.obstacle == ""
    assert [n.name for n in graph.users("x")] == ["conv", "add"]
    assert graph.only_user("x") is None
    assert graph.only_user("conv") is graph["norm"]
    assert graph.unknown == {}


def test_a_part_that_cannot_be_traced_is_closed_and_its_inside_an_island():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Branching(), nn.BatchNorm2d(4))
    graph = trace(model)
    outside = [n.target for n in graph if n.target in ("0", "1", "2")]
    assert outside == ["0", "1", "2"]
    assert graph.calls("1")[0].op == "other"
    assert "1" in graph.unknown
    assert [n.target for n in graph if n.op == "norm"] == ["1.inner.norm", "2"]
    assert next(n.op for n in graph if n.name.startswith("1.inner/")) == "input"


def test_a_root_that_cannot_be_traced_leaves_its_parts():
    graph = trace(Branching())
    assert "" in graph.unknown
    assert [n.target for n in graph if n.op == "norm"] == ["inner.norm"]


def test_tracing_leaves_no_trace():
    model = Counting().train()
    before = dict(model.__dict__)
    trace(model)
    assert model.calls == 0
    assert set(model.__dict__) == set(before)
    assert model.block.norm.num_batches_tracked == 0


def test_shared_layers_are_several_calls():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    graph = trace(nn.Sequential(conv, norm, conv, norm))
    assert len(graph.calls("0")) == 2
    assert len(graph.calls("1")) == 2


def test_obstacles_are_named():
    hooked, own = nn.Conv2d(3, 4, 1), nt.beyond.WSConv2d(4, 4, 1)
    hooked.register_forward_hook(lambda *_: None)
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    graph = trace(nn.Sequential(hooked, own, weighted, nn.BatchNorm2d(4)))
    words = [graph.calls(str(i))[0].obstacle for i in range(4)]
    assert "hooks" in words[0]
    assert "WSConv2d" in words[1]
    assert "parametrized" in words[2]
    assert words[3] == ""


def test_a_single_layer_is_a_graph():
    assert ops(trace(nn.BatchNorm1d(3)))[1] == ("norm", "BatchNorm1d")


# --- batches ------------------------------------------------------------------------------------

X, Y = torch.randn(130, 3), torch.arange(130) % 5


@pytest.mark.parametrize(
    ("data", "sizes", "labelled"),
    [
        (X, [64, 64, 2], False),
        (X.numpy(), [64, 64, 2], False),
        ((X, Y), [64, 64, 2], True),
        ([X[:3], X[3:5]], [3, 2], False),
        (X.split(100), [100, 30], False),
        ((X[:4], X[4:9]), [4, 5], False),
        ((X.numpy(), Y.numpy()), [64, 64, 2], True),
        ((X, X[:, :2]), [64, 64, 2], False),
        ([(X[:3], Y[:3])], [3], True),
        ([[X[:3], Y[:3]]], [3], True),
        ([{"input": X[:3], "labels": Y[:3]}], [3], True),
        ({"input": X[:3]}, [3], False),
        (lambda: iter([X[:3]]), [3], False),
        (torch.utils.data.TensorDataset(X, Y), [64, 64, 2], True),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 100), [100, 30], True),
        ([(X[:3], X[:3])], [3], False),
    ],
)  # fmt: skip
def test_batches_from_what_users_have(data, sizes, labelled):
    found = list(batches_of(data))
    assert [b.samples for b in found] == sizes
    assert all((b.labels is not None) == labelled for b in found)
    for batch in found:
        value = next(iter((*batch.args, *batch.kwargs.values())))
        assert value.shape == (batch.samples, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batch"),
        (iter(()), "no batch"),
        (3, "no data"),
        ("text", "no data"),
        ([3], "no tensor"),
        ([{"a": "b"}], "no tensor"),
        ([()], "no tensor"),
        ((X, X), "Two tensors"),
    ],
)
def test_what_is_no_data(data, words):
    with pytest.raises(DataError, match=words):
        list(batches_of(data))


def test_a_batch_that_the_model_does_not_take():
    batch = next(batches_of(torch.randn(2, 7)))
    with pytest.raises(DataError, match=r"\(2, 7\)"):
        call(nn.Linear(3, 3), batch)
    assert call(nn.Linear(3, 3), batch, lambda m, raw: m(raw[:, :3])).shape == (2, 3)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was(tmp_path, error):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(error), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_outputs_are_asked_for_before_the_work(tmp_path):
    path = tmp_path / "a.txt"
    check_output(path)
    with pytest.raises(FileError, match="no such folder"):
        check_output(tmp_path / "new" / "a.txt")
    path.write_text("x")
    with pytest.raises(FileError, match="overwrite"):
        check_output(path)
    with pytest.raises(FileError, match="own input"):
        check_output(path, [path])
    check_output(path, [path], overwrite=True)
    with pytest.raises(FileError, match="folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(FileError, match="written"):
        check_output(path / "below", overwrite=True)
