"""The HTML pages: what they say is escaped, what they draw is whole, and they load nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from browser import needs_chromium
from normkit.report import (
    LEVELS,
    Bars,
    Chart,
    Curve,
    Diagram,
    DiagramNode,
    Dots,
    Fold,
    Folds,
    Line,
    Notice,
    Notices,
    Place,
    Plot,
    Plots,
    Table,
    Text,
    Verdict,
    Widget,
    page,
)
from normkit.report.diagram import pieces
from normkit.report.layered import columns, parts, regions, segments
from normkit.report.plots import drawn
from normkit.report.scales import scale
from normkit.writing import write_whole

HOSTILE = "</script><script>alert('x')</script> & \"quotes\""


class Loads(HTMLParser):
    """Collects whatever would make a browser ask for something, and the elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attributes)
        if tag in {"link", "iframe", "object", "embed", "base"}:
            self.found.append((tag, str(named)))
        for name in ("src", "href", "srcset", "data", "action", "background", "poster"):
            if named.get(name) and not named[name].startswith("#"):
                self.found.append((tag, f"{name}={named[name]}"))
        if named.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = named["content"] or ""


def loads(text: str) -> Loads:
    parser = Loads()
    parser.feed(text)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    parser.found += [("style", hit) for css in styles for hit in re.findall(r"@import|url\(", css)]
    return parser


def chart_data(text: str) -> list[dict]:
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return [json.loads(block) for block in blocks]


LINE = Line(HOSTILE, [0, 1, 2, 3], [1.0, float("nan"), float("inf"), 0.0], colour=1, dashed=True)
CHART = Chart(HOSTILE, HOSTILE, HOSTILE, [LINE], log_y=True, y_range=(0.1, 10), note=HOSTILE)
PLOTS = Plots(
    HOSTILE,
    [
        Plot(HOSTILE, HOSTILE, HOSTILE, Dots([1, 2, 5], [1, 3, -1]), log_y=True, note=HOSTILE),
        Plot(HOSTILE, HOSTILE, HOSTILE, Dots([0.1, 2], [0.2, 1]), diagonal=True),
        Plot(HOSTILE, HOSTILE, HOSTILE, Curve([1, 2, 3], [1e-4, 1e4, 1])),
        Plot(HOSTILE, HOSTILE, HOSTILE, Bars([-1.0, 0.0, 1.0], [3.0, 1.0])),
        Plot(HOSTILE, HOSTILE, HOSTILE, Dots([math.nan], [1.0])),
    ],
    note=HOSTILE,
)
PLAIN = [
    Text(HOSTILE, [HOSTILE]),
    Table(HOSTILE, ["a", HOSTILE], [["1", HOSTILE]], frozenset({"a"}), note=HOSTILE),
]


def parts_of_all_kinds() -> list:
    nodes = [
        DiagramNode(HOSTILE, HOSTILE, HOSTILE),
        *(DiagramNode(level, "1", f"a {level} {HOSTILE}", level, "fold-1") for level in LEVELS),
    ]
    edges = [*itertools.pairwise([HOSTILE, *LEVELS]), (HOSTILE, "error")]
    places = [Place(HOSTILE, HOSTILE, f"fold-{i}", HOSTILE) for i in range(3)]
    return [
        Verdict("error", HOSTILE, [("error", 1, HOSTILE), ("good", 0, HOSTILE)], [HOSTILE]),
        Notices(
            HOSTILE,
            [Notice(level, HOSTILE, places, [HOSTILE], HOSTILE) for level in LEVELS],
            note=HOSTILE,
            most=2,
        ),
        Diagram(HOSTILE, nodes, edges, {"good": HOSTILE}, HOSTILE, anchor="map"),
        Folds(
            HOSTILE,
            [Fold(HOSTILE, HOSTILE, [*PLAIN, PLOTS], "warning", f"fold-{i}") for i in range(2)],
            note=HOSTILE,
        ),
    ]


def sample() -> str:
    return page(HOSTILE, [*PLAIN, CHART], summary=HOSTILE)


def whole() -> str:
    return page(HOSTILE, [*parts_of_all_kinds(), *PLAIN, CHART, PLOTS], summary=HOSTILE)


def test_words_are_escaped():
    text = sample()
    assert "alert('x')" not in text
    assert text.count("alert(") > 10  # every one of them, escaped
    assert loads(text).tags.count("script") == 3  # the data, the library, the drawing


