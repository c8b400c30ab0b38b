"""The beam model as the compiled loops read it: weights of a few Gaussians by depth and lateral scale.

A pencil in water, blurred by the focal spot and joined by head scatter and contaminant electrons, is
fitted by Gaussians of widths that stay the same at all depths; so the fluence of an aperture is
convolved once per width. Lateral scale is what divergence and density do to the pencil's width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.optimize import nnls
from scipy.special import ive, ndtr

from vmat_diffusion.dose.pencil_beam.kernels import electron_pencil, photon_pencil
from vmat_diffusion.dose.pencil_beam.loops import (
    DEPTH_STEP_MM,
    LANES,
    OFF_AXIS_STEP_MM,
    SCALES,
    SCALES_PER_UNIT,
)
from vmat_diffusion.dose.tissue import ELECTRON_MEV, attenuation, media
from vmat_diffusion.machine import BeamModel

_DEPTH_MM = 500.0
_RADIUS_MM = 500.0
# Widths at the isocentre plane: a geometric series whose narrowest is one of these with the focal spot
# added. Series and ratio are those that fit square fields of these half widths best at these depths.
_KERNELS = 5
_NARROWEST_MM, _RATIOS = (1.1, 1.3, 1.5, 1.7, 1.9), (2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1)
_JUDGED_HALF_MM, _JUDGED_DEPTH_MM = np.array([5, 10, 15, 25, 50, 75, 100.0]), (15.0, 50.0, 100.0, 200.0)
_SHALLOW_MM, _DEEP_MM = 15.0, 300.0


class Tables(NamedTuple):
    """What turns convolved fluence into Gy per MU over `gy_per_mu`.

    `primary[depth, scale, kernel]` and `scatter` by water-equivalent depth every 1 mm and lateral scale
    (those of SCALES; `scale_index` is the fractional index of a lateral scale, every 1/256). Off the axis, by
    radius at the isocentre plane every 2 mm: `ratio[radius, kernel]` of dose and `hardness`, by which depth
    is multiplied. Kernels are padded with zeros to LANES. `medium` is dose to each medium over dose to water.
    """

    primary: NDArray[np.float32]
    scatter: NDArray[np.float32]
    ratio: NDArray[np.float32]
    hardness: NDArray[np.float32]
    scale_index: NDArray[np.float32]
    medium: NDArray[np.float32]
    sad_mm: float


@lru_cache(maxsize=8)
def _best_widths(beam: BeamModel) -> tuple[float, ...]:
    nodes, *parts = mixtures(beam)
    rows = [int(np.abs(nodes - d).argmin()) for d in _JUDGED_DEPTH_MM]
    parts = [part._replace(weight=part.weight[rows]) for part in parts]

    def axis(sigma: NDArray, weight: NDArray) -> NDArray:
        return weight @ ((2 * ndtr(_JUDGED_HALF_MM[:, None] / sigma) - 1) ** 2).T

    wanted = sum(axis(np.hypot(p.sigma_mm, np.sqrt(p.blur_mm2)), p.weight) for p in parts)
    best: tuple[float, ...] = ()
    least = np.inf
    for narrow in _NARROWEST_MM:
        for ratio in _RATIOS:
            sigma = np.hypot(narrow, _focal_mm(beam)) * ratio ** np.arange(_KERNELS)
            fitted = sum(axis(sigma, _fitted(part, 1.0, sigma)) for part in parts)
            error = float(np.square(fitted / wanted - 1).mean())
            if error < least:
                best, least = tuple(float(s) for s in sigma), error
    return best


def kernel_sigma_mm(beam: BeamModel) -> NDArray[np.float64]:
    """Widths at the isocentre plane of the Gaussians with which the fluence is convolved."""
    return np.array(_best_widths(beam))


def spectrum(beam: BeamModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean energy in MeV of each bin of the spectrum on the axis, and the number of photons in it."""
    edges = np.array([beam.spectrum_low_mev, *beam.spectrum_upper_mev])
    return np.maximum((edges[1:] + edges[:-1]) / 2, 0.02), np.asarray(beam.spectrum_number, float)


