"""README and docs: the parser of a program reads each of its commands; the Python lines and the tour run."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import numbered

from support.cli import Parser, parse_args
from vit import vit_femto

ROOT = Path(__file__).parents[1]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
del TEXTS["log.md"]  # commands of older versions
OTHERS = ("python3 -m venv", "pip install", "git clone", "python -m venv i2d",  # these need the network,
          "python tests/official_parity.py", "python -m docs.")  # the official code, a run or minutes


def commands(text):
    """The shell commands of a page, without comments: in ```bash and indented blocks, and between backquotes."""
    text = re.sub(r"(?ms)^```(?:python)?\n.*?^```$", "", text).replace("\\\n", " ").replace("```bash\n", "    ")
    lines = re.findall(r"(?m)^    (\S.*)", text) + [" ".join(x.split()) for x in re.findall(r"`([^`]+)`", text)]
    lines = [re.sub(r"^OMP_NUM_THREADS=1 |\s+# .*", "", line) for line in lines]
    return {line for line in lines if re.match(r"(python3?|torchrun|pip|git) [^(]", line)}


COMMANDS = sorted(set.union(*map(commands, TEXTS.values())))


def program(line):
    """The main() of a command line, and its arguments: python X.py ..., python -m X ..., torchrun ... X.py ..."""
    words = [word for word in shlex.split(line) if word != "..."]
    at = next(i for i, word in enumerate(words) if word.endswith(".py") or words[i - 1] == "-m")
    name = words[at].removesuffix(".py") + ".__main__" * (words[at] == "book")
    return importlib.import_module(name).main, words[at + 1 :]


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith(OTHERS)])
def test_the_program_of_each_command_reads_it(line, monkeypatch):
    main, arguments = program(line)
    if main.__module__ == "train" and "--help" not in arguments:
        parse_args(arguments)  # the recipe that the flags make can train
    read = Parser.parse_args
    monkeypatch.setattr(Parser, "parse_args", lambda *words: exit(read(*words) and "it was read; nothing runs"))
    with pytest.raises(SystemExit):
        main(arguments)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder: weights and images under the names of the docs."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/shapes/vit.pt", "runs/mine/vit.pt"):
        Path(name).parent.mkdir(parents=True)
        torch.save(vit_femto(patch_size=8, img_size=96).state_dict(), name)
    numbered(tmp_path / "photos", 3)


@pytest.mark.parametrize("page", ["README.md", "weights.md"])
def test_the_python_lines_run(place, page):
    exec(TEXTS[page].split("## Features in Python")[1].split("```python\n")[1].split("```")[0], names := {})
    assert len(names["features"]["x_norm_clstoken"].numpy()) == len(names["images"])


@pytest.mark.slow
def test_the_tour_runs(place, monkeypatch):
    """Every cell, with an untrained network; the outputs in the repository are pictures."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs/tour.ipynb", 4)
    assert all(list(output["data"]) == ["image/png"] for cell in notebook.cells for output in cell.get("outputs", ()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as after pip install -e .
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": "runs"}}).execute()  # a folder below, as docs


def test_the_package_holds_every_module():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["py-modules"] == sorted(path.stem for path in ROOT.glob("*.py"))
