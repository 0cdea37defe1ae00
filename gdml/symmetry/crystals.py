"""The permutations of a crystal's, surface's or wire's atoms by its space group.

An operation x -> A x + t that maps the ideal infinite structure onto itself, and
the lattice of the simulation cell onto itself, permutes the atoms of the cell.
These operations are found without a table:

1. *Linear parts.* The lattice of the cell has few rotations and reflections: the
   integer matrices W that keep the lengths of the lattice vectors and the angles
   between them, at most 48 in three dimensions and 12 in two. Across the periodic
   directions nothing repeats. There a layer can be turned over, and a wire turned
   about its axis by any angle that takes one of its outermost atoms to another,
   five-fold too. The centre of the structure stays.
2. *Translations.* Each operation takes one chosen atom of the rarest element to one
   like it, which fixes t. Each candidate is tried on all atoms.

Because the linear parts are those of the cell's own lattice, a cubic crystal in an
oblong cell keeps only what the oblong cell allows. spglib, which searches
differently, names the space group, and has to find as many operations.

Permutations by pure translations are a normal subgroup T. Everything is
T times a set of representatives of its cosets, so that sums over thousands of
permutations can be done in two steps.

Source: H. E. Sauceda et al., Nat. Commun. 13, 3733 (2022), for the use in force fields.
"""

import warnings
from dataclasses import dataclass
from itertools import product

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic, minkowski_reduce
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from ..errors import DataWarning, SymmetryError
from .group import PermutationGroup, embedded_rows, products

SAME_ATOM = 0.1  # Å; closer than this, two entries are one atom given twice
BONDED = 1.3  # of the sum of covalent radii, as in molecules
SMALLEST = 1e-3  # Å, the default of symprec, and what an idealised structure must fulfil


class CrystalGroup(PermutationGroup):
    """The permutations of a crystal's atoms, with its pure translations apart.

    Each element is exactly once ``t[q]`` with t a row of `translations` and q a
    row of `cosets`: in ``positions[t[q]]`` the geometry is permuted by t first,
    ``positions[t][q]``.

    Parameters
    ----------
    translations : (|T|, N) int array
        The permutations by pure translations, rows in any order. They commute,
        and the whole group normalises them.
    cosets : (|Q|, N) int array
        One representative of each coset of the translations, that of the
        translations themselves being the identity. Of atoms that the
        translations exchange, those found by `crystal_group` take the first to
        the first.
    spacegroup : str
        Space group or layer group of the infinite structure, such as
        "Fm-3m (225)", whether or not the cell allows all its operations.
    symprec : float
        The tolerance in Å at which it was found.

    Attributes
    ----------
    permutations : (|S|, N) int array
        All elements, sorted; as many as translations times cosets.

    Raises
    ------
    SymmetryError
        If the products are no group, or one occurs twice, or the translations are
        no commuting, normal subgroup.
    """

    def __init__(self, translations: ArrayLike, cosets: ArrayLike, *, spacegroup: str, symprec: float):
        self.translations = PermutationGroup(translations).permutations
        cosets = np.atleast_2d(np.asarray(cosets, dtype=np.int64))
        self.cosets = cosets[np.lexsort(cosets.T[::-1])]
        self.cosets.setflags(write=False)
        if not (self.cosets[0] == np.arange(self.cosets.shape[1])).all():
            raise SymmetryError("the identity is not among the cosets; it represents the translations themselves")
        super().__init__(products(self.translations, self.cosets))
        _check_translations(self.translations, self.cosets)
        self.spacegroup = spacegroup
        self.symprec = symprec

    @property
    def summary(self) -> str:
        found = f"{len(self.translations)} translations x {len(self.cosets)}"
        return f"of order {self.order} ({self.spacegroup}; {found})"

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        return self.translations, self.cosets

    def embedded(self, atoms: ArrayLike, n_atoms: int) -> "CrystalGroup":
        atoms = np.asarray(atoms)
        return CrystalGroup(
            embedded_rows(self.translations, atoms, n_atoms),
            embedded_rows(self.cosets, atoms, n_atoms),
            spacegroup=self.spacegroup,
            symprec=self.symprec,
        )

    def times(self, other: PermutationGroup) -> "CrystalGroup":
        cosets = products(self.cosets, other.permutations)
        return CrystalGroup(self.translations, cosets, spacegroup=self.spacegroup, symprec=self.symprec)

    def __repr__(self) -> str:
        return (
            f"CrystalGroup({self.spacegroup}, n_atoms={self.n_atoms}, "
            f"order={self.order}: {len(self.translations)} translations x {len(self.cosets)})"
        )


