"""Old adapter files in pickle form: the numbers are read, nothing else ever happens."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from engine import LoraConfig, PeftModel, get_peft_model
from engine.checkpoint.pickle_reader import read_pickled_tensors
from engine.checkpoint.save import adapter_tensors
from engine.errors import BadAdapter
from tests.support.tiny import make_model


@pytest.fixture
def old_adapter(tmp_path: Path) -> tuple[Path, PeftModel]:
    """An adapter folder as PEFT wrote them before safetensors."""
    peft = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    peft.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "adapter_model.safetensors").unlink()
    torch.save(adapter_tensors(peft, "default"), tmp_path / "old" / "adapter_model.bin")
    return tmp_path / "old", peft


def test_an_old_adapter_loads_whole(old_adapter):
    folder, peft = old_adapter
    again = PeftModel.from_pretrained(make_model(), folder)
    assert again.load_report.complete
    ids = torch.arange(8)[None]
    torch.testing.assert_close(again(ids).logits, peft(ids).logits, atol=1e-6, rtol=0)


def test_every_dtype_view_and_parameter_is_read_bit_for_bit(tmp_path):
    big = torch.randn(6, 8)
    tensors = {"view": big.t()[2:5], "half": big.half(), "brain": big.bfloat16(), "places": torch.arange(5), "mask": torch.tensor([True, False]),
               "parameter": torch.nn.Parameter(big[1]), "empty": torch.empty(0, 3), "one": torch.tensor(2.5)}
    torch.save(tensors, tmp_path / "a.bin")
    read = read_pickled_tensors(tmp_path / "a.bin")
    assert list(read) == list(tensors)
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor.detach())


class Bomb:
    """Would leave a file behind if anything ran."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def rewrite(path: Path, described: bytes, packed: bool = False) -> None:
    """The same archive with another description in it."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, described if name.endswith("data.pkl") and described else data)


@pytest.mark.parametrize("harm", ["bomb", "bomb in the middle", "no zip", "cut", "not tensors", "other words", "packed", "out of bounds",
                                  "one number a hundred million times"])
def test_anything_else_ends_the_reading(harm, tmp_path):
    path, mark = tmp_path / "adapter_model.bin", tmp_path / "mark"
    torch.save({"a": torch.randn(4, 4)}, path)
    if harm == "bomb":
        rewrite(path, pickle.dumps(Bomb(mark)))
    elif harm == "bomb in the middle":
        rewrite(path, pickle.dumps({"a": [1, Bomb(mark)]}))
    elif harm == "no zip":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif harm == "not tensors":
        rewrite(path, pickle.dumps({"a": 3}))
    elif harm == "other words":
        rewrite(path, b"cbuiltins\neval\n(S'1+1'\ntR.")
    elif harm == "one number a hundred million times":
        torch.save({"a": torch.zeros(1).expand(10_000, 10_000)}, path)
    elif harm == "packed":
        rewrite(path, b"", packed=True)
    else:
        torch.save({"a": torch.randn(4, 4)}, path)
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            described = archive.read(name).replace(b"K\x04K\x04\x86", b"K\x04K\x7f\x86", 1)
        rewrite(path, described)
    with pytest.raises(BadAdapter, match="cannot be used"):
        read_pickled_tensors(path)
    assert not mark.exists()


def test_what_many_tensors_are_parts_of_is_read_once(monkeypatch, tmp_path):
    whole, reads, read = torch.randn(50, 4), [], zipfile.ZipFile.read
    torch.save({str(n): row for n, row in enumerate(whole)}, tmp_path / "adapter_model.bin")
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: (reads.append(name), read(self, name))[1])
    found = read_pickled_tensors(tmp_path / "adapter_model.bin")
    assert all(torch.equal(found[str(n)], row) for n, row in enumerate(whole)) and len(reads) == 2
