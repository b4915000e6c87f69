"""Laws of one row of JSON; what a bad row is told stands in the catalogue (`bad_input.py`)."""

from components.data.faults import BadRowError
from components.data.strict_json import decode_row


def test_a_key_that_is_repeated_is_found_in_linear_time() -> None:
    keys = [f"k{number}" for number in range(200_000)]  # in quadratic time: an hour
    fault = decode_row(("{" + ", ".join(f'"{key}": 1' for key in [*keys, keys[-1]]) + "}").encode())
    assert isinstance(fault, BadRowError)
    assert str(fault).startswith("the key 'k199999' occurs twice")
