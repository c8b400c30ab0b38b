"""Cases in a tree of many patients, studies and series, told apart by what the files refer to.

A case is a structure set, the CT series that it was drawn on, and a plan on it with its dose. Paths and
file names mean nothing here: archives arrange their trees as they like.
"""

from __future__ import annotations

import filecmp
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmat_diffusion.dicom.attributes import about, quiet, text
from vmat_diffusion.dicom.folder import MULTI_FRAME_CT, Found, each_file, require_folder
from vmat_diffusion.dicom.matching import images_of_contours, references_of
from vmat_diffusion.dicom.rtdose_read import plan_uid
from vmat_diffusion.dicom.rtplan_read import structure_set_uid
from vmat_diffusion.errors import CaseError

_KINDS = ("CT", "RTSTRUCT", "RTPLAN", "RTDOSE")
_CLASH = "another file with other content has the same SOP instance UID; remove one of them"


@dataclass(frozen=True)
class TreeFile:
    """One file as far as grouping needs it.

    `refers_to` are UIDs: of images and series (RTSTRUCT), of the structure set (RTPLAN) or of the plan
    (RTDOSE). `frames` are frames of reference; `drawn_on` are the images that the contours name.
    """

    path: Path = field(repr=False)
    kind: str
    uid: str
    series_uid: str
    study_uid: str
    patient_id: str = field(repr=False)
    frames: frozenset[str]
    refers_to: frozenset[str]
    drawn_on: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TreeCase:
    """The files of one case. `id` comes from their UIDs alone; `patient_id` is what the files say."""

    id: str
    patient_id: str = field(repr=False)
    images: tuple[TreeFile, ...]
    structure_set: TreeFile
    plan: TreeFile | None
    doses: tuple[TreeFile, ...]

    @property
    def named_files(self) -> Mapping[str, Path]:
        """The files by plain new names."""
        out = {f"CT_{k:04d}.dcm": image.path for k, image in enumerate(self.images, start=1)}
        out["RS.dcm"] = self.structure_set.path
        if self.plan is not None:
            out["RP.dcm"] = self.plan.path
        number = len(self.doses) > 1
        return out | {
            f"RD_{k}.dcm" if number else "RD.dcm": dose.path for k, dose in enumerate(self.doses, start=1)
        }


@quiet()
def cases_in_tree(root: str | Path) -> tuple[tuple[TreeCase, ...], tuple[str, ...]]:
    """The cases below a folder, in the order of their ids, and a sentence for everything left out.

    The sentences name objects by the end of their UID and damaged files by their number in the order of
    the paths. Files of one UID but different content are all left out. Raises CaseError where there is
    no such folder or it holds no DICOM file. No file is kept in memory.
    """
    root = Path(root)
    require_folder(root)
    files: dict[str, TreeFile] = {}
    clashing: set[str] = set()
    left_out: Counter[str] = Counter()
    for found in each_file(root, numbered=True):
        if found is None:
            left_out["not DICOM"] += 1
        elif isinstance(found, CaseError):
            left_out[f"damaged: {found}"] += 1
        elif found.kind not in _KINDS:
            converts = found.kind == MULTI_FRAME_CT
            remedy = "convert it to one image for each slice" if converts else "which no case needs"
            left_out[f"{found.kind}, {remedy}"] += 1
        else:
            try:
                with about(found.label):
                    file = _tree_file(found)
            except CaseError as fault:
                left_out[f"damaged: {fault}"] += 1
                continue
            first = files.setdefault(file.uid, file)
            if first is not file:
                same = filecmp.cmp(first.path, file.path, shallow=False)
                left_out["a copy of another file" if same else _CLASH] += 1
                clashing |= set() if same else {file.uid}
    if not files and not left_out.keys() - {"not DICOM"}:
        raise CaseError(
            f"folder {root.name or root} holds no DICOM file; give the folder with the DICOM tree"
        )
    for uid in clashing:
        del files[uid]
        left_out[_CLASH] += 1
    cases, remarks = _grouped(_index(files))
    counted = [f"{n} {'file' if n == 1 else 'files'} left out: {why}" for why, n in sorted(left_out.items())]
    return cases, (*remarks, *counted)


