"""Where fine-tuning pictures come from: pairs in folders, and what the shop published."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.contracts import Artifact, Job, Product, Publication, Shot, ShotStep, State, Step, Verdict, sha256_hex
from pipelines.errors import IntegrityError, UsageError
from pipelines.ledger.decisions import Choice, decide
from pipelines.settings import Settings
from pipelines.store import FolderStore
from pipelines.training.data import is_held_out
from pipelines.training.sources import (
    Dataset,
    Picture,
    cutout_product,
    frozen_pictures,
    gather_folder,
    gather_ledger,
    picture_pack,
    squared,
)
from pipelines.vision.photos import png_bytes

SETTINGS = Settings(photo_max_megapixels=1)


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def mask(box: tuple[int, int, int, int] = (10, 10, 50, 50), size: tuple[int, int] = (90, 60)) -> Image.Image:
    drawn = Image.new("L", size, 0)
    drawn.paste(255, box)
    return drawn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    return tmp_path / "pictures"


@pytest.fixture
def store_at(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def pair(folder: Path, name: str, image: Image.Image | None = None, drawn: Image.Image | None = None) -> None:
    (image or photo()).save(folder / "images" / f"{name}.jpg", quality=95)
    (drawn or mask()).save(folder / "masks" / f"{name}.png")


def cutout(seed: int = 0) -> bytes:
    rgba = np.zeros((80, 60, 4), np.uint8)
    rgba[20:70, 10:50, :3] = np.random.default_rng(seed).integers(0, 255, 3)
    rgba[20:70, 10:50, 3] = 255
    return png_bytes(Image.fromarray(rgba, "RGBA"))


def test_pairs_go_by_name_and_numbered_ones_are_one_product(folder, store_at):
    for name in ("kettle_1", "kettle_2", "red lamp", "IMG_0042"):
        pair(folder, name)
    found = gather_folder(folder, store_at, SETTINGS)
    assert [(p.product, p.title) for p in found.pictures] == [
        ("IMG_0042", "img 0042"),
        ("kettle", "kettle"),
        ("kettle", "kettle"),
        ("red lamp", "red lamp"),
    ]
    assert found.refused == ()
    assert store_at.get(found.pictures[1].mask) == (folder / "masks" / "kettle_1.png").read_bytes()
    digest = found.save(store_at)
    assert Dataset.load(store_at, digest) == found
    assert gather_folder(folder, store_at, SETTINGS).save(store_at) == digest
    with pytest.raises(IntegrityError):
        Dataset.load(store_at, store_at.put(b"{}", "application/json"))


def test_bad_pairs_are_refused_with_the_reason_and_counted(folder, store_at):
    pair(folder, "good")
    pair(folder, "other_size", drawn=mask(size=(60, 90)))
    pair(folder, "empty", drawn=Image.new("L", (90, 60), 0))
    pair(folder, "inverted_full", drawn=Image.new("L", (90, 60), 255))
    pair(folder, "grey", drawn=photo().convert("L"))
    pair(folder, "colour", drawn=photo())
    pair(folder, "bomb", photo(1100, 1000), mask(size=(1100, 1000)))
    pair(folder, "lonely")
    (folder / "masks" / "lonely.png").unlink()
    pair(folder, "nobody")
    (folder / "images" / "nobody.jpg").unlink()
    pair(folder, "twice")
    photo().save(folder / "images" / "twice.png")
    pair(folder, "broken")
    (folder / "images" / "broken.jpg").write_bytes((folder / "images" / "good.jpg").read_bytes()[:300])
    (folder / "images" / "notes.txt").write_text("not a picture")
    found = gather_folder(folder, store_at, SETTINGS)
    assert [picture.product for picture in found.pictures] == ["good"]
    reasons = dict(found.refused)
    expected = {
        "other_size": "differ in size",
        "empty": "almost empty",
        "inverted_full": "almost full",
        "grey": "grey picture",
        "colour": "colour picture",
        "bomb": "limit is 1",
        "lonely": "no mask of that name",
        "nobody": "no image of that name",
        "twice": "more than one image",
        "broken": "broken",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name], name
    assert sum(found.reasons().values()) == len(expected)


def test_a_folder_without_usable_pairs_is_a_usage_error(folder, store_at):
    with pytest.raises(UsageError, match="no pair"):
        gather_folder(folder, store_at, SETTINGS)
    with pytest.raises(UsageError, match="images: not there"):
        gather_folder(folder.parent / "elsewhere", store_at, SETTINGS)
    pair(folder, "empty", drawn=Image.new("L", (90, 60), 0))
    with pytest.raises(UsageError, match="almost empty"):
        gather_folder(folder, store_at, SETTINGS)


@pytest.mark.parametrize("box", [(0, 0, 200, 40), (150, 0, 200, 60), (60, 10, 90, 50), (0, 0, 200, 60)])
def test_a_square_holds_the_whole_product_and_mask_and_picture_agree(box):
    drawn = np.asarray(mask(box, (200, 60)))
    image = np.dstack([drawn] * 3)
    shown, kept = squared(image, drawn, 64)
    assert shown.shape == (64, 64, 3)
    scale = 64**2 / max(60, min(round(1.15 * max(box[2] - box[0], box[3] - box[1])), 200), box[2] - box[0]) ** 2
    assert (kept / 255).sum() == pytest.approx((drawn / 255).sum() * scale, rel=0.06)
    assert np.abs(shown[..., 0].astype(int) - kept)[8:-8, 8:-8].max() <= 255 * 0.02 or box[2] - box[0] == 200


def test_photos_are_learnt_from_as_they_are_and_cutouts_in_scenes(store_at, tmp_path):
    photo_pair = [store_at.put(png_bytes(one), "image/png") for one in (photo(), mask())]
    pictures = [
        Picture("kettle", "kettle", "photo", *photo_pair),
        Picture("lamp", "lamp", "cutout", store_at.put(cutout(1), "image/png")),
        Picture("mug", "mug", "cutout", store_at.put(cutout(2), "image/png")),
    ]
    pack = picture_pack(tmp_path / "a", pictures, store_at, 64, shots=7, max_megapixels=1)
    assert len(pack) == 7
    expected, _ = squared(np.asarray(photo()), np.asarray(mask()), 64)
    assert np.array_equal(pack.image(0), expected)
    assert pack.captions[0] == "a photo of kettle"
    assert all("lamp" in caption and "wall" in caption for caption in pack.captions[1:4])
    assert all("mug" in caption for caption in pack.captions[4:])
    assert not np.array_equal(pack.image(1), pack.image(2)), "each variant is another scene"
    colour = cutout_product(cutout(1), "lamp").rgb[0, 0] * 255
    whole = cv2.erode(np.asarray(pack.mask(1)), np.ones((3, 3), np.uint8)) == 255
    assert np.abs(pack.image(1)[whole] - colour).max() < 3, "the product's own pixels are in its mask"
    again = picture_pack(tmp_path / "b", pictures, store_at, 64, shots=7, max_megapixels=1)
    assert all(np.array_equal(pack.image(n), again.image(n)) for n in range(7))


def test_products_are_held_out_whole_and_the_frozen_set_is_always_the_same():
    names = [f"product {n}" for n in range(200)]
    data = Dataset("test", tuple(Picture(name, name, "cutout", "0" * 64) for name in names for _ in range(2)))
    held, learnt = data.side(held_out=True), data.side(held_out=False)
    assert len(held) + len(learnt) == 400
    assert {p.product for p in held}.isdisjoint({p.product for p in learnt})
    assert {p.product for p in held} == {name for name in names if is_held_out(name)}
    frozen = frozen_pictures(held, 5)
    assert len({picture.product for picture in frozen}) == 5
    assert frozen_pictures(list(reversed(held)), 5) == frozen
    assert frozen_pictures(held, 3) == frozen[:3]


# ------------------------------------------------------------------------------------------------------ the ledger


def shown(ledger, store, run: str, sku: str, scene: str = "oak-window", seed: int = 0, **about) -> str:
    """A shot of a run with a cutout in the store and a final image; returns the cutout's digest."""
    fields = {"title": f"Saleor {sku}", "category": "Home > Kitchen", "photo": sha256_hex(sku.encode())} | about
    shot = Shot(Product(sku, 1, **fields), scene, "web")
    ledger.start_run(run, "catalog_refresh", scene, "web")
    ledger.upsert_products([shot.product])
    ledger.select(run, [shot], 8)
    digest = store.put(cutout(seed), "image/png")
    used, final = [], sha256_hex(f"final {run} {sku}".encode())
    for stage, role, output in (
        ("cutout", "cutout", digest),
        ("upscale", "final", final),
        ("inspect", "halo", digest),
        ("publish", "published", sha256_hex(f"published {run} {sku}".encode())),
    ):
        job = Job(stage, 1, {"photo": shot.product.photo, "final": final}, {"sku": sku, "run": run})
        verdicts = (Verdict("halo", 9.0, 3.0, False),) if stage == "inspect" else ()
        step = Step(job.key, job, State.DONE, (Artifact(output, role, "image/png", 1),), verdicts=verdicts)
        used.append(ShotStep(ledger.record(step), reused=False))
    ledger.use(run, [(shot, used)])
    ledger.settle(run)
    return digest


