"""The lab's page: what is drawn of the seeds, what is said of them, and how it looks and works."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import random
import re
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")

from browser import needs_chromium
from normkit.lab.claim import Axes, Claim, Field, Measured, Number, Series
from normkit.lab.claims import TOPICS
from normkit.lab.drawing import charts
from normkit.lab.origin import unlike
from normkit.lab.page import render
from normkit.lab.results import Record
from normkit.lab.verdicts import judge
from normkit.report import Heat
from normkit.report.charts import chart_data, heat_data
from normkit.report.thinning import MOST, thinned
from normkit.writing import write_whole
from test_report import HOSTILE, loads
from test_report import chart_data as data_of

NAN, INF = math.nan, math.inf
AXES = Axes("Loss", "steps", "nats")
MACHINE = {"cpu": "A processor", "cores": 2, "memory_gib": 16.0, "system": "Linux 6"}
VERSIONS = {"python": "3.11.7", "normkit": "0.1.0"}


NUMBERS = (Number("n", "a number", at_least=1.0),)


def claim(*axes, name="faster", numbers=NUMBERS, **more):
    return Claim(
        name=name, title=f"Title of {name}", sentence="It is so.", source="Somebody 2015",
        experiment="We try it.", numbers=numbers, charts=axes,
        measure=lambda _: Measured({}), **more,
    )  # fmt: skip


def record(seed, series=(), fields=(), name="faster", numbers=None, **more):
    return Record(
        name, seed, "digits", False, numbers or {"n": 2.0}, tuple(series), tuple(fields),
        **{"seconds": 1.5, "machine": MACHINE, "versions": VERSIONS, "commit": "abc", **more},
    )  # fmt: skip


def drawn(axes, *seeds):
    """The chart of these seeds; each is the (x, y) of one line, or its series."""
    records = [
        record(i, [Series(axes.heading, "a", *s)] if isinstance(s, tuple) else s)
        for i, s in enumerate(seeds)
    ]
    [found] = charts(judge(claim(axes), records))
    return found


# --- seeds to lines -------------------------------------------------------------------------------


def test_seeds_of_one_x_are_a_median_in_a_band():
    x = [0.0, 1.0, 2.0]
    chart = drawn(AXES, (x, [1.0, 5.0, 9.0]), (x, [3.0, 4.0, 0.0]), (x, [2.0, 6.0, 1.0]))
    [line] = chart.lines
    assert line.y == [2.0, 5.0, 1.0]
    assert line.low == [1.0, 4.0, 0.0]
    assert line.high == [3.0, 6.0, 9.0]
    assert not line.thin
    assert "medians of 3 seeds" in chart.note


def test_the_median_of_two_seeds_is_halfway():
    [line] = drawn(AXES, ([0.0, 1.0], [1.0, 2.0]), ([0.0, 1.0], [2.0, 8.0])).lines
    assert line.y == [1.5, 5.0]


@pytest.mark.parametrize("other", [[0.0, 1.0], [0.0, 1.0, 3.0], [0.0, NAN, 2.0], [0.0, INF, 2.0]])
def test_seeds_of_other_x_are_thin_lines(other):
    first = ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    chart = drawn(AXES, first, (other, [float(v) for v in range(len(other))]))
    assert [line.thin for line in chart.lines] == [True, True]
    assert [line.low for line in chart.lines] == [(), ()]
    assert len({(line.colour, line.symbol, line.dashed) for line in chart.lines}) == 1
    assert "A thin line for each of 2 seeds." in chart.note


def test_an_unknown_x_leaves_its_point_out_and_is_counted():
    chart = drawn(AXES, ([0.0, NAN, INF, 3.0], [1.0, 2.0, 3.0, 4.0]))
    assert chart_data(chart)["drawn"]["lines"][0]["x"] == [0.0, None, None, 3.0]
    assert "Not drawn, being not finite: 2 points." in chart.note


def test_one_seed_is_a_plain_line():
    chart = drawn(replace(AXES, note="Words."), ([0.0, 1.0], [1.0, 2.0]))
    [line] = chart.lines
    assert (line.thin, line.low, chart.note) == (False, (), "Words.")


def test_values_that_are_not_finite_are_gaps():
    x = [0.0, 1.0, 2.0]
    chart = drawn(AXES, (x, [1.0, NAN, 3.0]), (x, [2.0, INF, 5.0]))
    [line] = chart_data(chart)["drawn"]["lines"]  # both have the gap: a band with it
    assert line["y"] == [1.5, None, 4.0]
    assert line["low"] == [1.0, None, 3.0]
    assert line["high"] == [2.0, None, 5.0]
    assert "2 points" in chart.note


def test_a_seed_that_alone_diverged_is_seen_to_do_so():
    x = [0.0, 1.0, 2.0]
    chart = drawn(AXES, (x, [1.0, 2.0, 3.0]), (x, [1.0, NAN, NAN]), (x, [1.0, 2.0, 4.0]))
    lines = chart_data(chart)["drawn"]["lines"]
    assert [line["y"] for line in lines] == [[1.0, 2.0, 3.0], [1.0, None, None], [1.0, 2.0, 4.0]]


def test_zero_has_no_place_on_a_logarithmic_axis():
    x = [0.0, 1.0, 10.0]
    axes = replace(AXES, log_x=True, log_y=True)
    chart = drawn(axes, (x, [1.0, 0.0, 3.0]), (x, [1.0, 0.5, 3.0]))
    lines = chart_data(chart)["drawn"]["lines"]
    assert [line["x"] for line in lines] == [[None, 1.0, 10.0]] * 2
    assert [line["y"] for line in lines] == [[1.0, None, 3.0], [1.0, 0.5, 3.0]]
    assert "Not drawn, being zero, negative or not finite: 3 points." in chart.note
    plain = drawn(AXES, (x, [1.0, 0.0, 3.0]), (x, [1.0, 0.5, 3.0]))
    assert len(plain.lines) == 1
    assert "Not drawn" not in plain.note


def test_points_are_those_of_all_seeds():
    chart = drawn(replace(AXES, points=True), ([0.0], [1.0]), ([0.0], [2.0]))
    assert chart.points
    assert [line.y for line in chart.lines] == [[1.0], [2.0]]


def test_lines_are_told_apart_by_more_than_colour_and_known_ones_look_alike_everywhere():
    names = [f"line {i}" for i in range(12)]
    many = drawn(AXES, [Series("Loss", name, [0.0], [1.0]) for name in names])
    assert len({(line.colour, line.symbol) for line in many.lines}) == 12
    few = drawn(AXES, [Series("Loss", name, [0.0], [1.0]) for name in ("x", "no norm", "y")])
    assert [line.colour for line in few.lines] == [0, 1, 2]
    assert {key["name"] for key in chart_data(few)["legend"]} == {"x", "no norm", "y"}


def test_a_map_is_that_of_the_first_seed():
    def field(name, value):
        return Field("Loss", name, [0.0, 1.0], [0.0, 1.0, 2.0], [[value, 1.0]] * 3)

    seeds = [record(i, fields=[field("a", i + 2.0), field("b", NAN)]) for i in (1, 0)]
    [heat] = charts(judge(claim(AXES), seeds))
    assert isinstance(heat, Heat)
    assert [grid.name for grid in heat.grids] == ["a", "b"]
    assert heat.note == "Seed 0 alone. Not drawn, being not finite: 3 points."
    data = heat_data(heat)
    assert data["drawn"][0]["z"] == [[2.0, 1.0]] * 3
    assert data["drawn"][1]["z"] == [[None, 1.0]] * 3
    assert [one["ends"] for one in data["drawn"]] == [[1.0, 2.0]] * 2  # one scale for both
    assert data["ticks"][0] == ("0.0", "1.0")


def test_a_map_of_many_decades_is_coloured_by_logarithms():
    z = [[1e-3, 1e2]]
    [heat] = charts(
        judge(claim(AXES), [record(0, fields=[Field("Loss", "a", [0.0, 1.0], [0.0], z)])])
    )
    assert heat.log_z
    [data] = heat_data(heat)["drawn"]
    assert data["ends"] == pytest.approx([-3, 2], abs=0.11)


# --- thinning -------------------------------------------------------------------------------------


def test_a_long_line_keeps_its_ends_its_peaks_and_its_gaps():
    rng = random.Random(0)
    y = [rng.random() for _ in range(5000)]
    y[777], y[778], y[3001] = 9.0, -9.0, NAN
    kept = thinned(range(5000), y)
    assert len(kept) <= MOST
    assert {0, 777, 778, 3001, 4999} <= set(kept)
    assert kept == sorted(kept)


def test_a_long_band_keeps_the_peaks_of_its_edges():
    x = list(range(3000))
    low, high = [-1.0] * 3000, [1.0] * 3000
    low[1234], high[2345] = -5.0, 5.0
    chart = drawn(AXES, (x, low), (x, high))
    [line] = chart.lines
    assert len(line.x) <= MOST
    assert (min(line.low), max(line.high)) == (-5.0, 5.0)
    assert line.y[line.x.index(1234)] == -2.0
    assert "all peaks among them" in chart.note


def test_a_logarithmic_axis_keeps_the_points_of_its_left_half():
    x = [float(i) for i in range(1, 10_001)]
    y = [math.sin(v) for v in x]
    early = [sum(i < 100 for i in thinned(x, y, log_x=log)) for log in (False, True)]
    assert early[0] < 10
    assert early[1] > 50


def test_a_line_that_turns_back_is_thinned_along_its_way():
    turns = [math.cos(i / 50) for i in range(2000)]
    kept = thinned(turns, turns)
    assert len(kept) <= MOST
    assert max(b - a for a, b in itertools.pairwise(kept)) < 60


def test_short_lines_stay_whole():
    assert thinned([0.0] * MOST, [1.0] * MOST) == list(range(MOST))


# --- what the page says ---------------------------------------------------------------------------


def known_claims():
    """Those that are written."""
    for name in (name for names in TOPICS.values() for name in names):
        if importlib.util.find_spec(f"normkit.lab.claims.{name}"):
            module = importlib.import_module(f"normkit.lab.claims.{name}")
            yield from [module.CLAIM] if hasattr(module, "CLAIM") else []


def synthetic(one, seed, good=True, length=40):
    """A record such as the claim's experiment would give."""
    rng = random.Random(f"{one.name} {seed}")
    numbers, series = {}, []
    for number in one.numbers:
        low, high = number.at_least, number.at_most
        if low is not None and high is not None:
            value = (low + high) / 2 if good else 2 * high + 1
        elif low is not None:
            value = low + (1 + rng.random()) * (1 if good else -1)
        else:
            value = (high or 0.0) * (0.3 + rng.random() / 2) if good else (high or 0.0) * 2 + 1
        numbers[number.name] = value
    for axes in one.charts:
        for name in ("batch norm", "no norm", "something else"):
            x = [10 ** (i / length) if axes.log_x else float(i) for i in range(length)]
            y = [0.1 + rng.random() + i / length for i in range(length)]
            series.append(Series(axes.heading, name, x, y))
    return record(seed, series, name=one.name, numbers=numbers)


