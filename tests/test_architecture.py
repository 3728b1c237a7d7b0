"""The house: which module may import which, how long the walk is, and what is promised."""

import ast
import functools
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest
import torch

import zae_engine
from tests.helpers import PlainTrainer, loader, make
from zae_engine import Trainer
from zae_engine import trainer as trainer_package
from zae_engine.trainer import addons
from zae_engine.trainer.compose import Seams

ROOT = Path(zae_engine.__file__).parents[1]
PACKAGE = ROOT / "zae_engine"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the ground up: a module imports what is in its own room, or in one above it in this list. A path belongs to
# the longest name here that it begins with.
ROOMS = [
    ["files", "suggestions", "redaction", "terminal", "_version"],
    ["launch"],
    ["checkpoint"],
    ["logs"],
    ["trainer/"],  # what stands in no room: words, checks, nests, limits, seams
    ["trainer/hangs/"],
    ["trainer/processes/"],
    ["trainer/data/", "trainer/console/"],
    ["trainer/records/"],
    ["trainer/step/"],
    ["trainer/loop/"],
    ["trainer/console/banner"],
    ["trainer/journal/"],
    ["trainer/resume/"],
    ["trainer/verify/"],
    ["trainer/options"],
    ["trainer/methods"],
    ["trainer/trainer"],
    ["trainer/addons/"],
    ["trainer/__init__", "trainer/_trainer"],
    ["trainer/addons/__init__", "trainer/addons/core"],
    ["__init__"],
    ["cli/"],
]
RANKS = {name: rank for rank, names in enumerate(ROOMS) for name in names}


def name_of(path):
    """Of a module's file, from the package on: ``trainer/addons/core``."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


NAMES = {name_of(path): path for path in MODULES}


@functools.cache
def nodes(name):
    """All that a module is made of."""
    return tuple(ast.walk(ast.parse(NAMES[name].read_text(encoding="utf-8"))))


def room_of(name):
    return max((room for room in RANKS if name.startswith(room)), key=len)


def imports(name):
    """The package's modules that a module imports, at any depth, for typing too."""
    folder = NAMES[name].relative_to(PACKAGE).parent
    for node in nodes(name):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = Path(*folder.parts[: len(folder.parts) - node.level + 1], *(node.module or "").split("."))
            for alias in node.names:
                yield next(n for n in (base / alias.name, base, base / "__init__") if n.as_posix() in NAMES).as_posix()


def test_imports_point_one_way():
    for name in NAMES:
        wrong = [other for other in imports(name) if RANKS[room_of(other)] > RANKS[room_of(name)]]
        assert not wrong, f"{name} imports {wrong}"


def test_no_imports_go_in_circles():
    left = {name: set(imports(name)) - {name} for name in NAMES}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


# ---------------------------------------------------------------------- parts, and no ancestors


def test_the_trainer_is_small():
    """What is its own, and not its parts': it may have 35 methods and 10 private attributes."""
    ours = [cls for cls in Trainer.__mro__ if cls.__module__.startswith("zae_engine")]
    kinds = (FunctionType, classmethod, staticmethod)
    methods = {name for cls in ours for name, value in vars(cls).items() if isinstance(value, kinds)}
    assert len(methods) <= 30, sorted(methods)
    private = {name for cls in ours for name in (*vars(cls), *vars(cls).get("__annotations__", ()))}
    private |= set(vars(make()))
    private = {name for name in private - methods if name.startswith("_") and not name.startswith(("__", "_abc"))}
    assert len(private) <= 8, sorted(private)


class Looking(PlainTrainer):
    def test_step(self, batch):
        x, y = batch
        out = self.model(x)
        return {"loss": torch.nn.functional.cross_entropy(out, y), "output": out}


def test_every_attribute_is_there_from_the_start():
    trainer = make(Looking)
    parts = {"the trainer": trainer, **{name: part for name, part in vars(trainer).items() if name.startswith("_")}}
    before = {name: set(vars(part)) for name, part in parts.items() if hasattr(part, "__dict__")}
    trainer.run(2, loader(), {"a": loader(), "b": loader(5)}, valid_every="3st", max_steps=10)
    trainer.inference(loader())
    trainer.verify(loader())
    trainer.apply_weights()
    assert {name: set(vars(parts[name])) for name in before} == before


