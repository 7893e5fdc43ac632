"""The ViT against a slow one, packing, positions, stochastic depth, official keys.  `pytest tests/test_vit.py`"""

import copy
import math

import pytest
import torch
import torch._dynamo.testing
from torch.nn import functional as F
from torch.testing import assert_close

import vit
from vit import Block, SwiGLU, ViT, attend, draw_subsets, vit_base, vit_giant2, vit_large, vit_small, vit_tiny

P = 4  # patch size of the toys
with_and_without_registers = pytest.mark.parametrize("n_registers", [0, 4])


def toy(seed=0, **options):
    """96 wide, 3 deep, 2 heads, patches of 4, positions for 4×4 of them; all parameters large enough to matter."""
    torch.manual_seed(seed)
    network = ViT(96, 3, 2, **{"patch_size": P, "img_size": 16, **options})
    for name, p in network.named_parameters():
        torch.nn.init.normal_(p, mean=1.0 if name.endswith(("gamma", "norm1.weight")) else 0.0, std=0.2)
    return network.eval()


def pictures(b, height, width, seed=0):
    """(b, 3, height, width) normal pixels."""
    return torch.randn(b, 3, height, width, generator=torch.Generator().manual_seed(seed))


def some_masks(b, n, seed=0):
    """(b, n) bool, a third of them true."""
    return torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) < 1 / 3


