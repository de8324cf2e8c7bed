"""accelerate(): whole models swapped and fused, with the same results."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import normkit.torch as nt  # noqa: E402
from normkit.errors import OptionError  # noqa: E402


class Basic(nn.Module):
    """A residual block as torchvision writes it: one ReLU, used twice, in place."""

    def __init__(self, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, width, 1, stride), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Basic(8), Basic(8, 2))
        self.norm = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 4)

    def forward(self, x, scale: float = 1.0):
        x = F.silu(self.norm(self.blocks(self.stem(x))))
        return self.head(self.drop(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))) * scale


class TwoNorms(nn.Module):
    """Both operands of the addition are norms: the later one has to take the earlier."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        first = self.a(x)
        second = self.b(x * 2)
        return F.relu(first + second)


class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return F.relu(self.norm(x)) if self.training else self.norm(x)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(4), 0

    def forward(self, x):
        self.calls += 1
        return F.relu(self.norm(x))


class Broadcasts(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.bias = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.norm(x) + self.bias(x[:1]))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def step(model, x):
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


def test_a_residual_network(capsys):
    model = Net().double()
    reference, x = copy.deepcopy(model), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    assert nt.accelerate(model, x) is model
    said = capsys.readouterr().out
    assert "7 norm layers on normkit's kernels, 6 activations and 2 additions fused" in said
    assert "verified in float64" in said
    assert isinstance(model, Net)
    assert isinstance(model.blocks[0], Basic)
    assert isinstance(model.stem[1], nt.BatchNorm2d)
    assert list(model.state_dict()) == list(reference.state_dict())
    for training in (True, False):
        model.train(training)
        reference.train(training)
        model.zero_grad()
        reference.zero_grad()
        for a, b in zip(step(model, x), step(reference, x), strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(model(x, scale=2.0), 2 * model(x))


def test_it_survives_copies_and_a_second_time():
    model, x = Net(), torch.randn(4, 3, 12, 12)
    nt.accelerate(model, x, report=None)
    model.eval()
    want = model(x)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(clone(x), want)
        assert isinstance(clone.blocks[1], Basic)
        assert "residual" in str(type(clone.blocks[1])._fused_from[1])
    said = []
    nt.accelerate(model, x, report=said.append)
    assert said[0].startswith("accelerate: 0 norm layers")
    torch.testing.assert_close(model(x), want)


def test_two_norms_added():
    model = TwoNorms()
    said = []
    nt.accelerate(model, torch.randn(5, 4), report=said.append)
    assert "1 activation and 1 addition fused" in said[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Chooses, "differs between training and eval|cannot trace"), (Counts, "keeps state")],
)
def test_what_a_graph_cannot_say_is_left_alone(kind, words):
    import re

    model, said = kind(), []
    nt.accelerate(model, torch.randn(5, 4), report=said.append)
    assert "0 activations" in said[0]
    assert re.search(words, said[1])
    assert isinstance(model.norm, nt.BatchNorm1d)
    model(torch.randn(5, 4))


@pytest.mark.parametrize("with_example", [True, False])
def test_an_addition_that_broadcasts(with_example):
    model, said, x = Broadcasts(), [], torch.randn(5, 4)
    want = model(x)
    nt.accelerate(model, x if with_example else None, report=said.append)
    assert "1 addition" in said[0]
    assert ("not verified" in said[-1]) is not with_example
    torch.testing.assert_close(model(x), want)


def test_a_result_that_differs_changes_nothing(monkeypatch):
    monkeypatch.setattr("normkit.torch.acceleration._TOLERANCE", -1.0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=r"(?s)nothing was changed.*output 0"):
        nt.accelerate(model, torch.randn(4, 3, 12, 12))
    assert type(model.norm) is nn.GroupNorm
    assert type(model.blocks[0]) is Basic
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_hooks_see_what_they_saw():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    seen = []
    model[1].register_forward_hook(lambda module, args, y: seen.append(float(y.detach().min())))  # noqa: ARG005
    nt.accelerate(model, torch.randn(5, 4), report=None)
    seen.clear()
    model(torch.randn(5, 4))
    assert seen[0] < 0


