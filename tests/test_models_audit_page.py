"""An audit as a page: what it says, what it leaves out and admits, and how a browser shows it."""

from __future__ import annotations

import html
import itertools
import math
import random
import re

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")

from torch import nn  # noqa: E402

from browser import needs_chromium  # noqa: E402
from normkit.models.auditing.audit import audit  # noqa: E402
from normkit.models.auditing.findings import Finding, LayerRecord, Skipped  # noqa: E402
from normkit.models.auditing.page import render, sections_of  # noqa: E402
from normkit.models.auditing.pictures import pictures  # noqa: E402
from normkit.models.auditing.report import Report  # noqa: E402
from normkit.report import Diagram, Folds, Notices, Plots, Table, Text, Verdict  # noqa: E402
from test_report import HOSTILE, dots_of, loads  # noqa: E402


def record(name="bn", channels=8, seed=0, **more) -> LayerRecord:
    """A batch norm about which everything is known."""
    rng = random.Random(seed)

    def around(centre, width):
        return [rng.gauss(centre, width) for _ in range(channels)]

    known = {
        "gamma": around(1, 0.1),
        "beta": around(0, 0.1),
        "running_mean": around(0, 1),
        "running_var": [math.exp(v) for v in around(0, 1)],
        "fresh_mean": around(0, 1),
        "fresh_var": [math.exp(v) for v in around(0, 1)],
        "samples": 640,
        "elements": 64000,
        "edges": [-2.0, -1.0, 0.0, 1.0, 2.0],
        "counts": [0, 10, 30, 0],
        "eps": 1e-5,
    }
    return LayerRecord(name, "batch", "BatchNorm2d", channels, **(known | more))


def finding(site="bn", rule="stale-statistics", severity="warning", **more) -> Finding:
    known = {
        "measured": "KL 2 > 0.2",
        "why": "Because.",
        "repair": "normkit.models.recalibrate(model, data)",
    }
    return Finding(rule, severity, site, **(known | more))


def report(**more) -> Report:
    known = {
        "model": "net",
        "findings": [finding()],
        "skipped": [Skipped("small-batch", "the batch size: pass batch_size=")],
        "ran": ["stale-statistics", "bad-buffers"],
        "layers": [record("bn"), record("other", seed=1)],
        "nodes": [("x", "input", ""), ("bn", "norm", "bn"), ("b2", "norm", "other"),
                  ("add", "add", "")],
        "edges": [("x", "bn"), ("bn", "b2"), ("b2", "add"), ("bn", "add")],
    }  # fmt: skip
    return Report(**(known | more))


def part(of: Report, kind: type):
    [found] = [section for section in sections_of(of) if isinstance(section, kind)]
    return found


# --- the verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "level", "words"),
    [
        ({}, "warning", "Nothing is wrong outright, but something costs: 1 finding in 1 place"),
        (
            {"findings": [finding(severity="error"), finding(), finding("other")]},
            "error",
            "Something is wrong: 3 findings in 2 places",
        ),
        (
            {"findings": [finding(severity="info")]},
            "info",
            "Nothing is wrong; something is worth knowing: 1 finding in 1 place",
        ),
        (
            {"findings": []},
            "good",
            "Nothing found by the 2 rules that looked; 1 could not look",
        ),
        ({"findings": [], "skipped": []}, "good", "Nothing found by the 2 rules that looked"),
        (
            {"findings": [], "layers": []},
            "info",
            "No normalization found: there is nothing to audit",
        ),
    ],
)
def test_verdict(more, level, words):
    verdict = part(report(**more), Verdict)
    assert (verdict.level, verdict.words) == (level, words)


def test_counts_and_scope_and_notes():
    found = [finding(severity="error"), finding(), finding("other")]
    verdict = part(report(findings=found, notes=["a part could not be traced"]), Verdict)
    assert list(verdict.counts) == [("error", 1, "error"), ("warning", 2, "warnings"),
                                    ("info", 0, "notes")]  # fmt: skip
    assert verdict.paragraphs[0] == (
        "Audited: 2 norms (2 batch) with 16 channels in all. "
        "640 samples of data went through the model."
    )
    assert verdict.paragraphs[1] == "A part could not be traced."


def test_without_data_the_page_says_so():
    bare = {key: [] for key in ("fresh_mean", "fresh_var", "edges", "counts")}
    layers = [record(samples=0, elements=0, **bare)]
    verdict = part(report(layers=layers), Verdict)
    assert "No data went through the model" in verdict.paragraphs[0]
    assert "Pass data=" in verdict.paragraphs[0]
    [words] = [s for s in pictures(layers[0]) if isinstance(s, Text)]
    assert "Without data there are no fresh statistics" in words.paragraphs[0]


