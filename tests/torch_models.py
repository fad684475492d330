"""The networks in PyTorch, with the names of torchvision, timm and the authors for their parts.

Import it behind `pytest.importorskip("torch")`. Written from the papers' definitions.
"""

import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)


def conv(inputs, outputs, side, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)


class SqueezeExcite(nn.Module):
    """Two 1x1 convolutions on the mean of each channel, as in timm."""

    def __init__(self, features):
        super().__init__()
        self.fc1 = nn.Conv2d(features, features // 16, 1)
        self.fc2 = nn.Conv2d(features // 16, features, 1)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(y).relu()).sigmoid()


class Block(nn.Module):
    """A residual block of two convolutions, or of three if `inner` planes are given."""

    def __init__(self, inputs, planes, stride, inner=None, groups=1, se=False):
        super().__init__()
        outputs = planes if inner is None else 4 * planes
        if inner is None:
            sizes = [(inputs, planes, 3, stride), (planes, planes, 3)]
        else:
            sizes = [(inputs, inner, 1), (inner, inner, 3, stride, groups), (inner, outputs, 1)]
        self.depth = len(sizes)
        for i, size in enumerate(sizes, start=1):
            setattr(self, f"conv{i}", conv(*size))
            setattr(self, f"bn{i}", nn.BatchNorm2d(size[1]))
        self.se = SqueezeExcite(outputs) if se else nn.Identity()
        self.downsample = nn.Identity()
        if stride > 1 or inputs != outputs:
            project = conv(inputs, outputs, 1, stride)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else self.se(y)
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    """torchvision's ResNet and ResNeXt, timm's SE-ResNet; with three stages, the CIFAR nets."""

    def __init__(
        self, sizes, classes=10, *, bottleneck=True, groups=1, share=None, se=False, channels=3
    ):
        super().__init__()
        large = len(sizes) == 4
        width = features = 64 if large else 16
        self.conv1 = conv(channels, width, *((7, 2) if large else (3,)))
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = []
        for stage, blocks in enumerate(sizes):
            planes = width * 2**stage
            inner = None
            if bottleneck:
                inner = planes if share is None else groups * share * 2**stage
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if i == 0 and stage else 1
                layer.append(Block(features, planes, stride, inner, groups, se))
                features = planes * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", layer)
            self.stages.append(f"layer{stage + 1}")
        self.fc = nn.Linear(features, classes)

    def forward(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


class PreActivationBlock(nn.Module):
    """BN ReLU conv, twice; a projection starts behind the first ReLU."""

    def __init__(self, inputs, planes, stride, projection):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, planes, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes, 3)
        self.projection = None
        if stride > 1 or inputs != planes:
            self.projection = projection
            project = conv(inputs, planes, 1, stride)
            setattr(
                self, projection, project if projection != "shortcut" else nn.Sequential(project)
            )

    def forward(self, x):
        active = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(active)).relu())
        return y + (getattr(self, self.projection)(active) if self.projection else x)


