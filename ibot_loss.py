"""Patch-level objective (§4, "Patch-level objective"; Zhou et al., iBOT, 2022).

    L_iBOT = − Σ_i p_ti log p_si,        p_si = softmax(z_si / τ_s)

where i runs over the masked patches of a global view, which both see: the student with a mask token at i, the teacher
the patch itself.  So the paper; over a batch, as in the official code, each view's masked patches share its weight, and
a view without a mask counts 0.  With H(p, q) = − Σ_k p_k log q_k over the K prototypes,

    L = 1/B' · Σ_b 1/M_b · Σ_i H(p_ti, p_si)        i over the M_b masked patches of view b

    z_s  student_logits  (M, K)    student logits of the M masked patches of the batch; K prototypes
    p_t  teacher_probs   (M, K)    centred teacher outputs at the same patches, rows sum to 1
         mask            (B', N)   which patches of the B' global views are masked; the M rows come in its row order
    τ_s  student_temp              student temperature
"""

from cross_entropy import cross_entropy


def ibot_loss(student_logits, teacher_probs, mask, student_temp=0.1):
    """Mean of H(p_ti, p_si) over the masked patches of each view, then over all views; a float32 scalar.

    student_logits, teacher_probs: (M, K).  mask: (B', N) bool with M True.  M = 0 gives 0.

    >>> import torch
    >>> z = torch.tensor([[1.0, 3.0]]).log()  # p_s = (1/4, 3/4)
    >>> p = torch.tensor([[1.0, 0.0]])  # H = log 4, in one of two views
    >>> mask = torch.tensor([[False, True], [False, False]])
    >>> round(ibot_loss(z, p, mask, student_temp=1.0).exp().item(), 4)
    2.0
    """
    z_s, p_t, M = student_logits, teacher_probs, len(student_logits)
    assert len(p_t) == M, f"{M} student rows, but {len(p_t)} teacher rows"
    M_b = mask.sum(dim=1)  # (B',)
    # with output_size given, repeat_interleave need not ask the device how many rows come out
    weight = (1 / M_b.clamp(min=1)).repeat_interleave(M_b, output_size=M)  # (M,)
    return (weight * cross_entropy(z_s, p_t, student_temp)).sum() / len(mask)