def test_rules_that_could_not_look_are_listed_by_what_they_need():
    skipped = [
        Skipped("a", "data: pass data="),
        Skipped("b", "x"),
        Skipped("c", "data: pass data="),
    ]
    table = part(report(skipped=skipped), Table)
    assert table.heading == "Rules that could not look: 3"
    assert list(table.rows) == [("a, c", "data: pass data="), ("b", "x")]


# --- findings -------------------------------------------------------------------------------------


def test_findings_of_one_rule_are_one_notice_with_all_places():
    found = [
        finding("bn", severity="error"), finding("other", severity="error"),
        finding("bn", rule="bad-buffers", severity="error"), finding("", rule="gap"),
    ]  # fmt: skip
    notices = part(report(findings=found), Notices).notices
    assert [(n.level, n.title) for n in notices] == [
        ("error", "stale-statistics in 2 places"),
        ("error", "bad-buffers"),
        ("warning", "gap"),
    ]
    assert [(p.name, p.words, p.anchor) for p in notices[0].places] == [
        ("bn", "KL 2 > 0.2", "layer-1"),
        ("other", "KL 2 > 0.2", "layer-2"),
    ]
    assert notices[0].code == "normkit.models.recalibrate(model, data)"
    assert [p.name for p in notices[2].places] == ["the model as a whole"]


def test_repairs_that_differ_stand_with_their_places():
    found = [
        finding("bn", repair="normkit.models.freeze(model.get_submodule('bn')), or eval()."),
        finding("other", repair="normkit.models.freeze(model.get_submodule('other')), or eval()."),
    ]
    [notice] = part(report(findings=found), Notices).notices
    assert notice.code == ""
    assert [place.code for place in notice.places] == [
        "normkit.models.freeze(model.get_submodule('bn'))",
        "normkit.models.freeze(model.get_submodule('other'))",
    ]
    assert "Repair: normkit.models.freeze" in notice.places[0].words


@pytest.mark.parametrize(
    ("repair", "code", "words"),
    [
        ("normkit.models.recalibrate(model, data)", "normkit.models.recalibrate(model, data)", []),
        (
            "normkit.models.recalibrate(model, f(x)), or normkit.torch.sync(model) first.",
            "normkit.models.recalibrate(model, f(x))\nnormkit.torch.sync(model)",
            [("Repair: normkit.models.recalibrate(model, f(x)), or normkit.torch.sync(model) "
              "first.")],
        ),
        ("Remove them.", "", ["Repair: Remove them."]),
        ("normkit.models.open( stays open", "", ["Repair: normkit.models.open( stays open"]),
    ],
)  # fmt: skip
def test_calls_of_a_repair_can_be_copied(repair, code, words):
    [notice] = part(report(findings=[finding(repair=repair)]), Notices).notices
    assert notice.code == code
    assert notice.paragraphs == ["Because.", *words]


def test_channels_are_named_where_the_measurement_does_not():
    [notice] = part(report(findings=[finding(channels=tuple(range(10)))]), Notices).notices
    assert notice.places[0].words == ("KL 2 > 0.2 (channels 0, 1, 2, 3, 4, 5, 6, 7 and 2 more)")
    said = finding(measured="bad at channel 3", channels=(3,))
    [notice] = part(report(findings=[said]), Notices).notices
    assert notice.places[0].words == "bad at channel 3"


# --- the map --------------------------------------------------------------------------------------


def test_map_shows_each_norm_by_its_worst_finding():
    found = [finding("bn", severity="error"), finding("bn", severity="info")]
    diagram = part(report(findings=found), Diagram)
    assert [(n.name, n.level, n.label, n.anchor) for n in diagram.nodes] == [
        ("x", "", "in", ""),
        ("bn", "error", "1", "layer-1"),
        ("b2", "good", "2", "layer-2"),
        ("add", "", "+", ""),
    ]
    assert diagram.nodes[1].title == (
        "bn, BatchNorm2d, 8 channels\nerror: stale-statistics\ninfo: stale-statistics"
    )
    assert diagram.nodes[2].title == "other, BatchNorm2d, 8 channels\nnothing found"
    assert list(diagram.legend) == ["good", "error"]
    assert len(diagram.edges) == 4


