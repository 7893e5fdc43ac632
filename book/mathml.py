"""A formula in Unicode, as a docstring has it, to MathML, which browsers draw themselves."""

import html
import re
import unicodedata

FUNCTIONS = set("log exp min max argmax argmin softmax cos sin mean sign scale cut grey int sigmoid silu gelu".split())
SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₙ", "0123456789aehijkn"))
SUP = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵀᵏ", "0123456789−Tk"))
CLOSING = {"(": ")", "[": "]", "{": "}", "⟨": "⟩", "‖": "‖", "|": "|"}
TOKEN = re.compile(r"""(?P<space>[ ]+) | (?P<number>\d+(?:,\d{3})*(?:\.\d+)?) | (?P<half>½)
    | (?P<sub>_\{[^}]*\} | _[A-Za-z0-9]+'? | [₀-₉ₐₑₕᵢⱼₖₙ]+) | (?P<sup>[⁰¹²³⁴-⁹⁻ᵀᵏ]+ | \^\([^)]*\) | \^[A-Za-z0-9½]+)
    | (?P<name>[A-Za-zÀ-ɏ]+'? | ∂[A-Za-z] | [α-ωΑ-ΡΤ-Ω]) | (?P<sign>.)""", re.VERBOSE)  # fmt: skip
HAT = "\u0302"  # as a character of its own, behind the letter


def mathml(text, display=False, after=False):
    """A formula in Unicode, such as Σ_b Q_bk / B, as <math>; display: fractions are built up.

    after: it goes on where another one ended, so what it begins with is no sign.
    """
    tokens = [(m.lastgroup, m.group()) for m in TOKEN.finditer(text.replace("-", "−"))]
    nodes, _ = row(tokens, 0, None, display)
    inner = "".join(node for node, _ in nodes)
    inner = inner.replace("<mo>", '<mo form="infix">', 1) if after else inner
    return f"<math>{inner}</math>"


def row(tokens, at, closing, display):
    """Nodes [(MathML, kind)] from tokens[at] to the closing bracket, and the place behind it."""
    nodes, spaced = [], False
    while at < len(tokens):
        kind, text = tokens[at]
        if text == closing:
            return nodes, at + 1
        if kind == "space":
            spaced, at = True, at + 1
            continue
        if text == "/" and display and nodes and nodes[-1][1] != "operator":
            node, at = fraction(nodes, tokens, at + 1, closing, display)
        else:
            node, at = atom(tokens, at, display)
        if nodes and node[1] != "operator" and nodes[-1][1] != "operator" and (
                nodes[-1][1] in ("function", "sum") and node[1] != "group" or spaced or node[1] == "function"):
            nodes.append(('<mspace width="0.2em"></mspace>', "space"))
        nodes.append(node)
        spaced = False
    return nodes, at


def atom(tokens, at, display):
    """One letter, number, operator or bracket with all that it holds, and its subscript and superscript."""
    kind, text = tokens[at]
    at += 1
    if text in CLOSING:
        inner, end = row(tokens, at, CLOSING[text], False)  # a fraction within brackets is a slash
        if tokens[end - 1][1] == CLOSING[text] and end > at:
            at, kind = end, "group"
            inner = "".join(node for node, _ in inner)
            node = f"<mrow>{fence(text, 'prefix')}<mrow>{inner}</mrow>{fence(CLOSING[text], 'postfix')}</mrow>"
        else:
            node, kind = f"<mo>{text}</mo>", "operator"
    elif kind == "number":
        node = f"<mn>{text}</mn>"
    elif kind == "half":
        node = "<mfrac><mn>1</mn><mn>2</mn></mfrac>" if display else "<mn>½</mn>"
    elif kind == "name":
        node = name(text)
        kind = "function" if text in FUNCTIONS or len(text) > 2 else "name"
    elif text == "Σ":
        node, kind = '<mo movablelimits="false">∑</mo>', "sum"
    elif text == "√":
        (inner, _), at = atom(tokens, at, display) if at < len(tokens) else (("", ""), at)
        return (f"<msqrt>{bare([(inner, kind)])}</msqrt>", "name"), at
    elif text == "/":
        node, kind = '<mo lspace="0" rspace="0">/</mo>', "operator"
    else:
        node, kind = f"<mo>{html.escape(text)}</mo>", "operator"
    sub = sup = None
    while at < len(tokens) and (tokens[at][0] in ("sub", "sup") or tokens[at][1] == "*" and kind == "name"):
        which, script = tokens[at]
        if which == "sub":
            sub = subscript(script, display)
        else:
            sup = superscript(script)
        at += 1
    under = display and (kind == "sum" or text in ("min", "max", "argmax", "argmin"))
    if sub and sup:
        node = f"<msubsup>{node}{sub}{sup}</msubsup>"
    elif sub:
        node = f"<munder>{node}{sub}</munder>" if under else f"<msub>{node}{sub}</msub>"
    elif sup:
        node = f"<msup>{node}{sup}</msup>"
    return (node, kind), at


