"""A start loads what it needs: torchvision comes without the compiler, which is there as soon as it is asked for."""

import json
import subprocess
import sys

from spaceless.imports import torchvision_models, without_compiler

PROGRAM = """
import json, sys
from spaceless.cli import main
sys.argv = ["spaceless", "inspect", "torchvision:resnet18", "--classes", "10", "--image-size", "32", "--json"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
before = sorted(name for name in sys.modules if name.startswith("torch._dynamo"))
import torchvision.ops.roi_align
place = sys.modules["torchvision.ops.roi_align"]
found = place.is_compile_supported("cpu")
import torch._dynamo.utils
same = found == torch._dynamo.utils.is_compile_supported("cpu")
compiled = torch.compile(torch.nn.ReLU(), backend="eager")(torch.tensor([-1.0, 2.0])).tolist()
print(json.dumps([before, same, type(sys.modules["torch._dynamo.utils"]).__name__, compiled]))
"""


def test_a_network_is_inspected_without_the_compiler_which_answers_when_it_is_called():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], True, "module", [0.0, 2.0]]


def test_where_it_is_loaded_already_nothing_stands_in_for_anything(monkeypatch):
    import torchvision

    monkeypatch.setattr("spaceless.imports._Deferred", None)
    assert torchvision_models() is torchvision.models


def test_within_it_nothing_stands_in_for_a_compiler_that_is_loaded():
    import torch._dynamo

    with without_compiler():
        assert sys.modules["torch._dynamo"] is torch._dynamo
        assert hasattr(torch._dynamo, "optimize")
