"""Random damage to every kind of file that the scripts read.

    python -m tools.fuzz 1000 [seed]

Each mutation (bit flips, truncation, garbage, a doubled part, another kind of file) is one run of a script. It must
end well, or in one sentence that names the file (or the key, in YAML); never in a traceback, a hang, or above 4 GiB.
Where a kind of file carries checksums, ending well means the result of the file as it was. The count by kind and
outcome is printed at the end; a mutation that breaks a rule is kept in the folder that is named, and exit code is 1.
"""

import contextlib
import importlib
import io
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tests.toy import CONFIG, FAST, make_pairs
from utils.errors import run_script

LIMIT = 60  # seconds of one run
MEMORY = 4 << 30  # bytes
WAYS, OTHER = 7, 6  # of mutation; the one that puts another kind of file in its place


@dataclass
class Target:
    """A kind of file: the one to damage, the script that reads it, and where its result is if it has checksums."""

    path: Path
    words: list[str]
    result: Path | None = None


def prepare(root: Path) -> dict[str, Target]:
    """A toy set, its H5, texts and their encoder, a checkpoint and weights: every kind of file to damage."""
    from tests.test_text import save_bert

    make_pairs(root / "VLF", ["a1", "a2"], "train")
    make_pairs(root / "VLF", ["b1"], "test", size=(45, 53))
    make_pairs(root / "VLF", ["c1"], "train", dataset="Told")
    image, feature = root / "VLF" / "Image" / "IVF", root / "VLF" / "TextFeature" / "IVF"
    text = root / "VLF" / "Text" / "IVF" / "Told"
    shutil.rmtree(feature / "Told")
    for folder in ("IR", "VI"):
        (text / folder).mkdir(parents=True)
        (text / folder / "c1.txt").write_text("A warm car stands at the dark road.")
    rows = (f"{name}: {{task: IVF, a: IR, b: VI, color: [VI]}}\n" for name in ("Toy", "Told"))
    (root / "datasets.yaml").write_text("".join(rows))
    (root / "config.yaml").write_text(Path(CONFIG[1]).read_text())
    words = ["--config", f"{root}/config.yaml", f"data.root={root}/VLF", f"data.h5={root}/h5", "data.resize=null"]
    words += [f"data.datasets={root}/datasets.yaml", "data.train=[Toy_train]", "data.test=[Toy_test]", "device=cpu"]
    words += ["test.num_workers=0", "text.encoder=auto", f"text.path={save_bert(root / 'bert')}"]
    make = ["data_process", *words]
    train = ["train", *words, *FAST, f"train.exp={root}/exp", "train.epochs=1", "train.batch_size=1", "train.crop=16"]
    test = ["test", *words, f"test.output={root}/out", "--overwrite"]
    call(*make)
    call(*train)
    (last,) = (root / "exp").glob("*/model/last.pth")
    shutil.move(last, root / "w.pth")
    call("utils.export", f"{root}/w.safetensors", *words, f"ckpt={root}/w.pth")
    a, b = image / "Toy" / "IR" / "b1.png", image / "Toy" / "VI" / "b1.png"
    jpeg, tiff = root / "a.jpg", root / "a.tiff"
    for path in (jpeg, tiff):
        Image.open(a).convert("L").save(path)
    fused = root / "fused.png"
    own = [str(b), "-o", str(fused), f"ckpt={root}/w.pth", "device=cpu"]
    gray = root / "out" / "Toy" / "Gray" / "b1.png"
    return {
        "png": Target(a, ["fuse", str(a), *own], fused),
        "jpeg": Target(jpeg, ["fuse", str(jpeg), *own]),
        "tiff": Target(tiff, ["fuse", str(tiff), *own]),
        "npy": Target(feature / "Toy" / "a1.npy", [*make, "Toy_train"]),
        "text": Target(text / "IR" / "c1.txt", [*make, "Told_train"]),
        "split": Target(image / "Toy" / "train.txt", [*make, "Toy_train"]),
        "datasets": Target(root / "datasets.yaml", [*make, "Toy_test"]),
        "config": Target(root / "config.yaml", [*make, "Toy_test"]),
        "h5": Target(root / "h5" / "Toy_test.h5", [*test, f"ckpt={root}/w.pth"], gray),
        "h5-train": Target(root / "h5" / "Toy_train.h5", train),
        "pth": Target(root / "w.pth", [*test, f"ckpt={root}/w.pth"], gray),
        "safetensors": Target(root / "w.safetensors", [*test, f"ckpt={root}/w.safetensors"], gray),
    }


