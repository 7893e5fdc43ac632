"""KoLeo regularizer (§4, "KoLeo regularizer"; Sablayrolles et al., 2019).

    L_KoLeo = − (1/B) Σ_i log d_i,        d_i = min_{j≠i} ‖x_i − x_j‖

minus the Kozachenko-Leonenko estimate of entropy, but for constants: lowering it spreads a batch over the sphere.

    x  (B, D)   the student's [CLS] tokens of one view, before the head, made unit vectors first
    d  (B,)     distance of each to its nearest other

The paper takes the first global crop.  The official code and we take both: a loss for each view, among the images of a
GPU.  Here log d = ½ log(d² + ε), and a zero row has no direction, so it stays at the origin and gets no gradient.
The official code takes log(d + ε) of a distance whose gradient blows up: three or more equal rows give
10⁶ times the usual gradient, a zero row 10⁹ (inf or NaN in half precision); clipping then gives KoLeo the whole step.
"""

import torch


def koleo_loss(x, eps=1e-8):
    """−mean log(distance to the nearest other row) of x (B, D), normalised inside; a float32 scalar.

    Bounded: a row's log d pulls at its own unit vector and at its nearest one's by at most 1/(2·√eps·B) each.
    Equal rows repel nothing (gradient 0).  B = 1 gives 0.

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
