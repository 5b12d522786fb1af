"""The house as it stands: floors, lazy rooms, safety lint, docstrings. Reads the tree when it runs; lists file and line of each violation.

Does not belong here: what ruff, mypy or a behaviour test can see.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = "beatsight_assets"

# From the ground up (design/architecture.md). A room imports what stands before it in this table, and nothing after it.
FLOORS = (
    ("errors", "units", "clock"),
    ("safejson", "store", "workers", "safeyaml", "settings", "taxonomy"),
    ("uuids", "events", "midi", "audio", "bsm", "tracking", "verdict", "stages", "testing"),
    ("sources", "render"),
    ("manifest", "bundle", "interchange", "features", "sampling", "health", "readiness"),
    ("model", "transcribe", "checklist"),
    ("dag", "cli"),
    ("definitions", "__main__"),
)
PLACE = {room: n for n, room in enumerate(room for floor in FLOORS for room in floor)}

HEAVY = (
    "torch",
    "torchaudio",
    "librosa",
    "matplotlib",
    "scipy",
    "mir_eval",
    "wandb",
    "dask",
    "distributed",
    "dagster",
    "pandas",
    "sklearn",
    "numba",
)
NOT_FOR_HELP = (*HEAVY, "polars", "pydantic", "numpy", "pyarrow", "soundfile", "jinja2")  # ruling 34 and style.md section 9
DAGSTER_ROOMS = ("dag", "definitions")
REFUSED_IMPORTS = re.compile(r"^(pickle|_pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal|xml\.|lxml|telnetlib|imp$)")
MACHINE_PATH = re.compile(r"/(?:work|home/\w+|Users/\w+|root)/")
AREA = re.compile(
    r"^(raw|events|provenance|quarantine|alignment|manifest|features|bundles|runs|models|reports|receipts|cache|dagster)(/|$)"
)
PLACE_OF_A_MACHINE = re.compile(r"^(~/|/(tmp|data|mnt|media|var|home|opt|srv))(/|$)")
TO_DO = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
LEGACY_RANDOM = {"seed", "rand", "randn", "randint", "random", "choice", "shuffle", "permutation", "normal", "uniform", "RandomState"}

Found = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Module:
    """A source file."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def name(self) -> str:
        """Dotted name below the package: `model.train`, `model` for its __init__."""
        return ".".join(Path(self.path).with_suffix("").parts[1:]).removesuffix(".__init__")

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @cached_property
    def calls(self) -> list[tuple[ast.Call, str]]:
        """Every call with its dotted name."""
        return [(node, ast.unparse(node.func)) for node in ast.walk(self.tree) if isinstance(node, ast.Call)]

    @cached_property
    def imports(self) -> list[tuple[int, str, bool]]:
        """(line, dotted name, when the module itself is imported) of every import."""
        found = []
        lazy = {id(n) for top in ast.walk(self.tree) if is_lazy(top) for n in ast.walk(top)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name, id(node) not in lazy) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    here = [PACKAGE, *self.name.split(".")]
                    here = here if self.path.endswith("__init__.py") else here[:-1]
                    base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
                found += [(node.lineno, f"{base}.{alias.name}", id(node) not in lazy) for alias in node.names]
        return found


