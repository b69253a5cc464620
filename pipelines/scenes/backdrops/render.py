"""Renders the backdrops of the bundled scenes: empty sets, lit like a product photograph, at 2,048 px.

Needs Blender as a Python module. `bpy` pins an old numpy, so give it a virtual environment of its own:

    python3.11 -m venv bpy-venv && bpy-venv/bin/pip install bpy pillow pyyaml
    bpy-venv/bin/python pipelines/scenes/backdrops/render.py                                # everything, this folder
    bpy-venv/bin/python pipelines/scenes/backdrops/render.py --only oak-window --size 384 --out previews

Geometry and materials are made here; no model and no texture is loaded. A set is built around the place where a product
stands: its foot is at (0, 0, 0), x runs to the right, y away from the camera, z up. A product of the usual size is
about one unit high.

Light is smooth and texture is not. Cycles renders them apart, so that a picture costs a fifth:
- texture, at full size, without light: colour, and the relief that the main light gives to bumps;
- light, at a third or a quarter of the size, on white surfaces, cleaned by OpenImageDenoise. Light that bounces sees
  the mean colour of each material;
- gloss, at a sixth of the size, where a material is polished: what the surface mirrors.
The picture is texture * light + gloss, in linear light. `develop` meters, tones and encodes it. `backdrops.yaml` says
of each picture what a product on it must know: the line that it stands on, where ground is visible, and from where the
light comes.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np
import yaml
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Matrix, Vector
from PIL import Image

Colour = tuple[float, float, float]  # sRGB, 0..1
Point = tuple[float, float, float]
Socket = Any  # a node's output, or a constant

LICENCE = "CC0-1.0, rendered for packshot by render.py"
LENS, SENSOR = 85.0, 36.0  # mm
RELIEF = 0.6  # share of the light that comes from the main light, so that bumps show
FAR = 6.0  # half the width of a floor or wall, units
NEAR = -2.6  # where a floor begins, units: out of sight, yet before the camera


@dataclass(frozen=True, slots=True)
class View:
    """One picture. `build` makes the set and returns the outline of its ground, corners in units."""

    name: str
    build: Callable[[], list[Point]]
    light: tuple[float, float]  # main light, degrees: azimuth (0 = from the camera, negative = left) and elevation
    ground_line: float = 0.86  # share of the height, from the top, at which the foot stands
    pitch: float = 11.0  # degrees the camera looks down
    height: float = 1.75  # units that the frame is high, at the foot
    fstop: float = 16.0
    tone: float = 0.62  # sRGB value that the meter gives to the middle of the picture, 0..1
    gloss: float = 0.0  # strength of the floor's reflection, 0 (matt) .. 1 (mirror)
    light_scale: int = 4  # light is rendered at this fraction of the size; less where edges cast it


# ---- materials -------------------------------------------------------------------------------------------------------


def linear(colour: Colour) -> tuple[float, float, float, float]:
    """sRGB 0..1 to the linear RGBA that shader sockets take (IEC 61966-2-1)."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return r, g, b, 1.0


def shaded(colour: Colour, factor: float) -> Colour:
    """A darker (or lighter) sRGB colour."""
    return tuple(min(1.0, c * factor) for c in colour)  # type: ignore[return-value]


