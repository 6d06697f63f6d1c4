import io
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.calibrate import wikitext

SENTENCE = "A language model is calibrated on running prose, and this sentence is long enough to count as such."


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("[[Graph theory|graphs]] and [[tree]]s", "graphs and trees"),
        ("[http://example.org the site] here", "the site here"),
        ("a[http://example.org] b", "a b"),
        ("one<ref name=x>{{cite|a=[[b]]}}</ref><ref name=y/> two", "one two"),
        ("one{{note|with {{nested|template}}}} two", "one two"),
        ("the {{lang|fr|mot}} and {{convert|3|km|mi}} away", "the mot and 3 km away"),
        ("[[File:A.jpg|thumb|a [[caption]] with {{x}}]]start", "start"),
        ("[[Category:Graphs]]start", "start"),
        ("a (<ref>x</ref>; born 1900) b", "a (born 1900) b"),
        ("empty ({{IPA|x}}) parentheses", "empty parentheses"),
        ("a &lt;b&gt; c&nbsp;d", "a <b> c d"),
        ("x<!-- [[unclosed -->y", "xy"),
        ("area<math>\\frac{a}{b}</math> here", "area here"),
        ("a <small>b</small><br/> c", "a b c"),
    ],
)
def test_markup_becomes_text(markup: str, expected: str) -> None:
    assert wikitext.prose(f"{markup}: {SENTENCE}") == f"{expected}: {SENTENCE}"


def test_only_running_text_is_kept() -> None:
    article = "\n".join(
        [
            "{{Infobox\n| name = x\n| text = " + SENTENCE + "\n}}",
            SENTENCE,
            "== History ==",
            "* " + SENTENCE,
            "# " + SENTENCE,
            ": " + SENTENCE,
            "{| class=x\n|-\n| " + SENTENCE + "\n{|\n| nested\n|}\n|}",
            "Too short.",
            "No end of a sentence" * 10,
            "Left [[open " + SENTENCE,
            SENTENCE[::-1][1:] + ".",
            "==External links==",
            SENTENCE,
        ]
    )
    assert wikitext.prose(article).split("\n") == [SENTENCE, SENTENCE[::-1][1:] + "."]


FRAGMENTS = st.sampled_from(
    [
        "{{",
        "}}",
        "[[",
        "]]",
        "{|",
        "|}",
        "|",
        "<ref>",
        "</ref>",
        "<!--",
        "-->",
        "''",
        "\n",
        "\n* ",
        "==",
        SENTENCE,
        " a ",
    ]
)


@given(st.lists(FRAGMENTS, max_size=30).map("".join))
def test_broken_markup_never_reaches_the_text(text: str) -> None:
    for paragraph in wikitext.prose(text).splitlines():
        assert len(paragraph) >= wikitext.MIN_PARAGRAPH
        assert not any(mark in paragraph for mark in ("{{", "}}", "[[", "]]", "''"))


def _page(title: str, text: str, *, namespace: int = 0, redirect: bool = False) -> str:
    mark = '<redirect title="x"/>' if redirect else ""
    return f"<page><title>{title}</title><ns>{namespace}</ns>{mark}<revision><text>{text}</text></revision></page>"


def _dump(*pages: str) -> bytes:
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'.encode()


def test_articles_are_pages_of_the_main_namespace() -> None:
    dump = _dump(
        _page("A", "first &amp; one"),
        _page("B", "redirect", redirect=True),
        _page("Talk:A", "talk", namespace=1),
        _page("C", ""),
        _page("D", "last"),
    )
    assert list(wikitext.articles(io.BytesIO(dump))) == ["first & one", "", "last"]


def test_a_truncated_dump_is_an_error() -> None:
    with pytest.raises(ElementTree.ParseError):
        list(wikitext.articles(io.BytesIO(_dump(_page("A", "text"))[:-5])))
