"""Rules on weights, structure and training settings: planted faults are found, and nothing else.

Each fault is planted in models that the auditor finds clean; what a rule says is checked against
what the model does.
"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812 - its usual name

import normkit.torch as nt  # noqa: E402
from model_structures import STRUCTURES, conv_norm, structure  # noqa: E402
from model_zoo import NAMES, batches, digits, fit, fresh, trained  # noqa: E402
from normkit.models.auditing import Configuration, Evidence, audit  # noqa: E402
from normkit.models.auditing.audit import run_rules  # noqa: E402
from normkit.models.auditing.rules import RULES  # noqa: E402
from normkit.models.recalibration import recalibrate  # noqa: E402
from normkit.models.sites import NormSite, find_sites  # noqa: E402

#: How the healthy models are trained.
USUAL = {
    "batch_size": 64, "dataset_size": 1797, "drop_last": False, "world_size": 1,
    "broadcast_buffers": True, "accumulate": 1,
}  # fmt: skip


def layers(model):
    """Norms by name."""
    return {site.name: site.module for site in find_sites(model)}


def first_norm(model):
    return next(iter(layers(model)))


def batch_norms(model):
    return [site.name for site in find_sites(model) if site.kind == "batch"]


def findings(model, **known):
    report = audit(model, **known)
    assert all("pass" in s.needs or "give" in s.needs for s in report.skipped), report.skipped
    return report.findings


def places(found):
    return {(f.rule, f.site) for f in found}


def only(model, rule, sites, severity=None, **known):
    """That the audit finds this rule's fault at these sites, and nothing else."""
    found = findings(model, **known)
    assert places(found) == {(rule, site) for site in sites}, found
    assert len(found) == len(places(found))
    for finding in found:
        assert finding.measured
        assert finding.repair
        assert finding.why.endswith(".")
        assert severity in (None, finding.severity)
    return found


def clean(model, **known):
    found = findings(model, **known)
    assert not found, found


# --- healthy models -------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [{}, USUAL], ids=["model alone", "with its training"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_on_new_and_trained_models(name, known):
    clean(fresh(name), **known)
    clean(trained(name), **known)


@pytest.mark.parametrize("name", STRUCTURES)
def test_nothing_is_found_on_healthy_structures(name):
    model, example = structure(name)
    clean(model)
    clean(model, example=example, **USUAL)
    clean(model.eval(), example=example, **USUAL)


def test_rules_have_names_reasons_and_needs():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule.why.endswith(".")
        assert rule.why.count(". ") == 0
        assert rule.needs


@pytest.mark.parametrize("name", ["residual", "transformer", "group norm"])
def test_a_file_of_weights_is_enough_for_rules_on_weights(name):
    sites = [
        NormSite(s.name, s.kind, "", s.channels, s.gamma, s.beta, s.mean, s.var, tracks=s.tracks)
        for s in find_sites(trained(name))
    ]
    found, skipped, ran = run_rules(RULES, Evidence(sites))
    assert not found
    assert {"bad-buffers", "never-tracked", "prunable-channels", "low-precision-buffers"} <= set(
        ran
    )
    assert all("pass" in s.needs for s in skipped)
    if sites[0].kind == "batch":
        sites[0].var[1] = float("nan")
        found, _, _ = run_rules(RULES, Evidence(sites))
        assert [(f.rule, f.site, f.channels) for f in found] == [
            ("bad-buffers", sites[0].name, (1,))
        ]


# --- redundant bias -------------------------------------------------------------------------------


def give_biases(model):
    """A bias for each convolution and linear layer in front of a batch norm in a Sequential."""
    found = []
    for name, inner in model.named_modules():
        for i in range(1, len(inner) if isinstance(inner, nn.Sequential) else 0):
            before, norm = inner[i - 1], inner[i]
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and hasattr(before, "kernel_size"):
                before.bias = nn.Parameter(torch.randn(before.out_channels))
            elif isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(
                before, nn.Linear
            ):
                before.bias = nn.Parameter(torch.randn(before.out_features))
            else:
                continue
            found.append(f"{name}.{i}".lstrip("."))
    return found