def test_the_score_counts_and_every_claim_leads_to_its_card():
    names = ("faster", "learning_rates", "saturating", "stable_inputs", "undo")
    values = (2.0, 0.0, 2.0, 2.0, None)
    seeds = (3, 3, 3, 2, 0)
    judged = []
    for name, value, count in zip(names, values, seeds, strict=True):
        numbers = (Number("n", "a number", at_least=None if name == "saturating" else 1.0),)
        found = [record(i, name=name, numbers={"n": value}) for i in range(count)]
        judged.append(judge(claim(name=name, numbers=numbers), found))
    text = render(judged)
    board = text[text.index('class="board"') : text.index('class="cards"')]
    counts = re.findall(r'class="number">(\d+)</span>.*?</svg> ([^<]+)</span>', board)
    assert counts == [("1", "reproduced"), ("1", "not reproduced"), ("1", "reported"),
                      ("1", "first look"), ("1", "not run")]  # fmt: skip
    assert "Of 2 claims with a criterion, 1 reproduced on this machine and 1 did not." in text
    tiles = re.findall(
        r'<li class="level-(\w+)" .*?href="#at-claim-(\w+)".*?"words">([^<]+)<', board
    )
    assert tiles == list(zip(("yes", "no", "fact", "glance", "absent"), names,
                             ("reproduced", "not reproduced", "reported", "first look", "not run"),
                             strict=True))  # fmt: skip
    assert all(f'id="at-claim-{name}"' in text for name in names)
    assert "<h2>Learning with batch norm</h2>" in text
    assert "Not reproduced: the criterion holds in 0 of 3 seeds" in text


