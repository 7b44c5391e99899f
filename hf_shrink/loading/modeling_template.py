"""What ``remote_code`` writes beside a model: self-contained, short enough to be read before it is trusted."""

TEMPLATE = '''"""Builds this pruned model without hf_shrink: layers have the sizes that quantization_config in config.json says.

Written by hf_shrink for users who let a repository's code run. After `import hf_shrink` nobody has to.
"""

import torch
import transformers
from torch import nn

# For each list of layers and each attention block in them: the block, the projection that reads its heads, the attribute that
# says how wide a head is, those that say how many heads there are, and those that say heads times width.
ATTENTIONS = $attentions


def resize(module, inputs, outputs):
    if isinstance(module, nn.Linear):
        sizes, module.in_features, module.out_features = (outputs, inputs), inputs, outputs
    elif isinstance(module, nn.Embedding):
        sizes, module.num_embeddings, module.embedding_dim = (inputs, outputs), inputs, outputs
    else:  # GPT-2's transposed projection
        sizes, module.nx, module.nf = (inputs, outputs), inputs, outputs
    module.weight = nn.Parameter(torch.empty(sizes, dtype=module.weight.dtype, device=module.weight.device))
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(torch.empty(outputs, dtype=module.bias.dtype, device=module.bias.device))


class Resized:
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        record = getattr(config, "quantization_config", None) or {}
        record = record if isinstance(record, dict) else record.to_dict()
        if record.get("quant_method") != "hf_shrink" or record.get("format_version") != $format or "bitsandbytes" in record:
            raise ValueError("config.json: not the record that modeling_hf_shrink.py was written for; try `import hf_shrink`.")
        for path, (inputs, outputs) in record.get("shapes", {}).items():
            resize(self.base_model.get_submodule(path), inputs, outputs)
            self._init_weights(self.base_model.get_submodule(path))
        for layers, block, reader, head_dim, counts, widths in ATTENTIONS:
            for layer in self.base_model.get_submodule(layers):
                attention, width = layer.get_submodule(block), getattr(layer.get_submodule(block), head_dim)
                if record.get("head_dim", width) != width:
                    attention.scaling *= (width / record["head_dim"]) ** 0.5
                    width = record["head_dim"]
                    setattr(attention, head_dim, width)
                features = getattr(layer.get_submodule(reader), "nx", None) or layer.get_submodule(reader).in_features
                for name in counts:
                    setattr(attention, name, features // width)
                for name in widths:
                    setattr(attention, name, features)

$classes'''
"""With ``$attentions``, ``$format`` and ``$classes`` to fill in."""

CLASS = """
class {name}(Resized, transformers.{name}):
    pass
"""
"""One for each class that the model opens as; they keep their names, so that what is saved again says the same."""
