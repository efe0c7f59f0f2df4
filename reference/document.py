"""PDF documents: each page becomes a picture at 144 dpi, preceded by its number. Needs pypdfium2, an extra.

Not published: the model reads images, and this is our way to show it a document. Form fields are drawn as filled in.
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import MediaError
from .image import check_size
from .media_source import Source, first_bytes

SCALE = 144 / 72            # PDF sizes are in points, 72 to the inch
DEFAULT_MAX_PAGES = 100     # A4 pages take 2623 tokens each: 100 of them are the published context
_pdfium_lock = threading.Lock()     # PDFium may be in use by one thread at a time


def page_sizes(source: Source, name: str, max_pages: int, max_pixels: int) -> list[tuple[int, int]]:
    """(width, height) in pixels of every page, nothing rendered. Raises MediaError, also for too many pages."""
    with _opened(source, name) as document, _pdfium_lock:
        num_pages = len(document)
        if not 1 <= num_pages <= max_pages:
            raise MediaError(f"{name}: {num_pages} pages; expected 1 to {max_pages}. Split the document.")
        points = [document.get_page_size(index) for index in range(num_pages)]
    sizes = [(math.ceil(width * SCALE), math.ceil(height * SCALE)) for width, height in points]
    for number, size in enumerate(sizes, start=1):
        check_size(size, f"{name}, page {number}", max_pixels)
    return sizes


def render_pages(source: Source, name: str) -> Iterator[Image.Image]:
    """Every page as an RGB image on white, one at a time. Raises MediaError."""
    with _opened(source, name) as document:
        for index in range(len(document)):
            with _pdfium_lock:
                page = document[index]
                image = page.render(scale=SCALE).to_pil().convert("RGB")
                page.close()
            yield image


@contextlib.contextmanager
def _opened(source: Source, name: str) -> Iterator[Any]:
    try:
        import pypdfium2
    except ImportError:
        raise MediaError(f"{name}: PDF documents need pypdfium2: pip install 'kimi-k25-reference[media]'.") from None
    if isinstance(source, Image.Image) or (isinstance(source, Path) and source.is_dir()):
        raise MediaError(f"{name}: a PDF document must be a file, a data: URL or bytes.")
    try:
        with _pdfium_lock:
            document = pypdfium2.PdfDocument(source)
            document.init_forms()
    except pypdfium2.PdfiumError as error:
        raise MediaError(f"{name}: not a PDF that can be read ({error}; {first_bytes(source)}). If it has a password, "
                         "save it without one.") from None
    try:
        yield document
    except pypdfium2.PdfiumError as error:
        raise MediaError(f"{name}: a page cannot be read ({error}). The document is damaged; save it again.") from None
    finally:
        with _pdfium_lock:
            document.close()
