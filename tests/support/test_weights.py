"""Files of weights: what was saved is loaded, nothing in them is run, and what is wrong is one line.

    pytest tests/test_weights.py
"""

import argparse
import json
import math
import os
import urllib.error

import pytest
import torch
from conftest import one_line
from test_vit import pictures, toy

from support.weights import load_vit, main, save_vit
from vit import vit_nano, vit_pico, vit_small, vit_tiny


def assert_same_network(loaded, network):
    """Equal parameters, equal outputs, ready to evaluate."""
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    loaded.blocks.apply(lambda m: setattr(m, "n_heads", 2) if hasattr(m, "n_heads") else None)
    assert torch.equal(loaded(pictures(1, 16, 16)), network(pictures(1, 16, 16)))


WRAPPED = {  # what people have, and how it wraps the tensors `s` of the network that is meant
    "vit.pt": lambda s: s,
    "checkpoint.pt": lambda s: {"teacher": prefixed(s, "backbone.") | HEAD, "student": prefixed(s, "", 1), "step": 3},
    "chunked": lambda s: chunked(s),
    "chunked checkpoint": lambda s: {"teacher": prefixed(chunked(s), "backbone.") | HEAD},
    "official training": lambda s: {
        "model": prefixed(chunked(s), "teacher.backbone.") | prefixed(s, "student.backbone.", 1)
        | {"teacher.dino_head.last_layer.weight": torch.zeros(3), "dino_loss.center": torch.zeros(1, 5)},
        "optimizer": {"state": {}}, "iteration": 7},
    "FSDP": lambda s: {"model": {f"teacher.backbone.blocks.0._fsdp_wrapped_module.{k[7:]}" if k.startswith("blocks.")
                                 else f"teacher.backbone._fsdp_wrapped_module.{k}": v for k, v in s.items()}},
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "a backbone": lambda s: prefixed(s, "backbone."),
    "a student": lambda s: prefixed(s, "student.backbone."),
    "model": lambda s: {"model": s, "epoch": 1},
    "state_dict": lambda s: {"state_dict": prefixed(s, "module.backbone.")},
    "DINO's checkpoint": lambda s: {"student": prefixed(s, "module.backbone.", 1), "teacher": prefixed(s, "backbone."),
                                    "epoch": 1, "args": argparse.Namespace(arch="vit_small", lr=5e-4)},
}  # fmt: skip
HEAD = {"dino_head.prototypes": torch.zeros(5, 2)}


def prefixed(state, prefix, more=0):
    return {prefix + key: value + more for key, value in state.items()}


def chunked(state):
    """The official training code calls block 2 of chunk 1 blocks.1.2."""
    names = {f"blocks.{i}.": f"blocks.{i // 2}.{i}." for i in range(3)}
    return {names.get(k[:9], k[:9]) + k[9:]: v for k, v in state.items()}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("ffn, n_registers", [("mlp", 0), ("swiglu", 4)])
def test_load_what_was_saved(tmp_path, ffn, n_registers, kind):
    network = toy(ffn=ffn, n_registers=n_registers)
    torch.save(WRAPPED[kind](network.state_dict()), tmp_path / "weights.pt")
    assert_same_network(load_vit(tmp_path / "weights.pt"), network)


@pytest.mark.parametrize("name", ["vit.pth", "vit.pt", "vit.safetensors", "vit"])
@pytest.mark.parametrize("ffn, n_registers", [("mlp", 0), ("swiglu", 4)])
def test_out_and_in_again(tmp_path, ffn, n_registers, name):
    """Every kind of file holds the whole network; timm's has no mask token, and adds [CLS]'s position to [CLS]."""
    network, x = toy(ffn=ffn, n_registers=n_registers), pictures(1, 16, 24)
    save_vit(network, tmp_path / name)
    loaded = load_vit(tmp_path / name)
    loaded.blocks.apply(lambda m: setattr(m, "n_heads", 2) if hasattr(m, "n_heads") else None)
    torch.testing.assert_close(loaded(x), network(x), rtol=1e-6, atol=1e-6)
    if name != "vit.safetensors":
        assert_same_network(loaded, network)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # nothing is left beside it


