"""How the house is built: folders import downwards only, nobody imports a command, torch stays where it belongs.

Every rule reads sources, not what happens to be loaded: imports inside functions and under `if TYPE_CHECKING:` count as
well. So a rule can be tried on a few lines, which the second half of this file does.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]

Sources = Mapping[str, str]
"""Text of files, by their path below ROOT, written with slashes."""

Rule = Callable[[Sources], list[str]]
"""Returns who breaks it, one line each."""

BELOW = {
    "ribsr": (),
    "plugins": ("ribsr",),
    "engines": ("plugins", "ribsr"),
    "export": ("engines", "plugins", "ribsr"),
    "tools": ("export", "engines", "plugins", "ribsr"),
}
"""The product's folders, and what each may import besides itself."""

FOLDERS = (*BELOW, "tests")

TORCH = (
    "ribsr/",
    "export/",
    "engines/pytorch.py",
    "plugins/modules.py",
    "plugins/pytorch.py",
    "plugins/testing.py",
    "tools/_authors.py",
    "tools/_timing.py",
    "tools/beside_authors.py",
    "tools/kernel_benchmark.py",
    "tools/train_speed.py",
)
"""Files and folders that may import torch, but for those of NO_TORCH; the tools are those that time PyTorch."""

NO_TORCH = (
    "ribsr/base/",
    "ribsr/benchmark.py",
    "ribsr/bundled.py",
    "ribsr/configs.py",
    "ribsr/metrics.py",
    "ribsr/resize.py",
    "ribsr/training/recipe.py",
    "ribsr/training/report.py",
    "ribsr/work.py",
    "export/trt/",
    "export/__init__.py",
    "export/cyclic_window.py",
    "export/lower.py",
    "export/onnx.py",
    "export/precision.py",
)

TORCH_WHEN_CALLED = ("plugins/operators.py",)
"""May import torch where importing the file does not run it: in functions, and for type checkers."""

NAMED_BY_USERS = ("export/onnx.py", "ribsr/spandrel.py")
"""`python -m export.onnx` and `import ribsr.spandrel` are what people type; no script is started in these folders."""

STARTS, NAMES_ALL = "ribsr/cli.py", "tools/cli.py"
"""The command `ribsr`: the first file may name the second, whose table names all commands; each when it is called."""

LONGEST = 62
"""Lines of the longest function. Make it smaller when you can."""


@dataclass(frozen=True)
class Import:
    """deferred: importing the file does not run it, since it is in a function or for type checkers only."""

    file: str
    line: int
    target: str
    deferred: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"

    def inside(self, *modules: str) -> bool:
        """Whether what is imported is one of these modules, or below one."""
        return any(self.target == module or self.target.startswith(f"{module}.") for module in modules)


# Reading