def test_training_goes_on_as_before():
    models = [Net().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    nt.accelerate(models[1], torch.randn(4, 3, 12, 12), report=None)
    x, target = torch.randn(8, 3, 12, 12, dtype=torch.float64), torch.randint(4, (8,))
    courses = []
    for model in models:
        torch.manual_seed(2)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        course = []
        for _ in range(20):
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        courses.append(course)
    assert courses[0][-1] < courses[0][0]
    assert courses[0] == pytest.approx(courses[1], rel=1e-8)


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act, self.gain, self.flag = nn.BatchNorm1d(4), nn.ReLU(), 2.0, True

    def forward(self, x, added=None, scale=1.0):
        y = self.norm(x)
        y = self.act(y if added is None else y + added) * self.gain * scale
        return y if self.flag else -y


CHANGES = {
    "nothing": lambda m: m,
    "a number": lambda m: setattr(m, "gain", 3.0),
    "a flag": lambda m: setattr(m, "flag", False),
    "the activation": lambda m: setattr(m, "act", nn.Identity()),
    "the norm": lambda m: setattr(m, "norm", nn.Identity()),
    "a hook": lambda m: m.act.register_forward_hook(lambda *args: args[2] * 2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("call", ["plain", "added", "number", "broadcast", "scale", "float64"])
def test_later_changes_and_other_calls_do_as_they_did(change, call):
    x = torch.randn(5, 4)
    models = [Attributes(), Attributes()]
    nt.accelerate(models[1], x, report=None)
    options = {
        "plain": {}, "added": {"added": x}, "number": {"added": 2.0},
        "broadcast": {"added": x[:1]}, "scale": {"scale": 3.0}, "float64": {"added": x.double()},
    }[call]  # fmt: skip
    for model in models:
        change(model)
    torch.testing.assert_close(models[1](x, **options), models[0](x, **options))


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, y):
        return F.relu(self.norm(x) + y)


@pytest.mark.parametrize("other", ["like", "broadcast", "larger", "number", "float64"])
def test_a_fused_addition_takes_what_an_addition_takes(other):
    x = torch.randn(5, 4)
    y = {"like": x, "broadcast": x[:1], "larger": x.expand(3, 5, 4), "number": 0.5,
         "float64": x.double()}[other]  # fmt: skip
    models = [Added(), Added()]
    said = []
    nt.accelerate(models[1], (x, x), report=said.append)
    assert "1 addition" in said[0]
    torch.testing.assert_close(models[1](x, y), models[0](x, y))


def test_under_autocast():
    models = [Added(), Added()]
    x = torch.randn(5, 4)
    nt.accelerate(models[1], (x, x), report=None)
    results = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            results.append(model(x, (x @ x.T @ x)))
    torch.testing.assert_close(*results)
    assert results[0].dtype == results[1].dtype


def test_a_sequential_follows_its_children():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    nt.accelerate(model, torch.randn(5, 4), report=None)
    x = torch.randn(5, 4)
    assert (model[:2](x) < 0).any()
    model.append(nn.Linear(4, 2))
    assert model(x).shape == (5, 2)
    model[2] = nn.Tanh()
    tail = copy.deepcopy(model[1:3])
    torch.testing.assert_close(model[3](tail(model[0](x))), model(x))
    assert pickle.loads(pickle.dumps(model))(x).shape == (5, 2)


class Writes(nn.Module):
    """The norm's input is changed between the norm and the activation."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = x * 1
        y = self.norm(x)
        x = x.mul_(0)
        return F.relu(y) + x


class Logs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.seen = nn.BatchNorm1d(4), []
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps.add_(1)
        self.seen.append(1)
        return F.relu(self.norm(x))


class QuickGELU(nn.GELU):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def test_what_only_looks_like_a_pattern():
    x = torch.randn(5, 4)
    models = [Writes(), Logs(), nn.Sequential(nn.BatchNorm1d(4), QuickGELU())]
    for model in models:
        reference, said = copy.deepcopy(model), []
        # PyTorch cannot differentiate the first: no example for it.
        nt.accelerate(model, None if type(model) is Writes else x, report=said.append)
        assert "0 activations" in said[0]
        torch.testing.assert_close(model(x), reference(x))
    assert models[1].seen == [1]
    assert int(models[1].steps) == 1


def test_models_that_a_verification_must_take_as_they_are():
    from torch.utils.checkpoint import checkpoint

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return F.relu(self.norm(x)).masked_fill(x > 0, float("-inf"))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    class InferenceOnly(Added):
        def forward(self, x, y):
            assert not self.training
            return F.relu(self.norm(x) + y)

    x = torch.randn(5, 4)
    nt.accelerate(Masked(), x, report=None)
    nt.accelerate(Checkpointed(), x, report=None)
    nt.accelerate(InferenceOnly().eval(), (x, x), report=None)
    with pytest.raises(TypeError, match="accelerate\\(\\) has no model"):
        nt.accelerate(lambda x: x, x)
