"""Everything that an audit was given or measured, for the rules to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from normkit.models.graphs.graph import Graph
from normkit.models.measuring.spread import Spread
from normkit.models.sites import NormSite

__all__ = [
    "Accuracy",
    "Configuration",
    "Evidence",
    "Labels",
    "Observation",
    "Spread",
    "Study",
]

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
        input: of its input; None where its channels were not found, or it was called with a mask.
        output_min, output_max: of its output by channel, also with the batch's statistics.
        samples: that went through it.
        calls: calls in one forward of the model.
        edges, counts: histogram of its output.
        in_training: of its input while the batch norms take the batch's statistics, dropout
            being off: what a fault further up does to the input does not show in it. None for
            other kinds of norm, and where the model could not be run like that.
        by_call: of its input by call, where one forward calls it more than once.
        by_domain: of its input by the domain that the data names.
    """

    input: Spread | None
    output_min: Tensor
    output_max: Tensor
    samples: int
    calls: int = 1
    edges: Sequence[float] = ()
    counts: Sequence[int] = ()
    in_training: Spread | None = None
    by_call: Sequence[Spread] = ()
    by_domain: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class Accuracy:
    """Samples that the model puts into their class.

    Args:
        samples: with labels, that ran in both ways.
        evaluated: right in eval mode.
        trained: right with the batch norms on the batch's statistics, dropout being off.
        only_evaluated, only_trained: right in the one and wrong in the other.
    """

    samples: int
    evaluated: int
    trained: int
    only_evaluated: int
    only_trained: int


@dataclass(frozen=True)
class Labels:
    """How the labels lie in the batches.

    Args:
        counts: of each class in the whole data.
        sizes: of the batches.
        entropy: mean over the batches of the entropy of their labels, nats.
    """

    counts: Sequence[int]
    sizes: Sequence[int]
    entropy: float


@dataclass(frozen=True, eq=False)
class Study:
    """One pass over the data: what every norm saw, and what the model did.

    Args:
        layers: by site name; norms that were not called are not in it.
        samples, batches: of the pass.
        labels, accuracy: None where the data has no labels, or the result is not one score a class.
        alone: whether a sample alone comes out as it does in company; None where not tried.
        notes: what else happened.
    """

    layers: Mapping[str, Observation]
    samples: int
    batches: int
    labels: Labels | None = None
    accuracy: Accuracy | None = None
    alone: bool | None = None
    notes: Sequence[str] = ()


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
        blind: why data that was given could not be used.
    """

    sites: Sequence[NormSite]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    graph: Graph | None = None
    model: Any = None
    study: Study | None = None
    configuration: Configuration = field(default_factory=Configuration)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    blind: str = ""

    def lacks(self, need: str) -> str:
        """ "" if a rule's need is met, else how to meet it."""
        if need == "graph" and self.graph is None:
            return "the model's graph: pass the model itself, a .pt2 or an .onnx file"
        if need == "layers" and self.model is None:
            return "a model that runs: pass the model itself"
        if need in ("data", "labels") and self.study is None:
            return self.blind or "data: pass data="
        if need == "labels" and self.study is not None and self.study.labels is None:
            return "labels: let the data give pairs (input, label)"
        kind, _, name = need.partition(".")
        if kind == "configuration" and getattr(self.configuration, name) is None:
            return f"the training configuration: pass {name}="
        return ""
