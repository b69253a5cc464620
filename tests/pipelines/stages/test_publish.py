"""A published file: it keeps its channel's rules, and says where it comes from to Debian's exiftool."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import c2pa
import numpy as np
import pytest
from PIL import Image

from pipelines.contracts import Artifact, Job, Product, Shot, State, Step
from pipelines.errors import Rejected
from pipelines.models.profile import load_profile
from pipelines.scenes import Scene, load_scene
from pipelines.scenes.channels import Channel, Provenance
from pipelines.stages.keys import publish_job
from pipelines.stages.publish import compute, load
from pipelines.vision.photos import png_bytes
from pipelines.vision.placement import Placement
from pipelines.workflow import Recipe, Work
from tests.certificates import Files, write_certificates

SIDE = 640
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TITLE = 'Tasse „Überraschung" <b>&amp;</b> \x0b茶碗'
SHARP = Channel(name="sharp", width=SIDE, height=SIDE, provenance=Provenance())
ALL = {"product_share": 0.8, "min_product_share": 0.8, "margin": 0.1, "background": "white"}


def work_of(
    channel: Channel, side: int = SIDE, product: int = 512, ground: int = 255, signed_with: Files | None = None
) -> Work:
    """A disc of `product` px in the middle of `side` px of grey level `ground`, about to be published."""
    margin = (side - product) // 2
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    disc = rows**2 + columns**2 <= (product / 2) ** 2
    pixels = np.where(disc[..., None], [160, 40, 60], ground).astype(np.uint8)
    box = np.s_[margin : margin + product, margin : margin + product]
    cutout = np.dstack([pixels[box], (disc[box] * 255).astype(np.uint8)])
    inputs = {"final": png_bytes(Image.fromarray(pixels)), "cutout": png_bytes(Image.fromarray(cutout))}
    placement = Placement(side, side, (0, 0, product, product), margin, margin, product, product, "none")
    upscaled = Job("upscale", 3, {"cutout": "c" * 64}, {"placement": placement.facts()})
    steps = {
        "upscale": Step(upscaled.key, upscaled, State.DONE, (Artifact("f" * 64, "final", "image/png", 1),)),
    }
    scene = load_scene("painted-sage").model_copy(update={"channel": channel})
    shot = Shot(Product("CUP/1", 2, TITLE, "Kitchen", "a" * 64), scene.name, channel.name)
    job = publish_job(shot, steps, recipe_of(scene, signed_with), 0)
    return Work(job, {role: inputs[role] for role in job.inputs})


def recipe_of(scene: Scene, signed_with: Files | None = None) -> Recipe:
    credentials = signed_with.credentials() if signed_with else None
    return Recipe(load_profile("mini", None), scene, credentials=credentials)


def published(work: Work, signed_with: Files | None = None) -> tuple[bytes, str]:
    """The file, and its media type."""
    recipe = recipe_of(load_scene("painted-sage"), signed_with)
    [made] = compute([work], load(recipe), recipe)
    [output] = made.outputs
    return output.data, output.media_type


def told(data: bytes, folder: Path) -> dict[str, str]:
    """What exiftool says of a file."""
    if shutil.which("exiftool") is None:
        pytest.skip("needs Debian's exiftool: apt-get install libimage-exiftool-perl")
    file = folder / "published"
    file.write_bytes(data)
    done = subprocess.run(["exiftool", "-j", "-G1", str(file)], capture_output=True, check=True)
    return json.loads(done.stdout)[0]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "avif"])
def test_a_file_says_where_it_comes_from_in_every_format(kind: str, tmp_path: Path) -> None:
    said = Provenance(credit="Müller & Söhne", alt_text="{title} ({sku}, {scene})")
    channel = SHARP.model_copy(update={"format": kind, "provenance": said})
    work = work_of(channel)
    data, media_type = published(work)
    assert media_type == f"image/{kind}"
    assert published(work) == (data, media_type), "equal images have equal files"
    found = told(data, tmp_path)
    assert found["File:MIMEType"] == media_type
    assert found["XMP-iptcExt:DigitalSourceType"] == f"{IPTC}compositeWithTrainedAlgorithmicMedia"
    assert found["XMP-dc:Identifier"] == "CUP/1"
    assert found["XMP-photoshop:Credit"] == "Müller & Söhne"
    assert found["XMP-iptcCore:AltTextAccessibility"] == f"{TITLE.replace(chr(11), '')} (CUP/1, Painted sage)"
    assert found["ICC_Profile:ProfileDescription"].startswith("sRGB")
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.abs(np.asarray(image, int)[SIDE // 2, SIDE // 2] - [160, 40, 60]).max() <= 6


def test_a_channel_without_provenance_says_the_source_type_alone(tmp_path: Path) -> None:
    channel = Channel(width=SIDE, height=SIDE, digital_source_type="trainedAlgorithmicMedia")
    found = told(published(work_of(channel))[0], tmp_path)
    assert {name: value for name, value in found.items() if name.startswith(("XMP-", "ICC"))} == {
        "XMP-iptcExt:DigitalSourceType": f"{IPTC}trainedAlgorithmicMedia"
    }


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_file_that_keeps_every_rule_is_published(kind: str) -> None:
    rules = ALL | {"max_side": SIDE, "max_megapixels": 0.5, "max_bytes": 500_000, "format": kind}
    assert published(work_of(Channel.model_validate(SHARP.model_dump() | rules)))


@pytest.mark.parametrize(
    ("rules", "about", "reason"),
    [
        ({"max_bytes": 1500}, {}, r"\d{4,} bytes, and at most 1500 are allowed: lower the channel's quality"),
        ({"max_side": 700}, {"side": 800}, "800×800 px, and at most 700 on a side"),
        ({"max_megapixels": 0.5}, {"side": 800}, r"0.6 megapixels, and at most 0.5"),
        ({"max_side": 700}, {"side": 480, "product": 300}, "480×480 px, and 500×500 or more"),
        (ALL, {"product": 448}, r"the product is 70.0% of the frame's shorter side long, and 80% or more"),
        (ALL, {"product": 540}, r"is 7.8% of the frame's shorter side away from the edge, and 10% or more"),
        (ALL, {"ground": 254}, r"100.00% of the background is not pure white"),
    ],
)
def test_a_file_that_breaks_a_rule_is_rejected_with_what_was_found_and_what_is_required(rules, about, reason) -> None:
    channel = Channel.model_validate(SHARP.model_dump() | rules)
    with pytest.raises(Rejected, match=f"^channel sharp: .*{reason}"):
        published(work_of(channel, **about))


def test_one_grey_pixel_far_from_the_product_is_not_pure_white() -> None:
    work = work_of(Channel.model_validate(SHARP.model_dump() | ALL))
    pixels = np.array(Image.open(io.BytesIO(work.inputs["final"])))
    pixels[4, 4] = 200
    with pytest.raises(Rejected, match="not pure white"):
        published(replace(work, inputs={**work.inputs, "final": png_bytes(Image.fromarray(pixels))}))


# ------------------------------------------------------------------------------------------------------- signatures


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The key and the certificates of a shop."""
    return write_certificates(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "avif"])
