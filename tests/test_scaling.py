"""The sweep of sizes: networks cut to a depth, and the picture of points that were and were not measured.

    pytest tests/test_scaling.py
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import bench
import vit
from recipes import get_recipe
from support import scaling


def test_the_first_blocks_alone(monkeypatch):
    monkeypatch.setattr(vit, "vit_nano", vit.vit_nano)  # put back afterwards
    whole = vit.vit_nano(patch_size=8)
    scaling.keep_blocks("vit_nano", "2")
    assert len(whole.blocks) == 6 and len(vit.vit_nano(patch_size=8).blocks) == 2
    assert vit.vit_nano(patch_size=8)(torch.zeros(1, 3, 16, 16)).shape == (1, 192)


@pytest.fixture
def in_this_process(monkeypatch, capsys):
    """What `point` would start as a process, which takes its seconds to import PyTorch, is called, and times a step."""
    monkeypatch.setattr(vit, "vit_nano", vit.vit_nano)  # put back afterwards

    def run(command, env, **_):
        assert command[0] == sys.executable and command[-2:] == ["--steps", "3"]
        monkeypatch.setattr(sys, "argv", [command[1], *command[3 if command[1] == "-c" else 2 : -1], "1"])
        try:
            if command[1] == "-c":
                assert env["PYTHONPATH"] == str(Path(bench.__file__).parent)
                exec(command[2])
            assert command[1] == bench.__file__
            sys.exit(bench.main(sys.argv[1:]))
        except SystemExit as end:
            return SimpleNamespace(returncode=end.code, stdout=capsys.readouterr().out)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_depth_and_a_field_are_measured_and_what_fails_is_none(in_this_process):
    flags = ["--recipe", "shapes", "--n_prototypes", "16", "--hires_share", "0", "--batch", "2", "--device", "cpu",
             "--arch", "vit_nano"]  # fmt: skip
    deep, shallow = scaling.point(flags, "vit_nano", "batch", 4), scaling.point(flags, "vit_nano", "depth", 3)
    ratio = deep["flops_per_image"] / shallow["flops_per_image"]
    assert 2 < ratio < 2.2  # heads stay, but so does the last block, which does less
    assert (deep["batch"], shallow["batch"]) == (4, 2)
    assert scaling.point(flags, "vit_nano", "global_size", 33) is None  # not whole patches


def test_the_picture(monkeypatch, tmp_path):
    """Twice the batch in the same time a step; one point of each sweep does not fit."""

    def point(flags, arch, field, value):
        if value == scaling.SWEEPS[field][-1]:
            return None
        return {"images_per_s": 2.0, "flops_per_image": 3e9, "flops_per_s": 6e9, "peak_memory": 2**30 * value}

    monkeypatch.setattr(scaling, "point", point)
    out = tmp_path / "bench.png"
    assert scaling.draw_scaling([], get_recipe("shapes"), out) == f"17 of 21 points: {out}"
    width, height = Image.open(out).size
    assert (width, height) == (1600, 700)
