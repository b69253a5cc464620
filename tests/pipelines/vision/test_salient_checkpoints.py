"""A published checkpoint gives what its own network gives: here written down anew, tiny, with its normalisation.

BiRefNet's own network was run once on random weights. `birefnet_tiny.json` has its tensors' names and shapes, and every
eighth value of the map that it gave.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import IntegrityError
from pipelines.models.files import check_file_complete
from pipelines.models.profile import FOREGROUND_NETS, PROFILES, load_profile
from pipelines.vision.salient_checkpoints import load_salient
from pipelines.vision.salient_net import U2NetP
from pipelines.vision.segmenters import SalientSegmenter

BUNDLED = PROFILES / "mini" / "salient" / "model.safetensors"
PLAIN, DILATED = (1,) * 9, (1, 2, 4, 8)


class Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int = 1):
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x)))


class Block(nn.Module):
    """RSU-7 to RSU-4, and RSU-4F where `dilated`."""

    def __init__(self, depth: int, inputs: int, middle: int, outputs: int, dilated: bool = False):
        super().__init__()
        self.depth, self.dilated = depth, dilated
        self.rebnconvin = Convolution(inputs, outputs)
        for n in range(1, depth + 1):
            step = DILATED[n - 1] if dilated else 2 if n == depth else 1
            self.add_module(f"rebnconv{n}", Convolution(outputs if n == 1 else middle, middle, step))
        for n in range(depth - 1, 0, -1):
            step = DILATED[n - 1] if dilated else 1
            self.add_module(f"rebnconv{n}d", Convolution(2 * middle, outputs if n == 1 else middle, step))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.rebnconvin(x)
        down = [self.rebnconv1(entered)]
        for n in range(2, self.depth + 1):
            pooled = self.dilated or n == self.depth
            x = down[-1] if pooled else F.max_pool2d(down[-1], 2, 2, ceil_mode=True)
            down.append(self.get_submodule(f"rebnconv{n}")(x))
        x = down.pop()
        for n in range(self.depth - 1, 0, -1):
            skip = down.pop()
            x = F.interpolate(x, skip.shape[2:], mode="bilinear")
            x = self.get_submodule(f"rebnconv{n}d")(torch.cat((x, skip), 1))
        return x + entered


class Published(nn.Module):
    """U2NET and U2NETP; ISNetDIS where `isnet`."""

    def __init__(self, isnet: bool = False):
        super().__init__()
        self.isnet = isnet
        if isnet:
            self.conv_in = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        widths = [(4 if isnet else 3, 3, 4), (4, 3, 6), (6, 4, 8), (8, 5, 10), (10, 6, 10), (10, 6, 10)]
        back = [(20, 6, 10), (20, 5, 8), (16, 4, 6), (12, 3, 4), (8, 2, 4)]
        for n, (depth, at) in enumerate(zip((7, 6, 5, 4, 4, 4), widths, strict=True), 1):
            self.add_module(f"stage{n}", Block(depth, *at, dilated=n > 4))
        for n, (depth, at) in zip((5, 4, 3, 2, 1), zip((4, 4, 5, 6, 7), back, strict=True), strict=True):
            self.add_module(f"stage{n}d", Block(depth, *at, dilated=n == 5))
        for n, outputs in enumerate((4, 4, 6, 8, 10, 10), 1):
            self.add_module(f"side{n}", nn.Conv2d(outputs, 1, 3, padding=1))
        if not isnet:
            self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image) if self.isnet else image
        down = []
        for n in range(1, 7):
            x = self.get_submodule(f"stage{n}")(x if n == 1 else F.max_pool2d(x, 2, 2, ceil_mode=True))
            down.append(x)
        made = [down.pop()]
        for n in range(5, 0, -1):
            skip = down.pop()
            up = F.interpolate(made[-1], skip.shape[2:], mode="bilinear")
            made.append(self.get_submodule(f"stage{n}d")(torch.cat((up, skip), 1)))
        maps = [self.get_submodule(f"side{n}")(x) for n, x in enumerate(reversed(made), 1)]
        maps = [F.interpolate(one, image.shape[2:], mode="bilinear") for one in maps]
        return maps[0] if self.isnet else self.outconv(torch.cat(maps, 1))


def published(isnet: bool) -> Published:
    torch.manual_seed(3)
    net = Published(isnet).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.3, 2)):
                values.uniform_(low, high)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net


RECORDED = json.loads(Path(__file__).with_name("birefnet_tiny.json").read_text())


def birefnet_weights() -> dict[str, Tensor]:
    return dict(random_birefnet())


@cache
def random_birefnet() -> dict[str, Tensor]:
    """The weights that BiRefNet's own network had: random, seeded by their names, in the published format."""
    state: dict[str, Tensor] = {}
    for name, shape in RECORDED["tensors"].items():
        last = name.rsplit(".", 1)[-1]
        if last in ("relative_position_index", "num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        if last == "running_var":
            values = 0.5 + np.abs(values)
        elif last in ("bias", "running_mean"):
            values *= 0.1
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            values /= np.sqrt(max(1, np.prod(shape[1:])), dtype=np.float32)
        state[name] = torch.from_numpy(values)
    return state


def test_birefnet_gives_what_its_own_network_gave(tmp_path: Path) -> None:
    save_file(birefnet_weights(), tmp_path / "model.safetensors")
    model = load_salient(tmp_path / "model.safetensors", "birefnet")
    image = torch.from_numpy(np.random.default_rng(5).standard_normal((1, 3, 96, 96), np.float32))
    with torch.inference_mode():
        logits = model.net.eval()(image)[0][0, 0]
        twice = model.net(torch.cat([image.flip(3), image]))[0][1, 0]
    assert torch.allclose(logits[4::8, 4::8], torch.tensor(RECORDED["map"]), atol=2e-5)
    assert torch.allclose(twice, logits, atol=1e-5)
    assert (model.side, model.mean[0], model.std[0]) == (1024, 0.485, 0.229)


def test_birefnets_half_precision_and_names_of_a_compiled_net_are_read(tmp_path: Path) -> None:
    weights = {name: t.half() if t.is_floating_point() else t for name, t in birefnet_weights().items()}
    save_file({f"module._orig_mod.{name}": t for name, t in weights.items()}, tmp_path / "model.safetensors")
    net = load_salient(tmp_path / "model.safetensors", "birefnet").net
    assert all(value.dtype == torch.float32 for value in net.parameters())
    assert torch.equal(net.state_dict()["bb.norm3.weight"], weights["bb.norm3.weight"].float())


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("u2net", [(200 / 200 - 0.485) / 0.229, (100 / 200 - 0.456) / 0.224, (0 - 0.406) / 0.225]),
        ("isnet", [200 / 255 - 0.5, 100 / 255 - 0.5, -0.5]),
        ("birefnet", [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225]),
    ],
)
def test_a_picture_is_prepared_as_the_publisher_does(kind: str, levels: list[float], tmp_path: Path) -> None:
    state = birefnet_weights() if kind == "birefnet" else published(kind == "isnet").state_dict()
    save_file(state, tmp_path / "net.safetensors")
    model = load_salient(tmp_path / "net.safetensors", kind)
    given = model.prepare(np.full((40, 60, 3), (200, 100, 0), np.uint8))
    assert given.shape == (1, 3, model.side, model.side)
    assert torch.allclose(given[0, :, 7, 9], torch.tensor(levels), atol=1e-6)
    black = model.prepare(np.zeros((8, 8, 3), np.uint8))
    assert torch.isfinite(black).all()


