"""The examples, each run as a user runs it, and the gallery that shows them."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from examples import drawing
from examples.__main__ import EXAMPLES, PAGE, PICTURES, ROOT, Ran
from normkit.errors import FileError

NEEDED = {
    "dense_keras": ("keras", "sklearn"),
    "convolutional_keras": ("keras", "sklearn"),
    "car_rental": ("torch",),
    "recurrent_layer_norm": ("torch", "sklearn"),
    "style_statistics": ("PIL", "sklearn"),
    "resnet_ddp": ("torch", "sklearn"),
    "folding": ("torch", "sklearn"),
    "jax_statistics": ("jax",),
}
#: Whose figures are the same on every machine, but for the last digit and for rounding errors.
EXACT = {"staged_backward", "style_statistics"}
SVG = "{http://www.w3.org/2000/svg}"
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def figures(output):
    """The numbers of the lines that end in one, by their words."""
    lines = (line.rpartition(": ") for line in output.splitlines())
    return {words: float(last) for words, _, last in lines if NUMBER.fullmatch(last)}


def dense_keras(found, _):
    nowhere = found["accuracy, batch norm nowhere"]
    for where in ("before", "after"):
        accuracy = found[f"accuracy, batch norm {where} the activation"]
        assert accuracy > max(nowhere + 0.2, 0.85)


def convolutional_keras(found, _):
    assert found["accuracy with batch norm"] > max(found["accuracy without"], 0.93)


def car_rental(found, output):
    for row in ("range +1.00 +1.00 +1.00", "deviation +3.* +4.* +6.*"):
        assert re.search(f"scaled by mean and {row}", output)
    moved = re.search("deviations of the cars: (.*)", output)[1].split()
    assert abs(float(moved[0])) < 0.2  # the ages of both are alike
    assert max(map(float, moved[1:])) < -1
    for name in ("input scaling", "batch norm"):
        cars, motorcycles, anew = (
            found[f"{name}, error {on}"]
            for on in ("on cars", "on motorcycles", "with new statistics")
        )
        assert motorcycles > 5 * cars
        assert anew < motorcycles / 3


def staged_backward(found, output):
    steps = [line.split()[0] for line in output.splitlines()[1:10]]
    assert steps[:4] == ["mean", "centered", "squared", "var"]
    assert steps[4:] == ["std", "inverse", "normalized", "scaled", "out"]
    assert found["closed form and nine steps differ by"] < 1e-13
    assert found["closed form and finite differences differ by"] < 1e-8
    assert found["the same by hand, and the difference"] < 1e-13


def recurrent_layer_norm(found, _):
    none, batch, layer = (found[f"accuracy, {norm} norm"] for norm in ("no", "batch", "layer"))
    assert batch < none - 0.02
    assert layer > max(batch + 0.04, none - 0.02)
    assert layer > 0.8


def style_statistics(found, _):
    assert found["largest distance from the other's means"] < 1e-14
    assert found["largest trace of fading after instance norm"] < 1e-12


def resnet_ddp(found, _):
    assert found["accuracy of one process"] > 0.8
    assert found["weights of two processes, synchronized statistics, differ by"] < 1e-10
    assert found["weights of two processes, own statistics, differ by"] > 1e-4


def folding(found, output):
    assert "BatchNorm" not in output
    assert found["accuracy"] > 0.85
    assert found["answers that folding changed"] == 0
    assert found["largest change of an output, float32"] < 1e-4
    assert "times as fast, on the machine that this ran on" in found  # how much is not promised


def jax_statistics(found, _):
    assert found["largest error of normkit"] < 1e-5
    assert found["largest error of E[x²] − E[x]²"] > found["variance of the first column"]
    assert found["loss after 199 steps"] < found["loss after 0 steps"] / 5
    assert found["loss at test time"] < 2 * found["loss after 199 steps"]


CLAIMS = {
    claim.__name__: claim
    for claim in (
        dense_keras, convolutional_keras, car_rental, staged_backward, recurrent_layer_norm,
        style_statistics, resnet_ddp, folding, jax_statistics,
    )
}  # fmt: skip


def runs():
    """Every example; those in Keras on one backend each."""
    backends = {"dense_keras": "jax", "convolutional_keras": "torch"}
    for example in EXAMPLES:
        backend = backends.get(example.name, "")
        yield pytest.param(example, backend, id="-".join(filter(None, (example.name, backend))))


@pytest.mark.parametrize(("example", "backend"), list(runs()))
def test_an_example_does_what_it_says(example, backend):
    for library in (*NEEDED.get(example.name, ()), *filter(None, (backend,))):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    ran = example.run(**({"KERAS_BACKEND": backend} if backend else {}))
    assert "Warning" not in ran.warnings
    CLAIMS[example.name](figures(ran.output), ran.output)
    assert_kept(ran)


def assert_kept(ran):
    """The gallery shows this output: word for word, and figures as far as machines agree."""
    kept = section(PAGE.read_text(), ran.example).partition("```text\n")[2].partition("```")[0]
    assert words(kept) == words(ran.output), "python -m examples makes the page anew"
    assert bool(ran.picture_name) == (PICTURES / f"{ran.picture_name or '-'}").is_file()
    if ran.example.name in EXACT:
        for old, new in zip(NUMBER.findall(kept), NUMBER.findall(ran.output), strict=True):
            assert same(old, new), f"the page says {old}, the example {new}: python -m examples"


def words(output):
    return re.sub(r"\s+", " ", NUMBER.sub("#", output)).split()


def same(old, new):
    """Equal up to the last digit that is shown; a rounding error (1e-16) is any."""
    if "e" in old:
        return "e" in new
    digits = len(old.partition(".")[2])
    return abs(float(old) - float(new)) < 1.5 * 10**-digits


def section(text, example):
    _, found, rest = text.partition(f"\n## {example.title}\n")
    assert found, f"{example.name} is missing: python -m examples"
    return rest.partition("\n## ")[0]


def test_a_page_that_is_out_of_date_is_found():
    example = next(one for one in EXAMPLES if one.name == "staged_backward")
    kept = section(PAGE.read_text(), example).partition("```text\n")[2].partition("```")[0]
    assert_kept(Ran(example, kept, b""))
    for output in (kept.replace("mean", "middle"), kept.replace("0.3083", "0.3089")):
        assert output != kept
        with pytest.raises(AssertionError, match="python -m examples"):
            assert_kept(Ran(example, output, b""))


class TestGallery:
    def test_every_program_is_an_example_with_a_claim(self):
        programs = {path.stem for path in (ROOT / "examples").glob("*.py")}
        names = [example.name for example in EXAMPLES]
        assert programs - {"__main__", "drawing"} == set(names) == set(CLAIMS)
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
    def test_the_page_shows_the_program_as_it_is(self, example):
        shown = section(PAGE.read_text(), example)
        assert example.text in shown
        assert f"```python\n{example.code}```" in shown
        assert len(example.code.splitlines()) <= 90

    def test_pictures(self):
        shown = set(re.findall(rf"\]\({PICTURES.name}/(.*?)\)", PAGE.read_text()))
        assert shown == {path.name for path in PICTURES.iterdir()}
        for path in PICTURES.glob("*.svg"):
            ElementTree.parse(path)

    def test_nothing_of_the_machine_that_made_it(self):
        files = [PAGE, *PICTURES.glob("*.svg")]
        for text in (file.read_text() for file in files):
            assert not re.search(rf"{ROOT}|{Path.home()}/|/tmp/|site-packages", text)


class TestDrawing:
    def chart(self, **options):
        lines = [drawing.Line("a < b", [0, 1, 2], [0.0, 10.0, 5.0], **options)]
        return ElementTree.fromstring(drawing.chart("A & B", "x", "y", lines))

    def test_a_line_has_its_places(self):
        root = self.chart()
        paths = [node.get("d") for node in root.iter(SVG + "path") if node.get("class") == "line0"]
        left, right = drawing.LEFT, drawing.WIDTH - drawing.RIGHT
        top, bottom = drawing.TOP, drawing.HEIGHT - drawing.BOTTOM
        places = [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
        assert paths[0] == "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        words = [node.text for node in root.iter(SVG + "text")]
        assert {"a < b", "x", "y", "0", "1", "2", "10"} <= set(words)
        assert "0.5" not in words  # between whole numbers is nothing
        assert root.find(SVG + "title").text == "A & B"

    def test_dots(self):
        assert len(list(self.chart(points=True).iter(SVG + "circle"))) == 3 + 1  # and in the key

    @pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [-3e-9, 5e7], [0.1, 0.7]])
    def test_ticks_are_round_and_around_all_values(self, values):
        _, ticks = drawing._scale(values, 0.0, 1.0)
        assert 2 <= len(ticks) <= 9
        assert ticks[0] <= min(values) <= max(values) <= ticks[-1]

    def test_light_and_dark(self):
        style = self.chart().find(SVG + "style").text
        light, _, dark = style.partition("@media(prefers-color-scheme:dark)")
        for name in (".page", "text", ".grid", ".line0", ".dots3"):
            assert name in light
            assert name in dark

    def test_too_many_lines(self):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            drawing.chart("", "", "", [drawing.Line("", [0], [0])] * 5)

    def test_a_picture_replaces_nothing(self, tmp_path, monkeypatch):
        file = tmp_path / "picture.svg"
        monkeypatch.setattr(drawing.sys, "argv", ["example.py", str(file)])
        drawing.keep("<svg/>")
        assert file.read_text() == "<svg/>"
        with pytest.raises(FileError, match="a name that is free"):
            drawing.keep("other")
        monkeypatch.setattr(drawing.sys, "argv", ["example.py"])
        drawing.keep("nothing is written")
        assert [path.name for path in tmp_path.iterdir()] == ["picture.svg"]
