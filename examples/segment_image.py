"""Segment a photograph in ten lines of Python. Any NumPy, dask or zarr array will do in its place."""

from napari_crfasrnn import Segmenter, load_model
from napari_crfasrnn.samples import sample

segmenter = Segmenter(load_model("starter"))  # 21 everyday classes; ships with the package
segmenter.set_image(sample("astronaut"))  # 8-bit, 16-bit or float; grey, colour or more channels; stacks
result = segmenter.predict()
print(result.labels.shape, result.timings)
for spec, share in zip(result.classes, result.shares(), strict=True):
    if share > 0.01:
        print(f"{spec.name}: {share:.0%} of the image")