def test_the_heads_of_a_folder_are_those_of_its_config(tmp_path):
    """64 wide with two heads, where the width alone says one."""
    network = toy()
    save_vit(network, tmp_path / "vit")
    assert load_vit(tmp_path / "vit").blocks[0].attn.n_heads == 2


def test_timms_folder_has_a_config_of_another_kind(tmp_path):
    """As its networks lie on the Hub: model.safetensors in timm's names, and a config.json without heads."""
    network = vit_pico(patch_size=8, img_size=16, n_registers=4, layer_scale=1.0).eval()
    (tmp_path / "timm").mkdir()
    save_vit(network, tmp_path / "timm" / "model.safetensors")
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "vit_pico", "num_classes": 0}))
    for path in (tmp_path / "timm", tmp_path / "timm" / "model.safetensors"):
        torch.testing.assert_close(load_vit(path)(pictures(1, 16, 24)), network(pictures(1, 16, 24)))


@pytest.mark.parametrize("n", [5, 0, -2])
def test_heads_that_do_not_divide_the_width(tmp_path, n):
    save_vit(toy(), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"num_attention_heads": n}))
    with pytest.raises(ValueError, match=f"with {n} heads") as error:
        load_vit(tmp_path / "vit")
    one_line(error)


def test_a_stem_is_read_off_the_tensors_and_has_no_place_elsewhere(tmp_path, capsys):
    network = vit_pico(patch_size=4, img_size=16, stem=True).eval()
    save_vit(network, tmp_path / "vit.pt")
    again = load_vit(tmp_path / "vit.pt")
    assert again.stem and again.patch_size == 4
    assert torch.equal(again(pictures(2, 8, 12)), network(pictures(2, 8, 12)))
    for name in ("timm.safetensors", "hugging_face"):
        assert main([str(tmp_path / "vit.pt"), str(tmp_path / name)]) == 2
        assert "neither timm nor Hugging Face has a ViT with a convolutional stem" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_one_layer_scale_that_is_missing_is_a_flaw(tmp_path):
    """Unlike all of them, as in DINO's networks."""
    state = toy().state_dict()
    del state["blocks.1.ls1.gamma"]
    torch.save(state, tmp_path / "flawed.pth")
    with pytest.raises(ValueError, match="blocks.1.ls1.gamma") as error:
        load_vit(tmp_path / "flawed.pth")
    one_line(error)


def test_dinos_first_networks_have_no_layer_scale(tmp_path):
    """Nor a mask token: x + branch(x) is x + 1 · branch(x)."""
    network = toy()
    with torch.no_grad():
        for block in network.blocks:
            block.ls1.gamma.fill_(1), block.ls2.gamma.fill_(1)
        network.mask_token.zero_()
    state = {k: v for k, v in network.state_dict().items() if ".ls" not in k and k != "mask_token"}
    torch.save(state, tmp_path / "d.pth")
    assert_same_network(load_vit(tmp_path / "d.pth"), network)


@pytest.mark.parametrize("names", ["official", "Hugging Face", "timm"])
def test_dinov3_is_named(tmp_path, names):
    """Its networks have no stored positions, whatever else a library calls things."""
    D = 64
    states = {
        "official": {"cls_token": torch.zeros(1, 1, D), "storage_tokens": torch.zeros(1, 4, D),
                     "rope_embed.periods": torch.ones(16), "blocks.0.attn.qkv.bias_mask": torch.full((D,), math.nan)},
        "Hugging Face": {"embeddings.cls_token": torch.zeros(1, 1, D), "layer.0.norm1.weight": torch.zeros(D),
                         "embeddings.register_tokens": torch.zeros(1, 4, D)},
        "timm": {"cls_token": torch.zeros(1, 1, D), "reg_token": torch.zeros(1, 4, D)},
    }  # fmt: skip
    torch.save(states[names], tmp_path / "v3.pth")
    with pytest.raises(ValueError, match="no positions in it; RoPE, as in DINOv3, is not supported") as error:
        load_vit(tmp_path / "v3.pth")
    one_line(error)


