"""Load and save the weights of a ViT: official files, those of other libraries, and our own.

    python -m support.weights IN OUT           convert between any of them:

    OUT.pth, OUT.pt      official keys, which are those of `ViT`: for the official code and torch.hub
    OUT/                 a folder with config.json and model.safetensors, for AutoModel.from_pretrained (Hugging Face)
    OUT.safetensors      timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2

No code in a file is executed.
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
from support.files import UserError, check_out, check_regular, make_folder, write_safely
from vit import ViT

MODEL, CONFIG = "model.safetensors", "config.json"  # the two files of a Hugging Face folder

# ---------------------------------------------------------------------------- load


def load_vit(name_or_path, device="cpu"):
    """A ViT in eval mode, float32, from an official name or a file.

    Names: dinov2_vits14, dinov2_vitb14, dinov2_vitl14, dinov2_vitg14, each also with _reg; downloaded once into
    torch's hub cache.  Files: our vit.pt and checkpoint.pt; official weights of DINOv2 and DINO; training checkpoints
    (the teacher is used); Hugging Face's and timm's .safetensors; a Hugging Face folder.
    The tensors tell the architecture, except for the heads: they have 64 channels, or slightly fewer where 64 does not
    divide the width (vit_pico: 48).  No file says how positions are resized; the default is that of the hub models.
    Raises FileNotFoundError, or UserError for a file that holds no ViT.
    """
    contents, n_heads = read_file(str(name_or_path))
    try:
        state = to_official(find_backbone(contents))
        check_values(state)
        vit = build_vit(state, n_heads)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name_or_path} does not hold the weights of a DINOv2 ViT ({reason})") from None
    return vit.float().eval().to(device)


def read_file(name):
    """The contents of a file of weights, and the number of heads where a config.json tells it, or None."""
    path, n_heads = Path(name), None
    if re.fullmatch(r"dinov2_vit[sblg]14(_reg)?", name):
        path = download(name)
    elif (path / MODEL).exists():
        path = path / MODEL
    try:
        config = path.with_name(CONFIG)
        if path.name == MODEL and config.exists():
            n_heads = json.loads(config.read_text()).get("num_attention_heads")  # timm's config.json has none
        if path.suffix != ".safetensors":
            return read_tensors(path), n_heads
        check_regular(path)
        return safetensors.torch.load_file(path), n_heads
    except UserError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"no weights at {name}: neither a file nor an official name") from None
    except Exception:  # both libraries raise many kinds of errors for a file of another kind
        raise UserError(f"{path} is not a weights file of PyTorch or safetensors") from None


def download(name):
    """The path of an official file in torch's hub cache; downloaded if it is not there."""
    file = f"{name.replace('_reg', '_reg4')}_pretrain.pth"
    address = f"https://dl.fbaipublicfiles.com/dinov2/{name.removesuffix('_reg')}/{file}"
    path = Path(torch.hub.get_dir(), "checkpoints", file)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path))
        except OSError:
            raise FileNotFoundError(f"cannot download {address}; put the file at {path}") from None
    return path


WRAPPERS = ("teacher", "model", "state_dict")  # a file may hold the tensors under one of these, or one in another
INSERTED = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "module.")  # by PyTorch, anywhere


def find_backbone(state):
    """The named tensors of one ViT, in any library's names, from a file's contents; LookupError if there are none.

    Prefers a teacher to a student, leaves out heads, and joins the chunks of blocks of official training.
    """
    if not isinstance(state, dict):
        raise TypeError(f"it holds a {type(state).__name__}, not named tensors")
    for _ in range(2):
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    state = rename({str(key): x for key, x in state.items()}, [(word, "") for word in INSERTED])
    if any("_flat_param" in key for key in state):
        raise LookupError("these are the shards of one process; take the teacher_checkpoint.pth of an evaluation")
    found = [key for key in state if re.search(r"(^|\.)cls_token$", key)]
    if not found:
        raise LookupError("there is no cls_token in it")
    if not any(key.endswith(("pos_embed", "position_embeddings")) for key in state):
        raise LookupError("there are no positions in it; RoPE, as in DINOv3, is not supported")
    key = min(found, key=lambda key: ("teacher" not in key, len(key)))
    prefix = key.removesuffix("cls_token").removesuffix("embeddings.")
    state = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): x for key, x in state.items()}


def check_values(state):
    """Raise ValueError unless all tensors hold real, finite numbers."""
    for key, x in state.items():
        if not x.is_floating_point() or x.nbytes > x.untyped_storage().nbytes():  # a small file can expand to terabytes
            raise ValueError(f"{key} is no tensor of real numbers")
        if not x.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")


