"""What a load did: nothing is ever left unsaid."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """Keys of the adapter's file by what became of them. PEFT has no report: it answers with torch's two lists, which are here too."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)           # the adapter needs them, the file lacks them: initialised anew
    unexpected: list[str] = field(default_factory=list)        # in the file, but no layer wants them: not used
    renamed: dict[str, str] = field(default_factory=dict)      # as in the file → as it should be
    unknown_settings: list[str] = field(default_factory=list)  # of a newer PEFT; ignored
    mismatched: list[str] = field(default_factory=list)        # of other sizes than the model's: not used (only where that was asked for)

    def __add__(self, other: "LoadReport") -> "LoadReport":
        """Of two loads, from two parts of a file."""
        return LoadReport(self.loaded + other.loaded, self.missing + other.missing, self.unexpected + other.unexpected,
                          self.renamed | other.renamed, [*dict.fromkeys(self.unknown_settings + other.unknown_settings)],
                          self.mismatched + other.mismatched)

    @property
    def complete(self) -> bool:
        return bool(self.loaded) and not self.missing and not self.unexpected and not self.mismatched

    # the names torch's load_state_dict uses, for code written for PEFT
    @property
    def missing_keys(self) -> list[str]:
        return self.missing

    @property
    def unexpected_keys(self) -> list[str]:
        return self.unexpected

    def sentence(self) -> str:
        """The report in words."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for keys, words in ((self.missing, "missing (started anew)"), (self.unexpected, "not used by this model"), (self.renamed, "renamed"),
                            (self.mismatched, "of other sizes (not used)"), (self.unknown_settings, "unknown settings (not used)")):
            if keys:
                shown = ", ".join(list(keys)[:3]) + (" …" if len(keys) > 3 else "")
                parts.append(f"{len(keys)} {words}: {shown}")
        return "; ".join(parts) + "."
