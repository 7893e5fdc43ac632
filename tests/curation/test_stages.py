"""Results that outlive a killed run: computed once, whole or known to be half.

    pytest tests/test_stages.py
"""

from pathlib import Path

import numpy as np
import pytest

from curation.work_files import ROWS, Stages, digest, in_blocks, once, rows_of


def test_digest_tells_things_apart():
    assert digest(1, "a", [2.5]) == digest(1, "a", [2.5]) and len(digest()) == 12
    assert len({digest(1, "a"), digest("a", 1), digest(1, "ab"), digest([1, "a"])}) == 4


def test_once_computes_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.arange(3)

    for _ in range(2):
        assert once(tmp_path / "three.npy", compute).tolist() == [0, 1, 2]
    assert len(calls) == 1 and [p.name for p in tmp_path.iterdir()] == ["three.npy"]


def squares(rows):
    return np.array([[i * i] for i in rows])


def test_a_file_that_was_half_made_is_gone_on_with(tmp_path, capsys):
    """2·ROWS + 3 rows are three blocks; the run is killed within the second, and the first is not computed again."""
    n, asked = 2 * ROWS + 3, []

    def killed(rows):
        if rows.start:
            raise KeyboardInterrupt
        return squares(rows)

    with pytest.raises(KeyboardInterrupt):
        in_blocks(tmp_path / "x.npy", n, (1,), np.int64, killed, "squares")
    out = in_blocks(tmp_path / "x.npy", n, (1,), np.int64, lambda rows: asked.append(rows) or squares(rows), "squares")
    assert asked == [range(ROWS, 2 * ROWS), range(2 * ROWS, n)]
    assert out[:, 0].tolist() == [i * i for i in range(n)]
    assert f"{ROWS + 3}/{ROWS + 3} " in capsys.readouterr().err  # images, not whole blocks


def test_rows_of_a_file(tmp_path):
    x = np.arange(20.0).reshape(10, 2)
    rows = rows_of(x, np.array([7, 0]), tmp_path / "rows.npy")
    assert rows.tolist() == [[14, 15], [0, 1]] and isinstance(rows, np.memmap)
    assert rows_of(x * 0, np.array([7, 0]), tmp_path / "rows.npy").tolist() == [[14, 15], [0, 1]]  # from the file


def test_stages_keep_their_files_apart_and_their_times():
    """The file of a stage depends on all that was decided before it, and on nothing else."""
    first, second = Stages(Path("w"), "a"), Stages(Path("w"), "a")
    assert first.file("kept") == second.file("kept") == Path("w/kept-a.npy")
    first.decided_by(0.6, 64), second.decided_by(0.6, 64)
    assert first.file("kept") == second.file("kept") != Path("w/kept-a.npy")
    second.decided_by(1)
    assert first.file("kept") != second.file("kept")
    assert first.run("half", 4, lambda: [1, 2]) == [1, 2]
    [(name, before, after, seconds)] = first.table
    assert (name, before, after) == ("half", 4, 2) and seconds >= 0
