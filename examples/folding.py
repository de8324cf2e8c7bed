"""Folding for deployment: a trained network without its batch norm layers, and the same outputs.

At test time batch norm is a multiplication and an addition with fixed numbers, which the
convolution in front of it can do as well. ``fold`` moves them there and compares the two networks.
"""

from timeit import repeat

import torch
from sklearn.datasets import load_digits
from torch import nn

from normkit.models import fold

digits = load_digits()
images = torch.tensor(digits.images[:, None], dtype=torch.float32) / 16
labels = torch.tensor(digits.target)

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1, bias=False),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(32 * 4 * 4, 10),
)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(2):
    for batch in torch.randperm(1400).split(32):
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
net.eval()

folded = fold(net, images[:8], report=None)
print("layers left:", *(type(layer).__name__ for layer in folded))

with torch.no_grad():
    unseen = images[1400:]
    before, after = net(unseen), folded(unseen)
    seconds = [
        min(repeat(lambda one=one: one(unseen), number=3, repeat=15)) for one in (net, folded)
    ]
right = (before.argmax(1) == labels[1400:]).float().mean()
print(f"accuracy: {right:.3f}")
print(f"answers that folding changed: {int((before.argmax(1) != after.argmax(1)).sum())}")
print(f"largest change of an output, float32: {(before - after).abs().max():.0e}")
print(f"times as fast, on the machine that this ran on: {seconds[0] / seconds[1]:.1f}")
