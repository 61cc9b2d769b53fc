"""`spaceless bench receptive-fields`: derived receptive fields against measured ones, and against published ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spaceless.bench.record import made_by

if TYPE_CHECKING:
    from torch import nn

# NAME, NAME@PIXELS, and behind a slash the module whose output is the final map, where that is not the last unit.
FAMILIES: dict[str, str] = {
    "the paper's variants": "vgg16/features resnet50 resnet152 mobilenet_v2/features squeezenet1_0/features",
    "AlexNet": "torchvision:alexnet/features",
    "VGG": "torchvision:vgg11/features",
    "ResNet": "torchvision:resnet18 torchvision:resnet101",
    "ResNet as first published": "as-published:resnet50 as-published:resnet101 as-published:resnet152",
    "ResNet, pre-activation": "timm:resnetv2_50 timm:resnetv2_50x1_bit",
    "ResNet, anti-aliased": "timm:resnetaa34d timm:resnetblur18",
    "SK, ResNeSt": "timm:skresnet18 timm:resnest14d",
    "Res2Net": "timm:res2net50_26w_4s",
    "norm-free": "timm:nf_regnet_b0 timm:dm_nfnet_f0",
    "RegNet": "torchvision:regnet_y_400mf",
    "DenseNet": "torchvision:densenet121/features",
    "DPN": "timm:dpn48b",
    "GoogLeNet, Inception": "torchvision:googlenet torchvision:inception_v3@299 timm:inception_v4@299 "
    "timm:inception_resnet_v2@299",
    "Xception": "timm:legacy_xception@299",
    "SqueezeNet": "torchvision:squeezenet1_1/features",
    "ShuffleNet": "torchvision:shufflenet_v2_x1_0",
    "MobileNet": "timm:mobilenetv1_100 torchvision:mobilenet_v3_small/features",
    "MnasNet, FBNet": "torchvision:mnasnet0_5/layers timm:fbnetc_100",
    "EfficientNet": "torchvision:efficientnet_b0/features timm:tf_efficientnet_b0",
    "MixNet": "timm:tf_mixnet_s",
    "GhostNet": "timm:ghostnetv2_100",
    "RepVGG, RepViT": "timm:repvgg_a0 timm:repvit_m1",
    "HGNet": "timm:hgnetv2_b0",
    "DarkNet, CSP": "timm:darknet17 timm:cspdarknet53",
    "DLA": "timm:dla34",
    "HRNet": "timm:hrnet_w18_small",
    "VoVNet": "timm:vovnet39a",
    "TResNet": "timm:tresnet_m",
    "ConvNeXt": "torchvision:convnext_tiny/features timm:convnextv2_atto timm:inception_next_atto",
    "PoolFormer": "timm:poolformer_s12",
    "FasterNet, StarNet, MambaOut": "timm:fasternet_t0 timm:starnet_s1 timm:mambaout_femto",
}

SOURCE = "Araujo, Norris and Sim, Distill 2019: the table of https://github.com/google-research/receptive_field"
_HERE = "torchvision has the stride of a bottleneck on its 3x3 convolution, the published network on the 1x1 in front"
PUBLISHED: dict[str, tuple[int, str | None]] = {  # size of the final map's field, and why ours differs
    "vgg16": (212, None), "torchvision:alexnet": (195, None), "timm:mobilenetv1_100": (315, None),
    "torchvision:inception_v3": (1311, None), "timm:inception_v4": (2071, None),
    "timm:inception_resnet_v2": (3039, None), "resnet50": (483, _HERE), "torchvision:resnet101": (1027, _HERE),
    "resnet152": (1507, _HERE), "as-published:resnet50": (483, None), "as-published:resnet101": (1027, None),
    "as-published:resnet152": (1507, None),
}


def names() -> list[tuple[str, str]]:
    """Return the family of every network in the list, and its entry."""
    return [(family, entry) for family, listed in FAMILIES.items() for entry in listed.split()]


def build(name: str, size: int) -> nn.Module:
    """Return the untrained network `name`; `as-published:NAME` is torchvision's ResNet with He et al.'s strides."""
    from torch import nn

    from spaceless.models import untrained

    if not name.startswith("as-published:"):
        return untrained(name, 10, size)
    model = untrained(name.replace("as-published", "torchvision"), 10, size)
    for path in [path for path, block in model.named_modules() if hasattr(block, "conv3")]:
        first, second = (model.get_submodule(f"{path}.conv{place}") for place in (1, 2))
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        first.stride, second.stride = second.stride, first.stride
    return model


def row(family: str, entry: str) -> dict[str, Any]:
    """Return the fields of one network: of its final map, and how many units' derived and measured ones agree.

    Raises:
        InputError: A name that no network has.

    """
    from spaceless.models import stem_is_unit
    from spaceless.receptive import unit_fields
    from spaceless.receptive_check import compare_fields
    from spaceless.tracing import trace
    from spaceless.units import units_of

    warnings.filterwarnings("ignore")  # libraries about their own constructors
    begun = time.monotonic()
    sized, _, end = entry.partition("/")
    name, _, pixels = sized.partition("@")
    size = int(pixels) if pixels.isdecimal() else 224
    model = build(name, size)
    traced = trace(model, size)
    paths = [unit.name for unit in units_of(traced, stem=stem_is_unit(name))]
    end = end or paths[-1]
    (field,) = unit_fields(traced, [end])
    side, found = compare_fields(model, [*paths, *([] if end == paths[-1] else [end])], size)
    last = next(each for each in found if each.name == end)
    published, why = PUBLISHED.get(name, (None, None))
    return {
        "family": family, "network": name, "image_size": size, "final_map": end,
        "derived": field and {"size": field.size, "stride": field.stride, "offset": field.offset,
                              "aligned": field.aligned},
        "checked_on": side, "measured": None if last.measured is None else _law(last.measured, last.position),
        "maps": len(found), "agree": sum(each.agrees for each in found),
        "disagreeing": [each.name for each in found if not each.agrees], "published": published,
        "source": SOURCE if published else None,
        "explanation": why if published and field and field.size != published else None,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _law(measured: tuple[tuple[int, int], ...], position: tuple[int, int]) -> dict[str, int]:
    """Return size, stride and offset that the pixels read by two neighbours amount to, along the wider side."""
    sides = [(measured[2 * side], measured[2 * side + 1], position[side]) for side in (0, 1)]
    here, there, place = max(sides, key=lambda side: side[0][1] - side[0][0])
    stride = there[0] - here[0]
    return {"size": here[1] - here[0] + 1, "stride": stride, "offset": here[0] - place * stride}


def rows(chosen: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of `chosen` (NAME, NAME@PIXELS, NAME/MODULE) or of the list, `jobs` at a time.

    Raises:
        InputError: A name that no network has.

    """
    from spaceless.bench.record import in_processes

    listed = {entry.partition("/")[0].partition("@")[0]: (family, entry) for family, entry in names()}
    wanted = [listed.get(entry, ("asked for", entry)) for entry in chosen] or names()
    yield from in_processes(row, wanted, jobs)


