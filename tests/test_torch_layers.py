"""The contract of every layer in normkit.torch: torch.nn's own, on other kernels."""

import copy
import inspect
import io
import pickle
from dataclasses import dataclass, field
from itertools import product

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit.torch as nt  # noqa: E402

nn = torch.nn
F32, F64 = torch.float32, torch.float64
C = 6


@dataclass(frozen=True)
class Row:
    """A layer as it is made, and inputs that it takes."""

    kind: str
    args: tuple
    shapes: tuple
    settings: dict = field(default_factory=dict)

    def __str__(self):
        options = ",".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.kind}{self.args}{options}".replace(" ", "")

    def made(self, library, **more):
        return getattr(library, self.kind)(*self.args, **{**self.settings, **more})


RANKS = {
    "1d": ((5, C, 7), (5, C)),
    "2d": ((4, C, 5, 3),),
    "3d": ((3, C, 2, 3, 4),),
}
UNBATCHED = {"1d": (C, 7), "2d": (C, 5, 3), "3d": (C, 2, 3, 4)}
BATCH = [Row(f"BatchNorm{d}", (C,), RANKS[d]) for d in RANKS]
INSTANCE = [
    Row(f"InstanceNorm{d}", (C,), (RANKS[d][0], UNBATCHED[d]), settings)
    for d in RANKS
    for settings in ({}, {"affine": True, "track_running_stats": True})
]
SAMPLE = [
    Row("LayerNorm", (C,), ((5, C), (3, 4, C), (2, 3, 2, 3, C), (C,))),
    Row("LayerNorm", ((4, C),), ((3, 4, C), (2, 3, 4, C)), {"bias": False}),
    Row("LayerNorm", (C,), ((3, 4, C),), {"elementwise_affine": False}),
    Row("GroupNorm", (3, C), ((5, C), (4, C, 7), (4, C, 5, 3), (3, C, 2, 3, 4))),
    Row("GroupNorm", (1, C), ((4, C, 5, 3),), {"bias": False}),
    Row("GroupNorm", (2, C), ((4, C, 5, 3),), {"affine": False}),
    Row("RMSNorm", (C,), ((5, C), (3, 4, C), (2, 3, 2, 3, C), (C,))),
    Row("RMSNorm", ([4, C],), ((3, 4, C), (2, 3, 4, C)), {"eps": 1e-3}),
]
LAZY = [
    *(Row(f"LazyBatchNorm{d}", (), RANKS[d]) for d in RANKS),
    *(Row(f"LazyInstanceNorm{d}", (), RANKS[d][:1]) for d in RANKS),
]
RUNNING = [*BATCH, *(row for row in INSTANCE if row.settings)]
EAGER = [*BATCH, *INSTANCE, *SAMPLE]
ROWS = [*EAGER, *LAZY]
#: One of each class, for what does not depend on settings.
EACH = list({row.kind: row for row in ROWS}.values())


def of(rows):
    return pytest.mark.parametrize("row", rows, ids=str)


def with_shapes(rows):
    pairs = [
        pytest.param(row, shape, id=f"{row}-{'x'.join(map(str, shape))}")
        for row in rows
        for shape in row.shapes
    ]
    return pytest.mark.parametrize(("row", "shape"), pairs)


both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(params=[0, None], ids=["kernels", "native"])
def way(request):
    """Everything through normkit's kernels, or what is small to PyTorch's operators."""
    nt.use_native_up_to(request.param)
    yield request.param
    nt.use_native_up_to(None)


both_ways = pytest.mark.usefixtures("way")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scramble(module):
    """Parameters and buffers that no layer starts with."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0)
                if name.endswith(("bias", "mean")):
                    value.sub_(1.0)
    return module


def pair(row, dtype=F64, shape=None, **more):
    """normkit's layer and torch.nn's, with the same parameters and buffers."""
    ours, theirs = (row.made(library, **more).to(dtype) for library in (nt, nn))
    if row in LAZY:
        for layer in (ours, theirs):
            layer(torch.randn(shape or row.shapes[0]).to(dtype))
    scramble(theirs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def step(layer, x, dy=None):
    """Output and all gradients of one forward and backward."""
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    x.grad = None
    layer.zero_grad()
    y = layer(x)
    y.backward(torch.ones_like(y) if dy is None else dy)
    return {"y": y.detach(), "dx": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}


def same(ours, theirs, rtol=1e-10, atol=1e-10):
    """Two dictionaries of tensors are equal, and have the same names and dtypes."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if value is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(
                ours[name], value, rtol=rtol, atol=atol, equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip


