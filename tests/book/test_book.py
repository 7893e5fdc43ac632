"""The annotated DINOv2: its formulas, its pages, what a browser makes of them, and its exercises."""

import html
import json
import multiprocessing as mp
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("pygments", reason="pip install -r book/requirements.txt")

import book.__main__ as program  # noqa: E402
import train  # noqa: E402
import vit  # noqa: E402
from book import build, drawing, mathml, notes, opening, typeset  # noqa: E402
from book.exercises import EXERCISES, line_number  # noqa: E402
from book.pages import read_rows  # noqa: E402
from book.plates import PLATES  # noqa: E402
from recipes import get_recipe  # noqa: E402
from support.cli import parse_args  # noqa: E402
from support.start import make_crop, start_run  # noqa: E402
from vit import vit_pico  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(build.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pages, with pictures by an untrained network."""
    vit = vit_pico(patch_size=8, img_size=64, layer_scale=0.5).eval()
    losses = [{"step": i, "dino": 3.4 - i, "ibot": 3.3 - i} for i in range(3)]
    out = tmp_path_factory.mktemp("book")
    images, snapshots = drawing.things(program.SEEN, 64), [(step, vit) for step in range(8)]
    run = start_run(get_recipe("shapes"), torch.device("cpu"))
    build.build(out, SimpleNamespace(vit=vit, images=images, losses=losses, snapshots=snapshots, run=run))
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
        "in_dim^(n − 1) ≥ 1e-8": "msup(mtext(in_dim) mrow(n − 1)) ≥ 1e−8",
    }.items():  # fmt: skip
        assert children_of(ElementTree.fromstring(mathml.mathml(formula))) == f"math({expected})"
    pieces = mathml.mathml("teacher ← −m · teacher + (1 − m) · student, if m").split("<wbr>")
    assert list(map(text_of, pieces)) == ["teacher", "←−m·teacher", "+(1−m)·student,", "ifm"]
    assert '<mo form="infix">+</mo>' in pieces[2]


def test_text_with_blocks():
    """Sentences with code and a subscript.  A second line's only cell continues the last cell of the first."""
    names = "<code>x &lt; 1</code>, p<sub>t</sub>, <code>in_dim</code>, <code>docs/my_log.py</code>"
    assert typeset.inline("`x < 1`, p_t, in_dim, docs/my_log.py") == names
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
        said = "\n".join(f"{row.title}\n{row.text}" for row in read_rows(source, {}))
        for n, line in enumerate(source.rstrip().split("\n"), start=1):
            assert f'#L{n}">{n}</a>' in text or line.strip('"# -') in said, (module, n)
        pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
        assert pictures.count("<svg") == (module in PLATES) and not re.search(r"\bnan\b", pictures), module
        assert text.count("<del>") == len(EXERCISES.get(module, ())), module
        formulas = re.sub("<code>.*?</code>", "", "".join(re.findall("<math.*?</math>", text)))
        assert "_" not in text_of(formulas), module
    assert '<h2 id="one-step">one step</h2><div class="row" id="train_step"><div class="left"><p>' in pages["train"]
    examples = text_of(pages["dino_loss"]).split("Worked examples")[-1]
    assert "The sum is log(2 · 3 · 4/3 · 3/2) = log 12" in examples and "pytest.approx(math.log(12) / 4)" in examples
    assert 'src="explore.html"' in pages["index"] and "const DATA = {" in pages["explore"]
    for text in pages.values():
        ids = re.findall(r' id="([^"]*)"', text)
        assert len(set(ids)) == len(ids)
        for file, place in set(re.findall(r'href="(?!https:|data:)([^"#]*)#?([^"]*)"', text)):
            lines = (folder / file).read_text(encoding="utf-8").count("\n") if file else 0
            assert int(place[1:] or 1) <= lines if file else place in ids, (file, place)


def test_notes_have_the_shapes_of_a_default_step(folder, monkeypatch):
    """Each note is on its page.  The tensors of a step have the sizes in the notes."""
    for module in ("train", "vit", "augment"):
        text = (folder / f"{module}.html").read_text(encoding="utf-8")
        beside = notes.notes_of(module, (ROOT / f"{module}.py").read_text(encoding="utf-8"))
        assert beside and all(f"{typeset.inline(note)}</p></div>" in text for note in beside.values()), module
    r, n, seen, attend = get_recipe("shapes"), SimpleNamespace(**notes.sizes()), set(), vit.attend
    monkeypatch.setattr(vit, "attend", lambda *qkv: seen.add(("attend", *qkv[0].shape)) or attend(*qkv))
    views = make_crop(r, r.global_size)(torch.zeros(n.B, 3, n.S, n.S), 0)
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda part, given, out: seen.add((type(part).__name__, *given[0].shape, *out.shape)))  # fmt: skip
    train.compute_losses(start_run(r, torch.device("cpu")), views, train.schedules_at(0, r))
    hook.remove()
    assert {shapes for shapes in seen if shapes[0] in ("attend", "Head", "Attention")} == {
        ("attend", n.G, n.heads, n.n, n.d), ("attend", n.LB, n.heads, n.nl, n.d),
        *(("Head", rows, n.D, rows, n.K) for rows in (n.G, n.M, n.VB)),
        *(("Attention", rows, n.D, rows, n.D) for rows in (n.Tg, n.T))}  # fmt: skip


