"""Layer norm in a recurrent network, where batch norm hurts.

A recurrent network reads digits row by row, after a wait of 0 to 8 empty rows, in batches of four
digits: no two batches and no two steps have the same statistics. Batch norm, which shares its
statistics over the steps, is worse than no norm at all. Layer norm looks at one sample and one step
only, and does no harm: here it is about as good as no norm.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from drawing import Line, chart, keep
from normkit.torch import BatchNorm1d, LayerNorm

EPOCHS = 4
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)


class Recurrent(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.read, self.recall = nn.Linear(8, 64), nn.Linear(64, 64, bias=False)
        self.norm, self.answer = norm, nn.Linear(64, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = rows.new_zeros(len(rows), 64)
        for row in self.read(rows).unbind(1):
            hidden = torch.tanh(self.norm(row + self.recall(hidden)))
        return self.answer(hidden)


def waiting(images: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([images.new_zeros(len(images), rows, 8), images], 1)


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """On images that were not trained on."""
    net.eval()
    right = [net(waiting(images[1400:], rows)).argmax(1) == labels[1400:] for rows in (0, 4, 8)]
    return float(torch.cat(right).float().mean())


def learn(net: Recurrent) -> list[float]:
    """Train, and say the accuracy after each epoch."""
    optimizer = torch.optim.Adam(net.parameters(), 0.002)
    reached = []
    for _ in range(EPOCHS):
        net.train()
        for batch in torch.randperm(1400).split(4):
            rows = int(torch.randint(0, 9, ()))
            guess = net(waiting(images[batch], rows))
            nn.functional.cross_entropy(guess, labels[batch]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        reached.append(accuracy(net))
    return reached


lines = []
for name, norm in (
    ("no norm", nn.Identity),
    ("batch norm", lambda: BatchNorm1d(64)),
    ("layer norm", lambda: LayerNorm(64)),
):
    torch.manual_seed(0)
    reached = learn(Recurrent(norm()))
    print(f"accuracy, {name}: {reached[-1]:.3f}")
    lines.append(Line(name, range(1, EPOCHS + 1), reached))

keep(chart("Accuracy of the recurrent network", "epoch", "accuracy", lines))