# --- as torch.nn describes it ---------------------------------------------------------------------


@of(EACH)
def test_it_is_torch_nns_class_with_its_signature(row):
    ours, theirs = getattr(nt, row.kind), getattr(nn, row.kind)
    assert issubclass(ours, theirs)
    assert ours.__name__ == theirs.__name__
    got = inspect.signature(ours).parameters
    wanted = inspect.signature(theirs).parameters
    assert [got[name] for name in wanted] == list(wanted.values())
    positional = [p.name for p in got.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional == [p.name for p in wanted.values() if p.kind is not p.KEYWORD_ONLY]
    taken = list(inspect.signature(ours.forward).parameters.values())[1:]
    assert taken[0].name == list(inspect.signature(theirs.forward).parameters)[1]
    optional = [p for p in taken[1:] if p.kind is not p.VAR_KEYWORD]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in optional)


@of(ROWS)
def test_attributes_repr_and_state_are_torch_nns(row):
    ours, theirs = row.made(nt), row.made(nn)
    assert repr(ours) == repr(theirs)
    own = {name: value for name, value in vars(theirs).items() if not name.startswith("_")}
    assert {name: vars(ours)[name] for name in own} == own
    for kind in ("_parameters", "_buffers"):
        assert list(getattr(ours, kind)) == list(getattr(theirs, kind))
    if row not in LAZY:
        same(ours.state_dict(), theirs.state_dict(), 0, 0)
    metadata = [layer.state_dict()._metadata for layer in (ours, theirs)]
    assert metadata[0] == metadata[1]


@of(LAZY)
def test_a_lazy_layer_becomes_normkits_own(row):
    layer = row.made(nt)
    assert nn.parameter.is_lazy(layer.weight)
    layer(torch.randn(row.shapes[0]))
    assert type(layer) is getattr(nt, row.kind.removeprefix("Lazy"))
    assert layer.num_features == C


@both_ways
@of(EAGER)
def test_what_torch_nn_takes_by_position_and_keyword(row):
    """device and dtype too."""
    layer = row.made(nt, device="cpu", dtype=F64)
    assert {p.dtype for p in layer.parameters()} <= {F64}
    assert layer(torch.randn(row.shapes[0], dtype=F64)).dtype is F64


# --- forward and backward -------------------------------------------------------------------------

TOLERANCE = {F64: (1e-10, 1e-10), F32: (3e-5, 3e-5)}


@both_ways
@both_modes
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@with_shapes(ROWS)
def test_forward_backward_and_buffers_are_torch_nns(row, shape, dtype, training):
    ours, theirs = (layer.train(training) for layer in pair(row, dtype, shape))
    x = torch.randn(shape, dtype=dtype) * 2 + 3
    dy = torch.randn_like(x)
    same(step(ours, x, dy), step(theirs, x, dy), *TOLERANCE[dtype])
    same(ours.state_dict(), theirs.state_dict(), *TOLERANCE[dtype])


def _last(x):
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return None if last is None else x.contiguous(memory_format=last)


