"""What other libraries call a ViT's tensors, to the official names, which are those of `ViT`, and back.

    official          Hugging Face transformers                     timm
    blocks.3.         encoder.layer.3.                              blocks.3.
    attn.qkv          attention.attention.query, .key, .value       attn.qkv
    mlp.w12, mlp.w3   mlp.weights_in, mlp.weights_out               mlp.fc1, mlp.fc2: twice as wide as fc2 takes
    register_tokens   embeddings.register_tokens                    reg_token; then [CLS] has no place of its own

timm has no mask token: zeros.  DINO's networks (v1) have neither that nor LayerScale: ones.
"""

import re

import torch

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
