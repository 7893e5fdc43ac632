"""The Vision Transformer of DINOv2 (§5, Table 17; Dosovitskiy et al. 2021; registers: Darcet et al. 2024).

    x₀ = [cls; reg₁…reg_R; E·patchᵢ] + position       registers have no position
    x ← x + λ₁ ⊙ Attention(LayerNorm(x))              λ: LayerScale (CaiT, Touvron et al. 2021)
    x ← x + λ₂ ⊙ MLP(LayerNorm(x))                    MLP: GELU, or SwiGLU where trained from scratch

    x  (B, 1 + R + N, D)   tokens of B images with N = (H/P)·(W/P) patches of P×P pixels

Packing (§5): batches of different resolution go through together, their tokens end to end in one (T, D) matrix, with
`shapes` [(b, n), ...], Σ b·n = T; only attention is called once for each resolution.  Stochastic depth (§5) computes a
branch for a random subset of the samples and no other.

Keys are the official ones, so weights travel both ways.  The official code needs xFormers for packing.
"""

import math
from collections import OrderedDict
from functools import partial
from itertools import pairwise

import einops.layers.torch  # noqa: F401  on PyTorch before 2.8 loads its compiler, which fails on device "meta"
import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NATIVE = 518  # pixels: the official models' position grid is 518/14 = 37 patches wide (§4)
OFFSET = 0.1  # without antialias, positions are resized by the factor (height + 0.1)/37
PLAIN_ATTENTION = 512  # tokens, ours: up to here a CPU computes the plain equation

# ---------------------------------------------------------------------------- a block


class Attention(nn.Module):
    """Multi-head self-attention within each sample of each packed batch: (T, D) -> (T, D)."""

    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, shapes):
        out = []
        for qkv in unpack(self.qkv(x), shapes):  # (b, n, 3·D)
            q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.n_heads)
            out.append(rearrange(attend(q, k, v), "b h n d -> (b n) (h d)"))
        return self.proj(torch.cat(out))  # (T, D)


def attend(q, k, v):
    """softmax(q kᵀ/√d) v for each head: three (b, h, n, d) -> (b, h, n, d)."""
    # on a CPU the fused kernel's backward pass is slow, and the plain equation faster; but it keeps an (n, n) softmax
    if q.device.type != "cpu" or q.shape[2] > PLAIN_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)), D -> 4·D -> D: (T, D) -> (T, D)."""

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) ⊙ w2 x) (Shazeer 2020), as wide as in the official code: (T, D) -> (T, D)."""

    def __init__(self, dim):
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8  # the parameters of an MLP of 4·D, up to a multiple of 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """λ ⊙ x: (T, D) -> (T, D); λ (D,) is small at first, so that a deep network starts near the identity."""

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

    def forward(self, x, shapes, subsets=(None, None)):
        """Packed tokens x (T, D) -> (T, D); subsets: of the samples, one for each branch."""
        x = add_branch(x, lambda x, shapes: self.ls1(self.attn(self.norm1(x), shapes)), shapes, subsets[0])
        return add_branch(x, lambda x, shapes: self.ls2(self.mlp(self.norm2(x))), shapes, subsets[1])


