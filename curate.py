"""Curation: how LVD-142M was selected. (§3, Appendix A)

    python curate.py --uncurated DIR --curated DIR [--exclude DIR] --weights runs/mine/vit.pt --out selected.txt
    python train.py --data selected.txt
    torchrun --nproc-per-node 8 curate.py ...      each rank embeds and searches its share
    python curate.py --html PAGES                  addresses of the images of saved web pages (docs/curation.md)

    PCA hash → embed → self-de-duplication → relative de-duplication → retrieval

    copies of each other     i ~ j  where ⟨e_i, e_j⟩ > 0.6 and j is one of i's 64 nearest; one of each component stays
    copies of a test image   i ~ j  where ⟨e_i, e_j⟩ > 0.45, test images included; a component that has one is removed
    retrieval, samples       the k uncurated images nearest to each curated one
    retrieval, clusters      random images of each k-means cluster with more than 3 curated images

    e  (N, D)   [CLS] features of length 1, float32

0.6 and 0.45 are for the copy-detection embedding of Pizzi et al. (2022).  Here e is the [CLS] token of your ViT, for
which they are too low: raise --self-threshold, for example to 0.8.  Other differences from the paper: docs/curation.md.
The folder OUT.work keeps hashes and features, so a run that was killed does not compute them again.
"""

import sys
from pathlib import Path

try:
    import faiss
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
except ModuleNotFoundError as error:
    print(f"curate.py: error: no module {error.name}; pip install -r curation/requirements.txt", file=sys.stderr)
    sys.exit(2)

import numpy as np
import torch

import distributed
from curation import pca_hash
from curation.addresses import image_addresses
from curation.neighbours import nearest
from curation.results import write_reasons, write_table, write_text
from curation.sources import embed, find_images, thumbnails
from curation.work_files import read_array
from distributed import print_first
from support.cli import Parser, add_device, add_scale, number, positive, report_errors, side
from support.device import choose_threads, find_device
from support.files import UserError, check_out, lock_folder, make_folder
from support.find import read_file
from support.images import estimate_scale, whole_patches
from support.weights import load_vit

SMALL = 1_000_000  # App. A: for fewer curated images retrieve by clusters, otherwise by samples
CLUSTERS, PER_CLUSTER, MIN_HITS, MAX_TOTAL = 100_000, 10_000, 3, 1_000_000  # App. A
CLUSTER_SIZE = 100  # ours: images for each cluster; small pools have fewer clusters
HASH_BITS = 2  # ours: bits of 64 in which the hashes of copies may differ
PCA_IMAGES = 10_000  # ours: the PCA of the hash is computed on at most twice as many images

# ---------------------------------------------------------------------------- the equations of §3 and App. A


def deduplicate(embeddings, threshold=0.6, k=64):
    """(N, D) float32, rows of length 1 -> sorted indices of the rows that stay: the first of each component."""
    return np.flatnonzero(copies_of(embeddings, threshold, k) < 0)


def remove_near(embeddings, reference, threshold=0.45, k=64):
    """(N, D), (R, D) -> sorted indices of the rows whose component holds no reference."""
    return np.flatnonzero(copies_of(embeddings, threshold, k, reference) < 0)


def copies_of(embeddings, threshold, k=64, reference=None):
    """(N, D) -> (N,) the row, or with reference (R, D) the reference, that replaces each row; −1: the row stays.

    The graph joins each row to those of its k nearest others whose cosine is above threshold, and to its nearest
    reference if their cosine is.
    """
    n = len(embeddings)
    cosines, ids = nearest(embeddings, embeddings, k + 1)  # a row is its own neighbour; this edge changes nothing
    row, place = np.nonzero(cosines > threshold)
    edges = np.stack([row, ids[row, place]], axis=1)  # (E, 2)
    if reference is None:
        first = first_of_component(n, edges)
        return np.where(first < np.arange(n), first, -1)
    cosines, ids = nearest(embeddings, reference, 1)
    near, r = np.flatnonzero(cosines[:, 0] > threshold), len(reference)
    edges = np.concatenate([r + edges, np.stack([r + near, ids[near, 0]], axis=1)])  # the first R nodes: references
    first = first_of_component(r + n, edges)[r:]
    first[near] = ids[near, 0]  # rather than another reference of the component
    return np.where(first < r, first, -1)