def mean(a: Colour, b: Colour) -> Colour:
    """The colour between two."""
    return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class Graph:
    """The shader nodes of one material. Every method adds a node and returns its output."""

    def __init__(self, name: str) -> None:
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree = self.material.node_tree
        self.tree.nodes.remove(self.tree.nodes["Principled BSDF"])

    def add(self, kind: str, inputs: Mapping[Any, Socket], **settings: Any) -> bpy.types.Node:
        """A node with `inputs` (sockets are linked, constants are set) and `settings` (attributes)."""
        node = self.tree.nodes.new(f"ShaderNode{kind}")
        for name, value in settings.items():
            setattr(node, name, value)
        for key, value in inputs.items():
            self.plug(node.inputs[key], value)
        return node

    def plug(self, target: bpy.types.NodeSocket, value: Socket) -> None:
        """Links a socket to `target`, or sets a constant."""
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, target)
        else:
            target.default_value = value

    def place(self) -> Socket:
        """Where the shaded point lies in its object, units."""
        return self.add("TexCoord", {}).outputs["Object"]

    def chance(self) -> Socket:
        """A number 0..1 that differs from object to object."""
        return self.add("ObjectInfo", {}).outputs["Random"]

    def vector(self, x: Socket, y: Socket, z: Socket) -> Socket:
        """Three numbers as a vector."""
        return self.add("CombineXYZ", {0: x, 1: y, 2: z}).outputs[0]

    def parts(self, vector: Socket) -> tuple[Socket, Socket, Socket]:
        """A vector as three numbers."""
        outputs = self.add("SeparateXYZ", {0: vector}).outputs
        return outputs[0], outputs[1], outputs[2]

    def move(self, operation: str, a: Socket, b: Socket) -> Socket:
        """ADD, MULTIPLY … of two vectors; LENGTH, DOT_PRODUCT … give a number."""
        node = self.add("VectorMath", {0: a, 1: b}, operation=operation)
        return node.outputs["Value" if operation in ("LENGTH", "DOT_PRODUCT", "DISTANCE") else "Vector"]

    def turn(self, vector: Socket, degrees: float, axis: str = "Y") -> Socket:
        """The vector turned around an axis through the origin."""
        inputs = {"Vector": vector, "Angle": math.radians(degrees)}
        return self.add("VectorRotate", inputs, rotation_type=f"{axis}_AXIS").outputs[0]

    def maths(self, operation: str, a: Socket, b: Socket = 0.0) -> Socket:
        """ADD, MULTIPLY, FRACT, ABSOLUTE, MAXIMUM … of numbers."""
        return self.add("Math", {0: a, 1: b}, operation=operation).outputs[0]

    def noise(
        self, vector: Socket, scale: float, detail: float = 3.0, roughness: float = 0.5, warp: float = 0.0
    ) -> Socket:
        """Fractal noise, about 0.25..0.75, mean 0.5."""
        inputs: dict[str | int, Socket] = {"Vector": vector, "Scale": scale, "Detail": detail, "Roughness": roughness}
        return self.add("TexNoise", inputs | {"Distortion": warp}).outputs[0]

    def swirl(self, vector: Socket, scale: float, strength: float, detail: float = 3.0) -> Socket:
        """`vector`, each point moved by up to about `strength` units by smooth noise."""
        cloud = self.add("TexNoise", {"Vector": vector, "Scale": scale, "Detail": detail}).outputs["Color"]
        centred = self.move("SUBTRACT", cloud, (0.5, 0.5, 0.5))
        return self.move("ADD", vector, self.move("MULTIPLY", centred, (strength,) * 3))

    def remap(self, value: Socket, low: float, high: float, to_low: float = 0.0, to_high: float = 1.0) -> Socket:
        """A smooth step from `to_low` (at `low`) to `to_high` (at `high`)."""
        inputs: dict[str | int, Socket] = {0: value, 1: low, 2: high, 3: to_low, 4: to_high}
        return self.add("MapRange", inputs, interpolation_type="SMOOTHSTEP").outputs[0]

    def blend(self, share: Socket, a: Socket, b: Socket, mode: str = "MIX") -> Socket:
        """Colour `a`, towards (or by `mode`: with) colour `b`."""
        node = self.add("Mix", {0: share, 6: a, 7: b}, data_type="RGBA", blend_type=mode)
        return node.outputs[2]

    def shade(self, colour: Socket, *factors: Socket) -> Socket:
        """A colour times numbers."""
        for factor in factors:
            colour = self.blend(1.0, colour, self.vector(factor, factor, factor), "MULTIPLY")
        return colour

    def ramp(self, value: Socket, stops: Sequence[tuple[float, Colour]]) -> Socket:
        """A colour ramp."""
        node = self.add("ValToRGB", {0: value})
        elements = node.color_ramp.elements
        while len(elements) < len(stops):
            elements.new(0.5)
        for element, (position, colour) in zip(elements, stops, strict=True):
            element.position, element.color = position, linear(colour)
        return node.outputs[0]

    def finish(
        self,
        colour: Socket,
        flat: Colour,
        height: Socket | None = None,
        depth: float = 0.0,
        polish: float = 0.0,
        roughness: float = 0.3,
    ) -> bpy.types.Material:
        """Wires the surface: three shaders, one a pass (`render_pass` chooses). `flat` is the mean colour, `height` a
        bump (0..1) of `depth` units, `polish` the refractive index of the coat (0: matt). Returns the material."""
        camera = self.add("LightPath", {}).outputs["Is Camera Ray"]
        plain = self.add("BsdfDiffuse", {"Color": linear(flat)}).outputs[0]
        white = self.add("BsdfDiffuse", {"Color": (1, 1, 1, 1)}).outputs[0]
        black = self.add("Emission", {"Strength": 0.0}).outputs[0]
        self.add("MixShader", {0: camera, 1: plain, 2: white}, name="light")
        mirror = black
        if polish:
            coat = self.add("BsdfAnisotropic", {"Roughness": roughness}).outputs[0]
            share = self.add("Fresnel", {"IOR": polish}).outputs[0]
            mirror = self.add("MixShader", {0: share, 1: black, 2: coat}).outputs[0]
        self.add("MixShader", {0: camera, 1: plain, 2: mirror}, name="gloss")
        light = self.add("CombineXYZ", {}, name="towards light").outputs[0]
        relief: Socket = 1.0
        if height is not None:
            bump = self.add("Bump", {"Height": height, "Distance": depth, "Strength": 1.0}).outputs[0]
            smooth = self.add("NewGeometry", {}).outputs["Normal"]
            lit, even = (self.move("DOT_PRODUCT", normal, light) for normal in (bump, smooth))
            ratio = self.maths("DIVIDE", self.maths("MAXIMUM", lit, 0.0), self.maths("MAXIMUM", even, 0.25))
            ratio = self.maths("MINIMUM", ratio, 1.8)
            relief = self.maths("ADD", self.maths("MULTIPLY", ratio, RELIEF), 1.0 - RELIEF)
            away = self.maths("LESS_THAN", even, 0.25)  # no main light there: no relief
            towards = self.maths("MULTIPLY", relief, self.maths("SUBTRACT", 1.0, away))
            relief = self.maths("ADD", towards, away)
        self.add("Emission", {"Color": self.shade(colour, relief)}, name="texture")
        return self.material


def wood(
    name: str, early: Colour, late: Colour, ring: float, open_pores: float, polish: float = 1.25
) -> bpy.types.Material:
    """Sawn boards, grain along x. The rings of a tree are cylinders around its heart. The heart runs almost along the
    board, above or below it, so the cut gives arches in the middle and stripes at the edges. Pores are dark dashes."""
    g = Graph(name)
    board = g.chance()
    elsewhere = g.vector(g.maths("MULTIPLY", board, 91.0), g.maths("MULTIPLY", board, 37.0), board)
    place = g.move("ADD", g.place(), elsewhere)
    _, y, z = g.parts(g.place())
    slow = g.noise(g.move("MULTIPLY", place, (0.4, 0.4, 0.4)), 1.0, 2.0, 0.35)
    shiver = g.noise(g.move("MULTIPLY", place, (1.3, 7.0, 7.0)), 1.0, 3.0, 0.5)
    fine = g.noise(g.move("MULTIPLY", place, (4.0, 50.0, 50.0)), 1.0, 1.0)
    side = g.maths("MULTIPLY", g.maths("SUBTRACT", g.maths("FRACT", g.maths("MULTIPLY", board, 7.31)), 0.5), 0.34)
    rise = g.maths("ADD", g.maths("MULTIPLY", slow, 0.22), 0.02)
    heart = g.vector(0.0, g.maths("ADD", y, side), g.maths("ADD", rise, z))
    reach = g.move("LENGTH", heart, (0, 0, 0))
    reach = g.maths("ADD", reach, g.maths("MULTIPLY", shiver, 0.014))
    reach = g.maths("ADD", reach, g.maths("MULTIPLY", fine, ring * 0.35))
    year = g.maths("FRACT", g.maths("DIVIDE", reach, ring))
    dark = g.maths("MULTIPLY", g.remap(year, 0.15, 0.86), g.remap(year, 1.0, 0.93))
    strength = g.noise(g.move("MULTIPLY", place, (0.7, 5.0, 5.0)), 1.0, 2.0)
    dark = g.maths("MULTIPLY", dark, g.remap(strength, 0.3, 0.7, 0.35, 1.0))
    fibre = g.noise(g.move("MULTIPLY", place, (7.0, 260.0, 260.0)), 1.0, 3.0, 0.6)
    dashes = g.noise(g.move("MULTIPLY", place, (14.0, 620.0, 620.0)), 1.0, 1.0)
    pores = g.maths("MULTIPLY", g.remap(dashes, 0.60, 0.70), g.remap(dark, 0.6, 0.1, 0.35, 1.0))
    colour = g.ramp(dark, ((0.0, early), (1.0, late)))
    warm = g.noise(g.move("MULTIPLY", place, (0.8, 3.0, 3.0)), 1.0, 3.0)
    tone = g.remap(g.maths("FRACT", g.maths("MULTIPLY", board, 13.7)), 0.0, 1.0, 0.80, 1.12)
    colour = g.shade(
        colour,
        tone,
        g.remap(warm, 0.3, 0.7, 0.86, 1.1),
        g.remap(fibre, 0.3, 0.7, 0.88, 1.08),
        g.remap(pores, 0.0, 1.0, 1.0, 1.0 - open_pores),
    )
    height = g.maths("SUBTRACT", g.maths("MULTIPLY", fibre, 0.5), g.maths("MULTIPLY", g.remap(dashes, 0.6, 0.7), 0.5))
    return g.finish(colour, mean(early, late), height, 0.0010, polish, 0.36)


