"""DICOM files without the person: what is removed or replaced, by which rule, and a second look."""
