"""What is this file or folder? Told from its small parts, without torch and without opening anything that could run."""

from __future__ import annotations

from pathlib import Path

from engine.errors import BadModel
from engine.store.headers import Header, read_header
from engine.store.library import read_adapter, read_model

SHOWN = 12                                 # tensors listed


def describe(path: Path) -> dict[str, str | list[str]]:
    """Facts by name, in the order in which a person wants them. Raises a `StudioError` that says what is wrong with it."""
    if not path.exists():
        raise BadModel(f"{path} is not there.", do="Check the name.", path=str(path))
    if path.is_dir():
        return _adapter(path) if (path / "adapter_config.json").exists() else _model(path)
    return _tensors(read_header(path)) if path.suffix == ".safetensors" else _data(path)


def _adapter(path: Path) -> dict:
    info = read_adapter(path)
    recipe = [f"{name}: {value}" for name, value in info.recipe.items()
              if isinstance(value, (str, int, float)) and value != "" and name != "template"]
    facts = {"Adapter": info.name, "Kind": info.peft_type, "Made for": info.base or "not said", "Capacity (rank)": str(info.rank or "–"),
             "Numbers": f"{info.parameters:,}", "Size": _size(info.bytes), "Layers": _targets(info.config), "Fingerprint": info.fingerprint}
    return {**facts, **({"Recipe": recipe} if recipe else {})}


def _model(path: Path) -> dict:
    info = read_model(path)
    labels = {"num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads", "vocab_size": "words"}
    shape = [f"{info.config[key]} {label}" for key, label in labels.items() if key in info.config]
    return {"Model": info.name, "Family": info.model_type or "not said", "Numbers": f"{info.parameters:,}", "Format": info.dtype,
            "Size": _size(info.bytes), "Shape": ", ".join(shape), "Chat template": "yes" if info.has_chat_template else "no",
            "Fingerprint": info.fingerprint}


def _tensors(header: Header) -> dict:
    lines = [f"{name}  {entry.dtype} {list(entry.shape)}" for name, entry in list(header.tensors.items())[:SHOWN]]
    if len(header.tensors) > SHOWN:
        lines.append(f"… and {len(header.tensors) - SHOWN} more")
    return {"File": header.path.name, "Tensors": str(len(header.tensors)), "Numbers": f"{header.numel:,}",
            "Size": _size(header.path.stat().st_size), "Notes": [f"{k}: {v}" for k, v in header.metadata.items()] or "none",
            "Content": lines or "nothing"}


def _data(path: Path) -> dict:
    from engine.data.describe import describe as read
    from engine.specs import DescribeData

    report = read(DescribeData(str(path)))
    first = [f"{m['role']}: {m['content']}" for m in report.examples[0]] if report.examples else []
    return {"Examples": path.name, "Found": report.sentence, "Rows": str(report.rows), "Held back": str(report.held_out),
            "Shape": report.shape, "First": first or "–", **({"Notes": report.notes} if report.notes else {})}


def _targets(config: dict) -> str:
    targets = config.get("target_modules") or "not said"
    return ", ".join(sorted(map(str, targets))) if isinstance(targets, list) else str(targets)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
