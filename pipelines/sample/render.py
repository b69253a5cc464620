"""Photographs the sample catalogue: CC0 models, rendered the way a shop would shoot them, with exact alpha masks.

Needs Blender as a Python module and the furniture library of Debian's package `sweethome3d-furniture`. `bpy` pins an
old numpy, so give it a virtual environment of its own:

    python3.11 -m venv bpy-venv && bpy-venv/bin/pip install bpy pillow
    bpy-venv/bin/python pipelines/sample/render.py BlendSwap-CC-0.sh3f                # everything, this folder
    bpy-venv/bin/python pipelines/sample/render.py BlendSwap-CC-0.sh3f --only SMP-003 --size 400 --out previews

Each product is rendered twice with one camera: the photo, and the mask (backdrop hidden, transparent film, every
material replaced by an opaque one). `catalog.csv` and `CREDITS.md` are written beside the pictures.
The models named here are an evaluation set: `HELD_OUT` keeps them out of anything that is trained.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector
from PIL import Image, ImageFilter

Colour = tuple[float, float, float]  # sRGB, 0..1

WHITE: Colour = (0.98, 0.98, 0.98)
LIBRARY_FOLDER = "blendswap-cc-0"
LICENCE = "CC0-1.0"
COLUMNS = (
    "id",
    "title",
    "product_type",
    "image_link",
    "additional_image_link",
    "item_group_id",
    "ground_truth_alpha",
    "licence",
)


@dataclass(frozen=True, slots=True)
class Finish:
    """How one material of a model looks, where the OBJ file says too little (metal, lacquer, a shop's own colour)."""

    material: str
    colour: Colour | None = None
    roughness: float | None = None
    metallic: float | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a product stands. `wall` and `floor` are sRGB colours; a sweep is one seamless sheet of `floor` colour."""

    kind: str  # sweep | table | floor | none (transparent film)
    floor: Colour = WHITE
    wall: Colour = WHITE
    key_from: float = -50.0  # degrees around the product, 0 = from the camera, negative = from the left
    exposure: float = 0.0  # stops


@dataclass(frozen=True, slots=True)
class RenderedProduct:
    """One product of the sample: what the shop says of it, which model it is, and how it is photographed."""

    sku: str
    title: str
    product_type: str
    model: str
    setting: Setting
    yaw: float = 0.0  # degrees the product is turned counter-clockwise, seen from above
    pitch: float = 14.0  # degrees the camera looks down
    aspect: tuple[int, int] = (1, 1)  # width : height
    fill: float = 0.74  # share of the frame that the product may take
    suffix: str = ".jpg"
    finishes: tuple[Finish, ...] = ()


SWEEP = Setting("sweep")


PRODUCTS: tuple[RenderedProduct, ...] = (
    RenderedProduct(
        "SMP-001",
        "Brass Mushroom Table Lamp",
        "Home & Garden > Lighting > Lamps > Table Lamps",
        "desklamp",
        Setting("table", (0.72, 0.53, 0.36), (0.62, 0.70, 0.64)),
        aspect=(4, 5),
        fill=0.6,
        finishes=(Finish("Material", metallic=1.0, roughness=0.22), Finish("Material.002", roughness=0.35)),
    ),
    RenderedProduct(
        "SMP-002",
        "Rust Velvet Lounge Armchair",
        "Furniture > Chairs > Armchairs, Recliners & Sleeper Chairs",
        "armchair2",
        Setting("floor", (0.66, 0.49, 0.34), (0.86, 0.83, 0.78)),
        yaw=-28,
        aspect=(5, 4),
        fill=0.66,
        finishes=(Finish("None", colour=(0.66, 0.36, 0.24), roughness=0.85),),
    ),
    RenderedProduct(
        "SMP-003",
        "Red Capsule Espresso Machine",
        "Home & Garden > Kitchen & Dining > Kitchen Appliances > Coffee Makers & Espresso Machines",
        "coffeeBrewer",
        SWEEP,
        yaw=-42,
        finishes=(
            Finish("Plastic_C", colour=(0.30, 0.30, 0.31), roughness=0.4),
            Finish("Metal", colour=(0.62, 0.62, 0.63), metallic=0.9, roughness=0.35),
            Finish("Glass", colour=(0.42, 0.45, 0.48), roughness=0.25),
        ),
    ),
    RenderedProduct(
        "SMP-004",
        "Mustard Tilt-Head Stand Mixer",
        "Home & Garden > Kitchen & Dining > Kitchen Appliances > Food Mixers & Blenders",
        "kitchenaid",
        SWEEP,
        yaw=-40,
        finishes=(
            Finish("Kitchenaid_Chrome_Writing", colour=(0.75, 0.75, 0.75), metallic=1.0, roughness=0.3),
            Finish("Kitchenaid_BrushedChrome_Writing", colour=(0.7, 0.7, 0.7), metallic=1.0, roughness=0.3),
            Finish("Kitchenaid_Chrome", colour=(0.8, 0.8, 0.8), metallic=1.0, roughness=0.25),
            Finish("Kitchenaid_BrushedChrome", colour=(0.75, 0.75, 0.75), metallic=1.0, roughness=0.35),
        ),
    ),
    RenderedProduct(
        "SMP-005",
        "Burlap Teddy Bear",
        "Toys & Games > Toys > Dolls, Playsets & Toy Figures > Stuffed Animals",
        "teddyBear",
        Setting("sweep", (0.72, 0.82, 0.88)),
        yaw=-15,
    ),
    RenderedProduct(
        "SMP-006",
        "Over-Ear Headphones, Black and Red",
        "Electronics > Audio > Audio Components > Headphones",
        "headphones",
        SWEEP,
        yaw=-25,
        pitch=20,
    ),
    RenderedProduct(
        "SMP-007",
        "Cream Shoulder Handbag",
        "Apparel & Accessories > Handbags, Wallets & Cases > Handbags",
        "handbag",
        Setting("sweep", (0.78, 0.60, 0.55)),
        yaw=-20,
    ),
    RenderedProduct(
        "SMP-008", "Blue Block-Heel Ankle Boots", "Apparel & Accessories > Shoes", "bootie", SWEEP, yaw=-50
    ),
    RenderedProduct(
        "SMP-009",
        "Cactus in Black Pot",
        "Home & Garden > Plants > Indoor Plants",
        "cactus",
        Setting("table", (0.80, 0.66, 0.50), (0.88, 0.85, 0.80), key_from=45),
        aspect=(4, 5),
        fill=0.58,
    ),
    RenderedProduct(
        "SMP-010",
        "Striped Canvas Deck Chair",
        "Furniture > Outdoor Furniture > Outdoor Seating > Outdoor Chairs",
        "deckChair",
        SWEEP,
        yaw=-32,
    ),
    RenderedProduct(
        "SMP-011",
        "Porcelain Espresso Cup and Saucer",
        "Home & Garden > Kitchen & Dining > Tableware > Drinkware > Coffee & Tea Cups",
        "caffe_final",
        Setting("sweep", (0.35, 0.52, 0.53)),
        yaw=-20,
        pitch=26,
    ),
    RenderedProduct(
        "SMP-012",
        "Osaka Ash Wood Chair",
        "Furniture > Chairs > Kitchen & Dining Room Chairs",
        "osakaChair",
        Setting("none"),
        yaw=-30,
        suffix=".png",
    ),
    RenderedProduct(
        "SMP-013",
        "Leather Basketball, Size 7",
        "Sporting Goods > Athletics > Basketball > Basketballs",
        "basketball",
        SWEEP,
        yaw=-20,
    ),
    RenderedProduct(
        "SMP-014",
        "Charcoal Leather Briefcase",
        "Luggage & Bags > Briefcases",
        "briefcase",
        Setting("none"),
        yaw=-25,
        suffix=".webp",
    ),
    RenderedProduct(
        "SMP-015",
        "Painted Rocking Horse",
        "Toys & Games > Toys > Riding Toys > Rocking & Spring Riding Toys",
        "caballito",
        Setting("floor", (0.78, 0.64, 0.48), (0.75, 0.82, 0.80)),
        yaw=-25,
        aspect=(5, 4),
        fill=0.62,
    ),
    RenderedProduct(
        "SMP-016",
        "Whole Milk Carton, 1 l",
        "Food, Beverages & Tobacco > Beverages > Milk",
        "tetrapak",
        Setting("sweep", (0.60, 0.72, 0.84)),
        yaw=-30,
    ),
)
HELD_OUT = tuple(sorted({product.model for product in PRODUCTS}))


def linear(colour: Colour) -> tuple[float, float, float, float]:
    """sRGB 0..1 to the linear RGBA that shader sockets take (IEC 61966-2-1)."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return r, g, b, 1.0


def import_model(library: Path, product: RenderedProduct) -> list[bpy.types.Object]:
    """The product's model, scaled so that its longest side is 1, on z = 0, centred on x = y = 0."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(library) as archive:
        prefix = f"{LIBRARY_FOLDER}/{product.model}/"
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(prefix)])
        path = Path(folder) / LIBRARY_FOLDER / product.model / f"{product.model}.obj"
        bpy.ops.wm.obj_import(filepath=str(path), forward_axis="NEGATIVE_Z", up_axis="Y")
        for image in bpy.data.images:  # textures must outlive the folder
            if image.filepath and not image.packed_file:
                image.pack()
    parts = [part for part in bpy.context.selected_objects if part.type == "MESH"]
    for part in parts:  # several models carry broken normals: make them anew, creased at 40 degrees
        bpy.context.view_layer.objects.active = part
        if part.data.has_custom_normals:
            bpy.ops.mesh.customdata_custom_splitnormals_clear()
        bpy.ops.object.mode_set(mode="EDIT")
        bpy.ops.mesh.select_all(action="SELECT")
        bpy.ops.mesh.remove_doubles(threshold=1e-5)
        bpy.ops.mesh.normals_make_consistent(inside=False)
        bpy.ops.object.mode_set(mode="OBJECT")
        bpy.ops.object.shade_smooth_by_angle(angle=math.radians(40))
    turn = bpy.data.objects.new("turntable", None)
    bpy.context.collection.objects.link(turn)
    for part in parts:
        part.parent = turn
    turn.rotation_euler = (0.0, 0.0, math.radians(product.yaw))
    corners = vertices(parts)
    low, high = corners.min(0), corners.max(0)
    scale = 1.0 / float((high - low).max())
    turn.scale = (scale, scale, scale)
    centre = (low + high) / 2
    turn.location = (-centre[0] * scale, -centre[1] * scale, -low[2] * scale)
    return parts


def vertices(parts: list[bpy.types.Object]) -> np.ndarray:
    """World coordinates of all vertices, (n, 3)."""
    bpy.context.view_layer.update()
    clouds = []
    for part in parts:
        local = np.empty(len(part.data.vertices) * 3, np.float32)
        part.data.vertices.foreach_get("co", local)
        matrix = np.array(part.matrix_world)
        clouds.append(local.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
    return np.concatenate(clouds)


def finish_materials(parts: list[bpy.types.Object], finishes: tuple[Finish, ...]) -> None:
    """Turns the OBJ file's display colours into linear ones, makes everything opaque and applies `finishes`."""
    by_name = {finish.material: finish for finish in finishes}
    for material in {slot.material for part in parts for slot in part.material_slots if slot.material}:
        shader = next((n for n in material.node_tree.nodes if n.type == "BSDF_PRINCIPLED"), None)
        if shader is None:
            continue
        base = shader.inputs["Base Color"]
        if not base.is_linked:
            r, g, b, _ = base.default_value
            base.default_value = linear((r, g, b))
        for link in list(shader.inputs["Alpha"].links):
            material.node_tree.links.remove(link)
        shader.inputs["Alpha"].default_value = 1.0
        shader.inputs["Roughness"].default_value = max(0.25, shader.inputs["Roughness"].default_value)
        finish = by_name.get(material.name)
        if finish is None:
            continue
        if finish.colour is not None:
            for link in list(base.links):
                material.node_tree.links.remove(link)
            base.default_value = linear(finish.colour)
        if finish.roughness is not None:
            shader.inputs["Roughness"].default_value = finish.roughness
        if finish.metallic is not None:
            shader.inputs["Metallic"].default_value = finish.metallic


def paint(name: str, colour: Colour, roughness: float = 0.9) -> bpy.types.Material:
    """A matt, plain material."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = linear(colour)
    shader.inputs["Roughness"].default_value = roughness
    shader.inputs["Specular IOR Level"].default_value = 0.2
    return material


def wood(name: str, colour: Colour, plank: float) -> bpy.types.Material:
    """Boards along x, `plank` units wide, with grain: noise stretched along the board, and a tone for each board."""
    material = paint(name, colour, roughness=0.45)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    place = nodes.new("ShaderNodeTexCoord")
    boards = nodes.new("ShaderNodeTexBrick")
    boards.inputs["Scale"].default_value = 1.0
    boards.inputs["Brick Width"].default_value = plank * 9
    boards.inputs["Row Height"].default_value = plank
    boards.inputs["Mortar Size"].default_value = plank * 0.012
    light, dark = (tuple(min(1.0, c * k) for c in colour) for k in (1.08, 0.86))
    boards.inputs["Color1"].default_value = linear(light)  # type: ignore[arg-type]
    boards.inputs["Color2"].default_value = linear(dark)  # type: ignore[arg-type]
    boards.inputs["Mortar"].default_value = linear((colour[0] * 0.45, colour[1] * 0.45, colour[2] * 0.45))
    stretch = nodes.new("ShaderNodeMapping")
    stretch.inputs["Scale"].default_value = (1.2, 16.0, 16.0)
    grain = nodes.new("ShaderNodeTexNoise")
    grain.inputs["Scale"].default_value = 2.2
    grain.inputs["Detail"].default_value = 6.0
    grain.inputs["Distortion"].default_value = 0.6
    tone = nodes.new("ShaderNodeMapRange")
    tone.inputs["From Min"].default_value = 0.3
    tone.inputs["From Max"].default_value = 0.7
    tone.inputs["To Min"].default_value = 0.72
    tone.inputs["To Max"].default_value = 1.08
    mix = nodes.new("ShaderNodeMix")
    mix.data_type, mix.blend_type = "RGBA", "MULTIPLY"
    mix.inputs[0].default_value = 1.0
    links.new(place.outputs["Object"], boards.inputs["Vector"])
    links.new(place.outputs["Object"], stretch.inputs["Vector"])
    links.new(stretch.outputs["Vector"], grain.inputs["Vector"])
    links.new(grain.outputs["Fac"], tone.inputs["Value"])
    links.new(boards.outputs["Color"], mix.inputs[6])
    links.new(tone.outputs["Result"], mix.inputs[7])
    links.new(mix.outputs[2], nodes["Principled BSDF"].inputs["Base Color"])
    return material


def box(name: str, low: Colour, high: Colour, material: bpy.types.Material) -> bpy.types.Object:
    """An axis-aligned box from corner `low` to corner `high`."""
    bpy.ops.mesh.primitive_cube_add(size=1.0)
    part = bpy.context.object
    part.name = name
    part.location = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    part.scale = [b - a for a, b in zip(low, high, strict=True)]
    bpy.ops.object.transform_apply(location=False, rotation=False, scale=True)
    part.data.materials.append(material)
    return part


def sweep(colour: Colour) -> bpy.types.Object:
    """A seamless paper sweep: floor, a quarter circle, wall."""
    radius, back, height, half = 1.2, 1.6, 7.0, 9.0
    profile = [(-8.0, 0.0), (back, 0.0)]
    profile += [
        (back + radius * math.sin(a), radius - radius * math.cos(a)) for a in np.linspace(0, math.pi / 2, 25)[1:]
    ]
    profile.append((back + radius, height))
    points = [(x, y, z) for y, z in profile for x in (-half, half)]
    faces = [(2 * i, 2 * i + 1, 2 * i + 3, 2 * i + 2) for i in range(len(profile) - 1)]
    mesh = bpy.data.meshes.new("sweep")
    mesh.from_pydata(points, [], faces)
    mesh.polygons.foreach_set("use_smooth", [True] * len(faces))
    mesh.materials.append(paint("paper", colour))
    part = bpy.data.objects.new("sweep", mesh)
    bpy.context.collection.objects.link(part)
    return part


def build_backdrop(setting: Setting) -> list[bpy.types.Object]:
    """What stands behind and under the product; all of it is hidden for the mask."""
    if setting.kind == "none":
        return []
    if setting.kind == "sweep":
        return [sweep(setting.floor)]
    if setting.kind == "table":
        top = box("table", (-4, -1.3, -0.08), (4, 1.15, 0.0), wood("oak", setting.floor, 0.42))
        return [top, box("wall", (-9, 2.1, -3), (9, 2.2, 6), paint("wall", setting.wall))]
    if setting.kind == "floor":
        boards = box("boards", (-7, -6, -0.05), (7, 1.35, 0.0), wood("boards", setting.floor, 0.2))
        wall = box("wall", (-9, 1.35, -1), (9, 1.45, 7), paint("wall", setting.wall))
        return [boards, wall, box("skirting", (-9, 1.31, 0), (9, 1.35, 0.13), paint("skirting", WHITE, 0.5))]
    raise ValueError(f"unknown setting {setting.kind!r}: use sweep, table, floor or none")


def light_studio(setting: Setting) -> None:
    """A large key light from one side, a weak fill opposite, an even ambient light."""
    world = bpy.data.worlds.new("ambient")
    bpy.context.scene.world = world
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (1, 1, 1, 1)
    world.node_tree.nodes["Background"].inputs["Strength"].default_value = 0.38
    for name, azimuth, elevation, energy, size in (
        ("key", setting.key_from, 48.0, 185.0, 2.0),
        ("fill", -setting.key_from * 1.2, 25.0, 30.0, 3.0),
    ):
        lamp = bpy.data.lights.new(name, "AREA")
        lamp.energy, lamp.size = energy, size
        part = bpy.data.objects.new(name, lamp)
        a, e = math.radians(azimuth), math.radians(elevation)
        part.location = (
            3.4 * math.sin(a) * math.cos(e),
            -3.4 * math.cos(a) * math.cos(e),
            0.4 + 3.4 * math.sin(e),
        )
        part.rotation_euler = (Vector((0, 0, 0.4)) - part.location).to_track_quat("-Z", "Y").to_euler()
        bpy.context.collection.objects.link(part)


def aim_camera(product: RenderedProduct, parts: list[bpy.types.Object]) -> None:
    """Looks down by `pitch` at the product and steps back until it takes `fill` of the frame, sharp all through."""
    lens = bpy.data.cameras.new("camera")
    lens.lens, lens.clip_end = 80.0, 100.0
    camera = bpy.data.objects.new("camera", lens)
    bpy.context.collection.objects.link(camera)
    scene = bpy.context.scene
    scene.camera = camera
    pitch = math.radians(product.pitch)
    view = Vector((0.0, math.cos(pitch), -math.sin(pitch)))
    camera.rotation_euler = view.to_track_quat("-Z", "Y").to_euler()
    cloud = vertices(parts)
    bpy.context.view_layer.update()
    spot, _ = camera.camera_fit_coords(bpy.context.evaluated_depsgraph_get(), cloud.ravel().tolist())
    distance = (Vector(cloud.mean(0).tolist()) - spot).dot(view)
    camera.location = spot - view * distance * (1.0 / product.fill - 1.0)
    if product.setting.kind in ("table", "floor"):
        lens.shift_y = 0.06  # a little air above, as photographers leave it
        lens.dof.use_dof = True
        lens.dof.focus_distance = distance / product.fill
        lens.dof.aperture_fstop = 0.6  # in units of the product's longest side: softens the wall, not the product


def set_up_renderer(product: RenderedProduct, size: int, samples: int, threads: int) -> None:
    """Cycles on the CPU with OpenImageDenoise; `size` is the long side in pixels."""
    scene = bpy.context.scene
    width, height = product.aspect
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = samples
    scene.cycles.use_adaptive_sampling = True
    scene.cycles.adaptive_threshold, scene.cycles.adaptive_min_samples = 0.05, 4
    scene.cycles.use_denoising = True
    scene.cycles.denoiser = "OPENIMAGEDENOISE"
    scene.cycles.denoising_prefilter = "FAST"
    scene.cycles.max_bounces = 4
    scene.cycles.seed = 7
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    scene.render.resolution_x = round(size * width / max(width, height))
    scene.render.resolution_y = round(size * height / max(width, height))
    scene.render.film_transparent = product.setting.kind == "none"
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.exposure = product.setting.exposure


def render(folder: Path) -> Image.Image:
    """Renders the scene and reads it back, RGBA; what lies outside of the border is transparent."""
    path = folder / "render.png"
    bpy.context.scene.render.filepath = str(path.resolve())
    bpy.ops.render.render(write_still=True)
    with Image.open(path) as picture:
        picture.load()
        return picture.convert("RGBA")


def render_photo(parts: list[bpy.types.Object], folder: Path) -> Image.Image:
    """The photo, RGBA. Only the part around the product is rendered at full size: a backdrop is smooth, so a small
    rendering of it, enlarged, looks the same and costs a tenth."""
    scene = bpy.context.scene
    left, bottom, right, top = frame_of(parts)
    scene.render.use_border = True
    scene.render.border_min_x, scene.render.border_max_x = left, right
    scene.render.border_min_y, scene.render.border_max_y = bottom, top
    near = render(folder)
    if scene.render.film_transparent:
        return near
    scene.render.use_border = False
    scene.render.resolution_percentage = 30
    pixels = np.asarray(render(folder))[2:-2, 2:-2]  # the denoiser leaves specks on the outermost pixels
    pixels = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    far = Image.fromarray(pixels).resize(near.size, Image.Resampling.BICUBIC)
    scene.render.resolution_percentage = 100
    scene.render.use_border = True
    feather = round(0.02 * max(near.size))
    inner = (
        round(left * near.width) + 2 * feather,
        round((1 - top) * near.height) + 2 * feather,
        round(right * near.width) - 2 * feather,
        round((1 - bottom) * near.height) - 2 * feather,
    )
    cover = Image.new("L", near.size)
    cover.paste(255, inner)
    far.paste(near, mask=cover.filter(ImageFilter.GaussianBlur(feather / 2)))
    return far


def frame_of(parts: list[bpy.types.Object], margin: float = 0.07) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of the product in the frame, 0..1 from its lower left corner, with a margin."""
    scene = bpy.context.scene
    bpy.context.view_layer.update()
    corners = [part.matrix_world @ Vector(corner) for part in parts for corner in part.bound_box]
    seen = np.array([world_to_camera_view(scene, scene.camera, corner)[:2] for corner in corners])
    low, high = np.clip(seen.min(0) - margin, 0, 1), np.clip(seen.max(0) + margin, 0, 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def render_mask(backdrop: list[bpy.types.Object], folder: Path) -> Image.Image:
    """Alpha of the product alone, mode L: same camera, backdrop hidden, every material opaque."""
    scene = bpy.context.scene
    lamps = [part for part in scene.objects if part.type == "LIGHT"]
    for part in [*backdrop, *lamps]:
        part.hide_render = True
    scene.render.film_transparent = True
    scene.cycles.use_denoising = False
    scene.cycles.use_adaptive_sampling = False
    scene.cycles.samples = 8
    opaque = bpy.data.materials.new("opaque")
    opaque.use_nodes = True
    opaque.node_tree.nodes.clear()
    emission = opaque.node_tree.nodes.new("ShaderNodeEmission")  # needs no light: one ray a sample
    output = opaque.node_tree.nodes.new("ShaderNodeOutputMaterial")
    opaque.node_tree.links.new(emission.outputs[0], output.inputs["Surface"])
    bpy.context.view_layer.material_override = opaque
    return render(folder).getchannel("A")


def photograph(library: Path, product: RenderedProduct, out: Path, size: int, samples: int, threads: int) -> None:
    """Photo into `out/images`, mask into `out/masks`."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    parts = import_model(library, product)
    finish_materials(parts, product.finishes)
    backdrop = build_backdrop(product.setting)
    light_studio(product.setting)
    set_up_renderer(product, size, samples, threads)
    aim_camera(product, parts)
    with tempfile.TemporaryDirectory() as folder:
        photo = render_photo(parts, Path(folder))
        mask = render_mask(backdrop, Path(folder))
    image_path, mask_path = out / image_link(product), out / mask_link(product)
    image_path.parent.mkdir(parents=True, exist_ok=True)
    mask_path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(mask_path, optimize=True)
    if product.setting.kind == "none":
        photo.putalpha(mask)
        photo.save(image_path, **({"quality": 92} if product.suffix == ".webp" else {"optimize": True}))
    else:
        photo.convert("RGB").save(image_path, quality=90, optimize=True, subsampling=0)


def image_link(product: RenderedProduct) -> str:
    """Path of the photo, relative to catalog.csv."""
    slug = re.sub(r"[^a-z0-9]+", "-", product.title.lower()).strip("-")
    return f"images/{product.sku.lower()}-{slug}{product.suffix}"


def mask_link(product: RenderedProduct) -> str:
    """Path of the mask, relative to catalog.csv."""
    return f"masks/{product.sku.lower()}.png"


def write_catalogue(out: Path) -> None:
    """catalog.csv with Google Merchant's column names, then the two columns that tests and lawyers read."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "catalog.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for p in PRODUCTS:
            writer.writerow([p.sku, p.title, p.product_type, image_link(p), "", "", mask_link(p), LICENCE])


def read_creators(library: Path) -> dict[str, str]:
    """Model name → author, from the library's own catalogue."""
    with zipfile.ZipFile(library) as archive:
        text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    models = dict(re.findall(rf"^model#(\d+)=/{LIBRARY_FOLDER}/([^/]+)/", text, re.M))
    authors = dict(re.findall(r"^creator#(\d+)=(.*)$", text, re.M))
    return {model: authors.get(number, "unknown").strip() for number, model in models.items()}


def read_source(library: Path, model: str) -> str:
    """Where the model was published, from its own licence file. Raises ValueError where that does not say CC0: the
    library as a whole does, yet two of its models were released under CC BY."""
    with zipfile.ZipFile(library) as archive:
        for name in archive.namelist():
            if name.startswith(f"{LIBRARY_FOLDER}/{model}/") and "LICENSE" in name.upper():
                text = archive.read(name).decode("latin-1")
                found = re.search(r"https?://www\.blendswap\.com/blends?/(?:view/)?\d+", text)
                if found and "Creative Commons Zero" in text:
                    return found.group(0)
    raise ValueError(f"{model}: no licence file of its own that says CC0: choose another model")


def write_credits(library: Path, out: Path) -> None:
    """CREDITS.md: author and source of each model. CC0 asks for none of it; they deserve it."""
    creators = read_creators(library)
    lines = [
        "# Credits of the sample catalogue",
        "",
        "Every picture in this folder was rendered for packshot by `render.py` and is released under CC0 1.0.",
        "The 3D models are public domain (CC0 1.0), collected by Emmanuel Puybaret / eTeks in the library",
        "`BlendSwap-CC-0` of Sweet Home 3D, which Debian ships as `sweethome3d-furniture`. Product names are invented.",
        "",
        "| SKU | product | model | author | source | licence |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.sku} | {p.title} | `{p.model}` | {creators[p.model]} | {read_source(library, p.model)} | {LICENCE} |"
        for p in PRODUCTS
    ]
    (out / "CREDITS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="BlendSwap-CC-0.sh3f")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*", default=[], metavar="SKU")
    parser.add_argument("--size", type=int, default=1024, help="long side in pixels")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    by_sku = {product.sku: product for product in PRODUCTS}
    write_catalogue(arguments.out)
    write_credits(arguments.library, arguments.out)  # first: it stops where a licence does not allow the picture
    for product in [by_sku[sku] for sku in arguments.only or by_sku]:
        photograph(arguments.library, product, arguments.out, arguments.size, arguments.samples, arguments.threads)
        print(f"{product.sku} {product.title}", flush=True)


if __name__ == "__main__":
    main()
