"""Curation: how LVD-142M was selected. (§3, Appendix A)

    python curate.py --uncurated DIR --curated DIR [--exclude DIR] --weights runs/mine/vit.pt --out selected.txt
    python train.py --data selected.txt
    torchrun --nproc-per-node 8 curate.py ...      each rank embeds and searches its share
    python curate.py --html PAGES                  addresses of the images of saved web pages (docs/curation.md)

    PCA hash → embed → self-de-duplication → relative de-duplication → retrieval

    copies of each other     i ~ j  where ⟨e_i, e_j⟩ > 0.6 and j is one of i's 64 nearest; one of each component stays
    copies of a test image   i ~ j  where ⟨e_i, e_j⟩ > 0.45, test images included; their whole components go
    retrieval, samples       the k uncurated images nearest to each curated one
    retrieval, clusters      random images of each k-means cluster with more than 3 curated images

    e  (N, D)   [CLS] features of length 1, float32

0.6 and 0.45 are for the copy-detection embedding of Pizzi et al. (2022).  Here e is the [CLS] token of your ViT, for
which they are too low: raise --self-threshold, for example to 0.8.  Other differences from the paper: docs/curation.md.

Hashes and features are kept in the folder OUT.work, so a run that was killed reads no image twice.
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
from curation.results import write_reasons, write_text
from curation.sources import embed, find_images, thumbnails
from distributed import print_first
from support.cli import Parser, add_device, add_scale, check_scale, number, positive, report_errors, side
from support.device import choose_threads, find_device
from support.files import UserError, check_out
from support.find import read_file
from support.images import estimate_scale, whole_patches
from support.weights import load_vit

SMALL = 1_000_000  # App. A: fewer curated images are retrieved by clusters, more by samples
CLUSTERS, PER_CLUSTER, MIN_HITS, MAX_TOTAL = 100_000, 10_000, 3, 1_000_000  # App. A
CLUSTER_SIZE = 100  # ours: images for each cluster; small pools have fewer clusters
HASH_BITS = 2  # ours: bits of 64 in which the hashes of copies may differ
PCA_IMAGES = 10_000  # ours: the PCA of the hash is computed on at most twice as many images

# ---------------------------------------------------------------------------- the equations of §3 and App. A


def deduplicate(embeddings, threshold=0.6, k=64):
    """(N, D) float32, rows of length 1 -> sorted indices of the rows that stay: the first of each component.

    The graph has an edge from each row to those of its k nearest others with a cosine above threshold.
    """
    label = component_of(len(embeddings), edges_above(embeddings, threshold, k))
    return np.unique(label, return_index=True)[1]


def remove_near(embeddings, reference, threshold=0.45, k=64):
    """(N, D), (R, D) -> sorted indices of the rows whose component holds no reference.

    The graph is that of deduplicate, plus an edge from each row to its nearest reference if that is above threshold.
    """
    n = len(embeddings)
    cosines, ids = nearest(embeddings, reference, 1)
    near = np.flatnonzero(cosines[:, 0] > threshold)
    edges = np.concatenate([edges_above(embeddings, threshold, k), np.stack([near, n + ids[near, 0]], axis=1)])
    label = component_of(n + len(reference), edges)
    return np.flatnonzero(~np.isin(label[:n], label[n:]))


def edges_above(x, threshold, k):
    """(N, D) -> (E, 2) pairs of a row and one of its k nearest others, with a cosine above threshold."""
    cosines, ids = nearest(x, x, k + 1)  # each row is among its own neighbours
    row, place = np.nonzero((cosines > threshold) & (ids != np.arange(len(x))[:, None]))
    return np.stack([row, ids[row, place]], axis=1)


def component_of(n, edges):
    """n nodes and (E, 2) edges -> (n,) the number of each node's connected component."""
    graph = coo_array((np.ones(len(edges), dtype=bool), tuple(edges.T)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def retrieve_samples(curated, pool, k=4):
    """(C, D), (N, D) -> sorted indices of the pool's rows that are among the k nearest of a curated row."""
    ids = nearest(curated, pool, k)[1]
    return np.unique(ids[ids >= 0])


def retrieve_clusters(curated, pool, n_clusters, per_cluster, min_hits=MIN_HITS, max_total=MAX_TOTAL, seed=0):
    """(C, D), (N, D) -> sorted indices of the pool's rows, drawn from the clusters that curated rows fall into.

    Spherical k-means of the pool.  From each cluster with more than min_hits curated rows, draw per_cluster rows or all
    it has; from those draw max_total.  (The paper does not say which images of a cluster: random ones are ours.)
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


def unique_images(files):
    """Files of THUMBNAILs -> sorted indices: of each group of copies the image with most pixels, none unreadable."""
    thumbs = np.concatenate([np.load(file) for file in files])  # (N,)
    readable = np.flatnonzero(thumbs["pixels"] > 0)
    if len(readable) == 0:
        raise UserError("none of the images of --uncurated can be read")
    grey, pixels = thumbs["grey"][readable], thumbs["pixels"][readable]
    V = pca_hash.principal_components(grey[:: max(1, len(grey) // PCA_IMAGES), 0])
    label = component_of(len(grey), pca_hash.copies(pca_hash.hashes(grey, V), HASH_BITS))
    order = np.argsort(-pixels, kind="stable")  # most pixels first
    return np.sort(readable[order[np.unique(label[order], return_index=True)[1]]])


def curate(args):
    """Run all stages and write the selection."""
    work = args.out.with_name(args.out.name + ".work")
    places = {"uncurated": args.uncurated, "curated": args.curated, "exclude": args.exclude}
    found = {flag: find_images(place) for flag, place in places.items() if place}
    pool = found["uncurated"]
    vit = load_vit(args.weights, args.device)
    scale = estimate_scale(sum(found.values(), []), read_file, args.scale)
    work.mkdir(exist_ok=True)

    files = thumbnails(pool, scale, work)
    rows = distributed.from_first_rank(lambda: unique_images(files))
    print_first(f"PCA hash: {len(pool)} images in, {len(rows)} out")
    found["uncurated"] = [pool[i] for i in rows]
    e = embed(vit, sum(found.values(), []), whole_patches(args.size, vit.patch_size), scale, work)
    features = {}
    for flag, paths in found.items():
        rows = np.flatnonzero(e[: len(paths)].any(axis=1))  # 0: not readable
        if len(rows) == 0:
            raise UserError(f"none of the images of --{flag} can be read")
        features[flag] = keep(f"embed {flag}", paths, e[: len(paths)], rows)
        e = e[len(paths) :]

    paths, e = features["uncurated"]
    paths, e = keep("self-de-duplication", paths, e, deduplicate(e, args.self_threshold))
    if args.exclude:
        rows = remove_near(e, features["exclude"][1], args.reference_threshold)
        if len(rows) == 0:
            raise UserError("every image is in a component of an excluded one; raise --reference-threshold")
        paths, e = keep("relative de-duplication", paths, e, rows)
    if args.curated:
        curated, e_curated = features["curated"]
        mode = args.mode or ("clusters" if len(curated) < SMALL else "samples")
        if mode == "samples":
            rows = retrieve_samples(e_curated, e, args.per_image)
        else:
            n_clusters = min(CLUSTERS, max(1, len(e) // CLUSTER_SIZE))
            rows = retrieve_clusters(e_curated, e, n_clusters, PER_CLUSTER, seed=args.seed)
        if len(rows) == 0:
            raise UserError(f"no cluster holds more than {MIN_HITS} curated images; use --mode samples")
        paths, e = keep(f"retrieval, {mode}", paths, e, rows)
        write_reasons(args.out, paths, e, curated, e_curated, mode, scale)
    if distributed.rank() == 0:
        write_text(args.out, "".join(f"{path}\n" for path in paths))
    print_first(f"{len(paths)} of {len(pool)} images selected: {args.out}")


def keep(stage, paths, e, rows):
    """The images and features of some rows; prints how many."""
    print_first(f"{stage}: {len(paths)} images in, {len(rows)} out")
    return [paths[i] for i in rows], e[rows]


@report_errors("curate.py")
def main(argv=None):
    """The program; returns its exit status."""
    parser = Parser(prog="curate.py", description="Select images like the curated ones, without copies.")
    add, default = parser.add_argument, " (default: %(default)s)"
    add("--uncurated", help="folder, archive or list of images to choose from")
    add("--curated", help="images to look for (without them, only copies are left out)")
    add("--exclude", help="evaluation images: what is like them is left out")
    add("--weights", help="vit.pt, checkpoint.pt, an official name or file")
    add("--out", type=Path, default=Path("selected.txt"), help="the list" + default)
    add("--html", metavar="PAGES", help="a saved page, or a folder of them: write the addresses of their images to "
        "addresses.txt beside --out, and stop")  # fmt: skip
    add("--self-threshold", type=number(-1, 1), default=0.6, help="cosine above which two images are copies" + default)
    add("--reference-threshold", type=number(-1, 1), default=0.45, help="the same, to an excluded image" + default)
    add("--mode", choices=("samples", "clusters"),
        help=f"way of retrieval (default: clusters for fewer than {SMALL} curated images)")  # fmt: skip
    add("--per-image", type=positive, default=4, help="samples: images for each curated one" + default)
    add("--size", type=side, default=224, help="side of an embedded image, rounded to whole patches" + default)
    add("--seed", type=number(0, 2**31 - 1, int), default=0, help="of k-means and the random draws" + default)
    add_scale(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_scale(args.scale)
    check_out(args.out)
    if args.out.suffix in (".csv", ".png"):
        raise UserError(f"--out {args.out}: {args.out.suffix} is written beside the list; give the list another ending")
    if args.html:
        addresses, path = image_addresses(args.html), args.out.with_name("addresses.txt")
        write_text(path, "".join(f"{address}\n" for address in addresses))
        print(f"{len(addresses)} addresses of images: {path}; download them with img2dataset (docs/curation.md)")
        return 0
    if not (args.uncurated and args.weights):
        raise UserError("give --uncurated and --weights, or --html")
    args.device, threads = find_device(args.device), choose_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    args.device = distributed.start(args.device, patience=24)
    print_first(f"on {args.device}, {threads}")
    curate(args)
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
