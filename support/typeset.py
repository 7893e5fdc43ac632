"""Docstrings to HTML: paragraphs, indented blocks as tables, and the Unicode maths in both as MathML.

A docstring is written to be read in an editor, so what is maths is found, not marked: a run of words that holds an
operator, a Greek letter, a subscript, or a letter that stands alone.  `code` and names with underscores are code.
"""

import html
import re
import unicodedata

FUNCTIONS = set("log exp min max argmax argmin softmax cos sin mean sign scale cut grey int sigmoid silu gelu".split())
OPERATORS = set("=←≠≤≥<>≈∈⊙⊕·×+−~↔")  # beside one of these, a number or a name is maths too
SIGNS = OPERATORS - set("×") | set("Σ∂√⟨⟩‖½∞∇^")
SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₙ", "0123456789aehijkn"))
SUP = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵀᵏ", "0123456789−Tk"))
GREEK = re.compile(r"[α-ωΑ-Ω]")
CLOSING = {"(": ")", "[": "]", "{": "}", "⟨": "⟩", "‖": "‖", "|": "|"}
TOKEN = re.compile(r"""(?P<space>[ \x00]+) | (?P<number>\d+(?:,\d{3})*(?:\.\d+)?) | (?P<half>½)
    | (?P<sub>_\{[^}]*\} | _[A-Za-z0-9]+ | [₀-₉ₐₑₕᵢⱼₖₙ]+) | (?P<sup>[⁰¹²³⁴-⁹⁻ᵀᵏ]+ | \^\([^)]*\) | \^[A-Za-z0-9½]+)
    | (?P<name>[A-Za-zÀ-ɏ]+'? | ∂[A-Za-z] | [α-ωΑ-ΡΤ-Ω]) | (?P<sign>.)""", re.VERBOSE)  # fmt: skip
HAT = "\u0302"  # as a character of its own, behind the letter
LONG = 42  # letters of a formula that does not fit into a line on a phone
WIDE = 52  # and of a row of formulas that does not fit into the left column
HELD = "\0"  # a space inside of brackets, where a run must not end

# ---------------------------------------------------------------------------- one formula


def mathml(text, display=False, after=False):
    """A formula in Unicode, such as Σ_b Q_bk / B, as <math>; display: fractions are built up.

    after: it goes on where another one ended, so what it begins with is no sign.
    """
    tokens = [(m.lastgroup, m.group().replace(HELD, " ")) for m in TOKEN.finditer(text.replace("-", "−"))]
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
    inner = "".join(SUB.get(c, c) for c in script.removeprefix("_").strip("{}"))
    if re.fullmatch("[a-z]{1,2}|[A-Z]|[a-z]?[0-9]+", inner):
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
    return f"<mn>{c}</mn>" if c.isdigit() else f"<mo>{c}</mo>" if c in "−*" else f"<mi>{c}</mi>"


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


# ---------------------------------------------------------------------------- a line of text


def inline(text, display=False, whole=False):
    """A line of a docstring: `code`, names of parameters and maths are set as such.

    display: fractions are built up.  whole: a formula does not break into lines.
    """
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(code(p[1:-1]) if p.startswith("`") and len(p) > 1 else words(p, display, whole) for p in parts)


def code(text):
    return f"<code>{html.escape(text)}</code>"


def is_prose(word):
    """Whether a word of letters is one of a sentence, rather than of a formula."""
    return len(word) > 1 and word not in FUNCTIONS and not re.fullmatch("[A-Z]?[a-z]?", word)


def hold(text):
    """Spaces become HELD inside of subscripts and of brackets without a word of a sentence."""
    text = re.sub(r"_\{[^}]*\}", lambda m: m.group().replace(" ", HELD), text)

    def brackets(m):
        inner = m.group()[1:-1]
        plain = re.fullmatch(r"\d{4}|[A-Z]\.\d|§.*|[A-Za-z]+ [A-Za-z ]+|[a-z]", inner) or not inner
        prose = sum(is_prose(w) for w in re.findall(r"(?<![_A-Za-z])[A-Za-z]+(?![A-Za-z₀-₉ᵢ_])", inner))
        prose = prose > any(c in SIGNS for c in inner) and m.group()[0] in "([{"
        return m.group() if plain or prose else m.group().replace(" ", HELD).translate(HIDDEN)

    for _ in range(4):  # from the inside out
        text = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|⟨[^⟨⟩]*⟩|‖[^‖]*‖", brackets, text)
    return text.translate(SHOWN)


