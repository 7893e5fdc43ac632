"""Ours and the paper's way (§7.5) to match patches, and to find the foreground, on trained default runs.

    pip install scipy && python -m docs.experiments.matching runs/shapes/vit.pt [more ...]     SEED of run i is i
"""

import sys

import torch
from scipy.optimize import linear_sum_assignment

import matching
from pca_viz import PER_CLASS, fine_tokens, foreground_iou, patch_parts, pca_rgb
from support.images import load_splits
from support.weights import load_vit

SIZE = 96


def assignment(a, b, foreground_a, foreground_b):
    """The paper's pairs (P, 2): the assignment of foreground patches with the least sum of Euclidean distances."""
    i, j = foreground_a.nonzero()[:, 0], foreground_b.nonzero()[:, 0]
    distance = torch.cdist(a[i].double(), b[j].double())
    rows, columns = linear_sum_assignment(distance.numpy())
    return torch.stack([i[rows], j[columns]], dim=1), -distance[rows, columns]


def positive(tokens):
    """The paper's foreground (I, N): a positive first component, by its better sign."""
    x = tokens.double().flatten(0, 1)
    x = x - x.mean(0)
    y = (x @ torch.linalg.eigh(x.T @ x)[1][:, -1]).view(tokens.shape[:2])
    return y > 0, y < 0


mutual = matching.mutual_matches
for seed, path in enumerate(sys.argv[1:]):
    test, vit = load_splits("shapes", SIZE, seed)[1], load_vit(path)
    rows = torch.cat([(test.labels == label).nonzero()[:PER_CLASS, 0] for label in test.labels.unique()])
    tokens = torch.cat([fine_tokens(vit, test.pixels[group], SIZE) for group in rows.split(PER_CLASS)])
    parts = patch_parts(test.parts[rows], 24, 24)
    for matching.mutual_matches in (mutual, assignment):
        agreement, _ = matching.part_agreement(tokens, parts, test.labels[rows])
        print(f"{path}: part agreement by {matching.mutual_matches.__name__} {agreement:.3f}")
    ours, theirs = pca_rgb(tokens)[1], max(foreground_iou(side, parts > 0) for side in positive(tokens))
    print(f"{path}: foreground IoU, ours {foreground_iou(ours, parts > 0):.3f}, positive component {theirs:.3f}")
