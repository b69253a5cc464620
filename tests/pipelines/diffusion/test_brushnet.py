"""BrushNet against recordings of the published implementation, and as a trainable branch of a frozen UNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from pipelines.diffusion.brushnet import BrushNetModel, inject
from tests.pipelines.diffusion import by_hand
from tests.pipelines.diffusion.tiny_models import make_brushnet, make_sdxl_unet, make_unet

PARITY = Path(__file__).parents[3] / "../shared/parity"
TOLERANCE = 1e-4


class Recording:
    def __init__(self, family: str):
        self.tensors = load_file(PARITY / family / "record.safetensors")
        self.unet = UNet2DConditionModel.from_pretrained(PARITY / family / "unet").eval()
        self.brushnet = BrushNetModel.from_pretrained(PARITY / family / "brushnet").eval()
        self.unet.requires_grad_(False)
        self.brushnet.requires_grad_(False)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def series(self, prefix: str) -> list[torch.Tensor]:
        found = []
        while f"{prefix}.{len(found)}" in self.tensors:
            found.append(self.tensors[f"{prefix}.{len(found)}"])
        return found

    def added(self, prefix: str = "") -> dict[str, torch.Tensor] | None:
        names = [f"{prefix}added.text_embeds", f"{prefix}added.time_ids"]
        if names[0] not in self.tensors:
            return None
        return {"text_embeds": self[names[0]], "time_ids": self[names[1]]}

    @property
    def injections(self):
        return self.series("injection.down"), self["injection.mid"], self.series("injection.up")

    def denoise(self, **kwargs) -> torch.Tensor:
        embeds = self["encoder_hidden_states"]
        return self.unet(self["sample"], self["timestep"], embeds, added_cond_kwargs=self.added(), **kwargs).sample


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def recording(request) -> Recording:
    if not PARITY.is_dir():
        pytest.skip("../shared is absent: no recordings of the published implementation")
    return Recording(request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return (ours - theirs).abs().max().item() <= TOLERANCE


def test_every_injection_is_the_published_one(recording):
    down, mid, up = recording.brushnet(
        recording["sample"],
        recording["timestep"],
        recording["encoder_hidden_states"],
        recording["brushnet_cond"],
        conditioning_scale=recording["conditioning_scale"].item(),
        added_cond_kwargs=recording.added(),
    )
    expected_down, expected_mid, expected_up = recording.injections
    assert (len(down), len(up)) == (len(expected_down), len(expected_up))
    for ours, theirs in zip([*down, mid, *up], [*expected_down, expected_mid, *expected_up], strict=True):
        assert close(ours, theirs)


def test_a_stock_unet_gives_the_published_output(recording):
    control = {
        "down_block_additional_residuals": recording.series("control.down"),
        "mid_block_additional_residual": recording["control.mid"],
    }
    assert close(recording.denoise(), recording["unet.plain"])
    with inject(recording.unet, *recording.injections):
        assert close(recording.denoise(), recording["unet.brushnet"])
        assert close(recording.denoise(**control), recording["unet.brushnet_control"])
    assert close(recording.denoise(), recording["unet.plain"])


@torch.no_grad()
def test_what_is_written_out_by_hand_is_the_published_one_too(recording):
    scale = recording["conditioning_scale"].item()
    inputs = (recording["sample"], recording["timestep"], recording["brushnet_cond"], scale, recording.added())
    down, mid, up = by_hand.brushnet(recording.brushnet.state_dict(), recording.brushnet.config, *inputs)
    expected_down, expected_mid, expected_up = recording.injections
    for ours, theirs in zip([*down, mid, *up], [*expected_down, expected_mid, *expected_up], strict=True):
        assert close(ours, theirs)
    call = (recording["sample"], recording["timestep"], recording["encoder_hidden_states"], recording.injections)
    control = (recording.series("control.down"), recording["control.mid"])
    assert close(by_hand.denoise(recording.unet, *call, recording.added()), recording["unet.brushnet"])
    steered = by_hand.denoise(recording.unet, *call, recording.added(), control)
    assert close(steered, recording["unet.brushnet_control"])


def test_a_guided_ddim_loop_follows_the_published_one(recording):
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(len(recording["loop.timesteps"]))
    assert scheduler.timesteps.tolist() == recording["loop.timesteps"].tolist()

    embeds = torch.cat([recording["loop.negative_embeds"], recording["loop.prompt_embeds"]])
    cond = recording["loop.brushnet_cond"]
    added = recording.added("loop.")
    latents = recording["loop.latents"]
    for i, t in enumerate(scheduler.timesteps):
        # one pass serves both halves, unless the branch sees the pooled text
        n = 2 if recording.brushnet.sees_text else 1
        injections = recording.brushnet(
            latents.repeat(n, 1, 1, 1), t, None, cond.repeat(n, 1, 1, 1), added_cond_kwargs=added
        )
        with inject(recording.unet, *injections):
            eps = recording.unet(latents.repeat(2, 1, 1, 1), t, embeds, added_cond_kwargs=added).sample
        negative, positive = eps.chunk(2)
        eps = negative + recording["loop.guidance_scale"] * (positive - negative)
        latents = scheduler.step(eps, t, latents).prev_sample
        assert close(eps, recording[f"loop.eps.{i}"])
        assert close(latents, recording[f"loop.latents.{i + 1}"])


def test_configuration_survives_saving(recording, tmp_path):
    recording.brushnet.save_pretrained(tmp_path)
    again = BrushNetModel.from_pretrained(tmp_path)
    ours, theirs = dict(again.config), dict(recording.brushnet.config)
    for config in (ours, theirs):
        config.pop("_name_or_path", None)
        config.pop("_diffusers_version", None)
    assert ours == theirs
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), recording.brushnet.parameters(), strict=True))


# --- without recordings ---------------------------------------------------------------------------------------------


def call(model, size=(16, 16), batch: int = 1):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, *size, generator=generator)
    return model(sample, 500, None, torch.randn(batch, 5, *size, generator=generator))


def test_a_new_branch_changes_nothing():
    unet = make_unet()
    brushnet = BrushNetModel.from_unet(unet)
    sample, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 32)
    with torch.no_grad():
        plain = unet(sample, 10, embeds).sample
        with inject(unet, *brushnet(sample, 10, embeds, torch.randn(1, 5, 16, 16))):
            assert torch.equal(unet(sample, 10, embeds).sample, plain)


def test_a_new_branch_starts_from_the_weights_of_its_unet():
    unet = make_unet()
    brushnet = BrushNetModel.from_unet(unet)
    weight = brushnet.conv_in_condition.weight
    assert torch.equal(weight[:, :4], unet.conv_in.weight)
    assert torch.equal(weight[:, 4:8], unet.conv_in.weight)
    assert not weight[:, 8].any()
    assert torch.equal(brushnet.up_blocks[1].resnets[0].conv1.weight, unet.up_blocks[1].resnets[0].conv1.weight)


@pytest.mark.parametrize("make", [make_unet, make_sdxl_unet], ids=["sd15", "sdxl"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (15, 13), (9, 22)])
@pytest.mark.parametrize("guess_mode", [False, True])
@torch.no_grad()
def test_other_sizes_are_what_is_written_out_by_hand(make, layers, size, guess_mode):
    unet = make(layers)
    brushnet = make_brushnet(unet)
    generator = torch.Generator().manual_seed(3)

    def noise(*shape):
        return torch.randn(2, *shape, generator=generator)

    sample, cond, timestep = noise(4, *size), noise(5, *size), torch.tensor([700, 40])
    embeds = noise(7, unet.config.cross_attention_dim)
    added = None
    if brushnet.sees_text:
        added = {"text_embeds": noise(32), "time_ids": torch.tensor([[1024, 768, 0, 0, 1024, 768], [512] * 6])}

    options = {"added_cond_kwargs": added, "guess_mode": guess_mode}
    down, mid, up = brushnet(sample, timestep, embeds, cond, conditioning_scale=0.7, **options)
    expected = by_hand.brushnet(brushnet.state_dict(), brushnet.config, sample, timestep, cond, 0.7, added, guess_mode)
    for ours, theirs in zip([*down, mid, *up], [*expected[0], expected[1], *expected[2]], strict=True):
        assert ours.any()
        assert close(ours, theirs)
    with inject(unet, down, mid, up):
        ours = unet(sample, timestep, embeds, added_cond_kwargs=added).sample
    assert close(ours, by_hand.denoise(unet, sample, timestep, embeds, expected, added))


@pytest.mark.parametrize("make", [make_unet, make_sdxl_unet], ids=["sd15", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("guess_mode", [False, True])
@torch.no_grad()
def test_half_precision_stays(make, dtype, guess_mode):
    unet = make()
    brushnet = make_brushnet(unet).to(dtype)
    sample, cond = torch.randn(1, 4, 9, 8).to(dtype), torch.randn(1, 5, 9, 8).to(dtype)
    embeds = torch.randn(1, 7, unet.config.cross_attention_dim).to(dtype)
    added = {"text_embeds": torch.randn(1, 32).to(dtype), "time_ids": torch.full((1, 6), 512)}
    options = {"added_cond_kwargs": added if brushnet.sees_text else None}
    down, mid, up = brushnet(sample, 500, embeds, cond, guess_mode=guess_mode, **options)
    assert {output.dtype for output in (*down, mid, *up)} == {dtype}
    with inject(unet.to(dtype), down, mid, up):
        assert unet(sample, 500, embeds, **options).sample.dtype == dtype


def test_one_pass_serves_both_guidance_halves():
    unet = make_unet()
    brushnet = make_brushnet(unet)
    sample, cond, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16, 16), torch.randn(4, 7, 32)
    twice = sample.repeat(2, 1, 1, 1)
    with torch.no_grad():
        with inject(unet, *brushnet(twice, 10, embeds, cond.repeat(2, 1, 1, 1))):
            separately = unet(twice, 10, embeds).sample
        with inject(unet, *brushnet(sample, 10, None, cond)):
            shared = unet(twice, 10, embeds).sample
    assert torch.allclose(separately, shared, atol=1e-5)


def test_hooks_go_when_the_block_fails():
    unet = make_unet()
    brushnet = make_brushnet(unet)
    sample, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 32)
    with torch.no_grad():
        plain = unet(sample, 10, embeds).sample
        with pytest.raises(RuntimeError, match="planted"), inject(unet, *call(brushnet)):
            raise RuntimeError("planted")
        assert torch.equal(unet(sample, 10, embeds).sample, plain)


def test_a_branch_of_another_unet_is_refused():
    other = BrushNetModel.from_unet(make_unet(layers_per_block=1))
    with pytest.raises(ValueError, match="places"), inject(make_unet(), *call(other)):
        pass


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_branch_learns_while_the_unet_is_frozen(checkpointing):
    unet = make_unet().requires_grad_(False)
    brushnet = BrushNetModel.from_unet(unet)
    brushnet.requires_grad_(True).train()
    if checkpointing:
        brushnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
        unet.train()
    optimizer = torch.optim.Adam(brushnet.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    sample, cond = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 5, 16, 16, generator=generator)
    embeds, target = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 4, 16, 16, generator=generator)

    losses = []
    for _ in range(8):
        injections = brushnet(sample, 100, None, cond)
        with inject(unet, *injections):
            loss = torch.nn.functional.mse_loss(unet(sample, 100, embeds).sample, target)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert brushnet.brushnet_up_blocks[0].weight.any()
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_other_blocks_are_refused():
    with pytest.raises(ValueError, match="blocks"):
        BrushNetModel(block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
