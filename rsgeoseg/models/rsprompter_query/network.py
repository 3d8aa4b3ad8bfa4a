"""RSPrompter-query: learned prompts for SAM's mask decoder (paper section III-B4, Fig. 6, Eq. 6-7).

Source: Chen et al., "RSPrompter", IEEE TGRS 2024; facts of the released code from KyanChen/RSPrompter branch release,
commit f4e73c3, ``RSMask2FormerHead``. ``numerics`` chooses where the two differ: "paper" or "released".

Every prediction set is computed lazily: class logits for all queries, mask logits only for the queries that are asked
for. Interpolation and the dot product with a query commute, so attention masks and matching costs are read from reduced
mask features: the same numbers without the full-size maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.backbones.sam_parts import SamPromptedDecoder
from rsgeoseg.models.rsprompter_query.loss import LossConfig, query_losses
from rsgeoseg.nn.centres import CentreHead, Centres, read_cells, strongest_peaks
from rsgeoseg.nn.ellipses import ellipse_logits, ellipse_map
from rsgeoseg.nn.enhancer import EmbeddingEnhancer, PlainEnhancer, PyramidEnhancer
from rsgeoseg.nn.masked_attention import MaskedDecoderLayer
from rsgeoseg.nn.mlp import mlp
from rsgeoseg.nn.norm import set_norm_eps
from rsgeoseg.nn.pixel_decoder import PixelDecoder
from rsgeoseg.nn.points import sample_points
from rsgeoseg.nn.positions import sine_positions
from rsgeoseg.nn.prompt_embeddings import prompt_embeddings, raw_width
from rsgeoseg.nn.query_memory import blocked_cells, query_memories
from rsgeoseg.nn.steady import draw_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder, Features
    from rsgeoseg.models.rsprompter_query.config import QueryConfig
    from rsgeoseg.nn.targets import Target


@dataclass(frozen=True, slots=True)
class PredictionSet:
    """What the queries say after one decoder layer (set 0: before the first)."""

    class_logits: Tensor
    """(B, Q, C + 1) float32, background last."""
    kernels: Tensor
    """(B, Q, mask_channels): dot product with the mask feature gives coarse logits (Eq. 7, f-hat)."""
    state: Tensor
    """(B, Q, width): the normed queries that prompts are made from."""
    ellipses: Tensor | None
    """(B, Q, 5) parameters of the local term."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all queries of a batch look at."""

    embedding: Tensor
    """(B, D, h, w) SAM's image embedding."""
    embedding_pe: Tensor
    """(1, D, h, w)."""
    skips: tuple[Tensor, Tensor] | None
    """Maps at stride 4 and 8."""
    mask_feature: Tensor
    """(B, mask_channels, H/4, W/4) float32."""
    memories: tuple[Tensor, ...]
    """Maps at strides 64, 32, 16 as (B, L, width)."""
    memory_positions: tuple[Tensor, ...]
    """(L, width) each."""
    memory_shapes: tuple[tuple[int, int], ...]
    """(h, w) each."""
    centre_logits: list[Tensor]
    """(B, classes, h, w) at strides 8, 16, 32, or empty."""
    centre_features: list[Tensor]
    """(B, width, h, w) at strides 8, 16, 32, or empty."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Where the queries of a batch start."""

    content: Tensor
    """(B, Q, width)."""
    position: Tensor
    """(B, Q, width)."""
    centres: Centres | None
    """Cells they came from."""
    apart: Tensor | None = None
    """(B, Q, Q) True where one may not see the other; None = all see all."""


