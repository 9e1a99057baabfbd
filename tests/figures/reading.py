"""Drawings as a browser reads them."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest


class Svg:
    """A drawing as a browser reads it."""

    def __init__(self, text):
        self.root = ET.fromstring(text)
        _, _, self.width, self.height = map(float, self.root.get("viewBox").split())

    def all(self, tag, kind=None):
        return [e for e in self.root.iter(tag) if kind is None or kind in (e.get("class") or "").split()]

    def words(self):
        return ["".join(e.itertext()) for e in self.root.iter("text")]

    def titled(self, start):
        return [e for e in self.root.iter() if any(c.tag == "title" and c.text.startswith(start) for c in e)]

    def axis(self, across=True):
        """Where the numbers beside an axis stand, by value: along the bottom, or at the left."""
        found = {}
        for e in self.root.iter("text"):
            value = (e.text or "").replace("−", "-").replace(",", "")
            anchor = "middle" if across else "end"
            if re.fullmatch(r"-?\d+(\.\d+)?", value) and e.get("text-anchor") == anchor and not e.get("class"):
                found[float(value)] = float(e.get("x")) if across else float(e.get("y")) - 4
        return found


def number(element, name):
    return float(element.get(name))


def on(axis, value):
    """Where a value lies on a straight axis with these numbers."""
    (a, x), (b, y) = min(axis.items()), max(axis.items())
    return x + (value - a) / (b - a) * (y - x)


def near(place):
    return pytest.approx(place, abs=0.06)


def inside(svg):
    for e in svg.root.iter():
        for name, most in (("x", svg.width), ("cx", svg.width), ("x1", svg.width), ("x2", svg.width)):
            if e.get(name) is not None:
                assert -0.01 <= number(e, name) <= most + 0.01
        for name in ("y", "cy", "y1", "y2"):
            if e.get(name) is not None:
                assert -0.01 <= number(e, name) <= svg.height + 0.01
