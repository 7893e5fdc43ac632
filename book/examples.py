"""Examples from the tests: each test that works out an answer by hand runs, and its calls and results are recorded."""

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
    calls: list  # [(function, source of the call, [result, ...]), ...]


def run_examples(module):
    """The examples of tests/test_<module>.py, in their order; tests that need a fixture are left out."""
    path = ROOT / "tests" / f"test_{module}.py"
    if not path.exists():
        return []
    sys.path[:0] = [p for p in (str(ROOT), str(path.parent)) if p not in sys.path]
    tests, source = importlib.import_module(path.stem), path.read_text(encoding="utf-8")
    examples = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.endswith(BY_HAND) and not node.args.args:
            text, lines = ast.get_docstring(node, clean=False) or "", source.split("\n")
            body = lines[node.body[0].end_lineno if text else node.lineno : node.end_lineno]
            calls = record(getattr(tests, node.name), path, ROOT / f"{module}.py")
            text = outdented(text, node.body[0].col_offset)
            examples.append(Example(node.name, node.lineno, text, inspect.cleandoc("\n".join(body)), calls))
    return examples


def record(test, path, ours):
    """Run a test of the file `path`; return [(function, call, results), ...] of its calls of functions in `ours`."""
    calls, state = {}, torch.get_rng_state()

    def profile(frame, event, result):
        if event == "return" and frame.f_code.co_filename == str(ours) and frame.f_code.co_name[0] != "<":
            caller = frame.f_back
            while caller and "torch" in caller.f_code.co_filename.split("/"):  # a decorator, or Module.__call__
                caller = caller.f_back
            if caller and caller.f_code.co_filename == str(path) and result is not None:
                key = (frame.f_code.co_qualname, call_of(caller, path))  # a call in a loop has one line
                calls.setdefault(key, []).append(shown(result))

    with redirect_stderr(io.StringIO()):  # no progress bars
        sys.setprofile(profile)
        try:
            test()
        finally:
            sys.setprofile(None)
        torch.set_rng_state(state)
    return [(function, call, results if len(results) <= 6 else [*results[:5], "…"])
            for (function, call), results in calls.items()]  # fmt: skip


def call_of(frame, path):
    """The source of the call that a frame is in."""
    first, last, start, stop = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    lines = path.read_text(encoding="utf-8").split("\n")[first - 1 : last]
    lines[-1] = lines[-1].encode()[:stop].decode()  # columns count bytes; the end first, as there may be one line
    lines[0] = lines[0].encode()[start:].decode()
    return " ".join(line.strip() for line in lines)


def shown(x):
    """A result as short text: four significant digits; the shape only, if it is large."""
    if isinstance(x, tuple | list):
        inner = ", ".join(map(shown, x))
        return f"({inner})" if isinstance(x, tuple) else f"[{inner}]"
    if isinstance(x, torch.Tensor) or hasattr(x, "dtype"):
        x = torch.as_tensor(x).detach()
        return shown(x.tolist()) if x.numel() <= MOST else " × ".join(map(str, x.shape)) + " numbers"
    if isinstance(x, float):
        return f"{x:.4g}".replace("-", "−")
    if isinstance(x, dict):
        return ", ".join(f"{k}: {shown(v)}" for k, v in x.items())
    return str(x) if isinstance(x, str | int) else type(x).__name__
