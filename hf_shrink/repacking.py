"""The path of bitsandbytes' 4-bit layers on CPUs with AVX512-BF16, and how weights are kept off it.

At the first forward pass in eval mode it repacks the weights in place, with scales rounded to bfloat16. They then compute, but
what is saved, read or trained after that is wrong, without an error. Asked for its ``state_dict`` the layer packs them back as
well as it can: the scales stay rounded, without double quantisation they stay transposed, too.
"""

from torch import nn

from hf_shrink.errors import IntegrityError


def disable_cpu_repacking(model: nn.Module) -> None:
    """Keep 4-bit layers off that path. Harmless on other machines and for other layers."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010 - nn.Module types attributes as tensors


def repacked(model: nn.Module) -> list[str]:
    """Names of 4-bit layers whose weights lie, or once lay, as that path wants them."""
    states = {name: getattr(parameter, "quant_state", None) for name, parameter in model.named_parameters()}
    packed = [name for name, state in states.items() if hasattr(state, "packing_format_for_cpu")]  # False: packed back
    return [name.removesuffix("weight").removesuffix(".") for name in packed]


def refuse_repacked(model: nn.Module, where: str) -> None:
    """Before weights are saved, read, trained or learnt from.

    Raises:
        IntegrityError: some of them have been repacked.
    """
    if layers := repacked(model):
        which = f"layers: {len(layers)}, first {layers[0]}" if layers[0] else "one layer"
        raise IntegrityError(
            f"{where}: an evaluation has repacked 4-bit weights for the CPU ({which}); they cannot be read back.\n"
            "Load the model again, and save, read or train it before it is evaluated. What hf_shrink quantises or trains is"
            " never repacked."
        )
