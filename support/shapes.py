"""The built-in dataset, ours: ten kinds of animals and vehicles, drawn from a seed, with the part of each pixel.

Parts, their arrangement and the coat (a texture) make the kind; all else is random and independent of it.  An object is
drawn part by part, from the back, in its own frame: x forward, y down, about 2 long.  A part is given by the signed
distance to its outline (negative inside), in a frame (a, b) that is moved to a place and rotated by an angle.
"""

import math

import torch
import torch.nn.functional as F

N_IMAGES = {"train": 5000, "test": 1000}  # enough for a small ViT, drawn in seconds
PARTS = ("body", "head", "leg", "wheel", "wing", "tail", "window")  # part i is i + 1 in the maps, the background 0
SHARE = {"body": 0.9, "head": 1.1, "leg": 0.65, "wheel": 0.55, "wing": 1.0, "tail": 0.7, "window": 1.25}  # of lightness
# If crops can be matched by their colours, a network learns nothing else, so the colours are similar in all images.
SEA = torch.tensor([0.25, 1.0, 0.95]).view(3, 1, 1)  # colour of backgrounds, as multiples of their lightness
EARTH = torch.tensor([1.2, 0.95, 0.65]).view(3, 1, 1)  # of objects
DOWN, BACK = math.pi / 2, math.pi


def oval(a, b, length, width):
    """An outline: distance from a centred oval; length and width are half axes."""
    return (torch.hypot(a / length, b / width) - 1) * torch.minimum(length, width)


def box(a, b, length, width, corner=0.06):
    """Distance from a centred box with round corners; half sides."""
    a, b = a.abs() - (length - corner), b.abs() - (width - corner)
    return torch.hypot(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp(max=0) - corner


def limb(a, b, length, start, end):
    """Distance from a limb that begins at (0, 0), along a; radius at its start and end."""
    share = (a / length).clamp(0, 1)
    return torch.hypot(a - share * length, b) - (start + (end - start) * share)


def blade(a, b, length, start, end, sweep=0.0):
    """Distance from a blade that begins at (0, 0), along a; half widths at its start and end; sweep: b at the end."""
    width = start + (end - start) * a / length
    return torch.maximum((b - sweep * a / length).abs() - width, (a - length / 2).abs() - length / 2)


def wave(phase):
    """A texture, 0 dark and 1 light: stripes of period 1 with soft edges."""
    return (0.5 + 1.2 * torch.sin(2 * math.pi * phase)).clamp(0, 1)


def dot(a, b, radius):
    """A texture: 1 within the radius of the origin, 0 beyond."""
    return (0.5 + (radius - torch.hypot(a, b)) / 0.2).clamp(0, 1)


# Textures of parts, for all kinds.  a, b: the part's frame; a is divided by the length (ovals and boxes: half of it),
# b by half the width.
TEXTURES = {
    "head": lambda a, b: 1 - dot(a - 0.1, b + 0.25, 0.4),  # an eye
    "leg": lambda a, b: (0.5 + (0.7 - a) / 0.1).clamp(0, 1),  # a dark foot
    "wheel": lambda a, b: dot(a, b, 0.65) - dot(a, b, 0.25),  # a dark tyre and a hub
    "window": lambda a, b: wave(0.5 * (a + b)),  # a glare
}

# The coat, a texture of all parts but wheels and windows; a, b: the part's frame.  Then the parts, from the back to the
# front: name, outline, place, angle, sizes.  u(low, high): random numbers, one per image.
KINDS = {
    "fish": (lambda a, b: wave(3 * (a + b)), lambda u: [  # slanting stripes
        ("tail", blade, (-0.5, 0), BACK + u(-0.35, 0.35), 0.42, 0.06, 0.32),
        ("wing", blade, (0, -0.2), -DOWN - u(0, 0.4), u(0.25, 0.35), 0.24, 0.12, -0.15),
        ("body", oval, (0, 0), 0, 0.62, u(0.3, 0.36)),
        ("head", oval, (0.5, 0), 0, 0.26, 0.24),
        ("wing", blade, (0, 0.1), DOWN + u(0.3, 0.9), 0.28, 0.06, 0.13)]),
    "bird": (lambda a, b: (0.5 + b / 0.05).clamp(0, 1), lambda u: [  # a light belly
        *[("leg", limb, (x, 0.2), DOWN + u(-0.4, 0.4), 0.5, 0.05, 0.045) for x in (-0.08, 0.08)],
        ("tail", blade, (-0.4, 0), BACK + u(0, 0.5), 0.5, 0.08, 0.18),
        ("body", oval, (0, 0), u(-0.25, 0), 0.52, u(0.28, 0.34)),
        ("head", oval, (0.5, u(-0.36, -0.26)), u(-0.2, 0.2), 0.24, 0.22),
        ("wing", blade, (0.15, -0.05), BACK + u(-0.1, 0.9), u(0.5, 0.65), 0.16, 0.08, 0.06)]),
    "dog": (lambda a, b: torch.full_like(a, 0.8), lambda u: [  # plain
        *[("leg", limb, (x, 0.15), DOWN + u(-0.35, 0.35), 0.55, 0.09, 0.07) for x in (-0.45, -0.33, 0.3, 0.42)],
        ("tail", limb, (-0.5, -0.1), BACK + u(0, 1), 0.45, 0.07, 0.05),
        ("body", box, (0, 0), 0, 0.58, u(0.22, 0.26), 0.2),
        ("head", oval, (0.62, u(-0.36, -0.2)), u(-0.2, 0.3), 0.3, 0.24)]),
    "giraffe": (lambda a, b: 1 - dot((3 * a).remainder(1) - 0.5, (3 * b).remainder(1) - 0.5, 0.4), lambda u: [  # spots
        *[("leg", limb, (x, 0.3), DOWN + u(-0.2, 0.2), 0.7, 0.07, 0.05) for x in (-0.32, -0.22, 0.18, 0.28)],
        ("tail", limb, (-0.35, 0.15), DOWN + u(0.2, 1), 0.4, 0.05, 0.07),
        ("body", limb, (0.28, 0.15), -DOWN + (nod := u(0.05, 0.45)), 0.85, 0.17, 0.13),  # the neck, then the trunk
        ("body", box, (0, 0.2), -0.15, 0.46, u(0.24, 0.28), 0.2),
        ("head", oval, (0.33 + 0.85 * nod, -0.72 + 0.2 * nod), u(0.1, 0.5), 0.28, 0.2)]),
    "butterfly": (lambda a, b: wave(3 * torch.hypot(a - 0.45, b)), lambda u: [  # rings
        *[wing for side in (-1, 1) for spread in [u(-0.15, 0.15)] for wing in (
            ("wing", blade, (-0.1, 0), side * (DOWN + 0.7 + spread), 0.62, 0.16, 0.3),
            ("wing", blade, (0.1, 0), side * (DOWN - 0.4 + spread), u(0.75, 0.9), 0.16, 0.4))],
        ("body", oval, (-0.05, 0), 0, 0.42, 0.12),
        ("head", oval, (0.42, 0), 0, 0.17, 0.16)]),
    "beetle": (lambda a, b: wave(5 * b + 0.25), lambda u: [  # stripes along
        *[("leg", limb, (x, 0), side * (DOWN + angle + u(-0.2, 0.2)), u(0.68, 0.78), 0.06, 0.05)
          for side in (-1, 1) for x, angle in ((-0.35, 0.5), (0, 0.05), (0.3, -0.5))],
        ("body", oval, (-0.08, 0), 0, 0.6, u(0.4, 0.46)),
        ("head", oval, (0.6, 0), u(-0.2, 0.2), 0.24, 0.25)]),
    "car": (lambda a, b: (0.5 - b / 0.05).clamp(0, 1), lambda u: [  # dark below
        ("body", box, (-0.1, -0.2), 0, u(0.42, 0.52), 0.3, 0.15),  # the cabin
        ("body", box, (0, 0.08), 0, 0.92, 0.22, 0.1),
        *[("window", box, (x, -0.24), 0, 0.17, 0.14, 0.04) for x in (-0.34, 0.1)],
        *[("wheel", oval, (x, 0.3), 0, 0.23, 0.23) for x in (-0.52, 0.52)]]),
    "bus": (lambda a, b: torch.full_like(a, 0.2), lambda u: [  # dark
        ("body", box, (0, -0.02), 0, 0.98, u(0.38, 0.44), 0.08),
        *[("window", box, (x, -0.14), 0, 0.14, 0.16, 0.04) for x in (-0.72, -0.36, 0, 0.36, 0.72)],
        *[("wheel", oval, (x, 0.4), 0, 0.2, 0.2) for x in (-0.58, 0.55)]]),
    "plane": (lambda a, b: dot((3 * a).remainder(1) - 0.5, (3 * b).remainder(1) - 0.5, 0.38), lambda u: [  # light spots
        ("wing", blade, (0.2, 0), -DOWN - 0.45 + (flap := u(-0.15, 0.15)), 0.7, 0.24, 0.12),
        ("tail", blade, (-0.75, 0), -DOWN - 0.5, u(0.38, 0.46), 0.16, 0.08),
        ("body", limb, (-0.85, -0.03), 0.03, 1.55, 0.12, 0.25),
        *[("window", box, (x, -0.04), 0, 0.09, 0.09, 0.04) for x in (-0.2, 0.1, 0.4, 0.7)],
        ("wing", blade, (0.2, 0.08), DOWN + 0.6 - flap, 0.85, 0.28, 0.14)]),
    "tractor": (lambda a, b: wave(3.5 * a), lambda u: [  # stripes across
        ("body", box, (0.4, 0), 0, 0.5, 0.22, 0.05),  # the bonnet, then the cabin
        ("body", box, (-0.32, -0.2), 0, 0.36, u(0.48, 0.54), 0.05),
        ("window", box, (-0.32, -0.4), 0, 0.25, 0.2, 0.04),
        ("wheel", oval, (-0.4, 0.28), 0, u(0.38, 0.44), 0.41),
        ("wheel", oval, (0.62, 0.4), 0, u(0.22, 0.27), 0.24)]),
}  # fmt: skip


def draw_shapes(split, size, seed):
    """The images of a split, with the kinds in turn: pixels (N, 3, S, S) uint8, labels (N,), parts (N, S, S) uint8."""
    labels = torch.arange(N_IMAGES[split]) % len(KINDS)
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))  # the splits share no image
    pixels, parts = (torch.empty(len(labels), *shape, dtype=torch.uint8) for shape in ((3, size, size), (size, size)))
    for number, kind in enumerate(KINDS.values()):
        for rows in torch.where(labels == number)[0].split(20):  # so few stay in the processor's cache
            pixels[rows], parts[rows] = draw(kind, len(rows), size, generator)
    return pixels, labels, parts


def draw_things(size, seed, n=10):
    """n images of each of 100 things: the parts of one kind in one pose, under the coat of one kind.

    Pixels (100·n, 3, S, S) uint8, things (100·n,).  Place, tilt, size, tone, light and ground of the images differ.
    """
    def in_one_pose(parts_of):
        return lambda u: parts_of(lambda low, high: u(low, high)[:1])  # one number for all images

    generator = torch.Generator().manual_seed(seed)
    things = [(coat, in_one_pose(parts_of)) for coat, _ in KINDS.values() for _, parts_of in KINDS.values()]
    pixels = [draw(thing, n, size, generator)[0] for thing in things]
    return torch.cat(pixels), torch.arange(len(things)).repeat_interleave(n)


def draw(kind, n, size, generator):
    """n images of a kind, a value of KINDS: (n, 3, S, S) uint8, and the part of each pixel, (n, S, S) uint8."""
    coat, parts_of = kind

    def rotate(x, y, angle):
        angle = torch.as_tensor(angle)
        return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    def u(low, high, channels=1):
        return low + (high - low) * torch.rand(n, channels, 1, 1, generator=generator)  # (n, channels, 1, 1)

    def clouds(cells):
        return F.interpolate(torch.rand(n, 1, cells, cells, generator=generator), size=size, mode="bicubic") - 0.5

    ground = 0.42 + 1.3 * clouds(5) + 0.4 * clouds(14) + 0.15 * clouds(32)
    canvas = ground.clamp(0.08, 0.95) * SEA  # (n, 3, S, S)
    found = torch.zeros(n, 1, size, size, dtype=torch.uint8)

    line = (torch.arange(size) + 0.5) * (2 / size) - 1  # (S,), pixel centres in [-1, 1]
    radius = u(1.0, 1.15)  # half of the object's length, in half sides
    across, down = ((1 - radius).clamp(min=0) + beyond for beyond in (0.6, 0.3))  # so far from the image's centre
    x, y = rotate((line - across * u(-1, 1)) / radius, (line[:, None] - down * u(-1, 1)) / radius, u(-0.36, 0.36))
    x = x * torch.where(u(-1, 1) > 0, 1, -1)  # it looks left or right; x, y (n, 1, S, S), its own frame
    colour = u(0.66, 0.74) * (EARTH + u(-0.03, 0.03, 3))  # (n, 3, 1, 1)
    dark = u(0.42, 0.48)  # tone of textures, as a share of the light one
    for name, outline, place, angle, *sizes in parts_of(u):
        sizes = [torch.as_tensor(size) for size in sizes]
        a, b = rotate(x - place[0], y - place[1], angle)
        distance = outline(a, b, *sizes) * radius * size / 2  # pixels
        width = sizes[1] if outline in (oval, box) else torch.maximum(*sizes[1:3])
        texture = TEXTURES[name](a / sizes[0], b / width) if name in TEXTURES else 1
        if name not in ("wheel", "window"):
            texture = texture * coat(a, b)
        inside, inner = ((0.5 - distance - dark_line).clamp(0, 1) for dark_line in (0, size / 64))  # smooth edges
        canvas.lerp_(colour * (SHARE[name] * (dark + (1 - dark) * texture) * (0.35 + 0.65 * inner)), inside)
        found.masked_fill_(inside > 0.5, PARTS.index(name) + 1)
    canvas *= 1 + 0.7 * clouds(3)  # uneven light
    return (canvas.clamp(0, 1) * 255).round().byte(), found[:, 0]
