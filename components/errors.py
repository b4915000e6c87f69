"""Every error that Ballast raises for people.

    BallastError                 something the user can repair; exit code 1
    ├── ParamsError              params.yaml: unknown key, value out of range, impossible combination; exit code 2
    ├── InputError               a file or folder of the user's is missing, unreadable or of the wrong kind
    │   ├── DataError            a data set: malformed row, wrong schema, nothing left; exit code 3
    │   └── ModelError           a base model or tokenizer: unknown architecture, no chat template, no safetensors
    ├── ArtifactError            something an earlier stage left is missing, damaged or half written
    │   ├── CacheMismatchError   the teacher cache belongs to other data, tokenizer, model or settings
    │   └── ScoresMismatchError  the token scores belong to other data, or lack a column that is asked for
    ├── TrainingError            the training itself cannot go on (a loss that is not finite, for example)
    ├── TrackingError            the tracking server cannot be reached or refuses
    └── InterruptedStageError    the stage was told to stop and has kept its state; exit code 143

A message names the value, the place and the command that repairs it.
`assert` is for mistakes of ours, these are for mistakes of the world.
"""


class BallastError(Exception):
    exit_code = 1


class ParamsError(BallastError):
    exit_code = 2


class InputError(BallastError):
    """A file or folder given by the user cannot be used."""


class DataError(InputError):
    exit_code = 3


class ModelError(InputError):
    """A base model or tokenizer cannot be used."""


class ArtifactError(BallastError):
    """What an earlier stage left is missing, damaged or half written."""


class CacheMismatchError(ArtifactError):
    """The teacher cache was made for something else."""


class ScoresMismatchError(ArtifactError):
    """The token scores were made for something else."""


class TrainingError(BallastError):
    """Training cannot go on."""


class TrackingError(BallastError):
    """The tracking server cannot be used."""


class InterruptedStageError(BallastError):
    """Told to stop (SIGTERM): the state is kept, the stage is not complete."""

    exit_code = 143
