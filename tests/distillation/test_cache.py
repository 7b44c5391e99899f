"""Teacher outputs on the disk. What these prevent: a row of another text, teacher or tokenizer that teaches in silence."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
)

from hf_shrink.distillation.cache_writing import config_hash, weights_hash, write_cache
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import CacheConfig, LossTerm
from hf_shrink.distillation.divergences import forward_kl
from hf_shrink.distillation.losses import LOSSES
from hf_shrink.distillation.merged import keep, merge
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import IntegrityError, MismatchError, ResourceError
from tests.distillation.kept import TEXTS, Slow, collate, contents, rows, write
from tests.tiny import spread, tiny_causal_lm, tiny_classifier, tiny_config, tiny_tokenizer

# ---- the same answers ----


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2e-3)])
@pytest.mark.parametrize(("family", "side"), [("llama", "left"), ("llama", "right"), ("bert", "right")])
def test_a_cache_says_what_the_teacher_says_in_any_order_batch_and_padding(
    dtype, error, family, side, tmp_path: Path, small_files
):
    """Rows by number would answer for the rows of another epoch's order."""
    teacher = tiny_classifier(family).eval()
    cached = write(tmp_path, teacher, dtype=dtype)
    for order in ([7, 2], [0, 1, 2, 3, 4, 5, 6, 7], [5, 5, 1]):
        batch = tiny_tokenizer().pad(rows()[order], return_tensors="pt", padding_side=side)
        torch.testing.assert_close(cached.outputs(batch)["logits"], teacher(**batch).logits, atol=error, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
def test_places_that_padding_moves_are_never_cached(family, tmp_path: Path):
    """What a teacher that counts columns says of a row padded on the left depends on the other rows of its batch."""
    teacher, left = spread(tiny_classifier(family)), tiny_tokenizer()
    left.padding_side = "left"
    with pytest.raises(MismatchError, match=r"(?s)padded on the left, which moves the places.*padding_side: right"):
        write_cache(CacheConfig(folder=str(tmp_path / "left")), teacher, rows(), DataCollatorWithPadding(left))
    assert not list(tmp_path.glob("left/rows-*"))
    cached = write(tmp_path / "right", teacher)
    batch = left.pad(rows()[[1, 2]], return_tensors="pt")
    right = tiny_tokenizer().pad(rows()[[1, 2]], return_tensors="pt")
    assert (teacher(**batch).logits - teacher(**right).logits).abs().max() > 0.1, "the reason"
    with pytest.raises(MismatchError, match="batch rows 1 are padded"):
        CachedTeacher.from_folder(tmp_path / "right").outputs(batch)
    torch.testing.assert_close(cached.outputs(right)["logits"], teacher(**right).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_about_tokens_stand_at_their_tokens(side, tmp_path: Path, small_files):
    """Off by the padding, each token would learn what the teacher said of another."""
    teacher = Slow()
    full, top = write(tmp_path / "full", teacher), write(tmp_path / "top", teacher, top_k=2, temperatures=(1.0, 3.0))
    batch = tiny_tokenizer().pad(rows()[[2, 1, 7]], return_tensors="pt", padding_side=side)
    real = batch["attention_mask"].bool()
    logits = teacher(**batch)["logits"]
    torch.testing.assert_close(full.outputs(batch)["logits"][real], logits[real], rtol=0, atol=0)
    kept = top.outputs(batch)["kept"][real]
    for temperature in (1.0, 3.0):
        wanted = (merge(logits[real], kept.ids, temperature) / temperature).softmax(-1)
        torch.testing.assert_close((kept.logits(temperature) / temperature).softmax(-1), wanted)
    torch.testing.assert_close(kept.ids, logits[real].topk(2).indices)


def test_classes_are_kept_in_the_students_order(tmp_path: Path):
    teacher = Teacher(tiny_classifier(), label_order=(2, 0, 1))
    batch = collate([rows()[1]])
    torch.testing.assert_close(write(tmp_path, teacher).outputs(batch)["logits"], teacher(batch))


def test_a_decoder_that_reads_the_target_is_not_cached(tmp_path: Path):
    """A row is found by its source: under another target the same answers would teach other words."""
    torch.manual_seed(0)
    teacher, data = AutoModelForSeq2SeqLM.from_config(tiny_config("t5")), rows()
    data = data.add_column("labels", data["input_ids"])
    with pytest.raises(MismatchError, match=r"(?s)T5ForConditionalGeneration .*source alone.*live teacher"):
        write_cache(CacheConfig(folder=str(tmp_path)), teacher, data, DataCollatorForSeq2Seq(tiny_tokenizer()))
    assert not list(tmp_path.iterdir())


# ---- laws of merged words ----


def pairs():
    generator = torch.Generator().manual_seed(3)
    return [(s * scale, t * scale) for scale in (0.5, 4.0) for s, t in [torch.randn(2, 40, 12, generator=generator)]]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if loss.merges))
