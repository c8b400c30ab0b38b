"""Free fluence of fixed fields, without leaves: a plan-like dose in seconds, for data sets.

What depends on anatomy, prescription and beams alone is computed once (`prepare_fields`); each further wish
of goals and weights is one convex search from the same start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.dose.pencil_beam.field_dose import convolved_maps, directions_of, field_dose, shares_of
from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, fluence_model
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose, sampled_doses
from vmat_diffusion.dose.tissue import Density, density_of, dose_grid
from vmat_diffusion.errors import PlanError
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, Normalization, normalization_gy
from vmat_diffusion.geometry import Mask, Point, beam_axes
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.aperture import NODES_MM
from vmat_diffusion.optimize.arcs import all_around, isocenter_of, target_points
from vmat_diffusion.optimize.fluence_map import bixels_over_targets
from vmat_diffusion.optimize.objective_terms import ObjectiveTerm
from vmat_diffusion.optimize.objectives import Objective, build_objective
from vmat_diffusion.plan import FluenceFields

# Of the most points of a structure, so many do for a dose that is one of thousands.
_SHARE = 0.35
# Voxels of the map of the falloff around targets, mm.
_CEILING_MM = 4.0
_BIXEL_MM = 5.0
# No bixel gives more than this many times what a uniform field would: step and shoot has such peaks.
_HIGHEST = 4.0
# Steps between neighbours below this share of a uniform field are rounded off in the roughness.
_SMALL_STEP = 0.1
# On the differences of neighbouring bixels, summed per field, in units of a uniform field. With ten times
# less, and hot dose weighed as in plans, D1 of the highest level is 3 Gy above that of clinical doses.
_ROUGHNESS = 1e-2
# Evaluations of the objective from uniform fields to the start of all wishes, and from there to a wish, each
# in rounds between which goals are weighed anew.
_START_EVALUATIONS, _START_ROUNDS, _START_HOT = 60, 3, 10.0
_EVALUATIONS, _ROUNDS = 80, 5

# What the drawn weights multiply; of their own, so that a planner tuned anew changes no simulated dose.
_UNDERDOSE, _OVERDOSE, _SPARING = 8000.0, 20.0, 4.0


@dataclass(frozen=True)
class Weights:
    """What a wish weighs beside its goals; 1 is the optimiser's own weight.

    `sparing` by organ weighs its mean dose; `roughness` the differences of neighbouring bixels.
    """

    sparing: Mapping[str, float]
    goals: float = 1.0
    coverage: float = 1.0
    hot: float = 1.0
    tissue: float = 1.0
    roughness: float = 1.0


@dataclass(frozen=True, eq=False)
class FieldSetup:
    """What all doses of one anatomy, prescription and beam set share.

    `objective` has a term for every goal that a wish may ask for. `open_bixels[fields, rows, columns]`.
    """

    case: Case
    machine: Machine
    prescription: Prescription
    effort: float
    gantry_deg: NDArray[np.float64]
    isocenter_mm: Point
    density: Density
    model: FluenceModel
    row_edges_mm: NDArray[np.float64]
    column_edges_mm: NDArray[np.float64]
    open_bixels: NDArray[np.bool_]
    sampled: SampledDose
    objective: Objective

    @cached_property
    def _shares(self) -> tuple[Tensor, Tensor]:
        return shares_of(self.model, self.row_edges_mm, self.column_edges_mm)

    @property
    def collimator_deg(self) -> NDArray[np.float64]:
        """The collimator stands at 0."""
        return np.zeros(len(self.gantry_deg))

    def dose(self, mu: Tensor) -> Tensor:
        """Relative dose at the objective's points of maps in MU."""
        gy_per_mu = self.machine.require_beam().gy_per_mu
        relative_per_mu = gy_per_mu * self.prescription.fractions / self.objective.reference_gy
        return self.sampled.dose(convolved_maps(mu, *self._shares)) * relative_per_mu

    @cached_property
    def uniform_mu(self) -> float:
        """MU of every open bixel with which the targets get their prescription in the mean."""
        with torch.no_grad():
            dose = self.dose(torch.as_tensor(self.open_bixels).float())
        regions = [self.objective.regions[t] for t in self.objective.target_gy]
        return 1.0 / float(torch.cat([dose[r.points] for r in regions]).mean().clamp_min(1e-9))

    @cached_property
    def _index(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.open_bixels)

    def maps(self, x: NDArray) -> NDArray[np.float32]:
        """The maps in MU, from the fluence of the open bixels in units of `uniform_mu`."""
        full = np.zeros(self.open_bixels.size, np.float32)
        full[self._index] = x
        return full.reshape(self.open_bixels.shape) * np.float32(self.uniform_mu)

    def fields(self, x: NDArray) -> FluenceFields:
        """The fields of a fluence."""
        return FluenceFields(
            self.gantry_deg,
            self.collimator_deg,
            self.maps(x),
            self.row_edges_mm,
            self.column_edges_mm,
            self.isocenter_mm,
            self.prescription.fractions,
        )

    def cost(self, x: NDArray, objective: Objective, roughness: float) -> tuple[float, NDArray]:
        """Objective and roughness of a fluence, and their gradient."""
        mu = torch.from_numpy(self.maps(x)).requires_grad_(True)
        value = objective(self.dose(mu)) + roughness * _roughness(mu / self.uniform_mu)
        value.backward()
        assert mu.grad is not None
        return value.item(), mu.grad.numpy().ravel()[self._index].astype(np.float64) * self.uniform_mu

    @cached_property
    def start(self) -> NDArray[np.float64]:
        """The fluence with which all wishes begin: targets covered, tissue spared, no goals of organs."""
        of_targets = [t.goal for t in self.objective.terms if t.goal.structure in self.objective.target_gy]
        goals = [(goal, goal) for goal in of_targets]
        objective = _wished(self, goals, Weights({}, hot=_START_HOT), self.objective.normalization)
        x = np.ones(len(self._index))
        return self._minimised(x, objective, 1.0, _START_EVALUATIONS, _START_ROUNDS)

    def search(
        self, goals: Sequence[tuple[Goal, Goal]], weights: Weights, normalization: Normalization
    ) -> NDArray[np.float64]:
        """The fluence that serves a wish best, in units of `uniform_mu`.

        `goals` are pairs of a goal of the setup's sheet and what becomes of it; the others do not count.
        """
        objective = _wished(self, goals, weights, normalization)
        return self._minimised(self.start, objective, weights.roughness, _EVALUATIONS, _ROUNDS)

    def _minimised(
        self, x: NDArray, objective: Objective, roughness: float, evaluations: int, rounds: int
    ) -> NDArray[np.float64]:
        calls = max(int(evaluations * self.effort) // rounds, 2)
        for _ in range(rounds):
            x = minimize(
                self.cost, x, args=(objective, roughness), jac=True, method="L-BFGS-B",
                bounds=[(0, _HIGHEST)] * len(x),
                options={"maxfun": calls, "maxiter": calls, "maxcor": 10},
            ).x  # fmt: skip
            objective, _ = objective.adapt(self.relative_dose(x))
        return x

    def relative_dose(self, x: NDArray) -> NDArray[np.float32]:
        """Relative dose at the objective's points."""
        with torch.no_grad():
            dose: NDArray[np.float32] = self.dose(torch.from_numpy(self.maps(x))).numpy()
        return dose


def _roughness(relative: Tensor) -> Tensor:
    """Differences of neighbouring bixels, rounded off at small ones, summed per field."""
    total = relative.new_zeros(())
    for dim in (1, 2):
        step = torch.diff(torch.nn.functional.pad(relative, (1, 1) if dim == 2 else (0, 0, 1, 1)), dim=dim)
        total = total + ((step.square() + _SMALL_STEP**2).sqrt() - _SMALL_STEP).sum()
    return _ROUGHNESS * total / len(relative)


def prepare_fields(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    gantry_deg: Sequence[float],
    *,
    seed: int,
    density_mm: float = 3.0,
    effort: float = 1.0,
) -> FieldSetup:
    """Sample the structures that the sheet names and trace all beams to the points.

    `sheet` names every goal that a wish may ask for; its targets alone are irradiated. `density_mm` is the
    size of the voxels that the rays pass; `effort` multiplies the evaluations of each search.
    """
    targets = tuple(n for n in sheet.prescription.target_gy if n in case.structures)
    isocenter = isocenter_of(case, targets)
    angles = np.asarray(gantry_deg, float)
    objective = build_objective(
        case, sheet, dose_grid(case, _CEILING_MM), np.random.default_rng(seed), share=_SHARE
    )
    x1, x2, y1, y2 = all_around(case, targets, isocenter, machine, directions=36, collimator_deg=0.0).jaws_mm
    columns = x1 + _BIXEL_MM * np.arange(round(np.ceil((x2 - x1) / _BIXEL_MM)) + 1)
    edges = machine.row_edges_mm()
    rows = edges[(edges > y1 - np.diff(edges).min()) & (edges < y2 + np.diff(edges).min())]
    model = fluence_model(machine, (columns[0], columns[-1], rows[0], rows[-1]), NODES_MM)
    points = target_points(case, targets)
    open_bixels = np.stack(
        [
            bixels_over_targets(
                points,
                beam_axes(angle, 0.0, 0.0, case.patient_position),
                isocenter_mm=isocenter,
                sad_mm=machine.sad_mm,
                row_edges_mm=rows,
                column_edges_mm=columns,
            )
            for angle in angles
        ]
    )
    density = density_of(case, dose_grid(case, density_mm))
    (sampled,) = sampled_doses(
        machine,
        density,
        objective.points_mm,
        directions_of(angles, np.zeros(len(angles))),
        [model],
        isocenter_mm=isocenter,
        patient_position=case.patient_position,
    )
    return FieldSetup(
        case, machine, sheet.prescription, effort, angles, isocenter, density, model, rows, columns,
        open_bixels, sampled, objective,
    )  # fmt: skip


def _wished(
    setup: FieldSetup, goals: Sequence[tuple[Goal, Goal]], weights: Weights, normalization: Normalization
) -> Objective:
    """The objective of a wish: some goals of the sheet that it was built for, each with its own limit.

    Coverage has its weight and the normalisation alone: were its goals musts, as in plans, organs would yield
    wherever one is out of reach.
    """
    objective = setup.objective
    by_words = {str(t.goal): t for t in objective.terms if not t.is_normalization}
    terms = []
    for before, now in goals:
        asks_more = now.demands_dose and now.structure in objective.target_gy
        if not asks_more and (term := by_words.get(str(before))) is not None:
            terms.append(replace(term, goal=now, physical=now.in_gy(setup.prescription)))
    normal = [t for t in objective.terms if t.is_normalization]
    for term in normal:
        goal = Goal(normalization.structure, normalization.metric, ">=", normalization.gy, "Gy")
        terms.append(replace(term, goal=goal, physical=goal))
    usual = objective.weights
    return replace(
        objective,
        terms=tuple(terms),
        normalization=normalization,
        groups={},
        weights=replace(
            usual,
            sparing=0.0,
            goal=usual.goal * weights.goals,
            underdose=_UNDERDOSE * weights.coverage,
            overdose=_OVERDOSE * weights.hot,
            normal_tissue=usual.normal_tissue * weights.tissue,
        ),
        extra_terms=tuple(
            ObjectiveTerm(f"sparing of {organ}", organ, _Mean(objective.reference_gy), _SPARING * weight)
            for organ, weight in weights.sparing.items()
            if organ in objective.regions
        ),
    )


@dataclass(frozen=True)
class _Mean:
    """The mean dose relative to the highest prescription."""

    reference_gy: float

    def __call__(self, gy: Tensor) -> Tensor:
        return gy.mean() / self.reference_gy


def normalized_fields(
    setup: FieldSetup, x: NDArray, where: Mask, sheet: GoalSheet
) -> tuple[FluenceFields, NDArray[np.float32]]:
    """The fields that meet the normalisation of a sheet, and their dose in Gy on the case's grid in a mask.

    Raises PlanError for a target without dose, GoalError for a normalisation that is neither a mean nor a D%.
    """
    case, fields = setup.case, setup.fields(x)
    gy = np.zeros(case.grid.shape, np.float32)
    inside = np.flatnonzero(where)
    gy.ravel()[inside] = field_dose(
        setup.machine, fields, setup.density, case.grid.points_mm(inside),
        patient_position=case.patient_position,
    )  # fmt: skip
    now = normalization_gy(Dose(case.grid, gy), case, sheet)
    if not now > 0:
        raise PlanError(
            f"{sheet.normalization.structure} has no dose, so nothing can be normalised; look whether it "
            "lies in the body"
        )
    factor = np.float32(sheet.normalization.gy / now)
    return replace(fields, mu=fields.mu * factor), gy * factor
