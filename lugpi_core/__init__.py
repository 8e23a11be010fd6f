"""What featurize and train agree on: corpora, the token store, fingerprints, files, device and meters."""

__version__ = "0.1.0"
