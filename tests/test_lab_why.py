"""What the lab's claims about why batch norm works measure, against what it is by hand."""

import copy
import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812 - its usual name

from normkit.lab.claims import (  # noqa: E402
    explosion,
    landscape,
    noise_after_norm,
    only_gamma_beta,
    regularizing_noise,
    shift_or_smoothness,
)
from normkit.lab.data import Data  # noqa: E402
from normkit.lab.kit.networks import Conv, Dense  # noqa: E402
from normkit.lab.kit.probes import (  # noqa: E402
    Line,
    along_gradient,
    covariate_shift,
    gradient,
    loss_slice,
    moved,
    parameters_by_layer,
    power,
    ratio,
)
from normkit.lab.kit.skips import Block, Residual  # noqa: E402
from normkit.lab.kit.training import descend, loss_of  # noqa: E402
from normkit.lab.setup import Setup  # noqa: E402

F64 = torch.float64


def gaussian(total=400, size=(2, 3), classes=3):
    """Images of standard normal noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((total, 1, *size), generator=generator)
    y = torch.randint(classes, (total,), generator=generator)
    return Data("noise", x, y, x[:20], y[:20], classes)


DATA = gaussian()
X, Y = DATA.train_images[:16].double(), DATA.train_labels[:16]


def network(norm="batch", widths=(5, 4), **options):
    return Dense(widths, norm=norm, activation="tanh", **options).build(DATA, 0).double().train()


def state(of):
    return {name: value.clone() for name, value in of.state_dict().items()}


def assert_same(of, before):
    for name, value in of.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in of.parameters())


class TestGradient:
    @pytest.mark.parametrize("norm", ["batch", "none"])
    def test_is_what_finite_differences_give(self, norm):
        net = network(norm)
        loss, found = gradient(net, X, Y)
        assert loss == pytest.approx(float(F.cross_entropy(net(X), Y).detach()), rel=1e-12)
        direction = torch.randn(len(found), generator=torch.Generator().manual_seed(1), dtype=F64)
        ends = []
        for step in (1e-5, -1e-5):
            with moved(net, step * direction):
                ends.append(loss_of(net, X, Y))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(found @ direction), rel=1e-6)

    def test_what_does_not_learn_is_no_part_of_it(self):
        net = network()
        net[1].requires_grad_(False)
        _, found = gradient(net, X, Y)
        assert len(found) == sum(p.numel() for p in net.parameters() if p.requires_grad)


class TestNothingMoves:
    """Weights, running statistics and .grad stay as they were, bit by bit."""

    @pytest.mark.parametrize(
        "probe",
        [
            lambda net: gradient(net, X, Y),
            lambda net: along_gradient(net, X, Y, (0.1, 0.3)),
            lambda net: covariate_shift(net, X, Y, 0.3),
            lambda net: loss_slice(net, X, Y, *_directions(net), (-0.7, 0.0, 0.3)),
        ],
        ids=["gradient", "line", "shift", "slice"],
    )
    def test_in_a_probe(self, probe):
        net = network()
        net(X)  # running statistics that are not those of the start
        before = state(net)
        probe(net)
        assert_same(net, before)
        assert net.training

    def test_when_moving_fails(self):
        net = network()
        before = state(net)
        by, _ = _directions(net)
        with pytest.raises(RuntimeError, match="shape"), moved(net, by):
            net(X[:, :, :1])
        assert_same(net, before)

    def test_moving_moves(self):
        net = network()
        before = net[1].weight.detach().clone()
        by, _ = _directions(net)
        with moved(net, by):
            torch.testing.assert_close(
                net[1].weight.detach(), before + by[: before.numel()].view_as(before)
            )


def _directions(net):
    generator = torch.Generator().manual_seed(5)
    size = len(gradient(net, X, Y)[1])
    return [torch.randn(size, generator=generator, dtype=F64) for _ in range(2)]


class TestLine:
    def test_figures_by_hand(self):
        line = Line(size=2.0, lengths=(0.5, 1.0), losses=(3.0, 0.5), changes=(1.0, 3.0))
        assert line.loss_range == 2.5
        assert line.relative_change == 1.5
        assert line.smoothness == 1.5  # 3 / (1 · 2), more than 1 / (0.5 · 2)

    def test_each_point_is_a_step_of_gradient_descent(self):
        net = network()
        _, start = gradient(net, X, Y)
        line = along_gradient(net, X, Y, (0.1, 0.4))
        assert line.size == pytest.approx(float(start.norm()))
        for number, rate in enumerate(line.lengths):
            taken = copy.deepcopy(net)
            list(descend(taken, [(X, Y)], rate=rate, steps=1))
            loss, there = gradient(taken, X, Y)
            assert line.losses[number] == pytest.approx(loss, rel=1e-12)
            assert line.changes[number] == pytest.approx(float((there - start).norm()), rel=1e-9)

    def test_a_network_without_gradient_has_no_relative_change(self):
        assert math.isnan(Line(0.0, (1.0,), (1.0,), (0.0,)).relative_change)


class TestShift:
    def by_hand(self, net, layer, moving, rate):
        """The gradient of a layer's weight when these layers have taken their step."""
        changed = copy.deepcopy(net)
        layers = parameters_by_layer(changed)
        F.cross_entropy(changed(X), Y).backward()
        with torch.no_grad():
            for number in moving:
                for parameter in layers[number]:
                    parameter -= rate * parameter.grad
        changed.zero_grad()
        F.cross_entropy(changed(X), Y).backward()
        return layers[layer][0].grad

    @pytest.mark.parametrize("norm", ["batch", "none"])
    def test_all_layers_in_front_move_and_no_other(self, norm):
        net = network(norm, (5, 4, 6))
        shifts = covariate_shift(net, X, Y, 0.5)
        assert len(shifts) == 3  # of four layers: nothing is in front of the first
        for layer, shift in enumerate(shifts, start=1):
            before = self.by_hand(net, layer, (), 0.5)
            after = self.by_hand(net, layer, range(layer), 0.5)
            assert shift.difference == pytest.approx(float((after - before).norm()), rel=1e-9)
            assert shift.size == pytest.approx(float(before.norm()), rel=1e-9)
            cosine = F.cosine_similarity(before.flatten(), after.flatten(), dim=0)
            assert shift.cosine == pytest.approx(float(cosine), rel=1e-9)
            for wrong in (range(layer + 1), range(layer - 1), range(1, layer)):
                other = self.by_hand(net, layer, wrong, 0.5)
                assert float((other - before).norm()) != pytest.approx(shift.difference, rel=1e-3)

    def test_no_step_no_shift(self):
        for shift in covariate_shift(network(), X, Y, 0.0):
            assert shift.difference == 0
            assert shift.cosine == pytest.approx(1, abs=1e-12)

    def test_parameters_by_layer(self):
        net = network("batch")
        layers = parameters_by_layer(net)
        assert [[tuple(p.shape) for p in layer] for layer in layers] == [
            [(5, 6), (5,), (5,)],
            [(4, 5), (4,), (4,)],
            [(3, 4), (3,)],
        ]
        convolutional = Conv((2, 4), norm="batch").build(DATA, 0)
        layers = parameters_by_layer(convolutional)
        assert [layer[0].dim() for layer in layers] == [4, 4, 2]
        everything = [p for layer in layers for p in layer]
        assert {id(p) for p in everything} == {id(p) for p in convolutional.parameters()}


