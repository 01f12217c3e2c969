"""The house of modules: imports go down only, and Ray stays in its rooms."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "leapray"
FLOORS = [
    {"", "TMPDIR", "__version__", "errors", "faults", "storage", "settings", "climsim", "console"},
    {
        "recipe",
        "registry",
        "cluster",
        "provenance",
        "stages",
        "evaluation",
    },
    {"data"},
    {"models"},
    {"training"},
    {"inference"},
    {"experiment"},
    {"demo", "bench", "doctor", "doctor_nodes", "doctor_places", "plan"},
    {"cli"},
]
RAY_ROOMS = {
    "cluster.local_ray",
    "cluster.nodes",
    "cluster.notice",
    "cluster.ray_compat",
    "cluster.session",
    "provenance",
    "data.convert",
    "data.stream",
    "data.tasks",
    "training.gauges",
    "training.trainer",
    "training.tuning",
    "training.workers",
    "inference.apart",
    "inference.predict",
    "doctor_nodes",
}


def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name below the package."""
    names = {
        path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        for path in PACKAGE.rglob("*.py")
    }
    return {name: ast.parse(path.read_text()) for path, name in names.items()}


def imported(module: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "leapray" else {node.module}
    return found


def floor(name: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if name.split(".")[0] in rooms)


def test_every_module_has_a_floor_and_imports_only_its_own_or_a_lower_one() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, module in modules().items()
        for target in imported(module)
        if target.startswith("leapray.") and floor(target.removeprefix("leapray.")) > floor(name)
    ]
    assert wrong == []


def test_ray_is_imported_only_where_it_is_said_to_be() -> None:
    found = {name for name, module in modules().items() if any(target.split(".")[0] == "ray" for target in imported(module))}
    assert found == RAY_ROOMS


def test_only_the_command_line_imports_the_benches() -> None:
    users = {name.split(".")[0] for name, module in modules().items() if any(t.startswith("leapray.bench") for t in imported(module))}
    assert users == {"bench", "cli"}


PUBLIC_SWITCHES = {"RAY_ADDRESS", "RAY_TMPDIR"}


def test_private_interfaces_and_switches_of_ray_stand_in_one_file() -> None:
    wrong = []
    for name, module in modules().items():
        if name == "cluster.ray_compat":
            continue
        private = [target for target in imported(module) if target.startswith("ray.") and re.search(r"\._|\.impl\b", target)]
        constants = [node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        switches = {text for text in constants if re.fullmatch(r"(RAY|TUNE)_[A-Za-z_]+", text)} - PUBLIC_SWITCHES
        wrong += [f"{name}: {found}" for found in (*private, *switches)]
    assert wrong == []


def test_what_the_data_is_needs_neither_torch_nor_ray() -> None:
    heavy = {
        name: target
        for name, module in modules().items()
        if name.startswith(("climsim", "evaluation", "storage", "recipe"))
        for target in imported(module)
        if target.split(".")[0] in {"torch", "ray"}
    }
    assert heavy == {}


def test_nothing_is_unpickled_from_storage() -> None:
    # Ray Data's tasks hand their results to the driver as pickles, which never touch storage; and a bench loads what it has just written
    unsafe = {"torch.load", "yaml.unsafe_load", "yaml.full_load", "pickle.load", "pickle.loads"}
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in unsafe
    ]
    assert sorted(found) == ["bench.loaders: torch.load", "data.tasks: pickle.loads"]
