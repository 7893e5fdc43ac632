"""The collapse meter: what the loss does not show, read off the targets and features of the teacher (cf. DINO, §5.3).

A loss near ln K may be slow learning or the uniform collapse, a small one success or the collapse to one code.
Two entropies, as shares of ln K, tell them apart:

                      H(p_t), mean over images    H(mean of p_t over images)
    learning          below 1                     near 1
    uniform collapse  near 1                      near 1
    one code          near 0                      near 0
"""

import math
import sys

import torch
from torch.nn import functional as F


def collapse_meter(p_t, loss, cls):
    """Targets (2, B, K), L_DINO (a scalar tensor), teacher [CLS] (2·B, D) -> a dict of scalar tensors.

    entropy_image: mean H(p_t) / ln K.  entropy_mean: H(mean p_t) / ln K.  kl: L_DINO − mean H(p_t), the
    divergence of the student from the teacher.  cosine: mean between the [CLS] of different images in view 1.
    """
    log_K = math.log(p_t.shape[-1])
    entropy_image = -torch.special.xlogy(p_t, p_t).sum(dim=-1).mean()
    mean = p_t.mean(dim=(0, 1))  # (K,)
    entropy_mean = -torch.special.xlogy(mean, mean).sum()
    x = F.normalize(cls.float().chunk(2)[0], dim=1)  # (B, D)
    B = len(x)
    cosine = (x.sum(dim=0).square().sum() - B) / max(B * (B - 1), 1)  # ‖Σx‖² is B and twice each pair
    return {"entropy_image": entropy_image / log_K, "entropy_mean": entropy_mean / log_K, "kl": loss - entropy_image,
            "cosine": cosine}  # fmt: skip


def collapse_warning(meter):
    """A sentence in plain words when the meter says collapse, otherwise None."""
    if meter["entropy_image"] > 0.98 and meter["entropy_mean"] > 0.98:
        return "uniform collapse: every image gets the same flat target; lower teacher_temp or n_prototypes"
    if meter["entropy_mean"] < 0.05:
        return "collapse to one code: every image gets the same prototype; raise teacher_temp or use sinkhorn"
    if meter["cosine"] > 0.99:
        return "the features of all images are nearly the same; lower the rate or raise koleo_weight"
    return None


def check_health(healthy, step, out):
    """Exit with status 1, the last good checkpoint in place, once a gradient was not finite."""
    if not healthy:
        good = f"the last good checkpoint stays in {out}" if (out / "checkpoint.pt").exists() else "nothing was saved"
        print(f"step {step}: the loss became NaN; stopped, {good}", file=sys.stderr)
        sys.exit(1)