@pytest.mark.parametrize("name", ["convolutional", "dense", "sequence", "mobile", "synced"])
def test_redundant_bias(name):
    model = fresh(name)
    clean(model)
    sites = give_biases(model)
    only(model, "redundant-bias", sites, "info")
    only(model.eval(), "redundant-bias", sites, "info")


def test_redundant_bias_of_a_transposed_convolution():
    model, _ = structure("u-net")
    clean(model)
    model.up[0].bias = nn.Parameter(torch.zeros(8))
    found = only(model, "redundant-bias", ["up.1"], "info")
    assert "up.0 has a bias of 8 elements" in found[0].measured


class Twice(nn.Module):
    """A bias that someone else sees too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


def _between(*inner, norm=None, width=8):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *inner, norm or nn.BatchNorm2d(width))


def _frozen():
    model = _between()
    nt.freeze(model)
    return model


CHAINS = {
    "nothing between": _between,
    "maximum": lambda: _between(nn.MaxPool2d(2)),
    "average": lambda: _between(nn.AvgPool2d(2)),
    "average of all": lambda: _between(nn.AdaptiveAvgPool2d(2)),
    "identity": lambda: _between(nn.Identity()),
    "flatten": lambda: _between(nn.Flatten(), norm=nn.BatchNorm1d(8 * 36)),
    "dropout": lambda: _between(nn.Dropout(0.5)),
    "activation": lambda: _between(nn.ReLU()),
    "padded average": lambda: _between(nn.AvgPool2d(2, padding=1)),
    "padding": lambda: _between(nn.ZeroPad2d(1)),
    "channels into positions": lambda: _between(nn.PixelShuffle(2), width=2),
    "group norm": lambda: _between(norm=nn.GroupNorm(2, 8)),
    "layer norm": lambda: _between(norm=nn.LayerNorm((8, 6, 6))),
    "frozen": _frozen,
    "two users": Twice,
    "tokens": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 7), nn.Unflatten(1, (3, 1)), nn.Flatten(1, 2),
        nn.BatchNorm1d(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_a_bias_is_redundant_where_its_gradient_is_zero(chain):
    torch.manual_seed(0)
    model = CHAINS[chain]().double()
    layer = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    # Dropout's mask is the same for both passes; the loss is not symmetric in the batch.
    y = model(torch.randn(5, 3, 8, 8, dtype=torch.float64))
    (y * torch.randn_like(y)).sum().backward()
    without_effect = layer.bias.grad.norm() < 1e-6 * layer.weight.grad.norm()
    assert bool(findings(model, rules="redundant-bias")) == bool(without_effect)


# --- prunable channels ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "residual", "instance norm", "group norm"])
def test_prunable_channels(name):
    model = trained(name)
    clean(model)
    site = list(layers(model))[1]
    with torch.no_grad():
        layers(model)[site].weight[2] *= 1e-6
        layers(model)[site].weight[5] = 0.0
    (found,) = only(model, "prunable-channels", [site], "info")
    assert found.channels == (2, 5)
    # What it says of the channel: a constant, whatever the input.
    outputs = []
    layers(model)[site].register_forward_hook(lambda _m, _i, y: outputs.append(y[:, 5].clone()))
    with torch.no_grad():
        model(digits()[0][:8])
    assert (outputs[0] == layers(model)[site].bias[5]).all()


def test_prunable_where_most_of_a_layer_is_gone():
    model = trained("mobile")
    with torch.no_grad():
        model[3].body[1].weight[:30] *= 1e-7
    (found,) = only(model, "prunable-channels", ["3.body.1"], "info")
    assert found.channels == tuple(range(30))


def test_gains_on_both_sides_of_zero_may_come_near_it():
    model = fresh("convolutional")
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1, 1, 16))
        model[1].weight[8] = 2e-4
    clean(model)
    with torch.no_grad():
        model[1].weight[8] = 2e-9
    only(model, "prunable-channels", ["1"])


# --- eps dominates --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "dense", "sequence", "normkit"])
def test_eps_dominates(name):
    """A layer behind weights a thousand times smaller, trained on."""
    model = trained(name)
    clean(model)
    site = first_norm(model)
    norm = layers(model)[site]
    scale = 1e-2 * norm.eps / norm.running_var
    with torch.no_grad():
        norm.running_var.mul_(scale)
        norm.running_mean.mul_(scale.sqrt())
    (found,) = only(model, "eps-dominates", [site], "warning")
    # The measured claim: the output's deviation is below 95 %.
    x = norm.running_mean + norm.running_var.sqrt() * torch.randn(4000, len(norm.running_mean))
    y = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)
    assert (y.std(0) < 0.95).all()
    assert found.channels == tuple(range(len(norm.running_mean)))


def test_eps_may_dominate_at_few_channels_and_at_constant_ones():
    model = trained("convolutional")
    model[1].running_var[:2] = 0.0
    found = audit(model, rules=["eps-dominates"]).findings
    assert not found  # constant channels are another rule's
    model[1].running_var[2] = 5e-5
    (found,) = audit(model, rules=["eps-dominates"]).findings
    assert (found.severity, found.channels) == ("info", (2,))


# --- small batches --------------------------------------------------------------------------------

#: Models whose norms all see maps of several positions.
MAPS = ["convolutional", "residual", "concatenating", "normkit"]


@pytest.mark.parametrize("name", MAPS)
def test_small_batch(name):
    model = fresh(name)
    clean(model, **USUAL)
    (found,) = only(model, "small-batch", [""], "warning", **{**USUAL, "batch_size": 4})
    assert f"4 samples < 8 in {len(batch_norms(model))} norms" in found.measured
    (found,) = only(model, "small-batch", [""], **{**USUAL, "batch_size": 4, "world_size": 8})
    assert "SyncBatchNorm.convert_sync_batchnorm(model) takes statistics over 32" in found.repair


def test_small_batch_counts_what_a_layer_sees():
    clean(fresh("synced"), batch_size=4, world_size=8)
    clean(fresh("synced"), batch_size=4)
    only(fresh("synced"), "small-batch", [""], batch_size=2, world_size=2)
    clean(fresh("transformer"), batch_size=1)
    frozen = fresh("convolutional")
    nt.freeze(frozen)
    clean(frozen, batch_size=4)
    ghosts = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nt.BatchNorm2d(4, ghost=4))
    only(ghosts, "small-batch", ["1"], batch_size=64)


@pytest.mark.parametrize("name", ["dense", "normkit dense", "projector"])
def test_small_batch_of_rows(name):
    model = structure(name)[0] if name in STRUCTURES else fresh(name)
    only(model, "small-batch", batch_norms(model), "warning", batch_size=12)
    if name == "dense":
        only(model, "small-batch", batch_norms(model), batch_size=12, example=torch.zeros(5, 64))


# --- momentum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 1.0, 0.99])
@pytest.mark.parametrize("name", ["convolutional", "residual", "dense", "normkit"])
def test_momentum(name, momentum):
    model = trained(name)
    site = list(layers(model))[-1]
    layers(model)[site].momentum = momentum
    (found,) = only(model, "momentum", [site], "warning")
    assert f"momentum {momentum:g}" in found.measured
    if momentum == 0.99:
        assert "momentum = 0.01" in found.repair


def test_momentum_zero_on_statistics_that_never_moved_is_one_error():
    model = trained("convolutional")
    model[4].reset_running_stats()
    model[4].momentum = 0.0
    only(model, "momentum", ["4"], "error")


@pytest.mark.parametrize("name", ["convolutional", "residual", "sequence", "normkit"])
def test_momentum_leaves_the_first_values(name):
    """Eval mode after a few batches; the values are what is left of 0 and 1."""
    model = trained(name)
    clean(model)
    for norm in layers(model).values():
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(3 * digits()[0])
        model.eval()
    found = findings(model)
    assert {f.rule for f in found} == {"momentum"}
    assert all(f.value == pytest.approx(0.9**3) for f in found)
    assert all(
        "73% > 1% of the first values, 0 and 1, is left after 3 batches" in f.measured
        for f in found
    )
    # Statistics measured afresh, by as few batches, are right and have nothing of 0 and 1 in them.
    torch.optim.swa_utils.update_bn(digits()[0].split(600), model)
    model.eval()
    assert all(int(norm.num_batches_tracked) == 3 for norm in layers(model).values())
    clean(model)


def test_momentum_does_not_matter_to_averages_frozen_layers_and_training_that_began():
    population = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nt.BatchNorm1d(8, running="population"))
    population[2].momentum = 0.99
    clean(population)
    frozen = trained("convolutional")
    for norm in layers(frozen).values():
        norm.momentum = 0.0
    nt.freeze(frozen)
    clean(frozen)
    began = fresh("convolutional").train()
    began(digits()[0][:64])
    clean(began)


# --- half-frozen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "residual", "sequence", "normkit", "dense"])
def test_half_frozen(name):
    model = trained(name).train()
    clean(model)
    site = first_norm(model)
    norm = layers(model)[site]
    norm.requires_grad_(False)
    only(model, "half-frozen", [site], "warning")
    before = copy.deepcopy(norm.state_dict())
    model(5 + digits()[0][:64])
    assert torch.equal(norm.weight, before["weight"])
    assert not torch.equal(norm.running_mean, before["running_mean"])  # as it says
    norm.eval()
    clean(model)


def test_a_copy_without_gradients_is_only_mentioned():
    model = fresh("convolutional").requires_grad_(False).train()
    only(model, "half-frozen", ["1", "4", "7"], "info")
    clean(model.eval())


# --- weight decay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "transformer", "group norm", "rms transformer"])
def test_decayed_affine(name):
    model = fresh(name)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    parts = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    clean(model, optimizer=torch.optim.AdamW(parts, weight_decay=0.05))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    (found,) = only(model, "decayed-affine", [""], "info", optimizer=optimizer)
    assert f"weight_decay 0.05 on gamma and beta of {len(layers(model))} norms" in found.measured
    clean(model, optimizer=torch.optim.SGD(model.parameters(), 0.1))


# --- one element ----------------------------------------------------------------------------------


def pooled_branch():
    """ASPP's image pooling: one position behind an average of all."""
    return nn.Sequential(
        conv_norm(1, 8), nn.AdaptiveAvgPool2d(1), conv_norm(8, 6, 1), nn.Conv2d(6, 4, 1)
    )


