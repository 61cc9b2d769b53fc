"""Image data sets as uint8 batches, from memory or decoded as they are needed: where they are, how they are read."""

from spaceless.data.dataset import Dataset
from spaceless.data.find import Location, download, find, known
from spaceless.data.readers import Images, load, open_images
from spaceless.data.stream import Stream
from spaceless.data.verify import verify

__all__ = ["Dataset", "Images", "Location", "Stream", "download", "find", "known", "load", "open_images", "verify"]
