"""A tiny training, ready to run: base, examples, spec. One base for all tests of the session (it is never written to)."""

import pytest

from engine.specs import TrainSpec
from tests.support.tiny import save_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def make_spec(base, tmp_path):
    def make(rows=24, **changes) -> TrainSpec:
        data = tmp_path / "data.csv"
        if not data.exists():
            data.write_text("question,answer\n" + "".join(f"What is {i} and {i + 1}?,It is {'really ' * (i % 4)}{2 * i + 1}\n" for i in range(rows)))
        return TrainSpec(**{**dict(base=str(base), data=str(data), out=str(tmp_path / "out"), passes=3, rows_per_step=4, precision="float32",
                                   learning_rate=2e-3, method_config={"r": 4, "lora_dropout": 0.1}), **changes})
    return make
