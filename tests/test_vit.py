"""The Vision Transformer against a slow one, packing, positions, stochastic depth, official keys.

    pytest tests/test_vit.py
"""

import copy
import math

import pytest
import torch
import torch._dynamo.testing
from torch.nn import functional as F

import vit
from stem import conv_stem
from vit import Block, SwiGLU, ViT, attend, draw_subsets, vit_base, vit_giant2, vit_large, vit_small, vit_tiny

P = 4  # patch size of the toys


def toy(seed=0, **options):
    """64 wide, 3 deep, 2 heads, patches of 4, positions for 4×4 of them; all parameters large enough to matter."""
    torch.manual_seed(seed)
    network = ViT(64, 3, 2, **{"patch_size": P, "img_size": 16, **options})
    for name, p in network.named_parameters():
        torch.nn.init.normal_(p, mean=1.0 if name.endswith(("gamma", "norm1.weight")) else 0.0, std=0.2)
    return network.eval()


def pictures(b, height, width, seed=0):
    """(b, 3, height, width) normal pixels."""
    return torch.randn(b, 3, height, width, generator=torch.Generator().manual_seed(seed))


def some_masks(b, n, seed=0):
    """(b, n) bool, a third of them true."""
    return torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) < 1 / 3


# ---------------------------------------------------------------------------- the equation