LAYOUTS = {
    "channels_last": _last,
    "strided": lambda x: torch.cat([x, x], -1)[..., ::2],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "expanded": lambda x: x[:1].expand_as(x) if x.shape[0] > 1 else None,
    "expanded-positions": lambda x: x[..., :1].expand_as(x) if x.dim() > 3 else None,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "batch-last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


def layouts():
    for row in EAGER:
        for shape in row.shapes:
            for layout, laid in LAYOUTS.items():
                if laid(torch.empty(shape)) is not None:
                    yield pytest.param(row, shape, layout, id=f"{row}-{shape}-{layout}")


@both_modes
@pytest.mark.parametrize(("row", "shape", "layout"), list(layouts()))
def test_every_layout_of_the_input_and_of_the_gradient(row, shape, layout, training, way):
    ours, theirs = (layer.train(training) for layer in pair(row))
    x = LAYOUTS[layout](torch.randn(shape, dtype=F64))
    for dy in (torch.randn(shape, dtype=F64), torch.randn_like(x)):
        # PyTorch's instance norm misreads other gradients than contiguous ones.
        results = [step(ours, x, dy), step(theirs, x, dy.contiguous())]
        same(*results)
        same(ours.state_dict(), theirs.state_dict())
    scalar = [torch.autograd.grad(layer(x.requires_grad_()).sum(), x) for layer in (ours, theirs)]
    torch.testing.assert_close(*scalar, rtol=1e-10, atol=1e-10)
    if layout == "channels_last" and shape == row.shapes[-1 if row.kind == "GroupNorm" else 0]:
        # torch.nn's layer and instance norms do not keep it; normkit's kernels do in the latter.
        ours_keeps, theirs_keeps = (_last(r["y"]).is_set_to(r["y"]) for r in results)
        assert ours_keeps >= theirs_keeps
        assert ours_keeps or way is None or row.kind in ("LayerNorm", "RMSNorm")


@both_ways
@both_modes
@pytest.mark.parametrize("shape", [(1, C, 5, 3), (1, C, 2, 3, 4)], ids=str)
def test_instance_norm_of_one_sample_and_a_channels_last_gradient(shape, training):
    """PyTorch's own reads such a gradient as if it were contiguous."""
    row = INSTANCE[2 if len(shape) == 4 else 4]
    layer = row.made(nt, dtype=F64).train(training)
    x, dy = torch.randn(2, *shape, dtype=F64)
    same(step(layer, x, _last(dy)), step(layer, x, dy))


@both_ways
@both_modes
@of(EAGER)
def test_output_does_not_share_memory_with_the_input(row, training):
    layer = row.made(nt, dtype=F64).train(training)
    x = torch.randn(row.shapes[0], dtype=F64)
    before = x.clone()
    y = layer(x)
    y.zero_()
    assert torch.equal(x, before)


@both_ways
@both_modes
@pytest.mark.parametrize("wanted", list(product([False, True], repeat=3)), ids=str)
@of([BATCH[0], INSTANCE[3], SAMPLE[0], SAMPLE[3], SAMPLE[6]])
def test_gradients_of_just_what_wants_them(row, wanted, training):
    layers = pair(row)
    x = torch.randn(row.shapes[0], dtype=F64)
    results = []
    for layer in layers:
        layer.train(training)
        for parameter, wants in zip(layer.parameters(), wanted[1:], strict=False):
            parameter.requires_grad_(wants)
        leaf = x.clone().requires_grad_(wanted[0])
        y = layer(leaf)
        if y.requires_grad:
            y.square().sum().backward()
        results.append({
            "y": y.detach(), "dx": leaf.grad,
            **{n: p.grad for n, p in layer.named_parameters()},
        })  # fmt: skip
        results[-1]["flag"] = torch.tensor(y.requires_grad)
    same(*results)


@both_ways
@of(EACH)
def test_no_grad_and_inference_mode(row):
    ours, theirs = pair(row)
    x = torch.randn(row.shapes[0], dtype=F64)
    for context in (torch.no_grad, torch.inference_mode):
        for training in (False, True):
            with context():
                y = ours.train(training)(x)
                want = theirs.train(training)(x)
            assert not y.requires_grad
            torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    same(ours.state_dict(), theirs.state_dict())


@both_ways
@both_modes
@of([row for row in EACH if row not in LAZY])
def test_a_change_of_the_input_before_backward_is_noticed(row, training):
    for layer in pair(row):
        layer.train(training)
        x = torch.randn(row.shapes[0], dtype=F64, requires_grad=True)
        z = x * 1
        y = layer(z)
        z.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@both_ways
@both_modes
@of([row for row in EAGER if row.kind != "RMSNorm"])
def test_relu_in_place_behind(row, training):
    ours, theirs = (layer.train(training) for layer in pair(row))
    x = torch.randn(row.shapes[0], dtype=F64)
    want = step(nn.Sequential(theirs, nn.ReLU()), x)
    same(step(nn.Sequential(ours, nn.ReLU(inplace=True)), x), want)


@both_ways
@both_modes
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@of(EAGER)
def test_nan_and_infinity_spread_as_in_torch_nn(row, value, training):
    ours, theirs = (layer.train(training) for layer in pair(row))
    x = torch.randn(row.shapes[0], dtype=F64)
    x.view(-1)[3] = value
    dy = torch.randn_like(x)
    same(step(ours, x, dy), step(theirs, x, dy))
    same(ours.state_dict(), theirs.state_dict())


# --- dtypes ---------------------------------------------------------------------------------------


@both_ways
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of torch.nn's
@both_modes
@pytest.mark.parametrize("parameters", ["narrow", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@of(EAGER)
def test_narrow_dtypes_are_no_less_accurate_than_torch_nn(row, dtype, parameters, training):
    """At most torch.nn's own error and one rounding of the result."""
    held = dtype if parameters == "narrow" else F32
    ours, theirs = (layer.train(training) for layer in pair(row, held))
    truth = copy.deepcopy(theirs).double()
    x = (torch.randn(row.shapes[0]) * 2 + 1).to(dtype)
    dy = torch.randn(x.shape).to(dtype)
    exact = step(truth, x.double(), dy.double())
    got = step(ours, x, dy)
    try:
        reference = step(theirs, x, dy)
    except RuntimeError:  # torch.nn does not take every mixture; ours may
        reference = dict.fromkeys(exact)
    for name, value in exact.items():
        if value is None:
            assert got[name] is None
            continue
        unit = torch.finfo(got[name].dtype).eps
        theirs_off = 0.0
        if reference[name] is not None:
            assert got[name].dtype is reference[name].dtype, name
            theirs_off = (reference[name].double() - value).abs().max()
        off = (got[name].double() - value).abs().max()
        assert off <= theirs_off + unit * value.abs().max(), (name, float(off), float(theirs_off))


@of(EAGER)
def test_conversions_move_what_torch_nns_move(row):
    for convert in (lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(F64)):
        ours, theirs = convert(row.made(nt)), convert(row.made(nn))
        got, want = ours.state_dict(), theirs.state_dict()
        assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in want.items()}


@both_ways
@both_modes
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
@of(EAGER)
def test_autocast_gives_torch_nns_dtype(row, dtype, training):
    ours, theirs = (layer.train(training) for layer in pair(row, F32))
    x = torch.randn(row.shapes[0]).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, want = ours(x), theirs(x)
    assert y.dtype is want.dtype
    torch.testing.assert_close(y, want, rtol=2e-2 if dtype is not F32 else 1e-5, atol=2e-2)


# --- state ----------------------------------------------------------------------------------------


@both_ways
@of(ROWS)
def test_state_dict_goes_both_ways(row):
    ours, theirs = pair(row)
    x = torch.randn(row.shapes[0], dtype=F64)
    ours(x)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-10, atol=1e-10)
    scramble(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


@of(RUNNING)
def test_a_state_dict_from_before_batches_were_counted(row):
    ours, theirs = pair(row)
    old = theirs.state_dict()
    del old["num_batches_tracked"]
    del old._metadata
    for layer in (ours, theirs):
        layer.load_state_dict(old, strict=True)
    same(ours.state_dict(), theirs.state_dict())


@of(EACH)
def test_a_wrong_state_dict_is_refused_in_torch_nns_words(row):
    errors = []
    for layer in pair(row):
        wrong = {"spare": torch.ones(3), **layer.state_dict()}
        wrong.pop("weight", None)
        with pytest.raises(RuntimeError) as caught:
            layer.load_state_dict(wrong)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def saved(layer, **options):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: saved(layer, weights_only=False),
}


@both_ways
@pytest.mark.parametrize("made", COPIES)
@of(ROWS)
def test_copies_are_independent_and_equal(row, made):
    layer, _ = pair(row)
    x = torch.randn(row.shapes[0], dtype=F64)
    clone = COPIES[made](layer)
    assert type(clone) is type(layer)
    assert repr(clone) == repr(layer)
    before = copy.deepcopy(clone.state_dict())
    y = layer(x)
    same(clone.state_dict(), before, 0, 0)
    assert torch.equal(clone(x), y)
    same(clone.state_dict(), layer.state_dict(), 0, 0)


@of(LAZY)
@pytest.mark.parametrize("made", ["pickle", "torch.save"])
def test_lazy_layers_are_copied_before_their_first_input(row, made):
    clone = COPIES[made](row.made(nt))
    clone(torch.randn(row.shapes[0]))
    assert type(clone) is getattr(nt, row.kind.removeprefix("Lazy"))


@both_ways
@of(EAGER)
def test_a_saved_state_dict_holds_weights_only(row):
    ours, theirs = pair(row)
    ours(torch.randn(row.shapes[0], dtype=F64))
    loaded = saved(ours.state_dict(), weights_only=True)
    theirs.load_state_dict(loaded, strict=True)
    same(theirs.state_dict(), ours.state_dict(), 0, 0)


@both_ways
@of(EAGER)
@pytest.mark.parametrize("how", ["argument", "context"])
def test_meta_device_and_back(row, how):
    if how == "argument":
        layer = row.made(nt, device="meta", dtype=F64)
    else:
        with torch.device("meta"):
            layer = row.made(nt, dtype=F64)
    x = torch.randn(row.shapes[0], dtype=F64)
    assert all(t.is_meta for t in layer.state_dict().values())
    y = layer(x.to("meta"))
    assert y.is_meta
    assert y.shape == x.shape
    _, theirs = pair(row)
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-10, atol=1e-10)
    if hasattr(layer, "reset_parameters"):
        layer.reset_parameters()
        same(layer.state_dict(), row.made(nn, dtype=F64).state_dict(), 0, 0)


