"""The sections `data` and `data_contract` of params.yaml: what is read, and what it must keep to."""

from typing import Annotated, Literal

from pydantic import Field

from components.param_types import Count, Fraction, Section


class HubDataParams(Section):
    """A data set of the hub at a pinned revision; its files are read like files of yours."""

    hub_id: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    config: str | None = None
    split: str = "train"


class SourceParams(Section):
    """What is said of one source: a file or folder below data.path, or a hub id."""

    weight: Annotated[float, Field(gt=0.0)] | None = None
    """Relative number of rows among the sources that have one (a folder: of all its files together); None takes all rows."""
    licence: str | None = None
    """As given by whoever published it; it stands in the data card."""
    max_examples: Count | None = None


class DataParams(Section):
    source: Literal["embedded", "files"] = "embedded"
    path: str = "inputs/data"
    hub: tuple[HubDataParams, ...] = ()
    sources: dict[str, SourceParams] = Field(default_factory=dict)
    test_path: str = "inputs/test"
    """In-domain test set of your own. While nothing lies there, the test split is drawn from the rows (`test_fraction`)."""
    ood_path: str = "inputs/ood"
    chat_template: str = "from_tokenizer"
    """`from_tokenizer`, one of components.data.chat_templates, or the path of a .jinja file."""
    max_length: Annotated[int, Field(ge=8)] = 512
    max_examples: Count | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05


class DataContractParams(Section):
    """What the data must keep to; the fractions are of the rows read and, from `truncated` on, of the rows used."""

    quarantine: tuple[
        Literal["duplicate", "near_duplicate", "ood_overlap", "test_overlap", "encoding", "secret", "personal_data", "language"],
        ...,
    ] = ()
    """Findings that set a row aside instead of counting against its limit."""
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    """ISO 639 codes that rows may be written in; none: any."""
    near_duplicate_similarity: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    overlap_words: Annotated[int, Field(ge=4, le=50)] = 13
    max_rejected_fraction: Fraction = 0.01
    max_duplicate_fraction: Fraction = 0.05
    max_near_duplicate_fraction: Fraction = 0.05
    max_ood_overlap_fraction: Fraction = 0.0
    max_test_overlap_fraction: Fraction = 0.0
    max_encoding_fraction: Fraction = 0.01
    max_secret_fraction: Fraction = 0.0
    max_personal_data_fraction: Fraction = 0.05
    max_other_language_fraction: Fraction = 0.05
    max_truncated_fraction: Fraction = 0.25
