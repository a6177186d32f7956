"""Models of other systems: the original Caffe files, its ports to PyTorch and Keras, MatConvNet's.

A file per format reads its arrays, one table says what they are called here and how they are laid out, and
a report says what became of each.
"""

from napari_crfasrnn.importing.model import SUFFIXES, Imported, file_format, import_model
from napari_crfasrnn.importing.report import ImportMismatchError, ImportReport

__all__ = ["SUFFIXES", "ImportMismatchError", "ImportReport", "Imported", "file_format", "import_model"]
