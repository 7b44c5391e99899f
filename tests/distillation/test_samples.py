"""What a student says itself. What these prevent: samples of another distribution, or learnt at the wrong positions."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening, GenerationConfig

from hf_shrink.distillation.config import DistillationConfig, LossTerm, OnPolicyConfig
from hf_shrink.distillation.positions import SAMPLED
from hf_shrink.distillation.samples import check_room, prompt_length, sampled
from hf_shrink.errors import MismatchError, RecipeError
from tests.tiny import tiny_causal_lm

END = 3


@pytest.mark.parametrize(
    ("labels", "asked", "length"),
    [
        ([5, 5, 5, 5, 5], None, 2),
        ([5, 5, 5, 5, 5], 4, 4),
        ([5, 5, 5, 5, 5], 9, 4),
        ([-100, 5, 5, 5], None, 2),
        ([5], None, 1),
        ([-100, -100, 5, -100, 5, 5], None, 4),
        ([-100, -100, 5, 5, -100, -100], 1, 2),
        ([-100, -100, -100], None, 1),
        ([5, 5, -100, 5], None, 3),
    ],
)
def test_the_prompt_is_what_stands_before_the_last_answer_or_the_first_part(labels, asked, length):
    assert prompt_length(labels, asked) == length


def ragged(rows=3):
    """Rows of 6, 4 and 2 real tokens, padded on the right, without the end of text."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (rows, 6), generator=generator)
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in (6, 4, 2)[:rows]])
    ids = ids * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_without_warmth_each_row_goes_on_as_it_would_alone(family):
    """Prompts of other lengths in one batch: padding, or positions counted from it, would change what is said."""
    model, batch = tiny_causal_lm(family, layers=2), ragged()
    made = sampled(model, batch, OnPolicyConfig(mix=1.0, temperature=1e-9, max_new_tokens=4), pad=0, seed=0)
    for row, (length, prompt) in enumerate(((6, 3), (4, 2), (2, 1))):
        ids = batch["input_ids"][row, :length][:prompt].tolist()
        for _ in range(4):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == END:
                break
        got = made["input_ids"][row][made["attention_mask"][row].bool()].tolist()
        assert got == ids
        known = [-100] * prompt + ids[prompt:]
        assert made["labels"][row].tolist() == known + [-100] * (made["labels"].shape[1] - len(known))
    assert made[SAMPLED] and made["input_ids"].shape == made["labels"].shape == made["attention_mask"].shape


def test_every_word_may_be_drawn_whatever_the_model_says_about_sampling():
    """transformers draws from the 50 likeliest words unless told otherwise, and a checkpoint may say less: another policy."""
    model = tiny_causal_lm("gpt2", vocab_size=300)
    model.generation_config = GenerationConfig(do_sample=True, top_k=5, top_p=0.5, eos_token_id=END)
    own = model.generation_config
    batch = {"input_ids": torch.full((2000, 2), 7), "labels": torch.full((2000, 2), 7)}
    made = sampled(model, batch, OnPolicyConfig(mix=1.0, max_new_tokens=1), pad=0, seed=0)
    drawn = made["input_ids"][:, 1].bincount(minlength=300).float() / 2000
    expected = model(input_ids=torch.tensor([[7]])).logits[0, -1].detach().softmax(-1)
    assert int((drawn > 0).sum()) > 200 and model.generation_config is own
    assert 0.5 * float((drawn - expected).abs().sum()) < 0.25  # 300 cells and 2000 draws: about 0.15 by chance


@pytest.mark.parametrize(("asked", "lengths"), [(None, [2, 3]), (3, [3, 3])])
def test_an_end_of_text_that_is_masked_as_padding_makes_no_chat_of_a_text(asked, lengths):
    """GPT-2 has one token for both: all before the end would be the answer, and the prompt one token whatever is asked."""
    ids = torch.tensor([[7, 8, 9, 10, END, END], [7, END, 8, 9, 10, END]])  # the second row is packed
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == END, -100)}
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 0], [1] * 6])
    config = OnPolicyConfig(mix=1.0, max_new_tokens=2, prompt_tokens=asked)
    made = sampled(tiny_causal_lm("gpt2"), batch, config, pad=END, seed=0)
    assert (made["labels"] != -100).int().argmax(dim=1).tolist() == lengths
    chat = torch.tensor([[-100, -100, -100, 9, 10, -100]])  # of this one, a question is masked
    one = {"input_ids": ids[1:], "labels": chat}
    made = sampled(tiny_causal_lm("gpt2"), one, config, pad=END, seed=0)
    assert int((made["labels"] != -100).int().argmax()) == 3


