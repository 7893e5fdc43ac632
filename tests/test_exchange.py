"""Our files in other people's networks: timm and Hugging Face transformers give our features, token for token.

    pip install -r requirements-dev.txt && pytest tests/test_exchange.py

The networks are as wide and as deep as the official ones, but ViT-g has 2 of its 40 blocks.  Models without registers
resize positions in three ways: the official code by the factor (n + 0.1)/37, transformers to the size, timm with
antialias.  There the two get our positions at the resolution of the test, so that everything else is compared; those
with registers agree about positions too, and get the file as it is.
"""

import re
import sys
from types import ModuleType

import pytest
import torch

from support.weights import load_vit
from vit import ViT

# Both import torchvision, whose operators a torch built for CPUs alone lacks; none is needed.
sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))

TOLERANCE = 1e-5  # of values around 1

NETWORKS = {  # width, depth, heads, ffn: each with and without registers
    "small": (384, 12, 6, "mlp"),
    "giant": (1536, 2, 24, "swiglu"),
}
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
    assert off < TOLERANCE, f"largest difference {off:.1e}, of values up to {ours.abs().max():.1f}"


def all_tokens(network, x):
    out = network.forward_features(x)
    return torch.cat([out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]], dim=1)


@pytest.fixture
def saved(tmp_path):
    """save(network) -> the file that train.py would write."""

    def save(network):
        torch.save(network.state_dict(), tmp_path / "vit.pt")
        return tmp_path / "vit.pt"

    return save


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_timm(name, n_registers, size, saved):
    timm = pytest.importorskip("timm", reason="pip install -r requirements-dev.txt")
    from timm.models.vision_transformer import checkpoint_filter_fn

    network, x = lively(name, n_registers), picture(*size)
    file = saved(network)
    registers = f"_reg{n_registers}" if n_registers else ""
    theirs = timm.create_model(f"vit_{name}_patch14{registers}_dinov2", img_size=size, depth=NETWORKS[name][1]).eval()
    state = torch.load(file, weights_only=True)
    if not n_registers:
        state["pos_embed"] = network.positions(size[0] // 14, size[1] // 14)
    theirs.load_state_dict(checkpoint_filter_fn(state, theirs))
    assert_same_tokens(all_tokens(load_vit(file), x), theirs.forward_features(x))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_transformers(name, n_registers, size, saved, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    network, x = lively(name, n_registers), picture(*size)
    file = saved(network)
    width, depth, heads, ffn = NETWORKS[name]
    kind, extra = ("WithRegisters", {"num_register_tokens": n_registers}) if n_registers else ("", {})
    config = getattr(transformers, f"Dinov2{kind}Config")(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, use_swiglu_ffn=ffn == "swiglu",
        image_size=518, patch_size=14, attn_implementation="sdpa", **extra)  # fmt: skip
    theirs = getattr(transformers, f"Dinov2{kind}Model")(config).eval()
    theirs.load_state_dict(to_transformers(torch.load(file, weights_only=True)))
    if not n_registers:
        positions = network.positions(size[0] // 14, size[1] // 14)
        monkeypatch.setattr(theirs.embeddings, "interpolate_pos_encoding", lambda *_: positions)
    assert_same_tokens(all_tokens(load_vit(file), x), theirs(x).last_hidden_state)


def to_transformers(state):
    """Official keys -> those of transformers' Dinov2Model: names, and the parts of the joined matrices."""
    names = [
        (r"^cls_token$", "embeddings.cls_token"),
        (r"^mask_token$", "embeddings.mask_token"),
        (r"^register_tokens$", "embeddings.register_tokens"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
        (r"^blocks\.", "encoder.layer."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
        (r"\.mlp\.w3\.", ".mlp.down_proj."),
    ]
    joined = {".attn.qkv.": [f".attention.{part}_proj." for part in "qkv"],
              ".mlp.w12.": [".mlp.gate_proj.", ".mlp.up_proj."]}  # fmt: skip
    out = {}
    for key, value in state.items():
        parts = {key: value}
        for name, theirs in joined.items():
            if name in key:
                parts = {key.replace(name, t): v for t, v in zip(theirs, value.chunk(len(theirs)))}
        for key, value in parts.items():
            for pattern, replacement in names:
                key = re.sub(pattern, replacement, key)
            out[key] = value
    return out