# --- running statistics ---------------------------------------------------------------------------

SETTINGS = [
    {},
    {"momentum": None},
    {"momentum": 0.7, "eps": 1e-2},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"affine": False},
    {"affine": True, "bias": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "momentum": None},
]


@both_ways
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@of(RUNNING)
def test_running_statistics_over_several_batches(row, settings):
    ours, theirs = pair(row, **settings)
    for training in (True, True, False, True, True, False):
        x = torch.randn(row.shapes[0], dtype=F64) * 3 + 50
        dy = torch.randn_like(x)
        results = [step(layer.train(training), x, dy) for layer in (ours, theirs)]
        same(*results, 1e-9, 1e-9)
        same(ours.state_dict(), theirs.state_dict())


@both_ways
@of(RUNNING)
def test_tracking_may_be_switched_off_and_on(row):
    ours, theirs = pair(row)
    moved = []
    for tracking, training in product((True, False, True), (True, False)):
        x = torch.randn(row.shapes[0], dtype=F64)
        before = ours.running_mean.clone()
        for layer in (ours, theirs):
            layer.track_running_stats = tracking
        results = [step(layer.train(training), x) for layer in (ours, theirs)]
        same(*results)
        same(ours.state_dict(), theirs.state_dict())
        moved.append(not torch.equal(before, ours.running_mean))
    strange = row in INSTANCE  # torch.nn's moves them in eval too while it is switched off
    assert moved == [True, False, strange, strange, True, False]


