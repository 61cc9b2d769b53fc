"""The model card of an exported network: Markdown with front matter, as model hubs read it, from its record alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_METHODS = {
    "conv1x1": "their spatial convolutions became 1x1 convolutions",
    "gap_fc": "a global average pooling stands before the first of them, and all behind it is fully connected",
    "strip": "they were removed altogether",
}


def card(record: dict[str, Any]) -> str:
    """Return the card of what `export_run` recorded."""
    network = record["network"]
    side = f"{network['image_size']} x {network['image_size']}"
    parts = [
        _front_matter(record),
        f"# {record['name']}\n",
        f"An image classifier: {network['classes']} classes, RGB images of {side} pixels. {_made(record)}\n",
        _comparison(record),
        "## How it was trained\n", _training(record),
        "## How to use it\n", _loading(record),
        "## What was checked\n", _checks(record),
        "## Files\n",
        *(f"- {_code(name)}: {_bytes(file['bytes'])}, SHA-256 `{file['sha256']}`"
          for name, file in record["files"].items()),
        "- `export.json`: all figures of this card, for programs\n",
        "`surgery.json` holds what rebuilds the network, the normalisation and the class names. No file holds a "
        "pickle.\n",
    ]
    return "\n".join(parts)


def _front_matter(record: dict[str, Any]) -> str:
    """Return the YAML that model hubs read; JSON's texts and numbers are YAML's."""
    lines = ["---", "library_name: spaceless", "pipeline_tag: image-classification", "tags:", "- image-classification",
             "- safetensors", "- onnx"]
    found = record["exported"]
    top1, split = (found["held_out"], "validation") if found["top1"] is None else (found["top1"], "test")
    if top1 is not None:
        data = record["data"]
        name = ", ".join(filter(None, (data["name"], data["note"])))  # a caveat goes where the figure goes
        lines += [
            "metrics:", "- accuracy",
            "model-index:", f"- name: {json.dumps(record['name'])}",
            "  results:", "  - task:", "      type: image-classification",
            "    dataset:", f"      name: {json.dumps(name)}", f"      type: {json.dumps(data['name'])}",
            f"      split: {split}",
            "    metrics:", "    - type: accuracy", f"      value: {round(top1 / 100, 6)}",
        ]
    return "\n".join([*lines, "---", ""])


def _made(record: dict[str, Any]) -> str:
    network = record["network"]
    base = f"{_code(network['model'])}" + ("" if network["width"] == 1 else f" at {network['width']:g} of its width")
    if network["method"] == "baseline":
        return f"It is {base}, unchanged."
    which = f"unit {network['only']}" if network["only"] else f"the last {network['k']}"
    strip, how = "", _METHODS["strip"]
    if network["strip"] < network["k"]:
        strip = f", and the last {network['strip']} of them were removed" if network["strip"] else ""
        how = _METHODS[network["method"]]
    down = f" (down-sampling: {network['downsample']})" if network["method"] == "conv1x1" else ""
    return (
        f"It is {base} without spatial information in its last layers, after *Spatial information is overrated for "
        f"image classification* (ICLR 2020 submission), method {_code(network['method'])}, K = {network['k']}: "
        f"{which} of its {record['units']} units changed: {how}{down}{strip}."
    )


def _comparison(record: dict[str, Any]) -> str:
    columns = [("this network", record["exported"])]
    if record["original"]:
        columns.insert(0, ("original", record["original"]))
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("top-1 accuracy on the test images", lambda found: _percent(found["top1"])),
        ("parameters", lambda found: f"{found['params']:,}"),
        ("multiply-adds per image", lambda found: f"{found['macs']:,}"),
        ("`model.safetensors`", lambda found: _bytes(found["safetensors_bytes"])),
        ("`model.onnx`", lambda found: _bytes(found["onnx_bytes"])),
        ("one image in PyTorch", lambda found: _milliseconds(found["latency"]["pytorch"])),
        ("one image in onnxruntime", lambda found: _milliseconds(found["latency"]["onnxruntime"])),
    ]
    if record["exported"]["held_out"] is not None:
        rows.insert(0, ("top-1 accuracy on the images held out", lambda found: _percent(found["held_out"])))
    lines = ["| |" + "".join(f" {title} |" for title, _ in columns), "|---|" + "---|" * len(columns)]
    lines += [f"| {what} |" + "".join(f" {show(found)} |" for _, found in columns) for what, show in rows]
    passes = record["exported"]["latency"]["pytorch"]["repeats"]
    threads = f"{record['threads']} {'thread' if record['threads'] == 1 else 'threads'}"
    notes = [
        f"Times: median and quartiles of {passes} passes, fp32, {threads} of {_text(record['hardware'])}; "
        "onnxruntime's include the normalisation.",
    ]
    if record["times_as_fast"]:
        fast = {name: f"{found['median']:.2f} ({found['lower']:.2f} to {found['upper']:.2f})"
                for name, found in record["times_as_fast"].items()}
        notes.append(f"Measured in turn, this network is {fast['pytorch']} times as fast in PyTorch and "
                     f"{fast['onnxruntime']} times in onnxruntime.")
    if record["exported"]["held_out"] is not None and record["exported"]["top1"] is None:
        notes.append("This network was not tested on the test images.")
    if record["original"] and record["original"]["top1"] is record["original"]["held_out"] is None:
        notes.append("The original was not trained in the same folder: its accuracy is not known.")
    return "\n".join([*lines, "", " ".join(notes), ""])


def _training(record: dict[str, Any]) -> str:
    data, recipe, network = record["data"], record["recipe"], record["network"]
    note = f" ({_text(data['note'])})" if data["note"] else ""
    named = ("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "schedule",
             "augment")
    how = ", ".join(f"{name.replace('_', ' ')} {_text(str(recipe[name]))}" for name in named)
    found = record["exported"]
    judged = "test images" if found["held_out"] is None else (
        "training images held out" if found["top1"] is None else
        "images held out, and that on the test images was taken once, when the network had been chosen")
    begun = "" if network["start"] is None else (
        f"It began from the weights of trial {_code(network['start']['run'])}, the original, trained before. ")
    return (
        f"{begun}On {_code(data['name'])}, {data['train_images']:,} images{note}, with the recipe "
        f"{_code(recipe['name'])}: {how}; seed {network['seed']}, on {_text(record['trained_on'])}. The "
        f"accuracy is that of the last epoch on {data['test_images']:,} {judged}, in {record['precision']} as in "
        f"training. Trial {_code(record['trial'])} of `spaceless`.\n"
    )


def _loading(record: dict[str, Any]) -> str:
    network = record["network"]
    size, shorter = network["image_size"], record["preprocessing"]["shorter_side"]
    return f"""\
