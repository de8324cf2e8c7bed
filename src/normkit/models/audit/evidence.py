"""Everything that an audit was given or measured, for the rules to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from normkit.models.graph import Graph
from normkit.models.sites import NormSite
from normkit.moments import Moments

__all__ = ["Configuration", "Evidence", "Observation", "Study"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Configuration:
    """How the model is trained, as far as the user says; None for what is not known.

    Args:
        batch_size: samples of a training batch on one rank.
        dataset_size: samples of an epoch on one rank.
        drop_last: whether an incomplete last batch is left out.
        optimizer: a torch.optim optimizer.
        world_size: ranks that train together; 1 for none.
        broadcast_buffers: DistributedDataParallel's argument.
        accumulate: micro-batches in an optimizer step.
        averaged: whether the weights are an average (SWA, EMA) of those that were trained.
    """

    batch_size: int | None = None
    dataset_size: int | None = None
    drop_last: bool | None = None
    optimizer: Any = None
    world_size: int | None = None
    broadcast_buffers: bool | None = None
    accumulate: int | None = None
    averaged: bool | None = None


@dataclass(frozen=True, eq=False)
class Observation:
    """What one norm saw in a pass over the data with the model in eval mode.

    Args:
        input: moments of its input by channel, float64.
        output_min, output_max: of its output by channel.
        samples: that went through it.
        calls: calls in one forward of the model.
        edges, counts: histogram of its output.
    """

    input: Moments
    output_min: Tensor
    output_max: Tensor
    samples: int
    calls: int = 1
    edges: Sequence[float] = ()
    counts: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """One pass over the data: what every norm saw, and what the model did.

    Args:
        layers: by site name.
        samples, batches: of the pass.
    """

    layers: Mapping[str, Observation]
    samples: int
    batches: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """What there is to look at.

    Args:
        sites: the model's norms.
        tensors: all weights and buffers by name.
        graph: None where it is not known.
        model: a torch.nn.Module that runs; None for a file of weights.
        study: None without data.
        configuration: what the user said about training.
        shapes: of the first input of each norm, by site name, from data or an example; the first
            dimension is the batch's.
    """

    sites: Sequence[NormSite]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    graph: Graph | None = None
    model: Any = None
    study: Study | None = None
    configuration: Configuration = field(default_factory=Configuration)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def lacks(self, need: str) -> str:
        """ "" if a rule's need is met, else how to meet it."""
        if need == "graph" and self.graph is None:
            return "the model's graph: pass the model itself, a .pt2 or an .onnx file"
        if need == "layers" and self.model is None:
            return "a model that runs: pass the model itself"
        if need == "data" and self.study is None:
            return "data: pass data="
        if need == "shapes" and not self.shapes:
            return "the shapes inside the model: pass data=, or example=, an input"
        kind, _, name = need.partition(".")
        if kind == "configuration" and getattr(self.configuration, name) is None:
            return f"the training configuration: pass {name}="
        return ""