def parameters(function):
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def test_a_trainer_is_given_by_its_type():
    functions = [(n, node) for n in NAMES for node in nodes(n) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
    for name, node in functions:
        given = [each for each in parameters(node) if each.arg == "trainer" and each.annotation]
        assert all(ast.unparse(each.annotation) != "Any" for each in given), f"{name}, line {node.lineno}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(name):
    """What a module has for itself: its own private attributes, methods, functions and classes."""
    names = {node.name for node in nodes(name) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.attr for node in nodes(name) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    names |= {node.id for node in nodes(name) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return set(filter(is_private, names))


# Names that torch, the standard library or a client has, too, and which are meant there.
OF_OTHERS = {"_buffers", "_parameters", "_replace", "_iterator", "_id"}


def test_nobody_reaches_for_what_another_object_keeps_to_itself():
    private = {name: private_names(name) for name in NAMES}
    for name, own in private.items():
        others = set().union(*(its for other, its in private.items() if other != name)) - OF_OTHERS - own
        for node in nodes(name):
            if isinstance(node, ast.Attribute) and node.attr in others:
                assert getattr(node.value, "id", "") in ("self", "cls"), f"{name}: {ast.unparse(node)}"


def test_compose_knows_no_torch_and_checkpoint_no_trainer():
    for name, forbidden in (("trainer/compose.py", "torch|accelerate"), ("checkpoint/weights.py", "trainer")):
        source = (PACKAGE / name).read_text(encoding="utf-8")
        assert not re.search(rf"^\s*(from|import) \S*({forbidden})", source, re.MULTILINE)


class Spy(torch.optim.SGD):
    """Looks up the stack from where the optimizer steps."""

    def step(self, closure=None):
        frames = [f for f in inspect.stack() if str(PACKAGE) in f.filename]
        self.walk = [(Path(f.filename).name, f.function) for f in reversed(frames)]
        return super().step(closure)


def test_the_walk_from_run_to_step_is_short():
    probe = make()
    optimizer = Spy(probe.model.parameters(), lr=0.1)
    make(model=probe.model, optimizer=optimizer).run(1, loader())
    assert [function for _, function in optimizer.walk] == ["run", "run_epoch", "run_batch", "optimize", "step"]
    assert {file for file, _ in optimizer.walk} == {"trainer.py", "update.py"}


def test_the_seams_are_frozen():
    assert Seams.seams == (
        "run",
        "run_epoch",
        "run_batch",
        "optimize",
        "logging",
        "metric_on_epoch_end",
        "check_better",
        "save_model",
        "apply_weights",
        "state_dict",
        "load_state_dict",
    )
    for name in Seams.seams:
        assert getattr(zae_engine.Trainer, name) is not getattr(Seams, name)  # the trainer implements each


def test_every_seam_is_called_through_the_stack():
    called = []

    def wrap(name):
        def method(self, *args, **kwargs):
            called.append(name)
            return getattr(super(Probe, self), name)(*args, **kwargs)

        return method

    Probe = type("Probe", (PlainTrainer,), {name: wrap(name) for name in Seams.seams})
    probe = make(Probe)
    probe.run(1, loader(), loader())
    assert {"run", "run_epoch", "run_batch", "optimize", "logging", "metric_on_epoch_end", "check_better"} <= set(
        called
    )


@pytest.mark.parametrize("package", [zae_engine, trainer_package, addons])
def test_exports_are_sorted_and_documented(package):
    assert package.__all__ == sorted(package.__all__)
    for language in ("", "-ko"):
        text = (ROOT / "docs" / f"reference{language}.md").read_text(encoding="utf-8")
        for name in package.__all__:
            assert f"`{name}`" in text or name == "__version__", f"{name} is not in reference{language}.md"


def test_every_option_and_method_of_the_trainer_is_documented():
    options = list(inspect.signature(zae_engine.Trainer.__init__).parameters)[1:-1]
    options += list(inspect.signature(zae_engine.Trainer.run).parameters)[1:-1]
    public = [
        name for name in dir(zae_engine.Trainer) if not name.startswith("_") and name not in ("seams", "register")
    ]
    for language in ("", "-ko"):
        text = (ROOT / "docs" / f"reference{language}.md").read_text(encoding="utf-8")
        for name in options + public:
            assert re.search(rf"`{name}\b", text), f"{name} is not in reference{language}.md"


def test_files_and_functions_stay_small():
    for name, path in NAMES.items():
        assert path.read_text(encoding="utf-8").count("\n") <= 400, name
        for node in nodes(name):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert not body or node.end_lineno - body[0].lineno + 1 <= 40, f"{name}: {node.name}"
                assert not any(isinstance(child, ast.ClassDef) for child in node.body), f"{name}: {node.name}"


def test_public_functions_have_docstrings():
    for name in NAMES:
        for node in nodes(name)[0].body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}: {node.name}"
