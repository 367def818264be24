"""Keep the repository root off `sys.path`, so that tests see the installed package.

The root has folders named `compiler` and `kernels`. With the root importable, `import kernels`
would find ours in place of the package of that name, which transformers probes for.
"""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent


def _is_root(entry: str) -> bool:
    return entry == "" or Path(os.path.realpath(entry)) == _ROOT


sys.path[:] = [entry for entry in sys.path if not _is_root(entry)]
