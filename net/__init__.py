"""Fusion networks: `build_model(name, **options)` and `load_model(path, device)`.

Every module of this folder is imported, so a new file with a registered class is all a variant needs.
"""

import importlib
import pkgutil

from net.checkpoint import load_model
from net.registry import NETWORKS, build_model, register
from net.restormer import prepare

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["NETWORKS", "build_model", "load_model", "prepare", "register"]
