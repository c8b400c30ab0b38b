"""The modules as a whole: no import circle, and no definition that nothing reaches."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "vmat_diffusion"
# A definition is (module, name), a module (module, ""), a method (module, class.name).
Thing = tuple[str, str]
# Where a program or a user begins: the command line, and the names that `import vmat_diffusion` offers.
ROOTS: tuple[Thing, ...] = ((PACKAGE, ""), (f"{PACKAGE}.__main__", ""), (f"{PACKAGE}.cli", "main"))
# Reached by no code of the package, and kept for a reason. Short, and each with its reason.
ALLOWED: dict[Thing, str] = {
    (f"{PACKAGE}.dataset.cases", "load_constraints"): "reads what `preprocess` writes for other programs",
    (f"{PACKAGE}.dataset.cases", "load_sdf_mm"): "reads what `preprocess` writes for other programs",
    (f"{PACKAGE}.dataset.prepare", "restored"): "the way back, by which the error of preparing is measured",
    (f"{PACKAGE}.diffusion.predict", "predict"): "public",
    (f"{PACKAGE}.evaluate.dvh", "dose_at_volume_gy"): "public",
    (f"{PACKAGE}.evaluate.dvh", "volume_at_dose"): "public",
    (f"{PACKAGE}.progress", "under_name"): "about to be used",
    (f"{PACKAGE}.workflow.beam", "_TANK_STEP_MM"): "as tank_dose",
    (f"{PACKAGE}.workflow.beam", "open_square"): "as tank_dose",
    (
        f"{PACKAGE}.workflow.beam",
        "tank_dose",
    ): "the shipped beams against scans: oracle test, benchmarks/beam.py",
}


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_no_import_circle(folder: str) -> None:
    """Imports within functions count, those for types alone do not. A circle raises CycleError."""
    trees = _trees(ROOT / folder)
    assert len(trees) > 5
    graph = {name: {m for m, _ in _imports(tree, trees)} - {name} for name, tree in trees.items()}
    list(TopologicalSorter(graph).static_order())


def test_every_definition_is_reached_from_a_command_or_the_public_api() -> None:
    """Functions, classes, constants and methods of the package; tests and benchmarks are no reason."""
    unreached = _Package(_trees(ROOT / "src")).unreached()
    found = {thing for thing in unreached if thing not in ALLOWED}
    assert not found, "delete: " + ", ".join(sorted(f"{module}.{name}" for module, name in found))
    assert not ALLOWED.keys() - unreached, "reached again, so no longer an exception"


def test_a_chain_that_nothing_reaches_is_found_whole() -> None:
    """The check itself: one dead function that calls another, a method that nobody names."""
    source = """
def main(): return Used().known()
def first(): return second()
def second(): return 1
class Used:
    def known(self): return 1
    def lonely(self): return self.known()
"""
    trees = {PACKAGE: ast.parse(""), f"{PACKAGE}.cli": ast.parse(source)}
    module = f"{PACKAGE}.cli"
    assert _Package(trees).unreached() == {(module, n) for n in ("first", "second", "Used.lonely")}


def _trees(folder: Path) -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in folder.rglob("*.py")
    }


def _imports(tree: ast.AST, known: dict[str, ast.Module], *, types: bool = False) -> Iterator[Thing]:
    """Modules of the same folder that are imported, with the name that is taken from them or ""."""
    for target, _ in _imported(tree, known, types=types):
        yield target


def _imported(tree: ast.AST, known: dict[str, ast.Module], *, types: bool) -> Iterator[tuple[Thing, str]]:
    """Each import as what is imported and what it is called here."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield (alias.name, ""), alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield (whole, ""), alias.asname or alias.name
                elif node.module in known:
                    yield (node.module, alias.name), alias.asname or alias.name