def publish(ledger, run: str, sku: str, scene: str = "oak-window") -> None:
    ledger.publish(run, [Publication(sku, scene, "web", sha256_hex(f"published {run} {sku}".encode()))])


def test_the_ledger_gives_the_newest_cutout_of_what_was_published_or_approved(ledger, store):
    with pytest.raises(UsageError, match="no product with a published"):
        gather_ledger(ledger.engine)
    shown(ledger, store, "r1", "kettle", seed=1)
    publish(ledger, "r1", "kettle")
    newer = shown(ledger, store, "r2", "kettle", seed=2, item_group_id="kettles")
    publish(ledger, "r2", "kettle")
    shown(ledger, store, "r3", "held")
    approved = shown(ledger, store, "r4", "approved", seed=4, category="Garden", scene="studio-sage")
    decide(ledger.engine, sha256_hex(b"final r4 approved"), Choice.APPROVE, "ada")
    found = gather_ledger(ledger.engine)
    assert [(p.product, p.title, p.kind, p.image) for p in found.pictures] == [
        ("approved", "approved", "cutout", approved),
        ("kettles", "kettle", "cutout", newer),
    ]
    assert [p.product for p in gather_ledger(ledger.engine, categories=["home"]).pictures] == ["kettles"]
    assert [p.product for p in gather_ledger(ledger.engine, scenes=["studio-sage"]).pictures] == ["approved"]
    with pytest.raises(UsageError):
        gather_ledger(ledger.engine, categories=["Home > Bath"])
    pack_of = Dataset.load(store, found.save(store)).pictures
    assert pack_of == found.pictures
