"""normkit.torch under PyTorch's transforms: derivatives of derivatives, func, compile, export."""

import copy
import itertools

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit as nk  # noqa: E402
import normkit.torch as nt  # noqa: E402
from normkit.torch.functional import batch_norm_with_state, normalize  # noqa: E402

# PyTorch's own, when it first differentiates forward or compiles.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

nn = torch.nn
F32, F64 = torch.float32, torch.float64
C = 4

#: Every kind of layer: how it is made, an input of two samples, one of more.
KINDS = {
    "batch1d": (lambda **o: nt.BatchNorm1d(C, **o), (5, C, 3)),
    "batch1d-flat": (lambda **o: nt.BatchNorm1d(C, **o), (5, C)),
    "batch2d": (lambda **o: nt.BatchNorm2d(C, **o), (3, C, 3, 2)),
    "batch3d": (lambda **o: nt.BatchNorm3d(C, **o), (3, C, 2, 2, 2)),
    "instance1d": (lambda **o: nt.InstanceNorm1d(C, **o), (3, C, 4)),
    "instance2d": (
        lambda **o: nt.InstanceNorm2d(C, affine=True, track_running_stats=True, **o),
        (3, C, 3, 2),
    ),
    "instance3d": (lambda **o: nt.InstanceNorm3d(C, **o), (3, C, 2, 2, 2)),
    "layer": (lambda **o: nt.LayerNorm(C, **o), (3, 2, C)),
    "layer-2": (lambda **o: nt.LayerNorm((3, C), bias=False, **o), (2, 3, C)),
    "group": (lambda **o: nt.GroupNorm(2, C, **o), (3, C, 3, 2)),
    "rms": (lambda **o: nt.RMSNorm(C, **o), (3, 2, C)),
}
STATELESS = ["instance1d", "instance3d", "layer", "layer-2", "group", "rms"]
#: Options of batch norm layers, and what its calls are given.
RENORM = nt.RenormSchedule(r_max=2.0, d_max=1.0, start=0, r_end=2, d_end=2)
OPTIONS = {
    "plain": {},
    "cumulative": {"momentum": None},
    "ghost": {"ghost": 2},
    "renorm": {"renorm": RENORM},
    "renorm-ghost": {"renorm": RENORM, "ghost": 3},
    "mean-only": {"mean_only": True},
    "population": {"running": "population"},
    "running-cumulative": {"running": "cumulative"},
    "skip": {"on_nonfinite": "skip"},
    "small-running": {"on_small_batch": "running"},
    "small-ghost": {"on_small_batch": "running", "ghost": 2},
    "untracked": {"track_running_stats": False},
    "bare": {"affine": False},
}


def kind_for(options):
    """An input whose last ghost batch has a single element a channel, or any."""
    return "batch1d-flat" if options == "small-ghost" else "batch1d"


@pytest.fixture(params=[0, None], ids=["kernels", "native"])
def way(request):
    """Everything through normkit's kernels, or what is small to PyTorch's operators."""
    nt.use_native_up_to(request.param)
    yield request.param
    nt.use_native_up_to(None)


@pytest.fixture
def kernels():
    """Everything through normkit's kernels, where nothing looks through them."""
    nt.use_native_up_to(0)
    yield
    nt.use_native_up_to(None)


both_ways = pytest.mark.usefixtures("way")
#: What is traced consists of PyTorch's operators either way; it is compared with the kernels.
on_kernels = pytest.mark.usefixtures("kernels")
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch.compiler.reset()


def scrambled(layer):
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0)
                if name.endswith(("bias", "mean")):
                    value.sub_(1.0)
    return layer


def made(kind, dtype=F64, training=True, **options):
    build, shape = KINDS[kind]
    layer = scrambled(build(**options).to(dtype)).train(training)
    return layer, torch.randn(shape, dtype=dtype)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# --- derivatives ----------------------------------------------------------------------------------


def pure(layer, names):
    """A layer as a function of its input and parameters that leaves its buffers alone."""
    buffers = dict(layer.named_buffers())

    def function(x, *values):
        state = dict(zip(names, values, strict=True))
        held = {name: value.clone() for name, value in buffers.items()}
        return torch.func.functional_call(layer, {**state, **held}, (x,))

    return function


def leaves(layer, x):
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    return (x.requires_grad_(), *values)


@both_ways
@both_modes
@kinds
def test_first_and_second_derivatives_of_layers(kind, training):
    layer, x = made(kind, training=training)
    function = pure(layer, [name for name, _ in layer.named_parameters()])
    inputs = leaves(layer, x)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def mask_of(shape):
    mask = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
    mask[0, -1] = mask[1, 0] = False
    return mask