class Gate(nn.Module):
    """Squeeze and excite, with a norm inside."""

    def __init__(self, width=8):
        super().__init__()
        self.squeeze = conv_norm(width, 4, 1)
        self.excite = nn.Conv2d(4, width, 1)

    def forward(self, x):
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid()


def gated():
    return nn.Sequential(conv_norm(1, 8), Gate(), nn.Conv2d(8, 4, 1))


SINGLE = {
    "gated": (gated, ["1.squeeze.1"], (1, 1, 8, 8)),
    "dense": (lambda: fresh("dense"), ["2", "5"], (1, 64)),
    "normkit dense": (lambda: fresh("normkit dense"), ["2", "5"], (1, 64)),
    "pooled": (pooled_branch, ["2.1"], (1, 1, 8, 8)),
    "projector": (lambda: structure("projector")[0], ["1", "4"], (1, 12)),
}


@pytest.mark.parametrize("case", SINGLE)
def test_single_element_batch(case):
    build, sites, shape = SINGLE[case]
    model = build()
    known = {"batch_size": 64, "dataset_size": 64 * 3 + 1}
    clean(model, **{**known, "dataset_size": 64 * 3 + 2})
    clean(model, **known, drop_last=True)
    (first, *_) = only(model, "single-element-batch", sites, "error", **known)
    assert "drop_last=True" in first.repair
    with pytest.raises(ValueError, match="more than 1 value"):
        model.train()(torch.zeros(shape))