def test_merging_words_never_raises_a_loss_and_keeping_all_changes_nothing(name, temperature):
    """The data processing inequality: a sum over the k words alone breaks it, and so does a rest at another temperature."""
    function = LOSSES[name].function
    for student, teacher in pairs():
        whole, last = function(student, teacher, temperature=temperature), None
        for k in (1, 4, 11, 12):
            kept = keep(teacher, k, (temperature,))
            found = function(merge(student, kept.ids, temperature), kept.logits(temperature), temperature=temperature)
            assert (found <= whole * (1 + 1e-5) + 1e-5).all()
            last = found
        torch.testing.assert_close(last, whole, atol=1e-5, rtol=1e-5)
        same = function(merge(teacher, kept.ids, temperature), kept.logits(temperature), temperature=temperature)
        floor = function(teacher, teacher, temperature=temperature)
        torch.testing.assert_close(same, floor, atol=1e-5, rtol=1e-5)


def test_a_merged_loss_by_hand():
    """Words of probability 0.5, 0.3, 0.2 against 0.2, 0.3, 0.5; one kept: 0.5 and 0.5 against 0.2 and 0.8."""
    teacher, student = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    kept = keep(teacher, 1, (1.0,))
    found = forward_kl(merge(student, kept.ids, 1.0), kept.logits(1.0))
    by_hand = 0.5 * torch.tensor(0.5 / 0.2).log() + 0.5 * torch.tensor(0.5 / 0.8).log()
    torch.testing.assert_close(found, by_hand[None])


def test_the_gradient_of_a_merged_loss_is_finite_and_reaches_every_word():
    student = torch.randn(6, 9, requires_grad=True)
    kept = keep(torch.randn(6, 9), 3, (2.0,))
    forward_kl(merge(student, kept.ids, 2.0), kept.logits(2.0), temperature=2.0).sum().backward()
    assert student.grad.isfinite().all() and (student.grad != 0).all()


def test_every_divergence_of_classes_merges_or_says_why_not():
    """A new loss would be refused by a cache, or wrongly allowed, because nobody thought of it."""
    classes = {name for name, loss in LOSSES.items() if loss.reads == "logits" and "classes" in loss.outputs}
    assert classes - {name for name, loss in LOSSES.items() if loss.merges} == {"decoupled_kd", "logit_mse"}


# ---- nothing wrong is ever used ----


def batch_of(text: str = TEXTS[1], **more):
    return collate([{**tiny_tokenizer()(text), **more}])


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (
            batch_of("red red bird"),
            r"no answer for batch rows 0; the first has 5 tokens, 2, 4, 4.*\n.*8 rows, .*tokenizer tiny",
        ),
        ({"input_ids": batch_of()["input_ids"][:, :4]}, "another tokenizer, max_length or packing"),
        ({"input_ids": batch_of()["input_ids"] + 1}, "no answer"),
        (batch_of() | {"position_ids": torch.zeros(1, 8)}, "'position_ids', which the teacher never saw"),
        (batch_of() | {"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]])}, "holes"),
        (batch_of() | {"attention_mask": torch.zeros(1, 8, dtype=torch.long)}, "without tokens"),
    ],
)
def test_a_row_that_is_not_kept_is_an_error(batch, says, tmp_path: Path):
    cached = write(tmp_path, key={"tokenizer": "tiny"})
    with pytest.raises(MismatchError, match=f"(?s){says}"):
        cached.outputs(batch)


