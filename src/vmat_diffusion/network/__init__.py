"""DICOM in and out over the network: studies that are sent to us, results that are sent on."""