def first_of_component(n, edges):
    """n nodes and (E, 2) edges -> (n,) the first node of each node's connected component."""
    graph = coo_array((np.ones(len(edges), dtype=bool), tuple(edges.T)), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    return np.unique(label, return_index=True)[1][label]


def retrieve_samples(curated, pool, k=4):
    """(C, D), (N, D) -> sorted indices of the pool's rows that are among the k nearest of a curated row."""
    ids = nearest(curated, pool, k)[1]
    return np.unique(ids[ids >= 0])


def retrieve_clusters(curated, pool, n_clusters, per_cluster, min_hits=MIN_HITS, max_total=MAX_TOTAL, seed=0):
    """(C, D), (N, D) -> sorted indices of the pool's rows, drawn from the clusters that curated rows fall into.

    Spherical k-means of the pool.  From each cluster with more than min_hits curated rows, draw per_cluster rows or all
    it has; from those draw max_total.
    """
    n_clusters = min(n_clusters, len(pool))
    k_means = faiss.Kmeans(pool.shape[1], n_clusters, seed=seed, spherical=True, min_points_per_centroid=1)
    if distributed.rank() == 0:
        k_means.train(pool)  # on a sample that Faiss draws, 256 rows for each cluster
    centroids = distributed.gather(k_means.centroids)[0]  # (n_clusters, D)
    hits = np.bincount(nearest(curated, centroids, 1)[1][:, 0], minlength=n_clusters)
    cluster = nearest(pool, centroids, 1)[1][:, 0]  # (N,)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(pool))
    order = order[np.argsort(cluster[order], kind="stable")]  # by cluster, random within each
    first = np.searchsorted(cluster[order], np.arange(n_clusters))  # (n_clusters,), where each begins
    place = np.arange(len(pool)) - first[cluster[order]]  # of each row within its cluster
    chosen = order[(place < per_cluster) & (hits[cluster[order]] > min_hits)]
    return np.sort(generator.permutation(chosen)[:max_total])


# ---------------------------------------------------------------------------- the program


def hash_copies(files):
    """Files of THUMBNAILs -> (N,) the copy with most pixels, −1: itself, −2: not readable; and (N, W) hashes."""
    thumbs = np.concatenate([read_array(file) for file in files])  # (N,)
    order = np.argsort(-thumbs["pixels"], kind="stable")[: np.count_nonzero(thumbs["pixels"])]  # most pixels first
    if len(order) == 0:
        raise UserError("none of the images of --uncurated can be read")
    V = pca_hash.principal_components(thumbs["grey"][order[:: max(1, len(order) // PCA_IMAGES)], 0])
    h = pca_hash.hashes(thumbs["grey"], V)
    first = order[first_of_component(len(order), pca_hash.copies(h[order], HASH_BITS))]
    kept = np.full(len(h), -2)
    kept[order] = np.where(first == order, -1, first)
    return kept, h


def curate(args, work):
    """Run all stages and write the selection."""
    flags = ("uncurated", "curated", "exclude")
    found = {flag: find_images(getattr(args, flag)) for flag in flags if getattr(args, flag)}
    pool = found["uncurated"]
    vit = load_vit(args.weights, args.device) if args.weights else None
    scale = estimate_scale(sum(found.values(), []), read_file, args.scale)

    files = thumbnails(pool, scale, work)
    kept, h = distributed.gather(hash_copies(files) if distributed.rank() == 0 else None)[0]
    copies = []
    paths = drop(copies, "PCA hash", pool, kept, pool, lambda i, j: pca_hash.bits_apart(h[i], h[j]))
    if vit:
        paths = select_by_features(args, found | {"uncurated": paths}, vit, scale, work, copies)
    table = args.out.with_suffix(".copies.csv")
    if distributed.rank() == 0:
        write_table(table, ["path", "kept", "stage", "bits_or_cosine"], copies)
        write_text(args.out, "".join(f"{path}\n" for path in paths))
    print_first(f"{len(paths)} of {len(pool)} images selected: {args.out}; {len(copies)} copies left out: {table}")


def select_by_features(args, found, vit, scale, work, copies):
    """{flag: paths} -> the selected paths; adds to the table of copies."""
    features = {}
    for flag, paths in found.items():
        e = embed(vit, paths, whole_patches(args.size, vit.patch_size), scale, work)
        rows = np.flatnonzero(e.any(axis=1))  # 0: not readable
        if len(rows) == 0:
            raise UserError(f"none of the images of --{flag} can be read")
        features[flag] = [paths[i] for i in rows], e[rows]

    paths, e = features["uncurated"]
    kept = copies_of(e, args.self_threshold)
    paths, e = drop(copies, "self-de-duplication", paths, kept, paths, lambda i, j: e[i] @ e[j]), e[kept < 0]
    if args.exclude:
        near, e_near = features["exclude"]
        kept = copies_of(e, args.reference_threshold, reference=e_near)
        paths = drop(copies, "relative de-duplication", paths, kept, near, lambda i, j: e[i] @ e_near[j])
        e = e[kept < 0]
        if not paths:
            raise UserError("every image counts as a copy of an excluded one; raise --reference-threshold")
    if args.curated:
        curated, e_curated = features["curated"]
        mode = args.mode or ("clusters" if len(curated) < SMALL else "samples")
        if mode == "samples":
            rows = retrieve_samples(e_curated, e, args.per_image)
        else:
            rows = retrieve_clusters(e_curated, e, min(CLUSTERS, max(1, len(e) // CLUSTER_SIZE)), PER_CLUSTER)
        if len(rows) == 0:
            raise UserError(f"no cluster holds more than {MIN_HITS} curated images; use --mode samples")
        print_first(f"retrieval, {mode}: {len(rows)} of {len(paths)} images")
        paths = [paths[i] for i in rows]
        write_reasons(args.out, paths, e[rows], curated, e_curated, mode, scale)
    return paths


def drop(copies, stage, paths, kept, others, compare):
    """The paths without copies.  Adds a row to the table for each copy, and prints their share.

    kept (N,): number of the path in `others` that is kept instead, −1 for what stays.  compare(i, j): bits or cosine.
    """
    rows, n = np.flatnonzero(kept >= 0), np.sum(kept > -2)
    print_first(f"{stage}: {len(rows)} of {n} images are copies ({len(rows) / n:.0%})")
    if len(rows) > n / 2:
        print_first("WARNING: over half of the images.  If pairs in .copies.csv are not alike, raise the threshold")
    copies += [(paths[i], others[kept[i]], stage, f"{compare(i, kept[i]):.6g}") for i in rows]
    return [path for path, other in zip(paths, kept) if other == -1]


@report_errors("curate.py")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="curate.py", description="Select images like the curated ones, without copies.")
    add, default = parser.add_argument, " (default: %(default)s)"
    add("--uncurated", help="folder, archive or list of images to choose from")
    add("--curated", help="images to look for (default: none, find copies and stop)")
    add("--exclude", help="evaluation images: images like them are left out")
    add("--weights", help="vit.pt, checkpoint.pt, an official name or file (default: none, only the PCA hash is used)")
    add("--out", type=Path, default=Path("selected.txt"), help="list of the selected images" + default)
    add("--html", metavar="PAGES", help="list image addresses of saved pages in addresses.txt beside --out, and stop")
    add("--self-threshold", type=number(-1, 1), default=0.6, help="cosine above which two images are copies; "
        "for the [CLS] of a ViT try 0.8" + default)
    add("--reference-threshold", type=number(-1, 1), default=0.45, help="cosine above which an image is a "
        "copy of an excluded one; for the [CLS] of a ViT try 0.8" + default)
    add("--mode", choices=("samples", "clusters"), help="the nearest images of each curated one, or random "
        f"images of its cluster (default: clusters for fewer than {SMALL} curated images)")
    add("--per-image", type=positive, default=4, help="with --mode samples: images for each curated one" + default)
    add("--size", type=side, default=224, help="side of an embedded image, rounded to whole patches" + default)
    add_scale(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    for path in (args.out, *(args.out.with_suffix(end) for end in (".csv", ".copies.csv", ".png"))):
        check_out(path)
    if args.out.suffix in (".csv", ".png"):
        raise UserError(f"--out {args.out}: curate.py writes another file of this name; choose an ending such as .txt")
    if args.html:
        addresses, path = image_addresses(args.html), args.out.with_name("addresses.txt")
        write_text(path, "".join(f"{address}\n" for address in addresses))
        print(f"{len(addresses)} addresses of images: {path}; download them with img2dataset (docs/curation.md)")
        return 0
    if not args.uncurated or (args.curated or args.exclude) and not args.weights:
        raise UserError("give --uncurated, and --weights if you give --curated or --exclude; or give --html")
    args.device, threads = find_device(args.device), choose_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    distributed.start(args.device, patience=24)
    print_first(f"on {args.device}, {threads}")
    work = args.out.with_name(args.out.name + ".work")
    make_folder(work)
    with lock_folder(work):
        curate(args, work)
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