def subscript(script, display):
    """_{t≠s}, _bk, _DINO or ₁."""
    inner = "".join(SUB.get(c, c) for c in script.removeprefix("_").strip("{}")).replace("'", "′")
    if re.fullmatch("[a-z]{1,2}′?|[A-Z]|[a-z]?[0-9]+", inner):
        return f"<mrow>{''.join(map(letters, inner))}</mrow>"
    if inner.isalnum():
        return f"<mtext>{inner}</mtext>"
    nodes, _ = row([(m.lastgroup, m.group()) for m in TOKEN.finditer(inner)], 0, None, False)
    return f"<mrow>{''.join(node for node, _ in nodes)}</mrow>"


def superscript(script):
    """² or ^(−1/2)."""
    if script[0] != "^":
        return f"<mrow>{''.join(letters(SUP.get(c, c)) for c in script)}</mrow>"
    inner = script[1:].removeprefix("(").removesuffix(")")
    nodes, _ = row([(m.lastgroup, m.group()) for m in TOKEN.finditer(inner)], 0, None, False)
    return f"<mrow>{''.join(node for node, _ in nodes)}</mrow>"


def fence(bracket, form):
    """A bracket as high as a letter; form: "prefix" or "postfix"."""
    return f'<mo form="{form}" stretchy="false">{bracket}</mo>'


def name(text):
    """A letter in italics, a word upright; with a prime or a hat."""
    plain = unicodedata.normalize("NFD", text)
    if text.endswith("'"):
        return f"<msup>{name(text[:-1])}<mo>′</mo></msup>"
    if len(plain) == 2 and plain[1] == HAT:
        return f'<mover accent="true"><mi>{plain[0]}</mi><mo stretchy="false">^</mo></mover>'
    if text[0] == "∂":
        return f"<mrow><mo>∂</mo><mi>{text[1:]}</mi></mrow>"
    return f"<mi>{text}</mi>"


def letters(c):
    """One character: a digit, a mark or a letter."""
    return f"<mn>{c}</mn>" if c.isdigit() else f"<mo>{c}</mo>" if c in "−*′" else f"<mi>{c}</mi>"


def fraction(nodes, tokens, at, closing, display):
    """The last node over what follows; a sum or a function below the line takes its argument along."""
    above = [nodes.pop()]
    if above[0][1] == "group" and nodes and nodes[-1][1] == "function":
        above.insert(0, nodes.pop())
    below = []
    while at < len(tokens) and tokens[at][1] != closing:
        if tokens[at][0] == "space":
            at += 1
            continue
        node, after = atom(tokens, at, display)
        if below and (node[1] == "operator" or below[-1][1] not in ("sum", "function")):
            break
        below.append(node)
        at = after
    return (f"<mfrac>{bare(above)}{bare(below)}</mfrac>", "name"), at


def bare(nodes):
    """Nodes in one row; a lone bracket loses its parentheses, as a fraction's line holds it together."""
    inner, opening = "".join(node for node, _ in nodes), f"<mrow>{fence('(', 'prefix')}"
    if len(nodes) == 1 and inner.startswith(opening):
        inner = inner.removeprefix(opening).removesuffix(f"{fence(')', 'postfix')}</mrow>")
    return f"<mrow>{inner}</mrow>"
