"""A gradient's way back through a weight's copy: the very same numbers, in bounded room, and only where it is quicker."""

import pytest
import torch
from torch import nn

from engine import LoraConfig, get_peft_model
from engine.hosts import turned
from engine.train.batching import collate
from engine.train.loss import Objective
from tests.support.rows import random_rows
from tests.support.tiny import make_model

pytestmark = pytest.mark.skipif(not turned._can(), reason="no such products in 16 bits here")


@pytest.fixture
def quicker(monkeypatch):
    """Copies are the quicker ones, whatever the clock says of such small weights."""
    monkeypatch.setattr(turned, "_seconds", lambda product, grad, weight: 1.0 if product is turned._by else 2.0)


def weights(count, out=48, columns=64, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(out, columns, dtype=dtype), requires_grad=False) for _ in range(count)]


def test_the_very_same_numbers_for_any_number_of_rows(quicker):
    weight, = weights(1)
    with turned.ways_back(10 ** 9) as ways:
        for rows in (40, 40, 1, 7, 300):
            grad = torch.randn(rows, 48, dtype=torch.bfloat16)
            assert torch.equal(turned.back(grad, weight, dear=True), grad @ weight)
        assert ways.taken == weight.nbytes


def test_copies_take_no_more_than_their_share_and_the_room_there_is(quicker):
    many, grad = weights(20), torch.randn(8, 48, dtype=torch.bfloat16)
    each = many[0].nbytes
    for room, most in ((10 ** 9, 8 * each), (3 * each, 3 * each), (0, 0)):
        with turned.ways_back(room) as ways:
            for weight in (*many, *many):
                assert torch.equal(turned.back(grad, weight), grad @ weight)
            assert ways.taken == most


def test_a_copy_that_is_not_quicker_or_rounds_otherwise_is_not_used(monkeypatch, quicker):
    weight, grad = weights(1)[0], torch.randn(8, 48, dtype=torch.bfloat16)
    own = turned._by
    monkeypatch.setattr(turned, "_by", lambda grad, copy: own(grad, copy) * 1.01)
    monkeypatch.setattr(turned, "_seconds", lambda product, grad, weight: 2.0 if product is torch.mm else 1.0)
    with turned.ways_back(10 ** 9) as ways:
        assert torch.equal(turned.back(grad, weight, dear=True), grad @ weight) and ways.taken == 0
    monkeypatch.setattr(turned, "_by", own)
    monkeypatch.setattr(turned, "_seconds", lambda product, grad, weight: 1.0 if product is torch.mm else 2.0)
    with turned.ways_back(10 ** 9) as ways:
        assert torch.equal(turned.back(grad, weight, dear=True), grad @ weight) and ways.taken == 0


def test_a_weight_that_changed_is_read_as_it_is(quicker):
    weight, grad = weights(1)[0], torch.randn(8, 48, dtype=torch.bfloat16)
    with turned.ways_back(10 ** 9) as ways:
        turned.back(grad, weight, dear=True)
        weight.mul_(2)
        assert torch.equal(turned.back(grad, weight, dear=True), grad @ weight) and ways.taken
        weight.data = weight.data * 3
        assert torch.equal(turned.back(grad, weight, dear=True), grad @ weight)


def test_what_learns_or_passes_by_or_is_of_32_bits_has_no_copy(quicker):
    learns, passes, wide = weights(1)[0].requires_grad_(), weights(1)[0].data, weights(1, dtype=torch.float32)[0]
    with turned.ways_back(10 ** 9) as ways:
        for weight in (learns, passes, wide):
            turned.back(torch.randn(8, 48, dtype=weight.dtype), weight, dear=True)
        assert ways.taken == 0


def test_what_is_learned_does_not_depend_on_copies(quicker):
    """Head and layers, through the whole objective; outside, and where a base is split, there are none."""
    torch.manual_seed(0)
    model = get_peft_model(make_model(tied=False).bfloat16(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    objective, batch = Objective(model), collate(random_rows([30, 20]), share=True)

    def learned():
        model.zero_grad()
        return objective.backward(batch, 10), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    error, plain = learned()
    with turned.ways_back(10 ** 9) as ways:
        for _ in range(2):                 # the first time copies are made, the second they are used
            again, gradients = learned()
            assert again == error and all(torch.equal(a, b) for a, b in zip(gradients, plain, strict=True))
        assert ways.taken > model.get_base_model().lm_head.weight.nbytes
        turned.without_copies()
        assert turned._open is None
    assert turned._open is None
