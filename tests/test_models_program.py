"""Exported programs: graph and norms are those of the module, and folding keeps what they do."""

import copy
import io
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from normkit.errors import DataError, DTypeError, ModelError  # noqa: E402
from normkit.models.folding import algebra, program_edit  # noqa: E402
from normkit.models.folding.program import fold_program  # noqa: E402
from normkit.models.graphs.module import trace  # noqa: E402
from normkit.models.graphs.program import program_graph, program_sites  # noqa: E402
from normkit.models.sites import find_sites  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BACK = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def trained(model, seed=0):
    """Statistics, gamma and beta as training leaves them, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, low, high in (
            ("running_mean", -1, 1), ("running_var", 0.3, 3), ("weight", -1.5, 1.5), ("bias", -1, 1)
        ):  # fmt: skip
            held = getattr(module, name, None)
            if isinstance(held, torch.Tensor) and held.dim() == 1:
                held.data.uniform_(low, high, generator=generator)
    return model.eval()


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def exported(model, *args, decomposed=False, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about itself
        program = torch.export.export(model, args, strict=False, **options)
        return program.run_decompositions() if decomposed else program


def run(program, *args):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.module()(*args)


def reloaded(program):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
        buffer.seek(0)
        return torch.export.load(buffer)


def agrees(model, x, decomposed=False, folds=1, **options):
    """The folded program and its report; it computes what the module does in float64."""
    program = exported(model, x, decomposed=decomposed, **options)
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    folded, report = fold_program(program, measure=False)
    assert len(report.folded) == folds, report.refused
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
    scale = float(want.abs().max())
    torch.testing.assert_close(run(folded, x).double(), want, rtol=0, atol=2e-6 * scale)
    torch.testing.assert_close(run(reloaded(folded), x), run(folded, x), rtol=0, atol=0)
    assert list(program.state_dict) == list(before)
    assert all(torch.equal(program.state_dict[name], held) for name, held in before.items())
    torch.testing.assert_close(run(program, x).double(), want, rtol=0, atol=2e-6 * scale)
    return folded, report


def reason(model, *args, **options):
    """Why the only norm stays; nothing is folded."""
    program = exported(model, *args, **options)
    folded, report = fold_program(program)
    assert not report.folded
    assert folded is program
    ((_, why),) = report.refused
    return why


FORMS = pytest.mark.parametrize("decomposed", [False, True], ids=["exported", "decomposed"])


# --- the graph ------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A call of every kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.group, self.same = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.linear, self.layer = nn.Linear(8, 6), nn.LayerNorm(6)
        self.drop, self.shared, self.rms = nn.Dropout(), nn.Linear(6, 6, bias=False), nn.RMSNorm(6)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = self.same(self.group(self.up(x))) + 1.0
        x = F.adaptive_avg_pool2d(self.instance(x), 1).flatten(1)
        x = self.layer(self.drop(self.linear(x)))
        return self.shared(self.rms(self.shared(x)))


def test_the_graph_is_that_of_the_module():
    model = trained(Everything())
    program = exported(model, draw(2, 3, 8, 8))
    got = [(n.op, n.target) for n in program_graph(program)]
    want = [(n.op, n.target if n.op in ("conv", "conv_transpose", "linear", "norm") else "")
            for n in trace(model)]  # fmt: skip
    assert got == want


@FORMS
def test_layers_and_norms_are_seen_in_both_forms(decomposed):
    model = trained(Everything())
    program = exported(model, draw(2, 3, 8, 8), decomposed=decomposed)
    graph = program_graph(program)
    targets = [n.target for n in graph if n.op in ("conv", "conv_transpose", "linear")]
    assert targets == ["conv", "up", "same", "linear", "shared", "shared"]
    assert len(graph.calls("shared")) == 2
    assert {n.name for n in graph} == {n.name for n in graph if n.inputs or n.op == "input"}
    assert not graph.unknown
    attributes = {n.target: n.attributes for n in graph if n.target}
    assert attributes["conv"]["in_channels"] == 3
    assert attributes["conv"]["kernel_size"] == (3, 3)
    assert attributes["conv"]["padding"] == (1, 1)
    assert attributes["up"]["groups"] == 2
    assert attributes["up"]["out_channels"] == 8
    assert attributes["same"]["groups"] == 8
    assert attributes["linear"]["in_features"] == 8
    assert attributes["linear"]["out_features"] == 6
    assert attributes["layer"]["normalized_shape"] == (6,)


@FORMS
def test_sites_are_those_of_the_module(decomposed):
    model = trained(Everything())
    model.norm.momentum, model.norm.eps = 0.3, 1e-3
    model.norm.num_batches_tracked.fill_(7)
    model.layer.weight.requires_grad_(False)
    model.layer.bias.requires_grad_(False)
    want = {site.name: site for site in find_sites(model)}
    got = {site.name: site for site in program_sites(
        exported(model, draw(2, 3, 8, 8), decomposed=decomposed))}  # fmt: skip
    if decomposed:  # one that takes its statistics from the batch is another norm's operators then
        assert want.pop("instance") is not None
        got.pop("instance", None)
    assert got.keys() == want.keys()
    for name, site in want.items():
        found = got[name]
        for field in ("gamma", "beta", "mean", "var"):
            held = getattr(site, field)
            assert (held is None) == (getattr(found, field) is None), (name, field)
            assert held is None or torch.equal(getattr(found, field), held)
        for field in ("kind", "channels", "momentum", "batches", "groups", "training", "tracks",
                      "learns", "type_name"):  # fmt: skip
            if decomposed and field == "type_name":
                continue
            assert getattr(found, field) == getattr(site, field), (name, field)
        assert found.eps == pytest.approx(site.eps, rel=1e-6)


def test_a_program_in_training_mode_says_so():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    program = exported(net, draw(2, 3, 8, 8))
    (site,) = program_sites(program)
    assert site.training
    assert site.uses_batch
    (other,) = program_sites(program.run_decompositions())
    assert other.training
    (own,) = program_sites(
        exported(
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval(), draw(2, 3, 8, 8)
        )
    )
    assert own.uses_batch
    assert not own.tracks
    assert own.channels == 3


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(10, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, i):
        return self.head(self.norm(self.embed(i)))


class Calls(nn.Module):
    """Weights that functions take."""

    def __init__(self):
        super().__init__()
        self.a, self.gain = nn.Parameter(draw(4, 4)), nn.Parameter(torch.ones(4))
        self.plain, self.computed = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = F.linear(F.layer_norm(x, (4,), self.gain), self.a)
        x = F.linear(x, self.computed.weight / self.computed.weight.norm())
        return self.plain(x) + self.plain.weight.sum() + (x @ self.a.t())


def test_who_else_takes_a_weight_is_seen():
    ids = torch.tensor([[1, 2, 3]])
    graph = program_graph(exported(Tied().eval(), ids))
    (head,) = (n for n in graph if n.op == "linear")
    assert "embedding" in head.obstacle
    linears = [n for n in program_graph(exported(Calls().eval(), draw(2, 4))) if n.op == "linear"]
    assert [n.target for n in linears][:1] + [n.target for n in linears][2:] == ["a", "plain", "a"]
    assert linears[1].obstacle == "its weight is computed"
    assert "its weight is used by sum" in linears[2].obstacle
    assert not linears[0].obstacle  # the other call shows by its target
    (site,) = program_sites(exported(Calls().eval(), draw(2, 4)))
    assert (site.name, site.kind, site.channels) == ("gain", "layer", 4)


class Inside(nn.Module):
    """A norm in a graph that an operator holds."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.norm(self.conv(x))


