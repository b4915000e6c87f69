"""Does preparation keep its memory when there are ten times the rows?

    python -m benchmarks.prepare_scale [ROWS ...]        # by default 100,000 and 1,000,000

Writes short generated examples as JSON lines and prepares them (parse, tokenise, inspect, compare, contract, splits, card), each
size in a process of its own. Peak memory is what the processes own (Pss without file pages would need root; so: the largest sum
of anonymous memory over the process and its workers, sampled ten times a second). File pages of the memory-mapped passes are the
kernel's to give back and not counted.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEMS = "bal cor din fer gul hom jat kel lom mur nid pol ras sut tev".split()
WORDS = [f"{stem}{end}" for stem in STEMS for end in ("a", "e", "in", "os", "um")]
CHILD = """
import sys, json, time
from pathlib import Path
from components.data.chat_templates import apply_template
from components.data_contract.overlap import OverlapIndex
from components.data_params import DataContractParams, DataParams
from components.data_preparation.gate import check
from components.data_preparation.inputs import sources_of_files
from components.data_preparation.prepare import prepare
from components.data_preparation.publish import count_rows, write_splits
from benchmarks.prepare_scale import build_tokenizer

folder = Path(sys.argv[1])
params = DataParams(source="files", path="rows.jsonl", test_path="none", max_length=128)
names = ("duplicate", "near_duplicate", "test_overlap", "rejected")
contract = DataContractParams(**{f"max_{name}_fraction": 1 for name in names})
tokenizer = build_tokenizer()
apply_template(tokenizer, "chatml")
(folder / "none").mkdir()
(folder / "out").mkdir()
marks = [time.perf_counter()]
prepared = prepare(sources_of_files(params, folder, folder), tokenizer, params, contract, OverlapIndex([], []), folder / "work")
marks.append(time.perf_counter())
check(prepared, tokenizer, params, contract, folder / "out", failures=folder / "failed")
marks.append(time.perf_counter())
write_splits(prepared, tokenizer, folder / "out")
marks.append(time.perf_counter())
counts = count_rows(prepared)
tokens = int(sum(len(t[0].combine_chunks().flatten()) for _, _, t in prepared.rows.tables(["tokenised.input_ids"])))
print(json.dumps({"rows": counts["rows_in"], "quarantined": counts["rows_quarantined"], "tokens": tokens,
                  "seconds": [b - a for a, b in zip(marks, marks[1:])]}))
"""


def build_tokenizer():  # type: ignore[no-untyped-def]
    """A byte-level BPE of 4,000 tokens, trained on the generated words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([" ".join(WORDS)] * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
    )


def write_rows(file: Path, num_rows: int) -> None:
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(num_rows):
            words = rng.choices(WORDS, k=30)
            row = {"instruction": f"{' '.join(words[:14])} {number}?", "output": " ".join(words[14:])}
            out.write(json.dumps(row) + "\n")


def owned_bytes(process: int) -> int:
    """Anonymous memory of a process and all below it."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                total += owned_bytes(int(child))
    except OSError:
        pass
    return total


def measure(num_rows: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", num_rows)
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        peak = 0
        while child.poll() is None:
            peak = max(peak, owned_bytes(child.pid))
            time.sleep(0.1)
        assert child.stdout is not None
        if child.returncode:
            raise SystemExit(f"preparation of {num_rows} rows ended with code {child.returncode}")
        wall = time.perf_counter() - started
        return {"wall_seconds": wall, "peak_bytes": peak} | json.loads(child.stdout.read().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, default=[100_000, 1_000_000])
    for num_rows in parser.parse_args().rows:
        found = measure(num_rows)
        passes, contract, splits = found["seconds"]  # type: ignore[misc]
        print(
            f"{found['rows']:>9,} rows, {found['tokens']:,} tokens: {found['wall_seconds']:.0f} s "
            f"(passes {passes:.0f}, contract {contract:.0f}, splits {splits:.0f}), "
            f"{int(str(found['peak_bytes'])) / 1e6:.0f} MB owned at most"
        )


if __name__ == "__main__":
    main()
