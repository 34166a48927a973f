"""Charts of the report: static SVG by Vega-Lite (vl-convert), whose colours are the page's own CSS variables.

A chart has two widths, since text in an SVG that is scaled gets too small on a phone, and too large elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools._kinds import KINDS

WIDTHS = {"narrow": 358, "wide": 704}
"""Pixels: of a phone's column, and of the page's."""

STEP = 46
"""Pixels from one bar to the next."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

COLOURS = {kind: f"var(--kind-{i})" for i, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Bar:
    """low, high: ends of the line across the bar's end. told: the number as text."""

    name: str
    value: float
    low: float
    high: float
    told: str


@dataclass(frozen=True)
class Parts:
    """A bar of shares, which make 1 together. told: as text, at its right."""

    name: str
    shares: dict[str, float]
    told: str


def bars(rows: Sequence[Bar]) -> dict[str, str]:
    """Width → SVG: a bar a row from 0, its name above it at the left, its number at the right."""
    most = max(max(row.high, row.value) for row in rows)
    values = [{"row": i, **vars(row)} for i, row in enumerate(rows)]
    x = {"type": "quantitative", "scale": {"domain": [0, most]}, "axis": None}
    marks = [
        ({"type": "bar", "orient": "horizontal", "height": 10, "color": "var(--bar)"}, {"x": {"field": "value", **x}}),
        (
            {"type": "rule", "color": "var(--ink)", "strokeWidth": 1.5},
            {"x": {"field": "low", **x}, "x2": {"field": "high"}},
        ),
        *(
            ({"type": "tick", "color": "var(--ink)", "thickness": 1.5, "size": 10}, {"x": {"field": end, **x}})
            for end in ("low", "high")
        ),
    ]
    return {name: _svg(values, marks, width) for name, width in WIDTHS.items()}


def shares(rows: Sequence[Parts]) -> dict[str, str]:
    """Width → SVG: a bar a row, from 0 to 1, a colour a kind of layer."""
    values = [
        {"row": i, "name": row.name, "told": row.told, "kind": kind, "order": KINDS.index(kind), "share": share}
        for i, row in enumerate(rows)
        for kind, share in row.shares.items()
    ]
    colour = {"field": "kind", "type": "nominal", "legend": None}
    scale = {"domain": list(COLOURS), "range": list(COLOURS.values())}
    x = {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}, "axis": None, "stack": "zero"}
    mark = {"type": "bar", "orient": "horizontal", "height": 16, "stroke": "var(--page)", "strokeWidth": 1}
    encoding = {"x": x, "color": {**colour, "scale": scale}, "order": {"field": "order", "type": "quantitative"}}
    return {name: _svg(values, [(mark, encoding)], width) for name, width in WIDTHS.items()}


def layer_errors(errors: Sequence[float], limits: Sequence[float]) -> dict[str, str]:
    """Width → SVG: errors of layers in their order, over what they may be, on a logarithmic scale."""
    least = min((value for value in (*errors, *limits) if value > 0), default=1e-9)
    values = [
        {"layer": i + 1, "error": max(error, least), "limit": max(limit, least), "off": error > limit}
        for i, (error, limit) in enumerate(zip(errors, limits, strict=True))
    ]
    most = max(value["error"] if value["off"] else value["limit"] for value in values)
    decades = [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]
    axis = {"labelColor": "var(--muted)", "gridColor": "var(--line)", "domain": False, "ticks": False, "title": None}
    y = {"type": "quantitative", "scale": {"type": "log"}, "axis": {**axis, "format": ".0e", "values": decades}}
    x = {"field": "layer", "type": "quantitative", "axis": {**axis, "grid": False, "tickMinStep": 1}}
    x["scale"] = {"domain": [1, max(2, len(values))], "nice": False}
    colour = {"condition": {"test": "datum.off", "value": "var(--bad)"}, "value": "var(--bar)"}
    layers = [
        {
            "mark": {"type": "line", "color": "var(--muted)", "strokeDash": [4, 3]},
            "encoding": {"x": x, "y": {"field": "limit", **y}},
        },
        {
            "mark": {"type": "circle", "size": 26, "opacity": 1},
            "encoding": {"x": x, "y": {"field": "error", **y}, "color": colour},
        },
    ]
    return {
        name: _render({"data": {"values": values}, "layer": layers, "width": width - 48, "height": 180})
        for name, width in WIDTHS.items()
    }


def _svg(values: list[dict[str, Any]], marks: Sequence[tuple[dict[str, Any], dict[str, Any]]], width: int) -> str:
    """Marks of rows, with each row's name and number above them."""
    rows = 1 + max(value["row"] for value in values)
    y = {"field": "row", "type": "quantitative", "axis": None, "scale": {"domain": [rows - 0.5, -0.5], "nice": False}}
    first = list({value["row"]: value for value in values}.values())
    text = {"type": "text", "baseline": "alphabetic", "fontSize": 13, "dy": -12}
    labels = [
        ({**text, "align": "left", "color": "var(--ink)", "x": 0, "limit": width * 0.62}, "name"),
        ({**text, "align": "right", "color": "var(--ink)", "x": width, "limit": width * 0.4}, "told"),
    ]
    layers = [
        *({"mark": mark, "encoding": {"y": y, **encoding}} for mark, encoding in marks),
        *(
            {"data": {"values": first}, "mark": mark, "encoding": {"y": y, "text": {"field": field, "type": "nominal"}}}
            for mark, field in labels
        ),
    ]
    return _render({"data": {"values": values}, "layer": layers, "width": width, "height": STEP * rows})


def _render(spec: dict[str, Any]) -> str:
    import vl_convert

    config = {"font": FONT, "view": {"stroke": None}, "axis": {"labelFontSize": 11}}
    return vl_convert.vegalite_to_svg({"background": None, "padding": 0, "config": config, **spec})
