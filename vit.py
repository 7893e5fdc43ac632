"""The Vision Transformer of DINOv2 (§5, Table 17; Dosovitskiy et al. 2021; registers: Darcet et al. 2024).

    x₀ = [cls; reg₁…reg_R; E·patchᵢ] + position       E: patch embedding; registers have no position
    x ← x + λ₁ ⊙ Attention(LayerNorm(x))              λ: LayerScale (CaiT, Touvron et al. 2021)
    x ← x + λ₂ ⊙ MLP(LayerNorm(x))                    MLP with GELU, or SwiGLU for networks trained from scratch

    x  (B, 1 + R + N, D)   tokens of B images with N = (H/P)·(W/P) patches of P×P pixels

Packing (§5): batches of different resolution share one pass.  Their tokens lie end to end in one matrix (T, D), and
`shapes` lists [(b, n), ...], the samples and tokens of each batch, Σ b·n = T.  Attention runs once per resolution.
"""

import math
from collections import OrderedDict
from functools import partial

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stem import conv_stem

PLAIN_ATTENTION = 512  # ours: up to this many tokens, a CPU computes attention by the plain formula

# ---------------------------------------------------------------------------- a block


class Attention(nn.Module):
    """Multi-head self-attention within each sample: packed tokens (T, D) -> (T, D)."""

    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, shapes):
        out = []
        for qkv in split_batches(self.qkv(x), shapes):  # (b, n, 3·D)
            q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.n_heads)
            out.append(rearrange(attend(q, k, v), "b h n d -> (b n) (h d)"))
        return self.proj(torch.cat(out) if len(out) > 1 else out[0])  # (T, D)


def attend(q, k, v):
    """softmax(q kᵀ/√d) v for each head: three (b, h, n, d) -> (b, h, n, d)."""
    # The fused kernel stores no (n, n) matrix.  But on a CPU a step with few tokens takes 1.3 to 1.5 times as long.
    if q.device.type != "cpu" or q.shape[2] > PLAIN_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v


