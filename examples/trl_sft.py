"""The objective in TRL's SFTTrainer, with LoRA and the base (the adapter off) as online teacher. TRL is not in our lock:

    pip install trl==1.16.0
    python -m examples.trl_sft

A tiny random Llama and a word tokenizer made here: nothing is downloaded. Printed: the loss of every step.
"""

import random
import sys
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from components.models import build_word_tokenizer
from components.objectives.presets import PRESETS
from components.training.plain_trainer import TokenObjectiveLoss

WORDS = [f"w{number}" for number in range(20)]


class ObjectiveSFTTrainer(SFTTrainer):
    """TRL's own compute_loss makes a second forward pass for its metrics when there is a loss function; this does not."""

    compute_loss = Trainer.compute_loss


def main(num_steps: int = 20, preset: str = "uncertainty_aware") -> list[float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(WORDS, max_length=64)
    loss = TokenObjectiveLoss(PRESETS[preset])
    with tempfile.TemporaryDirectory() as work:
        arguments = SFTConfig(
            output_dir=work,
            max_steps=num_steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        trainer = ObjectiveSFTTrainer(
            build_model(tokenizer),
            arguments,
            train_dataset=conversations(200),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[loss.callback],
        )
        trainer.compute_loss_func = loss
        loss.attach(trainer.model)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes))


def conversations(num_rows: int) -> Dataset:
    """Prompt and completion: TRL masks the prompt itself."""
    draw = random.Random(0)
    asked = [[draw.choice(WORDS) for _ in range(draw.randint(2, 5))] for _ in range(num_rows)]
    return Dataset.from_dict({"prompt": [" ".join(words) for words in asked], "completion": [" " + words[0] for words in asked]})


if __name__ == "__main__":
    print(main(*(int(number) for number in sys.argv[1:])))
