"""Draw docs/method.png: one step of DINOv2 on one built-in image, with the file of each part.

    python -m docs.draw_method

The crops and masks are made by the functions and with the values of the default recipe.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from augment import MEAN, STD
from masking import sample_masks
from recipes import get_recipe
from support.images import load_images
from support.start import make_crop

IMAGE, SEED = 13, 0  # of the test images; of the crops and the masks
STUDENT, TEACHER, WHITE, GREY = "#CDE4F2", "#FBE3B5", "#FFFFFF", "#EEEEEE"  # student blue, teacher orange


def make_views():
    """An image (64, 64, 3), its global crops (2, 32, 32, 3), the same masked, its local crops (2, 16, 16, 3)."""
    r, generator = get_recipe("shapes"), torch.Generator().manual_seed(SEED)
    image = load_images(r.data, "test", r.image_size).pixels[IMAGE]  # (3, 64, 64)
    mean, std = torch.tensor((MEAN, STD))[:, :, None, None]  # (3, 1, 1)
    views = make_crop(r, r.global_size)(image[None], generator)
    globals_, locals_ = ((x * std + mean).clamp(0, 1).permute(0, 2, 3, 1) for x in views)
    grid = r.global_size // r.patch_size
    masks = sample_masks(2, grid, grid, r.mask_ratio, r.mask_probability, generator).view(2, grid, grid)
    masks = masks.repeat_interleave(r.patch_size, 1).repeat_interleave(r.patch_size, 2)  # (2, 32, 32)
    return image.permute(1, 2, 0), globals_, globals_.masked_fill(masks[..., None], 0.6), locals_


def show(axes, image, x, y, side):
    """Draw an image with its upper left corner at (x, y)."""
    axes.imshow(image, extent=(x, x + side, y + side, y))


def box(axes, x, y, width, colour, words, file):
    """Draw a box with its upper left corner at (x, y): what a part does, and its file."""
    shape = FancyBboxPatch((x, y), width, 8, "round,pad=0,rounding_size=1", facecolor=colour, edgecolor="0.4")
    axes.add_patch(shape)
    write(axes, x + width / 2, y + 2.5, words)
    write(axes, x + width / 2, y + 5.8, file, family="monospace", weight="bold")


def write(axes, x, y, words, **look):
    """Write words around the point (x, y)."""
    axes.text(x, y, words, ha="center", va="center", fontsize=11, **look)


def arrow(axes, *points, **look):
    """Draw an arrow along points."""
    axes.plot(*zip(*points), **{"color": "0.25", "linewidth": 1.5, **look})
    head = {"arrowstyle": "-|>", "color": "0.25", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
    (x, y), (end_x, end_y) = points[-2:]
    axes.annotate("", points[-1], ((x + 3 * end_x) / 4, (y + 3 * end_y) / 4), arrowprops=head)


def main():
    """Draw the picture."""
    image, globals_, masked, locals_ = make_views()
    figure = Figure(figsize=(8.3, 8.6))
    axes = figure.add_axes((0, 0, 1, 1))

    show(axes, image, 1, 1, 15)
    box(axes, 21, 4.5, 18, GREY, "random crops", "augment.py")
    box(axes, 1, 24, 13.5, GREY, "masks", "masking.py")
    for i in range(2):
        show(axes, globals_[i], 44 + 12.5 * i, 2.5, 12)
        show(axes, locals_[i], 73, 2.5 + 6.2 * i, 5.8)
        show(axes, masked[i], 16 + 10.5 * i, 23, 10)
        show(axes, locals_[i], 37.5, 23 + 5.2 * i, 4.8)
        show(axes, globals_[i], 60 + 10.5 * i, 23, 10)

    box(axes, 1, 37, 47, STUDENT, "student", "vit.py")
    box(axes, 58, 37, 24, TEACHER, "teacher", "vit.py")
    box(axes, 17, 51, 14, STUDENT, "patch head", "head.py")
    box(axes, 34, 51, 14, STUDENT, "image head", "head.py")
    box(axes, 58, 51, 24, TEACHER, "both heads", "head.py")
    box(axes, 58, 62, 24, TEACHER, "balanced targets", "sinkhorn.py")
    box(axes, 1, 66, 14, WHITE, "$L_{KoLeo}$", "koleo.py")
    box(axes, 17, 66, 14, WHITE, "$L_{iBOT}$", "ibot_loss.py")
    box(axes, 34, 66, 14, WHITE, "$L_{DINO}$", "dino_loss.py")
    box(axes, 1, 77, 47, WHITE, "sum of losses, step of the student", "train.py, optimizer.py")

    for points in (((16.5, 8.5), (21, 8.5)), ((39, 8.5), (43.5, 8.5)), ((14.5, 28), (16, 28)),
                   ((82, 18.4), (44, 18.4), (28, 22.5)), ((64, 18.4), (70, 22.5)),
                   ((24, 33.5), (24, 37)), ((70, 33.5), (70, 37)), ((8, 45), (8, 66)), ((21, 45), (21, 51)),
                   ((38, 45), (38, 51)), ((64, 45), (64, 51)), ((76, 45), (76, 51)), ((70, 59), (70, 62)),
                   ((21, 59), (21, 66)), ((58, 64.4), (44, 64.4), (44, 66)), ((58, 63), (27, 63), (27, 66)),
                   ((8, 74), (8, 77)), ((24, 74), (24, 77)), ((41, 74), (41, 77))):
        arrow(axes, *points)
    axes.plot([38, 38], [62.3, 63.7], color="white", linewidth=9)  # this arrow crosses another one
    arrow(axes, (38, 59), (38, 66))
    arrow(axes, (48, 41), (58, 41), linestyle="--")
    for x, y, words in ((55.2, 16.7, "2 global crops"), (76, 16.7, "2 local crops"), (53, 37.8, "moving\naverage"),
                        (13.6, 48, "[CLS],\nglobal crops"), (25.5, 48, "patches"), (42, 48, "[CLS]"),
                        (60.5, 48, "[CLS]"), (71.5, 48, "patches"), (53, 61.3, "of patches"),
                        (53, 66, "of [CLS]"), (30, 19, "all crops"),
                        (75, 20, "global only")):
        write(axes, x, y, words)
    write(axes, 53, 43.3, "train.py", family="monospace", weight="bold")
    axes.set(xlim=(0, 83), ylim=(86, 0))
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("method.png"), dpi=200)


if __name__ == "__main__":
    main()
