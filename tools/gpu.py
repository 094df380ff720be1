"""Everything worth knowing about a CUDA machine, in one run of under eight minutes.

    python -m tools.gpu                             every section: the table, and gpu.json
    python -m tools.gpu networks bench              some of them
    python -m tools.gpu --minutes 20 --out h100.json

A row is one number, with its limit if it has one: ok or FAIL. Speed and memory have an aim in place of a limit, and
ok says that it is reached. A check that raises an error is a row that fails. The file has the same rows, and is
written anew after every check, so that a run that is cut off loses nothing. What time is too short for is listed as
"not reached". The exit status is 1 if a row failed; without CUDA nothing is done, and it is 0.
"""

import argparse
import faulthandler
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from net import configure_compute
from tools import gpu_checks, gpu_speed
from tools.gpu_checks import Check, Machine, Row, free_memory
from utils.files import to_json, write_file
from utils.process import set_up_process

# what is worth most comes first: the last ones are not reached where time is short
SECTIONS: dict[str, Callable[[Machine], Iterator[Check]]] = {
    "device": gpu_checks.device_facts,
    "networks": gpu_checks.networks,
    "training": gpu_checks.training,
    "metrics": gpu_checks.metrics,
    "ceilings": gpu_speed.ceilings,
    "bench": gpu_speed.bench,
    "recipe": gpu_speed.recipe,
    "memory": gpu_speed.memory,
    "files": gpu_speed.files,
    "resume": gpu_checks.resume,
    "compile": gpu_speed.compiled,
    "layout": gpu_speed.layout,
}
MAY_NOT_FIT = {"bench", "recipe", "memory", "compile", "layout"}  # sections with maps of real sizes


class Report:
    """The rows so far: printed as they come, and in a file.

    Args:
        path: the JSON.
        minutes: when `late` becomes true, but for a tenth that the last check may take.
    """

    def __init__(self, path: Path, minutes: float):
        self.path, self.start, self.budget = path, time.monotonic(), 60 * minutes
        self.rows: list[dict] = []
        print(f"{'section':<10} {'check':<58} {'value':>14} {'unit':<10} {'limit':<10} verdict", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def failed(self) -> int:
        return sum(row["verdict"] == "FAIL" for row in self.rows)

    def late(self) -> bool:
        return self.seconds >= 0.9 * self.budget

    def add(self, section: str, title: str, row: Row, detail: str = "") -> None:
        """Print a row and keep it; `detail` is for the file alone."""
        name = f"{title}: {row.name}" if row.name else title
        value = f"{row.value:.4g}" if isinstance(row.value, float) else str(row.value)
        print(f"{section:<10} {name:<58} {value:>14} {row.unit:<10} {row.limit:<10} {row.verdict}", flush=True)
        kept = {"section": section, "check": title, **row._asdict(), "at": round(self.seconds, 1)}
        self.rows.append(kept | ({"detail": detail} if detail else {}))

    def write(self, finished: bool = False) -> None:
        content = {"finished": finished, "seconds": self.seconds, "failed": self.failed, "rows": self.rows}
        write_file(self.path, to_json(content, indent=1) + "\n")


def run_check(section: str, title: str, call: Callable[[], list[Row]], report: Report) -> None:
    """Call a check and add its rows."""
    set_up_process()  # float32 in full, where a check does not say otherwise
    configure_compute()
    try:
        for row in call():
            report.add(section, title, row)
    except Exception as error:  # whatever a check can raise
        expected = isinstance(error, torch.OutOfMemoryError) and section in MAY_NOT_FIT
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())[-160:]}"
        row = Row("", "out of memory") if expected else Row("", sentence, verdict="FAIL")
        report.add(section, title, row, traceback.format_exc())
    report.write()
    free_memory()


def run(machine: Machine, sections: list[str], report: Report) -> int:
    """Run the checks of some sections; how many were not reached."""
    left = 0
    for section in sections:
        for title, call in SECTIONS[section](machine):
            if report.late():
                left += 1
                report.add(section, title, Row("", "not reached"))
            else:
                run_check(section, title, call, report)
    report.write(finished=True)
    return left


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all if none is named")
    parser.add_argument("--minutes", type=float, default=8, help="what the run may take")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON")
    parser.add_argument("--rehearse", action="store_true", help="the CPU in place of a GPU, tiny sizes, not compiled")
    args = parser.parse_args(words)
    if not (args.rehearse or torch.cuda.is_available()):
        print("skipped: this machine has no GPU that PyTorch can use")
        return 0
    report = Report(args.out, args.minutes)
    machine = Machine(torch.device("cpu" if args.rehearse else "cuda"), args.rehearse)
    # ends a check that hangs, and shows where
    faulthandler.dump_traceback_later(60 * args.minutes + 60, exit=True, file=sys.__stderr__)
    # what is compiled more often than PyTorch allows would go on uncompiled, without a word
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        left = run(machine, args.sections or list(SECTIONS), report)
    faulthandler.cancel_dump_traceback_later()
    print(f"{len(report.rows) - left} rows in {report.seconds:.0f} s, {report.failed} failed, {left} not reached")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
