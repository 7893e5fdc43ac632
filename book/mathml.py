"""Translate a Unicode formula, as docstrings write it, to MathML, which browsers draw without scripts."""

import html
import re
import unicodedata
from collections import deque

FUNCTIONS = set("log exp min max argmax argmin softmax cos sin mean sign scale".split())
LIMITS = {"Σ", "min", "max", "argmax", "argmin"}  # their subscript stands below
CLOSING = {"(": ")", "[": "]", "{": "}", "⟨": "⟩", "‖": "‖", "|": "|"}
BREAKS = set("=←≤≥<>≈∈~+−·→↔")  # a long formula may go on in the next line before one of these, or beside a word
LONG = 36  # characters that fit into one line on a phone; ours
HAT = "\u0302"  # the combining character in ŷ
TOKEN = re.compile(r"""(?P<space>\s+) | (?P<number>½ | \d+(?:,\d{3})*(?:\.\d+)?(?:e−?\d+)?)
    | (?P<code>[a-z]{2,}(?:_[a-z]{3,})+(?:_[a-z]+)*) | (?P<sub>_\{[^}]*\} | _[A-Za-zα-ω0-9]+(?:,[a-z])*'? | [₀-ₜᵢⱼ]+)
    | (?P<sup>\^\([^)]*\) | \^[A-Za-z0-9]+ | [¹²³⁰ⁱ-ⁿᵀᵏ*']+) | (?P<hat>.\u0302)
    | (?P<name>[A-Za-z]+ | [α-ωΑ-ΡΤ-Ω]) | (?P<sign>.)""", re.VERBOSE)  # fmt: skip


def mathml(text):
    """A formula such as Σ_b Q_bk / B as one <math>, or as several between which a long formula may break."""
    text = "".join(unicodedata.normalize("NFD", c) if c.isalpha() else c for c in text.replace("-", "−"))
    out, before, start = "", "sign", '<math displaystyle="true">'
    for kind, node in row(tokens_of(text)):
        if len(text) > LONG and kind == "gap":
            node = f"</math> {start}"
        elif len(text) > LONG and kind == "break" and before not in ("break", "sign"):
            node = f"</math><wbr>{start}" + node.replace("<mo", '<mo form="infix"', 1)  # a first sign would be a prefix
        out += node
        before = kind
    return f"{start}{out}</math>"


def tokens_of(text):
    """The tokens of a formula, a deque of (kind, text)."""
    return deque((m.lastgroup, m.group()) for m in TOKEN.finditer(text))


def row(tokens, closing=""):
    """Take tokens up to a closing bracket; return [(kind, MathML), ...].  In brackets a fraction keeps its slash."""
    nodes = []
    while tokens and tokens[0][1] != closing:
        spaced = skip_space(tokens)
        if not tokens or tokens[0][1] == closing:
            break
        if tokens[0][1] == "/" and not closing and nodes:
            nodes.append(fraction(nodes, tokens))
            continue
        node = atom(tokens)
        sides = {node[0], nodes[-1][0]} if spaced and nodes else {"sign"}
        if not sides & {"break", "sign"}:
            nodes.append(("gap" if "word" in sides else "space", '<mspace width="0.25em"></mspace>'))
        nodes.append(node)
    return nodes


def skip_space(tokens):
    """Drop a space at the front; return whether there was one."""
    return bool(tokens and tokens[0][0] == "space" and tokens.popleft())


def atom(tokens):
    """Take one name, number, sign or bracket, with its scripts; return (kind, MathML)."""
    kind, text = tokens.popleft()
    if text in CLOSING:
        inner = f"{bracket(text, 'prefix')}{joined(row(tokens, CLOSING[text]))}"
        if tokens:
            inner += bracket(tokens.popleft()[1], "postfix")
        kind, node = "group", f"<mrow>{inner}</mrow>"
    elif text == "√":
        return "name", f"<msqrt>{without_brackets(atom(tokens)) if tokens else ''}</msqrt>"
    elif kind == "number":
        node = f"<mn>{text}</mn>"
    elif kind == "code":
        node = f"<mtext>{text}</mtext>"
    elif kind == "hat":
        node = f'<mover accent="true"><mi>{text[0]}</mi><mo stretchy="false">^</mo></mover>'
    elif kind == "name":
        kind = "function" if text in FUNCTIONS else "word" if len(text) > 1 else "name"
        node = f"<mi>{text}</mi>"
    elif text == "Σ":
        kind, node = "function", '<mo movablelimits="false">∑</mo>'
    else:
        kind = "break" if text in BREAKS else "sign"
        node = '<mo lspace="0" rspace="0">/</mo>' if text == "/" else f"<mo>{html.escape(text)}</mo>"
    scripts = {}
    while tokens and tokens[0][0] in ("sub", "sup"):
        which, script = tokens.popleft()
        scripts[which] = scripts.get(which, "") + scripted(script)
    if scripts:
        tag = "munder" if text in LIMITS and list(scripts) == ["sub"] else f"m{''.join(sorted(scripts))}"
        node = f"<{tag}>{node}{''.join(f'<mrow>{scripts[which]}</mrow>' for which in sorted(scripts))}</{tag}>"
    return kind, node


def scripted(script):
    """The inside of a subscript or superscript: _{t≠s}, _bk, _DINO, ₁, ^(−1/2), ²."""
    inner = unicodedata.normalize("NFKD", script) if script[0] not in "_^" else script[1:].strip("{}()")
    if re.fullmatch(r"[a-z]{0,2}\d*(,[a-z])*'?|[A-Zα-ω]", inner):  # indices, one letter each
        return "".join(f"<mi>{c}</mi>" if c.isalpha() else f"<mn>{c}</mn>" if c.isdigit() else
                       f"<mo>{c.replace(chr(39), '′')}</mo>" for c in inner)  # fmt: skip
    if inner.isalpha():
        return f"<mtext>{inner}</mtext>"
    return f"<mo>{inner.replace(chr(39), '′')}</mo>" if inner in ("*", "'") else joined(row(tokens_of(inner), "\0"))


def fraction(nodes, tokens):
    """The last node over the next one; a function takes its argument along."""
    tokens.popleft()
    above = without_brackets(nodes.pop())
    skip_space(tokens)
    below = [atom(tokens)] if tokens else []
    while tokens and below[-1][0] == "function":
        skip_space(tokens)
        below.append(atom(tokens))
    below = without_brackets(below[0]) if len(below) == 1 else joined(below)
    return "name", f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"


def joined(nodes):
    """The MathML of several nodes."""
    return "".join(node for _, node in nodes)


def bracket(text, form):
    """A bracket of normal height; form: "prefix" or "postfix"."""
    return f'<mo form="{form}" stretchy="false">{text}</mo>'


def without_brackets(node):
    """The MathML of a node, without its parentheses: a fraction's line or a root's bar takes their place."""
    kind, text = node
    if kind != "group" or not text.startswith(f"<mrow>{bracket('(', 'prefix')}"):
        return text
    return text.removeprefix(f"<mrow>{bracket('(', 'prefix')}").removesuffix(f"{bracket(')', 'postfix')}</mrow>")
