"""Every hyper-parameter, by named recipe (Tables 16 and 17, §4, §5, B.1, B.2; the official YAML files for the rest).

A recipe is one `Recipe`; `train.py --recipe NAME --any_field value` changes any of it.  Spans of time are shares of
the steps of a phase, so that fewer steps, or the high-resolution phase, compress every schedule (B.2).
Values of the paper's recipes name their source; those marked "ours" are our choice.
"""

from dataclasses import dataclass, field, replace

SHARE = (0.0, 1.0)
WEIGHT = (0.0, 1e6)
POSITIVE = (1e-9, 1e6)
COUNT = (1, 10**9)
SIDE = (1, 4096)  # pixels
WIDTH = (1, 10**5)
TO_BE_GIVEN = "?"  # the teacher of a recipe that distils one, until --teacher names it


def _f(default, help, range=None):
    """A field with its help, and for numbers the least and the largest value."""
    return field(default=default, metadata={"help": help, "range": range})


@dataclass(frozen=True)
class Recipe:
    """All that decides a run, apart from the device.  Defaults are the values that the recipes share."""

    name: str = _f("", "the recipe that this one started from; no flag of its own, but --recipe")
    # data and crops
    data: str = _f("shapes", "folder, archive, list or shards of images, cifar10, or shapes")
    image_size: int = _f(64, "side of the decoded square of an image, in pixels", SIDE)
    scale: tuple[float, float] = _f((0.0, 0.0), "values of deep pictures shown black and white; 0 0: as files suggest",
                                     (-1e30, 1e30))  # fmt: skip
    max_megapixels: int = _f(178, "larger pictures are skipped", (1, 10**6))
    global_size: int = _f(224, "side of the two global crops", SIDE)  # §5
    local_size: int = _f(98, "side of the local crops", SIDE)  # §5
    n_local: int = _f(8, "local crops of an image", (0, 100))  # official ssl_default_config.yaml
    # the two scales: official ssl_default_config.yaml
    global_scale: tuple[float, float] = _f((0.32, 1.0), "share of the image's area in a global crop", SHARE)
    local_scale: tuple[float, float] = _f((0.05, 0.32), "share of the image's area in a local crop", SHARE)
    blur_sigma: tuple[float, float] = _f((0.1, 2.0), "range of the blur's sigma, in pixels", (0.0, 100.0))  # DINO
    jitter: float = _f(1.0, "strength of the colour jitter, as a multiple of DINO's", (0.0, 1.66))  # DINO
    # network
    arch: str = _f("vit_large", "vit_pico, vit_mini, vit_nano, vit_tiny, vit_small, vit_base, vit_large or vit_giant2")
    patch_size: int = _f(14, "side of a patch, in pixels", SIDE)  # Table 17
    ffn: str = _f("mlp", "mlp or swiglu")  # Table 17
    stem: bool = _f(False, "convolutions before the patches become tokens; for small networks")  # ours
    n_registers: int = _f(0, "register tokens", (0, 1000))  # Darcet et al. 2024
    layer_scale: float = _f(1e-5, "LayerScale at the start", WEIGHT)  # official ssl_default_config.yaml
    drop_path: float = _f(0.0, "rate of stochastic depth", SHARE)
    n_prototypes: int = _f(65536, "K, the prototypes of each head", (2, 10**7))  # official ssl_default_config.yaml
    head_hidden: int = _f(2048, "hidden width of the heads", WIDTH)  # official ssl_default_config.yaml
    dino_bottleneck: int = _f(256, "bottleneck of the image head", WIDTH)  # official ssl_default_config.yaml
    ibot_bottleneck: int = _f(256, "bottleneck of the patch head", WIDTH)  # official ssl_default_config.yaml
    tied_heads: bool = _f(False, "one head for both losses, as in iBOT (§4: untied ones do better at scale)")
    # losses
    centering: str = _f("sinkhorn", "sinkhorn or softmax")  # §4
    student_temp: float = _f(0.1, "student temperature", POSITIVE)  # DINO
    teacher_temp_start: float = _f(0.04, "teacher temperature at step 0", POSITIVE)  # official ssl_default_config.yaml
    teacher_temp: float = _f(0.07, "teacher temperature after its warm-up", POSITIVE)  # official default config
    teacher_temp_warmup: float = _f(0.3, "share of the steps over which the teacher temperature rises", SHARE)
    dino_weight: float = _f(1.0, "weight of the image loss", WEIGHT)  # official ssl_default_config.yaml
    ibot_weight: float = _f(1.0, "weight of the patch loss", WEIGHT)  # official ssl_default_config.yaml
    koleo_weight: float = _f(0.1, "weight of KoLeo", WEIGHT)  # B.1
    # both of the masks: official ssl_default_config.yaml
    mask_ratio: tuple[float, float] = _f((0.1, 0.5), "share of the patches masked in a masked view", SHARE)
    mask_probability: float = _f(0.5, "share of the global views that are masked", SHARE)
    # optimization
    batch: int = _f(64, "images in a step, on all GPUs together", COUNT)
    steps: int = _f(1000, "steps of the run, the high-resolution phase included", COUNT)
    lr: float = _f(4e-3, "base learning rate; peak: lr·√(batch/1024)", POSITIVE)  # official ssl_default_config.yaml
    lr_end: float = _f(1e-6, "learning rate at the last step", WEIGHT)  # official ssl_default_config.yaml
    lr_warmup: float = _f(0.1, "share of the steps over which the learning rate rises", SHARE)
    weight_decay: float = _f(0.04, "weight decay at step 0", WEIGHT)  # Table 16
    weight_decay_end: float = _f(0.2, "weight decay at the last step", WEIGHT)  # Table 16
    layer_decay: float = _f(1.0, "factor of the learning rate from each block to the one below", WEIGHT)
    patch_embed_lr: float = _f(0.2, "factor of the patch embedding's learning rate", WEIGHT)  # official default config
    freeze_prototypes: float = _f(0.01, "share of the steps with frozen prototypes", SHARE)
    clip: float = _f(3.0, "largest gradient norm, of the backbone and each head", POSITIVE)  # official default config
    momentum: float = _f(0.994, "momentum of the teacher at step 0", SHARE)  # Table 16
    momentum_end: float = _f(1.0, "momentum of the teacher at the last step", SHARE)  # Table 16
    # from other weights
    init: str = _f("", "start from these weights, a file or an official name; their architecture is taken")
    init_lr: float = _f(1e-4, "base learning rate from --init on, after head_warmup", POSITIVE)  # B.2: "reduced"
    head_warmup: float = _f(0.1, "share of the steps in which new heads learn alone (init, teacher)", SHARE)  # ours
    # high-resolution phase (B.2)
    hires_share: float = _f(0.0, "share of the steps at high resolution, at the end", SHARE)
    hires_size: int = _f(518, "side of the global crops at high resolution", SIDE)  # §4
    hires_image_size: int = _f(592, "side of the decoded square at high resolution", SIDE)  # ours
    hires_lr: float = _f(1e-4, "base learning rate at high resolution", POSITIVE)  # B.2: "reduced"; the value is ours
    # distillation (§5)
    teacher: str = _f("", "a frozen larger teacher to distil: another run's checkpoint.pt, or weights as for --init")
    # running
    amp: bool = _f(True, "bf16 autocast where the device has bf16 arithmetic")
    compile: bool = _f(False, "torch.compile of the two ViTs")
    micro_batch: int = _f(0, "images of a GPU that go forward and backward at once, 0: all; centering, KoLeo and "
                             "the masks then see that piece alone", (0, 10**9))  # fmt: skip
    checkpointing: bool = _f(False, "keep only the input of each block for the backward pass, and compute it again")
    workers: int = _f(0, "processes of a GPU that decode streamed images; 0: one for each core", (0, 1000))
    seed: int = _f(0, "seed of everything random", (0, 10**9))
    log_every: int = _f(10, "steps between two lines of metrics.jsonl", COUNT)
    save_every: int = _f(100, "steps between two checkpoints", COUNT)
    eval_every: int = _f(0, "steps between two k-NN measurements; 0: only at the end", (0, 10**9))
    eval_images: int = _f(10_000, "training images in a k-NN measurement on the way; of a streamed set in each, and "
                                  "as many test images", COUNT)  # fmt: skip


