"""A small ResNet on two processes: synchronized batch norm learns as one process does.

Two processes with half of each batch each train under DistributedDataParallel, on gloo. With
synchronized statistics their weights are those of one process with whole batches, but for rounding;
with each process's own statistics they are not.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normkit.torch as nt

STEPS, BATCH = 40, 32
digits = load_digits()
images = torch.tensor(digits.images[:, None]) / 16
labels = torch.tensor(digits.target)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nt.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nt.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.branch(x))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Conv2d(1, 8, 3, padding=1, bias=False), nt.BatchNorm2d(8), nn.ReLU()
    head = nn.Flatten(), nn.Linear(8 * 4 * 4, 10)
    return nn.Sequential(*stem, Block(8), nn.MaxPool2d(2), Block(8), *head).double()


def trained(net: nn.Module, rank: int = 0, size: int = 1) -> nn.Module:
    """Every rank takes its part of the same batches."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % 1000
        part = batch.chunk(size)[rank]
        nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, net in (
        ("synchronized", nt.SyncBatchNorm.convert_sync_batchnorm(resnet())),
        ("own", resnet()),
    ):
        state = trained(DistributedDataParallel(net), rank, 2).module.state_dict()
        if rank == 0:
            torch.save(state, f"{folder}/{name}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    one = trained(resnet())
    right = (one.eval()(images[1000:]).argmax(1) == labels[1000:]).double().mean()
    print(f"accuracy of one process: {right:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), nprocs=2)
        for name in ("synchronized", "own"):
            two = torch.load(Path(folder, f"{name}.pt"), weights_only=True)
            apart = max(abs(two[key] - value).max() for key, value in one.named_parameters())
            print(f"weights of two processes, {name} statistics, differ by: {apart:.0e}")
