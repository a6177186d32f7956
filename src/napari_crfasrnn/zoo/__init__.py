"""Models by name: the starter in the package, the user's own in a folder, and published ones to download."""

from napari_crfasrnn.zoo.catalogue import STARTER, ModelEntry, list_models, load_model, unreachable_models
from napari_crfasrnn.zoo.downloads import (
    MIRROR_VARIABLE,
    Download,
    LicenceNotAcceptedError,
    download_model,
    is_accepted,
    verify_download,
)
from napari_crfasrnn.zoo.fetching import DownloadError
from napari_crfasrnn.zoo.places import MODELS_VARIABLE, published_dir, user_models_dir
from napari_crfasrnn.zoo.published import PUBLISHED, Licence, Published, published_model

__all__ = [
    "MIRROR_VARIABLE",
    "MODELS_VARIABLE",
    "PUBLISHED",
    "STARTER",
    "Download",
    "DownloadError",
    "Licence",
    "LicenceNotAcceptedError",
    "ModelEntry",
    "Published",
    "download_model",
    "is_accepted",
    "list_models",
    "load_model",
    "published_dir",
    "published_model",
    "unreachable_models",
    "user_models_dir",
    "verify_download",
]
