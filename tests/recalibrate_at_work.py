"""One rank of the job that test_models_recalibrate.py starts; writes what came of each check.

python recalibrate_at_work.py RANK SIZE PORT FOLDER
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import torch.distributed as dist  # noqa: E402

import normkit.torch as nt  # noqa: E402
from normkit.errors import DataError, NonFiniteError, OptionError, SyncError  # noqa: E402
from normkit.models.recalibration import recalibrate  # noqa: E402
from normkit.models.watching import watch  # noqa: E402
from normkit.torch.merging import sync_statistics  # noqa: E402

nn = torch.nn
SIZE, DEAD = 3, 1
SHORT = timedelta(seconds=8)


def part(x, rank, sizes=(7, 0, 13)):
    """A rank's own samples: unequally many, none on the middle one."""
    start = sum(sizes[:rank])
    return x[start : start + sizes[rank]]


def numbers(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    return x * torch.linspace(1, 5, len(x))[:, None].double()  # the ranks' differ


def network():
    torch.manual_seed(0)
    layers = (nt.BatchNorm1d(4, running="population"), nn.Linear(4, 5), nn.BatchNorm1d(5),
              nn.Linear(5, 3), nn.SyncBatchNorm(3))  # fmt: skip
    return nn.Sequential(*layers).double()


def same(net, other, tolerance=1e-12):
    state, want = net.state_dict(), other.state_dict()
    torch.testing.assert_close(state, want, rtol=tolerance, atol=tolerance)


def batches(x):
    return list(x.split(5)) if len(x) else []


def unequal_and_empty_ranks_are_one_process(rank):
    x = numbers(0, 20, 4)
    own = batches(part(x, rank))
    for options in ({}, {"layerwise": True}, {"method": "cumulative"}):
        net, whole = network(), network()
        shifts = recalibrate(net, own, **options)
        everything = [b for r in range(SIZE) for b in batches(part(x, r))]
        wanted = recalibrate(whole, everything, group=False, **options)
        same(net, whole)
        assert [s.elements for s in shifts] == [s.elements for s in wanted] == [20] * 3
        assert shifts.passes == wanted.passes


def training_goes_on_from_what_all_have_in_common(rank):
    x = numbers(0, 20, 4)
    net = network()[:1]
    recalibrate(net, batches(part(x, rank)))
    more = numbers(rank + 1, 6, 4)
    net.train()(more)
    sync_statistics(net)
    whole = network()[:1]
    recalibrate(whole, [x, *(numbers(r + 1, 6, 4) for r in range(SIZE))], group=False)
    torch.testing.assert_close(net[0].running_var, whole[0].running_var, rtol=1e-10, atol=0)


def each_rank_alone(rank):
    x = numbers(0, 20, 4)
    net = nn.BatchNorm1d(4).double()
    if rank == 2:  # the others are not asked
        recalibrate(net, part(x, rank), group=False)
        torch.testing.assert_close(net.running_mean, part(x, rank).mean(0))


def a_model_in_ddp(rank):
    x = numbers(0, 20, 4)
    net, whole = network()[:3], network()[:3]
    shifts = recalibrate(nn.parallel.DistributedDataParallel(net), batches(part(x, rank)))
    recalibrate(whole, [b for r in range(SIZE) for b in batches(part(x, r))], group=False)
    same(net, whole)
    assert [s.name for s in shifts] == ["0", "2"]


def an_error_on_one_rank_is_an_error_on_all(rank):
    x = numbers(0, 20, 4)
    x[-1, 0] = float("nan")  # on the last rank
    for options in ({}, {"layerwise": True}):
        net = network()
        before = copy.deepcopy(net.state_dict())
        kind, words = (NonFiniteError, "at '0'") if rank == 2 else (SyncError, "rank 2")
        with pytest.raises(kind, match=words):
            recalibrate(net, batches(part(x, rank)), **options)
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    net = network()
    recalibrate(net, batches(part(x, rank)), on_nonfinite="skip")
    whole = network()
    everything = [b for r in range(SIZE) for b in batches(part(x, r))]
    recalibrate(whole, everything, group=False, on_nonfinite="skip")
    same(net, whole)


def no_rank_has_data(rank):
    net = network()
    with pytest.raises(DataError, match="0 batches"):
        recalibrate(net, [])


def models_that_differ(rank):
    net = network() if rank else network()[:3]
    with pytest.raises(SyncError, match="Ranks are at different places"):
        recalibrate(net, batches(numbers(0, 20, 4)))


def running_averages_have_no_order(rank):
    with pytest.raises(OptionError, match="group=False"):
        recalibrate(network(), batches(numbers(0, 20, 4)), "ema")


def the_first_rank_watches(rank):
    """And training goes on bit for bit as without."""
    states, records = [], []
    for every in (100, 1):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        run = nn.parallel.DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with watch(run, every=every, show=False) as w:
            for seed in range(3):
                run(numbers(10 * rank + seed, 6, 4).float()).square().mean().backward()
                optimizer.step()
                records.append(w.step())
        states.append(net.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert [r is not None for r in records[3:]] == [rank == 0] * 3


def a_rank_that_dies(rank):
    """In the middle of its data."""
    group = dist.new_group(timeout=SHORT)
    net = network()
    before = copy.deepcopy(net.state_dict())

    def data():
        yield numbers(0, 20, 4)
        if rank == DEAD:
            os.kill(os.getpid(), signal.SIGKILL)
        yield numbers(1, 20, 4)

    began = time.monotonic()
    with pytest.raises(SyncError) as error:
        recalibrate(net, data, group=group)
    assert error.value.ranks == (DEAD,), error.value
    assert time.monotonic() - began < SHORT.total_seconds()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


CHECKS = (
    unequal_and_empty_ranks_are_one_process, training_goes_on_from_what_all_have_in_common,
    each_rank_alone, a_model_in_ddp, an_error_on_one_rank_is_an_error_on_all, no_rank_has_data,
    models_that_differ, running_averages_have_no_order, the_first_rank_watches, a_rank_that_dies,
)  # fmt: skip


def main(rank, size, port, folder):
    torch.set_num_threads(1)
    nt.use_native_up_to(0)
    warnings.simplefilter("error")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group(
        "gloo", rank=rank, world_size=size, store=store, timeout=timedelta(seconds=40)
    )
    results = {}
    for check in CHECKS:
        try:
            check(rank)
            results[check.__name__] = None
        except Exception:
            results[check.__name__] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(results))
    os._exit(0)  # without waiting for connections to those that died


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
