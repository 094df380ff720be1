"""Fusion networks: `build_model(name, **options)` and `load_model(path, device)`.

Every file of this folder is imported, so a new file with a registered class or function is all that a network, a
loss, a metric or a guide needs. A file with a mistake in it is left out, with a note: it must not stop the others.
"""

import importlib
import pkgutil
import sys
import traceback
from pathlib import Path

from net.base import NETWORKS, FusionNetwork, build_model, register
from net.checkpoint import load_model
from net.compute import configure_compute
from utils.loss import LOSSES
from utils.metrics import METRICS
from utils.registry import BROKEN

for _module in pkgutil.iter_modules(__path__):
    try:
        importlib.import_module(f"{__name__}.{_module.name}")
    except Exception as error:  # whatever code can raise
        _reason = traceback.format_exception_only(error)[-1].strip()
        _line = getattr(error, "lineno", None) or "?"  # of a file that cannot be parsed, which has no frame
        for _frame in traceback.extract_tb(error.__traceback__):
            _line = _frame.lineno if Path(_frame.filename) == Path(__path__[0], f"{_module.name}.py") else _line
        BROKEN[_module.name] = f"net/{_module.name}.py, line {_line}, cannot be imported ({_reason})"
        print(f"note: {BROKEN[_module.name]}; what it registers is not there", file=sys.stderr)
        for _table in (NETWORKS, LOSSES, METRICS):  # what was registered before the mistake
            for _name in [name for name, known in _table.items() if known.__module__ not in sys.modules]:
                del _table[_name]

__all__ = ["NETWORKS", "FusionNetwork", "build_model", "configure_compute", "load_model", "register"]
