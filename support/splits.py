"""Which images of a set are for training and which are held out, and the class of each: folders, or a list, say it.

    train/cats/1.jpg, val/cats/2.jpg      top folders `train` and `test` (or `val`, `valid`, `validation`), in any case,
                                          then a folder for each class
    cats/1.jpg, dogs/2.jpg                classes alone: every tenth image of each is held out
    1.jpg, 2.jpg                          neither: training takes everything, test is every tenth, for pictures only

What could be meant in two ways is refused in one line, and what is left out is said.
"""

from collections import Counter

TRAIN, HELD_OUT = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # in any case
TEST_EVERY = 10  # ours: where a set has no test split, one image in ten is held out


def choose_splits(names, given):
    """Sorted names -> {"train": [(name, class or None)], "test": the same}, class names, lines to be said.

    given: {name: (split or None, class or None)}, where it is not folders that say it; a class of "" is none.  Raises
    ValueError for folders that look like splits and are not.
    """
    has_split, has_class = (any(pair[i] for pair in given.values()) for i in (0, 1))
    folders_say = all(kind is None for _, kind in given.values())
    parts = unwrapped([name.split("/") for name in names])
    if has_split:
        said = {name: given[name][0] or TRAIN[0] for name in names}
        check_splits(set(said.values()))
        parts = unwrapped([[said[name], *p] for name, p in zip(names, parts)])
    sides = sides_of_folders(parts, classes_are_folders=not given)
    rows, neither = [], Counter()
    for name, p in zip(names, parts):
        side, below = (sides.get(p[0].lower()), p[1:]) if sides else (None, p)
        if sides and not side:
            neither[p[0]] += 1
        elif has_class:
            rows.append((name, side, given[name][1] or None))
        else:
            rows.append((name, side, below[0] if len(below) > 1 and folders_say else None))
    known = Counter(kind for _, side, kind in rows if side != "test")
    classes = sorted({kind for *_, kind in rows if kind}) if None not in known and len(known) > 1 else []
    notes = []
    if neither:
        notes.append(f"{sum(neither.values())} images are in neither split, as those in {min(neither)}")
    if None in known and len(known) > 2:
        first = next(name for name, side, kind in rows if side != "test" and kind is None)
        notes.append(f"{known[None]} of {sum(known.values())} images have no class (the first: {first}), so there are "
                     "no labels")
    return hold_out(rows, classes), classes, notes


def check_splits(said):
    """ValueError unless a list's or shards' splits are known ones: one for training alone, or with one held out."""
    train, held_out = ({name for name in said if name.lower() in names} for names in (TRAIN, HELD_OUT))
    if not train or (said != train and not held_out):
        raise ValueError(f"its splits are {', '.join(sorted(said)[:5])}; there must be {TRAIN[0]}, and one of "
                         f"{', '.join(HELD_OUT)}")


def sides_of_folders(parts, classes_are_folders):
    """Paths in parts -> {top folder in lower case: "train" or "test"}, {} where there are no splits.

    Of several held-out folders the first in HELD_OUT that has folders of its own, or else the first.
    """
    depth = {}
    for p in parts:
        if len(p) > 1:
            depth[p[0].lower()] = max(depth.get(p[0].lower(), 0), len(p))
    train = [top for top in depth if top in TRAIN]
    held_out = sorted(set(depth) & set(HELD_OUT), key=lambda top: (depth[top] < 3, HELD_OUT.index(top)))
    if train and held_out:
        return dict.fromkeys(train, "train") | {held_out[0]: "test"}
    below = {p[1].lower() for p in parts if len(p) > 2}
    if classes_are_folders and below & set(TRAIN) and below & set(HELD_OUT):
        raise ValueError("its classes hold the splits; put the classes into folders train and test, or give a .csv "
                         "list with the header path,label,split")
    if (train or held_out) and classes_are_folders:
        raise ValueError(f"are its folders {', '.join(sorted(depth)[:5])} splits or classes? a split is a folder train "
                         "beside test, val, valid or validation; or give a .csv list with the header path,label,split")
    return {}


def hold_out(rows, classes):
    """[(name, "train", "test" or None, class or None)] -> {"train": [(name, class)], "test": the same}.

    None: every tenth of its class is held out, and without classes seen in training, too.
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
    """Paths in parts, without folders that wrap everything and so say nothing."""
    while parts and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    return parts
