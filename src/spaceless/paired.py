"""How sure a difference of two accuracies is when both networks were tested on the same images, and over seeds."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaceless.errors import InputError

Right = NDArray[np.bool_]


def packed(right: Any) -> str:
    """Return a sequence of truths, one per image, as text: eight images to a byte, in base 64."""
    return base64.b64encode(np.packbits(np.asarray(right, dtype=bool)).tobytes()).decode()


def unpacked(text: str, images: int) -> Right:
    """Return the truths that `packed` made of those of `images` images, bool (images,).

    Raises:
        InputError: The text is none of `packed`, or of another number of images.

    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _other(f"{type(error).__name__}: {error}", images) from error
    if len(content) != -(-images // 8):
        raise _other(f"{8 * len(content)} of them", images)
    return np.unpackbits(np.frombuffer(content, np.uint8), count=images).astype(bool)


def _other(found: str, images: int) -> InputError:
    return InputError(
        "right", found=found, expected=f"the truths of {images} images, packed",
        cure="remove this trial's folder and run it again",
    )


@dataclass(frozen=True)
class Paired:
    """The interval of a difference of accuracies in percentage points, changed minus base.

    Each end by itself is passed with the chance 1 - confidence. Of a single pair of trainings, what another seed would
    give is not in the interval.
    """

    difference: float
    low: float
    high: float


def paired_interval(base: Sequence[Right], changed: Sequence[Right], confidence: float) -> Paired:
    """Return the interval of the accuracy of `changed` minus that of `base`, by images and by seeds.

    The differences of single images (-1, 0 or 1) are taken apart into an effect of the image, one of the seed and a
    rest, as in an analysis of variance with two crossed factors. The variance of their mean is
    (MS_image + MS_seed - MS_rest) / (images x seeds), never less than MS_image alone, with as many degrees of freedom
    as Satterthwaite (1946) gives it; for a single seed that is McNemar's variance. One more image gained and one more
    lost, each by half, keep it from being zero (Agresti & Min 2005, "Simple improved confidence intervals for comparing
    matched proportions").

    Args:
        base: For each seed whether each image was right, bool (N,).
        changed: The same of the other network, seeds and images in the same order.
        confidence: Of each end by itself, from 0.5, where both ends are the difference itself, to below 1.

    """
    signs = np.stack(changed).astype(float) - np.stack(base).astype(float)  # (seeds, images)
    seeds, images = signs.shape
    mean, by_image, by_seed = signs.mean(), signs.mean(0), signs.mean(1)
    of_images = (seeds * float(((by_image - mean) ** 2).sum()) + seeds) / (images + 1)
    variance, freedom = of_images, images + 1.0
    if seeds > 1:
        of_seeds = images * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
        rest = signs - by_image - by_seed[:, None] + mean
        of_rest = float((rest**2).sum()) / ((seeds - 1) * max(1, images - 1))
        if of_seeds > of_rest:
            variance = of_images + of_seeds - of_rest
            freedom = variance**2 / (of_images**2 / (images + 1) + of_seeds**2 / (seeds - 1)
                                     + of_rest**2 / ((seeds - 1) * max(1, images - 1)))
    half = student(confidence, max(1.0, freedom)) * math.sqrt(variance / ((images + 2) * seeds))
    return Paired(100 * float(mean), 100 * (float(mean) - half), 100 * (float(mean) + half))


def student(confidence: float, freedom: float) -> float:
    """Return the quantile of Student's t that is not passed with the chance `confidence`, from 0.5 to below 1.

    `freedom` is from 1 on, whole or not. From 3 on by Hill 1970, "Algorithm 396: Student's t-quantiles",
    Communications of the ACM 13, which is off by up to 23 % below 2: there the density itself is integrated.
    """
    tails = 2 * (1 - confidence)
    if tails >= 1:
        return 0.0
    if freedom > 1e6:
        return NormalDist().inv_cdf(confidence)
    n = freedom
    if n < 3:
        return _heavy_tailed(1 - confidence, n)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * tails) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tails / 2)
        y = x**2
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y**2)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
            n + 2) + 1 / y
    return math.sqrt(n * y)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def _heavy_tailed(above: float, freedom: float) -> float:
    """Return the t that is passed with the chance `above`, for few degrees of freedom.

    With t = sqrt(n) / tan(a) the chance is an integral of sin(s)^(n - 1) from 0 to a; over u = s^n / n what is left of
    it, (sin(s) / s)^(n - 1), is smooth.
    """
    n = freedom
    scale = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(math.pi)

    def chance(angle: float) -> float:
        part = math.pow(angle, n) / n
        s = (n * part * (_NODES + 1) / 2) ** (1 / n)
        return scale * part / 2 * float((_WEIGHTS * (np.sin(s) / s) ** (n - 1)).sum())

    low, high = 0.0, math.pi / 2
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < above else (low, middle)
    return math.sqrt(n) / math.tan(high)
