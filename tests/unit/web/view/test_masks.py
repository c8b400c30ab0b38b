"""Packed masks give back every plane and the whole mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vmat_diffusion.case import Structure
from vmat_diffusion.geometry import Grid
from vmat_diffusion.web.view import masks
from vmat_diffusion.web.view.masks import packed

MASKS = arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 19)))


@given(MASKS)
def test_a_packed_mask_has_the_planes_of_the_mask(mask: np.ndarray) -> None:
    found = packed(Structure("PTV", "target", mask))
    if not mask.any():
        assert found is None
        return
    assert found is not None
    grid = Grid(mask.shape, (1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    assert found.voxels == mask.sum()
    slabs = np.zeros(mask.shape, bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_SLAB_VOXELS", 40)
        for slab, near in found.slabs(grid):
            first = round((near.origin_mm[2] - grid.origin_mm[2]) / 3)
            box = (slice(first, first + len(slab.mask)), *found.box[1:])
            assert slab.mask.any() and not slabs[box].any() and near.shape == slab.mask.shape
            slabs[box] = slab.mask
    np.testing.assert_array_equal(slabs, mask)
    part, near = found.part(grid)
    whole = np.zeros(mask.shape, bool)
    whole[found.box] = part.mask
    np.testing.assert_array_equal(whole, mask)
    assert near.origin_mm == tuple(
        float(s * b.start) for s, b in zip((1, 2, 3), found.box[::-1], strict=True)
    )
    assert found.layers() == np.flatnonzero(mask.any(axis=(1, 2))).tolist()
    for axis in range(3):
        for index in range(mask.shape[axis]):
            layer = np.take(mask, index, axis)
            plane = found.plane(axis, index)
            assert (plane is None) == (not layer.any())
            if plane is not None:
                box = tuple(b for a, b in enumerate(found.box) if a != axis)
                np.testing.assert_array_equal(plane, layer[box])
                assert plane.sum() == layer.sum()


def test_a_packed_mask_takes_an_eighth_of_its_box() -> None:
    mask = np.zeros((20, 40, 80), bool)
    mask[5:15, 10:30, 16:64] = True
    found = packed(Structure("PTV", "target", mask))
    assert found is not None and found.bits.nbytes == pytest.approx(10 * 20 * 48 / 8)
