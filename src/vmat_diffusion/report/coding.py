"""Records and reports that may leave the clinic: codes in place of what says whose case it is.

Records never hold UIDs, names of input files or names of a clinic's machines. With `shareable`, reports and
tables hold none of them either, and beside them no names of structures and beams as written and no day of
planning. `coding_of` gathers what to replace; every record and report of a run goes through it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.dataset.nameless import is_plain_file_name
from vmat_diffusion.dataset.raw_cases import listing
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.machine import Machine, machine_names
from vmat_diffusion.origin import uid_code, without_uids
from vmat_diffusion.plan import Plan

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.qa import Verdict

_DoseT = TypeVar("_DoseT", Dose, Dose | None)
# A name of fewer characters cannot be told from other words of a sentence.
_NAME_CHARACTERS_MIN = 3
_PLAN_MACHINE = "the plan's machine"


@dataclass(frozen=True)
class Coding:
    """What replaces what: `files` in sentences, `machines` in all texts, `structures` where `shareable`."""

    files: Mapping[str, str]
    machines: Mapping[str, str]
    structures: Mapping[str, str]
    shareable: bool = False

    def text(self, text: str) -> str:
        """A text of a record with codes in place of names; names of files are looked for in sentences."""
        if self._exact and text in self._exact:
            return self._exact[text]
        if self._always is not None:
            text = self._always.sub(lambda found: self._exact[found[0]], text)
        return self._without_files(text)

    def _without_files(self, text: str) -> str:
        if self._in_sentences is not None and " " in text:
            text = self._in_sentences.sub(lambda found: self.files[found[0]], text)
        return without_uids(text)

    def tree(self, value: Any) -> Any:
        """Plain data with every text replaced by `text`, and keys that are structures or UIDs."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._key(k): self.tree(v) for k, v in value.items()}
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        return [self.tree(v) for v in value] if isinstance(value, list | tuple) else value

    def _key(self, key: Any) -> Any:
        return self.name(without_uids(key)) if isinstance(key, str) else key

    def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record for JSON; the names of the files that the run itself wrote stay."""
        kept = {key: record[key] for key in ("files",) if key in record}
        coded = {**self.tree({k: v for k, v in record.items() if k not in kept}), **kept}
        if self.shareable and isinstance(coded.get("created"), str):
            coded["created"] = coded["created"][:4]  # the day of planning is a date of the patient's
        return coded

    def report(
        self, *, case: Case, plan: Plan, machine: Machine, provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """These arguments of a report: steps and provenance in codes, with `shareable` names as well."""
        return {
            "case": self.case(case),
            "plan": self.plan(plan),
            "machine": self.machine(machine),
            "provenance": self.record(provenance),
        }

    def case(self, case: Case) -> Case:
        """The case with codes for its UIDs and in its steps; where `shareable`, without names as written."""
        source = case.source
        coded = replace(
            case,
            source=replace(
                source,
                study_uid=uid_code(source.study_uid),
                frame_of_reference_uid=uid_code(source.frame_of_reference_uid),
                series_uid=uid_code(source.series_uid),
                structure_set_uid=uid_code(source.structure_set_uid),
                steps=tuple(map(self.text, source.steps)),
            ),
        )
        if not self.shareable:
            return coded
        found = {s.name: replace(s, name=self.name(s.name), alias="") for s in case.structures.values()}
        return replace(
            coded,
            source=replace(coded.source, colours={self.name(n): c for n, c in source.colours.items()}),
            structures={s.name: s for s in found.values()},
            prescription=self.prescription(case.prescription),
        )

    def name(self, name: str) -> str:
        """The name of a structure as it is shown."""
        return self.structures.get(name, name)

    def prescription(self, prescription: Prescription | None) -> Prescription | None:
        """The prescription by the names that are shown."""
        if prescription is None:
            return None
        levels = {self.name(target): gy for target, gy in prescription.target_gy.items()}
        return replace(prescription, target_gy=levels)

    def plan(self, plan: Plan) -> Plan:
        """The plan with codes in its provenance; where `shareable`, without its labels."""
        coded = replace(plan, provenance=self.tree(dict(plan.provenance)))
        if not self.shareable:
            return coded
        arcs = tuple(replace(arc, name=f"Beam {arc.number}") for arc in plan.arcs)
        return replace(coded, label="Plan", arcs=arcs, machine=self.text(plan.machine))

    def own_uid(self, uid: str) -> str:
        """The UID of a file of ours as a report shows it: to be found again, where `shareable` a code."""
        return f"code {uid_code(uid)}" if uid and self.shareable else uid

    def dose(self, dose: _DoseT) -> _DoseT:
        """A dose with codes in its provenance; None stays None."""
        if dose is None:
            return dose
        provenance = self.tree(dict(dose.provenance))
        return replace(dose, provenance=provenance)

    def shown(self, sentence: str) -> str:
        """A sentence of a report: without names of files, where `shareable` in codes throughout."""
        return self.text(sentence) if self.shareable else self._without_files(sentence)

    def machine(self, machine: Machine) -> Machine:
        """The machine; where `shareable`, one of the clinic's own by its code and without title."""
        if not self.shareable or machine.name in machine_names():
            return machine
        return replace(machine, name=self.text(machine.name), title="")

    def results(self, results: Sequence[GoalResult]) -> tuple[GoalResult, ...]:
        """Results of goals by the names that are shown."""
        if not self.shareable:
            return tuple(results)
        return tuple(
            replace(r, goal=replace(r.goal, structure=self.name(r.goal.structure)), note=self.text(r.note))
            for r in results
        )

    def sheet(self, sheet: GoalSheet | None) -> GoalSheet | None:
        """The goal sheet of a report, its remarks in codes and its structures by the names that are shown."""
        if sheet is None:
            return None
        left_out = tuple(replace(goal, structure=self.name(goal.structure)) for goal in sheet.left_out)
        return replace(sheet, left_out=left_out, remarks=tuple(map(self.shown, sheet.remarks)))

    def verdict(self, verdict: Verdict | None) -> Verdict | None:
        """The verdict with its reasons in codes."""
        if verdict is None:
            return verdict
        checks = tuple(replace(c, name=self.shown(c.name), why=self.shown(c.why)) for c in verdict.checks)
        found = verdict.robustness
        return replace(
            verdict,
            checks=checks,
            results=self.results(verdict.results),
            robustness=found.renamed(self.name if self.shareable else str, self.shown) if found else None,
        )

    @cached_property
    def _exact(self) -> dict[str, str]:
        return {**self.machines, **self.structures}

    @cached_property
    def _always(self) -> re.Pattern[str] | None:
        return _any_of(name for name in self._exact if len(name) >= _NAME_CHARACTERS_MIN)

    @cached_property
    def _in_sentences(self) -> re.Pattern[str] | None:
        return _any_of(self.files)


