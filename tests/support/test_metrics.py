"""metrics.jsonl: rows come back, and what a killed run wrote too much goes.  `pytest tests/test_metrics.py`"""

import json

import pytest

from support.log import add_metrics, read_metrics, write_metrics


def test_rows_that_were_written_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [{"step": 1, "loss": 0.5}])
    add_metrics(path, {"step": 2})
    assert read_metrics(path, 9) == [{"step": 1, "loss": 0.5}, {"step": 2}]
    write_metrics(path, [{"step": 3}])
    assert path.read_text() == '{"step": 3}\n'


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    """Checkpoint at step 2: rows 1 and 2 stay; row 3, the final one, and half a line go."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 2, "final": True}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1, "lo')
    assert read_metrics(path, 2) == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "none", 2) == []


@pytest.mark.parametrize("line", [b"[1]", b"7", b'{"loss": 1}', b'{"step": "1"}', b"\xff\xfe", b"[" * 10**5, b"null"])
def test_what_is_no_row_ends_the_rows(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert read_metrics(tmp_path / "metrics.jsonl", 9) == [{"step": 1}]
