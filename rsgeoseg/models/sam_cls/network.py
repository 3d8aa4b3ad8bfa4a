"""SAM-cls: everything that SAM sees, named by a classifier (RSPrompter paper section III-C2, Eq. 11).

Source: Chen et al., "RSPrompter", IEEE TGRS 2024; KyanChen/RSPrompter, branch lightning, ``tools/ins_seg/sam/sam_cls``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.backbones.prompt_loss import PromptLoss
from rsgeoseg.backbones.promptable import PromptableSam, sam_decoder
from rsgeoseg.backbones.resnet import build_resnet, resnet_spec
from rsgeoseg.errors import ModelError
from rsgeoseg.models.sam_cls.clip import ClipLabeller
from rsgeoseg.models.sam_cls.samples import SampleConfig, draw_crops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.models.sam_cls.config import ClsConfig
    from rsgeoseg.nn.targets import Target


class SamCls(PromptableSam):
    """The network: SAM, and a labeller of crops.

    Args:
        encoder: SAM's image encoder.
        config: sizes and options.
        labeller_weights: ImageNet weights of the ResNet-18, a file of torchvision; None = random.
        samples: crops that the labeller is trained on.

    Raises:
        ModelError: CLIP was asked for and is not there.
        WeightsError: the labeller's file is missing, damaged, or of another network.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: ClsConfig,
        *,
        labeller_weights: Path | None = None,
        samples: SampleConfig | None = None,
    ) -> None:
        super().__init__(encoder, sam_decoder(encoder.spec), PromptLoss(ways=("clicks",)))
        self.config = config
        self.samples = samples or SampleConfig()
        if not config.train_sam:
            self.encoder.requires_grad_(requires_grad=False)
            self.sam.requires_grad_(requires_grad=False)
        self.clip: ClipLabeller | None = None
        if config.labeller == "clip":
            folder = None if config.clip_folder is None else Path(config.clip_folder)
            self.clip = ClipLabeller(
                folder, config.classes, prompt=config.clip_prompt, background=config.clip_background
            )
        else:
            self.labeller = build_resnet("resnet18", labeller_weights, outputs=len(config.classes) + 1)

    @property
    def crop_side(self) -> int:
        """Side of the crops that :meth:`label` takes, pixels."""
        return self.config.crop_side if self.clip is None else self.clip.side

    def label(self, crops: Tensor) -> Tensor:
        """Class logits (N, C + 1) float32, background last, of crops (N, 3, crop_side, crop_side) uint8."""
        if self.clip is not None:
            return self.clip(crops)
        logits: Tensor = self.labeller(normalise(crops, resnet_spec("resnet18")))
        return logits.float()

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the training loss (``train.Trainable``): the labeller's cross-entropy, and SAM's where it is trained.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64.
            targets: one per image.

        Returns:
            Named terms; their sum is minimised.

        Raises:
            ModelError: there is nothing to train: CLIP is the labeller, and SAM is taken as it is.
        """
        terms = super().loss(images, targets) if self.config.train_sam else {}
        if self.clip is None:
            crops, labels = draw_crops(
                images, targets, self.samples, side=self.crop_side, background=len(self.config.classes)
            )
            nothing = 0.0 * self.labeller.fc.weight.sum()
            enough = len(labels) > 1  # batch norm cannot learn from a single crop
            terms["label"] = F.cross_entropy(self.label(crops), labels) if enough else nothing
        if not terms:
            msg = "sam-cls with a CLIP labeller has nothing to train; choose labeller resnet18"
            raise ModelError(msg)
        return terms
