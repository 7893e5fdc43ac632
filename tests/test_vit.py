"""The Vision Transformer: a slow one beside it, packing, positions, stochastic depth, official keys and files.

    pytest tests/test_vit.py
"""

import copy
import math
import weakref

import pytest
import torch
import torch._dynamo.testing
from einops import rearrange
from torch.nn import functional as F

import vit
from vit import SwiGLU, ViT, add_branch, attend, draw_subsets, vit_base, vit_giant2, vit_large, vit_small, vit_tiny

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


# --------------------------------------------------------------------------------------------------------
# The equation


def slow_forward(network, image, mask, positions):
    """One image (3, H, W) in float64, patch by patch and head by head -> tokens (1 + R + N, D) before the norm.

    positions: (1 + N, D), what the resizing is expected to give.
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
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_slow_one(ffn, n_registers, masked):
    """Masks act in place of the patch, before positions, and registers have no position."""
    network, images = toy(ffn=ffn, n_registers=n_registers), pictures(2, 16, 16)
    masks = some_masks(2, 16) if masked else None
    out = network.forward_features(images, masks)
    for i in range(2):
        mask = masks[i] if masked else None
        slow = slow_forward(network, images[i], mask, network.pos_embed[0].double())
        torch.testing.assert_close(out["x_prenorm"][i].double(), slow, rtol=1e-4, atol=1e-3)
    normed = F.layer_norm(out["x_prenorm"], (64,), network.norm.weight, network.norm.bias, eps=1e-6)
    torch.testing.assert_close(out["x_norm_clstoken"], normed[:, 0])
    torch.testing.assert_close(out["x_norm_regtokens"], normed[:, 1 : 1 + n_registers])
    torch.testing.assert_close(out["x_norm_patchtokens"], normed[:, 1 + n_registers :])
    assert out["masks"] is masks
    torch.testing.assert_close(network(images), network.forward_features(images)["x_norm_clstoken"])


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


def test_swiglu_width():
    """int(4·1536·2/3) = 4096 for ViT-g; for 64 it is int(170.67) = 170, up to 176, a multiple of 8."""
    with torch.device("meta"):
        assert SwiGLU(1536).w3.in_features == 4096
        assert SwiGLU(64).w3.in_features == 176 and SwiGLU(64).w12.out_features == 2 * 176


def test_a_fresh_network_is_near_the_identity():
    """λ = 10⁻⁵: what comes out of the blocks is what went in, to about 12·2·10⁻⁵ of its size."""
    torch.manual_seed(0)
    network, images = vit_tiny(img_size=28).eval(), pictures(1, 28, 28)
    before, after = network.tokens(images), network.forward_features(images)["x_prenorm"]
    change = (after - before).abs().max()
    assert 0 < change < 1e-3
    assert after.std() > 0.1


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(AssertionError, match="18×16 pixels do not divide into patches of 4"):
        toy()(pictures(1, 18, 16))


def test_layer_scale_by_hand():
    """λ = (2, 3) makes of (4, 8) the product (8, 24)."""
    scale = vit.LayerScale(2, 1e-5)
    scale.gamma.data = torch.tensor([2.0, 3.0])
    assert scale(torch.tensor([[4.0, 8.0]])).tolist() == [[8, 24]]


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("method", ["forward", "training_features", "get_intermediate_layers"])
def test_each_part_is_called_as_a_module(ffn, method):
    """A forward hook on any of them fires, and one that changes the output (as LoRA's wrappers do) is felt."""
    network, images = toy(ffn=ffn), pictures(2, 16, 16)
    arguments = ([images], [None], torch.arange(3)) if method == "training_features" else (images,)
    before = getattr(network, method)(*arguments)
    names = ["norm1", "attn", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp", "ls2"]
    names += ["mlp.w12", "mlp.w3"] if ffn == "swiglu" else ["mlp.fc1", "mlp.fc2"]
    for name in names:
        part, seen = network.blocks[1].get_submodule(name), []
        hook = part.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(module) or 2 * out)
        after = getattr(network, method)(*arguments)
        hook.remove()
        assert seen == [part], name
        assert (after[0] - before[0]).abs().max() > 1e-3, name


@pytest.mark.parametrize("name", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1"])
def test_a_part_can_be_replaced(name):
    """By a module that wraps it, without its weights in sight, as an adapter does."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    network, images = toy(), pictures(2, 16, 16)
    before = network(images)
    parent, _, child = f"blocks.1.{name}".rpartition(".")
    setattr(network.get_submodule(parent), child, Wrapped(network.get_submodule(f"blocks.1.{name}")))
    assert (network(images) - before).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_registers", [0, 4])
def test_half_precision_throughout(dtype, n_registers):
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


# --------------------------------------------------------------------------------------------------------
# Other people's tools


@pytest.mark.filterwarnings("ignore")  # of tracing, which PyTorch advises against, but people do
def test_it_exports_and_its_trace_can_be_saved(tmp_path):
    network, images = toy(n_registers=4), pictures(2, 8, 24)
    expected = network(images)
    torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), expected)
    torch.jit.trace(network, images).save(tmp_path / "trace.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "trace.pt")(images), expected)


@pytest.mark.parametrize("masked, drop_path, checkpointing", [(True, 0.5, False), (False, 0.0, True)])
def test_it_compiles_whole_and_once(masked, drop_path, checkpointing):
    """One graph, since fullgraph=True raises at a break, and none of the later steps compiles another one.

    Of aot_eager, which has a graph for the backward pass too and needs no C++ compiler, or of eager, which has none and
    is quicker.  Compiled and plain draw the same subsets, since the draw stays an operation of PyTorch there; values
    and gradients are equal but for rounding.
    """
    network = toy(drop_path=drop_path, checkpointing=checkpointing, n_registers=1).train()
    network.blocks = network.blocks[:2]  # a first and a last one: each takes its seconds to compile
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager" if masked else "eager")
    torch._dynamo.reset()
    compiled = torch.compile(network.training_features, fullgraph=True, dynamic=False, backend=counter)
    for step in range(3):
        batches = [pictures(4, 16, 16, seed=step), pictures(6, 8, 8, seed=step)]
        masks = torch.arange(16)[None] < torch.tensor([[5], [0], [3], [8]])
        masks = masks[torch.randperm(4, generator=torch.Generator().manual_seed(step))]
        at = masks.flatten().nonzero()[:, 0]
        found = []
        for features in (compiled, network.training_features):
            torch.manual_seed(step)
            cls, patches = features(batches, [masks if masked else None, None], at)
            loss = (cls - 1).abs().mean() + (patches + 1).abs().mean()
            used = [p for name, p in network.named_parameters() if masked or name != "mask_token"]
            found.append((cls, patches, torch.autograd.grad(loss, used)))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
        assert counter.frame_count == 1


# --------------------------------------------------------------------------------------------------------
# Packing


@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_a_packed_pass_is_the_separate_passes(n_registers, ffn):
    network = toy(n_registers=n_registers, ffn=ffn)
    batches = [pictures(2, 16, 16), pictures(5, 8, 8, seed=1), pictures(1, 8, 20, seed=2)]
    masks = [some_masks(2, 16), None, some_masks(1, 10)]
    for given in (masks, None):
        packed = network.forward_features(batches, given)
        for x, mask, out in zip(batches, given or [None] * 3, packed, strict=True):
            alone = network.forward_features(x, mask)
            for key in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
                torch.testing.assert_close(out[key], alone[key], rtol=1e-4, atol=1e-4)
            assert out["masks"] is mask


def test_images_do_not_see_each_other():
    network, images = toy(), pictures(3, 16, 16)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(images.flip(0)), network(images).flip(0), rtol=1e-4, atol=1e-5)


def test_gradients_of_a_packed_pass_are_those_of_the_separate_passes():
    network = toy()
    batches, masks = [pictures(2, 16, 16), pictures(3, 8, 8, seed=1)], [some_masks(2, 16), None]
    parameters = list(network.parameters())
    packed = sum(out["x_norm_patchtokens"].square().mean() for out in network.forward_features(batches, masks))
    alone = sum(
        network.forward_features(x, m)["x_norm_patchtokens"].square().mean()
        for x, m in zip(batches, masks, strict=True)
    )
    torch.testing.assert_close(
        torch.autograd.grad(packed, parameters), torch.autograd.grad(alone, parameters), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(("n_registers", "checkpointing"), [(0, False), (4, False), (0, True)])
def test_training_features_are_those_of_forward_features(n_registers, checkpointing):
    """[CLS] of both batches and the masked patches of the first one, with the same gradients; and of no patch."""
    network = toy(n_registers=n_registers, checkpointing=checkpointing).train()
    batches, masks = [pictures(3, 16, 16), pictures(4, 8, 8, seed=1)], [some_masks(3, 16), None]
    at = masks[0].flatten().nonzero()[:, 0]
    g, l = network.forward_features(batches, masks)  # noqa: E741
    expected = torch.cat([g["x_norm_clstoken"], l["x_norm_clstoken"]]), g["x_norm_patchtokens"][masks[0]]
    found = network.training_features(batches, masks, at)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(cls.square().mean() + patches.pow(3).mean(), list(network.parameters()))
        for cls, patches in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    cls, patches = network.training_features(batches, masks, at[:0])
    assert patches.shape == (0, 64)
    torch.testing.assert_close(cls, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["forward_features", "training_features"])
def test_outputs_of_earlier_blocks_are_let_go(method):
    """When the last block is done, of three blocks' outputs its own and its input are left."""
    network, outputs = toy(), []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, out: outputs.append(weakref.ref(out)))
    left = []
    network.blocks[2].register_forward_hook(lambda *_: left.extend(x() is not None for x in outputs))
    with torch.no_grad():
        getattr(network, method)([pictures(3, 16, 16)], [None], *([torch.arange(6)] * (method == "training_features")))
    assert left == [False, True, True]


def test_autocast_is_close_and_finite():
    """bfloat16 keeps 8 bits; three blocks later the [CLS] token agrees in direction to 1 in 100."""
    network, images = toy(n_registers=4), pictures(4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = network.forward_features([images, pictures(2, 8, 8)])[0]["x_norm_clstoken"]
    out.float().sum().backward()
    assert F.cosine_similarity(out.float(), network(images)).min() > 0.99
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_inputs_are_not_changed():
    network, images, masks = toy(), pictures(2, 16, 16), some_masks(2, 16)
    kept = images.clone(), masks.clone()
    network.forward_features(images, masks)
    assert torch.equal(images, kept[0]) and torch.equal(masks, kept[1])


def test_a_masked_patch_is_not_seen():
    """Other pixels under the mask change nothing; without it they do. All masked and none masked are fine."""
    network, images, masks = toy(), pictures(2, 16, 16), some_masks(2, 16)
    pixels = rearrange(masks, "b (h w) -> b 1 h w", h=4).repeat_interleave(P, 2).repeat_interleave(P, 3)
    others = torch.where(pixels, pictures(2, 16, 16, seed=1), images)
    torch.testing.assert_close(
        network.forward_features(others, masks)["x_prenorm"], network.forward_features(images, masks)["x_prenorm"]
    )
    assert (network(others) - network(images)).abs().max() > 0.01
    everything = network.forward_features(images, torch.ones_like(masks))["x_norm_clstoken"]
    torch.testing.assert_close(everything[0], everything[1])
    nothing = network.forward_features(images, torch.zeros_like(masks))["x_norm_clstoken"]
    assert torch.equal(nothing, network(images))


# --------------------------------------------------------------------------------------------------------
# Positions


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


@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 7), (7, 16), (40, 30), (1, 1), (36, 37), (74, 74)])
def test_resized_positions_are_the_official_ones(n_registers, height, width):
    network = toy(img_size=37 * P, n_registers=n_registers)
    expected = official_positions(network.pos_embed, height, width, n_registers)
    torch.testing.assert_close(network.positions(height, width), expected)