def test_words_are_escaped_in_every_kind_of_section():
    text = whole()
    assert "alert('x')" not in text
    assert text.count("alert(") > 60
    assert loads(text).tags.count("script") == 4


@pytest.mark.parametrize("text", [sample, whole])
def test_page_loads_nothing(text):
    parsed = loads(text())
    assert parsed.found == []
    assert "default-src 'none'" in parsed.policy
    assert "http" not in parsed.policy


def test_the_search_for_loads_finds_them():
    planted = '<style>@import "a"; b { background: url(c) }</style><img src="d"><link href="e">'
    assert len(loads(planted).found) == 5


def test_chart_leaves_gaps_where_nothing_can_be_drawn():
    [data] = chart_data(sample())
    assert data["log"] is True
    assert data["range"] == [0.1, 10]
    [line] = data["lines"]
    assert line["name"] == HOSTILE
    assert line["y"] == [1.0, None, None, None]
    assert (line["colour"], line["dashed"]) == (1, True)


def test_page_without_a_chart_is_small():
    text = page("Words", [Text("", ["Only words."])])
    assert len(text) < 10_000
    assert "<script" not in text
    assert "<h2>" not in text


def test_widgets_bring_their_own_markup_style_and_script():
    one = Widget("<b id='w'>&amp;</b>", ".w { margin: 0 }", "let w = 1 < 2;")
    text = page("W", [one, Folds("", [Fold("f", "", [one])])])
    assert text.count("<b id='w'>&amp;</b>") == 2
    assert text.count(".w { margin: 0 }") == 1
    assert text.count("let w = 1 < 2;") == 1
    assert "<script" not in page("W", [Widget("<b>only words</b>")])


def test_sections_say_what_is_wrong_with_them():
    with pytest.raises(ValueError, match=r"row 1 of the table 'T' has 1 cells; expected 2"):
        Table("T", ["a", "b"], [["1", "2"], ["3"]])
    with pytest.raises(ValueError, match=r"numeric names \['c'\].*columns are \['a', 'b'\]"):
        Table("T", ["a", "b"], [], numeric=frozenset({"c"}))
    with pytest.raises(ValueError, match=r"the line 'L' has 2 values of x and 1 of y"):
        Line("L", [1, 2], [1])
    with pytest.raises(ValueError, match=r"colour 9; expected 0 to 4"):
        Line("L", [], [], colour=9)


def test_a_file_written_whole_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "page.html"
    write_whole(path, "old")
    write_whole(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_writing_interrupted_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_whole(path, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


# --- folds, notices, links ------------------------------------------------------------------------


def test_links_lead_to_folds_of_the_page_and_to_nothing_else():
    text = whole()
    wanted = set(re.findall(r'href="#at-([^"]+)"', text))
    there = re.findall(r'id="at-([^"]+)"', text)
    assert wanted == {"fold-0", "fold-1", "map"}  # fold-2 is not on the page
    assert sorted(there) == ["fold-0", "fold-1", "map"]


def test_two_parts_of_one_anchor_are_refused():
    folds = [Fold("a", "", [], anchor="x"), Fold("b", "", [Folds("", [])], anchor="x")]
    with pytest.raises(ValueError, match="two parts of the page have the anchor 'x'"):
        page("T", [Folds("F", [folds[0]]), Folds("G", [Fold("c", "", [Folds("", folds[1:])])])])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Verdict("bad", "w"),
        lambda: Verdict("good", "w", [("bad", 1, "x")]),
        lambda: Notice("bad", "t", []),
        lambda: Fold("t", "w", [], level="bad"),
        lambda: DiagramNode("a", "b", "c", "bad"),
    ],
)
def test_levels_are_known_ones(make):
    with pytest.raises(
        ValueError, match=r"level 'bad'; expected one of good, info, warning, error"
    ):
        make()


def test_places_beyond_the_first_are_folded_away():
    places = [Place(f"layer {i}", "w") for i in range(9)]
    text = page("T", [Notices("N", [Notice("info", "t", places)], most=4)])
    before, after = text.split('<details class="more">')
    assert before.count("layer ") == 4
    assert after.count("layer ") == 5
    assert "and 5 more" in after


