"""A model's way out, in one of four forms: checked first, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignflow.errors import ArtifactError, RecipeError
from alignflow.exporting.card import CARD_FILE, card
from alignflow.exporting.certified import adapter_files, certified
from alignflow.exporting.gguf import demand_llama_cpp, write_gguf
from alignflow.exporting.hub import (
    Content,
    demand_name,
    published_adapter_config,
    published_certificate,
    push,
    write_folder,
)
from alignflow.exporting.nf4 import demand_memory, write_nf4
from alignflow.exporting.ollama import modelfile
from alignflow.exporting.origin import Origin, origin_of
from alignflow.files import atomic_write_text, regular_files
from alignflow.merging import CERTIFICATE_FILE, Certificate
from alignflow.pipeline import is_adapter, model_named
from alignflow.settings import resolve_home
from alignflow.stages import ADAPTER, MANIFEST_FILE, MODEL, Record

Form = Literal["hub", "ollama", "gguf", "nf4"]
ENDINGS = {"hub": "-hub", "ollama": "-ollama", "gguf": ".gguf", "nf4": "-nf4"}
OPTIONS = {
    "repo": ("hub",),
    "public": ("hub",),
    "dry_run": ("hub",),
    "llama_cpp": ("gguf", "ollama"),
    "outtype": ("gguf", "ollama"),
    "quantize": ("gguf", "ollama"),
}
"""Option to the forms that it says something to."""
UNPUBLISHED = "base_model.json"
"""Beside an adapter: where its base is on this machine."""


class Exported(Record):
    """What an export made."""

    to: Form
    model: str
    """Directory of what was exported."""
    output: str | None
    """Folder or file that was written; None of a push."""
    url: str | None = None
    """Of the commit on the Hub."""
    size_bytes: int
    notes: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """What is to be known of it, and what to do next."""


class _Job(NamedTuple):
    """What is exported."""

    model: Path
    name: str
    certificate: Certificate | None
    """None of an adapter."""
    origin: Origin


class _Gguf(NamedTuple):
    """How a GGUF file is made."""

    checkout: Path | None
    """Of llama.cpp; None where no such file is wanted."""
    outtype: str
    quantize: str | None

    def write(self, model: Path, out: Path) -> None:
        """Converts a model; `demand_llama_cpp` has seen to it that there is a checkout."""
        assert self.checkout is not None
        write_gguf(model, out, self.checkout, self.outtype, self.quantize)


def export(
    model: Path | str,
    to: Form,
    *,
    output: Path | str | None = None,
    repo: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    llama_cpp: Path | str | None = None,
    outtype: str | None = None,
    quantize: str | None = None,
    home: Path | str | None = None,
) -> Exported:
    """Writes a merged model whose certificate passed in another form, or pushes it to the Hub.

    Args:
        model: A merged model, or for the Hub an adapter: its directory, a run (`last`), or
            `models:/NAME@champion`.
        to: `hub`, `ollama`, `gguf` or `nf4`.
        output: Folder or file to write; None is one here, named after the model. For the Hub it is
            written and nothing is pushed.
        repo: OWNER/NAME on the Hub; made private where there is none.
        public: Make the repository public.
        dry_run: Write what would be pushed, and push nothing.
        llama_cpp: Checkout of llama.cpp.
        outtype: Type of the GGUF file's weights; None is that of the model.
        quantize: Type that llama-quantize then makes of it, such as q4_k_m.
        home: Where runs and the local registry are; None is ALIGNFLOW_HOME or `.alignflow`.

    Raises:
        CertificateError: There is no certificate that passed.
        ArtifactError: A file changed since, or the model cannot be written so.
        RecipeError: The arguments do not fit together, or the Hub's token may not.
        StageError: A converter failed, or the Hub cannot be reached.
    """
    given = {"repo": repo, "public": public, "dry_run": dry_run, "llama_cpp": llama_cpp}
    _demand_options(to, {**given, "outtype": outtype, "quantize": quantize})
    checkout = Path(llama_cpp).expanduser() if llama_cpp else None
    if to == "gguf" or checkout:
        demand_llama_cpp(checkout, quantize)
    writes = to != "hub" or dry_run or output is not None
    if to == "hub":
        _demand_target(repo, writes)
    job = _job(model, to, resolve_home(home))
    if not writes:
        return _pushed(job, str(repo), public)
    out = Path(output).expanduser() if output else Path(f"{job.name}{ENDINGS[to]}")
    _demand_free(out)
    gguf = _Gguf(checkout, outtype or "auto", quantize)
    notes = _written(job, to, out, gguf, repo)
    size = _size(out)
    return Exported(to=to, model=str(job.model), output=str(out), size_bytes=size, notes=notes)


def _written(job: _Job, to: Form, out: Path, gguf: _Gguf, repo: str | None) -> list[str]:
    """Writes a form; what is to be known of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    match to:
        case "hub":
            return _write_hub(job, out, repo)
        case "ollama":
            return _write_ollama(job, out, gguf)
        case "gguf":
            gguf.write(job.model, out)
            return []
        case "nf4":
            demand_memory(job.model)
            with _whole(out) as folder:
                return [write_nf4(job.model, folder)]