SHAPE = (5, C, 3)
STATISTICS = (torch.linspace(-1, 1, C).double(), torch.linspace(0.5, 2, C).double())
#: id: norm, options of normalize
CALLS = {
    "batch": (nk.BatchNorm(), {}),
    "batch-statistics": (nk.BatchNorm(), {"statistics": STATISTICS}),
    "batch-mask": (nk.BatchNorm(), {"mask": mask_of(SHAPE)}),
    "batch-lengths": (nk.BatchNorm(), {"lengths": torch.tensor([3, 1, 2, 2, 3])}),
    "ghost": (nk.GhostBatchNorm(2), {}),
    "ghost-uneven": (nk.GhostBatchNorm(3), {}),
    "mean-only": (nk.MeanOnlyBatchNorm(), {}),
    "layer": (nk.LayerNorm(), {}),
    "layer-mask": (nk.LayerNorm(), {"mask": mask_of(SHAPE)}),
    "token": (nk.TokenLayerNorm(), {"axis": -1}),
    "channel": (nk.ChannelLayerNorm(), {}),
    "rms": (nk.RMSNorm(), {"axis": -1}),
    "instance": (nk.InstanceNorm(), {}),
    "group": (nk.GroupNorm(2), {}),
    "batch-group": (nk.BatchGroupNorm(2, 2), {}),
}
calls = pytest.mark.parametrize("call", CALLS)
#: How weight and bias lie: one a channel, one a sample and channel, none.
AFFINE = {"channel": (C,), "conditional": (SHAPE[0], C), "none": None}


def called(call, affine="channel", residual=True, activation="silu"):
    """A call of normalize as a function of tensors, and these."""
    norm, options = CALLS[call]
    shape = AFFINE[affine]
    if shape is not None and options.get("axis") == -1:
        shape = (*shape[:-1], SHAPE[-1])
    x = torch.randn(SHAPE, dtype=F64)
    tensors = [x]
    if shape is not None:
        tensors += [torch.rand(shape, dtype=F64) + 0.5, torch.randn(shape, dtype=F64)]
    if residual:
        tensors.append(torch.randn(SHAPE, dtype=F64))

    def function(x, *rest):
        weight, bias = rest[:2] if shape is not None else (None, None)
        added = rest[-1] if residual else None
        return normalize(norm, x, weight, bias, residual=added, activation=activation, **options)

    return function, [t.requires_grad_() for t in tensors]


@both_ways
@pytest.mark.parametrize("affine", AFFINE)
@calls
def test_first_and_second_derivatives_of_calls(call, affine):
    function, inputs = called(call, affine)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@both_ways
@pytest.mark.parametrize("activation", nk.epilogues.activation_names())
def test_second_derivatives_behind_every_activation(activation):
    function, inputs = called("batch", activation=activation)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


#: Steps of batch norm with its state as a value.
STEPS = {
    "eval": {"training": False},
    "train": {},
    "cumulative": {"momentum": None},
    "population": {"rule": "population"},
    "skip": {"on_nonfinite": "skip"},
    "ghost": {"norm": nk.GhostBatchNorm(2)},
    "mean-only": {"norm": nk.MeanOnlyBatchNorm()},
    "renorm": {"renorm": RENORM},
    "mask": {"mask": mask_of(SHAPE)},
    "lengths": {"lengths": torch.tensor([3, 1, 2, 2, 3])},
    "activation": {"activation": "gelu"},
}
steps = pytest.mark.parametrize("step", STEPS)


def start():
    state = nt.RunningStatistics.start(C, dtype=F64)
    return state._replace(mean=STATISTICS[0], var=STATISTICS[1], batches=torch.tensor(1))


