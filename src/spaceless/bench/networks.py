"""`spaceless bench networks`: surgery on the CNNs of torchvision and timm, one row of verdicts for each name."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from spaceless.bench.record import made_by

METHODS = ("shuffle", "gap_fc", "conv1x1")
IMAGE_SIZE = 96  # the final map has 3x3 positions behind a stride of 32: odd, so that pooling has something left over

# Families by their papers; a number behind @ is the side in pixels for networks that do not take 96.
FAMILIES: dict[str, str] = {
    "the paper's variants": "vgg16@32 resnet50@32 mobilenet_v2 squeezenet1_0",
    "AlexNet": "torchvision:alexnet",
    "VGG": "torchvision:vgg11@64 torchvision:vgg16_bn@64 timm:vgg11@64",
    "ResNet": "torchvision:resnet18 torchvision:resnet34 torchvision:resnet50 timm:resnet26d timm:resnetrs50",
    "ResNet, pre-activation": "timm:resnetv2_18 timm:resnetv2_50 timm:resnetv2_50x1_bit",
    "ResNet, anti-aliased": "timm:resnetaa34d timm:resnetblur18",
    "ResNeXt, Wide ResNet": "torchvision:resnext50_32x4d torchvision:wide_resnet50_2 timm:resnext26ts",
    "SE, SK, ECA": "timm:seresnet18 timm:legacy_seresnet18 timm:skresnet18 timm:skresnext50_32x4d timm:ecaresnet26t",
    "ResNeSt": "timm:resnest14d timm:resnest26d",
    "Res2Net": "timm:res2net50_26w_4s timm:res2next50 timm:dla60_res2net",
    "norm-free": "timm:nf_resnet26 timm:nf_regnet_b0 timm:eca_nfnet_l0",
    "RegNet": "torchvision:regnet_x_400mf torchvision:regnet_y_400mf timm:regnetv_040 timm:regnetz_b16",
    "DenseNet": "torchvision:densenet121 timm:rdnet_tiny",
    "DPN": "timm:dpn48b timm:dpn68",
    "GoogLeNet, Inception": "torchvision:googlenet torchvision:inception_v3@128 timm:inception_v4@128 "
    "timm:inception_resnet_v2@128",
    "Xception": "timm:legacy_xception timm:xception41",
    "NASNet": "timm:nasnetalarge",
    "SqueezeNet": "torchvision:squeezenet1_0 torchvision:squeezenet1_1",
    "ShuffleNet": "torchvision:shufflenet_v2_x0_5 torchvision:shufflenet_v2_x1_0",
    "MobileNet": "timm:mobilenetv1_100 torchvision:mobilenet_v2 torchvision:mobilenet_v3_small "
    "torchvision:mobilenet_v3_large timm:mobilenetv4_conv_small",
    "MnasNet, FBNet, SPNASNet": "torchvision:mnasnet0_5 torchvision:mnasnet1_0 timm:semnasnet_075 timm:spnasnet_100 "
    "timm:fbnetc_100 timm:fbnetv3_b timm:hardcorenas_a",
    "EfficientNet": "torchvision:efficientnet_b0 torchvision:efficientnet_v2_s timm:efficientnet_b0 "
    "timm:efficientnet_lite0 timm:tf_efficientnet_b0 timm:efficientnetv2_rw_t timm:tf_efficientnetv2_b0 timm:tinynet_e",
    "MixNet": "timm:mixnet_s timm:tf_mixnet_s",
    "ReXNet": "timm:rexnet_100",
    "GhostNet": "timm:ghostnet_050 timm:ghostnetv2_100 timm:ghostnetv3_100 timm:repghostnet_050",
    "RepVGG, MobileOne, RepViT": "timm:repvgg_a0 timm:mobileone_s0 timm:repvit_m1",
    "LCNet, HGNet": "timm:lcnet_050 timm:lcnetv2_base timm:hgnet_tiny timm:hgnetv2_b0",
    "DarkNet, CSP": "timm:darknet17 timm:darknet53 timm:cspdarknet53 timm:cspresnet50 timm:cspresnext50",
    "DLA": "timm:dla34",
    "HRNet": "timm:hrnet_w18_small",
    "VoVNet": "timm:vovnet39a timm:ese_vovnet39b timm:ese_vovnet19b_dw",
    "SelecSLS, TResNet, GENet": "timm:selecsls42 timm:tresnet_m timm:gernet_s timm:gcresnet33ts",
    "ConvNeXt": "torchvision:convnext_tiny timm:convnext_atto timm:convnextv2_atto "
    "timm:inception_next_atto",
    "ConvMixer, PoolFormer": "timm:convmixer_768_32 timm:poolformer_s12",
    "FasterNet, StarNet, MambaOut": "timm:fasternet_t0 timm:starnet_s1 timm:mambaout_femto",
    "CNNs with attention": "timm:bat_resnext26ts@256 timm:sebotnet33ts_256@256 timm:edgenext_xx_small "
    "timm:visformer_tiny@224",
}


def names() -> list[tuple[str, str, int]]:
    """Return family, name and side in pixels of every network in the list."""
    return [(family, *_sized(entry)) for family, listed in FAMILIES.items() for entry in listed.split()]


def _sized(entry: str) -> tuple[str, int]:
    name, _, size = entry.partition("@")
    return name, int(size) if size.isdecimal() else IMAGE_SIZE


def row(family: str, name: str, size: int) -> dict[str, Any]:
    """Return what `check_network` finds of one network, or why it cannot be looked at.

    Raises:
        InputError: A name that no network has.

    """
    import torch

    from spaceless.bench.network_check import check_network
    from spaceless.errors import SpacelessError
    from spaceless.models import build_model, stem_is_unit
    from spaceless.seeds import generator

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # libraries about their own constructors
    made: dict[str, Any] = {"family": family, "network": name, "image_size": size}
    model = build_model(name, 10, size)
    x = torch.randn(4, 3, size, size, generator=generator(0, "bench networks"), dtype=torch.float64)
    try:
        units, verdicts = check_network(model, x, stem=stem_is_unit(name))
    except SpacelessError as error:
        return made | {"units": None, "refused": " ".join(str(error).split()), "verdicts": []}
    return made | {
        "units": len(units), "kind": units[-1].kind, "refused": None, "verdicts": [v.to_json() for v in verdicts]}


def rows(chosen: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of `chosen`, any names of networks (NAME or NAME@PIXELS), or of the list; `jobs` at a time.

    Raises:
        InputError: A name that no network has.

    """
    listed = {name: (family, name, size) for family, name, size in names()}
    wanted = [listed.get(entry, ("asked for", *_sized(entry))) for entry in chosen] or names()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(row, *zip(*wanted, strict=True))


