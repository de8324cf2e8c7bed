"""Synchronized statistics: real processes on one machine, against one process."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
dist = pytest.importorskip("torch.distributed", reason="PyTorch has no torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("PyTorch was built without gloo", allow_module_level=True)

import normkit.torch as nt  # noqa: E402
import ranks_at_work  # noqa: E402
from normkit.errors import OptionError  # noqa: E402
from normkit.torch.distributed import name_layers  # noqa: E402
from normkit.torch.ghosts import Span, smallest_set  # noqa: E402
from normkit.torch.merging import sync_statistics  # noqa: E402
from normkit.torch.ranks import Header  # noqa: E402

nn = torch.nn
WORKER = Path(ranks_at_work.__file__)
CHECKS = [(name, check.__name__) for name, job in ranks_at_work.JOBS.items() for check in job]
SIZES = {"four": 4, "two": 2}
DEAD = {"four": 1, "two": 0}  # the rank that dies in the last check
LIMIT = 240  # seconds for a job, also on a busy machine


def run_job(name, folder):
    """Start the ranks of a job, wait for them, and leave their results in the folder."""
    ranks_at_work.warm_up()  # so that not each rank compiles
    size = SIZES[name]
    if name == "four":
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = store.port
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks, logs = [], []
    for rank in range(size):
        logs.append((folder / f"{name}-{rank}.log").open("w"))
        command = [sys.executable, os.fspath(WORKER), name, str(rank), str(size), str(port)]
        ranks.append(
            subprocess.Popen(
                [*command, os.fspath(folder)], stdout=logs[-1], stderr=subprocess.STDOUT, env=env
            )
        )
    try:
        for rank in ranks:
            rank.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        pass  # what is missing in the results says where
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            rank.wait()
            log.close()


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """What each rank says of each check; a job runs when it is first asked for."""
    folder = tmp_path_factory.mktemp("ranks")

    @functools.cache
    def of(name):
        run_job(name, folder)
        found = {}
        for rank in range(SIZES[name]):
            path = folder / f"{name}-{rank}.json"
            log = (folder / f"{name}-{rank}.log").read_text()[-3000:]
            found[rank] = (json.loads(path.read_text()) if path.exists() else {}, log)
        return found

    return of


@pytest.mark.parametrize(("job", "check"), CHECKS, ids=[check for _, check in CHECKS])
def test_on_ranks(job, check, results):
    for rank, (found, log) in results(job).items():
        if rank == DEAD[job] and check == ranks_at_work.JOBS[job][-1].__name__:
            assert check not in found
            continue
        assert check in found, f"rank {rank} did not come so far:\n{log}"
        assert found[check] is None, f"rank {rank}:\n{found[check]}"


# --- in one process -------------------------------------------------------------------------------


def test_without_a_group_it_is_batch_norm():
    layer, plain = nt.SyncBatchNorm(6), nn.BatchNorm2d(6)
    for training in (True, True, False):
        x = torch.randn(4, 6, 3, 3)
        torch.testing.assert_close(layer.train(training)(x), plain.train(training)(x))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def test_a_group_of_one_is_batch_norm(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        layer, plain = nt.SyncBatchNorm(6, ghost=2), nt.BatchNorm1d(6, ghost=2)
        for pair in ((layer, plain), (nt.SyncBatchNorm(6), nn.BatchNorm1d(6))):
            x = torch.randn(4, 6, 3)
            torch.testing.assert_close(pair[0](x), pair[1](x))
        assert sync_statistics(layer) == {}
    finally:
        dist.destroy_process_group()


def test_it_is_torch_nns_in_every_other_way():
    ours, theirs = nt.SyncBatchNorm(6, momentum=0.2), nn.SyncBatchNorm(6, momentum=0.2)
    assert isinstance(ours, nn.SyncBatchNorm)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    taken = list(inspect.signature(nn.SyncBatchNorm).parameters)
    shared = [p for p in inspect.signature(nt.SyncBatchNorm).parameters if p in taken]
    assert sorted(shared) == sorted(taken)
    with pytest.raises(ValueError, match="at least 2D"):
        ours(torch.randn(6))
    assert copy.deepcopy(ours).place is not ours.place


def test_conversion_keeps_what_a_layer_is():
    norm = nt.BatchNorm2d(4, ghost=2, momentum=0.3, running="population").double().eval()
    norm.weight.requires_grad_(False)
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(1))
    plain = nn.BatchNorm1d(3, affine=False, dtype=torch.bfloat16)
    model = nn.Sequential(nn.Sequential(norm), plain, norm, nn.LayerNorm(2))
    synced = nt.SyncBatchNorm.convert_sync_batchnorm(model)
    assert synced is model
    new = model[0][0]
    assert type(new) is type(model[1]) is nt.SyncBatchNorm
    assert new is model[2]
    assert type(norm) is nt.BatchNorm2d
    assert new.options == norm.options
    assert (new.momentum, new.training) == (0.3, False)
    assert new.weight is norm.weight
    assert new.running_mean is norm.running_mean
    assert not new.weight.requires_grad
    new(torch.randn(2, 4, 3, 3).double())
    assert seen == [1]
    assert model[1].running_mean.dtype == torch.bfloat16
    assert name_layers(model) == ["0.0", "1"]
    again = nt.SyncBatchNorm.convert_sync_batchnorm(nn.SyncBatchNorm(4, process_group="mine"))
    assert again.process_group == "mine"
    with pytest.raises(OptionError, match=r"(?s)lazy.*LazyBatchNorm1d.*Run an input"):
        nt.SyncBatchNorm.convert_sync_batchnorm(nn.LazyBatchNorm1d())


def test_headers_tell_what_was_sent():
    header = Header("a" * 200 + ".norm", "backward", 7, 64, 8, 2, 5, 49, True)
    words = header.words()
    assert all(-(2**63) <= word < 2**63 for word in words)
    assert len(words) == len(Header("").words())
    back = Header.of(words)
    assert header.layer.endswith(back.layer)
    assert len(back.layer) == 128
    assert str(back).endswith(".norm', backward, call 7, 64 channels, ghost batches of 8, domain 2")


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("samples", [0, 1, 3, 8])
def test_spans_put_samples_where_a_tracer_puts_them(before, samples):
    span, traced = Span(4, samples, before), Span(4, samples, torch.tensor(before))
    x = torch.rand(samples, 2, 3)
    for s in (span, traced):
        assert torch.equal(s.cut(s.pad(x)), x)
    assert torch.equal(span.pad(x), traced.pad(x)[: span.length])
    sets = torch.rand(-(-span.length // 4), 2, 5)
    assert torch.equal(span.ends(sets), traced.ends(sets))


def test_the_smallest_set_is_found():
    assert smallest_set([(0, 9), (1, 1)], 0) == 1
    assert smallest_set([(4, 2), (1, 1)], 4) == 1
    assert smallest_set([(4, 2), (4, 1)], 4) == 4
    assert smallest_set([(0, 1), (0, 1)], 4) == 0