def _focal_mm(beam: BeamModel) -> float:
    """Blur of the focal spot at the isocentre plane, collimator edges being thin."""
    return beam.focal_sigma_mm * (beam.sad_mm / beam.collimator_mm - 1)


class Gaussians(NamedTuple):
    """A mixture of Gaussians: widths in water, blur at the isocentre plane, `weight[depth, j]` in Gy cm2.

    Where lateral scale divides the widths in water, the variance is (sigma / scale)^2 + blur.
    """

    sigma_mm: NDArray[np.float64]
    blur_mm2: NDArray[np.float64]
    weight: NDArray[np.float64]


def mixtures(beam: BeamModel) -> tuple[NDArray[np.float64], Gaussians, Gaussians]:
    """Depths in mm, and the pencil of a machine on its axis as primary dose and as scatter.

    Per photon of the open field's fluence at the isocentre plane, before inverse square. Head scatter comes
    from an extended source: seen through the same aperture it arrives magnified and blurred. The
    blur is referred to the unmagnified plane, which is exact on the axis. The same holds for electrons.
    """
    pencil = photon_pencil(*spectrum(beam))
    source, opening = beam.sad_mm - beam.head_distance_mm, beam.collimator_mm - beam.head_distance_mm
    magnified = source / opening * beam.collimator_mm / beam.sad_mm
    sigmas = (beam.head_sigma_mm, beam.electron_sigma_mm)
    head_mm2, electron_mm2 = ((sigma * (source / opening - 1) / magnified) ** 2 for sigma in sigmas)
    focal_mm2, head = _focal_mm(beam) ** 2, beam.head_share / magnified**2
    parts = [(focal_mm2, 1 - beam.head_share), (head_mm2, head)] if head else [(focal_mm2, 1.0)]

    def joined(weight: NDArray, extra: NDArray | None = None) -> Gaussians:
        blurs = [blur for blur, _ in parts] + ([electron_mm2] if extra is not None else [])
        weights = [share * weight for _, share in parts] + ([extra] if extra is not None else [])
        n = len(pencil.sigma_mm)
        return Gaussians(
            np.tile(pencil.sigma_mm, len(blurs)), np.repeat(blurs, n), np.concatenate(weights, axis=1)
        )

    electrons = None
    if beam.electrons_per_photon > 0:
        grid = np.linspace(0.2, beam.electron_max_mev, 60)
        electrons = electron_pencil(grid, np.exp(-grid / beam.electron_mean_mev))
        electrons *= beam.electrons_per_photon / magnified**2
    return pencil.depth_mm, joined(pencil.primary, electrons), joined(pencil.scatter)


@lru_cache(maxsize=8)
def tables(beam: BeamModel, reach_mm: float) -> Tables:
    """The tables of a beam for fields of a half width `reach_mm`; a tenth of a second."""
    sigma = kernel_sigma_mm(beam)
    depth = np.arange(0.0, _DEPTH_MM, DEPTH_STEP_MM)
    unit = beam.photons_cm2_mu / beam.gy_per_mu
    primary, scatter = (np.empty((len(depth), len(SCALES), len(sigma)), np.float32) for _ in range(2))
    nodes, narrow, wide = mixtures(beam)
    for k, scale in enumerate(SCALES):
        for out, mixture in ((primary, narrow), (scatter, wide)):
            out[:, k] = unit * by_depth(depth, nodes, _fitted(mixture, scale, sigma))
    radius = np.arange(0.0, _RADIUS_MM, OFF_AXIS_STEP_MM)
    ratio = blurred_ratio(beam, radius[:, None], sigma, reach_mm)
    hardness = off_axis(beam, radius)[1]
    return Tables(
        padded(primary),
        padded(scatter),
        padded(ratio),
        hardness.astype(np.float32),
        _scale_index(),
        kerma_ratios(*spectrum(beam)).astype(np.float32),
        float(beam.sad_mm),
    )