class Mlp(nn.Sequential):
    """fc2(gelu(fc1 x)), D -> 4·D -> D: (T, D) -> (T, D)."""

    def __init__(self, dim):
        super().__init__(OrderedDict(fc1=nn.Linear(dim, 4 * dim), gelu=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) ⊙ w2 x) (Shazeer 2020): (T, D) -> (T, D)."""

    def __init__(self, dim):
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8  # official: as many parameters as an MLP, a multiple of 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """λ ⊙ x: (T, D) -> (T, D).  λ (D,) starts small, so that a deep network starts near the identity."""

    def __init__(self, dim, init):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x):
        return self.gamma * x


class Block(nn.Module):
    """Attention and MLP, each a residual branch: norm, branch, LayerScale."""

    def __init__(self, dim, n_heads, ffn, layer_scale):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, n_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim) if ffn == "swiglu" else Mlp(dim)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x, shapes, subset=None):
        """Packed tokens x (T, D) -> (T, D); subset: the samples that stochastic depth keeps, from draw_subsets."""
        if subset is None:
            x = x + self.ls1(self.attn(self.norm1(x), shapes))
            return x + self.ls2(self.mlp(self.norm2(x)))
        (rows1, rows2), kept, scale = subset
        x = add_rows(x, rows1, scale * self.ls1(self.attn(self.norm1(x.index_select(0, rows1)), kept)))
        return add_rows(x, rows2, scale * self.ls2(self.mlp(self.norm2(x.index_select(0, rows2)))))


def add_rows(x, rows, y):
    """x (T, D) with y (T', D) added at the rows (T',)."""
    return x.scatter_add(0, rows[:, None].expand_as(y), y.to(x.dtype))  # index_add would keep y for backward


def split_batches(x, shapes):
    """Packed (T, ...) with shapes [(b, n), ...] -> a list of views (b, n, ...), one for each batch."""
    parts = x.split([b * n for b, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def draw_subsets(shapes, rate, depth, device):
    """Stochastic depth (§5): draw the samples for which each block computes its two branches.

    Returns for each block the rows of both branches, 2 × (T',); the shapes that stay, [(k, n), ...]; and the scale b/k,
    (T', 1).  k = max(int(b·(1 − rate)), 1).
    """
    rows, kept = [], []
    for place in split_batches(torch.arange(sum(b * n for b, n in shapes), device=device), shapes):  # (b, n)
        b, n = place.shape
        k = max(int(b * (1 - rate)), 1)
        samples = torch.rand(2 * depth, b, device=device).argsort(dim=1)[:, :k]  # (2·depth, k)
        rows.append(place[samples].flatten(1))  # (2·depth, k·n)
        kept.append((k, n))
    scale = torch.cat([torch.full((k * n, 1), b / k, device=device) for (b, n), (k, _) in zip(shapes, kept)])  # (T', 1)
    return [(tuple(pair), kept, scale) for pair in torch.cat(rows, dim=1).view(depth, 2, -1)]


# ---------------------------------------------------------------------------- the network


def sincos(n, dim):
    """Sines and cosines of column, then row, on an n×n grid: (n·n, dim) in [-1, 1].  Near places are similar."""
    angle = torch.arange(n)[:, None] * 10_000 ** (-torch.arange(dim // 4) / (dim // 4))  # (n, dim / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (n, dim / 2)
    return torch.cat([line.repeat(n, 1), line.repeat_interleave(n, 0)], dim=1)  # PyTorch 2.6: no einops on "meta"


class ViT(nn.Module):
    """The Vision Transformer, with official state-dict keys.  Its pos_embed is for img_size; any other size works too.

    ffn: "mlp" or "swiglu".  drop_path: rate of stochastic depth, the same in each block.  layer_scale: λ at the start.
    checkpointing: keep only each block's input for the backward pass, and compute the rest again.  stem: use stem.py.
    """

    def __init__(self, dim, depth, n_heads, patch_size=14, img_size=518, n_registers=0, ffn="mlp",
                 drop_path=0.0, layer_scale=1e-5, checkpointing=False, stem=False):  # fmt: skip
        super().__init__()
        self.embed_dim, self.patch_size, self.n_blocks, self.n_registers = dim, patch_size, depth, n_registers
        self.num_features, self.num_heads, self.num_register_tokens = dim, n_heads, n_registers  # official names
        self.img_size = img_size // patch_size * patch_size  # of the stored positions
        self.stem, self.drop_path, self.checkpointing, self.antialias = stem, drop_path, checkpointing, n_registers > 0
        self.patch_embed = nn.Sequential()
        if stem:
            self.patch_embed.stem = conv_stem(patch_size, dim)
        self.patch_embed.proj = nn.Conv2d(dim // 2, dim, 1) if stem else nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        places = 0.5 * sincos(img_size // patch_size, dim)  # ours; official: noise, which carries no position
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, dim), places])[None])  # (1, 1 + N, D)
        if n_registers:
            self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, n_registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(dim, n_heads, ffn, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for module in self.modules():  # patch_embed.proj keeps PyTorch's deviation, as official
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)  # ours; official: 0.02
                nn.init.zeros_(module.bias)

    def positions(self, height, width):
        """pos_embed resized to height×width patches, bicubic as in torch.hub's models: (1, 1 + height·width, D)."""
        n = math.isqrt(self.pos_embed.shape[1] - 1)
        if height == width == n:
            return self.pos_embed
        grid = rearrange(self.pos_embed[:, 1:].float(), "1 (h w) d -> 1 d h w", h=n)
        target = {"size": (height, width), "antialias": True}  # official networks with registers
        if not self.antialias:  # the others
            target = {"scale_factor": ((height + 0.1) / n, (width + 0.1) / n)}  # 0.1 as in the official code
        grid = rearrange(F.interpolate(grid, **target, mode="bicubic"), "1 d h w -> 1 (h w) d")
        return torch.cat([self.pos_embed[:, :1], grid.to(self.pos_embed.dtype)], dim=1)

    def embed(self, images, masks=None):
        """Pixels (B, 3, H, W) and masks (B, N) bool, or None -> tokens (B, 1 + R + N, D) before the first block."""
        assert images.dim() == 4, f"need images (B, 3, H, W), got {tuple(images.shape)}; for one image use images[None]"
        (b, _, height, width), P = images.shape, self.patch_size
        assert height % P == 0 and width % P == 0, f"{height}×{width} pixels do not divide into patches of {P}"
        x = rearrange(self.patch_embed(images), "b d h w -> b (h w) d")  # (B, N, D)
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], dim=1)  # (B, 1 + N, D)
        x = x + self.positions(height // P, width // P)
        if self.n_registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(b, -1, -1), x[:, 1:]], dim=1)
        return x  # (B, 1 + R + N, D)

    def pack(self, batches, masks):
        """Batches of images and their masks -> packed tokens (T, D), shapes [(b, n), ...]."""
        tokens = [self.embed(images, mask) for images, mask in zip(batches, masks, strict=True)]
        return torch.cat([x.flatten(0, 1) for x in tokens]), [tuple(x.shape[:2]) for x in tokens]

    def run_blocks(self, batches, masks):
        """Batches of images and their masks -> tokens after the last block, a list of (b, n, D)."""
        x, shapes = self.pack(batches, masks)
        depth, drop = len(self.blocks), self.training and self.drop_path
        subsets = draw_subsets(shapes, self.drop_path, depth, x.device) if drop else [None] * depth
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # a block draws no random numbers
        for block, subset in zip(self.blocks, subsets):
            run = partial(again, block) if self.checkpointing and self.training else block
            x = run(x, shapes, subset)
        return split_batches(x, shapes)

    def forward_features(self, x, masks=None):
        """Images (B, 3, H, W) and masks (B, N) bool, or None -> a dict of normalised tokens.

        x_norm_clstoken (B, D), x_norm_regtokens (B, R, D), x_norm_patchtokens (B, N, D), x_prenorm (B, 1 + R + N, D),
        masks.  For lists of batches and of masks (or None), it returns a list of dicts from one packed pass.
        """
        if not isinstance(x, list):
            return self.forward_features([x], [masks])[0]
        masks = masks or [None] * len(x)
        outputs, R = [], self.n_registers
        for prenorm, mask in zip(self.run_blocks(x, masks), masks):
            y = self.norm(prenorm)  # (B, 1 + R + N, D)
            outputs.append({"x_norm_clstoken": y[:, 0], "x_norm_regtokens": y[:, 1 : 1 + R],
                            "x_norm_patchtokens": y[:, 1 + R :], "x_prenorm": prenorm, "masks": mask})  # fmt: skip
        return outputs

    def training_features(self, x, masks, at):
        """What the losses use: [CLS] of all images (ΣB, D), and M patches of the first batch (M, D), normalised.

        x, masks: lists of batches and of masks (or None).  at (M,): the places of these patches in (B·N,).
        """
        batches = self.run_blocks(x, masks)  # [(b, n, D), ...]
        cls = torch.cat([batch[:, 0] for batch in batches])  # (ΣB, D)
        patches = batches[0][:, 1 + self.n_registers :].flatten(0, 1)[at]  # (M, D)
        return self.norm(cls), self.norm(patches)

    def forward(self, x, masks=None, *, is_training=False):
        """Images (B, 3, H, W) -> [CLS] features (B, D); with is_training, the dict of forward_features."""
        out = self.forward_features(x, masks)
        return out if is_training else out["x_norm_clstoken"]

    def get_intermediate_layers(self, x, n=1, reshape=False, return_class_token=False, norm=True):
        """Patch tokens of images (B, 3, H, W) after the last n blocks, or the blocks in the list n, in block order.

        A tuple of (B, N, D), or with reshape (B, D, H/P, W/P); with return_class_token, of pairs with [CLS] (B, D).
        """
        depth = len(self.blocks)
        wanted = range(depth - n, depth) if isinstance(n, int) else n
        assert all(0 <= i < depth for i in wanted), f"there are blocks 0 to {depth - 1}; got {n}"
        y, shapes = self.pack([x], [None])
        layers = []
        for i, block in enumerate(self.blocks):
            y = block(y, shapes)
            if i in wanted:
                [tokens] = split_batches(self.norm(y) if norm else y, shapes)  # (B, 1 + R + N, D)
                patches = tokens[:, 1 + self.n_registers :]
                if reshape:
                    patches = rearrange(patches, "b (h w) d -> b d h w", h=x.shape[2] // self.patch_size)
                layers.append((patches, tokens[:, 0]) if return_class_token else patches)
        return tuple(layers)


# width, depth and heads of Table 17; they take the options of ViT
vit_small = partial(ViT, 384, 12, 6)
vit_base = partial(ViT, 768, 12, 12)  # the table prints a depth of 18; the official code and weights have 12
vit_large = partial(ViT, 1024, 24, 16)
vit_giant2 = partial(ViT, 1536, 40, 24, ffn="swiglu")
vit_tiny = partial(ViT, 192, 12, 3)  # DeiT-Ti (Touvron et al. 2021)
vit_nano = partial(ViT, 192, 6, 3)  # ours: half of it, to train on a CPU
vit_mini = partial(ViT, 128, 4, 2)  # ours: for small images
vit_pico = partial(ViT, 96, 4, 2)  # ours: smaller
vit_femto = partial(ViT, 96, 2, 2)  # ours: to train on a CPU in minutes; few blocks learn most from few FLOPs
