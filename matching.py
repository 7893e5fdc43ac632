"""Match the patches of two images: mutual nearest neighbours in the foreground. (DINOv2 §7.5, Fig. 10)

    i ↔ j    where  j = argmax_j' ⟨a_i, b_j'⟩  and  i = argmax_i' ⟨a_i', b_j⟩

    a  (N, D)   patch features of one image, of unit length
    b  (M, D)   patch features of the other image, of unit length

Ours.  The paper (§7.5) solves an assignment problem on Euclidean distances: docs/official.md compares the two.
"""

import torch
from torch.nn import functional as F


def mutual_matches(a, b, foreground_a, foreground_b):
    """Pairs (P, 2) of patch numbers, and their cosines (P,), of foreground patches only; P may be 0.

    a, b: (N, D), (M, D).  foreground_a, foreground_b: (N,), (M,) bool.  Of equal cosines the first patch wins.
    """
    cosine = F.normalize(a.double(), dim=1) @ F.normalize(b.double(), dim=1).T  # (N, M)
    cosine[~(foreground_a[:, None] & foreground_b)] = -torch.inf
    there, back = cosine.argmax(1), cosine.argmax(0)  # (N,), (M,)
    i = torch.arange(len(a))
    mutual = (back[there] == i) & foreground_a & foreground_b[there]  # none where a foreground is empty
    return torch.stack([i, there], dim=1)[mutual], cosine[i, there][mutual]


def suppress_close(pairs, cosine, grids, share=0.08):
    """Non-maximum suppression, as in the paper: pairs (P, 2) -> the pairs that stay, largest cosine first.

    From the best pair on, a pair is dropped if it starts or ends near one that was kept: within `share` of the
    grid's longer side (ours).  grids: (h, w) of the two images.
    """
    close = torch.zeros(len(pairs), len(pairs), dtype=torch.bool)
    for patch, (h, w) in zip(pairs.T, grids):
        place = torch.stack([patch // w, patch % w], dim=1)  # (P, 2)
        close |= (place[:, None] - place).abs().amax(2) <= share * max(h, w)  # (P, P)
    kept = []
    for p in cosine.argsort(descending=True, stable=True).tolist():
        if not close[p, kept].any():
            kept.append(p)
    return pairs[kept]


def part_agreement(tokens, parts, labels):
    """The share of matches that connect equal parts, and the share expected by chance (ours).

    tokens (I, N, D), part of each patch (I, N) with 0 for the ground, labels (I,).  Consecutive images of a class are
    matched in pairs, by their true foregrounds.  Chance: two random foreground patches.  Both NaN without a match.
    """
    counts = torch.zeros(3)  # matches, matches of equal parts, those expected by chance
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0].tolist()
        for i, j in zip(rows[::2], rows[1::2]):
            inside = parts[i] > 0, parts[j] > 0
            pairs, _ = mutual_matches(tokens[i], tokens[j], *inside)
            same = (parts[i][pairs[:, 0]] == parts[j][pairs[:, 1]]).sum()
            chance = (parts[i][inside[0]][:, None] == parts[j][inside[1]]).float().mean() if len(pairs) else 0
            counts += torch.tensor([len(pairs), same, chance * len(pairs)])
    return tuple((counts[1:].double() / counts[0].double()).tolist())