def test_both_families_of_positions_can_be_chosen():
    """Registers of the official training are resized without antialias, and that is another network."""
    network, images = toy(img_size=37 * P, n_registers=4), pictures(1, 16 * P, 16 * P)
    found = {}
    for network.antialias in (True, False):
        expected = official_positions(network.pos_embed, 16, 16, network.antialias)
        torch.testing.assert_close(network.positions(16, 16), expected)
        found[network.antialias] = network(images)
    assert (found[True] - found[False]).abs().max() > 0.01
    assert toy(n_registers=4).antialias and not toy().antialias


def test_native_positions_are_untouched():
    network = toy()
    assert network.positions(4, 4) is network.pos_embed


def test_the_same_number_of_patches_is_not_the_same_grid():
    """2×8 patches are as many as 4×4, and still have to be resized."""
    network = toy()
    expected = official_positions(network.pos_embed, 2, 8, 0)
    torch.testing.assert_close(network.positions(2, 8), expected)
    assert (expected - network.pos_embed).abs().max() > 0.1


def test_places_by_hand():
    """Width 4 has one rate, 1: (sin c, cos c, sin r, cos r) at column c of row r; sin 1 = 0.8415, cos 1 = 0.5403."""
    expected = [[0, 1, 0, 1], [0.8415, 0.5403, 0, 1], [0, 1, 0.8415, 0.5403], [0.8415, 0.5403, 0.8415, 0.5403]]
    torch.testing.assert_close(vit.sincos(2, 4), torch.tensor(expected), atol=1e-4, rtol=0)