def slow_forward(network, image, mask, positions):
    """One image (3, H, W) in float64, patch by patch and head by head -> tokens (1 + R + N, D) before the last norm.

    positions: (1 + N, D), already resized.
    """
    w = {name: p.double() for name, p in network.state_dict().items()}
    rows, columns = image.shape[1] // P, image.shape[2] // P
    tokens = [w["cls_token"][0, 0] + positions[0]]
    tokens += list(w["register_tokens"][0]) if network.n_registers else []
    for i in range(rows * columns):
        y, x = i // columns * P, i % columns * P
        pixels = image.double()[:, y : y + P, x : x + P]
        patch = (w["patch_embed.proj.weight"] * pixels).sum(dim=(1, 2, 3)) + w["patch_embed.proj.bias"]
        tokens.append((w["mask_token"][0] if mask is not None and mask[i] else patch) + positions[1 + i])
    x = torch.stack(tokens)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    for b in range(len(network.blocks)):
        block = f"blocks.{b}"

        def linear(x, name, block=block):
            return x @ w[f"{block}.{name}.weight"].T + w[f"{block}.{name}.bias"]

        q, k, v = linear(norm(x, f"{block}.norm1"), "attn.qkv").chunk(3, dim=1)
        heads = []
        for h in range(2):
            of = slice(32 * h, 32 * (h + 1))
            heads.append((q[:, of] @ k[:, of].T / math.sqrt(32)).softmax(dim=1) @ v[:, of])
        x = x + w[f"{block}.ls1.gamma"] * linear(torch.cat(heads, dim=1), "attn.proj")
        y = norm(x, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in w:
            gate, value = linear(y, "mlp.w12").chunk(2, dim=1)
            y = linear(gate * gate.sigmoid() * value, "mlp.w3")
        else:
            y = linear(y, "mlp.fc1")
            y = linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), "mlp.fc2")
        x = x + w[f"{block}.ls2.gamma"] * y
    return x


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize(("size", "masked"), [((16, 16), True), ((8, 24), False)])
def test_is_the_slow_one(ffn, n_registers, size, masked):
    """Masks replace the patch before positions are added, and registers have no position."""
    network, images = toy(ffn=ffn, n_registers=n_registers), pictures(2, *size)
    masks = some_masks(2, 16) if masked else None
    kept = images.clone()
    out = network.forward_features(images, masks)
    assert torch.equal(images, kept)
    positions = network.pos_embed
    if size != (16, 16):
        positions = official_positions(positions, size[0] // P, size[1] // P, n_registers)
    for i in range(2):
        slow = slow_forward(network, images[i], masks[i] if masked else None, positions[0].double())
        torch.testing.assert_close(out["x_prenorm"][i].double(), slow, rtol=1e-4, atol=1e-3)
    normed = F.layer_norm(out["x_prenorm"], (64,), network.norm.weight, network.norm.bias, eps=1e-6)
    torch.testing.assert_close(out["x_norm_clstoken"], normed[:, 0])
    torch.testing.assert_close(out["x_norm_regtokens"], normed[:, 1 : 1 + n_registers])
    torch.testing.assert_close(out["x_norm_patchtokens"], normed[:, 1 + n_registers :])
    assert out["masks"] is masks


def test_attention_by_hand():
    """One query of 1 at d = 1; keys log 1, log 3 give weights 1/4, 3/4; values 8 and 4: 8/4 + 3·4/4 = 5."""
    q = torch.tensor([1.0, 1.0]).view(1, 1, 2, 1)
    k = torch.tensor([1.0, 3.0]).log().view(1, 1, 2, 1)
    v = torch.tensor([8.0, 4.0]).view(1, 1, 2, 1)
    torch.testing.assert_close(attend(q, k, v), torch.full((1, 1, 2, 1), 5.0))


@pytest.mark.parametrize("n", [1, 7, 512, 513])
def test_attention_is_the_fused_one_short_and_long(n):
    q, k, v = torch.randn(3, 2, 3, n, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_a_fresh_network_is_near_the_identity():
    """λ = 10⁻⁵: the blocks change their input by about 12·2·10⁻⁵ of its size.  Linear weights have std 1/√inputs."""
    torch.manual_seed(0)
    network, images = vit_tiny(img_size=28).eval(), pictures(1, 28, 28)
    before, after = network.embed(images), network.forward_features(images)["x_prenorm"]
    assert 0 < (after - before).abs().max() < 1e-3
    assert after.std() > 0.1
    assert network.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(768**-0.5, rel=0.02)


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(AssertionError, match="18×16 pixels do not divide into patches of 4"):
        toy()(pictures(1, 18, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_registers", [0, 4])
def test_it_runs_in_half_precision(dtype, n_registers):
    """`.bfloat16()` and `.half()` at a size that is not native, in training mode with stochastic depth too."""
    network, images = toy(n_registers=n_registers, drop_path=0.5), pictures(4, 8, 24)
    expected = network(images)
    network.to(dtype)
    out = network(images.to(dtype))
    assert out.dtype == dtype
    assert F.cosine_similarity(out.float(), expected).min() > 0.99
    out = network.train().forward_features(images.to(dtype), some_masks(4, 12))["x_norm_patchtokens"]
    out.float().square().mean().backward()
    assert out.dtype == dtype and network.blocks[0].mlp.fc1.weight.grad.isfinite().all()


# ---------------------------------------------------------------------------- other people's tools


@pytest.mark.filterwarnings("ignore")  # PyTorch advises against tracing, but people use it
def test_it_exports_and_its_trace_can_be_saved(tmp_path):
    network, images = toy(n_registers=4), pictures(2, 8, 24)
    expected = network(images)
    torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), expected)
    torch.jit.trace(network, images).save(tmp_path / "trace.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "trace.pt")(images), expected)


@pytest.mark.parametrize(("drop_path", "checkpointing"), [(0.5, False), (0.0, True)])
def test_blocks_compile_whole_and_once(drop_path, checkpointing):
    """fullgraph=True raises at a graph break.  All blocks share one graph, and no later step compiles another."""
    plain = toy(drop_path=drop_path, checkpointing=checkpointing, n_registers=1).train()
    compiled = copy.deepcopy(plain)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    for block in compiled.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=counter)
    for step in range(2):
        batches = [pictures(4, 16, 16, seed=step), pictures(6, 8, 8, seed=step)]
        masks = some_masks(4, 16, seed=step)
        found = []
        for network in (compiled, plain):
            torch.manual_seed(step)
            cls, patches = network.training_features(batches, [masks, None], masks.flatten().nonzero()[:, 0])
            loss = (cls - 1).abs().mean() + (patches + 1).abs().mean()
            found.append((cls, patches, torch.autograd.grad(loss, list(network.parameters()))))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
        assert counter.frame_count == 1


# ---------------------------------------------------------------------------- packing


@pytest.mark.parametrize("n_registers", [0, 4])
def test_a_packed_pass_is_the_separate_passes(n_registers):
    network = toy(n_registers=n_registers)
    batches = [pictures(2, 16, 16), pictures(5, 8, 8, seed=1), pictures(1, 8, 20, seed=2)]
    masks = [some_masks(2, 16), None, some_masks(1, 10)]
    for given in (masks, None):
        packed = network.forward_features(batches, given)
        for x, mask, out in zip(batches, given or [None] * 3, packed, strict=True):
            alone = network.forward_features(x, mask)
            for key in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
                torch.testing.assert_close(out[key], alone[key], rtol=1e-4, atol=1e-4)
            assert out["masks"] is mask


@pytest.mark.parametrize("n_registers", [0, 4])
def test_training_features_are_those_of_forward_features(n_registers):
    """[CLS] of both batches and the masked patches of the first one; and of no patch."""
    network = toy(n_registers=n_registers).train()
    batches, masks = [pictures(3, 16, 16), pictures(4, 8, 8, seed=1)], [some_masks(3, 16), None]
    at = masks[0].flatten().nonzero()[:, 0]
    first, second = network.forward_features(batches, masks)
    expected = torch.cat([first["x_norm_clstoken"], second["x_norm_clstoken"]]), first["x_norm_patchtokens"][masks[0]]
    torch.testing.assert_close(network.training_features(batches, masks, at), expected, rtol=1e-4, atol=1e-5)
    assert network.training_features(batches, masks, at[:0])[1].shape == (0, 64)


# ---------------------------------------------------------------------------- positions


def official_positions(pos_embed, height, width, antialias):
    """The reference implementation's arithmetic: a scale factor of (n + 0.1)/M without antialias for torch.hub's
    models without registers and for all training, a size with antialias for torch.hub's with registers."""
    M = int(math.sqrt(pos_embed.shape[1] - 1))
    dim = pos_embed.shape[-1]
    grid = pos_embed[:, 1:].reshape(1, M, M, dim).permute(0, 3, 1, 2)
    if antialias:
        grid = F.interpolate(grid, mode="bicubic", antialias=True, size=(height, width))
    else:
        sx, sy = float(height + 0.1) / M, float(width + 0.1) / M
        grid = F.interpolate(grid, mode="bicubic", antialias=False, scale_factor=(sx, sy))
    assert grid.shape[-2:] == (height, width)
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).view(1, -1, dim)], dim=1)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 16), (40, 30), (1, 1), (36, 37), (74, 74)])
def test_resized_positions_are_the_official_ones(antialias, height, width):
    """The default follows torch.hub: antialias with registers only.  The attribute chooses the other way."""
    for n_registers in (0, 4):
        network = toy(img_size=37 * P, n_registers=n_registers)
        assert network.antialias == (n_registers > 0)
        network.antialias = antialias
        expected = official_positions(network.pos_embed, height, width, antialias)
        torch.testing.assert_close(network.positions(height, width), expected)


