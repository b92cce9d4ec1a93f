"""The house rules that a machine can hold: who imports whom, what is heavy, what is dangerous, and how long a module is."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# app (with web), cli → batch, training, evaluation → renderer → pipelines | controls → core; evaluation → toyland → core,
# and toyland's model builder → training.
BELOW_RENDERER = {"core", "controls", "pipelines"}
ALLOWED = {
    "core": set(),
    "controls": {"core"},
    "pipelines": {"core"},
    "renderer": BELOW_RENDERER,
    "training": BELOW_RENDERER | {"renderer"},
    "batch": BELOW_RENDERER | {"renderer"},
    "toyland": BELOW_RENDERER | {"renderer", "training"},
    "evaluation": BELOW_RENDERER | {"renderer", "toyland"},
    "web": BELOW_RENDERER | {"renderer", "training", "batch"},
    "app": BELOW_RENDERER | {"renderer", "training", "batch", "web"},
    "cli": BELOW_RENDERER | {"renderer", "training", "batch", "toyland", "evaluation", "web", "app"},
}
HEAVY = {"accelerate", "diffusers", "gradio", "ray", "scipy", "torch", "transformers"}
LIGHT_AT_IMPORT = {"app", "cli", "core", "renderer"}  # these defer what is heavy until it is needed
PICKLING = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
MAX_LINES = 400
MAX_POSITIONAL = 5


def sources() -> dict[str, Path]:
    """Our modules by dotted name; tests and benchmarks are not part of the house."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imported(tree: ast.AST, *, deferred: bool = True) -> Iterator[str]:
    """The dotted names a module imports; with `deferred`, also those inside functions and for type checkers."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, "imports are absolute"
                assert node.module is not None
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if not deferred:
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not deferred:
                pass
            case _:
                yield from imported(node, deferred=deferred)


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_run_one_way(module: str) -> None:
    own = {top(name) for name in imported(TREES[module])} & ALLOWED.keys()
    assert own <= ALLOWED[top(module)] | {top(module)}


def test_toylands_world_needs_core_alone() -> None:
    """The scenes and their pictures know nothing of models; only what builds the model may look further."""
    reached, waiting = set[str](), ["toyland.dataset"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += [name for name in imported(TREES[module]) if name in SOURCES and top(name) == "toyland" and name not in reached]
    for module in reached:
        assert {top(name) for name in imported(TREES[module])} & (ALLOWED.keys() | HEAVY) <= {"core", "toyland"}, module


@pytest.mark.parametrize("module", [name for name in SOURCES if top(name) in LIGHT_AT_IMPORT])
def test_heavy_libraries_are_deferred(module: str) -> None:
    assert {top(name) for name in imported(TREES[module], deferred=False)} & HEAVY == set()


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_runs_code_from_a_file(module: str) -> None:
    """No pickle in any disguise, no remote code, no shell."""
    names = set(imported(TREES[module]))
    assert {top(name) for name in names} & PICKLING == set()
    assert names & {"torch.load", "torch.save", "numpy.load"} == set(), "call them by their full name, so that they are seen"
    for node in ast.walk(TREES[module]):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save")):
                pytest.fail(f"{module}:{node.lineno} uses torch's pickle; use safetensors")
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                pytest.fail(f"{module}:{node.lineno} runs text as code")
            case ast.keyword(arg="allow_pickle" | "trust_remote_code" | "shell", value=ast.Constant(value=True)):
                pytest.fail(f"{module}:{node.value.lineno} sets {node.arg}")
            case ast.keyword(arg="use_safetensors" | "weights_only", value=ast.Constant(value=False)):
                pytest.fail(f"{module}:{node.value.lineno} clears {node.arg}")


@pytest.mark.parametrize("module", SOURCES)
def test_functions_take_few_positional_arguments(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any(isinstance(part, ast.Call) and ast.unparse(part.func).endswith(".command") for part in node.decorator_list):
            continue  # typer passes a command's options by name
        names = [argument.arg for argument in node.args.posonlyargs + node.args.args if argument.arg not in ("self", "cls")]
        assert len(names) <= MAX_POSITIONAL, f"{module}:{node.lineno} {node.name}({', '.join(names)})"


@pytest.mark.parametrize(
    "path", sorted({*SOURCES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")}), ids=str
)
def test_modules_are_of_a_readable_length(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES, "split it along a seam that has a name"


def test_every_package_is_installed_with_the_project() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for package in ALLOWED for path in (ROOT / package).rglob("__init__.py")}
    assert packages == set(listed["packages"])
    assert {path.stem for path in ROOT.glob("*.py")} <= set(listed["py-modules"])


def run_python(code: str) -> dict[str, Any]:
    """What the code prints last, as JSON, run in a fresh interpreter in the repository's root."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_help_is_answered_without_anything_heavy() -> None:
    code = """
import contextlib, json, sys, time
sys.argv = ["limn", "--help"]
import cli
with contextlib.suppress(SystemExit):
    cli.main()
seconds = time.process_time()  # of the whole process, start included: other load on the machine does not count
print()
print(json.dumps({"modules": sorted({name.partition(".")[0] for name in sys.modules}), "seconds": seconds}))
"""
    answer = run_python(code)
    assert set(answer["modules"]) & (HEAVY | {"cv2", "PIL", "pandas"}) == set()
    assert answer["seconds"] < 0.5


def test_importing_our_modules_does_nothing() -> None:
    """No connection, no process, no thread, no CUDA: only definitions."""
    code = f"""
import importlib, json, sys, threading
seen = []
watched = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn", "os.fork")
import torch, diffusers, transformers, accelerate  # what these do is not ours
before = set(threading.enumerate())
sys.addaudithook(lambda event, arguments: seen.append(event + repr(arguments)[:200]) if event in watched else None)
for name in {sorted(SOURCES)!r}:
    importlib.import_module(name)
print(json.dumps({{"seen": seen, "threads": [thread.name for thread in set(threading.enumerate()) - before],
    "cuda": torch.cuda.is_initialized()}}))
"""
    assert run_python(code) == {"seen": [], "threads": [], "cuda": False}
