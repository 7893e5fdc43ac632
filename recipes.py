"""Every hyper-parameter of the named recipes (Tables 16 and 17, §4, §5, B.1, B.2; official YAML files for the rest).

`train.py --recipe NAME` trains one of them, and every field is a flag: `--koleo_weight 0.2`, `--amp none`.
Warm-ups and freezing are shares of a phase's steps, so fewer steps and the high-resolution phase compress all schedules
(B.2).  head_warmup and hires_share are shares of the run.
Comments name the source of a value: "yaml" is the official ssl_default_config.yaml, "ours" is our own choice.
"""

from dataclasses import dataclass, field, replace

SHARE = (0.0, 1.0)
WEIGHT = (0.0, 1e6)
POSITIVE = (1e-9, 1e6)
COUNT = (1, 10**9)
SIDE = (1, 4096)  # pixels


def _f(default, help, range=None):
    """A field with its help, and for numbers the smallest and the largest value."""
    return field(default=default, metadata={"help": help, "range": range})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, except the device."""

    name: str = _f("", "the recipe that this one started from; set by --recipe")
    # data and crops
    data: str = _f("shapes", "folder, archive, list or shards of images; or cifar10, or shapes")
    labels: str = _f("auto", "auto; or none: ignore the classes that folders or a list name")
    image_size: int = _f(64, "side of the decoded square images, in pixels", SIDE)
    scale: tuple[float, float] = _f((0.0, 0.0), "black and white in grey images deeper than 8 bits", (-1e30, 1e30))
    global_size: int = _f(224, "side of the two global crops", SIDE)  # §5
    local_size: int = _f(98, "side of the local crops", SIDE)  # §5
    n_local: int = _f(8, "local crops of each image", (0, 100))  # yaml
    global_scale: tuple[float, float] = _f((0.32, 1.0), "area of a global crop, share of the image", SHARE)  # yaml
    local_scale: tuple[float, float] = _f((0.05, 0.32), "area of a local crop, share of the image", SHARE)  # yaml
    blur_sigma: tuple[float, float] = _f((0.1, 2.0), "range of the blur's sigma, in pixels", (0.0, 100.0))  # DINO
    jitter: float = _f(1.0, "strength of the colour jitter, relative to DINO's", (0.0, 1.66))  # DINO
    # network
    arch: str = _f("vit_large", "vit_{femto,pico,mini,nano,tiny,small,base,large,giant2}")
    patch_size: int = _f(14, "side of a patch, in pixels", SIDE)  # Table 17
    ffn: str = _f("mlp", "mlp or swiglu")  # Table 17
    stem: bool = _f(False, "convolutions before the patch embedding; helps on CIFAR-10")  # ours
    n_registers: int = _f(0, "register tokens", (0, 1000))  # Darcet et al. 2024
    layer_scale: float = _f(1e-5, "LayerScale at the start", WEIGHT)  # yaml
    drop_path: float = _f(0.0, "stochastic depth rate", SHARE)
    n_prototypes: int = _f(65536, "K, the prototypes of each head", (2, 10**7))  # yaml
    head_hidden: int = _f(2048, "hidden width of the heads", COUNT)  # yaml
    dino_bottleneck: int = _f(256, "bottleneck width of the image head", COUNT)  # yaml
    ibot_bottleneck: int = _f(256, "bottleneck width of the patch head", COUNT)  # yaml
    tied_heads: bool = _f(False, "one head for both losses, as in iBOT")  # §4: untied heads do better at scale
    # losses
    centering: str = _f("sinkhorn", "sinkhorn or softmax")  # §4
    student_temp: float = _f(0.1, "student temperature", POSITIVE)  # DINO
    teacher_temp_start: float = _f(0.04, "teacher temperature at step 0", POSITIVE)  # yaml
    teacher_temp: float = _f(0.07, "teacher temperature after its warm-up", POSITIVE)  # yaml
    teacher_temp_warmup: float = _f(0.3, "share of the steps with rising temperature", SHARE)  # yaml: 30 of 100 epochs
    dino_weight: float = _f(1.0, "weight of the image loss", WEIGHT)  # yaml
    ibot_weight: float = _f(1.0, "weight of the patch loss", WEIGHT)  # yaml
    koleo_weight: float = _f(0.1, "weight of KoLeo", WEIGHT)  # B.1
    mask_ratio: tuple[float, float] = _f((0.1, 0.5), "share of masked patches in a masked view", SHARE)  # yaml
    mask_probability: float = _f(0.5, "share of masked global views", SHARE)  # yaml
    # optimization
    batch: int = _f(64, "images per step, on all GPUs together", COUNT)
    steps: int = _f(1000, "steps of the run, with the high-resolution phase", COUNT)
    lr: float = _f(4e-3, "base learning rate; the peak is lr·√(batch/1024)", POSITIVE)  # yaml
    lr_end: float = _f(1e-6, "learning rate at the last step", WEIGHT)  # yaml
    lr_warmup: float = _f(0.1, "share of the steps with rising learning rate", SHARE)  # yaml: 10 of 100 epochs
    weight_decay: float = _f(0.04, "weight decay at step 0", WEIGHT)  # Table 16
    weight_decay_end: float = _f(0.2, "weight decay at the last step", WEIGHT)  # Table 16
    layer_decay: float = _f(1.0, "learning rate of each block, relative to the next", WEIGHT)  # official vitl14.yaml
    patch_embed_lr: float = _f(0.2, "learning rate of the patch embedding, relative to the others", WEIGHT)  # yaml
    freeze_prototypes: float = _f(0.01, "share of the steps with frozen prototypes", SHARE)  # yaml: 1 of 100 epochs
    clip: float = _f(3.0, "largest gradient norm of the backbone and of each head", POSITIVE)  # yaml
    momentum: float = _f(0.994, "momentum of the teacher at step 0", SHARE)  # Table 16
    momentum_end: float = _f(1.0, "momentum of the teacher at the last step", SHARE)  # Table 16
    # other weights
    teacher: str = _f("", "distil this frozen teacher, the checkpoint.pt of another run")  # §5
    init: str = _f("", "start from these weights (a file or an official name) and their architecture")
    init_lr: float = _f(1e-4, "base learning rate with --init, after head_warmup", POSITIVE)  # ours; B.2: "reduced"
    head_warmup: float = _f(0.1, "with --init: share of the steps in which only new heads train", SHARE)  # ours
    # high-resolution phase (B.2)
    hires_share: float = _f(0.0, "share of the steps at high resolution, at the end", SHARE)
    hires_size: int = _f(518, "side of the global crops at high resolution", SIDE)  # §4
    hires_image_size: int = _f(592, "side of the decoded images at high resolution", SIDE)  # ours
    hires_lr: float = _f(1e-4, "base learning rate at high resolution", POSITIVE)  # ours; B.2: "reduced"
    # running
    amp: str = _f("auto", "bf16, fp16 (the paper's), none (float32), or auto: the type in which the device is fast")
    compile: bool = _f(False, "torch.compile the blocks of both ViTs")
    micro_batch: int = _f(0, "images per GPU and backward pass, for centering and KoLeo too; 0: all", (0, 10**9))
    checkpointing: bool = _f(False, "activation checkpointing: less memory, more time")
    workers: int = _f(0, "processes that decode streamed images, per GPU; 0: one per core", (0, 1000))
    seed: int = _f(0, "random seed", (0, 10**9))
    log_every: int = _f(10, "steps between two lines of metrics.jsonl", COUNT)
    save_every: int = _f(100, "steps between two checkpoints", COUNT)
    eval_every: int = _f(0, "steps between two k-NN evaluations, from step 0 on; 0: only at the end", (0, 10**9))
    eval_images: int = _f(10_000, "training images per k-NN evaluation; the last has all, unless streamed", COUNT)


# Built-in images: from random weights to a good k-NN score in minutes on a laptop.  All values ours.
shapes = Recipe(
    name="shapes", data="shapes", image_size=64, global_size=32, local_size=16, n_local=2,
    global_scale=(0.25, 0.8), local_scale=(0.08, 0.3), blur_sigma=(0.1, 0.5), jitter=0.6,
    arch="vit_femto", patch_size=8, layer_scale=0.1, patch_embed_lr=1.0,
    n_prototypes=128, head_hidden=256, dino_bottleneck=128, ibot_bottleneck=128,
    teacher_temp_start=0.01, teacher_temp=0.01, ibot_weight=0.5, momentum=0.95,
    batch=32, steps=2460, lr=6e-3, eval_every=500, eval_images=2000,
    hires_share=0.02, hires_size=96, hires_image_size=96, hires_lr=5e-4, init_lr=1e-3,
)  # fmt: skip

# Photos of 32² pixels.  A low teacher temperature keeps targets of small batches sharp; small K saves time.  All ours.
cifar10 = Recipe(
    name="cifar10", data="cifar10", image_size=32, global_size=24, local_size=12, n_local=4,
    global_scale=(0.4, 1.0), local_scale=(0.15, 0.5), blur_sigma=(0.1, 0.5),
    arch="vit_mini", patch_size=4, stem=True, layer_scale=0.1, patch_embed_lr=1.0,
    n_prototypes=512, head_hidden=512, dino_bottleneck=128, ibot_bottleneck=128,
    teacher_temp_start=0.01, teacher_temp=0.01, ibot_weight=0.3, momentum=0.95,
    batch=64, steps=6000, lr=6e-3, eval_every=1000,
    hires_share=0.05, hires_size=32, hires_image_size=32, hires_lr=1e-3, init_lr=1e-3,
)  # fmt: skip

# The official short recipe: ImageNet-1k, 100 epochs of 1250 steps (official vitl16_short.yaml).  That one shares the
# heads; ours are untied, as in the paper.  Like all recipes below, it needs --data.
vitl16_short = Recipe(
    name="vitl16_short", data="", image_size=320,  # ours
    arch="vit_large", patch_size=16, local_size=96, drop_path=0.3, centering="softmax",  # yaml
    weight_decay_end=0.4, momentum=0.992, layer_decay=0.9,  # yaml
    batch=2048, steps=125_000,  # official README: 4 nodes of 8 GPUs, 64 images each
    save_every=1250, eval_every=12_500,  # ours
)  # fmt: skip

# The paper's own: ViT-L/14 from scratch on LVD-142M (never released), 500 epochs of 1250 steps, then 10 000 at 518².
vitl14 = Recipe(
    name="vitl14", data="", image_size=320,  # ours
    arch="vit_large", ffn="swiglu",  # Table 17
    drop_path=0.4,  # Table 16
    n_prototypes=131_072,  # Table 1 (128k); official vitl14.yaml
    dino_bottleneck=384,  # official vitl14.yaml
    batch=3072,  # Table 16 (3k); official README: 12 nodes of 8 GPUs, 32 images each
    steps=635_000, hires_share=10 / 635,  # 625 000 (Table 16) + 10 000 (B.2)
    lr=2e-4, lr_warmup=0.16,  # 80 of 500 epochs, official vitl14.yaml; the peak is Table 16's 3.5e-4
    teacher_temp_warmup=0.06, freeze_prototypes=0.002,  # yaml: 30 and 1 epochs, here of 500
    checkpointing=True, save_every=1250, eval_every=12_500,  # ours
)  # fmt: skip

# ViT-g/14, the largest.  Official vitg14.yaml differs in its network and GPUs; the batch is the same (issue 311).
vitg14 = replace(vitl14, name="vitg14", arch="vit_giant2")  # Table 17

# Distilled from ViT-g/14 (§5), as the released ViT-S, B and L.  These need --teacher.  No official configuration was
# released; values in neither table are vitl14's.  So is the high-resolution phase: the released networks have positions
# for 518² (official eval/vits14_pretrain.yaml).
vits14_distilled = replace(
    vitl14, name="vits14_distilled", teacher="?",  # §5: the ViT-g, which you give
    arch="vit_small", ffn="mlp",  # Table 17
    drop_path=0.0, batch=2048,  # Table 16
    lr=1e-3 / 2**0.5,  # Table 16's 1e-3, read as the peak (like the 3.5e-4 of vitl14); this is the base rate
    dino_bottleneck=256,  # ours: the default of yaml; only vitl14.yaml and vitg14.yaml have 384
    checkpointing=False,  # ours
)  # fmt: skip
vitb14_distilled = replace(vits14_distilled, name="vitb14_distilled", arch="vit_base")  # Table 17
vitl14_distilled = replace(vits14_distilled, name="vitl14_distilled", arch="vit_large")  # Table 17

RECIPES = (shapes, cifar10, vitl16_short, vitl14, vitg14, vits14_distilled, vitb14_distilled, vitl14_distilled)
RECIPES = {recipe.name: recipe for recipe in RECIPES}


def get_recipe(name, **changes):
    """The recipe with this name, some fields changed; TypeError for an unknown field."""
    return replace(RECIPES[name], **changes)