def test_single_element_batch_of_one_sample():
    only(pooled_branch()[1:], "single-element-batch", ["2.1"], batch_size=1, dataset_size=9)
    found = findings(pooled_branch(), batch_size=1)
    assert places(found) == {("single-element-batch", "2.1"), ("small-batch", "0.1")}
    lenient = nn.Sequential(
        nn.Linear(4, 4, bias=False), nt.BatchNorm1d(4, on_small_batch="running")
    )
    assert not findings(lenient, batch_size=64, dataset_size=65, rules="single-element-batch")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(fresh("dense"))
    clean(synced, batch_size=64, dataset_size=65, world_size=4)


def test_a_rule_that_lacks_the_size_of_the_data_says_so():
    skipped = {s.rule: s.needs for s in audit(fresh("dense"), batch_size=64).skipped}
    assert "dataset_size=" in skipped["single-element-batch"]


def grouped_rows():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GroupNorm(8, 8), nn.Linear(8, 3))


def instance_of_a_pixel():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.InstanceNorm2d(6),
        nn.ReLU(),
    )  # fmt: skip


def grouped_pixel():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.GroupNorm(6, 6), nn.Conv2d(6, 2, 1)
    )


def layer_of_one():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.LayerNorm(1), nn.Linear(1, 2))


@pytest.mark.parametrize(
    ("build", "site"),
    [(grouped_rows, "2"), (instance_of_a_pixel, "3"), (grouped_pixel, "2"), (layer_of_one, "2")],
)
def test_single_element_group(build, site):
    model = build()
    x = torch.randn(4, 1, 8, 8)
    only(model, "single-element-group", [site], "error")
    model.double()
    before, norm = model[: int(site)], model[int(site)]
    if isinstance(norm, nn.InstanceNorm2d):
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            norm(before(x.double()))
        return
    only(model, "single-element-group", [site], "error", example=x.double())
    assert norm(before(x.double())).abs().max() < 1e-9  # beta, whatever the input


