"""The goals of size and error, on laws of a large vocabulary; real texts are in docs/teacher-cache.md. Nothing here is timed."""

import pytest
import torch

from benchmarks.cache_size import store_ours, synthetic
from benchmarks.other_cache_formats import dense_gradient

SURE_BYTES, OVERALL_BYTES, LARGEST_ERROR = 64, 110, 0.03


@pytest.mark.parametrize("vocabulary_size", [32_000, 128_256])
def test_the_default_settings_keep_to_the_goals_of_size_and_error(vocabulary_size: int) -> None:
    teacher_NV, students = next(synthetic(vocabulary_size, 64))
    ours = store_ours(teacher_NV, 64, 0.03, 12)
    assert ours.bytes_per_token < OVERALL_BYTES
    for student_NV in students.values():
        dense_NV = dense_gradient(teacher_NV, student_NV)
        assert float((ours.gradient(student_NV).double() - dense_NV).norm() / dense_NV.norm()) < LARGEST_ERROR
    is_sure_N = teacher_NV.softmax(1).amax(1) > 0.8
    assert is_sure_N.any() and store_ours(teacher_NV[is_sure_N], 64, 0.03, 12).bytes_per_token < SURE_BYTES


def test_the_default_settings_are_those_that_the_goals_are_held_with() -> None:
    from components.params import TeacherCacheParams

    defaults = TeacherCacheParams()
    assert (defaults.max_entries, defaults.tail_mass, defaults.probability_bits) == (64, 0.03, 12)
    assert torch.get_default_dtype() == torch.float32
