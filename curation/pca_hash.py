"""PCA hash: 64 bits that copies of a picture share. (§3, "Deduplication"; App. A: a PCA hash before everything else)

    h(x) = sign(V · (R x − mean(R x)))                  copies:  |h_0(x) ⊕ h_w(y)| ≤ b  for some window w

    x  (T, T)    grey thumbnail of the whole picture, its sides squeezed to a square
    R  (S², T²)  one of W windows of the thumbnail, averaged to S×S: the whole, or 95 % of it
    V  (64, S²)  the leading principal components of many pictures
    h  ()        64 bits, one for each sign

The paper names the hash and says no more of it; all constants are ours.  A component's sign survives what changes
a picture little, but a crop moves every edge, and turns over several of 64 signs.  So each picture is hashed five
times, whole and through four windows: a crop is near the picture seen through the window that it was cut at.
Brightness is taken out, so that flat pictures of any colour are copies of each other.
"""

import numpy as np
from einops import rearrange

T = 64  # side of a thumbnail
S = 16  # side of the grid that is hashed
CUT = 0.05  # share of a side that a crop may have lost
NEAR, FAR = CUT / 4, 3 * CUT / 4  # of what a crop loses, a quarter on one side and the rest on the other
WINDOWS = [(0, 0, 1, 1)] + [(x, y, x + 1 - CUT, y + 1 - CUT) for x in (NEAR, FAR) for y in (NEAR, FAR)]
PRIOR = 100  # pictures' worth of a smooth random field, so that a handful of pictures has 64 components too
CORRELATION = 0.9  # of that field, from one cell of the grid to the next
BLOCK = 65_536  # pictures that are hashed, or pairs that are compared, at once

THUMBNAIL = np.dtype([("grey", np.uint8, (T, T)), ("pixels", np.int64)])  # pixels 0: not readable


def averaging(start, stop):
    """(S, T): each row averages the cells of a line of T that fall into one S-th of its part from start to stop."""
    edges = np.linspace(start * T, stop * T, S + 1)[:, None]  # (S + 1, 1)
    cells = np.arange(T)
    overlap = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)  # (S, T)
    return overlap.clip(0) / overlap.clip(0).sum(1, keepdims=True)


def seen_through(window, grey):
    """(N, T, T) grey levels through one of WINDOWS -> (N, S²) of mean 0."""
    left, top, right, bottom = window
    rows, columns = averaging(top, bottom), averaging(left, right)  # (S, T) each
    grid = rearrange(rows @ (grey / 255) @ columns.T, "n a b -> n (a b)")
    return grid - grid.mean(1, keepdims=True)  # (N, S²)


def principal_components(grey):
    """(N, T, T) grey levels -> V (64, S²), by falling variance; N may be 0."""
    x = seen_through(WINDOWS[0], grey)  # (N, S²)
    places = np.stack(np.divmod(np.arange(S * S), S), axis=1)  # (S², 2)
    distance = np.abs(places[:, None] - places).sum(-1)  # (S², S²)
    centring = np.eye(S * S) - 1 / S**2
    prior = centring @ CORRELATION**distance @ centring  # (S², S²), of fields of mean 0
    variance = (x**2).sum() / max(len(x), 1) or 1.0
    covariance = x.T @ x + PRIOR * variance * prior / np.trace(prior)  # (S², S²)
    return np.linalg.eigh(covariance)[1][:, ::-1][:, :64].T


def hashes(grey, V):
    """(N, T, T) grey levels and (64, S²) -> (N, W) uint64, the whole picture first."""
    out = np.empty((len(grey), len(WINDOWS)), dtype=np.uint64)
    for start in range(0, len(grey), BLOCK):
        part = grey[start:start + BLOCK]
        for w, window in enumerate(WINDOWS):
            bits = seen_through(window, part) @ V.T > 0  # (n, 64)
            out[start:start + len(part), w] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return out


def copies(h, n_bits):
    """(N, W) hashes -> (P, 2) pairs of pictures whose hashes differ in n_bits or fewer.

    64 bits in n_bits + 1 parts: at most n_bits parts differ, so that one is equal, and only pictures in the same
    bucket of some part are compared.  Equal hashes h_0 stand for one picture: each is paired with the first of them.
    """
    whole, first, same = np.unique(h[:, 0], return_index=True, return_inverse=True)  # (U,), (U,), (N,)
    pairs = [np.stack([np.arange(len(h)), first[same]], axis=1)]
    for bits in np.array_split(np.arange(64, dtype=np.uint64), n_bits + 1):
        mask = np.bitwise_or.reduce(np.uint64(1) << bits)
        order = np.argsort(whole & mask, kind="stable")
        keys = (whole & mask)[order]  # (U,), rising
        for view in h.T:  # (N,)
            place = np.searchsorted(keys, view & mask, "left")
            stop = np.searchsorted(keys, view & mask, "right")
            alive = np.flatnonzero(place < stop)
            while len(alive):  # the next one in the bucket of each picture that has one
                other = order[place[alive]]
                near = np.bitwise_count(view[alive] ^ whole[other]) <= n_bits
                near &= other != same[alive]
                pairs.append(np.stack([alive[near], first[other[near]]], axis=1))
                place[alive] += 1
                alive = alive[place[alive] < stop[alive]]
    return np.concatenate(pairs)
