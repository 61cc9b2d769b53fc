"""The page: what a report holds, and its form as one HTML document that makes no request."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from spaceless.rows import Problem, Row
from spaceless.tables import Table
from spaceless.wording import Answer

_EXPOSE = "window.vegaEmbed = vegaEmbed;"


@dataclass(frozen=True)
class Figure:
    """A chart as a Vega-Lite specification, and what is to be seen on it."""

    spec: dict[str, Any]
    caption: str


@dataclass(frozen=True)
class Section:
    """One study, ready to be shown: what was asked, the answers, figures and tables, and what to know with them."""

    title: str
    asks: str
    source: str
    answers: tuple[Answer, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    differences: dict[str, tuple[str, ...]]
    progress: str
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    command: str
    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    sections: tuple[Section, ...]
    problems: tuple[Problem, ...]
    facts: tuple[tuple[str, str], ...]


def html_text(page: Page) -> str:
    """Return `page` as one HTML document that makes no request: pictures as SVG, brought to life where scripts run."""
    import jinja2
    from markupsafe import Markup

    from spaceless.charts import svg

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spaceless", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined)
    pictures = {id(f): Markup(svg(f.spec)) for s in page.sections for f in s.figures}  # noqa: S704  (vega escapes)
    specs = {id(f): Markup(script_json(f.spec)) for s in page.sections for f in s.figures}  # noqa: S704
    style = environment.loader.get_source(environment, "report.css")[0]  # type: ignore[union-attr]
    scripts = [_runtime(), environment.loader.get_source(environment, "report.js")[0]] if pictures else []  # type: ignore[union-attr]
    policy = "; ".join((
        "default-src 'none'", f"style-src-elem {_hash(style)}", "style-src-attr 'unsafe-inline'", "img-src data:",
        f"script-src {' '.join(map(_hash, scripts))} 'unsafe-eval'" if scripts else "script-src 'none'",
        "base-uri 'none'", "form-action 'none'",
    ))
    return environment.get_template("report.html.j2").render(
        page=page, pictures=pictures, specs=specs, key=id, policy=Markup(policy),  # noqa: S704
        style=Markup(style), scripts=[Markup(s) for s in scripts])  # noqa: S704


@cache
def _runtime() -> str:
    import vl_convert

    code: str = vl_convert.javascript_bundle(_EXPOSE)
    return code.replace("\r", "").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def script_json(value: object) -> str:
    """Return JSON that cannot end or confuse the <script> element it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
