"""The annotated DINOv2: a page for each file of the paper, code beside its text, with numbers and pictures that ran.

    python book.py                             docs/book/index.html, with a network trained for a minute
    python book.py --weights runs/mine/vit.pt  the same, with pictures by a network of your own

Everything on a page is taken from a file: text from docstrings and comments, examples from the tests, which run while
the page is built, pictures from the functions that they show (`support/plates.py`), the paper's sections, the order of
reading and the differences from the official code from the README.
"""

import argparse
import doctest
import html
import importlib
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from book.drawing import svg, things
from book.examples import work_through
from book.exercises import EXERCISES
from book.pages import (
    LINES,
    WORDS,
    code_lines,
    columns,
    highlighted,
    markdown_table,
    minutes,
    page,
    read_rows,
    row_html,
    stylesheet,
    table_html,
    text_html,
)
from book.plates import PLATES
from book.typeset import inline
from recipes import get_recipe
from support.cli import report_errors
from support.device import choose_threads
from support.images import batches, whole_patches
from support.weights import load_vit

ROOT = Path(__file__).parents[1]
PAPER = "https://arxiv.org/abs/2304.07193"
STEPS = 700  # ours: about a minute of training on one core
SEEN = 6  # pictures of the PCA page
SECTIONS = {  # of the larger files, what the paper speaks of; the rest is their command line
    "train": ("networks", "schedules", "one step"),
    "evaluate": ("Features", "k-NN"),
    "pca_viz": ("The two PCAs",),
    "curate": ("the equations of §3 and App. A",),
}
MORE = {  # tests that work an example out without saying so in their names
    "evaluate": ("test_knn_near_neighbour_outvotes_the_majority", "test_knn_vote_flips_where_the_arithmetic_says"),
    "train": ("test_teacher_is_a_moving_average",),
    "curate": ("test_a_chain_is_one_component", "test_a_component_goes_whole"),
    "koleo": ("test_it_spreads_a_bunch_of_points",),
    "pca_viz": ("test_the_sides_are_judged_at_the_threshold",),
}
DIFFERENCES = {  # rows of the README's table "Paper, official code, ours"
    "head": ("heads of the two losses", "prototypes", "weights at the start"),
    "sinkhorn": ("centering", "Sinkhorn's exponential"), "centering": ("centering",), "koleo": ("KoLeo",),
    "masking": ("masks",), "schedule": ("schedules",), "optimizer": ("optimizer",),
    "linear_probe": ("linear probe", "logistic regression", "linear segmentation"),
    "vit": ("positions at the start", "positions, stored", "positions, resized", "SwiGLU's width, ViT-B's depth",
            "packing", "stochastic depth", "patches to tokens"),
    "augment": ("blur", "the image a crop is cut from", "augmentation"),
    "train": ("heads of the two losses", "precision", "high-resolution phase", "distillation"),
    "pca_viz": ("foreground",), "matching": ("patch matching",),
}  # fmt: skip
EVENING = re.compile(r"\*\*In an evening\*\*: (.*?)\. The top level", re.DOTALL)

# ---------------------------------------------------------------------------- what the README says


def reading_order(readme):
    """Modules of the evening, of the next one, and the rest of the table, in their orders."""
    text = EVENING.search(readme)[1]
    first, _, then = text.replace("\n", " ").rpartition(". ")
    table = [name for row in markdown_table(readme, "The paper, file by file")[1:] for name in files(row[1])]
    tonight, tomorrow = (list(dict.fromkeys(files(part))) for part in (first, then))
    rest = [name for name in dict.fromkeys(table) if name not in tonight + tomorrow]
    return tonight, tomorrow, rest


def files(text):
    """Names of our top-level files in a Markdown text, without .py."""
    return re.findall(r"`(\w+)\.py`", text)


def sections_of_the_paper(readme):
    """module -> [what the README's table calls its place in the paper, ...]"""
    found = {}
    for place, cell, *_ in markdown_table(readme, "The paper, file by file")[1:]:
        for name in files(cell):
            found.setdefault(name, []).append(place)
    return found


def differences(readme, module):
    """Rows of the table "Paper, official code, ours", the header first; none, if none is this file's."""
    rows = markdown_table(readme, "Paper, official code, ours")
    some = [row for row in rows[1:] if row[0] in DIFFERENCES.get(module, ())]
    return [rows[0], *some] if some else []


# ---------------------------------------------------------------------------- what runs


