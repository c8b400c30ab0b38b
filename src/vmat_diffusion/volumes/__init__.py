"""Images, masks and doses in the formats of image analysis: NIfTI and NRRD, one file per volume."""

from vmat_diffusion.volumes.formats import ENDINGS, FileVolume, read_volume, write_volume

__all__ = ["ENDINGS", "FileVolume", "read_volume", "write_volume"]