@both_ways
@both_modes
@of(BATCH)
def test_buffers_set_to_none_later(row, training):
    ours, theirs = (layer.train(training) for layer in pair(row))
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
    x = torch.randn(row.shapes[0], dtype=F64)
    same(step(ours, x), step(theirs, x))


@both_ways
@of(RUNNING)
def test_resets(row):
    ours, theirs = pair(row)
    for layer in (ours, theirs):
        layer(torch.randn(row.shapes[0], dtype=F64))
        layer.reset_running_stats()
    fresh = {k: v for k, v in row.made(nn, dtype=F64).state_dict().items() if "run" in k}
    got = {k: v for k, v in ours.state_dict().items() if "run" in k}
    same(got, fresh, 0, 0)
    ours.reset_parameters()
    same(ours.state_dict(), row.made(nn, dtype=F64).state_dict(), 0, 0)


# --- odd inputs -----------------------------------------------------------------------------------


def empties(row):
    """Shapes without elements: no samples, no positions."""
    shape = row.shapes[0]
    yield (0, *shape[1:])
    if row in BATCH or row in INSTANCE or (row.kind == "GroupNorm" and len(shape) > 2):
        yield (*shape[:-1], 0)


@both_ways
@both_modes
@pytest.mark.parametrize(
    ("row", "shape"),
    [
        pytest.param(row, shape, id=f"{row}-{shape}")
        for row in [*BATCH, *INSTANCE, *SAMPLE]
        for shape in empties(row)
    ],
)
def test_empty_inputs(row, shape, training):
    """As in torch.nn, but for what is NaN or an IndexError there.

    Its instance norm makes NaN of the running statistics or fails, its group norm makes NaN of
    the weight's gradient.
    """
    ours, theirs = (layer.train(training) for layer in pair(row))
    before = copy.deepcopy(ours.state_dict())
    x = torch.empty(shape, dtype=F64)
    got = step(ours, x)
    assert got["y"].shape == shape
    assert all(values is None or not values.any() for values in got.values())
    try:
        want = step(theirs, x)
    except IndexError:
        assert row in INSTANCE
    else:
        assert {name: None if v is None else v.shape for name, v in want.items()} == {
            name: None if v is None else v.shape for name, v in got.items()
        }
    after = ours.state_dict()
    if row in BATCH:
        before["num_batches_tracked"] += training
    same(after, before, 0, 0)