# Pictures drawn on the spot; a ViT from nothing to a clear k-NN in minutes on a laptop.  All values ours.
shapes = Recipe(
    data="shapes", image_size=64, global_size=32, local_size=16, n_local=4,
    global_scale=(0.25, 0.8), local_scale=(0.08, 0.3), blur_sigma=(0.1, 0.5),
    arch="vit_pico", patch_size=8, layer_scale=0.1, patch_embed_lr=1.0,
    n_prototypes=32, head_hidden=256, dino_bottleneck=128, ibot_bottleneck=128,
    teacher_temp_start=0.01, teacher_temp=0.01, momentum=0.95,
    ibot_weight=0.5, jitter=0.6,
    batch=32, steps=1250, lr=6e-3, eval_every=500, eval_images=2000,
    hires_share=0.02, hires_size=64, hires_image_size=64, hires_lr=5e-4, init_lr=1e-3,
)  # fmt: skip

# Real pictures of 32² pixels in small batches: few prototypes and a cold teacher leave the uniform loss ln K at once.
# All values ours.
cifar10 = Recipe(
    data="cifar10", image_size=32, global_size=24, local_size=12, n_local=4,
    global_scale=(0.4, 1.0), local_scale=(0.15, 0.5), blur_sigma=(0.1, 0.5),
    arch="vit_mini", patch_size=4, stem=True, layer_scale=0.1, patch_embed_lr=1.0,
    n_prototypes=512, head_hidden=512, dino_bottleneck=128, ibot_bottleneck=128,
    teacher_temp_start=0.01, teacher_temp=0.01, ibot_weight=0.3, momentum=0.95,
    batch=64, steps=6000, lr=6e-3, eval_every=1000,
    hires_share=0.05, hires_size=32, hires_image_size=32, hires_lr=1e-3, init_lr=1e-3,
)  # fmt: skip

