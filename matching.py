"""Which patch of one image is which of another: mutual nearest neighbours among the foreground. (§7.5, Fig. 10)

    i ↔ j    where  j = argmax_j' ⟨a_i, b_j'⟩  and  i = argmax_i' ⟨a_i', b_j⟩

    a  (N, D)   patch features of the one image, of length 1
    b  (M, D)   those of the other

The paper draws the salient ones only, by non-maximum suppression: of matches that begin close to each other,
the one of the largest cosine.
"""

import torch
from einops import rearrange
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch.nn import functional as F


def mutual_matches(a, b, foreground_a, foreground_b):
    """(N, D), (M, D) features and (N,), (M,) bool -> pairs (P, 2) of patch numbers, and their cosines (P,).

    Only patches of the two foregrounds take part; P may be 0.  Of equal cosines the first patch is the nearest.
    """
    rows, columns = foreground_a.nonzero()[:, 0], foreground_b.nonzero()[:, 0]  # (N',), (M',)
    if len(rows) == 0 or len(columns) == 0:
        return torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
    cosine = F.normalize(a[rows].double(), dim=1) @ F.normalize(b[columns].double(), dim=1).T  # (N', M')
    there, back = cosine.argmax(1), cosine.argmax(0)  # (N',), (M',)
    i = torch.arange(len(rows))
    mutual = back[there] == i
    i, j = i[mutual], there[mutual]
    return torch.stack([rows[i], columns[j]], dim=1), cosine[i, j]


def spread_out(pairs, cosine, grids, share=0.08):
    """Pairs (P, 2) -> those left by non-maximum suppression, the largest cosine first.

    A pair is dropped where a better one begins or ends within `share` of the grid's longer side (ours).
    grids: (h, w) of the two images.
    """
    order = cosine.argsort(descending=True, stable=True)
    places = [torch.stack([pairs[:, v] // w, pairs[:, v] % w], dim=1) for v, (_, w) in enumerate(grids)]  # (P, 2) each
    reach = [share * max(grid) for grid in grids]
    kept = []
    for p in order.tolist():
        near = (((xy[kept] - xy[p]).abs().amax(1) <= r).any() for xy, r in zip(places, reach))
        if not any(near):
            kept.append(p)
    return pairs[kept]


def draw_matches(images, grids, pairs):
    """A figure of two images (3, H, W) uint8 side by side, and a line for each pair of patch numbers (P, 2)."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, image in zip(axes, images):
        ax.imshow(rearrange(image, "c h w -> h w c").cpu().numpy())
        ax.axis("off")
    for n, pair in enumerate(pairs.tolist()):
        ends = []
        for patch, image, (h, w) in zip(pair, images, grids):
            row, column = divmod(patch, w)
            ends.append(((column + 0.5) * image.shape[2] / w, (row + 0.5) * image.shape[1] / h))
        colour = colormaps["hsv"](n / len(pairs))
        figure.add_artist(ConnectionPatch(ends[0], ends[1], "data", "data", axesA=axes[0], axesB=axes[1],
                                          color=colour, linewidth=1.2))  # fmt: skip
        for ax, (x, y) in zip(axes, ends):
            ax.plot(x, y, "o", color=colour, markersize=3)
    return figure
