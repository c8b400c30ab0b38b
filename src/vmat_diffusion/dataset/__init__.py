"""Data sets: training cases as npz files, made from DICOM or public data, with index and splits."""