SINGLE = [
    (BATCH[0], (1, C)),
    (BATCH[0], (1, C, 1)),
    (BATCH[1], (1, C, 1, 1)),
    (BATCH[2], (1, C, 1, 1, 1)),
    (INSTANCE[1], (4, C, 1)),
    (INSTANCE[1], (C, 1)),
    (INSTANCE[3], (4, C, 1, 1)),
    (INSTANCE[5], (4, C, 1, 1, 1)),
]


@both_ways
@pytest.mark.parametrize(("row", "shape"), SINGLE, ids=str)
def test_a_single_element_is_no_batch(row, shape):
    texts = []
    for layer in pair(row):
        with pytest.raises(ValueError, match="Expected more than 1") as caught:
            layer(torch.randn(shape, dtype=F64))
        texts.append(str(caught.value).split("got")[0])
        layer.eval()(torch.randn(shape, dtype=F64))
    assert texts[0] == texts[1]


def bad_inputs(row):
    """Inputs that torch.nn may refuse."""
    shape = row.shapes[0]
    channel = len(shape) - 1 if row.kind in ("LayerNorm", "RMSNorm") else 1
    other = tuple(size + (axis == channel) for axis, size in enumerate(shape))
    yield "channels", torch.randn(other, dtype=F64)
    yield "fewer-channels", torch.randn(shape, dtype=F64).narrow(channel, 0, 3)
    for rank in range(7):
        fitting = rank in {len(taken) for taken in row.shapes}
        if not fitting and row.kind not in ("LayerNorm", "RMSNorm", "GroupNorm"):
            yield f"rank{rank}", torch.randn((2, C, 3, 2, 2, 2)[:rank], dtype=F64)
    yield "scalar", torch.tensor(1.0, dtype=F64)
    yield "vector", torch.randn(3, dtype=F64)
    yield "float32", torch.randn(shape)
    for dtype in (torch.int64, torch.bool, torch.complex128, torch.uint8):
        yield str(dtype), torch.ones(shape).to(dtype)
    yield "None", None
    yield "list", [[1.0, 2.0]]
    yield "numpy", torch.randn(shape, dtype=F64).numpy()