def test_headings_go_one_level_down_in_a_fold():
    inner = Folds("inner", [Fold("t", "w", [Text("innermost", [])])])
    text = page("T", [Folds("outer", [Fold("t", "w", [inner])])])
    assert "<h2>outer</h2>" in text
    assert "<h3>inner</h3>" in text
    assert "<h4>innermost</h4>" in text


# --- plots ----------------------------------------------------------------------------------------


def dots_of(path):
    """The places of strokes of no length, each given relative to the one before."""
    steps = re.findall(r"m(-?\d+) (-?\d+)h0", path)
    assert "".join(f"m{x} {y}h0" for x, y in steps) == path
    return list(itertools.accumulate(((int(x), int(y)) for x, y in steps),
                                     lambda a, b: (a[0] + b[0], a[1] + b[1])))  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
def test_dots_lie_where_the_ticks_say(log):
    x, y = [0.02, 0.5, 7.0, 90.0], [3.0, 0.4, 11.0, 0.09]
    data = drawn(Plot("t", "x", "y", Dots(x, y), log_x=log, log_y=log))
    size = math.log10 if log else float
    number = {"10⁻¹": 0.1, "10": 10.0, "1": 1.0, "10⁻²": 0.01, "10²": 100.0}

    def to_pixels(ticks):  # a line through the first and the last tick, apart from the code
        (first, a), (last, b) = [(t[0], number.get(t[-1]) or float(t[-1])) for t in
                                 (ticks[0], ticks[-1])]  # fmt: skip
        return lambda v: first + (size(v) - size(a)) * (last - first) / (size(b) - size(a))

    across, up = to_pixels(data["x_ticks"]), to_pixels(data["y_ticks"])
    expected = sorted((across(a), up(b)) for a, b in zip(x, y, strict=True))
    assert len(expected) == len(dots_of(data["path"]))
    for found, (a, b) in zip(dots_of(data["path"]), expected, strict=True):
        assert found == pytest.approx((a, b), abs=1.5)


def test_the_diagonal_is_where_x_equals_y():
    data = drawn(Plot("t", "x", "y", Dots([1, 2, 9], [1, 2, 9]), diagonal=True))
    x0, y0, x1, y1 = map(float, re.findall(r"-?[\d.]+", data["diagonal"]))
    for x, y in dots_of(data["path"]):
        assert y == pytest.approx(y0 + (x - x0) * (y1 - y0) / (x1 - x0), abs=1.0)


def test_what_cannot_be_drawn_is_counted():
    marks = Dots([1, 1, 1, 1, 1, 1], [2.0, 0.0, -1.0, math.nan, math.inf, 3.0])
    log = drawn(Plot("t", "x", "y", marks, log_y=True, note="Words."))
    assert log["note"] == "Words. Not drawn, being zero, negative or not finite: 4."
    assert len(dots_of(log["path"])) == 2
    plain = drawn(Plot("t", "x", "y", marks))
    assert plain["note"] == "Not drawn, being not finite: 2."
    nothing = drawn(Plot("t", "x", "y", Dots([1.0], [math.nan])))
    assert nothing["empty"]
    assert "nothing to draw" in page("T", [PLOTS])


def test_dots_of_one_pixel_are_drawn_once():
    many = [0.704 + i * 1e-6 for i in range(1000)]
    data = drawn(Plot("t", "x", "y", Dots([0.0, *many, 2.0], [0.0, *many, 2.0])))
    assert len(dots_of(data["path"])) == 3


def test_areas_of_bars_are_as_their_heights_say():
    data = drawn(Plot("t", "x", "y", Bars([0.0, 1.0, 3.0, 4.0], [2.0, 4.0, 0.0])))
    ground = float(re.match(r"M[\d.]+ ([\d.]+)", data["path"])[1])
    tops = [ground - float(v) for v in re.findall(r"V([\d.]+)H", data["path"])]
    ends = [float(v) for v in re.findall(r"(?:M|H)([\d.]+)", data["path"])]
    assert tops[1] == pytest.approx(2 * tops[0], abs=0.2)
    assert tops[2] == pytest.approx(0, abs=0.1)
    assert ends[2] - ends[1] == pytest.approx(2 * (ends[1] - ends[0]), abs=0.2)