def test_a_signed_file_states_what_made_it_and_from_which_photo_in_every_format(
    kind: str, shop: Files, tmp_path: Path
) -> None:
    channel = SHARP.model_copy(update={"format": kind})
    data, media_type = published(work_of(channel, signed_with=shop), shop)
    with c2pa.Context.from_dict({"trust": {"trust_anchors": shop.root.read_text()}}) as trusting:
        reader = c2pa.Reader(media_type, io.BytesIO(data), context=trusting)
    assert reader.get_validation_state() == "Trusted"
    stated = reader.get_active_manifest()
    assert stated["claim_generator_info"][0].items() >= {"name": "packshot", "version": "0.1.0"}.items()
    assert stated["title"] == "CUP/1"
    [actions] = [one["data"]["actions"] for one in stated["assertions"] if one["label"].startswith("c2pa.actions")]
    assert [action["action"] for action in actions] == ["c2pa.created", "c2pa.placed"]
    assert actions[0]["digitalSourceType"] == f"{IPTC}compositeWithTrainedAlgorithmicMedia"
    [photo] = stated["ingredients"]
    assert (photo["instance_id"], photo["relationship"]) == (f"sha256:{'a' * 64}", "componentOf")

    unsigned, _ = published(work_of(channel))
    pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in (data, unsigned)]
    assert np.array_equal(*pixels)
    found = told(data, tmp_path)
    assert found["XMP-dc:Identifier"] == "CUP/1"
    if kind in ("jpeg", "png"):  # where Debian's exiftool reads it
        assert found["CBOR:ActionsAction"] == ["c2pa.created", "c2pa.placed"]
        assert found["CBOR:Claim_Generator_InfoName"] == "packshot"
    spoilt = data.replace(b"CUP/1", b"CUP/2", 1)
    state = c2pa.Reader(media_type, io.BytesIO(spoilt)).get_validation_state()
    assert state == "Invalid", "a change of its XMP is noticed"


@pytest.mark.parametrize("source_type", ["trainedAlgorithmicMedia", "compositeSynthetic", "algorithmicallyEnhanced"])
def test_the_signature_states_the_origin_that_xmp_states(source_type: str, shop: Files, tmp_path: Path) -> None:
    channel = SHARP.model_copy(update={"digital_source_type": source_type})
    data, media_type = published(work_of(channel, signed_with=shop), shop)
    stated = c2pa.Reader(media_type, io.BytesIO(data)).get_active_manifest()
    [actions] = [one["data"]["actions"] for one in stated["assertions"] if one["label"].startswith("c2pa.actions")]
    [origin] = [action["digitalSourceType"] for action in actions if "digitalSourceType" in action]
    assert origin == told(data, tmp_path)["XMP-iptcExt:DigitalSourceType"] == f"{IPTC}{source_type}"
    is_photo = source_type == "algorithmicallyEnhanced"
    assert actions[0]["action"] == ("c2pa.opened" if is_photo else "c2pa.created")
    assert stated["ingredients"][0]["relationship"] == ("parentOf" if is_photo else "componentOf")


def test_the_signed_file_is_what_the_rules_are_held_to(shop: Files) -> None:
    unsigned, _ = published(work_of(SHARP))
    limited = Channel.model_validate(SHARP.model_dump() | {"max_bytes": len(unsigned)})
    assert published(work_of(limited)) == (unsigned, "image/jpeg")
    with pytest.raises(Rejected, match="bytes, and at most"):
        published(work_of(limited, signed_with=shop), shop)


def test_a_renewed_certificate_signs_again_and_no_certificate_leaves_the_key_as_it_was(
    shop: Files, tmp_path: Path
) -> None:
    jobs = [work_of(SHARP, signed_with=one).job for one in (shop, shop, write_certificates(tmp_path), None)]
    assert jobs[0].key == jobs[1].key
    assert len({job.key for job in jobs}) == 3
    assert "credentials" not in jobs[3].parameters
