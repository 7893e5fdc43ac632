"""Attention maps of [CLS] (DINO, Caron et al. 2021, Fig. 1; Darcet et al. 2024, Fig. 1).

    a_h = softmax(q_h Kₕᵀ / √d)         for each head h

    q_h  (d,)         the query of [CLS]
    K_h  (1+R+N, d)   the keys of all tokens: [CLS], registers, patches
    a_h  (1+R+N,)     sums to 1; a map shows the values of the N patches only
"""

from einops import rearrange

from vit import split_batches


def cls_attention(vit, x, layer):
    """Images (B, 3, H, W) -> attention of [CLS] to the patches in block `layer` (from 0): (B, heads, N) in [0, 1]."""
    y, shapes = vit.pack([x], [None])  # (B·n, D), [(B, n)] with n = 1 + R + N
    for block in vit.blocks[:layer]:
        y = block(y, shapes)
    block = vit.blocks[layer]
    [qkv] = split_batches(block.attn.qkv(block.norm1(y)), shapes)
    q, k, _ = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=block.attn.n_heads)
    a = (q[:, :, :1] * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)  # (B, h, 1, n)
    return a[:, :, 0, 1 + vit.n_registers :]