def test_segments_are_part_of_a_text(tmp_path: Path):
    """The same tokens as a pair of texts are another question to the teacher."""
    data = rows()
    data = data.add_column("token_type_ids", [[0] * len(ids) for ids in data["input_ids"]])
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    pad = DataCollatorWithPadding(tokenizer)
    cached = write_cache(CacheConfig(folder=str(tmp_path)), tiny_classifier(), data, pad)
    batch = pad([data[1]])
    assert cached.outputs(batch)["logits"].shape == (1, 3)
    with pytest.raises(MismatchError, match="no answer"):
        cached.outputs(batch | {"token_type_ids": batch["token_type_ids"] + 1})
    with pytest.raises(MismatchError, match="without 'token_type_ids'"):
        cached.outputs({"input_ids": batch["input_ids"]})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": tiny_classifier(seed=4)}, "another teacher"),
        ({"teacher": tiny_classifier(hidden_act="relu")}, r"another teacher config \("),
        ({"teacher": Teacher(tiny_classifier(), label_order=[2, 0, 1])}, r"label order \(none -> \[2, 0, 1\]\)"),
        ({"data": rows([*TEXTS[1:], TEXTS[0]])}, "another rows"),
        ({"data": rows(TEXTS[:-1])}, "another rows"),
        ({"key": {"tokenizer": "two"}}, r"another tokenizer \(one -> two\)"),
        ({"key": {"tokenizer": "one", "max_length": "64"}}, r"another max_length \(none -> 64\)"),
        ({"dtype": "float16"}, r"another dtype \(float32 -> float16\)"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name_and_stays(change, says, tmp_path: Path):
    """A folder that is whole is taken for this call's answers, by the same weights under another config, too."""
    write(tmp_path, key={"tokenizer": "one"})
    before = contents(tmp_path)
    with pytest.raises(IntegrityError, match=says):
        write(tmp_path, **{"key": {"tokenizer": "one"}} | change)
    assert contents(tmp_path) == before


def test_all_words_are_not_the_likeliest_ones(tmp_path: Path):
    """A setting that was left out is another setting."""
    write(tmp_path, Slow(), top_k=2)
    with pytest.raises(IntegrityError, match=r"another temperatures \(1 -> none\), top_k \(2 -> none\)"):
        write(tmp_path, Slow())


def test_one_changed_weight_is_another_teacher():
    one, other = tiny_classifier(), tiny_classifier()
    assert weights_hash([one]) == weights_hash([other]) != weights_hash([one.half()])
    with torch.no_grad():
        next(iter(other.parameters()))[0, 0] += 1e-3
    assert weights_hash([other]) != weights_hash([tiny_classifier()])


def test_names_and_words_of_one_call_make_no_other_teacher(tmp_path: Path):
    """A cache that is refused for where its teacher lay is written anew for nothing."""
    tiny_classifier().save_pretrained(tmp_path / "moved")
    there = AutoModelForSequenceClassification.from_pretrained(tmp_path / "moved", attn_implementation="eager", num_labels=3)
    there.config.use_cache = False
    assert config_hash([there]) == config_hash([tiny_classifier()]) != config_hash([tiny_classifier(layer_norm_eps=1e-5)])


def test_a_reader_asks_for_what_it_needs(tmp_path: Path):
    write(tmp_path, key={"max_length": "128"})
    assert CachedTeacher.from_folder(tmp_path, key={"max_length": "128"}).layout.rows == len(TEXTS)
    with pytest.raises(IntegrityError, match=r"max_length \(128 -> 64\)"):
        CachedTeacher.from_folder(tmp_path, key={"max_length": "64"})
    with pytest.raises(ResourceError, match="there is none"):
        CachedTeacher.from_folder(tmp_path / "nothing")


# ---- kills, full disks, other files ----


@pytest.mark.parametrize(
    ("term", "top_k", "says"),
    [
        (LossTerm(loss="hidden_mse"), None, "hidden_mse reads hidden, but a cache holds the teacher's logits alone"),
        (LossTerm(loss="attention_kl"), 2, "reads attentions"),
        (LossTerm(loss="logit_mse"), 2, "needs every word, but the cache holds the likeliest 2"),
        (LossTerm(temperature=2.0), 2, "at temperature 2, .* at 1 alone"),
        (LossTerm(temperature=1.0, temperature_end=2.0), 2, "1 to 2"),
        (LossTerm(temperature=2.0), 5, None),
        (LossTerm(loss="logit_mse"), None, None),
    ],
)
def test_losses_that_need_more_than_is_kept_are_refused(term, top_k, says, tmp_path: Path):
    cached = write(tmp_path, Slow(), top_k=top_k)
    if says is None:
        cached.check_terms({"term": term})
        return
    with pytest.raises(MismatchError, match=f"(?s){says}"):
        cached.check_terms({term.loss: term})


def test_words_beyond_the_shared_ones_are_not_kept(tmp_path: Path):
    teacher = tiny_causal_lm("llama")
    cached = write(tmp_path, teacher, top_k=3, words=11)
    assert cached.layout.outputs == 11 and cached.words_of(tiny_causal_lm("llama", vocab_size=12)) == 11
    with pytest.raises(MismatchError, match="the student has 10 words, the cache is about 11"):
        cached.words_of(tiny_causal_lm("llama", vocab_size=10))


def test_an_adapter_that_is_switched_on_is_another_teacher(tmp_path: Path):
    """All adapters of a model are among its weights, whichever of them answers and however strongly."""
    adapted = get_peft_model(tiny_classifier(), LoraConfig(r=2, init_lora_weights=False, target_modules=["query"]))
    adapted.add_adapter("other", LoraConfig(r=2, init_lora_weights=False, target_modules=["query"]))
    write(tmp_path, teacher=adapted)
    adapted.set_adapter("other")
    with pytest.raises(IntegrityError, match=r"another teacher config \("):
        write(tmp_path, teacher=adapted)
    adapted.set_adapter("default")
    write(tmp_path, teacher=adapted)
    adapted.base_model.model.bert.encoder.layer[0].attention.self.query.scaling["default"] *= 2
    with pytest.raises(IntegrityError, match=r"another teacher config \("):
        write(tmp_path, teacher=adapted)
