"""CSV that people open in a spreadsheet: no cell of it is computed there."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

FORMULA = re.compile(r"[=@\uff1d\uff20\t\r\n]|[+\-\uff0b\uff0d](?![\d.]+$)")
"""How a cell begins that a spreadsheet would compute, in full width too. A signed number is harmless."""

ROWS_A_PART = 500


def csv_parts(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[bytes]:
    """A CSV in parts of a few hundred rows each, as they come. None is an empty cell."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(heading)
    for number, row in enumerate(rows, 1):
        writer.writerow(["" if cell is None else no_formula(str(cell)) for cell in row])
        if number % ROWS_A_PART == 0:
            yield out.getvalue().encode()
            out.seek(0)
            out.truncate()
    yield out.getvalue().encode()


def no_formula(cell: str) -> str:
    """A cell that no spreadsheet computes (OWASP, CSV injection): `'` before what begins like a formula."""
    return f"'{cell}" if FORMULA.match(cell) else cell
