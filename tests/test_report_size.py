"""Two thousand outcomes: how long their page takes and how large it is."""

import time

from made_outcomes import manifest, outcome, store
from spaceless.report import write_report
from spaceless.trial import Change, Epoch

MODELS = ("vgg16", "resnet50", "mobilenet_v2", "squeezenet1_0", "chain:8-8")
SETS = ("one", "two", "three", "four")


HISTORY = tuple(Epoch(epoch=i, loss=2.0, top1=50.0, learning_rate=0.1, seconds=9.0, images_per_second=5e3)
                for i in range(30))


def _changes(k):
    return tuple(
        Change(unit=13 - i, path=f"features.{13 - i}", before="Conv2d 512->512 3x3", after="Conv2d 512->512 1x1")
        for i in range(k))


def test_two_thousand_outcomes_are_one_page_in_seconds(tmp_path):
    made = []
    for model in MODELS:
        for data in SETS:
            for seed in range(5):
                made.append(outcome(model=model, data=data, seed=seed, top1=74.0 + seed / 10))
                made += [
                    outcome(method, k, model=model, data=data, seed=seed, top1=74.0 - k + seed / 7,
                            params=34_000_000 - 1_000_000 * k)
                    for method, ks in (("shuffle", 7), ("gap_fc", 6), ("conv1x1", 6)) for k in range(1, ks + 1)
                ]
    made = [o.model_copy(update={"changes": _changes(o.trial.k), "history": HISTORY}) for o in made]
    assert len(made) == 2000
    store(tmp_path, *made)
    for data in SETS:
        manifest(tmp_path, data, [o for o in made if o.trial.data == data])
    start = time.process_time()
    page = write_report([tmp_path])
    seconds, size = time.process_time() - start, page.stat().st_size
    print(f"{seconds:.1f} s of processor time, {size / 1e6:.1f} MB")
    assert size < 5e6
    assert seconds < 20  # 10 s where nothing else runs: processors of a test machine are shared
