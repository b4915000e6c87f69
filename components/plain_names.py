"""Names that a file gives to other files: a manifest, a registry's tag or a command line may come from somebody else.

folder / plain_name(entry["name"], "artifacts/teacher_cache/manifest.json")
"""

import re

from components.errors import ArtifactError

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}")
"""One step below a folder: no separator, no leading dot or dash, no control character, nothing that a shell or git expands."""


def plain_name(name: object, where: str) -> str:
    """The name, or an ArtifactError that says which file names what; nothing at such a path has been looked at."""
    if isinstance(name, str) and PLAIN.fullmatch(name):
        return name
    raise ArtifactError(
        f"{where} names {str(name)[:100]!r}, which is not the plain name of a file (letters, digits, `_.+=-`; no folder). "
        "Ballast writes no such name: do not use it before you know who did. A stage makes its outputs anew: dvc repro -f <stage>"
    )
