"""audit(): a model and what is known of it go in, a report comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from normkit.errors import ModelError, OptionError
from normkit.models.auditing.evidence import Configuration, Evidence
from normkit.models.auditing.observe import observe, shapes_of
from normkit.models.auditing.onnx_models import runnable
from normkit.models.auditing.programs import listenable
from normkit.models.auditing.records import layer_records, network_map
from normkit.models.auditing.report import Report
from normkit.models.auditing.rule import Rule
from normkit.models.auditing.rules import RULES
from normkit.models.auditing.rules.tracking import is_untouched
from normkit.models.auditing.running import run_rules
from normkit.models.batches import Forward
from normkit.models.graphs.module import trace
from normkit.models.measuring.undisturbed import undisturbed
from normkit.models.sites import NormSite, find_sites
from normkit.models.wrappers import plain_model

__all__ = ["audit"]


def audit(
    model: Any,
    data: Any = None,
    *,
    example: Any = None,
    forward: Forward | None = None,
    configuration: Configuration | None = None,
    rules: Iterable[str | Rule] | None = None,
    ignore: Iterable[str] = (),
    progress: bool | None = None,
    name: str | None = None,
    **known: Any,
) -> Report:
    """Look for faults of normalization in a model.

    Nothing of the model is changed: it runs on the data in eval mode, and once more with its batch
    norms on the statistics of each batch, and is afterwards as it was, whatever happens. Memory
    does not grow with the data.

    Args:
        model: a torch.nn.Module, or whatever :func:`normkit.models.open_model` takes or returns.
            On data, ONNX models are run by onnxruntime; a checkpoint cannot be.
        data: a tensor, a DataLoader or anything that gives batches (see
            :func:`normkit.models.batches.batches_of`), best like that of use, with a few hundred
            samples or more, with labels where there are such. A dictionary of such goes by
            domains, and so does a batch that is a dictionary with ``"domain"``.
        example: an input, or a tuple or dictionary of the model's arguments, for the shapes inside
            the model where there is no data.
        forward: ``forward(model, batch)``, where the model is not simply called.
        configuration, known: how the model is trained, as a :class:`Configuration` or as its
            fields: ``batch_size=``, ``optimizer=``, ``averaged=``, ...
        rules: names of those to run; all by default.
        ignore: names of those to leave out.
        progress: whether to show it; None where a person watches.
        name: of the model, for the reader.

    Returns:
        what was found, with the rules that could not run and what they need.

    Raises:
        DataError: there is no batch, or the model does not take it.
        ModelError, FileError: there is no such model.
        OptionError: no rule, or no field of Configuration, has such a name.

    >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()).eval()
    >>> audit(net).findings
    []
    >>> net[1].running_var[2] = float("nan")
    >>> [(f.rule, f.site) for f in audit(net).findings]
    [('bad-buffers', '1')]
    """
    wanted = _wanted(rules, ignore)
    subject = _gather(model, _configuration(configuration, known))
    evidence = _measure(subject, data, example, forward, progress)
    findings, skipped, ran = run_rules(wanted, evidence)
    nodes, edges = network_map(evidence.graph)
    return Report(
        model=name or subject.name,
        findings=findings,
        skipped=skipped,
        ran=ran,
        layers=layer_records(evidence),
        nodes=nodes,
        edges=edges,
        notes=list(_notes(evidence)),
    )


# --- what there is to look at ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is audited.

    Args:
        evidence: all that is known without running it.
        name: for people.
        runs: a module that can be run on data; None for a file that cannot.
        sites: its norms, with the layers in ``runs``.
    """

    evidence: Evidence
    name: str
    runs: nn.Module | None = None
    sites: Sequence[NormSite] = ()


def _gather(model: Any, configuration: Configuration) -> _Subject:
    if isinstance(model, nn.Module):
        return _of_module(model, type(plain_model(model)).__name__, configuration)
    opened = model
    if not hasattr(opened, "sites"):
        from normkit.models.opening import open_model  # files, programs and code: seldom needed

        opened = open_model(model)
    if opened.module is not None:
        return _of_module(opened.module, opened.name, configuration)
    if opened.proto is not None:
        return _of_onnx(opened.proto, opened.name, opened.tensors, configuration)
    graph = opened.graph()
    evidence = Evidence(opened.sites(), opened.tensors, graph, configuration=configuration)
    if opened.program is not None and graph is not None:
        runs, sites = listenable(opened.program, evidence.sites, graph)
        return _Subject(evidence, opened.name, runs, sites)
    blind = "a model that runs: a checkpoint is looked at, not run"
    return _Subject(replace(evidence, blind=blind), opened.name)