def kerma_ratios(energy_mev: NDArray, number: NDArray) -> NDArray[np.float64]:
    """Collision kerma of each medium relative to water in the same photon fluence, by XCOM.

    In charged particle equilibrium this is the dose to the medium over the dose to water. Energy radiated by
    electrons is left out of the ratio (below 0.2 % up to bone).
    """
    energy = np.asarray(energy_mev, float)
    given = np.array([_mean_compton_share(e) for e in energy])
    pair = np.maximum(1 - 2 * ELECTRON_MEV / energy, 0.0)
    kerma = []
    for medium in media():
        _, incoherent, photo, to_pair = attenuation(medium, energy).T
        kerma.append(np.sum(number * energy * (incoherent * given + photo + to_pair * pair)))
    return np.array(kerma) / kerma[0]


def _mean_compton_share(energy_mev: float) -> float:
    """Mean share of its energy that a photon gives to the electron (Klein and Nishina), by quadrature."""
    cosine, weight = np.polynomial.legendre.leggauss(200)
    ratio = 1 / (1 + energy_mev / ELECTRON_MEV * (1 - cosine))
    section = ratio**2 * (ratio + 1 / ratio - 1 + cosine**2) * weight
    return float(np.sum(section * (1 - ratio)) / np.sum(section))


def padded(values: NDArray) -> NDArray[np.float32]:
    """The same with zeros behind the last axis up to LANES kernels, as the compiled loops want it."""
    out = np.zeros((*values.shape[:-1], LANES), np.float32)
    out[..., : values.shape[-1]] = values
    return out


def _scale_index() -> NDArray[np.float32]:
    scale = np.arange(0.0, SCALES[-1] + 2 / SCALES_PER_UNIT, 1 / SCALES_PER_UNIT)
    index = np.interp(np.log(np.maximum(scale, SCALES[0])), np.log(SCALES), np.arange(len(SCALES)))
    return np.minimum(index, len(SCALES) - 1.001).astype(np.float32)


def by_depth(depth: NDArray, nodes: NDArray, weight: NDArray) -> NDArray[np.float64]:
    """Weights at each depth: ln of the dose is straight between nodes and beyond, dose to the surface."""
    total = np.maximum(weight.sum(axis=1), 1e-300)
    level = np.exp(np.interp(depth, nodes, np.log(total)))
    fall = np.log(total[-4] / total[-1]) / (nodes[-1] - nodes[-4])
    level *= np.exp(-fall * np.maximum(depth - nodes[-1], 0))
    start = total[0] + (total[1] - total[0]) / (nodes[1] - nodes[0]) * (depth - nodes[0])
    level = np.where(depth < nodes[0], np.maximum(start, 0.3 * total[0]), level)
    shares = [np.interp(depth, nodes, row) for row in (weight / total[:, None]).T]
    return level[:, None] * np.stack(shares, axis=1)


def _fitted(mixture: Gaussians, scale: float, sigma_mm: NDArray) -> NDArray[np.float64]:
    """Weights `[depth, kernel]` of Gaussians of given widths that come nearest to a mixture.

    Near means: the response to a straight edge, and the axis of square fields from 4 to 400 mm.
    """
    at = np.concatenate([np.linspace(0, 12, 25), np.geomspace(13, 200, 24)])
    half = np.geomspace(2.0, 200.0, 40)

    def response(sigma: NDArray) -> NDArray:
        edge = ndtr(at[:, None] / sigma)
        square = (2 * ndtr(half[:, None] / sigma) - 1) ** 2
        return np.concatenate([edge, square])

    basis = response(sigma_mm)
    wanted = mixture.weight @ response(np.hypot(mixture.sigma_mm / scale, np.sqrt(mixture.blur_mm2))).T
    level = np.maximum(wanted.max(axis=1, keepdims=True), 1e-300)
    return level * np.array([nnls(basis, row)[0] for row in wanted / level])


