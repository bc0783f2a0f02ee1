"""Everything alignflow raises, with its exit code and whether a stage that ends so is tried again."""

from __future__ import annotations


class AlignflowError(Exception):
    """A failure with an exit code. The message says what happened, where, and what to do."""

    exit_code = 70
    retried = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RecipeError(AlignflowError):
    """The recipe or the command line is wrong."""

    exit_code = 64


class DataError(AlignflowError):
    """A data source is absent, empty or bad."""

    exit_code = 65


class ArtifactError(AlignflowError):
    """An artifact, adapter or checkpoint is damaged or belongs to another base."""

    exit_code = 66


class OutOfMemory(AlignflowError):
    """The stage did not fit; its retry halves the micro-batch and keeps the effective batch."""

    exit_code = 67
    retried = True


class EvaluationError(AlignflowError):
    """A model could not be scored, which is never a score of zero."""

    exit_code = 68


class NumericsError(AlignflowError):
    """NaN or inf in loss, gradients or weights."""

    exit_code = 69


class StageError(AlignflowError):
    """Any other failure of a stage, which may pass."""

    exit_code = 70
    retried = True


class DiskSpaceError(AlignflowError):
    """A file system is full, or too small for what the stage will write."""

    exit_code = 71


class CertificateError(AlignflowError):
    """The merged model differs from base plus adapter."""

    exit_code = 72


class Preempted(AlignflowError):
    """The process was asked to go (SIGTERM, a node that is lost); its retry resumes."""

    exit_code = 75
    retried = True


BY_EXIT_CODE = {error.exit_code: error for error in AlignflowError.__subclasses__()}


def error_for(exit_code: int, message: str) -> AlignflowError:
    """The exception that a child's exit code stands for; unknown codes are a StageError."""
    return BY_EXIT_CODE.get(exit_code, StageError)(message)


OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "defaultcpualloc",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is one of the ways in which Python, torch or C++ say that memory has run out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = OUT_OF_MEMORY_TEXTS if isinstance(error, RuntimeError) else ()
    return any(text in str(error).lower() for text in texts)
