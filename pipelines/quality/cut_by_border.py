"""Does the photo's border cut the product? The scene image would show a straight cut in the middle of the product."""

from __future__ import annotations

import numpy as np

from pipelines.quality.fidelity import Measure

LIMIT = 0.1
"""Contact with one side of the photo, as a share of the product's extent along it, above which a photo is held."""

NEAR = 0.004
"""Distance from the border that counts as contact, as a share of the photo's longer side: a soft edge's width."""


def measure_border_contact(matte: np.ndarray) -> Measure:
    """Return the longest contact of a product with a side of its photo, relative to its extent along this side, 0..1.

    Args:
        matte: `(H, W)` float, 0..1, or bool; 1 = product.
    """
    product = matte > 0.5
    where = np.zeros(product.shape, np.float32)
    if not product.any():
        return Measure(0.0, where)
    near = max(2, round(NEAR * max(product.shape)))
    across, down = product.any(axis=0), product.any(axis=1)
    bands = {
        "top": (np.s_[:near, :], 0, across),
        "bottom": (np.s_[-near:, :], 0, across),
        "left": (np.s_[:, :near], 1, down),
        "right": (np.s_[:, -near:], 1, down),
    }
    contacts = {}
    for side, (band, axis, extent) in bands.items():
        touched = product[band].any(axis=axis)
        contacts[side] = float(touched.sum() / extent.sum())
        where[band] = product[band]
    side = max(contacts, key=lambda name: contacts[name])
    reason = f"the photo's {side} border cuts the product, along {contacts[side]:.0%} of its extent"
    return Measure(contacts[side], where, reason if contacts[side] > LIMIT else "")
