"""A picture as SVG: columns from left to right, arrows with the shapes that they carry."""

from dataclasses import dataclass
from html import escape

from vlmspec.report.picture import Box, Picture

MARGIN, HEAD = 28, 64
HEIGHT, ROW = 56, 104
# Width of a character at the sizes that the texts are set in.
TITLE_CHAR, SMALL_CHAR = 7.8, 6.2
COLORS = {
    "input": ("#f6f8fa", "#8c959f"),
    "output": ("#f6f8fa", "#8c959f"),
    "encoder": ("#ddf4ff", "#0969da"),
    "connector": ("#fff8c5", "#9a6700"),
    "fusion": ("#ffeff7", "#bf3989"),
    "decoder": ("#dafbe1", "#1a7f37"),
    "head": ("#fbefff", "#8250df"),
}
STYLE = (
    "text{font-family:ui-sans-serif,Helvetica,Arial,sans-serif;fill:#1f2328}"
    ".t{font-size:14px;font-weight:600}.s{font-size:11px;fill:#59636e}"
    ".h{font-size:16px;font-weight:600}.a{fill:none;stroke:#59636e;stroke-width:1.3}"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a box stands: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float = HEIGHT

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def arrange(found: Picture) -> dict[str, Place]:
    """Place boxes in columns; the gap after a column holds the longest text that crosses it."""
    columns: dict[int, list[Box]] = {}
    for box in found.boxes:
        columns.setdefault(box.column, []).append(box)
    lanes, labels = _lanes(found, columns), _labels(found)
    places: dict[str, Place] = {}
    x = float(MARGIN)
    for column in sorted(columns):
        width = max(_box_width(box) for box in columns[column])
        for box in columns[column]:
            places[box.id] = Place(x, HEAD + lanes[box.id] * ROW, width)
        ids = {box.id for box in columns[column]}
        texts = [label for source, label in labels.items() if source in ids]
        x += width + 44 + SMALL_CHAR * max(map(len, texts), default=0)
    return places


def _lanes(found: Picture, columns: dict[int, list[Box]]) -> dict[str, int]:
    """Rows: a box takes the row of the first that it reads, or the next that is free on its way."""
    lanes: dict[str, int] = {}
    spans: list[tuple[int, int, int]] = []
    where = {box.id: column for column, boxes in columns.items() for box in boxes}
    for column in sorted(columns):
        taken = {lane for lane, start, end in spans if start < column < end}
        for box in columns[column]:
            sources = [a.source for a in found.arrows if a.target == box.id]
            lane = min((lanes[s] for s in sources if s in lanes), default=0)
            while lane in taken:
                lane += 1
            taken.add(lane)
            lanes[box.id] = lane
            # The row stays free as far as the arrows from the box reach.
            ends = [where[a.target] for a in found.arrows if a.source == box.id]
            spans.append((lane, column, max(ends, default=column)))
    return lanes


def svg(found: Picture) -> str:
    """Write the picture."""
    places = arrange(found)
    width = max((p.right for p in places.values()), default=0) + MARGIN
    width = max(width, 2 * MARGIN + len(found.title) * 9.2)
    height = max((p.y + p.height for p in places.values()), default=HEAD) + MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape(found.title)}</title>",
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text class="h" x="{MARGIN}" y="{MARGIN + 8}">{escape(found.title)}</text>',
    ]
    lines += [_arrow(places[arrow.source], places[arrow.target]) for arrow in found.arrows]
    lines += [_label(places[source], text) for source, text in _labels(found).items()]
    lines += [_box(box, places[box.id]) for box in found.boxes]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _box_width(box: Box) -> float:
    return 32 + max(len(box.title) * TITLE_CHAR, len(box.detail) * SMALL_CHAR, 48)


def _labels(found: Picture) -> dict[str, str]:
    """What each box gives, written once however many read it."""
    roles: dict[str, dict[str, None]] = {}
    for arrow in found.arrows:
        roles.setdefault(arrow.source, {}).update({arrow.role: None} if arrow.role else {})
    shapes = {arrow.source: arrow.shape for arrow in found.arrows}
    texts = {box: " ".join(filter(None, [", ".join(roles[box]), shapes[box]])) for box in roles}
    return {box: text for box, text in texts.items() if text}


def _label(place: Place, text: str) -> str:
    x, y = place.right + 8, place.middle - 6
    return f'<text class="s" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _box(box: Box, place: Place) -> str:
    fill, stroke = COLORS.get(box.kind, COLORS["input"])
    round = place.height / 2 if box.kind in ("input", "output") else 8
    center = place.x + place.width / 2
    return (
        f'<rect x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" '
        f'height="{place.height}" rx="{round:g}" fill="{fill}" stroke="{stroke}"/>'
        f'<text class="t" text-anchor="middle" x="{center:.1f}" y="{place.y + 25:.1f}">'
        f"{escape(box.title)}</text>"
        f'<text class="s" text-anchor="middle" x="{center:.1f}" y="{place.y + 42:.1f}">'
        f"{escape(box.detail)}</text>"
    )


def _arrow(source: Place, target: Place) -> str:
    """A line that leaves to the right and turns, just before its target, into the target's row."""
    x, y, tip, end = source.right, source.middle, target.x, target.middle
    line = f"M{x:.1f},{y:.1f} "
    if y != end:
        turn = tip - 24
        line += f"L{turn - 8:.1f},{y:.1f} C{turn + 6:.1f},{y:.1f} {turn - 6:.1f},{end:.1f} "
        line += f"{turn + 8:.1f},{end:.1f} "
    line += f"L{tip - 6:.1f},{end:.1f}"
    head = f"M{tip:.1f},{end:.1f} l-7,-4 v8 z"
    return f'<path class="a" d="{line}"/><path fill="#59636e" d="{head}"/>'
