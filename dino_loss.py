"""Image-level objective (§4, "Image-level objective"; Caron et al., DINO, 2021).

    L_DINO = − Σ p_t log p_s,        p_s = softmax(z_s / τ_s)

summed over the K prototypes, H(p_t, p_s) for short, between the [CLS] token of one view seen by the teacher and of
ANOTHER view seen by the student, averaged over the images and over all such pairs of views:

    z_s  student_logits  (V, B, K)   V views of B images, the G global ones first; K prototypes
    p_t  teacher_probs   (G, B, K)   centred teacher outputs of the global views, rows sum to 1
    τ_s  student_temp                student temperature

The cross-entropy is linear in the teacher, so a student view meets the sum of all its targets at once:

    Σ_{t≠s} H(p_t, p_s) = H(q_s, p_s),        q_s = Σ_{t≠s} p_t

A local view's q_s is q = Σ_t p_t; a global one's is q less the teacher's probabilities of the same view.
The official code loops over pairs; it too takes one mean over all G·(V−1) pairs, global and local alike.
"""

from cross_entropy import cross_entropy


def dino_loss(student_logits, teacher_probs, student_temp=0.1):
    """Mean of H(p_t, p_s) over images and pairs of different views; a float32 scalar.

    student_logits: (V, B, K), global views first.  teacher_probs: (G, B, K), 1 <= G <= V, V >= 2.

    >>> import torch
    >>> z = torch.tensor([1.0, 3.0]).log().expand(2, 1, 2)  # p_s = (1/4, 3/4) in both views
    >>> p = torch.tensor([1.0, 0.0]).expand(2, 1, 2)  # H = log 4
    >>> round(dino_loss(z, p, student_temp=1.0).exp().item(), 4)
    4.0
    """
    V, (G, B, _) = len(student_logits), teacher_probs.shape
    assert V >= 2 and G <= V, f"need two views or more, and no more teacher views than views; got V={V}, G={G}"
    p_t = teacher_probs.float()
    q, total = p_t.sum(dim=0), 0  # (B, K)
    for s, z_s in enumerate(student_logits):  # (B, K)
        q_s = q - p_t[s] if s < G else q  # (B, K)
        total = total + cross_entropy(z_s, q_s, student_temp).sum()
    return total / (B * G * (V - 1))
