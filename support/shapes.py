"""The built-in pictures: ten kinds of things made of parts, drawn from a seed, with the part of each pixel known.

Six creatures and four vehicles share seven parts.  Which parts there are, how they are put together, and the coat that
they wear make the kind.  Pose, proportions, size, turn, place, light and colours are drawn for each picture and
say nothing of the kind; some of a thing may lie beyond the border.

A thing is drawn part by part, from the back, in its own frame: x forward, y down, about 2 long.  A part is an outline,
the signed distance from its edge (negative inside), in a frame of its own, turned as the pose wants it: a along it, b
across.
Ours: it stands in for a set that would have to be downloaded.
"""

import math

import torch
import torch.nn.functional as F

N_IMAGES = {"train": 5000, "test": 1000}  # enough for a small ViT, drawn in seconds
PARTS = ("body", "head", "leg", "wheel", "wing", "tail", "window")  # part i is i + 1 in the maps, the ground 0
LENGTH = (1.0, 1.15)  # of a thing, as a share of the picture's side
BEYOND = (0.3, 0.15)  # how far its frame may reach over the border, across and down, as shares of the side
TURN = 0.36  # either way, of the whole thing
LINE = 1 / 64  # width of the dark line around each part, as a share of the side
# Two crops can be matched by their colours, and then nothing else is learnt; so these are much alike everywhere.
SEA, EARTH = (0.25, 1.0, 0.95), (1.2, 0.95, 0.65)  # of the ground and of things, as multiples of their lightness
TINT = 0.03  # how far a thing's colour is from EARTH, in each channel
LIGHT = (0.66, 0.74)  # lightness of a thing, of which its parts have a share
SHARE = {"body": 0.9, "head": 1.1, "leg": 0.65, "wheel": 0.55, "wing": 1.0, "tail": 0.7, "window": 1.25}
DARK = (0.42, 0.48)  # the dark tone of textures, as a share of the light one
SHADE = 0.7  # how unevenly the lamp shines on a picture

DOWN, BACK = math.pi / 2, math.pi

# ---------------------------------------------------------------------------- outlines: a, b and sizes -> distance


def oval(a, b, length, width):
    """Centred; half axes."""
    return (torch.hypot(a / length, b / width) - 1) * torch.minimum(length, width)