def test_positions_of_a_file_are_the_hubs_until_told_otherwise(tmp_path):
    for n_registers in (0, 4):
        torch.save(toy(n_registers=n_registers).state_dict(), tmp_path / "vit.pt")
        assert load_vit(tmp_path / "vit.pt").antialias == (n_registers > 0)


@pytest.mark.parametrize("flaw, words", [
    ({"norm.weight": torch.full((64,), math.nan)}, "norm.weight holds NaN"),
    ({"norm.weight": torch.zeros(64, dtype=torch.complex64)}, "norm.weight is no tensor of real numbers"),
    ({"norm.weight": torch.zeros(1).expand(10**15)}, "norm.weight is no tensor of real numbers"),
    ({"blocks.999999999.norm1.weight": torch.ones(64)}, "does not hold"),
    ({"patch_embed.proj.weight": torch.zeros(64, 3, 0, 0)}, "does not hold"),
    ({"pos_embed": torch.zeros(1, 1, 64)}, "does not hold"),
    ({"cls_token": torch.zeros(1, 1, 0)}, "does not hold"),
    ({"model._flat_param_0": torch.zeros(3)}, "shards of one process"),
])  # fmt: skip
def test_hostile_tensors_are_one_line(tmp_path, flaw, words):
    torch.save(toy().state_dict() | flaw, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=words) as error:
        load_vit(tmp_path / "bad.pth")
    one_line(error)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_safetensors_file_cut_short(tmp_path, size):
    save_vit(toy(), tmp_path / "vit.safetensors")
    (tmp_path / "vit.safetensors").write_bytes((tmp_path / "vit.safetensors").read_bytes()[:size])
    with pytest.raises(ValueError, match="not a weights file") as error:
        load_vit(tmp_path / "vit.safetensors")
    one_line(error)


def test_the_program(tmp_path, capsys):
    network = toy(n_registers=4)
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    assert main([str(tmp_path / "vit.pt"), str(tmp_path / "hf")]) == 0
    assert main([str(tmp_path / "hf"), str(tmp_path / "again.pth")]) == 0
    assert_same_network(load_vit(tmp_path / "again.pth"), network)
    assert capsys.readouterr().out.split() == [str(tmp_path / "hf"), str(tmp_path / "again.pth")]