def test_a_card_has_the_figures_the_sources_and_the_command():
    numbers = (Number("n", "steps", "steps", paper="about 7", at_least=1.0), Number("m", "more"))
    one = claim(numbers=numbers, paper="A table.", caveat="It depends.")
    found = [record(i, numbers={"n": i + 0.5, "m": 1.0}) for i in range(3)]
    text = render([judge(one, found)])
    cells = re.findall(r"<td.*?>(.*?)</td>", text[: text.index("Where it comes from")])
    assert cells[:5] == ["steps", "about 7", "1.5 steps (0.5 steps to 2.5 steps)",
                         "at least 1 steps", "2 of 3 seeds"]  # fmt: skip
    assert cells[5:] == ["more", "", "1", "", ""]
    for words in ("It is so.", "Somebody 2015", "We try it.", "A table.", "It depends.",
                  "normkit lab run faster --out out/again<"):  # fmt: skip
        assert words in text
    elsewhere = [replace(one, data="mnist") for one in found]
    assert "normkit lab run faster --data mnist --out out/again<" in render([judge(one, elsewhere)])


def test_results_that_were_not_made_alike_are_named():
    found = [record(0), record(1, commit="def", time="2026-01-01"),
             record(2, machine={"cpu": "Another"})]  # fmt: skip
    judged = judge(claim(), found)
    assert unlike([judge(claim(), found[:1])]) == []
    assert unlike([judged]) == [
        "The results come from 2 different commits: abc (2); def (1).",
        (
            "The results come from 2 different machines: "
            "A processor, 2 cores, Linux 6, 16 GiB (2); Another (1)."
        ),
    ]
    text = render([judged], notes=["line 7 is damaged"])
    assert "2 different commits" in text
    assert "line 7 is damaged" in text
    assert "4 s in all" in text
    assert "<td>0; 1; 2</td>" in text


