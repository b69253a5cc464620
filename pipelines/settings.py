"""Every setting of packshot, with its default. The variable PACKSHOT_<NAME> sets it.

`packshot up` writes the addresses of its embedded services into `<state_dir>/environment` (mode 0600) for later
commands and Airflow tasks. A variable in the process environment has precedence over that file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.errors import UsageError
from pipelines.processors import importing

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: where dags/, plugins/ and sql/ are."""


MAX_MEGAPIXELS = 50
"""Default limit of a photo. The cutout of a photo of this size takes under 2 GB besides the models."""


class Settings(BaseSettings):
    """All settings. Read them with `get_settings()`; construct them only in tests."""

    model_config = SettingsConfigDict(env_prefix="PACKSHOT_", extra="ignore", frozen=True)

    # Where things are kept
    state_dir: Path = Field(ROOT / ".packshot", description="Data, logs and credentials of the embedded services.")
    models_dir: Path | None = Field(
        None, description="Folder of published checkpoints, for profiles other than `mini`."
    )
    scenes_dir: Path | None = Field(None, description="Folder of a shop's own scenes; they join the bundled ones.")

    channels_dir: Path | None = Field(None, description="Folder of a shop's own channels; they join the bundled ones.")

    # Postgres
    database_url: str = Field(
        "", repr=False, description="SQLAlchemy URL of the ledger's Postgres. Empty: the embedded server."
    )
    owner_database_url: str = Field(
        "",
        repr=False,
        description="The same database as its owner, for `packshot up` to migrate. Empty: `PACKSHOT_DATABASE_URL`.",
    )
    airflow_database_url: str = Field(
        "",
        repr=False,
        description="SQLAlchemy URL of Airflow's metadata database. Empty: database `airflow` on the ledger's server.",
    )

    # S3
    s3_endpoint: str = Field("", description="host:port of an S3 store. Empty: the embedded SeaweedFS.")
    s3_access_key: str = Field("", description="Access key of the store.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key of the store.")
    s3_bucket: str = Field(
        "packshot", description="Bucket that holds every artifact. It is created if it does not exist."
    )
    s3_region: str = Field("us-east-1", description="Region in the request signature.")
    s3_secure: bool = Field(False, description="Use https for the store.")

    # Airflow
    airflow_url: str = Field("", description="Base URL of Airflow's API and UI. Empty: the embedded server.")
    airflow_user: str = Field(
        "admin", description="Airflow user for `packshot run`, `packshot campaign` and `packshot approve`."
    )
    airflow_password: SecretStr = Field(SecretStr(""), description="That user's password.")
    watch_user: str = Field(
        "viewer", description="Airflow user with which the scheduler sees how runs ended. The right to read is enough."
    )
    watch_password: SecretStr = Field(SecretStr(""), description="That user's password.")
    executor: Literal["local", "celery"] = Field(
        "local",
        description="Executor of the embedded Airflow: `local`, or `celery` with Redis and two workers.",
    )
    airflow_parallelism: int = Field(
        3, ge=1, description="Tasks that the embedded Airflow runs at the same time, over all pools."
    )
    gpu_slots: int = Field(
        1, ge=1, description="Slots of pool `gpu`: one per accelerator, or one per machine without one."
    )
    gpu_hour_price: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Price of an hour of computing on one GPU slot, for costs beside measured seconds. 0: no costs.",
    )
    currency: str = Field("EUR", pattern=r"^\S{1,10}$", description="Currency of that price, as it is shown.")
    nightly_schedule: str = Field(
        "", description="Cron of the nightly catalog_refresh, such as `0 3 * * *`. Empty: off."
    )
    nightly_scene: str = Field("", description="Scene of the nightly catalog_refresh. Empty: the first scene by name.")
    nightly_channels: str = Field(
        "", description="Channels of the nightly catalog_refresh, separated by commas. Empty: the scene's own."
    )
    nightly_hours: float = Field(
        6, gt=0, description="Hours after which a nightly catalog_refresh that has not ended is reported as late."
    )
    housekeeping_schedule: str = Field(
        "", description="Cron on which DAG housekeeping removes Airflow's old history, such as `0 6 * * 0`. Empty: off."
    )
    airflow_history_days: int = Field(90, ge=7, description="Days of Airflow's history that housekeeping keeps.")

    # Publication
    public_url: str = Field(
        "",
        pattern=r"^(https?://[^\s?#]+)?$",
        description="Address under which the console's `/packshot/public` is reachable from outside, for the links of "
        "the channels' feeds. Empty: these routes do not exist.",
    )
    public_per_minute: int = Field(
        600, ge=0, description="Requests without a login that each address may make in a minute. 0: no limit."
    )
    sheet_key: SecretStr = Field(
        SecretStr(""),
        description="Key that signs links to contact sheets. `packshot up` draws one. Empty: there are no links.",
    )

    c2pa_key: Path | None = Field(
        None, description="PEM file of the private key that published images are signed with (C2PA). Empty: unsigned."
    )
    c2pa_certificates: Path | None = Field(
        None, description="PEM file of that key's certificate, followed by its issuers'."
    )

    # Monitoring and notifications
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Bearer token of `/packshot/metrics`. Empty: the address does not exist."
    )
    webhook_url: SecretStr = Field(
        SecretStr(""), description="Address that gets a JSON POST when a run fails or is late. Empty: none."
    )
    allow_private_webhook: bool = Field(False, description="Let the webhook be at a private network address.")
    mail_to: str = Field(
        "", description="Mail addresses, separated by commas, that get these notifications too. Empty: none."
    )
    mail_from: str = Field("packshot@localhost", description="Sender of these mails.")
    smtp_host: str = Field("", description="Mail server. Needed for `PACKSHOT_MAIL_TO`.")
    smtp_port: int = Field(587, gt=0, lt=2**16, description="Port of the mail server.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="Encryption of the connection to the mail server: `starttls`, `tls` or `none`."
    )
    smtp_user: str = Field("", description="Login at the mail server. Empty: without a login.")
    smtp_password: SecretStr = Field(SecretStr(""), description="That login's password.")

    # Work
    profile: str = Field("mini", description="Model profile: `mini` (bundled), `sd15` or `sdxl`.")
    shard_size: int | None = Field(
        None, ge=1, description="Shots per task. By default, what takes about ten minutes at the measured rates."
    )
    batch_size: int = Field(
        4,
        ge=0,
        description="Shots per batch in `describe` and `generate`. A batch that does not fit into memory is halved. "
        "0: by the device's free memory.",
    )
    shot_seconds: float = Field(
        300,
        gt=0,
        description="Time limit of one shot in one stage, in seconds of computing. Waiting for a core does not count.",
    )
    spot_checks: int = Field(
        2, ge=0, description="Passed images of each run that are drawn for a person's spot check. 0: none."
    )
    read_text: bool = Field(
        False,
        description="Read the text of photos and images, and hold images with other text. Needs the extra `ocr`. "
        "A scene's `checks.read_text` decides for that scene.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads of each process that computes. By default: the machine's cores divided by the GPU slots.",
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:<n>`.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Precision of the diffusion models: `auto`, `float32`, `float16` or `bfloat16`."
    )
    offload: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Move VAE and text encoder off the GPU during denoising: `auto` (below 12 GiB), `on` or `off`.",
    )
    vae_tiling: bool = Field(
        False, description="Decode large images in tiles: less memory, and slightly different pixels at tile borders."
    )

    vae_slicing: bool = Field(False, description="Encode and decode the images of a batch one by one: less memory.")
    compile: bool = Field(
        False, description="Compile the transformer blocks with torch.compile. The first batch takes minutes longer."
    )
    tf32: bool = Field(False, description="Compute float32 products in TF32 on a GPU that has it.")
    cudnn_autotune: bool = Field(
        False, description="Let cuDNN try its algorithms for each shape and keep the fastest one."
    )

    # Trust
    trust_unpinned: bool = Field(False, description="Load weights for which the profile names no sha256.")
    trust_pickle: bool = Field(False, description="Read legacy torch files without a pinned sha256, with weights_only.")
    allow_private_links: bool = Field(False, description="Fetch photos from private network addresses.")

    # Limits on what a catalogue may bring
    feed_max_bytes: int = Field(256 * 2**20, gt=0, description="Largest catalogue file, in bytes.")
    photo_max_bytes: int = Field(64 * 2**20, gt=0, description="Largest photo file, in bytes.")
    photo_max_megapixels: float = Field(
        MAX_MEGAPIXELS, gt=0, description="Largest photo, in megapixels. It is checked before decoding."
    )
    photo_timeout_seconds: float = Field(20, gt=0, description="Time limit of one photo's download, in seconds.")
    photo_connections: int = Field(
        64, ge=1, le=256, description="Connections to one server that photos are fetched over, at most."
    )

    @field_validator("scenes_dir", "channels_dir", "c2pa_key", "c2pa_certificates")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Airflow's tasks work in another folder than the command that starts them."""
        return path and path.absolute()

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"{device!r} is not `auto`, `cpu`, `cuda` or `cuda:<n>`")
        return device

    def environment(self) -> dict[str, str]:
        """Settings that differ from the defaults, as PACKSHOT_* variables for a child process. Secrets are in clear."""
        variables = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                variables[f"PACKSHOT_{name.upper()}"] = text
        return variables

    def compute(self) -> Compute:
        """Device and precision of the models on this machine. Imports torch.

        Raises UsageError if the machine does not have the device.
        """
        with importing():
            import torch

        device, why = self.device, "PACKSHOT_DEVICE"
        if device.startswith("cuda"):
            found, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
            if number >= found:
                there = f"cuda:0 to cuda:{found - 1}" if found else "no CUDA device"
                raise UsageError(f"PACKSHOT_DEVICE: {device}: PyTorch finds {there} here; set another, or auto")
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
        return Compute(
            device,
            dtype,
            why,
            offload,
            self.vae_tiling,
            vae_slicing=self.vae_slicing,
            compile=self.compile,
            tf32=self.tf32,
            cudnn_autotune=self.cudnn_autotune,
        )


SMALL_GPU = 12
"""GiB of GPU memory below which VAE and text encoder make room for the UNet and its branches."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Device, precision (a torch dtype's name), savings of memory and of time, and the reason for this choice."""

    device: str = "cpu"
    dtype: str = "float32"
    reason: str = "by default"
    offload: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
    compile: bool = False
    tf32: bool = False
    cudnn_autotune: bool = False

    def __str__(self) -> str:
        saving = ", offloading" * self.offload + ", VAE tiling" * self.vae_tiling + ", VAE slicing" * self.vae_slicing
        saving += ", compiled" * self.compile + ", TF32" * self.tf32 + ", cuDNN autotuning" * self.cudnn_autotune
        return f"{self.device}, {self.dtype}{saving}: {self.reason}"


CPU = Compute()
"""Runs on every machine."""


def environment_file(state_dir: Path) -> Path:
    """The file with addresses and credentials of the services that `packshot up` started."""
    return state_dir / "environment"


def read_settings(state_dir: Path | None = None) -> Settings:
    """The process environment, then `<state_dir>/environment`, then the defaults. Raises UsageError on a bad value."""
    try:
        _check_names()
        state_dir = state_dir or Settings().state_dir
        return Settings(state_dir=state_dir, _env_file=environment_file(state_dir), _env_file_encoding="utf-8")
    except ValidationError as error:
        wrong = [(str(e["loc"][0]).upper(), e["msg"]) for e in error.errors(include_input=False)]
        said = "; ".join(f"PACKSHOT_{name}: {message.removeprefix('Value error, ')}" for name, message in wrong)
        raise UsageError(said) from None


def _check_names() -> None:
    """Raise UsageError for a variable that is a setting's but for a typing error: it would have no effect."""
    known = [name.upper() for name in Settings.model_fields]
    for variable in os.environ:
        name = variable.upper().removeprefix("PACKSHOT_")
        if variable.upper() == name or name in known:
            continue
        if near := get_close_matches(name, known, n=1, cutoff=0.88):
            raise UsageError(f"{variable} is no setting of packshot: PACKSHOT_{near[0]} is; correct or unset it")


@lru_cache
def get_settings() -> Settings:
    """`read_settings()`, once a process."""
    return read_settings()