@both_ways
@both_modes
@pytest.mark.parametrize(
    ("row", "bad"),
    [
        pytest.param(row, bad, id=f"{row}-{name}")
        for row in [*BATCH, *INSTANCE, *SAMPLE]
        for name, bad in bad_inputs(row)
    ],
)
def test_what_torch_nn_refuses_is_refused_alike(row, bad, training):
    ours, theirs = (layer.train(training) for layer in pair(row))
    try:
        want = theirs(bad)
    except Exception as error:
        refused = error
    else:
        tolerance = TOLERANCE[F32 if want.dtype is F32 else F64]
        torch.testing.assert_close(ours(bad), want, rtol=tolerance[0], atol=tolerance[1])
        return
    with pytest.raises(type(refused)) as caught:
        ours(bad)
    assert str(caught.value)
    same(ours.state_dict(), theirs.state_dict(), 0, 0)


# --- what PyTorch does to models ------------------------------------------------------------------


def test_fusion_into_the_layer_before():
    from torch.nn.utils import fusion

    for before, row, fuse in (
        (nn.Conv2d(3, C, 3), BATCH[1], fusion.fuse_conv_bn_eval),
        (nn.Linear(3, C), BATCH[0], fusion.fuse_linear_bn_eval),
    ):
        layer, _ = pair(row)
        before, layer = before.double().eval(), layer.eval()
        x = torch.randn((2, 3, 5, 5) if isinstance(before, nn.Conv2d) else (4, 3), dtype=F64)
        torch.testing.assert_close(fuse(before, layer)(x), layer(before(x)))


@both_ways
@of(BATCH)
def test_update_bn_and_averaged_models(row):
    from torch.optim.swa_utils import AveragedModel, update_bn

    data = [torch.randn(row.shapes[0], dtype=F64) for _ in range(3)]
    states = []
    for layer in pair(row):
        averaged = AveragedModel(nn.Sequential(layer), use_buffers=True)
        layer(data[0])
        averaged.update_parameters(nn.Sequential(layer))
        update_bn(data, averaged)
        states.append(averaged.state_dict())
        assert averaged.module[0].momentum == 0.1
    same(*states)


@of(BATCH)
def test_torch_nns_sync_batch_norm_takes_its_place(row):
    layer, _ = pair(row)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))
    assert isinstance(model[0], nn.SyncBatchNorm)
    same(model[0].state_dict(), layer.state_dict(), 0, 0)
    x = torch.randn(row.shapes[0], dtype=F64)
    torch.testing.assert_close(model.eval()(x), layer.eval()(x))


@both_ways
@of(EACH)
def test_hooks_and_parametrizations(row):
    ours, theirs = pair(row)
    x = torch.randn(row.shapes[0], dtype=F64)
    seen = []
    ours.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    ours.register_forward_hook(lambda *values: seen.append(values[-1]))
    ours.register_full_backward_hook(lambda *values: seen.append(values[1][0]))
    got = step(ours, x)["y"]
    torch.testing.assert_close(got, theirs(x * 2), rtol=1e-10, atol=1e-10)
    assert [t.shape for t in seen] == [x.shape, x.shape]
    if ours._parameters.get("weight") is None:
        return

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    for layer in (ours, theirs):
        nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(ours(x), theirs(x * 2), rtol=1e-10, atol=1e-10)


@both_ways
@of([*RUNNING, *SAMPLE, *(row for row in INSTANCE if not row.settings)])
def test_fifty_steps_take_torch_nns_course(row):
    shape = row.shapes[0]
    x, target = torch.randn(2, *shape, dtype=F64)
    courses = []
    for layer in pair(row):
        torch.manual_seed(1)
        mix = nn.Linear(shape[-1], shape[-1]).double()
        net = nn.Sequential(mix, layer, nn.Tanh())
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.5)
        course = []
        for _ in range(50):
            loss = (net(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        courses.append(course)
    assert courses[1][-1] < courses[1][0]
    assert courses[0] == pytest.approx(courses[1], rel=1e-10, abs=0)
