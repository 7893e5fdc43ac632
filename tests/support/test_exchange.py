"""Files from and for others: timm, Hugging Face transformers, ONNX; the same features, token for token.

    pip install -r requirements-dev.txt && pytest tests/test_exchange.py -s      prints the largest differences

The networks are as wide and as deep as the official ones, but ViT-g has 2 of its 40 blocks.  Models without registers
resize positions in three ways: the official code by the factor (n + 0.1)/37, transformers to the size, timm with
antialias.  There the two get our positions at the resolution of the test, so that everything else is compared; those
with registers agree about positions too, and get the file as it is.
"""

import os
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.weights import load_vit, save_vit
from vit import ViT

# Both import torchvision, whose operators a torch built for CPUs alone lacks; none is needed.
sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))

TOLERANCE = 1e-5  # of values around 1

NETWORKS = {  # width, depth, heads, ffn: each with and without registers
    "small": (384, 12, 6, "mlp"),
    "base": (768, 12, 12, "mlp"),
    "giant": (1536, 2, 24, "swiglu"),
}
CASES = [("small", 0), ("base", 4), ("giant", 0), ("giant", 4)]
SIZES = [(224, 224), (518, 518), (280, 420)]  # 16×16, the native 37×37 and 20×30 patches


def lively(name, n_registers):
    """A network none of whose tensors is 0 or 1 throughout, as a trained one's."""
    width, depth, heads, ffn = NETWORKS[name]
    torch.manual_seed(0)
    network = ViT(width, depth, heads, n_registers=n_registers, ffn=ffn, layer_scale=0.2).eval()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn_like(p)
    return network


def picture(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same_tokens(ours, theirs):
    """x_norm of ours (1, 1 + R + N, D), in the order CLS, registers, patches."""
    off = (ours - theirs).abs().max().item()
    print(f"{os.environ['PYTEST_CURRENT_TEST']} {off:.1e}")
    assert off < TOLERANCE, f"largest difference {off:.1e}, of values up to {ours.abs().max():.1f}"


def all_tokens(network, x):
    out = network.forward_features(x)
    return torch.cat([out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]], dim=1)


def build_timm(timm, name, n_registers, size):
    registers = f"_reg{n_registers}" if n_registers else ""
    depth = NETWORKS[name][1]
    return timm.create_model(f"vit_{name}_patch14{registers}_dinov2", img_size=size, depth=depth).eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name, n_registers", CASES)
@torch.inference_mode()
def test_timm(name, n_registers, size, tmp_path):
    """Our file in its network, and what it saves in ours."""
    timm = pytest.importorskip("timm", reason="pip install -r requirements-dev.txt")
    network, x = lively(name, n_registers), picture(*size)
    save_vit(network, tmp_path / "ours.safetensors")
    theirs = build_timm(timm, name, n_registers, size)
    state = load_file(tmp_path / "ours.safetensors")
    if n_registers:
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, theirs)
    else:
        state["pos_embed"] = network.positions(size[0] // 14, size[1] // 14)
    theirs.load_state_dict(state)
    tokens = theirs.forward_features(x)
    assert_same_tokens(all_tokens(network, x), tokens)
    if size == (518, 518):  # its positions are stored at the size that it was made for
        save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
        assert_same_tokens(all_tokens(load_vit(tmp_path / "theirs.safetensors"), x), tokens)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name, n_registers", CASES)
@torch.inference_mode()
def test_transformers(name, n_registers, size, tmp_path, monkeypatch):
    """Our folder opened by AutoModel, and what it saves in ours."""
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    network, x = lively(name, n_registers), picture(*size)
    save_vit(network, tmp_path / "ours")
    theirs, found = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(found.values())
    if not n_registers:
        positions = network.positions(size[0] // 14, size[1] // 14)
        monkeypatch.setattr(theirs.embeddings, "interpolate_pos_encoding", lambda *_: positions)
    tokens = theirs.eval()(x).last_hidden_state
    assert_same_tokens(all_tokens(network, x), tokens)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_tokens(all_tokens(load_vit(tmp_path / "theirs" / "model.safetensors"), x), tokens)


@torch.inference_mode()
def test_dinos_first_networks(tmp_path):
    """timm's vit_small_patch16_224.dino, as it saves it: without LayerScale and mask token."""
    timm = pytest.importorskip("timm", reason="pip install -r requirements-dev.txt")
    torch.manual_seed(0)
    theirs, x = timm.create_model("vit_small_patch16_224.dino", depth=3).eval(), picture(224, 224)
    for p in theirs.parameters():
        p += 0.02 * torch.randn_like(p)
    save_file(theirs.state_dict(), tmp_path / "dino.safetensors")
    assert_same_tokens(all_tokens(load_vit(tmp_path / "dino.safetensors"), x), theirs.forward_features(x))


@pytest.mark.parametrize("name, n_registers", CASES)
@torch.inference_mode()
def test_onnx(name, n_registers, tmp_path):
    """One file for pictures of any size with registers, of the one that it was written for without; any batch."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -r requirements-dev.txt")
    network, sizes = lively(name, n_registers), SIZES if n_registers else SIZES[2:]
    save_vit(network, tmp_path / "vit.onnx", None if n_registers else sizes[0])
    session = onnxruntime.InferenceSession(tmp_path / "vit.onnx")
    for size in sizes:
        x = torch.cat([picture(*size), picture(*size).flip(3)])
        cls, patches, *registers = map(torch.tensor, session.run(None, {"images": x.numpy()}))
        assert_same_tokens(all_tokens(network, x), torch.cat([cls[:, None], *registers, patches], dim=1))