def test_near_places_start_alike():
    """On 8×8 patches the cosine of two places falls with their distance; [CLS] has no place."""
    grid = vit.vit_tiny(patch_size=8, img_size=64).pos_embed[0].detach()
    assert (grid[0] == 0).all()
    cosine = F.normalize(grid[1:], dim=1) @ F.normalize(grid[1:], dim=1).T
    along = cosine[0, :4]  # columns 0 to 3 of the first row
    assert (along.diff() < -0.01).all() and torch.allclose(cosine[0, 1], cosine[0, 8])


@pytest.mark.parametrize("n_registers", [0, 4])
def test_every_grid_gets_its_size(n_registers):
    """(n + 0.1)/37 · 37 must come to n again after rounding down."""
    network = toy(img_size=37 * P, n_registers=n_registers)
    for n in range(1, 80):
        assert network.positions(n, 80 - n).shape == (1, 1 + n * (80 - n), 64)


def test_height_and_width_are_not_swapped():
    """A ramp down the grid stays a ramp down a grid of another shape."""
    network = toy()
    ramp = torch.arange(4.0).repeat_interleave(4)
    network.pos_embed.data[0, 1:] = ramp[:, None]
    resized = network.positions(2, 8)[0, 1:, 0].view(2, 8)
    assert (resized - resized[:, :1]).abs().max() < 1e-5 and resized[1, 0] > resized[0, 0] + 1


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 3)])
def test_positions_learn_at_every_size(height, width):
    network = toy()
    network(pictures(1, height * P, width * P)).sum().backward()
    assert network.pos_embed.grad.abs().sum() > 0 and network.pos_embed.grad.isfinite().all()


