"""Permutations of many training steps to come, drawn in one go: a sort for each size of maps, not one for each layer.

A GPU repeats a step from a recording, which cannot draw at all. A CPU saves the calls, thirteen layers' in each step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from spaceless.shuffle import LONGEST, Places, Shuffle, draw_permutations, places_of

STEPS = 16  # that are drawn in one go, if they are no more numbers than that, of 8 bytes:
_ON_A_CPU, _ELSEWHERE = 1 << 22, 1 << 26  # a CPU gains only where maps are small


class Ahead:
    """What the shuffles of a network take in place of drawing by themselves, for one training step after another.

    It is what each shuffle would draw by itself, and lies at the same places in memory for every step: a recorded step
    reads them there. Where each channel has a permutation of its own, all of the work on it is done for many steps
    together: a shuffle gets `Places`, or what the GPU's own kernel takes; else it gets its permutations.

    Args:
        layers: The shuffles of a network that has made a training step of the batch size to come.
        moves: Give each that can use it what the GPU's own kernel takes, see `kernels.permute`.

    """

    def __init__(self, layers: Sequence[Shuffle], *, moves: bool = False) -> None:
        """Reserve the places on the devices of the maps."""
        self.layers, self.moves = list(layers), moves
        self.seen = [(layer.shape, layer.layout) for layer in self.layers]
        numbers = sum(layer.wanted("train", 0)[0] * layer.length for layer in self.layers)
        most = _ON_A_CPU if all(layer.device.type == "cpu" for layer in self.layers) else _ELSEWHERE
        self.steps = max(1, min(STEPS, most // max(1, numbers)))
        self.first, self.drawn = 0, [[torch.empty(0)]] * len(self.layers)
        self._draw(0)
        self.places = [[torch.empty_like(each[0]) for each in drawn] for drawn in self.drawn]

    def fill(self, step: int) -> None:
        """Put what training step `step` (from 0) takes into the places."""
        if not self.layers:
            return
        if not self.first <= step < self.first + self.steps:
            self._draw(step)
        torch._foreach_copy_([place for places in self.places for place in places],
                             [each[step - self.first] for drawn in self.drawn for each in drawn])

    def _draw(self, first: int) -> None:
        """Draw for the steps from `first` on: one sort for all maps of a size."""
        for layer, (shape, layout) in zip(self.layers, self.seen, strict=True):
            layer.shape, layer.layout = shape, layout  # a pass of another size may have come between
        alike = defaultdict(list)
        for number, layer in enumerate(self.layers):
            alike[layer.length, layer.plain, layer.source].append(number)
        for (length, plain, source), numbers in alike.items():
            layers = [self.layers[number] for number in numbers]
            wanted = [layer.wanted("train", step) for step in range(first, first + self.steps) for layer in layers]
            rows = [count for count, _ in wanted[:len(layers)]]
            sets = draw_permutations(wanted, length, source).to(layers[0].device)
            sets = sets.view(self.steps, sum(rows), length)
            if plain and self.moves and length <= LONGEST:
                order = torch.arange(length, device=sets.device).expand_as(sets)
                both = [each.transpose(1, 2).to(torch.int32)
                        for each in (sets, torch.empty_like(sets).scatter_(2, sets, order))]
                parts = zip(*(torch.split(each, rows, 2) for each in both), strict=True)
                for number, part in zip(numbers, parts, strict=True):
                    self.drawn[number] = [each.contiguous() for each in part]
                continue
            for number, layer, one in zip(numbers, layers, torch.split(sets, rows, 1), strict=True):
                self.drawn[number] = [
                    places_of(one, layer.shape[1], layer.layout)[:, None] if plain else
                    torch.stack([layer.arranged(each) for each in one])]
        self.first = first

    def __enter__(self) -> Ahead:
        for layer, places in zip(self.layers, self.places, strict=True):
            if len(places) > 1:  # permutations and their inverses
                layer.given = (places[0], places[1])
            else:
                layer.given = Places(places[0], layer.layout) if layer.plain else places[0]
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.given = None
