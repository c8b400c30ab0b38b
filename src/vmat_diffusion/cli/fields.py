"""Fields that several commands share: where to read, where to write, how to print, where jobs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vmat_diffusion.jobs.cluster import Cluster
from vmat_diffusion.options import Option, settings

TO_FILE = Option(short=("-o",), metavar="FILE")
TO_FOLDER = Option(short=("-o",), metavar="DIR")
CaseFolder = Annotated[
    Path,
    Field(description="Case: a folder with a CT and a structure set."),
    Option(positional=True, metavar="CASE", old=("--case",)),
]
PlanFile = Annotated[
    Path,
    Field(description="RTPLAN from any planning system."),
    Option(positional=True, metavar="PLAN", old=("--plan",)),
]
OutFolder = Annotated[Path, Field(description="Where to write: a folder for the results."), TO_FOLDER]
DataSetOut = Annotated[Path, Field(description="Where to write: the folder of the data set."), TO_FOLDER]
DataSet = Annotated[
    Path,
    Field(description="Folder of the cases: a data set with splits.json."),
    Option(metavar="DIR"),
]
MemoryGb = Annotated[float, Field(description="Memory limit of each worker, GB.")]
Overwrite = Annotated[bool, Field(description="Replace files of an earlier run.")]
Resume = Annotated[bool, Field(description="Go on with what is in the output folder.")]
Linkage = Annotated[
    Path | None,
    Field(description="Linkage table: write to this CSV which case came from which patient or folder."),
    Option(metavar="FILE", old=("--key",)),
]


@settings
class Facts:
    """Of a command that prints facts."""

    json: Annotated[bool, Field(description="Print one JSON object on stdout.")] = False


@settings
class Working(Facts):
    """Of a command that takes a while and prints facts."""

    quiet: Annotated[bool, Field(description="Show no progress."), Option(short=("-q",))] = False
    verbose: Annotated[
        bool, Field(description="Show every note of the progress as a line."), Option(short=("-v",))
    ] = False


@settings
class ClusterOptions:
    """Where the cases run."""

    cluster: Annotated[
        Literal["serial", "local", "slurm", "sge"],
        Field(
            description="Where the cases run: in this process, on this computer's cores, or as batch jobs."
        ),
    ] = Cluster.kind
    workers: Annotated[
        int | None, Field(description="Cases at a time; by default as many as cores and memory allow.")
    ] = Cluster.workers
    memory_gb: MemoryGb = Cluster.memory_gb
    queue: Annotated[str | None, Field(description="SLURM partition or SGE queue of the workers.")] = None
    project: Annotated[str | None, Field(description="SLURM account or SGE project that is charged.")] = None
    walltime: Annotated[
        str, Field(description="Time limit of each batch job."), Option(metavar="H:MM:SS")
    ] = Cluster.walltime
    batch_option: Annotated[
        tuple[str, ...], Field(description='Further directive of the batch jobs, such as "-pe smp 2".')
    ] = ()
    dashboard: Annotated[
        bool, Field(description="Serve a page that shows the workers, on this computer only.")
    ] = False

    def where(self) -> Cluster:
        """The cluster that is asked for. Raises InputError for what is out of range or without effect."""
        return Cluster(
            self.cluster,
            self.workers,
            self.memory_gb,
            self.queue,
            self.project,
            self.walltime,
            self.batch_option,
            self.dashboard,
        )
