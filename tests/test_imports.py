"""A start loads what it needs: torchvision comes without the compiler, which is there as soon as it is asked for."""

import json
import subprocess
import sys

BUILT = """
import json, sys
{first}
from spaceless.models import build_model
build_model("chain:4-M-8", 10, 32)
before = sorted(name for name in sys.modules if name.startswith("torch._dynamo"))
import torchvision.ops.roi_align
place = sys.modules["torchvision.ops.roi_align"]
found = place.is_compile_supported("cpu")
import torch._dynamo.utils
same = found == torch._dynamo.utils.is_compile_supported("cpu")
compiled = torch.compile(torch.nn.ReLU(), backend="eager")(torch.tensor([-1.0, 2.0])).tolist()
print(json.dumps([before, same, type(sys.modules["torch._dynamo.utils"]).__name__, compiled]))
"""


def told(first):
    done = subprocess.run([sys.executable, "-c", BUILT.format(first=first)], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_network_is_built_without_the_compiler_which_answers_when_it_is_called():
    assert told("") == [[], True, "module", [0.0, 2.0]]


def test_where_the_compiler_is_there_already_nothing_stands_in_for_it():
    before, *rest = told("import torch._dynamo")
    assert "torch._dynamo.utils" in before
    assert rest == [True, "module", [0.0, 2.0]]