def test_the_native_grid_is_used_as_it_is():
    """2×8 patches are as many as 4×4, and still have to be resized."""
    network = toy()
    assert network.positions(4, 4) is network.pos_embed
    torch.testing.assert_close(network.positions(2, 8), official_positions(network.pos_embed, 2, 8, False))


@pytest.mark.parametrize("n_registers", [0, 4])
def test_every_grid_gets_its_size(n_registers):
    """(n + 0.1)/37 · 37 must come to n again after rounding down."""
    network = toy(img_size=37 * P, n_registers=n_registers)
    for n in range(1, 80):
        assert network.positions(n, 80 - n).shape == (1, 1 + n * (80 - n), 64)


def test_places_by_hand():
    """Width 4 has one rate, 1: (sin c, cos c, sin r, cos r) at column c of row r; sin 1 = 0.8415, cos 1 = 0.5403.

    A network starts with half of these values; [CLS] has no place.
    """
    expected = [[0, 1, 0, 1], [0.8415, 0.5403, 0, 1], [0, 1, 0.8415, 0.5403], [0.8415, 0.5403, 0.8415, 0.5403]]
    torch.testing.assert_close(vit.sincos(2, 4), torch.tensor(expected), atol=1e-4, rtol=0)
    positions = vit_tiny(patch_size=8, img_size=64).pos_embed[0]
    torch.testing.assert_close(positions, torch.cat([torch.zeros(1, 192), vit.sincos(8, 192) / 2]))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 3)])
