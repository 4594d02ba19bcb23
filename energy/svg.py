"""A drawing as inline SVG: shapes carry classes, the page's style sheet gives the colours, light and dark.

Lengths are in pixels of the drawing's own width; the page scales the whole. Nothing refers to anything outside.
"""

from __future__ import annotations

from html import escape

CHARACTER = 0.56
"""Mean width of a character of the page's sans serif, in font sizes."""


class Drawing:
    """Shapes in the order in which they were drawn.

    Args:
        width, height: of the drawing.
        label: one sentence that says what is to be seen, for readers who do not see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, style: str, **more: object) -> None:
        """A rectangle; `tip` (a keyword, as in all shapes) shows when the pointer rests on it."""
        place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"'
        self._shape("rect", place, style, more)

    def bar(self, x: float, y: float, length: float, thickness: float, style: str, **more: object) -> None:
        """A horizontal bar from x to the right, its far corners rounded; one too short to see is a hair line."""
        length = max(length, 0.75)
        r = min(3.0, length, thickness / 2)
        far, low = x + length, y + thickness
        d = (
            f"M{_n(x)} {_n(y)}H{_n(far - r)}Q{_n(far)} {_n(y)} {_n(far)} {_n(y + r)}V{_n(low - r)}"
            f"Q{_n(far)} {_n(low)} {_n(far - r)} {_n(low)}H{_n(x)}Z"
        )
        self._shape("path", f'd="{d}"', style, more)

    def column(self, x: float, base: float, width: float, height: float, style: str, **more: object) -> None:
        """A vertical bar that stands on `base`, its top corners rounded."""
        r = min(3.0, height, width / 2)
        top, far = base - height, x + width
        d = (
            f"M{_n(x)} {_n(base)}V{_n(top + r)}Q{_n(x)} {_n(top)} {_n(x + r)} {_n(top)}H{_n(far - r)}"
            f"Q{_n(far)} {_n(top)} {_n(far)} {_n(top + r)}V{_n(base)}Z"
        )
        self._shape("path", f'd="{d}"', style, more)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str, **more: object) -> None:
        """A straight line."""
        self._shape("line", f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"', style, more)

    def curve(self, points: list[tuple[float, float]], style: str, **more: object) -> None:
        """A line through points."""
        d = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._shape("path", f'd="{d}"', style, more)

    def dot(self, x: float, y: float, radius: float, style: str, **more: object) -> None:
        """A filled circle."""
        self._shape("circle", f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"', style, more)

    def text(self, x: float, y: float, words: str, style: str = "label", anchor: str = "start", **more: object) -> None:
        """Words on the base line y; anchor: start, middle or end."""
        place = f'x="{_n(x)}" y="{_n(y)}"' + ("" if anchor == "start" else f' text-anchor="{anchor}"')
        self._shape("text", place, style, more, escape(words))

    def render(self) -> str:
        """The `<svg>` element."""
        head = f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" aria-label="{escape(self.label)}">'
        return head + "".join(self._parts) + "</svg>"

    def _shape(self, tag: str, place: str, style: str, more: dict[str, object], content: str = "") -> None:
        tip = more.pop("tip", None)
        content += f"<title>{escape(str(tip))}</title>" if tip is not None else ""
        extra = "".join(f' {name.replace("_", "-")}="{escape(str(value))}"' for name, value in more.items())
        self._parts.append(f'<{tag} class="{style}" {place}{extra}>{content}</{tag}>')


def text_width(words: str, size: float) -> float:
    """About how wide words are, in pixels."""
    return len(words) * size * CHARACTER


def shorten(words: str, characters: int) -> str:
    """Words with their middle left out: `stages.0…qkv`; the end of a module's name says most."""
    if len(words) <= characters:
        return words
    front = (characters - 1) // 3
    return f"{words[:front]}…{words[len(words) - (characters - 1 - front) :]}"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