@pytest.mark.parametrize(("kind", "side"), [("u2net", 320), ("isnet", 1024)])
@pytest.mark.parametrize("form", [".pth", ".safetensors", "old .pth"])
def test_a_published_checkpoint_gives_what_its_network_gives(kind: str, side: int, form: str, tmp_path: Path) -> None:
    net, path = published(kind == "isnet"), tmp_path / f"net{form.removeprefix('old ')}"
    if form == ".safetensors":
        save_file(net.state_dict(), path)
    else:  # u2net.pth is no zip archive
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=form == ".pth")
    check_file_complete(path)
    model = load_salient(path, kind)
    image = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        assert torch.allclose(model.net.eval()(image)[0], net(image), atol=1e-5)
    assert model.side == side
    photo = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    mask = SalientSegmenter(model).segment(photo)
    assert mask.shape == (50, 70)
    assert 0 <= mask.min() <= mask.max() <= 1


@pytest.mark.parametrize(
    ("kind", "held", "expected"),
    [
        ("u2net", "a tensor is missing", "a published U²-Net or U²-Net-P"),
        ("u2net", "isnet", "a published U²-Net or U²-Net-P"),
        ("isnet", "u2net", "a published IS-Net"),
        ("salient", "u2net", "a salient net in the bundled format"),
        ("birefnet", "isnet", "a published BiRefNet"),
        ("birefnet", "another encoder", "a published BiRefNet"),
        ("birefnet", "a tensor is missing", "a published BiRefNet"),
    ],
)
def test_another_file_is_refused_by_name(kind: str, held: str, expected: str, tmp_path: Path) -> None:
    if held == "another encoder":
        state = {name: t for name, t in birefnet_weights().items() if not name.startswith("bb.")}
        state |= {"bb.patch_embed1.proj.weight": torch.zeros(64, 3, 7, 7)}
    elif held == "a tensor is missing":
        lost = "decoder.ipt_blk1.conv1.bias" if kind == "birefnet" else "stage3.rebnconv4.bn_s1.running_var"
        state = birefnet_weights() if kind == "birefnet" else published(False).state_dict()
        del state[lost]
    else:
        state = published(held == "isnet").state_dict()
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(IntegrityError, match=rf"net\.safetensors: expected {expected}"):
        load_salient(tmp_path / "net.safetensors", kind)


def test_a_kind_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="'rmbg'; there are salient, u2net, isnet, birefnet"):
        load_salient(BUNDLED, "rmbg")
    assert FOREGROUND_NETS == ("salient", "u2net", "isnet", "birefnet")


@pytest.mark.skipif(not BUNDLED.exists(), reason="no bundled weights")
def test_the_bundled_net_is_still_read() -> None:
    model = load_salient(BUNDLED)
    assert isinstance(model.net, U2NetP)
    assert model.side == 320


@pytest.mark.parametrize("kind", ["u2net", "isnet"])
def test_a_profile_names_a_published_net_for_the_foreground(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.pth"
    torch.save(published(kind == "isnet").state_dict(), path)
    part = f"foreground: {{kind: {kind}, path: {path.name}, revision: main, source: a shop, licence: Apache-2.0, "
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "sd15.yaml").write_text(f"parts:\n  {part}sha256: {digest}}}\n")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    profile = load_profile("sd15", tmp_path)
    named = SalientSegmenter.from_profile(profile, part="foreground").segment(image)
    assert np.array_equal(named, SalientSegmenter(load_salient(path, kind)).segment(image))
    assert profile.ref("foreground").sha256 == digest
