"""The process that reads damaged sets, one after the other, and tells of each what became of it before the next."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from spaceless.bench.faults.form import Form, MalformedError, RefusedError, in_form
from spaceless.bench.faults.mutants import form_of, mutant, randomness
from spaceless.bench.faults.payloads import fragments
from spaceless.errors import SpacelessError

# Nothing of these belongs to reading a file: the first is raised whenever Python's unpickler looks up a name.
_FORBIDDEN = (
    "pickle.find_class", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "webbrowser.open",
)
_WRITING = os.O_WRONLY | os.O_RDWR
_GUARD = 4  # times the bound: where the system itself refuses memory, so that a bomb does not take down the machine


class Limits(NamedTuple):
    """Bytes of memory, above those that there were before, and seconds for one set."""

    memory: int
    seconds: float


class Begun(NamedTuple):
    """A damaged set lies there and is about to be read; `what` was done to it."""

    number: int
    form: str
    what: str


class Ended(NamedTuple):
    """What became of it. `fault` is the broken promise (empty: none), `growth` the bytes of memory."""

    number: int
    form: str
    accepted: bool
    fault: str
    detail: str
    seconds: float
    growth: int


class _Watch:
    """Notes whatever the interpreter does that no reader may do; an audit hook cannot be taken off again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on = str(folder), False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments[:2]!r}"[:200])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
            if path and not os.path.realpath(path).startswith(self.folder):
                self.seen.append(f"opened for writing: {path!r}"[:200])


def work(
    connection: Connection, forms: Sequence[Form], seed: int, numbers: Sequence[int], limits: Limits, parent: str,
) -> None:
    """Read the sets of mutations `numbers`; send which sound sets are refused, then `Begun` and `Ended` for each.

    They lie in a new folder in `parent`, which whoever started this process removes: it may not live to do so.

    The parent is told in a tuple of texts what is wrong before or between the sets.

    It ends early after a set that took too much memory: with what is left of that the next would need no more.
    """
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    room = Path(tempfile.mkdtemp(dir=os.path.realpath(parent)))
    os.environ |= dict.fromkeys(("XDG_CACHE_HOME", "HOME"), str(room / "cache"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # decoders in C complain there
    try:
        _work(connection, forms, seed, numbers, limits, room)
    except Exception:  # a fault of ours, not of a reader
        connection.send((traceback.format_exc(),))
        raise


def _work(
    connection: Connection, forms: Sequence[Form], seed: int, numbers: Sequence[int], limits: Limits, room: Path,
) -> None:
    canaries = room / "canaries"
    canaries.mkdir()
    calls = fragments(canaries / "sung")
    watch = _Watch(room)
    sounds = {form.name: form.make() for form in forms}
    folders = {form.name: room / f"{i}" for i, form in enumerate(forms)}
    refused = []
    for form in forms:  # this imports whatever a form needs, and shows that a refusal later is for the damage
        sound, folder = sounds[form.name], folders[form.name]
        _put(folder, sound.files)
        accepted, fault, detail = _verdict(form, folder / sound.path)
        if fault or not accepted:
            refused.append(f"{form.name}: a sound one is refused ({fault or 'an error in form'} {detail})")
        _put(folder, sound.files, afresh=form.anew)
    _guard(_GUARD * limits.memory)
    connection.send(tuple(refused))
    for number in numbers:
        random = randomness(seed, number)
        form = form_of(random, forms)
        sound, folder = sounds[form.name], folders[form.name]
        made = mutant(random, form, sound, calls)
        _put(folder, made.files, afresh=len(made.files) == len(sound.files))
        connection.send(Begun(number, form.name, made.what))
        _new_peak()
        before = _peak()
        watch.on, begun = True, time.perf_counter()
        accepted, fault, detail = _verdict(form, folder / sound.path)
        seconds, watch.on = time.perf_counter() - begun, False
        growth = _peak() - before
        if watch.seen or any(canaries.iterdir()):
            fault, detail = "code executed", "; ".join(watch.seen) or "the canary was created"
            watch.seen.clear()
            shutil.rmtree(canaries)
            canaries.mkdir()
        elif growth > limits.memory:
            fault, detail = "too much memory", f"{growth / 1e6:,.0f} MB"
        elif not fault and seconds > limits.seconds:
            fault, detail = "too slow", f"{seconds:.1f} s"
        connection.send(Ended(number, form.name, accepted, fault, detail, seconds, growth))
        if growth > limits.memory:
            return
        _put(folder, {name: sound.files[name] for name in made.files if name in sound.files}, afresh=form.anew)
        if form.anew:
            _put(folder, sound.files)
        shutil.rmtree(room / "cache", ignore_errors=True)


def _put(folder: Path, files: Mapping[str, bytes], *, afresh: bool = False) -> None:
    """Write `files` into `folder`; `afresh`: and nothing else is in it then."""
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _verdict(form: Form, path: Path) -> tuple[bool, str, str]:
    """Return whether the set was accepted, which promise was broken (empty: none) and how."""
    try:
        form.read(path)
    except RefusedError:
        return False, "", ""
    except SpacelessError as error:
        return False, *(("", "") if in_form(str(error)) else ("a message that is none", str(error)[:200]))
    except MalformedError as error:
        return True, "malformed result", str(error)[:200]
    except MemoryError as error:
        return False, "too much memory", f"MemoryError: {error}{_where(error)}"[:200]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return False, "other exception", f"{type(error).__name__}: {str(error)[:120]}{_where(error)}"
    return True, "", ""


def _where(error: BaseException) -> str:
    """Return the last line of ours that an error came by."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}spaceless{os.sep}" in frame.filename]
    return f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""


def _peak() -> int:
    """Return the most bytes of memory that this process had at once, since `_new_peak` where the system tells."""
    with suppress(OSError):  # of another process's memory, before it became this one, only this number knows nothing
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _new_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _guard(room: int) -> None:
    """Let the system refuse more than `room` further bytes, and write no cores."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))