def linen(name: str, colour: Colour, thread: float) -> bpy.types.Material:
    """Plain weave on a wall in the plane of x and z: threads go over and under, and some are thicker (slubs)."""
    g = Graph(name)
    place = g.swirl(g.place(), 3.0, thread * 3.0, 2.0)
    place = g.swirl(place, 40.0, thread * 0.7, 1.0)
    x, _, z = g.parts(place)
    wave = [g.maths("SINE", g.maths("MULTIPLY", c, math.pi / thread)) for c in (x, z)]
    over = g.maths("MULTIPLY", wave[0], wave[1])
    slub = [
        g.noise(g.move("MULTIPLY", place, scale), 1.0, 2.0, 0.6)
        for scale in ((0.55 / thread, 1.0, 2.6), (2.6, 1.0, 0.55 / thread))
    ]
    lift = [
        g.maths("MULTIPLY", g.maths("ABSOLUTE", w), g.remap(g.maths("MULTIPLY", over, sign), -1.0, 1.0, 0.45, 1.0))
        for w, sign in zip(wave, (1.0, -1.0), strict=True)
    ]
    lift = [g.maths("MULTIPLY", h, g.remap(s, 0.3, 0.75, 0.7, 1.35)) for h, s in zip(lift, slub, strict=True)]
    height = g.maths("MAXIMUM", lift[0], lift[1])
    hair = g.noise(g.place(), 420.0, 2.0)
    cloud = g.noise(g.place(), 1.3, 2.0)
    tint = g.shade(
        linear(colour),
        g.remap(height, 0.1, 1.0, 0.68, 1.05),
        g.remap(slub[0], 0.3, 0.7, 0.9, 1.07),
        g.remap(slub[1], 0.3, 0.7, 0.9, 1.07),
        g.remap(cloud, 0.3, 0.7, 0.95, 1.03),
    )
    height = g.maths("ADD", height, g.maths("MULTIPLY", hair, 0.25))
    return g.finish(tint, shaded(colour, 0.93), height, thread * 0.22)


def plaster(name: str, colour: Colour, mottle: float = 0.10, relief: float = 0.0026) -> bpy.types.Material:
    """Lime plaster: clouds of tone, flat strokes of the trowel in all directions, fine sand, few pits."""
    g = Graph(name)
    place = g.place()
    bent = g.swirl(place, 1.7, 0.5, 1.0)
    clouds = g.noise(bent, 1.6, 4.0, 0.6)
    strokes = [
        g.noise(g.move("MULTIPLY", g.turn(bent, angle), (1.0, 2.0, 5.5)), 2.2, 4.0, 0.62) for angle in (24.0, 108.0)
    ]
    stroke = g.maths("MAXIMUM", strokes[0], strokes[1])
    sand = g.noise(place, 170.0, 2.0, 0.7)
    pits = g.add("TexVoronoi", {"Vector": place, "Scale": 26.0}).outputs["Distance"]
    seldom = g.remap(g.noise(place, 5.0, 2.0), 0.52, 0.66)
    pit = g.maths("MULTIPLY", g.remap(pits, 0.13, 0.05), seldom)
    tint = g.shade(
        linear(colour),
        g.remap(clouds, 0.3, 0.7, 1.0 - mottle, 1.0 + mottle * 0.6),
        g.remap(stroke, 0.45, 0.75, 1.0 + mottle * 0.25, 1.0 - mottle * 0.45),
        g.remap(sand, 0.3, 0.7, 0.94, 1.05),
        g.remap(pit, 0.0, 1.0, 1.0, 0.82),
    )
    height = g.maths("ADD", stroke, g.maths("MULTIPLY", sand, 0.1))
    return g.finish(tint, colour, height, relief)


def marble(name: str, ground: Colour, vein: Colour, roughness: float = 0.16) -> bpy.types.Material:
    """Polished stone. A vein is where warped noise crosses its mean; wide pale ones run beside fine dark ones."""
    g = Graph(name)
    place = g.turn(g.move("ADD", g.place(), (3.1, 1.7, 0.4)), 31.0, "Z")
    place = g.turn(place, 24.0)
    flow = g.move("MULTIPLY", place, (0.75, 2.0, 2.0))
    flow = g.swirl(g.swirl(flow, 1.1, 0.9, 2.0), 5.0, 0.12, 5.0)
    layers = []
    for scale, width, low in ((0.9, 0.055, 0.49), (1.9, 0.024, 0.46), (4.3, 0.020, 0.52)):
        field = g.noise(g.move("ADD", flow, (scale * 7, scale, 0)), scale, 1.0, 0.4)
        line = g.remap(g.maths("ABSOLUTE", g.maths("SUBTRACT", field, 0.5)), 0.0, width, 1.0, 0.0)
        layers.append(g.maths("MULTIPLY", line, g.remap(g.noise(flow, scale * 1.3, 2.0), low, low + 0.16)))
    halo = g.remap(g.maths("ABSOLUTE", g.maths("SUBTRACT", g.noise(flow, 0.9, 4.0, 0.55), 0.5)), 0.0, 0.16, 1.0, 0.0)
    clouds = g.noise(flow, 1.6, 4.0, 0.65)
    grey = g.maths("ADD", g.maths("MULTIPLY", halo, 0.16), g.remap(clouds, 0.42, 0.8, 0.0, 0.30))
    for layer, strength in zip(layers, (0.62, 0.50, 0.28), strict=True):
        grey = g.maths("MAXIMUM", grey, g.maths("MULTIPLY", layer, strength))
    crystal = g.noise(place, 130.0, 3.0, 0.7)
    colour = g.shade(g.blend(grey, linear(ground), linear(vein)), g.remap(crystal, 0.3, 0.7, 0.97, 1.02))
    return g.finish(colour, shaded(ground, 0.95), None, 0.0, 1.3, roughness)