def _demand_options(to: Form, given: Mapping[str, Any]) -> None:
    """Refuses options that say nothing to this form.

    Raises:
        RecipeError: Names them, and the form that they are for.
    """
    if to not in ENDINGS:
        raise RecipeError(f"--to {to}: there is no such form. Forms: {', '.join(ENDINGS)}.")
    for name, value in given.items():
        if value and to not in OPTIONS[name]:
            option = f"--{name.replace('_', '-')}"
            raise RecipeError(f"{option} is for --to {' and '.join(OPTIONS[name])}, not {to}.")
    if to == "ollama" and (given["outtype"] or given["quantize"]) and not given["llama_cpp"]:
        raise RecipeError(
            "--outtype and --quantize need --llama-cpp DIR, which makes the GGUF file."
        )


def _demand_target(repo: str | None, writes: bool) -> None:
    if repo is None and not writes:
        raise RecipeError(
            "--to hub needs --repo OWNER/NAME; or --dry-run, which writes the folder and pushes "
            "nothing."
        )
    if repo is not None:
        demand_name(repo)


def _job(model: Path | str, to: Form, home: Path) -> _Job:
    """What is exported, its certificate checked.

    Raises:
        ArtifactError: It is an adapter, and the form needs a whole model.
    """
    directory = model_named(model, home)
    alone = is_adapter(directory)
    if alone and to != "hub":
        raise ArtifactError(
            f"{directory} is an adapter, and --to {to} needs a merged model. Merge it first: "
            f"`alignflow merge BASE {directory} OUT`, or the stage `merge` of a recipe."
        )
    certificate = None if alone else certified(directory)
    origin = origin_of(directory, certificate, home)
    return _Job(directory, _name(str(model), directory, origin), certificate, origin)


def _name(given: str, directory: Path, origin: Origin) -> str:
    """What the model is called: by the registry, else by its recipe, else by its folder."""
    registered = re.match(r"models:/([^/@]+)", given)
    if registered:
        return registered[1]
    if recipe := origin.report.get("registered_model") or origin.report.get("recipe"):
        return str(recipe)
    folder = directory.absolute()
    inside = folder.name in (MODEL, ADAPTER) and (folder.parent / MANIFEST_FILE).is_file()
    return f"alignflow-{folder.parent.name[:8]}" if inside else folder.name


def _demand_free(out: Path) -> None:
    """Refuses a place that is taken, or within an artifact, which would not verify any more.

    Raises:
        ArtifactError: Names the place.
    """
    if out.exists():
        raise ArtifactError(f"{out} exists. Remove it, or name another --output.")
    if any((parent / MANIFEST_FILE).is_file() for parent in out.absolute().parents):
        raise ArtifactError(
            f"{out} lies within an artifact, whose files are certified. Name another --output."
        )


@contextmanager
def _whole(out: Path) -> Generator[Path]:
    """A folder to write into, which gets its name when all of it is there."""
    making = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield making
        making.replace(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _write_hub(job: _Job, out: Path, repo: str | None) -> list[str]:
    with _whole(out) as folder:
        write_folder(_contents(job, repo), folder)
    name = repo or "OWNER/NAME"
    return [*_told(job), f"nothing was pushed; `hf upload {name} {out}` would"]


def _pushed(job: _Job, repo: str, public: bool) -> Exported:
    contents = _contents(job, repo)
    url = push(contents, repo, public=public, message=f"{job.name}, by alignflow")
    sizes = (c.stat().st_size if isinstance(c, Path) else len(c) for c in contents.values())
    return Exported(
        to="hub",
        model=str(job.model),
        output=None,
        url=url,
        size_bytes=sum(sizes),
        notes=_told(job),
    )


def _contents(job: _Job, repo: str | None) -> dict[str, Content]:
    """Files of the folder on the Hub; no rows are among them."""
    base, model = job.origin.base, job.model
    contents: dict[str, Content]
    if job.certificate is not None:
        contents = {name: model / name for name in job.certificate.files}
        contents[CERTIFICATE_FILE] = published_certificate(job.certificate)
    else:
        contents = {name: model / name for name in adapter_files(model) if name != UNPUBLISHED}
        contents["adapter_config.json"] = published_adapter_config(model, base.name)
    contents[CARD_FILE] = card(job.name, repo, job.origin, job.certificate).encode()
    return contents


def _told(job: _Job) -> list[str]:
    base = job.origin.base
    notes = [f"licence {base.licence}: {base.licence_from}"]
    if job.certificate is None and not base.is_on_hub:
        notes.append(f"its base {base.name} is not on the Hub: whoever loads it names their copy")
    return notes


def _write_ollama(job: _Job, out: Path, gguf: _Gguf) -> list[str]:
    weights = f"./{job.name}.gguf" if gguf.checkout else str(job.model.absolute())
    text = modelfile(job.model, weights)
    with _whole(out) as folder:
        folder.mkdir()
        if gguf.checkout:
            gguf.write(job.model, folder / weights)
        atomic_write_text(folder / "Modelfile", text)
    said = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    return [*said, f"next: ollama create {job.name} -f {out / 'Modelfile'}"]


def _size(out: Path) -> int:
    """Bytes of a file or of all files of a folder."""
    return sum(p.stat().st_size for p in regular_files(out)) if out.is_dir() else out.stat().st_size
