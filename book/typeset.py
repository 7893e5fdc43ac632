"""Docstrings to HTML: paragraphs, indented blocks as tables, and the Unicode maths in both as MathML.

A docstring is written to be read in an editor, so what is maths is found, not marked: a run of words that holds an
operator, a Greek letter, a subscript, or a letter that stands alone.  `code` and names with underscores are code.
"""

import html
import re

from book.mathml import FUNCTIONS, mathml

OPERATORS = set("=←≠≤≥<>≈∈⊙⊕·×+−~↔")  # beside one of these, a number or a name is maths too
SIGNS = OPERATORS - set("×") | set("Σ∂√⟨⟩‖½∞∇^")
NAME = re.compile(r"\(?-{0,2}[a-zA-Z]\w*(_[a-z]\w+)+(\(.*\))?\)?|\(?(\w+/)*\w+\.(py|md|pt|txt)\)?|--\w[\w-]*")
OPERATOR_NAME = re.compile(r"(L|mean|min|argm\w\w)_")
LONG = 42  # letters of a formula that does not fit into a line on a phone
WIDE = 52  # and of a row of formulas that does not fit into the left column
HELD = "\0"  # a space inside of brackets, where a run must not end

# ---------------------------------------------------------------------------- a line of text


def inline(text, display=False, whole=False):
    """A line of a docstring: `code`, names of parameters and maths are set as such.

    display: fractions are built up.  whole: a formula does not break into lines.
    """
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(code(p[1:-1]) if p.startswith("`") and len(p) > 1 else words(p, display, whole) for p in parts)


def code(text):
    """A word of code within a sentence."""
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
    tokens = [re.split(r"(?=\()", token, maxsplit=1) if opens(token) else [token] for token in tokens]
    tokens = [part for parts in tokens for part in parts]
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
    if NAME.fullmatch(core) and re.search(r"_[a-zA-Z]{3}|[a-z]{3}_|\.|--", core) and not OPERATOR_NAME.match(core):
        return "code"
    if re.fullmatch(r"[~±]?\d+[⁰¹²³⁴-⁹⁻]+", core):
        return "number"
    if core in ("→", "−") or any(c in SIGNS for c in core) or re.search(r"[α-ωΑ-Ω₀-₉ᵢⱼₕ⁰¹²³⁴-⁹⁻ᵀ]", core):
        return "maths"
    if re.search(r"(^|[^A-Za-z])([A-Za-z0-9]|mean|softmax|argmax|argmin|min)_[A-Za-z0-9{]", core):
        return "maths"
    if re.fullmatch(r"[\[(]+.*[\])]+", core) and HELD in core:
        return "maths"
    if re.fullmatch(r"[(\[]([A-Z0-9]\w?'?,?|[a-z],)[)\]]", core):
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
    pieces = [core]
    if not whole or len(core) >= LONG:
        pieces = re.split(r" (?=[=←≤≥<>→∈≈] )", core)
        pieces = [part for p in pieces for part in (re.split(r" (?=[+−] )", p) if len(p) > LONG / 2 else [p])]
    *first, last = [mathml(p.replace(HELD, " "), display, n > 0) for n, p in enumerate(p for p in pieces if p.strip())]
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
            body = code(text) if command else inline(text, display, whole=True) if len(text) > 1 else mathml(text)
            tds.append(f'<td colspan="{span}">{body}</td>' if span > 1 else f"<td>{body}</td>")
        out.append(f"<tr>{''.join(tds)}</tr>")
    return f'<table class="block{" loose" * loose}">{"".join(out)}</table>'