class RSPrompterQuery(nn.Module):
    """The network: encoder, enhancer, pixel decoder, query decoder, heads, SAM's mask decoder.

    Args:
        encoder: any image encoder.
        config: sizes and options.
        loss_config: weights and options of the training loss.
    """

    def __init__(self, encoder: Encoder, config: QueryConfig, loss_config: LossConfig | None = None) -> None:
        super().__init__()
        self.loss_config = loss_config or LossConfig()
        self.encoder = encoder
        self.config = config
        spec, width = encoder.spec, config.width
        channels = [level.channels for level in spec.hidden]
        self.neck: EmbeddingEnhancer | PyramidEnhancer | PlainEnhancer
        if config.aggregate == "embedding":
            self.neck = EmbeddingEnhancer(spec.embedding.channels)
        elif spec.is_pyramid:
            self.neck = PyramidEnhancer(channels, channels=width)
        else:
            self.neck = PlainEnhancer(channels, numerics=config.numerics)
        self.extent = spec.image_size
        self.pixel_decoder = PixelDecoder(
            self.neck.channels,
            width=width,
            mask_channels=config.mask_channels,
            layers=config.encoder_layers,
            heads=config.heads,
            hidden=config.hidden,
            extent=self.extent,
        )
        self.level_embed = nn.Embedding(PixelDecoder.encoded_levels, width)
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(width, heads=config.heads, hidden=config.hidden) for _ in range(config.decoder_layers)
        )
        self.post_norm = nn.LayerNorm(width)
        self._build_queries()
        self._build_heads()
        self.sam = SamPromptedDecoder(
            dim=spec.embedding.channels,
            mlp_dim=config.decoder_mlp,
            grid=spec.image_size // spec.embedding.stride,
            skip_channels=spec.skip_channels if config.skips else None,
        )
        if config.numerics == "released":  # Hugging Face's SAM norms, all but the last one
            set_norm_eps(self.sam.mask_decoder.transformer.layers, 1e-6)
        if config.refine_coarse:  # start from the coarse mask: the last linear layer adds nothing yet
            last = self.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _build_queries(self) -> None:
        config, width = self.config, self.config.width
        if config.centre_queries:
            self.centre_head = CentreHead(width, len(config.classes))
            self.content = nn.Sequential(nn.Linear(width + len(config.classes), width), nn.LayerNorm(width))
            self.place = nn.Linear(width, width)
        else:
            self.query_feat = nn.Embedding(config.num_queries, width)
            self.query_embed = nn.Embedding(config.num_queries, width)
            if config.numerics == "paper":  # Eq. 7: F_query^0 is zero-initialised
                nn.init.zeros_(self.query_feat.weight)
        if config.local_masks:
            self.ellipse = mlp(width, width, 5)
            last = self.ellipse[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _build_heads(self) -> None:
        config, width = self.config, self.config.width
        self.cls_embed = mlp(width, width, len(config.classes) + 1)
        self.mask_embed = mlp(width, width, width, config.mask_channels)
        prompt = raw_width(config.prompts_per_query, self.encoder.spec.embedding.channels, config.numerics)
        between = (width // 2, width // 2) if config.numerics == "released" else (2 * width,)
        self.point_emb = mlp(width, *between, prompt)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 or float images (B, 3, H, W) of 0-255 by the encoder's mean and deviation."""
        return normalise(images, self.encoder.spec)

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the training loss (``train.Trainable``).

        The crop lies at a random place of the positional frame, so that a network trained on small crops knows all
        places of a large chip.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64.
            targets: one per image.

        Returns:
            Named terms; their sum is minimised.
        """
        room = torch.tensor([self.extent - images.shape[-1], self.extent - images.shape[-2]]).clamp(min=0)
        origin = tuple((torch.rand(2) * room).tolist()) if not self.encoder.spec.fixed_size else (0.0, 0.0)
        return query_losses(self, self.normalise(images), targets, self.loss_config, origin=(origin[0], origin[1]))

    def look(self, images: Tensor, origin: tuple[float, float] = (0.0, 0.0)) -> Scene:
        """Encode images (B, 3, H, W), normalised, H and W multiples of 64.

        Args:
            images: the batch.
            origin: x y of the images' corner in the positional frame, pixels.
        """
        return self.describe(self.encoder(images), origin)

    def describe(self, features: Features, origin: tuple[float, float] = (0.0, 0.0)) -> Scene:
        """Enhance and decode the encoder's features (Eq. 3 and 6)."""
        read = (features.embedding,) if self.config.aggregate == "embedding" else features.hidden
        mask_feature, refined = self.pixel_decoder(self.neck(read), origin)
        memories = query_memories(refined[:3], self.level_embed.weight, extent=self.extent, origin=origin)
        stride = self.encoder.spec.embedding.stride
        grid_origin = (origin[0] / stride, origin[1] / stride)
        heat, heat_features = self.centre_head(refined[3:0:-1]) if self.config.centre_queries else ([], [])
        return Scene(
            embedding=features.embedding,
            embedding_pe=self.sam.image_pe(features.embedding.shape[-2], features.embedding.shape[-1], grid_origin),
            skips=features.skips if self.config.skips else None,
            mask_feature=mask_feature.float(),
            memories=tuple(memory.tokens for memory in memories),
            memory_positions=tuple(memory.positions for memory in memories),
            memory_shapes=tuple(memory.shape for memory in memories),
            centre_logits=heat,
            centre_features=heat_features,
        )

    def start(self, scene: Scene, count: int | None = None, origin: tuple[float, float] = (0.0, 0.0)) -> Queries:
        """Make the initial queries: learned ones, or the strongest centres.

        Args:
            scene: what ``look`` gave.
            count: number of centre queries; None = ``config.num_queries``.
            origin: as in ``look``.
        """
        if not self.config.centre_queries:
            batch = scene.embedding.shape[0]
            content = self.query_feat.weight.unsqueeze(0).expand(batch, -1, -1)
            position = self.query_embed.weight.unsqueeze(0).expand(batch, -1, -1)
            return Queries(content=content, position=position, centres=None)
        level, row, column, _ = strongest_peaks(scene.centre_logits, count or self.config.num_queries)
        return self.place_queries(scene, level, row, column, origin=origin)

    def place_queries(
        self, scene: Scene, level: Tensor, row: Tensor, column: Tensor, *, origin: tuple[float, float] = (0.0, 0.0)
    ) -> Queries:
        """Make queries from given cells of the centre maps, (B, Q) int64 each."""
        centres = read_cells(scene.centre_logits, scene.centre_features, level, row, column)
        shifted = centres.points + torch.tensor(origin, device=centres.points.device)
        sine = sine_positions(shifted, extent=self.extent, features=self.config.width // 2)
        return Queries(content=self.content(centres.features), position=self.place(sine), centres=centres)

    def decode(self, scene: Scene, queries: Queries) -> list[PredictionSet]:
        """Run the query decoder (Eq. 7): ``decoder_layers + 1`` prediction sets, the last one the result.

        In float32: a few hundred tokens decide which objects there are, and bfloat16 moves scores across the threshold.
        """
        with torch.autocast(scene.embedding.device.type, enabled=False):
            state, position = queries.content.float(), queries.position.float()
            sets = [self._predict(state)]
            for index, layer in enumerate(self.layers):
                level = index % len(scene.memories)
                blocked = self._blocked(scene, sets[-1], queries.centres, scene.memory_shapes[level])
                memory, place = scene.memories[level].float(), scene.memory_positions[level].float()
                state = layer(state, position, memory, place, blocked, queries.apart)
                sets.append(self._predict(state))
        return sets

    def _predict(self, state: Tensor) -> PredictionSet:
        normed = self.post_norm(state)
        return PredictionSet(
            class_logits=self.cls_embed(normed).float(),
            kernels=self.mask_embed(normed),
            state=normed,
            ellipses=self.ellipse(normed).float() if self.config.local_masks else None,
        )

    @torch.no_grad()
    def _blocked(
        self, scene: Scene, prediction: PredictionSet, centres: Centres | None, shape: tuple[int, int]
    ) -> Tensor:
        """Attention mask (B, Q, L): a query looks only where its coarse mask is, or everywhere if that is nowhere."""
        reduced = F.interpolate(scene.mask_feature, size=shape, mode="bilinear", align_corners=False)
        pairs = zip(prediction.kernels.float(), reduced, strict=True)
        logits = torch.stack([draw_masks(kernels, feature) for kernels, feature in pairs])
        if prediction.ellipses is not None:
            assert centres is not None
            stride = 4 * scene.mask_feature.shape[-1] / shape[1]
            logits = logits + ellipse_map(
                prediction.ellipses, centres.points, centres.sides, shape=shape, stride=stride
            )
        return blocked_cells(logits)

    def coarse_logits(
        self, scene: Scene, prediction: PredictionSet, centres: Centres | None, image: Tensor, query: Tensor
    ) -> Tensor:
        """Coarse masks (Eq. 7, m-hat coarse) of chosen queries.

        Args:
            scene: what ``look`` gave.
            prediction: a prediction set.
            centres: the queries' centres where they have some.
            image: (P,) int64.
            query: (P,) int64.

        Returns:
            (P, H/4, W/4) float32 logits.
        """
        kernels = prediction.kernels[image, query].float()
        logits = kernels.new_empty(len(image), *scene.mask_feature.shape[-2:])
        for index in torch.unique(image).tolist():
            here = image == index
            logits[here] = draw_masks(kernels[here], scene.mask_feature[index]).float()
        if prediction.ellipses is not None:
            assert centres is not None
            shape = (logits.shape[-2], logits.shape[-1])
            logits = logits + ellipse_map(*_chosen(prediction.ellipses, centres, image, query), shape=shape, stride=4)
        return logits

    def coarse_at(
        self, scene: Scene, prediction: PredictionSet, centres: Centres | None, image: int, points: Tensor
    ) -> Tensor:
        """Coarse logits of all queries of one image at points (P, 2) x y in [0, 1]: (B=1 dropped) (Q, P) float32."""
        at_points = sample_points(scene.mask_feature[image], points.unsqueeze(0))  # (C, P)
        logits = prediction.kernels[image].float() @ at_points
        if prediction.ellipses is not None:
            assert centres is not None
            h, w = scene.mask_feature.shape[-2:]
            xs, ys = points[:, 0] * (4 * w), points[:, 1] * (4 * h)
            logits = logits + ellipse_logits(
                prediction.ellipses[image], centres.points[image], centres.sides[image], xs, ys
            )
        return logits

    def sparse_prompts(self, prediction: PredictionSet, image: Tensor, query: Tensor) -> Tensor:
        """Prompt embeddings F_sparse (P, K_p, D) of chosen queries (Eq. 7)."""
        raw = self.point_emb(prediction.state[image, query])
        return prompt_embeddings(raw, self.config.prompts_per_query, self.config.numerics)

    def fine_logits(
        self, scene: Scene, prediction: PredictionSet, coarse: Tensor, image: Tensor, query: Tensor
    ) -> Tensor:
        """Masks of SAM's decoder (paper Eq. 2 on the prompts of Eq. 7), (P, H/4, W/4) float32 logits.

        The coarse logits enter without gradient, as in the released code.
        """
        given = coarse.detach()
        dense = self.sam.dense_prompts(given)
        sparse = self.sparse_prompts(prediction, image, query)
        decoded, _ = self.sam(scene.embedding, scene.embedding_pe, image, sparse, dense, scene.skips)
        logits: Tensor = decoded.float()
        return given + logits if self.config.refine_coarse else logits


def _chosen(ellipses: Tensor, centres: Centres, image: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ellipses[image, query], centres.points[image, query], centres.sides[image, query]
