"""A source file as a page: what is said about the code on the left, the code on the right, each line with its number.

A file is cut into rows.  A row begins at a definition with a docstring, or at comments that have lines of their own;
these go to the left, and what is left of the code down to the next row goes to the right.  Comments behind code stay
there, since most of them are shapes.  A ruled comment is the title of a section.
"""

import ast
import html
import re
import tokenize
from dataclasses import dataclass, field

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonConsoleLexer, PythonLexer
from pygments.styles import get_style_by_name

from book.typeset import paragraphs

STYLES = {"light": "friendly", "dark": "github-dark"}  # of Pygments
BELOW = 12  # lines, ours: about half of a picture's height
MANY = 9  # lines of imports that are folded up, ours
WORDS, LINES = 150, 10  # read in a minute, ours: words of text, lines of code


@dataclass
class Row:
    """Texts for the left, and lines of code for the right."""

    first: int  # number of its first line
    name: str = ""  # of what is defined there, Class.method in full
    texts: list = field(default_factory=list)
    lines: list = field(default_factory=list)  # [(number, highlighted HTML)]


def read_rows(source):
    """A file's text -> its sections, [(title, [Row, ...]), ...]; the first one has no title."""
    plain = source.split("\n")
    shown = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).split("\n")
    gone, starts, titles = set(), {1: Row(1)}, {}
    for node, name in definitions(ast.parse(source)):
        text = ast.get_docstring(node, clean=False)
        if text:
            string = node.body[0]
            gone |= set(range(string.lineno, string.end_lineno + 1))
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) if name else 1
            starts.setdefault(first, Row(first)).texts.append(outdented(text, string.col_offset))
            starts[first].name = name
    for first, text in comments(source):
        last = first + text.count("\n")
        gone |= set(range(first, last + 1))
        if re.match("-{20}", text):
            title = re.sub("^[- \n]+", "", text).strip()
            titles[last + 1] = title or None  # a rule below the title's first line
            starts.setdefault(last + 1, Row(last + 1))
        else:
            at = next(n for n in range(last + 1, len(plain) + 1) if n not in gone and plain[n - 1].strip())
            starts.setdefault(at, Row(at)).texts.insert(0, text)
    sections = [(None, [])]
    for n in range(1, len(plain) + 1):
        if n in starts:
            if n in titles and titles[n]:
                sections.append((titles[n], []))
            sections[-1][1].append(starts[n])
        if n not in gone:
            sections[-1][1][-1].lines.append((n, shown[n - 1]))
    for _, rows in sections:
        for row in rows:
            row.lines = without_blank_ends(row.lines, plain)
    return [(title, joined([row for row in rows if row.texts or row.lines])) for title, rows in sections]


def joined(rows):
    """A comment right below a definition goes to its row."""
    out = []
    for row in rows:
        if out and out[-1].name and not row.name and len(out[-1].lines) <= 2 and row.first > out[-1].first:
            out[-1].texts += row.texts
            out[-1].lines += row.lines
        else:
            out.append(row)
    return out


def outdented(text, n):
    """A docstring without the n spaces that its place in the code gives to each line."""
    return "\n".join(line[n:].rstrip() if line[:n].isspace() else line.rstrip() for line in text.split("\n"))


def definitions(tree):
    """(node, full name) of the module and of what it defines, but for functions within functions."""
    yield tree, ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node, node.name
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef):
                    yield inner, f"{node.name}.{inner.name}"


def comments(source):
    """(first line, text) of the comments that have lines of their own; neighbours are one."""
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
    """Lines without the blank ones at their ends, nor two blank ones together."""
    full = [bool(plain[n - 1].strip()) for n, _ in lines]
    kept = [line for i, line in enumerate(lines) if full[i] or i and full[i - 1]]
    while kept and not plain[kept[-1][0] - 1].strip():
        kept.pop()
    return kept


def minutes(rows):
    """To read them."""
    words = sum(len(text.split()) for row in rows for text in row.texts)
    return words / WORDS + sum(len(row.lines) for row in rows) / LINES


# ---------------------------------------------------------------------------- HTML


def code_lines(lines, path, numbers=True):
    """[(number, HTML)] -> a block; what does not fit goes on below, indented.  path: the file, for the links."""
    out = []
    for n, text in lines:
        indent = len(re.match(" *", html.unescape(re.sub("<[^>]*>", "", text))).group()) + 4
        number = f'<a class="at" href="{path}#L{n}">{n}</a>' if numbers else ""
        out.append(f'<div class="line">{number}<span style="--in:{indent}ch">{text or " "}</span></div>')
    return f'<div class="code{"" if numbers else " bare"}">{"".join(out)}</div>'


def text_html(texts):
    """Docstrings and comments as HTML."""
    out = []
    for text in texts:
        for kind, part in paragraphs(text):
            out.append(console(part) if kind == "doctest" else part)
    return "".join(out)


def console(text):
    """A doctest, highlighted."""
    return code_lines(highlighted(text, PythonConsoleLexer()), "", numbers=False)


