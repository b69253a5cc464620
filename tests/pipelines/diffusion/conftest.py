from __future__ import annotations

import pytest

from tests.pipelines.diffusion.tiny_models import Parts, make_parts


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Parts:
    """The modules of a tiny SD 1.5."""
    return make_parts(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def sdxl_parts(tmp_path_factory) -> Parts:
    """The modules of a tiny SDXL."""
    return make_parts(tmp_path_factory.mktemp("tokenizer"), sdxl=True)