@given(
    st.lists(st.floats(-1e12, 1e12) | st.floats(), min_size=1, max_size=20),
    st.booleans(),
)
def test_every_axis_holds_its_values_and_tells_its_ticks_apart(values, log):
    axis = scale(values, log)
    drawable = [v for v in values if abs(v) <= 1e300 and (v >= 1e-300 or not log)]
    assert (axis is None) == (not drawable)
    for value in drawable:
        assert -1e-6 <= axis.share(value) <= 1 + 1e-6
    if axis:
        assert 1 <= len(axis.ticks) <= 10
        assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in axis.ticks)
        assert len(set(axis.labels)) == len(axis.labels)


@pytest.mark.parametrize(
    ("values", "log", "labels"),
    [
        ([0, 60], False, ["0", "20", "40", "60"]),
        ([0.05, 3], True, ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        ([1e-9, 1e3], True, ["10⁻⁹", "10⁻⁶", "10⁻³", "1", "10³"]),
        ([-2e-7, 2e-7], False, ["−2e−7", "−1e−7", "0", "1e−7", "2e−7"]),
        ([1000.001, 1000.003], False, ["1000.0010", "1000.0015", "1000.0020", "1000.0025",
                                       "1000.0030"]),
    ],
)  # fmt: skip
def test_labels_of_axes(values, log, labels):
    assert scale(values, log).labels == labels


def test_labels_below_a_plot_do_not_overlap_or_leave_it():
    data = drawn(Plot("t", "x", "y", Dots([1000.001, 1000.003], [0, 1])))
    letters = 5.5  # pixels, at the least
    spans = [(m - letters * len(t) / 2, m + letters * len(t) / 2)
             for _, m, t in data["x_ticks"] if t]  # fmt: skip
    assert len(spans) >= 2
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= data["width"]


def test_plots_say_what_is_wrong_with_them():
    with pytest.raises(ValueError, match="3 values of x and 2 of y; expected as many of each"):
        Plot("t", "x", "y", Dots([1, 2, 3], [1, 2]))
    with pytest.raises(ValueError, match="2 edges and 2 heights; expected one edge more"):
        Plot("t", "x", "y", Bars([1, 2], [1, 2]))
    with pytest.raises(ValueError, match="expected two of a kind"):
        Plot("t", "x", "y", Dots([], []), log_x=True, diagonal=True)


# --- diagrams -------------------------------------------------------------------------------------


def followed(drawn_columns):
    """The edges that the wires of the columns make, and that nothing meets on the way."""
    edges, arriving = set(), {}
    for column in drawn_columns:
        lanes = [lane for _, lane in column.nodes] + [lane for _, lane in column.passing]
        assert len(lanes) == len(set(lanes))  # no two nodes, and no node on a wire
        at = {lane: name for name, lane in column.nodes}
        edges |= {(arriving[a], at[b]) for a, b in column.wires}
        used = {arriving[a] for a, _ in (*column.wires, *column.passing)}
        assert len(used) == column.arriving
        leaving = {lane: at[lane] for lane in column.leaving}
        leaving |= {b: arriving[a] for a, b in column.passing}
        arriving = leaving
    assert not arriving  # nothing goes on after the last column
    return edges


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 24))
    names = [f"n{i}" for i in range(size)]
    pairs = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))
    edges = draw(st.lists(pairs.filter(lambda p: p[0] < p[1]), max_size=40)) if size > 1 else []
    return names, [(names[a], names[b]) for a, b in edges]


@given(graphs())
def test_wires_lead_from_every_node_to_its_users_and_nowhere_else(graph):
    names, edges = graph
    found, members = set(), []
    for part in parts(names, edges):
        own = [edge for edge in edges if edge[0] in part]
        drawn_columns = columns(part, own)
        found |= followed(drawn_columns)
        members += [name for column in drawn_columns for name, _ in column.nodes]
        cut = segments(drawn_columns, 5)
        assert [end for _, end in cut][:-1] == [first for first, _ in cut][1:]
        assert (cut[0][0], cut[-1][1]) == (0, len(drawn_columns))
        assert all(1 <= end - first <= 5 for first, end in cut)
    assert found == set(edges)
    assert sorted(members) == sorted(names)


