"""Load and save the weights of a ViT: official, of other libraries, and our own.  No code in a file is executed.

    python -m support.weights IN OUT    OUT.pth: official; OUT.safetensors: timm; a folder: Hugging Face
"""

import json
import math
import re
import sys
from pathlib import Path

import safetensors.torch
import torch

from support.checkpoint import read_tensors
from support.cli import Parser, report_errors
from support.files import UserError, check_regular, download, read_bytes, reason_of, write_safely
from vit import ViT

HUGGING_FACE = (  # official name, transformers' name
    ("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"), ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("blocks.", "encoder.layer."),
    ("attn.proj.", "attention.output.dense."), (".ls", ".layer_scale"), (".gamma", ".lambda1"),
    ("mlp.w12.", "mlp.weights_in."), ("mlp.w3.", "mlp.weights_out."), ("norm.", "layernorm."),
)  # fmt: skip
QKV = ("query", "key", "value")  # separate in transformers, one tensor in the official code
TIMM = (("register_tokens", "reg_token"), ("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))


def rename(state, names):
    """A state dict with each pair (old, new) of `names` replaced in its keys."""
    for old, new in names:
        state = {key.replace(old, new): x for key, x in state.items()}
    return state


def load_vit(name_or_path, device="cpu"):
    """A frozen ViT in eval mode, float32, from an official name or any file of weights that docs/weights.md lists.

    The tensors tell the architecture.  From a training checkpoint, the teacher is used.  UserError for other files.
    """
    contents = read_weights(str(name_or_path))
    try:
        vit = build_vit(to_official(find_backbone(contents)))
        config = Path(str(name_or_path).removesuffix("model.safetensors"), "config.json")  # of a Hugging Face folder
        heads = json.loads(read_bytes(config)).get("num_attention_heads") if config.exists() else None
        if heads not in (None, vit.num_heads):
            raise ValueError(f"config.json says {heads} heads, but a network of this width has {vit.num_heads}")
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{name_or_path} does not hold a DINOv2 ViT ({reason_of(error)[:200]})") from None
    return vit.float().eval().requires_grad_(False).to(device)


def read_weights(name):
    """The contents of a file, of a Hugging Face folder, or of the file of an official name."""
    path = Path(name, "model.safetensors") if Path(name, "model.safetensors").exists() else Path(name)
    if re.fullmatch(r"dinov2_vit[sblg]14(_reg)?", name):
        file = f"{name.replace('_reg', '_reg4')}_pretrain.pth"
        address = f"https://dl.fbaipublicfiles.com/dinov2/{name.removesuffix('_reg')}/{file}"
        path = download(address, Path(torch.hub.get_dir(), "checkpoints", file))
    try:
        check_regular(path)
        return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no weights at {name}: neither a file nor an official name, such as dinov2_vits14") from None
    except Exception:  # both libraries raise many kinds of errors for a file of another kind
        raise UserError(f"{path} is not a weights file of PyTorch or safetensors") from None


def find_backbone(contents):
    """The named tensors of one ViT, in any library's names, from a file's contents; a teacher's if there is one."""
    nested = {f"{name}.{k}": x for name, part in contents.items() if isinstance(part, dict) for k, x in part.items()}
    inserted = r"(_\w+_wrapped_module|_orig_mod|module)\.|(?<=blocks\.)\d+\.(?=\d+\.)"  # wrappers; official chunks
    state = {re.sub(inserted, "", key): x for key, x in (contents | nested).items()}
    found = [match[1] for key in state if (match := re.fullmatch(r"(|.*\.)(embeddings\.)?cls_token", key))]
    prefix = min(found, key=lambda prefix: ("teacher" not in prefix, len(prefix)), default="")
    return {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}


def to_official(state):
    """A state dict in official, Hugging Face's or timm's names -> in official names, as `ViT` has them."""
    if "embeddings.cls_token" in state:
        state = rename(state, [(theirs, ours) for ours, theirs in HUGGING_FACE])
        for key in [key for key in state if ".attention.attention.query." in key]:
            parts = [state.pop(key.replace("query", part)) for part in QKV]
            state[key.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    if "reg_token" in state:  # timm adds [CLS]'s position to [CLS]
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)
    fc1, fc2 = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if fc1 is not None and len(fc1) == 2 * fc2.shape[1]:  # timm's SwiGLU
        state = rename(state, [(theirs, ours) for ours, theirs in TIMM])
    return state


def build_vit(state):
    """The ViT of a state dict in official keys; its sizes are those of the tensors."""
    dim, grid = state["cls_token"].shape[-1], math.isqrt(state["pos_embed"].shape[1] - 1)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    convs = sum(bool(re.fullmatch(r"patch_embed\.stem\.\d+\.conv\.weight", key)) for key in state)
    patch_size = 2 ** (convs - 1) if convs else state["patch_embed.proj.weight"].shape[-1]
    n_registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    ffn = "swiglu" if "blocks.0.mlp.w12.weight" in state else "mlp"
    n_heads = math.ceil(dim / 64)  # a head has 64 channels, or fewer where 64 does not divide the width (vit_pico: 48)
    if not (depth and grid and patch_size and n_heads) or dim % n_heads:
        raise ValueError(f"{depth} blocks of width {dim} with {n_heads} heads, grid {grid}, patch {patch_size}")
    with torch.device("meta"):  # allocates nothing: the file's tensors take these places
        vit = ViT(dim, depth, n_heads, patch_size, grid * patch_size, n_registers, ffn, stem=convs > 0)
    absent = {"mask_token": torch.zeros(1, dim)}
    if not any(key.endswith(".gamma") for key in state):  # DINO's networks have no LayerScale: λ = 1
        absent |= {key: torch.ones(dim) for key in vit.state_dict() if key.endswith(".gamma")}
    vit.load_state_dict({**absent, **state}, assign=True)
    for key, x in state.items():  # a small file can hold a tensor that expands to terabytes
        if not x.is_floating_point() or x.nbytes > x.untyped_storage().nbytes() or not x.isfinite().all():
            raise ValueError(f"{key} holds NaN, infinity or no real numbers")
    return vit


def save_vit(vit, out):
    """Write a ViT as the kind of file that the name `out` stands for."""
    out, state = Path(out), vit.state_dict()
    if out.suffix in (".pth", ".pt"):
        return write_safely(out, lambda path: torch.save(state, path))
    if out.suffix not in ("", ".safetensors"):
        raise UserError(f"{out}: OUT must end in .pth, .pt or .safetensors; a folder has no dot")
    if vit.stem:
        raise UserError(f"{out}: timm and Hugging Face have no ViT with a convolutional stem; write a .pth")
    if out.suffix:
        del state["mask_token"]  # timm has none; with registers, it adds [CLS]'s position to [CLS]
        if vit.n_registers:
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:]
        return save_tensors(rename(state, TIMM), out)
    config = {  # of transformers' Dinov2Model or Dinov2WithRegistersModel
        "model_type": "dinov2_with_registers" if vit.n_registers else "dinov2", "num_register_tokens": vit.n_registers,
        "hidden_size": vit.embed_dim, "num_hidden_layers": vit.n_blocks, "num_attention_heads": vit.num_heads,
        "use_swiglu_ffn": hasattr(vit.blocks[0].mlp, "w12"), "patch_size": vit.patch_size,
        "image_size": math.isqrt(vit.pos_embed.shape[1] - 1) * vit.patch_size,
    }  # fmt: skip
    for key in [key for key in state if ".attn.qkv." in key]:
        for part, value in zip(QKV, state.pop(key).chunk(3)):
            state[key.replace("attn.qkv", f"attention.attention.{part}")] = value
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(rename(state, HUGGING_FACE), out / "model.safetensors")
    write_safely(out / "config.json", lambda path: path.write_text(json.dumps(config)))


def save_tensors(state, out):
    """Write a .safetensors file that PyTorch programs read."""
    state = {key: x.clone(memory_format=torch.contiguous_format) for key, x in state.items()}  # no views
    contents = safetensors.torch.save(state, {"format": "pt"})  # its save_file has errors of its own on a full disk
    write_safely(out, lambda path: path.write_bytes(contents))


@report_errors("python -m support.weights")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="python -m support.weights", description="Convert the weights of a ViT to another format.")
    parser.add_argument("input", metavar="IN", help="an official name, a file or a folder of weights")
    parser.add_argument("output", type=Path, metavar="OUT", help=".pth or .pt: official; .safetensors: timm; "
                        "a name without an ending: a folder for Hugging Face")
    options = parser.parse_args(argv)
    save_vit(load_vit(options.input), options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
