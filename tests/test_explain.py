"""normkit explain: the boxes, the numbers as text and in the page, the page itself, wrong input."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest

import normkit as nk
import oracle
from browser import needs_chromium
from test_report import loads
from test_trace import chain

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("torch", reason="PyTorch is not installed")

from normkit.cli import main
from normkit.explain import Values, cube, values
from normkit.explain import page as pages
from normkit.explain.formula import mathml
from normkit.explain.graph import EDGES, NODES
from normkit.explain.text import numbers

# --- the boxes ------------------------------------------------------------------------------------

# name: the oracle's record, the box in words, the statistics' shape in letters
BOXES = {
    "Batch norm": (oracle.Sets(), "all samples × 1 channel × all positions", "(C,)"),
    "Ghost batch norm": (
        oracle.Sets(samples=2), "2 samples × 1 channel × all positions", "(N/2, C)",
    ),
    "Layer norm of a feature map": (
        oracle.Sets(1, "all", "all"), "1 sample × all channels × all positions", "(N,)",
    ),
    "Layer norm of tokens": (
        oracle.Sets(1, "all", 1), "1 sample × all channels × 1 position", "(N, L)",
    ),
    "RMS norm": (oracle.Sets(1, "all", 1), "1 sample × all channels × 1 position", "(N, L)"),
    "Instance norm": (oracle.Sets(1, 1, "all"), "1 sample × 1 channel × all positions", "(N, C)"),
    "Group norm": (
        oracle.Sets(1, ("split", 3), "all"), "1 sample × 2 channels × all positions", "(N, 3)",
    ),
    "Batch-group norm": (
        oracle.Sets(2, ("split", 3), "all"), "2 samples × 2 channels × all positions", "(N/2, 3)",
    ),
    "Weight standardization": (
        oracle.Sets(1, "all", "all"), "1 filter × all input channels × all kernel positions",
        "(O,)",
    ),
}  # fmt: skip


def truth(sets, size):
    """Every element's box, numbered in the order of the statistics, by the oracle."""
    statistics = oracle.Statistics(sets, oracle.View(np.zeros(size), axis=1))
    numbered = np.full(size, -1)
    for number, (_, box) in enumerate(statistics.boxes()):
        numbered[box] = number
    return numbered


def test_all_members_are_shown():
    assert [member.name for member in cube.MEMBERS] == list(BOXES)


@pytest.mark.parametrize("size", [cube.SIZE, (6, 9, 2), (5, 3, 4)])
@pytest.mark.parametrize("member", cube.MEMBERS, ids=lambda member: member.name)
def test_each_element_is_in_the_box_that_the_oracle_says(member, size):
    np.testing.assert_array_equal(
        cube.numbered(member.norm, size), truth(BOXES[member.name][0], size)
    )


@pytest.mark.parametrize("member", cube.MEMBERS, ids=lambda member: member.name)
def test_words_about_a_box(member):
    _, box, letters = BOXES[member.name]
    assert cube.box(member) == box
    shown = cube.statistics(member).replace("\u00a0", " ")
    inside = int((cube.numbered(member.norm) == 0).sum())
    assert f" {letters}, " in shown
    assert shown.endswith(f"each of {inside} elements")
    assert eval(member.code, {"nk": nk}) == member.norm
    assert ("mean square" in shown) == (not member.norm.center)


def middle(points):
    return np.mean(points, axis=0)