def _tree_file(found: Found) -> TreeFile:
    data, kind = found.dataset, found.kind
    frames = {text(data, "FrameOfReferenceUID")}
    refers_to: set[str] = set()
    if kind == "RTSTRUCT":
        images, series, frames = references_of(found)
        refers_to = images | series
    elif kind == "RTPLAN":
        refers_to = {structure_set_uid(data)}
    elif kind == "RTDOSE":
        refers_to = {plan_uid(found)}
    if not found.uid:
        raise CaseError("SOPInstanceUID (0008,0018) is missing; export the file again")
    return TreeFile(
        path=found.path,
        kind=kind,
        uid=found.uid,
        series_uid=text(data, "SeriesInstanceUID"),
        study_uid=text(data, "StudyInstanceUID"),
        patient_id=text(data, "PatientID"),
        frames=frozenset(frames - {""}),
        refers_to=frozenset(refers_to - {""}),
        drawn_on=frozenset(images_of_contours(found) if kind == "RTSTRUCT" else ()),
    )


Plans = list[tuple[TreeFile | None, tuple[TreeFile, ...]]]


@dataclass(frozen=True)
class _Index:
    """The files by what one asks of them; lists are in the order of UIDs."""

    series: Mapping[str, tuple[TreeFile, ...]]
    series_of_image: Mapping[str, str]
    structure_sets: tuple[TreeFile, ...]
    plans_and_doses: tuple[TreeFile, ...]
    referring_to: Mapping[str, Sequence[TreeFile]]
    loose: Mapping[str, Sequence[TreeFile]]


def _index(files: Mapping[str, TreeFile]) -> _Index:
    """`loose` holds, by study, plans and doses that refer to nothing that is there."""
    series: dict[str, list[TreeFile]] = defaultdict(list)
    referring: dict[str, list[TreeFile]] = defaultdict(list)
    loose: dict[str, list[TreeFile]] = defaultdict(list)
    ordered = [files[uid] for uid in sorted(files)]
    for file in ordered:
        if file.kind == "CT":
            series[file.series_uid].append(file)
        elif file.kind in ("RTPLAN", "RTDOSE"):
            uid = next(iter(file.refers_to), "")
            # A plan on a structure set that is absent is no plan for another one; a dose may be.
            if uid in files or (uid and file.kind == "RTPLAN"):
                referring[uid].append(file)
            else:
                loose[file.study_uid].append(file)
    return _Index(
        series={uid: tuple(images) for uid, images in series.items()},
        series_of_image={i.uid: uid for uid, images in series.items() for i in images},
        structure_sets=tuple(f for f in ordered if f.kind == "RTSTRUCT"),
        plans_and_doses=tuple(f for f in ordered if f.kind in ("RTPLAN", "RTDOSE")),
        referring_to=referring,
        loose=loose,
    )


def _grouped(index: _Index) -> tuple[tuple[TreeCase, ...], list[str]]:
    """The cases, and a sentence for each object that is in none."""
    drawn: dict[str, list[TreeFile]] = defaultdict(list)
    remarks: list[str] = []
    cases: list[TreeCase] = []
    for structure_set in index.structure_sets:
        uid, why = _series_of(structure_set, index)
        if why:
            remarks.append(f"{_name(structure_set)} left out: {why}")
        else:
            drawn[uid].append(structure_set)
    for uid, structure_sets in drawn.items():
        plans = {s.uid: _plans_of(s, index, alone=len(structure_sets) == 1) for s in structure_sets}
        for structure_set in structure_sets:
            if not plans[structure_set.uid] and any(plans.values()):
                remarks.append(
                    f"{_name(structure_set)} left out: no plan or dose is made on it, but on another "
                    "structure set of its CT"
                )
            else:
                cases += _cases_of(structure_set, index.series[uid], plans[structure_set.uid])
    used = {f.uid for case in cases for f in (case.plan, *case.doses) if f}
    remarks += [
        f"CT series ...{uid[-12:]} ({len(images)} images) left out: no structure set is drawn on it"
        for uid, images in index.series.items()
        if uid not in drawn
    ]
    remarks += [
        f"{_name(file)} left out: {_why_unused(file, index)}"
        for file in index.plans_and_doses
        if file.uid not in used
    ]
    return tuple(sorted(cases, key=lambda c: c.id)), sorted(remarks)


