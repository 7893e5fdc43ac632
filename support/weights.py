"""Weights of a ViT, in every file that we know: official ones, those of torch.hub, of other libraries, and our own.

    python -m support.weights IN OUT           any of them as any other:

    OUT.pth, OUT.pt      the official keys, which are those of `ViT`; the official code and torch.hub
    OUT/                 config.json and model.safetensors: AutoModel.from_pretrained of Hugging Face transformers
    OUT.safetensors      timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2
    OUT.onnx             ONNX, for pictures of any size, or with --image_size H W of one

Nothing in a file is executed.
"""

import json
import math
import re
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from support.checkpoint import Damaged, read_tensors
from support.cli import Parser, positive, report_errors
from support.files import UserError, check_out, check_regular, make_folder, write_safely
from vit import ViT

MODEL, CONFIG = "model.safetensors", "config.json"  # of a folder of Hugging Face's

# ---------------------------------------------------------------------------- in


def load_vit(name_or_path, device="cpu"):
    """A ViT in eval mode, float32, from an official name or file, another library's, or our vit.pt or checkpoint.pt.

    Names: dinov2_vits14, dinov2_vitb14, dinov2_vitl14, dinov2_vitg14, and each with _reg; fetched once into
    torch's hub cache.  Files: official weights of DINOv2 and DINO, training checkpoints (their teacher), Hugging
    Face's and timm's .safetensors, a folder of Hugging Face's.  The architecture is read off the tensors, with heads
    of 64, or a little less where that does not divide the width (vit_pico: 48).  Positions are resized as in the hub's
    models, since no file says how: set `.antialias = False` for registers out of the official training, whose default
    that is.  Raises FileNotFoundError or ValueError, each with one line that says what is wrong.
    """
    state, n_heads = read_state(str(name_or_path))
    try:
        dim, grid = state["cls_token"].shape[-1], math.isqrt(state["pos_embed"].shape[1] - 1)
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        stem = [key for key in state if re.fullmatch(r"patch_embed\.stem\.\d+\.conv\.weight", key)]
        patch_size = 2 ** (len(stem) - 1) if stem else state["patch_embed.proj.weight"].shape[-1]
        n_registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
        ffn = "swiglu" if "blocks.0.mlp.w12.weight" in state else "mlp"
        n_heads = math.ceil(dim / 64) if n_heads is None else n_heads
        if not dim * depth * patch_size * grid or n_heads < 1 or dim % n_heads:
            raise ValueError(f"{depth} blocks of width {dim} with {n_heads} heads, grid {grid}, patch {patch_size}")
        with torch.device("meta"):  # no memory: the tensors of the file take their places
            vit = ViT(dim, depth, n_heads, patch_size, grid * patch_size, n_registers, ffn, stem=bool(stem))
        vit.load_state_dict(state, assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise not_a_vit(name_or_path, error) from None
    return vit.float().eval().to(device)


def given_vit(name_or_path, device="cpu"):
    """As load_vit, for a program: UserError for what cannot be read."""
    try:
        return load_vit(name_or_path, device)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None


def read_state(name_or_path):
    """The state dict of a ViT in official keys, from any of the files that load_vit takes, and its heads or None."""
    path, n_heads = name_or_path, None
    if re.fullmatch(r"dinov2_vit[sblg]14(_reg)?", name_or_path):
        path = fetch(name_or_path)
    elif Path(path, MODEL).exists():
        path = Path(path, MODEL)
    try:
        if (config := Path(path).with_name(CONFIG)).exists() and Path(path).name == MODEL:
            n_heads = json.loads(config.read_text()).get("num_attention_heads")  # timm's config.json has none
        if str(path).endswith(".safetensors"):
            check_regular(path)
            state = safetensors.torch.load_file(path)
        else:
            state = read_tensors(path)
    except Damaged as error:
        raise ValueError(str(error)) from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no weights at {name_or_path}: neither a file nor an official name") from None
    except Exception:  # they raise half a dozen kinds for a file that is not their own
        raise ValueError(f"{path} is not a weights file of PyTorch or safetensors") from None
    if not isinstance(state, dict):
        raise ValueError(f"{name_or_path} holds a {type(state).__name__}, not named tensors")
    try:
        state = unwrap(state)
        for key, value in state.items():
            if not value.is_floating_point() or value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"{key} is no tensor of real numbers")
            if not value.isfinite().all():
                raise ValueError(f"{key} holds NaN or infinity")
        return official(state), n_heads
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise not_a_vit(name_or_path, error) from None