def test_two_elements_leave_a_sign_and_three_are_enough():
    for groups, severity in ((4, "warning"), (2, None)):
        model = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(groups, 8), nn.Linear(8, 2))
        if severity is None:
            clean(model)
        else:
            only(model, "single-element-group", ["1"], severity)
            y = model[:2](1000 * torch.randn(9, 8))
            assert torch.allclose(y.abs(), torch.ones(9, 8), atol=1e-3)


# --- never tracked --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "residual", "dense", "mobile", "normkit"])
def test_never_tracked(name):
    model = trained(name)
    sites = batch_norms(model)
    layers(model)[sites[-1]].reset_running_stats()
    only(model, "never-tracked", sites[-1:], "error")
    for norm in layers(model).values():
        norm.reset_running_stats()
    only(model, "never-tracked", sites, "error")
    for norm in layers(model).values():
        norm.num_batches_tracked.fill_(500)  # whatever was counted
    only(model, "never-tracked", sites, "error")


def test_never_tracked_by_gamma_alone():
    neck, _ = structure("bnneck")
    nn.init.normal_(neck.neck.weight, 1.0, 0.3)
    clean(neck)  # may be how it began
    neck.trunk[0][1].running_mean += 1.0
    only(neck, "never-tracked", ["neck"], "error")


def test_statistics_that_came_from_elsewhere_count():
    model = trained("residual")
    for norm in layers(model).values():
        norm.num_batches_tracked.zero_()  # ported from a format that does not count
    clean(model)


# --- Bessel's correction --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("name", ["dense", "normkit dense", "projector"])
def test_bessel_inflation(name, size):
    model = structure(name)[0] if name in STRUCTURES else fresh(name)
    found = only(model, "bessel-inflation", batch_norms(model), "warning", batch_size=size)
    clean(model, batch_size=21)
    # The ratio as the layer has it after a batch, with its momentum at 1.
    norm = copy.deepcopy(layers(model)[found[0].site]).double().train()
    norm.momentum = 1.0
    x = torch.randn(size, norm.num_features, dtype=torch.float64)
    norm(x)
    ratio = norm.running_var / x.var(0, correction=0)
    torch.testing.assert_close(ratio, torch.full_like(ratio, found[0].value))