def test_what_says_nothing_of_the_data_is_left_out_of_the_map_and_counted():
    nodes = [
        ("x", "input", ""), ("mask", "input", ""), ("w", "constant", ""), ("view", "reshape", ""),
        ("other", "input", ""), ("bn", "norm", "bn"), ("size", "other", ""),
        ("item", "other", ""), ("cat", "add", ""),
        ("conv", "conv", ""), ("end", "add", ""), ("y", "output", ""),
    ]  # fmt: skip
    edges = [
        ("x", "bn"), ("bn", "size"), ("size", "item"), ("bn", "cat"), ("mask", "cat"),
        ("w", "view"), ("view", "cat"), ("other", "conv"), ("cat", "end"), ("conv", "end"),
        ("end", "y"),
    ]  # fmt: skip
    diagram = part(report(nodes=nodes, edges=edges), Diagram)
    kept = ["x", "other", "bn", "cat", "conv", "end", "y"]
    assert [node.name for node in diagram.nodes] == kept
    assert "no way from an input to an output: 5 steps" in diagram.note
    assert set(diagram.edges) == {(a, b) for a, b in edges if a in kept and b in kept}


def test_what_reckons_with_shapes_is_not_in_the_map():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, x):
            samples, side = x.shape[0], x.size(2) * 2
            return self.norm(x.reshape(samples, -1, 6)).reshape(samples, side, -1)

    found = audit(Tokens().eval())
    assert [op for _, op, _ in found.nodes] == ["input", "reshape", "norm", "reshape", "output"]
    assert found.edges == list(itertools.pairwise(name for name, *_ in found.nodes))


def test_without_a_graph_the_norms_stand_in_a_row_and_the_page_says_so():
    diagram = part(report(nodes=[], edges=[]), Diagram)
    assert [node.name for node in diagram.nodes] == ["bn", "other"]
    assert "is not known" in diagram.note


def test_edges_that_lead_nowhere_or_back_do_not_cost_the_page():
    edges = [("x", "bn"), ("bn", "x"), ("bn", "gone"), ("gone", "bn"), ("bn", "bn")]
    assert part(report(edges=edges), Diagram).edges == [("x", "bn")]


# --- layer by layer -------------------------------------------------------------------------------


def plots_of(layer):
    return {plot.title: plot for s in pictures(layer) if isinstance(s, Plots) for plot in s.plots}


def tables_of(layer):
    return [section for section in pictures(layer) if isinstance(section, Table)]


def test_plots_of_a_layer_show_its_statistics():
    layer = record()
    plots = plots_of(layer)
    mean = plots["Mean, running and fresh"]
    assert (mean.marks.x, mean.marks.y) == (layer.running_mean, layer.fresh_mean)
    var = plots["Variance, running and fresh"]
    assert (var.marks.x, var.marks.y) == (layer.running_var, layer.fresh_var)
    assert (var.log_x, var.log_y, var.diagonal) == (True, True, True)
    assert (mean.log_x, mean.log_y, mean.diagonal) == (False, False, True)
    bars = plots["Distribution of the output"].marks
    assert (bars.edges, bars.heights) == ([-1.0, 0.0, 1.0], [0.25, 0.75])  # empty ends cut off
    curve = plots["Spectrum of γ"].marks
    assert curve.y == sorted(map(abs, layer.gamma), reverse=True)
    assert curve.x == [1, 2, 3, 4, 5, 6, 7, 8]


def test_of_many_channels_the_worst_are_drawn_and_the_rest_is_sampled_and_the_page_says_so():
    count = 2048
    rng = random.Random(3)
    mean = [rng.gauss(0, 1) for _ in range(count)]
    off = sorted(rng.sample(range(count), 20))
    fresh = [value + (9.0 if i in off else 0.0) for i, value in enumerate(mean)]
    layer = record(channels=count, running_mean=mean, fresh_mean=fresh,
                   running_var=[1.0] * count, fresh_var=[1.0] * count)  # fmt: skip
    plot = plots_of(layer)["Mean, running and fresh"]
    drawn = list(zip(plot.marks.x, plot.marks.y, strict=True))
    assert len(drawn) == len(set(drawn)) == 512
    assert {(mean[i], fresh[i]) for i in off} <= set(drawn)
    assert "512 of 2,048 channels are drawn: the 128 furthest from it" in plot.note
    assert sum(x != y for x, y in drawn) == 20
    places = [mean.index(x) for x, y in drawn if x == y]
    assert max(b - a for a, b in itertools.pairwise(sorted(places))) < 16  # all over the layer
    spectrum = plots_of(layer)["Spectrum of γ"]
    sizes = sorted(map(abs, layer.gamma), reverse=True)
    assert len(spectrum.marks.y) == 200
    assert (spectrum.marks.y[0], spectrum.marks.y[-1]) == (sizes[0], sizes[-1])
    assert spectrum.marks.y == [sizes[rank - 1] for rank in spectrum.marks.x]
    assert "200 of 2,048" in spectrum.note


