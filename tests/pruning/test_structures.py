"""Which parameters a mask covers, by counts and scores worked out by hand, and every refusal."""

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification

from hf_shrink.errors import RecipeError
from hf_shrink.families import FAMILIES, layers_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from hf_shrink.pruning.scores import scores_of
from hf_shrink.pruning.structures import groups_of
from hf_shrink.pruning.units import kept_units
from hf_shrink.targets import oriented, projections
from tests import tiny


def unstructured(**words) -> PruningConfig:
    return PruningConfig(sparsity=0.5, **words)


def ffn(**words) -> PruningConfig:
    return PruningConfig(sparsity=words.pop("sparsity", 0.5), structure="ffn", **words)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_default_targets_are_the_projections_of_the_layers_and_nothing_else(name):
    """A head or a pooler among the targets would be pruned by a recipe that never named it."""
    models = [tiny.tiny_classifier(name), tiny.tiny_classifier(name).base_model]
    models += [] if name == "distilbert" else [tiny.tiny_causal_lm(name)]
    for model in models:
        inside = {id(module) for layer in layers_of(model, FAMILIES[name]) for module in projections(layer).values()}
        groups = groups_of(model, [unstructured()])
        assert {id(piece.module) for group in groups for piece in group.pieces} == inside
        assert [piece.name for group in groups for piece in group.pieces] == [f"{group.name}.weight" for group in groups]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_each_matrix_loses_the_same_fraction(name):
    """By hand: 0.3 of 32 x 32 is 307, of 32 x 64 is 614, of GPT-2's 32 x 96 is 922, of Llama's 32 x 16 is 154."""
    by_hand = {1024: 307, 2048: 614, 3072: 922, 512: 154}
    groups = groups_of(tiny.tiny_classifier(name), [PruningConfig(sparsity=0.3)])
    assert {(group.shape.numel(), group.removed) for group in groups} <= set(by_hand.items())
    assert len({group.shape.numel() for group in groups}) > 1


def test_explicit_targets_reach_outside_the_layers_and_excludes_take_away():
    model = tiny.tiny_classifier("bert")
    groups = groups_of(
        model, [unstructured(target_modules=["classifier", "query"], exclude_modules=["layer.1.attention.self.query"])]
    )
    assert [group.name for group in groups] == ["bert.encoder.layer.0.attention.self.query", "classifier"]


def albert() -> AlbertForSequenceClassification:
    sizes = {"embedding_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return AlbertForSequenceClassification(AlbertConfig(vocab_size=20, num_hidden_layers=1, **sizes))


def test_an_unknown_family_is_pruned_inside_its_base_model():
    """Its layers are not known, but its head is: whatever is outside the base model."""
    names = {group.name for group in groups_of(albert(), [unstructured()])}
    assert names == {f"albert.{name}" for name in projections(albert().albert)} and names


def test_ffn_of_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(
        RecipeError, match=r"pruning\.0\.structure: ffn: model family 'albert' is unknown.*Known: bert, distilbert"
    ):
        groups_of(albert(), [ffn()])


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_ffn_group_holds_every_parameter_of_its_neurons(name):
    """A bias left behind would keep a removed neuron alive."""
    model = tiny.tiny_classifier(name, hidden=32, ffn=64)
    groups = groups_of(model, [ffn()])
    assert len(groups) == 2
    for group in groups:
        name = group.name.removesuffix(":ffn")
        layer = model.get_submodule(name)
        with_neurons = {n: p for n, p in layer.named_parameters() if 64 in p.shape}
        assert {piece.name for piece in group.pieces} == {f"{name}.{n}" for n in with_neurons}
        assert group.shape == (64,) and group.removed == 32


def test_neuron_scores_match_hand_values():
    """Two inputs, two neurons: row sums of |W| in, plus column sums of |W| out, biases not counted."""
    model = tiny.tiny_classifier("bert", hidden=4, ffn=8, layers=1)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight.zero_()
        layer.intermediate.dense.weight[1] = torch.tensor([1.0, -2.0, 0.0, 0.5])
        layer.intermediate.dense.bias.fill_(7.0)
        layer.output.dense.weight.zero_()
        layer.output.dense.weight[:, 1] = torch.tensor([-1.0, 0.0, 0.25, 0.0])
        layer.output.dense.weight[:, 3] = torch.tensor([0.0, 0.0, 0.0, -10.0])
    (group,) = groups_of(model, [ffn(round_to=4)])
    assert scores_of(group, {}).tolist() == [0.0, 4.75, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_neuron_scores_sum_over_transposed_and_gated_projections(name):
    """The second implementation: for each neuron, every number that only it touches."""
    model = tiny.tiny_classifier(name, layers=1)
    (group,) = groups_of(model, [ffn()])
    inside, family = projections(model.get_submodule(group.name.removesuffix(":ffn"))), FAMILIES[name].stacks[0]
    for neuron in (0, 7, 63):
        rows = sum(oriented(inside[path])[neuron].abs().sum() for path in family.ffn_in)
        expected = rows + oriented(inside[family.ffn_out])[:, neuron].abs().sum()
        assert scores_of(group, {})[neuron].item() == pytest.approx(expected.item(), rel=1e-6)


def test_scores_do_not_depend_on_the_number_of_threads():
    """Sums split over threads round differently: two machines would cut different neurons."""
    model = tiny.tiny_classifier("bert", hidden=384, ffn=1536, layers=1)
    (group,) = groups_of(model, [ffn()])
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(scores_of(group, {}))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("width", "sparsity", "round_to", "kept"),
    [
        (1536, 0.5, 8, 768),
        (1536, 0.3, 64, 1088),  # 1075.2 is 16.8 times 64
        (1536, 0.99, 64, 64),  # 15.36 would round to 0
        (100, 0.5, 64, 64),  # 50 is nearer to 64 than to 0
        (100, 0.05, 64, 64),  # 95 is nearer to 64 than to 128
        (100, 0.01, 64, 100),  # 99 is nearer to 128, which there is not
        (48, 0.5, 64, 48),  # narrower than one multiple
        (50, 0.0, 8, 50),  # nothing asked, nothing rounded
        (64, 0.5, 1, 32),
    ],
)
def test_kept_neurons_are_the_nearest_multiple_within_the_width(width, sparsity, round_to, kept):
    """0 neurons would be a dead layer; a width that kernels do not like would be slower than the dense one."""
    assert kept_units(width, sparsity=sparsity, multiple=round_to) == kept


def test_rounding_that_keeps_everything_is_refused():
    """Otherwise the run prunes nothing and says it did."""
    with pytest.raises(
        RecipeError, match=r"pruning\.0\.round_to: sparsity 0\.5 keeps all 64 neurons of bert\.encoder\.layer\.0 "
    ):
        groups_of(tiny.tiny_classifier("bert"), [ffn(round_to=64)])


def test_ffn_targets_choose_blocks_by_any_of_their_projections():
    model = tiny.tiny_classifier("bert", layers=3)
    assert len(groups_of(model, [ffn(target_modules=["intermediate.dense"])])) == 3
    (one,) = groups_of(model, [ffn(target_modules=["layer.2.output.dense"])])
    assert one.name == "bert.encoder.layer.2:ffn"
    rest = groups_of(model, [ffn(exclude_modules=["layer.1.intermediate.dense"])])
    assert [group.name for group in rest] == ["bert.encoder.layer.0:ffn", "bert.encoder.layer.2:ffn"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"target_modules": ["query"]}, r"pruning\.0\.target_modules: 'query' matches 0 of 4 modules; nearest: dense"),
        ({"exclude_modules": ["query"]}, r"pruning\.0\.exclude_modules: 'query' matches 0 of 4 modules"),
        ({"exclude_modules": ["dense"]}, r"pruning\.0\.exclude_modules: leaves 0 of 2 feed-forward blocks"),
    ],
)
def test_ffn_patterns_that_name_no_block_are_refused(words, says):
    with pytest.raises(RecipeError, match=says):
        groups_of(tiny.tiny_classifier("bert"), [ffn(**words)])