def crystal_group(reference: Atoms, *, symprec: float = SMALLEST) -> CrystalGroup:
    """The permutations of a crystal's atoms under the operations of its space group.

    All operations of the infinite structure that map the lattice of the given
    cell onto itself. Without periodicity along one direction (a sheet, a slab)
    those of its layer group, along two (a wire, a tube) those of its rod group:
    the length of the vacuum does not matter.

    Parameters
    ----------
    reference : ase.Atoms
        The ideal structure: cell (Å, any shape and handedness), numbers, `pbc`.
        For averages of a trajectory see `symmetrised_reference`.
    symprec : float
        How far, in Å, an atom or the end of a lattice vector may be from its
        place in the ideal structure that fits best; in wires, half of it.

    Returns
    -------
    CrystalGroup
        Operations that permute the atoms equally are one element, so in tiny
        cells the order is less than the number of operations.

    Raises
    ------
    SymmetryError
        If nothing is periodic, the cell is singular, two atoms are in one place,
        there is no vacuum along a direction without periodicity, or the structure
        lies between two symmetries at this tolerance.
    """
    if not 0 < symprec < np.inf:
        raise SymmetryError(f"symprec is a positive length in Å, not {symprec}")
    _check_reference(reference)
    crystal = _Crystal.of(reference, symprec)
    found = _search(crystal, symprec, symprec)
    spacegroup = _spacegroup(found, symprec)
    cosets = np.unique(_first_to_first(found.parts, found.translations), axis=0)
    try:
        return CrystalGroup(found.translations, cosets, spacegroup=spacegroup, symprec=symprec)
    except SymmetryError as error:
        raise SymmetryError(_between(symprec, f"the permutations found are no group ({error})")) from error


def symmetrised_reference(
    positions: ArrayLike, cell: ArrayLike, numbers: ArrayLike, pbc: ArrayLike = True, *, max_symprec: float = 0.3
) -> Atoms:
    """The ideal structure around which the frames of a trajectory fluctuate.

    Their mean, made symmetric: tolerances up to `max_symprec` are tried, and the
    largest symmetry taken that is found at two or more of them in a row. The cell
    stays as it is; a cell that is only nearly cubic is not cubic.

    Parameters
    ----------
    positions : (M, N, 3) array
        Frames in Å, with the same atoms in the same order; wrapped into the cell
        or not, adrift or not.
    cell : (3, 3) array
        Lattice vectors as rows, Å, the same for all frames.
    numbers : (N,) int array
        Atomic numbers.
    pbc : bool or three bools
        Which lattice vectors are periods.
    max_symprec : float
        Largest tolerance in Å. Distortions below it may be averaged out: set it
        lower where a small one is real.

    Returns
    -------
    ase.Atoms
        With `info` on what was found: "spacegroup", "operations" (their number),
        "symprec" (Å, the smallest tolerance that finds them), "moved" (Å, the
        farthest that an atom was moved from its mean place).

    Raises
    ------
    SymmetryError
        If an atom does not stay at its place, or as by `crystal_group`.

    Warns
    -----
    DataWarning
        If atoms were moved by more than five standard errors of their mean
        place: a distortion may be real, or the frames much correlated.
    """
    frames = np.asarray(positions, dtype=float)
    numbers = np.asarray(numbers)
    if frames.ndim != 3 or frames.shape[1:] != (len(numbers), 3) or not len(frames):
        raise SymmetryError(f"frames of {len(numbers)} atoms have the shape (M, {len(numbers)}, 3), not {frames.shape}")
    if not 2 * SMALLEST <= max_symprec < np.inf:
        raise SymmetryError(f"max_symprec is a length of at least {2 * SMALLEST} Å, not {max_symprec}")
    _check_reference(Atoms(numbers, frames[0], cell=cell, pbc=pbc))
    mean, spread = _mean_structure(Atoms(numbers, frames[0], cell=cell, pbc=pbc), frames)
    ideal, found, symprec = _most_symmetric(mean, max_symprec)
    moved = np.linalg.norm(find_mic(ideal.positions - mean.positions, mean.cell, mean.pbc)[0], axis=1)
    expected = spread / np.sqrt(len(frames))
    if len(frames) > 1 and np.sqrt((moved**2).mean()) > 5 * expected:
        warnings.warn(
            f"making the mean structure symmetric moved its atoms by {np.sqrt((moved**2).mean()):.3g} Å, "
            f"where the standard error of {len(frames)} independent frames is {expected:.2g} Å; "
            f"if a distortion is real, give a max_symprec below {symprec:.2g} Å",
            DataWarning,
            stacklevel=2,
        )
    ideal.info.update(
        spacegroup=_spacegroup(found, SMALLEST),
        operations=len(found.translations) * len(found.parts),
        symprec=symprec,
        moved=float(moved.max()),
    )
    return ideal


