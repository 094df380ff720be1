"""Fusion networks: `build_model(name, **options)` and `load_model(path, device)`.

Every file of this folder is imported, so a new file with a registered class is all a variant needs. A file
with a mistake in it is left out, with a note: it must not stop the other networks.
"""

import importlib
import pkgutil
import sys
import traceback

from net.base import BROKEN, NETWORKS, FusionNetwork, build_model, register
from net.checkpoint import load_model
from net.compute import configure_compute
from utils.loss import LOSSES

for _module in pkgutil.iter_modules(__path__):
    try:
        importlib.import_module(f"{__name__}.{_module.name}")
    except Exception as error:  # whatever code can raise
        _reason = traceback.format_exception_only(error)[-1].strip()
        BROKEN[_module.name] = f"net/{_module.name}.py cannot be imported ({_reason})"
        print(f"note: {BROKEN[_module.name]}; its networks are not there", file=sys.stderr)
        for _table in (NETWORKS, LOSSES):  # what was registered before the mistake
            for _name in [name for name, known in _table.items() if known.__module__ not in sys.modules]:
                del _table[_name]

__all__ = ["NETWORKS", "FusionNetwork", "build_model", "configure_compute", "load_model", "register"]
