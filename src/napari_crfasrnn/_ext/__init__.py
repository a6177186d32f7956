"""The compiled extension. Only `napari_crfasrnn.lattice` imports it."""
