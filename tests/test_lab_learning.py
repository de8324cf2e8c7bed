"""What the claims about learning with batch norm share, and whether their probes measure."""

import math
from itertools import islice, pairwise

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import normkit.torch as nkt  # noqa: E402
from normkit.lab.claims import (  # noqa: E402
    before_or_after,
    faster,
    inception_columns,
    initial_scale,
    learning_rates,
    less_regularization,
    saturating,
    stable_inputs,
)
from normkit.lab.data import Data  # noqa: E402
from normkit.lab.kit.labels import mislabelled  # noqa: E402
from normkit.lab.kit.training import Run  # noqa: E402
from normkit.lab.setup import Setup  # noqa: E402


def images(total=200, classes=5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((total, 1, 3, 4), generator=generator)
    y = torch.arange(total) % classes
    return Data("drawn", x, y, x[:40], y[:40], classes)


DATA = images()


class Scripted:
    """In place of train(): runs that are known beforehand, by norm and rate."""

    def __init__(self, outcome):
        self.outcome = outcome

    def __call__(self, network, _data, *, rate, steps, **_options):
        is_normed = any(isinstance(m, nkt.BatchNorm1d) for m in network)
        accuracies, diverged = self.outcome(is_normed, rate, steps)
        marks = [steps * i // (len(accuracies) - 1) for i in range(len(accuracies))]
        return Run(network, marks, accuracies, diverged=diverged)


class TestMislabelled:
    def test_the_share_asked_for_is_drawn_from_all_classes(self):
        data = images(total=20_000)
        found = mislabelled(data, 0.5, torch.Generator().manual_seed(1))
        changed = (found.train_labels != data.train_labels).double().mean()
        assert float(changed) == pytest.approx(0.5 * 4 / 5, abs=0.01)
        assert found.train_labels.unique().tolist() == [0, 1, 2, 3, 4]

    def test_the_test_stays_and_so_does_the_original(self):
        before = DATA.train_labels.clone()
        found = mislabelled(DATA, 1.0, torch.Generator().manual_seed(1))
        assert found.test_labels is DATA.test_labels
        assert torch.equal(DATA.train_labels, before)
        assert torch.equal(mislabelled(DATA, 0.0, torch.Generator()).train_labels, before)

    def test_the_generator_decides(self):
        one, same, other = (
            mislabelled(DATA, 0.5, torch.Generator().manual_seed(seed)).train_labels
            for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


class TestSameBatches:
    def test_the_epoch_comes_again_as_it_was(self):
        source = less_regularization.same_batches(DATA, seed=3)
        first, again = list(islice(source, 3)), list(islice(source, 3))
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
        assert len(torch.cat([x for x, _ in first]).flatten(1).unique(dim=0)) == 180

    def test_data_of_less_than_a_batch_are_one(self):
        (x, _), (same, _) = islice(less_regularization.same_batches(images(total=40), seed=3), 2)
        assert len(x) == 40
        assert torch.equal(x, same)


def test_each_recipe_changes_one_thing_of_the_one_before():
    recipes = [vars(recipe) for _, recipe in less_regularization.RECIPES.values()]
    changes = [{key for key in one if one[key] != other[key]} for one, other in pairwise(recipes)]
    assert changes == [{"norm"}, {"dropout"}, {"decay"}, {"half"}, {"is_shuffled"}]


class TestPercentiles:
    def test_they_are_those_of_the_last_sigmoid_s_inputs(self):
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 12), nn.Sigmoid(), nn.Linear(12, 2), nn.Sigmoid(),
            nn.Linear(2, 5),
        )  # fmt: skip
        with torch.no_grad():
            network[3].weight.zero_()
            network[3].weight[0, 0] = 1.0
            network[3].bias.copy_(torch.tensor([10.0, -4.0]))
            inputs = torch.sigmoid(network[1](DATA.test_images.flatten(1)))[:, 0] + 10
        found = stable_inputs.percentiles(network, DATA.test_images)
        expected = torch.quantile(inputs, torch.tensor([0.15, 0.5, 0.85]))
        assert torch.allclose(found[:, 0], expected)
        assert found[:, 1].tolist() == [-4.0] * 3

    def test_batch_norm_normalizes_with_these_images_and_learns_nothing_of_them(self):
        network = faster.NETWORK.build(DATA, 0)
        normed = nn.Sequential(*network[:2], nkt.BatchNorm1d(100), *network[2:3], network[-1])
        before = {name: value.clone() for name, value in normed.named_buffers()}
        found = stable_inputs.percentiles(normed.eval(), DATA.test_images)
        assert ((found[2] - found[0]) > 0.8).all()
        assert not normed.training
        assert all(torch.equal(value, before[name]) for name, value in normed.named_buffers())

    def test_growth_and_drift_of_known_percentiles(self):
        spreads = torch.tensor([1.0, 4.0, 2.0])[:, None] * torch.tensor([1.0, 1.0, 3.0])
        middle = torch.tensor([0.0, 1.0, -3.0])[:, None].expand(3, 3)
        seen = torch.stack([middle - spreads / 2, middle, middle + spreads / 2], dim=1)
        inputs = stable_inputs.Inputs(seen)
        assert inputs.growth == 4.0  # a constant factor changes it not
        assert inputs.drift == 2.0  # from -3 to 1, in spreads of 2, 2 and 6


class TestNumbers:
    def test_a_plain_network_that_never_arrives_bounds_the_share(self, monkeypatch):
        def outcome(is_normed, rate, steps):
            return ([0.1, 0.96, 0.97] if is_normed else [0.1, 0.2, 0.3]), False

        monkeypatch.setattr(faster, "train", Scripted(outcome))
        numbers = faster.measure(Setup(DATA, 0)).numbers
        assert (numbers["share"], numbers["batch"], numbers["plain"]) == (0.5, 600, math.inf)

    def test_batch_norm_that_never_arrives_fails(self, monkeypatch):
        monkeypatch.setattr(faster, "train", Scripted(lambda *_: ([0.1, 0.2], False)))
        numbers = faster.measure(Setup(DATA, 0)).numbers
        assert not faster.CLAIM.criteria[0].holds(numbers["share"])

    def test_the_largest_rate_that_works_may_lie_above_one_that_does_not(self, monkeypatch):
        def outcome(is_normed, rate, steps):
            works = rate in (0.05, 0.4, 1.6) if is_normed else rate <= 0.1
            return [0.1, 0.95 if works else 0.2], not is_normed and rate > 0.5

        monkeypatch.setattr(learning_rates, "train", Scripted(outcome))
        numbers = learning_rates.measure(Setup(DATA, 0)).numbers
        assert numbers == {"ratio": 16.0, "batch": 1.6, "plain": 0.1, "plain_diverges": 0.8}

    def test_no_rate_at_all(self, monkeypatch):
        monkeypatch.setattr(learning_rates, "train", Scripted(lambda *_: ([0.1, 0.2], False)))
        numbers = learning_rates.measure(Setup(DATA, 0)).numbers
        assert numbers == {"ratio": 0, "batch": 0, "plain": 0, "plain_diverges": math.inf}

    def test_the_best_over_the_rates(self, monkeypatch):
        def outcome(is_normed, rate, steps):
            return [0.1, (0.9 if rate == 0.3 else 0.4) if is_normed else rate / 100], False

        monkeypatch.setattr(saturating, "train", Scripted(outcome))
        numbers = saturating.measure(Setup(DATA, 0)).numbers
        assert numbers == {"batch": 0.9, "plain": 0.03, "wide": 0.03}

    def test_scales_from_which_a_network_arrives(self, monkeypatch):
        def outcome(is_normed, rate, steps):
            return ([0.1, 0.96, 0.97] if is_normed else [0.1, 0.2, 0.96]), False

        monkeypatch.setattr(initial_scale, "train", Scripted(outcome))
        numbers = initial_scale.measure(Setup(DATA, 0)).numbers
        assert numbers["batch_works"] == numbers["plain_works"] == 1
        assert numbers["batch_fewest"] == numbers["batch_most"] == 600
        assert numbers["gain_usual"] == numbers["gain_larger"] == 2

    def test_no_scale_at_all_gives_no_nan(self, monkeypatch):
        monkeypatch.setattr(initial_scale, "train", Scripted(lambda *_: ([0.1, 0.2], False)))
        numbers = initial_scale.measure(Setup(DATA, 0)).numbers
        assert numbers["batch_works"] == numbers["gain_usual"] == 0
        assert not any(map(math.isnan, numbers.values()))

    def test_the_goal_is_the_plain_network_s_best(self, monkeypatch):
        def outcome(is_normed, rate, steps):
            if is_normed:
                return [0.1, 0.7, 0.9, 0.95, 0.8], False
            return ([0.1, 0.2, 0.3, 0.9, 0.8] if rate < 0.2 else [0.1, 0.1]), False

        monkeypatch.setattr(inception_columns, "train", Scripted(outcome))
        numbers = inception_columns.measure(Setup(DATA, 0)).numbers
        assert (numbers["plain_steps"], numbers["plain_best"]) == (600, 0.9)
        assert (numbers["batch_steps"], numbers["x30_best"]) == (400, 0.95)
        assert numbers["plain_x5_steps"] == math.inf

    def test_the_better_of_the_rates(self, monkeypatch):
        def outcome(is_normed, rate, steps):
            return [0.1] + [0.5 if rate == before_or_after.RATES[0] else 0.4] * 5, False

        monkeypatch.setattr(before_or_after, "train", Scripted(outcome))
        numbers = before_or_after.measure(Setup(DATA, 0)).numbers
        assert set(numbers.values()) == {0.5}
        assert len(numbers) == 8