def test_the_longest_way_is_straight_and_a_line_breaks_where_one_result_goes_on():
    names = ["x", "a", "b", "c", "add", "y"]
    edges = [*itertools.pairwise(names), ("x", "add")]
    found = columns(names, edges)
    assert [column.nodes for column in found] == [[(name, 0)] for name in names]
    assert [column.passing for column in found] == [[], [(0, 1)], [(1, 1)], [(1, 1)], [], []]
    assert segments(found, 9) == [(0, 1), (1, 5), (5, 6)]


def test_rows_of_plain_nodes_are_joined_in_large_diagrams_and_counted():
    names = [f"n{i}" for i in range(30)]
    nodes = [
        DiagramNode(
            name,
            "1" if name == "n20" else "op",
            f"all about {name}",
            "good" if name == "n20" else "",
        )
        for name in names
    ]
    edges = [*itertools.pairwise(names), ("n4", "n10")]
    small = pieces(Diagram("D", nodes, edges, most=30))
    assert sum(len(piece["nodes"]) for piece in small["flows"][0]) == 30
    assert small["note"] == ""
    data = pieces(Diagram("D", nodes, edges, most=29, note="Words."))
    kept = [one["node"] for piece in data["flows"][0] for one in piece["nodes"]]
    # n1 to n19, with the way around n5 to n9 inside; then the marked n20; then n21 to n28
    assert [node.label for node in kept] == ["op", "⋯19", "1", "⋯8", "op"]
    assert kept[3].title == "\n".join(["8 steps:", *(f"all about n{i}" for i in range(21, 29))])
    assert kept[1].title.endswith("all about n12\nand 7 more")
    assert data["note"].startswith("Words. 27 plain steps are drawn as 2")


@given(graphs(), st.data())
def test_a_region_has_one_way_in_and_one_way_out(graph, data):
    names, edges = graph
    plain = set(data.draw(st.lists(st.sampled_from(names))))
    head = regions(names, edges, plain)
    for last in set(head.values()):
        members = {name for name in names if head[name] == last}
        assert len(members) == 1 or members <= plain
        assert last == max(members, key=names.index)
        if len(members) > 1:
            assert len({a for a, b in edges if b in members and a not in members}) == 1
            assert {a for a, b in edges if a in members and b not in members} == {last}
    if not plain:
        assert head == {name: name for name in names}


def test_branches_inside_a_region_are_joined_and_those_around_a_mark_are_not():
    names = ["x", "norm", "a", "b", "c", "sum", "y"]
    edges = [("x", "norm"), ("norm", "a"), ("a", "b"), ("a", "c"), ("b", "sum"), ("c", "sum"),
             ("sum", "y")]  # fmt: skip
    plain = set(names) - {"norm"}
    assert regions(names, edges, plain)["a"] == "sum"
    assert regions(names, edges, plain - {"c"})["a"] == "a"
    assert regions(names, [*edges, ("a", "y")], plain)["a"] == "a"  # two results go on
    assert regions(names, [*edges, ("a", "y")], plain)["b"] == "sum"


def test_parts_that_nothing_joins_are_drawn_below_each_other():
    nodes = [DiagramNode(name, name, name, level) for name, level in
             (("a", ""), ("b", "good"), ("c", "info"), ("w", ""))]  # fmt: skip
    data = pieces(Diagram("D", nodes, [("a", "b")]))
    assert [
        [n["node"].name for piece in flow for n in piece["nodes"]] for flow in data["flows"]
    ] == ([["a", "b"], ["c"]])
    assert data["note"] == "Not drawn, being joined to nothing: 1."
    row = [DiagramNode(f"n{i}", "1", "t", "good") for i in range(5)]
    assert [len(flow) for flow in pieces(Diagram("D", row, []))["flows"]] == [5]  # side by side


def test_nodes_and_their_labels_lie_inside_their_piece():
    rng = random.Random(0)
    names = [f"n{i}" for i in range(60)]
    edges = [*itertools.pairwise(names)]
    edges += [tuple(sorted(rng.sample(range(60), 2))) for _ in range(25)]
    edges = [e if isinstance(e[0], str) else (names[e[0]], names[e[1]]) for e in edges]
    [flow] = pieces(Diagram("D", [DiagramNode(n, "1", n, "good") for n in names], edges))["flows"]
    for piece in flow:
        assert piece["width"] <= 340  # a telephone's, less the margins
        for one in piece["nodes"]:
            assert 11 <= one["y"] <= piece["height"] - 26
            assert 16 <= one["x"] <= piece["width"] - 16


