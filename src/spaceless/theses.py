"""The paper's claims, and for each the rule by which a setting confirms it, contradicts it or leaves it open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spaceless.rules_of_ablations import (
    channel_shuffle,
    clean_collapses,
    early_layers,
    field_beyond_image,
    shuffled_do_not_care,
    stride_hurts,
    stripping,
)
from spaceless.rules_of_k import alike, last_layers, no_augmentation, one_by_one, parameters
from spaceless.setting import Setting
from spaceless.verdict import Judged


@dataclass(frozen=True)
class Thesis:
    """One claim of the paper, where it stands, the experiments that test it, and the rule for a setting.

    The rule returns None where the setting holds nothing about it.
    """

    says: str
    source: str
    experiments: tuple[str, ...]
    judge: Callable[[Setting], Judged | None]


THESES = (
    Thesis("The last layers tolerate the loss of spatial information.", "section 4.1, Fig. 2",
           ("fig2-vgg16", "fig2-resnet50"), last_layers),
    Thesis("1x1 Conv is more robust to the loss than Shuffle Conv and GAP+FC.", "section 4.2, Fig. 2",
           ("fig2-vgg16", "fig2-resnet50"), one_by_one),
    Thesis("Shuffle Conv and GAP+FC perform alike.", "section 4.2, Fig. 2", ("fig2-vgg16", "fig2-resnet50"), alike),
    Thesis("A network trained as usual falls to a random guess when its last 3 layers are shuffled in the test.",
           "section 4.1, Table 2 left, Fig. 7", ("table2-left", "fig7-mismatch"), clean_collapses),
    Thesis("Trained with shuffling, whatever that costs, a network is as accurate in a test with a shuffle as without.",
           "section 4.1, Table 2 left, Fig. 7", ("table2-left", "fig7-mismatch"), shuffled_do_not_care),
    Thesis("GAP+FC and 1x1 Conv save parameters at no loss of accuracy.", "section 4.1, Table 1",
           ("fig2-vgg16", "table1"), parameters),
    Thesis("GAP+FC and 1x1 Conv gain more where images are not augmented (the paper: ResNet-50 alone).",
           "section 4.1, Table 2 right", ("table2-right",), no_augmentation),
    Thesis("For 1x1 Conv down-sampling by stride 2 is worse than by pooling (the paper: on Small-ImageNet).",
           "section A.1, Fig. 4", ("fig4-downsampling",), stride_hurts),
    Thesis("Shuffling a single layer harms the first layers most.", "section A.3, Fig. 6", ("fig6-single-layer",),
           early_layers),
    Thesis("Shuffling channels harms at once, unlike shuffling positions.", "section A.6, Fig. 10",
           ("fig10-channel-shuffle",), channel_shuffle),
    Thesis("The changed layers are needed: removing them costs accuracy (the paper: ResNet-50 on Small-ImageNet).",
           "section 4.4, Fig. 3 left", ("fig3-depth", "fig5-resnet50"), stripping),
    Thesis("The receptive field that accuracy needs is normally larger than the image.", "section 4.4, Fig. 3 right",
           ("fig3-receptive-field",), field_beyond_image),
)
