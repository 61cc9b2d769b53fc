"""The table of networks: what the check notices, what a row says, and the page."""

import json

import pytest
import torch
from torch import nn

from networks import SMALL, Classifier, Residual, StemLast, stem
from spaceless import cli
from spaceless.bench import network_check, networks
from spaceless.bench.network_check import check_network
from spaceless.bench.record import headed
from spaceless.surgery import remove_spatial


def double(size, batch=4):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("which", SMALL)
def test_everything_holds_for_a_users_own_network(which):
    units, verdicts = check_network(SMALL[which](), double(24))
    half = (len(units) + 1) // 2
    assert [(v.method, v.k) for v in verdicts] == [
        (method, k) for method in ("shuffle", "gap_fc", "conv1x1") for k in sorted({1, half, len(units)})]
    assert {v.status for v in verdicts} == {"holds"}, verdicts


def test_a_branch_that_starts_at_nought_is_awake():
    model = Classifier(stem(8), Residual(8, 8), channels=8)
    nn.init.zeros_(model.features[1].two.weight)
    nn.init.zeros_(model.features[1].two.bias)
    assert {v.status for v in check_network(model, double(16))[1]} == {"holds"}


def test_a_head_that_tells_positions_apart_is_said_to_do_so():
    model = nn.Sequential(stem(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 16, 5))
    found = {v.method: v for v in check_network(model, double(8))[1] if v.k == 1}
    assert found["conv1x1"].status == "head"
    assert found["conv1x1"].reason == "the head reads each of 16 positions of the last map"
    assert found["shuffle"].status == "holds"


def spoiled(change):
    def remove(model, method, k, **options):
        small, changes = remove_spatial(model, method, k, **options)
        return change(model, small, changes)

    return remove


class Sees(nn.Module):
    """A 3x3 average, so that positions count, that no list of convolutions knows."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        x = self.module(x)
        rows = torch.arange(x[0, 0].numel(), dtype=x.dtype).view(x.shape[2:])
        return x * (1 + rows)


def keep_the_last(model, small, changes):
    last = [change.path for change in changes if change.unit][-1]
    small.set_submodule(last, model.get_submodule(last))
    return small, changes


def see(_, small, changes):
    small.features[-1] = Sees(small.features[-1])
    return small, changes


def explode(_, small, changes):
    nn.init.constant_(small.head.weight, float("inf"))
    return small, changes


def cut(_, small, changes):
    small.head.requires_grad_(False)
    return small, changes


def widen(_, small, changes):
    small.head = nn.Linear(16, 5).double()
    return small, changes


@pytest.mark.parametrize(("change", "methods", "reason"), [
    (keep_the_last, {"shuffle", "conv1x1"}, ""), (see, {"conv1x1"}, "the order of the positions counts"),
    (explode, {"shuffle", "gap_fc", "conv1x1"}, "not finite"), (cut, {"shuffle", "gap_fc", "conv1x1"}, "gradient"),
    (widen, {"shuffle", "gap_fc", "conv1x1"}, "the output is"),
    (lambda _, small, changes: (small, changes[1:]), {"shuffle", "conv1x1"}, "other units changed")],
    ids=["a convolution kept", "positions are seen", "infinite", "no gradient", "another shape", "a change is hidden"])
def test_surgery_that_breaks_a_promise_is_noticed(monkeypatch, change, methods, reason):
    monkeypatch.setattr(network_check, "remove_spatial", spoiled(change))
    _, verdicts = check_network(SMALL["plain"](), double(16))
    first = [v for v in verdicts if v.k == 1]
    failed = {v.method for v in first if v.status == "fails"}
    assert methods <= failed, first
    assert all(reason in v.reason for v in first if v.method in methods)


def test_shuffle_that_does_not_shuffle_is_noticed(monkeypatch):
    monkeypatch.setattr(network_check, "_distance", lambda _one, _other: 0.0)
    _, verdicts = check_network(StemLast(), double(16))
    assert {v.reason for v in verdicts if v.method == "shuffle"} == {"_Fails: two passes give the same output"}
    assert {v.status for v in verdicts if v.method == "gap_fc"} == {"fails"}  # the unchanged network minds the order


def test_names_are_known_once_and_there_are_enough_of_them():
    found = networks.names()
    assert len({name for _, name, _ in found}) == len(found) >= 80
    assert len({family for family, _, _ in found}) >= 25
    assert all(name.startswith(("torchvision:", "timm:")) for family, name, _ in found if "paper" not in family)


def test_the_command_writes_record_and_page(tmp_path, capsys, monkeypatch):
    words = ["bench", "networks", "chain:8-M-8@16", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr("sys.argv", ["spaceless", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "networks.json").read_text())
    assert printed["summary"] == {"networks": 1, "families": 1, "fully_supported": 1, "share": 1.0, "failing": []}
    page = (tmp_path / "networks.md").read_text()
    assert "| `chain:8-M-8` | asked for | 16 | 2 | Conv2d | ✓ | ✓ | ✓ |" in page
    assert "`spaceless bench networks chain:8-M-8@16`" in page


def test_the_page_names_every_reason():
    def verdict(method, k, status, reason=None):
        return {"method": method, "k": k, "status": status, "reason": reason, "invariant": None}

    rows = [
        {"family": "f", "network": "a", "image_size": 9, "units": 4, "kind": "K", "refused": None, "verdicts": [
            verdict("shuffle", 1, "holds"), verdict("gap_fc", 1, "refused", "why"), verdict("gap_fc", 4, "holds"),
            verdict("conv1x1", 1, "fails", "bad"), verdict("conv1x1", 4, "fails", "bad")]},
        {"family": "g", "network": "b", "image_size": 9, "units": None, "refused": "cannot", "verdicts": []}]
    summary = networks.summary(rows)
    assert summary == {"networks": 2, "families": 2, "fully_supported": 0, "share": 0.0, "failing": ["a"]}
    page = networks.markdown(headed("networks", "cmd", {"summary": summary, "rows": rows}))
    assert "| `a` | f | 9 | 4 | K | ✓ | refused, ✓ | FAILS |" in page
    assert "| `b` | g | 9 | – | – | refused | refused | refused |" in page
    assert page.endswith("- `a`, gap_fc, K = 1: why\n- `a`, conv1x1, K = 1, 4: bad\n- `b`: cannot\n")
