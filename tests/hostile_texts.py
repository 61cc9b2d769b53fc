"""Texts that would break out of a page, a script, Markdown or a terminal, and runs with them in every field."""

import json
from collections.abc import Container
from pathlib import Path

from made_outcomes import manifest, outcome, store
from spaceless.trial import RECIPES, Change

HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!-- ", "-->",
    "\"><svg onload=alert(1)>", "' onmouseover='alert(1)", "{{ 7 * 7 }}", "{% include 'x' %}", "javascript:alert(1)",
    "</style><style>*{display:none}", "<![CDATA[", "&lt;b&gt;", "<base href=//evil.invalid>", "<iframe srcdoc=x>",
    "\u2028\u2029", "datum['x']", "<a href='http://evil.invalid'>", "]]>", "| a | b |",
    "`x` **y** [z](http://evil.invalid)", "=1+1", "<link rel=stylesheet href=//evil.invalid/x.css>", "${alert(1)}",
    "\\u003cscript\\u003ealert(1)", "</title><h1>x", "</td></tr></table><b>", "</code></pre><i>x</i>",
    "\x07\x1b[31mred \x00",
    "\u202egnp.exe", "\ufeff\u200b", "url(http://evil.invalid/x)", "http://evil.invalid/a.png", "a' || alert(1) || '",
    "\"); alert(1); (\"", "<meta http-equiv=refresh content='0;url=http://evil.invalid'>", "<object data=x></object>",
    "<form action=//evil.invalid><input name=q>", "<math><mi xlink:href='javascript:alert(1)'>x",
    "a\nb\r\nc\td" + "z" * 300,
)


def hostile_runs(root: Path, texts: tuple[str, ...], charts: Container[int]) -> Path:
    """Write runs that hold every one of `texts` in every field of a file that a page shows.

    The texts at the places `charts` are also names of networks with something to draw.
    """
    def text(index: int) -> str:
        return texts[index % len(texts)]

    made = []
    for i, each in enumerate(dict.fromkeys(texts)):
        recipe = RECIPES["control"].model_copy(update={"name": text(i + 1)})
        named = {"model": f"timm:{each}", "data": each, "recipe": recipe}
        says = {"error": text(i + 2), "hardware": text(i + 3), "versions": {text(i + 4): text(i + 5)},
                "notes": (text(i + 6),), "precision": text(i + 7), "started": text(i + 8)}
        change = Change(unit=13, path=text(i), before=text(i + 1), after=text(i + 2))
        first = outcome(note=each, **named)
        facts = first.data.model_copy(update={"source": text(i + 9), "name": each})
        made.append(first.model_copy(update={**says, "data": facts}))
        if i in charts:
            made += [outcome(method, 1, **named).model_copy(update={"changes": (change,)})
                     for method in ("shuffle", "gap_fc")]
        made.append(outcome("conv1x1", 2, status="failed", **named).model_copy(update=says))
        planned = [o for o in made if o.trial.data == each]
        manifest(root, f"study-{i}", [*planned, outcome("strip", 3, **named).trial], title=text(i), asks=text(i + 1),
                 command=text(i + 2), preset=text(i + 3), experiment=text(i + 4) if i % 3 == 0 else None)
        path = root / f"study-{i}.study.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "name": each}))
        broken = root / f"broken-{i}"
        broken.mkdir()
        (broken / "outcome.json").write_text(json.dumps({"trial": each}))
    truth = [{"data": each, "method": "shuffle", "learnable_k": 1, "chance_from_k": 2, "chance": 1.0} for each in texts]
    manifest(root, "calibration", made[:2], kind="calibration", truth=truth)
    return store(root, *made)