def test_groups_are_found_on_the_meta_device():
    """A plan must not need the weights."""
    model = tiny.tiny_causal_lm("llama")
    with torch.device("meta"):
        blank = type(model)(model.config)
    shapes = [[(g.name, g.shape, g.removed) for g in groups_of(m, [ffn()])] for m in (model, blank)]
    assert shapes[0] == shapes[1] != []


def test_a_block_is_scored_by_its_mean_and_leaves_whole():
    """By hand: 2 x 4 blocks of a 32 x 32 weight make a grid of 16 x 8; half of it goes, every block whole or not at all."""
    model = tiny.tiny_classifier("bert")
    config = PruningConfig(structure="block", block=[2, 4], sparsity=0.5, target_modules=["query"])
    group, _ = groups_of(model, [config])
    weight = group.weights[0].weight.detach()
    assert group.shape == (16, 8) and group.removed == 64
    expected = torch.stack(
        [torch.stack([weight[2 * i : 2 * i + 2, 4 * j : 4 * j + 4].abs().mean() for j in range(8)]) for i in range(16)]
    )
    torch.testing.assert_close(scores_of(group, {}).float(), expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            {"structure": "block", "block": [3, 4], "sparsity": 0.5},
            r"block: bert\.\S+ is \[32, 32\], which blocks of \[3, 4\] do not tile",
        ),
        ({"structure": "n_of_m", "pattern": [2, 5]}, r"pattern: bert\.\S+ has 32 inputs \[32, 32\], which 5 does not divide"),
    ],
)
def test_shapes_that_do_not_fit_name_layer_and_shape(words, says):
    """A block that wraps into the next row would look like one and be none."""
    with pytest.raises(RecipeError, match=says):
        groups_of(tiny.tiny_classifier("bert"), [PruningConfig(**words)])


def test_masks_that_compete_in_bundles_of_several_sizes_are_refused():
    """64 and 60 neurons in eights: 12 fewer would be bundles of 4 and 8, taken or not by their scores."""
    model = tiny.tiny_classifier("bert")
    model = prune(model, PruningConfig(structure="ffn", sparsity=4 / 64, round_to=4, target_modules=["layer.1.output.dense"]))
    with pytest.raises(RecipeError, match=r"has 60 units in multiples of 8.* set round_to: 1"):
        groups_of(model, [ffn(allocation="global", criterion="taylor")])
    assert len(groups_of(model, [ffn(allocation="global", criterion="taylor", round_to=1)])) == 2
    assert len(groups_of(model, [ffn(allocation="global", criterion="taylor", round_to=4)])) == 2
