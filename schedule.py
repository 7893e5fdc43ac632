"""Linear warm-up, then a cosine (B.1, Table 16): for learning rate, weight decay, momentum and teacher temperature.

    v(s) = v_w + (v_0 − v_w)·s/w                                 for s < w
    v(s) = v_1 + (v_0 − v_1)·½(1 + cos π (s − w)/(T − 1 − w))    for w ≤ s ≤ T − 1

    s  step,    T  total,    w  warmup,    v_0  start,    v_1  end,    v_w  warmup_start

The official schedule stays at the peak for two steps, and reaches its end at step T, after the last one.
"""

import math


def cosine_schedule(step, total, start, end, warmup=0, warmup_start=0.0):
    """The value at `step` of `total`: warmup_start at step 0, start at step `warmup`, end at the last step.

    >>> [cosine_schedule(s, 5, 1.0, 0.0, warmup=2) for s in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return warmup_start + (start - warmup_start) * step / warmup
    progress = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