def test_the_table_of_channels_orders_them_by_divergence():
    layer = record(
        channels=4, running_mean=[0.0] * 4, fresh_mean=[0.0, 1.0, 0.0, math.nan],
        running_var=[1.0, 1.0, 0.0, 1.0], fresh_var=[1.5, 1.0, 0.0, 1.0], eps=0.0,
    )  # fmt: skip
    rows = tables_of(layer)[1].rows
    assert [row[0] for row in rows] == ["3", "1", "0", "2"]
    # of two normal distributions, by hand: 0.5 (ratio - 1 - ln ratio + shift^2)
    assert [row[-1] for row in rows] == ["inf", "0.5", "0.0473", "0"]


def test_values_that_are_not_finite_are_counted_in_the_table():
    table = tables_of(record(channels=3, running_var=[1.0, math.nan, math.inf]))[0]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["running variance"] == ("1", "1", "1", "2")
    assert rows["β"][-1] == "0"
    assert "not finite" not in tables_of(record())[0].columns
    assert "64,000 elements a channel, of 640 samples" in table.note


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"running_mean": [], "running_var": []}, "no running statistics by channel"),
        ({"gamma": []}, "It has no γ."),
        ({"counts": [], "edges": []}, "distribution of the output was not measured"),
        ({"fresh_mean": [], "fresh_var": []}, "could not be told apart by channel"),
        (
            {"fresh_mean": [], "fresh_var": [], "counts": []},
            "What went through it could not be told apart",
        ),
    ],
)
def test_what_is_missing_in_a_layer_is_said(more, words):
    [text] = [s for s in pictures(record(**more)) if isinstance(s, Text)]
    assert words in text.paragraphs[0]
    render(report(layers=[record(**more)]))


def test_a_complete_layer_misses_nothing():
    assert not [s for s in pictures(record()) if isinstance(s, Text)]


def test_the_worst_layers_stand_open():
    layers = [record(f"l{i}") for i in range(8)]
    found = [finding("l7", severity="error"), *(finding(f"l{i}") for i in range(5))]
    folds = part(report(layers=layers, findings=found), Folds).folds
    assert [fold.title for fold in folds if fold.opened] == [
        "Norm 1: l0",
        "Norm 2: l1",
        "Norm 8: l7",
    ]
    assert [fold.level for fold in folds] == ["warning"] * 5 + ["good", "good", "error"]
    assert folds[7].words == "BatchNorm2d, 8 channels: stale-statistics"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 5e-324])
def test_odd_values_do_not_cost_the_page(value):
    names = ("gamma", "beta", "running_mean", "running_var", "fresh_mean", "fresh_var")
    for name in names:
        render(report(layers=[record(**{name: [value] * 8})]))
        render(report(layers=[record(**{name: [value, 1.0] * 4})]))
        render(report(layers=[record(**{name: [value]})]))  # fewer than the other lists have
    render(report(layers=[record(channels=1), LayerRecord("", "other", "FRN", None)]))


# --- the whole page -------------------------------------------------------------------------------


def test_names_are_words_and_never_markup():
    layers = [record(HOSTILE), record("<b>"), record("other")]
    found = [
        finding(HOSTILE, measured=HOSTILE, why=HOSTILE, repair=HOSTILE),
        finding("", rule=HOSTILE),
        finding("elsewhere" + HOSTILE, repair=f"normkit.f({HOSTILE!r})"),
    ]
    text = render(
        report(
            model=HOSTILE, findings=found, layers=layers, notes=[HOSTILE], ran=[HOSTILE],
            skipped=[Skipped(HOSTILE, HOSTILE)],
            nodes=[(HOSTILE, "input", ""), (HOSTILE + "1", "norm", HOSTILE), ("y", HOSTILE, "")],
            edges=[(HOSTILE, HOSTILE + "1")],
        )
    )  # fmt: skip
    assert "alert('x')" not in text
    assert text.count("alert(") > 15
    parsed = loads(text)
    assert parsed.tags.count("script") == 1
    assert parsed.found == []
    assert "default-src 'none'" in parsed.policy