def unpack(x, shapes):
    """(T, ...), [(b, n), ...] -> one (b, n, ...) view for each packed batch."""
    parts = x.split([b * n for b, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def draw_subsets(shapes, rate, count, device):
    """A random subset of the samples for each of `count` branches; None each at rate 0.

    It keeps k = max(int(b·(1 − rate)), 1) of b samples: (rows (T',), their shapes [(k, n), ...], scale b/k (T', 1)).
    """
    if rate == 0:
        return [None] * count
    rows, kept = [], []
    for place in unpack(torch.arange(sum(b * n for b, n in shapes), device=device), shapes):  # (b, n)
        b, n = place.shape
        k = max(int(b * (1 - rate)), 1)
        samples = torch.rand(count, b, device=device).argsort(dim=1)[:, :k]  # (count, k)
        rows.append(place[samples].flatten(1))  # (count, k·n)
        kept.append((k, n))
    scale = torch.cat([torch.full((k * n, 1), b / k, device=device) for (b, n), (k, _) in zip(shapes, kept)])  # (T', 1)
    return [(r, kept, scale) for r in torch.cat(rows, dim=1)]


def add_branch(x, branch, shapes, subset):
    """x + branch(x), (T, D); the branch is computed for a subset of the samples alone, where there is one."""
    if subset is None:
        return x + branch(x, shapes)
    rows, kept, scale = subset
    y = (branch(x.index_select(0, rows), kept) * scale).to(x.dtype)  # (T', D)
    return x.scatter_add(0, rows[:, None].expand_as(y), y)  # index_add would keep y for the backward pass


# ---------------------------------------------------------------------------- the network


class PatchEmbed(nn.Module):
    """Each P×P patch of pixels to one token, by one linear map, or after a stem: (B, 3, H, W) -> (B, N, D)."""

    def __init__(self, patch_size, dim, stem):
        super().__init__()
        self.stem = conv_stem(patch_size, dim) if stem else nn.Identity()
        self.proj = nn.Conv2d(dim // 2, dim, 1) if stem else nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images):
        return rearrange(self.proj(self.stem(images)), "b d h w -> b (h w) d")


def conv_stem(patch_size, dim):
    """Convolutions of 3×3, the first of stride 1, the others of 2: (B, 3, H, W) -> (B, D/2, H/P, W/P), P a power of 2.

    Small networks learn more from a FLOP so than with one map of whole patches (cf. Xiao et al. 2021); not the paper's.
    """
    n = patch_size.bit_length() - 1
    assert patch_size == 2**n > 1 and dim % 2 ** (n + 1) == 0, f"no stem for patches of {patch_size} and width {dim}"
    widths = [3, *(dim >> i for i in range(n + 1, 0, -1))]
    layers = []
    for i, (c, d) in enumerate(pairwise(widths)):
        conv = nn.Conv2d(c, d, 3, stride=2 if i else 1, padding=1, bias=False)
        nn.init.trunc_normal_(conv.weight, std=(9 * c) ** -0.5)
        layers.append(nn.Sequential(OrderedDict(conv=conv, norm=nn.GroupNorm(1, d), act=nn.GELU())))
    return nn.Sequential(*layers)


def sincos(n, dim):
    """Sines and cosines of column, then row, on an n×n grid: (n·n, dim) in [-1, 1], alike where places are near."""
    angle = torch.arange(n)[:, None] * 10_000 ** (-torch.arange(dim // 4) / (dim // 4))  # (n, dim / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (n, dim / 2)
    return torch.cat([repeat(line, "w d -> (h w) d", h=n), repeat(line, "h d -> (h w) d", w=n)], dim=1)


class ViT(nn.Module):
    """The Vision Transformer; img_size is the resolution that `pos_embed` is stored for, any other works too.

    ffn: "mlp" or "swiglu".  drop_path: stochastic depth's rate, the same in each block.  layer_scale: λ at the
    start.  checkpointing: keep only the input of each block for the backward pass, and compute the rest again.
    stem: convolutions before the patches become tokens.
    The attribute `antialias` says how `positions` resizes; set it to False for registers of the official training.
    """

    def __init__(self, dim, depth, n_heads, patch_size=14, img_size=NATIVE, n_registers=0, ffn="mlp",
                 drop_path=0.0, layer_scale=1e-5, checkpointing=False, stem=False):  # fmt: skip
        super().__init__()
        self.embed_dim, self.patch_size, self.n_registers, self.stem = dim, patch_size, n_registers, stem
        # what the official models call these
        self.num_features, self.n_blocks, self.num_heads, self.num_register_tokens = dim, depth, n_heads, n_registers
        self.drop_path, self.checkpointing, self.antialias = drop_path, checkpointing, n_registers > 0
        self.patch_embed = PatchEmbed(patch_size, dim, stem)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        places = 0.5 * sincos(img_size // patch_size, dim)  # official: noise, which says not where one is
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, dim), places])[None])  # (1, 1 + N, D)
        if n_registers:
            self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, n_registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(dim, n_heads, ffn, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)  # official: 0.02 at any width
                nn.init.zeros_(module.bias)

    def positions(self, height, width):
        """pos_embed resized to a grid of height×width patches: (1, 1 + height·width, D).

        Bicubic as in torch.hub's models: those with registers to the size, with antialias, those without by factors
        (height + 0.1)/n and (width + 0.1)/n, without; there n = 37.  Official training does the latter with registers,
        too, unless it is told otherwise; so do we if `antialias` is False.  The native grid is used as it is.
        """
        n = math.isqrt(self.pos_embed.shape[1] - 1)
        if height == width == n:
            return self.pos_embed
        grid = rearrange(self.pos_embed[:, 1:].float(), "1 (h w) d -> 1 d h w", h=n)
        factor = {"scale_factor": ((height + OFFSET) / n, (width + OFFSET) / n)}
        to = {"size": (height, width), "antialias": True} if self.antialias else factor
        grid = rearrange(F.interpolate(grid, **to, mode="bicubic"), "1 d h w -> 1 (h w) d")
        return torch.cat([self.pos_embed[:, :1], grid.to(self.pos_embed.dtype)], dim=1)

    def tokens(self, images, masks=None):
        """(B, 3, H, W) pixels and (B, N) bool masks, or none -> (B, 1 + R + N, D)."""
        (b, _, height, width), P = images.shape, self.patch_size
        assert height % P == 0 and width % P == 0, f"{height}×{width} pixels do not divide into patches of {P}"
        x = self.patch_embed(images)  # (B, N, D)
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], dim=1)  # (B, 1 + N, D)
        x = x + self.positions(height // P, width // P)
        if self.n_registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(b, -1, -1), x[:, 1:]], dim=1)  # (B, 1 + R + N, D)
        return x

    def run_blocks(self, x, shapes):
        """Tokens before the first block (T, D) -> after the last one (T, D)."""
        rate = self.drop_path if self.training else 0.0
        subsets = draw_subsets(shapes, rate, 2 * len(self.blocks), x.device)
        for i, block in enumerate(self.blocks):
            if self.checkpointing and self.training:
                block = partial(checkpoint, block, use_reentrant=False)
            x = block(x, shapes, subsets[2 * i : 2 * i + 2])
        return x

    def pack(self, batches, masks):
        """Batches of images and their masks -> packed tokens (T, D), shapes [(b, n), ...]."""
        tokens = [self.tokens(images, mask) for images, mask in zip(batches, masks, strict=True)]
        return torch.cat([x.flatten(0, 1) for x in tokens]), [tuple(x.shape[:2]) for x in tokens]

    def forward_features(self, x, masks=None):
        """Images (B, 3, H, W) and masks (B, N) bool, or none -> a dict of normalised tokens.

        x_norm_clstoken (B, D), x_norm_regtokens (B, R, D), x_norm_patchtokens (B, N, D), x_prenorm (B, 1 + R + N, D),
        masks.  Lists of batches of different resolution and of masks (or None) give a list, from one packed pass.
        """
        if not isinstance(x, list):
            return self.forward_features([x], [masks])[0]
        masks = masks or [None] * len(x)
        packed, shapes = self.pack(x, masks)
        packed, R = self.run_blocks(packed, shapes), self.n_registers
        return [
            {"x_norm_clstoken": y[:, 0], "x_norm_regtokens": y[:, 1 : 1 + R], "x_norm_patchtokens": y[:, 1 + R :],
             "x_prenorm": prenorm, "masks": mask}
            for y, prenorm, mask in zip(unpack(self.norm(packed), shapes), unpack(packed, shapes), masks, strict=True)
        ]  # fmt: skip

    def training_features(self, x, masks, at):
        """What the losses see: [CLS] of all images (ΣB, D), and M patches of the first batch (M, D), normalised.

        x, masks: lists of batches and of masks (or None).  at (M,): which patches, as places in (B·N,).
        """
        packed, shapes = self.pack(x, masks)
        parts = unpack(self.run_blocks(packed, shapes), shapes)  # [(b, n, D), ...]
        cls = torch.cat([part[:, 0] for part in parts])  # (ΣB, D)
        patches = parts[0][:, 1 + self.n_registers :].flatten(0, 1)[at]  # (M, D)
        return self.norm(cls), self.norm(patches)

    def forward(self, x, masks=None, *, is_training=False):
        """Images (B, 3, H, W) -> [CLS] features (B, D), or with is_training all that forward_features gives."""
        out = self.forward_features(x, masks)
        return out if is_training else out["x_norm_clstoken"]

    def get_intermediate_layers(self, x, n=1, reshape=False, return_class_token=False, norm=True):
        """Patch tokens of the last n blocks, or of the blocks numbered in the list n, in block order.

        x: (B, 3, H, W).  A tuple of (B, N, D), with reshape (B, D, H/P, W/P), or of pairs with [CLS] (B, D).
        """
        depth = len(self.blocks)
        wanted = range(depth - n, depth) if isinstance(n, int) else n
        assert all(0 <= i < depth for i in wanted), f"there are blocks 0 to {depth - 1}; got {n}"
        y, [shape] = self.pack([x], [None])
        layers = []
        for i, block in enumerate(self.blocks):
            y = block(y, [shape])
            if i in wanted:
                [tokens] = unpack(self.norm(y) if norm else y, [shape])
                patches = tokens[:, 1 + self.n_registers :]
                if reshape:
                    patches = rearrange(patches, "b (h w) d -> b d h w", h=x.shape[2] // self.patch_size)
                layers.append((patches, tokens[:, 0]) if return_class_token else patches)
        return tuple(layers)


# width, depth and heads of Table 17; options as in ViT
vit_small = partial(ViT, 384, 12, 6)
vit_base = partial(ViT, 768, 12, 12)  # the table prints a depth of 18; 12 is the official code's and its weights'
vit_large = partial(ViT, 1024, 24, 16)
vit_giant2 = partial(ViT, 1536, 40, 24, ffn="swiglu")
vit_tiny = partial(ViT, 192, 12, 3)  # DeiT-Ti (Touvron et al. 2021)
vit_nano = partial(ViT, 192, 6, 3)  # ours: half of it, to train on a CPU
vit_mini = partial(ViT, 128, 4, 2)  # ours: small pictures
vit_pico = partial(ViT, 96, 4, 2)  # ours: to train on a CPU in minutes
