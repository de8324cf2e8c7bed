"""normkit.torch against torch.nn: the same layers, on other kernels."""

import copy
import inspect
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit as nk  # noqa: E402
import normkit.torch as nt  # noqa: E402
from normkit.torch.functional import normalize  # noqa: E402

PAIRS = [(nt.BatchNorm1d, torch.nn.BatchNorm1d), (nt.BatchNorm2d, torch.nn.BatchNorm2d)]
SETTINGS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-3},
    {"affine": False},
    {"track_running_stats": False},
]
NATIVE = [
    nk.BatchNorm(),
    nk.GroupNorm(2),
    nk.LayerNorm(),
    nk.InstanceNorm(),
    nk.TokenLayerNorm(),
    nk.RMSNorm(),
]


@pytest.fixture(autouse=True)
def _through_the_kernels():
    torch.manual_seed(0)
    nt.use_native_up_to(0)
    yield
    nt.use_native_up_to(None)


def make(pair, settings, dtype=torch.float64):
    ours, theirs = (kind(6, **settings).to(dtype) for kind in pair)
    if ours.affine:
        with torch.no_grad():
            ours.weight.uniform_(-1, 2)
            ours.bias.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def step(layer, x, dy):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def shape_of(pair):
    return (5, 6, 9) if "1d" in pair[0].__name__ else (5, 6, 4, 3)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=["1d", "2d"])
def test_three_batches_then_eval_equal_torch_nn(pair, settings):
    ours, theirs = make(pair, settings)
    for training in (True, True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(shape_of(pair), dtype=torch.float64) * 3 + 100
        dy = torch.randn_like(x)
        for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("parameters", ["same", "float32"])
def test_narrow_dtypes_are_as_close_to_the_truth_as_torch_nn(dtype, parameters):
    ours, _ = make(PAIRS[1], {}, dtype if parameters == "same" else torch.float32)
    truth, _ = make(PAIRS[1], {})
    truth.load_state_dict({k: v.double() for k, v in ours.state_dict().items()})
    x = (torch.randn(8, 6, 5, 5) * 2 + 1).to(dtype)
    dy = torch.randn_like(x)
    unit = torch.finfo(dtype).eps
    got, want = step(ours, x, dy), step(truth, x.double(), dy.double())
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).abs().max() <= 2 * unit * b.abs().max()
    assert [t.dtype for t in got[:2]] == [dtype, dtype]
    assert got[2].dtype == ours.weight.dtype


