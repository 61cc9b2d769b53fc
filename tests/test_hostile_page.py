"""Forty hostile texts in every field that reaches the page: they are shown, and nothing comes of them."""

import json
from html.parser import HTMLParser

import pytest

from hostile_texts import HOSTILE, hostile_runs
from spaceless.page import html_text, script_json
from spaceless.report import gather, markdown_text


class Elements(HTMLParser):
    """Counts elements, collects their attributes, the scripts and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts, self._in = [], [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self._in = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif not self._in:
            self.text += data


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    return gather([hostile_runs(tmp_path_factory.mktemp("rough"), HOSTILE, charts=range(10, 18))])


def test_forty_texts_become_no_element_and_no_attribute(rough, tmp_path):
    assert len(set(HOSTILE)) == 40
    tame = tuple(f"tame {i}" for i in range(40))
    usual = Elements(html_text(gather([hostile_runs(tmp_path, tame, charts=range(10, 12))])))
    found = Elements(html_text(rough))
    assert set(found.tags) == set(usual.tags)
    assert {a[:2] for a in found.attributes} == {a[:2] for a in usual.attributes}
    for tag in ("section", "table", "details", "figcaption", "title", "style", "h1", "meta", "pre"):
        many = {"figcaption": len(found.scripts) - 2}
        assert found.tags.count(tag) == many.get(tag, usual.tags.count(tag)), tag
    figures = rough.all_figures
    specs = [s for s in found.scripts if s.startswith("{")]
    assert len(figures) == len(specs) == len(found.scripts) - 2
    assert [json.loads(s) for s in specs] == [f.script() for f in figures]
    assert not any("<" in s for s in specs)
    assert "{{ 7 * 7 }}" in found.text
    shown = " ".join(found.text.split())
    assert all(" ".join(each.split()) in shown for each in HOSTILE if each.isprintable())


def test_nor_do_they_in_markdown(rough):
    text = markdown_text(rough)
    assert "<script" not in text
    assert "[z](" not in text


def test_script_json_cannot_end_its_element():
    text = script_json({"a": "</script><!-- & \u2028"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))
