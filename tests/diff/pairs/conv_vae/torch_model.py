import numpy as np
import torch
import weights
from torch import Tensor, nn


def upsample_by_zeros(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Transposed convolution as an ordinary one: zeros between the pixels and the kernel turned round."""
    n, c, h, w = x.shape
    s, k, p = layer.stride[0], layer.kernel_size[0], layer.padding[0]
    spread = x.new_zeros(n, c, h, s, w, s)
    spread[:, :, :, 0, :, 0] = x
    spread = spread.reshape(n, c, h * s, w * s)[:, :, : (h - 1) * s + 1, : (w - 1) * s + 1]
    kernel = layer.weight.flip(2, 3).transpose(0, 1)
    return nn.functional.conv2d(spread, kernel, layer.bias, padding=k - 1 - p)


class Decoder(nn.Module):
    def __init__(self, latent: int, fault: str | None, variant: str | None) -> None:
        super().__init__()
        self.expand = nn.Linear(latent, 256)
        self.up1 = nn.ConvTranspose2d(16, 12, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.up2 = nn.ConvTranspose2d(12, 8, kernel_size=4, stride=2, padding=1)
        self.act = nn.LeakyReLU() if fault == "default_slope" else nn.LeakyReLU(0.2)
        self.to_image = nn.Conv2d(8, 3 * 4, kernel_size=3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.fault, self.variant = fault, variant

    def forward(self, z: Tensor) -> Tensor:
        x = self.expand(z).view(-1, 16, 4, 4)
        x = self.act(self.up1(x))
        x = upsample_by_zeros(x, self.up2) if self.variant == "zeros_between" else self.up2(x)
        x = self.to_image(self.act(x))
        if self.variant == "own_shuffle":
            n, c, h, w = x.shape
            x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        else:
            x = self.shuffle(x)
        x = x[..., :28, :28] if self.fault == "crop_corner" else x[..., 2:-2, 2:-2]
        return torch.sigmoid(x)


class VAE(nn.Module):
    def __init__(self, fault: str | None = None, variant: str | None = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.moments = nn.Linear(784, 2 * weights.LATENT)
        self.decoder = Decoder(weights.LATENT, fault, variant)
        self.fault = fault

    def reparameterize(self, mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
        if self.fault == "no_grad_std":
            with torch.no_grad():
                std = torch.exp(0.5 * logvar)
        else:
            std = torch.exp(0.5 * logvar)
        return mu + eps * std

    def forward(self, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.moments(self.encoder(x)).chunk(2, dim=1)
        if self.fault == "moments_swapped":
            mu, logvar = logvar, mu
        z = self.reparameterize(mu, logvar, eps)
        return {"reconstruction": self.decoder(z), "mean": mu, "log_var": logvar}


def build(fault=None, variant=None, dtype="float32"):
    net = VAE(fault, variant).to(getattr(torch, dtype))
    weights.load_torch(net, weights.make())
    return net.eval()


def inputs(seed):
    g = np.random.default_rng(seed)
    images = g.random((3, 3, 28, 28), dtype="float32")
    return images, g.standard_normal((3, weights.LATENT)).astype("float32")