def paper(name: str, colour: Colour) -> bpy.types.Material:
    """Background paper: matt, with a fine tooth, barely uneven."""
    g = Graph(name)
    place = g.place()
    tooth = g.noise(place, 240.0, 2.0, 0.7)
    cloud = g.noise(place, 1.1, 2.0)
    tint = g.shade(linear(colour), g.remap(tooth, 0.3, 0.7, 0.975, 1.02), g.remap(cloud, 0.3, 0.7, 0.985, 1.01))
    return g.finish(tint, colour, tooth, 0.0005)


# ---- geometry --------------------------------------------------------------------------------------------------------


def mesh(
    name: str, points: Sequence[Point], faces: Sequence[Sequence[int]], material: bpy.types.Material | None
) -> Any:
    """An object of these corners and faces."""
    data = bpy.data.meshes.new(name)
    data.from_pydata(points, [], faces)
    data.update()
    if material:
        data.materials.append(material)
    part = bpy.data.objects.new(name, data)
    bpy.context.collection.objects.link(part)
    return part


def box(name: str, low: Point, high: Point, material: bpy.types.Material | None, edge: float = 0.0) -> Any:
    """An axis-aligned box with edges rounded by `edge`; its origin is its middle."""
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
    corners = [(x * half[0], y * half[1], z * half[2]) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    part = mesh(name, corners, faces, material)
    part.location = middle
    if edge:
        soften(part, edge)
    return part


def soften(part: Any, edge: float) -> None:
    """Rounds the edges that are sharper than 40 degrees."""
    bevel = part.modifiers.new("edge", "BEVEL")
    bevel.width, bevel.segments, bevel.limit_method = edge, 3, "ANGLE"
    bevel.angle_limit = math.radians(40)


def disc(
    name: str, radius: float, low: float, high: float, material: bpy.types.Material, y: float = 0.0
) -> list[Point]:
    """An upright cylinder with a rounded rim. Returns the outline of its top."""
    middle = (0, y, (low + high) / 2)
    bpy.ops.mesh.primitive_cylinder_add(vertices=256, radius=radius, depth=high - low, location=middle)
    part = bpy.context.object
    part.name = name
    part.data.materials.append(material)
    part.data.polygons.foreach_set("use_smooth", [len(face.vertices) == 4 for face in part.data.polygons])
    soften(part, 0.008)
    angles = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    return [(radius * math.cos(a), y + radius * math.sin(a), high) for a in angles]


def boards(
    material: bpy.types.Material, width: float, length: float, into: bool, back: float, seed: int
) -> list[Point]:
    """A floor of boards up to y = `back`, running into the picture or across it. Returns its outline."""
    rng = random.Random(seed)
    gap = 0.0022
    across, along = ((-3.2, 3.2), (NEAR, back)) if into else ((NEAR, back), (-3.6, 3.6))
    row, count = across[0], 0
    while row < across[1]:
        wide = min(width, across[1] - row)
        start = along[0] - rng.uniform(0.0, 0.9) * length
        while start < along[1]:
            end = start + length
            a, b = max(start, along[0]), min(end, along[1])
            if b - a > 0.02:
                lift = rng.uniform(-0.0012, 0.0)
                half = (b - a) / 2 - gap / 2, wide / 2 - gap / 2
                part = box(f"board {count}", (-half[0], -half[1], -0.03), (half[0], half[1], 0.0), material, 0.0035)
                middle = ((row + wide / 2), (a + b) / 2)
                part.location = (*(middle if into else middle[::-1]), -0.015 + lift)
                part.rotation_euler[2] = math.radians(90 if into else 0) + rng.choice((0.0, math.pi))
                count += 1
            start = end
        row += width
    dark = Graph("gap")
    box("under", (-FAR, NEAR, -0.2), (FAR, back, -0.02), dark.finish(linear((0.12, 0.09, 0.07)), (0.12, 0.09, 0.07)))
    return outline_of_floor(back)


def slab(material: bpy.types.Material, back: float, z: float = 0.0) -> list[Point]:
    """A plain floor at height `z` up to y = `back`. Returns its outline."""
    box("floor", (-FAR, -4.0, z - 0.3), (FAR, back, z), material)
    return outline_of_floor(back)


def outline_of_floor(back: float) -> list[Point]:
    """Corners of the ground up to y = `back`; it begins before the camera's view does."""
    return [(-FAR, NEAR, 0.0), (FAR, NEAR, 0.0), (FAR, back, 0.0), (-FAR, back, 0.0)]


def wall(material: bpy.types.Material, y: float) -> None:
    """A wall that faces the camera."""
    box("wall", (-FAR, y, -0.5), (FAR, y + 0.2, 5.0), material)


def sweep(material: bpy.types.Material, back: float, radius: float) -> list[Point]:
    """One seamless sheet: floor, a curve from y = `back`, wall. Returns the outline of its flat part."""
    profile = [(-4.0, 0.0), (back, 0.0)]
    profile += [(back + radius * math.sin(a), radius * (1 - math.cos(a))) for a in np.linspace(0, math.pi / 2, 64)[1:]]
    profile.append((back + radius, 6.0))
    points = [(x, y, z) for y, z in profile for x in (-FAR, FAR)]
    part = mesh("sweep", points, [(2 * i, 2 * i + 1, 2 * i + 3, 2 * i + 2) for i in range(len(profile) - 1)], material)
    part.data.polygons.foreach_set("use_smooth", [True] * len(part.data.polygons))
    return outline_of_floor(back)


def arched_wall(
    front: bpy.types.Material, inside: bpy.types.Material, y: float, half: float, spring: float, x: float
) -> None:
    """A wall at `y` with a niche: `half` wide to each side of `x`; its arch begins at height `spring`; rounded lip."""
    lip = 0.016
    rings = [(8.0, y)]  # how far outside of the niche's outline, and how deep
    rings += [(lip * (1 - math.sin(a)), y + lip * (1 - math.cos(a))) for a in np.linspace(0, math.pi / 2, 9)]
    rings.append((0.0, y + 0.5))
    angles = np.linspace(0, math.pi, 193)
    points: list[Point] = []
    for out, depth in rings:
        r = half + out
        points.append((x + r, depth, -0.4))
        points += [(x + r * math.cos(a), depth, spring + r * math.sin(a)) for a in angles]
        points.append((x - r, depth, -0.4))
    n = len(angles) + 2
    strips = [k * n + i for k in range(len(rings) - 1) for i in range(n - 1)]
    faces: list[Sequence[int]] = [(i, i + 1, i + 1 + n, i + n) for i in strips]
    last = (len(rings) - 1) * n
    faces.append(range(last, last + n))
    part = mesh("wall", points, faces, front)
    part.data.materials.append(inside)
    reveal = (len(rings) - 2) * (n - 1)
    part.data.polygons.foreach_set("material_index", [int(i >= reveal) for i in range(len(faces))])


# ---- light -----------------------------------------------------------------------------------------------------------


def ambient(strength: float, colour: Colour = (1.0, 1.0, 1.0)) -> None:
    """Even light from everywhere."""
    world = bpy.data.worlds.new("ambient")
    bpy.context.scene.world = world
    world.cycles.sampling_method = "NONE"
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = linear(colour)
    world.node_tree.nodes["Background"].inputs["Strength"].default_value = strength


def towards(azimuth: float, elevation: float) -> Vector:
    """The direction from the foot to a light: azimuth 0 is the camera's side, negative is left; degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return Vector((math.sin(a) * math.cos(e), -math.cos(a) * math.cos(e), math.sin(e)))


def lamp(kind: str, place: Vector, aim: Vector, energy: float, colour: Colour) -> bpy.types.Light:
    """A lamp at `place` that looks at `aim`; `energy` in watt."""
    light = bpy.data.lights.new(kind.lower(), kind)
    light.energy, light.color = energy, linear(colour)[:3]
    part = bpy.data.objects.new(kind.lower(), light)
    part.location = place
    part.rotation_euler = (aim - place).to_track_quat("-Z", "Y").to_euler()
    bpy.context.collection.objects.link(part)
    return light


def softbox(
    azimuth: float,
    elevation: float,
    energy: float,
    size: float = 1.8,
    distance: float = 3.6,
    aim: Point = (0, 0, 0.4),
    colour: Colour = (1, 1, 1),
) -> None:
    """A square, even area light, `size` units wide."""
    light = lamp("AREA", Vector(aim) + distance * towards(azimuth, elevation), Vector(aim), energy, colour)
    light.size = size


def sunbeam(
    azimuth: float,
    elevation: float,
    aim: Point,
    strength: float,
    blockers: Callable[[random.Random], list[list[Point]]],
    spread: float,
    soft: float = 0.1,
    near: float = 3.0,
    seed: int = 1,
    colour: Colour = (1.0, 0.92, 0.80),
) -> None:
    """Low sun through a window. `blockers` gives polygons in the window's plane, `near` units before `aim`, as
    (x, y, depth) corners; only their shadows are seen. The beam is `spread` units wide at `aim`; `soft` is the width of
    its half-shadows there, in units, roughly."""
    target, direction, distance = Vector(aim), towards(azimuth, elevation), 14.0
    light = lamp("SPOT", target + distance * direction, target, strength * 4 * math.pi**2 * distance**2, colour)
    light.spot_size, light.spot_blend = 2 * math.atan(spread / distance), 0.02
    light.shadow_soft_size = soft * (distance - near) / near / 2
    points: list[Point] = []
    faces = []
    for polygon in blockers(random.Random(seed)):
        faces.append(tuple(range(len(points), len(points) + len(polygon))))
        points += polygon
    part = mesh("window", points, faces, None)
    place = target + near * direction
    part.matrix_world = Matrix.Translation(place) @ direction.to_track_quat("Z", "Y").to_matrix().to_4x4()
    part.visible_camera = part.visible_glossy = part.visible_diffuse = False


def panes(width: float, height: float, columns: int, rows: int, bar: float = 0.05) -> list[list[Point]]:
    """A window: frame and bars, as blockers."""
    border = 1.2
    x, y = width / 2, height / 2
    bars = [(-x - border, -x, -y - border, y + border), (x, x + border, -y - border, y + border)]
    bars += [(-x, x, -y - border, -y), (-x, x, y, y + border)]
    bars += [(-x + width * i / columns - bar / 2, -x + width * i / columns + bar / 2, -y, y) for i in range(1, columns)]
    bars += [(-x, x, -y + height * i / rows - bar / 2, -y + height * i / rows + bar / 2) for i in range(1, rows)]
    return [[(a, c, 0.0), (b, c, 0.0), (b, d, 0.0), (a, d, 0.0)] for a, b, c, d in bars]


def twig(
    rng: random.Random, start: Point, angle: float, length: float, leaf: float, droop: float = 40.0
) -> list[list[Point]]:
    """A bending twig with pointed leaves to both sides, as blockers; `angle` and `droop` in degrees."""
    shapes: list[list[Point]] = []
    x, y, depth = start
    heading = math.radians(angle)
    step = leaf * 0.36
    count = round(length / step)
    for i in range(count):
        heading -= math.radians(droop) / count + rng.gauss(0, 0.04)
        nx, ny = x + step * math.cos(heading), y + step * math.sin(heading)
        sx, sy = -math.sin(heading) * leaf * 0.02, math.cos(heading) * leaf * 0.02
        corners = ((x - sx, y - sy), (nx - sx, ny - sy), (nx + sx, ny + sy), (x + sx, y + sy))
        shapes.append([(*corner, depth) for corner in corners])
        x, y = nx, ny
        lean = heading + (1 if i % 2 else -1) * math.radians(rng.uniform(28, 62))
        size, tilt = leaf * rng.uniform(0.7, 1.15) * (1.0 - 0.45 * i / count), rng.uniform(0.6, 1.0)
        z = depth + rng.uniform(-0.25, 0.25)
        spine = [(t, 0.2 * tilt * math.sin(math.pi * t**0.8)) for t in np.linspace(0, 1, 9)]
        outline = spine + [(t, -w) for t, w in spine[-2:0:-1]]
        c, s = math.cos(lean) * size, math.sin(lean) * size
        shapes.append([(x + t * c - w * s, y + t * s + w * c, z) for t, w in outline])
    return shapes


# ---- the sets --------------------------------------------------------------------------------------------------------

OAK = ((0.86, 0.75, 0.60), (0.70, 0.55, 0.39))
WALNUT = ((0.46, 0.34, 0.26), (0.27, 0.185, 0.14))


def oak_window_1() -> list[Point]:
    """Oak boards into the picture, natural linen, sun through leaves from the left."""
    ground = boards(wood("oak", *OAK, 0.012, 0.2), 0.21, 3.2, True, 1.7, 3)
    wall(linen("linen", (0.88, 0.86, 0.81), 0.0085), 1.7)
    ambient(0.42, (0.97, 0.97, 1.0))
    softbox(-62, 38, 110, 2.4, colour=(1.0, 0.93, 0.84))
    sunbeam(-58, 24, (0.15, 1.7, 1.0), 1.9, leaves_1, 2.2, 0.07, seed=4)
    return ground


def leaves_1(rng: random.Random) -> list[list[Point]]:
    """A window of two columns with twigs before it."""
    shapes = panes(1.5, 2.0, 2, 3, 0.045)
    for start, angle in (
        ((-0.95, 0.75, 0.3), 5),
        ((-0.9, 0.1, 0.5), 22),
        ((0.85, 1.05, 0.4), 205),
        ((-0.8, -0.7, 0.6), 35),
        ((0.9, 0.3, 0.2), 190),
        ((-0.6, 1.1, 0.1), -15),
    ):
        shapes += twig(rng, start, angle, 1.0, 0.30)
    return shapes


def oak_window_2() -> list[Point]:
    """Oak table, boards across, white linen, leaves only."""
    ground = boards(wood("oak", *OAK, 0.012, 0.2), 0.26, 9.0, False, 1.25, 8)
    wall(linen("linen", (0.86, 0.85, 0.83), 0.0085), 2.3)
    ambient(0.5, (0.98, 0.98, 1.0))
    softbox(-55, 42, 110, 2.4, colour=(1.0, 0.94, 0.86))
    sunbeam(-50, 28, (0.2, 2.3, 1.05), 1.7, leaves_2, 2.4, 0.10, seed=11)
    return ground


def leaves_2(rng: random.Random) -> list[list[Point]]:
    """Hanging twigs, no window frame."""
    shapes = []
    for start, angle in (
        ((-1.5, 1.0, 0.3), -10),
        ((-1.6, 0.2, 0.0), 8),
        ((-1.2, 1.5, 0.6), -30),
        ((1.5, 1.2, 0.3), 200),
        ((-1.5, -0.7, 0.2), 25),
        ((1.6, -0.4, 0.4), 165),
    ):
        shapes += twig(rng, start, angle, 1.35, 0.34, 55)
    return shapes


def walnut_window_1() -> list[Point]:
    """Walnut boards into the picture, clay plaster, window light from the right."""
    ground = boards(wood("walnut", *WALNUT, 0.015, 0.3), 0.19, 3.4, True, 1.8, 5)
    wall(plaster("clay", (0.58, 0.51, 0.45)), 1.8)
    ambient(0.34, (0.95, 0.96, 1.0))
    softbox(60, 38, 100, 2.2, colour=(1.0, 0.94, 0.86))
    sunbeam(56, 28, (-0.25, 1.8, 1.05), 0.85, lambda rng: panes(1.15, 1.7, 2, 3), 1.9, 0.06)
    return ground


def walnut_window_2() -> list[Point]:
    """Walnut table, boards across, grey-green plaster, slatted light from the right."""
    ground = boards(wood("walnut", *WALNUT, 0.015, 0.3), 0.3, 9.0, False, 1.3, 21)
    wall(plaster("umber", (0.50, 0.47, 0.43)), 2.3)
    ambient(0.36, (0.95, 0.96, 1.0))
    softbox(55, 42, 100, 2.2, colour=(1.0, 0.94, 0.86))
    sunbeam(60, 24, (-0.1, 2.3, 1.0), 0.6, lambda rng: panes(1.9, 1.7, 1, 7, 0.11), 2.2, 0.09)
    return ground


def marble_podium_1() -> list[Point]:
    """A round podium of white marble on two steps, grey plaster."""
    stone = marble("carrara", (0.90, 0.89, 0.87), (0.36, 0.36, 0.38))
    top = disc("podium", 0.68, -0.11, 0.0, stone)
    disc("step", 0.92, -0.26, -0.11, stone)
    slab(plaster("floor", (0.70, 0.69, 0.68), 0.05, 0.0012), 1.9, -0.26)
    wall(plaster("grey", (0.72, 0.71, 0.70), 0.08), 1.9)
    ambient(0.38, (0.96, 0.97, 1.0))
    softbox(-62, 42, 190, 1.5)
    return top


def marble_podium_2() -> list[Point]:
    """A square plinth of veined marble before a warm wall, light with a soft edge from the right."""
    stone = marble("calacatta", (0.91, 0.89, 0.85), (0.47, 0.39, 0.31))
    box("podium", (-0.72, -0.5, -0.5), (0.72, 0.5, 0.0), stone, 0.008)
    slab(plaster("floor", (0.76, 0.72, 0.67), 0.05, 0.0012), 1.7, -0.3)
    wall(plaster("sand", (0.77, 0.73, 0.67), 0.10), 1.7)
    ambient(0.4, (0.97, 0.98, 1.0))
    softbox(58, 40, 170, 1.3, colour=(1.0, 0.96, 0.9))
    return [(-0.72, -0.5, 0.0), (0.72, -0.5, 0.0), (0.72, 0.5, 0.0), (-0.72, 0.5, 0.0)]


def studio_sage_1() -> list[Point]:
    """Sage paper, a softbox from the left near the set, a glow on the wall, light falling off to the right."""
    ground = sweep(paper("sage", (0.66, 0.72, 0.62)), 1.0, 0.8)
    ambient(0.16)
    softbox(-60, 40, 90, 1.1, 2.3, (0.0, 0.2, 0.3))
    softbox(-35, 40, 14, 0.9, 1.8, (0.0, 1.8, 0.8))
    return ground


def studio_sage_2() -> list[Point]:
    """Deeper sage, a softbox from the right, a pool of light low on the wall."""
    ground = sweep(paper("sage", (0.60, 0.68, 0.59)), 0.9, 1.3)
    ambient(0.20)
    softbox(57, 44, 110, 1.4, 3.2)
    softbox(15, 35, 16, 0.6, 1.7, (-0.05, 2.0, 0.6))
    return ground


def blush_arch_1() -> list[Point]:
    """Blush plaster with a niche, floor of the same colour, light from the left."""
    blush = plaster("blush", (0.87, 0.70, 0.65), 0.07)
    arched_wall(blush, plaster("blush niche", (0.85, 0.66, 0.60), 0.07), 1.25, 0.6, 0.7, 0.0)
    ground = slab(plaster("floor", (0.87, 0.71, 0.66), 0.05, 0.0014), 1.9)
    ambient(0.40)
    softbox(-55, 40, 150, 1.4, colour=(1.0, 0.985, 0.965))
    return ground


def blush_arch_2() -> list[Point]:
    """Blush plaster with a terracotta niche, off the middle, light from the right."""
    blush, terracotta = plaster("blush", (0.88, 0.73, 0.68), 0.07), plaster("terracotta", (0.74, 0.46, 0.36), 0.08)
    arched_wall(blush, terracotta, 1.45, 0.66, 0.72, -0.12)
    ground = slab(plaster("floor", (0.88, 0.73, 0.68), 0.05, 0.0014), 2.1)
    ambient(0.42)
    softbox(52, 42, 150, 1.4, colour=(1.0, 0.985, 0.965))
    return ground


def white_plain_1() -> list[Point]:
    """White paper, a large softbox from the left."""
    ground = sweep(paper("white", (0.93, 0.93, 0.92)), 1.0, 1.0)
    ambient(0.5)
    softbox(-55, 46, 120, 2.0)
    return ground


def white_plain_2() -> list[Point]:
    """White paper, light from the upper right, the wall a little darker at the edges."""
    ground = sweep(paper("white", (0.93, 0.925, 0.915)), 0.8, 0.6)
    ambient(0.42)
    softbox(45, 52, 130, 1.6)
    return ground


VIEWS = (
    View("oak-window-1", oak_window_1, (-58, 26), 0.87, 11.5, gloss=0.1, tone=0.66, fstop=22),
    View("oak-window-2", oak_window_2, (-52, 30), 0.87, 9.5, gloss=0.1, tone=0.64, fstop=22),
    View("walnut-window-1", walnut_window_1, (58, 30), 0.86, 11.5, gloss=0.15, tone=0.50),
    View("walnut-window-2", walnut_window_2, (57, 32), 0.86, 9.5, gloss=0.15, tone=0.51),
    View("marble-podium-1", marble_podium_1, (-62, 42), 0.80, 11.0, height=1.85, gloss=0.3, tone=0.64, light_scale=3),
    View("marble-podium-2", marble_podium_2, (58, 40), 0.81, 9.5, height=1.85, gloss=0.3, tone=0.64, light_scale=3),
    View("studio-sage-1", studio_sage_1, (-58, 44), 0.86, 11.0, tone=0.64, light_scale=6),
    View("studio-sage-2", studio_sage_2, (57, 44), 0.86, 9.0, tone=0.64, light_scale=6),
    View("blush-arch-1", blush_arch_1, (-55, 40), 0.87, 11.0, tone=0.67, light_scale=3),
    View("blush-arch-2", blush_arch_2, (52, 42), 0.87, 10.0, tone=0.68, light_scale=3),
    View("white-plain-1", white_plain_1, (-55, 46), 0.84, 11.0, tone=0.93, light_scale=6),
    View("white-plain-2", white_plain_2, (45, 52), 0.84, 9.0, tone=0.93, light_scale=6),
)


# ---- camera, rendering, development ----------------------------------------------------------------------------------


def aim_camera(view: View) -> None:
    """Looks down by `pitch`, so that the foot is on the ground line and the frame is `height` units high there."""
    lens = bpy.data.cameras.new("camera")
    lens.lens, lens.sensor_width, lens.clip_end = LENS, SENSOR, 100.0
    camera = bpy.data.objects.new("camera", lens)
    bpy.context.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    pitch = math.radians(view.pitch)
    forward = Vector((0.0, math.cos(pitch), -math.sin(pitch)))
    upward = Vector((0.0, math.sin(pitch), math.cos(pitch)))
    distance = view.height * LENS / SENSOR
    camera.location = upward * (view.ground_line - 0.5) * view.height - forward * distance
    camera.rotation_euler = forward.to_track_quat("-Z", "Y").to_euler()
    lens.dof.use_dof = True
    lens.dof.focus_distance = distance + 0.1
    lens.dof.aperture_fstop = view.fstop  # a unit counts as a metre
    bpy.context.view_layer.update()


def set_up_renderer(threads: int) -> None:
    """Cycles on the CPU, pictures in linear light."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device, cycles.seed, cycles.use_adaptive_sampling = "CPU", 7, False
    cycles.denoiser, cycles.denoising_input_passes = "OPENIMAGEDENOISE", "RGB_ALBEDO_NORMAL"
    cycles.diffuse_bounces, cycles.glossy_bounces = 1, 1
    cycles.sample_clamp_indirect = 4.0
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_depth = "16"


def render_pass(name: str, view: View, size: int, samples: int) -> np.ndarray:
    """Texture, light or gloss alone, linear, (size, size, 3), first row on top."""
    scene = bpy.context.scene
    direction = towards(*view.light)
    for material in bpy.data.materials:
        nodes = material.node_tree.nodes
        for socket, value in zip(nodes["towards light"].inputs, direction, strict=True):
            socket.default_value = value
        material.node_tree.links.new(nodes[name].outputs[0], nodes["Material Output"].inputs["Surface"])
    scene.cycles.max_bounces = 0 if name == "texture" else 2
    scene.cycles.use_denoising = name != "texture"
    scene.cycles.samples = samples
    for part in scene.objects:
        if part.type == "LIGHT":
            part.hide_render = name == "texture"
    scene.render.resolution_x = scene.render.resolution_y = size
    pixels = render()
    if scene.cycles.use_denoising:  # it leaves specks on the outermost pixels
        pixels = np.pad(pixels[2:-2, 2:-2], ((2, 2), (2, 2), (0, 0)), mode="edge")
    return pixels


def photograph(view: View, size: int, samples: int, texture_samples: int) -> np.ndarray:
    """The whole picture in linear light, (size, size, 3)."""
    picture = render_pass("texture", view, size, texture_samples)
    if texture_samples < 4:  # about as soft as a good lens: it averages the neighbours' samples
        picture = soften_pixels(picture, 0.5)
    picture *= enlarge(render_pass("light", view, size // view.light_scale, samples), size)
    if view.gloss:
        picture += enlarge(render_pass("gloss", view, size // 6, samples), size)
    return picture


def soften_pixels(picture: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of three taps along both axes."""
    side_weight = math.exp(-0.5 / sigma**2)
    middle = 1 / (1 + 2 * side_weight)
    for axis in (0, 1):
        ends = np.pad(picture, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        count = picture.shape[axis]
        beside = np.take(ends, range(count), axis) + np.take(ends, range(2, count + 2), axis)
        picture = middle * (picture + side_weight * beside)
    return picture.astype(np.float32)


def enlarge(light: np.ndarray, size: int) -> np.ndarray:
    """Smooth enlargement to (size, size, 3)."""
    planes = [Image.fromarray(light[..., i]).resize((size, size), Image.Resampling.BICUBIC) for i in range(3)]
    return np.maximum(np.stack([np.asarray(plane) for plane in planes], -1), 0.0)


def render() -> np.ndarray:
    """The picture in linear light, (size, size, 3), first row on top."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "light.exr"
        bpy.context.scene.render.filepath = str(path)
        bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(str(path))
        image.colorspace_settings.name = "Non-Color"
        pixels = np.empty(len(image.pixels), np.float32)
        image.pixels.foreach_get(pixels)
        width, height = image.size
    return np.ascontiguousarray(pixels.reshape(height, width, -1)[::-1, :, :3])


def develop(light: np.ndarray, view: View) -> Image.Image:
    """Meters the middle of the picture to `view.tone`, applies a soft shoulder (so that nothing clips)
    and encodes as sRGB with a trace of grain, which keeps smooth gradients from banding."""
    size = len(light)
    middle = light[size // 3 : round(size * 0.95), size // 5 : -size // 5]
    target = linear((view.tone,) * 3)[0]
    light = light * (target / float(np.median(middle.mean(-1))))
    knee = 0.55
    light = np.where(light < knee, light, knee + (1 - knee) * (1 - np.exp(-(light - knee) / (1 - knee))))
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-6) ** (1 / 2.4) - 0.055)
    grain = np.random.default_rng(7).normal(0.0, 0.007, (size, size, 1)).astype(np.float32)
    return Image.fromarray((np.clip(encoded + grain, 0, 1) * 255 + 0.5).astype(np.uint8))


# ---- what a product must know ----------------------------------------------------------------------------------------


def visible_ground(outline: list[Point]) -> list[tuple[float, float]]:
    """The outline in the picture: x and y as shares of its width and height from the upper left, cut to the frame."""
    scene = bpy.context.scene
    seen = [world_to_camera_view(scene, scene.camera, Vector(corner)) for corner in outline]
    polygon = [(p.x, 1.0 - p.y) for p in seen]
    for axis, limit, keep in ((0, 0.0, 1), (0, 1.0, -1), (1, 0.0, 1), (1, 1.0, -1)):
        polygon = cut(polygon, axis, limit, keep)
    return [(round(x, 4), round(y, 4)) for x, y in polygon]


def cut(polygon: list[tuple[float, float]], axis: int, limit: float, keep: int) -> list[tuple[float, float]]:
    """The part of a convex polygon at which coordinate `axis` is above (`keep` 1) or below (-1) `limit`."""
    kept: list[tuple[float, float]] = []
    for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside_a, inside_b = ((p[axis] - limit) * keep >= 0 for p in (a, b))
        if inside_a:
            kept.append(a)
        if inside_a != inside_b:
            share = (limit - a[axis]) / (b[axis] - a[axis])
            kept.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
    return kept


def side(azimuth: float) -> str:
    """left, right or front."""
    if abs(azimuth) < 20:
        return "front"
    return "left" if azimuth < 0 else "right"


def describe(view: View, ground: list[tuple[float, float]], size: int) -> dict[str, Any]:
    """The picture's entry in backdrops.yaml."""
    return {
        "scene": view.name.rsplit("-", 1)[0],
        "size": [size, size],
        "licence": LICENCE,
        "ground_line": view.ground_line,
        "ground": [list(point) for point in ground],
        "light_from": side(view.light[0]),
        "light_azimuth": view.light[0],
        "light_elevation": view.light[1],
        "camera_pitch": view.pitch,
        "gloss": view.gloss,
    }


HEADER = """\
# Written by render.py. One entry a picture.
# ground_line: share of the height, from the top, on which the product's foot stands.
# ground: corners (x, y) of the visible ground or podium top, shares of width and height from the upper left.
# light_azimuth: degrees around the product, 0 = from the camera, negative = from the left.
# light_elevation: degrees above the floor.
# camera_pitch: degrees the camera looks down. gloss: strength of the floor's reflection, 0 (matt) to 1 (mirror).
"""


def write_entry(out: Path, name: str, entry: dict[str, Any]) -> None:
    """Adds or replaces one picture's entry in backdrops.yaml."""
    path = out / "backdrops.yaml"
    entries = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
    entries = dict(sorted(((entries or {}) | {name: entry}).items()))
    path.write_text(HEADER + yaml.safe_dump(entries, sort_keys=False, width=110, default_flow_style=None), "utf-8")


def make(view: View, out: Path, size: int, samples: int, texture_samples: int, threads: int) -> Path:
    """Builds, renders and saves one picture and its entry."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    outline = view.build()
    aim_camera(view)
    set_up_renderer(threads)
    picture = develop(photograph(view, size, samples, texture_samples), view)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{view.name}.webp"
    picture.save(path, quality=92, method=4)
    write_entry(out, path.name, describe(view, visible_ground(outline), size))
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="scenes (oak-window) or pictures (-2)")
    parser.add_argument("--size", type=int, default=2048, help="side in px")
    parser.add_argument("--samples", type=int, default=6, help="a pixel of light and gloss")
    parser.add_argument("--texture-samples", type=int, default=2, help="a pixel of texture")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    known = {name for view in VIEWS for name in (view.name, view.name.rsplit("-", 1)[0])}
    if unknown := set(arguments.only) - known:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    for view in VIEWS:
        if not arguments.only or {view.name, view.name.rsplit("-", 1)[0]} & set(arguments.only):
            start, work = time.monotonic(), time.process_time()
            path = make(
                view, arguments.out, arguments.size, arguments.samples, arguments.texture_samples, arguments.threads
            )
            wall_time, cpu_time = time.monotonic() - start, time.process_time() - work
            megabytes = path.stat().st_size / 1e6
            print(f"{path.name} {megabytes:.2f} MB {wall_time:.0f} s (CPU {cpu_time:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