@both_ways
@pytest.mark.parametrize("step", [step for step in STEPS if step != "renorm"])
def test_derivatives_of_a_step_with_its_state_as_a_value(step):
    state = start()
    inputs = [
        torch.randn(SHAPE, dtype=F64, requires_grad=True),
        torch.rand(C, dtype=F64, requires_grad=True),
        torch.rand(C, dtype=F64, requires_grad=True),
    ]

    def function(x, weight, bias):
        y, new = batch_norm_with_state(x, state, weight, bias, **STEPS[step])
        assert not any(t is not None and t.requires_grad for t in new)
        return y

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@both_ways
@pytest.mark.parametrize("affine", AFFINE)
def test_renorm_takes_its_factors_for_constants(affine):
    """Against the paper's formula, with r and d out of the graph."""
    renorm = nk.Renorm(*STATISTICS, 1.5, 0.4)
    leaves = [torch.randn(SHAPE, dtype=F64)]
    if AFFINE[affine] is not None:
        leaves += [torch.rand(AFFINE[affine], dtype=F64), torch.rand(AFFINE[affine], dtype=F64)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def formula(x, weight=None, bias=None):
        mean, var = x.mean((0, 2)), x.var((0, 2), unbiased=False)
        deviation, reference = (var + 1e-5).sqrt(), (renorm.var + 1e-5).sqrt()
        r = (deviation / reference).clamp(1 / 1.5, 1.5).detach()
        d = ((mean - renorm.mean) / reference).clamp(-0.4, 0.4).detach()
        y = (x - mean[:, None]) / deviation[:, None] * r[:, None] + d[:, None]
        return y if weight is None else y * weight[..., None] + bias[..., None]

    derivatives = []
    for function in (lambda *a: normalize(nk.BatchNorm(), *a, renorm=renorm), formula):
        y = function(*leaves)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)
        derivatives.append([y, *first, *second])
    close(*derivatives)


@both_ways
@both_modes
@kinds
def test_forward_mode_is_the_transpose_of_backward(kind, training):
    layer, x = made(kind, training=training)
    before = copy.deepcopy(layer.state_dict())
    tangent, dy = torch.randn_like(x), torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    plain = layer(leaf)
    dx = torch.autograd.grad(plain, leaf, dy)[0]
    after = copy.deepcopy(layer.state_dict())
    layer.load_state_dict(before)
    with torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        y, moved = torch.autograd.forward_ad.unpack_dual(y)
    close(y, plain.detach())
    close((moved * dy).sum(), (tangent * dx).sum())
    close(layer.state_dict(), after)


# --- torch.func -----------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("kind", STATELESS)
def test_func_on_layers_without_state(kind):
    layer, x = made(kind)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).pow(3).sum()

    xs = torch.stack([x, 2 * x, -x])
    want = [torch.autograd.grad(loss(parameters, one.requires_grad_()), one)[0] for one in xs]
    each = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(None, 0))
    close(each(parameters, xs), torch.stack(want))
    by_sample = torch.func.vmap(layer)(xs)
    close(by_sample, torch.stack([layer(one) for one in xs]))
    if parameters:
        whole = torch.func.grad(loss)({k: p.detach() for k, p in parameters.items()}, x.detach())
        layer.zero_grad()
        loss(parameters, x).backward()
        close(whole, {k: p.grad for k, p in parameters.items()})


@both_ways
@both_modes
@pytest.mark.parametrize("kind", STATELESS)
def test_func_jacobians_agree(kind, training):
    layer, x = made(kind, training=training)
    backward, forward = torch.func.jacrev(layer)(x), torch.func.jacfwd(layer)(x)
    close(backward, forward)
    close(backward, torch.autograd.functional.jacobian(layer, x))
    tangent = torch.randn_like(x)
    y, moved = torch.func.jvp(layer, (x,), (tangent,))
    close(y, layer(x))
    close(moved, torch.tensordot(backward, tangent, x.dim()))
    hessian = torch.func.hessian(lambda z: layer(z).pow(3).sum())(x)
    close(hessian, torch.autograd.functional.hessian(lambda z: layer(z).pow(3).sum(), x), 1e-9)


@both_ways
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STATELESS])
def test_func_on_layers_with_state_in_eval(kind):
    layer, x = made(kind, training=False)
    xs = torch.stack([x, 2 * x, -x])
    before = copy.deepcopy(layer.state_dict())
    close(torch.func.vmap(layer)(xs), torch.stack([layer(one) for one in xs]))
    gradient = torch.func.vmap(torch.func.grad(lambda z: layer(z).pow(3).sum()))(xs)
    want = [
        torch.autograd.grad(layer(z := one.clone().requires_grad_()).pow(3).sum(), z)[0]
        for one in xs
    ]
    close(gradient, torch.stack(want))
    close(torch.func.jacrev(layer)(x), torch.func.jacfwd(layer)(x))
    close(layer.state_dict(), before, 0)


