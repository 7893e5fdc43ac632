"""The annotated DINOv2: its formulas, its pages, what a browser makes of them, and its exercises."""

import html
import json
import multiprocessing as mp
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("pygments", reason="pip install -r book/requirements.txt")

import book.__main__ as program  # noqa: E402
from book import build, drawing, mathml, typeset  # noqa: E402
from book.exercises import EXERCISES, line_number  # noqa: E402
from book.pages import read_rows  # noqa: E402
from book.plates import PLATES  # noqa: E402
from support.cli import parse_args  # noqa: E402
from vit import vit_pico  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(build.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pages, with pictures by an untrained network."""
    vit = vit_pico(patch_size=8, img_size=64, layer_scale=0.5).eval()
    losses = [{"step": i, "dino": 3.4 - i, "ibot": 3.3 - i} for i in range(3)]
    out = tmp_path_factory.mktemp("book")
    build.build(out, SimpleNamespace(vit=vit, images=drawing.things(program.SEEN, 64), losses=losses))
    return out


def text_of(markup):
    return html.unescape(re.sub("<[^>]*>", "", markup))


def children_of(element):
    """An element as name(children), or as its text."""
    return element.text or f"{element.tag}({' '.join(map(children_of, element))})"


def test_formulas_by_hand():
    """A long formula may break before a sign or a word, but not in brackets."""
    for formula, expected in {
        "Σ_b'² p_ti,k / Σ_b q": "msubsup(∑ mrow(b ′) mrow(2)) mspace() msub(p mrow(t i , k)) mspace() / mspace() "
                                "munder(∑ mrow(b)) mspace() q",
        "√(v̂)·0.9ⁱ < L_DINO": "msqrt(mover(v ^)) · msup(0.9 mrow(i)) < msub(L mrow(DINO))",
        "in_dim^(n − 1) ≥ 1e-8": "msubsup(in mrow(dim) mrow(n − 1)) ≥ 1e−8",
    }.items():  # fmt: skip
        assert children_of(ElementTree.fromstring(mathml.mathml(formula))) == f"math({expected})"
    pieces = mathml.mathml("teacher ← −m · teacher + (1 − m) · student, if m").split("<wbr>")
    assert list(map(text_of, pieces)) == ["teacher", "←−m", "·teacher", "+(1−m)", "·student,", "ifm"]
    assert '<mo form="infix">+</mo>' in pieces[3]


def test_text_with_blocks():
    """In a sentence only backticks mark code.  A second line's only cell continues the last cell of the first."""
    assert typeset.inline("`x < 1` and p_t of K") == "<code>x &lt; 1</code> and p_t of K"
    shown = typeset.text_html("One\nline.\n\n    x  (B, D)  one.  A\n               two\n    y          3\n\n>>> 1\n1")
    assert shown.startswith("<p>One line.</p><table") and shown.endswith('<pre class="code">&gt;&gt;&gt; 1\n1</pre>')
    assert re.findall('<td colspan="(.)">', shown) == ["1", "1", "1", "2", "1"]
    assert [text_of(cell) for cell in re.findall("<td.*?</td>", shown)] == ["x", "(B,D)", "one.  A two", "y", "3"]
    for text in ("Q_bk ← Q_bk / Σ_b Q_bk", "(V, B, K)", "for s < w", "aspect: height h = √(s·r), width w = √(s/r)"):
        assert typeset.cell(text).startswith("<math"), text
    for text in ("rows sum to 1; K prototypes", "ref = 0: brightness; mean grey: contrast; and the hue"):
        assert typeset.cell(text) == text
    assert typeset.cell("student_temp") == "<code>student_temp</code>"


def test_each_page_has_every_line_its_pictures_examples_exercises_and_links(folder):
    """A link leads to a line of a file, or to a part of a picture on the page."""
    modules, pages = list(build.places_in_paper()[0]), {path.stem: path.read_text() for path in folder.glob("*.html")}
    assert {"index", "explore", *modules} == set(pages) and set(modules) >= {*EXERCISES, *PLATES}
    for module in modules:
        text, source = pages[module], (ROOT / f"{module}.py").read_text(encoding="utf-8")
        said = "\n".join(f"{row.title}\n{row.text}" for row in read_rows(source))
        for n, line in enumerate(source.rstrip().split("\n"), start=1):
            assert f'#L{n}">{n}</a>' in text or line.strip('"# -') in said, (module, n)
        pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
        assert pictures.count("<svg") == (module in PLATES) and not re.search(r"\bnan\b", pictures), module
        assert text.count("<del>") == len(EXERCISES.get(module, ())), module
        assert "_" not in "".join(map(text_of, re.findall("<math.*?</math>", text))), module
    assert '<h2>one step</h2><div class="row"><div class="left"><p>' in pages["train"]
    examples = text_of(pages["dino_loss"]).split("Worked examples")[1]
    assert "The sum is log(2 · 3 · 4/3 · 3/2) = log 12" in examples and "pytest.approx(math.log(12) / 4)" in examples
    assert 'src="explore.html"' in pages["index"] and "const DATA = {" in pages["explore"]
    for text in pages.values():
        ids = re.findall(r' id="([^"]*)"', text)
        assert len(set(ids)) == len(ids)
        for file, place in set(re.findall(r'href="(?!https:|data:)([^"#]*)#?([^"]*)"', text)):
            lines = (folder / file).read_text(encoding="utf-8").count("\n") if file else 0
            assert int(place[1:] or 1) <= lines if file else place in ids, (file, place)


def run_train(command, check):
    """In place of train.py: check its flags, and leave the files that it leaves."""
    options, *_ = parse_args(list(map(str, command[2:])))
    torch.save(vit_pico(patch_size=8, img_size=64).state_dict(), options.out / "vit.pt")
    (options.out / "metrics.jsonl").write_text('{"step": 1, "dino": 3.0}\n')


def test_the_program(tmp_path, monkeypatch, capsys):
    """After training; without pygments; with a misspelt flag."""
    made = []
    monkeypatch.setattr(build, "build", lambda out, m: made.append(m) or {"index.html": 10**6, "book.css": 0})
    monkeypatch.setattr(subprocess, "run", run_train)
    assert program.main(["--out", str(tmp_path)]) == 0
    assert made[0].losses == [{"step": 1, "dino": 3.0}] and made[0].images.shape == (program.SEEN, 3, 64, 64)
    assert capsys.readouterr().out.startswith("1 pages, 1.00 MB, ")
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    assert program.main([]) == program.main(["--otu", "none"]) == 2
    pygments, flag = capsys.readouterr().err.splitlines()
    assert "pip install -r book/requirements.txt" in pygments and "mean --out" in flag


def test_a_browser_draws_every_page(folder, tmp_path, browse):
    """At 1280 and 390 pixels: nothing is wider than its column, nothing overlaps, and every letter has a glyph."""
    names = sorted(path.name for path in folder.glob("*.html"))
    given = f"const FOLDER = {json.dumps(folder.as_uri())}, PAGES = {json.dumps(names)};"
    (tmp_path / "look.html").write_text("<!DOCTYPE html><meta charset='utf-8'><body>", encoding="utf-8")
    shown = browse(tmp_path / "look.html", given + (ROOT / "tests/look.js").read_text(encoding="utf-8"))
    found = re.search(r'<pre id="found">([^<]*)</pre></body>', shown)
    assert json.loads(html.unescape(found[1])) == {"seen": 2 * len(names)}


def test_exercises_fail_their_tests(tmp_path):
    """On a copy every test passes; with its change each one fails (status 1).  A stale line is named with its file."""
    tree = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__", "docs", "runs"))
    tried = [(f"{m}.py", *e, f"{tree}/tests/test_{m}.py::{e[-1]}") for m, some in EXERCISES.items() for e in some]
    flags = ["-q", "-x", f"--rootdir={tree}"]
    with mp.get_context("forkserver").Pool(1, maxtasksperchild=1) as pool:  # a new process for each run
        assert pool.apply(pytest.main, [[*flags, *{path for *_, path in tried}]]) == 0
        for file, line, new, _, test, path in tried:
            source = (tree / file).read_text(encoding="utf-8")
            (tree / file).write_text(source.replace(line, new), encoding="utf-8")
            status = pool.apply(pytest.main, [[*flags, path]])
            assert status == 1, f"{test} does not fail with this line in {file}: {new}"
            (tree / file).write_text(source, encoding="utf-8")
    with pytest.raises(AssertionError, match="occurs 0 times in koleo.py: x = 2"):
        line_number("x = 1\n", "x = 2", "koleo.py")
