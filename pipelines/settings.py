"""Every setting of packshot, with its default. The environment decides: PACKSHOT_<NAME>.

`packshot up` writes where its embedded services are into `<state_dir>/environment` (mode 0600), so that every later
command and every Airflow task finds them; a variable in the process environment wins over that file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: where dags/, plugins/ and sql/ are."""


MAX_MEGAPIXELS = 50
"""Of a photo, where not told otherwise: the cutout of one that large takes under 2 GB beside the models."""


class Settings(BaseSettings):
    """All of it. Read it with `get_settings()`; build one by hand only in tests."""

    model_config = SettingsConfigDict(env_prefix="PACKSHOT_", extra="ignore", frozen=True)

    # Where things are kept
    state_dir: Path = Field(ROOT / ".packshot", description="Data, logs and credentials of the embedded services.")
    models_dir: Path | None = Field(None, description="Folder of published checkpoints, for profiles beside `mini`.")
    scenes_dir: Path | None = Field(None, description="Folder of a shop's own scenes; they join the bundled ones.")

    # Postgres
    database_url: str = Field("", repr=False, description="Postgres for the ledger; empty: the embedded one.")
    airflow_database_url: str = Field(
        "", repr=False, description="Postgres for Airflow's metadata; empty: database `airflow` on the same server."
    )

    # S3
    s3_endpoint: str = Field("", description="host:port of an S3 store; empty: the embedded SeaweedFS.")
    s3_access_key: str = Field("", description="Access key of the store.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key of the store.")
    s3_bucket: str = Field("packshot", description="Bucket that holds every artifact; made when it is not there.")
    s3_region: str = Field("us-east-1", description="Region that requests are signed for.")
    s3_secure: bool = Field(False, description="Speak https to the store.")

    # Airflow
    airflow_url: str = Field("", description="Base URL of Airflow's API and UI; empty: the embedded one.")
    airflow_user: str = Field("admin", description="User that `packshot run` and `packshot campaign` log in as.")
    airflow_password: SecretStr = Field(SecretStr(""), description="That user's password.")
    airflow_parallelism: int = Field(3, ge=1, description="Tasks that the embedded Airflow runs at once, of all pools.")
    gpu_slots: int = Field(1, ge=1, description="Slots of pool `gpu`: one per accelerator (or per CPU-only machine).")
    nightly_schedule: str = Field(
        "", description="Cron of the nightly catalog_refresh, such as `0 3 * * *`; empty: off."
    )
    nightly_scene: str = Field("", description="Scene of the nightly catalog_refresh; empty: the first one by name.")

    # Work
    profile: str = Field("mini", description="Which models: `mini` (bundled), `sd15`, `sdxl`.")
    shard_size: int = Field(8, ge=1, description="Shots that one task handles; 64 to 256 where a GPU makes them quick.")
    batch_size: int = Field(4, ge=1, description="Images denoised at once; halved when the accelerator is full.")
    shot_seconds: float = Field(300, gt=0, description="Time limit of one shot in one stage, in seconds.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:<n>`.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Precision of the diffusion models: `auto`, `float32`, `float16`, `bfloat16`."
    )
    offload: Literal["auto", "on", "off"] = Field(
        "auto",
        description="VAE and text encoder leave the GPU while it denoises: `auto` (under 12 GiB), `on`, `off`.",
    )
    vae_tiling: bool = Field(
        False, description="Decode large pictures tile by tile: less memory, pixels differ slightly where tiles meet."
    )

    # Trust
    trust_unpinned: bool = Field(False, description="Load weights whose sha256 the profile does not name.")
    trust_pickle: bool = Field(False, description="Read legacy torch files (with weights_only) that are not pinned.")
    allow_private_links: bool = Field(False, description="Fetch photos from addresses that are not public.")

    # Limits on what a catalogue may bring
    feed_max_bytes: int = Field(256 * 2**20, gt=0, description="Largest catalogue file, in bytes.")
    photo_max_bytes: int = Field(64 * 2**20, gt=0, description="Largest photo file, in bytes.")
    photo_max_megapixels: float = Field(
        MAX_MEGAPIXELS, gt=0, description="Largest photo, in megapixels, known before decoding."
    )
    photo_timeout_seconds: float = Field(20, gt=0, description="Time limit of one photo's download, in seconds.")

    @field_validator("scenes_dir")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        """Airflow's tasks work in another folder than the command that starts them."""
        return folder and folder.absolute()

    def environment(self) -> dict[str, str]:
        """What differs from the defaults, as PACKSHOT_* variables for a child process. Secrets are in clear."""
        variables = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                variables[f"PACKSHOT_{name.upper()}"] = text
        return variables

    def compute(self) -> Compute:
        """The device and precision that models run with here. Imports torch."""
        import torch

        device, why = self.device, "PACKSHOT_DEVICE"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            why = "a CUDA device is there" if device == "cuda" else "no CUDA device is there"
        dtype: str = self.dtype
        if dtype != "auto":
            why += "; PACKSHOT_DTYPE"
        elif device == "cpu":
            dtype, why = "float32", f"{why}; CPUs are slow in half precision"
        elif self.profile == "mini":
            dtype, why = "float32", f"{why}; models this small gain nothing from half precision"
        else:
            dtype, why = "float16", f"{why}; the published checkpoints are made for half precision"
        offload = self.offload == "on"
        if self.offload == "auto" and device != "cpu":
            memory = torch.cuda.get_device_properties(device).total_memory / 2**30
            offload = memory < SMALL_GPU
            why += f"; {memory:.0f} GiB of GPU memory {'want' if offload else 'need no'} offloading"
        elif offload:
            why += "; PACKSHOT_OFFLOAD"
        return Compute(device, dtype, why, offload, self.vae_tiling)


SMALL_GPU = 12
"""GiB of GPU memory below which VAE and text encoder make room for the UNet and its branches."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Device and precision (a torch dtype's name) of a run, how it saves memory, and why it is so."""

    device: str = "cpu"
    dtype: str = "float32"
    reason: str = "by default"
    offload: bool = False
    vae_tiling: bool = False

    def __str__(self) -> str:
        saving = ", offloading" * self.offload + ", VAE tiling" * self.vae_tiling
        return f"{self.device}, {self.dtype}{saving}: {self.reason}"


CPU = Compute()
"""What runs anywhere."""


def environment_file(state_dir: Path) -> Path:
    """Where `packshot up` leaves the addresses and credentials of the services that it started."""
    return state_dir / "environment"


def read_settings(state_dir: Path | None = None) -> Settings:
    """The process environment, then `<state_dir>/environment`, then the defaults. Raises UsageError on a bad value."""
    try:
        state_dir = state_dir or Settings().state_dir
        return Settings(state_dir=state_dir, _env_file=environment_file(state_dir), _env_file_encoding="utf-8")
    except ValidationError as error:
        wrong = "; ".join(f"PACKSHOT_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False))
        raise UsageError(wrong) from None


@lru_cache
def get_settings() -> Settings:
    """`read_settings()`, once a process."""
    return read_settings()