class PreActResNet(nn.Module):
    """The paper's pre-activation network on 3x3 convolutions, with kuangliu's names and `bn`."""

    def __init__(self, sizes=(2, 2, 2, 2), classes=10, *, width=64, channels=3):
        super().__init__()
        self.conv1 = conv(channels, width, 3)
        self.stages, features = [], width
        for stage, blocks in enumerate(sizes):
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if i == 0 and stage else 1
                layer.append(PreActivationBlock(features, width * 2**stage, stride, "shortcut"))
                features = width * 2**stage
            setattr(self, f"layer{stage + 1}", layer)
            self.stages.append(f"layer{stage + 1}")
        self.bn = nn.BatchNorm2d(features)
        self.linear = nn.Linear(features, classes)

    def forward(self, x):
        x = self.conv1(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(self.bn(x).relu().mean((2, 3)))


class WideResNet(nn.Module):
    """A Wide ResNet with xternalz's names."""

    def __init__(self, depth, factor, classes=10, *, channels=3):
        super().__init__()
        self.conv1, features = conv(channels, 16, 3), 16
        for stage in range(3):
            layer = nn.Sequential()
            for i in range((depth - 4) // 6):
                planes, stride = 16 * factor * 2**stage, 2 if i == 0 and stage else 1
                layer.append(PreActivationBlock(features, planes, stride, "convShortcut"))
                features = planes
            setattr(self, f"block{stage + 1}", nn.ModuleDict({"layer": layer}))
        self.bn1, self.fc = nn.BatchNorm2d(features), nn.Linear(features, classes)

    def forward(self, x):
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block["layer"](x)
        return self.fc(self.bn1(x).relu().mean((2, 3)))


class PyramidBlock(nn.Module):
    """Pre-activation: BN conv BN ReLU conv BN ReLU conv BN, on a shortcut padded with zeros."""

    def __init__(self, inputs, planes, stride, bottleneck):
        super().__init__()
        self.stride, self.outputs = stride, planes * (4 if bottleneck else 1)
        if bottleneck:
            sizes = [(inputs, planes, 1), (planes, planes, 3, stride), (planes, self.outputs, 1)]
        else:
            sizes = [(inputs, planes, 3, stride), (planes, planes, 3)]
        self.depth = len(sizes)
        for i, size in enumerate(sizes, start=1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(size[0]))
            setattr(self, f"conv{i}", conv(*size))
        setattr(self, f"bn{self.depth + 1}", nn.BatchNorm2d(self.outputs))

    def forward(self, x):
        y = self.conv1(self.bn1(x))
        for i in range(2, self.depth + 1):
            y = getattr(self, f"conv{i}")(getattr(self, f"bn{i}")(y).relu())
        y = getattr(self, f"bn{self.depth + 1}")(y)
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return y + F.pad(x, (0, 0, 0, 0, 0, self.outputs - x.shape[1]))


class PyramidNet(nn.Module):
    """The authors' PyramidNet for CIFAR."""

    def __init__(self, depth, alpha, classes=10, *, bottleneck=True, channels=3):
        super().__init__()
        blocks = (depth - 2) // (9 if bottleneck else 6)
        self.conv1, self.bn1 = conv(channels, 16, 3), nn.BatchNorm2d(16)
        features, width = 16, 16.0
        for stage in range(3):
            layer = nn.Sequential()
            for i in range(blocks):
                width += alpha / (3 * blocks)
                stride = 2 if i == 0 and stage else 1
                layer.append(PyramidBlock(features, round(width), stride, bottleneck))
                features = layer[-1].outputs
            setattr(self, f"layer{stage + 1}", layer)
        self.bn_final = nn.BatchNorm2d(features)
        self.fc = nn.Linear(features, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.bn_final(x).relu().mean((2, 3)))


class VGG16GAP(nn.Module):
    """VGG-16's thirteen convolutions without the last pooling, conv6, average, linear."""

    def __init__(self, classes=10, width=64):
        super().__init__()
        self.features, inputs = nn.Sequential(), 3
        for factor in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8):
            if not factor:
                self.features.append(nn.MaxPool2d(2, 2))
                continue
            outputs = factor * width
            self.features.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            self.features.append(nn.ReLU())
            inputs = outputs
        self.conv6 = nn.Conv2d(8 * width, 16 * width, 3, padding=1)
        self.fc = nn.Linear(16 * width, classes)

    def forward(self, x):
        return self.fc(self.conv6(self.features(x)).relu().mean((2, 3)))


def randomise(net, seed=0):
    """Gives BatchNorm scales, shifts and statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * (2 / fan) ** 0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight, 0.3, 0.8))
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
                module.running_mean.copy_(uniform(module.bias, -0.2, 0.2))
                module.running_var.copy_(uniform(module.bias, 0.5, 1.5))
    return net.eval()
