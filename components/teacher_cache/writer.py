"""Making the teacher cache: one forward pass of the frozen base over the training rows, shard by shard.

A killed capture loses at most the shard it was working on: finished shards wait under the work folder, which is keyed by the
cache's identity and the size of a shard, and the same command goes on from there.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from components.artifacts import fingerprint_file, fingerprint_json, publish_folder, write_text
from components.data.training_rows import TrainingRow, count_targets
from components.errors import ModelError
from components.teacher_cache.capture import CapturedTokens, capture_tokens, concatenate
from components.teacher_cache.format import CacheIdentity, CacheManifest


def count_kept(row: TrainingRow, positions: str) -> int:
    """Tokens whose laws the cache keeps: the targets, or all that something predicts."""
    return count_targets(row) if positions == "targets" else len(row.input_ids) - 1


@dataclass(frozen=True)
class CaptureSettings:
    batch_tokens: int
    shard_tokens: int


def write_cache(
    model: torch.nn.Module,
    rows: Sequence[TrainingRow],
    identity: CacheIdentity,
    settings: CaptureSettings,
    *,
    target: Path,
    work: Path,
) -> CacheManifest:
    """Capture every distinct row and publish the cache at `target`; resumes from finished shards under `work`."""
    work = work / fingerprint_json({**asdict(identity), "shard_tokens": settings.shard_tokens})
    work.mkdir(parents=True, exist_ok=True)
    distinct = list({row.fingerprint: index for index, row in enumerate(rows)}.values())
    shards = plan_shards([rows[index] for index in distinct], settings.shard_tokens, identity.positions)
    num_tokens = sum(count_kept(row, identity.positions) for shard in shards for row in shard)
    model.eval()
    with tqdm(total=num_tokens, unit="tok", desc="cache_teacher") as progress:
        for number, shard in enumerate(shards):
            if not _is_finished(work, number):
                _write_shard(work, number, _capture_shard(model, shard, identity, settings.batch_tokens))
            progress.update(sum(count_kept(row, identity.positions) for row in shard))
    return _publish(work, target, len(shards), identity, num_tokens, len(distinct), _vocabulary_size(model))


def plan_shards(rows: Sequence[TrainingRow], shard_tokens: int, positions: str = "targets") -> list[list[TrainingRow]]:
    """Rows in order, a new shard as soon as the last one holds `shard_tokens` tokens."""
    shards: list[list[TrainingRow]] = [[]]
    size = 0
    for row in rows:
        if size >= shard_tokens:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += count_kept(row, positions)
    return shards


def _capture_shard(
    model: torch.nn.Module, rows: list[TrainingRow], identity: CacheIdentity, batch_tokens: int
) -> dict[str, Tensor]:
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    captured: dict[int, CapturedTokens] = {}
    for batch in _batches_by_tokens(order, rows, batch_tokens):
        for index, tokens in zip(batch, _capture_batch(model, [rows[i] for i in batch], identity), strict=True):
            captured[index] = tokens
    columns = concatenate([captured[index] for index in range(len(rows))])
    counts = torch.tensor([0, *(count_kept(row, identity.positions) for row in rows)])
    names = torch.tensor([list(bytes.fromhex(row.fingerprint)) for row in rows], dtype=torch.uint8)
    return {**columns, "record_starts": counts.cumsum(0), "record_names": names}


def _batches_by_tokens(order: list[int], rows: list[TrainingRow], batch_tokens: int) -> list[list[int]]:
    """Batches of rows of like length (ascending) whose padded size stays within `batch_tokens`."""
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * len(rows[index].input_ids) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@torch.no_grad()
def _capture_batch(model: torch.nn.Module, rows: list[TrainingRow], identity: CacheIdentity) -> list[CapturedTokens]:
    width = max(len(row.input_ids) for row in rows)
    device = next(model.parameters()).device
    input_BT = torch.tensor([[*row.input_ids, *[0] * (width - len(row.input_ids))] for row in rows], device=device)
    present_BT = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows], device=device)
    target_BT = torch.tensor([[*row.is_target, *[False] * (width - len(row.is_target))] for row in rows], device=device)[:, 1:]
    if identity.positions == "all":
        target_BT = present_BT[:, 1:] > 0
    logits_BTV = model(input_ids=input_BT, attention_mask=present_BT, use_cache=False).logits[:, :-1]
    tokens = capture_tokens(logits_BTV[target_BT], input_BT[:, 1:][target_BT], identity.num_entries, identity.temperature)
    counts_B = target_BT.sum(1)
    _refuse_non_finite(tokens.label_logprob, counts_B, rows)
    ends = counts_B.cumsum(0).tolist()
    return [tokens.slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _refuse_non_finite(label_logprob_N: Tensor, counts_B: Tensor, rows: list[TrainingRow]) -> None:
    """A base that gives NaN, or rules a target out, would only be noticed as a broken loss deep in the training."""
    is_broken_N = ~torch.isfinite(label_logprob_N)
    if is_broken_N.any():
        row = rows[int((counts_B.cpu().cumsum(0) > int(is_broken_N.int().argmax())).int().argmax())]
        raise ModelError(
            f"the base model's loss is not finite on row {row.fingerprint} (it begins with tokens {row.input_ids[:8]}). "
            "Try teacher_cache.precision: fp32, check the model's weights, or remove that row from the data"
        )


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _is_finished(work: Path, number: int) -> bool:
    """A shard counts when its checksum was written after it and still holds; anything else is done again."""
    file = work / _shard_name(number)
    checksum = file.with_suffix(".xxh3")
    return file.exists() and checksum.exists() and checksum.read_text() == fingerprint_file(file)


def _write_shard(work: Path, number: int, tensors: dict[str, Tensor]) -> None:
    file = work / _shard_name(number)
    temporary = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, file)
    write_text(file.with_suffix(".xxh3"), fingerprint_file(file))


def _publish(
    work: Path, target: Path, num_shards: int, identity: CacheIdentity, num_tokens: int, num_records: int, vocabulary_size: int
) -> CacheManifest:
    names = [_shard_name(number) for number in range(num_shards)]
    manifest = CacheManifest(
        identity=identity,
        vocabulary_size=vocabulary_size,
        num_records=num_records,
        num_tokens=num_tokens,
        num_bytes=sum((work / name).stat().st_size for name in names),
        checksums={name: fingerprint_file(work / name) for name in names},
    )
    with publish_folder(target) as staging:
        for name in names:
            shutil.copy2(work / name, staging / name)
        manifest.write(staging)
    shutil.rmtree(work)
    return manifest


def _vocabulary_size(model: torch.nn.Module) -> int:
    return int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