@pytest.mark.parametrize("training", [True, False])
def test_memory_formats_are_kept(training):
    ours, theirs = make(PAIRS[1], {})
    ours.train(training)
    theirs.train(training)
    x = torch.randn(4, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(x)
    for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
        torch.testing.assert_close(a, b)
    y = ours(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    for view in (x[::2], x[:, :, 1:, ::2], x.expand(2, 4, 6, 5, 7)[1], x.transpose(2, 3)):
        torch.testing.assert_close(ours(view), theirs(view))


def test_no_copy_of_x_is_made():
    x = torch.randn(8, 6, 40, 40, requires_grad=True)
    held = nt.BatchNorm2d(6)(x).grad_fn.saved_tensors
    assert any(t is not None and t.data_ptr() == x.data_ptr() for t in held)


@pytest.mark.parametrize(
    "norm", [nk.BatchNorm(), nk.GroupNorm(2), nk.TokenLayerNorm(), nk.RMSNorm()], ids=str
)
@pytest.mark.parametrize("axis", [1, -1])
def test_gradcheck(norm, axis):
    x = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    residual = torch.randn_like(x, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(x, weight, bias, residual):
        return normalize(norm, x, weight, bias, axis, residual=residual, activation="silu")

    assert torch.autograd.gradcheck(function, (x, weight, bias, residual))


@pytest.mark.parametrize("norm", NATIVE, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
def test_small_inputs_give_the_same_by_pytorchs_operators(norm, activation):
    axis = -1 if norm.positions == 1 else 1
    x, residual = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    weight, bias = torch.randn(x.shape[axis]), torch.randn(x.shape[axis])
    args = (norm, x, weight, None if not norm.center else bias, axis, residual, activation)
    ours = normalize(*args)
    nt.use_native_up_to(1000)
    torch.testing.assert_close(normalize(*args), ours)


def test_fifty_steps_take_the_same_course():
    losses = []
    for kind in PAIRS[0]:
        torch.manual_seed(1)
        net = torch.nn.Sequential(
            torch.nn.Linear(8, 12), kind(12), torch.nn.ReLU(), torch.nn.Linear(12, 3)
        ).double()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        x, target = torch.randn(64, 8, dtype=torch.float64), torch.randint(3, (64,))
        course = []
        for _ in range(50):
            loss = torch.nn.functional.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        losses.append(course)
    assert losses[0][-1] < 0.8 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-10)


@pytest.mark.parametrize("pair", PAIRS, ids=["1d", "2d"])
def test_the_layer_is_torch_nns_in_every_other_way(pair):
    ours, theirs = pair
    assert issubclass(ours, theirs)
    taken = list(inspect.signature(theirs).parameters.values())
    assert list(inspect.signature(ours).parameters.values())[: len(taken)] == taken
    layer = ours(6, eps=1e-4)
    assert repr(layer) == repr(theirs(6, eps=1e-4))
    x = torch.randn(shape_of(pair))
    layer(x)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(clone.eval()(x), layer.eval()(x))


def test_what_torch_nn_refuses_is_refused():
    with pytest.raises(ValueError, match="expected 4D"):
        nt.BatchNorm2d(6)(torch.randn(40, 6, 10))
    with pytest.raises(ValueError, match=r"(?s)momentum.*nan.*finite"):
        nt.BatchNorm1d(6, momentum=float("nan"))
    with pytest.raises(ValueError, match=r"(?s)eps.*-1.*at least 0"):
        nt.BatchNorm1d(6, eps=-1.0)
    with pytest.raises((ValueError, RuntimeError)):
        nt.BatchNorm2d(6)(torch.randn(4, 5, 10, 10))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nt.BatchNorm1d(6)(torch.randn(1, 6))


def test_a_change_of_x_before_backward_is_noticed():
    x = torch.randn(8, 6, 9, requires_grad=True)
    z = x * 1
    y = nt.BatchNorm1d(6)(z)
    z.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize("eval_mode", [False, True])
def test_second_derivatives_through_the_kernels(eval_mode):
    layer = nt.BatchNorm1d(4).double().train(not eval_mode)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_result_may_be_changed_in_place(memory_format):
    """What torchvision's blocks do: BatchNorm2d and ReLU(inplace=True) behind it."""
    x = torch.randn(16, 32, 28, 28).contiguous(memory_format=memory_format)
    gradients = []
    for kind, inplace in ((nt.BatchNorm2d, True), (torch.nn.BatchNorm2d, False)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = torch.nn.ReLU(inplace)(kind(32)(leaf))
        assert y.nbytes > 1 << 20
        y.square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_eval_with_bfloat16_buffers():
    layer = nt.BatchNorm2d(6).bfloat16().eval()
    layer.running_mean.normal_()
    x = torch.randn(4, 6, 9, 9).bfloat16()
    truth = copy.deepcopy(layer).double()(x.double())
    assert (layer(x).double() - truth).abs().max() <= 2**-8 * truth.abs().max()


def test_running_statistics_may_move_between_eval_and_backward():
    layer = nt.BatchNorm1d(6).double().eval()
    gradients = []
    for moved in (0.0, 5.0):
        layer.zero_grad()
        layer.running_mean.zero_()
        y = layer(torch.ones(8, 6, 9, dtype=torch.float64))
        layer.running_mean.add_(moved)
        y.sum().backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_several_threads_may_walk_one_graph():
    from concurrent.futures import ThreadPoolExecutor

    x = torch.randn(16, 6, 20, requires_grad=True)
    y = nt.BatchNorm1d(6)(x)
    dy = torch.randn_like(y)

    def walk(_):
        return torch.autograd.grad(y, x, dy, retain_graph=True)[0]

    want = walk(0)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(got, want) for got in pool.map(walk, range(200)))