def test_quick_runs_are_a_first_look():
    judged = judge(claim(), [replace(record(i), quick=True) for i in range(3)])
    text = render([judged])
    assert "a first look, and no verdict" in text
    assert "No claim has a verdict yet." in text


def test_what_another_version_drew_is_named():
    text = render([judge(claim(), [record(0, [Series("Old", "a", [0.0], [1.0])])])])
    assert "being of another version of this claim: Old." in text


def test_words_are_escaped_and_nothing_is_loaded():
    axes = Axes(HOSTILE, HOSTILE, HOSTILE, note=HOSTILE)
    numbers = (Number("n", HOSTILE, HOSTILE, paper=HOSTILE, at_least=1.0),)
    one = replace(claim(axes, numbers=numbers), title=HOSTILE, sentence=HOSTILE, caveat=HOSTILE)
    text = render(
        [judge(one, [record(0, [Series(HOSTILE, HOSTILE, [0.0], [1.0])])])],
        title=HOSTILE, notes=[HOSTILE],
    )  # fmt: skip
    assert "alert('x')" not in text
    parsed = loads(text)
    assert parsed.found == []
    assert "default-src 'none'" in parsed.policy


def test_a_page_without_claims_is_one():
    assert "No claim has a verdict yet." in render([])


def test_every_claim_has_its_card_and_its_charts():
    claims = list(known_claims())
    judged = [judge(one, [synthetic(one, seed) for seed in range(3)]) for one in claims]
    assert {one.status for one in judged} <= {"reproduced", "reported"}
    text = render(judged)
    assert text.count('<article class="card') == len(claims)
    assert len(data_of(text)) == sum(len(one.charts) for one in claims)


