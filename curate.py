"""Curation: how LVD-142M was made. (§3, Appendix A)

    python curate.py --curated DIR --uncurated DIR [--exclude DIR] --weights runs/mine/vit.pt --out selected.txt
    python train.py --data selected.txt
    torchrun --nproc-per-node 8 curate.py ...             each rank embeds and searches its share

    collect → PCA hash → embed → self-de-duplication → relative de-duplication → retrieval

    copies of each other     i ~ j  where ⟨e_i, e_j⟩ > 0.6 and j is one of i's 64 nearest; one of each component stays
    copies of a test image   i ~ j  where ⟨e_i, e_j⟩ > 0.45, test images included; their whole components go
    retrieval, samples       the k pool images nearest to each curated one
    retrieval, clusters      of each k-means cluster of the pool with more than 3 curated images, a number at random

    e  (N, D)   [CLS] features of length 1, float32, in a mapped file that grows as it is made

The paper's scale is 1.3 billion images on 20 nodes of 8 GPUs, under two days.  From what one CPU core did here:
1 M × 384 random vectors against themselves took 545 s, looking into a quarter of all cells, 5·10⁸ codes a second.  The
same quarter of 1.3 G vectors is 4·10¹⁷ codes, 120 hours on 20 nodes of 96 such cores; real features, which have cells,
need a smaller share (PROBED in neighbours.py), and the hours fall with it.  A ViT 192 wide embeds 20 images of 160² a
second on a core: 9 hours.  On a shared disk: 4 KB of thumbnail and 1.5 KB of feature an image, 5.3 TB and 2.0 TB.  In
memory, of each of 160 ranks: 8 M codes of 48 bytes and ids of 8, 0.5 GB.

Every stage leaves its result in OUT's work folder, named by a digest of all that decides it.  A run that was killed
goes on from there, and a run with another threshold starts at the first stage that the threshold changes.
"""

import hashlib
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import distributed
from curation import pca_hash
from curation.addresses import collect_addresses, download
from curation.neighbours import nearest, nearest_in_blocks
from curation.sources import Source, embed, look_at, name_broken, thumbnails
from curation.work_files import Stages, digest, once, rows_of
from distributed import print_first
from support.cli import Parser, add_device, add_pictures, check_scale, number, positive, report_errors, side
from support.device import choose_threads, find_device
from support.files import UserError, check_out, write_safely
from support.images import whole_patches
from support.report import draw_selected, write_selected
from support.weights import load_vit

SMALL = 1_000_000  # curated images: fewer are retrieved by clusters, more by samples (App. A)
CLUSTERS, PER_CLUSTER, MIN_HITS, MAX_TOTAL = 100_000, 10_000, 3, 1_000_000  # App. A
CLUSTER_SIZE = 100  # pool images for each cluster at least, ours: small pools have fewer clusters
MOST_NEIGHBOURS = 1024  # ours: of each twice as many candidates, what Faiss can list on a GPU
TRAINING = 256  # images for each centroid that k-means sees, as in Faiss
SHOWN_ROWS, SHOWN = 8, 7  # curated images of the picture, selected ones beside each

# ---------------------------------------------------------------------------- the equations of §3 and App. A


def deduplicate(embeddings, threshold=0.6, k=64, seed=0):
    """(N, D) float32, rows of length 1 -> sorted indices of those that stay: the first of each component.

    Components are those of the graph of each row's k nearest others with a cosine above threshold.
    """
    n = len(embeddings)
    return np.unique(component_of(n, edges_above(embeddings, threshold, k, seed)), return_index=True)[1]


def remove_near(embeddings, reference, threshold=0.45, k=64, seed=0):
    """(N, D), (R, D) -> sorted indices of the rows in whose component there is no reference.

    Components as above, of rows and references together; the references' edges are each row's nearest one.
    """
    n = len(embeddings)
    cosines, ids = nearest(embeddings, reference, 1, seed, "nearest reference")
    near = np.flatnonzero(cosines[:, 0] > threshold)
    edges = np.concatenate([edges_above(embeddings, threshold, k, seed), np.stack([near, n + ids[near, 0]], axis=1)])
    label = component_of(n + len(reference), edges)
    return np.flatnonzero(~np.isin(label[:n], label[n:]))


def edges_above(x, threshold, k, seed):
    """(N, D) -> (E, 2) pairs of rows, the second one of the first's k nearest others, with a cosine above threshold."""
    edges = [np.zeros((0, 2), dtype=np.int64)]
    for start, cosines, ids in nearest_in_blocks(x, x, k + 1, seed, "neighbours"):  # a row is among its own
        row, place = np.nonzero((cosines > threshold) & (ids != np.arange(start, start + len(ids))[:, None]))
        edges.append(np.stack([start + row, ids[row, place]], axis=1))
    return np.concatenate(edges)