@pytest.mark.parametrize("size", [cube.SIZE, (2, 3, 4)])
@pytest.mark.parametrize("member", cube.MEMBERS, ids=lambda member: member.name)
def test_the_picture_fills_the_fields_of_the_box_and_no_others(member, size):
    """The middles of the filled fields, against a projection written out here."""
    n, c, l = size  # noqa: E741 - the cube's letters
    inside = truth(BOXES[member.name][0], size) == 0

    def project(u, v, w):
        right, down = cube.EDGE * np.sqrt(3) / 2, cube.EDGE / 2
        return (
            cube.MARGIN_X + (n + u - v) * right,
            cube.MARGIN_TOP + (u + v) * down + (l - w) * cube.EDGE,
        )

    want = {"top": set(), "left": set(), "right": set()}
    for at in map(tuple, np.argwhere(inside)):
        u, v, w = c - at[1] - 0.5, n - at[0] - 0.5, l - at[2] - 0.5
        sides = {"top": (at[2] == 0, (u, v, l)), "left": (at[0] == 0, (u, n, w)),
                 "right": (at[1] == 0, (c, v, w))}  # fmt: skip
        for side, (seen, place) in sides.items():
            if seen:
                want[side].add(tuple(np.round(project(*place))))
    drawn = ET.fromstring(cube.drawing(member, size))
    for group in drawn.findall("g"):
        paths = {path.get("class"): path.get("d") for path in group.findall("path")}
        fields = re.findall(r"M([^Z]*)Z", paths.get("chosen", ""))
        found = {
            tuple(np.round(middle([[float(k) for k in p.split()] for p in field.split("L")])))
            for field in fields
        }
        assert len(found) == len(fields)
        assert found == want[group.get("class")]
        assert len(re.findall("M", paths.get("rest", ""))) + len(fields) == {
            "top": n * c, "left": c * l, "right": n * l,
        }[group.get("class")]  # fmt: skip


# --- formulae and the graph -----------------------------------------------------------------------


def test_every_formula_of_the_graph_is_well_formed():
    for node in NODES:
        for tex in (node.symbol, node.forward, node.backward, *node.passes):
            ET.fromstring(mathml(tex).replace("&nbsp;", " "))


def test_formulae():
    assert mathml(r"\frac{1}{m}") == (
        "<math><mfrac><mrow><mn>1</mn></mrow><mrow><mi>m</mi></mrow></mfrac></math>"
    )
    assert mathml("a < b_1^2") == (
        "<math><mi>a</mi><mo>&lt;</mo><msubsup><mi>b</mi><mn>1</mn><mn>2</mn></msubsup></math>"
    )
    assert mathml(r"\text{a b}", display=True) == (
        '<math display="block"><mtext>a&nbsp;b</mtext></math>'
    )
    for wrong in (r"\nonsense", "{a", "a}", r"\frac{a}", "a_", "(a"):
        with pytest.raises(ValueError, match=re.escape(repr(wrong))):
            mathml(wrong)


def test_the_graph_is_that_of_a_trace():
    trace = values().trace()
    steps = {node.name: node for node in NODES if node.step}
    assert [(n.step, n.name) for n in steps.values()] == [
        (number, step.name) for number, step in enumerate(trace, start=1)
    ]
    for name, node in steps.items():
        assert node.statistic == (getattr(trace, name).ndim == 1)
    place = [node.name for node in NODES]
    assert all(place.index(a) < place.index(b) for a, b in EDGES)
    assert {a for a, b in EDGES} | {b for a, b in EDGES} == set(place)