class TestSlice:
    def test_rows_go_up_and_columns_across(self):
        net = network()
        across, up = _directions(net)
        places = (-0.7, 0.0, 0.3)
        losses = loss_slice(net, X, Y, across, up, places)
        assert losses[1][1] == loss_of(net, X, Y)
        for row, high in enumerate(places):
            for column, far in enumerate(places):
                with moved(net, far * across + high * up):
                    assert losses[row][column] == loss_of(net, X, Y)
        assert losses[0][2] != losses[2][0]


def test_power_and_ratio():
    assert power([1, 10, 100], [5.0, 0.5, 0.05]) == pytest.approx(-1)
    assert math.isnan(power([1, 2], [1.0, -0.1]))
    assert (ratio(1, 2), ratio(1, 0), ratio(-1, 0)) == (0.5, math.inf, -math.inf)
    assert math.isnan(ratio(0, 0))


class TestNoise:
    def noise(self):
        return noise_after_norm.Noise(torch.Generator().manual_seed(0)).train()

    def test_moves_and_scales_each_unit_anew_in_each_step(self):
        layer, x = self.noise(), torch.zeros(500, 4)
        first, second = layer(x), layer(x)
        means = torch.stack([first.mean(0), second.mean(0)])
        assert means.abs().max() <= noise_after_norm.SHIFT * 1.02
        assert (means[0] - means[1]).abs().min() > 0.1  # other means in the next step
        own = noise_after_norm.SHIFT * noise_after_norm.OWN / math.sqrt(3)
        torch.testing.assert_close(first.std(0), torch.full((4,), own), rtol=0.1, atol=0)

    def test_deviations_are_one_to_three_times_as_large(self):
        layer = self.noise()
        x = 1000 * torch.randn(2000, 50, generator=torch.Generator().manual_seed(1))
        factors = (layer(x).std(0) / x.std(0)).sort().values
        assert 0.95 < factors[0] < 1.5
        assert 2.5 < factors[-1] < 3.2

    def test_is_away_in_eval_mode(self):
        x = torch.randn(5, 3)
        assert torch.equal(self.noise().eval()(x), x)


