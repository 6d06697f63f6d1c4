"""Prose from a Wikipedia dump: articles -> paragraphs, without markup, tables, lists, references or captions.

The cleaning is deterministic and errs on the side of dropping: what remains reads as running English, which is what a
language model is calibrated and judged on.
"""

__all__ = ["articles", "prose"]

import html
import re
from collections.abc import Callable, Iterator
from typing import IO
from xml.etree import ElementTree

#: A paragraph shorter than this (in characters) is a caption, a stub of a list or a left-over.
MIN_PARAGRAPH = 80
#: The first of these headings ends the prose of an article: lists of sources and links follow.
_BACK_MATTER = {
    "bibliography",
    "citations",
    "external links",
    "footnotes",
    "further reading",
    "gallery",
    "notes",
    "notes and references",
    "references",
    "see also",
    "sources",
    "works cited",
}
#: Templates whose text belongs to the sentence -> which of their positional parameters to keep.
_INLINE_TEMPLATES = {"lang": slice(1, 2), "nowrap": slice(0, 1), "convert": slice(0, 2), "transl": slice(-1, None)}
_NOT_PROSE = "gallery|imagemap|math|pre|ref|score|source|syntaxhighlight|timeline|table"

_COMMENT = re.compile(r"<!--.*?-->", re.S)
_EMPTY_TAG = re.compile(rf"<(?:{_NOT_PROSE})\b[^<>]*/>", re.I)
_ELEMENT = re.compile(rf"<({_NOT_PROSE})\b[^<>]*>.*?</\1\s*>", re.I | re.S)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NAMESPACE = re.compile(r"\s*:?(?:file|image|category|wikipedia|template|portal|[a-z]{2,3}(?:-[a-z]+)?)\s*:", re.I)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|//)[^\s\]]*\s*([^\]]*)\]")
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1\s*$")
#: Markup that was never closed: its paragraph is dropped.
_LEFT_OVER = re.compile(r"\[\[|\]\]|\{\{|\}\}")
_SENTENCE_END = (".", "!", "?", '."', '?"', '!"', ".'", ".)", "”")
#: What a removed template leaves behind: "( )", "(; )", " ,", "  ".
_REPAIRS = (
    (re.compile(r"\(\s*[;,:\s]+"), "("),
    (re.compile(r"[;,\s]+\)"), ")"),
    (re.compile(r"\(\)|\[\]"), ""),
    (re.compile(r"\s+([,.;:!?](?:\s|$))"), r"\1"),
    (re.compile(r"\s+"), " "),
)


def articles(dump: IO[bytes]) -> Iterator[str]:
    """Yield the wikitext of every article of a MediaWiki XML export: main namespace, no redirects.

    Raises:
        xml.etree.ElementTree.ParseError: the stream is not XML, or it is truncated.
    """
    for _, element in ElementTree.iterparse(dump):
        if element.tag.rpartition("}")[2] != "page":
            continue
        if element.findtext("{*}ns", "0") == "0" and element.find("{*}redirect") is None:
            yield element.findtext("{*}revision/{*}text") or ""
        element.clear()


def prose(wikitext: str) -> str:
    """Return the running text of one article: one paragraph a line; empty if it has none.

    >>> prose("'''Graphs''' are [[Set (mathematics)|sets]] of nodes<ref>A book.</ref> and of [[edge]]s; they appear "
    ...       "{{citation needed}} wherever things are connected.\\n* a list")
    'Graphs are sets of nodes and of edges; they appear wherever things are connected.'
    """
    text = _COMMENT.sub("", wikitext)
    text = _ELEMENT.sub("", _EMPTY_TAG.sub("", text))
    text = _innermost_first(_TEMPLATE, _template_text, text)
    text = _innermost_first(_TABLE, lambda _: "", text)
    text = _innermost_first(_LINK, _link_text, text)
    text = html.unescape(_TAG.sub("", _EXTERNAL.sub(r"\1", text)))
    return "\n".join(_paragraphs(text))


def _innermost_first(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    """Substitute until nothing changes; ``pattern`` matches only what holds no further match inside."""
    count = 1
    while count:
        text, count = pattern.subn(replace, text)
    return text


def _template_text(match: re.Match[str]) -> str:
    name, *parameters = match[1].split("|")
    keep = _INLINE_TEMPLATES.get(name.strip().lower(), slice(0, 0))
    return " ".join(p.strip() for p in [p for p in parameters if "=" not in p][keep])


def _link_text(match: re.Match[str]) -> str:
    return "" if _NAMESPACE.match(match[1]) else match[1].rpartition("|")[2]


def _paragraphs(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if heading := _HEADING.match(line.strip()):
            if heading[2].strip("' ").lower() in _BACK_MATTER:
                return
            continue
        if _LEFT_OVER.search(line) or line.startswith(("*", "#", ":", ";", "|", "!", "{", "}", " ")):
            continue
        line = re.sub(r"'{2,}", "", line).strip()
        for pattern, repaired in _REPAIRS:
            line = pattern.sub(repaired, line)
        if len(line) >= MIN_PARAGRAPH and line.endswith(_SENTENCE_END):
            yield line