def test_two_audits_share_a_page():
    from normkit.report import page

    both = [*sections_of(report(), "before"), *sections_of(report(), "after")]
    text = page("Two", both)
    anchors = re.findall(r'id="at-([^"]+)"', text)
    assert len(anchors) == len(set(anchors)) == 6
    assert set(re.findall(r'href="#at-([^"]+)"', text)) <= set(anchors)


def test_a_page_of_two_hundred_large_layers_stays_light():
    layers = [record(f"stage.{i}.norm", channels=2048, seed=i % 7) for i in range(200)]
    names = [f"stage.{i}.norm" for i in range(200)]
    nodes = [("x", "input", "")]
    for name in names:
        nodes += [(f"{name}.conv", "conv", ""), (f"{name}.pad", "pad", ""), (name, "norm", name)]
    edges = list(itertools.pairwise(node[0] for node in nodes))
    found = [finding(name) for name in names]
    text = render(report(layers=layers, findings=found, nodes=nodes, edges=edges))
    assert len(text) < 4_000_000  # of points that all lie apart; less than Plotly alone
    assert "512 of 2,048" in text
    assert "400 plain steps are drawn as 200" in text


def test_page_of_a_real_audit(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.Flatten(), nn.Linear(8 * 36, 4)).eval()  # fmt: skip
    data = torch.randn(256, 3, 8, 8)
    with torch.no_grad():
        inside = net[0](data)
    net[1].running_mean.copy_(inside.mean((0, 2, 3)) + 3 * inside.std((0, 2, 3)))
    net[1].running_var.copy_(inside.var((0, 2, 3)))
    found = audit(net, data, name="planted")
    assert [(f.rule, f.site) for f in found.findings if f.severity == "error"] == (
        [("stale-statistics", "1")]
    )
    path = tmp_path / "audit.html"
    found.save(path)
    text = html.unescape(path.read_text(encoding="utf-8"))
    assert "<h1>Audit of planted</h1>" in text
    assert "Something is wrong" in text
    plot = plots_of(found.layers[0])["Mean, running and fresh"]
    assert plot.marks.y == pytest.approx(inside.double().mean((0, 2, 3)).tolist(), abs=1e-6)
    dots = re.findall(r'class="dots" d="([^"]*)"', text)
    assert len(dots) == 2
    assert 4 <= len(dots_of(dots[0])) <= 8


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    long = "a_module_with_a_very_long_name." * 8 + "norm"
    layers = [record("bn", 64), record(long, 700), LayerRecord("ln", "layer", "LayerNorm", 4)]
    nodes = [("x", "input", ""), ("bn", "norm", "bn"), ("b2", "norm", long), ("add", "add", "")]
    found = [
        finding("bn", severity="error"),
        finding(long),
        finding("", rule="gap", severity="info"),
    ]
    path = tmp_path_factory.mktemp("pages") / "audit.html"
    report(layers=layers, nodes=nodes, findings=found).save(path)
    return path


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_without_an_error(browser, sheet, width, scheme):
    browser.problems.clear()
    browser.open(sheet, width, prefers_color_scheme=scheme)
    assert browser.overflow() <= 0
    browser.ask("document.querySelectorAll('.all button')[0].click()")
    assert browser.ask("document.querySelectorAll('.fold[open]').length") == 3
    assert browser.overflow() <= 0
    small = browser.ask(
        "[...document.querySelectorAll('main > section, .small svg')]"
        ".filter(e => e.getBoundingClientRect().height < 30).map(e => e.outerHTML.slice(0, 80))"
    )
    assert small == []
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_labels_of_plots_lie_inside_them(browser, sheet):
    browser.open(sheet, 390)
    browser.ask("document.querySelectorAll('.all button')[0].click()")
    outside = browser.ask(
        "[...document.querySelectorAll('.small svg text, .flow svg text')].filter(t => {"
        " const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();"
        " return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1"
        " || a.bottom > b.bottom + 1; }).map(t => t.textContent)"
    )
    assert outside == []


@pytest.mark.browser
@needs_chromium
def test_a_norm_of_the_map_leads_to_its_layer(browser, sheet):
    browser.open(sheet)
    fold = "document.getElementById('at-layer-2')"
    browser.ask(f"{fold}.open = false")
    browser.ask("document.querySelector('.flow a[href=\"#at-layer-2\"]').focus()")
    browser.press("Enter")
    browser.settle()
    assert browser.ask(f"{fold}.open")
    assert browser.ask(f"document.activeElement === {fold}.querySelector('summary')")
    top = browser.ask(f"{fold}.getBoundingClientRect().top")
    assert -1 <= top < 900
