"""Patch-level objective (§4, "Patch-level objective"; Zhou et al., iBOT, 2022).

    L_iBOT = − Σ_i Σ_k p_ti,k log p_si,k,        p_si = softmax(z_si / τ_s)

Patch i of a global view is masked.  The student sees a mask token there, the teacher sees the patch itself.  So the
student must infer a patch from those around it; masks are blocks, so that neighbours do not give it away.  The paper
gives this sum for one view.  Over a batch, as in the official code, the loss is a mean of means:

    L = 1/B' · Σ_b 1/M_b · Σ_i H(p_ti, p_si),        H(p, q) = − Σ_k p_k log q_k

    z_s  student_logits  (M, K)    student logits of the M masked patches of the batch; K prototypes
    p_t  teacher_probs   (M, K)    centred teacher outputs at the same patches; rows sum to 1
         mask            (B', N)   which of N patches are masked in each of B' global views, M_b of them in view b
    τ_s  student_temp              student temperature
"""


def ibot_loss(student_logits, teacher_probs, mask, student_temp=0.1):
    """Mean of H(p_ti, p_si) over the masked patches of each view, then over all B' views; a float32 scalar.

    student_logits, teacher_probs: (M, K), rows in the order of mask (B', N) bool.  A view without a mask counts 0.

    >>> import torch
    >>> z = torch.tensor([[1.0, 3.0]]).log()  # p_s = (1/4, 3/4)
    >>> p = torch.tensor([[1.0, 0.0]])  # H = log 4, in one of two views
    >>> mask = torch.tensor([[False, True], [False, False]])
    >>> round(ibot_loss(z, p, mask, student_temp=1.0).exp().item(), 4)
    2.0
    """
    z_s, p_t, M = student_logits, teacher_probs, len(student_logits)
    assert len(p_t) == M, f"{M} student rows, but {len(p_t)} teacher rows"
    H = -(p_t * (z_s.float() / student_temp).log_softmax(dim=-1)).sum(dim=-1)  # (M,)
    M_b = mask.sum(dim=1)  # (B',)
    # output_size spares a GPU a wait: repeat_interleave need not count the rows first
    weight = (1 / M_b).repeat_interleave(M_b, output_size=M)  # (M,); a view without a mask has no row
    return (weight * H).sum() / len(mask)
