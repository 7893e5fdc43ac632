"""Entry points of torch.hub: `torch.hub.load("<this folder>", "vit_small", source="local", weights="vit.pt")`."""

from functools import partial as _partial  # torch.hub lists every public callable as an entry point

import vit as _vit
from support.weights import load_vit as _load_vit

dependencies = ["torch", "einops", "numpy", "PIL", "safetensors", "tqdm"]


def _build(arch, weights=None, **options):
    """An untrained ViT with ViT's options, or one with the weights of a file or official name, as in load_vit."""
    if weights is None:
        return getattr(_vit, arch)(**options)
    if options:
        raise ValueError(f"the weights decide {', '.join(options)}: give weights or options")
    vit, (dim, depth, _) = _load_vit(weights).requires_grad_(), getattr(_vit, arch).args  # official ones train, too
    if (vit.embed_dim, vit.n_blocks) != (dim, depth):
        raise ValueError(f"{weights} is {vit.embed_dim} wide and {vit.n_blocks} deep; {arch}: {dim} wide, {depth} deep")
    return vit


for _name in ("femto", "pico", "mini", "nano", "tiny", "small", "base", "large", "giant2"):
    globals()[f"vit_{_name}"] = _partial(_build, f"vit_{_name}")
for _name in ("small", "base", "large", "giant2"):
    for _registers in ("", "_reg"):  # official weights, downloaded once into torch.hub's cache
        _weights = f"dinov2_vit{_name[0]}14{_registers}"
        globals()[_weights] = _partial(_build, f"vit_{_name}", _weights)
