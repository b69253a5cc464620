"""Photos with a planted fault, and photos without: what `packshot measure checks` measures the checks on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Draw = np.random.Generator
"""Draws what varies; a seed repeats it."""

WORDS = (
    *("SALE", "new", "size", "chest", "waist", "hip", "length", "color", "model", "price", "delivery", "care"),
    *("cotton", "wash", "image", "coming", "soon", "available", "home", "shop", "about", "contact", "cart", "login"),
    *("search", "brand", "quality", "since", "original", "studio", "-50", "%", "2", "for", "1", "free", "returns"),
    *("XS", "S", "M", "L"),
)


def read_cutout(path: Path) -> np.ndarray:
    """Return a cutout `(H, W, 4)` uint8 RGBA, cropped to its opaque part."""
    with Image.open(path) as image:
        rgba = np.asarray(image.convert("RGBA"))
    solid = rgba[..., 3] > 200
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def paper(rng: Draw, side: int = 640) -> np.ndarray:
    """Return plain paper `(side, side, 3)` float32 with light that falls off and grain."""
    tint = rng.uniform(205, 253) + rng.uniform(-8, 8, 3)
    light = 1 - rng.uniform(0, 0.06) * np.linspace(0, 1, side)[:, None, None] ** 2
    grain = rng.normal(0, rng.uniform(0.2, 1.2), (side, side, 1))
    return (np.clip(tint, 0, 254) * light + grain).astype(np.float32)


def lay(ground: np.ndarray, cutout: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Draw a cutout into a picture in place; `box` is left, top, width, height in px and may reach beyond it."""
    left, top, width, height = box
    scaled = cv2.resize(cutout, (max(1, width), max(1, height)), interpolation=cv2.INTER_AREA).astype(np.float32)
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(ground.shape[0], top + height), min(ground.shape[1], left + width)
    seen = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = seen[..., 3:] / 255
    ground[y0:y1, x0:x1] = alpha * seen[..., :3] + (1 - alpha) * ground[y0:y1, x0:x1]


def fitted(cutout: np.ndarray, side: float) -> tuple[int, int]:
    """Return width and height of a cutout whose longer side is `side` px."""
    height, width = cutout.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def saved(picture: np.ndarray, rng: Draw) -> np.ndarray:
    """Return a picture as shops save it: PNG, or JPEG of a quality of 60 to 95."""
    pixels = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        return pixels
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=int(rng.integers(60, 96)))
    return np.asarray(Image.open(data).convert("RGB"))


def alone(cutout: np.ndarray, rng: Draw) -> np.ndarray:
    """A single product on paper, whole: no fault."""
    ground = paper(rng)
    width, height = fitted(cutout, rng.uniform(320, 540))
    left, top = int(rng.integers(30, 611 - width)), int(rng.integers(30, 611 - height))
    lay(ground, cutout, (left, top, width, height))
    return saved(ground, rng)


