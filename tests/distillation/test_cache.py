"""Teacher outputs on the disk. What these prevent: a row of another text, teacher or tokenizer that teaches in silence."""

import hashlib
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from hf_shrink.distillation import cache_files, cache_writing
from hf_shrink.distillation.cache_writing import weights_hash, write_cache
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import CacheConfig, LossTerm
from hf_shrink.distillation.divergences import forward_kl
from hf_shrink.distillation.losses import LOSSES
from hf_shrink.distillation.merged import keep, merge
from hf_shrink.distillation.row_keys import row_keys
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import IntegrityError, MismatchError, NonFiniteError, RecipeError, ResourceError, ShrinkError
from hf_shrink.files import files_below
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

TEXTS = [
    "red bird",
    "the green house of a song",
    "blue",
    "a lamp a door",
    "the red road",
    "song",
    "a stone",
    "green tree of the river",
]


class Slow(torch.nn.Module):
    """Looks its answers up: five words at each token. Small enough to be forked at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        return {"logits": self.table(input_ids)}


def rows(texts=TEXTS) -> Dataset:
    return Dataset.from_dict(dict(tiny_tokenizer()(list(texts))))


def collate(batch):
    return DataCollatorWithPadding(tiny_tokenizer())(batch)


def write(folder: Path, teacher=None, data=None, **words) -> CachedTeacher:
    settings = {name: words.pop(name) for name in ("dtype", "top_k") if name in words}
    return write_cache(
        CacheConfig(folder=str(folder), **settings), teacher or tiny_classifier(), data or rows(), collate, **words
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files_below(folder)}


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writing, "_SHARD_ROWS", 3)


# ---- the same answers ----


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2e-3)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_says_what_the_teacher_says_in_any_order_batch_and_padding(dtype, error, side, tmp_path: Path, small_files):
    """Rows by number would answer for the rows of another epoch's order."""
    teacher = tiny_classifier(num_labels=3).eval()
    cached = write(tmp_path, teacher, dtype=dtype)
    for order in ([7, 2], [0, 1, 2, 3, 4, 5, 6, 7], [5, 5, 1]):
        batch = tiny_tokenizer().pad(rows()[order], return_tensors="pt", padding_side=side)
        right = tiny_tokenizer().pad(rows()[order], return_tensors="pt")
        torch.testing.assert_close(cached.outputs(batch)["logits"], teacher(**right).logits, atol=error, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_about_tokens_stand_at_their_tokens(side, tmp_path: Path, small_files):
    """Off by the padding, each token would learn what the teacher said of another."""
    teacher = Slow()
    full, top = write(tmp_path / "full", teacher), write(tmp_path / "top", teacher, top_k=2, temperatures=(1.0, 3.0))
    batch = tiny_tokenizer().pad(rows()[[2, 1, 7]], return_tensors="pt", padding_side=side)
    real = batch["attention_mask"].bool()
    logits = teacher(**batch)["logits"]
    torch.testing.assert_close(full.outputs(batch)["logits"][real], logits[real], rtol=0, atol=0)
    kept = top.outputs(batch)["kept"].at(real)
    for temperature in (1.0, 3.0):
        wanted = (merge(logits[real], kept.ids, temperature) / temperature).softmax(-1)
        torch.testing.assert_close((kept.logits(temperature) / temperature).softmax(-1), wanted)
    torch.testing.assert_close(kept.ids, logits[real].topk(2).indices)


def test_classes_are_kept_in_the_students_order(tmp_path: Path):
    teacher = Teacher(tiny_classifier(), label_order=(2, 0, 1))
    batch = collate([rows()[1]])
    torch.testing.assert_close(write(tmp_path, teacher).outputs(batch)["logits"], teacher(batch))


def test_the_files_are_those_of_the_datasets_library(tmp_path: Path):
    write(tmp_path, Slow(), top_k=2)
    read = Dataset.from_file(str(tmp_path / "rows-00000.arrow"))
    assert len(read) == len(TEXTS) and len(read[1]["values"]) == 2 * len(rows()[1]["input_ids"])


def test_the_predicted_bytes_are_about_those_on_the_disk(tmp_path: Path):
    """A disk that fills up after hours of teacher forwards."""
    data = rows(TEXTS * 60)
    tokens = sum(map(len, data["input_ids"]))
    for name, words in (("top", {"top_k": 2}), ("full", {"dtype": "float16"})):
        cached = write(tmp_path / name, Slow(), data, **words)
        there = sum(path.stat().st_size for path in tmp_path.glob(f"{name}/*.arrow"))
        assert cached.layout.bytes_for(tokens, len(data)) == pytest.approx(there, rel=0.25)


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
        ({"data": rows([*TEXTS[1:], TEXTS[0]])}, "another rows"),
        ({"data": rows(TEXTS[:-1])}, "another rows"),
        ({"key": {"tokenizer": "two"}}, r"another tokenizer \(one -> two\)"),
        ({"key": {"tokenizer": "one", "max_length": "64"}}, r"another max_length \(none -> 64\)"),
        ({"dtype": "float16"}, r"another dtype \(float32 -> float16\)"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name_and_stays(change, says, tmp_path: Path):
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


def test_a_reader_asks_for_what_it_needs(tmp_path: Path):
    write(tmp_path, key={"max_length": "128"})
    assert CachedTeacher.from_folder(tmp_path, key={"max_length": "128"}).layout.rows == len(TEXTS)
    with pytest.raises(IntegrityError, match=r"max_length \(128 -> 64\)"):
        CachedTeacher.from_folder(tmp_path, key={"max_length": "64"})
    with pytest.raises(ResourceError, match="there is none"):
        CachedTeacher.from_folder(tmp_path / "nothing")


def test_any_flipped_bit_is_found_and_the_file_is_written_again(tmp_path: Path, small_files):
    write(tmp_path)
    fresh = contents(tmp_path)
    for name, content in fresh.items():
        if name.startswith("."):
            continue
        for place in (0, len(content) // 2, len(content) - 2):
            damaged = bytearray(content)
            damaged[place] ^= 1
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
                CachedTeacher.from_folder(tmp_path)
            if name == cache_files.MANIFEST:
                (tmp_path / name).write_bytes(content)
            else:
                write(tmp_path)
            assert contents(tmp_path) == fresh
    (tmp_path / "rows-00001.arrow").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        CachedTeacher.from_folder(tmp_path)


# ---- kills, full disks, other files ----


def killed_at(call: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Write in a fork that is killed at its ``call``-th fsync; whether it got that far."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1, 10_000))
        inner = os.fsync

        def fsync(descriptor):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            inner(descriptor)

        os.fsync = fsync
        try:
            write(folder, Slow(), top_k=2)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_cache_resumed_after_any_kill_equals_a_fresh_one(tmp_path: Path, small_files, monkeypatch: pytest.MonkeyPatch):
    """Half a file under its whole name, or a second beginning in the middle."""
    write(tmp_path / "fresh", Slow(), top_k=2)
    fresh, kills = contents(tmp_path / "fresh"), 0
    for call in range(1, 40):
        folder = tmp_path / str(call)
        if not killed_at(call, folder, monkeypatch):
            break
        kills += 1
        manifest = cache_files.read_manifest(folder)
        if manifest is None or not manifest.is_complete:
            with pytest.raises(ShrinkError):
                CachedTeacher.from_folder(folder)
        write(folder, Slow(), top_k=2)
        there = contents(folder)
        assert {name: there[name] for name in fresh} == fresh
        assert not [name for name in there if name.endswith(".partial")]
    assert kills == 14  # two for the first manifest, four for each of three files


def test_going_on_does_not_ask_the_teacher_again(tmp_path: Path, small_files, monkeypatch: pytest.MonkeyPatch):
    """A resume that begins anew costs the whole night again."""
    asked = []
    monkeypatch.setattr(cache_writing, "write_shard", lambda *words: asked.append(words[1]) or cache_files.write_shard(*words))
    write(tmp_path)
    (tmp_path / "rows-00002.arrow").unlink()
    write(tmp_path)
    write(tmp_path)
    assert asked == [0, 1, 2, 2]


def test_a_small_disk_and_other_files_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"thesis\.txt"):
        write(tmp_path)
    monkeypatch.setattr(cache_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ResourceError, match=r"MB, 0\.0 MB free"):
        write(tmp_path / "new")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"top_k": 2}, RecipeError, "one answer a row"),
        ({"teacher": Slow(), "top_k": 6}, RecipeError, "the teacher has 5 words"),
    ],
)
def test_more_than_there_is_cannot_be_kept(words, error, says, tmp_path: Path):
    with pytest.raises(error, match=says):
        write(tmp_path, **words)


def test_a_number_that_is_none_is_never_written(tmp_path: Path):
    """A NaN on the disk would stop a training weeks later."""
    teacher = Slow()
    teacher.table.weight[6] = float("nan")
    with pytest.raises(NonFiniteError, match=r"row 2"):
        write(tmp_path / "nan", teacher)
    teacher.table.weight[6] = 1e5
    with pytest.raises(NonFiniteError, match="float16 is too small for row 2"):
        write(tmp_path / "large", teacher, dtype="float16")


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


def test_a_hash_costs_microseconds():
    """A slow hash would eat what the cache saves: 64 rows of 128 tokens in less than 5 ms."""
    batch = {"input_ids": torch.randint(30_000, (64, 128)), "attention_mask": torch.ones(64, 128, dtype=torch.long)}
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        keys = row_keys(batch, ("input_ids",)).keys
        best = min(best, time.perf_counter() - start)
    assert best < 5e-3
    assert keys[0] == hashlib.blake2b(batch["input_ids"][0].numpy().tobytes(), digest_size=16).digest()
