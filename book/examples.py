"""The examples that tests work out by hand: each is run, and what our functions gave is noted on the way."""

import ast
import importlib
import inspect
import io
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch

from book.pages import outdented

ROOT = Path(__file__).parents[1]
BY_HAND = ("_by_hand", "_on_paper")  # in the names of such tests
MOST = 60  # numbers of a result that are shown


@dataclass
class Example:
    """A test that passed while the book was built."""

    name: str
    first: int  # its line in the test file
    text: str  # its docstring
    source: str  # its code, without the docstring
    calls: list  # [(function, the call as it stands in the test, [what it gave each time])]


def work_through(module, more=()):
    """Examples of tests/test_<module>.py that need no fixture, in their order, and the tests named in `more`."""
    path = ROOT / "tests" / f"test_{module}.py"
    sys.path[:0] = [p for p in (str(ROOT), str(path.parent)) if p not in sys.path]
    tests, source = importlib.import_module(path.stem), path.read_text(encoding="utf-8")
    examples = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not node.args.args:
            text = ast.get_docstring(node, clean=False)
            if text and (any(word in node.name for word in BY_HAND) or node.name in more):
                calls = watch(getattr(tests, node.name), path, ROOT / f"{module}.py")
                lines = source.split("\n")[node.body[0].end_lineno : node.end_lineno]
                text = outdented(text, node.body[0].col_offset)
                examples.append(Example(node.name, node.lineno, text, inspect.cleandoc("\n".join(lines)), calls))
    return examples


def watch(test, path, ours):
    """Run a test; [(function, call, results)] of the functions of the file `ours` that it calls itself."""
    calls, state = [], torch.get_rng_state()

    def profile(frame, event, result):
        if event == "return" and frame.f_code.co_filename == str(ours) and frame.f_code.co_name[0] != "<":
            caller = frame.f_back
            while caller and "torch" in caller.f_code.co_filename.split("/"):  # a decorator, or Module.__call__
                caller = caller.f_back
            if caller and caller.f_code.co_filename == str(path) and frame.f_code.co_name != "__init__":
                calls.append((frame.f_code.co_qualname, call_in(caller, path), in_words(result)))

    with redirect_stderr(io.StringIO()):  # no progress bars
        sys.setprofile(profile)
        try:
            test()
        finally:
            sys.setprofile(None)
        torch.set_rng_state(state)
    together = {}  # a call in a loop has one line
    for function, call, result in calls:
        together.setdefault((function, call), []).append(result)
    return [(function, call, few(results)) for (function, call), results in together.items()]


def few(results):
    """The first and the last ones of a long loop."""
    return results if len(results) <= 10 else [*results[:3], f"… {len(results) - 6} more …", *results[-3:]]


def call_in(frame, path):
    """The source of the call that a frame is in."""
    first, last, start, stop = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    lines = path.read_text(encoding="utf-8").split("\n")[first - 1 : last]
    lines[-1] = lines[-1].encode()[:stop].decode()  # columns count bytes; the end first, lines may be one
    lines[0] = lines[0].encode()[start:].decode()
    return " ".join(line.strip() for line in lines)


def in_words(x):
    """A result as short text: four significant digits, shapes where there is much."""
    if isinstance(x, tuple | list):
        inner = ", ".join(map(in_words, x))
        return f"({inner})" if isinstance(x, tuple) else f"[{inner}]"
    if hasattr(x, "numel") or hasattr(x, "dtype"):
        x = torch.as_tensor(x).detach()
        if x.numel() > MOST:
            return " × ".join(map(str, x.shape)) + " numbers"
        return in_words(x.tolist())
    if isinstance(x, bool):
        return str(int(x))
    if isinstance(x, float):
        return f"{x:.4g}".replace("-", "−")
    if isinstance(x, dict):
        return ", ".join(f"{k}: {in_words(v)}" for k, v in x.items())
    return "nothing" if x is None else str(x)
