"""Which half of a person a garment covers, by its title. Free of heavy imports, because step keys name it."""

from __future__ import annotations

UPPER = frozenset(
    [
        *("blouse", "bra", "camisole", "cardigan", "coat", "dress", "fleece", "hoodie", "jacket", "jersey"),
        *("longsleeve", "outwear", "polo", "pullover", "shell", "shirt", "sweater", "sweatshirt", "t-shirt", "tank"),
        *("tee", "top", "tshirt", "undershirt", "vest"),
    ]
)
LOWER = frozenset(
    ["capri", "capris", "jeans", "leggings", "pant", "pants", "short", "shorts", "skirt", "tights", "trousers"]
)


def garment_part(title: str) -> str:
    """Return which half of a person a garment covers, `upper`, `lower` or "", by the last such word of its title."""
    words = [word.strip("()&;,.").lower() for word in title.replace("/", " ").split()]
    for word in reversed(words):
        if word in UPPER or word in LOWER:
            return "upper" if word in UPPER else "lower"
    return ""
