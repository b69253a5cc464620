"""Which photo of its product a shot is of, in words."""

from __future__ import annotations

PHOTOS = """
(SELECT max(f.photo_number) FROM product_versions f
 JOIN products fp ON fp.sku = f.sku AND fp.version = f.id AND fp.left_at IS NULL
 WHERE f.photo_of <> '' AND f.photo_of = CASE WHEN v.photo_of <> '' THEN v.photo_of ELSE v.sku END)
"""
"""Photos of the product of `v`, a row of `product_versions`; null where it has its main photo alone."""


def photo_words(number: int, photos: int | None) -> str:
    """`photo 2 of 4`; "" for a product with one photo."""
    if photos is None:
        return f"photo {number}" if number > 1 else ""
    return f"photo {number} of {max(number, photos)}"
