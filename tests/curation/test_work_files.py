"""Results that outlive a killed run.  `pytest tests/curation/test_work_files.py`"""

import numpy as np
import pytest

from curation.work_files import ROWS, in_blocks, run_stage


def test_a_stage_continues_and_runs_once(tmp_path, capsys):
    """2·ROWS + 3 rows are three blocks.  The run is killed within the second, and the first is not computed again.  The
    result is loaded for the same name, paths and settings alone, and the blocks are gone."""
    n, asked = 2 * ROWS + 3, []

    def squares(rows):
        asked.append(rows)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.array([i * i for i in rows])

    def compute(folder):
        return np.concatenate([np.load(file) for file in in_blocks(folder, n, squares, "squares")])

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "a b", ["x"], [1], compute)
    for _ in range(2):
        assert run_stage(tmp_path, "a b", ["x"], [1], compute).tolist() == [i * i for i in range(n)]
    assert asked == [range(ROWS), range(ROWS, 2 * ROWS), range(ROWS, 2 * ROWS), range(2 * ROWS, n)]
    assert capsys.readouterr().out.count(f"a b: 1 images in, {n} out, ") == 2
    for name, paths, settings in (("a b", ["y"], [1]), ("a b", ["x"], [2]), ("c", ["x"], [1])):
        run_stage(tmp_path, name, paths, settings, compute)
    assert len(asked) == 4 + 3 * 3
    assert len(list(tmp_path.iterdir())) == 4 and all(path.suffix == ".npy" for path in tmp_path.iterdir())