def slow_forward(network, image, mask, positions):
    """One image (3, H, W) in float64 -> tokens (1 + R + N, D) before the last norm; positions (1 + N, D)."""
    w = {name: p.double() for name, p in network.state_dict().items()}

    def linear(x, name):
        return x @ w[name + ".weight"].flatten(1).T + w[name + ".bias"]

    def norm(x, name):
        return F.layer_norm(x, (96,), w[name + ".weight"], w[name + ".bias"], eps=1e-6)

    patches = linear(F.unfold(image.double()[None], P, stride=P)[0].T, "patch_embed.proj")  # row by row
    if mask is not None:
        patches[mask] = w["mask_token"]
    registers = [w["register_tokens"][0]] if network.n_registers else []
    x = torch.cat([w["cls_token"][0] + positions[:1], *registers, patches + positions[1:]])
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=1)
        heads = [(q[:, h] @ k[:, h].T / math.sqrt(48)).softmax(1) @ v[:, h] for h in (slice(0, 48), slice(48, 96))]
        x = x + w[f"{block}.ls1.gamma"] * linear(torch.cat(heads, dim=1), f"{block}.attn.proj")
        y = norm(x, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in w:
            gate, value = linear(y, f"{block}.mlp.w12").chunk(2, dim=1)
            y = linear(gate * gate.sigmoid() * value, f"{block}.mlp.w3")
        else:
            y = linear(F.gelu(linear(y, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x + w[f"{block}.ls2.gamma"] * y
    return x


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@with_and_without_registers
@pytest.mark.parametrize(("size", "masks"), [((16, 16), some_masks(2, 16)), ((8, 24), None)])
def test_is_the_slow_one(ffn, n_registers, size, masks):
    """Masks replace the patch before positions are added, and registers have no position."""
    network, images = toy(ffn=ffn, n_registers=n_registers), pictures(2, *size)
    out = network.forward_features(images, masks)
    assert out["masks"] is masks
    positions = network.positions(size[0] // P, size[1] // P)[0].double()
    for i in range(2):
        slow = slow_forward(network, images[i], None if masks is None else masks[i], positions)
        assert_close(out["x_prenorm"][i].double(), slow, rtol=1e-4, atol=1e-3)
    normed = F.layer_norm(out["x_prenorm"], (96,), network.norm.weight, network.norm.bias, eps=1e-6)
    parts = normed.split([1, n_registers, normed.shape[1] - 1 - n_registers], dim=1)
    assert_close(out["x_norm_clstoken"], parts[0][:, 0])
    assert_close((out["x_norm_regtokens"], out["x_norm_patchtokens"]), parts[1:])


def test_attention_by_hand():
    """Queries of 1 at d = 1; keys log 1, log 3 give weights 1/4, 3/4; values 8 and 4: 8/4 + 3·4/4 = 5.  Each key 300
    times changes nothing; these are enough for the fused kernel."""
    for n in (1, 300):
        tokens = torch.tensor([[1.0, 1.0], [math.log(1), math.log(3)], [8.0, 4.0]]).repeat_interleave(n, dim=1)
        assert_close(attend(*tokens.view(3, 1, 1, 2 * n, 1)), torch.full((1, 1, 2 * n, 1), 5.0))


def test_a_fresh_network_is_near_the_identity():
    """λ = 10⁻⁵: the blocks change their input by about 12·2·10⁻⁵ of its size.  Linear weights have std 1/√inputs."""
    torch.manual_seed(0)
    network, images = vit_tiny(img_size=28).eval(), pictures(1, 28, 28)
    before, after = network.embed(images), network.forward_features(images)["x_prenorm"]
    assert 0 < (after - before).abs().max() < 1e-3
    assert after.std() > 0.1
    assert network.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(768**-0.5, rel=0.02)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: toy()(pictures(1, 18, 16)), "18×16 pixels do not divide into patches of 4"),
    (lambda: toy()(pictures(1, 16, 16)[0]), r"got \(3, 16, 16\); for one image use images\[None\]"),
    (lambda: toy().get_intermediate_layers(pictures(1, 16, 16), n=4), "there are blocks 0 to 2; got 4"),
    (lambda: toy(patch_size=14, stem=True), "no stem for patches of 14"),
])  # fmt: skip
def test_misuse_is_named(call, words):
    with pytest.raises(AssertionError, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@with_and_without_registers
def test_it_runs_in_half_precision(dtype, n_registers):
    """`.bfloat16()` and `.half()` at a size that is not native, in training mode with stochastic depth too."""
    network, images = toy(n_registers=n_registers, drop_path=0.5), pictures(4, 8, 24)
    expected = network(images)
    out = network.to(dtype)(images.to(dtype))
    assert out.dtype == dtype and F.cosine_similarity(out.float(), expected).min() > 0.99
    out = network.train().forward_features(images.to(dtype), some_masks(4, 12))["x_norm_patchtokens"]
    out.float().square().mean().backward()
    assert out.dtype == dtype and network.blocks[0].mlp.fc1.weight.grad.isfinite().all()


def train_on(network, seed):
    """Outputs of training_features on two crop sizes, a loss of them, and its gradients."""
    batches, masks = [pictures(4, 16, 16, seed), pictures(6, 8, 8, seed)], some_masks(4, 16, seed)
    torch.manual_seed(seed)
    cls, patches = network.training_features(batches, [masks, None], masks.flatten().nonzero()[:, 0])
    loss = (cls - 1).abs().mean() + (patches + 1).abs().mean()
    return cls, patches, loss, torch.autograd.grad(loss, list(network.parameters()))


def test_checkpointing_changes_neither_loss_nor_gradients():
    results, runs = [], []
    for checkpointing in (False, True):
        network = toy(drop_path=0.5, checkpointing=checkpointing).train()
        network.blocks[0].attn.register_forward_pre_hook(lambda part, _: runs.append(part))
        results.append(train_on(network, 1))
    assert_close(*results)
    assert len(runs) == 1 + 2  # once more in the backward pass


@with_and_without_registers
def test_a_packed_pass_is_the_separate_passes(n_registers):
    """And training_features are [CLS] of all batches and the masked patches of the first one."""
    network = toy(n_registers=n_registers)
    batches = [pictures(2, 16, 16), pictures(5, 8, 8, seed=1), pictures(1, 8, 20, seed=2)]
    masks = [some_masks(2, 16), None, some_masks(1, 10)]
    for given in (None, masks):
        packed = network.forward_features(batches, given)
        for x, mask, out in zip(batches, given or [None] * 3, packed, strict=True):
            assert_close(out, network.forward_features(x, mask), rtol=1e-4, atol=1e-4)
    expected = torch.cat([out["x_norm_clstoken"] for out in packed]), packed[0]["x_norm_patchtokens"][masks[0]]
    at = masks[0].flatten().nonzero()[:, 0]
    assert_close(network.training_features(batches, masks, at), expected, rtol=1e-4, atol=1e-5)
    assert network.training_features(batches, masks, at[:0])[1].shape == (0, 96)


def official_positions(pos_embed, height, width, antialias):
    """The arithmetic of the official code."""
    M = int(math.sqrt(pos_embed.shape[1] - 1))
    grid = pos_embed[:, 1:].reshape(1, M, M, -1).permute(0, 3, 1, 2).contiguous()
    if antialias:
        grid = F.interpolate(grid, mode="bicubic", antialias=True, size=(height, width))
    else:
        sx, sy = float(height + 0.1) / M, float(width + 0.1) / M
        grid = F.interpolate(grid, mode="bicubic", antialias=False, scale_factor=(sx, sy))
    return torch.cat([pos_embed[:, :1], grid.flatten(2).mT], dim=1)


@pytest.mark.parametrize("antialias", [False, True])
@with_and_without_registers
def test_resized_positions_are_the_official_ones(antialias, n_registers):
    """The default follows torch.hub: antialias with registers only.  The attribute chooses the other way.

    The native grid is used as it is; a grid of as many patches, 2×8 for 4×4, is not native.
    """
    for side, grids in ((37, [(n, 80 - n) for n in range(1, 80)] + [(1, 1), (74, 74)]), (4, [(2, 8)])):
        network = toy(img_size=side * P, n_registers=n_registers)
        assert network.antialias == (n_registers > 0)
        network.antialias = antialias
        assert network.positions(side, side) is network.pos_embed
        for grid in grids:
            assert_close(network.positions(*grid), official_positions(network.pos_embed, *grid, antialias))


def test_places_by_hand():
    """Width 4 has one rate, 1: (sin c, cos c, sin r, cos r) at column c of row r; sin 1 = 0.8415, cos 1 = 0.5403.

    A network starts with half of these values; [CLS] has no place.
    """
    expected = [[0, 1, 0, 1], [0.8415, 0.5403, 0, 1], [0, 1, 0.8415, 0.5403], [0.8415, 0.5403, 0.8415, 0.5403]]
    assert_close(vit.sincos(2, 4), torch.tensor(expected), atol=1e-4, rtol=0)
    positions = vit_tiny(patch_size=8, img_size=64).pos_embed[0]
    assert_close(positions, torch.cat([torch.zeros(1, 192), vit.sincos(8, 192) / 2]))


class Branch(torch.nn.Module):
    """10·x in place of attention; remembers what it was given."""

    def forward(self, x, shapes):
        self.given = tuple(x.shape), shapes
        return 10 * x


def test_stochastic_depth_by_hand():
    """Rate ½.  Of 4 samples of 2 tokens the branch 10·x runs for two and counts 4/2 times, so these become x + 2·10·x =
    21·x; the other two stay x.  Of 3 samples it runs for int(1.5) = 1, which becomes x + 3·10·x = 31·x.  Of 1 sample it
    would run for int(½) = 0, but one is the least: x + 10·x = 11·x.  The MLP is switched off."""
    block, shapes = Block(4, 1, "mlp", layer_scale=1.0), [(4, 2), (3, 1), (1, 2)]
    block.norm1, block.attn = torch.nn.Identity(), Branch()
    block.ls2.gamma.data.zero_()
    torch.manual_seed(0)
    x = torch.randn(13, 4)
    [subset] = draw_subsets(shapes, 0.5, 1, x.device)
    factors = vit.split_batches(block(x, shapes, subset) / x, shapes)
    assert block.attn.given == ((4 + 1 + 2, 4), [(2, 2), (1, 1), (1, 2)])
    for found, expected in zip(factors, ([1.0, 1.0, 21.0, 21.0], [1.0, 1.0, 31.0], [11.0]), strict=True):
        assert_close(found, found[:, :1, :1].expand_as(found))  # a sample is kept or dropped as a whole
        assert_close(found[:, 0, 0].sort().values, torch.tensor(expected))


def test_each_branch_has_a_subset_of_its_own():
    """3 blocks have 6 branches; none is drawn in evaluation.  Two of six draws are the same 10 of 20 samples with a
    chance of 15/184,756."""
    network, images, seen = toy(drop_path=0.5), pictures(20, 8, 8), []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    torch.manual_seed(0)
    dropped = network.train()(images)
    assert len({tuple(sorted(rows[::5].tolist())) for pair, _, _ in seen for rows in pair}) == 6
    assert (network.eval()(images) - dropped).abs().max() > 0.01
    assert seen[3:] == [None] * 3


@with_and_without_registers
def test_layers_are_those_of_a_shorter_network(n_registers):
    """In block order: patches and [CLS], normalised or raw, as rows or as maps."""
    network, images = toy(n_registers=n_registers), pictures(2, 8, 24)
    pairs = network.get_intermediate_layers(images, n=3, return_class_token=True)
    raw = network.get_intermediate_layers(images, n=3, norm=False, reshape=True)
    for i, (pair, maps) in enumerate(zip(pairs, raw, strict=True)):
        shorter = copy.deepcopy(network)
        shorter.blocks = shorter.blocks[: i + 1]
        out = shorter.forward_features(images)
        assert_close(pair, (out["x_norm_patchtokens"], out["x_norm_clstoken"]))
        assert_close(maps, out["x_prenorm"][:, 1 + n_registers :].mT.unflatten(2, (2, 6)))
    patches = tuple(patches for patches, _ in pairs)
    for n, expected in [(1, patches[2:]), (2, patches[1:]), ([2, 0], patches[::2]), ([1], patches[1:2])]:
        assert_close(network.get_intermediate_layers(images, n=n), expected)


def test_calls_and_names_are_the_official_ones():
    network, images, masks = toy(n_registers=4), pictures(2, 16, 16), some_masks(2, 16)
    expected = network.forward_features(images, masks)
    assert_close(network(images, masks), expected["x_norm_clstoken"])
    assert_close(network(images, masks=masks, is_training=True), expected)
    names = ("embed_dim", "num_features", "patch_size", "n_blocks", "num_heads", "num_register_tokens")
    assert [getattr(network, name) for name in names] == [96, 96, P, 3, 2, 4]


@pytest.mark.parametrize(("ffn", "n_registers", "layers"), [("mlp", 0, "fc1 fc2"), ("swiglu", 4, "w12 w3")])
def test_keys_are_the_official_ones(ffn, n_registers, layers):
    parts = ["norm1", "attn.qkv", "attn.proj", "norm2", *(f"mlp.{layer}" for layer in layers.split())]
    names = ["patch_embed.proj", "norm", *(f"blocks.{i}.{part}" for i in range(3) for part in parts)]
    keys = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    keys |= {f"blocks.{i}.ls{j}.gamma" for i in range(3) for j in (1, 2)}
    keys |= {"cls_token", "pos_embed", "mask_token"} | ({"register_tokens"} if n_registers else set())
    assert set(toy(ffn=ffn, n_registers=n_registers).state_dict()) == keys


@pytest.mark.parametrize(("build", "heads", "expected"), [
    (vit_small, 6, 22_056_576), (vit_base, 12, 86_580_480), (vit_large, 16, 304_368_640),
    (vit_giant2, 24, 1_136_480_768),
])  # fmt: skip
def test_parameter_counts_are_the_published_ones(build, heads, expected):
    """ViT-S: 12·(12·384² + 15·384) + 1963·384.  A block has 4D² weights in attention (qkv 3D², proj D²) and 8D² in its
    MLP, and the vectors of 4D and 5D biases, two norms 4D and two λ 2D.  Outside: patches 3·14²·D + D, positions
    (37² + 1)·D, [CLS] and mask token 2D, norm 2D.  SwiGLU of width 64 has int(170.67) = 170 hidden, up to 176 = 8·22.
    """
    with torch.device("meta"):
        network = build()
        assert SwiGLU(64).w3.in_features == 176
    assert sum(p.numel() for p in network.parameters()) == expected
    assert all(block.attn.n_heads == heads for block in network.blocks)
