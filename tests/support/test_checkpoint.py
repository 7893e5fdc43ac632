"""Files of a run: whole or not there; test_train.py resumes from them.  `pytest tests/support/test_checkpoint.py`"""

import pickle

import pytest

from support.checkpoint import read_checkpoint
from support.files import UserError, write_safely


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_safely(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with open(path) as reader:
        write_safely(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"  # renamed over the old file, not written into it
    assert path.read_text() == "new"


class Trap:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [b"text", pickle.dumps(Trap(), 2), pickle.dumps({"recipe": 1}, 2)])
def test_another_file_is_one_line_and_never_executed(content, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint of train.py"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""
