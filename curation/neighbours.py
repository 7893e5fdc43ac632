"""Nearest neighbours by cosine, with Faiss: exact for few vectors, an inverted file with product quantisation for many.

    top-k_j ⟨q_i, x_j⟩      q (Q, D), x (N, D), both of length 1, so ⟨·,·⟩ is the cosine        (§3, §5)

The index proposes candidates: SPARE times k for each query.  Their cosines are then computed in float64, and the best k
are kept.  Each rank holds the whole index (56 bytes a vector at D = 384) and searches for its share of the queries, so
the result does not depend on the number of ranks.  The paper's index is on GPUs; this one is on the CPU.
"""

import faiss
import numpy as np
import torch
from tqdm import tqdm

import distributed

EXACT_BELOW = 100_000  # ours: vectors; up to here the exact product is as fast as an index that must be trained
SPARE, FEWEST = 2, 32  # ours: candidates for each neighbour, and at least for each query
PROBED = 1 / 4  # ours: share of the cells that a query searches; enough even for random vectors, which have no cells
BLOCK = 256  # queries at once


def build_index(x):
    """(N, D) float32, rows of length 1 -> a Faiss index of them for inner products."""
    n, d = x.shape
    if n <= EXACT_BELOW:
        index = faiss.IndexFlatIP(d)
    else:
        cells = 2 ** round(np.log2(np.sqrt(n)))
        parts = next(p for p in range(d // 4, 0, -1) if d % p == 0)  # 4 dimensions to a code of 4 bits
        index = faiss.index_factory(d, f"IVF{cells},PQ{parts}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64  # Faiss draws a sample of x
        index.nprobe = round(PROBED * cells)
        index.train(x)
    index.add(x)
    return index


def nearest(queries, x, k):
    """Cosines (Q, k) float32, falling, and ids (Q, k) int64 of the k rows of x nearest to each query.

    queries (Q, D), x (N, D): float32, rows of length 1, the same on all ranks.  At most N are found for each query.
    Where the searched cells hold fewer than k rows, the last ids and cosines are −1.
    """
    index, k = build_index(x), min(k, len(x))

    def search(queries):
        """(R, D) -> (R, 2, k) float64: cosines and ids, which float64 holds exactly."""
        found = np.empty((len(queries), 2, k))
        for start in tqdm(range(0, len(queries), BLOCK), "search", leave=False, disable=distributed.rank() > 0):
            q = queries[start : start + BLOCK].numpy()  # (B, D)
            ids = index.search(q, min(len(x), max(SPARE * k, FEWEST)))[1]  # (B, C)
            cosines = np.einsum("bd,bcd->bc", q, x[ids], dtype=np.float64).astype(np.float32)
            cosines[ids < 0] = -1
            order = np.lexsort((ids, -cosines, ids < 0))[:, :k]  # equal cosines by rising id, −1 last
            found[start : start + BLOCK, 0] = np.take_along_axis(cosines, order, axis=1)
            found[start : start + BLOCK, 1] = np.take_along_axis(ids, order, axis=1)
        return torch.from_numpy(found)

    cosines, ids = distributed.in_shares(search, torch.from_numpy(queries)).numpy().swapaxes(0, 1)  # (Q, k) each
    return cosines.astype(np.float32), ids.astype(np.int64)
