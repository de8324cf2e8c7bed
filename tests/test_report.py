"""The HTML pages: what they say is escaped, what they draw is whole, and they load nothing."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import pytest

from normkit.report import Chart, Line, Table, Text, page, save

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
            if named.get(name):
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


def sample() -> str:
    line = Line(
        HOSTILE, [0, 1, 2, 3], [1.0, float("nan"), float("inf"), 0.0], colour=1, dashed=True
    )
    return page(
        HOSTILE,
        [
            Text(HOSTILE, [HOSTILE]),
            Table(HOSTILE, ["a", HOSTILE], [["1", HOSTILE]], frozenset({"a"}), note=HOSTILE),
            Chart(HOSTILE, HOSTILE, HOSTILE, [line], log_y=True, y_range=(0.1, 10), note=HOSTILE),
        ],
        summary=HOSTILE,
    )


def test_words_are_escaped():
    text = sample()
    assert "alert('x')" not in text
    assert text.count("alert(") > 10  # every one of them, escaped
    assert loads(text).tags.count("script") == 3  # the data, the library, the drawing


def test_page_loads_nothing():
    parsed = loads(sample())
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


def test_sections_say_what_is_wrong_with_them():
    with pytest.raises(ValueError, match=r"row 1 of the table 'T' has 1 cells; expected 2"):
        Table("T", ["a", "b"], [["1", "2"], ["3"]])
    with pytest.raises(ValueError, match=r"numeric names \['c'\].*columns are \['a', 'b'\]"):
        Table("T", ["a", "b"], [], numeric=frozenset({"c"}))
    with pytest.raises(ValueError, match=r"the line 'L' has 2 values of x and 1 of y"):
        Line("L", [1, 2], [1])
    with pytest.raises(ValueError, match=r"colour 9; expected 0 to 4"):
        Line("L", [], [], colour=9)


def test_save_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "page.html"
    save(path, "old")
    save(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_save_interrupted_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    save(path, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
