"""Docstrings to HTML: `code` in sentences, indented blocks as tables, and the formulas in these as MathML."""

import html
import re
from collections import Counter
from itertools import groupby

from book.mathml import mathml

FUNCTIONS = set("log exp min max argmax argmin softmax cos sin mean sign scale".split())
SIGNS = set("=←↔~∈≤≥<>·Σ/+−")  # a cell with words is a formula only if it has one of these
WORD = re.compile(r"[A-Za-z][a-z'-]*[a-zA-Z]|\w-\w+|\w{2,}[./]\w+")
NAMES = re.compile(r"`([^`]+)`|((?:\w+/)*\b(?:[a-z]\w+_\w+|[a-z]_[a-z]{4}\w*)(?:\.py)?)|\b([^\W\d_])_(\w{1,5})\b")
WIDE = 52  # characters of formulas and short texts that fit beside each other; ours


def inline(text):
    """A sentence as HTML: `code` and long_names are code, x_i gets a subscript, everything else stays as it is."""
    return NAMES.sub(lambda m: f"{m[3]}<sub>{m[4]}</sub>" if m[3] else code(m[1] or m[2]),
                     html.escape(text, quote=False))  # fmt: skip


def code(text):
    """Escaped code as HTML; a flag stays on one line."""
    return "<code>" + re.sub(r"(?<!\S)--?[a-z][\w-]*", r'<span class="flag">\g<0></span>', text) + "</code>"


def text_html(text):
    """A docstring or comment as HTML: paragraphs, indented blocks and doctests."""
    out = []
    for chunk in re.split(r"\n\s*\n", text.strip("\n ")):
        if chunk.startswith(">>>"):
            out.append(f'<pre class="code">{html.escape(chunk)}</pre>')
            continue
        for indented, lines in groupby(chunk.split("\n"), key=lambda line: line.startswith("    ")):
            block = list(lines)
            out.append(table(block) if indented else f"<p>{inline(' '.join(map(str.strip, block)))}</p>")
    return "".join(out)


def table(lines):
    """An indented block as a table.  Two spaces part cells, but not after a full stop; cells that begin in one column
    of the text share one."""
    rows = []
    for line in lines:
        found = [(m.start(), m.group()) for m in re.finditer(r"\S+(?:(?: |(?<=\.)  )\S+)*", line)]
        if rows and len(found) == 1 and len(rows[-1]) > 1 and found[0][0] == rows[-1][-1][0]:  # the last cell goes on
            rows[-1][-1] = (found[0][0], f"{rows[-1][-1][1]} {found[0][1]}")
        else:
            rows.append(found)
    starts = Counter(start for found in rows for start, _ in found)
    columns = sorted(starts)
    widths = [sum(len(text) for _, text in found if len(text) < 20 or is_formula(text)) for found in rows]
    loose = all(starts[start] == 1 for start in columns[1:]) or max(widths) > WIDE  # nothing is aligned, or no room
    out = []
    for found in rows:
        places = [columns.index(start) for start, _ in found] + [len(columns)]
        tds = ["<td></td>"] * places[0]
        for (_, text), at, end in zip(found, places, places[1:]):
            tds.append(f'<td colspan="{end - at}">{cell(text)}</td>')
        out.append(f"<tr>{''.join(tds)}</tr>")
    return f'<table class="block{" loose" * loose}">{"".join(out)}</table>'


def cell(text):
    """A cell of an indented block as HTML: code, a formula or a sentence."""
    if re.match("(python|torchrun|pip) ", text) or re.fullmatch(r"[a-z]{2,}(_[a-z]+)+", text):
        return code(html.escape(text))
    return mathml(text) if is_formula(text) else inline(text)


def is_formula(text):
    """Whether a cell has no words of a sentence, or a sign and no more words than symbols."""
    parts = [part.strip("()[]{},;:.") for part in text.split()]
    words = sum(bool(WORD.fullmatch(part)) and part not in FUNCTIONS for part in parts)
    return words == 0 or bool(SIGNS & set(text)) and 2 * words <= len(parts) + 1