class _Package:
    """Definitions of a package and what each of them names."""

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.trees = trees
        self.aliases: dict[str, dict[str, set[Thing]]] = {}
        self.code: dict[Thing, list[ast.AST]] = defaultdict(list)
        self.methods: dict[Thing, set[Thing]] = defaultdict(set)
        self.roots = set(ROOTS)
        for module, tree in trees.items():
            self.aliases[module] = defaultdict(set)
            for target, name in _imported(tree, trees, types=True):
                self.aliases[module][name].add(target)
            for statement in tree.body:
                self._take(module, statement)

    def _take(self, module: str, statement: ast.stmt) -> None:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            self.code[module, statement.name].append(statement)
            if any(self._registers(module, decorator) for decorator in statement.decorator_list):
                self.roots.add((module, statement.name))
        elif isinstance(statement, ast.ClassDef):
            self._take_class(module, statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            own = [n for n in names if not (n.startswith("__") and n.endswith("__"))]
            for name in own or [""]:
                self.code[module, name].append(statement)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            for inner in (*statement.body, *statement.orelse):
                self._take(module, inner)
        elif not isinstance(statement, ast.Import | ast.ImportFrom | ast.If):
            self.code[module, ""].append(statement)

    def _registers(self, module: str, decorator: ast.expr) -> bool:
        """Whether a decorator is a method of an object of the package, as `@app.callback()` is."""
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        of = called.value if isinstance(called, ast.Attribute) else None
        return isinstance(of, ast.Name) and (module, of.id) in self.code

    def _take_class(self, module: str, statement: ast.ClassDef) -> None:
        thing = (module, statement.name)
        # What a base from elsewhere calls (torch, Lightning, threads) nothing here names.
        foreign = any(
            not self._resolved(module, ast.unparse(base))
            and ast.unparse(base).split("[")[0] not in ("Protocol", "NamedTuple", "Enum", "Generic")
            for base in statement.bases
        )
        for part in statement.body:
            if isinstance(part, ast.FunctionDef) and not foreign and not part.name.startswith("__"):
                self.code[module, f"{statement.name}.{part.name}"].append(part)
                self.methods[thing].add((module, f"{statement.name}.{part.name}"))
            else:
                self.code[thing].append(part)
        self.code[thing] += [*statement.bases, *statement.decorator_list, *statement.keywords]

    def _resolved(self, module: str, name: str, seen: frozenset[Thing] = frozenset()) -> set[Thing]:
        """The definitions or modules that a name stands for in a module, through re-exports."""
        if (module, name) in seen or module not in self.aliases:
            return set()
        seen |= {(module, name)}
        if (module, name) in self.code:
            return {(module, name)}
        found = {(f"{module}.{name}", "")} if f"{module}.{name}" in self.trees else set()
        for target, wanted in self.aliases[module].get(name, ()):
            found |= self._resolved(target, wanted, seen) if wanted else {(target, "")}
        return found

    def _named(self, module: str, node: ast.AST) -> set[Thing]:
        """What one node of the code names."""
        if isinstance(node, ast.Name):
            return self._resolved(module, node.id)
        if isinstance(node, ast.Attribute):
            return {
                thing
                for of, name in self._named(module, node.value)
                if not name
                for thing in self._resolved(of, node.attr)
            }
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Names in quotes: of types, of what is loaded when it is asked for, of what another process runs.
            if found := re.findall(r"\bimport (\w+)", node.value):
                return {thing for name in found for thing in self._resolved(module, name)}
            if not re.fullmatch(r"[\w.:]+", node.value):
                return set()
            parts = re.split("[.:]", node.value)
            of, name = ".".join(parts[:-1]), parts[-1]
            return self._resolved(of or module, name) | self._resolved(module, node.value)
        return set()

    def unreached(self) -> set[Thing]:
        """All definitions that no root leads to; a method counts once its class does and its name is used."""
        waiting: set[Thing] = self.roots | {thing for thing in self.code if not thing[1]}
        reached: set[Thing] = set()
        words: set[str] = set()
        while waiting:
            thing = waiting.pop()
            reached.add(thing)
            for code in self.code.get(thing, ()):
                for node in ast.walk(code):
                    waiting |= self._named(thing[0], node)
                    if isinstance(node, ast.Attribute):
                        words.add(node.attr)
                    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                        words.add(node.value)
            waiting |= {
                method
                for of in reached
                for method in self.methods.get(of, ())
                if method[1].rpartition(".")[2] in words
            }
            waiting -= reached
        return set(self.code) - reached
