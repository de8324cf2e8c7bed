"""What the benchmark times: the case table, and that ours and its peers compute the same."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from bench_cases import (  # noqa: E402
    CALLS,
    CASES,
    CHAINS,
    LAYERS,
    NETWORKS,
    QUICK,
    Case,
    arrays,
    case_of,
    find,
)
from benchmarks import layers, peers, price, saved, training  # noqa: E402

torch = pytest.importorskip("torch")

import normkit as nk  # noqa: E402
import normkit.torch as nt  # noqa: E402
from benchmarks.networks import ResNet18  # noqa: E402

# The case table


def test_ids_are_unique_and_found() -> None:
    every = (*CASES, *LAYERS, *NETWORKS, *CHAINS)
    assert len({case.id for case in every}) == len(every)
    assert all(case_of(case.id) is case for case in CASES)
    assert [case_of(name) for name in QUICK]
    with pytest.raises(KeyError, match="no-such"):
        case_of("no-such")


def test_find_needs_every_part() -> None:
    assert find("batch-8x16,bf16") == [Case("batch", (8, 16), dtype="bfloat16")]
    assert find("batch,tokens") == []


def test_bytes_are_those_of_the_array() -> None:
    for case in CASES:
        itemsize = np.dtype(np.float32).itemsize if case.dtype == "float32" else 2
        assert case.bytes == np.prod(case.shape) * itemsize


@pytest.mark.parametrize(
    "shape",
    [
        (32, 64, 112, 112),
        (32, 256, 56, 56),
        (32, 512, 28, 28),
        (64, 2048, 7, 7),
        (8, 64, 28, 28),
        (256, 1024),
        (8, 16),
    ],
)
def test_batch_norm_is_timed_on_every_promised_shape(shape: tuple[int, ...]) -> None:
    plain = [c for c in CASES if c.norm == "batch" and c.shape == shape and not c.fused]
    layouts = {"first", "last"} if len(shape) == 4 else {"first"}
    assert {(c.layout, c.dtype) for c in plain} == {
        (layout, dtype) for layout in layouts for dtype in ("float32", "bfloat16")
    }


def test_every_norm_is_timed_in_both_dtypes_and_somewhere_small() -> None:
    for norm in ("batch", "layer", "token_layer", "rms", "instance", "group"):
        rows = [case for case in CASES if case.norm == norm]
        assert {case.dtype for case in rows} == {"float32", "bfloat16"}
        assert min(case.bytes for case in rows) < 10_000
        assert max(case.bytes for case in rows) >= 25_000_000


def test_every_layer_is_timed_in_both_layouts_and_dtypes_and_at_three_sizes() -> None:
    for name in ("BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm", "RMSNorm"):
        rows = [case for case in LAYERS if case.norm == name]
        for dtype in ("float32", "bfloat16"):
            assert {"first", "last"} <= {c.layout for c in rows if c.dtype == dtype}
            sizes = sorted(c.bytes for c in rows if c.dtype == dtype)
            assert sizes[0] < 2_000_000
            assert sizes[-1] > 30_000_000
            assert any(6_000_000 < size < 30_000_000 for size in sizes)


def test_a_reduced_case_keeps_its_options() -> None:
    for case in CASES + LAYERS:
        small = case.reduced()
        assert small.options == case.options
        assert (small.norm, small.layout, small.dtype) == (case.norm, case.layout, case.dtype)
        assert math.prod(small.shape) <= 8 * 64 * 81
        assert case.groups is None or small.shape[1] % case.groups == 0


@pytest.fixture(autouse=True)
def _the_whole_cases_path():
    """Reduced inputs take the kernels where the whole ones do."""
    nt.use_native_up_to(1 << 14)
    yield
    nt.use_native_up_to(None)


def test_a_reduced_case_takes_the_path_of_the_whole_one() -> None:
    from normkit.torch.native import is_small

    for case in CASES:
        whole, small = (
            is_small(nk.BatchNorm(), torch.empty(shape, device="meta"))
            for shape in (case.shape, case.reduced().shape)
        )
        assert whole == small, case.id


def test_inputs_are_the_same_in_every_process() -> None:
    case = find("batch-add-relu-8x64")[0]
    first, second = arrays(case), arrays(case)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert first["gamma"].shape == first["beta"].shape == (64,)
    assert first["gamma"].std() > 0.1  # equal gamma would hide a wrong backward


# The peers: what is timed is right


def results(session: peers.Session) -> dict[str, np.ndarray]:
    """y and the gradients of one step in float64, channels first."""
    session.forward()
    session.backward()
    last = session.case.layout == "last" and not isinstance(session, peers.TorchSession)

    def plain(value: Any) -> np.ndarray:
        value = value.detach().double().numpy() if isinstance(value, torch.Tensor) else value
        value = np.asarray(value).astype(np.float64)
        return (
            np.moveaxis(value, -1, 1) if last and value.ndim == len(session.case.shape) else value
        )

    found = {"y": session.y} | session.gradients()
    return {name: plain(value) for name, value in found.items() if value is not None}


def truth_of(case: Case) -> dict[str, np.ndarray]:
    return results(peers.Eager(case, dtype=torch.float64))


def check(found: dict[str, np.ndarray], truth: dict[str, np.ndarray], dtype: str) -> None:
    """Every result within a rounding of its dtype of the truth, relative to the largest value."""
    allowed = {"float32": 5e-6, "bfloat16": 2.0**-8}[dtype]
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert found[name].shape == value.shape, name
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        assert error <= allowed, f"{name} is off by {error:.1e}; {allowed:.1e} is allowed"


@pytest.mark.parametrize("peer", ["normkit", "numpy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_is_timed_is_right(case: Case, peer: str) -> None:
    small = case.reduced()
    check(results(peers.PEERS[peer](small)), truth_of(small), case.dtype)


@pytest.mark.parametrize(
    ("peer", "case"),
    [
        pytest.param(peer, case, id=f"{peer}-{case.id}")
        for peer in ("eager", "jax")
        for case in CASES
        if case.dtype == "float32" and peers.applies(peer, case)
    ],
)
def test_the_peers_compute_the_same(peer: str, case: Case) -> None:
    pytest.importorskip("jax" if peer == "jax" else "torch")
    small = case.reduced()
    check(results(peers.PEERS[peer](small)), truth_of(small), case.dtype)


@pytest.mark.parametrize("spoiled", ["y", "x", "gamma", "beta"])
def test_the_check_sees_a_wrong_result(spoiled: str) -> None:
    truth = truth_of(CASES[0].reduced())
    wrong = truth | {spoiled: truth[spoiled] * 1.001}
    with pytest.raises(AssertionError, match=f"{spoiled} is off"):
        check(wrong, truth, "float32")


def test_release_lets_go_of_everything() -> None:
    session = peers.Eager(CASES[0].reduced())
    results(session)
    session.release()
    assert session.y is None
    assert set(session.gradients().values()) == {None}


# Layers and networks


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.id)
def test_the_layers_that_are_timed_are_right(case: Case) -> None:
    small = case.reduced()
    truth = results(layers.TorchLayer(small, dtype=torch.float64))
    ours = layers.NormkitLayer(small)
    assert type(ours.layer) is getattr(nt, case.norm)
    assert not ours.layer._suits_torch(ours.inputs["x"], False)
    check(results(ours), truth, case.dtype)
    if case.dtype == "float32":
        check(results(layers.TorchLayer(small)), truth, case.dtype)


def test_layers_have_the_case_s_parameters_and_layout() -> None:
    case = find("BatchNorm2d-8x64,last", LAYERS)[0].reduced()
    session = layers.TorchLayer(case)
    np.testing.assert_array_equal(session.layer.weight.detach(), arrays(case)["gamma"])
    assert session.inputs["x"].is_contiguous(memory_format=torch.channels_last)
    results(session)
    session.release()
    assert session.layer.weight.grad is None


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.norm)
@pytest.mark.parametrize("mode", price.PRICE_PEERS)
def test_the_calls_that_are_priced_are_the_same(case: Case, mode: str) -> None:
    pair = price.PRICE_PEERS[mode](case)
    assert {session.layer.training for session in pair.layers.values()} == {mode == "train"}
    found = {name: results(session) for name, session in pair.layers.items()}
    for name, value in found["nn"].items():
        np.testing.assert_array_equal(found["normkit"][name], value)


SMALL_NETWORKS = (Case("ResNet18", (2, 3, 16, 16)), Case("Chain8", (2, 6, 8, 8), "last"))


@pytest.mark.parametrize(
    ("case", "peer"),
    [
        (SMALL_NETWORKS[0], "accelerated"),
        *((SMALL_NETWORKS[1], peer) for peer in ("swapped", "accelerated", "lean")),
    ],
    ids=lambda value: getattr(value, "norm", value),
)
def test_every_variant_of_a_network_trains_the_same(case: Case, peer: str) -> None:
    nt.use_native_up_to(0)
    losses = []
    for name in ("network", peer):
        torch.manual_seed(0)
        session = training.NETWORK_PEERS[name](case)
        session.model.double()
        session.x = session.x.double()
        session.forward()
        losses.append(session.y.item())
        session.backward()
        losses.append({k: v.clone() for k, v in session.gradients().items()})
        session.release()
        assert set(session.gradients().values()) == {None}
    assert losses[0] == pytest.approx(losses[2], rel=1e-10)
    torch.testing.assert_close(losses[3], losses[1], rtol=1e-6, atol=1e-9)


def test_a_step_changes_the_network() -> None:
    session = training.Network(SMALL_NETWORKS[1])
    before = [p.clone() for p in session.model.parameters()]
    session.forward()
    session.backward()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True)
    ]
    assert all(changed)


def test_resnet_18_is_the_known_one_and_is_fused_throughout() -> None:
    model, said = ResNet18(), list[str]()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    nt.accelerate(model, torch.randn(2, 3, 16, 16), report=said.append)
    assert "20 norm layers on normkit's kernels, 17 activations and 8 additions fused" in said[0]


def test_swapping_changes_the_layers_alone() -> None:
    session = training.Swapped(SMALL_NETWORKS[1])
    kinds = [type(module) for module in session.model]
    assert kinds == [torch.nn.Conv2d, nt.BatchNorm2d, torch.nn.ReLU] * 8


class Keeper(peers.Session):
    """Allocates three arrays of 1 MiB and keeps two."""

    def forward(self) -> None:
        made = [torch.ones(1 << 18) for _ in range(3)]
        self.y = made[:2]

    def backward(self) -> None:
        pass


def test_bytes_kept_are_counted() -> None:
    assert saved.bytes_kept(Keeper(CASES[0])) == {"kept": 2 << 20}


def test_what_each_variant_of_a_chain_keeps() -> None:
    case = Case("Chain8", (2, 8, 16, 16))
    kept = {
        peer: saved.bytes_kept(session(case))["kept"]
        for peer, session in training.NETWORK_PEERS.items()
    }
    size = case.bytes
    assert 16 * size <= kept["network"] < 17 * size
    assert kept["swapped"] == pytest.approx(kept["network"], rel=0.01)
    assert 8 * size <= kept["lean"] <= 0.55 * kept["network"]


def test_the_pool_is_back_after_counting() -> None:
    from normkit.torch import host

    before = host._POOLED
    saved.bytes_kept(Keeper(CASES[0]))
    assert before == host._POOLED < 1 << 30
