"""Files of weights: what was saved is loaded, no code in them runs.  `pytest tests/support/test_weights.py`"""

import argparse
import os
import re
import urllib.error

import pytest
import torch
from conftest import one_line
from test_vit import pictures, toy
from torch import zeros

from support.files import UserError
from support.weights import load_vit, main, save_vit
from vit import vit_pico


def assert_same_network(loaded, network):
    """Equal parameters, equal outputs, ready to evaluate."""
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    assert torch.equal(loaded(pictures(1, 16, 16)), network(pictures(1, 16, 16)))


def refuse(path, words):
    with pytest.raises(UserError, match=words) as error:
        load_vit(path)
    assert len(one_line(error)) < 400


def prefixed(state, prefix, more=0):
    return {prefix + key: value + more for key, value in state.items()}


def in_blocks(state, pattern):
    """With another name for the start of the keys of block i: the pattern's."""
    return {pattern.format(i=int(k[7]), chunk=int(k[7]) // 2) + k[9:] if k.startswith("blocks.") else k: v
            for k, v in state.items()}  # fmt: skip


def of_dino(state):
    """DINO's networks have no mask token and no LayerScale: x + branch(x) is x + 1 · branch(x)."""
    for key in [key for key in state if ".ls" in key or key == "mask_token"]:
        state.pop(key).fill_(key != "mask_token")
    return state


HEAD = {"dino_head.prototypes": zeros(5, 2)}
WRAPPED = {  # what people have, and how it wraps the tensors `s` of the network that is meant
    "DINO's network": of_dino,
    "checkpoint.pt": lambda s: {"teacher": prefixed(s, "backbone.") | HEAD, "student": prefixed(s, "", 1), "step": 3},
    "official training": lambda s: {
        "model": prefixed(s, "student.backbone.", 1)
        | prefixed(in_blocks(s, "blocks.{chunk}.{i}."), "teacher.backbone.")  # the official code's chunks of blocks
        | {"teacher.dino_head.last_layer.weight": zeros(3), "dino_loss.center": zeros(1, 5)}, "iteration": 7},
    "FSDP and compile": lambda s: {"model": prefixed(in_blocks(s, "blocks.{i}._fsdp_wrapped_module._orig_mod."),
                                                     "teacher.backbone._fsdp_wrapped_module.")},
    "DINO's checkpoint": lambda s: {"student": prefixed(s, "module.backbone.", 1), "teacher": prefixed(s, "backbone."),
                                    "epoch": 1, "args": argparse.Namespace(arch="vit_small", lr=5e-4)},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_load_what_was_saved(tmp_path, kind):
    network = toy(ffn="swiglu", n_registers=4)
    torch.save(WRAPPED[kind](network.state_dict()), tmp_path / "weights.pt")
    assert_same_network(load_vit(tmp_path / "weights.pt"), network)


@pytest.mark.parametrize("name", ["vit.pth", "vit.pt", "vit.safetensors", "vit"])
@pytest.mark.parametrize(("ffn", "n_registers"), [("mlp", 0), ("swiglu", 4)])
def test_out_and_in_again(tmp_path, ffn, n_registers, name):
    """Every kind of file holds the whole network; timm's has no mask token, and adds [CLS]'s position to [CLS]."""
    network, x = toy(ffn=ffn, n_registers=n_registers), pictures(1, 16, 24)
    save_vit(network, tmp_path / name)
    loaded = load_vit(tmp_path / name)
    assert loaded.antialias == (n_registers > 0)
    torch.testing.assert_close(loaded(x), network(x), rtol=1e-6, atol=1e-6)
    if name != "vit.safetensors":
        assert_same_network(loaded, network)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # nothing is left beside it


def test_official_names(monkeypatch, tmp_path):
    """The error gives the address, and the path for a file that was downloaded by other means.  Then that is used."""

    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path, address = tmp_path / "checkpoints", "https://dl.fbaipublicfiles.com/dinov2"
    refuse("dinov2_vits14", f"cannot download {address}/dinov2_vits14/dinov2_vits14_pretrain.pth .*no network.*; put ")
    path = path / "dinov2_vitg14_reg4_pretrain.pth"
    refuse("dinov2_vitg14_reg", f"cannot download {address}/dinov2_vitg14/{path.name} .*; put the file at {path}")
    torch.save(toy().state_dict(), path)
    assert_same_network(load_vit("dinov2_vitg14_reg"), toy())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    refuse("dinov2_vitg14_reg", f"{path} is damaged: the checksum of .* is wrong")


FLAWS = [  # tensors to add to a good file, or None to remove one, and words of the error
    ({"cls_token": None}, "cls_token"), ({"extra": zeros(3)}, "extra"), ({"blocks.0.ls2.gamma": None}, "gamma"),
    ({"norm.weight": "text"}, "str"), ({"cls_token": 5}, "int"), ({"cls_token": zeros(1, 1, 0)}, "width 0"),
    ({"pos_embed": zeros(3)}, "range"), ({"pos_embed": zeros(1, 12, 96)}, "pos_embed"),
    ({"pos_embed": zeros(1, 1, 96)}, "grid 0"), ({"patch_embed.proj.weight": zeros(96, 3, 0, 0)}, "patch 0"),
    *[({"norm.weight": x}, "norm.weight holds NaN, infinity or no real numbers")
      for x in (torch.arange(96) / torch.arange(96), zeros(96, dtype=torch.complex64), zeros(1).expand(96))],
    ({"pos_embed": None, "rope_embed.periods": zeros(16), "bias_mask": torch.full((3,), torch.nan)}, "pos_embed"),
]  # fmt: skip
OTHER = [{}, zeros(3), {0: zeros(3)}, {"teacher": {"head.weight": zeros(3)}}, {"embeddings.cls_token": zeros(1, 1, 64)}]


@pytest.mark.parametrize(("flaw", "words"), FLAWS + [(contents, "") for contents in OTHER], ids=str)
def test_other_contents(tmp_path, flaw, words):
    if words:
        flaw = {key: x for key, x in (toy().state_dict() | flaw).items() if x is not None}
    torch.save(flaw, tmp_path / "flawed.pt")
    refuse(tmp_path / "flawed.pt", f"flawed.pt does not hold a DINOv2 ViT.*{words}")


class Trap:
    """Its pickle asks to make the folder `sprung`."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_files_of_another_kind(tmp_path, monkeypatch):
    """Code in a file does not run."""
    monkeypatch.chdir(tmp_path)
    save_vit(toy(), tmp_path / "vit.safetensors")
    whole = (tmp_path / "vit.safetensors").read_bytes()
    torch.save({"cls_token": Trap()}, "trap.pt")
    (tmp_path / "folder").mkdir()
    contents = {"empty.pt": b"", "notes.txt": b"no weights\n", "pickle.pt": b"\x80\x02garbage", "zip.pt": b"PK\x03\x04"}
    for name, content in (contents | {f"{size}.safetensors": whole[:size] for size in (0, 7, 100, -1)}).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "vit.safetensors").unlink()
    for path in tmp_path.iterdir():
        refuse(path, f"{path.name} is not a weights file of PyTorch or safetensors")
    assert not os.path.exists("sprung")


def test_the_program(tmp_path, capsys):
    """And a folder whose config asks for other heads is refused."""
    network, folder, again = toy(n_registers=4), tmp_path / "hf", tmp_path / "again.pth"
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    assert main([str(tmp_path / "vit.pt"), str(folder)]) == 0 == main([str(folder), str(again)])
    assert_same_network(load_vit(again), network)
    assert capsys.readouterr().out.split() == [str(folder), str(again)]
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 3'))
    for path in (folder, folder / "model.safetensors"):
        refuse(path, "config.json says 3 heads, but a network of this width has 2")


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_a_file_that_cannot_be_written_whole_is_one_line(tmp_path, capsys, out):
    """Here its size is limited; on a full disk, too, safetensors raises an error of its own."""
    torch.save(toy().state_dict(), tmp_path / "vit.pt")
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main([str(tmp_path / "vit.pt"), str(tmp_path / out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.fullmatch(f"python -m support.weights: error: {tmp_path}/.+: File too large\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["vit.pt"]


@pytest.mark.parametrize(("words", "line"), [
    (["dinov2_vitx14", "out.pth"], "no weights at dinov2_vitx14"), (["vit.pt", "out.onnx"], "OUT must end in .pth"),
    (["vit.pt", "none/out.pth"], "there is no folder none"), (["vit.pt", "vit.pt/sub"], "vit.pt/sub: "),
    (["stem.pt", "out.safetensors"], "no ViT with a convolutional stem"), (["stem.pt", "out"], "convolutional stem"),
])  # fmt: skip
def test_the_program_says_what_is_wrong(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    torch.save(toy().state_dict(), "vit.pt")
    torch.save(vit_pico(patch_size=4, img_size=16, stem=True).state_dict(), "stem.pt")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1
    assert sorted(os.listdir()) == ["stem.pt", "vit.pt"]
