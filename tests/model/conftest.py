"""Fixtures shared with other folders of tests."""

from __future__ import annotations

from tests.fetching import _tiny_wheel, cache, tiny_wheel  # noqa: F401
