"""Image-level objective (§4, "Image-level objective"; Caron et al., DINO, 2021).

    L_DINO = − Σ p_t log p_s,        p_s = softmax(z_s / τ_s)

between the [CLS] token of one view seen by the teacher and of ANOTHER view seen by the student,
averaged over the images and over all such pairs of views:

    z_s  student_logits  (V, B, K)   V views of B images, the G global ones first; K prototypes
    p_t  teacher_probs   (G, B, K)   centred teacher outputs of the global views, rows sum to 1
    τ_s  student_temp                student temperature

The cross-entropy is linear in the teacher, so a student view meets the sum of all its targets at once:

    Σ_{t≠s} H(p_t, p_s) = − ⟨q_s, log p_s⟩,     q_s = Σ_{t≠s} p_t

Its gradient, (n_s p_s − q_s)/τ_s for n_s targets, is one pass over the same numbers, so it is found with the loss,
some images at a time, and is all of the logits' size that is stored for the backward pass.  The official code loops
over pairs; it too takes one mean over all G·(V−1) pairs, global and local alike.
"""

import torch

CACHED = 2**21  # logits at once, ours: about what stays in a CPU's cache


def dino_loss(student_logits, teacher_probs, student_temp=0.1):
    """Mean of H(p_t, p_s) over images and pairs of different views; a float32 scalar.

    student_logits: (V, B, K), global views first.  teacher_probs: (G, B, K), 1 <= G <= V, V >= 2.

    >>> z = torch.tensor([1.0, 3.0]).log().expand(2, 1, 2)  # p_s = (1/4, 3/4) in both views
    >>> p = torch.tensor([1.0, 0.0]).expand(2, 1, 2)  # H = log 4
    >>> round(dino_loss(z, p, student_temp=1.0).exp().item(), 4)
    4.0
    """
    V, G = len(student_logits), len(teacher_probs)
    assert V >= 2 and G <= V, f"need two views or more, and no more teacher views than views; got V={V}, G={G}"
    return PairedCrossEntropy.apply(student_logits, teacher_probs, student_temp)


class PairedCrossEntropy(torch.autograd.Function):
    """The loss in float32; its gradient is kept, in the logits' type."""

    @staticmethod
    def forward(ctx, logits, probs, temp):
        """A scalar, of logits (V, B, K) and probs (G, B, K)."""
        (V, B, K), G = logits.shape, len(probs)
        images = max(1, CACHED // (V * K))
        grad, loss = torch.empty_like(logits), torch.zeros((), device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for z, p_t, g in zip(*(x.split(images, dim=1) for x in (logits, probs, grad)), strict=True):
                p_t = p_t.float()
                q = p_t.sum(dim=0).repeat(V, 1, 1)  # (V, b, K)
                q[:G] -= p_t
                log_p_s = (z.float() / temp).log_softmax(dim=-1)
                loss -= torch.linalg.vecdot(q, log_p_s).sum()
                n = q.sum(dim=-1, keepdim=True)  # (V, b, 1)
                g.copy_(log_p_s.exp_().mul_(n).sub_(q).div_(temp * B * G * (V - 1)))
        ctx.save_for_backward(grad)
        return loss / (B * G * (V - 1))

    @staticmethod
    def backward(ctx, d):
        """d · gradient, for the logits alone."""
        (grad,) = ctx.saved_tensors
        return grad * d, None, None
