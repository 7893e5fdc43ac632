"""Write a page: point at a patch, and see the most similar patches of all pictures. (DINOv2 §7.5, Fig. 10)

    python explore.py IMAGE [IMAGE ...] --weights runs/mine/vit.pt --out explore.html

    cos(x, y) ≈ a · b / 32,767²      a, b = round(32,767 Vᵀx), round(32,767 Vᵀy)

    x, y  (D,)    features of two patches, each of length 1
    V     (D, k)  the first k principal components of all patches, not centred, so that products stay cosines
"""

import base64
import io
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from attention import cls_attention
from evaluate import frozen_features
from pca_viz import PAIRS_PER_ROW, drawn_classes, fine_tokens, open_images, patch_parts, pca_rgb
from support.cli import Parser, report_errors
from support.files import say_once, write_safely
from support.images import read_images
from support.shapes import PARTS

MOST, SIDE = 64, 32  # ours: pictures of a page; patches along a picture's side, 1,024 in all
COMPONENTS, BYTES = 64, 1_800_000  # ours: components at most; bytes of all features, so that a page stays below 3 MB


def quantize(tokens):
    """Patch tokens (I, N, D) -> their codes a (I, N, k) int16."""
    x = F.normalize(tokens.double(), dim=2)
    V = torch.linalg.eigh(x.flatten(0, 1).T @ x.flatten(0, 1))[1].flip(1)[:, :COMPONENTS]  # (D, k)
    return (32767 * x @ V).round().short()  # 8 bits would change the best match of one patch in ten


def encode(x):
    """The bytes of a tensor as base64 text."""
    return base64.b64encode(x.contiguous().numpy().tobytes()).decode()


def write_split(vit, images, size, path):
    """Write the page of the pictures of a split that pca.png shows."""
    labels, drawn = drawn_classes(images)
    rows = torch.cat([(labels == label).nonzero()[:PAIRS_PER_ROW, 0] for label in drawn])
    write_page(vit, images.pixels[rows], size, path, None if images.parts is None else images.parts[rows])


def write_page(vit, images, size, path, parts=None):
    """Write the page of images (I, 3, S, S) uint8, seen by the network at size² pixels; parts: (I, S, S) or None."""
    side = min(SIDE, math.isqrt(BYTES // (2 * COMPONENTS * len(images)))) // 2 * 2  # even: fine_tokens doubles patches
    wanted, size = size, min(size, side // 2 * vit.patch_size)
    if size < wanted:
        say_once(f"explore.html: images are seen at {size} pixels, not {wanted}; a page of {len(images)} has at most "
                 f"{side * side:,} patches an image")  # fmt: skip
    tokens = torch.cat([fine_tokens(vit, image[None], size) for image in images])  # (I, N, D)
    cls = F.normalize(frozen_features(vit, images, size, batch=1), dim=1)  # (I, D)
    attention = frozen_features(vit, images, size, lambda vit, x: cls_attention(vit, x, vit.n_blocks - 1).mean(1), 1)
    rgb, foreground = pca_rgb(tokens)
    about = (f"The features of a ViT {vit.embed_dim} wide and {vit.n_blocks} deep, of pictures of {size}² pixels in "
             f"patches of {vit.patch_size}², shifted by half a patch.")  # fmt: skip
    data = {"about": about, "side": math.isqrt(tokens.shape[1]), "features": encode(quantize(tokens)),
            "rgb": encode((rgb * 255).byte()), "foreground": encode(foreground.byte()), "pictures": [],
            "attention": encode((attention / attention.amax(1, keepdim=True) * 255).byte()),
            "cls": (cls @ cls.T).double().round(decimals=3).tolist()}  # fmt: skip
    if parts is not None:
        data |= {"names": ["ground", *PARTS], "parts": encode(patch_parts(parts, data["side"], data["side"]).byte())}
    for image in images:
        file = io.BytesIO()
        jpeg = Image.fromarray(image.permute(1, 2, 0).numpy())
        jpeg.thumbnail((size, size))
        jpeg.save(file, "JPEG", quality=85)
        data["pictures"].append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    head = "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><body>"
    page = f"{head}<script>const DATA = {json.dumps(data)};\n{script}</script>"
    write_safely(path, lambda new: new.write_text(page, encoding="utf-8"))


@report_errors("explore.py", ValueError)
def main(argv=None):
    """Write the page that the command line asks for, and return the exit status."""
    parser = Parser(prog="explore.py", description="Write a page: point at a patch, and see the most similar ones.")
    args, vit = open_images(parser, argv, "explore.html")
    images = read_images(args.images, vit.img_size, vit.patch_size, scale=args.scale, most=MOST)
    write_page(vit, torch.stack(images), vit.img_size, args.out)
    print(f"{len(images)} images, {args.out.stat().st_size / 1e6:.1f} MB: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
