"""The recipe that ``hf-shrink init`` writes: a complete run on CSV files, to be edited."""

STARTER = """\
# A complete run: fine-tune a teacher, start a smaller student from it, distil and prune, quantise, measure, write the card.
# Check it with `hf-shrink plan recipe.yaml`, run it with `hf-shrink run recipe.yaml`.
version: 1
task: text-classification
model: google-bert/bert-base-uncased  # a Hub id, a local folder, or package:NAME/PATH
output_dir: runs/my-model
seed: 0

data:
  dataset: my-data         # a folder with train.csv, validation.csv and test.csv; or one file; or a Hub id
  text_column: text
  label_column: label      # class names, or numbers from 0
  max_length: 128          # tokens

teacher:
  model: google-bert/bert-base-uncased
  training:                # words of transformers' TrainingArguments; leave this out for a teacher that is trained already
    num_train_epochs: 2
    learning_rate: 5e-5
    per_device_train_batch_size: 32
  # freeze: [embeddings]

student:
  start: teacher           # the fine-tuned teacher; `model` starts from the pretrained weights instead
  layers: 6                # evenly spaced, first and last in

distillation:
  alpha: 0.7               # 0.3 * task loss + 0.7 * distillation
  losses:
    - loss: forward_kl
      temperature: 2.0

pruning:
  - structure: ffn         # whole feed-forward neurons: a smaller, faster model
    sparsity: 0.5
    schedule: cubic

training:
  num_train_epochs: 3
  learning_rate: 5e-5
  per_device_train_batch_size: 32

quantization:
  bits: 8                  # remove the section to stop at the pruned model

measurement:
  batch_sizes: [1, 32]

publishing:
  language: [en]
"""
