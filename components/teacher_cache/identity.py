"""The identity that a cache must have for the artifacts at hand: read from what `prepare_base` and `prepare_data` left."""

from components.artifacts import BASE_MODEL, DATA, read_json
from components.params import TeacherCacheParams
from components.teacher_cache.format import CacheIdentity


def expected_identity(params: TeacherCacheParams) -> CacheIdentity:
    base = read_json(BASE_MODEL / "base_model.json", made_by="prepare_base")
    data = read_json(DATA / "identity.json", made_by="prepare_data")
    return CacheIdentity(
        model_fingerprint=base["fingerprint"],
        tokenizer_fingerprint=data["tokenizer_fingerprint"],
        template_fingerprint=data["template_fingerprint"],
        data_fingerprint=data["train_fingerprint"],
        source=params.source,
        max_entries=params.max_entries,
        tail_mass=params.tail_mass,
        probability_bits=params.probability_bits,
        temperature=params.temperature,
        precision=params.precision,
        positions=params.positions,
    )