def test_norms_in_inner_graphs_are_known_and_stay():
    model = trained(Inside())
    program = exported(model, draw(2, 3, 6, 6))
    (site,) = program_sites(program)
    assert (site.name, site.type_name, site.channels) == ("norm", "BatchNorm2d", 4)
    assert torch.equal(site.mean, model.norm.running_mean)
    graph = program_graph(program)
    assert not graph.calls("norm")
    assert "wrap_with_autocast" in next(iter(graph.unknown.values()))
    assert "within wrap_with_autocast" in reason(model, draw(2, 3, 6, 6))


# --- folding --------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_batch_norm_behind_a_convolution(decomposed, dims, groups):
    net = nn.Sequential(CONV[dims](6, 12, 3, padding=1, groups=groups, bias=groups == 2),
                        BATCH[dims](12), nn.ReLU())  # fmt: skip
    folded, _ = agrees(trained(net), draw(2, 6, *[5] * dims), decomposed)
    assert set(folded.state_dict) == {"0.weight", "0.bias"}


@FORMS
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_batch_norm_behind_a_transposed_convolution(decomposed, dims, groups):
    net = nn.Sequential(BACK[dims](6, 9, 3, stride=2, groups=groups, bias=groups == 1),
                        BATCH[dims](9))  # fmt: skip
    agrees(trained(net), draw(2, 6, *[4] * dims), decomposed)