def is_lazy(node: ast.AST) -> bool:
    """Runs later than its module's import, or never: functions and `if TYPE_CHECKING`."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def modules(folder: str) -> list[Module]:
    """The source files of a folder, as they are now."""
    paths = [p.relative_to(REPOSITORY).as_posix() for p in sorted((REPOSITORY / folder).rglob("*.py"))]
    return [Module(path, (REPOSITORY / path).read_text()) for path in paths]


@pytest.fixture(scope="module")
def house() -> list[Module]:
    """Every module of the package."""
    found = modules(PACKAGE)
    assert len(found) > 8
    return found


def keyword(call: ast.Call, name: str) -> object:
    """Constant value of a keyword argument, None when it is not given."""
    return next((k.value.value if isinstance(k.value, ast.Constant) else "given" for k in call.keywords if k.arg == name), None)


def no_pickle_and_no_stdlib_xml(module: Module) -> Found:
    for line, name, _ in module.imports:
        if REFUSED_IMPORTS.match(name):
            yield line, f"import of {name}"
    for call, name in module.calls:
        if keyword(call, "allow_pickle") is True or keyword(call, "weights_only") is False:
            yield call.lineno, f"{name} may unpickle"
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            yield call.lineno, "torch.load without weights_only=True"


def no_code_from_data(module: Module) -> Found:
    for call, name in module.calls:
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
            yield call.lineno, name
        if keyword(call, "shell") is True:
            yield call.lineno, f"{name}(shell=True)"
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
            yield call.lineno, name
        if name.endswith(".extractall") and keyword(call, "filter") != "data":
            yield call.lineno, 'extractall without filter="data"'
        if name == "tempfile.mktemp":
            yield call.lineno, name


def no_global_randomness_and_no_hash(module: Module) -> Found:
    for call, name in module.calls:
        if re.match(r"(np|numpy)\.random\.", name) and name.rpartition(".")[2] in LEGACY_RANDOM:
            yield call.lineno, f"{name}: use units.rng_for"
        if name == "np.random.default_rng" and not call.args:
            yield call.lineno, "default_rng without a seed"
        if re.match(r"random\.(?!Random$)", name) or name in ("torch.seed", "hash"):
            yield call.lineno, f"{name}: not repeatable"


def the_clock_is_read_in_one_place(module: Module) -> Found:
    if module.name == "clock":
        return
    for call, name in module.calls:
        if re.fullmatch(r"time\.(time|time_ns|monotonic|monotonic_ns|perf_counter|perf_counter_ns|sleep)", name):
            yield call.lineno, f"{name}: use clock"
        if re.fullmatch(r"(datetime\.)?(datetime|date)\.(now|utcnow|today)", name):
            yield call.lineno, f"{name}: use clock"


def only_the_store_gives_files_their_names(module: Module) -> Found:
    if module.name == "store":
        return
    in_memory = {
        ast.unparse(n.targets[0]) for n in ast.walk(module.tree) if isinstance(n, ast.Assign) and "BytesIO(" in ast.unparse(n.value)
    }
    for call, name in module.calls:
        if in_memory & {ast.unparse(argument) for argument in call.args}:
            continue
        if name in (
            "os.replace",
            "os.rename",
            "os.renames",
            "os.link",
            "os.symlink",
            "shutil.move",
            "shutil.copy",
            "shutil.copyfile",
            "shutil.copytree",
        ):
            yield call.lineno, name
        if name in ("open", "io.open", "os.fdopen") or name.endswith(".open"):
            at = 0 if name.endswith(".open") and name not in ("io.open", "os.open") else 1
            mode = keyword(call, "mode") or (
                call.args[at].value if len(call.args) > at and isinstance(call.args[at], ast.Constant) else "r"
            )
            if isinstance(mode, str) and re.fullmatch(r"[rwaxbt+]+", mode) and set(mode) & set("wax+"):
                yield call.lineno, f"{name}(…, {mode!r})"
        if name.rpartition(".")[2] in ("write_text", "write_bytes", "savefig", "tofile"):
            yield call.lineno, f"{name}: publish it"
        if name in ("json.dump", "np.save", "np.savez", "np.savez_compressed", "numpy.save", "torch.save", "pickle.dump"):
            yield call.lineno, f"{name}: publish it"


def only_settings_read_the_environment(module: Module) -> Found:
    if module.name in ("settings", "store", "workers", "dag.instance"):  # failpoints, threads of workers, and how Dagster is told its home
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb"):
            yield node.lineno, ast.unparse(node)


def text_of(node: ast.AST) -> str:
    """A string as it is written, as far as it is known before the program runs."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return text_of(node.values[0])
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def paths_derive_from_the_data_root(module: Module) -> Found:
    for node in ast.walk(module.tree):
        if PLACE_OF_A_MACHINE.match(text_of(node)):
            yield node.lineno, f"{text_of(node)!r} is a place of one machine"  # type: ignore[attr-defined]
        if module.name == "settings":
            continue
        is_joined = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and AREA.match(text_of(node.right))
        if is_joined and re.search(r"(^|[._])root$", ast.unparse(node.left)):
            yield node.lineno, f"{ast.unparse(node)}: DataLayout knows the places"
    for call, name in module.calls:
        if name in ("os.getcwd", "os.getcwdb", "Path.cwd", "os.chdir"):
            yield call.lineno, f"{name}: results do not depend on the working directory"
        if module.name != "settings" and re.search(r"(\.(at|resolve|joinpath)|^contain|\.contain)$", name):
            yield from ((call.lineno, f"{name}({text_of(a)!r}): DataLayout knows the places") for a in call.args if AREA.match(text_of(a)))


