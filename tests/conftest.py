"""The repository root on the import path, so that `pytest` finds the flat scripts from anywhere; what tests share."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


def kept_for_backward(f):
    """Shapes and types of the tensors that f() keeps for its backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append((x.shape, x.dtype)) or x, lambda x: x):
        f()
    return kept
