"""Image-level objective (§4, "Image-level objective"; Caron et al., DINO, 2021).

    L_DINO = − Σ_k p_t,k log p_s,k,        p_s = softmax(z_s / τ_s)

This is the cross-entropy H(p_t, p_s) between the [CLS] token of one view, seen by the teacher, and the [CLS] token of
ANOTHER view of the same image, seen by the student.  The loss is the mean over all images and all such pairs of views.

    z_s  student_logits  (V, B, K)   V views of B images, the G global views first; K prototypes
    p_t  teacher_probs   (G, B, K)   centred teacher outputs of the global views; rows sum to 1
    τ_s  student_temp                student temperature

H is linear in p_t.  So each student view needs one cross-entropy, with the sum of its targets:

    Σ_{t≠s} H(p_t, p_s) = H(q_s, p_s),        q_s = Σ_{t≠s} p_t

A low temperature sharpens a softmax, a high one flattens it.  The teacher's τ_t (sinkhorn.py, centering.py) is below
the student's τ_s: its targets are sharper than the student's outputs, so the student sharpens too.  The paper's 0.04 to
0.07 is too warm for a short run with small batches: after 400 steps of 32 CIFAR-10 images, targets were still flat.
There, the cosines of a prototype with the images of a batch start with a standard deviation of 0.03.  That is less than
τ_t = 0.04, so balanced targets are nearly flat.  Our recipes for small data have τ_t = 0.01 (docs/results.md).
"""


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
    assert V >= 2 and G <= V, f"dino_loss needs V >= 2 student views and G <= V teacher views; got V={V}, G={G}"
    p_t = teacher_probs.float()
    q, total = p_t.sum(dim=0), 0  # (B, K)
    for s, z_s in enumerate(student_logits):  # (B, K)
        q_s = q - p_t[s] if s < G else q  # a local view has no teacher of its own
        log_p_s = (z_s.float() / student_temp).log_softmax(dim=-1)
        total = total - (q_s * log_p_s).sum()
    return total / (B * G * (V - 1))
