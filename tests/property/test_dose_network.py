"""Properties of the network: shapes, roles, the anatomy that is encoded once, both ways of mixing."""

import pytest
import torch

from vmat_diffusion.diffusion.network import DoseNet, Size, _decay, _full_resolution

TINY = {"widths": (8, 8, 16, 16), "heads": 2, "condition": 16}


def network(mixing="attention", seed=0):
    torch.manual_seed(seed)
    net = DoseNet(5, 7, Size(**TINY, mixing=mixing))
    with torch.no_grad():  # the blocks start as identities
        for value in net.parameters():
            value.add_(0.02 * torch.randn(value.shape))
    return net


@pytest.mark.parametrize("mixing", ["attention", "state space"])
@pytest.mark.parametrize("shape", [(16, 32, 16), (32, 16, 48)])
def test_the_dose_has_the_shape_of_the_volume_in_both_roles(mixing, shape):
    net, volume, vector = network(mixing), torch.randn(2, 5, *shape), torch.randn(2, 7)
    anatomy = net.anatomy(volume, vector)
    mean = net(anatomy, torch.ones(2))
    assert mean.shape == (2, 1, *shape)
    assert net(anatomy, torch.full((2,), 0.5), torch.randn_like(mean), mean).shape == mean.shape


@pytest.mark.parametrize("mixing", ["attention", "state space"])
def test_every_weight_learns(mixing):
    net, volume, vector = network(mixing), torch.randn(1, 5, 16, 16, 16), torch.randn(1, 7)
    anatomy = net.anatomy(volume, vector)
    mean = net(anatomy, torch.ones(1))
    (mean.sum() + net(anatomy, torch.full((1,), 0.3), torch.randn_like(mean), mean).square().sum()).backward()
    assert [name for name, value in net.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("mixing", ["attention", "state space"])
def test_the_coarsest_level_sees_the_whole_volume(mixing):
    net, vector = network(mixing), torch.zeros(1, 7)
    volume = torch.randn(1, 5, 16, 16, 128, generator=torch.Generator().manual_seed(1))
    other = volume.clone()
    other[..., :8] += 5.0
    ends = [net(net.anatomy(v, vector), torch.ones(1))[..., -16:] for v in (volume, other)]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-7


def test_the_condition_changes_the_answer():
    net, volume = network(), torch.randn(1, 5, 16, 16, 16)
    answers = [
        net(net.anatomy(volume, torch.full((1, 7), goal)), torch.full((1,), time))
        for goal, time in ((0.0, 1.0), (1.0, 1.0), (0.0, 0.2))
    ]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_sub_voxels_go_to_their_places():
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    torch.testing.assert_close(_full_resolution(x)[0, 0], torch.arange(8.0).reshape(2, 2, 2))


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
