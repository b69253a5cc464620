"""A published checkpoint gives what its own network gives: here written down anew, tiny, with its normalisation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import IntegrityError
from pipelines.models.profile import PROFILES, load_profile
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


@pytest.mark.parametrize(("isnet", "side"), [(False, 320), (True, 1024)], ids=["u2net", "isnet"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_published_checkpoint_gives_what_its_network_gives(
    isnet: bool, side: int, suffix: str, tmp_path: Path
) -> None:
    net, path = published(isnet), tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path)
    model = load_salient(path)
    image = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        assert torch.allclose(model.net.eval()(image)[0], net(image), atol=1e-5)
    assert model.side == side
    photo = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    mask = SalientSegmenter(model).segment(photo)
    assert mask.shape == (50, 70)
    assert 0 <= mask.min() <= mask.max() <= 1


@pytest.mark.parametrize("broken", ["a tensor is missing", "another network"])
def test_another_file_is_refused_by_name(broken: str, tmp_path: Path) -> None:
    state = {"bb.patch_embed.proj.weight": torch.zeros(2)}
    if broken == "a tensor is missing":
        state = published(False).state_dict()
        del state["stage3.rebnconv4.bn_s1.running_var"]
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(IntegrityError, match=r"net\.safetensors: expected the bundled salient net, or a published"):
        load_salient(tmp_path / "net.safetensors")


@pytest.mark.skipif(not BUNDLED.exists(), reason="no bundled weights")
def test_the_bundled_net_is_still_read() -> None:
    model = load_salient(BUNDLED)
    assert isinstance(model.net, U2NetP)
    assert model.side == 320


def test_a_profile_names_a_published_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "isnet-general-use.pth"
    torch.save(published(True).state_dict(), path)
    part = f"salient: {{kind: salient, path: {path.name}, revision: main, source: DIS, licence: Apache-2.0, "
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "sd15.yaml").write_text(f"parts:\n  {part}sha256: {digest}}}\n")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    named = SalientSegmenter.from_profile(load_profile("sd15", tmp_path)).segment(image)
    assert np.array_equal(named, SalientSegmenter(load_salient(path)).segment(image))