# --- in a browser ---------------------------------------------------------------------------------

KINDS = (
    Axes("A band", "steps", "share right", y_range=(0, 1.02)),
    Axes("Thin lines", "learning rate", "loss (nats)", log_x=True, log_y=True),
    Axes("Points", "margin of the network, in no unit at all", "accuracy (%)", points=True),
    Axes("Maps", "first direction", "second direction"),
)


def of_all_kinds(seed):
    """Series and fields for each kind of chart."""
    rng = random.Random(seed)
    steps = [float(i) for i in range(0, 2000, 4)]
    series = [
        Series("A band", name, steps, [1 - math.exp(-s / t) + rng.gauss(0, 0.02) for s in steps])
        for name, t in (("batch norm", 200), ("no norm", 600))
    ]
    for name in ("batch norm", "no norm", "layer norm", "instance norm", "weight norm, scaled"):
        rates = [10 ** (-3 + i / 4 + rng.random() / 9) for i in range(14)]
        shift = rng.random() + len(name) / 5
        losses = [10 ** (-2 + (math.log10(r) + shift) ** 2) for r in rates]
        series.append(Series("Thin lines", name, rates, [*losses[:-1], INF if seed else 0.0]))
    cloud = [rng.gauss(0, 1) for _ in range(30)]
    series += [
        Series("Points", name, cloud, [50 + 9 * c * k + rng.gauss(0, 5) for c in cloud])
        for name, k in (("batch norm", 1), ("no norm", -1))
    ]
    grid = [i / 10 - 1 for i in range(21)]
    fields = [
        Field("Maps", name, grid, grid, [[1 + (k * x * x + y * y - x * y) * 9 for x in grid]
                                         for y in grid])
        for name, k in (("batch norm", 1), ("no norm", 4))
    ]  # fmt: skip
    return series, fields


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """A page of many claims, the first with a chart of every kind."""
    first = claim(*KINDS, paper="A curve, no figure.", caveat="It depends on the data.")
    judged = [judge(first, [record(seed, *of_all_kinds(seed)) for seed in range(3)])]
    judged += [
        judge(one, [synthetic(one, seed, good=i % 3 > 0) for seed in range(i % 5 and 3)])
        for i, one in enumerate(list(known_claims())[1:])
    ]
    path = tmp_path_factory.mktemp("lab") / "lab.html"
    write_whole(path, render(judged, notes=["out/lab/results.jsonl:7: damaged"]))
    return path


def at_first_chart(browser, sheet, **more):
    browser.problems.clear()
    browser.open(sheet, **more)
    browser.ask("document.querySelector('.plot').scrollIntoView()")
    assert browser.until(IN_SIGHT_IS_DRAWN)
    browser.settle()


IN_SIGHT_IS_DRAWN = """[...document.querySelectorAll('.plot')].every(plot => {
    const box = plot.getBoundingClientRect();
    return box.bottom < 0 || box.top > innerHeight || plot.classList.contains('js-plotly-plot');
})"""
RANGE = "document.querySelector('.plot').layout.{}axis.range"


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_fits_and_draws_everything_without_an_error(browser, sheet, width, scheme):
    browser.problems.clear()
    browser.open(sheet, width, prefers_color_scheme=scheme)
    browser.settle()
    total = browser.ask("document.querySelectorAll('.plot').length")
    assert browser.ask("document.querySelectorAll('.js-plotly-plot').length") < total / 2
    step = 600
    for top in range(0, browser.ask("document.documentElement.scrollHeight"), step):
        browser.ask(f"scrollTo(0, {top})")
        assert browser.until(IN_SIGHT_IS_DRAWN), f"a chart in sight at {top} was not drawn"
    assert browser.ask("document.querySelectorAll('.js-plotly-plot').length") == total
    assert browser.overflow() <= 0
    wide = "[...document.querySelectorAll('.plot')].filter(p => p.scrollWidth > p.clientWidth + 1)"
    assert browser.ask(f"{wide}.length") == 0
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_every_kind_of_chart_is_drawn(browser, sheet):
    at_first_chart(browser, sheet)
    kinds = browser.ask(
        "[...document.querySelectorAll('#at-claim-faster .plot')].map("
        "p => p.data.map(t => t.type + (t.fill === 'toself' ? ' band' : ' ' + t.mode)))"
    )
    band, points = "scatter band", "scatter markers"
    assert kinds[0] == [band] * 2 + ["scatter lines+markers"] * 2
    assert kinds[1] == ["scatter lines+markers"] * 15
    assert kinds[2] == [points] * 6
    assert [one[0].split()[0] for one in kinds[3:]] == ["heatmap", "heatmap"]
    assert browser.ask("document.querySelectorAll('#at-claim-faster .plot image').length") == 2


