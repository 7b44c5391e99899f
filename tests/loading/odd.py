"""Models whose layers have different widths, made by hand: what structured pruning leaves."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_shrink.families import family_of, stacks_of
from hf_shrink.repacking import disable_cpu_repacking
from hf_shrink.targets import oriented

IDS = torch.tensor([[2, 5, 8, 9, 3], [2, 6, 12, 11, 3]])


def narrow(model: PreTrainedModel, widths: tuple[int, ...]) -> PreTrainedModel:
    """Keep the first ``widths[i]`` neurons of layer ``i``, in place."""
    ((stack, layers),) = stacks_of(model, family_of(model, "test"))
    for layer, width in zip(layers, widths, strict=True):
        for path in (*stack.ffn_in, stack.ffn_out):
            module = layer.get_submodule(path)
            out_features, in_features = oriented(module).shape
            rows, columns = (out_features, width) if path == stack.ffn_out else (width, in_features)
            weight = oriented(module).detach()[:rows, :columns].clone()
            if isinstance(module, nn.Linear):
                module.weight, module.out_features, module.in_features = nn.Parameter(weight), rows, columns
            else:
                module.weight, module.nf, module.nx = nn.Parameter(weight.T.contiguous()), rows, columns
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach()[:rows].clone())
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    disable_cpu_repacking(model)  # what plain transformers loads computes in bfloat16 there
    with torch.no_grad():
        return model.eval()(IDS)[0]