def test_positions_learn_at_every_size(height, width):
    network = toy()
    network(pictures(1, height * P, width * P)).sum().backward()
    assert network.pos_embed.grad.abs().sum() > 0 and network.pos_embed.grad.isfinite().all()


# ---------------------------------------------------------------------------- stochastic depth and checkpointing


class Branch(torch.nn.Module):
    """10·x in place of attention; remembers what it was given."""

    def forward(self, x, shapes):
        self.given = tuple(x.shape), shapes
        return 10 * x


def test_stochastic_depth_by_hand():
    """4 samples of 2 tokens at rate ½: the branch 10·x runs for two of them and counts 4/2 times, so these become
    x + 2·10·x = 21·x; the other two stay x.  The MLP is switched off."""
    block = Block(4, 1, "mlp", layer_scale=1.0)
    block.norm1, block.attn = torch.nn.Identity(), Branch()
    block.ls2.gamma.data.zero_()
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    [subsets] = draw_subsets([(4, 2)], 0.5, 1, x.device)
    factors = (block(x, [(4, 2)], subsets) / x).view(4, 8)
    assert block.attn.given == ((4, 4), [(2, 2)])
    torch.testing.assert_close(factors, factors[:, :1].expand(4, 8))
    torch.testing.assert_close(factors[:, 0].sort().values, torch.tensor([1.0, 1.0, 21.0, 21.0]))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.4, 0.99])
def test_each_crop_size_draws_its_own_subset(rate):
    """k = max(int(b·(1 − rate)), 1) whole samples of each batch, and the scale b/k for each of their rows."""
    shapes = [(10, 5), (16, 2), (1, 3)]
    torch.manual_seed(0)
    [(subset, _)] = draw_subsets(shapes, rate, 1, "cpu")
    rows, kept, scale = subset
    assert kept == [(max(int(b * (1 - rate)), 1), n) for b, n in shapes]
    first = 0
    for (b, n), (k, _), part, scales in zip(shapes, kept, vit.split_batches(rows, kept),
                                            vit.split_batches(scale, kept), strict=True):  # fmt: skip
        samples = (part[:, 0] - first) // n  # (k,)
        assert len(samples.unique()) == k and samples.min() >= 0 and samples.max() < b
        assert torch.equal(part, first + samples[:, None] * n + torch.arange(n))
        assert (scales == torch.tensor(b / k)).all()
        first += b * n


def test_stochastic_depth_keeps_the_expectation():
    """E[y] = x + branch(x), here 2·x.  Rate 0.4 of 5 samples: k = 3, so the branch counts 5/3 with chance 3/5, with
    variance 2/3.  4000 draws leave √(2/3/4000) = 0.013; 0.065 is 5 σ, a chance of 6·10⁻⁷ for each of 5 samples.
    """
    torch.manual_seed(0)
    x, total = torch.arange(1.0, 6.0)[:, None], torch.zeros(5, 1)
    for (rows, _, scale), _ in draw_subsets([(5, 1)], 0.4, 4000, x.device):
        total += vit.add_rows(x, rows, scale * x[rows])
    assert (total / 4000 / x - 2).abs().max() < 0.065


