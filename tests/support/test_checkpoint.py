"""Files of a run: whole or not there.  `pytest tests/support/test_checkpoint.py`

test_train.py resumes from them; test_hostile.py breaks them.
"""

import pytest

from support.files import write_safely


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
