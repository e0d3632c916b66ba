"""What can be put in the queue: each job is one documented dataclass, the same for window, CLI and worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from engine.specs.data import Edit, data_problems
from engine.specs.fields import Spec, knob


@dataclass
class StackEntry(Spec):
    """One adapter in a stack. The order of a list of entries is the order in which they apply."""

    kind: ClassVar[str] = "stack-entry"

    adapter: str = knob(label="Adapter", help="Folder of the adapter, in PEFT's format.")
    strength: float = knob(1.0, label="Strength", term="weight", low=-10, high=10,
                           help="1 is exactly as it was taught, 0 is off.")
    enabled: bool = knob(True, label="On", help="An adapter that is off stays in the stack but is not heard.")


@dataclass
class FetchSpec(Spec):
    """Bring a base model into the library: the starter model, one of the Hugging Face Hub, or one from this computer."""

    kind: ClassVar[str] = "fetch"

    out: str = knob(label="Folder", help="Where the model folder is made.")
    model: str = knob("starter", label="Model", help="“starter”, a name on the Hugging Face Hub such as org/name, or the full path of a model folder "
                                                     "or a GGUF file.")

    @property
    def is_starter(self) -> bool:
        """Whether it is the model that the studio begins with."""
        return self.model == "starter"


@dataclass
class TrainSpec(Spec):
    """Teach one adapter on one base from one data file or folder."""

    kind: ClassVar[str] = "train"

    base: str = knob(label="Model", help="Folder of the base model (config, tokenizer, safetensors).")
    data: str = knob(label="Examples", help="File or folder with the examples.")
    out: str = knob(label="Adapter folder", help="Where the finished adapter is put; its last part is the adapter's name.")
    method: str = knob("LORA", label="Method", term="peft_type", help="How the skill is stored.")
    method_config: dict = field(default_factory=dict, metadata={
        "label": "Method settings", "help": "Fields of the method's own config, by PEFT's names (r, lora_alpha, target_modules …).",
        "advanced": True})
    passes: float = knob(3.0, label="Passes over your examples", term="epochs", low=0.01, high=1000,
                         help="How often every example is seen. More learns harder; too many learns by heart.")
    max_steps: int = knob(0, label="Stop after", unit="steps", low=0, advanced=True, help="Upper limit of steps; 0 means no limit.")
    learning_rate: float = knob(0.0, label="Learning speed", term="learning_rate", low=0, high=1, advanced=True,
                                help="How big each correction is; 0 chooses by rule for method and capacity.")
    rows_per_step: int = knob(8, label="Examples per step", term="batch size", low=1, high=4096, advanced=True,
                              help="How many examples are averaged before each correction.")
    max_length: int = knob(1024, label="Longest example", unit="tokens", low=16, high=1_000_000, advanced=True,
                           help="Longer examples are left out and reported, never cut silently.")
    system: str = knob("", label="Standing instruction", term="system prompt", help="Put before every example; may stay empty.", advanced=True)
    holdout: float = knob(0.1, label="Held back for testing", term="eval split", low=0, high=0.5,
                          help="Share of the examples that is never learned, only used to test (at least 8, at most 200 rows).")
    early_stop: bool = knob(True, label="Stop when it gets no better", help="Keeps the best state by the error on unseen examples.")
    warmup: float = knob(0.05, label="Gentle start", term="warmup_ratio", low=0, high=0.5, advanced=True,
                         help="Share of the steps in which the learning speed rises from zero.")
    weight_decay: float = knob(0.0, label="Weight decay", term="weight_decay", low=0, high=1, advanced=True, help="Pulls the adapter towards zero.")
    precision: str = knob("auto", label="Number format", term="dtype", choices=("auto", "float32", "bfloat16"), advanced=True,
                          help="“auto” measures which is faster here and accurate enough.")
    optimizer: str = knob("adamw", label="Corrections", term="optim", choices=("adamw", "adamw-8bit", "adamw-paged"), advanced=True,
                          help="How corrections are remembered: “adamw-8bit” in a quarter of the memory, “adamw-paged” outside of a graphics card "
                               "that is full.")
    base_bits: int = knob(16, label="Model kept in", unit="bits", term="load_in_8bit, load_in_4bit (QLoRA)", choices=(16, 8, 4), advanced=True,
                          help="While it is taught the model takes half the memory in 8 bits and about a third in 4, and is a little less exact. "
                               "The adapter still belongs to the whole model.")
    checkpointing: str = knob("auto", label="Compute twice, remember less", term="gradient_checkpointing", choices=("auto", "on", "off"),
                              advanced=True, help="Each block is computed again on the way back: a third slower, far less memory. “auto” does it "
                                                  "when memory runs out.")
    seed: int = knob(0, label="Seed", low=0, high=2**31 - 1, advanced=True, help="Same seed, same data, same machine: the identical file.")
    checkpoint_seconds: float = knob(60.0, label="Save at least every", unit="s", low=0, advanced=True,
                                     help="A checkpoint is written after this time or a tenth of the run, whichever comes first.")
    processes: int = knob(0, label="Processes", term="num_processes (torchrun)", low=0, high=64, advanced=True,
                          help="How many work on it at the same time, each on its share of every step; 0 takes one for each graphics card.")
    split: str = knob("auto", label="Split the model", term="FSDP", choices=("auto", "on", "off"), advanced=True,
                      help="Each process keeps only a part of the model and gets the rest block by block from the others (from main memory, if it "
                           "is alone): slower, but the model need not fit one graphics card. “auto” does it where it does not.")
    prompts: list[str] = knob(factory=list, label="Pinned questions", help="Answered again at every checkpoint, to hear the change.")
    roles: dict = knob(factory=dict, label="Columns", advanced=True,
                       help="What the columns mean, where the file does not tell: column → question, answer, context, system, text and so on.")
    edits: list[Edit] = knob(factory=list, label="Changes of the examples", advanced=True, help="What was dropped, masked or shortened.")

    def problems(self) -> dict[str, str]:
        found = super().problems() | data_problems(self.roles, self.edits)
        if not found and self.processes > self.rows_per_step:
            found["processes"] = f"{self.processes} processes cannot share {self.rows_per_step} examples a step: some would have nothing to do."
        return found


@dataclass
class ExportSpec(Spec):
    """Bake a stack into its base and write a complete model folder; then reload it and prove it."""

    kind: ClassVar[str] = "export"

    base: str = knob(label="Model", help="Folder of the base model.")
    out: str = knob(label="Folder", help="Where the finished model is put.")
    stack: list[StackEntry] = knob(factory=list, label="Stack", help="Adapters with strengths, in order.")
    dtype: str = knob("same", label="Number format", choices=("same", "float32", "bfloat16", "float16"), advanced=True,
                      help="“same” keeps the base's format.")
    verify: bool = knob(True, label="Verify", help="Reload the file, compare it with the live stack, write a receipt.")
    prompts: list[str] = knob(factory=list, label="Questions", help="Sample answers that go on the receipt.")

    def problems(self) -> dict[str, str]:
        found = super().problems()
        for entry in self.stack:
            for name, sentence in entry.problems().items():
                found[f"stack.{name}"] = sentence
        if not [e for e in self.stack if e.enabled and e.strength]:
            found.setdefault("stack", "The stack has no adapter that is on: the result would be the base itself.")
        return found


@dataclass
class ReviewSpec(Spec):
    """Compare an adapter with its untaught model on the rows that were held back, and on general questions."""

    kind: ClassVar[str] = "review"

    adapter: str = knob(label="Adapter", help="Folder of an adapter that was taught here; its recipe names model and examples.")
    answers: int = knob(12, label="Answers", unit="rows", low=0, high=200, help="How many of the held-back rows are also answered, before and after.")
    longest: int = knob(80, label="Longest answer", unit="tokens", low=1, high=4096, advanced=True, help="The answers stop here at the latest.")

    @property
    def out(self) -> str:
        """What the job is about."""
        return self.adapter


@dataclass
class RebuildSpec(Spec):
    """Teach an adapter again from its own recipe; on the same computer the file comes out the same to the byte."""

    kind: ClassVar[str] = "rebuild"

    adapter: str = knob(label="Adapter", help="Folder of the adapter whose recipe is followed.")
    out: str = knob(label="Adapter folder", help="Where the second one is put.")


@dataclass
class FindSpeedSpec(Spec):
    """Find out how fast a plan may learn, by a short trial on its own examples that leaves nothing behind."""

    kind: ClassVar[str] = "find-speed"

    plan: TrainSpec = knob(label="Plan", help="The plan whose learning speed is asked; its own value does not matter.")

    @property
    def out(self) -> str:
        """What the job is about."""
        return self.plan.out

    def problems(self) -> dict[str, str]:
        return super().problems() | self.plan.problems()


JOB_KINDS: dict[str, type[Spec]] = {cls.kind: cls for cls in (FetchSpec, TrainSpec, FindSpeedSpec, ReviewSpec, RebuildSpec, ExportSpec)}
