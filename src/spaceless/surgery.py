"""`remove_spatial`: a changed copy of a network without spatial information in its last K units, and what changed.

Plan first, touch modules last. The methods are those of section 3.1 of the paper; each rewrites single modules of the
copy, so that every weight that need not change is the original's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from torch import fx, nn

from spaceless.errors import SpacelessError, SurgeryError, unknown_name
from spaceless.gap import gap_fc
from spaceless.hidden import refuse_hidden
from spaceless.models import GlobalAveragePool
from spaceless.plan import Plan, followers, is_depthwise, once, pointwise
from spaceless.pooling import as_modules, pooling_within
from spaceless.shuffle import Shuffle, ShuffleConv
from spaceless.strip import strip_units
from spaceless.tracing import Trace, copied, first_line, output_shape, put, trace
from spaceless.trial import METHODS, Change, ShuffleOptions
from spaceless.units import Unit, is_spatial, units_of


def remove_spatial(
    model: nn.Module, method: str, k: int | None = None, *, image_size: int = 224, only: int | None = None,
    strip: int = 0, downsample: str = "avg", shuffle: ShuffleOptions | None = None, seed: int = 0, stem: bool = True,
) -> tuple[nn.Module, list[Change]]:
    """Return a copy of `model` whose last `k` units use no spatial information, and the list of what changed.

    Args:
        model: Any network of (N, C, H, W) images; it is left as it was.
        method: `shuffle`, `gap_fc`, `conv1x1` (section 3.1), `channel_shuffle` (A.6) or `strip` (section 4.4).
        k: How many units to change, from the last one on; 0 returns a plain copy.
        image_size: The side of the image in pixels.
        only: Change the unit with this index (from 1 at the input) and no other (A.3), instead of `k`.
        strip: Remove this many of the changed units altogether, from the last one on (Fig. 3 left).
        downsample: What takes the place of a strided convolution for `conv1x1`: `avg` or `max`, a 1x1 convolution
            with stride 1 and a 2x2 pooling behind it, or `stride`, a strided 1x1 convolution (A.1).
        shuffle: Variants of the shuffle; the paper's by default.
        seed: The seed that the permutations derive from.
        stem: See `find_units`.

    Pooling inside a changed unit that keeps the size of its map, as in Inception blocks, goes with `conv1x1` and is
    shuffled with `shuffle`. Pooling that down-samples, and pooling between units, stays as it was: the paper's design.

    A 1x1 kernel starts as the sum of the spatial kernel over its positions. A freshly initialised kernel gives one with
    the variance that its rule prescribes for the smaller fan, if that rule scales with the fan (He, Glorot); a trained
    one keeps its answer to a constant map.

    Raises:
        SurgeryError: K or unit out of range, or a network on which this change is not possible.
        InputError: Unknown method or down-sampling, or a network that cannot be traced.

    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    plan = _plan(model, k, only, image_size, stem)
    if downsample not in ("avg", "max", "stride"):
        raise unknown_name("downsample", downsample, ("avg", "max", "stride"))
    if only is not None and method in ("gap_fc", "strip"):
        raise SurgeryError(
            "only", found=f"method {method}", expected="shuffle, conv1x1 or channel_shuffle", cure="use k instead",
        )
    if not 0 <= strip <= len(plan.targets) or (strip and method == "strip"):
        raise SurgeryError(
            "strip", found=strip, expected=f"at most k = {len(plan.targets)} units of a method other than strip",
            cure="raise k or lower strip",
        )
    options = shuffle or ShuffleOptions()
    if method == "channel_shuffle" and options != ShuffleOptions(fixed=options.fixed):
        raise SurgeryError(
            "shuffle", found=f"{options}", expected="no option but fixed, since channels have no places",
            cure="leave the other options out",
        )
    if method in ("shuffle", "gap_fc", "conv1x1"):  # the others leave positions what they are
        refuse_hidden(plan.traced, plan.targets, behind=only is None)
    removed = len(plan.targets) if method == "strip" else strip
    stripped = plan.targets[len(plan.targets) - removed:]
    kept = [unit for unit in plan.targets if unit not in stripped]
    strip_units(plan, stripped, image_size)
    if method in ("shuffle", "channel_shuffle"):
        _shuffle(plan, kept, options, seed, channels=method == "channel_shuffle")
    elif method == "conv1x1":
        _conv1x1(plan, kept, downsample)
    elif method == "gap_fc" and plan.targets:
        gap_fc(plan)
    _check(plan, model, method, image_size)
    return plan.model, plan.changes