def test_bessel_inflation_on_one_position():
    only(pooled_branch(), "bessel-inflation", ["2.1"], batch_size=18)
    images = torch.zeros(3, 1, 8, 8)
    only(pooled_branch(), "bessel-inflation", ["2.1"], batch_size=18, example=images)


# --- bad buffers ----------------------------------------------------------------------------------

BAD = [
    ("running_mean", float("nan"), "not finite"),
    ("running_var", float("inf"), "not finite"),
    ("running_var", -0.5, "below zero"),
    ("weight", float("nan"), "gamma not finite"),
    ("bias", float("-inf"), "beta not finite"),
]


@pytest.mark.parametrize(("tensor", "value", "said"), BAD)
@pytest.mark.parametrize("name", ["convolutional", "residual", "sequence", "normkit dense"])
def test_bad_buffers(name, tensor, value, said):
    model = trained(name)
    site = batch_norms(model)[1]
    with torch.no_grad():
        getattr(layers(model)[site], tensor)[3] = value
    (found,) = only(model, "bad-buffers", [site], "error")
    assert found.channels == (3,)
    assert said in found.measured
    assert ("recalibrate" in found.repair) == tensor.startswith("running")


def test_bad_gain_of_a_layer_norm():
    model = trained("transformer")
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    only(model, "bad-buffers", ["norm"], "error")


# --- low precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "residual", "dense"])
def test_overflow_in_half_precision(name):
    model = trained(name)
    clean(copy.deepcopy(model).half())
    site = batch_norms(model)[0]
    layers(model)[site].running_var[2] = 7e4
    clean(model)
    (found,) = only(model.half(), "low-precision-buffers", [site], "error")
    assert found.channels == (2,)
    assert torch.isinf(layers(model)[site].running_var[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["convolutional", "dense", "sequence"])
def test_updates_that_16_bits_lose(name, dtype):
    model = trained(name).to(dtype)
    clean(model)
    momentum = 0.01 if dtype == torch.bfloat16 else 0.001
    for norm in layers(model).values():
        norm.momentum = momentum
        norm.num_batches_tracked.fill_(10**5)
    clean(model)  # nothing moves in eval mode
    found = only(model.train(), "low-precision-buffers", batch_norms(model), "warning")
    assert all("updates lost" in f.measured for f in found)
    # The rule in action: updates towards a variance a quarter larger stop at once.
    state = torch.tensor(1.0, dtype=dtype)
    moved = (1 - momentum) * state + momentum * torch.tensor(1.25, dtype=dtype)
    assert moved == state


def test_means_that_16_bits_round():
    model = trained("convolutional")
    model[1].running_mean += 200 * model[1].running_var.sqrt()
    clean(copy.deepcopy(model))
    (found,) = only(model.bfloat16(), "low-precision-buffers", ["1"], "warning")
    assert "rounding" in found.measured


# --- placement ------------------------------------------------------------------------------------


class Head(nn.Module):
    """What follows a trunk, by functions."""

    def __init__(self, name, end):
        super().__init__()
        self.trunk = fresh(name)
        self.norm, self.end = nn.BatchNorm1d(10), end

    def forward(self, x):
        return self.end(self.norm(self.trunk(x)))


@pytest.mark.parametrize("name", ["dense", "convolutional", "residual", "mobile"])
def test_a_norm_on_logits(name):
    model = nn.Sequential(*fresh(name), nn.BatchNorm1d(10))
    model[-2].bias = None
    only(model, "misplaced-norm", [str(len(model) - 1)], "warning")


@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)])
def test_a_norm_in_front_of_probabilities(end):
    model = Head("dense", end)
    model.trunk[-1].bias = None
    only(model, "misplaced-norm", ["norm"])
    model.end = nn.ReLU()
    clean(model)


