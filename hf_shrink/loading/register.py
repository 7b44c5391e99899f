"""Make ``from_pretrained`` know ``quant_method: hf_shrink``, without importing transformers for it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "transformers.quantizers.auto"


def register_when_needed() -> None:
    """Register now if transformers' table of quantisers is there, else as soon as it is. A second call changes nothing."""
    if _MODULE in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def register() -> None:
    """Put ``ShrinkConfig`` and ``ShrinkQuantizer`` into the tables of transformers; their module does it at its end.

    That module may itself be what is importing transformers just now. Then this import changes nothing and it goes on later.
    """
    importlib.import_module("hf_shrink.loading.quantizer")


class _AfterImport(MetaPathFinder):
    """Finds one module, the way the other finders do, and lets ``register`` run when its code has run."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = next((s for f in sys.meta_path if (s := f.find_spec(fullname, path, target)) is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        # On the instance: the module keeps its real loader, and with it its source in tracebacks.
        setattr(spec.loader, "exec_module", execute_and_register)  # noqa: B010
        return spec
