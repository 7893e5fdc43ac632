"""PCA hash: 64 bits that copies of an image share. (§3, "Data sources")

    h_w(x) = [V · (x_w − mean(x_w)) > ε]                copies:  |h_0(x) ⊕ h_w(y)| ≤ b  for some window w

    x  (W, S²)   grey levels of an image in W windows, each squeezed to S×S: the whole image, and 95 % of it four times
    V  (64, S²)  the 64 leading principal components of many whole images
    h  (W,)      64 bits, one for each component
    b, ε  ()     bits in which copies may differ, and what a component must reach

The paper names the hash and gives no details, so all constants are ours.  Small changes of an image keep most bits,
but a crop flips several.  So each image is hashed five times: a cropped copy matches the window nearest to its frame.
The mean of each image is subtracted, so flat images are copies of each other.  The mean over images is not subtracted.
"""

import faiss
import numpy as np
from PIL import Image

T = 64  # side of the square to which an image is squeezed first
S = 16  # side of a window
CUT = 0.05  # share of a side that a crop may remove
NEAR, FAR = CUT / 4, 3 * CUT / 4  # where a window starts: a quarter of the cut on one side and the rest on the other
WINDOWS = [(0, 0, 1, 1)] + [(x, y, x + 1 - CUT, y + 1 - CUT) for x in (NEAR, FAR) for y in (NEAR, FAR)]
EPSILON = 4  # 0.25 grey levels in each cell: below it, noise decides the sign, also in copies
PRIOR = 100  # weight, in images, of a smooth random field, so that a few images have 64 components too
CONTRAST, CORRELATION = 50, 0.9  # of that field: deviation in grey levels, and correlation of neighbours


def windows(image):
    """A Pillow image -> (W, S²) float32, its grey levels in each of WINDOWS."""
    grey = image.convert("L").resize((T, T), Image.Resampling.BILINEAR).convert("F")
    boxes = [tuple(T * edge for edge in window) for window in WINDOWS]
    return np.stack([np.asarray(grey.resize((S, S), Image.Resampling.BILINEAR, box)).ravel() for box in boxes])


def principal_components(x):
    """(N, S²) grey levels -> V (64, S²), by falling variance."""
    x = x - x.mean(1, keepdims=True, dtype=np.float64)
    places = np.stack(np.divmod(np.arange(S * S), S), axis=1)  # (S², 2)
    distance = np.abs(places[:, None] - places).sum(-1)  # (S², S²)
    centring = np.eye(S * S) - 1 / S**2
    prior = centring @ CORRELATION**distance @ centring  # (S², S²), for fields of mean 0
    covariance = x.T @ x + PRIOR * CONTRAST**2 * prior  # (S², S²)
    return np.linalg.eigh(covariance)[1][:, ::-1][:, :64].T


def hashes(x, V):
    """(N, W, S²) grey levels and (64, S²) -> (N, W) uint64, the whole image first."""
    bits = np.empty((len(x), len(WINDOWS), 64), dtype=bool)
    for w in range(len(WINDOWS)):
        bits[:, w] = (x[:, w] - x[:, w].mean(1, keepdims=True)) @ V.T.astype(np.float32) > EPSILON
    return np.packbits(bits, axis=2).view(np.uint64)[..., 0]


def bits_apart(g, h):
    """(W,), (W,) hashes of two images -> fewest bits between the whole of one and a window of the other."""
    return int(np.bitwise_count(np.concatenate([g[0] ^ h, h[0] ^ g])).min())


def copies(h, n_bits):
    """(N, W) hashes -> (P, 2) pairs of images whose hashes differ in at most n_bits.

    Images with equal hashes h_0 are represented by the first of them, and each is paired with that one.  Faiss's index
    cuts 64 bits into n_bits + 1 parts.  Two hashes within n_bits have an equal part, so only those are compared.
    """
    whole, first, same = np.unique(h[:, 0], return_index=True, return_inverse=True)  # (U,), (U,), (N,)
    index = faiss.IndexBinaryMultiHash(64, n_bits + 1, 64 // (n_bits + 1))
    index.add(whole[:, None].view(np.uint8))  # (U, 8)
    pairs = [np.stack([np.arange(len(h)), first[same]], axis=1)]
    for view in np.ascontiguousarray(h.T)[..., None].view(np.uint8):  # (N, 8)
        ends, _, found = index.range_search(view, n_bits + 1)  # distances below n_bits + 1
        pairs.append(np.stack([np.repeat(np.arange(len(h)), np.diff(ends.astype(np.int64))), first[found]], axis=1))
    return np.concatenate(pairs)
