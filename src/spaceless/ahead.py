"""Permutations of many training steps to come, drawn in one go, for steps that a GPU repeats from a recording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from spaceless.shuffle import Shuffle, draw_permutations

_STEPS, _NUMBERS = 16, 1 << 26  # that are drawn in one go, if they are no more numbers than that


class Ahead:
    """Places that the shuffles of a network read their permutations from, filled for one training step after another.

    What they hold is what each shuffle would draw by itself. A recorded step cannot draw: its seeds would never change.

    Args:
        layers: The shuffles of a network that has made a training step of the batch size to come.
        moves: Give each that can use it what the GPU's own kernel takes, `kernels.Moves`.

    """

    def __init__(self, layers: Sequence[Shuffle], *, moves: bool = False) -> None:
        """Reserve the places on the devices of the maps."""
        self.layers = list(layers)
        self.shapes = [layer.shape for layer in self.layers]
        self.moving = [moves and layer.plain for layer in self.layers]
        numbers = sum(layer.wanted("train", 0)[0] * layer.length for layer in self.layers)
        self.steps = max(1, min(_STEPS, _NUMBERS // max(1, numbers)))
        self.first, self.drawn = 0, [[torch.empty(0)]] * len(self.layers)
        self._draw(0)
        self.places = [[torch.empty_like(each[0]) for each in drawn] for drawn in self.drawn]

    def fill(self, step: int) -> None:
        """Put the permutations of training step `step` (from 0) into the places."""
        if not self.layers:
            return
        if not self.first <= step < self.first + self.steps:
            self._draw(step)
        torch._foreach_copy_([place for places in self.places for place in places],
                             [each[step - self.first] for drawn in self.drawn for each in drawn])

    def _draw(self, first: int) -> None:
        """Draw for the steps from `first` on: one sort for all maps of a size."""
        for layer, shape in zip(self.layers, self.shapes, strict=True):
            layer.shape = shape  # a pass of another size may have come between
        alike = defaultdict(list)
        for number, layer in enumerate(self.layers):
            alike[layer.length, self.moving[number]].append(number)
        for (length, moving), numbers in alike.items():
            layers = [self.layers[number] for number in numbers]
            wanted = [layer.wanted("train", step) for step in range(first, first + self.steps) for layer in layers]
            rows = [count for count, _ in wanted[:len(layers)]]
            sets = draw_permutations(wanted, length, layers[0].device).view(self.steps, sum(rows), length)
            kinds = [sets]
            if moving:
                order = torch.arange(length, device=sets.device).expand_as(sets)
                kinds = [each.transpose(1, 2).to(torch.int32)
                         for each in (sets, torch.empty_like(sets).scatter_(2, sets, order))]
            parts = zip(*(torch.split(each, rows, 2 if moving else 1) for each in kinds), strict=True)
            for number, layer, part in zip(numbers, layers, parts, strict=True):
                self.drawn[number] = [each.contiguous() for each in part] if moving else [
                    torch.stack([layer.arranged(each) for each in part[0]])]
        self.first = first

    def __enter__(self) -> Ahead:
        for layer, places, moving in zip(self.layers, self.places, self.moving, strict=True):
            layer.given = (places[0], places[1]) if moving else places[0]
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.given = None
