"""Image-level objective (§4, "Image-level objective"; Caron et al., DINO, 2021).

    L_DINO = − Σ p_t log p_s,        p_s = softmax(z_s / τ_s)

between the [CLS] token of one view seen by the teacher and of ANOTHER view seen by the student,
averaged over the images and over all such pairs of views:

    z_s  student_logits  (V, B, K)   V views of B images, the G global ones first; K prototypes
    p_t  teacher_probs   (G, B, K)   centred teacher outputs of the global views, rows sum to 1
    τ_s  student_temp                student temperature

The sum over pairs is never looped over, since the cross-entropy is linear in the teacher:

    Σ_{t≠s} H(p_t, p_s) = n_s · logsumexp(z_s/τ_s) − ⟨Σ_{t≠s} p_t, z_s/τ_s⟩,     n_s = number of t ≠ s

so the logits are read once and no log-softmax is stored.  The official code loops over pairs; it too takes one
mean over all G·(V−1) pairs, global and local alike.
"""

import torch
from einops import einsum


def dino_loss(student_logits, teacher_probs, student_temp=0.1):
    """Mean of H(p_t, p_s) over images and pairs of different views; a float32 scalar.

    student_logits: (V, B, K), global views first.  teacher_probs: (G, B, K), 1 <= G <= V, V >= 2.

    >>> z = torch.tensor([1.0, 3.0]).log().expand(2, 1, 2)  # p_s = (1/4, 3/4) in both views
    >>> p = torch.tensor([1.0, 0.0]).expand(2, 1, 2)  # H = log 4
    >>> round(dino_loss(z, p, student_temp=1.0).exp().item(), 4)
    4.0
    """
    V, B, _ = student_logits.shape
    G = len(teacher_probs)
    assert V >= 2 and G <= V, f"need two views or more, and no more teacher views than views; got V={V}, G={G}"
    with torch.autocast(student_logits.device.type, enabled=False):
        z = student_logits.float() / student_temp  # (V, B, K)
        p_t = teacher_probs.float()  # (G, B, K)
        logZ = z.logsumexp(dim=-1).sum(dim=1)  # (V,)
        all_pairs = G * logZ.sum() - einsum(z, p_t.sum(dim=0), "v b k, b k ->")
        same_view = logZ[:G].sum() - einsum(z[:G], p_t, "g b k, g b k ->")
        return (all_pairs - same_view) / (B * G * (V - 1))