def test_diagrams_say_what_is_wrong_with_them():
    a, b = DiagramNode("a", "", ""), DiagramNode("b", "", "")
    with pytest.raises(ValueError, match="two nodes of the diagram 'D' have one name"):
        Diagram("D", [a, a], [])
    for edge in (("b", "a"), ("a", "a"), ("a", "c")):
        with pytest.raises(ValueError, match=rf"edge from '{edge[0]}' to '{edge[1]}'"):
            Diagram("D", [a, b], [edge])


# --- colours --------------------------------------------------------------------------------------


def luminance(colour):
    """Of sRGB, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_and_marks_stand_out_from_the_paper(scheme):
    style = files("normkit.report").joinpath("page.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for name in ("ink", "faint", *LEVELS, "line-0", "line-1", "line-2", "line-3", "line-4"):
        for ground in ("paper", "band"):
            light, dark = sorted((luminance(colours[name]), luminance(colours[ground])))[::-1]
            least = 4.5 if name in ("ink", "faint", *LEVELS) else 3.0
            assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "whole.html"
    write_whole(path, whole())
    return path


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_page_fits_every_width_without_an_error(browser, sheet, width, scheme):
    browser.problems.clear()
    browser.open(sheet, width, prefers_color_scheme=scheme)
    assert browser.overflow() <= 0
    browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.overflow() <= 0
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_page_still_fits_when_the_window_shrinks(browser, sheet):
    browser.open(sheet, 1200)
    browser.resize(390)
    assert browser.overflow() <= 0


@pytest.mark.browser
@needs_chromium
def test_every_section_is_visible(browser, sheet):
    browser.open(sheet)
    hidden = browser.ask(
        "[...document.querySelectorAll('main > section, main > section .flow svg')]"
        ".filter(e => e.getBoundingClientRect().height < 10).length"
    )
    assert hidden == 0
    marks = browser.ask(
        "[...document.querySelectorAll('.flow use')].map(e => e.getBoundingClientRect().width)"
    )
    assert len(marks) == len(LEVELS)
    assert all(16 < width <= 22 for width in marks)


@pytest.mark.browser
@needs_chromium
def test_folds_open_by_keyboard(browser, sheet):
    browser.open(sheet)
    folds = "[...document.querySelectorAll('.fold')]"
    assert browser.ask(f"{folds}.map(f => f.open)") == [False, False]
    for _ in range(60):
        browser.press("Tab")
        if browser.ask("document.activeElement.parentElement.matches('#at-fold-0')"):
            break
    browser.press("Enter")
    assert browser.ask(f"{folds}.map(f => f.open)") == [True, False]
    browser.press(" ")
    assert browser.ask(f"{folds}.map(f => f.open)") == [False, False]


@pytest.mark.browser
@needs_chromium
def test_a_link_opens_what_it_leads_to_also_a_second_time(browser, sheet):
    browser.open(sheet)
    fold = "document.getElementById('at-fold-1')"
    for _ in range(2):
        browser.ask("document.querySelector('.places a[href=\"#at-fold-1\"]').focus()")
        browser.press("Enter")
        browser.settle()
        assert browser.ask(f"{fold}.open")
        assert browser.ask(f"document.activeElement === {fold}.querySelector('summary')")
        browser.ask(f"{fold}.open = false")


@pytest.mark.browser
@needs_chromium
def test_buttons_open_all_and_copy(browser, sheet):
    browser.open(sheet)
    browser.ask("document.querySelector('.all button').click()")
    assert browser.ask("document.querySelectorAll('.fold[open]').length") == 2
    browser.ask("document.querySelectorAll('.all button')[1].click()")
    assert browser.ask("document.querySelectorAll('.fold[open]').length") == 0
    browser.ask("document.querySelector('.code button').click()")
    browser.settle()
    assert browser.ask("document.querySelector('.code button').textContent") in (
        ("Copied", "Selected")
    )


@pytest.mark.browser
@needs_chromium
def test_page_prints_on_light_paper(browser, sheet, tmp_path):
    browser.open(sheet, prefers_color_scheme="dark")
    browser.emulate("print", prefers_color_scheme="dark")
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('.all')).display") == "none"
    chart = "getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor"
    assert browser.until(f"{chart} === 'rgb(255, 255, 255)'")
    browser.emulate()
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
