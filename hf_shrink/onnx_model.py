"""An ONNX graph in the place of a transformers model: in ``pipeline``, in ``generate``, at the clock.

Together with the quantiser the only file that imports onnxruntime, and only when a graph is opened.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoConfig, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils.hub import cached_file

from hf_shrink.errors import IntegrityError, MismatchError, RecipeError, ResourceError
from hf_shrink.lines import first_line
from hf_shrink.onnx_loss import loss_of

FOLDER, INT8, FLOAT = "onnx", "model_quantized.onnx", "model.onnx"
"""Where ONNX Runtime's users and transformers.js look, and what they call the graphs."""

_PAST, _PRESENT = "past_key_values.", "present."


class OnnxModel(nn.Module, GenerationMixin):
    """A graph that answers like the model it was exported from; on the CPU, on as many threads as torch is set to.

    It fits ``transformers.pipeline(task, model=OnnxModel.from_pretrained(folder), tokenizer=tokenizer)`` for classification,
    token classification, feature extraction, hidden words and, with ``generate`` and its cache, text generation. Graphs for
    questions give ``start_logits`` and ``end_logits``: transformers 5 has no pipeline for them.

    Args:
        path: the graph.
        config: of the model that it was made from.
        generation_config: defaults of ``generate``; None takes what the config says.

    Raises:
        ResourceError: onnxruntime is missing.
        IntegrityError: the file is not a graph that ONNX Runtime can run.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False
    _supports_cache_class = True

    def __init__(self, path: Path, config: PreTrainedConfig, generation_config: GenerationConfig | None = None) -> None:
        super().__init__()
        self.config, self.path = config, path
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._threads = torch.get_num_threads()
        self._session = _open(path, self._threads)
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._layers = sum(name.startswith(_PAST) and name.endswith(".key") for name in self._inputs)
        if self.can_generate():
            self.generation_config = generation_config or GenerationConfig.from_model_config(config)

    @classmethod
    def from_pretrained(cls, reference: str | Path, *, file: str = INT8, revision: str | None = None) -> Self:
        """Open ``onnx/model_quantized.onnx`` of a folder or Hub repository, or another graph beside it.

        Args:
            reference: a folder, its ``onnx`` folder, or a Hub id.
            file: name of the graph in the ``onnx`` folder: ``model.onnx`` is the one in float32.
            revision: commit, tag or branch of a Hub id.

        Raises:
            MismatchError: there is no such graph, or no config beside it.
            IntegrityError, ResourceError: as above.
        """
        if Path(file).name != file:
            raise RecipeError(f"OnnxModel: file is the name of a graph in the folder {FOLDER!r}, such as {INT8}; got {file!r}.")
        root = Path(reference)
        if root.is_dir() and root.resolve().name == FOLDER and (root / file).is_file():
            root = root.resolve().parent
        where = root.name if root.is_dir() else str(reference)
        source = str(root) if root.is_dir() else str(reference)
        try:
            path = cached_file(source, f"{FOLDER}/{file}", revision=revision)
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise MismatchError(
                f"{where}: no {FOLDER}/{file} with a config.json above it ({first_line(error)}).\n"
                "Export one: hf-shrink export MODEL FOLDER --onnx"
            ) from error
        assert path is not None
        try:
            generation = GenerationConfig.from_pretrained(source, revision=revision or "main")
        except OSError:
            generation = None
        names = config.architectures or [cls.__name__]
        named: type[Self] = _called(str(names[0]), cls)
        return named(Path(path), config, generation)

    @property
    def precision(self) -> str:
        """How the weights are stored, for the setting of a measurement."""
        return "float32" if self.path.name == FLOAT else "int8"

    def can_generate(self) -> bool:
        """Whether the graph has a cache to go on from."""
        return bool(self._layers)

    def is_remote_code(self) -> bool:
        """Never: a graph holds no code of its own. ``generate`` asks."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """None: a graph has one way to compute. ``generate`` asks."""
        return {}

    def to(self, *places: Any, **more: Any) -> Self:
        """Stays on the CPU in the precision it is stored in; anything else is a ``RecipeError``."""
        for place in (*places, *more.values()):
            if isinstance(place, str | int | torch.device) and torch.device(place).type != "cpu":
                raise RecipeError(f"OnnxModel: runs on the CPU; got device {place!r}.")
            if isinstance(place, torch.dtype):
                raise RecipeError(f"OnnxModel: the precision is that of the file; got {place}.")
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool = True,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> Any:
        """Run the graph.

        Args:
            input_ids: ``[batch, tokens]``, int64.
            attention_mask: 1 for words and 0 for padding, those of the cache first; None for no padding.
            token_type_ids: which of two texts a token belongs to; None for the first. Only for graphs that take them.
            position_ids: places of the tokens; None counts the words in the mask. Only read by graphs that take them.
            past_key_values: the cache of an earlier call, a ``DynamicCache``; it grows in place.
            use_cache: False leaves the cache out of the result.
            return_dict: False gives a tuple.
            labels, start_positions, end_positions: as the model takes them; then the output has its ``loss``.

        Returns:
            The output that transformers has for the task, in float32.

        Raises:
            MismatchError: an input that the graph does not take, or of a shape that it does not take; labels without a head.
        """
        self._check(input_ids, past_key_values)
        seen = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        mask = (
            attention_mask if attention_mask is not None else input_ids.new_ones(input_ids.shape[0], seen + input_ids.shape[1])
        )
        given: dict[str, Tensor | None] = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        if "token_type_ids" in self._inputs and token_type_ids is None:
            given["token_type_ids"] = torch.zeros_like(input_ids)
        elif token_type_ids is not None and "token_type_ids" not in self._inputs:
            raise MismatchError(f"{self.path.name}: the graph takes no token_type_ids. It takes: {', '.join(self._inputs)}.")
        if "position_ids" in self._inputs and position_ids is None:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        feed = {name: _array(given[name]) for name in self._inputs if name in given}
        feed |= self._past(past_key_values, len(input_ids))
        found = dict(zip(self._outputs, self._run(feed), strict=True))
        cache = self._present(found, past_key_values) if self._layers and use_cache is not False else None
        outputs = {name: torch.from_numpy(array) for name, array in found.items() if _PRESENT not in name}
        if not (labels is start_positions is end_positions is None):
            outputs["loss"] = loss_of(
                outputs, labels, start_positions, end_positions, self.config, causal=bool(self._layers), where=self.path.name
            )
        output = self._output(outputs, cache)
        return output if return_dict else output.to_tuple()

    def _check(self, input_ids: Tensor, cache: Any) -> None:
        """What a graph would answer, or fail on in words of its own."""
        if cache is not None and not isinstance(cache, DynamicCache):
            raise MismatchError(
                f"{self.path.name}: the graph makes its cache longer at each call; got {type(cache).__name__}.\n"
                "Leave cache_implementation out, or pass a DynamicCache."
            )
        if input_ids.numel() and (least := int(input_ids.min())) < 0:  # it would count from the vocabulary's end
            row = int((input_ids == least).nonzero()[0, 0])
            raise MismatchError(f"{self.path.name}: input_ids: {least} in row {row}; ids of tokens are 0 or more.")

    def __reduce__(self) -> Any:
        """Copies and pickles open the file again: it has to be where it was."""
        return _reopened, (type(self).__name__, self.path, self.config, getattr(self, "generation_config", None))

    def _run(self, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        if self._threads != torch.get_num_threads():
            self._threads = torch.get_num_threads()
            self._session = _open(self.path, self._threads)
        try:
            found: list[npt.NDArray[Any]] = self._session.run(None, dict(feed))
        except Exception as error:  # onnxruntime's own kinds share no base but this one
            raise MismatchError(f"{self.path.name}: the graph does not take these inputs: {first_line(error)}") from error
        return found

    def _past(self, cache: DynamicCache | None, batch: int) -> dict[str, npt.NDArray[np.float32]]:
        feed = {}
        for i in range(self._layers):
            layer = cache.layers[i] if cache is not None and i < len(cache.layers) else None
            for part in ("key", "value"):
                name = f"{_PAST}{i}.{part}"
                held = getattr(layer, f"{part}s", None)
                _, heads, _, width = self._inputs[name].shape
                empty = held is None or held.numel() == 0
                feed[name] = np.zeros((batch, heads, 0, width), np.float32) if empty else _array(held)
        return feed

    def _present(self, found: Mapping[str, npt.NDArray[Any]], cache: DynamicCache | None) -> DynamicCache:
        """What the graph put out is the whole cache: it takes the place of the old one."""
        cache = DynamicCache() if cache is None else cache
        for i in range(self._layers):
            key, value = (torch.from_numpy(found[f"{_PRESENT}{i}.{part}"]) for part in ("key", "value"))
            layer: Any = cache.layers[i] if i < len(cache.layers) else None
            if layer is not None and layer.is_initialized:
                layer.keys, layer.values = key, value
            else:
                cache.update(key, value, i)
        return cache

    def _output(self, found: dict[str, Tensor], cache: DynamicCache | None) -> Any:
        if self._layers:
            return CausalLMOutputWithPast(**found, past_key_values=cache)  # type: ignore[arg-type]
        if "start_logits" in found:
            return QuestionAnsweringModelOutput(**found)  # type: ignore[arg-type]
        return (BaseModelOutput if "last_hidden_state" in found else SequenceClassifierOutput)(**found)  # type: ignore[arg-type]


def _called(name: str, kind: type[Any]) -> Any:
    """``kind`` by the name of the model: ``pipeline`` complains of classes whose names it does not know."""
    return type(name, (kind,), {})


def _reopened(name: str, path: Path, config: PreTrainedConfig, generation: GenerationConfig | None) -> OnnxModel:
    """A copy; graphs do not train, so that it is in eval mode."""
    model: OnnxModel = _called(name, OnnxModel)(path, copy.deepcopy(config), copy.deepcopy(generation))
    return model.eval()


def _array(tensor: Tensor | None) -> npt.NDArray[Any]:
    assert tensor is not None
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def runtime() -> Any:
    """The module ``onnxruntime``; a ``ResourceError`` where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError(f"onnx: {first_line(error)}. Try: pip install 'hf-shrink[onnx]'") from error
    return onnxruntime


def _open(path: Path, threads: int) -> Any:
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Idle threads of ONNX Runtime would go on spinning, and whatever runs next to the graph would be slowed down and timed so.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds share no base but this one
        raise IntegrityError(
            f"{path.name}: not a graph that ONNX Runtime can run: {first_line(error)}\nExport or download it again."
        ) from error