@pytest.mark.parametrize("name", ["dense", "convolutional", "transformer"])
def test_a_norm_behind_softmax(name):
    model = nn.Sequential(fresh(name), nn.Softmax(1), nn.BatchNorm1d(10), nn.Linear(10, 4))
    only(model, "misplaced-norm", ["2"], "warning")


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        return self.norm2(self.scale * self.norm1(x) + 1.0)


@pytest.mark.parametrize("name", ["convolutional", "residual", "normkit"])
@pytest.mark.parametrize("between", ["nothing", "identity", "depthwise"])
def test_two_norms_in_a_row(name, between):
    inner = {
        "nothing": [],
        "identity": [nn.Identity(), nn.Dropout(0.0)],
        "depthwise": [nn.Conv2d(16, 16, 1, groups=16, bias=False)],
    }
    model = fresh(name)
    model[1] = nn.Sequential(model[1], *inner[between], nn.BatchNorm2d(16))
    site = f"1.{len(inner[between]) + 1}"
    (found,) = only(model, "misplaced-norm", [site], "warning")
    assert found.measured.endswith("1.0")
    model[1].insert(1, nn.ReLU())
    clean(model)


def test_two_norms_around_a_scale():
    model = fresh("convolutional")
    model[1] = Scaled(16)
    only(model, "misplaced-norm", ["1.norm2"], "warning")
    nt.freeze(model)  # two frozen norms fold; nothing is normalized twice
    clean(model)


# --- inconsistent settings ------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "value"), [("eps", 1e-3), ("momentum", 0.01)])
@pytest.mark.parametrize("name", ["convolutional", "residual", "mobile", "normkit"])
def test_inconsistent_configuration(name, what, value):
    model = fresh(name)
    site = batch_norms(model)[2]
    setattr(layers(model)[site], what, value)
    (found,) = only(model, "inconsistent-configuration", [site], "warning")
    assert f"{what} {value:g} where" in found.measured
    assert f".{what} = " in found.repair


def test_inconsistent_eps_of_layer_norms():
    model = fresh("transformer")
    model.blocks[1].norm1.eps = 1e-6
    only(model, "inconsistent-configuration", ["blocks.1.norm1"], "warning")


def test_a_part_with_settings_of_its_own_is_mentioned_for_frameworks_defaults_only():
    pyramid, _ = structure("pyramid")
    clean(pyramid)
    for norm in layers(pyramid.backbone).values():
        norm.eps = 1e-3
    (found,) = only(pyramid, "inconsistent-configuration", ["backbone.0.1"], "info")
    assert "eps 0.001 in 2 norms" in found.measured
    for norm in layers(pyramid.head).values():
        norm.eps = 1e-3
    clean(pyramid)


# --- ranks and accumulation -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "residual", "dense", "cumulative"])
def test_unsynced_ranks(name):
    model = fresh(name)
    known = {"world_size": 4, "broadcast_buffers": False}
    (found,) = only(model, "unsynced-ranks", [""], "warning", **known)
    assert f"{len(batch_norms(model))} norms" in found.measured
    clean(model, world_size=4, broadcast_buffers=True)
    clean(model, world_size=1, broadcast_buffers=False)
    clean(nn.SyncBatchNorm.convert_sync_batchnorm(model), **known)


@pytest.mark.parametrize("name", ["convolutional", "residual", "dense", "ghost"])
def test_gradient_accumulation(name):
    model = fresh(name)
    (found,) = only(model, "gradient-accumulation", [""], "warning", accumulate=4)
    assert f"a step leaves {0.9**4:.0%}" in found.measured
    only(model, "gradient-accumulation", [""], "warning", accumulate=4, batch_size=21)
    only(model, "gradient-accumulation", [""], "info", accumulate=4, batch_size=32)
    nt.freeze(model)
    clean(model, accumulate=4)


@pytest.mark.parametrize("name", ["transformer", "group norm", "instance norm"])
def test_settings_do_not_matter_without_batch_norm(name):
    clean(
        fresh(name), batch_size=1, dataset_size=5, world_size=4, broadcast_buffers=False,
        accumulate=8,
    )  # fmt: skip


def test_the_configuration_can_come_as_a_value():
    known = Configuration(batch_size=4)
    only(fresh("residual"), "small-batch", [""], configuration=known)


