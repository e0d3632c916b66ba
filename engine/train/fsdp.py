"""A base that is too large for one graphics card, split over several: fully sharded data parallelism (Zhao et al. 2023, arXiv 2304.11277).

Each process keeps a share of every block's bytes. A block is whole while it runs, forward or backward, and only one is at a time. What
learns is small and stays whole everywhere, so optimizer, checkpoints and files are those of an unsplit training; and what is frozen has no
gradient, so nothing is reduced. The bytes come back as they were: the result is that of as many processes without a split.

A weight remains the tensor that it is; it is the memory under it that comes and goes. So what autograd has kept of it is there again as soon
as its block is. *Doors* see to that: the modules of a block ask for it when they are called, and when a gradient comes back to their output.

It is not torch's `fully_shard`, because that hangs unless all processes walk through the blocks alike, at the same time. Ours need not: they
have different numbers of micro-batches, one may run out of memory in the middle of its own, and one alone answers a question or saves. So
they meet in *rounds*: each says which piece it needs, or that it needs none, and all hand over their shares. Whoever has nothing to compute
keeps serving the others until nobody has (`Team.together`).

One process by itself is the same with one share, which waits in main memory: so is a plan's price found out, and an adapter reviewed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.errors import InvalidSpec
from engine.hosts.adapted import Adapted
from engine.hosts.shelves import Shelves
from engine.hosts.turned import without_copies
from engine.specs import TrainSpec
from engine.store.library import read_model
from engine.train.precision import Precision
from engine.train.team import Team

ROOM = 0.8                                 # share of a card's memory that a whole base may take; what is computed needs the rest
_together = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor        # its name up to torch 2.12
ALIGNED = 64                               # bytes: where each weight begins
NOTHING = -1                               # said in a round by who needs no piece


def is_wanted(spec: TrainSpec, precision: Precision) -> bool:
    """Whether the plan's base is to be split: as it says, or because it would not leave enough room on a card.

    Raises `InvalidSpec` if it is asked for a base that is packed into few bits: its layers keep more than plain weights.
    """
    if spec.split == "off" or spec.split == "auto" and not torch.cuda.is_available():
        return False
    info = read_model(spec.base)
    packed = spec.base_bits != 16 or "quantization_config" in info.config
    if spec.split == "auto":
        smallest = min(torch.cuda.get_device_properties(card).total_memory for card in range(torch.cuda.device_count()))
        return not packed and info.parameters * precision.torch_dtype.itemsize > ROOM * smallest
    if packed:
        sentence = "A model that is packed into few bits cannot be split over several processes."
        raise InvalidSpec(sentence, do="Set “Split the model” to “off”.", fields={"split": sentence})
    return True


class Split:
    """The ``frozen`` weights of ``model``, split over the ``team`` from now on; everything else of it moves to ``device`` whole.

    Blocks are the members of the model's outermost module lists. Beside them only the embeddings and the head are split: what else stands
    outside of blocks is small, and may be read by anyone.
    """

    def __init__(self, model: nn.Module, frozen: Collection[nn.Parameter], team: Team, device: str):
        self._team = team
        without_copies()
        if team.size > 1:
            team.talk()
            team.serve = self.serve
        wanted, ends = {id(p) for p in frozen if not p.requires_grad and p.numel()}, (model.get_input_embeddings(), model.get_output_embeddings())
        tops = [*_blocks(model), *(end for end in ends if end is not None)]
        owners: dict[nn.Parameter, list[int]] = {}             # several, where they share a weight
        for number, top in enumerate(tops):
            for p in top.parameters():
                if id(p) in wanted:
                    owners.setdefault(p, []).append(number)
        together: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for p, numbers in owners.items():
            together.setdefault(tuple(numbers), []).append(p)
        self._pieces = [_Piece(weights, team, device) for weights in together.values()]
        self._of = {p: number for number, weights in enumerate(together.values()) for p in weights}
        self._here: set[int] = set()
        model.to(device)
        for top in tops:
            self._open(top)

    @property
    def resting(self) -> int:
        """Bytes of the base that this process keeps."""
        return sum(piece.share.numel() for piece in self._pieces)

    def _open(self, module: nn.Module) -> None:
        """Make a door of the module and of those within it; what runs inside an adapted layer is its own affair."""
        numbers = frozenset(self._of[p] for p in module.parameters() if p in self._of)
        if not numbers:
            return

        def on_the_way_back(module: nn.Module, args: tuple, output: object) -> None:
            if torch.is_grad_enabled():
                for tensor in tree_leaves(output):
                    if isinstance(tensor, Tensor) and tensor.requires_grad:
                        tensor.register_hook(lambda gradient: self._need(numbers))

        module.register_forward_pre_hook(lambda module, args: self._need(numbers))
        module.register_forward_hook(on_the_way_back)
        if isinstance(module, Adapted):
            module.fleeting = True
        if not isinstance(module, Shelves):
            for child in module.children():
                self._open(child)

    def _need(self, numbers: frozenset[int]) -> None:
        """Let these pieces be whole. Others are only until then."""
        if numbers <= self._here:
            return
        for number in self._here - numbers:
            self._pieces[number].leave()
            self._here.discard(number)
        for number in sorted(numbers - self._here):
            self._pieces[number].make_room()                   # memory that runs out does so before the others are told
            self._round(number)
            self._here.add(number)

    def serve(self) -> None:
        """Hand over shares until nobody computes any more."""
        while self._round(NOTHING):
            pass

    @torch.no_grad()
    def _round(self, number: int) -> bool:
        """Say what is needed here and give the others what they need. Whether anybody needed something."""
        if self._team.size == 1:
            self._pieces[number].whole.copy_(self._pieces[number].share)
            return True
        said = torch.empty(self._team.size, dtype=torch.int64)
        _together(said, torch.tensor([number]), group=self._team.words)
        needs = said.tolist()
        for wanted in sorted({*needs} - {NOTHING}):
            piece = self._pieces[wanted]
            if all(need == wanted for need in needs):
                _together(piece.whole, piece.share)
                continue
            for rank, need in enumerate(needs):
                if need == wanted:
                    dist.gather(piece.share, [*piece.whole.chunk(self._team.size)] if rank == self._team.rank else None, dst=rank)
        return any(need != NOTHING for need in needs)


class _Piece:
    """Weights that come and go together: ``whole`` lies under all of them, mostly without memory; ``share`` is what this process keeps."""

    def __init__(self, weights: list[nn.Parameter], team: Team, device: str):
        begins, size = [], 0
        for p in weights:
            begins.append(size)
            size += -(-p.nbytes // ALIGNED) * ALIGNED
        each = -(-size // (ALIGNED * team.size)) * ALIGNED
        content = torch.zeros(each * team.size, dtype=torch.uint8)
        self.whole = torch.empty(each * team.size, dtype=torch.uint8, device=device)
        for p, begin in zip(weights, begins):
            content[begin:begin + p.nbytes] = p.detach().reshape(-1).view(torch.uint8)
            p.data = self.whole[begin:begin + p.nbytes].view(p.dtype).view(p.shape)
        self.share = content if team.size == 1 else content.chunk(team.size)[team.rank].to(device, copy=True)
        self._bytes = content.numel()
        self.leave()

    def make_room(self) -> None:
        """Memory for all of it, not yet filled."""
        self.whole.untyped_storage().resize_(self._bytes)

    def leave(self) -> None:
        """Give the memory back."""
        self.whole.untyped_storage().resize_(0)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)
