"""Healthy models of more structures than model_zoo's: what an auditor could take for a fault.

New models with plain weights; each comes with an input. Nothing is wrong with them.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import normkit.torch as nt


def images(size=8):
    return torch.randn(4, 3, size, size)


def conv_norm(inputs, outputs, kernel=3, stride=1, groups=1, norm=nn.BatchNorm2d, act=nn.ReLU):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(outputs), *([] if act is None else [act()]))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and across."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = conv_norm(3, 8), conv_norm(8, 16, stride=2)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.mix, self.out = conv_norm(16, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        first = self.down1(x)
        return self.out(self.mix(torch.cat([first, self.up(self.down2(first))], 1)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x):
        inner = self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1))) * self.scale
        return x + inner.permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(nn.Conv2d(3, 16, 2, 2), ConvNeXtBlock(), ConvNeXtBlock())


def dcgan_weights(model):
    """As DCGAN begins: gamma around one."""
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return model


def generator():
    layers = [nn.ConvTranspose2d(12, 16, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return dcgan_weights(nn.Sequential(*layers, nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()))


def discriminator():
    layers = [nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)]
    return dcgan_weights(nn.Sequential(*layers, nn.Conv2d(16, 1, 2)))


def projecting_generator():
    """Noise to a map: batch norm of images right behind a linear layer."""
    layers = [nn.Linear(12, 128, bias=False), nn.Unflatten(1, (8, 4, 4)), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 16, batch_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.norm(self.lstm(x)[0])[:, -1])


class SqueezeExcite(nn.Module):
    """EfficientNet's block: TensorFlow's eps throughout, gates without norms."""

    def __init__(self, width=12):
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        self.expand = conv_norm(width, 24, 1, norm=norm, act=nn.SiLU)
        self.depthwise = conv_norm(24, 24, groups=24, norm=norm, act=nn.SiLU)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 4, 1), nn.SiLU(), nn.Conv2d(4, 24, 1),
            nn.Sigmoid(),
        )  # fmt: skip
        self.project = conv_norm(24, width, 1, norm=norm, act=None)

    def forward(self, x):
        inner = self.depthwise(self.expand(x))
        return x + self.project(inner * self.gate(inner))


def efficient():
    stem = conv_norm(3, 12, norm=functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01))
    return nn.Sequential(stem, SqueezeExcite(), SqueezeExcite(), nn.Conv2d(12, 4, 1))


class RepVGGBlock(nn.Module):
    """Three branches to be merged, one of them a batch norm alone; gamma and beta begin at random.

    As timm initializes it.
    """

    def __init__(self, width=16):
        super().__init__()
        self.wide = conv_norm(width, width, act=None)
        self.point = conv_norm(width, width, 1, act=None)
        self.identity = nn.BatchNorm2d(width)
        for layer in (self.wide[1], self.point[1], self.identity):
            nn.init.normal_(layer.weight, 0.1, 0.1)
            nn.init.normal_(layer.bias, 0.0, 0.1)

    def forward(self, x):
        return F.relu(self.wide(x) + self.point(x) + self.identity(x))


def repvgg():
    return nn.Sequential(nn.Conv2d(3, 16, 1), RepVGGBlock(), RepVGGBlock())


def face_embedding():
    """ArcFace's end: the embedding itself is normalized."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(), nn.BatchNorm2d(8), nn.Dropout(0.4), nn.Flatten(),
        nn.Linear(128, 64, bias=False), nn.BatchNorm1d(64),
    )  # fmt: skip


def projector():
    """SimCLR's and BYOL's: the last norm has no gamma and beta."""
    return nn.Sequential(
        nn.Linear(12, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 24, bias=False), nn.BatchNorm1d(24, affine=False),
    )  # fmt: skip


class BNNeck(nn.Module):
    """Re-identification: features, and logits of the normalized features; beta stays 0."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(conv_norm(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.neck, self.head = nn.BatchNorm1d(16), nn.Linear(16, 6, bias=False)
        self.neck.bias.requires_grad_(False)

    def forward(self, x):
        features = self.trunk(x)
        return features, self.head(self.neck(features))


class Points(nn.Module):
    """PointNet: linear layers over points, batch norm behind a transposition or over all points."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Linear(3, 16, bias=False), nn.BatchNorm1d(16)
        self.second, self.norm2 = nn.Conv1d(16, 24, 1, bias=False), nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x).transpose(1, 2)))
        return self.head(F.relu(self.norm2(self.second(x))).amax(2))


class Pyramid(nn.Module):
    """A backbone and a head, each with settings of its own throughout, and two outputs."""

    def __init__(self):
        super().__init__()
        thin = functools.partial(nn.BatchNorm2d, momentum=0.03)
        self.backbone = nn.ModuleList([conv_norm(3, 8), conv_norm(8, 16, stride=2)])
        self.head = nn.ModuleList([conv_norm(8, 8, norm=thin), conv_norm(16, 8, norm=thin)])
        self.boxes = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        outputs = []
        for stage, head in zip(self.backbone, self.head, strict=True):
            x = stage(x)
            outputs.append(self.boxes(head(x)))
        return outputs


class Wild(nn.Module):
    """A forward that cannot be traced, with parts that can: their ends are not the model's."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Flatten(), nn.Linear(192, 20, bias=False), nn.BatchNorm1d(20))
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.part(x)
        return self.head(F.relu(x)) if x.detach().sum() > 0 else self.head(F.relu(-x))


def frozen_backbone():
    """Detection: a backbone that stands still, in a model that trains."""
    model = nn.Sequential(conv_norm(3, 8), conv_norm(8, 8), nn.Conv2d(8, 4, 1))
    nt.freeze(model)
    return model


def evaluated_backbone():
    """The same by hand: frozen layers are set to eval mode."""
    model = nn.Sequential(conv_norm(3, 8), conv_norm(8, 8), nn.Conv2d(8, 4, 1))
    return model.requires_grad_(False).eval()


def half():
    """For inference in 16 bits."""
    return nn.Sequential(conv_norm(3, 8), conv_norm(8, 8), nn.Conv2d(8, 4, 1)).eval().bfloat16()


def instance_transfer():
    """Style transfer: instance norm, with biases that CycleGAN gives it, and an activation each."""
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.InstanceNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3, 1, 1), nn.InstanceNorm2d(8), nn.ReLU())


def tokens(width=12):
    return torch.randn(4, 6, width)


STRUCTURES = {
    "u-net": (UNet, images),
    "convnext": (convnext, images),
    "generator": (generator, lambda: torch.randn(4, 12, 1, 1)),
    "discriminator": (discriminator, images),
    "projecting generator": (projecting_generator, lambda: torch.randn(4, 12)),
    "recurrent": (Recurrent, tokens),
    "efficient": (efficient, images),
    "repvgg": (repvgg, images),
    "face embedding": (face_embedding, images),
    "projector": (projector, lambda: torch.randn(4, 12)),
    "bnneck": (BNNeck, images),
    "points": (Points, lambda: torch.randn(4, 20, 3)),
    "pyramid": (Pyramid, images),
    "wild": (Wild, images),
    "frozen backbone": (frozen_backbone, images),
    "evaluated backbone": (evaluated_backbone, images),
    "half": (half, lambda: images().bfloat16()),
    "instance transfer": (instance_transfer, images),
}


def structure(name):
    """The model, with the same weights each time, and an input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build, example = STRUCTURES[name]
        return build(), example()