def build_vit(state, n_heads=None):
    """The ViT of a state dict in official keys; its sizes are those of the tensors."""
    dim, grid = state["cls_token"].shape[-1], math.isqrt(state["pos_embed"].shape[1] - 1)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    convs = sum(bool(re.fullmatch(r"patch_embed\.stem\.\d+\.conv\.weight", key)) for key in state)
    patch_size = 2 ** (convs - 1) if convs else state["patch_embed.proj.weight"].shape[-1]
    n_registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    ffn = "swiglu" if "blocks.0.mlp.w12.weight" in state else "mlp"
    n_heads = math.ceil(dim / 64) if n_heads is None else n_heads
    if not (depth and grid and patch_size and n_heads > 0) or dim % n_heads:
        raise ValueError(f"{depth} blocks of width {dim} with {n_heads} heads, grid {grid}, patch {patch_size}")
    with torch.device("meta"):  # allocates nothing: the file's tensors take these places
        vit = ViT(dim, depth, n_heads, patch_size, grid * patch_size, n_registers, ffn, stem=convs > 0)
    vit.load_state_dict(state, assign=True)
    return vit


# ---------------------------------------------------------------------------- save


def save_vit(vit, out):
    """Write a ViT as the kind of file that the name `out` stands for."""
    out, state = Path(out), vit.state_dict()
    if out.suffix in (".pth", ".pt"):
        write_safely(out, lambda path: torch.save(state, path))
    elif vit.stem:
        raise UserError(f"{out}: timm and Hugging Face have no ViT with a convolutional stem; write a .pth")
    elif out.suffix == ".safetensors":
        save_tensors(to_timm(state), out)
    elif out.suffix:
        raise UserError(f"{out}: OUT must end in .pth, .pt or .safetensors, or be a folder")
    else:
        make_folder(out)
        save_tensors(to_hugging_face(state), out / MODEL)
        write_safely(out / CONFIG, lambda path: path.write_text(json.dumps(hugging_face_config(vit), indent=2)))


def save_tensors(state, out):
    """Write a .safetensors file that PyTorch programs read."""
    state = {key: x.clone(memory_format=torch.contiguous_format) for key, x in state.items()}  # no views
    write_safely(out, lambda path: safetensors.torch.save_file(state, path, {"format": "pt"}))


def hugging_face_config(vit):
    """The config.json of a Dinov2Model or Dinov2WithRegistersModel, where it differs from their defaults."""
    config = {
        "architectures": ["Dinov2Model"], "model_type": "dinov2", "dtype": "float32",
        "hidden_size": vit.embed_dim, "num_hidden_layers": vit.n_blocks, "num_attention_heads": vit.num_heads,
        "use_swiglu_ffn": hasattr(vit.blocks[0].mlp, "w12"), "patch_size": vit.patch_size,
        "image_size": math.isqrt(vit.pos_embed.shape[1] - 1) * vit.patch_size,
    }  # fmt: skip
    if vit.n_registers:
        config |= {"architectures": ["Dinov2WithRegistersModel"], "model_type": "dinov2_with_registers",
                   "num_register_tokens": vit.n_registers}  # fmt: skip
    return config


# ---------------------------------------------------------------------------- names of the tensors

HUGGING_FACE = (  # official name, transformers' name
    ("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"), ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("blocks.", "encoder.layer."),
    ("attn.proj.", "attention.output.dense."), (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"), ("mlp.w12.", "mlp.weights_in."), ("mlp.w3.", "mlp.weights_out."),
    ("norm.", "layernorm."),
)  # fmt: skip
QKV = ("query", "key", "value")  # separate in transformers, one tensor in the official code
TIMM_SWIGLU = (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))


def rename(state, names):
    """A state dict with each pair (old, new) of `names` replaced in its keys."""
    for old, new in names:
        state = {key.replace(old, new): x for key, x in state.items()}
    return state


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
    if "blocks.0.mlp.fc1.weight" in state:
        if len(state["blocks.0.mlp.fc1.weight"]) == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
            state = rename(state, [(theirs, ours) for ours, theirs in TIMM_SWIGLU])
    if not any(key.endswith(".gamma") for key in state):  # DINO's networks have no LayerScale: λ = 1
        for key in [key for key in state if re.fullmatch(r"blocks\.\d+\.norm[12]\.weight", key)]:
            state[key.replace("norm", "ls").replace("weight", "gamma")] = torch.ones_like(state[key])
    state.setdefault("mask_token", torch.zeros_like(state["cls_token"][0]))
    return state


def to_hugging_face(state):
    """Official names -> names of transformers' Dinov2Model and Dinov2WithRegistersModel."""
    state = dict(state)
    for key in [key for key in state if ".attn.qkv." in key]:
        for part, value in zip(QKV, state.pop(key).chunk(3)):
            state[key.replace("attn.qkv", f"attention.attention.{part}")] = value
    return rename(state, HUGGING_FACE)


def to_timm(state):
    """Official names -> names of timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2."""
    state = {key: x for key, x in state.items() if key != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return rename(state, TIMM_SWIGLU)


# ---------------------------------------------------------------------------- the program


@report_errors("support.weights")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="support.weights", description="Convert the weights of a ViT to another kind of file.")
    parser.add_argument("input", metavar="IN", help="an official name, a file or a folder of weights")
    parser.add_argument("output", metavar="OUT", type=Path,
                        help=".pth, .pt: official; .safetensors: timm; a folder: Hugging Face")  # fmt: skip
    options = parser.parse_args(argv)
    if options.output.suffix:
        check_out(options.output)
    save_vit(load_vit(options.input), options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