HIDDEN = str.maketrans("()[]⟨⟩‖", "\1\2\3\4\5\6\7")  # brackets that are done with
SHOWN = str.maketrans("\1\2\3\4\5\6\7", "()[]⟨⟩‖")


def words(text, display, whole):
    """Text without backticks: each word is prose, code or maths; neighbours that are maths are one formula."""
    for plain, sign in (("->", "→"), ("<=", "≤"), (">=", "≥")):
        text = text.replace(plain, sign)
    tokens = re.findall(r"[^ \n]+|[ \n]+", hold(text))
    tokens = [part for token in tokens for part in (re.split(r"(?=\()", token, maxsplit=1) if opens(token) else [token])]
    out, run = [], []
    kinds = [kind_of(token, display) for token in tokens]
    places = [i for i, token in enumerate(tokens) if not token.isspace()]
    for n, i in enumerate(places):  # weak ones take after their neighbours
        before, after = (places[n - 1] if n else None), (places[n + 1] if n + 1 < len(places) else None)
        if re.match(r"[MGs]\b", tokens[i]) and before is not None and re.fullmatch(r"[\d.,]+", tokens[before]):
            kinds[i] = "prose"  # a unit
        if kinds[i] in ("number", "function", "word"):
            left = before is not None and tokens[before][-1] in OPERATORS and kinds[before] == "maths"
            right = after is not None and tokens[after][0] in OPERATORS and kinds[after] == "maths"
            if kinds[i] == "word":  # only beside an operator that stands alone
                left, right = left and len(tokens[before]) == 1, right and len(tokens[after]) == 1
            argument = kinds[i] == "function" and after is not None and kinds[after] in ("maths", "number", "function")
            if left or right or argument:
                kinds[i] = "maths"
            elif kinds[i] == "number" and before is not None and re.search(r"(\b|−)(log|exp|cos|sin)$", tokens[before]):
                kinds[i] = "maths"
    for token, kind in zip(tokens, kinds):
        if kind == "maths":
            run.append(token)
        elif token.isspace() and run and not run[-1].isspace() and run[-1][-1] not in ",;:.":
            run.append(" ")
        else:
            out += formula(run, display, whole)
            run = []
            out.append(code(token.strip(",;:.()")).join(outside(token)) if kind == "code" else html.escape(
                token.replace(HELD, " ")))
    return "".join(out + formula(run, display, whole))


def outside(token):
    """What stands before and behind the name in a token such as (student_temp),"""
    core = token.strip(",;:.()")
    return token.partition(core)[0], token.partition(core)[2]


def kind_of(token, display):
    """prose, code, maths, or one of the three that take after their neighbours: number, function, word."""
    core = token.strip(",;:.!?") or token
    if token.isspace():
        return "space"
    if re.fullmatch(r"\(?-{0,2}[a-zA-Z]\w*(_[a-z]\w+)+(\(.*\))?\)?|\(?(\w+/)*\w+\.(py|md|pt|txt)\)?|--\w[\w-]*", core) and \
            re.search(r"_[a-zA-Z]{3}|[a-z]{3}_|\.|--", core) and not re.match(r"(L|mean|min|argm\w\w)_", core):
        return "code"
    if re.fullmatch(r"[~±]?\d+[⁰¹²³⁴-⁹⁻]+", core):
        return "number"
    if core in ("→", "−") or any(c in SIGNS for c in core) or GREEK.search(core) or re.search(r"[₀-₉ᵢⱼₕ⁰¹²³⁴-⁹⁻ᵀ]", core):
        return "maths"
    if re.search(r"(^|[^A-Za-z])([A-Za-z0-9]|mean|softmax|argmax|argmin|min)_[A-Za-z0-9{]", core):
        return "maths"
    if re.fullmatch(r"[\[(]+.*[\])]+", core) and HELD in core or re.fullmatch(r"[(\[]([A-Z0-9]\w?'?,?|[a-z],)[)\]]", core):
        return "maths"
    if re.fullmatch(r"[(\[]*(\d*[A-Z]'?|\d+)([/·+−,]([A-Z]'?|\d+))+[)\]]*", core) and re.search("[A-Z]", core):
        return "maths"
    if re.fullmatch(r"[b-zB-HJ-Z]['*]?", core) or re.fullmatch(r"\w+\(.*\)", core) and (display or HELD in core):
        return "maths"
    if core in ("+", "/"):
        return "maths" if display else "word"
    if re.fullmatch(r"[\d.,/]+%?", core):
        return "number"
    if core in FUNCTIONS:
        return "function"
    return "word" if re.fullmatch("[A-Za-z]+", core) else "prose"


