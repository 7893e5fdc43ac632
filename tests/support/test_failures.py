"""What is said of an error, and with which exit status.  `pytest tests/test_failures.py`"""

import pytest
import torch
import torch.distributed as dist

from support import cli as failures
from support.cli import report_errors
from support.files import UserError


@pytest.mark.parametrize("error, says, status", [
    (UserError("no such flag"), "no such flag", 2),
    (UserError("no checkpoint"), "no checkpoint", 2),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--checkpointing", 1),
    (MemoryError(), "--checkpointing", 1),
    (OSError(28, "No space left on device", "runs/x/checkpoint.pt"), "runs/x/checkpoint.pt: No space left", 1),
    (PermissionError(13, "Permission denied", "runs/x"), "runs/x: Permission denied", 2),
    (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 576 vs 470"), "is the disk full?", 1),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "--checkpointing", 1),
])  # fmt: skip
def test_one_line_and_a_status(error, says, status, capsys):
    @report_errors("program.py")
    def main(argv):
        raise error

    assert main([]) == status
    line = capsys.readouterr().err
    assert line.startswith("program.py: error: ") and says in line and line.count("\n") == 1


@pytest.mark.parametrize("error", [dist.DistBackendError("NCCL"), RuntimeError("[gloo/pair.cc:5] Connection closed")])
def test_a_rank_that_lost_another_one(error, monkeypatch, capsys):
    """Only where there are others."""
    main = report_errors("program.py")(lambda argv: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError):
        main()
    monkeypatch.setattr(failures.distributed, "world_size", lambda: 2)
    assert main() == 1 and "--resume" in capsys.readouterr().err


def test_ctrl_c_is_no_error(capsys):
    """Before the loop and in the last k-NN, where nothing is to be saved."""
    assert report_errors("program.py")(lambda argv: (_ for _ in ()).throw(KeyboardInterrupt))() == 130
    assert capsys.readouterr().err == "program.py: stopped\n"


def test_a_name_reaches_the_terminal_as_it_is_spelt(capsys):
    """Colours, line breaks and bytes that are no text are shown, not obeyed."""
    error = UserError("no file a\x1b[31m\u202eb\udce9.png")
    assert report_errors("program.py")(lambda argv: (_ for _ in ()).throw(error))() == 2
    assert capsys.readouterr().err == "program.py: error: no file a\\x1b[31m\\u202eb\\udce9.png\n"


def test_other_errors_are_seen_whole():
    with pytest.raises(ZeroDivisionError):
        report_errors("program.py")(lambda argv: 1 / 0)()


def test_what_goes_well_is_returned():
    assert report_errors("program.py")(lambda argv: argv)("7") == "7"
