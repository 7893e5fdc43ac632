"""The pages of the book: one for each file of the README's table, and the contents.

Everything on a page comes from a file: text from docstrings and comments, worked examples from the tests, pictures from
the functions that they show (plates.py), the contents from the README.
"""

import ast
import html
import importlib
import json
import os
import re
from pathlib import Path

from book import moving, opening, pages, training
from book.drawing import svg
from book.exercises import EXERCISES, MEASURED, RUNS, USUAL, line_number
from book.notes import notes_of, reference
from book.pages import Row, code_html, columns, docstring, highlighted, read_rows, row_html, table_html
from book.plates import PLATES
from book.typeset import inline, text_html
from explore import write_page

ROOT = Path(__file__).parents[1]
WIDGETS = moving.WIDGETS | training.WIDGETS
PAPER = "https://arxiv.org/abs/2304.07193"
INTRO = f"""<h1>The annotated DINOv2</h1>
<p>A page for each file of <a href="{PAPER}">the paper</a>: text and equations beside the code.  The worked examples are
tests, and the pictures were drawn, while this book was built, by the functions that they show.</p>"""
EXPLORE = """<h2>Point at a patch</h2>
<iframe src="explore.html" title="Where does this patch lie in the other pictures?"></iframe>
<h2>The paper, file by file</h2>"""


def build(out, made):
    """Write all pages into the folder out; return {file: bytes}.  made: vit, images, losses, for the pictures."""
    up = Path(os.path.relpath(ROOT, out)).as_posix()  # from the book to the repository
    places, table = places_in_paper()
    modules = list(places)
    bodies, written, words = {"index": contents(table, modules, made, up)}, {}, {}
    bodies |= {module: file_page(module, places[module], made, up) for module in modules}
    for before, (name, body), after in zip([None, None, *modules], bodies.items(), [*modules, None]):
        body, outline = pages.with_places(body)
        words[name] = pages.words_of(body, outline)
        title = "Contents" if name == "index" else f"{name}.py"
        written[f"{name}.html"] = pages.page(title, body, outline, before, after)
    written["book.css"] = pages.stylesheet((ROOT / "book/book.css").read_text(encoding="utf-8"))
    index = f"const INDEX = {json.dumps(words, ensure_ascii=False, separators=(',', ':'))};\n"
    written["find.js"] = index + (ROOT / "book/find.js").read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    write_page(made.vit, made.images, made.images.shape[-1], out / "explore.html")
    return {name: len(text.encode()) for name, text in written.items()}


def places_in_paper():
    """The README's table [[cell, ...], ...], and {top-level module: its places in the paper} in the table's order."""
    below = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## The paper, file by file\n")[1]
    lines = re.search(r"(?m)^\|.*\n(\|.*\n)+", below).group().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    del table[1]  # the line below the header
    places = {}
    for row in table[1:]:
        for name in re.findall(r"`(\w+)\.py`", " ".join(row)):
            if (ROOT / f"{name}.py").is_file() and row[0] not in places.setdefault(name, []):
                places[name].append(row[0])
    return places, table


def contents(table, modules, made, up):
    """The first page: the opening, then the README's table with links to the pages."""

    def linked(cell):
        text = re.sub(r"<code>((\w+/)+\w+\.py)</code>", rf'<a href="{up}/\1"><code>\1</code></a>', inline(cell))
        return re.sub(rf"<code>({'|'.join(modules)})\.py</code>", r'<a href="\1.html"><code>\1.py</code></a>', text)

    return INTRO + opening.opening(made, up) + EXPLORE + table_html([[linked(cell) for cell in row] for row in table])


def file_page(module, places, made, up):
    """The body of a file's page: its code, pictures, worked examples and exercises."""
    source, path = (ROOT / f"{module}.py").read_text(encoding="utf-8"), f"{up}/{module}.py"
    first, *rows = read_rows(source, notes_of(module, source))
    head = f"""<h1>{module}.py</h1><p class="facts">{", ".join(map(inline, places))} ·
        <a href="{PAPER}">arXiv 2304.07193</a> · <a href="{path}">source, {source.count(chr(10))} lines</a></p>"""
    if not (picture := plate(module, made)):  # then the text has the whole width, and the imports come below
        rows, first = [Row(lines=first.lines), *rows], Row(text=first.text)
    body = row_html(first, path, picture) + reference(module, up)
    body += WIDGETS[module](made) if module in WIDGETS else ""
    body += "<h2>The code</h2>" * (not rows[0].title)
    body += "".join(row_html(row, path) for row in rows)
    return head + body + examples(module, up) + exercises(module, source, up)


def plate(module, made):
    """The picture of a page, drawn now."""
    if module not in PLATES:
        return ""
    picture, words = svg(lambda: PLATES[module](importlib.import_module(module), made))
    return f"<figure>{picture}<figcaption>{inline(f'{PLATES[module].__doc__} {words}')}</figcaption></figure>"


def examples(module, up):
    """Worked examples: the tests that work an answer out by hand, text beside code."""
    file, out = f"tests/test_{module}.py", ""
    source = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).exists() else ""
    code = list(enumerate(highlighted(source), start=1))
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.endswith(("_by_hand", "_on_paper")):
            title, text = node.name.removeprefix("test_").replace("_", " "), docstring(node)
            lines = code[node.body[bool(text)].lineno - 1 : node.end_lineno]
            out += columns(f"<h3>{title}</h3>{text_html(text)}", code_html(lines, f"{up}/{file}"))
    command = f'<a href="{up}/{file}"><code>pytest {file} -k by_hand</code></a>'
    return f"<h2>Worked examples</h2><p>Run them: {command}</p>{out}" if out else ""


def exercises(module, source, up):
    """Break it yourself: one-line changes; folded away, what they do and the test that fails."""
    if module not in EXERCISES:
        return ""
    measured = inline(MEASURED.format(*RUNS.get(module, USUAL)))
    out, file = f"<h2>Break it yourself</h2><p>{measured}</p>", f"tests/test_{module}.py"
    tests = (ROOT / file).read_text(encoding="utf-8")
    for number, (line, new, what, test) in enumerate(EXERCISES[module], start=1):
        at, where = line_number(source, line, f"{module}.py"), line_number(tests, f"def {test}(", file)
        left = f'<p><b>{number}.</b> What breaks if <a href="#L{at}">line {at}</a> is changed so?</p>'
        right = f"""<div class="code"><del>{html.escape(line)}</del><ins>{html.escape(new)}</ins></div>
            <details><summary>Answer</summary><p>{inline(what)}</p><p>This test sees it:
            <a href="{up}/{file}#L{where}"><code>pytest {file} -k {test}</code></a></p></details>"""
        out += columns(left, right)
    return out