def line(found: dict[str, Any]) -> str:
    """Return one row as a line for who waits."""
    verdicts = [f"{v['method']} K={v['k']}: {v['status']}" for v in found["verdicts"] if v["status"] != "holds"]
    told = found["refused"] or "; ".join(verdicts) or "holds"
    return f"{found['network']}, {found['units'] or 'no'} units: {told}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many networks and families there are, and how many of them every verdict holds for."""
    full = [each for each in rows if each["verdicts"] and all(v["status"] == "holds" for v in each["verdicts"])]
    failing = [each["network"] for each in rows if any(v["status"] == "fails" for v in each["verdicts"])]
    return {
        "networks": len(rows), "families": len({each["family"] for each in rows}), "fully_supported": len(full),
        "share": round(len(full) / len(rows), 4) if rows else None, "failing": failing,
    }


_SIGNS = {"holds": "✓", "refused": "refused", "head": "head", "fails": "FAILS"}


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record: what was checked, the table, and the reason of everything that does not hold."""
    told = record["summary"]
    lines = [
        "# Which networks surgery works on", "",
        made_by(record), "",
        f"{told['networks']} CNNs of {told['families']} families; everything checked holds for "
        f"{told['fully_supported']} of them ({told['share']:.1%}).", "", _WHAT, "",
        f"| network | family | pixels | units | kind | {' | '.join(METHODS)} |", "|---|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for each in record["rows"]:
        cells = [_cell(each, method, notes) for method in METHODS]
        lines.append(f"| `{each['network']}` | {each['family']} | {each['image_size']} | "
                     f"{_or_dash(each['units'])} | {_or_dash(each.get('kind'))} | {' | '.join(cells)} |")
    if notes:
        lines += ["", "## What does not hold, and why", "", *notes]
    return "\n".join(lines) + "\n"


_WHAT = """\
Each cell is K = 1, half of the units, and all of them. ✓ says that the output keeps its shape; that exactly the last K
units changed; that a forward and a backward pass are finite and no parameter lost its gradient; and that

- **shuffle**: two passes differ, and a pass that is sought again repeats bit for bit;
- **gap_fc**: the output does not depend on the order of the positions of the map that enters the first changed unit
  (each channel permuted by itself), while that of the unchanged network does;
- **conv1x1**: the output does not depend on the order of the positions of the map behind the last spatial pooling
  (all channels permuted alike). Pooling between 1x1 convolutions still groups neighbours: the paper's design. Only
  pooling inside a unit that keeps the size of its map, as in Inception blocks, goes with the convolutions.

Weights are fresh ones, in double precision, with every constant parameter (a residual branch or a layer scale that
starts near nought) drawn anew, so that nothing is hidden. *head* says that all holds but the last: what is behind the
last unit, a linear layer on a flattened map, tells positions apart."""


def _cell(each: dict[str, Any], method: str, notes: list[str]) -> str:
    found = [verdict for verdict in each["verdicts"] if verdict["method"] == method]
    if not found:
        notes += [f"- `{each['network']}`: {each['refused']}"] if method == METHODS[0] else []
        return "refused"
    reasons: dict[str, list[str]] = {}
    for verdict in found:
        if verdict["reason"]:
            reasons.setdefault(verdict["reason"], []).append(str(verdict["k"]))
    notes += [f"- `{each['network']}`, {method}, K = {', '.join(ks)}: {reason}" for reason, ks in reasons.items()]
    signs = [_SIGNS[verdict["status"]] for verdict in found]
    return signs[0] if len(set(signs)) == 1 else ", ".join(signs)


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)
