"""Which patch of one image is which of another: mutual nearest neighbours among the foreground. (§7.5, Fig. 10)

    i ↔ j    where  j = argmax_j' ⟨a_i, b_j'⟩  and  i = argmax_i' ⟨a_i', b_j⟩

    a  (N, D)   patch features of the one image, of length 1
    b  (M, D)   those of the other

The paper draws the salient ones only, by non-maximum suppression: of matches that begin close to each other,
the one of the largest cosine.
"""

import math

import torch
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


def part_agreement(tokens, parts, labels):
    """How many mutual matches of two pictures of a kind lie on the same part, and how many would by chance (ours).

    tokens (I, N, D), the part of each patch (I, N), 0 the ground, labels (I,): the pictures of each kind are taken two
    by two, their true foregrounds matched.  Chance is two foreground patches of the two pictures drawn at random.
    Shares in [0, 1], NaN without a match.
    """
    counts = torch.zeros(3)  # matches, those on the same part, those expected by chance
    for kind in labels.unique():
        rows = (labels == kind).nonzero()[:, 0].tolist()
        for i, j in zip(rows[::2], rows[1::2]):
            found = parts[i] > 0, parts[j] > 0
            pairs, _ = mutual_matches(tokens[i], tokens[j], *found)
            same = (parts[i][pairs[:, 0]] == parts[j][pairs[:, 1]]).sum()
            chance = (parts[i][found[0]][:, None] == parts[j][found[1]]).float().mean() if len(pairs) else 0
            counts += torch.tensor([len(pairs), same, chance * len(pairs)])
    n, agreed, expected = counts.tolist()
    return (agreed / n, expected / n) if n else (math.nan, math.nan)