@pytest.mark.parametrize("n_registers", [0, 4])
def test_a_non_square_image_is_the_slow_one(n_registers):
    network, images = toy(n_registers=n_registers), pictures(1, 8, 24)
    slow = slow_forward(network, images[0], None, official_positions(network.pos_embed, 2, 6, n_registers)[0].double())
    out = network.forward_features(images)["x_prenorm"][0]
    torch.testing.assert_close(out.double(), slow, rtol=1e-4, atol=1e-3)


# --------------------------------------------------------------------------------------------------------
# Stochastic depth and checkpointing


def dropped(x, shapes, branch, rate):
    """x + branch(x) for one random subset."""
    [subset] = draw_subsets(shapes, rate, 1, x.device)
    return add_branch(x, branch, shapes, subset)


def test_the_branch_runs_on_a_subset_by_hand():
    """4 samples of 2 tokens at rate ½: two of them get 4/2 times the branch, here the number 10, two get nothing."""
    seen = []

    def branch(x, shapes):
        seen.append((tuple(x.shape), shapes))
        return torch.full_like(x, 10.0)

    torch.manual_seed(0)
    x = torch.arange(8.0)[:, None]
    y = dropped(x, [(4, 2)], branch, rate=0.5)
    assert seen == [((4, 1), [(2, 2)])]
    added = (y - x).view(4, 2)
    assert torch.equal(added[:, 0], added[:, 1]) and sorted(added[:, 0].tolist()) == [0, 0, 20, 20]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.4, 0.99])