def on_white(cutout: np.ndarray, rng: Draw) -> np.ndarray:
    """A single product on pure white, as shops clear their photos: no fault."""
    ground = np.full((640, 640, 3), 255, np.float32)
    width, height = fitted(cutout, rng.uniform(320, 620))
    lay(ground, cutout, ((640 - width) // 2, (640 - height) // 2, width, height))
    return saved(ground, rng)


def before_scene(cutout: np.ndarray, scene: np.ndarray, rng: Draw) -> tuple[np.ndarray, np.ndarray]:
    """A whole product before a photo or scene `(H, W, 3)` uint8; returns the picture and the product `(H, W)` bool.

    Six of ten have a soft shadow on the scene, and three of ten a blurred scene.
    """
    side = min(scene.shape[:2])
    top, left = (int(rng.integers(extent - side + 1)) for extent in scene.shape[:2])
    square = np.ascontiguousarray(scene[top : top + side, left : left + side])
    ground = cv2.resize(square, (640, 640), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    if rng.random() < 0.3:
        ground = np.asarray(cv2.GaussianBlur(ground, (0, 0), rng.uniform(1, 6)), np.float32)
    width, height = fitted(cutout, rng.uniform(260, 520))
    left, top = int(rng.integers(16, 625 - width)), int(rng.integers(16, 625 - height))
    alpha = np.zeros((640, 640), np.float32)
    scaled = cv2.resize(cutout, (width, height), interpolation=cv2.INTER_AREA)
    alpha[top : top + height, left : left + width] = scaled[..., 3] / 255
    if rng.random() < 0.6:
        shadow = cv2.GaussianBlur(np.roll(alpha, (8, 6), (0, 1)), (0, 0), rng.uniform(4, 12))
        ground *= 1 - shadow[..., None] * rng.uniform(0.2, 0.5)
    lay(ground, cutout, (left, top, width, height))
    return saved(ground, rng), alpha > 0.5


def among_others(cutouts: list[np.ndarray], scene: np.ndarray, rng: Draw) -> tuple[np.ndarray, np.ndarray]:
    """A product, the first one, in a heap of others before a scene; returns the picture and the product `(H, W)` bool.

    The others are as large as the product, touch it, and may cover a part of it.
    """
    ground = cv2.resize(scene, (640, 640), interpolation=cv2.INTER_AREA).astype(np.float32)
    truth = np.zeros((640, 640, 3), np.float32)
    product, *others = cutouts
    for cutout in [*others, product, others[0]]:
        width, height = fitted(cutout, rng.uniform(220, 340))
        middle, away = np.array([320.0, 320.0]), 0.0 if cutout is product else rng.uniform(110, 230)
        turn = rng.uniform(0, 2 * np.pi)
        left, top = (middle + away * np.array([np.cos(turn), np.sin(turn)]) - np.array([width, height]) / 2).astype(int)
        box = (int(left), int(top), width, height)
        lay(ground, cutout, box)
        flat = cutout.copy()
        flat[..., :3] = 255 if cutout is product else 0
        lay(truth, flat, box)
    return saved(ground, rng), truth[..., 0] > 127


def in_a_hand(cutout: np.ndarray, scene: np.ndarray, rng: Draw) -> np.ndarray:
    """A product before a scene, held by a hand that covers a part of it: three or four fingers from one side."""
    ground = cv2.resize(scene, (640, 640), interpolation=cv2.INTER_AREA).astype(np.float32)
    width, height = fitted(cutout, rng.uniform(300, 460))
    left, top = (640 - width) // 2, (640 - height) // 2
    lay(ground, cutout, (left, top, width, height))
    skin = np.array([224, 172, 140]) * rng.uniform(0.55, 1.05) + rng.uniform(-8, 8, 3)
    thick = round(rng.uniform(0.11, 0.16) * height) + 8
    palm = np.zeros((640, 640), np.float32)
    cv2.ellipse(palm, (0, 320), (max(30, left), round(2.4 * thick)), 0, 0, 360, 1.0, -1)
    for finger in range(int(rng.integers(3, 5))):
        row = 320 + round((finger - 1.5) * 1.15 * thick)
        tip = round(left + rng.uniform(0.35, 0.6) * width)
        hand = np.zeros((640, 640), np.float32)
        cv2.line(hand, (0, row), (tip, row + int(rng.integers(-12, 13))), 1.0, thick, cv2.LINE_AA)
        round_light = cv2.GaussianBlur(hand, (0, 0), 0.25 * thick)[..., None]
        hand = np.maximum(hand, palm if finger == 0 else 0)[..., None]
        lit = np.clip(skin * (0.6 + 0.45 * round_light), 0, 255)
        ground = (ground * (1 - hand) + lit * hand).astype(np.float32)
    if rng.random() < 0.5:
        ground = ground[:, ::-1]
    return saved(np.ascontiguousarray(ground), rng)


def over_the_border(cutout: np.ndarray, rng: Draw) -> np.ndarray:
    """A product of which 15 to 45 % of the width or height lies beyond one side of the photo."""
    ground = paper(rng)
    width, height = fitted(cutout, rng.uniform(360, 520))
    beyond = rng.uniform(0.15, 0.45)
    middle = ((640 - width) // 2, (640 - height) // 2)
    left, top = [
        (round(-beyond * width), middle[1]),
        (round(640 - (1 - beyond) * width), middle[1]),
        (middle[0], round(-beyond * height)),
        (middle[0], round(640 - (1 - beyond) * height)),
    ][int(rng.integers(4))]
    lay(ground, cutout, (left, top, width, height))
    return saved(ground, rng)


def several(cutouts: list[np.ndarray], rng: Draw) -> np.ndarray:
    """Two to six different products, side by side, none of them touching another."""
    ground = paper(rng)
    columns = 2 if len(cutouts) <= 4 else 3
    cell = 620 // columns
    for place, cutout in enumerate(cutouts):
        width, height = fitted(cutout, rng.uniform(0.62, 0.8) * cell)
        left = 10 + place % columns * cell + (cell - width) // 2
        top = 10 + place // columns * cell + (cell - height) // 2
        lay(ground, cutout, (left, top, width, height))
    return saved(ground, rng)


def on_checkerboard(cutout: np.ndarray, rng: Draw) -> np.ndarray:
    """A product over a painted checkerboard, in the colours of the usual tools."""
    cell = int(rng.integers(5, 28))
    dark, light = [(204, 255), (191, 255), (229, 255), (153, 102), (238, 255), (204, 238)][int(rng.integers(6))]
    rows, columns = np.mgrid[:640, :640]
    board = np.where((rows // cell + columns // cell) % 2 == 0, light, dark)
    ground = np.repeat(board[..., None], 3, axis=2).astype(np.float32)
    width, height = fitted(cutout, rng.uniform(320, 560))
    lay(ground, cutout, ((640 - width) // 2, (640 - height) // 2, width, height))
    if rng.random() < 0.5:  # enlarged or reduced after saving
        side = int(rng.integers(480, 900))
        ground = np.asarray(cv2.resize(ground, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
    return saved(ground, rng)


def ring(rng: Draw) -> tuple[np.ndarray, np.ndarray]:
    """A ring, bangle or frame on paper; returns the picture and its opening `(H, W)` bool."""
    ground = paper(rng)
    rows, columns = (np.mgrid[:640, :640] - 320) / rng.uniform(200, 280)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.7, 1)
    u = columns * np.cos(turn) + rows * np.sin(turn)
    v = (rows * np.cos(turn) - columns * np.sin(turn)) / stretch
    distance = np.maximum(np.abs(u), np.abs(v)) if rng.random() < 0.3 else np.hypot(u, v)
    inner = rng.uniform(0.55, 0.85)
    depth = np.clip((distance - inner) / (1 - inner), 0, 1)[..., None]
    metal = rng.uniform(40, 190, 3) * (0.6 + 0.5 * np.sin(np.pi * depth)) + 12 * np.sin(6 * np.arctan2(v, u))[..., None]
    band = ((distance >= inner) & (distance <= 1)).astype(np.float32)
    soft = cv2.GaussianBlur(band, (0, 0), 0.7)[..., None]
    return saved(ground * (1 - soft) + np.clip(metal, 5, 235) * soft, rng), distance < inner


def see_through(cutout: np.ndarray, rng: Draw) -> tuple[np.ndarray, np.ndarray]:
    """A product whose inside the shop made see-through; returns colours and alpha `(H, W)` float32, 0..1."""
    frame = np.zeros((640, 640, 4), np.float32)
    width, height = fitted(cutout, rng.uniform(320, 540))
    scaled = cv2.resize(cutout, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    top, left = (640 - height) // 2, (640 - width) // 2
    frame[top : top + height, left : left + width] = scaled
    alpha = frame[..., 3] / 255
    solid = (alpha > 0.8).astype(np.uint8)
    inside = cv2.erode(solid, np.ones((13, 13), np.uint8)) > 0
    alpha[inside] *= rng.uniform(0.2, 0.75)
    return np.clip(frame[..., :3], 0, 255).astype(np.uint8), alpha


def graphic(kind: str, rng: Draw) -> np.ndarray:
    """A picture that shows no product; `kind` is one of `GRAPHICS`."""
    width, height = int(rng.integers(360, 960)), int(rng.integers(320, 800))
    image = Image.new("RGB", (width, height), _colour(rng, light=kind in ("size chart", "screenshot", "placeholder")))
    GRAPHICS[kind](ImageDraw.Draw(image), width, height, rng)
    pixels = np.asarray(image, np.float32)
    if kind == "banner" and rng.random() < 0.4:  # a gradient behind the text
        slope = np.linspace(1, rng.uniform(0.6, 0.9), width)[None, :, None]
        pixels = (pixels * slope).astype(np.float32)
    return saved(pixels, rng)


def _banner(pen: ImageDraw.ImageDraw, width: int, height: int, rng: Draw) -> None:
    for line in range(int(rng.integers(1, 5))):
        size = int(rng.uniform(0.07, 0.2) * height)
        text = " ".join(str(word) for word in rng.choice(WORDS, int(rng.integers(1, 4))))
        at = (rng.uniform(0.04, 0.3) * width, (0.08 + 0.22 * line) * height)
        pen.text(at, text.upper(), fill=_colour(rng), font=ImageFont.load_default(size))
    if rng.random() < 0.5:
        box = (0.6 * width, 0.7 * height, 0.9 * width, 0.85 * height)
        pen.rounded_rectangle(box, 0.03 * height, fill=_colour(rng))


def _placeholder(pen: ImageDraw.ImageDraw, width: int, height: int, rng: Draw) -> None:
    x, y, r = width / 2, height * 0.42, rng.uniform(0.12, 0.28) * min(width, height)
    line = max(2, round(r / 12))
    grey = int(rng.integers(90, 200))
    ink = (grey, grey, grey)
    if rng.random() < 0.75:
        pen.rounded_rectangle((x - 1.3 * r, y - r, x + 1.3 * r, y + r), r / 8, outline=ink, width=line)
        pen.ellipse((x - 0.9 * r, y - 0.7 * r, x - 0.45 * r, y - 0.25 * r), fill=ink)
        peaks = [(x - 1.2 * r, y + 0.9 * r), (x - 0.3 * r, y - 0.1 * r), (x + 0.2 * r, y + 0.4 * r)]
        pen.polygon([*peaks, (x + 0.6 * r, y), (x + 1.2 * r, y + 0.9 * r)], fill=ink)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=line)
        pen.line((x - 0.7 * r, y + 0.7 * r, x + 0.7 * r, y - 0.7 * r), fill=ink, width=line)
    if rng.random() < 0.7:
        words = str(rng.choice(["No image available", "Image coming soon", "NO PHOTO", "Bild folgt"]))
        pen.text((x, y + 1.5 * r), words, fill=ink, font=ImageFont.load_default(int(0.06 * height)), anchor="mm")


def _size_chart(pen: ImageDraw.ImageDraw, width: int, height: int, rng: Draw) -> None:
    rows, columns = int(rng.integers(5, 12)), int(rng.integers(3, 8))
    font = ImageFont.load_default(int(0.4 * height / (rows + 1)))
    ink = _colour(rng, dark=True)
    for row in range(rows):
        y = (row + 0.6) * height / (rows + 0.6)
        if row == 0 or rng.random() < 0.2:
            pen.rectangle(
                (4, y - 0.4 * height / rows, width - 4, y + 0.4 * height / rows), fill=_colour(rng, light=True)
            )
        pen.line((4, y + 0.45 * height / rows, width - 4, y + 0.45 * height / rows), fill=ink)
        for column in range(columns):
            text = str(rng.choice(WORDS)) if row == 0 or column == 0 else f"{rng.integers(60, 130)}"
            pen.text(((column + 0.5) * width / columns, y), text[:7], fill=ink, font=font, anchor="mm")


def _screenshot(pen: ImageDraw.ImageDraw, width: int, height: int, rng: Draw) -> None:
    ink = _colour(rng, dark=True)
    pen.rectangle((0, 0, width, 0.08 * height), fill=_colour(rng))
    font = ImageFont.load_default(max(10, int(0.032 * height)))
    left = 0.24 * width if rng.random() < 0.6 else 0.04 * width
    if left > 0.1 * width:
        pen.rectangle((0, 0.08 * height, 0.2 * width, height), fill=_colour(rng, light=True))
    y = 0.12 * height
    while y < 0.95 * height:
        text = " ".join(str(word) for word in rng.choice(WORDS, int(rng.integers(3, 9))))
        pen.text((left, y), text, fill=ink, font=font)
        if rng.random() < 0.12:
            pen.rounded_rectangle((left, y + 0.05 * height, left + 0.2 * width, y + 0.1 * height), 6, fill=_colour(rng))
            y += 0.08 * height
        y += 0.055 * height


def _logo(pen: ImageDraw.ImageDraw, width: int, height: int, rng: Draw) -> None:
    x, y, r = width / 2, 0.42 * height, rng.uniform(0.15, 0.3) * min(width, height)
    for _ in range(int(rng.integers(1, 4))):
        dx, dy, s = rng.uniform(-0.5, 0.5) * r, rng.uniform(-0.5, 0.5) * r, rng.uniform(0.4, 1) * r
        box = (x + dx - s, y + dy - s, x + dx + s, y + dy + s)
        shape = int(rng.integers(3))
        if shape == 0:
            pen.ellipse(box, fill=_colour(rng))
        elif shape == 1:
            pen.rectangle(box, fill=_colour(rng))
        else:
            pen.polygon([(box[0], box[3]), (x + dx, box[1]), (box[2], box[3])], fill=_colour(rng))
    if rng.random() < 0.7:
        font = ImageFont.load_default(int(0.13 * height))
        pen.text(
            (x, 0.85 * height), str(rng.choice(WORDS)).title(), fill=_colour(rng, dark=True), font=font, anchor="mm"
        )


def _swatch(pen: ImageDraw.ImageDraw, width: int, height: int, rng: Draw) -> None:
    step = int(rng.integers(20, 120))
    kind = int(rng.integers(3))
    for place in range(0, max(width, height), 2 * step):
        if kind == 0:
            pen.rectangle((place, 0, place + step, height), fill=_colour(rng))
        elif kind == 1:
            pen.rectangle((0, place, width, place + step), fill=_colour(rng))
        else:
            pen.rectangle((place, 0.3 * height, place + 2 * step - 8, 0.7 * height), fill=_colour(rng))


GRAPHICS: dict[str, Callable[[ImageDraw.ImageDraw, int, int, Draw], None]] = {
    "banner": _banner,
    "placeholder": _placeholder,
    "size chart": _size_chart,
    "screenshot": _screenshot,
    "logo": _logo,
    "swatch": _swatch,
}


def _colour(rng: Draw, light: bool = False, dark: bool = False) -> tuple[int, int, int]:
    low, high = (225, 256) if light else (0, 90) if dark else (0, 256)
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue
