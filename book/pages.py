"""A source file as a page: docstrings and comments on the left, code on the right, each line with its number.

A file is cut into rows.  A row begins at a definition with a docstring, or at comments with lines of their own.  These
go to the left; the code down to the next row goes to the right.  Comments behind code stay there, since most are
shapes.  A ruled comment is the title of a section.
"""

import ast
import html
import re
import tokenize
from dataclasses import dataclass, field

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonConsoleLexer, PythonLexer

from book.typeset import paragraphs

MANY = 15  # lines of code above the first definition; beside more, its picture stands below the text.  Ours


@dataclass
class Row:
    """Texts for the left, and lines of code for the right."""

    first: int  # number of its first line
    name: str = ""  # of what is defined there, Class.method in full
    title: str = ""  # of the section that it opens
    texts: list = field(default_factory=list)
    lines: list = field(default_factory=list)  # [(number, highlighted HTML)]


def read_rows(source):
    """Cut a file's text into [Row, ...]."""
    plain = source.split("\n")
    code = dict(highlighted(source, PythonLexer(stripnl=False)))
    starts = {1: Row(1)}
    for node, name in definitions(ast.parse(source)):
        text = ast.get_docstring(node, clean=False)
        if text:
            string = node.body[0]
            for n in range(string.lineno, string.end_lineno + 1):
                del code[n]
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) if name else 1
            row = starts.setdefault(first, Row(first))
            row.name = name
            row.texts.append(outdented(text, string.col_offset))
    for first, text in comments(source):
        below = first + text.count("\n") + 1
        for n in range(first, below):
            del code[n]
        at = next(n for n in range(below, len(plain) + 1) if n in code and plain[n - 1].strip())
        row = starts.setdefault(at, Row(at))
        if text.startswith("-----"):
            row.title = text.strip("- \n")
        else:
            row.texts.insert(0, text)
    rows = []
    for n in range(1, len(plain) + 1):
        if n in starts:
            rows.append(starts[n])
        if n in code:
            rows[-1].lines.append((n, code[n]))
    for row in rows:
        row.lines = without_blank_ends(row.lines, plain)
    return rows


def outdented(text, n):
    """A docstring without the n spaces that its place in the code gives to each line."""
    return "\n".join(line[n:].rstrip() if line[:n].isspace() else line.rstrip() for line in text.split("\n"))


def definitions(tree):
    """Yield (node, full name) of the module, its functions and classes, and the classes' methods."""
    yield tree, ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node, node.name
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef):
                    yield inner, f"{node.name}.{inner.name}"


def comments(source):
    """[(first line, text), ...] of the comments with lines of their own; neighbours are one."""
    found = []
    lines = iter(source.splitlines(keepends=True))
    for token in tokenize.generate_tokens(lambda: next(lines, "")):
        if token.type == tokenize.COMMENT and token.line.strip().startswith("#"):
            n, text = token.start[0], token.string.removeprefix("#").strip()
            if found and found[-1][0] + found[-1][1].count("\n") + 1 == n:
                found[-1] = (found[-1][0], f"{found[-1][1]}\n{text}")
            else:
                found.append((n, text))
    return found


def without_blank_ends(lines, plain):
    """Lines without blank ones at the ends, and with at most one blank line between two others."""
    full = [bool(plain[n - 1].strip()) for n, _ in lines]
    kept = [line for i, line in enumerate(lines) if full[i] or i and full[i - 1]]
    return kept[:-1] if kept and not plain[kept[-1][0] - 1].strip() else kept


# ---------------------------------------------------------------------------- HTML


def highlighted(text, lexer=None):
    """[(number, HTML), ...] of the lines of a Python text."""
    shown = highlight(text, lexer or PythonLexer(), HtmlFormatter(nowrap=True))
    return list(enumerate(shown.split("\n"), start=1))


def code_html(lines, path=""):
    """[(number, HTML), ...] as a block of code.  path: the file for links from the numbers; without it, no numbers."""
    out = []
    for n, text in lines:
        indent = len(re.match(" *", html.unescape(re.sub("<[^>]*>", "", text))).group()) + 4  # of a line's continuation
        number = f'<a class="at" href="{path}#L{n}">{n}</a>' if path else ""
        out.append(f'<div class="line">{number}<span style="--in:{indent}ch">{text or " "}</span></div>')
    return f'<div class="code{"" if path else " bare"}">{"".join(out)}</div>'


def text_html(texts):
    """Docstrings and comments as HTML."""
    parts = [part for text in texts for part in paragraphs(text)]
    return "".join(code_html(highlighted(part.rstrip(), PythonConsoleLexer())[:-1]) if kind == "doctest" else part
                   for kind, part in parts)  # fmt: skip


def columns(left, right):
    """Text beside code or pictures; one above the other on a narrow screen, and alone if the right side is empty."""
    return f'<div class="row"><div class="left">{left}</div><div class="right">{right}</div></div>'


def row_html(row, path, picture=""):
    """A Row as HTML; its name is a link to its line."""
    title = f"<h2>{html.escape(row.title[0].upper() + row.title[1:])}</h2>" if row.title else ""
    name = f'<h3 id="{row.name}"><a href="{path}#L{row.first}">{row.name}</a></h3>' if row.name else ""
    left, right = name + text_html(row.texts), code_html(row.lines, path) if row.lines else ""
    return title + (columns(left + picture, right) if len(row.lines) > MANY else columns(left, right + picture))


def page(title, body, before=None, after=None):
    """A whole page.  before, after: the modules of the pages next to it."""
    links = ['<a href="index.html">Contents</a>']
    links += [f'<a rel="prev" href="{before}.html">← {before}.py</a>'] if before else []
    links += [f'<a rel="next" href="{after}.html">{after}.py →</a>'] if after else []
    nav = f"<nav>{' '.join(links)}</nav>"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{html.escape(title)} · nanoDINOv2</title>
<link rel="stylesheet" href="book.css"></head><body>{nav}<main>{body}</main>{nav}</body></html>
"""


def stylesheet(css):
    """The book's stylesheet with Pygments' colours for light and dark screens."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".code") for style in ("friendly", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{css}"  # the book's own rules win


# ---------------------------------------------------------------------------- Markdown tables


def markdown_table(text, heading):
    """The first table below a heading of a Markdown text -> [[cell, ...], ...], the header first."""
    below = text.split(f"\n## {heading}\n")[1]
    lines = re.search(r"(?m)^\|.*\n(\|.*\n)+", below).group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines
            if not re.fullmatch(r"[-:| ]+", line)]  # fmt: skip


def table_html(rows):
    """Cells that are HTML already, the header first."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    names = [html.escape(re.sub("<[^>]*>", "", name)) for name in rows[0]]  # before each cell, on a phone
    lines = ["".join(f'<td data-th="{name}">{cell}</td>' for name, cell in zip(names, row)) for row in rows[1:]]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
