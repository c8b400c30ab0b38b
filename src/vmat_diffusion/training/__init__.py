"""Training cases: patients on one grid as npz, from DICOM, public data or simulation, and their loading."""