def mutate(content: bytes, way: int, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A damaged copy, in one of WAYS ways."""
    data = bytearray(content)
    match way:
        case 0:  # a few bits
            for place in rng.integers(0, len(data), rng.integers(1, 9)):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:  # near the start, where headers are
            for place in rng.integers(0, min(len(data), 256), rng.integers(1, 5)):
                data[place] = int(rng.integers(256))
        case 2:
            del data[rng.integers(len(data)) :]
        case 3:
            start = rng.integers(len(data))
            garbage = rng.integers(0, 256, rng.integers(1, 64), dtype=np.uint8).tobytes()
            data[start : start + len(garbage)] = garbage
        case 4:  # a part is gone, or there twice
            start, stop = sorted(rng.integers(0, len(data) + 1, 2))
            data[start:stop] = data[start:stop] * int(2 * rng.integers(2))
        case 5:
            data = bytearray(rng.integers(0, 256, rng.integers(0, 400), dtype=np.uint8).tobytes())
        case 6:  # OTHER
            data = bytearray(others[rng.integers(len(others))])
    return bytes(data)


def call(name: str, *words: str) -> tuple[int, str]:
    """Run a script in this process: exit code and what it printed; -1 and the traceback for what must not be."""
    printed, argv = io.StringIO(), sys.argv
    sys.argv = [name, *words]
    code = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            run_script(importlib.import_module(name).main)
    except SystemExit as stopped:
        code = 1 if stopped.code else 0
        printed.write(str(stopped.code or ""))
    except BaseException:
        return -1, traceback.format_exc()
    finally:
        sys.argv = argv
    return code, printed.getvalue()


class TooLong(BaseException):
    """No Exception, least of all an OSError: the scripts would make a sentence of it."""


def too_long(*_) -> None:
    raise TooLong(f"more than {LIMIT} s")


def same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def main(count: int, seed: int = 0) -> int:
    rng, outcomes, bad = np.random.default_rng(seed), Counter(), 0
    root = Path(tempfile.mkdtemp(prefix="fuzz"))
    targets = prepare(root)
    kept = {kind: target.path.read_bytes() for kind, target in targets.items()}
    right = {}
    for kind, target in targets.items():
        code, printed = call(*target.words)
        if code:
            sys.exit(f"{kind} fails as it is: {printed}")
        right[kind] = target.result and target.result.read_bytes()
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")
    for i in tqdm(range(count), unit="mutation"):
        kind = list(targets)[i % len(targets)]
        target, way = targets[kind], int(rng.integers(WAYS))
        damaged = mutate(kept[kind], way, rng, [kept[other] for other in kept if other != kind])
        target.path.write_bytes(damaged)
        if target.result:
            target.result.unlink(missing_ok=True)
        signal.alarm(LIMIT)
        code, printed = call(*target.words)
        signal.alarm(0)
        named = any(word in printed for word in (target.path.name, target.path.stem))
        if kind in ("config", "datasets"):
            named = (
                named
                or str(target.path.parent / "VLF") in printed
                or re.search(r"\b(net|loss|data|train|test|text|describe)\.\w+|\b\w+ is not a known key", printed)
            )
        wrong = code == 0 and way != OTHER and target.result and not same(target.result, right[kind])
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        good = not wrong and (code == 0 or (code == 1 and named and "Traceback" not in printed))
        outcomes[kind, "BAD" if not good else "refused" if code else "read"] += 1
        if not good or memory > MEMORY:
            bad += 1
            (root / f"bad-{i}-{target.path.name}").write_bytes(damaged)
            said = "another result" if wrong else printed.strip()[-600:]
            print(f"{i} {kind}, way {way}: exit {code}, {memory >> 20} MiB, {said}", flush=True)
        for other, untouched in targets.items():
            untouched.path.write_bytes(kept[other])
        shutil.rmtree(root / "exp", ignore_errors=True)
    for (kind, outcome), n in sorted(outcomes.items()):
        print(f"{kind:12} {outcome:8} {n}")
    print(f"{count} mutations, {bad} bad; {root}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
