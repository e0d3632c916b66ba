"""Embeddings: a token's row is a column of the canonical matrix ``(dim, vocabulary)``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UnsupportedLayer
from engine.hosts.host import Host
from engine.law import Site


class EmbeddingHost(Host):
    """Tables of word vectors; seen as a matrix that turns one-hot words into vectors."""

    layers = (nn.Embedding,)

    def site(self, path: str, layer: nn.Module) -> Site:
        if layer.max_norm is not None:
            raise UnsupportedLayer(f"No adapter can sit on {path}.", "Whenever it reads its vectors it cuts them to a greatest length (`max_norm`), "
                                   "so that the base would not stay as it is.", "Leave it out of `target_modules`.")
        return Site(path, "embedding", layer.embedding_dim, layer.num_embeddings)

    def canonical(self, weight: Tensor) -> Tensor:
        return weight.T

    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.T.contiguous()

    def project(self, layer: nn.Module, x: Tensor, A: Tensor) -> Tensor:
        h = F.embedding(x, A.T, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)      # learns as the layer itself would
        return h * layer.embed_scale.to(h.dtype) if hasattr(layer, "embed_scale") else h     # Gemma's scaled embedding

    def expand(self, layer: nn.Module, h: Tensor, B: Tensor) -> Tensor:
        return F.linear(h, B)

    def run(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        return self.project(layer, x, matrix)
