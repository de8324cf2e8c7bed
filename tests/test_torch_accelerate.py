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
def test_an_addition_that_broadcasts_is_not_fused(with_example):
    model, said, x = Broadcasts(), [], torch.randn(5, 4)
    want = model(x)
    nt.accelerate(model, x if with_example else None, report=said.append)
    assert "0 additions" in said[0]
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
