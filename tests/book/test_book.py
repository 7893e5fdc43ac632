"""The annotated DINOv2: its pages, what a browser makes of them, and the changes that its readers are told to make.

    pytest tests/test_book.py             some of the changes
    pytest tests/test_book.py --long      all of them
"""

import html.parser
import json
import multiprocessing as mp
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import torch

import book.__main__ as book

pytest.importorskip("pygments", reason="pip install -r requirements-dev.txt")

from book.drawing import things  # noqa: E402
from book.exercises import EXERCISES, changed  # noqa: E402
from book.mathml import mathml  # noqa: E402
from book.pages import markdown_table, read_rows  # noqa: E402
from book.plates import PLATES  # noqa: E402
from book.typeset import inline, paragraphs  # noqa: E402
from support import shapes  # noqa: E402
from vit import vit_pico  # noqa: E402

ROOT = Path(book.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ("dino_loss", "koleo", "sinkhorn", "schedule", "augment")  # of which the first change is tried without --long
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pages, of a network that learned nothing."""
    torch.manual_seed(0)
    vit = vit_pico(patch_size=8, img_size=64, layer_scale=0.5).eval()
    losses = [{"dino": 3.4 - i, "ibot": 3.3 - i, "hires": i == 2} for i in range(3)]
    out = tmp_path_factory.mktemp("book")
    book.build(out, SimpleNamespace(vit=vit, images=things(book.SEEN, 64), losses=losses, K=32))
    return out


@pytest.fixture(scope="module")
def texts(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


# --------------------------------------------------------------------------------------------------------
# Text


def test_a_formula_by_hand():
    """p_t / Σ_b q in a block is a fraction whose line has all of the sum below it; in a sentence it has a slash."""
    shown = "".join(ElementTree.fromstring(mathml("p_t / Σ_b q", display=True)).itertext())
    assert shown == "pt∑bq"
    assert "<mfrac><mrow><msub><mi>p</mi>" in mathml("p_t / Σ_b q", display=True)
    assert "<msub><mi>b</mi><mrow><mi>j</mi><mo>′</mo></mrow></msub>" in mathml("⟨a_i, b_j'⟩")
    assert "<mfrac>" not in mathml("p_t / Σ_b q") and "<mo" in mathml("p_t / Σ_b q")


@pytest.mark.parametrize(("text", "maths"), [
    ("the K prototypes of B images", ["K", "B"]), ("a row sums to n, which need not be 1", ["n"]),
    ("at τ = 0.04 on", ["τ", "=0.04"]), ("(V, B, K), global views first", ["(V,B,K)"]),
    ("it is (ours) or B.1 of 2021, at 8 M codes", []),
    ("teacher ← m · teacher + (1 − m) · student", ["teacher", "←m·teacher", "+(1−m)·student"]),
    ("−log 2/3 of log 2, and a half", ["−log2/3", "log2"]),
])  # fmt: skip
def test_what_is_maths_in_a_sentence(text, maths):
    found = re.findall("<math>.*?</math>", inline(text))
    assert ["".join(ElementTree.fromstring(one).itertext()) for one in found] == maths


def test_code_in_a_sentence():
    assert inline("`x < 1` and student_temp") == "<code>x &lt; 1</code> and <code>student_temp</code>"


def test_columns_of_a_block():
    """The second line's only cell goes on with the first one's last."""
    _, (_, block) = paragraphs("First.\n\n    x  (B, D)  one\n               two\n    y          three")
    cells = ["".join(ElementTree.fromstring(cell).itertext()) for cell in re.findall("<td.*?</td>", block)]
    assert cells == ["x", "(B,D)", "one two", "y", "three"]


def test_rows_of_a_file():
    source = '"""Title."""\n\nimport a  # why\n\n# -------------------- Part\n\n\n'
    source += 'def f(x):\n    """Says."""\n    y = x\n    y += 1\n    # then\n    return y\n'
    (none, first), (title, rows) = read_rows(source)
    assert none is None and first[0].texts == ["Title."] and [n for n, _ in first[0].lines] == [3]
    assert title == "Part" and [(row.name, row.texts) for row in rows] == [("f", ["Says."]), ("", ["then"])]
    assert [[n for n, _ in row.lines] for row in rows] == [[8, 10, 11], [13]]


def test_no_line_of_code_is_lost():
    """Each line of a file is on its right, on its left, or blank."""
    for module in EXERCISES:
        source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        rows = [row for _, rows in read_rows(source) for row in rows]
        shown = {n for row in rows for n, _ in row.lines}
        said = " ".join([" ".join(row.texts) for row in rows] + [title or "" for title, _ in read_rows(source)])
        for n, line in enumerate(source.split("\n"), start=1):
            words = line.strip().strip('"#').strip()
            assert n in shown or words in said or not words or set(words) == {"-"} or "----" in line, (module, n)


# --------------------------------------------------------------------------------------------------------
# Pages


def test_a_page_for_each_file_of_the_table(texts):
    named = {name for row in markdown_table(README, "The paper, file by file")[1:] for name in book.files(row[1])}
    assert {name.removesuffix(".html") for name in texts} == {"index", *named} == {"index", *EXERCISES}
    assert sum(len(text.encode()) for text in texts.values()) < 6e6
    assert not any("<script" in text or "<img" in text for text in texts.values())


def test_each_difference_is_on_a_page():
    rows = {row[0] for row in markdown_table(README, "Paper, official code, ours")[1:]}
    assert rows == {row for some in book.DIFFERENCES.values() for row in some}


class Tags(html.parser.HTMLParser):
    """Links and ids; every tag must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_each_link_leads_somewhere(folder, texts):
    """To a file that is there and a line that it has, to a name of the page, or to the paper."""
    pages = {name: Tags() for name in texts}
    for name, tags in pages.items():
        tags.feed(texts[name])
        assert not tags.open and len(set(tags.ids)) == len(tags.ids), name
    for name, tags in pages.items():
        for link in set(tags.links) - {book.PAPER}:
            file, _, place = unquote(link).partition("#")
            path = (folder / file).resolve() if file else folder / name
            assert path.is_file(), (name, link)
            if re.fullmatch(r"L\d+", place):
                assert int(place[1:]) <= path.read_text(encoding="utf-8").count("\n") + 1, (name, link)
            elif path.suffix == ".html" and place:
                assert place in pages[path.name].ids, (name, link)


def test_pictures_are_drawn(texts):
    for module, plates in PLATES.items():
        pictures = re.findall(r"<svg.*?</svg>", texts[f"{module}.html"], re.DOTALL)
        assert len(pictures) == len(plates), module
        for picture in pictures:
            kinds = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture).iter()]
            assert kinds.count("path") + kinds.count("image") + kinds.count("use") > 2, module
            assert not re.search(r"\bnan\b", picture), module


