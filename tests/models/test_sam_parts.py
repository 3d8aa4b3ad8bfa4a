"""Our run of SAM's mask decoder against the segment-anything package's own."""

import pytest
import torch

from rsgeoseg.backbones.sam_parts import SamPromptedDecoder


def prompts(dim=64, count=5, side=12):
    torch.manual_seed(0)
    decoder = SamPromptedDecoder(dim=dim, mlp_dim=96, grid=side)
    embedding = torch.randn(1, dim, side, side)
    sparse = torch.randn(count, 3, dim)
    coarse = torch.randn(count, 4 * side, 4 * side)
    return decoder, embedding, sparse, coarse


@torch.no_grad()
def test_equals_the_package():
    decoder, embedding, sparse, coarse = prompts()
    dense = decoder.dense_prompts(coarse)
    pe = decoder.image_pe(12, 12)
    torch.testing.assert_close(pe[0], decoder.prompt_encoder.get_dense_pe()[0], atol=1e-5, rtol=1e-5)
    theirs, scores = decoder.mask_decoder(embedding, pe, sparse, dense, multimask_output=False)
    ours, tokens = decoder(embedding, pe, torch.zeros(5, dtype=torch.int64), sparse, dense)
    torch.testing.assert_close(ours, theirs[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoder.iou(tokens), scores[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_prompts_of_several_images_at_once():
    decoder, embedding, sparse, coarse = prompts()
    other = torch.randn_like(embedding)
    pe, dense = decoder.image_pe(12, 12), decoder.dense_prompts(coarse)
    index = torch.tensor([0, 1, 1, 0, 1])
    together, _ = decoder(torch.cat([embedding, other]), pe, index, sparse, dense)
    for image, alone in enumerate((embedding, other)):
        mine = index == image
        apart, _ = decoder(alone, pe, torch.zeros(int(mine.sum()), dtype=torch.int64), sparse[mine], dense[mine])
        torch.testing.assert_close(together[mine], apart, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_mask_is_the_packages():
    decoder, embedding, sparse, _ = prompts()
    _, dense = decoder.prompt_encoder(points=None, boxes=torch.zeros(5, 4), masks=None)
    pe, index = decoder.image_pe(12, 12), torch.zeros(5, dtype=torch.int64)
    expected, _ = decoder(embedding, pe, index, sparse, dense)
    ours, _ = decoder(embedding, pe, index, sparse, decoder.no_mask())
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("origin", [(0.0, 0.0), (3.0, 5.0)])
def test_positions_of_a_part_are_a_part_of_the_positions(origin):
    decoder, *_ = prompts()
    full = decoder.image_pe(12, 12)
    column, row = int(origin[0]), int(origin[1])
    part = decoder.image_pe(4, 6, origin)
    torch.testing.assert_close(part, full[:, :, row : row + 4, column : column + 6], atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_close():
    decoder, embedding, sparse, coarse = prompts()
    pe, index = decoder.image_pe(12, 12), torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        exact, _ = decoder(embedding, pe, index, sparse, decoder.dense_prompts(coarse))
        with torch.autocast("cpu", torch.bfloat16):
            rough, _ = decoder(embedding, pe, index, sparse, decoder.dense_prompts(coarse))
    agree = ((rough > 0) == (exact > 0)).float().mean()
    assert agree > 0.98
