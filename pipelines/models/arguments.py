"""What a profile may set of a part beside its files. The keys of the steps that use the part have these `arguments`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ControlNetArguments(_Arguments):
    """Of the inpainting ControlNet. scale: factor on its outputs, as its publisher recommends."""

    scale: float = Field(1.0, ge=0, le=2)


class PainterArguments(_Arguments):
    """Of a painter. Without a value the scene's applies, and the profile's native size.

    steps: Denoising steps. guidance_scale: Classifier-free guidance, 1 = none. native_size: Shorter side of the canvas,
    px. prompt: Template around the scene's prompt, for a model that wants an instruction.
    """

    steps: int | None = Field(None, ge=1, le=200)
    guidance_scale: float | None = Field(None, ge=1, le=30)
    native_size: int | None = Field(None, ge=64, le=4096, multiple_of=64)
    prompt: str = Field("{prompt}", max_length=1000)

    @field_validator("prompt")
    @classmethod
    def _holds_the_scenes(cls, prompt: str) -> str:
        if "{prompt}" not in prompt:
            raise ValueError("it has no {prompt}, where the scene's prompt goes")
        return prompt


ARGUMENTS: dict[str, type[_Arguments]] = {"controlnet_inpaint": ControlNetArguments, "painter": PainterArguments}
"""By kind, or by name where parts of one kind differ."""


def check_arguments(name: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's arguments as a profile gives them, as plain JSON. Raises ValueError, which names a wrong one."""
    model = ARGUMENTS.get(kind, ARGUMENTS.get(name))
    if model is None:
        if given:
            raise ValueError(f"{name}: a {kind} takes no arguments")
        return {}
    try:
        return model(**given).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        known = ", ".join(model.model_fields)
        what = f"arguments are {known}" if wrong["type"] == "extra_forbidden" else wrong["msg"]
        raise ValueError(f"{name}: {'.'.join(map(str, wrong['loc']))}: {what}") from None
