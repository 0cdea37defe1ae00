"""The baselines that have a name, and the reading of such names."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones

from ..errors import BaselineError, MissingExtraError
from .bonded import Bonded
from .pair_potentials import ZBL, FixedCharges

Options = dict[str, object]  # what json can hold
# Of self-consistency in tblite: forces to 0.04 meV/Å; by its default, to 0.4, at almost the same cost.
ACCURACY = 0.1
TERM = re.compile(r"^([\w-]+)(?:\((.*)\))?$", re.DOTALL)


def _tblite(method: str) -> Callable[..., Calculator]:
    def make(**options) -> Calculator:
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise MissingExtraError("tblite", f"the baseline {method.lower()}", "xtb") from error
        return _checked(TBLite, {"method": method, "verbosity": 0, "accuracy": ACCURACY} | options)

    return make


def _lj(**options) -> Calculator:
    return _checked(LennardJones, options)


def _checked(calculator: type[Calculator], options: Options) -> Calculator:
    """A calculator that would take unknown options without a word."""
    unknown = sorted(set(options) - set(calculator.default_parameters))
    if unknown:
        raise BaselineError(
            f"{calculator.__name__} does not know {', '.join(unknown)}; its options are "
            f"{', '.join(calculator.default_parameters)}"
        )
    return calculator(**options)


def _d3(**options) -> Calculator:
    try:
        from dftd3.ase import DFTD3
    except ImportError as error:
        raise MissingExtraError("dftd3", "the baseline d3", "dispersion") from error
    return DFTD3(**{"damping": "d3bj"} | _with_method("d3", options))


def _d4(**options) -> Calculator:
    try:
        from dftd4.ase import DFTD4
    except ImportError as error:
        raise MissingExtraError("dftd4", "the baseline d4", "dispersion") from error
    return DFTD4(**_with_method("d4", options))


def _with_method(name: str, options: Options) -> Options:
    if "method" not in options:
        raise BaselineError(f"{name} needs the functional of the reference data, such as {name}(method=pbe)")
    return options


BY_NAME: dict[str, Callable[..., Calculator]] = {
    "gfn1-xtb": _tblite("GFN1-xTB"),
    "gfn2-xtb": _tblite("GFN2-xTB"),
    "d3": _d3,
    "d4": _d4,
    "zbl": ZBL,
    "coulomb": FixedCharges,
    "lj": _lj,
    "bonded": Bonded,
}


@dataclass(frozen=True)
class Term:
    """One calculator of a sum: by its name and options, or as it was given."""

    name: str
    options: Options = field(default_factory=dict)
    given: Calculator | None = None

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name

    def make(self) -> Calculator:
        """The calculator.

        Raises
        ------
        BaselineError
            For options that it does not take, or a calculator that a file could not hold.
        MissingExtraError
        """
        if self.given is not None:
            return self.given
        if self.name not in BY_NAME:
            raise BaselineError(
                f"the baseline is the calculator {self.name}, which a file cannot hold; give it: "
                "gdml.load(..., baseline=calculator)"
            )
        try:
            return BY_NAME[self.name](**self.options)
        except (BaselineError, MissingExtraError):
            raise
        except Exception as error:  # each library has its own
            raise BaselineError(f"the baseline {self} cannot be made: {type(error).__name__}: {error}") from error


def parse(text: str) -> list[Term]:
    """The terms of a sum such as "gfn1-xtb + d4(method=pbe)".

    Raises
    ------
    BaselineError
    """
    return [_parse_term(term.strip()) for term in re.split(r"\+(?![^()]*\))", text)]


def _parse_term(term: str) -> Term:
    found = TERM.match(term)
    if not found:
        raise BaselineError(f"the baseline {term!r} is not of the form name or name(option=value, option=value)")
    name, inside = found.groups()
    if name.lower() not in BY_NAME:
        raise BaselineError(f"unknown baseline {name!r}; known: {', '.join(BY_NAME)}")
    options = {}
    for part in filter(None, (part.strip() for part in (inside or "").split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise BaselineError(f"{part!r} in the baseline {term!r} is not of the form option=value")
        options[key.strip()] = _value(value.strip())
    return Term(name.lower(), options)


def _value(text: str) -> str | float | int | bool:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (str, float, int, bool)) else text