def _of_onnx(
    proto: Any, name: str, tensors: Mapping[str, torch.Tensor], configuration: Configuration
) -> _Subject:
    from normkit.models.graphs.onnx_model import read_onnx_graph

    reading = read_onnx_graph(proto)
    evidence = Evidence(reading.sites, tensors, reading.graph, configuration=configuration)
    if find_spec("onnxruntime") is None:
        blind = "onnxruntime: pip install 'normkit[onnx]'"
        return _Subject(replace(evidence, blind=blind), name)
    return _Subject(evidence, name, *runnable(proto, reading))


def _of_module(model: nn.Module, name: str, configuration: Configuration) -> _Subject:
    model = plain_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "TorchScript hides its layers",
            received=type(model).__name__,
            expected="the torch.nn.Module that it was made from",
            remedy="Or torch.export.export(model, args), saved as .pt2.",
        )
    if isinstance(model, AveragedModel):
        if configuration.averaged is None:
            configuration = replace(configuration, averaged=int(model.n_averaged) > 1)
        model = plain_model(model.module)
    named = [*model.named_parameters(remove_duplicate=False),
             *model.named_buffers(remove_duplicate=False)]  # fmt: skip
    tensors = {name: tensor for name, tensor in named if not is_lazy(tensor)}
    blind = ""
    if len(tensors) < len(named):
        blind = "a model that knows its shapes: call it once, it has lazy layers"
    with undisturbed(model):  # a forward may leave traces while it is followed, too
        graph = trace(model)
    sites = find_sites(model)
    evidence = Evidence(sites, tensors, graph, model, configuration=configuration, blind=blind)
    return _Subject(evidence, name, None if blind else model, sites)


def _measure(
    subject: _Subject, data: Any, example: Any, forward: Forward | None, progress: bool | None
) -> Evidence:
    """With what running the model shows."""
    evidence = subject.evidence
    if subject.runs is None or not subject.sites:
        return evidence if data is not None else replace(evidence, blind="")
    if data is not None:
        study, shapes = observe(subject.runs, subject.sites, data, forward, progress)
        return replace(evidence, study=study, shapes=shapes)
    if example is not None:
        return replace(evidence, shapes=shapes_of(subject.runs, subject.sites, example, forward))
    return evidence


def _notes(evidence: Evidence) -> Iterator[str]:
    if not evidence.sites:
        yield "the model has no normalization layers"
    if is_untouched(evidence.sites):
        yield (
            "no norm with running statistics has seen a batch yet: if these should be trained "
            "weights, load them (weights=)"
        )
    if any(site.uses_batch and site.tracks for site in evidence.sites) and _in_training(evidence):
        measured = "; what it does in eval mode was measured" if evidence.study else ""
        yield f"the model is in training mode{measured}: call model.eval() before use"
    if evidence.blind:
        yield f"the data was not used: it takes {evidence.blind}"
    if evidence.study is not None:
        yield from evidence.study.notes
    for path, reason in (evidence.graph.unknown if evidence.graph else {}).items():
        yield f"not followed inside {path or 'the model'}: {reason}"


def _in_training(evidence: Evidence) -> bool:
    """As a whole; a layer that is so by itself is a rule's business."""
    if evidence.model is not None:
        return bool(evidence.model.training)
    return all(site.training for site in evidence.sites if site.tracks)


# --- options --------------------------------------------------------------------------------------


def _wanted(rules: Iterable[str | Rule] | None, ignore: Iterable[str]) -> list[Rule]:
    known = {rule.name: rule for rule in RULES}
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    chosen = list(RULES) if rules is None else [rules] if isinstance(rules, str) else list(rules)
    for given in (*chosen, *ignored):
        if not isinstance(given, Rule) and given not in known:
            raise OptionError(
                "There is no such rule",
                received=repr(given),
                expected=", ".join(known),
                remedy="Rules go by the names that findings show.",
            )
    named = [rule if isinstance(rule, Rule) else known[rule] for rule in chosen]
    return [rule for rule in named if rule.name not in ignored]


def _configuration(given: Configuration | None, known: dict[str, Any]) -> Configuration:
    names = [f.name for f in fields(Configuration)]
    unknown = [name for name in known if name not in names]
    if unknown:
        raise OptionError(
            "audit() knows no such argument",
            received=", ".join(unknown),
            expected=", ".join(names),
            remedy="These describe how the model is trained.",
        )
    return replace(given or Configuration(), **known)
