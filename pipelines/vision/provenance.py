"""What a published file says of itself: an sRGB profile, and an XMP packet with IPTC's fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from xml.sax.saxutils import escape

from PIL import ImageCms

SOURCE_TYPE_ONLY = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{source_type}"/></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
"""The packet of channels without `provenance`. Its bytes are those of every image that was published before."""

WHOLE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
<dc:identifier>{sku}</dc:identifier>
<Iptc4xmpCore:AltTextAccessibility><rdf:Alt><rdf:li xml:lang="x-default">{alt_text}</rdf:li></rdf:Alt>\
</Iptc4xmpCore:AltTextAccessibility>{credit}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""

CREDIT = "\n<photoshop:Credit>{}</photoshop:Credit>"

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML has no way to write."""

DATE = slice(24, 36)
"""Bytes of an ICC profile's header with the time at which it was made."""


def xmp_packet(source_type: str, said: Mapping[str, str] | None) -> bytes:
    """The XMP packet of a file. `source_type` is the whole address of IPTC's code. `said` has `sku`, `alt_text` and
    `credit`, which may be empty; None: the source type alone."""
    if said is None:
        return SOURCE_TYPE_ONLY.format(source_type=source_type).encode()
    texts = {name: escape(NOT_XML.sub("", text)) for name, text in said.items()}
    credit = CREDIT.format(texts.pop("credit")) if texts["credit"] else texts.pop("credit")
    return WHOLE.format(source_type=source_type, credit=credit, **texts).encode()


@lru_cache
def srgb_profile() -> bytes:
    """LittleCMS's sRGB profile, with a fixed date: equal images have equal files."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[: DATE.start] + bytes.fromhex("07ea00010001000000000000") + profile[DATE.stop :]