def test_the_plain_formulae_compute_the_gradients():
    """Each formula of the terminal, evaluated on a trace's other values."""
    given = some(np.random.default_rng(3), 5, 2)
    trace = given.trace()
    names = {node.name: getattr(given, node.name, None) for node in NODES if not node.step}
    names |= {step.name: step.value for step in trace}
    names |= {node.gradient: getattr(trace, node.gradient) for node in NODES}
    names |= {"m": 5, "sum": lambda a: a.sum(axis=0)}
    for node in NODES:
        if node.name != "out":
            np.testing.assert_allclose(
                np.broadcast_to(eval(node.plain, {}, names), names[node.gradient].shape),
                names[node.gradient], rtol=1e-12, atol=1e-12, err_msg=node.name,
            )  # fmt: skip


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def run(*words):
        status = main(["explain", *map(str, words)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_text_of_the_example(run):
    status, out, err = run("--text")
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "1 mean sum(x) / m 3 10" in lines
    assert "5 std sqrt(var + eps) 2 2" in lines
    assert "4 d_var d_std / (2 * std) 0.625 0.4375" in lines
    assert "d_gamma sum(normalized * d_scaled) -2.5 -3.5" in lines
    assert [line for line in lines if line.startswith("dx ")] == [
        "dx d_centered + d_mean / m -0.125 0.1875"
    ]
    assert lines[-1] == "sum(dx) 0 but for rounding 0 0"
    assert max(map(len, out.splitlines())) <= 100


def test_numbers_of_ones_own_as_json(run):
    words = ("--x", "1,2;3,-4;8e1,0", "--gamma", "2,-1", "--beta", "0.5", "--eps", "1e-3")
    status, out, _ = run(*words, "--dout", "1,2;3,4;-5,6", "--json")
    assert status == 0
    x, dout = np.array([[1, 2], [3, -4], [80, 0.0]]), np.array([[1, 2], [3, 4], [-5, 6.0]])
    want = chain(x, np.array([2.0, -1.0]), np.array([0.5, 0.5]), dout, 1e-3)
    found = json.loads(out)
    assert set(found) == {"x", "gamma", "d_gamma", "beta", "d_beta", "eps", *want}
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
    assert found["eps"] == 1e-3


def test_what_is_not_given_is_filled_in():
    given = values("1,2,3;4,5,6;7,8,10;0,1,0;2,2,2")
    assert given.x.shape == given.dout.shape == (5, 3)
    assert (given.eps, given.gamma.tolist(), given.beta.tolist()) == (1e-5, [1.0] * 3, [0.0] * 3)
    assert values().eps == 0.5
    assert values(" 1 ; 2 ;").x.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--x", "1,2"], "--x with 1 row"),
        (["--x", "1;2,3"], "rows of 1, 2 numbers"),
        (["--x", "a;b"], "'a'"),
        (["--x", ""], "''"),
        (["--x", "1;nan"], "'nan'"),
        (["--x", "1;inf"], "'inf'"),
        (["--x", "1e200;1"], "1e200"),
        (["--x", "1,3;2,3", "--eps", "0"], "channel 2 of --x is 3 in every sample"),
        (["--eps", "nan"], "--eps nan"),
        (["--eps", "-1"], "--eps -1"),
        (["--eps", "few"], "'--eps'"),
        (["--gamma", "1,2,3"], "3 numbers"),
        (["--beta", "x"], "--beta"),
        (["--dout", "1;2"], "2 rows of 1 number"),
        (["--text", "--out", "a.html"], "--out and --open are for the page"),
        (["--x", ";".join("12345678") + ";9"], "9 samples of 1 channel"),
        (["--x", "1,2,3,4;5,6,7,7"], "2 samples of 4 channels"),
        (["--out", "a.txt"], "a.txt"),
        (["--out", "nowhere/a.html"], "There is no such folder"),
        (["--out", "."], "the folder"),
    ],
)  # fmt: skip
def test_wrong_words(run, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("normkit: ")
    assert err.count("\n") == 1
    assert said in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_where_the_folder_should_be_is_said(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("in the way")
    status, out, err = run()
    assert (status, out) == (2, "")
    assert err.startswith("normkit: The result cannot be written there")
    assert err.count("\n") == 1
    assert (tmp_path / "out").read_text() == "in the way"


def test_help_has_examples(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "normkit explain --text" in out


def test_the_page_goes_where_it_should_and_replaces_only_its_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "render", lambda _: "page")
    for _ in range(2):
        assert run() == (0, "", "page: out/explain.html\n")
    assert (tmp_path / "out/explain.html").read_text() == "page"
    kept = tmp_path / "mine.html"
    kept.write_text("mine")
    status, _, err = run("--out", kept)
    assert (status, kept.read_text()) == (2, "mine")
    assert "--overwrite" in err
    assert run("--out", kept, "--overwrite")[0] == 0
    assert kept.read_text() == "page"


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    return pages.render()


def test_the_page_loads_nothing_and_is_whole(text):
    parsed = loads(text)
    assert parsed.found == []
    assert "default-src 'none'" in parsed.policy
    assert len(text) < 300_000
    assert text.count('class="member"') == len(BOXES)
    anchors = set(re.findall(r'\bid="([^"]+)"', text))
    assert len(anchors) == len(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors


def test_the_table_of_invariances_is_what_was_measured(text):
    from normkit.lab.kit.invariances import invariance_table

    rows = invariance_table()
    cells = re.findall(r'<td class="(same|other)">.*?"residual">([^<]+)<', text)
    assert len(cells) == len(rows) == 24
    assert sorted(kind for kind, _ in cells) == sorted(
        "same" if row.expected else "other" for row in rows
    )
    assert all(float(shown) < 1e-12 for kind, shown in cells if kind == "same")
    assert all(float(shown) > 0.01 for kind, shown in cells if kind == "other")
    assert "agree with every tick" in text


def test_a_measurement_that_disagrees_is_said(monkeypatch):
    from normkit.lab.kit import invariances

    wrong = [invariances.Row("batch norm", "all weights times a", True, 0.5)]
    monkeypatch.setattr(invariances, "invariance_table", lambda: wrong)
    text = pages.render()
    assert "Not as the table says: batch norm, all weights times a: 0.5" in text
    assert "agree with every tick" not in text


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sheet(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("pages") / "explain.html"
    path.write_text(text, encoding="utf-8")
    return path


def some(rng, samples, channels, offset=0.0, spread=1.0, eps=1e-5):
    """Inputs at random, with few enough digits to be typed."""
    x, dout = rng.standard_normal((2, samples, channels))
    gamma, beta = rng.standard_normal((2, channels))
    x = offset + spread * x
    return Values(*(np.round(a, 2) for a in (x, dout, gamma, beta)), eps)


def write(browser, words):
    """Keys, one after the other, to what has the focus."""
    for key in words:
        browser._call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        browser._call("Input.dispatchKeyEvent", type="keyUp", key=key)


def tab_to(browser, selector):
    for _ in range(80):
        if browser.ask(f"document.activeElement.matches({selector!r})"):
            return
        browser.press("Tab")
    raise AssertionError(f"the keyboard does not come to {selector}")


def enter(browser, selector, value):
    tab_to(browser, selector)  # which selects what stood there
    write(browser, repr(float(value)) if selector != "#size" else str(value))


def fill_in(browser, given):
    """Everything through the keyboard, in the page's own order."""
    browser.ask("document.body.focus()")
    enter(browser, "#size", len(given.x))

    def cell(name, sample, channel):
        row = f'tr[data-row="{sample}"] ' if sample is not None else ""
        return f'{row}td[data-channel="{channel}"] [data-entry={name}]'

    def rows(name, values):
        for at, value in np.ndenumerate(values):
            sample, channel = at if values.ndim == 2 else (None, *at)
            enter(browser, cell(name, sample, channel), value)

    rows("x", given.x)
    enter(browser, "[data-entry=eps]", given.eps)
    rows("gamma", given.gamma)
    rows("beta", given.beta)
    rows("dout", given.dout)


READ = """[...document.querySelectorAll('tr:not([hidden]) td[data-key]')].map(cell => [
    cell.dataset.key, Number(cell.dataset.sample ?? -1), Number(cell.dataset.channel),
    Number((cell.querySelector('input') ?? cell.querySelector('data')).value)])"""


def read(browser):
    """Every number of the page, by name."""
    found = {}
    for key, sample, channel, value in browser.ask(READ):
        found.setdefault(key, {})[(sample, channel)] = value
    shaped = {}
    for key, values_ in found.items():
        rows = sorted({sample for sample, _ in values_})
        shaped[key] = np.array(
            [[values_[row, d] for d in range(1 + max(d for _, d in values_))] for row in rows],
            dtype=np.float64,
        ).squeeze(0 if rows == [-1] else ())
    return shaped


def check(found, given, tolerance=1e-9):
    """Against the chain written out in long double, and norm.trace."""
    wide = [np.asarray(a, np.longdouble) for a in (given.x, given.gamma, given.beta, given.dout)]
    want = chain(*wide, given.eps)
    steps = numbers(given)
    names = [name for node in NODES for name in (node.name, node.gradient)]
    for name in names:
        for truth_ in (want.get(name), steps[name]):
            if truth_ is not None:
                np.testing.assert_allclose(
                    found[name], np.asarray(truth_, float), rtol=tolerance, atol=tolerance,
                    err_msg=name,
                )  # fmt: skip


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_page_fits_every_width_without_an_error(browser, sheet, width, scheme):
    browser.problems.clear()
    browser.open(sheet, width, prefers_color_scheme=scheme)
    assert browser.overflow() <= 0
    assert browser.problems == []
    drawn = browser.ask("document.querySelectorAll('.wires > path').length")
    assert drawn == (2 * len(EDGES) if width == 1200 else 0)
    check(read(browser), values())


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize(
    "given",
    [
        some(np.random.default_rng(0), 2, 2),
        some(np.random.default_rng(1), 8, 2, offset=1000.0, spread=0.1, eps=0.0),
        some(np.random.default_rng(2), 3, 2, spread=1e4, eps=0.25),
    ],
    ids=["two samples", "far from zero", "large"],
)
def test_numbers_typed_in_give_those_of_a_trace(browser, sheet, given):
    browser.problems.clear()
    browser.open(sheet)
    fill_in(browser, given)
    check(read(browser), given)
    assert browser.ask("document.querySelectorAll('[aria-invalid]').length") == 0
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_numbers_that_have_no_neighbour_one_further_on(browser, sheet, tmp_path):
    """1e17 + 1 is 1e17: an axis that counts its ticks by one never comes to its end."""
    browser.problems.clear()
    given = values(beta="1e17")
    page = tmp_path / "far.html"
    page.write_text(pages.render(given), encoding="utf-8")
    browser.open(page)
    check(read(browser), given)
    browser.open(sheet)
    enter(browser, "[data-entry=beta]", 1e17)
    found = read(browser)
    assert found["beta"].tolist() == [1e17, 0]
    ticks = browser.ask("document.querySelectorAll('svg path.axis').length")
    assert 0 < ticks < 100
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("dStd / (2 * std)", "dStd / std"), ("v * inverse + 2", "v * inverse + 1"),
     ("variance + eps", "variance"), ("v + dMean / m", "v")],
)  # fmt: skip
def test_the_comparison_notices_a_wrong_formula(browser, text, tmp_path, right, wrong):
    broken = tmp_path / "broken.html"
    assert right in text
    broken.write_text(text.replace(right, wrong), encoding="utf-8")
    browser.open(broken)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(read(browser), values())


@pytest.mark.browser
@needs_chromium
def test_three_channels_given_in_the_shell(browser, tmp_path):
    given = some(np.random.default_rng(5), 3, 3)
    page = tmp_path / "three.html"
    page.write_text(pages.render(given), encoding="utf-8")
    browser.open(page, 390)
    assert browser.overflow() <= 0
    check(read(browser), given)


@pytest.mark.browser
@needs_chromium
def test_an_outlier_comes_and_goes(browser, sheet):
    browser.open(sheet)
    example = values()
    tab_to(browser, "#outlier")
    browser.press("Enter")
    assert browser.ask("document.activeElement.getAttribute('aria-pressed')") == "true"
    spoiled = example.x.copy()
    spoiled[3, 0] = 50
    check(read(browser), Values(spoiled, example.dout, example.gamma, example.beta, example.eps))
    browser.press(" ")
    check(read(browser), example)


@pytest.mark.browser
@needs_chromium
def test_start_again_and_other_numbers(browser, sheet):
    browser.open(sheet)
    tab_to(browser, "#other")
    browser.press("Enter")
    found = read(browser)
    assert not np.array_equal(found["x"], values().x)
    check(found, Values(found["x"], found["d_out"], found["gamma"], found["beta"], 0.5))
    tab_to(browser, "#again")
    browser.press("Enter")
    check(read(browser), values())


@pytest.mark.browser
@needs_chromium
def test_training_and_inference(browser, sheet):
    """The running statistics are PyTorch's, and what they make of a batch is normkit's."""
    browser.open(sheet)
    example, norm = values(), nk.BatchNorm(eps=0.5)
    moments = nk.Moments.of(example.x, axis=0)
    running = nk.ExponentialAverage.torch(2, momentum=0.25)

    def agree():
        found = read(browser)
        given = (np.asarray(running.mean), np.asarray(running.var))
        y, saved = norm.forward(example.x, example.gamma, example.beta, statistics=given)
        dx = norm.backward(example.dout, saved).x
        for name, want in (("running_mean", given[0]), ("running_var", given[1]),
                           ("running_std", np.sqrt(given[1] + 0.5)),
                           ("running_out", y), ("running_dx", dx)):  # fmt: skip
            np.testing.assert_allclose(found[name], want, rtol=1e-9, atol=1e-9, err_msg=name)

    agree()
    enter(browser, "#momentum", 0.25)
    tab_to(browser, "#train")
    for _ in range(2):
        browser.press("Enter")
        running = running.update(moments)
        agree()
    assert "2 steps" in browser.ask("document.getElementById('steps').textContent")
    told = browser.ask("document.getElementById('moved').textContent")
    assert "0.25 · 4/3 · 3.5 = 2.604" in told
    tab_to(browser, "#train-many")
    browser.press("Enter")
    for _ in range(20):
        running = running.update(moments)
    agree()
    tab_to(browser, "#forget")
    browser.press("Enter")
    running = nk.ExponentialAverage.torch(2)
    agree()


@pytest.mark.browser
@needs_chromium
def test_one_sample_moves_the_others_in_training_only(browser, sheet):
    browser.open(sheet)
    before = read(browser)
    browser.ask(
        "(s => { s.value = 9; s.dispatchEvent(new Event('input', {bubbles: true})); })"
        "(document.getElementById('slide'))"
    )
    after = read(browser)
    assert after["x"][0, 0] == 9
    assert np.all(after["out"][1:, 0] != before["out"][1:, 0])
    np.testing.assert_array_equal(after["running_out"][1:], before["running_out"][1:])
    np.testing.assert_array_equal(after["out"][:, 1], before["out"][:, 1])


@pytest.mark.browser
@needs_chromium
def test_what_is_no_number_is_said_and_the_last_one_counts(browser, sheet):
    browser.problems.clear()
    browser.open(sheet)
    said = "document.getElementById('said').textContent"
    tab_to(browser, "#size")
    write(browser, "9")
    assert "batch size: expected a whole number from 2 to 8" in browser.ask(said)
    browser.ask("document.activeElement.select()")
    write(browser, "4")
    tab_to(browser, '[data-entry="gamma"]')
    write(browser, "-")
    assert "gamma, channel 1: expected a number" in browser.ask(said)
    assert browser.ask("document.activeElement.getAttribute('aria-invalid')") == "true"
    write(browser, "2")
    example = values()
    check(read(browser), Values(example.x, example.dout, np.array([-2.0, 1]), example.beta, 0.5))
    assert browser.ask(said).startswith("Channel 1: mean 3")
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_no_spread_and_no_epsilon_is_said(browser, sheet):
    browser.problems.clear()
    browser.open(sheet)
    fill_in(browser, SimpleNamespace(
        x=np.array([[3.0, 1], [3, 2]]), dout=np.ones((2, 2)), gamma=np.ones(2),
        beta=np.zeros(2), eps=0.0,
    ))  # fmt: skip
    said = browser.ask("document.getElementById('said').textContent")
    assert said == "Channel 1: all x are equal and ε is 0, so there is no spread to divide by."
    shown = browser.ask("document.querySelector('td[data-key=normalized] data').textContent")
    assert shown == "undefined"
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_page_prints_on_light_paper(browser, sheet, tmp_path):
    browser.open(sheet, prefers_color_scheme="dark")
    browser.emulate("print", prefers_color_scheme="dark")
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.getElementById('outlier')).display") == "none"
    browser.emulate()
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