def opens(token):
    """Whether it is a name and a bracket that another token closes, as L(global of L(global view v)."""
    return re.match(r"\w+\(", token) and token.count("(") > token.count(")")


def formula(run, display, whole):
    """A run of maths as [HTML]: the stops at its ends are text; it may break before a relation."""
    text = "".join(run)
    core = text.strip(" ")
    stop = re.search(r"[,;:.]*$", core).group()
    core = core.removesuffix(stop)
    if not core:
        return [html.escape(text)]
    opened = core.startswith("(") and core.count("(") > core.count(")")  # of a sentence in brackets
    closed = core.endswith(")") and core.count(")") > core.count("(")
    before, after = "(" * opened, ")" * closed
    core = core[opened : len(core) - closed]
    pieces = [core] if whole and len(core) < LONG else re.split(r" (?=[=←≤≥<>→∈≈] )", core)
    pieces = [part for p in pieces for part in (re.split(r" (?=[+−] )", p) if len(p) > LONG / 2 else [p])]
    *first, last = [mathml(p, display, after=n > 0) for n, p in enumerate(p for p in pieces if p.strip())]
    last = f'<span class="whole">{last}{after}{stop}</span>' if after or stop else last
    return [before + "<wbr>".join([*first, last]) + " " * (len(text) - len(text.rstrip(" ")))]


# ---------------------------------------------------------------------------- a docstring


def paragraphs(text):
    """A docstring -> [("html", paragraph or indented block) or ("doctest", its text), ...]"""
    out = []
    for chunk in re.split(r"\n\s*\n", text.strip("\n ")):
        lines = chunk.split("\n")
        if lines[0].startswith(">>>"):
            out.append(("doctest", chunk))
            continue
        at = 0
        while at < len(lines):
            block = lines[at].startswith("    ")
            end = at
            while end < len(lines) and lines[end].startswith("    ") == block:
                end += 1
            part = lines[at:end]
            out.append(("html", table(part) if block else f"<p>{inline(' '.join(x.strip() for x in part))}</p>"))
            at = end
    return out


def cells(line):
    """A line -> [(column, text)]; two spaces or more part two cells."""
    return [(m.start(), m.group()) for m in re.finditer(r"\S+(?: \S+)*", line)]


def prose_in(text):
    """How many words of a sentence a cell has."""
    return sum(map(is_prose, re.findall(r"(?<![_A-Za-z.])[A-Za-z]{3,}", text)))


def table(lines):
    """An indented block: cells that begin in one column are in one column of the table."""
    rows = []
    for line in lines:
        found = cells(line)
        same = rows and len(found) == 1 and len(rows[-1]) > 1 and found[0][0] == rows[-1][-1][0]
        if same:  # the line before goes on
            rows[-1][-1] = (found[0][0], f"{rows[-1][-1][1]} {found[0][1]}")
        else:
            rows.append(found)
    loose = any(sum(len(text) for _, text in found if re.search("[=←≤]", text) or prose_in(text) < 2) > WIDE
                for found in rows)  # fmt: skip
    starts = sorted({start for found in rows for start, _ in found})
    out = []
    for found in rows:
        ends = [starts.index(start) for start, _ in found[1:]] + [len(starts)]
        tds = ["<td></td>"] * starts.index(found[0][0])
        for (start, text), end in zip(found, ends):
            span = end - starts.index(start)
            command = re.match("(python|torchrun|pip) ", text)
            display = bool(re.search("[=←]", text)) and prose_in(text) < 4
            body = code(text) if command else inline(text, display, whole=True)
            tds.append(f'<td colspan="{span}">{body}</td>' if span > 1 else f"<td>{body}</td>")
        out.append(f"<tr>{''.join(tds)}</tr>")
    return f'<table class="block{" loose" * loose}">{"".join(out)}</table>'