@both_ways
@pytest.mark.parametrize("randomness", ["error", "different"])
def test_an_ensemble_of_layers_in_eval(randomness):
    layers = [made("batch2d", training=False)[0] for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = made("batch2d")[1]

    def one(parameters, buffers, x):
        return torch.func.functional_call(layers[0], (parameters, buffers), (x,))

    y = torch.func.vmap(one, in_dims=(0, 0, None), randomness=randomness)(parameters, buffers, x)
    close(y, torch.stack([layer(x) for layer in layers]))


@both_ways
@steps
def test_an_ensemble_in_training_with_states_as_values(step):
    """Every model has its own input, weights and running statistics."""
    options = STEPS[step]
    models = 3
    states = [
        start()._replace(mean=torch.randn(C, dtype=F64), batches=torch.tensor(i))
        for i in range(models)
    ]
    stacked = nt.RunningStatistics(*(torch.stack(values) for values in zip(*states, strict=True)))
    xs = torch.randn(models, *SHAPE, dtype=F64)
    weights = torch.rand(models, C, dtype=F64)

    def loss(weight, x, state):
        y, new = batch_norm_with_state(x, state, weight, **options)
        return y.pow(3).sum(), (y, new)

    both = torch.func.grad(loss, argnums=(0, 1), has_aux=True)
    gradients, (ys, new) = torch.func.vmap(both)(weights, xs, stacked)
    for i, state in enumerate(states):
        leaf = [t[i].clone().requires_grad_() for t in (weights, xs)]
        value, (y, after) = loss(*leaf, state)
        close(ys[i], y.detach())
        for got, want in zip(gradients, torch.autograd.grad(value, leaf), strict=True):
            close(got[i], want)
        for got, want in zip(new, after, strict=True):
            close(got[i], want)


# --- torch.compile --------------------------------------------------------------------------------


def compiled(layer, backend):
    return torch.compile(layer, fullgraph=True, backend=backend)


def trained(layer, call, xs, given=()):
    """Outputs, gradients and state over several steps."""
    seen = []
    for x in xs:
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        y = call(leaf, **dict(given))
        y.pow(3).sum().backward()
        gradients = [p.grad for p in layer.parameters()]
        seen += [y.detach(), leaf.grad, *(g if g is None else g.clone() for g in gradients)]
        seen += [value.clone() for value in layer.state_dict().values()]
    return seen


def equal_when_compiled(layer, xs, backend, given=(), tolerance=1e-10):
    other = copy.deepcopy(layer)
    want = trained(layer, layer, xs, given)
    got = trained(other, compiled(other, backend), xs, given)
    for a, b in zip(got, want, strict=True):
        close(a, b, tolerance)


@on_kernels
@both_modes
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@kinds
def test_compiled_layers(kind, backend, training):
    layer, x = made(kind, training=training)
    equal_when_compiled(layer, [x, 2 * x + 1, x * x], backend)


@on_kernels
@both_modes
@pytest.mark.parametrize("options", OPTIONS)
def test_compiled_batch_norm_with_every_option(options, training):
    layer, x = made(kind_for(options), training=training, **OPTIONS[options])
    equal_when_compiled(layer, [x, 2 * x + 1, x * x], "aot_eager")


@on_kernels
def test_a_compiled_layer_skips_a_batch_that_is_not_finite():
    layer, x = made("batch1d", on_nonfinite="skip")
    bad = x.clone()
    bad[0, 0, 0] = float("nan")
    other = copy.deepcopy(layer)
    call = compiled(other, "aot_eager")
    for batch in (x, bad, 2 * x):
        layer(batch)
        call(batch)
        assert other.running_mean.isfinite().all()
        close(other.state_dict(), layer.state_dict())
    assert other.num_batches_tracked == 2


GIVEN = {
    "mask": {"mask": mask_of(SHAPE)},
    "lengths": {"lengths": torch.tensor([3, 1, 2, 2, 3])},
    "residual": {"residual": torch.linspace(-1, 1, 60).double().view(SHAPE), "activation": "relu"},
    "input-activation": {"input_activation": "silu"},
    "conditional": {
        "weight": torch.linspace(0.5, 2, 20).double().view(5, C),
        "bias": torch.linspace(-1, 1, 20).double().view(5, C),
    },
}


@on_kernels
@both_modes
@pytest.mark.parametrize(
    ("options", "given"),
    [*itertools.product(["plain"], GIVEN), ("ghost", "mask"), ("population", "lengths")],
)
def test_compiled_calls_with_options(options, given, training):
    layer, x = made("batch1d", training=training, **OPTIONS[options])
    equal_when_compiled(layer, [x, 2 * x + 1], "aot_eager", GIVEN[given])


@on_kernels
def test_a_compiled_network_takes_other_batch_sizes():
    net = nn.Sequential(
        nn.Conv2d(3, C, 3), nt.BatchNorm2d(C), nn.ReLU(), nt.GroupNorm(2, C),
        nt.InstanceNorm2d(C), nn.Flatten(2), nt.LayerNorm(16),
    ).double()  # fmt: skip
    other = copy.deepcopy(net)
    call = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (4, 3, 7):
        x = torch.randn(size, 3, 6, 6, dtype=F64)
        close(call(x), net(x))
    close(other.state_dict(), net.state_dict())


@on_kernels
@steps
def test_a_compiled_step_with_its_state_as_a_value(step):
    def call(x, state):
        return batch_norm_with_state(x, state, **STEPS[step])

    quick = torch.compile(call, fullgraph=True, backend="aot_eager")
    x, state, same = torch.randn(SHAPE, dtype=F64), start(), start()
    for _ in range(2):
        y, state = call(x, state)
        got, same = quick(x, same)
        close(got, y)
        close(tuple(same), tuple(state))


@on_kernels
@calls
def test_compiled_calls_of_normalize(call):
    function, inputs = called(call)
    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    y, want = quick(*inputs), function(*inputs)
    close(y, want)
    dy = torch.randn_like(y)
    close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy))


