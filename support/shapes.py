"""The built-in pictures: ten kinds of things, drawn from a seed, with labels and foreground masks.

Each kind has one outline and one texture, so both tell what it is; colours, size, place and the outline's turn tell
nothing.  Outlines are signed distances on the unit disc (negative inside), textures are in [0, 1] between the thing's
two tones, and the ground is a soft noise.  Ours: it stands in for a set that would have to be downloaded.
"""

import functools
import math

import torch
import torch.nn.functional as F

N_IMAGES = {"train": 8000, "test": 2000}  # enough for a small ViT, drawn in seconds
AREA = (0.12, 0.34)  # share of the picture that the thing covers
PERIOD = (0.36, 0.46)  # of its texture, in half widths: 12 to 15 pixels of 64
TINT = 0.04  # how far a colour channel is from grey
GROUND = 0.5  # how far the ground goes from dark to light
TURN = 0.5  # either way, of the texture; the outline has any turn

# ---------------------------------------------------------------------------- outlines and textures

def disc(x, y):
    return torch.hypot(x, y) - 1


def flower(x, y):
    return torch.hypot(x, y) - 0.8 - 0.2 * torch.cos(5 * torch.atan2(y, x))


def gear(x, y):
    return torch.hypot(x, y) - 0.87 - 0.13 * torch.tanh(4 * torch.cos(8 * torch.atan2(y, x)))


def heart(x, y):
    x, y = x.abs() * 0.64, y * 0.64 + 0.63  # the frame of the exact formula: tip at (0, 0), width 1.2
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    diagonal = (x + y).clamp(min=0) / 2
    edge = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - diagonal, y - diagonal)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, edge) / 0.64


def star(x, y, points=5, inner=0.5):
    """Tips at radius 1, notches at radius `inner`; a regular polygon if inner = cos(π / points)."""
    half = math.pi / points
    angle = half - (torch.atan2(y, x).remainder(2 * half) - half).abs()  # from the nearest tip
    u, v = torch.hypot(x, y) * angle.cos(), torch.hypot(x, y) * angle.sin()  # where all edges are one
    a, b = inner * math.sin(half), 1 - inner * math.cos(half)  # across the edge from (1, 0) to the notch
    return ((u - 1) * a + v * b) / math.hypot(a, b)


def polygon(points):
    return functools.partial(star, points=points, inner=math.cos(math.pi / points))


# A texture gets: u, v, turned and counted in periods; x, y, in the thing's own frame; noise(cells), smooth.

def wave(phase):
    return (0.5 + 1.2 * torch.sin(2 * math.pi * phase)).clamp(0, 1)  # period 1, edges a little soft


def centred(u):
    return u.remainder(1) - 0.5


KINDS = {
    "striped disc": (disc, lambda u, v, x, y, noise: wave(u)),
    "dotted square": (polygon(4), lambda u, v, x, y, noise:
                      (3.5 - 10 * torch.hypot(centred(u), centred(v))).clamp(0, 1)),
    "checked triangle": (polygon(3), lambda u, v, x, y, noise:
                         (0.5 + 2 * torch.sin(math.pi * u) * torch.sin(math.pi * v)).clamp(0, 1)),
    "ringed star": (star, lambda u, v, x, y, noise: wave(2.5 * torch.hypot(x, y))),
    "speckled pentagon": (polygon(5), lambda u, v, x, y, noise: (0.5 + 8 * (noise(32) - 0.5)).clamp(0, 1)),
    "shaded gear": (gear, lambda u, v, x, y, noise: (0.5 + 0.6 * x).clamp(0, 1)),
    "wavy flower": (flower, lambda u, v, x, y, noise: wave(u + 0.3 * torch.sin(2 * math.pi * v))),
    "gridded heart": (heart, lambda u, v, x, y, noise:
                      (2.4 - 8 * torch.minimum(centred(1.5 * u).abs(), centred(1.5 * v).abs())).clamp(0, 1)),
    "rayed hexagon": (polygon(6), lambda u, v, x, y, noise: wave(torch.atan2(y, x) * 8 / (2 * math.pi))),
    "plain octagon": (polygon(8), lambda u, v, x, y, noise: torch.zeros_like(x)),
}


# ---------------------------------------------------------------------------- pictures


def draw_shapes(split, size, seed):
    """The pictures of a split, classes in turn: pixels (N, 3, S, S) uint8, labels (N,), masks (N, S, S) bool."""
    count = N_IMAGES[split]
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))  # never shared
    labels = torch.arange(count) % len(KINDS)
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    masks = torch.empty(count, size, size, dtype=torch.bool)
    for kind, (shape, texture) in enumerate(KINDS.values()):
        for rows in torch.where(labels == kind)[0].split(50):  # few at a time stay in the processor's cache
            pixels[rows], masks[rows] = draw(shape, texture, len(rows), size, generator)
    return pixels, labels, masks


def draw(shape, texture, n, size, generator):
    """n pictures of one kind: (n, 3, S, S) uint8, (n, S, S) bool."""
    def uniform(low, high, channels=1):
        return low + (high - low) * torch.rand(n, channels, 1, 1, generator=generator)  # (n, channels, 1, 1)

    def smooth(cells):
        return F.interpolate(torch.rand(n, 1, cells, cells, generator=generator), size=size, mode="bicubic")

    def turned(x, y, angle):
        return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    line = (torch.arange(size) + 0.5) * (2 / size) - 1  # (S,), pixel centres in [-1, 1]
    radius = torch.sqrt(4 * uniform(*AREA) / unit_area(shape))
    free = (1 - radius).clamp(min=0)  # the whole thing stays in the picture
    x, y = line - free * uniform(-1, 1), line[:, None] - free * uniform(-1, 1)
    x, y = turned(x / radius, y / radius, uniform(0, 2 * math.pi))  # (n, 1, S, S), the thing's own frame
    inside = (0.5 - shape(x, y) * radius * size / 2).clamp(0, 1)  # edges one pixel wide
    period = uniform(*PERIOD)
    u, v = turned(line / period, line[:, None] / period, uniform(-TURN, TURN))
    surface = texture(u + uniform(0, 1), v + uniform(0, 1), x, y, smooth)

    # Colours say little, or matching two crops by colour would be all there is to learn.  The ground is dark, the thing
    # has two lighter tones, all of them near grey.
    def tinted(light):
        return light + uniform(-TINT, TINT, 3)  # (n, 3, 1, 1)

    ground = 0.2 + GROUND * (smooth(4) - 0.5) + 0.15 * (smooth(16) - 0.5)
    dark, light = tinted(uniform(0.35, 0.4)), tinted(uniform(0.8, 0.95))
    thing = light + (dark - light) * surface
    picture = ground + (thing - ground) * inside
    return (picture.clamp(0, 1) * 255).round().byte(), inside[:, 0] > 0.5


@functools.cache
def unit_area(shape):
    """Area of a shape, the unit disc's being π."""
    line = torch.linspace(-1, 1, 400)
    return 4 * (shape(line.expand(400, 400), line[:, None].expand(400, 400)) < 0).float().mean().item()
