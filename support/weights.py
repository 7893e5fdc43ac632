"""Weights of a ViT, in every file that we know: official ones, those of torch.hub, and our own.

Nothing in a file is executed.  Keys are the official ones, which are those of `ViT`.
"""

import math
import re

import torch

from vit import ViT


def load_vit(name_or_path, device="cpu"):
    """A ViT in eval mode from an official name or file, or from our own vit.pt or checkpoint.pt.

    Names: dinov2_vits14, dinov2_vitb14, dinov2_vitl14, dinov2_vitg14, and each with _reg; fetched once into
    torch's hub cache.  The architecture is read off the tensors, with heads of 64, or a little less where that does not
    divide the width (vit_pico: 48).  A training checkpoint gives its teacher.  Raises FileNotFoundError or ValueError,
    each with one line that says what is wrong.
    """
    state = read_state(str(name_or_path))
    try:
        dim, grid = state["cls_token"].shape[-1], math.isqrt(state["pos_embed"].shape[1] - 1)
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        patch_size = state["patch_embed.proj.weight"].shape[-1]
        n_registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
        ffn = "swiglu" if "blocks.0.mlp.w12.weight" in state else "mlp"
        vit = ViT(dim, depth, math.ceil(dim / 64), patch_size, grid * patch_size, n_registers, ffn)
        vit.load_state_dict(state)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name_or_path} does not hold the weights of a DINOv2 ViT ({reason})") from None
    return vit.eval().to(device)


def read_state(name_or_path):
    """The state dict of a ViT in official keys, from any of the files that load_vit takes; nothing is executed."""
    if re.fullmatch(r"dinov2_vit[sblg]14(_reg)?", name_or_path):
        family = name_or_path.removesuffix("_reg")
        file = f"{name_or_path.replace('_reg', '_reg4')}_pretrain.pth"
        address = f"https://dl.fbaipublicfiles.com/dinov2/{family}/{file}"
        place = f"{torch.hub.get_dir()}/checkpoints/{file}"
        try:
            return torch.hub.load_state_dict_from_url(address, map_location="cpu", weights_only=True)
        except OSError:
            raise FileNotFoundError(f"cannot fetch {address}; put the file at {place}") from None
        except Exception:  # as below
            raise ValueError(f"{place} is not a weights file of PyTorch; delete it") from None
    try:
        state = torch.load(name_or_path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no weights at {name_or_path}: neither a file nor an official name") from None
    except Exception:  # torch.load raises half a dozen kinds for a file that is not its own
        raise ValueError(f"{name_or_path} is not a weights file of PyTorch") from None
    prefix = ""
    if isinstance(state, dict) and "teacher" in state:
        state, prefix = state["teacher"], "backbone."
    if not isinstance(state, dict):
        raise ValueError(f"{name_or_path} holds a {type(state).__name__}, not named tensors")
    state = {str(k).removeprefix(prefix): v for k, v in state.items() if str(k).startswith(prefix)}
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", k): v for k, v in state.items()}  # unchunk blocks
