"""KoLeo regularizer (§4, "KoLeo regularizer"; Sablayrolles et al., 2019).

    L_KoLeo = − (1/B) Σ_i log d_i,        d_i = min_{j≠i} ‖x_i − x_j‖

It pushes every image away from its nearest neighbour, so a batch spreads over the whole unit sphere.

    x  (B, D)   the student's [CLS] tokens of one global view, before the head; normalised here
    d  (B,)     distance of each row to its nearest other row

Like the official code, train.py adds one such term for each global view (the paper: only for the first).  Neighbours
are searched among the images of one GPU, or of one micro_batch.

We compute log d as ½ log(d² + ε), which bounds the gradient.  The official log(d + ε) does not: three equal rows or a
zero row get 10⁶ times the usual gradient or more, and after clipping little is left of the other losses.
"""

import torch


def koleo_loss(x, eps=1e-8):
    """−mean log(distance to the nearest other row) of x (B, D); a float32 scalar.  Zero rows and B = 1 get no gradient.

    >>> x = torch.tensor([[3.0, 0.0], [0.0, 2.0]])  # unit vectors e1, e2: both distances √2
    >>> round(-2 * koleo_loss(x).item() / torch.log(torch.tensor(2.0)).item(), 4)
    1.0
    """
    x = x.float()
    if len(x) < 2:
        return x.sum() * 0
    norm = x.norm(dim=1, keepdim=True)  # (B, 1)
    x = x / norm.masked_fill(norm <= eps, torch.inf)  # (B, D)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(dim=1)  # (B,)
    d_squared = (x - x[nearest]).square().sum(dim=1)  # (B,)
    return -0.5 * (d_squared + eps).log().mean()
