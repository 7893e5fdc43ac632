"""Entry points of torch.hub: `torch.hub.load("<this folder>", "vit_small", source="local", weights="vit.pt")`."""

from functools import partial as _partial  # torch.hub takes every public callable for an entry point

import torch as _torch

import vit as _vit
from support.weights import load_vit as _load_vit

dependencies = ["torch", "einops", "numpy", "PIL", "safetensors", "tqdm"]


def _build(arch, weights=None, **options):
    """A ViT: with the weights of a file or official name (as load_vit takes them), or untrained, with ViT's options.

    Raises ValueError for weights of another architecture, or options beside weights, which decide them all.
    """
    if weights is None:
        return getattr(_vit, arch)(**options)
    if options:
        raise ValueError(f"the weights decide {', '.join(options)}: give weights or options")
    with _torch.device("meta"):  # no memory: only to be asked for its size
        meant = getattr(_vit, arch)()
    loaded = _load_vit(weights)
    if (loaded.embed_dim, len(loaded.blocks)) != (meant.embed_dim, len(meant.blocks)):
        raise ValueError(f"{weights} holds a ViT {loaded.embed_dim} wide and {len(loaded.blocks)} deep; "
                         f"{arch} is {meant.embed_dim} wide and {len(meant.blocks)} deep")  # fmt: skip
    return loaded


vit_pico = _partial(_build, "vit_pico")
vit_mini = _partial(_build, "vit_mini")
vit_nano = _partial(_build, "vit_nano")
vit_tiny = _partial(_build, "vit_tiny")
vit_small = _partial(_build, "vit_small")
vit_base = _partial(_build, "vit_base")
vit_large = _partial(_build, "vit_large")
vit_giant2 = _partial(_build, "vit_giant2")

# The official models, fetched once into torch.hub's cache.
dinov2_vits14 = _partial(_load_vit, "dinov2_vits14")
dinov2_vitb14 = _partial(_load_vit, "dinov2_vitb14")
dinov2_vitl14 = _partial(_load_vit, "dinov2_vitl14")
dinov2_vitg14 = _partial(_load_vit, "dinov2_vitg14")
dinov2_vits14_reg = _partial(_load_vit, "dinov2_vits14_reg")
dinov2_vitb14_reg = _partial(_load_vit, "dinov2_vitb14_reg")
dinov2_vitl14_reg = _partial(_load_vit, "dinov2_vitl14_reg")
dinov2_vitg14_reg = _partial(_load_vit, "dinov2_vitg14_reg")