def errors_are_not_swallowed(module: Module) -> Found:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            kind = ast.unparse(node.type) if node.type else "everything"
            if node.type is None:
                yield node.lineno, "bare except"
            if all(isinstance(s, ast.Pass) for s in node.body):
                yield node.lineno, f"except {kind}: pass"
            reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
            if kind in ("Exception", "BaseException") and not reraises and module.room not in ("workers", "sources", "cli"):
                yield node.lineno, f"except {kind}: only the worker's item boundary and the command line's last line may"


def validation_survives_optimisation(module: Module) -> Found:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, f"assert {ast.unparse(node.test)[:60]}"


def only_the_command_line_prints(module: Module) -> Found:
    if module.room in ("cli", "__main__"):
        return
    inside = {id(n) for top in module.tree.body if isinstance(top, ast.If) and "__main__" in ast.unparse(top.test) for n in ast.walk(top)}
    for call, name in module.calls:
        to_dagster = module.room == "dag" and "file=sys.stderr" in ast.unparse(call)  # a step's stderr is its compute log
        if name in ("print", "logging.basicConfig") and id(call) not in inside and not to_dagster:
            yield call.lineno, name


def public_things_are_described(module: Module) -> Found:
    if not ast.get_docstring(module.tree) and module.text.strip():
        yield 1, "module without docstring"
    for node in module.tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        has_help = any(isinstance(d, ast.Call) and keyword(d, "help") is not None for d in node.decorator_list)  # a command's help text
        if not has_help and not ast.get_docstring(node):
            yield node.lineno, f"{node.name} without docstring"


def annotations_are_postponed_outside_dag(module: Module) -> Found:
    postponed = any(name == "__future__.annotations" for _, name, _ in module.imports)
    if postponed and module.room in ("dag",):
        yield 1, "Dagster refuses annotations that are strings (ruling 23)"
    if not postponed and module.room not in DAGSTER_ROOMS and any(not isinstance(n, ast.Expr) for n in module.tree.body):
        yield 1, "from __future__ import annotations is missing"


def heavy_libraries_wait_for_their_function(module: Module) -> Found:
    for line, name, at_import in module.imports:
        library = name.partition(".")[0]
        if library in HEAVY and at_import and not (library.startswith("dagster") and module.room in DAGSTER_ROOMS):
            yield line, f"{library} at module level"


def only_dag_knows_dagster(module: Module) -> Found:
    for line, name, _ in module.imports:
        if name.partition(".")[0].startswith("dagster") and module.room not in DAGSTER_ROOMS:
            yield line, f"import of {name}"


def imports_point_down(module: Module) -> Found:
    if module.name in ("", "__init__"):
        return
    if module.room not in PLACE:
        yield 1, f"{module.room} has no floor: give it one in FLOORS"
        return
    for line, name, _ in module.imports:
        parts = name.split(".")
        if parts[0] != PACKAGE or len(parts) < 2 or parts[1] == "__version__" or parts[1] == module.room:
            continue
        if parts[1] not in PLACE:
            yield line, f"{parts[1]} has no floor: give it one in FLOORS"
        elif PLACE[parts[1]] > PLACE[module.room]:
            yield line, f"{module.room} imports {parts[1]}, which stands above or to the right"


def underscored_names_stay_at_home(module: Module) -> Found:
    for line, name, _ in module.imports:
        if name.startswith(PACKAGE) and name.rpartition(".")[2].startswith("_") and not name.endswith("__"):
            yield line, f"import of {name}"


def no_open_points_and_no_machine(module: Module) -> Found:
    for n, text in enumerate(module.text.splitlines(), 1):
        if match := TO_DO.search(text) or MACHINE_PATH.search(text):
            yield n, match.group()