def component_of(n, edges):
    """n nodes and (E, 2) edges -> (n,) the number of each node's connected component."""
    graph = coo_array((np.ones(len(edges), dtype=bool), tuple(edges.T)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def retrieve_samples(curated, pool, k=4, seed=0):
    """(C, D), (N, D) -> sorted indices of the pool's rows that are among the k nearest of a curated one."""
    ids = nearest(curated, pool, k, seed, "retrieval")[1]
    return np.unique(ids[ids >= 0])


def retrieve_clusters(curated, pool, n_clusters, per_cluster, min_hits=MIN_HITS, max_total=MAX_TOTAL, seed=0):
    """(C, D), (N, D) -> sorted indices of the pool's rows drawn from the clusters that curated rows fall into.

    Spherical k-means of the pool.  Of each cluster with more than min_hits curated rows, per_cluster rows at random,
    or all it has; of those max_total at random.  (The paper does not say which images of a cluster: at random is ours.)
    """
    n_clusters = min(n_clusters, len(pool))
    centroids = distributed.from_first_rank(lambda: k_means(pool, n_clusters, seed))  # (n_clusters, D)
    hits = np.bincount(nearest(curated, centroids, 1, seed)[1][:, 0], minlength=n_clusters)
    cluster = nearest(pool, centroids, 1, seed, "clusters")[1][:, 0]  # (N,)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(pool))
    order = order[np.argsort(cluster[order], kind="stable")]  # by cluster, at random within each
    first = np.searchsorted(cluster[order], np.arange(n_clusters))  # (n_clusters,), where each begins
    place = np.arange(len(pool)) - first[cluster[order]]  # of each row within its cluster
    chosen = order[(place < per_cluster) & (hits[cluster[order]] > min_hits)]
    return np.sort(generator.permutation(chosen)[:max_total])


def k_means(x, n_clusters, seed):
    """Centroids (n_clusters, D) of length 1, of a sample of x (N, D)."""
    sample = np.sort(np.random.default_rng(seed).choice(len(x), min(len(x), TRAINING * n_clusters), replace=False))
    k_means = faiss.Kmeans(x.shape[1], n_clusters, seed=seed, spherical=True, gpu=faiss.get_num_gpus() > 0,
                           min_points_per_centroid=1)  # fmt: skip
    k_means.train(np.ascontiguousarray(x[sample]))
    return k_means.centroids


# ---------------------------------------------------------------------------- stages


def unique_pictures(thumbs, n_bits):
    """(N,) THUMBNAIL -> sorted indices: of each group of copies the one with most pixels, none that is unreadable."""
    readable = np.flatnonzero(thumbs["pixels"] > 0)
    grey, pixels = thumbs["grey"][readable], thumbs["pixels"][readable]
    if len(readable) == 0:
        raise UserError("none of the uncurated images can be read")
    h = pca_hash.hashes(grey, pca_hash.principal_components(grey[:: max(1, len(grey) // 10_000)]))
    label = component_of(len(readable), pca_hash.copies(h, n_bits))
    order = np.lexsort((np.arange(len(readable)), -pixels, label))  # by group, most pixels first
    return np.sort(readable[order[np.unique(label[order], return_index=True)[1]]])


def find_sources(args, work):
    """What is chosen from, a Source, and what that is held against: {"curated": Source}, and "exclude" if asked for."""
    places = [args.uncurated] if args.uncurated else []
    if args.html:
        addresses = collect_addresses(args.html)
        if distributed.rank() == 0:
            write_safely(work / "addresses.txt", lambda new: new.write_text("".join(f"{a}\n" for a, _ in addresses)))
        print_first(f"{len(addresses)} addresses of images in {args.html}: {work / 'addresses.txt'}")
        if args.download:
            counts = distributed.from_first_rank(lambda: download(addresses, work / "images", args.allow_private))
            print_first("download: " + ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())))
            places.append(work / "images")
    if not places:
        raise UserError("nothing to choose from: give --uncurated, or --html with --download")
    references = {"curated": args.curated} | ({"exclude": args.exclude} if args.exclude else {})
    return Source(places), {what: Source([place]) for what, place in references.items()}


def load_network(args):
    """The ViT, the side of its images, and a digest of its weights."""
    vit = load_vit(args.weights, args.device)
    size = args.size or whole_patches(224, vit.patch_size)
    if size % vit.patch_size:
        raise UserError(f"--size {size} does not divide into patches of {vit.patch_size}")
    weights = [hashlib.sha256(p.detach().cpu().numpy().tobytes()).hexdigest() for p in vit.parameters()]
    return vit, size, digest(*weights)


def without_copied_files(stages, pool, how, n_bits):
    """Indices of the pool's pictures (U,): one of each group whose PCA hashes are near."""
    thumbs = stages.run("collect", len(pool), lambda: thumbnails(pool, stages.file("thumbnails"), how))
    name_broken(pool, thumbs, how)
    stages.decided_by(n_bits)
    return stages.run("PCA hash", (thumbs["pixels"] > 0).sum(), lambda: once(
        stages.file("unique"), lambda: unique_pictures(thumbs, n_bits)))  # fmt: skip


def embed_all(stages, pool, unique, sources, network, how):
    """Features of the pool's pictures (U, D), and of the others: {name: (indices of what can be read, (M, D))}."""
    vit, size, weights = network
    stages.decided_by(weights, size)
    e = stages.run("embed", len(unique), lambda: embed(
        vit, pool, unique, size, stages.file("pool"), "embed", how))  # fmt: skip
    references = {}
    for what, source in sources.items():
        own = digest(source.names(), how)
        thumbs = thumbnails(source, stages.folder / f"{what}-thumbnails-{own}.npy", how)
        name_broken(source, thumbs, how)
        good = np.flatnonzero(thumbs["pixels"] > 0)
        if len(good) == 0:
            raise UserError(f"none of the images of --{what} can be read")
        own = digest(own, weights, size, good.tolist())
        file = stages.folder / f"{what}-{own}.npy"
        references[what] = good, embed(vit, source, good, size, file, f"embed {what}", how)
        stages.decided_by(own)
    return e, references


def without_near_copies(stages, e, unique, excluded, args):
    """Features (U, D) and indices (U,) of the pictures left by both de-duplications; excluded: features, or None."""
    stages.decided_by(args.self_threshold, args.neighbours, args.seed)
    kept = stages.run("self-de-duplication", len(e), lambda: once(
        stages.file("kept"), lambda: deduplicate(e, args.self_threshold, args.neighbours, args.seed)))  # fmt: skip
    e, unique = rows_of(e, kept, stages.file("rows")), unique[kept]
    if excluded is None:
        return e, unique
    stages.decided_by(args.reference_threshold)
    kept = stages.run("relative de-duplication", len(e), lambda: once(stages.file("apart"), lambda: remove_near(
        e, excluded, args.reference_threshold, args.neighbours, args.seed)))  # fmt: skip
    if len(kept) == 0:
        raise UserError("every image is in a component of an excluded one; raise --reference-threshold")
    return rows_of(e, kept, stages.file("rows")), unique[kept]


def retrieve(stages, curated, pool, args):
    """Sorted indices of the pool, and the mode that made them."""
    mode = args.mode if args.mode != "auto" else "clusters" if len(curated) < SMALL else "samples"
    if mode == "samples" and args.per_image > len(pool):
        raise UserError(f"--per-image {args.per_image} is more than the pool has: {len(pool)} images")
    n_clusters = args.clusters or min(CLUSTERS, max(1, len(pool) // CLUSTER_SIZE))
    ways = {
        "samples": lambda: retrieve_samples(curated, pool, args.per_image, args.seed),
        "clusters": lambda: retrieve_clusters(curated, pool, n_clusters, args.per_cluster, MIN_HITS, args.max_total,
                                              args.seed),
    }  # fmt: skip
    chosen = stages.run(f"retrieval, {mode}", len(pool), ways[mode])
    if len(chosen) == 0:
        raise UserError(f"no cluster holds more than {MIN_HITS} curated images; fewer --clusters, or --mode samples")
    return chosen, mode


def write_selection(args, pool, chosen, e, curated, reference, mode, how):
    """The list, the .csv with the nearest curated image of each, and the picture.

    chosen: indices of the pool (S,), with features e (S, D); reference: as embed_all gives it for the Source curated.
    """
    good, features = reference
    cosines, closest = nearest(e, features, 1, args.seed)
    shown = np.linspace(0, len(features) - 1, min(len(features), SHOWN_ROWS)).astype(int)
    found = nearest(features[shown], e, SHOWN, args.seed)[1]  # (rows, SHOWN)
    if distributed.rank() > 0:
        return
    paths = [pool.name(i) for i in chosen]
    write_safely(args.out, lambda new: new.write_text(
        "".join(f"{path}\n" for path in paths), encoding="utf-8", errors="surrogateescape"))  # fmt: skip
    near = [curated.name(good[i]) for i in closest[:, 0]]
    write_selected(args.out.with_suffix(".csv"), paths, mode, near, cosines[:, 0])
    rows = [[curated.raw(good[c]), *(pool.raw(chosen[i]) for i in ids if i >= 0)] for c, ids in zip(shown, found)]
    draw_selected(rows, args.out.with_suffix(".png"), *how)


def curate(args):
    """All stages; the last line."""
    began = time.perf_counter()
    work = args.out.with_name(args.out.name + ".work")
    distributed.from_first_rank(lambda: work.mkdir(exist_ok=True))
    pool, sources = find_sources(args, work)
    network = load_network(args)
    how = look_at([pool, *sources.values()], args)
    stages = Stages(work, digest(pool.names(), how))

    unique = without_copied_files(stages, pool, how, args.hash_bits)
    e, references = embed_all(stages, pool, unique, sources, network, how)
    excluded = references["exclude"][1] if args.exclude else None
    e, unique = without_near_copies(stages, e, unique, excluded, args)
    chosen, mode = retrieve(stages, references["curated"][1], e, args)
    write_selection(args, pool, unique[chosen], e[chosen], sources["curated"], references["curated"], mode, how)

    print_first(f"{'stage':25} {'images in':>10} {'out':>10} {'seconds':>8}")
    for name, before, after, seconds in stages.table:
        print_first(f"{name:25} {before:10} {after:10} {seconds:8.1f}")
    print_first(f"{len(chosen)} of {len(pool)} images selected, {time.perf_counter() - began:.0f} s: {args.out}, and "
                f"{args.out.stem}.csv and .png beside it")  # fmt: skip


# ---------------------------------------------------------------------------- the program


def parse_args(argv):
    """Command line -> its options, the device found. Raises UserError."""
    parser = Parser(prog="curate.py", description="Select from uncurated images those like the curated ones.")
    parser.add_argument("--curated", required=True, help="folder, archive or .txt list of images to look for")
    parser.add_argument("--uncurated", help="folder, archive or list of images to choose from")
    parser.add_argument("--exclude", help="evaluation images: what is near them is left out")
    parser.add_argument("--weights", required=True, help="vit.pt, checkpoint.pt, an official name or file")
    parser.add_argument("--out", type=Path, default=Path("selected.txt"), help="the list (default: %(default)s)")
    parser.add_argument("--html", help="a saved page, a folder of them, or a .warc.gz: their images' addresses")
    parser.add_argument("--download", action="store_true", help="fetch those addresses too, into OUT's work folder")
    parser.add_argument("--allow-private", action="store_true", help="also from addresses of the local network")
    parser.add_argument("--hash-bits", type=int, default=2, help="of 64 that copies differ in at most (default: "
                        "%(default)s)")
    parser.add_argument("--self-threshold", type=number(-1, 1), default=0.6, help="cosine above which images are one "
                        "(default: %(default)s)")
    parser.add_argument("--reference-threshold", type=number(-1, 1), default=0.45, help="the same to excluded images "
                        "(default: %(default)s)")
    parser.add_argument("--neighbours", type=positive, default=64, help="neighbours that are looked at (default: "
                        "%(default)s)")
    parser.add_argument("--mode", choices=("auto", "samples", "clusters"), default="auto",
                        help=f"retrieval; auto: clusters for fewer than {SMALL} curated images")
    parser.add_argument("--per-image", type=positive, default=4, help="samples: images for each curated one "
                        "(default: %(default)s)")
    parser.add_argument("--clusters", type=positive, help=f"of the pool (default: one for {CLUSTER_SIZE} images, at "
                        f"most {CLUSTERS})")
    parser.add_argument("--per-cluster", type=positive, default=PER_CLUSTER, help="images from each cluster "
                        "(default: %(default)s)")
    parser.add_argument("--max-total", type=positive, default=MAX_TOTAL, help="images from all clusters "
                        "(default: %(default)s)")
    parser.add_argument("--size", type=side, help="side of an embedded image (default: 224, in whole patches)")
    parser.add_argument("--seed", type=int, default=0, help="of the index, k-means and random choices")
    add_pictures(parser)
    add_device(parser)
    args = parser.parse_args(argv)
    check_scale(args.scale)
    if not 0 <= args.hash_bits < 16:
        raise UserError(f"--hash-bits must be between 0 and 15, got {args.hash_bits}")
    if args.neighbours > MOST_NEIGHBOURS:
        raise UserError(f"--neighbours must be at most {MOST_NEIGHBOURS}, got {args.neighbours}")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed must be between 0 and {2**31 - 1}, got {args.seed}")
    if args.out.suffix in (".csv", ".png"):
        raise UserError(f"--out {args.out}: {args.out.suffix} stands beside the list; give the list another ending")
    if args.download and not args.html:
        raise UserError("--download needs --html")
    check_out(args.out)
    args.device, threads = find_device(args.device), choose_threads(args.threads)
    faiss.omp_set_num_threads(torch.get_num_threads())
    args.start = f"on {args.device}, {threads}"
    return args


@report_errors("curate.py", ValueError)
def main(argv=None):
    """The program; returns its exit status."""
    args = parse_args(argv)
    args.device = distributed.start(args.device, patience=24)
    print_first(args.start)
    curate(args)
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
