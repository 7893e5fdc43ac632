"""PCA hash: 64 bits that copies of an image share. (§3, "Data sources")

    h(x) = sign(V · (R x − mean(R x)))                  copies:  |h_0(x) ⊕ h_w(y)| ≤ b  for some window w

    x  (T, T)    grey thumbnail of the whole image, squeezed to a square
    R  (S², T²)  one of W windows of the thumbnail, averaged to S×S: the whole image, or 95 % of it
    V  (64, S²)  the 64 leading principal components of many images
    h  ()        64 bits, one for each sign
    b  ()        bits in which copies may differ

The paper names the hash and gives no details, so all constants are ours.  Small changes of an image keep most signs.
A crop moves every edge and flips several signs.  So each image is hashed five times, whole and through four windows:
a cropped copy matches the window nearest to its own frame.

The mean of each image is subtracted, so flat images of any colour are copies of each other.  The mean over images is
not subtracted: V are the eigenvectors of x·xᵀ, so this PCA is not centred across images.
"""

import faiss
import numpy as np
from einops import rearrange

T = 64  # side of a thumbnail
S = 16  # side of the grid that is hashed
CUT = 0.05  # share of a side that a crop may remove
NEAR, FAR = CUT / 4, 3 * CUT / 4  # where a window starts: a quarter of the cut on one side and the rest on the other
WINDOWS = [(0, 0, 1, 1)] + [(x, y, x + 1 - CUT, y + 1 - CUT) for x in (NEAR, FAR) for y in (NEAR, FAR)]
PRIOR = 100  # weight, in images, of a smooth random field, so that a few images have 64 components too
CORRELATION = 0.9  # of that field, from one cell of the grid to the next
BLOCK = 4096  # images that are hashed at once


def averaging(start, stop):
    """(S, T): row s averages the cells of part s, where the line of T cells is cut to start..stop, in S parts."""
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
    prior = centring @ CORRELATION**distance @ centring  # (S², S²), for fields of mean 0
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