def test_the_opening(folder):
    """It has the README's order, fifteen words, and at each masked patch the cross-entropy there."""
    text, readme = (path.read_text(encoding="utf-8") for path in (folder / "index.html", ROOT / "README.md"))
    evening = readme.split("## Read it in an evening")[1].split("`augment.py`")[0]
    assert list(dict.fromkeys(re.findall(r"`(\w+)\.py`", evening))) == opening.METHOD
    assert re.findall(r'<li><a href="(\w+)\.html">', text) == opening.METHOD and text.count("<dt>") == 15
    s = opening.one_step(SimpleNamespace(run=start_run(get_recipe("shapes"), torch.device("cpu"))))
    [(z, p, masks, temp)] = s.ibot_loss
    H = -(p * (z.float() / temp).log_softmax(1)).sum(1)[masks.nonzero()[:, 0] == s.row]
    assert [text.get_text() for text in opening.patches(s)[0].axes[1].texts] == [f"{value:.1f}" for value in H]


def run_train(flags):
    """In place of train.py: check its flags, take its steps, and leave the files that it leaves."""
    options, recipe, _ = parse_args(flags)
    run = SimpleNamespace(ema=SimpleNamespace(backbone=torch.nn.Linear(1, 1)))
    for run.step in range(recipe.steps):
        train.train_step(run)
    torch.save(vit_pico(patch_size=8, img_size=64).state_dict(), options.out / "vit.pt")
    (options.out / "metrics.jsonl").write_text('{"step": 1, "dino": 3.0}\n')


def test_the_program(tmp_path, monkeypatch, capsys):
    """After training; without pygments; with a misspelt flag."""
    made, sizes = [], {"index.html": 10**6, "book.css": 0, "find.js": 0}
    monkeypatch.setattr(build, "build", lambda out, m: made.append(m) or sizes)
    monkeypatch.setattr(train, "train_step", lambda run: run.ema.backbone.bias.data.fill_(run.step + 1))
    monkeypatch.setattr(train, "main", run_train)
    assert program.main(["--out", str(tmp_path)]) == 0
    assert made[0].losses == [{"step": 1, "dino": 3.0}] and made[0].images.shape == (program.SEEN, 3, 64, 64)
    steps, networks = zip(*made[0].snapshots)
    assert steps == (0, 22, 44, 88, 175, 350, 700, 1400) and networks[-1] is made[0].vit
    assert [network.bias.item() for network in networks[1:-1]] == [22, 44, 88, 175, 350, 700]
    assert made[0].run.step == 700
    assert capsys.readouterr().out.startswith("1 pages, 1.00 MB, ")
    monkeypatch.setattr(train, "main", lambda flags: 130)
    assert program.main(["--out", str(tmp_path)]) == 2 and "was not trained" in capsys.readouterr().err
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
