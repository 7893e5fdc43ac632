"""Files from and for others: timm, Hugging Face transformers, ONNX; the same features, token for token.

    pip install -r requirements-exchange.txt && pytest tests/support/test_exchange.py

The networks are as wide as the official ones, with two blocks.  Without registers, official code, transformers and timm
resize positions in three ways, so the other two get our positions.  With registers they agree.
"""

import os
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

import support.weights
from support.weights import load_vit, save_vit
from vit import ViT

# Both import torchvision, whose operators a CPU-only torch lacks; none is needed.
sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))

pytestmark = pytest.mark.exchange
CASES = {"small": (384, 6, 0, "mlp"), "base": (768, 12, 4, "mlp"), "giant": (1536, 24, 4, "swiglu")}
all_cases = pytest.mark.parametrize("name", CASES)  # width, heads, registers, ffn
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-5)  # of tokens whose values are around 1
all_sizes = pytest.mark.parametrize("size", [(518, 518), (280, 420)], ids=str)  # the native 37×37, and 20×30 patches


def lively(name):
    """A network none of whose tensors is constant, like a trained one's."""
    width, heads, n_registers, ffn = CASES[name]
    torch.manual_seed(0)
    network = ViT(width, 2, heads, n_registers=n_registers, ffn=ffn, layer_scale=0.2).eval()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.02 * torch.randn_like(p)
    return network


def picture(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def all_tokens(network, x):
    return network.norm(network.forward_features(x)["x_prenorm"])


@all_sizes
@all_cases
@torch.inference_mode()
def test_timm(name, size, tmp_path):
    """Our file in its network, and what it saves in ours."""
    timm = pytest.importorskip("timm", reason="pip install -r requirements-exchange.txt")
    network, x = lively(name), picture(*size)
    registers = "_reg4" if network.n_registers else ""
    save_vit(network, tmp_path / "ours.safetensors")
    theirs = timm.create_model(f"vit_{name}_patch14{registers}_dinov2", img_size=size, depth=2).eval()
    state = load_file(tmp_path / "ours.safetensors")
    if registers:
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, theirs)
    else:
        state["pos_embed"] = network.positions(size[0] // 14, size[1] // 14)
    theirs.load_state_dict(state)
    tokens = theirs.forward_features(x)
    assert_same(all_tokens(network, x), tokens)
    if size == (518, 518):  # its positions are stored at the size that it was made for
        save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
        assert_same(all_tokens(load_vit(tmp_path / "theirs.safetensors"), x), tokens)


@all_sizes
@all_cases
@torch.inference_mode()
def test_transformers(name, size, tmp_path, monkeypatch):
    """Our folder opened by AutoModel, and what it saves in ours."""
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-exchange.txt")
    network, x = lively(name), picture(*size)
    save_vit(network, tmp_path / "ours")
    theirs, found = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(found.values())
    if not network.n_registers:
        positions = network.positions(size[0] // 14, size[1] // 14)
        monkeypatch.setattr(theirs.embeddings, "interpolate_pos_encoding", lambda *_: positions)
    tokens = theirs.eval()(x).last_hidden_state
    assert_same(all_tokens(network, x), tokens)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(all_tokens(load_vit(tmp_path / "theirs" / "model.safetensors"), x), tokens)


@torch.inference_mode()
def test_the_onnx_lines_of_the_docs(tmp_path, monkeypatch):
    """The lines of docs/weights.md, run as they are; the file takes batches of any length."""
    pytest.importorskip("onnxscript", reason="pip install -r requirements-exchange.txt")
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -r requirements-exchange.txt")
    page = (Path(support.weights.__file__).parents[1] / "docs" / "weights.md").read_text()
    [lines] = re.findall(r"```python\n([^`]*torch.onnx.export.*?)```", page, re.DOTALL)
    network, x = lively("base"), picture(224, 224)
    x = torch.cat([x, x.flip(2), x.flip(3)])
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs/mine")
    save_vit(network, "runs/mine/vit.pt")
    exec(lines, {})
    cls, patches = onnxruntime.InferenceSession("vit.onnx").run(None, {"images": x.numpy()})
    assert_same(network(x), torch.tensor(cls))
    assert_same(network.forward_features(x)["x_norm_patchtokens"], torch.tensor(patches))