RULES: tuple[Callable[[Module], Found], ...] = (
    imports_point_down,
    heavy_libraries_wait_for_their_function,
    only_dag_knows_dagster,
    underscored_names_stay_at_home,
    no_pickle_and_no_stdlib_xml,
    no_code_from_data,
    no_global_randomness_and_no_hash,
    the_clock_is_read_in_one_place,
    only_the_store_gives_files_their_names,
    only_settings_read_the_environment,
    paths_derive_from_the_data_root,
    errors_are_not_swallowed,
    validation_survives_optimisation,
    only_the_command_line_prints,
    public_things_are_described,
    annotations_are_postponed_outside_dag,
    no_open_points_and_no_machine,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_the_house_keeps(rule: Callable[[Module], Found], house: list[Module]) -> None:
    """Every module of the package keeps the rule that the test is named after (style.md 4, 5, 10, 11; reliability.md 6, 9)."""
    found = [f"{module.path}:{line}: {what}" for module in house for line, what in rule(module)]
    assert not found, "\n" + "\n".join(found)


def test_there_are_no_circles(house: list[Module]) -> None:
    """What a module imports while it is being imported never leads back to it."""
    names = {module.name for module in house}
    edges: dict[str, set[str]] = {}
    for module in house:
        wanted = {name.removeprefix(f"{PACKAGE}.") for _, name, at_import in module.imports if at_import and name.startswith(f"{PACKAGE}.")}
        edges[module.name] = {n if n in names else n.rpartition(".")[0] for n in wanted} & names - {module.name, ""}
    left = dict(edges)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"circle among {sorted(left)}"


@pytest.mark.skipif(not (REPOSITORY / PACKAGE / "cli").exists(), reason="there is no command line yet")
def test_help_loads_nothing_heavy() -> None:
    """`beatsight --help` imports neither Dagster, torch, librosa, pandas, wandb nor the table and model libraries (ruling 34)."""
    command = [sys.executable, "-X", "importtime", "-m", PACKAGE, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert PACKAGE in loaded
    assert not loaded & set(NOT_FOR_HELP)


def test_every_test_says_what_it_proves() -> None:
    """Ruling 38: one line per test that names its promise; nothing sleeps; no real data and no machine in the tests."""
    found = []
    for module in modules(f"{PACKAGE}_tests"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node):
                found.append(f"{module.path}:{node.lineno}: {node.name} without docstring")
        found += [f"{module.path}:{call.lineno}: {name}" for call, name in module.calls if name in ("time.sleep", "sleep", "asyncio.sleep")]
        if module.path != f"{PACKAGE}_tests/test_house.py":
            found += [f"{module.path}:{line}: {what}" for line, what in no_open_points_and_no_machine(module)]
    assert not found, "\n" + "\n".join(found)


def test_configs_and_documents_name_no_machine() -> None:
    """What is written down works elsewhere: no path of one machine in configs, documents or build files."""
    found = []
    for pattern in ("*.md", "*.toml", "*.yaml", "Makefile", "configs/**/*.yaml", "docs/**/*.md", "benchmarks/**/*.py", ".ci/*"):
        for path in sorted(REPOSITORY.glob(pattern)):
            for n, text in enumerate(path.read_text().splitlines(), 1):
                if match := MACHINE_PATH.search(text):
                    found.append(f"{path.relative_to(REPOSITORY)}:{n}: {match.group()}")
    assert not found, "\n" + "\n".join(found)


BAD = [
    # rule, path, text
    (imports_point_down, "store.py", "from beatsight_assets import settings"),
    (imports_point_down, "store.py", "def f():\n    from beatsight_assets.cli import main"),
    (imports_point_down, "midi.py", "from .audio import read"),
    (imports_point_down, "sources/groove.py", "from ..manifest import merge"),
    (imports_point_down, "cellar.py", "import os"),
    (imports_point_down, "store.py", "import beatsight_assets.cellar"),
    (heavy_libraries_wait_for_their_function, "audio.py", "import librosa"),
    (heavy_libraries_wait_for_their_function, "model/train.py", "from torch import nn"),
    (heavy_libraries_wait_for_their_function, "audio.py", "try:\n    import scipy.signal\nexcept ImportError:\n    scipy = None"),
    (heavy_libraries_wait_for_their_function, "audio.py", "class A:\n    import torch"),
    (only_dag_knows_dagster, "stages.py", "def f():\n    import dagster as dg"),
    (only_dag_knows_dagster, "cli/main.py", "from dagster_pandas import x"),
    (underscored_names_stay_at_home, "events.py", "from beatsight_assets.store import _hash"),
    (no_pickle_and_no_stdlib_xml, "model/train.py", "import pickle"),
    (no_pickle_and_no_stdlib_xml, "model/train.py", "def f():\n    from joblib import dump"),
    (no_pickle_and_no_stdlib_xml, "sources/idmt.py", "import xml.etree.ElementTree as ET"),
    (no_pickle_and_no_stdlib_xml, "sources/idmt.py", "from xml.etree import ElementTree"),
    (no_pickle_and_no_stdlib_xml, "features/cache.py", "np.load(p, allow_pickle=True)"),
    (no_pickle_and_no_stdlib_xml, "model/train.py", "torch.load(p, weights_only=False)"),
    (no_pickle_and_no_stdlib_xml, "model/train.py", "torch.load(p)"),
    (no_code_from_data, "sources/x.py", "yaml.load(text, Loader=yaml.SafeLoader)"),
    (no_code_from_data, "sources/x.py", "subprocess.run(a, shell=True)"),
    (no_code_from_data, "sources/x.py", "os.system(a)"),
    (no_code_from_data, "sources/x.py", "eval(a)"),
    (no_code_from_data, "sources/x.py", "tar.extractall(p)"),
    (no_code_from_data, "sources/x.py", "tar.extractall(p, filter='fully_trusted')"),
    (no_global_randomness_and_no_hash, "render/x.py", "random.seed(7)"),
    (no_global_randomness_and_no_hash, "render/x.py", "np.random.seed(7)"),
    (no_global_randomness_and_no_hash, "render/x.py", "np.random.randn(3)"),
    (no_global_randomness_and_no_hash, "render/x.py", "np.random.default_rng()"),
    (no_global_randomness_and_no_hash, "render/x.py", "random.shuffle(x)"),
    (no_global_randomness_and_no_hash, "render/x.py", "hash('x')"),
    (the_clock_is_read_in_one_place, "model/train.py", "t = time.time()"),
    (the_clock_is_read_in_one_place, "model/train.py", "t = datetime.datetime.now()"),
    (the_clock_is_read_in_one_place, "model/train.py", "t = datetime.now(UTC)"),
    (only_the_store_gives_files_their_names, "health/x.py", "open(p, 'w')"),
    (only_the_store_gives_files_their_names, "health/x.py", "open(p, mode='ab')"),
    (only_the_store_gives_files_their_names, "health/x.py", "p.open('wb')"),
    (only_the_store_gives_files_their_names, "health/x.py", "p.open('r+')"),
    (only_the_store_gives_files_their_names, "health/x.py", "p.write_text('x')"),
    (only_the_store_gives_files_their_names, "health/x.py", "os.replace(a, b)"),
    (only_the_store_gives_files_their_names, "health/x.py", "shutil.move(a, b)"),
    (only_the_store_gives_files_their_names, "health/x.py", "json.dump(a, f)"),
    (only_the_store_gives_files_their_names, "health/x.py", "np.save(p, a)"),
    (only_settings_read_the_environment, "tracking.py", "os.environ.get('WANDB_MODE')"),
    (only_settings_read_the_environment, "tracking.py", "os.getenv('X')"),
    (paths_derive_from_the_data_root, "health/x.py", "layout.root / 'reports' / name"),
    (paths_derive_from_the_data_root, "health/x.py", "root / f'events/{name}.parquet'"),
    (paths_derive_from_the_data_root, "bundle/x.py", "settings.layout.at(f'bundles/{name}')"),
    (paths_derive_from_the_data_root, "bundle/x.py", "layout.resolve('manifest/merged.parquet')"),
    (paths_derive_from_the_data_root, "bundle/x.py", "store.contain(root, 'runs')"),
    (paths_derive_from_the_data_root, "cli/x.py", "Path.cwd() / 'x'"),
    (paths_derive_from_the_data_root, "cli/x.py", "Path('/tmp/x')"),
    (paths_derive_from_the_data_root, "cli/x.py", "Path(f'~/{name}')"),
    (errors_are_not_swallowed, "midi.py", "try:\n    f()\nexcept:\n    g()"),
    (errors_are_not_swallowed, "midi.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (errors_are_not_swallowed, "midi.py", "try:\n    f()\nexcept Exception as e:\n    g(e)"),
    (validation_survives_optimisation, "midi.py", "assert x > 0"),
    (only_the_command_line_prints, "midi.py", "print('x')"),
    (public_things_are_described, "midi.py", "def read():\n    return 1"),
    (public_things_are_described, "midi.py", "class Reader:\n    pass"),
    (annotations_are_postponed_outside_dag, "midi.py", "import os"),
    (annotations_are_postponed_outside_dag, "dag/build.py", "from __future__ import annotations"),
    (no_open_points_and_no_machine, "midi.py", "x = 1  # TO" + "DO: more"),
    (no_open_points_and_no_machine, "midi.py", "x = '/home/" + "someone/data'"),
]
GOOD = [
    (imports_point_down, "settings.py", "from beatsight_assets.store import Store"),
    (imports_point_down, "model/train.py", "from beatsight_assets.model.network import x\nfrom . import data"),
    (heavy_libraries_wait_for_their_function, "audio.py", "def f():\n    import librosa\nif TYPE_CHECKING:\n    import torch"),
    (heavy_libraries_wait_for_their_function, "dag/build.py", "import dagster as dg\nfrom dagster_pandas import x"),
    (
        no_pickle_and_no_stdlib_xml,
        "sources/idmt.py",
        'from defusedxml import ElementTree\n"""no pickle"""\ntorch.load(p, weights_only=True)',
    ),
    (no_code_from_data, "sources/x.py", "subprocess.run([a])\nyaml.safe_load(t)\ntar.extractall(p, filter='data')\nre.compile(a)"),
    (
        no_global_randomness_and_no_hash,
        "render/x.py",
        "rng = np.random.default_rng(7)\nrng.choice(x)\nrandom.Random(7)\nnp.random.Generator(b)",
    ),
    (
        only_the_store_gives_files_their_names,
        "health/x.py",
        "open(p)\nopen(p, 'rb')\np.open()\nkeep.publish(p, b'')\nImage.open(p)\n'w'.replace('a', 'w')",
    ),
    (only_the_store_gives_files_their_names, "store.py", "os.replace(a, b)"),
    (only_the_store_gives_files_their_names, "health/x.py", "buffer = io.BytesIO()\nnp.save(buffer, a)"),
    (paths_derive_from_the_data_root, "settings.py", "self.root / 'reports'"),
    (
        paths_derive_from_the_data_root,
        "bundle/x.py",
        "layout.bundle(name) / 'shards'\nroot / 'audio'\nwhere='reports/x.json'\nlayout.at(stated)",
    ),
    (only_the_command_line_prints, "dag/x.py", "print('x', file=sys.stderr)"),
    (public_things_are_described, "cli/x.py", '"""What."""\n@command("x", help="Does x.")\ndef x_command():\n    return 1'),
    (errors_are_not_swallowed, "midi.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    (only_the_command_line_prints, "cli/x.py", "print('x')"),
    (public_things_are_described, "midi.py", '"""What."""\ndef _read():\n    return 1'),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD, ids=lambda v: getattr(v, "__name__", v))
def test_the_lint_sees(rule: Callable[[Module], Found], path: str, text: str) -> None:
    """A lint that never fails is not trusted: each of its rules finds what it is for."""
    assert list(rule(Module(f"{PACKAGE}/{path}", text)))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD, ids=lambda v: getattr(v, "__name__", v))
def test_the_lint_lets_pass(rule: Callable[[Module], Found], path: str, text: str) -> None:
    """And what is allowed is not found."""
    assert not list(rule(Module(f"{PACKAGE}/{path}", text)))