def line(found: dict[str, Any]) -> str:
    """Return one row as a line for who waits."""
    field = found["derived"]
    told = "no known field" if field is None else f"{field['size']} pixels, stride {field['stride']}"
    return f"{found['network']}: {told}; {found['agree']} of {found['maps']} maps as measured ({found['seconds']} s)"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many networks, families and maps agree, and which do not."""
    return {
        "networks": len(rows), "families": len({each["family"] for each in rows}),
        "agreeing": sum(each["agree"] == each["maps"] for each in rows), "maps": sum(each["maps"] for each in rows),
        "agreeing_maps": sum(each["agree"] for each in rows),
        "failing": [each["network"] for each in rows if each["agree"] != each["maps"] or _unexplained(each)],
    }


def _unexplained(each: dict[str, Any]) -> bool:
    field, published = each["derived"], each["published"]
    return published is not None and each["explanation"] is None and (field is None or field["size"] != published)


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    told = record["summary"]
    lines = [
        "# Receptive fields, derived and measured", "", made_by(record), "",
        f"{told['networks']} networks of {told['families']} families: derived and measured fields agree on all maps of "
        f"{told['agreeing']} of them, and on {told['agreeing_maps']} of {told['maps']} maps.", "", _WHAT, "",
        "| network | family | final map | size | stride | offset | measured | image | maps | published |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    notes: dict[str, list[str]] = {}
    for each in record["rows"]:
        field = each["derived"] or dict.fromkeys(("size", "stride", "offset"), "–")
        found = each["measured"] or {"size": "–"}
        mark = ""
        if each["explanation"]:
            notes.setdefault(each["explanation"], []).append(each["network"])
            mark = f" ({list(notes).index(each['explanation']) + 1})"
        lines.append(
            f"| `{each['network']}` | {each['family']} | `{each['final_map']}` | {field['size']} | {field['stride']} | "
            f"{field['offset']} | {found['size']} | {each['checked_on']} | {each['agree']}/{each['maps']} | "
            f"{each['published'] or ''}{mark} |")
    lines += ["", f"Published sizes: {SOURCE}."]
    lines += [f"({i}) {why}: {', '.join(who)}." for i, (why, who) in enumerate(notes.items(), start=1)]
    unaligned = [each["network"] for each in record["rows"] if each["derived"] and not each["derived"]["aligned"]]
    if unaligned:
        lines += ["", f"Branches of differing strides meet in {', '.join(unaligned)}: size and stride are those of the "
                  "positions of the map for an image of 224 pixels, the largest size and the mean stride. Measured "
                  "and compared are two positions in the middle of a map, each with the field derived for itself."]
    return "\n".join(lines) + "\n"


_WHAT = """\
Size, stride and offset are derived from the traced graph for images of 224 pixels (299 for Inception and Xception), in
pixels of the image; the offset is the first pixel that the first position reads, negative in the padding (minus the
"effective padding" of Araujo et al.). They are measured as the support of the image's gradient: the network's own code
runs on an image wider than its widest field, every kernel replaced by an average, maxima by averages, and what works
entry by entry passed on, in double precision. For every unit and for the final map, the first and the last pixel that
a position in the middle reads, and those that the next one reads, must be the derived ones, along height and along
width: that is size, stride and offset. Gates (squeeze and excitation) and the statistics of normalisations are left
out on both sides. With "same" padding as TensorFlow means it (`tf_`, `dm_`), the offset depends on the image size."""