@on_kernels
def test_inductor():
    layer, x = made("batch2d", F32, ghost=2)
    equal_when_compiled(layer, [x, x + 1], "inductor", tolerance=1e-4)


# --- export ---------------------------------------------------------------------------------------


@on_kernels
@pytest.mark.parametrize("strict", [False, True], ids=["loose", "strict"])
@kinds
def test_export_in_eval_with_a_dynamic_batch(kind, strict):
    layer, x = made(kind, training=False)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    for size in (len(x), 7):
        other = torch.randn(size, *x.shape[1:], dtype=F64)
        close(program.module()(other), layer(other))
    close(dict(program.state_dict), dict(layer.state_dict()), 0)


@on_kernels
@pytest.mark.parametrize("options", ["ghost", "renorm", "mean-only", "population"])
def test_export_of_batch_norm_with_options(options):
    layer, x = made("batch2d", training=False, **OPTIONS[options])
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    other = torch.randn(7, *x.shape[1:], dtype=F64)
    close(program.module()(other), layer(other))


@on_kernels
# Of its exporter and what that is built on.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [*KINDS, *(f"batch2d-{name}" for name in ("ghost", "mean-only"))])
def test_onnx(kind, tmp_path):
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    base, _, option = kind.partition("-") if kind not in KINDS else (kind, "", "plain")
    layer, x = made(base, F32, training=False, **OPTIONS[option])
    file = tmp_path / "layer.onnx"
    program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
    program.save(file)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(got), layer(x).detach(), 1e-5)


# --- graphs that are packed or walked twice -------------------------------------------------------


@both_ways
@both_modes
@kinds
def test_saved_tensors_may_be_packed(kind, training):
    layer, x = made(kind, training=training)
    other = copy.deepcopy(layer)
    want = trained(layer, layer, [x])
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        got = trained(other, other, [x])
    assert packed
    close(got, want)


CHECKPOINTED = [
    *((kind, "plain") for kind in KINDS),
    *((kind_for(name), name) for name in list(OPTIONS)[1:]),
]


@both_ways
@both_modes
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
@pytest.mark.parametrize(("kind", "options"), CHECKPOINTED)
def test_checkpointing_counts_a_batch_once(kind, options, reentrant, training):
    from torch.utils.checkpoint import checkpoint

    layer, x = made(kind, training=training, **OPTIONS[options])
    other = copy.deepcopy(layer)
    want = trained(layer, layer, [x, 2 * x])
    got = trained(other, lambda leaf: checkpoint(other, leaf, use_reentrant=reentrant), [x, 2 * x])
    close(got, want)


@both_ways
@kinds
def test_a_graph_walked_twice(kind):
    layer, x = made(kind)
    leaf = x.requires_grad_()
    y = layer(leaf)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, leaf, dy)[0], first)


class Block(nn.Module):
    """A layer as its users call it."""

    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x):
        return self.layer(x, residual=x, **self.options)


@both_modes
@kinds
def test_symbolic_tracing_sees_a_layer_as_one_module(kind, training):
    layer, x = made(kind, training=training)
    net = nn.Sequential(Block(layer, activation="relu"), copy.deepcopy(layer))
    other = copy.deepcopy(net)
    traced = torch.fx.symbolic_trace(net)
    modules = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert modules == ["0.layer", "1"]
    close(traced(x), other(x))
    close(list(traced.state_dict().values()), list(other.state_dict().values()))