def product() -> Sources:
    """The product's files."""
    paths = [path for folder in BELOW for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def module_name(file: str) -> str:
    """engines/base.py → engines.base; a package by its folder."""
    return ".".join(PurePosixPath(file).with_suffix("").parts).removesuffix(".__init__")


parse = cache(ast.parse)

RESOLVED = re.compile(rf"({'|'.join(FOLDERS)})(\.\w+)*:\w+")
"""`module:name`, which `pkgutil.resolve_name` imports; tables of such lines are imports as well."""


def imports(sources: Sources) -> list[Import]:
    """All imports. A name that is a module counts as one: `from export import onnx` imports export.onnx."""
    modules = frozenset(map(module_name, sources))
    return [
        Import(file, node.lineno, target, deferred)
        for file, text in sources.items()
        for node, deferred in _import_nodes(parse(text), deferred=False)
        for target in _targets(node, file, modules)
    ]


def _import_nodes(node: ast.AST, deferred: bool) -> Iterator[tuple[ast.stmt | ast.expr, bool]]:
    """Whatever imports something, at any depth, and whether it is deferred."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and RESOLVED.fullmatch(node.value):
        yield node, True
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call)):
        yield node, deferred
    if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
        for child in node.body:
            yield from _import_nodes(child, True)
        children = iter(node.orelse)
    else:
        children = ast.iter_child_nodes(node)
    deferred = deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in children:
        yield from _import_nodes(child, deferred)


def _targets(node: ast.AST, file: str, modules: frozenset[str]) -> list[str]:
    """The modules that an import statement, `import_module("…")`, or "module:name" is about."""
    if isinstance(node, ast.Constant):
        return [str(node.value).partition(":")[0]]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = PurePosixPath(file).parts[: -node.level] if node.level else ()
        start = ".".join([*parents, *([node.module] if node.module else [])])
        names = [f"{start}.{alias.name}" for alias in node.names]
        return list(dict.fromkeys(name if name in modules else start for name in names))
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def is_command(text: str) -> bool:
    """Whether a module has a click command in it, or runs when it is started as a program."""
    return any(_is_main_guard(node) or _is_click_command(node) for node in ast.walk(parse(text)))


def _is_main_guard(node: ast.AST) -> bool:
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    return {ast.unparse(side) for side in (node.test.left, *node.test.comparators)} == {"__name__", "'__main__'"}


def _is_click_command(node: ast.AST) -> bool:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    makers = [made.func if isinstance(made, ast.Call) else made for made in node.decorator_list]
    return any(ast.unparse(maker).split(".")[-1] in ("command", "group") for maker in makers)


def may_import_torch(file: str, deferred: bool) -> bool:
    """deferred: whether the import is one that importing the file does not run."""
    if file in TORCH_WHEN_CALLED:
        return deferred
    return file.startswith(TORCH) and not file.startswith(NO_TORCH)


# The rules


def downwards_only(sources: Sources) -> list[str]:
    """Folders import downwards only; ribsr.base imports nothing of the product, and nothing imports tests."""
    broken = []
    for found in imports(sources):
        folder = found.file.split("/")[0]
        allowed = ("ribsr.base",) if found.file.startswith("ribsr/base/") else (folder, *BELOW[folder])
        if found.inside(*FOLDERS) and not found.inside(*allowed) and not _is_entry(found):
            broken.append(str(found))
    return broken


def _is_entry(found: Import) -> bool:
    """Whether it is a line of the command `ribsr` that says where a command is."""
    named = found.file == NAMES_ALL or (found.file == STARTS and found.target == module_name(NAMES_ALL))
    return named and found.deferred


def training_on_top(sources: Sources) -> list[str]:
    """Within ribsr, only training itself and the command know training."""
    return [
        str(found)
        for found in imports(sources)
        if found.file.startswith("ribsr/")
        and not found.file.startswith("ribsr/training/")
        and found.file != "ribsr/__main__.py"
        and found.inside("ribsr.training")
    ]


def no_command_imported(sources: Sources) -> list[str]:
    """Nothing imports a command: what two commands share is in a module of its own."""
    commands = [module_name(file) for file, text in sources.items() if is_command(text)]
    return [str(found) for found in imports(sources) if found.target in commands and not _is_entry(found)]


def torch_where_it_belongs(sources: Sources) -> list[str]:
    """Only what has to do with PyTorch imports torch."""
    return [
        str(found)
        for found in imports(sources)
        if found.inside("torch") and not may_import_torch(found.file, found.deferred)
    ]


def names_of_our_own(sources: Sources) -> list[str]:
    """No module is called like one of Python's or a package that we import: a script in its folder would find it."""
    roots = {found.target.split(".")[0] for found in imports(sources)}
    taken = (set(sys.stdlib_module_names) | roots) - set(FOLDERS) - {"__main__"}
    return [
        f"{file}: is called like {name}"
        for file in sources
        if (name := module_name(file).split(".")[-1]) in taken and file not in NAMED_BY_USERS
    ]


def short_functions(sources: Sources) -> list[str]:
    """No function is longer than LONGEST lines."""
    return [
        f"{file}:{node.lineno} {node.name} has {lines} lines, {LONGEST} are allowed"
        for file, text in sources.items()
        for node in ast.walk(parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST
    ]


RULES = (
    downwards_only,
    training_on_top,
    no_command_imported,
    torch_where_it_belongs,
    names_of_our_own,
    short_functions,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_product_keeps_the_rule(rule: Rule) -> None:
    broken = rule(product())
    assert not broken, "\n".join([str(rule.__doc__), *broken])


def test_all_folders_are_read_and_all_names_are_of_files_that_exist() -> None:
    files = product()
    assert {file.split("/")[0] for file in files} == set(BELOW)
    assert {"ribsr/base/errors.py", "export/trt/__main__.py", "tools/parity.py"} <= set(files)
    assert [path for path in NO_TORCH if not any(file.startswith(path) for file in files)] == []


# The rules, tried


COMMAND = "import click\n@click.command()\ndef main():\n    pass\n"
PROGRAM = "if __name__ == '__main__':\n    pass\n"

FLAGGED: list[tuple[Rule, dict[str, str], str]] = [
    (downwards_only, {"engines/a.py": "import export"}, "engines/a.py:1 imports export"),
    (downwards_only, {"engines/a.py": "\ndef f():\n    import export.onnx"}, "engines/a.py:3 imports export.onnx"),
    (downwards_only, {"engines/a.py": "if TYPE_CHECKING:\n    from tools import b"}, "engines/a.py:2 imports tools"),
    (downwards_only, {"engines/a/b.py": "from ...export.fold import c"}, "engines/a/b.py:1 imports export.fold"),
    (downwards_only, {"plugins/a.py": "from engines.base import Engine"}, "plugins/a.py:1 imports engines.base"),
    (downwards_only, {"ribsr/a.py": "import_module('plugins.b')"}, "ribsr/a.py:1 imports plugins.b"),
    (downwards_only, {"export/a.py": "import tools._common as b"}, "export/a.py:1 imports tools._common"),
    (downwards_only, {"ribsr/base/a.py": "from ribsr import configs"}, "ribsr/base/a.py:1 imports ribsr"),
    (downwards_only, {"ribsr/base/a.py": "from engines.base import b"}, "ribsr/base/a.py:1 imports engines.base"),
    (downwards_only, {"ribsr/base/a/b.py": "import ribsr.configs"}, "ribsr/base/a/b.py:1 imports ribsr.configs"),
    (downwards_only, {"tools/a.py": "from tests.plugins import b"}, "tools/a.py:1 imports tests.plugins"),
    (downwards_only, {"ribsr/cli.py": "import tools.cli"}, "ribsr/cli.py:1 imports tools.cli"),
    (downwards_only, {"ribsr/cli.py": "a = 'tools.parity:main'"}, "ribsr/cli.py:1 imports tools.parity"),
    (downwards_only, {"engines/a.py": "A = {'b': ('export.onnx:main',)}"}, "engines/a.py:1 imports export.onnx"),
    (training_on_top, {"ribsr/a.py": "from ribsr.training import b"}, "ribsr/a.py:1 imports ribsr.training"),
    (
        training_on_top,
        {"ribsr/a.py": "def f():\n    from . import training", "ribsr/training/__init__.py": ""},
        "ribsr/a.py:2 imports ribsr.training",
    ),
    (
        no_command_imported,
        {"tools/a.py": "from tools.b import c", "tools/b.py": COMMAND},
        "tools/a.py:1 imports tools.b",
    ),
    (no_command_imported, {"tools/a.py": "from tools import b", "tools/b.py": PROGRAM}, "tools/a.py:1 imports tools.b"),
    (
        no_command_imported,
        {"export/a.py": "if TYPE_CHECKING:\n    import ribsr.__main__", "ribsr/__main__.py": PROGRAM},
        "export/a.py:2 imports ribsr.__main__",
    ),
    (
        no_command_imported,
        {"tools/a.py": "from . import b", "tools/b.py": "@main.command\ndef c():\n    pass"},
        "tools/a.py:1 imports tools.b",
    ),
    (no_command_imported, {"tools/a.py": "b = 'tools.b:c'", "tools/b.py": COMMAND}, "tools/a.py:1 imports tools.b"),
    (no_command_imported, {"tools/cli.py": "import tools.b", "tools/b.py": COMMAND}, "tools/cli.py:1 imports tools.b"),
    (torch_where_it_belongs, {"engines/a.py": "def f():\n    import torch.nn"}, "engines/a.py:2 imports torch.nn"),
    (torch_where_it_belongs, {"export/trt/a.py": "from torch import nn"}, "export/trt/a.py:1 imports torch"),
    (
        torch_where_it_belongs,
        {"ribsr/configs.py": "if TYPE_CHECKING:\n    import torch"},
        "ribsr/configs.py:2 imports torch",
    ),
    (torch_where_it_belongs, {"plugins/operators.py": "import torch"}, "plugins/operators.py:1 imports torch"),
    (
        torch_where_it_belongs,
        {"plugins/operators.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import torch"},
        "plugins/operators.py:4 imports torch",
    ),
    (
        names_of_our_own,
        {"plugins/torch.py": "", "ribsr/a.py": "import torch.nn"},
        "plugins/torch.py: is called like torch",
    ),
    (
        names_of_our_own,
        {"engines/tensorrt/__init__.py": "", "engines/a.py": "def f():\n    import tensorrt"},
        "engines/tensorrt/__init__.py: is called like tensorrt",
    ),
    (names_of_our_own, {"tools/profile.py": ""}, "tools/profile.py: is called like profile"),
    (
        short_functions,
        {"tools/a.py": "class A:\n    def f(self):\n" + LONGEST * "        pass\n"},
        f"tools/a.py:2 f has {LONGEST + 1} lines, {LONGEST} are allowed",
    ),
]

PASSING: list[tuple[Rule, dict[str, str]]] = [
    (downwards_only, {"tools/a.py": "import export, engines.base, plugins, ribsr, tools._common, numpy"}),
    (downwards_only, {"ribsr/a.py": "from ribsr.base import b", "ribsr/base/a.py": "from . import b\nimport os"}),
    (downwards_only, {"ribsr/base/a.py": "from ribsr import base", "ribsr/base/__init__.py": ""}),
    (downwards_only, {"ribsr/a.py": "import exporters"}),
    (downwards_only, {"ribsr/cli.py": "def main():\n    resolve_name('tools.cli:main')()"}),
    (training_on_top, {"ribsr/__main__.py": "import ribsr.training", "ribsr/training/a.py": "from . import b"}),
    (no_command_imported, {"tools/a.py": "import export.trt", "export/trt/__main__.py": PROGRAM}),
    (no_command_imported, {"tools/a.py": "from tools.b import f", "tools/b.py": "@property\ndef f(): pass"}),
    (no_command_imported, {"tools/cli.py": "A = {'b': 'tools.b:main'}", "tools/b.py": COMMAND}),
    (torch_where_it_belongs, {"ribsr/a.py": "import torch", "export/fold.py": "import torch"}),
    (torch_where_it_belongs, {"tools/train_speed.py": "import torch", "engines/pytorch.py": "from torch import nn"}),
    (torch_where_it_belongs, {"engines/a.py": "import torchless\nimport engines.torch"}),
    (torch_where_it_belongs, {"plugins/operators.py": "if TYPE_CHECKING:\n    import torch"}),
    (torch_where_it_belongs, {"plugins/operators.py": "def f():\n    import torch"}),
    (names_of_our_own, {"export/onnx.py": "import onnx", "ribsr/__main__.py": "", "ribsr/rib.py": "import ribsr"}),
    (short_functions, {"tools/a.py": "@a\n@b\ndef f():\n" + (LONGEST - 1) * "    pass\n"}),
]


@pytest.mark.parametrize(("rule", "sources", "line"), FLAGGED)
def test_what_breaks_a_rule_is_named(rule: Rule, sources: dict[str, str], line: str) -> None:
    assert rule(sources) == [line]


@pytest.mark.parametrize(("rule", "sources"), PASSING)
def test_what_keeps_a_rule_passes(rule: Rule, sources: dict[str, str]) -> None:
    assert rule(sources) == []