def without_shuffle(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every shuffled convolution is plain again, with its trained weights."""
    plain = copy.deepcopy(model)
    for path, module in list(plain.named_modules()):
        if isinstance(module, ShuffleConv):
            put(plain, path, module.conv)
    return plain


def _plan(model: nn.Module, k: int | None, only: int | None, image_size: int, stem: bool) -> Plan:
    own = copied(model)
    traced = trace(model, image_size)
    output = traced.nodes[-1].args[0]
    if not isinstance(output, fx.Node) or output not in traced.shapes:
        kind = "n object of a class of its own" if isinstance(output, fx.Node) else (
            f" {type(output).__name__.removeprefix('immutable_')}")
        raise SurgeryError(
            type(model).__name__, found=f"an output that is a{kind}",
            expected="one tensor, the logits", cure="wrap the network in a module that returns them alone",
        )
    units = units_of(traced, stem=stem)
    if (k is None) == (only is None) and not (only is not None and k == 1):
        raise SurgeryError("k", found=f"k={k}, only={only}", expected="one of them", cure="give k or only")
    if only is not None:
        if not 1 <= only <= len(units):
            raise SurgeryError(
                "only", found=only, expected=f"a unit from 1 to {len(units)}", cure="see the units with inspect",
            )
        targets = [units[only - 1]]
    else:
        assert k is not None
        if not 0 <= k <= len(units):
            raise SurgeryError(
                "k", found=k, expected=f"0 to {len(units)}, the number of units", cure="see the units with inspect",
            )
        targets = units[len(units) - k:]
    for path in (path for unit in targets for path in unit.convs):
        if len(traced.calls(path)) > 1:
            raise SurgeryError(
                path, found=f"a convolution that runs {len(traced.calls(path))} times", expected="one that runs once",
                cure="give each place a convolution of its own, or change fewer units",
            )
    return Plan(own, traced, units, targets)


def _shuffle(plan: Plan, targets: list[Unit], options: ShuffleOptions, seed: int, *, channels: bool) -> None:
    convs = [path for unit in plan.units for path in unit.convs]  # a layer keeps its number at every K
    pools = [node for unit in plan.units for node in pooling_within(plan.traced, unit)]
    for unit in targets:
        layers = {path: (convs.index(path), plan.traced.calls(path)[0]) for path in unit.convs}
        if not channels:
            pooling = as_modules(plan, unit)
            layers |= {path: (len(convs) + pools.index(node), node) for path, node in pooling.items()}
        for path, (number, node) in layers.items():
            height, width = plan.traced.sides(node.all_input_nodes[0])
            if height == width == options.patch > 1:
                raise SurgeryError(
                    "shuffle patch", found=f"{options.patch} on a map of {height}x{width}, which is one patch",
                    expected="several patches to shuffle", cure="choose a smaller patch or shuffle fewer units",
                )
            shuffle = Shuffle(seed, number, channels=channels, **options.model_dump())
            plan.replace(unit.index, path, ShuffleConv(shuffle, plan.model.get_submodule(path)))


def _conv1x1(plan: Plan, targets: list[Unit], downsample: str) -> None:
    changed = {node for unit in targets for node in plan.traced.inside(unit.name)}
    done: set[str] = set()
    for unit in targets:
        for path in as_modules(plan, unit):
            plan.replace(unit.index, path, nn.Identity())
        for node in once(plan.traced.inside(unit.name)):
            conv = plan.traced.module_of(node)
            if not isinstance(conv, nn.Conv2d) or (not is_spatial(conv) and max(conv.stride) == 1):
                continue
            path = str(node.target)
            if path in done:  # as part of another unit
                continue
            done.add(path)
            if not set(plan.traced.calls(path)) <= changed:
                raise SurgeryError(
                    path, found="a convolution that layers in front of the changed units use too",
                    expected="one of the changed units alone", cure="change the other units as well, or fewer",
                )
            strided = max(conv.stride) > 1
            pool = _pooling(plan, node, conv, downsample) if strided and downsample != "stride" else None
            trim = _trim(plan, node, conv, pool)
            if is_depthwise(conv):
                if strided and pool is None:
                    pool = nn.AvgPool2d(1, conv.stride)  # type: ignore[arg-type]  # taking every second position is all that stride does
                plan.replace(unit.index, path, _joined(trim, pool))
                for follower in followers(plan.traced, node):
                    plan.replace(unit.index, follower, nn.Identity())
                continue
            if pool is None and not is_spatial(conv):
                continue  # a strided 1x1 convolution is what `stride` asks for
            old = plan.own(path)
            assert isinstance(old, nn.Conv2d)
            new = plan.tied(old, pointwise(old, conv.stride if strided and pool is None else (1, 1)))
            plan.replace(unit.index, path, _joined(trim, new, pool))


def _pooling(plan: Plan, node: fx.Node, conv: nn.Conv2d, downsample: str) -> nn.Module:
    """Return the pooling that shrinks the map as much as the strided convolution did."""
    before, after = plan.traced.shapes[node.all_input_nodes[0]][2:], plan.traced.shapes[node][2:]
    kind: Callable[..., nn.Module] = nn.AvgPool2d if downsample == "avg" else nn.MaxPool2d
    left_over = any(a > b // s for a, b, s in zip(after, before, conv.stride, strict=True))
    return kind(conv.stride, conv.stride, ceil_mode=left_over)


def _trim(plan: Plan, node: fx.Node, conv: nn.Conv2d, pool: nn.Module | None) -> nn.Module | None:
    """Return what cuts the border off that a convolution without padding does not reach, or None if there is none.

    Without it the map would grow, and no longer fit to its neighbours in a concatenation or to a head behind it. A
    convolution that takes in the whole map, as some heads have one, becomes a global average: a single position would
    throw the others away.
    """
    margins: list[int] = []
    entering, leaving = plan.traced.shapes[node.all_input_nodes[0]][2:], plan.traced.shapes[node][2:]
    if leaving == (1, 1) and entering == tuple(conv.kernel_size) and set(_pads(conv)) == {0}:
        return GlobalAveragePool()
    for before, after, stride in zip(entering, leaving, conv.stride, strict=True):
        if pool is None:  # a 1x1 convolution takes every stride-th position, the first one included
            wanted = before if -(-before // stride) == after else (after - 1) * stride + 1
        else:
            wanted = min(before, after * stride)
        margins = [(wanted - before + 1) // 2, (wanted - before) // 2, *margins]  # the last side comes first
    return nn.ZeroPad2d(tuple(margins)) if any(margins) else None  # type: ignore[arg-type]


def _pads(conv: nn.Conv2d) -> tuple[object, ...]:
    return conv.padding if isinstance(conv.padding, tuple) else (conv.padding,)


def _joined(*modules: nn.Module | None) -> nn.Module:
    """Return the modules that are there, one behind the other."""
    present = [module for module in modules if module is not None]
    return present[0] if len(present) == 1 else nn.Sequential(*present) if present else nn.Identity()


def _flattened(traced: Trace) -> str | None:
    """Return the sides of a map of several positions that becomes a vector as it is, if there is one."""
    for node in traced.nodes:
        for source in node.all_input_nodes:
            before, behind = traced.shapes.get(source), traced.shapes.get(node)
            if before is not None and behind is not None and len(before) == 4 and max(before[2:]) > 1 and (
                    tuple(behind[1:]) == (math.prod(before[1:]),)):
                return f"{before[2]}x{before[3]} positions"
    return None


def _check(plan: Plan, model: nn.Module, method: str, image_size: int) -> None:
    """Raise unless exactly the planned units changed, to kernels of 1x1, and the copy still classifies an image."""
    changed = {change.unit for change in plan.changes if change.unit}
    targets = {unit.index for unit in plan.targets}
    if changed != targets:
        missed = ", ".join(unit.name for unit in plan.targets if unit.index not in changed)
        raise SurgeryError(
            f"{method} on {type(model).__name__}", found=f"{len(changed)} of {len(targets)} units changed"
            + (f" (not {missed})" if missed else ""), expected="all of them, and no other",
            cure="choose another method for these units",
        )
    if method in ("conv1x1", "gap_fc"):
        wide = [path for path, module in plan.model.named_modules() if module in plan.made
                and isinstance(module, nn.Conv2d) and tuple(module.weight.shape[2:]) != (1, 1)]
        if wide:
            raise SurgeryError(
                f"{method} on {wide[0]}", found="a kernel that still sees several positions", expected="one of 1x1",
                cure="use a plain nn.Conv2d there",
            )
    expected = plan.traced.shapes[plan.traced.nodes[-1].all_input_nodes[0]]
    try:
        found = output_shape(plan.model, image_size)
    except SpacelessError:
        raise
    except Exception as error:  # the network's own code runs here
        flattened = _flattened(plan.traced) if method == "gap_fc" else None
        raise SurgeryError(
            f"{method} on {type(model).__name__} with K = {len(targets)}",
            found=f"a head that reads a flattened map of {flattened}" if flattened else first_line(error),
            expected="one that pools it first" if flattened else "a network that still runs",
            cure="choose another method for this network" if flattened or len(targets) == 1 else
            "choose a smaller K or another method for this network",
        ) from error
    if found != expected:
        raise SurgeryError(
            f"{method} on {type(model).__name__}", found=f"output {found}", expected=f"output {expected}",
            cure="choose a smaller K or another method for this network",
        )
