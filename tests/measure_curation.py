"""The tables about curation in docs/log.md, measured again.

    python tests/measure_curation.py copies FOLDER photos.tar cifar10.tar.xz vit.pt      FOLDER is filled with copies
    python tests/measure_curation.py million FOLDER                                      2 GB of random vectors
"""

import io
import resource
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
import curate  # noqa: E402
from curation import pca_hash
from curation.sources import Source, embed, thumbnails  # noqa: E402
from support.find import find_files  # noqa: E402
from support.images import MAX_MEGAPIXELS  # noqa: E402
from support.weights import load_vit  # noqa: E402

KINDS = ("original", "jpeg30", "half", "crop", "flip", "colour")
DOGS = ("n02085620", "n02113978")  # the first and last WordNet id of ImageNet's dogs


def make_copies(folder, photos, cifar):
    """folder/photos/NAME/0_original.jpg ... 5_colour.jpg, and 2,000 CIFAR pictures in folder/cifar."""
    names, read, _ = find_files(photos)
    for n, name in enumerate(names):
        place = folder / "photos" / Path(name).stem
        place.mkdir(parents=True)
        image = Image.open(io.BytesIO(read(name))).convert("RGB")
        w, h = image.size
        dx, dy = round(0.05 * w), round(0.05 * h)
        left, top = np.random.default_rng(n).integers(0, [dx + 1, dy + 1])
        tinted = np.asarray(image, dtype=float) * [1.05, 1.0, 0.93] + 5
        copies = {
            "original": (image, 95),
            "jpeg30": (image, 30),
            "half": (image.resize((w // 2, h // 2), Image.Resampling.BICUBIC), 90),
            "crop": (image.crop((left, top, left + w - dx, top + h - dy)), 90),
            "flip": (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
            "colour": (Image.fromarray(tinted.clip(0, 255).astype(np.uint8)), 90),
        }
        for k, kind in enumerate(KINDS):
            copies[kind][0].save(place / f"{k}_{kind}.jpg", quality=copies[kind][1])
    names, read, _ = find_files(cifar)
    (folder / "cifar").mkdir()
    for n, name in enumerate(names[:: len(names) // 2000][:2000]):
        (folder / "cifar" / f"{n:04}.jpg").write_bytes(read(name))


def report(what, pairs, kind, group):
    """Share of the copies that are paired with their original, and how many pairs are of different pictures."""
    pairs = {tuple(sorted(map(int, p))) for p in pairs if p[0] != p[1]}
    wrong = sum(group[a] != group[b] for a, b in pairs)
    original = {group[i]: i for i in np.flatnonzero(kind == 0)}
    found = [np.mean([tuple(sorted((int(i), int(original[group[i]])))) in pairs for i in np.flatnonzero(kind == k)])
             for k in range(1, len(KINDS))]  # fmt: skip
    print(f"{what:14}", *(f"{name} {share:.1%}" for name, share in zip(KINDS[1:], found)),
          f"pairs {len(pairs)}, wrong {wrong}", flush=True)  # fmt: skip


def copies(folder, photos, cifar, weights):
    if not folder.exists():
        make_copies(folder, photos, cifar)
    source = Source([folder / "photos", folder / "cifar"])
    paths = [Path(source.name(i)) for i in range(len(source))]
    ours = [path.parent.parent.name == "photos" for path in paths]
    kind = np.array([int(path.name[0]) if mine else -1 for path, mine in zip(paths, ours)])
    group = np.array([path.parent.name if mine else path.name for path, mine in zip(paths, ours)])
    how = None, MAX_MEGAPIXELS  # no scale: none of these is deep
    grey = thumbnails(source, folder / "thumbnails.npy", how)["grey"]
    h = pca_hash.hashes(grey, pca_hash.principal_components(grey))
    for bits in (2, 4):
        report(f"hash, {bits} bits", pca_hash.copies(h, bits), kind, group)
    network, every = load_vit(weights), range(len(source))
    e = np.array(embed(network, source, every, 160, folder / "features.npy", "embed", how))
    for threshold in (0.6, 0.8, 0.9):
        report(f"cosine > {threshold}", curate.edges_above(e, threshold, 64, 0), kind, group)
        print(f"{'':14} left: {len(curate.deduplicate(e, threshold))}")
    photos = np.flatnonzero(kind == 0)
    dog = np.array([DOGS[0] <= name[:9] <= DOGS[1] for name in group]) & (kind == 0)
    shares, generator = [], np.random.default_rng(0)
    for _ in range(10):
        query = generator.choice(np.flatnonzero(dog), 20, replace=False)
        pool = np.setdiff1d(photos, query)
        shares.append(dog[pool[curate.retrieve_samples(e[query], e[pool], 4)]].mean())
    print(f"dogs among the nearest of 20 dogs: {np.mean(shares):.1%} ± {np.std(shares):.1%}, chance "
          f"{(dog.sum() - 20) / (len(photos) - 20):.1%}")  # fmt: skip


def million(folder, n=1_000_000, d=384):
    folder.mkdir(parents=True, exist_ok=True)
    m, generator = n // 100, np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "million.npy", "w+", np.float32, (n, d))
    for start in range(0, n, 50_000):
        part = generator.standard_normal((50_000, d), dtype=np.float32)
        x[start : start + 50_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    cosine = generator.uniform(0.65, 0.95, (m, 1)).astype(np.float32)
    place = np.sort(generator.choice(np.arange(m, n), m, replace=False))
    first, other = np.array(x[:m]), generator.standard_normal((m, d), dtype=np.float32)
    other -= (other * first).sum(1, keepdims=True) * first
    x[place] = cosine * first + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other, axis=1, keepdims=True)
    x.flush()
    x = np.load(folder / "million.npy", mmap_mode="r")

    def timed(name, call):
        start = time.perf_counter()
        result = call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {time.perf_counter() - start:.0f} s, peak {peak:.2f} GiB, {len(result)} rows", flush=True)
        return result

    gone = ~np.isin(place, kept := timed("self-de-duplication", lambda: curate.deduplicate(x)))
    print(f"  planted ones found {gone.mean():.2%}, others gone {n - len(kept) - gone.sum()}")
    got = timed("retrieval, samples", lambda: curate.retrieve_samples(first, x, 4))
    print(f"  planted ones found {np.isin(place, got).mean():.2%}")
    timed("retrieval, clusters", lambda: curate.retrieve_clusters(first, x, 1000, 100))


if __name__ == "__main__":
    {"copies": copies, "million": million}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
