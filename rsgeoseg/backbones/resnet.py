"""torchvision's ResNets: four maps for a detector's pyramid, and ImageNet weights from a file of torchvision's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torchvision.models import ResNet, resnet18, resnet50

from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level
from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.pickles import read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ResNetName = Literal["resnet18", "resnet50"]


def resnet_spec(name: ResNetName) -> EncoderSpec:
    """Say what a ResNet takes and gives: colours as torchvision's ImageNet weights want them, maps at strides 4-32."""
    width = 64 * (4 if name == "resnet50" else 1)
    hidden = tuple(Level(width << stage, 4 << stage) for stage in range(4))
    return EncoderSpec(
        name=name,
        image_size=1024,
        embedding=hidden[2],
        hidden=hidden,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )


def build_resnet(name: ResNetName, weights: Path | None = None, *, outputs: int = 1000) -> ResNet:
    """Build a ResNet as torchvision does.

    Args:
        name: depth.
        weights: file of torchvision (``resnet18-f37072fd.pth``, ``resnet50-0676ba61.pth``, ...), or the same tensors
            as safetensors; nothing is ever downloaded. None = random.
        outputs: of the last linear layer; it stays random where the file's has another number.

    Raises:
        WeightsError: the file is missing, damaged, or holds another network.
    """
    network = (resnet50 if name == "resnet50" else resnet18)(weights=None, num_classes=outputs)
    if weights is None:
        return network
    given, own = read_tensors(weights).tensors, network.state_dict()
    for key in ("fc.weight", "fc.bias"):
        if key not in given or given[key].shape != own[key].shape:
            given[key] = own[key]
    unlike = [key for key in own if key not in given or given[key].shape != own[key].shape]
    unlike = [key for key in unlike if not key.endswith("num_batches_tracked")]  # older files lack these counters
    unknown = sorted(given.keys() - own.keys())
    if unlike or unknown:
        msg = f"{weights}: is not {name} of torchvision, {(unlike + unknown)[0]} differs; give a file of torchvision"
        raise WeightsError(msg)
    network.load_state_dict({**own, **given})
    return network


class ResNetEncoder(Encoder):
    """A ResNet without its classifier: maps at strides 4, 8, 16, 32.

    Trained from ImageNet weights, batch norm runs on its stored statistics and the stem and the first stage stay as
    they are (KyanChen/RSPrompter f4e73c3, ``samdet.py``: ``frozen_stages=1``, ``norm_eval=True``; batches of a few
    chips are too small to estimate statistics). From random weights everything is trained, batch norm as well.

    Args:
        name: depth.
        weights: as in :func:`build_resnet`.
    """

    def __init__(self, name: ResNetName, weights: Path | None = None) -> None:
        super().__init__()
        self.body = build_resnet(name, weights)
        del self.body.fc
        self.frozen = weights is not None
        self.spec = resnet_spec(name)
        if self.frozen:
            for part in (self.body.conv1, self.body.bn1, self.body.layer1):
                part.requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, 3, H, W) normalised by ``spec``, H and W multiples of 32."""
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images.contiguous(memory_format=torch.channels_last)))))
        maps = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = stage(x)
            maps.append(x)
        return Features(embedding=maps[2], hidden=tuple(maps))

    def train(self, mode: bool = True) -> ResNetEncoder:
        """Switch the mode; batch norm of ImageNet weights stays on its stored statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and self.frozen:
                module.eval()
        return self