def highlighted(text, lexer=None):
    """[(number, HTML)] of the lines of a text."""
    shown = highlight(text, lexer or PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    return list(enumerate(shown.split("\n"), start=1))


def row_html(left, right, kind=""):
    """A row of a page: text on the left, code or pictures on the right, one above the other where it is narrow."""
    return f'<div class="row {kind}"><div class="left">{left}</div><div class="right">{right}</div></div>'


def source_row(row, path):
    """A Row as HTML; its name leads to the line."""
    head = f'<h3 id="{row.name}"><a href="{path}#L{row.first}">{row.name}</a></h3>' if row.name else ""
    many = [] if row.name else imports(row.lines)
    if len(many) < MANY:
        return head + text_html(row.texts), code_lines(row.lines, path)
    rest = [line for line in row.lines if line not in many]
    which = f"Imports, lines {many[0][0]} to {many[-1][0]}"
    shown = f"<details><summary>{which}</summary>{code_lines(many, path)}</details>"
    return head + text_html(row.texts), shown + (code_lines(without_blanks(rest), path) if rest else "")


def imports(lines):
    """Those of the first lines [(number, HTML)] that import, up to the last one that does."""
    plain = [html.unescape(re.sub("<[^>]*>", "", text)) for _, text in lines]
    last = max((i for i, text in enumerate(plain) if re.match("import |from ", text)), default=-1)
    while 0 <= last < len(lines) - 1 and plain[last + 1].strip() and re.match(r"[ )]", plain[last + 1]):
        last += 1  # an import in brackets
    return lines[: last + 1]


def without_blanks(lines):
    """Lines without the blank ones before the first that is not."""
    return next((lines[i:] for i, (_, text) in enumerate(lines) if text.strip()), [])


def height(row):
    """About how high, in lines: (left, right)."""
    left = 2 * bool(row.name)
    for chunk in re.split(r"\n\s*\n", "\n\n".join(row.texts)):
        left += sum(len(line) // 62 + 1 for line in (chunk.split("\n") if chunk.startswith(" ") else [chunk])) + 0.4
    many = 0 if row.name else len(imports(row.lines))
    return left * 1.28, len(row.lines) - (many if many >= MANY else 0)


def columns(rows, path, below=""):
    """Rows of one section as HTML blocks [(names, HTML)].  below: HTML that follows the first block's code,
    or its text, where that is much shorter.

    Where the text of the first row is much longer than its code, the next rows stand beside it as well, so that the
    equation at the top of a file is beside the function that computes it.
    """
    out, rows = [], list(rows)
    while rows:
        together = [rows.pop(0)]
        if not out and not together[0].name and together[0].texts:
            left, right = height(together[0])
            while rows and right + len(rows[0].lines) / 2 < left:
                together.append(rows.pop(0))
                right += 2 + len(together[-1].lines)
        lefts, rights = zip(*(source_row(row, path) for row in together))
        sides = ["".join(lefts), "".join(rights)]
        if not out:
            sides[sum(height(row)[0] for row in together) > sum(height(row)[1] for row in together) - BELOW] += below
        out.append(([row.name for row in together], row_html(*sides)))
    return out


def page(title, body, before=None, after=None):
    """A whole page; before, after: (file, title) of its neighbours."""
    links = ['<a href="index.html">Contents</a>']
    links += [f'<a rel="prev" href="{before[0]}">← {before[1]}</a>'] if before else []
    links += [f'<a rel="next" href="{after[0]}">{after[1]} →</a>'] if after else []
    nav = f"<nav>{' '.join(links)}</nav>"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{html.escape(title)} · nanoDINOv2</title>
<link rel="stylesheet" href="book.css"></head><body>{nav}<main>{body}</main>{nav}</body></html>
"""


def stylesheet(css):
    """The book's stylesheet, and Pygments' colours for light and dark."""

    def colours(style):
        rules = []
        for token, look in get_style_by_name(style):
            name = HtmlFormatter(style=style)._get_css_class(token)
            if name and look["color"]:
                rules.append(f".{name}{{color:#{look['color']}}}")
        return "".join(rules)

    return f"{css}{colours(STYLES['light'])}\n@media (prefers-color-scheme:dark){{{colours(STYLES['dark'])}}}\n"


# ---------------------------------------------------------------------------- Markdown tables


def markdown_table(text, heading):
    """The first table below a heading of a Markdown file -> [[cell, ...], ...], the header first."""
    lines = text.split(f"\n## {heading}\n")[1].split("\n|", 1)[1].split("\n\n")[0]
    rows = f"|{lines}".split("\n")
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not re.match(r"\|[-| ]+\|$", row)]


def table_html(rows):
    """Cells that are HTML already, the header first."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    names = [html.escape(re.sub("<[^>]*>", "", name)) for name in rows[0]]  # before each cell, on a phone
    lines = ["".join(f'<td data-th="{name}">{cell}</td>' for name, cell in zip(names, row)) for row in rows[1:]]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
