"""Attention maps of [CLS]: by hand, and against the network's own attention.  `pytest tests/test_attention.py`"""

import math

import pytest
import torch
from test_vit import pictures, toy

import vit as vit_module
from attention import cls_attention
from vit import ViT


def test_by_hand():
    """One block, one head, d = 4 of which the first number counts: [CLS] 2, register 5, patches 1 and 3, no norm.

    q = 2·x, k = ln 2 · x, √d = 2.  Its scores are 2·ln 2·x: 4^x is 16, 1024, 4, 64, of 1108 together.
    """
    network = ViT(4, 1, 1, patch_size=1, img_size=1, n_registers=1)
    block = network.blocks[0]
    block.norm1 = torch.nn.Identity()
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        network.cls_token[..., 0], network.register_tokens[..., 0] = 2, 5
        network.patch_embed.proj.weight[0, 0] = 1  # a patch is its red value
        block.attn.qkv.weight[0, 0] = 2  # over √d = 2 below
        block.attn.qkv.weight[4, 0] = math.log(2)
        found = cls_attention(network, torch.tensor([1.0, 3.0]).expand(1, 3, 1, 2), 0)
    torch.testing.assert_close(found, torch.tensor([[[4 / 1108, 64 / 1108]]]))


@pytest.mark.parametrize("layer", [0, 2])
def test_it_is_the_attention_of_the_block(layer, monkeypatch):
    """What the block itself computes of q and k, for [CLS] and for the patches."""
    network, x, seen = toy(n_registers=2), pictures(2, 16, 24), []
    attend = vit_module.attend
    monkeypatch.setattr(vit_module, "attend", lambda q, k, v: seen.append((q, k)) or attend(q, k, v))
    with torch.no_grad():
        network(x)
        q, k = seen[layer]
        expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0, 3:]
        found = cls_attention(network, x, layer)
    assert found.shape == (2, 2, 24)
    torch.testing.assert_close(found, expected)