def test_texts_that_lie_in_one_row_go_on_one_by_one():
    """One prompt over several texts: the student would go on from the last alone, and forget where the others began."""
    batch = ragged()
    rows = [{"input_ids": ids[:length].tolist()} for ids, length in zip(batch["input_ids"], (6, 4, 2), strict=True)]
    config = OnPolicyConfig(mix=1.0, temperature=1e-9, max_new_tokens=4)
    model = tiny_causal_lm("llama")
    flat = sampled(model, DataCollatorWithFlattening()(rows), config, pad=0, seed=0)
    apart = sampled(model, batch, config, pad=0, seed=0)
    assert len(flat["labels"]) == 3 and all(torch.equal(flat[name], apart[name]) for name in ("input_ids", "labels"))
    unsaid = DataCollatorWithFlattening(return_position_ids=False, return_seq_idx=True)(rows)
    with pytest.raises(MismatchError, match="'seq_idx' says that a row holds several texts"):
        sampled(model, unsaid, config, pad=0, seed=0)


def test_samples_follow_their_seed_and_leave_everything_as_it_was():
    model, batch = tiny_causal_lm("llama").train(), ragged()
    before = torch.random.get_rng_state()
    config = OnPolicyConfig(mix=1.0, max_new_tokens=8)
    one, again, other = (sampled(model, batch, config, pad=0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one["input_ids"], again["input_ids"]) and not torch.equal(one["labels"], other["labels"])
    assert torch.equal(before, torch.random.get_rng_state()) and model.training


@pytest.mark.parametrize("said", ["by the model", "by the adapters"])
def test_a_model_with_adapters_keeps_what_it_says_about_generation(said: str):
    """Adapters hand their settings to the model below: what is merged and saved would sample, a few tokens at most."""
    below = tiny_causal_lm("llama")
    below.generation_config = own = GenerationConfig(num_beams=4, eos_token_id=END)
    model: Any = get_peft_model(below, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if said == "by the adapters":
        model.generation_config = GenerationConfig(repetition_penalty=9.0, eos_token_id=END)
    before = vars(model).get("generation_config")
    config = OnPolicyConfig(mix=1.0, max_new_tokens=8)
    made, plain = (sampled(each, ragged(), config, pad=0, seed=1) for each in (model, tiny_causal_lm("llama")))
    assert torch.equal(made["input_ids"], plain["input_ids"])
    assert below.generation_config is own and vars(model).get("generation_config") is before


def test_nothing_follows_the_end_of_text():
    model = tiny_causal_lm("gpt2", resid_pdrop=0.0)
    model.generation_config.eos_token_id = [END, 5]
    made = sampled(model, ragged(), OnPolicyConfig(mix=1.0, max_new_tokens=40, temperature=3.0), pad=0, seed=3)
    for row in made["labels"].tolist():
        said = [token for token in row if token != -100]
        assert said and not set(said[:-1]) & {END, 5} and (len(said) == 40 or said[-1] in {END, 5})


def test_a_sample_without_room_is_refused():
    with pytest.raises(MismatchError, match="prompt of 5 tokens and 60 new ones are more than the student's 64"):
        check_room([[1] * 10, [1] * 4], OnPolicyConfig(mix=1.0, max_new_tokens=60), 64)
    check_room([[1] * 10], OnPolicyConfig(mix=1.0, max_new_tokens=59), 64)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"losses": (LossTerm(loss="decoupled_kd"),)}, "decoupled_kd reads the right word"),
        ({"losses": (LossTerm(loss="jsd"),), "alpha": 0.0}, "nothing is learnt"),
    ],
)
def test_settings_that_cannot_teach_are_refused(words, says):
    with pytest.raises(RecipeError, match=says):
        DistillationConfig(on_policy=OnPolicyConfig(mix=0.5), **words)