def train_a_minute(steps=STEPS):
    """The default recipe cut short: its ViT, pictures that it did not see, and the losses of each step."""
    import train

    r = get_recipe("shapes", steps=steps)
    torch.manual_seed(r.seed)
    run, losses, hires = train.start_run(r, torch.device("cpu")), [], None
    while run.step < r.steps:
        values = train.schedules_at(run.step, r)
        if values["hires"] != hires:
            hires = values["hires"]
            training, test = train.splits_at(run.step, r)
            stream = batches(training, r.batch, r.seed, run.step, torch.device("cpu"))
            crop = train.make_crop(r, run.step)
        result, _, _ = train.train_step(run, next(stream), crop, values)
        losses.append({"hires": hires, **{name: value.item() for name, value in result.items()}})
    vit = run.ema.backbone.eval()
    return SimpleNamespace(vit=vit, images=test.pixels[:SEEN], losses=losses, K=r.n_prototypes)


def load(weights):
    """The same of a network of one's own; of its training we know nothing."""
    vit = load_vit(weights).eval()
    return SimpleNamespace(vit=vit, images=things(SEEN, whole_patches(64, vit.patch_size)), losses=[])


# ---------------------------------------------------------------------------- a page


def file_page(module, made, readme, up):
    """A file of the paper -> (HTML of its page, minutes).  up: the way from the book to the repository."""
    source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
    sections, path = read_rows(source), f"{up}/{module}.py"
    assert not doctest.testmod(importlib.import_module(module)).failed, f"an example in {module}.py is wrong"
    shown = [(title, rows) for title, rows in sections if title is None or title in SECTIONS.get(module, (title,))]
    examples = work_through(module, MORE.get(module, ()))
    names = {row.name for _, rows in shown for row in rows}
    places = ", ".join(inline(place) for place in sections_of_the_paper(readme)[module])
    body = [f'<h1>{module}.py</h1><p class="facts">{places} of <a href="{PAPER}">arXiv 2304.07193</a> · '
            f'<a href="{path}">{module}.py</a>, {source.count(chr(10))} lines · '
            f'<a href="{up}/tests/test_{module}.py">tests/test_{module}.py</a></p>']  # fmt: skip
    waiting = {name: [] for name in names}
    for example in examples:
        called = [function for function, *_ in example.calls]
        own = next((name for f in called for name in (f, f.partition(".")[0]) if name in names), "")
        waiting.setdefault(own, []).append(example)
    below = plates(module, made)
    for title, rows in shown:
        if title:
            body.append(f"<h2>{html.escape(title[0].upper() + title[1:])}</h2>")
        pending = []
        for inside, block in columns(rows, path, below):
            if any(inside):  # another definition begins; comments within one have no name
                body, pending = body + pending, []
            body.append(block)
            pending += [example_row(e, module, up) for name in inside for e in waiting.pop(name, [])]
        body, below = body + pending, ""
    body += [example_row(e, module, up) for left in waiting.values() for e in left]
    left_out = [(title, rows) for title, rows in sections if (title, rows) not in shown]
    if left_out:
        links = ", ".join(f'<a href="{path}#L{rows[0].first}">{html.escape(title)}</a>' for title, rows in left_out)
        body.append(f'<p class="facts">Not on this page: {links}.</p>')
    rows = differences(readme, module)
    if rows:
        cells = [[inline(re.sub(r"\*\*|\[|\]\([^)]*\)", "", cell)) for cell in row] for row in rows]
        link = f'<a href="{up}/README.md#paper-official-code-ours">README.md</a>'
        body.append(f"<h2>Paper, official code, ours</h2>{table_html(cells)}<p class='facts'>All of them: {link}</p>")
    body.append(breaks(module, source, up))
    return "\n".join(body), minutes([row for _, rows in shown for row in rows])


def plates(module, made):
    """The pictures of a page, made now."""
    out = []
    for draw in PLATES.get(module, ()):
        if draw.__name__ == "a_minute_of_training" and not made.losses:
            continue
        picture, words = svg(lambda draw=draw: draw(importlib.import_module(module), made), f"{module}-{draw.__name__}")
        caption = inline(" ".join((draw.__doc__ + " " + words).split()))
        out.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="plates">{"".join(out)}</div>' if out else ""


def example_row(example, module, up):
    """A test that works an example out: what it says and what ran on the left, its code on the right."""
    title = example.name.removeprefix("test_").replace("_", " ")
    path = f"{up}/tests/test_{module}.py"
    ran = "".join(f"<dt><code>{html.escape(call)}</code></dt><dd>→ {html.escape(', '.join(results))}</dd>"
                  for _, call, results in example.calls)  # fmt: skip
    head = f'<h3><a href="{path}#L{example.first}">What ran: {title}</a></h3>'
    left = f'<div class="ran">{head}{text_html([example.text])}<dl>{ran}</dl></div>'
    return row_html(left, code_lines(highlighted(example.source), "", numbers=False))


