"""Importing emitted packages from where they lie."""

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType


def import_package(path: Path) -> ModuleType:
    """Import the package in folder `path` under a name of its own.

    Two packages of one name, or two compilations of one spec, stay apart: the module's name carries
        a digest of the
    folder and of its manifest.
    """
    path = path.resolve()
    digest = sha256(str(path).encode() + (path / "manifest.json").read_bytes()).hexdigest()[:12]
    name = f"_vlmspec_{path.name.replace('.', '_')}_{digest}"  # a dot would name a package
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for key in [k for k in sys.modules if k == name or k.startswith(f"{name}.")]:
            del sys.modules[key]
        raise
    return module
