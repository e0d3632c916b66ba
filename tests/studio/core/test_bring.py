"""A name becomes the right job, or a sentence."""

import pytest

from studio.core.bring import understand


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models" / "There").mkdir(parents=True)
    return tmp_path / "models"


@pytest.mark.parametrize("typed", ["org/Some-1.5B", " org/Some-1.5B ", "https://huggingface.co/org/Some-1.5B",
                                   "https://huggingface.co/org/Some-1.5B/"])
def test_names_on_the_hub(models, typed):
    wish = understand(typed, models)
    assert (wish.name, wish.spec.model, wish.spec.out, wish.fault) == ("Some-1.5B", "org/Some-1.5B", str(models / "Some-1.5B"), "")


def test_what_lies_on_this_computer(models, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "packed.Q4.GGUF").write_bytes(b"GGUF")
    folder, file = understand(str(tmp_path / "mine"), models), understand(f'"{tmp_path / "packed.Q4.GGUF"}"', models)
    assert (folder.name, folder.spec.model) == ("mine", str(tmp_path / "mine"))
    assert (file.name, file.spec.model) == ("packed.Q4", str(tmp_path / "packed.Q4.GGUF"))


@pytest.mark.parametrize("typed", ["", "hello", "org/a/b", "../etc", "org/..", "/nowhere/at/all"])
def test_anything_else_is_told(models, typed):
    wish = understand(typed, models)
    assert wish.spec is None and typed in wish.fault


@pytest.mark.parametrize("typed", ["pytorch_model.bin", "/x/model.pt", "m.CKPT"])
def test_pickles_are_never_opened(models, typed):
    assert understand(typed, models).spec is None and "could run a program" in understand(typed, models).fault


def test_nothing_is_brought_twice(models):
    assert understand("org/There", models).spec is None and "already" in understand("org/There", models).fault
