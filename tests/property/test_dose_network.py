"""Properties of the network: roles, the anatomy that is encoded once, both ways of mixing, empty space."""

import pytest
import torch
from torch.nn import functional as F

from vmat_diffusion.diffusion.network import DoseNet, Size, _decay, _full_resolution
from vmat_diffusion.diffusion.places import Convolution, Down, Norm, places_of, take, with_outside

TINY = {"widths": (8, 8, 16, 16), "heads": 2, "condition": 16}


def network(mixing="attention", seed=0):
    torch.manual_seed(seed)
    net = DoseNet(5, 7, Size(**TINY, mixing=mixing))
    with torch.no_grad():  # the blocks start as identities
        for value in net.parameters():
            value.add_(0.02 * torch.randn(value.shape))
    return net


def blob(*shape, seed=1):
    """A mask with a ragged edge."""
    generator = torch.Generator().manual_seed(seed)
    ends = [torch.linspace(-1, 1, n) for n in shape]
    radius = sum(e.square() for e in torch.meshgrid(*ends, indexing="ij"))
    return (radius + 0.3 * torch.rand(shape, generator=generator) < 0.8).float()


@pytest.mark.parametrize("mixing", ["attention", "state space"])
@pytest.mark.parametrize("shape", [(16, 32, 16), (32, 16, 48)])
def test_the_dose_has_the_shape_of_the_volume_in_both_roles(mixing, shape):
    net, volume, vector, mask = network(mixing), torch.randn(1, 5, *shape), torch.randn(1, 7), blob(*shape)
    anatomy = net.anatomy(volume, vector, mask)
    mean = net(anatomy, torch.ones(1))
    assert mean.shape == (1, 1, *shape)
    assert torch.equal(mean[0, 0] != 0, mask > 0)
    assert net(anatomy, torch.full((1,), 0.5), torch.randn_like(mean), mean).shape == mean.shape


@pytest.mark.parametrize("mixing", ["attention", "state space"])
def test_empty_space_changes_nothing(mixing):
    net, vector, mask = network(mixing), torch.randn(1, 7), blob(16, 32, 16)
    volume, sample = torch.randn(1, 5, 16, 32, 16), torch.randn(1, 1, 16, 32, 16)

    def dose(margin):
        """With so many voxels more at each end, of any content."""
        sides = [margin] * 6
        wide = torch.where(F.pad(mask, sides) > 0, F.pad(volume, sides), 7.0)
        anatomy = net.anatomy(wide, vector, F.pad(mask, sides))
        noisy = F.pad(sample, sides, value=5.0)
        found = torch.cat([net(anatomy, torch.ones(1)), net(anatomy, torch.full((1,), 0.4), noisy, noisy)])
        return found[(..., *(slice(margin, margin + n) for n in mask.shape))]

    torch.testing.assert_close(dose(16), dose(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mixing", ["attention", "state space"])
def test_every_weight_learns(mixing):
    net, volume, vector = network(mixing), torch.randn(1, 5, 16, 16, 16), torch.randn(1, 7)
    anatomy = net.anatomy(volume, vector, blob(16, 16, 16))
    mean = net(anatomy, torch.ones(1))
    (mean.sum() + net(anatomy, torch.full((1,), 0.3), torch.randn_like(mean), mean).square().sum()).backward()
    assert [name for name, value in net.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("mixing", ["attention", "state space"])
def test_the_coarsest_level_sees_the_whole_volume(mixing):
    net, vector, mask = network(mixing), torch.zeros(1, 7), torch.ones(16, 16, 128)
    volume = torch.randn(1, 5, 16, 16, 128, generator=torch.Generator().manual_seed(1))
    other = volume.clone()
    other[..., :8] += 5.0
    ends = [net(net.anatomy(v, vector, mask), torch.ones(1))[..., -16:] for v in (volume, other)]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-7


def test_the_condition_changes_the_answer():
    net, volume, mask = network(), torch.randn(1, 5, 16, 16, 16), blob(16, 16, 16)
    answers = [
        net(net.anatomy(volume, torch.full((1, 7), goal), mask), torch.full((1,), time))
        for goal, time in ((0.0, 1.0), (1.0, 1.0), (0.0, 0.2))
    ]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_layers_are_those_of_dense_volumes_with_zeros_outside():
    mask = blob(12, 8, 16)
    places = places_of(mask, 2)
    fine, coarse = places.levels
    shape = (6, 4, 8)
    held = F.max_pool3d(mask[None], 2)[0] > 0
    dense = torch.randn(3, *shape, dtype=torch.float64) * held
    rows = dense[:, held].t()
    assert fine.around.shape == (len(rows), 27)

    def on(layer, width):
        """The weights of a layer on rows as those of a convolution of dense volumes."""
        return layer.weight.reshape(-1, width, width, width, 3).permute(0, 4, 1, 2, 3)

    convolution, down = Convolution(3, 5).double(), Down(3, 5).double()
    expected = F.conv3d(dense[None], on(convolution, 3), convolution.bias, padding=1)[0]
    torch.testing.assert_close(convolution(rows, fine.around), expected[:, held].t())
    expected = F.conv3d(dense[None], on(down, 2), down.bias, stride=2)[0]
    coarser = F.max_pool3d(held[None].float(), 2)[0] > 0
    torch.testing.assert_close(down(rows, coarse), expected[:, coarser].t())
    found = take(expected[:, coarser].t(), coarse.parent, coarse.children)
    torch.testing.assert_close(found, F.interpolate(expected[None], scale_factor=2.0)[0][:, held].t())


def test_statistics_are_those_of_the_mask():
    rows, norm = 3.0 + 2.0 * torch.randn(50, 16), Norm(16)
    expected = F.group_norm(rows.t()[None], 2)[0].t()
    torch.testing.assert_close(norm(rows), expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_gathered_layers_are_right():
    level = places_of(blob(8, 8, 8), 2).levels[0]
    count = len(level.children)
    rows = torch.randn(count, 2, dtype=torch.float64, requires_grad=True)
    layer = Convolution(2, 3).double()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, level.around), (rows, *layer.parameters()))
    fine = torch.randn(int(level.inverse.shape[0]), 2, dtype=torch.float64, requires_grad=True)
    down = Down(2, 3).double()
    assert torch.autograd.gradcheck(lambda x, *_: down(x, level), (fine, *down.parameters()))


def test_sub_voxels_go_to_their_places():
    mask = torch.ones(2, 2, 2)
    mask[0, 1, 0] = 0
    places = places_of(mask, 1)
    found = _full_resolution(torch.arange(8.0)[None], places.levels[0])
    torch.testing.assert_close(found[:, 0], torch.arange(8.0)[places.flat])
    assert with_outside(found).shape == (8, 1)


def test_the_dual_form_is_the_recurrence():
    generator = torch.Generator().manual_seed(3)
    step, b, c = (torch.rand(6, generator=generator) for _ in range(3))
    x = torch.randn(6, generator=generator)
    found = (c[:, None] * b[None, :] * _decay(step)) @ x
    state, wanted = torch.zeros(()), []
    for i in range(6):
        state = torch.exp(-step[i]) * state + b[i] * x[i]
        wanted.append(c[i] * state)
    torch.testing.assert_close(found, torch.stack(wanted))
