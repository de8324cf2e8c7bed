"""Batch norm in NumPy: forward and backward in nine steps, and one sample at test time.

The graph of batch norm is followed forward and then backward with the chain rule, one step at a
time. Finite differences and the closed form, which the kernels compute, say the same; at test time
running averages take the place of the batch's statistics, so that one sample is enough.
"""

import numpy as np

import normkit as nk

rng = np.random.default_rng(0)
x = rng.normal(5.0, 3.0, (16, 4))  # 16 samples of 4 features
gamma, beta = rng.uniform(0.5, 2.0, 4), rng.normal(size=4)
dy = rng.normal(size=x.shape)  # what comes back from the layers behind
norm = nk.BatchNorm(eps=1e-5)

# Nine steps forward and nine backward; the numbers are those of the first sample and feature.
trace = norm.trace(x, gamma, beta, dy)
print("step        formula                value   gradient")
for step in trace:
    value, gradient = step.value.flat[0], step.gradient.flat[0]
    print(f"{step.name:11} {step.formula:18} {value:9.4f}  {gradient:9.4f}")


def loss(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> float:
    return float((norm.forward(x, gamma, beta)[0] * dy).sum())


def slopes(number: int, h: float = 1e-5) -> np.ndarray:
    """The loss's central differences by each element of one of the three arguments."""
    given = [x, gamma, beta]
    found = np.empty(given[number].shape)
    for place in np.ndindex(found.shape):
        ends = []
        for move in (h, -h):
            moved = [value.copy() for value in given]
            moved[number][place] += move
            ends.append(loss(*moved))
        found[place] = (ends[0] - ends[1]) / (2 * h)
    return found


y, saved = norm.forward(x, gamma, beta)
closed = norm.backward(dy, saved)
pairs = [(closed.x, trace.dx), (closed.gamma, trace.d_gamma), (closed.beta, trace.d_beta)]
staged = max(abs(one - other).max() for one, other in pairs)
differences = max(abs(slopes(i) - one).max() for i, (one, _) in enumerate(pairs))
print(f"closed form and nine steps differ by: {staged:.0e}")
print(f"closed form and finite differences differ by: {differences:.0e}")

# Training keeps averages; exact ones here, of everything that was seen.
running = nk.PopulationAverage.start(4)
for _ in range(200):
    _, saved = norm.forward(rng.normal(5.0, 3.0, (16, 4)), gamma, beta)
    running = running.update(saved.statistics)
one = x[:1]
alone, _ = norm.forward(one, gamma, beta, statistics=(running.mean, running.var))
by_hand = gamma * (one - running.mean) / np.sqrt(running.var + norm.eps) + beta
print("one sample at test time:", *alone[0].round(3))
print(f"the same by hand, and the difference: {abs(alone - by_hand).max():.0e}")