With onnxruntime; the file normalises for itself and takes batches of any size (operator set {record['opset']}):

```python
import json
import numpy as np
import onnxruntime
from PIL import Image


def prepared(path):  # as the test images were: uint8 (3, {size}, {size})
    image = Image.open(path).convert("RGB")
    short, long = sorted(image.size)
    wide = {shorter} * long // short  # where the shorter side becomes {shorter} pixels
    shape = ({shorter}, wide) if image.width <= image.height else (wide, {shorter})
    left, top = (round((side - {size}) / 2) for side in shape)  # the middle is cut out
    image = image.resize(shape, Image.Resampling.BILINEAR).crop((left, top, left + {size}, top + {size}))
    return np.asarray(image).transpose(2, 0, 1)


session = onnxruntime.InferenceSession("model.onnx")
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
images = np.stack([prepared(path) for path in ["image.png"]])  # yours
(logits,) = session.run(["logits"], {{"images": images}})  # float32 (N, {network['classes']})
print([names[number] for number in logits.argmax(1)])
```

In PyTorch, with the package `spaceless` installed from its repository; the network takes normalised images:

```python
import torch
import spaceless

model = spaceless.load_model(".")  # this folder
mean = torch.tensor({record['mean']})[:, None, None]
std = torch.tensor({record['std']})[:, None, None]
images = torch.zeros(1, 3, {size}, {size}, dtype=torch.uint8)  # yours: prepared as above
with torch.inference_mode():
    logits = model((images / 255 - mean) / std)
```
"""


def _checks(record: dict[str, Any]) -> str:
    found, runtime = record["checks"], record["versions"]["onnxruntime"]
    which = "test" if record["exported"]["held_out"] is None else "held-out"
    rounding = "" if found["rounding"] is None else (
        f", since PyTorch's own differ by {found['rounding']:.2g} from those it computes in float64")
    return (
        f"On {found['images']:,} {which} images the logits of `model.onnx` in onnxruntime {runtime} differ from "
        f"PyTorch's by {found['largest_difference']:.2g} at most ({found['allowed']:.2g} is allowed{rounding}), "
        f"{found['same_class']:,} get the same class, and {found['correct_onnx']:,} the correct one (PyTorch: "
        f"{found['correct_pytorch']:,}). The network that `spaceless.load_model` builds from the files gives the "
        "logits of the trained one bit for bit on all of them. `onnx.checker` accepts the file.\n"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def _milliseconds(found: dict[str, float]) -> str:
    return f"{1000 * found['median']:.2f} ms ({1000 * found['lower']:.2f} to {1000 * found['upper']:.2f})"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _text(text: str) -> str:
    """Return a text from elsewhere as one line that Markdown and HTML have nothing to do with."""
    return "".join("\\" + letter if letter in "\\`*_[]<>|" else letter for letter in " ".join(text.split()))


def _code(text: str) -> str:
    """Return a name as code."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"
