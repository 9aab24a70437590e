"""Load a program, inside of the interpreter that is looked at."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader


def load(path):
    """The module made of a source file, its body executed."""
    name = path.rpartition('/')[2].removesuffix('.py')
    loader = SourceFileLoader(name, path)
    module = module_from_spec(spec_from_loader(name, loader))
    sys.modules[name] = module      # pickle looks there
    loader.exec_module(module)
    return module
