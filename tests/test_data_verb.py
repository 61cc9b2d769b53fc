"""The verb `data`: options that would change nothing are refused."""

import numpy as np
import pytest

from commands import Commands, is_an_error
from spaceless.errors import InputError
from spaceless.show import one_data_set


@pytest.fixture
def root(tmp_path):
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return tmp_path


@pytest.mark.parametrize(("name", "options", "says"), [
    ("set", {"image_size": -3}, "--image-size: found -3"),
    ("set", {"image_size": 0, "verify": True}, "--image-size: found 0"),
    ("set", {"image_size": 8}, "found no --verify"),
    ("texture", {"image_size": 9}, "data texture: found --image-size"),
    ("texture", {"image_size": 9, "verify": True}, "data texture: found --verify and --image-size"),
    ("arrangement-8", {"download": True}, "data arrangement-8: found --download"),
    ("texture", {"verify": True, "download": True}, "found --verify and --download"),
])
def test_options_that_change_nothing_are_refused(name, options, says, root, capsys):
    given = {"verify": False, "download": False, "image_size": None, **options}
    with pytest.raises(InputError) as caught:
        one_data_set(name, root, **given, as_json=False)
    assert says in str(caught.value) and caught.value.exit_status == 2
    assert capsys.readouterr().out == ""


def test_options_that_do_something_are_taken(root, capsys):
    one_data_set("set", root, verify=True, download=False, image_size=4, as_json=False)
    assert "2 classes, 4 x 4 pixels" in capsys.readouterr().out


def test_the_command_ends_as_other_verbs_do(root, capsys, monkeypatch):
    spaceless = Commands(root, monkeypatch, capsys)
    is_an_error(*spaceless("data", "set", "--data-root", root, "--image-size", "-3"))
    is_an_error(*spaceless("data", "texture", "--verify", "--image-size", 9))
    is_an_error(*spaceless("data", "arrangement-8", "--download"))