@pytest.mark.browser
@needs_chromium
def test_charts_zoom_and_move_by_keys(browser, sheet):
    at_first_chart(browser, sheet)
    across, up = RANGE.format("x"), RANGE.format("y")
    home = browser.ask(across), browser.ask(up)
    browser.ask("document.querySelector('.plot').focus()")
    top = browser.ask("scrollY")
    browser.press("+")
    browser.settle()
    low, high = browser.ask(across)
    assert high - low == pytest.approx(0.7 * (home[0][1] - home[0][0]))
    browser.press("ArrowRight")
    browser.settle()
    moved = browser.ask(across)
    assert moved[0] - low == pytest.approx((high - low) / 5)
    assert moved[1] - moved[0] == pytest.approx(high - low)
    browser.press("-")
    browser.press("0")
    browser.settle()
    assert browser.ask(across) == pytest.approx(home[0])
    assert browser.ask(up) == pytest.approx(home[1])
    assert browser.ask("scrollY") == top
    assert browser.problems == []


def middle_of_first_chart(browser):
    box = "document.querySelector('.plot').getBoundingClientRect()"
    left, top, width, height = (browser.ask(f"{box}.{k}") for k in ("x", "y", "width", "height"))
    return left + width / 2, top + height / 2


@pytest.mark.browser
@needs_chromium
def test_a_drag_zooms_and_a_double_click_shows_all_again(browser, sheet):
    at_first_chart(browser, sheet)
    home = [browser.ask(RANGE.format(axis)) for axis in "xy"]
    x, y = middle_of_first_chart(browser)
    browser.drag((x - 60, y - 40), (x + 60, y + 40))
    browser.settle(600)
    (low, high), (bottom, top) = (browser.ask(RANGE.format(axis)) for axis in "xy")
    assert home[0][0] < low < high < home[0][1]
    assert home[1][0] < bottom < top < home[1][1]
    browser.double_click((x, y))
    browser.settle(600)
    assert [browser.ask(RANGE.format(axis)) for axis in "xy"] == [pytest.approx(r) for r in home]
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_a_finger_on_a_chart_scrolls_the_page(browser, sheet):
    browser.touch(True)
    try:
        at_first_chart(browser, sheet, width=390)
        home, top = browser.ask(RANGE.format("x")), browser.ask("scrollY")
        assert browser.ask("matchMedia('(pointer: coarse)').matches")
        browser.swipe(middle_of_first_chart(browser), up=300)
        assert browser.until(f"scrollY - {top} > 200")
        assert browser.ask(RANGE.format("x")) == home
        browser.ask("document.querySelector('.tools [data-act=in]').click()")
        browser.settle()
        assert browser.ask(RANGE.format("x")) != home
    finally:
        browser.touch(False)


@pytest.mark.browser
@needs_chromium
def test_arrows_scroll_the_page_where_nothing_is_zoomed(browser, sheet):
    at_first_chart(browser, sheet)
    browser.ask("document.querySelector('.plot').focus()")
    home, top = browser.ask(RANGE.format("y")), browser.ask("scrollY")
    browser.press("ArrowDown")
    assert browser.until(f"scrollY > {top}")
    assert browser.ask(RANGE.format("y")) == home


