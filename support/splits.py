"""Training and test images of a dataset, and the class of each: from its folders or from a list.

    train/cats/1.jpg, val/cats/2.jpg      top folders `train` and `test` (or `val`, `valid`, `validation`), in any case,
                                          then a folder for each class
    cats/1.jpg, dogs/2.jpg                classes only: every tenth image of each class is held out
    1.jpg, 2.jpg                          neither: every tenth image is a test image, and is trained on as well

Folders that could be splits or classes are refused.
"""

from collections import Counter

from support.files import UserError

TRAIN, HELD_OUT = ("train", "training"), ("test", "testing", "val", "valid", "validation")
TEST_EVERY = 10  # ours: without a test split, one image in ten is held out
USE_A_LIST = "or give a .csv list with the header path,label,split"


def choose_splits(names, given, data):
    """Sorted names -> {"train": [(name, class or None)], "test": the same}, class names, notes to print.

    given: {name: (split or None, class or None)} of a list or `.cls` files.  Raises UserError, which names `data`.
    """
    parts = unwrapped([[part for part in name.split("/") if not part.lower().endswith(".tar")] for name in names])
    has_split, has_class = (any(pair[i] for pair in given.values()) for i in (0, 1))
    if has_split:
        column = [given[name][0] or TRAIN[0] for name in names]
        known = {split.lower() for split in column}
        if not known & set(TRAIN) or known - set(TRAIN + HELD_OUT) and not known & set(HELD_OUT):
            raise UserError(f"{data}: its splits are {', '.join(sorted(set(column))[:5])}; name them {TRAIN[0]} and "
                            f"{', '.join(HELD_OUT[:-1])} or {HELD_OUT[-1]}")
        parts = unwrapped([[split, *p] for split, p in zip(column, parts)])
    sides = sides_of_folders(parts, data, strict=not given)
    rows, neither = [], Counter()
    for name, p in zip(names, parts):
        side = sides.get(p[0].lower())
        below = p[1:] if sides else p
        if sides and not side:
            neither[p[0]] += 1
        elif has_class:
            rows.append((name, side, given.get(name, (None, None))[1]))
        else:
            rows.append((name, side, below[0] if len(below) > 1 else None))
    counts = Counter(kind for _, side, kind in rows if side != "test")
    classes = sorted(counts) if None not in counts and len(counts) > 1 else []
    notes = [f"{sum(neither.values())} images are in neither split, for example in {min(neither)}"] if neither else []
    if None in counts and len(counts) > 2:
        first = next(name for name, side, kind in rows if side != "test" and kind is None)
        notes.append(f"no labels: {counts[None]} of {sum(counts.values())} images have no class, for example {first}")
    return hold_out(rows, classes), classes, notes


def sides_of_folders(parts, data, strict):
    """Paths as lists of parts -> {top folder in lower case: "train" or "test"}, or {} if there are no splits.

    Of several held-out folders the first in HELD_OUT that has class folders counts, or else the first.
    strict: refuse folders that could be splits or classes.
    """
    depth = Counter()
    for p in parts:
        if len(p) > 1:
            depth[p[0].lower()] = max(depth[p[0].lower()], len(p))
    train = [top for top in depth if top in TRAIN]
    held_out = sorted(set(depth) & set(HELD_OUT), key=lambda top: (depth[top] < 3, HELD_OUT.index(top)))
    if train and held_out:
        return dict.fromkeys(train, "train") | {held_out[0]: "test"}
    below = {p[1].lower() for p in parts if len(p) > 2}
    if strict and below & set(TRAIN) and below & set(HELD_OUT):
        raise UserError(f"{data}: its classes hold the splits; put them into folders train and test, {USE_A_LIST}")
    if strict and (train or held_out):
        raise UserError(f"{data}: are its folders {', '.join(sorted(depth)[:5])} splits or classes? Splits are folders "
                        f"train and test (or val, valid, validation); rename them, {USE_A_LIST}")
    return {}


def hold_out(rows, classes):
    """[(name, "train", "test" or None, class or None)] -> {"train": [(name, class)], "test": the same}.

    None: every tenth image of its class is held out; without classes these are trained on as well.
    """
    totals, seen = Counter(kind for *_, kind in rows), Counter()
    splits = {"train": [], "test": []}
    for name, side, kind in rows:
        kind = kind if classes else None
        if side is None:
            held = seen[kind] % TEST_EVERY == 0 and (not classes or totals[kind] > 1)
            side = "test" if held else "train"
            seen[kind] += 1
            if held and not classes:
                splits["train"].append((name, kind))
        splits[side].append((name, kind))
    return splits


def unwrapped(parts):
    """Paths as lists of parts, without the folders that contain everything."""
    while parts and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    return parts