def box(a, b, length, width, corner=0.06):
    """Centred; half sides, round corners."""
    a, b = a.abs() - (length - corner), b.abs() - (width - corner)
    return torch.hypot(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp(max=0) - corner


def limb(a, b, length, start, end):
    """From (0, 0) along a; radius at the start and at the end."""
    share = (a / length).clamp(0, 1)
    return torch.hypot(a - share * length, b) - (start + (end - start) * share)


def blade(a, b, length, start, end, sweep=0.0):
    """From (0, 0) along a, straight edges; half width at the start and at the end, which is moved by `sweep` across."""
    width = start + (end - start) * a / length
    return torch.maximum((b - sweep * a / length).abs() - width, (a - length / 2).abs() - length / 2)


# ---------------------------------------------------------------------------- textures: 0 is the dark tone, 1 the light

def wave(phase):
    """Stripes, one a unit of phase, in [0, 1]."""
    return (0.5 + 1.2 * torch.sin(2 * math.pi * phase)).clamp(0, 1)  # period 1, edges a little soft


def ring(a, b, radius):
    """1 within the radius of the origin, 0 beyond."""
    return (0.5 + (radius - torch.hypot(a, b)) / 0.2).clamp(0, 1)


def dots(a, b, radius):
    """A dot of that radius in the middle of each unit square."""
    return (0.5 + (radius - torch.hypot(a.remainder(1) - 0.5, b.remainder(1) - 0.5)) / 0.2).clamp(0, 1)


# Of a part, whatever has it; a, b: the part's frame, counted in its length and width, for ovals and boxes in halves.
TEXTURES = {
    "head": lambda a, b: 1 - ring(a - 0.1, b + 0.25, 0.4),  # an eye
    "leg": lambda a, b: (0.5 + (0.7 - a) / 0.1).clamp(0, 1),  # a dark foot
    "wheel": lambda a, b: ring(a, b, 0.65) - ring(a, b, 0.25),  # a dark tyre and a hub
    "window": lambda a, b: wave(0.5 * (a + b)),  # a glare
}

# Of a kind, on all its parts but wheels and windows; a, b: the part's frame in the thing's units.
COATS = {
    "fish": lambda a, b: wave(3 * (a + b)),  # slanting stripes
    "bird": lambda a, b: (0.5 + b / 0.05).clamp(0, 1),  # a light belly
    "dog": lambda a, b: torch.full_like(a, 0.8),  # plain
    "giraffe": lambda a, b: 1 - dots(3 * a, 3 * b, 0.4),  # dark spots
    "butterfly": lambda a, b: wave(3 * torch.hypot(a - 0.45, b)),  # rings
    "beetle": lambda a, b: wave(5 * b + 0.25),  # stripes along
    "car": lambda a, b: (0.5 - b / 0.05).clamp(0, 1),  # dark below
    "bus": lambda a, b: torch.full_like(a, 0.2),  # dark
    "plane": lambda a, b: dots(3 * a, 3 * b, 0.38),  # light spots
    "tractor": lambda a, b: wave(3.5 * a),  # stripes across
}

# ---------------------------------------------------------------------------- kinds: from the back to the front


def fish(part, u):
    """Tail, two fins, body, head.  Each kind draws its parts, from the hindmost to the foremost; u(low, high) is drawn
    anew for each picture."""
    swim = u(-0.35, 0.35)
    part("tail", blade, (-0.5, 0), BACK + swim, 0.42, 0.06, 0.32)
    part("wing", blade, (0, -0.2), -DOWN - u(0, 0.4), u(0.25, 0.35), 0.24, 0.12, -0.15)
    part("body", oval, (0, 0), 0, 0.62, u(0.3, 0.36))
    part("head", oval, (0.5, 0), 0, 0.26, 0.24)
    part("wing", blade, (0, 0.1), DOWN + u(0.3, 0.9), 0.28, 0.06, 0.13)


def bird(part, u):
    """Two legs, tail, body, head, and a wing that may be folded."""
    for side in (-0.08, 0.08):
        part("leg", limb, (side, 0.2), DOWN + u(-0.4, 0.4), 0.5, 0.05, 0.045)
    part("tail", blade, (-0.4, 0), BACK + u(0, 0.5), 0.5, 0.08, 0.18)
    part("body", oval, (0, 0), u(-0.25, 0), 0.52, u(0.28, 0.34))
    part("head", oval, (0.5, u(-0.36, -0.26)), u(-0.2, 0.2), 0.24, 0.22)
    part("wing", blade, (0.15, -0.05), BACK + u(-0.1, 0.9), u(0.5, 0.65), 0.16, 0.08, 0.06)


def dog(part, u):
    """Four legs, a tail that wags, body, head."""
    for at in (-0.45, -0.33, 0.3, 0.42):
        part("leg", limb, (at, 0.15), DOWN + u(-0.35, 0.35), 0.55, 0.09, 0.07)
    part("tail", limb, (-0.5, -0.1), BACK + u(0, 1), 0.45, 0.07, 0.05)
    part("body", box, (0, 0), 0, 0.58, u(0.22, 0.26), 0.2)
    part("head", oval, (0.62, u(-0.36, -0.2)), u(-0.2, 0.3), 0.3, 0.24)


def giraffe(part, u):
    """Four legs, tail, a neck that nods, body, head."""
    for at in (-0.32, -0.22, 0.18, 0.28):
        part("leg", limb, (at, 0.3), DOWN + u(-0.2, 0.2), 0.7, 0.07, 0.05)
    part("tail", limb, (-0.35, 0.15), DOWN + u(0.2, 1), 0.4, 0.05, 0.07)
    nod = u(0.05, 0.45)
    part("body", limb, (0.28, 0.15), -DOWN + nod, 0.85, 0.17, 0.13)
    part("body", box, (0, 0.2), -0.15, 0.46, u(0.24, 0.28), 0.2)
    part("head", oval, (0.33 + 0.85 * nod, -0.72 + 0.2 * nod), u(0.1, 0.5), 0.28, 0.2)


def butterfly(part, u):
    """Two wings on each side, body, head."""
    for side in (-1, 1):
        spread = u(-0.15, 0.15)
        part("wing", blade, (-0.1, 0), side * (DOWN + 0.7 + spread), 0.62, 0.16, 0.3)
        part("wing", blade, (0.1, 0), side * (DOWN - 0.4 + spread), u(0.75, 0.9), 0.16, 0.4)
    part("body", oval, (-0.05, 0), 0, 0.42, 0.12)
    part("head", oval, (0.42, 0), 0, 0.17, 0.16)


def beetle(part, u):
    """Three legs on each side, body, head."""
    for side in (-1, 1):
        for at, angle in ((-0.35, 0.5), (0, 0.05), (0.3, -0.5)):
            part("leg", limb, (at, 0), side * (DOWN + angle + u(-0.2, 0.2)), u(0.68, 0.78), 0.06, 0.05)
    part("body", oval, (-0.08, 0), 0, 0.6, u(0.4, 0.46))
    part("head", oval, (0.6, 0), u(-0.2, 0.2), 0.24, 0.25)


def car(part, u):
    """A cabin and the body below, two windows, two wheels."""
    part("body", box, (-0.1, -0.2), 0, u(0.42, 0.52), 0.3, 0.15)
    part("body", box, (0, 0.08), 0, 0.92, 0.22, 0.1)
    for at in (-0.34, 0.1):
        part("window", box, (at, -0.24), 0, 0.17, 0.14, 0.04)
    for at in (-0.52, 0.52):
        part("wheel", oval, (at, 0.3), 0, 0.23, 0.23)


def bus(part, u):
    """A long body, five windows, two wheels."""
    part("body", box, (0, -0.02), 0, 0.98, u(0.38, 0.44), 0.08)
    for at in (-0.72, -0.36, 0, 0.36, 0.72):
        part("window", box, (at, -0.14), 0, 0.14, 0.16, 0.04)
    for at in (-0.58, 0.55):
        part("wheel", oval, (at, 0.4), 0, 0.2, 0.2)


def plane(part, u):
    """The far wing, tail, body, four windows, the near wing."""
    flap = u(-0.15, 0.15)
    part("wing", blade, (0.2, 0), -DOWN - 0.45 + flap, 0.7, 0.24, 0.12)
    part("tail", blade, (-0.75, 0), -DOWN - 0.5, u(0.38, 0.46), 0.16, 0.08)
    part("body", limb, (-0.85, -0.03), 0.03, 1.55, 0.12, 0.25)
    for at in (-0.2, 0.1, 0.4, 0.7):
        part("window", box, (at, -0.04), 0, 0.09, 0.09, 0.04)
    part("wing", blade, (0.2, 0.08), DOWN + 0.6 - flap, 0.85, 0.28, 0.14)


def tractor(part, u):
    """Bonnet and cabin, a window, a large wheel and a small one."""
    part("body", box, (0.4, 0), 0, 0.5, 0.22, 0.05)
    part("body", box, (-0.32, -0.2), 0, 0.36, u(0.48, 0.54), 0.05)
    part("window", box, (-0.32, -0.4), 0, 0.25, 0.2, 0.04)
    part("wheel", oval, (-0.4, 0.28), 0, u(0.38, 0.44), 0.41)
    part("wheel", oval, (0.62, 0.4), 0, u(0.22, 0.27), 0.24)


KINDS = {kind.__name__: kind for kind in (fish, bird, dog, giraffe, butterfly, beetle, car, bus, plane, tractor)}

# ---------------------------------------------------------------------------- pictures


def draw_shapes(split, size, seed):
    """The pictures of a split, kinds in turn: pixels (N, 3, S, S) uint8, labels (N,), parts (N, S, S) uint8."""
    count = N_IMAGES[split]
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))  # never shared
    labels = torch.arange(count) % len(KINDS)
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    parts = torch.empty(count, size, size, dtype=torch.uint8)
    for number, kind in enumerate(KINDS.values()):
        for rows in torch.where(labels == number)[0].split(20):  # few at a time stay in the processor's cache
            pixels[rows], parts[rows] = draw(kind, len(rows), size, generator)
    return pixels, labels, parts


