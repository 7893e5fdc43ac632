"""Command lines: what all programs share, and the flags of train.py.  `pytest tests/support/test_cli.py`"""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recipes import RECIPES
from support.cli import Terminal, parse_args, report_errors
from support.files import UserError, check_out, lock_folder, make_folder, write_safely


@pytest.mark.parametrize("words, name, changes", [
    ("", "shapes", {}),
    ("--recipe vitl14 --batch 7 --lr 2e-3 --data here --scale -1e-05 1 --compile --no-amp --hires_share 0 "
     "--hires_size 65", "vitl14", {"batch": 7, "lr": 2e-3, "data": "here", "scale": (-1e-5, 1), "compile": True,
                                   "amp": "none", "hires_share": 0, "hires_size": 65}),
])  # fmt: skip
def test_flags_change_the_recipe_and_say_what_they_changed(words, name, changes):
    """Of each type: whole number, number, text, interval, on, off.  The size of a phase that never comes may be any."""
    options, recipe, found = parse_args(words.split())
    assert found == changes and recipe == replace(RECIPES[name], **changes)
    assert options.out == Path("runs", name) and not options.resume


@pytest.mark.parametrize("words, says", [
    ("--bach 3", "did you mean --batch"),
    ("--bat 3", "did you mean --batch"),
    ("--nothing", "unknown argument --nothing"),
    ("--recipe vitb16", "vitl14"),
    ("--batch three", "'three' is not a whole number from 1 to 1e+09"),
    ("--batch 0", "argument --batch: '0' is not a whole number"),
    ("--scale 5 5", "--scale: LOW must be below HIGH; got 5.0 5.0"),
    ("--arch vit_huge", "vit_small"),
    ("--arch vit_giant2", "--ffn swiglu"),
    ("--recipe vitl14 --stem", "--stem needs --patch_size 2, 4, 8 or 16; got 14"),
    ("--global_size 50", "multiple of --patch_size 8; got 50"),
    ("--local_size 4", "multiple of --patch_size 8"),
    ("--mask_ratio 0.5 0.1", "--mask_ratio: LOW must be below HIGH; got 0.5 0.1"),
    ("--global_scale 0.5 1.5", "'1.5' is not a number from 0 to 1"),
    ("--blur_sigma 0 nan", "'nan' is not a number"),
    ("--blur_sigma 0 9", "--local_size must be above 18, the reach of --blur_sigma (0.0, 9.0); got 16"),
])  # fmt: skip
def test_a_wrong_flag_is_one_line(words, says):
    with pytest.raises(UserError) as error:
        parse_args(words.split())
    assert says in str(error.value) and "\n" not in str(error.value)


def test_help_is_short(capsys):
    """40 lines at 80 columns at most, and where the other flags are explained."""
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and printed.count("\n") <= 40 and "recipes.py" in printed and "--batch" in printed


def test_where_a_result_can_go(tmp_path, monkeypatch):
    """Over nothing but a regular file: a link would lead to another file, and a FIFO would hang."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    make_folder(tmp_path / "a" / "b")
    for name in ("link", ".new.tmp", "a/.lock"):
        (tmp_path / name).symlink_to(mine)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "a", tmp_path / "link", tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(UserError, match=f"{path} is a folder, a link or a device"):
            write_safely(path, None)
    with pytest.raises(UserError, match="lock is a folder, a link or a device"), lock_folder(tmp_path / "a"):
        pass
    write_safely(tmp_path / "new", lambda path: path.write_text("new"))
    assert mine.read_text() == "mine" and (tmp_path / "new").read_text() == "new"
    with pytest.raises(UserError, match="is a folder"):
        make_folder(tmp_path / "a", "b")
    with pytest.raises(NotADirectoryError):
        make_folder(mine / "b")
    with pytest.raises(UserError, match="no folder"):
        check_out(tmp_path / "none/new.png")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot write into"):
        check_out(tmp_path / "new.png")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """On a full disk, whose error names no file."""
    path = tmp_path / "file"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("half")
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    with pytest.raises(OSError, match="space left.*/file'"):
        write_safely(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with open(path) as reader:
        write_safely(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"  # renamed over the old file, not written into it


@pytest.mark.parametrize("error, says, status", [
    (UserError("no such flag"), "error: no such flag", 2),
    (KeyboardInterrupt(), "stopped", 130),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--checkpointing", 1),
    (MemoryError(), "--checkpointing", 1),
    (RuntimeError("could not create a primitive"), "out of memory", 1),
    (RuntimeError("can't start new thread"), "out of memory", 1),
    (OSError(12, "Cannot allocate memory"), "out of memory", 1),
    (OSError(28, "No space left on device", "runs/x/checkpoint.pt"), "runs/x/checkpoint.pt: No space left", 1),
    (PermissionError(13, "Permission denied", "runs/x"), "runs/x: Permission denied", 2),
    (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 576 vs 470"), "free some disk space", 1),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "--checkpointing", 1),
    (UserError("no file\na\x1b[31m\u202eb\udce9.png"), "no file a\\x1b[31m\\u202eb\\udce9.png\n", 2),
])  # fmt: skip
def test_expected_errors_are_one_line_and_a_status(error, says, status, capsys):
    @report_errors("program.py")
    def main(argv):
        raise error

    assert main([]) == status
    line = capsys.readouterr().err
    assert line.startswith("program.py: ") and says in line and line.count("\n") == 1


@pytest.mark.parametrize("error", [dist.DistBackendError("NCCL"), RuntimeError("[gloo/pair.cc:5] Connection closed")])
def test_a_rank_that_lost_another_one(error, monkeypatch, capsys):
    """Only where there are others; alone, such an error is a fault of the program and seen whole."""
    main = report_errors("program.py")(lambda argv: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError):
        main()
    for name in ("LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.setenv(name, "1")
        assert main() == 2 and "MASTER_PORT: torchrun did not set them" in capsys.readouterr().err
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0")
    assert main() == 1 and "--resume" in capsys.readouterr().err


def test_a_name_does_not_steer_the_terminal():
    """Escapes, what ASCII lacks, and a stream that was closed before or is closed now."""
    raw, (end, pipe) = io.BytesIO(), os.pipe()
    stream = Terminal(io.TextIOWrapper(raw, "ascii"))
    for text in ("\r bar\r", "\n\x1b[A", "λ\x1b[31m\udce9\n"):
        stream.write(text)
    assert raw.getvalue() == b"\r bar\\r" b"\n\x1b[A" b"\\u03bb\\x1b[31m\\udce9\n"
    Terminal(None).write("nobody reads it")
    os.close(end)
    with open(pipe, "w") as stream, pytest.raises(BrokenPipeError):
        Terminal(stream).write("x")  # and no second error when the stream is closed
    end, terminal = os.openpty()
    os.close(end)
    with open(terminal, "w") as stream:
        Terminal(stream).write("a closed terminal is no error\n")
