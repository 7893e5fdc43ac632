"""The annotated DINOv2: its formulas, its pages, what a browser makes of them, and its exercises.

    pytest tests/book/test_book.py
"""

import html
import json
import multiprocessing as mp
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("pygments", reason="pip install -r book/requirements.txt")

import book.__main__ as program  # noqa: E402
from book import build  # noqa: E402
from book.drawing import things  # noqa: E402
from book.exercises import EXERCISES, changed  # noqa: E402
from book.mathml import mathml  # noqa: E402
from book.pages import markdown_table, read_rows  # noqa: E402
from book.plates import PLATES  # noqa: E402
from book.typeset import inline, paragraphs  # noqa: E402
from vit import vit_pico  # noqa: E402

ROOT = Path(build.__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pages, with pictures by an untrained network."""
    torch.manual_seed(0)
    vit = vit_pico(patch_size=8, img_size=64, layer_scale=0.5).eval()
    losses = [{"step": i, "dino": 3.4 - i, "ibot": 3.3 - i} for i in range(3)]
    out = tmp_path_factory.mktemp("book")
    build.build(out, SimpleNamespace(vit=vit, images=things(program.SEEN, 64), losses=losses))
    return out


@pytest.fixture(scope="module")
def texts(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


def text_of(markup):
    """The text of some HTML."""
    return "".join(ElementTree.fromstring(f"<r>{markup.replace('<wbr>', '')}</r>").itertext())


@pytest.mark.parametrize(("formula", "expected"), [
    ("p_t / Σ_b q", "<mfrac><mrow><msub><mi>p</mi><mrow><mi>t</mi></mrow></msub></mrow><mrow><munder>"
     '<mo movablelimits="false">∑</mo><mrow><mi>b</mi></mrow></munder><mi>q</mi></mrow></mfrac>'),
    ("(a / b)", "OPEN<mi>a</mi><mo>/</mo><mi>b</mi>CLOSE"),  # no fraction within brackets
    ("(a) / √(b)", "<mfrac><mrow><mi>a</mi></mrow><mrow><msqrt><mi>b</mi></msqrt></mrow></mfrac>"),
    ("p_ti,k", "<msub><mi>p</mi><mrow><mi>t</mi><mi>i</mi><mo>,</mo><mi>k</mi></mrow></msub>"),
    ("L_DINO", "<msub><mi>L</mi><mrow><mtext>DINO</mtext></mrow></msub>"),
    ("M_b'²", "<msubsup><mi>M</mi><mrow><mi>b</mi><mo>′</mo></mrow><mrow><mn>2</mn></mrow></msubsup>"),
    ("0.9ⁱ λ_θ", "<msup><mn>0.9</mn><mrow><mi>i</mi></mrow></msup>SPACE<msub><mi>λ</mi><mrow><mi>θ</mi></mrow></msub>"),
    ("v̂ ŷ", '<mover accent="true"><mi>v</mi>HAT</mover>SPACE<mover accent="true"><mi>y</mi>HAT</mover>'),
    ("layer_decay^(n − 1) < 1e-8", "<msup><mtext>layer_decay</mtext><mrow><mi>n</mi><mo>−</mo><mn>1</mn></mrow></msup>"
     "<mo>&lt;</mo><mn>1e−8</mn>"),
    ("a = (b", "<mi>a</mi><mo>=</mo>OPEN<mi>b</mi></mrow>"),  # an open bracket
])  # fmt: skip
def test_formulas_by_hand(formula, expected):
    for name, markup in (("SPACE", '<mspace width="0.25em"></mspace>'), ("HAT", '<mo stretchy="false">^</mo>'),
                         ("OPEN", '<mrow><mo form="prefix" stretchy="false">(</mo>'),
                         ("CLOSE", '<mo form="postfix" stretchy="false">)</mo></mrow>')):  # fmt: skip
        expected = expected.replace(name, markup)
    assert mathml(formula) == f'<math displaystyle="true">{expected}</math>'


def test_a_long_formula_may_break_before_a_sign():
    pieces = mathml("teacher ← m · teacher + (1 − m) · student").split("<wbr>")
    assert list(map(text_of, pieces)) == ["teacher", "←m", "·teacher", "+(1−m)", "·student"]


@pytest.mark.parametrize(("cell", "kind"), [
    ("Q_bk ← Q_bk / Σ_b Q_bk", "math"), ("(V, B, K)", "math"), ("τ", "math"), ("for s < w", "math"),
    ("aspect: height h = √(s·r), width w = √(s/r)", "math"), ("rows sum to 1; K prototypes", "text"),
    ("ref = 0: brightness; mean grey: contrast; and the hue", "text"), ("bench.png: images/s and memory", "text"),
    ("student_temp", "code"), ("python train.py --data DIR", "code"),
])  # fmt: skip
def test_a_cell_is_a_formula_code_or_text(cell, kind):
    _, (_, block) = paragraphs("Text:\n\n    " + cell)
    assert re.findall("<(math|code)", block)[:1] == ([kind] if kind != "text" else [])
    if kind != "math":
        assert text_of(block) == cell


def test_in_a_sentence_only_backticks_are_code():
    assert inline("`x < 1` and p_t of K") == "<code>x &lt; 1</code> and p_t of K"


def test_columns_of_a_block():
    """The second line's only cell continues the last cell of the first."""
    _, (_, block) = paragraphs("First.\n\n    x  (B, D)  one\n               two\n    y          three")
    assert re.findall('<td colspan="(.)">', block) == ["1", "1", "1", "2", "1"]
    assert [text_of(cell) for cell in re.findall("<td.*?</td>", block)] == ["x", "(B,D)", "one two", "y", "three"]


def test_rows_of_a_file():
    source = '"""Title."""\n\nimport a  # why\n\n# -------------------- Part\n\n\n'
    source += 'def f(x):\n    """Says."""\n    y = x\n    y += 1\n    # then\n    return y\n'
    rows = [(row.title, row.name, row.texts, [n for n, _ in row.lines]) for row in read_rows(source)]
    assert rows == [("", "", ["Title."], [3]), ("Part", "f", ["Says."], [8, 10, 11]), ("", "", ["then"], [13])]


def test_a_markdown_table():
    text = "\n## A\n\nText | this.\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n| c |\n|---|\n## B\n"
    assert markdown_table(text, "A") == [["a", "b"], ["1", "`x`"]]
    assert markdown_table(text, "B") == markdown_table(text, "C") == []


def test_a_page_for_each_file_of_the_table_and_no_line_is_lost(texts):
    modules = [name.removesuffix(".html") for name in texts if name != "index.html"]
    assert set(modules) == set(build.places_in_paper()[0]) >= {*EXERCISES, *PLATES}
    assert sum(map(len, texts.values())) < 6e6 and not any("<script" in t or "<img" in t for t in texts.values())
    for module in modules:
        source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        rows = read_rows(source)
        said = "\n".join(text for row in rows for text in [row.title, *row.texts])
        shown = {n for row in rows for n, _ in row.lines}
        for n, line in enumerate(source.split("\n"), start=1):
            assert n in shown or line.strip('"# -') in said, (module, n)


def test_each_link_leads_somewhere(folder, texts):
    """To a file and a line that exist, to a name on the page, or to the paper."""
    ids = {name: re.findall(r' id="([^"]*)"', text) for name, text in texts.items()}
    for name, text in texts.items():
        assert len(set(ids[name])) == len(ids[name]), name
        for link in {link for link in re.findall(r'href="([^"]*)"', text) if not link.startswith(("https:", "data:"))}:
            file, _, place = link.partition("#")
            path = (folder / file).resolve() if file else folder / name
            assert path.is_file(), (name, link)
            if re.fullmatch(r"L\d+", place):
                assert int(place[1:]) <= path.read_text(encoding="utf-8").count("\n"), (name, link)
            elif place:
                assert place in ids[path.name], (name, link)


def test_pictures_and_examples_are_on_their_pages(texts):
    """log 12 / 4 is the image loss by hand; the second matrix is Sinkhorn-Knopp's after two iterations."""
    for module, plates in PLATES.items():
        pictures = re.findall(r"<svg.*?</svg>", texts[f"{module}.html"], re.DOTALL)
        assert len(pictures) == len(plates) and not any(re.search(r"\bnan\b", p) for p in pictures), module
    assert "→ 0.6212" in texts["dino_loss.html"] and "[[0.4146, 0.5854], [0.5862, 0.4138]]" in texts["sinkhorn.html"]
    assert all("Break it yourself" in texts[f"{module}.html"] for module in EXERCISES)


def test_the_program(tmp_path, monkeypatch, capsys):
    """With given weights; with weights that do not exist; with a short training; without pygments."""
    made = []
    monkeypatch.setattr(build, "build", lambda out, m: made.append(m) or {"index.html": 10**6, "book.css": 0})
    torch.save(vit_pico(patch_size=8, img_size=64).state_dict(), tmp_path / "vit.pt")
    assert program.main(["--weights", str(tmp_path / "vit.pt"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("1 pages, 1.00 MB, ") and not made[0].losses
    monkeypatch.setattr(program, "STEPS", 2)
    assert program.main(["--out", str(tmp_path)]) == 0
    assert made[1].images.shape == (program.SEEN, 3, 64, 64) and made[1].losses and not made[1].vit.training
    capsys.readouterr()
    assert program.main(["--weights", str(tmp_path / "none.pt")]) == 2
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    assert program.main([]) == 2
    missing, pygments = capsys.readouterr().err.splitlines()
    assert "none.pt" in missing and "pip install -r book/requirements.txt" in pygments


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; Debian's package is chromium")
def test_a_browser_draws_every_page(folder, texts, tmp_path):
    """At 1280 and 390 pixels: nothing is wider than its column, nothing overlaps, and every letter has a glyph."""
    (tmp_path / "look.html").write_text(
        f"<!DOCTYPE html><meta charset='utf-8'><body><script>const FOLDER = {json.dumps(folder.as_uri())};"
        f"const PAGES = {json.dumps(sorted(texts))};\n{(ROOT / 'tests/look.js').read_text(encoding='utf-8')}</script>",
        encoding="utf-8")  # fmt: skip
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-sync", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=1400,1000", "--virtual-time-budget=600000", "--dump-dom"]  # fmt: skip
    command = [CHROMIUM, *flags, (tmp_path / "look.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="found">([^<]*)</pre></body>', done.stdout)
    assert found, done.stderr[-2000:]
    found = json.loads(html.unescape(found[1]))
    assert found.pop("seen") == 2 * len(texts)
    assert not found, "\n".join(f"{page}: {fault}" for page, faults in found.items() for fault in faults)


def run_pytest(tree, *words):
    """The exit status of pytest on a copy of the repository, forked from a process that has imported torch only."""
    argv, sys.argv = sys.argv, ["pytest", "-q", "-x", "-p", "no:cacheprovider", f"--rootdir={tree}", *words]
    try:
        process = mp.get_context("forkserver").Process(target=runpy.run_module, args=("pytest", None, "__main__"))
        process.start()
    finally:
        sys.argv = argv
    process.join(120)
    return process.exitcode


def test_exercises_fail_their_tests(tmp_path):
    """On a copy every test passes; with its change each one fails (status 1)."""
    for name in ("support", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    tried = [(module, *exercise) for module, some in EXERCISES.items() for exercise in some]
    assert run_pytest(tmp_path, *sorted({f"{tmp_path}/tests/test_{m}.py::{test}" for m, *_, test in tried})) == 0
    wrong = []
    for module, line, new, _, test in tried:
        path = tmp_path / f"{module}.py"
        source = path.read_text(encoding="utf-8")
        path.write_text(changed(source, line, new), encoding="utf-8")
        status = run_pytest(tmp_path, f"{tmp_path}/tests/test_{module}.py::{test}")
        wrong += [f"{module}.py: {test} has status {status}, not 1, with: {new}"] if status != 1 else []
        path.write_text(source, encoding="utf-8")
    assert not wrong, "\n".join(wrong)