@dataclass(frozen=True)
class _Crystal:
    """Atoms that repeat along one, two or three vectors.

    positions : (N, 3), in the cell, and centred where nothing repeats.
    vectors : (d, 3), reduced; right-handed if there are three.
    dual : (3, d); ``x @ dual`` are the coordinates along the vectors.
    across : (3, 3), projection on the directions in which nothing repeats.
    origin : (3,), what was subtracted to centre the positions.
    tree, owner : the atoms and their images close to the cell, and whose they are.
    """

    positions: np.ndarray
    numbers: np.ndarray
    vectors: np.ndarray
    dual: np.ndarray
    across: np.ndarray
    origin: np.ndarray
    tree: cKDTree
    owner: np.ndarray

    @classmethod
    def of(cls, atoms: Atoms, symprec: float) -> "_Crystal":
        reduced, _ = minkowski_reduce(atoms.cell[:], atoms.pbc)
        vectors = reduced[atoms.pbc]
        if len(vectors) == 3 and np.linalg.det(vectors) < 0:
            vectors = -vectors  # the same lattice; the name of the space group depends on the handedness
        crystal = cls.at(atoms.positions, atoms.numbers, vectors, max(SAME_ATOM, 4 * symprec))
        _check_apart(crystal, symprec)
        return crystal

    @classmethod
    def at(cls, positions: np.ndarray, numbers: np.ndarray, vectors: np.ndarray, reach: float) -> "_Crystal":
        dual = np.linalg.pinv(vectors)
        across = np.eye(3) - dual @ vectors
        origin = positions.mean(0) @ across
        inside = positions - origin
        inside = inside - np.floor(inside @ dual) @ vectors
        margin = reach * np.linalg.norm(dual, axis=0)
        images, owner = [], []
        for shift in product((-1, 0, 1), repeat=len(vectors)):
            along = inside @ dual + shift
            near = np.flatnonzero(((along > -margin) & (along < 1 + margin)).all(1))
            images.append(inside[near] + np.array(shift) @ vectors)
            owner.append(near)
        return cls(
            inside, numbers, vectors, dual, across, origin, cKDTree(np.concatenate(images)), np.concatenate(owner)
        )

    def nearest(self, points: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """The atom closest to each of (..., 3) points, or -1, and the way to it (..., 3) in Å."""
        wrapped = points - np.floor(points @ self.dual) @ self.vectors
        distance, image = self.tree.query(wrapped, distance_upper_bound=reach)
        missing = np.isinf(distance)
        image[missing] = 0
        return np.where(missing, -1, self.owner[image]), self.tree.data[image] - wrapped


@dataclass(frozen=True)
class _Found:
    """Operations of a crystal.

    crystal : symmetric on average over the operations.
    translations : (|T|, N) permutations by pure translations.
    parts : (K, N) permutations, one operation for each linear part.
    linear : (K, 3, 3), these linear parts.
    """

    crystal: _Crystal
    translations: np.ndarray
    parts: np.ndarray
    linear: np.ndarray


def _search(crystal: _Crystal, symprec: float, strain: float) -> _Found:
    """All operations at tolerances in Å for the atoms and for the lattice vectors.

    Translations first: afterwards one target in each of their orbits suffices.
    """
    anchor = _anchor(crystal, symprec)
    alike = np.flatnonzero(crystal.numbers == crystal.numbers[anchor])
    _, rows, offsets = _matches(crystal, np.tile(np.eye(3), (len(alike), 1, 1)), anchor, alike, symprec)
    translations = rows[np.lexsort(rows.T[::-1])]
    crystal = _averaged(crystal, rows, offsets, symprec)
    targets = np.intersect1d(alike, translations.min(0))
    linear, targets = _candidates(crystal, anchor, targets, symprec, strain)
    kept, rows, offsets = _matches(crystal, linear, anchor, targets, symprec)
    return _Found(_averaged(crystal, rows, offsets, symprec), translations, rows, linear[kept])


def _anchor(crystal: _Crystal, symprec: float) -> int:
    """The atom whose images are tried: of the rarest element, or outermost in a wire, for the angle."""
    if len(crystal.vectors) == 1:
        radius = np.linalg.norm(crystal.positions @ crystal.across, axis=1)
        if radius.max() > 4 * symprec:
            return int(radius.argmax())
    elements, counts = np.unique(crystal.numbers, return_counts=True)
    return int(np.flatnonzero(crystal.numbers == elements[counts.argmin()])[0])


def _matches(
    crystal: _Crystal, linear: np.ndarray, anchor: int, targets: np.ndarray, symprec: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which candidates map the crystal onto itself.

    Parameters
    ----------
    linear : (K, 3, 3) array
        Linear parts; candidate k takes `anchor` to ``targets[k]``.

    Returns
    -------
    kept : (L,) int array
        Candidates that do.
    rows : (L, N) int array
        The atom to which each atom is taken.
    offsets : (L, N, 3) array
        How far it still is to it, in Å, after the best translation.
    """
    x = crystal.positions
    # No translation where nothing repeats: the centre stays.
    shifts = (x[targets] - linear @ x[anchor]) @ (np.eye(3) - crystal.across)
    alive = np.arange(len(linear))
    for a in range(len(x)):  # atom by atom, storing nothing: most candidates fail at the first ones
        image, _ = crystal.nearest(linear[alive] @ x[a] + shifts[alive], 4 * symprec)
        alive = alive[(image >= 0) & (crystal.numbers[image] == crystal.numbers[a])]
    points = x @ linear[alive].transpose(0, 2, 1) + shifts[alive, None]
    rows, offsets = crystal.nearest(points, 4 * symprec)
    offsets -= offsets.mean(1, keepdims=True)
    good = np.linalg.norm(offsets, axis=2).max(1, initial=0) <= 2 * symprec
    good &= (np.sort(rows, axis=1) == np.arange(len(x))).all(1)
    good &= (crystal.numbers[rows] == crystal.numbers).all(1)
    # In a layer an atom above the target would give the same shift, and the operation again.
    good &= rows[:, anchor] == targets[alive]
    return alive[good], rows[good], offsets[good]


def _candidates(
    crystal: _Crystal, anchor: int, targets: np.ndarray, symprec: float, strain: float
) -> tuple[np.ndarray, np.ndarray]:
    """Linear parts (K, 3, 3) that keep the lattice, each with an atom (K,) to take the anchor to."""
    along = [crystal.dual @ w @ crystal.vectors for w in _automorphisms(crystal.vectors, strain)]
    if len(crystal.vectors) == 1:
        pairs = [(t, r) for t in targets for r in _turns(crystal, anchor, t, symprec)]
    else:
        signs = (1, -1) if len(crystal.vectors) == 2 else (1,)
        pairs = [(t, s * crystal.across) for t in targets for s in signs]
    linear = [(w + r).T for t, r in pairs for w in along]
    return np.array(linear).reshape(-1, 3, 3), np.repeat([t for t, _ in pairs], len(along)).astype(np.int64)


def _automorphisms(vectors: np.ndarray, strain: float) -> np.ndarray:
    """Integer matrices (K, d, d) whose products with the (d, 3) lattice vectors have the same lengths and angles."""
    metric = vectors @ vectors.T
    lengths = np.sqrt(np.diag(metric))
    # Ends of vectors that are off by this length change their products by this much.
    tolerance = 2 * strain * (lengths[:, None] + lengths)
    bound = np.floor((lengths.max() + 4 * strain) * np.linalg.norm(np.linalg.pinv(vectors), axis=0)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-b, b + 1) for b in bound), indexing="ij"), -1).reshape(-1, len(bound))
    norms = ((grid @ vectors) ** 2).sum(1)
    chosen = np.empty((1, 0, len(vectors)), dtype=np.int64)
    for i in range(len(vectors)):
        rows = grid[np.abs(norms - metric[i, i]) <= tolerance[i, i]]
        angles = np.einsum("kad,de,le->kla", chosen, metric, rows)
        k, row = np.nonzero((np.abs(angles - metric[i, :i]) <= tolerance[i, :i]).all(2))
        chosen = np.concatenate([chosen[k], rows[row][:, None]], axis=1)
    return chosen[np.abs(np.abs(np.linalg.det(chosen)) - 1) < 0.5]


def _turns(crystal: _Crystal, anchor: int, target: int, symprec: float) -> list[np.ndarray]:
    """The rotation and the reflection of the plane across a wire that take one atom to another."""
    plane = np.linalg.svd(crystal.across)[0][:, :2]
    a, b = crystal.positions[[anchor, target]] @ plane
    if abs(np.linalg.norm(a) - np.linalg.norm(b)) > 4 * symprec:
        return []
    if np.linalg.norm(a) <= 4 * symprec:  # all atoms on the axis
        return [crystal.across]
    first, second = np.arctan2(a[1], a[0]), np.arctan2(b[1], b[0])
    turn, mirror = second - first, second + first
    rotation = [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    reflection = [[np.cos(mirror), np.sin(mirror)], [np.sin(mirror), -np.cos(mirror)]]
    return [plane @ np.array(matrix) @ plane.T for matrix in (rotation, reflection)]


def _averaged(crystal: _Crystal, rows: np.ndarray, offsets: np.ndarray, symprec: float) -> _Crystal:
    """The crystal with each atom in the middle of where the operations put its equivalents."""
    back = np.zeros_like(crystal.positions)
    np.add.at(back, rows, offsets)
    positions = crystal.positions - back / len(rows) + crystal.origin
    return _Crystal.at(positions, crystal.numbers, crystal.vectors, max(SAME_ATOM, 4 * symprec))


def _first_to_first(rows: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Of each coset of the translations the element that takes the first atom to the first of an orbit.

    Translations leave no atom where it is, so there is exactly one.
    """
    first = translations.min(0)
    image = rows[:, 0]
    back = (translations == first).argmax(0)[image]
    return translations[back[:, None], rows]


def _check_translations(translations: np.ndarray, cosets: np.ndarray) -> None:
    known = {t.tobytes() for t in translations}
    for t in translations:
        if not (translations[:, t] == t[translations]).all():
            raise SymmetryError(f"the translations do not commute: {t.tolist()} and another")
    for q in cosets:
        inverse = np.argsort(q)
        if any(row.tobytes() not in known for row in q[translations[:, inverse]]):
            raise SymmetryError(f"the translations are no normal subgroup: {q.tolist()} takes one of them elsewhere")


def _spacegroup(found: _Found, symprec: float) -> str:
    """Name and number of the space group or layer group, from spglib.

    Raises
    ------
    SymmetryError
        If spglib finds none, or another number of operations.
    """
    import spglib

    cell = _cell_of_averages(found)
    operations = len(found.translations) * len(found.parts)
    kind = len(found.crystal.vectors)
    if kind == 1:
        return f"rod group with {operations} operations"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of returning None rather than raising
        if kind == 2:
            dataset = spglib.get_symmetry_layerdataset(cell, aperiodic_dir=2, symprec=symprec)
        else:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
    if dataset is None:
        raise SymmetryError(_between(symprec, f"spglib finds no space group ({operations} operations fit)"))
    if len(dataset.rotations) != operations:
        named = f"{dataset.international} ({dataset.number})"
        raise SymmetryError(
            _between(symprec, f"{operations} operations fit; spglib finds {named} with {len(dataset.rotations)}")
        )
    return f"{dataset.international} ({dataset.number})"


def _cell_of_averages(found: _Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lattice (3, 3), scaled positions (N, 3) and numbers, exactly symmetric, with c as vacuum in layers."""
    crystal = found.crystal
    metric = crystal.vectors @ crystal.vectors.T
    integer = crystal.vectors @ found.linear.transpose(0, 2, 1) @ crystal.dual
    metric = (integer @ metric @ integer.transpose(0, 2, 1)).mean(0)
    scaled = crystal.positions @ crystal.dual
    lattice = np.eye(3)
    lattice[: len(metric), : len(metric)] = np.linalg.cholesky(metric)
    if len(metric) == 2:
        normal = np.cross(*crystal.vectors)
        height = crystal.positions @ normal / np.linalg.norm(normal)
        lattice[2, 2] = np.ptp(height) + 20.0
        scaled = np.column_stack([scaled, 0.5 + height / lattice[2, 2]])
    return lattice, scaled, crystal.numbers


def _between(symprec: float, what: str) -> str:
    return (
        f"at symprec={symprec:.3g} Å the structure lies between two symmetries: {what}. "
        "Give another symprec, or an ideal structure: see symmetrised_reference"
    )


def _mean_structure(first: Atoms, frames: np.ndarray) -> tuple[Atoms, float]:
    """Mean of the frames (M, N, 3), close to the first, and the rms displacement from it in Å."""
    steps = frames - frames[0]
    steps = steps - steps[:, :1]  # a drift of the whole may exceed half a cell, that of one atom from another not
    steps = find_mic(steps.reshape(-1, 3), first.cell, first.pbc)[0].reshape(steps.shape)
    steps = steps - steps.mean(1, keepdims=True)
    mean = first.copy()
    mean.positions += steps.mean(0)
    rms = np.sqrt(((steps - steps.mean(0)) ** 2).sum(-1).mean(0))
    _check_stays(first, rms)
    return mean, float(np.sqrt((rms**2).mean()))


def _check_stays(first: Atoms, rms: np.ndarray) -> None:
    atom = int(rms.argmax())
    distances = first.get_distances(atom, [a for a in range(len(first)) if a != atom], mic=True)
    if rms[atom] > 0.3 * distances.min(initial=np.inf):
        raise SymmetryError(
            f"atom {atom} ({first.symbols[atom]}) moves by {rms[atom]:.3g} Å (rms) about its mean place, "
            f"{distances.min():.3g} Å from its neighbour: it does not stay at one place of a crystal. "
            "Give a reference built by hand, or frames without the atoms that wander"
        )


def _most_symmetric(mean: Atoms, max_symprec: float) -> tuple[Atoms, _Found, float]:
    """The structure of the largest group found at two tolerances in a row, and the smaller tolerance.

    A group found at a single one is an accident of the tolerance.
    """
    steps = 2 + int(np.log(max_symprec / SMALLEST) / np.log(1.6))
    tolerances, counts = [], []
    for symprec in np.geomspace(SMALLEST, max_symprec, steps):
        try:
            found = _search(_Crystal.of(mean, symprec), symprec, SMALLEST)
        except SymmetryError:
            if not counts:
                raise
            break  # neighbours can no longer be told apart
        tolerances.append(float(symprec))
        counts.append(len(found.translations) * len(found.parts))
    steady = [k for k in range(len(counts) - 1) if counts[k] == counts[k + 1]]
    for k in sorted(steady, key=lambda k: (-counts[k], tolerances[k])):
        ideal, found = _idealised(mean, tolerances[k])
        if len(found.translations) * len(found.parts) == counts[k]:
            return ideal, found, tolerances[k]
    raise SymmetryError(
        f"no symmetry holds over a range of tolerances; operations found at {SMALLEST} to {tolerances[-1]:.2g} Å: "
        f"{counts}. Give more frames, or a reference built by hand"
    )


def _idealised(mean: Atoms, symprec: float) -> tuple[Atoms, _Found]:
    """The structure averaged over the operations found at a tolerance, and the operations that it has."""
    ideal = mean.copy()
    for _ in range(20):  # the second changes nothing, but in wires, whose angles are not known beforehand
        found = _search(_Crystal.of(ideal, symprec), symprec, SMALLEST)
        new = found.crystal.positions + found.crystal.origin
        step, lengths = find_mic(new - ideal.positions, ideal.cell, ideal.pbc)
        ideal.positions += step
        if lengths.max() < 1e-9:
            break
    return ideal, _search(_Crystal.of(ideal, SMALLEST), SMALLEST, SMALLEST)


def _check_reference(atoms: Atoms) -> None:
    """Raise on what is no structure that repeats along its periodic lattice vectors."""
    if not len(atoms):
        raise SymmetryError("the reference has no atoms")
    if not atoms.pbc.any():
        raise SymmetryError("the reference has no periodic direction (pbc); for a molecule use molecular_group")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if bad.size:
        raise SymmetryError(f"the position of atom {bad[0]} is {atoms.positions[bad[0]].tolist()}")
    vectors = atoms.cell[:][atoms.pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if not volume > 1e-6 * np.prod(lengths):
        raise SymmetryError(
            f"the cell is singular: its periodic vectors {vectors.tolist()} are zero or linearly dependent; "
            "give independent ones, and set pbc to False where nothing repeats"
        )
    _check_vacuum(atoms)


def _check_vacuum(atoms: Atoms) -> None:
    """Raise if atoms are bonded across a boundary that is said not to be periodic."""
    open_vectors = [k for k in range(3) if not atoms.pbc[k] and atoms.cell[k].any()]
    dual = np.linalg.pinv(atoms.cell[:][atoms.pbc])
    across = np.eye(3) - dual @ atoms.cell[:][atoms.pbc]
    radii = covalent_radii[atoms.numbers]
    for signs in product((-1, 0, 1), repeat=len(open_vectors)):
        if not any(signs) or next(s for s in signs if s) < 0:  # one of each pair of opposite ones
            continue
        shift = np.array(signs) @ atoms.cell[:][open_vectors]
        i, j = _closer_across(atoms.positions @ across, shift @ across, BONDED * 2 * radii.max())
        distance = find_mic(atoms.positions[j] + shift - atoms.positions[i], atoms.cell, atoms.pbc)[1]
        bonded = np.flatnonzero(distance < BONDED * (radii[i] + radii[j]))
        if bonded.size:
            k = bonded[distance[bonded].argmin()]
            names = " and ".join("abc"[open_vectors[n]] for n, s in enumerate(signs) if s)
            raise SymmetryError(
                f"pbc is False along {names}, but there is no vacuum: atoms {i[k]} and {j[k]} are {distance[k]:.3g} Å "
                "apart across the boundary. Set pbc to True, or unwrap the atoms and make the cell longer"
            )


def _closer_across(heights: np.ndarray, shift: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j) with j shifted closer than `reach` to i, by their (N, 3) heights alone."""
    near = cKDTree(heights).sparse_distance_matrix(cKDTree(heights + shift), reach, output_type="ndarray")
    return near["i"].astype(np.int64), near["j"].astype(np.int64)


def _check_apart(crystal: _Crystal, symprec: float) -> None:
    """Raise if the tolerance cannot tell two atoms apart."""
    reach = max(SAME_ATOM, 4 * symprec)
    pairs = crystal.tree.query_pairs(reach, output_type="ndarray")
    if len(pairs):
        distances = np.linalg.norm(crystal.tree.data[pairs[:, 0]] - crystal.tree.data[pairs[:, 1]], axis=1)
        a, b = sorted(crystal.owner[pairs[distances.argmin()]].tolist())
        raise SymmetryError(
            f"atoms {a} and {b} are {distances.min():.3g} Å apart, and symprec={symprec:.3g} Å needs more than "
            f"{reach:.3g}; remove one if it was given twice, else lower symprec"
        )
