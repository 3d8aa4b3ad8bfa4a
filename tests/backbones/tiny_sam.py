"""A whole SAM of the package, small enough for a test, and ours with the same weights."""

from functools import partial

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from rsgeoseg.backbones.promptable import PromptableSam
from rsgeoseg.backbones.sam_parts import SamPromptedDecoder
from rsgeoseg.backbones.sam_vit import SamVit
from rsgeoseg.contract import Chip

SIDE, DIM = 256, 64


def tiny_sam(seed=0):
    """Give the package's SAM for images of 256 pixels, random, and ours."""
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        img_size=SIDE,
        depth=2,
        embed_dim=48,
        num_heads=2,
        out_chans=DIM,
        use_rel_pos=True,
        window_size=7,
        global_attn_indexes=(1,),
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    theirs = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=DIM, image_embedding_size=(16, 16), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=DIM,
            transformer=TwoWayTransformer(depth=2, embedding_dim=DIM, mlp_dim=96, num_heads=8),
        ),
    ).eval()
    for name, part in encoder.named_parameters():  # the package starts positions at zero
        if "pos" in name:
            torch.nn.init.normal_(part, std=0.02)
    sam = SamPromptedDecoder(dim=DIM, mlp_dim=96, grid=16)
    sam.prompt_encoder.load_state_dict(theirs.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(theirs.mask_decoder.state_dict())
    ours = SamVit(encoder, name="sam-vit-b", layers=(), image_size=SIDE, precision="fp32")
    return theirs, PromptableSam(ours, sam).eval()


def picture(seed=0, side=SIDE):
    """Draw a smooth random chip, (3, side, side) uint8."""
    rng = np.random.default_rng(seed)
    rough = torch.from_numpy(rng.uniform(0, 255, (1, 3, 8, 8)))
    smooth = torch.nn.functional.interpolate(rough, size=(side, side), mode="bicubic")[0]
    return smooth.clamp(0, 255).numpy().astype(np.uint8)


def chip_of(image):
    """Wrap pixels that are all valid."""
    return Chip(image=image, valid=np.ones(image.shape[1:], np.bool_))
