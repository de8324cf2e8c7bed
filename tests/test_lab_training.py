"""The lab's gradient descent, its batches and what it measures on the way."""

import math
from itertools import islice

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812 - its usual name

import normkit.torch as nkt  # noqa: E402
from normkit.lab.data import Data  # noqa: E402
from normkit.lab.kit.networks import Dense  # noqa: E402
from normkit.lab.kit.training import Run, accuracy, batches, descend, loss_of, train  # noqa: E402


def clusters(total=50, tests=20, shift=3.0):
    """Images of one pixel's height whose class is where they lie: easy to learn."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(total + tests) % 2
    x = torch.randn((total + tests, 1, 1, 3), generator=generator) + shift * y[:, None, None, None]
    return Data("clusters", x[:total], y[:total], x[total:], y[total:], 2)


DATA = clusters()


class Constant(nn.Module):
    """Answers the same class whatever it sees."""

    def __init__(self, answer=0):
        super().__init__()
        self.scores = nn.Parameter(F.one_hot(torch.tensor(answer), 2).float())

    def forward(self, x):
        return self.scores.expand(len(x), 2)


class TestBatches:
    def test_an_epoch_has_no_image_twice(self):
        epoch = list(islice(batches(DATA, 10, seed=1), 5))
        seen = torch.cat([x for x, _ in epoch]).flatten(1)
        assert len(seen.unique(dim=0)) == len(DATA.train_images)

    def test_labels_stay_with_their_images(self):
        known = {tuple(x.flatten().tolist()): int(y) for x, y in zip(*_train(), strict=True)}
        for x, y in islice(batches(DATA, 10, seed=1), 7):
            assert [known[tuple(one.flatten().tolist())] for one in x] == y.tolist()

    def test_what_fills_no_batch_is_left_out_and_the_next_epoch_is_another(self):
        sizes = [len(y) for _, y in islice(batches(DATA, 20, seed=1), 4)]
        assert sizes == [20] * 4
        first, second = islice(batches(DATA, 50, seed=1), 2)
        assert not torch.equal(first[0], second[0])

    def test_the_seed_decides(self):
        one, same, other = (next(batches(DATA, 10, seed))[0] for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_a_batch_of_more_than_there_are_is_all_of_them(self):
        assert len(next(batches(DATA, 60, seed=1))[1]) == 50


def _train():
    return DATA.train_images, DATA.train_labels


class TestDescend:
    def test_a_step_is_plain_gradient_descent(self):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        weight = network[1].weight.detach().clone()
        x, y = _train()
        seen = []

        def look(step):
            seen.append((step.number, network[1].weight.grad.clone()))

        (step,) = descend(network, [(x, y)], rate=0.1, steps=5, before=look)
        ((number, gradient),) = seen
        assert number == step.number == 1
        assert torch.allclose(network[1].weight, weight - 0.1 * gradient)
        with torch.no_grad():
            assert step.loss != loss_of(network, x, y) == float(F.cross_entropy(network(x), y))

    def test_momentum_and_decay(self):
        network = Constant()
        start = network.scores.detach().clone()
        gradients = []
        x, y = _train()
        list(
            descend(
                network, [(x, y)] * 2, rate=0.1, steps=2, momentum=0.5, decay=0.2,
                before=lambda _: gradients.append(network.scores.grad.clone()),
            )
        )  # fmt: skip
        first = gradients[0] + 0.2 * start
        middle = start - 0.1 * first
        second = 0.5 * first + gradients[1] + 0.2 * middle
        assert torch.allclose(network.scores, middle - 0.1 * second)

    def test_the_rate_may_follow_the_steps(self):
        network, asked = Constant(), []
        list(
            descend(
                network, [_train()] * 3, steps=3, rate=lambda n: asked.append(n) or (n < 2) * 1.0
            )
        )
        assert asked == [1, 2, 3]
        alone = Constant()
        list(descend(alone, [_train()], steps=1, rate=1.0))
        assert torch.equal(network.scores, alone.scores)

    def test_frozen_parameters_stay(self):
        network = Dense((4,), norm="batch").build(DATA, 0)
        network[-1].requires_grad_(False)
        kept = network[-1].weight.clone()
        list(descend(network, [_train()] * 3, rate=0.5, steps=3))
        assert torch.equal(network[-1].weight, kept)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_it_ends_with_a_loss_that_is_no_number_and_does_not_step(self, value):
        network = Constant()
        x, y = _train()
        spoilt = Constant()
        with torch.no_grad():
            spoilt.scores[0] = value
        steps = list(descend(spoilt, [(x, y)] * 3, rate=0.1, steps=3))
        assert len(steps) == 1
        assert not math.isfinite(steps[0].loss)
        assert torch.equal(spoilt.scores[1:], network.scores[1:])

    def test_it_takes_no_batch_more_than_it_needs(self):
        feed = iter([_train()] * 5)
        list(descend(Constant(), feed, rate=0.1, steps=3))
        assert len(list(feed)) == 2


class TestTrain:
    def test_the_same_seed_gives_the_same_run(self):
        runs = [
            train(Dense((8,), norm="batch").build(DATA, 3), DATA, rate=0.1, steps=20, seed=3)
            for _ in range(2)
        ]
        assert runs[0].losses == runs[1].losses
        assert runs[0].accuracies == runs[1].accuracies

    def test_accuracy_is_measured_at_the_start_now_and_then_and_at_the_end(self):
        run = train(Dense((8,)).build(DATA, 0), DATA, rate=0.1, steps=25, seed=0, every=10)
        assert run.steps == [0, 10, 20, 25]
        assert len(run.accuracies) == 4
        assert len(run.losses) == 25
        assert run.accuracy == run.accuracies[-1] == accuracy(run.network, DATA)
        assert run.accuracy > 0.8 > run.accuracies[0]

    def test_it_stops_at_a_goal(self):
        run = train(
            Dense((8,)).build(DATA, 0), DATA, rate=0.1, steps=500, seed=0, every=5, goal=0.9
        )
        assert run.steps_to(0.9) == run.steps[-1] < 500
        assert run.steps_to(1.1) == math.inf

    def test_steps_to_a_goal_are_those_of_the_first_time(self):
        run = Run(Constant(), steps=[0, 10, 20, 30], accuracies=[0.1, 0.9, 0.5, 0.95])
        assert (run.steps_to(0.1), run.steps_to(0.9), run.steps_to(0.92)) == (0, 10, 30)

    def test_a_diverged_run_says_so_and_ends(self):
        network = nn.Sequential(Dense((8, 8)).build(DATA, 0))
        run = train(network, DATA, rate=1e4, steps=50, seed=0, every=100)
        assert run.diverged
        assert len(run.losses) < 50
        assert run.steps == [0, len(run.losses)]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_so_does_one_whose_first_loss_is_no_number(self, value):
        network = Constant()
        with torch.no_grad():
            network.scores[0] = value
        run = train(network, DATA, rate=0.1, steps=5, seed=0)
        assert run.diverged
        assert run.steps == [0, 1]

    def test_a_healthy_run_has_not_diverged(self):
        assert not train(Dense((8,)).build(DATA, 0), DATA, rate=0.1, steps=5, seed=0).diverged

    def test_other_batches_may_be_given(self):
        fed = []

        def source():
            for x, y in batches(DATA, 4, 0):
                fed.append(len(y))
                yield x, y

        train(Dense((8,)).build(DATA, 0), DATA, rate=0.1, steps=3, seed=0, source=source())
        assert fed == [4, 4, 4]


class TestAccuracy:
    def test_it_is_the_share_of_test_images_that_are_right(self):
        assert accuracy(Constant(0), DATA) == accuracy(Constant(1), DATA) == 0.5

    @pytest.mark.parametrize("was", [True, False])
    @pytest.mark.parametrize("training", [True, False])
    def test_it_leaves_mode_and_running_statistics_alone(self, was, training):
        network = Dense((8, 8), norm="batch").build(DATA, 0).train(was)
        before = {name: value.clone() for name, value in network.named_buffers()}
        assert before
        accuracy(network, DATA, training=training)
        assert network.training == was
        for name, value in network.named_buffers():
            assert torch.equal(value, before[name]), name

    def test_in_training_mode_the_batch_normalizes(self):
        layer = nkt.BatchNorm1d(3)
        network = nn.Sequential(nn.Flatten(), layer, nn.Linear(3, 2))
        layer.running_mean.fill_(1e6)
        with torch.no_grad():
            network[2].weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
            network[2].bias.zero_()
        assert accuracy(network, DATA) == 0.5
        assert accuracy(network, DATA, training=True) > 0.9

    def test_other_images_may_be_given(self):
        network = Dense((8,)).build(DATA, 0)
        list(descend(network, batches(DATA, 10, 0), rate=0.1, steps=50))
        assert accuracy(network, DATA, -DATA.test_images + 3) < 0.5 < accuracy(network, DATA)