@lru_cache(maxsize=1)
def _blurs() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Widths, radii, and matrices `[width, to, from]` that blur a function of radius in a plane."""
    width = np.array([0.0, 4, 8, 12, 17, 23, 30, 40, 52, 66, 82, 100])
    radius = np.arange(0.0, _RADIUS_MM + 1, 4.0)
    out, at = np.empty((len(width), len(radius), len(radius))), radius[:, None]
    out[0] = np.eye(len(radius))
    for k, sigma in enumerate(width[1:], start=1):
        fine = np.arange(0.5, _RADIUS_MM + 1)
        density = fine * np.exp(-((fine - at) ** 2) / (2 * sigma**2)) * ive(0, at * fine / sigma**2)
        hats = np.maximum(1 - np.abs(fine[:, None] - radius) / 4.0, 0.0)
        out[k] = (density / density.sum(axis=1, keepdims=True)) @ hats
    return width, radius, out


def blurred_ratio(
    beam: BeamModel, radius_mm: NDArray, sigma_mm: NDArray, reach_mm: NDArray | float
) -> NDArray[np.float64]:
    """Off-axis ratio as dose of a Gaussian kernel sees it; arguments broadcast.

    What a wide kernel brings to a point started off elsewhere, where the beam was stronger or weaker: the
    ratio is averaged over the kernel, but no further than the field goes, of which `reach_mm` is half the
    width. Exact on the axis of a square field to second order in the radius.
    """
    width, radius, blur = _blurs()
    table = blur @ off_axis(beam, radius)[0]
    field = np.asarray(reach_mm) / np.sqrt(3.0)
    seen = sigma_mm * field / np.hypot(sigma_mm, field)
    shape = np.broadcast_shapes(np.shape(radius_mm), np.shape(seen))
    at = [np.interp(seen, width, np.arange(len(width))), np.asarray(radius_mm) / (radius[1] - radius[0])]
    coordinates = np.stack([np.broadcast_to(a, shape) for a in at])
    return map_coordinates(table, coordinates, order=1, mode="nearest")


@lru_cache(maxsize=8)
def _softened(energy_mev: tuple[float, ...], number: tuple[float, ...]) -> tuple[NDArray, NDArray, NDArray]:
    """Factors on every energy of a spectrum, and what each does to ln of the dose and to depth."""
    softer = np.linspace(0.4, 1.0, 13)
    pencil = [photon_pencil(np.maximum(q * np.array(energy_mev), 0.02), np.array(number)) for q in softer]
    depth = pencil[-1].depth_mm
    wide = np.array([(p.primary + p.scatter).sum(axis=1) for p in pencil])
    ends = np.array([[np.interp(d, depth, row) for d in (_SHALLOW_MM, _DEEP_MM)] for row in np.log(wide)])
    slope = (ends[:, 0] - ends[:, 1]) / (_DEEP_MM - _SHALLOW_MM)
    hardness = slope / slope[-1]
    level = ends[:, 0] - np.array(
        [np.interp(min(h * _SHALLOW_MM, _DEEP_MM), depth, np.log(wide[-1])) for h in hardness]
    )
    return softer, level, hardness


def off_axis(beam: BeamModel, radius_mm: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dose ratio and factor on depth at radii of the isocentre plane.

    Softening lowers every energy: dose and its fall between 15 and 300 mm in a wide field are those of the
    softer spectrum, as a factor on dose and one on depth. A source that is isotropic in angle loses the
    cosine squared beyond inverse square along the axis; one that is even in the plane gains one over it.
    """
    energy, number = spectrum(beam)
    softer, level, hardness = _softened(tuple(energy.tolist()), tuple(number.tolist()))
    q = np.clip(1 - beam.softening_per_mm2 * radius_mm**2, softer[0], 1.0)
    cosine = 1 / np.sqrt(1 + (radius_mm / beam.sad_mm) ** 2)
    angular = cosine**2 if beam.angular == "isotropic" else 1 / cosine
    number_ratio = np.interp(radius_mm, beam.horn_radius_mm, beam.horn)
    return number_ratio * angular * np.exp(np.interp(q, softer, level)), np.interp(q, softer, hardness)