# --- with data ------------------------------------------------------------------------------------


def settle(model):
    """Statistics that fit what a plant has changed further up."""
    torch.optim.swa_utils.update_bn(digits()[0].split(300), model)
    return model.eval()


def shrunk(name):
    """Weights so small that eps drowns what they make."""
    model = trained(name)
    site = first_norm(model)
    norm, before = layers(model)[site], model[int(site) - 1]
    scale = (1e-2 * norm.eps / norm.running_var).sqrt()
    with torch.no_grad():
        before.weight.mul_(scale.reshape(-1, *[1] * (before.weight.dim() - 1)))
    return settle(model), "eps-dominates", [site]


def faded(name):
    model = trained(name)
    site = list(layers(model))[1]
    with torch.no_grad():
        layers(model)[site].weight[2] *= 1e-6
    return settle(model), "prunable-channels", [site]


def biased(name):
    model = trained(name)
    sites = give_biases(model)
    return settle(model), "redundant-bias", sites


def reset(name):
    model = trained(name)
    for norm in layers(model).values():
        norm.reset_running_stats()
    return model, "never-tracked", batch_norms(model)


def damaged(name):
    model = trained(name)
    site = batch_norms(model)[1]
    layers(model)[site].running_var[3] = float("nan")
    return model, "bad-buffers", [site]


def still(name):
    model = trained(name).train()
    site = first_norm(model)
    layers(model)[site].requires_grad_(False)
    return model, "half-frozen", [site]


def hasty(name):
    model = fit(fresh(name), epochs=1, size=600)
    return model, "momentum", batch_norms(model)


PLANTS = [
    (shrunk, "convolutional"), (shrunk, "dense"), (shrunk, "normkit"),
    (faded, "convolutional"), (faded, "residual"), (faded, "instance norm"),
    (biased, "convolutional"), (biased, "dense"), (biased, "sequence"),
    (reset, "convolutional"), (reset, "residual"), (reset, "dense"),
    (damaged, "convolutional"), (damaged, "residual"), (damaged, "dense"),
    (still, "convolutional"), (still, "residual"), (still, "dense"),
    (hasty, "convolutional"), (hasty, "residual"), (hasty, "mobile"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "name"), PLANTS)
def test_data_do_not_make_the_rules_say_more(plant, name):
    model, rule, sites = plant(name)
    only(model, rule, sites, data=batches())


# --- repairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", [reset, damaged, hasty])
def test_recalibrating_repairs(plant):
    model, _, _ = plant("residual")
    assert all("normkit.models.recalibrate(model, data)" in f.repair for f in findings(model))
    recalibrate(model, digits()[0])
    clean(model, data=batches())


def test_the_other_calls_that_findings_name_repair():
    model, _, (site,) = still("residual")
    (found,) = findings(model)
    assert f"normkit.models.freeze(model.get_submodule({site!r}))" in found.repair
    nt.freeze(model.get_submodule(site))
    clean(model)

    known = {"batch_size": 4, "world_size": 8}
    clean(nt.SyncBatchNorm.convert_sync_batchnorm(fresh("residual")), **known)

    model, _, _ = biased("convolutional")
    before = copy.deepcopy(model)
    for i in (1, 4, 7):  # as it says
        model[i].running_mean -= model[i - 1].bias.detach()
        model[i - 1].bias = None
    torch.testing.assert_close(model(digits()[0][:8]), before(digits()[0][:8]))
    clean(model)


ODD = {
    "meta": lambda: fresh("residual").to("meta"),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(8, 3, bias=False), nn.LazyBatchNorm2d()),
    "nothing learned": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8, affine=False)),
    "domains": lambda: nt.SplitBatchNorm2d(8, num_splits=2),
    "one norm": lambda: nn.BatchNorm1d(1),
    "no norm": lambda: nn.Linear(2, 2),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_models_are_looked_at_too(odd):
    clean(ODD[odd](), **USUAL)
    clean(ODD[odd]().train(), **USUAL)
