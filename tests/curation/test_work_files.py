"""Results that outlive a killed run.  `pytest tests/curation/test_work_files.py`"""

import numpy as np
import pytest

from curation.work_files import ROWS, in_blocks, run_stage


def test_blocks_that_exist_are_kept(tmp_path):
    """2·ROWS + 3 rows are three blocks.  The run is killed within the second, and the first is not computed again."""
    n, asked = 2 * ROWS + 3, []

    def squares(rows):
        asked.append(rows)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.array([i * i for i in rows])

    with pytest.raises(KeyboardInterrupt):
        in_blocks(tmp_path / "x", n, squares, "squares")
    files = in_blocks(tmp_path / "x", n, squares, "squares")
    assert asked == [range(ROWS), range(ROWS, 2 * ROWS), range(ROWS, 2 * ROWS), range(2 * ROWS, n)]
    assert np.concatenate([np.load(file) for file in files]).tolist() == [i * i for i in range(n)]


def test_a_stage_runs_once_for_the_same_paths_and_settings(tmp_path, capsys):
    calls = []

    def compute(folder):
        calls.append(folder)
        return np.load(in_blocks(folder, 3, lambda rows: np.array(rows), "three")[0])

    for name, paths, settings in (("a b", ["x"], [1]), ("a b", ["x"], [1]), ("a b", ["y"], [1]), ("a b", ["x"], [2]),
                                  ("c", ["x"], [1])):  # fmt: skip
        assert run_stage(tmp_path, name, paths, settings, compute).tolist() == [0, 1, 2]
    assert len(calls) == 4 and capsys.readouterr().out.count("a b: 1 images in, 3 out, ") == 4
    assert len(list(tmp_path.iterdir())) == 4 and all(path.suffix == ".npy" for path in tmp_path.iterdir())  # no blocks