def not_a_vit(name, error):
    """The one line for a file with other things in it."""
    return ValueError(f"{name} does not hold the weights of a DINOv2 ViT ({' '.join(str(error).split())[:200]})")


def fetch(name):
    """The file of an official name, in torch's hub cache; fetched if it is not there."""
    file = f"{name.replace('_reg', '_reg4')}_pretrain.pth"
    address = f"https://dl.fbaipublicfiles.com/dinov2/{name.removesuffix('_reg')}/{file}"
    place = Path(torch.hub.get_dir(), "checkpoints", file)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(place))
        except OSError:
            raise FileNotFoundError(f"cannot fetch {address}; put the file at {place}") from None
    return place


# ---------------------------------------------------------------------------- out


def save_vit(vit, out, image_size=None):
    """Write a ViT as the kind of file that the name `out` stands for; whole or not at all.

    image_size: (height, width) of an .onnx for that size alone.
    """
    out, state = Path(out), {key: x.contiguous() for key, x in vit.state_dict().items()}
    if out.suffix in ("", ".safetensors") and vit.stem:
        raise UserError(f"{out}: neither timm nor Hugging Face has a ViT with a convolutional stem")
    if out.suffix in (".pth", ".pt"):
        write_safely(out, lambda path: torch.save(state, path))
    elif out.suffix == ".safetensors":
        write_safely(out, lambda path: save_tensors(to_timm(state), path))
    elif out.suffix == ".onnx":
        save_onnx(vit, out, image_size)
    elif out.suffix:
        raise UserError(f"{out}: OUT ends in .pth, .pt, .safetensors or .onnx, or is a folder")
    else:
        make_folder(out)
        write_safely(out / MODEL, lambda path: save_tensors(to_hugging_face(state), path))
        write_safely(out / CONFIG, lambda path: path.write_text(json.dumps(hugging_face_config(vit), indent=2)))


def save_tensors(state, path):
    """A .safetensors file that PyTorch programs take."""
    safetensors.torch.save_file({key: x.clone() for key, x in state.items()}, path, {"format": "pt"})  # views share


def hugging_face_config(vit):
    """What config.json of a Dinov2Model or Dinov2WithRegistersModel says of a ViT."""
    block, kind = vit.blocks[0], "WithRegisters" if vit.n_registers else ""
    return {
        "architectures": [f"Dinov2{kind}Model"], "model_type": "dinov2_with_registers" if kind else "dinov2",
        "hidden_size": vit.embed_dim, "num_hidden_layers": len(vit.blocks), "num_attention_heads": block.attn.n_heads,
        "mlp_ratio": 4, "hidden_act": "gelu", "use_swiglu_ffn": hasattr(block.mlp, "w12"), "qkv_bias": True,
        "layer_norm_eps": block.norm1.eps, "layerscale_value": 1.0, "drop_path_rate": 0.0,
        "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "initializer_range": 0.02,
        "image_size": math.isqrt(vit.pos_embed.shape[1] - 1) * vit.patch_size, "patch_size": vit.patch_size,
        "num_channels": 3, **({"num_register_tokens": vit.n_registers} if kind else {}), "dtype": "float32",
    }  # fmt: skip


OUTPUTS = ("x_norm_clstoken", "x_norm_patchtokens", "x_norm_regtokens")  # of an ONNX file; the last where there are any


class Tokens(nn.Module):
    """What an ONNX file computes: images (B, 3, H, W) -> [CLS] (B, D), patches (B, N, D), and registers (B, R, D)."""

    def __init__(self, vit):
        super().__init__()
        self.vit, self.outputs = vit, OUTPUTS if vit.n_registers else OUTPUTS[:2]

    def forward(self, images):
        out = self.vit.forward_features(images)
        return tuple(out[name] for name in self.outputs)


def save_onnx(vit, out, image_size=None):
    """An ONNX file for batches of any size, of pictures of any size in whole patches, or of image_size alone."""
    if image_size is None and not vit.antialias:
        raise UserError("ONNX has no resize by a factor, as networks without registers do with positions; "
                        "give --image_size HEIGHT WIDTH")  # fmt: skip
    if sum(x.nbytes for x in vit.state_dict().values()) > 2**31:
        raise UserError(f"{out}: more than the 2 GiB that an ONNX file can hold")
    network, P = Tokens(vit).eval(), vit.patch_size
    height, width = image_size or (2 * P, 3 * P)  # of an example
    if height % P or width % P:
        raise UserError(f"--image_size {height} {width} does not divide into patches of {P}")
    sides = {0: torch.export.Dim("batch")}
    if image_size is None:
        sides |= {2: P * torch.export.Dim("rows", max=10_000), 3: P * torch.export.Dim("columns", max=10_000)}
    try:
        program = torch.onnx.export(
            network, (torch.zeros(2, 3, height, width),), dynamo=True, verbose=False, dynamic_shapes=(sides,),
            input_names=["images"], output_names=network.outputs)  # fmt: skip
    except ImportError:
        raise UserError("to write ONNX: pip install onnx onnxscript") from None
    write_safely(out, program.save)


