"""Where a model is off, as a picture: one panel a picture that was compared, and below them what white means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ribsr.base.files import atomic

if TYPE_CHECKING:
    import numpy as np

GAP, LEGEND = 8, 40
"""Pixels between panels, and below them."""

NAN = (255, 0, 255)
"""Magenta."""


class ErrorMaps:
    """Collects the errors of one model, and writes them as a PNG file.

    A pixel's error is the largest of its channels. Black is none, white the largest of all panels, linear in between,
    so that nothing is clipped; NaN and infinite values are magenta.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._panels: list[np.ndarray] = []

    def see(self, name: str, expected: np.ndarray, y: np.ndarray) -> None:
        """Adds a picture: [B, 3, H, W] of the reference and of the model; of a batch the largest errors count."""
        import numpy as np

        error = np.abs(y.astype(np.float64) - expected)
        self._names.append(name)
        self._panels.append(np.where(np.isfinite(error), error, np.nan).max(axis=(0, 1)))

    @property
    def full_scale(self) -> float:
        """The error that is white; 0 where there is none."""
        import numpy as np

        return max((float(np.nanmax(panel)) for panel in self._panels if not np.isnan(panel).all()), default=0.0)

    def write(self, path: Path) -> dict[str, Any] | None:
        """Writes the file, and returns what --json says of it; None where nothing was compared."""
        import numpy as np
        from PIL import Image, ImageDraw

        if not self._panels:
            return None
        white, drawn = self.full_scale, [self._drawn(panel) for panel in self._panels]
        text = f"error: black 0, white {white:.3g} (the largest), linear"
        width = max(sum(panel.shape[1] + GAP for panel in drawn) + GAP, 16 + 7 * len(text))
        canvas = np.full((max(map(len, drawn)) + 2 * GAP + LEGEND, width, 3), 96, np.uint8)
        left = GAP
        for panel in drawn:
            canvas[GAP : GAP + len(panel), left : left + panel.shape[1]] = panel
            left += panel.shape[1] + GAP
        ramp = np.linspace(0, 255, width - 2 * GAP).round()
        canvas[-LEGEND : -LEGEND + 12, GAP : width - GAP] = ramp[None, :, None]
        image = Image.fromarray(canvas)
        ImageDraw.Draw(image).text((GAP, image.height - LEGEND + 16), text, fill="white")
        with atomic(path) as temporary:
            image.save(temporary, format="PNG")
        nan = sum(int(np.isnan(panel).sum()) for panel in self._panels)
        return {"file": str(path), "full_scale": white, "pictures": self._names, "nan": nan}

    def _drawn(self, panel: np.ndarray) -> np.ndarray:
        """Errors [H, W] as RGB [H, W, 3]."""
        import numpy as np

        bad = np.isnan(panel)
        gray = np.where(bad, 0, panel) * (255 / (self.full_scale or 1))
        return np.where(bad[..., None], NAN, np.repeat(gray.round()[..., None], 3, axis=2)).astype(np.uint8)


def file_for(path: Path, model: str, several: bool) -> Path:
    """Where a model's map goes: `path`, or with its name in between where there are several models."""
    return path.with_name(f"{path.stem}.{model.replace('/', '_')}{path.suffix}") if several else path
