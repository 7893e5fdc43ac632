"""A source file as a page: docstrings and comments on the left, code on the right, each line with its number.

A file is cut into rows.  A row begins at a definition with a docstring, or at comments with lines of their own.  These
go to the left; the code down to the next row goes to the right.  Comments behind code stay there, since most are
shapes.  A ruled comment is the title of a section.
"""

import ast
import html
import re
from dataclasses import dataclass, field

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from book.typeset import text_html


@dataclass
class Row:
    """Text for the left, and lines of code for the right."""

    title: str = ""  # of the section that it opens
    text: str = ""
    lines: list = field(default_factory=list)  # [(number, highlighted HTML)]
    note: bool = False  # whether it continues the row above


def read_rows(source, notes):
    """Cut a file's text into [Row, ...].  notes: {number of a line: text to put beside the code from there on}."""
    docs, inside = {}, set()  # {line where a definition begins: its docstring}, the lines of all docstrings
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            first = [*getattr(node, "decorator_list", []), node][0]
            docs[getattr(first, "lineno", 0)] = docstring(node)  # a module has no line
            inside.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    rows, comments, blank = [Row(text=docs.get(0, ""))], [], []  # the comments and blank line above the next code
    for n, (line, code) in enumerate(zip(source.split("\n"), highlighted(source)), start=1):
        if n in inside:
            continue
        if not line.strip():
            blank = [(n, "")] if rows[-1].lines else []
        elif line.strip().startswith("#"):
            comments.append(line.strip().removeprefix("#").removeprefix(" "))
        else:
            if n in docs or comments or n in notes:
                title = "".join(comment.strip("- ") for comment in comments if comment.startswith("---"))
                texts = [comment for comment in comments if not comment.startswith("---")]
                text = "\n".join([*texts, "", docs.get(n, ""), "", notes.get(n, "")])
                rows.append(Row(title, text, note=not (n in docs or comments)))
                comments, blank = [], []
            rows[-1].lines += [*blank, (n, code)]
            blank = []
    return rows


def docstring(node):
    """The docstring of a module, function or class, without the spaces that its place in the code adds to each line."""
    text = ast.get_docstring(node, clean=False) or ""
    return re.sub(rf"(?m)^ {{{node.body[0].col_offset}}}", "", text)


def highlighted(text):
    """The lines of a Python text as HTML."""
    return highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).split("\n")


# ---------------------------------------------------------------------------- HTML


def code_html(lines, path):
    """[(number, HTML), ...] as a block of code of the file at `path`.  The number of a line links to that line."""
    mark = "T" if "/tests/" in path else "L"  # a page shows lines of two files
    numbered = [f'<div class="line" id="{mark}{n}"><a class="at" href="#{mark}{n}">{n}</a>' for n, _ in lines]
    shown = [f'{number}<span>{text or " "}</span></div>' for number, (_, text) in zip(numbered, lines)]
    return f'<div class="code">{"".join(shown)}</div>'


def columns(left, right, kind=""):
    """Text beside code or pictures; one above the other on a narrow screen, and alone if the right side is empty."""
    return f'<div class="row{kind}"><div class="left">{left}</div><div class="right">{right}</div></div>'


def row_html(row, path, picture=""):
    """A Row as HTML."""
    title = f"<h2>{html.escape(row.title)}</h2>" if row.title else ""
    code = code_html(row.lines, path) if row.lines else ""
    return title + columns(text_html(row.text), code + picture, " note" * row.note)


def with_places(body):
    """A page's body, its sections and functions marked with ids, and [(id, title, tag), ...] of these."""
    out, places = "", []
    for part in re.split('(?=<h2>|<div class="row)', body):
        if named := re.search(r'<(h2|h3|span class="n[cf])"?>(.*?)</', part):
            title, tag = named[2], named[1][:2]
            name = re.sub(r"\W+", "-", html.unescape(title)) + "-" * sum(title == other for _, other, _ in places)
            places.append((name, title, tag))
            part = part.replace(">", f' id="{name}">', 1)
        out += part
    return out, places


def words_of(body, places):
    """What the search finds on a page: [[id, title of its section, text], ...] for each element with an id."""
    body = re.sub(r'(?s)<(svg|script|style)\b.*?</\1>|<a class="at".*?</a>', "", body)
    body = re.sub(r'(?s)<math [^>]*alttext="(.*?)".*?</math>', r" \1 ", body).replace("<sub>", "_")
    found, titles, title = [], {name: title for name, title, _ in places}, ""
    for name, part in re.findall(r'(?s)<[^<>]* id="([^"]*)"[^<>]*>(.*?)(?=<[^<>]* id="|\Z)', f'<p id="">{body}'):
        title = titles.get(name, title)
        text = re.sub("<[^>]*>", "", re.sub(r"<(?!/?(?:span|code|sub|b)\b)[^>]*>", " ", part))
        found.append([name, *(" ".join(html.unescape(words).split()) for words in (title, text))])
    return [entry for entry in found if entry[2]]


def page(title, body, places, before=None, after=None):
    """A whole page.  places: its outline, from with_places; before, after: the modules of the pages next to it."""
    links = ['<a href="index.html">Contents</a>']
    links += [f'<a rel="prev" href="{before}.html">← {before}.py</a>'] if before else []
    links += [f'<a rel="next" href="{after}.html">{after}.py →</a>'] if after else []
    nav = f"<nav>{' '.join(links)}</nav>"
    outline = "".join(f'<a href="#{name}" class="{tag}">{title}</a>' for name, title, tag in places)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{html.escape(title)} · nanoDINOv2</title>
<link rel="stylesheet" href="book.css"></head><body>{nav}<div class="page">
<details class="outline"><summary>On this page</summary>{outline}</details><main>{body}</main></div>{nav}
<script src="find.js" defer></script></body></html>
"""


def stylesheet(css):
    """The book's stylesheet with Pygments' colours for light and dark screens."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".code") for style in ("friendly", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{css}"  # the book's own rules win


def table_html(rows):
    """Cells that are HTML already, the header first."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    names = [html.escape(re.sub("<[^>]*>", "", name)) for name in rows[0]]  # before each cell, on a phone
    lines = ["".join(f'<td data-th="{name}">{cell}</td>' for name, cell in zip(names, row)) for row in rows[1:]]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
