"""The smallest PDF document whose pages are pictures, written byte by byte."""

import zlib
from collections.abc import Sequence

from PIL import Image

PIXELS_PER_POINT = 2  # at 144 dpi: what the media pipeline renders of a page is then exactly its picture


def write_pdf(pages: Sequence[Image.Image]) -> bytes:
    """A document with one RGB picture on each page, from edge to edge.

    Objects 1 and 2 are the catalogue and the list of pages; each page is three more: page, drawing, picture.
    """
    numbers = [3 + 3 * index for index in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode()]
    for number, page in zip(numbers, pages, strict=True):
        width, height = (side / PIXELS_PER_POINT for side in page.size)
        resources = f"<</XObject<</Im {number + 2} 0 R>>>>"
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width:g} {height:g}]/Resources{resources}"
            f"/Contents {number + 1} 0 R>>".encode(),
            stream("", f"{width:g} 0 0 {height:g} 0 0 cm /Im Do".encode()),
            stream(
                f"/Type/XObject/Subtype/Image/Width {page.width}/Height {page.height}/ColorSpace/DeviceRGB"
                "/BitsPerComponent 8/Filter/FlateDecode",
                zlib.compress(page.convert("RGB").tobytes()),
            ),
        ]
    return assemble(objects)


def stream(entries: str, data: bytes) -> bytes:
    """An object that holds data, described by these entries of its dictionary."""
    return f"<<{entries}/Length {len(data)}>>\nstream\n".encode() + data + b"\nendstream"


def assemble(objects: Sequence[bytes]) -> bytes:
    """Header, numbered objects, the table of where each one begins, and where that table begins."""
    document, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(document))
        document += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<</Size {size}/Root 1 0 R>>\nstartxref\n{len(document)}\n%%EOF\n"
    return document + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()
