"""Scaled inputs and covariate shift: a car rental that buys motorcycles.

The age, the kilometres and the new price of cars have very different ranges; they are scaled by
mean and range, or by mean and deviation, and a network learns what share of its price a car still
has. Then motorcycles arrive, whose value falls as that of cars does, but with other kilometres and
prices: the inputs have shifted, the network fails, and statistics taken anew repair it.
"""

import numpy as np
import torch

import normkit.torch as nt
from drawing import Line, chart, keep
from normkit.models import recalibrate
from normkit.scaling import Summary, scale_by_deviation, scale_by_range


def vehicles(count: int, life: float, price: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Age, kilometres and new price; and the share of that price which is left.

    What counts is wear: kilometres as a part of what such a vehicle runs in its life.
    """
    rng = np.random.default_rng(seed)
    age = rng.uniform(0, 15, count)
    wear = np.clip(age / 20 + rng.normal(0, 0.12, count), 0.01, None)
    extras = rng.normal(1, 0.2, count)  # costly ones keep a little more of their value
    share = np.exp(-0.06 * age - 0.9 * wear) * (1 + 0.1 * (extras - 1))
    return np.stack([age, wear * life, extras * price], 1), share[:, None]


cars, car_shares = vehicles(1000, life=300_000, price=25_000, seed=0)
motorcycles, motorcycle_shares = vehicles(1000, life=60_000, price=9_000, seed=1)

print("                              years kilometres    price")
for name, x in (
    ("cars, largest less smallest", cars),
    ("scaled by mean and range", scale_by_range(cars)),
    ("scaled by mean and deviation", scale_by_deviation(cars)),
):
    print(f"{name:29} {np.ptp(x[:, 0]):5.2f} {np.ptp(x[:, 1]):10.2f} {np.ptp(x[:, 2]):8.2f}")

scale = Summary.of(cars).scale("deviation")
shift = scale(motorcycles).mean(0)
print("motorcycles' means, in deviations of the cars:", *shift.round(2))


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def trained(first: torch.nn.Module) -> torch.nn.Module:
    """A network that has learned from cars."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        first, torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(300):
        torch.nn.functional.mse_loss(net(tensor(cars)), tensor(car_shares)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@torch.no_grad()
def error(net: torch.nn.Module, inputs: np.ndarray, shares: np.ndarray) -> float:
    return float(abs(net(tensor(inputs)).numpy() - shares).mean())


# Two ways to scale inputs in a network; each can be made to fit motorcycles without their labels.
scaling = trained(nt.InputScaling(by="deviation").adapt(cars))
batch_norm = trained(nt.BatchNorm1d(3))
for name, net, anew in (
    ("input scaling", scaling, lambda: scaling[0].adapt(motorcycles)),
    ("batch norm", batch_norm, lambda: recalibrate(batch_norm, tensor(motorcycles))),
):
    print(f"{name}, error on cars: {error(net, cars, car_shares):.3f}")
    print(f"{name}, error on motorcycles: {error(net, motorcycles, motorcycle_shares):.3f}")
    anew()
    print(f"{name}, error with new statistics: {error(net, motorcycles, motorcycle_shares):.3f}")

seen = {"cars": scale(cars)[:150], "motorcycles": scale(motorcycles)[:150]}
clouds = [Line(name, x[:, 1], x[:, 2], points=True) for name, x in seen.items()]
keep(chart("Inputs as the network sees them", "kilometres, scaled", "price, scaled", clouds))