def test_what_ran_stands_on_the_page(texts):
    """log 12 / 4 of the image loss, and two iterations of a 2×2 matrix."""
    assert "→ 0.6212" in texts["dino_loss.html"] and "[[0.4146, 0.5854], [0.5862, 0.4138]]" in texts["sinkhorn.html"]
    assert all("What ran" in texts[f"{name}.html"] for name in EXERCISES if name not in ("recipes", "distributed"))


def test_training_for_two_steps_and_weights(tmp_path, monkeypatch, capsys):
    """What the program does besides: its own network, or one that is given."""
    monkeypatch.setattr(shapes, "N_IMAGES", {"train": 64, "test": 10})
    made = book.train_a_minute(steps=2)
    assert len(made.losses) == 2 and made.images.shape == (book.SEEN, 3, 64, 64) and not made.vit.training
    torch.save(made.vit.state_dict(), tmp_path / "vit.pt")
    capsys.readouterr()
    monkeypatch.setattr(book, "build", lambda out, made: {"index.html": len(made.images), "book.css": 0})
    assert book.main(["--weights", str(tmp_path / "vit.pt"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("1 pages, 0.00 MB, ")
    assert book.main(["--weights", str(tmp_path / "none.pt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --------------------------------------------------------------------------------------------------------
# A browser


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; Debian's package is chromium")
def test_a_browser_draws_every_page(folder, texts, tmp_path):
    """At 1280 and at 390 pixels: nothing is wider than the page or than its column, nothing is drawn over something
    else, and every letter has a glyph."""
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


# --------------------------------------------------------------------------------------------------------
# Break it yourself


def run_pytest(tree, *words):
    """The exit status of pytest on a copy of the repository, in a process forked from one that has imported torch.

    Nothing of ours is loaded there yet, so that all comes from the copy.
    """
    argv, sys.argv = sys.argv, ["pytest", "-q", "-x", "-p", "no:cacheprovider", f"--rootdir={tree}", *words]
    try:
        process = mp.get_context("forkserver").Process(target=runpy.run_module, args=("pytest", None, "__main__"))
        process.start()
    finally:
        sys.argv = argv
    process.join(120)
    return process.exitcode


def copy_of(tree):
    """The repository's own code, into the folder `tree`."""
    for name in ("support", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md"]:
        shutil.copy(path, tree)
    return tree


def test_each_exercise_has_its_line():
    for module, exercises in EXERCISES.items():
        source, tests = ((ROOT / f"{path}.py").read_text(encoding="utf-8") for path in (module, f"tests/test_{module}"))
        assert 2 <= len(exercises) <= 3, module
        for line, new, _, test in exercises:
            assert changed(source, line, new) != source and f"\ndef {test}(" in tests, (module, line)


def test_exercises_fail_their_tests(request, tmp_path):
    """Each change on a copy of its own: status 1, a test that failed.  Without a change all of them pass."""
    every = request.config.getoption("--long")
    tried = [(module, *exercise) for module, some in EXERCISES.items()
             for exercise in (some if every else some[:1] if module in FEW else ())]  # fmt: skip
    (tmp_path / "whole").mkdir()
    tree = copy_of(tmp_path / "whole")
    assert run_pytest(tree, *sorted({f"{tree}/tests/test_{module}.py::{test}" for module, *_, test in tried})) == 0
    unseen = []
    for number, (module, line, new, _, test) in enumerate(tried):
        (tmp_path / str(number)).mkdir()
        tree = copy_of(tmp_path / str(number))
        path = tree / f"{module}.py"
        path.write_text(changed(path.read_text(encoding="utf-8"), line, new), encoding="utf-8")
        status = run_pytest(tree, f"{tree}/tests/test_{module}.py::{test}")
        unseen += [f"{module}: {line} -> {new}: status {status}"] if status != 1 else []
        shutil.rmtree(tree)
    assert not unseen, "\n".join(unseen)
