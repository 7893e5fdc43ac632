"""Patch-level objective (§4, "Patch-level objective"; Zhou et al., iBOT, 2022).

    L_iBOT = − Σ_i p_ti log p_si,        p_si = softmax(z_si / τ_s)

where i runs over the masked patches: the student sees a mask token at i, the teacher the patch itself.

    z_s  student_logits  (M, K)    student logits of the M masked patches of the batch; K prototypes
    p_t  teacher_probs   (M, K)    centred teacher outputs at the same patches, rows sum to 1
         mask            (B', N)   which patches are masked, M in all; the M rows come in its row order
    τ_s  student_temp              student temperature

Each image's masked patches share its weight: the mean is over the masked patches of an image, then over all B'
images.  Images without a mask count as 0 in that mean, as in the official code, so half the views masked means
half the weight.

The gradient, ∂L_iBOT/∂z_si = (p_si − p_ti)/τ_s, is one pass over the same numbers, so it is found with the loss,
some rows at a time.  It is all of the logits' size that is stored for the backward pass; autograd on the plain equation
has to keep log p_s and p_t.
"""

import torch

CACHED = 2**21  # logits at once, ours: about what stays in a CPU's cache


def ibot_loss(student_logits, teacher_probs, mask, student_temp=0.1):
    """Mean of H(p_ti, p_si) over the masked patches of each image, then over all images; a float32 scalar.

    student_logits, teacher_probs: (M, K).  mask: (B', N) bool with M True.  M = 0 gives 0.

    >>> z = torch.tensor([[1.0, 3.0]]).log()  # p_s = (1/4, 3/4)
    >>> p = torch.tensor([[1.0, 0.0]])  # H = log 4, in one of two images
    >>> mask = torch.tensor([[False, True], [False, False]])
    >>> round(ibot_loss(z, p, mask, student_temp=1.0).exp().item(), 4)
    2.0
    """
    M = len(student_logits)
    assert len(teacher_probs) == M, f"{M} student rows, but {len(teacher_probs)} teacher rows"
    per_image = mask.sum(dim=1)  # (B',)
    # with output_size given, repeat_interleave need not ask the device how many rows come out
    weight = (1 / per_image.clamp(min=1)).repeat_interleave(per_image, output_size=M)  # (M,)
    return WeightedCrossEntropy.apply(student_logits, teacher_probs, weight / len(mask), student_temp)


class WeightedCrossEntropy(torch.autograd.Function):
    """− Σ_i w_i p_ti log p_si in float32, for logits (M, K), probs (M, K), weight (M,)."""

    @staticmethod
    def forward(ctx, logits, probs, weight, temp):
        """The sum, a scalar; its gradient w_i (p_si − p_ti)/τ_s is kept, in the logits' type."""
        grad, loss = torch.empty_like(logits), torch.zeros((), device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            rows = max(1, CACHED // logits.shape[1])
            for z, p, w, g in zip(*(x.split(rows) for x in (logits, probs, weight, grad)), strict=True):
                p, log_p_s = p.float(), (z.float() / temp).log_softmax(dim=-1)
                loss -= w @ torch.linalg.vecdot(p, log_p_s)
                g.copy_(log_p_s.exp_().sub_(p).mul_(w[:, None] / temp))
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, d):
        """d · gradient, for the logits alone."""
        (grad,) = ctx.saved_tensors
        return grad * d, None, None, None
