"""The annotated DINOv2: its formulas, its pages, what a browser makes of them, and its exercises."""

import html
import json
import multiprocessing as mp
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pygments", reason="pip install -r book/requirements.txt")

import book.__main__ as program  # noqa: E402
from book import build, drawing, mathml, typeset  # noqa: E402
from book.exercises import EXERCISES, changed  # noqa: E402
from book.pages import markdown_table, read_rows  # noqa: E402
from book.plates import PLATES  # noqa: E402
from support.cli import parse_args  # noqa: E402
from vit import vit_pico  # noqa: E402

ROOT = Path(build.__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pages, with pictures by an untrained network."""
    vit = vit_pico(patch_size=8, img_size=64, layer_scale=0.5).eval()
    losses = [{"step": i, "dino": 3.4 - i, "ibot": 3.3 - i} for i in range(3)]
    out = tmp_path_factory.mktemp("book")
    build.build(out, SimpleNamespace(vit=vit, images=drawing.things(program.SEEN, 64), losses=losses))
    return out


def pages(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


def text_of(markup):
    return html.unescape(re.sub("<[^>]*>", "", markup))


@pytest.mark.parametrize(("formula", "expected"), [
    ("(p_ti,k) / Σ_b q", "<mfrac><mrow><msub><mi>p</mi><mrow><mi>t</mi><mi>i</mi><mo>,</mo><mi>k</mi></mrow></msub>"
     '</mrow><mrow><munder><mo movablelimits="false">∑</mo><mrow><mi>b</mi></mrow></munder><mi>q</mi></mrow></mfrac>'),
    ("(a / b", '<mrow><mo form="prefix" stretchy="false">(</mo><mi>a</mi><mo lspace="0" rspace="0">/</mo>'
     "<mi>b</mi></mrow>"),
    ("√(v̂)", '<msqrt><mover accent="true"><mi>v</mi><mo stretchy="false">^</mo></mover></msqrt>'),
    ("M_b'²", "<msubsup><mi>M</mi><mrow><mi>b</mi><mo>′</mo></mrow><mrow><mn>2</mn></mrow></msubsup>"),
    ("0.9ⁱ L_DINO", '<msup><mn>0.9</mn><mrow><mi>i</mi></mrow></msup><mspace width="0.25em"></mspace>'
     "<msub><mi>L</mi><mrow><mtext>DINO</mtext></mrow></msub>"),
    ("layer_decay^(n − 1) < 1e-8", "<msup><mtext>layer_decay</mtext><mrow><mi>n</mi><mo>−</mo><mn>1</mn></mrow></msup>"
     "<mo>&lt;</mo><mn>1e−8</mn>"),
])  # fmt: skip
def test_formulas_by_hand(formula, expected):
    """A fraction's line spans a sum and its argument; within brackets a fraction has a slash."""
    assert mathml.mathml(formula) == f'<math displaystyle="true">{expected}</math>'


def test_a_long_formula_may_break_before_a_sign_or_beside_a_word():
    pieces = re.split("<wbr>|</math> ", mathml.mathml("teacher ← −m · teacher + (1 − m) · student, if m"))
    assert list(map(text_of, pieces)) == ["teacher", "←−m", "·teacher", "+(1−m)", "·student,if", "m"]


@pytest.mark.parametrize(("cell", "kind"), [
    ("Q_bk ← Q_bk / Σ_b Q_bk", "math"), ("(V, B, K)", "math"), ("for s < w", "math"),
    ("aspect: height h = √(s·r), width w = √(s/r)", "math"), ("rows sum to 1; K prototypes", "text"),
    ("ref = 0: brightness; mean grey: contrast; and the hue", "text"), ("bench.png: images/s and memory", "text"),
    ("student_temp", "code"), ("python train.py --data DIR", "code"),
])  # fmt: skip
def test_a_cell_is_a_formula_code_or_text(cell, kind):
    _, (_, block) = typeset.paragraphs("Text:\n\n    " + cell)
    assert (re.findall("<(math|code)", block) or ["text"])[0] == kind
    assert kind == "math" or text_of(block) == cell


def test_text_around_blocks():
    """In a sentence only backticks mark code.  A second line's only cell continues the last cell of the first."""
    assert typeset.inline("`x < 1` and p_t of K") == "<code>x &lt; 1</code> and p_t of K"
    _, (_, block) = typeset.paragraphs("First.\n\n    x  (B, D)  one\n               two\n    y          three")
    assert re.findall('<td colspan="(.)">', block) == ["1", "1", "1", "2", "1"]
    assert [text_of(cell) for cell in re.findall("<td.*?</td>", block)] == ["x", "(B,D)", "one two", "y", "three"]


def test_rows_of_a_file_and_tables_of_a_markdown_file():
    source = '"""Title."""\n\nimport a  # why\n\n# -------------------- Part\n\n\n'
    source += 'def f(x):\n    """Says."""\n    y = x\n    y += 1\n    # then\n    return y\n'
    rows = [(row.title, row.name, row.texts, [n for n, _ in row.lines]) for row in read_rows(source)]
    assert rows == [("", "", ["Title."], [3]), ("Part", "f", ["Says."], [8, 10, 11]), ("", "", ["then"], [13])]
    text = "\n## A\n\nText | this.\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n| c |\n|---|\n## B\n"
    assert markdown_table(text, "A") == [["a", "b"], ["1", "`x`"]]


def test_each_page_has_every_line_its_pictures_examples_and_exercises(folder):
    """log 12 / 4 is the image loss by hand; the matrix is Sinkhorn-Knopp's by hand after two iterations."""
    texts = pages(folder)
    modules = [name.removesuffix(".html") for name in texts if name != "index.html"]
    assert set(modules) == set(build.places_in_paper()[0]) >= {*EXERCISES, *PLATES}
    for module in modules:
        text, source = texts[f"{module}.html"], (ROOT / f"{module}.py").read_text(encoding="utf-8")
        rows = read_rows(source)
        said = "\n".join(part for row in rows for part in [row.title, *row.texts])
        for n, line in enumerate(source.rstrip().split("\n"), start=1):
            assert f'#L{n}">{n}</a>' in text or line.strip('"# -') in said, (module, n)
        pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        assert len(pictures) == len(PLATES.get(module, ())) and not re.search(r"\bnan\b", "".join(pictures)), module
        assert text.count("<del>") == len(EXERCISES.get(module, ())), module
    assert "→ 0.6212" in texts["dino_loss.html"] and "[[0.4146, 0.5854], [0.5862, 0.4138]]" in texts["sinkhorn.html"]


def test_each_link_leads_somewhere(folder):
    """To a file and a line that exist, to a name on the page, or to the paper."""
    texts = pages(folder)
    ids = {name: re.findall(r' id="([^"]*)"', text) for name, text in texts.items()}
    for name, text in texts.items():
        assert len(set(ids[name])) == len(ids[name]), name
        for file, place in set(re.findall(r'href="(?!https:|data:)([^"#]*)#?([^"]*)"', text)):
            path = (folder / file).resolve() if file else folder / name
            assert path.is_file(), (name, file)
            if path.suffix == ".py":
                assert int(place[1:] or 1) <= path.read_text(encoding="utf-8").count("\n"), (name, file, place)
            elif place:
                assert place in ids[path.name], (name, file, place)


def run_train(command, check):
    """In place of train.py: check its flags, and leave the files that it leaves."""
    options, *_ = parse_args(list(map(str, command[2:])))
    torch.save(vit_pico(patch_size=8, img_size=64).state_dict(), options.out / "vit.pt")
    (options.out / "metrics.jsonl").write_text('{"step": 1, "dino": 3.0}\n')


def test_the_program(tmp_path, monkeypatch, capsys):
    """After training; with weights that do not exist; without pygments; with a misspelt flag."""
    made = []
    monkeypatch.setattr(build, "build", lambda out, m: made.append(m) or {"index.html": 10**6, "book.css": 0})
    monkeypatch.setattr(subprocess, "run", run_train)
    assert program.main(["--out", str(tmp_path)]) == 0
    assert made[0].losses == [{"step": 1, "dino": 3.0}] and made[0].images.shape == (program.SEEN, 3, 64, 64)
    assert capsys.readouterr().out.startswith("1 pages, 1.00 MB, ")
    assert program.main(["--weights", str(tmp_path / "none.pt")]) == 2
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    assert program.main([]) == 2
    assert program.main(["--weihgts", "none.pt"]) == 2
    missing, pygments, flag = capsys.readouterr().err.splitlines()
    assert "none.pt" in missing and "pip install -r book/requirements.txt" in pygments and "mean --weights" in flag


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; Debian's package is chromium")
def test_a_browser_draws_every_page(folder, tmp_path):
    """At 1280 and 390 pixels: nothing is wider than its column, nothing overlaps, and every letter has a glyph."""
    given = f"const FOLDER = {json.dumps(folder.as_uri())}, PAGES = {json.dumps(sorted(pages(folder)))};"
    look = (ROOT / "tests/look.js").read_text(encoding="utf-8")
    text = f"<!DOCTYPE html><meta charset='utf-8'><body><script>{given}{look}</script>"
    (tmp_path / "look.html").write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files",
             f"--user-data-dir={tmp_path}", "--virtual-time-budget=600000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags, tmp_path / "look.html"], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="found">([^<]*)</pre></body>', done.stdout)
    assert found, done.stderr[-2000:]
    found = json.loads(html.unescape(found[1]))
    assert found.pop("seen") == 2 * len(pages(folder))
    assert not found, "\n".join(f"{page}: {fault}" for page, faults in found.items() for fault in faults)


def run_pytest(tree, *tests):
    """The exit status of pytest on a copy of the repository, forked from a process that knows no module of ours."""
    words = ["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={tree}", *[f"{tree}/tests/test_{t}" for t in tests]]
    code = f"import pytest, sys; sys.exit(pytest.main({words}))"
    process = mp.get_context("forkserver").Process(target=exec, args=(code,))
    process.start()
    process.join(120)
    return process.exitcode


def test_exercises_fail_their_tests(tmp_path):
    """On a copy every test passes; with its change each one fails (status 1)."""
    tree = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__", "docs", "runs"))
    tried = [(f"{module}.py", *exercise) for module, some in EXERCISES.items() for exercise in some]
    assert run_pytest(tree, *sorted({f"{file}::{test}" for file, *_, test in tried})) == 0
    for file, line, new, _, test in tried:
        source = (tree / file).read_text(encoding="utf-8")
        (tree / file).write_text(changed(source, line, new), encoding="utf-8")
        assert run_pytest(tree, f"{file}::{test}") == 1, f"{test} does not fail with this line in {file}: {new}"
        (tree / file).write_text(source, encoding="utf-8")
