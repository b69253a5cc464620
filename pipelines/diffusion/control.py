"""Draw control images of a product for ControlNets. In all of them black means "no control".

`canny_edges` and `line_art` draw a photo or a cutout. `pose_map` draws the keypoints of a person who wears or holds the
product; `read_pose` reads them. None of these needs weights.
"""

from __future__ import annotations

import json

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.errors import Rejected

BLUR = 5
"""Side of the Gaussian that removes grain and print screens from a photo before edge detection, px."""

LINE_SIGMA = 1.2
"""Line width: standard deviation of the narrower Gaussian of `line_art`, px."""

LINE_RATIO = 1.6
"""Ratio of the two Gaussians: their difference then approximates a Laplacian of a Gaussian (Marr, Hildreth)."""

STEP_RESPONSE = 0.1117
"""Maximum of that difference at a step of height 1: the maximum of Φ(x / 1.6) - Φ(x)."""

KEYPOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip
"""Keypoints of a person in OpenPose's COCO model, in order."""

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of connected keypoints, in drawing order."""

POSE_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
"""RGB of the n-th keypoint, and at 60 % of the n-th limb, as in the training of OpenPose ControlNets."""

POSE_SIDE = 512
"""At this shorter side, px, limbs are 8 px wide and joints have a radius of 4 px, as in the published maps."""

MAX_COORDINATE = 1e5
"""Keypoints beyond this coordinate are not in the photo, px."""


def canny_edges(
    image: Image.Image | np.ndarray,
    product_mask: Image.Image | np.ndarray | Tensor | None = None,
    low: int = 60,
    high: int = 140,
) -> Image.Image:
    """Draw the edges of a photo in white on black, as canny ControlNets expect.

    Args:
        image: uint8. RGB: the source photo, placed like the product. RGBA: the cutout alone, whose silhouette is an
            edge on any background colour.
        product_mask: Edges outside are removed; PIL "L", or (..., H, W) 0..1, 1 = product. None keeps all edges.
        low: Gradient down to which an edge is followed, 0..255.
        high: Gradient at which an edge starts, 0..255.

    Returns:
        RGB of the image's size.

    Raises:
        ValueError: the mask and the image differ in size.
    """
    if isinstance(image, Image.Image) and image.mode != "RGBA":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    # Canny uses the steepest channel at each pixel, so the edges of alpha and colours become one line
    edges = cv2.Canny(cv2.GaussianBlur(pixels, (BLUR, BLUR), 0), low, high)
    return _drawing(edges, product_mask)


def line_art(
    image: Image.Image | np.ndarray,
    product_mask: Image.Image | np.ndarray | Tensor | None = None,
    low: int = 8,
    high: int = 64,
) -> Image.Image:
    """Draw a photo's lines in white on black, soft like pencil lines, as lineart ControlNets expect. It needs no
    weights.

    It is a difference of Gaussians of the luminance with a soft threshold (Winnemöller et al., "XDoG", 2012). Only the
    darker side is kept: a dark line gives one line, and an edge gives a line on its darker side.

    Args:
        image: uint8. RGB: the source photo, placed like the product. RGBA: the cutout alone, whose silhouette is a line
            just inside it on any background colour.
        product_mask: Lines outside are removed; PIL "L", or (..., H, W) 0..1, 1 = product. None keeps all lines.
        low: Contrast up to which an edge is not drawn, 0..255.
        high: Contrast from which its line is white, 0..255.

    Returns:
        RGB of the image's size.

    Raises:
        ValueError: the mask and the image differ in size.
    """
    if isinstance(image, Image.Image) and image.mode != "RGBA":
        image = image.convert("RGB")
    pixels = np.asarray(image, np.float32)
    response = _darker_than_around(cv2.cvtColor(pixels[..., :3], cv2.COLOR_RGB2GRAY))
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3]
        # the background's colour is arbitrary, so the silhouette is drawn from alpha
        response = np.maximum(response * alpha / 255, _darker_than_around(255 - alpha))
    lines = np.clip((response / STEP_RESPONSE - low) / (high - low), 0, 1) * 255
    return _drawing(np.rint(lines).astype(np.uint8), product_mask)


def read_pose(text: str) -> np.ndarray:
    """Read a pose in OpenPose's format: `{"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}]}`.

    Args:
        text: JSON with 18 keypoints per person (`KEYPOINTS`): x and y in px of the photo, confidence 0 for hidden ones.

    Returns:
        (people, 18, 3) float32: x, y, confidence.

    Raises:
        Rejected: the text is not such a document.
    """
    expected = f"OpenPose's JSON with {len(KEYPOINTS)} keypoints (x, y, confidence) a person"
    try:
        people = [person["pose_keypoints_2d"] for person in json.loads(text)["people"]]
        keypoints = np.array(people, np.float32).reshape(len(people), len(KEYPOINTS), 3)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Rejected(f"pose: expected {expected}") from error
    if not len(keypoints) or not np.abs(keypoints).max() < MAX_COORDINATE:  # nor a NaN
        raise Rejected(f"pose: no person, or one that is not in the photo: expected {expected}")
    return keypoints


def pose_map(keypoints: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw people's keypoints and limbs on black, as openpose ControlNets expect (Zhang et al. 2023).

    Args:
        keypoints: (people, 18, 3): x and y in px of the drawing, and confidence, 0 for hidden ones; see `KEYPOINTS`.
        size: Width and height of the drawing, px.

    Returns:
        RGB of that size.
    """
    width, height = size
    canvas = np.zeros((height, width, 3), np.uint8)
    radius = max(1, round(4 * min(size) / POSE_SIDE))
    for person in keypoints:
        for (start, end), colour in zip(LIMBS, POSE_COLOURS, strict=False):
            if person[start, 2] > 0 and person[end, 2] > 0:
                (x0, y0), (x1, y1) = person[start, :2], person[end, :2]
                centre, axes = (int((x0 + x1) / 2), int((y0 + y1) / 2)), (int(np.hypot(x1 - x0, y1 - y0) / 2), radius)
                angle = int(np.degrees(np.arctan2(y1 - y0, x1 - x0)))
                stick = np.array(cv2.ellipse2Poly(centre, axes, angle, 0, 360, 1))
                cv2.fillConvexPoly(canvas, stick, [int(0.6 * channel) for channel in colour])
    for person in keypoints:
        for (x, y, confidence), colour in zip(person, POSE_COLOURS, strict=True):
            if confidence > 0:
                cv2.circle(canvas, (int(x), int(y)), radius, colour, thickness=-1)
    return Image.fromarray(canvas)


def _darker_than_around(channel: np.ndarray) -> np.ndarray:
    near, far = (cv2.GaussianBlur(channel, (0, 0), LINE_SIGMA * ratio) for ratio in (1.0, LINE_RATIO))
    return np.maximum(far - near, 0)


def _drawing(lines: np.ndarray, product_mask: Image.Image | np.ndarray | Tensor | None) -> Image.Image:
    """Return (H, W) uint8 as RGB, black outside the product."""
    if product_mask is not None:
        inside = _as_array(product_mask) >= 0.5
        if inside.shape != lines.shape:
            raise ValueError(f"The image is {lines.shape} and its mask {inside.shape} (height, width).")
        lines = np.where(inside, lines, 0).astype(np.uint8)
    return Image.fromarray(np.repeat(lines[..., None], 3, axis=2))


def _as_array(mask: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    if isinstance(mask, Image.Image):
        return np.asarray(mask.convert("L"), np.float32) / 255
    array = mask.detach().float().cpu().numpy() if isinstance(mask, Tensor) else mask
    return np.asarray(array).reshape(array.shape[-2:])
