"""The Vision Transformer of DINOv2 (§5, Table 17; Dosovitskiy et al. 2021; registers: Darcet et al. 2024).

    x₀ = [cls; reg₁…reg_R; E·patchᵢ] + position       registers have no position
    x ← x + λ₁ ⊙ Attention(LayerNorm(x))              λ: LayerScale (CaiT, Touvron et al. 2021)
    x ← x + λ₂ ⊙ MLP(LayerNorm(x))                    MLP: GELU, or SwiGLU for ViT-g

    x  (B, 1 + R + N, D)   tokens of B images with N = (H/P)·(W/P) patches of P×P pixels

Packing: batches of different resolution go through together.  Their tokens are laid end to end as one (T, D)
matrix for norms, linear layers and MLPs; only attention is called once for each resolution.  Stochastic depth
(§5) draws a random subset of the samples for each branch and computes no other.  In training, the last MLP is
computed only for the tokens that the losses see, and draws its subset among these.  The factors of LayerNorm and
LayerScale go into the weights beside them, W (γ ⊙ x̂ + β) + b = (W ⊙ γ) x̂ + (W β + b), and not into T tokens.

Keys are the official ones, so weights travel both ways.  The official code needs xFormers for packing, and in its
plain block the second branch uses the drop of the first.
"""

import math
from collections import deque

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NATIVE = 518  # pixels: the official models' position grid is 518/14 = 37 patches wide (B.2)
OFFSET = 0.1  # the official models without registers resize positions by the factor (n + 0.1)/37

PLAIN_ATTENTION = 512  # tokens, ours: up to here a CPU computes the plain equation

# ---------------------------------------------------------------------------- operations that keep little
# What a block keeps for the backward pass is most of the memory of a step.  Here that is what matrix products need, and
# what is cheap is computed again.


class Standardize(torch.autograd.Function):
    """x̂ = (x − mean)/σ of each row, σ² = variance + ε, in the type of the matrix product that it is for; x̂ is kept.

    The product needs x̂ too, and with g = ∂L/∂x̂ the gradient of x is (g − mean(g) − x̂·mean(g ⊙ x̂))/σ.
    """

    @staticmethod
    def forward(ctx, x, eps, dtype):
        """x̂ (T, D)."""
        one = x.new_ones(x.shape[1:])
        x_hat, _, inverse = torch.native_layer_norm(x, one.shape, one, one * 0, eps)
        x_hat = x_hat.to(dtype)
        ctx.save_for_backward(x_hat, inverse)  # (T, D), (T, 1)
        return x_hat

    @staticmethod
    def backward(ctx, g):
        """∂L/∂x (T, D), from the kernel for rows of mean 0 and σ = 1."""
        x_hat, inverse = (saved.to(torch.promote_types(g.dtype, torch.float32)) for saved in ctx.saved_tensors)
        one = inverse.new_ones(g.shape[1:])
        row = torch.ones_like(inverse)
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            g.to(x_hat.dtype), x_hat, one.shape, row * 0, row, one, one * 0, (True, False, False)
        )
        return dx.mul_(inverse), None, None


class ActivatedLinear(torch.autograd.Function):
    """W f(h) + b for a cheap f of each row; h (T, H) is kept, f(h) is not."""

    @staticmethod
    def forward(ctx, f, h, weight, bias):
        """(T, D)."""
        weight = weight.to(h.dtype)
        ctx.f = f
        ctx.save_for_backward(h, weight)
        return F.linear(f(h), weight, bias.to(h.dtype))

    @staticmethod
    def backward(ctx, g):
        """Gradients of h, W and b."""
        h, weight = ctx.saved_tensors
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            a = ctx.f(h)
        (dh,) = torch.autograd.grad(a, h, g @ weight)
        return None, dh, g.mT @ a, g.sum(dim=0)


# ---------------------------------------------------------------------------- parts of a block


class Attention(nn.Module):
    """Multi-head self-attention within each sample of each packed batch."""

    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv, shapes):
        """Queries, keys and values (T, 3·D), shapes [(b, n), ...] with Σ b·n = T -> all heads' outputs (T, D)."""
        out = []
        for part in unpack(qkv, shapes):  # (b, n, 3·D)
            q, k, v = rearrange(part, "b n (three h d) -> three b h n d", three=3, h=self.n_heads)
            out.append(rearrange(attend(q, k, v), "b h n d -> (b n) (h d)"))
        return torch.cat(out)


def attend(q, k, v):
    """softmax(q kᵀ/√d) v for each head: three (b, h, n, d) -> (b, h, n, d).

    A CPU's fused kernel spends most of its time in the backward pass: in bf16 the plain equation is 2 to 5 times
    faster, in float32 as fast, but it keeps its (n, n) softmax for that pass, which is too much for long sequences.
    """
    if q.is_cuda or q.shape[2] > PLAIN_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v


class Mlp(nn.Module):
    """D -> 4·D -> D with GELU."""

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x, norm, scale):
        """λ ⊙ MLP(LayerNorm(x)): (T, D) -> (T, D)."""
        return ActivatedLinear.apply(F.gelu, norm(self.fc1, x), *scale.folded(self.fc2))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) ⊙ w2 x), as wide as an MLP of 4·D has parameters (§5; Shazeer 2020)."""

    def __init__(self, dim):
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8  # rounded up to a multiple of 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x, norm, scale):
        """λ ⊙ SwiGLU(LayerNorm(x)): (T, D) -> (T, D)."""
        return ActivatedLinear.apply(gated, norm(self.w12, x), *scale.folded(self.w3))


def gated(h):
    """silu(h₁) ⊙ h₂: (T, 2·H) -> (T, H)."""
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


class Norm(nn.LayerNorm):
    """LayerNorm and the linear layer W, b that it leads into: (W ⊙ γ) x̂ + (W β + b)."""

    def forward(self, linear, x):
        """Linear(LayerNorm(x)): (T, D) -> (T, D')."""
        device = x.device.type
        amp = torch.is_autocast_enabled(device)
        x_hat = Standardize.apply(x, self.eps, torch.get_autocast_dtype(device) if amp else x.dtype)
        bias = (linear.weight * self.bias).sum(dim=1) + linear.bias
        return F.linear(x_hat, linear.weight * self.weight, bias)


class LayerScale(nn.Module):
    """λ ⊙ (W x + b) = (λ ⊙ W) x + λ ⊙ b; λ (D,) is small at first, so a deep network starts near the identity."""

    def __init__(self, dim, init):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def folded(self, linear):
        """λ ⊙ W and λ ⊙ b of the branch's last layer."""
        return self.gamma[:, None] * linear.weight, self.gamma * linear.bias


class Block(nn.Module):
    """Attention and MLP, each a residual branch under stochastic depth."""

    def __init__(self, dim, n_heads, ffn, layer_scale, drop_path):
        super().__init__()
        self.norm1 = Norm(dim, eps=1e-6)
        self.attn = Attention(dim, n_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = Norm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim) if ffn == "swiglu" else Mlp(dim)
        self.ls2 = LayerScale(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x, shapes, used=None):
        """x (T, D), shapes [(b, n), ...] -> (T, D), or only the rows `used` (U,) of that: (U, D)."""
        rate = self.drop_path if self.training else 0.0
        x = add_branch(x, shapes, self.attention_branch, rate)
        if used is not None:  # from here on no token sees another, and each is a sample of its own
            x, shapes = x.index_select(0, used), [(len(used), 1)]
        return add_branch(x, shapes, self.mlp_branch, rate)

    def attention_branch(self, x, shapes):
        """λ₁ ⊙ Attention(LayerNorm(x)): (T, D) -> (T, D)."""
        heads = self.attn(self.norm1(self.attn.qkv, x), shapes)  # (T, D)
        return F.linear(heads, *self.ls1.folded(self.attn.proj))

    def mlp_branch(self, x, shapes):
        """λ₂ ⊙ MLP(LayerNorm(x)): (T, D) -> (T, D)."""
        return self.mlp(x, self.norm2, self.ls2)


def unpack(x, shapes):
    """(T, ...), [(b, n), ...] -> one (b, n, ...) view for each packed batch."""
    parts = x.split([b * n for b, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def last(outputs):
    """The last of an iterator's tensors; the others are let go on the way, where a list would keep them all."""
    return deque(outputs, maxlen=1).pop()


def add_branch(x, shapes, branch, rate):
    """x + branch(x), or stochastic depth: the branch on a random share 1 − rate of the samples, scaled up."""
    if rate == 0:
        return x + branch(x, shapes)
    rows, kept, scale, offset = [], [], [], 0
    for b, n in shapes:
        k = max(int(b * (1 - rate)), 1)
        samples = torch.randperm(b, device=x.device)[:k, None]  # (k, 1)
        rows.append((offset + samples * n + torch.arange(n, device=x.device)).flatten())
        kept.append((k, n))
        scale.append(torch.full((k * n, 1), b / k, device=x.device))
        offset += b * n
    rows = torch.cat(rows)  # (T',)
    y = (branch(x.index_select(0, rows), kept) * torch.cat(scale)).to(x.dtype)  # (T', D)
    return x.scatter_add(0, rows[:, None].expand_as(y), y)  # index_add would keep y for the backward pass


# ---------------------------------------------------------------------------- the network


class PatchEmbed(nn.Module):
    """Each P×P patch of pixels to one token, by one linear map (a convolution of stride P)."""

    def __init__(self, patch_size, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images):
        """(B, 3, H, W) -> (B, N, D)."""
        return rearrange(self.proj(images), "b d h w -> b (h w) d")


def sincos(n, dim):
    """Places on an n×n grid, (n·n, dim) in [-1, 1]: sines and cosines of the column, then of the row.

    They are alike where places are near (Vaswani et al. 2017, §3.5, in two dimensions); dim is a multiple of 4.
    """
    rate = 10_000 ** (-torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(n)[:, None] * rate
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (n, dim / 2)
    return torch.cat([repeat(line, "w d -> (h w) d", h=n), repeat(line, "h d -> (h w) d", w=n)], dim=1)


class ViT(nn.Module):
    """The Vision Transformer; img_size is the resolution that `pos_embed` is stored for, any other works too.

    ffn: "mlp" or "swiglu".  drop_path: stochastic depth's rate, the same in each block.  layer_scale: λ at the
    start.  checkpointing: keep only the input of each block for the backward pass, and compute the rest again.
    """

    def __init__(self, dim, depth, n_heads, patch_size=14, img_size=NATIVE, n_registers=0, ffn="mlp",
                 drop_path=0.0, layer_scale=1e-5, checkpointing=False):  # fmt: skip
        super().__init__()
        self.embed_dim, self.patch_size, self.n_registers = dim, patch_size, n_registers
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (img_size // patch_size) ** 2, dim))
        if n_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, n_registers, dim))
            nn.init.normal_(self.register_tokens, std=1e-6)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(dim, n_heads, ffn, layer_scale, drop_path) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

        nn.init.normal_(self.cls_token, std=1e-6)
        with torch.no_grad():  # official: noise of deviation 0.02, which leaves masked patches without a place
            self.pos_embed[:, :1] = 0
            self.pos_embed[:, 1:] = 0.5 * sincos(img_size // patch_size, dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)  # official: 0.02 at any width
                nn.init.zeros_(module.bias)

    def positions(self, height, width):
        """pos_embed resized to a grid of height×width patches: (1, 1 + height·width, D).

        Bicubic as in the official models, which differ: those with registers resize to the size, with
        antialias, those without by a factor (n + 0.1)/37 without.  The native grid is used as it is.
        """
        n = math.isqrt(self.pos_embed.shape[1] - 1)
        if height == width == n:
            return self.pos_embed
        cls, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = rearrange(grid.float(), "1 (h w) d -> 1 d h w", h=n)
        if self.n_registers:
            grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        else:
            factor = ((height + OFFSET) / n, (width + OFFSET) / n)
            grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
        return torch.cat([cls, rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)

    def tokens(self, images, masks=None):
        """(B, 3, H, W) pixels and (B, N) bool masks, or none -> (B, 1 + R + N, D)."""
        b, _, height, width = images.shape
        P = self.patch_size
        assert height % P == 0 and width % P == 0, f"{height}×{width} pixels do not divide into patches of {P}"
        x = self.patch_embed(images)  # (B, N, D)
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], dim=1)  # (B, 1 + N, D)
        x = x + self.positions(height // P, width // P)
        if self.n_registers:
            registers = repeat(self.register_tokens, "1 r d -> b r d", b=b)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)  # (B, 1 + R + N, D)
        return x

    def run_blocks(self, x, shapes, used=None):
        """The packed tokens (T, D) before the first and after each block, of the last one only the rows `used`."""
        yield x
        for block in self.blocks:
            leave = used if block is self.blocks[-1] else None
            if self.checkpointing and self.training:
                x = checkpoint(block, x, shapes, leave, use_reentrant=False)
            else:
                x = block(x, shapes, leave)
            yield x

    def pack(self, batches, masks):
        """Batches of images and their masks -> packed tokens (T, D), shapes [(b, n), ...]."""
        tokens = [self.tokens(images, mask) for images, mask in zip(batches, masks, strict=True)]
        return torch.cat([x.flatten(0, 1) for x in tokens]), [tuple(x.shape[:2]) for x in tokens]

    def forward_features(self, x, masks=None):
        """Images (B, 3, H, W) and masks (B, N) bool, or none -> a dict of normalised tokens.

        x_norm_clstoken (B, D), x_norm_regtokens (B, R, D), x_norm_patchtokens (B, N, D),
        x_prenorm (B, 1 + R + N, D), masks.  A list of batches of different resolution and a list of masks
        (entries may be None) give a list of dicts, computed in one packed pass.
        """
        if not isinstance(x, list):
            return self.forward_features([x], [masks])[0]
        masks = masks or [None] * len(x)
        packed, shapes = self.pack(x, masks)
        packed = last(self.run_blocks(packed, shapes))
        normed = unpack(self.norm(packed), shapes)
        R = self.n_registers
        return [
            {
                "x_norm_clstoken": y[:, 0],
                "x_norm_regtokens": y[:, 1 : 1 + R],
                "x_norm_patchtokens": y[:, 1 + R :],
                "x_prenorm": prenorm,
                "masks": mask,
            }
            for y, prenorm, mask in zip(normed, unpack(packed, shapes), masks, strict=True)
        ]

    def training_features(self, x, masks, at):
        """What the losses see: [CLS] of all images (ΣB, D), and M patches of the first batch (M, D), normalised.

        x, masks: lists of batches and of masks (or None).  at (M,): which patches, as places in (B·N,).
        Of the last block, the MLP is computed for these tokens alone.
        """
        packed, shapes = self.pack(x, masks)
        places = unpack(torch.arange(len(packed), device=at.device), shapes)  # [(b, n), ...]
        patches = places[0][:, 1 + self.n_registers :].flatten()[at]  # (M,)
        used = torch.cat([*(place[:, 0] for place in places), patches])  # (ΣB + M,)
        packed = last(self.run_blocks(packed, shapes, used))
        return self.norm(packed).split([len(used) - len(at), len(at)])

    def forward(self, x):
        """Images (B, 3, H, W) -> [CLS] features (B, D)."""
        return self.forward_features(x)["x_norm_clstoken"]

    def get_intermediate_layers(self, x, n=1, reshape=False, return_class_token=False, norm=True):
        """Patch tokens of the last n blocks, or of the blocks numbered in the list n, in block order.

        x: (B, 3, H, W).  A tuple of (B, N, D), or (B, D, H/P, W/P) with reshape; with return_class_token of
        pairs (patch tokens, [CLS] (B, D)).
        """
        tokens = self.tokens(x)
        shape = tuple(tokens.shape[:2])
        depth = len(self.blocks)
        wanted = range(depth - n, depth) if isinstance(n, int) else n
        assert all(0 <= i < depth for i in wanted), f"there are blocks 0 to {depth - 1}; got {n}"
        layers = []
        for i, y in enumerate(self.run_blocks(tokens.flatten(0, 1), [shape]), start=-1):
            if i in wanted:
                y = (self.norm(y) if norm else y).unflatten(0, shape)
                patches = y[:, 1 + self.n_registers :]
                if reshape:
                    patches = rearrange(patches, "b (h w) d -> b d h w", h=x.shape[2] // self.patch_size)
                layers.append((patches, y[:, 0]) if return_class_token else patches)
        return tuple(layers)


def vit_nano(**options):
    """192 wide, 6 deep, 3 heads (ours: half of ViT-Ti, to train on a CPU); options as in ViT."""
    return ViT(192, 6, 3, **options)


def vit_tiny(**options):
    """192 wide, 12 deep, 3 heads (DeiT-Ti); options as in ViT."""
    return ViT(192, 12, 3, **options)


def vit_small(**options):
    """384 wide, 12 deep, 6 heads (Table 17); options as in ViT."""
    return ViT(384, 12, 6, **options)


def vit_base(**options):
    """768 wide, 12 deep, 12 heads (Table 17); options as in ViT."""
    return ViT(768, 12, 12, **options)


def vit_large(**options):
    """1024 wide, 24 deep, 16 heads (Table 17); options as in ViT."""
    return ViT(1024, 24, 16, **options)


def vit_giant2(**options):
    """1536 wide, 40 deep, 24 heads, SwiGLU (Table 17); options as in ViT."""
    return ViT(1536, 40, 24, **{"ffn": "swiglu", **options})
