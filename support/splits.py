"""Training and test images of a dataset, and the class of each: from its folders or from a list.

    train/cats/1.jpg, val/cats/2.jpg    splits (`train` and `test`, `val`, ..., in any case), then classes
    cats/1.jpg, dogs/2.jpg              classes only: every tenth image of each class is held out
    1.jpg, 2.jpg                        neither: every tenth image is a test image, and is trained on as well
"""

from collections import Counter

from support.files import UserError, say_once

TRAIN, HELD_OUT = ("train", "training"), ("test", "testing", "val", "valid", "validation")
TEST_EVERY = 10  # ours: without a test split, one image in ten is held out


def choose_splits(names, given, data, labels="auto"):
    """Sorted names -> {"train": [(name, class or None)], "test": the same}, class names.

    given: {name: (split or None, class or None)} of a list or `.cls` files.  labels: "none" for no classes.
    """
    parts = unwrapped([[part for part in name.split("/") if not part.lower().endswith(".tar")] for name in names])
    has_split, has_class = (any(pair[i] for pair in given.values()) for i in (0, 1))
    if has_split:
        column = [(given[name][0] or TRAIN[0]).lower().replace("training", "train") for name in names]
        known = set(column)
        if TRAIN[0] not in known or known - set(TRAIN + HELD_OUT) and not known & set(HELD_OUT):
            raise UserError(f"{data}: its splits are {', '.join(sorted(set(column))[:5])}; name one {TRAIN[0]} "
                            f"and one {HELD_OUT[0]} (or val)")
        parts = unwrapped([[split, *p] for split, p in zip(column, parts)])
    sides = sides_of_folders(parts, data, strict=not given)
    rows, neither = [], []  # (name, "train", "test" or None, class or None)
    for name, p in zip(names, parts):
        side = sides.get(p[0].lower())
        below = p[1:] if sides else p
        kind = given.get(name, (None, None))[1] if has_class else below[0] if len(below) > 1 else None
        kind = None if labels == "none" else kind
        (rows if side or not sides else neither).append((name, side, kind))
    if neither:
        say_once(f"{data}: {len(neither)} images are in neither split, for example {neither[0][0]}")
    counts = Counter(kind for _, side, kind in rows if side != "test")
    classes = sorted(counts) if None not in counts and len(counts) > 1 else []
    if classes:
        classes += sorted({kind for _, side, kind in rows if side == "test"} - {None, *classes})
        where, hint = ("labels", "") if has_class else ("folders", "; if they are no classes, use --labels none")
        say_once(f"{data}: {len(classes)} classes from its {where}, the first are {', '.join(classes[:3])}{hint}")
    if None in counts and len(counts) > 1:
        say_once(f"{data}: no labels, because {counts[None]} of {counts.total()} images have no class")
    if not classes and not sides:
        pairs = [(name, None) for name in names]
        return {"train": pairs, "test": pairs[::TEST_EVERY]}, []
    splits, seen = {"train": [], "test": []}, Counter()
    for name, side, kind in rows:
        if side is None:
            side = "test" if seen[kind] % TEST_EVERY == 0 and counts[kind] > 1 else "train"
            seen[kind] += 1
        splits[side].append((name, kind if classes else None))
    for side, pairs in splits.items():
        absent = set(classes) - {kind for _, kind in pairs}
        if absent and len(absent) < len(classes):
            say_once(f"{data}: {len(absent)} classes have no {side} images, for example {min(absent)}")
    return splits, classes


def sides_of_folders(parts, data, strict):
    """Paths as lists of parts -> {top folder in lower case: "train" or "test"}, or {} if there are no splits.

    strict: refuse folders that could be splits or classes.
    """
    folders, with_classes = ({p[0].lower() for p in parts if len(p) > n} for n in (1, 2))
    train = folders & set(TRAIN)
    held_out = [top for top in HELD_OUT if top in with_classes] + [top for top in HELD_OUT if top in folders]
    if train and held_out:
        return dict.fromkeys(train, "train") | {held_out[0]: "test"}
    below = {p[1].lower() for p in parts if len(p) > 2}
    if strict and (train or held_out or below & set(TRAIN) and below & set(HELD_OUT)):
        raise UserError(f"{data}: are its folders {', '.join(sorted(folders)[:5])} splits or classes? Splits are top "
                        "folders, train and test (or val), with classes inside; rename or move them, or give a .csv "
                        "list with the header path,label,split")
    return {}


def unwrapped(parts):
    """Paths as lists of parts, without the folders that contain everything."""
    while parts and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    return parts
