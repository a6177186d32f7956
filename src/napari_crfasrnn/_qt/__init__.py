"""The napari widget. The core never imports anything from here."""