def test_each_crop_size_draws_its_own_subset(rate):
    """k = max(int(b·(1 − rate)), 1) of each crop size's b samples, so a packed pass leaves none out."""
    shapes, seen = [(10, 5), (16, 2), (1, 3)], []

    def branch(x, kept):
        seen.append(kept)
        return torch.ones_like(x)

    torch.manual_seed(0)
    x = torch.zeros(50 + 32 + 3, 1)
    y = dropped(x, shapes, branch, rate)
    expected = [(max(int(b * (1 - rate)), 1), n) for b, n in shapes]
    assert seen == [expected]
    for part, (b, _), (k, _) in zip(y.split([50, 32, 3]), shapes, expected, strict=True):
        per_sample = part.view(b, -1)
        assert ((per_sample > 0).all(dim=1) == (per_sample > 0).any(dim=1)).all()
        assert (per_sample[:, 0] > 0).sum() == k
        assert per_sample.max().item() == pytest.approx(b / k)


def test_the_subset_sees_its_own_tokens():
    """With x → 3x for a branch a sample becomes x + (b/k)·3x or stays x; none gets another one's."""
    torch.manual_seed(0)
    x = torch.randn(6 * 4 + 4 * 3, 2)
    y = dropped(x, [(6, 4), (4, 3)], lambda x, _: 3 * x, rate=0.5)
    factor = (y / x).round(decimals=3)
    assert set(factor.flatten().tolist()) == {1.0, 7.0}


def test_stochastic_depth_keeps_the_expectation():
    """E[y] = x + branch(x). Rate 0.4 of 5 samples: k = 3, so the factor is 5/3 with chance 3/5, of variance 2/3.

    4000 draws leave √(2/3/4000) = 0.013; 0.065 is 5 σ, a chance of 6·10⁻⁷ for each of 5 samples.
    """
    torch.manual_seed(0)
    x = torch.arange(1.0, 6.0)[:, None]
    subsets = draw_subsets([(5, 1)], 0.4, 4000, x.device)
    mean = sum(add_branch(x, lambda x, _: x, [(5, 1)], subset) for subset in subsets) / 4000
    assert (mean / x - 2).abs().max() < 0.065


