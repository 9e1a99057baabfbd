"""What pages share: where a result comes from in words, and a template that writes only what can be read."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trimtab.figures.numbers import date, duration
from trimtab.figures.style import figure_css, palette_css
from trimtab.figures.svg import legible
from trimtab.report.panels.text import setting, without_nan, words
from trimtab.values.provenance import Provenance


def page(name: str, **content: object) -> str:
    """The page that a template makes of its content, with style, script and a policy that allows these two only."""
    environment = Environment(
        loader=PackageLoader("trimtab.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_written,
    )
    environment.filters |= {
        "date": date,
        "duration": duration,
        "sentence": without_nan,
        "setting": setting,
        "words": words,
    }
    style, script = palette_css() + figure_css() + _asset("study.css"), _asset("study.js")
    policy = f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'"
    return environment.get_template(name).render(style=style, script=script, policy=policy, **content)


def made(provenance: Provenance | None) -> list[tuple[str, str]]:
    """What a result was made from, as pairs to be read."""
    if (p := provenance) is None:
        return []
    pairs = [
        ("model", p.model),
        ("weights, SHA-256", p.model_hash),
        ("data, SHA-256", p.data_hash or ""),
        ("method", p.method),
        ("options", setting(p.options) if p.options else ""),
        ("seed", "" if p.seed is None else str(p.seed)),
        ("dtype", p.dtype),
        ("attention", p.attention),
        ("BOS", p.bos),
        ("chat template", p.chat),
        ("threads", "" if p.threads is None else str(p.threads)),
        ("versions", ", ".join(f"{package} {version}" for package, version in p.versions.items())),
        ("made", date(p.created) if p.created else ""),
    ]
    return [(name, text) for name, text in pairs if text]


def _written(value: object) -> object:
    return value if isinstance(value, Markup) else legible(value)


def _asset(name: str) -> str:
    return resources.files("trimtab.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