@FORMS
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_behind_a_linear_layer(decomposed, bias):
    net = nn.Sequential(nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7, affine=bias), nn.Tanh())
    agrees(trained(net), draw(3, 5), decomposed)


class Product(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.w, self.b = nn.Parameter(draw(5, 7)), nn.Parameter(draw(7)) if bias else None
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        x = x @ self.w
        return self.norm(x if self.b is None else x + self.b)


@FORMS
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_behind_a_product_with_a_weight(decomposed, bias):
    model = trained(Product(bias))
    folded, report = agrees(model, draw(3, 5), decomposed)
    assert set(folded.state_dict) == ({"w", "b"} if bias else {"w", "w_bias"})
    assert report.folded[0].into == ("w",)


@FORMS
def test_batch_norm_before_layers(decomposed):
    conv = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2))
    folded, report = agrees(trained(conv), draw(2, 4, 6, 6), decomposed)
    assert report.folded[0].direction == "after"
    assert set(folded.state_dict) == {"1.weight", "1.bias"}
    flat = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(16, 3))  # fmt: skip
    agrees(trained(flat), draw(2, 4, 6, 6), decomposed)


def test_padding_lets_a_norm_without_a_shift_through():
    net = trained(nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 6, 3, padding=1)))
    assert "pads with zeros" in reason(net, draw(2, 4, 6, 6))
    net[0].running_mean.zero_()
    agrees(net, draw(2, 4, 6, 6))


class Attention(nn.Module):
    """Two linear layers take what one norm gives."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.q, self.k = norm, nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x):
        x = self.norm(x)
        return self.q(x) @ self.k(x).transpose(1, 2)


@FORMS
@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6), nn.LayerNorm(6, bias=False)])
def test_gains_go_into_the_linear_layers_behind(decomposed, norm):
    folded, report = agrees(trained(Attention(copy.deepcopy(norm))), draw(2, 5, 6), decomposed)
    assert report.folded[0].left == "the normalization without gamma and beta"
    assert report.folded[0].into == ("q", "k")
    want = {"q.weight", "q.bias", "k.weight"} | ({"k.bias"} if norm.__dict__.get("bias") is None
            and getattr(norm, "bias", None) is not None else set())  # fmt: skip
    assert set(folded.state_dict) == want


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x
        return F.relu(y, inplace=True)


class MobileBlock(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        wide = 3 * width
        self.body = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU6(), nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


@FORMS
def test_a_network_folds_whole_and_keeps_its_dynamic_batch(decomposed):
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = trained(nn.Sequential(stem, Residual(), MobileBlock(), head))
    batch = torch.export.Dim("batch", min=1, max=64)
    folded, report = agrees(model, draw(2, 3, 17, 17), decomposed, folds=6,
                            dynamic_shapes=({0: batch},))  # fmt: skip
    assert not report.refused
    assert not program_sites(folded)
    x = draw(5, 3, 17, 17)
    with torch.no_grad():
        torch.testing.assert_close(run(folded, x), model(x), rtol=1e-4, atol=1e-4)
    saved = report.parameters_before - report.parameters_after
    assert saved == sum(site.channels for site in find_sites(model))  # gamma goes, beta is a bias
    with pytest.raises((RuntimeError, AssertionError)):
        run(folded, draw(65, 3, 17, 17))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype(dtype):
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    x = draw(2, 3, 6, 6).to(dtype)
    folded, report = fold_program(exported(net, x), measure=False)
    assert {tensor.dtype for tensor in folded.state_dict.values()} == {dtype}
    want = copy.deepcopy(net).double()(x.double()).detach()
    got = run(folded, x)
    assert got.dtype == dtype
    worst = float((got.double() - want).abs().max() / want.abs().max())
    assert worst < 4 * torch.finfo(dtype).eps
    assert report.verification.difference < 1e-13


def test_a_norm_without_affine_and_norms_in_a_row():
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4))
    folded, _ = agrees(trained(net), draw(2, 3, 6), folds=2)
    assert set(folded.state_dict) == {"0.weight", "0.bias"}


def test_requires_grad_and_names_stay():
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    net[0].weight.requires_grad_(False)
    folded, _ = agrees(net, draw(2, 3, 6, 6))
    assert isinstance(folded.state_dict["0.bias"], nn.Parameter)
    assert not folded.state_dict["0.bias"].requires_grad
    assert folded.graph_signature.parameters == ("0.weight", "0.bias") or list(
        folded.graph_signature.parameters) == ["0.weight", "0.bias"]  # fmt: skip
    assert not folded.graph_signature.buffers


# --- what stays -----------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


class Branch(Twice):
    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


class InPlace(nn.Module):
    """What the norm was given changes after it; what it gave does not."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = x * 2
        y = self.norm(x)
        x.view(-1).mul_(3)
        return self.conv(y) + x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Twice(), "conv is called 2 times"),
        (Branch(), "what it takes is used elsewhere too"),
        (InPlace(), "changes its input in place"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
         "keeps no running statistics"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), "an activation (relu)"),
        (nn.Sequential(nn.LayerNorm((8, 8)), nn.Linear(8, 8)), "more than the last dimension"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2)), "transposed convolution"),
    ],
)  # fmt: skip
def test_what_would_change_the_function_stays(model, words):
    assert words in reason(trained(model), draw(2, 4, 8, 8))