def _why_unused(file: TreeFile, index: _Index) -> str:
    if not file.refers_to or file in index.loose.get(file.study_uid, ()):
        return "it refers to nothing in the tree, and no single structure set of its study fits it"
    if file.kind == "RTPLAN" and not any(s.uid in file.refers_to for s in index.structure_sets):
        return "the structure set that it was made on is absent; add it"
    if file.kind == "RTPLAN":
        return "it has no dose while another plan on its structure set has, or that set makes no case"
    return "its plan makes no case"


def _name(file: TreeFile) -> str:
    return f"{file.kind} ...{file.uid[-12:]}"


def _series_of(structure_set: TreeFile, index: _Index) -> tuple[str, str]:
    """The CT series that a structure set was drawn on, or "" and why there is none.

    By its images; where it names none that is there, by its frame of reference.
    """
    # The images that the contours name come first: the header may list all series of a 4D scan.
    of_image = index.series_of_image
    hits = Counter(of_image[uid] for uid in structure_set.drawn_on & of_image.keys())
    if not hits:
        hits = Counter(uid for uid in structure_set.refers_to if uid in index.series)
        hits.update(of_image[uid] for uid in structure_set.refers_to & of_image.keys())
    if not hits:
        hits = Counter(uid for uid, images in index.series.items() if images[0].frames & structure_set.frames)
    if not hits:
        return "", "the images that it was drawn on are absent; add them"
    most = max(hits.values())
    fitting = [uid for uid, n in hits.items() if n == most]
    if len(fitting) > 1:
        return "", f"it fits {len(fitting)} CT series equally well; keep one of them"
    if {i.patient_id for i in index.series[fitting[0]]} != {structure_set.patient_id}:
        return "", "its images bear another patient's ID; export both again"
    return fitting[0], ""


def _plans_of(structure_set: TreeFile, index: _Index, *, alone: bool) -> Plans:
    """The plans made on a structure set with their doses; None stands for a plan that is absent.

    A plan that names no structure set, and a dose whose plan is absent, count where frame of reference
    and study are the same and no other structure set is drawn on the CT.
    """

    def near(file: TreeFile) -> bool:
        same_frame = not file.frames or bool(file.frames & structure_set.frames)
        return alone and same_frame and file.patient_id == structure_set.patient_id

    own = [f for f in index.loose.get(structure_set.study_uid, ()) if near(f)]
    plans = [f for f in index.referring_to.get(structure_set.uid, ()) if f.kind == "RTPLAN"]
    plans += [f for f in own if f.kind == "RTPLAN"]
    out: Plans = [(plan, tuple(index.referring_to.get(plan.uid, ()))) for plan in plans]
    loose: dict[frozenset[str], list[TreeFile]] = defaultdict(list)
    for dose in own:
        if dose.kind == "RTDOSE":
            loose[dose.refers_to].append(dose)
    return out + [(None, tuple(doses)) for doses in loose.values()]


def _cases_of(structure_set: TreeFile, images: Sequence[TreeFile], plans: Plans) -> list[TreeCase]:
    """One case for each plan with a dose; where no plan has one, a case for the plans as they are."""
    with_dose = [entry for entry in plans if entry[1]]
    entries: Plans = with_dose or plans or [(None, ())]
    out = []
    for plan, doses in entries:
        uids = [structure_set.uid, plan.uid if plan else "", *(d.uid for d in doses)]
        digest = hashlib.sha256("|".join(uids).encode()).hexdigest()[:12]
        out.append(
            TreeCase(f"case_{digest}", structure_set.patient_id, tuple(images), structure_set, plan, doses)
        )
    return out
