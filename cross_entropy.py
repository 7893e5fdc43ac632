"""The cross-entropy that the image-level and the patch-level objective share (§4).

    H(p, softmax(z/τ)) = − Σ_k p_k log softmax(z/τ)_k          for each row

    z  logits   (R, K)   scores of R [CLS] tokens or patches for K prototypes
    p  targets  (R, K)   a row sums to n, which need not be 1
    τ  temp              temperature

In plain PyTorch that is `-(p * (z / τ).log_softmax(dim=1)).sum(dim=1)`, and this file computes nothing else.  But K is
large, up to 131,072, and autograd would keep two matrices (R, K) in float32 until the backward pass.  The gradient

    ∂H/∂z = (n · softmax(z/τ) − p) / τ

is made of the same numbers, so it is found with the value, and is all that is kept.  It is the project's one operation
with a gradient of its own.
"""

import torch
from torch.autograd.function import once_differentiable

CACHED = 2**21  # logits at once on a CPU, ours: about what stays in its cache; a GPU takes all rows at once


def cross_entropy(logits, targets, temp):
    """H(p, softmax(z/τ)) of each row in float32: (R, K), (R, K), τ > 0 -> (R,).  No gradient for the targets.

    >>> z, p = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 0.0]])  # softmax(z) = (1/4, 3/4)
    >>> round(cross_entropy(z, p, temp=1.0).exp().item(), 4)
    4.0
    """
    return CrossEntropy.apply(logits, targets, temp)


class CrossEntropy(torch.autograd.Function):
    """The value and, in the logits' type, the gradient."""

    @staticmethod
    def forward(ctx, logits, targets, temp):
        """H (R,); ∂H/∂z (R, K) is kept."""
        R, K = logits.shape
        H, grad = torch.empty(R, device=logits.device), torch.empty_like(logits)
        rows = max(1, CACHED // K if logits.device.type == "cpu" else R)
        for z, p, h, g in zip(*(x.split(rows) for x in (logits, targets, H, grad)), strict=True):
            p, log_s = p.float(), (z.float() / temp).log_softmax(dim=1)
            h.copy_((p * log_s).sum(dim=1).neg_())
            n, s = p.sum(dim=1, keepdim=True), log_s.exp_()  # softmax(z/τ), in the place of its logarithm
            g.copy_(s.mul_(n).sub_(p).div_(temp))
        ctx.save_for_backward(grad)
        return H

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        """d = ∂L/∂H (R,) -> d ⊙ ∂H/∂z, for the logits alone."""
        (grad,) = ctx.saved_tensors
        return grad * d[:, None].to(grad.dtype), None, None
