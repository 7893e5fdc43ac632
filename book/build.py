"""The pages of the book: one for each file of the README's table, and the contents.

Everything on a page comes from a file: text from docstrings and comments, examples from the tests, which run while the
page is built, pictures from the functions that they show (plates.py), the contents from the README.
"""

import doctest
import html
import importlib
import os
import re
from pathlib import Path

from book.drawing import svg
from book.examples import run_examples
from book.exercises import EXERCISES
from book.pages import (
    code_html,
    columns,
    highlighted,
    markdown_table,
    page,
    read_rows,
    row_html,
    stylesheet,
    table_html,
    text_html,
)
from book.plates import PLATES
from book.typeset import inline

ROOT = Path(__file__).parents[1]
PAPER = "https://arxiv.org/abs/2304.07193"
INTRO = f"""<h1>The annotated DINOv2</h1>
<p>A page for each file of <a href="{PAPER}">the paper</a>: text and equations beside the code.  The examples are the
tests' own, and the pictures are drawn by the functions that they show; both ran while this book was built.</p>"""


def build(out, made):
    """Write all pages into the folder out; return {file: bytes}.  made: vit, images, losses, for the pictures."""
    up = Path(os.path.relpath(ROOT, out)).as_posix()  # from the book to the repository
    places, table = places_in_paper()
    modules = list(places)
    written = {"index.html": page("Contents", contents(table, modules, up), after=modules[0])}
    for before, module, after in zip([None, *modules], modules, [*modules[1:], None]):
        written[f"{module}.html"] = page(f"{module}.py", file_page(module, places[module], made, up), before, after)
    written["book.css"] = stylesheet((ROOT / "book/book.css").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    return {name: len(text.encode()) for name, text in written.items()}


def places_in_paper():
    """The README's table, and {top-level module: its places in the paper} in the table's order."""
    table = markdown_table((ROOT / "README.md").read_text(encoding="utf-8"), "The paper, file by file")
    places = {}
    for row in table[1:]:
        for name in re.findall(r"`(\w+)\.py`", " ".join(row)):
            if (ROOT / f"{name}.py").is_file() and row[0] not in places.setdefault(name, []):
                places[name].append(row[0])
    return places, table


def contents(table, modules, up):
    """The first page: the README's table with links to the pages, and the differences from the official code."""

    def linked(cell):
        text = re.sub(r"<code>((\w+/)+\w+\.py)</code>", rf'<a href="{up}/\1"><code>\1</code></a>', inline(cell))
        return re.sub(rf"<code>({'|'.join(modules)})\.py</code>", r'<a href="\1.html"><code>\1.py</code></a>', text)

    body = INTRO
    official = (ROOT / "docs/official.md").read_text(encoding="utf-8")
    title = "Paper, official code, ours"
    for heading, rows in (("The paper, file by file", table), (title, markdown_table(official, title))):
        body += f"<h2>{heading}</h2>{table_html([[linked(cell) for cell in row] for row in rows])}"
    return body


def file_page(module, places, made, up):
    """The body of a file's page."""
    source, path = (ROOT / f"{module}.py").read_text(encoding="utf-8"), f"{up}/{module}.py"
    assert not doctest.testmod(importlib.import_module(module)).failed, f"an example in {module}.py is wrong"
    rows = read_rows(source)
    names = {row.name for row in rows}
    waiting = {}  # examples, by the function that they call
    for example in run_examples(module):
        called = [name for function, *_ in example.calls for name in (function, function.partition(".")[0])]
        waiting.setdefault(next((name for name in called if name in names), ""), []).append(example)
    body = f"""<h1>{module}.py</h1><p class="facts">{", ".join(map(inline, places))} ·
        <a href="{PAPER}">arXiv 2304.07193</a> · <a href="{path}">{source.count(chr(10))} lines</a></p>"""
    picture, name = pictures(module, made), ""
    for row in [*rows, None]:
        if row is None or row.name or row.title:  # another definition begins: first the examples of the last one
            body += "".join(example_html(example, module, up) for example in waiting.pop(name, []) if name)
            name = row.name if row else ""
        if row:
            body += row_html(row, path, picture if row is rows[0] else "")
    body += "".join(example_html(example, module, up) for some in waiting.values() for example in some)
    return body + exercises(module, source, up)


def pictures(module, made):
    """The pictures of a page, drawn now."""
    out = []
    for draw in PLATES.get(module, ()):
        picture, words = svg(lambda draw=draw: draw(importlib.import_module(module), made), f"{module}-{draw.__name__}")
        caption = inline(" ".join(f"{draw.__doc__} {words}".split()))
        out.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return "".join(out)


def example_html(example, module, up):
    """A test that works an example out: its text, calls and results on the left, its code on the right."""
    title = example.name.removeprefix("test_").replace("_", " ")
    ran = "".join(f"<dt><code>{html.escape(call)}</code></dt><dd>→ {html.escape(', '.join(results))}</dd>"
                  for _, call, results in example.calls)  # fmt: skip
    head = f'<h3><a href="{up}/tests/test_{module}.py#L{example.first}">What ran: {title}</a></h3>'
    left = f'<div class="ran">{head}{text_html([example.text])}<dl>{ran}</dl></div>'
    return columns(left, code_html(highlighted(example.source)[:-1]))


def exercises(module, source, up):
    """Break it yourself: one-line changes, what they do, and the test that fails."""
    if module not in EXERCISES:
        return ""
    out, file = ["<h2>Break it yourself</h2>"], f"tests/test_{module}.py"
    tests = (ROOT / file).read_text(encoding="utf-8")
    for line, new, what, test in EXERCISES[module]:
        at, where = line_number(source, line), line_number(tests, f"def {test}(")
        left = (f'<p><a href="{up}/{module}.py#L{at}">Line {at}.</a> {inline(what)}</p>'
                f'<p><a href="{up}/{file}#L{where}"><code>pytest {file} -k {test}</code></a> fails.</p>')  # fmt: skip
        right = f'<div class="code"><del>{html.escape(line)}</del><ins>{html.escape(new)}</ins></div>'
        out.append(columns(left, right))
    return "".join(out)


def line_number(source, start):
    """The number of the first line that starts so, after its indent."""
    return next(n for n, text in enumerate(source.split("\n"), start=1) if text.strip().startswith(start))