def test_training_mode_and_tied_weights_stay():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert "training mode" in reason(net, draw(2, 3, 8, 8))
    assert "used by embedding too" in reason(trained(Tied()), torch.tensor([[1, 2, 3]]))


# --- proof ----------------------------------------------------------------------------------------


def wrong(layer, changes):
    new = algebra.changed(layer, changes)
    new.weight[0] += 1e-3
    return new


def test_a_wrong_fold_is_noticed_also_behind_a_gamma_of_zero(monkeypatch):
    model = trained(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), Residual()))
    monkeypatch.setattr(program_edit, "changed", wrong)
    with pytest.raises(ModelError, match="does not do the same"):
        fold_program(exported(model, draw(2, 8, 6, 6)))
    hidden = trained(Residual())
    hidden.bn2.weight.data.zero_()  # the branch adds beta alone, whatever comes before
    monkeypatch.setattr(program_edit, "changed", lambda layer, changes: (
        wrong if layer.bias is None and not changes[0].affine.scale.eq(0).any() else algebra.changed
    )(layer, changes))  # fmt: skip
    with pytest.raises(ModelError, match="does not do the same"):
        fold_program(exported(hidden, draw(2, 8, 6, 6)))


def test_examples_are_taken_as_the_program_is_called():
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    program = exported(net, draw(2, 3, 8, 8))
    x = draw(2, 3, 8, 8)
    for example in (x, (x,), {"input": x}):
        _, report = fold_program(program, example, measure=False)
        assert report.verification.input == "the example"
        assert report.verification.difference < 1e-13
    with pytest.raises(DataError, match=r"\(2, 3, 8, 8\)"):
        fold_program(program, draw(2, 3, 9, 9))
    with pytest.raises(DataError, match="1 inputs"):
        fold_program(program, (x, x))
    with pytest.raises(ModelError, match="does not do the same"):
        fold_program(program, x, tolerance=1e-12)
    with pytest.raises(DTypeError, match="ExportedProgram"):
        fold_program(net)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.linear = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, ids, *, scale, flag=True):
        x = self.embed(ids).mean(1) * scale
        return {"y": self.norm(self.linear(x)), "x": x if flag else None}


def test_keyword_and_whole_number_inputs():
    model = trained(Keywords())
    ids, scale = torch.tensor([[1, 6, 3]] * 2), draw(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (ids,), {"scale": scale}, strict=False)
    for example in (None, {"ids": ids, "scale": scale}):
        folded, report = fold_program(program, example, measure=False)
        assert report.verification.difference < 1e-13, report.verification
    with torch.no_grad():
        got = folded.module()(ids, scale=scale)
        torch.testing.assert_close(got["y"], model(ids, scale=scale)["y"])


def test_both_are_timed_and_the_report_is_plain():
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    _, report = fold_program(exported(net, draw(2, 3, 8, 8)))
    assert report.verification.speedup > 0
    assert report.to_dict()["parameters_after"] == 4 * 27 + 4
    assert "1 of 1 norm folded into 1 layer" in report.lines()[0]
