"""Stage `score_tokens`: scores of every training token that need other models than the student and the frozen base.

    python -m flows.score_tokens

Takes the base, the training rows, `token_scores` (a cross-fitted or local reference, your own columns) and the settings of
`training` that members share. Leaves artifacts/token_scores/ (see docs/token-scores.md), without a column where none is wanted.
Finished members live under .work: a killed run goes on.
"""

import shutil
from typing import Any

from components.artifacts import DATA, ROOT, TOKEN_SCORES, WORK
from components.params import ComputeParams, TokenScoresParams, TrainingParams
from flows.stage_runner import main


def score_tokens(*, token_scores: TokenScoresParams, training: TrainingParams, compute: ComputeParams) -> dict[str, Any]:
    from components.data.tokenized import read_split
    from components.models import select_device
    from components.token_scores.identity import expected_identity
    from components.token_scores.rows import distinct_rows
    from components.token_scores.user_columns import files_fingerprint, read_user_columns
    from components.token_scores.writer import write_scores
    from components.training.reference_columns import reference_columns

    device, identity = select_device(compute), expected_identity(token_scores, training)
    rows = distinct_rows(read_split(DATA, "train"))
    work = WORK / "score_tokens" / identity.fingerprint
    columns: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if token_scores.columns:  # first: a fault in the user's file must not wait for the members
        file = ROOT / token_scores.columns_path
        columns |= read_user_columns(file, token_scores.columns, rows)
        sources["columns"] = files_fingerprint(file)
    if token_scores.reference != "none":
        made, read = reference_columns(rows, token_scores, training, device, work)
        columns, sources = {**columns, **made}, {**sources, **read}
    manifest = write_scores(columns, rows, identity, target=TOKEN_SCORES, sources=sources)
    shutil.rmtree(work, ignore_errors=True)
    return {"columns": " ".join(manifest.columns) or "none", "records": manifest.num_records, "tokens": manifest.num_tokens}


if __name__ == "__main__":
    main(score_tokens)
