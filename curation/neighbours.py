"""Nearest neighbours by cosine, on Faiss: exact when small, an inverted file with product quantisation above. (§3)

    top-k_j ⟨q_i, x_j⟩        q (Q, D), x (N, D), both of length 1, so ⟨·,·⟩ is the cosine

The index only proposes: SPARE times k candidates for each query.  Their cosines are then computed exactly, in
float64 from the float32 vectors, and the best k are kept, so that a result does not depend on the index's
rounding, nor on how the vectors are spread over ranks.

With ranks, each holds the index of its own shard of x; all train the same quantisers on the same sample, the
candidates of all shards are merged by the index's own score, and every rank rescores a share of them.
"""

import faiss
import numpy as np
import torch
from tqdm import tqdm

import distributed

EXACT_BELOW = 100_000  # vectors, ours: up to here the exact product is as fast as an index that must be trained
SPARE = 2  # candidates for each wanted neighbour, ours; and never fewer than FEWEST
FEWEST = 32
MOST = 2048  # and for ties never more: what Faiss can list on a GPU
PROBED = 1 / 4  # share of the cells that a query looks into, ours: enough even for random vectors, which have no cells
BLOCK = 2048  # queries at once


def build_index(x, mine, seed=0):
    """The index of x[mine] for inner products, chosen by the size of x, ids counted in x.

    x: (N, D) float32, rows of length 1, in memory or mapped.  mine: a slice, this rank's shard.
    """
    n, d = x.shape
    if n <= EXACT_BELOW:
        index = faiss.IndexIDMap(faiss.IndexFlatIP(d))
    else:
        cells = 2 ** round(np.log2(np.sqrt(n)))
        parts = next(p for p in range(min(d, d // 4), 0, -1) if d % p == 0)  # 4 dimensions to a code of 4 bits
        scan = "" if faiss.get_num_gpus() else "fs"  # the CPU's fast scan of codes; GPUs have a scan of their own
        index = faiss.index_factory(d, f"IVF{cells},PQ{parts}x4{scan}", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.nprobe = max(1, round(PROBED * cells))
        sample = np.sort(np.random.default_rng(seed).choice(n, min(n, 64 * cells), replace=False))
        index.train(np.ascontiguousarray(x[sample]))
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    start, stop, _ = mine.indices(n)
    for at in range(start, stop, 2**16):  # a mapped file is read in pieces
        part = np.ascontiguousarray(x[at : min(at + 2**16, stop)])
        index.add_with_ids(part, np.arange(at, at + len(part)))
    return index


def shard(n):
    """This rank's share of n rows, a slice; the shares of all ranks cover them once, in order."""
    rank, world = distributed.rank(), distributed.world_size()
    return slice(n * rank // world, n * (rank + 1) // world)


def nearest(queries, x, k, seed=0, name=None):
    """The k nearest rows of x for each query: cosines (Q, k) float32, falling, and ids (Q, k) int64.

    queries (Q, D), x (N, D) float32, rows of length 1, the same on all ranks, as is the result.  Fewer than k rows,
    or than the probed cells hold: the rest is -1, with cosine -1.  name: of a progress bar, shown by rank 0.
    """
    found = [(cosines, ids) for _, cosines, ids in nearest_in_blocks(queries, x, k, seed, name)]
    cosines, ids = zip(*found) if found else ([np.zeros((0, k), np.float32)], [np.zeros((0, k), np.int64)])
    return np.concatenate(cosines), np.concatenate(ids)


def nearest_in_blocks(queries, x, k, seed=0, name=None):
    """The same, as (first query, cosines (B, k), ids (B, k)) for one block of queries after the other."""
    index = build_index(x, shard(len(x)), seed)
    blocks = range(0, len(queries), BLOCK)
    for start in tqdm(blocks, name, unit="block", leave=False, disable=not name or distributed.rank() > 0):
        q = np.ascontiguousarray(queries[start : start + BLOCK])  # (B, D)
        candidates = candidates_of(index, q, k)  # (B, C), of all shards
        part = shard(len(q))
        cosines, ids = best(exact_cosines(q[part], x, candidates[part]), candidates[part], k)
        yield start, joined(np.where(ids < 0, np.float32(-1), cosines)), joined(ids)


def candidates_of(index, q, k):
    """Ids (B, C) that the shards' indices propose for queries (B, D), −1 where there are fewer.

    Where ties leave fewer than k that are certain, a longer list is asked for; in one of MOST all of them stay.
    """
    wanted = max(SPARE * k, FEWEST)
    while True:
        scores, ids = best(*gathered(*index.search(q, wanted)), wanted)  # (B, wanted) each
        sure = certain(scores, ids)
        short = ((sure >= 0).sum(1) < k) & (sure != ids).any(1)  # (B,)
        if not short.any() or wanted >= MOST:
            return np.where(short[:, None], ids, sure)
        wanted = min(4 * wanted, MOST)


def certain(scores, ids):
    """(B, C) falling scores and ids -> the ids, −1 where a score ties with the last one, unless all do.

    Codes of few bits tie often, copies always, and which of the last ones got into the list depends on the shards.
    """
    tied = (scores == scores[:, -1:]) & (scores < scores[:, :1])
    return np.where(tied, -1, ids)


def exact_cosines(q, x, ids):
    """⟨q_i, x_ids(i, j)⟩ in float64: (B, D), (N, D), (B, C) -> (B, C) float32; −∞ where the id is −1."""
    out = np.full(ids.shape, -np.inf, dtype=np.float32)
    for i, row in enumerate(ids):  # a query at a time: C rows of x are a small gather
        real = row >= 0
        out[i, real] = x[row[real]].astype(np.float64) @ q[i].astype(np.float64)
    return out


def best(scores, ids, k):
    """(B, C) scores and ids -> the k largest of each row, falling, equal ones by rising id, −∞ where the id is −1:
    (B, ≤k) twice."""
    scores = np.where(ids < 0, -np.inf, scores)
    order = np.lexsort((ids, -scores))[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    return scores.astype(np.float32), ids


def gathered(*arrays):
    """Each (B, C) of all ranks side by side: (B, world·C)."""
    return [np.concatenate(list(distributed.gather(torch.from_numpy(a)).numpy()), axis=1) for a in arrays]


def joined(array):
    """The shards of rows that `shard` made, one below the other again, on all ranks."""
    world = distributed.world_size()
    if world == 1:
        return array
    counts = distributed.gather(torch.tensor(len(array))).tolist()
    padded = np.concatenate([array, np.zeros((max(counts) - len(array), *array.shape[1:]), array.dtype)])
    parts = distributed.gather(torch.from_numpy(padded)).numpy()  # (world, longest, ...)
    return np.concatenate([part[:count] for part, count in zip(parts, counts)])
