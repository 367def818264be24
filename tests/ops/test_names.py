"""Two records of one name would hide each other."""

import importlib
import pkgutil
from collections import Counter

from vlmspec.compiler import ops
from vlmspec.compiler.ops.registry import ModuleKind, Op, StepKind


def test_no_two_records_have_one_name() -> None:
    found = {}
    for module in pkgutil.iter_modules(ops.__path__):
        for value in vars(importlib.import_module(f"{ops.__name__}.{module.name}")).values():
            if isinstance(value, (ModuleKind, Op, StepKind)):
                found[id(value)] = (type(value).__name__, value.name)
    assert len(found) > 100
    assert not [name for name, count in Counter(found.values()).items() if count > 1]