def coding_of(
    case: Case,
    machine: Machine,
    *,
    machine_file: str = "",
    folder: Path | None = None,
    files: Iterable[Path | None] = (),
    plans: Iterable[Plan | None] = (),
    mapping: str | Path | None = None,
    shareable: bool = False,
) -> Coding:
    """What must not stand in the records of a case.

    `folder` holds its input files, `files` are further ones. `machine_file` is the machine as the user named
    it, `plans` are those that came from files. `mapping` decides which structure names are known.
    """
    machines = {}
    for name in machine.name.split(" behind "):
        if name not in (*machine_names(), "the plan's leaves"):
            machines[name] = machine_code(machine_file) if machine_file.endswith(".toml") else "machine"
    for plan in plans:
        named = str(plan.provenance.get("machine_in_plan", "")) if plan else ""
        if named and named not in machine_names():
            machines.setdefault(named, _PLAN_MACHINE)
    return Coding(
        _files(case, folder, files), machines, _structures(case, mapping) if shareable else {}, shareable
    )


def machine_code(name: str | Path) -> str:
    """A shipped machine by its name; one of the clinic's own as `machine` and the hash of its file."""
    if str(name) in machine_names():
        return str(name)
    from vmat_diffusion.machine import machine_text

    return f"machine {hashlib.sha256(machine_text(name).encode()).hexdigest()[:8]}"


def _files(case: Case, folder: Path | None, files: Iterable[Path | None]) -> dict[str, str]:
    """Names of input files, as numbers in the order of their names; the words of structures are none."""
    found: dict[str, str] = {}
    if folder is not None and folder.is_dir():
        for k, name in enumerate(listing(folder), start=1):
            found[name] = f"file {k}"
            found.setdefault(name.rpartition("/")[2], f"file {k}")
        for place in (folder, folder.absolute()):
            if len(place.parts) > 1:
                found[str(place)] = "the case's folder"
    for path in files:
        if path is not None:
            found.setdefault(path.name, "the file")
            found.setdefault(str(path), "the file")
    shown = {name for s in case.structures.values() for name in (s.name, s.alias)}
    return {n: code for n, code in found.items() if not is_plain_file_name(n) and n not in shown}


def _structures(case: Case, mapping: str | Path | None) -> dict[str, str]:
    """Names of structures as written: the canonical name, or for unknown ones their ROI's number."""
    table, codes, numbers = load_table(mapping), {}, case.source.roi_numbers
    for k, structure in enumerate(case.structures.values(), start=1):
        name, alias = structure.name, structure.alias
        if alias and table.match(alias) is None:
            codes[name] = codes[alias] = f"ROI_{numbers.get(name, k)}"
        elif alias and alias != name:
            codes[alias] = name
    return {written: code for written, code in codes.items() if written != code}


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=len, reverse=True)
    if not longest_first:
        return None
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
