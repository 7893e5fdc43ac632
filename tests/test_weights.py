"""Files of weights: what was saved is loaded, nothing in them is run, and what is wrong is one line.

    pytest tests/test_weights.py
"""

import os
import urllib.error

import pytest
import torch
from conftest import one_line
from test_vit import pictures, toy

from support.weights import load_vit
from vit import vit_nano, vit_pico, vit_small, vit_tiny


def assert_same_network(loaded, network):
    """Equal parameters, equal outputs, ready to evaluate."""
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=0, atol=0)
    loaded.blocks.apply(lambda m: setattr(m, "n_heads", 2) if hasattr(m, "n_heads") else None)
    assert torch.equal(loaded(pictures(1, 16, 16)), network(pictures(1, 16, 16)))


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize("kind", ["vit.pt", "checkpoint.pt", "chunked", "chunked checkpoint"])
def test_load_what_was_saved(tmp_path, ffn, n_registers, kind):
    """Chunked: the official training code calls block 2 of chunk 1 blocks.1.2."""
    network = toy(ffn=ffn, n_registers=n_registers)
    state = network.state_dict()
    if kind.startswith("chunked"):
        names = {f"blocks.{i}.": f"blocks.{i // 2}.{i}." for i in range(3)}
        state = {names.get(k[:9], k[:9]) + k[9:]: v for k, v in state.items()}
        assert "blocks.1.2.ls1.gamma" in state
    if kind.endswith("checkpoint") or kind == "checkpoint.pt":
        teacher = {f"backbone.{k}": v for k, v in state.items()} | {"dino_head.prototypes": torch.zeros(5, 2)}
        state = {"teacher": teacher, "student": {}, "step": 3}
    torch.save(state, tmp_path / "weights.pt")
    assert_same_network(load_vit(tmp_path / "weights.pt"), network)


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

    def unreachable(address, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
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