# ---------------------------------------------------------------------------- the program


@report_errors("support.weights")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="support.weights", description="Write the weights of a ViT as another kind of file.")
    parser.add_argument("input", metavar="IN", help="an official name, a file or a folder of weights")
    parser.add_argument("output", metavar="OUT", type=Path,
                        help=".pth, .pt: official; .safetensors: timm; .onnx; a folder: Hugging Face")  # fmt: skip
    parser.add_argument("--image_size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"),
                        help="the one size of an .onnx (default: any, where the network has registers)")  # fmt: skip
    options = parser.parse_args(argv)
    if options.output.suffix:
        check_out(options.output)
    save_vit(given_vit(options.input), options.output, options.image_size)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())


WORDS = (  # official, Hugging Face
    ("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"), ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("blocks.", "encoder.layer."),
    ("attn.proj.", "attention.output.dense."), (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"), ("mlp.w12.", "mlp.weights_in."), ("mlp.w3.", "mlp.weights_out."),
    ("norm.", "layernorm."),
)  # fmt: skip
QKV = ("query", "key", "value")
WRAPPERS = ("teacher", "model", "state_dict")  # a file may hold the tensors under one of these, or one in another
INSERTED = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "module.")  # by PyTorch, anywhere


def unwrap(state):
    """The named tensors of one ViT, in whatever names, of all that a file holds; LookupError if there are none.

    Of teacher and student it is the teacher; heads beside a backbone are left out, chunks of blocks joined.
    """
    for _ in range(2):
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    state = {str(key): value for key, value in state.items()}
    for word in INSERTED:
        state = {key.replace(word, ""): value for key, value in state.items()}
    if any("_flat_param" in key for key in state):
        raise LookupError("these are the shards of one process; take the teacher_checkpoint.pth of an evaluation")
    found = [key for key in state if re.search(r"(^|\.)cls_token$", key)]
    if not found:
        raise LookupError("there is no cls_token in it")
    if not any(key.endswith(("pos_embed", "position_embeddings")) for key in state):
        raise LookupError("there are no positions in it; RoPE, as in DINOv3, is not supported")
    key = min(found, key=lambda key: ("teacher" not in key, len(key)))
    prefix = key.removesuffix("cls_token").removesuffix("embeddings.")
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): value for key, value in state.items()}


def official(state):
    """The tensors of a ViT in any of the three names, with official ones."""
    if "embeddings.cls_token" in state:
        state = from_hugging_face(state)
    state = from_timm(state)
    if not any(key.endswith(".gamma") for key in state):
        for key in [key for key in state if re.fullmatch(r"blocks\.\d+\.norm[12]\.weight", key)]:
            state[key.replace("norm", "ls").replace("weight", "gamma")] = torch.ones_like(state[key])
    state.setdefault("mask_token", torch.zeros_like(state["cls_token"][0]))
    return state


def from_hugging_face(state):
    """Names of transformers' Dinov2Model and Dinov2WithRegistersModel -> official names."""
    for ours, theirs in WORDS:
        state = {key.replace(theirs, ours): value for key, value in state.items()}
    for key in [key for key in state if ".attention.attention.query." in key]:
        parts = [state.pop(key.replace("query", part)) for part in QKV]
        state[key.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return state


def to_hugging_face(state):
    """Official names -> names of transformers' Dinov2Model and Dinov2WithRegistersModel."""
    state = dict(state)
    for key in [key for key in state if ".attn.qkv." in key]:
        for part, value in zip(QKV, state.pop(key).chunk(3)):
            state[key.replace("attn.qkv", f"attention.attention.{part}")] = value
    for ours, theirs in WORDS:
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    return state


def from_timm(state):
    """timm's names -> official names; official ones stay."""
    state = dict(state)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)
    first, second = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if first is not None and second is not None and len(first) == 2 * second.shape[1]:
        state = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): x for key, x in state.items()}
    return state


def to_timm(state):
    """Official names -> those of timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2."""
    state = {key: value for key, value in state.items() if key != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return {key.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): x for key, x in state.items()}