def test_each_branch_has_a_subset_of_its_own():
    """3 blocks have 6 branches; none is drawn in evaluation, nor at rate 0.

    That two of six draws take the same 10 of 20 samples has a chance of 15/184,756.
    """
    network, images, seen = toy(drop_path=0.5), pictures(20, 8, 8), []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    torch.manual_seed(0)
    dropped = network.train()(images)
    kept = {tuple(sorted(rows[::5].tolist())) for pair in seen for rows, _, _ in pair}
    assert len(kept) == 6
    seen.clear()
    assert (network.eval()(images) - dropped).abs().max() > 0.01
    network.drop_path = 0.0
    network.train()(images)
    assert seen == [None] * 6


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_neither_loss_nor_gradients(drop_path):
    batches, masks = [pictures(4, 16, 16), pictures(6, 8, 8)], [some_masks(4, 16), None]
    results, runs = [], []
    for checkpointing in (False, True):
        network = toy(drop_path=drop_path, checkpointing=checkpointing).train()
        runs.clear()
        network.blocks[0].attn.register_forward_pre_hook(lambda part, _: runs.append(part))
        torch.manual_seed(1)
        loss = sum(out["x_norm_patchtokens"].square().mean() for out in network.forward_features(batches, masks))
        results.append((loss, torch.autograd.grad(loss, list(network.parameters()))))
        assert len(runs) == 1 + checkpointing  # once more in the backward pass
    torch.testing.assert_close(results[1], results[0])


# ---------------------------------------------------------------------------- as people call torch.hub's models


