"""What another program reads of our files; run by readers.py with the Python of the program's venv.

    read_files.py PROGRAM CT_FOLDER RS.dcm RP.dcm RD.dcm PDF.dcm

Prints a JSON object: the version, and for each kind of file the figures read, or why it was not. Each program
is asked by its own reader where it has one; a kind without one is left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

# For each kind of file a function that reads it and gives figures by name.
Readers = Mapping[str, Callable[[], dict[str, float]]]


def pydicom(files: Mapping[str, Path]) -> Readers:
    """All kinds, as data sets."""
    from pydicom import dcmread

    def scan() -> dict[str, float]:
        images = [dcmread(file).pixel_array for file in files["CT"].glob("*.dcm")]
        return {"slices": len(images), "pixels": sum(image.size for image in images)}

    def dose() -> dict[str, float]:
        found = dcmread(files["RTDOSE"])
        return {"max_gy": float(found.pixel_array.max() * found.DoseGridScaling)}

    def plan() -> dict[str, float]:
        found = dcmread(files["RTPLAN"])
        beams = found.FractionGroupSequence[0].ReferencedBeamSequence
        points = sum(len(beam.ControlPointSequence) for beam in found.BeamSequence)
        return {"mu": sum(float(b.BeamMeterset) for b in beams), "control_points": points}

    return {
        "CT": scan,
        "RTSTRUCT": lambda: {"structures": len(dcmread(files["RTSTRUCT"]).StructureSetROISequence)},
        "RTPLAN": plan,
        "RTDOSE": dose,
        "PDF": lambda: {"bytes": dcmread(files["PDF"]).EncapsulatedDocumentLength},
    }


def dicompyler_core(files: Mapping[str, Path]) -> Readers:
    """Structures, plan and dose, and a histogram of the largest target."""
    from dicompylercore import dicomparser, dvhcalc

    def structures() -> dict[str, float]:
        found = dicomparser.DicomParser(str(files["RTSTRUCT"])).GetStructures()
        dose = str(files["RTDOSE"])
        volumes = [dvhcalc.get_dvh(str(files["RTSTRUCT"]), dose, key).volume for key in found]
        return {"structures": len(found), "with_volume": sum(volume > 0 for volume in volumes)}

    def plan() -> dict[str, float]:
        parser = dicomparser.DicomParser(str(files["RTPLAN"]))
        beams, rx_cgy = parser.GetReferencedBeamsInFraction(0), float(parser.GetPlan()["rxdose"])
        return {"beams": len(beams), "prescribed_gy": rx_cgy / 100}

    def dose() -> dict[str, float]:
        found = dicomparser.DicomParser(str(files["RTDOSE"])).GetDoseData()
        return {"max_gy": float(found["dosemax"]) * float(found["dosegridscaling"])}

    return {"RTSTRUCT": structures, "RTPLAN": plan, "RTDOSE": dose}


def pymedphys(files: Mapping[str, Path]) -> Readers:
    """Delivery of the plan and the dose."""
    import pymedphys as package
    from pydicom import dcmread

    def plan() -> dict[str, float]:
        found = package.Delivery.from_dicom(dcmread(files["RTPLAN"], force=True), fraction_group_number=1)
        return {"mu": float(found.mu[-1]), "control_points": len(found.gantry)}

    def dose() -> dict[str, float]:
        _, gy = package.dicom.zyx_and_dose_from_dataset(dcmread(files["RTDOSE"]))
        return {"max_gy": float(gy.max())}

    return {"RTPLAN": plan, "RTDOSE": dose}


def simpleitk(files: Mapping[str, Path]) -> Readers:
    """Images: the CT as a series, the dose as a volume."""
    import SimpleITK as sitk

    def scan() -> dict[str, float]:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files["CT"])))
        size = reader.Execute().GetSize()
        return {"slices": size[2], "pixels": size[0] * size[1] * size[2]}

    def dose() -> dict[str, float]:
        image = sitk.ReadImage(str(files["RTDOSE"]))
        scaling = float(image.GetMetaData("3004|000e"))
        values = sitk.GetArrayViewFromImage(image)
        # It applies the scaling itself in some versions: then the values are no whole numbers.
        whole = values.dtype.kind in "iu"
        return {"max_gy": float(values.max()) * (scaling if whole else 1.0)}

    return {"CT": scan, "RTDOSE": dose}


def rt_utils(files: Mapping[str, Path]) -> Readers:
    """Masks of the structure set on the CT."""
    from rt_utils import RTStructBuilder

    def structures() -> dict[str, float]:
        found = RTStructBuilder.create_from(str(files["CT"]), str(files["RTSTRUCT"]))
        names = found.get_roi_names()
        filled = sum(bool(found.get_roi_mask_by_name(name).any()) for name in names)
        return {"structures": len(names), "with_volume": filled}

    return {"RTSTRUCT": structures}


def platipy(files: Mapping[str, Path]) -> Readers:
    """Structures and dose as NIfTI files."""
    import SimpleITK as sitk
    from platipy.dicom.io.rtdose_to_nifti import convert_rtdose
    from platipy.dicom.io.rtstruct_to_nifti import convert_rtstruct

    def structures() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as out:
            convert_rtstruct(str(files["CT"]), str(files["RTSTRUCT"]), prefix="S_", output_dir=out)
            masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in Path(out).glob("S_*")]
            return {"structures": len(masks), "with_volume": sum(bool(mask.any()) for mask in masks)}

    def dose() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as out:
            convert_rtdose(str(files["RTDOSE"]), dose_output_path=f"{out}/d.nii.gz")
            values = sitk.GetArrayFromImage(sitk.ReadImage(f"{out}/d.nii.gz"))
            return {"max_gy": float(values.max())}

    return {"RTSTRUCT": structures, "RTDOSE": dose}


def _run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}")
    return done.stdout + done.stderr


def dcmtk(files: Mapping[str, Path]) -> Readers:
    """Every file through dcmdump, those of radiotherapy through drtdump, which knows their modules."""

    def scan() -> dict[str, float]:
        slices = sorted(files["CT"].glob("*.dcm"))
        for file in slices:
            _run("dcmdump", "+E", "-q", file)
        return {"slices": len(slices)}

    def radiotherapy(kind: str) -> Callable[[], dict[str, float]]:
        def read() -> dict[str, float]:
            lines = _run("drtdump", files[kind]).splitlines()
            # It misses this in each control point that has dose references, also of Eclipse, Monaco and
            # Brainlab; the standard has it in the control point, not in the reference.
            told = [line for line in lines if "BeamDoseVerificationControlPointSequence" not in line]
            return {"warnings": sum(line.startswith(("W:", "E:")) for line in told)}

        return read

    def document() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as out:
            _run("dcm2pdf", files["PDF"], f"{out}/report.pdf")
            return {"bytes": Path(f"{out}/report.pdf").stat().st_size}

    kinds = ("RTSTRUCT", "RTPLAN", "RTDOSE")
    return {"CT": scan, **{kind: radiotherapy(kind) for kind in kinds}, "PDF": document}


def dicom3tools(files: Mapping[str, Path]) -> Readers:
    """Errors that dciodvfy finds against the standard."""

    def errors(file: Path) -> int:
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True)
        return sum(line.startswith("Error") for line in (done.stdout + done.stderr).splitlines())

    def scan() -> dict[str, float]:
        return {"errors": sum(map(errors, files["CT"].glob("*.dcm")))}

    def of(kind: str) -> Callable[[], dict[str, float]]:
        return lambda: {"errors": errors(files[kind])}

    return {"CT": scan, **{kind: of(kind) for kind in ("RTSTRUCT", "RTPLAN", "RTDOSE", "PDF")}}


# The function of each program, and the distribution or the executable by which it is known to be there.
PROGRAMS: Mapping[str, tuple[Callable[[Mapping[str, Path]], Readers], str]] = {
    "pydicom": (pydicom, "pydicom"),
    "dicompyler-core": (dicompyler_core, "dicompyler-core"),
    "pymedphys": (pymedphys, "pymedphys"),
    "SimpleITK": (simpleitk, "SimpleITK"),
    "rt-utils": (rt_utils, "rt-utils"),
    "platipy": (platipy, "platipy"),
    "dcmtk": (dcmtk, "/drtdump"),
    "dicom3tools": (dicom3tools, "/dciodvfy"),
}


def version_of(program: str) -> str | None:
    """The version of a program; None where it is not installed here."""
    known = PROGRAMS[program][1]
    if not known.startswith("/"):
        try:
            return metadata.version(known)
        except metadata.PackageNotFoundError:
            return None
    if shutil.which(known[1:]) is None:
        return None
    said = subprocess.run([known[1:], "--version"], capture_output=True, text=True).stdout
    words = next((line.split() for line in said.splitlines() if " v" in line), [])
    return next((word.removeprefix("v") for word in words if word[:1] == "v"), "")


def main(program: str, *places: str) -> None:
    """Print what the program reads."""
    files = dict(zip(("CT", "RTSTRUCT", "RTPLAN", "RTDOSE", "PDF"), map(Path, places), strict=True))
    found: dict[str, Any] = {"version": version_of(program), "read": {}}
    if found["version"] is not None:
        try:
            readers = PROGRAMS[program][0](files)
        except ImportError as fault:  # its own requirements are not those of this Python
            found["version"], readers = None, {}
            found["why"] = f"cannot be loaded ({fault})"
        for kind, read in readers.items():
            try:
                found["read"][kind] = read()
            except Exception as fault:  # whatever another program says to our files is what is asked
                found["read"][kind] = f"{type(fault).__name__}: {fault}"[:200]
    print(json.dumps(found, default=float))


if __name__ == "__main__":
    main(*sys.argv[1:])
