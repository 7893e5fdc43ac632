"""Notes beside lines, with the shapes of the default run, from notes_*.txt; and a plain function to read first.

A note is the indented text below the start of its first line, which occurs once in the file.  It goes down to the next
note.  Names in braces are the numbers of `sizes`.
"""

import ast
import re
from pathlib import Path

from book.exercises import line_number
from book.pages import code_html, columns, highlighted
from book.typeset import inline
from masking import sample_masks
from network import build_network
from recipes import RECIPES

BOOK = Path(__file__).parent


def sizes(r=RECIPES["shapes"]):
    """The numbers in the notes: sizes in one step of a recipe, before its high-resolution phase."""
    B, L, P, g, l, V = r.batch, r.n_local, r.patch_size, r.global_size, r.local_size, 2  # noqa: E741
    vit, G, LB, side, side_l = build_network(r).backbone, V * B, L * B, g // P, l // P
    N, n, nl, D, heads = side**2, 1 + side**2, 1 + side_l**2, vit.embed_dim, vit.num_heads
    masks = sample_masks(G, side, side, r.mask_ratio, r.mask_probability)  # (G, N)
    return {
        "B": B, "L": L, "P": P, "g": g, "l": l, "V": V, "G": G, "LB": LB, "side": side, "side_l": side_l, "N": N,
        "n": n, "nl": nl, "D": D, "heads": heads, "d": D // heads, "depth": vit.n_blocks, "K": r.n_prototypes,
        "Tg": G * n, "Tl": LB * nl, "T": G * n + LB * nl, "VB": G + LB, "M": int(masks.sum()), "views": V + L,
        "others": V + L - 1, "pairs": V * (V + L - 1), "n_masked": int(masks.any(1).sum()), "each": G / r.n_prototypes,
        "percent": round(100 * (1 - r.momentum)), "hires": round(100 * r.hires_share), "Nh": (r.hires_size // P) ** 2,
        "S": r.image_size, "r": r,
    }  # fmt: skip


def notes_of(module, source):
    """The notes of a file, as {number of the first line: text}."""
    path = BOOK / f"notes_{module}.txt"
    if not path.exists():
        return {}
    notes, numbers = re.findall(r"(?m)^(\S.*)\n((?: .*\n)+)", path.read_text(encoding="utf-8")), sizes()
    return {line_number(source, at, f"{module}.py"): " ".join(text.split()).format(**numbers) for at, text in notes}


def reference(module, up):
    """A plain function that the file is tested against, to be read first; "" for a file without one."""
    if module != "augment":
        return ""
    file, name, test = "tests/test_augment.py", "slow_view", "test_each_view_is_the_slow_one"
    source = (BOOK.parent / file).read_text(encoding="utf-8")
    [node] = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
    code = list(enumerate(highlighted(source), start=1))[node.lineno - 1 : node.end_lineno]
    text = f"""Read this first: how one view of one image is made.  The code below makes all views of a batch at once,
        which is faster.  `{test}` checks that both give the same pixels."""
    return columns(f"<p>{inline(text)}</p>", code_html(code, f"{up}/{file}"))