class TestRegularizingNoise:
    def ghost(self, size):
        options = {"ghost": size}
        return Dense((60, 50), norm="ghost", norm_options=options).build(DATA, 0)

    @pytest.mark.parametrize("size", [32, 64])
    def test_the_first_norms_noise_is_as_expected(self, size):
        net = Dense((60, 50), norm="batch").build(DATA, 0)
        with torch.no_grad():
            setup = Setup(DATA, 0)
            found = regularizing_noise._noise(self.ghost(size), size, setup)
            expected = regularizing_noise._expected(net, setup) / size
        assert len(found) == 2
        assert found[0] == pytest.approx(expected, rel=0.12)

    def test_of_normal_inputs_the_expected_noise_has_a_closed_form(self):
        net = Dense((60, 50), norm="batch").build(DATA, 0)
        with torch.no_grad():
            x = next(regularizing_noise._normalized(net, DATA.train_images))
            found = regularizing_noise._expected(net, Setup(DATA, 0))
        # 1 of the mean, x²/2 of the deviation: no skewness, kurtosis 3.
        closed = 1 + float(x[: regularizing_noise.IMAGES].square().mean()) / 2
        assert found == pytest.approx(closed, rel=0.1)

    def test_small_batches_add_to_the_loss_and_large_ones_little(self):
        net, setup = Dense((60, 50), norm="batch").build(DATA, 0), Setup(DATA, 0)
        with torch.no_grad():
            small, large = (
                regularizing_noise._excess(net, self.ghost(size), size, setup) for size in (8, 256)
            )
        assert abs(large) < small / 3


class TestExplosion:
    def test_growth_of_a_network_of_known_gradients(self):
        net = Dense((6,) * 6, activation="linear").build(DATA, 0)
        with torch.no_grad():
            for layer in net:
                if isinstance(layer, nn.Linear) and layer.out_features == 6:
                    layer.weight.copy_(3 * torch.eye(6))
        sizes = explosion._sizes(net, nn.Linear, Setup(DATA, 0), 10)
        assert len(sizes) == 6
        assert explosion._growth(sizes) == pytest.approx(9, rel=1e-5)

    def test_growth_is_of_the_half_at_the_end(self):
        assert explosion._growth([1000.0, 500.0, 8.0, 4.0, 2.0]) == pytest.approx(2)


class TestSkips:
    def test_a_block_adds_its_branch(self):
        branch = nn.Linear(3, 3)
        x = torch.randn(4, 3)
        torch.testing.assert_close(Block(branch)(x), x + branch(x))

    def test_norms_change_no_draw(self):
        kinds = [Residual(8, 3, norm).build(DATA, 1) for norm in ("batch", "none")]
        linear = [[m.weight for m in net.modules() if isinstance(m, nn.Linear)] for net in kinds]
        assert len(linear[0]) == 5
        assert all(torch.equal(a, b) for a, b in zip(*linear, strict=True))


class TestOnlyGammaAndBeta:
    @pytest.mark.parametrize(
        ("learning", "learns"),
        [("norms", {"2", "5"}), ("head", {"7"}), ("weights", {"1", "4"}), ("all", set("12457"))],
    )
    def test_what_learns(self, learning, learns):
        net = Dense((5, 4), norm="batch").build(DATA, 0)
        only_gamma_beta.only(net, learning, torch.Generator().manual_seed(0))
        found = {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad}
        assert found == learns

    def test_two_weights_of_each_unit(self):
        net = Dense((5, 4), norm="batch").build(DATA, 0)
        masks = only_gamma_beta.only(net, "weights", torch.Generator().manual_seed(0))
        assert {id(weight) for weight in masks} == {id(net[1].weight), id(net[4].weight)}
        for weight, chosen in masks.items():
            assert chosen.shape == weight.shape
            assert chosen.sum(1).tolist() == [2] * len(weight)


class TestViews:
    def test_of_a_landscape(self):
        losses = [[1.0, 4.0, 8.0], [1.5, 2.0, 3.0], [2.0, 1.0, 9.0]]
        view = landscape.View([-1, 0, 1], losses)
        assert view.line == [1.5, 2.0, 3.0]
        assert view.spread == 9
        assert view.lower == pytest.approx(3 / 9)

    def test_pairs_that_are_less(self):
        assert shift_or_smoothness._less([1.0, 3.0], [2.0, 4.0]) == 0.75
