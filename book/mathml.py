"""Translate a Unicode formula, as docstrings write it, to MathML, which browsers draw without scripts."""

import html
import re
import unicodedata

LIMITS = {"Σ", "min", "max", "argmax", "argmin"}  # their subscript stands below
OPERATORS = "=←≤≥<>≈∈~+−·→↔⊙∩∪,;:"  # MathML puts space around these
LONG = 36  # characters that fit into one line on a phone; ours
# A long formula breaks before a sign or word, but neither behind a sign nor inside brackets
BREAK = re.compile(r"(?<![=←≤≥<>≈∈~+−·→↔])(?= (?:[=←≤≥<>≈∈~+−→↔] |[A-Za-z]{2}))(?![^(\[{]*[)\]}])")
HAT = "\u0302"  # the combining character in ŷ
TOKEN = re.compile(r"""(?P<space>\s+)
    | (?P<base> [a-z]{2,}(?:_[a-z]{2,})+ | ½ | \d+(?:\.\d+)?(?:e−?\d+)? | √(?:\([^)]*\)|.\u0302?) | .\u0302
              | [A-Za-z]+ | .)
      (?P<sub>_\{[^}]*\} | (?:_[A-Za-zα-ω0-9]+)+(?:,[a-z])*'? | [₀-ₜᵢⱼ]+)?
      (?P<sup>\^\([^)]*\) | \^[A-Za-z0-9]+ | [¹²³⁰ⁱ-ⁿᵀᵏ*']+)?""", re.VERBOSE)  # fmt: skip


def mathml(text):
    """A formula such as Σ_b Q_bk as one <math>, or as several between which a long formula may break."""
    text = "".join(unicodedata.normalize("NFD", c) if c.isalpha() else c for c in text.replace("-", "−"))
    pieces = BREAK.split(text) if len(text) > LONG else [text]
    inner = [row(pieces[0]), *(row(piece).replace("<mo>", '<mo form="infix">', 1) for piece in pieces[1:])]
    shown = zip(map(html.escape, pieces), inner)
    return "<wbr>".join(f'<math displaystyle="true" alttext="{said}">{piece}</math>' for said, piece in shown)


def row(text):
    """The MathML of a formula, without the <math> element."""
    out = ""
    for token in TOKEN.finditer(text):
        if token["base"]:
            out += with_scripts(token)
        elif not set(OPERATORS) & set(text[: token.start()][-1:] + text[token.end() :][:1]):
            out += '<mspace width="0.25em"></mspace>'
    return out


def with_scripts(token):
    """One name, number or sign with its subscript and superscript."""
    scripts = [kind for kind in ("sub", "sup") if token[kind]]
    if not scripts:
        return element(token["base"])
    tag = "munder" if token["base"] in LIMITS and scripts == ["sub"] else f"m{''.join(scripts)}"
    inner = "".join(f"<mrow>{script(token[kind])}</mrow>" for kind in scripts)
    return f"<{tag}>{element(token['base'])}{inner}</{tag}>"


def element(base):
    """One name, number or sign."""
    if base == "Σ":
        return '<mo movablelimits="false">∑</mo>'
    if base[0] == "√":
        return f"<msqrt>{row(base[1:].strip('()'))}</msqrt>"
    if base[-1] == HAT:
        return f'<mover accent="true"><mi>{base[0]}</mi><mo stretchy="false">^</mo></mover>'
    if base[0].isnumeric():
        return f"<mn>{base}</mn>"
    if "_" in base:
        return f"<mtext><code>{base}</code></mtext>"
    if base[0].isalpha():
        return f"<mi>{base}</mi>"
    if base in OPERATORS:
        return f"<mo>{html.escape(base)}</mo>"
    return f'<mo stretchy="false" lspace="0" rspace="0">{base.replace(chr(39), "′")}</mo>'


def script(text):
    """The inside of a subscript or superscript: _{t≠s}, _bk, _DINO, ₁, ^(−1/2), ²."""
    inner = text[1:].strip("{}()") if text[0] in "_^" else unicodedata.normalize("NFKD", text)
    letters = re.fullmatch("[a-z]{1,2}(,[a-z])*'?", inner)  # two indices, as in Q_bk
    return "".join(map(row, inner)) if letters else row(inner)
