import torch

from hard_fast.models.tiny_autoencoder import TinyAutoencoder
from hard_fast.models.vae import TinyVae

SIZES = {"width": 8, "latent": 4, "num_levels": 1, "num_blocks": 1}


def test_its_outputs_are_the_bound_per_value_and_noisy_only_while_it_trains():
    torch.manual_seed(0)
    net, image = TinyVae(10, 1, 8, **SIZES), torch.rand(3, 1, 8, 8)
    torch.manual_seed(1)
    first = net(image)
    noise = {"latent": torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))}
    log_likelihood, rate = net.elbo(image, noise)
    torch.testing.assert_close(first, torch.stack([-log_likelihood, rate], 1) / 64)
    assert not torch.equal(net(image), first)
    net.eval()
    assert torch.equal(net(image), net(image))
    # A bound needs a draw: without noise the distortion would be less than it is.
    still = -net.elbo(image, {"latent": torch.zeros(3, 4, 4, 4)})[0] / 64
    assert not torch.equal(net(image)[:, 0], still)


def test_its_weights_are_those_of_an_autoencoder_that_augments():
    net = TinyVae(10, 3, 8, **SIZES)
    maker = TinyAutoencoder(3, wide_norm=False, variational=True, **SIZES)
    maker.load_state_dict(net.state_dict())
    assert all(p.requires_grad for n, p in net.named_parameters() if n != "noise_log_std")