@pytest.mark.parametrize("words, said", [
    (["none.pt", "out.pth"], "no weights at none.pt"), (["vit.pt", "out.gguf"], "OUT ends in .pth"),
    (["vit.pt", "none/out.pth"], "there is no folder none"), (["vit.pt", "vit.pt/sub"], "cannot make the folder"),
    (["vit.pt", "out.onnx"], "give --image_size"),
    (["vit.pt", "out.onnx", "--image_size", "9", "8"], "does not divide into patches of 4"),
])  # fmt: skip
def test_the_program_says_what_is_wrong(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    torch.save(toy().state_dict(), "vit.pt")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert os.listdir() == ["vit.pt"]


@pytest.mark.parametrize("build", [vit_pico, vit_nano, vit_small], ids=["pico", "nano", "small"])
def test_heads_are_those_of_the_network(tmp_path, build):
    """No tensor tells their number; with another one the features would be others, without an error."""
    network = build(patch_size=8, img_size=16, layer_scale=1.0).eval()
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    loaded = load_vit(tmp_path / "vit.pt")
    assert torch.equal(loaded(pictures(1, 16, 16)), network(pictures(1, 16, 16)))


def test_the_architecture_is_read_off_the_tensors(tmp_path):
    network = vit_tiny(patch_size=16, img_size=224, n_registers=2)
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    loaded = load_vit(str(tmp_path / "vit.pt"))
    assert (loaded.embed_dim, loaded.patch_size, loaded.n_registers, len(loaded.blocks)) == (192, 16, 2, 12)
    assert loaded.blocks[0].attn.n_heads == 3
    images = pictures(1, 32, 48)
    assert torch.equal(loaded(images), network.eval()(images))


class Trap:
    """A pickle of it asks whoever opens it to make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"teacher": trap}, lambda trap: {"cls_token": trap}])
def test_code_in_a_file_is_not_run(tmp_path, wrap):
    torch.save(wrap(Trap(str(tmp_path / "sprung"))), tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="trap.pt") as error:
        load_vit(tmp_path / "trap.pt")
    one_line(error)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not weights\n", b"\x80\x02garbage", b"PK\x03\x04 half a zip"])
def test_a_file_of_another_kind(tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(ValueError, match="notes.txt is not a weights file of PyTorch") as error:
        load_vit(tmp_path / "notes.txt")
    one_line(error)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at .*none.pt") as error:
        load_vit(tmp_path / "none.pt")
    one_line(error)
    with pytest.raises(FileNotFoundError, match="dinov2_vitx14"):
        load_vit("dinov2_vitx14")


def test_a_folder(tmp_path):
    with pytest.raises(ValueError, match="not a weights file") as error:
        load_vit(tmp_path)
    one_line(error)


ODD = {
    "other tensors": {"weight": torch.zeros(3), "bias": torch.zeros(3)},
    "nothing": {},
    "a tensor": torch.zeros(3),
    "a list": [torch.zeros(3)],
    "numbered tensors": {0: torch.zeros(3)},
    "an empty teacher": {"teacher": {}},
    "a tensor for a teacher": {"teacher": torch.zeros(3)},
    "a teacher without a backbone": {"teacher": {"head.weight": torch.zeros(3)}},
}


@pytest.mark.parametrize("kind", ODD)
def test_a_file_with_other_things_in_it(tmp_path, kind):
    torch.save(ODD[kind], tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="odd.pt") as error:
        load_vit(tmp_path / "odd.pt")
    one_line(error)


@pytest.mark.parametrize(("key", "value"), [
    ("norm.weight", None), ("cls_token", None), ("blocks.2.mlp.fc1.weight", None), ("extra", torch.zeros(3)),
    ("norm.weight", torch.zeros(65)), ("cls_token", torch.tensor(1.0)), ("pos_embed", torch.zeros(3)),
    ("pos_embed", torch.zeros(1, 12, 64)), ("blocks.x", torch.zeros(3)), ("norm.weight", "text"), ("cls_token", 5),
    ("patch_embed.proj.weight", torch.zeros(64)), ("register_tokens", torch.zeros(4)),
])  # fmt: skip
def test_a_state_dict_with_a_flaw(tmp_path, key, value):
    state = toy().state_dict()
    state.pop(key, None)
    if value is not None:
        state[key] = value
    torch.save(state, tmp_path / "flawed.pt")
    with pytest.raises(ValueError, match="flawed.pt does not hold the weights of a DINOv2 ViT") as error:
        load_vit(tmp_path / "flawed.pt")
    assert len(one_line(error)) < 400


@pytest.mark.parametrize(("name", "path"), [
    ("dinov2_vits14", "dinov2_vits14/dinov2_vits14_pretrain.pth"),
    ("dinov2_vitg14_reg", "dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
])  # fmt: skip
def test_an_official_name_without_a_network(monkeypatch, tmp_path, name, path):
    """The error names the address, and the place where a file fetched by other means belongs."""

    def unreachable(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        load_vit(name)
    message = one_line(error)
    assert f"https://dl.fbaipublicfiles.com/dinov2/{path}" in message
    assert f"{tmp_path}/checkpoints/{path.split('/')[1]}" in message


def test_an_official_name_with_its_file_in_place(monkeypatch, tmp_path):
    """The cache is read as it is, without asking the network; nothing in it is run."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    place = tmp_path / "checkpoints" / "dinov2_vits14_pretrain.pth"
    network = toy()
    torch.save(network.state_dict(), place)
    assert_same_network(load_vit("dinov2_vits14"), network)
    torch.save(Trap(str(tmp_path / "sprung")), place)
    with pytest.raises(ValueError, match="dinov2_vits14_pretrain.pth") as error:
        load_vit("dinov2_vits14")
    one_line(error)
    assert not (tmp_path / "sprung").exists()
