"""Control images: white lines and coloured poses on a black that means 'no control'."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from pipelines.diffusion.control import LIMBS, POSE_COLOURS, canny_edges, line_art, pose_map, read_pose
from pipelines.errors import Rejected
from tests.pipelines.diffusion.tiny_models import SIDE, product


def pixels(image: Image.Image) -> np.ndarray:
    """One channel of a drawing, (H, W), all three being equal."""
    drawn = np.asarray(image)
    assert drawn.shape[2] == 3
    assert (drawn == drawn[..., :1]).all()
    return drawn[..., 0]


@pytest.mark.parametrize("draw", [canny_edges, line_art])
class TestEdgesAndLines:
    def test_white_on_black_inside_the_mask_only(self, draw):
        image, mask = product()
        drawn = pixels(draw(image, mask))
        assert drawn.shape == (SIDE, SIDE)
        assert drawn.max() == 255
        assert not drawn[np.asarray(mask) == 0].any()
        assert pixels(draw(image))[np.asarray(mask) == 0].any()

    def test_a_flat_picture_has_none(self, draw):
        for colour in ("black", "grey", "white"):
            assert not pixels(draw(Image.new("RGB", (SIDE, SIDE), colour))).any()

    def test_grain_is_no_line(self, draw):
        grain = np.random.default_rng(0).normal(128, 4, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        assert (pixels(draw(Image.fromarray(grain))) > 32).mean() < 0.01

    def test_a_mask_of_another_size_is_refused(self, draw):
        image, _ = product()
        with pytest.raises(ValueError, match="its mask"):
            draw(image, np.ones((8, 8)))

    def test_a_cutout_has_its_whole_silhouette_whatever_its_colour(self, draw):
        for colour in ("black", "grey", "white"):
            image, mask = product()
            ImageDraw.Draw(image).rectangle((20, 16, 44, 56), fill=colour)
            image.putalpha(mask)
            drawn = pixels(draw(image)) > 128
            near = ndimage.binary_dilation(drawn, iterations=2)
            inside = np.asarray(mask) > 0
            rim = inside & ~ndimage.binary_erosion(inside)
            assert near[rim].all(), colour
            assert not drawn[~ndimage.binary_dilation(inside, iterations=3)].any()

    def test_the_ground_behind_a_cutout_does_not_matter(self, draw):
        image, mask = product()
        drawings = []
        for ground in ("black", "grey"):
            alone = Image.composite(image, Image.new("RGB", image.size, ground), mask)
            alone.putalpha(mask)
            drawings.append(pixels(draw(alone)) > 128)
        silhouettes = [ndimage.binary_dilation(drawn, iterations=2) for drawn in drawings]
        assert all((ours | ~theirs).all() for ours, theirs in zip(silhouettes, drawings[::-1], strict=True))


def test_an_edge_of_canny_is_there_or_not():
    assert set(np.unique(pixels(canny_edges(*product())))) == {0, 255}


class TestLineArt:
    def test_an_edge_is_one_line_on_its_darker_side(self):
        image = Image.new("RGB", (SIDE, SIDE), "white")
        ImageDraw.Draw(image).rectangle((32, 0, SIDE, SIDE), fill="black")
        columns = np.flatnonzero((pixels(line_art(image)) > 128).all(axis=0))
        assert columns.min() >= 32
        assert columns.max() <= 36
        assert len(columns) == columns.max() - columns.min() + 1

    def test_a_thin_dark_line_is_one_line_where_canny_sees_two(self):
        image = Image.new("RGB", (SIDE, SIDE), "white")
        ImageDraw.Draw(image).line((32, 0, 32, SIDE), fill="black", width=3)

        def count(drawing: Image.Image) -> int:
            return ndimage.label(pixels(drawing)[SIDE // 2] > 128)[1]

        assert (count(line_art(image)), count(canny_edges(image))) == (1, 2)

    def test_lines_are_as_strong_as_their_contrast(self):
        strengths = []
        for dark in (200, 225, 240, 250):
            image = Image.new("RGB", (SIDE, SIDE), "white")
            ImageDraw.Draw(image).rectangle((32, 0, SIDE, SIDE), fill=(dark, dark, dark))
            strengths.append(int(pixels(line_art(image)).max()))
        assert strengths == sorted(strengths, reverse=True)
        assert strengths[0] > 150
        assert 0 < strengths[2] < strengths[1]
        assert strengths[3] == 0


def a_person() -> list[float]:
    """A person who faces the viewer, 18 keypoints, in a photo of 100 x 200 px."""
    points = [
        (50, 30), (50, 60), (35, 60), (30, 90), (28, 120), (65, 60), (70, 90), (72, 120), (40, 120), (40, 155),
        (40, 190), (60, 120), (60, 155), (60, 190), (46, 26), (54, 26), (42, 28), (58, 28),
    ]  # fmt: skip
    return [value for point in points for value in (*point, 1.0)]


def pose_of(*people: list[float]) -> str:
    return json.dumps({"version": 1.3, "people": [{"pose_keypoints_2d": person} for person in people]})


class TestPose:
    def test_joints_have_their_colours_where_they_are_and_all_else_is_black(self):
        keypoints = read_pose(pose_of(a_person()))
        drawn = np.asarray(pose_map(keypoints, (100, 200)))
        assert drawn.shape == (200, 100, 3)
        for (x, y, _), colour in zip(keypoints[0], POSE_COLOURS, strict=True):
            assert tuple(drawn[int(y), int(x)]) == colour
        assert not drawn[:20].any()
        assert not drawn[:, 80:].any()

    def test_limbs_are_drawn_at_sixty_percent(self):
        keypoints = read_pose(pose_of(a_person()))
        drawn = np.asarray(pose_map(keypoints, (100, 200)))
        for (start, end), colour in list(zip(LIMBS, POSE_COLOURS, strict=False))[:12]:
            x, y = (keypoints[0, start, :2] + keypoints[0, end, :2]) / 2
            assert tuple(drawn[int(y), int(x)]) == tuple(int(0.6 * channel) for channel in colour)

    def test_what_is_not_seen_is_not_drawn(self):
        person = np.array(a_person()).reshape(18, 3)
        person[4, 2] = 0  # the right wrist
        whole, without = (
            np.asarray(pose_map(read_pose(pose_of(values)), (100, 200)))
            for values in (a_person(), person.flatten().tolist())
        )
        changed = (whole != without).any(axis=2)
        assert changed[90:125, 25:33].any()
        changed[88:125, 25:33] = False
        assert not changed.any()

    def test_several_people(self):
        other = np.array(a_person()).reshape(18, 3) + np.array([100, 0, 0])
        drawn = np.asarray(pose_map(read_pose(pose_of(a_person(), other.flatten().tolist())), (200, 200)))
        assert np.array_equal(drawn[:, :100], drawn[:, 100:])

    def test_sticks_grow_with_the_drawing(self):
        keypoints = read_pose(pose_of(a_person()))
        keypoints[..., :2] *= 5
        small, large = (
            np.asarray(pose_map(keypoints * (ratio, ratio, 1), (int(500 * ratio), int(1000 * ratio)))).any(axis=2)
            for ratio in (1.0, 2.0)
        )
        assert small.mean() == pytest.approx(large.mean(), rel=0.15)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no json",
            "[]",
            '{"people": []}',
            '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}',
            '{"people": [{"pose_keypoints_2d": null}]}',
            pose_of([float("nan")] * 54),
            pose_of([1e30] * 54),
            "[" * 100_000,
        ],
    )
    def test_another_document_is_the_products_fault(self, text):
        with pytest.raises(Rejected, match="18 keypoints"):
            read_pose(text)