def draw(kind, n, size, generator):
    """n pictures of one kind: (n, 3, S, S) uint8, (n, S, S) uint8."""
    def u(low, high, channels=1):
        return low + (high - low) * torch.rand(n, channels, 1, 1, generator=generator)  # (n, channels, 1, 1)

    def smooth(cells):
        return F.interpolate(torch.rand(n, 1, cells, cells, generator=generator), size=size, mode="bicubic") - 0.5

    def turned(x, y, angle):
        angle = torch.as_tensor(angle)
        return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    def coloured(colour):
        return torch.tensor(colour).view(1, 3, 1, 1)

    ground = 0.42 + 1.3 * smooth(5) + 0.4 * smooth(14) + 0.15 * smooth(32)  # clouds
    canvas = ground.clamp(0.08, 0.95) * coloured(SEA)  # (n, 3, S, S)
    found = torch.zeros(n, 1, size, size, dtype=torch.uint8)

    line = (torch.arange(size) + 0.5) * (2 / size) - 1  # (S,), pixel centres in [-1, 1]
    radius = u(*LENGTH)  # half of the thing's length, in half sides
    across, down = ((1 - radius).clamp(min=0) + 2 * beyond for beyond in BEYOND)
    x, y = turned((line - across * u(-1, 1)) / radius, (line[:, None] - down * u(-1, 1)) / radius, u(-TURN, TURN))
    x = x * torch.where(u(-1, 1) > 0, 1, -1)  # it looks to the left or to the right; x, y (n, 1, S, S), its own frame
    colour = u(*LIGHT) * (coloured(EARTH) + u(-TINT, TINT, 3))  # (n, 3, 1, 1)
    dark = u(*DARK)

    def part(name, outline, at, angle, *sizes):
        sizes = [torch.as_tensor(size) for size in sizes]
        a, b = turned(x - at[0], y - at[1], angle)
        distance = outline(a, b, *sizes) * radius * size / 2  # pixels
        width = sizes[1] if outline in (oval, box) else torch.maximum(*sizes[1:3])
        texture = torch.ones(()) if name not in TEXTURES else TEXTURES[name](a / sizes[0], b / width)
        if name not in ("wheel", "window"):
            texture = texture * COATS[kind.__name__](a, b)
        inner = (0.5 - distance - LINE * size).clamp(0, 1)  # within the line
        inside = (0.5 - distance).clamp(0, 1)  # edges one pixel wide
        canvas.lerp_(colour * (SHARE[name] * (dark + (1 - dark) * texture) * (0.35 + 0.65 * inner)), inside)
        found.masked_fill_(inside > 0.5, PARTS.index(name) + 1)

    kind(part, u)
    canvas *= 1 + SHADE * smooth(3)
    return (canvas.clamp(0, 1) * 255).round().byte(), found[:, 0]
