"""PeftModel: a base model with adapters, by PEFT's API, on one live stack."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.checkpoint.card import write_card
from engine.checkpoint.hub import upload
from engine.checkpoint.load import locate, read_tensors, rename, unknown_settings
from engine.checkpoint.report import LoadReport
from engine.checkpoint.save import Saving, save_adapters
from engine.hosts.adapted import Adapted, Tenant
from engine.hosts.replaced import Replaced
from engine.hosts.stack import LiveStack
from engine.law import PeftConfig, Routed, TargetedConfig, Tensors
from engine.methods.prompt import PromptLearningConfig
from engine.methods.registry import law
from engine.model.adaption_prompt import AdaptionPrompts
from engine.model.kbit import tell_what_is_widened
from engine.model.lone import LoneTuner
from engine.model.prompt_learning import PromptParts, Prompts
from engine.model.status import TunerLayerStatus, TunerModelStatus, get_layer_status, get_model_status
from engine.model.tuner import Tuner
from engine.model.xlora import XLoraTuner
from engine.store.hub import HUB_ARGUMENTS, hub_arguments

_TUNERS = {"ADAPTION_PROMPT": AdaptionPrompts, "XLORA": XLoraTuner}       # … `Shadows`; for all other methods: `Tuner`


def _tuner_of(peft_type: str) -> type[Tuner | LoneTuner]:
    if peft_type == "SHADOW":              # brings half of transformers along, so that only those wait for it who use it
        from engine.model.shadow import Shadows

        return Shadows
    return _TUNERS.get(peft_type, Tuner)


class PeftModel(PromptParts, nn.Module):
    """A base model with named adapters (PEFT class of the same name).

    Args:
        model: the base; its layers are wrapped in place and its parameters frozen.
        peft_config: settings of the first adapter.
        adapter_name: its name; the first adapter is active and trainable (unless ``inference_mode`` is set).
        autocast_adapter_dtype: new adapters are float32 whatever the base is; otherwise they take the base weight's dtype.
        low_cpu_mem_usage: new adapters' tensors hold no values (``meta``) until `set_peft_model_state_dict` gives them some.
        file: the first adapter's tensors, by their keys in the file, instead of starting anew (see `from_pretrained`, which gives this and
            the arguments after it).

    Attributes:
        base_model: the wrapped model (`Tuner`); ``base_model.model`` is the user's. With a prompt instead of adapters in layers,
            ``base_model`` itself is the user's model and ``prompt_encoder`` holds what is trained.
        load_report: what became of the first file.

    Raises:
        ValueError: a prompt without a ``task_type``; and what `add_adapter` raises.
    """

    heads: ClassVar[tuple[str, ...]] = ()                     # output layers that every adapter learns whole, where the model has them

    def __init__(self, model: nn.Module, peft_config: TargetedConfig, adapter_name: str = "default", autocast_adapter_dtype: bool = True,
                 low_cpu_mem_usage: bool = False, *, file: dict[str, Tensor] | None = None, unknown_settings: list[str] | None = None,
                 torch_device: str | None = None, ignore_mismatched_sizes: bool = False):
        super().__init__()
        self.prompts = Prompts(model) if isinstance(peft_config, PromptLearningConfig) else None
        self.base_model = model if self.prompts else _tuner_of(peft_config.peft_type)(model)
        if self.prompts:
            if type(self).with_prompt is PromptParts.with_prompt:
                raise ValueError("A prompt needs to know its task: set `task_type` (CAUSAL_LM, SEQ_CLS …) and use `get_peft_model`.")
            self.prompt_encoder = self.prompts.encoders
        self.load_report = self.tuner.admit(
            adapter_name, peft_config, trainable=not peft_config.inference_mode, autocast=autocast_adapter_dtype, file=file,
            unknown_settings=unknown_settings or (), device=_meta(low_cpu_mem_usage) or _device(torch_device), heads=self.heads,
            ignore_mismatched_sizes=ignore_mismatched_sizes)
        self.stack.arrange([adapter_name])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":       # not built yet: do not recurse
                raise
            return getattr(self.base_model, name)

    # --- looking ---

    @property
    def tuner(self) -> Tuner | LoneTuner:
        """What does everything that can be done with adapters: in layers, or outside of them."""
        return self.prompts or self.base_model

    @property
    def lone(self) -> LoneTuner | None:
        """The tuner, if its adapters sit in no layer."""
        return self.tuner if isinstance(self.tuner, LoneTuner) else None

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name → config."""
        return self.tuner.peft_config

    @property
    def stack(self) -> LiveStack:
        """The live stack of active adapters: order and strengths."""
        return self.tuner.stack

    @property
    def adapted(self) -> dict[str, Adapted]:
        """Module path → wrapped layer."""
        return self.tuner.layers

    def tenants(self, name: str) -> dict[str, Tenant]:
        """Module path → what the adapter ``name`` is there."""
        return self.base_model.tenants(name)

    def shared_tensors(self, name: str) -> Tensors:
        """The tensors of the adapter ``name`` that all its layers share; the live parameters."""
        return self.base_model.tensors(name)

    @property
    def active_adapters(self) -> list[str]:
        """Names in the stack, in order."""
        return self.stack.names

    @property
    def active_adapter(self) -> str | list[str]:
        """The name in the stack, or all of them where there are several."""
        return self.stack.names[0] if len(self.stack.names) == 1 else self.stack.names

    @property
    def active_peft_config(self) -> PeftConfig:
        """Config of the first adapter in the stack."""
        return self.peft_config[self.stack.names[0]]

    @property
    def merged_adapters(self) -> list[str]:
        return list(self.stack.merged)

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of the modules that any adapter learns whole; None if there are none."""
        return {name for config in self.peft_config.values() for name in getattr(config, "modules_to_save", None) or ()} or None

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether any adapter is heard that is not in the weights already, or would be if it were not merged."""
        return self.stack.enabled and bool(self.stack.names)

    @property
    def base_model_torch_dtype(self) -> torch.dtype | None:
        return getattr(self.get_base_model(), "dtype", None)

    def get_base_model(self) -> nn.Module:
        """The user's model, with its layers wrapped."""
        return self.tuner.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameter counts; a weight packed in fewer bits counts as many as it stands for."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """One line: trainable parameters, all parameters, and their ratio in percent."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """What each layer holds; see `engine.model.status.get_layer_status`."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """All layers together; see `engine.model.status.get_model_status`."""
        return get_model_status(self)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter has a low-rank form in every layer, so that it can become an ordinary LoRA without loss."""
        return self.lone is None and all(
            tenant.method.factors(self.adapted[path].all_tensors(adapter_name), tenant.config, tenant.site) is not None
            for path, tenant in self.tenants(*self.tuner.known(adapter_name)).items())

    # --- running ---

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """The base's forward through the stack, or each sample of the batch through its own adapter.

        Args:
            adapter_names: one name a sample, ``"__base__"`` for none; only outside of training.

        Raises:
            ValueError: ``adapter_names`` in training, while merged, with unknown names, or not as many as samples.
        """
        if adapter_names is None:
            return self.with_prompt(*args, **kwargs) if self.prompts and self.prompts.heard else self.base_model(*args, **self.plain(kwargs))
        with self.tuner.sampled(adapter_names):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """The base's ``generate``; ``adapter_names`` as in `forward` (one for all beams and answers of a sample)."""
        if self.prompts and self.prompts.heard and adapter_names is None:
            return self.generate_with_prompt(*args, **kwargs)
        if adapter_names is None:
            return self.tuner.generate(*args, **self.plain(kwargs))
        from engine.model.tasks import copies_made

        with self.tuner.sampled(adapter_names, copies_made(self.get_base_model(), kwargs)):
            return self.tuner.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.get_base_model().prepare_inputs_for_generation(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of `torch.nn.Module`; what was computed from the old tensors is forgotten."""
        done = super().load_state_dict(*args, **kwargs)
        self.stack.changed()
        return done

    # --- what training asks for; see `engine.model.training` ---

    def extra_loss(self) -> Tensor | None:
        """What the adapters that train add to the loss, once a step: a scalar of their own tensors, or None."""
        return self.tuner.extra_loss()

    def extra_error(self, where: Tensor, targets: Tensor) -> Tensor | None:
        """What an adapter adds to the error of the last pass: a scalar, summed over tokens, in nats.

        Args:
            targets: ids ``(n,)``. where: the places ``(n,)`` in the flattened batch from which they are predicted.
        """
        return self.tuner.extra_error(where, targets)

    def on_step(self, step: int) -> None:
        """To be called in every step (from 1), after the optimizer's and before the gradients are cleared."""
        self.tuner.on_step(step)

    @property
    def needs_whole_passes(self) -> bool:
        """Whether adapters must see each call of the model from its beginning: what depends on more than a layer's input vector by vector."""
        return self.lone is not None or any(isinstance(law(config), Routed) for config in self.peft_config.values())

    # --- adapters ---

    def add_adapter(self, adapter_name: str, peft_config: TargetedConfig, low_cpu_mem_usage: bool = False,
                    autocast_adapter_dtype: bool = True) -> None:
        """Add an untrained adapter, of any method; it is neither active nor trained until `set_adapter`. Atomic.

        Raises:
            ValueError: the name is taken or impossible. UnsupportedLayer: a target cannot carry this method.
        """
        self.tuner.admit(adapter_name, peft_config, trainable=False, autocast=autocast_adapter_dtype, device=_meta(low_cpu_mem_usage),
                         heads=self.heads)

    def load_adapter(self, model_id: Path | str, adapter_name: str, is_trainable: bool = False, torch_device: str | None = None,
                     autocast_adapter_dtype: bool = True, ephemeral_gpu_offload: bool = False, low_cpu_mem_usage: bool = False,
                     key_mapping: Mapping[str, str] | None = None, ignore_mismatched_sizes: bool = False, **hub: Any) -> LoadReport:
        """Read an adapter from a folder or the Hub and add it, not yet active. Atomic; see `LoadReport`.

        Args:
            is_trainable: its tensors become float32 parameters that may train. autocast_adapter_dtype: as far as they train; frozen
                ones keep the file's dtype. torch_device: where its tensors go, if not to their layers.
            low_cpu_mem_usage: loading never makes values that the file then replaces, so that there is nothing to save.
            key_mapping: regular expression → replacement, for keys of the file.
            ignore_mismatched_sizes: tensors of other sizes than the model's start anew and are told, instead of an error.
            hub: ``subfolder``, ``revision``, ``cache_dir``, ``token`` …. Where layers lie (``device_map``, ``offload_folder`` …) is known
                from the model itself.

        Raises:
            BadAdapter: damaged, hostile or unknown. WrongBase: it does not fit this model. ValueError: the name is taken.
        """
        config, file, unknown = _read(model_id, is_trainable, key_mapping, hub)
        return self.tuner.admit(adapter_name, config, trainable=is_trainable, autocast=autocast_adapter_dtype, file=file, unknown_settings=unknown,
                                device=_device(torch_device), heads=self.heads, ignore_mismatched_sizes=ignore_mismatched_sizes)

    @classmethod
    def from_pretrained(cls, model: nn.Module, model_id: Path | str, adapter_name: str = "default", is_trainable: bool = False,
                        config: PeftConfig | None = None, autocast_adapter_dtype: bool = True, ephemeral_gpu_offload: bool = False,
                        low_cpu_mem_usage: bool = False, key_mapping: Mapping[str, str] | None = None, **loading: Any) -> "PeftModel":
        """A base with one saved adapter, active. ``model`` is changed only if the adapter fits. Arguments and errors as of `load_adapter`.

        Args:
            config: instead of the one in the folder; raises `ValueError` if it is no `PeftConfig`.
            adapters: (X-LoRA) where its experts are now, name → folder, in their order.
        """
        from engine.model.tasks import task_class

        if config is not None and not isinstance(config, PeftConfig):
            raise ValueError(f"The input config must be a PeftConfig, got {type(config)}")
        key_mapping = key_mapping or getattr(model, "_checkpoint_conversion_mapping", None)
        device, ignore = loading.pop("torch_device", None), loading.pop("ignore_mismatched_sizes", False)
        experts = loading.pop("adapters", None)
        config, file, unknown = _read(model_id, is_trainable, key_mapping, loading, config)
        if experts is not None:
            config.adapters = experts
        chosen = cls if cls is not PeftModel else task_class(config.task_type)
        self = chosen(model, config, adapter_name, autocast_adapter_dtype, file=file, unknown_settings=unknown, torch_device=device,
                      ignore_mismatched_sizes=ignore)
        return self if is_trainable else self.eval()

    def set_adapter(self, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False) -> None:
        """Choose the stack: one name, several in order, or names with strengths; see `Tuner.set_adapter`."""
        self.tuner.set_adapter(adapter_name, inference_mode)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Say whether these adapters train (``requires_grad``); nothing else changes."""
        self.tuner.set_requires_grad(adapter_names, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. The rest of the stack stays as it is; without any adapter the model is the base."""
        self.tuner.delete_adapter(adapter_name)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """The plain base inside the block; afterwards everything, also what was merged and what trains, is as before."""
        return self.tuner.disabled()

    # --- merging ---

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False, requantize: float | None = None) -> None:
        """Bake the active adapters (or those named) into the weights for speed; see `Tuner.merge_adapter`."""
        self.tuner.merge_adapter(adapter_names, safe_merge, **({} if requantize is None else {"requantize": requantize}))

    def unmerge_adapter(self) -> None:
        """Put the untouched base weights back, bit for bit."""
        self.tuner.unmerge_adapter()

    def merge_and_unload(self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None,
                         requantize: float | None = None) -> nn.Module:
        """The plain model with the active adapters (or those named) baked in. This `PeftModel` is empty afterwards.

        Quantized layers that something is baked into are in 16 bits then, and the model's description says so, unless ``requantize``
        allows an error (see `Tuner.merge_adapter`). To get a whole model in 16 bits, merge into the original files (`engine.merge`).
        """
        into_codes = {} if requantize is None else {"requantize": requantize}
        model = self.tuner.leave(self.tuner.to_merge(adapter_names, safe_merge, **into_codes), **dict.fromkeys(into_codes, True))
        _tell_if_untied(model)
        tell_what_is_widened(model)
        return model

    def unload(self) -> nn.Module:
        """The plain base, as it was before the first adapter. This `PeftModel` is empty afterwards."""
        return self.tuner.leave()

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "svd",
                             svd_rank: int | None = None, svd_clamp: float | None = None, svd_full_matrices: bool = True,
                             svd_driver: str | None = None, density: float | None = None, majority_sign_method: str = "total") -> None:
        """A new LoRA adapter made of several low-rank ones (PEFT method of the same name); not active yet. See `engine.mix.combine`.

        Every adapter counts with its own scaling, rsLoRA's too, and with its learned bias. ``svd_full_matrices`` and ``svd_driver`` choose
        among ways to the same result in PEFT, and need no choice here. Raises `ValueError` for adapters of other kinds, unequal numbers of
        names and weights, or ranks that differ where they must not; nothing is added then.
        """
        from engine.mix.weighted import weighted_adapter

        config, tensors = weighted_adapter(self.get_base_model(), self.adapted, adapters, weights, combination_type, svd_rank, svd_clamp,
                                           density, majority_sign_method)
        self.tuner.admit(adapter_name, config, trainable=False, given=tensors)

    # --- files ---

    def save_pretrained(self, save_directory: Path | str, safe_serialization: bool = True, selected_adapters: list[str] | None = None,
                        save_embedding_layers: bool | str = "auto", is_main_process: bool = True,
                        path_initial_model_for_weight_conversion: Path | str | None = None, state_dict: Mapping[str, Tensor] | None = None,
                        **hub: Any) -> None:
        """Write adapters in PEFT's format, with a model card: “default” into the folder itself, any other into a sub-folder of its name.

        Args:
            selected_adapters: by default, all. is_main_process: of several processes only this one writes.
            save_embedding_layers: the base's embeddings go into the file too, and are put back when it is loaded; “auto”: if the vocabulary
                is another one than in the files of ``base_model_name_or_path``, as far as they are on this computer.
            path_initial_model_for_weight_conversion: the adapter as it began. What is written is the difference, an ordinary LoRA of twice
                the rank for the unchanged base; asked for where the start was in the base (PiSSA, OLoRA, CorDA, LoRA-GA).
            state_dict: the whole model's, whose values are written instead of the model's own.
            hub: ``push_to_hub=True`` sends the folder to the Hub afterwards, with `push_to_hub`'s arguments.

        Raises:
            ValueError: an adapter is unknown, the folder is a file, or a pickle is asked for (``safe_serialization=False``): it is never
                written. Nothing is written then.
        """
        saving = Saving(safe_serialization, save_embedding_layers, path_initial_model_for_weight_conversion, state_dict)
        names = self.tuner.known(selected_adapters if selected_adapters is not None else list(self.peft_config))
        push, hub = hub.pop("push_to_hub", False), dict(hub)
        if is_main_process:
            save_adapters(self, {name: Path(save_directory) if name == "default" else Path(save_directory) / name for name in names},
                          Path(save_directory), saving)
        if push and is_main_process:
            upload(Path(save_directory), hub.pop("repo_id", Path(save_directory).name), **hub)

    def create_or_update_model_card(self, output_dir: Path | str) -> None:
        """Write ``README.md``, or bring it up to date; see `engine.checkpoint.card.write_card`."""
        write_card(self, output_dir)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload adapter", private: bool | None = None, token: str | None = None,
                    revision: str | None = None, create_pr: bool = False, **saving: Any) -> str:
        """Save into a temporary folder and send it to the Hub; returns the commit's address.

        Args:
            repo_id: ``person/name``; made if it is not there. private: whether only its owner sees it. token: instead of the one of the
                person who is logged in. commit_message, revision: of the commit, and the branch it goes to; create_pr: as a proposal.
            saving: arguments of `save_pretrained`.

        Raises:
            Unreachable: the Hub cannot be reached, or refuses.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return upload(Path(folder), repo_id, commit_message=commit_message, private=private, token=token, revision=revision,
                          create_pr=create_pr)


def get_peft_model(model: nn.Module, peft_config: TargetedConfig, adapter_name: str = "default", mixed: bool = False,
                   autocast_adapter_dtype: bool = True, revision: str | None = None, low_cpu_mem_usage: bool = False) -> PeftModel:
    """Wrap ``model`` with one new adapter, by the config's ``task_type`` (PEFT function of the same name).

    Args:
        mixed: a `PeftMixedModel`, whose stack can be saved as one mix. revision: of the base, noted in the config.

    Warns where the model has adapters already: those that another `PeftModel` of the same base has left in it go.
    """
    from engine.model.mixed import PeftMixedModel
    from engine.model.tasks import task_class

    if any(isinstance(module, (Adapted, Replaced)) for module in model.modules()):
        warnings.warn("You are trying to modify a model that has adapters already. To start anew, call `unload()` on the first PeftModel; "
                      "to have several adapters, use its `add_adapter`.", stacklevel=2)
    peft_config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    if revision is not None:
        peft_config.revision = revision
    chosen = PeftMixedModel if mixed else task_class(peft_config.task_type)
    return chosen(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameter counts; a weight packed in fewer bits counts as many as it stands for."""
    sizes = [(_count(p), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


_PLACES = ("device_map", "max_memory", "offload_folder", "offload_dir", "offload_index", "use_safetensors")     # nothing to do for them here


def _read(model_id: Path | str, trainable: bool, key_mapping: Mapping[str, str] | None, loading: Mapping[str, Any],
          config: PeftConfig | None = None) -> tuple[PeftConfig, dict[str, Tensor], list[str]]:
    """(config, tensors by their keys in the file, unknown settings) of an adapter on disk or on the Hub."""
    if strange := sorted(loading.keys() - {"subfolder", *HUB_ARGUMENTS, *_PLACES}):
        warnings.warn(f"Loading an adapter has no use for {', '.join(strange)}: a given setting changes nothing of a saved adapter.", stacklevel=3)
    folder = locate(model_id, loading.get("subfolder"), **hub_arguments(loading))
    config = PeftConfig.from_pretrained(folder) if config is None else config
    config.inference_mode = not trainable
    return config, rename(read_tensors(folder), key_mapping), unknown_settings(folder)


def _device(name: str | torch.device | None) -> torch.device | None:
    return None if name is None else torch.device(name)


def _meta(wanted: bool) -> torch.device | None:
    return torch.device("meta") if wanted else None


def _count(parameter: nn.Parameter) -> int:
    packed = parameter.__class__.__name__ == "Params4bit"     # two numbers a byte
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def _tell_if_untied(model: nn.Module) -> None:
    """After a merge into one of two tied layers they are no longer the same; the config must say so, or a reload would tie them again."""
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False) or not hasattr(model, "get_output_embeddings"):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        config.tie_word_embeddings = False
