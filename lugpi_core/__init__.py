"""What featurize and train share: corpora, the token store, fingerprints, files, devices and meters."""

__version__ = "0.1.0"
