"""The command beside a trial runs that very trial."""

import shlex

import pytest

from spaceless import cli, work
from spaceless.commands import train_command, train_commands
from spaceless.trial import RECIPES, ShuffleOptions, Trial

FAST = RECIPES["fast"].model_copy(update={"epochs": 3, "batch_size": 32, "augment": "none", "precision": "fp32"})
TRIALS = [
    Trial(model="vgg16", data="cifar100"),
    Trial(model="vgg16", data="my images/it's", method="conv1x1", k=5, downsample="max", seed=3),
    Trial(model="resnet50", data="cifar100", method="shuffle", only=4, width=0.25, repeats=20),
    Trial(model="vgg16", data="cifar100", width=1 / 3, holdout=0.1),
    Trial(model="timm:resnet18", data="x.npz", method="gap_fc", k=2, recipe=FAST, image_size=64),
    Trial(model="chain:8-M-8", data="texture", method="conv1x1", k=2, strip=1, recipe=RECIPES["control"],
          train_images=100, test_images=50),
    Trial(model="vgg16", data="cifar100", method="shuffle", k=1,
          shuffle=ShuffleOptions(per_image=True, shared=True, fixed=True, patch=2)),
]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.label)
def test_the_command_line_understands_it_as_the_same_trial(trial, monkeypatch):
    class Stop(Exception):
        pass

    def run(plan, *_):
        assert [p.trial for p in plan.planned] == [trial]
        raise Stop

    monkeypatch.setattr(work, "run", run)
    program, *words = shlex.split(train_command(trial))
    assert program == "spaceless"
    with pytest.raises(Stop):
        cli.app(words, exit_on_error=False, print_error=False)


def test_what_is_usual_is_not_said():
    assert train_command(TRIALS[0]) == "spaceless train --model vgg16 --data cifar100"


def test_a_recipe_that_train_cannot_be_told_has_no_command():
    own = RECIPES["fast"].model_copy(update={"momentum": 0.5})
    strange = Trial(model="vgg16", data="cifar100", recipe=own)
    assert train_command(strange) is None
    assert train_commands([strange, TRIALS[0]]) == (
        train_command(TRIALS[0]), "# and 1 more, of recipes of their own or too many to list")
    assert len(train_commands([t.model_copy(update={"seed": s}) for s in range(99) for t in TRIALS[:1]])) == 41