# The official short recipe, for ImageNet-1k in 100 epochs of 1250 steps (official vitl16_short.yaml and
# ssl_default_config.yaml).  It shares the heads; ours are untied as in the paper.  Where your ImageNet is, --data says.
vitl16_short = Recipe(
    data="", image_size=320,  # ours
    global_size=224, local_size=96,  # official ssl_default_config.yaml
    arch="vit_large", patch_size=16,  # official ssl_default_config.yaml
    drop_path=0.3,  # official ssl_default_config.yaml
    centering="softmax",  # official ssl_default_config.yaml ("centering")
    batch=2048,  # official README: 4 nodes of 8 GPUs, 64 each
    steps=125_000,  # 100 epochs of 1250, official ssl_default_config.yaml
    lr=4e-3, lr_warmup=0.1,  # 10 of 100 epochs, official ssl_default_config.yaml
    teacher_temp_warmup=0.3,  # 30 of 100 epochs, official ssl_default_config.yaml
    freeze_prototypes=0.01,  # 1 of 100 epochs, official ssl_default_config.yaml
    weight_decay_end=0.4, momentum=0.992, layer_decay=0.9,  # official ssl_default_config.yaml
    save_every=1250, eval_every=12_500,
)  # fmt: skip

# The paper's own: ViT-L/14 from scratch on LVD-142M, 500 epochs of 1250 steps, then 10 000 steps at 518².  That set was
# never released; --data says what you have instead.
vitl14 = Recipe(
    data="", image_size=320,  # ours
    arch="vit_large", patch_size=14, ffn="swiglu",  # Table 17
    drop_path=0.4,  # Table 16
    n_prototypes=131_072,  # Table 1 (128k); official vitl14.yaml
    dino_bottleneck=384,  # official vitl14.yaml
    batch=3072,  # Table 16 (3k); official README: 12 nodes of 8 GPUs, 32 each
    steps=635_000, hires_share=10 / 635,  # 625 000 (Table 16) + 10 000 (B.2)
    lr=2e-4, lr_warmup=0.16,  # 80 of 500 epochs, official vitl14.yaml; the peak is Table 16's 3.5e-4
    teacher_temp_warmup=0.06, freeze_prototypes=0.002,  # 30 and 1 of 500 epochs, official ssl_default_config.yaml
    checkpointing=True, save_every=1250, eval_every=12_500,
)  # fmt: skip

# ViT-g/14, the largest: official vitg14.yaml is vitl14.yaml but for the network, and 256 GPUs with 12 images each make
# the same batch (the authors in issue 311).  Tables 16 and 17 say so too.
vitg14 = replace(vitl14, arch="vit_giant2")  # Table 17

# Distilled from ViT-g/14 (§5), as the released ViT-S, B and L were.  --teacher says whose weights teach.  No official
# configuration was released: what neither table says is as in vitl14, its high-resolution end too, for the released
# ones have positions for 518² (official eval/vits14_pretrain.yaml).
vits14_distilled = replace(
    vitl14,
    teacher=TO_BE_GIVEN,  # §5: a frozen larger model, the ViT-g
    arch="vit_small", ffn="mlp",  # Table 17
    drop_path=0.0,  # Table 16
    batch=2048,  # Table 16
    lr=1e-3 / 2**0.5,  # Table 16's 1e-3 taken as the peak, as its 3.5e-4 is that of vitl14; at batch 1024
    dino_bottleneck=256,  # ours: the official default; only vitl14.yaml and vitg14.yaml say 384
    checkpointing=False,  # ours
)  # fmt: skip
vitb14_distilled = replace(vits14_distilled, arch="vit_base")  # Table 17
vitl14_distilled = replace(vits14_distilled, arch="vit_large")  # Table 17

RECIPES = {
    "shapes": shapes, "cifar10": cifar10, "vitl16_short": vitl16_short, "vitl14": vitl14, "vitg14": vitg14,
    "vits14_distilled": vits14_distilled, "vitb14_distilled": vitb14_distilled, "vitl14_distilled": vitl14_distilled,
}  # fmt: skip
RECIPES = {name: replace(recipe, name=name) for name, recipe in RECIPES.items()}


def get_recipe(name, **changes):
    """The recipe of that name with some fields changed; TypeError for an unknown field."""
    return replace(RECIPES[name], **changes)