@pytest.mark.parametrize("n_registers", [0, 4])
def test_the_last_layer_is_forward_features(n_registers):
    network, images = toy(n_registers=n_registers), pictures(2, 8, 24)
    out = network.forward_features(images)
    [(patches, cls)] = network.get_intermediate_layers(images, return_class_token=True)
    torch.testing.assert_close(patches, out["x_norm_patchtokens"])
    torch.testing.assert_close(cls, out["x_norm_clstoken"])
    [patches] = network.get_intermediate_layers(images, norm=False)
    torch.testing.assert_close(patches, out["x_prenorm"][:, 1 + n_registers :])
    [grid] = network.get_intermediate_layers(images, norm=False, reshape=True)
    assert grid.shape == (2, 64, 2, 6)
    for i in range(12):
        torch.testing.assert_close(grid[:, :, i // 6, i % 6], patches[:, i])


def test_earlier_layers_are_those_of_a_shorter_network():
    network, images = toy(), pictures(2, 16, 16)
    layers = network.get_intermediate_layers(images, n=3)
    for i, layer in enumerate(layers):
        shorter = copy.deepcopy(network)
        shorter.blocks = shorter.blocks[: i + 1]
        torch.testing.assert_close(layer, shorter.forward_features(images)["x_norm_patchtokens"])
    for n, expected in [(2, layers[1:]), ([0, 2], layers[::2]), ([2, 0], layers[::2]), ([1], layers[1:2])]:
        torch.testing.assert_close(network.get_intermediate_layers(images, n=n), expected)  # in block order


@pytest.mark.parametrize("n", [4, [3], [-1]])
def test_a_block_that_does_not_exist_is_named(n):
    with pytest.raises(AssertionError, match="there are blocks 0 to 2"):
        toy().get_intermediate_layers(pictures(1, 16, 16), n=n)


def test_forward_takes_masks_and_gives_all_features_in_training():
    network, images, masks = toy(n_registers=4), pictures(2, 16, 16), some_masks(2, 16)
    expected = network.forward_features(images, masks)
    torch.testing.assert_close(network(images, masks), expected["x_norm_clstoken"])
    torch.testing.assert_close(network(images, masks=masks, is_training=True), expected)
    packed = network([images, pictures(3, 8, 8)], masks=[masks, None], is_training=True)
    torch.testing.assert_close(packed[0]["x_norm_clstoken"], expected["x_norm_clstoken"])


def test_sizes_have_the_official_names():
    network = toy(n_registers=4)
    names = ("embed_dim", "num_features", "patch_size", "n_blocks", "num_heads", "num_register_tokens")
    assert [getattr(network, name) for name in names] == [64, 64, P, 3, 2, 4]


# ---------------------------------------------------------------------------- keys and parameters


@pytest.mark.parametrize(("ffn", "n_registers"), [("mlp", 0), ("swiglu", 4)])
def test_keys_are_the_official_ones(ffn, n_registers):
    expected = {"cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    expected |= {"norm.weight", "norm.bias"} | ({"register_tokens"} if n_registers else set())
    layers = ["w12", "w3"] if ffn == "swiglu" else ["fc1", "fc2"]
    for i in range(3):
        expected |= {f"blocks.{i}.ls1.gamma", f"blocks.{i}.ls2.gamma"}
        for name in ["norm1", "attn.qkv", "attn.proj", "norm2", *(f"mlp.{layer}" for layer in layers)]:
            expected |= {f"blocks.{i}.{name}.weight", f"blocks.{i}.{name}.bias"}
    state = toy(ffn=ffn, n_registers=n_registers).state_dict()
    assert set(state) == expected
    assert state["mask_token"].shape == (1, 64) and state["cls_token"].shape == (1, 1, 64)
    assert state["pos_embed"].shape == (1, 17, 64)
    assert not n_registers or state["register_tokens"].shape == (1, 4, 64)


@pytest.mark.parametrize(("build", "D", "depth", "heads", "millions"), [
    (vit_small, 384, 12, 6, 22.06), (vit_base, 768, 12, 12, 86.58),
    (vit_large, 1024, 24, 16, 304.37), (vit_giant2, 1536, 40, 24, 1136.48),
])  # fmt: skip
def test_parameter_counts_are_the_published_ones(build, D, depth, heads, millions):
    """A block has 4D² weights in attention (qkv 3D², proj D²), biases 3D + D, two norms 4D and two λ 2D: 4D² + 10D.
    Its MLP has 2·4D² and biases 4D + D; SwiGLU of width h has 3Dh and biases 2h + D.  For ViT-g, h is
    int(4·1536·2/3) = 4096; for a width of 64 it is int(170.67) = 170, up to 176, a multiple of 8.
    Outside: patches 3·14²·D + D = 589D, positions (37² + 1)·D = 1370D, [CLS] and mask token 2D, norm 2D: 1963D.
    ViT-S: 12·(12·384² + 15·384) + 1963·384 = 22 056 576.
    """
    with torch.device("meta"):
        network = build()
        assert SwiGLU(64).w3.in_features == 176
    h = 4096
    mlp = 3 * D * h + 2 * h + D if build is vit_giant2 else 8 * D**2 + 5 * D
    count = sum(p.numel() for p in network.parameters())
    assert count == depth * (4 * D**2 + 10 * D + mlp) + 1963 * D
    assert round(count / 1e6, 2) == millions
    assert all(block.attn.n_heads == heads for block in network.blocks)


# ---------------------------------------------------------------------------- the stem


def test_the_stem_by_hand():
    """P = 2, D = 96: a convolution of stride 1 to 24 channels, one of stride 2 to 48 = D/2, and a linear map to 96.

    The last one reaches one pixel to the left and none to the right, so a token sees columns 2x − 2 to 2x + 2 of the
    image.  A pixel in column 7 is in tokens 3 and 4 of its row and no other.
    """
    network = vit.vit_pico(patch_size=2, img_size=16, stem=True).eval()
    layers = network.patch_embed.stem
    assert [(layer.conv.stride[0], layer.conv.out_channels) for layer in layers] == [(1, 24), (2, 48)]
    assert [(layer.conv.stride[0], layer.conv.out_channels) for layer in conv_stem(16, 96)] == \
        [(1, 3), (2, 6), (2, 12), (2, 24), (2, 48)]
    for layer in layers:
        layer.norm = torch.nn.Identity()  # it sees the whole image
    images = torch.zeros(1, 3, 16, 16)
    before = network.patch_embed(images)
    images[:, :, 7, 7] = 1.0
    changed = (network.patch_embed(images) != before).any(dim=-1).view(8, 8).nonzero().tolist()
    assert changed == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_a_stem_needs_a_power_of_two():
    with pytest.raises(AssertionError, match="no stem for patches of 14"):
        vit_small(patch_size=14, stem=True)