@pytest.mark.browser
@needs_chromium
def test_buttons_zoom_and_hide_lines_and_a_zoom_stays_when_the_light_changes(browser, sheet):
    at_first_chart(browser, sheet, prefers_color_scheme="light")
    for act in ("in", "in", "out"):
        browser.ask(f"document.querySelector('.tools [data-act={act}]').click()")
    zoomed = browser.ask(RANGE.format("x"))
    browser.ask("document.querySelector('.key').focus()")
    browser.press("Enter")
    browser.settle()
    assert browser.ask("document.querySelector('.key').ariaPressed") == "false"
    shown = "document.querySelector('.plot').data.filter(t => t.visible === true).length"
    assert browser.ask(shown) == 2  # the other line and its band
    ink = "document.querySelector('.plot').layout.font.color"
    light = browser.ask(ink)
    browser.emulate(prefers_color_scheme="dark")
    browser.settle()
    assert browser.ask(ink) != light
    assert browser.ask(RANGE.format("x")) == pytest.approx(zoomed)
    assert browser.ask(shown) == 2
    browser.press("Enter")
    browser.ask("document.querySelector('.tools [data-act=home]').click()")
    browser.settle()
    assert browser.ask(shown) == 4
    assert browser.ask(RANGE.format("x")) != pytest.approx(zoomed)


@pytest.mark.browser
@needs_chromium
def test_a_score_shows_the_claims_of_its_kind(browser, sheet):
    browser.open(sheet)
    browser.settle()
    shown = "[...document.querySelectorAll('{}')].filter(e => e.offsetParent)"
    browser.ask("document.querySelector('.scores [data-mark=no] button').click()")
    for what in (".card", ".tiles li"):
        marks = browser.ask(f"{shown.format(what)}.map(e => e.dataset.mark)")
        assert marks
        assert set(marks) == {"no"}
    assert browser.ask("document.querySelector('.shown').textContent").startswith("Only ")
    browser.ask("location.hash = '#at-claim-faster'")  # a link to a hidden one shows it
    browser.settle()
    assert browser.ask(f"{shown.format('#at-claim-faster')}.length") == 1
    browser.ask("document.querySelector('.scores [data-mark=no] button').click()")
    browser.ask("document.querySelector('.shown button').click()")
    total = browser.ask("document.querySelectorAll('.card').length")
    assert browser.ask(f"{shown.format('.card')}.length") == total
    assert browser.ask("document.querySelector('.shown').textContent") == ""


@pytest.mark.browser
@needs_chromium
def test_a_tile_leads_to_its_card_and_back(browser, sheet):
    browser.open(sheet)
    browser.ask("document.querySelectorAll('.tiles a')[1].click()")
    browser.settle()
    card = browser.ask("location.hash.slice(1)")
    assert abs(browser.ask(f"document.getElementById('{card}').getBoundingClientRect().top")) < 40
    browser.ask(f"document.getElementById('{card}').querySelector('.back a').click()")
    browser.settle()
    assert browser.ask("document.querySelector('.board').getBoundingClientRect().top") >= -5


@pytest.mark.browser
@needs_chromium
def test_print_has_every_chart_on_light_paper(browser, sheet, tmp_path):
    browser.open(sheet, prefers_color_scheme="dark")
    browser.settle()
    browser.emulate("print", prefers_color_scheme="dark")
    browser.settle()
    total = browser.ask("document.querySelectorAll('.plot').length")
    assert browser.ask("document.querySelectorAll('.js-plotly-plot').length") == total
    assert browser.ask("document.querySelector('.plot').layout.paper_bgcolor") == "#ffffff"
    assert browser.ask("document.querySelector('.plot .main-svg').clientWidth") == 608
    tools = "getComputedStyle(document.querySelector('.tools')).display"
    assert browser.ask(tools) == "none"
    browser.emulate(prefers_color_scheme="dark")
    browser.settle()
    assert browser.ask(tools) == "flex"
    width = browser.ask("document.querySelector('.plot').clientWidth")
    assert browser.ask("document.querySelector('.plot .main-svg').clientWidth") == width
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 100_000
