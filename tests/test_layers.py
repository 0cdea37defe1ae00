"""The architecture: imports go in one direction, and importing does nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gdml

PACKAGE = Path(gdml.__file__).parent

# A module may import from earlier lines, and from earlier on its own line.
LAYERS = [
    ["_version", "errors"],
    ["units", "geometry", "kernels", "npz", "progress", "hardware", "processes"],
    ["io", "dataset", "data"],
    [
        "symmetry.action",
        "symmetry.environments",
        "symmetry.group",
        "symmetry.molecules",
        "symmetry.crystals",
        "symmetry",
    ],
    [
        "descriptors.base",
        "descriptors.inverse_distances",
        "descriptors.distances",
        "descriptors.concatenated",
        "descriptors.periodic",
        "descriptors.autograd",
        "descriptors.internal",
        "descriptors.dihedrals",
        "descriptors.many_body",
        "descriptors.power_spectrum",
        "descriptors.side_by_side",
        "descriptors",
    ],
    [
        "contractions.base",
        "contractions.gemm",
        "contractions.keops",
        "contractions.lattice",
        "contractions.local",
        "contractions",
    ],
    [
        "baselines.pair_potentials",
        "baselines.bonded",
        "baselines.catalogue",
        "baselines.labels",
        "baselines.baseline",
        "baselines",
    ],
    ["linear"],
    ["operators"],
    [
        "preconditioners.neighbours",
        "preconditioners.nystrom",
        "preconditioners.uniform",
        "preconditioners.leverage",
        "preconditioners.pivoted",
    ],
    [
        "preconditioners.svd",
        "preconditioners",
        "solvers.cholesky",
        "solvers.cg",
        "solvers",
        "memory",
        "hyperparameters",
        "cost",
        "checkpoints",
    ],
    [
        "sgdml_models",
        "region",
        "posterior",
        "committee",
        "force_field",
        "metrics",
        "selection",
        "energies",
        "checks",
        "crystals",
        "solution",
        "plan",
        "pool",
        "metric",
        "observations",
        "training",
        "states.couplings",
        "states.operator",
        "states.posterior",
        "states.force_field",
        "states.data",
        "states.together",
        "states.training",
        "states",
        "uncertainty",
        "growing",
        "models",
    ],
    ["calculator", "lattice_dynamics", "minima", "attribution"],
    [
        "dynamics.normal_modes",
        "dynamics.thermostats",
        "dynamics.barostat",
        "dynamics.forces",
        "dynamics.averages",
        "dynamics.overdamped",
    ],
    ["dynamics.classical"],
    [
        "dynamics.settings",
        "dynamics.stability",
        "dynamics.ring_polymer",
        "dynamics.estimators",
        "dynamics.restarts",
        "dynamics.path_integrals",
        "dynamics",
    ],
    [
        "coarse.mapping",
        "coarse.motions",
        "coarse.prior",
        "coarse.turning",
        "coarse.noise",
        "coarse.hyperparameters",
        "coarse.fitting",
        "coarse.sampling",
        "coarse.free_energy",
        "coarse",
    ],
    ["active", "sampling", "distillation", "curves"],
    [
        "landscape.optimisers",
        "landscape.relaxation",
        "landscape.saddles",
        "landscape.likeness",
        "landscape.points",
        "landscape.exploration",
        "landscape.report",
        "landscape",
    ],
    [
        "plots",
        "cli_options",
        "cli_states",
        "cli_dynamics",
        "cli_workflows",
        "cli_landscape",
        "cli",
        "__main__",
        "ipi_driver",
    ],
]
ORDER = [module for layer in LAYERS for module in layer]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name:
            found[name] = path
    return found


def imported(name: str, path: Path) -> set[str]:
    """Modules of the package that a module imports, wherever in its code."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            found |= {target} if target else {alias.name for alias in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            if name != "ipi_driver":  # which i-PI loads by its path
                assert not any(n.split(".")[0] == "gdml" for n in names), f"{name} imports gdml by its full name"
    return found


def test_every_module_has_a_layer():
    assert set(modules()) == set(ORDER)


def test_imports_go_to_earlier_layers():
    for name, path in modules().items():
        for target in imported(name, path):
            assert ORDER.index(target) < ORDER.index(name), f"{name} imports {target}"


def test_the_science_is_where_it_belongs():
    """Contractions and solvers know nothing of atoms; kernels of nothing at all."""
    for name in ("contractions.gemm", "solvers.cholesky", "solvers.cg", "preconditioners.pivoted", "kernels"):
        source = modules()[name].read_text()
        assert "ase" not in {n.split(".")[0] for n in _external(source)}
    for name in ("cholesky", "cg"):
        assert imported(f"solvers.{name}", modules()[f"solvers.{name}"]) <= {"errors", "linear", "preconditioners"}
    assert imported("kernels", modules()["kernels"]) == {"errors"}


def _external(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return found


def test_import_has_no_side_effects():
    code = (
        "import sys, logging, warnings; before = warnings.showwarning\n"
        "import gdml; assert 'torch' not in sys.modules\n"
        "import torch; [getattr(gdml, name) for name in gdml.__all__]\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not {'pykeops', 'matplotlib', 'spglib'} & set(sys.modules), 'heavy import'\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('gdml').handlers\n"
        "assert warnings.showwarning is before\n"
        "assert torch.get_default_dtype() == torch.float32\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    assert set(gdml.__all__) <= set(dir(gdml))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gdml.nonsense


def test_public_names_have_docstrings():
    for name in gdml.__all__:
        if name != "__version__":
            assert getattr(gdml, name).__doc__, name
