"""The page: what a report holds, and its form as one HTML document that makes no request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

from spaceless.axes import K_PLACE, Place, at_place
from spaceless.findings import Panel
from spaceless.looks import Spec, entries, svg
from spaceless.rows import Problem, Row
from spaceless.tables import Table
from spaceless.wording import Answer

_EXPOSE = "window.vegaEmbed = vegaEmbed;"


@dataclass(frozen=True)
class Figure:
    """A chart as a Vega-Lite specification, what is to be seen on it, and the other axes it can be drawn over.

    `title` says which network and data it is about; on the page the caption does.
    """

    name: str
    caption: str
    spec: Spec
    places: tuple[Place, ...] = ()
    title: str = ""

    @cached_property
    def picture(self) -> str:
        """The chart as one SVG element."""
        return svg(self.spec)

    @property
    def views(self) -> dict[str, Spec]:
        """The same chart over each of its axes, by the name of the axis."""
        return {K_PLACE.name: self.spec, **{place.name: at_place(self.spec, place) for place in self.places}}

    def script(self) -> dict[str, Any]:
        """Return all views for the page's script, with what they share only once."""
        shared = {key: self.spec[key] for key in ("config", "datasets")}
        views = [{"name": name, "spec": {k: v for k, v in spec.items() if k not in shared}}
                 for name, spec in self.views.items()]
        return {**shared, "views": views, "legend": [asdict(entry) for entry in entries(self.spec)]}


@dataclass(frozen=True)
class Section:
    """One study, ready to be shown: what was asked, the answers, figures and tables, and what to know with them.

    `differences` are those from the paper's protocol where it was `compared` with one, else remarks on the data.
    """

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
    commands: tuple[str, ...]
    name: str
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...] = ()
    compared: bool = False

    @property
    def differences_title(self) -> str:
        """What stands above the differences."""
        return "Different from the paper's protocol" if self.compared else "To know with it"


@dataclass(frozen=True)
class Page:
    """The whole report; `figures` are those over several sections."""

    title: str
    sections: tuple[Section, ...]
    problems: tuple[Problem, ...]
    facts: tuple[tuple[str, str], ...]
    figures: tuple[Figure, ...] = ()

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        """The figures of the page from top to bottom."""
        return (*self.figures, *(figure for section in self.sections for figure in section.figures))

    @property
    def views(self) -> dict[str, Spec]:
        """Every figure over each of its axes, titled, by a name such as `2 fig2-vgg16 accuracy over parameters`.

        Of several alike in one study the title is a part of the name.
        """
        return {name: {**view, "title": figure.title} if figure.title and "title" not in view else view
                for name, figure, view in self._named()}

    @property
    def captions(self) -> dict[str, str]:
        """The captions by the names of `views`."""
        return {name: figure.caption for name, figure, _ in self._named()}

    def _named(self) -> Iterator[tuple[str, Figure, Spec]]:
        alike = Counter(figure.name for figure in self.all_figures)
        for number, figure in enumerate(self.all_figures, 1):
            title = f" {figure.title}" if alike[figure.name] > 1 and figure.title else ""
            for place, view in figure.views.items():
                yield f"{number} {figure.name}{title}" + (f" over {place}" if figure.places else ""), figure, view


@dataclass(frozen=True)
class Watched:
    """How far the studies of a page that is made again and again have come.

    `every` is the number of seconds after which the page loads itself again; None once nothing more is to come.
    """

    done: int
    planned: int
    text: str
    running: tuple[str, ...] = ()
    every: int | None = None


def html_text(page: Page, watched: Watched | None = None) -> str:
    """Return `page` as one HTML document that makes no request: pictures as SVG, brought to life where scripts run."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spaceless", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined)
    figures = page.all_figures
    numbers = {id(figure): number for number, figure in enumerate(figures, 1)}
    source = {name: environment.loader.get_source(environment, f"report.{name}")[0] for name in ("css", "js")}  # type: ignore[union-attr]
    scripts = [*([_runtime()] if figures else []), source["js"]]
    policy = "; ".join((
        "default-src 'none'", f"style-src-elem {_hash(source['css'])}", "style-src-attr 'unsafe-inline'",
        "img-src data:", f"script-src {' '.join(map(_hash, scripts))}", "base-uri 'none'", "form-action 'none'",
    ))
    return environment.get_template("report.html.j2").render(
        page=page, watched=watched, number=lambda figure: numbers[id(figure)],
        picture=lambda figure: Markup(figure.picture),  # noqa: S704  (vega escapes)
        script=lambda figure: Markup(script_json(figure.script())),  # noqa: S704
        policy=Markup(policy), style=Markup(source["css"]), scripts=[Markup(s) for s in scripts])  # noqa: S704


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
