"""DistillKit's compressed logprobs: from the bytes of its parquet columns to ids and logprobs, in numpy alone.

After the published description and layout of arcee-ai/DistillKit ("Logit Compression" in its README; distillkit/compression:
config, bitpack, monotonic_logprobs; looked up in November 2026). A token's bytes, one part after the other, little-endian:

    compressed_logprobs   exact_k values of exact_dtype, the most likely tokens first
                          one coefficient of term_dtype per polynomial term, over the place 0 .. k - exact_k - 1
                          per residual bin: a scale of scale_dtype, then its elements of element_bits, a byte-aligned bit stream
    bytepacked_indices    k ids of ceil(log2 d) bits, most significant bit first, the last byte filled with zeros

The settings are not in the parquet file: the capture leaves them beside it as `compression_config.yaml`.

Approximate: the curve is evaluated in float64, its writer used term_dtype (the difference is float32 rounding; a half-precision
term_dtype is refused). A curve over the rank can exceed what came before it, which no sorted law does: it is cut at the last
exact value, which DistillKit's own reader does not do.

Shapes: T tokens, B bytes of one token, K entries.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import DataError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
TERM_DTYPES = ("float32", "float64")
SPECIAL_TERMS = ("sqrt", "exp")
SETTINGS_FILE = "compression_config.yaml"


@dataclass(frozen=True)
class ResidualBin:
    scale_dtype: str
    element_bits: int
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return WIDTHS[self.scale_dtype] + (self.element_bits * self.num_elements + 7) // 8


@dataclass(frozen=True)
class DistillKitSettings:
    """`logprob_compressor` of the capture, with its names and defaults. Error diffusion changes the writing, not the reading."""

    d: int
    k: int
    exact_k: int
    residual_bins: tuple[ResidualBin, ...] = ()
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        return (self.d - 1).bit_length()

    @property
    def id_bytes(self) -> int:
        return (self.k * self.id_bits + 7) // 8

    @property
    def logprob_bytes(self) -> int:
        values = self.exact_k * WIDTHS[self.exact_dtype] + len(self.polynomial_terms) * WIDTHS[self.term_dtype]
        return values + sum(part.num_bytes for part in self.residual_bins)


def read_settings(file: Path) -> DistillKitSettings:
    """The settings of a capture from its YAML file; what is missing, unknown or impossible is refused."""
    import yaml

    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read ({error}). Copy it from the folder that DistillKit's capture wrote") from None
    try:
        bins = tuple(ResidualBin(**part) for part in fields.pop("residual_bins"))
        terms = tuple(fields.pop("polynomial_terms", None) or ())
        settings = DistillKitSettings(**fields, residual_bins=bins, polynomial_terms=terms)
        fault = _fault_of(settings)
    except (AttributeError, KeyError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        raise DataError(f"{file}: not settings of a capture that can be read ({fault}). Copy the capture's own file")
    return settings


def _fault_of(settings: DistillKitSettings) -> str | None:
    whole = [settings.d, settings.k, settings.exact_k]
    whole += [number for part in settings.residual_bins for number in (part.element_bits, part.num_elements)]
    if not all(type(number) is int for number in whole) or not 0 <= settings.exact_k <= settings.k <= settings.d:
        return f"d {settings.d}, k {settings.k} and exact_k {settings.exact_k} must be whole numbers, exact_k <= k <= d"
    for name in (settings.exact_dtype, *(part.scale_dtype for part in settings.residual_bins)):
        if name not in WIDTHS:
            return f"dtype {name!r} is none of {', '.join(WIDTHS)}"
    if settings.term_dtype not in TERM_DTYPES:
        return f"term_dtype {settings.term_dtype!r}: curves evaluated in half precision are not imitated"
    if any(not 1 <= part.element_bits <= 64 or part.num_elements < 1 for part in settings.residual_bins):
        return "a residual bin must have 1 to 64 bits an element, and elements"
    if sum(part.num_elements for part in settings.residual_bins) > settings.k - settings.exact_k:
        return f"residual bins for more than k - exact_k = {settings.k - settings.exact_k} entries"
    unknown = [term for term in settings.polynomial_terms if term not in SPECIAL_TERMS and not _is_power(term)]
    return f"polynomial terms {unknown} are neither powers nor {SPECIAL_TERMS}" if unknown else None


def _is_power(term: Any) -> bool:
    return type(term) is int and term >= 0


def decode_ids(packed_TB: Bytes, settings: DistillKitSettings) -> npt.NDArray[np.int64]:
    """`bytepacked_indices` as token ids, [T, K], the most likely first."""
    return unpack_bits(packed_TB, settings.id_bits, settings.k)


def decode_logprobs(bytes_TB: Bytes, settings: DistillKitSettings) -> npt.NDArray[np.float32]:
    """`compressed_logprobs` as logprobs, [T, K], in the order of the ids."""
    exact_bytes = settings.exact_k * WIDTHS[settings.exact_dtype]
    values_TK = np.zeros((len(bytes_TB), settings.k))
    values_TK[:, : settings.exact_k] = read_floats(bytes_TB[:, :exact_bytes], settings.exact_dtype)
    curve_TM = values_TK[:, settings.exact_k :]
    num_terms = len(settings.polynomial_terms)
    start = exact_bytes + num_terms * WIDTHS[settings.term_dtype]
    with np.errstate(over="ignore", invalid="ignore"):  # broken bytes become NaN, which is refused where the law is checked
        if num_terms:
            coefficients_TC = read_floats(bytes_TB[:, exact_bytes:start], settings.term_dtype)
            curve_TM += coefficients_TC @ _terms(settings, curve_TM.shape[1])
        place = 0
        for part in settings.residual_bins:
            elements_TE = _dequantise(bytes_TB[:, start : start + part.num_bytes], part)
            curve_TM[:, place : place + part.num_elements] += _round_to(elements_TE, settings.exact_dtype)
            start, place = start + part.num_bytes, place + part.num_elements
        if settings.delta_encoding:
            values_TK = _round_to(values_TK.cumsum(axis=1), settings.exact_dtype)
        bound_T1 = values_TK[:, settings.exact_k - 1 : settings.exact_k] if settings.exact_k else np.zeros((len(bytes_TB), 1))
        np.minimum(values_TK[:, settings.exact_k :], bound_T1, out=values_TK[:, settings.exact_k :])
        return values_TK.astype(np.float32)


def _terms(settings: DistillKitSettings, num_places: int) -> Floats:
    """Each polynomial term at each place, [terms, places]."""
    places = np.linspace(0, 1, num_places) if settings.normalize_t else np.arange(num_places, dtype=np.float64)
    functions = {"sqrt": np.sqrt, "exp": np.exp}
    return np.stack([functions[term](places) if isinstance(term, str) else places**term for term in settings.polynomial_terms])


def _dequantise(bytes_TB: Bytes, part: ResidualBin) -> Floats:
    """A bin's elements times its scale, [T, elements]: signed with an offset, or -1 and 1 where an element has one bit."""
    width = WIDTHS[part.scale_dtype]
    elements_TE = unpack_bits(bytes_TB[:, width:], part.element_bits, part.num_elements).astype(np.float64)
    signed_TE = 2 * elements_TE - 1 if part.element_bits == 1 else elements_TE - 2.0 ** (part.element_bits - 1)
    return signed_TE * read_floats(bytes_TB[:, :width], part.scale_dtype)


def read_floats(bytes_TB: Bytes, dtype: str) -> Floats:
    """Little-endian floats of a named dtype."""
    bytes_TB = np.ascontiguousarray(bytes_TB)
    if dtype == "bfloat16":
        return (bytes_TB.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bytes_TB.view(f"<f{WIDTHS[dtype]}").astype(np.float64)


def _round_to(values: Floats, dtype: str) -> Floats:
    """The nearest values that the dtype has."""
    if dtype != "bfloat16":
        return values.astype(dtype).astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32)
    even = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return (even & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def unpack_bits(packed_TB: Bytes, num_bits: int, num_elements: int) -> npt.NDArray[np.int64]:
    """A byte-aligned stream of unsigned numbers, most significant bit first, [T, elements]."""
    bits = np.unpackbits(packed_TB, axis=1)[:, : num_bits * num_elements].reshape(len(packed_TB), num_elements, num_bits)
    values_TE = np.zeros((len(packed_TB), num_elements), dtype=np.int64)
    for bit in range(num_bits):
        values_TE = (values_TE << 1) | bits[:, :, bit]
    return values_TE
