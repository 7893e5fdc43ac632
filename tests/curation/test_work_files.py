"""Results that outlive a killed run.  `pytest tests/curation/test_work_files.py`"""

import numpy as np
import pytest

from curation.work_files import ROWS, in_blocks, read_array


def test_blocks_are_computed_once(tmp_path):
    """2·ROWS + 3 rows are three blocks.  The run is killed within the second, and the first is not computed again.
    A file is used for the same name, paths and settings alone."""
    paths, asked = [str(i) for i in range(2 * ROWS + 3)], []

    def squares(block):
        asked.append(len(block))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.array([int(path) ** 2 for path in block])

    with pytest.raises(KeyboardInterrupt):
        in_blocks(tmp_path, "a b", paths, [1], squares)
    for _ in range(2):
        files = in_blocks(tmp_path, "a b", paths, [1], squares)
        assert np.concatenate([*map(read_array, files)]).tolist() == [i * i for i in range(len(paths))]
    assert asked == [ROWS, ROWS, ROWS, 3]
    for name, block, settings in (("a b", ["7"], [1]), ("a b", paths, [2]), ("c", paths, [1])):
        in_blocks(tmp_path, name, block, settings, squares)
    assert len(asked) == 4 + 1 + 3 + 3 and len(list(tmp_path.iterdir())) == 3 + 1 + 3 + 3


def test_a_damaged_file_is_computed_again(tmp_path, capsys):
    """Empty, cut, 20 bytes of the rows overwritten, a .npy, or another block under this name."""
    blocks = tmp_path, "a", [str(i) for i in range(2 * ROWS)], [], np.array
    file, other = in_blocks(*blocks)
    raw = file.read_bytes()
    for damaged in (b"", raw[:-30], raw[:300] + b"\xff" * 20 + raw[320:], b"\x93NUMPY\1\0" + raw, other.read_bytes()):
        file.write_bytes(damaged)
        assert in_blocks(*blocks) == [file, other] and read_array(file).tolist() == blocks[2][:ROWS]
        assert f"{file} is damaged; it is computed again" in capsys.readouterr().err
