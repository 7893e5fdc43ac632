"""The search, the keys and the outline of the book's pages, in a browser.  `pytest tests/book/test_find.py`"""

import html
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("pygments", reason="pip install -r book/requirements.txt")
from book.pages import page, read_rows, row_html, with_places, words_of  # noqa: E402

pytestmark = pytest.mark.slow
ROOT, MODULES = Path(__file__).parents[2], ("koleo", "sinkhorn", "head")
DRIVE = """onload = () => {
  const clicked = [], links = () => [...list.querySelectorAll("a")].map(a => a.getAttribute("href"));
  addEventListener("click", e => { clicked.push(e.target.getAttribute("href")); e.preventDefault(); });
  const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const type = text => { field.value = text; field.dispatchEvent(new Event("input")); return links(); };
  const first = ["HEAD", "autocast", "normalised koleo", "temperature > 0"].map(text => type(text)[0]);
  ["ArrowRight", "/", "ArrowLeft", "Escape", "ArrowLeft"].forEach(press);
  document.body.dataset.found = JSON.stringify({first, clicked, none: type("nowhere else"), said: count.textContent,
    lost: WORDS.filter(word => !search(word).length), links: [...fold.querySelectorAll("a")].map(a => a.hash)}); };"""


def test_search_keys_and_outline(tmp_path, browse):
    """Each word of the files is found, a definition before its uses.  Keys turn pages, but not while one types."""
    sources, index = {m: (ROOT / f"{m}.py").read_text(encoding="utf-8") for m in MODULES}, {}
    for module, source in sources.items():
        body, places = with_places("".join(row_html(row, module) for row in read_rows(source, {})))
        index[module] = words_of(body, places)
        (tmp_path / f"{module}.html").write_text(page(module, body, places, "koleo", "head"), encoding="utf-8")
    code = (ROOT / "book/find.js").read_text(encoding="utf-8")
    (tmp_path / "find.js").write_text(f"const INDEX = {json.dumps(index)};{code}", encoding="utf-8")
    words = sorted({*re.findall(r"[^\W\d_]\w{2,}", " ".join(sources.values()))})
    shown = browse(tmp_path / "sinkhorn.html", f"const WORDS = {json.dumps(words)}; {DRIVE}")
    assert json.loads(html.unescape(re.search('data-found="([^"]*)"', shown)[1])) == {
        "first": ["head.html#Head", "head.html#", "koleo.html#", "sinkhorn.html#sinkhorn_knopp"],
        "links": ["#sinkhorn_knopp", "#logsumexp_over_samples"], "clicked": ["head.html", "koleo.html"],
        "lost": [], "none": [], "said": "0 places"}  # fmt: skip