def test_each_branch_has_a_subset_of_its_own(monkeypatch):
    """3 blocks have 6 branches; none is drawn in evaluation.

    That two of six draws take the same 10 of 20 samples has a chance of 15/184,756.
    """
    network, images, seen = toy(drop_path=0.5), pictures(20, 8, 8), []
    monkeypatch.setattr(vit, "add_branch", lambda x, branch, shapes, subset: seen.append(subset) or x)
    torch.manual_seed(0)
    network.train().training_features([images], [None], torch.arange(3))
    kept = [tuple((rows[::5] // 5).sort().values.tolist()) for rows, shapes, _ in seen if shapes == [(10, 5)]]
    assert len(set(kept)) == 6
    seen.clear()
    network.eval().training_features([images], [None], torch.arange(3))
    assert seen == [None] * 6


def test_no_drop_in_evaluation_nor_at_rate_zero():
    network, images = toy(drop_path=0.5), pictures(4, 16, 16)
    same = toy(drop_path=0.0)
    assert torch.equal(network(images), same(images))
    assert torch.equal(same.train()(images), same.eval()(images))
    assert (network.train()(images) - network.eval()(images)).abs().max() > 0.01


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_neither_loss_nor_gradients(drop_path):
    networks = [toy(drop_path=drop_path, checkpointing=mode).train() for mode in (False, True)]
    batches, masks = [pictures(4, 16, 16), pictures(6, 8, 8)], [some_masks(4, 16), None]
    results, runs = [], []
    for network in networks:
        block = network.blocks[0]
        block.attn.register_forward_pre_hook(lambda part, _: runs.append(part))
        torch.manual_seed(1)
        loss = sum(out["x_norm_patchtokens"].square().mean() for out in network.forward_features(batches, masks))
        results.append((loss, torch.autograd.grad(loss, list(network.parameters()))))
        assert runs.count(block.attn) == 1 + network.checkpointing  # once more in the backward pass
    torch.testing.assert_close(results[1], results[0])


# --------------------------------------------------------------------------------------------------------
# Intermediate layers


@pytest.mark.parametrize("n_registers", [0, 4])
def test_the_last_layer_is_forward_features(n_registers):
    network, images = toy(n_registers=n_registers), pictures(2, 8, 24)
    out = network.forward_features(images)
    [(patches, cls)] = network.get_intermediate_layers(images, return_class_token=True)
    torch.testing.assert_close(patches, out["x_norm_patchtokens"])
    torch.testing.assert_close(cls, out["x_norm_clstoken"])
    [(patches, cls)] = network.get_intermediate_layers(images, return_class_token=True, norm=False)
    torch.testing.assert_close(patches, out["x_prenorm"][:, 1 + n_registers :])
    torch.testing.assert_close(cls, out["x_prenorm"][:, 0])


def test_earlier_layers_are_those_of_a_shorter_network():
    network, images = toy(), pictures(2, 16, 16)
    layers = network.get_intermediate_layers(images, n=3)
    for i, layer in enumerate(layers):
        shorter = copy.deepcopy(network)
        shorter.blocks = shorter.blocks[: i + 1]
        torch.testing.assert_close(layer, shorter.forward_features(images)["x_norm_patchtokens"])
    for n, expected in [(2, layers[1:]), ([0, 2], layers[::2]), ([2, 0], layers[::2]), ([1], layers[1:2])]:
        torch.testing.assert_close(network.get_intermediate_layers(images, n=n), expected)  # in block order


def test_reshaped_to_a_grid_that_is_not_square():
    network, images = toy(n_registers=4), pictures(2, 8, 24)
    [flat] = network.get_intermediate_layers(images)
    [(grid, cls)] = network.get_intermediate_layers(images, reshape=True, return_class_token=True)
    assert grid.shape == (2, 64, 2, 6) and cls.shape == (2, 64)
    for i in range(12):
        torch.testing.assert_close(grid[:, :, i // 6, i % 6], flat[:, i])


@pytest.mark.parametrize("n", [4, [3], [-1]])
def test_a_block_that_does_not_exist_is_named(n):
    with pytest.raises(AssertionError, match="there are blocks 0 to 2"):
        toy().get_intermediate_layers(pictures(1, 16, 16), n=n)


# --------------------------------------------------------------------------------------------------------
# As people call torch.hub's models


def test_forward_takes_masks_and_gives_all_features_in_training():
    network, images, masks = toy(n_registers=4), pictures(2, 16, 16), some_masks(2, 16)
    for given in (None, masks):
        expected = network.forward_features(images, given)
        out = network(images, masks=given, is_training=True)
        assert set(out) == {"x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm", "masks"}
        assert out["masks"] is given
        torch.testing.assert_close(out["x_prenorm"], expected["x_prenorm"])
        torch.testing.assert_close(network(images, given), expected["x_norm_clstoken"])
    packed = network([images, pictures(3, 8, 8)], masks=[masks, None], is_training=True)
    torch.testing.assert_close(packed[0]["x_norm_clstoken"], out["x_norm_clstoken"])


def test_sizes_have_the_official_names():
    network = toy(n_registers=4)
    names = ("embed_dim", "num_features", "patch_size", "n_blocks", "num_heads", "num_register_tokens")
    assert [getattr(network, name) for name in names] == [64, 64, P, 3, 2, 4]


# --------------------------------------------------------------------------------------------------------
# Keys and parameters


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("n_registers", [0, 4])
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


@pytest.mark.parametrize("P", [2, 4, 16])
def test_a_stem_gives_a_token_for_each_patch(P):
    """One convolution of stride 1 and log₂ P of stride 2, widths doubling up to half of D: P = 4, D = 64: 8, 16, 32.

    A 3×3 convolution of stride 2 reaches one pixel to the left and none to the right: with P = 2 a token sees columns
    2x − 2 to 2x + 2 of the image, so a pixel in column 7 is in the tokens 3 and 4 of its row and no other.
    """
    network = vit.vit_pico(patch_size=P, img_size=4 * P, stem=True).eval()
    n = network.patch_embed.stem
    assert [layer.conv.stride[0] for layer in n] == [1] + [2] * (P.bit_length() - 1)
    assert [layer.conv.out_channels for layer in n][-1] == 48 == network.patch_embed.proj.in_channels
    assert network.forward_features(torch.zeros(2, 3, 2 * P, 3 * P))["x_norm_patchtokens"].shape == (2, 6, 96)
    for layer in n:
        layer.norm = torch.nn.Identity()  # it sees the whole image
    images = torch.zeros(1, 3, 8 * P, 8 * P)
    before = network.patch_embed(images)
    images[:, :, 7, 7] = 1.0
    changed = (network.patch_embed(images) != before).any(dim=-1).view(8, 8).nonzero().tolist()
    if P == 2:
        assert changed == [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert 0 < len(changed) <= 9


def test_a_stem_wants_a_power_of_two():
    with pytest.raises(AssertionError, match="no stem for patches of 14"):
        vit_small(patch_size=14, stem=True)


@pytest.mark.parametrize(("build", "D", "depth", "heads", "millions"), [
    (vit_small, 384, 12, 6, 22.06), (vit_base, 768, 12, 12, 86.58),
    (vit_large, 1024, 24, 16, 304.37), (vit_giant2, 1536, 40, 24, 1136.48),
])  # fmt: skip
def test_parameter_counts_are_the_published_ones(build, D, depth, heads, millions):
    """A block has 4D² weights in attention (qkv 3D², proj D²), biases 3D + D, two norms 4D and two λ 2D: 4D² + 10D.
    Its MLP has 2·4D² and biases 4D + D; SwiGLU of width h has 3Dh and biases 2h + D.
    Outside: patches 3·14²·D + D = 589D, positions (37² + 1)·D = 1370D, [CLS] and mask token 2D, norm 2D: 1963D.
    ViT-S: 12·(12·384² + 15·384) + 1963·384 = 22 056 576.
    """
    with torch.device("meta"):
        network = build()
    h = 4096
    mlp = 3 * D * h + 2 * h + D if build is vit_giant2 else 8 * D**2 + 5 * D
    count = sum(p.numel() for p in network.parameters())
    assert count == depth * (4 * D**2 + 10 * D + mlp) + 1963 * D
    assert round(count / 1e6, 2) == millions
    assert all(block.attn.n_heads == heads for block in network.blocks)
    with torch.device("meta"):
        assert sum(p.numel() for p in build(n_registers=4).parameters()) == count + 4 * D


def test_patches_of_the_reference_position_arithmetic():
    """The constants the official weights depend on: 37 patches of 14 pixels, and 0.1."""
    assert vit.NATIVE // 14 == 37 and vit.OFFSET == 0.1
