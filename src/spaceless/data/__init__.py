"""Image data sets as uint8 tensors in memory: where they are, how they are read, how a batch is augmented."""

from spaceless.data.dataset import Dataset
from spaceless.data.find import Location, download, find, known
from spaceless.data.readers import load
from spaceless.data.verify import verify

__all__ = ["Dataset", "Location", "download", "find", "known", "load", "verify"]
