"""A plain stride-16 encoder of two layers, shaped like SAM's ViT."""

import torch

from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level


class PlainEncoder(Encoder):
    """Two hidden maps at stride 16, fixed input of 256 pixels."""

    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(
            name="plain",
            image_size=256,
            embedding=Level(32, 16),
            hidden=(Level(48, 16), Level(48, 16)),
            mean=(127.0,) * 3,
            std=(64.0,) * 3,
            fixed_size=True,
        )
        self.patch = torch.nn.Conv2d(3, 48, 16, stride=16)
        self.mix = torch.nn.Conv2d(48, 48, 3, padding=1)
        self.out = torch.nn.Conv2d(48, 32, 1)

    def forward(self, images):
        first = self.patch(images).relu()
        second = self.mix(first).relu()
        return Features(embedding=self.out(second), hidden=(first, second))