def breaks(module, source, up):
    """Break it yourself."""
    if module not in EXERCISES:
        return ""
    out = ["<h2>Break it yourself</h2>"]
    for line, new, what, test in EXERCISES[module]:
        at = next(n for n, text in enumerate(source.split("\n"), start=1) if text.strip() == line)
        says = (ROOT / f"tests/test_{module}.py").read_text(encoding="utf-8").split("\n")
        where = next(n for n, text in enumerate(says, start=1) if text.startswith(f"def {test}("))
        file = f"tests/test_{module}.py"
        link = f'<a href="{up}/{file}#L{where}"><code>pytest {file} -k {test}</code></a>'
        change = f"<del>{html.escape(line)}</del><ins>{html.escape(new)}</ins>"
        out.append(f'<div class="break"><div><p><a href="{up}/{module}.py#L{at}">Line {at}.</a> {inline(what)}</p>'
                   f'<p>{link} fails.</p></div><div class="code">{change}</div></div>')  # fmt: skip
    return "".join(out)


def contents(groups, times, readme, up):
    """The first page: the order of reading with minutes, and the README's table with links to the pages."""
    title, _, intro = __doc__.strip().partition(": ")
    intro = [inline(" ".join(part.split())) for part in intro.split("\n\n") if not part.startswith(" ")]
    body = [f"<h1>{title}</h1>", *(f"<p>{part[0].upper()}{part[1:]}</p>" for part in intro)]
    places = sections_of_the_paper(readme)
    for title, names in groups:
        total = sum(times[name] for name in names)
        body.append(f'<h2>{title}, {total:.0f} minutes</h2><ol class="order">')
        for name in names:
            body.append(f'<li><a href="{name}.html">{name}.py</a><span>{"; ".join(map(inline, places[name]))}</span>'
                        f"<span>{max(1, round(times[name]))} min</span></li>")  # fmt: skip
        body.append("</ol>")
    said = inline(" ".join(EVENING.search(readme)[1].split()))
    body.append(f'<p class="facts">{said}. A minute is {WORDS} words, or {LINES} lines of code.</p>')

    def linked(cell):
        away = r"<code>((support|tests)/\w+\.py)</code>"
        text = re.sub(away, rf'<a href="{up}/\1"><code>\1</code></a>', inline(cell))
        return re.sub(r"<code>(\w+)\.py</code>", r'<a href="\1.html"><code>\1.py</code></a>', text)

    rows = [[linked(cell) for cell in row] for row in markdown_table(readme, "The paper, file by file")]
    body += ["<h2>The paper, file by file</h2>", table_html(rows)]
    return "\n".join(body)


def build(out, made):
    """Write all pages into the folder `out`; {file: bytes}."""
    readme, up = (ROOT / "README.md").read_text(encoding="utf-8"), Path(os.path.relpath(ROOT, out)).as_posix()
    groups = list(zip(("In an evening", "The next evening", "When you need them"), reading_order(readme)))
    order = [name for _, names in groups for name in names]
    out.mkdir(parents=True, exist_ok=True)
    texts, times = {}, {}
    for name in order:
        texts[name], times[name] = file_page(name, made, readme, up)
    written = {"index.html": page("Contents", contents(groups, times, readme, up), after=beside(order, 0))}
    for i, name in enumerate(order):
        written[f"{name}.html"] = page(f"{name}.py", texts[name], beside(order, i - 1), beside(order, i + 1))
    written["book.css"] = stylesheet((ROOT / "support/book.css").read_text(encoding="utf-8"))
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    return {name: len(text.encode()) for name, text in written.items()}


def beside(order, i):
    """(file, title) of a neighbour, or None."""
    return (f"{order[i]}.html", f"{order[i]}.py") if 0 <= i < len(order) else None


# ---------------------------------------------------------------------------- the program


@report_errors("book.py", ValueError)
def main(argv=None):
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="book.py", description="Build the annotated DINOv2, a page for each file.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/book", help="folder of the pages (default: docs/book)")
    parser.add_argument("--weights", help="a network for the pictures of features, instead of a minute's training")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    choose_threads()
    made = load(args.weights) if args.weights else train_a_minute()
    trained = time.perf_counter() - began
    sizes = build(args.out.resolve(), made)
    print(f"{len(sizes) - 1} pages, {sum(sizes.values()) / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s, of which "
          f"{trained:.0f} s of training: {args.out}/index.html")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
